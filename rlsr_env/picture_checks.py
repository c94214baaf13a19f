"""What a metric refuses, and what it says when it fails."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlsr_env.block_maps import BLOCK


class MetricError(ValueError):
    """A metric failed on some pictures of a batch.

    Attributes:
        metric: The metric's name.
        pictures: Which pictures, counted from 0 in the batch.
    """

    def __init__(self, metric: str, pictures: Sequence[int], what: str) -> None:
        """Say what went wrong.

        Args:
            metric: The metric's name.
            pictures: Which pictures of the batch.
            what: What the metric did to them, with `{pictures}` where their numbers belong.
        """
        self.metric, self.pictures = metric, tuple(pictures)
        some = ", ".join(map(str, self.pictures[:5])) + (", ..." if len(self.pictures) > 5 else "")
        which = f"picture{'s' if len(self.pictures) > 1 else ''} {some} of the batch"
        super().__init__(f"metric {metric!r} {what.format(pictures=which)}")


def check_pictures(sr_image: Tensor, hr_image: Tensor, name: str, min_size: int) -> None:
    """Check that both tensors are pictures that a metric can compare.

    Args:
        sr_image: Should be `(B, 3, H, W)`.
        hr_image: Should be of the same shape.
        name: The metric's name, and what else a message should say of it.
        min_size: The smallest shorter side that it accepts, in pixels.

    Raises:
        TypeError: If a picture is not a floating-point tensor.
        ValueError: If the shapes differ, are not `(B, 3, H, W)`, or are smaller than `min_size`.
    """
    _check_floats(sr_image, hr_image, name)
    if sr_image.shape != hr_image.shape:
        raise ValueError(
            f"{name} needs SR and HR pictures of one shape, got {tuple(sr_image.shape)} and {tuple(hr_image.shape)}; "
            "crop or resize one of them."
        )
    check_size(sr_image, name, min_size)


def check_blocks(sr_image: Tensor, hr_image: Tensor, name: str, min_size: int) -> None:
    """Check that the tensors are K samples of patches, and the patches, whose blocks a metric can judge.

    Args:
        sr_image: Should be `(K * P, 3, H, W)`.
        hr_image: Should be `(P, 3, H, W)`, H and W multiples of 8.
        name: The metric's name.
        min_size: The smallest shorter side that it accepts, in pixels; rounded up to whole blocks.

    Raises:
        TypeError: If a picture is not a floating-point tensor.
        ValueError: If the shapes are others.
    """
    _check_floats(sr_image, hr_image, name)
    if sr_image.shape[1:] != hr_image.shape[1:] or not len(hr_image) or len(sr_image) % len(hr_image):
        raise ValueError(
            f"the blocks of {name} need SR pictures (K * P, 3, H, W) for HR pictures (P, 3, H, W), got "
            f"{tuple(sr_image.shape)} and {tuple(hr_image.shape)}"
        )
    check_size(hr_image, f"the block map of {name}", -(-min_size // BLOCK) * BLOCK)
    height, width = hr_image.shape[-2:]
    if height % BLOCK or width % BLOCK:
        raise ValueError(
            f"the blocks of {name} have {BLOCK} x {BLOCK} pixels, got pictures of {height}x{width}; take a patch size "
            f"that is a multiple of {BLOCK}"
        )


def _check_floats(sr_image: Tensor, hr_image: Tensor, name: str) -> None:
    """Raise unless both are floating-point tensors."""
    for role, image in (("SR", sr_image), ("HR", hr_image)):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(
                f"{name} needs floating-point tensors in [0, 1], got {got} for the {role} pictures; "
                "divide 8-bit data by 255."
            )


def check_size(image: Tensor, name: str, min_size: int) -> None:
    """Raise unless a tensor is a batch of RGB pictures that are large enough."""
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(
            f"{name} needs RGB pictures of shape (B, 3, H, W), got {tuple(image.shape)}; "
            "a single picture needs `image[None]`."
        )
    if min(image.shape[-2:]) < min_size:
        height, width = image.shape[-2:]
        raise ValueError(
            f"{name} needs pictures of at least {min_size} pixels on the shorter side, got {height}x{width}; "
            "use larger pictures or another metric."
        )
