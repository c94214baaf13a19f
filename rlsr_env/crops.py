"""Crops of the pictures of an image set, as an image set of their own."""

from __future__ import annotations

import zlib

import numpy as np

from rlsr_env.images import ImageSet


class CroppedImages(ImageSet):
    """Square crops of each picture, at random places that depend on its name and the seed alone.

    A URI is the picture's own with `#` and the crop's number. A picture that is too small is taken as it is.
    """

    def __init__(
        self, images: ImageSet, size: int, per_image: int = 1, seed: int = 0, n_images: int | None = None
    ) -> None:
        """Choose the crops; no picture is opened yet.

        Args:
            images: Where the pictures come from.
            size: Side of a crop, in pixels.
            per_image: Crops of each picture.
            seed: Of their places.
            n_images: How many pictures to take, from the first on; all where not given.

        Raises:
            ValueError: For a size or number below 1.
        """
        if size < 1 or per_image < 1 or (n_images is not None and n_images < 1):
            raise ValueError(f"size, per_image and n_images are 1 or more, got {size}, {per_image} and {n_images}")
        self._n_images = n_images
        self._images, self.size, self.per_image, self.seed = images, size, per_image, seed
        self.name = f"{images.name}#{size}x{per_image}"
        self.version, self.licence = images.version, images.licence
        self.description = f"{per_image} crops of {size} pixels of each of: {images.description}"

    def uris(self) -> list[str]:
        """Each picture's crops one after another."""
        return [f"{uri}#{number}" for uri in self._images.uris()[: self._n_images] for number in range(self.per_image)]

    def load(self, uri: str) -> np.ndarray:
        """Decodes a picture and cuts the crop out; see `ImageSet.load`."""
        whole, _, number = uri.rpartition("#")
        if not whole or not number.isdigit() or int(number) >= self.per_image:
            raise ValueError(f"{uri!r} is not in the image set {self.name!r}; its names are those of uris()")
        image = self._images.load(whole)
        rng = np.random.default_rng([self.seed, int(number), zlib.crc32(whole.rpartition("/")[2].encode())])
        top, left = (int(rng.integers(max(0, side - self.size) + 1)) for side in image.shape[:2])
        return np.ascontiguousarray(image[top : top + self.size, left : left + self.size])
