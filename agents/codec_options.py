"""The options of `rlsr compress`, `decompress`, `info` and `weights`; imports nothing heavy, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

MAX_PIXELS = 1 << 28
TILE = 512
SCALES = (1, 2, 3, 4)
# Where nothing is asked for.
DEFAULT_SCALE, DEFAULT_QUALITY = 2, 30

Inputs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN [IN ...]")]
Out = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True)
class WorkOptions:
    """What compressing and decompressing have in common."""

    tile: int = TILE
    """Side of the tiles that the network sees, in pixels of the small picture; bounds the memory."""
    max_pixels: int = MAX_PIXELS
    """Pictures of more pixels are refused, before anything of them is decoded."""
    workers: int = 1
    """Processes that work at the same time."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the convolutions; auto: bf16 where the processor is faster in it."""
    force: bool = False
    """Overwrite files that are there already."""
    json: bool = False
    """Print JSON instead of a table."""

    def check(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: For a number out of range.
        """
        for name in ("tile", "max_pixels", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")


# On the command line its options stand beside the others, without a prefix.
Work = Annotated[WorkOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class CompressOptions:
    """Compress pictures to .rlsr files: a small JPEG, WebP or AVIF inside, and what restores it.

    A target is one of --bytes, --bpp, --psnr and --quality, and holds for each picture; without one, --quality 30. With
    --scale auto, the scale is chosen for each picture (--search says how; with --quality: scale 2). In a folder,
    pictures that cannot be read are skipped and counted.
    """

    inputs: Inputs
    """Pictures, and folders of pictures."""
    out: Out
    """The file to write, for one picture, if it ends in .rlsr; else a folder, made where need be."""
    bytes: int | None = None
    """Target: a file of at most so many bytes, as good as can be."""
    bpp: float | None = None
    """Target: at most so many bits for each pixel of the original."""
    psnr: float | None = None
    """Target: a restored picture of at least so many dB, in as few bytes as can be."""
    quality: int | None = None
    """Target: this quality of the base codec, 1 to 100 (WebP and AVIF: 0 to 100)."""
    scale: Literal["auto", "1", "2", "3", "4"] = "auto"
    """By how much the pictures are shrunk along each side."""
    search: Literal["policy", "all"] = "policy"
    """How a target by bytes, bpp or PSNR is met. policy: at the scale that the trained policy of rlsr/RateControl-v0
    proposes (JPEG only), from the quality that it proposes on; all: at every scale, from the middle on."""
    base_codec: Literal["jpeg", "webp", "avif"] = "jpeg"
    """Format of the small picture inside."""
    purpose: Annotated[Literal["psnr", "ms_ssim", "perceptual"], tyro.conf.arg(name="for")] = "psnr"
    """What the restored picture shall be good at: which weights the file names."""
    abbreviated: bool = True
    """Leave out of the small picture's file what the reader rebuilds to the byte."""
    metadata: bool = True
    """Keep colour profile and EXIF; the pixels are stored upright either way."""
    measure: bool = True
    """Restore every picture and say how good it is."""
    self_ensemble: bool = False
    """Measure what decompress --self-ensemble restores."""
    work: Work = WorkOptions()

    def check(self) -> None:
        """Check what can be checked without reading a picture.

        Raises:
            ValueError: For more than one target, or a number out of range.
        """
        targets = {name: getattr(self, name) for name in ("bytes", "bpp", "psnr", "quality")}
        given = [f"--{name}" for name, value in targets.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"there can be one target, got {' and '.join(given)}; leave all but one out")
        for name in ("bytes", "bpp", "psnr"):
            value = targets[name]
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"--{name} must be above 0, got {value}")
        least = 1 if self.base_codec == "jpeg" else 0
        if self.quality is not None and not least <= self.quality <= 100:
            raise ValueError(f"--quality of {self.base_codec} is {least} to 100, got {self.quality}")
        self.work.check()

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales to choose from."""
        if self.scale != "auto":
            return (int(self.scale),)
        by_quality = self.bytes is self.bpp is self.psnr is None
        return (DEFAULT_SCALE,) if by_quality else SCALES


@dataclass(frozen=True)
class DecompressOptions:
    """Restore the pictures of .rlsr files, each with the weights that it names.

    In a folder, files that cannot be read are skipped and counted.
    """

    inputs: Inputs
    """Files, and folders of .rlsr files."""
    out: Out
    """The file to write, for one file, if its ending is that of a picture; else a folder, made where need be."""
    format: Literal["png", "jpg", "webp", "avif", "tif", "bmp"] = "png"
    """Format of the pictures that go into a folder."""
    lr: bool = False
    """Write the small JPEG, WebP or AVIF file inside, as it is, and restore nothing."""
    weights: str | None = None
    """File of the weights (.safetensors) that the files name, where they are elsewhere; lanczos restores without."""
    self_ensemble: bool = False
    """Average over eight flips and turns: a little better, eight times slower."""
    metadata: bool = True
    """Write colour profile and EXIF, where the file has them."""
    work: Work = WorkOptions()

    def check(self) -> None:
        """Check what can be checked without reading a file.

        Raises:
            ValueError: For a number out of range.
        """
        self.work.check()


@dataclass(frozen=True)
class InfoOptions:
    """Say what .rlsr files hold, without decoding a picture."""

    inputs: Inputs
    """Files, and folders of .rlsr files."""
    json: bool = False
    """Print JSON instead of a table."""

    def check(self) -> None:
        """Nothing can be out of range."""


@dataclass(frozen=True)
class WeightsOptions:
    """List the weights that restore pictures: the package's and those in $RLSR_WEIGHTS; with a name, its card."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """Weights whose card to show."""
    json: bool = False
    """Print JSON instead of a table."""

    def check(self) -> None:
        """Check what can be checked without looking for weights.

        Raises:
            ValueError: For an empty name.
        """
        if self.name == "":
            raise ValueError("the name is empty; leave it out for a list of all weights")
