"""The options of `rlsr train`; imports nothing heavy, so that help answers at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from agents.run_options import RunOptions

# What --preset stands for: the forms in which weights are shipped. Each is a change of the defaults below.
PRESETS: dict[str, dict[str, Any]] = {
    "psnr": {},
    # From weights of the form `psnr` (--start), or from nothing with --fidelity-updates.
    "perceptual": {"purpose": "perceptual", "fidelity_updates": 0, "adversarial_updates": 600, "lr_patch_size": 48},
    "rl-ms_ssim": {
        "purpose": "ms_ssim", "fidelity_updates": 0, "rl_updates": 400,
    },
    # The whole way from nothing: fidelity, SRGAN, RL.
    "rl-srgan": {"purpose": "ms_ssim", "adversarial_updates": 600, "rl_updates": 400},
}  # fmt: skip

# The defaults under --quick: every stage that the preset has runs, nothing is learnt.
QUICK_TRAIN: dict[str, Any] = {
    "generator": "fast", "fidelity_updates": 20, "adversarial_updates": 4, "rl_updates": 3, "batch_size": 4,
    "lr_patch_size": 24, "late_lr_patch_size": 32,
    "late_batch_size": 2, "validate_every": 10, "validation_size": 192, "discriminator_channels": 8, "n_patches": 2,
}  # fmt: skip

# Qualities at which the small files are a few hundredths to three tenths of a bit per pixel of the original.
QUALITIES: dict[str, dict[int, tuple[int, ...]]] = {
    "jpeg": {1: (4, 6, 9, 14, 22), 2: (8, 12, 17, 23, 31, 43), 3: (18, 28, 40, 55, 72), 4: (35, 50, 65, 78, 90)},
    "webp": {1: (0, 5, 15, 30), 2: (2, 12, 25, 40, 58), 3: (15, 35, 55, 75), 4: (35, 55, 75, 90)},
    "avif": {1: (8, 14, 20, 28), 2: (18, 26, 34, 43, 53), 3: (30, 40, 50, 62), 4: (40, 52, 64, 76)},
}


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Train a decoder: fidelity, then SRGAN, then reinforcement learning, each stage as long as it is given updates.

    Writes the weights as float16 with a card, curves, TensorBoard logs and checkpoints to --out. Ctrl-C stops after the
    running update, --resume goes on exactly; after a crash, from the last checkpoint.
    """

    command: ClassVar[str] = "train"

    preset: Literal["psnr", "perceptual", "rl-ms_ssim", "rl-srgan"] = "psnr"
    """What the weights are for; sets other defaults of the options below. psnr: fidelity alone. perceptual: SRGAN.
    rl-ms_ssim: reinforcement learning with that reward. rl-srgan: all three stages."""
    purpose: Literal["psnr", "ms_ssim", "perceptual"] = "psnr"
    """What the card says that the weights are good at: `rlsr compress --for` finds them by it."""
    name: str | None = None
    """Name of the weights; x<scale>-<base codec>-<preset> where not given."""
    data: Path | None = None
    """Folder of training pictures; without it, photographs that scikit-image ships."""
    valid_data: Path | None = None
    """Folder of pictures of which crops choose the best network; without it, held-out ones of scikit-image."""
    eval_data: tuple[Path, ...] = ()
    """Folders whose whole pictures are measured at the end, for the card."""
    scale: int = 2
    """Factor by which the pictures are shrunk, 1 or more."""
    base_codec: Literal["jpeg", "webp", "avif"] = "jpeg"
    """Format of the small file."""
    qualities: tuple[int, ...] = ()
    """Qualities of the small files; some that suit scale and format where not given."""
    downsampling: Literal["lanczos", "bicubic"] = "lanczos"
    """Filter by which the pictures are shrunk."""
    clean: bool = False
    """Train on shrunk pictures that no codec has touched, as papers on super-resolution do."""
    generator: Literal["fast", "deep", "wide", "paper"] = "fast"
    """Architecture: see README."""
    start: Path | None = None
    """Weights to start from; where the last layer is of another scale, that layer starts anew; blocks that
    they lack begin as the identity."""
    fidelity_updates: int = 20_000
    """Updates of the first stage; 0 leaves it out."""
    loss: Literal["l1", "charbonnier", "mse"] = "l1"
    """Pixel loss of the first stage."""
    learning_rate: float = 5e-4
    """Adam's in the first stage, at its height; falls to nearly 0 along a cosine."""
    batch_size: int = 16
    """Patches of an update."""
    lr_patch_size: int = 32
    """Their side, in LR pixels."""
    late_share: float = 0.25
    """Share of the first stage, at its end, with the three settings below."""
    late_loss: Literal["l1", "charbonnier", "mse"] = "mse"
    """Pixel loss late in the first stage: PSNR is a function of the squared error."""
    late_batch_size: int = 4
    """Patches of an update late in the first stage."""
    late_lr_patch_size: int = 64
    """Their side, in LR pixels: the borders of larger ones weigh less."""
    ema_decay: float = 0.999
    """Of the moving average of the weights, which is what is kept."""
    adversarial_updates: int = 0
    """Updates of SRGAN, after the first stage; 0 leaves it out."""
    mse_weight: float = 1.0
    """Weight of the squared error in SRGAN's loss, and beside RL."""
    content_weight: float = 0.006
    """Weight of the content loss."""
    adversarial_weight: float = 1e-3
    """Weight of the adversarial loss."""
    content_loss: Literal["auto", "vgg19", "random", "none"] = "auto"
    """As of rlsr reproduce."""
    vgg_weights: Path | None = None
    """As of rlsr reproduce."""
    content_patches: int = 4
    """How many patches of a batch the content loss looks at."""
    discriminator_channels: int = 32
    """Feature maps of the discriminator's first layer."""
    fine_learning_rate: float = 1e-4
    """Adam's in SRGAN and RL."""
    rl_updates: int = 0
    """Updates of reinforcement learning (GRPO, the generator as policy), after the others; 0 leaves it out."""
    reward: str = "ms_ssim"
    """Metric whose gain is RL's reward."""
    n_patches: int = 2
    """Patches that RL has judged in each update, as large as the metric needs, at least --lr-patch-size."""
    group_size: int = 16
    """Pictures of each of them."""
    sigma: float = 0.02
    """Standard deviation of RL's noise, of a picture in [0, 1]."""
    policy_coef: float = 20.0
    """Weight of RL's gradient beside that of the losses."""
    anchor_weight: float = 0.0
    """Weight of RL's divergence from where it started, against reward hacking."""
    seed: int = 0
    """Of weights, batches and noise."""
    validate_every: int = 500
    """Updates between two looks at the held-out crops; after each one comes a checkpoint."""
    validation_size: int = 384
    """Side of the held-out crops, in the original's pixels."""
    licence: str = "Apache-2.0"
    """Terms of the weights, for the card."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, ..."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the convolutions."""
    out: Path | None = None
    """Folder to write to, new or empty; runs/train-<time> where not given."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; takes all other options from there."""
    quick: bool = False
    """A run of a minute that shows the way and learns nothing."""

    @property
    def weights_name(self) -> str:
        """The name of the weights."""
        return self.name or f"x{self.scale}-{'clean' if self.clean else self.base_codec}-{self.preset}"

    @property
    def chosen_qualities(self) -> tuple[int, ...]:
        """Qualities of the small files."""
        return self.qualities or QUALITIES[self.base_codec].get(self.scale, (50, 75, 90))

    @property
    def updates(self) -> Mapping[str, int]:
        """Updates of each stage that is not left out, in their order."""
        given = {"fidelity": self.fidelity_updates, "adversarial": self.adversarial_updates, "rl": self.rl_updates}
        return {stage: n_updates for stage, n_updates in given.items() if n_updates}

    def check(self) -> None:
        """Check what can be checked without reading a picture.

        Raises:
            ValueError: For a number out of range.
        """
        for name in (
            "scale", "batch_size", "lr_patch_size", "late_batch_size", "late_lr_patch_size", "content_patches",
            "discriminator_channels", "n_patches", "validate_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        for name in ("fidelity_updates", "adversarial_updates", "rl_updates"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must be 0 or more, got {getattr(self, name)}")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", self.name, re.ASCII):
            raise ValueError(
                f"--name must be 1 to 100 letters, digits, _ . + and -, since files are called by it, got {self.name!r}"
            )
        if not self.updates:
            raise ValueError("no stage has any updates; give --fidelity-updates, --adversarial-updates or --rl-updates")
        if not self.fidelity_updates and self.start is None:
            raise ValueError(
                f"--preset {self.preset} goes on from weights: give --start FILE, or --fidelity-updates to make them"
            )
        for name in ("learning_rate", "fine_learning_rate", "sigma"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        for name in ("mse_weight", "content_weight", "adversarial_weight", "policy_coef", "anchor_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.late_share <= 1:
            raise ValueError(f"--late-share must be in [0, 1], got {self.late_share}")
        if self.group_size < 4 or self.group_size % 2:
            raise ValueError(f"--group-size must be an even number of 4 or more, got {self.group_size}")
        if self.adversarial_updates and self.batch_size < 2:
            raise ValueError("--batch-size must be 2 or more for SRGAN: the discriminator's BatchNorm needs them")
        if self.validation_size < 176 or self.validation_size % self.scale:
            raise ValueError(
                f"--validation-size must be a multiple of the scale {self.scale} and at least 176, for MS-SSIM, got "
                f"{self.validation_size}"
            )
        if self.clean and self.qualities:
            raise ValueError("--clean has no qualities; leave one of the two out")
