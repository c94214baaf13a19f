"""Noise of GRPO's pictures."""

import pytest
import torch

from agents.picture_noise import picture_noise


@pytest.mark.parametrize("blur", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("grey", [False, True])
def test_every_value_is_standard_normal(blur: float, grey: bool) -> None:
    torch.manual_seed(0)
    noise = picture_noise(4000, torch.zeros(2, 3, 8, 16), blur, grey)
    assert noise.shape == (4000, 2, 3, 8, 16) and noise.dtype == torch.float32
    assert noise.mean(0).abs().max() < 0.08
    torch.testing.assert_close(noise.square().mean(0), torch.ones(2, 3, 8, 16), atol=0.15, rtol=0)


def test_white_noise_is_that_of_torch() -> None:
    mean = torch.zeros(2, 3, 8, 8)
    torch.manual_seed(1)
    noise = picture_noise(5, mean)
    torch.manual_seed(1)
    assert torch.equal(noise, torch.randn(5, 2, 3, 8, 8))


def test_neighbours_of_smooth_noise_are_alike_as_the_filter_says() -> None:
    torch.manual_seed(0)
    blur = 1.5
    noise = picture_noise(20_000, torch.zeros(1, 1, 16, 16), blur)
    # The correlation at a distance d of a Gaussian filter's output is exp(-d^2 / (4 blur^2)).
    for distance in (1, 2, 4):
        expected = torch.tensor(-(distance**2) / (4 * blur**2)).exp()
        measured = (noise[..., 0] * noise[..., distance]).mean()
        torch.testing.assert_close(measured, expected, atol=0.01, rtol=0)


def test_grey_noise_is_the_same_in_all_channels() -> None:
    noise = picture_noise(2, torch.zeros(1, 3, 8, 8), grey=True)
    assert torch.equal(noise[:, :, 0], noise[:, :, 1]) and torch.equal(noise[:, :, 0], noise[:, :, 2])
    independent = picture_noise(2, torch.zeros(1, 3, 8, 8))
    assert not torch.equal(independent[:, :, 0], independent[:, :, 1])
