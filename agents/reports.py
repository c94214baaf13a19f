"""What a run of `rlsr reproduce` leaves for readers: results.json, table.md, comparison.png, curves.png."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gan.evaluation import REPORTED, CodedPicture, total_bits_per_pixel
from rlsr_env.files import write_whole
from rlsr_env.patches import to_float
from rlsr_env.peak_signal import psnr

matplotlib.use("agg")

CROP_SIZE = 128
# Below this the spread over the seeds is itself a guess.
LEAST_SEEDS = 3
LABELS = {"lanczos": "LANCZOS", "srgan": "SRGAN", "rl-srgan": "RL-SRGAN"}
COLOURS = {"srgan": "tab:blue", "rl-srgan": "tab:red"}
# PSNR and MS-SSIM are the columns of the paper's table 1.
DIGITS = {"psnr": 2, "psnr_clic": 2, "ms_ssim": 4, "ssim": 4}
HEADINGS = {"psnr": "PSNR (dB)", "psnr_clic": "PSNR, pooled as CLIC does (dB)", "ms_ssim": "MS-SSIM", "ssim": "SSIM"}


def describe_versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    packages = ("rlsr", "torch", "torchvision", "numpy", "pillow", "gymnasium", "stable-baselines3", "pytorch-msssim")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def describe_machine(device: torch.device, compute_dtype: torch.dtype) -> dict[str, Any]:
    """What the run ran on."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "processor": str(capabilities.get("cpu_name") or platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": str(compute_dtype).removeprefix("torch."),
        "system": platform.system(),
    }


def summarise(per_seed: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, spread and single values of each metric.

    Args:
        per_seed: `gan.evaluation.measure` of each seed.

    Returns:
        `{metric: {"mean", "std", "per_seed"}}`; `std` is the sample standard deviation, None for a single seed and for
        infinite values (a picture restored exactly); all are None where no picture was large enough for the metric.
    """
    summary = {}
    for name in REPORTED:
        values = [result[name] for result in per_seed]
        known = None not in values
        summary[name] = {
            "mean": statistics.fmean(values) if known else None,
            "std": _spread(values) if known else None,
            "per_seed": values,
        }
    return summary


def _spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for a single value, and where one is infinite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def paired_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """`first` minus `second`, seed by seed: both used the same data and the same start.

    Args:
        first: `{"per_seed": [...]}` of one metric.
        second: The same of another method.

    Returns:
        Mean, standard deviation (None for a single seed) and the differences; all None where the metric is missing or
        infinite.
    """
    if not all(value is not None and math.isfinite(value) for value in (*first["per_seed"], *second["per_seed"])):
        return {"mean": None, "std": None, "per_seed": None}
    differences = [a - b for a, b in zip(first["per_seed"], second["per_seed"], strict=True)]
    return {"mean": statistics.fmean(differences), "std": _spread(differences), "per_seed": differences}


def collect_results(
    pictures: Sequence[CodedPicture], measured: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """The part of results.json that depends on the pictures.

    Args:
        pictures: The held-out pictures.
        measured: `gan.evaluation.measure` per method and seed; `lanczos`, `srgan`, `rl-srgan` and `pretrained`.
    """
    methods = {name: summarise(measured[name]) for name in LABELS}
    images = []
    for number, picture in enumerate(pictures):
        height, width = picture.hr_image.shape[:2]
        images.append(
            {
                "uri": picture.uri.rpartition("/")[2] if picture.uri.startswith("folder:") else picture.uri,
                "width": width,
                "height": height,
                "bytes": picture.n_bytes,
                "bits_per_pixel": picture.bits_per_pixel,
                "methods": {name: [result["images"][number] for result in measured[name]] for name in LABELS},
            }
        )
    return {
        "bits_per_pixel": total_bits_per_pixel(pictures),
        "bytes": sum(picture.n_bytes for picture in pictures),
        "methods": methods,
        "rl-srgan minus srgan": {
            name: paired_difference(methods["rl-srgan"][name], methods["srgan"][name]) for name in REPORTED
        },
        "pretrained": summarise(measured["pretrained"]),
        "images": images,
    }


def _cell(value: Mapping[str, Any], digits: int, signed: bool = False) -> str:
    """Mean and spread as text."""
    if value["mean"] is None:
        return "n/a"
    text = f"{value['mean']:{'+' if signed else ''}.{digits}f}"
    return text if value["std"] is None else f"{text} ± {value['std']:.{digits}f}"


def verdict(difference: Mapping[str, Any]) -> str:
    """Whether RL-SRGAN's PSNR differs from SRGAN's by more than the spread of the paired differences, in words."""
    mean, spread, per_seed = difference["mean"], difference["std"], difference["per_seed"]
    if mean is None:
        return "infinite, because a picture was restored exactly, so nothing can be said of who is better"
    if spread is None or len(per_seed) < LEAST_SEEDS:
        return f"less than {LEAST_SEEDS} seeds, so nothing can be said of who is better"
    if abs(mean) <= spread:
        return "within the spread over the seeds: neither method is better"
    return f"beyond the spread over the seeds: RL-SRGAN is {'better' if mean > 0 else 'worse'} than SRGAN"


def write_table(path: Path, results: Mapping[str, Any]) -> None:
    """Write table.md in the form of the paper's table 1, best method first row.

    Args:
        path: File to write.
        results: The content of results.json.
    """
    methods = results["methods"]
    n_pictures, n_seeds = len(results["images"]), len(results["seeds"])
    lines = [
        f"| method | {' | '.join(HEADINGS[name] for name in REPORTED)} |",
        "|---|" + "---|" * len(REPORTED),
    ]
    for key in ("rl-srgan", "srgan"):
        cells = " | ".join(_cell(methods[key][name], DIGITS[name]) for name in REPORTED)
        lines.append(f"| {LABELS[key]} | {cells} |")
    for label, summary in (("pretrained (start of both)", results["pretrained"]), ("Lanczos", methods["lanczos"])):
        single = {name: {"mean": summary[name]["mean"], "std": None} for name in REPORTED}
        lines.append(f"| {label} | {' | '.join(_cell(single[name], DIGITS[name]) for name in REPORTED)} |")
    difference = results["rl-srgan minus srgan"]
    cells = " | ".join(_cell(difference[name], DIGITS[name] + 1, signed=True) for name in REPORTED)
    lines.append(f"| RL-SRGAN minus SRGAN | {cells} |")
    lines += [
        "",
        f"{n_pictures} pictures, {results['bytes']:,} bytes, {results['bits_per_pixel']:.4f} bits per pixel; "
        f"mean ± standard deviation over {n_seeds} seed{'s' if n_seeds > 1 else ''} "
        "(the last row: of the differences, seed by seed).",
        f"PSNR: {verdict(difference['psnr'])}.",
        f"Content loss: {results['content_loss']}.",
        "",
        f"Command: `{results['command']}`",
        "",
    ]
    write_whole(path, lambda file: file.write("\n".join(lines).encode()))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; numbers that are not finite become null, because JSON has none."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def write_results(path: Path | None, results: Mapping[str, Any], text: str) -> None:
    """Print what a benchmark found, and keep it.

    Args:
        path: The JSON file, or nothing; the text goes beside it, as .md.
        results: Everything.
        text: For readers, Markdown.
    """
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
        write_whole(path.with_suffix(".md"), lambda file: file.write(text.encode()))


def _finite(value: Any) -> Any:
    """The same with None in the place of infinite numbers and NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=100, bbox_inches="tight"))


def _enlarged(picture: CodedPicture, scale: int) -> np.ndarray:
    """The LR picture with every pixel repeated, cut to the original's size."""
    height, width = picture.hr_image.shape[:2]
    return picture.lr_image.repeat(scale, axis=0).repeat(scale, axis=1)[:height, :width]


def choose_picture(pictures: Sequence[CodedPicture], scale: int) -> CodedPicture:
    """The picture with the busiest crop, seen in LR: structure that a decoder has something to restore from.

    A grey one only where all are grey: it would hide errors of colour.
    """
    coloured = [picture for picture in pictures if np.ptp(picture.hr_image, axis=2).max() > 0]
    pictures = coloured or pictures
    sizes = [min(CROP_SIZE, *picture.hr_image.shape[:2]) for picture in pictures]
    contrasts = [busiest_crop(_enlarged(p, scale), size)[2] for p, size in zip(pictures, sizes, strict=True)]
    return pictures[int(np.argmax(contrasts))]


def busiest_crop(image: np.ndarray, size: int) -> tuple[int, int, float]:
    """Top, left and mean contrast between neighbours of the busiest `size` x `size` crop of `(H, W, 3)` uint8."""
    luma = image.mean(axis=2)
    energy = np.abs(np.diff(luma, axis=0, append=luma[-1:])) + np.abs(np.diff(luma, axis=1, append=luma[:, -1:]))
    totals = {
        (top, left): float(energy[top : top + size, left : left + size].mean())
        for top in range(0, image.shape[0] - size + 1, max(1, size // 4))
        for left in range(0, image.shape[1] - size + 1, max(1, size // 4))
    }
    corner = max(totals, key=lambda corner: totals[corner])
    return *corner, totals[corner]


def write_comparison(path: Path, picture: CodedPicture, restored: Mapping[str, Tensor], scale: int) -> None:
    """Write comparison.png in the form of the paper's figure 2: one crop, method beside method, with its PSNR.

    Args:
        path: File to write.
        picture: The picture to crop.
        restored: SR pictures `(1, 3, H, W)` of `lanczos`, `srgan` and `rl-srgan`.
        scale: Upsampling factor.
    """
    size = min(CROP_SIZE, *picture.hr_image.shape[:2])
    enlarged = _enlarged(picture, scale)
    top, left, _ = busiest_crop(enlarged, size)

    def crop(image: np.ndarray) -> np.ndarray:
        return image[top : top + size, left : left + size]

    def as_tensor(image: np.ndarray) -> Tensor:
        return to_float(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None])

    original = crop(picture.hr_image)
    panels = {"LR": crop(enlarged)}
    for key, label in LABELS.items():
        levels = (restored[key][0].cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        panels[label] = crop(levels)
    panels["ORIGINAL"] = original
    figure = Figure(figsize=(2.6 * len(panels), 3.4), layout="constrained")
    for axes, (label, panel) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(panel, interpolation="nearest")
        value = psnr(as_tensor(panel), as_tensor(original)).item()
        axes.set_title(f"{label}\n{value:.2f} dB" if np.isfinite(value) else f"{label}\n∞ dB", fontsize=10)
        axes.set_axis_off()
    title = f"{picture.uri.rpartition('/')[2]}, {picture.bits_per_pixel:.3f} bits per pixel"
    figure.suptitle(title, fontsize=10, parse_math=False)  # a file name may hold dollar signs
    _save(figure, path)


def write_curves(path: Path, curves: Mapping[str, Sequence[Mapping[str, float | None]]], lanczos: float) -> None:
    """Write curves.png: PSNR on held-out crops, the losses, and the reward, against updates.

    Args:
        path: File to write.
        curves: Points of each stage (`pretrained`, `srgan-seed0`, ...), each with `update`, `psnr` and the metrics of
            the losses; None where a value was not finite.
        lanczos: PSNR of Lanczos on the same crops, dB.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    pretrain_axes, psnr_axes, loss_axes, reward_axes = figure.subplots(2, 2).ravel()
    start = curves["pretrained"]
    pretrain_axes.plot([p["update"] for p in start], [p["psnr"] for p in start], color="black")
    pretrain_axes.set(title="pretraining: PSNR of held-out crops", xlabel="update", ylabel="dB")
    panels = (
        (psnr_axes, "psnr", "adversarial stage: PSNR of held-out crops", "dB"),
        (loss_axes, "gan/loss", "loss of the generator (eq. 4)", ""),
        (reward_axes, "rl/reward", "reward of the agent (eq. 5)", "mean over environments"),
    )
    for axes, key, title, unit in panels:
        for method, colour in COLOURS.items():
            runs = [
                points
                for stage, points in curves.items()
                if stage.rpartition("-seed")[0] == method and any(key in p for p in points)
            ]
            if not runs:
                continue
            updates = [p["update"] for p in runs[0] if key in p]
            values = np.array([[p[key] for p in run if key in p] for run in runs], dtype=float)
            axes.plot(updates, values.mean(0), color=colour, label=f"{LABELS[method]}, mean of {len(runs)} seeds")
            axes.fill_between(updates, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        axes.set(title=title, xlabel="update", ylabel=unit)
        axes.legend(fontsize=8)
    for axes in (pretrain_axes, psnr_axes):
        axes.axhline(lanczos, color="grey", linestyle="--", label="LANCZOS")
        axes.legend(fontsize=8)
    _save(figure, path)
