"""LR/HR patch pairs from pictures that are decoded and coded once: a patch is a gather, never a decode."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages

# Columns of a patch index, the record from which a patch can be gathered again at any time.
IMAGE, QUALITY, TOP, LEFT, FLIP = range(5)


def _gradient_energy(lr_image: np.ndarray) -> np.ndarray:
    """Mean absolute luma gradient at each pixel, `(h, w)` float64, in 8-bit levels."""
    luma = lr_image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    vertical, horizontal = np.gradient(luma) if min(luma.shape) > 1 else (np.zeros_like(luma),) * 2
    return np.abs(vertical) + np.abs(horizontal)


def _patch_means(energy: np.ndarray, size: int, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
    """Mean of `energy` over each `size` x `size` patch whose corner is at (top, left), by an integral image."""
    integral = np.zeros((energy.shape[0] + 1, energy.shape[1] + 1))
    integral[1:, 1:] = energy.cumsum(0).cumsum(1)
    total = (
        integral[tops + size, lefts + size]
        - integral[tops, lefts + size]
        - integral[tops + size, lefts]
        + integral[tops, lefts]
    )
    return total / size**2


def _usable(device: torch.device | str) -> torch.device:
    """A device that can hold the pictures."""
    try:
        probe = torch.zeros(1, device=device)
        probe.cpu()  # a device that keeps no numbers, as meta, cannot
        return probe.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); give cpu or cuda") from error


class PatchSource:
    """Aligned LR/HR patches of a set of pictures, on one device.

    Every picture is coded once at each quality and decoded once; all pixels lie in two flat uint8 tensors. Patches are
    drawn by gradient energy (smooth patches teach a decoder little), at any offset, so that the phase of the JPEG's
    8x8 blocks within a patch is random, and in one of the eight flips and rotations.

    Attributes:
        codec: The LR codec (its `quality` is the first of `qualities`).
        qualities: The qualities that patches are drawn from, equally likely.
        lr_patch_size: Side of an LR patch, pixels.
        hr_patch_size: Side of an HR patch, pixels.
        uris: One per picture.
        n_bytes: Bytes of each LR file, `(pictures, qualities)` int64.
        device: Where the pixels are, and the patches will be.
    """

    def __init__(
        self,
        images: DecodedImages,
        codec: LRCodec,
        lr_patch_size: int,
        qualities: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        uniform_share: float = 0.1,
    ) -> None:
        """Code every picture at every quality and index its patches.

        Args:
            images: The decoded pictures, each `(H, W, 3)` uint8, no side shorter than a patch.
            codec: Scale, base codec and downsampling of the LR files.
            lr_patch_size: Side of an LR patch, pixels.
            qualities: JPEG (WebP, AVIF) qualities; the codec's own where not given.
            device: Where to keep the pixels.
            uniform_share: Share of the mean gradient energy that every patch gets besides its own, so that smooth
                patches appear as well.

        Raises:
            ValueError: For a patch size below 1, no quality at all, or a picture smaller than a patch.
        """
        qualities = tuple(qualities) if qualities is not None else (codec.quality,)
        if not qualities:
            raise ValueError("qualities is empty; give at least one quality")
        self.codecs = tuple(replace(codec, quality=quality) for quality in qualities)
        self.codec = self.codecs[0]
        self.qualities = qualities
        self.uris = images.uris
        self.device = _usable(device)
        self._uniform_share = uniform_share
        self._hr_sizes = [image.shape[:2] for image in images.images]
        self._set_size(lr_patch_size)

        with ThreadPoolExecutor() as pool:  # Pillow's codecs release the GIL
            coded = list(pool.map(self._code, images.images))
        self.n_bytes = np.array([sizes for _, sizes in coded], dtype=np.int64)
        self._lr_width = np.array([lr_images[0].shape[1] for lr_images, _ in coded], dtype=np.int64)
        self._hr_width = np.array([image.shape[1] for image in images.images], dtype=np.int64)
        lr_pixels = np.array([[lr.shape[0] * lr.shape[1] for lr in lr_images] for lr_images, _ in coded])
        hr_pixels = np.array([image.shape[0] * image.shape[1] for image in images.images])
        self._lr_start = (np.cumsum(lr_pixels) - lr_pixels.ravel()).reshape(lr_pixels.shape)
        self._hr_start = np.cumsum(hr_pixels) - hr_pixels
        self._lr = self._flat([lr for lr_images, _ in coded for lr in lr_images])
        self._hr = self._flat(list(images.images))
        self._index_patches()

    def resized(self, lr_patch_size: int) -> PatchSource:
        """The same pixels, in patches of another size.

        Args:
            lr_patch_size: Side of an LR patch, pixels.

        Raises:
            ValueError: For a size below 1, or a picture smaller than a patch.
        """
        other = copy.copy(self)
        other._set_size(lr_patch_size)
        other._index_patches()
        return other

    def _set_size(self, lr_patch_size: int) -> None:
        """Take a size of patches, if all pictures are large enough for it."""
        if lr_patch_size < 1:
            raise ValueError(f"lr_patch_size must be 1 or more, got {lr_patch_size}")
        self.lr_patch_size = lr_patch_size
        self.hr_patch_size = lr_patch_size * self.codec.scale
        for uri, (height, width) in zip(self.uris, self._hr_sizes, strict=True):
            if min(height, width) < self.hr_patch_size:
                raise ValueError(
                    f"{uri} is {width}x{height}, smaller than a patch of {self.hr_patch_size} pixels; "
                    f"take a smaller lr_patch_size or leave the picture out"
                )

    def _lr_picture(self, number: int) -> np.ndarray:
        """An LR picture of the first quality, `(h, w, 3)` uint8."""
        start, width = int(self._lr_start[number, 0]), int(self._lr_width[number])
        height = -(-self._hr_sizes[number][0] // self.codec.scale)
        return self._lr[start : start + height * width].reshape(height, width, 3).cpu().numpy()

    def _code(self, hr_image: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
        """LR pictures as they come out of their files, and the files' sizes, one per quality."""
        lr_image = self.codec.downsample(hr_image)
        files = [codec.compress(lr_image) for codec in self.codecs]
        return [self.codec.decode(file) for file in files], [len(file) for file in files]

    def _flat(self, pictures: list[np.ndarray]) -> Tensor:
        """All pixels one after the other, `(pixels, 3)` uint8."""
        return torch.from_numpy(np.concatenate([picture.reshape(-1, 3) for picture in pictures])).to(self.device)

    def _index_patches(self) -> None:
        """Candidate corners on a grid in every picture, and the distribution to draw them from."""
        size, scale = self.lr_patch_size, self.codec.scale
        self._stride = max(1, size // 4)
        picture, top, left, energy = [], [], [], []
        for number, (height, width) in enumerate(self._hr_sizes):
            # The last LR row or column may cover padding where the size is no multiple of the scale: leave it out.
            last_top, last_left = height // scale - size, width // scale - size
            rows, columns = np.arange(0, last_top + 1, self._stride), np.arange(0, last_left + 1, self._stride)
            tops, lefts = np.repeat(rows, columns.size), np.tile(columns, rows.size)
            picture.append(np.full(tops.size, number))
            top.append(tops)
            left.append(lefts)
            energy.append(_patch_means(_gradient_energy(self._lr_picture(number)), size, tops, lefts))
        self._picture, self._top, self._left = (np.concatenate(part) for part in (picture, top, left))
        weights = np.concatenate(energy)
        weights = (
            weights + self._uniform_share * weights.mean() + 1e-12
        )  # the last term: pictures that are flat throughout
        self._cumulative = np.cumsum(weights) / weights.sum()
        self._last_top = np.array([height // scale - size for height, _ in self._hr_sizes])
        self._last_left = np.array([width // scale - size for _, width in self._hr_sizes])

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.uris)

    def draw(self, rng: np.random.Generator, n: int, picture: int | None = None) -> np.ndarray:
        """Choose patches.

        Args:
            rng: The only source of randomness.
            n: How many.
            picture: The number of the picture to choose from; any where not given.

        Returns:
            `(n, 5)` int64 patch index: picture, quality, top and left (LR pixels), flip (0 to 7).

        Raises:
            ValueError: For a picture that the set has not.
        """
        if picture is not None and not 0 <= picture < len(self):
            raise ValueError(f"there is no picture {picture}; the set has {len(self)}, counted from 0")
        return self._chosen(rng.random((n, 5)), None if picture is None else np.full(n, picture))

    def draw_each(self, rngs: Sequence[np.random.Generator], pictures: Sequence[int] | None = None) -> np.ndarray:
        """Choose a patch by each of several sources of randomness, as `draw` would.

        Args:
            rngs: One for each patch.
            pictures: The number of the picture for each of them; any where not given.

        Returns:
            `(len(rngs), 5)` int64 patch index.
        """
        chance = np.array([rng.random(5) for rng in rngs])
        return self._chosen(chance, None if pictures is None else np.array(pictures))

    def _chosen(self, chance: np.ndarray, of: np.ndarray | None) -> np.ndarray:
        """The patch index that random numbers `(n, 5)` in [0, 1) mean, of given pictures `(n,)` or of any."""
        n = len(chance)
        first, last = np.zeros(n, dtype=np.int64), np.full(n, self._picture.size - 1)
        if of is not None:  # the candidates of a picture lie together, so it has a stretch of the distribution
            first, last = np.searchsorted(self._picture, of), np.searchsorted(self._picture, of + 1) - 1
        below = np.where(first > 0, self._cumulative[first - 1], 0.0)
        level = below + chance[:, 0] * (self._cumulative[last] - below)
        candidate = np.searchsorted(self._cumulative, level, side="right").clip(first, last)
        pictures = self._picture[candidate]
        index = np.empty((n, 5), dtype=np.int64)
        index[:, IMAGE] = pictures
        index[:, QUALITY] = (chance[:, 1] * len(self.qualities)).astype(np.int64)
        jitter = (chance[:, 2:4] * self._stride).astype(np.int64)
        index[:, TOP] = np.minimum(self._top[candidate] + jitter[:, 0], self._last_top[pictures])
        index[:, LEFT] = np.minimum(self._left[candidate] + jitter[:, 1], self._last_left[pictures])
        index[:, FLIP] = (chance[:, 4] * 8).astype(np.int64)
        return index

    def check(self, index: np.ndarray) -> None:
        """Refuse a patch index that is not of these pictures.

        Args:
            index: Should be `(n, 5)` int64 with every patch inside its picture.

        Raises:
            ValueError: For another shape or dtype, or an entry out of range.
        """
        if index.ndim != 2 or index.shape[1] != 5 or index.dtype != np.int64:
            raise ValueError(f"a patch index is (n, 5) int64, got {index.shape} {index.dtype}")
        within = (index >= 0).all(axis=1) & (index[:, IMAGE] < len(self)) & (index[:, QUALITY] < len(self.qualities))
        picture = np.where(within, index[:, IMAGE], 0)
        within &= (index[:, TOP] <= self._last_top[picture]) & (index[:, LEFT] <= self._last_left[picture])
        within &= index[:, FLIP] < 8
        if not within.all():
            bad = index[~within][0].tolist()
            raise ValueError(
                f"picture, quality, top, left, flip {bad} is no patch of {self.lr_patch_size} pixels of these "
                f"{len(self)} pictures; was it taken from other pictures or another patch size?"
            )

    def gather(
        self, index: np.ndarray, memory_format: torch.memory_format = torch.channels_last
    ) -> tuple[Tensor, Tensor]:
        """The patches of an index.

        Args:
            index: `(n, 5)` int64, from `draw`.
            memory_format: `torch.channels_last`, which networks take, or `torch.contiguous_format`, which the loops on
                the CPU take.

        Returns:
            LR patches `(n, 3, p, p)` and HR patches `(n, 3, scale * p, scale * p)`, uint8, in that order of memory.

        Raises:
            ValueError: For an index that is not of these pictures (IndexError from PyTorch in channels-last memory).
        """
        picture, quality = index[:, IMAGE], index[:, QUALITY]
        scale = self.codec.scale
        lr_corner = index[:, TOP] * self._lr_width[picture] + index[:, LEFT]
        hr_corner = scale * (index[:, TOP] * self._hr_width[picture] + index[:, LEFT])
        flip = index[:, FLIP]
        lr_start, hr_start = self._lr_start[picture, quality] + lr_corner, self._hr_start[picture] + hr_corner
        if self.device.type == "cpu" and memory_format == torch.contiguous_format:
            from rlsr_env.patch_loops import gathered  # compiled by Numba, which takes its time to be imported

            self.check(index)  # the loops do not
            return (
                gathered(self._lr, lr_start, self._lr_width[picture], flip, self.lr_patch_size),
                gathered(self._hr, hr_start, self._hr_width[picture], flip, self.hr_patch_size),
            )
        lr_image = self._gather(self._lr, lr_start, self._lr_width[picture], flip, self.lr_patch_size)
        hr_image = self._gather(self._hr, hr_start, self._hr_width[picture], flip, self.hr_patch_size)
        return lr_image.contiguous(memory_format=memory_format), hr_image.contiguous(memory_format=memory_format)

    def _gather(self, pixels: Tensor, corner: np.ndarray, width: np.ndarray, flip: np.ndarray, size: int) -> Tensor:
        """Patches `(n, 3, size, size)` from flat pixels, flipped by their own index arithmetic."""
        # A pixel's position is a part that depends on its row in the patch plus one that depends on its column.
        index = np.arange(size)
        along = np.where((flip & 1)[:, None] > 0, size - 1 - index, index) * width[:, None]
        across = np.where((flip & 2)[:, None] > 0, size - 1 - index, index)
        transposed = (flip & 4)[:, None] > 0
        rows = torch.from_numpy(corner[:, None] + np.where(transposed, across, along)).to(self.device)
        columns = torch.from_numpy(np.where(transposed, along, across)).to(self.device)
        position = rows[:, :, None] + columns[:, None, :]
        patches = pixels.index_select(0, position.reshape(-1)).reshape(len(corner), size, size, 3)
        return patches.permute(0, 3, 1, 2)


def to_float(image: Tensor) -> Tensor:
    """uint8 pictures `(B, 3, H, W)` as float32 in [0, 1]; the memory format is kept."""
    if image.device.type == "cpu" and image.dtype == torch.uint8 and image.is_contiguous():
        from rlsr_env.loops import floats_of_levels  # compiled by Numba, which takes its time to be imported

        return floats_of_levels(image)
    return image.float().div_(255.0)
