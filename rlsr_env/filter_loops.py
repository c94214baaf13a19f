"""Filters of many pictures, compiled for the CPU in float32; see `loops`.

A kernel is handed over as a tuple: its length is then part of its type, so that the loop over it is unrolled and what
it adds up stays in a register. Rows are worked on as one long stretch of memory, some at a time, because the rest of a
stretch that does not fill the processor's registers takes as long as the whole of a short one. What is then computed
across the end of a row does not mean anything, and nobody reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsr_env.cores import compiled_exactly
from rlsr_env.loops import Floats, planes, share

# Rows at a time: what is computed of them stays in the innermost cache.
ROWS = 16

Kernel = tuple[float, ...]


def filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter rows and columns, without padding.

    Args:
        image: `(N, C, H, W)` float32, on the CPU.
        kernel: `(K,)` float32, the same for rows and columns; K is at most H and W.

    Returns:
        `(N, C, H - K + 1, W - K + 1)`, contiguous, without a gradient.
    """
    lost = len(kernel) - 1
    n, channels, height, width = image.shape
    result = image.new_empty(n, channels, height - lost, width - lost)
    from_planes, to_planes, weights = planes(image), planes(result), tuple(kernel.tolist())
    share(lambda part: _filter(from_planes[part], weights, to_planes[part]), len(from_planes), image.numel())
    return result


def band_splits(image: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """What each of several blurs takes away from the result of the one before, all of them blurs of the picture itself.

    Args:
        image: `(N, C, H, W)` float32, on the CPU.
        kernels: Of each blur, `(2 * radius + 1,)` float32, the same for rows and columns; the picture is mirrored at
            its border, so H and W are more than the largest radius.

    Returns:
        `(len(kernels), N, C, H, W)`, without a gradient.
    """
    n, channels, height, width = image.shape
    most = max(len(kernel) // 2 for kernel in kernels)
    weights = [tuple(kernel.tolist()) for kernel in kernels]
    bands = image.new_empty(len(kernels), *image.shape)
    from_planes, of_band = planes(image), bands.flatten(1, 2).numpy()
    mirrored = np.empty((n * channels, height + 2 * most, width + 2 * most), np.float32)

    def work(part: slice) -> None:
        _mirror(from_planes[part], mirrored[part], of_band[0, part])
        for k in range(len(kernels)):
            _take_blur_away(mirrored[part], weights[k], of_band[k, part], of_band[k + 1 : k + 2, part])

    share(work, len(from_planes), bands.numel())
    return bands


def mixed(image: Tensor, bands: Tensor, strengths: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pictures, and to each its bands by strengths that differ from cell to cell of a grid.

    Args:
        image: `(N, C, H, W)` float32, on the CPU.
        bands: `(K, N, C, H, W)` float32.
        strengths: `(N, K, g, g)` float32, the same for all C.
        rows: `(H, g)` float32: how much of each row of cells there is in a row of pixels.
        columns: `(W, g)` float32.

    Returns:
        `(N, C, H, W)`, without a gradient.
    """
    result = torch.empty_like(image, memory_format=torch.contiguous_format)
    pictures, mixtures = (tensor.contiguous().detach().numpy() for tensor in (image, result))
    of_band, of_cell = bands.contiguous().detach().numpy(), strengths.contiguous().detach().numpy()
    row_weights, column_weights = rows.numpy(), columns.T.contiguous().numpy()

    def work(part: slice) -> None:
        _mix(pictures, of_band, of_cell, row_weights, column_weights, part.start, part.stop, mixtures)

    share(work, len(pictures), bands.numel())
    return result


@compiled_exactly
def _slide_along(values: Floats, kernel: Kernel, weights: Floats, step: int, result: Floats) -> None:
    """Filter a stretch of values, some values apart: result[i] is the sum over k of kernel[k] * values[i + k * step].

    The kernel is there for its length, and its weights once more as an array, which is faster to read.
    """
    distance = np.uint64(step)  # without a sign: no index can then mean one that is counted from the end
    for i in range(np.uint64(len(result))):
        total = np.float32(0)
        for k in range(len(kernel)):
            total += weights[k] * values[i + np.uint64(k) * distance]
        result[i] = total


@compiled_exactly
def _copy(values: Floats, first: int, n_values: int, copied: Floats, to: int) -> None:
    """Copy a short stretch; an assignment of slices takes longer to begin."""
    source, target = np.uint64(first), np.uint64(to)
    for i in range(np.uint64(n_values)):
        copied[target + i] = values[source + i]


@compiled_exactly
def _copy_backwards(values: Floats, last: int, n_values: int, copied: Floats, to: int) -> None:
    """Copy a short stretch, the last value first."""
    source, target = np.uint64(last), np.uint64(to)
    for i in range(np.uint64(n_values)):
        copied[target + i] = values[source - i]


@compiled_exactly
def _filter(from_planes: Floats, kernel: Kernel, to_planes: Floats) -> None:
    """Filter planes `(M, H, W)`: columns, then rows."""
    _, _, width = from_planes.shape
    _, n_rows, n_columns = to_planes.shape
    weights = np.array(kernel, np.float32)
    column_sums, row_sums = np.empty(ROWS * width, np.float32), np.empty(ROWS * width, np.float32)
    results = to_planes.reshape(-1)
    for plane in range(len(from_planes)):
        values = from_planes[plane].reshape(-1)
        for top in range(0, n_rows, ROWS):
            n_values = min(ROWS, n_rows - top) * width
            _slide_along(values[top * width :], kernel, weights, width, column_sums[:n_values])
            _slide_along(column_sums, kernel, weights, 1, row_sums[: n_values - len(kernel) + 1])
            for row in range(min(ROWS, n_rows - top)):
                _copy(row_sums, row * width, n_columns, results, ((plane * n_rows) + top + row) * n_columns)


@compiled_exactly
def _mirror(from_planes: Floats, mirrored: Floats, copied: Floats) -> None:
    """Planes `(M, H, W)` with a mirrored border, and once more as they are."""
    n_planes, height, width = from_planes.shape
    stride = mirrored.shape[2]
    border = (stride - width) // 2
    values, with_border = from_planes.reshape(-1), mirrored.reshape(-1)
    _copy(values, 0, len(values), copied.reshape(-1), 0)
    for plane in range(n_planes):
        of_plane = plane * mirrored.shape[1] * stride
        for y in range(height):
            source, target = (plane * height + y) * width, of_plane + (border + y) * stride
            _copy(values, source, width, with_border, target + border)
            _copy_backwards(values, source + border, border, with_border, target)
            _copy_backwards(values, source + width - 2, border, with_border, target + border + width)
        for y in range(1, border + 1):
            first, last = of_plane + border * stride, of_plane + (border + height - 1) * stride
            _copy(with_border, first + y * stride, stride, with_border, first - y * stride)
            _copy(with_border, last - y * stride, stride, with_border, last + y * stride)


@compiled_exactly
def _take_blur_away(mirrored: Floats, kernel: Kernel, bands: Floats, next_bands: NDArray[np.float32]) -> None:
    """Blur planes with a mirrored border, take the blur from the bands `(M, H, W)`, and begin the next with it."""
    n_planes, height, width = bands.shape
    stride, border, radius = mirrored.shape[2], (mirrored.shape[1] - height) // 2, len(kernel) // 2
    weights = np.array(kernel, np.float32)
    column_sums, blurred = np.empty(ROWS * stride, np.float32), np.empty(ROWS * stride, np.float32)
    blur = np.empty(ROWS * width, np.float32)
    has_next = len(next_bands) > 0
    band, following = bands.reshape(-1), next_bands.reshape(-1)
    for plane in range(n_planes):
        values = mirrored[plane].reshape(-1)[(border - radius) * (stride + 1) :]
        for top in range(0, height, ROWS):
            n_rows = min(ROWS, height - top)
            n_values = (n_rows - 1) * stride + width
            _slide_along(values[top * stride :], kernel, weights, stride, column_sums[: n_values + 2 * radius])
            _slide_along(column_sums, kernel, weights, 1, blurred[:n_values])
            for row in range(n_rows):
                _copy(blurred, row * stride, width, blur, row * width)
            first = np.uint64((plane * height + top) * width)
            for i in range(np.uint64(n_rows * width)):
                band[first + i] -= blur[i]
            if has_next:
                _copy(blur, 0, n_rows * width, following, (plane * height + top) * width)


@compiled_exactly
def _add_scaled(factor: np.float32, values: Floats, first: int, n_values: int, sums: Floats, to: int) -> None:
    """Add a multiple of a stretch of values to another."""
    source, target = np.uint64(first), np.uint64(to)
    for i in range(np.uint64(n_values)):
        sums[target + i] += factor * values[source + i]


@compiled_exactly
def _add_products(
    factors: Floats, first_factor: int, values: Floats, first: int, n_values: int, sums: Floats, to: int
) -> None:
    """Add the products of two stretches of values to a third."""
    factor, source, target = np.uint64(first_factor), np.uint64(first), np.uint64(to)
    for i in range(np.uint64(n_values)):
        sums[target + i] += factors[factor + i] * values[source + i]


@compiled_exactly
def _mix(
    pictures: NDArray[np.float32], bands: NDArray[np.float32], strengths: NDArray[np.float32], rows: Floats,
    columns: Floats, start: int, stop: int, mixtures: NDArray[np.float32],
) -> None:  # fmt: skip
    """Pictures from `start` to `stop` of `(N, C, H, W)` plus bands `(K, N, C, H, W)` by strengths `(N, K, g, g)`."""
    _, n_colours, height, width = pictures.shape
    _, n_bands, n_cells, _ = strengths.shape
    n_pixels = height * width
    values, results, of_columns = pictures.reshape(-1), mixtures.reshape(-1), columns.reshape(-1)
    spread = np.empty(n_cells * n_bands * width, np.float32)  # strengths of a row of cells, for each column of pixels
    of_row, weights = np.empty(n_bands * width, np.float32), np.empty(n_bands * n_pixels, np.float32)
    for picture in range(start, stop):
        spread[:] = 0
        for cell_row in range(n_cells):
            for k in range(n_bands):
                for cell in range(n_cells):
                    strength = strengths[picture, k, cell_row, cell]
                    _add_scaled(strength, of_columns, cell * width, width, spread, (cell_row * n_bands + k) * width)
        for y in range(height):
            of_row[:] = 0
            for cell_row in range(n_cells):
                if rows[y, cell_row] != 0:
                    _add_scaled(rows[y, cell_row], spread, cell_row * n_bands * width, n_bands * width, of_row, 0)
            for k in range(n_bands):
                _copy(of_row, k * width, width, weights, k * n_pixels + y * width)
        for top in range(0, height, ROWS):
            n_values = min(ROWS, height - top) * width
            for colour in range(n_colours):
                first = (picture * n_colours + colour) * n_pixels + top * width
                _copy(values, first, n_values, results, first)
                for k in range(n_bands):
                    of_band = bands[k].reshape(-1)
                    _add_products(weights, k * n_pixels + top * width, of_band, first, n_values, results, first)
