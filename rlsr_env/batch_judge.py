"""From restored pictures to their metric: round a batch to 8 bits and compare it with its originals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rlsr_env.batches import groups_in_cache
from rlsr_env.cores import available_cores
from rlsr_env.level_judges import LevelJudge
from rlsr_env.metrics import Metric
from rlsr_env.rounding import refuse_nan, to_levels
from rlsr_env.tasks import PartRestorer

# What an infinite metric counts as (the PSNR of a patch restored without any error, in dB): a reward must be finite.
# The PSNR of an 8-bit patch with a single value off by one stays below it up to 226 x 226 pixels.
PERFECT = 100.0
# Pictures that are restored, rounded and judged before the next ones: as many values as stay in the cache of a core,
# but not fewer pictures than it takes for the loops to outweigh the calls.
CACHED_VALUES, FEWEST_PICTURES = 160_000, 8


class BatchJudge:
    """The metric of a batch whose originals change now and then.

    The batch is judged in groups, always the same and always whole: the last bits that a metric gives a picture may
    depend on the batch's size, and a reward for any rise would pay for the difference. Where the metric has compiled
    loops, the groups are small and go through restoring, rounding and judging one by one, in several threads.

    Attributes:
        metric: The judge.
        groups: Slices of the batch.
    """

    def __init__(self, metric: Metric, shape: tuple[int, ...], device: torch.device) -> None:
        """Know no originals yet.

        Args:
            metric: The judge.
            shape: Of the batch, `(N, 3, H, W)`.
            device: Where the pictures are.
        """
        self.metric = metric
        self._level_judge: LevelJudge | None = None
        if metric.level_judge is not None and device.type == "cpu":
            self._level_judge = metric.level_judge(shape)
            self.groups = _small_groups(shape)
        else:
            self.groups = groups_in_cache(shape[0], int(np.prod(shape[1:])), device)
        self._judges: dict[int, Callable[[Tensor], Tensor]] = {}  # of each group, against its originals

    def take(self, hr_levels: Tensor) -> None:
        """Get ready for originals `(N, 3, H, W)` uint8."""
        for group in self.groups:
            self._take_group(group, hr_levels)

    def judge(
        self, restored: Tensor | PartRestorer, hr_levels: Tensor, marked: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """Round pictures and measure them.

        Args:
            restored: The pictures `(N, 3, H, W)` float in [0, 1], or what writes them part by part.
            hr_levels: The originals, `(N, 3, H, W)` uint8.
            marked: `(N,)` bool: only these are wanted, and their originals are new; all, and no new originals, where
                not given.

        Returns:
            Pictures `(N, 3, H, W)` uint8 and values `(N,)` float64, finite; what is not marked does not mean anything.

        Raises:
            TypeError: For pictures that are no floats.
            ValueError: For pictures of another shape or that hold NaN, or a metric that returns NaN or not one number
                for each picture.
        """
        if tuple(restored.shape) != tuple(hr_levels.shape):
            raise ValueError(f"the pictures are {tuple(restored.shape)}, their originals {tuple(hr_levels.shape)}")
        groups = [group for group in self.groups if marked is None or marked[group].any()]
        sr_levels = to_levels(restored) if isinstance(restored, Tensor) else torch.empty_like(hr_levels)
        values = torch.zeros(len(hr_levels), dtype=torch.float64, device=hr_levels.device)
        judge = self._level_judge
        if judge is not None:
            sr, hr, results = sr_levels.numpy(), hr_levels.numpy(), values.numpy()

            def judge_group(group: slice) -> None:
                if marked is not None:
                    judge.take(group, hr[group])
                judge.judge(group, sr[group], hr[group], results[group])

            _work_through(groups, restored, sr_levels, judge_group)
        else:
            _work_through(groups, restored, sr_levels)
            for group in groups:
                if marked is not None:
                    self._take_group(group, hr_levels)
                values[group] = self._judge_group(group, sr_levels[group])
        return sr_levels, values.nan_to_num_(posinf=PERFECT, neginf=-PERFECT)

    def _take_group(self, group: slice, hr_levels: Tensor) -> None:
        """Get ready for the originals of a group."""
        if self._level_judge is not None:
            self._level_judge.take(group, hr_levels[group].numpy())
        else:
            self._judges[group.start] = self.metric.against_levels(hr_levels[group])

    def _judge_group(self, group: slice, sr_levels: Tensor) -> Tensor:
        """The metric of a group's pictures, `(n,)` float64."""
        values = self._judges[group.start](sr_levels).double()
        if values.shape != (len(sr_levels),) or values.isnan().any():
            raise ValueError(
                f"metric {self.metric.name} returned {values.tolist()} for {len(sr_levels)} pictures; expected one "
                "number for each, and none of them NaN"
            )
        return values


def rounded(restored: Tensor | PartRestorer) -> Tensor:
    """Pictures, or what writes them, as levels of 8 bits, uint8; raises what `to_levels` does."""
    if isinstance(restored, Tensor):
        return to_levels(restored)
    sr_levels = torch.empty(restored.shape, dtype=torch.uint8)
    _work_through(_small_groups(restored.shape), restored, sr_levels)
    return sr_levels


def _small_groups(shape: tuple[int, ...]) -> list[slice]:
    """Slices of a batch `(N, 3, H, W)` that go through several loops one by one; enough of them for all cores."""
    size = max(FEWEST_PICTURES, CACHED_VALUES // int(np.prod(shape[1:])))
    size = min(size, max(1, -(-shape[0] // available_cores())))
    return [slice(start, min(start + size, shape[0])) for start in range(0, shape[0], size)]


def _work_through(
    groups: list[slice], restored: Tensor | PartRestorer, sr_levels: Tensor,
    then: Callable[[slice], None] | None = None,
) -> None:  # fmt: skip
    """Restore and round each group whose pictures are still to be written, and do with it what comes then."""
    from rlsr_env.loops import round_to_levels, share  # compiled by Numba, which takes its time to be imported

    if isinstance(restored, Tensor) and then is None:
        return
    levels = sr_levels.numpy()

    @torch.no_grad()  # every thread has its own switch
    def work(numbers: slice) -> None:
        memory = np.empty((max(group.stop - group.start for group in groups), *levels.shape[1:]), np.float32)
        for group in groups[numbers]:
            if not isinstance(restored, Tensor):
                sr_image = memory[: group.stop - group.start]
                restored.write(group, sr_image)
                if np.isnan(round_to_levels(sr_image.reshape(-1), levels[group].reshape(-1))):
                    refuse_nan(torch.from_numpy(sr_image))
            if then is not None:
                then(group)

    share(work, len(groups), sr_levels.numel())
