from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.evaluation import as_batch
from gan.file_format import compress, decompress, read_header
from gan.setting_search import (
    Setting,
    Target,
    Trials,
    UnmetTargetError,
    choose_setting,
    last_that_holds,
    picture_psnr,
)
from gan.zoo import LANCZOS_WEIGHTS
from rlsr_env.images import SampleImages
from rlsr_env.metrics import METRICS
from rlsr_env.peak_signal import psnr


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(SampleImages().load("sample:chelsea")[20:212, 60:300])


@pytest.fixture(autouse=True)
def _lanczos_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing depends on the package's weights."""
    monkeypatch.setattr("gan.setting_search.choose_weights", lambda *_: LANCZOS_WEIGHTS)


@settings(max_examples=200)
@given(n=st.integers(1, 130), last=st.integers(-1, 129), guess=st.one_of(st.none(), st.integers(0, 129)))
def test_bisection_finds_the_last_from_wherever_it_begins(n: int, last: int, guess: int | None) -> None:
    last = min(last, n - 1)
    asked: list[int] = []

    def holds(number: int) -> bool:
        assert 0 <= number < n
        asked.append(number)
        return number <= last

    assert last_that_holds(holds, n, None if guess is None else min(guess, n - 1)) == (None if last < 0 else last)
    assert len(asked) <= 18
    assert len(set(asked)) >= len(asked) - 1


def test_near_guess_is_quick() -> None:
    asked: list[int] = []
    assert last_that_holds(lambda number: asked.append(number) or number <= 40, 100, 41) == 40
    assert len(asked) <= 3


@pytest.mark.parametrize("base", ["jpeg", "webp", "avif"])
def test_bytes_are_kept_and_one_quality_more_would_be_too_much(base: str, photograph: np.ndarray) -> None:
    trials = Trials(photograph, base)
    setting = choose_setting(photograph, Target("bytes", 2500), scales=[2], trials=trials)
    assert setting.scale == 2
    assert len(trials.file(setting)) <= 2500 < len(trials.file(Setting(2, setting.quality + 1)))
    assert trials.file(setting) == compress(
        photograph, scale=2, base=base, quality=setting.quality, weights=LANCZOS_WEIGHTS
    )
    assert trials.n_encodes <= 10


def test_bpp_are_bits_of_the_whole_file(photograph: np.ndarray) -> None:
    limit = 0.3 * 192 * 240 / 8
    by_bpp = choose_setting(photograph, Target("bpp", 0.3), scales=[1, 2])
    assert by_bpp == choose_setting(photograph, Target("bytes", limit), scales=[1, 2])


def test_psnr_is_reached_with_the_least_quality(photograph: np.ndarray) -> None:
    trials = Trials(photograph)
    setting = choose_setting(photograph, Target("psnr", 27.0), scales=[2], trials=trials)
    reached = psnr(as_batch(decompress(trials.file(setting))), as_batch(photograph)).item()
    assert reached == pytest.approx(trials.value(setting, "psnr"), abs=1e-4)
    less = trials.value(Setting(2, setting.quality - 1), "psnr")
    assert less is not None and less < 27.0 <= reached


@pytest.mark.parametrize("target", [Target("bytes", 1000), Target("bytes", 9000), Target("psnr", 26.0)])
def test_auto_is_the_best_of_the_scales(target: Target, photograph: np.ndarray) -> None:
    trials = Trials(photograph)
    each = [choose_setting(photograph, target, scales=[scale], trials=trials) for scale in (1, 2, 3, 4)]
    chosen = choose_setting(photograph, target, scales=[1, 2, 3, 4], trials=trials)
    assert chosen in each
    if target.kind == "psnr":
        assert len(trials.file(chosen)) == min(len(trials.file(setting)) for setting in each)
    else:
        assert trials.value(chosen, "psnr") == max(trials.value(setting, "psnr") or 0 for setting in each)


def test_auto_shrinks_more_for_fewer_bytes(photograph: np.ndarray) -> None:
    scales = [choose_setting(photograph, Target("bytes", n)).scale for n in (900, 20000)]
    assert scales[0] > scales[1] == 1


def test_purpose_says_by_what_scales_are_compared(photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = Trials.value

    def value(self: Trials, setting: Setting, metric: str) -> Any:
        asked.append(metric)
        return original(self, setting, metric)

    monkeypatch.setattr(Trials, "value", value)
    choose_setting(photograph, Target("bytes", 3000), scales=[1, 2], trials=Trials(photograph, purpose="ms_ssim"))
    assert set(asked) == {"ms_ssim"}
    asked.clear()
    small = np.ascontiguousarray(photograph[:100, :100])  # too small for MS-SSIM
    choose_setting(small, Target("bytes", 1500), scales=[1, 2], trials=Trials(small, purpose="ms_ssim"))
    assert asked[-1] == "psnr"


def test_unmet_targets_say_what_the_nearest_is(photograph: np.ndarray) -> None:
    with pytest.raises(UnmetTargetError, match=r"20 bytes or less: the nearest has \d+ bytes .* scale 4 and"):
        choose_setting(photograph, Target("bytes", 20))
    with pytest.raises(UnmetTargetError, match=r"0\.0001 bits per pixel or less: .* scale 2 and quality 0"):
        choose_setting(photograph, Target("bpp", 0.0001), scales=[2], trials=Trials(photograph, "webp"))
    with pytest.raises(UnmetTargetError, match=r"reaches 90 dB: the nearest is \d\d\.\d\d dB, with scale 1 and"):
        choose_setting(photograph, Target("psnr", 90.0), scales=[1, 4])


def test_quality_is_taken_as_it_is(photograph: np.ndarray) -> None:
    trials = Trials(photograph)
    assert choose_setting(photograph, Target("quality", 44), scales=[3, 2], trials=trials) == Setting(3, 44)
    assert trials.n_encodes == 0
    with pytest.raises(ValueError, match="quality of jpeg is 1 to 100; got 0"):
        choose_setting(photograph, Target("quality", 0), trials=trials)


def test_a_proposal_saves_encodes_and_still_meets_the_target(photograph: np.ndarray) -> None:
    full = Trials(photograph)
    best = choose_setting(photograph, Target("bytes", 3000), trials=full)
    quick = Trials(photograph)
    propose: Callable[..., Setting] = lambda image, target: Setting(best.scale, best.quality + 3)  # noqa: E731
    assert choose_setting(photograph, Target("bytes", 3000), trials=quick, propose=propose) == best
    assert quick.n_encodes <= 6 < full.n_encodes / 3
    assert quick.n_restores == 0


def test_a_proposal_that_cannot_meet_the_target_costs_nothing_but_time(photograph: np.ndarray) -> None:
    target = Target("bytes", len(Trials(photograph).file(Setting(1, 1))) - 1)
    expected = choose_setting(photograph, target)
    for proposed in (Setting(1, 50), Setting(9, 50)):
        assert choose_setting(photograph, target, propose=lambda *_, proposed=proposed: proposed) == expected


@pytest.mark.parametrize(
    ("kind", "value"), [("bytes", 0), ("bpp", -1), ("psnr", float("inf")), ("psnr", float("nan")), ("quality", -1)]
)
def test_targets_out_of_range_are_refused(kind: Any, value: float) -> None:
    with pytest.raises(ValueError, match=f"a target of {kind} is a number above 0"):
        Target(kind, value)
    with pytest.raises(ValueError, match="unknown target 'size'; known: bytes, bpp, psnr, quality"):
        Target("size", 1)  # type: ignore[arg-type]


def test_values_are_those_of_the_metrics(photograph: np.ndarray) -> None:
    trials = Trials(photograph, "jpeg")
    setting = Setting(2, 40)
    restored = as_batch(decompress(trials.file(setting)))
    assert trials.value(setting, "psnr") == pytest.approx(psnr(restored, as_batch(photograph)).item(), abs=1e-4)
    assert trials.value(setting, "ms_ssim") == pytest.approx(ms_ssim_value(restored, photograph), abs=1e-6)
    assert read_header(trials.file(setting)).scale == 2
    assert (trials.n_encodes, trials.n_restores) == (1, 1)


def ms_ssim_value(restored: Any, photograph: np.ndarray) -> float:
    return METRICS["ms_ssim"](restored, as_batch(photograph)).item()


def test_psnr_of_equal_pictures_is_infinite(photograph: np.ndarray) -> None:
    assert picture_psnr(photograph, photograph) == float("inf")
    assert picture_psnr(np.zeros((600, 2, 3), np.uint8), np.full((600, 2, 3), 255, np.uint8)) == 0.0
