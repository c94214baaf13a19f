"""The options of `rlsr reproduce`, as one documented dataclass; imports nothing heavy, so that help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from agents.run_options import RunOptions

# The defaults under --quick: small enough for 90 seconds on two cores, too small for a finding.
QUICK: dict[str, Any] = {
    "pretrain_updates": 60,
    "updates": 20,
    "seeds": 2,
    "batch_size": 4,
    "hr_patch_size": 64,
    "discriminator_channels": 16,
}


@dataclass(frozen=True)
class ReproduceOptions(RunOptions):
    """Train SRGAN and RL-SRGAN from one start on equal data, and measure both against Lanczos (Savioli 2019, table 1).

    Writes results.json, table.md, comparison.png and curves.png to --out. Ctrl-C stops after the running update (of an
    agent: rollout) and leaves a checkpoint to resume from.
    """

    command: ClassVar[str] = "reproduce"

    data: Path | None = None
    """Folder of training pictures; without it, photographs that scikit-image ships."""
    eval_data: tuple[Path, ...] = ()
    """Folders of held-out pictures to measure on, each with results of its own: those of the first go to --out itself,
    the others' to a subfolder. Without it, three photographs that scikit-image ships and that are not trained on."""
    scale: int = 4
    """Factor by which the pictures are shrunk, 2 or more."""
    quality: int = 75
    """Quality of the small file, 1 to 100 (WebP and AVIF: 0 to 100)."""
    base_codec: str = "jpeg"
    """Format of the small file: jpeg, webp or avif."""
    generator: Literal["fast", "paper"] = "fast"
    """fast: no BatchNorm, one sub-pixel layer, Lanczos base. paper: BatchNorm, eight sub-pixel layers, no base."""
    content_loss: Literal["auto", "vgg19", "random", "none"] = "auto"
    """auto: VGG19's weights where they are at hand, else fixed random ones; vgg19: download them where need be."""
    vgg_weights: Path | None = None
    """File of VGG19's weights (.safetensors, or torchvision's .pth); else the file named by RLSR_VGG19."""
    pretrain_updates: int = 1500
    """Updates of the generator alone (mean absolute error), before either method starts."""
    updates: int = 75
    """SRGAN updates of each method; a multiple of --rollout-steps."""
    seeds: int = 3
    """How many seeds each method is trained with: 0, 1, ..."""
    batch_size: int = 8
    """Patches in each update."""
    hr_patch_size: int = 96
    """Side of a training patch in the original's pixels, a multiple of the scale."""
    mse_weight: float = 1.0
    """Weight of the mean squared error."""
    content_weight: float = 0.006
    """Weight of the content loss."""
    adversarial_weight: float = 1e-3
    """Weight of the adversarial loss."""
    discriminator_channels: int = 32
    """Feature maps of the discriminator's first layer (64 in Ledig et al. 2017)."""
    learning_rate: float = 1e-4
    """Adam's, in the adversarial stage."""
    n_envs: int = 4
    """Environments of the RL agent, one patch each."""
    rollout_steps: int = 5
    """The paper's T: environment steps, and SRGAN updates, to each RL update; also the length of an episode."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the convolutions; auto: bf16 where the processor multiplies it."""
    out: Path | None = None
    """Folder to write to, new or empty; runs/reproduce-<time> where not given."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; takes all other options from there."""
    quick: bool = False
    """A run of at most 90 seconds on two cores that shows the way, not who wins."""

    def check(self) -> None:
        """Check what can be checked without reading a picture.

        Raises:
            ValueError: For a number out of range.
        """
        for name in (
            "pretrain_updates", "updates", "seeds", "batch_size", "n_envs", "rollout_steps", "discriminator_channels",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        if self.batch_size < 2 and (self.generator == "paper" or self.adversarial_weight > 0):
            raise ValueError("--batch-size must be 2 or more: BatchNorm has no statistics of one patch")
        if self.scale < 2:
            raise ValueError(f"--scale must be an integer of 2 or more, got {self.scale}")
        if self.hr_patch_size < 1 or self.hr_patch_size % self.scale:
            nearest = max(1, round(self.hr_patch_size / self.scale)) * self.scale
            raise ValueError(
                f"--hr-patch-size must be a multiple of the scale {self.scale}, got {self.hr_patch_size}; "
                f"take {nearest}"
            )
        if self.hr_patch_size < 4 * self.scale:
            raise ValueError(
                f"--hr-patch-size must be at least 4 x the scale {self.scale}, got {self.hr_patch_size}: the agent "
                "would take smaller LR patches for something else than pictures"
            )
        if self.content_loss != "none" and self.content_weight > 0 and self.hr_patch_size < 16:
            raise ValueError(f"--hr-patch-size must be 16 or more for the content loss, got {self.hr_patch_size}")
        if self.updates % self.rollout_steps:
            upper = -(-self.updates // self.rollout_steps) * self.rollout_steps
            raise ValueError(
                f"--updates must be a multiple of --rollout-steps = {self.rollout_steps}, got {self.updates}; "
                f"take {upper}"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"--learning-rate must be above 0, got {self.learning_rate}")
        for name in ("mse_weight", "content_weight", "adversarial_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} must be 0 or more, got {getattr(self, name)}")
        content_weight = 0 if self.content_loss == "none" else self.content_weight
        if self.mse_weight == content_weight == self.adversarial_weight == 0:
            raise ValueError("all loss weights are 0, so there is nothing to train for; set one of them")
