"""Reinforcement learning of a generator as a stage of a run: GRPO that can stop and go on exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents.callbacks import AdversarialLossCallback
from agents.grpo import GRPO
from agents.stages import AgentStage
from gan.adversarial import AdversarialUpdate
from gan.generator import Generator
from rlsr_env.vector_env import RestorationVectorEnv


class GRPOStage(AgentStage):
    """GRPO on `rlsr/SuperResolution-v0`, with other losses added to each of its updates."""

    model: GRPO

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
        super().__init__(start, vector_env, AdversarialLossCallback(make_update), n_updates)
        self.model = GRPO(
            "GeneratorPolicy",
            self.env,
            policy_kwargs={"generator_config": start.config},
            seed=seed,
            device=self.device,
            **settings,
        )
        self._begin(start)

    @property
    def timesteps_per_update(self) -> int:
        """GRPO counts the pictures that were judged."""
        return self.model.group_size * self.env.num_envs
