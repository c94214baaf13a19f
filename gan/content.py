"""The content loss: VGG19 features, and where their weights come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VGG19_Weights, vgg19

from gan.losses import Metrics

# ReLU after conv5_4, the last feature map before VGG19's fifth pooling (Ledig et al. 2017: "VGG54").
LAST_LAYER = 36
ENVIRONMENT_VARIABLE = "RLSR_VGG19"
CONTENT_LOSSES = ("auto", "vgg19", "random", "none")


def _empty_features() -> nn.Sequential:
    """VGG19's layers up to the last feature map, without weights: torchvision would draw 143 million of them."""
    with torch.device("meta"):
        return vgg19(weights=None).features[:LAST_LAYER]


def _first_line(error: Exception) -> str:
    """An error's message without what follows its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class ContentLoss(nn.Module):
    """Mean squared error between VGG19 features (after ReLU) of two pictures (Savioli 2019, eq. 3)."""

    def __init__(self, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Build the feature network.

        Args:
            state_dict: Weights of `torchvision.models.vgg19().features`, keys `0.weight` to `34.bias`; None for fixed
                random ones (He initialisation, seed 0).
        """
        super().__init__()
        self.features = _empty_features().to_empty(device="cpu")
        if state_dict is not None:
            self.features.load_state_dict(state_dict)
        else:
            own_random = torch.Generator().manual_seed(0)  # the global stream belongs to the training
            for module in self.features:
                if isinstance(module, nn.Conv2d) and module.bias is not None:
                    nn.init.kaiming_normal_(module.weight, generator=own_random)
                    nn.init.zeros_(module.bias)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def extract(self, image: Tensor) -> Tensor:
        """Features of pictures `(B, 3, H, W)` in [0, 1]: `(B, 512, H / 16, W / 16)`."""
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        return self.features((image - mean) / deviation)

    def forward(self, sr_image: Tensor, hr_image: Tensor) -> tuple[Tensor, Metrics]:
        """Compare pictures.

        Args:
            sr_image: `(B, 3, H, W)` float; the gradient flows to it.
            hr_image: `(B, 3, H, W)` float in [0, 1].

        Returns:
            The loss and `{"gan/content": ...}`.

        Raises:
            ValueError: For pictures below 16 pixels, whose features are empty.
        """
        if min(sr_image.shape[-2:]) < 16:
            raise ValueError(
                f"the content loss needs pictures of 16 pixels or more, got {tuple(sr_image.shape[-2:])}; "
                "take larger patches or content loss none"
            )
        with torch.no_grad():
            target = self.extract(hr_image)
        loss = functional.mse_loss(self.extract(sr_image).float(), target.float())
        return loss, {"gan/content": loss.detach()}


def _read_weights(path: Path) -> dict[str, Tensor]:
    """VGG19's convolution weights from a .safetensors file or a .pth file of torchvision's form."""
    if not path.is_file():
        raise FileNotFoundError(f"no VGG19 weights at {path}; give the path of a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            state_dict = load_file(path)
        else:
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the unpickler into any kind of exception
        reason = _first_line(error).partition(". ")[0]  # torch goes on with how to load it at one's peril
        raise ValueError(f"{path} cannot be read as a weights file: {reason}") from error
    if not isinstance(state_dict, dict):
        raise ValueError(f"{path} holds a {type(state_dict).__name__}, expected a dictionary of VGG19's weights")
    named = {
        str(key).removeprefix("features."): value for key, value in state_dict.items() if isinstance(value, Tensor)
    }
    expected = _empty_features().state_dict()
    for key, tensor in expected.items():
        if key not in named:
            raise ValueError(f"{path} lacks {key!r}; expected the weights of torchvision's vgg19().features")
        if named[key].shape != tensor.shape:
            raise ValueError(
                f"{path}: {key!r} has shape {tuple(named[key].shape)}, VGG19's is {tuple(tensor.shape)}; "
                "expected the weights of torchvision's vgg19().features"
            )
    return {key: named[key].float() for key in expected}


def _cached_weights() -> Path:
    """Where torchvision keeps VGG19's weights once it has downloaded them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG19_Weights.IMAGENET1K_V1.url).name


@dataclass(frozen=True)
class ContentChoice:
    """A content loss and a line that says where its weights came from (`description` goes into the results)."""

    loss: ContentLoss | None
    description: str


def choose_content_loss(name: str = "auto", weights: str | os.PathLike[str] | None = None) -> ContentChoice:
    """Find VGG19's weights.

    They are looked for in `weights`, in the file that the environment variable `RLSR_VGG19` names, and in torchvision's
    cache, in this order.

    Args:
        name: `"vgg19"` downloads them where none is found; `"auto"` downloads nothing and takes fixed random weights
            then; `"random"` takes those at once; `"none"` leaves the content term out.
        weights: A file of weights (`.safetensors`, or torchvision's `.pth`).

    Returns:
        The loss (None for `"none"`) and its description.

    Raises:
        FileNotFoundError: Where a file that was named does not exist.
        ValueError: For an unknown name, a file that does not hold VGG19's weights, weights given for `"random"` or
            `"none"`, or a download that failed.
    """
    if name not in CONTENT_LOSSES:
        raise ValueError(f"unknown content loss {name!r}; known: {', '.join(CONTENT_LOSSES)}")
    if name in ("random", "none") and weights is not None:
        raise ValueError(f"VGG19 weights were given, but content loss {name} does not use them; take auto or vgg19")
    if name == "none":
        return ContentChoice(None, "none")
    if name == "random":
        return ContentChoice(ContentLoss(), "VGG19 of fixed random weights (seed 0), as asked for")
    named = weights if weights is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None
    if named is not None:
        return ContentChoice(ContentLoss(_read_weights(Path(named))), f"VGG19 conv5_4, weights of {Path(named).name}")
    cached = _cached_weights()
    if cached.is_file():
        return ContentChoice(ContentLoss(_read_weights(cached)), "VGG19 conv5_4, torchvision's weights")
    if name == "auto":
        return ContentChoice(
            ContentLoss(),
            f"VGG19 of fixed random weights (seed 0): no weights given, in {ENVIRONMENT_VARIABLE} or cached",
        )
    try:
        VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise ValueError(
            f"VGG19's weights could not be downloaded ({_first_line(error)}); give --vgg-weights FILE, "
            f"set {ENVIRONMENT_VARIABLE}, or take content loss random or none"
        ) from error
    return ContentChoice(ContentLoss(_read_weights(cached)), "VGG19 conv5_4, torchvision's weights (downloaded)")
