"""Batches of pictures, rounded and judged group by group."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rlsr_env import batch_judge
from rlsr_env.batch_judge import PERFECT, BatchJudge, rounded
from rlsr_env.metrics import METRICS, Metric
from rlsr_env.patches import to_float
from rlsr_env.rounding import to_8bit, to_levels
from rlsr_env.tasks import PartRestorer

CPU = torch.device("cpu")


def pictures(n: int = 7, size: int = 24) -> tuple[Tensor, Tensor]:
    """SR pictures `(n, 3, size, size)`, some values outside [0, 1], and the originals' levels."""
    rng = torch.Generator().manual_seed(0)
    hr_levels = torch.randint(0, 256, (n, 3, size, size), generator=rng).to(torch.uint8)
    return to_float(hr_levels) + 0.2 * torch.rand(n, 3, size, size, generator=rng) - 0.1, hr_levels


def writer(sr_image: Tensor) -> PartRestorer:
    def write(part: slice, memory: np.ndarray) -> None:
        memory[:] = sr_image[part].numpy()

    return PartRestorer(tuple(sr_image.shape), write)


@pytest.fixture(autouse=True)
def groups_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_judge, "CACHED_VALUES", 1)
    monkeypatch.setattr(batch_judge, "FEWEST_PICTURES", 2)
    monkeypatch.setattr(batch_judge, "available_cores", lambda: 1)


@pytest.mark.parametrize("name", ["psnr", "ssim", "psnr_y", "jpeg_bytes"])
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_values_are_those_of_the_metric_of_rounded_pictures(
    name: str, in_parts: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("rlsr_env.loops.WORTH_THREADS", 1)
    sr_image, hr_levels = pictures()
    judge = BatchJudge(METRICS[name], tuple(hr_levels.shape), CPU)
    judge.take(hr_levels)
    sr_levels, values = judge.judge(writer(sr_image) if in_parts else sr_image, hr_levels)
    assert torch.equal(sr_levels, to_levels(sr_image))
    expected = METRICS[name](to_8bit(sr_image), to_float(hr_levels)).double()
    assert values.dtype == torch.float64
    assert values.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_a_picture_has_the_same_value_to_the_bit_in_any_company(name: str) -> None:
    sr_image, hr_levels = pictures()
    _, together = BatchJudge(METRICS[name], tuple(hr_levels.shape), CPU).judge(
        sr_image, hr_levels, np.ones(7, dtype=np.bool_)
    )
    for i in range(7):
        one = hr_levels[i : i + 1]
        _, alone = BatchJudge(METRICS[name], tuple(one.shape), CPU).judge(
            sr_image[i : i + 1], one, np.ones(1, dtype=np.bool_)
        )
        assert torch.equal(alone, together[i : i + 1])
        assert torch.equal(METRICS[name].against_levels(one)(to_levels(sr_image[i : i + 1])).double(), alone)


def test_there_are_groups_for_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_judge, "FEWEST_PICTURES", 8)
    bounds = {1: [(0, 7)], 2: [(0, 4), (4, 7)], 3: [(0, 3), (3, 6), (6, 7)], 9: [(i, i + 1) for i in range(7)]}
    for cores, groups in bounds.items():
        monkeypatch.setattr(batch_judge, "available_cores", lambda cores=cores: cores)
        judge = BatchJudge(METRICS["psnr"], (7, 3, 24, 24), CPU)
        assert [(group.start, group.stop) for group in judge.groups] == groups


def test_only_groups_with_a_marked_picture_are_judged() -> None:
    asked = []

    def counting(sr_image: Tensor, hr_image: Tensor) -> Tensor:
        asked.append(len(sr_image))
        return METRICS["psnr"].function(sr_image, hr_image)

    sr_image, hr_levels = pictures()
    whole = METRICS["psnr"](to_8bit(sr_image), to_float(hr_levels))
    for metric in (METRICS["psnr"], Metric("counting", counting)):
        judge = BatchJudge(metric, tuple(hr_levels.shape), CPU)
        judge.groups = [slice(start, min(start + 2, 7)) for start in range(0, 7, 2)]
        marked = np.array([False, True, False, False, False, False, True])
        _, values = judge.judge(sr_image, hr_levels, marked)
        assert values[[0, 1, 6]].tolist() == pytest.approx(whole[[0, 1, 6]].tolist(), rel=1e-6)
        assert values[2:6].tolist() == [0] * 4
    assert asked == [2, 1]


def test_originals_are_taken_anew_where_marked() -> None:
    sr_image, hr_levels = pictures()
    for name in ("ssim", "psnr", "vif"):
        larger = torch.nn.functional.pad(hr_levels, (0, 24, 0, 24))
        sr_larger = torch.nn.functional.pad(sr_image, (0, 24, 0, 24))
        judge = BatchJudge(METRICS[name], tuple(larger.shape), CPU)
        judge.take(larger)
        _, values = judge.judge(sr_larger, larger.flip(0), np.ones(7, dtype=np.bool_))
        expected = METRICS[name](to_8bit(sr_larger), to_float(larger.flip(0)))
        assert values.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_perfect_pictures_have_a_finite_value() -> None:
    _, hr_levels = pictures()
    judge = BatchJudge(METRICS["psnr"], tuple(hr_levels.shape), CPU)
    assert judge.judge(to_float(hr_levels), hr_levels)[1].tolist() == [PERFECT] * 7


@pytest.mark.parametrize("in_parts", [False, True])
def test_nan_in_a_picture_is_refused(in_parts: bool) -> None:
    sr_image, hr_levels = pictures()
    sr_image[5, 1, 2, 3] = torch.nan
    judge = BatchJudge(METRICS["psnr"], tuple(hr_levels.shape), CPU)
    with pytest.raises(ValueError, match="NaN, so there is nothing to show"):
        judge.judge(writer(sr_image) if in_parts else sr_image, hr_levels)


def test_what_is_written_in_parts_can_be_rounded_as_a_whole() -> None:
    sr_image, _ = pictures()
    for restored in (sr_image, writer(sr_image)):
        assert torch.equal(rounded(restored), to_levels(sr_image))


def test_pictures_of_another_shape_are_refused() -> None:
    sr_image, hr_levels = pictures()
    judge = BatchJudge(METRICS["psnr"], tuple(hr_levels.shape), CPU)
    judge.take(hr_levels)
    for restored in (sr_image[:6], writer(sr_image[..., :12])):
        with pytest.raises(ValueError, match="their originals"):
            judge.judge(restored, hr_levels)
    for name in ("psnr", "ssim", "psnr_y"):
        against = METRICS[name].against_levels(hr_levels)
        for sr_levels in (hr_levels[:6], hr_levels[..., :12], hr_levels.repeat(2, 1, 1, 1)):
            with pytest.raises(ValueError, match="must have the originals' shape"):
                against(sr_levels)
        with pytest.raises(TypeError, match="uint8"):
            against(sr_image)


def test_what_is_written_records_no_gradient_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("rlsr_env.loops.WORTH_THREADS", 1)
    sr_image, hr_levels = pictures()
    weight = torch.ones(1, requires_grad=True)

    def write(part: slice, memory: np.ndarray) -> None:
        memory[:] = (weight * sr_image[part]).numpy()

    judge = BatchJudge(METRICS["psnr"], tuple(hr_levels.shape), CPU)
    sr_levels, _ = judge.judge(PartRestorer(tuple(sr_image.shape), write), hr_levels)
    assert torch.equal(sr_levels, to_levels(sr_image))


def test_levels_must_be_uint8_rgb_and_large_enough() -> None:
    with pytest.raises(TypeError, match="uint8"):
        METRICS["ssim"].against_levels(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="at least 11 pixels"):
        METRICS["ssim"].against_levels(torch.zeros(1, 3, 10, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="RGB"):
        METRICS["psnr"].against_levels(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))
