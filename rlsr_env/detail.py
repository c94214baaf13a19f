"""Control of a picture's detail: a coarse grid of strengths in a few frequency bands."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor
from torch.nn import functional

from rlsr_env.tasks import Restorer, Task


def blur(image: Tensor, deviation: float) -> Tensor:
    """Gaussian blur, mirrored at the border.

    Args:
        image: `(B, C, H, W)` float.
        deviation: Standard deviation in pixels, above 0.
    """
    radius = min(int(3 * deviation + 0.5), image.shape[-2] - 1, image.shape[-1] - 1)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, -1)
    padded = functional.pad(image, (radius, radius, radius, radius), mode="reflect")
    rows = functional.conv2d(padded, kernel, groups=image.shape[1])
    return functional.conv2d(rows, kernel.transpose(2, 3), groups=image.shape[1])


def split_bands(image: Tensor, scale: int, n_bands: int) -> Tensor:
    """The frequency bands of a picture; without them, what is left is the blur of the last.

    Band k lies between Gaussian blurs of 0.35 * 2^(k-1) and 0.35 * 2^k LR pixels; the first holds everything finer than
    its blur.

    Args:
        image: `(N, 3, H, W)` float.
        scale: HR pixels to an LR pixel.
        n_bands: How many bands.

    Returns:
        `(N, n_bands, 3, H, W)`, finest first.
    """
    smoother = [image, *(blur(image, 0.35 * 2**k * scale) for k in range(n_bands))]
    return torch.stack([fine - coarse for fine, coarse in pairwise(smoother)], 1)


def mix_bands(image: Tensor, bands: Tensor, strengths: Tensor) -> Tensor:
    """The picture with its bands changed: image + sum over k of strength_k * band_k.

    Args:
        image: `(N, 3, H, W)`.
        bands: `(N, K, 3, H, W)`.
        strengths: `(N, K, g, g)`, spread over the picture bilinearly; zero leaves the picture exactly as it is, so that
            to do nothing pays nothing.

    Returns:
        `(N, 3, H, W)`.
    """
    spread = functional.interpolate(strengths, size=image.shape[-2:], mode="bilinear", align_corners=False)
    return image + (spread[:, :, None] * bands).sum(1)


@dataclass
class DetailControl(Task):
    """Strengths of the generator's detail on a coarse grid, in a few frequency bands, refined from step to step.

    The generator restores the patch once, when the episode starts; each action adds to the strengths. -1 takes a band
    away, 0 leaves it, +2 makes it three times as strong.

    Attributes:
        n_bands: Frequency bands, finest first.
        grid_size: Cells along each side.
        max_change: The strength that an action of 1 adds.

    Raises:
        ValueError: For a number out of range.
    """

    n_bands: int = 3
    grid_size: int = 4
    max_change: float = 1.0
    name: ClassVar[str] = "detail_control"
    LOWEST: ClassVar[float] = -1.0
    HIGHEST: ClassVar[float] = 2.0
    strengths: Tensor = field(init=False, repr=False, compare=False, default_factory=lambda: torch.zeros(0))
    _restored: Tensor = field(init=False, repr=False, compare=False, default_factory=lambda: torch.zeros(0))
    _bands: Tensor = field(init=False, repr=False, compare=False, default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        """Check every number."""
        for name in ("n_bands", "grid_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")
        if not 0.0 < self.max_change < float("inf"):
            raise ValueError(f"max_change must be finite and above 0, got {self.max_change!r}")

    @property
    def n_channels(self) -> int:  # type: ignore[override]
        """The LR patch's three, and one for each band's strengths."""
        return 3 + self.n_bands

    def action_space(self, lr_patch_size: int, scale: int) -> Box:
        """Changes of the strengths, `(n_bands * grid_size ** 2,)` in [-1, 1], band by band, row by row."""
        if self.grid_size > lr_patch_size:
            raise ValueError(
                f"grid_size {self.grid_size} is finer than the LR patch of {lr_patch_size} pixels; take less"
            )
        return Box(-1.0, 1.0, (self.n_bands * self.grid_size**2,), np.float32)

    def start(self, marked: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor:
        """Restore the marked patches, split them into bands, and set their strengths to zero."""
        sr_image = generator(lr_image).float()
        bands = split_bands(sr_image, sr_image.shape[-1] // lr_image.shape[-1], self.n_bands)
        if self._bands.shape != bands.shape:
            self.strengths = torch.zeros(self._shape(len(lr_image)), device=lr_image.device)
            self._restored, self._bands = sr_image, bands
        self.strengths = torch.where(_over(marked, self.strengths), 0.0, self.strengths)
        self._restored = torch.where(_over(marked, sr_image), sr_image, self._restored)
        self._bands = torch.where(_over(marked, bands), bands, self._bands)
        return sr_image

    def restore(self, actions: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor:
        """Change the strengths and mix the bands; the generator itself is not asked again."""
        changes = self.max_change * actions.clamp(-1.0, 1.0).reshape(self.strengths.shape)
        self.strengths = (self.strengths + changes).clamp(self.LOWEST, self.HIGHEST)
        return self.mix(self.strengths)

    def mix(self, strengths: Tensor) -> Tensor:
        """The current patches with strengths `(N, n_bands, grid_size, grid_size)`; differentiable."""
        return mix_bands(self._restored, self._bands, strengths)

    def observe(self, lr_image: Tensor) -> Tensor:
        """The LR patch, and each band's strengths as a picture: 0 for -1, 255 for +2."""
        levels = (self.strengths - self.LOWEST) / (self.HIGHEST - self.LOWEST)
        maps = functional.interpolate(levels, size=lr_image.shape[-2:], mode="nearest")
        return torch.cat([lr_image, (maps * 255.0).round().to(torch.uint8)], dim=1)

    def state_dict(self) -> dict[str, Any]:
        """The strengths."""
        return {"strengths": self.strengths.tolist()}

    def load_state_dict(self, state: dict[str, Any], lr_image: Tensor, generator: Restorer) -> None:
        """Restore the patches anew and set the strengths.

        Raises:
            ValueError: For the state of another task, or strengths of another number of bands or another grid.
        """
        strengths = torch.tensor(state.get("strengths", 0.0), dtype=torch.float32, device=lr_image.device)
        expected = self._shape(len(lr_image))
        if strengths.shape not in (expected, (0,)):  # nothing yet where the state was taken before the first episode
            raise ValueError(
                f"task {self.name} needs strengths {expected}, the state holds {sorted(state)} with strengths "
                f"{tuple(strengths.shape)}; take a state of the same task with the same options"
            )
        self.start(torch.ones(len(lr_image), dtype=torch.bool, device=lr_image.device), lr_image, generator)
        if strengths.numel():
            self.strengths = strengths

    def _shape(self, n: int) -> tuple[int, ...]:
        """The shape of the strengths of `n` environments."""
        return n, self.n_bands, self.grid_size, self.grid_size


def _over(marked: Tensor, values: Tensor) -> Tensor:
    """`(N,)` in a shape that spreads over `(N, ...)`."""
    return marked.reshape(-1, *(1,) * (values.ndim - 1))
