import importlib.util
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure, peak_signal_noise_ratio

from rlsr_env.metrics import METRICS, Metric, metric
from rlsr_env.peak_signal import mean_squared_error, psnr_clic
from rlsr_env.rounding import to_8bit

SEEDS = st.integers(min_value=0, max_value=2**31 - 1)
# What can be computed here: LPIPS needs weights, SSIMULACRA 2 an optional package (test_black_box_metrics.py has both).
HAS_SSIMULACRA2 = importlib.util.find_spec("ssimulacra2") is not None
NAMES = sorted(set(METRICS) - {"lpips"} - (set() if HAS_SSIMULACRA2 else {"ssimulacra2"}))
ALL_METRICS = pytest.mark.parametrize("name", NAMES)
FLIPS = [(quarter_turns, mirrored) for quarter_turns in range(4) for mirrored in (False, True)]


def random_pictures(seed: int, batch: int = 2, size: int = 16) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def photographs(size: int) -> Tensor:
    crops = [np.array(photograph[64 : 64 + size, 96 : 96 + size]) for photograph in (data.astronaut(), data.chelsea())]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def with_noise(pictures: Tensor, amplitude: float, seed: int = 0) -> Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))
    return (pictures + amplitude * noise).clamp(0, 1)


def smallest_pictures(name: str) -> tuple[Tensor, Tensor]:
    hr_image = photographs(max(METRICS[name].min_size, 16))
    return with_noise(hr_image, 0.1), hr_image


# PSNR and MSE, worked by hand


def test_psnr_of_a_constant_offset_of_a_tenth_is_20_db() -> None:
    hr_image = torch.full((2, 3, 4, 5), 0.5, dtype=torch.float64)
    # MSE = 0.1^2 = 0.01, and -10 log10(0.01) = 20.
    torch.testing.assert_close(METRICS["psnr"](hr_image + 0.1, hr_image), torch.tensor([20.0, 20.0]).double())


def test_psnr_of_one_wrong_pixel() -> None:
    hr_image = torch.zeros(1, 3, 2, 5)
    sr_image = hr_image.clone()
    sr_image[0, :, 1, 3] = 1
    # One of ten pixels is off by 1: MSE = 0.1, and -10 log10(0.1) = 10.
    assert METRICS["psnr"](sr_image, hr_image).item() == pytest.approx(10)


def test_psnr_of_black_for_white_is_0_db() -> None:
    assert METRICS["psnr"](torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item() == 0


@pytest.mark.parametrize("name", ["psnr", "psnr_y"])
def test_psnr_of_identical_pictures_is_infinite(name: str) -> None:
    hr_image = random_pictures(0)
    assert METRICS[name](hr_image, hr_image).tolist() == [math.inf, math.inf]


def test_psnr_keeps_a_millionth_of_a_decibel_at_40_db() -> None:
    hr_image = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    # At 40 dB the error is 0.01; a factor of 10^(-1e-6 / 20) on it is a gain of 1e-6 dB.
    before = METRICS["psnr"](hr_image + 0.01, hr_image)
    after = METRICS["psnr"](hr_image + 0.01 * 10 ** (-1e-6 / 20), hr_image)
    assert (after - before).item() == pytest.approx(1e-6, rel=1e-3)


def test_mean_squared_error_is_one_float64_value_for_each_picture() -> None:
    hr_image = torch.zeros(2, 3, 2, 2)
    sr_image = hr_image.clone()
    sr_image[0] = 0.5
    sr_image[1, 0, 0, 0] = 1
    # 0.5^2 everywhere; 1 in one value of twelve.
    torch.testing.assert_close(mean_squared_error(sr_image, hr_image), torch.tensor([1 / 4, 1 / 12]).double())


def test_psnr_y_of_black_for_white_spans_the_219_levels_of_luma() -> None:
    # 65.481 + 128.553 + 24.966 = 219 levels of 255.
    value = METRICS["psnr_y"](torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item()
    assert value == pytest.approx(20 * math.log10(255 / 219))


@pytest.mark.parametrize(("channel", "levels"), [(0, 65.481), (1, 128.553), (2, 24.966)])
def test_psnr_y_weighs_red_green_and_blue(channel: int, levels: float) -> None:
    sr_image = torch.zeros(1, 3, 4, 4)
    sr_image[0, channel] = 1
    value = METRICS["psnr_y"](sr_image, torch.zeros(1, 3, 4, 4)).item()
    assert value == pytest.approx(20 * math.log10(255 / levels))


def test_psnr_clic_pools_the_errors_before_the_logarithm() -> None:
    hr_image = torch.zeros(2, 3, 5, 5, dtype=torch.float64)
    sr_image = hr_image.clone()
    sr_image[0] = 0.1
    sr_image[1] = 0.3
    # MSE 0.01 and 0.09: 20 dB and 10.458 dB, mean 15.229 dB; pooled MSE 0.05 is 13.010 dB.
    squared_error_sum = float(mean_squared_error(sr_image, hr_image).sum()) * 75
    assert psnr_clic(squared_error_sum, 150) == pytest.approx(10 * math.log10(20))
    assert METRICS["psnr"](sr_image, hr_image).mean().item() == pytest.approx(10 - 5 * math.log10(0.09))


def test_psnr_clic_weighs_pictures_by_their_number_of_values() -> None:
    # A picture of 300 values with MSE 0.01 and one of 100 with MSE 0.05: (3 + 5) / 400 = 0.02.
    assert psnr_clic(300 * 0.01 + 100 * 0.05, 400) == pytest.approx(10 * math.log10(50))


def test_psnr_clic_without_error_is_infinite() -> None:
    assert psnr_clic(0.0, 12) == math.inf


@pytest.mark.parametrize("squared_error_sum", [-1.0, math.nan, math.inf])
def test_psnr_clic_refuses_a_sum_that_is_none(squared_error_sum: float) -> None:
    with pytest.raises(ValueError, match="finite sum of squared errors"):
        psnr_clic(squared_error_sum, 12)


def test_psnr_clic_refuses_an_empty_set() -> None:
    with pytest.raises(ValueError, match="n_values=0"):
        psnr_clic(0.0, 0)


# Agreement with other implementations


def test_psnr_agrees_with_torchmetrics() -> None:
    hr_image = photographs(64)
    sr_image = with_noise(hr_image, 0.05)
    expected = peak_signal_noise_ratio(sr_image, hr_image, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(METRICS["psnr"](sr_image, hr_image).float(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("amplitude", [0.02, 0.2])
def test_ssim_agrees_with_scikit_image(amplitude: float) -> None:
    hr_image = photographs(96)
    sr_image = with_noise(hr_image, amplitude)
    expected = [
        structural_similarity(
            sr.permute(1, 2, 0).double().numpy(),
            hr.permute(1, 2, 0).double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        for sr, hr in zip(sr_image, hr_image, strict=True)
    ]
    assert METRICS["ssim"](sr_image, hr_image).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("amplitude", [0.02, 0.2])
def test_ms_ssim_agrees_with_torchmetrics(amplitude: float) -> None:
    hr_image = photographs(192)
    sr_image = with_noise(hr_image, amplitude)
    expected = multiscale_structural_similarity_index_measure(sr_image, hr_image, data_range=1.0, reduction="none")
    assert METRICS["ms_ssim"](sr_image, hr_image).tolist() == pytest.approx(expected.tolist(), abs=2e-3)


@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_structural_similarity_of_identical_pictures_is_1(name: str) -> None:
    hr_image = photographs(METRICS[name].min_size)
    assert METRICS[name](hr_image, hr_image).tolist() == pytest.approx([1, 1], abs=1e-5)


# Properties


@pytest.mark.parametrize("name", ["psnr", "psnr_y", "ssim"])
@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_metric_is_symmetric(name: str, seed: int) -> None:
    one, other = random_pictures(seed), random_pictures(seed + 1)
    torch.testing.assert_close(METRICS[name](one, other), METRICS[name](other, one))


@pytest.mark.parametrize("name", ["psnr", "psnr_y", "ssim"])
@given(seed=SEEDS, flip=st.sampled_from(FLIPS))
@settings(deadline=None, max_examples=20)
def test_metric_does_not_change_when_both_pictures_are_flipped(name: str, seed: int, flip: tuple[int, bool]) -> None:
    def flipped(pictures: Tensor) -> Tensor:
        quarter_turns, mirrored = flip
        turned = torch.rot90(pictures, quarter_turns, dims=(2, 3))
        return turned.flip(3) if mirrored else turned

    sr_image, hr_image = random_pictures(seed), random_pictures(seed + 1)
    expected = METRICS[name](sr_image, hr_image)
    torch.testing.assert_close(METRICS[name](flipped(sr_image), flipped(hr_image)), expected, atol=1e-5, rtol=1e-5)


@ALL_METRICS
def test_metric_gets_worse_as_noise_grows(name: str) -> None:
    hr_image = photographs(max(METRICS[name].min_size + 5, 96))
    # Under stronger noise than this, GMSD calls the picture even: it measures how unevenly it differs.
    values = torch.stack([METRICS[name](with_noise(hr_image, amplitude), hr_image) for amplitude in (0.01, 0.05, 0.15)])
    falls = values.diff(dim=0) < 0 if METRICS[name].higher_is_better else values.diff(dim=0) > 0
    assert falls.all()


@ALL_METRICS
@given(seed=SEEDS, amplitude=st.floats(0.003, 1))
@settings(deadline=None, max_examples=10)
def test_metric_stays_in_its_range_and_prefers_the_original(name: str, seed: int, amplitude: float) -> None:
    judge = METRICS[name]
    hr_image = photographs(max(judge.min_size, 24))
    values = judge(with_noise(hr_image, amplitude, seed), hr_image)
    best = judge(hr_image, hr_image)
    low, high = judge.value_range
    # The JPEG file of the original is no better than another.
    assert name == "jpeg_bytes" or (best >= values if judge.higher_is_better else best <= values).all()
    assert all(low - 1e-6 <= value <= high + 1e-6 for value in [*values.tolist(), *best.tolist()])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"jpeg_bytes"}))
def test_identical_pictures_have_the_best_value(name: str) -> None:
    # VIF has no upper end, because contrast may be raised; its original has 1.
    best = 1 if name == "vif" else METRICS[name].value_range[int(METRICS[name].higher_is_better)]
    flat = torch.full((2, 3, 200, 200), 0.25)
    black = torch.zeros(1, 3, 200, 200)
    for hr_image in (photographs(200), flat, black):
        assert METRICS[name](hr_image, hr_image).tolist() == pytest.approx([best] * len(hr_image), abs=1e-5)


@ALL_METRICS
@given(order=st.permutations(range(4)))
@settings(deadline=None, max_examples=5)
def test_the_order_of_a_batch_does_not_matter(name: str, order: list[int]) -> None:
    size = max(METRICS[name].min_size, 24)
    hr_image = torch.cat([photographs(size), photographs(size).flip(3)])
    sr_image = with_noise(hr_image, 0.05)
    expected = METRICS[name](sr_image, hr_image)[order]
    torch.testing.assert_close(METRICS[name](sr_image[order], hr_image[order]), expected)


@ALL_METRICS
def test_metric_in_float64_is_that_in_float32(name: str) -> None:
    sr_image, hr_image = smallest_pictures(name)
    values = METRICS[name](sr_image, hr_image)
    torch.testing.assert_close(METRICS[name](sr_image.double(), hr_image.double()).float(), values.float())


@ALL_METRICS
def test_a_metric_without_a_gradient_gives_none(name: str) -> None:
    sr_image, hr_image = smallest_pictures(name)
    assert METRICS[name](sr_image.requires_grad_(), hr_image).requires_grad == METRICS[name].differentiable


@given(seed=SEEDS, quiet=st.floats(0.01, 0.2), factor=st.floats(1.1, 2.0))
@settings(deadline=None, max_examples=20)
def test_psnr_falls_by_the_factor_of_the_noise(seed: int, quiet: float, factor: float) -> None:
    noise = random_pictures(seed).double() - 0.5
    hr_image = torch.full_like(noise, 0.5)
    fall = METRICS["psnr"](hr_image + quiet * noise, hr_image) - METRICS["psnr"](
        hr_image + factor * quiet * noise, hr_image
    )
    assert fall.tolist() == pytest.approx([20 * math.log10(factor)] * 2)


@ALL_METRICS
def test_a_batch_is_judged_as_each_picture_alone(name: str) -> None:
    sr_image, hr_image = smallest_pictures(name)
    alone = torch.cat([METRICS[name](sr_image[i : i + 1], hr_image[i : i + 1]) for i in range(2)])
    assert alone[0] != alone[1]
    torch.testing.assert_close(METRICS[name](sr_image, hr_image), alone)


@ALL_METRICS
def test_values_outside_the_range_are_judged_as_clipped(name: str) -> None:
    sr_image, hr_image = smallest_pictures(name)
    beyond = 4 * (sr_image - 0.5)
    assert (beyond > 1).any() and (beyond < 0).any()
    expected = METRICS[name](beyond.clamp(0, 1), hr_image)
    torch.testing.assert_close(METRICS[name](beyond, hr_image), expected, atol=0, rtol=0)


def test_mean_squared_error_clips() -> None:
    assert mean_squared_error(torch.full((1, 3, 2, 2), 3.0), torch.ones(1, 3, 2, 2)).item() == 0
    assert mean_squared_error(torch.full((1, 3, 2, 2), -3.0), torch.ones(1, 3, 2, 2)).item() == 1


@ALL_METRICS
def test_a_nan_picture_has_a_nan_value_and_leaves_the_other_one_alone(name: str) -> None:
    sr_image, hr_image = smallest_pictures(name)
    expected = METRICS[name](sr_image, hr_image)[1]
    sr_image[0] = math.nan
    values = METRICS[name](sr_image, hr_image)
    assert values[0].isnan()
    torch.testing.assert_close(values[1], expected)


# Precision and gradients


@ALL_METRICS
def test_metric_is_computed_in_float32_under_autocast(name: str) -> None:
    sr_image, hr_image = smallest_pictures(name)
    expected = METRICS[name](sr_image, hr_image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = METRICS[name](sr_image, hr_image)
    torch.testing.assert_close(values, expected, atol=0, rtol=0)


@ALL_METRICS
def test_half_precision_pictures_are_judged_in_float32(name: str) -> None:
    sr_image, hr_image = smallest_pictures(name)
    halved = sr_image.half()
    expected = METRICS[name](halved.float(), hr_image.half().float())
    torch.testing.assert_close(METRICS[name](halved, hr_image.half()), expected, atol=0, rtol=0)


@pytest.mark.gpu
@ALL_METRICS
def test_metric_on_the_gpu_agrees_with_the_cpu(name: str) -> None:
    sr_image, hr_image = smallest_pictures(name)
    values = METRICS[name](sr_image.cuda(), hr_image.cuda()).cpu()
    torch.testing.assert_close(values, METRICS[name](sr_image, hr_image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if METRICS[name].differentiable])
def test_gradient_step_improves_a_differentiable_metric(name: str) -> None:
    sr_image, hr_image = smallest_pictures(name)
    sr_image.requires_grad_()
    before = METRICS[name](sr_image, hr_image)
    before.sum().backward()
    gradient = sr_image.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
    step = 1e-2 * gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    sign = 1 if METRICS[name].higher_is_better else -1
    after = METRICS[name]((sr_image + sign * step).detach(), hr_image)
    assert (sign * after > sign * before).all()


def test_ms_ssim_of_a_negative_is_0_with_a_finite_gradient() -> None:
    hr_image = photographs(161)
    sr_image = (1 - hr_image).requires_grad_()
    value = METRICS["ms_ssim"](sr_image, hr_image)
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert sr_image.grad is not None
    assert sr_image.grad.isfinite().all()


# What a metric refuses


@ALL_METRICS
def test_metric_refuses_pictures_of_different_shapes(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} .*\(2, 3, 200, 200\) and \(1, 3, 200, 200\)"):
        METRICS[name](torch.zeros(2, 3, 200, 200), torch.zeros(1, 3, 200, 200))


@ALL_METRICS
@pytest.mark.parametrize("shape", [(3, 200, 200), (1, 1, 200, 200), (1, 4, 200, 200), (1, 200, 200, 3)])
def test_metric_refuses_what_is_not_a_batch_of_rgb_pictures(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\)"):
        METRICS[name](torch.zeros(shape), torch.zeros(shape))


@ALL_METRICS
def test_metric_refuses_8bit_pictures(name: str) -> None:
    pictures = torch.zeros(1, 3, 200, 200)
    with pytest.raises(TypeError, match=r"got torch\.uint8 for the SR pictures; divide 8-bit data by 255"):
        METRICS[name](pictures.to(torch.uint8), pictures)
    with pytest.raises(TypeError, match=r"got torch\.uint8 for the HR pictures"):
        METRICS[name](pictures, pictures.to(torch.uint8))


def test_metric_refuses_numpy_pictures() -> None:
    with pytest.raises(TypeError, match="got ndarray for the SR pictures"):
        METRICS["psnr"](np.zeros((1, 3, 4, 4)), torch.zeros(1, 3, 4, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "min_size"), [("ssim", 11), ("ms_ssim", 161)])
def test_metric_accepts_its_smallest_picture_and_refuses_a_smaller_one(name: str, min_size: int) -> None:
    assert METRICS[name].min_size == min_size
    assert METRICS[name](torch.zeros(1, 3, min_size, 200), torch.zeros(1, 3, min_size, 200)).item() == pytest.approx(1)
    too_small = torch.zeros(1, 3, 200, min_size - 1)
    with pytest.raises(ValueError, match=f"at least {min_size} pixels on the shorter side, got 200x{min_size - 1}"):
        METRICS[name](too_small, too_small)


def test_mean_squared_error_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match="mean_squared_error needs SR and HR pictures of one shape"):
        mean_squared_error(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))


# Names


@pytest.mark.parametrize("name", sorted(METRICS))
def test_metric_is_found_by_its_name(name: str) -> None:
    assert metric(name) is METRICS[name]
    assert metric(name).name == name


def test_metric_object_passes_through() -> None:
    own = Metric("darkness", lambda sr_image, hr_image: sr_image.mean(dim=(1, 2, 3)), higher_is_better=False)
    assert metric(own) is own
    assert own(torch.full((2, 3, 4, 4), 0.25), torch.zeros(2, 3, 4, 4)).tolist() == [0.25, 0.25]


def test_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"Unknown metric 'pnsr'; use one of {', '.join(sorted(METRICS))}, a sum"):
        metric("pnsr")


# 8 bits


@given(level=st.integers(0, 255), within=st.floats(-0.49, 0.49))
@settings(deadline=None, max_examples=50)
def test_to_8bit_gives_the_nearest_of_the_256_levels(level: int, within: float) -> None:
    rounded = to_8bit(torch.tensor([(level + within) / 255], dtype=torch.float64))
    assert rounded.item() == pytest.approx(level / 255, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_8bit_keeps_8bit_pictures(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=dtype) / 255
    assert torch.equal(to_8bit(levels), levels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_to_8bit_of_half_precision_is_a_level_in_float32(dtype: torch.dtype) -> None:
    rounded = to_8bit(torch.linspace(0, 1, 100).to(dtype))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded * 255, (rounded * 255).round(), atol=1e-4, rtol=0)


def test_to_8bit_clips() -> None:
    assert to_8bit(torch.tensor([-0.2, 1.7, -math.inf, math.inf])).tolist() == [0, 1, 0, 1]


def test_to_8bit_refuses_nan_and_counts_it() -> None:
    with pytest.raises(ValueError, match="2 of the 3 values of the picture are NaN"):
        to_8bit(torch.tensor([0.5, math.nan, math.nan]))


def test_psnr_8bit_is_the_psnr_of_the_rounded_pictures() -> None:
    hr_image = torch.full((1, 3, 4, 4), 100 / 255)
    # 100.4 levels are shown as 100, and 100.6 as 101: an error of 1 level, 20 log10(255) dB.
    assert METRICS["psnr_8bit"](hr_image + 0.4 / 255, hr_image).item() == math.inf
    assert METRICS["psnr_8bit"](hr_image + 0.6 / 255, hr_image).item() == pytest.approx(20 * math.log10(255))


@pytest.mark.parametrize("name", ["psnr_8bit", "edge_f1", "jpeg_bytes"])
def test_what_is_judged_as_saved_does_not_notice_less_than_half_a_level(name: str) -> None:
    hr_image = photographs(32)
    sr_image = to_8bit(with_noise(hr_image, 0.05))
    unseen = sr_image + 0.4 / 255 * torch.sign(torch.randn(sr_image.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(METRICS[name](unseen, hr_image), METRICS[name](sr_image, hr_image))


def test_to_8bit_refuses_integers() -> None:
    with pytest.raises(TypeError, match=r"got torch\.uint8; divide 8-bit data by 255"):
        to_8bit(torch.zeros(3, dtype=torch.uint8))
