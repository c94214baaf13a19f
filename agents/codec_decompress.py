"""`rlsr decompress`: `.rlsr` files to pictures, or to the LR files inside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from rich.console import Console

from agents.codec_files import Task, find_files, plan, print_table
from agents.codec_job import CodecJob
from agents.codec_options import DecompressOptions
from gan.file_format import SUFFIX, FileFormatError, read_content, read_lr_stream, restore, weights_of
from gan.picture_files import Metadata, Picture, save_picture
from gan.zoo import Weights, read_weights
from rlsr_env.files import write_whole

LR_SUFFIXES = {"jpeg": ".jpg", "webp": ".webp", "avif": ".avif"}


@dataclass(frozen=True)
class RestoredPicture:
    """What is said of a picture that was written.

    Attributes:
        input: The `.rlsr` file.
        output: The picture.
        bytes: Of the `.rlsr` file.
        width: Of the picture that was written, in pixels.
        height: The same.
        scale: By how much it was enlarged; 1 for the LR file as it is.
        weights: What restored it; empty for the LR file as it is.
    """

    input: str
    output: str
    bytes: int
    width: int
    height: int
    scale: int
    weights: str


class Decompression(CodecJob[RestoredPicture]):
    """One run of `rlsr decompress`."""

    doing = "decompressing"
    how_to_go_on = "pictures that were written are whole; --force writes them again"

    def __init__(self, options: DecompressOptions, *, command: str, console: Console | None = None) -> None:
        """Find the files, and check that everything can be written.

        Args:
            options: What to do.
            command: The command line.
            console: Where the table goes.

        Raises:
            ValueError: For an option out of range, an output that exists or clashes, or a folder without files.
            FileNotFoundError: For an input or weights that do not exist.
        """
        super().__init__(options, command, console)
        self.options = options
        weights = None if options.weights is None else read_weights(options.weights)
        found = find_files(options.inputs, (SUFFIX,), f"{SUFFIX} files")
        self.tasks = plan(found, options.out, self._suffix_of, self._is_file(), options.work.force)
        self.work = partial(decompress_file, options, weights)

    def _is_file(self) -> bool:
        """Whether --out is a picture; refuses what could be a mistyped one."""
        options = self.options
        suffix = options.out.suffix.lower()
        if not suffix or options.out.is_dir():
            return False
        is_picture = Image.registered_extensions().get(suffix) in Image.SAVE
        several = len(options.inputs) > 1 or options.inputs[0].is_dir()
        if several:
            if is_picture:
                raise ValueError(f"--out {options.out} is one picture, the input may be several files; give a folder")
            return False
        if not is_picture:
            raise ValueError(
                f"--out {options.out}: no picture format is called {suffix}; give .png, for example, or a folder that "
                "exists"
            )
        if options.lr and suffix != self._suffix_of(options.inputs[0]) and suffix != ".jpeg":
            raise ValueError(
                f"--out {options.out}: the small picture inside is written as it is, so its ending must be "
                f"{self._suffix_of(options.inputs[0])}"
            )
        return True

    def _suffix_of(self, path: Path) -> str:
        """The ending of what a file becomes."""
        if not self.options.lr:
            return f".{self.options.format}"
        try:
            return LR_SUFFIXES[read_content(path.read_bytes()).header.base]
        except (FileFormatError, OSError):
            return LR_SUFFIXES["jpeg"]  # it will be skipped; why is said then

    def closing(self, rows: list[RestoredPicture]) -> str:
        """That they are whole."""
        return "files decompressed"

    def print_rows(self, rows: list[RestoredPicture]) -> None:
        """The table."""
        columns = ("picture", "size", "from bytes", "scale", "weights")
        cells = [
            (row.output, f"{row.width} x {row.height}", str(row.bytes), str(row.scale), row.weights or "-")
            for row in rows
        ]
        print_table(self.console, columns, cells)


def decompress_file(options: DecompressOptions, weights: Weights | None, task: Task) -> RestoredPicture:
    """Decompress one file.

    Args:
        options: How.
        weights: What restores it, where not what it names.
        task: From what to what.

    Returns:
        What came of it.

    Raises:
        ValueError: The file cannot be read or restored.
        OSError: The picture cannot be written.
    """
    work = options.work
    data = task.source.read_bytes()
    content = read_content(data)
    header = content.header
    if options.lr:
        stream = read_lr_stream(content, work.max_pixels)
        os.makedirs(task.out.parent, exist_ok=True)
        write_whole(task.out, lambda file: file.write(stream))
        height, width = header.lr_size
        return RestoredPicture(str(task.source), str(task.out), len(data), width, height, 1, "")
    image = restore(content, weights, work.device, work.precision, work.tile, options.self_ensemble, work.max_pixels)
    os.makedirs(task.out.parent, exist_ok=True)
    save_picture(task.out, Picture(image, content.metadata if options.metadata else Metadata()))
    name = (weights or weights_of(header)).name
    return RestoredPicture(str(task.source), str(task.out), len(data), header.width, header.height, header.scale, name)
