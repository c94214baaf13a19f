"""Dynamic time warping of scan lines (Sakoe and Chiba 1978, symmetric steps of weight 1)."""

from __future__ import annotations

import numpy as np

from rlsr_env.cores import compiled, share_out

# Lines that are warped side by side: with their number as the innermost dimension, one instruction serves several.
LANES = 32


def line_distances(one: np.ndarray, other: np.ndarray, window: int | None = None) -> np.ndarray:
    """The warping distance of each line of one array from the same line of the other.

    A path leads from the first pair of points to the last; each step moves on by one point in either line or in both.
    The distance is the least sum of absolute differences over all paths. Uses all available cores.

    Args:
        one: `(n_lines, length)`, float32 or float64, finite.
        other: The same.
        window: How far apart the points of a pair may be at most, 0 or more (the Sakoe-Chiba band); any distance where
            None. The cost is in proportion to `2 * window + 1` points instead of the length.

    Returns:
        `(n_lines,)`, of the same dtype.

    Raises:
        ValueError: For arrays of different shapes, or a negative window.
    """
    _check_lines(one, other)
    if window is not None and window < 0:
        raise ValueError(f"the window is 0 or more points wide, or None for any width; got {window}")
    n_lines, length = one.shape
    n_groups = -(-n_lines // LANES)
    distances = np.empty((n_groups, LANES), one.dtype)

    def warp(groups: slice) -> None:
        lines = slice(groups.start * LANES, min(groups.stop * LANES, n_lines))
        _warp(_in_lanes(one[lines]), _in_lanes(other[lines]), length if window is None else window, distances[groups])

    if length:
        share_out(warp, n_groups)
    else:
        distances[:] = 0
    return distances.reshape(-1)[:n_lines]


def line_shares(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What each point of a line adds to its warping distance: the costs of the best path's pairs that it is part of.

    A line's shares sum up to `line_distances`. Where a point changes a little, so does the distance, and by as much as
    along the path that was the best before: to first order a change of a point is a change of its own share.

    Args:
        one: `(n_lines, length)`, float32 or float64, finite; the points that the distance is shared out to.
        other: The same.

    Returns:
        `(n_lines, length)`, of the same dtype.

    Raises:
        ValueError: For arrays of different shapes.
    """
    _check_lines(one, other)
    n_lines, length = one.shape
    n_groups = -(-n_lines // LANES)
    shares = np.zeros((n_groups, LANES, length), one.dtype)

    def warp(groups: slice) -> None:
        lines = slice(groups.start * LANES, min(groups.stop * LANES, n_lines))
        _share(_in_lanes(one[lines]), _in_lanes(other[lines]), shares[groups])

    if length:
        share_out(warp, n_groups)
    return shares.reshape(-1, length)[:n_lines]


def _check_lines(one: np.ndarray, other: np.ndarray) -> None:
    """Refuse what are not two arrays of as many lines of one length."""
    if one.shape != other.shape or one.ndim != 2 or one.dtype != other.dtype:
        raise ValueError(
            f"lines are two arrays (n_lines, length) of one shape and dtype, got {one.shape} {one.dtype} and "
            f"{other.shape} {other.dtype}"
        )


def _in_lanes(lines: np.ndarray) -> np.ndarray:
    """`(n, length)` to `(groups, length, LANES)`; the last group is filled up with zeros."""
    filled = np.zeros((-(-len(lines) // LANES) * LANES, lines.shape[1]), lines.dtype)
    filled[: len(lines)] = lines
    return np.ascontiguousarray(filled.reshape(-1, LANES, lines.shape[1]).transpose(0, 2, 1))


@compiled
def _warp(one: np.ndarray, other: np.ndarray, window: int, distances: np.ndarray) -> None:
    """The dynamic programme, two rows of it at a time, for each group of lines.

    `current[j + 1]` is the least cost of a path that has reached point i of the one line and point j of the other.
    """
    n_groups, length, _ = one.shape
    previous = np.empty((length + 1, LANES), one.dtype)
    current = np.empty((length + 1, LANES), one.dtype)
    for group in range(n_groups):
        previous[:] = np.inf
        previous[0] = 0
        for i in range(length):
            start, stop = max(0, i - window), min(length, i + window + 1)
            current[start] = np.inf
            for j in range(start, stop):
                for lane in range(LANES):
                    shorter = min(previous[j, lane], previous[j + 1, lane], current[j, lane])
                    current[j + 1, lane] = abs(one[group, i, lane] - other[group, j, lane]) + shorter
            if stop < length:  # the next row begins its last step here, outside of this row's band
                current[stop + 1] = np.inf
            previous, current = current, previous
        distances[group] = previous[length]


@compiled
def _share(one: np.ndarray, other: np.ndarray, shares: np.ndarray) -> None:
    """The dynamic programme with all of its costs kept, for each group of lines, then the best path of each line back.

    `costs[i, j]` is the least cost of a path that has passed i points of the one line and j points of the other.
    """
    n_groups, length, _ = one.shape
    costs = np.empty((length + 1, length + 1, LANES), one.dtype)
    costs[0] = np.inf
    costs[:, 0] = np.inf
    costs[0, 0] = 0
    for group in range(n_groups):
        for i in range(length):
            for j in range(length):
                for lane in range(LANES):
                    shorter = min(costs[i, j, lane], costs[i, j + 1, lane], costs[i + 1, j, lane])
                    costs[i + 1, j + 1, lane] = abs(one[group, i, lane] - other[group, j, lane]) + shorter
        for lane in range(LANES):
            i, j = length, length
            while i > 0:  # then j is 0 as well: the borders cost infinitely much
                shares[group, lane, i - 1] += abs(one[group, i - 1, lane] - other[group, j - 1, lane])
                both, up, left = costs[i - 1, j - 1, lane], costs[i - 1, j, lane], costs[i, j - 1, lane]
                if both <= up and both <= left:
                    i, j = i - 1, j - 1
                elif up <= left:
                    i -= 1
                else:
                    j -= 1
