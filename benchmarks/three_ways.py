"""Three ways to let reinforcement learning into SRGAN at equal budget: as in the paper, by detail, by the generator.

- predicted PSNR: as in the paper (Savioli 2019, sec. 2.2), A2C on the trunk predicts the PSNR; no gradient of the
  reward reaches the picture.
- detail: SRGAN alone trains the generator; PPO learns to turn its detail up and down, a few numbers a picture.
- generator: GRPO, the generator's own picture is the action.

All of them go on from one start, with as many SRGAN updates on the same batches. Detail and generator may have as many
pictures judged; predicted PSNR has as many as its schedule asks for, an environment step to each update. Gains are over
SRGAN trained on. Writes JSON to `--out` and a table beside it.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.ablation import Ablation
from agents.ablation_options import QUICK_ABLATION, AblateOptions
from agents.ablation_report import Cell, gain_over_control
from agents.reports import describe_machine, describe_versions, write_results
from agents.stages import RLSRGANStage
from agents.vec_env import GymnasiumVecEnv
from gan.generator import Generator
from rlsr_env.batch_judge import rounded
from rlsr_env.detail import DetailControl
from rlsr_env.metrics import metric
from rlsr_env.patches import to_float
from rlsr_env.vector_env import RestorationVectorEnv

WAYS = {
    "control": "SRGAN trained on",
    "predicted": "predicted PSNR, A2C (the paper)",
    "detail": "control of detail, PPO",
    "generator": "generator as policy, GRPO",
}
N_REFINEMENTS = 5


@dataclass(frozen=True)
class Args:
    """Arguments of this benchmark."""

    start: Path | None = None
    """folder of a run of rlsr ablate whose start is taken; without it, one is trained"""
    metrics: tuple[str, ...] = ("psnr", "ssim", "haarpsi")
    """what is measured; the first one is the reward"""
    updates: int = 40
    """SRGAN updates of each way; a multiple of the paper's T = 5"""
    seeds: int = 3
    """seeds of each way"""
    learning_rate: float = 2e-4
    """of the generator"""
    data: Path | None = None
    """folder of training pictures; without it, photographs that scikit-image ships"""
    eval_data: tuple[Path, ...] = ()
    """folders of held-out pictures; without it, photographs that scikit-image ships"""
    vgg_weights: Path | None = None
    """as of rlsr ablate"""
    scale: int = 4
    """as of rlsr ablate"""
    quality: int = 75
    """as of rlsr ablate"""
    batch_size: int = 4
    """as of rlsr ablate"""
    content_patches: int = 1
    """as of rlsr ablate"""
    n_patches: int = 4
    """as of rlsr ablate"""
    crop_size: int = 192
    """as of rlsr ablate"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """as of rlsr ablate"""
    out: Path | None = None
    """JSON file to write; the table goes beside it, as .md"""
    quick: bool = False
    """tiny cells, for a test: the figures mean nothing"""


class CellsOfTheGrid(BaseFeaturesExtractor):
    """A few convolutions, and the mean over each cell of the detail's grid, so that pictures of any size go."""

    def __init__(self, observation_space: spaces.Box, grid_size: int, channels: int = 32) -> None:
        """Build the network for observations `(c, h, w)`."""
        super().__init__(observation_space, features_dim=channels * grid_size**2)
        self.layers = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], channels, 5, padding=2), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(grid_size), nn.Flatten(),
        )  # fmt: skip

    def forward(self, observations: Tensor) -> Tensor:
        """Observations `(B, c, h, w)` in [0, 1] to features `(B, features_dim)`."""
        return self.layers(observations)


def options_of(args: Args) -> AblateOptions:
    """The budget, as options of `rlsr ablate`."""
    given = {
        name: getattr(args, name)
        for name in (
            "start", "metrics", "updates", "seeds", "learning_rate", "data", "eval_data", "vgg_weights", "scale",
            "quality", "batch_size", "content_patches", "n_patches", "crop_size", "precision",
        )
    }  # fmt: skip
    if args.quick:
        given |= QUICK_ABLATION | {"seeds": 1, "updates": 5, "metrics": ("psnr", "ssim")}
    return AblateOptions(**given, methods=("rl",), out=Path("runs") / f"three-ways-{time.time_ns()}")


def train_as_in_the_paper(run: Ablation, reward: str, seed: int) -> Generator:
    """A2C predicts the PSNR; SRGAN's losses at every step (Savioli 2019, sec. 2.2.3)."""
    torch.manual_seed(seed)
    start = run.new_generator()
    start.load_state_dict(run.start_state["generator"])
    env = RestorationVectorEnv(
        run.options.n_patches, task="psnr_prediction", source=run.sources[run.options.hr_patch_size],
        episode_length=N_REFINEMENTS, metric=reward, reward="threshold",
    )  # fmt: skip
    stage = RLSRGANStage(
        start, env, lambda live: run.from_start(live, seed), run.options.updates, N_REFINEMENTS,
        run.options.learning_rate, seed,
    )  # fmt: skip
    stage.run(lambda _: None, run.interruption)
    return stage.averaged_generator()


def train_detail(run: Ablation, generator: Generator, reward: str, seed: int) -> PPO:
    """PPO on the detail of a generator, with as many judged pictures as GRPO's."""
    options = run.options
    env = RestorationVectorEnv(
        8, task=DetailControl(), source=run.sources[options.hr_patch_size], episode_length=N_REFINEMENTS,
        metric=reward, reward="improvement", generator=generator,
    )  # fmt: skip
    budget = options.updates * options.group_size * options.n_patches
    model = PPO(
        "CnnPolicy", GymnasiumVecEnv(env), n_steps=20, batch_size=80, n_epochs=6, learning_rate=1e-3, gamma=0.5,
        policy_kwargs={
            "features_extractor_class": CellsOfTheGrid,
            "features_extractor_kwargs": {"grid_size": env.task.grid_size},  # type: ignore[attr-defined]
            "normalize_images": True,
            "log_std_init": -2.0,
            "net_arch": [],
        },
        seed=seed, device=run.device,
    )  # fmt: skip
    return model.learn(budget)


@torch.no_grad()
def measure_refined(run: Ablation, generator: Generator, model: PPO) -> dict[str, dict[str, float]]:
    """`Ablation.measure` of the pictures after the agent's refinements, without noise on its actions."""
    values: dict[str, dict[str, float]] = {judge.name: {} for judge in run.judges}
    for crop in run.crops:
        lr_image, hr_image = crop.lr_image.to(run.device), to_float(crop.hr_image.to(run.device))
        task = DetailControl()
        picture = task.start(torch.ones(1, dtype=torch.bool), to_float(lr_image), generator)
        for _ in range(N_REFINEMENTS):
            actions = model.policy.get_distribution(task.observe(lr_image)).mode()  # type: ignore[operator]
            picture = task.restore(actions, to_float(lr_image), generator)
        sr_image = to_float(rounded(picture).to(run.device))
        for judge in run.judges:
            values[judge.name][crop.uri] = judge(sr_image, hr_image).item()
    return values


def cells_of(run: Ablation, seed: int) -> list[Cell]:
    """All ways with one seed."""
    reward = run.judges[0].name
    cells: list[Cell] = []

    def add(way: str, values: Callable[[], dict[str, dict[str, float]]]) -> None:
        started = time.perf_counter()
        measured = values()
        cells.append(Cell(way, "", seed, round(time.perf_counter() - started, 1), measured))
        means = {name: round(statistics.fmean(entries.values()), 4) for name, entries in measured.items()}
        print(f"seed {seed}, {way}: {means}", flush=True)

    control = run.train_cell("control", "", seed)
    add("control", lambda: run.measure(control))
    add("predicted", lambda: run.measure(train_as_in_the_paper(run, reward, seed)))
    add("detail", lambda: measure_refined(run, control, train_detail(run, control, reward, seed)))
    add("generator", lambda: run.measure(run.train_rl(metric(reward), seed)))
    return cells


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    names = results["metrics"]
    lines = [
        "# Three ways to let reinforcement learning in",
        "",
        f"`{results['command']}`: {results['updates']} SRGAN updates each from one start, reward {names[0]}, "
        f"{results['seeds']} seeds, {results['n_held_out']} held-out pictures. Gains over SRGAN trained on, with their "
        "95 % interval over seeds and pictures.",
        "",
        "| way | judged pictures | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for way, entry in results["ways"].items():
        if way == "control":
            shown = [f"{entry['means'][name]:.4f}" for name in names]
        else:
            gains = [entry["gains"][name] for name in names]
            shown = [
                f"{gain['mean']:+.4f}" + (f" ± {gain['half_width']:.4f}" if gain["half_width"] is not None else "")
                for gain in gains
            ]
        lines.append(f"| {WAYS[way]} | {entry['judged']} | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def main(args: Args) -> None:
    """Run, print, write."""
    command = shlex.join(["python", "benchmarks/three_ways.py", *sys.argv[1:]])
    run = Ablation(options_of(args), command=command)
    run.prepare()
    options = run.options
    cells = [cell for seed in range(options.seeds) for cell in cells_of(run, seed)]
    group = options.updates * options.group_size * options.n_patches
    judged = {"control": 0, "predicted": options.updates * options.n_patches, "detail": group, "generator": group}
    ways: dict[str, Any] = {}
    for way in WAYS:
        of_way = [cell for cell in cells if cell.method == way]
        means = {j.name: statistics.fmean(v for c in of_way for v in c.values[j.name].values()) for j in run.judges}
        ways[way] = {"judged": judged[way], "means": means}
        if way != "control":
            gains = {judge.name: gain_over_control(cells, way, "", judge) for judge in run.judges}
            finite = options.seeds > 1 and len(run.crops) > 1
            ways[way]["gains"] = {
                name: {"mean": gain.mean, "half_width": gain.half_width if finite else None}
                for name, gain in gains.items()
            }
    results = {
        "command": command,
        "versions": describe_versions(),
        "machine": describe_machine(run.device, run.compute_dtype),
        "metrics": [judge.name for judge in run.judges],
        "updates": options.updates,
        "seeds": options.seeds,
        "n_held_out": len(run.crops),
        "start": run.start_card,
        "ways": ways,
    }
    write_results(args.out, results, table(results))


if __name__ == "__main__":
    main(tyro.cli(Args))
