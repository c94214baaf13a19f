"""The options of `rlsr evaluate`; imports nothing heavy, so that help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

CodecName = Literal["jpeg", "webp", "avif", "jpeg2000", "lanczos", "ours"]
BaseCodecName = Literal["jpeg", "webp", "avif"]
Purpose = Literal["psnr", "ms_ssim", "perceptual"]


@dataclass(frozen=True)
class EvaluateOptions:
    """Rate-distortion curves of image codecs, of downsampling and Lanczos, and of our decoders, on any pictures.

    Every point is whole files, restored to 8 bits. Writes results.json, table.md, rd.png and report.html (one file,
    with a slider to compare pictures) to --out, and what was measured on each picture to its folder pictures/: the same
    command goes on where it stopped, and one with more codecs measures only these. Weights come from the package and
    from the folder that RLSR_WEIGHTS names.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder of pictures, or an image set as kodak or sample:held-out."""
    codecs: tuple[CodecName, ...] = ("jpeg", "webp", "avif", "jpeg2000", "lanczos", "ours")
    """Whole-picture codecs; lanczos: shrunk, stored in each base codec, enlarged by Lanczos; ours: the decoders."""
    base_codecs: tuple[BaseCodecName, ...] = ("jpeg", "webp", "avif")
    """What lanczos and ours store the small picture in."""
    scales: tuple[int, ...] = (2, 3, 4)
    """By how much they shrink it, 1 to 4; at 1 there is nothing to enlarge, and only ours takes part."""
    purposes: tuple[Purpose, ...] = ("psnr",)
    """Which weights of ours, by what they are best at."""
    rates: tuple[float, ...] = (0.03, 0.05, 0.07, 0.10, 0.12, 0.15, 0.20, 0.30)
    """Bits per pixel at which the tables compare; curves reach from the lowest to the highest."""
    self_ensemble: bool = False
    """Decoders also averaged over eight flips and turns, as curves of their own; takes nine times as long."""
    max_pictures: int | None = None
    """Only so many pictures, the first ones by name."""
    pictures: int = 6
    """How many pictures the report shows with a slider."""
    show_rate: float = 0.12
    """At about how many bits per pixel."""
    crop: int = 0
    """Side of the part of each picture that it shows, the busiest; 0 for whole pictures."""
    workers: int | None = None
    """Processes, each with one thread; one for each core where not given, a single one on a GPU."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, ..."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the decoders."""
    tile: int = 512
    """Side of the tiles that they see, in pixels of the small picture; bounds the memory."""
    out: Path | None = None
    """Folder to write to: new, empty, or of an earlier rlsr evaluate; runs/evaluate-<time> where not given."""

    def check(self) -> None:
        """Check what can be checked without reading a picture.

        Raises:
            ValueError: For a number out of range, or a name given twice.
        """
        for name in ("codecs", "base_codecs", "scales", "purposes", "rates"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                text = " ".join(str(entry) for entry in given) or "none"
                raise ValueError(f"--{name.replace('_', '-')} must name one or more, each once, got {text}")
        if not all(1 <= scale <= 4 for scale in self.scales):
            raise ValueError(f"--scales are integers of 1 to 4, got {' '.join(map(str, self.scales))}")
        for rate in (*self.rates, self.show_rate):
            if not 0 < rate < 24:
                raise ValueError(f"--rates and --show-rate are bits per pixel above 0 and below 24, got {rate}")
        for name, least in {"max_pictures": 1, "pictures": 0, "crop": 0, "workers": 1, "tile": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, got {value}")
