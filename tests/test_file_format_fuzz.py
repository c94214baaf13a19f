"""Whatever is in a file, reading it ends in a picture or in `FileFormatError`, in little time and memory."""

import resource
import struct
import sys
import zlib
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gan.file_format import BASES, MAGIC, VERSION, FileFormatError, compress, decompress, read_content
from gan.picture_files import Metadata
from gan.zoo import LANCZOS_WEIGHTS

# A larger picture is refused: so much memory at most, whatever a file says.
MAX_PIXELS = 1 << 16
# What every single file may take; most take some milliseconds. A decoder that hangs is what this is to find.
LONGEST = timedelta(seconds=20)
MOST_MEMORY = 300 << 20


def _files() -> list[bytes]:
    """One file of each kind."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :56]
    image = np.stack([3 * rows + columns, 4 * columns, rows * columns // 9], axis=-1).astype(np.uint8)
    image[10:20, 10:30] = rng.integers(0, 256, (10, 20, 3))
    files = []
    for base in BASES:
        for scale in (1, 2):
            for abbreviated in (False, True):
                metadata = Metadata(b"profile" * 9, b"exif") if scale == 2 else Metadata()
                files.append(
                    compress(
                        image, scale=scale, base=base, weights=LANCZOS_WEIGHTS, abbreviated=abbreviated,
                        metadata=metadata,
                    )
                )  # fmt: skip
    return files


FILES = _files()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A file with some damage; often with the right checksum, so that what is below it is reached."""
    data = bytearray(draw(st.sampled_from(FILES)))
    body = bytearray(data[:-4])
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["bit", "byte", "cut", "insert", "repeat", "zeros", "splice", "head"]))
        place = draw(st.integers(0, max(0, len(body) - 1)))
        if kind == "bit" and body:
            body[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and body:
            body[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xD9, 0xFE, 0xFF]))
        elif kind == "cut":
            del body[place : place + draw(st.integers(1, 40))]
        elif kind == "insert":
            body[place:place] = draw(st.binary(min_size=1, max_size=12))
        elif kind == "repeat":
            body[place:place] = body[place : place + 30] * draw(st.integers(1, 9))
        elif kind == "zeros":
            body[place : place + 8] = bytes(8)
        elif kind == "splice":
            other = draw(st.sampled_from(FILES))
            body[place:] = other[draw(st.integers(0, len(other) - 1)) : -4]
        elif body:  # the header: version, flags, size, name
            body[min(len(body) - 1, draw(st.integers(4, 12)))] = draw(st.integers(0, 255))
    if draw(st.integers(0, 3)):
        return bytes(body) + struct.pack("<I", zlib.crc32(body))
    return bytes(body) + bytes(data[-4:])


def check(data: bytes) -> None:
    """The documented error, or a picture of the size that the file says."""
    try:
        image = decompress(data, device="cpu", precision="fp32", max_pixels=MAX_PIXELS)
    except FileFormatError as error:
        assert str(error)
        return
    header = read_content(data).header
    assert image.shape == (header.height, header.width, 3)
    assert image.dtype == np.uint8
    assert header.height * header.width <= MAX_PIXELS


def peak_memory() -> int:
    """The most bytes that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_files_are_whole_before_they_are_damaged() -> None:
    for data in FILES:
        assert decompress(data, max_pixels=MAX_PIXELS).shape == (40, 56, 3)


@settings(max_examples=300, deadline=LONGEST, suppress_health_check=list(HealthCheck))
@given(data=mutated())
def test_damaged_files(data: bytes) -> None:
    check(data)


@settings(max_examples=100, deadline=LONGEST)
@given(flags=st.integers(0, 255), height=st.integers(1, 300), width=st.integers(1, 300), stored=st.binary(max_size=300))
def test_any_bytes_behind_a_sound_header(flags: int, height: int, width: int, stored: bytes) -> None:
    size = b"".join(bytes([side & 127 | 128, side >> 7]) for side in (height, width))
    body = MAGIC + bytes([VERSION, flags]) + size + b"\0" + stored
    check(body + struct.pack("<I", zlib.crc32(body)))


@settings(max_examples=100, deadline=LONGEST)
@given(data=st.binary(max_size=200), begin=st.booleans())
def test_any_bytes(data: bytes, begin: bool) -> None:
    check(MAGIC + data if begin else data)


@pytest.mark.slow
def test_thousands_of_damaged_files_take_little_memory() -> None:
    for data in FILES:
        decompress(data, max_pixels=MAX_PIXELS)
    before = peak_memory()

    @settings(max_examples=6000, deadline=LONGEST, suppress_health_check=list(HealthCheck), database=None)
    @given(data=mutated())
    def damaged(data: bytes) -> None:
        check(data)

    damaged()
    assert peak_memory() - before < MOST_MEMORY
