"""Metrics: how close SR pictures are to their HR pictures, one number for each picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pytorch_msssim import ms_ssim
from torch import Tensor

from rlsr_env.black_box_metrics import (
    LUMA_WEIGHTS,
    EachPicture,
    dtw,
    edge_f1,
    jpeg_bytes,
    round_to_8bit,
    ssimulacra2,
)
from rlsr_env.block_maps import squared_error_map, ssim_map
from rlsr_env.credit_maps import dtw_map, edge_f1_map, ms_ssim_map
from rlsr_env.haarpsi_map import haarpsi_map
from rlsr_env.jpeg_map import jpeg_bytes_map
from rlsr_env.level_judges import LevelJudge, PSNRJudge, SSIMJudge
from rlsr_env.patches import to_float
from rlsr_env.peak_signal import PSNRAgainst, psnr, psnr_y
from rlsr_env.perceptual import gmsd, haarpsi, lpips, vif
from rlsr_env.picture_checks import MetricError, check_blocks, check_pictures, check_size
from rlsr_env.rounding import require_levels
from rlsr_env.structural_similarity import similarity_to, ssim

# In dB; what decoders reach at a tenth of a bit per pixel.
TANGENT_PSNR = 25.0


@dataclass(frozen=True)
class Metric:
    """A judge of SR pictures against HR pictures.

    Attributes:
        name: The name it goes by in configurations, logs and results.
        function: Takes SR and HR pictures, `(B, 3, H, W)`, float32 or float64, in [0, 1], and returns values `(B,)`.
        higher_is_better: Whether a larger value means a better picture.
        differentiable: Whether a gradient reaches the SR pictures.
        deterministic: Whether equal pictures always get equal values.
        min_size: The smallest shorter side that it accepts, in pixels.
        unit: The unit of its values, empty where they have none.
        source: Where its definition comes from.
        block_map: Where the metric is local, its map over blocks of 8 x 8 pixels; see `blocks`.
        value_range: The least and the greatest value that it can have.
        prepare: Where much of the work depends on the HR pictures alone: takes them, `(B, 3, H, W)`, and returns
            `function` of the SR pictures; see `against`.
        level_judge: Where pictures of 8 bits can be judged on the CPU as they are, part by part: makes the judge of a
            batch of a shape `(B, 3, H, W)`. Whoever makes another metric of one by `dataclasses.replace` and changes
            its function has to take `prepare` and `level_judge` away as well.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool = True
    differentiable: bool = True
    deterministic: bool = True
    min_size: int = 1
    unit: str = ""
    source: str = ""
    block_map: Callable[[Tensor, Tensor], Tensor] | None = None
    value_range: tuple[float, float] = (-math.inf, math.inf)
    prepare: Callable[[Tensor], Callable[[Tensor], Tensor]] | None = None
    level_judge: Callable[[tuple[int, ...]], LevelJudge] | None = None

    def __call__(self, sr_image: Tensor, hr_image: Tensor) -> Tensor:
        """Judge SR pictures.

        Values outside [0, 1] are clipped first, because no viewer would see them. The metric is computed in float32
        or better, under autocast too.

        Args:
            sr_image: The pictures to judge, `(B, 3, H, W)`, any float dtype.
            hr_image: The originals, of the same shape.

        Returns:
            One value for each picture, `(B,)`; NaN where a picture holds NaN.

        Raises:
            TypeError: If a picture is not a floating-point tensor.
            ValueError: If the shapes differ, are not `(B, 3, H, W)`, or are smaller than `min_size`.
            MetricError: A ValueError, if the metric fails on pictures or makes NaN of pictures without NaN; it names
                them.
        """
        check_pictures(sr_image, hr_image, self.name, self.min_size)
        dtype = torch.promote_types(torch.promote_types(sr_image.dtype, hr_image.dtype), torch.float32)
        with torch.autocast(sr_image.device.type, enabled=False):
            values = self.function(sr_image.to(dtype).clamp(0, 1), hr_image.to(dtype).clamp(0, 1))
        self._check_values(values, sr_image, hr_image)
        return values

    def against(self, hr_image: Tensor) -> Callable[[Tensor], Tensor]:
        """The metric for SR pictures that are all compared with the same originals.

        What depends on the originals alone is computed once, where the metric has a way to do so.

        Args:
            hr_image: The originals, `(B, 3, H, W)`, float32 or float64.

        Returns:
            What the metric itself would say, of SR pictures in the originals' shape and dtype.

        Raises:
            TypeError: If the originals are no floating-point tensor.
            ValueError: If they are not `(B, 3, H, W)`, or smaller than `min_size`.
        """
        check_pictures(hr_image, hr_image, self.name, self.min_size)
        return _Against(self, hr_image, None if self.prepare is None else self.prepare(hr_image.clamp(0, 1)))

    def against_levels(self, hr_levels: Tensor) -> Callable[[Tensor], Tensor]:
        """The metric for pictures of 8 bits that are all compared with the same originals.

        Args:
            hr_levels: The originals, `(B, 3, H, W)` uint8.

        Returns:
            What the metric says of SR pictures in the originals' shape, uint8: `(B,)`; of PSNR, more exactly. It raises
            TypeError for pictures of another dtype, ValueError for another shape.

        Raises:
            TypeError: If the originals are not uint8.
            ValueError: If they are not `(B, 3, H, W)`, or smaller than `min_size`.
        """
        if hr_levels.dtype != torch.uint8:
            raise TypeError(f"{self.name} needs the levels of 8-bit pictures, uint8, got {hr_levels.dtype}")
        check_size(hr_levels, self.name, self.min_size)
        if self.level_judge is not None and hr_levels.device.type == "cpu":
            return _LoopedAgainstLevels.originals(self.level_judge(tuple(hr_levels.shape)), hr_levels)
        return _AgainstLevels(self.against(to_float(hr_levels)), tuple(hr_levels.shape))

    def _check_values(self, values: Tensor, sr_image: Tensor, hr_image: Tensor) -> None:
        """Raise where there is no tensor of values, or NaN that was not in the pictures."""
        if not isinstance(values, Tensor):
            raise TypeError(
                f"metric {self.name!r} must return a tensor with a number for each picture, got "
                f"{type(values).__name__}; register_metric takes functions of two arrays"
            )
        if values.isnan().any():
            spoilt = (sr_image.isnan() | hr_image.isnan()).flatten(1).any(1)
            if (made := values.isnan() & ~spoilt).any():
                raise MetricError(self.name, made.nonzero().flatten().tolist(), "returned NaN for {pictures}")

    @torch.no_grad()
    def blocks(self, sr_image: Tensor, hr_image: Tensor) -> Tensor:
        """Judge each block of 8 x 8 pixels: the metric as local credit.

        The mean over a picture's blocks rises and falls with the metric; `higher_is_better` holds for both. A block's
        value depends on little beyond its eight neighbours (`credit_maps` says on what). No gradient is recorded.

        Args:
            sr_image: The pictures to judge, `(K * P, 3, H, W)`, any float dtype: K samples of each of P patches, sample
                after sample, so picture `k * P + p` is sample `k` of patch `p`.
            hr_image: The originals, `(P, 3, H, W)`.

        Returns:
            `(K * P, H / 8, W / 8)`, float32 or better.

        Raises:
            TypeError: If a picture is not a floating-point tensor.
            ValueError: If the metric has no map; if there are not K times as many SR pictures as HR pictures, their
                sizes differ, are no multiples of 8, or are smaller than the map needs.
        """
        if self.block_map is None:
            local = ", ".join(sorted(name for name, judge in METRICS.items() if judge.block_map is not None))
            raise ValueError(f"{self.name} judges whole pictures only and has no map over blocks; these have: {local}")
        check_blocks(sr_image, hr_image, self.name, self.min_size)
        dtype = torch.promote_types(torch.promote_types(sr_image.dtype, hr_image.dtype), torch.float32)
        with torch.autocast(sr_image.device.type, enabled=False):
            return self.block_map(sr_image.to(dtype).clamp(0, 1), hr_image.to(dtype).clamp(0, 1))


@dataclass(frozen=True)
class _Against:
    """A metric and the originals that it compares with."""

    metric: Metric
    hr_image: Tensor
    function: Callable[[Tensor], Tensor] | None

    def __call__(self, sr_image: Tensor) -> Tensor:
        """Judge SR pictures, `(B,)`."""
        if self.function is None or sr_image.dtype != self.hr_image.dtype:
            return self.metric(sr_image, self.hr_image)
        check_pictures(sr_image, self.hr_image, self.metric.name, self.metric.min_size)
        with torch.autocast(sr_image.device.type, enabled=False):
            values = self.function(sr_image.clamp(0, 1))
        self.metric._check_values(values, sr_image, self.hr_image)
        return values


@dataclass(frozen=True)
class _AgainstLevels:
    """A judge of float pictures, for those of 8 bits."""

    judge: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]

    def __call__(self, sr_levels: Tensor) -> Tensor:
        """Judge SR pictures, `(B,)`."""
        require_levels(sr_levels, self.shape)
        return self.judge(to_float(sr_levels))


@dataclass(frozen=True)
class _LoopedAgainstLevels:
    """A judge of parts, for a whole batch."""

    judge: LevelJudge
    hr_levels: np.ndarray

    @classmethod
    def originals(cls, judge: LevelJudge, hr_levels: Tensor) -> _LoopedAgainstLevels:
        """Get ready for originals."""
        from rlsr_env.loops import share  # compiled by Numba, which takes its time to be imported

        levels = hr_levels.contiguous().numpy()
        share(lambda part: judge.take(part, levels[part]), len(levels), levels.size)
        return cls(judge, levels)

    def __call__(self, sr_levels: Tensor) -> Tensor:
        """Judge SR pictures, `(B,)` float64."""
        from rlsr_env.loops import share  # compiled by Numba, which takes its time to be imported

        require_levels(sr_levels, self.hr_levels.shape)
        sr, hr, values = sr_levels.contiguous().numpy(), self.hr_levels, np.empty(len(sr_levels))
        share(lambda part: self.judge.judge(part, sr[part], hr[part], values[part]), len(sr), sr.size)
        return torch.from_numpy(values)


def metric(name: str | Metric) -> Metric:
    """Look a metric up by name, or make a weighted sum of metrics.

    In a sum such as `"0.5*ssim+0.5*dtw"` every term counts so that more is better: a metric of which less is better is
    subtracted. Weights are positive; without one it is 1.

    Args:
        name: A key of `METRICS`, a sum of them, or a metric, which is returned as it is.

    Returns:
        The metric.

    Raises:
        TypeError: If it is neither a name nor a metric.
        ValueError: If no metric has that name, or the sum is malformed.
    """
    if isinstance(name, Metric):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a metric is a name or a Metric, got {type(name).__name__}")
    if name in METRICS:
        return METRICS[name]
    if "*" in name or "+" in name:
        from rlsr_env.metric_sums import weighted_sum  # which knows Metric from here

        return weighted_sum(name, METRICS)
    raise ValueError(
        f"Unknown metric {name!r}; use one of {', '.join(sorted(METRICS))}, a sum like 0.5*ssim+0.5*dtw, or pass a "
        "Metric."
    )


def register_metric(
    name: str,
    function: Callable[[np.ndarray, np.ndarray], float],
    higher_is_better: bool = True,
    min_size: int = 1,
    unit: str = "",
    source: str = "",
) -> Metric:
    """Make any function of two pictures a metric that environments know by name.

    ```python
    from rlsr_env.metrics import register_metric

    register_metric("brightness_error", lambda sr, hr: abs(sr.mean() - hr.mean()), higher_is_better=False)
    ```

    Args:
        name: The new metric's name.
        function: Takes an SR and an HR picture, each `(H, W, 3)` uint8, and returns a number.
        higher_is_better: Whether a larger value means a better picture.
        min_size: The smallest shorter side that the function accepts, in pixels.
        unit: The unit of its values.
        source: Where its definition comes from.

    Returns:
        The metric. It raises ValueError where the function raises, or returns NaN or no number.

    Raises:
        ValueError: If the name is taken, empty or looks like a sum, or `min_size` is no integer above 0.
        TypeError: If the name is no text, or the function cannot be called.
    """
    if not isinstance(name, str):
        raise TypeError(f"a metric's name is a text, got {name!r}")
    if not name or name in METRICS:
        raise ValueError(f"a metric needs a name of its own, got {name!r}; taken: {', '.join(sorted(METRICS))}")
    if "*" in name or "+" in name:
        raise ValueError(f"a metric's name has no * and no +, which make sums of metrics; got {name!r}")
    if isinstance(min_size, bool) or not isinstance(min_size, int) or min_size < 1:
        raise ValueError(f"min_size is an integer of 1 or more, got {min_size!r}")
    if not callable(function):
        raise TypeError(f"a metric is a function of two pictures, got {type(function).__name__}")
    METRICS[name] = Metric(
        name, EachPicture(name, function), higher_is_better, differentiable=False, min_size=min_size, unit=unit,
        source=source,
    )  # fmt: skip
    return METRICS[name]


def _psnr_map(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """PSNR's block map, from the mean squared error of each block."""
    return _tangent(squared_error_map(sr_image, hr_image))


def _psnr_y_map(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """The block map of the luma's PSNR."""
    return _tangent(squared_error_map(sr_image, hr_image, sr_image.new_tensor(LUMA_WEIGHTS) / 255))


def _tangent(mse: Tensor) -> Tensor:
    """PSNR as a linear function of the mean squared error, in dB: its tangent at 25 dB.

    A block's own PSNR would be the wrong credit: the picture's PSNR follows the mean of the blocks' errors, so what a
    block earns is the error that it lost, not the factor by which it fell. The tangent's mean over the blocks is the
    tangent at the picture's own error, and being in dB it keeps its proportion in sums with other metrics.
    """
    return TANGENT_PSNR + 10 / math.log(10) * (1 - mse / 10 ** (-TANGENT_PSNR / 10))


def _psnr_8bit(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """PSNR of pictures as they would be saved."""
    return psnr(round_to_8bit(sr_image.detach()), round_to_8bit(hr_image.detach()))


def _ms_ssim(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """MS-SSIM of each picture: five scales, so the coarsest is the original divided by 16."""
    return ms_ssim(sr_image, hr_image, data_range=1, size_average=False)


METRICS: dict[str, Metric] = {
    judge.name: judge
    for judge in (
        Metric(
            "psnr", psnr, unit="dB", source="Savioli 2019, eq. 6", block_map=_psnr_map, value_range=(0, math.inf),
            prepare=PSNRAgainst, level_judge=PSNRJudge,
        ),
        Metric(
            "psnr_y", psnr_y, unit="dB", source="ITU-R BT.601, studio range", block_map=_psnr_y_map,
            value_range=(0, math.inf),
        ),
        Metric(
            "psnr_8bit", _psnr_8bit, differentiable=False, unit="dB", source="Savioli 2019, eq. 6, of rounded pictures",
            value_range=(0, math.inf),
        ),
        # 11 pixels is the window; 161, halved four times and rounded up, is 11 again.
        Metric(
            "ssim", ssim, min_size=11, source="Wang et al. 2004, as in pytorch-msssim", block_map=ssim_map,
            value_range=(-1, 1), prepare=similarity_to, level_judge=SSIMJudge,
        ),
        Metric(
            "ms_ssim", _ms_ssim, min_size=161, source="Wang et al. 2003, as in pytorch-msssim", value_range=(0, 1),
            block_map=ms_ssim_map,
        ),
        Metric(
            "haarpsi", haarpsi, min_size=16, source="Reisenhofer et al. 2018, as in piq", value_range=(0, 1),
            block_map=haarpsi_map,
        ),
        Metric(
            "gmsd", gmsd, higher_is_better=False, min_size=2, source="Xue et al. 2014, as in piq",
            value_range=(0, 0.5),
        ),
        Metric(
            "vif", vif, min_size=41, source="Sheikh and Bovik 2006, in the pixel domain", value_range=(0, math.inf),
        ),
        Metric(
            "lpips", lpips, higher_is_better=False, min_size=16, source="Zhang et al. 2018, VGG16, as in piq",
            value_range=(0, math.inf),
        ),
        Metric(
            "dtw", dtw, higher_is_better=False, differentiable=False, value_range=(0, 1),
            source="Savioli 2019, sec. 2.2; Sakoe and Chiba 1978", block_map=dtw_map,
        ),
        Metric(
            "edge_f1", edge_f1, differentiable=False, source="Canny 1986, as in scikit-image", value_range=(0, 1),
            block_map=edge_f1_map,
        ),
        Metric(
            "jpeg_bytes", jpeg_bytes, higher_is_better=False, differentiable=False, unit="bytes",
            source="Pillow, quality 75", block_map=jpeg_bytes_map, value_range=(0, math.inf),
        ),
        Metric(
            "ssimulacra2", ssimulacra2, differentiable=False, min_size=8, source="Sneyers 2022, as in ssimulacra2",
            value_range=(-math.inf, 100),
        ),
    )
}  # fmt: skip
