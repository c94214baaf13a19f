"""Rewards: from a metric's values before and after an action to one number for each env.

Every reward takes *oriented* values, of which the larger is the better. For a metric where lower is better, negate
the values before and after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Reward(Protocol):
    """Anything that turns oriented metric values into rewards."""

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """Reward the step from `before` to `after`.

        Args:
            before: Oriented metric values before the action, `(N,)`.
            after: Oriented metric values after it, `(N,)`.

        Returns:
            One reward for each env, `(N,)`, float32.
        """
        ...


@dataclass(frozen=True)
class Threshold:
    """+1 where the metric rose, else `lower` (Savioli 2019, eq. 5).

    Attributes:
        lower: The reward where it did not rise; the text leaves 0 and -1 open. Finite and below 1.
    """

    lower: float = -1.0

    def __post_init__(self) -> None:
        """Refuse a lower value that would not punish."""
        if not (math.isfinite(self.lower) and self.lower < 1):
            raise ValueError(f"Threshold needs a finite lower value below its upper one of 1, got {self.lower}.")

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """Reward a rise; equal values, infinite ones too, are none.

        Args:
            before: Oriented metric values before the action, `(N,)`.
            after: Oriented metric values after it, `(N,)`.

        Returns:
            Values 1 or `lower`, `(N,)`, float32.

        Raises:
            ValueError: If the shapes differ or a value is NaN.
        """
        _check_values(before, after)
        upper = torch.ones_like(after, dtype=torch.float32)
        return torch.where(after > before, upper, self.lower * upper)


@dataclass(frozen=True)
class Improvement:
    """How much the metric rose, in the metric's unit.

    Attributes:
        scale: A factor on the rise. Finite and above 0.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a scale that would erase or turn around the reward."""
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"Improvement needs a finite scale above 0, got {self.scale}.")

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """Reward the rise, computed in the values' own dtype before it is rounded to float32.

        Equal infinities (a PSNR of identical pictures, twice) are a rise of 0; a step between a finite value and an
        infinite one is infinite.

        Args:
            before: Oriented metric values before the action, `(N,)`.
            after: Oriented metric values after it, `(N,)`.

        Returns:
            `scale * (after - before)`, `(N,)`, float32.

        Raises:
            ValueError: If the shapes differ or a value is NaN.
        """
        _check_values(before, after)
        rise = after - before
        return (self.scale * torch.where(after == before, torch.zeros_like(rise), rise)).float()


REWARDS: dict[str, Reward] = {"threshold": Threshold(), "improvement": Improvement()}


def reward(name: str | Reward) -> Reward:
    """Look a reward up by name.

    Args:
        name: A key of `REWARDS`, or a callable on `(before, after)`, which is returned as it is.

    Returns:
        The reward.

    Raises:
        TypeError: If it is neither a name nor a callable.
        ValueError: If no reward has that name.
    """
    if callable(name):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a reward is a name or a callable, got {type(name).__name__}")
    if name not in REWARDS:
        raise ValueError(f"Unknown reward {name!r}; use one of {', '.join(sorted(REWARDS))}, or pass a callable.")
    return REWARDS[name]


def _check_values(before: Tensor, after: Tensor) -> None:
    """Raise unless there is one value before and one after for each env."""
    if before.shape != after.shape:
        raise ValueError(
            f"A reward needs one metric value before and one after for each env, got shapes {tuple(before.shape)} "
            f"and {tuple(after.shape)}."
        )
    n_nan = int((torch.isnan(before) | torch.isnan(after)).sum())
    if n_nan:
        raise ValueError(
            f"The metric returned NaN for {n_nan} of {after.numel()} pictures; check that the SR pictures are finite."
        )
