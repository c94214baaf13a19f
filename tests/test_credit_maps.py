"""Local credit of metrics that are no means of local values: tangents that agree with the metric itself."""

import piq
import pytest
import torch

from rlsr_env.black_box_metrics import dtw, edge_f1, jpeg_bytes
from rlsr_env.credit_maps import dtw_map, edge_f1_map, ms_ssim_map
from rlsr_env.haarpsi_map import haarpsi_map
from rlsr_env.jpeg_map import jpeg_bytes_map
from rlsr_env.metrics import METRICS
from rlsr_env.resample import upsample


def whole_haarpsi(sr_image, hr_image):
    return piq.haarpsi(sr_image, hr_image, reduction="none")


# The map, the metric, the side of a picture, how close the map's mean is to it (MS-SSIM's map skips windows, that of
# JPEG's bytes the tables), and how well small changes of the two agree.
CASES = [
    pytest.param(dtw_map, dtw, 48, 1e-6, 0.999, id="dtw"),
    pytest.param(edge_f1_map, edge_f1, 48, 1e-6, 0.999, id="edge_f1"),
    pytest.param(haarpsi_map, whole_haarpsi, 48, 1e-5, 0.999, id="haarpsi"),
    pytest.param(jpeg_bytes_map, jpeg_bytes, 96, 600, 0.7, id="jpeg_bytes"),
    pytest.param(ms_ssim_map, METRICS["ms_ssim"], 168, 1e-3, 0.8, id="ms_ssim"),
]


def pictures(n, size, noise, seed=0):
    """Smooth originals `(n, 3, size, size)` and noisy pictures of them."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(n, 3, size // 4, size // 4, generator=generator)
    hr_image = upsample(small, 4, "lanczos").clamp(0, 1)
    return (hr_image + noise * torch.randn(hr_image.shape, generator=generator)).clamp(0, 1), hr_image


@pytest.mark.parametrize(("of_blocks", "whole", "size", "close", "_"), CASES)
def test_mean_of_a_single_sample_is_the_metric(of_blocks, whole, size, close, _):
    sr_image, hr_image = pictures(2, size, 0.05)
    credit = of_blocks(sr_image, hr_image)
    assert credit.shape == (2, size // 8, size // 8)
    assert credit.mean((1, 2)).double() == pytest.approx(whole(sr_image, hr_image).double(), abs=close)


@pytest.mark.parametrize(("of_blocks", "whole", "size", "_", "agreement"), CASES)
def test_small_changes_of_the_mean_are_those_of_the_metric(of_blocks, whole, size, _, agreement):
    start, hr_image = pictures(2, size, 0.05)
    noise = 0.02 * torch.randn(12, *start.shape, generator=torch.Generator().manual_seed(1))
    samples = (start + noise).clamp(0, 1).flatten(0, 1)
    credit = of_blocks(samples, hr_image).mean((1, 2)).double()
    values = whole(samples, hr_image.repeat(12, 1, 1, 1)).double()
    for patch in range(2):
        pair = torch.stack([credit.unflatten(0, (12, 2))[:, patch], values.unflatten(0, (12, 2))[:, patch]])
        assert torch.corrcoef(pair)[0, 1] > agreement


@pytest.mark.parametrize(("of_blocks", "_whole", "size", "_close", "_agreement"), CASES)
def test_samples_of_several_patches_do_not_mix(of_blocks, _whole, size, _close, _agreement):
    sr_image, hr_image = pictures(2, size, 0.05)
    samples = torch.cat([sr_image, sr_image * 0.9])
    together = of_blocks(samples, hr_image).unflatten(0, (2, 2))
    for patch in range(2):
        alone = of_blocks(samples[patch::2], hr_image[patch : patch + 1])
        assert together[:, patch] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("of_blocks", [dtw_map, edge_f1_map, haarpsi_map, ms_ssim_map])
def test_credit_goes_to_the_block_that_was_spoilt(of_blocks):
    size = 168 if of_blocks is ms_ssim_map else 48
    _, hr_image = pictures(1, size, 0.0)
    spoilt = hr_image.clone()
    spoilt[:, :, 16:24, 24:32] = 0.5
    better, worse = of_blocks(torch.cat([hr_image, spoilt]), hr_image)
    loss = worse - better if of_blocks is dtw_map else better - worse
    assert divmod(int(loss.argmax()), size // 8) == (2, 3)
    # The finest windows reach half a block beyond it, so its neighbours share the loss.
    assert loss[1:4, 2:5].sum() > (0.3 if of_blocks is ms_ssim_map else 0.9) * loss.sum() > 0


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 40)])
def test_bits_of_blocks_are_those_of_the_files_coefficients(height, width):
    """What two pictures' files differ by, where one block is flat in the one and textured in the other."""
    sr_image = torch.full((1, 3, height, width), 0.5)
    sr_image[:, :, 8:16, 16:24] += 0.2 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    credit = jpeg_bytes_map(sr_image, sr_image)[0]
    assert credit.shape == (height // 8, width // 8)
    assert divmod(int(credit.argmax()), width // 8) == (1, 2)
    flat = torch.full_like(sr_image, 0.5)
    more_bytes = (jpeg_bytes(sr_image, flat) - jpeg_bytes(flat, flat)).item()
    mean = credit.mean().item()
    # The file with texture has longer tables as well, of some 20 bytes.
    assert 0.5 * more_bytes < mean < 1.2 * more_bytes


@pytest.mark.parametrize("of_blocks", [dtw_map, edge_f1_map, haarpsi_map, jpeg_bytes_map])
def test_flat_pictures_have_finite_credit(of_blocks):
    grey = torch.full((2, 3, 48, 48), 0.5)
    assert of_blocks(grey, grey[:1]).isfinite().all()
    black = torch.zeros(2, 3, 48, 48)
    assert of_blocks(black, black[:1]).isfinite().all()
