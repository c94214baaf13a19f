"""Discrete actions for algorithms that know no others, DQN above all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import RecordConstructorArgs

from rlsr_env.detail import DetailControl


def band_moves(task: DetailControl, step: float = 0.5, per_cell: bool = False) -> np.ndarray:
    """A table of moves for `DiscretisedAction`: one frequency band at a time, up or down.

    Row 0 does nothing. Rows 1 + 2k and 2 + 2k raise and lower band k in the whole picture. With `per_cell`, the same
    pair follows for each single cell, in the order of the action's own numbers: band by band, row by row.

    Args:
        task: Whose strengths to move; give it the settings that the environment has.
        step: How far a move takes a strength. Two moves of the default take a band away altogether.
        per_cell: Whether to move single cells as well.

    Returns:
        `(1 + 2 * n_bands, n_bands * grid_size ** 2)` float32 in [-1, 1], 7 rows by default;
        `2 * n_bands * grid_size ** 2` rows more with `per_cell`, 103 in all by default.

    Raises:
        ValueError: For a step that is not above 0 or exceeds what one action of the task can change.
    """
    if not 0.0 < step <= task.max_change:
        raise ValueError(f"step must be above 0 and at most the task's max_change of {task.max_change}, got {step!r}")
    n_cells = task.grid_size**2
    bands = np.repeat(np.eye(task.n_bands, dtype=np.float32), n_cells, axis=1)
    patterns = np.vstack([bands, np.eye(task.n_bands * n_cells, dtype=np.float32)]) if per_cell else bands
    moves = np.stack([patterns, -patterns], axis=1).reshape(-1, patterns.shape[1])
    return np.vstack([np.zeros_like(moves[:1]), np.float32(step / task.max_change) * moves])


class DiscretisedAction(gymnasium.ActionWrapper[Any, Any, np.ndarray], RecordConstructorArgs):
    """Choose one action from a table by its number.

    Gymnasium's `DiscretizeAction` takes every combination of every number's levels, which for the 48 numbers of
    `rlsr/DetailControl-v0` are more than anyone could count; a table holds what makes sense.

    ```python
    env = DiscretisedAction(gymnasium.make("rlsr/DetailControl-v0"), band_moves(DetailControl()))
    DQN("CnnPolicy", env).learn(10_000)
    ```

    The native vector environment takes a table by Gymnasium's own wrapper:

    ```python
    gymnasium.wrappers.vector.TransformAction(
        envs, lambda numbers: table[numbers], single_action_space=Discrete(len(table))
    )
    ```

    Attributes:
        table: `(n, *shape)`, the action that each number stands for, in the inner action space's dtype.
    """

    def __init__(self, env: gymnasium.Env[Any, np.ndarray], table: np.ndarray | Sequence[Any]) -> None:
        """Wrap an environment.

        Args:
            env: Any environment whose action space is a `Box`.
            table: `(n, *shape)`, one action of the box in each row; an array or nested lists.

        Raises:
            TypeError: For another action space.
            ValueError: For a table of the wrong shape, or a row outside the box.
        """
        space = env.action_space
        if not isinstance(space, Box):
            raise TypeError(f"DiscretisedAction needs a Box action space, got {space}")
        rows = np.array(table, dtype=space.dtype)
        if rows.ndim != len(space.shape) + 1 or rows.shape[1:] != space.shape or len(rows) == 0:
            raise ValueError(f"the table must have shape (n, {', '.join(map(str, space.shape))}), got {rows.shape}")
        if outside := [number for number, row in enumerate(rows) if not space.contains(row)]:
            raise ValueError(f"rows {outside} of the table are not in {space}")
        # As lists, so that the environment's spec can be written to JSON.
        RecordConstructorArgs.__init__(self, table=rows.tolist())
        gymnasium.ActionWrapper.__init__(self, env)
        self.table = rows
        self.action_space = Discrete(len(rows))

    def action(self, action: int | np.integer | np.ndarray) -> np.ndarray:
        """The row of the table that a number stands for.

        Raises:
            ValueError: For anything but an integer from 0 to n - 1.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"expected an integer from 0 to {len(self.table) - 1}, got {action!r}")
        return self.table[int(action)].copy()
