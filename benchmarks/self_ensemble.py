"""What averaging over flips and turns brings to finished weights, and what it costs, from the same small files."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from agents.reports import describe_machine, describe_versions, write_json
from gan.evaluation import code_pictures, measure
from gan.precision import choose_compute_dtype, choose_device
from gan.zoo import LANCZOS_WEIGHTS, list_weights, load_decoder
from rlsr_env.codec import LRCodec
from rlsr_env.images import decode_images, image_set


@dataclass(frozen=True)
class Args:
    """Arguments."""

    weights: tuple[str, ...] = ("x2-jpeg-psnr",)
    """names of weights, as `rlsr weights` lists them"""
    images: str = "sample:held-out"
    """pictures: sample:held-out, kodak or folder:PATH"""
    quality: int = 20
    """quality of their LR files"""
    precision: str = "auto"
    """arithmetic of the decoders"""
    out: Path | None = None
    """JSON file to write"""


def main(args: Args) -> None:
    """Restore every picture by Lanczos, by each network, and by its self-ensemble."""
    device = choose_device("auto")
    there = {weights.name: weights for weights in list_weights()}
    if unknown := set(args.weights) - set(there):
        raise SystemExit(f"unknown weights {', '.join(sorted(unknown))}; known: {', '.join(there)}")
    decoded = decode_images(image_set(args.images))
    results: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/self_ensemble.py", *sys.argv[1:]]),
        "machine": describe_machine(device, choose_compute_dtype(device, args.precision)),
        "versions": describe_versions(),
        "n_pictures": len(decoded.uris),
        "quality": args.quality,
        "weights": {},
    }
    for name in args.weights:
        weights = there[name]
        pictures = code_pictures(decoded, LRCodec(weights.scale, weights.base_codec, args.quality))
        lanczos = measure(load_decoder(LANCZOS_WEIGHTS, weights.scale, device), pictures, device)
        found: dict[str, Any] = {"sha256": weights.sha256.hex(), "lanczos": lanczos["psnr"]}
        for form, ensemble in {"network": False, "self_ensemble": True}.items():
            decoder = load_decoder(weights, weights.scale, device, args.precision, ensemble=ensemble)
            started = time.perf_counter()
            found[form] = measure(decoder, pictures, device)["psnr"]
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[f"{form}_seconds"] = round(time.perf_counter() - started, 2)
        found["gain_of_ensemble"] = found["self_ensemble"] - found["network"]
        found["times_the_seconds"] = round(found["self_ensemble_seconds"] / found["network_seconds"], 2)
        results["weights"][name] = found
        print(name, found, flush=True)
    if args.out is not None:
        write_json(args.out, results)


if __name__ == "__main__":
    main(tyro.cli(Args))
