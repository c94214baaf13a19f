"""Learns the probabilities that `gan.coefficient_coding` starts from, and what they save on other pictures.

Writes `--out` (the committed gan/coefficient_prior.npz is made by the defaults) and prints its sha256. With
`--eval-data`, only measures the committed one: bytes of JPEG files, and of what is stored in their place.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from gan.abbreviation import abbreviate
from gan.coefficient_coding import learn_prior
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
    """file to write (.npz)"""
    eval_data: tuple[Path, ...] = ()
    """folders of pictures to measure on instead"""
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


def measure(folder: Path) -> list[dict[str, float | int | str]]:
    """Mean bytes of the files of a folder's pictures, at each setting, whole and abbreviated."""
    images = decode_images(image_set(folder)).images
    rows: list[dict[str, float | int | str]] = []
    for base in BASE_CODECS:
        for scale, quality in SETTINGS:
            codec = LRCodec(scale, base, quality)
            streams = [codec.encode(image) for image in images]
            whole, short = sum(map(len, streams)), 0
            for image, stream in zip(images, streams, strict=True):
                lr_size = (-(-image.shape[0] // scale), -(-image.shape[1] // scale))
                short += len(abbreviate(stream, base, lr_size) or stream)
            rows.append(
                {
                    "folder": folder.name, "base_codec": base, "scale": scale, "quality": quality,
                    "bytes": whole / len(images), "abbreviated": short / len(images), "saved": 1 - short / whole,
                }
            )  # fmt: skip
    return rows


def main(args: Args) -> None:
    """Learn, or measure."""
    for folder in args.eval_data:
        for row in measure(folder):
            print(json.dumps(row), flush=True)
    if not args.eval_data:
        content = io.BytesIO()
        np.savez_compressed(content, levels=learn(args.data, args.seed))
        print(hashlib.sha256(content.getvalue()).hexdigest(), len(content.getvalue()), "bytes")
        if args.out is not None:
            args.out.write_bytes(content.getvalue())


if __name__ == "__main__":
    main(tyro.cli(Args))
