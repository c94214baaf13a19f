"""Upsampling by fixed kernels on tensors: the baseline every decoder is measured against.

The weights are those of Pillow's resize (kernel centred on the output pixel, renormalised at the border), so the
baseline is the one a user gets from Pillow, up to Pillow's own rounding to 8 bit between the two passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def _lanczos(x: np.ndarray) -> np.ndarray:
    """Windowed sinc with three lobes on each side."""
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -0.5, the value that Pillow uses (Keys 1981, eq. 15)."""
    a = -0.5
    x = np.abs(x)
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "lanczos": (_lanczos, 3.0),
    "bicubic": (_bicubic, 2.0),
}


@dataclass(frozen=True)
class Upsampling:
    """Lanczos upsampling, the decoder of a user who has no network.

    Unlike any other generator it is known to work on each picture by itself, in memory that nobody else has, and in
    several threads at a time.

    Attributes:
        scale: The factor.
    """

    scale: int

    def __call__(self, lr_image: Tensor) -> Tensor:
        """Upsample pictures `(B, 3, h, w)`."""
        return upsample(lr_image, self.scale, "lanczos")

    def write(self, lr_image: np.ndarray, sr_image: np.ndarray) -> None:
        """Upsample pictures `(B, 3, h, w)` float32, contiguous, and write them to `(B, 3, scale * h, scale * w)`."""
        from rlsr_env.patch_loops import enlarge  # compiled by Numba, which takes its time to be imported

        factors = [_border_factors(size, self.scale, "lanczos") for size in lr_image.shape[-2:]]
        enlarge(lr_image, _phase_weights(self.scale, "lanczos"), *factors, sr_image)


def _weights(size: int, scale: int, kernel: str) -> np.ndarray:
    """What each of `scale * size` pixels takes of each of `size`: `(scale * size, size)`, not normalised."""
    function, support = KERNELS[kernel]
    centre = (np.arange(scale * size)[:, None] + 0.5) / scale
    pixel = np.arange(size)[None, :]
    weights = function(pixel + 0.5 - centre)
    # Pillow keeps only pixels whose index lies within the rounded support, even where the kernel is not yet zero.
    first = np.maximum(np.floor(centre - support + 0.5), 0)
    last = np.minimum(np.floor(centre + support + 0.5), size)
    return np.where((pixel >= first) & (pixel < last), weights, 0.0)


@lru_cache(maxsize=64)
def _upsampling_matrix(size: int, scale: int, kernel: str, device: torch.device) -> Tensor:
    """The `(scale * size, size)` matrix that upsamples one axis; each row sums to one."""
    weights = _weights(size, scale, kernel)
    weights /= weights.sum(axis=1, keepdims=True)
    # The cache outlives a caller's inference mode, whose tensors autograd would later refuse.
    with torch.inference_mode(False):
        return torch.from_numpy(weights).to(device=device, dtype=torch.float32)


@lru_cache(maxsize=16)
def _phase_weights(scale: int, kernel: str) -> np.ndarray:
    """The rows of the matrix far from the border, `(scale, taps)` float32: they repeat from pixel to pixel."""
    reach = int(KERNELS[kernel][1])
    middle = _weights(2 * reach + 1, scale, kernel)[reach * scale : (reach + 1) * scale]
    return (middle / middle.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=64)
def _border_factors(size: int, scale: int, kernel: str) -> np.ndarray:
    """By how much the matrix's rows are larger near the border, where some pixels are missing: `(scale, size)`."""
    reach = int(KERNELS[kernel][1])
    complete = _weights(2 * reach + 1, scale, kernel)[reach * scale : (reach + 1) * scale].sum(axis=1)
    return (complete / _weights(size, scale, kernel).sum(axis=1).reshape(size, scale)).T.astype(np.float32)


def upsample(lr_image: Tensor, scale: int, kernel: str = "lanczos") -> Tensor:
    """Upsample pictures by an integer factor with a fixed kernel.

    Args:
        lr_image: `(B, C, h, w)`, floating, any range.
        scale: The factor, an integer of 1 or more.
        kernel: `"lanczos"` (three lobes) or `"bicubic"` (a = -0.5).

    Returns:
        `(B, C, scale * h, scale * w)` float32, not clipped: both kernels overshoot at edges.

    Raises:
        ValueError: For an unknown kernel, a scale below 1, or a tensor that is not 4-D.
        TypeError: For a tensor that is not floating.
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(KERNELS)}")
    if scale < 1 or scale != math.floor(scale):
        raise ValueError(f"scale must be an integer of 1 or more, got {scale!r}")
    if lr_image.ndim != 4:
        raise ValueError(f"expected pictures (B, C, h, w), got a tensor of shape {tuple(lr_image.shape)}")
    if not lr_image.is_floating_point():
        raise TypeError(f"expected a floating tensor, got {lr_image.dtype}; divide uint8 pictures by 255 first")
    from rlsr_env.loops import can_loop  # compiled by Numba, which takes its time to be imported
    from rlsr_env.patch_loops import upsampled

    # float32 whatever surrounds it: the base of a residual generator must equal the baseline to the bit (issue 2).
    lr_image = lr_image.float()
    height, width = lr_image.shape[-2:]
    if can_loop(lr_image):
        factors = [_border_factors(size, int(scale), kernel) for size in (height, width)]
        return upsampled(lr_image, _phase_weights(int(scale), kernel), *factors)
    rows = _upsampling_matrix(height, scale, kernel, lr_image.device)
    columns = _upsampling_matrix(width, scale, kernel, lr_image.device)
    with torch.autocast(lr_image.device.type, enabled=False):
        return rows @ (lr_image @ columns.T)
