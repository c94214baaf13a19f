import signal
import threading

import pytest

from agents.interruption import Interruption


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
