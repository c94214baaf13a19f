"""Nothing, a metric's own gradient, evolution strategies: what fills the gradients beside SRGAN's losses."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from agents.rivals import EvolutionStrategies, MetricGradient, NoObjective, centred_ranks, train
from gan.generator import Generator
from gan.training import PatchSampler
from rlsr_env.metrics import Metric, metric

MakeSampler = Callable[..., PatchSampler]


class Brightness(nn.Module):
    """A generator of one weight: every value of its picture is that weight."""

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([level]))

    def forward(self, lr_image: Tensor) -> Tensor:
        n, channels, height, width = lr_image.shape
        return self.level.expand(n, channels, 2 * height, 2 * width)


def brightness(higher_is_better: bool) -> Metric:
    return Metric("brightness", lambda sr, hr: sr.mean((1, 2, 3)), higher_is_better=higher_is_better)


# --- Ranks ---


@pytest.mark.parametrize(
    ("rewards", "ranks"),
    [
        ([3.0, 1.0, 2.0], [0.5, -0.5, 0.0]),
        ([10.0, 20.0], [-0.5, 0.5]),
        ([5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]),
        # Two share the ranks 1 and 2 of 0 to 3: 1.5 / 3 - 0.5 = 0.
        ([1.0, 2.0, 2.0, 9.0], [-0.5, 0.0, 0.0, 0.5]),
        # Two share 0 and 1: 0.5 / 2 - 0.5.
        ([1.0, 1.0, 7.0], [-0.25, -0.25, 0.5]),
    ],
)
def test_ranks_worked_by_hand(rewards: list[float], ranks: list[float]) -> None:
    assert centred_ranks(torch.tensor(rewards)).tolist() == pytest.approx(ranks)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_agree_with_scipy(seed: int) -> None:
    rewards = np.random.default_rng(seed).integers(0, 6, 16).astype(np.float64)  # with ties
    expected = (rankdata(rewards) - 1) / 15 - 0.5
    np.testing.assert_allclose(centred_ranks(torch.from_numpy(rewards)).numpy(), expected, atol=1e-6)


# --- The metric's own gradient ---


@pytest.mark.parametrize(("higher_is_better", "slope"), [(True, -1.0), (False, 1.0)])
def test_gradient_is_that_of_a_loss(higher_is_better: bool, slope: float, make_sampler: MakeSampler) -> None:
    generator = Brightness()
    MetricGradient(brightness(higher_is_better), make_sampler()).add_gradient(generator)  # type: ignore[arg-type]
    assert generator.level.grad is not None
    assert generator.level.grad.item() == pytest.approx(slope, rel=1e-4)


def test_gradient_of_psnr_is_that_of_autograd(
    make_sampler: MakeSampler, make_generator: Callable[..., Generator]
) -> None:
    generator = make_generator().eval()
    MetricGradient(metric("psnr"), make_sampler()).add_gradient(generator)
    found = [parameter.grad.clone() for parameter in generator.parameters() if parameter.grad is not None]
    generator.zero_grad(set_to_none=True)
    lr_image, hr_image = make_sampler().batch()  # the same seed, so the same batch
    error = (generator(lr_image).clamp(0, 1) - hr_image).square().mean((1, 2, 3))
    (10 * torch.log10(error)).mean().backward()
    expected = [parameter.grad for parameter in generator.parameters() if parameter.grad is not None]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_metric_without_a_gradient_is_refused(make_sampler: MakeSampler) -> None:
    with pytest.raises(ValueError, match="metric edge_f1 has no gradient; that is what reinforcement learning is for"):
        MetricGradient(metric("edge_f1"), make_sampler())


# --- Evolution strategies ---


@pytest.mark.parametrize(("higher_is_better", "sign"), [(True, -1.0), (False, 1.0)])
def test_estimate_of_one_weight_worked_by_hand(higher_is_better: bool, sign: float, make_sampler: MakeSampler) -> None:
    """With one pair, the better one has rank 0.5, the other -0.5: (0.5 + 0.5) |e| / (2 sigma)."""
    generator = Brightness()
    search = EvolutionStrategies(brightness(higher_is_better), make_sampler(), 2, 0.1, seed=3)
    noise = torch.randn(1, generator=torch.Generator().manual_seed(3)).item()
    search.add_gradient(generator)  # type: ignore[arg-type]
    assert generator.level.grad is not None
    assert generator.level.grad.item() == pytest.approx(sign * abs(noise) / (2 * 0.1), rel=1e-5)


def test_weights_are_put_back_to_the_bit(make_sampler: MakeSampler, make_generator: Callable[..., Generator]) -> None:
    generator = make_generator().eval()
    before = {name: weight.clone() for name, weight in generator.state_dict().items()}
    EvolutionStrategies(metric("jpeg_bytes"), make_sampler(), 4, 0.01, seed=0).add_gradient(generator)
    assert all(torch.equal(before[name], weight) for name, weight in generator.state_dict().items())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in generator.parameters())


def test_as_many_pictures_are_judged_as_by_rl(
    make_sampler: MakeSampler, make_generator: Callable[..., Generator]
) -> None:
    n_judged = 0

    def count(sr_image: Tensor, hr_image: Tensor) -> Tensor:
        nonlocal n_judged
        n_judged += len(sr_image)
        return sr_image.mean((1, 2, 3))

    judge = Metric("counted", count, differentiable=False)
    EvolutionStrategies(judge, make_sampler(batch_size=3), 8, 0.01, seed=0).add_gradient(make_generator().eval())
    assert n_judged == 3 * 8


def test_rewards_that_do_not_vary_give_no_gradient(make_sampler: MakeSampler) -> None:
    generator = Brightness()
    flat = Metric("flat", lambda sr, hr: torch.ones(len(sr)), differentiable=False)
    EvolutionStrategies(flat, make_sampler(), 4, 0.1, seed=0).add_gradient(generator)  # type: ignore[arg-type]
    assert generator.level.grad is not None
    assert generator.level.grad.item() == 0.0


@pytest.mark.parametrize("n", [0, 1, 3, -2])
def test_number_of_perturbations_is_checked(n: int, make_sampler: MakeSampler) -> None:
    with pytest.raises(ValueError, match=f"n_perturbations must be an even number of 2 or more, got {n}"):
        EvolutionStrategies(metric("psnr"), make_sampler(), n, 0.1, seed=0)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("inf"), float("nan")])
def test_sigma_is_checked(sigma: float, make_sampler: MakeSampler) -> None:
    with pytest.raises(ValueError, match="sigma must be above 0"):
        EvolutionStrategies(metric("psnr"), make_sampler(), 2, sigma, seed=0)


# --- Training ---


def test_gradient_is_brought_to_the_norm_before_the_hooks_add_theirs(make_sampler: MakeSampler) -> None:
    generator = Brightness()
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.01)
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(generator.level.grad.item()))  # type: ignore[union-attr]
    train(generator, MetricGradient(brightness(True), make_sampler()), optimizer, 3, grad_norm=2.5)  # type: ignore[arg-type]
    assert seen == pytest.approx([-2.5] * 3)
    assert generator.level.item() == pytest.approx(0.5 + 3 * 0.01 * 2.5, rel=1e-5)


def test_control_leaves_everything_to_the_hooks() -> None:
    generator = Brightness()
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.01)
    gradients: list[Tensor | None] = []
    optimizer.register_step_pre_hook(lambda *_: gradients.append(generator.level.grad))
    train(generator, NoObjective(), optimizer, 2, grad_norm=1.0)  # type: ignore[arg-type]
    assert gradients == [None, None]
    assert generator.level.item() == 0.5


@pytest.mark.parametrize("method", ["gradient", "evolution"])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_training_makes_the_metric_better(method: str, higher_is_better: bool, make_sampler: MakeSampler) -> None:
    generator = Brightness()
    judge = brightness(higher_is_better)
    objective = (
        MetricGradient(judge, make_sampler())
        if method == "gradient"
        else EvolutionStrategies(replace(judge, differentiable=False), make_sampler(), 4, 0.1, seed=0)
    )
    train(generator, objective, torch.optim.SGD(generator.parameters(), lr=0.02), 5, grad_norm=1.0)  # type: ignore[arg-type]
    rise = generator.level.item() - 0.5
    assert rise == pytest.approx(0.1 if higher_is_better else -0.1, rel=1e-4)
