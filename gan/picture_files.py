"""Picture files with what they say besides their pixels: colour profile and EXIF."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rlsr_env.files import write_whole
from rlsr_env.images import DECODE_ERRORS, load_image

# 16384 squared: what libavif takes at most.
MAX_PIXELS = 1 << 28

# What tags of a TIFF file say about how its pixels lie there (TIFF 6.0), and the orientation: load_image turns pixels.
_LAYOUT_TAGS = {*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 317, *range(320, 326), 330, 338, 339}
_LAYOUT_TAGS |= {347, 513, 514, *range(529, 533)}

# Of the profile of sRGB that cameras and programs write into most pictures: its description (IEC 61966-2-1).
USUAL_SRGB = b"sRGB IEC61966-2.1"

# How formats that lose something are written, so that what was restored is hardly lost again.
LOSSY_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}


@dataclass(frozen=True)
class Metadata:
    """Metadata of a picture whose pixels are upright.

    Attributes:
        icc_profile: The colour profile, or nothing.
        exif: EXIF without the orientation, or nothing.
    """

    icc_profile: bytes = b""
    exif: bytes = b""

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.icc_profile or self.exif)


@dataclass(frozen=True)
class Picture:
    """A picture and its metadata.

    Attributes:
        image: The pixels, upright, `(H, W, 3)` uint8.
        metadata: Colour profile and EXIF; the pixels are in the colours of the profile.
    """

    image: np.ndarray
    metadata: Metadata = field(default_factory=Metadata)


def load_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file of any format that Pillow knows; pixels as by `rlsr_env.images.load_image`.

    Args:
        path: The file.
        max_pixels: Larger pictures are refused before they are decoded.

    Returns:
        The picture.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no picture file, damaged or too large.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{os.fspath(path)} does not exist; give the path of a picture file")
    with open(path, "rb") as file, pillow_takes(max_pixels):
        try:
            with Image.open(file) as image:
                width, height = image.size
                metadata = Metadata(_rgb_profile(image, path), _descriptive_exif(image.getexif()))
        except DECODE_ERRORS as error:
            raise ValueError(
                f"cannot decode {os.fspath(path)}: {error or type(error).__name__}; expected a whole picture file"
            ) from error
        check_pixels(height, width, max_pixels)
        return Picture(load_image(path), metadata)


def save_picture(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write a picture file, whole or not at all.

    Args:
        path: The file; its ending says the format.
        picture: What to write.

    Raises:
        ValueError: Pillow writes no such format, or not this picture in it.
        OSError: The folder cannot be written to.
    """
    suffix = Path(path).suffix.lower()
    file_format = Image.registered_extensions().get(suffix)
    if file_format not in Image.SAVE:
        raise ValueError(
            f"{os.fspath(path)}: no picture format is called {suffix or 'nothing'}; give .png, for example"
        )
    options: dict[str, Any] = {"icc_profile": picture.metadata.icc_profile, "exif": picture.metadata.exif}
    given = {name: value for name, value in options.items() if value} | LOSSY_OPTIONS.get(file_format, {})
    image = Image.fromarray(picture.image)
    try:
        write_whole(path, lambda file: image.save(file, file_format, **given))
    except (KeyError, ValueError, SystemError) as error:
        raise ValueError(f"cannot write {os.fspath(path)}: {error}") from error


def _rgb_profile(image: Image.Image, path: str | os.PathLike[str]) -> bytes:
    """The colour profile, where it is one of RGB pixels (ICC.1:2022, 7.2.6); the pixels of all pictures become RGB.

    The usual profile of sRGB is left out: it says what holds for a picture without one, in more bytes than the picture.
    """
    profile: bytes = image.info.get("icc_profile") or b""
    if USUAL_SRGB in profile:
        return b""
    if profile and profile[16:20] != b"RGB ":
        space = profile[16:20].decode("ascii", "replace").strip()
        warnings.warn(f"left out the colour profile of {os.fspath(path)}: it is for {space}, not for RGB", stacklevel=3)
        return b""
    return profile


def _descriptive_exif(exif: Image.Exif) -> bytes:
    """EXIF without orientation and the layout of the file it came from."""
    for tag in _LAYOUT_TAGS & set(exif):
        del exif[tag]
    return exif.tobytes() if len(exif) else b""


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Refuse a picture that is too large.

    Raises:
        ValueError: It has more than `max_pixels` pixels.
    """
    if height * width > max_pixels:
        raise ValueError(
            f"the picture has {width} x {height} = {height * width} pixels, more than the {max_pixels} that are "
            "allowed; give a higher max_pixels if you trust the file"
        )


@contextmanager
def pillow_takes(max_pixels: int) -> Iterator[None]:
    """Let Pillow open pictures of up to `max_pixels`, where its own limit is lower; the caller checks.

    The limit is Pillow's for the whole process, so it is touched only where it stands in the way.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or limit >= max_pixels:
        yield
        return
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
