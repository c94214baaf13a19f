"""PPO by TorchRL on `rlsr/DetailControl-v0`, whose native vector environment TorchRL takes as it is.

Needs `uv sync --extra torchrl`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import torch
import tyro
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs import ExplorationType, GymWrapper, set_exploration_type
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import rlsr_env  # noqa: F401  (registers the environments)
from rlsr_env.oracle import best_strengths, value_of
from rlsr_env.rewards import Improvement
from rlsr_env.vector_env import RestorationVectorEnv

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
    n_envs: int = 32
    """environments, one patch each"""
    n_updates: int = 200
    """how often to play one episode in each environment and to learn from it"""
    n_epochs: int = 4
    """passes over what was played"""
    n_minibatches: int = 4
    """gradient steps in each pass"""
    learning_rate: float = 1e-3
    """of Adam"""
    deviation: float = 0.2
    """standard deviation of the actions at the start; it is learned as well"""
    n_held_out: int = 32
    """patches of other pictures to measure the gain on"""
    n_oracle_iterations: int = 100
    """of the search for the best strengths on them"""
    quick: bool = False
    """at most 80 updates, and a shorter search on fewer patches: less than two minutes on one core"""
    seed: int = 0
    """seed of everything"""
    out: Path | None = None
    """where to write the gain after training, the environment steps and the CPU time (.json)"""


class Convolutions(nn.Module):
    """The same small network looks at each cell of a grid and its surroundings."""

    def __init__(self, n_channels: int, n_features: int, grid_size: int) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(n_channels, 32, 8, stride=4, padding=2), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(grid_size), nn.Conv2d(32, 64, 1), nn.ReLU(),
            nn.Conv2d(64, n_features, 1),
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)  # training starts from doing nothing
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, observation: Tensor) -> Tensor:
        """`(*batch, channels, h, w)` uint8 to `(*batch, n_features * grid_size ** 2)`."""
        batch = observation.shape[:-3]
        return self.layers(observation.flatten(0, -4).float() / 255.0 - 0.5).reshape(*batch, -1)


class Policy(nn.Module):
    """Mean and standard deviation of the actions."""

    def __init__(self, n_channels: int, n_bands: int, grid_size: int, deviation: float) -> None:
        """Build the layers."""
        super().__init__()
        self.mean = Convolutions(n_channels, n_bands, grid_size)
        self.log_deviation = nn.Parameter(torch.full((n_bands * grid_size**2,), deviation).log())

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """`(*batch, channels, h, w)` uint8 to two tensors `(*batch, n_bands * grid_size ** 2)`."""
        mean = self.mean(observation)
        return mean, self.log_deviation.exp().expand_as(mean)


args = tyro.cli(Args)
if args.quick:
    args = replace(
        args,
        n_updates=min(args.n_updates, 80),
        n_held_out=min(args.n_held_out, 16),
        n_oracle_iterations=min(args.n_oracle_iterations, 40),
    )
torch.manual_seed(args.seed)


def make(images: str, num_envs: int) -> tuple[RestorationVectorEnv, GymWrapper]:
    """The environments, natively batched, and what TorchRL sees of them."""
    vector_env = gymnasium.make_vec(
        "rlsr/DetailControl-v0",
        num_envs=num_envs,
        images=images,
        lr_patch_size=args.lr_patch_size,
        grid_size=args.grid_size,
        autoreset_mode="Disabled",  # TorchRL resets by itself
        reward=Improvement(scale=100.0),  # SSIM rises by hundredths, a critic learns numbers around one
    )
    vector_env.autoreset_mode = vector_env.metadata["autoreset_mode"]  # where TorchRL looks for it
    return vector_env, GymWrapper(vector_env)


vector_env, env = make(args.images, args.n_envs)
held_out_vector_env, held_out = make(args.held_out, args.n_held_out)
_, trained_on = make(args.images, args.n_held_out)
metric, n_steps, task = vector_env.metric.name, vector_env.episode_length, vector_env.task
n_channels = vector_env.single_observation_space.shape[0]

distribution = Policy(n_channels, task.n_bands, task.grid_size, args.deviation)
policy = ProbabilisticActor(
    TensorDictModule(distribution, in_keys=["observation"], out_keys=["loc", "scale"]),
    in_keys=["loc", "scale"],
    distribution_class=IndependentNormal,
    return_log_prob=True,
)
critic = ValueOperator(Convolutions(n_channels, 1, 1), in_keys=["observation"])
estimate_advantages = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
loss_module = ClipPPOLoss(policy, critic, clip_epsilon=0.2, entropy_bonus=False, normalize_advantage=True)
optimizer = torch.optim.Adam(loss_module.parameters(), lr=args.learning_rate)


@torch.no_grad()
def gain_on(judged: GymWrapper) -> float:
    """What the policy's mean actions gain over doing nothing, always on the same patches, in the metric's unit."""
    judged.set_seed(HELD_OUT_SEED)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        rewards = judged.rollout(n_steps, policy)["next", "reward"]
    return rewards.sum(1).mean().item() / 100.0


before = gain_on(held_out)
started = time.process_time()
env.set_seed(args.seed)
for update in range(1, args.n_updates + 1):
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        episodes = env.rollout(n_steps, policy)
    for _ in range(args.n_epochs):
        with torch.no_grad():
            estimate_advantages(episodes)
        samples = episodes.reshape(-1)
        for chosen in torch.randperm(len(samples)).chunk(args.n_minibatches):
            losses = loss_module(samples[chosen])
            optimizer.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"]).backward()
            nn.utils.clip_grad_norm_(loss_module.parameters(), 1.0)
            optimizer.step()
    if update % 10 == 0:
        gain = episodes["next", "reward"].sum(1).mean().item() / 100.0
        print(f"update {update}: exploring gains {gain:+.4f} {metric}")

seconds = time.process_time() - started
# The last episode's patches are still there, since nothing resets them: what there was to gain on them.
after = gain_on(held_out)
start = value_of(held_out_vector_env, torch.zeros_like(task.strengths[:1]))
best = value_of(held_out_vector_env, best_strengths(held_out_vector_env, n_iterations=args.n_oracle_iterations))
oracle = (best - start).mean().item()
print(f"gain over doing nothing on {args.n_held_out} held-out patches, in {metric}:")
for name, gain in {"before training": before, "after training": after}.items():
    print(f"{name:16}{gain:+.4f}  {gain / oracle:4.0%} of the oracle's {oracle:+.4f}")
if args.out is not None:
    result = {
        "gain": after,
        "training_gain": gain_on(trained_on),
        "timesteps": args.n_updates * n_steps * args.n_envs,
        "cpu_seconds": round(seconds, 1),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
