"""Rate-distortion curves of a set of pictures, and what they say at a rate."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from gan.bd_rate import bd_rate, ms_ssim_decibels
from gan.evaluation import REPORTED
from gan.rate_points import LANCZOS_RESTORER, FileSeries, Measured, Restorer
from rlsr_env.peak_signal import psnr_clic

# What is averaged over qualities, on which scale.
BD_METRICS: dict[str, Callable[[float], float]] = {"psnr": float, "ms_ssim": ms_ssim_decibels}
# The container that a curve's bytes are of: the LR file itself, or the project's own.
FILE, RLSR = "file", "rlsr"
AUTO = "auto"

Point = dict[str, Any]


@dataclass(frozen=True)
class PictureRecord:
    """What was measured on one picture.

    Attributes:
        name: The picture's.
        height: In pixels.
        width: In pixels.
        points: `{series: {setting: PictureJudge.measure(...)}}`, settings as `setting_key` writes them.
    """

    name: str
    height: int
    width: int
    points: Mapping[str, Mapping[str, Measured]]


@dataclass(frozen=True)
class Curve:
    """A way to store pictures, over its settings.

    Attributes:
        name: As in `"jpeg"`, `"lanczos-avif-x2"`, `"ours-jpeg-x2"`.
        kind: `"whole"`, `"lanczos"` or `"ours"`.
        codec: What makes the files.
        scale: By how much pictures are shrunk; `"auto"` for the best at each rate.
        points: From low rates to high ones: `bits_per_pixel`, the metrics of `REPORTED` (None where there is no value),
            and `setting`, or for `"auto"` the `curve` that is the best. For decoders with weights at one scale also
            `gain_over_lanczos`: dB above Lanczos from the same files (None where that was not measured).
        container: `"file"` or `"rlsr"`: whose bytes count.
        purpose: What the weights are best at; empty without weights.
        weights: Their name and sha256.
        ensemble: Whether the decoder averages over flips and turns.
    """

    name: str
    kind: str
    codec: str
    scale: int | str
    points: tuple[Point, ...]
    container: str = FILE
    purpose: str = ""
    weights: Mapping[str, str] | None = None
    ensemble: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest rate, in bits per pixel."""
        return self.points[0]["bits_per_pixel"], self.points[-1]["bits_per_pixel"]

    def value_at(self, rate: float, metric: str) -> float | None:
        """A metric at a rate: linear over the logarithm of the rate between neighbouring points.

        Args:
            rate: In bits per pixel.
            metric: One of `REPORTED`, or another number that the points have.

        Returns:
            The value; None beyond the first and the last point, as nothing is extrapolated.
        """
        known = [(point["bits_per_pixel"], point[metric]) for point in self.points if point[metric] is not None]
        if not known or not known[0][0] <= rate <= known[-1][0]:
            return None
        rates, values = zip(*known, strict=True)
        return float(np.interp(math.log(rate), np.log(rates), values))


def setting_key(setting: float) -> str:
    """A setting as a key of JSON."""
    return f"{setting:g}"


def set_rates(series: FileSeries, records: Sequence[PictureRecord]) -> list[tuple[float, float, float]]:
    """The rates of the settings that were measured on every picture.

    Returns:
        Setting, bits per pixel of the plain files, and of the smallest container that counts (the same without
        weights), from small files to large ones.
    """
    rates = []
    for setting in series.settings:
        measured = _of_all(series, setting, records)
        if measured:
            plain = _rate([one["bytes"] for one in measured], records)
            ours = [restorer.key for restorer in series.restorers if restorer.kind == "ours"]
            packed = [_rate([one["restored"][key]["packed_bytes"] for one in measured], records) for key in ours]
            rates.append((setting, plain, min([plain, *packed])))
    return rates


def curves_of(series: FileSeries, records: Sequence[PictureRecord], low: float, high: float) -> list[Curve]:
    """All curves that a series of files makes: one for each restorer, two where there are two containers.

    Args:
        series: The files and their restorers.
        records: Of all pictures.
        low: The lowest rate that counts, in bits per pixel. Points below it are left out, but for the last of them; so
            the curves do not depend on what else was ever measured.
        high: The highest rate that counts, likewise.

    Returns:
        Curves of at least one point.
    """
    curves: list[Curve] = []
    for restorer in series.restorers:
        containers = (RLSR, FILE) if restorer.kind == "ours" else (FILE,)
        for container in containers:
            points: list[Point] = []
            for setting in series.settings:
                measured = _of_all(series, setting, records)
                if measured:
                    point: Point = {"setting": setting} | _mean_point(measured, restorer, container, records)
                    if restorer.kind == "ours":
                        point["gain_over_lanczos"] = _gain(point, measured, records)
                    points.append(point)
            if points:
                curve = Curve(
                    name=_curve_name(series, restorer, container),
                    kind=restorer.kind,
                    codec=series.codec,
                    scale=series.scale,
                    points=_covering(points, low, high),
                    container=container,
                    purpose=restorer.weights.purpose,
                    weights=_weights_facts(restorer),
                    ensemble=restorer.ensemble,
                )
                curves.append(curve)
    return curves


def with_auto_scales(curves: Sequence[Curve]) -> list[Curve]:
    """Add the upper envelope over the scales, where there are several of one kind, codec, container and purpose.

    At each rate of a member the scale with the highest PSNR of the whole set counts, for all metrics.

    Args:
        curves: From `curves_of`.

    Returns:
        The curves, and behind them the envelopes.
    """
    groups: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in curves:
        counts = curve.kind == "lanczos" or (curve.kind == "ours" and curve.container == RLSR)
        if counts and curve.scale != 1:
            groups.setdefault((curve.kind, curve.codec, curve.purpose, curve.ensemble), []).append(curve)
    return [*curves, *(_envelope(members) for members in groups.values() if len(members) > 1)]


def leading(curves: Sequence[Curve]) -> list[Curve]:
    """The curves that a picture has room for: whole files, and of each codec the best scales; no second container."""
    has_auto = {(c.kind, c.codec, c.purpose, c.ensemble) for c in curves if c.scale == AUTO}
    return [
        curve
        for curve in curves
        if curve.scale == AUTO
        or curve.kind == "whole"
        or (
            (curve.kind == "lanczos" or curve.container == RLSR)
            and (curve.kind, curve.codec, curve.purpose, curve.ensemble) not in has_auto
        )
    ]


def bd_rates(curve: Curve, anchor: Curve) -> dict[str, float | None]:
    """BD-rate of a curve against another, in per cent, for each of `BD_METRICS`."""
    found: dict[str, float | None] = {}
    for metric, scale in BD_METRICS.items():
        sides: list[list[float]] = []
        for points in (curve.points, anchor.points):
            known = [point for point in points if point[metric] is not None]
            sides += [[point["bits_per_pixel"] for point in known], [scale(point[metric]) for point in known]]
        found[metric] = bd_rate(*sides)
    return found


def _of_all(series: FileSeries, setting: float, records: Sequence[PictureRecord]) -> list[Measured]:
    """What was measured at a setting on each picture; nothing where one lacks it, or one of the restorers."""
    found = [record.points.get(series.name, {}).get(setting_key(setting)) for record in records]
    keys = {restorer.key for restorer in series.restorers}
    return [one for one in found if one] if all(one and keys <= one["restored"].keys() for one in found) else []


def _rate(sizes: Sequence[int], records: Sequence[PictureRecord]) -> float:
    """Bits of all files over pixels of all pictures (CLIC: the set is one target)."""
    return 8 * sum(sizes) / sum(record.height * record.width for record in records)


def _mean_point(
    measured: Sequence[Measured], restorer: Restorer, container: str, records: Sequence[PictureRecord]
) -> Point:
    """Rate and quality of the whole set at one setting."""
    restored = [one["restored"][restorer.key] for one in measured]
    sizes = [one["packed_bytes"] for one in restored] if container == RLSR else [one["bytes"] for one in measured]
    values: Point = {"bits_per_pixel": _rate(sizes, records)}
    n_values = [3 * record.height * record.width for record in records]
    error = sum(one["squared_error"] * n for one, n in zip(restored, n_values, strict=True))
    for metric in REPORTED:
        if metric == "psnr_clic":
            values[metric] = psnr_clic(error, sum(n_values)) if error else None
            continue
        known = [one[metric] for one in restored if one[metric] is not None]
        # A picture that is restored exactly has an infinite PSNR, and so has the mean; a picture may be too small for
        # the others, which are means over those that are not.
        has_value = known and (metric != "psnr" or len(known) == len(restored))
        values[metric] = fmean(known) if has_value else None
    return values


def _gain(point: Point, measured: Sequence[Measured], records: Sequence[PictureRecord]) -> float | None:
    """How many dB a decoder is above Lanczos from the same files."""
    if point["psnr"] is None or not all(LANCZOS_RESTORER.key in one["restored"] for one in measured):
        return None
    lanczos = _mean_point(measured, LANCZOS_RESTORER, FILE, records)["psnr"]
    return None if lanczos is None else point["psnr"] - lanczos


def _covering(points: Sequence[Point], low: float, high: float) -> tuple[Point, ...]:
    """The points from low rates to high ones, with one beyond each end where there is one.

    A setting that is no better than a cheaper one is left out: JPEG's coarsest tables have such, and nobody would use
    them.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: point["bits_per_pixel"]):
        if not kept or None in (point["psnr"], kept[-1]["psnr"]) or point["psnr"] > kept[-1]["psnr"]:
            kept.append(point)
    rates = [point["bits_per_pixel"] for point in kept]
    first = max(bisect_right(rates, low) - 1, 0)
    return tuple(kept[first : bisect_left(rates, high) + 1])


def _curve_name(series: FileSeries, restorer: Restorer, container: str) -> str:
    """The name of a curve."""
    if restorer.kind == "whole":
        return series.name
    parts = [restorer.kind, series.codec, f"x{series.scale}"]
    if restorer.kind == "ours":
        parts += [f"for-{restorer.weights.purpose}"] if restorer.weights.purpose not in ("", "psnr") else []
        parts += ["ensemble"] if restorer.ensemble else []
        parts += ["plain"] if container == FILE else []
    return "-".join(parts)


def _weights_facts(restorer: Restorer) -> dict[str, str] | None:
    """Which weights a restorer has."""
    if restorer.weights.path is None:
        return None
    return {"name": restorer.weights.name, "sha256": restorer.weights.sha256.hex()}


def _envelope(members: Sequence[Curve]) -> Curve:
    """The best scale at each rate."""
    points: list[Point] = []
    for rate in sorted({point["bits_per_pixel"] for curve in members for point in curve.points}):
        values = {curve.name: value for curve in members if (value := curve.value_at(rate, "psnr")) is not None}
        if values:
            best = next(curve for curve in members if curve.name == max(values, key=lambda name: values[name]))
            points.append(
                {"curve": best.name, "bits_per_pixel": rate}
                | {metric: best.value_at(rate, metric) for metric in REPORTED}
            )
    first = members[0]
    name = first.name.replace(f"-x{first.scale}", f"-{AUTO}")
    return Curve(
        name, first.kind, first.codec, AUTO, tuple(points), first.container, first.purpose, ensemble=first.ensemble
    )
