"""What `rlsr ablate` leaves for readers: results.json, table.md, matrix.png."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t
from torch import Tensor

from agents.ablation_options import Method
from agents.reports import write_json
from rlsr_env.files import write_whole
from rlsr_env.metrics import Metric

matplotlib.use("agg")

CONTROL = "control"
CONFIDENCE = 0.95
PANEL_SIZE, PANELS_IN_A_ROW = 128, 6


@dataclass(frozen=True)
class Cell:
    """One trained network, measured.

    Attributes:
        method: `"control"`, `"rl"`, `"gradient"` or `"evolution"`.
        reward: The metric that it was trained for; empty for the control.
        seed: Of the run.
        seconds: That the training took.
        values: `{metric: {uri: value}}` on the held-out crops.
    """

    method: str
    reward: str
    seed: int
    seconds: float
    values: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Gain:
    """A mean gain and the half width of its confidence interval (infinite for a single seed or picture)."""

    mean: float
    half_width: float

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.mean - self.half_width > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.mean + self.half_width < 0


def interval(gains: np.ndarray, confidence: float = CONFIDENCE) -> Gain:
    """Mean gain over seeds and pictures, with an interval that counts both as samples.

    The variance of the grand mean is taken as that of the seeds' means over the number of seeds, plus that of the
    pictures' means over the number of pictures, with the degrees of freedom of Welch and Satterthwaite. What is left
    over (seed by picture) is in both terms, so the interval is a little too wide rather than too narrow.

    Args:
        gains: `(seeds, pictures)`.
        confidence: Of the two-sided interval.

    Returns:
        The gain.
    """
    n_seeds, n_pictures = gains.shape
    if n_seeds < 2 or n_pictures < 2:
        return Gain(float(gains.mean()), math.inf)
    of_seeds = gains.mean(1).var(ddof=1) / n_seeds
    of_pictures = gains.mean(0).var(ddof=1) / n_pictures
    variance = of_seeds + of_pictures
    if variance == 0:
        return Gain(float(gains.mean()), 0.0)
    freedom = variance**2 / (of_seeds**2 / (n_seeds - 1) + of_pictures**2 / (n_pictures - 1))
    quantile = student_t.ppf(0.5 + confidence / 2, freedom)
    return Gain(float(gains.mean()), float(quantile * math.sqrt(variance)))


def gain_over_control(cells: Sequence[Cell], method: str, reward: str, judge: Metric) -> Gain:
    """How much better a metric is than the control's of the same seed, oriented so that more is better.

    Args:
        cells: All cells.
        method: Of the cells.
        reward: That they were trained for.
        judge: What they are measured by.
    """
    sign = 1.0 if judge.higher_is_better else -1.0
    controls = {cell.seed: cell.values[judge.name] for cell in cells if cell.method == CONTROL}
    gains = [
        [sign * (value - controls[cell.seed][uri]) for uri, value in cell.values[judge.name].items()]
        for cell in cells
        if (cell.method, cell.reward) == (method, reward)
    ]
    return interval(np.array(gains))


def collect(cells: Sequence[Cell], judges: Sequence[Metric]) -> dict[str, Any]:
    """The matrix: trained for (rows) by measured with (columns).

    Returns:
        `control`: mean and spread over the seeds of each metric; `rows`: for each method and reward the gain over the
        control in each metric, with the half width of its interval; `verdict`: what the rows come to.
    """
    rows: list[dict[str, Any]] = []
    for method, reward in dict.fromkeys((cell.method, cell.reward) for cell in cells if cell.method != CONTROL):
        gains = {judge.name: gain_over_control(cells, method, reward, judge) for judge in judges}
        seconds = statistics.fmean(c.seconds for c in cells if (c.method, c.reward) == (method, reward))
        rows.append({"method": method, "reward": reward, "seconds": round(seconds, 1), "gains": gains})
    controls = [cell for cell in cells if cell.method == CONTROL]
    means = {judge.name: [statistics.fmean(cell.values[judge.name].values()) for cell in controls] for judge in judges}
    return {
        "control": {
            name: {"mean": statistics.fmean(values), "per_seed": values}
            | {"std": statistics.stdev(values) if len(values) > 1 else None}
            for name, values in means.items()
        },
        "control_seconds": round(statistics.fmean(cell.seconds for cell in controls), 1),
        "rows": rows,
        "verdict": _verdict(rows, [judge.name for judge in judges]),
    }


def _verdict(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Which rewards RL raised, in which columns its own row is the best, and where it beats the other methods."""
    by_key = {(row["method"], row["reward"]): row["gains"] for row in rows}
    rl = {name: by_key[("rl", name)] for name in metrics if ("rl", name) in by_key}
    best = {name: max(rl, key=lambda reward: rl[reward][name].mean) for name in metrics} if rl else {}
    verdict: dict[str, Any] = {
        "rl_raises_its_own_metric": [name for name, gains in rl.items() if gains[name].is_above_zero],
        "own_row_is_the_best_rl_row": [name for name, reward in best.items() if name == reward],
    }
    for method in ("gradient", "evolution"):
        verdict[f"rl_above_{method}"] = [
            name
            for name, gains in rl.items()
            if (method, name) in by_key and gains[name].mean > by_key[(method, name)][name].mean
        ]
    return verdict


def write_reports(out: Path, cells: Sequence[Cell], judges: Sequence[Metric], about: dict[str, Any]) -> None:
    """Write results.json, table.md and matrix.png.

    Args:
        out: Folder.
        cells: All of them.
        judges: The metrics, in the order of the columns.
        about: Command, versions, machine, options.
    """
    matrix = collect(cells, judges)
    plain = [
        row
        | {
            "gains": {
                name: {"mean": gain.mean, "half_width": gain.half_width if math.isfinite(gain.half_width) else None}
                for name, gain in row["gains"].items()
            }
        }
        for row in matrix["rows"]
    ]
    seeds = sorted({cell.seed for cell in cells})
    pictures = list(cells[0].values[judges[0].name])
    results = about | {"seeds": seeds, "held_out": pictures} | matrix | {"rows": plain}
    write_json(out / "results.json", results)
    text = _table(matrix, judges, len(seeds), len(pictures), about)
    write_whole(out / "table.md", lambda file: file.write(text.encode()))
    figure = _heat_map(matrix["rows"], judges)
    write_whole(out / "matrix.png", lambda file: figure.savefig(file, format="png", dpi=110))


def _digits(judge: Metric) -> int:
    """Decimals that its values are shown with."""
    return {"dB": 3, "bytes": 0}.get(judge.unit, 5)


def _heading(judge: Metric) -> str:
    """A column's heading: name, unit, and where less is better, that the gain is a fall."""
    unit = f" ({judge.unit})" if judge.unit else ""
    return f"{judge.name}{unit}" + ("" if judge.higher_is_better else ", less")


def _table(
    matrix: dict[str, Any], judges: Sequence[Metric], n_seeds: int, n_pictures: int, about: dict[str, Any]
) -> str:
    """The matrix in Markdown."""
    lines = [
        "| trained by | for | " + " | ".join(_heading(judge) for judge in judges) + " | seconds |",
        "|---|---|" + "---|" * (len(judges) + 1),
    ]
    control = [f"{matrix['control'][j.name]['mean']:.{_digits(j)}f}" for j in judges]
    lines.append(f"| control | | {' | '.join(control)} | {matrix['control_seconds']:.0f} |")
    for row in matrix["rows"]:
        entries = []
        for judge in judges:
            gain, digits = row["gains"][judge.name], _digits(judge)
            width = f" ± {gain.half_width:.{digits}f}" if math.isfinite(gain.half_width) else ""
            entry = f"{gain.mean:+.{digits}f}{width}"
            entries.append(f"**{entry}**" if row["reward"] == judge.name else entry)
        lines.append(f"| {row['method']} | {row['reward']} | {' | '.join(entries)} | {row['seconds']:.0f} |")
    verdict = matrix["verdict"]
    trained = {method: {r["reward"] for r in matrix["rows"] if r["method"] == method} for method in get_args(Method)}
    # What is said of RL, about how many of its rewards, and which entry of the verdict has those for which it is true.
    said = [
        ("RL raises its own metric (interval above zero)", trained["rl"], "rl_raises_its_own_metric"),
        ("The best RL row of a column is that metric's own", trained["rl"], "own_row_is_the_best_rl_row"),
        ("RL gains more than evolution strategies", trained["rl"] & trained["evolution"], "rl_above_evolution"),
        ("RL gains more than the metric's own gradient", trained["rl"] & trained["gradient"], "rl_above_gradient"),
    ]
    lines += [
        "",
        f"Control: SRGAN trained on. All other rows: gain over the control of the same seed, turned so that more is "
        f"better; {CONFIDENCE:.0%} interval over {n_seeds} seeds and {n_pictures} held-out pictures.",
        "",
        *(f"- {text} for {_listed(verdict[name], len(rewards))}." for text, rewards, name in said if rewards),
        "",
        f"Command: `{about['command']}`",
        "",
    ]
    return "\n".join(lines)


def _listed(names: Sequence[str], n: int) -> str:
    """How many of all, and which."""
    return f"{len(names)} of {n}" + (f" ({', '.join(names)})" if names else "")


def _heat_map(rows: Sequence[dict[str, Any]], judges: Sequence[Metric]) -> Figure:
    """Gains as colours: each column by its own largest, hatched by nothing, a dot where the interval excludes zero."""
    means = np.array([[row["gains"][judge.name].mean for judge in judges] for row in rows])
    largest = np.abs(means).max(0, keepdims=True)
    figure = Figure(figsize=(2.2 + 1.15 * len(judges), 1.4 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(means / np.where(largest > 0, largest, 1), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for i, row in enumerate(rows):
        for j, judge in enumerate(judges):
            gain = row["gains"][judge.name]
            sure = gain.is_above_zero or gain.is_below_zero
            strong = abs(means[i, j]) > 0.6 * largest[0, j]
            axes.text(
                j, i, f"{gain.mean:+.{_digits(judge)}f}" + ("•" if sure else ""), ha="center", va="center",
                fontsize=8, color="white" if strong else "black",
                fontweight="bold" if row["reward"] == judge.name else "normal",
            )  # fmt: skip
    axes.set_xticks(range(len(judges)), [_heading(judge) for judge in judges], rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), [f"{row['method']}: {row['reward']}" for row in rows])
    axes.set_title("gain over SRGAN trained on (• interval without zero)", fontsize=10)
    axes.set_xlabel("measured with")
    axes.set_ylabel("trained for")
    return figure


def write_page(path: Path, panels: Mapping[str, Tensor]) -> None:
    """A page of pictures, each with its name above.

    Args:
        path: PNG to write.
        panels: Pictures `(1, 3, H, W)` in [0, 1]; their centres are shown, twice enlarged.
    """
    n_rows = -(-len(panels) // PANELS_IN_A_ROW)
    figure = Figure(figsize=(2.7 * PANELS_IN_A_ROW, 2.95 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, PANELS_IN_A_ROW, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (name, image) in zip(grid, panels.items(), strict=False):
        height, width = image.shape[-2:]
        size = min(PANEL_SIZE, height, width)
        top, left = (height - size) // 2, (width - size) // 2
        centre = image[0, :, top : top + size, left : left + size]
        axes.imshow(centre.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(name, fontsize=9)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=72))
