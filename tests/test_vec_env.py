import itertools
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecTransposeImage

from agents.vec_env import GymnasiumVecEnv, unpack_infos

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
OBS_SPACES: dict[str, spaces.Space] = {
    "image": spaces.Box(0, 255, (3, 6, 5), np.uint8),
    "image_last": spaces.Box(0, 255, (6, 5, 3), np.uint8),
    "vector": spaces.Box(-10, 10, (4,), np.float32),
    "discrete": spaces.Discrete(7),
    "dict": spaces.Dict(
        {"picture": spaces.Box(0, 255, (3, 6, 5), np.uint8), "age": spaces.Box(0, 9, (1,), np.float32)}
    ),
    "tuple": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(4))),
}
ACTION_SPACES: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 5]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32))),
    "dict": spaces.Dict({"which": spaces.Discrete(3), "how_much": spaces.Box(-1, 1, (2,), np.float32)}),
}


class RandomEpisodes(gymnasium.Env):
    """Episodes of 2 to 8 steps that end terminated, truncated or both, with all kinds of infos."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012

    def __init__(self, obs: str = "vector", action: str = "discrete", render_mode: str | None = None) -> None:
        self.observation_space = deepcopy(OBS_SPACES[obs])
        self.action_space = ACTION_SPACES[action]
        self.render_mode = render_mode
        self.note: Any = None
        self.seeds: list[int | None] = []
        self.options: list[dict[str, Any] | None] = []
        self.n_closed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.options.append(options)
        self.age = 0
        self.length = int(self.np_random.integers(2, 9))
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        return self.observation_space.sample(), {
            "length": self.length,
            "name": f"first of {self.length}",
            "start": {"age": 0},
        }

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.age += 1
        flat_action = np.asarray(spaces.flatten(self.action_space, action), np.float64)
        info: dict[str, Any] = {
            "age": self.age,
            "psnr": float(self.np_random.normal()),
            "is_even": self.age % 2 == 0,
            "action": flat_action,
            "map": self.np_random.normal(size=(2, 3)).astype(np.float32),
            "name": f"step {self.age}",
            "start": {"age": self.age, "deeper": {"name": "x" * self.age, "age": self.age}},
        }
        terminated = truncated = False
        if self.age == self.length:
            terminated, truncated = [(True, False), (False, True), (True, True)][self.np_random.integers(3)]
            info["outcome"] = "terminated" if terminated else "truncated"
            info["trail"] = {"ages": np.arange(3) + self.age}
        reward = float(self.np_random.normal() + flat_action.sum())
        return self.observation_space.sample(), reward, terminated, truncated, info

    def render(self) -> Any:
        return np.full((4, 5, 3), self.age, np.uint8)

    def times(self, factor: int, *, plus: int = 0) -> int:
        return self.length * factor + plus

    def close(self) -> None:
        self.n_closed += 1


class NativeCounter(VectorEnv):
    """Natively batched: environment i counts to `3 + i`; reuses its buffers; one episode in two is truncated."""

    def __init__(
        self, num_envs: int = 3, mode: AutoresetMode = AutoresetMode.SAME_STEP, with_final: bool = True
    ) -> None:
        self.metadata = {"autoreset_mode": mode, "render_fps": 5}
        self.render_mode = "rgb_array"
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(-1, 99, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.with_final = with_final
        self.scale = 1.0
        self.count = np.zeros((num_envs, 1), np.float32)
        self.reward = np.zeros(num_envs, np.float32)
        self.last_count = np.zeros((num_envs, 1), np.float32)
        self.limits = 3 + np.arange(num_envs)
        self.reset_calls: list[tuple[int | None, dict[str, Any] | None]] = []
        self.n_closed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.reset_calls.append((seed, options))
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self.count[mask] = 0
        self.reward[:] = -1
        # Gymnasium does not say what a partial reset returns for the environments that go on: spoil it.
        obs = np.where(mask[:, None], self.count, -1)
        return obs, {"begun": np.arange(self.num_envs), "_begun": mask}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.count += 1
        self.reward[:] = actions * self.scale
        done = self.count[:, 0] >= self.limits
        odd = np.arange(self.num_envs) % 2 == 1
        self.last_count[:] = self.count
        info: dict[str, Any] = {"count": self.last_count}
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and done.any():
            if self.with_final:
                info |= {"final_obs": self.count.copy(), "_final_obs": done}
            self.count[done] = 0
        return self.count, self.reward, done & ~odd, done & odd, info

    def render(self) -> tuple[np.ndarray, ...]:
        return tuple(np.full((4, 4, 3), index, np.uint8) for index in range(self.num_envs))

    def close(self, **kwargs: Any) -> None:
        self.n_closed += 1


def make_env_fns(n_envs: int = 3, **kwargs: Any) -> list[Callable[[], gymnasium.Env]]:
    return [lambda: RandomEpisodes(**kwargs) for _ in range(n_envs)]


def make_adapter(mode: AutoresetMode = AutoresetMode.SAME_STEP, n_envs: int = 3, **kwargs: Any) -> GymnasiumVecEnv:
    return GymnasiumVecEnv(SyncVectorEnv(make_env_fns(n_envs, **kwargs), autoreset_mode=mode))


def sub_envs(vec_env: GymnasiumVecEnv) -> Any:
    return vec_env.vector_env.unwrapped.envs  # type: ignore[attr-defined]


def assert_identical(ours: Any, reference: Any) -> None:
    """Equal bit for bit; a NumPy scalar may stand for a Python number."""
    if isinstance(reference, dict):
        assert isinstance(ours, dict) and ours.keys() == reference.keys()
        for key in reference:
            assert_identical(ours[key], reference[key])
    elif isinstance(reference, (list, tuple)):
        assert type(ours) is type(reference) and len(ours) == len(reference)
        for our_part, reference_part in zip(ours, reference, strict=True):
            assert_identical(our_part, reference_part)
    elif isinstance(reference, np.ndarray):
        assert isinstance(ours, np.ndarray) and ours.dtype == reference.dtype
        assert np.array_equal(ours, reference), f"{ours} != {reference}"
    else:
        assert ours == reference


def assert_same_rollout(ours: VecEnv, reference: VecEnv, n_steps: int = 120, ignored: tuple[str, ...] = ()) -> None:
    """Steps both with the same seeds and actions and compares all they return."""
    ours.seed(3)
    reference.seed(3)
    # The second time without seeds: the environments go on with their own randomness.
    for n_steps_of_this_time in (n_steps, n_steps // 6):
        assert_identical(ours.reset(), reference.reset())
        assert_identical(ours.reset_infos, reference.reset_infos)
        reference.action_space.seed(0)
        n_finished = 0
        for _ in range(n_steps_of_this_time):
            actions: Any = [reference.action_space.sample() for _ in range(reference.num_envs)]
            if isinstance(reference.action_space, (spaces.Box, spaces.Discrete)):
                actions = np.array(actions)
            our_step, reference_step = ours.step(actions), reference.step(actions)
            for key in ignored:
                for info in (*our_step[3], *reference_step[3]):
                    info.pop(key, None)
            assert_identical(our_step, reference_step)
            assert_identical(ours.reset_infos, reference.reset_infos)
            n_finished += our_step[2].sum()
        assert n_finished > n_steps_of_this_time / 10


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


# What step and reset return.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("obs", "action"), list(zip(OBS_SPACES, ACTION_SPACES, strict=True)))
def test_equals_dummy_vec_env_for_every_space(obs: str, action: str, mode: AutoresetMode) -> None:
    ours = make_adapter(mode, obs=obs, action=action)
    assert_same_rollout(ours, DummyVecEnv(make_env_fns(obs=obs, action=action)))


@pytest.mark.parametrize("mode", MODES)
def test_equals_dummy_vec_env_under_the_wrappers_of_sb3(mode: AutoresetMode) -> None:
    ours = VecTransposeImage(make_adapter(mode, obs="image_last"))
    assert_same_rollout(ours, VecTransposeImage(DummyVecEnv(make_env_fns(obs="image_last"))))


@pytest.mark.parametrize("mode", MODES)
def test_equals_dummy_vec_env_in_separate_processes(mode: AutoresetMode) -> None:
    ours = GymnasiumVecEnv(AsyncVectorEnv(make_env_fns(2, obs="dict"), autoreset_mode=mode))
    try:
        assert_same_rollout(ours, DummyVecEnv(make_env_fns(2, obs="dict")))
    finally:
        ours.close()


@pytest.mark.parametrize("mode", MODES)
def test_equals_dummy_vec_env_with_a_time_limit_and_one_env(mode: AutoresetMode) -> None:
    env_fns: list[Callable[[], gymnasium.Env]] = [lambda: TimeLimit(RandomEpisodes(), 4)]
    assert_same_rollout(GymnasiumVecEnv(SyncVectorEnv(env_fns, autoreset_mode=mode)), DummyVecEnv(env_fns))


@pytest.mark.parametrize("mode", MODES)
def test_a_native_vector_env_gives_the_counted_episode(mode: AutoresetMode) -> None:
    vec_env = GymnasiumVecEnv(NativeCounter(2, mode))
    assert np.asarray(vec_env.reset()).ravel().tolist() == [0, 0]
    assert vec_env.reset_infos == [{"begun": 0}, {"begun": 1}]
    steps = [vec_env.step(np.array([0, 1])) for _ in range(4)]
    assert [np.asarray(obs).ravel().tolist() for obs, _, _, _ in steps] == [[1, 1], [2, 2], [0, 3], [1, 0]]
    assert [rewards.tolist() for _, rewards, _, _ in steps] == [[0, 1]] * 4
    assert [dones.tolist() for _, _, dones, _ in steps] == [[False] * 2, [False] * 2, [True, False], [False, True]]
    one, three, four = (np.array([count], np.float32) for count in (1, 3, 4))
    not_truncated, truncated = (
        {"TimeLimit.truncated": False},
        {"TimeLimit.truncated": True, "terminal_observation": four},
    )
    assert_identical(
        steps[2][3],
        [{"count": three, **not_truncated, "terminal_observation": three}, {"count": three, **not_truncated}],
    )
    assert_identical(steps[3][3], [{"count": one, **not_truncated}, {"count": four, **truncated}])
    assert vec_env.reset_infos == ([{}, {}] if mode is AutoresetMode.SAME_STEP else [{"begun": 0}, {"begun": 1}])


def test_same_step_without_final_obs_is_refused_where_an_episode_ends() -> None:
    vec_env = GymnasiumVecEnv(NativeCounter(2, with_final=False))
    vec_env.reset()
    vec_env.step(np.zeros(2))
    vec_env.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"environment 0 .*final_obs"):
        vec_env.step(np.zeros(2))


def arrays_of(step: Any) -> list[np.ndarray]:
    """The arrays that `VecEnv.step` returned, those in the infos included."""
    obs, rewards, dones, infos = step
    values = [value for info in infos for value in info.values()]
    return [obs, rewards, dones, *(value for value in values if isinstance(value, np.ndarray))]


def make_buffer_sharing_sync(n_envs: int, mode: AutoresetMode) -> VectorEnv:
    return SyncVectorEnv(make_env_fns(n_envs), copy=False, autoreset_mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [NativeCounter, make_buffer_sharing_sync])
def test_changing_what_was_returned_changes_nothing_later(
    make: Callable[[int, AutoresetMode], VectorEnv], mode: AutoresetMode
) -> None:
    spoiled, kept = GymnasiumVecEnv(make(3, mode)), GymnasiumVecEnv(make(3, mode))
    spoiled.seed(0)
    kept.seed(0)
    np.asarray(spoiled.reset())[:] = 50
    kept_arrays = [np.asarray(kept.reset())]
    for _ in range(12):
        step, kept_step = spoiled.step(np.ones(3, np.int64)), kept.step(np.ones(3, np.int64))
        assert_identical(step, kept_step)
        for array in arrays_of(step):
            array[...] = 50
        kept_arrays += arrays_of(kept_step)
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(kept_arrays, 2))


def test_rewards_are_float32_and_dones_bool() -> None:
    vec_env = make_adapter()
    vec_env.reset()
    _, rewards, dones, _ = vec_env.step(np.zeros(3, np.int64))
    assert rewards.dtype == np.float32 and dones.dtype == np.bool_


def test_a_dict_of_batched_actions_passes_through() -> None:
    batched = {"which": np.array([0, 1, 2]), "how_much": np.zeros((3, 2), np.float32)}
    single = [{"which": which, "how_much": np.zeros(2, np.float32)} for which in range(3)]
    steps = []
    for actions in (batched, single):
        vec_env = make_adapter(action="dict")
        vec_env.seed(1)
        vec_env.reset()
        steps.append(vec_env.step(actions))  # type: ignore[arg-type]
    assert_identical(*steps)


# The batched infos of Gymnasium.

INFO_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "count": st.integers(-5, 5),
    "score": st.floats(allow_nan=False),
    "label": st.text(max_size=3),
    "array": st.lists(st.integers(0, 9), min_size=2, max_size=2).map(np.array),
    "_private": st.booleans(),
}
NESTED_INFO = st.fixed_dictionaries(
    {}, optional={**INFO_VALUES, "inner": st.fixed_dictionaries({}, optional=INFO_VALUES)}
)


@settings(deadline=None, max_examples=30)
@given(infos=st.lists(NESTED_INFO, min_size=1, max_size=4))
def test_unpacking_undoes_the_batching_of_gymnasium(infos: list[dict[str, Any]]) -> None:
    vector_env = NativeCounter(len(infos))
    vector_info: dict[str, Any] = {}
    for index, info in enumerate(infos):
        vector_info = vector_env._add_info(vector_info, info, index)
    assert_identical(unpack_infos(vector_info, len(infos)), infos)


def test_unpacking_gives_a_key_without_a_mask_to_all() -> None:
    vector_info = {"a": [1, 2], "stats": {"r": np.array([3.0, 4.0])}, "_stats": np.array([False, True])}
    assert unpack_infos(vector_info, 2) == [{"a": 1}, {"a": 2, "stats": {"r": 4.0}}]


@pytest.mark.parametrize("value", [3.0, np.zeros(3), [1]])
def test_unpacking_refuses_a_value_without_one_entry_per_env(value: Any) -> None:
    with pytest.raises(ValueError, match=r"info\['mean'\] has the shape .* first axis of 2"):
        unpack_infos({"mean": value}, 2)


# What SB3 does with it.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("algorithm", "kwargs"), [(A2C, {"n_steps": 8}), (PPO, {"n_steps": 16, "batch_size": 24, "n_epochs": 2})]
)
def test_training_is_bit_equal_to_training_on_dummy_vec_env(
    algorithm: Any, kwargs: dict[str, Any], mode: AutoresetMode
) -> None:
    parameters = []
    for vec_env in (make_adapter(mode, action="box"), DummyVecEnv(make_env_fns(action="box"))):
        policy_kwargs = {"net_arch": [8]}
        model = algorithm("MlpPolicy", vec_env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **kwargs)
        before = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
        model.learn(3 * 3 * kwargs["n_steps"])
        parameters.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
        assert not torch.equal(before, parameters[-1])
    assert torch.equal(*parameters)


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_and_vec_monitor_agree_with_dummy_vec_env(mode: AutoresetMode) -> None:
    model = A2C("MlpPolicy", make_adapter(mode), seed=0, device="cpu")
    results = []
    for vec_env in (make_adapter(mode), DummyVecEnv(make_env_fns())):
        vec_env.seed(7)
        results.append(evaluate_policy(model, VecMonitor(vec_env), n_eval_episodes=10, return_episode_rewards=True))
    assert len(np.asarray(results[0][0])) == 10
    assert_identical(results[0], results[1])


@pytest.mark.parametrize("mode", MODES)
def test_the_episodes_that_vec_monitor_reports_agree_with_dummy_vec_env(mode: AutoresetMode) -> None:
    episodes = []
    for vec_env in (make_adapter(mode), DummyVecEnv(make_env_fns())):
        monitored = VecMonitor(vec_env, info_keywords=("outcome",))
        monitored.seed(5)
        monitored.reset()
        infos = [info for _ in range(60) for info in monitored.step(np.ones(3, np.int64))[3]]
        episodes.append([(e["r"], e["l"], e["outcome"]) for e in (i["episode"] for i in infos if "episode" in i)])
    assert len(episodes[0]) > 10
    assert episodes[0] == episodes[1]


@pytest.mark.parametrize("mode", MODES)
def test_monitored_sub_envs_are_recognised_and_their_episodes_kept(mode: AutoresetMode) -> None:
    env_fns: list[Callable[[], gymnasium.Env]] = [lambda: Monitor(RandomEpisodes()) for _ in range(2)]
    vec_env = GymnasiumVecEnv(SyncVectorEnv(env_fns, autoreset_mode=mode))
    assert vec_env.env_is_wrapped(Monitor) == [True, True]
    assert vec_env.env_is_wrapped(TimeLimit, indices=0) == [False]
    vec_env.reset()
    infos = [info for _ in range(20) for info in vec_env.step(np.ones(2, np.int64))[3]]
    finished = [info for info in infos if "terminal_observation" in info]
    assert finished and all(info["episode"]["l"] == info["age"] for info in finished)
    assert_same_rollout(vec_env, DummyVecEnv(env_fns), n_steps=50, ignored=("episode",))


def test_the_episode_statistics_of_gymnasium_reach_sb3() -> None:
    same_step = SyncVectorEnv(make_env_fns(), autoreset_mode=AutoresetMode.SAME_STEP)
    vec_env = GymnasiumVecEnv(RecordEpisodeStatistics(same_step))
    vec_env.seed(0)
    vec_env.reset()
    ages = np.zeros(3, int)
    lengths = []
    for _ in range(30):
        _, _, dones, infos = vec_env.step(np.zeros(3, np.int64))
        ages += 1
        for index in np.flatnonzero(dones):
            assert infos[index]["episode"]["l"] == infos[index]["age"] == ages[index]
            assert "episode" not in vec_env.reset_infos[index]
            lengths.append(ages[index])
        ages[dones] = 0
    assert len(lengths) > 5
    model = A2C("MlpPolicy", vec_env, device="cpu").learn(60)
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) > 3


# Seeds and options.


@pytest.mark.parametrize("mode", MODES)
def test_seeds_go_to_the_next_reset_only_and_differ_per_env(mode: AutoresetMode) -> None:
    vec_env = make_adapter(mode)
    assert vec_env.seed(11) == [11, 12, 13]
    vec_env.reset()
    vec_env.reset()
    assert [env.seeds for env in sub_envs(vec_env)] == [[11, None], [12, None], [13, None]]


def test_a_native_vector_env_gets_the_first_seed_and_one_options_dict() -> None:
    native = NativeCounter()
    vec_env = GymnasiumVecEnv(native)
    vec_env.seed(np.int64(4))  # type: ignore[arg-type]
    vec_env.set_options({"picture": 2})
    vec_env.reset()
    vec_env.reset()
    assert native.reset_calls == [(4, {"picture": 2}), (None, None)]
    assert type(native.reset_calls[0][0]) is int


@pytest.mark.parametrize("options", [{"picture": 2}, [{"picture": 2}] * 3])
def test_options_go_to_the_next_reset_of_each_env_only(options: Any) -> None:
    vec_env = make_adapter()
    vec_env.set_options(options)
    vec_env.reset()
    vec_env.reset()
    assert [env.options for env in sub_envs(vec_env)] == [[{"picture": 2}, None]] * 3


@pytest.mark.parametrize("options", [[{"a": 1}, {"a": 2}, {"a": 1}], [{"a": 1}], []])
def test_options_that_differ_between_envs_are_refused(options: list[dict]) -> None:
    with pytest.raises(ValueError, match="same options for all 3"):
        make_adapter().set_options(options)


# Attributes, methods, frames, closing.


def test_attributes_and_methods_of_sub_envs_respect_indices() -> None:
    vec_env = make_adapter()
    vec_env.reset()
    lengths = [env.length for env in sub_envs(vec_env)]
    assert vec_env.get_attr("length") == lengths
    assert vec_env.get_attr("length", indices=[2, 0]) == [lengths[2], lengths[0]]
    vec_env.set_attr("note", [1, 2, 3])
    vec_env.set_attr("note", 5.0, indices=1)
    assert vec_env.get_attr("note") == [[1, 2, 3], 5.0, [1, 2, 3]]
    assert vec_env.env_method("times", 10, plus=1) == [10 * length + 1 for length in lengths]
    assert vec_env.env_method("times", 2, indices=[1]) == [2 * lengths[1]]
    assert vec_env.get_attr("times")[0](3) == 3 * lengths[0]


def test_set_attr_reaches_below_the_wrappers_of_sub_envs() -> None:
    wrapped = SyncVectorEnv([lambda: TimeLimit(RandomEpisodes(), 9)], autoreset_mode=AutoresetMode.SAME_STEP)
    vec_env = GymnasiumVecEnv(wrapped)
    vec_env.set_attr("note", 2.5)
    assert sub_envs(vec_env)[0].unwrapped.note == 2.5


def test_a_native_vector_env_answers_for_all_indices() -> None:
    native = NativeCounter()
    vec_env = GymnasiumVecEnv(RecordEpisodeStatistics(native))
    assert vec_env.get_attr("scale") == [1.0, 1.0, 1.0]
    assert vec_env.get_attr("scale", indices=[0, 2]) == [1.0, 1.0]
    vec_env.set_attr("scale", 3.0)
    assert native.scale == 3.0
    assert vec_env.get_attr("episode_count") == [0, 0, 0]
    assert len(vec_env.env_method("render", indices=1)) == 1
    assert vec_env.env_is_wrapped(Monitor) == [False, False, False]
    with pytest.raises(ValueError, match=r"indices=\[1\].*all 3 environments"):
        vec_env.set_attr("scale", 4.0, indices=1)


def test_workers_answer_and_survive_a_missing_attribute() -> None:
    vec_env = GymnasiumVecEnv(AsyncVectorEnv(make_env_fns(2), autoreset_mode=AutoresetMode.SAME_STEP))
    try:
        vec_env.reset()
        vec_env.set_attr("note", (1, 2))
        assert vec_env.get_attr("note", indices=1) == [(1, 2)]
        assert vec_env.env_method("times", 0, plus=4) == [4, 4]
        assert not vec_env.has_attr("nothing")
        assert vec_env.env_is_wrapped(Monitor) == [False, False]
        with pytest.raises(AttributeError, match="nothing"):
            vec_env.env_method("nothing")
        with pytest.raises(ValueError, match="all 2 environments"):
            vec_env.env_method("times", 1, indices=[0])
        assert vec_env.step(np.zeros(2, np.int64))[0].shape == (2, 4)  # type: ignore[union-attr]
    finally:
        vec_env.close()


@pytest.mark.parametrize("make", [make_adapter, lambda: GymnasiumVecEnv(NativeCounter())])
def test_a_missing_attribute_raises_attribute_error(make: Callable[[], GymnasiumVecEnv]) -> None:
    vec_env = make()
    assert not vec_env.has_attr("nothing")
    for call in (lambda: vec_env.get_attr("nothing"), lambda: vec_env.env_method("nothing")):
        with pytest.raises(AttributeError, match="nothing"):
            call()


def test_a_native_vector_env_does_not_get_new_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sclae'"):
        GymnasiumVecEnv(NativeCounter()).set_attr("sclae", 2.0)


def test_frames_are_given_per_env_and_tiled() -> None:
    vec_env = make_adapter(n_envs=4, render_mode="rgb_array")
    vec_env.reset()
    vec_env.step(np.zeros(4, np.int64))
    images = vec_env.get_images()
    assert len(images) == 4 and all(image is not None and image.shape == (4, 5, 3) for image in images)
    tiled = vec_env.render()
    assert tiled is not None and tiled.shape == (8, 10, 3) and (tiled == 1).all()
    assert vec_env.metadata["render_fps"] == 7
    native = GymnasiumVecEnv(NativeCounter()).get_images()
    assert [int(image.max()) for image in native if image is not None] == [0, 1, 2]


def test_images_without_rgb_array_warn_as_dummy_vec_env_does() -> None:
    with pytest.warns(UserWarning, match="rgb_array"):
        assert make_adapter().get_images() == [None, None, None]


def test_closing_twice_closes_once() -> None:
    vec_env = make_adapter()
    native = NativeCounter()
    for each in (vec_env, vec_env, native_vec_env := GymnasiumVecEnv(native), native_vec_env):
        each.close()
    assert [env.n_closed for env in sub_envs(vec_env)] == [1, 1, 1]
    assert native.n_closed == 1


# What is refused.


def test_next_step_is_refused_with_the_way_to_build_same_step() -> None:
    vector_env = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    with pytest.raises(ValueError, match=r"NEXT_STEP.*vectorization_mode='sync'.*AutoresetMode\.SAME_STEP"):
        GymnasiumVecEnv(vector_env)
    as_advised = gymnasium.make_vec(
        "CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    assert GymnasiumVecEnv(as_advised).num_envs == 2


def test_a_vector_env_that_does_not_declare_its_mode_is_refused() -> None:
    vector_env = NativeCounter()
    vector_env.metadata = {}
    with pytest.raises(ValueError, match=r"autoreset_mode'\] = None"):
        GymnasiumVecEnv(vector_env)


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (RandomEpisodes, "Got RandomEpisodes.*DummyVecEnv"),
        (lambda: DummyVecEnv(make_env_fns(1)), "Got DummyVecEnv.*as it is"),
        (lambda: "CartPole-v1", "Got str.*gymnasium.make_vec"),
    ],
)
def test_anything_but_a_vector_env_is_refused_with_advice(make: Callable[[], Any], advice: str) -> None:
    with pytest.raises(TypeError, match=advice):
        GymnasiumVecEnv(make())


def test_nested_observation_spaces_are_refused() -> None:
    vector_env = NativeCounter()
    vector_env.single_observation_space = spaces.Dict({"outer": spaces.Dict({"inner": spaces.Discrete(2)})})
    with pytest.raises(NotImplementedError, match="Nested"):
        GymnasiumVecEnv(vector_env)
