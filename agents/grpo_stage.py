"""Reinforcement learning of a generator as a stage of a run: GRPO that can stop and go on exactly."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import CallbackList

from agents.callbacks import AdversarialLossCallback
from agents.grpo import GRPO
from agents.interruption import Interruption
from agents.stages import OnUpdate, StopBetweenRollouts, Watch, random_state, set_random_state
from agents.vec_env import GymnasiumVecEnv
from gan.adversarial import AdversarialUpdate
from gan.generator import Generator
from rlsr_env.vector_env import RestorationVectorEnv


class GRPOStage:
    """GRPO on `rlsr/SuperResolution-v0`, with other losses added to each of its updates."""

    def __init__(
        self,
        start: Generator,
        vector_env: RestorationVectorEnv,
        make_update: Callable[[Generator], AdversarialUpdate],
        n_updates: int,
        seed: int,
        **settings: Any,
    ) -> None:
        """Prepare the stage.

        Args:
            start: The generator to go on from; it is copied.
            vector_env: `rlsr/SuperResolution-v0`.
            make_update: As for `AdversarialLossCallback`.
            n_updates: Updates of GRPO.
            seed: Of the noise and the environments.
            **settings: Of `GRPO`.
        """
        self.n_updates = n_updates
        self.vector_env = vector_env
        self.env = GymnasiumVecEnv(vector_env)
        self.compute_dtype = start.encoder.compute_dtype
        self.device = next(start.parameters()).device
        self.callback = AdversarialLossCallback(make_update)
        self.model = GRPO(
            "GeneratorPolicy",
            self.env,
            policy_kwargs={"generator_config": start.config},
            seed=seed,
            device=self.device,
            **settings,
        )
        self.model.policy.generator.load_state_dict(start.state_dict())
        self.model.policy.generator.set_compute_dtype(self.compute_dtype)

    @property
    def n_done(self) -> int:
        """Updates so far."""
        return self.callback.n_updates

    def run(self, on_update: OnUpdate, interruption: Interruption) -> None:
        """Do the updates that are left; return early, between two updates, where an interruption is requested."""
        n_judged = self.model.group_size * self.env.num_envs
        n_left = self.n_updates * n_judged - self.model.num_timesteps
        if n_left <= 0:
            return
        callbacks = CallbackList([self.callback, Watch(self, on_update, interruption)])
        first = self.model.num_timesteps == 0
        try:
            self.model.learn(n_left, callback=callbacks, reset_num_timesteps=first)
        except StopBetweenRollouts:
            self.callback.on_training_end()  # learn() did not get there

    def averaged_generator(self) -> Generator:
        """The moving average of the generator."""
        return self.callback.adversarial.averaged_generator()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly, between two updates."""
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
        self.model = GRPO.load(file, env=self.env, device=self.device, force_reset=False)
        self.model.policy.generator.set_compute_dtype(self.compute_dtype)
        self.vector_env.load_state_dict(state["env"])
        self.callback.load_state_dict(state["callback"])
        set_random_state(state["random"], self.device)
