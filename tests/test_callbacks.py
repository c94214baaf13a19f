import json
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter, Logger
from torch import Tensor

from agents.callbacks import AdversarialLossCallback
from agents.policies import TrunkActorCriticPolicy, trunk_parameters
from agents.vec_env import GymnasiumVecEnv
from gan.adversarial import AdversarialUpdate, SRGANTraining
from gan.content import ContentLoss
from gan.generator import Generator, GeneratorConfig
from gan.losses import LossWeights

N_ENVS, N_STEPS = 2, 4
ROLLOUT = N_ENVS * N_STEPS
LEARNING_RATE = 1e-3
ADAM = {"optimizer_class": th.optim.Adam, "optimizer_kwargs": {"eps": 1e-8}}
NOTHING = LossWeights(0.0, 0.0, 0.0)
WITHOUT_CONTENT = LossWeights(1.0, 0.0, 1e-3)
PPO_SETTINGS = {"batch_size": 4, "n_epochs": 3}  # 2 minibatches x 3 epochs = 6 updates a rollout

MakeModel = Callable[..., Any]
MakeCallback = Callable[..., AdversarialLossCallback]


@pytest.fixture
def make_model(make_env: Callable[..., GymnasiumVecEnv], small_config: GeneratorConfig, torch_rng: None) -> MakeModel:
    """Builds agents whose environment judges the live generator."""

    def make(algorithm: type = A2C, seed: int = 0, **settings: Any) -> Any:
        settings = {"n_steps": N_STEPS, "learning_rate": LEARNING_RATE, "device": "cpu"} | settings
        settings |= {"use_rms_prop": False} if issubclass(algorithm, A2C) else PPO_SETTINGS
        policy_kwargs = {"generator_config": small_config} | ADAM
        env = make_env(N_ENVS)
        model = algorithm(TrunkActorCriticPolicy, env, seed=seed, policy_kwargs=policy_kwargs, **settings)
        env.vector_env.generator = model.policy.generator
        return model

    return make


@pytest.fixture
def make_callback(make_update: Callable[..., AdversarialUpdate]) -> MakeCallback:
    def make(
        schedule: Any = "update", weights: LossWeights = WITHOUT_CONTENT, **config: Any
    ) -> AdversarialLossCallback:
        return AdversarialLossCallback(lambda generator: make_update(generator, weights=weights, **config), schedule)

    return make


def snapshot(module: th.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(first: Any, second: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(first, Tensor):
        return th.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def n_hooks(model: Any) -> int:
    optimizer = model.policy.optimizer
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


class Interrupt(BaseCallback):
    """Raises at a given step, as Ctrl-C would."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            raise KeyboardInterrupt
        return True


# --- nothing injected


@pytest.mark.parametrize("schedule", ["update", "step"])
@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_zero_weights_are_plain_sb3_to_the_bit(
    algorithm: type, schedule: str, make_model: MakeModel, make_callback: MakeCallback
) -> None:
    plain = make_model(algorithm)
    start = snapshot(plain.policy)
    plain.learn(3 * ROLLOUT)
    with_callback = make_model(algorithm)
    callback = make_callback(schedule, NOTHING)
    with_callback.learn(3 * ROLLOUT, callback=callback)
    assert callback.n_steps_of_trunk == (18 if algorithm is PPO else 3)  # SB3's own steps and no others
    assert not equal(snapshot(plain.policy), start)
    assert equal(snapshot(with_callback.policy), snapshot(plain.policy))
    assert equal(with_callback.policy.optimizer.state_dict(), plain.policy.optimizer.state_dict())


# --- how often


@pytest.mark.parametrize(
    ("algorithm", "schedule", "per_rollout"),
    [(A2C, "update", 1), (A2C, "step", N_STEPS), (PPO, "update", 6), (PPO, "step", 6 + N_STEPS - 1)],
)
def test_hooks_run_once_in_every_update(
    algorithm: type, schedule: str, per_rollout: int, make_model: MakeModel, make_callback: MakeCallback
) -> None:
    model, callback = make_model(algorithm), make_callback(schedule)
    steps: list[int] = []
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    model.learn(3 * ROLLOUT, callback=callback)
    assert len(steps) == callback.n_steps_of_trunk == callback.adversarial.n_updates == 3 * per_rollout


@pytest.mark.parametrize("schedule", ["update", "step"])
def test_learning_twice_registers_once(schedule: str, make_model: MakeModel, make_callback: MakeCallback) -> None:
    model, callback = make_model(), make_callback(schedule)
    model.learn(ROLLOUT, callback=callback)
    update = callback.adversarial
    assert n_hooks(model) == 0
    model.learn(2 * ROLLOUT, callback=callback)
    assert callback.adversarial is update
    assert n_hooks(model) == 0
    assert update.n_updates == callback.n_steps_of_trunk == 3 * (N_STEPS if schedule == "step" else 1)


def test_hooks_left_by_an_exception_are_replaced(make_model: MakeModel, make_callback: MakeCallback) -> None:
    model, callback = make_model(), make_callback()
    with pytest.raises(KeyboardInterrupt):
        model.learn(4 * ROLLOUT, callback=CallbackList([callback, Interrupt(at=N_STEPS + 2)]))
    assert n_hooks(model) == 4  # SB3 ends learn() without a word to its callbacks
    assert callback.adversarial.n_updates == 1
    model.learn(2 * ROLLOUT, callback=callback)
    assert callback.adversarial.n_updates == callback.n_steps_of_trunk == 1 + 2
    assert n_hooks(model) == 0


def test_exception_within_the_hook_does_not_spoil_the_next_learn(
    make_model: MakeModel, make_callback: MakeCallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, callback = make_model(), make_callback()
    model.learn(ROLLOUT, callback=callback)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(callback.adversarial, "generator_loss", fail)
        model.learn(ROLLOUT, callback=callback)
    model.learn(ROLLOUT, callback=callback)
    assert callback.adversarial.n_updates == 2
    assert all(parameter.grad is None for parameter in model.policy.decoder.parameters())


def test_callback_that_moves_to_another_agent_leaves_the_first_alone(
    make_model: MakeModel, make_callback: MakeCallback
) -> None:
    first, second, callback = make_model(), make_model(seed=1), make_callback()
    with pytest.raises(KeyboardInterrupt):
        first.learn(ROLLOUT, callback=CallbackList([callback, Interrupt(at=1)]))
    second.learn(ROLLOUT, callback=callback)
    assert n_hooks(first) == 0
    assert callback.adversarial.generator is second.policy.generator
    assert callback.adversarial.n_updates == 1


# --- what is injected


def test_gradients_are_added_after_sb3_has_clipped_its_own(
    make_model: MakeModel, make_update: Callable[..., AdversarialUpdate], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 1e-3
    model = make_model(max_grad_norm=bound)
    trunk = trunk_parameters(model.policy)
    injected: list[tuple[Tensor, ...]] = []
    before: list[list[Tensor]] = []
    after: list[list[Tensor]] = []

    def recording_update(generator: Generator) -> AdversarialUpdate:
        update = make_update(generator, weights=WITHOUT_CONTENT)
        before_step = update.before_step

        def record() -> None:
            before.append([parameter.grad.clone() for parameter in trunk if parameter.grad is not None])
            before_step()
            after.append([parameter.grad.clone() for parameter in trunk if parameter.grad is not None])

        monkeypatch.setattr(update, "before_step", record)
        return update

    grad = th.autograd.grad

    def recording_grad(*arguments: Any) -> tuple[Tensor, ...]:
        injected.append(grad(*arguments))
        return injected[-1]

    monkeypatch.setattr(th.autograd, "grad", recording_grad)
    model.learn(3 * ROLLOUT, callback=AdversarialLossCallback(recording_update))
    assert len(before) == len(after) == len(injected) == 3
    for rl_gradient, total, srgan_gradient in zip(before, after, injected, strict=True):
        assert 0 < th.nn.utils.get_total_norm(rl_gradient) <= bound * 1.001
        assert th.nn.utils.get_total_norm(srgan_gradient) > 10 * bound
        for part, extra, both in zip(rl_gradient, srgan_gradient[: len(trunk)], total, strict=True):
            assert th.equal(both, part + extra)


def test_bound_on_the_injected_gradient_is_the_callbacks_own(
    make_model: MakeModel, make_callback: MakeCallback
) -> None:
    model, callback = make_model(max_grad_norm=0.0), make_callback(max_grad_norm=1e-3)
    norms: list[float] = []
    trunk = trunk_parameters(model.policy)
    model.policy.optimizer.register_step_post_hook(
        lambda *_: norms.append(th.nn.utils.get_total_norm([p.grad for p in trunk if p.grad is not None]).item())
    )
    model.learn(3 * ROLLOUT, callback=callback)
    assert len(norms) == 3
    assert all(0 < norm <= 1.001e-3 for norm in norms)


@pytest.mark.parametrize("schedule", ["update", "step"])
def test_without_the_rl_gradient_it_is_plain_srgan_to_the_bit(
    schedule: str,
    make_model: MakeModel,
    make_generator: Callable[..., Generator],
    make_update: Callable[..., AdversarialUpdate],
    content_loss: ContentLoss,
) -> None:
    content = content_loss if schedule == "update" else None  # one of the two suffices, and it is slow

    def run(max_grad_norm: float) -> tuple[Any, AdversarialLossCallback, Generator]:
        model = make_model(max_grad_norm=max_grad_norm)
        start = make_generator()
        start.load_state_dict(model.policy.generator.state_dict())
        callback = AdversarialLossCallback(lambda generator: make_update(generator, content), schedule)  # type: ignore[arg-type]
        model.learn(3 * ROLLOUT, callback=callback)
        return model, callback, start

    model, callback, start = run(max_grad_norm=0.0)
    training = SRGANTraining(make_update(start, content), n_updates=3 * N_STEPS)
    for _ in range(3 * N_STEPS if schedule == "step" else 3):
        training.update()
    # Trunk, decoder, discriminator, all optimisers, moving average, and the position in the data.
    assert equal(callback.adversarial.state_dict(), training.adversarial.state_dict())
    assert equal(snapshot(model.policy.generator), snapshot(training.adversarial.generator))

    model, _, _ = run(max_grad_norm=0.5)
    assert not equal(snapshot(model.policy.generator), snapshot(training.adversarial.generator))


@pytest.mark.parametrize("algorithm", [A2C, PPO])
@pytest.mark.parametrize("schedule", ["update", "step"])
def test_no_stale_decoder_gradient_enters_sb3s_clip(
    algorithm: type,
    schedule: str,
    make_model: MakeModel,
    make_callback: MakeCallback,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(algorithm)
    clip = th.nn.utils.clip_grad_norm_
    held = [parameter for group in model.policy.optimizer.param_groups for parameter in group["params"]]
    norms: list[tuple[float, float]] = []

    def record(parameters: Any, max_norm: float) -> Tensor:
        assert all(parameter.grad is None for parameter in model.policy.decoder.parameters())
        own = th.nn.utils.get_total_norm([parameter.grad for parameter in held if parameter.grad is not None]).item()
        norms.append((clip(parameters, max_norm).item(), own))
        return th.tensor(norms[-1][0])

    monkeypatch.setattr(th.nn.utils, "clip_grad_norm_", record)
    model.learn(3 * ROLLOUT, callback=make_callback(schedule))
    assert len(norms) == (18 if algorithm is PPO else 3)
    for counted, own in norms:
        assert counted == pytest.approx(own, rel=1e-6)
    assert all(parameter.grad is None for parameter in model.policy.decoder.parameters())


def test_environment_judges_the_generator_that_is_trained(make_model: MakeModel, make_callback: MakeCallback) -> None:
    model = make_model()
    start = snapshot(model.policy.generator)
    callback = make_callback("step", LossWeights(1.0, 0.0, 0.0))
    values: list[float] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            values.append(float(self.training_env.vector_env._values.mean()))  # type: ignore[attr-defined]
            return True

    model.learn(20 * ROLLOUT, callback=CallbackList([callback, Watch()]))
    assert not equal(snapshot(model.policy.generator), start)
    assert np.mean(values[-20:]) > np.mean(values[:10]) + 2  # dB, from an untrained generator


# --- checkpoints


def test_resumed_run_is_the_uninterrupted_one_to_the_bit(
    make_model: MakeModel, make_callback: MakeCallback, make_env: Callable[..., GymnasiumVecEnv], tmp_path: Path
) -> None:
    whole, whole_callback = make_model(), make_callback("step")
    whole.learn(5 * ROLLOUT, callback=whole_callback)

    model, callback = make_model(), make_callback("step")
    model.learn(3 * ROLLOUT, callback=callback)
    model.save(tmp_path / "model.zip")
    callback.save(tmp_path / "callback.pt")
    th.save({"env": model.env.vector_env.state_dict(), "torch": th.get_rng_state()}, tmp_path / "rest.pt")
    numpy_state = np.random.get_state()  # SB3 shuffles a rollout by NumPy's global stream, in A2C too
    del model, callback

    env = make_env(N_ENVS)
    resumed = A2C.load(tmp_path / "model.zip", env=env, device="cpu", force_reset=False)
    resumed_callback = make_callback("step", seed=77)  # everything that the seed decides comes from the file
    resumed_callback.load(tmp_path / "callback.pt")
    env.vector_env.generator = resumed.policy.generator
    rest = th.load(tmp_path / "rest.pt", weights_only=True)
    env.vector_env.load_state_dict(rest["env"])
    th.set_rng_state(rest["torch"])
    np.random.set_state(numpy_state)
    resumed.learn(2 * ROLLOUT, callback=resumed_callback, reset_num_timesteps=False)

    assert resumed.num_timesteps == whole.num_timesteps
    assert equal(snapshot(resumed.policy), snapshot(whole.policy))
    assert equal(resumed.policy.optimizer.state_dict(), whole.policy.optimizer.state_dict())
    assert equal(resumed_callback.state_dict(), whole_callback.state_dict())
    assert equal(env.vector_env.state_dict(), whole.env.vector_env.state_dict())


def test_checkpoint_is_read_without_unpickling_code(
    make_model: MakeModel, make_callback: MakeCallback, tmp_path: Path
) -> None:
    callback = make_callback()
    make_model().learn(ROLLOUT, callback=callback)
    callback.save(tmp_path / "callback.pt")
    assert equal(th.load(tmp_path / "callback.pt", weights_only=True), callback.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["callback.pt"]


def test_checkpoint_can_be_loaded_between_two_learns(
    make_model: MakeModel, make_callback: MakeCallback, tmp_path: Path
) -> None:
    model, callback = make_model(), make_callback()
    model.learn(ROLLOUT, callback=callback)
    callback.save(tmp_path / "callback.pt")
    model.learn(ROLLOUT, callback=callback)
    assert callback.n_steps_of_trunk == 2
    callback.load(tmp_path / "callback.pt")
    assert callback.n_steps_of_trunk == callback.adversarial.n_updates == 1
    assert equal(callback.state_dict(), th.load(tmp_path / "callback.pt", weights_only=True))


def test_state_goes_with_an_agent_that_is_loaded_after_the_callback_has_learnt(
    make_model: MakeModel, make_callback: MakeCallback, tmp_path: Path
) -> None:
    model, callback = make_model(), make_callback()
    model.learn(2 * ROLLOUT, callback=callback)
    model.save(tmp_path / "model.zip")
    state = deepcopy(callback.state_dict())
    model.learn(ROLLOUT, callback=callback)
    loaded = A2C.load(tmp_path / "model.zip", env=model.env, device="cpu")
    model.env.set_attr("generator", loaded.policy.generator)
    callback.load_state_dict(state)
    assert callback.n_updates == 2
    loaded.learn(ROLLOUT, callback=callback)
    assert callback.adversarial.generator is loaded.policy.generator
    assert callback.n_updates == callback.n_steps_of_trunk == 3
    steps = callback.adversarial.decoder_optimizer.state_dict()["state"]
    assert {int(moments["step"]) for moments in steps.values()} == {3}


def test_the_same_callback_goes_on_with_an_agent_that_is_loaded(
    make_model: MakeModel, make_callback: MakeCallback, tmp_path: Path
) -> None:
    model, callback = make_model(), make_callback()
    model.learn(2 * ROLLOUT, callback=callback)
    model.save(tmp_path / "model.zip")
    discriminator = deepcopy(callback.adversarial.discriminator.state_dict())
    loaded = A2C.load(tmp_path / "model.zip", env=model.env, device="cpu")
    loaded.env.set_attr("generator", loaded.policy.generator)
    callback.init_callback(loaded)
    assert callback.adversarial.generator is loaded.policy.generator
    assert all(th.equal(callback.adversarial.discriminator.state_dict()[k], v) for k, v in discriminator.items())
    loaded.learn(ROLLOUT, callback=callback)
    assert callback.n_updates == 3


def test_an_environment_that_judges_another_generator_is_named(
    make_model: MakeModel, make_callback: MakeCallback
) -> None:
    model = make_model()
    model.env.set_attr("generator", lambda lr_image: lr_image.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.warns(UserWarning, match=r"another generator .* set env\.generator = model\.policy\.generator"):
        model.learn(ROLLOUT, callback=make_callback())


@pytest.mark.parametrize("content", [b"text", b""])
def test_a_file_that_is_no_checkpoint_is_refused(make_callback: MakeCallback, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "callback.pt").write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint of this callback"):
        make_callback().load(tmp_path / "callback.pt")


def test_updates_are_counted_before_the_first_learn_too(
    make_model: MakeModel, make_callback: MakeCallback, tmp_path: Path
) -> None:
    model, callback, resumed = make_model(), make_callback(), make_callback()
    assert callback.n_updates == 0
    model.learn(2 * ROLLOUT, callback=callback)
    assert callback.n_updates == 2
    callback.save(tmp_path / "callback.pt")
    resumed.load(tmp_path / "callback.pt")
    assert resumed.n_updates == 2
    model.learn(ROLLOUT, callback=resumed)
    assert resumed.n_updates == 3


def test_failed_save_leaves_nothing_behind(
    make_model: MakeModel, make_callback: MakeCallback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = make_callback()
    make_model().learn(ROLLOUT, callback=callback)

    def full(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(th, "save", full)
    with pytest.raises(OSError, match="no space"):
        callback.save(tmp_path / "callback.pt")
    assert list(tmp_path.iterdir()) == []


def test_missing_checkpoint_is_named(make_callback: MakeCallback, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of the callback at .*absent\.pt"):
        make_callback().load(tmp_path / "absent.pt")


class SaveInTheMiddle(BaseCallback):
    """Saves the model while the hooks of another callback are live."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.n_hooks = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.n_hooks = n_hooks(self.model)
        self.model.save(self.path)


def test_model_saved_with_live_hooks_holds_nothing_of_the_callback(
    make_model: MakeModel, make_callback: MakeCallback, tmp_path: Path
) -> None:
    model, bystander = make_model(), make_model()
    saver = SaveInTheMiddle(tmp_path / "with.zip")
    callback = make_callback(discriminator_channels=16)
    model.learn(ROLLOUT, callback=CallbackList([callback, saver]))
    assert saver.n_hooks == 4
    bystander.learn(ROLLOUT, callback=SaveInTheMiddle(tmp_path / "without.zip"))
    with zipfile.ZipFile(tmp_path / "with.zip") as file, zipfile.ZipFile(tmp_path / "without.zip") as other:
        assert file.namelist() == other.namelist()
        assert json.loads(file.read("data")).keys() == json.loads(other.read("data")).keys()
        assert abs(len(file.read("data")) - len(other.read("data"))) < 1000
        assert len(file.read("policy.pth")) == len(other.read("policy.pth"))
    loaded = A2C.load(tmp_path / "with.zip", device="cpu")
    assert n_hooks(loaded) == 0
    model.save(tmp_path / "after.zip")
    assert equal(
        snapshot(A2C.load(tmp_path / "after.zip", device="cpu").policy.generator), snapshot(model.policy.generator)
    )


# --- logging


def test_losses_and_both_gradient_norms_are_logged(make_model: MakeModel, make_callback: MakeCallback) -> None:
    model = make_model()
    dumped: list[dict[str, Any]] = []

    class Recorder(KVWriter):
        def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
            dumped.append(dict(key_values))

        def close(self) -> None:
            pass

    model.set_logger(Logger(folder=None, output_formats=[Recorder()]))
    callback = make_callback("step")
    model.learn(3 * ROLLOUT, callback=callback, log_interval=1)
    assert len(dumped) == 3
    names = {"gan/mse", "gan/adversarial", "gan/loss", "gan/grad_norm", "gan/discriminator", "gan/d_real", "gan/d_fake"}
    for values in dumped:
        assert names <= values.keys()
        assert all(np.isfinite(values[name]) for name in names)
    # The RL gradient comes with A2C's own update, whose values SB3 writes one rollout later.
    assert "train/trunk_grad_norm" not in dumped[0]
    assert 0 < dumped[1]["train/trunk_grad_norm"] <= 0.5 * 1.001


# --- refusals


def test_unknown_schedule_is_refused(make_callback: MakeCallback) -> None:
    with pytest.raises(ValueError, match="unknown schedule 'epoch'; known: update, step"):
        make_callback("epoch")


def test_update_exists_from_the_first_learn_on(make_callback: MakeCallback) -> None:
    with pytest.raises(ValueError, match=r"call learn\(\) first"):
        _ = make_callback().adversarial


def test_trpo_is_refused(make_model: MakeModel, make_callback: MakeCallback) -> None:
    model = make_model(type("TRPO", (A2C,), {}))
    with pytest.raises(ValueError, match=r"TRPO moves the trunk by a line search.*take A2C or PPO"):
        model.learn(ROLLOUT, callback=make_callback())


def test_policy_without_trunk_is_refused(make_env: Callable[..., GymnasiumVecEnv], make_callback: MakeCallback) -> None:
    model = A2C("MlpPolicy", make_env(), n_steps=N_STEPS, device="cpu")
    with pytest.raises(TypeError, match="has no trunk to share with a generator; take TrunkActorCriticPolicy"):
        model.learn(ROLLOUT, callback=make_callback())


def test_optimizer_without_trunk_is_refused(make_model: MakeModel, make_callback: MakeCallback) -> None:
    model = make_model()
    model.policy.optimizer = th.optim.Adam(model.policy.value_net.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="A2C's policy has no optimiser that holds its trunk"):
        model.learn(ROLLOUT, callback=make_callback())
