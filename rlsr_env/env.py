"""The environments one by one: a batch of one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from rlsr_env.episodes import checked_options, checked_seed
from rlsr_env.vector_env import RestorationVectorEnv
from rlsr_env.window import Window, window_available


class RestorationEnv(gymnasium.Env):
    """Restore a photograph from a small file, and be paid for how well it is restored.

    ## Description
    A photograph (HR) was shrunk by an integer factor and stored as a small JPEG (WebP, AVIF). The agent sees a patch of
    what comes out of that file (LR); a generator turns it into a picture of the original size (SR); a metric compares
    the two. The task decides what an action means.

    `rlsr/PSNRPrediction-v0` is the paper's (Savioli 2019, sec. 2.2): the agent sees one patch for `episode_length`
    steps while somebody trains the generator, predicts the PSNR that the generator reaches on it, and is paid when that
    PSNR has risen since the last step. The reward does not depend on the action, given the picture: what the method
    hopes for is what the critic teaches the encoder that policy and generator share. With nobody training the
    generator, the PSNR never rises.

    `rlsr/SuperResolution-v0`: the action is the SR picture itself, so that a generator can be the policy.

    `rlsr/DetailControl-v0`: the generator restores the patch once; then the agent sets, in a few refinements, how
    strong its detail shall be in each cell of a coarse grid and each of a few frequency bands.

    ## Action Space
    `PSNRPrediction`: `Box(-1, 1, (1,), float32)`, the predicted PSNR, 30 + 20 * action dB.
    `SuperResolution`: `Box(-1, 1, (3, scale * h, scale * w), float32)`, the picture, -1 black and +1 white.
    `DetailControl`: `Box(-1, 1, (n_bands * grid_size ** 2,), float32)`, what is added to the strengths, times
    `max_change`; a strength of -1 takes a band away, 0 leaves it, +2 (the most) makes it three times as strong.

    ## Observation Space
    `Box(0, 255, (3, h, w), uint8)`: the LR patch, channels first. The original is never part of it, nor of `info`.
    In `DetailControl` one more channel for each band: its strengths so far, 0 for -1 and 255 for +2.

    ## Rewards
    `threshold`: +1 where the metric has risen since the last step, else -1 (eq. 5; the default of `PSNRPrediction`).
    `improvement`: the rise itself, in the metric's unit (the default of the others). The first step is measured against
    the generator's own picture: it pays a gain, never the metric itself. In `rlsr/PSNRPrediction-v0` plus
    `accuracy_weight` times minus the prediction's absolute error in units of 20 dB (0 by default). SR pictures are
    rounded to 8 bits before they are measured; a patch restored without any error, whose PSNR is infinite, counts as
    100 dB.

    ## Starting State
    A patch drawn by gradient energy from the image set, in one of its eight flips and rotations; the metric of the
    generator's picture of it is the value that the first step's reward is measured against, and is in `info`.

    ## Episode End
    The episode terminates after `episode_length` steps: 5 in `PSNRPrediction`, 1 in `SuperResolution`, 3 in
    `DetailControl`. It is never truncated.

    ## Arguments
    See `RestorationVectorEnv`: `images`, `scale`, `quality`, `base_codec`, `lr_patch_size`, `episode_length`, `metric`,
    `reward`, `generator`, `source`, `device`, `render_original`, and the task's own: `accuracy_weight`; `n_bands`,
    `grid_size`, `max_change`.

    ```python
    import gymnasium
    import rlsr_env

    env = gymnasium.make("rlsr/PSNRPrediction-v0", reward="improvement", images="folder:photographs")
    ```

    ## Vectorized environment
    `gymnasium.make_vec("rlsr/PSNRPrediction-v0", num_envs=64)` is one batch on one device.

    ## Rendering
    `render_mode="rgb_array"`: `render` returns a frame, the LR patch enlarged beside the SR picture (and the original
    with `render_original=True`), the metric in a caption. Gymnasium's `RecordVideo` makes an MP4 of it. `"human"`: a
    window shows each frame as it comes, two in a second. Both need `pip install "rlsr[render]"` (moviepy, pygame).

    ## Version History
    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 2}  # noqa: RUF012 (as in Gymnasium)

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        """Build the environment.

        Args:
            render_mode: None, `"rgb_array"` or `"human"`.
            **options: See `RestorationVectorEnv`.

        Raises:
            DependencyNotInstalled: For `"human"` without pygame.
            ValueError: For a setting that is unknown or out of range.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"unknown render_mode {render_mode!r}; known: None, {self.metadata['render_modes']}")
        self._window = Window("rlsr", self.metadata["render_fps"]) if render_mode == "human" else None
        self._batch = RestorationVectorEnv(
            1,
            render_mode="rgb_array" if render_mode == "human" else render_mode,
            autoreset_mode=AutoresetMode.DISABLED,
            **options,
        )
        if not window_available():  # Gymnasium's checker tries every mode that an environment lists
            self.metadata = {**self.metadata, "render_modes": ["rgb_array"]}
        self.render_mode = render_mode
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    @property
    def vector_env(self) -> RestorationVectorEnv:
        """The batch of one that does the work; it does not reset itself."""
        return self._batch

    @property
    def generator(self) -> Any:
        """The network that restores; see `RestorationVectorEnv`."""
        return self._batch.generator

    @generator.setter
    def generator(self, generator: Any) -> None:
        self._batch.generator = generator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode on a new patch.

        Args:
            seed: Of all random choices; without one, the stream goes on.
            options: `{"uri": ...}` takes the patch from that picture.

        Returns:
            The LR patch `(3, h, w)` uint8, and `info` with the metric of the generator's picture of it.

        Raises:
            TypeError: For a seed that is no integer, or options that are no dictionary.
            ValueError: For a negative seed, a picture that the image set lacks, or another option.
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
        self._show()
        return observations[0], self._single(infos)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act once.

        Args:
            action: Of `action_space`.

        Returns:
            Observation, reward, terminated, truncated (always False) and `info`.

        Raises:
            TypeError: For an action that is no number.
            ValueError: For an action of the wrong shape, or a NaN or infinite one.
            ResetNeeded: After the episode's end.
        """
        observations, rewards, terminated, truncated, infos = self._batch.step(np.asarray(action)[None])
        self._show()
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), self._single(infos)

    def render(self) -> np.ndarray | None:
        """The frame `(H + 14, 2 * W, 3)` uint8; see `RestorationVectorEnv.render`.

        None without a render mode, and with `"human"`, where each step and reset shows its frame itself.
        """
        if self._window is not None:
            return None
        frames = self._batch.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()

    def _show(self) -> None:
        """Show the present frame where there is a window."""
        frames = None if self._window is None else self._batch.render()
        if self._window is not None and frames is not None:
            self._window.show(frames[0])

    def _single(self, infos: dict[str, Any]) -> dict[str, Any]:
        """The infos of the only environment, without the batch's masks."""
        return {name: values[0].item() for name, values in infos.items() if not name.startswith("_")}
