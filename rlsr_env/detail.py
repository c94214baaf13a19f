"""Control of a picture's detail: a coarse grid of strengths in a few frequency bands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor
from torch.nn import functional

from rlsr_env.filters import gaussian_kernel, slide
from rlsr_env.resample import Upsampling
from rlsr_env.rounding import to_levels
from rlsr_env.tasks import PartRestorer, Restorer, Task, is_number, is_upsampling, pictures_of


def blur(image: Tensor, deviation: float) -> Tensor:
    """Gaussian blur, mirrored at the border.

    Args:
        image: `(B, C, H, W)` float.
        deviation: Standard deviation in pixels, above 0.
    """
    return next(_blurs(image, [deviation]))[1]


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
    from rlsr_env.filter_loops import band_splits  # compiled by Numba, which takes its time to be imported
    from rlsr_env.loops import can_loop

    if can_loop(image):
        return band_splits(image, _kernels(image, scale, n_bands))
    return torch.stack([finer - coarser for finer, coarser in _blurs(image, _deviations(scale, n_bands))], dim=1)


def _deviations(scale: int, n_bands: int) -> list[float]:
    """Of the blurs between bands, HR pixels."""
    return [0.35 * 2**k * scale for k in range(n_bands)]


def _kernels(image: Tensor, scale: int, n_bands: int) -> list[Tensor]:
    """Of the blurs between bands, in the dtype of the picture."""
    deviations = _deviations(scale, n_bands)
    return [gaussian_kernel(*blur, image) for blur in zip(_radii(image, deviations), deviations, strict=True)]


@lru_cache(maxsize=16)
def _joined_kernels(height: int, width: int, scale: int, n_bands: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for pictures of a size, as `filter_loops.split` takes them."""
    from rlsr_env.filter_loops import joined  # compiled by Numba, which takes its time to be imported

    return joined(_kernels(torch.empty(height, width, dtype=torch.float32), scale, n_bands))


def _blurs(image: Tensor, deviations: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """The pictures before each blur and after it; all blurs are of the picture itself."""
    height, width = image.shape[-2:]
    radii = _radii(image, deviations)
    most = max(radii)
    padded = functional.pad(image, (most, most, most, most), mode="reflect")
    before = image
    for radius, deviation in zip(radii, deviations, strict=True):
        first = most - radius
        within = padded[:, :, first : first + height + 2 * radius, first : first + width + 2 * radius]
        after = slide(within, gaussian_kernel(radius, deviation, image))
        yield before, after
        before = after


def _radii(image: Tensor, deviations: Sequence[float]) -> list[int]:
    """Where the Gaussians are cut off: at three deviations, or where the picture's mirrored border ends."""
    return [min(int(3 * deviation + 0.5), image.shape[-2] - 1, image.shape[-1] - 1) for deviation in deviations]


def mix_bands(image: Tensor, bands: Tensor, strengths: Tensor) -> Tensor:
    """The picture with its bands changed: image + sum over k of strength_k * band_k.

    Args:
        image: `(N, 3, H, W)`.
        bands: `(N, K, 3, H, W)`.
        strengths: `(N, K, g, g)`, or `(1, K, g, g)` for all pictures; spread over the picture bilinearly; zero leaves
            the picture exactly as it is, so that to do nothing pays nothing.

    Returns:
        `(N, 3, H, W)`.

    Raises:
        ValueError: For shapes that do not belong together.
    """
    from rlsr_env.filter_loops import mixed as mixed_by_loops  # compiled by Numba, which takes its time to be imported
    from rlsr_env.loops import can_loop

    n, n_bands = bands.shape[:2]
    belong_together = bands.shape == (len(image), n_bands, *image.shape[1:])
    if not belong_together or strengths.shape[:2] not in ((n, n_bands), (1, n_bands)):
        raise ValueError(
            f"pictures {tuple(image.shape)}, bands {tuple(bands.shape)} and strengths {tuple(strengths.shape)} do not "
            "belong together; expected (N, 3, H, W), (N, K, 3, H, W) and (N, K, g, g)"
        )
    strengths = strengths.expand(n, -1, -1, -1)
    rows, columns = (_bilinear_matrix(strengths.shape[-1], size).to(strengths) for size in image.shape[-2:])
    if can_loop(image, bands, strengths):
        return mixed_by_loops(image, bands, strengths, rows.T.contiguous(), columns.T.contiguous())
    spread = rows @ strengths @ columns.T
    mixed = torch.addcmul(image, spread[:, 0, None], bands[:, 0])
    for k in range(1, bands.shape[1]):
        mixed = mixed.addcmul_(spread[:, k, None], bands[:, k])
    return mixed


@lru_cache(maxsize=16)
def _bilinear_matrix(n_cells: int, size: int) -> Tensor:
    """`(size, n_cells)` float64: bilinear interpolation between the cells' centres, constant beyond the outermost."""
    # The cache outlives a caller's inference mode, whose tensors autograd would later refuse.
    with torch.inference_mode(False):
        position = ((torch.arange(size, dtype=torch.float64) + 0.5) * n_cells / size - 0.5).clamp(0, n_cells - 1)
        return (1 - (position[:, None] - torch.arange(n_cells)).abs()).clamp(min=0)


@lru_cache(maxsize=16)
def _bilinear_weights(n_cells: int, size: int) -> np.ndarray:
    """The same in float32, `(n_cells, size)`."""
    return _bilinear_matrix(n_cells, size).float().T.contiguous().numpy()


@lru_cache(maxsize=16)
def _nearest_cells(n_cells: int, size: int) -> Tensor:
    """`(size,)` int64: the cell that each pixel lies in."""
    return torch.arange(size) * n_cells // size


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
        # More than the whole range in one step means nothing more.
        if not is_number(self.max_change) or not 0.0 < self.max_change <= 1e6:
            raise ValueError(f"max_change must be finite and above 0, at most 1e6, got {self.max_change!r}")

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

    def start(self, marked: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor | PartRestorer:
        """Restore the marked patches, split them into bands, and set their strengths to zero."""
        if is_upsampling(generator) and lr_image.device.type == "cpu" and marked.all():
            return self._start_in_parts(lr_image, generator)
        sr_image = _copied(pictures_of(generator, lr_image))
        bands = split_bands(sr_image, sr_image.shape[-1] // lr_image.shape[-1], self.n_bands)
        if self._bands.shape != bands.shape or marked.all():
            self.strengths = torch.zeros(self._shape(len(lr_image)), dtype=torch.float32, device=lr_image.device)
            self._restored, self._bands = sr_image, bands
            return sr_image
        self.strengths = torch.where(_over(marked, self.strengths), 0.0, self.strengths)
        self._restored = torch.where(_over(marked, sr_image), sr_image, self._restored)
        self._bands = torch.where(_over(marked, bands), bands, self._bands)
        return sr_image

    def _start_in_parts(self, lr_image: Tensor, generator: Upsampling) -> PartRestorer:
        """Start all episodes, each part of them when its pictures are asked for."""
        from rlsr_env.filter_loops import split  # compiled by Numba, which takes its time to be imported

        n, channels, height, width = lr_image.shape
        shape = (n, channels, generator.scale * height, generator.scale * width)
        self.strengths = torch.zeros(self._shape(n), dtype=torch.float32)
        # New memory: somebody may hold the last episodes' pictures.
        self._restored = torch.empty(shape, dtype=torch.float32)
        self._bands = torch.empty(n, self.n_bands, *shape[1:], dtype=torch.float32)
        lr_values, restored, bands = lr_image.numpy(), self._restored.numpy(), self._bands.numpy()
        kernels = _joined_kernels(*shape[2:], generator.scale, self.n_bands)

        def start_part(part: slice, sr_image: np.ndarray) -> None:
            generator.write(lr_values[part], sr_image)
            restored[part] = sr_image
            split(sr_image, *kernels, bands[part])

        return PartRestorer(shape, start_part)

    def restore(self, actions: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor | PartRestorer:
        """Change the strengths and mix the bands; the generator itself is not asked again."""
        changes = self.max_change * actions.clamp(-1.0, 1.0).reshape(self.strengths.shape)
        self.strengths = (self.strengths + changes).clamp(self.LOWEST, self.HIGHEST)
        if self._restored.device.type != "cpu":
            return self.mix(self.strengths)
        from rlsr_env.filter_loops import mix  # compiled by Numba, which takes its time to be imported

        weights = [_bilinear_weights(self.grid_size, size) for size in self._restored.shape[-2:]]
        arrays = [tensor.detach().numpy() for tensor in (self._restored, self._bands, self.strengths)]
        return PartRestorer(
            tuple(self._restored.shape),
            lambda part, sr_image: mix(*weights, *(array[part] for array in arrays), sr_image),
        )

    def mix(self, strengths: Tensor) -> Tensor:
        """The current patches with strengths `(N, n_bands, grid_size, grid_size)`; differentiable."""
        return mix_bands(self._restored, self._bands, strengths)

    def observe(self, lr_image: Tensor) -> Tensor:
        """The LR patch, and each band's strengths as a picture: 0 for -1, 255 for +2."""
        cells = to_levels((self.strengths - self.LOWEST) / (self.HIGHEST - self.LOWEST))
        if lr_image.device.type == "cpu":
            from rlsr_env.patch_loops import with_cells  # compiled by Numba, which takes its time to be imported

            return with_cells(lr_image, cells)
        rows, columns = (_nearest_cells(self.grid_size, size).to(lr_image.device) for size in lr_image.shape[-2:])
        return torch.cat([lr_image, cells.index_select(3, columns).index_select(2, rows)], dim=1)

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
        restored = self.start(torch.ones(len(lr_image), dtype=torch.bool, device=lr_image.device), lr_image, generator)
        if not isinstance(restored, Tensor):
            restored.write(slice(None), np.empty(restored.shape, np.float32))
        if strengths.numel():
            self.strengths = strengths

    def _shape(self, n: int) -> tuple[int, ...]:
        """The shape of the strengths of `n` environments."""
        return n, self.n_bands, self.grid_size, self.grid_size


def _copied(image: Tensor) -> Tensor:
    """Pictures as float32 in memory of their own, contiguous: what a generator returns may be the generator's."""
    from rlsr_env.loops import can_loop, copied  # compiled by Numba, which takes its time to be imported

    if can_loop(image):
        return copied(image)
    return image.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _over(marked: Tensor, values: Tensor) -> Tensor:
    """`(N,)` in a shape that spreads over `(N, ...)`."""
    return marked.reshape(-1, *(1,) * (values.ndim - 1))
