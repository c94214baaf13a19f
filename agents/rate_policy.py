"""Scale and quality for a picture in one look at it: the policy of `rlsr/RateControl-v0`, for `rlsr compress`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from rlsr_env.codec import BASE_CODECS
from rlsr_env.files import write_whole
from rlsr_env.rate_control import GREATEST_RATE_WEIGHT, LEAST_RATE_WEIGHT
from rlsr_env.rate_table import RateTable, Setting, checked_settings
from rlsr_env.rate_views import GREATEST_DETAIL, N_VIEW_CHANNELS, view_picture

PRETRAINED = Path(__file__).with_name("pretrained") / "rate_policy.safetensors"
# Levels of detail, as parts of the greatest code, above which cells are counted; and how softly.
THRESHOLDS = (0.15, 0.27, 0.39, 0.51, 0.63, 0.75)
SOFTNESS = 0.06
N_DETAILS = N_VIEW_CHANNELS - 3
N_FEATURES = (3 + len(THRESHOLDS)) * N_DETAILS
# Features are kept within this many deviations of the training pictures' mean: beyond, a line leads anywhere.
MOST_DEVIATIONS = 4.0


class Target(Protocol):
    """What a file shall be like; `gan.setting_search.Target` is one."""

    @property
    def kind(self) -> str:
        """`"bytes"`, `"bpp"` or `"psnr"`."""

    @property
    def value(self) -> float:
        """Bytes of the file, its bits for each pixel of the original, or dB."""


def picture_features(view: Tensor) -> Tensor:
    """What counts in a picture's view, as a few numbers.

    For each octave: the logarithm of the detail's mean square, which is what a scale loses; and, since the bits of a
    coefficient coder follow the number of coefficients that are not zero (He and Mitra 2001), the parts of the picture
    with more detail than some level, beside mean and deviation of the codes.

    Args:
        view: `(N, 11, 64, 64)` uint8, or floats with the same values; see `rlsr_env.rate_views`.

    Returns:
        `(N, 72)` float32.
    """
    details = view[:, 3:].float() / 255
    mean_square = torch.expm1(details * math.log1p(GREATEST_DETAIL)).square().mean(dim=(2, 3))
    above = [torch.sigmoid((details - level) / SOFTNESS).mean(dim=(2, 3)) for level in THRESHOLDS]
    spread = details.std(dim=(2, 3))
    return torch.cat([details.mean(dim=(2, 3)), spread, torch.log(mean_square + 0.01), *above], dim=1)


def decode_rate_weight(code: Tensor) -> Tensor:
    """The inverse of `rlsr_env.rate_control.rate_weight_code`."""
    span = math.log(GREATEST_RATE_WEIGHT / LEAST_RATE_WEIGHT)
    return LEAST_RATE_WEIGHT * torch.exp(code.float() / 255 * span)


class RateNetwork(nn.Module):
    """The value of each action, in its two parts: the quality of each setting, and what it costs.

    Whatever the weight of the rate, it is the same two curves of a picture that are weighed against each other: one
    network serves all rates, and can be asked for a number of bytes as well. The curves are linear in the features,
    since a few hundred pictures are what there is to learn from.
    """

    feature_mean: Tensor
    feature_deviation: Tensor
    curve_mean: Tensor
    curve_deviation: Tensor
    error_covariance: Tensor

    def __init__(self, n_settings: int, temperature: float = 0.1) -> None:
        """Build the network; at first, it expects the same of all pictures and settings.

        Args:
            n_settings: Settings to choose from.
            temperature: Of the softmax that is the policy, in units of quality.

        Raises:
            ValueError: For no settings, or a temperature that is not above 0.
        """
        super().__init__()
        if n_settings < 1 or not 0 < temperature < math.inf:
            raise ValueError(f"need 1 or more settings and a temperature above 0, got {n_settings} and {temperature}")
        self.n_settings, self.temperature = n_settings, temperature
        self.weight = nn.Parameter(torch.zeros(N_FEATURES, 2 * n_settings))
        # Of the training pictures; the curves are qualities, then logarithms of bits per pixel.
        self.register_buffer("feature_mean", torch.zeros(N_FEATURES))
        self.register_buffer("feature_deviation", torch.ones(N_FEATURES))
        self.register_buffer("curve_mean", torch.zeros(2 * n_settings))
        self.register_buffer("curve_deviation", torch.ones(2 * n_settings))
        # Of the curves' errors on pictures that were not trained on; see `agents.rate_search`.
        self.register_buffer("error_covariance", torch.zeros(2 * n_settings, 2 * n_settings))

    def normal_features(self, features: Tensor) -> Tensor:
        """Features `(N, 72)` in deviations from the training pictures' mean."""
        normal = (features - self.feature_mean) / self.feature_deviation
        return normal.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)

    def curves(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What is expected of each setting.

        Args:
            features: `(N, 72)`; see `picture_features`.

        Returns:
            Qualities and logarithms of bits per pixel, `(N, S)` each.
        """
        curves = self.curve_mean + self.curve_deviation * (self.normal_features(features) @ self.weight)
        quality, log_rate = curves.chunk(2, dim=1)
        return quality, log_rate

    def logits(self, features: Tensor, rate_weight: Tensor) -> Tensor:
        """The policy: what each setting is expected to earn, over the temperature.

        Args:
            features: `(N, 72)`.
            rate_weight: `(N,)`.

        Returns:
            `(N, S)`.
        """
        quality, log_rate = self.curves(features)
        return (quality - rate_weight[:, None] * log_rate.exp()) / self.temperature

    def forward(self, obs: Tensor) -> Tensor:
        """Logits `(N, S)` of observations `(N, 12, 64, 64)` uint8."""
        return self.logits(picture_features(obs[:, :-1]), decode_rate_weight(obs[:, -1, 0, 0]))


def bytes_at(log_rate: np.ndarray, n_pixels: np.ndarray) -> np.ndarray:
    """Whole bytes, 1 or more, of files.

    Args:
        log_rate: Logarithms of bits per pixel, `(P, S)` float64.
        n_pixels: Of each original, `(P,)`.

    Returns:
        `(P, S)` int64.
    """
    return (np.exp(log_rate) * n_pixels[:, None] / 8).round().clip(1).astype(np.int64)


class RatePolicy:
    """A trained policy and what it is for.

    ```python
    policy = RatePolicy.load()
    policy.settings(image, rate_weight=20.0)  # Setting(scale=2, quality=22): a bit per pixel costs 20 dB
    policy.propose(image, Target("bytes", 20_000))  # where a search for exactly 20 000 bytes should begin
    ```

    Attributes:
        network: The network.
        settings_list: What it chooses from.
        card: What a reader should know of it; `base_codec` and `metric` say what it is for.
    """

    def __init__(self, network: RateNetwork, settings: Sequence[Sequence[int]], card: dict[str, Any]) -> None:
        """Put together a policy.

        Args:
            network: The network.
            settings: Pairs of scale and quality, in the order of the network's logits.
            card: Its `base_codec` is needed; what else it says is for readers.

        Raises:
            ValueError: For settings that the base codec does not have, or another number of them than the network's.
        """
        self.settings_list = checked_settings(settings, card["base_codec"])
        if len(self.settings_list) != network.n_settings:
            raise ValueError(
                f"the network chooses from {network.n_settings} settings, there are {len(self.settings_list)}"
            )
        self.network, self.card = network.eval(), card

    @classmethod
    def load(cls, path: str | os.PathLike[str] = PRETRAINED) -> RatePolicy:
        """Read a policy.

        Args:
            path: The `.safetensors` file, its `.json` card beside it; by default the policy of the package.

        Raises:
            FileNotFoundError: Where one of them is missing.
            ValueError: Where they are damaged or do not belong together.
        """
        path = Path(path)
        card_path = path.with_suffix(".json")
        for needed in (path, card_path):
            if not needed.is_file():
                raise FileNotFoundError(f"{needed} does not exist; a policy is a .safetensors file and its .json card")
        content = path.read_bytes()
        try:
            card = json.loads(card_path.read_text())
            settings, digest = card["settings"], card["sha256"]
            network = RateNetwork(len(settings), card["temperature"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{card_path} is no card of a rate policy ({error!r})") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{path} is damaged, or {card_path} is the card of another file: the sha256 differs")
        try:
            network.load_state_dict(load(content))
        except RuntimeError as error:
            raise ValueError(f"{path} is no policy of this version ({error}); train it anew") from error
        return cls(network, settings, card)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to a `.safetensors` file and a `.json` card beside it."""
        path = Path(path)
        content = save({name: tensor.contiguous() for name, tensor in self.network.state_dict().items()})
        card = {
            **self.card,
            "settings": [list(setting) for setting in self.settings_list],
            "temperature": self.network.temperature,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        text = json.dumps(card, indent=2) + "\n"
        write_whole(path, lambda file: file.write(content))
        write_whole(path.with_suffix(".json"), lambda file: file.write(text.encode()))

    @torch.no_grad()
    def predict(self, uris: Sequence[str], images: Sequence[np.ndarray], views: Tensor | None = None) -> RateTable:
        """What is expected of pictures at each setting: one forward pass, and no file.

        Args:
            uris: Names of the pictures.
            images: The originals, `(H, W, 3)` uint8 each.
            views: Their views, `(P, 11, 64, 64)` uint8, where they are known.

        Returns:
            A table like that of real files, of expected bytes and qualities.
        """
        if views is None:
            views = torch.from_numpy(np.stack([view_picture(image) for image in images]))
        quality, log_rate = self.network.curves(picture_features(views))
        n_pixels = np.array([image.shape[0] * image.shape[1] for image in images], dtype=np.int64)
        n_bytes = bytes_at(log_rate.double().numpy(), n_pixels)
        return RateTable(tuple(uris), n_pixels, self.settings_list, n_bytes, quality.double().numpy())

    def settings(self, image: np.ndarray, rate_weight: float, scales: Sequence[int] = (1, 2, 3, 4)) -> Setting:
        """The setting that the policy takes at a weight of the rate.

        Args:
            image: The original, `(H, W, 3)` uint8.
            rate_weight: What a bit per pixel costs, in units of the quality: 20 (dB) is about 0.15 bpp on photographs.
            scales: The scales to choose from.

        Raises:
            ValueError: For a weight that is negative or not finite, or scales that the policy does not know.
        """
        if not 0 <= rate_weight < math.inf:
            raise ValueError(f"rate_weight must be finite and not negative, got {rate_weight}")
        rewards = self.predict(("picture",), (image,)).rewards(rate_weight)[0]
        return self.settings_list[int(np.where(self._among(scales), rewards, -np.inf).argmax())]

    def propose(self, image: np.ndarray, target: Target, scales: Sequence[int] = (1, 2, 3, 4)) -> Setting:
        """Where a search for a target should begin: the scale to stay with, and a quality near the right one.

        At each scale, the expected quality is interpolated at the rate that is asked for, or the rate at the quality;
        the best scale wins. Fits the `propose` of `gan.setting_search.choose_setting`.

        Args:
            image: The original, `(H, W, 3)` uint8.
            target: Of kind `"bytes"`, `"bpp"` or `"psnr"`.
            scales: The scales to choose from.

        Raises:
            ValueError: For a target of another kind or out of range, or scales that the policy does not know.
        """
        if target.kind not in ("bytes", "bpp", "psnr") or not 0 < target.value < math.inf:
            raise ValueError(f"the policy proposes settings for bytes, bpp or psnr above 0, got {target!r}")
        expected = self.predict(("picture",), (image,))
        quality, rate = expected.values[0], expected.bits_per_pixel[0]
        n_pixels = image.shape[0] * image.shape[1]
        rate_wanted = 8 * target.value / n_pixels if target.kind == "bytes" else target.value
        qualities_there = BASE_CODECS[self.card["base_codec"]].qualities
        known = self._among(scales)
        best, best_score = self.settings_list[int(np.flatnonzero(known)[0])], -math.inf
        for scale in sorted({setting.scale for setting, there in zip(self.settings_list, known, strict=True) if there}):
            rows = [row for row, setting in enumerate(self.settings_list) if setting.scale == scale]
            steps = np.array([self.settings_list[row].quality for row in rows], dtype=np.float64)
            order = np.argsort(steps)
            steps, qualities, log_rates = steps[order], quality[rows][order], np.log(rate[rows][order])
            # Both rise with the codec's quality; where a prediction does not, it is made to.
            qualities, log_rates = np.maximum.accumulate(qualities), np.maximum.accumulate(log_rates)
            if target.kind == "psnr":
                score = -_extended(target.value, qualities, log_rates)
                step = _extended(target.value, qualities, steps)
            else:
                # No better than at the last setting, which is where the scale stopped being worth having.
                score = _extended(min(math.log(rate_wanted), log_rates[-1]), log_rates, qualities)
                step = _extended(math.log(rate_wanted), log_rates, steps)
            if score > best_score:
                nearest = round(min(max(step, qualities_there[0]), qualities_there[-1]))
                best, best_score = Setting(scale, nearest), score
        return best

    def _among(self, scales: Sequence[int]) -> np.ndarray:
        """Which settings have one of the scales, `(S,)` bool."""
        among = np.array([setting.scale in scales for setting in self.settings_list])
        if not among.any():
            known = sorted({setting.scale for setting in self.settings_list})
            raise ValueError(f"the policy knows the scales {known}, none of {list(scales)}")
        return among


def _extended(x: float, xs: np.ndarray, ys: np.ndarray) -> float:
    """Linear interpolation, and beyond the ends a straight line of the last two points' slope."""
    if xs[0] <= x <= xs[-1] or len(xs) == 1:
        return float(np.interp(x, xs, ys))
    near, far = (0, 1) if x < xs[0] else (-1, -2)
    step = xs[near] - xs[far]
    return float(ys[near] + (x - xs[near]) * (ys[near] - ys[far]) / step) if step else float(ys[near])
