import json
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from torch import Tensor

from rlsr_env.codec import LRCodec
from rlsr_env.detail import DetailControl, blur, mix_bands, split_bands
from rlsr_env.images import DecodedImages
from rlsr_env.patches import PatchSource, to_float
from rlsr_env.resample import upsample
from rlsr_env.rounding import to_8bit
from rlsr_env.vector_env import RestorationVectorEnv

ENV_ID = "rlsr/DetailControl-v0"
SEEDS = st.integers(0, 2**32 - 1)


def pictures(seed: int, n: int = 2, size: tuple[int, int] = (24, 20)) -> Tensor:
    """Noise `(n, 3, *size)` float64 in [0, 1]."""
    return torch.from_numpy(np.random.default_rng(seed).random((n, 3, *size)))


class Contrast:
    """Lanczos with more or less contrast; counts its calls."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.n_calls = 0

    def __call__(self, lr_image: Tensor) -> Tensor:
        self.n_calls += 1
        return 0.5 + self.factor * (upsample(lr_image, 2) - 0.5)


def make(source: PatchSource, num_envs: int = 2, **options: Any) -> tuple[RestorationVectorEnv, DetailControl]:
    """The environments as they are registered, on these patches; and their task."""
    env = gymnasium.make_vec(ENV_ID, num_envs, source=source, **options)
    assert isinstance(env, RestorationVectorEnv) and isinstance(env.task, DetailControl)
    return env, env.task


def everywhere(*levels: float, grid_size: int = 4, num_envs: int = 2) -> np.ndarray:
    """One action for each band, the same in all cells and environments."""
    return np.tile(np.repeat(np.array(levels, np.float32), grid_size**2), (num_envs, 1))


# Bands


@pytest.mark.parametrize("deviation", [0.35, 0.7, 1.4, 2.8])
def test_blur_agrees_with_scipy(deviation: float) -> None:
    image = pictures(0)
    expected = gaussian_filter(image.numpy(), deviation, mode="mirror", truncate=3.0, axes=(2, 3))
    assert blur(image, deviation).numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (30, 3)])
def test_a_picture_smaller_than_the_blur_is_blurred_as_far_as_it_reaches(size: tuple[int, int]) -> None:
    image = pictures(0, size=size)
    blurred = blur(image, 10.0)
    assert blurred.shape == image.shape
    assert blurred.min() >= image.min() - 1e-12 and blurred.max() <= image.max() + 1e-12
    assert blur(torch.full_like(image, 0.3), 10.0).numpy() == pytest.approx(0.3, abs=1e-12)


def test_a_constant_picture_has_no_detail() -> None:
    bands = split_bands(torch.full((2, 3, 32, 32), 0.7), scale=4, n_bands=3)
    assert bands.shape == (2, 3, 3, 32, 32)
    assert bands.abs().max() < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@given(seed=SEEDS, n_bands=st.integers(1, 4), scale=st.integers(2, 4))
@settings(deadline=None, max_examples=20)
def test_the_bands_and_the_smoothest_picture_add_up_to_the_picture(
    dtype: torch.dtype, tolerance: float, seed: int, n_bands: int, scale: int
) -> None:
    image = pictures(seed).to(dtype)
    bands = split_bands(image, scale, n_bands)
    assert bands.dtype == dtype
    smoothest = blur(image, 0.35 * 2 ** (n_bands - 1) * scale)
    assert (bands.sum(1) + smoothest - image).abs().max() < tolerance


def test_bands_lie_between_blurs_of_doubling_width_finest_first() -> None:
    image = pictures(0)
    bands = split_bands(image, scale=2, n_bands=3)
    smoother = [image.numpy()] + [
        gaussian_filter(image.numpy(), deviation, mode="mirror", truncate=3.0, axes=(2, 3))
        for deviation in (0.7, 1.4, 2.8)
    ]
    for k in range(3):
        assert bands[:, k].numpy() == pytest.approx(smoother[k] - smoother[k + 1], abs=1e-12)


def test_fine_waves_are_in_the_finest_band_and_slow_ones_are_not() -> None:
    column = torch.arange(64, dtype=torch.float64)
    # exp(-x / 2) - exp(-2 x), the response of a band between blurs s and 2 s, is largest at a period of 6.54 s.
    for period, strongest in ((2, 0), (0.7 * 6.54, 1), (1.4 * 6.54, 2)):
        wave = torch.cos(2 * torch.pi * column / period).expand(1, 3, 64, 64)
        energy = split_bands(wave, scale=2, n_bands=3)[..., 16:-16, 16:-16].square().mean(dim=(0, 2, 3, 4))
        assert energy.argmax() == strongest


@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_strengths_of_zero_leave_the_picture_exactly(seed: int) -> None:
    image = pictures(seed).float()
    assert torch.equal(mix_bands(image, split_bands(image, 2, 3), torch.zeros(2, 3, 4, 4)), image)


@given(seed=SEEDS, band=st.integers(0, 2), strength=st.floats(-1, 2))
@settings(deadline=None, max_examples=20)
def test_a_strength_everywhere_adds_so_much_of_its_band(seed: int, band: int, strength: float) -> None:
    image = pictures(seed)
    bands = split_bands(image, 2, 3)
    strengths = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    strengths[:, band] = strength
    assert (mix_bands(image, bands, strengths) - (image + strength * bands[:, band])).abs().max() < 1e-14


def test_without_the_finest_band_its_blur_is_left_and_without_all_the_smoothest() -> None:
    image = pictures(0)
    bands = split_bands(image, 2, 3)
    strengths = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    strengths[:, 0] = -1
    assert (mix_bands(image, bands, strengths) - blur(image, 0.7)).abs().max() < 1e-14
    assert (mix_bands(image, bands, torch.full_like(strengths, -1)) - blur(image, 2.8)).abs().max() < 1e-14


def test_a_cell_reaches_to_the_centre_of_the_next_one() -> None:
    image = pictures(0, n=1, size=(16, 16))
    bands = split_bands(image, 2, 1)
    strengths = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    strengths[0, 0, 0, 2] = 1  # its centre is at row 2 and column 10, counted from the border
    share = ((mix_bands(image, bands, strengths) - image) / bands[:, 0])[0, 0]
    # Row centres at 0.5 and 1.5 lie before the first cell's; then it falls by a quarter per row, to 0 at row 6.
    rows = [1, 1, 0.875, 0.625, 0.375, 0.125, *[0] * 10]
    columns = [*[0] * 6, 0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125, 0, 0]
    assert share.numpy() == pytest.approx(np.outer(rows, columns), abs=1e-9)


def test_the_mix_has_the_right_gradient() -> None:
    image = pictures(0, n=2, size=(6, 6))
    bands = split_bands(image, 2, 2)
    strengths = torch.zeros(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda strengths: mix_bands(image, bands, strengths), (strengths,))


# The task


def test_spaces_count_bands_and_cells(patch_source: PatchSource) -> None:
    env, _ = make(patch_source)
    assert env.single_action_space.shape == (3 * 4 * 4,)
    assert env.single_observation_space.shape == (3 + 3, 8, 8)
    env, task = make(patch_source, n_bands=2, grid_size=3)
    assert env.single_action_space.shape == (2 * 3 * 3,)
    assert env.single_observation_space.shape == (3 + 2, 8, 8)
    assert task.n_channels == 5


def test_strengths_add_up_and_are_clipped_by_hand(patch_source: PatchSource) -> None:
    env, task = make(patch_source, max_change=0.75, episode_length=5)
    env.reset(seed=0)
    by_hand = [
        # changes of a band everywhere, strengths after them: -1 and 2 are the bounds, and nothing is kept beyond them
        ((1.0, -1.0, 0.5), (0.75, -0.75, 0.375)),
        ((1.0, -1.0, -0.5), (1.5, -1.0, 0.0)),
        ((1.0, 1.0, 0.0), (2.0, -0.25, 0.0)),
    ]
    for changes, strengths in by_hand:
        env.step(everywhere(*changes))
        assert (task.strengths == torch.tensor(strengths)[:, None, None]).all()
    env.step(everywhere(-9.0, 0.0, 0.0))  # an action beyond -1 counts as -1
    assert (task.strengths[:, 0] == 1.25).all()


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_the_picture_is_the_generators_with_the_strengths_of_now(metric: str, patch_source: PatchSource) -> None:
    env, task = make(patch_source, metric=metric, generator=Contrast(0.8), render_mode="rgb_array")
    obs, infos = env.reset(seed=0)
    restored = Contrast(0.8)(torch.from_numpy(obs[:, :3]).float() / 255)
    bands = split_bands(restored, 2, 3)
    rng = np.random.default_rng(0)
    strengths, before = torch.zeros(2, 3, 4, 4), infos[metric]
    for _ in range(2):
        actions = rng.uniform(-1, 1, (2, 48)).astype(np.float32)
        strengths = (strengths + torch.from_numpy(actions).reshape(2, 3, 4, 4)).clamp(-1, 2)
        expected = to_8bit(mix_bands(restored, bands, strengths))
        _, rewards, _, _, infos = env.step(actions)
        assert torch.equal(task.strengths, strengths)
        assert infos[metric] == pytest.approx(env.metric(expected, to_float(env.hr_patches)).numpy(), abs=1e-4)
        assert rewards == pytest.approx(infos[metric] - before, abs=1e-6)
        before = infos[metric]
        frames = env.render()
        assert frames is not None
        for frame, sr_image in zip(frames, (expected * 255).round().permute(0, 2, 3, 1).numpy(), strict=True):
            assert np.abs(frame[:16, 16:] - sr_image).max() <= 1


def test_actions_go_band_by_band_and_row_by_row_into_the_observation(patch_source: PatchSource) -> None:
    env, _ = make(patch_source)
    obs, _ = env.reset(seed=0)
    assert (obs[:, 3:] == 85).all()  # strengths of 0
    actions = np.zeros((2, 48), np.float32)
    actions[0, 16 + 4 * 1 + 2] = -1  # band 1, row 1, column 2
    actions[1, 47] = 1  # the last cell of the last band
    for expected in (170, 255):
        later = env.step(actions)[0]
        assert np.array_equal(later[:, :3], obs[:, :3])
        cells = later[:, 3:].copy()
        assert (cells[0, 1, 2:4, 4:6] == 0).all() and (cells[1, 2, 6:, 6:] == expected).all()
        cells[0, 1, 2:4, 4:6] = cells[1, 2, 6:, 6:] = 85
        assert (cells == 85).all()


def test_the_generator_is_asked_once_an_episode(patch_source: PatchSource) -> None:
    generator = Contrast()
    env, _ = make(patch_source, generator=generator)
    env.reset(seed=0)
    asked = []
    for _ in range(6):
        asked.append(generator.n_calls)
        env.step(everywhere(0.1, 0.1, 0.1))
    assert asked == [1, 1, 1, 2, 2, 2]


def test_an_episode_keeps_the_picture_that_it_started_with(patch_source: PatchSource) -> None:
    generator = Contrast(1.0)
    env, _ = make(patch_source, generator=generator)
    env.reset(seed=0)
    generator.factor = 0.1
    assert env.step(everywhere(0, 0, 0))[1].tolist() == [0.0, 0.0]


def test_a_new_episode_starts_without_strengths(patch_source: PatchSource) -> None:
    env, task = make(patch_source)
    env.reset(seed=0)
    for _ in range(3):
        obs, _, _, _, infos = env.step(everywhere(1, 1, 1))
    assert (obs[:, 3:] == 85).all() and (task.strengths == 0).all()
    assert all((last[3:] == 255).all() for last in infos["final_obs"])


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_a_partial_reset_leaves_the_others_strengths_and_bands(mode: AutoresetMode, patch_source: PatchSource) -> None:
    generator = Contrast(1.0)
    env, task = make(patch_source, 3, autoreset_mode=mode, generator=generator)
    env.reset(seed=0)
    obs = env.step(np.random.default_rng(0).uniform(-1, 1, (3, 48)).astype(np.float32))[0]
    generator.factor = 0.5  # so that bands made anew would be others
    before = [tensor.clone() for tensor in (task.strengths, task._restored, task._bands)]
    later, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert np.array_equal(later[[0, 2]], obs[[0, 2]])
    assert (later[1, 3:] == 85).all()
    for tensor, one_before in zip((task.strengths, task._restored, task._bands), before, strict=True):
        assert torch.equal(tensor[[0, 2]], one_before[[0, 2]])
        assert not torch.equal(tensor[1], one_before[1])
    # To go on without a change is to keep the value, to a picture of the generator that is no more.
    assert env.step(everywhere(0, 0, 0, num_envs=3))[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("n_steps", [0, 1, 2, 4])
def test_a_copy_goes_on_exactly_from_the_state_in_json(n_steps: int, patch_source: PatchSource) -> None:
    env, copy = (make(patch_source, metric="psnr", generator=Contrast(0.9))[0] for _ in range(2))
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 2, 48)).astype(np.float32)
    for i in range(n_steps):
        env.step(actions[i])
    copy.load_state_dict(json.loads(json.dumps(env.state_dict())))
    assert torch.equal(copy.task.mix(copy.task.strengths), env.task.mix(env.task.strengths))  # type: ignore[attr-defined]
    for i in range(n_steps, 8):
        assert data_equivalence(env.step(actions[i]), copy.step(actions[i]), exact=True)


def test_a_state_from_before_the_first_episode_is_a_state_too(patch_source: PatchSource) -> None:
    fresh, used = (make(patch_source)[0] for _ in range(2))
    used.reset(seed=0)
    used.step(everywhere(1, 1, 1))
    used.load_state_dict(json.loads(json.dumps(fresh.state_dict())))
    assert data_equivalence(used.reset(seed=3), fresh.reset(seed=3), exact=True)
    assert data_equivalence(used.step(everywhere(1, 0, 0)), fresh.step(everywhere(1, 0, 0)), exact=True)


def test_bands_of_another_patch_size_or_number_are_replaced(patch_source: PatchSource) -> None:
    task = DetailControl()
    for n, size in ((2, 8), (2, 9), (3, 9)):
        sr_image = task.start(torch.ones(n, dtype=torch.bool), torch.rand(n, 3, size, size), Contrast())
        assert sr_image.shape == (n, 3, 2 * size, 2 * size)
        assert torch.equal(task.mix(task.strengths), sr_image)


def test_the_finest_band_counts_for_waves_and_not_for_a_flat_picture() -> None:
    waves = np.tile(np.array([[60], [190]], np.uint8).repeat(2, 0), (16, 64))
    hr_images = tuple(np.repeat(grey[..., None], 3, axis=2) for grey in (waves, np.full_like(waves, 128)))
    source = PatchSource(DecodedImages(("waves", "flat"), hr_images, ()), LRCodec(2, quality=100), 16)
    env, _ = make(source, 2, metric="psnr", generator=lambda lr_image: upsample(lr_image, 2, "bicubic"))
    env.reset(seed=0, options={"uri": ["waves", "flat"]})
    rewards = env.step(everywhere(-1, 0, 0))[1]
    assert rewards[0] < -1 and rewards[1] == 0.0


# Errors


@pytest.mark.parametrize("name", ["n_bands", "grid_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "2", None])
def test_a_count_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer of 1 or more, got {value!r}"):
        DetailControl(**{name: value})


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), float("inf")])
def test_a_change_that_is_not_finite_and_above_0_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"max_change must be finite and above 0, at most 1e6, got {value}"):
        DetailControl(max_change=value)


def test_a_grid_finer_than_the_patch_is_refused(patch_source: PatchSource) -> None:
    make(patch_source, grid_size=8)
    with pytest.raises(ValueError, match="grid_size 9 is finer than the LR patch of 8 pixels; take less"):
        make(patch_source, grid_size=9)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"task": "psnr_prediction"}, r"holds \[\] with strengths \(\)"),
        ({"n_bands": 2}, r"holds \['strengths'\] with strengths \(2, 2, 4, 4\)"),
        ({"grid_size": 2}, r"holds \['strengths'\] with strengths \(2, 3, 2, 2\)"),
    ],
)
def test_the_state_of_another_task_is_refused_and_changes_nothing(
    options: dict[str, Any], got: str, patch_source: PatchSource
) -> None:
    env, _ = make(patch_source)
    env.reset(seed=0)
    env.step(everywhere(0.5, 0, 0))
    before = env.state_dict()
    other = RestorationVectorEnv(2, source=patch_source, **{"task": "detail_control", **options})
    other.reset(seed=1)
    with pytest.raises(ValueError, match=rf"task detail_control needs strengths \(2, 3, 4, 4\), the state {got}"):
        env.load_state_dict(other.state_dict())
    assert env.state_dict() == before


def test_a_generator_of_another_scale_is_refused_and_a_right_one_goes_on(patch_source: PatchSource) -> None:
    env, _ = make(patch_source, generator=lambda lr_image: upsample(lr_image, 4))
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 32\) .* \(2, 3, 16, 16\); give a generator of scale 2"):
        env.reset(seed=0)
    env.generator = Contrast()
    env.reset(seed=0)
    assert env.step(everywhere(0, 0, 0))[1].tolist() == [0.0, 0.0]
