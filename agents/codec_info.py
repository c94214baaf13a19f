"""`rlsr info` and `rlsr weights`: what files hold, and what there is to restore them with."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.codec_files import find_files, print_facts, print_table
from agents.codec_options import InfoOptions, WeightsOptions
from gan.file_format import SUFFIX, FileFormatError, read_content, weights_of
from gan.zoo import ENVIRONMENT_VARIABLE, list_weights


class Info:
    """One run of `rlsr info`."""

    how_to_go_on = "nothing was written"

    def __init__(self, options: InfoOptions, *, command: str, console: Console | None = None) -> None:
        """Find the files.

        Args:
            options: Which.
            command: The command line.
            console: Where the table goes.

        Raises:
            ValueError: For a folder without files.
            FileNotFoundError: For an input that does not exist.
        """
        options.check()
        self.options = options
        self.console = console or Console()
        self.paths = [path for path, _ in find_files(options.inputs, (SUFFIX,), f"{SUFFIX} files")]
        self.exit_code = 0

    def run(self) -> str:
        """Read the files.

        Returns:
            JSON where asked for, else nothing.

        Raises:
            ValueError: There is one file, and it cannot be read.
        """
        rows, skipped = [], []
        for path in self.paths:
            try:
                rows.append(file_facts(path))
            except (FileFormatError, OSError) as error:
                if len(self.paths) == 1:
                    raise ValueError(f"{path}: {error}") from error
                warnings.warn(f"skipped {path}: {error}", UserWarning, stacklevel=2)
                skipped.append({"file": str(path), "reason": str(error)})
        self.exit_code = int(bool(skipped))
        if self.options.json:
            return json.dumps({"files": rows, "skipped": skipped}, indent=2)
        for row in rows:
            weights = row["weights"] + ("" if row["weights_are_here"] else " (not here)")
            cells = [
                ("picture", f"{row['width']} x {row['height']}"),
                ("bytes", f"{row['bytes']} ({row['bpp']:.4f} bits per pixel)"),
                ("small picture", f"{row['lr_width']} x {row['lr_height']} {row['base_codec']}, scale {row['scale']}"),
                ("stored", f"{row['stored_bytes']} bytes, {'abbreviated' if row['abbreviated'] else 'as it is'}"),
                ("restored with", weights),
                ("colour profile", f"{row['icc_profile_bytes']} bytes" if row["icc_profile_bytes"] else "none"),
                ("EXIF", f"{row['exif_bytes']} bytes" if row["exif_bytes"] else "none"),
                ("format version", str(row["version"])),
            ]
            print_facts(self.console, row["file"], cells)
        return f"{len(rows)} of {len(self.paths)} files read; {len(skipped)} skipped" if skipped else ""


def file_facts(path: Path) -> dict[str, Any]:
    """What a `.rlsr` file says, as plain data.

    Args:
        path: The file.

    Returns:
        Sizes, scale, codec, weights.

    Raises:
        FileFormatError: It cannot be read.
        OSError: It is not there.
    """
    data = path.read_bytes()
    content = read_content(data)
    header = content.header
    try:
        are_here = bool(weights_of(header))
    except FileFormatError:
        are_here = False
    return {
        "file": str(path),
        "version": header.version,
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.height * header.width),
        "width": header.width,
        "height": header.height,
        "scale": header.scale,
        "base_codec": header.base,
        "lr_width": header.lr_size[1],
        "lr_height": header.lr_size[0],
        "stored_bytes": len(content.stored),
        "abbreviated": header.abbreviated,
        "weights": header.weights,
        "weights_sha256_prefix": header.sha256_prefix.hex(),
        "weights_are_here": are_here,
        "icc_profile_bytes": len(content.metadata.icc_profile),
        "exif_bytes": len(content.metadata.exif),
    }


class WeightsListing:
    """One run of `rlsr weights`."""

    how_to_go_on = "nothing was written"

    def __init__(self, options: WeightsOptions, *, command: str, console: Console | None = None) -> None:
        """Look for the weights.

        Args:
            options: What to show.
            command: The command line.
            console: Where the table goes.

        Raises:
            ValueError: There are none of that name.
        """
        options.check()
        self.options = options
        self.console = console or Console()
        self.weights = {weights.name: weights for weights in list_weights()}
        if options.name is not None and options.name not in self.weights:
            known = ", ".join(self.weights) or "none"
            raise ValueError(
                f"there are no weights {options.name!r} (there are: {known}); put them into the folder that "
                f"{ENVIRONMENT_VARIABLE} names"
            )

    def run(self) -> str:
        """Print a table, or return JSON: of all, or of one the whole card."""
        if self.options.name is not None:
            card = self.weights[self.options.name].card
            if self.options.json:
                return json.dumps(card, indent=2)
            print_facts(self.console, self.options.name, [(key, _text(value)) for key, value in card.items()])
            return ""
        if self.options.json:
            rows = [{"name": w.name, "path": str(w.path), "card": w.card} for w in self.weights.values()]
            return json.dumps({"weights": rows}, indent=2)
        if not self.weights:
            return f"no weights; pictures are restored by Lanczos. More can be put into ${ENVIRONMENT_VARIABLE}."
        rows_of_table = [
            (
                weights.name, str(weights.scale), weights.base_codec or "any", weights.purpose or "-",
                f"{weights.path.stat().st_size / 1e6:.1f}" if weights.path else "-", weights.sha256.hex()[:8],
            )
            for weights in self.weights.values()
        ]  # fmt: skip
        print_table(self.console, ("name", "scale", "base codec", "for", "MB", "sha256"), rows_of_table)
        return "rlsr weights NAME shows a card"


def _text(value: Any) -> str:
    """A value of a card."""
    return value if isinstance(value, str) else json.dumps(value)
