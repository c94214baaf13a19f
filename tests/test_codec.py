import dataclasses
import io
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, features

from rlsr_env.codec import BASE_CODECS, DOWNSAMPLING_FILTERS, LRCodec, bits_per_pixel
from rlsr_env.images import SampleImages

SCALES = [1, 2, 3, 4, 8]


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return SampleImages().load("sample:chelsea")


def smooth_picture(height: int, width: int) -> np.ndarray:
    """A ramp in each direction, without an edge that chroma subsampling could blur."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 60 + 120 * rows / max(height, 2), 60 + 120 * columns / max(width, 2)
    return np.rint(np.stack([red, green, (red + green) / 2], axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 24), (33, 31)])
@pytest.mark.parametrize("downsampling", DOWNSAMPLING_FILTERS)
def test_lr_size_is_rounded_up(scale: int, size: tuple[int, int], downsampling: str) -> None:
    lr_image = LRCodec(scale, downsampling=downsampling).downsample(np.full((*size, 3), 50, np.uint8))
    assert lr_image.shape == (math.ceil(size[0] / scale), math.ceil(size[1] / scale), 3)
    assert lr_image.dtype == np.uint8
    assert (lr_image == 50).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("downsampling", DOWNSAMPLING_FILTERS)
@pytest.mark.parametrize("vertical", [False, True])
def test_lr_pixel_of_a_ramp_is_the_mean_of_the_hr_pixels_it_covers(
    scale: int, downsampling: str, vertical: bool
) -> None:
    # A filter centred on the block keeps a ramp's value at the block's centre; a shift by one HR pixel changes it by 2.
    ramp = np.arange(96, dtype=np.uint8) * 2
    hr_image = np.broadcast_to(ramp[None, :, None], (96, 96, 3))
    means = ramp.reshape(-1, scale).mean(axis=1)
    lr_image = LRCodec(scale, downsampling=downsampling).downsample(hr_image.swapaxes(0, 1) if vertical else hr_image)
    lr_ramp = lr_image[:, 0, 0] if vertical else lr_image[0, :, 0]
    # The filter reaches three blocks to each side, so the border blocks see the end of the ramp.
    np.testing.assert_allclose(lr_ramp[3:-3], means[3:-3], atol=0.51)


@pytest.mark.parametrize("scale", SCALES)
def test_bright_block_lights_its_own_lr_pixel_most(scale: int) -> None:
    hr_image = np.zeros((9 * scale, 9 * scale, 3), np.uint8)
    hr_image[4 * scale : 5 * scale, 6 * scale : 7 * scale] = 200
    lr_image = LRCodec(scale).downsample(hr_image)[..., 0].astype(int)
    assert np.unravel_index(lr_image.argmax(), lr_image.shape) == (4, 6)
    # The four neighbours alike, but for the rounding between the horizontal and the vertical pass.
    assert np.ptp([lr_image[3, 6], lr_image[5, 6], lr_image[4, 5], lr_image[4, 7]]) <= 1


def test_size_that_is_no_multiple_repeats_the_last_pixels_and_moves_nothing() -> None:
    hr_image = np.random.default_rng(0).integers(0, 256, (13, 18, 3), dtype=np.uint8)
    rows, columns = [*range(13), 12, 12, 12], [*range(18), 17, 17]
    codec = LRCodec(4)
    np.testing.assert_array_equal(codec.downsample(hr_image), codec.downsample(hr_image[rows][:, columns]))


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("downsampling", DOWNSAMPLING_FILTERS)
def test_checkerboard_becomes_grey(scale: int, downsampling: str) -> None:
    # Taking every scale-th pixel instead would give 0 or 255 everywhere.
    rows, columns = np.mgrid[0:64, 0:64]
    board = ((rows + columns) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    inner = LRCodec(scale, downsampling=downsampling).downsample(board)[3:-3, 3:-3]
    np.testing.assert_allclose(inner, 127.5, atol=2)


def test_downsampling_filters_differ(photograph: np.ndarray) -> None:
    lanczos, bicubic = (LRCodec(downsampling=name).downsample(photograph) for name in ("lanczos", "bicubic"))
    assert (lanczos != bicubic).any()


def test_input_is_not_changed_and_may_be_a_view(photograph: np.ndarray) -> None:
    view = photograph[3:61:2, ::-3]
    before = view.copy()
    codec = LRCodec(3)
    np.testing.assert_array_equal(codec.downsample(view), codec.downsample(before))
    assert codec.encode(view) == codec.encode(before)
    np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize("base", BASE_CODECS)
def test_bytes_are_the_same_each_time(base: str, photograph: np.ndarray) -> None:
    codec = LRCodec(2, base, 40)
    data = codec.encode(photograph)
    assert data == codec.encode(photograph)
    assert data == LRCodec(2, base, 40).compress(codec.downsample(photograph))


@pytest.mark.parametrize("base", BASE_CODECS)
def test_bytes_are_a_plain_file_of_the_format(base: str, photograph: np.ndarray) -> None:
    with Image.open(io.BytesIO(LRCodec(4, base).encode(photograph))) as image:
        assert (image.format, image.size) == (BASE_CODECS[base].pillow_format, (113, 75))
        assert not image.getexif() and "icc_profile" not in image.info and "comment" not in image.info


@settings(deadline=None, max_examples=20)
@given(base=st.sampled_from(list(BASE_CODECS)), scale=st.sampled_from(SCALES), data=st.data())
def test_decoded_shape_is_the_lr_shape_at_any_quality(base: str, scale: int, data: st.DataObject) -> None:
    quality = data.draw(st.sampled_from(BASE_CODECS[base].qualities))
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))
    hr_image = data.draw(arrays(np.uint8, shape))
    codec = LRCodec(scale, base, quality)
    lr_image = codec.decode(codec.encode(hr_image))
    assert lr_image.shape == (math.ceil(shape[0] / scale), math.ceil(shape[1] / scale), 3)
    assert lr_image.dtype == np.uint8
    assert lr_image.flags.c_contiguous and lr_image.flags.writeable


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(list(BASE_CODECS)), st.integers(90, 100), st.integers(8, 48), st.integers(8, 48))
def test_high_quality_keeps_smooth_pictures(base: str, quality: int, height: int, width: int) -> None:
    codec = LRCodec(2, base, quality)
    lr_image = smooth_picture(height, width)
    error = codec.decode(codec.compress(lr_image)).astype(int) - lr_image
    assert np.sqrt(np.mean(error**2)) < 5


@pytest.mark.parametrize("base", BASE_CODECS)
def test_higher_quality_takes_more_bytes_and_errs_less(base: str, photograph: np.ndarray) -> None:
    qualities = [BASE_CODECS[base].qualities[0], 25, 50, 75, 100]
    codecs = [LRCodec(2, base, quality) for quality in qualities]
    lr_image = codecs[0].downsample(photograph)
    files = [codec.compress(lr_image) for codec in codecs]
    errors = [
        np.square(codec.decode(data).astype(int) - lr_image).mean() for codec, data in zip(codecs, files, strict=True)
    ]
    assert [len(data) for data in files] == sorted(len(data) for data in files)
    assert errors == sorted(errors, reverse=True)
    assert len(files[0]) < len(files[-1]) / 5


def jpeg_segments(data: bytes) -> dict[int, bytes]:
    """Marker -> body of the last such segment, up to the start of scan (ISO/IEC 10918-1, annex B)."""
    segments, position = {}, 2
    while True:
        marker, length = struct.unpack(">xBH", data[position : position + 4])
        segments[marker] = data[position + 4 : position + 2 + length]
        if marker == 0xDA:
            return segments
        position += 2 + length


@pytest.mark.parametrize("quality", [5, 75, 100])
def test_jpeg_is_baseline_420_with_optimised_tables_and_no_metadata(quality: int, photograph: np.ndarray) -> None:
    codec = LRCodec(4, "jpeg", quality)
    data = codec.encode(photograph)
    segments = jpeg_segments(data)
    assert 0xC0 in segments and 0xC2 not in segments
    # SOF0: precision, height, width, number of components, then (id, sampling factors, table) for each.
    precision, height, width, components, *rest = struct.unpack(">BHHB9B", segments[0xC0])
    assert (precision, height, width, components) == (8, 75, 113, 3)
    assert rest[1::3] == [0x22, 0x11, 0x11]
    # JFIF's APP0, quantisation tables, frame, Huffman tables, scan: no EXIF, ICC profile or comment.
    assert set(segments) == {0xE0, 0xDB, 0xC0, 0xC4, 0xDA}
    plain = io.BytesIO()
    Image.fromarray(codec.downsample(photograph)).save(plain, "JPEG", quality=quality, subsampling="4:2:0")
    assert len(data) < len(plain.getvalue())


def test_grey_picture_stays_grey_in_rgb() -> None:
    hr_image = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32, 1).repeat(3, axis=2)
    codec = LRCodec(2, "jpeg", 90)
    lr_image = codec.decode(codec.encode(hr_image)).astype(int)
    assert np.ptp(lr_image, axis=2).max() <= 1


@pytest.mark.parametrize("base", BASE_CODECS)
def test_decode_refuses_bytes_that_are_no_picture_of_its_format(base: str, photograph: np.ndarray) -> None:
    codec = LRCodec(4, base)
    data = codec.encode(photograph)
    others = [LRCodec(4, other).encode(photograph) for other in BASE_CODECS if other != base]
    for wrong in [b"", b"words", data[:10], data[: len(data) // 2], data[: len(data) * 9 // 10], *others]:
        with pytest.raises(ValueError, match=rf"these {len(wrong)} bytes are no whole {base} picture"):
            codec.decode(wrong)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"scale": 0}, ValueError, "scale is at least 1; got 0"),
        ({"scale": -4}, ValueError, "scale is at least 1; got -4"),
        ({"scale": 2.0}, TypeError, r"scale is an integer; got 2\.0"),
        ({"scale": True}, TypeError, "scale is an integer; got True"),
        ({"scale": "4"}, TypeError, "scale is an integer; got '4'"),
        ({"quality": 75.0}, TypeError, "quality is an integer"),
        ({"quality": True}, TypeError, "quality is an integer"),
        ({"quality": 0}, ValueError, "quality of jpeg is 1 to 100; got 0"),
        ({"quality": 101}, ValueError, "quality of jpeg is 1 to 100; got 101"),
        ({"base": "webp", "quality": -1}, ValueError, "quality of webp is 0 to 100; got -1"),
        ({"base": "avif", "quality": 101}, ValueError, "quality of avif is 0 to 100; got 101"),
        ({"base": "png"}, ValueError, "unknown base codec 'png'; known: jpeg, webp, avif"),
        ({"downsampling": "nearest"}, ValueError, "unknown downsampling 'nearest'; known: lanczos, bicubic"),
    ],
)
def test_wrong_setting_says_what_is_right(setting: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LRCodec(**setting)


def test_quality_zero_is_valid_where_the_format_has_it() -> None:
    assert LRCodec(base="webp", quality=0).quality == LRCodec(base="avif", quality=0).quality == 0


def test_numpy_integers_become_python_integers() -> None:
    codec = LRCodec(np.int64(2), "avif", np.uint8(30))  # type: ignore[arg-type]
    assert codec == LRCodec(2, "avif", 30)
    assert type(codec.scale) is int and type(codec.quality) is int
    assert dataclasses.replace(codec, scale=3).scale == 3


@pytest.mark.parametrize("base", ["webp", "avif"])
def test_pillow_without_the_format_is_reported(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: feature == "jpg")
    assert LRCodec().base == "jpeg"
    with pytest.raises(ValueError, match=f"this build of Pillow cannot write {base}"):
        LRCodec(base=base)


@pytest.mark.parametrize("method", ["downsample", "encode", "compress"])
@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        ([[[0, 0, 0]]], TypeError, "got list"),
        (np.zeros((4, 4, 3), np.float32), TypeError, "got float32"),
        (np.zeros((4, 4, 3), np.int64), TypeError, "got int64"),
        (np.zeros((4, 4), np.uint8), ValueError, r"got \(4, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"got \(3, 4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), ValueError, r"got \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \(0, 4, 3\)"),
    ],
)
def test_wrong_picture_is_refused(method: str, picture: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(LRCodec(), method)(picture)


def test_picture_too_large_for_the_format_is_refused() -> None:
    # WebP's header has 14 bits for each side.
    with pytest.raises(ValueError, match=r"cannot store a picture of shape \(1, 16384, 3\) as webp"):
        LRCodec(base="webp").compress(np.zeros((1, 16384, 3), np.uint8))


def test_bits_per_pixel_counts_hr_pixels() -> None:
    # 30 bytes are 240 bits, over 40 * 60 = 2400 pixels.
    assert bits_per_pixel(bytes(30), (40, 60, 3)) == pytest.approx(0.1)
    assert bits_per_pixel(bytes(30), (40, 60)) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(), (40,), (0, 60, 3), (1, 3, 40, 60)])
def test_bits_per_pixel_refuses_a_shape_that_is_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="hr_shape is"):
        bits_per_pixel(b"", shape)
