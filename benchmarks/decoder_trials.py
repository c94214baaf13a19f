"""Short trials of decoders: which architecture, and which training data, restore best after equally many updates.

Every trial trains from scratch by `gan.training.Pretraining` on the same pictures with the same settings, and is
measured on whole held-out pictures at `--eval-quality`. Writes a JSON line a trial to `--out`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from agents.reports import describe_machine, describe_versions
from gan.evaluation import code_pictures, measure
from gan.generator import Generator, GeneratorConfig
from gan.precision import choose_compute_dtype, choose_device
from gan.training import PatchSampler, Pretraining
from rlsr_env.codec import LRCodec
from rlsr_env.images import decode_images, image_set
from rlsr_env.patches import PatchSource
from rlsr_env.resample import upsample

FAST, DEEP, WIDE = (GeneratorConfig.preset(name, 2) for name in ("fast", "deep", "wide"))
MIXED = (10, 14, 19, 25, 33, 45)
# Name to architecture (at scale 2) and the qualities that it is trained on.
TRIALS: dict[str, tuple[GeneratorConfig, tuple[int, ...]]] = {
    "fast": (FAST, MIXED),
    # Trained at the one quality that it is measured at: as much as being told the quality could gain.
    "fast-one-quality": (FAST, (20,)),
    "wide": (WIDE, MIXED),
    "wide-one-quality": (WIDE, (20,)),
    "wide-head-9": (replace(WIDE, head_kernel=9), MIXED),
    "deep": (DEEP, MIXED),
}


@dataclass(frozen=True)
class Args:
    """Arguments."""

    trials: tuple[str, ...] = tuple(TRIALS)
    """which of the trials"""
    data: Path = Path("data/train")
    """folder of training pictures"""
    eval_data: tuple[Path, ...] = (Path("data/valid"), Path("data/kodak"))
    """folders of held-out pictures"""
    scale: int = 2
    """factor by which the pictures are shrunk"""
    eval_quality: int = 20
    """quality of the held-out pictures' LR files"""
    updates: int = 1500
    """updates of each trial"""
    batch_size: int = 16
    """patches of an update"""
    lr_patch_size: int = 32
    """their side, LR pixels"""
    learning_rate: float = 5e-4
    """Adam's, at its height"""
    seed: int = 0
    """of weights and batches"""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    out: Path | None = None
    """file that the results are appended to, a JSON line each"""


def train(args: Args, name: str, device: torch.device) -> dict[str, Any]:
    """Train and measure one trial."""
    config, qualities = TRIALS[name]
    config = replace(config, scale=args.scale)
    codec = LRCodec(args.scale, quality=args.eval_quality)
    decoded = decode_images(image_set(f"folder:{args.data}"), min_size=args.scale * args.lr_patch_size)
    source = PatchSource(decoded, codec, args.lr_patch_size, qualities, device)
    torch.manual_seed(args.seed)
    generator = Generator(config).to(device).set_compute_dtype(choose_compute_dtype(device))
    sampler = PatchSampler(source, args.batch_size, args.seed)
    training = Pretraining(generator, sampler, args.updates, args.learning_rate)
    started = time.perf_counter()
    for number in range(1, args.updates + 1):
        metrics = training.update()
        if number % 250 == 0:
            print(f"{name} {number}/{args.updates} {time.perf_counter() - started:.0f} s {metrics}", flush=True)
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "trial": name, "generator": asdict(config), "qualities": qualities, "updates": args.updates,
        "batch_size": args.batch_size, "lr_patch_size": args.lr_patch_size, "learning_rate": args.learning_rate,
        "seed": args.seed, "parameters": sum(p.numel() for p in generator.parameters()), "seconds": round(seconds, 1),
        "eval_quality": args.eval_quality, "machine": describe_machine(device, generator.encoder.compute_dtype),
        "versions": describe_versions(), "psnr": {},
    }  # fmt: skip
    for folder in args.eval_data:
        pictures = code_pictures(decode_images(image_set(f"folder:{folder}")), codec)
        restored = measure(training.averaged_generator(), pictures, device)
        baseline = measure(lambda lr_image: upsample(lr_image, args.scale, "lanczos"), pictures, device)
        result["psnr"][folder.name] = {"decoder": restored["psnr"], "lanczos": baseline["psnr"]}
    return result


def main(args: Args) -> None:
    """Run the trials one after another."""
    device = choose_device(args.device)
    for name in args.trials:
        line = json.dumps(train(args, name, device))
        print(line, flush=True)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
