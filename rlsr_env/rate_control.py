"""Choose how a picture is stored: N pictures at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from PIL import Image

from rlsr_env.captions import add_caption
from rlsr_env.episodes import Episodes, check_state, checked_options, final_infos, masked, picture_numbers
from rlsr_env.images import ImageSet, decode_images, image_set
from rlsr_env.metrics import Metric
from rlsr_env.rate_source import Decoder, FileBytes, RateSource, stream_bytes
from rlsr_env.rate_table import DEFAULT_SETTINGS, RateTable
from rlsr_env.rate_views import N_VIEW_CHANNELS, VIEW_SIZE

# The weights of the rate that the last channel of an observation can tell apart, on a logarithmic scale.
LEAST_RATE_WEIGHT, GREATEST_RATE_WEIGHT = 0.1, 10_000.0
PANEL = 256


def rate_weight_code(rate_weight: float) -> int:
    """A weight of the rate as a byte: 0 for 0.1, 255 for 10 000, steps of 4.6 %.

    Args:
        rate_weight: From 0.1 to 10 000; beyond, it counts as the nearer end.
    """
    span = math.log(GREATEST_RATE_WEIGHT / LEAST_RATE_WEIGHT)
    position = math.log(max(rate_weight, 1e-300) / LEAST_RATE_WEIGHT) / span
    return round(255 * min(max(position, 0.0), 1.0))


def observation_of(view: np.ndarray, rate_weight: float) -> np.ndarray:
    """What an agent sees.

    Args:
        view: `(11, 64, 64)` uint8; see `rlsr_env.rate_views`.
        rate_weight: What a bit per pixel costs.

    Returns:
        `(12, 64, 64)` uint8, the weight in the last channel.
    """
    weight = np.full((1, *view.shape[1:]), rate_weight_code(rate_weight), dtype=np.uint8)
    return np.concatenate([view, weight])


class RateControlVectorEnv(VectorEnv):
    """N pictures to be stored; see `RateControlEnv` for what each of them is.

    Equal to N scalar environments whose seeds count up from the first, as in Gymnasium's `SyncVectorEnv`.

    Attributes:
        source: The pictures, and all that is known about them.
        rate_weights: What a bit per pixel costs in each environment, `(N,)` float64.
        episodes: Which are running, and their random numbers.
    """

    episode_length: ClassVar[int] = 1
    reward_name: ClassVar[str] = "rate_distortion"

    def __init__(
        self,
        num_envs: int = 1,
        *,
        images: str | ImageSet = "sample:train",
        settings: Sequence[Sequence[int]] | None = None,
        base_codec: str = "jpeg",
        metric: str | Metric = "psnr",
        decibels: bool = False,
        rate_weight: float | Sequence[float] = (5.0, 320.0),
        decoder: Mapping[int, Decoder] | None = None,
        file_bytes: FileBytes | None = None,
        table: RateTable | None = None,
        source: RateSource | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        """Build the environments; no picture is encoded before an action asks for it.

        Args:
            num_envs: How many.
            images: The image set: `"sample"`, `"sample:train"`, `"folder:PATH"`, or an object.
            settings: What can be chosen, pairs of scale and quality; an action is the number of one of them. Where none
                are given, `rlsr_env.rate_table.DEFAULT_SETTINGS`, which are made for JPEG.
            base_codec: `"jpeg"`, `"webp"` or `"avif"`.
            metric: Name or object of the judge of the quality.
            decibels: Turn the values of a metric that is best at 1, as `ms_ssim` is, into decibels.
            rate_weight: What a bit per pixel costs, in units of the quality; of a pair (least, greatest), each episode
                draws its own, evenly on a logarithmic scale.
            decoder: For each scale, a function from LR to SR pictures; Lanczos upsampling where there is none.
            file_bytes: Counts a file's bytes from its LR stream, the original's (height, width) and the scale; where
                none is given, the file is the stream.
            table: Results that are known already, of all pictures and settings.
            source: Pictures that exist already, in the place of all of the above but `rate_weight`.
            autoreset_mode: `SAME_STEP` or `DISABLED` (with `reset(options={"reset_mask": ...})`).
            render_mode: None or `"rgb_array"`.

        Raises:
            TypeError: For a number of environments that is no integer, or what `RateSource` refuses.
            ValueError: For a setting that is unknown or out of range, or a metric that needs larger pictures.
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer):
            raise TypeError(f"num_envs must be an integer, got {num_envs!r}")
        if num_envs < 1:
            raise ValueError(f"num_envs must be 1 or more, got {num_envs}")
        self.episodes = Episodes(int(num_envs), autoreset_mode)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 2, "autoreset_mode": self.episodes.mode}
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"unknown render_mode {render_mode!r}; known: None, {self.metadata['render_modes']}")
        self.render_mode = render_mode
        self.rate_weight_range = _checked_range(rate_weight)
        if source is not None and not isinstance(source, RateSource):
            raise TypeError(f"source must be a RateSource, got {source!r}; images takes names")
        if table is not None and not isinstance(table, RateTable):
            raise TypeError(f"table must be a RateTable, got {type(table).__name__}")
        if decoder is not None and not isinstance(decoder, Mapping):
            raise TypeError(f"decoder maps scales to functions from LR to SR pictures, got {decoder!r}")
        if source is None:
            source = RateSource(
                decode_images(image_set(images)),
                DEFAULT_SETTINGS if settings is None else settings,
                base_codec,
                metric,
                decibels,
                decoder,
                stream_bytes if file_bytes is None else file_bytes,
                table,
            )
        self.source = source
        self.num_envs = int(num_envs)
        self.single_observation_space = Box(0, 255, (N_VIEW_CHANNELS + 1, VIEW_SIZE, VIEW_SIZE), np.uint8)
        self.single_action_space = Discrete(len(source.settings))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        self._pictures = np.zeros(self.num_envs, dtype=np.int64)
        self.rate_weights = np.full(self.num_envs, self.rate_weight_range[0])
        self._chosen = np.full(self.num_envs, -1, dtype=np.int64)  # -1 before the step

    @property
    def metric(self) -> Metric:
        """The judge of the quality."""
        return self.source.metric

    @property
    def pictures(self) -> np.ndarray:
        """The number of each environment's picture, `(N,)` int64."""
        return self._pictures.copy()

    def uris(self) -> list[str]:
        """The picture of each environment."""
        return [self.source.uris[picture] for picture in self._pictures]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, each with a new picture and weight of the rate.

        Args:
            seed: Of all random choices; environment i gets `seed + i`, or its own from a sequence.
            options: `{"reset_mask": (num_envs,) bool}` resets only the marked environments; `{"uri": ...}` takes that
                picture, one for all environments or a sequence with one for each; `{"rate_weight": ...}` likewise takes
                that weight.

        Returns:
            Observations `(N, 12, 64, 64)` uint8, and `info` with `rate_weight`.

        Raises:
            TypeError: For a reset mask that is no array of bool.
            ValueError: For a seed sequence or mask of the wrong length, a mask that marks none, a picture that the
                image set lacks, a weight that is negative or not finite, or another option.
        """
        options = checked_options(options)
        pictures = picture_numbers(options.get("uri"), self.source.uris, self.num_envs)
        weights = self._checked_weights(options.get("rate_weight"))
        # Last: where something is wrong, no seed is used up.
        mask = self.episodes.reset(seed, options, ["uri", "rate_weight"])
        self._start(mask, pictures, weights)
        return self._observed(), masked({"rate_weight": self.rate_weights}, mask)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Store every environment's picture; each episode ends.

        Args:
            actions: `(N,)` integers, the numbers of settings.

        Returns:
            Observations, rewards `(N,)` float64, terminated (all True) and truncated (all False) `(N,)` bool, and
            `info`: the metric, `bits_per_pixel`, `n_bytes`, `scale`, `quality` and `rate_weight`. In mode SAME_STEP,
            observations and `info` are the next episodes', and the last ones' are in `info["final_obs"]` and
            `info["final_info"]`.

        Raises:
            TypeError: For actions that are no integers.
            ValueError: For actions of the wrong shape or without a setting, or where a metric or decoder fails.
            ResetNeeded: For an environment whose episode is over and was not reset.
        """
        chosen = self._checked_actions(actions)
        self.episodes.require_running()
        rewards, results = self._judge(chosen)
        self._chosen = chosen
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        results["rate_weight"] = self.rate_weights.copy()
        self.episodes.end(everyone)
        if self.episodes.mode is AutoresetMode.SAME_STEP:
            infos = final_infos(self._observed(), results, everyone)
            self._start(everyone)
            infos |= masked({"rate_weight": self.rate_weights}, everyone)
        else:
            infos = masked(results, everyone)
        return self._observed(), rewards, everyone.copy(), np.zeros_like(everyone), infos

    def outcomes(self) -> tuple[np.ndarray, np.ndarray]:
        """What every setting would come to on the current pictures, without acting.

        An agent that learns from it follows the exact gradient of its expected reward, `quality - rate_weight * rate`,
        where one that steps estimates it from samples; an oracle takes the best.

        Returns:
            Qualities and bits per pixel, `(N, S)` float64 each.

        Raises:
            ValueError: Where a metric or decoder fails.
            ResetNeeded: For an environment whose episode is over and was not reset.
        """
        self.episodes.require_running()
        results = [self.source.measure_all(picture) for picture in self._pictures.tolist()]
        n_pixels = np.array([self.source.n_pixels(picture) for picture in self._pictures.tolist()])
        n_bytes = np.stack([sizes for sizes, _ in results])
        return np.stack([values for _, values in results]), 8 * n_bytes / n_pixels[:, None]

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame per environment, `(256 + 14, 512, 3)` uint8: the original, the restored picture, and a caption.

        Before the step, the right half is grey. Pictures are fitted into 256 x 256 pixels.
        """
        if self.render_mode is None:
            return None
        return tuple(self._frame(i) for i in range(self.num_envs))

    def _frame(self, i: int) -> np.ndarray:
        """The frame of one environment."""
        picture, chosen = int(self._pictures[i]), int(self._chosen[i])
        panels = [_panel(self.source.images[picture]), np.full((PANEL, PANEL, 3), 128, dtype=np.uint8)]
        caption = f"rate_weight {self.rate_weights[i]:.1f}"
        if chosen >= 0:
            setting = self.source.settings[chosen]
            _, sr_image = self.source.restore(picture, setting)
            panels[1] = _panel((sr_image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
            n_bytes, value = self.source.measure(picture, chosen)
            rate = 8 * n_bytes / self.source.n_pixels(picture)
            caption += (
                f": scale {setting.scale}, quality {setting.quality}: {rate:.3f} bpp, {self.metric.name} {value:.3f}"
            )
        return add_caption(np.concatenate(panels, axis=1), caption)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from step to step, as plain numbers: from here, a copy goes on exactly."""
        return {
            "pictures": self._pictures.tolist(),
            "rate_weights": self.rate_weights.tolist(),
            **self.episodes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict` of an environment with the same settings.

        Raises:
            ValueError: Where the number of environments differs, something is missing, or there is no such picture.
        """
        check_state(state, ("pictures", "rate_weights", "finished", "rngs"), self.num_envs)
        pictures = np.array(state["pictures"], dtype=np.int64)
        for picture in (pictures.min(), pictures.max()):
            if not 0 <= picture < len(self.source.uris):
                raise ValueError(f"the state has picture {picture}, the image set has {len(self.source.uris)}")
        self._pictures = pictures
        self.rate_weights = np.array(state["rate_weights"], dtype=np.float64)
        self.episodes.load_state_dict(state)

    def _start(
        self,
        mask: np.ndarray,
        pictures: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Give the marked environments a new picture and a new weight of the rate."""
        low, high = np.log(self.rate_weight_range) if self.rate_weight_range[0] > 0 else (0.0, 0.0)
        for i, rng in self.episodes.begin(mask):
            # Both are drawn in any case, so that an option does not change what comes after it.
            picture = int(rng.integers(len(self.source.uris)))
            weight = float(np.exp(rng.uniform(low, high))) if low < high else self.rate_weight_range[0]
            self._pictures[i] = picture if pictures is None else pictures[i]
            self.rate_weights[i] = weight if weights is None else weights[i]
        self._chosen[mask] = -1

    def _observed(self) -> np.ndarray:
        """New observations, `(N, 12, 64, 64)` uint8."""
        return np.stack(
            [
                observation_of(self.source.view(picture), weight)
                for picture, weight in zip(self._pictures.tolist(), self.rate_weights.tolist(), strict=True)
            ]
        )

    def _judge(self, chosen: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards `(N,)`, and what `info` says of the chosen settings."""
        measured = [
            self.source.measure(int(picture), int(setting))
            for picture, setting in zip(self._pictures, chosen, strict=True)
        ]
        n_bytes = np.array([size for size, _ in measured], dtype=np.int64)
        values = np.array([value for _, value in measured], dtype=np.float64)
        n_pixels = np.array([self.source.n_pixels(int(picture)) for picture in self._pictures], dtype=np.int64)
        rate = 8 * n_bytes / n_pixels
        settings = np.array([self.source.settings[int(setting)] for setting in chosen], dtype=np.int64)
        results = {
            self.metric.name: values, "bits_per_pixel": rate, "n_bytes": n_bytes, "scale": settings[:, 0],
            "quality": settings[:, 1],
        }  # fmt: skip
        return values - self.rate_weights * rate, results

    def _checked_actions(self, actions: Any) -> np.ndarray:
        """Numbers of settings, `(N,)` int64."""
        array = np.asarray(actions)
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"actions must be integers of {self.single_action_space}, got dtype {array.dtype}")
        if array.shape != (self.num_envs,):
            raise ValueError(f"actions must have shape ({self.num_envs},), got {array.shape}")
        if array.min() < 0 or array.max() >= len(self.source.settings):
            raise ValueError(
                f"there is no setting {array.min() if array.min() < 0 else array.max()}; an action is the number of a "
                f"setting, 0 to {len(self.source.settings) - 1}"
            )
        return array.astype(np.int64)

    def _checked_weights(self, weight: Any) -> list[float] | None:
        """Weights of the rate to take; None for those that are drawn."""
        if weight is None:
            return None
        weights = np.asarray(weight, dtype=np.float64)
        if weights.shape not in ((), (self.num_envs,)):
            raise ValueError(f"expected one rate_weight, or one for each of {self.num_envs} environments, got {weight}")
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"rate_weight must be finite and not negative, got {weight}")
        return np.broadcast_to(weights, self.num_envs).tolist()


def _checked_range(rate_weight: float | Sequence[float]) -> tuple[float, float]:
    """The least and the greatest weight that an episode can have."""
    pair = np.asarray(rate_weight, dtype=np.float64)
    if pair.shape not in ((), (2,)):
        raise ValueError(f"rate_weight is a number or a pair (least, greatest), got {rate_weight!r}")
    low, high = (float(pair), float(pair)) if pair.ndim == 0 else (float(pair[0]), float(pair[1]))
    if not 0 <= low <= high < math.inf or (low == 0 and high > 0):
        raise ValueError(
            f"rate_weight must be finite and not negative, and of a pair the first above 0 and the second not below "
            f"it, got {rate_weight!r}"
        )
    return low, high


def _panel(picture: np.ndarray) -> np.ndarray:
    """A picture `(H, W, 3)` uint8 fitted into a black square."""
    small = Image.fromarray(picture)
    small.thumbnail((PANEL, PANEL))
    square = Image.new("RGB", (PANEL, PANEL))
    square.paste(small, ((PANEL - small.width) // 2, (PANEL - small.height) // 2))
    return np.asarray(square)
