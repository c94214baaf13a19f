"""Work on pictures that runs outside of torch, shared out among the processor's cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any


def available_cores() -> int:
    """How many cores this process may use; fewer than the machine has under `taskset`, Slurm or a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_out(work: Callable[[slice], None], n_items: int) -> None:
    """Do work on items in equal shares, one for each available core, at the same time.

    The threads live as long as the call: threads that were kept would be missing in a forked process. Work gains by
    this where it releases Python's interpreter lock.

    Args:
        work: Takes the items `slice(start, stop)` and keeps its results itself.
        n_items: How many items there are.

    Raises:
        Exception: Whatever the work raises.
    """
    n_shares = min(available_cores(), n_items)
    if n_shares <= 1:
        work(slice(0, n_items))
        return
    bounds = [n_items * share // n_shares for share in range(n_shares + 1)]
    with ThreadPoolExecutor(n_shares) as threads:
        for done in [threads.submit(work, slice(*pair)) for pair in pairwise(bounds)]:
            done.result()


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
    njit: Callable[..., Any] = numba.njit
    try:
        return njit(*signatures, cache=True, **settings)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(*signatures, **settings)(function)
