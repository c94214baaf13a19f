"""From the rewards of several pictures of one patch to their advantages."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Baseline = Literal["group", "leave_one_out", "critic"]
BASELINES: tuple[Baseline, ...] = ("group", "leave_one_out", "critic")
# Below this spread a group's rewards count as equal: float32 rewards of equal pictures may differ in the last bits.
FLAT = 1e-7


def advantages(rewards: Tensor, baseline: Baseline = "group", values: Tensor | None = None) -> Tensor:
    """How much better each sample is than could be expected.

    - `"group"`: less the group's mean, over the group's standard deviation (GRPO: Shao et al. 2024, sec. 4.1).
    - `"leave_one_out"`: less the mean of the group's other samples (RLOO: Kool et al. 2019), over the standard
      deviation of all that is left, one for the whole batch: patches on which little is to be gained count little.
    - `"critic"`: less a value that the critic predicted for the patch, over the standard deviation of the batch.

    Where a group's rewards are all equal its advantages are zero.

    Args:
        rewards: `(K, N, ...)`: K samples of each of N patches; what follows are places of credit within the patch.
        baseline: Which of the three.
        values: The critic's predictions `(N, ...)`, for `"critic"` only.

    Returns:
        Advantages of the shape of `rewards`.

    Raises:
        ValueError: For fewer than two samples, an unknown baseline, or a critic without values.
    """
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}; known: {', '.join(BASELINES)}")
    if rewards.ndim < 2 or rewards.shape[0] < 2:
        raise ValueError(f"rewards must be (K, N, ...) with K of 2 or more samples, got {tuple(rewards.shape)}")
    mean, deviation = rewards.mean(0), rewards.std(0)
    varies = deviation > FLAT * (1 + mean.abs())
    if baseline == "group":
        return ((rewards - mean) / deviation.clamp(min=1e-12)).where(varies, 0.0)
    if baseline == "leave_one_out":
        n_samples = rewards.shape[0]
        difference = ((rewards - mean) * (n_samples / (n_samples - 1))).where(varies, 0.0)
    else:
        if values is None or values.ndim != rewards.ndim - 1:
            got = "none" if values is None else tuple(values.shape)
            raise ValueError(f"the critic's baseline needs a value for each patch and place, (N, ...), got {got}")
        difference = (rewards - values).where(varies, 0.0)
    return difference / difference.std().clamp(min=1e-12)


def is_flat(rewards: Tensor) -> Tensor:
    """Which patches' samples all earn the same, everywhere: `(K, N, ...)` to `(N,)` bool."""
    spread = rewards.std(0) > FLAT * (1 + rewards.mean(0).abs())
    return ~spread.flatten(1).any(1) if spread.ndim > 1 else ~spread
