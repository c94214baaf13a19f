"""Scale and quality for one picture, so that its file meets a target: by trying, on real files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gan.evaluation import as_batch
from gan.file_format import Content, pack, read_content, restore
from gan.picture_files import Metadata
from gan.tiling import DEFAULT_TILE
from gan.zoo import SCALES, choose_weights
from rlsr_env.codec import BASE_CODECS, LRCodec
from rlsr_env.metrics import METRICS
from rlsr_env.rate_table import Setting

# Which metric says at equal bytes which scale is the better one, for each purpose of weights.
JUDGES = {"psnr": "psnr", "ms_ssim": "ms_ssim", "perceptual": "ms_ssim"}
# MS-SSIM takes some hundred bytes for each pixel: it is left out for larger pictures.
MAX_JUDGED_PIXELS = 1 << 24


class UnmetTargetError(ValueError):
    """No setting meets the target; the text says what the nearest is."""


@dataclass(frozen=True)
class Target:
    """What a file shall be like.

    Attributes:
        kind: `"bytes"` or `"bpp"`: the file is no larger, and as good as can be; `"psnr"`: the restored picture is no
            worse, and the file as small as can be; `"quality"`: the base codec's quality is this.
        value: Bytes of the whole file; its bits for each pixel of the original; dB; or the quality.

    Raises:
        ValueError: The kind is unknown or the value out of range.
    """

    kind: Literal["bytes", "bpp", "psnr", "quality"]
    value: float

    def __post_init__(self) -> None:
        """Check kind and value."""
        if self.kind not in ("bytes", "bpp", "psnr", "quality"):
            raise ValueError(f"unknown target {self.kind!r}; known: bytes, bpp, psnr, quality")
        least = 0 if self.kind == "quality" else np.nextafter(0, 1)
        if not least <= self.value < float("inf"):
            raise ValueError(f"a target of {self.kind} is a number above 0, got {self.value}")

    def byte_limit(self, n_pixels: int) -> float:
        """The most bytes that a file may have for a picture of that many pixels."""
        return self.value if self.kind == "bytes" else self.value * n_pixels / 8


Propose = Callable[[np.ndarray, Target], Setting]


@dataclass(frozen=True)
class Decoding:
    """How pictures are restored; the arguments of `gan.file_format.decompress`."""

    device: str = "auto"
    precision: str = "auto"
    tile: int = DEFAULT_TILE
    self_ensemble: bool = False


@dataclass
class Trials:
    """Files of one picture at any setting; each of them is made and restored once.

    Attributes:
        image: The original, `(H, W, 3)` uint8.
        base: The base codec.
        purpose: What the weights shall be good at; see `gan.zoo.choose_weights`.
        abbreviated: As for `gan.file_format.compress`.
        metadata: As for `gan.file_format.compress`.
        decoding: How to restore.
        n_encodes: How many files were made.
        n_restores: How many were restored.
    """

    image: np.ndarray
    base: str = "jpeg"
    purpose: str = "psnr"
    abbreviated: bool = True
    metadata: Metadata = field(default_factory=Metadata)
    decoding: Decoding = field(default_factory=Decoding)
    n_encodes: int = field(init=False, default=0)
    n_restores: int = field(init=False, default=0)
    _lr_images: dict[int, np.ndarray] = field(init=False, repr=False, default_factory=dict)
    _files: dict[Setting, bytes] = field(init=False, repr=False, default_factory=dict)
    _values: dict[tuple[Setting, str], float] = field(init=False, repr=False, default_factory=dict)
    _restored: tuple[Setting, np.ndarray] | None = field(init=False, repr=False, default=None)

    def file(self, setting: Setting) -> bytes:
        """The file at a setting."""
        if setting not in self._files:
            codec = LRCodec(setting.scale, self.base, setting.quality)
            if codec.scale not in self._lr_images:
                self._lr_images[codec.scale] = codec.downsample(self.image)
            lr_stream = codec.compress(self._lr_images[codec.scale])
            weights = choose_weights(codec.scale, self.base, self.purpose)
            self._files[setting] = pack(
                lr_stream, self.image.shape[:2], codec.scale, self.base, weights, self.abbreviated, self.metadata
            )
            self.n_encodes += 1
        return self._files[setting]

    def restored(self, setting: Setting) -> np.ndarray:
        """The picture that the file at a setting is restored to, `(H, W, 3)` uint8. Only the last one is kept."""
        if self._restored is None or self._restored[0] != setting:
            self._restored = None  # two large pictures need not be there at once
            content: Content = read_content(self.file(setting))
            how = self.decoding
            n_pixels = self.image.shape[0] * self.image.shape[1]
            sr_image = restore(content, None, how.device, how.precision, how.tile, how.self_ensemble, n_pixels)
            self._restored = (setting, sr_image)
            self.n_restores += 1
        return self._restored[1]

    def value(self, setting: Setting, metric: str) -> float | None:
        """`"psnr"` or `"ms_ssim"` of the restored picture; None where it is too small or too large for MS-SSIM."""
        if (setting, metric) not in self._values:
            height, width = self.image.shape[:2]
            if metric == "psnr":
                self._values[setting, metric] = picture_psnr(self.restored(setting), self.image)
            elif min(height, width) < METRICS[metric].min_size or height * width > MAX_JUDGED_PIXELS:
                return None
            else:
                pictures = as_batch(self.restored(setting)), as_batch(self.image)
                self._values[setting, metric] = METRICS[metric](*pictures).item()
        return self._values[setting, metric]


def choose_setting(
    image: np.ndarray,
    target: Target,
    *,
    scales: Sequence[int] = SCALES,
    trials: Trials | None = None,
    propose: Propose | None = None,
) -> Setting:
    """The setting that meets a target best.

    At each scale the quality is found by bisection on real files (bytes and PSNR rise with the quality, but for small
    ripples; what is returned has been tried and meets the target). Among the scales, the best restored picture wins
    for a target of bytes or bpp, by the metric of the weights' purpose; the smallest file for a target of PSNR.

    Args:
        image: The original, `(H, W, 3)` uint8.
        target: What the file shall be like. With a target of quality there is nothing to choose but the scale, and the
            first of `scales` is taken.
        scales: The scales to choose from.
        trials: Where files of `image` are made; those made here can be taken from there afterwards.
        propose: A quick guess, as of a trained agent. Then only its scale is searched, from its quality on; all scales
            where that cannot meet the target.

    Returns:
        The setting.

    Raises:
        UnmetTargetError: There is none; says what the nearest is.
        ValueError: A scale or the quality is out of range.
    """
    trials = trials or Trials(image)
    qualities = BASE_CODECS[trials.base].qualities
    if target.kind == "quality":
        if target.value not in qualities:
            raise ValueError(f"quality of {trials.base} is {qualities[0]} to {qualities[-1]}; got {target.value:g}")
        return Setting(scales[0], int(target.value))
    found: list[Setting] = []
    if propose is not None:
        proposed = propose(image, target)
        if proposed.scale in scales:
            found = _search(trials, target, proposed.scale, qualities, proposed.quality)
    if not found:
        found = [setting for scale in scales for setting in _search(trials, target, scale, qualities)]
    if not found:
        raise UnmetTargetError(_nearest(trials, target, scales, qualities))
    if len(found) == 1:
        return found[0]
    if target.kind == "psnr":
        return min(found, key=lambda setting: len(trials.file(setting)))
    judge = JUDGES[trials.purpose]
    values = [trials.value(setting, judge) for setting in found]
    if None in values:  # the picture is too small or too large for it
        values = [trials.value(setting, "psnr") for setting in found]
    return max(zip(found, values, strict=True), key=lambda pair: pair[1] or 0.0)[0]


def picture_psnr(sr_image: np.ndarray, hr_image: np.ndarray) -> float:
    """PSNR of 8-bit pictures in dB, as `rlsr_env.peak_signal.psnr`, in little memory (Savioli 2019, eq. 6).

    Args:
        sr_image: `(H, W, 3)` uint8.
        hr_image: The same shape.

    Returns:
        dB; infinite for equal pictures.
    """
    total = 0
    for top in range(0, len(hr_image), 256):
        difference = sr_image[top : top + 256].astype(np.int32) - hr_image[top : top + 256]
        total += int((difference * difference).sum(dtype=np.int64))
    return float("inf") if total == 0 else float(10 * np.log10(255**2 * hr_image.size / total))


def _search(trials: Trials, target: Target, scale: int, qualities: range, guess: int | None = None) -> list[Setting]:
    """The best setting of a scale that meets the target; empty where there is none."""
    if target.kind == "psnr":
        candidates = [Setting(scale, quality) for quality in reversed(qualities)]

        def meets(setting: Setting) -> bool:
            return (trials.value(setting, "psnr") or 0.0) >= target.value
    else:
        limit = target.byte_limit(trials.image.shape[0] * trials.image.shape[1])
        candidates = [Setting(scale, quality) for quality in qualities]

        def meets(setting: Setting) -> bool:
            return len(trials.file(setting)) <= limit

    start = None if guess is None else candidates.index(Setting(scale, min(max(guess, qualities[0]), qualities[-1])))
    last = last_that_holds(lambda place: meets(candidates[place]), len(candidates), start)
    return [] if last is None else [candidates[last]]


def last_that_holds(holds: Callable[[int], bool], n: int, guess: int | None = None) -> int | None:
    """The last of the numbers 0 to n - 1 for which something holds that, once it does not, does not again.

    Args:
        holds: Asked at most about twice log2(n) times; what is returned is a number that it was true for.
        n: How many numbers.
        guess: Where to begin; the nearer the answer is, the sooner it is found.

    Returns:
        The number; None where it does not hold for 0.
    """
    if guess is None:
        if not holds(0):
            return None
        low, high = 0, n
    else:
        step, up = 1, holds(guess)
        low, high = (guess, guess + 1) if up else (guess - 1, guess)
        while up and high < n and holds(high):
            low, high, step = high, min(n, high + 2 * step), 2 * step
        while not up and low >= 0 and not holds(low):
            if low == 0:
                return None
            low, high, step = max(0, low - 2 * step), low, 2 * step
        if low < 0:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _nearest(trials: Trials, target: Target, scales: Sequence[int], qualities: range) -> str:
    """What an unmet target is told."""
    if target.kind == "psnr":
        best = max((trials.value(Setting(scale, qualities[-1]), "psnr") or 0.0, scale) for scale in scales)
        return (
            f"no file reaches {target.value:g} dB: the nearest is {best[0]:.2f} dB, with scale {best[1]} and quality "
            f"{qualities[-1]}"
        )
    n_pixels = trials.image.shape[0] * trials.image.shape[1]
    least, scale = min((len(trials.file(Setting(scale, qualities[0]))), scale) for scale in scales)
    wanted = f"{target.value:g} bytes" if target.kind == "bytes" else f"{target.value:g} bits per pixel"
    return (
        f"no file has {wanted} or less: the nearest has {least} bytes ({8 * least / n_pixels:.4f} bits per pixel), "
        f"with scale {scale} and quality {qualities[0]}"
    )
