"""GRPO's settings, one varied at a time around the defaults: what the reward gains, how much of a gradient is noise.

Everything runs through the cells of `rlsr ablate`, from the start that such a run has left. Writes JSON to `--out` and
a table beside it; what is in the JSON already is not run again.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from stable_baselines3.common.logger import configure
from torch import Tensor
from torch.nn import functional

from agents.ablation import Ablation
from agents.ablation_options import QUICK_ABLATION, AblateOptions
from agents.ablation_report import Cell, gain_over_control
from agents.grpo import GRPO
from agents.picture_noise import picture_noise
from agents.reports import describe_machine, describe_versions, write_json, write_results
from rlsr_env.block_maps import BLOCK
from rlsr_env.files import write_whole
from rlsr_env.metrics import METRICS, Metric, metric

# What is varied, and over which values; block_size is the side of the squares of pixels that share their credit.
SWEEPS: dict[str, tuple[Any, ...]] = {
    "sigma": (0.0025, 0.005, 0.01, 0.02, 0.04),
    "group_size": (4, 16, 64),
    "block_size": (8, 16, 32, "picture"),
    "noise_blur": (0.0, 0.7, 1.0, 1.5, 2.5),
    "baseline": ("group", "leave_one_out", "critic"),
    "policy_coef": (5.0, 20.0, 80.0),
    "gradient_norm": (0.5, 2.0, 8.0),
    "learning_rate": (1e-4, 2e-4, 4e-4),
    "updates": (10, 20, 40),
    "n_patches": (2, 4, 16),
    "anchor_weight": (0.0, 0.1, 1.0),
}
# These change what the control does, so each of their values has a control of its own.
OF_THE_CONTROL = ("learning_rate", "updates")


@dataclass(frozen=True)
class Args:
    """Arguments of this benchmark."""

    start: Path | None = None
    """folder of a run of rlsr ablate whose start is taken; without it, one is trained"""
    sweeps: tuple[str, ...] = tuple(SWEEPS)
    """which settings to vary"""
    values: tuple[float, ...] = ()
    """other values than the ones above, for a single sweep"""
    metrics: tuple[str, ...] = ("psnr", "edge_f1")
    """rewards"""
    seeds: int = 1
    """seeds of each cell"""
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
    updates: int = 20
    """as of rlsr ablate"""
    batch_size: int = 4
    """as of rlsr ablate"""
    content_patches: int = 1
    """as of rlsr ablate"""
    n_patches: int = 4
    """as of rlsr ablate"""
    sigma: float = AblateOptions.sigma
    """as of rlsr ablate"""
    noise_blur: float = AblateOptions.noise_blur
    """as of rlsr ablate"""
    smooth_noise_for: tuple[str, ...] = AblateOptions.smooth_noise_for
    """as of rlsr ablate"""
    policy_coef: float = AblateOptions.policy_coef
    """as of rlsr ablate"""
    gradient_norm: float = AblateOptions.gradient_norm
    """as of rlsr ablate"""
    learning_rate: float = AblateOptions.learning_rate
    """as of rlsr ablate"""
    n_gradients: int = 6
    """gradients of the same patches with new noise, whose agreement is measured; 0 for none"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """as of rlsr ablate"""
    out: Path | None = None
    """JSON file to write; the table goes beside it, as .md"""
    quick: bool = False
    """a few tiny cells, for a test: the figures mean nothing"""


def options_of(args: Args) -> AblateOptions:
    """The centre of all sweeps, as options of `rlsr ablate`."""
    given = {
        name: getattr(args, name)
        for name in (
            "start", "metrics", "seeds", "data", "eval_data", "vgg_weights", "scale", "quality", "updates",
            "batch_size", "content_patches", "n_patches", "sigma", "noise_blur", "smooth_noise_for",
            "policy_coef", "gradient_norm", "learning_rate", "precision",
        )
    }  # fmt: skip
    if args.quick:
        given |= QUICK_ABLATION | {"seeds": 1}
    return AblateOptions(**given, methods=("rl",), out=Path("runs") / f"sweep-{time.time_ns()}")


def with_block_size(judge: Metric, side: int) -> Metric:
    """A metric whose map says the same for all blocks in a square of `side` pixels: coarser credit."""
    of_blocks = judge.block_map
    if of_blocks is None or side == BLOCK:
        return judge

    def of_squares(sr_image: Tensor, hr_image: Tensor) -> Tensor:
        maps = of_blocks(sr_image, hr_image)[:, None]
        factor = min(side // BLOCK, *maps.shape[-2:])
        pooled = functional.avg_pool2d(maps, factor, ceil_mode=True, count_include_pad=False)
        whole = functional.interpolate(pooled, scale_factor=float(factor), mode="nearest")
        return whole[:, 0, : maps.shape[-2], : maps.shape[-1]]

    return replace(judge, block_map=of_squares)


def set_to(run: Ablation, centre: AblateOptions, name: str, value: Any, judge: Metric) -> Metric:
    """Change one setting; returns the reward to train for."""
    run.options = centre
    if name == "block_size":
        if value == "picture":
            run.options = replace(centre, credit="picture")
            return judge
        return with_block_size(judge, int(value))
    run.options = replace(centre, **{name: value})
    return judge


@torch.no_grad()
def _flat(gradients: list[Tensor | None]) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def agreement(run: Ablation, judge: Metric, n_gradients: int) -> dict[str, float]:
    """The policy gradient of one batch of patches, drawn several times.

    Returns:
        `cosine`, the mean over pairs: 1 without noise, 0 where a gradient is nothing else; `norm`, before clipping,
        with `policy_coef`; and for a metric with a gradient of its own `cosine_with_own`, the mean of all draws
        against that.
    """
    model: GRPO = run.make_grpo(judge, seed=0)
    model.set_logger(configure(None, []))
    parameters = list(model.policy.generator.parameters())
    env = model.judge
    obs = env.reset_tensors(seed=0)[0]
    draws = []
    for _ in range(n_gradients):
        mean, values = model.policy.pictures(obs)
        half = picture_noise(model.group_size // 2, mean.detach(), model.noise_blur, model.grey_noise)
        loss = model._policy_loss(obs, mean, values, half, model._rewards(mean.detach(), half))
        draws.append(_flat(list(torch.autograd.grad(loss, parameters))))
    cosines = [
        functional.cosine_similarity(draws[i], draws[j], dim=0).item() for i in range(n_gradients) for j in range(i)
    ]
    found = {"cosine": statistics.fmean(cosines), "norm": statistics.fmean(g.norm().item() for g in draws)}
    if judge.differentiable and judge.name in METRICS:
        mean, _ = model.policy.pictures(obs)
        sign = 1.0 if judge.higher_is_better else -1.0
        own = -sign * judge(mean, env.hr_patches.float() / 255).mean()
        own_gradient = _flat(list(torch.autograd.grad(own, parameters)))
        together = torch.stack(draws).mean(0)
        found["cosine_with_own"] = functional.cosine_similarity(together, own_gradient, dim=0).item()
    return found


def sweep(run: Ablation, args: Args, known: list[dict[str, Any]], keep: Callable[[], None]) -> None:
    """Fill `known` with an entry for each setting and reward that is not there; `keep` is called after each."""
    centre = run.options
    controls: dict[tuple[Any, ...], list[Cell]] = {}

    def controls_of(options: AblateOptions) -> list[Cell]:
        key = tuple(getattr(options, name) for name in OF_THE_CONTROL)
        if key not in controls:
            run.options = options
            controls[key] = [
                Cell("control", "", seed, 0.0, run.measure(run.train_cell("control", "", seed)))
                for seed in range(options.seeds)
            ]
        return controls[key]

    for name in args.sweeps:
        # As numbers of the kind that the setting has: counts are integers.
        values = tuple(type(SWEEPS[name][0])(value) for value in args.values) or SWEEPS[name]
        for judge in (metric(reward) for reward in args.metrics):
            if name == "noise_blur" and judge.name not in centre.smooth_noise_for:
                continue
            for value in values:
                if any((e["setting"], e["reward"], e["value"]) == (name, judge.name, value) for e in known):
                    continue
                if name == "block_size" and value not in (BLOCK, "picture") and judge.block_map is None:
                    continue
                is_centre = value == (BLOCK if name == "block_size" else getattr(centre, name))
                same = [e for e in known if is_centre and e["is_centre"] and e["reward"] == judge.name]
                if same:  # of another sweep, which has the centre in common
                    known.append(same[0] | {"setting": name, "value": value})
                    keep()
                    continue
                reward = set_to(run, centre, name, value, judge)
                options = run.options
                cells = controls_of(options)
                run.options = options
                started = time.perf_counter()
                trained = [
                    Cell("rl", judge.name, seed, 0.0, run.measure(run.train_rl(reward, seed)))
                    for seed in range(options.seeds)
                ]
                seconds = (time.perf_counter() - started) / options.seeds
                gains = {j.name: gain_over_control([*cells, *trained], "rl", judge.name, j) for j in run.judges}
                entry = {
                    "setting": name,
                    "value": value,
                    "reward": judge.name,
                    "is_centre": is_centre,
                    "seconds": round(seconds, 1),
                    "gains": {judge_name: gain.mean for judge_name, gain in gains.items()},
                }
                if args.n_gradients > 1:
                    entry["gradient"] = agreement(run, reward, args.n_gradients)
                known.append(entry)
                keep()
                print(json.dumps(entry), flush=True)


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    metrics = results["metrics"]
    lines = [
        "# GRPO's settings, one at a time",
        "",
        f"`{results['command']}`, {results['updates']} updates a cell, {results['seeds']} seed(s), "
        f"{results['n_held_out']} held-out pictures. Gains over the control of equal updates, turned so that more is "
        "better. Agreement: mean cosine between gradients of the same patches with new noise (1: no noise). Norm: of "
        "the policy's gradient before it is bounded; SRGAN's is about 1.",
    ]
    for name in dict.fromkeys(entry["setting"] for entry in results["entries"]):
        lines += [
            "",
            f"## {name}",
            "",
            "| reward | value | " + " | ".join(f"gain in {m}" for m in metrics) + " | agreement | norm | s |",
            "|---|---|" + "---|" * (len(metrics) + 3),
        ]
        for entry in (e for e in results["entries"] if e["setting"] == name):
            gains = [f"{entry['gains'][m]:+.4g}" for m in metrics]
            shown = [f"**{g}**" if m == entry["reward"] else g for m, g in zip(metrics, gains, strict=True)]
            gradient = entry.get("gradient")
            of_gradient = f"{gradient['cosine']:.3f} | {gradient['norm']:.2f}" if gradient else " | "
            value = f"{entry['value']} (default)" if entry["is_centre"] else entry["value"]
            lines.append(
                f"| {entry['reward']} | {value} | {' | '.join(shown)} | {of_gradient} | {entry['seconds']:.0f} |"
            )
    return "\n".join([*lines, ""])


def main(args: Args) -> None:
    """Run, print, write."""
    if unknown := set(args.sweeps) - set(SWEEPS):
        raise SystemExit(f"unknown sweeps {sorted(unknown)}; known: {', '.join(SWEEPS)}")
    command = shlex.join(["python", "benchmarks/grpo_sweep.py", *sys.argv[1:]])
    run = Ablation(options_of(args), command=command)
    run.prepare()
    entries: list[dict[str, Any]] = []
    if args.out is not None and args.out.is_file():
        entries = json.loads(args.out.read_text())["entries"]
    results = {
        "command": command,
        "versions": describe_versions(),
        "machine": describe_machine(run.device, run.compute_dtype),
        "metrics": [judge.name for judge in run.judges],
        "updates": run.options.updates,
        "seeds": run.options.seeds,
        "n_held_out": len(run.crops),
        "centre": {name: getattr(run.options, name) for name in SWEEPS if name != "block_size"},
        "start": run.start_card,
        "entries": entries,
    }

    def keep() -> None:
        if args.out is not None:
            write_json(args.out, results)
            write_whole(args.out.with_suffix(".md"), lambda file: file.write(table(results).encode()))

    sweep(run, args, entries, keep)
    write_results(args.out, results, table(results))  # also where nothing was left to do


if __name__ == "__main__":
    main(tyro.cli(Args))
