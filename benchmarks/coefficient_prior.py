"""Learns the probabilities that `gan.coefficient_coding` starts from, and what they save on other pictures.

Without `--eval-data`: learns, writes `--out` (the committed gan/coefficient_prior.npz is made by the defaults) and
prints its sha256. With it: measures the committed one, bytes of LR streams as the base codec wrote them and of what a
file stores in their place, and writes `--out` as JSON and, beside it, as a table (.md).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from agents.reports import describe_machine, describe_versions
from gan.abbreviation import abbreviate
from gan.coefficient_coding import PRIOR_SHA256, learn_prior
from gan.jpeg_streams import JpegPicture, parse_jpeg
from rlsr_env.codec import BASE_CODECS, LRCodec
from rlsr_env.images import decode_images, image_set

# At low rates: the qualities that each scale is used with.
QUALITIES = {1: (5, 25), 2: (6, 45), 3: (15, 75), 4: (30, 95)}
SETTINGS = ((1, 10), (2, 10), (2, 20), (3, 50), (4, 40), (4, 75))


@dataclass(frozen=True)
class Args:
    """Arguments."""

    data: Path = Path("data/train")
    """folder of pictures to learn from"""
    out: Path | None = None
    """file to write: .npz, or with eval_data .json"""
    eval_data: tuple[Path, ...] = ()
    """folders of pictures to measure on instead of learning"""
    seed: int = 0
    """seed of qualities and order"""


def learn(folder: Path, seed: int) -> np.ndarray:
    """The prior of a folder's pictures, each coded at every scale with a quality drawn at random."""
    rng = np.random.default_rng(seed)
    images = decode_images(image_set(folder)).images
    pictures: list[JpegPicture] = []
    for image in images:
        for scale, (least, most) in QUALITIES.items():
            codec = LRCodec(scale, quality=int(rng.integers(least, most + 1)))
            pictures.append(parse_jpeg(codec.encode(image)))
    return learn_prior(pictures[number] for number in rng.permutation(len(pictures)))


def measure(folder: Path) -> list[dict[str, Any]]:
    """Mean bytes of the LR streams of a folder's pictures, at each setting, whole and abbreviated.

    `kept_whole` is the number of streams that cannot be abbreviated; they count in full in both columns.
    """
    images = decode_images(image_set(folder)).images
    pixels = sum(image.shape[0] * image.shape[1] for image in images)
    rows: list[dict[str, Any]] = []
    for base in BASE_CODECS:
        for scale, quality in SETTINGS:
            codec = LRCodec(scale, base, quality)
            whole, short, kept_whole = 0, 0, 0
            for image in images:
                stream = codec.encode(image)
                stored = abbreviate(stream, base, (-(-image.shape[0] // scale), -(-image.shape[1] // scale)))
                kept_whole += stored is None
                whole += len(stream)
                short += len(stored or stream)
            rows.append(
                {
                    "folder": folder.name, "pictures": len(images), "base_codec": base, "scale": scale,
                    "quality": quality, "bpp": 8 * whole / pixels, "bytes": whole / len(images),
                    "abbreviated": short / len(images), "saved": 1 - short / whole, "kept_whole": kept_whole,
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]], command: str) -> str:
    """The rows in Markdown."""
    lines = [
        f"`{command}`: mean bytes of LR streams, as the base codec wrote them and as a `.rlsr` file stores them.",
        "",
        "| pictures | base codec | scale | quality | bpp | bytes | abbreviated | saved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['folder']} ({row['pictures']}) | {row['base_codec']} | {row['scale']} | {row['quality']} "
            f"| {row['bpp']:.3f} | {row['bytes']:.0f} | {row['abbreviated']:.0f} | {100 * row['saved']:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    """Learn, or measure."""
    if not args.eval_data:
        content = io.BytesIO()
        np.savez_compressed(content, levels=learn(args.data, args.seed))
        print(hashlib.sha256(content.getvalue()).hexdigest(), len(content.getvalue()), "bytes")
        if args.out is not None:
            args.out.write_bytes(content.getvalue())
        return
    rows = [row for folder in args.eval_data for row in measure(folder)]
    names = " ".join(f"data/{folder.name}" for folder in args.eval_data)
    command = f"python benchmarks/coefficient_prior.py --eval-data {names} --out results/abbreviation.json"
    results = {
        "command": command,
        "versions": describe_versions(),
        "machine": describe_machine(torch.device("cpu"), torch.float32),
        "prior_sha256": PRIOR_SHA256,
        "rows": rows,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=2) + "\n")
        args.out.with_suffix(".md").write_text(table(rows, command))


if __name__ == "__main__":
    main(tyro.cli(Args))
