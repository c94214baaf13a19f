import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsr_env.metrics import METRICS
from rlsr_env.rewards import REWARDS, Improvement, Reward, Threshold, reward

BOTH_REWARDS = pytest.mark.parametrize("rewarder", [Threshold(), Improvement()], ids=["threshold", "improvement"])
VALUE_PAIRS = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=8)


def decibels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_threshold_is_1_on_a_rise_and_minus_1_else() -> None:
    rewards = Threshold()(decibels(30, 30, 30), decibels(30.5, 30, 29.5))
    assert rewards.tolist() == [1, -1, -1]
    assert rewards.dtype == torch.float32


@pytest.mark.parametrize("lower", [0.0, -0.5, 0.25])
def test_threshold_gives_its_lower_value_where_there_is_no_rise(lower: float) -> None:
    assert Threshold(lower)(decibels(30, 30, 30), decibels(30.5, 30, 29.5)).tolist() == [1, lower, lower]


def test_threshold_sees_a_rise_that_float32_would_lose() -> None:
    assert Threshold()(decibels(40), decibels(40 + 1e-9)).tolist() == [1]


def test_threshold_orders_infinities() -> None:
    before = decibels(math.inf, 30, math.inf)
    after = decibels(math.inf, math.inf, 30)
    assert Threshold()(before, after).tolist() == [-1, 1, -1]


@pytest.mark.parametrize("lower", [1.0, 2.0, math.nan, -math.inf])
def test_threshold_refuses_a_lower_value_that_does_not_punish(lower: float) -> None:
    with pytest.raises(ValueError, match=f"finite lower value below its upper one of 1, got {lower}"):
        Threshold(lower)


def test_improvement_is_the_rise_in_the_unit_of_the_metric() -> None:
    rewards = Improvement()(decibels(30, 30, 30), decibels(30.5, 30, 29.75))
    assert rewards.tolist() == [0.5, 0, -0.25]
    assert rewards.dtype == torch.float32


def test_improvement_is_scaled() -> None:
    assert Improvement(scale=4)(decibels(30, 30), decibels(30.5, 29.75)).tolist() == [2, -1]


def test_improvement_keeps_a_millionth_of_a_decibel_at_40_db() -> None:
    assert Improvement()(decibels(40), decibels(40 + 1e-6)).item() == pytest.approx(1e-6, rel=1e-4)


def test_improvement_between_equal_infinities_is_0() -> None:
    before = decibels(math.inf, -math.inf, 30, math.inf)
    after = decibels(math.inf, -math.inf, math.inf, 30)
    assert Improvement()(before, after).tolist() == [0, 0, math.inf, -math.inf]


def test_improvement_between_identical_pictures_is_0() -> None:
    hr_image = torch.rand(2, 3, 8, 8)
    values = METRICS["psnr"](hr_image, hr_image)
    assert Improvement()(values, values).tolist() == [0, 0]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_improvement_refuses_a_scale_that_erases_or_turns_the_reward(scale: float) -> None:
    with pytest.raises(ValueError, match=f"finite scale above 0, got {scale}"):
        Improvement(scale)


@given(pairs=VALUE_PAIRS)
@settings(deadline=None, max_examples=50)
def test_rewards_agree_on_what_is_a_rise(pairs: list[tuple[float, float]]) -> None:
    before, after = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    rises = Threshold()(before, after) == 1
    assert torch.equal(rises, after > before)
    assert (Improvement()(before, after)[~rises] <= 0).all()


@given(pairs=VALUE_PAIRS)
@settings(deadline=None, max_examples=50)
def test_improvement_back_and_forth_is_0(pairs: list[tuple[float, float]]) -> None:
    before, after = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    assert torch.equal(Improvement()(before, after), -Improvement()(after, before))


@BOTH_REWARDS
def test_negated_values_reward_a_fall(rewarder: Reward) -> None:
    squared_error_before, squared_error_after = decibels(0.5, 0.25), decibels(0.25, 0.5)
    rewards = rewarder(-squared_error_before, -squared_error_after)
    assert rewards[0] > 0 > rewards[1]


@BOTH_REWARDS
def test_each_env_is_rewarded_as_if_alone(rewarder: Reward) -> None:
    before, after = decibels(20, 30, 40), decibels(21, 29, 40)
    alone = [rewarder(before[i : i + 1], after[i : i + 1]).item() for i in range(3)]
    assert rewarder(before, after).tolist() == alone


@BOTH_REWARDS
def test_float32_values_are_rewarded_too(rewarder: Reward) -> None:
    rewards = rewarder(torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.25]))
    assert rewards.dtype == torch.float32
    assert rewards[0] > 0 > rewards[1]


@BOTH_REWARDS
def test_nan_is_refused_with_the_number_of_pictures(rewarder: Reward) -> None:
    before = decibels(math.nan, 30, math.nan, 30)
    after = decibels(math.nan, math.nan, 30, 30)
    with pytest.raises(ValueError, match="The metric returned NaN for 3 of 4 pictures"):
        rewarder(before, after)


@BOTH_REWARDS
@pytest.mark.parametrize("shape", [(1,), (2, 1), ()])
def test_shapes_that_differ_are_refused(rewarder: Reward, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one metric value before and one after for each env, got shapes \(2,\)"):
        rewarder(torch.zeros(2), torch.zeros(shape))


@pytest.mark.parametrize(("name", "expected"), [("threshold", Threshold(-1.0)), ("improvement", Improvement(1.0))])
def test_reward_is_found_by_its_name(name: str, expected: Reward) -> None:
    assert reward(name) is REWARDS[name]
    assert reward(name) == expected


def test_own_reward_passes_through() -> None:
    def sign(before: Tensor, after: Tensor) -> Tensor:
        return (after - before).sign()

    milder = Threshold(lower=0.0)
    assert reward(sign) is sign
    assert reward(milder) is milder


def test_unknown_reward_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown reward 'treshold'; use one of improvement, threshold"):
        reward("treshold")
