"""The entropy-coded part of a JPEG file: Huffman codes to quantised coefficients and back (ITU-T T.81, annex F).

For files of one interleaved scan with 4:2:0 chroma: an MCU is four blocks of luma and one of each chroma.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int16, int64, types, uint8

from rlsr_env.cores import compiled_as

BLOCKS_OF_MCU = 6
# The categories that a baseline file may hold: of the differences of DC coefficients, and of AC coefficients.
MAX_DC_BITS, MAX_AC_BITS = 11, 10
# What Numba calls bytes that are only read.
BYTES = types.Array(uint8, 1, "C", readonly=True)


@compiled_as(boolean(BYTES, int64[:, ::1], uint8[:, ::1], int64[::1], int16[:, :, ::1]))
def read_scan(scan: np.ndarray, counts: np.ndarray, symbols: np.ndarray, order: np.ndarray, mcus: np.ndarray) -> bool:
    """Decode a scan.

    Args:
        scan: Its bytes, without stuffed zeros, uint8.
        counts: Codes of each length from 1 to 16 bits in the tables DC luma, AC luma, DC chroma, AC chroma,
            `(4, 16)` int64.
        symbols: Their symbols, `(4, 256)` uint8.
        order: Index within a block of each coefficient of the zigzag, `(64,)` int64.
        mcus: Takes the coefficients, `(n_mcus, 6, 64)` int16, zeros.

    Returns:
        Whether the bytes hold all of it.
    """
    greatest, first = np.full((4, 17), -1), np.zeros((4, 17), np.int64)
    for table in range(4):
        code, n_before = 0, 0
        for length in range(1, 17):
            first[table, length] = n_before - code
            code += counts[table, length - 1]
            n_before += counts[table, length - 1]
            if counts[table, length - 1]:
                greatest[table, length] = code - 1
            code *= 2
    n_bits, position = 8 * len(scan), 0
    dc = np.zeros(3, np.int64)
    for number in range(len(mcus)):
        for block in range(BLOCKS_OF_MCU):
            component = max(0, block - 3)
            k = 0
            while k < 64:
                table = 2 * min(component, 1) + min(k, 1)
                code, symbol = 0, -1
                for length in range(1, 17):
                    if position >= n_bits:
                        return False
                    code = 2 * code + ((scan[position >> 3] >> (7 - (position & 7))) & 1)
                    position += 1
                    if code <= greatest[table, length]:
                        place = first[table, length] + code
                        if place < 0 or place > 255:
                            return False
                        symbol = int(symbols[table, place])
                        break
                if symbol < 0:
                    return False
                size = symbol & 15
                if k:
                    if symbol == 0:
                        break
                    k += symbol >> 4
                if k > 63 or size > (MAX_AC_BITS if k else MAX_DC_BITS):
                    return False
                value = 0
                for _ in range(size):
                    if position >= n_bits:
                        return False
                    value = 2 * value + ((scan[position >> 3] >> (7 - (position & 7))) & 1)
                    position += 1
                if size and value < 1 << (size - 1):
                    value -= (1 << size) - 1
                if k == 0:
                    dc[component] += value
                    value = dc[component]
                    if abs(value) > 32767:
                        return False
                mcus[number, block, order[k]] = value
                k += 1
    return True


@compiled_as(int64(int64), inner=True)
def _bit_length(value: int) -> int:
    """Bits of a number of 0 or more."""
    bits = 0
    while value:
        bits += 1
        value >>= 1
    return bits


@compiled_as(int64(int16[:, :, ::1], int64[::1], *3 * (int64[:, ::1],), uint8[::1]))
def write_scan(
    mcus: np.ndarray, order: np.ndarray, codes: np.ndarray, lengths: np.ndarray, uses: np.ndarray, scan: np.ndarray
) -> int:
    """Count the symbols of a scan, and write it where there is room.

    Args:
        mcus: The coefficients, `(n_mcus, 6, 64)` int16.
        order: As for `read_scan`.
        codes: The code of each symbol in the four tables, `(4, 256)` int64.
        lengths: Its length in bits, the same shape.
        uses: Takes how often each symbol occurs, the same shape.
        scan: Takes the bytes, with stuffed zeros, uint8; filled up with bits of one, as T.81 has it.

    Returns:
        The number of bytes, also where `scan` is shorter; -1 where a coefficient is too large for a baseline file.
    """
    n_bytes, waiting, n_waiting = 0, 0, 0
    dc = np.zeros(3, np.int64)
    for number in range(len(mcus)):
        for block in range(BLOCKS_OF_MCU):
            component = max(0, block - 3)
            coefficients = mcus[number, block]
            last = 63
            while last > 0 and coefficients[order[last]] == 0:
                last -= 1
            run = 0
            for k in range(min(last + 2, 64)):
                value = int(coefficients[order[k]])
                if k == 0:
                    value, dc[component] = value - dc[component], value
                elif k <= last and value == 0:
                    run += 1
                    continue
                size = _bit_length(abs(value))
                if size > (MAX_AC_BITS if k else MAX_DC_BITS):
                    return -1
                table = 2 * min(component, 1) + min(k, 1)
                while True:
                    skipped = min(run, 15)
                    # 15 zeros and one more have a symbol of their own, and so has the end of the block (size 0).
                    whole = run > 15
                    symbol = 0xF0 if whole else 16 * skipped + size
                    uses[table, symbol] += 1
                    n_extra = 0 if whole else size
                    extra = (value if value > 0 else value + (1 << size) - 1) & ((1 << n_extra) - 1)
                    waiting = (
                        (waiting << (lengths[table, symbol] + n_extra)) | (codes[table, symbol] << n_extra) | extra
                    )
                    n_waiting += lengths[table, symbol] + n_extra
                    while n_waiting >= 8:
                        n_waiting -= 8
                        byte = (waiting >> n_waiting) & 255
                        waiting &= (1 << n_waiting) - 1
                        for stuffed in range(2 if byte == 255 else 1):
                            if n_bytes < len(scan):
                                scan[n_bytes] = 0 if stuffed else byte
                            n_bytes += 1
                    if not whole:
                        break
                    run -= 16
                run = 0
    if n_waiting:
        byte = ((waiting << (8 - n_waiting)) | ((1 << (8 - n_waiting)) - 1)) & 255
        for stuffed in range(2 if byte == 255 else 1):
            if n_bytes < len(scan):
                scan[n_bytes] = 0 if stuffed else byte
            n_bytes += 1
    return n_bytes
