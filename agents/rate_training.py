"""Learn to choose scale and quality in `rlsr/RateControl-v0`: by action values, by policy gradient, by PPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorWrapper
from gymnasium.vector.utils import batch_space
from stable_baselines3 import PPO
from torch import Tensor

from agents.rate_policy import N_FEATURES, RateNetwork, picture_features
from agents.vec_env import GymnasiumVecEnv
from gan.file_format import pack
from gan.zoo import Weights, choose_weights, load_decoder
from rlsr_env.rate_control import RateControlVectorEnv
from rlsr_env.rate_source import Decoder, FileBytes


@dataclass(frozen=True)
class Experience:
    """What every setting came to on some pictures.

    Attributes:
        features: `(P, 72)` float32; see `agents.rate_policy.picture_features`.
        qualities: `(P, S)` float32.
        rates: Bits per pixel, `(P, S)` float32.
    """

    features: Tensor
    qualities: Tensor
    rates: Tensor

    def __getitem__(self, rows: Tensor) -> Experience:
        """That of some pictures."""
        return Experience(self.features[rows], self.qualities[rows], self.rates[rows])


def experience_all(env: RateControlVectorEnv, tell: Callable[[int, int], Any] | None = None) -> Experience:
    """Play every picture of an environment with every action.

    Args:
        env: The environment; its running episodes end.
        tell: Is called with how many pictures are done, and how many there are.

    Returns:
        What came of it, in the order of `env.source.uris`.
    """
    uris, n = env.source.uris, env.num_envs
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(uris), n):
        batch = list(uris[start : start + n])
        # The last batch is filled up with its first picture, and cut off again.
        obs, _ = env.reset(options={"uri": batch + batch[:1] * (n - len(batch))})
        outcomes = [torch.from_numpy(array).float() for array in env.outcomes()]
        features = picture_features(torch.from_numpy(obs[:, :-1]))
        parts.append(tuple(array[: len(batch)] for array in (features, *outcomes)))
        if tell is not None:
            tell(min(start + n, len(uris)), len(uris))
    features, qualities, rates = (torch.cat(column) for column in zip(*parts, strict=True))
    return Experience(features, qualities, rates)


@torch.no_grad()
def fit_action_values(network: RateNetwork, experience: Experience, regularisation: float = 0.1) -> None:
    """Learn what each action is worth: ridge regression of both parts of its value on the features.

    How wrong that is comes from leaving out each picture in turn.

    In a bandit, an action's value is its expected reward, so this is Q-learning's fixed point, in one step; that the
    reward is the quality minus a known multiple of the rate is why its two parts are learned, and not the value itself
    at each weight.

    Args:
        network: Is set to what was learned.
        experience: Of the training pictures, 2 or more.
        regularisation: Of the normalised weights.

    Raises:
        ValueError: For fewer than two pictures, or a regularisation that is not above 0.
    """
    if len(experience.features) < 2 or not regularisation > 0:
        raise ValueError(
            f"need 2 or more pictures and a regularisation above 0, got {len(experience.features)} and {regularisation}"
        )
    curves = torch.cat([experience.qualities, experience.rates.log()], dim=1)
    for name, values in (("feature", experience.features), ("curve", curves)):
        getattr(network, f"{name}_mean").copy_(values.mean(dim=0))
        getattr(network, f"{name}_deviation").copy_(values.std(dim=0) + 1e-3)
    normal = network.normal_features(experience.features).double()
    targets = ((curves - network.curve_mean) / network.curve_deviation).double()
    gram = normal.T @ normal + regularisation * len(normal) * torch.eye(normal.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(gram, normal.T)
    network.weight.copy_(solved @ targets)
    # Without a picture, the fit misses it by its error over 1 minus its own pull on the fit (Hastie et al. 2009, 7.64).
    pull = (normal * solved.T).sum(dim=1) + 1 / len(normal)
    errors = network.curve_deviation * (targets - normal @ solved @ targets) / (1 - pull)[:, None].clamp(min=1e-3)
    network.error_covariance.copy_(errors.T @ errors / len(errors))


def follow_expected_reward(
    network: RateNetwork,
    experience: Experience,
    rate_weights: tuple[float, float],
    n_updates: int = 300,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    anchor: float = 10.0,
    seed: int = 0,
) -> list[float]:
    """Policy gradient with the exact expectation over the actions, in the place of samples (Ciosek and Whiteson 2018).

    Args:
        network: Where to begin, and what is changed.
        experience: Of the training pictures.
        rate_weights: Between which the weight of the rate is drawn, evenly on a logarithmic scale.
        n_updates: Steps of Adam; the learning rate falls linearly.
        batch_size: Pictures in each, with a weight of the rate each.
        learning_rate: At the first update.
        anchor: What it costs to move away from the start, per squared normalised weight.
        seed: Of the draws.

    Returns:
        The mean expected regret of each update: what the policy earned less than the best action.
    """
    generator = torch.Generator().manual_seed(seed)
    start = network.weight.detach().clone()
    optimizer = torch.optim.Adam([network.weight], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=n_updates)
    low, high = np.log(rate_weights)
    regrets = []
    for _ in range(n_updates):
        batch = experience[torch.randint(len(experience.features), (batch_size,), generator=generator)]
        weights = torch.exp(low + (high - low) * torch.rand(batch_size, generator=generator))
        rewards = batch.qualities - weights[:, None] * batch.rates
        policy = network.logits(batch.features, weights).softmax(dim=1)
        regret = ((rewards.max(dim=1, keepdim=True).values - rewards) * policy).sum(dim=1).mean()
        loss = regret + anchor * (network.weight - start).square().sum(dim=0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        regrets.append(regret.item())
    return regrets


class FeatureObservation(VectorWrapper):
    """Observations of `rlsr/RateControl-v0` as 73 numbers: the picture's features, the logarithm of the rate's weight.

    All are in deviations from their mean. What is computed for a picture is remembered. Rewards are divided by the
    square root of the rate's weight: else, nearly all of their variance would be that of the greatest weights.
    """

    def __init__(self, env: RateControlVectorEnv, mean: np.ndarray, deviation: np.ndarray) -> None:
        """Wrap an environment.

        Args:
            env: The environment itself, not wrapped.
            mean: Of the features of the training pictures, `(72,)`.
            deviation: Likewise.
        """
        super().__init__(env)
        self._base, self._mean, self._deviation = env, mean, deviation
        self.single_observation_space = Box(-np.inf, np.inf, (N_FEATURES + 1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._features: dict[int, np.ndarray] = {}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """As the environment's."""
        obs, infos = self.env.reset(seed=seed, options=options)
        return self._look(obs), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As the environment's; `final_obs` too are numbers."""
        before, weights = self._last, self._base.rate_weights.copy()
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            for i in range(self.num_envs):
                infos["final_obs"][i] = before[i].copy()
        return self._look(obs), rewards / np.sqrt(weights), terminated, truncated, infos

    def _look(self, obs: np.ndarray) -> np.ndarray:
        """Numbers of new observations, `(N, 73)` float32."""
        for i, picture in enumerate(self._base.pictures.tolist()):
            if picture not in self._features:
                self._features[picture] = picture_features(torch.from_numpy(obs[i : i + 1, :-1])).numpy()[0]
        features = np.stack([self._features[picture] for picture in self._base.pictures.tolist()])
        self._last = self.numbers(features, self._base.rate_weights)
        return self._last.copy()

    def numbers(self, features: np.ndarray, rate_weights: np.ndarray) -> np.ndarray:
        """Observations of pictures.

        Args:
            features: `(N, 72)`.
            rate_weights: `(N,)`.

        Returns:
            `(N, 73)` float32.
        """
        low, high = np.log(self._base.rate_weight_range)
        normal = (features - self._mean) / self._deviation
        weights = (np.log(rate_weights) - (low + high) / 2) / max((high - low) / 4, 1e-3)
        # One number among 73, on which everything depends: it is made twice as large as the others.
        return np.concatenate([normal.clip(-4, 4), 2 * weights[:, None]], axis=1, dtype=np.float32)


def train_ppo(env: FeatureObservation, total_timesteps: int, seed: int = 0, **options: Any) -> PPO:
    """Train Stable-Baselines3's PPO with its own multilayer perceptron; it sees what it earned, and nothing else.

    Args:
        env: The environment.
        total_timesteps: Files that are chosen, all environments together.
        seed: Of everything.
        **options: Of PPO.

    Returns:
        The trained algorithm.
    """
    settings: dict[str, Any] = {
        "n_steps": max(1, 2048 // env.num_envs), "batch_size": 256, "n_epochs": 5, "learning_rate": 1e-3, "gamma": 0.0,
        "gae_lambda": 1.0, "ent_coef": 0.003, "device": "cpu", **options,
    }  # fmt: skip
    return PPO("MlpPolicy", GymnasiumVecEnv(env), seed=seed, **settings).learn(total_timesteps)


@torch.no_grad()
def ppo_choice(model: PPO, env: FeatureObservation, features: np.ndarray, rate_weights: np.ndarray) -> np.ndarray:
    """The most probable setting of each picture.

    Args:
        model: From `train_ppo`.
        env: What it was trained in.
        features: Of the pictures, `(P, 72)`.
        rate_weights: `(P,)`.

    Returns:
        Numbers of settings, `(P,)` int64.
    """
    actions, _ = model.predict(env.numbers(features, rate_weights), deterministic=True)
    return np.asarray(actions, dtype=np.int64)


def own_file_bytes(base: str, weights: Mapping[int, Weights]) -> FileBytes:
    """Counts the bytes of this project's own files, all included.

    Args:
        base: The base codec.
        weights: For each scale, those that a file names.
    """
    return partial(_packed_bytes, base=base, weights=dict(weights))


def _packed_bytes(
    lr_stream: bytes, hr_size: tuple[int, int], scale: int, base: str, weights: dict[int, Weights]
) -> int:
    """Bytes of a whole file."""
    return len(pack(lr_stream, hr_size, scale, base, weights[scale]))


def decoders_of(weights: Mapping[int, Weights]) -> dict[int, Decoder]:
    """For each scale that has weights, the network; the others are restored by Lanczos."""
    return {scale: load_decoder(found, scale) for scale, found in weights.items() if found.path is not None}


def pretrained_weights(base: str, scales: tuple[int, ...], purpose: str = "psnr") -> dict[int, Weights]:
    """The weights that `gan.zoo` finds for each scale."""
    return {scale: choose_weights(scale, base, purpose) for scale in scales}


def make_env(num_envs: int, **options: Any) -> RateControlVectorEnv:
    """The native vector environment `rlsr/RateControl-v0`, without wrappers."""
    env: Any = gymnasium.make_vec("rlsr/RateControl-v0", num_envs=num_envs, **options).unwrapped
    return env
