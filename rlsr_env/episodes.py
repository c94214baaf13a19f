"""Which environments of a batch have a running episode, when a new one begins, and who draws its random numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode

SUPPORTED_AUTORESET = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


def autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """A supported mode; by name in capitals, or in the spelling of Gymnasium's own values.

    Raises:
        ValueError: For a mode that is unknown or not supported.
    """
    modes = {key: known for known in AutoresetMode for key in (known, known.name, known.value)}
    if mode not in modes:
        raise ValueError(f"unknown autoreset mode {mode!r}; take SAME_STEP or DISABLED")
    if modes[mode] not in SUPPORTED_AUTORESET:
        raise ValueError(f"autoreset mode {modes[mode].name} is not supported; take SAME_STEP or DISABLED")
    return modes[mode]


class Episodes:
    """What every vector environment here keeps about its episodes, whatever they are about.

    Attributes:
        mode: When a new episode begins.
        finished: Which environments have no running episode, `(N,)` bool; before the first reset, all.
        rngs: The random numbers of each environment; None before its first reset.
    """

    def __init__(self, num_envs: int, mode: str | AutoresetMode) -> None:
        """Nothing runs yet.

        Args:
            num_envs: How many environments.
            mode: `SAME_STEP` or `DISABLED`.

        Raises:
            ValueError: For another mode.
        """
        self.mode = autoreset_mode(mode)
        self.finished = np.ones(num_envs, dtype=np.bool_)
        self.rngs: list[np.random.Generator | None] = [None] * num_envs

    def __len__(self) -> int:
        """Number of environments."""
        return len(self.rngs)

    def reset(
        self, seed: int | Sequence[int | None] | None, options: dict[str, Any], known_options: Collection[str]
    ) -> np.ndarray:
        """Seed the environments that are to be reset; their episodes run when `begin` is called.

        Args:
            seed: Of all random choices; environment i gets `seed + i`, or its own from a sequence.
            options: Of `reset`; `reset_mask` marks the environments, all where it is missing.
            known_options: What `options` may hold besides `reset_mask`.

        Returns:
            The marked environments, `(N,)` bool.

        Raises:
            TypeError: For a seed that is no integer, or a reset mask that is no array of bool.
            ValueError: For a negative seed, a seed sequence or mask of the wrong length, a mask that marks none, or an
                unknown option.
        """
        known = ["reset_mask", *known_options]
        if unknown := set(options) - set(known):
            raise ValueError(f"unknown reset options {sorted(unknown)}; known: {', '.join(known)}")
        seeds = self._checked_seeds(seed)
        mask = self._checked_mask(options.get("reset_mask"))
        for i in np.flatnonzero(mask).tolist():
            own_seed = None if seeds is None else seeds[i]
            if own_seed is not None or self.rngs[i] is None:
                self.rngs[i], _ = seeding.np_random(own_seed)
        return mask

    def begin(self, mask: np.ndarray) -> list[tuple[int, np.random.Generator]]:
        """Let the marked environments' episodes run.

        Returns:
            Number and random numbers of each of them.
        """
        self.finished[mask] = False
        begun = []
        for i in np.flatnonzero(mask).tolist():
            rng = self.rngs[i]
            if rng is None:  # Gymnasium lets an unseeded environment choose its own seed
                rng, _ = seeding.np_random(None)
                self.rngs[i] = rng
            begun.append((i, rng))
        return begun

    def end(self, terminated: np.ndarray) -> None:
        """Note which episodes, `(N,)` bool, a step has ended; with `SAME_STEP`, new ones begin within the step."""
        if self.mode is AutoresetMode.DISABLED:
            self.finished = terminated.copy()

    def require_running(self) -> None:
        """Refuse to go on where an episode is over.

        Raises:
            ResetNeeded: For an environment whose episode is over and was not reset.
        """
        if self.finished.any():
            raise ResetNeeded(
                f"environments {np.flatnonzero(self.finished).tolist()} have no running episode; call reset(), in "
                'mode DISABLED with options={"reset_mask": terminated | truncated}'
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain numbers."""
        return {
            "finished": self.finished.tolist(),
            "rngs": [None if rng is None else rng.bit_generator.state for rng in self.rngs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict` of as many environments; other entries are left alone."""
        self.finished = np.array(state["finished"], dtype=np.bool_)
        self.rngs = [None if rng is None else seeding.np_random(0)[0] for rng in state["rngs"]]
        for rng, rng_state in zip(self.rngs, state["rngs"], strict=True):
            if rng is not None:
                rng.bit_generator.state = rng_state

    def _checked_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None] | None:
        """A seed for each environment, all of them usable."""
        if seed is None:
            return None
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
            first = checked_seed(seed)
            return [first + i for i in range(len(self))]
        if not isinstance(seed, Sequence | np.ndarray) or isinstance(seed, str):
            raise TypeError(f"a seed is an integer, or a sequence with one for each environment, got {seed!r}")
        if len(seed) != len(self):
            raise ValueError(f"expected one seed for each of {len(self)} environments, got {len(seed)}")
        return [None if own is None else checked_seed(own) for own in seed]

    def _checked_mask(self, mask: Any) -> np.ndarray:
        """The environments to reset; all where no mask is given."""
        if mask is None:
            return np.ones(len(self), dtype=np.bool_)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            got = f"dtype {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise TypeError(f"reset_mask must be a NumPy array of bool, got {got}")
        if mask.shape != (len(self),):
            raise ValueError(f"reset_mask must have shape ({len(self)},), got {mask.shape}")
        if not mask.any():
            raise ValueError("reset_mask marks no environment; leave the call out instead")
        return mask


def checked_seed(seed: Any) -> int:
    """A seed as Python's integer.

    Raises:
        TypeError: For anything but an integer, NumPy's included.
        ValueError: For a negative one.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"a seed is an integer, got {seed!r}")
    if seed < 0:
        raise ValueError(f"a seed is 0 or more, got {seed}")
    return int(seed)


def checked_options(options: Any) -> dict[str, Any]:
    """The options of `reset`; none where they are None.

    Raises:
        TypeError: For anything but a dictionary.
    """
    if options is not None and not isinstance(options, dict):
        raise TypeError(f'options of reset are a dictionary such as {{"uri": ...}}, got {options!r}')
    return options or {}


def check_state(state: dict[str, Any], parts: Sequence[str], num_envs: int) -> None:
    """Refuse a state that lacks something, or is of another number of environments.

    Args:
        state: What `load_state_dict` was given.
        parts: Its entries that hold something for each environment.
        num_envs: How many environments there are.

    Raises:
        ValueError: Where something is missing or of another length.
    """
    if missing := [name for name in parts if name not in state]:
        raise ValueError(f"the state lacks {', '.join(missing)}; take one that state_dict has returned")
    for name in parts:
        if len(state[name]) != num_envs:
            raise ValueError(
                f"{name} in the state is of {len(state[name])} environments, this one has {num_envs}; take one of as "
                "many"
            )


def masked(values: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    """Gymnasium's form of vector infos: each entry `(N,)` in its own dtype, zero where `_entry` is False."""
    infos: dict[str, Any] = {}
    if not mask.any():
        return infos
    for name, entries in values.items():
        infos[name] = np.where(mask, entries, np.zeros_like(entries))
        infos[f"_{name}"] = mask.copy()
    return infos


def final_infos(obs: np.ndarray, infos: dict[str, np.ndarray], terminated: np.ndarray) -> dict[str, Any]:
    """What mode SAME_STEP tells of the episodes that a step has ended.

    Args:
        obs: Observations before the new episodes, `(N, ...)`; those of the ended ones are copied.
        infos: Entries `(N,)` of this step.
        terminated: Which have ended, `(N,)` bool, at least one.

    Returns:
        The entries of those that go on, and of the others `final_obs` and `final_info`.
    """
    final_obs = np.full(len(obs), None, dtype=object)
    for i in np.flatnonzero(terminated):
        final_obs[i] = obs[i].copy()
    return masked(infos, ~terminated) | {
        "final_obs": final_obs, "_final_obs": terminated.copy(),
        "final_info": masked(infos, terminated), "_final_info": terminated.copy(),
    }  # fmt: skip


def picture_numbers(uri: Any, uris: Sequence[str], num_envs: int) -> list[int] | None:
    """The pictures that `reset(options={"uri": ...})` asks for.

    Args:
        uri: One for all environments, a sequence with one for each, or None for any.
        uris: Of the image set.
        num_envs: How many environments.

    Returns:
        A number for each environment; None for any.

    Raises:
        ValueError: For a sequence of the wrong length, or a picture that the image set lacks.
    """
    if uri is None:
        return None
    chosen = [uri] * num_envs if isinstance(uri, str) else list(uri)
    if len(chosen) != num_envs:
        raise ValueError(f"expected one uri, or one for each of {num_envs} environments, got {len(chosen)}")
    numbers = {name: number for number, name in enumerate(uris)}
    if missing := [name for name in chosen if name not in numbers]:
        some = ", ".join(uris[:3])
        raise ValueError(f"no picture {missing[0]!r} in the image set, which has {len(numbers)}: {some}, ...")
    return [numbers[name] for name in chosen]
