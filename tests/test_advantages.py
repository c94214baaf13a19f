import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.advantages import BASELINES, advantages, is_flat

# Four samples of two patches: the first group has mean 3, the second mean 1.
REWARDS = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [6.0, 4.0]])


def grids(n_samples: int = 4, n_patches: int = 3) -> st.SearchStrategy[Tensor]:
    """Rewards that are whole numbers, so that equal ones are equal exactly."""
    row = st.lists(st.integers(-50, 50), min_size=n_patches, max_size=n_patches)
    return st.lists(row, min_size=n_samples, max_size=n_samples).map(lambda rows: torch.tensor(rows).double())


# --- by hand


def test_group_by_hand() -> None:
    # Squared deviations from the mean: 4 + 1 + 0 + 9 = 14 over 3, and 1 + 1 + 1 + 9 = 12 over 3, whose root is 2.
    first = [x / math.sqrt(14 / 3) for x in (-2, -1, 0, 3)]
    result = advantages(REWARDS, "group")
    assert result[:, 0].tolist() == pytest.approx(first)
    assert result[:, 1].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5])


def test_leave_one_out_by_hand() -> None:
    # 1 - (2 + 3 + 6) / 3, 2 - (1 + 3 + 6) / 3, ...; the squares of all eight add up to 416 / 9, over 7.
    differences = torch.tensor([[-8 / 3, -4 / 3], [-4 / 3, -4 / 3], [0.0, -4 / 3], [4.0, 4.0]])
    expected = differences / math.sqrt(416 / 9 / 7)
    assert torch.allclose(advantages(REWARDS, "leave_one_out"), expected)


def test_critic_by_hand() -> None:
    # Less 2 and 1: -1 0 1 4 and -1 -1 -1 3, of mean 0.5 and sum of squares 30; (30 - 8 * 0.25) / 7 = 4.
    result = advantages(REWARDS, "critic", torch.tensor([2.0, 1.0]))
    assert result[:, 0].tolist() == pytest.approx([-0.5, 0.0, 0.5, 2.0])
    assert result[:, 1].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5])


def test_places_within_a_patch_are_groups_of_their_own() -> None:
    blocks = torch.stack([REWARDS, REWARDS.flip(0) * 7], dim=2)[..., None]  # (K, N, 2, 1)
    result = advantages(blocks, "group")
    assert result.shape == blocks.shape
    assert torch.allclose(result[:, :, 0, 0], advantages(REWARDS, "group"))
    assert torch.allclose(result[:, :, 1, 0], advantages(REWARDS.flip(0), "group"))


def test_critics_values_spread_over_the_places_of_a_patch() -> None:
    blocks = torch.stack([REWARDS, REWARDS + 10], dim=2)
    values = torch.tensor([[2.0, 12.0], [1.0, 11.0]])
    result = advantages(blocks, "critic", values)
    # Twice the same eight differences: the sum of squares is 60, (60 - 16 * 0.25) / 15 = 56 / 15.
    expected = advantages(REWARDS, "critic", torch.tensor([2.0, 1.0])) * 2 / math.sqrt(56 / 15)
    assert torch.allclose(result[..., 0], expected)
    assert torch.allclose(result[..., 1], expected)


# --- flat groups


@pytest.mark.parametrize("baseline", BASELINES)
def test_flat_group_has_no_advantage(baseline: Any) -> None:
    rewards = REWARDS.clone()
    rewards[:, 0] = 30.0
    result = advantages(rewards, baseline, torch.tensor([2.0, 1.0]))
    assert result[:, 0].tolist() == [0.0] * 4
    assert result[:, 1].abs().min() > 0


@pytest.mark.parametrize("baseline", BASELINES)
def test_rounding_is_no_spread(baseline: Any) -> None:
    rewards = torch.full((4, 2), 30.0)
    rewards[0] += 2e-6  # the next float32
    assert rewards.std() > 0
    assert advantages(rewards, baseline, torch.zeros(2)).abs().max() == 0


@pytest.mark.parametrize("baseline", BASELINES)
def test_small_rewards_count_in_full(baseline: Any) -> None:
    result = advantages(1e-4 * REWARDS, baseline, 1e-4 * torch.tensor([2.0, 1.0]))
    assert torch.allclose(result, advantages(REWARDS, baseline, torch.tensor([2.0, 1.0])), rtol=1e-4)


def test_is_flat_needs_every_place_to_be_flat() -> None:
    rewards = torch.zeros(4, 3, 2, 2)
    rewards[1, 1, 0, 1] = 1.0
    rewards[:, 2] = 5.0
    assert is_flat(rewards).tolist() == [True, False, True]
    assert is_flat(rewards[:, :, 0, 1]).tolist() == [True, False, True]
    assert is_flat(rewards[:, :, 0, 0]).tolist() == [True, True, True]


# --- properties


@given(grids())
@settings(deadline=None)
def test_advantages_of_a_group_sum_to_zero(rewards: Tensor) -> None:
    for baseline in ("group", "leave_one_out"):
        assert advantages(rewards, baseline).sum(0).abs().max() < 1e-9


@given(grids(), st.floats(0.5, 10), st.lists(st.integers(-50, 50), min_size=3, max_size=3))
@settings(deadline=None)
def test_unit_and_zero_of_the_rewards_do_not_matter(rewards: Tensor, unit: float, zeros: list[int]) -> None:
    moved = unit * rewards + torch.tensor(zeros)
    values = rewards.mean(0) + 1
    for baseline, before, after in (
        ("group", None, None),
        ("leave_one_out", None, None),
        ("critic", values, unit * values + torch.tensor(zeros)),
    ):
        expected, result = advantages(rewards, baseline, before), advantages(moved, baseline, after)
        assert torch.allclose(result, expected, atol=1e-6), baseline


@given(grids())
@settings(deadline=None)
def test_group_does_not_depend_on_the_other_patches_units(rewards: Tensor) -> None:
    units = torch.tensor([1.0, 10.0, 0.1]).double()
    assert torch.allclose(advantages(units * rewards, "group"), advantages(rewards, "group"), atol=1e-6)


@given(grids(), st.permutations(range(4)), st.permutations(range(3)))
@settings(deadline=None)
def test_order_of_samples_and_patches_does_not_matter(rewards: Tensor, samples: list[int], patches: list[int]) -> None:
    values = torch.tensor([1.0, -2.0, 3.0]).double()
    for baseline in BASELINES:
        moved = advantages(rewards[samples][:, patches], baseline, values[patches])
        assert torch.allclose(moved, advantages(rewards, baseline, values)[samples][:, patches], atol=1e-9)


def test_leave_one_out_lets_a_patch_with_little_to_gain_count_little() -> None:
    rewards = torch.tensor([[0.0, 0.0], [0.01, 1.0]])
    by_group, left_out = advantages(rewards, "group"), advantages(rewards, "leave_one_out")
    assert by_group[1, 0] == pytest.approx(by_group[1, 1].item())
    assert left_out[1, 0].item() == pytest.approx(0.01 * left_out[1, 1].item(), rel=1e-4)


# --- errors


@pytest.mark.parametrize("shape", [(4,), (1, 3), (1, 3, 2, 2)])
def test_one_sample_is_no_group(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(K, N, ...\) with K of 2 or more samples, got \("):
        advantages(torch.zeros(shape))


def test_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown baseline 'mean'; known: group, leave_one_out, critic"):
        advantages(REWARDS, "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(("values", "got"), [(None, "none"), (torch.zeros(2, 1), r"\(2, 1\)")])
def test_critic_without_fitting_values_is_refused(values: Tensor | None, got: str) -> None:
    with pytest.raises(ValueError, match=rf"needs a value for each patch and place, \(N, ...\), got {got}"):
        advantages(REWARDS, "critic", values)
