from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from agents.policies import TrunkActorCriticPolicy, TrunkExtractor, trunk_parameters
from agents.vec_env import GymnasiumVecEnv
from gan.generator import Encoder, GeneratorConfig

MakeEnv = Callable[..., GymnasiumVecEnv]
MakeModel = Callable[..., Any]
LR_PATCH = spaces.Box(0, 255, (3, 8, 8), np.uint8)
PREDICTION = spaces.Box(-1, 1, (1,), np.float32)


@pytest.fixture
def make_model(make_env: MakeEnv, small_config: GeneratorConfig, torch_rng: None) -> MakeModel:
    def make(algorithm: type[BaseAlgorithm] = A2C, policy_kwargs: dict[str, Any] | None = None, **settings: Any) -> Any:
        policy_kwargs = {"generator_config": small_config} | (policy_kwargs or {})
        settings = {"n_steps": 4, "seed": 0, "device": "cpu"} | settings
        return algorithm(TrunkActorCriticPolicy, make_env(), policy_kwargs=policy_kwargs, **settings)

    return make


@pytest.fixture
def make_policy(small_config: GeneratorConfig, torch_rng: None) -> Callable[..., TrunkActorCriticPolicy]:
    def make(**settings: Any) -> TrunkActorCriticPolicy:
        th.manual_seed(0)
        settings = {"generator_config": small_config} | settings
        return TrunkActorCriticPolicy(LR_PATCH, PREDICTION, lambda _: 1e-3, **settings)

    return make


def observations(n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)


def lr_pictures(n: int = 2) -> th.Tensor:
    return th.from_numpy(observations(n)).float() / 255


def same_behaviour(first: ActorCriticPolicy, second: ActorCriticPolicy) -> bool:
    """Whether two policies act, judge and restore alike, to the bit."""
    obs = th.from_numpy(observations())
    with th.no_grad():
        return (
            np.array_equal(
                first.predict(observations(), deterministic=True)[0],
                second.predict(observations(), deterministic=True)[0],
            )
            and th.equal(first.predict_values(obs), second.predict_values(obs))
            and th.equal(first.generator(lr_pictures()), second.generator(lr_pictures()))
        )


def stir(policy: TrunkActorCriticPolicy) -> None:
    """Move every weight and statistic away from where it started, as training would."""
    with th.no_grad():
        for tensor in policy.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * th.rand(tensor.shape))


def test_feature_extractor_is_the_generators_encoder(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    policy = make_policy()
    assert policy.generator.encoder is policy.trunk
    assert policy.features_extractor.trunk is policy.trunk
    assert policy.pi_features_extractor.trunk is policy.vf_features_extractor.trunk is policy.trunk
    assert policy.generator.decoder is policy.decoder
    with th.no_grad():
        policy.trunk.head[0].weight.add_(1.0)
    latent = policy.generator.encoder(lr_pictures())
    assert th.equal(policy.features_extractor(lr_pictures()), latent.mean((2, 3)))


def test_observations_reach_the_trunk_in_0_to_1(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    policy = make_policy()
    seen: list[th.Tensor] = []
    policy.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    policy.predict_values(th.from_numpy(observations(2)))
    assert th.allclose(seen[0], lr_pictures(2))


@pytest.mark.parametrize("size", [(8, 8), (5, 12)])
def test_extractor_reads_patches_of_any_size(size: tuple[int, int], small_config: GeneratorConfig) -> None:
    extractor = TrunkExtractor(spaces.Box(0, 255, (3, *size), np.uint8), small_config)
    assert extractor.features_dim == 8
    assert extractor(th.rand(2, 3, *size)).shape == (2, 8)


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 8), (12,)])
def test_extractor_refuses_what_is_no_lr_picture(shape: tuple[int, ...], small_config: GeneratorConfig) -> None:
    with pytest.raises(ValueError, match="the trunk reads LR pictures"):
        TrunkExtractor(spaces.Box(0, 255, shape, np.uint8), small_config)


def test_features_are_float32_whatever_the_trunk_computes_in(
    make_policy: Callable[..., TrunkActorCriticPolicy],
) -> None:
    policy = make_policy()
    policy.generator.set_compute_dtype(th.bfloat16)
    assert policy.features_extractor(lr_pictures()).dtype == th.float32


def test_optimizer_holds_trunk_and_heads_and_not_the_decoder(
    make_policy: Callable[..., TrunkActorCriticPolicy],
) -> None:
    policy = make_policy()
    held = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in policy.trunk.parameters()} <= held
    assert {id(parameter) for parameter in policy.value_net.parameters()} <= held
    assert not {id(parameter) for parameter in policy.decoder.parameters()} & held
    assert len(held) == len(list(policy.parameters())) - len(list(policy.decoder.parameters()))


def test_state_dict_holds_the_decoder_exactly_once(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    policy = make_policy()
    places = [tensor.data_ptr() for tensor in policy.state_dict().values()]
    for name, parameter in policy.decoder.named_parameters():
        assert places.count(parameter.data_ptr()) == 1
        assert f"decoder.{name}" in policy.state_dict()


def test_orthogonal_start_is_for_the_heads_alone(
    make_policy: Callable[..., TrunkActorCriticPolicy], small_config: GeneratorConfig
) -> None:
    policy = make_policy(net_arch=[6])
    th.manual_seed(0)  # SB3 builds the feature extractor before anything else that draws random numbers
    fresh = Encoder(small_config)
    for name, tensor in fresh.state_dict().items():
        assert th.equal(policy.trunk.state_dict()[name], tensor), name
    gains = [(policy.mlp_extractor.policy_net[0], 2.0), (policy.mlp_extractor.value_net[0], 2.0)]
    for layer, squared_gain in [*gains, (policy.action_net, 0.01**2), (policy.value_net, 1.0)]:
        assert isinstance(layer, nn.Linear)
        rows = layer.weight @ layer.weight.T
        assert th.allclose(rows, squared_gain * th.eye(len(rows)), atol=1e-5 * squared_gain)
        assert layer.bias.abs().sum() == 0


def test_orthogonal_start_can_be_left_out(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    weight = make_policy(ortho_init=False).value_net.weight
    assert (weight @ weight.T).item() != pytest.approx(1.0, abs=1e-3)


def test_pretrained_weights_are_loaded_through_the_generator(
    make_policy: Callable[..., TrunkActorCriticPolicy], make_generator: Callable[..., Any]
) -> None:
    policy, pretrained = make_policy(), make_generator(seed=5).eval()
    policy.generator.load_state_dict(pretrained.state_dict())
    assert th.equal(policy.generator(lr_pictures()), pretrained(lr_pictures()))
    assert th.equal(policy.features_extractor(lr_pictures()), pretrained.encoder(lr_pictures()).mean((2, 3)))


def test_heads_are_one_layer_each_unless_asked_for_more(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    policy = make_policy()
    assert not list(policy.mlp_extractor.parameters())
    assert policy.action_net.in_features == policy.value_net.in_features == 8
    deeper = make_policy(net_arch={"pi": [6], "vf": [5]})
    assert (deeper.action_net.in_features, deeper.value_net.in_features) == (6, 5)


def test_second_trunk_and_foreign_extractor_are_refused(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    with pytest.raises(ValueError, match="share the generator's trunk; leave share_features_extractor at True"):
        make_policy(share_features_extractor=False)
    with pytest.raises(TypeError, match="features_extractor_class"):
        make_policy(features_extractor_class=TrunkExtractor)
    assert make_policy(share_features_extractor=True).share_features_extractor


def test_default_architecture_is_the_default_config(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    assert make_policy(generator_config=None).generator.config == GeneratorConfig()


def test_training_mode_never_reaches_the_trunk(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    policy = make_policy()
    for switch in (policy.train, lambda: policy.set_training_mode(True), policy.features_extractor.train):
        switch()
        assert policy.features_extractor.training
        assert not any(module.training for module in policy.trunk.modules())


@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_rollouts_and_updates_leave_batch_norms_statistics_alone(
    algorithm: type[BaseAlgorithm], make_model: MakeModel
) -> None:
    model = make_model(algorithm, **({"batch_size": 4, "n_epochs": 2} if algorithm is PPO else {}))
    before = {name: tensor.clone() for name, tensor in model.policy.trunk.named_buffers()}
    weight = model.policy.trunk.tail[1].weight.clone()
    model.learn(16)
    assert not th.equal(model.policy.trunk.tail[1].weight, weight)
    for name, tensor in model.policy.trunk.named_buffers():
        assert th.equal(tensor, before[name]), name


def first_ratio_error(model: Any) -> float:
    """Largest |ratio - 1| of PPO's first minibatch."""
    model.policy.set_training_mode(True)
    batch = next(model.rollout_buffer.get(4))
    _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
    return (th.exp(log_prob - batch.old_log_prob) - 1).abs().max().item()


def test_ppos_ratio_starts_at_one_in_spite_of_batch_norm(make_model: MakeModel) -> None:
    model = make_model(PPO, {"log_std_init": -3.0}, batch_size=4)
    with th.no_grad():
        model.policy.action_net.weight.mul_(100)  # so that the log-probability depends on the features
    _, callback = model._setup_learn(8, CallbackList([]))
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    assert first_ratio_error(model) < 1e-5
    model.policy.trunk.train = lambda mode=True: nn.Module.train(model.policy.trunk, mode)
    model.policy.trunk.eval = lambda: model.policy.trunk.train(True)
    assert first_ratio_error(model) > 1e-2  # what batch statistics would have made of it


def test_model_comes_back_from_its_file_with_the_generator(
    make_model: MakeModel, make_env: MakeEnv, tmp_path: Path
) -> None:
    model = make_model()
    model.learn(16)
    stir(model.policy)
    model.save(tmp_path / "model.zip")
    loaded = A2C.load(tmp_path / "model.zip", device="cpu")
    assert same_behaviour(model.policy, loaded.policy)
    assert loaded.policy.generator.encoder is loaded.policy.features_extractor.trunk
    assert loaded.policy.generator.config == model.policy.generator.config
    loaded.set_env(make_env())
    loaded.learn(8)
    assert not same_behaviour(model.policy, loaded.policy)


def test_policy_comes_back_from_its_own_file(
    make_policy: Callable[..., TrunkActorCriticPolicy], tmp_path: Path
) -> None:
    policy = make_policy(net_arch=[6], ortho_init=False)
    stir(policy)
    policy.save(tmp_path / "policy.pth")
    loaded = TrunkActorCriticPolicy.load(tmp_path / "policy.pth", device="cpu")
    assert same_behaviour(policy, loaded)
    assert loaded.generator.encoder is loaded.trunk
    assert loaded._get_constructor_parameters()["ortho_init"] is False


def test_copy_of_a_policy_has_one_trunk_of_its_own(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    policy = make_policy()
    copied = deepcopy(policy)
    assert same_behaviour(policy, copied)
    assert copied.generator.encoder is copied.trunk is copied.features_extractor.trunk
    assert copied.generator.decoder is copied.decoder
    assert copied.trunk is not policy.trunk
    stir(copied)
    assert not same_behaviour(policy, copied)


def test_callers_settings_are_not_changed(make_env: MakeEnv, small_config: GeneratorConfig) -> None:
    policy_kwargs = {"generator_config": small_config, "share_features_extractor": True, "net_arch": [4]}
    before = dict(policy_kwargs)
    A2C(TrunkActorCriticPolicy, make_env(), policy_kwargs=policy_kwargs, use_rms_prop=False, device="cpu").learn(10)
    assert policy_kwargs == before
    assert policy_kwargs["net_arch"] == [4]


def test_trunk_parameters_are_the_shared_ones(make_policy: Callable[..., TrunkActorCriticPolicy]) -> None:
    policy = make_policy()
    shared = list(policy.generator.encoder.parameters())
    assert [id(parameter) for parameter in trunk_parameters(policy)] == [id(parameter) for parameter in shared]


def test_policy_without_trunk_is_refused() -> None:
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (3,)), PREDICTION, lambda _: 1e-3)
    with pytest.raises(TypeError, match="ActorCriticPolicy has no trunk to share with a generator"):
        trunk_parameters(policy)
