"""SSIM and MS-SSIM of many restorations of one picture, in one pass: the metrics of a rate-distortion curve.

The values are those of `rlsr_env.metrics` (pytorch-msssim's conventions: a Gaussian window of 11 x 11 with deviation
1.5, no padding, the mean over R, G and B). What depends on the original alone is computed once, and the window is a sum
of shifted pictures, which a processor does several times faster than a convolution of one channel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlsr_env.metrics import METRICS

# Wang et al. 2004, sec. III-B, and (K1 L)^2, (K2 L)^2 of eq. 13 with L = 1; exponents of Wang et al. 2003, sec. 3.2.
WINDOW_RADIUS, WINDOW_SIGMA = 5, 1.5
C1, C2 = 0.01**2, 0.03**2
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _window() -> list[float]:
    """The one-dimensional window, which sums to one."""
    weights = torch.exp(-0.5 * (torch.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1) / WINDOW_SIGMA) ** 2)
    return (weights / weights.sum()).tolist()


def _blur(image: Tensor) -> Tensor:
    """Weighted means over all windows that lie within the picture: `(..., H, W)` to `(..., H - 10, W - 10)`."""
    weights = _window()
    for axis in (-2, -1):
        length = image.shape[axis] - len(weights) + 1
        blurred = image.narrow(axis, 0, length) * weights[0]
        for offset, weight in enumerate(weights[1:], start=1):
            blurred.add_(image.narrow(axis, offset, length), alpha=weight)
        image = blurred
    return image


def _halve(image: Tensor) -> Tensor:
    """Half the size by means of 2 x 2; an odd side is padded with a row of zeros in front, as pytorch-msssim does."""
    return functional.avg_pool2d(image, 2, padding=[size % 2 for size in image.shape[-2:]])


class Similarity:
    """Judges restorations of one original.

    Attributes:
        has_ssim: Whether the picture is large enough for SSIM (11 pixels).
        has_ms_ssim: Whether it is large enough for MS-SSIM (161 pixels).
    """

    def __init__(self, hr_image: Tensor) -> None:
        """Compute what depends on the original alone.

        Args:
            hr_image: `(3, H, W)` float32 in [0, 1].

        Raises:
            ValueError: For another shape.
        """
        if hr_image.ndim != 3 or hr_image.shape[0] != 3:
            raise ValueError(f"expected one picture (3, H, W), got a tensor of shape {tuple(hr_image.shape)}")
        side = min(hr_image.shape[-2:])
        self.has_ssim = side >= METRICS["ssim"].min_size
        self.has_ms_ssim = side >= METRICS["ms_ssim"].min_size
        n_scales = len(EXPONENTS) if self.has_ms_ssim else int(self.has_ssim)
        # Of each scale: the original, its means, and its variances.
        self._scales: list[tuple[Tensor, Tensor, Tensor]] = []
        for number in range(n_scales):
            hr_image = _halve(hr_image) if number else hr_image
            mean = _blur(hr_image)
            self._scales.append((hr_image, mean, _blur(hr_image.square()) - mean.square()))

    @torch.no_grad()
    def __call__(self, sr_image: Tensor) -> tuple[float | None, float | None]:
        """Judge a restoration.

        Args:
            sr_image: `(3, H, W)` float32 in [0, 1], of the original's size.

        Returns:
            SSIM and MS-SSIM; None where the picture is too small for one.

        Raises:
            ValueError: For another size than the original's.
        """
        if self._scales and sr_image.shape != self._scales[0][0].shape:
            raise ValueError(f"the original is {tuple(self._scales[0][0].shape)}, got {tuple(sr_image.shape)}")
        factors: list[Tensor] = []
        ssim = None
        for number, (hr_image, hr_mean, hr_variance) in enumerate(self._scales):
            sr_image = _halve(sr_image) if number else sr_image
            sr_mean = _blur(sr_image)
            sr_variance = _blur(sr_image.square()).addcmul_(sr_mean, sr_mean, value=-1)
            covariance = _blur(sr_image * hr_image).addcmul_(sr_mean, hr_mean, value=-1)
            structure = covariance.mul_(2).add_(C2).div_(sr_variance.add_(hr_variance).add_(C2))
            is_last = number == len(EXPONENTS) - 1
            if number == 0 or is_last:  # the luminance counts at the coarsest scale of MS-SSIM, and in SSIM
                luminance = (2 * sr_mean * hr_mean).add_(C1).div_(sr_mean.square().addcmul_(hr_mean, hr_mean).add_(C1))
                whole = (luminance * structure).mean((1, 2))
                if number == 0:
                    ssim = whole.mean().item()
            factors.append(whole if is_last else structure.mean((1, 2)))
        if not self.has_ms_ssim:
            return ssim, None
        exponents = torch.tensor(EXPONENTS, device=sr_image.device)[:, None]
        return ssim, (torch.stack(factors).relu() ** exponents).prod(0).mean().item()
