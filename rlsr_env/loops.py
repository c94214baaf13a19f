"""Loops over the pixels of many pictures, compiled for the CPU in float32: what is done to each value by itself.

What lies between two operations on a picture stays in the processor's innermost cache, where an operation of PyTorch on
a batch writes its result to memory and the next one reads it again: the PSNR takes a tenth of the time. There is a
second reason where several of these loops follow each other: PyTorch's threads go on spinning for a while after each
operation, and hold the cores that the loops' own threads could use.
Every picture is worked on by itself, so its result is the same to the bit in any company.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # vmap's and jvp's tensors have no memory to loop over

from rlsr_env.cores import compiled_exactly, compiled_in_any_order, share_out

# Values for which it pays to wake threads, which takes some hundredths of a millisecond.
WORTH_THREADS = 300_000
# Values of a piece, where a loop takes any number of them.
PIECE = 2**16

Floats = NDArray[np.float32]
Levels = NDArray[np.uint8]


def can_loop(*tensors: Tensor) -> bool:
    """Whether tensors are what these loops take, and no gradient is to be recorded."""
    recording = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not recording and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


def planes(image: Tensor) -> NDArray:
    """Pictures `(N, C, H, W)` as `(N * C, 1, H, W)`: what can be shared out."""
    return image.contiguous().flatten(0, 1).detach().numpy()[:, None]


def share(work: Callable[[slice], None], n_items: int, n_values: int) -> None:
    """Do the work in as many threads as PyTorch would take, where there are values enough."""
    if torch.get_num_threads() == 1 or n_values < WORTH_THREADS:
        work(slice(0, n_items))
    else:
        share_out(work, n_items)


def mean_squares(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """The mean squared difference of each picture.

    Args:
        sr_image: `(N, 3, H, W)` float32, on the CPU.
        hr_image: The originals, of the same shape.

    Returns:
        `(N,)`; differences, squares and sums are in float64.
    """
    sr, hr = (image.contiguous().view(len(image), -1).detach().numpy() for image in (sr_image, hr_image))
    sums = np.empty(len(sr), dtype=np.float64)
    share(lambda part: _squared_difference(sr[part], hr[part], sums[part]), len(sr), sr.size)
    return torch.from_numpy(sums / sr.shape[1])


def rounded_to_8bit(image: Tensor) -> tuple[Tensor, bool]:
    """Clip to [0, 1] and round to multiples of 1/255.

    Args:
        image: Any shape, float32, on the CPU.

    Returns:
        The same shape, contiguous, without a gradient; and whether there may be NaN in `image`, of which nothing is
        said in the first: there is, or infinities of both signs.
    """
    rounded = torch.empty_like(image, memory_format=torch.contiguous_format)
    return rounded, bool(np.isnan(_in_pieces(_round, image, rounded)).any())


def rounded_to_levels(image: Tensor) -> tuple[Tensor, bool]:
    """As `rounded_to_8bit`, but the 256 levels themselves, uint8."""
    levels = torch.empty(image.shape, dtype=torch.uint8)
    return levels, bool(np.isnan(_in_pieces(round_to_levels, image, levels)).any())


def floats_of_levels(levels: Tensor) -> Tensor:
    """Levels of 8 bits as float32 in [0, 1]; any shape, uint8, contiguous, on the CPU."""
    floats = torch.empty_like(levels, dtype=torch.float32)
    _in_pieces(_divide_by_255, levels, floats)
    return floats


def copied(values: Tensor) -> Tensor:
    """The same values, contiguous in memory of their own; any shape, float32, on the CPU."""
    result = torch.empty_like(values, memory_format=torch.contiguous_format)
    _in_pieces(partial(scale, np.float32(1), np.float32(0)), values, result)
    return result


def all_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity; any shape, float32, on the CPU."""
    return not np.isnan(_in_pieces(_zero_times, values)).any()


def _in_pieces(loop: Callable[..., float], *tensors: Tensor) -> NDArray[np.float64]:
    """What a loop over tensors of equally many values returns, piece by piece."""
    rows = [tensor.contiguous().detach().view(-1).numpy() for tensor in tensors]
    n_values = len(rows[0])
    returned = np.zeros(-(-n_values // PIECE))

    def work(part: slice) -> None:
        for number in range(part.start, part.stop):
            returned[number] = loop(*(row[number * PIECE : (number + 1) * PIECE] for row in rows))

    share(work, len(returned), n_values)
    return returned


@compiled_in_any_order
def _squared_difference(sr: Floats, hr: Floats, sums: NDArray[np.float64]) -> None:
    """The sum of squared differences of pictures `(N, L)`."""
    n_pictures, length = sr.shape
    for picture in range(n_pictures):
        total = 0.0
        for i in range(length):
            difference = np.float64(sr[picture, i]) - np.float64(hr[picture, i])
            total += difference * difference
        sums[picture] = total


@compiled_in_any_order
def squared_level_difference(sr: Levels, hr: Levels, sums: NDArray[np.float64]) -> None:
    """The sum of squared differences of pictures `(N, L)`, in levels."""
    n_pictures, length = sr.shape
    for picture in range(n_pictures):
        total = np.int64(0)
        for i in range(length):
            difference = np.int32(sr[picture, i]) - np.int32(hr[picture, i])
            total += difference * difference
        sums[picture] = total


@compiled_in_any_order
def _round(values: Floats, rounded: Floats) -> np.float32:
    """Clip and round values `(L,)`; returns their sum."""
    total = np.float32(0)
    for i in range(len(values)):
        total += values[i]
        clipped = min(max(values[i], np.float32(0)), np.float32(1))
        rounded[i] = np.rint(clipped * np.float32(255)) / np.float32(255)
    return total


@compiled_in_any_order
def round_to_levels(values: Floats, levels: Levels) -> np.float32:
    """Clip and round values `(L,)` to levels; returns their sum."""
    total = np.float32(0)
    for i in range(len(values)):
        total += values[i]
        clipped = min(max(values[i], np.float32(0)), np.float32(1))
        levels[i] = np.uint8(np.rint(clipped * np.float32(255)))
    return total


@compiled_exactly
def _divide_by_255(levels: Levels, floats: Floats) -> float:
    """Levels `(L,)` in [0, 1]."""
    for i in range(len(levels)):
        floats[i] = np.float32(levels[i]) / np.float32(255)
    return 0.0


@compiled_exactly
def scale(factor: np.float32, offset: np.float32, values: Floats, result: Floats) -> float:
    """Values `(L,)` times a factor, plus an offset."""
    for i in range(len(values)):
        result[i] = factor * values[i] + offset
    return 0.0


@compiled_in_any_order
def _zero_times(values: Floats) -> np.float32:
    """The sum of values `(L,)`, each times zero: NaN where one of them is NaN or infinite."""
    total = np.float32(0)
    for i in range(len(values)):
        total += values[i] * np.float32(0)
    return total
