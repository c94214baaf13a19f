"""Quantised DCT coefficients in fewer bytes than JPEG's Huffman codes: adaptive binary arithmetic coding.

Every decision is one bit. Its probability is learnt while coding, and before that from other pictures; several contexts
vote on it, as in Mahoney 2005 (PAQ, "Adaptive weighing of context models for lossless data compression"). The contexts
are what a block's neighbours above and to the left, its own coefficients so far and the other colours say. The
coefficients along a block's upper and left border, and its DC, are predicted from the neighbour: a picture goes on
across the border (Lakhani 2013, "Modifying JPEG binary arithmetic codec for exploiting inter/intra-block and DCT
coefficient redundancies").

All arithmetic is of integers, so every machine reads the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import boolean, int16, int32, int64, types, uint8, void

from gan.jpeg_streams import ZIGZAG, JpegPicture, quantisation_tables
from rlsr_env.cores import compiled_as

# Contexts of each bit. Each of them owns a row of probabilities, one for each node of a number's binary tree.
N_CONTEXTS = 6
NODES, LOG_ROWS = 32, 15
MAX_BITS = 12  # of a number
MAX_DC = 1024
# How fast probabilities move, by how many bits they have seen: at first by 1/1.7 of the way, at last by 1/122.
MAX_COUNT = 120
RATES = np.array([(10 * 65536) // (10 * n + 17) for n in range(MAX_COUNT + 1)])
# Of the contexts in a mixer, of 1 << 16; and how fast they move.
FIRST_WEIGHT, LEARNING_RATE = 13000, 25
# What is coded: how many coefficients of a group are not zero, magnitudes, signs. Each has mixers for some nodes.
COUNT, MAGNITUDE, SIGN = 0, 1, 2
MIXERS = 5
# Groups of a block: inside, in zigzag order; first row; first column. DC counts as one more.
N_GROUPS, DC = 3, 3
GROUPS = np.zeros((N_GROUPS, 49), np.int64)
for _group, _places in enumerate(([p for p in ZIGZAG if p & 7 and p >> 3], range(1, 8), range(8, 64, 8))):
    GROUPS[_group, : len(_places)] = _places
# 1024 times cos(u * pi / 16), for u = 0 the root of a half: what coefficient u adds to a pixel at the block's border.
BORDER = np.array([724, 1004, 946, 851, 724, 569, 392, 200])
# Logits in units of 1/256 to probabilities in units of 1/4096, and back. Decimal rounds alike everywhere.
SQUASH = np.array([min(4095, max(1, round(4096 / (1 + (-Decimal(x) / 256).exp())))) for x in range(-2047, 2048)])
STRETCH = (np.searchsorted(SQUASH, np.arange(4096)) - 2047).clip(-2047, 2047)

# Probabilities learnt from other pictures, as logits rounded to LEVELs: 0 where unknown, 17 for a logit of zero. Part
# of the format, so it never changes.
LEVEL = 128
PRIOR = Path(__file__).with_name("coefficient_prior.npz")
PRIOR_SHA256 = "30ce11ca5a027a9afdaff510c4226c1962a00a4af551724139e3d60a879b79e6"
PRIOR_COUNT = 12  # a probability from there counts as if it had seen so many bits

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


class Coder(NamedTuple):
    """The arithmetic coder and its model.

    Attributes:
        state: Low, high and value of the coder, 32 bits each; 1 where it decodes, else 0; position in `stream`.
        stream: The bytes, uint8.
        probabilities: That a bit is 1, in units of 1/65536; row after row.
        counts: How many bits each of them has seen, at most `MAX_COUNT`.
        weights: Of the contexts in each mixer.
        rows: Where the row of each current context begins.
    """

    state: np.ndarray
    stream: np.ndarray
    probabilities: np.ndarray
    counts: np.ndarray
    weights: np.ndarray
    rows: np.ndarray


# What Numba calls these types: a coder, the coefficients of a block and of a plane of blocks, a quantisation table.
CODER = types.NamedTuple([int64[::1], uint8[::1], int32[::1], int32[::1], int64[:, ::1], int64[::1]], Coder)
BLOCK, PLANE, TABLE = int16[::1], int16[:, :, ::1], int64[::1]


@cache
def _prior() -> np.ndarray:
    """The prior probabilities that come with the package."""
    content = PRIOR.read_bytes()
    if hashlib.sha256(content).hexdigest() != PRIOR_SHA256:
        raise RuntimeError(f"{PRIOR} is not the file that this version was released with; install rlsr again")
    with np.load(PRIOR) as arrays:
        return np.asarray(arrays["levels"])


@cache
def _known_model() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and counts to start from; to be copied."""
    return _model(_prior())


def _model(prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and counts that follow from what `PRIOR` holds."""
    logits = LEVEL * (np.arange(256) - 17)
    probabilities = np.where(np.arange(256) > 0, 16 * SQUASH[logits.clip(-2047, 2047) + 2047], 32768).astype(np.int32)
    return probabilities[prior], np.where(prior > 0, PRIOR_COUNT, 0).astype(np.int32)


def _new_coder(stream: np.ndarray, decode: bool, model: tuple[np.ndarray, np.ndarray]) -> Coder:
    """A coder at the start of a stream: bytes to read, or room to write to; uint8."""
    value = int.from_bytes(bytes(stream[:4]).ljust(4, b"\0"), "big")
    return Coder(
        state=np.array([0, 0xFFFFFFFF, value, int(decode), 4 if decode else 0]),
        stream=stream,
        probabilities=model[0].copy(),
        counts=model[1].copy(),
        weights=np.full((3 * 2 * (DC + 1) * MIXERS, N_CONTEXTS), FIRST_WEIGHT),
        rows=np.zeros(N_CONTEXTS, np.int64),
    )


@compiled_as(int64(CODER, int64, int64, int64), inner=True)
def _code_bit(coder: Coder, mixer: int, node: int, bit: int) -> int:
    """Code one bit in the current contexts; returns it."""
    state, stream, probabilities, counts, weights, rows = coder
    vote = 0
    for i in range(N_CONTEXTS):
        vote += weights[mixer, i] * STRETCH[probabilities[rows[i] + node] >> 4]
    probability = SQUASH[min(max(vote >> 16, -2047), 2047) + 2047]
    low, high = state[0], state[1]
    middle = low + ((high - low) >> 12) * probability + ((((high - low) & 4095) * probability) >> 12)
    if state[3]:
        bit = int(state[2] <= middle)
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) >> 24 == 0:
        if state[3]:
            byte = int(stream[state[4]]) if state[4] < len(stream) else 0
            state[2] = ((state[2] & 0xFFFFFF) << 8) | byte
        elif state[4] < len(stream):
            stream[state[4]] = high >> 24
        state[4] += 1
        low, high = (low & 0xFFFFFF) << 8, ((high & 0xFFFFFF) << 8) | 255
    state[0], state[1] = low, high
    error = ((bit << 12) - probability) * LEARNING_RATE
    for i in range(N_CONTEXTS):
        place = rows[i] + node
        old = probabilities[place]
        weights[mixer, i] += (STRETCH[old >> 4] * error + 32768) >> 16
        new = old + ((((65535 if bit else 0) - old) * RATES[counts[place]]) >> 16)
        probabilities[place] = min(max(new, 32), 65503)
        counts[place] = min(counts[place] + 1, MAX_COUNT)
    return bit


@compiled_as(int64(CODER, int64, int64), inner=True)
def _code_number(coder: Coder, mixer: int, number: int) -> int:
    """Code a number of 0 or more; returns it. First its length in bits, in unary; then the bits below the first."""
    length = 0
    while number >> length:
        length += 1
    coded = 0
    while coded < MAX_BITS and _code_bit(coder, mixer + min(coded, 3), coded, int(length > coded)):
        coded += 1
    value = min(coded, 1)
    for place in range(coded - 2, -1, -1):
        # The first two of these bits have a node for each value so far, the others one for each length.
        node = MAX_BITS + value if value < 4 else MAX_BITS + coded
        value = 2 * value + _code_bit(coder, mixer + 4, node, (number >> place) & 1)
    return value


@compiled_as(void(CODER, int64, int64, int64, int64, int64), inner=True)
def _set_context(coder: Coder, i: int, kind: int, a: int, b: int, c: int) -> None:
    """Make (a, b, c), each below 64, context i of what comes next. Rows are found by hashing; few are shared."""
    key = (((kind * 8 + i) * 64 + a) * 64 + b) * 64 + c
    coder.rows[i] = (((key * 0x9E3779B1) & 0xFFFFFFFF) >> (32 - LOG_ROWS)) * NODES


@compiled_as(int64(int64), inner=True)
def _bucket(number: int) -> int:
    """Numbers of 0 or more to 0..9, coarser where they are large."""
    if number < 3:
        return number
    bucket = 3
    for bound in (5, 7, 11, 17, 29, 60):
        if number < bound:
            return bucket
        bucket += 1
    return bucket


@compiled_as(int64(int64), inner=True)
def _sign(number: int) -> int:
    """0 for zero, 1 for more, 2 for less."""
    return int(number > 0) + 2 * int(number < 0)


@compiled_as(int64(BLOCK, BLOCK, TABLE, int64, int64), inner=True)
def _across(block: np.ndarray, neighbour: np.ndarray, table: np.ndarray, first: int, step: int) -> int:
    """What the coefficient at `first` should be, were the picture smooth across the border to a neighbour.

    Both sides of the border show the same: with w_u the value of cosine u there, the sum over u of w_u X_u is that of
    w_u (-1)^u N_u. Solved for X_0.

    Returns:
        The right hand side: X_0 times w_0 and its quantisation step.
    """
    total = 0
    for u in range(8):
        place = first + u * step
        weight = BORDER[u] * table[place]
        total += neighbour[place] * (-weight if u & 1 else weight)
        if u:
            total -= block[place] * weight
    return total


@compiled_as(int64(CODER, int64, int64, int64, int64[:, :, ::1], int64, int64, BLOCK, BLOCK), inner=True)
def _code_count(
    coder: Coder, group: int, colour: int, component: int, used: np.ndarray, column: int, so_far: int,
    block: np.ndarray, other: np.ndarray,
) -> int:  # fmt: skip
    """Code how many coefficients of a group are not zero; returns it.

    `used` has these numbers of the row above and of this one, shifted by one column; `so_far` is the sum of the groups
    before; `other` is the block of another colour at the same place.
    """
    number, elsewhere = 0, 0
    for place in GROUPS[group]:
        if place:
            number += int(block[place] != 0)
            elsewhere += int(other[place] != 0)
    above, left, corner = used[0, column + 1, group], used[1, column, group], used[0, column, group]
    both, before = _bucket(above + left), _bucket(so_far)
    kind = 2 * (4 * COUNT + group) + colour
    _set_context(coder, 0, kind, both, 0, 0)
    _set_context(coder, 1, kind, _bucket(above), _bucket(left), 0)
    _set_context(coder, 2, kind, before, both, 0)
    _set_context(coder, 3, kind, _bucket(elsewhere), both, component)
    _set_context(coder, 4, kind, 0, 0, 0)
    _set_context(coder, 5, kind, _bucket(corner), both, before)
    return _code_number(coder, kind * MIXERS, number)


@compiled_as(void(CODER, int64, int64, int64, TABLE, int64, int64, *5 * (BLOCK,), boolean, boolean), inner=True)
def _code_group(
    coder: Coder, group: int, colour: int, component: int, table: np.ndarray, number: int, so_far: int,
    block: np.ndarray, above: np.ndarray, left: np.ndarray, corner: np.ndarray, other: np.ndarray,
    has_above: bool, has_left: bool,
) -> None:  # fmt: skip
    """Code the coefficients of a group until `number` of them are not zero."""
    for place in GROUPS[group]:
        if not place or not number:
            break
        expected = 0
        if group == 1 and has_above:
            expected = _across(block, above, table, place, 8)
        elif group == 2 and has_left:
            expected = _across(block, left, table, place, 1)
        expected = 4 * expected // (BORDER[0] * table[place])  # in quarters of a step
        around = (13 * (abs(above[place]) + abs(left[place])) + 6 * abs(corner[place])) >> 3
        x, y = place & 7, place >> 3
        inner = 0
        if x > 1:
            inner += abs(block[place - 1])
        if y > 1:
            inner += abs(block[place - 8])
        if x > 1 and y > 1:
            inner += abs(block[place - 9])
        guess, around, inner = _bucket(abs(expected) >> 1), _bucket(around), _bucket(inner)
        rest, same = _bucket(number), _bucket(2 * abs(other[place]))
        kind = 2 * (4 * MAGNITUDE + group) + colour
        _set_context(coder, 0, kind, place, around, guess)
        _set_context(coder, 1, kind, place, rest, guess)
        _set_context(coder, 2, kind, rest, around, guess if group else inner)
        _set_context(coder, 3, kind, place, inner, _bucket(so_far) if group else 0)
        _set_context(coder, 4, kind, place, same, component)
        _set_context(coder, 5, kind, rest, guess, 0 if group else x + y)
        value = _code_number(coder, kind * MIXERS, abs(block[place]))
        if value:
            number -= 1
            kind = 2 * (4 * SIGN + group) + colour
            sign, size = _sign(expected), _bucket(abs(expected))
            neighbours = 3 * _sign(above[place]) + _sign(left[place])
            _set_context(coder, 0, kind, place, sign, size)
            _set_context(coder, 1, kind, sign, size, 0)
            _set_context(coder, 2, kind, sign, size, _bucket(value))
            _set_context(coder, 3, kind, sign, _sign(other[place]), component)
            _set_context(coder, 4, kind, place, neighbours, 0)
            _set_context(coder, 5, kind, sign, neighbours, 0)
            if _code_bit(coder, kind * MIXERS, 0, int(block[place] < 0)):
                value = -value
        block[place] = value


@compiled_as(void(CODER, int64, int64, TABLE, int64, int64, BLOCK, BLOCK, BLOCK, boolean, boolean), inner=True)
def _code_dc(
    coder: Coder, colour: int, component: int, table: np.ndarray, change: int, so_far: int,
    block: np.ndarray, above: np.ndarray, left: np.ndarray, has_above: bool, has_left: bool,
) -> None:  # fmt: skip
    """Code the DC coefficient, as the difference to what the neighbours make expect.

    `change` says how far the other chroma's DC is from its neighbours', `so_far` how many coefficients are not zero.
    """
    unit = BORDER[0] * table[0]
    from_above = _across(block, above, table, 0, 8) if has_above else 0
    from_left = _across(block, left, table, 0, 1) if has_left else 0
    expected, doubt = from_above + from_left, 4 * unit
    if has_above and has_left:
        expected, doubt = expected // 2, abs(from_above - from_left)
    guess = min(max((expected + unit // 2) // unit, -MAX_DC), MAX_DC)
    doubt, so_far = _bucket(2 * doubt // unit), _bucket(so_far)
    kind = 2 * (4 * MAGNITUDE + DC) + colour
    _set_context(coder, 0, kind, doubt, 0, 0)
    _set_context(coder, 1, kind, doubt, so_far, 0)
    _set_context(coder, 2, kind, 0, 0, 0)
    _set_context(coder, 3, kind, so_far, 0, 0)
    _set_context(coder, 4, kind, _bucket(abs(left[0] - above[0])), 0, 0)
    _set_context(coder, 5, kind, _bucket(abs(change)), doubt, component)
    value = _code_number(coder, kind * MIXERS, abs(block[0] - guess))
    if value:
        part = min(max(4 * (expected - guess * unit) // unit, -2), 2) + 2  # which side the guess was rounded to
        higher = int(from_above > from_left)
        kind = 2 * (4 * SIGN + DC) + colour
        _set_context(coder, 0, kind, part, 0, 0)
        _set_context(coder, 1, kind, _sign(change), _bucket(abs(change)), component)
        _set_context(coder, 2, kind, higher, doubt, 0)
        _set_context(coder, 3, kind, part, _sign(change), component)
        _set_context(coder, 4, kind, part, higher, doubt)
        _set_context(coder, 5, kind, _bucket(value), part, 0)
        if _code_bit(coder, kind * MIXERS, 0, int(block[0] < guess)):
            value = -value
    block[0] = guess + value


@compiled_as(void(CODER, int64, TABLE, PLANE, PLANE))
def _code_plane(coder: Coder, component: int, table: np.ndarray, plane: np.ndarray, others: np.ndarray) -> None:
    """Code a plane of blocks, row by row; when decoding, into the plane.

    Both planes have a border of blocks above and to the left that are all zero. `others` is of another colour.
    """
    colour = min(component, 1)
    n_rows, n_columns, _ = plane.shape
    used = np.zeros((2, n_columns, N_GROUPS), np.int64)
    for row in range(1, n_rows):
        used[0], used[1] = used[1], 0
        for column in range(1, n_columns):
            block, other = plane[row, column], others[row, column]
            above, left, corner = plane[row - 1, column], plane[row, column - 1], plane[row - 1, column - 1]
            has_above, has_left = row > 1, column > 1
            so_far = 0
            for group in range(N_GROUPS):
                number = _code_count(coder, group, colour, component, used, column - 1, so_far, block, other)
                used[1, column, group] = number
                so_far += number
                _code_group(
                    coder, group, colour, component, table, number, so_far,
                    block, above, left, corner, other, has_above, has_left,
                )  # fmt: skip
            change = 0
            if component == 2:
                neighbours = others[row - 1, column, 0] + others[row, column - 1, 0]
                change = other[0] - neighbours // max(1, has_above + has_left)
            _code_dc(coder, colour, component, table, change, so_far, block, above, left, has_above, has_left)


def _code_planes(coder: Coder, quality: int, planes: Planes) -> Planes:
    """Code all planes; returns them, which is news where the coder decodes."""
    tables = quantisation_tables(quality)
    luma, blue, red = (np.pad(plane, ((1, 0), (1, 0), (0, 0))) for plane in planes)
    _code_plane(coder, 0, tables[0], luma, np.zeros_like(luma))
    _code_plane(coder, 1, tables[1], blue, np.pad(luma[1::2, 1::2], ((1, 0), (1, 0), (0, 0))))
    _code_plane(coder, 2, tables[1], red, blue)
    return luma[1:, 1:], blue[1:, 1:], red[1:, 1:]


def encode_planes(quality: int, planes: Planes, room: int) -> bytes | None:
    """Code quantised coefficients.

    Args:
        quality: The JPEG quality that they were quantised with.
        planes: Those of Y, Cb and Cr, as in `gan.jpeg_streams.JpegPicture`.
        room: The number of bytes that the code may take.

    Returns:
        The code, or None where it is longer. Zeros at its end are left out; whoever reads past the end reads zeros.
    """
    coder = _new_coder(np.zeros(room, np.uint8), decode=False, model=_known_model())
    _code_planes(coder, quality, planes)
    low, n_bytes = int(coder.state[0]), int(coder.state[4])
    if n_bytes >= room:
        return None
    # low and high differ in their first byte: the next byte and zeros are a number between them.
    last = bytes([(low >> 24) + 1]) if low else b""
    return (coder.stream[:n_bytes].tobytes() + last).rstrip(b"\0")


def decode_planes(code: bytes, quality: int, shapes: Sequence[tuple[int, int]]) -> Planes:
    """Read what `encode_planes` wrote. Any bytes are the code of some coefficients.

    Args:
        code: The code.
        quality: As it was given to `encode_planes`.
        shapes: Rows and columns of blocks of each plane.

    Returns:
        The coefficients.
    """
    luma, blue, red = (np.zeros((*shape, 64), np.int16) for shape in shapes)
    # A copy, because the compiled code takes arrays that can be written to.
    coder = _new_coder(np.frombuffer(code, np.uint8).copy(), decode=True, model=_known_model())
    return _code_planes(coder, quality, (luma, blue, red))


def learn_prior(pictures: Iterable[JpegPicture], least_uses: int = 60) -> np.ndarray:
    """Learn what probabilities usually are.

    Args:
        pictures: JPEG files of all kinds, in mixed order.
        least_uses: What was seen less often is left unknown.

    Returns:
        What `PRIOR` holds: uint8, 0 where unknown.
    """
    model = _model(np.zeros(NODES << LOG_ROWS, np.uint8))
    for picture in pictures:
        learnt = _new_coder(np.zeros(0, np.uint8), decode=False, model=model)
        _code_planes(learnt, picture.quality, picture.planes)
        model = learnt.probabilities, learnt.counts
    probabilities, counts = model
    levels = (STRETCH[probabilities >> 4] + LEVEL // 2) // LEVEL + 17
    return np.where(counts > least_uses, levels, 0).astype(np.uint8)
