import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor

from agents.interruption import Interruption
from agents.stages import RLSRGANStage, Stage, SupervisedStage
from gan.adversarial import AdversarialUpdate, SRGANTraining
from gan.generator import Generator
from gan.losses import Metrics
from gan.training import PatchSampler, Pretraining
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv

N_UPDATES, ROLLOUT_STEPS, LEARNING_RATE = 6, 2, 1e-3
MakeStage = Callable[[str], Stage]


def ignore(metrics: Metrics) -> None:
    """Nobody looks at the metrics."""


@pytest.fixture
def make_rl_stage(
    make_generator: Callable[..., Generator],
    make_update: Callable[..., AdversarialUpdate],
    patch_source: PatchSource,
) -> Callable[..., RLSRGANStage]:
    """Builds RL-SRGAN stages; their episodes do not end with the rollouts, so that the middle of one is met too."""

    def make(start: Generator | None = None, **options: Any) -> RLSRGANStage:
        vector_env = RestorationVectorEnv(2, source=patch_source, episode_length=3)
        settings = {
            "n_updates": N_UPDATES,
            "rollout_steps": ROLLOUT_STEPS,
            "learning_rate": LEARNING_RATE,
            "seed": 0,
            **options,
        }
        return RLSRGANStage(start or make_generator(), vector_env, make_update, **settings)

    return make


@pytest.fixture
def make_stage(
    make_generator: Callable[..., Generator],
    make_update: Callable[..., AdversarialUpdate],
    make_sampler: Callable[..., PatchSampler],
    make_rl_stage: Callable[..., RLSRGANStage],
) -> MakeStage:
    """Builds stages that start alike, by name."""

    def make(kind: str) -> Stage:
        if kind == "pretraining":
            return SupervisedStage(Pretraining(make_generator(), make_sampler(), N_UPDATES))
        if kind == "srgan":
            return SupervisedStage(SRGANTraining(make_update(make_generator()), N_UPDATES))
        return make_rl_stage()

    return make


KINDS = ("pretraining", "srgan", "rl-srgan")


def run_until(stage: Stage, n_updates: int) -> list[int]:
    """Run, asking for a stop once `n_updates` are done; returns `n_done` as each report saw it."""
    interruption = Interruption()
    interruption.requested = n_updates <= stage.n_done
    reports: list[int] = []

    def on_update(metrics: Metrics) -> None:
        reports.append(stage.n_done)
        interruption.requested = stage.n_done >= n_updates

    stage.run(on_update, interruption)
    return reports


def flatten(state: Any, prefix: str = "") -> dict[str, Any]:
    """A nested state as leaves; SB3's own bytes, which hold times, are left out."""
    if isinstance(state, dict):
        leaves: dict[str, Any] = {}
        for key, value in state.items():
            leaves |= flatten(value, f"{prefix}/{key}") if key != "model" else {}
        return leaves
    return {prefix: state}


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    first, second = flatten(first), flatten(second)
    assert list(first) == list(second)
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, Tensor) else value == second[name]
        assert same, name


def live_generator(stage: RLSRGANStage) -> Generator:
    generator = stage.model.policy.generator
    assert isinstance(generator, Generator)
    return generator


def whole_state(stage: Stage) -> dict[str, Any]:
    """The stage's state, and of an agent its heads and optimiser as well."""
    state = dict(stage.state_dict())
    if isinstance(stage, RLSRGANStage):
        policy = stage.model.policy
        state |= {"policy": policy.state_dict(), "policy_optimizer": policy.optimizer.state_dict()}
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_every_update_is_reported_once_and_counted(kind: str, make_stage: MakeStage) -> None:
    stage = make_stage(kind)
    assert (stage.n_done, stage.n_updates) == (0, N_UPDATES)
    assert run_until(stage, N_UPDATES) == [1, 2, 3, 4, 5, 6]
    assert stage.n_done == N_UPDATES
    assert run_until(stage, 2 * N_UPDATES) == []  # nothing is left
    assert stage.n_done == N_UPDATES


@pytest.mark.parametrize("kind", KINDS)
def test_stage_trains_the_generator(kind: str, make_stage: MakeStage, make_generator: Callable[..., Generator]) -> None:
    stage = make_stage(kind)
    run_until(stage, N_UPDATES)
    start, trained = make_generator().state_dict(), stage.averaged_generator()
    moved = [name for name, value in trained.named_parameters() if not torch.equal(value, start[name])]
    assert any(name.startswith("encoder") for name in moved)
    assert any(name.startswith("decoder") for name in moved)
    assert not trained.training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("asked_after", "stops_after"), [(0, 0), (1, 2), (4, 4)])
def test_interrupted_and_continued_is_bit_equal_to_uninterrupted(
    kind: str, asked_after: int, stops_after: int, make_stage: MakeStage
) -> None:
    whole = make_stage(kind)
    run_until(whole, N_UPDATES)

    first = make_stage(kind)
    reports = run_until(first, asked_after)
    assert first.n_done == (stops_after if kind == "rl-srgan" else asked_after)  # the agent: between two rollouts
    assert reports == list(range(1, first.n_done + 1))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(12345)
    np.random.seed(12345)  # SB3 shuffles a batch by NumPy's global stream, which moves the last bits of its sums

    second = make_stage(kind)
    second.load_state_dict(torch.load(file))  # torch's default refuses anything but plain data
    assert second.n_done == first.n_done
    assert run_until(second, N_UPDATES) == list(range(first.n_done + 1, N_UPDATES + 1))
    assert_equal(whole_state(second), whole_state(whole))
    assert_equal(second.averaged_generator().state_dict(), whole.averaged_generator().state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_result_whatever_was_drawn_before(kind: str, make_stage: MakeStage) -> None:
    first = make_stage(kind)
    run_until(first, N_UPDATES)
    torch.rand(7)
    np.random.rand(7)
    second = make_stage(kind)
    run_until(second, N_UPDATES)
    assert_equal(whole_state(first), whole_state(second))


def test_agent_whose_gradient_is_clipped_away_is_srgan_bit_for_bit(
    make_stage: MakeStage, make_rl_stage: Callable[..., RLSRGANStage]
) -> None:
    srgan, agent, clipped = make_stage("srgan"), make_rl_stage(), make_rl_stage()
    clipped.model.max_grad_norm = 0.0
    for stage in (srgan, agent, clipped):
        run_until(stage, N_UPDATES)
    expected = srgan.averaged_generator().state_dict()
    assert_equal(clipped.averaged_generator().state_dict(), expected)
    of_agent = agent.averaged_generator().state_dict()
    assert any(not torch.equal(of_agent[name], expected[name]) for name in expected)


def test_reports_of_the_agent_hold_losses_and_reward(make_rl_stage: Callable[..., RLSRGANStage]) -> None:
    seen: list[Metrics] = []
    make_rl_stage().run(seen.append, Interruption())
    assert all({"gan/mse", "gan/adversarial", "gan/discriminator", "gan/loss"} <= set(metrics) for metrics in seen)
    # Two environments, +1 or -1 each (eq. 5).
    assert {float(metrics["rl/reward"]) for metrics in seen} <= {-1.0, 0.0, 1.0}


def test_start_is_copied_and_the_environment_judges_the_live_generator(
    make_generator: Callable[..., Generator], make_rl_stage: Callable[..., RLSRGANStage]
) -> None:
    start = make_generator().set_compute_dtype(torch.bfloat16)
    stage = make_rl_stage(start)
    generator = live_generator(stage)
    assert_equal(generator.state_dict(), start.state_dict())
    assert stage.vector_env.generator is generator
    assert generator.encoder.compute_dtype == generator.decoder.compute_dtype == torch.bfloat16
    run_until(stage, N_UPDATES)
    assert_equal(start.state_dict(), make_generator().state_dict())
    assert stage.callback.adversarial.generator is generator

    stage.load_state_dict(stage.state_dict())
    loaded = live_generator(stage)
    assert loaded is not generator
    assert stage.vector_env.generator is loaded
    assert loaded.encoder.compute_dtype == loaded.decoder.compute_dtype == torch.bfloat16


def test_stopping_leaves_no_hooks_on_the_optimiser(make_rl_stage: Callable[..., RLSRGANStage]) -> None:
    stage = make_rl_stage()
    run_until(stage, 2)
    optimizer = stage.model.policy.optimizer
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_agent_s_own_figures_go_to_the_given_logger(make_rl_stage: Callable[..., RLSRGANStage]) -> None:
    logger = Logger(None, [])
    stage = make_rl_stage(logger=logger)
    assert stage.model.logger is logger
    run_until(stage, 2)
    stage.load_state_dict(stage.state_dict())
    assert stage.model.logger is logger
    run_until(stage, N_UPDATES)
    assert {"train/value_loss", "gan/loss"} <= set(logger.name_to_value)


def test_updates_must_fill_whole_rollouts(make_rl_stage: Callable[..., RLSRGANStage]) -> None:
    with pytest.raises(ValueError, match="n_updates must be a multiple of rollout_steps = 2, got 5"):
        make_rl_stage(n_updates=5)
