import pickle
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env

import rlsr_env
from rlsr_env.codec import LRCodec
from rlsr_env.env import RestorationEnv
from rlsr_env.images import DecodedImages
from rlsr_env.patches import PatchSource
from rlsr_env.vector_env import RestorationVectorEnv
from rlsr_env.window import Window, window_available

ENV_ID = "rlsr/DetailControl-v0"
EVERY_ID = pytest.mark.parametrize("env_id", sorted(rlsr_env.ENVIRONMENTS))
DISPLAYS = ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY")


def source(side: int = 64) -> PatchSource:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return PatchSource(DecodedImages(("noise",), (noise,), ()), LRCodec(2), side // 2)


@pytest.fixture
def pygame(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module with SDL's driver that needs no display, and a clock that does not wait."""
    module = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(module.time, "Clock", Clock)
    Clock.ticks = []
    module.display.quit()
    yield module
    module.display.quit()


class Clock:
    ticks: list[int] = []  # noqa: RUF012 (emptied by the fixture)

    def tick(self, fps: int) -> None:
        self.ticks.append(fps)


def screen(pygame: Any) -> np.ndarray:
    """What the window shows, `(H, W, 3)` uint8."""
    return pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)


def test_every_reset_and_step_shows_its_frame_enlarged(pygame: Any) -> None:
    human, silent = (
        gymnasium.make(ENV_ID, source=source(), render_mode=mode, render_original=True)
        for mode in ("human", "rgb_array")
    )
    for env in (human, silent):
        env.reset(seed=3)
    seen = []
    for _ in range(3):
        frame = silent.render()
        assert isinstance(frame, np.ndarray)
        assert frame.shape == (78, 192, 3)
        assert np.array_equal(screen(pygame), frame.repeat(3, 0).repeat(3, 1))  # 640 // 192
        seen.append(frame)
        action = human.action_space.sample()
        for env in (human, silent):
            env.step(action)
    assert not np.array_equal(seen[0], seen[1])
    assert human.render() is None
    assert Clock.ticks == [2, 2, 2]  # the first frame has nothing to wait for
    human.close()
    assert pygame.display.get_surface() is None


def test_closed_window_opens_again_and_another_size_replaces_it(pygame: Any) -> None:
    window = Window("title", fps=5)
    window.close()  # before the first frame
    window.show(np.full((10, 400, 3), 7, dtype=np.uint8))
    assert screen(pygame).shape == (10, 400, 3)
    assert pygame.display.get_caption()[0] == "title"
    window.show(np.full((10, 1000, 3), 9, dtype=np.uint8))
    assert screen(pygame).shape == (10, 1000, 3)
    assert (screen(pygame) == 9).all()
    window.close()
    window.show(np.full((10, 300, 3), 11, dtype=np.uint8))
    assert (screen(pygame) == 11).all() and screen(pygame).shape == (20, 600, 3)
    assert Clock.ticks == [5]


def test_frame_that_is_not_contiguous(pygame: Any) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (400, 800, 6), dtype=np.uint8)[:, ::-1, ::2]
    Window("title", fps=5).show(frame)
    assert np.array_equal(screen(pygame), frame)


def test_environment_with_an_open_window_can_be_pickled(pygame: Any) -> None:
    env = RestorationEnv(source=source(), render_mode="human")
    env.reset(seed=0)
    copy = pickle.loads(pickle.dumps(env))
    copy.reset(seed=1)
    action = env.action_space.sample()
    env.reset(seed=1)
    assert env.step(action)[4] == copy.step(action)[4]
    assert copy.render_mode == "human"


@EVERY_ID
def test_checker_tries_the_window_too_and_make_has_nothing_to_say(env_id: str, pygame: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(env_id, source=source(), render_mode="human")
        assert "HumanRendering" not in str(env)
        assert env.metadata["render_modes"] == ["rgb_array", "human"]
        check_env(env.unwrapped)
        env.close()


@pytest.mark.parametrize("missing", ["display", "pygame"])
def test_checker_passes_where_no_window_can_be_opened(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    if missing == "pygame":
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not window_available()
    env = gymnasium.make(ENV_ID, source=source())
    assert env.metadata["render_modes"] == ["rgb_array"]
    check_env(env.unwrapped)


def test_without_pygame_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(DependencyNotInstalled, match=r'run `pip install "rlsr\[render\]"`'):
        gymnasium.make(ENV_ID, source=source(), render_mode="human")


def test_without_a_display_the_error_says_what_to_do(pygame: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "no such driver")
    env = gymnasium.make(ENV_ID, source=source(), render_mode="human")
    with pytest.raises(RuntimeError, match=r'no window can be opened .* take render_mode="rgb_array"'):
        env.reset(seed=0)


def test_vector_environment_has_no_window() -> None:
    with pytest.raises(ValueError, match="unknown render_mode 'human'"):
        RestorationVectorEnv(2, source=source(), render_mode="human")
