"""The terms of SRGAN's loss; each returns `(loss, metrics)`, the metrics detached and under `gan/...`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Metrics = dict[str, Tensor]
PixelLoss = Callable[[Tensor, Tensor], tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class LossWeights:
    """Weights of Savioli 2019, eq. 4: L_SRGAN = mse * L_MSE + content * L_VGG + adversarial * L_GAN.

    The paper gives none. Ledig et al. 2017 scale VGG19's conv5_4 features by 1/12.75, which is 0.006 on the squared
    error of the raw features, and weigh the adversarial term by 0.001.

    Raises:
        ValueError: For a weight that is negative or not finite.
    """

    mse: float = 1.0
    content: float = 0.006
    adversarial: float = 1e-3

    def __post_init__(self) -> None:
        """Check every weight."""
        for name in ("mse", "content", "adversarial"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"loss weight {name} must be finite and not negative, got {value!r}")

    @property
    def all_zero(self) -> bool:
        """Whether there is nothing to train for."""
        return self.mse == self.content == self.adversarial == 0.0


def mse_loss(sr_image: Tensor, hr_image: Tensor) -> tuple[Tensor, Metrics]:
    """Pixel loss, Savioli 2019, eq. 2: the mean squared error of pictures `(B, 3, H, W)` in [0, 1]."""
    loss = functional.mse_loss(sr_image, hr_image)
    return loss, {"gan/mse": loss.detach()}


def l1_loss(sr_image: Tensor, hr_image: Tensor) -> tuple[Tensor, Metrics]:
    """Mean absolute error of pictures `(B, 3, H, W)` in [0, 1]; what the generator is pretrained with."""
    loss = functional.l1_loss(sr_image, hr_image)
    return loss, {"gan/l1": loss.detach()}


def charbonnier_loss(sr_image: Tensor, hr_image: Tensor) -> tuple[Tensor, Metrics]:
    """Mean absolute error, made smooth at zero, of pictures `(B, 3, H, W)` in [0, 1] (Lai et al. 2017, sec. 3.3)."""
    loss = ((sr_image - hr_image).square() + 1e-6).sqrt().mean()
    return loss, {"gan/charbonnier": loss.detach()}


def adversarial_loss(fake_logits: Tensor) -> tuple[Tensor, Metrics]:
    """The generator's side of Savioli 2019, eq. 1, in the form -log D(G(LR)).

    Its gradient does not vanish while the discriminator is right, unlike that of log(1 - D(G(LR))) (Goodfellow et al.
    2014, sec. 3; Ledig et al. 2017, eq. 6).

    Args:
        fake_logits: `(B,)`, the discriminator's judgement of generated pictures.
    """
    loss = functional.softplus(-fake_logits.float()).mean()
    return loss, {"gan/adversarial": loss.detach()}


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Metrics]:
    """The discriminator's side of Savioli 2019, eq. 1: -log D(HR) - log(1 - D(G(LR))).

    Args:
        real_logits: `(B,)`, judgement of originals.
        fake_logits: `(B,)`, judgement of generated pictures, cut off from the generator.
    """
    real_logits, fake_logits = real_logits.float(), fake_logits.float()
    loss = functional.softplus(-real_logits).mean() + functional.softplus(fake_logits).mean()
    return loss, {
        "gan/discriminator": loss.detach(),
        "gan/d_real": torch.sigmoid(real_logits.detach()).mean(),
        "gan/d_fake": torch.sigmoid(fake_logits.detach()).mean(),
    }


# By name, for command lines: what a generator can be trained with before, or without, a discriminator.
PIXEL_LOSSES: dict[str, PixelLoss] = {"l1": l1_loss, "charbonnier": charbonnier_loss, "mse": mse_loss}
