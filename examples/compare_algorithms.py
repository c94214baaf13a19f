"""Train many algorithms on `rlsr/DetailControl-v0` and say what share of the oracle's gain each one reaches.

All get equal environment steps, the same environments and seeds; every policy is judged without noise on held-out
patches, beside the do-nothing action (a gain of zero), the best constant action and the oracle. Needs
`uv sync --extra contrib`. Writes algorithms.json and algorithms.md to `--out`; runs that are there already are kept, so
that an interrupted comparison goes on.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
import tyro
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import rlsr_env  # noqa: F401  (registers the environments)
from agents.reports import describe_machine, describe_versions, write_json
from agents.vec_env import GymnasiumVecEnv
from rlsr_env.files import write_whole
from rlsr_env.oracle import best_strengths, value_of
from rlsr_env.rewards import Improvement
from rlsr_env.vector_env import RestorationVectorEnv

ID = "rlsr/DetailControl-v0"
# Gains of SSIM are hundredths; the algorithms' own defaults expect rewards of about one.
REWARD = Improvement(scale=100.0)


@dataclass(frozen=True)
class Args:
    """Arguments of this comparison."""

    algorithms: tuple[str, ...] = ("A2C", "PPO", "SAC", "TD3", "DDPG", "TRPO", "TQC", "CrossQ", "RecurrentPPO", "ARS")
    """which algorithms of SB3 and sb3-contrib"""
    images: str = "sample:train"
    """training pictures: sample:train or folder:PATH"""
    held_out: str = "sample:held-out"
    """pictures that the policies are judged on"""
    total_timesteps: int = 30_000
    """environment steps of each run"""
    n_envs: int = 32
    """environments in a batch"""
    n_judged: int = 64
    """held-out patches"""
    seeds: int = 3
    """runs of each algorithm: seeds 0, 1, ..."""
    quick: bool = False
    """a few hundred steps of two algorithms, to see that everything runs"""
    out: Path = Path("runs/algorithms")
    """folder to write to"""


args = tyro.cli(Args)
if args.quick:
    args = Args(("A2C", "PPO"), args.images, args.held_out, 192, 8, 8, 1, True, args.out)
args.out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)


def make_env(images: str, n_envs: int) -> RestorationVectorEnv:
    """The environments, natively batched."""
    return gymnasium.make_vec(ID, num_envs=n_envs, images=images, reward=REWARD).unwrapped


def build(name: str, env: VecEnv, seed: int) -> BaseAlgorithm:
    """An algorithm with settings that suit short episodes; whatever is not named is the library's default."""
    library = stable_baselines3 if hasattr(stable_baselines3, name) else sb3_contrib
    algorithm: Callable[..., BaseAlgorithm] = getattr(library, name)
    on_policy = {"n_steps": 12, "gamma": 0.9}
    off_policy = {"gamma": 0.9, "buffer_size": args.total_timesteps, "learning_starts": 20 * args.n_envs}
    noise = stable_baselines3.common.noise.NormalActionNoise(np.zeros(48), np.full(48, 0.2))
    settings: dict[str, dict[str, Any]] = {
        "A2C": {**on_policy, "normalize_advantage": True},
        "PPO": {**on_policy, "batch_size": 128, "n_epochs": 5},
        "TRPO": {**on_policy, "batch_size": 128},
        "RecurrentPPO": {**on_policy, "batch_size": 128, "n_epochs": 5},
        "SAC": off_policy,
        "TQC": off_policy,
        "CrossQ": off_policy,
        "TD3": {**off_policy, "action_noise": noise},
        "DDPG": {**off_policy, "action_noise": noise},
        "ARS": {"n_delta": 16, "n_top": 8, "delta_std": 0.05},
    }
    policy = {"RecurrentPPO": "CnnLstmPolicy", "ARS": "MlpPolicy"}.get(name, "CnnPolicy")
    return algorithm(policy, env, seed=seed, device="auto", **settings[name])


def judge(act: Callable[[np.ndarray], np.ndarray], env: RestorationVectorEnv) -> np.ndarray:
    """Gains of the metric over one episode on the held-out patches, `(N,)`."""
    obs, info = env.reset(seed=10_000)
    before = info[env.metric.name]
    for _ in range(env.episode_length):
        obs, _, terminated, _, info = env.step(act(obs))
    assert terminated.all()
    return info["final_info"][env.metric.name] - before


held_out_env = make_env(args.held_out, args.n_judged)
training_env = make_env(args.images, args.n_judged)

# The yardsticks: the best constant action is found on training patches, like everything that is learned.
training_env.reset(seed=0)
constant = best_strengths(training_env, shared=True)
held_out_env.reset(seed=10_000)
start = value_of(held_out_env, torch.zeros_like(constant))
gain_of_constant = (value_of(held_out_env, constant) - start).mean().item()
gain_of_oracle = (value_of(held_out_env, best_strengths(held_out_env)) - start).mean().item()
print(f"start {start.mean():.4f}, best constant {gain_of_constant:+.4f}, oracle {gain_of_oracle:+.4f}", flush=True)

for name in args.algorithms:
    for seed in range(args.seeds):
        path = args.out / f"{name}-seed{seed}.json"
        if path.is_file():
            continue
        model = build(name, GymnasiumVecEnv(make_env(args.images, args.n_envs)), seed)
        started = time.perf_counter()
        model.learn(args.total_timesteps)
        seconds = time.perf_counter() - started
        gains = judge(lambda obs, model=model: model.predict(obs, deterministic=True)[0], held_out_env)
        write_json(path, {"gain": float(gains.mean()), "timesteps": model.num_timesteps, "seconds": round(seconds, 1)})
        print(f"{name} seed {seed}: {gains.mean():+.4f}, {seconds:.0f} s", flush=True)

results: dict[str, Any] = {
    "command": shlex.join(["python", "examples/compare_algorithms.py", *sys.argv[1:]]),
    "versions": describe_versions() | {"sb3-contrib": sb3_contrib.__version__},
    "machine": describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32),
    "metric": held_out_env.metric.name,
    "start": start.mean().item(),
    "gain_of_best_constant": gain_of_constant,
    "gain_of_oracle": gain_of_oracle,
    "algorithms": {},
}
rows = []
for name in args.algorithms:
    runs = [json.loads((args.out / f"{name}-seed{seed}.json").read_text()) for seed in range(args.seeds)]
    gains = [run["gain"] for run in runs]
    spread = statistics.stdev(gains) if len(gains) > 1 else None
    mean = statistics.fmean(gains)
    results["algorithms"][name] = {"mean": mean, "std": spread, "runs": runs}
    rows.append((mean, name, spread, statistics.fmean(run["seconds"] for run in runs)))
write_json(args.out / "algorithms.json", results)
lines = [
    f"{ID}, metric {held_out_env.metric.name}; {args.total_timesteps} environment steps, {args.seeds} seeds, "
    f"{args.n_judged} held-out patches. Without any action {start.mean():.4f}.",
    "",
    "| algorithm | gain (mean ± standard deviation over seeds) | share of the oracle's gain | seconds a run |",
    "|---|---|---|---|",
    f"| oracle | {gain_of_oracle:+.4f} | 100 % | |",
    f"| best constant action | {gain_of_constant:+.4f} | {gain_of_constant / gain_of_oracle:.0%} | |",
]
for mean, name, spread, seconds in sorted(rows, reverse=True):
    deviation = "" if spread is None else f" ± {spread:.4f}"
    lines.append(f"| {name} | {mean:+.4f}{deviation} | {mean / gain_of_oracle:.0%} | {seconds:.0f} |")
lines += ["| do nothing | +0.0000 | 0 % | |", "", f"Command: `{results['command']}`", ""]
write_whole(args.out / "algorithms.md", lambda file: file.write("\n".join(lines).encode()))
print("\n".join(lines))
