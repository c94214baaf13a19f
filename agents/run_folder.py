"""The folder of a run that can be gone on with."""

from __future__ import annotations

import time
from pathlib import Path

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
    return folder, options.from_json(config.read_text())
