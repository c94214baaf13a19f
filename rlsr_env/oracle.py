"""The best that an agent could do in `rlsr/DetailControl-v0`, found with the original at hand.

What an algorithm reaches is reported as a share of what the oracle gains, because the room differs from metric to
metric and from generator to generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlsr_env.detail import DetailControl
from rlsr_env.patches import to_float
from rlsr_env.rounding import to_8bit
from rlsr_env.vector_env import RestorationVectorEnv


def _task_of(env: RestorationVectorEnv) -> DetailControl:
    """The environment's task, if it has strengths."""
    if not isinstance(env, RestorationVectorEnv):
        raise TypeError(
            f"the oracle takes the vector environment itself, got {type(env).__name__}; give env.unwrapped of "
            "gymnasium.make_vec, or env.unwrapped.vector_env of gymnasium.make"
        )
    if not isinstance(env.task, DetailControl):
        raise TypeError(f"the oracle knows the task detail_control, the environment has {env.task.name}")
    return env.task


def oriented_metric(env: RestorationVectorEnv, sr_image: Tensor) -> Tensor:
    """The metric of SR pictures `(N, 3, H, W)` against the current originals, `(N,)`; larger is better."""
    values = env.metric(sr_image, to_float(env.hr_patches))
    return values.double() if env.metric.higher_is_better else -values.double()


@torch.no_grad()
def value_of(env: RestorationVectorEnv, strengths: Tensor) -> Tensor:
    """What strengths are worth on the current patches.

    Args:
        env: `rlsr/DetailControl-v0`, after `reset`.
        strengths: `(N, n_bands, grid_size, grid_size)`, or `(1, ...)` for the same in all environments.

    Returns:
        The metric of the pictures rounded to 8 bits, larger is better, `(N,)` float64.

    Raises:
        TypeError: For an environment with another task, a wrapped one, or strengths that are no tensor.
        ValueError: For strengths of another shape.
    """
    task = _task_of(env)
    shape = (task.n_bands, task.grid_size, task.grid_size)
    if not isinstance(strengths, Tensor):
        raise TypeError(f"strengths are a tensor, got {type(strengths).__name__}")
    if strengths.dim() != 4 or len(strengths) not in (1, env.num_envs) or strengths.shape[1:] != shape:
        raise ValueError(
            f"strengths must be ({env.num_envs}, {', '.join(map(str, shape))}), or 1 for all environments, got "
            f"{tuple(strengths.shape)}"
        )
    return oriented_metric(env, to_8bit(task.mix(strengths.expand(env.num_envs, -1, -1, -1))))


def gain_of(env: RestorationVectorEnv, strengths: Tensor) -> Tensor:
    """What strengths gain over doing nothing on the current patches, for any metric and generator of the environment.

    The oracle's gain is `gain_of(env, best_strengths(env))`; an algorithm's mean gain over its mean is the share of
    the oracle's that it reaches.

    Args:
        env: `rlsr/DetailControl-v0`, after `reset`.
        strengths: `(N, n_bands, grid_size, grid_size)`, or `(1, ...)` for the same in all environments.

    Returns:
        The rise of the metric, larger is better, `(N,)` float64.

    Raises:
        TypeError: For an environment with another task, a wrapped one, or strengths that are no tensor.
        ValueError: For strengths of another shape.
    """
    _task_of(env)
    if not isinstance(strengths, Tensor):
        raise TypeError(f"strengths are a tensor, got {type(strengths).__name__}")
    return value_of(env, strengths) - value_of(env, torch.zeros_like(strengths[:1]))


def best_strengths(env: RestorationVectorEnv, shared: bool = False, n_iterations: int = 100, seed: int = 0) -> Tensor:
    """The strengths that the metric likes best on the current patches.

    By gradient ascent (Adam) where the metric is differentiable, else by the cross-entropy method.

    Args:
        env: `rlsr/DetailControl-v0`, after `reset`.
        shared: One set of strengths for all environments: the best constant action.
        n_iterations: Of either search.
        seed: Of the cross-entropy method.

    Returns:
        `(N, n_bands, grid_size, grid_size)`, or `(1, ...)` where shared; within the task's bounds.

    Raises:
        TypeError: For an environment with another task.
    """
    task = _task_of(env)
    n = 1 if shared else env.num_envs
    shape = (n, task.n_bands, task.grid_size, task.grid_size)
    if env.metric.differentiable:
        return _ascend(env, task, shape, n_iterations)
    return _cross_entropy_search(env, task, shape, n_iterations, seed)


@torch.enable_grad()
def _ascend(env: RestorationVectorEnv, task: DetailControl, shape: tuple[int, ...], n_iterations: int) -> Tensor:
    """Adam on the mean of the metric, projected to the bounds; the best strengths seen."""
    strengths = torch.zeros(shape, device=env.source.device, requires_grad=True)
    optimizer = torch.optim.Adam([strengths], lr=0.1)
    best, best_value = strengths.detach().clone(), value_of(env, strengths.detach())
    for _ in range(n_iterations):
        optimizer.zero_grad()
        loss = -oriented_metric(env, task.mix(strengths.expand(env.num_envs, -1, -1, -1))).sum()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            strengths.clamp_(task.LOWEST, task.HIGHEST)
        best, best_value = _keep_better(best, best_value, strengths.detach(), value_of(env, strengths.detach()))
    return best


def _cross_entropy_search(
    env: RestorationVectorEnv, task: DetailControl, shape: tuple[int, ...], n_iterations: int, seed: int
) -> Tensor:
    """Cross-entropy method: sample around a mean, move to the best quarter (Rubinstein 1999)."""
    generator = torch.Generator().manual_seed(seed)
    mean, deviation = torch.zeros(shape), torch.full(shape, 0.5)
    best = mean.to(env.source.device)
    best_value = value_of(env, best)
    n_samples, n_elite = 16, 4
    for _ in range(n_iterations):
        noise = torch.randn((n_samples, *shape), generator=generator)
        samples = (mean + deviation * noise).clamp(task.LOWEST, task.HIGHEST)
        values = torch.stack([value_of(env, sample.to(env.source.device)) for sample in samples])
        for sample, value in zip(samples, values, strict=True):
            best, best_value = _keep_better(best, best_value, sample.to(env.source.device), value)
        score = values.mean(1, keepdim=True) if shape[0] == 1 else values
        elite = score.topk(n_elite, dim=0).indices.cpu()
        chosen = samples[elite, torch.arange(shape[0])]
        mean, deviation = chosen.mean(0), chosen.std(0) + 0.02
    return best


def _keep_better(best: Tensor, best_value: Tensor, new: Tensor, new_value: Tensor) -> tuple[Tensor, Tensor]:
    """Whichever is better, environment by environment; as a whole where the strengths are shared."""
    if len(best) == 1:
        return (new.clone(), new_value) if new_value.mean() > best_value.mean() else (best, best_value)
    better = new_value > best_value
    return torch.where(better[:, None, None, None], new, best), torch.where(better, new_value, best_value)
