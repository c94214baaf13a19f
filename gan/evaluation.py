"""Measuring decoders on whole pictures: real files, pictures rounded to 8 bits, named conventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.metrics import METRICS
from rlsr_env.patches import to_float
from rlsr_env.peak_signal import mean_squared_error, psnr_clic
from rlsr_env.rounding import to_8bit

Decoder = Callable[[Tensor], Tensor]

# Means over the pictures, in this order in every table; psnr_clic pools the squared error instead (CLIC's rule).
PICTURE_METRICS = ("psnr", "ms_ssim", "ssim")
REPORTED = ("psnr", "psnr_clic", "ms_ssim", "ssim")


@dataclass(frozen=True)
class CodedPicture:
    """A held-out picture and the file that stands for it.

    Attributes:
        uri: Its name.
        hr_image: The original, `(H, W, 3)` uint8.
        lr_image: What the file decodes to, `(h, w, 3)` uint8.
        n_bytes: Size of the file.
    """

    uri: str
    hr_image: np.ndarray
    lr_image: np.ndarray
    n_bytes: int

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the file for each pixel of the original."""
        return 8 * self.n_bytes / (self.hr_image.shape[0] * self.hr_image.shape[1])


def code_pictures(images: DecodedImages, codec: LRCodec) -> list[CodedPicture]:
    """Write every picture's LR file and read it back.

    Args:
        images: The originals.
        codec: Scale, base codec and quality.
    """
    coded = []
    for uri, hr_image in zip(images.uris, images.images, strict=True):
        file = codec.encode(hr_image)
        coded.append(CodedPicture(uri, hr_image, codec.decode(file), len(file)))
    return coded


def total_bits_per_pixel(pictures: Sequence[CodedPicture]) -> float:
    """Bits of all files over pixels of all originals (CLIC: the set is one target)."""
    pixels = sum(picture.hr_image.shape[0] * picture.hr_image.shape[1] for picture in pictures)
    return 8 * sum(picture.n_bytes for picture in pictures) / pixels


def as_batch(image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """A picture `(H, W, 3)` uint8 as a batch of one, `(1, 3, H, W)` float32 in [0, 1]."""
    return to_float(torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None])


@torch.no_grad()
def restore(decoder: Decoder, picture: CodedPicture, device: torch.device | str = "cpu") -> Tensor:
    """The decoder's picture, as a viewer gets it.

    Args:
        decoder: From `(1, 3, h, w)` float in [0, 1] to `(1, 3, scale * h, scale * w)`.
        picture: The coded picture; where its size is no multiple of the scale, the padding is cut off.
        device: Where to run.

    Returns:
        `(1, 3, H, W)` float32, multiples of 1/255.
    """
    height, width = picture.hr_image.shape[:2]
    return to_8bit(decoder(as_batch(picture.lr_image, device))[..., :height, :width].float())


def measure(decoder: Decoder, pictures: Sequence[CodedPicture], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Restore and judge every picture.

    Args:
        decoder: From LR to SR pictures.
        pictures: What to restore.
        device: Where to run.

    Returns:
        `psnr`, `ms_ssim`, `ssim` (means over the pictures; None where no picture is large enough), `psnr_clic` (one
        pooled squared error), and `images`: the same for each picture, in their order.
    """
    rows: list[dict[str, float | None]] = []
    squared_error, n_values = 0.0, 0
    for picture in pictures:
        sr_image = restore(decoder, picture, device)
        hr_image = as_batch(picture.hr_image, device)
        row: dict[str, float | None] = {}
        for name in PICTURE_METRICS:
            judge = METRICS[name]
            large_enough = min(hr_image.shape[-2:]) >= judge.min_size
            row[name] = judge(sr_image, hr_image).item() if large_enough else None
        squared_error += mean_squared_error(sr_image, hr_image).item() * hr_image.numel()
        n_values += hr_image.numel()
        rows.append(row)
    result: dict[str, Any] = {"psnr_clic": psnr_clic(squared_error, n_values), "images": rows}
    for name in PICTURE_METRICS:
        values = [value for row in rows if (value := row[name]) is not None]
        result[name] = fmean(values) if values else None
    return result
