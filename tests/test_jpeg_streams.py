import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gan.abbreviation import abbreviate
from gan.coefficient_coding import decode_planes, encode_planes
from gan.jpeg_streams import (
    ZIGZAG,
    JpegPicture,
    JpegStreamError,
    jpeg_size,
    optimal_huffman_table,
    parse_jpeg,
    plane_shapes,
    quantisation_tables,
    read_segments,
    write_jpeg,
)
from rlsr_env.codec import LRCodec


def picture(height: int, width: int, seed: int, roughness: float) -> np.ndarray:
    """Anything from one colour to noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    smooth = 128 + 100 * np.sin(rows / rng.uniform(2, 30) + columns / rng.uniform(2, 30))
    noise = rng.uniform(-255, 255, (height, width, 3))
    return ((1 - roughness) * smooth[..., None] + roughness * noise + rng.uniform(-60, 60, 3)).clip(0, 255).astype("u1")


def saved(image: np.ndarray, **options: Any) -> bytes:
    """A JPEG file that differs in `options` from those of the codec."""
    file = io.BytesIO()
    given = {"quality": 60, "subsampling": "4:2:0", "optimize": True, "progressive": False, **options}
    Image.fromarray(image).save(file, "JPEG", **given)
    return file.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70), width=st.integers(1, 70), quality=st.integers(1, 100), seed=st.integers(0, 9999),
    roughness=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)  # fmt: skip
def test_files_of_the_codec_are_rebuilt_to_the_byte(
    height: int, width: int, quality: int, seed: int, roughness: float
) -> None:
    stream = LRCodec(1, "jpeg", quality).encode(picture(height, width, seed, roughness))
    read = parse_jpeg(stream)
    assert (read.height, read.width, read.quality) == (height, width, quality)
    assert [plane.shape[:2] for plane in read.planes] == list(plane_shapes(height, width))
    assert write_jpeg(read) == stream


@pytest.mark.slow
@settings(max_examples=1200, deadline=None)
@given(
    height=st.integers(1, 200), width=st.integers(1, 200), quality=st.integers(1, 100), seed=st.integers(0, 10**6),
    roughness=st.floats(0, 1),
)  # fmt: skip
def test_thousands_of_files_are_rebuilt_and_abbreviated(
    height: int, width: int, quality: int, seed: int, roughness: float
) -> None:
    stream = LRCodec(1, "jpeg", quality).encode(picture(height, width, seed, roughness))
    read = parse_jpeg(stream)
    assert write_jpeg(read) == stream
    code = encode_planes(quality, read.planes, room=1 << 20)
    assert code is not None
    for plane, decoded in zip(read.planes, decode_planes(code, quality, plane_shapes(height, width)), strict=True):
        np.testing.assert_array_equal(plane, decoded)
    # Noise at the highest quality takes more bytes in a code made for pictures at low rates, and stays whole.
    assert abbreviate(stream, "jpeg", (height, width)) is not None or (roughness > 0.3 and quality > 80)


@pytest.mark.parametrize("quality", range(1, 101))
def test_quantisation_tables_are_those_that_libjpeg_writes(quality: int) -> None:
    with Image.open(io.BytesIO(saved(picture(8, 8, 0, 0.1), quality=quality))) as image:
        written: dict[int, list[int]] = image.quantization  # type: ignore[attr-defined]
    assert [written[0], written[1]] == quantisation_tables(quality).tolist()


def test_zigzag_begins_and_ends_as_in_the_standard() -> None:
    assert ZIGZAG[:12].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25]  # T.81, figure 5
    assert ZIGZAG[-4:].tolist() == [47, 55, 62, 63]
    assert sorted(ZIGZAG) == list(range(64))


FOREIGN = {
    "progressive": {"progressive": True},
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "usual Huffman tables": {"optimize": False},
    "EXIF": {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"},
    "colour profile": {"icc_profile": 200 * b"\0"},
    "comment": {"comment": b"hello"},
    "resolution": {"dpi": (300, 300)},
    "restart markers": {"restart_marker_blocks": 2},
    "tables of no quality": {"qtables": [[7] * 64, [9] * 64]},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_jpeg_files_stay_whole(kind: str) -> None:
    stream = saved(picture(40, 56, 1, 0.2), **FOREIGN[kind])
    assert abbreviate(stream, "jpeg", (40, 56)) is None


def test_grey_and_cmyk_files_stay_whole() -> None:
    for mode in ("L", "CMYK"):
        file = io.BytesIO()
        Image.fromarray(picture(24, 24, 1, 0.2)).convert(mode).save(file, "JPEG", optimize=True)
        with pytest.raises(JpegStreamError, match=r"no picture with 4:2:0 chroma|segments that a plain"):
            parse_jpeg(file.getvalue())
        assert abbreviate(file.getvalue(), "jpeg", (24, 24)) is None


def test_a_file_that_goes_on_after_its_end_stays_whole() -> None:
    stream = saved(picture(24, 24, 1, 0.2))
    assert abbreviate(stream, "jpeg", (24, 24)) is not None
    assert abbreviate(stream + b"\0", "jpeg", (24, 24)) is None
    assert abbreviate(stream[:-2] + b"\0\xff\xd9", "jpeg", (24, 24)) is None


def test_a_file_of_another_size_than_said_stays_whole() -> None:
    assert abbreviate(saved(picture(24, 24, 1, 0.2)), "jpeg", (24, 40)) is None


def test_every_cut_is_one_error() -> None:
    stream = saved(picture(24, 40, 2, 0.3))
    for length in range(len(stream)):
        with pytest.raises(JpegStreamError):
            parse_jpeg(stream[:length])


@settings(max_examples=120, deadline=None)
@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_one_changed_byte_is_read_or_refused(position: int, value: int) -> None:
    stream = bytearray(saved(picture(24, 40, 2, 0.3)))
    stream[position % len(stream)] = value
    try:
        read = parse_jpeg(bytes(stream))
    except JpegStreamError:
        return
    assert read.planes[0].shape[2] == 64


def test_a_short_file_that_claims_to_be_large_is_refused_before_memory_is_taken() -> None:
    stream = saved(picture(8, 8, 0, 0.1))
    segments, _ = read_segments(stream)
    frame = next(body for marker, body in segments if marker == 0xC0)
    large = stream.replace(frame, frame[:1] + struct.pack(">HH", 65535, 65535) + frame[5:])
    assert jpeg_size(large) == (65535, 65535)
    with pytest.raises(JpegStreamError, match="too short for its size"):
        parse_jpeg(large)


@pytest.mark.parametrize("place", [0, 5])
def test_a_coefficient_beyond_baseline_is_refused(place: int) -> None:
    planes = tuple(np.zeros((*shape, 64), np.int16) for shape in plane_shapes(16, 16))
    planes[0][0, 0, place] = 4095
    with pytest.raises(JpegStreamError, match="too large for a baseline"):
        write_jpeg(JpegPicture(16, 16, 50, planes))  # type: ignore[arg-type]


def test_huffman_codes_have_at_most_16_bits_and_leave_the_code_of_ones_free() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:  # the rarest symbol would get a code of 40 bits
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    uses = np.zeros(256, np.int64)
    uses[100:140] = fibonacci
    counts, symbols = optimal_huffman_table(uses)
    assert counts.sum() == len(symbols) == 40
    assert sorted(symbols) == list(range(100, 140))
    assert sum(int(count) << (16 - bits) for bits, count in enumerate(counts, 1)) < 1 << 16


def test_the_only_symbol_gets_one_bit() -> None:
    uses = np.zeros(256, np.int64)
    uses[7] = 12
    counts, symbols = optimal_huffman_table(uses)
    assert counts.tolist() == [1] + 15 * [0]
    assert symbols.tolist() == [7]
