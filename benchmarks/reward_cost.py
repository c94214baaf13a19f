"""What GRPO's groups cost: drawing and judging 16 pictures of a patch, beside the network's forward and backward pass.

Every ratio is the median over rounds that were timed in turn in this one run. Writes JSON to `--out` and a table beside
it.
"""

from __future__ import annotations

import os
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
from stable_baselines3.common.logger import configure

from agents.advantages import advantages
from agents.grpo import GRPO, _spread
from agents.reports import describe_machine, describe_versions, write_results
from gan.generator import GeneratorConfig
from gan.precision import choose_compute_dtype, choose_device
from rlsr_env.codec import LRCodec
from rlsr_env.cores import available_cores
from rlsr_env.images import decode_images, image_set
from rlsr_env.metrics import metric
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv

# These leave torch, and share their work out among the cores themselves.
OF_ALL_CORES = ("dtw", "edge_f1", "jpeg_bytes")


@dataclass(frozen=True)
class Args:
    """Arguments of this benchmark."""

    metrics: tuple[str, ...] = ("ssim", "psnr", "haarpsi", "dtw", "edge_f1", "jpeg_bytes")
    """rewards, by block where the metric has a map"""
    n_patches: int = 8
    """patches of a batch"""
    hr_patch_size: int = 96
    """their side in the original's pixels"""
    group_size: int = 16
    """pictures of each patch"""
    scale: int = 4
    """factor by which the pictures are shrunk"""
    rounds: int = 9
    """timed rounds"""
    device: str = "cpu"
    """cpu or cuda"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """arithmetic of the convolutions"""
    out: Path | None = None
    """JSON file to write; the table goes beside it, as .md"""
    quick: bool = False
    """a tiny batch, for a test: the figures mean nothing"""


QUICK: dict[str, Any] = {"n_patches": 2, "hr_patch_size": 32, "rounds": 1, "metrics": ("ssim", "jpeg_bytes")}


def make_model(name: str, source: PatchSource, args: Args) -> GRPO:
    """GRPO on the fast generator."""
    env = RestorationVectorEnv(
        args.n_patches, task="super_resolution", source=source, episode_length=1, metric=name, reward="improvement"
    )
    config = GeneratorConfig.preset("fast", args.scale)
    model = GRPO(
        "GeneratorPolicy", env, group_size=args.group_size, policy_kwargs={"generator_config": config}, seed=0,
        device=args.device,
    )  # fmt: skip
    model.set_logger(configure(None, []))
    compute_dtype = choose_compute_dtype(choose_device(args.device), args.precision)
    model.policy.generator.set_compute_dtype(compute_dtype)
    return model


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """How long it takes, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(model: GRPO, rounds: int) -> dict[str, Any]:
    """Seconds of a group's drawing, judging and credit, over those of the network's forward and backward pass."""
    obs = model.judge.reset_tensors(seed=0)[0].to(model.device)
    mean, _ = model.policy.pictures(obs)
    still = mean.detach()
    direction = torch.randn_like(still)

    def network() -> None:
        picture, _ = model.policy.pictures(obs)
        model.policy.optimizer.zero_grad(set_to_none=True)
        (direction * picture).mean().backward()

    def draw_and_judge() -> None:
        half = torch.randn(model.group_size // 2, *still.shape, device=model.device)
        first, second = advantages(model._rewards(still, half)).chunk(2)
        _spread(first - second, half)

    network(), draw_and_judge()
    pairs = [(seconds_of(draw_and_judge, model.device), seconds_of(network, model.device)) for _ in range(rounds)]
    ratios = [group / passes for group, passes in pairs]
    return {
        "by_block": model._by_block,
        "group_seconds": statistics.median(group for group, _ in pairs),
        "network_seconds": statistics.median(passes for _, passes in pairs),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }


def speed_up(model: GRPO, rounds: int) -> dict[str, Any] | None:
    """Judging a group on one core over judging it on all; None where the system cannot hold a process to one core."""
    if not hasattr(os, "sched_setaffinity") or available_cores() < 2:
        return None
    model.judge.reset_tensors(seed=0)
    actions = 0.1 * torch.randn(model.group_size, *model.judge.action_space.shape)
    every_core = os.sched_getaffinity(0)
    n_threads = torch.get_num_threads()

    def judge() -> None:
        model.judge.rewards_of(actions, model._by_block)

    def on_one_core() -> None:
        os.sched_setaffinity(0, {min(every_core)})
        torch.set_num_threads(1)
        try:
            judge()
        finally:
            os.sched_setaffinity(0, every_core)
            torch.set_num_threads(n_threads)

    try:
        judge()
        cpu_device = torch.device("cpu")
        pairs = [(seconds_of(on_one_core, cpu_device), seconds_of(judge, cpu_device)) for _ in range(rounds)]
    finally:
        torch.set_num_threads(n_threads)
    ratios = [one / every for one, every in pairs]
    return {"cores": len(every_core), "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    machine = results["machine"]
    lines = [
        "# What a group costs",
        "",
        f"`{results['command']}` on {machine['cores']} core(s) of {machine['processor']}, {machine['device']}, "
        f"{machine['precision']}: {results['group_size']} pictures of each of {results['n_patches']} patches of "
        f"{results['hr_patch_size']} x {results['hr_patch_size']}, drawn, judged and turned into a direction, over the "
        "forward and backward pass of the fast generator. Medians over rounds timed in turn, with the least and the "
        "greatest; the last column is judging alone, on one core over on all.",
        "",
        "| reward | credit | group, ms | network, ms | ratio | speed-up by all cores |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in results["metrics"].items():
        ratio, gain = entry["ratio"], entry.get("speed_up")
        credit = "block" if entry["by_block"] else "picture"
        shown = f"{gain['median']:.2f} of {gain['cores']}" if gain else ""
        lines.append(
            f"| {name} | {credit} | {1000 * entry['group_seconds']:.0f} | {1000 * entry['network_seconds']:.0f} | "
            f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f}) | {shown} |"
        )
    return "\n".join([*lines, ""])


def main(args: Args) -> None:
    """Measure, print, write."""
    device = choose_device(args.device)
    codec = LRCodec(args.scale, quality=75)
    source = PatchSource(
        decode_images(image_set("sample:train")), codec, args.hr_patch_size // args.scale, device=device
    )
    found: dict[str, Any] = {}
    for name in args.metrics:
        metric(name)  # which says what is wrong with it
        model = make_model(name, source, args)
        found[name] = compare(model, args.rounds)
        if name in OF_ALL_CORES:
            found[name]["speed_up"] = speed_up(model, args.rounds)
    results = {
        "command": shlex.join(["python", "benchmarks/reward_cost.py", *sys.argv[1:]]),
        "versions": describe_versions(),
        "machine": describe_machine(device, choose_compute_dtype(device, args.precision)),
        "n_patches": args.n_patches,
        "hr_patch_size": args.hr_patch_size,
        "group_size": args.group_size,
        "metrics": found,
    }
    write_results(args.out, results, table(results))


if __name__ == "__main__":
    main(tyro.cli(Args, default=Args(**(QUICK if "--quick" in sys.argv else {}))))
