"""What `rlsr evaluate` leaves for readers: results.json (docs/evaluate.md has its schema), table.md, rd.png."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich.box import SIMPLE_HEAD
from rich.table import Table

from agents.reports import DIGITS, HEADINGS
from gan.evaluation import REPORTED
from gan.rate_curves import AUTO, Curve, bd_rates, leading
from rlsr_env.files import write_whole

matplotlib.use("agg")

SCHEMA = "rlsr-evaluate/1"
# Significant digits of results.json: more than any of its numbers deserves.
N_DIGITS = 7
ANCHORS = ("jpeg", "avif")
NO_VALUE = "\N{EN DASH}"

CODEC_COLOURS = {"jpeg": "#c44e52", "webp": "#55a868", "avif": "#4c72b0", "jpeg2000": "#8c8c8c"}
KIND_STYLES: dict[str, dict[str, Any]] = {
    "whole": {"linestyle": "-", "linewidth": 1.2, "marker": "o", "markersize": 3},
    "lanczos": {"linestyle": ":", "linewidth": 1.4},
    "ours": {"linestyle": "-", "linewidth": 2.6},
}


def collect(curves: Sequence[Curve], rates: Sequence[float], about: Mapping[str, Any]) -> dict[str, Any]:
    """All results, ready for JSON.

    Args:
        curves: With the envelopes.
        rates: At which to compare, in bits per pixel.
        about: Command, data, pictures, versions, machine.

    Returns:
        The content of results.json.
    """
    anchors = {curve.name: curve for curve in curves if curve.name in ANCHORS}
    shown = {curve.name for curve in leading(curves)}
    found: dict[str, Any] = {}
    for curve in curves:
        lowest, highest = curve.range
        entry: dict[str, Any] = {
            "kind": curve.kind,
            "codec": curve.codec,
            "scale": curve.scale,
            "container": curve.container,
            "purpose": curve.purpose,
            "weights": curve.weights,
            "self_ensemble": curve.ensemble,
            "leading": curve.name in shown,
            "lowest_rate": lowest,
            "highest_rate": highest,
            "at_rates": {name: {rate_key(rate): curve.value_at(rate, name) for rate in rates} for name in REPORTED},
            "bd_rate": {name: bd_rates(curve, anchor) for name, anchor in anchors.items() if name != curve.name},
            "points": curve.points,
        }
        if curve.kind == "ours" and curve.scale != AUTO:
            entry["gain_over_lanczos"] = {rate_key(rate): curve.value_at(rate, "gain_over_lanczos") for rate in rates}
        found[curve.name] = entry
    results = {"schema": SCHEMA, **about, "rates": [rate_key(rate) for rate in rates], "curves": found}
    rounded: dict[str, Any] = _rounded(results)
    return rounded


def rate_key(rate: float) -> str:
    """A rate as a key and a heading."""
    return f"{rate:.2f}" if round(rate, 2) == rate else f"{rate:g}"


def _rounded(value: Any) -> Any:
    """The same with numbers of `N_DIGITS` digits."""
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{N_DIGITS}g}")
    return value


def display_name(name: str, entry: Mapping[str, Any]) -> str:
    """How a curve is called in tables and plots."""
    codec = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jpeg2000": "JPEG 2000"}[entry["codec"]]
    if entry["kind"] == "whole":
        return codec
    scale = "best scale" if entry["scale"] == "auto" else f"x{entry['scale']}"
    parts = [f"{codec} {scale} + {'Lanczos' if entry['kind'] == 'lanczos' else 'ours'}"]
    parts += [f"for {entry['purpose']}"] if entry["purpose"] not in ("", "psnr") else []
    parts += ["self-ensemble"] if entry["self_ensemble"] else []
    parts += ["plain file"] if entry["kind"] == "ours" and entry["container"] == "file" else []
    return ", ".join(parts)


def cells(results: Mapping[str, Any], metric: str, names: Sequence[str]) -> dict[str, list[tuple[str, bool]]]:
    """A metric at the rates, as text.

    Returns:
        For each curve the values at the rates, and whether each is the best of these curves.
    """
    values = {name: list(results["curves"][name]["at_rates"][metric].values()) for name in names}
    best = [max((v for v in column if v is not None), default=None) for column in zip(*values.values(), strict=True)]
    return {
        name: [
            (NO_VALUE if value is None else f"{value:.{DIGITS[metric]}f}", value is not None and value == top)
            for value, top in zip(row, best, strict=True)
        ]
        for name, row in values.items()
    }


def summary_table(results: Mapping[str, Any]) -> Table:
    """The mean PSNR at the rates, for the terminal."""
    names = [name for name, entry in results["curves"].items() if entry["leading"]]
    table = Table(title="PSNR (dB) at bits per pixel", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for rate in results["rates"]:
        table.add_column(rate, justify="right", no_wrap=True)
    for name, row in cells(results, "psnr", names).items():
        text = [f"[bold]{value}[/bold]" if is_best else value for value, is_best in row]
        table.add_row(display_name(name, results["curves"][name]), *text)
    return table


def write_table(path: Path, results: Mapping[str, Any]) -> None:
    """Write table.md: each metric at the rates, gains over Lanczos, BD-rates and ranges."""
    curves, rates = results["curves"], results["rates"]
    shown = {name: display_name(name, entry) for name, entry in curves.items()}
    n_skipped = len(results["skipped"])
    lines = [
        f"{len(results['pictures'])} pictures of {results['data']['name']}"
        + (f" ({n_skipped} more could not be used)" if n_skipped else "")
        + f"; bytes of whole files. {NO_VALUE}: out of the codec's range, see the last table.",
    ]
    for metric in REPORTED:
        lines += ["", *_markdown_row([f"{HEADINGS[metric]} at bits per pixel", *rates], heading=True)]
        for name, row in cells(results, metric, list(curves)).items():
            lines += _markdown_row([shown[name], *(f"**{text}**" if is_best else text for text, is_best in row)])
    gains = {name: entry["gain_over_lanczos"] for name, entry in curves.items() if "gain_over_lanczos" in entry}
    if gains:
        lines += ["", *_markdown_row(["dB above Lanczos from the same files", *rates], heading=True)]
        for name, gain in gains.items():
            lines += _markdown_row([shown[name], *(_number(gain[rate], "+.2f") for rate in rates)])
    anchors = [name for name in ANCHORS if name in curves]
    columns = [f"BD-rate against {shown[anchor]} by {metric}" for anchor in anchors for metric in ("psnr", "ms_ssim")]
    lines += ["", *_markdown_row(["", *columns, "lowest rate", "highest rate"], heading=True)]
    for name, entry in curves.items():
        savings = [
            _number(entry["bd_rate"].get(anchor, {}).get(metric), "+.1f", " %")
            for anchor in anchors
            for metric in ("psnr", "ms_ssim")
        ]
        lines += _markdown_row([shown[name], *savings, f"{entry['lowest_rate']:.3f}", f"{entry['highest_rate']:.3f}"])
    lines += ["", f"Command: `{results['command']}`", ""]
    text = "\n".join(lines)
    write_whole(path, lambda file: file.write(text.encode()))


def _markdown_row(entries: Sequence[str], heading: bool = False) -> list[str]:
    """A row of a table, with the rule below it where it is the first."""
    return [f"| {' | '.join(entries)} |", *(["|" + "---|" * len(entries)] if heading else [])]


def _number(value: float | None, style: str, unit: str = "") -> str:
    """A number, or a sign that there is none."""
    return NO_VALUE if value is None else f"{value:{style}}{unit}"


def write_plot(path: Path, curves: Sequence[Curve], results: Mapping[str, Any]) -> None:
    """Write rd.png: PSNR and MS-SSIM over the rate.

    Args:
        path: Where.
        curves: With the envelopes; the leading ones are drawn.
        results: From `collect`.
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
    rates = [float(rate) for rate in results["rates"]]
    panels = [name for name in ("psnr", "ms_ssim") if any(p[name] is not None for c in curves for p in c.points)]
    all_axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axes, metric in zip(all_axes, panels, strict=False):
        for curve in leading(curves):
            _draw(axes, curve, metric, results["curves"][curve.name])
        _label(axes, metric, rates)
    handles, labels = all_axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _draw(axes: Axes, curve: Curve, metric: str, entry: Mapping[str, Any]) -> None:
    """One curve."""
    known = [point for point in curve.points if point[metric] is not None]
    style = KIND_STYLES[curve.kind] | {"color": CODEC_COLOURS[curve.codec]}
    if curve.ensemble:
        style |= {"linestyle": "--", "linewidth": 1.6}
    if curve.purpose not in ("", "psnr"):
        style |= {"linestyle": "-.", "linewidth": 1.6}
    label = display_name(curve.name, entry)
    axes.plot([point["bits_per_pixel"] for point in known], [point[metric] for point in known], label=label, **style)


def _label(axes: Axes, metric: str, rates: Sequence[float]) -> None:
    """Axes with the rates of the tables; what lies beyond them is out of the picture."""
    low, high = min(rates) * 0.9, max(rates) * 1.1
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(list(rates)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: rate_key(rate)))
    axes.xaxis.set_minor_locator(NullLocator())
    inside = []
    for line in axes.lines:
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        inside += y[(low <= x) & (x <= high)].tolist()
    if inside:
        margin = 0.04 * (max(inside) - min(inside)) or 0.01
        axes.set_ylim(min(inside) - margin, max(inside) + margin)
    axes.set_xlabel("bits per pixel (whole files)")
    axes.set_ylabel(HEADINGS[metric])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json.

    Raises:
        ValueError: It is none of `rlsr evaluate`, or of another version.
    """
    results = json.loads(path.read_text())
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise ValueError(f"{path} has no schema {SCHEMA!r}; it is not of this version of rlsr evaluate")
    return results
