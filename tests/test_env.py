import inspect
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator, registry
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stable_baselines3 import A2C
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import Tensor, nn

from rlsr_env import ENVIRONMENTS, RATE_CONTROL
from rlsr_env.captions import CAPTION_HEIGHT, add_caption
from rlsr_env.codec import LRCodec
from rlsr_env.env import RestorationEnv
from rlsr_env.images import DecodedImages, FolderImages
from rlsr_env.metrics import Metric
from rlsr_env.patches import PatchSource
from rlsr_env.resample import upsample
from rlsr_env.rewards import Threshold

ENV_ID = "rlsr/PSNRPrediction-v0"
EVERY_ID = pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))
HEADINGS = [
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Arguments",
    "Version History",
]
NO_ACTION = np.zeros(1, dtype=np.float32)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """A gradient with noise on it."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 180, height)[:, None, None] + np.linspace(-30, 30, width)[None, :, None]
    return (ramp + rng.normal(0, 15, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        Image.fromarray(picture(84, 100, seed)).save(path / f"{seed}.png")
    return path


@pytest.fixture(scope="module")
def settings_of_tests(folder: Path) -> dict[str, Any]:
    return {"images": f"folder:{folder}", "scale": 2, "lr_patch_size": 12, "episode_length": 4}


def one_patch(hr_image: np.ndarray, scale: int = 2, quality: int = 90) -> PatchSource:
    """A source whose only patch is the whole picture, in one of its flips."""
    return PatchSource(
        DecodedImages(("picture",), (hr_image,), ()), LRCodec(scale, quality=quality), hr_image.shape[0] // scale
    )


def as_tensor(image: np.ndarray) -> Tensor:
    """`(3, H, W)` uint8 as `(1, 3, H, W)` in [0, 1]."""
    return torch.from_numpy(image.copy())[None].float() / 255


def pictures_of(obs: np.ndarray, hr_image: np.ndarray, scale: int = 2, quality: int = 90) -> tuple[Tensor, Tensor]:
    """LR and HR `(1, 3, H, W)` in [0, 1] of an observation of `one_patch`, found among the eight flips."""
    codec = LRCodec(scale, quality=quality)
    lr_image = codec.decode(codec.encode(hr_image))
    for quarters in range(4):
        for transposed in (False, True):
            lr_flip, hr_flip = (np.rot90(image, quarters).transpose(2, 0, 1) for image in (lr_image, hr_image))
            if transposed:
                lr_flip, hr_flip = lr_flip.transpose(0, 2, 1), hr_flip.transpose(0, 2, 1)
            if np.array_equal(lr_flip, obs):
                return as_tensor(lr_flip), as_tensor(hr_flip)
    raise AssertionError("the observation is no flip of the LR picture")


FLAT_SOURCE = one_patch(np.full((16, 16, 3), 100, dtype=np.uint8))


def decibels(sr_image: Tensor, hr_image: Tensor) -> float:
    """PSNR of a picture in 8 bits, on levels 0 to 255 in NumPy."""
    sr_levels = (sr_image.numpy().astype(np.float64) * 255).round().clip(0, 255)
    hr_levels = (hr_image.numpy().astype(np.float64) * 255).round()
    return float(10 * np.log10(255**2 / np.mean((sr_levels - hr_levels) ** 2)))


class Dimmed:
    """The Lanczos picture, dimmed: a generator that comes nearer to HR as `weight` goes to 1."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, lr_image: Tensor) -> Tensor:
        return self.weight * upsample(lr_image, 2)


class Level:
    """A generator of flat pictures."""

    def __init__(self, level: float) -> None:
        self.level = level

    def __call__(self, lr_image: Tensor) -> Tensor:
        return torch.full((len(lr_image), 3, 2 * lr_image.shape[2], 2 * lr_image.shape[3]), self.level / 255)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))


def play(env: gymnasium.Env, n_steps: int, seed: int) -> list[Any]:
    """All that an environment says in `n_steps` random steps, with resets where episodes end."""
    rng = np.random.default_rng(seed)
    said: list[Any] = [env.reset(seed=seed)]
    for _ in range(n_steps):
        step = env.step(rng.uniform(-1, 1, env.action_space.shape or ()).astype(np.float32))
        said.append(step)
        if step[2]:
            said.append(env.reset())
    return said


# Registration


def test_the_ids_are_these() -> None:
    assert {*ENVIRONMENTS, RATE_CONTROL} == {env_id for env_id in registry if env_id.startswith("rlsr/")}
    assert set(ENVIRONMENTS) == {"rlsr/PSNRPrediction-v0", "rlsr/SuperResolution-v0", "rlsr/DetailControl-v0"}


@EVERY_ID
def test_an_id_can_be_found_by_its_module(env_id: str) -> None:
    env = gymnasium.make(f"rlsr_env:{env_id}", source=FLAT_SOURCE)
    assert isinstance(env.unwrapped, RestorationEnv)
    assert env.spec is not None and env.spec.id == env_id


@EVERY_ID
def test_every_id_has_gymnasium_headings_and_an_example(env_id: str) -> None:
    entry_point = registry[env_id].entry_point
    assert isinstance(entry_point, str)
    text = inspect.getdoc(load_env_creator(entry_point)) or ""
    positions = [text.find(f"\n## {heading}\n") for heading in HEADINGS]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert env_id in text


@EVERY_ID
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasium_checker_has_nothing_to_say(
    env_id: str, render_mode: str | None, settings_of_tests: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(env_id, render_mode=render_mode, **settings_of_tests)
        check_env(env.unwrapped)
        env.close()


@EVERY_ID
def test_stable_baselines_checker_has_nothing_to_say(env_id: str, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(env_id, images=f"folder:{folder}", scale=2, render_mode="rgb_array")
        sb3_check_env(env, skip_render_check=False)
        sb3_check_env(env.unwrapped, skip_render_check=False)


@EVERY_ID
def test_the_default_patch_is_large_enough_for_cnn_policy(env_id: str, folder: Path) -> None:
    env = gymnasium.make(env_id, images=f"folder:{folder}", scale=2)
    model = A2C("CnnPolicy", env, n_steps=4, seed=0, device="cpu")
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(4)
    assert model.num_timesteps == 4
    after = list(model.policy.parameters())
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)


def test_a2c_learns_with_nothing_of_ours_but_the_environment() -> None:
    model = A2C("CnnPolicy", gymnasium.make("rlsr/DetailControl-v0"), n_steps=4, seed=0, device="cpu").learn(8)
    assert model.num_timesteps == 8
    assert model.observation_space.shape == (6, 40, 40) and model.action_space.shape == (48,)


@pytest.mark.parametrize(
    ("env_id", "option"),
    [
        (ENV_ID, {"accuracy_weight": 0.5}),
        ("rlsr/SuperResolution-v0", {"metric": "ssim"}),
        ("rlsr/DetailControl-v0", {"n_bands": 2, "grid_size": 3, "max_change": 0.5}),
    ],
)
def test_the_spec_goes_through_json(env_id: str, option: dict[str, Any], settings_of_tests: dict[str, Any]) -> None:
    env = gymnasium.make(env_id, **option, **settings_of_tests)
    assert env.spec is not None
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"].items() >= option.items()
    copy = gymnasium.make(EnvSpec.from_json(text))
    assert data_equivalence(play(env, 6, seed=3), play(copy, 6, seed=3), exact=True)


# Determinism


@pytest.mark.parametrize(
    ("env_id", "make_generator"),
    [(ENV_ID, lambda: None), *((env_id, small_network) for env_id in sorted(ENVIRONMENTS))],
)
def test_thirty_steps_are_exactly_the_same_twice(
    env_id: str, make_generator: Callable[[], nn.Module | None], settings_of_tests: dict[str, Any]
) -> None:
    first, second = (
        play(gymnasium.make(env_id, generator=make_generator(), reward="improvement", **settings_of_tests), 30, seed=7)
        for _ in range(2)
    )
    assert len(first) == 1 + 30 + 7
    assert data_equivalence(first, second, exact=True)
    assert len({np.asarray(entry[0])[:3].tobytes() for entry in first}) > 6  # of 8 episodes, most are on new patches


@EVERY_ID
def test_another_seed_is_another_patch_and_an_unseeded_reset_goes_on(
    env_id: str, settings_of_tests: dict[str, Any]
) -> None:
    env = gymnasium.make(env_id, **settings_of_tests)
    seven, after_seven = env.reset(seed=7)[0], env.reset()[0]
    assert not np.array_equal(seven, after_seven)
    assert not np.array_equal(seven, env.reset(seed=8)[0])
    assert np.array_equal(seven, env.reset(seed=7)[0])
    assert np.array_equal(after_seven, env.reset()[0])


def test_without_any_seed_two_environments_differ(settings_of_tests: dict[str, Any]) -> None:
    first, second = (gymnasium.make(ENV_ID, **settings_of_tests) for _ in range(2))
    assert any(not np.array_equal(first.reset()[0], second.reset()[0]) for _ in range(3))


@EVERY_ID
def test_a_pickled_copy_goes_on_equally(env_id: str, settings_of_tests: dict[str, Any]) -> None:
    env = gymnasium.make(env_id, reward="improvement", generator=small_network(), **settings_of_tests)
    shape = env.action_space.shape or ()
    env.reset(seed=1)
    env.step(np.full(shape, 0.5, dtype=np.float32))
    copy = pickle.loads(pickle.dumps(env))

    def go_on(either: gymnasium.Env) -> list[Any]:
        steps = [either.step(np.full(shape, 0.1 * i, dtype=np.float32)) for i in range(3)]
        return [steps, either.reset(), either.step(np.zeros(shape, dtype=np.float32)), either.reset()]

    assert data_equivalence(go_on(env), go_on(copy), exact=True)


# Rewards


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.5, 0.6, 0.7, 0.8, 0.9], [1.0, 1.0, 1.0, 1.0]),
        ([0.9, 0.8, 0.7, 0.6, 0.5], [-1.0, -1.0, -1.0, -1.0]),
        ([0.7, 0.7, 0.7, 0.7, 0.7], [-1.0, -1.0, -1.0, -1.0]),
        ([0.5, 0.9, 0.9, 0.7, 0.8], [1.0, -1.0, -1.0, 1.0]),
    ],
    ids=["better", "worse", "unchanged", "mixed"],
)
def test_threshold_pays_for_a_rise_only(
    weights: list[float], expected: list[float], settings_of_tests: dict[str, Any]
) -> None:
    generator = Dimmed(weights[0])
    env = gymnasium.make(ENV_ID, generator=generator, **settings_of_tests)
    env.reset(seed=0)
    rewards = []
    for generator.weight in weights[1:]:
        rewards.append(env.step(NO_ACTION)[1])
    assert rewards == expected


def test_improvement_pays_the_rise_of_the_psnr_computed_here() -> None:
    hr_image = picture(32, 32, seed=5)
    generator = Dimmed(0.5)
    env = gymnasium.make(ENV_ID, generator=generator, source=one_patch(hr_image), reward="improvement")
    obs, info = env.reset(seed=0)
    lr_tensor, hr_tensor = pictures_of(obs, hr_image)
    before = decibels(0.5 * upsample(lr_tensor, 2), hr_tensor)
    assert info == {"psnr": pytest.approx(before, abs=1e-6)}
    for weight in (0.8, 0.6, 1.0, 1.0, 0.9):
        generator.weight = weight
        _, reward, _, _, info = env.step(NO_ACTION)
        after = decibels(weight * upsample(lr_tensor, 2), hr_tensor)
        assert info["psnr"] == pytest.approx(after, abs=1e-6)
        assert reward == pytest.approx(after - before, abs=1e-5)  # rewards are float32
        before = after


@EVERY_ID
@pytest.mark.parametrize("seed", range(4))
def test_the_first_step_pays_a_gain_and_not_the_metric(
    env_id: str, seed: int, settings_of_tests: dict[str, Any]
) -> None:
    env = gymnasium.make(env_id, reward="improvement", metric="psnr", **settings_of_tests)
    _, info = env.reset(seed=seed)
    assert info["psnr"] > 10
    _, reward, _, _, later = env.step(env.action_space.sample())
    assert reward == pytest.approx(later["psnr"] - info["psnr"], abs=1e-5)


@EVERY_ID
@pytest.mark.parametrize("seed", range(4))
def test_the_do_nothing_action_pays_exactly_nothing(env_id: str, seed: int, settings_of_tests: dict[str, Any]) -> None:
    env = gymnasium.make(env_id, reward="improvement", generator=small_network(), **settings_of_tests)
    obs, _ = env.reset(seed=seed)
    action = np.zeros(env.action_space.shape or (), dtype=np.float32)
    if env_id == "rlsr/SuperResolution-v0":  # there, to do nothing is to return the generator's picture
        with torch.no_grad():
            action = 2 * small_network()(as_tensor(obs))[0].numpy() - 1
    assert [env.step(action)[1] for _ in range(4)] == [0.0] * 4


def test_gains_do_not_reach_over_the_end_of_an_episode() -> None:
    generator = Dimmed(0.5)
    source = one_patch(picture(32, 32, seed=5))
    env = gymnasium.make(ENV_ID, generator=generator, source=source, reward="improvement", episode_length=1)
    env.reset(seed=0)
    env.step(NO_ACTION)
    generator.weight = 0.9
    env.reset()
    assert env.step(NO_ACTION)[1] == 0.0


def test_a_metric_of_which_less_is_better_is_paid_for_falling() -> None:
    error = Metric("error", lambda sr, hr: (sr - hr).abs().mean(dim=(1, 2, 3)), higher_is_better=False)
    generator = Level(151)
    env = gymnasium.make(ENV_ID, generator=generator, source=FLAT_SOURCE, reward="improvement", metric=error)
    _, info = env.reset(seed=0)
    assert info["error"] == pytest.approx(0.2, abs=1e-6)
    generator.level = 125.5  # is rounded to 126 (half to even), 26 levels off
    _, reward, _, _, info = env.step(NO_ACTION)
    assert info["error"] == pytest.approx(26 / 255, abs=1e-6)
    assert reward == pytest.approx(25 / 255, abs=1e-6)


def test_a_reward_object_is_taken_as_it_is(settings_of_tests: dict[str, Any]) -> None:
    env = gymnasium.make(ENV_ID, reward=Threshold(lower=0.0), **settings_of_tests)
    env.reset(seed=0)
    assert env.step(NO_ACTION)[1] == 0.0


@pytest.mark.parametrize(
    ("level", "action", "psnr", "expected"),
    [
        # 51 levels off is a mean squared error of 0.04, which is 13.9794 dB; 0 predicts 30 dB, -0.5 predicts 20 dB.
        (151, 0.0, 13.9794, -0.5 * 16.0206 / 20),
        (151, -0.5, 13.9794, -0.5 * 6.0206 / 20),
        (151, (13.9794 - 30) / 20, 13.9794, 0.0),
        # No error at all, an infinite PSNR, counts as 100 dB, and that as the end of the range, 50 dB.
        (100, 1.0, 100.0, 0.0),
        (100, 0.0, 100.0, -0.5),
        # 155 levels off is 4.3242 dB, below the range: it counts as 10 dB.
        (255, -1.0, 4.3242, 0.0),
        (255, 1.0, 4.3242, -1.0),
    ],
)
def test_accuracy_bonus_by_hand(level: float, action: float, psnr: float, expected: float) -> None:
    env = gymnasium.make(
        ENV_ID,
        generator=Level(level),
        source=FLAT_SOURCE,
        reward="improvement",
        accuracy_weight=0.5,
    )
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([action], dtype=np.float32))
    assert reward == pytest.approx(expected, abs=1e-5)
    assert info == {
        "psnr": pytest.approx(psnr, abs=1e-4),
        "predicted_psnr": pytest.approx(30 + 20 * action, abs=1e-5),
    }


def test_the_bonus_comes_on_top_of_the_threshold() -> None:
    generator = Level(255)
    env = gymnasium.make(ENV_ID, generator=generator, source=FLAT_SOURCE, accuracy_weight=0.5)
    env.reset(seed=0)
    generator.level = 151
    assert env.step(np.array([-0.5], dtype=np.float32))[1] == pytest.approx(1 - 0.5 * 6.0206 / 20, abs=1e-5)


@given(action=st.floats(-1, 1, width=32))
@settings(deadline=None, max_examples=30)
def test_without_the_bonus_the_action_changes_nothing_but_the_prediction(action: float) -> None:
    env = gymnasium.make(ENV_ID, source=FLAT_SOURCE, reward="improvement", generator=Level(151))
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([action], dtype=np.float32))
    assert reward == 0.0
    assert 10 <= info["predicted_psnr"] <= 50
    assert info["psnr"] == pytest.approx(13.9794, abs=1e-4)


# Episodes, observations and infos


@pytest.mark.parametrize(
    ("env_id", "option", "length"),
    [
        (ENV_ID, {}, 5),
        ("rlsr/SuperResolution-v0", {}, 1),
        ("rlsr/DetailControl-v0", {}, 3),
        (ENV_ID, {"episode_length": 2}, 2),
    ],
)
def test_an_episode_terminates_after_its_length_and_is_never_truncated(
    env_id: str, option: dict[str, Any], length: int
) -> None:
    env = gymnasium.make(env_id, source=FLAT_SOURCE, **option)
    for seed in (0, None):
        env.reset(seed=seed)
        ends = []
        for _ in range(length):
            _, reward, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape or (), np.float32))
            assert type(reward) is float and type(terminated) is bool and type(truncated) is bool
            assert not truncated
            ends.append(terminated)
        assert ends == [False] * (length - 1) + [True]


def test_stepping_after_the_end_or_before_a_reset_needs_a_reset(settings_of_tests: dict[str, Any]) -> None:
    env = gymnasium.make(ENV_ID, **settings_of_tests).unwrapped
    with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
        env.step(NO_ACTION)
    env.reset(seed=0)
    for _ in range(4):
        env.step(NO_ACTION)
    for _ in range(2):
        with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
            env.step(NO_ACTION)
    env.reset()
    assert env.step(NO_ACTION)[2] is False


@EVERY_ID
def test_the_first_three_channels_are_the_lr_patch_through_the_whole_episode(env_id: str) -> None:
    hr_image = picture(32, 32, seed=5)
    env = gymnasium.make(env_id, source=one_patch(hr_image, quality=20))
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.uint8 and obs.shape[1:] == (16, 16)
    pictures_of(obs[:3], hr_image, quality=20)  # raises where it is no flip of the decoded file
    for _ in range(ENVIRONMENTS[env_id]["episode_length"]):
        assert np.array_equal(env.step(env.action_space.sample())[0][:3], obs[:3])


@EVERY_ID
def test_observations_are_the_same_whatever_the_original(env_id: str) -> None:
    source, other = one_patch(picture(32, 32, seed=5)), one_patch(picture(32, 32, seed=5))
    other._hr = torch.flip(other._hr, dims=(0,))  # the LR files were made before
    said, other_said = (play(gymnasium.make(env_id, source=either), 6, seed=0) for either in (source, other))
    for entry, other_entry in zip(said, other_said, strict=True):
        assert np.array_equal(entry[0], other_entry[0])
        assert entry[-1] != other_entry[-1]  # the metric, which shows that the originals differ


@EVERY_ID
def test_infos_hold_nothing_but_the_metric_and_the_prediction(env_id: str, settings_of_tests: dict[str, Any]) -> None:
    env = gymnasium.make(env_id, metric="ssim", **settings_of_tests)
    _, info = env.reset(seed=0)
    assert set(info) == {"ssim"}
    assert type(info["ssim"]) is float
    info = env.step(env.action_space.sample())[4]
    assert set(info) == ({"ssim", "predicted_psnr"} if env_id == ENV_ID else {"ssim"})
    assert all(type(value) is float for value in info.values())


@EVERY_ID
def test_spoiling_what_was_returned_changes_nothing_later(env_id: str, settings_of_tests: dict[str, Any]) -> None:
    spoilt, clean = (
        RestorationEnv(**{**ENVIRONMENTS[env_id], **settings_of_tests}, render_mode="rgb_array") for _ in range(2)
    )
    obs, info = spoilt.reset(seed=0)
    clean.reset(seed=0)
    for level in (0.1, -0.2, 0.3):
        obs[:] = 0
        info.clear()
        frame = spoilt.render()
        assert frame is not None
        frame[:] = 0
        action, clean_action = (np.full(spoilt.action_space.shape or (), level, dtype=np.float32) for _ in range(2))
        obs, *rest, info = spoilt.step(action)
        assert np.array_equal(action, clean_action)
        action[:] = 1
        assert data_equivalence([obs, *rest, info], list(clean.step(clean_action)), exact=True)
        assert data_equivalence(spoilt.render(), clean.render(), exact=True)


def test_an_action_of_float64_is_taken_too(settings_of_tests: dict[str, Any]) -> None:
    env = RestorationEnv(**settings_of_tests)
    env.reset(seed=0)
    assert env.step(np.array([0.5]))[4]["predicted_psnr"] == 40.0


# The generator


def test_the_next_step_sees_a_network_that_was_trained_in_between(settings_of_tests: dict[str, Any]) -> None:
    network = small_network()
    env = gymnasium.make(ENV_ID, generator=network, reward="improvement", **settings_of_tests)
    _, info = env.reset(seed=0)
    same = env.step(NO_ACTION)
    assert same[1] == 0.0 and same[4]["psnr"] == info["psnr"]
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    changed = env.step(NO_ACTION)
    assert changed[4]["psnr"] != info["psnr"]
    assert changed[1] == pytest.approx(changed[4]["psnr"] - info["psnr"], abs=1e-5)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_another_generator_can_be_assigned(settings_of_tests: dict[str, Any]) -> None:
    env = RestorationEnv(generator=Dimmed(0.5), **settings_of_tests)
    env.reset(seed=0)
    better = Dimmed(0.9)
    env.generator = better
    assert env.generator is better
    assert env.step(NO_ACTION)[1] == 1.0


def test_without_a_generator_lanczos_restores() -> None:
    hr_image = picture(32, 32, seed=5)
    obs, info = gymnasium.make(ENV_ID, source=one_patch(hr_image)).reset(seed=0)
    lr_tensor, hr_tensor = pictures_of(obs, hr_image)
    assert info["psnr"] == pytest.approx(decibels(upsample(lr_tensor, 2), hr_tensor), abs=1e-6)


def test_a_generator_of_another_scale_is_refused(settings_of_tests: dict[str, Any]) -> None:
    env = gymnasium.make(ENV_ID, generator=lambda lr_image: upsample(lr_image, 4), **settings_of_tests)
    with pytest.raises(ValueError, match=r"\(1, 3, 48, 48\) .* \(1, 3, 24, 24\); give a generator of scale 2"):
        env.reset(seed=0)


def test_a_generator_of_nan_is_refused(settings_of_tests: dict[str, Any]) -> None:
    env = gymnasium.make(ENV_ID, generator=Level(float("nan")), **settings_of_tests)
    with pytest.raises(ValueError, match="NaN"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    "function",
    [
        lambda sr, hr: (sr - hr).mean(),
        lambda sr, hr: (sr - hr).mean(dim=(2, 3)),
        lambda sr, hr: sr[:, 0, 0, 0] * np.nan,
    ],
    ids=["scalar", "colours", "nan"],
)
def test_a_metric_that_gives_no_number_per_picture_is_refused(
    function: Callable[[Tensor, Tensor], Tensor], settings_of_tests: dict[str, Any]
) -> None:
    env = gymnasium.make(ENV_ID, metric=Metric("mine", function), **settings_of_tests)
    complaint = r"metric mine returned .* for 1 pictures; expected one number for each|metric 'mine' returned NaN"
    with pytest.raises(ValueError, match=complaint):
        env.reset(seed=0)


# Rendering


@pytest.mark.parametrize("scale", [2, 3])
def test_a_frame_right_after_reset_is_lr_and_sr_side_by_side(scale: int) -> None:
    hr_image = picture(36, 36, seed=5)
    env = gymnasium.make(ENV_ID, source=one_patch(hr_image, scale), render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    assert frame.dtype == np.uint8 and frame.shape == (36 + CAPTION_HEIGHT, 72, 3)
    assert np.array_equal(frame[:36, :36], obs.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1))
    lr_tensor, _ = pictures_of(obs, hr_image, scale)
    sr_levels = (upsample(lr_tensor, scale)[0].permute(1, 2, 0) * 255).round().clip(0, 255).numpy()
    assert np.abs(frame[:36, 36:].astype(int) - sr_levels).max() <= 1


def test_the_frame_shows_the_newest_sr_picture() -> None:
    generator = Level(10)
    env = gymnasium.make(ENV_ID, generator=generator, source=FLAT_SOURCE, render_mode="rgb_array")
    env.reset(seed=0)
    generator.level = 200
    env.step(NO_ACTION)
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    assert (frame[:16, 16:] == 200).all()


def test_a_frame_shows_the_original_only_where_it_is_asked_for() -> None:
    hr_image = picture(32, 32, seed=5)
    with_original, without = (
        gymnasium.make(ENV_ID, source=one_patch(hr_image), render_mode="rgb_array", **option)
        for option in ({"render_original": True}, {})
    )
    obs, _ = with_original.reset(seed=0)
    without.reset(seed=0)
    frame, plain_frame = with_original.render(), without.render()
    assert isinstance(frame, np.ndarray) and isinstance(plain_frame, np.ndarray)
    assert frame.shape == (32 + CAPTION_HEIGHT, 96, 3) and plain_frame.shape == (32 + CAPTION_HEIGHT, 64, 3)
    assert np.array_equal(frame[:32, :64], plain_frame[:32])
    _, hr_tensor = pictures_of(obs, hr_image)
    assert np.array_equal(frame[:32, 64:], (hr_tensor[0] * 255).round().byte().permute(1, 2, 0).numpy())


def test_the_caption_tells_step_and_metric() -> None:
    generator = Level(151)
    source = one_patch(np.full((160, 160, 3), 100, dtype=np.uint8))
    env = gymnasium.make(ENV_ID, generator=generator, source=source, render_mode="rgb_array")
    env.reset(seed=0)
    for step, (level, value) in enumerate([(151, "13.9794"), (255, "4.3242"), (100, "100.0000")]):
        if step:
            generator.level = level
            env.step(NO_ACTION)
        frame = env.render()
        assert isinstance(frame, np.ndarray)
        assert np.array_equal(frame, add_caption(frame[:160], f"step {step}: psnr {value} dB"))


def test_a_caption_leaves_the_picture_alone_and_is_cut_off_at_its_edge() -> None:
    grey = np.full((20, 30, 3), 128, dtype=np.uint8)
    frame = add_caption(grey, "a metric of a very long name")
    assert frame.shape == (20 + CAPTION_HEIGHT, 30, 3)
    assert np.array_equal(frame[:20], grey)
    assert (frame[20:] > 0).any()
    assert not (add_caption(grey, "")[20:] > 0).any()


@EVERY_ID
def test_gymnasium_records_a_video(env_id: str, tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("moviepy")
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    env = gymnasium.make(env_id, images=f"folder:{folder}", scale=2, episode_length=3, render_mode="rgb_array")
    recorder = gymnasium.wrappers.RecordVideo(env, str(tmp_path / "videos"))
    recorder.reset(seed=0)
    frames = [recorder.render()]
    for _ in range(3):
        recorder.step(recorder.action_space.sample())
        frames.append(recorder.render())
    recorder.close()
    (video,) = (tmp_path / "videos").glob("*.mp4")
    reader = imageio_ffmpeg.read_frames(str(video))
    facts = next(reader)
    assert (facts["fps"], facts["source_size"]) == (2, (160, 80 + CAPTION_HEIGHT))
    recorded = [np.frombuffer(data, np.uint8).reshape(80 + CAPTION_HEIGHT, 160, 3).astype(int) for data in reader]
    assert len(recorded) == 4
    for shown, frame in zip(recorded, frames, strict=True):
        assert isinstance(frame, np.ndarray)
        assert np.abs(shown[:80, :80] - frame[:80, :80]).mean() < 12  # the LR panel, after H.264 with halved colour


def test_without_a_render_mode_there_is_no_frame(settings_of_tests: dict[str, Any]) -> None:
    env = RestorationEnv(**settings_of_tests)
    env.reset(seed=0)
    assert env.render() is None


# Errors


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (np.zeros(2, dtype=np.float32), ValueError, r"actions must have shape \(1, 1\), got \(1, 2\)"),
        (np.zeros((1, 1), dtype=np.float32), ValueError, r"actions must have shape \(1, 1\), got \(1, 1, 1\)"),
        (np.float32(0), ValueError, r"actions must have shape \(1, 1\), got \(1,\)"),
        (np.array([np.nan], dtype=np.float32), ValueError, "NaN or infinite"),
        (np.array([np.inf], dtype=np.float32), ValueError, "NaN or infinite"),
        (np.array(["0.5"]), TypeError, "got dtype <U3"),
        (np.array([True]), TypeError, "got dtype bool"),
        (np.array([1j]), TypeError, "got dtype complex128"),
        (None, TypeError, "got dtype object"),
    ],
)
def test_an_action_that_is_none_is_refused_and_the_episode_goes_on(
    action: Any, error: type[Exception], message: str, settings_of_tests: dict[str, Any]
) -> None:
    env = RestorationEnv(**settings_of_tests)
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.step(action)
    assert [env.step(NO_ACTION)[2] for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"metric": "vmaf"}, "Unknown metric 'vmaf'"),
        ({"metric": "ms_ssim"}, "ms_ssim needs pictures of 161 pixels or more, the patches have 24"),
        ({"reward": "fame"}, "Unknown reward 'fame'"),
        ({"images": "imagenet"}, "unknown image set 'imagenet'"),
        ({"task": "chess"}, "unknown task 'chess'; known: psnr_prediction, super_resolution, detail_control"),
        ({"accuracy": 1.0}, r"task 'psnr_prediction' has no option \['accuracy'\]; known: \['accuracy_weight'\]"),
        ({"accuracy_weight": -1.0}, "accuracy_weight must be finite and not negative, got -1.0"),
        ({"render_mode": "ansi"}, "unknown render_mode 'ansi'"),
        ({"episode_length": 0}, "episode_length must be 1 or more, got 0"),
        ({"lr_patch_size": 0}, "[01]"),
        ({"lr_patch_size": 50}, "no usable picture"),
        ({"scale": 0}, "scale is at least 1; got 0"),
        ({"quality": 101}, "quality of jpeg is 1 to 100; got 101"),
        ({"base_codec": "bmp"}, "unknown base codec 'bmp'"),
    ],
    ids=lambda value: "-".join(f"{name}={wrong}" for name, wrong in value.items()) if isinstance(value, dict) else "",
)
def test_a_setting_that_is_unknown_or_out_of_range_is_refused(
    wrong: dict[str, Any], message: str, settings_of_tests: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        RestorationEnv(**{**settings_of_tests, **wrong})


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing does not exist; give a folder of images"):
        RestorationEnv(images=f"folder:{tmp_path / 'missing'}")


def test_an_image_set_object_is_taken_as_it_is(folder: Path) -> None:
    obs, _ = RestorationEnv(images=FolderImages(folder), scale=2, lr_patch_size=12).reset(seed=0)
    by_name, _ = RestorationEnv(images=f"folder:{folder}", scale=2, lr_patch_size=12).reset(seed=0)
    assert np.array_equal(obs, by_name)


# Reset options


@EVERY_ID
def test_a_reset_takes_the_patch_from_the_picture_that_is_named(
    env_id: str, settings_of_tests: dict[str, Any], folder: Path
) -> None:
    env = gymnasium.make(env_id, **settings_of_tests)
    batch = cast(RestorationEnv, env.unwrapped)._batch
    for name in ("2.png", "0.png", "1.png", "2.png"):
        uri = f"folder:{folder}/{name}"
        observations = {env.reset(seed=seed, options={"uri": uri})[0].tobytes() for seed in range(5)}
        assert batch.uris() == [uri]
        assert len(observations) > 1
    assert len({batch.uris()[0] for _ in range(20) if env.reset()}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "folder:0.png"}, r"unknown reset options \['url'\]; known: reset_mask, uri"),
        ({"uri": "folder:0.png"}, r"no picture 'folder:0.png' in the image set, which has 3: folder:.*0\.png, "),
        ({"reset_mask": np.array([True])}, "reset_mask is for vector environments"),
    ],
)
def test_a_wrong_reset_option_is_refused(
    options: dict[str, Any], message: str, settings_of_tests: dict[str, Any]
) -> None:
    env = RestorationEnv(**settings_of_tests)
    with pytest.raises(ValueError, match=message):
        env.reset(seed=0, options=options)
    assert np.array_equal(env.reset(seed=0, options={})[0], env.reset(seed=0)[0])
