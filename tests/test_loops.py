"""The compiled loops, against PyTorch's own operations."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rlsr_env import cores, loops
from rlsr_env.loops import (
    band_splits,
    can_loop,
    filtered,
    mean_squares,
    rounded_to_8bit,
    sampled_windows,
    weighted_sums,
)
from rlsr_env.metrics import METRICS, mean_squared_error, to_8bit
from rlsr_env.structural_similarity import ssim


def pictures(n: int = 3, height: int = 24, width: int = 31) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, height, width, generator=rng), torch.rand(n, 3, height, width, generator=rng)


def test_they_take_float32_on_the_cpu_where_no_gradient_is_recorded() -> None:
    image, leaf = torch.zeros(1), torch.zeros(1, requires_grad=True)
    assert can_loop(image) and can_loop(image, image)
    assert not can_loop(image.double()) and not can_loop(image, image.half())
    assert not can_loop(torch.zeros(1, device="meta"))
    assert not can_loop(leaf) and not can_loop(image, leaf)
    with torch.no_grad():
        assert can_loop(leaf)


def test_similarity_is_what_pytorch_computes_step_by_step() -> None:
    sr_image, hr_image = pictures()
    by_steps = ssim(sr_image.clone().requires_grad_(), hr_image)
    assert by_steps.requires_grad
    assert ssim(sr_image, hr_image).tolist() == pytest.approx(by_steps.tolist(), abs=1e-7)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_picture_is_perfectly_similar_to_itself_however_flat(level: float) -> None:
    hr_image = level * (1 - 1e-3 * pictures()[0])
    assert ssim(hr_image, hr_image).tolist() == pytest.approx([1.0] * 3, abs=1e-6)


def test_mean_squares_are_those_of_float64() -> None:
    sr_image, hr_image = pictures()
    expected = (sr_image.double() - hr_image.double()).square().mean((1, 2, 3))
    assert mean_squares(sr_image, hr_image).tolist() == pytest.approx(expected.tolist(), rel=1e-14)
    last = torch.channels_last
    turned = mean_squares(sr_image.contiguous(memory_format=last), hr_image.contiguous(memory_format=last))
    assert torch.equal(turned, mean_squares(sr_image, hr_image))
    assert mean_squared_error(sr_image, sr_image).tolist() == [0.0] * 3


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_pictures_with_nan_have_no_value_and_the_others_do(name: str) -> None:
    sr_image, hr_image = pictures()
    expected = METRICS[name](sr_image, hr_image)
    sr_image[1, 2, 12, 12] = torch.nan
    values = METRICS[name](sr_image, hr_image)
    assert values.isnan().tolist() == [False, True, False]
    assert torch.equal(values[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("size", [0, 1, 5, 1000])
def test_rounding_is_pytorchs_to_the_bit(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "WORTH_THREADS", 300)  # several pieces
    values = torch.rand(size, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    values[: size // 2] = (torch.arange(size // 2) + 0.5) / 255  # ties go to the even level
    rounded, suspicious = rounded_to_8bit(values)
    assert torch.equal(rounded, values.clamp(0, 1).mul(255).round().div(255)) and not suspicious


def test_nan_anywhere_is_found_and_infinities_are_clipped() -> None:
    image = torch.rand(2, 3, 4, 5)
    image[1, 2, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="1 of the 120 values"):
        to_8bit(image)
    image[1, 2, 3, 4], image[0, 0, 0, 0] = torch.inf, -torch.inf
    rounded = to_8bit(image)
    assert (rounded[1, 2, 3, 4], rounded[0, 0, 0, 0]) == (1, 0)


def test_any_number_of_threads_comes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sr_image, hr_image = pictures(5)
    kernel = torch.tensor([0.2, 0.5, 0.3])

    def everything() -> list[Tensor]:
        rounded, _ = rounded_to_8bit(sr_image)
        return [filtered(sr_image, kernel), ssim(sr_image, hr_image), mean_squares(sr_image, hr_image), rounded]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = everything()
    shares: list[slice] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(loops, "WORTH_THREADS", 400)
    monkeypatch.setattr(cores, "available_cores", lambda: 3)
    monkeypatch.setattr(
        loops, "share_out", lambda work, n: cores.share_out(lambda part: (shares.append(part), work(part))[1], n)
    )
    for one, shared in zip(alone, everything(), strict=True):
        assert np.array_equal(one.numpy(), shared.numpy())
    assert len(shares) > 3


def test_bands_are_what_pytorch_computes_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = pictures(5, 24, 31)
    kernels = [torch.tensor([0.25, 0.5, 0.25]), torch.full((9,), 1 / 9), torch.full((23 * 2 + 1,), 1 / 47)]
    before, expected = image, []
    for kernel in kernels:
        radius = len(kernel) // 2
        mirrored = functional.pad(image, (radius,) * 4, mode="reflect").double()
        window = (kernel[:, None] * kernel).double().expand(3, 1, -1, -1)
        after = functional.conv2d(mirrored, window, groups=3)
        expected.append(before - after)
        before = after
    bands = band_splits(image, kernels)
    assert bands.shape == (3, *image.shape)
    assert (bands - torch.stack(expected)).abs().max() < 1e-6
    monkeypatch.setattr(loops, "WORTH_THREADS", 1)  # shared out among threads, and each picture alone
    assert torch.equal(bands, band_splits(image, kernels))
    assert torch.equal(bands[:, 3:4], band_splits(image[3:4], kernels))


def test_weighted_sums_are_by_the_pixel_and_the_same_for_all_colours() -> None:
    image, other = pictures()
    weights = torch.rand(3, 2, 24, 31) - 0.5
    bands = torch.stack([other, image.flip(-1)])
    expected = image + weights[:, :1] * other + weights[:, 1:] * image.flip(-1)
    assert (weighted_sums(image, bands, weights) - expected).abs().max() < 1e-6
    assert torch.equal(weighted_sums(image, bands, torch.zeros_like(weights)), image)


def test_windows_some_pixels_apart_are_those_of_all_windows() -> None:
    sr_image, hr_image = pictures(4, 29, 34)
    hr_image = hr_image[:2]
    kernel = torch.rand(11, generator=torch.Generator().manual_seed(1))
    found = sampled_windows(sr_image, hr_image, kernel, first=1, stride=4)
    for sums, image in zip(found, (sr_image, sr_image.square(), sr_image * hr_image.repeat(2, 1, 1, 1)), strict=True):
        everywhere = filtered(image, kernel)
        assert sums.shape == (4, 3, 5, 6)
        assert torch.allclose(sums, everywhere[..., 1::4, 1::4], rtol=1e-5)
