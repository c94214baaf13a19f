"""Work on pictures that runs outside of torch, shared out among the processor's cores."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any


def available_cores() -> int:
    """How many cores this process may use; fewer than the machine has under `taskset`, Slurm or a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_out(work: Callable[[slice], None], n_items: int) -> None:
    """Do work on items in equal shares, one for each available core, at the same time.

    The caller does the first share; the other threads are kept for the next call, because starting one may take as long
    as a small share. Work gains by this where it releases Python's interpreter lock. Work that shares out its own work
    does all of that in its one thread.

    Args:
        work: Takes the items `slice(start, stop)` and keeps its results itself.
        n_items: How many items there are.

    Raises:
        Exception: Whatever the work raises.
    """
    n_shares = min(available_cores(), n_items)
    if n_shares <= 1 or getattr(_here, "is_at_work", False):
        work(slice(0, n_items))
        return
    bounds = [n_items * share // n_shares for share in range(n_shares + 1)]
    first, *others = (slice(*pair) for pair in pairwise(bounds))
    helpers = _helpers(n_shares - 1)
    shares = [helpers.submit(work, share) for share in others]
    _here.is_at_work = True
    try:
        work(first)
    except BaseException:
        for share in shares:
            share.cancel()  # what has not begun
        raise
    finally:
        _here.is_at_work = False
        _wait_for_all(shares)
    for share in shares:
        share.result()


def _wait_for_all(shares: list[Future[None]]) -> None:
    """Wait, in spite of Ctrl-C: nobody shall go on writing to memory that the caller takes for finished."""
    interrupted: KeyboardInterrupt | None = None
    while not all(share.done() for share in shares):
        try:
            wait(shares)
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


_here = threading.local()


@lru_cache(maxsize=4)
def _helpers(n_threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work until the process ends."""
    return ThreadPoolExecutor(n_threads, "rlsr", initializer=lambda: setattr(_here, "is_at_work", True))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # threads are not forked


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of NumPy arrays with Numba; it releases the interpreter lock.

    The first call takes a second or so, unless an earlier process could keep the result on disk.

    Args:
        function: What Numba can compile; no value is NaN in it.

    Returns:
        The compiled function.
    """
    return _compile(function, ())


def compiled_exactly(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `compiled`, with every operation as it is written, so that it agrees with PyTorch's; NaN stays NaN.

    Args:
        function: What Numba can compile.

    Returns:
        The compiled function.
    """
    return _compile(function, (), fastmath=False)


def compiled_in_any_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `compiled_exactly`, but sums are taken in whatever order is fast, always the same on one processor.

    Args:
        function: What Numba can compile.

    Returns:
        The compiled function.
    """
    return _compile(function, (), fastmath={"contract", "reassoc", "nsz"})


def compiled_as(signature: Any, inner: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `compiled`, for arguments of given types, and at once.

    Where compiled functions call each other, Numba else compiles each of them again for every constant it is called
    with.

    Args:
        signature: Numba's types of result and arguments.
        inner: Whether only compiled functions call it; spares the way in from Python.

    Returns:
        A decorator.
    """
    settings = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True} if inner else {}
    return lambda function: _compile(function, (signature,), **settings)


def _compile(function: Callable[..., Any], signatures: tuple[Any, ...], **settings: Any) -> Callable[..., Any]:
    """Compile a function and keep the result on disk where possible."""
    import numba  # only here: it takes its time, and most metrics need none of it

    # Without NaN and signed zero, a minimum is one instruction on many numbers. The order of sums stays as written.
    settings = {"nogil": True, "fastmath": {"nnan", "nsz"}, "error_model": "numpy", **settings}
    dispatcher: Any = numba.njit(**settings)(function)
    # A function has those that it calls compiled into it, and constants of other modules. Numba looks for changes in
    # the function's own file alone, and would go on with what an earlier version of the others has left on disk.
    try:
        dispatcher._cache = _cache_of(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        pass
    for signature in signatures:
        dispatcher.compile(signature)
    if signatures:
        dispatcher.disable_compile()
    return dispatcher


def _cache_of(function: Callable[..., Any]) -> Any:
    """Numba's cache on disk for a function, which also knows the sources of all loops."""
    from numba.core.caching import FunctionCache

    class Cache(FunctionCache):
        """Results under keys that change with any of the sources."""

        def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
            """Numba's own key, and ours."""
            return (*super()._index_key(sig, codegen), _sources_of_loops())

    return Cache(function)


@lru_cache(maxsize=1)
def _sources_of_loops() -> str:
    """A digest of the modules whose functions and constants are compiled into functions of others."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem.endswith("loops") or path.stem in ("block_maps", "cores"):
            digest.update(path.read_bytes())
    return digest.hexdigest()
