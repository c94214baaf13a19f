"""How many bits more or less one codec needs than another for the same quality, on the average: the BD-rate.

G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001. His cubic through four
points is replaced by piecewise cubic Hermite interpolation (PCHIP, Fritsch and Carlson 1980), as in the common test
conditions of HEVC and VVC: it keeps to the points however many there are, and does not swing between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

# Of the narrower curve's range of qualities, how much must be common to both.
LEAST_OVERLAP = 0.2


def bd_rate(
    rates: Sequence[float],
    qualities: Sequence[float],
    anchor_rates: Sequence[float],
    anchor_qualities: Sequence[float],
) -> float | None:
    """Mean difference in rate at equal quality.

    The logarithm of the rate as a function of the quality is averaged over the qualities that both curves reach.

    Args:
        rates: Of the curve, positive, in any unit.
        qualities: At these rates; more is better.
        anchor_rates: Of the curve that it is compared with.
        anchor_qualities: At these.

    Returns:
        In per cent of the anchor's rate: -20 where a fifth fewer bits are needed. None where fewer than two points of a
        curve rise, or the common qualities are less than `LEAST_OVERLAP` of the narrower range.

    Raises:
        ValueError: Rates and qualities of a curve differ in number, or a rate is not positive.
    """
    curves = [_rising(rates, qualities), _rising(anchor_rates, anchor_qualities)]
    if any(len(log_rates) < 2 for log_rates, _ in curves):
        return None
    low = max(rising[0] for _, rising in curves)
    high = min(rising[-1] for _, rising in curves)
    if high - low <= 0 or high - low < LEAST_OVERLAP * min(rising[-1] - rising[0] for _, rising in curves):
        return None
    areas = [float(PchipInterpolator(rising, log_rates).integrate(low, high)) for log_rates, rising in curves]
    return 100 * math.expm1((areas[0] - areas[1]) / (high - low))


def ms_ssim_decibels(value: float) -> float:
    """MS-SSIM in dB, `-10 log10(1 - value)`: near 1 its values crowd, and a mean over them would see nothing else."""
    return -10 * math.log10(1 - value) if value < 1 else math.inf


def _rising(rates: Sequence[float], qualities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the rates, and qualities, of the points that are better than all cheaper ones."""
    if len(rates) != len(qualities):
        raise ValueError(f"a curve has as many rates as qualities, got {len(rates)} and {len(qualities)}")
    if not all(rate > 0 for rate in rates):
        raise ValueError(f"rates are positive, got {min(rates)}")
    kept: list[tuple[float, float]] = []
    for rate, quality in sorted(zip(rates, qualities, strict=True), key=lambda point: (point[0], -point[1])):
        if math.isfinite(quality) and (not kept or quality > kept[-1][1]):
            kept.append((math.log(rate), quality))
    points = np.array(kept).reshape(-1, 2)
    return points[:, 0], points[:, 1]
