"""Local credit for metrics that are no means of local values: what each block adds to a small change of the whole.

As in `block_maps`: SR pictures `(K * P, 3, H, W)`, sample after sample, HR pictures `(P, 3, H, W)`, a map
`(K * P, H / 8, W / 8)`. A metric that is a function of sums is replaced by its tangent at the mean over the K samples
of a patch. The mean over a map's blocks is then the metric itself for a single sample, and to first order for several.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from rlsr_env.black_box_metrics import luma, round_to_8bit
from rlsr_env.block_maps import BLOCK

# Wang et al. 2003, sec. 3.2: the exponents of the scales, finest first.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
# Between the windows of a scale, in its own pixels: the finest ones overlap more than credit needs.
STRIDES = (4, 2, 1, 1, 1)


def dtw_map(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """Dynamic time warping: a block has the costs of its own pixels on the best paths of their rows and columns.

    The mean over the blocks is the metric exactly.

    Args:
        sr_image: `(K * P, 3, H, W)` in [0, 1].
        hr_image: `(P, 3, H, W)`.

    Returns:
        `(K * P, H / 8, W / 8)` float32.
    """
    from rlsr_env.dtw import line_shares  # compiled by Numba, which takes its time to be imported

    n_samples = len(sr_image) // len(hr_image)
    sr_luma, hr_luma = luma(sr_image), luma(hr_image.repeat(n_samples, 1, 1, 1))
    batch, height, width = sr_luma.shape
    rows = line_shares(sr_luma.reshape(-1, width), hr_luma.reshape(-1, width)).reshape(batch, height, width)
    sr_luma, hr_luma = sr_luma.swapaxes(1, 2), hr_luma.swapaxes(1, 2)
    columns = line_shares(sr_luma.reshape(-1, height), hr_luma.reshape(-1, height)).reshape(batch, width, height)
    of_pixels = torch.from_numpy((rows + columns.swapaxes(1, 2)) / 2)
    return functional.avg_pool2d(of_pixels[:, None], BLOCK)[:, 0].to(sr_image.device, torch.float32)


def edge_f1_map(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """F1 of edges: with n common and m edge pixels of both pictures together, F = 2 n / m, so dF = (2 dn - F dm) / m.

    Args:
        sr_image: `(K * P, 3, H, W)` in [0, 1].
        hr_image: `(P, 3, H, W)`.

    Returns:
        `(K * P, H / 8, W / 8)` float32.
    """
    from rlsr_env.canny import edge_maps

    n_samples = len(sr_image) // len(hr_image)
    sr_edges = torch.from_numpy(edge_maps(luma(round_to_8bit(sr_image))))
    hr_edges = torch.from_numpy(edge_maps(luma(round_to_8bit(hr_image)))).repeat(n_samples, 1, 1)
    common = 2 * _block_sums(sr_edges & hr_edges).unflatten(0, (n_samples, -1))
    edges = (_block_sums(sr_edges) + _block_sums(hr_edges)).unflatten(0, (n_samples, -1))
    total = edges.sum((2, 3)).mean(0)[:, None, None]
    ratio = torch.where(total > 0, common.sum((2, 3)).mean(0)[:, None, None] / total.clamp(min=1), 1.0)
    n_blocks = edges.shape[2] * edges.shape[3]
    return (ratio + n_blocks * (common - ratio * edges) / total.clamp(min=1)).flatten(0, 1).to(sr_image.device)


def ms_ssim_map(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """MS-SSIM (Wang et al. 2003, eq. 7): the product over scales of mean similarities, each with an exponent.

    d log M is the sum of the exponents times the relative change of each scale's mean. A block has, of each scale, the
    windows whose centres it contains, or at coarse scales the window nearest to its own centre.

    Args:
        sr_image: `(K * P, 3, H, W)` in [0, 1].
        hr_image: `(P, 3, H, W)`, H and W 161 or more.

    Returns:
        `(K * P, H / 8, W / 8)`.
    """
    n_patches, height, width = len(hr_image), *hr_image.shape[-2:]
    relative = sr_image.new_zeros(len(sr_image), 3, height // BLOCK, width // BLOCK)
    whole = sr_image.new_ones(n_patches, 3)
    for level, (exponent, stride) in enumerate(zip(SCALE_WEIGHTS, STRIDES, strict=True)):
        if level:
            sr_image, hr_image = _halved(sr_image), _halved(hr_image)
        similarity = _similarity(sr_image, hr_image, stride, with_luminance=level == len(SCALE_WEIGHTS) - 1)
        # As everywhere, a similarity below zero counts as none.
        mean = similarity.mean((2, 3)).unflatten(0, (-1, n_patches)).mean(0).clamp(min=1e-6)
        rows, columns = (
            _shares(side // BLOCK, n_windows, stride, level).to(similarity)
            for side, n_windows in zip((height, width), similarity.shape[-2:], strict=True)
        )
        change = (rows @ similarity @ columns.T).unflatten(0, (-1, n_patches)) / mean[..., None, None] - 1
        relative += exponent * change.flatten(0, 1)
        whole *= mean**exponent
    return (whole[..., None, None] * (1 + relative.unflatten(0, (-1, n_patches)))).flatten(0, 1).mean(1)


def _similarity(sr_image: Tensor, hr_image: Tensor, stride: int, with_luminance: bool) -> Tensor:
    """Contrast and structure of SSIM in each window, times luminance at the coarsest scale: `(K * P, 3, h, w)`."""
    rows, columns = (_windows(side, stride).to(hr_image) for side in hr_image.shape[-2:])
    hr_image = hr_image.repeat(len(sr_image) // len(hr_image), 1, 1, 1)

    def blurred(image: Tensor) -> Tensor:
        return rows @ image @ columns.T

    sr_mean, hr_mean = blurred(sr_image), blurred(hr_image)
    variance = blurred(sr_image.square()) - sr_mean.square() + blurred(hr_image.square()) - hr_mean.square()
    covariance = blurred(sr_image * hr_image) - sr_mean * hr_mean
    similarity = (2 * covariance + C2) / (variance + C2)
    if with_luminance:
        similarity = similarity * (2 * sr_mean * hr_mean + C1) / (sr_mean.square() + hr_mean.square() + C1)
    return similarity


def _halved(image: Tensor) -> Tensor:
    """The next coarser scale; an odd side gets a border of zeros, as in pytorch-msssim."""
    return functional.avg_pool2d(image, 2, padding=[side % 2 for side in image.shape[-2:]])


@lru_cache(maxsize=32)
def _windows(size: int, stride: int) -> Tensor:
    """`(windows, size)`: Gaussian windows that lie within the picture, one every `stride` pixels."""
    weights = torch.exp(-0.5 * ((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) / SIGMA).square())
    starts = range(0, size - WINDOW + 1, stride)
    matrix = torch.zeros(len(starts), size, dtype=torch.float64)
    for row, start in zip(matrix, starts, strict=True):
        row[start : start + WINDOW] = weights / weights.sum()
    return matrix


@lru_cache(maxsize=64)
def _shares(n_blocks: int, n_windows: int, stride: int, level: int) -> Tensor:
    """`(blocks, windows)`: the mean over the windows centred in a block, or else the nearest of them."""
    centres = (torch.arange(n_windows, dtype=torch.float64) * stride + WINDOW / 2) * 2**level
    inside = (centres // BLOCK == torch.arange(n_blocks)[:, None]).double()
    distance = (centres - (torch.arange(n_blocks, dtype=torch.float64)[:, None] + 0.5) * BLOCK).abs()
    nearest = functional.one_hot(distance.argmin(1), n_windows).double()
    n_inside = inside.sum(1, keepdim=True)
    return torch.where(n_inside > 0, inside / n_inside.clamp(min=1), nearest)


def _block_sums(edges: Tensor) -> Tensor:
    """`(B, H, W)` bool to the number of edge pixels of each block, `(B, H / 8, W / 8)` float32."""
    return functional.avg_pool2d(edges[:, None].float(), BLOCK)[:, 0] * BLOCK**2
