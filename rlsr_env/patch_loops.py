"""Gathering patches and enlarging them, compiled for the CPU; see `loops` and `filter_loops`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsr_env.cores import compiled_exactly
from rlsr_env.filter_loops import slide_along
from rlsr_env.loops import Floats, Levels, planes, share

Numbers = NDArray[np.int64]


def gathered(pixels: Tensor, corner: Numbers, width: Numbers, flip: Numbers, size: int) -> Tensor:
    """Square patches of pictures whose pixels lie one after the other.

    Args:
        pixels: `(pixels, 3)` uint8, on the CPU.
        corner: Where the top left pixel of each patch is, `(n,)`.
        width: Of the picture that each patch is from, `(n,)`.
        flip: 0 to 7: 1 turns a patch upside down, 2 exchanges left and right, 4 then rows and columns.
        size: Side of a patch, pixels.

    Returns:
        `(n, 3, size, size)` uint8, contiguous.
    """
    patches = torch.empty(len(corner), 3, size, size, dtype=torch.uint8)
    values, gathered_values = pixels.numpy().reshape(-1), patches.numpy()

    def work(part: slice) -> None:
        _gather(values, corner[part], width[part], flip[part], gathered_values[part])

    share(work, len(corner), patches.numel())
    return patches


def upsampled(image: Tensor, weights: Floats, row_factors: Floats, column_factors: Floats) -> Tensor:
    """Pictures enlarged by an integer factor with a kernel that is the same for rows and columns.

    Args:
        image: `(N, C, h, w)` float32, on the CPU.
        weights: `(scale, taps)`: of each of the `scale` pixels that a pixel becomes, how much it takes from the pixel
            and its neighbours; an odd number.
        row_factors: `(scale, h)`: what sums are multiplied by, because some neighbours are missing at the border.
        column_factors: `(scale, w)`.

    Returns:
        `(N, C, scale * h, scale * w)`, without a gradient.
    """
    n, channels, height, width = image.shape
    scale = len(weights)
    result = image.new_empty(n, channels, scale * height, scale * width)
    from_planes, to_planes = planes(image), planes(result)

    def work(part: slice) -> None:
        enlarge(from_planes[part], weights, row_factors, column_factors, to_planes[part])

    share(work, len(from_planes), result.numel())
    return result


def with_cells(image: Tensor, cells: Tensor) -> Tensor:
    """Pictures with more channels, each the cells of a grid spread over the picture.

    Args:
        image: `(N, C, H, W)` uint8, on the CPU.
        cells: `(N, K, g, g)` uint8; pixel x of W lies in cell x * g // W.

    Returns:
        `(N, C + K, H, W)` uint8.
    """
    n, channels, height, width = image.shape
    result = image.new_empty(n, channels + cells.shape[1], height, width)
    pictures, of_cells, results = (tensor.contiguous().numpy() for tensor in (image, cells, result))
    share(lambda part: _add_cells(pictures[part], of_cells[part], results[part]), n, result.numel())
    return result


@compiled_exactly
def _add_cells(pictures: NDArray[np.uint8], cells: NDArray[np.uint8], results: NDArray[np.uint8]) -> None:
    """Pictures `(N, C, H, W)` and cells `(N, K, g, g)` as `(N, C + K, H, W)`."""
    n_pictures, channels, height, width = pictures.shape
    _, n_grids, n_cells, _ = cells.shape
    row = np.empty(width, np.uint8)
    for picture in range(n_pictures):
        values, copied = pictures[picture].reshape(-1), results[picture].reshape(-1)
        for i in range(np.uint64(len(values))):
            copied[i] = values[i]
        for k in range(n_grids):
            for cell_row in range(n_cells):
                for cell in range(n_cells):
                    for x in range(-(-cell * width // n_cells), -(-(cell + 1) * width // n_cells)):
                        row[x] = cells[picture, k, cell_row, cell]
                for y in range(-(-cell_row * height // n_cells), -(-(cell_row + 1) * height // n_cells)):
                    start = np.uint64(((channels + k) * height + y) * width)
                    for x in range(np.uint64(width)):
                        copied[start + x] = row[x]


@compiled_exactly
def _take_colours(pixels: Levels, first: int, n_pixels: int, values: Levels, to: int, distance: int) -> None:
    """Take pixels that follow each other apart into red, green and blue, each so many values after the other."""
    for x in range(n_pixels):
        pixel = first + np.uint64(3) * x
        values[to + x] = pixels[pixel]
        values[distance + to + x] = pixels[pixel + np.uint64(1)]
        values[distance + distance + to + x] = pixels[pixel + np.uint64(2)]


@compiled_exactly
def _gather(pixels: Levels, corners: Numbers, widths: Numbers, flips: Numbers, patches: NDArray[np.uint8]) -> None:
    """Patches `(n, 3, size, size)`."""
    size = patches.shape[2]
    n_values, n_row, row = np.uint64(size * size), np.uint64(size), np.empty(3 * size, np.uint8)
    for patch in range(len(patches)):
        flip, width = flips[patch], widths[patch]
        down, right = width, 1
        first = corners[patch]
        if flip & 1:
            first, down = first + (size - 1) * width, -width
        if flip & 2:
            first, right = first + size - 1, -1
        if flip & 4:
            down, right = right, down
        values = patches[patch].reshape(-1)
        for y in range(size):
            start, pixel = np.uint64(y * size), 3 * (first + y * down)
            if right == 1:
                _take_colours(pixels, np.uint64(pixel), n_row, values, start, n_values)
            elif right == -1:
                _take_colours(pixels, np.uint64(pixel - 3 * (size - 1)), n_row, row, np.uint64(0), n_row)
                for colour in range(np.uint64(3)):
                    last = colour * n_row + n_row - np.uint64(1)
                    for x in range(n_row):
                        values[colour * n_values + start + x] = row[last - x]
            else:
                for x in range(n_row):
                    of_pixel = np.uint64(pixel + np.int64(x) * 3 * right)
                    values[start + x] = pixels[of_pixel]
                    values[n_values + start + x] = pixels[of_pixel + np.uint64(1)]
                    values[n_values + n_values + start + x] = pixels[of_pixel + np.uint64(2)]


@compiled_exactly
def enlarge(
    pictures: Floats, weights: Floats, row_factors: Floats, column_factors: Floats, enlarged_pictures: Floats
) -> None:
    """Pictures `(N, C, h, w)` to `(N, C, scale * h, scale * w)`: rows, then columns, both with zeros around."""
    n_pictures, n_colours, height, width = pictures.shape
    from_planes, to_planes = pictures.reshape(-1), enlarged_pictures.reshape(-1)
    scale, taps = weights.shape
    border = taps // 2
    wide, stride = scale * width, width + 2 * border
    padded = np.zeros(height * stride + 2 * border, np.float32)
    filtered = np.empty(height * max(stride, wide), np.float32)
    enlarged = np.zeros((height + 2 * border) * wide, np.float32)
    for plane in range(n_pictures * n_colours):
        values = from_planes[plane * height * width : (plane + 1) * height * width]
        results = to_planes[plane * scale * height * wide : (plane + 1) * scale * height * wide]
        for y in range(height):
            source, target = np.uint64(y * width), np.uint64(y * stride + border)
            for x in range(np.uint64(width)):
                padded[target + x] = values[source + x]
        for phase in range(scale):
            slide_along(padded, weights[phase], 1, filtered[: height * stride])
            factors = column_factors[phase]
            for y in range(height):
                source, target = np.uint64(y * stride), np.uint64((border + y) * wide + phase)
                for x in range(np.uint64(width)):
                    enlarged[target + x * np.uint64(scale)] = factors[x] * filtered[source + x]
        for phase in range(scale):
            slide_along(enlarged, weights[phase], wide, filtered[: height * wide])
            for y in range(height):
                factor = row_factors[phase, y]
                source, target = np.uint64(y * wide), np.uint64((scale * y + phase) * wide)
                for x in range(np.uint64(wide)):
                    results[target + x] = factor * filtered[source + x]
