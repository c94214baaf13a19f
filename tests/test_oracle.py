import numpy as np
import pytest
import torch

from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.metrics import Metric
from rlsr_env.oracle import best_strengths, gain_of, value_of
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv

NEGATIVE_MSE = Metric("mse", lambda sr, hr: (sr - hr).square().mean((1, 2, 3)), higher_is_better=False)
BLACK_BOX = Metric(
    "black_box", lambda sr, hr: (sr - hr).square().mean((1, 2, 3)), higher_is_better=False, differentiable=False
)


@pytest.fixture(scope="module")
def source() -> PatchSource:
    rng = np.random.default_rng(0)
    waves = 128 + 60 * np.sin(np.arange(80) / 2)[:, None, None] * np.cos(np.arange(80) / 3)[:, None]
    picture = (waves + rng.normal(0, 8, (80, 80, 3))).clip(0, 255).astype(np.uint8)
    return PatchSource(DecodedImages(("waves",), (picture,), ()), LRCodec(scale=2, quality=75), lr_patch_size=16)


def started(source: PatchSource, metric: str | Metric, **options: object) -> RestorationVectorEnv:
    env = RestorationVectorEnv(4, task="detail_control", source=source, metric=metric, grid_size=2, **options)
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("metric", ["ssim", "psnr", NEGATIVE_MSE, BLACK_BOX], ids=str)
def test_oracle_beats_the_best_constant_which_beats_doing_nothing(source: PatchSource, metric: str | Metric) -> None:
    env = started(source, metric)
    nothing = value_of(env, torch.zeros(1, 3, 2, 2))
    constant = value_of(env, best_strengths(env, shared=True, n_iterations=15))
    oracle = value_of(env, best_strengths(env, n_iterations=15))
    assert (oracle >= nothing).all()
    assert oracle.mean() > nothing.mean()
    assert constant.mean() >= nothing.mean()


def test_value_is_what_the_environment_pays_for(source: PatchSource) -> None:
    env = started(source, "psnr", reward="improvement")
    strengths = best_strengths(env, n_iterations=5).clamp(-1, 1)
    gain = value_of(env, strengths) - value_of(env, torch.zeros(1, 3, 2, 2))
    _, rewards, _, _, _ = env.step(strengths.reshape(4, -1).numpy())
    assert rewards == pytest.approx(gain.numpy(), abs=1e-5)


def test_gain_is_measured_against_doing_nothing(source: PatchSource) -> None:
    env = started(source, NEGATIVE_MSE)
    assert (gain_of(env, torch.zeros(1, 3, 2, 2)) == 0).all()
    strengths = best_strengths(env, n_iterations=5)
    expected = value_of(env, strengths) - value_of(env, torch.zeros(4, 3, 2, 2))
    assert torch.equal(gain_of(env, strengths), expected) and (gain_of(env, strengths) >= 0).all()


def test_strengths_are_within_the_bounds_and_of_the_task_s_shape(source: PatchSource) -> None:
    env = started(source, "ssim")
    for shared, n in ((False, 4), (True, 1)):
        strengths = best_strengths(env, shared=shared, n_iterations=30)
        assert strengths.shape == (n, 3, 2, 2)
        assert strengths.min() >= -1 and strengths.max() <= 2


def test_other_tasks_have_no_strengths(source: PatchSource) -> None:
    env = RestorationVectorEnv(1, source=source)
    env.reset(seed=0)
    with pytest.raises(
        TypeError, match="the oracle knows the task detail_control, the environment has psnr_prediction"
    ):
        best_strengths(env)
