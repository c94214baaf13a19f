"""The `rlsr` command."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import tyro

from agents.options import QUICK, ReproduceOptions

USAGE_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130
PROGRAM = "rlsr"


def _one_line(message: str) -> str:
    """A message without frames and line breaks."""
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]+", " ", message)).strip()


def _parse(arguments: Sequence[str]) -> ReproduceOptions:
    """Options from the command line; help and completion exit as usual."""
    # As defaults, so that what is given beside --quick counts, and help shows what would run.
    reproduce = ReproduceOptions(**(QUICK if "--quick" in arguments else {}))
    description = inspect.getdoc(ReproduceOptions) or ""
    command = tyro.extras.subcommand_type_from_defaults(
        {"reproduce": reproduce}, {"reproduce": description}, prefix_names=False
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = tyro.cli(command, args=list(arguments), prog=PROGRAM)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_one_line(complaint.getvalue())) from None
    # Here, because an option that is given at its default value can only be seen on the command line.
    n_given = sum(argument.startswith("--") for argument in arguments)
    if options.resume is not None and n_given > 1:
        raise ValueError("--resume takes all options from the run's own config.json; leave the others out")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; the process's own where not given.

    Returns:
        Exit code: 0, 1 where a run failed, 2 for input that cannot be used, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    warnings.showwarning = _show_warning
    try:
        options = _parse(arguments)
        from agents.reproduce import Interrupted, Reproduction  # torch: only now, so that help answers at once

        reproduction = Reproduction(options, command=shlex.join([PROGRAM, *arguments]))
    except (ValueError, TypeError, OSError) as error:
        return _fail(error, USAGE_ERROR)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped before anything was written", file=sys.stderr)
        return INTERRUPTED
    try:
        reproduction.run()
    except Interrupted as stop:
        print(f"{PROGRAM}: {stop}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped at once; {reproduction.how_to_go_on}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError, OverflowError) as error:  # also torch's, such as out of memory
        return _fail(error, RUN_ERROR)
    print(f"wrote {reproduction.out}/results.json, table.md, comparison.png, curves.png")
    return 0


def _fail(error: Exception, code: int) -> int:
    """Say in one line what is wrong."""
    print(f"{PROGRAM}: error: {_one_line(str(error))}", file=sys.stderr)
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line without the place in our code, which tells a user nothing."""
    print(f"{PROGRAM}: warning: {_one_line(str(message))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
