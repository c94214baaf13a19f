"""The job of `rlsr evaluate`: rate-distortion curves on a set of pictures."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agents.evaluate_options import EvaluateOptions
from agents.evaluation_page import write_page
from agents.evaluation_pictures import Comparison, compare, shown_curve
from agents.evaluation_report import collect, summary_table, write_plot, write_table
from agents.evaluation_worker import (
    Skipped,
    Task,
    Worker,
    codec_versions,
    record_as_json,
    start_process,
    work,
)
from agents.interruption import Interrupted, Interruption, started_without_ctrl_c
from agents.reports import describe_machine, describe_versions, write_json
from gan.precision import choose_compute_dtype, choose_device
from gan.rate_curves import Curve, PictureRecord, curves_of, set_rates, with_auto_scales
from gan.rate_points import LANCZOS_RESTORER, WHOLE, WHOLE_CODECS, FileSeries, Restorer, check_codec
from gan.zoo import choose_weights
from rlsr_env.cores import available_cores
from rlsr_env.files import check_writable
from rlsr_env.images import ImageSet, image_set

MARKER, RECORDS = "evaluation.json", "pictures"
OURS, LANCZOS = "ours", "lanczos"


class Evaluation:
    """One run of `rlsr evaluate`.

    Everything that can be refused is refused by the constructor, which writes nothing.
    """

    def __init__(self, options: EvaluateOptions, *, command: str, console: Console | None = None) -> None:
        """Check the options, list the pictures, find the weights.

        Args:
            options: What to do.
            command: The command line, for the results.
            console: Where to report progress.

        Raises:
            ValueError: For an option out of range, a codec that Pillow lacks, no pictures, nothing to evaluate, or an
                output folder that cannot be used.
            FileNotFoundError: For a folder that does not exist.
        """
        options.check()
        self.options = options
        self.command = command
        self.console = console or Console(stderr=True)
        self.out = options.out or Path("runs") / time.strftime("evaluate-%Y%m%d-%H%M%S")
        self.missing: list[str] = []
        self.series = self._choose_series()
        self.device = choose_device(options.device)
        self.images = _find_images(options.data)
        uris = self.images.uris()
        self.uris = uris[: options.max_pictures]
        _check_out(self.out, options.data)
        cores = 1 if self.device.type == "cuda" else available_cores()
        self.n_workers = min(options.workers or cores, len(self.uris))
        self.worker = Worker(
            self.images, self.out / RECORDS, str(self.device), options.precision, options.tile
        )  # fmt: skip
        self.skipped: list[Skipped] = []
        self.interruption = Interruption()

    @property
    def how_to_go_on(self) -> str:
        """What an interruption tells the user."""
        return f"the same command with --out {self.out} goes on with what is missing"

    def _choose_series(self) -> list[FileSeries]:
        """What files to make, and how to restore them."""
        options = self.options
        whole = [codec for codec in WHOLE_CODECS if codec in options.codecs]
        series: dict[str, FileSeries] = {codec: FileSeries(codec) for codec in whole}
        small = options.base_codecs if {LANCZOS, OURS} & set(options.codecs) else ()
        for codec in dict.fromkeys((*whole, *small)):
            check_codec(codec)
        for codec in small:
            for scale in options.scales:
                restorers: list[Restorer] = [WHOLE] if scale == 1 and codec in whole else []
                if LANCZOS in options.codecs and scale > 1:
                    restorers.append(LANCZOS_RESTORER)
                if OURS in options.codecs:
                    restorers += self._decoders(scale, codec)
                if restorers:
                    one = FileSeries(codec, scale, tuple(restorers))
                    series[one.name] = one
        if not series:
            raise ValueError(
                f"nothing to evaluate: there are no weights for {', '.join(self.missing)}; name other --codecs, or put "
                "weights into the folder that RLSR_WEIGHTS names"
            )
        return list(series.values())

    def _decoders(self, scale: int, codec: str) -> Iterator[Restorer]:
        """Our decoders for a scale and a base codec, as far as there are weights."""
        for purpose in self.options.purposes:
            weights = choose_weights(scale, codec, purpose)
            if weights.path is None:
                self.missing.append(f"{codec} x{scale} ({purpose})")
                continue
            yield Restorer(OURS, weights)
            if self.options.self_ensemble:
                yield Restorer(OURS, weights, ensemble=True)

    def run(self) -> str:
        """Measure what is missing, write the reports.

        Returns:
            What was written and what was left out.

        Raises:
            Interrupted: After Ctrl-C; what was measured is kept.
            ValueError: No picture can be used.
        """
        (self.out / RECORDS).mkdir(parents=True, exist_ok=True)
        write_json(self.out / MARKER, {"command": self.command})
        if self.missing:
            warnings.warn(f"no weights for {', '.join(self.missing)}: left out of ours", UserWarning, stacklevel=2)
        with self.interruption, ExitStack() as stack:
            pool = None
            if self.n_workers > 1:
                # Not forked: a child would lack torch's threads, and could wait for a lock of theirs for ever.
                context = multiprocessing.get_context("spawn")
                pool = stack.enter_context(
                    ProcessPoolExecutor(self.n_workers, context, initializer=start_process, initargs=(self.worker,))
                )
            records = self._measure(pool)
        low, high = min(self.options.rates), max(self.options.rates)
        curves = with_auto_scales([curve for series in self.series for curve in curves_of(series, records, low, high)])
        results = collect(curves, self.options.rates, self._about(records))
        write_json(self.out / "results.json", results)
        write_table(self.out / "table.md", results)
        write_plot(self.out / "rd.png", curves, results)
        write_page(self.out / "report.html", results, self.out / "rd.png", self._comparisons(curves, records))
        Console().print(summary_table(results))
        closing = f"wrote {self.out}/results.json, table.md, rd.png, report.html"
        return closing + (f"; {len(self.skipped)} pictures were skipped" if self.skipped else "")

    def _about(self, records: Sequence[PictureRecord]) -> dict[str, object]:
        """What the results are of."""
        kind, _, path = self.images.name.partition(":")
        name = Path(path).resolve().name if kind == "folder" else self.images.name
        return {
            "command": self.command,
            "data": {"name": name, "version": self.images.version},
            "pictures": [record_as_json(record) for record in records],
            "skipped": [vars(one) for one in self.skipped],
            "no_weights_for": self.missing,
            "versions": describe_versions() | {f"lib{name}": text for name, text in codec_versions().items()},
            "machine": describe_machine(self.device, choose_compute_dtype(self.device, self.options.precision)),
        }

    def _measure(self, pool: ProcessPoolExecutor | None) -> list[PictureRecord]:
        """Go from the middle of each codec's settings outwards until the rates are covered."""
        records: dict[str, PictureRecord] = {}
        low, high = min(self.options.rates), max(self.options.rates)
        left = list(self.uris)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            n_round = 0
            while True:
                known = list(records.values())
                pairs = [(one, next_settings(one, known, low, high)) for one in self.series]
                wanted = tuple((one, settings) for one, settings in pairs if settings)
                if not wanted:
                    return known
                n_round += 1
                n_points = sum(len(settings) for _, settings in wanted)
                bar = progress.add_task(f"round {n_round}: {n_points} files of each picture", total=len(left))
                for uri, result in self._do([Task(uri, wanted) for uri in left], pool):
                    progress.advance(bar)
                    if isinstance(result, Skipped):
                        warnings.warn(f"skipped {result.name}: {result.reason}", UserWarning, stacklevel=2)
                        self.skipped.append(result)
                        left.remove(uri)
                        records.pop(uri, None)
                    else:
                        records[uri] = result
                if not left:
                    raise ValueError(f"no usable picture in {self.images.name!r}: all {len(self.skipped)} were skipped")
                records = {uri: records[uri] for uri in left}  # in the order of the set, whoever came first

    def _do(
        self, tasks: Sequence[Task], pool: ProcessPoolExecutor | None
    ) -> Iterator[tuple[str, PictureRecord | Skipped]]:
        """Results as they come, with the pictures' names."""
        if pool is None:
            for task in tasks:
                self._stop_if_asked()
                yield task.uri, self.worker(task)
            return
        with started_without_ctrl_c():
            futures = {pool.submit(work, task): task.uri for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
                self._stop_if_asked()
        finally:
            for future in futures:
                future.cancel()

    def _stop_if_asked(self) -> None:
        """End the run where somebody asked to."""
        if self.interruption.requested:
            raise Interrupted(f"stopped; {self.how_to_go_on}")

    def _comparisons(self, curves: Sequence[Curve], records: Sequence[PictureRecord]) -> list[Comparison]:
        """The pictures of the report, evenly spread over the set."""
        shown = shown_curve(curves, self.options.show_rate)
        n_shown = min(self.options.pictures, len(records))
        if shown is None or not n_shown:
            return []
        series = next(one for one in self.series if (one.codec, one.scale) == (shown.codec, shown.scale))
        names = {self.worker.name(uri): uri for uri in self.uris}
        comparisons = []
        for number in range(n_shown):
            record = records[number * len(records) // n_shown]
            self.console.print(f"report: {record.name}", highlight=False)
            image = self.images.load(names[record.name])
            comparisons.append(compare(record.name, image, series, shown, self.options, self.device))
        return comparisons


def next_settings(series: FileSeries, records: Sequence[PictureRecord], low: float, high: float) -> tuple[float, ...]:
    """Which settings to measure next, so that the rates from `low` to `high` are covered.

    Args:
        series: The files.
        records: What was measured; nothing at first.
        low: The lowest rate, in bits per pixel.
        high: The highest.

    Returns:
        Settings; none where the rates are covered, or as far as the codec goes.
    """
    settings = series.settings
    rates = set_rates(series, records) if records else []
    if not rates:
        # What makes about a tenth of a bit per pixel: the more a picture is shrunk, the higher the quality.
        middle = len(settings) * min(series.scale, 4) // 8
        return settings[middle : middle + 2]
    indices = [settings.index(setting) for setting, _, _ in rates]
    first, last = indices[0], indices[-1]
    lowest, highest = rates[0][1], rates[-1][2]
    if lowest > low:
        first -= _n_steps(lowest / low, [plain for _, plain, _ in rates[:2]])
    if highest < high:
        last += _n_steps(high / highest, [packed for _, _, packed in rates[-2:]])
    wanted = range(max(first, 0), min(last, len(settings) - 1) + 1)
    return tuple(settings[index] for index in wanted if index not in indices)


def _n_steps(factor: float, neighbours: Sequence[float]) -> int:
    """How many settings further the rate has changed by a factor, judged by the last step."""
    step = neighbours[-1] / neighbours[0]
    return math.ceil(math.log(factor) / math.log(min(max(step, 1.15), 2.0)))


def _find_images(data: str) -> ImageSet:
    """A folder, or an image set by its name."""
    if Path(data).exists() or os.sep in data:
        return image_set(Path(data))
    try:
        return image_set(data)
    except ValueError as error:
        raise ValueError(f"{data!r} is no folder, and {error}") from error


def _check_out(out: Path, data: str) -> None:
    """Refuse a folder that cannot be written to, holds something else, or lies among the pictures."""
    check_writable(out)
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise ValueError(f"--out {out} holds something that is not of rlsr evaluate; give a new folder")
    if Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"--out {out} lies in the folder of the pictures, {data}; give another one")
