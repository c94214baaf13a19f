import numpy as np
import pytest
import torch
from pytorch_msssim import ssim as independent_ssim
from skimage.metrics import structural_similarity
from torch import Tensor

from rlsr_env.structural_similarity import similarity_to, ssim


def pictures(n: int, height: int, width: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """SR and HR pictures: waves, and the same with noise."""
    rng = np.random.default_rng(height * width)
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows / rng.uniform(1, 5, (n, 3, 1, 1))) * np.cos(columns / rng.uniform(1, 5, (n, 3, 1, 1)))
    hr_image = 0.5 + 0.3 * waves
    sr_image = (hr_image + noise * rng.normal(size=hr_image.shape)).clip(0, 1)
    return torch.from_numpy(sr_image).float(), torch.from_numpy(hr_image).float()


@pytest.mark.parametrize("size", [(11, 11), (24, 40), (81, 30)])
def test_agrees_with_pytorch_msssim_and_scikit_image(size: tuple[int, int]) -> None:
    sr_image, hr_image = pictures(3, *size)
    values = ssim(sr_image, hr_image)
    expected = independent_ssim(sr_image, hr_image, data_range=1, size_average=False)
    assert values.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    for value, sr, hr in zip(values, sr_image.double().numpy(), hr_image.double().numpy(), strict=True):
        _, full = structural_similarity(sr, hr, channel_axis=0, full=True, **options)
        assert value.item() == pytest.approx(full[:, 5:-5, 5:-5].mean(), abs=1e-5)


def test_double_precision_is_kept() -> None:
    sr_image, hr_image = (image.double() for image in pictures(2, 20, 20))
    assert ssim(sr_image, hr_image).dtype == torch.float64
    expected = independent_ssim(sr_image, hr_image, data_range=1, size_average=False)
    # pytorch-msssim's window is in float32.
    assert ssim(sr_image, hr_image).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("n", [2, 5, 16, 17])
def test_a_picture_is_judged_alike_in_any_company(n: int) -> None:
    sr_image, hr_image = pictures(n, 40, 40)
    together = ssim(sr_image, hr_image)
    alone = torch.cat([ssim(sr_image[i : i + 1], hr_image[i : i + 1]) for i in range(n)])
    assert torch.equal(together, alone)
    assert len(set(alone.tolist())) == n


def test_memory_order_does_not_matter() -> None:
    sr_image, hr_image = pictures(2, 30, 20)
    values = ssim(sr_image, hr_image)
    last = torch.channels_last
    assert torch.equal(ssim(sr_image.contiguous(memory_format=last), hr_image.contiguous(memory_format=last)), values)


def test_prepared_originals_can_be_used_again() -> None:
    sr_image, hr_image = pictures(2, 30, 20)
    judge = similarity_to(hr_image)
    first = judge(sr_image)
    assert torch.equal(judge(1 - sr_image), ssim(1 - sr_image, hr_image))
    assert torch.equal(judge(sr_image), first)
    leaf = sr_image.clone().requires_grad_()
    assert judge(leaf).requires_grad and judge(leaf).tolist() == pytest.approx(first.tolist(), abs=1e-6)


def test_identical_flat_and_textured_pictures_are_perfect() -> None:
    _, hr_image = pictures(2, 30, 20)
    assert ssim(hr_image, hr_image).tolist() == pytest.approx([1, 1], abs=1e-6)
    flat = torch.full((1, 3, 16, 16), 0.7)
    assert ssim(flat, flat).tolist() == pytest.approx([1], abs=1e-6)


def test_gradient_agrees_with_pytorch_msssim() -> None:
    sr_image, hr_image = pictures(2, 20, 24)
    gradients = []
    for function in (ssim, lambda sr, hr: independent_ssim(sr, hr, data_range=1, size_average=False)):
        leaf = sr_image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf, hr_image).sum(), leaf)
        gradients.append(gradient)
    assert gradients[1].abs().max() > 1e-3
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6
