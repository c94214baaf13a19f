"""Maps of a metric over blocks of 8 x 8 pixels: which part of a picture has earned how much.

Every map takes SR pictures `(K * P, 3, H, W)` and HR pictures `(P, 3, H, W)`, float32 or float64, in [0, 1], H and W
multiples of 8: K samples of each of P patches, sample after sample (SR picture `k * P + p` belongs to HR picture `p`).
What depends on the HR picture alone is computed once for all K. A map is `(K * P, H / 8, W / 8)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from rlsr_env.filters import gaussian_kernel

BLOCK = 8
# Of the window of SSIM: Wang et al. 2004, sec. III-B.
WINDOW_RADIUS, WINDOW_SIGMA = 5, 1.5
FIRST_WINDOW, STRIDE = WINDOW_RADIUS + 1, 4
# (K1 L)^2 and (K2 L)^2 of Wang et al. 2004, eq. 13, with L = 1.
C1, C2 = 0.01**2, 0.03**2


def squared_error_map(sr_image: Tensor, hr_image: Tensor, colour_weights: Tensor | None = None) -> Tensor:
    """The mean squared error of each block.

    Args:
        sr_image: `(K * P, C, H, W)`.
        hr_image: `(P, C, H, W)`.
        colour_weights: `(C,)`; the error is that of the colours' weighted sum. Without them it is the mean of the
            colours' own errors.

    Returns:
        `(K * P, H / 8, W / 8)`.
    """
    height, width = hr_image.shape[-2:]
    rows, columns = _block_means(height, hr_image), _block_means(width, hr_image)

    def of_sample(sr: Tensor, hr: Tensor) -> Tensor:
        difference = sr - hr
        if colour_weights is not None:
            difference = torch.einsum("pchw,c->phw", difference, colour_weights).unsqueeze(1)
        return (rows @ difference.square_() @ columns.T).mean(1)

    return _sample_by_sample(of_sample, sr_image, hr_image)


def ssim_map(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004, eq. 13) with its Gaussian window of 11 x 11, at every fourth pixel of rows and columns.

    Windows are centred on the pixels 2 and 6 of each block along either side, without those that do not lie within
    the picture; a block's value is the mean over its windows and over R, G and B.

    Args:
        sr_image: `(K * P, 3, H, W)`.
        hr_image: `(P, 3, H, W)`, H and W 16 or more.

    Returns:
        `(K * P, H / 8, W / 8)`.
    """
    height, width = hr_image.shape[-2:]
    hr_mean, hr_square, _ = _windows(hr_image, hr_image)
    hr_luminance = hr_mean.square()
    hr_contrast = hr_square - hr_luminance
    mean, square, product = (sums.unflatten(0, (-1, len(hr_image))) for sums in _windows(sr_image, hr_image))
    luminance, means = mean.square(), mean * hr_mean
    similarity = (
        (2 * means + C1) / (luminance + hr_luminance + C1)
        * (2 * (product - means) + C2) / (square - luminance + hr_contrast + C2)
    )  # fmt: skip
    block_rows, block_columns = _window_means(height, hr_image), _window_means(width, hr_image)
    return block_rows @ similarity.flatten(0, 1).mean(1) @ block_columns.T


def _windows(sr_image: Tensor, hr_image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under each window of `ssim_map`: the weighted sums of values, of their squares, of their products with HR's.

    Returns:
        Three of `(K * P, 3, rows, columns)`, each value of the same operations in the same order.
    """
    from rlsr_env.loops import can_loop  # compiled by Numba, which takes its time to be imported
    from rlsr_env.similarity_loops import sampled_windows

    height, width = hr_image.shape[-2:]
    if can_loop(sr_image, hr_image):
        kernel = gaussian_kernel(WINDOW_RADIUS, WINDOW_SIGMA, hr_image)
        return sampled_windows(sr_image, hr_image, kernel, FIRST_WINDOW - WINDOW_RADIUS, STRIDE)
    # The filter is separable and only some positions are wanted: one banded matrix from the left, one from the right.
    rows, columns = _gaussian_rows(height).to(hr_image), _gaussian_rows(width).to(hr_image)

    def blurred(image: Tensor) -> Tensor:
        return rows @ image @ columns.T

    of_value = _sample_by_sample(lambda sr, _: blurred(sr), sr_image, hr_image)
    of_square = _sample_by_sample(lambda sr, _: blurred(sr.square()), sr_image, hr_image)
    of_product = _sample_by_sample(lambda sr, hr: blurred(sr * hr), sr_image, hr_image)
    return of_value, of_square, of_product


def _sample_by_sample(of_sample: Callable[[Tensor, Tensor], Tensor], sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """One sample of every patch at a time: what lies between two products then stays in the processor's cache."""
    return torch.cat([of_sample(sample, hr_image) for sample in sr_image.split(len(hr_image))])


def _block_means(size: int, like: Tensor) -> Tensor:
    """`(size / 8, size)`: the means of eight pixels each."""
    return torch.eye(size // BLOCK, dtype=like.dtype, device=like.device).repeat_interleave(BLOCK, dim=1) / BLOCK


def _window_means(size: int, like: Tensor) -> Tensor:
    """`(size / 8, positions)`: the mean over the windows whose centre is in the block."""
    inside = _centres(size) // BLOCK == torch.arange(size // BLOCK)[:, None]
    return (inside / inside.sum(1, keepdim=True)).to(like)


def _centres(size: int) -> Tensor:
    """The positions of the windows: 6, 10, 14, ..., size - 6."""
    return torch.arange(FIRST_WINDOW, size - WINDOW_RADIUS, STRIDE)


@lru_cache(maxsize=16)
def _gaussian_rows(size: int) -> Tensor:
    """`(positions, size)`: a Gaussian, cut at its radius and of sum 1, around each position; float64 on the CPU."""
    distance = torch.arange(size, dtype=torch.float64) - _centres(size)[:, None]
    weights = torch.exp(-0.5 * (distance / WINDOW_SIGMA).square()).where(distance.abs() <= WINDOW_RADIUS, 0.0)
    return weights / weights.sum(1, keepdim=True)
