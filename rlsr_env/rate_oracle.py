"""The best that an agent could do in `rlsr/RateControl-v0`: the best choice among every picture at every setting.

Choices are compared at equal total bytes: a fixed setting takes a number of bytes for a set of pictures; whoever
chooses for each picture must not take more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rlsr_env.rate_table import RateTable, Setting

# From a weight of the rate, in units of quality per bit per pixel, to the number of a setting for each picture, `(P,)`.
Chooser = Callable[[float], np.ndarray]
# Beyond these weights of the rate, nothing but the best or the smallest files is chosen.
LEAST_WEIGHT, GREATEST_WEIGHT = 1e-3, 1e6


@dataclass(frozen=True)
class Choice:
    """A setting for each picture.

    Attributes:
        settings: Numbers of the settings, `(P,)` int64.
        n_bytes: Of all files together.
        quality: Mean over the pictures.
        bits_per_pixel: Mean over the pictures.
        rate_weight: With which they were chosen; NaN for a fixed setting.
        n_encodes: How many files had to be made to find them.
    """

    settings: np.ndarray
    n_bytes: int
    quality: float
    bits_per_pixel: float
    rate_weight: float = float("nan")
    n_encodes: int = 0


@dataclass(frozen=True)
class RateOracle:
    """What there is to gain at a total of bytes.

    Attributes:
        setting: The best fixed setting.
        fixed: Everybody at that setting.
        oracle: The best choice picture by picture, in no more bytes than the fixed setting's.
    """

    setting: Setting
    fixed: Choice
    oracle: Choice

    @property
    def gain(self) -> float:
        """What the oracle gains over the fixed setting, mean over the pictures."""
        return self.oracle.quality - self.fixed.quality


def choice_of(table: RateTable, settings: np.ndarray, rate_weight: float = float("nan")) -> Choice:
    """What a setting for each picture comes to.

    Args:
        table: The results.
        settings: Numbers of the settings, `(P,)`.
        rate_weight: With which they were chosen.

    Raises:
        ValueError: For another number of choices, or a setting that is not in the table.
    """
    chosen = np.asarray(settings)
    if chosen.shape != table.n_pixels.shape or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(
            f"expected the number of a setting for each of {len(table.uris)} pictures, got {chosen.dtype} "
            f"{chosen.shape}"
        )
    if chosen.min() < 0 or chosen.max() >= len(table.settings):
        raise ValueError(f"settings are numbered 0 to {len(table.settings) - 1}, got {chosen.min()} to {chosen.max()}")
    rows = np.arange(len(chosen))
    return Choice(
        chosen.astype(np.int64),
        int(table.n_bytes[rows, chosen].sum()),
        float(table.values[rows, chosen].mean()),
        float(table.bits_per_pixel[rows, chosen].mean()),
        rate_weight,
    )


def best_fixed_setting(table: RateTable, total_bytes: float) -> int:
    """The setting with the best mean quality among those that keep within a total of bytes.

    Args:
        table: The results.
        total_bytes: The most that all files together may take.

    Returns:
        The number of the setting.

    Raises:
        ValueError: No setting keeps within it; the nearest is named.
    """
    totals = table.n_bytes.sum(axis=0)
    if not (totals <= total_bytes).any():
        least = int(totals.argmin())
        raise ValueError(
            f"no setting keeps all pictures within {total_bytes:.0f} bytes together; the smallest is "
            f"{table.settings[least]} with {totals[least]}"
        )
    return int(np.where(totals <= total_bytes, table.values.mean(axis=0), -np.inf).argmax())


def spend(
    table: RateTable, total_bytes: float, chooser: Chooser, guess: float = 20.0, factor: float = 2.0, n_steps: int = 40
) -> Choice:
    """Let somebody choose with the weight of the rate at which the files come nearest to a total of bytes from below.

    The weight is looked for from a guess on, then by bisection on its logarithm: the total falls as it rises, for a
    chooser who means it. Every file that this takes is counted once.

    Args:
        table: The results, to count the bytes.
        total_bytes: The most that all files together may take.
        chooser: From a weight of the rate to a setting for each picture.
        guess: The weight to begin with.
        factor: By how much it is changed until there is one on either side of the total; above 1.
        n_steps: Of the bisection.

    Returns:
        The last choice within the total, which is the one of most bytes.

    Raises:
        ValueError: Not even the greatest weight keeps within it.
    """
    rows, made = np.arange(len(table.uris)), np.zeros(table.n_bytes.shape, dtype=np.bool_)

    def choose(log_weight: float) -> Choice:
        choice = choice_of(table, chooser(float(np.exp(log_weight))), float(np.exp(log_weight)))
        made[rows, choice.settings] = True
        return choice

    least, greatest = np.log(LEAST_WEIGHT), np.log(GREATEST_WEIGHT)
    log_weight, step = float(np.clip(np.log(guess), least, greatest)), float(np.log(factor))
    choice = choose(log_weight)
    if choice.n_bytes > total_bytes:
        while choice.n_bytes > total_bytes:
            if log_weight >= greatest:
                raise ValueError(f"even the smallest choice takes {choice.n_bytes} bytes, more than {total_bytes:.0f}")
            low, log_weight, step = log_weight, min(log_weight + step, greatest), 2 * step
            choice = choose(log_weight)
        best, high = choice, log_weight
    else:
        best, high, low = choice, log_weight, log_weight
        while low > least:
            low, step = max(low - step, least), 2 * step
            choice = choose(low)
            if choice.n_bytes > total_bytes:
                break
            best, high = choice, low
    for _ in range(n_steps):
        choice = choose((low + high) / 2)
        if choice.n_bytes > total_bytes:
            low = (low + high) / 2
        else:
            best, high = choice, (low + high) / 2
    return replace(best, n_encodes=int(made.sum()))


def rate_control_oracle(
    table: RateTable, bits_per_pixel: float | None = None, total_bytes: float | None = None
) -> RateOracle:
    """What choosing a setting for each picture can gain over the best fixed setting, in no more bytes together.

    The oracle maximises the sum of the qualities minus the weight of the rate times the bits (Shoham and Gersho 1988),
    and finds the weight by bisection. That is on the convex hull of all choices, where the next one may be far; what
    is left of the bytes then goes to the pictures that gain most by the byte.

    Args:
        table: The results of all pictures at all settings.
        bits_per_pixel: A rate over all pixels together; or
        total_bytes: bytes of all files together.

    Returns:
        Both choices. The oracle is never worse than the fixed setting.

    Raises:
        ValueError: For both or neither of the two, one that is not above 0 and finite, or one that no setting keeps.
    """
    if (bits_per_pixel is None) == (total_bytes is None):
        raise ValueError("give either bits_per_pixel or total_bytes")
    target = float(total_bytes if bits_per_pixel is None else bits_per_pixel * table.n_pixels.sum() / 8)  # type: ignore[arg-type]
    if not 0 < target < np.inf:
        raise ValueError(f"bits_per_pixel and total_bytes are above 0 and finite, got {target} bytes")
    number = best_fixed_setting(table, target)
    fixed = choice_of(table, np.full(len(table.uris), number))
    oracle = spend_rest(
        table, spend(table, fixed.n_bytes, lambda weight: weighted_choice(table, weight)), fixed.n_bytes
    )
    best = oracle if oracle.quality >= fixed.quality else fixed
    return RateOracle(table.settings[number], fixed, replace(best, n_encodes=table.n_bytes.size))


def spend_rest(table: RateTable, choice: Choice, total_bytes: float) -> Choice:
    """Better settings for single pictures, as long as there are bytes left for one; most quality by the byte first.

    Args:
        table: The results.
        choice: What has been chosen so far.
        total_bytes: The most that all files together may take.

    Returns:
        The better choice, with the files that were made for it.
    """
    chosen, rows, n_steps = choice.settings.copy(), np.arange(len(table.uris)), 0
    while True:
        more_bytes = table.n_bytes - table.n_bytes[rows, chosen][:, None]
        gain = table.values - table.values[rows, chosen][:, None]
        possible = (gain > 0) & (more_bytes <= total_bytes - int(table.n_bytes[rows, chosen].sum()))
        if not possible.any():
            break
        # What takes no more bytes is taken at once.
        by_the_byte = np.where(possible, gain / np.maximum(more_bytes, 1e-3), -np.inf)
        picture, setting = np.unravel_index(int(by_the_byte.argmax()), by_the_byte.shape)
        chosen[picture] = setting
        n_steps += 1
    better = choice_of(table, chosen, choice.rate_weight)
    return replace(better, n_encodes=choice.n_encodes + n_steps)


def weighted_choice(table: RateTable, rate_weight: float) -> np.ndarray:
    """The oracle's choice: for each picture the setting of the greatest reward, `(P,)` int64.

    All pictures' bits count alike, so a large picture's bits per pixel count for as many bits as it has.

    Args:
        table: The results.
        rate_weight: In units of quality per bit per pixel of a picture of the mean size.
    """
    relative_size = table.n_pixels / table.n_pixels.mean()
    return table.rewards(rate_weight * relative_size).argmax(axis=1)
