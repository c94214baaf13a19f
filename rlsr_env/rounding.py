"""Pictures in the 256 levels that a viewer gets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def to_8bit(image: Tensor) -> Tensor:
    """Round pictures to the 256 levels that a viewer gets; every reported figure is of pictures rounded so.

    No gradient passes the rounding.

    Args:
        image: Pictures of any shape, any float dtype; values outside [0, 1] are clipped.

    Returns:
        Multiples of 1/255 in [0, 1], of the same shape, float32 or float64.

    Raises:
        TypeError: If the picture is not a floating-point tensor.
        ValueError: If it holds NaN, which would be saved as black.
    """
    from rlsr_env.loops import rounded_to_8bit  # compiled by Numba, which takes its time to be imported

    return _rounded(image, "to_8bit", rounded_to_8bit, lambda levels: levels.div_(255))


def to_levels(image: Tensor) -> Tensor:
    """Round pictures to the 256 levels that a viewer gets, as `to_8bit`, and return the levels.

    Args:
        image: Pictures of any shape, any float dtype; values outside [0, 1] are clipped.

    Returns:
        0 to 255, of the same shape, uint8.

    Raises:
        TypeError: If the picture is not a floating-point tensor.
        ValueError: If it holds NaN, which would be saved as black.
    """
    from rlsr_env.loops import rounded_to_levels  # compiled by Numba, which takes its time to be imported

    return _rounded(
        image, "to_levels", rounded_to_levels,
        lambda levels: levels.to(torch.uint8, memory_format=torch.contiguous_format),
    )  # fmt: skip


def _rounded(
    image: Tensor, name: str, by_loop: Callable[[Tensor], tuple[Tensor, bool]], finish: Callable[[Tensor], Tensor]
) -> Tensor:
    """Clip and round floats, by a loop where one takes them; `finish` makes the result of whole levels in floats."""
    if not image.is_floating_point():
        raise TypeError(f"{name} needs floating-point pictures in [0, 1], got {image.dtype}; divide 8-bit data by 255.")
    from rlsr_env.loops import can_loop  # compiled by Numba, which takes its time to be imported

    if can_loop(image):
        rounded, suspicious = by_loop(image)
    else:
        at_least_float32 = image.to(torch.promote_types(image.dtype, torch.float32))
        rounded = finish(at_least_float32.clamp(0, 1).mul_(255).round_())
        suspicious = bool(image.sum().isnan())
    if suspicious:
        refuse_nan(image)
    return rounded


def require_levels(sr_levels: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless pictures are levels in the shape of the originals."""
    if sr_levels.dtype != torch.uint8:
        raise TypeError(f"expected the levels of 8-bit pictures, uint8, got {sr_levels.dtype}; to_levels makes them")
    if tuple(sr_levels.shape) != tuple(shape):
        raise ValueError(f"SR pictures must have the originals' shape {tuple(shape)}, got {tuple(sr_levels.shape)}")


def refuse_nan(image: Tensor) -> None:
    """Raise if a picture holds NaN: its sum is NaN then, but also where infinities cancel out.

    Summing is a tenth of the work of looking for one.
    """
    if n_nan := int(torch.isnan(image).sum()):
        raise ValueError(
            f"{n_nan} of the {image.numel()} values of the picture are NaN, so there is nothing to show; "
            "check the network's weights and its input."
        )
