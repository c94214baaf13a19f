"""SSIM (Wang et al. 2004) of many small pictures.

An 11 x 11 Gaussian window, no padding, the mean over R, G and B, as in pytorch-msssim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsr_env.block_maps import C1, C2, WINDOW_RADIUS, WINDOW_SIGMA
from rlsr_env.filters import gaussian_kernel, slide


@dataclass(frozen=True)
class StructuralSimilarity:
    """SSIM against given originals: what depends on them alone is computed once.

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
        mean = slide(sr_image, self.kernel)
        covariance = slide(sr_image * self.hr_image, self.kernel) - mean * self.mean
        variance = slide(sr_image * sr_image, self.kernel) - mean * mean
        # In place: what lies between two operations should not leave the cache.
        # Eq. 13 with halves: (2 a + C1) (2 b + C2) = 4 (a + C1 / 2) (b + C2 / 2).
        quarter = (mean * self.mean).add_(C1 / 2).mul_(covariance.add_(C2 / 2))
        similarity = quarter.div_(torch.addcmul(self.luminance, mean, mean).mul_(variance.add_(self.contrast)))
        return 4 * similarity.flatten(1).mean(1)


@dataclass(frozen=True)
class LoopedSimilarity:
    """The same on the CPU by compiled loops.

    Attributes:
        hr_image: The originals, `(N, 3, H, W)` float32 in [0, 1].
        mean: Their weighted mean under each window, from `window_statistics`.
        variance: Their weighted variance.
        kernel: The window, `(11,)` float32.
    """

    hr_image: Tensor
    mean: Tensor
    variance: Tensor
    kernel: Tensor

    @classmethod
    def originals(cls, hr_image: Tensor) -> LoopedSimilarity:
        """Prepare for originals `(N, 3, H, W)`, float32 in [0, 1], on the CPU."""
        from rlsr_env.similarity_loops import window_statistics  # Numba takes its time to be imported

        hr_image = hr_image.contiguous()
        kernel = gaussian_kernel(WINDOW_RADIUS, WINDOW_SIGMA, torch.empty(0, dtype=torch.float32))
        return cls(hr_image, *window_statistics(hr_image, kernel), kernel)

    def __call__(self, sr_image: Tensor) -> Tensor:
        """Judge pictures `(N, 3, H, W)` float32: `(N,)`."""
        from rlsr_env.loops import can_loop  # compiled by Numba, which takes its time to be imported
        from rlsr_env.similarity_loops import similarities

        if not can_loop(sr_image):  # a gradient is wanted
            return StructuralSimilarity.originals(self.hr_image)(sr_image)
        return similarities(sr_image, self.hr_image, self.mean, self.variance, self.kernel)


def similarity_to(hr_image: Tensor) -> Callable[[Tensor], Tensor]:
    """SSIM of pictures in the shape and dtype of these originals, `(N, 3, H, W)`, float32 or float64."""
    from rlsr_env.loops import can_loop  # compiled by Numba, which takes its time to be imported

    return LoopedSimilarity.originals(hr_image) if can_loop(hr_image) else StructuralSimilarity.originals(hr_image)


def ssim(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """SSIM of each picture, `(N,)`."""
    from rlsr_env.loops import can_loop  # compiled by Numba, which takes its time to be imported

    if can_loop(sr_image, hr_image):
        return LoopedSimilarity.originals(hr_image)(sr_image)
    return StructuralSimilarity.originals(hr_image)(sr_image)
