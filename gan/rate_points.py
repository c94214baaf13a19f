"""One point of a rate-distortion curve on one picture: a whole file of a codec, restored and judged."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from gan.file_format import pack
from gan.similarity import Similarity
from gan.tiling import DEFAULT_TILE, TiledDecoder
from gan.zoo import LANCZOS_WEIGHTS, Weights, load_decoder
from rlsr_env.codec import BASE_CODECS, LRCodec
from rlsr_env.images import DECODE_ERRORS
from rlsr_env.patches import to_float

JPEG2000 = "jpeg2000"
WHOLE_CODECS = (*BASE_CODECS, JPEG2000)

# Settings of each codec, from small files to large ones; a step makes files of Kodak about 1.3 times as large. JPEG
# 2000's are bits per pixel, the others' qualities.
SETTINGS: dict[str, tuple[float, ...]] = {
    "jpeg": (1, 3, 4, 5, 7, 10, 14, 20, 29, 43, 63, 79, 87, 93, 97),
    "webp": (0, 1, 4, 9, 17, 29, 44, 60, 76, 86, 92, 96),
    "avif": (0, 10, 18, 26, 33, 40, 47, 54, 61, 68, 76, 85, 93),
    JPEG2000: (0.02, 0.027, 0.037, 0.05, 0.067, 0.09, 0.12, 0.16, 0.22, 0.3, 0.4, 0.55, 0.75, 1, 1.4, 1.9, 2.5),
}

Measured = dict[str, Any]


class UnusablePictureError(ValueError):
    """A picture that a codec cannot store."""


@dataclass(frozen=True)
class Restorer:
    """How the picture of a file becomes one of the original's size.

    Attributes:
        kind: `"whole"` (the file has that size already), `"lanczos"` or `"ours"`.
        weights: The decoder's.
        ensemble: Whether to average over eight flips and turns.
    """

    kind: str
    weights: Weights = LANCZOS_WEIGHTS
    ensemble: bool = False

    @property
    def key(self) -> str:
        """A name that changes with whatever changes the pictures, device and precision aside."""
        if self.kind != "ours":
            return self.kind
        return f"{self.weights.name}@{self.weights.sha256.hex()[:16]}" + ("+ensemble" if self.ensemble else "")


WHOLE = Restorer("whole")
LANCZOS_RESTORER = Restorer("lanczos")


@dataclass(frozen=True)
class FileSeries:
    """Files of one codec at one scale, for all its settings, and what restores them.

    Attributes:
        codec: One of `WHOLE_CODECS`.
        scale: By how much the picture is shrunk first; 1 for not at all.
        restorers: What the files are restored with.
    """

    codec: str
    scale: int = 1
    restorers: tuple[Restorer, ...] = (WHOLE,)

    @property
    def name(self) -> str:
        """The codec, and the scale where it is not 1, as in `"jpeg-x2"`."""
        return self.codec if self.scale == 1 else f"{self.codec}-x{self.scale}"

    @property
    def settings(self) -> tuple[float, ...]:
        """All settings, from small files to large ones."""
        return SETTINGS[self.codec]

    def encode(self, hr_image: np.ndarray, setting: float) -> bytes:
        """The whole file.

        Args:
            hr_image: `(H, W, 3)` uint8.
            setting: One of `settings`.

        Raises:
            UnusablePictureError: The codec cannot store the picture.
        """
        try:
            if self.codec == JPEG2000:
                return encode_jpeg2000(hr_image, setting)
            return LRCodec(self.scale, self.codec, int(setting)).encode(hr_image)
        except (*DECODE_ERRORS, MemoryError) as error:
            raise UnusablePictureError(f"{self.codec} cannot store it: {error}") from error

    def decode(self, file: bytes) -> np.ndarray:
        """The picture of a file, `(h, w, 3)` uint8."""
        if self.codec == JPEG2000:
            with Image.open(io.BytesIO(file), formats=["JPEG2000"]) as image:
                return np.array(image.convert("RGB"))
        return LRCodec(self.scale, self.codec).decode(file)


def encode_jpeg2000(hr_image: np.ndarray, rate: float) -> bytes:
    """A picture as a JPEG 2000 codestream: the 9/7 wavelet and its colour transform, one quality layer.

    Args:
        hr_image: `(H, W, 3)` uint8.
        rate: Bits per pixel that the file may have at most.

    Returns:
        The codestream (`.j2k`): a file without the boxes of a `.jp2`, which would add 85 bytes.
    """
    file = io.BytesIO()
    # OpenJPEG halves the picture for each resolution; a narrow one has fewer of them.
    n_resolutions = min(6, int(math.log2(min(hr_image.shape[:2]))) + 1)
    Image.fromarray(hr_image).save(
        file, "JPEG2000", quality_mode="rates", quality_layers=[24 / rate], irreversible=True, mct=1, no_jp2=True,
        num_resolutions=n_resolutions,
    )  # fmt: skip
    return file.getvalue()


def check_codec(codec: str) -> None:
    """Refuse a codec that is not there.

    Args:
        codec: One of `WHOLE_CODECS`.

    Raises:
        ValueError: This build of Pillow lacks it, or there is no such codec.
    """
    if codec not in WHOLE_CODECS:
        raise ValueError(f"unknown codec {codec!r}; known: {', '.join(WHOLE_CODECS)}")
    feature = "jpg_2000" if codec == JPEG2000 else BASE_CODECS[codec].pillow_feature
    if not features.check(feature):
        others = ", ".join(name for name in WHOLE_CODECS if name != codec)
        raise ValueError(
            f"this build of Pillow has no {codec}; install Pillow's own wheel, or leave {codec} out: name the others "
            f"({others})"
        )


@dataclass
class PictureJudge:
    """Measures points on one picture.

    Attributes:
        hr_image: The original, `(H, W, 3)` uint8.
        device: Where decoders run, and where the metrics are computed.
        precision: `"auto"`, `"fp32"` or `"bf16"`.
        tile: Side of the decoders' tiles, in LR pixels.
    """

    hr_image: np.ndarray
    device: torch.device
    precision: str = "auto"
    tile: int = DEFAULT_TILE
    _original: Tensor = field(init=False, repr=False)
    _similarity: Similarity = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compute what depends on the original alone."""
        self._original = self._as_float(self.hr_image)
        self._similarity = Similarity(self._original)

    def _as_float(self, image: np.ndarray) -> Tensor:
        """`(H, W, 3)` uint8 to `(3, H, W)` float32 in [0, 1]."""
        return to_float(torch.from_numpy(image).to(self.device).permute(2, 0, 1))

    def judge(self, sr_image: np.ndarray) -> Measured:
        """Judge a restoration.

        Args:
            sr_image: `(H, W, 3)` uint8, of the original's size.

        Returns:
            `squared_error` (the mean, of values in [0, 1]), `psnr` in dB (None where the restoration is exact),
            `ms_ssim` and `ssim` (None where the picture is too small).
        """
        restored = self._as_float(sr_image)
        squared_error = (restored - self._original).square().mean(dtype=torch.float64).item()
        ssim, ms_ssim = self._similarity(restored)
        psnr = -10 * math.log10(squared_error) if squared_error > 0 else None
        return {"squared_error": squared_error, "psnr": psnr, "ms_ssim": ms_ssim, "ssim": ssim}

    def restore(self, series: FileSeries, restorer: Restorer, lr_image: np.ndarray) -> np.ndarray:
        """What a viewer gets of a file's picture: `(H, W, 3)` uint8."""
        if restorer.kind == "whole":
            return lr_image
        decoder: TiledDecoder = load_decoder(
            restorer.weights, series.scale, self.device, self.precision, self.tile, restorer.ensemble
        )
        return decoder.restore(lr_image, (self.hr_image.shape[0], self.hr_image.shape[1]))

    def measure(self, series: FileSeries, setting: float, known: Measured | None = None) -> Measured:
        """Make a file, restore and judge it.

        Args:
            series: What file.
            setting: The codec's setting.
            known: What an earlier call returned; restorers in it are not run again.

        Returns:
            `bytes` of the whole file, and `restored`: for each restorer's key what `judge` says, and for decoders with
            weights `packed_bytes`, those of the project's own file.

        Raises:
            UnusablePictureError: The codec cannot store the picture.
        """
        restored = dict(known["restored"]) if known else {}
        missing = [restorer for restorer in series.restorers if restorer.key not in restored]
        if known and not missing:
            return known
        file = series.encode(self.hr_image, setting)
        lr_image = series.decode(file)
        n_packed: dict[str, int] = {}  # the self-ensemble has the same file
        for restorer in missing:
            entry = self.judge(self.restore(series, restorer, lr_image))
            weights = restorer.weights
            if restorer.kind == "ours":
                if weights.name not in n_packed:
                    size = self.hr_image.shape[:2]
                    n_packed[weights.name] = len(pack(file, size, series.scale, series.codec, weights))
                entry["packed_bytes"] = n_packed[weights.name]
            restored[restorer.key] = entry
        return {"bytes": len(file), "restored": restored}
