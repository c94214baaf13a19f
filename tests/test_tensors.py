"""`reset_tensors` and `step_tensors`: the same environment without NumPy."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from torch import Tensor

from rlsr_env import ENVIRONMENTS
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv

EVERY_ID = pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))
BOTH_MODES = pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED], ids=lambda m: m.name)


def make(env_id: str, source: PatchSource, num_envs: int = 3, **options: Any) -> RestorationVectorEnv:
    env = gymnasium.make_vec(env_id, num_envs, source=source, **options)
    assert isinstance(env, RestorationVectorEnv)
    return env


def random_actions(env: RestorationVectorEnv, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, env.action_space.shape or ()).astype(np.float32)


def assert_same(tensor: Tensor, array: np.ndarray) -> None:
    assert tensor.numpy().dtype == array.dtype
    assert np.array_equal(tensor.numpy(), array)


@BOTH_MODES
@EVERY_ID
def test_says_what_step_says(env_id: str, mode: AutoresetMode, patch_source: PatchSource) -> None:
    fast, plain = (make(env_id, patch_source, autoreset_mode=mode) for _ in range(2))
    name = fast.metric.name
    obs, info = fast.reset_tensors(seed=3)
    plain_obs, plain_info = plain.reset(seed=3)
    assert_same(obs, plain_obs)
    assert info.keys() == {name}
    assert_same(info[name], plain_info[name])
    rng = np.random.default_rng(0)
    n_ends = 0
    for i in range(2 * fast.episode_length + 2):
        if i == 1:  # from here on, episodes do not all end at once
            options = {"reset_mask": np.array([True, False, False])}
            assert np.array_equal(fast.reset(options=options)[0], plain.reset(options=options)[0])
        actions = random_actions(fast, rng)
        said = fast.step_tensors(torch.from_numpy(actions))
        expected = plain.step(actions)
        for tensor, array in zip(said[:4], expected[:4], strict=True):
            assert_same(tensor, array)
        info, ended = said[4], expected[2]
        n_ends += ended.sum()
        assert ("final_obs" in info) == (mode is AutoresetMode.SAME_STEP and bool(ended.any()))
        if "final_obs" in info:
            for j in np.flatnonzero(ended):
                assert_same(info["final_obs"][j], expected[4]["final_obs"][j])
        for key in info.keys() - {"final_obs"}:
            here = expected[4].get(key, np.zeros(3))
            if mode is AutoresetMode.SAME_STEP and ended.any():  # there, the plain info is of the new episodes
                here = np.where(ended, expected[4]["final_info"][key], here)
            assert_same(info[key], here)
        assert info.keys() - {"final_obs"} == {name} | ({"predicted_psnr"} if "PSNR" in env_id else set())
        if mode is AutoresetMode.DISABLED and ended.any():
            options = {"reset_mask": ended.copy()}
            assert np.array_equal(fast.reset(options=options)[0], plain.reset(options=options)[0])
    assert n_ends >= 3
    assert fast.state_dict() == plain.state_dict()


@EVERY_ID
def test_the_two_ways_to_step_can_be_mixed(env_id: str, patch_source: PatchSource) -> None:
    mixed, plain = (make(env_id, patch_source) for _ in range(2))
    mixed.reset_tensors(seed=0)
    plain.reset(seed=0)
    rng = np.random.default_rng(0)
    for i in range(6):
        actions = random_actions(mixed, rng)
        obs, _, _, _, _ = plain.step(actions)
        later = mixed.step(actions)[0] if i % 2 else mixed.step_tensors(torch.from_numpy(actions))[0].numpy()
        assert np.array_equal(obs, later)


def test_without_a_seed_the_streams_go_on(patch_source: PatchSource) -> None:
    fast, plain = (make("rlsr/PSNRPrediction-v0", patch_source) for _ in range(2))
    fast.reset_tensors(seed=5)
    plain.reset(seed=5)
    assert_same(fast.reset_tensors()[0], plain.reset()[0])


@BOTH_MODES
@EVERY_ID
def test_spoiling_what_was_returned_or_given_changes_nothing_later(
    env_id: str, mode: AutoresetMode, patch_source: PatchSource
) -> None:
    def spoil(value: Any) -> None:
        for entry in value.values() if isinstance(value, dict) else value:
            if isinstance(entry, Tensor):
                entry.copy_(~entry if entry.dtype == torch.bool else entry * 0)
            else:
                spoil(entry)

    spoilt, clean = (make(env_id, patch_source, autoreset_mode=mode, render_mode="rgb_array") for _ in range(2))
    spoil(spoilt.reset_tensors(seed=0))
    clean.reset_tensors(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        actions = torch.from_numpy(random_actions(spoilt, rng))
        given = actions.clone()
        said, expected = spoilt.step_tensors(given), clean.step_tensors(actions)
        assert torch.equal(given, actions)
        for one, other in zip([*said[:4], *said[4].values()], [*expected[:4], *expected[4].values()], strict=True):
            assert torch.equal(one, other)
        if mode is AutoresetMode.DISABLED and expected[2].any():
            options = {"reset_mask": expected[2].numpy().copy()}
            assert np.array_equal(spoilt.reset(options=options)[0], clean.reset(options=options)[0])
        spoil([given, *said])
        for frame, clean_frame in zip(spoilt.render() or (), clean.render() or (), strict=True):
            assert np.array_equal(frame, clean_frame)
    assert spoilt.state_dict() == clean.state_dict()


@EVERY_ID
def test_what_is_returned_has_no_gradient(env_id: str, patch_source: PatchSource) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2))
    env = make(env_id, patch_source, generator=network)
    env.reset_tensors(seed=0)
    actions = torch.zeros(env.action_space.shape or (), requires_grad=True)  # as a policy makes them
    obs, rewards, _, _, info = env.step_tensors(actions)
    assert not any(tensor.requires_grad for tensor in (obs, rewards, *info.values()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_actions_of_any_number_type_are_taken(dtype: torch.dtype, patch_source: PatchSource) -> None:
    env = make("rlsr/PSNRPrediction-v0", patch_source)
    env.reset_tensors(seed=0)
    assert env.step_tensors(torch.ones(3, 1, dtype=dtype))[4]["predicted_psnr"].tolist() == [50.0] * 3


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"actions must have shape \(3, 1\), got \(3,\)"),
        (torch.zeros(2, 1), ValueError, r"actions must have shape \(3, 1\), got \(2, 1\)"),
        (torch.tensor([[0.0], [torch.nan], [0.0]]), ValueError, "an action is NaN or infinite"),
        (torch.tensor([[0.0], [torch.inf], [0.0]]), ValueError, "an action is NaN or infinite"),
        (torch.zeros(3, 1, dtype=torch.bool), TypeError, "must be a tensor of numbers, got torch.bool"),
        (torch.zeros(3, 1, dtype=torch.complex64), TypeError, "must be a tensor of numbers, got torch.complex64"),
        (np.zeros((3, 1), np.float32), TypeError, "got ndarray; step takes NumPy arrays"),
        ([[0.0]] * 3, TypeError, "got list"),
    ],
)
def test_wrong_actions_are_refused_and_the_episodes_go_on(
    actions: Any, error: type[Exception], message: str, patch_source: PatchSource
) -> None:
    env = make("rlsr/PSNRPrediction-v0", patch_source)
    env.reset_tensors(seed=0)
    state = env.state_dict()
    with pytest.raises(error, match=message):
        env.step_tensors(actions)
    assert env.state_dict() == state
    assert env.step_tensors(torch.zeros(3, 1))[1].tolist() == [-1.0] * 3


def test_a_finished_environment_needs_a_reset_in_mode_disabled(patch_source: PatchSource) -> None:
    env = make("rlsr/SuperResolution-v0", patch_source, autoreset_mode="Disabled")
    actions = torch.zeros(3, 3, 16, 16)
    with pytest.raises(ResetNeeded):
        env.step_tensors(actions)
    env.reset_tensors(seed=0)
    assert env.step_tensors(actions)[2].tolist() == [True] * 3
    with pytest.raises(ResetNeeded, match=r"environments \[0, 1, 2\] have no running episode"):
        env.step_tensors(actions)


@pytest.mark.gpu
@EVERY_ID
def test_everything_stays_on_the_gpu(env_id: str) -> None:
    env = gymnasium.make_vec(env_id, 3, images="sample", lr_patch_size=16, device="cuda")
    assert isinstance(env, RestorationVectorEnv)
    obs, info = env.reset_tensors(seed=0)
    actions = torch.zeros(env.action_space.shape or (), device="cuda")
    for _ in range(6):
        obs, rewards, terminated, truncated, info = env.step_tensors(actions)
        assert {tensor.device.type for tensor in (obs, rewards, terminated, truncated, *info.values())} == {"cuda"}
