"""HR images: any picture file as 8-bit RGB, and named sets of them.

A set is decoded once (`decode_images`); training then gathers from arrays and never touches a file again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import struct
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, get_args

import numpy as np
from PIL import Image, ImageOps

# What Pillow's decoders are known to raise on corrupt, truncated or foreign bytes. UnidentifiedImageError and the
# truncation errors are OSErrors; the PNG reader raises SyntaxError, the AVIF decoder RuntimeError, the header parsers
# struct.error and the rest.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

IMAGE_EXTENSIONS = tuple(".avif .bmp .gif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a picture file of any format that Pillow knows as 8-bit RGB.

    The EXIF orientation is applied. Grey is repeated to three channels, 16-bit grey is scaled by 1/257 and rounded,
    CMYK and palettes are converted by Pillow, transparency is composited over white, and of an animation the first
    frame is taken. Colour profiles are not applied: the values are taken to be sRGB.

    Args:
        path: The picture file.

    Returns:
        `(H, W, 3) uint8`, contiguous and writable.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is corrupt, truncated or no picture, or it holds values without a known range
            (floating point, or 32-bit integers beyond 0..65535).
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{os.fspath(path)} does not exist; give the path of a picture file")
    # Opened outside the `try`, so that a missing permission is not reported as a corrupt picture.
    with open(path, "rb") as file:
        try:
            with Image.open(file) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
        except DECODE_ERRORS as error:
            raise ValueError(
                f"cannot decode {os.fspath(path)}: {error or type(error).__name__}; expected a whole picture file"
            ) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow mode -> `(H, W, 3) uint8`."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert the picture to 8 or 16 bit")
    if image.mode.startswith("I"):
        return np.repeat(_sixteen_to_eight_bit(np.asarray(image))[..., None], 3, axis=2)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return np.array(image.convert("RGB"))


def _sixteen_to_eight_bit(grey: np.ndarray) -> np.ndarray:
    """Grey values 0..65535 -> 0..255; 65535 = 255 * 257, so dividing by 257 maps black to black and white to white."""
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"32-bit grey of {grey.min()}..{grey.max()} has no known range; convert it to 8 or 16 bit")
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


class ImageSet(ABC):
    """A named, versioned set of HR images.

    Attributes:
        name: What `image_set` is called with to get this set.
        version: Changes when the pictures do.
        licence: The terms of the pictures, as far as they are known.
        description: One sentence about the content.
    """

    name: str
    version: str
    licence: str
    description: str

    @abstractmethod
    def uris(self) -> list[str]:
        """Returns the names of all images, in an order that does not change between runs."""

    @abstractmethod
    def load(self, uri: str) -> np.ndarray:
        """Decodes one image.

        Args:
            uri: One of `uris()`.

        Returns:
            `(H, W, 3) uint8`.

        Raises:
            ValueError: The URI is not in this set, or its file cannot be decoded.
        """


class FileImages(ImageSet):
    """A set whose images are files on this machine."""

    def __init__(self, files: dict[str, Path]) -> None:
        """Makes a set of the given files.

        Args:
            files: URI to picture file, in the order of `uris()`.
        """
        self._files = files

    def uris(self) -> list[str]:
        """Returns the names of all images, in an order that does not change between runs."""
        return list(self._files)

    def load(self, uri: str) -> np.ndarray:
        """Decodes one image; see `ImageSet.load`."""
        if uri not in self._files:
            raise ValueError(f"{uri!r} is not in the image set {self.name!r}; its names are those of uris()")
        return load_image(self._files[uri])


class FolderImages(FileImages):
    """All pictures in a folder and its subfolders, sorted by their path.

    Hidden files and folders are skipped, as are links to folders. A URI is `folder:PATH/relative/name.png`. The
    version is a digest of the relative names and file sizes, so it is the same for a copy elsewhere.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Lists the folder; no picture is opened yet.

        Args:
            path: The folder.

        Raises:
            FileNotFoundError: The folder does not exist.
            ValueError: It is a file, is empty, or holds no file with one of `IMAGE_EXTENSIONS`.
        """
        folder = Path(path)
        if not folder.exists():
            raise FileNotFoundError(f"{folder} does not exist; give a folder of images")
        if not folder.is_dir():
            raise ValueError(f"{folder} is a file; give the folder that holds the images")
        pictures = {
            found.relative_to(folder).as_posix(): found
            for found in _visible_files(folder)
            if found.suffix.lower() in IMAGE_EXTENSIONS
        }
        # Reading a pipe would wait for ever.
        pictures = {name: found for name, found in pictures.items() if found.is_file() or not found.exists()}
        if not pictures:
            content = "holds no image file" if any(folder.iterdir()) else "is empty"
            raise ValueError(f"{folder} {content}; looked for {' '.join(IMAGE_EXTENSIONS)} in it and its subfolders")
        self.name = f"folder:{folder.as_posix()}"
        super().__init__({f"{self.name.rstrip('/')}/{relative}": pictures[relative] for relative in sorted(pictures)})
        digest = hashlib.sha256()
        for relative in sorted(pictures):
            digest.update(os.fsencode(relative) + b"\0" + struct.pack("<Q", _size(pictures[relative])))
        self.version = digest.hexdigest()[:12]
        self.licence = "not known to this program; the folder's owner has it"
        self.description = f"{len(pictures)} picture files in {folder}"


def _size(path: Path) -> int:
    """Bytes of a file; 0 for a link to nowhere, which is skipped with a warning when it is read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _visible_files(folder: Path) -> list[Path]:
    """All files below the folder that are neither hidden nor in a hidden folder."""

    def refuse(error: OSError) -> NoReturn:
        # os.walk's default is to leave out a subfolder it may not read without a word.
        raise error

    files: list[Path] = []
    for parent, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files.extend(Path(parent, name) for name in names if not name.startswith("."))
    return files


SampleSplit = Literal["all", "train", "held-out"]

# Eleven of the photographs in scikit-image's wheel. Drawings, text, medical and microscope pictures are left out, and
# so is motorcycle_right: it shows the scene of motorcycle_left again, and a scene must count once. Held out are two
# colour photographs (a cat, a coffee cup) and a grey one (a photographer outdoors): unlike each other, and scenes that
# no training photograph shows, so that a gain on them is not memory.
_SAMPLE_FILES: dict[str, dict[str, str]] = {
    "train": {
        "astronaut": "astronaut.png",
        "brick": "brick.png",
        "coins": "coins.png",
        "grass": "grass.png",
        "gravel": "gravel.png",
        "hubble_deep_field": "hubble_deep_field.jpg",
        "motorcycle_left": "motorcycle_left.png",
        "rocket": "rocket.jpg",
    },
    "held-out": {"camera": "camera.png", "chelsea": "chelsea.png", "coffee": "coffee.png"},
}


class SampleImages(FileImages):
    """The photographs that scikit-image ships inside its wheel, so that everything runs without a download.

    URIs are `sample:astronaut` and the like. scikit-image itself is not imported, only its folder is found.
    """

    def __init__(self, split: SampleSplit = "all") -> None:
        """Finds the photographs of one split.

        Args:
            split: `"train"`, `"held-out"`, or `"all"` for both.

        Raises:
            ValueError: There is no such split.
            FileNotFoundError: scikit-image is not installed, or its version lacks one of the photographs.
        """
        if split not in get_args(SampleSplit):
            raise ValueError(f"no split {split!r} of the sample images; known: {', '.join(get_args(SampleSplit))}")
        specification = importlib.util.find_spec("skimage")
        if specification is None or not specification.submodule_search_locations:
            raise FileNotFoundError("the sample images need scikit-image; run `pip install scikit-image`")
        folder = Path(specification.submodule_search_locations[0], "data")
        self.version = importlib.metadata.version("scikit-image")
        splits = _SAMPLE_FILES.values() if split == "all" else [_SAMPLE_FILES[split]]
        files = {name: folder / file for members in splits for name, file in members.items()}
        missing = [file.name for file in files.values() if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"scikit-image {self.version} has no {', '.join(missing)} in {folder}; install scikit-image 0.26"
            )
        super().__init__({f"sample:{name}": files[name] for name in sorted(files)})
        self.name = "sample" if split == "all" else f"sample:{split}"
        self.licence = (
            "by scikit-image's own documentation: CC0 (brick, camera, chelsea, coffee, grass, gravel), public domain "
            "(astronaut, hubble_deep_field, rocket), no known copyright restrictions (coins); for motorcycle_left, "
            "from the Middlebury 2014 stereo benchmark, it states no licence"
        )
        self.description = f"{len(files)} photographs from scikit-image, split {split}"


_NAMED_SETS: dict[str, Callable[[], ImageSet]] = {
    "sample": lambda: SampleImages("all"),
    "sample:train": lambda: SampleImages("train"),
    "sample:held-out": lambda: SampleImages("held-out"),
}


def image_set_names() -> list[str]:
    """The names that `image_set` knows, besides `folder:PATH`; nothing is downloaded."""
    from rlsr_env.sources import SOURCES  # here, as what downloads imports this module

    return [*_NAMED_SETS, *SOURCES]


def image_set(name: str | os.PathLike[str] | ImageSet) -> ImageSet:
    """Makes an image set from its name.

    Args:
        name: `"sample"`, `"sample:train"`, `"sample:held-out"`, `"folder:PATH"`, a `pathlib.Path` of a folder, an image
            set, which is returned as it is, or one of `rlsr_env.sources.SOURCES`, as `"kodak"` and `"div2k:valid"` are;
            it is downloaded when its pictures are first asked for, and without a split it is the training split.

    Returns:
        The image set.

    Raises:
        ValueError: The name is unknown, or the folder holds no pictures.
        FileNotFoundError: The folder does not exist.
        TypeError: `name` is none of the above.
    """
    if isinstance(name, ImageSet):
        return name
    if isinstance(name, str):
        kind, _, path = name.partition(":")
        if kind == "folder" and path:
            return FolderImages(path)
        if name in _NAMED_SETS:
            return _NAMED_SETS[name]()
        from rlsr_env.sources import SOURCES  # here, as what downloads imports this module

        for downloadable in (name, f"{name}:train"):
            if downloadable in SOURCES:
                from rlsr_env.downloads import DownloadableImages

                return DownloadableImages(downloadable, SOURCES[downloadable])
        raise ValueError(f"unknown image set {name!r}; known: {', '.join(image_set_names())}, folder:PATH")
    if isinstance(name, os.PathLike):
        return FolderImages(name)
    raise TypeError(f"an image set is a name, a path or an ImageSet; got {type(name).__name__}")


@dataclass(frozen=True)
class DecodedImages:
    """The pictures of an image set, decoded.

    Attributes:
        uris: Names of the decoded images.
        images: One `(H, W, 3) uint8` array for each of `uris`; sizes differ.
        skipped: `(uri, reason)` of each picture that was left out.
    """

    uris: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    skipped: tuple[tuple[str, str], ...]


def decode_images(images: ImageSet, min_size: int = 1, workers: int | None = None) -> DecodedImages:
    """Decodes every picture of a set once, in threads (Pillow's decoders release the GIL).

    A picture that cannot be read, or whose shorter side is below `min_size`, does not stop the others: it is skipped
    with a `UserWarning` that names it, and listed in the result.

    Args:
        images: The set.
        min_size: Least shorter side, in pixels.
        workers: Number of threads; by default one for each CPU, at most 8.

    Returns:
        The pictures in the order of `images.uris()`.

    Raises:
        ValueError: No picture is left, or `min_size` or `workers` is below 1.
    """
    if min_size < 1:
        raise ValueError(f"min_size is a number of pixels of at least 1; got {min_size}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is a number of threads of at least 1; got {workers}")

    def load(uri: str) -> np.ndarray | str:
        """The picture, or the reason why there is none."""
        try:
            image = images.load(uri)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a link that leads back to itself
            return str(error)
        height, width = image.shape[:2]
        if min(height, width) < min_size:
            return f"{width}x{height} pixels, but the shorter side must have at least {min_size}"
        return image

    uris = images.uris()
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        loaded = dict(zip(uris, pool.map(load, uris), strict=True))
    decoded = {uri: image for uri, image in loaded.items() if not isinstance(image, str)}
    skipped = tuple((uri, reason) for uri, reason in loaded.items() if isinstance(reason, str))
    if not decoded:
        first = "; ".join(f"{uri}: {reason}" for uri, reason in skipped[:3])
        raise ValueError(f"no usable picture in {images.name!r}: {len(skipped)} skipped, the first ones: {first}")
    for uri, reason in skipped:
        warnings.warn(f"skipped {uri}: {reason}", UserWarning, stacklevel=2)
    return DecodedImages(tuple(decoded), tuple(decoded.values()), skipped)
