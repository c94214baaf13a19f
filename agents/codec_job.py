"""What `rlsr compress` and `rlsr decompress` have in common: a file of each of many, a table or JSON of what came."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Generic

from rich.console import Console

from agents.codec_files import Row, Task, tell, work_through
from agents.codec_options import CompressOptions, DecompressOptions
from gan.precision import choose_device


class CodecJob(Generic[Row]):
    """A job that makes a file of each of many.

    Attributes:
        doing: What the progress bar says.
        tasks: What to make of what; planned by the subclass's constructor.
        work: Does a task; can be pickled.
        exit_code: 1 after a run in which files were skipped.
    """

    doing: str
    tasks: list[Task]
    work: Callable[[Task], Row]

    def __init__(self, options: CompressOptions | DecompressOptions, command: str, console: Console | None) -> None:
        """Check the options.

        Args:
            options: What to do.
            command: The command line.
            console: Where the table goes; standard output where not given.

        Raises:
            ValueError: For an option out of range.
        """
        options.check()
        choose_device(options.work.device)
        self.work_options = options.work
        self.command = command
        self.console = console or Console()
        self.exit_code = 0

    def run(self) -> str:
        """Do all tasks, and say what came of them.

        Returns:
            JSON where asked for, else the closing line.

        Raises:
            ValueError: There is one file, and it cannot be worked on.
        """
        outcomes = work_through(self.tasks, self.work, self.work_options.workers, self.doing, Console(stderr=True))
        n_failed = tell(outcomes)
        self.exit_code = int(n_failed > 0)
        rows = [outcome.row for outcome in outcomes if outcome.row is not None]
        if self.work_options.json:
            skipped = [{"input": str(o.source), "reason": o.error} for o in outcomes if o.row is None]
            files = [vars(row) for row in rows]
            return json.dumps({"command": self.command, "files": files, "skipped": skipped}, indent=2)
        if rows:
            self.print_rows(rows)
        counted = f"{len(rows)} of {len(outcomes)} {self.closing(rows)}"
        return counted + (f"; {n_failed} skipped" if n_failed else "")

    def print_rows(self, rows: list[Row]) -> None:
        """Print the table."""
        raise NotImplementedError

    def closing(self, rows: list[Row]) -> str:
        """The closing line, after how many of how many."""
        raise NotImplementedError
