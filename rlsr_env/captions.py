"""A line of text under a frame."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

CAPTION_HEIGHT = 14


def add_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """A line of text under a picture.

    Args:
        picture: `(H, W, 3)` uint8.
        text: What fits in one line; the rest is cut off.

    Returns:
        `(H + 14, W, 3)` uint8.
    """
    canvas = Image.fromarray(np.pad(picture, ((0, CAPTION_HEIGHT), (0, 0), (0, 0))))
    ImageDraw.Draw(canvas).text((2, picture.shape[0] + 1), text, fill="white", font_size=10)
    return np.array(canvas)
