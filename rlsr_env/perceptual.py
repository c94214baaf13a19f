"""Metrics of perceived quality that have a gradient; most are computed by the package `piq`.

All take pictures `(B, 3, H, W)` in [0, 1] and return `(B,)` of their dtype.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlsr_env.black_box_metrics import nan_for_nan
from rlsr_env.visual_information import information_fidelity

# The files that LPIPS is made of, and where their publishers have them.
LPIPS_FILES = {
    "vgg16-397923af.pth": "https://download.pytorch.org/models/",
    "lpips_weights.pt": "https://github.com/photosynthesis-team/photosynthesis.metrics/releases/download/v0.4.0/",
}
# Of VGG16: the activations after the last convolution before each pooling.
LPIPS_LAYERS = ("3", "8", "15", "22", "29")


@nan_for_nan
def haarpsi(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """The Haar wavelet-based perceptual similarity index, with colour.

    Args:
        sr_image: Pictures to judge.
        hr_image: The originals.

    Returns:
        Values in [0, 1].
    """
    from piq import haarpsi as piq_haarpsi

    # The last step is a logarithm of x / (1 - x), which rounding lets exceed 1; of two black pictures it is infinite.
    return piq_haarpsi(sr_image, hr_image, reduction="none").clamp(max=1)


@nan_for_nan
def gmsd(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """The gradient magnitude similarity deviation: how unevenly the picture's gradients differ from the original's.

    Args:
        sr_image: Pictures to judge.
        hr_image: The originals.

    Returns:
        Values from 0; less is better.
    """
    from piq import gmsd as piq_gmsd

    return piq_gmsd(sr_image, hr_image, reduction="none")


@nan_for_nan
def vif(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """Visual information fidelity, in the pixel domain, of the luma.

    Args:
        sr_image: Pictures to judge.
        hr_image: The originals.

    Returns:
        Values from 0; 1 for the original, above 1 where contrast was raised.
    """
    red, green, blue = (255 * weight for weight in (0.299, 0.587, 0.114))
    sr_luma, hr_luma = (
        red * image[:, 0] + green * image[:, 1] + blue * image[:, 2] for image in (sr_image.double(), hr_image.double())
    )
    return information_fidelity(sr_luma, hr_luma)


@nan_for_nan
def lpips(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """The learned perceptual image patch similarity, on VGG16's features.

    Its weights are not part of this package and are not downloaded by it.

    Args:
        sr_image: Pictures to judge.
        hr_image: The originals.

    Returns:
        Values from 0; less is better.

    Raises:
        FileNotFoundError: If the weights are not in torch's cache folder.
        ValueError: If a file there does not hold them.
    """
    return _lpips_network(Path(torch.hub.get_dir()) / "checkpoints")(sr_image, hr_image)


@cache
def _lpips_network(folder: Path) -> Any:
    """The network, read once."""
    missing = [name for name in LPIPS_FILES if not (folder / name).is_file()]
    if missing:
        urls = " and ".join(LPIPS_FILES[name] + name for name in missing)
        raise FileNotFoundError(f"the metric lpips needs its weights: download {urls} to the folder {folder}")
    from piq.perceptual import ContentLoss
    from torchvision.models import vgg16

    backbone, linear = (_read_weights(folder / name) for name in LPIPS_FILES)
    with torch.device("meta"):  # torchvision would draw 138 million numbers
        features = vgg16(weights=None).features
    try:
        named = {name.removeprefix("features."): value for name, value in backbone.items() if "features." in name}
        features.load_state_dict(named, assign=True)
        network = ContentLoss(features.eval(), LPIPS_LAYERS, linear, reduction="none", normalize_features=True)
        if [weight.numel() for weight in linear] != [features[int(layer) - 1].out_channels for layer in LPIPS_LAYERS]:
            raise ValueError("one weight for each feature map is expected")
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{' and '.join(LPIPS_FILES)} in {folder} do not hold LPIPS's weights: {error}") from error
    for layer in features:
        layer.inplace = False  # a ReLU in place would overwrite what the layer before it gave
    return network


def _read_weights(file: Path) -> Any:
    """The content of a file that torch saved."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the unpickler into any kind of exception
        raise ValueError(f"{file} cannot be read as a weights file: {error!r}") from error
