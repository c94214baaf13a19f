"""Steps per second and memory of the environments: one native batch against vector environments of scalar ones.

Each ratio is the median over rounds that were timed in turn in this one run. Writes JSON to `--out` and a table beside
it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from agents.reports import describe_machine, describe_versions, write_results
from gan.generator import Generator, GeneratorConfig
from gan.precision import choose_compute_dtype, choose_device
from rlsr_env import ENVIRONMENTS
from rlsr_env.codec import LRCodec
from rlsr_env.images import decode_images, image_set
from rlsr_env.patches import PatchSource, to_float
from rlsr_env.rounding import to_8bit


@dataclass(frozen=True)
class Args:
    """Arguments of this benchmark."""

    env_id: str = "rlsr/DetailControl-v0"
    """the environment that is compared with all others, at several patch sizes and batch sizes"""
    n_envs: int = 64
    """environments of each comparison"""
    n_processes: int = 4
    """environments of AsyncVectorEnv and SubprocVecEnv, a process each that imports PyTorch anew; 0 leaves them out"""
    lr_patch_sizes: tuple[int, ...] = (8, 16, 24, 40)
    """patch sizes at which the native batch is compared with DummyVecEnv; the environments' default is 40"""
    sizes: tuple[int, ...] = (1, 8, 64, 512)
    """batch sizes of the native environment, each in a fresh process"""
    rounds: int = 5
    """timed rounds"""
    seconds: float = 0.5
    """least duration of a round"""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: the CPU time of this process, for a machine that has other work to do, with OMP_NUM_THREADS=1; whatever runs
    in processes of its own is always timed by the clock on the wall"""
    device: str = "cpu"
    """cpu or cuda"""
    out: Path | None = None
    """JSON file to write; the table goes beside it, as .md"""
    quick: bool = False
    """a few small batches, for a test: the figures mean nothing"""
    alone: int | None = None
    """measure this batch size only and print its figures: what the fresh processes are started with"""


TIMED = {
    "wall": "Timed by the clock on the wall.",
    "cpu": "Timed in CPU seconds of the process, because the machine had other work to do; AsyncVectorEnv and "
    "SubprocVecEnv, which work in other processes, by the clock on the wall.",
}
QUICK: dict[str, Any] = {
    "n_envs": 4, "n_processes": 0, "lr_patch_sizes": (8,), "sizes": (2,), "rounds": 1, "seconds": 0.01,
}  # fmt: skip


def make_source(env_id: str, device: torch.device, lr_patch_size: int = 40) -> PatchSource:
    """The patches of an id's default settings, shared by all environments: decoding is not what is measured."""
    settings = ENVIRONMENTS[env_id]
    codec = LRCodec(settings.get("scale", 4), quality=settings.get("quality", 75))
    return PatchSource(decode_images(image_set("sample:train")), codec, lr_patch_size, device=device)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def steps_per_second(step: Callable[[], Any], n_envs: int, episode_length: int, seconds: float, clock: str) -> float:
    """Environment steps per second of one round: whole episodes, because the step that begins a new one costs more."""
    now = CLOCKS[clock]
    n, started = 0, now()
    while now() - started < seconds:
        for _ in range(episode_length):
            step()
        n += n_envs * episode_length
    return n / (now() - started)


def stepping(env: Any) -> Callable[[], Any]:
    """A step with fixed random actions, warmed up over a whole episode; SB3's and Gymnasium's environments."""
    if isinstance(env, VecEnv):
        env.reset()
        space = env.action_space
    else:
        env.reset(seed=0)
        space = env.single_action_space
    space.seed(0)
    actions = np.stack([space.sample() for _ in range(env.num_envs)])
    for _ in range(6):
        env.step(actions)
    return lambda: env.step(actions)


def compare(native: Any, rival: Any, args: Args, clock: str) -> dict[str, Any]:
    """Steps per second of both, and the median, least and greatest ratio of a round."""
    first, second = stepping(native), stepping(rival)
    episode_length = native.unwrapped.episode_length
    rounds = [
        (
            steps_per_second(first, native.num_envs, episode_length, args.seconds, clock),
            steps_per_second(second, rival.num_envs, episode_length, args.seconds, clock),
        )
        for _ in range(args.rounds)
    ]
    ratios = [a / b for a, b in rounds]
    rival.close()
    return {
        "n_envs": rival.num_envs,
        "native_n_envs": native.num_envs,
        "native_steps_per_second": statistics.median(a for a, _ in rounds),
        "steps_per_second": statistics.median(b for _, b in rounds),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def compare_with_dummy(env_id: str, lr_patch_size: int, device: torch.device, args: Args) -> dict[str, Any]:
    """The native batch against SB3's DummyVecEnv."""
    source = make_source(env_id, device, lr_patch_size)
    native = gymnasium.make_vec(env_id, num_envs=args.n_envs, source=source)
    rival = DummyVecEnv([partial(gymnasium.make, env_id, source=source)] * args.n_envs)
    return compare(native, rival, args, args.clock)


def compare_fixed_cost(env_id: str, device: torch.device, args: Args) -> dict[str, Any]:
    """Microseconds of a scalar step at the default patch and at the smallest, where nearly all of it is fixed cost."""
    seconds = {}
    for size in (40, min(args.lr_patch_sizes)):
        make = partial(gymnasium.make, env_id, source=make_source(env_id, device, size))
        env = DummyVecEnv([make] * args.n_envs)
        step, episode_length = stepping(env), ENVIRONMENTS[env_id]["episode_length"]
        rates = [
            steps_per_second(step, args.n_envs, episode_length, args.seconds, args.clock) for _ in range(args.rounds)
        ]
        seconds[size] = 1.0 / statistics.median(rates)
        env.close()
    whole, fixed = seconds.values()
    return {"step_microseconds": 1e6 * whole, "fixed_microseconds": 1e6 * fixed}


def compare_with_others(device: torch.device, args: Args) -> dict[str, Any]:
    """The native batch against the other vector environments of the same scalar ones."""
    source = make_source(args.env_id, device)
    make = partial(gymnasium.make, args.env_id, source=source)
    # A spawned process knows no id until the package is imported, and has to decode the pictures itself: a fork of a
    # process in which PyTorch has started threads may wait for ever.
    make_there = partial(gymnasium.make, f"rlsr_env:{args.env_id}")
    same_step = AutoresetMode.SAME_STEP
    rivals: dict[str, Callable[[], Any]] = {
        "SyncVectorEnv": lambda: SyncVectorEnv([make] * args.n_envs, autoreset_mode=same_step),
    }
    if args.n_processes:
        there = [make_there] * args.n_processes
        rivals["AsyncVectorEnv"] = lambda: AsyncVectorEnv(there, autoreset_mode=same_step, context="spawn")
        rivals["SubprocVecEnv"] = lambda: SubprocVecEnv(there, start_method="spawn")
    native = gymnasium.make_vec(args.env_id, num_envs=args.n_envs, source=source)
    clocks = {"SyncVectorEnv": args.clock}
    return {name: compare(native, make_rival(), args, clocks.get(name, "wall")) for name, make_rival in rivals.items()}


def step_over_generator_and_metric(device: torch.device, args: Args) -> dict[str, Any]:
    """A step of the paper's environment over the generator's forward pass and the metric alone on the same batch."""
    env_id = "rlsr/PSNRPrediction-v0"
    generator = Generator(GeneratorConfig.preset("fast", 4)).to(device).eval()
    generator.set_compute_dtype(choose_compute_dtype(device))
    env: Any = gymnasium.make_vec(
        env_id, num_envs=args.n_envs, source=make_source(env_id, device), generator=generator, episode_length=10**9
    ).unwrapped
    obs, _ = env.reset(seed=0)
    lr_image = to_float(torch.from_numpy(obs).to(device)).contiguous(memory_format=torch.channels_last)
    hr_image = to_float(env.hr_patches)
    actions = env.action_space.sample()

    @torch.no_grad()
    def alone() -> list[float]:
        return env.metric(to_8bit(generator(lr_image)), hr_image).tolist()  # waits for the device

    def seconds_of(run: Callable[[], Any]) -> float:
        started = CLOCKS[args.clock]()
        run()
        return CLOCKS[args.clock]() - started

    env.step(actions), alone()
    rounds = [(seconds_of(lambda: env.step(actions)), seconds_of(alone)) for _ in range(args.rounds)]
    ratios = [a / b for a, b in rounds]
    return {
        "env_id": env_id,
        "n_envs": args.n_envs,
        "generator": "fast, 5 blocks of 64 channels",
        "step_seconds": statistics.median(a for a, _ in rounds),
        "alone_seconds": statistics.median(b for _, b in rounds),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def peak_megabytes() -> float | None:
    """The most memory that this process has held so far; None where the system is not Linux."""
    # Not resource.getrusage, whose peak a process takes over from the one that started it.
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure_alone(n_envs: int, device: torch.device, args: Args) -> dict[str, Any]:
    """Steps per second and memory of one batch size."""
    source = make_source(args.env_id, device)
    before = peak_megabytes()
    env = gymnasium.make_vec(args.env_id, num_envs=n_envs, source=source)
    step, episode_length = stepping(env), env.unwrapped.episode_length
    rates = [steps_per_second(step, n_envs, episode_length, args.seconds, args.clock) for _ in range(args.rounds)]
    after = peak_megabytes()
    return {
        "steps_per_second": statistics.median(rates),
        "peak_megabytes": after,
        "before_the_environments": before,
    }


def in_fresh_process(n_envs: int, args: Args) -> dict[str, Any]:
    """`measure_alone` where nothing else has been in memory."""
    command = [
        sys.executable, __file__, "--alone", str(n_envs), "--env-id", args.env_id, "--rounds", str(args.rounds),
        "--seconds", str(args.seconds), "--device", args.device, "--clock", args.clock,
    ]  # fmt: skip
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def table(results: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    machine = results["machine"]

    def rows_of(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
        lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
        return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]

    def row_of(entry: Mapping[str, Any]) -> list[str]:
        ratio = entry["ratio"]
        spread = f"**{ratio['median']:.1f}** ({ratio['min']:.1f} to {ratio['max']:.1f})"
        return [f"{entry['native_steps_per_second']:.0f}", f"{entry['steps_per_second']:.0f}", spread]

    def parts_of(entry: Mapping[str, Any]) -> list[str]:
        whole, fixed = entry["step_microseconds"], entry["fixed_microseconds"]
        share = (whole - fixed) / machine["torch_threads"]
        bound = f"{whole / share:.1f}" if whole > fixed else "too close to tell"
        return [f"{whole:.0f}", f"{fixed:.0f}", f"{whole - fixed:.0f}", bound]

    def memory_of(entry: Mapping[str, Any]) -> list[str]:
        figures = (entry[name] for name in ("steps_per_second", "peak_megabytes", "before_the_environments"))
        return ["unknown" if figure is None else f"{figure:.0f}" for figure in figures]

    n_envs = results["n_envs"]
    alone = results["step_over_generator_and_metric"]
    return "\n".join(
        [
            "# Speed of the environments",
            "",
            f"`{results['command']}` on {machine['processor']}, {machine['torch_threads']} thread(s) of "
            f"PyTorch, {machine['device']}. "
            "Steps are those of single environments; each ratio is the median of rounds timed in turn, with the least "
            f"and the greatest. {TIMED[results['clock']]}",
            "",
            f"## {n_envs} environments: native batch over SB3's DummyVecEnv",
            "",
            *rows_of(
                ["id", "native, steps/s", "DummyVecEnv, steps/s", "ratio"],
                [[f"`{env_id}`", *row_of(entry)] for env_id, entry in results["ids"].items()],
            ),
            f"By patch size, `{results['env_id']}`: the smaller the patch, the more of a scalar step is fixed cost, "
            "which a batch pays once.",
            "",
            *rows_of(
                ["LR patch", "native, steps/s", "DummyVecEnv, steps/s", "ratio"],
                [[f"{size} x {size}", *row_of(entry)] for size, entry in results["lr_patch_sizes"].items()],
            ),
            f"What is fixed cost (Python, Gymnasium's and SB3's bookkeeping, the call of each operation) in a step of "
            f"one environment in DummyVecEnv, measured with LR patches of {results['fixed_cost_at']} pixels. The rest "
            "is work on pixels (upsampling, filters, metric, gathering the next patch). A batch pays the fixed cost "
            "once and shares the work on pixels out among the threads. It does that work by the same loops, so the "
            "last column is about the most that it can gain: a scalar step over a thread's share of that work.",
            "",
            *rows_of(
                ["id", "scalar step, us", "of it fixed", "work on pixels", "most a batch can gain"],
                [[f"`{env_id}`", *parts_of(entry)] for env_id, entry in results["fixed_cost"].items()],
            ),
            f"## Other vector environments, `{results['env_id']}`",
            "",
            *rows_of(
                ["", "environments", f"native ({n_envs}), steps/s", "steps/s", "ratio"],
                [[name, entry["n_envs"], *row_of(entry)] for name, entry in results["others"].items()],
            ),
            f"## Native batch by size, `{results['env_id']}`",
            "",
            *rows_of(
                ["environments", "steps/s", "peak memory, MB", "of it before they were made, MB"],
                [[size, *memory_of(entry)] for size, entry in results["sizes"].items()],
            ),
            "## Generator",
            "",
            f"A step of {alone['n_envs']} `{alone['env_id']}` takes {alone['ratio']['median']:.3f} times "
            f"({alone['ratio']['min']:.3f} to {alone['ratio']['max']:.3f}) the generator's forward pass and the metric "
            f"alone on the same batch ({alone['generator']}; {alone['alone_seconds']:.2f} s).",
            "",
        ]
    )


def main(args: Args) -> None:
    """Measure, print, write."""
    device = choose_device(args.device)
    if args.alone is not None:
        print(json.dumps(measure_alone(args.alone, device, args)))
        return
    given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in _given(args).items())
    results = {
        "command": f"python benchmarks/vector_env.py {given}".strip(),
        "versions": describe_versions(),
        "machine": describe_machine(device, choose_compute_dtype(device)),
        "env_id": args.env_id,
        "n_envs": args.n_envs,
        "clock": args.clock,
        "ids": {env_id: compare_with_dummy(env_id, 40, device, args) for env_id in ENVIRONMENTS},
        "lr_patch_sizes": {
            str(size): compare_with_dummy(args.env_id, size, device, args) for size in args.lr_patch_sizes
        },
        "fixed_cost_at": min(args.lr_patch_sizes),
        "fixed_cost": {env_id: compare_fixed_cost(env_id, device, args) for env_id in ENVIRONMENTS},
        "others": compare_with_others(device, args),
        "sizes": {str(size): in_fresh_process(size, args) for size in args.sizes},
        "step_over_generator_and_metric": step_over_generator_and_metric(device, args),
    }
    write_results(args.out, results, table(results))


def _given(args: Args) -> dict[str, Any]:
    """The arguments that differ from their defaults."""
    defaults = dataclasses.replace(Args(), **(QUICK if args.quick else {}))
    values = {name: value for name, value in dataclasses.asdict(args).items() if value != getattr(defaults, name)}
    return {name: "" if value is True else value for name, value in values.items()}


if __name__ == "__main__":  # the processes of AsyncVectorEnv and SubprocVecEnv import this file again
    main(tyro.cli(Args, default=Args(**(QUICK if "--quick" in sys.argv else {}))))
