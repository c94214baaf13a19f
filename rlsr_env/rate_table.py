"""What every picture costs and is worth at every setting: real bytes of real files, and a metric of what they give."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlsr_env.codec import LRCodec
from rlsr_env.files import write_whole


class Setting(NamedTuple):
    """How a picture is stored.

    Attributes:
        scale: By how much it is shrunk, 1 or more.
        quality: Of the base codec.
    """

    scale: int
    quality: int


# For JPEG, from the most compressed file to one that is hard to tell from the original. The qualities of each scale are
# those that are the best choice for some picture at some rate from 0.03 to 0.5 bpp, in steps of 15 to 20 % of the
# bytes.
DEFAULT_SETTINGS = tuple(
    Setting(scale, quality)
    for scale, qualities in {
        1: (3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 36, 46),
        2: (4, 6, 8, 10, 13, 17, 22, 28, 36, 45, 55, 65, 74, 82),
        3: (10, 14, 19, 25, 33, 42, 52, 62, 71, 79, 86),
        4: (18, 25, 34, 44, 55, 66, 76, 84, 90),
    }.items()
    for quality in qualities
)


def checked_settings(settings: Sequence[Sequence[int]], base: str = "jpeg") -> tuple[Setting, ...]:
    """Settings that a base codec takes.

    Args:
        settings: Pairs of scale and quality.
        base: The base codec.

    Returns:
        The same as `Setting`s.

    Raises:
        TypeError: For a scale or quality that is no integer, or settings that are no sequence.
        ValueError: For no settings, two that are the same, something other than a pair, or a scale, quality or base
            codec that there is not.
    """
    if not isinstance(settings, Sequence | np.ndarray) or isinstance(settings, str):
        raise TypeError(f"settings are pairs of scale and quality, got {settings!r}")
    if not len(settings):
        raise ValueError("there are no settings to choose from; give pairs of scale and quality")
    checked = []
    for setting in settings:
        if not isinstance(setting, Sequence | np.ndarray) or len(setting) != 2:
            raise ValueError(f"a setting is a pair of scale and quality, got {setting!r}")
        codec = LRCodec(setting[0], base, setting[1])
        checked.append(Setting(codec.scale, codec.quality))
    if len(set(checked)) < len(checked):
        twice = next(setting for setting in checked if checked.count(setting) > 1)
        raise ValueError(f"scale {twice.scale} with quality {twice.quality} is among the settings twice")
    return tuple(checked)


@dataclass(frozen=True)
class RateTable:
    """The results of all pictures at all settings.

    Attributes:
        uris: Names of the P pictures.
        n_pixels: Pixels of each original, `(P,)` int64.
        settings: The S settings.
        n_bytes: Size of each file, `(P, S)` int64.
        values: Quality of each restored picture, larger is better, `(P, S)` float64.

    Raises:
        ValueError: For an empty table, arrays that do not fit each other, sizes that are not positive, or a quality
            that is NaN or infinite.
    """

    uris: tuple[str, ...]
    n_pixels: np.ndarray
    settings: tuple[Setting, ...]
    n_bytes: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        """Check that everything fits."""
        shape = (len(self.uris), len(self.settings))
        if 0 in shape:
            raise ValueError(f"a table needs pictures and settings, got {shape[0]} pictures and {shape[1]} settings")
        if self.n_pixels.shape != shape[:1] or self.n_bytes.shape != shape or self.values.shape != shape:
            raise ValueError(
                f"a table of {shape[0]} pictures and {shape[1]} settings needs n_pixels {shape[:1]}, n_bytes and "
                f"values {shape}, got {self.n_pixels.shape}, {self.n_bytes.shape} and {self.values.shape}"
            )
        if (self.n_pixels < 1).any() or (self.n_bytes < 1).any():
            raise ValueError("pictures have 1 or more pixels, and files 1 or more bytes")
        if not np.isfinite(self.values).all():
            picture, setting = np.argwhere(~np.isfinite(self.values))[0]
            raise ValueError(
                f"the quality of {self.uris[picture]} at {self.settings[setting]} is {self.values[picture, setting]}; "
                "expected a finite number"
            )

    @property
    def bits_per_pixel(self) -> np.ndarray:
        """Rate of each file over the pixels of the original, `(P, S)` float64."""
        return 8 * self.n_bytes / self.n_pixels[:, None]

    def rewards(self, rate_weight: float | np.ndarray) -> np.ndarray:
        """Quality minus `rate_weight` times bits per pixel, `(P, S)`.

        Args:
            rate_weight: One for all pictures, or one for each, `(P,)`.
        """
        weight = np.broadcast_to(np.asarray(rate_weight, dtype=np.float64), self.n_pixels.shape)
        return self.values - weight[:, None] * self.bits_per_pixel

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to a `.npz` file, which is there whole or not at all."""
        arrays = {
            "uris": np.array(self.uris), "n_pixels": self.n_pixels, "settings": np.array(self.settings),
            "n_bytes": self.n_bytes, "values": self.values,
        }  # fmt: skip
        write_whole(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RateTable:
        """Read a table that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no such table.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(
                    tuple(arrays["uris"].tolist()),
                    arrays["n_pixels"],
                    tuple(Setting(*pair) for pair in arrays["settings"].tolist()),
                    arrays["n_bytes"],
                    arrays["values"],
                )
        except FileNotFoundError:
            raise
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{Path(path)} is no table of rates ({error})") from error
