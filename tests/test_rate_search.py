"""Choosing settings in a total of bytes, from few files."""

import numpy as np
import pytest
import torch

from agents.rate_policy import N_FEATURES, RateNetwork, RatePolicy
from agents.rate_search import LEAST_VARIANCE, Belief, choose_within
from agents.rate_training import Experience, fit_action_values
from rlsr_env.rate_oracle import rate_control_oracle
from rlsr_env.rate_table import RateTable, Setting
from rlsr_env.rate_views import N_VIEW_CHANNELS

SETTINGS = tuple(Setting(scale, quality) for scale in (1, 2, 3) for quality in (10, 20, 30, 40))
VIEWS = torch.zeros(8, N_VIEW_CHANNELS, 64, 64, dtype=torch.uint8)


def table_of(seed: int, n_pictures: int) -> RateTable:
    """Pictures of the same curves but for their level of quality and rate, and for how well each scale suits them."""
    rng = np.random.default_rng(seed)
    scale, quality = np.array(SETTINGS).T
    suits = rng.normal(0, 1, (n_pictures, 4))
    log_rate = np.log(quality / 10) - 1.2 * np.log(scale) - 1 + rng.normal(0, 0.5, (n_pictures, 1))
    values = 28 + 2.5 * log_rate + rng.normal(0, 3, (n_pictures, 1)) + suits[:, scale]
    values += rng.normal(0, 0.05, values.shape)
    n_pixels = np.full(n_pictures, 100_000)
    n_bytes = (np.exp(log_rate) * n_pixels[:, None] / 8).astype(np.int64)
    return RateTable(tuple(map(str, range(n_pictures))), n_pixels, SETTINGS, n_bytes, values)


@pytest.fixture(scope="module")
def policy() -> RatePolicy:
    """Sees nothing in a picture, but knows how the settings go together."""
    table = table_of(0, 200)
    network = RateNetwork(len(SETTINGS))
    qualities, rates = (torch.from_numpy(array).float() for array in (table.values, table.bits_per_pixel))
    fit_action_values(network, Experience(torch.zeros(200, N_FEATURES), qualities, rates))
    return RatePolicy(network, SETTINGS, {"base_codec": "jpeg"})


def test_errors_are_those_on_pictures_left_out() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(300, N_FEATURES, generator=rng)
    qualities, rates = torch.randn(300, 2, generator=rng), torch.rand(300, 2, generator=rng) + 0.5
    whole = Experience(features, qualities, rates)
    network = RateNetwork(2)
    fit_action_values(network, whole)
    errors = []
    for left_out in range(300):
        others = torch.arange(300) != left_out
        # The same normalisation: leaving a picture out of it, too, makes a difference that the formula does not count.
        other = RateNetwork(2)
        normal = network.normal_features(features).double()
        curves = torch.cat([qualities, rates.log()], 1)
        targets = ((curves - network.curve_mean) / network.curve_deviation).double()
        gram = normal[others].T @ normal[others] + 0.1 * 300 * torch.eye(N_FEATURES, dtype=torch.float64)
        other.load_state_dict(network.state_dict())
        other.weight.data.copy_(torch.linalg.solve(gram, normal[others].T @ targets[others]))
        expected = torch.cat(other.curves(features[left_out : left_out + 1]), 1)
        errors.append((curves[left_out] - expected[0]).detach())
    by_hand = torch.stack(errors)
    covariance = by_hand.T @ by_hand / 300
    # The mean's own part, 1 / n, is not in the errors by hand.
    assert torch.allclose(network.error_covariance.diag(), covariance.diag(), rtol=0.03)
    assert torch.allclose(network.error_covariance, covariance, atol=0.03)


def test_one_file_corrects_what_is_expected_of_the_others_as_the_equations_say(policy: RatePolicy) -> None:
    belief = Belief(policy, ["a", "b"], np.array([100_000, 100_000]), VIEWS[:2])
    before = belief.table()
    belief.learn(0, 5, 3000, 31.0)
    after = belief.table()
    assert (after.n_bytes[0, 5], after.values[0, 5]) == (3000, 31.0)
    assert np.array_equal(after.values[1], before.values[1]) and np.array_equal(after.n_bytes[1], before.n_bytes[1])
    # By hand, of setting 6: mean + covariance with what was seen / covariance of what was seen * surprise.
    covariance = policy.network.error_covariance.double().numpy()
    curves = torch.cat(policy.network.curves(torch.zeros(1, N_FEATURES)), 1)[0].detach().double().numpy()
    seen = [5, 12 + 5]
    surprise = np.array([31.0, np.log(8 * 3000 / 100_000)]) - curves[seen]
    gain = covariance[6, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)] + LEAST_VARIANCE * np.eye(2))
    assert after.values[0, 6] == pytest.approx(curves[6] + gain @ surprise)
    assert belief.doubt()[0, 6] == pytest.approx(np.sqrt(covariance[6, 6] - gain @ covariance[seen, 6]))
    assert belief.doubt()[0, 5] < 0.01 < belief.doubt()[0, 6] < belief.doubt()[1, 6]


def test_optimism_hopes_for_better_and_smaller_files_and_does_not_change_what_is_known(policy: RatePolicy) -> None:
    belief = Belief(policy, ["a"], np.array([100_000]), VIEWS[:1])
    belief.learn(0, 2, 3000, 31.0)
    sober, hopeful = belief.table(), belief.table(optimism=1.0)
    unknown = ~belief.made[0]
    assert (hopeful.values[0, unknown] > sober.values[0, unknown]).all()
    assert (hopeful.n_bytes[0, unknown] <= sober.n_bytes[0, unknown]).all()
    assert (hopeful.values[0, 2], hopeful.n_bytes[0, 2]) == (31.0, 3000)


def test_a_third_of_the_files_gives_nearly_all_that_the_oracle_gains(policy: RatePolicy) -> None:
    table = table_of(1, 8)
    room = rate_control_oracle(table, bits_per_pixel=0.4)
    made: list[tuple[int, int]] = []

    def measure(picture: int, setting: int) -> tuple[int, float]:
        made.append((picture, setting))
        return int(table.n_bytes[picture, setting]), float(table.values[picture, setting])

    belief = Belief(policy, table.uris, table.n_pixels, VIEWS)
    choice = choose_within(belief, room.fixed.n_bytes, measure, most_files=32)
    assert choice.n_bytes <= room.fixed.n_bytes and choice.n_encodes == len(made) == len(set(made)) <= 32
    assert choice.quality == pytest.approx(table.values[np.arange(8), choice.settings].mean())
    assert choice.quality - room.fixed.quality > 0.8 * room.gain > 0.2
    assert belief.made[np.arange(8), choice.settings].all()
    again = choose_within(Belief(policy, table.uris, table.n_pixels, VIEWS), room.fixed.n_bytes, measure, 32)
    assert np.array_equal(again.settings, choice.settings)


def test_with_all_files_it_is_the_oracles_choice(policy: RatePolicy) -> None:
    table = table_of(2, 4)
    room = rate_control_oracle(table, bits_per_pixel=0.4)
    belief = Belief(policy, table.uris, table.n_pixels, VIEWS[:4])
    for picture in range(4):
        for setting in range(len(SETTINGS)):
            belief.learn(picture, setting, int(table.n_bytes[picture, setting]), table.values[picture, setting])
    choice = choose_within(belief, room.fixed.n_bytes, lambda picture, setting: (1, 0.0), most_files=48)
    assert choice.quality == pytest.approx(room.oracle.quality)


def test_too_few_files_or_bytes_are_refused(policy: RatePolicy) -> None:
    table = table_of(3, 4)
    belief = Belief(policy, table.uris, table.n_pixels, VIEWS[:4])
    with pytest.raises(ValueError, match="4 pictures need a file each, got most_files 3"):
        choose_within(belief, 10_000, lambda picture, setting: (1, 0.0), most_files=3)
    with pytest.raises(ValueError, match="more than 10"):
        choose_within(belief, 10, lambda picture, setting: (int(table.n_bytes[picture, setting]), 30.0), most_files=8)


def test_a_belief_refuses_what_does_not_belong_together(policy: RatePolicy) -> None:
    with pytest.raises(ValueError, match="got 2 names, 1 numbers of pixels and 2 views"):
        Belief(policy, ["a", "b"], np.array([100]), VIEWS[:2])
    belief = Belief(policy, ["a"], np.array([100]), VIEWS[:1])
    for n_bytes, quality in ((0, 30.0), (10, float("nan"))):
        with pytest.raises(ValueError, match=r"a at .*quality=20.* came to"):
            belief.learn(0, 1, n_bytes, quality)
    assert not belief.made.any()
