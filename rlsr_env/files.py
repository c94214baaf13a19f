"""Writing files so that nobody ever sees half of one."""

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
