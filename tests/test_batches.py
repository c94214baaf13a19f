from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import rlsr_env.batch_judge
import rlsr_env.batches
from rlsr_env import ENVIRONMENTS
from rlsr_env.batches import groups_in_cache, keep_memory
from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.metrics import METRICS, Metric
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv

EVERY_ID = pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))


def test_groups_cover_the_batch_in_order() -> None:
    assert groups_in_cache(72, 19200, torch.device("cpu")) == [slice(0, 32), slice(32, 64), slice(64, 72)]
    assert groups_in_cache(3, 10**9, torch.device("cpu")) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert groups_in_cache(5, 10, torch.device("cpu")) == [slice(0, 5)]


def test_other_devices_take_the_batch_as_a_whole() -> None:
    assert groups_in_cache(40, 10**9, torch.device("cuda")) == [slice(0, 40)]


def test_memory_can_be_kept_more_than_once() -> None:
    for _ in range(2):
        keep_memory()
    assert torch.ones(10).sum() == 10


def source() -> PatchSource:
    rng = np.random.default_rng(0)
    pictures = tuple(rng.integers(0, 256, (60, 50, 3), dtype=np.uint8) for _ in range(3))
    return PatchSource(DecodedImages(("a", "b", "c"), pictures, ()), LRCodec(2), 12)


def vector_env(env_id: str, **options: Any) -> RestorationVectorEnv:
    return RestorationVectorEnv(5, source=source(), **{**ENVIRONMENTS[env_id], **options})


@EVERY_ID
@pytest.mark.parametrize("metric", ["psnr", "ssim", "psnr_y"])
def test_groups_change_nothing(env_id: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = []
    for cached, fewest in ((10**6, 8), (2 * 3 * 24 * 24, 2)):
        for module in (rlsr_env.batches, rlsr_env.batch_judge):
            monkeypatch.setattr(module, "CACHED_VALUES", cached)
        monkeypatch.setattr(rlsr_env.batch_judge, "FEWEST_PICTURES", fewest)
        monkeypatch.setattr(rlsr_env.batch_judge, "available_cores", lambda: 1)
        options = {"metric": metric, "episode_length": 4, "autoreset_mode": AutoresetMode.DISABLED}
        envs.append(vector_env(env_id, **options))
    whole, grouped = envs
    assert [len(env._batch_judge.groups) for env in envs] == [1, 3]
    rng = np.random.default_rng(0)
    mask = None
    for _ in range(3):  # all at once, then two groups in part, then one
        said = [env.reset(seed=None if mask is not None else 0, options={"reset_mask": mask}) for env in envs]
        assert np.array_equal(said[0][0], said[1][0])
        assert np.array_equal(said[0][1][metric], said[1][1][metric])
        assert whole._values.tolist() == grouped._values.tolist()
        assert torch.equal(whole._sr, grouped._sr)
        actions = rng.uniform(-1, 1, whole.action_space.shape or ()).astype(np.float32)
        steps = [env.step(actions) for env in envs]
        for one, other in zip(steps[0][:3], steps[1][:3], strict=True):
            assert np.array_equal(one, other)
        assert torch.equal(whole._sr, grouped._sr)
        mask = np.array([True, False, False, True, False]) if mask is None else np.array([False] * 4 + [True])


def test_a_group_without_a_new_episode_is_not_judged_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counting(sr_image: torch.Tensor, hr_image: torch.Tensor) -> torch.Tensor:
        sizes.append(len(sr_image))
        return METRICS["psnr"].function(sr_image, hr_image)

    monkeypatch.setattr(rlsr_env.batches, "CACHED_VALUES", 2 * 3 * 24 * 24)
    env = vector_env("rlsr/DetailControl-v0", metric=Metric("counting", counting))
    env.reset(seed=0)
    assert sizes == [2, 2, 1]
    env.reset(options={"reset_mask": np.array([False, False, True, False, False])})
    assert sizes == [2, 2, 1, 2]


def test_state_of_a_grouped_batch_goes_on_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlsr_env.batches, "CACHED_VALUES", 2 * 3 * 24 * 24)
    first, second = (vector_env("rlsr/DetailControl-v0") for _ in range(2))
    first.reset(seed=0)
    actions = first.action_space.sample()
    first.step(actions)
    second.load_state_dict(first.state_dict())
    expected, said = first.step(actions), second.step(actions)
    assert np.array_equal(said[0], expected[0])
    assert np.array_equal(said[1], expected[1])


# Metrics against the same originals


@pytest.mark.parametrize("name", sorted(name for name, judge in METRICS.items() if judge.prepare is not None))
def test_metric_against_originals_is_the_metric(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    sr_image, hr_image = (torch.rand(4, 3, 32, 32, generator=rng) * 1.4 - 0.2 for _ in range(2))  # beyond [0, 1] too
    judge = METRICS[name].against(hr_image)
    assert torch.equal(judge(sr_image), METRICS[name](sr_image, hr_image))
    assert torch.equal(judge(hr_image), METRICS[name](hr_image, hr_image))
    assert torch.equal(judge(sr_image.double()), METRICS[name](sr_image.double(), hr_image))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(judge(sr_image), METRICS[name](sr_image, hr_image))


def test_two_metrics_are_prepared_and_the_others_need_not_be() -> None:
    assert {"psnr", "ssim"} <= {name for name, judge in METRICS.items() if judge.prepare is not None}
    mine = Metric("mine", lambda sr, hr: (sr - hr).abs().mean((1, 2, 3)))
    sr_image, hr_image = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    assert torch.equal(mine.against(hr_image)(sr_image), mine(sr_image, hr_image))


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_metric_against_originals_refuses_what_the_metric_refuses(name: str) -> None:
    judge = METRICS[name].against(torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match="of one shape"):
        judge(torch.rand(1, 3, 16, 16))
    with pytest.raises(TypeError, match="floating-point"):
        METRICS[name].against(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 11 pixels"):
        METRICS["ssim"].against(torch.rand(2, 3, 10, 16))
    spoilt = torch.rand(2, 3, 16, 16)
    spoilt[1, 0, 0, 0] = torch.nan
    assert judge(spoilt).isnan().tolist() == [False, True]
