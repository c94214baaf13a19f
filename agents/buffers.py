"""A rollout buffer whose minibatches never leave the device.

The stock buffer of Stable-Baselines3 (SB3) is NumPy in host memory: every minibatch of every epoch is gathered there
and copied to the device (DLR-RM/stable-baselines3#1149, #1891). `DeviceRolloutBuffer` copies a step when it is added
and gathers minibatches where they are used.
"""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

Samples = RolloutBufferSamples | DictRolloutBufferSamples


class DeviceRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer in the memory of the device that trains.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", rollout_buffer_class=DeviceRolloutBuffer)

    Minibatches, their order, and so the trained parameters have the same bits as with `RolloutBuffer`, or with
    `DictRolloutBuffer` where the observation space is a `Dict`; this one class serves both.

    Attributes:
        observations: Tensor on the device, `(buffer_size, n_envs, *shape)` in the space's dtype (an image stays uint8),
            or a dict of such.
        actions: Tensor on the device, `(buffer_size, n_envs, action_dim)` in the space's dtype; float32 in minibatches.
        log_probs: Tensor on the device, `(buffer_size, n_envs)` float32.
        rewards: NumPy, `(buffer_size, n_envs)` float32, and so are `episode_starts`, `values`, `advantages`, `returns`.

    The NumPy attributes are what SB3's recursion for advantages and returns reads and writes: it is inherited, and runs
    on the host on one number per environment and step. The first `get` copies `values`, `advantages` and `returns` to
    the device for all epochs; changes that a callback makes before it, in place or not, count. As in the stock buffer,
    `get` flattens the two leading axes of what it samples from, and `reset` starts with fresh zeros.

    Which copies remain, on a device other than the CPU:

    * every step: observations go up twice, because SB3's `collect_rollouts` hands them over as NumPy, once to the
      policy and once to `add`; actions come down for the environment and go up again; values come down;
    * every rollout: `values`, `advantages` and `returns` go up;
    * every epoch: the permutation goes up.

    A loop of one's own can give `add` tensors that are on the device already: those do not pass through the host.
    The device has to hold the rollout and one minibatch.
    """

    observations: th.Tensor | dict[str, th.Tensor]  # type: ignore[assignment]
    actions: th.Tensor  # type: ignore[assignment]
    log_probs: th.Tensor  # type: ignore[assignment]
    _rollout: Samples

    def reset(self) -> None:
        """Empties the buffer."""
        # The last rollout is let go first, so that the device never holds two.
        for name in ("observations", "actions", "log_probs", "_rollout"):
            self.__dict__.pop(name, None)
        self.observations = _map(
            lambda shape, space: self._zeros(shape, space.dtype), self.obs_shape, self.observation_space
        )
        self.actions = self._zeros((self.action_dim,), self.action_space.dtype)
        self.log_probs = self._zeros((), np.float32)
        for name in ("rewards", "episode_starts", "values", "advantages", "returns"):
            setattr(self, name, np.zeros((self.buffer_size, self.n_envs), np.float32))
        self.generator_ready = False
        super(RolloutBuffer, self).reset()

    def add(
        self,
        obs: Any,
        action: np.ndarray | th.Tensor,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """Copies one step of all environments into the buffer, without their gradients.

        Args:
            obs: Observations that were acted on, `(n_envs, *shape)` array or tensor, or a dict of such.
            action: Actions, `(n_envs, *shape)`.
            reward: Rewards, `(n_envs,)`.
            episode_start: Whether the observations begin an episode, `(n_envs,)`.
            value: Estimated values of the observations, `(n_envs,)` or `(n_envs, 1)`.
            log_prob: Log-probabilities of the actions, `(n_envs,)`.

        Raises:
            ValueError: If the buffer is full, or if the observations or log-probabilities have another shape; axes of
                length one may be missing or added.
        """
        if self.full:
            raise ValueError(f"all {self.buffer_size} steps of the buffer are filled; call reset() before add()")
        _map(self._write, self.observations, obs)
        self._write(self.actions, action.reshape(self.n_envs, self.action_dim))
        self._write(self.log_probs, log_prob)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.detach().cpu().numpy().flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def get(self, batch_size: int | None = None) -> Generator[Samples, None, None]:  # type: ignore[override]
        """Yields the rollout once, in minibatches of random order.

        The order is one `numpy.random.permutation`, drawn with the first minibatch as in the stock buffer.

        Args:
            batch_size: Samples in a minibatch, fewer in the last one; the whole rollout by default.

        Yields:
            Tensors on the device, `(batch_size, ...)`, that share no memory with the buffer.

        Raises:
            ValueError: With the first minibatch, if the buffer is not full or `batch_size` is less than 1.
        """
        if not self.full:
            raise ValueError(
                f"the buffer holds {self.pos} of {self.buffer_size} steps; add() the others before get(), because "
                "advantages are those of a whole rollout"
            )
        n_samples = self.buffer_size * self.n_envs
        if batch_size is None:
            batch_size = n_samples
        if batch_size < 1:
            raise ValueError(f"got batch_size={batch_size}, expected at least 1, or None for the whole rollout")
        indices = self.to_torch(np.random.permutation(n_samples))
        if not self.generator_ready:
            self._flatten()
        for batch_indices in indices.split(batch_size):
            yield self._get_samples(batch_indices)

    def _flatten(self) -> None:
        """Puts the rollout in SB3's flat order, environment by environment, with everything on the device."""
        self.observations = _map(self.swap_and_flatten, self.observations)
        for name in ("actions", "log_probs", "values", "advantages", "returns"):
            setattr(self, name, self.swap_and_flatten(getattr(self, name)))
        samples: Callable[..., Samples] = (
            DictRolloutBufferSamples if isinstance(self.observations, dict) else RolloutBufferSamples
        )
        values, advantages, returns = (
            self.to_torch(array.flatten()) for array in (self.values, self.advantages, self.returns)
        )
        # As in the stock buffer, actions of every space are float32 in samples.
        self._rollout = samples(
            self.observations, self.actions.float(), values, self.log_probs.flatten(), advantages, returns
        )
        self.generator_ready = True

    def _get_samples(self, batch_inds: th.Tensor, env: Any = None) -> Samples:  # type: ignore[override]
        """Gathers samples of the flat rollout; `env` is unused, as in the stock buffer."""
        # Measured on the CPU with uint8 images: a third of the time that indexing takes.
        return type(self._rollout)(
            *(_map(lambda part: part.index_select(0, batch_inds), part) for part in self._rollout)
        )

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> th.Tensor:
        """Zeros `(buffer_size, n_envs, *shape)` on the device, laid out so that flattening them is a view."""
        torch_dtype = th.from_numpy(np.empty(0, dtype)).dtype
        return th.zeros((self.n_envs, self.buffer_size, *shape), dtype=torch_dtype, device=self.device).transpose(0, 1)

    def _write(self, target: th.Tensor, rows: np.ndarray | th.Tensor) -> None:
        """Copies the rows of all environments to the current step of `target`."""
        if not isinstance(rows, th.Tensor):
            rows = self.to_torch(np.ascontiguousarray(rows))
        step = target[self.pos]
        if [length for length in rows.shape if length != 1] != [length for length in step.shape if length != 1]:
            raise ValueError(
                f"got the shape {tuple(rows.shape)} for a step of {self.n_envs} environments, expected "
                f"{tuple(step.shape)}; check n_envs and the spaces that the buffer was made with"
            )
        step.copy_(rows.detach().reshape(step.shape))


def _map(function: Callable[..., Any], *trees: Any) -> Any:
    """Applies the function, to each entry if the first argument is a dict, as `Dict` observations are."""
    if isinstance(trees[0], dict):
        return {key: function(*(tree[key] for tree in trees)) for key in trees[0]}
    return function(*trees)
