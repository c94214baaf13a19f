"""Edges by Canny's detector (Canny 1986), fast enough to be a reward."""

from __future__ import annotations

import numpy as np

from rlsr_env.cores import compiled, share_out

# The Gaussian before the gradient, cut at four standard deviations.
SIGMA, RADIUS = 1.0, 4
# Of the gradient's magnitude, by Sobel's filters and so eight times the slope per pixel, for luma in [0, 1]: an edge is
# what hangs together at LOW or above and reaches HIGH somewhere.
LOW, HIGH = 0.1, 0.2


def edge_maps(luma: np.ndarray) -> np.ndarray:
    """The edges of each picture, one pixel wide; none on the outermost pixels. Uses all available cores.

    Args:
        luma: `(B, H, W)` in [0, 1], finite.

    Returns:
        `(B, H, W)` bool.
    """
    pictures = np.ascontiguousarray(luma, np.float32)
    edges = np.zeros(pictures.shape, np.bool_)
    rows, columns = _gaussian(pictures.shape[1]), np.ascontiguousarray(_gaussian(pictures.shape[2]).T)

    def detect(share: slice) -> None:
        _detect(pictures[share], rows, columns, edges[share])

    share_out(detect, len(pictures))
    return edges


def _gaussian(size: int) -> np.ndarray:
    """The weights around each of `size` pixels, `(size, 2 * RADIUS + 1)`: of sum 1, and none beyond the border."""
    distance = np.arange(-RADIUS, RADIUS + 1)
    place = np.arange(size)[:, None] + distance
    weights = np.exp(-0.5 * (distance / SIGMA) ** 2) * ((place >= 0) & (place < size))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@compiled
def _blur(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray, half: np.ndarray, blurred: np.ndarray) -> None:
    """The Gaussian along columns, then along rows."""
    height, width = picture.shape
    for y in range(height):
        for x in range(width):
            half[x] = 0
        for k in range(-RADIUS, RADIUS + 1):
            weight, row = rows[y, k + RADIUS], min(max(y + k, 0), height - 1)
            for x in range(width):
                half[x] += weight * picture[row, x]
        for x in range(width):
            total = np.float32(0)
            for k in range(-RADIUS, RADIUS + 1):
                total += columns[k + RADIUS, x] * half[min(max(x + k, 0), width - 1)]
            blurred[y, x] = total


@compiled
def _slopes(blurred: np.ndarray, slope_y: np.ndarray, slope_x: np.ndarray, magnitude: np.ndarray) -> None:
    """Sobel's filters and their magnitude; beyond the border a picture goes on as a mirror would show it."""
    height, width = blurred.shape
    for y in range(height):
        above, here, below = blurred[max(0, y - 1)], blurred[y], blurred[min(height - 1, y + 1)]
        for x in range(width):
            left, right = max(0, x - 1), min(width - 1, x + 1)
            down = (below[left] - above[left]) + 2 * (below[x] - above[x]) + (below[right] - above[right])
            across = (above[right] - above[left]) + 2 * (here[right] - here[left]) + (below[right] - below[left])
            slope_y[y, x], slope_x[y, x] = down, across
            magnitude[y, x] = np.sqrt(down * down + across * across)


@compiled
def _ridges(magnitude: np.ndarray, slope_y: np.ndarray, slope_x: np.ndarray, ridge: np.ndarray) -> None:
    """Mark where the magnitude is LOW or above, and nowhere less than one step along the slope, forwards and backwards.

    The step ends on the square of neighbours, between two of them: one straight ahead along the steeper axis and one
    at the corner; the magnitude there is interpolated. Written without branches, which no processor could foresee.
    """
    height, width = magnitude.shape
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            here, down, across = magnitude[y, x], slope_y[y, x], slope_x[y, x]
            to_y, to_x = 2 * int(down > 0) - 1, 2 * int(across > 0) - 1
            steep = int(abs(down) > abs(across))
            ahead_y, ahead_x = to_y * steep, to_x * (1 - steep)
            share = min(abs(down), abs(across)) / max(abs(down), abs(across), np.float32(1e-30))
            forwards = share * magnitude[y + to_y, x + to_x] + (1 - share) * magnitude[y + ahead_y, x + ahead_x]
            backwards = share * magnitude[y - to_y, x - to_x] + (1 - share) * magnitude[y - ahead_y, x - ahead_x]
            ridge[y, x] = (here >= LOW) & (here >= forwards) & (here >= backwards)


@compiled
def _trace(ridge: np.ndarray, magnitude: np.ndarray, edges: np.ndarray, stack: np.ndarray) -> None:
    """Mark the ridges that reach HIGH and all that hangs together with them, corners included."""
    height, width = ridge.shape
    for seed_y in range(1, height - 1):
        for seed_x in range(1, width - 1):
            if not ridge[seed_y, seed_x] or edges[seed_y, seed_x] or magnitude[seed_y, seed_x] < HIGH:
                continue
            edges[seed_y, seed_x] = True
            stack[0] = seed_y, seed_x
            n_waiting = 1
            while n_waiting:
                n_waiting -= 1
                y, x = stack[n_waiting]
                for next_y in range(y - 1, y + 2):
                    for next_x in range(x - 1, x + 2):
                        if ridge[next_y, next_x] and not edges[next_y, next_x]:
                            edges[next_y, next_x] = True
                            stack[n_waiting] = next_y, next_x
                            n_waiting += 1


@compiled
def _detect(pictures: np.ndarray, rows: np.ndarray, columns: np.ndarray, edges: np.ndarray) -> None:
    """Canny's steps on one picture after another."""
    _, height, width = pictures.shape
    half = np.empty(width, np.float32)
    blurred, magnitude = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    slope_y, slope_x = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    ridge = np.zeros((height, width), np.bool_)
    stack = np.empty((height * width, 2), np.int64)
    for number in range(len(pictures)):
        _blur(pictures[number], rows, columns, half, blurred)
        _slopes(blurred, slope_y, slope_x, magnitude)
        _ridges(magnitude, slope_y, slope_x, ridge)
        _trace(ridge, magnitude, edges[number], stack)
