"""Train many algorithms on `rlsr/DetailControl-v0` and say what share of the oracle's gain each one reaches.

All get equal environment steps on the same pictures; every policy is judged without noise on the same patches of
held-out pictures, and on others of pictures that it was trained on, beside doing nothing (a gain of zero), the best
constant action, the same network trained by the metric's own gradient, and the oracle. Patches are small and the grid
is coarse, so that a run takes less than a minute.

Needs `uv sync --extra contrib`; rows whose library is missing say so. Writes algorithms.json and algorithms.md to
`--out`; runs that are there already are kept, so that an interrupted comparison goes on. They may also be there in an
algorithms.json alone, such as results/algorithms/algorithms.json: copied to `--out`, it gets the rows that it lacks.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
import tyro
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers.vector import TransformAction, TransformObservation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor, nn

import rlsr_env  # noqa: F401  (registers the environments)
from agents.reports import describe_machine, describe_versions, write_json
from agents.vec_env import GymnasiumVecEnv
from rlsr_env.files import write_whole
from rlsr_env.oracle import best_strengths, gain_of
from rlsr_env.patches import to_float
from rlsr_env.rewards import Improvement
from rlsr_env.wrappers import band_moves

ENV_ID = "rlsr/DetailControl-v0"
HELD_OUT_SEED = 10_000  # of the patches that policies are judged on
ON_POLICY = ("A2C", "PPO", "TRPO", "RecurrentPPO")
OFF_POLICY = ("SAC", "TD3", "DDPG", "TQC", "CrossQ", "DQN")
SCRIPTS = {"REINFORCE": "reinforce.py", "TorchRL PPO": "torchrl_ppo.py", "RLlib PPO": "rllib_ppo.py"}
NEEDED = {"TorchRL PPO": "torchrl", "RLlib PPO": "ray"}  # the package of an optional extra
REMARKS = {
    "ARS": "linear; sees the patch's sharpness and the mean strengths; 2 environments",
    "DQN": "7 moves, each of one band in the whole patch",
    # Without the decay of weights, the actor of a seed or two goes to the ends of the range and stays there.
    "TD3": "decay of all weights by 0.5, which keeps the actor from the ends of its range; no noise in the target",
    "DDPG": "decay of all weights by 0.3",
    "REINFORCE": "`examples/reinforce.py`, no critic: environments of equal seeds are each other's baseline",
    "TorchRL PPO": "`examples/torchrl_ppo.py`",
    "RLlib PPO": "`examples/rllib_ppo.py`",
}


@dataclass(frozen=True)
class Args:
    """Arguments of this comparison."""

    algorithms: tuple[str, ...] = (*ON_POLICY, *OFF_POLICY, "ARS", *SCRIPTS)
    """which algorithms of SB3 and sb3-contrib, and which scripts of this folder"""
    images: str = "sample:train"
    """training pictures: sample:train or folder:PATH"""
    held_out: str = "sample:held-out"
    """pictures that the policies are judged on"""
    total_timesteps: int = 24_576
    """environment steps of each run"""
    n_envs: int = 32
    """environments in a batch"""
    n_held_out: int = 256
    """patches that the policies are judged on"""
    lr_patch_size: int = 16
    """side of the LR patches"""
    grid_size: int = 2
    """cells along each side"""
    seeds: int = 3
    """runs of each algorithm: seeds 0, 1, ..."""
    n_oracle_iterations: int = 100
    """of the searches for the best strengths"""
    quick: bool = False
    """a few hundred steps and one seed, to see that everything runs: about a minute"""
    out: Path = Path("runs/algorithms")
    """folder to write to"""


class CellFeatures(BaseFeaturesExtractor):
    """The same small network looks at each cell of the grid: what all algorithms of SB3 share."""

    def __init__(self, observation_space: Box, grid_size: int) -> None:
        """Build the layers."""
        super().__init__(observation_space, features_dim=32 * grid_size**2)
        self.layers = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], 24, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(grid_size), nn.Flatten(),
        )  # fmt: skip

    def forward(self, observations: Tensor) -> Tensor:
        """Observations `(B, channels, h, w)` float in [0, 1] to features `(B, 32 * grid_size ** 2)`."""
        return self.layers(observations - 0.5)


args = tyro.cli(Args)
if args.quick:
    args = replace(
        args,
        total_timesteps=min(args.total_timesteps, 192),
        n_envs=min(args.n_envs, 8),
        n_held_out=min(args.n_held_out, 8),
        seeds=1,
        n_oracle_iterations=min(args.n_oracle_iterations, 5),
    )
known = (*ON_POLICY, *OFF_POLICY, "ARS", *SCRIPTS)
if unknown := set(args.algorithms) - set(known):
    sys.exit(f"unknown algorithms {sorted(unknown)}; known: {', '.join(known)}")
args.out.mkdir(parents=True, exist_ok=True)


def make_env(images: str, n_envs: int, **options: Any) -> Any:
    """The environments, natively batched.

    SSIM rises by hundredths; a critic learns numbers around one more easily. An action changes a strength by half of
    what the environment allows by default, so that what is tried at random spoils less.
    """
    options = {"max_change": 0.5, **options}
    return gymnasium.make_vec(
        ENV_ID, num_envs=n_envs, images=images, lr_patch_size=args.lr_patch_size, grid_size=args.grid_size,
        reward=Improvement(scale=100.0), **options,
    )  # fmt: skip


def patch_statistics(obs: np.ndarray) -> np.ndarray:
    """Sharpness of the patch and the strength of each band, `(N, 1 + n_bands)` float32.

    A random direction in the space of a linear policy's weights says the less the more weights there are, and a line
    through what few photographs show leads astray on others. Sharpness is how steep the grey patch is on average over
    its contrast. All numbers are brought to about the same mean and spread and kept within -1 and 1.
    """
    values = obs.astype(np.float32) / 255.0
    grey, strengths = values[:, :3].mean(1), values[:, 3:].mean((2, 3))
    steepness = sum(np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2))
    sharpness = steepness / (grey.std((1, 2)) + 0.02)
    return np.tanh(np.column_stack([(sharpness - 0.7) / 0.35, (strengths - 1 / 3) / 0.15]))


def make_env_for(name: str, images: str, n_envs: int) -> Any:
    """The environments as an algorithm can use them: numbers of moves for DQN, short vectors for ARS."""
    if name == "ARS":  # Gymnasium's wrappers of observations want to see every reset
        env = make_env(images, n_envs, autoreset_mode="DISABLED")
        space = Box(-1.0, 1.0, (1 + env.task.n_bands,), np.float32)
        return TransformObservation(env, patch_statistics, single_observation_space=space)
    if name == "DQN":
        env = make_env(images, n_envs, max_change=0.75)
        table = band_moves(env.task, step=0.75)
        return TransformAction(env, lambda numbers: table[numbers], single_action_space=Discrete(len(table)))
    return make_env(images, n_envs)


def build(name: str, env: GymnasiumVecEnv, seed: int) -> BaseAlgorithm:
    """An algorithm with settings for short episodes and few steps; whatever is not named is the library's default."""
    library = stable_baselines3 if hasattr(stable_baselines3, name) else sb3_contrib
    algorithm: Callable[..., BaseAlgorithm] = getattr(library, name)
    network = {
        "features_extractor_class": CellFeatures,
        "features_extractor_kwargs": {"grid_size": args.grid_size},
        "net_arch": [64, 64],
    }
    quiet = {**network, "log_std_init": -0.5}  # a deviation of 0.3 in the strengths, which lie between -1 and 2
    n_steps = 12  # four episodes
    ppo = {"policy_kwargs": quiet, "gamma": 0.9, "n_steps": n_steps, "learning_rate": LinearSchedule(1e-3, 0.0, 1.0)}
    off_policy = {
        "policy_kwargs": network, "gamma": 0.9, "learning_rate": 1e-3,
        "buffer_size": args.total_timesteps, "learning_starts": n_steps * args.n_envs, "train_freq": 1,
        "gradient_steps": 4, "batch_size": 128,
    }  # fmt: skip
    if args.quick:
        off_policy["learning_starts"] = args.n_envs
    shape = env.action_space.shape

    # Without entropy as a part of the reward, an actor follows the slope of a critic that has seen little to the end of
    # the range, where tanh is flat; decay of the weights brings it back.
    def deterministic(weight_decay: float) -> dict[str, Any]:
        optimiser = {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": weight_decay}}
        noise = NormalActionNoise(np.zeros(shape), np.full(shape, 0.3))
        return {**off_policy, "policy_kwargs": {**network, **optimiser}, "action_noise": noise}

    # Noise in the target would smooth away a good part of values that change within a few tenths of an action.
    twin = {"policy_delay": 1, "target_policy_noise": 0.0, "target_noise_clip": 0.0}
    # The default starts at 1, beside which rewards of about one a step count for little in a few hundred updates. With
    # steps that grow smaller towards the end, seeds differ less.
    entropy = {"ent_coef": "auto_0.02", "learning_rate": LinearSchedule(1e-3, 0.0, 1.0)}
    settings: dict[str, dict[str, Any]] = {
        "A2C": {
            **ppo, "n_steps": 3, "learning_rate": LinearSchedule(2e-3, 0.0, 1.0), "normalize_advantage": True,
            "use_rms_prop": False,
        },
        "PPO": {**ppo, "batch_size": 4 * args.n_envs, "n_epochs": 5},
        "TRPO": {**ppo, "batch_size": 4 * args.n_envs},
        "RecurrentPPO": {
            **ppo, "batch_size": 4 * args.n_envs, "n_epochs": 5, "policy_kwargs": {**quiet, "lstm_hidden_size": 64},
        },
        "SAC": {**off_policy, **entropy},
        "TQC": {**off_policy, **entropy},
        "CrossQ": {**off_policy, "ent_coef": "auto_0.02"},
        "TD3": {**deterministic(0.5), **twin},
        "DDPG": deterministic(0.3),
        "DQN": {**off_policy, "target_update_interval": 200, "exploration_fraction": 0.3},
        "ARS": {
            "n_delta": 4, "n_top": 4, "delta_std": 0.3, "learning_rate": LinearSchedule(0.05, 0.0, 1.0),
            "n_eval_episodes": env.num_envs, "policy_kwargs": {"with_bias": True},
        },
    }  # fmt: skip
    policy = {"RecurrentPPO": "CnnLstmPolicy", "CrossQ": "MlpPolicy", "ARS": "LinearPolicy"}.get(name, "CnnPolicy")
    return algorithm(policy, env, seed=seed, device="cpu", **settings[name])


def judge(model: BaseAlgorithm, name: str, images: str) -> float:
    """The mean gain of the metric over one episode on patches of some pictures, by the actions thought best."""
    env = make_env_for(name, images, args.n_held_out)
    obs, info = env.reset(seed=HELD_OUT_SEED)
    before = info["ssim"]
    state: Any = None
    for step in range(env.unwrapped.episode_length):
        is_first = np.full(args.n_held_out, step == 0)
        actions, state = model.predict(obs, state, is_first, deterministic=True)
        obs, _, _, _, info = env.step(actions)
    return float((info.get("final_info", info)["ssim"] - before).mean())


def train(name: str, seed: int) -> dict[str, Any]:
    """Train and judge an algorithm of SB3 or sb3-contrib."""
    # ARS judges a direction by one episode in each environment; few of them leave steps for many updates.
    n_envs = min(args.n_envs, 2) if name == "ARS" else args.n_envs
    model = build(name, GymnasiumVecEnv(make_env_for(name, args.images, n_envs)), seed)
    # ARS of sb3-contrib adds the number of environments for each of them at every step, instead of once.
    counted_times = n_envs if name == "ARS" else 1
    started = time.process_time()
    model.learn(args.total_timesteps * counted_times)
    seconds = time.process_time() - started
    return {
        "gain": judge(model, name, args.held_out),
        "training_gain": judge(model, name, args.images),
        "timesteps": model.num_timesteps // counted_times,
        "cpu_seconds": round(seconds, 1),
    }


def train_by_gradient(seed: int) -> dict[str, Any]:
    """Train the same network by the metric's own gradient, one action on each patch: no RL, only a yardstick."""
    torch.manual_seed(seed)
    env = make_env(args.images, args.n_envs)
    shape = (-1, env.task.n_bands, args.grid_size, args.grid_size)
    features = CellFeatures(env.single_observation_space, args.grid_size)
    n_actions = env.single_action_space.shape[0]
    head = nn.Sequential(nn.Linear(features.features_dim, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    network = nn.Sequential(features, head, nn.Linear(64, n_actions))

    def strengths_for(obs: np.ndarray) -> Tensor:
        strengths = network(to_float(torch.from_numpy(obs))).clamp(env.task.LOWEST, env.task.HIGHEST)
        return strengths.unflatten(1, shape[1:])

    n_updates = args.total_timesteps // args.n_envs
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=n_updates)
    started = time.process_time()
    for update in range(n_updates):
        obs, _ = env.reset(seed=seed if update == 0 else None)
        loss = -env.metric(env.task.mix(strengths_for(obs)), to_float(env.hr_patches)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - started

    @torch.no_grad()
    def gain_on(images: str) -> float:
        judged = make_env(images, args.n_held_out).unwrapped
        obs, _ = judged.reset(seed=HELD_OUT_SEED)
        return gain_of(judged, strengths_for(obs)).mean().item()

    return {
        "gain": gain_on(args.held_out),
        "training_gain": gain_on(args.images),
        "timesteps": n_updates * args.n_envs,
        "cpu_seconds": round(seconds, 1),
    }


def run_script(name: str, seed: int, path: Path) -> None:
    """Train by a script of this folder, with a network and settings of its own."""
    # How often it learns, and the environment steps that it takes each time.
    option, steps = {
        "REINFORCE": ("--n-updates", 64 * 3),
        "TorchRL PPO": ("--n-updates", 32 * 3),
        "RLlib PPO": ("--n-iterations", 384),
    }[name]
    arguments = [
        option, max(args.total_timesteps // steps, 1), "--images", args.images, "--held-out", args.held_out,
        "--n-held-out", args.n_held_out, "--lr-patch-size", args.lr_patch_size, "--grid-size", args.grid_size,
        "--n-oracle-iterations", 1, "--seed", seed, "--out", path,
    ]  # fmt: skip
    script = Path(__file__).parent / SCRIPTS[name]
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def yardsticks() -> dict[str, Any]:
    """What there is to gain, on held-out pictures and on those trained on.

    The best constant action is found on patches of training pictures that nobody is judged on.
    """
    training = make_env(args.images, args.n_held_out).unwrapped
    training.reset(seed=0)
    constant = best_strengths(training, shared=True, n_iterations=args.n_oracle_iterations)

    def to_gain_on(images: str) -> dict[str, float]:
        judged = make_env(images, args.n_held_out).unwrapped
        _, info = judged.reset(seed=HELD_OUT_SEED)
        best = best_strengths(judged, n_iterations=args.n_oracle_iterations)
        return {
            "start": float(info["ssim"].mean()),
            "best_constant": gain_of(judged, constant).mean().item(),
            "oracle": gain_of(judged, best).mean().item(),
        }

    return {**to_gain_on(args.held_out), "training": to_gain_on(args.images)}


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier call has left in the file, else what `make` returns."""
    if not path.is_file():
        write_json(path, make())
    return json.loads(path.read_text())


# What a run depends on: results of other settings in the same folder are not mixed with these.
settings = {
    name: getattr(args, name)
    for name in ("images", "held_out", "total_timesteps", "n_envs", "n_held_out", "lr_patch_size", "grid_size")
}
finished = args.out / "algorithms.json"
earlier: dict[str, Any] = json.loads(finished.read_text()) if finished.is_file() else {}
for holder in (kept(args.out / "settings.json", lambda: settings), earlier.get("settings", settings)):
    if holder != settings:
        sys.exit(f"{args.out} holds runs with other settings; take another --out")
ruler = kept(args.out / "yardsticks.json", lambda: earlier.get("yardsticks") or yardsticks())
known_gains = (f"{name} {ruler[name]:+.4f}" for name in ("start", "best_constant", "oracle"))
print("held-out pictures:", ", ".join(known_gains), flush=True)

GRADIENT = "metric's gradient, no RL"
runs: dict[str, list[dict[str, Any]]] = {}
for seed in range(args.seeds):
    for name in (GRADIENT, *args.algorithms):
        there = earlier.get("algorithms", {}).get(name, {}).get("runs", [])[seed : seed + 1]
        if name in NEEDED and not there and find_spec(NEEDED[name]) is None:
            print(f"{name}: {NEEDED[name]} is not installed, left out", flush=True)
            continue
        path = args.out / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}.json"
        if path.is_file():
            pass
        elif there:
            write_json(path, there[0])
        elif name in SCRIPTS:
            run_script(name, seed, path)
        else:
            write_json(path, train_by_gradient(seed) if name == GRADIENT else train(name, seed))
        run = json.loads(path.read_text())
        runs.setdefault(name, []).append(run)
        print(f"{name}, seed {seed}: {run['gain']:+.4f}, {run['cpu_seconds']:.0f} s", flush=True)


def summary(gains: list[float], yardstick: dict[str, float]) -> dict[str, Any]:
    """Mean and spread over the seeds, and how many of them are above both yardsticks."""
    return {
        "gain": statistics.fmean(gains),
        "deviation": statistics.stdev(gains) if len(gains) > 1 else None,
        "share_of_oracle": statistics.fmean(gains) / yardstick["oracle"],
        "seeds_above_best_constant": sum(gain > yardstick["best_constant"] for gain in gains),
        "seeds_above_nothing": sum(gain > 0.0 for gain in gains),
    }


def entry_of(name: str) -> dict[str, Any]:
    """All that is known of an algorithm: on held-out pictures, on those trained on, and its runs."""
    gains, training_gains = ([run[which] for run in runs[name]] for which in ("gain", "training_gain"))
    return {**summary(gains, ruler), "training": summary(training_gains, ruler["training"]), "runs": runs[name]}


installed = [package for package in ("sb3-contrib", "torchrl", "ray") if find_spec(package.replace("-", "_"))]
results: dict[str, Any] = {
    "command": shlex.join(["python", "examples/compare_algorithms.py", *sys.argv[1:]]),
    "versions": describe_versions() | {package: version(package) for package in installed},
    "machine": describe_machine(torch.device("cpu"), torch.float32),
    "settings": settings,
    "seeds": args.seeds,
    "yardsticks": ruler,
    "algorithms": {name: entry_of(name) for name in runs},
}
write_json(args.out / "algorithms.json", results)


def cells(entry: dict[str, Any], yardstick: dict[str, float], n_runs: int) -> str:
    """Of a line of the table: gain, share of the oracle's, over the best constant, seeds above it."""
    deviation = "" if entry["deviation"] is None else f" ± {entry['deviation']:.4f}"
    above = f"{entry['seeds_above_best_constant']} of {n_runs}"
    over = entry["gain"] - yardstick["best_constant"]
    return f"{entry['gain']:+.4f}{deviation} | {entry['share_of_oracle']:.0%} | {over:+.4f} | {above}"


def row(name: str, entry: dict[str, Any]) -> str:
    """A line of the table."""
    n_runs = len(entry["runs"])
    seconds = statistics.fmean(run["cpu_seconds"] for run in entry["runs"])
    held_out, training = cells(entry, ruler, n_runs), cells(entry["training"], ruler["training"], n_runs)
    return f"| {name} | {held_out} | {training} | {seconds:.0f} | {REMARKS.get(name, '')} |"


def bounds(yardstick: dict[str, float], which: str) -> str:
    """The cells of a yardstick itself."""
    value, best = yardstick[which], yardstick["oracle"]
    over = f"{value - yardstick['best_constant']:+.4f}" if which == "oracle" else ""
    return f"{value:+.4f} | {value / best:.0%} | {over} | "


ranked = sorted(results["algorithms"].items(), key=lambda item: -item[1]["gain"])
left_out = [name for name in args.algorithms if name not in runs]
lines = [
    "# Algorithms on `rlsr/DetailControl-v0`",
    "",
    f"`{results['command']}`, {args.seeds} seed(s), {args.total_timesteps} environment steps each. SSIM, scale 2, "
    f"quality 20, Lanczos; LR patches of {args.lr_patch_size} x {args.lr_patch_size}, 3 bands on a {args.grid_size} x "
    f"{args.grid_size} grid, 3 refinements. Gain over doing nothing (SSIM {ruler['start']:.4f} on held-out pictures, "
    f"{ruler['training']['start']:.4f} on those trained on) on {args.n_held_out} patches, by actions without noise; "
    "mean ± standard deviation over the seeds. The best constant action was found on other patches of the training "
    "pictures.",
    "",
    "| | gain in SSIM, held-out pictures | of the oracle's | over the best constant | seeds above it | gain, pictures "
    "trained on | of the oracle's | over the best constant | seeds above it | CPU s a run | remark |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
    f"| oracle | {bounds(ruler, 'oracle')} | {bounds(ruler['training'], 'oracle')} | | sees the original |",
    *(row(name, entry) for name, entry in ranked),
    f"| best constant action | {bounds(ruler, 'best_constant')} | {bounds(ruler['training'], 'best_constant')} | | |",
    "| do nothing | +0.0000 | 0% | | | +0.0000 | 0% | | | | |",
    *(f"| {name} | not run: {NEEDED[name]} is not installed" + " |" * 10 for name in left_out),
    "",
]
write_whole(args.out / "algorithms.md", lambda file: file.write("\n".join(lines).encode()))
print("\n".join(lines))
