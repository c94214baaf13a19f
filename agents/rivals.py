"""What reinforcement learning is measured against: nothing, the metric's own gradient, evolution strategies.

Each of them fills the gradients of the generator's parameters and steps one optimiser; SRGAN's losses come in through
the same hooks as with an RL algorithm (`AdversarialUpdate.attach`).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from gan.generator import Generator
from gan.training import PatchSampler
from rlsr_env.metrics import Metric
from rlsr_env.rounding import to_8bit


class Objective(Protocol):
    """Something that a generator is trained for besides SRGAN's losses."""

    def add_gradient(self, generator: Generator) -> None:
        """Fill `.grad` of the generator's parameters."""


class NoObjective:
    """SRGAN's losses alone: the control."""

    def add_gradient(self, generator: Generator) -> None:
        """Leave everything to the hooks."""


class MetricGradient:
    """The gradient of a metric that has one, as a loss: what reinforcement learning has to do without."""

    def __init__(self, metric: Metric, sampler: PatchSampler) -> None:
        """Take a metric and the patches to judge by it.

        Raises:
            ValueError: For a metric without a gradient.
        """
        if not metric.differentiable:
            raise ValueError(f"metric {metric.name} has no gradient; that is what reinforcement learning is for")
        self.metric = metric
        self.sampler = sampler

    def add_gradient(self, generator: Generator) -> None:
        """The gradient of the mean over a batch, turned so that a step makes pictures better."""
        lr_image, hr_image = self.sampler.batch()
        sign = 1.0 if self.metric.higher_is_better else -1.0
        loss = -sign * self.metric(generator(lr_image), hr_image).mean()
        loss.backward()


class EvolutionStrategies:
    """The gradient that evolution strategies estimate in the space of weights (Salimans et al. 2017, algorithm 1).

    Mirrored perturbations of all weights; each is judged on the same batch, and the rewards are replaced by their
    ranks, from -0.5 to 0.5 (there, sec. 2.1). A perturbation costs a pass of the network, an action of GRPO does not.
    """

    def __init__(self, metric: Metric, sampler: PatchSampler, n_perturbations: int, sigma: float, seed: int) -> None:
        """Take a metric and the patches to judge by it.

        Args:
            metric: The reward, for pictures rounded to 8 bits.
            sampler: The batches.
            n_perturbations: Of an update, even and 2 or more.
            sigma: Standard deviation of a perturbation, of every weight.
            seed: Of the perturbations.

        Raises:
            ValueError: For a number out of range.
        """
        if n_perturbations < 2 or n_perturbations % 2:
            raise ValueError(f"n_perturbations must be an even number of 2 or more, got {n_perturbations}")
        if not 0.0 < sigma < math.inf:
            raise ValueError(f"sigma must be above 0, got {sigma!r}")
        self.metric = metric
        self.sampler = sampler
        self.n_perturbations = n_perturbations
        self.sigma = sigma
        self.random = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def add_gradient(self, generator: Generator) -> None:
        """The estimate, with the sign of a loss; the weights are put back to the bit."""
        parameters = list(generator.parameters())
        centre = [parameter.clone() for parameter in parameters]
        lr_image, hr_image = self.sampler.batch()
        sign = 1.0 if self.metric.higher_is_better else -1.0
        half = [[self._noise_like(weight) for weight in centre] for _ in range(self.n_perturbations // 2)]
        rewards = []
        for direction in (1.0, -1.0):
            for noise in half:
                for parameter, weight, shift in zip(parameters, centre, noise, strict=True):
                    parameter.copy_(weight + direction * self.sigma * shift)
                rewards.append(sign * self.metric(to_8bit(generator(lr_image).float()), hr_image).double().mean())
        for parameter, weight in zip(parameters, centre, strict=True):
            parameter.copy_(weight)
        first, second = centred_ranks(torch.stack(rewards)).chunk(2)
        weights = ((second - first) / (self.n_perturbations * self.sigma)).tolist()  # a loss falls where rewards rise
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.zeros_like(parameter)
            for weight, noise in zip(weights, half, strict=True):
                parameter.grad.add_(noise[number], alpha=weight)

    def _noise_like(self, weight: Tensor) -> Tensor:
        """Standard normal numbers in a weight's shape and memory format."""
        return torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=self.random))


def centred_ranks(rewards: Tensor) -> Tensor:
    """Ranks from -0.5 for the least to 0.5 for the largest; equal rewards share the mean of their ranks.

    Args:
        rewards: `(K,)`, K of 2 or more.
    """
    less = (rewards[None] < rewards[:, None]).sum(1)
    equal = (rewards[None] == rewards[:, None]).sum(1)
    return (less + (equal - 1) / 2) / (len(rewards) - 1) - 0.5


def train(
    generator: Generator, objective: Objective, optimizer: torch.optim.Optimizer, n_updates: int, grad_norm: float
) -> None:
    """Steps of an optimiser that holds the generator, each on the objective's gradient, brought to one norm.

    A metric's own scale is that of its unit, dB or bytes, and says nothing about how much its gradient should count
    beside SRGAN's. GRPO's advantages have no unit; here the norm takes their place.

    Args:
        generator: Trained in place.
        objective: Fills the gradients.
        optimizer: Of the generator's parameters; hooks on it add SRGAN's losses after the clipping.
        n_updates: How many steps.
        grad_norm: Of the objective's gradient, after which SRGAN's is added.
    """
    parameters = list(generator.parameters())
    for _ in range(n_updates):
        optimizer.zero_grad(set_to_none=True)
        objective.add_gradient(generator)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            factor = grad_norm / get_total_norm(gradients).clamp(min=1e-12)
            for gradient in gradients:
                gradient.mul_(factor)
        optimizer.step()
