"""JPEG files as what cannot be rebuilt of them: the size, the quality and the quantised coefficients.

Everything else in a small JPEG file is a function of these: the markers are always the same, the quantisation tables
follow from the quality (as libjpeg scales those of ITU-R T.81, annex K.1), and optimised Huffman tables from how often
each symbol occurs (annex K.2). Only files that are rebuilt to the byte are taken; that is tried, never assumed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

# Index within a block (row by row) of each coefficient in zigzag order, T.81 figure 5: diagonals, every second turned.
ZIGZAG = np.array(
    sorted(range(64), key=lambda place: (sum(divmod(place, 8)), divmod(place, 8)[sum(divmod(place, 8)) % 2 == 0]))
)

# T.81 tables K.1 (luma) and K.2 (chroma), row by row.
QUANTISATION = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
         14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
         49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99],
        [17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
         47, 66, 99, 99, 99, 99, 99, 99] + 32 * [99],
    ]
)  # fmt: skip

SOI, EOI, APP0, DQT, SOF0, DHT, SOS = 0xD8, 0xD9, 0xE0, 0xDB, 0xC0, 0xC4, 0xDA
# Version 1.01 of JFIF, square pixels, no thumbnail.
JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"
# Class and number of the Huffman tables: DC and AC of luma, then of chroma.
TABLES = (0x00, 0x10, 0x01, 0x11)
# Three components with sampling factors and tables: 4:2:0.
FRAME_COMPONENTS = bytes([3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])
SCAN_HEADER = bytes([3, 1, 0x00, 2, 0x11, 3, 0x11, 0, 63, 0])
MAX_CODE_BITS = 16


class JpegStreamError(ValueError):
    """A JPEG file that is not one of ours, or coefficients of which none can be made."""


@dataclass(frozen=True)
class JpegPicture:
    """What a baseline JPEG file with 4:2:0 chroma says.

    Attributes:
        height: In pixels.
        width: In pixels.
        quality: 1 to 100; stands for both quantisation tables.
        planes: Quantised coefficients of Y, Cb and Cr, each `(rows, columns, 64)` int16, blocks row by row; whole MCUs,
            so twice as many rows and columns of luma.
    """

    height: int
    width: int
    quality: int
    planes: tuple[np.ndarray, np.ndarray, np.ndarray]


def quantisation_tables(quality: int) -> np.ndarray:
    """The tables that libjpeg makes of a quality.

    Args:
        quality: 1 to 100.

    Returns:
        For luma and chroma, row by row, `(2, 64)` int64 in 1..255.
    """
    percentage = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((QUANTISATION * percentage + 50) // 100).clip(1, 255)


def plane_shapes(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Rows and columns of blocks of Y, Cb and Cr, for a picture of that size."""
    rows, columns = -(-height // 16), -(-width // 16)
    return (2 * rows, 2 * columns), (rows, columns), (rows, columns)


def parse_jpeg(stream: bytes) -> JpegPicture:
    """Read a JPEG file of one baseline scan with 4:2:0 chroma.

    Whether `write_jpeg` makes the same bytes of it again is for the caller to try.

    Args:
        stream: The file.

    Returns:
        What it says.

    Raises:
        JpegStreamError: Where the file is of another kind, or damaged.
    """
    height, width = jpeg_size(stream)
    segments, start = read_segments(stream)
    end = len(stream) - 2
    if stream[end:] != bytes([0xFF, EOI]):
        raise JpegStreamError("the JPEG file has no end")
    quality = _quality_of(b"".join(body for marker, body in segments if marker == DQT))
    counts, symbols = _huffman_tables([body for marker, body in segments if marker == DHT])
    scan = np.frombuffer(stream[start:end].replace(b"\xff\0", b"\xff"), np.uint8)
    shapes = plane_shapes(height, width)
    n_mcus = shapes[1][0] * shapes[1][1]
    # A block takes at least one bit of DC and one of AC: no small file makes us allocate much.
    if 12 * n_mcus > 8 * len(scan) + 7:
        raise JpegStreamError("the JPEG file is too short for its size")
    from gan.jpeg_scans import read_scan  # compiled by Numba, which takes its time to be imported

    mcus = np.zeros((n_mcus, 6, 64), np.int16)
    if not read_scan(scan, counts, symbols, ZIGZAG, mcus):
        raise JpegStreamError("the JPEG file's scan is damaged")
    return JpegPicture(height, width, quality, _to_planes(mcus, shapes[1]))


def jpeg_size(stream: bytes) -> tuple[int, int]:
    """Height and width of a JPEG file of one baseline scan with 4:2:0 chroma; nothing is decoded.

    One scan takes no more time than its size allows; a progressive file may have thousands.

    Args:
        stream: The file.

    Raises:
        JpegStreamError: Where it is of another kind, or damaged before its scan.
    """
    segments, _ = read_segments(stream)
    # Others may have no length, and then a decoder reads on elsewhere than we do.
    if not {marker for marker, _ in segments} <= {APP0, DQT, SOF0, DHT, SOS}:
        raise JpegStreamError("the JPEG file has segments that a plain baseline file does not have")
    frames = [body for marker, body in segments if marker == SOF0]
    if len(frames) != 1 or frames[0][:1] != b"\x08" or frames[0][5:] != FRAME_COMPONENTS:
        raise JpegStreamError("the JPEG file is no picture with 4:2:0 chroma")
    if segments[-1] != (SOS, SCAN_HEADER):
        raise JpegStreamError("the JPEG file has more than one scan")
    height, width = struct.unpack(">HH", frames[0][1:5])
    if not height or not width:
        raise JpegStreamError("the JPEG file has no size")
    return height, width


def write_jpeg(picture: JpegPicture) -> bytes:
    """Write a JPEG file with optimised Huffman tables, as libjpeg does.

    Args:
        picture: What it shall say.

    Returns:
        The file.

    Raises:
        JpegStreamError: Where a coefficient does not fit into a baseline file.
    """
    from gan.jpeg_scans import write_scan

    mcus = _to_mcus(picture.planes)
    uses = np.zeros((4, 256), np.int64)
    codes, lengths = np.zeros((4, 256), np.int64), np.zeros((4, 256), np.int64)
    if write_scan(mcus, ZIGZAG, codes, lengths, uses, np.empty(0, np.uint8)) < 0:
        raise JpegStreamError("a coefficient is too large for a baseline JPEG file")
    bodies = []
    for table, name in enumerate(TABLES):
        counts, symbols = optimal_huffman_table(uses[table])
        bodies.append(bytes([name, *counts, *symbols]))
        code_lengths = np.repeat(np.arange(1, MAX_CODE_BITS + 1), counts)
        # T.81 annex C: codes of one length count up, and each longer length goes on from twice the next code.
        following = accumulate(
            pairwise(code_lengths), lambda code, pair: (code + 1) << int(pair[1] - pair[0]),
            initial=0,
        )  # fmt: skip
        lengths[table, symbols] = code_lengths
        codes[table, symbols] = list(following)
    room = int((uses * (lengths + np.arange(256) % 16)).sum()) // 4 + 16  # all of its bytes doubled by stuffing
    scan = np.empty(room, np.uint8)
    n_bytes = write_scan(mcus, ZIGZAG, codes, lengths, uses, scan)
    tables = quantisation_tables(picture.quality)[:, ZIGZAG].astype(np.uint8)
    parts = [bytes([0xFF, SOI]), _segment(APP0, JFIF)]
    parts += [_segment(DQT, bytes([number]) + table.tobytes()) for number, table in enumerate(tables)]
    parts.append(_segment(SOF0, struct.pack(">BHH", 8, picture.height, picture.width) + FRAME_COMPONENTS))
    parts += [_segment(DHT, body) for body in bodies]
    parts += [_segment(SOS, SCAN_HEADER), scan[:n_bytes].tobytes(), bytes([0xFF, EOI])]
    return b"".join(parts)


def read_segments(stream: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """The segments of a JPEG file up to its first scan.

    Args:
        stream: The file.

    Returns:
        Marker and content of each segment, the last one being SOS, and where the scan's data begin.

    Raises:
        JpegStreamError: Where a segment is cut off or there is no scan.
    """
    if stream[:2] != bytes([0xFF, SOI]):
        raise JpegStreamError("this is no JPEG file")
    segments: list[tuple[int, bytes]] = []
    position = 2
    while True:
        header = stream[position : position + 4]
        if len(header) < 4 or header[0] != 0xFF:
            raise JpegStreamError("the JPEG file is cut off or damaged before its scan")
        length = int.from_bytes(header[2:], "big")
        body = stream[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            raise JpegStreamError("a segment of the JPEG file is cut off")
        segments.append((header[1], body))
        position += 2 + length
        if header[1] == SOS:
            return segments, position


def optimal_huffman_table(uses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table that libjpeg makes of the symbols' frequencies (T.81, annex K.2).

    Args:
        uses: How often each symbol occurs, `(256,)`.

    Returns:
        How many codes there are of each length from 1 to 16 bits, `(16,)`, and the symbols in the order of their codes.
    """
    # One more symbol, used once: it takes the code that is all ones, which no JPEG file may use.
    weights = {symbol: int(count) for symbol, count in enumerate([*uses, 1]) if count}
    members = {symbol: [symbol] for symbol in weights}
    length = dict.fromkeys(weights, 0)
    while len(weights) > 1:
        # The two rarest are joined; of equally rare ones, the symbol of the greatest number counts as rarer.
        rarest, second = sorted(weights, key=lambda symbol: (weights[symbol], -symbol))[:2]
        weights[rarest] += weights.pop(second)
        members[rarest] += members.pop(second)
        for symbol in members[rarest]:
            length[symbol] += 1
    counts = np.bincount(list(length.values()), minlength=MAX_CODE_BITS + 1)
    for long in range(len(counts) - 1, MAX_CODE_BITS, -1):
        while counts[long]:
            # Figure K.3: a pair gives its prefix, one bit shorter, to one of the two; the other one takes a code below
            # that of a shorter symbol, which becomes a prefix.
            shorter = max(bits for bits in range(1, long - 1) if counts[bits])
            np.add.at(counts, [long, long - 1, shorter + 1, shorter], [-2, 1, 2, -1])  # some of them may be the same
    counts[np.flatnonzero(counts)[-1]] -= 1  # the symbol that is none
    del length[256]
    symbols = sorted(length, key=lambda symbol: (length[symbol], symbol))
    return counts[1 : MAX_CODE_BITS + 1], np.array(symbols, np.int64)


def _segment(marker: int, body: bytes) -> bytes:
    """A marker, the length, the content."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _quality_of(content: bytes) -> int:
    """The quality whose tables these are: number, 64 values, number, 64 values."""
    for quality in range(1, 101):
        luma, chroma = quantisation_tables(quality)[:, ZIGZAG].astype(np.uint8)
        if content == b"\0" + luma.tobytes() + b"\1" + chroma.tobytes():
            return quality
    raise JpegStreamError("the JPEG file's quantisation tables are those of no quality")


def _huffman_tables(bodies: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Code lengths and symbols of the four tables, as `read_scan` takes them."""
    counts, symbols = np.zeros((4, MAX_CODE_BITS), np.int64), np.zeros((4, 256), np.uint8)
    if [body[:1] for body in bodies] != [bytes([name]) for name in TABLES]:
        raise JpegStreamError("the JPEG file's Huffman tables are not the usual four")
    for table, body in enumerate(bodies):
        n_symbols = len(body) - 1 - MAX_CODE_BITS
        if not 0 < n_symbols <= 256 or sum(body[1 : 1 + MAX_CODE_BITS]) != n_symbols:
            raise JpegStreamError("a Huffman table of the JPEG file is damaged")
        counts[table] = np.frombuffer(body[1 : 1 + MAX_CODE_BITS], np.uint8)
        symbols[table, :n_symbols] = np.frombuffer(body[1 + MAX_CODE_BITS :], np.uint8)
    return counts, symbols


def _to_planes(mcus: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(n_mcus, 6, 64)` to planes of blocks."""
    grid = mcus.reshape(*shape, 6, 64)
    luma = grid[:, :, :4].reshape(*shape, 2, 2, 64).swapaxes(1, 2).reshape(2 * shape[0], 2 * shape[1], 64)
    return luma, np.ascontiguousarray(grid[:, :, 4]), np.ascontiguousarray(grid[:, :, 5])


def _to_mcus(planes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Planes of blocks to `(n_mcus, 6, 64)`."""
    rows, columns, _ = planes[1].shape
    luma = planes[0].reshape(rows, 2, columns, 2, 64).swapaxes(1, 2).reshape(rows * columns, 4, 64)
    chroma = [plane.reshape(rows * columns, 1, 64) for plane in planes[1:]]
    return np.ascontiguousarray(np.concatenate([luma, *chroma], axis=1))
