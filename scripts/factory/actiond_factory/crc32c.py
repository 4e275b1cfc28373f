"""CRC-32C (Castagnoli), which TensorFlow's checkpoints carry for every block and tensor; in numpy, so that 100 MB take
half a second and no compiled package is needed.

A CRC is linear: a long run of bytes is cut into lanes of equal length, all lanes go on two bytes at a time side by
side, and their remainders are put together by the matrix that stands for "as many zero bytes come after".
"""

from functools import lru_cache

import numpy as np

POLYNOMIAL = 0x82F63B78
"""x^32 + x^28 + ... as RFC 3720 has it, lowest power in the highest bit."""
MASK_DELTA = 0xA282EAD8
LANES = 4096
"""at most; a power of two"""
BITS = np.arange(32, dtype=np.uint32)


def _table(bits: int) -> np.ndarray:
    """u32 [2 ** bits]: what `bits` zero bits make of each remainder that has only its lowest `bits` bits set."""
    table = np.arange(1 << bits, dtype=np.uint32)
    for _ in range(bits):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


BYTE = _table(8)
PAIR = _table(16)


def _apply(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A matrix over GF(2), as its 32 columns, times each of `values` u32 [n]."""
    set_bits = (values[:, None] >> BITS) & 1
    return np.bitwise_xor.reduce(np.where(set_bits, matrix, np.uint32(0)), axis=1)


@lru_cache(maxsize=256)
def _zeros(count: int) -> np.ndarray:
    """The matrix of `count` zero bytes, as 32 columns."""
    if count == 0:
        return np.left_shift(np.uint32(1), BITS)
    if count == 1:
        unit = _zeros(0)
        return BYTE[unit & 0xFF] ^ (unit >> 8)
    half = _zeros(count // 2)
    even = _apply(half, half)
    return _apply(_zeros(1), even) if count % 2 else even


def crc32c(data: bytes | memoryview | np.ndarray) -> int:
    """Of any run of bytes; 0xE3069283 of `123456789`."""
    data = np.frombuffer(data, np.uint8)
    if len(data) < 64:
        remainder = 0xFFFFFFFF
        for byte in data.tolist():
            remainder = int(BYTE[(remainder ^ byte) & 0xFF]) ^ (remainder >> 8)
        return remainder ^ 0xFFFFFFFF
    # About as many lanes as steps for short data.
    lanes = min(LANES, 1 << ((len(data) // 2).bit_length() // 2))
    steps = -(-len(data) // (2 * lanes))
    padded = np.zeros(2 * lanes * steps, np.uint8)
    # Zeros in front change nothing while the remainder is 0; the register's first value, all ones, is the same as the
    # first four bytes turned over.
    padded[-len(data) :] = data
    padded[len(padded) - len(data) :][:4] ^= 0xFF
    rows = np.ascontiguousarray(padded.view("<u2").reshape(lanes, steps).T)
    remainders = np.zeros(lanes, np.uint32)
    for row in rows:
        remainders = PAIR[(remainders ^ row) & 0xFFFF] ^ (remainders >> 16)
    length = 2 * steps
    while len(remainders) > 1:
        remainders = _apply(_zeros(length), remainders[0::2]) ^ remainders[1::2]
        length *= 2
    return int(remainders[0]) ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """As it is stored beside data that itself holds CRCs: turned right by 15 bits, and a constant added."""
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF
