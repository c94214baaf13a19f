"""The options of `rlsr ablate`; imports nothing heavy, so that help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from agents.run_options import RunOptions

Method = Literal["rl", "gradient", "evolution"]

# The defaults under --quick: every part runs, nothing is found out.
QUICK_ABLATION: dict[str, Any] = {
    "metrics": ("psnr", "jpeg_bytes"),
    "pretrain_updates": 30,
    "srgan_updates": 4,
    "updates": 3,
    "seeds": 2,
    "batch_size": 4,
    "n_patches": 4,
    "group_size": 4,
    "hr_patch_size": 64,
    "discriminator_channels": 8,
    "crop_size": 96,
}


@dataclass(frozen=True)
class AblateOptions(RunOptions):
    """Fine-tune one SRGAN for each of several metrics by RL, and measure by all of them against SRGAN trained on.

    Every cell starts from the same network and discriminator, and makes as many updates, each with SRGAN's losses on
    the same batches: rl adds GRPO's gradient, gradient the metric's own (where it has one), evolution the estimate of
    evolution strategies from as many judged pictures as rl; the control adds nothing. Writes results.json, table.md,
    matrix.png and crops.png to --out. Goes on where it stopped, cell by cell, with --resume.
    """

    command: ClassVar[str] = "ablate"

    metrics: tuple[str, ...] = ("psnr", "ssim", "ms_ssim", "haarpsi", "dtw", "edge_f1", "jpeg_bytes")
    """What is measured in every cell, and trained for where --rewards says nothing else."""
    rewards: tuple[str, ...] = ()
    """Those of the metrics that are trained for; all where none is named."""
    methods: tuple[Method, ...] = ("rl", "gradient", "evolution")
    """What to train with, besides the control."""
    evolution_metrics: tuple[str, ...] = ()
    """Those of the rewards that evolution strategies are run for, which cost the most; all where none is named."""
    data: Path | None = None
    """Folder of training pictures; without it, photographs that scikit-image ships."""
    eval_data: tuple[Path, ...] = ()
    """Folders of held-out pictures; without it, photographs that scikit-image ships and that are not trained on."""
    scale: int = 4
    """Factor by which the pictures are shrunk, 2 or more."""
    quality: int = 75
    """Quality of the small file."""
    base_codec: str = "jpeg"
    """Format of the small file: jpeg, webp or avif."""
    generator: Literal["fast", "paper"] = "fast"
    """Architecture, as of rlsr reproduce."""
    content_loss: Literal["auto", "vgg19", "random", "none"] = "auto"
    """As of rlsr reproduce."""
    vgg_weights: Path | None = None
    """As of rlsr reproduce."""
    pretrain_updates: int = 1500
    """Updates of the generator alone (mean absolute error), before SRGAN."""
    srgan_updates: int = 400
    """Updates of SRGAN that make the common start."""
    start: Path | None = None
    """Folder of another run of rlsr ablate, whose start to take; the two options above do not count then."""
    updates: int = 100
    """Updates of each cell."""
    seeds: int = 3
    """Seeds of each cell: 0, 1, ..."""
    batch_size: int = 8
    """Patches of SRGAN's losses in each update."""
    content_patches: int = 2
    """How many of them the content loss looks at; it would be most of the cost."""
    hr_patch_size: int = 96
    """Side of a patch in the original's pixels; metrics that need larger ones get them, in smaller batches."""
    n_patches: int = 8
    """Patches in each update that are judged by the metric."""
    group_size: int = 16
    """Pictures of each patch that RL has judged; evolution strategies: perturbed networks."""
    sigma: float = 0.01
    """Standard deviation of RL's noise, of a picture in [0, 1]."""
    final_sigma: float | None = None
    """What sigma falls to, linearly; constant where not given."""
    credit: Literal["auto", "block", "picture"] = "auto"
    """RL's credit: to blocks where the metric has a map, or to whole pictures."""
    smooth_noise_for: tuple[str, ...] = ("dtw", "edge_f1")
    """Rewards for which RL's noise is smooth and grey: metrics of lines and edges, which look at filtered luma."""
    noise_blur: float = 1.0
    """Pixels by which it is smoothed there."""
    smooth_sigma: float | None = None
    """Its standard deviation there; sigma where not given. It falls in the same proportion. Edges jump, and only strong
    noise meets them; where a metric is smooth little is better: noise counts as error, and by much of it SSIM asks for
    too much contrast."""
    baseline: Literal["group", "leave_one_out", "critic"] = "group"
    """What RL compares a reward with."""
    policy_coef: float = 20.0
    """Weight of RL's gradient beside SRGAN's, whose norm is about 1; RL's is then below 2."""
    anchor_weight: float = 0.0
    """Weight of RL's divergence from the start, against reward hacking."""
    evolution_sigma: float = 0.002
    """Standard deviation of evolution strategies' perturbations of the weights."""
    gradient_norm: float = 2.0
    """Norm of the metric's own gradient beside SRGAN's, and the bound on RL's."""
    evolution_norm: float = 0.5
    """Norm of evolution strategies' estimate beside SRGAN's gradient; most of it is noise."""
    learning_rate: float = 2e-4
    """Adam's."""
    mse_weight: float = 1.0
    """Weight of the mean squared error among SRGAN's losses."""
    content_weight: float = 0.006
    """Weight of the content loss."""
    adversarial_weight: float = 1e-3
    """Weight of the adversarial loss."""
    discriminator_channels: int = 32
    """Feature maps of the discriminator's first layer."""
    crops_of: Literal["held_out", "sample"] = "held_out"
    """What crops.png shows: a held-out picture, or a photograph that scikit-image ships, which anybody may pass on."""
    crop_size: int = 256
    """Side of the crops of held-out pictures that are measured, one of each; 0 for whole pictures."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, ..."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the convolutions."""
    out: Path | None = None
    """Folder to write to, new or empty; runs/ablate-<time> where not given."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; takes all other options from there."""
    quick: bool = False
    """A run of a minute that shows the way and finds nothing."""

    def check(self) -> None:
        """Check what can be checked without reading a picture.

        Raises:
            ValueError: For a number out of range, or a name given twice.
        """
        for name in (
            "updates", "seeds", "batch_size", "n_patches", "discriminator_channels", "content_patches",
            "pretrain_updates", "srgan_updates",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        if self.scale < 2:
            raise ValueError(f"--scale must be an integer of 2 or more, got {self.scale}")
        if self.group_size < 4 or self.group_size % 2:
            raise ValueError(f"--group-size must be an even number of 4 or more, got {self.group_size}")
        if self.hr_patch_size < 16 or self.hr_patch_size % self.scale:
            raise ValueError(
                f"--hr-patch-size must be a multiple of the scale {self.scale}, 16 or more, got {self.hr_patch_size}"
            )
        if self.crop_size < 0 or self.crop_size % self.scale:
            raise ValueError(
                f"--crop-size must be a multiple of the scale {self.scale}, or 0 for whole pictures, got "
                f"{self.crop_size}"
            )
        for name in ("sigma", "evolution_sigma", "gradient_norm", "evolution_norm", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        for name in ("final_sigma", "smooth_sigma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {value}")
        for name in (
            "noise_blur", "policy_coef", "anchor_weight", "mse_weight", "content_weight", "adversarial_weight",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} must be 0 or more, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError("--batch-size must be 2 or more: BatchNorm has no statistics of one patch")
        for name in ("metrics", "methods"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"--{name} must name one or more, each once, got {' '.join(given) or 'none'}")

        for option, names in {"rewards": self.rewards, "evolution-metrics": self.evolution_metrics}.items():
            if unknown := [name for name in names if name not in self.metrics]:
                raise ValueError(f"--{option} names {' '.join(unknown)}, which --metrics lacks")
