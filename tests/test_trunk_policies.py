"""The callback with every algorithm: those that step the trunk are served, the others refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium.spaces import Discrete
from gymnasium.wrappers.vector import TransformAction
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy

from agents.callbacks import AdversarialLossCallback
from agents.policies import TrunkActorCriticPolicy
from agents.trunk_policies import with_trunk
from agents.vec_env import GymnasiumVecEnv
from gan.adversarial import AdversarialUpdate
from gan.generator import GeneratorConfig
from gan.losses import LossWeights

N_STEPS = 16
ON_POLICY: dict[str, Any] = {"n_steps": 4}
OFF_POLICY: dict[str, Any] = {"learning_starts": 4, "batch_size": 2, "buffer_size": 32}
SERVED: dict[str, tuple[type, type, dict[str, Any]]] = {
    "A2C": (A2C, ActorCriticPolicy, {**ON_POLICY, "use_rms_prop": False}),
    "PPO": (PPO, ActorCriticPolicy, {**ON_POLICY, "batch_size": 4, "n_epochs": 2}),
    "RecurrentPPO": (
        sb3_contrib.RecurrentPPO, RecurrentActorCriticPolicy, {**ON_POLICY, "batch_size": 4, "n_epochs": 2},
    ),
    "SAC": (SAC, SACPolicy, OFF_POLICY),
    "TD3": (TD3, TD3Policy, OFF_POLICY),
    "DDPG": (DDPG, TD3Policy, OFF_POLICY),
    "DQN": (DQN, DQNPolicy, OFF_POLICY),
    "TQC": (sb3_contrib.TQC, TQCPolicy, OFF_POLICY),
    "CrossQ": (sb3_contrib.CrossQ, CrossQPolicy, OFF_POLICY),
}  # fmt: skip

MakeEnv = Callable[..., GymnasiumVecEnv]
MakeUpdate = Callable[..., AdversarialUpdate]


def discretised(env: GymnasiumVecEnv) -> GymnasiumVecEnv:
    """Five predictions of the PSNR, for DQN."""
    table = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    actions = TransformAction(env.vector_env, lambda n: table[n], single_action_space=Discrete(len(table)))
    return GymnasiumVecEnv(actions)


def callback_of(make_update: MakeUpdate, schedule: Any = "update") -> AdversarialLossCallback:
    weights = LossWeights(1.0, 0.0, 1e-3)
    return AdversarialLossCallback(lambda generator: make_update(generator, weights=weights), schedule)


@pytest.fixture
def make_model(make_env: MakeEnv, small_config: GeneratorConfig, torch_rng: None) -> Callable[[str], Any]:
    """Builds agents whose environment judges the live generator."""

    def make(name: str) -> Any:
        algorithm, policy, settings = SERVED[name]
        env = make_env()
        kwargs = {"generator_config": small_config, "net_arch": [8]}
        model = algorithm(
            with_trunk(policy), discretised(env) if name == "DQN" else env, policy_kwargs=kwargs, seed=0,
            device="cpu", **settings,
        )  # fmt: skip
        env.vector_env.unwrapped.generator = model.policy.generator
        return model

    return make


@pytest.mark.parametrize("name", SERVED)
def test_every_algorithm_that_steps_the_trunk_is_served(
    name: str, make_model: Callable[[str], Any], make_update: MakeUpdate
) -> None:
    model = make_model(name)
    before = {key: value.clone() for key, value in model.policy.generator.state_dict().items()}
    callback = callback_of(make_update)
    model.learn(N_STEPS, callback=callback)
    assert callback.n_updates == callback.n_steps_of_trunk > 0
    after = model.policy.generator.state_dict()
    for part in ("encoder", "decoder"):
        assert any(not th.equal(before[key], after[key]) for key in before if key.startswith(part)), part
    assert model.policy.trunk is model.policy.generator.encoder


@pytest.mark.parametrize("name", SERVED)
def test_decoder_is_in_no_optimiser_of_the_policy(name: str, make_model: Callable[[str], Any]) -> None:
    policy = make_model(name).policy
    owners = [policy, *(getattr(policy, part) for part in ("actor", "critic") if hasattr(policy, part))]
    held = {
        id(parameter)
        for owner in owners
        if isinstance(getattr(owner, "optimizer", None), th.optim.Optimizer)
        for group in owner.optimizer.param_groups
        for parameter in group["params"]
    }
    assert held.isdisjoint(id(parameter) for parameter in policy.decoder.parameters())
    assert all(id(parameter) in held for parameter in policy.trunk.parameters())


@pytest.mark.parametrize("name", ["SAC", "DQN", "RecurrentPPO"])
def test_a_saved_model_has_its_generator(name: str, make_model: Callable[[str], Any], tmp_path: Path) -> None:
    model = make_model(name)
    model.save(tmp_path / "model.zip")
    loaded = SERVED[name][0].load(tmp_path / "model.zip", device="cpu")
    for first, second in zip(model.policy.generator.parameters(), loaded.policy.generator.parameters(), strict=True):
        assert th.equal(first, second)
    assert loaded.policy.trunk is loaded.policy.generator.encoder


def test_trpo_is_refused_with_its_reason(
    make_env: MakeEnv, make_update: MakeUpdate, small_config: GeneratorConfig, torch_rng: None
) -> None:
    kwargs = {"generator_config": small_config}
    model = sb3_contrib.TRPO(TrunkActorCriticPolicy, make_env(), n_steps=4, policy_kwargs=kwargs, device="cpu")
    with pytest.raises(ValueError, match=r"TRPO moves the trunk by a line search.*take A2C or PPO"):
        model.learn(N_STEPS, callback=callback_of(make_update))


def test_ars_is_refused_with_its_reason(make_env: MakeEnv, make_update: MakeUpdate, torch_rng: None) -> None:
    model = sb3_contrib.ARS("LinearPolicy", make_env(), n_delta=1, device="cpu")
    with pytest.raises(ValueError, match=r"ARS tries random changes of its weights and takes no gradient"):
        model.learn(N_STEPS, callback=callback_of(make_update))


def test_subclasses_of_a_refused_algorithm_are_refused(make_env: MakeEnv, make_update: MakeUpdate) -> None:
    model = type("Mine", (sb3_contrib.ARS,), {})("LinearPolicy", make_env(), n_delta=1, device="cpu")
    with pytest.raises(ValueError, match="ARS tries random changes"):
        model.learn(N_STEPS, callback=callback_of(make_update))


def test_schedule_step_needs_rollouts(make_model: Callable[[str], Any], make_update: MakeUpdate) -> None:
    with pytest.raises(ValueError, match=r'which SAC does not have.*take schedule "update"'):
        make_model("SAC").learn(N_STEPS, callback=callback_of(make_update, "step"))


@pytest.mark.parametrize("policy", ["CnnPolicy", gymnasium.Env, None])
def test_only_policy_classes_take_a_trunk(policy: Any) -> None:
    with pytest.raises(TypeError, match="expected a policy class of Stable-Baselines3, got"):
        with_trunk(policy)
