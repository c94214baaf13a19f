import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.abbreviation import AVIF_HEAD, AbbreviationError, abbreviate, restore_stream
from rlsr_env.codec import LRCodec
from rlsr_env.images import SampleImages

BASES = ("jpeg", "webp", "avif")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return SampleImages().load("sample:chelsea")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (37, 90), (200, 300)])
@pytest.mark.parametrize("quality", [1, 30, 90])
def test_stream_is_restored_to_the_byte_from_fewer(
    base: str, size: tuple[int, int], quality: int, photograph: np.ndarray
) -> None:
    stream = LRCodec(1, base, quality).encode(photograph[: size[0], : size[1]])
    short = abbreviate(stream, base, size)
    assert short is not None and len(short) < len(stream)
    assert restore_stream(short, base, size) == stream


def test_webp_loses_27_bytes_and_avif_most_of_its_head(photograph: np.ndarray) -> None:
    for base, least in (("webp", 27), ("avif", 180)):
        stream = LRCodec(2, base, 40).encode(photograph)
        short = abbreviate(stream, base, (150, 226))
        assert short is not None
        assert len(stream) - len(short) == pytest.approx(least, abs=0 if base == "webp" else 80)


@pytest.mark.parametrize("base", BASES)
def test_what_is_no_such_stream_stays_whole(base: str) -> None:
    for stream in (b"", b"RIFF", b"nothing of the kind", bytes(40), AVIF_HEAD):
        assert abbreviate(stream, base, (8, 8)) is None or base == "avif"


@pytest.mark.parametrize(
    ("base", "short", "message"),
    [
        ("jpeg", b"", "has no quality"),
        ("jpeg", b"\0abc", "has no quality"),
        ("jpeg", b"\x65abc", "has no quality"),
        ("webp", b"ab", "cut off or too large"),
        ("avif", b"\xff\xff", "damaged"),
        ("avif", b"", "cut off or too long"),
    ],
)
def test_what_is_no_abbreviation_is_one_error(base: str, short: bytes, message: str) -> None:
    with pytest.raises(AbbreviationError, match=message):
        restore_stream(short, base, (8, 8))


def test_webp_that_is_too_large_for_its_format_is_refused() -> None:
    with pytest.raises(AbbreviationError, match="too large"):
        restore_stream(bytes(100), "webp", (8, 1 << 14))


@settings(max_examples=60, deadline=None)
@given(base=st.sampled_from(BASES), short=st.binary(max_size=120))
def test_any_bytes_are_restored_or_refused(base: str, short: bytes) -> None:
    try:
        assert isinstance(restore_stream(short, base, (24, 40)), bytes)
    except AbbreviationError:
        pass
