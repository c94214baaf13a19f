"""What a network is worth outside of any codec: clean bicubic downsampling, beside figures that others published.

The protocol of the super-resolution literature: pictures are cut to a multiple of the scale, shrunk by antialiased
bicubic (Keys, a = -0.5), enlarged, rounded to 8 bits, and judged without a border of `scale` pixels: PSNR of R, G and
B, and PSNR and SSIM of the luma (BT.601, 16 to 235, not rounded). One picture of Set14 is a grey file in the original
set, whose values from 0 to 255 count as the luma: 1.3 dB less on it. Bicubic enlargement is measured in the same run;
where its luma PSNR is that of the literature, so is the protocol.

Differences that are left: Pillow shrinks where the literature has MATLAB's imresize. The kernel is the same, but Pillow
rounds to 8 bits between the two passes and renormalises at the border, where MATLAB mirrors. Ledig et al. computed SSIM
with a tool of their own: compare SSIM with the row of Kim et al., whose convention is the usual one and the one here.

Writes JSON to `--out`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image
from pytorch_msssim import ssim
from torch import Tensor

from agents.reports import describe_machine, describe_versions, write_json
from gan.evaluation import as_batch
from gan.precision import choose_compute_dtype, choose_device
from gan.zoo import load_decoder, read_weights
from rlsr_env.images import decode_images, image_set
from rlsr_env.metrics import METRICS
from rlsr_env.resample import upsample
from rlsr_env.rounding import to_8bit

Decoder = Callable[[Tensor], Tensor]

LUMA_WEIGHTS = (65.481, 128.553, 24.966)
COLUMNS = ("psnr", "psnr_y", "ssim_y")
SSIM_WINDOW = 11

# The file that has one channel in the original set.
GREY = {"set14": ("img_003.png",)}
FULL_RANGE = 255 / 219

# Scale 4; (PSNR, SSIM) of the luma.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "bicubic, Ledig et al. 2017, table 2": {"set5": (28.43, 0.8211), "set14": (25.99, 0.7486)},
    "bicubic, Kim et al. 2016 (VDSR), table 3": {"set5": (28.42, 0.8104), "set14": (26.00, 0.7027)},
    "SRResNet, Ledig et al. 2017, table 2": {"set5": (32.05, 0.9019), "set14": (28.49, 0.8184)},
}


@dataclass(frozen=True)
class Args:
    """Arguments of this benchmark."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of pictures; set5 and set14 by name are compared with what was published"""
    weights: tuple[Path, ...] = ()
    """.safetensors files of networks for clean pictures"""
    scale: int = 4
    """by how much the pictures are shrunk"""
    self_ensemble: bool = False
    """the networks also averaged over eight flips and turns"""
    device: str = "auto"
    """auto, cpu or cuda"""
    precision: str = "fp32"
    """fp32 or bf16"""
    out: Path | None = None
    """JSON file to write"""


def shrink(hr_image: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture cut to a multiple of the scale, and its antialiased bicubic reduction.

    Args:
        hr_image: `(H, W, 3)` uint8.
        scale: By how much.

    Returns:
        `(H', W', 3)` and `(H' / scale, W' / scale, 3)`, uint8.

    Raises:
        ValueError: The picture is smaller than `scale` pixels.
    """
    height, width = (side - side % scale for side in hr_image.shape[:2])
    if not height or not width:
        raise ValueError(f"the picture has {hr_image.shape[1]} x {hr_image.shape[0]} pixels, less than {scale}")
    hr_image = hr_image[:height, :width]
    lr_size = (width // scale, height // scale)
    return hr_image, np.array(Image.fromarray(hr_image).resize(lr_size, Image.Resampling.BICUBIC))


def judge(sr_image: Tensor, hr_image: Tensor, border: int, is_grey: bool = False) -> dict[str, float]:
    """Judge a picture without its border.

    Args:
        sr_image: `(1, 3, H, W)` float, multiples of 1/255.
        hr_image: The original, likewise.
        border: How many pixels at each side do not count.
        is_grey: Whether the luma has all 256 levels, as that of a grey file.

    Returns:
        `psnr`, `psnr_y` in dB, and `ssim_y`.
    """
    inner = slice(border, -border)
    sr_inner, hr_inner = (image[..., inner, inner].double() for image in (sr_image, hr_image))
    gain, offset = (FULL_RANGE, 0) if is_grey else (1.0, 16)
    weights = gain * sr_inner.new_tensor(LUMA_WEIGHTS)
    sr_luma, hr_luma = (torch.einsum("bchw,c->bhw", image, weights)[:, None] + offset for image in (sr_inner, hr_inner))
    return {
        "psnr": METRICS["psnr"](sr_inner, hr_inner).item(),
        "psnr_y": METRICS["psnr_y"](sr_inner, hr_inner).item() - 20 * math.log10(gain),
        "ssim_y": ssim(sr_luma, hr_luma, data_range=255).item(),
    }


@torch.no_grad()
def measure(
    decoder: Decoder, pictures: dict[str, np.ndarray], scale: int, device: torch.device, grey: tuple[str, ...] = ()
) -> dict[str, float]:
    """Mean figures of a decoder on pictures.

    Args:
        decoder: From `(1, 3, h, w)` in [0, 1] to `(1, 3, scale * h, scale * w)`.
        pictures: The originals by name.
        scale: By how much they are shrunk; also the border that does not count.
        device: Where the decoder runs.
        grey: File names of those that are grey files in the original set.
    """
    rows = []
    for name, picture in pictures.items():
        hr_image, lr_image = shrink(picture, scale)
        sr_image = to_8bit(decoder(as_batch(lr_image, device)).float())
        rows.append(judge(sr_image, as_batch(hr_image, device), scale, Path(name).name in grey))
    return {column: fmean(row[column] for row in rows) for column in COLUMNS}


def run(args: Args) -> dict[str, Any]:
    """Measure bicubic enlargement and all networks on all sets.

    Raises:
        ValueError: For a scale below 2, weights of another scale, or no pictures.
        FileNotFoundError: For a folder or file that is not there.
    """
    if args.scale < 2:
        raise ValueError(f"--scale must be 2 or more, got {args.scale}")
    device = choose_device(args.device)
    decoders: dict[str, Decoder] = {"bicubic": partial(upsample, scale=args.scale, kernel="bicubic")}
    hashes = {}
    for path in args.weights:
        weights = read_weights(path)
        hashes[weights.name] = weights.sha256.hex()
        for ensemble in (False, True)[: 1 + args.self_ensemble]:
            name = f"{weights.name}, self-ensemble" if ensemble else weights.name
            decoders[name] = load_decoder(weights, args.scale, device, args.precision, ensemble=ensemble)
    sets = {}
    for folder in args.data:
        images = image_set(folder)
        decoded = decode_images(images, min_size=SSIM_WINDOW + 3 * args.scale)
        name = folder.resolve().name
        pictures = dict(zip(decoded.uris, decoded.images, strict=True))
        measured = {
            who: measure(decoder, pictures, args.scale, device, GREY.get(name, ())) for who, decoder in decoders.items()
        }
        published = {
            who: {"psnr_y": figures[name][0], "ssim_y": figures[name][1]}
            for who, figures in PUBLISHED.items()
            if name in figures and args.scale == 4
        }
        sets[name] = {
            "pictures": len(decoded.images), "version": images.version, "measured": measured, "published": published
        }  # fmt: skip
    return {
        "scale": args.scale,
        "sets": sets,
        "weights": hashes,
        "versions": describe_versions(),
        "machine": describe_machine(device, choose_compute_dtype(device, args.precision)),
    }


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = []
    for name, one in results["sets"].items():
        lines += [
            f"| {name}, {one['pictures']} pictures, x{results['scale']} | PSNR RGB (dB) | PSNR Y (dB) | SSIM Y |",
            "|---|---|---|---|",
        ]
        for who, row in (one["measured"] | one["published"]).items():
            rgb = f"{row['psnr']:.2f}" if "psnr" in row else ""
            lines.append(f"| {who} | {rgb} | {row['psnr_y']:.2f} | {row['ssim_y']:.4f} |")
        lines.append("")
    return "\n".join(lines)


def main(args: Args) -> None:
    """Run the benchmark and report."""
    results = run(args)
    print(table(results))
    if args.out is not None:
        write_json(args.out, results)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
