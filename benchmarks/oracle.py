"""What there is to gain in `rlsr/DetailControl-v0`, by metric and generator: the best constant action and the oracle.

The best constant action is found on training patches and measured on held-out ones, like anything that is learned; the
oracle is found on the held-out patches themselves. Generators: Lanczos, and a network that is trained here for a few
minutes (or one of yours, `--weights`). Writes JSON to `--out` and a table beside it.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import torch
import tyro

from agents.reports import describe_machine, describe_versions, write_results
from gan.generator import Generator, GeneratorConfig
from gan.training import PatchSampler, Pretraining
from gan.weights import load_generator
from rlsr_env.codec import LRCodec
from rlsr_env.images import decode_images, image_set
from rlsr_env.oracle import best_strengths, gain_of
from rlsr_env.patches import PatchSource
from rlsr_env.tasks import Restorer

ENV_ID = "rlsr/DetailControl-v0"
HELD_OUT_SEED = 10_000


@dataclass(frozen=True)
class Args:
    """Arguments of this benchmark."""

    metrics: tuple[str, ...] = ("psnr", "ssim", "haarpsi", "gmsd")
    """names of metrics; those without a gradient are searched by the cross-entropy method, which takes longer"""
    images: str = "sample:train"
    """pictures to train the generator and to find the best constant action on"""
    held_out: str = "sample:held-out"
    """pictures to measure on"""
    scale: int = 2
    """factor by which the pictures are shrunk"""
    quality: int = 20
    """quality of the small JPEG"""
    lr_patch_size: int = 40
    """side of the LR patches"""
    n_bands: int = 3
    """frequency bands"""
    grid_size: int = 4
    """cells along each side"""
    n_patches: int = 32
    """patches of either set"""
    n_iterations: int = 60
    """of each search"""
    pretrain_updates: int = 400
    """updates of the generator, with the loss of SRGAN's pretraining"""
    weights: Path | None = None
    """a generator's weights (.safetensors), in the place of one that is trained here"""
    seed: int = 0
    """of the generator's training"""
    out: Path | None = None
    """JSON file to write; the table goes beside it, as .md"""
    quick: bool = False
    """two patches and two updates, for a test: the figures mean nothing"""


def trained_generator(source: PatchSource, args: Args) -> Generator:
    """A generator of the preset `fast`, pretrained; or the one that was given."""
    if args.weights is not None:
        return load_generator(args.weights).eval()
    torch.manual_seed(args.seed)
    generator = Generator(GeneratorConfig.preset("fast", args.scale))
    pretraining = Pretraining(generator, PatchSampler(source, 8, args.seed), args.pretrain_updates)
    for _ in range(args.pretrain_updates):
        pretraining.update()
    return pretraining.averaged_generator().eval()


def measure(metric: str, generator: Restorer | None, sources: dict[str, PatchSource], args: Args) -> dict[str, float]:
    """Start, gain of the best constant action and gain of the oracle, means over the held-out patches."""
    training, held_out = (
        gymnasium.make_vec(
            ENV_ID, num_envs=args.n_patches, source=sources[name], metric=metric, generator=generator,
            n_bands=args.n_bands, grid_size=args.grid_size,
        ).unwrapped
        for name in ("training", "held_out")
    )  # fmt: skip
    training.reset(seed=0)
    constant = best_strengths(training, shared=True, n_iterations=args.n_iterations)
    _, info = held_out.reset(seed=HELD_OUT_SEED)
    return {
        "start": float(info[held_out.metric.name].mean()),
        "best_constant": gain_of(held_out, constant).mean().item(),
        "oracle": gain_of(held_out, best_strengths(held_out, n_iterations=args.n_iterations)).mean().item(),
    }


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    args = results["settings"]
    lines = [
        "# What there is to gain in `rlsr/DetailControl-v0`",
        "",
        f"`{results['command']}`: scale {args['scale']}, quality {args['quality']}, LR patches of "
        f"{args['lr_patch_size']} x {args['lr_patch_size']}, {args['n_bands']} bands on a {args['grid_size']} x "
        f"{args['grid_size']} grid. Gains over doing nothing, turned so that more is better, means over "
        f"{args['n_patches']} held-out patches; the best constant action is found on training patches.",
        "",
        "| generator | metric | start | best constant | oracle | constant's share |",
        "|---|---|---|---|---|---|",
    ]
    for generator, by_metric in results["generators"].items():
        for metric, entry in by_metric.items():
            share = f"{entry['best_constant'] / entry['oracle']:.0%}" if entry["oracle"] else "n/a"
            lines.append(
                f"| {generator} | {metric} | {entry['start']:.4f} | {entry['best_constant']:+.4f} | "
                f"{entry['oracle']:+.4f} | {share} |"
            )
    return "\n".join([*lines, ""])


def main(args: Args) -> None:
    """Measure, print, write."""
    if args.quick:
        args = replace(args, lr_patch_size=24, n_patches=2, n_iterations=2, pretrain_updates=2)
    codec = LRCodec(args.scale, quality=args.quality)
    sources = {
        name: PatchSource(decode_images(image_set(images)), codec, args.lr_patch_size)
        for name, images in (("training", args.images), ("held_out", args.held_out))
    }
    name = f"trained, {args.pretrain_updates} updates" if args.weights is None else args.weights.stem
    generators: dict[str, Restorer | None] = {"Lanczos": None, name: trained_generator(sources["training"], args)}
    measured: dict[str, dict[str, Any]] = {}
    for generator_name, generator in generators.items():
        measured[generator_name] = {}
        for metric in args.metrics:
            measured[generator_name][metric] = measure(metric, generator, sources, args)
            print(generator_name, metric, measured[generator_name][metric], flush=True)
    results = {
        "command": shlex.join(["python", "benchmarks/oracle.py", *sys.argv[1:]]),
        "versions": describe_versions(),
        "machine": describe_machine(torch.device("cpu"), torch.float32),
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "generators": measured,
    }
    write_results(args.out, results, table(results))


if __name__ == "__main__":
    main(tyro.cli(Args))
