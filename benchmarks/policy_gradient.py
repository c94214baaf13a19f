"""How near the policy gradient of GRPO comes to the metric's own: by noise, its deviation, group size and baseline.

One batch of patches, one network; the gradient for its weights is drawn several times over. Two figures: the cosine to
the gradient that the metric itself has (where it has one), of a single draw and of all draws together, which shows what
is noise and what is bias; and the cosine between two draws, which metrics without a gradient have as well. Writes JSON
to `--out` and a table beside it.
"""

from __future__ import annotations

import itertools
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from stable_baselines3.common.logger import configure
from torch import Tensor
from torch.nn import functional

from agents.advantages import BASELINES, Baseline, advantages
from agents.grpo import GRPO, _spread
from agents.picture_noise import picture_noise
from agents.reports import describe_machine, describe_versions, write_results
from gan.precision import choose_compute_dtype, choose_device
from gan.weights import load_generator
from gan.zoo import choose_weights
from rlsr_env.codec import LRCodec
from rlsr_env.images import decode_images, image_set
from rlsr_env.metrics import metric
from rlsr_env.patches import PatchSource, to_float
from rlsr_env.vector_env import RestorationVectorEnv

Noise = Literal["white", "grey", "smooth"]


@dataclass(frozen=True)
class Args:
    """Arguments of this benchmark."""

    metrics: tuple[str, ...] = ("psnr", "ssim", "ms_ssim", "haarpsi", "dtw", "edge_f1")
    """rewards"""
    noises: tuple[Noise, ...] = ("white", "smooth")
    """white; grey: the same in all colours; smooth: grey, and blurred by a pixel"""
    sigmas: tuple[float, ...] = (0.005, 0.02, 0.04)
    """deviations of the noise"""
    group_sizes: tuple[int, ...] = (16, 64)
    """pictures of each patch"""
    baselines: tuple[Baseline, ...] = BASELINES[:2]
    """what a reward is compared with"""
    images: str = "sample:train"
    """pictures that the patches come from"""
    weights: Path | None = None
    """network, a .safetensors file; the package's perceptual one (SRGAN) where not given"""
    quality: int = 20
    """of the small JPEG"""
    n_patches: int = 8
    """patches of the batch; fewer where a metric needs larger ones"""
    hr_patch_size: int = 64
    """their side in the original's pixels, at least"""
    draws: int = 4
    """how often each gradient is drawn"""
    device: str = "cpu"
    """cpu or cuda"""
    out: Path | None = None
    """JSON file to write; the table goes beside it, as .md"""
    quick: bool = False
    """a few small draws, for a test: the figures mean nothing"""


QUICK: dict[str, Any] = {
    "metrics": ("psnr", "jpeg_bytes"), "sigmas": (0.02,), "group_sizes": (4,), "n_patches": 2, "draws": 2,
}  # fmt: skip


class Setup:
    """A batch of patches that a metric judges, and the network's pictures of them."""

    def __init__(self, name: str, args: Args) -> None:
        """Draw the patches and restore them."""
        path = args.weights or choose_weights(2, "jpeg", "perceptual").path
        assert path is not None  # the package has them
        network = load_generator(path)
        scale, judge = network.config.scale, metric(name)
        size = max(args.hr_patch_size, -(-judge.min_size // 8) * 8)
        n_patches = max(2, round(args.n_patches * (args.hr_patch_size / size) ** 2))
        device = choose_device(args.device)
        codec = LRCodec(scale, quality=args.quality)
        source = PatchSource(decode_images(image_set(args.images), min_size=size), codec, size // scale, device=device)
        env = RestorationVectorEnv(
            n_patches, task="super_resolution", source=source, episode_length=1, metric=judge, reward="improvement"
        )
        self.model = GRPO("GeneratorPolicy", env, policy_kwargs={"generator_config": network.config}, device=device)
        self.model.set_logger(configure(None, []))
        self.model.policy.generator.load_state_dict(network.state_dict())
        self.judge = judge
        obs = self.model.judge.reset_tensors(seed=0)[0].to(device)
        self.picture, _ = self.model.policy.pictures(obs)

    def for_weights(self, direction: Tensor) -> Tensor:
        """The gradient for the network's weights, one long vector, of a gradient for its pictures."""
        weights = list(self.model.policy.generator.parameters())
        found = torch.autograd.grad((direction * self.picture).sum(), weights, retain_graph=True, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])

    def own_gradient(self) -> Tensor | None:
        """The metric's own, for the weights; None where it has none."""
        if not self.judge.differentiable:
            return None
        picture = self.picture.detach().clone().requires_grad_()
        hr_image = to_float(self.model.judge.hr_patches).to(picture.device)
        value = self.judge(picture.clamp(0, 1), hr_image).mean()
        (value if self.judge.higher_is_better else -value).backward()
        assert picture.grad is not None
        return self.for_weights(picture.grad)

    def draw(self, noise: Noise, sigma: float, group_size: int, baseline: Baseline) -> Tensor:
        """GRPO's, for the weights."""
        mean = self.picture.detach()
        half = picture_noise(group_size // 2, mean, 1.0 if noise == "smooth" else 0.0, noise != "white")
        self.model.policy.sigma = sigma
        first, second = advantages(self.model._rewards(mean, half), baseline).chunk(2)
        return self.for_weights(_spread(first - second, half))


def cosine(one: Tensor, other: Tensor) -> float:
    """Of the angle between two vectors."""
    return functional.cosine_similarity(one, other, dim=0).item()


def rows_of(name: str, args: Args) -> list[dict[str, Any]]:
    """All settings for one metric."""
    torch.manual_seed(0)
    setup = Setup(name, args)
    own = setup.own_gradient()
    rows = []
    for settings in itertools.product(args.noises, args.sigmas, args.group_sizes, args.baselines):
        draws = [setup.draw(*settings) for _ in range(args.draws)]
        row = dict(zip(("noise", "sigma", "group_size", "baseline"), settings, strict=True))
        row["agreement"] = statistics.fmean(cosine(*pair) for pair in itertools.combinations(draws, 2))
        if own is not None:
            row["cosine"] = statistics.fmean(cosine(draw, own) for draw in draws)
            row["cosine_of_all"] = cosine(torch.stack(draws).sum(0), own)
        rows.append({"metric": name, "n_patches": len(setup.picture), **row})
    return rows


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "# The policy gradient beside the metric's own",
        "",
        f"`{results['command']}`: {results['draws']} draws of each, from {results['weights']} and one batch. Cosine of "
        "GRPO's gradient for the weights to the metric's own: of one draw, and of the sum of all, where what is left "
        "is mostly bias; agreement: cosine between two draws.",
        "",
        "| reward | noise | sigma | pictures | baseline | cosine | of all draws | agreement |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        cosines = [f"{row[key]:.2f}" if key in row else "" for key in ("cosine", "cosine_of_all")]
        lines.append(
            f"| {row['metric']} | {row['noise']} | {row['sigma']:g} | {row['group_size']} | "
            f"{row['baseline'].replace('_', ' ')} | {cosines[0]} | {cosines[1]} | {row['agreement']:.2f} |"
        )
    return "\n".join([*lines, ""])


def main(args: Args) -> None:
    """Measure, print, write."""
    device = choose_device(args.device)
    results = {
        "command": shlex.join(["python", "benchmarks/policy_gradient.py", *sys.argv[1:]]),
        "versions": describe_versions(),
        "machine": describe_machine(device, choose_compute_dtype(device, "fp32")),
        "weights": "x2-jpeg-perceptual" if args.weights is None else args.weights.name,
        "quality": args.quality,
        "draws": args.draws,
        "rows": [row for name in args.metrics for row in rows_of(name, args)],
    }
    write_results(args.out, results, table(results))


if __name__ == "__main__":
    main(tyro.cli(Args, default=Args(**(QUICK if "--quick" in sys.argv else {}))))
