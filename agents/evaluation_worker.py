"""The work of `rlsr evaluate` on one picture, in whichever process: measure what is missing, keep what was measured."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import features

from agents.reports import describe_versions, write_json
from gan.precision import choose_compute_dtype, choose_device
from gan.rate_curves import PictureRecord, setting_key
from gan.rate_points import FileSeries, PictureJudge, UnusablePictureError
from rlsr_env.images import ImageSet

# Goes up whenever equal settings would give other figures than before; older records are then measured again.
RECORD_VERSION = 1


@dataclass(frozen=True)
class Skipped:
    """A picture that cannot be measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Task:
    """What to measure on one picture: series of files, and which of their settings."""

    uri: str
    wanted: tuple[tuple[FileSeries, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Worker:
    """Measures pictures of one set.

    Attributes:
        images: The set.
        folder: Where a record of each picture is kept.
        device: As torch names it.
        precision: `"auto"`, `"fp32"` or `"bf16"`.
        tile: Side of the decoders' tiles.
    """

    images: ImageSet
    folder: Path
    device: str
    precision: str
    tile: int

    def name(self, uri: str) -> str:
        """A picture's name without the set's."""
        return uri.removeprefix(self.images.name).lstrip("/") or uri

    def __call__(self, task: Task) -> PictureRecord | Skipped:
        """Measure a picture; its record is written after each series, whole or not at all.

        Args:
            task: What to do.

        Returns:
            All that is known of it, or why it cannot be used.
        """
        name = self.name(task.uri)
        try:
            hr_image = self.images.load(task.uri)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a link that leads back to itself
            return Skipped(name, str(error))
        device = choose_device(self.device)
        path = self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-80:]}-{_digest(name.encode())[:8]}.json"
        key = self._key(hr_image, device)
        points = _read_points(path, key)
        height, width = hr_image.shape[:2]
        judge: PictureJudge | None = None
        for series, settings in task.wanted:
            known = points.setdefault(series.name, {})
            if not _is_missing(series, settings, known):
                continue
            judge = judge or PictureJudge(hr_image, device, self.precision, self.tile)
            try:
                for setting in settings:
                    known[setting_key(setting)] = judge.measure(series, setting, known.get(setting_key(setting)))
            except UnusablePictureError as error:
                return Skipped(name, str(error))
            write_json(path, {"key": key, "name": name, "height": height, "width": width, "points": points})
        return PictureRecord(name, height, width, points)

    def _key(self, hr_image: np.ndarray, device: torch.device) -> str:
        """Changes with whatever changes the figures, weights aside, whose sha256 the restorers' keys hold."""
        facts = {
            "record": RECORD_VERSION,
            "versions": describe_versions(),
            "codecs": codec_versions(),
            "device": device.type,
            "precision": str(choose_compute_dtype(device, self.precision)),
            "shape": hr_image.shape,
            "picture": _digest(np.ascontiguousarray(hr_image).data),
        }
        return _digest(json.dumps(facts, sort_keys=True).encode())


def codec_versions() -> dict[str, str | None]:
    """The libraries behind the codecs, as Pillow names them."""
    return {
        "jpeg": features.version("libjpeg_turbo") or features.version("jpg"),
        "webp": features.version("webp"),
        "avif": features.version("avif"),
        "jpeg2000": features.version("jpg_2000"),
    }


_worker: Worker | None = None


def start_process(worker: Worker) -> None:
    """Make a process of a pool ready: it has one thread."""
    global _worker
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the first process has warned already
    _worker = worker


def work(task: Task) -> PictureRecord | Skipped:
    """A task, in a process that `start_process` made ready."""
    assert _worker is not None  # the pool's initializer ran
    return _worker(task)


def record_as_json(record: PictureRecord) -> dict[str, Any]:
    """What results.json says of a picture."""
    return {key: value for key, value in asdict(record).items() if key != "points"}


def _digest(data: Any) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def _is_missing(series: FileSeries, settings: Sequence[float], known: dict[str, Any]) -> bool:
    """Whether something of a series was not measured yet."""
    keys = {restorer.key for restorer in series.restorers}
    return any(not keys <= known.get(setting_key(s), {"restored": {}})["restored"].keys() for s in settings)


def _read_points(path: Path, key: str) -> dict[str, dict[str, Any]]:
    """What an earlier run measured under the same conditions."""
    try:
        record = json.loads(path.read_text())
        return dict(record["points"]) if record["key"] == key else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is damaged and measured again: {error}", UserWarning, stacklevel=2)
        return {}
