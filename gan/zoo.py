"""Weights by name: which network restores a file.

A decoder is made for one scale, one base codec and one purpose (`psnr`, `ms_ssim`, `perceptual`). Weights lie in
`gan/pretrained/` and in the folder that the environment variable RLSR_WEIGHTS names, which goes first: a
`.safetensors` file and its `.json` card, in which `base_codec` and `purpose` say what they are for. Where there are
none, a picture is enlarged by Lanczos: a decoder without weights, of the name `lanczos`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from gan.generator import Generator
from gan.precision import choose_compute_dtype, choose_device
from gan.tiling import DEFAULT_TILE, TiledDecoder, grid_step, receptive_radius, self_ensemble
from gan.weights import load_generator, read_card
from rlsr_env.codec import BASE_CODECS
from rlsr_env.resample import KERNELS, upsample

ENVIRONMENT_VARIABLE = "RLSR_WEIGHTS"
PRETRAINED = Path(__file__).with_name("pretrained")
PURPOSES = ("psnr", "ms_ssim", "perceptual")
SCALES = (1, 2, 3, 4)
LANCZOS = "lanczos"
# Of the sha256, in a file: enough to tell versions of one name apart.
N_SHA256_BYTES = 4


class MissingWeightsError(ValueError):
    """No weights of that name, or others than those asked for."""


@dataclass(frozen=True)
class Weights:
    """Weights that a file can name, or Lanczos.

    Attributes:
        name: The file's name without its ending; `"lanczos"` for no weights.
        scale: Upsampling factor; of Lanczos, 0 for any.
        path: The `.safetensors` file.
        card: What its card says.
    """

    name: str
    scale: int
    path: Path | None = None
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> bytes:
        """Digest of the file; empty for Lanczos."""
        return bytes.fromhex(self.card.get("sha256", ""))

    @property
    def base_codec(self) -> str:
        """The base codec that they were trained with; empty for any."""
        return str(self.card.get("base_codec", ""))

    @property
    def purpose(self) -> str:
        """What they are best at, one of `PURPOSES`; empty where the card does not say."""
        return str(self.card.get("purpose", ""))


LANCZOS_WEIGHTS = Weights(LANCZOS, scale=0)


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Weights in a file; only the card is read.

    Args:
        path: The `.safetensors` file, or `"lanczos"`.

    Returns:
        The weights.

    Raises:
        FileNotFoundError: The file or its card is missing.
        ValueError: The card is damaged.
    """
    if os.fspath(path) == LANCZOS:
        return LANCZOS_WEIGHTS
    path = Path(path)
    card = read_card(path)
    return Weights(path.stem, card["generator"].get("scale", 4), path, card)


def check_weights(weights: Weights | None) -> None:
    """Refuse what is neither weights nor None, such as their name.

    Raises:
        TypeError: It is something else.
    """
    if weights is not None and not isinstance(weights, Weights):
        raise TypeError(f"weights are what gan.zoo.read_weights(path) returns, or None; got {weights!r}")


def weights_folders() -> list[Path]:
    """Where weights are looked for, in this order; warns of a folder that is not there."""
    own = os.environ.get(ENVIRONMENT_VARIABLE)
    if own and not Path(own).is_dir():
        warnings.warn(
            f"{ENVIRONMENT_VARIABLE} names {own}, which is no folder: only the package's own weights are there",
            UserWarning,
            stacklevel=2,
        )
        own = None
    return [*([Path(own)] if own else []), PRETRAINED]


def list_weights(folders: Sequence[Path] | None = None) -> list[Weights]:
    """All weights that are there, by name; of one name, the first.

    Weights without a usable card are left out with a warning.

    Args:
        folders: Where to look; `weights_folders()` where not given.
    """
    found: dict[str, Weights] = {}
    for folder in weights_folders() if folders is None else folders:
        for path in sorted(folder.glob("*.safetensors")):
            try:
                found.setdefault(path.stem, read_weights(path))
            except (ValueError, OSError) as error:
                warnings.warn(f"left out weights {path.stem}: {error}", UserWarning, stacklevel=2)
    return list(found.values())


def choose_weights(scale: int, base: str, purpose: str = "psnr", folders: Sequence[Path] | None = None) -> Weights:
    """The weights to restore pictures with.

    Args:
        scale: Upsampling factor.
        base: The base codec.
        purpose: One of `PURPOSES`.
        folders: Where to look; `weights_folders()` where not given.

    Returns:
        The first weights for all three, by name; where there are none for that purpose, those for `"psnr"`; where there
        are none either, Lanczos.

    Raises:
        ValueError: For an unknown purpose or base codec.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"unknown purpose {purpose!r}; known: {', '.join(PURPOSES)}")
    if base not in BASE_CODECS:
        raise ValueError(f"unknown base codec {base!r}; known: {', '.join(BASE_CODECS)}")
    fitting = [weights for weights in list_weights(folders) if (weights.scale, weights.base_codec) == (scale, base)]
    for wanted in (purpose, "psnr"):
        for weights in fitting:
            if weights.purpose == wanted:
                return weights
    return LANCZOS_WEIGHTS


def find_weights(name: str, sha256_prefix: bytes, folders: Sequence[Path] | None = None) -> Weights:
    """The weights that a file names.

    Args:
        name: Their name; `"lanczos"` is always there.
        sha256_prefix: The first bytes of their sha256.
        folders: Where to look; `weights_folders()` where not given.

    Returns:
        The weights.

    Raises:
        MissingWeightsError: There are none of that name, or they are others.
    """
    if name == LANCZOS:
        return LANCZOS_WEIGHTS
    there = {weights.name: weights for weights in list_weights(folders)}
    way_out = f"put them into the folder that {ENVIRONMENT_VARIABLE} names, or restore with lanczos instead"
    if name not in there:
        raise MissingWeightsError(
            f"the weights {name!r} are not here (there are: {', '.join(there) or 'none'}); {way_out}"
        )
    weights = there[name]
    if not weights.sha256.startswith(sha256_prefix):
        raise MissingWeightsError(
            f"the weights {name!r} here have the sha256 {weights.sha256.hex()[:12]}..., the file was made with "
            f"{sha256_prefix.hex()}...; {way_out}"
        )
    return weights


def load_decoder(
    weights: Weights,
    scale: int,
    device: torch.device | str = "auto",
    precision: str = "auto",
    tile: int = DEFAULT_TILE,
    ensemble: bool = False,
) -> TiledDecoder:
    """Make a decoder of weights.

    Args:
        weights: The weights.
        scale: The scale of the pictures.
        device: Name of a device, or `"auto"`.
        precision: `"auto"`, `"fp32"` or `"bf16"`.
        tile: Side of a tile, in LR pixels.
        ensemble: Whether to average over flips and turns.

    Returns:
        The decoder.

    Raises:
        FileNotFoundError: The file is gone.
        ValueError: The file is damaged, or of another scale.
    """
    if isinstance(device, str):
        device = choose_device(device)
    if weights.path is None:
        radius = int(KERNELS["lanczos"][1])
        return TiledDecoder(partial(upsample, scale=scale), scale, radius, tile, device)
    if weights.scale != scale:
        raise ValueError(f"the weights {weights.name!r} are for scale {weights.scale}, the picture has scale {scale}")
    generator = _load_network(weights.path, weights.sha256, device, choose_compute_dtype(device, precision))
    step = grid_step(generator)
    decoder = self_ensemble(generator, step) if ensemble else generator
    return TiledDecoder(decoder, scale, receptive_radius(generator), tile, device, step)


@lru_cache(maxsize=8)
def _load_network(path: Path, sha256: bytes, device: torch.device, compute_dtype: torch.dtype) -> Generator:
    """A network, ready to run; kept for the next picture."""
    return load_generator(path).to(device).set_compute_dtype(compute_dtype)
