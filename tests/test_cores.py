"""Work shared out among the processor's cores."""

import importlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rlsr_env import cores
from rlsr_env.cores import available_cores, compiled, compiled_as, share_out


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin a process to cores")
def test_cores_that_the_process_may_not_use_do_not_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available_cores() == len(before)


@pytest.mark.parametrize("n_cores", [1, 2, 3, 8])
@pytest.mark.parametrize("n_items", [0, 1, 2, 3, 7, 100])
def test_every_item_is_done_once_and_by_no_more_threads_than_cores(
    n_cores: int, n_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: n_cores)
    times_done, threads, shares = np.zeros(n_items, int), set(), []

    def work(share: slice) -> None:
        times_done[share] += 1
        threads.add(threading.get_ident())
        shares.append(share)

    share_out(work, n_items)
    assert (times_done == 1).all()
    assert len(threads) <= n_cores
    assert len(shares) == max(1, min(n_cores, n_items))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_shares_are_done_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 3)
    together = threading.Barrier(3, timeout=20)  # breaks unless three threads wait at once
    share_out(lambda share: together.wait() and None, 3)
    assert together.n_waiting == 0 and not together.broken


def test_work_within_work_stays_in_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    inner: dict[int, set[int]] = {}

    def work(share: slice) -> None:
        if share.start:  # the share of the other thread
            threads = inner.setdefault(threading.get_ident(), set())
            share_out(lambda _: threads.add(threading.get_ident()), 8)

    share_out(work, 2)
    ((outer, threads),) = inner.items()
    assert threads == {outer} and outer != threading.get_ident()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    code = """
import os, threading
from rlsr_env import cores
cores.available_cores = lambda: 2
threads = set()
def work(share):
    threads.add(threading.get_ident())
cores.share_out(work, 2)
child = os.fork()
if not child:
    threads.clear()
    cores.share_out(work, 2)
    os._exit(len(threads))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2\n"


@pytest.mark.parametrize("n_cores", [1, 2])
def test_an_error_in_a_share_is_raised(n_cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: n_cores)

    def work(share: slice) -> None:
        if share.stop == 4:
            raise RuntimeError("the last one")

    with pytest.raises(RuntimeError, match="the last one"):
        share_out(work, 4)


def test_where_nothing_can_be_kept_on_disk_functions_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(function: object) -> object:
        raise RuntimeError("cannot cache function 'twice': no locator available")

    monkeypatch.setattr(cores, "_cache_of", nowhere)

    def twice(numbers: np.ndarray) -> float:
        return 2 * numbers.sum()

    assert compiled(twice)(np.array([1.0, 2.0])) == 6


def test_what_is_kept_on_disk_is_not_taken_after_any_loop_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loops_of_a_test.py").write_text("def twice(number):\n    return 2 * number\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("loops_of_a_test").twice

    def compile_and_count_hits() -> int:
        dispatcher = compiled(function)
        assert dispatcher(4) == 8
        return sum(dispatcher.stats.cache_hits.values())

    assert [compile_and_count_hits() for _ in range(2)] == [0, 1]
    monkeypatch.setattr(cores, "_sources_of_loops", lambda: "others")
    assert [compile_and_count_hits() for _ in range(2)] == [0, 1]


def test_ctrl_c_waits_for_those_who_still_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    done, waited = [], []
    ordinary = cores.wait

    def interrupted_once(shares: list[object]) -> object:
        waited.append(len(shares))
        if len(waited) == 1:
            raise KeyboardInterrupt
        return ordinary(shares)

    def work(part: slice) -> None:
        if part.start:
            time.sleep(0.2)
        done.append(part.start)

    monkeypatch.setattr(cores, "wait", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        share_out(work, 2)
    assert sorted(done) == [0, 1]
    monkeypatch.setattr(cores, "wait", ordinary)
    share_out(work, 2)  # the threads are there for the next
    assert len(done) == 4


def test_a_function_with_a_signature_is_compiled_once_for_all_its_callers() -> None:
    from numba import int64

    @compiled_as(int64(int64, int64), inner=True)
    def power(base: int, exponent: int) -> int:
        result = 1
        for _ in range(exponent):
            result *= base
        return result

    @compiled_as(int64(int64))
    def sum_of_powers(base: int) -> int:
        return power(base, 2) + power(base, 3) + power(2, base)

    assert sum_of_powers(5) == 25 + 125 + 32
    assert len(power.signatures) == len(sum_of_powers.signatures) == 1
