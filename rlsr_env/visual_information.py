"""Visual information fidelity in the pixel domain (Sheikh and Bovik 2006, and their own release of 2009)."""

from __future__ import annotations

import torch
from torch import Tensor

# Variance of the noise that the eye itself adds, for luma from 0 to 255.
EYE_VARIANCE = 2.0
# Sides of the Gaussian windows, scale by scale; their standard deviation is a fifth of it.
WINDOWS = (17, 9, 5, 3)
# Variances below this are none.
FLAT = 1e-8
# The coarsest scale then has one window.
MIN_SIZE = 41


def information_fidelity(sr_luma: Tensor, hr_luma: Tensor) -> Tensor:
    """How much of what the eye could learn from the original it can learn from the picture.

    Each window of the picture is taken for the original's times a gain, plus noise. Variances are small differences of
    large squares, so everything is float64. The separable windows are banded matrices from the left and from the right.

    Args:
        sr_luma: `(B, H, W)` from 0 to 255, 41 pixels or more on the shorter side.
        hr_luma: The same.

    Returns:
        The ratio of both informations, `(B,)` float64.
    """
    sr_luma, hr_luma = sr_luma.double(), hr_luma.double()
    seen = there = hr_luma.new_zeros(len(hr_luma))
    for scale, side in enumerate(WINDOWS):
        if scale:
            sr_luma, hr_luma = (_blurred(luma, side)[..., ::2, ::2] for luma in (sr_luma, hr_luma))
        sr_mean, hr_mean = _blurred(sr_luma, side), _blurred(hr_luma, side)
        sr_variance = _rounded(_blurred(sr_luma.square(), side) - sr_mean.square())
        hr_variance = _rounded(_blurred(hr_luma.square(), side) - hr_mean.square())
        covariance = _blurred(sr_luma * hr_luma, side) - sr_mean * hr_mean
        # Where there is nothing to see, or it is seen upside down, the gain is 0 and all is noise.
        gain = covariance.clamp(min=0) / hr_variance.clamp(min=FLAT)
        gain = gain.where((hr_variance > 0) & (sr_variance > 0), 0.0)
        noise = (sr_variance - gain * covariance).clamp(min=FLAT)
        seen = seen + torch.log10(1 + gain.square() * hr_variance / (noise + EYE_VARIANCE)).sum((1, 2))
        there = there + torch.log10(1 + hr_variance / EYE_VARIANCE).sum((1, 2))
    return (seen + FLAT) / (there + FLAT)


def _rounded(variance: Tensor) -> Tensor:
    """No variance where there is next to none: what is left there are rounding errors."""
    return variance.where(variance >= FLAT, 0.0)


def _blurred(image: Tensor, side: int) -> Tensor:
    """The Gaussian window at every place where it lies within the picture."""
    rows, columns = (_windows(size, side, image) for size in image.shape[-2:])
    return rows @ image @ columns.T


def _windows(size: int, side: int, like: Tensor) -> Tensor:
    """`(size - side + 1, size)`: the window along one axis, in every place."""
    distance = torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2
    weights = torch.exp(-0.5 * (distance / (side / 5)).square())
    n_places = size - side + 1
    places = torch.arange(n_places, device=like.device)[:, None] + torch.arange(side, device=like.device)
    return like.new_zeros(n_places, size).scatter_(1, places, (weights / weights.sum()).expand(n_places, side))
