import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rlsr_env.resample import KERNELS, Upsampling, upsample

SCALES = [2, 3, 4, 8]
PILLOW = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
BOTH_KERNELS = pytest.mark.parametrize("kernel", ["lanczos", "bicubic"])


def mid_range_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise from 80 to 175, so that no overshoot leaves the 8 bits in which Pillow would clip it."""
    return np.random.default_rng(seed).integers(80, 176, (height, width, 3), dtype=np.uint8)


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


@BOTH_KERNELS
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(19, 26), (3, 5), (1, 1)])
def test_agrees_with_pillow_up_to_its_rounding(kernel: str, scale: int, size: tuple[int, int]) -> None:
    height, width = size
    lr_image = mid_range_picture(height, width)
    resized = Image.fromarray(lr_image).resize((scale * width, scale * height), PILLOW[kernel])
    expected = np.asarray(resized).astype(np.float64)
    sr_image = upsample(as_tensor(lr_image), scale, kernel)
    assert sr_image.shape == (1, 3, scale * height, scale * width)
    difference = np.abs(sr_image[0].permute(1, 2, 0).numpy() * 255.0 - expected)
    assert difference.max() < 1.5
    # Two roundings, each of 0.25 levels on average, cost a third of a level together.
    assert difference.mean() < 0.4


def test_bicubic_by_hand() -> None:
    # Scale 2 puts output pixels 1/4 to each side of an input pixel; Keys' kernel with a = -0.5 at the distances 3/4,
    # 1/4, 5/4 and 7/4 is 29/128, 111/128, -9/128 and -3/128, which sum to 1.
    lr_image = torch.zeros(1, 1, 1, 9)
    lr_image[..., 4] = 128.0
    expected = [0, 0, 0, 0, 0, -3, -9, 29, 111, 111, 29, -9, -3, 0, 0, 0, 0, 0]
    assert upsample(lr_image, 2, "bicubic")[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-4)


@BOTH_KERNELS
def test_overshoots_at_an_edge_and_does_not_clip(kernel: str) -> None:
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 4:] = 1.0
    sr_image = upsample(edge, 2, kernel)
    assert sr_image.max() > 1.02
    assert sr_image.min() < -0.02


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    scale=st.integers(1, 8),
    kernel=st.sampled_from(sorted(KERNELS)),
    level=st.floats(-2, 2),
)
@settings(deadline=None, max_examples=60)
def test_a_constant_stays_constant(height: int, width: int, scale: int, kernel: str, level: float) -> None:
    sr_image = upsample(torch.full((1, 2, height, width), level), scale, kernel)
    assert sr_image.shape == (1, 2, scale * height, scale * width)
    assert torch.allclose(sr_image, torch.tensor(level), rtol=0, atol=2e-6)


@BOTH_KERNELS
def test_scale_1_changes_nothing(kernel: str) -> None:
    lr_image = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(upsample(lr_image, 1, kernel), lr_image, rtol=0, atol=1e-6)


@BOTH_KERNELS
def test_commutes_with_the_flips_and_the_transposition(kernel: str) -> None:
    lr_image = torch.rand(1, 3, 9, 6, generator=torch.Generator().manual_seed(0))
    sr_image = upsample(lr_image, 3, kernel)
    for flipped, expected in (
        (lr_image.flip(2), sr_image.flip(2)),
        (lr_image.flip(3), sr_image.flip(3)),
        (lr_image.transpose(2, 3), sr_image.transpose(2, 3)),
    ):
        assert torch.allclose(upsample(flipped, 3, kernel), expected, rtol=0, atol=2e-6)


@BOTH_KERNELS
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_a_picture_in_a_batch_is_as_the_picture_alone(kernel: str, memory_format: torch.memory_format) -> None:
    batch = torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    together = upsample(batch, 4, kernel)
    for i in range(len(batch)):
        assert torch.equal(together[i], upsample(batch[i : i + 1], 4, kernel)[0])


def test_default_kernel_is_lanczos() -> None:
    lr_image = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upsample(lr_image, 2), upsample(lr_image, 2, "lanczos"))
    assert not torch.allclose(upsample(lr_image, 2), upsample(lr_image, 2, "bicubic"), atol=1e-3)


def test_is_float32_and_the_same_under_autocast() -> None:
    lr_image = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = upsample(lr_image, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (lr_image[0, 0] @ lr_image[0, 0]).dtype == torch.bfloat16  # autocast is on
        sr_image = upsample(lr_image, 4)
    assert sr_image.dtype == torch.float32
    assert torch.equal(sr_image, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    lr_image = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    sr_image = upsample(lr_image, 2)
    assert sr_image.dtype == torch.float32
    assert torch.equal(sr_image, upsample(lr_image.float(), 2))


def test_gradients_pass_through_and_sum_to_the_number_of_output_pixels() -> None:
    lr_image = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upsample(lr_image, 2).sum().backward()
    assert lr_image.grad is not None
    assert lr_image.grad.sum().item() == pytest.approx(64, abs=1e-3)


def test_gradients_pass_where_the_first_call_was_in_inference_mode() -> None:
    with torch.inference_mode():
        upsample(torch.rand(1, 1, 13, 17), 5)  # a size that no other test uses: nothing is cached yet
    lr_image = torch.rand(1, 1, 13, 17, requires_grad=True)
    upsample(lr_image, 5).sum().backward()
    assert lr_image.grad is not None
    assert lr_image.grad.abs().sum() > 0


def test_refuses_an_unknown_kernel() -> None:
    with pytest.raises(ValueError, match=r"unknown kernel 'nearest'; known: lanczos, bicubic"):
        upsample(torch.rand(1, 3, 4, 4), 2, "nearest")


@pytest.mark.parametrize("scale", [0, -2, 0.5, 2.5])
def test_refuses_a_scale_that_is_no_integer_of_1_or_more(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"scale must be an integer of 1 or more, got {scale}"):
        upsample(torch.rand(1, 3, 4, 4), scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (1, 1, 3, 4, 4)])
def test_refuses_what_is_no_batch_of_pictures(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected pictures \(B, C, h, w\), got a tensor of shape"):
        upsample(torch.rand(shape), 2)


def test_refuses_8_bit_pictures() -> None:
    with pytest.raises(TypeError, match=r"expected a floating tensor, got torch.uint8; divide uint8 pictures by 255"):
        upsample(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 2)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 3), (12, 9)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_loops_agree_with_the_matrices(size: tuple[int, int], scale: int) -> None:
    lr_image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    for kernel in KERNELS:
        by_matrices = upsample(lr_image.clone().requires_grad_(), scale, kernel)
        assert by_matrices.requires_grad
        assert (upsample(lr_image, scale, kernel) - by_matrices).abs().max() < 1e-6


def test_upsampling_writes_what_it_returns() -> None:
    lr_image = torch.rand(2, 3, 6, 7)
    sr_image = np.empty((2, 3, 18, 21), np.float32)
    Upsampling(3).write(lr_image.numpy(), sr_image)
    assert torch.equal(torch.from_numpy(sr_image), Upsampling(3)(lr_image))


def test_upsampling_goes_through_vmap() -> None:
    lr_image = torch.rand(3, 2, 3, 6, 7)
    mapped = torch.func.vmap(lambda images: upsample(images, 2))(lr_image)
    assert (mapped - torch.stack([upsample(images, 2) for images in lr_image])).abs().max() < 1e-6
