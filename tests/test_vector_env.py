import itertools
import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from PIL import Image
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from agents.vec_env import GymnasiumVecEnv
from rlsr_env import ENVIRONMENTS
from rlsr_env.captions import CAPTION_HEIGHT
from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages, decode_images, image_set
from rlsr_env.patches import PatchSource
from rlsr_env.resample import upsample
from rlsr_env.vector_env import RestorationVectorEnv

ENV_ID = "rlsr/PSNRPrediction-v0"
EVERY_ID = pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
BOTH_MODES = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
Settings = dict[str, Any]


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """A gradient with noise on it."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 180, height)[:, None, None] + np.linspace(-30, 30, width)[None, :, None]
    return (ramp + rng.normal(0, 15, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        Image.fromarray(picture(64, 80, seed)).save(path / f"{seed}.png")
    return path


@pytest.fixture(scope="module")
def small(folder: Path) -> Settings:
    """Settings of small and fast environments, with a reward that shows the metric to its last bits."""
    return {
        "images": f"folder:{folder}",
        "scale": 2,
        "lr_patch_size": 12,
        "episode_length": 3,
        "reward": "improvement",
        "accuracy_weight": 0.5,
    }


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))


class Dimmed:
    """The Lanczos picture, dimmed: nearer to HR as `weight` goes to 1. Counts its calls."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.n_calls = 0

    def __call__(self, lr_image: Tensor) -> Tensor:
        self.n_calls += 1
        return self.weight * upsample(lr_image, 2)


@pytest.fixture(scope="module")
def tiny(small: Settings) -> Settings:
    """The same patches for any task, decoded once; metric, reward and episode length are each id's own."""
    images = decode_images(image_set(small["images"]), min_size=24)
    return {"source": PatchSource(images, LRCodec(2), 12)}


def native(num_envs: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, **settings: Any) -> RestorationVectorEnv:
    return RestorationVectorEnv(num_envs, autoreset_mode=mode, **settings)


def native_by_id(
    env_id: str, num_envs: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, **settings: Any
) -> RestorationVectorEnv:
    env = gymnasium.make_vec(env_id, num_envs, autoreset_mode=mode, **settings)
    assert isinstance(env, RestorationVectorEnv)
    return env


def scalar_by_scalar(num_envs: int, mode: AutoresetMode, env_id: str = ENV_ID, **settings: Any) -> SyncVectorEnv:
    env = gymnasium.make_vec(
        env_id, num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **settings
    )
    assert isinstance(env, SyncVectorEnv)
    return env


def actions_of(env: VectorEnv, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, env.action_space.shape or ()).astype(np.float32)


def play(env: VectorEnv, n_steps: int, seed: int, between: Callable[[int], None] = lambda i: None) -> list[Any]:
    """All that an environment says in `n_steps` random steps, with some resets that set the environments apart."""
    rng = np.random.default_rng(seed)
    disabled = env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    said: list[Any] = [env.reset(seed=seed)]
    for i in range(n_steps):
        between(i)
        said.append(env.step(actions_of(env, rng)))
        again = rng.random(env.num_envs) < (0.5 if i < 3 else 0.0)
        if disabled:
            again |= said[-1][2]
        if again.any():
            said.append(env.reset(options={"reset_mask": again}))
    return said


def assert_equal(first: Sequence[Any] | np.ndarray, second: Sequence[Any] | np.ndarray) -> None:
    assert len(first) == len(second)
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        assert data_equivalence(one, other, exact=True), f"entry {i}:\n{one}\n{other}"


# Equality to scalar environments


@BOTH_MODES
@pytest.mark.parametrize("num_envs", [1, 5])
@EVERY_ID
def test_is_bit_equal_to_scalar_environments(env_id: str, num_envs: int, mode: AutoresetMode, tiny: Settings) -> None:
    settings = {"generator": small_network(), "metric": "ssim", "reward": "improvement", "episode_length": 3, **tiny}
    said = play(native_by_id(env_id, num_envs, mode, **settings), 12, seed=num_envs)
    expected = play(scalar_by_scalar(num_envs, mode, env_id, **settings), 12, num_envs)
    assert_equal(said, expected)
    ends = sum(entry[2] for entry in said if len(entry) == 5)
    assert (ends >= 3).all()  # three episodes at least
    if num_envs == 5:
        assert any(0 < entry[2].sum() < 5 for entry in said if len(entry) == 5)  # that do not all end at once


@BOTH_MODES
@EVERY_ID
def test_is_bit_equal_as_it_is_registered(env_id: str, mode: AutoresetMode, tiny: Settings) -> None:
    said = play(native_by_id(env_id, 3, mode, **tiny), 6, seed=0)
    assert_equal(said, play(scalar_by_scalar(3, mode, env_id, **tiny), 6, seed=0))


@BOTH_MODES
def test_is_bit_equal_with_the_tasks_own_options(mode: AutoresetMode, tiny: Settings) -> None:
    for env_id, options in (
        (ENV_ID, {"accuracy_weight": 0.5}),
        ("rlsr/DetailControl-v0", {"n_bands": 2, "grid_size": 3, "max_change": 0.3, "metric": "psnr"}),
    ):
        said, expected = (
            native_by_id(env_id, 3, mode, **options, **tiny),
            scalar_by_scalar(3, mode, env_id, **options, **tiny),
        )
        assert_equal(play(said, 6, seed=0), play(expected, 6, seed=0))


@BOTH_MODES
def test_is_bit_equal_while_the_generator_changes(mode: AutoresetMode, small: Settings) -> None:
    said = []
    for make in (native, scalar_by_scalar):
        generator = Dimmed(0.2)

        def improve(i: int, generator: Dimmed = generator) -> None:
            generator.weight = 0.25 + 0.05 * i

        settings = {**small, "reward": "threshold", "accuracy_weight": 0.0}
        said.append(play(make(4, mode, generator=generator, **settings), 10, seed=3, between=improve))
    assert_equal(*said)
    assert all((entry[1] == 1).all() for entry in said[0] if len(entry) == 5)


def test_in_the_step_that_ends_an_episode_infos_hold_its_last_observation_and_info(small: Settings) -> None:
    env = native(3, **small)
    env.reset(seed=0)
    env.reset(options={"reset_mask": np.array([False, True, False])})
    zeros = np.zeros((3, 1), dtype=np.float32)
    env.step(zeros)
    env.reset(options={"reset_mask": np.array([False, True, False])})  # environment 1 is a step behind
    before = env.step(zeros)[0]
    obs, _, terminated, truncated, infos = env.step(zeros)
    assert terminated.tolist() == [True, False, True] and not truncated.any()
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [True, False, True]
    assert infos["final_obs"][1] is None
    for i in (0, 2):
        assert np.array_equal(infos["final_obs"][i], before[i])
        assert not np.array_equal(obs[i], before[i])
    assert infos["final_info"]["_predicted_psnr"].tolist() == [True, False, True]
    assert infos["final_info"]["predicted_psnr"].tolist() == [30, 0, 30]
    assert infos["_predicted_psnr"].tolist() == [False, True, False]
    assert infos["_psnr"].all()
    assert infos["psnr"][0] != infos["final_info"]["psnr"][0]  # of the new patch, and of the old one


@pytest.fixture
def two_threads() -> Iterator[None]:
    """With more than one thread, the order in which torch sums up a picture depends on the pictures beside it."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def large_patches() -> PatchSource:
    """Patches of the default size, whose 76,800 values are enough for torch to share a sum between threads."""
    images = DecodedImages(("a", "b"), (picture(176, 170, 0), picture(165, 190, 1)), ())
    return PatchSource(images, LRCodec(4), 40)


@pytest.mark.usefixtures("two_threads")
def test_an_unchanged_generator_never_pays_however_the_resets_fall(large_patches: PatchSource) -> None:
    env = native(3, AutoresetMode.DISABLED, source=large_patches, reward="improvement")
    env.reset(seed=0)
    for i in range(24):
        env.reset(options={"reset_mask": np.arange(3) == i % 3})
        assert env.step(np.zeros((3, 1)))[1].tolist() == [0, 0, 0]


@pytest.mark.usefixtures("two_threads")
def test_is_bit_equal_at_the_default_size_too(large_patches: PatchSource) -> None:
    together = native(20, source=large_patches).reset(seed=0)[1]["psnr"]
    alone = [native(1, source=large_patches).reset(seed=i)[1]["psnr"][0] for i in range(20)]
    assert together.tolist() == alone


def test_the_generator_is_called_once_a_step_on_the_whole_batch_without_gradient(small: Settings) -> None:
    shapes = []

    def generator(lr_image: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert lr_image.dtype == torch.float32 and 0 <= lr_image.min() and lr_image.max() <= 1
        shapes.append(tuple(lr_image.shape))
        return upsample(lr_image, 2)

    env = native(6, generator=generator, **small)
    env.reset(seed=0)
    for expected in (2, 3, 5):  # the third step ends the episodes, and the next ones are judged too
        env.step(np.zeros((6, 1), dtype=np.float32))
        assert shapes == [(6, 3, 12, 12)] * expected


# make_vec


@EVERY_ID
def test_make_vec_makes_the_native_environment_without_a_warning(env_id: str, tiny: Settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(env_id, num_envs=4, **tiny)
        assert isinstance(env, RestorationVectorEnv)
        assert env.num_envs == 4
        assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        obs, _ = env.reset(seed=0)
        assert env.observation_space.contains(obs)
        assert env.action_space.contains(np.stack([env.single_action_space.sample() for _ in range(4)]))
        obs, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs)
        assert rewards.shape == terminated.shape == truncated.shape == (4,)
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        env.close()


@pytest.mark.parametrize("mode", ["Disabled", AutoresetMode.DISABLED])
def test_make_vec_takes_the_autoreset_mode(mode: str | AutoresetMode, small: Settings) -> None:
    env = gymnasium.make_vec(ENV_ID, num_envs=2, autoreset_mode=mode, **small)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED


@EVERY_ID
def test_the_spec_goes_through_json(env_id: str, folder: Path) -> None:
    small: Settings = {"images": f"folder:{folder}", "scale": 2, "lr_patch_size": 12}
    env = gymnasium.make_vec(env_id, num_envs=2, autoreset_mode="Disabled", **small)
    assert env.spec is not None
    copy = gymnasium.make_vec(EnvSpec.from_json(env.spec.to_json()))
    assert copy.num_envs == 2
    assert_equal(play(env, 5, seed=1), play(copy, 5, seed=1))


# Seeds


def test_environment_i_gets_the_seed_plus_i(small: Settings) -> None:
    obs, _ = native(3, **small).reset(seed=5)
    for i in range(3):
        assert np.array_equal(obs[i], native(1, **small).reset(seed=5 + i)[0][0])
    numpy_integer: Any = np.int64(5)
    assert np.array_equal(obs, native(3, **small).reset(seed=numpy_integer)[0])
    assert np.array_equal(obs, native(3, **small).reset(seed=[5, 6, 7])[0])
    assert np.array_equal(obs[[2, 0, 0]], native(3, **small).reset(seed=[7, 5, 5])[0])


def test_a_seed_of_none_in_the_sequence_goes_on_with_the_stream(small: Settings) -> None:
    env, other = native(3, **small), native(3, **small)
    env.reset(seed=5)
    other.reset(seed=5)
    mixed = env.reset(seed=[None, 40, None])[0]
    unseeded = other.reset()[0]
    assert np.array_equal(mixed[[0, 2]], unseeded[[0, 2]])
    assert np.array_equal(mixed[1], native(1, **small).reset(seed=40)[0][0])


def test_a_seed_of_an_environment_that_is_not_reset_is_not_used(small: Settings) -> None:
    env, other = native(2, **small), native(2, **small)
    env.reset(seed=5)
    other.reset(seed=5)
    first = {"reset_mask": np.array([True, False])}
    assert_equal(env.reset(seed=90, options=first)[0][1:], other.reset(options=first)[0][1:])
    assert_equal(env.reset()[0][1:], other.reset()[0][1:])


def test_unseeded_resets_draw_on_one_stream(small: Settings) -> None:
    env, copy = gymnasium.make_vec(ENV_ID, num_envs=2, **small), native(2, **small)
    assert isinstance(env, RestorationVectorEnv)
    env.reset()
    copy.load_state_dict(env.state_dict())
    # Were `reset()` to choose a new seed, the copy would choose another one.
    for _ in range(4):
        assert np.array_equal(env.reset()[0], copy.reset()[0])
    assert data_equivalence(env.state_dict(), copy.state_dict(), exact=True)


def test_unseeded_environments_differ(small: Settings) -> None:
    first, second = native(2, **small), native(2, **small)
    first.reset()
    second.reset()
    states = [env.state_dict()["rngs"] for env in (first, second)]
    assert len({str(state) for state in itertools.chain(*states)}) == 4


def test_a_seed_sequence_of_the_wrong_length_is_refused(small: Settings) -> None:
    with pytest.raises(ValueError, match="expected one seed for each of 3 environments, got 2"):
        native(3, **small).reset(seed=[1, 2])


# State


@BOTH_MODES
@EVERY_ID
def test_a_copy_goes_on_exactly_from_the_state_in_json(env_id: str, mode: AutoresetMode, tiny: Settings) -> None:
    generator = Dimmed(0.5)
    env, copy = (
        native_by_id(env_id, 3, mode, generator=generator, episode_length=3, reward="improvement", **tiny)
        for _ in range(2)
    )
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    zeros = np.zeros(env.action_space.shape or (), np.float32)
    for i in range(6):
        if env_id != "rlsr/DetailControl-v0":  # which keeps the picture of the episode's start, not the generator
            generator.weight = 0.5 + 0.05 * i  # the value before the step is part of the state
        env.step(actions_of(env, rng))
        if mode is AutoresetMode.DISABLED and env.state_dict()["finished"][0]:
            env.reset(options={"reset_mask": np.array([True, True, True])})
        copy.load_state_dict(json.loads(json.dumps(env.state_dict())))
        fresh_env, fresh_copy = pickle.loads(pickle.dumps((env, copy)))
        assert_equal([fresh_env.step(zeros)], [fresh_copy.step(zeros)])
        assert fresh_env.uris() == fresh_copy.uris()
        assert_equal([fresh_env.reset()], [fresh_copy.reset()])
        assert data_equivalence(fresh_env.state_dict(), fresh_copy.state_dict(), exact=True)


def test_the_state_knows_which_environments_need_a_reset(small: Settings) -> None:
    env, copy = (native(2, AutoresetMode.DISABLED, **small) for _ in range(2))
    copy.load_state_dict(env.state_dict())  # before the first reset
    with pytest.raises(ResetNeeded):
        copy.step(np.zeros((2, 1)))
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros((2, 1)))
    copy.reset(seed=1)
    copy.load_state_dict(env.state_dict())
    with pytest.raises(ResetNeeded, match=r"environments \[0, 1\] have no running episode"):
        copy.step(np.zeros((2, 1)))


def test_the_state_does_not_change_with_the_environment(small: Settings) -> None:
    env = native(2, **small)
    env.reset(seed=0)
    state = env.state_dict()
    text = json.dumps(state)
    env.step(np.zeros((2, 1)))
    env.reset()
    assert json.dumps(state) == text
    env.load_state_dict(state)
    env.reset()
    assert json.dumps(state) == text


def test_a_state_of_another_number_of_environments_is_refused(small: Settings) -> None:
    with pytest.raises(ValueError, match="of 3 environments, this one has 2"):
        native(2, **small).load_state_dict(native(3, **small).state_dict())


@BOTH_MODES
@EVERY_ID
def test_a_pickled_copy_goes_on_equally(env_id: str, mode: AutoresetMode, tiny: Settings) -> None:
    env = native_by_id(env_id, 3, mode, generator=small_network(), episode_length=3, **tiny)
    env.reset(seed=0)
    ones = np.ones(env.action_space.shape or (), np.float32)
    env.step(ones)
    copy = pickle.loads(pickle.dumps(env))
    assert_equal([env.step(ones)], [copy.step(ones)])
    assert_equal([env.reset()], [copy.reset()])


# Reset to a picture


@EVERY_ID
def test_a_picture_is_taken_for_all_environments_or_one_for_each(env_id: str, tiny: Settings, folder: Path) -> None:
    env = native_by_id(env_id, 3, **tiny)
    uris = [f"folder:{folder}/{number}.png" for number in (2, 0, 2)]
    for seed in range(5):
        obs, _ = env.reset(seed=seed, options={"uri": uris})
        assert env.uris() == uris
        assert not np.array_equal(obs[0], obs[2])  # another place or another flip
        env.reset(seed=seed, options={"uri": uris[1]})
        assert env.uris() == [uris[1]] * 3
    env.step(env.action_space.sample())


def test_a_picture_for_some_leaves_the_others_where_they_are(tiny: Settings, folder: Path) -> None:
    env = native(3, **tiny)
    env.reset(seed=0)
    before = env.uris()
    options = {"uri": f"folder:{folder}/1.png", "reset_mask": np.array([False, True, True])}
    env.reset(options=options)
    assert env.uris() == [before[0], options["uri"], options["uri"]]


def test_after_a_chosen_picture_the_streams_go_on_as_after_any(tiny: Settings, folder: Path) -> None:
    env, other = native(3, **tiny), native(3, **tiny)
    env.reset(seed=0, options={"uri": f"folder:{folder}/1.png"})
    other.reset(seed=0)
    assert_equal([env.reset()], [other.reset()])


# What is returned


@BOTH_MODES
@EVERY_ID
def test_spoiling_what_was_returned_changes_nothing_later(env_id: str, mode: AutoresetMode, tiny: Settings) -> None:
    def spoil(value: Any) -> None:
        if isinstance(value, dict):
            for entry in value.values():
                spoil(entry)
        elif isinstance(value, np.ndarray) and value.dtype == object:
            for entry in value:
                spoil(entry)
        elif isinstance(value, np.ndarray):
            value[...] = 0 if value.dtype != np.bool_ else ~value
        elif isinstance(value, tuple):
            for entry in value:
                spoil(entry)

    spoilt, clean = (native_by_id(env_id, 3, mode, render_mode="rgb_array", **tiny) for _ in range(2))
    spoil(spoilt.reset(seed=0))
    clean.reset(seed=0)
    for i in range(7):
        spoil(spoilt.render())
        actions, clean_actions = (np.full(spoilt.action_space.shape or (), 0.1 * i, np.float32) for _ in range(2))
        said, expected = spoilt.step(actions), clean.step(clean_actions)
        assert np.array_equal(actions, clean_actions)
        spoil(actions)
        assert_equal(said, expected)
        spoil(said)
        if mode is AutoresetMode.DISABLED and expected[2].any():
            restarted, clean_restarted = (
                env.reset(options={"reset_mask": expected[2].copy()}) for env in (spoilt, clean)
            )
            assert_equal(restarted, clean_restarted)
            spoil(restarted)
    assert_equal(spoilt.render() or (), clean.render() or ())


def test_infos_hold_nothing_as_large_as_a_picture(small: Settings) -> None:
    env = native(2, generator=small_network(), **small)
    obs, infos = env.reset(seed=0)
    assert set(infos) == {"psnr", "_psnr"}
    for _ in range(3):
        last, (obs, _, _, _, infos) = obs, env.step(np.zeros((2, 1)))
    assert set(infos) == {"psnr", "_psnr", "final_obs", "_final_obs", "final_info", "_final_info"}
    assert np.array_equal(np.stack(list(infos.pop("final_obs"))), last)
    for entry in [*infos.pop("final_info").values(), *infos.values()]:
        assert entry.shape == (2,) and entry.dtype in (np.float64, np.bool_)


def test_frames_are_one_for_each_environment(small: Settings) -> None:
    env = native(3, render_mode="rgb_array", **small)
    obs, _ = env.reset(seed=0)
    frames = env.render()
    assert frames is not None and len(frames) == 3
    for frame, lr_image in zip(frames, obs, strict=True):
        assert frame.shape == (24 + CAPTION_HEIGHT, 48, 3) and frame.dtype == np.uint8
        assert np.array_equal(frame[:24:2, :24:2], lr_image.transpose(1, 2, 0))
    assert native(3, **small).render() is None


def test_uris_name_the_pictures(small: Settings, folder: Path) -> None:
    env = native(20, **small)
    env.reset(seed=0)
    assert set(env.uris()) == {f"folder:{folder}/{name}.png" for name in range(3)}


# Stable-Baselines3


def test_stable_baselines_sees_what_it_would_see_of_scalar_environments(small: Settings) -> None:
    adapted = GymnasiumVecEnv(gymnasium.make_vec(ENV_ID, num_envs=3, generator=small_network(), **small))
    dummy = DummyVecEnv([lambda: gymnasium.make(ENV_ID, generator=small_network(), **small) for _ in range(3)])
    adapted.seed(4)
    dummy.seed(4)
    assert data_equivalence(adapted.reset(), dummy.reset(), exact=True)
    rng = np.random.default_rng(0)
    for _ in range(7):
        actions = actions_of(adapted.vector_env, rng)
        (obs, rewards, dones, infos), expected = adapted.step(actions), dummy.step(actions)
        assert_equal([obs, rewards, dones], expected[:3])
        for info, expected_info in zip(infos, expected[3], strict=True):
            assert info.keys() == expected_info.keys()
            for key, value in info.items():
                assert np.array_equal(value, expected_info[key])
        assert adapted.reset_infos == dummy.reset_infos


def test_stable_baselines_learns_on_it(small: Settings) -> None:
    env = GymnasiumVecEnv(gymnasium.make_vec(ENV_ID, num_envs=4, **{**small, "lr_patch_size": 20}))
    model = A2C("MlpPolicy", env, n_steps=5, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(40)
    assert model.num_timesteps == 40
    assert any(not torch.equal(one, other) for one, other in zip(before, list(model.policy.parameters()), strict=True))


# Errors


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True, False, True], TypeError, "reset_mask must be a NumPy array of bool, got list"),
        (np.array([1, 0, 1]), TypeError, "reset_mask must be a NumPy array of bool, got dtype int64"),
        (np.array([True, False]), ValueError, r"reset_mask must have shape \(3,\), got \(2,\)"),
        (np.array([[True, False, True]]), ValueError, r"reset_mask must have shape \(3,\), got \(1, 3\)"),
        (np.array([False, False, False]), ValueError, "reset_mask marks no environment"),
    ],
)
@BOTH_MODES
def test_a_wrong_reset_mask_is_refused(
    mask: Any, error: type[Exception], message: str, mode: AutoresetMode, small: Settings
) -> None:
    env = native(3, mode, **small)
    env.reset(seed=0)
    state = env.state_dict()
    with pytest.raises(error, match=message):
        env.reset(options={"reset_mask": mask})
    assert env.state_dict() == state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "folder:0.png"}, r"unknown reset options \['url'\]; known: reset_mask, uri"),
        ({"uri": "folder:0.png"}, r"no picture 'folder:0.png' in the image set, which has 3: folder:.*0\.png, "),
        ({"uri": ["folder:0.png"] * 3}, "expected one uri, or one for each of 2 environments, got 3"),
        ({"uri": []}, "expected one uri, or one for each of 2 environments, got 0"),
    ],
)
def test_wrong_reset_options_are_refused(options: dict[str, Any], message: str, tiny: Settings) -> None:
    env = native(2, **tiny)
    env.reset(seed=0)
    state = env.state_dict()
    with pytest.raises(ValueError, match=message):
        env.reset(seed=3, options=options)
    assert env.state_dict() == state


def test_options_and_mask_are_not_changed(small: Settings) -> None:
    options = {"reset_mask": np.array([True, False])}
    env = native(2, **small)
    env.reset(seed=0)
    env.reset(options=options)
    assert options["reset_mask"].tolist() == [True, False]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, "NextStep"])
def test_next_step_autoreset_is_refused(mode: str | AutoresetMode, small: Settings) -> None:
    with pytest.raises(ValueError, match=r"NEXT_STEP is not supported; take SAME_STEP or DISABLED"):
        RestorationVectorEnv(2, autoreset_mode=mode, **small)


def test_an_unknown_autoreset_mode_is_refused(small: Settings) -> None:
    with pytest.raises(ValueError, match="'sometimes'"):
        RestorationVectorEnv(2, autoreset_mode="sometimes", **small)


@pytest.mark.parametrize("num_envs", [0, -1])
def test_less_than_one_environment_is_refused(num_envs: int, small: Settings) -> None:
    with pytest.raises(ValueError, match=f"num_envs must be 1 or more, got {num_envs}"):
        RestorationVectorEnv(num_envs, **small)


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (np.zeros(3), ValueError, r"actions must have shape \(3, 1\), got \(3,\)"),
        (np.zeros((2, 1)), ValueError, r"actions must have shape \(3, 1\), got \(2, 1\)"),
        (np.array([[0], [np.nan], [-np.inf]]), ValueError, r"the actions of environments \[1, 2\] are NaN or infinite"),
        (np.array([["a"], ["b"], ["c"]]), TypeError, "actions must be numbers of Box"),
    ],
)
def test_wrong_actions_are_refused_and_the_episodes_go_on(
    actions: np.ndarray, error: type[Exception], message: str, small: Settings
) -> None:
    env = native(3, **small)
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.step(actions)
    assert [env.step(np.zeros((3, 1)))[2].all() for _ in range(3)] == [False, False, True]


def test_a_finished_environment_needs_a_reset_in_mode_disabled(small: Settings) -> None:
    env = native(3, AutoresetMode.DISABLED, **small)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((3, 1)))
    env.reset(seed=0)
    env.step(np.zeros((3, 1)))
    env.reset(options={"reset_mask": np.array([False, True, False])})
    for _ in range(2):
        terminated = env.step(np.zeros((3, 1)))[2]
    assert terminated.tolist() == [True, False, True]
    with pytest.raises(ResetNeeded, match=r"environments \[0, 2\] have no running episode"):
        env.step(np.zeros((3, 1)))
    env.reset(options={"reset_mask": terminated})
    assert env.step(np.zeros((3, 1)))[2].tolist() == [False, True, False]


def test_a_patch_restored_without_error_counts_as_100_db_and_pays_a_finite_reward() -> None:
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    source = PatchSource(DecodedImages(("grey",), (grey,), ()), LRCodec(scale=2, quality=90), lr_patch_size=12)
    generator = Dimmed()
    env = RestorationVectorEnv(2, source=source, reward="improvement", generator=generator)
    _, infos = env.reset(seed=0)
    assert infos["psnr"].tolist() == [100.0, 100.0]
    generator.weight = 0.9
    _, rewards, _, _, infos = env.step(np.zeros((2, 1), np.float32))
    assert np.isfinite(rewards).all()
    assert rewards == pytest.approx(infos["psnr"] - 100.0, abs=1e-5)


@pytest.mark.parametrize("spelling", ["DISABLED", "Disabled", AutoresetMode.DISABLED])
def test_an_autoreset_mode_goes_by_any_of_its_spellings(small: Settings, spelling: str | AutoresetMode) -> None:
    assert (
        RestorationVectorEnv(1, autoreset_mode=spelling, **small).metadata["autoreset_mode"] is AutoresetMode.DISABLED
    )
