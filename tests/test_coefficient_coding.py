import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan import coefficient_coding
from gan.coefficient_coding import PRIOR, PRIOR_SHA256, decode_planes, encode_planes, learn_prior
from gan.jpeg_streams import JpegPicture, parse_jpeg, plane_shapes
from rlsr_env.codec import LRCodec
from rlsr_env.images import SampleImages

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


def some_planes(height: int, width: int, density: float, most: int, seed: int) -> Planes:
    """Coefficients of a picture that nobody has seen."""
    rng = np.random.default_rng(seed)
    planes = []
    for shape in plane_shapes(height, width):
        values = rng.integers(-most, most + 1, (*shape, 64))
        planes.append(np.where(rng.random((*shape, 64)) < density, values, 0).astype(np.int16))
    return planes[0], planes[1], planes[2]


def counted_planes(height: int, width: int) -> Planes:
    """Coefficients by integer arithmetic alone, the same wherever they are made."""
    planes = []
    state = 1
    for shape in plane_shapes(height, width):
        plane = np.zeros((*shape, 64), np.int16)
        for place in np.ndindex(*shape, 64):
            state = (1103515245 * state + 12345) % (1 << 31)
            if place[2] == 0:
                plane[place] = 8 * place[0] - 5 * place[1] + (state >> 28)
            elif (state >> 16) % (3 + place[2]) == 0:
                plane[place] = (state >> 24) % 5 - 2
        planes.append(plane)
    return planes[0], planes[1], planes[2]


def decoded(code: bytes, quality: int, planes: Planes) -> Planes:
    return decode_planes(code, quality, [(plane.shape[0], plane.shape[1]) for plane in planes])


def assert_equal(first: Planes, second: Planes) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 50), width=st.integers(1, 50), density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    most=st.sampled_from([1, 5, 1023]), quality=st.integers(1, 100), seed=st.integers(0, 9999),
)  # fmt: skip
def test_round_trip(height: int, width: int, density: float, most: int, quality: int, seed: int) -> None:
    planes = some_planes(height, width, density, most, seed)
    code = encode_planes(quality, planes, room=1 << 20)
    assert code is not None
    assert_equal(decoded(code, quality, planes), planes)


def test_code_is_the_same_on_every_machine_and_in_every_version() -> None:
    planes = counted_planes(64, 80)
    code = encode_planes(40, planes, room=1 << 16)
    assert code is not None
    # Part of the format: these never change.
    assert len(code) == 393
    assert hashlib.sha256(code).hexdigest() == "bbb17c2962e7a28ee97b02eaada56cfd13e75e90f224c5707a16ea9b25a17104"
    assert_equal(decoded(code, 40, planes), planes)


def test_encoding_twice_gives_the_same_bytes() -> None:
    planes = some_planes(64, 64, 0.1, 20, seed=3)
    before = [plane.copy() for plane in planes]
    assert encode_planes(30, planes, 1 << 16) == encode_planes(30, planes, 1 << 16)
    assert_equal(planes, (before[0], before[1], before[2]))


@settings(max_examples=25, deadline=None)
@given(code=st.binary(max_size=200), quality=st.integers(1, 100))
def test_any_bytes_are_the_code_of_something(code: bytes, quality: int) -> None:
    shapes = plane_shapes(40, 24)
    planes = decode_planes(code, quality, shapes)
    assert [plane.shape for plane in planes] == [(*shape, 64) for shape in shapes]
    assert_equal(decode_planes(code, quality, shapes), planes)


def test_no_code_where_there_is_no_room() -> None:
    planes = some_planes(64, 64, 0.3, 20, seed=0)
    code = encode_planes(30, planes, 1 << 16)
    assert code is not None
    assert encode_planes(30, planes, len(code) // 2) is None
    assert encode_planes(30, planes, 0) is None


def test_a_grey_picture_takes_next_to_nothing() -> None:
    stream = LRCodec(1, "jpeg", 30).encode(np.full((512, 512, 3), 128, np.uint8))
    picture = parse_jpeg(stream)
    code = encode_planes(picture.quality, picture.planes, len(stream))
    assert code is not None and len(code) < 12


@pytest.mark.parametrize(("scale", "quality", "share"), [(1, 20, 0.9), (2, 20, 0.82), (4, 60, 0.75)])
def test_photographs_become_shorter(scale: int, quality: int, share: float) -> None:
    whole, short = 0, 0
    for name in ("chelsea", "coffee", "camera"):
        stream = LRCodec(scale, "jpeg", quality).encode(SampleImages().load(f"sample:{name}"))
        picture = parse_jpeg(stream)
        code = encode_planes(quality, picture.planes, len(stream))
        assert code is not None
        whole, short = whole + len(stream), short + len(code)
    assert short < share * whole


def test_prior_is_the_one_that_the_format_is_defined_with() -> None:
    assert hashlib.sha256(PRIOR.read_bytes()).hexdigest() == PRIOR_SHA256


def test_another_prior_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "coefficient_prior.npz"
    other.write_bytes(PRIOR.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(coefficient_coding, "PRIOR", other)
    with pytest.raises(RuntimeError, match="not the file that this version was released with; install rlsr again"):
        coefficient_coding._prior.__wrapped__()


def test_a_prior_learns_from_pictures_in_their_order_and_helps() -> None:
    pictures = []
    for quality in (20, 30, 40):
        stream = LRCodec(2, "jpeg", quality).encode(SampleImages().load("sample:astronaut"))
        pictures.append(parse_jpeg(stream))
    prior = learn_prior(iter(pictures))
    assert prior.dtype == np.uint8
    assert 0 < np.count_nonzero(prior) < prior.size // 2
    np.testing.assert_array_equal(prior, learn_prior(iter(pictures)))
    assert not np.array_equal(prior, learn_prior(iter(pictures[::-1])))

    def length(prior: np.ndarray, picture: JpegPicture) -> int:
        coder = coefficient_coding._new_coder(np.zeros(0, np.uint8), False, coefficient_coding._model(prior))
        coefficient_coding._code_planes(coder, picture.quality, picture.planes)
        return int(coder.state[4])

    assert length(prior, pictures[0]) < length(np.zeros_like(prior), pictures[0])
