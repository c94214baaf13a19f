"""Metrics as local credit: their maps over blocks of 8 x 8 pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from skimage.metrics import structural_similarity
from torch import Tensor

from rlsr_env.block_maps import BLOCK
from rlsr_env.metrics import LUMA_WEIGHTS, METRICS

LOCAL = pytest.mark.parametrize("name", ["psnr", "psnr_y", "ssim"])


def photographs(height: int = 48, width: int = 64) -> Tensor:
    crops = [picture[64 : 64 + height, 96 : 96 + width] for picture in (data.astronaut(), data.chelsea())]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def samples_of(hr_image: Tensor, n_samples: int, amplitude: float = 0.05) -> Tensor:
    noise = torch.randn((n_samples, *hr_image.shape), generator=torch.Generator().manual_seed(3)).to(hr_image)
    return (hr_image + amplitude * noise).clamp(0, 1).flatten(0, 1)


def as_array(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).double().numpy()


@LOCAL
def test_a_map_has_a_value_for_each_block_of_each_sample(name: str) -> None:
    hr_image = photographs()
    assert METRICS[name].blocks(samples_of(hr_image, 3), hr_image).shape == (6, 6, 8)


def test_psnr_of_a_block_is_the_tangent_at_25_db() -> None:
    hr_image = torch.full((1, 3, 8, 24), 0.5, dtype=torch.float64)
    sr_image = hr_image.clone()
    error = 10 ** (-25 / 20)  # 25 dB
    sr_image[..., 8:16] += error
    sr_image[..., 16:] += error * math.sqrt(2)
    # At 25 dB tangent and PSNR meet; its slope is -10 / ln 10 dB for each 10^-2.5 of squared error.
    step = 10 / math.log(10)
    assert METRICS["psnr"].blocks(sr_image, hr_image)[0, 0].tolist() == pytest.approx([25 + step, 25, 25 - step])


@given(low=st.floats(24.5, 25.5), difference=st.floats(0.01, 0.2))
@settings(deadline=None, max_examples=20)
def test_mean_of_psnr_blocks_rises_as_the_psnr_of_the_picture_around_25_db(low: float, difference: float) -> None:
    hr_image = photographs().double() * 0.5 + 0.25
    shape = samples_of(torch.full_like(hr_image, 0.5), 1).double() - 0.5
    shape = shape / shape.square().mean((1, 2, 3), keepdim=True).sqrt()
    worse, better = (hr_image + 10 ** (-level / 20) * shape for level in (low, low + difference))
    rise = METRICS["psnr"].blocks(better, hr_image).mean((1, 2)) - METRICS["psnr"].blocks(worse, hr_image).mean((1, 2))
    assert rise.tolist() == pytest.approx([difference] * 2, rel=0.15)


def test_psnr_y_blocks_weigh_the_colours() -> None:
    hr_image = torch.zeros(1, 3, 8, 24, dtype=torch.float64)
    sr_image = hr_image.clone()
    for channel in range(3):
        sr_image[0, channel, :, 8 * channel : 8 * channel + 8] = 0.1
    best = 25 + 10 / math.log(10)
    fall = best - METRICS["psnr_y"].blocks(sr_image, hr_image)[0, 0]
    expected = [10 / math.log(10) * (0.1 * levels / 255) ** 2 / 10**-2.5 for levels in LUMA_WEIGHTS]
    assert fall.tolist() == pytest.approx(expected)


def test_mse_of_the_blocks_is_that_of_scikit_image_style_slices() -> None:
    hr_image = photographs()
    sr_image = samples_of(hr_image, 2)
    maps = METRICS["psnr"].blocks(sr_image, hr_image)
    for number, (row, column) in [(0, (0, 0)), (1, (5, 7)), (2, (2, 3)), (3, (4, 1))]:
        place = np.s_[BLOCK * row : BLOCK * row + BLOCK, BLOCK * column : BLOCK * column + BLOCK]
        mse = np.square(as_array(sr_image[number])[place] - as_array(hr_image[number % 2])[place]).mean()
        expected = 25 + 10 / math.log(10) * (1 - mse / 10**-2.5)
        assert maps[number, row, column].item() == pytest.approx(expected, abs=1e-4)


def test_ssim_blocks_are_means_of_scikit_images_map() -> None:
    hr_image = photographs().double()
    sr_image = samples_of(hr_image, 2)
    maps = METRICS["ssim"].blocks(sr_image, hr_image)
    for number in range(4):
        _, full = structural_similarity(
            as_array(sr_image[number]), as_array(hr_image[number % 2]), gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=1, channel_axis=-1, full=True,
        )  # fmt: skip
        full = full.mean(-1)
        for row in range(6):
            for column in range(8):
                # Pixels 2 and 6 of the block, where the window of 11 pixels lies within the picture.
                rows = [y for y in (8 * row + 2, 8 * row + 6) if 5 <= y < 48 - 5]
                columns = [x for x in (8 * column + 2, 8 * column + 6) if 5 <= x < 64 - 5]
                expected = full[np.ix_(rows, columns)].mean()
                assert maps[number, row, column].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("amplitude", [0.02, 0.1])
def test_mean_of_ssim_blocks_is_nearly_the_ssim_of_the_picture(amplitude: float) -> None:
    hr_image = photographs(192, 192)
    sr_image = samples_of(hr_image, 1, amplitude)
    mean = METRICS["ssim"].blocks(sr_image, hr_image).mean((1, 2))
    assert mean.tolist() == pytest.approx(METRICS["ssim"](sr_image, hr_image).tolist(), abs=0.01)


@LOCAL
def test_samples_of_many_patches_are_judged_as_each_alone(name: str) -> None:
    hr_image = photographs()
    sr_image = samples_of(hr_image, 3)
    maps = METRICS[name].blocks(sr_image, hr_image)
    for sample in range(3):
        for patch in range(2):
            number = 2 * sample + patch
            alone = METRICS[name].blocks(sr_image[number : number + 1], hr_image[patch : patch + 1])[0]
            torch.testing.assert_close(maps[number], alone, atol=1e-5, rtol=1e-5)


@LOCAL
@given(row=st.integers(0, 5), column=st.integers(0, 7))
@settings(deadline=None, max_examples=20)
def test_changing_a_block_changes_it_and_at_most_its_neighbours(name: str, row: int, column: int) -> None:
    hr_image = photographs()[:1]
    sr_image = samples_of(hr_image, 1)
    before = METRICS[name].blocks(sr_image, hr_image)[0]
    sr_image[..., BLOCK * row : BLOCK * row + BLOCK, BLOCK * column : BLOCK * column + BLOCK] = 0.5
    changed = METRICS[name].blocks(sr_image, hr_image)[0] != before
    near = torch.zeros_like(changed)
    reach = 1 if name == "ssim" else 0
    near[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
    assert changed[row, column]
    assert not changed[~near].any()


@LOCAL
def test_noise_lowers_every_block(name: str) -> None:
    hr_image = photographs()
    maps = METRICS[name].blocks(torch.cat([samples_of(hr_image, 1, a) for a in (0.0, 0.05, 0.3)]), hr_image)
    exact, noisy, noisier = maps.chunk(3)
    assert (exact > noisy).all() and (noisy > noisier).all()


@LOCAL
def test_maps_are_of_clipped_pictures_in_float32_and_without_gradient(name: str) -> None:
    hr_image = photographs()
    sr_image = (4 * (samples_of(hr_image, 1) - 0.5)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = METRICS[name].blocks(sr_image, hr_image)
    assert maps.dtype == torch.float32 and not maps.requires_grad
    assert torch.equal(maps, METRICS[name].blocks(sr_image.clamp(0, 1), hr_image))
    assert METRICS[name].blocks(sr_image.bfloat16(), hr_image.bfloat16()).dtype == torch.float32


def test_ssim_blocks_in_float32_are_those_in_float64() -> None:
    hr_image = photographs() * 0.02 + 0.9  # bright and flat: the variances are small differences of large squares
    sr_image = samples_of(hr_image, 1, 0.01)
    exact = METRICS["ssim"].blocks(sr_image.double(), hr_image.double())
    torch.testing.assert_close(METRICS["ssim"].blocks(sr_image, hr_image).double(), exact, atol=1e-3, rtol=0)


def test_a_metric_without_a_map_names_those_that_have_one() -> None:
    pictures = photographs(168, 168)
    with pytest.raises(ValueError, match=r"gmsd judges whole pictures only .* these have: .*psnr, psnr_y, ssim"):
        METRICS["gmsd"].blocks(pictures, pictures)


@pytest.mark.parametrize(("sr_batch", "hr_batch"), [(3, 2), (1, 2), (2, 0)])
def test_blocks_refuse_samples_that_do_not_fit_the_patches(sr_batch: int, hr_batch: int) -> None:
    with pytest.raises(
        ValueError, match=r"SR pictures \(K \* P, 3, H, W\) for HR pictures \(P, 3, H, W\), got \(" + str(sr_batch)
    ):
        METRICS["psnr"].blocks(torch.zeros(sr_batch, 3, 16, 16), torch.zeros(hr_batch, 3, 16, 16))


@pytest.mark.parametrize("size", [(16, 20), (20, 16), (17, 17)])
def test_blocks_refuse_a_size_that_is_no_multiple_of_8(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"8 x 8 pixels, got pictures of {size[0]}x{size[1]}; take a patch size"):
        METRICS["psnr"].blocks(torch.zeros(1, 3, *size), torch.zeros(1, 3, *size))


def test_ssim_blocks_need_a_whole_window() -> None:
    assert METRICS["ssim"].blocks(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)).tolist() == [[[1, 1], [1, 1]]]
    with pytest.raises(ValueError, match="block map of ssim needs pictures of at least 16 pixels"):
        METRICS["ssim"].blocks(torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 8, 16))


def test_blocks_refuse_8bit_pictures() -> None:
    with pytest.raises(TypeError, match=r"got torch\.uint8 for the SR pictures"):
        METRICS["psnr"].blocks(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8))
