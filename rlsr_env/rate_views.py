"""What an agent that chooses the rate sees of a picture: a thumbnail, and how much detail there is at each octave.

An encoder holds the original, so nothing that is computed from it is hidden from this agent. A thumbnail alone would
not do: what a scale loses, and what a quality pays for, lies in the octaves that a thumbnail has lost.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

VIEW_SIZE = 64
N_LUMA_OCTAVES, N_CHROMA_OCTAVES = 5, 3
N_VIEW_CHANNELS = 3 + N_LUMA_OCTAVES + N_CHROMA_OCTAVES
# An RMS in levels of 0 to 255 is stored as a byte, on a logarithmic scale with steps of 2 % at the top.
GREATEST_DETAIL = 128.0


def view_picture(hr_image: np.ndarray, size: int = VIEW_SIZE) -> np.ndarray:
    """Look at a picture as the agent does.

    The picture is divided into `size` x `size` cells. An octave's detail is what the means of 2 x 2 pixels lose, then
    the means of 2 x 2 of those, and so on: octave 1 is what a scale of 2 cannot keep, octaves 1 and 2 what a scale of 4
    cannot keep, and the others are what a quality has to pay for.

    Args:
        hr_image: The original, `(H, W, 3)` uint8.
        size: Cells along each side.

    Returns:
        `(11, size, size)` uint8: R, G and B of the thumbnail, the RMS of the luma's detail in octaves 1 to 5, that of
        the chroma's in octaves 1 to 3, each as `detail_code` has it.

    Raises:
        ValueError: For anything but an RGB picture, or a size below 1.
    """
    if hr_image.ndim != 3 or hr_image.shape[2] != 3 or hr_image.dtype != np.uint8 or hr_image.size == 0:
        raise ValueError(f"a view is of a picture (H, W, 3) uint8, got {hr_image.shape} {hr_image.dtype}")
    if size < 1:
        raise ValueError(f"a view has 1 or more cells along each side, got {size}")
    picture = Image.fromarray(hr_image)
    thumbnail = np.asarray(picture.resize((size, size), Image.Resampling.BOX)).transpose(2, 0, 1)
    planes = torch.from_numpy(np.array(picture.convert("YCbCr"))).permute(2, 0, 1)[None].float()
    details = [
        *_detail_by_octave(planes[:, :1], N_LUMA_OCTAVES, size),
        *_detail_by_octave(planes[:, 1:], N_CHROMA_OCTAVES, size),
    ]
    return np.concatenate([thumbnail, detail_code(torch.cat(details, dim=1))[0].numpy()])


def detail_code(detail: Tensor) -> Tensor:
    """An RMS in levels as a byte: `255 * log(1 + rms) / log(1 + 128)`, rounded."""
    code = 255 * torch.log1p(detail.clamp(0, GREATEST_DETAIL)) / math.log1p(GREATEST_DETAIL)
    return code.round().to(torch.uint8)


def _detail_by_octave(planes: Tensor, n_octaves: int, size: int) -> list[Tensor]:
    """RMS in each cell of what each halving loses, over all planes `(1, C, H, W)`: maps `(1, 1, size, size)`."""
    maps = []
    for _ in range(n_octaves):
        height, width = planes.shape[-2:]
        # An odd last row or column is repeated, so that even a picture of one pixel has all octaves.
        planes = functional.pad(planes, (0, width % 2, 0, height % 2), mode="replicate")
        halved = functional.avg_pool2d(planes, 2)
        # The variance within 2 x 2 pixels, which is the mean of their squares minus the square of their mean.
        energy = (functional.avg_pool2d(planes.square(), 2) - halved.square()).clamp(min=0).sum(dim=1, keepdim=True)
        maps.append(functional.interpolate(energy, (size, size), mode="area").sqrt())
        planes = halved
    return maps
