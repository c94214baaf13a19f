import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents import codec_files
from agents.codec_files import Task, work_through
from agents.interruption import Interruption, started_without_ctrl_c


def test_first_ctrl_c_only_asks_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with Interruption() as interruption:
        assert not interruption.requested
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
    assert capsys.readouterr().err.strip() == (
        "stopping at the next point from which the run can go on; Ctrl-C again stops at once"
    )


def test_second_ctrl_c_interrupts_at_once() -> None:
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interruption.requested


def test_ctrl_c_interrupts_a_run_that_already_stops_for_another_reason() -> None:
    with Interruption() as interruption:
        interruption.requested = True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_handler_from_before_is_restored(failure: type[BaseException] | None) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGINT) != before
            if failure is not None:
                raise failure
    except BaseException as error:
        assert failure is not None and isinstance(error, failure)
    assert signal.getsignal(signal.SIGINT) == before


def test_an_ignored_signal_is_ignored_again_afterwards() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_touched_and_a_stop_can_still_be_asked_for() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with Interruption() as interruption:
            seen.append(signal.getsignal(signal.SIGINT))
            interruption.requested = True
            seen.append(interruption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, True]
    assert signal.getsignal(signal.SIGINT) == before


INTERRUPTS_ITSELF = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('goes on')"


def test_process_is_out_of_reach_of_ctrl_c_from_its_first_moment_on() -> None:
    command = [sys.executable, "-c", INTERRUPTS_ITSELF]
    with started_without_ctrl_c():
        sheltered = subprocess.run(command, capture_output=True, text=True)
    assert (sheltered.returncode, sheltered.stdout) == (0, "goes on\n")
    usual = subprocess.run(command, capture_output=True, text=True)
    assert usual.returncode != 0 and "goes on" not in usual.stdout


def test_ctrl_c_while_processes_start_comes_afterwards() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt):
        with started_without_ctrl_c():
            signal.raise_signal(signal.SIGINT)
            reached = True
    assert reached


def test_workers_of_the_codec_are_started_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Pool(ProcessPoolExecutor):
        def map(self, *arguments: Any, **options: Any) -> Any:
            seen.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return iter(())

    monkeypatch.setattr(codec_files, "ProcessPoolExecutor", Pool)
    tasks = [Task(tmp_path / name, tmp_path / "out" / name) for name in "ab"]
    assert work_through(tasks, str, 2, "working", Console(quiet=True)) == []
    assert seen == [True]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
