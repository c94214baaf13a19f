"""Ctrl-C as a request to stop at the next point from which a run can go on exactly."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


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
