"""SRGAN's losses as hooks around an optimiser's step: plain SRGAN and RL-SRGAN run this same code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gan.content import ContentLoss
from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.losses import LossWeights, Metrics, adversarial_loss, discriminator_loss, mse_loss
from gan.precision import autocast
from gan.training import PatchSampler, averaged_generator, check_scale, moving_average


@dataclass(frozen=True)
class AdversarialConfig:
    """Settings of the adversarial stage.

    Attributes:
        weights: Of the three terms (Savioli 2019, eq. 4).
        learning_rate: Adam's, for trunk, decoder and discriminator (Ledig et al. 2017: 1e-4).
        discriminator_channels: Feature maps of the discriminator's first layer.
        ema_decay: Of the generator's moving average.
        max_grad_norm: Bound on the norm of the injected gradient of trunk and decoder; None leaves it as it is.
        n_content_patches: The content loss looks at the first so many patches of a batch, all where None. The patches
            are drawn independently, so the expected gradient stays the same, and VGG19, most of an update's cost, has
            less to do.

    Raises:
        ValueError: Where `n_content_patches` is below 1.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    learning_rate: float = 1e-4
    discriminator_channels: int = 64
    ema_decay: float = 0.99
    max_grad_norm: float | None = None
    n_content_patches: int | None = None

    def __post_init__(self) -> None:
        """Check the number of patches."""
        if self.n_content_patches is not None and self.n_content_patches < 1:
            raise ValueError(f"n_content_patches must be 1 or more, or None for all, got {self.n_content_patches}")


class AdversarialUpdate:
    """SRGAN's losses as two hooks around the step of whichever optimiser holds the generator's encoder.

    Before the step, the gradient of L_SRGAN (Savioli 2019, eq. 4) is added to whatever gradient the encoder has by
    then: none in plain SRGAN, the policy's in RL-SRGAN ("one update serves both", sec. 2.2.3). After it, the decoder
    takes its own step. Plain SRGAN and RL-SRGAN run this same code, so they differ in the RL gradient only.

    The decoder and the discriminator have optimisers of their own, and leave no gradient behind: one that stayed on the
    decoder would be counted by the next gradient clipping of a policy that owns the decoder. Where the optimiser holds
    the decoder as well, because the policy's gradient reaches the picture itself, it steps the decoder.

    Attributes:
        generator: Trained in place; in evaluation mode between updates.
        discriminator: None where the adversarial weight is zero.
        ema: The generator's moving average.
        metrics: Of the last update, detached scalars.
        n_updates: Updates so far.
    """

    def __init__(
        self,
        generator: Generator,
        sampler: PatchSampler,
        content_loss: ContentLoss | None = None,
        config: AdversarialConfig | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare the update.

        Args:
            generator: The network to train, on its device.
            sampler: The batches; its pictures' scale must be the generator's.
            content_loss: The content term; None where its weight does not matter.
            config: Settings.
            seed: Of the discriminator's initial weights.

        Raises:
            ValueError: Where the sampler's scale differs from the generator's.
        """
        check_scale(generator, sampler)
        self.config = config or AdversarialConfig()
        self.generator = generator.eval()
        self.sampler = sampler
        self.content_loss = content_loss if self.config.weights.content > 0 else None
        self.device = next(generator.parameters()).device
        if self.content_loss is not None:
            self.content_loss.to(self.device)
        self.discriminator: Discriminator | None = None
        self.discriminator_optimizer: torch.optim.Adam | None = None
        if self.config.weights.adversarial > 0:
            with torch.random.fork_rng(devices=[]):  # the discriminator must not shift the policy's random stream
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA too
                discriminator = Discriminator(self.config.discriminator_channels)
            self.discriminator = discriminator.to(self.device).to(memory_format=torch.channels_last)
            self.discriminator_optimizer = torch.optim.Adam(
                self.discriminator.parameters(), lr=self.config.learning_rate
            )
        self.decoder_optimizer = torch.optim.Adam(generator.decoder.parameters(), lr=self.config.learning_rate)
        self.ema = moving_average(generator, self.config.ema_decay)
        self.metrics: Metrics = {}
        self.n_updates = 0
        self._handles: list[RemovableHandle] = []
        self._steps_decoder = True

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Run before and after each of `optimizer`'s steps, until `detach`. Attaching again replaces the hooks."""
        self.detach()
        if self.config.weights.all_zero:
            return
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._steps_decoder = held.isdisjoint(id(parameter) for parameter in self.generator.decoder.parameters())
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self.before_step()),
            optimizer.register_step_post_hook(lambda *_: self.after_step()),
        ]

    def detach(self) -> None:
        """Take the hooks away; without hooks, nothing happens."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_step(self) -> None:
        """Update the discriminator, then add the generator's gradient to its parameters' `.grad`."""
        lr_image, hr_image = self.sampler.batch()
        compute_dtype = self.generator.encoder.compute_dtype
        parameters = list(self.generator.parameters())
        # The hook runs inside SB3's training loop: gradients on, whatever the caller's mode.
        with torch.enable_grad():
            self.generator.train()
            sr_image = self.generator(lr_image)
            self.generator.eval()
            metrics = self._update_discriminator(sr_image.detach(), hr_image)
            with autocast(self.device, compute_dtype):
                loss, terms = self.generator_loss(sr_image, hr_image)
            gradients = torch.autograd.grad(loss, parameters)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.max_grad_norm is not None:
            factor = (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = tuple(gradient * factor for gradient in gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.metrics = {**metrics, **terms, "gan/loss": loss.detach(), "gan/grad_norm": norm.detach()}

    def generator_loss(self, sr_image: Tensor, hr_image: Tensor) -> tuple[Tensor, Metrics]:
        """L_SRGAN of Savioli 2019, eq. 4, and its terms; a term of weight zero is not computed.

        Args:
            sr_image: `(B, 3, H, W)` float, the generator's output.
            hr_image: `(B, 3, H, W)` float in [0, 1].
        """
        weights = self.config.weights
        loss, metrics = mse_loss(sr_image, hr_image)
        loss = weights.mse * loss
        if self.content_loss is not None:
            n = self.config.n_content_patches
            term, values = self.content_loss(sr_image[:n], hr_image[:n])
            loss, metrics = loss + weights.content * term, metrics | values
        if self.discriminator is not None:
            term, values = adversarial_loss(self.discriminator(sr_image))
            loss, metrics = loss + weights.adversarial * term, metrics | values
        return loss, metrics

    def _update_discriminator(self, sr_image: Tensor, hr_image: Tensor) -> Metrics:
        """One step of the discriminator on originals and on pictures cut off from the generator."""
        if self.discriminator is None or self.discriminator_optimizer is None:
            return {}
        with autocast(self.device, self.generator.encoder.compute_dtype):
            loss, metrics = discriminator_loss(self.discriminator(hr_image), self.discriminator(sr_image))
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimizer.step()
        return metrics

    def after_step(self) -> None:
        """Step the decoder where nobody else does, leave no gradient on it, move the average."""
        if self._steps_decoder:
            self.decoder_optimizer.step()
        self.decoder_optimizer.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.generator)
        self.n_updates += 1

    def averaged_generator(self) -> Generator:
        """A copy of the generator with the averaged weights, in evaluation mode."""
        return averaged_generator(self.ema)

    def state_dict(self) -> dict[str, Any]:
        """All that belongs to the update itself; the encoder's optimiser belongs to whoever steps it."""
        return {
            "n_updates": self.n_updates,
            "generator": self.generator.state_dict(),
            "decoder_optimizer": self.decoder_optimizer.state_dict(),
            "discriminator": self.discriminator.state_dict() if self.discriminator else None,
            "discriminator_optimizer": self.discriminator_optimizer.state_dict()
            if self.discriminator_optimizer
            else None,
            "ema": self.ema.state_dict(),
            "sampler": self.sampler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: Where one of the two has a discriminator and the other has none.
        """
        if (state["discriminator"] is None) != (self.discriminator is None):
            raise ValueError("the checkpoint and this run differ in whether the adversarial weight is zero")
        self.n_updates = state["n_updates"]
        self.generator.load_state_dict(state["generator"])
        self.decoder_optimizer.load_state_dict(state["decoder_optimizer"])
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.sampler.load_state_dict(state["sampler"])


class SRGANTraining:
    """Plain SRGAN: the adversarial update around the step of an Adam that holds nothing but the encoder."""

    def __init__(self, adversarial: AdversarialUpdate, n_updates: int) -> None:
        """Prepare the stage.

        Args:
            adversarial: The update, of the generator to train.
            n_updates: Length of the stage.
        """
        self.adversarial = adversarial
        self.n_updates = n_updates
        self.optimizer = torch.optim.Adam(
            adversarial.generator.encoder.parameters(), lr=adversarial.config.learning_rate
        )
        adversarial.attach(self.optimizer)

    @property
    def n_done(self) -> int:
        """Updates so far."""
        return self.adversarial.n_updates

    def update(self) -> Metrics:
        """One update; returns the metrics of the losses."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.step()
        return self.adversarial.metrics

    def state_dict(self) -> dict[str, Any]:
        """All that the stage needs to go on exactly."""
        return {"adversarial": self.adversarial.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.adversarial.load_state_dict(state["adversarial"])
        self.optimizer.load_state_dict(state["optimizer"])
