import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gan.adversarial import AdversarialConfig, AdversarialUpdate, SRGANTraining
from gan.content import ContentLoss
from gan.generator import Generator, GeneratorConfig
from gan.losses import LossWeights
from gan.training import PatchSampler, Pretraining, moving_average
from rlsr_env.patches import PatchSource

MakeGenerator = Callable[..., Generator]
MakeSampler = Callable[..., PatchSampler]
MakeUpdate = Callable[..., AdversarialUpdate]
MSE_ONLY = LossWeights(1.0, 0.0, 0.0)
NOTHING = LossWeights(0.0, 0.0, 0.0)


def equal(first: Any, second: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from a checkpoint, read without unpickling any code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# --- PatchSampler


def test_sampler_of_the_same_seed_gives_the_same_batches(make_sampler: MakeSampler) -> None:
    first, same, other = make_sampler(seed=3), make_sampler(seed=3), make_sampler(seed=4)
    for _ in range(3):
        (lr_image, hr_image), again, different = first.batch(), same.batch(), other.batch()
        assert torch.equal(lr_image, again[0])
        assert torch.equal(hr_image, again[1])
        assert not torch.equal(lr_image, different[0])


def test_sampler_gives_float_pictures_of_the_sources_size(make_sampler: MakeSampler) -> None:
    lr_image, hr_image = make_sampler(batch_size=5).batch()
    assert lr_image.shape == (5, 3, 8, 8)
    assert hr_image.shape == (5, 3, 16, 16)
    for image in (lr_image, hr_image):
        assert image.dtype == torch.float32
        assert 0 <= image.min() < image.max() <= 1


def test_sampler_goes_on_from_its_state(make_sampler: MakeSampler) -> None:
    sampler = make_sampler()
    sampler.batch()
    state = through_a_file(sampler.state_dict())
    expected = [sampler.batch() for _ in range(2)]
    resumed = make_sampler(seed=99)
    resumed.load_state_dict(state)
    assert equal([resumed.batch() for _ in range(2)], expected)


def test_sampler_refuses_an_empty_batch(patch_source: PatchSource) -> None:
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        PatchSampler(patch_source, 0, 0)


# --- moving average


class OneOfEach(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def set(self, value: int) -> None:
        with torch.no_grad():
            for tensor in (self.weight, self.get_buffer("running_mean"), self.get_buffer("num_batches_tracked")):
                tensor.fill_(value)


def test_moving_average_by_hand() -> None:
    network = OneOfEach()
    ema = moving_average(network, 0.2)
    average = 0.0
    # The first update copies; then the decay is (1 + 1) / (10 + 1), and from (1 + 2) / (10 + 2) on the 0.2 asked for.
    for value, decay in [(11, 0.0), (22, 2 / 11), (40, 0.2), (70, 0.2)]:
        network.set(value)
        ema.update_parameters(network)
        average = decay * average + (1 - decay) * value
        assert ema.module.weight.tolist() == pytest.approx([average, average])
        assert ema.module.running_mean.item() == pytest.approx(average)
        assert ema.module.num_batches_tracked.item() == value
    assert average == pytest.approx(0.2 * (0.2 * 20 + 0.8 * 40) + 0.8 * 70)


def test_moving_average_holds_batch_norms_statistics(make_generator: MakeGenerator) -> None:
    generator = make_generator()
    ema = moving_average(generator, 0.99)
    ema.update_parameters(generator)
    norm, averaged = generator.encoder.tail[1], ema.module.encoder.tail[1]
    with torch.no_grad():
        norm.running_var.fill_(12.0)
    ema.update_parameters(generator)
    assert averaged.running_var.tolist() == pytest.approx([2 / 11 * 1.0 + 9 / 11 * 12.0] * 8)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_moving_average_refuses_a_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\)"):
        moving_average(nn.Linear(1, 1), decay)


def test_averaged_generator_is_a_copy_for_use(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    training = SRGANTraining(make_update(make_generator(), weights=MSE_ONLY), 2)
    training.update()
    averaged = training.adversarial.averaged_generator()
    assert not averaged.training
    assert all(parameter.requires_grad for parameter in averaged.parameters())
    before = copy_of(averaged)
    assert equal(before, copy_of(training.adversarial.generator))  # the first update copies
    training.update()
    assert equal(copy_of(averaged), before)


# --- Pretraining


def test_pretraining_lowers_the_loss(make_generator: MakeGenerator, make_sampler: MakeSampler) -> None:
    generator = make_generator(GeneratorConfig(scale=2, channels=8, n_blocks=1, base="none"))
    stage = Pretraining(generator, make_sampler(batch_size=8), n_updates=150, learning_rate=5e-3)
    losses = [stage.update()["gan/l1"].item() for _ in range(150)]
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:5])
    assert stage.n_done == 150
    lr_image, hr_image = make_sampler(seed=8, batch_size=16).batch()
    with torch.no_grad():
        assert (stage.averaged_generator()(lr_image) - hr_image).abs().mean() < 0.4 * np.mean(losses[:5])


def test_pretraining_goes_on_as_if_it_had_not_stopped(make_generator: MakeGenerator, make_sampler: MakeSampler) -> None:
    whole = Pretraining(make_generator(), make_sampler(), n_updates=6)
    for _ in range(3):
        whole.update()
    state = through_a_file(whole.state_dict())
    rest = [whole.update() for _ in range(3)]
    resumed = Pretraining(make_generator(seed=5), make_sampler(seed=5), n_updates=6)
    resumed.load_state_dict(state)
    assert resumed.n_done == 3
    assert equal([resumed.update() for _ in range(3)], rest)
    assert equal(resumed.state_dict(), whole.state_dict())


def test_pretraining_warms_up_and_falls_by_a_cosine(make_generator: MakeGenerator, make_sampler: MakeSampler) -> None:
    n_updates, height = 40, 1e-2
    stage = Pretraining(make_generator(), make_sampler(), n_updates, learning_rate=height)
    rates = []
    for _ in range(n_updates):
        rates.append(stage.optimizer.param_groups[0]["lr"])
        stage.update()
    warm_up = 4  # a tenth of the stage
    expected = [
        height * (min(1, (n + 1) / warm_up) * (1 + math.cos(math.pi * n / n_updates)) / 2 + 1e-3)
        for n in range(n_updates)
    ]
    assert rates == pytest.approx(expected)
    assert rates[3] == max(rates)


def test_pretraining_leaves_the_generator_in_evaluation_mode(
    make_generator: MakeGenerator, make_sampler: MakeSampler
) -> None:
    generator = make_generator()
    statistics = generator.encoder.tail[1].running_mean.clone()
    Pretraining(generator, make_sampler(), 1).update()
    assert not any(module.training for module in generator.modules())
    assert not torch.equal(generator.encoder.tail[1].running_mean, statistics)


def test_scales_that_differ_are_refused(make_generator: MakeGenerator, make_sampler: MakeSampler) -> None:
    generator = make_generator(GeneratorConfig(scale=4, channels=8, n_blocks=1))
    for build in (
        lambda: Pretraining(generator, make_sampler(), 1),
        lambda: AdversarialUpdate(generator, make_sampler()),
    ):
        with pytest.raises(ValueError, match=r"the generator upsamples by 4, .* are shrunk by 2; give both the same"):
            build()


# --- AdversarialUpdate


def test_gradient_is_the_existing_one_plus_the_injected(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    plain, loaded = make_generator(), make_generator()
    existing = {}
    for name, parameter in loaded.encoder.named_parameters():
        existing[name] = torch.randn(parameter.shape)
        parameter.grad = existing[name].clone()
    make_update(plain).before_step()
    make_update(loaded).before_step()
    injected = dict(plain.named_parameters())
    for name, parameter in loaded.encoder.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, existing[name] + injected[f"encoder.{name}"].grad), name
    for name, parameter in loaded.decoder.named_parameters():
        assert torch.equal(parameter.grad, injected[f"decoder.{name}"].grad), name


def test_gradient_is_the_losss_own(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    generator, reference = make_generator(), make_generator()
    update = make_update(generator, weights=LossWeights(3.0, 0.0, 0.0))
    update.before_step()
    lr_image, hr_image = make_update(make_generator()).sampler.batch()
    (3.0 * (reference.train()(lr_image) - hr_image).square().mean()).backward()
    for parameter, expected in zip(generator.parameters(), reference.parameters(), strict=True):
        assert (parameter.grad - expected.grad).norm() < 1e-4 * expected.grad.norm()


def test_zero_weights_add_no_hooks_and_change_nothing(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    generator = make_generator()
    update = make_update(generator, weights=NOTHING)
    optimizer = torch.optim.Adam(generator.encoder.parameters(), lr=0.1)
    before, position = copy_of(generator), update.sampler.state_dict()
    update.attach(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()
    assert equal(copy_of(generator), before)
    assert update.sampler.state_dict() == position
    assert update.n_updates == 0
    assert update.discriminator is None


@pytest.mark.parametrize("weights", [MSE_ONLY, LossWeights()])
def test_decoder_keeps_no_gradient_and_everything_moves(
    weights: LossWeights, make_generator: MakeGenerator, make_update: MakeUpdate
) -> None:
    generator = make_generator()
    training = SRGANTraining(make_update(generator, weights=weights), 1)
    before = copy_of(generator)
    training.update()
    assert all(parameter.grad is None for parameter in generator.decoder.parameters())
    for name, tensor in generator.state_dict().items():
        assert not torch.equal(tensor, before[name]), name


def test_attaching_again_replaces_the_hooks(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    generator = make_generator()
    update = make_update(generator, weights=MSE_ONLY)
    first, second = (torch.optim.SGD(generator.encoder.parameters(), lr=0.1) for _ in range(2))
    update.attach(first)
    update.attach(first)
    first.step()
    assert update.n_updates == 1
    update.attach(second)
    first.step()
    assert update.n_updates == 1
    second.step()
    assert update.n_updates == 2


def test_detached_update_does_nothing(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    training = SRGANTraining(make_update(make_generator(), weights=MSE_ONLY), 1)
    training.update()
    before = copy_of(training.adversarial.generator)
    training.adversarial.detach()
    training.adversarial.detach()
    training.update()
    assert training.n_done == 1
    assert equal(copy_of(training.adversarial.generator), before)


@pytest.mark.parametrize("bound", [1e-3, 1e6])
def test_injected_gradient_is_bounded_as_a_whole(
    bound: float, make_generator: MakeGenerator, make_update: MakeUpdate
) -> None:
    free, bounded = make_generator(), make_generator()
    make_update(free).before_step()
    update = make_update(bounded, max_grad_norm=bound)
    update.before_step()
    free_gradient, gradient = (
        torch.cat([parameter.grad.flatten() for parameter in generator.parameters()]) for generator in (free, bounded)
    )
    logged = update.metrics["gan/grad_norm"].item()
    assert logged == pytest.approx(free_gradient.norm().item(), rel=1e-5)
    assert gradient.norm().item() == pytest.approx(min(bound, logged), rel=1e-2)
    assert torch.allclose(gradient / gradient.norm(), free_gradient / free_gradient.norm(), atol=1e-6)


def test_bound_spares_the_gradient_that_was_there(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    generator = make_generator()
    for parameter in generator.encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    make_update(generator, max_grad_norm=1e-6).before_step()
    for parameter in generator.encoder.parameters():
        assert torch.allclose(parameter.grad, torch.ones_like(parameter), atol=1e-5)


def test_global_random_stream_stays_where_it_is(
    make_generator: MakeGenerator, make_update: MakeUpdate, make_sampler: MakeSampler, content_loss: ContentLoss
) -> None:
    generator = make_generator()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    training = SRGANTraining(make_update(generator, content_loss), 1)
    training.update()
    Pretraining(generator, make_sampler(), 1).update()
    assert torch.equal(torch.get_rng_state(), before)


def test_discriminators_weights_depend_on_the_seed_alone(
    make_generator: MakeGenerator, make_update: MakeUpdate
) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.rand(3)
        discriminator = make_update(make_generator(), seed=seed).discriminator
        assert discriminator is not None
        weights.append(discriminator.features[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_generator_is_in_evaluation_mode_between_updates_yet_learns_its_statistics(
    make_generator: MakeGenerator, make_update: MakeUpdate
) -> None:
    generator = make_generator().train()
    training = SRGANTraining(make_update(generator, weights=MSE_ONLY), 2)
    assert not any(module.training for module in generator.modules())
    training.update()
    assert not any(module.training for module in generator.modules())
    assert generator.encoder.tail[1].num_batches_tracked.item() == 1


def test_update_works_where_gradients_are_switched_off(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    with torch.no_grad():
        update = make_update(make_generator())
        update.before_step()
    assert update.metrics["gan/grad_norm"] > 0


def test_metrics_name_every_term(
    make_generator: MakeGenerator, make_update: MakeUpdate, content_loss: ContentLoss
) -> None:
    metrics = SRGANTraining(make_update(make_generator(), content_loss), 1).update()
    assert set(metrics) == {
        f"gan/{name}"
        for name in ("mse", "content", "adversarial", "loss", "grad_norm", "discriminator", "d_real", "d_fake")
    }
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


def test_content_loss_of_weight_zero_is_not_computed(
    make_generator: MakeGenerator, make_update: MakeUpdate, content_loss: ContentLoss
) -> None:
    update = make_update(make_generator(), content_loss, weights=MSE_ONLY)
    assert update.content_loss is None
    update.before_step()
    assert "gan/content" not in update.metrics


def test_discriminator_learns_to_tell_the_two_apart(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    generator = make_generator(GeneratorConfig(scale=2, channels=8, n_blocks=1, base="none"))
    update = make_update(generator, weights=LossWeights(0.0, 0.0, 1.0), batch_size=4, learning_rate=5e-3)
    for _ in range(20):  # the generator never steps
        update.before_step()
        generator.zero_grad(set_to_none=True)
    assert update.metrics["gan/d_real"] > update.metrics["gan/d_fake"] + 0.2


def test_config_holds_ledigs_rate_by_default() -> None:
    assert AdversarialConfig().learning_rate == 1e-4
    assert AdversarialConfig().weights == LossWeights()


# --- SRGANTraining


@pytest.mark.parametrize("weights", [MSE_ONLY, LossWeights()])
def test_srgan_goes_on_as_if_it_had_not_stopped(
    weights: LossWeights, make_generator: MakeGenerator, make_update: MakeUpdate
) -> None:
    whole = SRGANTraining(make_update(make_generator(), weights=weights), 6)
    for _ in range(3):
        whole.update()
    state = through_a_file(whole.state_dict())
    rest = [whole.update() for _ in range(3)]
    resumed = SRGANTraining(make_update(make_generator(seed=5), weights=weights, seed=5), 6)
    resumed.load_state_dict(state)
    assert resumed.n_done == 3
    assert equal([resumed.update() for _ in range(3)], rest)
    assert equal(resumed.state_dict(), whole.state_dict())


def test_same_seed_same_training(make_generator: MakeGenerator, make_update: MakeUpdate) -> None:
    states = []
    for seed in (0, 0, 1):
        training = SRGANTraining(make_update(make_generator(), seed=seed), 3)
        for _ in range(3):
            training.update()
        states.append(copy_of(training.adversarial.generator))
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_checkpoint_with_and_without_discriminator_do_not_mix(
    make_generator: MakeGenerator, make_update: MakeUpdate
) -> None:
    judged, alone = make_update(make_generator()), make_update(make_generator(), weights=MSE_ONLY)
    for source, target in ((judged, alone), (alone, judged)):
        with pytest.raises(ValueError, match="differ in whether the adversarial weight is zero"):
            target.load_state_dict(source.state_dict())


def test_training_runs_in_bfloat16_with_float32_weights(
    make_generator: MakeGenerator, make_update: MakeUpdate, content_loss: ContentLoss
) -> None:
    exact, rough = (
        SRGANTraining(make_update(make_generator().set_compute_dtype(dtype), content_loss), 3)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for _ in range(3):
        expected, metrics = exact.update(), rough.update()
        assert all(value.dtype == torch.float32 for value in metrics.values())
        assert metrics["gan/mse"].item() == pytest.approx(expected["gan/mse"].item(), rel=0.05)
    assert {parameter.dtype for parameter in rough.adversarial.generator.parameters()} == {torch.float32}


@pytest.mark.gpu
def test_cuda_stream_of_random_numbers_stays_where_it_is(
    make_generator: MakeGenerator, make_update: MakeUpdate
) -> None:
    before = torch.cuda.get_rng_state()
    ContentLoss()
    make_update(make_generator())
    assert torch.equal(torch.cuda.get_rng_state(), before)
