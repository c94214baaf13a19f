"""Train Stable-Baselines3 agents on any Gymnasium vector environment.

Stable-Baselines3 (SB3) has its own vector interface and does not accept `gymnasium.vector.VectorEnv`
(DLR-RM/stable-baselines3#1568, #1608, #1745). `GymnasiumVecEnv` is the missing adapter; on a `SyncVectorEnv` it returns
what `DummyVecEnv` returns for the same environments and seeds, and it runs a natively batched environment as it is.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class GymnasiumVecEnv(VecEnv):
    """A `gymnasium.vector.VectorEnv` as an SB3 `VecEnv`.

    Example:
        >>> from gymnasium.vector import AutoresetMode
        >>> from stable_baselines3 import PPO
        >>> from stable_baselines3.common.vec_env import VecMonitor
        >>> same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
        >>> vector_env = gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="sync", vector_kwargs=same_step)
        >>> model = PPO("MlpPolicy", VecMonitor(GymnasiumVecEnv(vector_env)))

    What `step` returns, for `n_envs` environments:

    * observations: `(n_envs, *shape)` in the space's dtype, a dict or a tuple of such arrays for `Dict` and `Tuple`
      spaces; the first observation of the next episode where an episode ended;
    * rewards: `(n_envs,)`, float32; dones: `(n_envs,)`, bool, terminated or truncated;
    * infos: one dict per environment. `"TimeLimit.truncated"` (truncated and not terminated) is set at every step, as
      `DummyVecEnv` does; `"terminal_observation"`, the last observation of the episode, only where an episode ended.
      The info of the reset that followed is in `reset_infos`. Numbers are NumPy scalars, because Gymnasium's batched
      info has lost the Python types.

    All arrays are new at every call: SB3 adds the value of truncated states to the rewards in place and keeps the
    observations until after the next step. The environment's arrays must be NumPy or convertible by `numpy.array`.

    SB3 does not monitor a custom `VecEnv` by itself: wrap this one with `VecMonitor` for episode statistics.
    """

    def __init__(self, vector_env: VectorEnv) -> None:
        """Adapts `vector_env`, which this object then owns: `close` closes it.

        Args:
            vector_env: Vector environment whose `metadata["autoreset_mode"]` is `SAME_STEP` or `DISABLED`.

        Raises:
            TypeError: If `vector_env` is not a `gymnasium.vector.VectorEnv`.
            ValueError: If it resets at the next step, or does not say when it resets.
            NotImplementedError: If the observation space nests `Dict` or `Tuple` spaces, which SB3 does not support.
        """
        _check_is_vector_env(vector_env)
        mode = vector_env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            # Under NEXT_STEP the reset takes a step of its own, which no reordering can hide (Gymnasium#785).
            raise ValueError(
                f"{vector_env} has metadata['autoreset_mode'] = {mode}, expected AutoresetMode.SAME_STEP or DISABLED: "
                "SB3 needs the next episode's first observation in the step that ends an episode. Build it with "
                "gymnasium.vector.SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP) or gymnasium.make_vec("
                "id, n, vectorization_mode='sync', vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP}); a "
                "native vector environment must implement one of the two modes and declare it in its metadata."
            )
        check_for_nested_spaces(vector_env.single_observation_space)
        self.vector_env = vector_env
        self._resets_in_step = mode is AutoresetMode.SAME_STEP
        base = vector_env.unwrapped
        self._sub_envs = base.envs if isinstance(base, SyncVectorEnv) else None
        self._async_env = base if isinstance(base, AsyncVectorEnv) else None
        self._actions: Any = None
        self._closed = False
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)
        # SB3's video recorder reads render_fps here.
        self.metadata = dict(vector_env.metadata)

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Stores the options of the next `reset`.

        Args:
            options: The options of all environments; a list must hold the same options `num_envs` times, because a
                Gymnasium vector environment takes one dict for all of them.

        Raises:
            ValueError: If the list has another length or differing options.
        """
        if isinstance(options, list) and (
            len(options) != self.num_envs or not all(data_equivalence(options[0], other) for other in options)
        ):
            raise ValueError(
                f"Got the options {options}, expected the same options for all {self.num_envs} environments: "
                "gymnasium.vector.VectorEnv.reset takes one dict. Pass a dict, or use DummyVecEnv."
            )
        super().set_options(options)

    def reset(self) -> VecEnvObs:
        """Starts a new episode in every environment, with the stored seeds and options, which are used once.

        Returns:
            The first observations, `(n_envs, *shape)`.
        """
        # By Gymnasium's convention environment i gets seed + i, which is what `VecEnv.seed` stored.
        seed = None if self._seeds[0] is None else int(self._seeds[0])
        obs, vector_info = self.vector_env.reset(seed=seed, options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = unpack_infos(vector_info, self.num_envs)
        return self._copy_obs(obs)

    def step_async(self, actions: Any) -> None:
        """Stores the actions of the next `step_wait`.

        Args:
            actions: One action per environment, `(n_envs, *shape)`; for `Dict` and `Tuple` action spaces a sequence
                of `n_envs` actions, or a dict of batched arrays.
        """
        if not isinstance(self.action_space, (spaces.Dict, spaces.Tuple)):
            actions = np.asarray(actions)
        elif not isinstance(actions, Mapping):
            actions = self._stack(self.action_space, actions)
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Takes the step with the stored actions and resets the environments whose episode ended.

        Returns:
            Observations, rewards, dones and infos as described at the class.

        Raises:
            ValueError: If a `SAME_STEP` environment ends an episode without giving its `final_obs`, or if the infos are
                not in Gymnasium's batched form.
        """
        # Everything is copied before the partial reset, which may reuse the environment's buffers.
        vector_obs, vector_rewards, terminated, truncated, vector_info = self.vector_env.step(self._actions)
        obs = self._copy_obs(vector_obs)
        rewards = np.array(vector_rewards, dtype=np.float32)
        timeouts = np.logical_and(truncated, np.logical_not(terminated))
        dones = np.logical_or(terminated, truncated)
        infos = unpack_infos(vector_info, self.num_envs)

        if self._resets_in_step:
            self._move_final_infos(infos, dones)
        elif dones.any():
            obs = self._reset_finished(obs, infos, dones)
        for info, timeout in zip(infos, timeouts, strict=True):
            info["TimeLimit.truncated"] = bool(timeout)
        return obs, rewards, dones, infos

    def _move_final_infos(self, infos: list[dict[str, Any]], dones: np.ndarray) -> None:
        """Puts what a `SAME_STEP` environment says of the finished episodes where SB3 expects it."""
        for index, info in enumerate(infos):
            terminal_obs, final_info = info.pop("final_obs", None), info.pop("final_info", None)
            if not dones[index]:
                continue
            if terminal_obs is None:
                raise ValueError(
                    f"{self.vector_env} ended the episode of environment {index} under AutoresetMode.SAME_STEP without "
                    "infos['final_obs'] for it. The environment must return the episode's last observation there, "
                    "because SB3 needs its value when the episode was truncated."
                )
            # The keys of a native environment without `final_info` can only be of the step that ended the episode.
            infos[index], self.reset_infos[index] = (info, {}) if final_info is None else (final_info, info)
            # gymnasium.wrappers.vector.RecordEpisodeStatistics writes the finished episode beside the reset's info;
            # SB3 reads its statistics from the step's.
            if isinstance(self.reset_infos[index].get("episode"), dict):
                infos[index]["episode"] = self.reset_infos[index].pop("episode")
            infos[index]["terminal_observation"] = terminal_obs

    def _reset_finished(self, obs: VecEnvObs, infos: list[dict[str, Any]], dones: np.ndarray) -> VecEnvObs:
        """Resets the finished environments of a `DISABLED` vector env; returns the observations to go on with."""
        vector_obs, vector_info = self.vector_env.reset(options={"reset_mask": dones.copy()})
        reset_infos = unpack_infos(vector_info, self.num_envs)
        batched_space = self.vector_env.observation_space
        single_obs = list(iterate(batched_space, obs))
        # Only the finished environments' rows are taken: what a partial reset returns for the others is up to it.
        for index, reset_obs in enumerate(iterate(batched_space, self._copy_obs(vector_obs))):
            if dones[index]:
                infos[index]["terminal_observation"] = single_obs[index]
                single_obs[index] = reset_obs
                self.reset_infos[index] = reset_infos[index]
        return self._stack(self.observation_space, single_obs)

    def close(self) -> None:
        """Closes the vector environment; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self.vector_env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute of the environments.

        It is read from the sub-environments of a `SyncVectorEnv` or `AsyncVectorEnv` (the latter calls what is
        callable). A native vector environment has none: its own attribute, or that of the outermost vector wrapper
        that has it, is repeated per index.

        Args:
            attr_name: Name of the attribute.
            indices: Environments to ask, all by default.

        Returns:
            One value per index.

        Raises:
            AttributeError: If there is no such attribute.
        """
        chosen = self._get_indices(indices)
        if self._sub_envs is not None:
            return [self._sub_envs[index].get_wrapper_attr(attr_name) for index in chosen]
        if self._async_env is not None:
            _check_workers_have(self._async_env, attr_name)
            values = self._async_env.get_attr(attr_name)
            return [values[index] for index in chosen]
        value = getattr(_layer_with(self.vector_env, attr_name), attr_name)
        return [value for _ in chosen]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of the environments, on the wrapper that has it where they are wrapped.

        Args:
            attr_name: Name of the attribute. Sub-environments get it if they have none of that name, as under
                `DummyVecEnv`; a native vector environment must have it.
            value: Value for each of the environments.
            indices: Environments to change, all by default. Only a `SyncVectorEnv` can change some of them.

        Raises:
            AttributeError: If a native vector environment has no such attribute.
            ValueError: If `indices` leaves out environments that would be changed too.
        """
        chosen = self._get_indices(indices)
        if self._sub_envs is not None:
            for index in chosen:
                self._sub_envs[index].set_wrapper_attr(attr_name, value)
            return
        self._check_all_chosen(chosen)
        if self._async_env is not None:
            # A list, because Gymnasium would deal a value that is itself a list out to the environments.
            self._async_env.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(_layer_with(self.vector_env, attr_name), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of the environments.

        Args:
            method_name: Name of the method. That of a native vector environment is called once, with its result
                repeated per index.
            *method_args: Its positional arguments.
            indices: Environments to call, all by default. An `AsyncVectorEnv` cannot call only some of them.
            **method_kwargs: Its keyword arguments.

        Returns:
            One result per index.

        Raises:
            AttributeError: If there is no such method.
            ValueError: If `indices` leaves out environments of an `AsyncVectorEnv`.
        """
        chosen = list(self._get_indices(indices))
        if self._sub_envs is not None:
            methods = [self._sub_envs[index].get_wrapper_attr(method_name) for index in chosen]
            return [method(*method_args, **method_kwargs) for method in methods]
        if self._async_env is not None:
            self._check_all_chosen(chosen)
            _check_workers_have(self._async_env, method_name)
            results = self._async_env.call(method_name, *method_args, **method_kwargs)
            return [results[index] for index in chosen]
        result = getattr(_layer_with(self.vector_env, method_name), method_name)(*method_args, **method_kwargs)
        return [result for _ in chosen]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Says which environments are wrapped with `wrapper_class`, a wrapper of single environments.

        Returns:
            One answer per index; False for a native vector environment, which holds no environments that could be
            wrapped, and for an `AsyncVectorEnv`, whose workers cannot be asked.
        """
        chosen = self._get_indices(indices)
        if self._sub_envs is None:
            return [False for _ in chosen]
        return [is_wrapped(self._sub_envs[index], wrapper_class) for index in chosen]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Returns one frame per environment, uint8 `(H, W, 3)`; `None` for each unless `render_mode` is `rgb_array`."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"Images need render_mode='rgb_array', got {self.render_mode!r}.", stacklevel=2)
            return [None] * self.num_envs
        return list(cast(Iterable[np.ndarray], self.vector_env.render()))

    def _copy_obs(self, obs: Any) -> VecEnvObs:
        """New arrays in the space's dtypes, in the space's order of keys."""
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: np.array(obs[key], dtype=part.dtype) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(np.array(obs[key], dtype=part.dtype) for key, part in enumerate(space.spaces))
        return np.array(obs, dtype=space.dtype)

    def _stack(self, space: spaces.Space, items: Iterable[Any]) -> Any:
        """Batches one element of the space per environment into new arrays."""
        return concatenate(space, items, cast(Any, create_empty_array(space, self.num_envs)))

    def _check_all_chosen(self, chosen: Iterable[int]) -> None:
        """Refuses indices that leave environments out."""
        if set(chosen) != set(range(self.num_envs)):
            raise ValueError(
                f"Got indices={chosen}, but {self.vector_env} can do this only in all {self.num_envs} environments at "
                "once. Leave `indices` out, or use a SyncVectorEnv."
            )


def unpack_infos(vector_info: Mapping[Any, Any], num_envs: int) -> list[dict[Any, Any]]:
    """Splits Gymnasium's batched info into one dict per environment.

    In the batched form `info[key]` has a first axis of length `num_envs`, or is a dict of such, and the boolean mask
    `info["_" + key]` says which environments gave the key; all did where there is no mask.

    Args:
        vector_info: The batched info of `VectorEnv.step` or `VectorEnv.reset`.
        num_envs: Number of environments.

    Returns:
        The infos, deep copies that share nothing with `vector_info`. Numbers are NumPy scalars.

    Raises:
        ValueError: If a value has no first axis of length `num_envs`.
    """
    infos: list[dict[Any, Any]] = [{} for _ in range(num_envs)]
    mask_keys = {f"_{key}" for key in vector_info}
    for key, batch in vector_info.items():
        if key in mask_keys:
            continue
        rows: Any = unpack_infos(batch, num_envs) if isinstance(batch, Mapping) else deepcopy(np.asarray(batch))
        if np.shape(rows)[:1] != (num_envs,):
            raise ValueError(
                f"info[{key!r}] has the shape {np.shape(rows)}, expected a first axis of {num_envs}, one entry per "
                "environment (Gymnasium's info format). Repeat a value that all environments share."
            )
        for index in np.flatnonzero(vector_info.get(f"_{key}", np.ones(num_envs))):
            infos[index][key] = rows[index]
    return infos


def _check_is_vector_env(vector_env: object) -> None:
    """Refuses anything but a Gymnasium vector environment and says what to do with it."""
    if isinstance(vector_env, VectorEnv):
        return
    if isinstance(vector_env, VecEnv):
        advice = "It is an SB3 VecEnv already: give it to the agent as it is."
    elif isinstance(vector_env, gymnasium.Env):
        advice = "It is a single environment: use stable_baselines3.common.vec_env.DummyVecEnv([make_env])."
    else:
        advice = "Make one with gymnasium.make_vec or gymnasium.vector.SyncVectorEnv."
    raise TypeError(f"Got {type(vector_env).__name__}, expected a gymnasium.vector.VectorEnv. {advice}")


def _check_workers_have(async_env: AsyncVectorEnv, attr_name: str) -> None:
    """Raises in this process, because a worker that is asked for an attribute it misses shuts down."""
    if not all(async_env.call("has_wrapper_attr", attr_name)):
        raise AttributeError(f"The sub-environments of {async_env} have no attribute {attr_name!r}.")


def _layer_with(vector_env: VectorEnv, attr_name: str) -> VectorEnv:
    """The outermost vector wrapper, or the native vector environment itself, that has the attribute."""
    layer = vector_env
    while not hasattr(layer, attr_name):
        if not isinstance(layer, VectorWrapper):
            raise AttributeError(
                f"{vector_env} has no attribute {attr_name!r}. It is a native vector environment without "
                "sub-environments, so the attribute must be its own or one of its wrappers'."
            )
        layer = layer.env
    return layer
