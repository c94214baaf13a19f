"""The LR codec: an HR image as a small file, namely its downsampled picture in a format that everyone can read."""

from __future__ import annotations

import io
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

from rlsr_env.images import DECODE_ERRORS

DOWNSAMPLING_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class BaseCodec:
    """A file format for LR pictures.

    Attributes:
        pillow_format: Pillow's name of the format.
        pillow_feature: What `PIL.features` calls the library behind it.
        qualities: The valid quality settings; higher is better.
        options: Further arguments of Pillow's writer.
    """

    pillow_format: str
    pillow_feature: str
    qualities: range
    options: dict[str, Any]


BASE_CODECS = {
    # Not progressive: on files this small the extra scans cost 3 to 9 % more bytes (measured on Kodak).
    "jpeg": BaseCodec("JPEG", "jpg", range(1, 101), {"subsampling": "4:2:0", "optimize": True, "progressive": False}),
    "webp": BaseCodec("WEBP", "webp", range(101), {"lossless": False, "method": 6}),
    # A lower speed saves bytes and costs time. One thread, because the encoder's output may depend on their number.
    "avif": BaseCodec("AVIF", "avif", range(101), {"subsampling": "4:2:0", "speed": 6, "max_threads": 1}),
}


@dataclass(frozen=True)
class LRCodec:
    """Downsamples an HR image and stores it as a plain file of a base codec.

    The bytes are all that a decoder gets. LR pixel `k` covers exactly the HR pixels `k * scale` to
    `k * scale + scale - 1`, so an upsampler needs no offset.

    Attributes:
        scale: HR pixels for each LR pixel along each side, at least 1 (the base codec alone).
        base: One of `BASE_CODECS`.
        quality: The base codec's quality setting; 1 to 100 for jpeg, 0 to 100 for webp and avif.
        downsampling: One of `DOWNSAMPLING_FILTERS`; the filter is widened by the scale, so there is no aliasing.

    Raises:
        TypeError: `scale` or `quality` is no integer, or `base` no text.
        ValueError: A setting is unknown or out of range, or this build of Pillow lacks the base codec.
    """

    scale: int = 4
    base: str = "jpeg"
    quality: int = 75
    downsampling: str = "lanczos"

    def __post_init__(self) -> None:
        """Checks the settings and turns NumPy's integers into Python's."""
        for field in ("scale", "quality"):
            object.__setattr__(self, field, _integer(field, getattr(self, field)))
        if self.scale < 1:
            raise ValueError(f"scale is at least 1; got {self.scale}")
        if not isinstance(self.base, str):
            raise TypeError(f"the base codec is a name, got {self.base!r}; known: {', '.join(BASE_CODECS)}")
        if self.base not in BASE_CODECS:
            raise ValueError(f"unknown base codec {self.base!r}; known: {', '.join(BASE_CODECS)}")
        if self.downsampling not in DOWNSAMPLING_FILTERS:
            raise ValueError(f"unknown downsampling {self.downsampling!r}; known: {', '.join(DOWNSAMPLING_FILTERS)}")
        codec = BASE_CODECS[self.base]
        if self.quality not in codec.qualities:
            raise ValueError(
                f"quality of {self.base} is {codec.qualities[0]} to {codec.qualities[-1]}; got {self.quality}"
            )
        if not features.check(codec.pillow_feature):
            raise ValueError(f"this build of Pillow cannot write {self.base}; install Pillow's own wheel, or use jpeg")

    def downsample(self, hr_image: np.ndarray) -> np.ndarray:
        """Antialiased downsampling by `scale`.

        Args:
            hr_image: `(H, W, 3) uint8`. Its last row and column are repeated up to a multiple of the scale first.

        Returns:
            LR picture, `(ceil(H / scale), ceil(W / scale), 3) uint8`.

        Raises:
            TypeError: The picture is no uint8 array.
            ValueError: Its shape is not `(H, W, 3)`, or it is empty.
        """
        _check_picture("hr_image", hr_image)
        height, width = hr_image.shape[:2]
        padding = ((0, -height % self.scale), (0, -width % self.scale), (0, 0))
        padded = Image.fromarray(np.pad(hr_image, padding, mode="edge"))
        lr_size = (padded.width // self.scale, padded.height // self.scale)
        return np.array(padded.resize(lr_size, DOWNSAMPLING_FILTERS[self.downsampling]))

    def compress(self, lr_image: np.ndarray) -> bytes:
        """Stores an LR picture in the base codec.

        Args:
            lr_image: `(h, w, 3) uint8`.

        Returns:
            A file of the base codec, without metadata.

        Raises:
            TypeError: The picture is no uint8 array.
            ValueError: Its shape is not `(h, w, 3)`, or it is empty or too large for the format.
        """
        _check_picture("lr_image", lr_image)
        codec = BASE_CODECS[self.base]
        file = io.BytesIO()
        try:
            Image.fromarray(lr_image).save(file, codec.pillow_format, quality=self.quality, **codec.options)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot store a picture of shape {lr_image.shape} as {self.base}: {error}") from error
        return file.getvalue()

    def encode(self, hr_image: np.ndarray) -> bytes:
        """Downsamples and stores an HR image: `compress(downsample(hr_image))`.

        Args:
            hr_image: `(H, W, 3) uint8`.

        Returns:
            A file of the base codec.
        """
        return self.compress(self.downsample(hr_image))

    def decode(self, data: bytes) -> np.ndarray:
        """Reads a file that `encode` or `compress` made.

        Args:
            data: A whole file of the base codec.

        Returns:
            LR picture, `(h, w, 3) uint8`.

        Raises:
            ValueError: The bytes are no whole picture of the base codec.
        """
        file = io.BytesIO(data)
        try:
            with Image.open(file, formats=[BASE_CODECS[self.base].pillow_format]) as image:
                return np.array(image.convert("RGB"))
        except DECODE_ERRORS as error:
            raise ValueError(f"these {len(data)} bytes are no whole {self.base} picture: {error}") from error


@dataclass(frozen=True)
class LosslessLRCodec(LRCodec):
    """Downsampling alone, stored as a PNG, as in papers on super-resolution; `base` and `quality` do not count."""

    def compress(self, lr_image: np.ndarray) -> bytes:
        """Stores an LR picture `(h, w, 3)` uint8 as it is; see `LRCodec.compress`."""
        _check_picture("lr_image", lr_image)
        file = io.BytesIO()
        Image.fromarray(lr_image).save(file, "PNG")
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        """Reads what `compress` made; see `LRCodec.decode`."""
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                return np.array(image.convert("RGB"))
        except DECODE_ERRORS as error:
            raise ValueError(f"these {len(data)} bytes are no whole png picture: {error}") from error


def bits_per_pixel(data: bytes, hr_shape: Sequence[int]) -> float:
    """Rate of a file, counted over the pixels of the HR image that it stands for.

    Args:
        data: The file.
        hr_shape: Shape of the HR image, `(H, W)` or `(H, W, 3)`.

    Returns:
        Bits per HR pixel.

    Raises:
        ValueError: The shape does not begin with a positive height and width.
    """
    if len(hr_shape) not in (2, 3) or min(hr_shape[:2]) < 1:
        raise ValueError(f"hr_shape is (H, W) or (H, W, 3) with positive H and W; got {tuple(hr_shape)}")
    return 8 * len(data) / (hr_shape[0] * hr_shape[1])


def _integer(name: str, value: object) -> int:
    """Any integer but a bool -> Python's int."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{name} is an integer; got {value!r}")


def _check_picture(name: str, picture: np.ndarray) -> None:
    """Raises unless the array is `(H, W, 3) uint8` and not empty."""
    if not isinstance(picture, np.ndarray):
        raise TypeError(f"{name} is a NumPy array (H, W, 3) of uint8; got {type(picture).__name__}")
    if picture.dtype != np.uint8:
        raise TypeError(f"{name} has values 0..255 of dtype uint8; got {picture.dtype}; scale, round and cast it first")
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise ValueError(f"{name} has the shape (H, W, 3) with positive H and W; got {picture.shape}")
