"""What the command line asks of a job, and Ctrl-C as a request to stop where a run can go on exactly."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.resource_tracker import ensure_running
from types import FrameType, TracebackType
from typing import Any, Protocol


class Interrupted(Exception):
    """The run stopped as asked for; the text says how to go on."""


class Job(Protocol):
    """The work of a command: made by `(options, *, command: str)`, then run.

    Whoever makes it refuses everything that can be refused, with a `ValueError`, `TypeError` or `OSError`, and writes
    nothing. A job may also have an attribute `exit_code`, for a run that reached its end although some files failed;
    without it, a run that ends has succeeded.
    """

    @property
    def how_to_go_on(self) -> str:
        """What somebody is told who stops the run at once, by a second Ctrl-C."""

    def run(self) -> str:
        """Do the work.

        Returns:
            The closing lines for the terminal; may be empty.

        Raises:
            Interrupted: After Ctrl-C, where it stopped at a point of its own choice.
        """


class Interruption:
    """While entered, the first Ctrl-C sets `requested`; the second one interrupts at once, as usual.

    Attributes:
        requested: Whether somebody asked to stop.
    """

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        """Start to listen; outside the main thread, where Python delivers no signals, do nothing."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signal back to whoever had it."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the first request, obey the second."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping at the next point from which the run can go on; Ctrl-C again stops at once", file=sys.stderr)


@contextmanager
def started_without_ctrl_c() -> Iterator[None]:
    """Processes that are started in here never get Ctrl-C, which a terminal sends to all of them; this one does.

    A process could ignore the signal itself, but not before it has imported what it needs, and would fill the terminal
    with a traceback until then.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    ensure_running()  # multiprocessing's helper; its start would lift what follows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a process inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
