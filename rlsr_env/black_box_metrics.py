"""Metrics that have no gradient: they round, count, compare or compress, outside of torch and on all available cores.

Pictures come as `(B, 3, H, W)` tensors in [0, 1] and values go back as `(B,)` float64, to the device they came from. A
picture with NaN in it has the value NaN.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rlsr_env.codec import BASE_CODECS
from rlsr_env.cores import share_out
from rlsr_env.picture_checks import MetricError

# BT.601: luma in 8-bit levels, without its offset of 16, for R, G and B in [0, 1].
LUMA_WEIGHTS = (65.481, 128.553, 24.966)
# Of the JPEG file that `jpeg_bytes` counts; Pillow's own default.
JPEG_QUALITY = 75


def nan_for_nan(judge: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a metric that fails on NaN, or does not notice it, return NaN for such pictures and judge the others.

    Args:
        judge: Takes SR and HR pictures without NaN, and perhaps options.

    Returns:
        Takes any.
    """

    @wraps(judge)
    def judge_any(sr_image: Tensor, hr_image: Tensor, **options: Any) -> Tensor:
        spoilt = (sr_image.isnan() | hr_image.isnan()).flatten(1).any(1)
        if not spoilt.any():
            return judge(sr_image, hr_image, **options)
        blank = spoilt[:, None, None, None]
        values = judge(sr_image.masked_fill(blank, 0.5), hr_image.masked_fill(blank, 0.5), **options)
        return values.masked_fill(spoilt, math.nan)

    return judge_any


@nan_for_nan
def dtw(sr_image: Tensor, hr_image: Tensor, window: int | None = None) -> Tensor:
    """How far the scan lines of two pictures are apart when they may be stretched onto each other.

    Dynamic time warping (Sakoe and Chiba 1978) of each row of luma with the same row of the original, and of each
    column: the least sum of absolute differences over all warpings. Divided by the line's length, so that it does not
    grow with the picture; then the mean over the rows and the mean over the columns, and the mean of both.

    An edge that is as sharp as the original's but lies a few pixels beside it costs nothing; a blurred one does.

    Args:
        sr_image: `(B, 3, H, W)` in [0, 1].
        hr_image: The same.
        window: By how many pixels a point may be moved at most; any number where None.

    Returns:
        Values in [0, 1], `(B,)` float64; 0 for equal lumas.
    """
    from rlsr_env.dtw import line_distances  # compiled by Numba, which takes its time to be imported

    sr_luma, hr_luma = luma(sr_image), luma(hr_image)
    batch, height, width = sr_luma.shape
    rows = line_distances(sr_luma.reshape(batch * height, width), hr_luma.reshape(batch * height, width), window)
    sr_luma, hr_luma = sr_luma.swapaxes(1, 2), hr_luma.swapaxes(1, 2)
    columns = line_distances(sr_luma.reshape(batch * width, height), hr_luma.reshape(batch * width, height), window)
    of_rows = rows.reshape(batch, height).mean(1, dtype=np.float64) / width
    of_columns = columns.reshape(batch, width).mean(1, dtype=np.float64) / height
    return _as_values((of_rows + of_columns) / 2, sr_image)


@nan_for_nan
def edge_f1(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """How well the edges of two pictures agree, pixel by pixel.

    Canny's edges (sigma 1, thresholds 0.1 and 0.2 as in scikit-image) of the luma, of pictures rounded to 8 bits; then
    F1, the harmonic mean of precision and recall: twice the pixels that are edges in both, over the edge pixels of the
    one plus those of the other. Two pictures without edges agree.

    Args:
        sr_image: `(B, 3, H, W)` in [0, 1].
        hr_image: The same.

    Returns:
        Values in [0, 1], `(B,)` float64.
    """
    from rlsr_env.canny import edge_maps

    # A batch may hold many samples for one original, whose edges are wanted once.
    originals, which = _distinct(luma(round_to_8bit(hr_image)))
    sr_edges = edge_maps(luma(round_to_8bit(sr_image)))
    hr_edges = edge_maps(originals)[which]
    n_both = (sr_edges & hr_edges).sum((1, 2))
    n_edges = sr_edges.sum((1, 2)) + hr_edges.sum((1, 2))
    return _as_values(np.where(n_edges == 0, 1.0, 2 * n_both / np.maximum(n_edges, 1)), sr_image)


@nan_for_nan
def jpeg_bytes(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """What the next hop pays: the size of the SR picture's own JPEG file (quality 75, 4:2:0, optimised tables).

    The original plays no part, so this is a reward only beside something that holds on to the picture.

    Args:
        sr_image: `(B, 3, H, W)` in [0, 1]; rounded to 8 bits.
        hr_image: The same.

    Returns:
        Bytes, `(B,)` float64.
    """
    pictures = as_arrays(sr_image)
    sizes = np.zeros(len(pictures))
    options = BASE_CODECS["jpeg"].options

    def save(share: slice) -> None:
        # A real file: into memory, Pillow encodes without releasing the interpreter lock.
        with tempfile.TemporaryFile(buffering=0) as file:
            for number in range(share.start, share.stop):
                file.seek(0)
                Image.fromarray(pictures[number]).save(file, "JPEG", quality=JPEG_QUALITY, **options)
                sizes[number] = file.tell()

    share_out(save, len(pictures))
    return _as_values(sizes, sr_image)


@nan_for_nan
def ssimulacra2(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """SSIMULACRA 2 (Sneyers 2022): 90 is visually lossless, 70 high, 50 medium and 30 low quality.

    Args:
        sr_image: `(B, 3, H, W)` in [0, 1]; rounded to 8 bits.
        hr_image: The same.

    Returns:
        Values up to 100, `(B,)` float64.

    Raises:
        ImportError: If the package `ssimulacra2` is not installed.
        MetricError: If it fails on a picture.
    """
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ImportError as error:
        raise ImportError(
            "the metric ssimulacra2 needs the package of that name: install rlsr[ssimulacra2] "
            "(uv sync --extra ssimulacra2)"
        ) from error

    def compare(sr_array: np.ndarray, hr_array: np.ndarray) -> float:
        with tempfile.TemporaryFile() as sr_file, tempfile.TemporaryFile() as hr_file:
            for file, array in ((sr_file, sr_array), (hr_file, hr_array)):
                Image.fromarray(array).save(file, "PPM")
                file.seek(0)
            return compute_ssimulacra2(hr_file, sr_file)

    return EachPicture("ssimulacra2", compare)(sr_image, hr_image)


@dataclass(frozen=True)
class EachPicture:
    """A function of two NumPy pictures, applied to each picture of a batch, one after another.

    Attributes:
        name: The metric's name, for errors.
        function: Takes an SR and an HR picture, each `(H, W, 3)` uint8, and returns a number.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], float]

    def __call__(self, sr_image: Tensor, hr_image: Tensor) -> Tensor:
        """Judge the pictures one by one.

        Args:
            sr_image: `(B, 3, H, W)` in [0, 1].
            hr_image: The same.

        Returns:
            `(B,)` float64.

        Raises:
            MetricError: If the function raises, or returns NaN or no number; it names all pictures where it does.
        """
        values: list[float] = []
        failed: list[int] = []
        first_error: Exception | None = None
        for number, pair in enumerate(zip(as_arrays(sr_image), as_arrays(hr_image), strict=True)):
            try:
                values.append(float(self.function(*pair)))
            except Exception as error:  # whatever a user's function raises
                failed.append(number)
                first_error = first_error or error
        if first_error is not None:
            raise MetricError(self.name, failed, f"failed on {{pictures}}: {first_error!r}") from first_error
        if not_numbers := [number for number, value in enumerate(values) if math.isnan(value)]:
            raise MetricError(self.name, not_numbers, "returned NaN for {pictures}; return a number")
        return _as_values(np.array(values), sr_image)


def round_to_8bit(image: Tensor) -> Tensor:
    """Pictures in [0, 1] at the nearest of 256 levels; NaN stays NaN."""
    return (image * 255).round() / 255


def as_arrays(image: Tensor) -> np.ndarray:
    """Pictures `(B, 3, H, W)` in [0, 1] as `(B, H, W, 3)` uint8."""
    return (image.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def luma(image: Tensor) -> np.ndarray:
    """BT.601's luma, stretched to [0, 1]: `(B, 3, H, W)` to `(B, H, W)`, on the CPU."""
    red, green, blue = (weight / sum(LUMA_WEIGHTS) * image.detach()[:, c] for c, weight in enumerate(LUMA_WEIGHTS))
    return (red + green + blue).cpu().numpy()


def _distinct(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pictures that differ, and the number of each picture among them."""
    numbers: dict[bytes, int] = {}
    which = np.array([numbers.setdefault(picture.tobytes(), len(numbers)) for picture in pictures], dtype=np.int64)
    first = np.unique(which, return_index=True)[1]
    return pictures[first], which


def _as_values(values: np.ndarray, sr_image: Tensor) -> Tensor:
    """Values `(B,)` as float64 on the pictures' device."""
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(sr_image.device)
