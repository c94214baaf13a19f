from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsr_env.rate_oracle import best_fixed_setting, choice_of, rate_control_oracle, spend, spend_rest, weighted_choice
from rlsr_env.rate_table import RateTable, Setting

# Two pictures of 800 pixels, so that 100 bytes are one bit per pixel. At setting 1 both take 200 bytes. Picture "easy"
# gains 1 dB by going from 100 to 200 bytes, picture "hard" 4 dB, and 3 dB more by going to 300.
TABLE = RateTable(
    uris=("easy", "hard"),
    n_pixels=np.array([800, 800]),
    settings=(Setting(4, 50), Setting(2, 50), Setting(1, 50)),
    n_bytes=np.array([[100, 200, 300], [100, 200, 300]]),
    values=np.array([[30.0, 31.0, 31.5], [20.0, 24.0, 27.0]]),
)


def test_rewards_by_hand() -> None:
    assert TABLE.bits_per_pixel.tolist() == [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    assert TABLE.rewards(2.0).tolist() == [[28.0, 27.0, 25.5], [18.0, 20.0, 21.0]]
    assert TABLE.rewards(np.array([0.0, 5.0])).tolist() == [[30.0, 31.0, 31.5], [15.0, 14.0, 12.0]]


def test_oracle_by_hand() -> None:
    # Fixed at setting 1: 400 bytes, (31 + 24) / 2 dB. The oracle gives the easy one 100 bytes and the hard one 300.
    found = rate_control_oracle(TABLE, total_bytes=400)
    assert found.setting == Setting(2, 50)
    assert (found.fixed.n_bytes, found.fixed.quality) == (400, 27.5)
    assert found.oracle.settings.tolist() == [0, 2]
    assert (found.oracle.n_bytes, found.oracle.quality, found.oracle.bits_per_pixel) == (400, 28.5, 2.0)
    assert found.gain == 1.0
    assert 1.0 < found.oracle.rate_weight < 3.0  # the easy one would pay 1 dB for a bit, the hard one 3
    assert found.oracle.n_encodes == 6
    assert rate_control_oracle(TABLE, bits_per_pixel=2.0).oracle.settings.tolist() == [0, 2]
    # A little more is no use to the fixed setting, and the oracle must not have more than that.
    assert rate_control_oracle(TABLE, total_bytes=550).oracle.n_bytes == 400


def test_rest_goes_to_what_gains_most_by_the_byte() -> None:
    # 500 bytes: the choice at one weight has 400; 100 more make the easy one better.
    start = choice_of(TABLE, np.array([0, 2]))
    better = spend_rest(TABLE, start, 500)
    assert better.settings.tolist() == [1, 2] and better.n_bytes == 500
    assert spend_rest(TABLE, start, 499).settings.tolist() == [0, 2]


def test_larger_pictures_bits_count_for_as_many_as_they_are() -> None:
    table = replace(TABLE, n_pixels=np.array([400, 1200]))
    # By the byte the hard one still gains more; by bits per pixel of its own it would seem three times as cheap.
    assert rate_control_oracle(table, total_bytes=400).oracle.settings.tolist() == [0, 2]
    assert weighted_choice(table, 2.0).tolist() == weighted_choice(TABLE, 2.0).tolist()


def test_fixed_setting_is_the_best_within_the_bytes() -> None:
    assert [best_fixed_setting(TABLE, total) for total in (200, 399, 400, 600, 1e9)] == [0, 0, 1, 2, 2]
    with pytest.raises(ValueError, match=r"within 199 bytes.*Setting\(scale=4, quality=50\) with 200"):
        best_fixed_setting(TABLE, 199)


@pytest.mark.parametrize("guess", [0.01, 2.0, 1000.0])
def test_a_weight_is_found_from_any_guess_and_files_are_counted_once(guess: float) -> None:
    calls = []

    def chooser(weight: float) -> np.ndarray:
        calls.append(weight)
        return weighted_choice(TABLE, weight)

    choice = spend(TABLE, 400, chooser, guess)
    assert choice.settings.tolist() == [0, 2] and choice.n_bytes == 400
    assert choice.n_encodes <= 6 < len(calls)


def test_what_cannot_be_kept_is_said() -> None:
    with pytest.raises(ValueError, match="even the smallest choice takes 200 bytes, more than 150"):
        spend(TABLE, 150, lambda weight: weighted_choice(TABLE, weight))
    with pytest.raises(ValueError, match="either"):
        rate_control_oracle(TABLE)
    with pytest.raises(ValueError, match="either"):
        rate_control_oracle(TABLE, bits_per_pixel=1.0, total_bytes=1.0)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0 and finite"):
            rate_control_oracle(TABLE, bits_per_pixel=rate)
    with pytest.raises(ValueError, match="numbered 0 to 2"):
        choice_of(TABLE, np.array([0, 3]))
    with pytest.raises(ValueError, match="for each of 2 pictures"):
        choice_of(TABLE, np.array([0]))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_oracle_keeps_within_the_bytes_and_is_never_worse(seed: int, n_pictures: int, n_settings: int) -> None:
    rng = np.random.default_rng(seed)
    table = RateTable(
        tuple(map(str, range(n_pictures))),
        rng.integers(100, 1000, n_pictures),
        tuple(Setting(1, quality) for quality in range(1, n_settings + 1)),
        rng.integers(1, 100, (n_pictures, n_settings)),
        rng.normal(30, 3, (n_pictures, n_settings)),
    )
    total = int(table.n_bytes.sum(axis=0).min()) + int(rng.integers(0, 100))
    found = rate_control_oracle(table, total_bytes=total)
    assert found.oracle.n_bytes <= found.fixed.n_bytes <= total
    assert found.gain >= 0
