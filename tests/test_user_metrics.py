"""`register_metric`: any function of two pictures as the judge of an environment."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from rlsr_env import ENVIRONMENTS
from rlsr_env.metrics import METRICS, Metric, metric, register_metric
from rlsr_env.patches import PatchSource
from rlsr_env.picture_checks import MetricError
from rlsr_env.vector_env import RestorationVectorEnv


@pytest.fixture(autouse=True)
def _metrics_as_they_were() -> Iterator[None]:
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


class Level:
    """A generator of flat pictures."""

    def __init__(self, level: int) -> None:
        self.level = level

    def __call__(self, lr_image: Tensor) -> Tensor:
        return torch.full((len(lr_image), 3, 2 * lr_image.shape[2], 2 * lr_image.shape[3]), self.level / 255)


@pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))
def test_three_lines_make_a_metric_that_environments_know_by_name(env_id: str, patch_source: PatchSource) -> None:
    register_metric("skimage_psnr", lambda sr, hr: peak_signal_noise_ratio(hr, sr))
    ours, theirs = (
        gymnasium.make(env_id, source=patch_source, metric=name, reward="improvement")
        for name in ("psnr", "skimage_psnr")
    )
    obs, info = ours.reset(seed=0)
    same_obs, same_info = theirs.reset(seed=0)
    assert np.array_equal(obs, same_obs)
    assert same_info == {"skimage_psnr": pytest.approx(info["psnr"], abs=1e-4)}
    action = ours.action_space.sample()
    reward, same_reward = ours.step(action)[1], theirs.step(action)[1]
    assert same_reward == pytest.approx(reward, abs=1e-4)


def test_the_function_gets_pictures_of_8_bits_channels_last() -> None:
    seen = []

    def look(sr_image: np.ndarray, hr_image: np.ndarray) -> float:
        seen.append((sr_image, hr_image))
        return float(len(seen))

    sr_image = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) / 255
    values = register_metric("look", look)(sr_image, 1 - sr_image)
    assert values.tolist() == [1.0, 2.0] and values.dtype == torch.float64
    for number, (sr_array, hr_array) in enumerate(seen):
        assert sr_array.dtype == hr_array.dtype == np.uint8
        assert np.array_equal(sr_array, (sr_image[number] * 255).round().permute(1, 2, 0).numpy())
        assert np.array_equal(hr_array, 255 - sr_array)


def test_a_function_that_spoils_its_pictures_spoils_nothing_else(patch_source: PatchSource) -> None:
    def spoil(sr_image: np.ndarray, hr_image: np.ndarray) -> float:
        error = np.abs(sr_image.astype(float) - hr_image).mean()
        sr_image[:] = hr_image[:] = 0
        return float(error)

    register_metric("spoil", spoil, higher_is_better=False)
    env = gymnasium.make("rlsr/PSNRPrediction-v0", metric="spoil", source=patch_source)
    obs, info = env.reset(seed=0)
    again, _, _, _, later = env.step(np.zeros(1, np.float32))
    assert np.array_equal(again, obs)
    assert later["spoil"] == info["spoil"] > 0


@pytest.mark.parametrize(("reward", "expected"), [("improvement", [51.0, -20.0]), ("threshold", [1.0, -1.0])])
def test_where_less_is_better_a_fall_pays(reward: str, expected: list[float], patch_source: PatchSource) -> None:
    register_metric("brightness", lambda sr, hr: sr.mean(), higher_is_better=False)
    generator = Level(151)
    env = gymnasium.make(
        "rlsr/PSNRPrediction-v0", metric="brightness", source=patch_source, generator=generator, reward=reward
    )
    assert env.reset(seed=0)[1] == {"brightness": 151.0}
    rewards = []
    for generator.level in (100, 120):
        rewards.append(env.step(np.zeros(1, np.float32))[1])
    assert rewards == expected


def test_an_infinite_value_counts_as_100(patch_source: PatchSource) -> None:
    register_metric("endless", lambda sr, hr: np.inf if sr.mean() > 128 else -np.inf)
    generator = Level(200)
    env = RestorationVectorEnv(
        2, metric="endless", source=patch_source, generator=generator, reward="improvement", episode_length=2
    )
    assert env.reset(seed=0)[1]["endless"].tolist() == [100.0, 100.0]
    generator.level = 50
    _, rewards, _, _, infos = env.step(np.zeros((2, 1)))
    assert infos["endless"].tolist() == [-100.0, -100.0]
    assert rewards.tolist() == [-200.0, -200.0]


def test_what_was_registered_is_found_and_returned() -> None:
    mine = register_metric("mine", lambda sr, hr: 0, False, min_size=7, unit="levels", source="this test")
    assert metric("mine") is mine
    assert (mine.name, mine.higher_is_better, mine.differentiable) == ("mine", False, False)
    assert (mine.min_size, mine.unit, mine.source) == (7, "levels", "this test")
    with pytest.raises(ValueError, match=r"Unknown metric 'yours'; use one of dtw, .*, mine, ms_ssim, psnr"):
        metric("yours")


def test_a_metric_for_larger_pictures_is_refused(patch_source: PatchSource) -> None:
    register_metric("wide", lambda sr, hr: 0, min_size=17)
    with pytest.raises(ValueError, match="wide needs pictures of 17 pixels or more, the patches have 16"):
        gymnasium.make("rlsr/PSNRPrediction-v0", metric="wide", source=patch_source)


# Errors


@pytest.mark.parametrize("name", ["", "psnr", "ssim"])
def test_a_name_that_is_empty_or_taken_is_refused(name: str) -> None:
    before = dict(METRICS)
    with pytest.raises(ValueError, match=f"a metric needs a name of its own, got {name!r}; taken: dtw, .*psnr"):
        register_metric(name, lambda sr, hr: 0)
    assert before == METRICS


@pytest.mark.parametrize("function", [None, 3.0, "ssim"])
def test_what_cannot_be_called_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match=f"a metric is a function of two pictures, got {type(function).__name__}"):
        register_metric("mine", function)
    assert "mine" not in METRICS


def _divide_by_zero(sr_image: np.ndarray, hr_image: np.ndarray) -> float:
    return 1 / 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_divide_by_zero, r"metric 'mine' failed on picture 0 of the batch: ZeroDivisionError"),
        (lambda sr, hr: float("nan"), "metric 'mine' returned NaN for picture 0 of the batch; return a number"),
        (lambda sr, hr: None, "metric 'mine' failed on picture 0 of the batch: TypeError"),
        (lambda sr, hr: "good", "metric 'mine' failed on picture 0 of the batch: ValueError"),
        (lambda sr, hr: (sr - hr) ** 2, "metric 'mine' failed on picture 0 of the batch: TypeError"),
        (lambda sr: 0.0, "metric 'mine' failed on picture 0 of the batch: TypeError"),
    ],
    ids=["raises", "nan", "none", "word", "picture", "one-argument"],
)
def test_a_function_that_gives_no_number_is_refused_where_it_is_used(
    function: Callable[..., Any], message: str, patch_source: PatchSource
) -> None:
    register_metric("mine", function)
    env = gymnasium.make("rlsr/PSNRPrediction-v0", metric="mine", source=patch_source)
    with pytest.raises(ValueError, match=message):
        env.reset(seed=0)


def test_the_picture_at_fault_is_named_and_the_cause_is_kept() -> None:
    def picky(sr_image: np.ndarray, hr_image: np.ndarray) -> float:
        if sr_image.max() > 0:
            raise RuntimeError("too bright")
        return 1.0

    register_metric("picky", picky)
    pictures = torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 3, 8, 8)
    with pytest.raises(ValueError, match="failed on picture 2 of the batch") as caught:
        METRICS["picky"](pictures, pictures)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_all_pictures_at_fault_are_named() -> None:
    bright = register_metric("bright", lambda sr, hr: 1 / float(sr.max() == 0))
    nan = register_metric("nan", lambda sr, hr: math.nan if sr.max() else 1.0)
    pictures = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    with pytest.raises(
        MetricError, match="metric 'bright' failed on pictures 1, 3 of the batch: ZeroDivision"
    ) as caught:
        bright(pictures, pictures)
    assert (caught.value.metric, caught.value.pictures) == ("bright", (1, 3))
    with pytest.raises(MetricError, match="metric 'nan' returned NaN for pictures 1, 3 of the batch; return a number"):
        nan(pictures, pictures)


def test_nan_made_of_good_pictures_is_an_error_that_names_them() -> None:
    mine = Metric("mine", lambda sr, hr: (sr - hr).mean((1, 2, 3)) / (sr - hr).mean((1, 2, 3)))
    hr_image = torch.full((3, 3, 8, 8), 0.5)
    sr_image = hr_image.clone()
    sr_image[1] = 1
    with pytest.raises(MetricError, match="metric 'mine' returned NaN for pictures 0, 2 of the batch") as caught:
        mine(sr_image, hr_image)
    assert caught.value.pictures == (0, 2)
    sr_image[0] = sr_image[2] = math.nan  # now it is the pictures' fault
    assert mine(sr_image, hr_image).isnan().tolist() == [True, False, True]


def test_many_pictures_at_fault_are_not_all_listed() -> None:
    mine = register_metric("mine", lambda sr, hr: math.nan)
    with pytest.raises(MetricError, match=r"pictures 0, 1, 2, 3, 4, \.\.\. of the batch") as caught:
        mine(torch.zeros(9, 3, 8, 8), torch.zeros(9, 3, 8, 8))
    assert len(caught.value.pictures) == 9


def test_a_metric_object_needs_no_registration(patch_source: PatchSource) -> None:
    mine = Metric("mine", lambda sr, hr: (sr - hr).abs().amax(dim=(1, 2, 3)), higher_is_better=False)
    env = gymnasium.make("rlsr/DetailControl-v0", metric=mine, source=patch_source)
    assert 0 < env.reset(seed=0)[1]["mine"] <= 1
    assert "mine" not in METRICS
