import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gan.evaluation import CodedPicture, Decoder, as_batch, code_pictures, measure, restore, total_bits_per_pixel
from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.resample import upsample


def flat_picture(height: int, width: int, level: int, scale: int = 2, n_bytes: int = 100) -> CodedPicture:
    """A picture of one level, whose LR file holds it exactly."""
    lr_shape = (-(-height // scale), -(-width // scale), 3)
    hr_image = np.full((height, width, 3), level, dtype=np.uint8)
    return CodedPicture(f"flat-{level}", hr_image, np.full(lr_shape, level, dtype=np.uint8), n_bytes)


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def repeat(lr_image: Tensor, scale: int = 2) -> Tensor:
    return lr_image.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def brighter_by(levels: float) -> Decoder:
    """A decoder whose every value is wrong by `levels` of 255."""
    return lambda lr_image: repeat(lr_image) + levels / 255


def decibels(squared_levels: float) -> float:
    return 10 * math.log10(255**2 / squared_levels)


def test_psnr_of_a_constant_error() -> None:
    result = measure(brighter_by(10), [flat_picture(12, 16, 100)])
    assert result["psnr"] == pytest.approx(decibels(10**2), abs=1e-4) == pytest.approx(28.1308, abs=1e-4)
    assert result["psnr_clic"] == pytest.approx(result["psnr"], abs=1e-9)
    assert result["images"][0]["psnr"] == result["psnr"]


@pytest.mark.parametrize(("error", "seen"), [(10.4, 10), (10.6, 11), (-0.4, 0)])
def test_pictures_are_rounded_to_8_bits_first(error: float, seen: int) -> None:
    result = measure(brighter_by(error), [flat_picture(12, 16, 100)])
    expected = math.inf if seen == 0 else decibels(seen**2)
    assert result["psnr"] == pytest.approx(expected, abs=1e-4)


def test_values_that_no_viewer_shows_are_clipped() -> None:
    assert measure(brighter_by(500), [flat_picture(12, 12, 255)])["psnr"] == math.inf
    assert measure(brighter_by(-500), [flat_picture(12, 12, 0)])["psnr"] == math.inf


def test_psnr_clic_pools_the_error_and_the_others_are_means_over_pictures() -> None:
    # 10 x 10 pixels wrong by 10 levels, 20 x 30 by 20 levels.
    small, large = flat_picture(10, 10, 10), flat_picture(20, 30, 20)
    result = measure(lambda lr_image: 2 * repeat(lr_image), [small, large])
    assert [row["psnr"] for row in result["images"]] == pytest.approx([decibels(100), decibels(400)], abs=1e-4)
    assert result["psnr"] == pytest.approx((28.1308 + 22.1102) / 2, abs=1e-3)
    pooled = (100 * 100 + 600 * 400) / 700
    assert result["psnr_clic"] == pytest.approx(decibels(pooled), abs=1e-4) == pytest.approx(22.602, abs=1e-3)


def test_a_metric_is_none_where_the_picture_is_too_small_for_it() -> None:
    sizes = [(10, 40), (11, 40), (160, 170), (161, 170)]
    pictures = [CodedPicture("p", textured(h, w), textured(h, w)[::2, ::2], 1) for h, w in sizes]
    result = measure(lambda lr_image: upsample(lr_image, 2), pictures)
    assert [row["ssim"] is None for row in result["images"]] == [True, False, False, False]
    assert [row["ms_ssim"] is None for row in result["images"]] == [True, True, True, False]
    assert result["ms_ssim"] == result["images"][3]["ms_ssim"]
    assert result["ssim"] == pytest.approx(sum(row["ssim"] for row in result["images"][1:]) / 3)
    assert measure(repeat, pictures[:1])["ssim"] is None


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sizes_that_are_no_multiple_of_the_scale_are_cut_at_the_right_and_bottom(scale: int) -> None:
    lr_image = textured(7, 9, seed=1)
    hr_image = lr_image.repeat(scale, axis=0).repeat(scale, axis=1)[: 7 * scale - 1, : 9 * scale - (scale - 1)]
    picture = CodedPicture("p", hr_image, lr_image, 1)
    assert measure(lambda lr: repeat(lr, scale), [picture])["psnr"] == math.inf
    restored = restore(lambda lr: upsample(lr, scale), picture)
    assert restored.shape == (1, 3, *hr_image.shape[:2])
    whole = upsample(as_batch(lr_image), scale).clamp(0, 1)
    assert (restored - whole[..., : hr_image.shape[0], : hr_image.shape[1]]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal((restored * 255).round() / 255, restored)


def test_padding_lies_where_restoring_cuts() -> None:
    # One bright column at the right edge: padded on the left instead, every pixel would be off by two columns.
    hr_image = np.zeros((16, 18, 3), dtype=np.uint8)
    hr_image[:, 8:] = 255
    (picture,) = code_pictures(DecodedImages(("p",), (hr_image,), ()), LRCodec(scale=4, quality=100))
    restored = restore(lambda lr: repeat(lr, 4), picture)
    assert restored[..., :8].max() < 0.3
    assert restored[..., 8:].min() > 0.7


def test_code_pictures_keeps_the_file_s_bytes_and_what_it_decodes_to() -> None:
    images = DecodedImages(("a", "b"), (textured(50, 43), textured(32, 64, seed=2)), ())
    codec = LRCodec(scale=4, quality=30)
    coded = code_pictures(images, codec)
    assert [picture.uri for picture in coded] == ["a", "b"]
    assert [picture.lr_image.shape for picture in coded] == [(13, 11, 3), (8, 16, 3)]
    for picture, hr_image in zip(coded, images.images, strict=True):
        file = codec.encode(hr_image)
        assert picture.n_bytes == len(file)
        assert np.array_equal(picture.lr_image, codec.decode(file))
        assert picture.hr_image is hr_image


def test_bits_per_pixel_count_the_original_s_pixels() -> None:
    small, large = flat_picture(10, 10, 1, n_bytes=50), flat_picture(20, 30, 1, n_bytes=90)
    assert small.bits_per_pixel == 4.0  # 400 bits, 100 pixels
    assert large.bits_per_pixel == 1.2  # 720 bits, 600 pixels
    assert total_bits_per_pixel([small, large]) == 1.6  # 1120 bits, 700 pixels: no mean of the two


def test_decoders_run_without_gradients_on_one_picture_at_a_time() -> None:
    seen: list[tuple[tuple[int, ...], bool, torch.dtype]] = []

    def decoder(lr_image: Tensor) -> Tensor:
        seen.append((tuple(lr_image.shape), torch.is_grad_enabled(), lr_image.dtype))
        return repeat(lr_image)

    measure(decoder, [flat_picture(12, 16, 1), flat_picture(20, 14, 1)])
    assert seen == [((1, 3, 6, 8), False, torch.float32), ((1, 3, 10, 7), False, torch.float32)]


def test_as_batch_puts_colours_first() -> None:
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    image[1, 2] = (255, 51, 0)
    batch = as_batch(image)
    assert batch.shape == (1, 3, 2, 3)
    assert batch[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert batch.sum() == pytest.approx(1.2)


def test_a_decoder_that_returns_nan_is_no_black_picture() -> None:
    with pytest.raises(ValueError, match="are NaN"):
        measure(lambda lr_image: repeat(lr_image) * math.nan, [flat_picture(12, 16, 100)])
