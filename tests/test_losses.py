import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gan.adversarial import AdversarialUpdate
from gan.content import ContentLoss
from gan.generator import Generator, GeneratorConfig
from gan.losses import LossWeights, adversarial_loss, discriminator_loss, l1_loss, mse_loss

TERMS = ("mse", "content", "adversarial")


def only(term: str) -> LossWeights:
    return LossWeights(**{name: 1.0 if name == term else 0.0 for name in TERMS})


def test_pixel_losses_by_hand() -> None:
    sr_image = torch.tensor([0.0, 0.5, 1.0, 0.25]).view(1, 1, 2, 2)
    hr_image = torch.tensor([0.0, 0.0, 0.5, 0.75]).view(1, 1, 2, 2)
    mse, metrics = mse_loss(sr_image, hr_image)
    assert mse.item() == pytest.approx(3 * 0.25 / 4)
    assert metrics["gan/mse"].item() == mse.item()
    l1, metrics = l1_loss(sr_image, hr_image)
    assert l1.item() == pytest.approx(3 * 0.5 / 4)
    assert metrics["gan/l1"].item() == l1.item()


def test_adversarial_loss_is_minus_log_of_the_judgement() -> None:
    # sigmoid(0) = 1/2 and sigmoid(log 3) = 3/4.
    loss, metrics = adversarial_loss(torch.tensor([0.0, math.log(3)]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert metrics["gan/adversarial"].item() == loss.item()


def test_adversarial_gradient_does_not_vanish_where_the_discriminator_is_right() -> None:
    logits = torch.tensor([-30.0, 0.0, 30.0], requires_grad=True)
    adversarial_loss(logits)[0].backward()
    assert logits.grad is not None
    assert (3 * logits.grad).tolist() == pytest.approx([-1.0, -0.5, 0.0])


def test_discriminator_loss_by_hand() -> None:
    real, fake = torch.tensor([math.log(3), 0.0]), torch.tensor([-math.log(3), math.log(3)])
    loss, metrics = discriminator_loss(real, fake)
    # -log D(HR): 3/4 and 1/2; -log(1 - D(G(LR))): 1 - 1/4 and 1 - 3/4.
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2 + (math.log(4 / 3) + math.log(4)) / 2)
    assert metrics["gan/discriminator"].item() == loss.item()
    assert metrics["gan/d_real"].item() == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert metrics["gan/d_fake"].item() == pytest.approx((1 / 4 + 3 / 4) / 2)


def test_an_undecided_discriminator_costs_log_4() -> None:
    assert discriminator_loss(torch.zeros(5), torch.zeros(5))[0].item() == pytest.approx(math.log(4))


def test_far_judgements_stay_finite_and_linear() -> None:
    assert adversarial_loss(torch.tensor([-1e4]))[0].item() == pytest.approx(1e4)
    assert discriminator_loss(torch.tensor([-1e4]), torch.tensor([1e4]))[0].item() == pytest.approx(2e4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_float32_and_metrics_have_no_graph(dtype: torch.dtype) -> None:
    image = torch.rand(2, 3, 4, 4, requires_grad=True)
    logits = torch.randn(2, dtype=dtype, requires_grad=True)
    for loss, metrics in (
        mse_loss(image, image.detach() + 1),
        l1_loss(image, image.detach() + 1),
        adversarial_loss(logits),
        discriminator_loss(logits, -logits),
    ):
        assert loss.dtype == torch.float32
        assert loss.requires_grad
        assert loss.ndim == 0
        assert all(name.startswith("gan/") and not value.requires_grad for name, value in metrics.items())


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("term", TERMS)
def test_weights_that_make_no_sense_are_refused(term: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"loss weight {term} must be finite and not negative, got {value}"):
        LossWeights(**{term: value})


def test_weights_are_ledigs_by_default_and_know_when_they_are_all_zero() -> None:
    assert LossWeights() == LossWeights(mse=1.0, content=0.006, adversarial=0.001)
    assert LossWeights(0.0, 0.0, 0.0).all_zero
    assert not any(only(term).all_zero for term in TERMS)


def gradients(generator: Generator) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in generator.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_gives_every_parameter_a_gradient(
    term: str,
    make_generator: Callable[..., Generator],
    make_update: Callable[..., AdversarialUpdate],
    content_loss: ContentLoss,
) -> None:
    generator = make_generator()
    update = make_update(generator, content_loss, weights=only(term))
    update.before_step()
    found = gradients(generator)
    assert found.keys() == dict(generator.named_parameters()).keys()
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all(), name
        assert gradient.abs().sum() > 0, name
    assert update.metrics["gan/grad_norm"] > 0


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_moves_the_residual_generator_off_its_base(
    term: str,
    make_generator: Callable[..., Generator],
    make_update: Callable[..., AdversarialUpdate],
    content_loss: ContentLoss,
) -> None:
    generator = make_generator(GeneratorConfig(scale=2, channels=8, n_blocks=1))
    update = make_update(generator, content_loss, weights=only(term))
    update.before_step()
    # The last layer is zero, so only it can have a gradient; once it has moved, all of them do.
    assert generator.decoder.layers[-1].convolution.weight.grad.abs().sum() > 0
    update.after_step()
    generator.zero_grad(set_to_none=True)
    update.before_step()
    assert all(gradient.abs().sum() > 0 for gradient in gradients(generator).values())


def test_loss_is_the_weighted_sum_of_its_terms(
    make_generator: Callable[..., Generator],
    make_update: Callable[..., AdversarialUpdate],
    content_loss: ContentLoss,
) -> None:
    update = make_update(make_generator(), content_loss, weights=LossWeights(2.0, 0.5, 0.25))
    loss, metrics = update.generator_loss(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))
    expected = 2.0 * metrics["gan/mse"] + 0.5 * metrics["gan/content"] + 0.25 * metrics["gan/adversarial"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_discriminators_own_loss_gives_the_generator_nothing(
    make_generator: Callable[..., Generator], make_update: Callable[..., AdversarialUpdate]
) -> None:
    alone, judged = make_generator(), make_generator()
    without = make_update(alone, weights=only("mse"))
    # A weight this small vanishes beside the pixel loss's gradient in float32; the discriminator's own loss would not.
    beside = make_update(judged, weights=LossWeights(1.0, 0.0, 1e-30))
    assert beside.discriminator is not None
    before = [parameter.clone() for parameter in beside.discriminator.parameters()]
    without.before_step()
    beside.before_step()
    for name, gradient in gradients(alone).items():
        assert torch.equal(gradient, gradients(judged)[name]), name
    assert any(not torch.equal(old, new) for old, new in zip(before, beside.discriminator.parameters(), strict=True))


def test_generators_loss_gives_the_discriminator_nothing(
    make_generator: Callable[..., Generator], make_update: Callable[..., AdversarialUpdate]
) -> None:
    update = make_update(make_generator(), weights=only("adversarial"))
    assert update.discriminator is not None
    assert update.discriminator_optimizer is not None
    update.discriminator_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    update.before_step()
    left_by_own_loss = [parameter.grad.clone() for parameter in update.discriminator.parameters()]
    own_loss = discriminator_loss  # the same gradients come from the discriminator's loss alone
    again = make_update(make_generator(), weights=only("adversarial"))
    assert again.discriminator is not None
    lr_image, hr_image = again.sampler.batch()
    with torch.no_grad():
        sr_image = again.generator.train()(lr_image)
    own_loss(again.discriminator(hr_image), again.discriminator(sr_image))[0].backward()
    for expected, parameter in zip(left_by_own_loss, again.discriminator.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(expected, parameter.grad, rtol=1e-4, atol=1e-7)
