import base64
import hashlib
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gan.evaluation import as_batch
from gan.file_format import (
    BASES,
    MAGIC,
    VERSION,
    Content,
    FileFormatError,
    Header,
    compress,
    decompress,
    pack,
    read_content,
    read_header,
    read_lr_stream,
    weights_of,
)
from gan.generator import Generator, GeneratorConfig
from gan.picture_files import Metadata
from gan.weights import save_generator
from gan.zoo import LANCZOS_WEIGHTS, Weights, read_weights
from rlsr_env.codec import LRCodec
from rlsr_env.images import SampleImages
from rlsr_env.peak_signal import psnr
from rlsr_env.resample import upsample
from rlsr_env.rounding import to_8bit

METADATA = Metadata(b"\0" * 16 + b"RGB " + b"profile" * 30, b"Exif\0\0something")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(SampleImages().load("sample:chelsea")[40:141, 90:267])


@pytest.fixture(scope="module")
def file(photograph: np.ndarray) -> bytes:
    return compress(photograph, scale=2, quality=30, metadata=METADATA)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights for each test, and none of the package's."""
    monkeypatch.setenv("RLSR_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("gan.zoo.PRETRAINED", tmp_path / "none")
    return tmp_path


@pytest.fixture
def network(folder: Path, make_generator: Callable[..., Generator]) -> Weights:
    """Weights of scale 2 for JPEG and PSNR."""
    path = folder / "x2-jpeg-psnr.safetensors"
    generator = make_generator(GeneratorConfig(scale=2, channels=4, n_blocks=1, base="none"))
    save_generator(path, generator, {"base_codec": "jpeg", "purpose": "psnr"})
    return read_weights(path)


def sealed(body: bytes) -> bytes:
    """With the checksum that belongs to it."""
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize(("base", "scale"), list(itertools.product(BASES, [1, 2, 3, 4, 7])))
@pytest.mark.parametrize("abbreviated", [False, True])
def test_lr_stream_is_the_codecs_own_to_the_byte_and_the_picture_lanczos(
    base: str, scale: int, abbreviated: bool, photograph: np.ndarray
) -> None:
    data = compress(photograph, scale=scale, base=base, quality=40, abbreviated=abbreviated)
    codec = LRCodec(scale, base, 40)
    lr_stream = codec.encode(photograph)
    content = read_content(data)
    assert content.header == Header(101, 177, scale, base, abbreviated=abbreviated)
    assert read_lr_stream(content) == lr_stream
    restored = decompress(data)
    expected = to_8bit(upsample(as_batch(codec.decode(lr_stream)), scale))[0, :, :101, :177].permute(1, 2, 0)
    assert restored.shape == photograph.shape and restored.dtype == np.uint8
    np.testing.assert_allclose(restored, 255 * expected.numpy(), atol=1.01)
    assert (len(data) < len(lr_stream)) == abbreviated


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (17, 16), (130, 129)])
@pytest.mark.parametrize("base", BASES)
def test_any_size(size: tuple[int, int], base: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for scale in (1, 3):
        assert decompress(compress(image, scale=scale, base=base)).shape == image.shape


def test_a_version_1_file_is_read_alike_for_ever() -> None:
    """Written by version 1 of the format: 60 x 44 pixels at scale 2, quality 25, abbreviated, with metadata."""
    data = base64.b64decode(GOLDEN)
    content = read_content(data)
    assert content.header == Header(44, 60, 2, "jpeg", abbreviated=True, has_metadata=True)
    assert content.metadata == Metadata(b"", b"Exif\0\0II*\0")
    stream = read_lr_stream(content)
    assert hashlib.sha256(stream).hexdigest() == GOLDEN_LR_SHA256


GOLDEN = (
    "k1JMUwEcLDwAE3jaY3CtyExjYPD01GIAAA9aAkkZXvGgJ4jukFO0SV4C8u7qPdO3j/HxrRXUPdj+psRt3Cq0KuTAo/hNoQ8heCU7"
    "3m+HLE1YEIIJVrgNEyj0PqCyTZeDl2yGnepu"
)
GOLDEN_LR_SHA256 = "a2f7f10c898d42f99b13d65c80b9d1c95095fafe60ecaf3aa2289c7bfff6c81f"


def test_header_costs_little(photograph: np.ndarray) -> None:
    plain = compress(photograph, abbreviated=False)
    assert len(plain) == len(LRCodec(2, "jpeg", 30).encode(photograph)) + 14
    assert plain[:4] == MAGIC and plain[4] == VERSION


def test_metadata_come_back(file: bytes, photograph: np.ndarray) -> None:
    assert read_content(file).metadata == METADATA
    assert read_header(file).has_metadata
    assert read_content(compress(photograph)).metadata == Metadata()


def test_metadata_beyond_the_limit_are_refused(photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan.file_format.MAX_METADATA", 101)
    assert read_content(compress(photograph, metadata=Metadata(b"p" * 100))).metadata.icc_profile == b"p" * 100
    with pytest.raises(ValueError, match="colour profile and EXIF have 102 bytes, more than 101; drop them"):
        compress(photograph, metadata=Metadata(b"p" * 101))


def test_metadata_that_unpack_to_more_than_the_limit_are_refused() -> None:
    bomb = zlib.compress(bytes((1 << 24) + 1), 9)
    size = len(bomb)
    varint = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
    with pytest.raises(FileFormatError, match="metadata are cut off, or have more than"):
        read_content(sealed(MAGIC + bytes([VERSION, 0x18, 9, 9, 0]) + varint + bomb))


def test_weights_are_named_and_found(network: Weights, photograph: np.ndarray) -> None:
    data = compress(photograph)
    header = read_header(data)
    assert (header.weights, header.sha256_prefix) == ("x2-jpeg-psnr", network.sha256[:4])
    assert weights_of(header) == network
    by_network, by_lanczos = decompress(data, precision="fp32"), decompress(data, weights=LANCZOS_WEIGHTS)
    assert not np.array_equal(by_network, by_lanczos)
    np.testing.assert_array_equal(decompress(data, weights=network, tile=16, precision="fp32"), by_network)
    assert read_header(compress(photograph, scale=3)).weights == "lanczos"
    assert read_header(compress(photograph, base="webp")).weights == "lanczos"


def test_missing_and_other_weights_are_named(
    network: Weights, folder: Path, photograph: np.ndarray, make_generator: Callable[..., Generator]
) -> None:
    data = compress(photograph)
    assert network.path is not None
    other = make_generator(GeneratorConfig(scale=2, channels=4, n_blocks=1, base="none"), seed=1)
    save_generator(network.path, other, {"base_codec": "jpeg", "purpose": "psnr"})
    with pytest.raises(FileFormatError, match=r"'x2-jpeg-psnr' here have the sha256 .* the file was made with"):
        decompress(data)
    with pytest.raises(FileFormatError, match="the file was made for 'x2-jpeg-psnr'"):
        decompress(data, weights=read_weights(network.path))
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(FileFormatError, match=r"'x2-jpeg-psnr' are not here \(there are: none\); put them into"):
        decompress(data)
    assert decompress(data, weights=LANCZOS_WEIGHTS).shape == photograph.shape


def test_weights_of_another_scale_are_refused(network: Weights, photograph: np.ndarray) -> None:
    lr_stream = LRCodec(3, "jpeg", 30).encode(photograph)
    with pytest.raises(ValueError, match="weights 'x2-jpeg-psnr' are for scale 2, not 3"):
        pack(lr_stream, photograph.shape[:2], 3, "jpeg", network)
    data = bytearray(compress(photograph))
    data[5] = data[5] & 0x0F | 2 << 4
    with pytest.raises(FileFormatError, match="the file has scale 3, its weights 'x2-jpeg-psnr' have 2"):
        weights_of(read_header(sealed(bytes(data[:-4]))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 17}, "scales of 1 to 16, got 17"),
        ({"base": "gif"}, "base codecs jpeg, webp, avif, got 'gif'"),
        ({"hr_size": (200, 354)}, "LR stream has 89 x 51 pixels, not 177 x 100"),
        ({"base": "webp"}, "no simple WebP file"),
        ({"weights": Weights("two words", 2, Path("w"), {"sha256": "00"})}, "name of 1 to 255 ASCII characters"),
        ({"weights": Weights("é", 2, Path("w"), {"sha256": "00"})}, "name of 1 to 255 ASCII characters"),
    ],
)
def test_what_no_file_can_be_made_of_is_refused(change: dict[str, Any], message: str, photograph: np.ndarray) -> None:
    lr_stream = LRCodec(2, "jpeg", 30).encode(photograph)
    given = {"hr_size": photograph.shape[:2], "scale": 2, "base": "jpeg", "weights": LANCZOS_WEIGHTS, **change}
    with pytest.raises(ValueError, match=message):
        pack(lr_stream, **given)


def test_every_cut_is_refused(file: bytes) -> None:
    for length in range(len(file)):
        with pytest.raises(FileFormatError):
            read_content(file[:length])


def test_every_changed_byte_is_refused(file: bytes) -> None:
    for position in range(len(file)):
        damaged = bytearray(file)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(FileFormatError):
            read_content(bytes(damaged))


def with_body(file: bytes, change: Callable[[bytearray], None]) -> bytes:
    """Changed behind the checksum's back."""
    body = bytearray(file[:-4])
    change(body)
    return sealed(bytes(body))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\xff\xd8\xff\xe0 a JPEG file", "this is no .rlsr file: it begins with"),
        (MAGIC[:2], "damaged or cut off"),
        (MAGIC + b"\2 what version 2 is like", "has version 2 of the format, this program reads 1"),
        (sealed(MAGIC + b"\0\0"), "has version 0 of the format, this program reads 1"),
        (sealed(MAGIC + b"\1\3\1\1"), "unknown base codec"),
        (sealed(MAGIC + b"\1\0\0\1\0"), "a picture of 1 x 0 pixels"),
        (sealed(MAGIC + b"\1\0\1"), "cut off: 1 bytes were promised, 0 are left"),
        (sealed(MAGIC + b"\1\0\xff\xff\xff\xff\xff\xff"), "a length of more than 35 bits"),
        (sealed(MAGIC + b"\1\0\1\1\x09abc"), "cut off: 9 bytes were promised, 3 are left"),
        (sealed(MAGIC + b"\1\0\1\1\2a\n1234"), "which is no name"),
        (sealed(MAGIC + b"\1\x08\1\1\0\4abcd"), "the metadata are damaged"),
        (sealed(MAGIC + b"\1\x08\1\1\0\x7f"), "cut off: 127 bytes were promised, 0 are left"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_content(data)
    with pytest.raises(FileFormatError, match=message):
        decompress(data)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("abbreviated", [False, True])
def test_a_size_that_is_not_the_streams_is_refused(base: str, abbreviated: bool, photograph: np.ndarray) -> None:
    lr_image = LRCodec(2, base, 40).downsample(photograph[:16, :16])
    lr_stream = LRCodec(2, base, 40).compress(lr_image)
    body = bytearray(pack(lr_stream, (16, 16), 2, base, LANCZOS_WEIGHTS, abbreviated)[:-4])
    body[6] = 32
    lying = sealed(bytes(body))
    if (base == "jpeg" and abbreviated) or (base == "webp" and abbreviated):
        try:  # the size is nowhere else: it is another picture, or none
            assert decompress(lying).shape == (32, 16, 3)
        except FileFormatError:
            pass
        return
    with pytest.raises(FileFormatError, match="the LR picture has 8 x 8 pixels, the file says 8 x 16"):
        decompress(lying)


@pytest.mark.parametrize("flags", [0x00, 0x04, 0x01, 0x05, 0x02, 0x06])
def test_a_size_that_would_take_all_memory_is_refused_first(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = bytes(4 * [0xFF] + [0x7F])
    data = sealed(MAGIC + bytes([VERSION, flags]) + huge + huge + b"\0" + 50 * b"\x20")
    with pytest.raises(FileFormatError, match="more than the 268435456 that are allowed; give a higher max_pixels"):
        with monkeypatch.context() as patch:
            patch.setattr("gan.file_format.restore_stream", lambda *_: pytest.fail("something was decoded"))
            decompress(data)
    with pytest.raises(FileFormatError, match="= 17877 pixels, more than the 17876 that are allowed"):
        decompress(compress(np.zeros((101, 177, 3), np.uint8)), max_pixels=17876)
    assert decompress(compress(np.zeros((101, 177, 3), np.uint8)), max_pixels=17877).shape == (101, 177, 3)


def test_too_little_memory_is_the_same_error(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("gan.file_format.restore_stream", exhausted)
    with pytest.raises(FileFormatError, match="too little memory for 177 x 101 pixels"):
        decompress(file)


@pytest.mark.parametrize("base", BASES)
def test_a_foreign_stream_inside_is_refused(base: str) -> None:
    other = {"jpeg": "webp", "webp": "avif", "avif": "jpeg"}[base]
    stream = LRCodec(1, other, 40).encode(np.zeros((20, 20, 3), np.uint8))
    body = MAGIC + bytes([VERSION, BASES.index(base), 20, 20, 0]) + stream
    with pytest.raises(FileFormatError):
        decompress(sealed(body))


def test_self_ensemble_and_tiles(network: Weights, photograph: np.ndarray) -> None:
    data = compress(photograph)
    whole = decompress(data, self_ensemble=True, precision="fp32")
    tiled = decompress(data, self_ensemble=True, precision="fp32", tile=16)
    assert (whole != tiled).mean() < 1e-3  # where a value lies between two levels, up to rounding
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert not np.array_equal(whole, decompress(data, precision="fp32"))


def test_restored_photograph_is_near_the_original(photograph: np.ndarray) -> None:
    restored = decompress(compress(photograph, scale=1, quality=90))
    assert psnr(as_batch(restored), as_batch(photograph)).item() > 35


def test_content_can_be_taken_apart_without_a_decoder(file: bytes) -> None:
    content = read_content(file)
    assert isinstance(content, Content)
    assert 0 < len(content.stored) < len(file)


@pytest.mark.parametrize("data", ["text", None, 5, np.zeros(40, np.uint8)], ids=lambda data: type(data).__name__)
def test_data_that_is_no_bytes_is_refused(data: Any) -> None:
    with pytest.raises(TypeError, match=f"data is the content of a file, as bytes; got {type(data).__name__}"):
        decompress(data)


def test_any_kind_of_bytes_is_read() -> None:
    image = np.full((20, 30, 3), 99, np.uint8)
    data = compress(image, scale=2, quality=30, weights=LANCZOS_WEIGHTS)
    for kind in (bytearray, memoryview):
        assert np.array_equal(decompress(kind(data)), decompress(data))  # type: ignore[arg-type]


def test_name_of_weights_in_their_place_is_refused() -> None:
    image = np.full((20, 30, 3), 99, np.uint8)
    with pytest.raises(TypeError, match=r"read_weights\(path\) returns, or None; got 'x2-jpeg-psnr'"):
        compress(image, scale=2, quality=30, weights="x2-jpeg-psnr")  # type: ignore[arg-type]
    data = compress(image, scale=2, quality=30, weights=LANCZOS_WEIGHTS)
    with pytest.raises(TypeError, match="got 'lanczos'"):
        decompress(data, weights="lanczos")  # type: ignore[arg-type]


def test_metadata_of_another_type_are_refused() -> None:
    image = np.full((20, 30, 3), 99, np.uint8)
    with pytest.raises(TypeError, match=r"metadata are a Metadata, .* got bytes"):
        compress(image, scale=2, quality=30, weights=LANCZOS_WEIGHTS, metadata=b"exif")  # type: ignore[arg-type]
