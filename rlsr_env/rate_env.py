"""Choose how a picture is stored: one picture at a time."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from rlsr_env.episodes import checked_options, checked_seed
from rlsr_env.rate_control import RateControlVectorEnv


class RateControlEnv(gymnasium.Env):
    """Choose by how much a photograph is shrunk, and at which quality its small file is stored.

    ## Description
    A photograph shall be kept in few bytes, and a decoder will restore its original size. The agent looks at it once
    and names a scale and a quality. The file is then really made, really restored, and judged: the agent is paid for
    the quality, and pays for the bits. It is a contextual bandit; what each choice is worth can be known (by making
    every file), so that `rlsr_env.rate_oracle` says how much there is to gain.

    ## Action Space
    `Discrete(n)`: the number of one of the `settings`, pairs of scale and quality. All pairs that make sense are one
    list, because every algorithm for discrete actions takes that (DQN takes nothing else), and because the qualities
    worth having differ from scale to scale: a product of both would be mostly waste.

    ## Observation Space
    `Box(0, 255, (12, 64, 64), uint8)`, channels first: the picture shrunk to 64 x 64; on the same grid, how much detail
    of its luma lies in each of five octaves, and of its chroma in three; and the weight of the rate, on a logarithmic
    scale, the same everywhere. In contrast to the other environments the original is no secret here: whoever makes a
    file has it, so whatever can be computed from it may be looked at. What is not in the observation is what making
    the files would tell.

    ## Rewards
    `quality - rate_weight * bits_per_pixel`: a metric of the restored picture, rounded to 8 bits, against the original
    (larger is better; a metric where lower is better counts negatively), and the bits of the whole file over the
    original's pixels. Both are measured, never estimated, and remembered for each picture and setting.

    ## Starting State
    A picture of the image set, all equally likely, and a weight of the rate drawn evenly on a logarithmic scale: one
    policy learns all rates.

    ## Episode End
    The episode terminates after its only step. It is never truncated.

    ## Arguments
    See `RateControlVectorEnv`: `images`, `settings`, `base_codec`, `metric`, `decibels`, `rate_weight`, `decoder`,
    `file_bytes`, `table`, `source`.

    ```python
    import gymnasium
    import rlsr_env

    env = gymnasium.make("rlsr/RateControl-v0", images="folder:photographs", rate_weight=20.0)
    ```

    ## Vectorized environment
    `gymnasium.make_vec("rlsr/RateControl-v0", num_envs=64)`. Give several environments one `source`, and what one has
    measured all of them know.

    ## Rendering
    `render_mode="rgb_array"`: the original beside the restored picture, the setting, rate and quality in a caption.

    ## Version History
    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012 (as in Gymnasium)

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        """Build the environment.

        Args:
            render_mode: None or `"rgb_array"`.
            **options: See `RateControlVectorEnv`.

        Raises:
            TypeError: For a setting of the wrong type.
            ValueError: For a setting that is unknown or out of range.
        """
        self._batch = RateControlVectorEnv(1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **options)
        self.render_mode = render_mode
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    @property
    def vector_env(self) -> RateControlVectorEnv:
        """The batch of one that does the work; it does not reset itself."""
        return self._batch

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode with a new picture.

        Args:
            seed: Of all random choices; without one, the stream goes on.
            options: `{"uri": ...}` takes that picture, `{"rate_weight": ...}` that weight of the rate.

        Returns:
            The observation `(12, 64, 64)` uint8, and `info` with `rate_weight`.

        Raises:
            ValueError: For a picture that the image set lacks, a weight that is negative or not finite, or another
                option.
        """
        seed = None if seed is None else checked_seed(seed)
        options = checked_options(options)
        if "reset_mask" in options:
            raise ValueError("reset_mask is for vector environments; a scalar one resets as a whole")
        before = (self._np_random, self._np_random_seed, self._batch.episodes.rngs[0])
        super().reset(seed=seed)
        self._batch.episodes.rngs[0] = self.np_random
        try:
            observations, infos = self._batch.reset(options=options)
        except BaseException:  # an unknown picture, say: the seed is not used up
            self._np_random, self._np_random_seed, self._batch.episodes.rngs[0] = before
            raise
        return observations[0], _single(infos)

    def step(self, action: int | np.integer | np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Store the picture.

        Args:
            action: The number of a setting.

        Returns:
            Observation, reward, terminated (True), truncated (False) and `info`: the metric, `bits_per_pixel`,
            `n_bytes`, `scale`, `quality` and `rate_weight`.

        Raises:
            TypeError: For an action that is no integer.
            ValueError: For an action without a setting, or where a metric or decoder fails.
            ResetNeeded: After the episode's end.
        """
        observations, rewards, terminated, truncated, infos = self._batch.step(np.asarray(action)[None])
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _single(infos)

    def render(self) -> np.ndarray | None:
        """The frame `(270, 512, 3)` uint8; see `RateControlVectorEnv.render`."""
        frames = self._batch.render()
        return None if frames is None else frames[0]


def _single(infos: dict[str, Any]) -> dict[str, Any]:
    """The infos of the only environment, without the batch's masks."""
    return {name: values[0].item() for name, values in infos.items() if not name.startswith("_")}
