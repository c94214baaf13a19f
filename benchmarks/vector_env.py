"""Steps per second of the environments: native batch against the vector environments that wrap scalar ones.

The ratios come from runs that were timed in turn. Also: what the native step takes over the generator's forward pass
and the metric alone on the same batch, and the memory of each size. Writes JSON to `--out`.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
import tyro
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import rlsr_env  # noqa: F401  (registers the environments)
from agents.reports import describe_machine, describe_versions
from gan.generator import Generator, GeneratorConfig
from gan.precision import choose_compute_dtype, choose_device
from rlsr_env.metrics import to_8bit
from rlsr_env.patches import to_float


@dataclass(frozen=True)
class Args:
    """Arguments of this benchmark."""

    env_id: str = "rlsr/DetailControl-v0"
    """the environment of the comparison with scalar ones, with its default generator"""
    n_envs: int = 64
    """environments of that comparison"""
    sizes: tuple[int, ...] = (1, 8, 64, 512)
    """batch sizes of the native environment that are shown"""
    rounds: int = 5
    """timed rounds of each"""
    seconds: float = 1.0
    """least duration of a round"""
    device: str = "auto"
    """auto, cpu or cuda"""
    out: Path | None = None
    """JSON file to write"""


def steps_per_second(step: Callable[[], Any], n_envs: int, seconds: float) -> float:
    """Environment steps per second of one round."""
    n, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        n += n_envs
    return n / (time.perf_counter() - started)


def megabytes() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def native_step(n_envs: int, env_id: str, **options: Any) -> tuple[Callable[[], Any], Any]:
    """A step of the native vector environment with fixed random actions."""
    env = gymnasium.make_vec(env_id, num_envs=n_envs, device=str(device), **options)
    env.reset(seed=0)
    actions = env.action_space.sample()
    return lambda: env.step(actions), env.unwrapped


def main(args: Args) -> None:
    """Measure and print."""
    make = partial(gymnasium.make, args.env_id)
    same_step = AutoresetMode.SAME_STEP
    rivals: dict[str, Callable[[], Any]] = {
        "DummyVecEnv": lambda: DummyVecEnv([make] * args.n_envs),
        "SyncVectorEnv": lambda: SyncVectorEnv([make] * args.n_envs, autoreset_mode=same_step),
        "AsyncVectorEnv": lambda: AsyncVectorEnv([make] * min(args.n_envs, 8), autoreset_mode=same_step),
        "SubprocVecEnv": lambda: SubprocVecEnv([make] * min(args.n_envs, 8)),
    }
    ratios: dict[str, Any] = {}
    for name, build in rivals.items():
        rival = build()
        rival.reset()
        n = rival.num_envs
        actions = [rival.action_space.sample() for _ in range(n)] if "VecEnv" in name else rival.action_space.sample()
        step, _ = native_step(args.n_envs, args.env_id)
        step(), rival.step(actions)
        pairs = [
            (
                steps_per_second(step, args.n_envs, args.seconds),
                steps_per_second(lambda rival=rival, actions=actions: rival.step(actions), n, args.seconds),
            )
            for _ in range(args.rounds)
        ]
        ratios[name] = {
            "n_envs": n,
            "steps_per_second": statistics.median(b for _, b in pairs),
            "native_steps_per_second": statistics.median(a for a, _ in pairs),
            "native_over_rival": statistics.median(a / b for a, b in pairs),
        }
        rival.close()

    sizes = {}
    for n_envs in args.sizes:
        step, _ = native_step(n_envs, args.env_id)
        step()
        rate = statistics.median(steps_per_second(step, n_envs, args.seconds) for _ in range(args.rounds))
        sizes[n_envs] = {"steps_per_second": rate, "peak_megabytes_so_far": megabytes()}

    generator = Generator(GeneratorConfig.preset("fast", 4)).to(device).eval().set_compute_dtype(compute_dtype)
    step, env = native_step(args.n_envs, "rlsr/PSNRPrediction-v0", generator=generator, episode_length=1_000_000)
    lr_image, hr_image = to_float(env._lr), to_float(env.hr_patches)

    @torch.no_grad()
    def alone() -> None:
        env.metric(to_8bit(generator(lr_image)), hr_image)

    step(), alone()
    overheads = []
    for _ in range(args.rounds):
        whole = steps_per_second(step, 1, args.seconds)
        overheads.append(steps_per_second(alone, 1, args.seconds) / whole)
    results = {
        "command": f"python benchmarks/vector_env.py --env-id {args.env_id} --n-envs {args.n_envs}",
        "versions": describe_versions(),
        "machine": describe_machine(device, compute_dtype),
        "native_over_others": ratios,
        "native_sizes": sizes,
        "step_over_forward_and_metric_alone": statistics.median(overheads),
    }
    text = json.dumps(results, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":  # processes of AsyncVectorEnv and SubprocVecEnv import this file again
    arguments = tyro.cli(Args)
    device = choose_device(arguments.device)
    compute_dtype = choose_compute_dtype(device)
    main(arguments)
