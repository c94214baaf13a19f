"""REINFORCE in plain PyTorch on `rlsr/DetailControl-v0`: no RL library, tensors from end to end.

Several environments share a seed, so that they play the same patches side by side; what the others of a group earn is
the baseline of each. No critic is needed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Normal

import rlsr_env  # noqa: F401  (registers the environments)
from rlsr_env.oracle import best_strengths, value_of
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
    n_patches: int = 8
    """different patches in each update"""
    n_attempts: int = 8
    """environments that play the same patch, 2 or more"""
    n_updates: int = 300
    """updates of the policy, each after one episode in every environment"""
    learning_rate: float = 3e-3
    """of Adam; falls linearly to zero"""
    deviation: float = 0.3
    """standard deviation of the actions at the start; it is learned as well"""
    n_held_out: int = 32
    """patches of other pictures to measure the gain on"""
    n_oracle_iterations: int = 100
    """of the search for the best strengths on them"""
    quick: bool = False
    """at most 40 updates, and a shorter search for the best strengths on fewer patches: a minute on one core"""
    seed: int = 0
    """seed of everything"""
    device: str = "cpu"
    """cpu or cuda"""
    out: Path | None = None
    """where to write the gains after training, the environment steps and the CPU time (.json)"""


args = tyro.cli(Args)
if args.quick:
    args = replace(
        args,
        n_updates=min(args.n_updates, 40),
        n_held_out=min(args.n_held_out, 16),
        n_oracle_iterations=min(args.n_oracle_iterations, 40),
    )
torch.manual_seed(args.seed)

n_envs = args.n_patches * args.n_attempts
settings = {"lr_patch_size": args.lr_patch_size, "grid_size": args.grid_size, "device": args.device}
env = gymnasium.make_vec("rlsr/DetailControl-v0", num_envs=n_envs, images=args.images, **settings)
held_out, trained_on = (
    gymnasium.make_vec("rlsr/DetailControl-v0", num_envs=args.n_held_out, images=images, **settings).unwrapped
    for images in (args.held_out, args.images)
)
n_channels, n_bands, grid_size = env.single_observation_space.shape[0], env.task.n_bands, env.task.grid_size


class Policy(nn.Module):
    """A Gaussian over the actions; the same small network looks at each cell of the grid and its surroundings."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(n_channels, 32, 8, stride=4, padding=2), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(grid_size), nn.Conv2d(32, 64, 1), nn.ReLU(),
        )  # fmt: skip
        self.mean = nn.Conv2d(64, n_bands, 1)
        nn.init.zeros_(self.mean.weight)  # training starts from doing nothing
        nn.init.zeros_(self.mean.bias)
        self.log_deviation = nn.Parameter(torch.full((n_bands * grid_size**2,), args.deviation).log())

    def forward(self, obs: Tensor) -> Normal:
        """Observations `(N, channels, h, w)` uint8 to a distribution over `(N, n_bands * grid_size ** 2)`."""
        return Normal(self.mean(self.layers(obs.float() / 255.0 - 0.5)).flatten(1), self.log_deviation.exp())


policy = Policy().to(args.device)
optimizer = torch.optim.Adam(policy.parameters(), lr=args.learning_rate)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=args.n_updates)


@torch.no_grad()
def gain_on(judged: RestorationVectorEnv) -> float:
    """What the policy's mean actions gain over doing nothing, always on the same patches, in the metric's unit."""
    obs, _ = judged.reset_tensors(seed=HELD_OUT_SEED)
    gain = torch.zeros(args.n_held_out, dtype=torch.float64, device=args.device)
    for _ in range(judged.episode_length):
        obs, rewards, _, _, _ = judged.step_tensors(policy(obs).mean)
        gain += rewards
    return gain.mean().item()


before = gain_on(held_out)
started = time.process_time()
seeds = [args.seed + number // args.n_attempts for number in range(n_envs)]  # equal seeds stay together for good
obs = torch.from_numpy(env.reset(seed=seeds)[0]).to(args.device)
for update in range(1, args.n_updates + 1):
    log_probs, rewards = [], []
    for _ in range(env.episode_length):
        distribution = policy(obs)
        actions = distribution.sample()
        log_probs.append(distribution.log_prob(actions).sum(1))
        obs, step_rewards, _, _, _ = env.step_tensors(actions)
        rewards.append(step_rewards.float())
    returns = torch.stack(rewards).flip(0).cumsum(0).flip(0)  # of each step: what it and all later ones earned
    groups = returns.unflatten(1, (args.n_patches, args.n_attempts))
    # Against the mean of the whole group, which is leave-one-out but for a factor that the next line removes.
    advantages = (groups - groups.mean(2, keepdim=True)).flatten(1)
    loss = -(torch.stack(log_probs) * advantages / advantages.std()).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if update % 10 == 0:
        print(f"update {update}: exploring gains {returns[0].mean().item():+.4f} {env.metric.name}")

# What there was to gain on the held-out patches, which the same seed brings back.
seconds = time.process_time() - started
after = gain_on(held_out)
held_out.reset_tensors(seed=HELD_OUT_SEED)
start = value_of(held_out, torch.zeros(1, n_bands, grid_size, grid_size, device=args.device))


def best_gain(shared: bool) -> float:
    """The mean gain of the best strengths, patch by patch or shared by all patches."""
    strengths = best_strengths(held_out, shared=shared, n_iterations=args.n_oracle_iterations)
    return (value_of(held_out, strengths) - start).mean().item()


oracle = best_gain(shared=False)
print(f"gain over doing nothing on {args.n_held_out} held-out patches, in {env.metric.name}:")
for name, gain in {"before training": before, "after training": after, "best constant": best_gain(shared=True)}.items():
    print(f"{name:16}{gain:+.4f}  {gain / oracle:4.0%} of the oracle's {oracle:+.4f}")
if args.out is not None:
    result = {
        "gain": after,
        "training_gain": gain_on(trained_on),
        "timesteps": args.n_updates * env.episode_length * n_envs,
        "cpu_seconds": round(seconds, 1),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
