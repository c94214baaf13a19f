"""Local credit for HaarPSI (Reisenhofer, Bosse, Kutyniok and Wiegand 2018), as in `credit_maps`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlsr_env.block_maps import BLOCK

# There, sec. 2.3: the constant of a similarity (for values up to 255) and the slope of the logistic function.
SIMILARITY_CONSTANT, SLOPE = 30.0, 4.2
# Rows: luma and the two colour differences, of R, G and B.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
N_SCALES = 3


def haarpsi_map(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """HaarPSI by blocks.

    It is a monotonic function of R = sum(w s) / sum(w), with s a local similarity and w a local weight. Hence
    dR = sum(dn - R dw) / sum(w), n = w s: each block has its part of the sum, times the derivative of the function.

    Args:
        sr_image: `(K * P, 3, H, W)` in [0, 1].
        hr_image: `(P, 3, H, W)`, H and W multiples of 8.

    Returns:
        `(K * P, H / 8, W / 8)`.
    """
    n_patches = len(hr_image)
    n_samples = len(sr_image) // n_patches
    sr_edges, sr_colours = _features(sr_image)
    hr_edges, hr_colours = (features.repeat(n_samples, 1, 1, 1) for features in _features(hr_image))
    # Rows, then columns, of each scale, finest first; the coarsest are the weights.
    edges = _similarity(sr_edges[:, :-2], hr_edges[:, :-2]).unflatten(1, (-1, 2)).mean(1)
    weights = torch.maximum(sr_edges[:, -2:], hr_edges[:, -2:])
    colours = _similarity(sr_colours, hr_colours).mean(1, keepdim=True)
    similarity = torch.sigmoid(SLOPE * torch.cat([edges, colours], 1))
    weights = torch.cat([weights, weights.mean(1, keepdim=True)], 1)

    # Half a picture's pixels a side, so a block has 4 x 4.
    of_blocks = [
        functional.avg_pool2d(part.sum(1, keepdim=True), BLOCK // 2)[:, 0] for part in (weights * similarity, weights)
    ]
    numerator, denominator = (part.unflatten(0, (n_samples, n_patches)) for part in of_blocks)
    total = denominator.mean((2, 3)).mean(0)[:, None, None].clamp(min=1e-12)
    ratio = (numerator.mean((2, 3)).mean(0)[:, None, None] / total).clamp(0.5, 1 - 1e-6)
    root = torch.logit(ratio) / SLOPE
    slope = 2 * root / (SLOPE * ratio * (1 - ratio))
    return (root.square() + slope * (numerator - ratio * denominator) / total).flatten(0, 1)


def _similarity(one: Tensor, other: Tensor) -> Tensor:
    """How alike two magnitudes are, 1 where equal."""
    return (2 * one * other + SIMILARITY_CONSTANT) / (one.square() + other.square() + SIMILARITY_CONSTANT)


def _features(image: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes of Haar's wavelets of luma, `(B, 2 * scales, h, w)`, and of the blurred colour differences."""
    yiq = torch.einsum("bchw,yc->byhw", 255 * image, image.new_tensor(YIQ))
    halved = functional.avg_pool2d(yiq, 2)
    magnitudes = []
    for scale in range(1, N_SCALES + 1):
        size = 2**scale
        rows = image.new_full((size, size), 1.0 / size)
        rows[size // 2 :] *= -1
        kernels = torch.stack([rows, rows.T])[:, None]
        before, after = size // 2 - 1, size // 2
        padded = functional.pad(halved[:, :1], (before, after, before, after))
        magnitudes.append(functional.conv2d(padded, kernels).abs())
    blurred = functional.avg_pool2d(functional.pad(halved[:, 1:], (0, 1, 0, 1)), 2, stride=1)
    return torch.cat(magnitudes, 1), blurred.abs()
