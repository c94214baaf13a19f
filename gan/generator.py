"""The generator: an encoder (the trunk that the RL policy shares) and a sub-pixel decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from gan.precision import autocast
from rlsr_env.resample import KERNELS, upsample


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of a generator (Savioli 2019, sec. 2.1).

    Attributes:
        scale: Upsampling factor, an integer of 1 or more; at 1 the generator only repairs what the codec did.
        channels: Feature maps throughout.
        n_blocks: Residual blocks of the encoder.
        batch_norm: BatchNorm after each convolution of the residual blocks and the encoder's last one.
        n_subpixel_layers: Sub-pixel layers of the decoder. One layer upsamples by `scale` at once; more take one prime
            factor of `scale` each, the last ones first, and the others keep the resolution.
        unshuffle: The encoder works on blocks of `unshuffle` x `unshuffle` LR pixels, each a position of its grid (the
            pixel shuffle of Shi et al. 2016, turned round). At 2, twice as many feature maps cost the same, and it sees
            twice as far. Pictures are padded at the bottom and right to a multiple.
        head_kernel: Side of the first convolution's kernel, odd (9 in Ledig et al. 2017).
        base: `"none"`, or the kernel (`"lanczos"`, `"bicubic"`) whose upsampling the network's output is added to. The
            last layer then starts at zero, so that the untrained generator is that baseline.

    Raises:
        ValueError: For a value out of range.
    """

    scale: int = 4
    channels: int = 64
    n_blocks: int = 5
    batch_norm: bool = False
    n_subpixel_layers: int = 1
    unshuffle: int = 1
    head_kernel: int = 9
    base: str = "lanczos"

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("scale", "channels", "n_blocks", "n_subpixel_layers", "unshuffle", "head_kernel"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")
        if self.head_kernel % 2 == 0:
            raise ValueError(f"head_kernel must be odd, got {self.head_kernel}")
        if self.base != "none" and self.base not in KERNELS:
            raise ValueError(f"unknown base {self.base!r}; known: none, {', '.join(KERNELS)}")
        _ = self.subpixel_factors

    @property
    def subpixel_factors(self) -> tuple[int, ...]:
        """The factor of each sub-pixel layer; their product is `scale * unshuffle`.

        The paper leaves the order open. The layers that keep the resolution come first: they run on the LR grid there,
        where a convolution costs `scale` squared times less.
        """
        total = self.scale * self.unshuffle
        if self.n_subpixel_layers == 1:
            return (total,)
        factors, rest = [], total
        for prime in range(2, total + 1):
            while rest % prime == 0:
                factors.append(prime)
                rest //= prime
        if len(factors) > self.n_subpixel_layers:
            raise ValueError(
                f"an upsampling by {total} has {len(factors)} prime factors, more than n_subpixel_layers = "
                f"{self.n_subpixel_layers}; take 1 (all at once) or at least {len(factors)}"
            )
        return (1,) * (self.n_subpixel_layers - len(factors)) + tuple(factors)

    @classmethod
    def preset(cls, name: str, scale: int) -> GeneratorConfig:
        """A named architecture.

        Args:
            name: `"paper"` (BatchNorm, eight sub-pixel layers, no base: Savioli 2019, sec. 2.1), `"fast"` (no
                BatchNorm, one sub-pixel layer at LR resolution on a Lanczos base), `"deep"` (as fast, but ten
                blocks), or `"wide"` (as fast, but 128 feature maps at half of the LR resolution: four times the
                weights at the same cost).
            scale: Upsampling factor.

        Raises:
            ValueError: For an unknown name.
        """
        if name == "paper":
            return cls(scale=scale, batch_norm=True, n_subpixel_layers=8, base="none")
        if name == "fast":
            return cls(scale=scale)
        if name == "deep":
            return cls(scale=scale, n_blocks=10)
        if name == "wide":
            return cls(scale=scale, channels=128, unshuffle=2, head_kernel=5)
        raise ValueError(f"unknown generator {name!r}; known: paper, fast, deep, wide")


def icnr_(weight: Tensor, factor: int) -> Tensor:
    """Fill a sub-pixel convolution's weight so that it starts as a nearest-neighbour upsampling of one convolution.

    All `factor ** 2` sub-pixels of an output channel get the same kernel, hence no checkerboard at the start (Aitken et
    al. 2017, ICNR).

    Args:
        weight: `(channels * factor ** 2, inputs, k, k)`, in the channel order of `pixel_shuffle`.
        factor: Upsampling factor of the layer.

    Returns:
        The same tensor, filled in place.

    Raises:
        ValueError: Where the output channels are no multiple of `factor ** 2`.
    """
    if weight.shape[0] % factor**2:
        raise ValueError(
            f"{weight.shape[0]} output channels cannot be shuffled by {factor}: no multiple of {factor**2}"
        )
    kernel = torch.empty(weight.shape[0] // factor**2, *weight.shape[1:], dtype=weight.dtype, device=weight.device)
    nn.init.kaiming_normal_(kernel)
    with torch.no_grad():
        return weight.copy_(kernel.repeat_interleave(factor**2, dim=0))


def _convolution(inputs: int, outputs: int, kernel: int, batch_norm: bool = False) -> nn.Sequential:
    """A same-size convolution, with BatchNorm in the place of its bias where asked for."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a PReLU, added to their input (Ledig et al. 2017; Savioli 2019, sec. 2.1)."""

    def __init__(self, channels: int, batch_norm: bool) -> None:
        """Build a block of `channels` feature maps."""
        super().__init__()
        self.body = nn.Sequential(
            _convolution(channels, channels, 3, batch_norm), nn.PReLU(), _convolution(channels, channels, 3, batch_norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, h, w)` to the same shape."""
        return x + self.body(x)

    def make_identity(self) -> None:
        """Zero the last layer: the block passes its input on, and learns from there."""
        convolution = self.body[-1]
        assert isinstance(convolution, nn.Sequential)
        last = convolution[-1]
        assert isinstance(last, nn.Conv2d | nn.BatchNorm2d)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)


class Encoder(nn.Module):
    """The trunk: LR picture to latent. The RL policy reads the same latent (Savioli 2019, sec. 2.1)."""

    def __init__(self, config: GeneratorConfig) -> None:
        """Build the trunk of `config`."""
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        inputs = 3 * config.unshuffle**2
        self.head = nn.Sequential(*_convolution(inputs, config.channels, config.head_kernel), nn.PReLU())
        self.blocks = nn.Sequential(
            *(ResidualBlock(config.channels, config.batch_norm) for _ in range(config.n_blocks))
        )
        self.tail = _convolution(config.channels, config.channels, 3, config.batch_norm)

    def forward(self, lr_image: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            lr_image: `(B, 3, h, w)` float in [0, 1].

        Returns:
            Latent `(B, channels, h, w)`, in the compute dtype; with `unshuffle`, h and w divided by it, rounded up.
        """
        factor = self.config.unshuffle
        if factor > 1:
            height, width = lr_image.shape[-2:]
            padding = (0, -width % factor, 0, -height % factor)
            lr_image = functional.pixel_unshuffle(functional.pad(lr_image, padding, mode="replicate"), factor)
        with autocast(lr_image.device, self.compute_dtype):
            shallow = self.head(lr_image.contiguous(memory_format=torch.channels_last))
            return shallow + self.tail(self.blocks(shallow))


class SubPixelLayer(nn.Module):
    """A 3x3 convolution followed by a pixel shuffle (Shi et al. 2016), started by ICNR."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        """Build a layer that upsamples by `factor` (1 keeps the resolution)."""
        super().__init__()
        self.factor = factor
        self.convolution = nn.Conv2d(inputs, outputs * factor**2, 3, padding=1)
        icnr_(self.convolution.weight, factor)
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs, h, w)` to `(B, outputs, factor * h, factor * w)`."""
        return functional.pixel_shuffle(self.convolution(x), self.factor)


class Decoder(nn.Module):
    """Latent to SR picture, through sub-pixel layers with PReLU between them (Savioli 2019, sec. 2.1)."""

    def __init__(self, config: GeneratorConfig) -> None:
        """Build the decoder of `config`."""
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        layers: list[nn.Module] = []
        for factor in config.subpixel_factors[:-1]:
            layers += [SubPixelLayer(config.channels, config.channels, factor), nn.PReLU()]
        last = SubPixelLayer(config.channels, 3, config.subpixel_factors[-1])
        if config.base != "none":
            nn.init.zeros_(last.convolution.weight)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, latent: Tensor, lr_image: Tensor) -> Tensor:
        """Decode a latent.

        Args:
            latent: From the encoder.
            lr_image: `(B, 3, h, w)` float in [0, 1], the picture that the latent came from.

        Returns:
            SR picture `(B, 3, scale * h, scale * w)` float32. Not clipped: clipping here would cut off the gradient of
            every value outside [0, 1].
        """
        with autocast(latent.device, self.compute_dtype):
            detail = self.layers(latent)
        height, width = (self.config.scale * side for side in lr_image.shape[-2:])
        detail = detail.float()[..., :height, :width]
        if self.config.base == "none":
            return detail
        return upsample(lr_image, self.config.scale, self.config.base) + detail


class Generator(nn.Module):
    """Encoder and decoder: LR picture to SR picture.

    Attributes:
        encoder: The trunk, shared with the RL policy.
        decoder: The sub-pixel decoder.
        config: The architecture.
    """

    def __init__(self, config: GeneratorConfig, encoder: Encoder | None = None, decoder: Decoder | None = None) -> None:
        """Build a generator, or join an encoder and a decoder that exist already (as the RL policy's do).

        Args:
            config: The architecture.
            encoder: An encoder of the same config, or None for a new one.
            decoder: A decoder of the same config, or None for a new one.
        """
        super().__init__()
        self.config = config
        self.encoder = encoder if encoder is not None else Encoder(config)
        self.decoder = decoder if decoder is not None else Decoder(config)
        self.to(memory_format=torch.channels_last)

    def forward(self, lr_image: Tensor) -> Tensor:
        """`(B, 3, h, w)` float in [0, 1] to `(B, 3, scale * h, scale * w)` float32, not clipped."""
        return self.decoder(self.encoder(lr_image), lr_image)

    @property
    def alignment(self) -> int:
        """LR pixels along each side of what the encoder takes as one position: where tiles of a picture may begin."""
        return self.config.unshuffle

    def set_compute_dtype(self, compute_dtype: torch.dtype) -> Generator:
        """Run the convolutions in `compute_dtype` from now on; the weights stay float32. Returns the generator."""
        self.encoder.compute_dtype = self.decoder.compute_dtype = compute_dtype
        return self

    def with_blocks(self, n_blocks: int) -> Generator:
        """A deeper copy that makes the same pictures: the new blocks come last and begin as the identity.

        Training then goes on from what the shallower network knows (Chen et al. 2016, Net2Net).

        Args:
            n_blocks: Residual blocks of the copy, as many as this generator has, or more.

        Raises:
            ValueError: For fewer blocks than there are.
        """
        if n_blocks < self.config.n_blocks:
            raise ValueError(f"n_blocks must be {self.config.n_blocks} or more, got {n_blocks}")
        deeper = Generator(replace(self.config, n_blocks=n_blocks))
        deeper.load_state_dict(self.state_dict(), strict=False)
        for block in deeper.encoder.blocks[self.config.n_blocks :]:
            assert isinstance(block, ResidualBlock)
            block.make_identity()
        device = next(self.parameters()).device
        return deeper.to(device).set_compute_dtype(self.encoder.compute_dtype)
