"""Batches, the generator's moving average, and its pretraining."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gan.generator import Generator
from gan.losses import PIXEL_LOSSES, Metrics
from rlsr_env.patches import PatchSource, to_float

Tensors = tuple[Tensor, ...] | list[Tensor]


class PatchSampler:
    """An endless, seeded stream of training batches from a `PatchSource`.

    Two samplers of the same source and seed give the same batches: that is how methods are compared on equal data.
    """

    def __init__(self, source: PatchSource, batch_size: int, seed: int) -> None:
        """Start a stream.

        Args:
            source: Where patches come from.
            batch_size: Patches a batch.
            seed: Seed of the stream.

        Raises:
            ValueError: For a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self.source = source
        self.batch_size = batch_size
        self.rng = np.random.default_rng(seed)

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next LR and HR patches, `(B, 3, p, p)` and `(B, 3, scale * p, scale * p)` float32 in [0, 1]."""
        lr_image, hr_image = self.source.gather(self.source.draw(self.rng, self.batch_size))
        return to_float(lr_image), to_float(hr_image)

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream."""
        return dict(self.rng.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        self.rng.bit_generator.state = state


def check_scale(generator: Generator, sampler: PatchSampler) -> None:
    """Refuse batches of another scale than the generator's."""
    if sampler.source.codec.scale != generator.config.scale:
        raise ValueError(
            f"the generator upsamples by {generator.config.scale}, the training pictures' LR files are shrunk by "
            f"{sampler.source.codec.scale}; give both the same scale"
        )


def moving_average(generator: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a network's parameters and buffers.

    The first update copies. From then on the decay rises to `decay` with the number of updates n so far as
    (1 + n) / (10 + n), so that an average over few updates does not lag at the start.

    Raises:
        ValueError: For a decay outside [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"ema_decay must be in [0, 1), got {decay!r}")

    @torch.no_grad()
    def average(averaged: Tensors, current: Tensors, n_averaged: Tensor | int) -> None:
        n = int(n_averaged)
        weight = 1.0 - min(decay, (1 + n) / (10 + n))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:  # BatchNorm's counter of batches
                mean.copy_(value)

    return AveragedModel(generator, multi_avg_fn=average, use_buffers=True)


@dataclass(frozen=True)
class LatePhase:
    """How the last part of a `Pretraining` differs: larger patches, whose borders weigh less, and another loss.

    Attributes:
        sampler: Its batches.
        share: Of all updates, at the end; in [0, 1].
        loss: One of `PIXEL_LOSSES`.

    Raises:
        ValueError: For a share outside [0, 1] or an unknown loss.
    """

    sampler: PatchSampler
    share: float
    loss: str = "l1"

    def __post_init__(self) -> None:
        """Check share and loss."""
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"the late phase's share must be in [0, 1], got {self.share!r}")
        check_loss(self.loss)


def check_loss(name: str) -> None:
    """Refuse the name of a pixel loss that there is not."""
    if name not in PIXEL_LOSSES:
        raise ValueError(f"unknown loss {name!r}; known: {', '.join(PIXEL_LOSSES)}")


class Pretraining:
    """First stage: the generator alone, a pixel loss, Adam with a cosine schedule, moving average.

    Every published SRGAN starts from such a network (Ledig et al. 2017, sec. 3.2).
    """

    def __init__(
        self,
        generator: Generator,
        sampler: PatchSampler,
        n_updates: int,
        learning_rate: float = 5e-4,
        ema_decay: float = 0.999,
        loss: str = "l1",
        late: LatePhase | None = None,
    ) -> None:
        """Prepare the stage.

        Args:
            generator: Trained in place.
            sampler: The batches.
            n_updates: Length of the stage, and of the cosine schedule.
            learning_rate: Adam's, at its height (after a short warm-up).
            ema_decay: Of the moving average.
            loss: One of `PIXEL_LOSSES`.
            late: What the last updates do otherwise.

        Raises:
            ValueError: Where a sampler's scale differs from the generator's, or for an unknown loss.
        """
        check_scale(generator, sampler)
        check_loss(loss)
        if late is not None:
            check_scale(generator, late.sampler)
        self.loss = loss
        self.late = late
        self.generator = generator
        self.sampler = sampler
        self.n_updates = n_updates
        self.n_done = 0
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=learning_rate)
        warm_up = max(1, min(100, n_updates // 10))

        def factor(n: int) -> float:
            return min(1.0, (n + 1) / warm_up) * (0.5 + 0.5 * float(np.cos(np.pi * n / max(1, n_updates)))) + 1e-3

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.ema = moving_average(generator, ema_decay)

    def update(self) -> Metrics:
        """One update; returns the loss, by default as `{"gan/l1": ...}`."""
        sampler, name = self.sampler, self.loss
        if self.late is not None and self.n_done >= round((1 - self.late.share) * self.n_updates):
            sampler, name = self.late.sampler, self.late.loss
        lr_image, hr_image = sampler.batch()
        self.generator.train()
        loss, metrics = PIXEL_LOSSES[name](self.generator(lr_image), hr_image)
        self.generator.eval()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.ema.update_parameters(self.generator)
        self.n_done += 1
        return metrics

    def averaged_generator(self) -> Generator:
        """A copy of the generator with the averaged weights, in evaluation mode."""
        return averaged_generator(self.ema)

    def state_dict(self) -> dict[str, Any]:
        """All that the stage needs to go on exactly."""
        return {
            "n_done": self.n_done,
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict(),
            "sampler": self.sampler.state_dict(),
            "late_sampler": None if self.late is None else self.late.sampler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.n_done = state["n_done"]
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.ema.load_state_dict(state["ema"])
        self.sampler.load_state_dict(state["sampler"])
        if self.late is not None and state["late_sampler"] is not None:
            self.late.sampler.load_state_dict(state["late_sampler"])


def averaged_generator(ema: AveragedModel) -> Generator:
    """A copy of a moving average's network, in evaluation mode."""
    generator = copy.deepcopy(ema.module)
    assert isinstance(generator, Generator)
    return generator.requires_grad_(True).eval()
