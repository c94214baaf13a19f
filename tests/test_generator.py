from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gan.generator import Decoder, Encoder, Generator, GeneratorConfig, ResidualBlock, SubPixelLayer, icnr_
from rlsr_env.resample import upsample

SMALL = {"channels": 8, "n_blocks": 1}


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def stir(generator: Generator) -> Generator:
    """Give every parameter, the last layer's zeros included, some other value."""
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return generator


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("base", ["lanczos", "bicubic"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_untrained_residual_generator_is_its_base_to_the_bit(
    scale: int, base: str, compute_dtype: torch.dtype, make_generator: Callable[..., Generator]
) -> None:
    lr_image = torch.rand(2, 3, 9, 14)
    for n_subpixel_layers in (1, 4):
        config = GeneratorConfig(scale=scale, base=base, n_subpixel_layers=n_subpixel_layers, **SMALL)
        generator = make_generator(config).set_compute_dtype(compute_dtype)
        assert torch.equal(generator(lr_image), upsample(lr_image, scale, base))


def test_untrained_base_does_not_change_inside_the_callers_autocast(make_generator: Callable[..., Generator]) -> None:
    generator = make_generator(GeneratorConfig(scale=2, **SMALL))
    lr_image = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generator(lr_image), upsample(lr_image, 2, "lanczos"))


@pytest.mark.parametrize(("scale", "n_upsampling"), [(2, 1), (4, 2), (8, 3)])
def test_paper_preset_has_what_the_paper_lists(scale: int, n_upsampling: int) -> None:
    generator = Generator(GeneratorConfig.preset("paper", scale))
    head, activation = generator.encoder.head
    assert (head.in_channels, head.out_channels, head.kernel_size) == (3, 64, (9, 9))
    assert isinstance(activation, nn.PReLU)

    assert len(generator.encoder.blocks) == 5
    for block in generator.encoder.blocks:
        assert isinstance(block, ResidualBlock)
        leaves = [module for module in block.modules() if not list(module.children())]
        assert [type(leaf) for leaf in leaves] == [nn.Conv2d, nn.BatchNorm2d, nn.PReLU, nn.Conv2d, nn.BatchNorm2d]
        for convolution in (leaves[0], leaves[3]):
            assert isinstance(convolution, nn.Conv2d)
            assert (convolution.in_channels, convolution.out_channels, convolution.kernel_size) == (64, 64, (3, 3))
    tail = generator.encoder.tail[0]
    assert (tail.in_channels, tail.out_channels, tail.kernel_size) == (64, 64, (3, 3))

    layers = [layer for layer in generator.decoder.layers if isinstance(layer, SubPixelLayer)]
    assert len(layers) == 8
    assert [layer.factor for layer in layers] == [1] * (8 - n_upsampling) + [2] * n_upsampling
    assert [type(layer) for layer in generator.decoder.layers] == [SubPixelLayer, nn.PReLU] * 7 + [SubPixelLayer]
    assert generator.config.base == "none"


def test_fast_preset_has_no_batch_norm_and_upsamples_at_once() -> None:
    generator = Generator(GeneratorConfig.preset("fast", 4))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in generator.modules())
    assert [layer.factor for layer in generator.decoder.layers] == [4]
    assert generator.config.base == "lanczos"


def test_parameter_counts_are_those_worked_out_by_hand() -> None:
    head = 3 * 64 * 81 + 64 + 1  # convolution, bias, PReLU
    convolution, norm, prelu = 64 * 64 * 9, 2 * 64, 1
    paper = Generator(GeneratorConfig.preset("paper", 4))
    assert n_parameters(paper.encoder) == head + 5 * (2 * (convolution + norm) + prelu) + convolution + norm == 422_534
    keep = convolution + 64 + prelu
    assert n_parameters(paper.decoder) == 6 * keep + (4 * convolution + 256 + prelu) + 64 * 12 * 9 + 12 == 376_211
    fast = Generator(GeneratorConfig.preset("fast", 4))
    assert n_parameters(fast.encoder) == head + 5 * (2 * (convolution + 64) + prelu) + convolution + 64 == 421_830
    assert n_parameters(fast.decoder) == 64 * 48 * 9 + 48 == 27_696


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_untrained_subpixel_layer_is_free_of_checkerboard(factor: int, torch_rng: None) -> None:
    output = SubPixelLayer(5, 4, factor)(torch.randn(2, 5, 6, 7))
    assert output.shape == (2, 4, 6 * factor, 7 * factor)
    corner = output[..., ::factor, ::factor]
    assert torch.equal(output, corner.repeat_interleave(factor, 2).repeat_interleave(factor, 3))
    assert corner.std() > 0.1


def test_untrained_paper_decoder_is_free_of_checkerboard_at_its_last_layer(
    make_generator: Callable[..., Generator],
) -> None:
    output = make_generator(GeneratorConfig(scale=2, n_subpixel_layers=8, base="none", **SMALL))(torch.rand(1, 3, 6, 6))
    corner = output[..., ::2, ::2]
    assert torch.equal(output, corner.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert corner.std() > 0


def test_icnr_gives_the_sub_pixels_of_a_channel_one_kernel_of_he_variance(torch_rng: None) -> None:
    weight = torch.zeros(16 * 4, 32, 3, 3)
    assert icnr_(weight, 2) is weight
    kernels = weight.view(16, 4, 32, 3, 3)
    assert torch.equal(kernels, kernels[:, :1].expand_as(kernels))
    assert not torch.equal(kernels[0], kernels[1])
    assert weight.var().item() == pytest.approx(2 / (32 * 9), rel=0.1)


def test_icnr_refuses_channels_that_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="10 output channels cannot be shuffled by 2"):
        icnr_(torch.zeros(10, 4, 3, 3), 2)


@pytest.mark.parametrize(
    ("scale", "n_layers", "factors"),
    [
        (4, 1, (4,)),
        (4, 2, (2, 2)),
        (8, 8, (1, 1, 1, 1, 1, 2, 2, 2)),
        (6, 3, (1, 2, 3)),
        (3, 8, (1, 1, 1, 1, 1, 1, 1, 3)),
        (7, 1, (7,)),
    ],
)
def test_subpixel_factors(scale: int, n_layers: int, factors: tuple[int, ...]) -> None:
    assert GeneratorConfig(scale=scale, n_subpixel_layers=n_layers).subpixel_factors == factors


@settings(deadline=None, max_examples=50)
@given(scale=st.integers(1, 64), n_layers=st.integers(1, 12))
def test_subpixel_factors_multiply_to_the_scale(scale: int, n_layers: int) -> None:
    try:
        factors = GeneratorConfig(scale=scale, n_subpixel_layers=n_layers).subpixel_factors
    except ValueError as error:
        assert "prime factors" in str(error)
        assert n_layers > 1
    else:
        assert len(factors) == n_layers
        assert np.prod(factors) == scale


@settings(deadline=None, max_examples=15)
@given(height=st.integers(1, 20), width=st.integers(1, 20), n_pictures=st.integers(1, 3), scale=st.sampled_from([2, 3]))
def test_pictures_of_any_size_are_restored(height: int, width: int, n_pictures: int, scale: int) -> None:
    generator = Generator(GeneratorConfig(scale=scale, **SMALL))
    output = generator(torch.rand(n_pictures, 3, height, width))
    assert output.shape == (n_pictures, 3, scale * height, scale * width)
    assert output.dtype == torch.float32


def test_output_is_not_clipped_and_has_a_gradient_beyond_white(make_generator: Callable[..., Generator]) -> None:
    generator = make_generator(GeneratorConfig(scale=2, **SMALL))
    last = generator.decoder.layers[-1].convolution
    nn.init.constant_(last.bias, 3.0)
    output = generator(torch.rand(1, 3, 6, 6))
    assert output.min() > 1.0
    output.mean().backward()
    # The mean over three channels: each bias element is one of 4 sub-pixels of one of 3 channels.
    assert torch.allclose(last.bias.grad, torch.full((12,), 1 / 12))


@pytest.mark.parametrize(
    "config",
    [
        GeneratorConfig(scale=2, **SMALL),
        GeneratorConfig(scale=4, batch_norm=True, n_subpixel_layers=4, base="none", **SMALL),
    ],
    ids=["fast", "paper"],
)
def test_gradient_reaches_every_parameter(config: GeneratorConfig, make_generator: Callable[..., Generator]) -> None:
    generator = stir(make_generator(config)).train()
    generator(torch.rand(2, 3, 8, 8)).square().mean().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_seed_decides_the_weights(make_generator: Callable[..., Generator]) -> None:
    first, same, other = make_generator(seed=1), make_generator(seed=1), make_generator(seed=2)
    lr_image = torch.rand(1, 3, 6, 6)
    assert torch.equal(first(lr_image), same(lr_image))
    assert not torch.equal(first(lr_image), other(lr_image))


def test_compute_dtype_rules_the_convolutions_alone(make_generator: Callable[..., Generator]) -> None:
    generator = stir(make_generator(GeneratorConfig(scale=2, **SMALL)))
    lr_image = torch.rand(1, 3, 8, 8)
    exact = generator(lr_image)
    assert generator.encoder(lr_image).dtype == torch.float32
    assert generator.set_compute_dtype(torch.bfloat16) is generator
    assert generator.encoder(lr_image).dtype == torch.bfloat16
    rough = generator(lr_image)
    assert {parameter.dtype for parameter in generator.parameters()} == {torch.float32}
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05
    rough.mean().backward()
    assert {parameter.grad.dtype for parameter in generator.parameters() if parameter.grad is not None} == {
        torch.float32
    }


def test_generator_joins_an_encoder_and_a_decoder_that_exist() -> None:
    config = GeneratorConfig(scale=2, **SMALL)
    encoder, decoder = Encoder(config), Decoder(config)
    generator = Generator(config, encoder, decoder)
    assert generator.encoder is encoder
    assert generator.decoder is decoder
    lr_image = torch.rand(1, 3, 5, 5)
    assert torch.equal(generator(lr_image), decoder(encoder(lr_image), lr_image))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"scale": 0}, "scale must be an integer of 1 or more, got 0"),
        ({"scale": 2.0}, "scale must be an integer of 1 or more, got 2.0"),
        ({"scale": True}, "scale must be an integer"),
        ({"channels": 0}, "channels must be an integer of 1 or more, got 0"),
        ({"channels": 8.5}, "channels must be an integer of 1 or more, got 8.5"),
        ({"n_blocks": 0}, "n_blocks must be an integer of 1 or more"),
        ({"n_subpixel_layers": "8"}, "n_subpixel_layers must be an integer of 1 or more, got '8'"),
        ({"base": "nearest"}, "unknown base 'nearest'; known: none, lanczos, bicubic"),
        ({"scale": 8, "n_subpixel_layers": 2}, "an upsampling by 8 has 3 prime factors"),
    ],
)
def test_config_refuses_what_cannot_be_built(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**settings_)  # type: ignore[arg-type]


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown generator 'huge'; known: paper, fast"):
        GeneratorConfig.preset("huge", 4)


@pytest.mark.parametrize("size", [(8, 10), (7, 9), (5, 8)])
def test_unshuffled_encoder_takes_any_size_and_starts_at_the_baseline(size: tuple[int, int], torch_rng: None) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(scale=3, channels=8, n_blocks=1, unshuffle=2, head_kernel=5))
    lr_image = torch.rand(2, 3, *size)
    latent = generator.encoder(lr_image)
    assert latent.shape == (2, 8, -(-size[0] // 2), -(-size[1] // 2))
    with torch.no_grad():
        assert torch.equal(generator(lr_image), upsample(lr_image, 3, "lanczos"))
        generator.decoder.layers[-1].convolution.bias.fill_(0.25)
        detail = generator(lr_image) - upsample(lr_image, 3, "lanczos")
    torch.testing.assert_close(detail, torch.full((2, 3, 3 * size[0], 3 * size[1]), 0.25))


def test_unshuffled_pixels_come_back_where_they_were() -> None:
    """With an identity in the place of the network, unshuffling and the sub-pixel layer cancel out."""
    config = GeneratorConfig(scale=1, channels=12, n_blocks=1, unshuffle=2, head_kernel=1, base="none")
    generator = Generator(config)
    identity = torch.eye(12)[..., None, None]
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
        generator.encoder.head[0].weight.copy_(identity)
        generator.encoder.head[1].weight.fill_(1)  # PReLU of slope 1
        generator.decoder.layers[-1].convolution.weight[:, :, 1:2, 1:2] = identity
    lr_image = torch.rand(1, 3, 6, 7)
    torch.testing.assert_close(generator(lr_image), lr_image)
    assert generator.alignment == 2


def test_wide_preset_costs_what_the_fast_one_costs_and_holds_four_times_the_weights() -> None:
    fast, wide = (Generator(GeneratorConfig.preset(name, 2)) for name in ("fast", "wide"))
    sizes = [
        sum(parameter.numel() for parameter in generator.blocks.parameters())
        for generator in (fast.encoder, wide.encoder)
    ]
    assert sizes[1] == pytest.approx(4 * sizes[0], rel=0.01)
    with pytest.raises(ValueError, match="head_kernel must be odd, got 4"):
        GeneratorConfig(head_kernel=4)
    with pytest.raises(ValueError, match="unshuffle must be an integer of 1 or more, got 0"):
        GeneratorConfig(unshuffle=0)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_deeper_copy_makes_the_same_pictures_and_every_new_block_learns(batch_norm: bool) -> None:
    torch.manual_seed(0)
    generator = stir(Generator(GeneratorConfig(scale=2, batch_norm=batch_norm, **SMALL))).eval()
    deeper = generator.with_blocks(3).eval()
    lr_image = torch.rand(1, 3, 8, 8)
    assert deeper.config.n_blocks == 3 and len(deeper.encoder.blocks) == 3
    assert torch.equal(deeper(lr_image), generator(lr_image))
    deeper(lr_image).square().mean().backward()  # type: ignore[no-untyped-call]
    for block in deeper.encoder.blocks[1:]:
        assert block.body[-1][-1].weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="n_blocks must be 3 or more, got 1"):
        deeper.with_blocks(1)
