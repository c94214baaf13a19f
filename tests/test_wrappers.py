import json
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers.vector import TransformAction
from PIL import Image
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import rlsr_env  # noqa: F401  (registers the ids)
from agents.vec_env import GymnasiumVecEnv
from rlsr_env.detail import DetailControl
from rlsr_env.wrappers import DiscretisedAction, band_moves

ENV_ID = "rlsr/DetailControl-v0"
Make = Callable[..., DiscretisedAction]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with one picture: waves and noise."""
    path = tmp_path_factory.mktemp("pictures")
    waves = 128 + 60 * np.sin(np.arange(90) / 2)[:, None, None] * np.cos(np.arange(100) / 3)[None, :, None]
    picture = waves + np.random.default_rng(0).normal(0, 10, (90, 100, 3))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path / "waves.png")
    return f"folder:{path}"


@pytest.fixture
def make(images: str) -> Make:
    """Builds the environment with the moves of its own bands."""

    def make(step: float = 0.5, per_cell: bool = False, **options: Any) -> DiscretisedAction:
        moves = band_moves(DetailControl(**options), step, per_cell)
        return DiscretisedAction(gymnasium.make(ENV_ID, images=images, **options), moves)

    return make


class Recorder(gymnasium.Env[np.ndarray, np.ndarray]):
    """Remembers the actions that it gets."""

    def __init__(self, action_space: gymnasium.Space[Any]) -> None:
        self.observation_space = Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = action_space
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.actions.append(action)
        return np.zeros(2, np.float32), 0.0, False, False, {}


def two_numbers() -> Recorder:
    return Recorder(Box(-1.0, 1.0, (2,), np.float32))


def test_two_bands_on_four_cells_by_hand() -> None:
    task = DetailControl(n_bands=2, grid_size=2, max_change=2.0)
    fine, coarse = [1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4
    # A strength of 1 is half of what an action of 1 adds.
    rows = [[0.0] * 8, *([sign * 0.5 * x for x in band] for band in (fine, coarse) for sign in (1, -1))]
    table = band_moves(task, step=1.0)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, rows)


def test_moves_of_single_cells_follow_those_of_whole_bands() -> None:
    task = DetailControl(n_bands=2, grid_size=2)
    table = band_moves(task, step=0.25, per_cell=True)
    assert table.shape == (1 + 2 * 2 + 2 * 8, 8)
    np.testing.assert_array_equal(table[:5], band_moves(task, step=0.25))
    for number in range(8):
        up, down = table[5 + 2 * number], table[6 + 2 * number]
        np.testing.assert_array_equal(np.flatnonzero(up), [number])
        assert up[number] == 0.25
        np.testing.assert_array_equal(down, -up)


def test_each_row_moves_one_band_of_the_strengths() -> None:
    task = DetailControl(n_bands=3, grid_size=2, max_change=0.5)
    lr_image, everyone = torch.rand(7, 3, 8, 8), torch.ones(7, dtype=torch.bool)

    def enlarge(image: torch.Tensor) -> torch.Tensor:
        return image.repeat_interleave(2, 2).repeat_interleave(2, 3)

    task.start(everyone, lr_image, enlarge)
    task.restore(torch.from_numpy(band_moves(task)), lr_image, enlarge)
    expected = torch.zeros(7, 3)
    for band in range(3):
        expected[1 + 2 * band, band], expected[2 + 2 * band, band] = 0.5, -0.5
    torch.testing.assert_close(task.strengths, expected[:, :, None, None].expand(7, 3, 2, 2))


@pytest.mark.parametrize("step", [0.0, -0.5, 1.5, float("nan")])
def test_a_step_that_the_task_cannot_make_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match=r"at most the task's max_change of 1\.0"):
        band_moves(DetailControl(), step=step)


def test_numbers_stand_for_the_rows_of_the_table() -> None:
    inner = two_numbers()
    env = DiscretisedAction(inner, [[0, 0], [0.5, -1], [1, 0.25]])
    assert env.action_space == Discrete(3)
    for number in (2, np.int64(0), np.array(1)):
        env.step(number)
    np.testing.assert_array_equal(inner.actions, [[1, 0.25], [0, 0], [0.5, -1]])
    assert all(action.dtype == np.float32 for action in inner.actions)


def test_an_environment_that_writes_into_its_action_leaves_the_table_alone() -> None:
    env = DiscretisedAction(two_numbers(), [[0, 0], [1, 1]])
    env.action(1)[:] = -1
    np.testing.assert_array_equal(env.action(1), [1, 1])


def test_a_box_of_any_shape_and_dtype_will_do() -> None:
    env = DiscretisedAction(Recorder(Box(0, 9, (2, 2), np.int64)), [[[1, 2], [3, 4]]])
    assert env.action(0).dtype == np.int64 and env.action(0).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("action", [-1, 3, 1.0, "1", np.array([1]), None])
def test_an_action_that_is_no_number_of_a_row_is_refused(action: Any) -> None:
    env = DiscretisedAction(two_numbers(), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="expected an integer from 0 to 2, got"):
        env.step(action)


@pytest.mark.parametrize("shape", [(2,), (0, 2), (3, 1), (3, 2, 1)])
def test_a_table_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(n, 2\), got"):
        DiscretisedAction(two_numbers(), np.zeros(shape))


@pytest.mark.parametrize("bad", [1.5, float("nan"), float("inf")])
def test_rows_outside_the_box_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match=r"rows \[1, 3\] of the table are not in Box"):
        DiscretisedAction(two_numbers(), [[0, 0], [bad, 0], [1, 1], [0, bad]])


def test_an_action_space_that_is_no_box_is_refused() -> None:
    with pytest.raises(TypeError, match=r"needs a Box action space, got Discrete\(4\)"):
        DiscretisedAction(Recorder(Discrete(4)), [[0]])


def test_both_checkers_have_nothing_to_say(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make()
        sb3_check_env(env)
        warnings.filterwarnings("ignore", message=".*most likely has a wrapper applied to it")  # so it has
        check_env(DiscretisedAction(env.unwrapped, env.table), skip_render_check=True)


@pytest.mark.parametrize("per_cell", [False, True])
def test_the_spec_goes_through_json(make: Make, per_cell: bool) -> None:
    env = make(0.3, per_cell, n_bands=2, grid_size=3, max_change=0.7)
    assert env.spec is not None
    text = env.spec.to_json()
    assert json.loads(text)["additional_wrappers"][0]["entry_point"] == "rlsr_env.wrappers:DiscretisedAction"
    copy = gymnasium.make(EnvSpec.from_json(text))
    assert isinstance(copy, DiscretisedAction)
    np.testing.assert_array_equal(copy.table, env.table)
    env.reset(seed=4), copy.reset(seed=4)
    for number in (0, 2, 3):
        (obs, *rest), (other_obs, *other_rest) = env.step(number), copy.step(number)
        np.testing.assert_array_equal(obs, other_obs)
        assert rest == other_rest


def test_a_pickled_copy_goes_on_like_the_original(make: Make) -> None:
    env = make()
    env.reset(seed=1)
    env.step(1)
    copy = pickle.loads(pickle.dumps(env))
    assert env.step(4)[1:] == copy.step(4)[1:]


def test_doing_nothing_earns_nothing_and_a_move_something(make: Make) -> None:
    env = make()
    env.reset(seed=0)
    rewards = [float(env.step(number)[1]) for number in (0, 1)]
    assert abs(rewards[0]) < 1e-6 and abs(rewards[1]) > 1e-3


def test_dqn_trains(make: Make) -> None:
    env = make()
    model = DQN("CnnPolicy", env, buffer_size=32, learning_starts=4, batch_size=4, train_freq=1, seed=0, device="cpu")
    before = [parameter.clone() for parameter in model.q_net.parameters()]
    model.learn(9)
    assert model.num_timesteps == 9
    assert any(not torch.equal(one, other) for one, other in zip(before, model.q_net.parameters(), strict=True))
    number, _ = model.predict(env.reset(seed=0)[0])
    assert env.action_space.contains(number)


def test_the_table_serves_the_vector_environment_by_gymnasiums_own_wrapper(images: str) -> None:
    table, numbers = band_moves(DetailControl()), np.array([0, 3])
    plain, inner = (gymnasium.make_vec(ENV_ID, num_envs=2, images=images) for _ in range(2))
    env = TransformAction(inner, lambda chosen: table[chosen], single_action_space=Discrete(len(table)))
    plain.reset(seed=3), env.reset(seed=3)
    np.testing.assert_array_equal(env.step(numbers)[1], plain.step(table[numbers])[1])
    model = DQN("CnnPolicy", GymnasiumVecEnv(env), buffer_size=32, learning_starts=4, batch_size=4, device="cpu")
    assert model.learn(8).num_timesteps == 8
