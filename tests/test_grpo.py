import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from torch import Tensor
from torch.nn import functional

import rlsr_env  # noqa: F401  (registers the environments)
from agents.callbacks import AdversarialLossCallback
from agents.generator_policy import to_action, to_picture
from agents.grpo import GRPO, _spread
from agents.rivals import NoObjective, train
from agents.vec_env import GymnasiumVecEnv
from gan.adversarial import AdversarialUpdate
from gan.generator import GeneratorConfig
from gan.losses import LossWeights
from rlsr_env.metrics import METRICS, Metric
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv

TINY = GeneratorConfig(scale=2, channels=4, n_blocks=1)
K, N = 4, 2
SIGMA = 0.05
NOTHING, WITHOUT_CONTENT = LossWeights(0.0, 0.0, 0.0), LossWeights(1.0, 0.0, 1e-3)


def brightness_map(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    return functional.avg_pool2d(sr_image.mean(1, keepdim=True), 8)[:, 0]


def after(before: Tensor, after: Tensor) -> Tensor:
    """A reward that does not look back."""
    return after.float()


BRIGHTNESS = Metric("brightness", lambda sr, hr: sr.mean((1, 2, 3)), differentiable=False, block_map=brightness_map)
DARKNESS = Metric("darkness", BRIGHTNESS.function, higher_is_better=False, block_map=brightness_map)
CONSTANT = Metric("constant", lambda sr, hr: th.ones(len(sr)), differentiable=False)

MakeEnv = Callable[..., RestorationVectorEnv]
MakeModel = Callable[..., GRPO]


@pytest.fixture
def make_picture_env(patch_source: PatchSource) -> MakeEnv:
    """Builds `rlsr/SuperResolution-v0` on LR patches of 8 pixels."""

    def make(metric: str | Metric = "psnr", reward: Any = "improvement", n: int = N, **options: Any) -> Any:
        options = {"task": "super_resolution", "episode_length": 1, "source": patch_source} | options
        return RestorationVectorEnv(n, metric=metric, reward=reward, **options)

    return make


@pytest.fixture
def make_model(make_picture_env: MakeEnv, torch_rng: None) -> MakeModel:
    """Builds agents whose generator is away from its start, so that every weight has a gradient."""

    def make(
        metric: str | Metric = "psnr",
        env: Any = None,
        config: GeneratorConfig = TINY,
        stirred: bool = True,
        **settings: Any,
    ) -> GRPO:
        policy_kwargs = {"generator_config": config} | settings.pop("policy_kwargs", {})
        settings = {"group_size": K, "sigma": SIGMA, "learning_rate": 1e-3, "seed": 0, "device": "cpu"} | settings
        model = GRPO("GeneratorPolicy", env or make_picture_env(metric), policy_kwargs=policy_kwargs, **settings)
        if stirred:
            with th.no_grad():
                for parameter in model.policy.generator.parameters():
                    parameter.add_(0.02 * th.randn(parameter.shape))
        return model

    return make


class Recording(KVWriter):
    """Everything that is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def record(model: GRPO) -> Recording:
    recording = Recording()
    model.set_logger(Logger(None, [recording]))
    return recording


def weights_of(model: GRPO) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.policy.generator.named_parameters()}


def equal(first: Any, second: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(first, Tensor):
        return th.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))
    return first == second


class Judged:
    """What an agent had judged, and what it got for it."""

    def __init__(self, model: GRPO, monkeypatch: pytest.MonkeyPatch) -> None:
        self.actions: list[Tensor] = []
        self.rewards: list[Tensor] = []
        real = model.judge.rewards_of

        def rewards_of(actions: Tensor, per_block: bool = False) -> Tensor:
            rewards = real(actions, per_block)
            self.actions.append(actions.clone())
            self.rewards.append(rewards.clone())
            return rewards

        monkeypatch.setattr(model.judge, "rewards_of", rewards_of)


# --- the gradient


@pytest.mark.parametrize("credit", ["picture", "block"])
@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "critic"])
def test_gradient_is_that_of_the_log_probabilities(
    credit: Any, baseline: Any, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(credit=credit, baseline=baseline, policy_coef=3.0, max_grad_norm=math.inf)
    judged = Judged(model, monkeypatch)
    seen: dict[str, Any] = {}

    def keep(*_: Any) -> None:
        seen["gradient"] = [p.grad.clone() for p in model.policy.generator.parameters()]
        seen["generator"] = copy.deepcopy(model.policy.generator)

    model.policy.optimizer.register_step_pre_hook(keep)
    start = model.env.reset()
    monkeypatch.setattr(model.env, "reset", lambda: start)
    model.learn(K * N)

    rewards = judged.rewards[0].double()
    assert rewards.shape == ((K, N, 2, 2) if credit == "block" else (K, N))
    centred = rewards - rewards.mean(0)
    if baseline == "group":
        expected = centred / rewards.std(0)
    elif baseline == "leave_one_out":
        left_out = th.stack([rewards[k] - rewards[[j for j in range(K) if j != k]].mean(0) for k in range(K)])
        expected = left_out / left_out.std()
    else:  # the fresh critic predicts zero
        expected = rewards / rewards.std()

    generator = seen["generator"]
    loss = th.zeros((), dtype=th.float64)
    mean = generator(th.from_numpy(start).float() / 255).double()
    for k in range(K):
        for n in range(N):
            sample = to_picture(judged.actions[0][k, n]).double()
            log_prob = th.distributions.Normal(mean[n], SIGMA).log_prob(sample).sum(0)  # over the colours
            if credit == "block":
                for i in range(2):
                    for j in range(2):
                        block = log_prob[8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
                        loss = loss - expected[k, n, i, j] * block.sum()
            else:
                loss = loss - expected[k, n] * log_prob.sum()
    loss = 3.0 * loss / (K * N * 3 * 16 * 16)
    gradient = th.autograd.grad(loss, list(generator.parameters()))
    assert max(part.norm() for part in gradient) > 1e-3
    for own, other in zip(seen["gradient"], gradient, strict=True):
        assert (own - other).norm() < 1e-3 * other.norm() + 1e-6


def test_pixels_beyond_the_last_block_get_no_credit(torch_rng: None) -> None:
    noise = th.randn(3, 2, 3, 20, 17)
    weights = th.randn(3, 2, 2, 2)
    total = _spread(weights, noise)
    assert total.shape == (2, 3, 20, 17)
    assert total[..., 16:, :].abs().max() == total[..., 16:].abs().max() == 0
    for n, c, y, x in [(0, 0, 0, 0), (1, 2, 15, 15), (0, 1, 7, 8), (1, 0, 8, 7)]:
        expected = sum(weights[k, n, y // 8, x // 8] * noise[k, n, c, y, x] for k in range(3))
        assert total[n, c, y, x].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("smooth", [False, True])
def test_samples_come_in_pairs_around_one_picture(
    smooth: bool, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(group_size=16, noise_blur=1.0 if smooth else 0.0, grey_noise=smooth)
    judged = Judged(model, monkeypatch)
    passes: list[int] = []
    model.policy.decoder.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    start = model.env.reset()
    monkeypatch.setattr(model.env, "reset", lambda: start)
    with th.no_grad():
        mean = to_action(model.policy.generator(th.from_numpy(start).float() / 255))
    passes.clear()
    model.learn(16 * N)
    (actions,) = judged.actions
    assert actions.shape == (16, N, 3, 16, 16)
    assert passes == [N]  # one pass of the network, however many samples
    noise = to_picture(actions) - to_picture(mean)
    assert th.allclose(noise[:8], -noise[8:], atol=1e-6)
    assert noise[:8].std().item() == pytest.approx(SIGMA, rel=0.1 if smooth else 0.05)
    assert th.allclose(noise[:, :, 0], noise[:, :, 1], atol=1e-6) == smooth
    assert (noise[0] - noise[1]).abs().max() > SIGMA


def direction_of(model: GRPO, mean: Tensor, half: Tensor) -> Tensor:
    """The direction in which the mean picture would go."""
    picture = mean.clone().requires_grad_()
    obs = th.from_numpy(model.env.reset())
    rewards = model._rewards(mean, half)
    loss = model._policy_loss(obs, picture, th.zeros(len(mean)), half, rewards)
    return -th.autograd.grad(loss, picture)[0]


@pytest.mark.parametrize("credit", ["picture", "block"])
def test_noise_elsewhere_disturbs_a_blocks_credit_only_without_blocks(credit: Any, make_model: MakeModel) -> None:
    model = make_model(credit=credit)
    record(model)
    model.env.seed(5)
    obs = model.env.reset()
    with th.no_grad():
        mean = model.policy.generator(th.from_numpy(obs).float() / 255)
    half = th.randn(K // 2, N, 3, 16, 16)
    other = th.randn(K // 2, N, 3, 16, 16)
    other[..., :8, :8] = half[..., :8, :8]
    directions = []
    for noise in (half, other):
        model.env.seed(5)  # the same patches again
        directions.append(direction_of(model, mean, noise))
    first, second = (direction[..., :8, :8] for direction in directions)
    assert first.abs().max() > 0
    assert th.allclose(first, second, atol=1e-7) is (credit == "block")
    assert not th.allclose(directions[0][..., 8:, :], directions[1][..., 8:, :], atol=1e-7)


@pytest.mark.parametrize("baseline", ["group", "leave_one_out", "critic"])
def test_in_a_pair_what_both_are_compared_with_cancels(baseline: Any, make_model: MakeModel) -> None:
    model = make_model(baseline=baseline, credit="picture")
    record(model)
    half = th.randn(K // 2, 1, 3, 16, 16)
    rewards = th.tensor([[3.0], [1.0], [2.0], [5.0]])  # the pairs are 3 and 2, 1 and 5
    directions = []
    for shift in (0.0, 100.0):
        mean = th.zeros(1, 3, 16, 16, requires_grad=True)
        obs = th.zeros(1, 3, 8, 8, dtype=th.uint8)
        loss = model._policy_loss(obs, mean, th.zeros(1), half, rewards + shift)
        directions.append(-th.autograd.grad(loss, mean)[0])
    expected = (3 - 2) * half[0] + (1 - 5) * half[1]
    for direction in directions:
        cosine = functional.cosine_similarity(direction.flatten(), expected.flatten(), dim=0)
        assert cosine.item() == pytest.approx(1.0, abs=1e-5)


# --- what it learns


@pytest.mark.parametrize("credit", ["picture", "block"])
@pytest.mark.parametrize("judge", [BRIGHTNESS, DARKNESS], ids=lambda judge: judge.name)
def test_reward_rises(judge: Metric, credit: Any, make_model: MakeModel) -> None:
    model = make_model(judge, credit=credit, learning_rate=3e-3, stirred=False)
    obs = th.randint(0, 256, (32, 3, 8, 8), dtype=th.uint8)

    def brightness() -> float:
        with th.no_grad():
            return model.policy.pictures(obs)[0].clamp(0, 1).mean().item()

    before = brightness()
    model.learn(40 * K * N)
    change = brightness() - before
    assert (change if judge.higher_is_better else -change) > 0.02


def test_to_do_nothing_gains_nothing(make_model: MakeModel) -> None:
    model = make_model(BRIGHTNESS, policy_coef=0.0)
    before = weights_of(model)
    model.learn(5 * K * N)
    assert equal(weights_of(model), before)


@pytest.mark.parametrize("credit", ["picture", "block"])
def test_pictures_that_are_too_bright_become_right(
    credit: Any, make_model: MakeModel, make_picture_env: MakeEnv
) -> None:
    env = make_picture_env("psnr", n=8)
    model = make_model(env=env, group_size=16, credit=credit, stirred=False, learning_rate=5e-3)
    with th.no_grad():
        model.policy.decoder.layers[-1].convolution.bias.fill_(0.2)
    held_out = make_picture_env("psnr", n=32)
    obs, _ = held_out.reset(seed=9)

    def gain() -> float:
        with th.no_grad():
            action = to_action(model.policy.pictures(th.from_numpy(obs))[0])
        return held_out.rewards_of(action[None]).mean().item()

    before = gain()
    model.learn(40 * 16 * 8)
    assert before < -5  # dB below Lanczos, which the untrained generator is but for its brightness
    assert gain() > before + 4


def test_anchor_pulls_back(make_model: MakeModel) -> None:
    model = make_model(policy_coef=0.0, anchor_weight=1.0, learning_rate=3e-4)
    rows = record(model).rows
    model.learn(K * N, log_interval=1)
    assert rows[-1]["train/divergence_from_start"] == 0.0
    with th.no_grad():
        for parameter in model.policy.generator.parameters():
            parameter.add_(0.01 * th.randn(parameter.shape))
    model.learn(30 * K * N, log_interval=1, reset_num_timesteps=False)
    divergences = [row["train/divergence_from_start"] for row in rows[1:]]
    assert divergences[0] > 0
    assert np.mean(divergences[-3:]) < 0.5 * np.mean(divergences[:3])


def test_anchors_gradient_is_the_divergences(make_model: MakeModel) -> None:
    model = make_model(CONSTANT, credit="picture", anchor_weight=0.7)
    record(model)
    obs = th.from_numpy(model.env.reset())
    with th.no_grad():
        reference = model.policy.reference(obs.float() / 255)
    shift = 0.1 * th.randn(reference.shape)
    mean = (reference + shift).requires_grad_()
    half = th.randn(K // 2, N, 3, 16, 16)
    loss = model._policy_loss(obs, mean, th.zeros(N), half, th.ones(K, N))
    (gradient,) = th.autograd.grad(loss, mean)
    own, other = (th.distributions.Normal(m.double(), SIGMA) for m in (reference + shift, reference))
    divergence = th.distributions.kl_divergence(own, other).mean()
    assert loss.item() == pytest.approx(0.7 * divergence.item(), rel=1e-4)
    assert th.allclose(gradient, 0.7 * shift / SIGMA**2 / shift.numel(), rtol=1e-3, atol=1e-9)


def test_new_learning_has_a_new_anchor(make_model: MakeModel) -> None:
    model = make_model()
    model.learn(2 * K * N)
    first = {name: weight.clone() for name, weight in model.policy.reference.named_parameters()}
    model.learn(2 * K * N, reset_num_timesteps=False)
    assert equal(dict(model.policy.reference.named_parameters()), first)
    middle = weights_of(model)
    model.learn(2 * K * N)
    assert equal(dict(model.policy.reference.named_parameters()), middle)


@pytest.mark.parametrize("credit", ["picture", "block"])
def test_critic_learns_what_a_patch_earns_and_leaves_the_picture_alone(
    credit: Any, make_model: MakeModel, make_picture_env: MakeEnv
) -> None:
    env = make_picture_env(BRIGHTNESS, after, n=8)
    model = make_model(env=env, baseline="critic", credit=credit, policy_coef=0.0, learning_rate=3e-2)
    before, rows = weights_of(model), record(model).rows
    model.learn(120 * K * 8, log_interval=1)
    losses = [row["train/value_loss"] for row in rows]
    assert losses[0] > 0.1  # the square of a brightness of about a half
    assert np.mean(losses[-10:]) < 0.2 * losses[0]
    assert equal(weights_of(model), before)


def test_critics_weight_counts(make_model: MakeModel) -> None:
    model = make_model(BRIGHTNESS, baseline="critic", credit="picture", policy_coef=0.0, vf_coef=0.25)
    record(model)
    values = th.tensor([1.0, 3.0], requires_grad=True)
    mean, half = th.zeros(N, 3, 16, 16), th.randn(K // 2, N, 3, 16, 16)
    rewards = th.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [5.0, 6.0]])  # means 2 and 3
    loss = model._policy_loss(th.zeros(N, 3, 8, 8, dtype=th.uint8), mean, values, half, rewards)
    assert loss.item() == pytest.approx(0.25 * 0.5)
    (gradient,) = th.autograd.grad(loss, values)
    assert gradient.tolist() == pytest.approx([-0.25, 0.0])


def test_sigma_follows_its_schedule(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(sigma=lambda remaining: 0.02 + 0.08 * remaining)
    rows = record(model).rows
    model.learn(4 * K * N, log_interval=1)
    expected = [0.1, 0.08, 0.06, 0.04]
    assert [row["train/sigma"] for row in rows] == pytest.approx(expected)
    entropies = [0.5 * math.log(2 * math.pi * math.e * sigma**2) for sigma in expected]
    assert [row["train/entropy"] for row in rows] == pytest.approx(entropies, rel=1e-5)


def test_learning_rate_follows_its_schedule(make_model: MakeModel) -> None:
    model = make_model(learning_rate=lambda remaining: 0.1 * remaining + 0.01)
    rates: list[float] = []
    model.policy.optimizer.register_step_pre_hook(lambda *_: rates.append(model.policy.optimizer.param_groups[0]["lr"]))
    model.learn(2 * K * N)
    assert rates == pytest.approx([0.06, 0.01])


def test_own_gradient_is_bounded(make_model: MakeModel) -> None:
    norms = []
    for bound in (1e-3, math.inf):
        model = make_model(policy_coef=100.0, max_grad_norm=bound)
        gradient: list[Tensor] = []
        model.policy.optimizer.register_step_pre_hook(
            lambda *_, model=model, gradient=gradient: gradient.extend(
                p.grad.flatten().clone() for p in model.policy.generator.parameters()
            )
        )
        rows = record(model).rows
        model.learn(K * N, log_interval=1)
        model.logger.dump()
        norms.append((th.cat(gradient).norm().item(), rows[-1]["train/grad_norm"]))
    assert norms[0][0] == pytest.approx(1e-3, rel=1e-2)
    assert norms[1][0] == pytest.approx(norms[1][1], rel=1e-5)
    assert norms[0][1] == pytest.approx(norms[1][1], rel=1e-5)  # what is logged is the norm before the clipping


# --- counting and logging


def test_a_step_is_a_picture_that_was_judged(make_model: MakeModel, make_picture_env: MakeEnv) -> None:
    model = make_model(env=make_picture_env(n=3))
    steps: list[int] = []
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(model.num_timesteps))
    model.learn(2 * K * 3 + 1)  # what is begun is finished
    assert steps == [12, 24, 36]
    assert model.num_timesteps == 36
    model.learn(12, reset_num_timesteps=False)
    assert model.num_timesteps == 48
    assert model._n_updates == 4


def test_patches_change_from_update_to_update(make_model: MakeModel) -> None:
    model = make_model()
    seen: list[list[Any]] = []

    class Look(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen.append(model.judge.state_dict()["index"])

        def _on_step(self) -> bool:
            return True

    model.learn(5 * K * N, callback=Look())
    assert len({str(index) for index in seen}) == 5


def test_observations_are_those_of_the_patches_that_are_judged(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    pairs: list[tuple[Tensor, Tensor]] = []
    real = model.policy.pictures

    def pictures(obs: Tensor) -> Any:
        pairs.append((obs.clone(), model.judge._observed().clone()))
        return real(obs)

    monkeypatch.setattr(model.policy, "pictures", pictures)
    model.learn(3 * K * N)
    assert len(pairs) == 3
    assert all(th.equal(obs, current) for obs, current in pairs)


def test_what_is_logged(make_model: MakeModel) -> None:
    model = make_model()
    rows = record(model).rows
    model.learn(2 * K * N, log_interval=1)
    logged = set().union(*rows)
    assert {
        "train/reward_spread", "train/flat_groups", "train/sigma", "train/entropy", "train/grad_norm",
        "train/n_updates", "rollout/ep_rew_mean", "time/total_timesteps",
    } <= logged  # fmt: skip
    assert rows[0]["train/reward_spread"] > 0
    assert rows[0]["train/flat_groups"] == 0
    assert rows[-1]["time/total_timesteps"] == 2 * K * N


def test_mean_reward_is_that_of_the_picture_without_noise(make_model: MakeModel, make_picture_env: MakeEnv) -> None:
    model = make_model(env=make_picture_env(BRIGHTNESS, after), sigma=0.3, learning_rate=0.0)
    start = model.env.reset()
    model.env.reset = lambda: start  # type: ignore[method-assign]
    with th.no_grad():
        expected = model.policy.pictures(th.from_numpy(start))[0].clamp(0, 1).mean().item()
    rows = record(model).rows
    model.learn(K * N, log_interval=1)
    assert rows[0]["rollout/ep_rew_mean"] == pytest.approx(expected, abs=1e-3)


# --- rewards that do not vary, metrics that fail


def test_rewards_that_never_vary_end_the_training(make_model: MakeModel) -> None:
    model = make_model(CONSTANT, max_flat=3)
    with pytest.raises(RuntimeError, match=r"in 4 updates in a row, all 4 pictures of a patch earned the same.*sigma"):
        model.learn(10 * K * N)
    assert model.num_timesteps == 3 * K * N


def test_flat_updates_count_in_a_row_only(make_model: MakeModel) -> None:
    calls: list[int] = []

    def sometimes(sr_image: Tensor, hr_image: Tensor) -> Tensor:
        if len(sr_image) == K * N:
            calls.append(1)
        return sr_image.mean((1, 2, 3)) if len(calls) % 3 == 0 else th.ones(len(sr_image))

    model = make_model(Metric("sometimes", sometimes, differentiable=False), max_flat=2)
    rows = record(model).rows
    model.learn(9 * K * N, log_interval=1)
    assert [row["train/flat_groups"] for row in rows] == [1, 1, 0] * 3


def failing(at: Callable[[int], bool], how: str) -> Metric:
    """A metric that fails when some groups are judged, counted from 0."""
    calls: list[int] = []

    def function(sr_image: Tensor, hr_image: Tensor) -> Tensor:
        values = sr_image.mean((1, 2, 3))
        if len(sr_image) == K * N:
            calls.append(1)
            if at(len(calls) - 1):
                if how == "raises":
                    raise ValueError("no edges in picture 3")
                values[3] = math.nan
        return values

    return Metric("failing", function, differentiable=False)


@pytest.mark.parametrize("how", ["raises", "returns NaN"])
def test_update_that_the_metric_spoils_is_skipped_and_counted(how: str, make_model: MakeModel) -> None:
    model = make_model(failing(lambda call: call in (1, 2), how))
    steps: list[int] = []
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(model.num_timesteps // (K * N)))
    with pytest.warns(UserWarning, match=r"an update was skipped, [12] so far: .*picture-\d") as warned:
        model.learn(5 * K * N)
    assert len([w for w in warned if "an update was skipped" in str(w.message)]) == 2
    assert steps == [1, 4, 5]
    assert model.n_skipped == 2
    assert model.num_timesteps == 5 * K * N
    assert all(weight.isfinite().all() for weight in weights_of(model).values())


@pytest.mark.parametrize("how", ["raises", "returns NaN"])
@pytest.mark.filterwarnings("ignore:an update was skipped")
def test_metric_that_goes_on_failing_ends_the_training(how: str, make_model: MakeModel) -> None:
    model = make_model(failing(lambda call: call >= 1, how), max_skipped=2)
    with pytest.raises(ValueError, match=r"failed 3 times in a row, more than max_skipped = 2.*picture-\d"):
        model.learn(20 * K * N)
    assert model.n_skipped == 3


@pytest.mark.filterwarnings("ignore:an update was skipped")
def test_failures_count_in_a_row_only(make_model: MakeModel) -> None:
    model = make_model(failing(lambda call: call % 3 != 0, "raises"), max_skipped=2)
    model.learn(9 * K * N)
    assert model.n_skipped == 6


@pytest.mark.filterwarnings("ignore:an update was skipped")
def test_patches_on_which_the_metric_fails_from_the_start_are_left(make_model: MakeModel) -> None:
    calls: list[int] = []

    def function(sr_image: Tensor, hr_image: Tensor) -> Tensor:
        calls.append(len(sr_image))
        if len(calls) in (4, 5):  # after the first patches, the group, and its mean: the first pictures of new patches
            raise ValueError("no edges")
        return sr_image.mean((1, 2, 3))

    model = make_model(Metric("failing", function, differentiable=False))
    model.learn(3 * K * N)
    assert calls[:6] == [N, K * N, N, N, N, N]
    assert model.n_skipped == 1
    assert model._n_updates == 2


@pytest.mark.filterwarnings("ignore:an update was skipped")
def test_generator_that_broke_is_reported(make_model: MakeModel) -> None:
    model = make_model(max_skipped=1)
    with th.no_grad():
        model.policy.decoder.layers[-1].convolution.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="an action is NaN or infinite; check the weights"):
        model.learn(5 * K * N)


# --- SRGAN's losses


@pytest.fixture
def make_callback(make_update: Callable[..., AdversarialUpdate]) -> Callable[..., AdversarialLossCallback]:
    def make(**config: Any) -> AdversarialLossCallback:
        config = {"weights": WITHOUT_CONTENT} | config
        return AdversarialLossCallback(lambda generator: make_update(generator, **config))

    return make


@pytest.mark.parametrize("schedule", ["update", "step"])
def test_srgan_is_injected_once_in_every_update(
    schedule: Any, make_model: MakeModel, make_update: Callable[..., AdversarialUpdate]
) -> None:
    model = make_model()
    callback = AdversarialLossCallback(lambda generator: make_update(generator, weights=WITHOUT_CONTENT), schedule)
    own: list[int] = []
    model.policy.optimizer.register_step_post_hook(lambda *_: own.append(1))
    model.learn(3 * K * N, callback=callback)
    update = callback.adversarial
    assert update.n_updates == callback.n_steps_of_trunk == len(own) == 3
    assert not update.decoder_optimizer.state_dict()["state"]  # the policy's optimiser steps the decoder
    decoder = [id(parameter) for parameter in model.policy.decoder.parameters()]
    state = model.policy.optimizer.state
    assert [int(state[p]["step"]) for p in model.policy.decoder.parameters()] == [3] * len(decoder)


class SeeGradients(BaseCallback):
    """Keeps the gradient that the optimiser steps with; put it last."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[Tensor] = []

    def _on_training_start(self) -> None:
        self.model.policy.optimizer.register_step_pre_hook(self._keep)

    def _keep(self, *_: Any) -> None:
        self.gradients.append(th.cat([p.grad.flatten() for p in self.model.policy.generator.parameters()]))

    def _on_step(self) -> bool:
        return True


def test_both_gradients_arrive(make_model: MakeModel, make_callback: Callable[..., AdversarialLossCallback]) -> None:
    gradients = []
    for coefficient, weights in ((5.0, NOTHING), (0.0, WITHOUT_CONTENT), (5.0, WITHOUT_CONTENT)):
        model, last = make_model(policy_coef=coefficient, max_grad_norm=math.inf), SeeGradients()
        model.learn(K * N, callback=[make_callback(weights=weights), last])
        gradients += last.gradients
    rl, srgan, both = gradients
    assert rl.norm() > 1e-3 and srgan.norm() > 1e-3
    assert th.allclose(both, rl + srgan, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("adversarial", [0.0, 1e-3])
def test_without_its_own_gradient_it_is_plain_srgan_to_the_bit(
    adversarial: float,
    make_model: MakeModel,
    make_update: Callable[..., AdversarialUpdate],
    make_callback: Callable[..., AdversarialLossCallback],
    small_config: GeneratorConfig,
) -> None:
    weights = LossWeights(1.0, 0.0, adversarial)
    model, callback = make_model(config=small_config, policy_coef=0.0), make_callback(weights=weights)
    generator = copy.deepcopy(model.policy.generator)
    start = copy.deepcopy(generator.state_dict())
    model.learn(5 * K * N, callback=callback)
    update = make_update(generator, weights=weights)
    optimizer = th.optim.Adam(generator.parameters(), lr=1e-3)
    update.attach(optimizer)
    train(generator, NoObjective(), optimizer, 5, 1.0)
    assert not equal(
        dict(generator.named_parameters()), {name: start[name] for name, _ in generator.named_parameters()}
    )
    assert equal(dict(model.policy.generator.state_dict()), dict(generator.state_dict()))
    own, other = callback.adversarial.averaged_generator(), update.averaged_generator()
    assert equal(dict(own.state_dict()), dict(other.state_dict()))


def test_batch_norms_statistics_are_not_rls(make_model: MakeModel, small_config: GeneratorConfig) -> None:
    model = make_model(config=small_config)
    buffers = {name: buffer.clone() for name, buffer in model.policy.generator.named_buffers()}
    model.learn(3 * K * N)
    assert buffers and equal(dict(model.policy.generator.named_buffers()), buffers)


def test_environments_own_generator_needs_no_warning(
    make_model: MakeModel, make_callback: Callable[..., AdversarialLossCallback], recwarn: pytest.WarningsRecorder
) -> None:
    make_model().learn(K * N, callback=make_callback())
    assert not [warning for warning in recwarn if "judges another generator" in str(warning.message)]


def test_callback_may_end_the_training(make_model: MakeModel) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 3

    model = make_model()
    model.learn(10 * K * N, callback=Stop())
    assert model.num_timesteps == 3 * K * N
    assert model._n_updates == 2


# --- seeds, files


def test_seed_decides_everything(make_model: MakeModel, make_callback: Callable[..., AdversarialLossCallback]) -> None:
    results = []
    for seed in (0, 0, 1):
        model = make_model(seed=seed)
        model.learn(3 * K * N, callback=make_callback())
        results.append(weights_of(model))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


@pytest.mark.parametrize("with_srgan", [False, True])
def test_goes_on_from_files_as_if_it_had_not_stopped(
    with_srgan: bool,
    make_model: MakeModel,
    make_callback: Callable[..., AdversarialLossCallback],
    make_picture_env: MakeEnv,
    tmp_path: Path,
) -> None:
    settings = {"baseline": "critic", "anchor_weight": 0.1}
    callback = make_callback() if with_srgan else None
    model = make_model(**settings)
    model.learn(2 * K * N, callback=callback)
    # What there is to keep: the model, the callback, the environment's place, and torch's random stream.
    model.save(tmp_path / "model.zip")
    if callback is not None:
        callback.save(tmp_path / "callback.pt")
    place, stream = model.judge.state_dict(), th.get_rng_state()
    model.learn(3 * K * N, callback=callback, reset_num_timesteps=False)

    env = make_picture_env()
    env.load_state_dict(place)
    loaded = GRPO.load(tmp_path / "model.zip", env=env, force_reset=False)
    resumed = make_callback() if with_srgan else None
    if resumed is not None:
        resumed.load(tmp_path / "callback.pt")
    th.set_rng_state(stream)
    loaded.learn(3 * K * N, callback=resumed, reset_num_timesteps=False)
    assert loaded.num_timesteps == model.num_timesteps == 5 * K * N
    assert equal(loaded.policy.state_dict(), model.policy.state_dict())
    assert equal(loaded.policy.optimizer.state_dict(), model.policy.optimizer.state_dict())
    if callback is not None and resumed is not None:
        assert equal(resumed.state_dict(), callback.state_dict())


def test_loaded_model_predicts_the_same_without_an_environment(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(sigma=lambda remaining: 0.01 + 0.01 * remaining)
    model.learn(2 * K * N)
    model.save(tmp_path / "model.zip")
    loaded = GRPO.load(tmp_path / "model.zip")
    obs = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert loaded.num_timesteps == 2 * K * N
    assert (loaded.group_size, loaded.credit) == (model.group_size, model.credit)


def test_anchor_has_the_generators_arithmetic_after_loading(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(anchor_weight=1.0)
    model.policy.generator.set_compute_dtype(th.bfloat16)
    model.learn(K * N)
    assert model.policy.reference.encoder.compute_dtype == th.bfloat16
    model.save(tmp_path / "model.zip")
    loaded = GRPO.load(tmp_path / "model.zip", env=model.env)
    loaded.policy.generator.set_compute_dtype(th.bfloat16)
    loaded.learn(K * N, reset_num_timesteps=False)
    assert loaded.policy.reference.decoder.compute_dtype == th.bfloat16


# --- environments


@pytest.mark.parametrize("wrap", [GymnasiumVecEnv, lambda env: VecMonitor(GymnasiumVecEnv(env))])
def test_wrapped_environment_is_found(wrap: Any, make_model: MakeModel, make_picture_env: MakeEnv) -> None:
    env = make_picture_env()
    model = make_model(env=wrap(env))
    assert model.judge is env
    model.learn(2 * K * N)
    assert model._n_updates == 2


def test_environment_by_its_id() -> None:
    settings = {"policy_kwargs": {"generator_config": GeneratorConfig(scale=4, channels=4, n_blocks=1)}}
    model = GRPO("GeneratorPolicy", "rlsr/SuperResolution-v0", group_size=4, seed=0, device="cpu", **settings)
    assert model.n_envs == 1
    model.learn(3 * 4)  # the scalar environment does not reset itself
    assert model._n_updates == 3
    assert model.n_skipped == 0


def test_environment_from_make_vec(patch_source: PatchSource) -> None:
    env = gymnasium.make_vec("rlsr/SuperResolution-v0", num_envs=2, source=patch_source, metric="ssim")
    model = GRPO("GeneratorPolicy", env, group_size=4, device="cpu", policy_kwargs={"generator_config": TINY})
    model.learn(2 * 4 * 2)
    assert model.judge is env.unwrapped
    assert model._by_block
    assert model._n_updates == 2


def test_environment_that_does_not_reset_itself_is_reset(make_model: MakeModel, make_picture_env: MakeEnv) -> None:
    model = make_model(env=make_picture_env(autoreset_mode="DISABLED", episode_length=2))
    places: list[Any] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            places.append(model.judge.state_dict()["index"])
            return True

    model.learn(4 * K * N, callback=Look())
    assert model.n_skipped == 0
    assert places[0] != places[1] == places[2] != places[3]


@pytest.mark.parametrize(
    "make",
    [
        lambda source: RestorationVectorEnv(2, source=source),
        lambda source: RestorationVectorEnv(2, task="detail_control", source=source),
        lambda source: GymnasiumVecEnv(RestorationVectorEnv(2, source=source)),
        lambda source: gymnasium.make("CartPole-v1"),
        lambda source: gymnasium.make_vec(
            "CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": "SameStep"}
        ),
        lambda source: DummyVecEnv([lambda: gymnasium.make("rlsr/SuperResolution-v0", source=source)]),
    ],
)
def test_environment_that_cannot_judge_several_pictures_is_refused(make: Any, patch_source: PatchSource) -> None:
    with pytest.raises(TypeError, match=r"GRPO needs an environment that judges several pictures of one patch, got"):
        GRPO("GeneratorPolicy", make(patch_source), policy_kwargs={"generator_config": TINY})


def test_generator_of_another_scale_is_refused(make_picture_env: MakeEnv) -> None:
    with pytest.raises(ValueError, match="a generator of scale 4 makes pictures"):
        GRPO("GeneratorPolicy", make_picture_env())


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 2}, "group_size must be an even integer of 4 or more, got 2"),
        ({"group_size": 5}, "group_size must be an even integer of 4 or more, got 5"),
        ({"group_size": 8.0}, "group_size must be an even integer of 4 or more, got 8.0"),
        ({"group_size": True}, "group_size must be an even integer of 4 or more, got True"),
        ({"baseline": "mean"}, "unknown baseline 'mean'; known: group, leave_one_out, critic"),
        ({"credit": "pixel"}, "unknown credit 'pixel'; known: auto, block, picture"),
        ({"noise_blur": -1.0}, "noise_blur must be 0 or more pixels, got -1.0"),
        ({"policy_coef": -1.0}, "policy_coef must be 0 or more, got -1.0"),
        ({"anchor_weight": math.nan}, "anchor_weight must be 0 or more, got nan"),
        ({"max_skipped": -1}, "max_skipped must be 0 or more, got -1"),
        ({"max_flat": -1}, "max_flat must be 0 or more, got -1"),
        ({"sigma": 0.0}, "sigma must be above 0, got 0"),
        ({"sigma": lambda remaining: remaining - 1.0}, "sigma must be above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str, make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**settings)


def test_sigma_that_falls_to_zero_is_refused_when_it_gets_there(make_model: MakeModel) -> None:
    model = make_model(sigma=lambda remaining: 0.1 * (remaining - 0.5))
    with pytest.raises(ValueError, match="sigma must be above 0, got 0"):
        model.learn(4 * K * N)
    assert model.num_timesteps == 2 * K * N


def test_credit_goes_to_blocks_where_the_metric_has_a_map(make_model: MakeModel) -> None:
    without = [name for name, judge in METRICS.items() if judge.block_map is None and judge.min_size <= 16]
    assert make_model("psnr")._by_block and make_model("ssim")._by_block
    assert not make_model("psnr", credit="picture")._by_block
    assert not make_model(without[0])._by_block


def test_credit_by_block_needs_a_map(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="constant judges whole pictures only and has no map over blocks"):
        make_model(CONSTANT, credit="block")


def test_credit_by_block_needs_patches_that_blocks_fill(patch_source: PatchSource, make_model: MakeModel) -> None:
    # The codec and the pictures of the fixture, in patches of 5 LR pixels.
    odd = copy.copy(patch_source)
    odd.lr_patch_size, odd.hr_patch_size = 5, 10
    with pytest.raises(ValueError, match="take a patch size that is a multiple of 8"):
        make_model(env=RestorationVectorEnv(2, task="super_resolution", source=odd, metric="psnr"))
