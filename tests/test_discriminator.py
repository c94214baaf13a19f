import pytest
import torch
from torch import nn

from gan.discriminator import Discriminator


def test_layers_are_those_of_ledig_et_al() -> None:
    discriminator = Discriminator()
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels, layer.stride[0]) for layer in convolutions] == [
        (3, 64, 1),
        (64, 64, 2),
        (64, 128, 1),
        (128, 128, 2),
        (128, 256, 1),
        (256, 256, 2),
        (256, 512, 1),
        (512, 512, 2),
    ]
    assert {(layer.kernel_size, layer.padding) for layer in convolutions} == {((3, 3), (1, 1))}
    linear = [module for module in discriminator.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(512, 1024), (1024, 1)]
    norms = [module.num_features for module in discriminator.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == [64, 128, 128, 256, 256, 512, 512]


def test_activations_leak_and_nothing_pools() -> None:
    names = [type(module).__name__ for module in Discriminator(4).modules()]
    assert names.count("LeakyReLU") == 9
    assert not any("Pool" in name or name in ("ReLU", "Sigmoid") for name in names)
    slopes = {module.negative_slope for module in Discriminator(4).modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.2}


def test_parameter_count_is_the_one_worked_out_by_hand() -> None:
    convolutions = 3 * 64 * 9 + 64
    for inputs, outputs in ((64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)):
        convolutions += inputs * outputs * 9 + 2 * outputs  # BatchNorm in the place of the bias
    fully_connected = 512 * 1024 + 1024 + 1024 + 1
    total = sum(parameter.numel() for parameter in Discriminator().parameters())
    assert total == convolutions + fully_connected == 5_213_569


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (37, 50), (96, 96), (1, 1)])
def test_pictures_of_any_size_are_judged(size: tuple[int, int], torch_rng: None) -> None:
    torch.manual_seed(0)
    logits = Discriminator(4)(torch.rand(3, 3, *size))
    assert logits.shape == (3,)
    assert torch.isfinite(logits).all()


def test_logits_are_unbounded_and_differ_between_pictures(torch_rng: None) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(4)
    nn.init.constant_(discriminator.judge[-1].bias, 100.0)
    logits = discriminator(torch.rand(4, 3, 24, 24))
    assert (logits > 50).all()
    assert logits.unique().numel() == 4


def test_gradient_reaches_the_picture_and_every_parameter(torch_rng: None) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(4)
    image = torch.rand(3, 3, 37, 50, requires_grad=True)
    discriminator(image).square().sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().sum((1, 2, 3)) > 0).all()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("channels", [0, -3])
def test_no_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"channels must be 1 or more, got {channels}"):
        Discriminator(channels)
