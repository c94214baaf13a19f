"""A window for `render_mode="human"`, by pygame, which is an optional dependency."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

# Frames of small patches are enlarged by an integer factor, as far as they stay within this width in pixels.
WIDTH = 640


def window_available() -> bool:
    """Whether a window can be opened here: pygame is installed, and there is a display."""
    named = ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY")
    display = sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in named)
    return display and importlib.util.find_spec("pygame") is not None


class Window:
    """Shows frames, at most `fps` in a second.

    It opens with the first frame. SDL has one window for each process: two environments would take turns in it.
    """

    def __init__(self, title: str, fps: int) -> None:
        """Open nothing yet.

        Args:
            title: The window's title.
            fps: Frames in a second; `show` waits where it is called more often.

        Raises:
            DependencyNotInstalled: Without pygame.
        """
        self.title = title
        self.fps = fps
        self._clock: Any = None
        self._pygame()

    @staticmethod
    def _pygame() -> Any:
        """The module, imported when a window is wanted: it is slow, and most users have no window."""
        try:
            return importlib.import_module("pygame")
        except ImportError as error:
            raise DependencyNotInstalled(
                'render_mode="human" needs pygame; run `pip install "rlsr[render]"`, or take render_mode="rgb_array"'
            ) from error

    def show(self, frame: np.ndarray) -> None:
        """Show a frame.

        Args:
            frame: `(H, W, 3)` uint8.

        Raises:
            RuntimeError: Where there is no display.
        """
        pygame = self._pygame()
        factor = max(1, WIDTH // frame.shape[1])
        size = (factor * frame.shape[1], factor * frame.shape[0])
        try:
            pygame.display.init()
            screen = pygame.display.get_surface()
            if screen is None or screen.get_size() != size:
                screen = pygame.display.set_mode(size)
                pygame.display.set_caption(self.title)
        except pygame.error as error:
            raise RuntimeError(
                f'no window can be opened ({error}); take render_mode="rgb_array", or set SDL_VIDEODRIVER=dummy'
            ) from error
        picture = pygame.image.frombuffer(np.ascontiguousarray(frame).tobytes(), frame.shape[1::-1], "RGB")
        screen.blit(pygame.transform.scale(picture, size), (0, 0))
        pygame.event.pump()  # else the system takes the window for one that hangs
        pygame.display.flip()
        if self._clock is None:
            self._clock = pygame.time.Clock()
        else:
            self._clock.tick(self.fps)

    def close(self) -> None:
        """Close the window; the next frame opens it again."""
        if self._clock is not None:
            self._pygame().display.quit()
            self._clock = None

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, without the open window."""
        return {**self.__dict__, "_clock": None}
