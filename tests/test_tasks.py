import numpy as np
import pytest
import torch
from torch import Tensor

from rlsr_env.detail import DetailControl
from rlsr_env.patches import PatchSource
from rlsr_env.resample import upsample
from rlsr_env.tasks import PartRestorer, PSNRPrediction, SuperResolution, Task, choose_task, known_tasks
from rlsr_env.vector_env import RestorationVectorEnv

EVERY_TASK = pytest.mark.parametrize("task", [PSNRPrediction(0.5), SuperResolution(), DetailControl(n_bands=2)])


def levels(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] as 8-bit levels."""
    return (pictures * 255).round()


# Choice


def test_a_task_by_name_gets_its_options() -> None:
    assert choose_task("psnr_prediction") == PSNRPrediction(0.0)
    assert choose_task("psnr_prediction", accuracy_weight=0.5) == PSNRPrediction(0.5)
    assert choose_task("super_resolution") == SuperResolution()
    assert choose_task("detail_control", n_bands=2, max_change=0.5) == DetailControl(2, 4, 0.5)
    assert {name: task.name for name, task in known_tasks().items()} == {name: name for name in known_tasks()}


@EVERY_TASK
def test_a_task_object_is_copied_with_its_options(task: Task) -> None:
    chosen = choose_task(task)
    assert chosen == task
    assert chosen is not task
    with pytest.raises(ValueError, match=r"options \['accuracy_weight'\] were given with a task object"):
        choose_task(task, accuracy_weight=0.1)


def test_two_environments_made_with_one_task_object_do_not_share_it(patch_source: PatchSource) -> None:
    task = DetailControl(grid_size=2)
    first, second = (RestorationVectorEnv(2, task=task, source=patch_source) for _ in range(2))
    first.reset(seed=0)
    obs, _ = second.reset(seed=0)
    first.step(np.ones((2, 12), np.float32))
    assert np.array_equal(second.step(np.zeros((2, 12), np.float32))[0], obs)
    assert task.strengths.numel() == 0


@EVERY_TASK
def test_a_task_taken_from_a_running_environment_starts_anew(task: Task, patch_source: PatchSource) -> None:
    other = RestorationVectorEnv(2, task=task, source=patch_source)
    other.reset(seed=0)
    other.step(np.ones(other.action_space.shape or (), np.float32))
    for num_envs in (2, 3):
        env, expected = (
            RestorationVectorEnv(num_envs, task=either, source=patch_source) for either in (other.task, task)
        )
        assert np.array_equal(env.reset(seed=1)[0], expected.reset(seed=1)[0])
        actions = np.full(env.action_space.shape or (), 0.5, np.float32)
        assert np.array_equal(env.step(actions)[1], expected.step(actions)[1])


def test_an_unknown_task_or_option_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'chess'; known: psnr_prediction, super_resolution"):
        choose_task("chess")
    with pytest.raises(ValueError, match=r"'super_resolution' has no option \['scale'\]; known: \[\]"):
        choose_task("super_resolution", scale=2)
    known = r"known: \['grid_size', 'max_change', 'n_bands'\]"
    with pytest.raises(ValueError, match=rf"'detail_control' has no option \['strengths'\]; {known}"):
        choose_task("detail_control", strengths=0.0)


@pytest.mark.parametrize("task", [PSNRPrediction(), SuperResolution()])
def test_a_task_without_memory_refuses_the_state_of_another(task: Task, patch_source: PatchSource) -> None:
    assert task.state_dict() == {}
    env = RestorationVectorEnv(2, task=task, source=patch_source)
    env.reset(seed=0)
    before = env.state_dict()
    other = RestorationVectorEnv(2, task="detail_control", source=patch_source)
    other.reset(seed=1)
    with pytest.raises(ValueError, match=rf"task {task.name} keeps nothing between steps, the state holds \['streng"):
        env.load_state_dict(other.state_dict())
    assert env.state_dict() == before


# PSNRPrediction


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_an_accuracy_weight_that_is_negative_or_not_finite_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="accuracy_weight must be finite and not negative"):
        PSNRPrediction(weight)


def test_predictions_by_hand() -> None:
    actions = torch.tensor([[-1.0], [0.0], [0.25], [1.0]])
    task = PSNRPrediction(2.0)
    assert task.predicted_psnr(actions).tolist() == [10, 30, 35, 50]
    values = torch.tensor([10.0, 32.0, 25.0, 60.0], dtype=torch.float64)
    bonus = task.bonus(actions, values)
    assert bonus is not None
    assert bonus.tolist() == pytest.approx([0.0, -0.2, -1.0, 0.0])
    assert PSNRPrediction().bonus(actions, values) is None
    assert task.describe(actions)["predicted_psnr"].tolist() == [10, 30, 35, 50]


# SuperResolution


def test_the_action_is_the_picture_from_black_to_white() -> None:
    task = SuperResolution()
    space = task.action_space(lr_patch_size=5, scale=3)
    assert space.shape == (3, 15, 15)
    assert space.low.min() == space.low.max() == -1 and space.high.min() == space.high.max() == 1
    actions = torch.tensor([-1.0, -0.5, 0.0, 1.0]).reshape(4, 1, 1, 1).expand(4, 3, 15, 15)
    lr_image = torch.zeros(4, 3, 5, 5)
    in_parts = task.restore(actions, lr_image, lambda lr_image: pytest.fail("nobody asks the generator"))
    assert isinstance(in_parts, PartRestorer) and in_parts.shape == (4, 3, 15, 15)
    memory = np.empty((2, 3, 15, 15), np.float32)
    for part in (slice(0, 2), slice(2, 4)):
        in_parts.write(part, memory)
        assert memory[:, 0, 0, 0].tolist() == [[0.0, 0.25], [0.5, 1.0]][part.start // 2]
    actions.requires_grad_()
    restored = task.restore(actions, lr_image, lambda lr_image: pytest.fail("nobody asks the generator"))
    assert isinstance(restored, torch.Tensor) and restored.requires_grad
    assert restored[:, 0, 0, 0].tolist() == [0.0, 0.25, 0.5, 1.0]


def test_the_original_as_action_is_without_error_and_pays_the_most(patch_source: PatchSource) -> None:
    env = RestorationVectorEnv(
        3, task="super_resolution", source=patch_source, reward="improvement", episode_length=2, render_mode="rgb_array"
    )
    _, infos = env.reset(seed=0)
    originals = 2 * (env.hr_patches.float() / 255).numpy() - 1
    _, rewards, _, _, later = env.step(originals)
    assert later["psnr"].tolist() == [100.0] * 3
    assert rewards == pytest.approx(100.0 - infos["psnr"], abs=1e-5)
    frames = env.render()
    assert frames is not None
    for frame, hr_image in zip(frames, env.hr_patches.permute(0, 2, 3, 1).numpy(), strict=True):
        assert np.array_equal(frame[:16, 16:], hr_image)


def test_the_gain_is_over_the_generators_own_picture(patch_source: PatchSource) -> None:
    env = RestorationVectorEnv(2, task="super_resolution", source=patch_source, reward="improvement", metric="ssim")
    obs, infos = env.reset(seed=0)
    bicubic = upsample(torch.from_numpy(obs).float() / 255, 2, "bicubic").clamp(0, 1)
    expected = env.metric(levels(bicubic) / 255, env.hr_patches.float() / 255).numpy()
    _, rewards, _, _, later = env.step(2 * bicubic.numpy() - 1)
    assert later["ssim"] == pytest.approx(expected, abs=1e-4)
    assert rewards == pytest.approx(expected - infos["ssim"], abs=1e-4)
    assert (rewards != 0).all()


def test_an_action_beyond_white_counts_as_white(patch_source: PatchSource) -> None:
    env = RestorationVectorEnv(2, task="super_resolution", source=patch_source, episode_length=3)
    env.reset(seed=0)
    values = [env.step(np.full((2, 3, 16, 16), level, np.float32))[4]["psnr"].tolist() for level in (1.0, 7.0)]
    assert values[0] == values[1]
