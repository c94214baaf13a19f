"""SRGAN's losses in every update of an SB3 algorithm."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch.utils.hooks import RemovableHandle

from agents.policies import trunk_parameters
from gan.adversarial import AdversarialUpdate
from gan.generator import Generator
from rlsr_env.files import write_whole
from rlsr_env.tasks import SuperResolution

Schedule = Literal["update", "step"]
# By the name of the class, so that sb3-contrib need not be installed.
WITHOUT_STEP = {
    "TRPO": "moves the trunk by a line search without an optimiser step, so SRGAN gradients would miss it or break its "
    "trust region",
    "ARS": "tries random changes of its weights and takes no gradient, so there is no update to add SRGAN's to",
}


def _optimizer_of_trunk(model: Any) -> th.optim.Optimizer:
    """The optimiser that steps the shared trunk."""
    trunk = {id(parameter) for parameter in trunk_parameters(model.policy)}
    # Off-policy algorithms have an optimiser for the actor, DQN and the on-policy ones a single one.
    for owner in (model.policy, getattr(model.policy, "actor", None)):
        optimizer = getattr(owner, "optimizer", None)
        if isinstance(optimizer, th.optim.Optimizer):
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if trunk <= held:
                return optimizer
    raise ValueError(
        f"{type(model).__name__}'s policy has no optimiser that holds its trunk, so there is no step to add the SRGAN "
        "losses to; take A2C or PPO with TrunkActorCriticPolicy, or another algorithm with with_trunk(its policy)"
    )


def _check_algorithm(model: Any, schedule: Schedule) -> None:
    """Refuse algorithms that leave no step of the trunk to add gradients to."""
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in WITHOUT_STEP:
            raise ValueError(f"{ancestor.__name__} {WITHOUT_STEP[ancestor.__name__]}; take A2C or PPO")
    if schedule == "step" and isinstance(model, OffPolicyAlgorithm):
        raise ValueError(
            f'schedule "step" counts the steps of a rollout, which {type(model).__name__} does not have: it learns '
            'from a replay buffer; take schedule "update"'
        )


class AdversarialLossCallback(BaseCallback):
    """Adds the gradients of L_SRGAN = L_MSE + a L_VGG + b L_GAN to every update of the algorithm.

    They are added in `optimizer.register_step_pre_hook`, that is just before the step and after SB3 has clipped the RL
    gradient: `max_grad_norm` of the algorithm bounds the RL part alone, `AdversarialConfig.max_grad_norm` the SRGAN
    part. Both norms are logged (`train/trunk_grad_norm` before the SRGAN part is added, `gan/grad_norm`).

    The hooks are registered at the start of `learn` and removed at its end. `learn` does not end properly after an
    exception; the next one replaces hooks that were left behind.

    Schedules:
        `"update"`: one SRGAN update within each of the algorithm's updates.
        `"step"`: the paper's (Savioli 2019, sec. 2.2.3): an SRGAN update at every environment step, and at every T-th,
        where the rollout is complete, one update for both losses. With A2C that makes T SRGAN updates a rollout. For
        on-policy algorithms only.

    Serves every algorithm whose optimiser holds the trunk: A2C and PPO with `TrunkActorCriticPolicy`, RecurrentPPO, DQN
    and those with an actor (SAC, TQC, TD3, DDPG, CrossQ) with `agents.trunk_policies.with_trunk`; where the actor's
    update is delayed, so is SRGAN's. TRPO and ARS move the trunk without such a step and are refused.

    To save and go on later: `model.save(a)` and `callback.save(b)`; then `model = A2C.load(a, env=...)`,
    `env.generator = model.policy.generator`, `callback.load(b)`, `model.learn(..., callback=callback,
    reset_num_timesteps=False)`.

    Attributes:
        n_steps_of_trunk: Steps of the trunk's optimiser during `learn`, each of which ran the hooks once.
    """

    def __init__(
        self,
        make_update: Callable[[Generator], AdversarialUpdate],
        schedule: Schedule = "update",
        verbose: int = 0,
    ) -> None:
        """Prepare the callback.

        Args:
            make_update: Builds the adversarial update for the policy's generator, at the first `learn` with it; for
                example `lambda generator: AdversarialUpdate(generator, sampler, content_loss)`.
            schedule: `"update"` or `"step"`.
            verbose: As in SB3.

        Raises:
            ValueError: For an unknown schedule.
        """
        super().__init__(verbose)
        if schedule not in ("update", "step"):
            raise ValueError(f"unknown schedule {schedule!r}; known: update, step")
        self.schedule = schedule
        self.n_steps_of_trunk = 0
        self._make_update = make_update
        self._adversarial: AdversarialUpdate | None = None
        self._pending_state: dict[str, Any] | None = None
        self._handles: list[RemovableHandle] = []
        self._n_rollout_steps = 0

    @property
    def adversarial(self) -> AdversarialUpdate:
        """The adversarial update, with discriminator, optimisers and the generator's moving average.

        Raises:
            ValueError: Before the first `learn`.
        """
        if self._adversarial is None:
            raise ValueError("the adversarial update is built when learn() starts; call learn() first")
        return self._adversarial

    @property
    def n_updates(self) -> int:
        """SRGAN updates so far, over all `learn` calls and the checkpoint that was loaded."""
        if self._pending_state is not None:
            return self._pending_state["n_updates"]
        return 0 if self._adversarial is None else self._adversarial.n_updates

    def _init_callback(self) -> None:
        """Build the update for the policy's generator; hooks that an interrupted `learn` left behind go first."""
        self._remove_hooks()
        _check_algorithm(self.model, self.schedule)
        self._optimizer = _optimizer_of_trunk(self.model)
        generator = self.model.policy.generator
        assert isinstance(generator, Generator)
        self._warn_of_other_generator(generator)
        if self._adversarial is None or self._adversarial.generator is not generator:
            before, self._adversarial = self._adversarial, self._make_update(generator)
            if before is not None and self._pending_state is None:
                # A model that was loaded goes on with the same callback: everything but its own generator is here.
                self._adversarial.load_state_dict(before.state_dict() | {"generator": generator.state_dict()})
        if self._pending_state is not None:
            self._adversarial.load_state_dict(self._pending_state)
            self._pending_state = None

    def _warn_of_other_generator(self, generator: Generator) -> None:
        """Say so where the environment judges a generator that nobody trains."""
        try:
            judged = self.training_env.get_attr("generator")
            tasks = self.training_env.get_attr("task")
        except AttributeError:
            return
        if all(isinstance(task, SuperResolution) for task in tasks):
            return  # the action is the picture; the environment's generator is what it is compared with
        if any(other is not generator for other in judged):
            warnings.warn(
                "the environment judges another generator than the one that is trained; set env.generator = "
                "model.policy.generator, also after loading a model",
                UserWarning,
                stacklevel=2,
            )

    def _on_training_start(self) -> None:
        """Register the hooks."""
        self._handles = [self._optimizer.register_step_pre_hook(lambda *_: self._count())]
        self.adversarial.attach(self._optimizer)
        self._handles.append(self._optimizer.register_step_post_hook(lambda *_: self._log()))

    def _on_rollout_start(self) -> None:
        self._n_rollout_steps = 0

    def _on_step(self) -> bool:
        """In schedule `step`, an SRGAN update by itself, except where the algorithm's own update follows."""
        self._n_rollout_steps += 1
        n_steps = getattr(self.model, "n_steps", 1)
        if self.schedule == "step" and self._n_rollout_steps < n_steps and not self.adversarial.config.weights.all_zero:
            self._optimizer.zero_grad(set_to_none=True)
            self._optimizer.step()
        return True

    def _on_training_end(self) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        """Take all hooks off the optimiser."""
        if self._adversarial is not None:
            self._adversarial.detach()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _count(self) -> None:
        """Before the SRGAN gradients: count the step, note the norm of what is there."""
        self.n_steps_of_trunk += 1
        gradients = [p.grad for p in trunk_parameters(self.model.policy) if p.grad is not None]
        if gradients:
            self.logger.record_mean("train/trunk_grad_norm", th.nn.utils.get_total_norm(gradients).item())

    def _log(self) -> None:
        """After the step: the metrics of the losses, averaged by the logger over the updates between two dumps."""
        for name, value in self.adversarial.metrics.items():
            self.logger.record_mean(name, float(value))

    def state_dict(self) -> dict[str, Any]:
        """Discriminator, optimisers, moving average and position in the data; the policy is in SB3's own file."""
        return {"adversarial": self.adversarial.state_dict(), "n_steps_of_trunk": self.n_steps_of_trunk}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, with the same agent or, at the next `learn`, with one loaded from a file."""
        self.n_steps_of_trunk = state["n_steps_of_trunk"]
        self._pending_state = state["adversarial"]
        if self._adversarial is not None:
            self._adversarial.load_state_dict(state["adversarial"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint of the callback beside the model's own; whole or not at all.

        Args:
            path: File to write.
        """
        write_whole(path, lambda file: th.save(self.state_dict(), file))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from `save`.

        Args:
            path: File to read.

        Raises:
            FileNotFoundError: Where there is none.
            ValueError: For a file that `save` did not write.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no checkpoint of the callback at {path}; save one with callback.save(path)")
        try:
            state = th.load(path, map_location=self.model.device if hasattr(self, "model") else "cpu")
            state = {key: state[key] for key in ("adversarial", "n_steps_of_trunk")}
        except Exception as error:  # foreign bytes lead the unpickler into any kind of exception
            raise ValueError(f"{path} is no checkpoint of this callback; save one with callback.save(path)") from error
        self.load_state_dict(state)
