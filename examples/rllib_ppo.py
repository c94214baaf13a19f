"""PPO by Ray RLlib on `rlsr/DetailControl-v0`, with a small network of one's own.

Needs `uv sync --extra rllib`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import ray
import torch
import tyro
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from rlsr_env.oracle import best_strengths, value_of
from rlsr_env.rewards import Improvement
from rlsr_env.vector_env import RestorationVectorEnv

ENV_ID = "rlsr_env:rlsr/DetailControl-v0"  # Gymnasium imports what stands before the colon, in any process
HELD_OUT_SEED = 10_000  # whatever the seed of the training, the patches to measure on are the same


@dataclass(frozen=True)
class Args:
    """Arguments of this example."""

    images: str = "sample:train"
    """training pictures: sample:train or folder:PATH"""
    held_out: str = "sample:held-out"
    """pictures to measure the gain on"""
    lr_patch_size: int = 40
    """side of the LR patches"""
    grid_size: int = 4
    """cells along each side"""
    n_envs: int = 8
    """environments, one patch each"""
    n_iterations: int = 60
    """how often RLlib collects and learns"""
    batch_size: int = 384
    """environment steps to each iteration"""
    n_epochs: int = 4
    """passes over what was collected"""
    learning_rate: float = 1e-3
    """of Adam"""
    deviation: float = 0.3
    """standard deviation of the actions at the start; it is learned as well"""
    n_held_out: int = 32
    """patches of other pictures to measure the gain on"""
    n_oracle_iterations: int = 100
    """of the search for the best strengths on them"""
    quick: bool = False
    """at most 12 iterations, and a shorter search on fewer patches: less than two minutes on one core"""
    seed: int = 0
    """seed of everything"""
    out: Path | None = None
    """where to write the gain after training, the environment steps and the CPU time (.json)"""


def convolutions(n_channels: int, n_features: int, grid_size: int) -> nn.Sequential:
    """From observations to `n_features` for each cell of a grid, as one vector: the same network looks at each cell."""
    last = nn.Conv2d(64, n_features, 1)
    nn.init.zeros_(last.weight)  # training starts from doing nothing
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Conv2d(n_channels, 32, 8, stride=4, padding=2), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(grid_size), nn.Conv2d(32, 64, 1), nn.ReLU(),
        last, nn.Flatten(),
    )  # fmt: skip


class DetailModule(TorchRLModule, ValueFunctionAPI):
    """Policy and critic; RLlib wants a network of one's own in this form."""

    def setup(self) -> None:
        """Build the layers, when RLlib knows the spaces."""
        n_channels, n_numbers = self.observation_space.shape[0], self.action_space.shape[0]
        grid_size = self.model_config["grid_size"]
        self.mean = convolutions(n_channels, n_numbers // grid_size**2, grid_size)
        self.log_deviation = nn.Parameter(torch.full((n_numbers,), self.model_config["deviation"]).log())
        self.critic = convolutions(n_channels, 1, 1)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Mean and logarithm of the deviation, side by side."""
        mean = self.mean(batch[Columns.OBS].float() / 255.0 - 0.5)
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, self.log_deviation.expand_as(mean)], 1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """What the critic expects of observations."""
        return self.critic(batch[Columns.OBS].float() / 255.0 - 0.5).squeeze(1)


args = tyro.cli(Args)
if args.quick:
    args = replace(
        args,
        n_iterations=min(args.n_iterations, 12),
        n_held_out=min(args.n_held_out, 16),
        n_oracle_iterations=min(args.n_oracle_iterations, 40),
    )

sizes = {"lr_patch_size": args.lr_patch_size, "grid_size": args.grid_size}
held_out, trained_on = (
    gymnasium.make_vec(ENV_ID, num_envs=args.n_held_out, images=images, **sizes).unwrapped
    for images in (args.held_out, args.images)
)
task = held_out.task

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
# SSIM rises by hundredths; a critic learns numbers around one more easily.
settings = {"images": args.images, "reward": Improvement(scale=100.0), **sizes}
model_config = {"grid_size": task.grid_size, "deviation": args.deviation}
config = (
    PPOConfig()
    .environment(ENV_ID, env_config=settings)
    .env_runners(num_env_runners=0, num_envs_per_env_runner=args.n_envs)
    .learners(num_learners=0)
    .training(
        lr=args.learning_rate,
        gamma=1.0,
        train_batch_size=args.batch_size,
        minibatch_size=max(args.batch_size // 4, 1),
        num_epochs=args.n_epochs,
    )
    .rl_module(rl_module_spec=RLModuleSpec(module_class=DetailModule, model_config=model_config))
    .debugging(seed=args.seed)
)
algorithm = config.build_algo()


@torch.no_grad()
def gain_on(judged: RestorationVectorEnv) -> float:
    """What the policy's mean actions gain over doing nothing, always on the same patches, in the metric's unit."""
    obs, _ = judged.reset_tensors(seed=HELD_OUT_SEED)
    gain = torch.zeros(args.n_held_out, dtype=torch.float64)
    for _ in range(judged.episode_length):
        outputs = algorithm.get_module().forward_inference({Columns.OBS: obs})
        mean, _ = outputs[Columns.ACTION_DIST_INPUTS].chunk(2, dim=1)
        obs, rewards, _, _, _ = judged.step_tensors(mean)
        gain += rewards
    return gain.mean().item()


before = gain_on(held_out)
n_steps = 0
started = time.process_time()
for iteration in range(1, args.n_iterations + 1):
    sampled = algorithm.train()["env_runners"]
    n_steps, gain = sampled["num_env_steps_sampled_lifetime"], sampled["episode_return_mean"] / 100.0
    print(f"iteration {iteration}: exploring gains {gain:+.4f} {held_out.metric.name}")

seconds = time.process_time() - started
# What there was to gain on the held-out patches, which the same seed brings back.
after = gain_on(held_out)
held_out.reset_tensors(seed=HELD_OUT_SEED)
start = value_of(held_out, torch.zeros_like(task.strengths[:1]))
best = value_of(held_out, best_strengths(held_out, n_iterations=args.n_oracle_iterations))
oracle = (best - start).mean().item()
print(f"gain over doing nothing on {args.n_held_out} held-out patches, in {held_out.metric.name}:")
for name, gain in {"before training": before, "after training": after}.items():
    print(f"{name:16}{gain:+.4f}  {gain / oracle:4.0%} of the oracle's {oracle:+.4f}")
if args.out is not None:
    result = {
        "gain": after,
        "training_gain": gain_on(trained_on),
        "timesteps": int(n_steps),
        "cpu_seconds": round(seconds, 1),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
algorithm.stop()
ray.shutdown()
