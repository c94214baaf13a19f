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

from rlsr_env.files import write_whole
from rlsr_env.rate_control import GREATEST_RATE_WEIGHT, LEAST_RATE_WEIGHT
from rlsr_env.rate_table import Setting, checked_settings
from rlsr_env.rate_views import N_VIEW_CHANNELS, view_picture

PRETRAINED = Path(__file__).with_name("pretrained") / "rate_policy.safetensors"
# Levels of detail, as parts of the greatest code, above which cells are counted; and how softly.
THRESHOLDS = (0.15, 0.27, 0.39, 0.51, 0.63, 0.75)
SOFTNESS = 0.06
N_FEATURES = 2 * N_VIEW_CHANNELS + len(THRESHOLDS) * (N_VIEW_CHANNELS - 3)


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

    The bits of a coefficient coder follow the number of coefficients that are not zero (He and Mitra 2001), so besides
    means and deviations there are, for each octave, the parts of the picture with more detail than some level.

    Args:
        view: `(N, 11, 64, 64)` uint8, or floats with the same values; see `rlsr_env.rate_views`.

    Returns:
        `(N, 70)` float32.
    """
    cells = view.float() / 255
    details = cells[:, 3:]
    above = [torch.sigmoid((details - level) / SOFTNESS).mean(dim=(2, 3)) for level in THRESHOLDS]
    return torch.cat([cells.mean(dim=(2, 3)), cells.std(dim=(2, 3)), *above], dim=1)


def decode_rate_weight(code: Tensor) -> Tensor:
    """The inverse of `rlsr_env.rate_control.rate_weight_code`."""
    span = math.log(GREATEST_RATE_WEIGHT / LEAST_RATE_WEIGHT)
    return LEAST_RATE_WEIGHT * torch.exp(code.float() / 255 * span)


class RateNetwork(nn.Module):
    """Predicts quality and rate of a picture at each setting; the policy is a softmax of what they are worth.

    Whatever the weight of the rate, it is the same two curves for each picture that are weighed against each other, so
    one network serves all rates, and the policy can be asked for a number of bytes as well.
    """

    feature_mean: Tensor
    feature_deviation: Tensor
    quality_mean: Tensor
    quality_deviation: Tensor
    log_rate_mean: Tensor
    log_rate_deviation: Tensor

    def __init__(self, n_settings: int, hidden: int = 64, temperature: float = 0.1) -> None:
        """Build the layers; at first, all pictures are alike.

        Args:
            n_settings: Settings to choose from.
            hidden: Width of the hidden layer.
            temperature: Of the softmax, in units of quality.
        """
        super().__init__()
        self.temperature = temperature
        self.n_settings, self.n_hidden = n_settings, hidden
        self.linear = nn.Linear(N_FEATURES, 2 * n_settings)
        last = nn.Linear(hidden, 2 * n_settings)
        self.hidden = nn.Sequential(nn.Linear(N_FEATURES, hidden), nn.SiLU(), last)
        for layer in (self.linear, last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # Of the training pictures: means and deviations of the features, of the qualities and of the rates' logarithms.
        for name, size in (("feature", N_FEATURES), ("quality", n_settings), ("log_rate", n_settings)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_deviation", torch.ones(size))

    def normalise(self, features: Tensor, qualities: Tensor, rates: Tensor) -> None:
        """Take means and deviations from training pictures.

        Args:
            features: `(P, 70)`.
            qualities: `(P, S)`.
            rates: Bits per pixel, `(P, S)`.
        """
        for name, values in (("feature", features), ("quality", qualities), ("log_rate", rates.log())):
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_deviation").copy_(values.std(dim=0).nan_to_num() + 1e-3)

    def curves(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What is expected of each setting.

        Args:
            features: `(N, 70)`; see `picture_features`.

        Returns:
            Qualities and logarithms of bits per pixel, `(N, S)` each.
        """
        normal = ((features - self.feature_mean) / self.feature_deviation).clamp(-4, 4)
        quality, log_rate = (self.linear(normal) + self.hidden(normal)).chunk(2, dim=1)
        return (
            self.quality_mean + self.quality_deviation * quality,
            self.log_rate_mean + self.log_rate_deviation * log_rate,
        )

    def logits(self, features: Tensor, rate_weight: Tensor) -> Tensor:
        """The policy: what each setting is expected to earn, over the temperature.

        Args:
            features: `(N, 70)`.
            rate_weight: `(N,)`.

        Returns:
            `(N, S)`.
        """
        quality, log_rate = self.curves(features)
        return (quality - rate_weight[:, None] * log_rate.exp()) / self.temperature

    def forward(self, obs: Tensor) -> Tensor:
        """Logits `(N, S)` of observations `(N, 12, 64, 64)` uint8."""
        return self.logits(picture_features(obs[:, :-1]), decode_rate_weight(obs[:, -1, 0, 0]))


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
            settings, hidden = card["settings"], card["hidden"]
            digest = card["sha256"]
            network = RateNetwork(len(settings), hidden, card["temperature"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{card_path} is no card of a rate policy ({error!r})") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{path} is damaged, or {card_path} is the card of another file: the sha256 differs")
        network.load_state_dict(load(content))
        return cls(network, settings, card)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to a `.safetensors` file and a `.json` card beside it."""
        path = Path(path)
        content = save({name: tensor.contiguous() for name, tensor in self.network.state_dict().items()})
        card = {
            **self.card,
            "settings": [list(setting) for setting in self.settings_list],
            "hidden": self.network.n_hidden,
            "temperature": self.network.temperature,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        text = json.dumps(card, indent=2) + "\n"
        write_whole(path, lambda file: file.write(content))
        write_whole(path.with_suffix(".json"), lambda file: file.write(text.encode()))

    @torch.no_grad()
    def curves(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is expected of a picture at each setting: one forward pass, and no file.

        Args:
            image: The original, `(H, W, 3)` uint8.

        Returns:
            Qualities and bits per pixel, `(S,)` each.
        """
        features = picture_features(torch.from_numpy(view_picture(image))[None])
        quality, log_rate = self.network.curves(features)
        return quality[0].double().numpy(), log_rate[0].exp().double().numpy()

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
        quality, rate = self.curves(image)
        return self.settings_list[int(np.where(self._among(scales), quality - rate_weight * rate, -np.inf).argmax())]

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
        quality, rate = self.curves(image)
        n_pixels = image.shape[0] * image.shape[1]
        rate_wanted = 8 * target.value / n_pixels if target.kind == "bytes" else target.value
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
                score = _extended(math.log(rate_wanted), log_rates, qualities)
                step = _extended(math.log(rate_wanted), log_rates, steps)
            if score > best_score:
                best, best_score = Setting(scale, round(min(max(step, 1), 100))), score
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
