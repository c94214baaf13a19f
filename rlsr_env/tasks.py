"""What an action means: the part in which the environments differ."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeGuard

import numpy as np
import torch
from gymnasium.spaces import Box, Space
from torch import Tensor

from rlsr_env.resample import Upsampling

# From an LR picture (B, 3, h, w) float in [0, 1] to an SR picture (B, 3, scale * h, scale * w).
Restorer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PartRestorer:
    """SR pictures that are written part by part, on the CPU.

    Attributes:
        shape: Of all pictures, `(N, 3, scale * h, scale * w)`.
        write: Writes those of a slice of the environments to an array of so many, float32. It is called for one part
            after another, in several threads at a time, without gradients.
    """

    shape: tuple[int, ...]
    write: Callable[[slice, np.ndarray], None]


class Task(ABC):
    """The meaning of an action in `RestorationVectorEnv`, and whatever an episode keeps between its steps.

    One object serves all environments of a batch; `RestorationVectorEnv` copies the one that it is given.

    Attributes:
        name: The name it goes by.
        n_channels: Channels of an observation; the first three are the LR patch.
        remembers: Whether a step changes what a later action leads to.
    """

    name: ClassVar[str]
    n_channels = 3
    remembers: ClassVar[bool] = True

    @abstractmethod
    def action_space(self, lr_patch_size: int, scale: int) -> Space:
        """The action of one environment.

        Args:
            lr_patch_size: Side of the LR patch, pixels.
            scale: Upsampling factor.
        """

    def start(self, marked: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor | PartRestorer:
        """Begin episodes.

        Args:
            marked: `(N,)` bool, the environments whose episode begins; the others' must not change.
            lr_image: `(N, 3, h, w)` float in [0, 1], of all environments.
            generator: The network, or any function from LR to SR pictures.

        Returns:
            SR pictures before any action, `(N, 3, scale * h, scale * w)`; those that are not marked do not count.
            As for `restore`, a `PartRestorer` may be returned instead.
        """
        return restored_by(generator, lr_image)

    @abstractmethod
    def restore(self, actions: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor | PartRestorer:
        """The SR pictures that the actions lead to.

        Args:
            actions: `(N, ...)` float32, one action per environment; the caller's own memory, not to be kept or changed.
            lr_image: `(N, 3, h, w)` float in [0, 1].
            generator: The network, or any function from LR to SR pictures.

        Returns:
            `(N, 3, scale * h, scale * w)`; clipped and rounded to 8 bits by the caller. Or what writes them part by
            part, where they need not exist all at once, which is faster.
        """

    def observe(self, lr_image: Tensor) -> Tensor:
        """The observation: the LR patch `(N, 3, h, w)` uint8, and what the agent must know of its own doing."""
        return lr_image

    def bonus(self, actions: Tensor, values: Tensor) -> Tensor | None:
        """Reward besides the metric's gain, `(N,)`; None where there is none.

        Args:
            actions: `(N, ...)` float32.
            values: The metric of the SR pictures, `(N,)`.
        """
        return None

    def describe(self, actions: Tensor) -> dict[str, Tensor]:
        """What `info` says about the actions, each entry `(N,)`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step, as plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any], lr_image: Tensor, generator: Restorer) -> None:
        """Go on from `state_dict`, with the patches that it belongs to.

        Raises:
            ValueError: For the state of another task.
        """
        if state:
            raise ValueError(f"task {self.name} keeps nothing between steps, the state holds {sorted(state)}")


@dataclass
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
    name: ClassVar[str] = "psnr_prediction"
    CENTRE: ClassVar[float] = 30.0
    HALF_RANGE: ClassVar[float] = 20.0

    def __post_init__(self) -> None:
        """Check the weight."""
        if not is_number(self.accuracy_weight) or not 0.0 <= self.accuracy_weight < float("inf"):
            raise ValueError(f"accuracy_weight must be finite and not negative, got {self.accuracy_weight!r}")

    def action_space(self, lr_patch_size: int, scale: int) -> Box:
        """One number in [-1, 1]."""
        return Box(-1.0, 1.0, (1,), np.float32)

    def restore(self, actions: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor | PartRestorer:
        """The generator's picture, whatever the action."""
        return restored_by(generator, lr_image)

    def predicted_psnr(self, actions: Tensor) -> Tensor:
        """Actions `(N, 1)` in dB, `(N,)`; beyond [-1, 1] they count as its ends."""
        return self.CENTRE + self.HALF_RANGE * actions[:, 0].clamp(-1.0, 1.0)

    def bonus(self, actions: Tensor, values: Tensor) -> Tensor | None:
        """Minus the prediction's absolute error, weighted; a PSNR beyond the range counts as its end."""
        if self.accuracy_weight == 0.0:
            return None
        reached = values.clamp(self.CENTRE - self.HALF_RANGE, self.CENTRE + self.HALF_RANGE)
        return -self.accuracy_weight * (self.predicted_psnr(actions) - reached).abs() / self.HALF_RANGE

    def describe(self, actions: Tensor) -> dict[str, Tensor]:
        """The prediction in dB."""
        return {"predicted_psnr": self.predicted_psnr(actions).double()}


@dataclass
class SuperResolution(Task):
    """The action is the SR picture itself, so that a generator can be the policy."""

    name: ClassVar[str] = "super_resolution"
    remembers: ClassVar[bool] = False

    def action_space(self, lr_patch_size: int, scale: int) -> Box:
        """A picture `(3, scale * h, scale * w)`, -1 black and +1 white: the symmetric range that SB3 recommends."""
        return Box(-1.0, 1.0, (3, scale * lr_patch_size, scale * lr_patch_size), np.float32)

    def restore(self, actions: Tensor, lr_image: Tensor, generator: Restorer) -> Tensor | PartRestorer:
        """The action, from [-1, 1] to [0, 1]."""
        from rlsr_env.loops import can_loop, scale  # compiled by Numba, which takes its time to be imported

        if not can_loop(actions):
            return torch.add(actions.new_full((), 0.5), actions, alpha=0.5)
        values, half = actions.detach().contiguous().numpy(), np.float32(0.5)

        def write(part: slice, sr_image: np.ndarray) -> None:
            scale(half, half, values[part].reshape(-1), sr_image.reshape(-1))

        return PartRestorer(tuple(actions.shape), write)


def is_number(value: Any) -> bool:
    """Whether a setting is a real number, NumPy's included."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def restored_by(generator: Restorer, lr_image: Tensor) -> Tensor | PartRestorer:
    """The generator's pictures; part by part where it is known to work on each by itself.

    Raises:
        TypeError: For a generator that returns anything but a floating-point tensor.
        ValueError: For one that returns no pictures `(N, 3, H, W)`.
    """
    if not is_upsampling(generator) or lr_image.device.type != "cpu":
        return pictures_of(generator, lr_image)
    n, channels, height, width = lr_image.shape
    lr_values = lr_image.numpy()
    return PartRestorer(
        (n, channels, generator.scale * height, generator.scale * width),
        lambda part, sr_image: generator.write(lr_values[part], sr_image),
    )


def is_upsampling(generator: Restorer) -> TypeGuard[Upsampling]:
    """Whether a generator is known to be Lanczos upsampling: a subclass may do something else."""
    return type(generator) is Upsampling


def pictures_of(generator: Restorer, lr_image: Tensor) -> Tensor:
    """What a generator makes of LR pictures, which it may change: it gets a copy.

    Raises:
        TypeError: For a generator that returns anything but a floating-point tensor.
        ValueError: For one that returns no pictures `(N, 3, H, W)`.
    """
    sr_image = generator(lr_image.clone())
    if not isinstance(sr_image, Tensor) or not sr_image.is_floating_point():
        got = sr_image.dtype if isinstance(sr_image, Tensor) else type(sr_image).__name__
        raise TypeError(f"a generator must return floating-point pictures in [0, 1] as a tensor, it returned {got}")
    if sr_image.dim() != 4:
        raise ValueError(
            f"a generator must return pictures (N, 3, H, W), it returned {tuple(sr_image.shape)} for LR pictures "
            f"{tuple(lr_image.shape)}"
        )
    return sr_image


def known_tasks() -> dict[str, type[Task]]:
    """All tasks by name."""
    from rlsr_env.detail import DetailControl  # defined on top of this module

    return {task.name: task for task in (PSNRPrediction, SuperResolution, DetailControl)}


def choose_task(task: str | Task, **options: float) -> Task:
    """A task by name.

    Args:
        task: A name of `known_tasks`, or a task, of which a copy is returned.
        **options: The task's own settings, where a name is given.

    Raises:
        TypeError: For anything but a name or a task.
        ValueError: For an unknown name, an unknown option, or options beside a task that is built already.
    """
    if isinstance(task, Task):
        if options:
            raise ValueError(f"task options {sorted(options)} were given with a task object; set them on the object")
        return copy.deepcopy(task)
    tasks = known_tasks()
    if not isinstance(task, str):
        raise TypeError(f"task is a name or a Task, got {type(task).__name__}")
    if task not in tasks:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(tasks)}")
    known = {field.name for field in fields(tasks[task]) if field.init}  # type: ignore[arg-type]
    if unknown := set(options) - known:
        raise ValueError(f"task {task!r} has no option {sorted(unknown)}; known: {sorted(known)}")
    return tasks[task](**options)
