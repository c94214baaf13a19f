"""Many files from one place to another: what becomes what, and work on each of them that stops none of the others."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from agents.interruption import started_without_ctrl_c
from rlsr_env.cores import available_cores
from rlsr_env.files import check_writable

Row = TypeVar("Row")


@dataclass(frozen=True)
class Task:
    """One file to read and one to write.

    Attributes:
        source: The file to read.
        out: The file to write.
    """

    source: Path
    out: Path


@dataclass(frozen=True)
class Outcome(Generic[Row]):
    """What became of a task.

    Attributes:
        source: The file that was read.
        row: What the work returned; None where it failed.
        error: Why it failed, else empty.
        warnings: What else is to be said.
    """

    source: Path
    row: Row | None
    error: str = ""
    warnings: tuple[str, ...] = ()


def find_files(inputs: Sequence[Path], suffixes: Sequence[str], what: str) -> list[tuple[Path, Path]]:
    """The files of a command line.

    Args:
        inputs: Files, taken whatever their ending is, and folders: of these, all files with one of `suffixes`, in
            subfolders too, but nothing hidden.
        suffixes: In lower case.
        what: What such a file is called.

    Returns:
        Each file, and its path below the folder it was found in.

    Raises:
        FileNotFoundError: An input does not exist.
        ValueError: A folder holds no such file, or there are no inputs.
    """
    if not inputs:
        raise ValueError(f"no input given; give {what} or folders of them")
    found: list[tuple[Path, Path]] = []
    for given in inputs:
        if given.is_dir():
            inside = sorted(path for path in _visible(given) if path.suffix.lower() in suffixes)
            if not inside:
                raise ValueError(f"{given} holds no {what}; looked for {' '.join(suffixes)} in it and its subfolders")
            found += [(path, path.relative_to(given)) for path in inside]
        elif given.exists():
            if not given.is_file():
                raise ValueError(f"{given} is neither a file nor a folder")
            found.append((given, Path(given.name)))
        else:
            raise FileNotFoundError(f"{given} does not exist; give {what} or folders of them")
    return found


def _visible(folder: Path) -> Iterator[Path]:
    """All files below a folder that are neither hidden nor in a hidden folder; no pipes, which one would wait for."""
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file() or path.is_symlink())


def plan(
    found: Sequence[tuple[Path, Path]], out: Path, suffix_of: Callable[[Path], str], is_file: bool, force: bool
) -> list[Task]:
    """What is written where; nothing is written yet.

    Args:
        found: From `find_files`.
        out: The file or folder to write to.
        suffix_of: The ending of what a file becomes.
        is_file: Whether `out` is a file, for a single input.
        force: Whether files that exist may be overwritten.

    Returns:
        The tasks.

    Raises:
        ValueError: Two files would become one, a file exists already, or the folder cannot be written to.
    """
    if is_file:
        tasks = [Task(found[0][0], out)]
    else:
        tasks = [Task(path, out / relative.with_suffix(suffix_of(path))) for path, relative in found]
    made_of: dict[str, Path] = {}
    sources = {os.path.realpath(path) for path, _ in found}
    for task in tasks:
        # Without regard to case, as some file systems have it.
        other = made_of.setdefault(os.path.normcase(str(task.out)).lower(), task.source)
        if other is not task.source:
            raise ValueError(f"{other} and {task.source} would both become {task.out}; rename one, or do one at a time")
        if os.path.realpath(task.out) in sources:
            raise ValueError(f"{task.out} is read, so it cannot be written; give another --out")
        if task.out.is_dir():
            raise ValueError(f"{task.out} is a folder; {task.source} cannot be written there")
        if os.path.lexists(task.out) and not force:
            raise ValueError(f"{task.out} exists already; give --force to overwrite it, or another --out")
    check_writable(out.parent if is_file else out)
    return tasks


def work_through(
    tasks: Sequence[Task], work: Callable[[Task], Row], workers: int, title: str, console: Console
) -> list[Outcome[Row]]:
    """Do the work on every task, with a progress bar; errors are kept, not raised.

    Args:
        tasks: What to do.
        work: Takes a task; can be pickled where there are workers.
        workers: Processes. One is this one.
        title: What the progress bar says.
        console: Where it goes.

    Returns:
        What became of the tasks, in their order.
    """
    workers = min(workers, len(tasks))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=len(tasks))
        outcomes = []
        for outcome in _outcomes(tasks, partial(attempt, work), workers):
            outcomes.append(outcome)
            progress.advance(bar)
    return outcomes


def _outcomes(tasks: Sequence[Task], work: Callable[[Task], Outcome[Row]], workers: int) -> Iterator[Outcome[Row]]:
    """One after another, here or in other processes."""
    if workers == 1:
        yield from map(work, tasks)
        return
    # Spawned: a forked process cannot use CUDA, and may inherit a lock that torch's threads hold.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin_worker, (max(1, available_cores() // workers),)
    )
    try:
        with started_without_ctrl_c():
            outcomes = pool.map(work, tasks)
        yield from outcomes
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(n_threads: int) -> None:
    """The cores are shared out."""
    torch.set_num_threads(n_threads)


def attempt(work: Callable[[Task], Row], task: Task) -> Outcome[Row]:
    """Do one task; whatever a file or the machine can cause becomes part of the outcome."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        try:
            row, error = work(task), ""
        except MemoryError:
            row, error = None, "there is too little memory for it"
        except (ValueError, OSError, RuntimeError) as failure:
            row, error = None, str(failure) or type(failure).__name__
    told = [str(warning.message) for warning in said if issubclass(warning.category, UserWarning)]
    return Outcome(task.source, row, error, tuple(dict.fromkeys(told)))


def tell(outcomes: Sequence[Outcome[Any]]) -> int:
    """Warn of what failed.

    Args:
        outcomes: From `work_through`.

    Returns:
        How many failed.

    Raises:
        ValueError: There was one file, and it failed.
    """
    for message in dict.fromkeys(message for outcome in outcomes for message in outcome.warnings):
        warnings.warn(message, UserWarning, stacklevel=2)
    failed = [outcome for outcome in outcomes if outcome.row is None]
    if failed and len(outcomes) == 1:
        source, error = str(failed[0].source), failed[0].error
        raise ValueError(error if source in error else f"{source}: {error}")
    for outcome in failed:
        warnings.warn(f"skipped {outcome.source}: {outcome.error}", UserWarning, stacklevel=2)
    return len(failed)


def print_facts(console: Console, title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values.

    Args:
        console: Where to.
        title: The heading.
        facts: Taken literally.
    """
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))
    console.print(table)


def print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; all but the first column are to the right.

    Args:
        console: Where to.
        columns: The headings.
        rows: The cells, taken literally.
    """
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )  # without lines, a long name has room in 80 columns
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
