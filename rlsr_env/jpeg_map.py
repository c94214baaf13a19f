"""Local credit for the size of a JPEG file: the bits that each block's own coefficients take, as in `credit_maps`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rlsr_env.black_box_metrics import JPEG_QUALITY, round_to_8bit
from rlsr_env.block_maps import BLOCK
from rlsr_env.cores import compiled, share_out

# JPEG's colours (JFIF 1.02): luma and two colour differences, rows of R, G and B; all of them around 128 of 255.
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
# ITU-T T.81, tables K.1 and K.2: steps of the quantiser at quality 50, row by row.
LUMA_STEPS = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
COLOUR_STEPS = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99,
    99, 99, 99, *(99,) * 32,
)  # fmt: skip
# A pixel of the colour differences stands for two of either side, so that a unit of the file is 16 pixels wide.
UNIT = 2 * BLOCK
N_SYMBOLS = 256


def jpeg_bytes_map(sr_image: Tensor, hr_image: Tensor) -> Tensor:
    """Bytes of a JPEG file by blocks: mean over the blocks is what all coefficients take, without headers and tables.

    A symbol of the Huffman code takes the bits that its share among all symbols of a patch's samples is worth, -log2 of
    it, which the optimised tables of a file come close to; then the bits that follow it. The colours' bits are those of
    four blocks.

    Args:
        sr_image: `(K * P, 3, H, W)` in [0, 1]; rounded to 8 bits.
        hr_image: `(P, 3, H, W)`; plays no part.

    Returns:
        `(K * P, H / 8, W / 8)` float32.
    """
    n_pictures, n_patches = len(sr_image), len(hr_image)
    height, width = sr_image.shape[-2:]
    planes = torch.einsum("bchw,yc->byhw", 255 * round_to_8bit(sr_image).float(), _colours(sr_image.device))
    planes[:, 0] -= 128
    planes = functional.pad(planes, (0, -width % UNIT, 0, -height % UNIT), mode="replicate")
    rows, columns = (side // BLOCK for side in planes.shape[-2:])
    luma = _coefficients(planes[:, :1], LUMA_STEPS)
    # In the order of the file: unit by unit, and within one row by row.
    luma = luma.reshape(n_pictures, rows // 2, 2, columns // 2, 2, BLOCK**2).transpose(0, 1, 3, 2, 4, 5)
    colours = _coefficients(functional.avg_pool2d(planes[:, 1:], 2), COLOUR_STEPS)
    of_luma = _bits(np.ascontiguousarray(luma.reshape(n_pictures, 1, -1, BLOCK**2)), n_patches)
    of_colours = _bits(colours, n_patches).sum(1).reshape(n_pictures, rows // 2, columns // 2)
    of_luma = of_luma.reshape(n_pictures, rows // 2, columns // 2, 2, 2).transpose(0, 1, 3, 2, 4)
    bits = of_luma.reshape(n_pictures, rows, columns) + (of_colours / 4).repeat(2, 1).repeat(2, 2)
    bits = bits[:, : height // BLOCK, : width // BLOCK]
    n_blocks = bits.shape[1] * bits.shape[2]
    return torch.from_numpy(np.ascontiguousarray(bits * (n_blocks / 8))).to(sr_image.device, torch.float32)


def _colours(device: torch.device) -> Tensor:
    """`YCBCR` as a tensor."""
    return torch.tensor(YCBCR, device=device)


@lru_cache(maxsize=1)
def _cosines() -> Tensor:
    """The orthonormal discrete cosine transform of eight values."""
    k = torch.arange(BLOCK, dtype=torch.float64)
    matrix = torch.cos(torch.pi * (2 * k + 1) * k[:, None] / (2 * BLOCK)) * (2 / BLOCK) ** 0.5
    matrix[0] /= 2**0.5
    return matrix.float()


@lru_cache(maxsize=1)
def _zigzag() -> np.ndarray:
    """The order in which a file has a block's coefficients."""
    places = [(row, column) for row in range(BLOCK) for column in range(BLOCK)]
    places.sort(key=lambda place: (sum(place), place[1] if sum(place) % 2 == 0 else place[0]))
    return np.array([row * BLOCK + column for row, column in places])


def _coefficients(planes: Tensor, steps: tuple[int, ...]) -> np.ndarray:
    """Quantised coefficients of each block, `(B, C, blocks, 64)` int16, in the file's order."""
    batch, channels, height, width = planes.shape
    cosines = _cosines().to(planes.device)
    blocks = planes.reshape(batch, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(3, 4)
    coefficients = (cosines @ blocks @ cosines.T).reshape(batch, channels, -1, BLOCK**2).cpu()
    # As libjpeg scales its tables for a quality of 50 or more.
    scaled = torch.tensor(steps).mul(200 - 2 * JPEG_QUALITY).add(50).div(100, rounding_mode="floor").clamp(min=1)
    quantised = (coefficients / scaled).round().to(torch.int16).numpy()
    return np.ascontiguousarray(quantised[..., _zigzag()])


def _bits(coefficients: np.ndarray, n_patches: int) -> np.ndarray:
    """Bits of each block, `(B, C, blocks)`, in codes made for all samples of a patch."""
    n_pictures, channels, n_blocks, _ = coefficients.shape
    bits = np.zeros((n_pictures, channels, n_blocks), np.float32)

    def of_patches(patches: slice) -> None:
        for patch in range(patches.start, patches.stop):
            samples = np.ascontiguousarray(coefficients[patch::n_patches])
            counts = np.zeros((2, N_SYMBOLS), np.float32)
            found = np.zeros(samples.shape[:3], np.float32)
            _count(samples, counts)
            _price(samples, _prices(counts), found)
            bits[patch::n_patches] = found

    share_out(of_patches, n_patches)
    return bits


def _prices(counts: np.ndarray) -> np.ndarray:
    """What each symbol takes in bits: what its share is worth, and what follows it, as its lower half says."""
    shares = np.maximum(counts, 1) / np.maximum(counts.sum(1, keepdims=True), 1)
    return (-np.log2(shares) + np.arange(N_SYMBOLS) % 16).astype(np.float32)


@compiled
def _category(value: int) -> int:
    """How many bits a value has, without its sign."""
    magnitude, n_bits = abs(value), 0
    while magnitude:
        magnitude >>= 1
        n_bits += 1
    return n_bits


@compiled
def _count(samples: np.ndarray, counts: np.ndarray) -> None:
    """Count the symbols of the first coefficients (row 0) and of the others (row 1)."""
    n_pictures, channels, n_blocks, n_coefficients = samples.shape
    for picture in range(n_pictures):
        for channel in range(channels):
            before = 0
            for block in range(n_blocks):
                first = int(samples[picture, channel, block, 0])
                counts[0, _category(first - before)] += 1
                before = first
                run = 0
                for k in range(1, n_coefficients):
                    value = int(samples[picture, channel, block, k])
                    if value == 0:
                        run += 1
                        continue
                    counts[1, 0xF0] += run // 16
                    counts[1, 16 * (run % 16) + _category(value)] += 1
                    run = 0
                counts[1, 0] += run > 0


@compiled
def _price(samples: np.ndarray, prices: np.ndarray, bits: np.ndarray) -> None:
    """Add up the prices of each block's symbols."""
    n_pictures, channels, n_blocks, n_coefficients = samples.shape
    for picture in range(n_pictures):
        for channel in range(channels):
            before = 0
            for block in range(n_blocks):
                first = int(samples[picture, channel, block, 0])
                total = prices[0, _category(first - before)]
                before = first
                run = 0
                for k in range(1, n_coefficients):
                    value = int(samples[picture, channel, block, k])
                    if value == 0:
                        run += 1
                        continue
                    total += prices[1, 0xF0] * (run // 16) + prices[1, 16 * (run % 16) + _category(value)]
                    run = 0
                if run > 0:
                    total += prices[1, 0]
                bits[picture, channel, block] = total
