"""SSIM and its windows, compiled for the CPU in float32; see `loops`, and `filter_loops` for how rows are worked on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsr_env.block_maps import C1, C2, WINDOW_RADIUS
from rlsr_env.cores import compiled_exactly
from rlsr_env.filter_loops import ROWS
from rlsr_env.loops import Floats, planes, share

WINDOW = 2 * WINDOW_RADIUS + 1


def window_statistics(image: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean of a picture under each window, and the weighted variance, on the picture's own scale.

    Args:
        image: `(N, C, H, W)`, float32 in [0, 1] or uint8 levels of 255, on the CPU.
        kernel: The window, `(11,)` float32.

    Returns:
        Two of `(N, C, H - 10, W)`; the last ten columns do not mean anything.
    """
    n, channels, height, width = image.shape
    mean, variance = (torch.empty(n, channels, height - WINDOW + 1, width, dtype=torch.float32) for _ in range(2))
    pictures, means, variances, window = planes(image), planes(mean), planes(variance), kernel.numpy()
    share(lambda part: statistics(pictures[part], window, means[part], variances[part]), len(pictures), image.numel())
    return mean, variance


def similarities(sr_image: Tensor, hr_image: Tensor, mean: Tensor, variance: Tensor, kernel: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004, eq. 13), the mean over all windows and colours.

    Args:
        sr_image: `(N, 3, H, W)`, float32 in [0, 1] or uint8 levels of 255, on the CPU.
        hr_image: The originals, of the same shape and dtype.
        mean: The originals' from `window_statistics`.
        variance: The same.
        kernel: The window, `(11,)` float32.

    Returns:
        `(N,)` float32, without a gradient.
    """
    pictures = [planes(image) for image in (sr_image, hr_image, mean, variance)]
    values, window = np.empty((len(pictures[0]), 1), dtype=np.float64), kernel.numpy()
    share(
        lambda part: similarity(*(of_image[part] for of_image in pictures), window, values[part]),
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
    sr, hr, *kept = (planes(image)[:, 0] for image in (sr_image, hr_image, *results))
    window = kernel.numpy()

    def work(part: slice) -> None:
        _sampled_windows(sr, hr, window, first, stride, part.start, part.stop, *kept)

    share(work, len(sr), sr_image.numel())
    of_value, of_square, of_product = results
    return of_value, of_square, of_product


@compiled_exactly
def _to_floats(picture: NDArray, floats: Floats) -> None:
    """Copy the values of a plane `(L,)`."""
    for i in range(len(picture)):
        floats[i] = np.float32(picture[i])


@compiled_exactly
def statistics(pictures: NDArray, kernel: Floats, means: Floats, variances: Floats) -> None:
    """Mean and variance under each window of pictures `(N, C, H, W)`, both `(N, C, H - 10, W)`."""
    n_pictures, n_colours, height, width = pictures.shape
    n_pixels, n_windows = height * width, (height - WINDOW + 1) * width
    of_pictures, of_means, of_variances = pictures.reshape(-1), means.reshape(-1), variances.reshape(-1)
    values = np.empty(height * width, np.float32)
    sums, squares = np.zeros(ROWS * width + WINDOW, np.float32), np.zeros(ROWS * width + WINDOW, np.float32)
    stride = np.uint64(width)
    for plane in range(n_pictures * n_colours):
        _to_floats(of_pictures[plane * n_pixels : (plane + 1) * n_pixels], values)
        windows = slice(plane * n_windows, (plane + 1) * n_windows)
        mean, variance = of_means[windows], of_variances[windows]
        for top in range(0, height - WINDOW + 1, ROWS):
            n_values = np.uint64(min(ROWS, height - WINDOW + 1 - top) * width)
            first = np.uint64(top * width)
            for i in range(n_values):
                total, square = np.float32(0), np.float32(0)
                for k in range(WINDOW):
                    value = values[first + i + np.uint64(k) * stride]
                    total += kernel[k] * value
                    square += kernel[k] * (value * value)
                sums[i], squares[i] = total, square
            for i in range(n_values):
                total, square = np.float32(0), np.float32(0)
                for k in range(WINDOW):
                    total += kernel[k] * sums[i + np.uint64(k)]
                    square += kernel[k] * squares[i + np.uint64(k)]
                mean[first + i] = total
                variance[first + i] = square - total * total


@compiled_exactly
def similarity(
    sr: NDArray, hr: NDArray, means: Floats, variances: Floats, kernel: Floats, values: NDArray[np.float64]
) -> None:
    """The mean SSIM of each colour of pictures `(N, C, H, W)`, `(N, C)`.

    In the order of `statistics`: where both pictures are the same, variances and covariance must be the same to the
    bit, or on flat pictures their rounding errors show.
    """
    n_pictures, n_colours, height, width = sr.shape
    n_pixels, n_windows = height * width, (height - WINDOW + 1) * width
    of_sr, of_hr, of_means, of_variances = sr.reshape(-1), hr.reshape(-1), means.reshape(-1), variances.reshape(-1)
    n_rows, n_columns = height - WINDOW + 1, width - WINDOW + 1
    sr_values, hr_values = np.empty(height * width, np.float32), np.empty(height * width, np.float32)
    # Under each window: the weighted sums of the values, of their squares, and of their products with the original's.
    sums, squares, products = (
        np.zeros(ROWS * width + WINDOW, np.float32), np.zeros(ROWS * width + WINDOW, np.float32),
        np.zeros(ROWS * width + WINDOW, np.float32),
    )  # fmt: skip
    of_window = np.empty(ROWS * width, np.float32)
    totals = np.empty(n_columns, np.float64)  # of each column: one instruction adds to several
    one_half = np.float32(0.5)
    # SSIM is the same on any scale: levels stay as they are, whole numbers up to 255.
    full = np.float32(255) if sr.itemsize == 1 else np.float32(1)
    c1, c2 = np.float32(C1) * (full * full), np.float32(C2) * (full * full)
    stride = np.uint64(width)
    for plane in range(n_pictures * n_colours):
        _to_floats(of_sr[plane * n_pixels : (plane + 1) * n_pixels], sr_values)
        _to_floats(of_hr[plane * n_pixels : (plane + 1) * n_pixels], hr_values)
        windows = slice(plane * n_windows, (plane + 1) * n_windows)
        hr_means, hr_variances = of_means[windows], of_variances[windows]
        totals[:] = 0
        for top in range(0, n_rows, ROWS):
            n_values = np.uint64(min(ROWS, n_rows - top) * width)
            first = np.uint64(top * width)
            for i in range(n_values):
                total, square, product = np.float32(0), np.float32(0), np.float32(0)
                for k in range(WINDOW):
                    below = first + i + np.uint64(k) * stride
                    value = sr_values[below]
                    total += kernel[k] * value
                    square += kernel[k] * (value * value)
                    product += kernel[k] * (value * hr_values[below])
                sums[i], squares[i], products[i] = total, square, product
            for i in range(n_values):
                mean, square, product = np.float32(0), np.float32(0), np.float32(0)
                for k in range(WINDOW):
                    mean += kernel[k] * sums[i + np.uint64(k)]
                    square += kernel[k] * squares[i + np.uint64(k)]
                    product += kernel[k] * products[i + np.uint64(k)]
                hr_mean = hr_means[first + i]
                mean_square, means_product, hr_mean_square = mean * mean, mean * hr_mean, hr_mean * hr_mean
                # Eq. 13 with halves: (2 a + C1) (2 b + C2) = 4 (a + C1 / 2) (b + C2 / 2).
                quarter = (means_product + one_half * c1) * (product - means_product + one_half * c2)
                luminance = mean_square + hr_mean_square + c1
                of_window[i] = quarter / (luminance * (square - mean_square + hr_variances[first + i] + c2))
            for row in range(min(ROWS, n_rows - top)):
                start = np.uint64(row * width)
                for x in range(np.uint64(n_columns)):
                    totals[x] += of_window[start + x]
        values[plane // n_colours, plane % n_colours] = 4 * totals.sum() / (n_rows * n_columns)


@compiled_exactly
def _sampled_windows(
    sr: Floats, hr: Floats, kernel: Floats, first: int, stride: int, start: int, stop: int,
    of_value: Floats, of_square: Floats, of_product: Floats,
) -> None:  # fmt: skip
    """Weighted sums of planes from `start` to `stop` of `(M, H, W)`; those of HR repeat.

    The loops stand here and in `similarity`: in a function of their own they are up to a third slower.
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
