"""Generators, metrics, rewards, states, seeds and processes that do not do what an environment expects."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor
from torch.nn import functional

from rlsr_env import ENVIRONMENTS, RATE_CONTROL
from rlsr_env.metrics import METRICS, Metric, metric, register_metric
from rlsr_env.oracle import best_strengths, gain_of, value_of
from rlsr_env.patches import PatchSource
from rlsr_env.resample import Upsampling
from rlsr_env.rewards import reward
from rlsr_env.rounding import to_levels
from rlsr_env.tasks import PartRestorer, Restorer, SuperResolution, choose_task, restored_by
from rlsr_env.vector_env import RestorationVectorEnv

GENERATING = pytest.mark.parametrize("env_id", ["rlsr/PSNRPrediction-v0", "rlsr/DetailControl-v0"])
EVERY_ID = pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))


def native(env_id: str, source: PatchSource, n: int = 3, **options: Any) -> RestorationVectorEnv:
    settings = {"grid_size": 2} if env_id == "rlsr/DetailControl-v0" else {}
    return gymnasium.make_vec(env_id, num_envs=n, source=source, **settings, **options).unwrapped  # type: ignore[return-value]


def doubled(lr_image: Tensor) -> Tensor:
    return functional.interpolate(lr_image, scale_factor=2)


# Generators


@GENERATING
@pytest.mark.parametrize(
    "generator",
    [
        lambda lr_image: (255 * doubled(lr_image)).to(torch.uint8),
        lambda lr_image: doubled(lr_image) > 0.5,
        lambda lr_image: doubled(lr_image).to(torch.complex64),
        lambda lr_image: doubled(lr_image).numpy(),
        lambda lr_image: None,
        lambda lr_image: [doubled(lr_image)],
        lambda lr_image: lambda part, sr_image: None,
    ],
    ids=["uint8", "bool", "complex", "numpy", "none", "list", "function"],
)
def test_a_generator_that_returns_no_floats_is_refused(
    env_id: str, generator: Callable[[Tensor], Any], patch_source: PatchSource
) -> None:
    with pytest.raises(TypeError, match="a generator must return floating-point pictures"):
        native(env_id, patch_source, generator=generator).reset(seed=0)


@GENERATING
def test_a_generator_of_other_dimensions_or_scale_is_refused(env_id: str, patch_source: PatchSource) -> None:
    with pytest.raises(ValueError, match=r"must return pictures \(N, 3, H, W\), it returned \(3, 16, 16\)"):
        native(env_id, patch_source, generator=lambda lr_image: doubled(lr_image)[0]).reset(seed=0)
    for generator in (Upsampling(3), lambda lr_image: functional.interpolate(lr_image, scale_factor=3)):
        with pytest.raises(ValueError, match="give a generator of scale 2"):
            native(env_id, patch_source, generator=generator).reset(seed=0)


@GENERATING
def test_a_generator_may_change_what_it_is_given(env_id: str, patch_source: PatchSource) -> None:
    envs = [
        native(env_id, patch_source, generator=generator)
        for generator in (lambda lr_image: doubled(lr_image.mul_(0.5)), lambda lr_image: doubled(0.5 * lr_image))
    ]
    actions = np.zeros(envs[0].action_space.shape or (), np.float32)
    said = [[env.reset(seed=0)[1], *(env.step(actions)[4] for _ in range(3))] for env in envs]
    name = envs[0].metric.name
    for one, other in zip(*said, strict=True):
        assert one.get(name, 0.0) is not None
        assert np.array_equal(one[name], other[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["psnr", "ssim"])
@EVERY_ID
def test_a_generator_may_return_any_floats_in_any_order_of_memory(
    env_id: str, name: str, dtype: torch.dtype, patch_source: PatchSource
) -> None:
    ways = [
        lambda lr_image: doubled(lr_image).to(dtype).contiguous(memory_format=torch.channels_last),
        lambda lr_image: doubled(lr_image).to(dtype).float(),
    ]
    said = [native(env_id, patch_source, metric=name, generator=way).reset(seed=0)[1][name] for way in ways]
    assert np.array_equal(*said)


@pytest.mark.parametrize("factor", [1, 4])
def test_a_generator_of_another_scale_is_refused_wherever_it_comes_in(factor: int, patch_source: PatchSource) -> None:
    for generator in (Upsampling(factor), lambda lr_image: functional.interpolate(lr_image, scale_factor=factor)):
        env = native("rlsr/DetailControl-v0", patch_source)
        env.reset(seed=0)
        state = env.state_dict()
        env.generator = generator
        env.step(np.zeros((3, 12), np.float32))  # which does not ask it
        env.load_state_dict(state)
        with pytest.raises(ValueError, match="give a generator of scale 2"):
            env.step(np.zeros((3, 12), np.float32))
        env = native("rlsr/SuperResolution-v0", patch_source, task=Restoring())
        env.reset(seed=0)
        env.generator = generator
        with pytest.raises(ValueError, match="give a generator of scale 2"):
            env.rewards_of(torch.zeros(2, 3, 3, 16, 16))


class Restoring(SuperResolution):
    """The generator's picture, whatever the action, tried as often as one likes."""

    def restore(self, actions: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor | PartRestorer:
        return restored_by(generator, lr_image)


class Returning(Restoring):
    """A task that returns what nobody can use."""

    def restore(self, actions: Tensor, lr_image: Tensor, generator: Restorer) -> Any:
        return lambda part, sr_image: None


def test_a_task_must_return_pictures(patch_source: PatchSource) -> None:
    env = native("rlsr/SuperResolution-v0", patch_source, task=Returning())
    env.reset(seed=0)
    with pytest.raises(TypeError, match="must return pictures as a tensor, or a PartRestorer"):
        env.step(np.zeros((3, 3, 16, 16), np.float32))


class Darker(Upsampling):
    """A subclass that does something else."""

    def __call__(self, lr_image: Tensor) -> Tensor:
        return 0.5 * super().__call__(lr_image)


@GENERATING
def test_a_subclass_of_upsampling_is_asked_itself(env_id: str, patch_source: PatchSource) -> None:
    envs = [
        native(env_id, patch_source, generator=generator)
        for generator in (Darker(2), lambda lr_image: 0.5 * Upsampling(2)(lr_image))
    ]
    name = envs[0].metric.name
    assert np.array_equal(*(env.reset(seed=0)[1][name] for env in envs))


@EVERY_ID
@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_the_default_dtype_changes_nothing(env_id: str, name: str, patch_source: PatchSource) -> None:
    def play() -> list[np.ndarray]:
        env = native(env_id, patch_source, metric=name)
        _, info = env.reset(seed=0)
        env.action_space.seed(0)
        return [info[name], env.step(env.action_space.sample())[1]]

    expected = play()
    try:
        torch.set_default_dtype(torch.float64)
        found = play()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one, other)


def test_a_failed_partial_reset_takes_nothing_from_the_others(patch_source: PatchSource) -> None:
    env = native("rlsr/DetailControl-v0", patch_source, autoreset_mode="DISABLED")
    env.reset(seed=0)
    env.step(np.full((3, 12), 0.5, np.float32))
    before = env.state_dict()
    lanczos, env.generator = env.generator, lambda lr_image: functional.interpolate(lr_image, scale_factor=4)
    first = {"reset_mask": np.array([True, False, False])}
    with pytest.raises(ValueError, match="give a generator of scale 2"):
        env.reset(options=first)
    env.generator = lanczos
    env.reset(options=first)
    after = env.state_dict()
    assert after["task"]["strengths"][0] == np.zeros((3, 2, 2)).tolist()
    assert after["task"]["strengths"][1:] == before["task"]["strengths"][1:]
    assert after["values"][1:] == before["values"][1:] and after["index"][1:] == before["index"][1:]


def test_a_reset_that_is_interrupted_leaves_no_episode(
    patch_source: PatchSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = native("rlsr/DetailControl-v0", patch_source)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PatchSource, "gather", interrupted)
        with pytest.raises(KeyboardInterrupt):
            env.reset(seed=0)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((3, 12), np.float32))


# Metrics and rewards that fail


class FailsOnce:
    """SSIM, but for the one call that fails."""

    def __init__(self) -> None:
        self.calls_left = -1

    def __call__(self, sr_image: Tensor, hr_image: Tensor) -> Tensor:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise ValueError("not now")
        return METRICS["ssim"].function(sr_image, hr_image)


@EVERY_ID
def test_a_step_that_fails_has_not_been(env_id: str, patch_source: PatchSource) -> None:
    failing = FailsOnce()
    env, other = (native(env_id, patch_source, metric=Metric("ssim_at_times", judge), episode_length=3) for judge in (
        failing, METRICS["ssim"].function,
    ))  # fmt: skip
    for each in (env, other):
        each.reset(seed=0)
        each.action_space.seed(0)
    actions = env.action_space.sample()
    failing.calls_left = 1
    with pytest.raises(ValueError, match="not now"):
        env.step(actions)
    for _ in range(3):
        for one, expected in zip(env.step(actions)[:4], other.step(actions)[:4], strict=True):
            assert np.array_equal(one, expected)


def test_an_episode_that_could_not_begin_does_not_go_on(patch_source: PatchSource) -> None:
    failing = FailsOnce()
    env = native("rlsr/PSNRPrediction-v0", patch_source, metric=Metric("ssim_at_times", failing))
    env.reset(seed=0)
    failing.calls_left = 1
    with pytest.raises(ValueError, match="not now"):
        env.reset()
    with pytest.raises(ResetNeeded):
        env.step(np.zeros((3, 1), np.float32))
    env.reset()
    env.step(np.zeros((3, 1), np.float32))


@pytest.mark.parametrize(
    ("pays", "error"),
    [
        (lambda before, after: (after - before) * torch.nan, ValueError),
        (lambda before, after: torch.full_like(after, torch.inf), ValueError),
        (lambda before, after: torch.zeros(2), ValueError),
        (lambda before, after: torch.zeros(3, 1), ValueError),
        (lambda before, after: torch.tensor(0.0), ValueError),
        (lambda before, after: None, TypeError),
        (lambda before, after: 0.5, TypeError),
        (lambda before, after: (after - before).numpy(), TypeError),
    ],
)
def test_a_reward_must_be_a_finite_number_for_each_environment(
    pays: Any, error: type[Exception], patch_source: PatchSource
) -> None:
    env = native("rlsr/PSNRPrediction-v0", patch_source, reward=pays)
    env.reset(seed=0)
    with pytest.raises(error, match=r"number\s+for each"):
        env.step(np.zeros((3, 1), np.float32))


# States


def test_a_state_of_other_pictures_or_patches_is_refused(patch_source: PatchSource) -> None:
    env = native("rlsr/SuperResolution-v0", patch_source)
    env.reset(seed=0)
    state = env.state_dict()
    for column, entry in [(0, 3), (0, -1), (1, 1), (2, 10**6), (2, -5), (3, 33), (4, 8), (4, -1)]:
        spoilt = {**state, "index": [list(row) for row in state["index"]]}
        spoilt["index"][1][column] = entry
        with pytest.raises(ValueError, match="no patch of 8 pixels"):
            env.load_state_dict(spoilt)
    larger = native("rlsr/SuperResolution-v0", patch_source.resized(30))
    for seed in range(20):
        env.reset(seed=seed)
        if max(max(row[2:4]) for row in env.state_dict()["index"]) > 18:
            with pytest.raises(ValueError, match="no patch of 30 pixels"):
                larger.load_state_dict(env.state_dict())
            break
    else:
        pytest.fail("no patch lies far from the corner")
    with pytest.raises(ValueError, match=r"\(n, 5\) int64"):
        env.load_state_dict({**state, "index": [[0, 0, 0]] * 3})


@pytest.mark.parametrize("env_id", ["rlsr/SuperResolution-v0", RATE_CONTROL])
def test_a_state_that_lacks_something_is_refused(env_id: str, patch_source: PatchSource) -> None:
    options = {} if env_id == RATE_CONTROL else {"source": patch_source}
    env: Any = gymnasium.make_vec(env_id, num_envs=2, **options).unwrapped
    env.reset(seed=0)
    state = env.state_dict()
    with pytest.raises(ValueError, match="the state lacks"):
        env.load_state_dict({})
    for name in set(state) - {"task", "chosen"}:
        with pytest.raises(ValueError, match="of 1 environments, this one has 2"):
            env.load_state_dict({**state, name: state[name][:1]})


# Seeds and options


@pytest.mark.parametrize("env_id", ["rlsr/SuperResolution-v0", RATE_CONTROL])
def test_seeds_may_be_numpys_and_a_bad_one_uses_none_up(env_id: str, patch_source: PatchSource) -> None:
    options = {} if env_id == RATE_CONTROL else {"source": patch_source}
    env: Any = gymnasium.make_vec(env_id, num_envs=3, **options).unwrapped
    expected, _ = env.reset(seed=[4, 5, 6])
    for seeds in (np.array([4, 5, 6]), [np.int64(4), 5, np.uint8(6)], np.int64(4)):
        assert np.array_equal(env.reset(seed=seeds)[0], expected)
    before = env.state_dict()["rngs"]
    for bad, error in (
        ([7, -1, 2], ValueError), ([7, 0.5, 2], TypeError), (-3, ValueError), (True, TypeError), ("abc", TypeError),
        ([7, 8], ValueError), (0.5, TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match="seed"):
            env.reset(seed=bad)
    assert env.state_dict()["rngs"] == before
    scalar: Any = gymnasium.make(env_id, **options)
    assert np.array_equal(scalar.reset(seed=np.int64(4))[0], scalar.reset(seed=4)[0])
    for bad, error in ((-3, ValueError), (True, TypeError), (0.5, TypeError)):
        with pytest.raises(error, match="a seed is"):
            scalar.unwrapped.reset(seed=bad)
    scalar.reset(seed=4)
    expected, _ = scalar.reset()
    scalar.reset(seed=4)
    for options in ({"uri": "nowhere"}, {"url": "nowhere"}, {"reset_mask": np.ones(1, dtype=np.bool_)}):
        with pytest.raises(ValueError):
            scalar.reset(seed=9, options=options)
    assert np.array_equal(scalar.reset()[0], expected)
    for each in (env, scalar.unwrapped):
        for bad in ([1], "uri"):
            with pytest.raises(TypeError, match="options of reset are a dictionary"):
                each.reset(options=bad)


# Samples


def test_samples_are_checked_as_steps_are(patch_source: PatchSource) -> None:
    env = native("rlsr/SuperResolution-v0", patch_source)
    shape = (2, *(env.action_space.shape or ()))
    with pytest.raises(ResetNeeded):
        env.rewards_of(torch.zeros(shape))
    env.reset(seed=0)
    for bad in (torch.inf, -torch.inf, torch.nan):
        with pytest.raises(ValueError, match="NaN or infinite"):
            env.rewards_of(torch.full(shape, bad))
    with pytest.raises(ValueError, match="no actions to try"):
        env.rewards_of(torch.zeros(shape)[:0])
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(TypeError, match="tensor of numbers"):
            env.rewards_of(torch.zeros(shape, dtype=dtype))
    whole = torch.zeros(shape, dtype=torch.int64)
    negative = torch.zeros(shape, dtype=torch.complex64).conj().imag
    rewards = env.rewards_of(whole)
    assert torch.equal(rewards, env.rewards_of(negative))
    assert env.step_tensors(negative[0])[1].tolist() == rewards[0].tolist()


# The oracle


def test_the_oracle_says_what_it_takes(patch_source: PatchSource) -> None:
    env = native("rlsr/DetailControl-v0", patch_source)
    env.reset(seed=0)
    for shape in ((2, 3, 2, 2), (3, 12), (3, 3, 4, 4), (3, 2, 2, 2)):
        for function in (gain_of, value_of):
            with pytest.raises(ValueError, match=r"strengths must be \(3, 3, 2, 2\), or 1 for all"):
                function(env, torch.zeros(shape))
    with pytest.raises(TypeError, match="strengths are a tensor"):
        gain_of(env, np.zeros((3, 3, 2, 2)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"env\.unwrapped"):
        best_strengths(gymnasium.make("rlsr/DetailControl-v0", source=patch_source, grid_size=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 3])
def test_bands_are_mixed_by_strengths_that_belong_to_them(n: int, patch_source: PatchSource) -> None:
    env = native("rlsr/DetailControl-v0", patch_source)
    env.reset(seed=0)
    strengths = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with_gradient = env.task.mix(strengths.clone().requires_grad_())  # type: ignore[attr-defined]
    assert (env.task.mix(strengths) - with_gradient).abs().max() < 1e-5  # type: ignore[attr-defined]
    for shape in ((2, 3, 2, 2), (3, 2, 2, 2), (3, 4, 2, 2)):
        with pytest.raises(ValueError, match="do not belong together"):
            env.task.mix(torch.zeros(shape))  # type: ignore[attr-defined]
    with torch.no_grad():
        assert (gain_of(env, best_strengths(env, n_iterations=3)) >= 0).all()


# Settings


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"source": "sample"}, TypeError, "source must be a PatchSource"),
        ({"metric": ["psnr"]}, TypeError, "a metric is a name or a Metric"),
        ({"reward": ["threshold"]}, TypeError, "a reward is a name or a callable"),
        ({"base_codec": ["jpeg"]}, TypeError, "the base codec is a name"),
        ({"device": "meta"}, ValueError, "device 'meta' cannot be used"),
        ({"accuracy_weight": "a"}, ValueError, "accuracy_weight must be finite"),
        ({"accuracy_weight": None}, ValueError, "accuracy_weight must be finite"),
    ],
)
def test_settings_of_a_wrong_kind_are_named(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        gymnasium.make_vec("rlsr/PSNRPrediction-v0", num_envs=1, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": 3}, "source must be a RateSource"),
        ({"table": 3}, "table must be a RateTable"),
        ({"decoder": lambda lr_image: lr_image}, "decoder maps scales to functions"),
        ({"settings": 3}, "settings are pairs"),
    ],
)
def test_rate_control_names_settings_of_a_wrong_kind(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        gymnasium.make_vec(RATE_CONTROL, num_envs=1, **options)


def test_other_lookups_name_what_they_take() -> None:
    for lookup in (metric, reward, choose_task):
        with pytest.raises(TypeError, match="is a name or a"):
            lookup(3)  # type: ignore[operator]
    for value in ("1", None, 1e39, True):
        with pytest.raises(ValueError, match="max_change must be"):
            choose_task("detail_control", max_change=value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating-point"):
        to_levels(torch.zeros(1, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [(3, {}, TypeError), ("a+b", {}, ValueError), ("2*a", {}, ValueError), ("mine", {"min_size": "a"}, ValueError),
     ("mine", {"min_size": 0}, ValueError)],
)  # fmt: skip
def test_a_metric_is_not_registered_under_what_cannot_be_used(
    name: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        register_metric(name, lambda sr, hr: 0.0, **options)
    assert name not in METRICS


def test_a_metric_that_returns_no_tensor_is_named() -> None:
    judge = Metric("listing", lambda sr_image, hr_image: [0.0])  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="metric 'listing' must return a tensor"):
        judge(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


# Processes


FORKED = """
import gymnasium, rlsr_env, torch
from gymnasium.vector import AsyncVectorEnv
torch.set_num_threads(2)
make = lambda: gymnasium.make("{env_id}")
env = make(); env.reset(seed=0); env.step(env.action_space.sample())
envs = AsyncVectorEnv([make, make], context="fork")
_, info = envs.reset(seed=0)
envs.step(envs.action_space.sample())
envs.close()
print("went on")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@EVERY_ID
def test_a_forked_process_can_make_environments_and_step(env_id: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORKED.format(env_id=env_id)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.strip() == "went on", run.stderr
