import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO

from agents.generator_policy import GeneratorPolicy, to_action, to_picture
from agents.vec_env import GymnasiumVecEnv
from gan.generator import GeneratorConfig
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv

LR_PATCH = spaces.Box(0, 255, (3, 8, 8), np.uint8)
PICTURE = spaces.Box(-1, 1, (3, 16, 16), np.float32)
TINY = GeneratorConfig(scale=2, channels=4, n_blocks=1)

MakePolicy = Callable[..., GeneratorPolicy]
MakeModel = Callable[..., Any]


def observations(n: int = 5) -> th.Tensor:
    return th.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8))


def stir(module: th.nn.Module) -> None:
    """Move every weight and statistic away from where it started, as training would."""
    with th.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * th.rand(tensor.shape))


@pytest.fixture
def make_policy(torch_rng: None) -> MakePolicy:
    def make(seed: int = 0, **settings: Any) -> GeneratorPolicy:
        th.manual_seed(seed)
        settings = {"generator_config": TINY, "sigma": 0.05} | settings
        policy = GeneratorPolicy(LR_PATCH, PICTURE, lambda _: 1e-3, **settings)
        stir(policy.generator)
        stir(policy.value_net)
        return policy

    return make


@pytest.fixture
def make_model(patch_source: PatchSource, torch_rng: None) -> MakeModel:
    def make(algorithm: type, config: GeneratorConfig = TINY, **settings: Any) -> Any:
        env = RestorationVectorEnv(
            2, task="super_resolution", source=patch_source, episode_length=1, reward="improvement"
        )
        if algorithm is PPO:
            settings = {"batch_size": 4, "n_epochs": 2} | settings
        return algorithm(
            GeneratorPolicy, GymnasiumVecEnv(env), n_steps=4, seed=0, device="cpu",
            policy_kwargs={"generator_config": config, "sigma": 0.05}, **settings,
        )  # fmt: skip

    return make


# --- the distribution


def test_mean_is_the_generators_picture(make_policy: MakePolicy) -> None:
    policy, obs = make_policy(), observations()
    with th.no_grad():
        expected = policy.generator(obs.float() / 255)
        mean, _ = policy.pictures(obs)
        action, _, _ = policy(obs, deterministic=True)
    assert th.equal(mean, expected)
    assert th.allclose(action, 2 * expected - 1)
    predicted, _ = policy.predict(obs.numpy(), deterministic=True)
    assert np.allclose(predicted, (2 * expected - 1).clamp(-1, 1))


def test_noise_has_the_deviation_of_the_picture(make_policy: MakePolicy) -> None:
    policy, obs = make_policy(), observations(20)
    th.manual_seed(1)
    with th.no_grad():
        action, _, _ = policy(obs)
        noise = to_picture(action) - policy.pictures(obs)[0]
    assert noise.numel() == 20 * 3 * 16 * 16
    assert noise.std().item() == pytest.approx(0.05, rel=0.03)
    assert abs(noise.mean().item()) < 0.05 * 4 / math.sqrt(noise.numel())
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean() / 0.05**2
    assert abs(neighbours.item()) < 0.05


def test_log_probability_is_the_mean_over_the_values_of_a_normals(make_policy: MakePolicy) -> None:
    policy, obs = make_policy(), observations()
    with th.no_grad():
        action, values, log_prob = policy(obs)
        mean, expected_values = policy.pictures(obs)
        again = policy.evaluate_actions(obs, action.flatten(1))  # the form in which SB3's buffer gives them back
    normal = th.distributions.Normal(mean.double(), 0.05)
    expected = normal.log_prob(to_picture(action.double())).mean((1, 2, 3))
    assert log_prob.shape == (5,) and values.shape == (5, 1)
    assert th.allclose(log_prob.double(), expected, rtol=1e-4)
    assert th.allclose(again[1], log_prob, rtol=1e-4)
    assert th.equal(again[0], values)
    assert th.equal(values[:, 0], expected_values)
    assert again[2].shape == (5,)
    assert again[2][0].item() == pytest.approx(normal.entropy().mean().item(), rel=1e-5)


def test_actions_and_pictures_are_each_others_inverse() -> None:
    assert to_action(th.tensor([0.0, 0.5, 1.0])).tolist() == [-1.0, 0.0, 1.0]
    assert to_picture(th.tensor([-1.0, 0.0, 1.0])).tolist() == [0.0, 0.5, 1.0]


def test_value_is_a_layer_on_the_mean_of_the_latent(make_policy: MakePolicy) -> None:
    policy, obs = make_policy(), observations()
    with th.no_grad():
        latent = policy.trunk(obs.float() / 255).mean((2, 3))
        expected = latent @ policy.value_net.weight[0] + policy.value_net.bias
        assert th.allclose(policy.predict_values(obs)[:, 0], expected, atol=1e-6)


def test_critics_gradient_stops_at_the_latent(make_policy: MakePolicy) -> None:
    policy = make_policy()
    policy.predict_values(observations()).square().sum().backward()
    assert policy.value_net.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in policy.generator.parameters())


def test_fresh_critic_predicts_zero(torch_rng: None) -> None:
    policy = GeneratorPolicy(LR_PATCH, PICTURE, lambda _: 1e-3, generator_config=TINY)
    assert policy.predict_values(observations()).tolist() == [[0.0]] * 5


# --- weights


def test_optimiser_holds_encoder_decoder_and_critic_once(make_policy: MakePolicy) -> None:
    policy = make_policy()
    (group,) = policy.optimizer.param_groups
    held = [id(parameter) for parameter in group["params"]]
    parts = [policy.trunk, policy.decoder, policy.value_net]
    expected = [id(parameter) for part in parts for parameter in part.parameters()]
    assert sorted(held) == sorted(expected)
    assert len(set(held)) == len(held)
    assert policy.generator.encoder is policy.trunk and policy.generator.decoder is policy.decoder


def test_adam_is_plain_srgans_unless_asked_for(make_policy: MakePolicy) -> None:
    assert make_policy().optimizer.param_groups[0]["eps"] == 1e-8
    assert make_policy(optimizer_kwargs={"eps": 1e-3}).optimizer.param_groups[0]["eps"] == 1e-3
    assert isinstance(make_policy(optimizer_class=th.optim.SGD).optimizer, th.optim.SGD)


def test_reference_is_a_copy_that_nobody_trains(make_policy: MakePolicy) -> None:
    policy, obs = make_policy(), observations()
    policy.anchor()
    lr_image = policy.lr_image(obs)
    with th.no_grad():
        before = policy.generator(lr_image)
        assert th.equal(policy.reference(lr_image), before)
        stir(policy.generator)
        assert th.equal(policy.reference(lr_image), before)
        assert not th.equal(policy.generator(lr_image), before)
        policy.anchor()
        assert th.equal(policy.reference(lr_image), policy.generator(lr_image))
    assert not any(parameter.requires_grad for parameter in policy.reference.parameters())


def test_policy_saves_and_loads_reference_sigma_and_architecture(make_policy: MakePolicy, tmp_path: Path) -> None:
    policy, obs = make_policy(), observations()
    policy.anchor()
    stir(policy.generator)
    policy.save(tmp_path / "policy.pt")
    loaded = GeneratorPolicy.load(tmp_path / "policy.pt")
    assert loaded.generator_config == TINY
    assert loaded.sigma == 0.05
    assert loaded.state_dict().keys() == policy.state_dict().keys()
    lr_image = policy.lr_image(obs)
    with th.no_grad():
        assert th.equal(loaded.generator(lr_image), policy.generator(lr_image))
        assert th.equal(loaded.reference(lr_image), policy.reference(lr_image))
        assert not th.equal(loaded.reference(lr_image), loaded.generator(lr_image))
        assert th.equal(loaded.predict_values(obs), policy.predict_values(obs))


def test_nothing_depends_on_the_mode(make_policy: MakePolicy, small_config: GeneratorConfig) -> None:
    policy, obs = make_policy(generator_config=small_config), observations()
    with th.no_grad():
        policy.set_training_mode(False)
        expected, statistics = policy.pictures(obs)[0], policy.trunk.tail[1].running_mean.clone()
        policy.set_training_mode(True)
        assert policy.training
        assert th.equal(policy.pictures(obs)[0], expected)
    assert th.equal(policy.trunk.tail[1].running_mean, statistics)


# --- with SB3's own algorithms


@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_a2c_and_ppo_train_the_whole_generator(algorithm: type, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(algorithm, learning_rate=1e-2)
    before = {name: weight.clone() for name, weight in model.policy.generator.named_parameters()}
    # The decoder's last layer starts at zero, so the first step moves nothing before it.
    model.learn(16)
    assert model.num_timesteps == 16
    for name, weight in model.policy.generator.named_parameters():
        assert not th.equal(weight, before[name]), name
        assert weight.isfinite().all(), name
    assert model.policy.value_net.bias.abs().sum() > 0
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    obs = observations(2).numpy()
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert loaded.policy.sigma == 0.05


@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_batch_norms_statistics_are_not_rls(
    algorithm: type, make_model: MakeModel, small_config: GeneratorConfig
) -> None:
    model = make_model(algorithm, small_config, learning_rate=1e-2)
    buffers = {name: buffer.clone() for name, buffer in model.policy.generator.named_buffers()}
    weight = model.policy.trunk.tail[1].weight.clone()
    assert len(buffers) == 3 * 3  # three BatchNorms: mean, variance, counter
    model.learn(16)
    assert not th.equal(model.policy.trunk.tail[1].weight, weight)
    for name, buffer in model.policy.generator.named_buffers():
        assert th.equal(buffer, buffers[name]), name


def test_ppos_first_ratio_is_one(make_model: MakeModel) -> None:
    model = make_model(PPO, n_epochs=1, batch_size=8)
    model.learn(8)
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert model.logger.name_to_value["train/clip_fraction"] == 0.0


# --- errors


@pytest.mark.parametrize(
    ("observed", "acted"),
    [((3, 8, 8), (3, 32, 32)), ((3, 8, 8), (1,)), ((6, 8, 8), (3, 16, 16)), ((64,), (3, 16, 16))],
)
def test_spaces_between_which_no_generator_lies_are_refused(observed: tuple[int, ...], acted: tuple[int, ...]) -> None:
    observation_space, action_space = spaces.Box(0, 255, observed, np.uint8), spaces.Box(-1, 1, acted, np.float32)
    with pytest.raises(ValueError, match=r"a generator of scale 2 makes pictures \(3, 2 h, 2 w\).*take rlsr/SuperRes"):
        GeneratorPolicy(observation_space, action_space, lambda _: 1e-3, generator_config=TINY)


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.inf, math.nan])
def test_sigma_must_be_above_zero(sigma: float, make_policy: MakePolicy) -> None:
    with pytest.raises(ValueError, match="sigma must be above 0, got"):
        make_policy(sigma=sigma)


@pytest.mark.parametrize("setting", [{"share_features_extractor": False}, {"use_sde": True}])
def test_settings_of_other_policies_are_refused(setting: dict[str, bool], make_policy: MakePolicy) -> None:
    with pytest.raises(ValueError, match="leave share_features_extractor at True and use_sde at False"):
        make_policy(**setting)
