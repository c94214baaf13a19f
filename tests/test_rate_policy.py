import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.rate_policy import N_FEATURES, RateNetwork, RatePolicy, decode_rate_weight, picture_features
from agents.rate_training import (
    Experience,
    FeatureObservation,
    decoders_of,
    experience_all,
    fit_action_values,
    follow_expected_reward,
    make_env,
    own_file_bytes,
    ppo_choice,
    pretrained_weights,
    train_ppo,
)
from gan.file_format import compress
from gan.zoo import LANCZOS_WEIGHTS
from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.rate_control import rate_weight_code
from rlsr_env.rate_source import RateSource
from rlsr_env.rate_table import Setting
from rlsr_env.rate_views import view_picture

SETTINGS = ((1, 10), (1, 40), (2, 20), (2, 60), (4, 40), (4, 85))


def picture(seed: int, size: int = 64) -> np.ndarray:
    """From smooth to rough, by the seed."""
    rng = np.random.default_rng(seed)
    waves = 128 + 50 * np.sin(np.arange(size) / 9 + seed)[:, None, None] * np.cos(np.arange(size) / 7)[:, None]
    return (waves + rng.normal(0, 1 + 3 * (seed % 8), (size, size, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def training() -> RateSource:
    images = tuple(picture(seed) for seed in range(16))
    return RateSource(DecodedImages(tuple(map(str, range(16))), images, ()), SETTINGS)


@pytest.fixture(scope="module")
def experience(training: RateSource) -> Experience:
    return experience_all(make_env(5, source=training))


@pytest.fixture(scope="module")
def policy(experience: Experience) -> RatePolicy:
    network = RateNetwork(len(SETTINGS))
    fit_action_values(network, experience)
    return RatePolicy(network, SETTINGS, {"base_codec": "jpeg", "metric": "psnr"})


def mean_reward(network: RateNetwork, experience: Experience, weight: float) -> float:
    """What the best action by the network's own values earns."""
    weights = torch.full((len(experience.features),), weight)
    chosen = network.logits(experience.features, weights).argmax(dim=1, keepdim=True)
    return (experience.qualities - weight * experience.rates).gather(1, chosen).mean().item()


def test_experience_is_the_table_in_its_order(training: RateSource, experience: Experience) -> None:
    table = training.table()
    assert experience.qualities.shape == (16, 6) and experience.features.shape == (16, N_FEATURES)
    assert np.allclose(experience.qualities.numpy(), table.values)
    assert np.allclose(experience.rates.numpy(), table.bits_per_pixel)
    views = torch.from_numpy(np.stack([view_picture(image) for image in training.images]))
    assert torch.equal(experience.features, picture_features(views))


@pytest.mark.parametrize("weight", [3.0, 10.0])
def test_fitted_values_earn_more_than_the_best_fixed_setting_on_other_pictures(
    policy: RatePolicy, weight: float
) -> None:
    images = tuple(picture(seed) for seed in range(20, 32))
    others = experience_all(make_env(4, source=RateSource(DecodedImages(tuple("abcdefghijkl"), images, ()), SETTINGS)))
    rewards = others.qualities - weight * others.rates
    fixed, best = rewards.mean(dim=0).max().item(), rewards.max(dim=1).values.mean().item()
    earned = mean_reward(policy.network, others, weight)
    assert fixed < earned <= best + 1e-5


def test_gradient_of_the_expected_reward_lowers_the_regret(experience: Experience) -> None:
    network = RateNetwork(len(SETTINGS))
    fit_action_values(network, experience, regularisation=10.0)  # strong, so that there is something left to learn
    regrets = follow_expected_reward(network, experience, (3.0, 30.0), n_updates=60, learning_rate=0.01, anchor=0.0)
    assert np.mean(regrets[-10:]) < 0.8 * np.mean(regrets[:10])
    again = RateNetwork(len(SETTINGS))
    fit_action_values(again, experience, regularisation=10.0)
    assert regrets == follow_expected_reward(again, experience, (3.0, 30.0), 60, learning_rate=0.01, anchor=0.0)


def test_ppo_learns_from_what_it_earned(training: RateSource, experience: Experience) -> None:
    mean, deviation = experience.features.mean(dim=0).numpy(), experience.features.std(dim=0).numpy() + 1e-3
    rewards = (experience.qualities - 10.0 * experience.rates).numpy()
    choices = []
    for _ in range(2):
        env = FeatureObservation(make_env(16, source=training, rate_weight=10.0), mean, deviation)
        model = train_ppo(env, 3072, seed=0, n_steps=32)
        choices.append(ppo_choice(model, env, experience.features.numpy(), np.full(16, 10.0)))
    assert np.array_equal(choices[0], choices[1])
    half_way = (rewards.mean() + rewards.max(axis=1).mean()) / 2  # from random settings to the best
    assert rewards[np.arange(16), choices[0]].mean() > half_way


def test_feature_observations_are_the_networks(training: RateSource) -> None:
    base = make_env(4, source=training)
    mean, deviation = np.full(N_FEATURES, 0.1, dtype=np.float32), np.full(N_FEATURES, 2.0, dtype=np.float32)
    env = FeatureObservation(base, mean, deviation)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    views = torch.from_numpy(np.stack([training.view(number) for number in base.pictures]))
    assert np.allclose(obs[:, :-1], (picture_features(views).numpy() - 0.1) / 2, atol=1e-6)
    assert np.allclose(obs[:, -1] * np.log(64) / 8, np.log(base.rate_weights / 40), atol=1e-5)  # from 5 to 320
    weights, before = base.rate_weights.copy(), obs.copy()
    obs, rewards, *_, infos = env.step(np.array([0, 1, 2, 3]))
    assert all(map(np.array_equal, infos["final_obs"], before))
    final = infos["final_info"]
    assert np.allclose(rewards * np.sqrt(weights), final["psnr"] - weights * final["bits_per_pixel"])


def test_network_reads_the_weight_from_an_observation(policy: RatePolicy, training: RateSource) -> None:
    env = make_env(3, source=training, rate_weight=20.0)
    obs, _ = env.reset(seed=1)
    decoded = decode_rate_weight(torch.tensor(rate_weight_code(20.0))).item()
    assert decoded == pytest.approx(20.0, rel=0.03)
    features = picture_features(torch.from_numpy(obs[:, :-1]))
    expected = policy.network.logits(features, torch.full((3,), decoded))
    assert torch.allclose(policy.network(torch.from_numpy(obs)), expected, atol=1e-3)


def test_a_saved_policy_is_the_same(policy: RatePolicy, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    policy.save(path)
    again = RatePolicy.load(path)
    assert again.settings_list == policy.settings_list
    assert again.card["metric"] == "psnr" and len(again.card["sha256"]) == 64
    for ours, theirs in zip(policy.network.state_dict().items(), again.network.state_dict().items(), strict=True):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])
    assert again.settings(picture(40), 10.0) == policy.settings(picture(40), 10.0)


def test_damaged_files_are_refused(policy: RatePolicy, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    policy.save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="sha256 differs"):
        RatePolicy.load(path)
    path.write_bytes(content)
    card = json.loads(path.with_suffix(".json").read_text())
    for damage in ({"settings": None}, {"temperature": 0}):
        path.with_suffix(".json").write_text(json.dumps({**card, **damage}))
        with pytest.raises(ValueError, match="no card of a rate policy"):
            RatePolicy.load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"policy\.json does not exist"):
        RatePolicy.load(path)


def test_more_costly_bits_make_smaller_files(policy: RatePolicy) -> None:
    image = picture(50)
    sizes = []
    for weight in (0.0, 3.0, 30.0, 1000.0):
        setting = policy.settings(image, weight)
        sizes.append(len(LRCodec(setting.scale, "jpeg", setting.quality).encode(image)))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]
    assert policy.settings(image, 3.0, scales=(4,)).scale == 4
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="rate_weight"):
            policy.settings(image, weight)
    with pytest.raises(ValueError, match="knows the scales"):
        policy.settings(image, 1.0, scales=(3,))


def test_proposals_are_near_the_target(policy: RatePolicy) -> None:
    image = picture(45)
    proposals = []
    for n_bytes in (350, 420, 650):
        proposed = policy.propose(image, SimpleNamespace(kind="bytes", value=n_bytes))
        made = len(LRCodec(proposed.scale, "jpeg", proposed.quality).encode(image))
        assert 0.7 < made / n_bytes < 1.4
        same = policy.propose(image, SimpleNamespace(kind="bpp", value=8 * n_bytes / image[..., 0].size))
        assert same == proposed
        proposals.append(proposed)
    assert policy.propose(image, SimpleNamespace(kind="bytes", value=5000)).quality == 100
    only = policy.propose(image, SimpleNamespace(kind="psnr", value=25.0), scales=(2,))
    assert only.scale == 2 and 1 <= only.quality <= 100
    for kind, value in (("quality", 30), ("bytes", 0), ("psnr", math.nan)):
        with pytest.raises(ValueError, match="the policy proposes"):
            policy.propose(image, SimpleNamespace(kind=kind, value=value))


def test_networks_and_policies_that_cannot_be_are_refused(experience: Experience) -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        RateNetwork(3, temperature=0.0)
    with pytest.raises(ValueError, match="chooses from 3 settings, there are 6"):
        RatePolicy(RateNetwork(3), SETTINGS, {"base_codec": "jpeg"})
    with pytest.raises(ValueError, match="2 or more pictures"):
        fit_action_values(RateNetwork(6), experience[torch.tensor([0])])
    with pytest.raises(ValueError, match="regularisation above 0"):
        fit_action_values(RateNetwork(6), experience, 0.0)


def test_own_files_are_counted_whole() -> None:
    image = picture(3)
    count = own_file_bytes("jpeg", dict.fromkeys((1, 2), LANCZOS_WEIGHTS))
    stream = LRCodec(2, "jpeg", 30).encode(image)
    assert count(stream, image.shape[:2], 2) == len(compress(image, scale=2, quality=30, weights=LANCZOS_WEIGHTS))


def test_without_weights_everything_is_lanczos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gan.zoo.PRETRAINED", tmp_path)
    monkeypatch.delenv("RLSR_WEIGHTS", raising=False)
    weights = pretrained_weights("jpeg", (1, 2))
    assert weights == {1: LANCZOS_WEIGHTS, 2: LANCZOS_WEIGHTS}
    assert decoders_of(weights) == {}


def test_policy_of_the_package_is_there_and_chooses() -> None:
    policy = RatePolicy.load()
    assert policy.card["base_codec"] == "jpeg"
    chosen = policy.settings(picture(7, 128), 20.0)
    assert isinstance(chosen, Setting) and chosen in policy.settings_list
