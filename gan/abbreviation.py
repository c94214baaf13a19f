"""LR streams without what a reader can rebuild: the same file, to the byte, in fewer bytes.

A JPEG file becomes its quality and its coefficients, which are coded better than JPEG does (`gan.coefficient_coding`).
Of an AVIF file, the boxes before the pictures' data are compressed against those of a typical file. Of a WebP file,
the lengths in its head are left out. Whatever is abbreviated is restored at once and compared; where it is not the
same, or not shorter, the caller keeps the whole file.
"""

from __future__ import annotations

import struct
import zlib

from gan.jpeg_streams import JpegPicture, JpegStreamError, parse_jpeg, plane_shapes, write_jpeg

# The head of a file that libavif 1.4 wrote for a picture of 192 x 128 pixels: what zlib may refer to. Part of the
# format, so it never changes.
AVIF_HEAD = (
    b"\0\0\0 ftypavif\0\0\0\0avifmif1miafMA1B\0\0\0\xebmeta\0\0\0\0\0\0\0!hdlr\0\0\0\0\0\0\0\0pict\0\0\0\0\0\0\0\0\0"
    b"\0\0\0\0\0\0\0\x0epitm\0\0\0\0\0\x01\0\0\0\x1eiloc\0\0\0\0D\0\0\x01\0\x01\0\0\0\x01\0\0\x01\x13\0\0\x17\x0f\0\0\0"
    b"(iinf\0\0\0\0\0\x01\0\0\0\x1ainfe\x02\0\0\0\0\x01\0\0av01Color\0\0\0\0jiprp\0\0\0Kipco\0\0\0\x14ispe\0\0\0\0\0\0\0"
    b"\xc0\0\0\0\x80\0\0\0\x10pixi\0\0\0\0\x03\x08\x08\x08\0\0\0\x0cav1C\x81\0\x0c\0\0\0\0\x13colrnclx\0\x01\0\r\0\x06"
    b"\x80\0\0\0\x17ipma\0\0\0\0\0\0\0\x01\0\x01\x04\x01\x02\x83\x04\0\0\x17\x17mdat\x12\0\n\t"
)
MAX_AVIF_HEAD = 4096


class AbbreviationError(ValueError):
    """Bytes that are no abbreviated LR stream."""


def abbreviate(stream: bytes, base: str, lr_size: tuple[int, int]) -> bytes | None:
    """Leave out of an LR stream what `restore_stream` rebuilds.

    Args:
        stream: A file of a base codec.
        base: Its name, as in `rlsr_env.codec.BASE_CODECS`.
        lr_size: Height and width of its picture.

    Returns:
        Fewer bytes, or None where that is not possible.
    """
    shorten, restore = _METHODS[base]
    try:
        short = shorten(stream)
        same = short is not None and restore(short, *lr_size) == stream
    except (AbbreviationError, JpegStreamError):
        return None
    return short if same and short is not None and len(short) < len(stream) else None


def restore_stream(short: bytes, base: str, lr_size: tuple[int, int]) -> bytes:
    """Rebuild an LR stream.

    Args:
        short: What `abbreviate` made of it.
        base: The base codec.
        lr_size: Height and width of its picture.

    Returns:
        The file of the base codec.

    Raises:
        AbbreviationError: Where the bytes are not what `abbreviate` makes.
    """
    try:
        return _METHODS[base][1](short, *lr_size)
    except JpegStreamError as error:
        raise AbbreviationError(str(error)) from error


def _shorten_jpeg(stream: bytes) -> bytes | None:
    """The quality, then the code of the coefficients."""
    from gan.coefficient_coding import encode_planes  # compiled by Numba, which takes its time to be imported

    picture = parse_jpeg(stream)
    code = encode_planes(picture.quality, picture.planes, room=len(stream))
    return None if code is None else bytes([picture.quality]) + code


def _restore_jpeg(short: bytes, height: int, width: int) -> bytes:
    """Coefficients and size are all that `write_jpeg` needs."""
    from gan.coefficient_coding import decode_planes

    if not short or not 1 <= short[0] <= 100:
        raise AbbreviationError("the abbreviated JPEG file has no quality")
    planes = decode_planes(short[1:], short[0], plane_shapes(height, width))
    return write_jpeg(JpegPicture(height, width, short[0], planes))


def _shorten_avif(stream: bytes) -> bytes | None:
    """All up to the name of the box of data, compressed; the data as they are."""
    end = stream.find(b"mdat") + 4
    if not 4 < end <= MAX_AVIF_HEAD:
        return None
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=AVIF_HEAD)
    return compressor.compress(stream[:end]) + compressor.flush() + stream[end:]


def _restore_avif(short: bytes, height: int, width: int) -> bytes:
    """The compressed head says itself where it ends."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=AVIF_HEAD)
    try:
        head = inflater.decompress(short, MAX_AVIF_HEAD)
    except zlib.error as error:
        raise AbbreviationError(f"the head of the abbreviated AVIF file is damaged ({error})") from error
    if not inflater.eof:
        raise AbbreviationError("the head of the abbreviated AVIF file is cut off or too long")
    return head + inflater.unused_data


def _shorten_webp(stream: bytes) -> bytes | None:
    """The frame without the heads of file and chunk, the start code and the size (RFC 6386, section 9.1)."""
    return stream[20:23] + stream[30:]


def _restore_webp(short: bytes, height: int, width: int) -> bytes:
    """Lengths and size are known."""
    if len(short) < 3 or max(height, width) >= 1 << 14:
        raise AbbreviationError("the abbreviated WebP file is cut off or too large for its format")
    frame = short[:3] + b"\x9d\x01\x2a" + struct.pack("<HH", width, height) + short[3:]
    return struct.pack("<4sI8sI", b"RIFF", len(frame) + 12, b"WEBPVP8 ", len(frame)) + frame


_METHODS = {
    "jpeg": (_shorten_jpeg, _restore_jpeg),
    "webp": (_shorten_webp, _restore_webp),
    "avif": (_shorten_avif, _restore_avif),
}
