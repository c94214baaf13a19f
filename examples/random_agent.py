"""Step through `rlsr/PSNRPrediction-v0` with random predictions, and save the last frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import tyro
from PIL import Image

import rlsr_env  # noqa: F401  (registers the environments)


@dataclass(frozen=True)
class Args:
    """Arguments of this example."""

    images: str = "sample:train"
    """the image set: sample, sample:train, sample:held-out or folder:PATH"""
    n_steps: int = 10
    """how many steps to take"""
    quick: bool = False
    """at most one episode of five steps"""
    seed: int = 0
    """seed of the environment and of the actions"""
    frame: Path | None = None
    """where to save the last frame (LR patch and SR patch side by side), as PNG"""


args = tyro.cli(Args)
env = gymnasium.make("rlsr/PSNRPrediction-v0", images=args.images, reward="improvement", render_mode="rgb_array")
env.action_space.seed(args.seed)
obs, info = env.reset(seed=args.seed)
print(f"observation {obs.shape} {obs.dtype}, PSNR of the generator (Lanczos here) {info['psnr']:.2f} dB")
for _ in range(min(args.n_steps, 5) if args.quick else args.n_steps):
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    print(f"predicted {info['predicted_psnr']:5.2f} dB, reached {info['psnr']:5.2f} dB, reward {reward:+.3f}")
    if terminated or truncated:
        obs, info = env.reset()
if args.frame is not None:
    Image.fromarray(env.render()).save(args.frame)
