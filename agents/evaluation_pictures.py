"""The pictures of the report of `rlsr evaluate`: one restoration, and what it is compared with at equal bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from agents.evaluate_options import EvaluateOptions
from agents.evaluation_report import display_name
from agents.reports import busiest_crop
from gan.file_format import pack
from gan.rate_curves import AUTO, FILE, RLSR, Curve
from gan.rate_points import LANCZOS_RESTORER, WHOLE, FileSeries, PictureJudge
from rlsr_env.codec import BASE_CODECS

# Of the pictures as the page holds them; the originals need it, restorations from so few bits hardly.
PAGE_QUALITY = 90


@dataclass(frozen=True)
class Shown:
    """A picture of the page.

    Attributes:
        label: What it is.
        caption: Its bytes and how good it is.
        jpeg: The picture as the page holds it.
    """

    label: str
    caption: str
    jpeg: bytes


@dataclass(frozen=True)
class Comparison:
    """What the page shows of one picture.

    Attributes:
        name: The picture's.
        height: Of what is shown, in pixels.
        width: Of what is shown.
        after: The restoration.
        before: What it can be compared with, the first one at the start.
    """

    name: str
    height: int
    width: int
    after: Shown
    before: tuple[Shown, ...]


def shown_curve(curves: Sequence[Curve], rate: float) -> Curve | None:
    """The curve whose restorations the page shows: the best of ours by PSNR near a rate, or else of Lanczos.

    Args:
        curves: All of them.
        rate: In bits per pixel.

    Returns:
        A curve of one scale; None where there are only whole-picture codecs.
    """
    ours = [curve for curve in curves if curve.kind == "ours" and curve.container == RLSR and not curve.ensemble]
    candidates = ours or [curve for curve in curves if curve.kind == "lanczos"]
    candidates = [curve for curve in candidates if curve.scale != AUTO]

    def quality(curve: Curve) -> tuple[bool, float]:
        value = curve.value_at(rate, "psnr")
        return value is not None, value or 0.0

    return max(candidates, key=quality, default=None)


def nearest_setting(curve: Curve, rate: float) -> float:
    """The setting whose rate over the whole set is the nearest to a rate, by their ratio."""
    point = min(curve.points, key=lambda point: abs(math.log(point["bits_per_pixel"] / rate)))
    return float(point["setting"])


def compare(
    name: str, hr_image: np.ndarray, series: FileSeries, curve: Curve, options: EvaluateOptions, device: torch.device
) -> Comparison:
    """Make the pictures for one original.

    Args:
        name: The picture's.
        hr_image: `(H, W, 3)` uint8.
        series: The files of `curve`.
        curve: What to show.
        options: Rate, crop, precision, tile.
        device: Where decoders run.

    Returns:
        The restoration beside Lanczos from the same file, whole-picture codecs that have as many bytes at most (where
        they have so small files), and the original.
    """
    judge = PictureJudge(hr_image, device, options.precision, options.tile)
    window = _window(hr_image, options.crop)
    file = series.encode(hr_image, nearest_setting(curve, options.show_rate))
    lr_image = series.decode(file)
    chosen = [one for one in series.restorers if one.kind == curve.kind and not one.ensemble]
    restorer = next(one for one in chosen if one.weights.purpose == curve.purpose)
    n_bytes = len(file)
    if curve.container != FILE:
        n_bytes = len(pack(file, hr_image.shape[:2], series.scale, series.codec, restorer.weights))
    sr_image = judge.restore(series, restorer, lr_image)
    facts = {"kind": curve.kind, "codec": curve.codec, "scale": curve.scale, "purpose": curve.purpose}
    label = display_name(curve.name, facts | {"self_ensemble": False, "container": curve.container})
    after = _show(label, f"{n_bytes:,} bytes", judge, sr_image, window)
    before = []
    if restorer.kind == "ours" and series.scale > 1:
        lanczos = judge.restore(series, LANCZOS_RESTORER, lr_image)
        before.append(_show("Lanczos, the same file", f"{n_bytes:,} bytes", judge, lanczos, window))
    for codec in (codec for codec in BASE_CODECS if codec in options.codecs):
        whole = FileSeries(codec, restorers=(WHOLE,))
        rival = largest_within(whole, hr_image, n_bytes)
        excess = f", {len(rival) / n_bytes:.1f} times as many: it goes no lower" if len(rival) > n_bytes else ""
        title = display_name(codec, {"kind": "whole", "codec": codec})
        before.append(_show(title, f"{len(rival):,} bytes{excess}", judge, whole.decode(rival), window))
    before.append(Shown("Original", "", _as_jpeg(hr_image[window])))
    height, width = hr_image[window].shape[:2]
    return Comparison(name, height, width, after, tuple(before))


def largest_within(series: FileSeries, hr_image: np.ndarray, n_bytes: int) -> bytes:
    """The file of the highest quality that has at most so many bytes; that of the lowest one where all have more.

    Args:
        series: Files of a base codec.
        hr_image: `(H, W, 3)` uint8.
        n_bytes: Their number.

    Returns:
        The file.
    """
    qualities = BASE_CODECS[series.codec].qualities
    low, high = qualities[0], qualities[-1]
    best = series.encode(hr_image, low)
    if len(best) > n_bytes:
        return best
    while low < high:
        middle = (low + high + 1) // 2
        file = series.encode(hr_image, middle)
        if len(file) <= n_bytes:
            low, best = middle, file
        else:
            high = middle - 1
    return best


def _window(hr_image: np.ndarray, crop: int) -> tuple[slice, slice]:
    """The part that is shown: the busiest of a size, or the whole."""
    height, width = hr_image.shape[:2]
    if not crop or crop >= min(height, width):
        return slice(0, height), slice(0, width)
    top, left, _ = busiest_crop(hr_image, crop)
    return slice(top, top + crop), slice(left, left + crop)


def _show(label: str, size: str, judge: PictureJudge, sr_image: np.ndarray, window: tuple[slice, slice]) -> Shown:
    """A restoration with its figures, which are of the whole picture."""
    values = judge.judge(sr_image)
    parts = [size]
    if values["psnr"] is not None:
        parts.append(f"{values['psnr']:.2f} dB")
    if values["ms_ssim"] is not None:
        parts.append(f"MS-SSIM {values['ms_ssim']:.4f}")
    return Shown(label, " · ".join(parts), _as_jpeg(sr_image[window]))


def _as_jpeg(image: np.ndarray) -> bytes:
    """A picture as the page holds it."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(
        file, "JPEG", quality=PAGE_QUALITY, subsampling="4:4:4", optimize=True
    )
    return file.getvalue()
