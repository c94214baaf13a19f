import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan.bd_rate import bd_rate, ms_ssim_decibels

RATES = [0.05, 0.1, 0.2, 0.4]
QUALITIES = [24.0, 26.5, 28.5, 31.0]


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.7])
def test_curve_shifted_by_a_factor_in_rate_has_that_bd_rate(factor: float) -> None:
    shifted = [factor * rate for rate in RATES]
    assert bd_rate(shifted, QUALITIES, RATES, QUALITIES) == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_straight_lines_by_hand() -> None:
    # log2(rate) = quality for the anchor, quality / 2 for the other; common qualities 2 to 4, so that the mean
    # difference of log2(rate) is that at 3: -1.5.
    anchor = [1.0, 2.0, 3.0, 4.0]
    other = [2.0, 4.0, 6.0, 8.0]
    result = bd_rate([2 ** (q / 2) for q in other], other, [2**q for q in anchor], anchor)
    assert result == pytest.approx(100 * (2**-1.5 - 1), abs=1e-9)


def test_order_of_points_does_not_matter_and_a_worse_dearer_point_is_left_out() -> None:
    shifted = [0.7 * rate for rate in RATES]
    order = [2, 0, 3, 1]
    mixed = bd_rate([shifted[i] for i in order], [QUALITIES[i] for i in order], RATES, QUALITIES)
    assert mixed == pytest.approx(-30)
    assert bd_rate([*shifted, 0.11], [*QUALITIES, 20.0], RATES, QUALITIES) == pytest.approx(-30)


def test_too_little_overlap_and_too_few_points_have_no_value() -> None:
    higher = [quality + 6.9 for quality in QUALITIES]  # 0.1 of 7 dB in common
    assert bd_rate(RATES, higher, RATES, QUALITIES) is None
    assert bd_rate(RATES, [quality + 100 for quality in QUALITIES], RATES, QUALITIES) is None
    assert bd_rate(RATES, [quality + 5 for quality in QUALITIES], RATES, QUALITIES) is not None
    assert bd_rate([0.1], [26.0], RATES, QUALITIES) is None
    assert bd_rate([], [], RATES, QUALITIES) is None
    assert bd_rate([0.1, 0.2], [26.0, 26.0], RATES, QUALITIES) is None
    assert bd_rate([0.1, 0.2], [26.0, math.inf], RATES, QUALITIES) is None


def test_wrong_curves_are_refused() -> None:
    with pytest.raises(ValueError, match="as many rates as qualities, got 4 and 3"):
        bd_rate(RATES, QUALITIES[:3], RATES, QUALITIES)
    with pytest.raises(ValueError, match="rates are positive, got 0"):
        bd_rate([0.0, 0.1], [1.0, 2.0], RATES, QUALITIES)


@given(st.lists(st.floats(0.05, 1.0), min_size=4, max_size=8), st.floats(0.3, 3.0))
def test_exchange_of_the_curves_inverts_the_factor(steps: list[float], factor: float) -> None:
    rates = np.exp(np.cumsum(steps)).tolist()
    qualities = np.cumsum(np.sqrt(steps)).tolist()
    shifted = [factor * rate for rate in rates]
    forth, back = bd_rate(shifted, qualities, rates, qualities), bd_rate(rates, qualities, shifted, qualities)
    assert forth is not None and back is not None
    assert (1 + forth / 100) * (1 + back / 100) == pytest.approx(1)
    assert 1 + forth / 100 == pytest.approx(factor)


def test_ms_ssim_in_decibels() -> None:
    assert ms_ssim_decibels(0.9) == pytest.approx(10)
    assert ms_ssim_decibels(0.99) == pytest.approx(20)
    assert ms_ssim_decibels(1.0) == math.inf
