"""SSIM (Wang et al. 2004) of many small pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlsr_env.block_maps import C1, C2, WINDOW_RADIUS, WINDOW_SIGMA
from rlsr_env.filters import gaussian_kernel, one_by_one, side_by_side, slide


@dataclass(frozen=True)
class StructuralSimilarity:
    """SSIM against given originals: what depends on them alone is computed once.

    An 11 x 11 Gaussian window, no padding, the mean over R, G and B, as in pytorch-msssim.

    Attributes:
        hr_image: The originals side by side, `(H, W, N * 3)`.
        mean: Their weighted mean under each window, `(H - 10, W - 10, N * 3)`.
        luminance: The square of `mean`, plus C1.
        contrast: Their weighted variance under each window, plus C2.
    """

    hr_image: Tensor
    mean: Tensor
    luminance: Tensor
    contrast: Tensor

    @classmethod
    def originals(cls, hr_image: Tensor) -> StructuralSimilarity:
        """Prepare for originals `(N, 3, H, W)`, float32 or float64, in [0, 1]."""
        pictures = side_by_side(hr_image)
        kernel = gaussian_kernel(WINDOW_RADIUS, WINDOW_SIGMA, pictures)
        mean = slide(pictures, kernel)
        variance = slide(pictures * pictures, kernel).addcmul_(mean, mean, value=-1)
        return cls(pictures, mean, mean * mean + C1, variance + C2)

    def __call__(self, sr_image: Tensor) -> Tensor:
        """Judge pictures `(N, 3, H, W)` in the originals' dtype: `(N,)`."""
        pictures = side_by_side(sr_image)
        kernel = gaussian_kernel(WINDOW_RADIUS, WINDOW_SIGMA, pictures)
        mean = slide(pictures, kernel)
        # Differences in place: what lies between two operations should not leave the cache.
        covariance = slide(pictures * self.hr_image, kernel).addcmul_(mean, self.mean, value=-1)
        variance = slide(pictures * pictures, kernel).addcmul_(mean, mean, value=-1)
        # Eq. 13 with halves: (2 a + C1) (2 b + C2) = 4 (a + C1 / 2) (b + C2 / 2).
        quarter = (mean * self.mean).add_(C1 / 2).mul_(covariance.add_(C2 / 2))
        similarity = quarter.div_(torch.addcmul(self.luminance, mean, mean).mul_(variance.add_(self.contrast)))
        # One by one again, so that the order of a picture's sum does not depend on how many there are.
        return 4 * one_by_one(similarity, 3).flatten(1).mean(1)


def ssim(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """SSIM of each picture; see `StructuralSimilarity`."""
    return StructuralSimilarity.originals(hr_image)(sr_image)
