"""Filters of many pictures, compiled for the CPU in float32; see `loops`.

A filter works in pieces whose number of weights is known when it is compiled, so that the loop over them is unrolled
and what it adds up stays in a register. Rows are worked on as one long stretch of memory, some at a time, because the
rest of a stretch that does not fill the processor's registers takes as long as the whole of a short one. What is then
computed across the end of a row does not mean anything, and nobody reads it. Indices have no sign where they are added
up: one below zero would be counted from the end, and a loop that looks for such is not turned into wide instructions.
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

# Of a tuple, the length is part of the type.
Length = tuple[int, ...]
ONE, THREE, FIVE, SEVEN, NINE, ELEVEN, SEVENTEEN = (0,), (0,) * 3, (0,) * 5, (0,) * 7, (0,) * 9, (0,) * 11, (0,) * 17


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
    from_planes, to_planes, weights = planes(image), planes(result), kernel.detach().numpy()
    share(lambda part: _filter(from_planes[part], weights, to_planes[part]), len(from_planes), image.numel())
    return result


def band_splits(image: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """What each of several blurs takes away from the result of the one before, all of them blurs of the picture itself.

    Args:
        image: `(N, C, H, W)` float32, on the CPU.
        kernels: Of each blur, `(2 * radius + 1,)` float32, the same for rows and columns; the picture is mirrored at
            its border, so H and W are more than the largest radius.

    Returns:
        `(N, len(kernels), C, H, W)`, contiguous, without a gradient.
    """
    bands = image.new_empty(len(image), len(kernels), *image.shape[1:])
    pictures, of_picture = image.contiguous().detach().numpy(), bands.numpy()
    weights, radii = joined(kernels)
    share(lambda part: split(pictures[part], weights, radii, of_picture[part]), len(pictures), bands.numel())
    return bands


def joined(kernels: Sequence[Tensor]) -> tuple[Floats, NDArray[np.int64]]:
    """The weights of several kernels `(2 * radius + 1,)`, one kernel after another, and their radii."""
    return np.concatenate([kernel.numpy() for kernel in kernels]), np.array([len(kernel) // 2 for kernel in kernels])


def mixed(image: Tensor, bands: Tensor, strengths: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pictures, and to each its bands by strengths that differ from cell to cell of a grid.

    Args:
        image: `(N, C, H, W)` float32, on the CPU.
        bands: `(N, K, C, H, W)` float32.
        strengths: `(N, K, g, g)` float32, the same for all C.
        rows: `(g, H)` float32: how much of each row of cells there is in a row of pixels.
        columns: `(g, W)` float32.

    Returns:
        `(N, C, H, W)`, without a gradient.
    """
    result = torch.empty_like(image, memory_format=torch.contiguous_format)
    arrays = [tensor.contiguous().detach().numpy() for tensor in (image, bands, strengths, result)]
    row_weights, column_weights = rows.numpy(), columns.numpy()
    share(
        lambda part: mix(row_weights, column_weights, *(array[part] for array in arrays)),
        len(image), bands.numel(),
    )  # fmt: skip
    return result


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
def _slide_piece(values: Floats, length: Length, weights: Floats, step: int, result: Floats, is_first: bool) -> None:
    """What some weights make of a stretch of values, added to the result but for the first; for `length`, see above."""
    distance = np.uint64(step)
    for i in range(np.uint64(len(result))):
        total = np.float32(0)
        for k in range(len(length)):
            total += weights[k] * values[i + np.uint64(k) * distance]
        result[i] = total if is_first else result[i] + total


@compiled_exactly
def slide_along(values: Floats, weights: Floats, step: int, result: Floats) -> None:
    """Filter a stretch of values, `step` apart: result[i] is the sum over k of weights[k] * values[i + k * step]."""
    first, n_weights = 0, len(weights)
    while first < n_weights:
        left, is_first = n_weights - first, first == 0
        inside, others = values[first * step :], weights[first:]
        if left >= len(SEVENTEEN):
            _slide_piece(inside, SEVENTEEN, others, step, result, is_first)
            first += len(SEVENTEEN)
        elif left >= len(ELEVEN):
            _slide_piece(inside, ELEVEN, others, step, result, is_first)
            first += len(ELEVEN)
        elif left >= len(NINE):
            _slide_piece(inside, NINE, others, step, result, is_first)
            first += len(NINE)
        elif left >= len(SEVEN):
            _slide_piece(inside, SEVEN, others, step, result, is_first)
            first += len(SEVEN)
        elif left >= len(FIVE):
            _slide_piece(inside, FIVE, others, step, result, is_first)
            first += len(FIVE)
        else:
            _slide_piece(inside, ONE, others, step, result, is_first)
            first += len(ONE)


@compiled_exactly
def _filter(from_planes: Floats, weights: Floats, to_planes: Floats) -> None:
    """Filter planes `(M, 1, H, W)`: columns, then rows."""
    _, _, _, width = from_planes.shape
    _, _, n_rows, n_columns = to_planes.shape
    column_sums, row_sums = np.empty(ROWS * width, np.float32), np.empty(ROWS * width, np.float32)
    results = to_planes.reshape(-1)
    for plane in range(len(from_planes)):
        values = from_planes[plane].reshape(-1)
        for top in range(0, n_rows, ROWS):
            n_values = min(ROWS, n_rows - top) * width
            slide_along(values[top * width :], weights, width, column_sums[:n_values])
            slide_along(column_sums, weights, 1, row_sums[: n_values - len(weights) + 1])
            for row in range(min(ROWS, n_rows - top)):
                _copy(row_sums, row * width, n_columns, results, ((plane * n_rows) + top + row) * n_columns)


@compiled_exactly
def _mirror(values: Floats, first: int, height: int, width: int, border: int, mirrored: Floats) -> None:
    """A plane `(H, W)` that begins at `first`, with a mirrored border."""
    stride = width + 2 * border
    for y in range(height):
        source, target = first + y * width, (border + y) * stride
        _copy(values, source, width, mirrored, target + border)
        _copy_backwards(values, source + border, border, mirrored, target)
        _copy_backwards(values, source + width - 2, border, mirrored, target + border + width)
    top, bottom = border * stride, (border + height - 1) * stride
    for y in range(1, border + 1):
        _copy(mirrored, top + y * stride, stride, mirrored, top - y * stride)
        _copy(mirrored, bottom - y * stride, stride, mirrored, bottom + y * stride)


@compiled_exactly
def split(pictures: Floats, weights: Floats, radii: NDArray[np.int64], bands: Floats) -> None:
    """The bands `(N, K, C, H, W)` of pictures `(N, C, H, W)`; for weights and radii see `joined`."""
    n_pictures, n_colours, height, width = pictures.shape
    n_bands = len(radii)
    border = radii.max()
    stride = width + 2 * border
    n_pixels = height * width
    mirrored = np.empty((height + 2 * border) * stride, np.float32)
    column_sums, blurred = np.empty(ROWS * stride, np.float32), np.empty(ROWS * stride, np.float32)
    before, after = np.empty(n_pixels, np.float32), np.empty(n_pixels, np.float32)
    values, results = pictures.reshape(-1), bands.reshape(-1)
    for plane in range(n_pictures * n_colours):
        _mirror(values, plane * n_pixels, height, width, border, mirrored)
        _copy(values, plane * n_pixels, n_pixels, before, 0)
        first_weight = 0
        for k in range(n_bands):
            radius = radii[k]
            kernel = weights[first_weight : first_weight + 2 * radius + 1]
            first_weight += 2 * radius + 1
            inside = mirrored[(border - radius) * (stride + 1) :]
            for top in range(0, height, ROWS):
                n_rows = min(ROWS, height - top)
                n_values = (n_rows - 1) * stride + width
                slide_along(inside[top * stride :], kernel, stride, column_sums[: n_values + 2 * radius])
                slide_along(column_sums, kernel, 1, blurred[:n_values])
                for row in range(n_rows):
                    _copy(blurred, row * stride, width, after, (top + row) * width)
            picture, colour = plane // n_colours, plane % n_colours
            band = np.uint64(((picture * n_bands + k) * n_colours + colour) * n_pixels)
            for i in range(np.uint64(n_pixels)):
                results[band + i] = before[i] - after[i]
            before, after = after, before


@compiled_exactly
def _add_scaled(factor: np.float32, values: Floats, first: int, n_values: int, sums: Floats, to: int) -> None:
    """Add a multiple of a stretch of values to another."""
    source, target = np.uint64(first), np.uint64(to)
    for i in range(np.uint64(n_values)):
        sums[target + i] += factor * values[source + i]


@compiled_exactly
def _add_bands(
    weights: Floats, length: Length, first: int, pictures: Floats, picture: int, bands: Floats, band: int,
    distance: int, n_pixels: int, mixtures: Floats,
) -> None:  # fmt: skip
    """Add some bands, each by its own weights, to a plane; for `length`, see above."""
    of_weights, of_bands = np.uint64(first), np.uint64(band)
    plane, pixels, apart = np.uint64(picture), np.uint64(n_pixels), np.uint64(distance)
    for i in range(pixels):
        total = pictures[plane + i]
        for k in range(len(length)):
            total += weights[of_weights + np.uint64(k) * pixels + i] * bands[of_bands + np.uint64(k) * apart + i]
        mixtures[plane + i] = total


@compiled_exactly
def mix(rows: Floats, columns: Floats, pictures: Floats, bands: Floats, strengths: Floats, mixtures: Floats) -> None:
    """Pictures `(N, C, H, W)` plus bands `(N, K, C, H, W)` by strengths `(N, K, g, g)`."""
    n_pictures, n_colours, height, width = pictures.shape
    _, n_bands, n_cells, _ = strengths.shape
    n_pixels = height * width
    values, results = pictures.reshape(-1), mixtures.reshape(-1)
    of_bands, of_columns = bands.reshape(-1), columns.reshape(-1)
    spread = np.empty(n_cells * n_bands * width, np.float32)  # strengths of a row of cells, for each column of pixels
    of_row, weights = np.empty(n_bands * width, np.float32), np.empty(n_bands * n_pixels, np.float32)
    for picture in range(n_pictures):
        spread[:] = 0
        for cell_row in range(n_cells):
            for k in range(n_bands):
                for cell in range(n_cells):
                    strength = strengths[picture, k, cell_row, cell]
                    _add_scaled(strength, of_columns, cell * width, width, spread, (cell_row * n_bands + k) * width)
        for y in range(height):
            of_row[:] = 0
            for cell_row in range(n_cells):
                if rows[cell_row, y] != 0:
                    _add_scaled(rows[cell_row, y], spread, cell_row * n_bands * width, n_bands * width, of_row, 0)
            for k in range(n_bands):
                _copy(of_row, k * width, width, weights, k * n_pixels + y * width)
        for colour in range(n_colours):
            first = (picture * n_colours + colour) * n_pixels
            distance, k = n_colours * n_pixels, 0
            source = values
            while k < n_bands:
                band = ((picture * n_bands + k) * n_colours + colour) * n_pixels
                if n_bands - k >= len(THREE):
                    _add_bands(weights, THREE, k * n_pixels, source, first, of_bands, band, distance, n_pixels, results)
                    k += len(THREE)
                else:
                    _add_bands(weights, ONE, k * n_pixels, source, first, of_bands, band, distance, n_pixels, results)
                    k += len(ONE)
                source = results
