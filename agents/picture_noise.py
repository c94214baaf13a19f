"""Noise for whole pictures: white, or smooth, or the same in all channels, always of unit variance in every value."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def picture_noise(n_samples: int, mean: Tensor, blur: float = 0.0, grey: bool = False) -> Tensor:
    """Standard normal noise for several pictures around each of a batch.

    Args:
        n_samples: Pictures of each.
        mean: `(N, C, H, W)`: shape, dtype and device.
        blur: Standard deviation, in pixels, of the Gaussian that white noise is filtered by; 0 leaves it white. Edges
            are joined to the opposite ones, so that all pixels have the same variance.
        grey: The same noise in all channels.

    Returns:
        `(n_samples, N, C, H, W)`, each value standard normal.
    """
    n_channels = 1 if grey else mean.shape[1]
    shape = (n_samples, mean.shape[0], n_channels, *mean.shape[2:])
    noise = torch.randn(shape, device=mean.device, dtype=mean.dtype)
    if blur > 0:
        rows, columns = (_blur_matrix(side, blur).to(noise) for side in mean.shape[2:])
        noise = rows @ noise @ columns.T
    return noise.expand(-1, -1, mean.shape[1], -1, -1) if grey else noise


@lru_cache(maxsize=32)
def _blur_matrix(side: int, blur: float) -> Tensor:
    """`(side, side)`: a periodic Gaussian filter whose rows have the norm 1, which keeps white noise's variance."""
    distance = torch.arange(side, dtype=torch.float64)
    distance = torch.minimum(distance, side - distance)
    weights = torch.exp(-0.5 * (distance / blur).square())
    shift = (torch.arange(side)[None] - torch.arange(side)[:, None]) % side
    return (weights / weights.norm())[shift]
