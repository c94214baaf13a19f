"""What an action means: the part in which the environments differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Box, Space
from torch import Tensor

# From an LR picture (B, 3, h, w) float in [0, 1] to an SR picture (B, 3, scale * h, scale * w).
Restorer = Callable[[Tensor], Tensor]


class Task(ABC):
    """The meaning of an action in `RestorationVectorEnv`.

    Attributes:
        name: The name it goes by.
        single_action_space: The action of one environment.
    """

    name: str
    single_action_space: Space

    @abstractmethod
    def restore(self, actions: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor:
        """The SR pictures that the actions lead to.

        Args:
            actions: `(N, ...)` float32, one action per environment.
            lr_image: `(N, 3, h, w)` float in [0, 1].
            generator: The network, or any function from LR to SR pictures.

        Returns:
            `(N, 3, scale * h, scale * w)`; clipped and rounded to 8 bits by the caller.
        """

    def bonus(self, actions: Tensor, values: Tensor) -> Tensor | None:
        """Reward besides the metric's gain, `(N,)`; None where there is none.

        Args:
            actions: `(N, ...)` float32.
            values: The metric of the SR pictures, `(N,)`.
        """
        return None

    def describe(self, actions: Tensor) -> dict[str, np.ndarray]:
        """What `info` says about the actions, each entry `(N,)`."""
        return {}


@dataclass(frozen=True)
class PSNRPrediction(Task):
    """The paper's actor: the action predicts the PSNR that the generator reaches, and does not change the picture.

    An action of -1 means `CENTRE - HALF_RANGE` = 10 dB, one of +1 means 50 dB (Savioli 2019, sec. 2.1; the range is
    ours).

    Attributes:
        accuracy_weight: Weight of the optional reward for a prediction that is right: minus the absolute error in units
            of `HALF_RANGE` = 20 dB. 0 in the paper, whose reward does not depend on the action.

    Raises:
        ValueError: For a weight that is negative or not finite.
    """

    accuracy_weight: float = 0.0
    name = "psnr_prediction"
    CENTRE = 30.0
    HALF_RANGE = 20.0

    def __post_init__(self) -> None:
        """Check the weight."""
        if not 0.0 <= self.accuracy_weight < float("inf"):
            raise ValueError(f"accuracy_weight must be finite and not negative, got {self.accuracy_weight!r}")

    @property
    def single_action_space(self) -> Box:  # type: ignore[override]
        """One number in [-1, 1]."""
        return Box(-1.0, 1.0, (1,), np.float32)

    def restore(self, actions: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor:
        """The generator's picture, whatever the action."""
        return generator(lr_image)

    def predicted_psnr(self, actions: Tensor) -> Tensor:
        """Actions `(N, 1)` in dB, `(N,)`."""
        return self.CENTRE + self.HALF_RANGE * actions[:, 0]

    def bonus(self, actions: Tensor, values: Tensor) -> Tensor | None:
        """Minus the prediction's absolute error, weighted; a PSNR beyond the range counts as its end."""
        if self.accuracy_weight == 0.0:
            return None
        reached = values.clamp(self.CENTRE - self.HALF_RANGE, self.CENTRE + self.HALF_RANGE)
        return -self.accuracy_weight * (self.predicted_psnr(actions) - reached).abs() / self.HALF_RANGE

    def describe(self, actions: Tensor) -> dict[str, np.ndarray]:
        """The prediction in dB."""
        return {"predicted_psnr": self.predicted_psnr(actions).double().cpu().numpy()}


TASKS: dict[str, type[Task]] = {PSNRPrediction.name: PSNRPrediction}


def choose_task(task: str | Task, **options: float) -> Task:
    """A task by name.

    Args:
        task: A name in `TASKS`, or a task, which is returned as it is.
        **options: The task's own settings, where a name is given.

    Raises:
        ValueError: For an unknown name, an unknown option, or options beside a task that is built already.
    """
    if isinstance(task, Task):
        if options:
            raise ValueError(f"task options {sorted(options)} were given with a task object; set them on the object")
        return task
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    known = set(TASKS[task].__dataclass_fields__)  # type: ignore[attr-defined]
    if unknown := set(options) - known:
        raise ValueError(f"task {task!r} has no option {sorted(unknown)}; known: {sorted(known)}")
    return TASKS[task](**options)
