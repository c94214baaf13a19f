"""The mean squared error and the PSNR in their several conventions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsr_env.black_box_metrics import LUMA_WEIGHTS
from rlsr_env.picture_checks import check_pictures


def mean_squared_error(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """The mean squared error of each picture, over its pixels and colours, after clipping to [0, 1].

    Times the number of values of a picture, it is the sum that `psnr_clic` pools.

    Args:
        sr_image: Pictures `(B, 3, H, W)`, any float dtype.
        hr_image: The originals, of the same shape.

    Returns:
        Values in [0, 1], `(B,)`, float64.

    Raises:
        TypeError: If a picture is not a floating-point tensor.
        ValueError: If the shapes differ or are not `(B, 3, H, W)`.
    """
    check_pictures(sr_image, hr_image, "mean_squared_error", min_size=1)
    return _mean_squares(sr_image.clamp(0, 1), hr_image.clamp(0, 1))


def _mean_squares(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """The mean squared difference of pictures `(B, 3, H, W)`: `(B,)` float64."""
    from rlsr_env.loops import can_loop, mean_squares  # compiled by Numba, which takes its time to be imported

    if can_loop(sr_image, hr_image):
        return mean_squares(sr_image, hr_image)
    return (sr_image.double() - hr_image.double()).square().mean(dim=(2, 3)).mean(dim=1)


def psnr(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """The peak signal-to-noise ratio over R, G and B, each picture by itself (Savioli 2019, eq. 6, with MAX = 1).

    Float64, so that the gain of one small step shows at 40 dB. Identical pictures have an infinite PSNR, and no
    gradient is defined there.

    Args:
        sr_image: Pictures `(B, 3, H, W)`, clipped to [0, 1].
        hr_image: The originals, of the same shape.

    Returns:
        Values in dB, `(B,)`, float64.
    """
    return _decibels(mean_squared_error(sr_image, hr_image))


@dataclass(frozen=True)
class PSNRAgainst:
    """`psnr` against given originals, which are clipped once.

    Attributes:
        hr_image: `(B, 3, H, W)` in [0, 1].
    """

    hr_image: Tensor

    def __call__(self, sr_image: Tensor) -> Tensor:
        """Judge pictures in [0, 1], `(B,)` float64."""
        return _decibels(_mean_squares(sr_image, self.hr_image))


def psnr_y(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """The PSNR of the luma alone, as the super-resolution literature reports it.

    The luma is BT.601's, from 16 to 235 of the 255 levels, not rounded; MAX is all 255 levels; no border is cropped.

    Args:
        sr_image: Pictures `(B, 3, H, W)` in [0, 1].
        hr_image: The originals, of the same shape.

    Returns:
        Values in dB, `(B,)`, float64; infinite where the lumas are identical.
    """
    difference = sr_image.double() - hr_image.double()
    # The offset of 16 is in both lumas, so it cancels.
    luma_difference = torch.einsum("bchw,c->bhw", difference, difference.new_tensor(LUMA_WEIGHTS) / 255)
    return _decibels(luma_difference.square().mean(dim=2).mean(dim=1))


def psnr_clic(squared_error_sum: float, n_values: int) -> float:
    """The PSNR of a whole image set by CLIC's convention: one mean squared error over every value of every picture.

    Over pictures of one size it is never above the mean of their PSNRs; report it under its own name.

    Args:
        squared_error_sum: Sum of the squared errors over the set, for pictures in [0, 1].
        n_values: How many values that sum runs over, 3 x height x width of each picture.

    Returns:
        The PSNR in dB, infinite for a sum of 0.

    Raises:
        ValueError: If the sum is negative or not finite, or there are no values.
    """
    if n_values < 1:
        raise ValueError(f"psnr_clic needs at least one value to average over, got n_values={n_values}.")
    if not (math.isfinite(squared_error_sum) and squared_error_sum >= 0):
        raise ValueError(
            f"psnr_clic needs a finite sum of squared errors of at least 0, got {squared_error_sum}; "
            "check the SR pictures for NaN."
        )
    return math.inf if squared_error_sum == 0 else -10 * math.log10(squared_error_sum / n_values)


def _decibels(mse: Tensor) -> Tensor:
    """Turn mean squared errors into PSNRs (Savioli 2019, eq. 6, with MAX = 1)."""
    return -10 * torch.log10(mse)
