"""The `rlsr` command."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from typing import Annotated, Any, TextIO, Union

import tyro

from agents.ablation_options import QUICK_ABLATION, AblateOptions
from agents.codec_options import CompressOptions, DecompressOptions, InfoOptions, WeightsOptions
from agents.envs_options import EnvsOptions
from agents.evaluate_options import EvaluateOptions
from agents.interruption import Interrupted, Job
from agents.options import QUICK, ReproduceOptions
from agents.train_options import PRESETS, QUICK_TRAIN, TrainOptions

# The last two are those of a shell: 128 + the signal's number, SIGINT and SIGPIPE.
USAGE_ERROR, RUN_ERROR, INTERRUPTED, OUTPUT_CLOSED = 2, 1, 130, 141
PROGRAM = "rlsr"


@dataclass(frozen=True)
class Command:
    """A command of `rlsr`.

    Attributes:
        options: Frozen dataclass of documented options, in a module that imports nothing heavy; its docstring is the
            command's description.
        job: `"package.module:name"` of what makes the `Job` from `(options, *, command)`. Imported only when the
            command runs, so that help answers at once.
        quick: Defaults under --quick, for a command that has it.
        presets: Defaults under --preset NAME, for a command that has it.
    """

    options: type
    job: str
    quick: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def make(self, options: Any, command: str) -> Job:
        """Import what does the work, and let it check the options."""
        module, _, name = self.job.partition(":")
        make: Callable[..., Job] = getattr(import_module(module), name)
        return make(options, command=command)

    def defaults(self, quick: bool, preset: str | None = None) -> Any:
        """The options where nothing is given; those that must be given are marked as missing."""
        required = [entry.name for entry in fields(self.options) if entry.default is entry.default_factory is MISSING]
        chosen = dict(self.presets.get(preset or "", {}))
        if quick:
            usual = {entry.name: entry.default for entry in fields(self.options)} | chosen
            chosen |= {name: value for name, value in self.quick.items() if usual[name] != 0}  # 0 leaves something out
        return self.options(**dict.fromkeys(required, tyro.MISSING), **chosen)


COMMANDS: dict[str, Command] = {
    "compress": Command(CompressOptions, "agents.codec_compress:Compression"),
    "decompress": Command(DecompressOptions, "agents.codec_decompress:Decompression"),
    "info": Command(InfoOptions, "agents.codec_info:Info"),
    "weights": Command(WeightsOptions, "agents.codec_info:WeightsListing"),
    "reproduce": Command(ReproduceOptions, "agents.reproduce:Reproduction", QUICK),
    "ablate": Command(AblateOptions, "agents.ablation:Ablation", QUICK_ABLATION),
    "train": Command(TrainOptions, "agents.training_run:TrainingRun", QUICK_TRAIN, PRESETS),
    "evaluate": Command(EvaluateOptions, "agents.evaluate:Evaluation"),
    "envs": Command(EnvsOptions, "agents.envs:EnvsListing"),
}


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """What an option is given on the command line, before that is parsed; None where it is not given."""
    for number, argument in enumerate(arguments):
        if argument == option and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _one_line(message: str) -> str:
    """A message without line breaks."""
    return re.sub(r"\s+", " ", message).strip()


def _unframed(complaint: str) -> str:
    """What tyro says in a box; without the box's title, which the text below it says again."""
    lines = [line.strip(" │╭╮╰╯─") for line in complaint.splitlines()]
    told = [line for line in lines if line.strip("-")]  # a terminal without UTF-8 has rules of hyphens
    return "\n".join(told[1:] or told)


def _parse(arguments: Sequence[str]) -> tuple[Command, Any]:
    """The command and its options from the command line; help and completion exit as usual."""
    known = f"known: {', '.join(COMMANDS)}; see {PROGRAM} --help"
    if not arguments:
        raise ValueError(f"no command given; {known}")
    asks_for_help = arguments[0] in ("-h", "--help") or arguments[0].startswith("--tyro-")
    if arguments[0] not in COMMANDS and not asks_for_help:
        raise ValueError(f"unknown command {arguments[0]!r}; {known}")
    subcommands: list[Any] = []
    for name, command in COMMANDS.items():
        description = inspect.getdoc(command.options) or ""
        subcommand = tyro.conf.subcommand(
            name,
            # As defaults, so that what is given beside --quick counts, and help shows what would run.
            default=command.defaults("--quick" in arguments, _value_of("--preset", arguments)),
            description=description.partition("\n")[0] if asks_for_help else description,
            prefix_name=False,
        )
        subcommands.append(Annotated[command.options, subcommand])
    any_command: Any = Union[tuple(subcommands)]  # noqa: UP007 (made at run time)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = tyro.cli(any_command, args=list(arguments), prog=PROGRAM)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_unframed(complaint.getvalue())) from None
    # Here, because an option that is given at its default value can only be seen on the command line.
    n_given = sum(argument.startswith("--") for argument in arguments)
    if getattr(options, "resume", None) is not None and n_given > 1:
        raise ValueError("--resume takes all options from the run's own config.json; leave the others out")
    return COMMANDS[arguments[0]], options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; the process's own where not given.

    Returns:
        Exit code: 0, 1 where a run failed, 2 for input that cannot be used, 130 after Ctrl-C; or the job's own.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    warnings.showwarning = _show_warning
    try:
        command, options = _parse(arguments)
        job = command.make(options, shlex.join([PROGRAM, *arguments]))
    except (ValueError, TypeError, OSError) as error:
        return _fail(error, USAGE_ERROR)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped before anything was written", file=sys.stderr)
        return INTERRUPTED
    try:
        closing = job.run()
        if closing:
            print(closing, flush=True)
    except Interrupted as stop:
        print(f"{PROGRAM}: {stop}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped at once; {job.how_to_go_on}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
        return OUTPUT_CLOSED
    except (ValueError, OSError, RuntimeError, OverflowError) as error:  # also torch's, such as out of memory
        return _fail(error, RUN_ERROR)
    return getattr(job, "exit_code", 0)


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
