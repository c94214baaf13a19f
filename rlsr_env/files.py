"""Writing files so that nobody ever sees half of one, and where they can be written at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_whole(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its place and rename it once it is complete.

    Args:
        path: Where the file shall be; an older one is replaced, its folder must exist.
        write: Writes the content to a binary file object.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:  # also Ctrl-C: the half-written file must go, unless it has its name already
        Path(name).unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, or made.

    Raises:
        ValueError: It cannot.
    """
    nearest = folder.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ValueError(f"cannot write to {folder}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {folder}: there is no permission to write in {nearest}")
