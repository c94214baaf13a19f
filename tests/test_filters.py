import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d  # type: ignore[import-untyped]
from torch import Tensor

from rlsr_env.filters import gaussian_kernel, one_by_one, side_by_side, slide

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def pictures(n: int, height: int = 9, width: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_gaussian_by_hand() -> None:
    kernel = gaussian_kernel(2, 0.5, torch.zeros(0, dtype=torch.float64))
    weights = np.exp([-8.0, -2.0, 0.0, -2.0, -8.0])  # exp(-x^2 / (2 * 0.25))
    assert kernel.tolist() == pytest.approx(weights / weights.sum())


def test_side_by_side_has_all_values_of_a_pixel_together_and_the_way_back_is_exact() -> None:
    image = pictures(2)
    together = side_by_side(image)
    assert together.shape == (9, 12, 6) and together.is_contiguous()
    assert together[4, 7].tolist() == image[:, :, 4, 7].flatten().tolist()
    assert torch.equal(one_by_one(together, 3), image)
    assert torch.equal(side_by_side(image.contiguous(memory_format=torch.channels_last)), together)


@DTYPES
@pytest.mark.parametrize("weights", [[1.0], [0.5, -1.0, 2.0], [0.1, 0.2, 0.3, 0.4]])
def test_filter_agrees_with_scipy(weights: list[float], dtype: torch.dtype) -> None:
    image = pictures(2, dtype=dtype)
    kernel = torch.tensor(weights, dtype=dtype)
    filtered = slide(side_by_side(image), kernel)
    assert filtered.is_contiguous() and filtered.dtype == dtype
    lost = len(weights) - 1
    first = len(weights) // 2
    expected = image.numpy().astype(np.float64)
    for axis in (2, 3):
        expected = correlate1d(expected, weights, axis=axis)
    expected = expected[:, :, first : first + 9 - lost, first : first + 12 - lost]
    assert one_by_one(filtered, 3).numpy() == pytest.approx(expected, abs=1e-6)


@DTYPES
@pytest.mark.parametrize("n", [2, 5, 6, 16, 17])
def test_a_picture_is_filtered_alike_in_any_company(n: int, dtype: torch.dtype) -> None:
    image = pictures(n, 21, 24, dtype)
    kernel = gaussian_kernel(5, 1.5, image)
    together = one_by_one(slide(side_by_side(image), kernel), 3)
    for i in range(n):
        assert torch.equal(one_by_one(slide(side_by_side(image[i : i + 1]), kernel), 3)[0], together[i])


def test_gradient_passes() -> None:
    image = pictures(1, 6, 7, torch.float64).requires_grad_()
    kernel = gaussian_kernel(1, 1.0, image.detach())
    assert torch.autograd.gradcheck(lambda image: slide(side_by_side(image), kernel), (image,))
