"""Metrics of 8-bit pictures by compiled loops on the CPU, for one part of a batch after another.

A batch that is restored, rounded and judged part by part stays in the processor's cache on its way. So these judges
work on arrays, keep what depends on the originals alone for the whole batch, and may be asked for different parts in
several threads at a time.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rlsr_env.block_maps import WINDOW_RADIUS, WINDOW_SIGMA
from rlsr_env.filters import gaussian_kernel

Levels = NDArray[np.uint8]


class LevelJudge(Protocol):
    """A metric of the pictures of a batch."""

    def take(self, part: slice, hr_levels: Levels) -> None:
        """Get ready for originals.

        Args:
            part: Which pictures of the batch.
            hr_levels: Their originals, `(n, 3, H, W)` uint8, contiguous.
        """
        ...

    def judge(self, part: slice, sr_levels: Levels, hr_levels: Levels, values: NDArray[np.float64]) -> None:
        """Judge pictures.

        Args:
            part: Which pictures of the batch; their originals were taken.
            sr_levels: The pictures, `(n, 3, H, W)` uint8, contiguous.
            hr_levels: Their originals.
            values: `(n,)`, where the result is written.
        """
        ...


class PSNRJudge:
    """PSNR, exactly: its sums are of integers, where float32 rounds the levels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """For a batch of `shape` `(N, 3, H, W)`."""
        self._n_values = int(np.prod(shape[1:]))

    def take(self, part: slice, hr_levels: Levels) -> None:
        """Nothing depends on the originals alone."""

    def judge(self, part: slice, sr_levels: Levels, hr_levels: Levels, values: NDArray[np.float64]) -> None:
        """Write decibels (Savioli 2019, eq. 6), infinite where the pictures are the same."""
        from rlsr_env.loops import squared_level_difference  # compiled by Numba, which takes its time to be imported

        squared_level_difference(sr_levels.reshape(len(values), -1), hr_levels.reshape(len(values), -1), values)
        with np.errstate(divide="ignore"):
            np.multiply(-10.0, np.log10(values / (255.0**2 * self._n_values)), out=values)


class SSIMJudge:
    """SSIM (Wang et al. 2004); keeps each original's mean and variance under each window."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """For a batch of `shape` `(N, 3, H, W)`."""
        n, channels, height, width = shape
        self._window = gaussian_kernel(WINDOW_RADIUS, WINDOW_SIGMA, torch.empty(0, dtype=torch.float32)).numpy()
        windows = (n, channels, height - 2 * WINDOW_RADIUS, width)
        self._means, self._variances = np.empty(windows, np.float32), np.empty(windows, np.float32)

    def take(self, part: slice, hr_levels: Levels) -> None:
        """Compute means and variances."""
        from rlsr_env.similarity_loops import statistics  # compiled by Numba, which takes its time to be imported

        statistics(hr_levels, self._window, self._means[part], self._variances[part])

    def judge(self, part: slice, sr_levels: Levels, hr_levels: Levels, values: NDArray[np.float64]) -> None:
        """Write the mean over all windows and colours, as a number of float32."""
        from rlsr_env.similarity_loops import similarity  # compiled by Numba, which takes its time to be imported

        by_colour = np.empty(sr_levels.shape[:2])
        similarity(sr_levels, hr_levels, self._means[part], self._variances[part], self._window, by_colour)
        values[:] = by_colour.mean(1).astype(np.float32)
