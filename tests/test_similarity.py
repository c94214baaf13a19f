import pytest
import torch
from pytorch_msssim import ms_ssim, ssim

from gan.similarity import Similarity
from rlsr_env.metrics import METRICS


def pictures(height: int, width: int, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    hr_image = (0.5 + 0.4 * torch.sin(rows / 5) * torch.cos(columns / 7)).expand(3, -1, -1).clone()
    hr_image[1] *= 0.7
    return hr_image, (hr_image + noise * torch.randn(hr_image.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("size", [(161, 161), (176, 192), (163, 201), (200, 162)])
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_values_are_those_of_pytorch_msssim(size: tuple[int, int], noise: float) -> None:
    hr_image, sr_image = pictures(*size, noise=noise)
    values = Similarity(hr_image)(sr_image)
    assert values[0] == pytest.approx(ssim(sr_image[None], hr_image[None], data_range=1).item(), abs=1e-6)
    assert values[1] == pytest.approx(ms_ssim(sr_image[None], hr_image[None], data_range=1).item(), abs=1e-6)


def test_negative_structure_counts_as_zero() -> None:
    hr_image, _ = pictures(161, 170)
    values = Similarity(hr_image)(1 - hr_image)
    assert values[0] == pytest.approx(METRICS["ssim"](1 - hr_image[None], hr_image[None]).item(), abs=1e-6)
    assert values[0] is not None and values[0] < 0
    assert values[1] == METRICS["ms_ssim"](1 - hr_image[None], hr_image[None]).item() == 0


def test_one_original_judges_many_restorations() -> None:
    hr_image, sr_image = pictures(161, 161)
    judge = Similarity(hr_image)
    before = judge(sr_image)
    assert judge(hr_image) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert judge(sr_image) == before


@pytest.mark.parametrize(("side", "expected"), [(10, (False, False)), (11, (True, False)), (160, (True, False))])
def test_small_pictures_have_no_value(side: int, expected: tuple[bool, bool]) -> None:
    hr_image, sr_image = pictures(side, 200)
    judge = Similarity(hr_image)
    values = judge(sr_image)
    assert (values[0] is not None, values[1] is not None) == (judge.has_ssim, judge.has_ms_ssim) == expected


def test_other_shapes_are_refused() -> None:
    hr_image, _ = pictures(20, 20)
    with pytest.raises(ValueError, match=r"expected one picture \(3, H, W\), got a tensor of shape \(1, 3, 20, 20\)"):
        Similarity(hr_image[None])
    with pytest.raises(ValueError, match=r"the original is \(3, 20, 20\), got \(3, 20, 19\)"):
        Similarity(hr_image)(hr_image[..., 1:])
