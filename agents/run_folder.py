"""The folder of a run that can be gone on with."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from agents.run_options import Options
from rlsr_env.files import check_writable

# The options; and what a resumed run must find again, with the command that its results are the results of.
CONFIG, RUN = "config.json", "run.json"


def choose_run(options: Options) -> tuple[Path, Options]:
    """The folder of a run, and its options: as given, or those of the run that --resume names.

    Nothing is written.

    Args:
        options: As given.

    Returns:
        The folder: --out, a name with the time where it is not given, or the one that --resume names; and the options.

    Raises:
        ValueError: The folder holds something or cannot be written to; or --resume comes with other options or names a
            folder whose config.json is another program's.
        FileNotFoundError: --resume names what is no run.
    """
    name, folder = options.command, options.resume
    if folder is None:
        out = options.out or Path("runs") / time.strftime(f"{name}-%Y%m%d-%H%M%S")
        check_writable(out)
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"--out {out} is not empty; give a new folder, or --resume {out} to go on with a run")
        return out, options
    if options != type(options)(resume=folder):  # type: ignore[call-arg]
        raise ValueError(f"--resume takes all options from the run's own {CONFIG}; leave the others out")
    config = folder / CONFIG
    if not config.is_file():
        raise FileNotFoundError(f"--resume {folder}: no {CONFIG} there, so it is no run of rlsr {name}")
    try:
        begun = options.from_json(config.read_text(encoding="utf-8"))
        begun.check()
    except (TypeError, UnicodeDecodeError) as error:  # values of other types, bytes that are no text
        raise ValueError(f"{config} is not one of rlsr {name} ({error})") from error
    return folder, begun


def read_run(out: Path, *names: str) -> dict[str, Any]:
    """What a run began with, from its run.json.

    Args:
        out: The run's folder.
        *names: What must be there.

    Returns:
        All that is there; empty where there is no such file.

    Raises:
        ValueError: The file is damaged.
    """
    path = out / RUN
    if not path.is_file():
        return {}
    try:
        begun: dict[str, Any] = json.loads(path.read_text())
        for name in names:
            begun[name]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); start a new run") from error
    return begun


def read_checkpoint(path: Path, device: torch.device, *names: str) -> dict[str, Any]:
    """A state that `torch.save` wrote.

    Args:
        path: The file.
        device: Where its tensors go.
        *names: What must be there.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        state = torch.load(path, map_location=device)
        for name in names:
            state[name]
    except Exception as error:  # damaged bytes lead the unpickler into any kind of exception
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise ValueError(f"{path} is damaged ({reason}); delete it, and what it holds is made anew") from error
    return state
