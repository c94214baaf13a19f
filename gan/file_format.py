"""The `.rlsr` file: an LR stream and what a reader needs to make the original's size of it (docs/file-format.md)."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gan.abbreviation import AbbreviationError, abbreviate, restore_stream
from gan.jpeg_streams import JpegStreamError, jpeg_size
from gan.picture_files import MAX_PIXELS, Metadata, check_pixels, pillow_takes
from gan.tiling import DEFAULT_TILE
from gan.zoo import (
    LANCZOS,
    N_SHA256_BYTES,
    MissingWeightsError,
    Weights,
    check_weights,
    choose_weights,
    find_weights,
    load_decoder,
)
from rlsr_env.codec import LRCodec
from rlsr_env.images import DECODE_ERRORS

MAGIC = b"\x93RLS"
VERSION = 1
SUFFIX = ".rlsr"
# The number of a base codec in a file.
BASES = ("jpeg", "webp", "avif")
MAX_SCALE = 16
MAX_METADATA = 1 << 24
_ABBREVIATED, _METADATA = 0x04, 0x08
_CHECKSUM = struct.Struct("<I")


class FileFormatError(ValueError):
    """Bytes that are no file of ours, a damaged one, or one that cannot be read here."""


@dataclass(frozen=True)
class Header:
    """What a file says before its LR stream.

    Attributes:
        version: Of the format.
        height: Of the original, in pixels.
        width: Of the original, in pixels.
        scale: SR pixels for each LR pixel along each side, 1 to `MAX_SCALE`.
        base: The base codec of the LR stream, one of `BASES`.
        weights: Name of the weights that restore it; `"lanczos"` for none.
        sha256_prefix: First bytes of the weights' sha256; empty for Lanczos.
        abbreviated: Whether the LR stream is stored abbreviated.
        has_metadata: Whether there is a colour profile or EXIF.
    """

    height: int
    width: int
    scale: int
    base: str
    weights: str = LANCZOS
    sha256_prefix: bytes = b""
    abbreviated: bool = False
    has_metadata: bool = False
    version: int = VERSION

    @property
    def lr_size(self) -> tuple[int, int]:
        """Height and width of the LR picture."""
        return -(-self.height // self.scale), -(-self.width // self.scale)


@dataclass(frozen=True)
class Content:
    """All that a file holds.

    Attributes:
        header: How to read the rest.
        stored: The LR stream as it is stored, maybe abbreviated.
        metadata: Colour profile and EXIF.
    """

    header: Header
    stored: bytes
    metadata: Metadata


def compress(
    image: np.ndarray,
    *,
    scale: int = 2,
    base: str = "jpeg",
    quality: int = 30,
    weights: Weights | None = None,
    purpose: str = "psnr",
    abbreviated: bool = True,
    metadata: Metadata | None = None,
) -> bytes:
    """Make a file of a picture.

    Args:
        image: The original, `(H, W, 3)` uint8.
        scale: By how much it is shrunk, 1 to `MAX_SCALE`.
        base: The base codec: `"jpeg"`, `"webp"` or `"avif"`.
        quality: The base codec's quality.
        weights: What shall restore it; where not given, those that `gan.zoo.choose_weights` finds for `purpose`.
        purpose: What the restored picture shall be good at.
        abbreviated: Leave out of the LR stream what a reader can rebuild to the byte, where that is possible.
        metadata: Colour profile and EXIF to keep.

    Returns:
        The file.

    Raises:
        TypeError: A setting or the picture has the wrong type.
        ValueError: A setting is out of range, or the picture or its metadata too large for the format.
    """
    codec = LRCodec(scale, base, quality)
    lr_stream = codec.encode(image)
    check_weights(weights)
    weights = choose_weights(codec.scale, base, purpose) if weights is None else weights
    return pack(lr_stream, image.shape[:2], codec.scale, base, weights, abbreviated, metadata or Metadata())


def pack(
    lr_stream: bytes,
    hr_size: tuple[int, ...],
    scale: int,
    base: str,
    weights: Weights,
    abbreviated: bool = True,
    metadata: Metadata = Metadata(),  # noqa: B008 (it is frozen)
) -> bytes:
    """Make a file of an LR stream.

    Args:
        lr_stream: A file of the base codec.
        hr_size: Height and width of the original.
        scale: By how much it was shrunk.
        base: The base codec.
        weights: What restores it.
        abbreviated: As for `compress`.
        metadata: As for `compress`.

    Returns:
        The file.

    Raises:
        TypeError: The metadata are no `Metadata`.
        ValueError: The scale or the base codec is unknown, the LR stream is none of that size, the weights are for
            another scale or have a name that does not fit, or the metadata are too large.
    """
    if not isinstance(metadata, Metadata):
        raise TypeError(
            f"metadata are a Metadata, as Metadata(icc_profile=..., exif=...); got {type(metadata).__name__}"
        )
    if not 1 <= scale <= MAX_SCALE:
        raise ValueError(f"a file takes scales of 1 to {MAX_SCALE}, got {scale}")
    if base not in BASES:
        raise ValueError(f"a file takes the base codecs {', '.join(BASES)}, got {base!r}")
    if weights.path is not None and weights.scale != scale:
        raise ValueError(f"the weights {weights.name!r} are for scale {weights.scale}, not {scale}")
    height, width = hr_size
    lr_size = (-(-height // scale), -(-width // scale))
    if (size := _stream_size(lr_stream, base)) != lr_size:
        raise ValueError(f"the LR stream has {size[1]} x {size[0]} pixels, not {lr_size[1]} x {lr_size[0]}")
    short = abbreviate(lr_stream, base, lr_size) if abbreviated else None
    flags = BASES.index(base) | (scale - 1) << 4
    flags |= (_ABBREVIATED if short is not None else 0) | (_METADATA if metadata else 0)
    name = b"" if weights.path is None else _name_bytes(weights.name)
    parts = [MAGIC, bytes([VERSION, flags]), _varint(height), _varint(width), bytes([len(name)]), name]
    parts.append(weights.sha256[:N_SHA256_BYTES] if name else b"")
    if metadata:
        chunk = _varint(len(metadata.icc_profile)) + metadata.icc_profile + metadata.exif
        if len(chunk) > MAX_METADATA:
            raise ValueError(f"colour profile and EXIF have {len(chunk)} bytes, more than {MAX_METADATA}; drop them")
        packed = zlib.compress(chunk, 9)
        parts += [_varint(len(packed)), packed]
    parts.append(lr_stream if short is None else short)
    body = b"".join(parts)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def read_header(data: bytes) -> Header:
    """Read what a file says about itself. Of the LR stream, nothing is looked at.

    Args:
        data: The whole file.

    Returns:
        Its header.

    Raises:
        FileFormatError: It is no file of ours, of a later version, or damaged.
    """
    return read_content(data).header


def read_content(data: bytes) -> Content:
    """Take a file apart; nothing is decoded.

    Args:
        data: The whole file.

    Returns:
        Its parts.

    Raises:
        FileFormatError: As for `read_header`.
        TypeError: `data` is not bytes.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"data is the content of a file, as bytes; got {type(data).__name__}")
    data = bytes(data)
    if not data:
        raise FileFormatError("the file is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise FileFormatError(f"this is no {SUFFIX} file: it begins with {data[:4]!r}, not with {MAGIC!r}")
    if len(data) > len(MAGIC) and data[len(MAGIC)] > VERSION:
        raise FileFormatError(f"the file has version {data[len(MAGIC)]} of the format, this program reads {VERSION}")
    body, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
    if len(body) < len(MAGIC) + 1 or _CHECKSUM.pack(zlib.crc32(body)) != checksum:
        raise FileFormatError("the file is damaged or cut off: its checksum is another one")
    return _read_body(_Reader(body, len(MAGIC)))


def read_lr_stream(content: Content, max_pixels: int = MAX_PIXELS) -> bytes:
    """The plain JPEG, WebP or AVIF file of a file's parts, which any viewer opens.

    Args:
        content: From `read_content`.
        max_pixels: Files of larger pictures are refused, by the original's size.

    Returns:
        The same bytes that the base codec made.

    Raises:
        FileFormatError: The picture is too large, or the stream no picture of that size.
    """
    header = content.header
    try:
        check_pixels(header.height, header.width, max_pixels)
        stream = content.stored
        if header.abbreviated:
            stream = restore_stream(stream, header.base, header.lr_size)
        size = _stream_size(stream, header.base)
    except (AbbreviationError, JpegStreamError) as error:
        raise FileFormatError(f"the LR stream is damaged: {error}") from error
    except MemoryError as error:
        raise FileFormatError(f"there is too little memory for {header.width} x {header.height} pixels") from error
    except ValueError as error:
        raise FileFormatError(str(error)) from error
    if size != header.lr_size:
        raise FileFormatError(
            f"the LR picture has {size[1]} x {size[0]} pixels, the file says {header.lr_size[1]} x {header.lr_size[0]}"
        )
    return stream


def decompress(
    data: bytes,
    *,
    weights: Weights | None = None,
    device: str = "auto",
    precision: str = "auto",
    tile: int = DEFAULT_TILE,
    self_ensemble: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Restore the picture of a file.

    Args:
        data: The whole file.
        weights: What to restore it with; where not given, what the file names. Others than those that it names are
            refused, except Lanczos.
        device: `"auto"`, `"cpu"`, `"cuda"`, ...
        precision: `"auto"`, `"fp32"` or `"bf16"`.
        tile: Side of the tiles that the network sees, in LR pixels; bounds the memory.
        self_ensemble: Average over eight flips and turns: better, eight times slower.
        max_pixels: Larger pictures are refused before anything is decoded.

    Returns:
        `(H, W, 3)` uint8, of the original's size.

    Raises:
        FileFormatError: The file cannot be read; nothing else comes of a file, whatever is in it.
        ValueError: A setting is wrong, or weights on this machine are damaged.
    """
    content = read_content(data)
    return restore(content, weights, device, precision, tile, self_ensemble, max_pixels)


def restore(
    content: Content,
    weights: Weights | None = None,
    device: str = "auto",
    precision: str = "auto",
    tile: int = DEFAULT_TILE,
    self_ensemble: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Restore the picture of a file's parts; see `decompress`."""
    header = content.header
    lr_stream = read_lr_stream(content, max_pixels)
    weights = weights_of(header, weights)
    lr_image = decode_lr_stream(lr_stream, header)
    if weights.path is None and header.scale == 1:
        return lr_image
    decoder = load_decoder(weights, header.scale, device, precision, tile, self_ensemble)
    return decoder.restore(lr_image, (header.height, header.width))


def weights_of(header: Header, given: Weights | None = None) -> Weights:
    """The weights that restore a file.

    Args:
        header: What the file says.
        given: What the user says: Lanczos, or where the weights are that the file names.

    Returns:
        The weights.

    Raises:
        FileFormatError: They are not here, or others, or for another scale.
        TypeError: `given` is something else than weights.
    """
    check_weights(given)
    if given is not None and given.path is not None:
        if not header.sha256_prefix or not given.sha256.startswith(header.sha256_prefix):
            made_with = f"{header.weights!r} ({header.sha256_prefix.hex()}...)" if header.sha256_prefix else LANCZOS
            raise FileFormatError(
                f"the file was made for {made_with}, the weights given are {given.name!r} ({given.sha256.hex()[:8]}...)"
            )
        weights = given
    else:
        try:
            weights = given or find_weights(header.weights, header.sha256_prefix)
        except MissingWeightsError as error:
            raise FileFormatError(str(error)) from error
    if weights.path is not None and weights.scale != header.scale:
        raise FileFormatError(f"the file has scale {header.scale}, its weights {weights.name!r} have {weights.scale}")
    return weights


def decode_lr_stream(stream: bytes, header: Header) -> np.ndarray:
    """The LR picture.

    Args:
        stream: From `read_lr_stream`.
        header: Of the same file.

    Returns:
        `(h, w, 3)` uint8.

    Raises:
        FileFormatError: The stream is damaged.
    """
    try:
        with pillow_takes(header.lr_size[0] * header.lr_size[1]):
            lr_image = LRCodec(header.scale, header.base).decode(stream)
    except (ValueError, MemoryError) as error:
        raise FileFormatError(f"the LR stream is damaged: {error}") from error
    if lr_image.shape[:2] != header.lr_size:
        raise FileFormatError(f"the LR stream is damaged: it holds a picture of shape {lr_image.shape}")
    return lr_image


def _read_body(reader: _Reader) -> Content:
    """Everything after the magic bytes, without the checksum."""
    version, flags = reader.take(2)
    if version != VERSION:
        raise FileFormatError(f"the file has version {version} of the format, this program reads {VERSION}")
    if flags & 3 >= len(BASES):
        raise FileFormatError("the file has an unknown base codec")
    height, width = reader.varint(), reader.varint()
    if not height or not width:
        raise FileFormatError(f"the file has a picture of {width} x {height} pixels")
    name = reader.take(reader.take(1)[0])
    if not all(0x21 <= byte <= 0x7E for byte in name):
        raise FileFormatError(f"the file names weights {name!r}, which is no name")
    sha256_prefix = reader.take(N_SHA256_BYTES) if name else b""
    metadata = _unpack_metadata(reader.take(reader.varint())) if flags & _METADATA else Metadata()
    header = Header(
        height, width, scale=(flags >> 4) + 1, base=BASES[flags & 3], weights=name.decode() or LANCZOS,
        sha256_prefix=sha256_prefix, abbreviated=bool(flags & _ABBREVIATED), has_metadata=bool(flags & _METADATA),
    )  # fmt: skip
    return Content(header, reader.rest(), metadata)


def _unpack_metadata(packed: bytes) -> Metadata:
    """Colour profile and EXIF."""
    inflater = zlib.decompressobj()
    try:
        chunk = inflater.decompress(packed, MAX_METADATA + 1)
    except zlib.error as error:
        raise FileFormatError(f"the metadata are damaged ({error})") from error
    if not inflater.eof or inflater.unused_data or len(chunk) > MAX_METADATA:
        raise FileFormatError(f"the metadata are cut off, or have more than {MAX_METADATA} bytes")
    reader = _Reader(chunk)
    return Metadata(reader.take(reader.varint()), reader.rest())


def _stream_size(stream: bytes, base: str) -> tuple[int, int]:
    """Height and width that a stream claims, before it is decoded."""
    if base == "jpeg":
        return jpeg_size(stream)
    if base == "webp":
        # A simple file with one lossy key frame (RFC 6386, section 9.1); Pillow would allocate for any other at once.
        if stream[:4] != b"RIFF" or stream[8:16] != b"WEBPVP8 " or stream[23:26] != b"\x9d\x01\x2a" or len(stream) < 30:
            raise FileFormatError("the LR stream is no simple WebP file")
        width, height = struct.unpack("<HH", stream[26:30])
        return height & 0x3FFF, width & 0x3FFF
    try:
        with pillow_takes(MAX_PIXELS), Image.open(io.BytesIO(stream), formats=[base.upper()]) as image:
            return image.height, image.width
    except (*DECODE_ERRORS, MemoryError) as error:
        raise FileFormatError(f"the LR stream is no {base} file: {error}") from error


def _name_bytes(name: str) -> bytes:
    """The name of weights as a file holds it."""
    encoded = name.encode("ascii", "replace")
    if not 0 < len(encoded) < 256 or encoded.decode() != name or not all(0x21 <= byte <= 0x7E for byte in encoded):
        raise ValueError(f"weights need a name of 1 to 255 ASCII characters without spaces, got {name!r}")
    return encoded


def _varint(number: int) -> bytes:
    """Seven bits in each byte, the lowest ones first; the highest bit says that there are more."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


class _Reader:
    """Reads bytes from the front, and says where there are too few."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self._data, self._position = data, position

    def take(self, n_bytes: int) -> bytes:
        """The next bytes."""
        taken = self._data[self._position : self._position + n_bytes]
        if len(taken) < n_bytes:
            raise FileFormatError(f"the file is cut off: {n_bytes} bytes were promised, {len(taken)} are left")
        self._position += n_bytes
        return taken

    def varint(self) -> int:
        """A number of at most five bytes, as `_varint` writes it."""
        number = 0
        for place in range(5):
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return number
        raise FileFormatError("the file has a length of more than 35 bits")

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data) - self._position)
