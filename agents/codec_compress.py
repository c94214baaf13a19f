"""`rlsr compress`: pictures to `.rlsr` files."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean

from rich.console import Console

from agents.codec_files import Task, find_files, plan, print_table
from agents.codec_job import CodecJob
from agents.codec_options import DEFAULT_QUALITY, CompressOptions
from agents.rate_policy import RatePolicy
from gan.file_format import SUFFIX, read_header
from gan.picture_files import load_picture
from gan.setting_search import Decoding, Propose, Target, Trials, choose_setting
from gan.zoo import LANCZOS, choose_weights
from rlsr_env.files import write_whole
from rlsr_env.images import IMAGE_EXTENSIONS


@dataclass(frozen=True)
class CompressedPicture:
    """What is said of a file that was written.

    Attributes:
        input: The picture.
        output: The file.
        width: Of the original, in pixels.
        height: Of the original, in pixels.
        bytes: Of the whole file.
        bpp: Its bits for each pixel of the original.
        scale: By how much the picture was shrunk.
        quality: Of the base codec.
        base_codec: Format of the small picture.
        weights: What restores it.
        encodes: How many files were tried.
        psnr: Of the restored picture, in dB; None where it was not measured or is infinite.
        ms_ssim: The same; None where the picture is too small or too large for it.
    """

    input: str
    output: str
    width: int
    height: int
    bytes: int
    bpp: float
    scale: int
    quality: int
    base_codec: str
    weights: str
    encodes: int
    psnr: float | None
    ms_ssim: float | None


class Compression(CodecJob[CompressedPicture]):
    """One run of `rlsr compress`."""

    doing = "compressing"
    how_to_go_on = "files that were written are whole; --force writes them again"

    def __init__(self, options: CompressOptions, *, command: str, console: Console | None = None) -> None:
        """Find the pictures, and check that everything can be written.

        Args:
            options: What to do.
            command: The command line.
            console: Where the table goes.

        Raises:
            ValueError: For an option out of range, an output that exists or clashes, or a folder without pictures.
            FileNotFoundError: For an input that does not exist.
        """
        super().__init__(options, command, console)
        found = find_files(options.inputs, IMAGE_EXTENSIONS, "pictures")
        is_file = options.out.suffix.lower() == SUFFIX and not options.out.is_dir()
        if is_file and (len(options.inputs) > 1 or options.inputs[0].is_dir()):
            raise ValueError(f"--out {options.out} is one file, the input may be several pictures; give a folder")
        self.tasks = plan(found, options.out, lambda path: SUFFIX, is_file, options.work.force)
        self.work = partial(compress_file, options)

    def closing(self, rows: list[CompressedPicture]) -> str:
        """How many bytes all files have."""
        return f"pictures compressed, {sum(row.bytes for row in rows)} bytes"

    def print_rows(self, rows: list[CompressedPicture]) -> None:
        """The table, with means where there are several pictures."""
        columns = ("file", "bytes", "bpp", "PSNR (dB)", "MS-SSIM", "scale", "quality", "weights")
        cells = [
            (
                row.output, str(row.bytes), f"{row.bpp:.3f}", _cell(row.psnr, 2), _cell(row.ms_ssim, 4),
                str(row.scale), f"{row.base_codec} {row.quality}", row.weights,
            )
            for row in rows
        ]  # fmt: skip
        if len(rows) > 1:
            n_bytes, n_pixels = sum(row.bytes for row in rows), sum(row.width * row.height for row in rows)
            means = [_mean([row.psnr for row in rows]), _mean([row.ms_ssim for row in rows])]
            cells.append(
                (
                    "all; means", str(n_bytes), f"{8 * n_bytes / n_pixels:.3f}",
                    _cell(means[0], 2), _cell(means[1], 4), "", "", "",
                )
            )  # fmt: skip
        print_table(self.console, columns, cells)


def compress_file(options: CompressOptions, task: Task) -> CompressedPicture:
    """Compress one picture.

    Args:
        options: How.
        task: From what to what.

    Returns:
        What came of it.

    Raises:
        ValueError: The picture cannot be read or stored, or the target not be met.
        OSError: The file cannot be written.
    """
    work = options.work
    picture = load_picture(task.source, work.max_pixels)
    trials = Trials(
        picture.image,
        options.base_codec,
        options.purpose,
        options.abbreviated,
        decoding=Decoding(work.device, work.precision, work.tile, options.self_ensemble),
        **({"metadata": picture.metadata} if options.metadata else {}),
    )
    setting = choose_setting(
        picture.image, target_of(options), scales=options.scales, trials=trials, propose=_proposal(options)
    )
    content = trials.file(setting)
    os.makedirs(task.out.parent, exist_ok=True)
    write_whole(task.out, lambda file: file.write(content))
    weights = choose_weights(setting.scale, options.base_codec, options.purpose)
    if weights.purpose != options.purpose != "psnr":
        warnings.warn(
            f"there are no weights for {options.purpose} at scale {setting.scale} with {options.base_codec}; "
            f"{weights.name} restores instead",
            UserWarning,
            stacklevel=2,
        )
    height, width = picture.image.shape[:2]
    measured = {name: trials.value(setting, name) if options.measure else None for name in ("psnr", "ms_ssim")}
    return CompressedPicture(
        input=str(task.source), output=str(task.out), width=width, height=height, bytes=len(content),
        bpp=8 * len(content) / (height * width), scale=setting.scale, quality=setting.quality,
        base_codec=options.base_codec, weights=read_header(content).weights or LANCZOS, encodes=trials.n_encodes,
        psnr=_finite(measured["psnr"]), ms_ssim=_finite(measured["ms_ssim"]),
    )  # fmt: skip


def target_of(options: CompressOptions) -> Target:
    """What a file shall be like."""
    if options.bytes is not None:
        return Target("bytes", options.bytes)
    if options.bpp is not None:
        return Target("bpp", options.bpp)
    if options.psnr is not None:
        return Target("psnr", options.psnr)
    return Target("quality", DEFAULT_QUALITY if options.quality is None else options.quality)


def _proposal(options: CompressOptions) -> Propose | None:
    """The trained policy, where it is for what is asked."""
    if options.search == "all":
        return None
    policy = _policy()
    return partial(policy.propose, scales=options.scales) if policy.card["base_codec"] == options.base_codec else None


@cache
def _policy() -> RatePolicy:
    """The policy that comes with the package."""
    return RatePolicy.load()


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _mean(values: list[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _cell(value: float | None, digits: int) -> str:
    """A number in a table."""
    return "-" if value is None else f"{value:.{digits}f}"
