"""Filters on many small pictures at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def gaussian_kernel(radius: int, deviation: float, like: Tensor) -> Tensor:
    """A Gaussian, cut off at `radius`, of sum 1: `(2 * radius + 1,)`, in the dtype and on the device of `like`."""
    offsets = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    return kernel / kernel.sum()


def slide(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter rows and columns, without padding; each picture's result is the same to the bit in any company.

    Args:
        image: `(N, C, H, W)`, float32 or float64.
        kernel: `(K,)`, the same for rows and columns, without a gradient of its own; K is at most H and W.

    Returns:
        `(N, C, H - K + 1, W - K + 1)`, contiguous.
    """
    from rlsr_env.filter_loops import filtered  # compiled by Numba, which takes its time to be imported
    from rlsr_env.loops import can_loop

    if can_loop(image):
        return filtered(image, kernel)
    if image.device.type == "cpu" and image.dtype == torch.float32:
        return _Slide.apply(image, kernel)
    # A convolution with a group for each colour is slow; as a batch of pictures of one channel it is not.
    planes = image.contiguous().flatten(0, 1)[:, None]
    both = functional.conv2d(functional.conv2d(planes, kernel[None, None, None]), kernel[None, None, :, None])
    return both.unflatten(0, image.shape[:2]).squeeze(2)


class _Slide(torch.autograd.Function):
    """The compiled filter, and its gradient: the same filter, turned around, over what is padded with zeros."""

    @staticmethod
    def forward(image: Tensor, kernel: Tensor) -> Tensor:
        """Filter `(N, C, H, W)`."""
        from rlsr_env.filter_loops import filtered  # compiled by Numba, which takes its time to be imported

        return filtered(image, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the kernel."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of the picture."""
        (kernel,) = ctx.saved_tensors
        around = len(kernel) - 1
        padded = functional.pad(gradient, (around, around, around, around))
        return slide(padded, kernel.flip(0)), None
