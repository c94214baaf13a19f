"""The compiled loops, against PyTorch's own operations."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rlsr_env import cores, loops
from rlsr_env.filter_loops import band_splits, filtered, mixed
from rlsr_env.loops import (
    all_finite,
    can_loop,
    copied,
    floats_of_levels,
    mean_squares,
    rounded_to_8bit,
    rounded_to_levels,
    squared_level_difference,
)
from rlsr_env.metrics import METRICS
from rlsr_env.patch_loops import upsampled, with_cells
from rlsr_env.peak_signal import mean_squared_error
from rlsr_env.rounding import to_8bit, to_levels
from rlsr_env.similarity_loops import sampled_windows, window_statistics
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
    monkeypatch.setattr(loops, "PIECE", 300)  # several pieces
    values = torch.rand(size, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    values[: size // 2] = (torch.arange(size // 2) + 0.5) / 255  # ties go to the even level
    rounded, suspicious = rounded_to_8bit(values)
    assert torch.equal(rounded, values.clamp(0, 1).mul(255).round().div(255)) and not suspicious
    levels, suspicious = rounded_to_levels(values)
    assert torch.equal(levels, values.clamp(0, 1).mul(255).round().to(torch.uint8)) and not suspicious
    assert torch.equal(floats_of_levels(levels), rounded)


def test_levels_are_refused_where_to_8bit_refuses() -> None:
    image = torch.rand(2, 3, 4, 5)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert torch.equal(to_levels(image.to(dtype)), (255 * to_8bit(image.to(dtype))).round().to(torch.uint8))
        image[1, 2, 3, 4] = torch.nan
        with pytest.raises(ValueError, match="1 of the 120 values"):
            to_levels(image.to(dtype))
        image[1, 2, 3, 4] = 0.5


def test_any_value_that_is_not_finite_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "PIECE", 7)
    assert all_finite(torch.zeros(0)) and all_finite(torch.tensor([-3e38, 3e38] * 20))
    for bad in (torch.nan, torch.inf, -torch.inf):
        for place in (0, 8, 39):
            values = torch.ones(40)
            values[place] = bad
            assert not all_finite(values)


def test_a_copy_is_in_memory_of_its_own() -> None:
    values = torch.tensor([[-1.0, 0.0], [0.25, 1.0]])
    copy = copied(values.T)
    assert torch.equal(copy, values.T) and copy.is_contiguous()
    assert copied(values).data_ptr() != values.data_ptr()


def test_differences_of_levels_add_up_in_whole_numbers() -> None:
    black, white = np.zeros((2, 300_000), np.uint8), np.full((2, 300_000), 255, np.uint8)
    white[1, 1:] = 0
    sums = np.empty(2)
    squared_level_difference(black, white, sums)
    assert sums.tolist() == [255.0**2 * 300_000, 255.0**2]  # the first is beyond 32 bits


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
        levels, _ = rounded_to_levels(sr_image)
        weights, factors = np.array([[0.2, 0.5, 0.3], [0.3, 0.5, 0.2]], np.float32), np.ones((2, 31), np.float32)
        return [
            filtered(sr_image, kernel), ssim(sr_image, hr_image), mean_squares(sr_image, hr_image), levels,
            rounded_to_8bit(sr_image)[0], floats_of_levels(levels), copied(sr_image), with_cells(levels, levels),
            band_splits(sr_image, [kernel, kernel]), upsampled(sr_image, weights, factors[:, :24], factors),
            *window_statistics(sr_image, torch.ones(11)), METRICS["ssim"].against_levels(levels)(levels.flip(0)),
            METRICS["psnr"].against_levels(levels)(levels.flip(0)),
        ]  # fmt: skip

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
    assert bands.shape == (5, 3, *image.shape[1:]) and bands.is_contiguous()
    assert (bands - torch.stack(expected, dim=1)).abs().max() < 1e-6
    monkeypatch.setattr(loops, "WORTH_THREADS", 1)  # shared out among threads, and each picture alone
    assert torch.equal(bands, band_splits(image, kernels))
    assert torch.equal(bands[3:4], band_splits(image[3:4], kernels))


@pytest.mark.parametrize("n_bands", [1, 2, 3, 4, 7])
def test_bands_are_mixed_by_the_pixel_and_the_same_for_all_colours(n_bands: int) -> None:
    image, _ = pictures()
    rng = torch.Generator().manual_seed(1)
    bands = torch.rand(3, n_bands, 3, 24, 31, generator=rng) - 0.5
    strengths = torch.rand(3, n_bands, 2, 2, generator=rng)
    rows, columns = torch.rand(2, 24, generator=rng), torch.rand(2, 31, generator=rng)
    rows[0, 5] = 0
    weights = rows.T @ strengths @ columns
    expected = image + (weights[:, :, None] * bands).sum(1)
    assert (mixed(image, bands, strengths, rows, columns) - expected).abs().max() < 1e-5
    assert torch.equal(mixed(image, bands, torch.zeros_like(strengths), rows, columns), image)


@pytest.mark.parametrize("size", range(1, 24))
def test_a_filter_of_any_size_is_pytorchs(size: int) -> None:
    image, _ = pictures()
    kernel = torch.rand(size, generator=torch.Generator().manual_seed(size))
    window = (kernel[:, None] * kernel).double().expand(3, 1, -1, -1)
    expected = functional.conv2d(image.double(), window, groups=3)
    assert torch.allclose(filtered(image, kernel).double(), expected, rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "n_cells"), [(40, 40, 4), (7, 13, 3), (5, 5, 5), (6, 4, 1)])
def test_cells_are_spread_over_the_pixels_that_lie_in_them(height: int, width: int, n_cells: int) -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (2, 3, height, width), np.uint8))
    cells = torch.from_numpy(rng.integers(0, 256, (2, 2, n_cells, n_cells), np.uint8))
    result = with_cells(image, cells)
    assert torch.equal(result[:, :3], image)
    for y in range(height):
        for x in range(width):
            assert torch.equal(result[:, 3:, y, x], cells[:, :, y * n_cells // height, x * n_cells // width])


def test_windows_some_pixels_apart_are_those_of_all_windows() -> None:
    sr_image, hr_image = pictures(4, 29, 34)
    hr_image = hr_image[:2]
    kernel = torch.rand(11, generator=torch.Generator().manual_seed(1))
    found = sampled_windows(sr_image, hr_image, kernel, first=1, stride=4)
    for sums, image in zip(found, (sr_image, sr_image.square(), sr_image * hr_image.repeat(2, 1, 1, 1)), strict=True):
        everywhere = filtered(image, kernel)
        assert sums.shape == (4, 3, 5, 6)
        assert torch.allclose(sums, everywhere[..., 1::4, 1::4], rtol=1e-5)
