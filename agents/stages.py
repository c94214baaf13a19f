"""Stages of a run that can stop between two updates and go on exactly: pretraining, SRGAN, RL-SRGAN."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.callbacks import AdversarialLossCallback
from agents.interruption import Interruption
from agents.policies import TrunkActorCriticPolicy
from agents.vec_env import GymnasiumVecEnv
from gan.adversarial import AdversarialUpdate, SRGANTraining
from gan.generator import Generator
from gan.losses import Metrics
from gan.training import Pretraining
from rlsr_env.vector_env import RestorationVectorEnv

OnUpdate = Callable[[Metrics], None]


class Stage(Protocol):
    """A number of updates."""

    n_updates: int

    @property
    def n_done(self) -> int:
        """Updates so far."""

    def run(self, on_update: OnUpdate, interruption: Interruption) -> None:
        """Do the updates that are left; return early where an interruption is requested."""

    def averaged_generator(self) -> Generator:
        """What the stage has come to: the moving average of the generator."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


class SupervisedStage:
    """Pretraining or plain SRGAN: a loop over updates."""

    def __init__(self, training: Pretraining | SRGANTraining) -> None:
        """Wrap a training."""
        self.training = training
        self.n_updates = training.n_updates

    @property
    def n_done(self) -> int:
        """Updates so far."""
        return self.training.n_done

    def run(self, on_update: OnUpdate, interruption: Interruption) -> None:
        """Do the updates that are left; return early where an interruption is requested."""
        while self.n_done < self.n_updates and not interruption.requested:
            on_update(self.training.update())

    def averaged_generator(self) -> Generator:
        """The moving average of the generator."""
        if isinstance(self.training, SRGANTraining):
            return self.training.adversarial.averaged_generator()
        return self.training.averaged_generator()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.training.load_state_dict(state)


class StopBetweenRollouts(Exception):
    """Leaves `learn` where the state is whole; returning False from a step would do so in the middle of a rollout."""


class Watch(BaseCallback):
    """Reports updates as they come, and stops between two rollouts where an interruption is requested."""

    def __init__(self, stage: AgentStage, on_update: OnUpdate, interruption: Interruption) -> None:
        """Watch a stage.

        Args:
            stage: The stage whose agent learns.
            on_update: Takes the metrics of each update.
            interruption: Somebody's wish to stop.
        """
        super().__init__()
        self.stage = stage
        self.on_update = on_update
        self.interruption = interruption
        self.n_reported = stage.n_done
        self.reward = 0.0

    def _on_rollout_start(self) -> None:
        self._report()
        if self.interruption.requested:
            raise StopBetweenRollouts

    def _on_step(self) -> bool:
        if "rewards" in self.locals:  # GRPO has none where the metric failed
            self.reward = float(th.as_tensor(self.locals["rewards"]).float().mean())
        self._report()
        return True

    def _on_training_end(self) -> None:
        self._report()

    def _report(self) -> None:
        """Pass on the update that happened since the last look; between two looks there is at most one."""
        if self.stage.n_done > self.n_reported:
            self.n_reported = self.stage.n_done
            self.on_update(self.stage.callback.adversarial.metrics | {"rl/reward": th.tensor(self.reward)})


def random_state(device: th.device) -> dict[str, Any]:
    """The global random streams that SB3 draws from: actions from torch's, the order in a batch from NumPy's."""
    of_numpy = np.random.get_state(legacy=False)
    of_numpy["state"]["key"] = of_numpy["state"]["key"].tolist()  # a checkpoint holds plain data only
    return {
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": of_numpy,
    }


def set_random_state(state: dict[str, Any], device: th.device) -> None:
    """Go on from `random_state`."""
    th.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        th.cuda.set_rng_state(state["cuda"].cpu(), device)
    np.random.set_state(state["numpy"])


class AgentStage:
    """A stage whose updates an SB3 algorithm makes; a callback adds SRGAN's losses to them.

    Attributes:
        model: The algorithm. Its policy has the generator that is being trained.
        callback: Makes the updates of SRGAN's losses.
        env: What the agent learns in.
        device: Of the generator.
    """

    model: BaseAlgorithm

    def __init__(
        self,
        start: Generator,
        vector_env: RestorationVectorEnv,
        callback: AdversarialLossCallback,
        n_updates: int,
    ) -> None:
        """Note what the stage consists of; a subclass then makes `model` and calls `_begin`.

        Args:
            start: The generator to go on from; it is copied.
            vector_env: The environments.
            callback: What adds SRGAN's losses.
            n_updates: Updates that the stage shall do.
        """
        self.n_updates = n_updates
        self.vector_env = vector_env
        self.env: VecEnv = GymnasiumVecEnv(vector_env)
        self.callback = callback
        self.compute_dtype = start.encoder.compute_dtype
        self.device = next(start.parameters()).device

    def _begin(self, start: Generator) -> None:
        """Give the policy the weights to go on from."""
        self.generator.load_state_dict(start.state_dict())
        self._connect()

    def _connect(self) -> None:
        """What is to be done to a new `model`."""
        self.generator.set_compute_dtype(self.compute_dtype)

    @property
    def generator(self) -> Generator:
        """The generator that is being trained."""
        generator = self.model.policy.generator
        assert isinstance(generator, Generator)
        return generator

    @property
    def timesteps_per_update(self) -> int:
        """What the algorithm counts in each update."""
        return self.env.num_envs

    @property
    def n_done(self) -> int:
        """Updates so far."""
        return self.callback.n_updates

    def run(self, on_update: OnUpdate, interruption: Interruption) -> None:
        """Do the updates that are left; return early, between two rollouts, where an interruption is requested."""
        n_steps_left = self.n_updates * self.timesteps_per_update - self.model.num_timesteps
        if n_steps_left <= 0:
            return
        callbacks = CallbackList([self.callback, Watch(self, on_update, interruption)])
        first = self.model.num_timesteps == 0
        try:
            self.model.learn(n_steps_left, callback=callbacks, log_interval=10, reset_num_timesteps=first)
        except StopBetweenRollouts:
            self.callback.on_training_end()  # learn() did not get there

    def averaged_generator(self) -> Generator:
        """The moving average of the generator."""
        return self.callback.adversarial.averaged_generator()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly, between two rollouts."""
        file = io.BytesIO()
        self.model.save(file)
        return {
            "model": th.frombuffer(bytearray(file.getvalue()), dtype=th.uint8),
            "callback": self.callback.state_dict(),
            "env": self.vector_env.state_dict(),
            "random": random_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        file = io.BytesIO(state["model"].cpu().numpy().tobytes())
        self.model = self.model.load(file, env=self.env, device=self.device, force_reset=False)
        self._connect()
        self.vector_env.load_state_dict(state["env"])
        self.callback.load_state_dict(state["callback"])
        set_random_state(state["random"], self.device)


class RLSRGANStage(AgentStage):
    """RL-SRGAN on the paper's schedule (Savioli 2019, sec. 2.2.3): A2C on the shared trunk, SRGAN at every step.

    A2C is the synchronous form of the paper's A3C: the same estimator, its workers stepped together in one batch.
    """

    def __init__(
        self,
        start: Generator,
        vector_env: RestorationVectorEnv,
        make_update: Callable[[Generator], AdversarialUpdate],
        n_updates: int,
        rollout_steps: int,
        learning_rate: float,
        seed: int,
        logger: Logger | None = None,
    ) -> None:
        """Prepare the stage.

        Args:
            start: The pretrained generator; it is copied.
            vector_env: `rlsr/PSNRPrediction-v0`; gets the live generator.
            make_update: As for `AdversarialLossCallback`.
            n_updates: SRGAN updates, a multiple of `rollout_steps`.
            rollout_steps: The paper's T.
            learning_rate: Of trunk and heads.
            seed: Of the agent and its environments.
            logger: SB3's, where its own figures shall go.

        Raises:
            ValueError: Where `n_updates` is no multiple of `rollout_steps`.
        """
        if n_updates % rollout_steps:
            raise ValueError(f"n_updates must be a multiple of rollout_steps = {rollout_steps}, got {n_updates}")
        callback = AdversarialLossCallback(make_update, schedule="step")
        super().__init__(start, vector_env, callback, n_updates)
        self.env = VecMonitor(self.env)
        self.logger = logger
        self.model = A2C(
            TrunkActorCriticPolicy,
            self.env,
            n_steps=rollout_steps,
            learning_rate=learning_rate,
            use_rms_prop=False,
            policy_kwargs={
                "generator_config": start.config,
                # Adam exactly as plain SRGAN's; SB3's own default has another eps.
                "optimizer_class": th.optim.Adam,
                "optimizer_kwargs": {"eps": 1e-8},
            },
            seed=seed,
            device=self.device,
        )
        self._begin(start)

    def _connect(self) -> None:
        """Let the environment judge the generator that is being trained."""
        super()._connect()
        self.vector_env.generator = self.generator
        if self.logger is not None:
            self.model.set_logger(self.logger)
