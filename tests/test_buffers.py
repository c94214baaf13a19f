import weakref
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.buffers import DeviceRolloutBuffer

IMAGE = spaces.Box(0, 255, (3, 4, 5), np.uint8)
OBS_SPACES: dict[str, spaces.Space] = {
    "image": IMAGE,
    "vector": spaces.Box(-10, 10, (4,), np.float32),
    "float64": spaces.Box(-1, 1, (2, 2), np.float64),
    "depth": spaces.Box(0, 60000, (3,), np.uint16),
    "discrete": spaces.Discrete(7),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict(
        {
            "map": spaces.Box(0, 255, (4, 5), np.uint8),
            "age": spaces.Box(0, 9, (1,), np.float32),
            "n": spaces.Discrete(4),
        }
    ),
}
ACTION_SPACES: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2, 2), np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 5]),
    "multi_binary": spaces.MultiBinary(3),
}
# Batches of 5 of 18 samples: the last minibatch of PPO is short.
ALGORITHMS: dict[str, tuple[type[OnPolicyAlgorithm], dict[str, Any]]] = {
    "a2c": (A2C, {"n_steps": 6, "gae_lambda": 0.9}),
    "ppo": (PPO, {"n_steps": 6, "gae_lambda": 0.9, "batch_size": 5, "n_epochs": 2}),
}
pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

DEVICE_ATTRIBUTES = ("observations", "actions", "log_probs")
HOST_ATTRIBUTES = ("rewards", "episode_starts", "values", "advantages", "returns")


class RandomEpisodes(gymnasium.Env):
    """Random observations and rewards; an episode ends by chance, or by the time limit it is wrapped with."""

    def __init__(self, obs: str, action: str) -> None:
        self.observation_space = OBS_SPACES[obs]
        self.action_space = ACTION_SPACES[action]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(self.np_random.normal()) + float(np.sum(action))
        return self.observation_space.sample(), reward, bool(self.np_random.random() < 0.2), False, {}


def make_model(
    algorithm: str, obs: str, action: str, buffer_class: type[RolloutBuffer] | None, device: str = "cpu"
) -> OnPolicyAlgorithm:
    vec_env = DummyVecEnv([lambda: TimeLimit(RandomEpisodes(obs, action), 4)] * 3)
    policy = "MultiInputPolicy" if obs == "dict" else "MlpPolicy"
    algorithm_class, settings_ = ALGORITHMS[algorithm]
    return algorithm_class(
        policy,
        vec_env,
        rollout_buffer_class=buffer_class,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device=device,
        **settings_,
    )


def make_step(obs: spaces.Space, action: spaces.Space, n_envs: int, seed: int) -> tuple[Any, ...]:
    """The arguments of `add` as `collect_rollouts` gives them."""
    rng = np.random.default_rng(seed)
    obs.seed(seed)
    action.seed(seed)
    samples = [obs.sample() for _ in range(n_envs)]
    if isinstance(obs, spaces.Dict):
        rows: Any = {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in obs.spaces}
    else:
        rows = np.stack(samples)
    actions = np.stack([np.asarray(action.sample()) for _ in range(n_envs)])
    rewards = rng.normal(size=n_envs).astype(np.float32)
    starts = rng.random(n_envs) < 0.3
    values = torch.from_numpy(rng.normal(size=(n_envs, 1)).astype(np.float32))
    return rows, actions, rewards, starts, values, torch.from_numpy(rng.normal(size=n_envs).astype(np.float32))


def filled(
    buffer_class: type[RolloutBuffer] = DeviceRolloutBuffer,
    obs: str = "image",
    action: str = "discrete",
    n_steps: int = 3,
    n_envs: int = 2,
    **kwargs: Any,
) -> RolloutBuffer:
    spaces_ = OBS_SPACES[obs], ACTION_SPACES[action]
    buffer = buffer_class(n_steps, *spaces_, n_envs=n_envs, **{"device": "cpu", **kwargs})
    for step in range(n_steps):
        buffer.add(*make_step(*spaces_, n_envs, seed=step))
    last_values, dones = torch.linspace(-1, 1, n_envs)[:, None], np.arange(n_envs) % 2 == 0
    buffer.compute_returns_and_advantage(last_values, dones)
    return buffer


def minibatches(buffer: RolloutBuffer, batch_size: int | None, seed: int = 0) -> list[Any]:
    np.random.seed(seed)
    return list(buffer.get(batch_size))


def assert_same_bits(actual: Any, expected: Any) -> None:
    """The same type, dtype, shape and bits, in dicts and tuples too; tensors and arrays may stand for each other."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same_bits(actual[key], expected[key])
    elif isinstance(expected, (tuple, list)):
        assert type(actual) is type(expected)
        for actual_item, expected_item in zip(actual, expected, strict=True):
            assert_same_bits(actual_item, expected_item)
    else:
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.tobytes() == expected.tobytes()


def assert_same_attributes(actual: RolloutBuffer, expected: RolloutBuffer) -> None:
    for name in (*DEVICE_ATTRIBUTES, *HOST_ATTRIBUTES):
        assert_same_bits(getattr(actual, name), getattr(expected, name))


# Against the stock buffer


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("obs", "action"),
    [("image", "discrete"), ("vector", "box"), ("discrete", "multi_binary"), ("dict", "multi_discrete")],
)
def test_training_is_bit_equal_to_training_with_the_stock_buffer(algorithm: str, obs: str, action: str) -> None:
    trained = []
    for buffer_class in (None, DeviceRolloutBuffer):
        model = make_model(algorithm, obs, action, buffer_class)
        before = [parameter.detach().clone() for parameter in model.policy.parameters()]
        model.learn(3 * 6 * 3)
        assert any(not torch.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
        logged = {key: value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}
        trained.append((model.policy.state_dict(), logged, model.rollout_buffer))
    (stock_parameters, stock_log, stock), (parameters, log, buffer) = trained
    assert type(stock) is (DictRolloutBuffer if obs == "dict" else RolloutBuffer)
    assert type(buffer) is DeviceRolloutBuffer
    assert_same_bits(dict(parameters), dict(stock_parameters))
    assert "train/explained_variance" in log
    assert_same_bits(log, stock_log)
    assert_same_attributes(buffer, stock)


@settings(deadline=None, max_examples=60)
@given(
    obs=st.sampled_from(sorted(OBS_SPACES)),
    action=st.sampled_from(sorted(ACTION_SPACES)),
    n_steps=st.integers(1, 5),
    n_envs=st.integers(1, 4),
    batch_size=st.none() | st.integers(1, 25),
    gae_lambda=st.floats(0, 1),
    gamma=st.floats(0, 1),
)
def test_every_minibatch_and_attribute_is_bit_equal_to_the_stock_buffer(
    obs: str, action: str, n_steps: int, n_envs: int, batch_size: int | None, gae_lambda: float, gamma: float
) -> None:
    stock_class = DictRolloutBuffer if obs == "dict" else RolloutBuffer
    stock, buffer = (
        filled(buffer_class, obs, action, n_steps, n_envs, gae_lambda=gae_lambda, gamma=gamma)
        for buffer_class in (stock_class, DeviceRolloutBuffer)
    )
    assert_same_attributes(buffer, stock)
    for epoch in range(2):
        assert_same_bits(minibatches(buffer, batch_size, epoch), minibatches(stock, batch_size, epoch))
    assert_same_attributes(buffer, stock)


def test_the_random_stream_is_used_once_per_epoch_and_not_before_the_first_minibatch() -> None:
    buffer = filled()
    np.random.seed(3)
    epoch = buffer.get(2)
    first = np.random.random()
    list(epoch)
    last = np.random.random()
    np.random.seed(3)
    assert first == np.random.random()
    np.random.permutation(6)
    assert last == np.random.random()


def test_advantages_and_returns_are_those_worked_by_hand() -> None:
    # gamma = lambda = 1/2. The second environment's episode ends at its second step, and again at its last.
    buffer = DeviceRolloutBuffer(3, spaces.Discrete(2), spaces.Discrete(2), "cpu", gae_lambda=0.5, gamma=0.5, n_envs=2)
    for reward, value, starts in ((1, 1, [1, 1]), (2, 1, [0, 0]), (3, 4, [0, 1])):
        both = np.full(2, reward, np.float32)
        zeros = np.zeros(2, np.int64)
        buffer.add(zeros, zeros, both, np.array(starts), torch.full((2, 1), float(value)), torch.zeros(2))
    buffer.compute_returns_and_advantage(torch.tensor([[4.0], [4.0]]), np.array([False, True]))
    assert buffer.advantages.tolist() == [[1.3125, 0.75], [3.25, 1.0], [1.0, -1.0]]
    assert buffer.returns.tolist() == [[2.3125, 1.75], [4.25, 2.0], [5.0, 3.0]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_a_callback_changes_before_training_counts_as_in_the_stock_buffer(algorithm: str) -> None:
    class Shape(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.locals["rollout_buffer"]
            buffer.rewards += 0.5
            buffer.compute_returns_and_advantage(self.locals["values"], self.locals["dones"])
            buffer.advantages[1] *= 2
            buffer.returns = buffer.returns + 1

    stock, shaped, plain = (
        make_model(algorithm, "vector", "discrete", buffer_class).learn(18, callback=callback).policy.state_dict()
        for buffer_class, callback in ((None, Shape()), (DeviceRolloutBuffer, Shape()), (DeviceRolloutBuffer, None))
    )
    assert_same_bits(dict(shaped), dict(stock))
    assert any(not torch.equal(shaped[name], plain[name]) for name in plain)


# Filling and emptying


def test_the_buffer_counts_its_steps_and_is_full_at_the_last() -> None:
    buffer = DeviceRolloutBuffer(2, IMAGE, ACTION_SPACES["discrete"], "cpu", n_envs=2)
    counted = [(buffer.pos, buffer.size(), buffer.full)]
    for seed in range(2):
        buffer.add(*make_step(IMAGE, ACTION_SPACES["discrete"], 2, seed))
        counted.append((buffer.pos, buffer.size(), buffer.full))
    assert counted == [(0, 0, False), (1, 1, False), (2, 2, True)]


def test_reset_empties_the_buffer_and_leaves_earlier_minibatches_alone() -> None:
    buffer = filled()
    (batch,) = minibatches(buffer, None)
    kept = [part.clone() for part in batch]
    buffer.reset()
    assert (buffer.pos, buffer.full, buffer.generator_ready) == (0, False, False)
    assert_same_attributes(buffer, RolloutBuffer(3, IMAGE, ACTION_SPACES["discrete"], "cpu", n_envs=2))
    for seed in range(3, 6):
        buffer.add(*make_step(IMAGE, ACTION_SPACES["discrete"], 2, seed))
    assert_same_bits(list(batch), kept)
    assert not torch.equal(minibatches(buffer, None)[0].observations, kept[0])


def test_reset_lets_the_last_rollout_go_before_it_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = filled()
    minibatches(buffer, 2)
    last = weakref.ref(buffer.observations)
    alive = []
    allocate = torch.zeros

    def zeros(*args: Any, **kwargs: Any) -> torch.Tensor:
        alive.append(last() is not None)
        return allocate(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros", zeros)
    buffer.reset()
    assert alive == [False, False, False]


def test_get_without_a_batch_size_yields_every_sample_once() -> None:
    buffer = filled(obs="vector", n_steps=4, n_envs=3)
    before = buffer.observations.reshape(12, 4).tolist()
    batches = minibatches(buffer, None)
    assert len(batches) == 1
    assert sorted(batches[0].observations.tolist()) == sorted(before)
    assert batches[0].observations.tolist() != before


def test_the_last_minibatch_holds_what_is_left() -> None:
    assert [len(batch.returns) for batch in minibatches(filled(n_steps=4, n_envs=3), 5)] == [5, 5, 2]


# Memory


def test_images_stay_uint8_and_are_stored_once() -> None:
    buffer = filled(n_steps=5, n_envs=3)
    stored = buffer.observations
    assert isinstance(stored, torch.Tensor)
    assert (stored.dtype, stored.shape) == (torch.uint8, (5, 3, *IMAGE.shape))
    assert stored.untyped_storage().nbytes() == 5 * 3 * 60
    batches = minibatches(buffer, 4)
    assert {batch.observations.dtype for batch in batches} == {torch.uint8}
    # The flat order is a view of what was stored.
    assert buffer.observations.data_ptr() == stored.data_ptr()


def test_minibatches_share_no_memory_with_the_buffer() -> None:
    buffer = filled(obs="vector", action="box")
    expected = minibatches(buffer, None)
    for batch in minibatches(buffer, None):
        for part in batch:
            part.fill_(-1)
    assert_same_bits(minibatches(buffer, None), expected)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("obs", ["image", "dict"])
def test_changing_what_was_added_changes_nothing(obs: str, as_tensor: bool) -> None:
    space, action_space = OBS_SPACES[obs], ACTION_SPACES["box"]
    buffer = DeviceRolloutBuffer(1, space, action_space, "cpu", n_envs=2)
    rows, actions, *others = make_step(space, action_space, 2, seed=0)
    sources = [*rows.values()] if isinstance(rows, dict) else [rows]
    sources += [actions, *others]
    if as_tensor:
        rows = {key: torch.from_numpy(part) for key, part in rows.items()} if obs == "dict" else torch.from_numpy(rows)
        actions = torch.from_numpy(actions)
    buffer.add(rows, actions, *others)
    for source in sources:
        source[...] = 0
    expected = filled(DictRolloutBuffer if obs == "dict" else RolloutBuffer, obs, "box", n_steps=1)
    assert_same_bits(minibatches(buffer, None)[0][:4], minibatches(expected, None)[0][:4])


def test_arrays_in_any_memory_layout_are_taken() -> None:
    pictures = np.arange(2 * 60, dtype=np.uint8).reshape(2, 4, 5, 3)[:, ::-1].transpose(0, 3, 1, 2)
    pictures.flags.writeable = False
    _, *others = make_step(IMAGE, ACTION_SPACES["discrete"], 2, seed=0)
    buffer = DeviceRolloutBuffer(1, IMAGE, ACTION_SPACES["discrete"], "cpu", n_envs=2)
    buffer.add(pictures, *others)
    assert_same_bits(buffer.observations[0], pictures)  # type: ignore[index]


def test_gradients_are_not_kept() -> None:
    buffer = DeviceRolloutBuffer(1, IMAGE, ACTION_SPACES["box"], "cpu", n_envs=2)
    rows, actions, rewards, starts, values, log_probs = make_step(IMAGE, ACTION_SPACES["box"], 2, seed=0)
    weight = torch.ones(1, requires_grad=True)
    buffer.add(rows, torch.from_numpy(actions) * weight, rewards, starts, values * weight, log_probs * weight)
    (batch,) = minibatches(buffer, None)
    assert not any(part.requires_grad for part in batch)
    assert sorted(batch.old_log_prob.tolist()) == sorted(log_probs.tolist())


@pytest.mark.parametrize("obs", ["image", "dict"])
def test_minibatches_are_on_the_device_of_the_buffer(obs: str) -> None:
    # The meta device refuses what would be a mixture with host memory, so this needs no accelerator.
    buffer = filled(obs=obs, device="meta")
    for batch in minibatches(buffer, 4):
        observations, *others = batch
        parts = [*observations.values(), *others] if obs == "dict" else [observations, *others]
        assert {part.device.type for part in parts} == {"meta"}
    assert all(isinstance(getattr(buffer, name), np.ndarray) for name in HOST_ATTRIBUTES)


# In a model


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_model_keeps_the_buffer_class_and_trains_on_as_with_the_stock_buffer(
    algorithm: str, tmp_path: Path
) -> None:
    continued = []
    for buffer_class in (RolloutBuffer, DeviceRolloutBuffer):
        model = make_model(algorithm, "image", "box", buffer_class).learn(18)
        model.save(tmp_path / "model")
        loaded = type(model).load(tmp_path / "model", make_model(algorithm, "image", "box", None).env, device="cpu")
        assert type(loaded.rollout_buffer) is buffer_class
        assert_same_bits(dict(loaded.policy.state_dict()), dict(model.policy.state_dict()))
        loaded.set_random_seed(1)
        continued.append(dict(loaded.learn(18).policy.state_dict()))
    assert_same_bits(continued[1], continued[0])


# Errors


@pytest.mark.parametrize("n_steps", [0, 2])
def test_a_buffer_that_is_not_full_gives_no_minibatches(n_steps: int) -> None:
    buffer = DeviceRolloutBuffer(3, IMAGE, ACTION_SPACES["discrete"], "cpu", n_envs=2)
    for seed in range(n_steps):
        buffer.add(*make_step(IMAGE, ACTION_SPACES["discrete"], 2, seed))
    with pytest.raises(ValueError, match=rf"holds {n_steps} of 3 steps; add\(\)"):
        next(buffer.get())


def test_a_full_buffer_takes_no_further_step() -> None:
    buffer = filled()
    with pytest.raises(ValueError, match=r"all 3 steps .* call reset\(\)"):
        buffer.add(*make_step(IMAGE, ACTION_SPACES["discrete"], 2, seed=3))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size}, expected at least 1"):
        next(filled().get(batch_size))


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (3, 3, 4, 5), (2, 4, 5, 3), (3, 4, 5), (2,)])
def test_observations_of_another_shape_are_refused_and_leave_the_step_open(shape: tuple[int, ...]) -> None:
    buffer = DeviceRolloutBuffer(3, IMAGE, ACTION_SPACES["discrete"], "cpu", n_envs=2)
    _, *others = make_step(IMAGE, ACTION_SPACES["discrete"], 2, seed=0)
    with pytest.raises(ValueError, match=r"got the shape .* expected \(2, 3, 4, 5\); check n_envs"):
        buffer.add(np.zeros(shape, np.uint8), *others)
    assert buffer.pos == 0


def test_an_observation_space_that_sb3_does_not_know_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="Tuple"):
        DeviceRolloutBuffer(3, spaces.Tuple((IMAGE, IMAGE)), ACTION_SPACES["discrete"], "cpu")


# On the GPU


@pytest.mark.gpu
@pytest.mark.parametrize("obs", ["image", "dict"])
def test_on_the_gpu_minibatches_are_there_and_bit_equal_to_the_stock_buffer(obs: str) -> None:
    stock_class = DictRolloutBuffer if obs == "dict" else RolloutBuffer
    stock, buffer = (filled(buffer_class, obs, device="cuda") for buffer_class in (stock_class, DeviceRolloutBuffer))
    for batch, expected in zip(minibatches(buffer, 4), minibatches(stock, 4), strict=True):
        for part, expected_part in zip(batch, expected, strict=True):
            pairs = (
                [(part[key], expected_part[key]) for key in part] if isinstance(part, dict) else [(part, expected_part)]
            )
            for tensor, expected_tensor in pairs:
                assert tensor.device.type == "cuda"
                assert_same_bits(tensor.cpu(), expected_tensor.cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_the_gpu_a_model_trains_with_everything_there(algorithm: str) -> None:
    model = make_model(algorithm, "image", "box", DeviceRolloutBuffer, device="cuda").learn(36)
    for name in DEVICE_ATTRIBUTES:
        assert getattr(model.rollout_buffer, name).device.type == "cuda"
    assert all(part.device.type == "cuda" for part in next(model.rollout_buffer.get(4)))
