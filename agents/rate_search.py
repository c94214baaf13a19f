"""Settings for a set of pictures in a total of bytes, where each file that is made says more about its picture.

A policy sees what a picture probably costs and is worth at every setting, and how wrong that tends to be: by as much,
and in the same direction, at neighbouring settings. Such errors are taken for normally distributed, so that one real
file of a picture corrects what is expected of all its others (the conditional of a Gaussian: Bishop 2006, eq. 2.81-82).
It is a bandit whose arms are related, explored by optimism in the face of uncertainty (Auer 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from agents.rate_policy import RatePolicy, bytes_at, picture_features
from rlsr_env.rate_oracle import Choice, choice_of, spend, spend_rest, weighted_choice
from rlsr_env.rate_table import RateTable

# From the number of a picture and of a setting to the bytes of the file and its quality.
Measure = Callable[[int, int], tuple[int, float]]
# Of what has been measured without an error: keeps the equations solvable where two settings always go together.
LEAST_VARIANCE = 1e-6
# What optimism adds, in standard deviations, until there is something left to try; and the most of it.
OPTIMISM_STEP, MOST_OPTIMISM = 0.5, 2.5


class Belief:
    """What is expected of every picture at every setting, and how sure that is.

    Attributes:
        uris: Names of the P pictures.
        n_pixels: Of each original, `(P,)` int64.
        made: Which files have been made, `(P, S)` bool.
    """

    def __init__(self, policy: RatePolicy, uris: Sequence[str], n_pixels: np.ndarray, views: torch.Tensor) -> None:
        """Begin with what the policy expects.

        Args:
            policy: A trained policy of S settings.
            uris: Names of the pictures.
            n_pixels: Of each original, `(P,)`.
            views: Of each picture, `(P, 11, 64, 64)` uint8; see `rlsr_env.rate_views`.

        Raises:
            ValueError: For names, pixels and views of different numbers of pictures.
        """
        if not len(uris) == len(n_pixels) == len(views):
            raise ValueError(
                f"a belief needs a name, the pixels and a view of each picture, got {len(uris)} names, "
                f"{len(n_pixels)} numbers of pixels and {len(views)} views"
            )
        self.uris, self.n_pixels, self._settings = tuple(uris), np.asarray(n_pixels), policy.settings_list
        with torch.no_grad():
            curves = torch.cat(policy.network.curves(picture_features(views)), dim=1).double().numpy()
        self._covariance = policy.network.error_covariance.double().numpy()
        # Qualities, then logarithms of bits per pixel, as in `RateNetwork`.
        self._prior, self._mean = curves, curves.copy()
        self._deviation = np.tile(np.sqrt(np.diag(self._covariance)), (len(self.uris), 1))
        self._known = np.zeros_like(curves)
        self._n_bytes = np.zeros((len(self.uris), len(self._settings)), dtype=np.int64)

    @property
    def made(self) -> np.ndarray:
        """Which files have been made, `(P, S)` bool."""
        return self._n_bytes > 0

    def learn(self, picture: int, setting: int, n_bytes: int, quality: float) -> None:
        """Take in what a file of a picture came to.

        Args:
            picture: Its number.
            setting: The setting's.
            n_bytes: Of the file.
            quality: Of the restored picture, larger is better.

        Raises:
            ValueError: For a file of no bytes, or a quality that is not finite.
        """
        if n_bytes < 1 or not np.isfinite(quality):
            raise ValueError(
                f"{self.uris[picture]} at {self._settings[setting]} came to {n_bytes} bytes and quality {quality}; "
                "expected 1 byte or more and a finite number"
            )
        n_settings = len(self._settings)
        self._n_bytes[picture, setting] = n_bytes
        rate = 8 * n_bytes / self.n_pixels[picture]
        self._known[picture, [setting, n_settings + setting]] = quality, np.log(rate)
        seen = np.flatnonzero(self.made[picture])
        seen = np.concatenate([seen, n_settings + seen])
        among = self._covariance[np.ix_(seen, seen)] + LEAST_VARIANCE * np.eye(len(seen))
        gain = np.linalg.solve(among, self._covariance[seen]).T
        self._mean[picture] = self._prior[picture] + gain @ (self._known[picture, seen] - self._prior[picture, seen])
        variance = np.diag(self._covariance) - (gain * self._covariance[:, seen]).sum(axis=1)
        self._deviation[picture] = np.sqrt(variance.clip(0))

    def table(self, optimism: float = 0.0) -> RateTable:
        """What is expected, and known of the files that have been made.

        Args:
            optimism: By how many standard deviations the others are thought smaller and better than expected.

        Returns:
            Bytes and qualities, `(P, S)` each.
        """
        hoped = optimism * self._deviation
        quality, _ = np.split(self._mean + hoped, 2, axis=1)
        _, log_rate = np.split(self._mean - hoped, 2, axis=1)
        known_quality, _ = np.split(self._known, 2, axis=1)
        return RateTable(
            self.uris,
            self.n_pixels,
            self._settings,
            np.where(self.made, self._n_bytes, bytes_at(log_rate, self.n_pixels)),
            np.where(self.made, known_quality, quality),
        )

    def doubt(self) -> np.ndarray:
        """The standard deviation of each quality, `(P, S)`."""
        return np.split(self._deviation, 2, axis=1)[0]


def choose_within(belief: Belief, total_bytes: float, measure: Measure, most_files: int) -> Choice:
    """Choose a setting for each picture so that their mean quality is the best in a total of bytes.

    Files are made of what would be the best choice, if all were as expected, until it is made of real ones alone; then
    of what would be, if the unknown were better than expected: the most doubtful half of it, and so on.

    Args:
        belief: About the pictures; learns from every file.
        total_bytes: The most that all files together may take.
        measure: Makes a file.
        most_files: How many it may make; at least one for each picture.

    Returns:
        The best choice among the files that were made.

    Raises:
        ValueError: For fewer files than pictures, a file that `Belief.learn` refuses, or where none of the files that
            were made fit into the total.
    """
    n_pictures = len(belief.uris)
    if most_files < n_pictures:
        raise ValueError(f"{n_pictures} pictures need a file each, got most_files {most_files}")
    rows = np.arange(n_pictures)
    optimism = 0.0
    while (n_left := most_files - int(belief.made.sum())) > 0 and optimism <= MOST_OPTIMISM:
        settings = _best_within(belief.table(optimism), total_bytes)
        new = np.flatnonzero(~belief.made[rows, settings])
        if not len(new):
            optimism += OPTIMISM_STEP
            continue
        if optimism:
            doubt = belief.doubt()[new, settings[new]]
            new = new[np.argsort(-doubt, kind="stable")][: -(-len(new) // 2)]
        for picture in new[:n_left].tolist():
            belief.learn(picture, int(settings[picture]), *measure(picture, int(settings[picture])))
        optimism = 0.0
    known = belief.table()
    too_large = int(total_bytes) + 1
    real = replace(known, n_bytes=np.where(belief.made, known.n_bytes, too_large))
    choice = choice_of(known, _best_within(real, total_bytes))
    if choice.n_bytes > total_bytes:
        raise ValueError(
            f"the smallest of the {int(belief.made.sum())} files that were made take {choice.n_bytes} bytes together, "
            f"more than {total_bytes:.0f}; give a larger total or allow more files"
        )
    return replace(choice, n_encodes=int(belief.made.sum()))


def _best_within(table: RateTable, total_bytes: float) -> np.ndarray:
    """The best setting for each picture in a total of bytes; the smallest files where none keep within it."""
    if table.n_bytes.min(axis=1).sum() > total_bytes:
        return table.n_bytes.argmin(axis=1)
    choice = spend(table, total_bytes, lambda weight: weighted_choice(table, weight))
    return spend_rest(table, choice, total_bytes).settings
