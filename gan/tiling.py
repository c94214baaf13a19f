"""Pictures of any size through a network, tile by tile, with the result that the whole would have at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gan.generator import Generator, SubPixelLayer
from rlsr_env.patches import to_float
from rlsr_env.resample import KERNELS

Decoder = Callable[[Tensor], Tensor]

DEFAULT_TILE = 512


def grid_step(generator: Generator) -> int:
    """LR pixels along each side of what the network takes as one position: where tiles may begin and end.

    Args:
        generator: The network; where it has no attribute `alignment`, every pixel is a position.
    """
    return int(getattr(generator, "alignment", 1))


def receptive_radius(generator: Generator) -> int:
    """How far beyond a tile LR pixels may lie that its SR pixels depend on: the margin that a tile needs.

    A convolution of kernel k sees (k - 1) / 2 positions to each side; these are `grid_step` LR pixels at first, and
    after an upsampling by s they are s times smaller. The layers come one after another, the skips see no further than
    what they skip, and the base sees as far as its kernel.

    Args:
        generator: The network.

    Returns:
        The radius in LR pixels, a multiple of `grid_step(generator)`, for tiles whose corners are multiples of it.
    """
    step = grid_step(generator)
    factor, radius = Fraction(1, step), Fraction(0)
    for part in (*generator.encoder.modules(), *generator.decoder.layers):
        convolution = part.convolution if isinstance(part, SubPixelLayer) else part
        if isinstance(convolution, nn.Conv2d):
            reach = [step * (k // 2) for k, step in zip(convolution.kernel_size, convolution.dilation, strict=True)]
            radius += max(reach) / factor
        if isinstance(part, SubPixelLayer):
            factor *= part.factor
    base = generator.config.base
    return step * math.ceil(max(radius, 0 if base == "none" else KERNELS[base][1]) / step)


def self_ensemble(decoder: Decoder, step: int = 1) -> Decoder:
    """The mean of a decoder's results on a picture's eight flips and quarter turns, turned back (Timofte et al. 2016).

    Args:
        decoder: From LR to SR pictures `(B, 3, h, w)`.
        step: The decoder's `grid_step`. Pictures are filled up to multiples of it first, so that its grid lies alike in
            all eight, and in a tile as in the whole.

    Returns:
        A decoder that takes eight times as long and sees equally far.
    """

    def decode(lr_image: Tensor) -> Tensor:
        height, width = lr_image.shape[2:]
        padded = functional.pad(lr_image, (0, -width % step, 0, -height % step), mode="replicate")
        total = torch.zeros(())
        for flipped in (False, True):
            for quarter_turns in range(4):
                lr_turned = (padded.flip(3) if flipped else padded).rot90(quarter_turns, (2, 3))
                sr_image = decoder(lr_turned).rot90(-quarter_turns, (2, 3))
                total = total.to(sr_image) + (sr_image.flip(3) if flipped else sr_image)
        scale = total.shape[2] // padded.shape[2]
        return total[..., : scale * height, : scale * width] / 8

    return decode


@dataclass(frozen=True)
class TiledDecoder:
    """A decoder for pictures of any size, in bounded memory.

    Every tile is decoded with a margin of `radius` LR pixels around it, which is then cut off; only at the border of
    the picture there is no margin, as there is none for the whole. Where the GPU has too little memory, tiles of half
    the side are tried, down to a single position of the network's grid.

    Attributes:
        decoder: From `(1, 3, h, w)` float in [0, 1] to `(1, 3, scale * h, scale * w)`.
        scale: SR pixels for each LR pixel along each side.
        radius: How far the decoder sees, in LR pixels; see `receptive_radius`.
        tile: Greatest side of a tile without its margin, in LR pixels; but at least `step`.
        device: Where the decoder is.
        step: Tiles begin and end at multiples of it; see `grid_step`.

    Raises:
        ValueError: If `tile` is below 1.
    """

    decoder: Decoder
    scale: int
    radius: int
    tile: int = DEFAULT_TILE
    device: torch.device | str = "cpu"
    step: int = 1

    def __post_init__(self) -> None:
        """Check the tile."""
        if self.tile < 1:
            raise ValueError(f"tile is a number of pixels of 1 or more, got {self.tile}")

    def __call__(self, lr_image: Tensor) -> Tensor:
        """Decode a picture.

        Args:
            lr_image: `(1, 3, h, w)`, float in [0, 1] or uint8, anywhere.

        Returns:
            `(1, 3, scale * h, scale * w)` float32, on the device of `lr_image`; not clipped.
        """
        height, width = (self.scale * side for side in lr_image.shape[-2:])
        sr_image = torch.empty(1, 3, height, width, device=lr_image.device)
        for top, left, piece in self.pieces(lr_image):
            sr_image[..., top : top + piece.shape[2], left : left + piece.shape[3]] = piece
        return sr_image

    def restore(self, lr_image: np.ndarray, hr_size: tuple[int, int]) -> np.ndarray:
        """Decode a picture as a viewer gets it; no more than a tile of it is ever in floating point.

        Args:
            lr_image: `(h, w, 3)` uint8.
            hr_size: Height and width to cut the result to.

        Returns:
            `(*hr_size, 3)` uint8.

        Raises:
            ValueError: If the decoder returns NaN.
        """
        height, width = hr_size
        sr_image = np.empty((height, width, 3), np.uint8)
        for top, left, piece in self.pieces(torch.from_numpy(lr_image).permute(2, 0, 1)[None]):
            levels = (piece[0, :, : height - top, : width - left].clamp(0, 1) * 255).round()
            if levels.isnan().any():
                raise ValueError("the decoder returned NaN; its weights or the device are damaged")
            rows, columns = levels.shape[1:]
            sr_image[top : top + rows, left : left + columns] = levels.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return sr_image

    def pieces(self, lr_image: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Decode a picture piece by piece.

        Args:
            lr_image: `(1, 3, h, w)`, float in [0, 1] or uint8, anywhere.

        Yields:
            Top and left of each piece in SR pixels, and the piece itself, `(1, 3, H, W)` float32 on `device`. Together
            they are the whole picture; none overlaps another.
        """
        tile = self._whole_steps(self.tile)
        regions = [(0, 0, lr_image.shape[2], lr_image.shape[3])]
        while regions:
            top, left, height, width = regions.pop()
            if max(height, width) > tile:
                rows, columns = (_parts(*side, tile, self.step) for side in ((top, height), (left, width)))
                parts = [(y, x) for y in rows for x in columns]
                regions += [(y, x, h, w) for (y, h), (x, w) in reversed(parts)]
                continue
            try:
                piece = self._decode(lr_image, top, left, height, width)
            except torch.OutOfMemoryError:
                if max(height, width) <= self.step:
                    raise
                piece = None  # what was allocated is still held while the error is handled
            if piece is None:
                tile = self._whole_steps(max(height, width) // 2)
                regions.append((top, left, height, width))
                torch.cuda.empty_cache()
            else:
                yield top * self.scale, left * self.scale, piece

    def _whole_steps(self, side: int) -> int:
        """The greatest multiple of `step` that is no longer, but at least one step."""
        return max(1, side // self.step) * self.step

    @torch.no_grad()
    def _decode(self, lr_image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        """One region, decoded with its margin."""
        above, before = min(top, self.radius), min(left, self.radius)
        window = lr_image[
            ..., top - above : top + height + self.radius, left - before : left + width + self.radius
        ].to(self.device)  # fmt: skip
        sr_window = self.decoder(to_float(window) if window.dtype == torch.uint8 else window)
        rows = slice(self.scale * above, self.scale * (above + height))
        columns = slice(self.scale * before, self.scale * (before + width))
        return sr_window[..., rows, columns].float()


def _parts(start: int, length: int, longest: int, step: int) -> list[tuple[int, int]]:
    """Start and length of about equal parts of whole steps, but for the last, that are no longer than `longest`."""
    n_steps = -(-length // step)
    n_parts = -(-n_steps * step // longest)
    bounds = [start + min(length, n_steps * part // n_parts * step) for part in range(n_parts + 1)]
    return [(bound, following - bound) for bound, following in pairwise(bounds)]
