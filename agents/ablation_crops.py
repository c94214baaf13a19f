"""What the cells of an ablation are measured on: a crop of each held-out picture, coded and decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlsr_env.codec import LRCodec
from rlsr_env.images import DecodedImages, ImageSet, decode_images
from rlsr_env.patches import PatchSource

CROP_SEED = 1_000_037


@dataclass(frozen=True)
class HeldOutCrop:
    """A crop of a held-out picture.

    Attributes:
        uri: The picture.
        lr_image: `(1, 3, h, w)` uint8, what its file decodes to.
        hr_image: `(1, 3, scale * h, scale * w)` uint8.
    """

    uri: str
    lr_image: Tensor
    hr_image: Tensor


def cut_crops(held_out: ImageSet, codec: LRCodec, crop_size: int, min_size: int) -> list[HeldOutCrop]:
    """A textured crop of each picture of a set, always the same.

    Args:
        held_out: The pictures.
        codec: Of the small files.
        crop_size: Side in the original's pixels, a multiple of the scale; 0 for whole pictures, cut to a multiple.
        min_size: The least side that the metrics take.

    Returns:
        One crop for each picture that is large enough.

    Raises:
        ValueError: Where none is.
    """
    decoded = decode_images(held_out, min_size=max(16, min_size, crop_size))
    crops = []
    for uri, image in zip(decoded.uris, decoded.images, strict=True):
        height, width = (side // codec.scale * codec.scale for side in image.shape[:2])
        one = DecodedImages((uri,), (image[:height, :width],), ())
        if crop_size:
            source = PatchSource(one, codec, crop_size // codec.scale)
            lr_image, hr_image = source.gather(source.draw(np.random.default_rng(CROP_SEED), 1))
        else:
            pixels = [codec.decode(codec.encode(one.images[0])), one.images[0]]
            lr_image, hr_image = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None] for p in pixels)
        crops.append(HeldOutCrop(uri, lr_image, hr_image))
    return crops
