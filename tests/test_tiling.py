import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gan.evaluation import as_batch
from gan.generator import Generator, GeneratorConfig
from gan.tiling import TiledDecoder, grid_step, receptive_radius, self_ensemble
from rlsr_env.codec import LRCodec
from rlsr_env.images import SampleImages
from rlsr_env.resample import upsample
from rlsr_env.rounding import to_8bit

CONFIGS = {
    "fast": GeneratorConfig(scale=2, channels=4, n_blocks=2),
    "repairing": GeneratorConfig(scale=1, channels=4, n_blocks=1),
    "paper": GeneratorConfig(scale=4, channels=4, n_blocks=1, batch_norm=True, n_subpixel_layers=3, base="none"),
    "narrow": GeneratorConfig(scale=3, channels=4, n_blocks=1, head_kernel=1, base="bicubic"),
    "unshuffled": GeneratorConfig(scale=2, channels=4, n_blocks=1, unshuffle=2, head_kernel=3),
    "unshuffled in steps": GeneratorConfig(
        scale=2, channels=4, n_blocks=1, unshuffle=3, head_kernel=3, n_subpixel_layers=3, base="none"
    ),
}


def lively(config: GeneratorConfig, seed: int = 0) -> Generator:
    """A network none of whose layers is zero."""
    torch.manual_seed(seed)
    generator = Generator(config).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() == 4:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return generator


def whole_numbers(config: GeneratorConfig) -> Generator:
    """A network whose sums are exact in float32 whatever their order: small integers for whole numbers as input."""
    torch.manual_seed(0)
    generator = Generator(config).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if parameter.dim() == 4:
                parameter.copy_(torch.randint(-1, 2, parameter.shape) * (torch.rand(parameter.shape) < 0.2))
            else:
                parameter.fill_(0.5 if "1.weight" in name or parameter.numel() == 1 else 1.0)
    return generator


@pytest.mark.parametrize("name", CONFIGS)
def test_radius_is_as_far_as_the_network_sees_and_no_further(name: str, torch_rng: None) -> None:
    generator = lively(CONFIGS[name])
    scale, step, radius = generator.config.scale, grid_step(generator), receptive_radius(generator)
    assert radius % step == 0
    tile, margin = 2 * step, radius + 4 * step
    side = 2 * margin + tile
    lr_image = torch.rand(1, 3, side, side, dtype=torch.float32, requires_grad=True)
    first, last = scale * margin, scale * (margin + tile)
    generator(lr_image)[..., first:last, first:last].abs().sum().backward()
    assert lr_image.grad is not None
    rows = lr_image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    seen = max(margin - int(rows.min()), int(rows.max()) - (margin + tile - 1))
    assert seen <= radius
    assert seen > radius - max(step, 1) or (generator.config.base != "none" and radius == math.ceil(seen / step) * step)


def test_radius_by_hand() -> None:
    # 9x9, two blocks of two 3x3, one more, then the sub-pixel layer's own: 4 + 4 + 1 + 1.
    assert receptive_radius(Generator(CONFIGS["fast"])) == 10
    # 4 + 2 + 1, then 3x3 at full, at full, and at half resolution (factors 1, 2, 2): 7 + 1 + 1 + 1/2, rounded up.
    assert receptive_radius(Generator(CONFIGS["paper"])) == 10
    # On a grid of two pixels: 1 + 2 + 1 + 1 positions.
    assert receptive_radius(Generator(CONFIGS["unshuffled"])) == 10
    # Here the base sees further than the network of 1x1 and 3x3: never less than the kernel.
    assert receptive_radius(Generator(CONFIGS["narrow"])) == 4


@pytest.mark.parametrize("name", ["paper", "unshuffled in steps"])
@pytest.mark.parametrize("size", [(23, 31), (24, 7)])
@pytest.mark.parametrize("tile", [4, 8, 13])
def test_tiled_is_whole_to_the_bit_where_sums_are_exact(
    name: str, size: tuple[int, int], tile: int, torch_rng: None
) -> None:
    generator = whole_numbers(CONFIGS[name])
    lr_image = torch.randint(0, 4, (1, 3, *size)).float()
    scale, step = generator.config.scale, grid_step(generator)
    decoder = TiledDecoder(generator, scale, receptive_radius(generator), tile, step=step)
    with torch.no_grad():
        whole = generator(lr_image)
    assert whole.abs().max() < 1 << 22
    assert torch.equal(decoder(lr_image), whole)
    if size == (23, 31):  # else the narrower margin reaches the border as well
        narrower = TiledDecoder(generator, scale, decoder.radius - step, tile, step=step)
        assert not torch.equal(narrower(lr_image), whole)


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_tiled_is_whole_up_to_rounding(name: str, ensemble: bool, torch_rng: None) -> None:
    generator = lively(CONFIGS[name])
    step = grid_step(generator)
    lr_image = torch.rand(1, 3, 37, 50)
    network = self_ensemble(generator, step) if ensemble else generator
    decoder = TiledDecoder(network, generator.config.scale, receptive_radius(generator), tile=11, step=step)
    with torch.no_grad():
        whole = network(lr_image)
    torch.testing.assert_close(decoder(lr_image), whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("tile", [1, 2, 7, 16, 100])
@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 16)])
def test_pieces_are_the_whole_picture_once_and_lie_on_the_grid(step: int, tile: int, size: tuple[int, int]) -> None:
    seen = np.zeros(size, int)
    decoder = TiledDecoder(lambda lr_image: lr_image, 1, 3, tile, step=step)
    for top, left, piece in decoder.pieces(torch.rand(1, 3, *size)):
        assert top % step == left % step == 0
        assert max(piece.shape[2:]) <= max(tile, step)
        seen[top : top + piece.shape[2], left : left + piece.shape[3]] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("most", [22, 13, 11])
def test_out_of_memory_halves_the_tile_and_leaves_no_hole(step: int, most: int) -> None:
    asked: list[int] = []

    def small_gpu(lr_image: Tensor) -> Tensor:
        asked.append(max(lr_image.shape[2:]))
        if asked[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return upsample(lr_image, 2)

    lr_image = torch.rand(1, 3, 41, 29)
    decoder = TiledDecoder(small_gpu, 2, 3 + step - 1, 32, step=step)
    torch.testing.assert_close(decoder(lr_image), upsample(lr_image, 2), rtol=0, atol=1e-5)
    refused = [side for side in asked if side > most]
    assert 1 <= len(refused) <= 6  # not once for each tile
    assert asked[0] > most >= asked[-1]


def test_out_of_memory_at_a_single_pixel_is_raised() -> None:
    def no_gpu(lr_image: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        TiledDecoder(no_gpu, 2, 3)(torch.rand(1, 3, 20, 20))


def test_restored_picture_is_rounded_clipped_and_cut() -> None:
    lr_image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    decoder = TiledDecoder(lambda lr_image: upsample(3 * lr_image - 1, 2), 2, 3, tile=4)
    sr_image = decoder.restore(lr_image, (13, 18))
    expected = to_8bit(upsample(3 * as_batch(lr_image) - 1, 2))[0, :, :13, :18].permute(1, 2, 0)
    np.testing.assert_allclose(sr_image, 255 * expected.numpy(), atol=1)
    assert (sr_image == (255 * expected).round().numpy()).mean() > 0.999
    assert {0, 255} <= set(sr_image.flat)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="returned NaN"):
        TiledDecoder(lambda lr_image: lr_image * math.nan, 1, 0).restore(np.zeros((4, 4, 3), np.uint8), (4, 4))


def test_tile_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="tile is a number of pixels of 1 or more, got 0"):
        TiledDecoder(lambda lr_image: lr_image, 1, 0, tile=0)


def test_ensemble_of_a_turned_picture_is_the_turned_ensemble(torch_rng: None) -> None:
    decoder = self_ensemble(lively(CONFIGS["fast"]))
    lr_image = torch.rand(1, 3, 12, 17)
    with torch.no_grad():
        plain, turned = decoder(lr_image), decoder(lr_image.rot90(1, (2, 3)).flip(3))
    torch.testing.assert_close(turned, plain.rot90(1, (2, 3)).flip(3), rtol=0, atol=1e-4)


def test_ensemble_of_an_equivariant_decoder_changes_nothing() -> None:
    lr_image = torch.rand(1, 3, 9, 14)
    torch.testing.assert_close(self_ensemble(lambda x: upsample(x, 3))(lr_image), upsample(lr_image, 3))


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_bf16_and_fp32_restore_pictures_that_differ_by_two_levels_at_most(unshuffle: int, torch_rng: None) -> None:
    """The bound that docs/file-format.md states, for residuals as large as trained decoders have them."""
    config = GeneratorConfig(scale=2, channels=32, n_blocks=5, unshuffle=unshuffle, head_kernel=5)
    generator = lively(config)
    codec = LRCodec(2, "jpeg", 20)
    lr_image = codec.decode(codec.encode(SampleImages().load("sample:chelsea")))
    batch = as_batch(lr_image)
    with torch.no_grad():
        residual = generator(batch) - upsample(batch, 2)
        # Trained decoders change a picture by 4 levels in the root mean square, single pixels by ten times that.
        generator.decoder.layers[-1].convolution.weight.mul_(4 / 255 / residual.square().mean().sqrt())
    size = (300, 451)
    pictures = []
    for dtype in (torch.float32, torch.bfloat16):
        network = generator.set_compute_dtype(dtype)
        decoder = TiledDecoder(network, 2, receptive_radius(generator), 128, step=grid_step(generator))
        pictures.append(decoder.restore(lr_image, size).astype(int))
    difference = np.abs(pictures[0] - pictures[1])
    assert 0 < difference.max() <= 2
    assert difference.mean() < 0.1
