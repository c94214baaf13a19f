"""Pictures to be stored at any of several settings, and what comes of it: real files, really restored, judged once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages
from rlsr_env.metrics import Metric, metric
from rlsr_env.patches import to_float
from rlsr_env.rate_table import DEFAULT_SETTINGS, RateTable, Setting, checked_settings
from rlsr_env.rate_views import view_picture
from rlsr_env.resample import upsample
from rlsr_env.rounding import to_8bit

# From LR pictures (1, 3, h, w) float in [0, 1] to (1, 3, scale * h, scale * w).
Decoder = Callable[[Tensor], Tensor]
# From an LR stream, height and width of the original, and the scale, to the bytes of the file that holds it.
FileBytes = Callable[[bytes, tuple[int, int], int], int]
# What an infinite quality counts as, in dB: a reward must be finite (as in `rlsr_env.vector_env`).
PERFECT = 100.0


def stream_bytes(lr_stream: bytes, hr_size: tuple[int, int], scale: int) -> int:
    """The LR stream is the file."""
    return len(lr_stream)


def enlarge(lr_image: Tensor, scale: int) -> Tensor:
    """Lanczos, the decoder of a user who has no network; at scale 1 the picture itself."""
    return lr_image if scale == 1 else upsample(lr_image, scale, "lanczos")


class RateSource:
    """Pictures, settings, and a memory of what each picture costs and is worth at each setting.

    Attributes:
        uris: Names of the pictures.
        images: The originals, `(H, W, 3)` uint8 each.
        settings: What can be chosen.
        base: The base codec.
        metric: The judge.
        decibels: Whether values are turned into decibels, `-10 log10(1 - value)`.
    """

    def __init__(
        self,
        images: DecodedImages,
        settings: Sequence[Sequence[int]] = DEFAULT_SETTINGS,
        base: str = "jpeg",
        metric: str | Metric = "psnr",
        decibels: bool = False,
        decoder: Mapping[int, Decoder] | None = None,
        file_bytes: FileBytes = stream_bytes,
        table: RateTable | None = None,
    ) -> None:
        """Hold pictures ready; nothing is encoded yet.

        Args:
            images: The originals.
            settings: Pairs of scale and quality.
            base: The base codec.
            metric: Name or object.
            decibels: Turn the values of a metric that is best at 1, as MS-SSIM is, into decibels, as the compression
                literature does.
            decoder: For each scale, what restores LR pictures; Lanczos for scales that are not in it.
            file_bytes: Counts the bytes of a file from its LR stream, the original's size and the scale.
            table: What is known already, of all the pictures and settings, by the same metric, decoder and file_bytes.

        Raises:
            TypeError: For something to be called that cannot be, or a scale or quality that is no integer.
            ValueError: For settings that are empty, double or unknown, a metric that needs larger pictures or has no
                decibels, or a table of other pictures or settings.
        """
        self.uris, self.images = images.uris, images.images
        self.settings = checked_settings(settings, base)
        self.base = base
        self.metric = _choose_metric(metric, images, decibels)
        self.decibels = decibels
        scales = sorted({setting.scale for setting in self.settings})
        decoders = dict(decoder or {})
        if unknown := set(decoders) - set(scales):
            raise ValueError(f"there are decoders for scales {sorted(unknown)}, the settings have scales {scales}")
        for name, function in (*decoders.items(), ("file_bytes", file_bytes)):
            if not callable(function):
                raise TypeError(f"a decoder and file_bytes are functions, got {function!r} for {name}")
        self.decoders = {scale: decoders.get(scale) or partial(enlarge, scale=scale) for scale in scales}
        self.file_bytes = file_bytes
        shape = (len(self.uris), len(self.settings))
        self._n_bytes = np.zeros(shape, dtype=np.int64)  # 0 where nothing is known yet
        self._values = np.zeros(shape, dtype=np.float64)
        if table is not None:
            if table.uris != self.uris or table.settings != self.settings:
                raise ValueError(
                    f"the table is of {len(table.uris)} pictures and {len(table.settings)} settings that are not the "
                    f"{len(self.uris)} pictures and {len(self.settings)} settings here"
                )
            self._n_bytes[:], self._values[:] = table.n_bytes, table.values
        self._views: dict[int, np.ndarray] = {}
        # Of the picture that was judged last: the judge, and the LR pictures by scale.
        self._judge: tuple[int, Callable[[Tensor], Tensor]] | None = None
        self._lr_images: tuple[int, dict[int, np.ndarray]] = (-1, {})

    @property
    def n_encodes(self) -> int:
        """How many files have been made so far, or were known from the table."""
        return int((self._n_bytes > 0).sum())

    def view(self, picture: int) -> np.ndarray:
        """What an agent sees of a picture, `(11, 64, 64)` uint8; see `rlsr_env.rate_views`."""
        if picture not in self._views:
            self._views[picture] = view_picture(self.images[picture])
        return self._views[picture]

    def n_pixels(self, picture: int) -> int:
        """Pixels of an original."""
        return self.images[picture].shape[0] * self.images[picture].shape[1]

    def measure(self, picture: int, setting: int) -> tuple[int, float]:
        """Store a picture, restore it and judge it; what is known already is not done again.

        Args:
            picture: Its number.
            setting: The setting's number.

        Returns:
            Bytes of the file, and the quality, larger is better, finite.

        Raises:
            ValueError: The metric or a decoder fails; the picture and the setting are named.
        """
        if not self._n_bytes[picture, setting]:
            lr_stream, sr_image = self.restore(picture, self.settings[setting])
            hr_image = self.images[picture]
            n_bytes = self.file_bytes(lr_stream, hr_image.shape[:2], self.settings[setting].scale)
            self._values[picture, setting] = self._value(picture, self.settings[setting], sr_image)
            self._n_bytes[picture, setting] = n_bytes
        return int(self._n_bytes[picture, setting]), float(self._values[picture, setting])

    def measure_all(self, picture: int) -> tuple[np.ndarray, np.ndarray]:
        """`measure` at every setting: bytes `(S,)` int64 and qualities `(S,)` float64."""
        for setting in np.flatnonzero(self._n_bytes[picture] == 0).tolist():
            self.measure(picture, setting)
        return self._n_bytes[picture].copy(), self._values[picture].copy()

    @torch.no_grad()
    def restore(self, picture: int, setting: Setting) -> tuple[bytes, Tensor]:
        """Store and restore a picture.

        Args:
            picture: Its number.
            setting: How it is stored.

        Returns:
            The LR stream, and the restored picture `(1, 3, H, W)` float32 in [0, 1], rounded to 8 bits.

        Raises:
            ValueError: The decoder makes pictures of another size.
        """
        hr_image = self.images[picture]
        codec = LRCodec(setting.scale, self.base, setting.quality)
        if self._lr_images[0] != picture:
            self._lr_images = (picture, {})
        lr_images = self._lr_images[1]
        if setting.scale not in lr_images:
            lr_images[setting.scale] = codec.downsample(hr_image)
        lr_stream = codec.compress(lr_images[setting.scale])
        lr_image = _as_tensor(codec.decode(lr_stream))
        sr_image = self.decoders[setting.scale](lr_image)
        expected = (1, 3, setting.scale * lr_image.shape[2], setting.scale * lr_image.shape[3])
        if sr_image.shape != expected:
            raise ValueError(
                f"the decoder of scale {setting.scale} made {tuple(sr_image.shape)} of an LR picture "
                f"{tuple(lr_image.shape)}; expected {expected}"
            )
        height, width = hr_image.shape[:2]
        return lr_stream, to_8bit(sr_image[..., :height, :width].float().cpu().contiguous())

    def table(self, tell: Callable[[int, int], Any] | None = None) -> RateTable:
        """Everything: each picture at each setting, made where it is not known yet.

        Args:
            tell: Is called with how many pictures are done, and how many there are.

        Returns:
            The table.

        Raises:
            ValueError: As for `measure`.
        """
        for picture in range(len(self.uris)):
            self.measure_all(picture)
            if tell is not None:
                tell(picture + 1, len(self.uris))
        n_pixels = np.array([self.n_pixels(picture) for picture in range(len(self.uris))], dtype=np.int64)
        return RateTable(self.uris, n_pixels, self.settings, self._n_bytes.copy(), self._values.copy())

    def _value(self, picture: int, setting: Setting, sr_image: Tensor) -> float:
        """The quality of a restored picture."""
        where = f"{self.uris[picture]} at scale {setting.scale}, quality {setting.quality}"
        try:
            if self._judge is None or self._judge[0] != picture:
                self._judge = (picture, self.metric.against(_as_tensor(self.images[picture])))
            value = float(self._judge[1](sr_image))
        except ValueError as error:
            raise ValueError(f"{error} ({where})") from error
        if np.isnan(value):
            raise ValueError(f"metric {self.metric.name} returned NaN for {where}")
        if self.decibels:
            value = -10 * np.log10(max(1 - value, 1e-10))
        elif not self.metric.higher_is_better:
            value = -value
        return float(np.clip(value, -PERFECT, PERFECT)) if np.isinf(value) else value

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, without what is made again in no time and may hold functions that cannot be pickled."""
        return {**self.__dict__, "_judge": None, "_lr_images": (-1, {})}


def _as_tensor(image: np.ndarray) -> Tensor:
    """`(H, W, 3)` uint8 as `(1, 3, H, W)` float32 in [0, 1]."""
    return to_float(torch.from_numpy(image).permute(2, 0, 1)[None].contiguous())


def _choose_metric(name: str | Metric, images: DecodedImages, decibels: bool) -> Metric:
    """A metric that can judge these pictures."""
    judge = metric(name)
    least = min(min(image.shape[:2]) for image in images.images)
    if judge.min_size > least:
        raise ValueError(
            f"metric {judge.name} needs pictures of {judge.min_size} pixels or more, the smallest here has {least}"
        )
    if decibels and (not judge.higher_is_better or judge.value_range[1] != 1):
        raise ValueError(f"decibels are for metrics that are best at 1, as ms_ssim; {judge.name} is not")
    return judge
