import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d  # type: ignore[import-untyped]
from torch import Tensor

from rlsr_env.filters import gaussian_kernel, slide

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def pictures(n: int, height: int = 9, width: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_gaussian_by_hand() -> None:
    kernel = gaussian_kernel(2, 0.5, torch.zeros(0, dtype=torch.float64))
    weights = np.exp([-8.0, -2.0, 0.0, -2.0, -8.0])  # exp(-x^2 / (2 * 0.25))
    assert kernel.tolist() == pytest.approx(weights / weights.sum())


@DTYPES
@pytest.mark.parametrize("weights", [[1.0], [0.5, -1.0, 2.0], [0.1, 0.2, 0.3, 0.4]])
def test_filter_agrees_with_scipy(weights: list[float], dtype: torch.dtype) -> None:
    image = pictures(2, dtype=dtype)
    kernel = torch.tensor(weights, dtype=dtype)
    filtered = slide(image, kernel)
    assert filtered.is_contiguous() and filtered.dtype == dtype
    lost = len(weights) - 1
    first = len(weights) // 2
    expected = image.numpy().astype(np.float64)
    for axis in (2, 3):
        expected = correlate1d(expected, weights, axis=axis)
    expected = expected[:, :, first : first + 9 - lost, first : first + 12 - lost]
    assert filtered.numpy() == pytest.approx(expected, abs=1e-6)


@DTYPES
@pytest.mark.parametrize("n", [2, 5, 6, 16, 17])
def test_a_picture_is_filtered_alike_in_any_company(n: int, dtype: torch.dtype) -> None:
    image = pictures(n, 21, 24, dtype)
    kernel = gaussian_kernel(5, 1.5, image)
    together = slide(image, kernel)
    for i in range(n):
        assert torch.equal(slide(image[i : i + 1], kernel)[0], together[i])


def test_memory_order_does_not_matter() -> None:
    image = pictures(2)
    kernel = gaussian_kernel(1, 1.0, image)
    assert torch.equal(slide(image.contiguous(memory_format=torch.channels_last), kernel), slide(image, kernel))
    assert torch.equal(slide(image[:, :, 2:, 3:], kernel), slide(image[:, :, 2:, 3:].contiguous(), kernel))


def test_gradient_passes() -> None:
    image = pictures(1, 6, 7, torch.float64).requires_grad_()
    kernel = gaussian_kernel(1, 1.0, image.detach())
    assert torch.autograd.gradcheck(lambda image: slide(image, kernel), (image,))


@pytest.mark.parametrize("weights", [[0.5, -1.0, 2.0], [0.1, 0.2, 0.3, 0.4]])
def test_the_compiled_filter_has_the_gradient_of_the_convolution(weights: list[float]) -> None:
    image = pictures(2)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = image.to(dtype).requires_grad_()
        values = slide(leaf, torch.tensor(weights, dtype=dtype))
        (gradient,) = torch.autograd.grad((values * torch.arange(values.numel()).view_as(values)).sum(), leaf)
        gradients.append(gradient)
    assert gradients[0].dtype == torch.float32
    assert gradients[0].numpy() == pytest.approx(gradients[1].numpy(), rel=1e-5, abs=1e-3)
