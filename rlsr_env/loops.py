"""Loops over the pixels of many pictures, compiled for the CPU in float32.

What lies between two operations on a picture stays in the processor's innermost cache, where an operation of PyTorch on
a batch writes its result to memory and the next one reads it again: SSIM takes a fourth, the PSNR a tenth of the time.
Every picture, and every colour of it, is worked on by itself, so its result is the same to the bit in any company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsr_env.block_maps import C1, C2, WINDOW_RADIUS
from rlsr_env.cores import compiled_exactly, compiled_in_any_order, share_out

# Values for which it pays to start threads, which takes a tenth of a millisecond.
WORTH_THREADS = 500_000
WINDOW = 2 * WINDOW_RADIUS + 1

Floats = NDArray[np.float32]


def can_loop(*tensors: Tensor) -> bool:
    """Whether tensors are what these loops take, and no gradient is to be recorded."""
    recording = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not recording and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


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
    planes, filtered_planes, weights = _planes(image), _planes(result), kernel.detach().numpy()
    _share(lambda part: _filter(planes[part], weights, filtered_planes[part]), len(planes), image.numel())
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
    bands = image.new_empty(len(kernels), *image.shape)
    planes, weights = _planes(image), np.concatenate([kernel.numpy() for kernel in kernels])
    radii = np.array([len(kernel) // 2 for kernel in kernels])
    band_planes = bands.flatten(1, 2).numpy()

    def work(part: slice) -> None:
        _split(planes, weights, radii, part.start, part.stop, band_planes)

    _share(work, len(planes), bands.numel())
    return bands


def weighted_sums(image: Tensor, bands: Tensor, weights: Tensor) -> Tensor:
    """Pictures, and to each its bands, each pixel by its own weight.

    Args:
        image: `(N, C, H, W)` float32, on the CPU.
        bands: `(K, N, C, H, W)` float32.
        weights: `(N, K, H, W)` float32, the same for all C.

    Returns:
        `(N, C, H, W)`, without a gradient.
    """
    result = torch.empty_like(image, memory_format=torch.contiguous_format)
    planes, summed = _planes(image), _planes(result)
    band_planes, weight_planes = bands.contiguous().flatten(1, 2).numpy(), weights.contiguous().numpy()

    def work(part: slice) -> None:
        _add_weighted(planes, band_planes, weight_planes, part.start, part.stop, summed)

    _share(work, len(planes), bands.numel())
    return result


def similarities(
    sr_image: Tensor, hr_image: Tensor, mean: Tensor, luminance: Tensor, contrast: Tensor, kernel: Tensor
) -> Tensor:
    """SSIM (Wang et al. 2004, eq. 13), the mean over all windows and colours.

    Args:
        sr_image: `(N, 3, H, W)` float32, on the CPU.
        hr_image: The originals, of the same shape.
        mean: Of the originals under each window, `(N, 3, H - 10, W - 10)`.
        luminance: Its square plus C1, of the same shape.
        contrast: The originals' variance under each window plus C2, of the same shape.
        kernel: The window, `(11,)`.

    Returns:
        `(N,)` float32, without a gradient.
    """
    pictures = [_planes(image) for image in (sr_image, hr_image, mean, luminance, contrast)]
    values = np.empty(len(pictures[0]), dtype=np.float64)
    window = kernel.numpy()
    _share(
        lambda part: _similarity(*(planes[part] for planes in pictures), window, values[part]),
        len(values), 3 * sr_image.numel(),
    )  # fmt: skip
    return torch.from_numpy(values.reshape(len(sr_image), -1).mean(1)).float()


def sampled_windows(
    sr_image: Tensor, hr_image: Tensor, kernel: Tensor, first: int, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums under windows some pixels apart: of the values, of their squares, of their products with HR's.

    Args:
        sr_image: `(K * P, C, H, W)` float32, on the CPU: K samples of each of P patches, sample after sample.
        hr_image: `(P, C, H, W)` float32.
        kernel: The window, `(11,)`, the same for rows and columns.
        first: Where the first window begins, from the top and from the left, pixels.
        stride: From one window to the next, pixels.

    Returns:
        Three of `(K * P, C, rows, columns)`, without a gradient.
    """
    n, channels, height, width = sr_image.shape
    rows, columns = (len(range(first, side - WINDOW + 1, stride)) for side in (height, width))
    results = [sr_image.new_empty(n, channels, rows, columns) for _ in range(3)]
    sr, hr, window, kept = _planes(sr_image), _planes(hr_image), kernel.numpy(), [_planes(result) for result in results]

    def work(part: slice) -> None:
        _sampled_windows(sr, hr, window, first, stride, part.start, part.stop, *kept)

    _share(work, len(sr), sr_image.numel())
    of_value, of_square, of_product = results
    return of_value, of_square, of_product


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
    _share(lambda part: _squared_difference(sr[part], hr[part], sums[part]), len(sr), sr_image.numel())
    return torch.from_numpy(sums / sr.shape[1])


def rounded_to_8bit(image: Tensor) -> tuple[Tensor, bool]:
    """Clip to [0, 1] and round to multiples of 1/255.

    Args:
        image: Any shape, float32, on the CPU.

    Returns:
        The same shape, contiguous, without a gradient; and whether there may be NaN in `image`, of which nothing is
        said in the first: there is, or infinities of both signs.
    """
    result = torch.empty_like(image, memory_format=torch.contiguous_format)
    rows, rounded_rows = (tensor.contiguous().detach().view(-1).numpy() for tensor in (image, result))
    sums = np.zeros(len(rows) and 1 + (len(rows) - 1) // WORTH_THREADS)

    def work(part: slice) -> None:
        for number in range(part.start, part.stop):
            piece = slice(number * WORTH_THREADS, (number + 1) * WORTH_THREADS)
            sums[number] = _round(rows[piece], rounded_rows[piece])

    _share(work, len(sums), image.numel())
    return result, bool(np.isnan(sums).any())


def _planes(image: Tensor) -> Floats:
    """Pictures `(N, C, H, W)` as `(N * C, H, W)`."""
    return image.contiguous().flatten(0, 1).detach().numpy()


def _share(work: Callable[[slice], None], n_items: int, n_values: int) -> None:
    """Do the work in as many threads as PyTorch would take."""
    if torch.get_num_threads() == 1 or n_values < WORTH_THREADS:
        work(slice(0, n_items))
    else:
        share_out(work, n_items)


@compiled_exactly
def _filter(planes: Floats, kernel: Floats, result: Floats) -> None:
    """Filter planes `(M, H, W)`: columns, then rows."""
    for plane in range(len(planes)):
        _filter_plane(planes[plane], 0, kernel, result[plane])


@compiled_exactly
def _filter_plane(plane: Floats, first: int, kernel: Floats, result: Floats) -> None:
    """Filter a plane without its outermost `first` rows and columns; those that are beyond the result do not matter."""
    height, width = result.shape
    size = len(kernel)
    column_sums = np.empty(width + size - 1, np.float32)
    for top in range(height):
        column_sums[:] = 0
        for k in range(size):
            weight, above = kernel[k], plane[first + top + k, first:]
            for x in range(width + size - 1):
                column_sums[x] += weight * above[x]
        row = result[top]
        row[:] = 0
        for k in range(size):
            for x in range(width):
                row[x] += kernel[k] * column_sums[x + k]


@compiled_exactly
def _split(
    planes: Floats, weights: Floats, radii: NDArray[np.int64], start: int, stop: int, bands: NDArray[np.float32]
) -> None:
    """The bands `(K, M, H, W)` of planes from `start` to `stop` of `(M, H, W)`; the kernels follow each other."""
    _, height, width = planes.shape
    most = radii.max()
    mirrored = np.empty((height + 2 * most, width + 2 * most), np.float32)
    blurred = np.empty((height, width), np.float32)
    for plane in range(start, stop):
        for y in range(height + 2 * most):
            inside = abs(y - most)
            inside = inside if inside < height else 2 * (height - 1) - inside
            mirrored[y, most : most + width] = planes[plane, inside]
            for x in range(most):
                mirrored[y, x] = planes[plane, inside, most - x]
                mirrored[y, most + width + x] = planes[plane, inside, width - 2 - x]
        first_weight = 0
        for k in range(len(radii)):
            size = 2 * radii[k] + 1
            kernel = weights[first_weight : first_weight + size]
            first_weight += size
            band = bands[k, plane]
            if k == 0:
                band[:] = planes[plane]
            else:
                band[:] = blurred
            _filter_plane(mirrored, most - radii[k], kernel, blurred)
            for y in range(height):
                for x in range(width):
                    band[y, x] -= blurred[y, x]


@compiled_exactly
def _add_weighted(
    planes: Floats, bands: NDArray[np.float32], weights: NDArray[np.float32], start: int, stop: int, result: Floats
) -> None:
    """Planes from `start` to `stop` of `(M, H, W)` plus their bands `(K, M, H, W)` by weights `(N, K, H, W)`."""
    _, height, width = planes.shape
    n_colours = len(planes) // len(weights)
    for plane in range(start, stop):
        of_picture = weights[plane // n_colours]
        result[plane] = planes[plane]
        for k in range(len(bands)):
            for y in range(height):
                for x in range(width):
                    result[plane, y, x] += of_picture[k, y, x] * bands[k, plane, y, x]


@compiled_exactly
def _similarity(
    sr: Floats, hr: Floats, hr_mean: Floats, luminance: Floats, contrast: Floats, kernel: Floats,
    values: NDArray[np.float64],
) -> None:  # fmt: skip
    """The mean SSIM of planes `(M, H, W)`.

    In the order of `_filter` and of `StructuralSimilarity.originals`: where both pictures are the same, variances and
    covariance must be the same to the bit, or on flat pictures their rounding errors show.
    """
    n_planes, height, width = sr.shape
    # Under each window: the weighted sums of the values, of their squares, and of their products with the original's.
    sums, squares, products = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    n_rows, n_columns = height - WINDOW + 1, width - WINDOW + 1
    totals = np.empty(n_columns, np.float64)  # of each column: one instruction adds to several
    one_half = np.float32(0.5)
    c1, c2 = one_half * np.float32(C1), one_half * np.float32(C2)
    for plane in range(n_planes):
        totals[:] = 0
        for top in range(n_rows):
            for x in range(width):
                total, square, product = np.float32(0), np.float32(0), np.float32(0)
                for k in range(WINDOW):
                    value = sr[plane, top + k, x]
                    total += kernel[k] * value
                    square += kernel[k] * (value * value)
                    product += kernel[k] * (value * hr[plane, top + k, x])
                sums[x], squares[x], products[x] = total, square, product
            for x in range(n_columns):
                mean, square, product = np.float32(0), np.float32(0), np.float32(0)
                for k in range(WINDOW):
                    mean += kernel[k] * sums[x + k]
                    square += kernel[k] * squares[x + k]
                    product += kernel[k] * products[x + k]
                means = mean * hr_mean[plane, top, x]
                # Eq. 13 with halves: (2 a + C1) (2 b + C2) = 4 (a + C1 / 2) (b + C2 / 2).
                quarter = (means + c1) * (product - means + c2)
                mean_square = mean * mean
                totals[x] += quarter / (
                    (luminance[plane, top, x] + mean_square) * (square - mean_square + contrast[plane, top, x])
                )
        values[plane] = 4 * totals.sum() / (n_rows * n_columns)


@compiled_exactly
def _sampled_windows(
    sr: Floats, hr: Floats, kernel: Floats, first: int, stride: int, start: int, stop: int,
    of_value: Floats, of_square: Floats, of_product: Floats,
) -> None:  # fmt: skip
    """Weighted sums of planes from `start` to `stop` of `(M, H, W)`; those of HR repeat.

    The loops stand here and in `_similarity`: in a function of their own they are up to a third slower.
    """
    width = sr.shape[2]
    _, n_rows, n_columns = of_value.shape
    sums, squares, products = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for plane in range(start, stop):
        hr_plane = plane % len(hr)
        for row in range(n_rows):
            top = first + row * stride
            for x in range(width):
                total, square, product = np.float32(0), np.float32(0), np.float32(0)
                for k in range(WINDOW):
                    value = sr[plane, top + k, x]
                    total += kernel[k] * value
                    square += kernel[k] * (value * value)
                    product += kernel[k] * (value * hr[hr_plane, top + k, x])
                sums[x], squares[x], products[x] = total, square, product
            for column in range(n_columns):
                left = first + column * stride
                total, square, product = np.float32(0), np.float32(0), np.float32(0)
                for k in range(WINDOW):
                    total += kernel[k] * sums[left + k]
                    square += kernel[k] * squares[left + k]
                    product += kernel[k] * products[left + k]
                of_value[plane, row, column] = total
                of_square[plane, row, column] = square
                of_product[plane, row, column] = product


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
def _round(values: Floats, rounded: Floats) -> np.float32:
    """Clip and round values `(L,)`; returns their sum."""
    total = np.float32(0)
    for i in range(len(values)):
        total += values[i]
        clipped = min(max(values[i], np.float32(0)), np.float32(1))
        rounded[i] = np.rint(clipped * np.float32(255)) / np.float32(255)
    return total
