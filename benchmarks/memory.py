"""Memory of restoring a large picture: peak of a process that reads a `.rlsr` file and writes it as PNG.

The peak (VmHWM) of `rlsr decompress` in a process of its own, for a large picture and for one much smaller than a tile,
and what of it is above the pictures' own arrays (LR and SR, uint8). The network has the architecture of the decoders
that come with the package, and random weights. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from agents.reports import describe_machine, describe_versions
from gan.file_format import compress
from gan.generator import Generator, GeneratorConfig
from gan.precision import choose_compute_dtype
from gan.weights import save_generator
from gan.zoo import ENVIRONMENT_VARIABLE

PROGRAM = """
import sys
from agents.cli import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1])
sys.exit(code)
"""


@dataclass(frozen=True)
class Args:
    """Arguments."""

    megapixels: float = 100.0
    """size of the picture"""
    scale: int = 4
    """upsampling factor"""
    tile: int = 512
    """--tile of rlsr decompress"""
    precision: str = "fp32"
    """--precision of rlsr decompress"""
    preset: str = "fast"
    """architecture of the network"""
    seed: int = 0
    """seed of picture and weights"""
    out: Path | None = None
    """JSON file to write"""


def write_file(path: Path, side: int, args: Args) -> None:
    """A `.rlsr` file of a square picture: waves and noise, so that it is no trivial JPEG."""
    rng = np.random.default_rng(args.seed)
    rows, columns = np.arange(side)[:, None], np.arange(side)[None]
    image = np.empty((side, side, 3), np.uint8)
    for channel in range(3):
        wave = 100 + 80 * np.sin(rows / 37 + channel) * np.cos(columns / 53)
        image[..., channel] = wave + rng.integers(0, 40, (side, side), np.uint8)
    path.write_bytes(compress(image, scale=args.scale, quality=30))


def peak_bytes(path: Path, args: Args, folder: Path) -> int:
    """Peak memory of restoring a file."""
    arguments = ["decompress", str(path), "-o", str(folder / "restored.png"), "--force", "--tile", str(args.tile)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, "--device", "cpu", "--precision", args.precision],
        check=True, capture_output=True, text=True, env={**os.environ, ENVIRONMENT_VARIABLE: str(folder)},
    )  # fmt: skip
    return int(done.stdout.split()[-1]) * 1024


def main(args: Args) -> None:
    """Measure."""
    side = round((args.megapixels * 1e6) ** 0.5)
    small = args.scale * args.tile // 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[ENVIRONMENT_VARIABLE] = name
        torch.manual_seed(args.seed)
        generator = Generator(GeneratorConfig.preset(args.preset, args.scale))
        card = {"base_codec": "jpeg", "purpose": "psnr"}
        save_generator(folder / "random.safetensors", generator, card, dtype="float16")
        peaks = {}
        for label, pixels in (("small", small), ("large", side)):
            write_file(folder / f"{label}.rlsr", pixels, args)
            peaks[label] = peak_bytes(folder / f"{label}.rlsr", args, folder)
            print(label, peaks[label], flush=True)
    arrays = 3 * side * side + 3 * (-(-side // args.scale)) ** 2
    results: dict[str, Any] = {
        "command": f"python benchmarks/memory.py --megapixels {args.megapixels:g} --scale {args.scale}",
        "versions": describe_versions(),
        "machine": describe_machine(torch.device("cpu"), choose_compute_dtype(torch.device("cpu"), args.precision)),
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "width": side,
        "height": side,
        "peak_bytes": peaks["large"],
        "peak_bytes_of_a_small_picture": peaks["small"],
        "bytes_of_the_pictures_arrays": arrays,
        "bytes_above_the_arrays": peaks["large"] - arrays,
        "bytes_above_the_arrays_and_a_small_picture": peaks["large"] - arrays - peaks["small"],
    }
    text = json.dumps(results, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
