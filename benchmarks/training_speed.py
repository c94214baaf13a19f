"""Ratios that the training loop is held to: RL-SRGAN over SRGAN, bf16 over fp32, and the share of waiting for data.

Each ratio is the median over pairs that were timed in turn in this one run. Writes JSON to `--out`.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from agents.interruption import Interruption
from agents.reports import describe_machine, describe_versions
from agents.stages import RLSRGANStage
from gan.adversarial import AdversarialConfig, AdversarialUpdate, SRGANTraining
from gan.content import ContentLoss
from gan.generator import Generator, GeneratorConfig
from gan.precision import choose_compute_dtype, choose_device
from gan.training import PatchSampler, Pretraining
from rlsr_env.codec import LRCodec
from rlsr_env.images import decode_images, image_set
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv


@dataclass(frozen=True)
class Args:
    """Arguments of this benchmark; the defaults are those of `rlsr reproduce`."""

    scale: int = 4
    """upsampling factor"""
    batch_size: int = 8
    """patches in each update"""
    hr_patch_size: int = 96
    """side of a training patch in the original's pixels"""
    n_envs: int = 4
    """environments of the RL agent"""
    rollout_steps: int = 5
    """updates to each RL update"""
    discriminator_channels: int = 32
    """feature maps of the discriminator's first layer"""
    pairs: int = 7
    """timed pairs of each ratio"""
    curve_updates: int = 200
    """updates over which the loss curves of bf16 and fp32 are compared"""
    seed: int = 0
    """seed of all networks and batches"""
    device: str = "auto"
    """auto, cpu or cuda"""
    out: Path | None = None
    """JSON file to write"""


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a call takes, all queued work of the GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ratio(first: Callable[[], Any], second: Callable[[], Any], pairs: int) -> dict[str, float]:
    """Time two calls in turn; medians, and the median, least and greatest ratio of a pair."""
    first(), second()  # warm-up
    times = [(timed(first), timed(second)) for _ in range(pairs)]
    ratios = [a / b for a, b in times]
    return {
        "median": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "first_seconds": statistics.median(a for a, _ in times),
        "second_seconds": statistics.median(b for _, b in times),
    }


args = tyro.cli(Args)
device = choose_device(args.device)
compute_dtype = choose_compute_dtype(device)
source = PatchSource(
    decode_images(image_set("sample:train")), LRCodec(scale=args.scale), args.hr_patch_size // args.scale, device=device
)


def sampler() -> PatchSampler:
    """The same batches each time."""
    return PatchSampler(source, args.batch_size, args.seed)


def fresh_generator(preset: str, dtype: torch.dtype) -> Generator:
    """The same network each time."""
    torch.manual_seed(args.seed)
    return Generator(GeneratorConfig.preset(preset, args.scale)).to(device).set_compute_dtype(dtype)


def rl_over_srgan(preset: str, content_loss: ContentLoss | None) -> dict[str, float]:
    """Time of a rollout's worth of updates, RL-SRGAN over SRGAN, same networks and batches."""
    config = AdversarialConfig(discriminator_channels=args.discriminator_channels)
    start = fresh_generator(preset, compute_dtype)

    def make_update(generator: Generator) -> AdversarialUpdate:
        return AdversarialUpdate(generator, sampler(), content_loss, config, args.seed)

    srgan = SRGANTraining(make_update(copy.deepcopy(start)), n_updates=0)
    env = RestorationVectorEnv(args.n_envs, source=source, episode_length=args.rollout_steps)
    rl = RLSRGANStage(start, env, make_update, 0, args.rollout_steps, 1e-4, args.seed)

    def run_rl() -> None:
        rl.n_updates += args.rollout_steps
        rl.run(lambda metrics: None, Interruption())

    def run_srgan() -> None:
        for _ in range(args.rollout_steps):
            srgan.update()

    return ratio(run_rl, run_srgan, args.pairs)


def pretraining(dtype: torch.dtype, n_updates: int) -> Pretraining:
    """The first stage in one arithmetic or the other."""
    return Pretraining(fresh_generator("fast", dtype), sampler(), n_updates)


def bf16_over_fp32() -> dict[str, float]:
    """Updates per second, bf16 over fp32."""
    stages = {dtype: pretraining(dtype, 10_000) for dtype in (torch.bfloat16, torch.float32)}

    def run(dtype: torch.dtype) -> Callable[[], None]:
        def updates() -> None:
            for _ in range(5):
                stages[dtype].update()

        return updates

    return ratio(run(torch.float32), run(torch.bfloat16), args.pairs)  # seconds of fp32 / bf16 = updates of bf16 / fp32


def loss_curves() -> dict[str, Any]:
    """The same training in both arithmetics: mean loss of each tenth, and how far apart they are."""
    curves = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        stage = pretraining(dtype, args.curve_updates)
        losses = [float(stage.update()["gan/l1"]) for _ in range(args.curve_updates)]
        tenth = max(1, args.curve_updates // 10)
        curves[name] = [statistics.fmean(losses[i : i + tenth]) for i in range(0, len(losses), tenth)]
    differences = [abs(a - b) / b for a, b in zip(curves["bf16"], curves["fp32"], strict=True)]
    return {**curves, "largest_relative_difference": max(differences)}


def data_share() -> dict[str, float]:
    """Time of making a batch over time of the cheapest update that uses it (pretraining)."""
    batches, stage = sampler(), pretraining(compute_dtype, 10_000)
    return ratio(batches.batch, stage.update, 3 * args.pairs)


random_vgg = ContentLoss()
results: dict[str, Any] = {
    "command": f"python benchmarks/training_speed.py --scale {args.scale} --hr-patch-size {args.hr_patch_size}",
    "versions": describe_versions(),
    "machine": describe_machine(device, compute_dtype),
    "settings": {name: value for name, value in vars(args).items() if name != "out"},
    "rl_srgan_over_srgan": {
        "fast, VGG19 content loss": rl_over_srgan("fast", random_vgg),
        "fast, no content loss": rl_over_srgan("fast", None),
        "paper, VGG19 content loss": rl_over_srgan("paper", random_vgg),
    },
    "bf16_over_fp32_updates": bf16_over_fp32(),
    "loss_curves": loss_curves(),
    "data_share_of_pretraining_update": data_share(),
}
text = json.dumps(results, indent=2)
print(text)
if args.out is not None:
    args.out.write_text(text + "\n")
