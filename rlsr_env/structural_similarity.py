"""SSIM (Wang et al. 2004) of many small pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlsr_env.block_maps import C1, C2, WINDOW_RADIUS, WINDOW_SIGMA
from rlsr_env.filters import gaussian_kernel, slide


@dataclass(frozen=True)
class StructuralSimilarity:
    """SSIM against given originals: what depends on them alone is computed once.

    An 11 x 11 Gaussian window, no padding, the mean over R, G and B, as in pytorch-msssim.

    Attributes:
        hr_image: The originals, `(N, 3, H, W)`.
        mean: Their weighted mean under each window, `(N, 3, H - 10, W - 10)`.
        luminance: The square of `mean`, plus C1.
        contrast: Their weighted variance under each window, plus C2.
        kernel: The window, `(11,)`.
    """

    hr_image: Tensor
    mean: Tensor
    luminance: Tensor
    contrast: Tensor
    kernel: Tensor

    @classmethod
    def originals(cls, hr_image: Tensor) -> StructuralSimilarity:
        """Prepare for originals `(N, 3, H, W)`, float32 or float64, in [0, 1]."""
        hr_image = hr_image.contiguous()
        kernel = gaussian_kernel(WINDOW_RADIUS, WINDOW_SIGMA, hr_image)
        mean = slide(hr_image, kernel)
        square = mean * mean
        variance = slide(hr_image * hr_image, kernel) - square
        return cls(hr_image, mean, square + C1, variance + C2, kernel)

    def __call__(self, sr_image: Tensor) -> Tensor:
        """Judge pictures `(N, 3, H, W)` in the originals' dtype: `(N,)`."""
        from rlsr_env.loops import can_loop, similarities  # compiled by Numba, which takes its time to be imported

        given = (self.hr_image, self.mean, self.luminance, self.contrast, self.kernel)
        if can_loop(sr_image, *given):
            return similarities(sr_image, *given)
        mean = slide(sr_image, self.kernel)
        covariance = slide(sr_image * self.hr_image, self.kernel) - mean * self.mean
        variance = slide(sr_image * sr_image, self.kernel) - mean * mean
        # In place: what lies between two operations should not leave the cache.
        # Eq. 13 with halves: (2 a + C1) (2 b + C2) = 4 (a + C1 / 2) (b + C2 / 2).
        quarter = (mean * self.mean).add_(C1 / 2).mul_(covariance.add_(C2 / 2))
        similarity = quarter.div_(torch.addcmul(self.luminance, mean, mean).mul_(variance.add_(self.contrast)))
        return 4 * similarity.flatten(1).mean(1)


def ssim(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """SSIM of each picture; see `StructuralSimilarity`."""
    return StructuralSimilarity.originals(hr_image)(sr_image)
