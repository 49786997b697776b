"""Hashes of keys, as clients of memcached fleets know them by name.

Each returns 32 bits.  They are those of libmemcached and twemproxy, oddities included: ``fnv1a_64``
is computed in 32 bits, bytes above 127 count as negative numbers there, and ``crc32`` is shortened
to 15 bits.  Another result would look for every key on another server.

Source: libmemcached ``libhashkit``; twemproxy ``src/hashkit``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from hashlib import md5

__all__ = ["HASHES", "hash_64", "md5_points", "murmur3_32"]

_U32 = 0xFFFF_FFFF
_U64 = 0xFFFF_FFFF_FFFF_FFFF


def _md5(key: bytes) -> int:
    return int.from_bytes(md5(key, usedforsecurity=False).digest()[:4], "little")


def md5_points(text: bytes) -> tuple[int, int, int, int]:
    """Return the four numbers of 32 bits in the MD5 of a text."""
    digest = md5(text, usedforsecurity=False).digest()
    a, b, c, d = (int.from_bytes(digest[at : at + 4], "little") for at in (0, 4, 8, 12))
    return a, b, c, d


def _signed(byte: int) -> int:
    """Return a byte as C's ``(uint32_t)(char)`` does where char is signed."""
    return byte if byte < 0x80 else byte | 0xFFFF_FF00


def _fnv1a(key: bytes, start: int, prime: int) -> int:
    value = start
    for byte in key:
        value = (value ^ _signed(byte)) * prime & _U32
    return value


def _fnv1a_32(key: bytes) -> int:
    return _fnv1a(key, 0x811C9DC5, 0x01000193)


def _fnv1a_64(key: bytes) -> int:
    return _fnv1a(key, 0x84222325, 0x1B3)


def _one_at_a_time(key: bytes) -> int:
    value = 0
    for byte in key:
        value = (value + _signed(byte)) & _U32
        value = (value + (value << 10)) & _U32
        value ^= value >> 6
    value = (value + (value << 3)) & _U32
    value ^= value >> 11
    return (value + (value << 15)) & _U32


def _murmur(key: bytes) -> int:
    """Return MurmurHash2 with the seed that libmemcached gives it."""
    multiplier = 0x5BD1E995
    size = len(key)
    value = (0xDEADBEEF * size & _U32) ^ size
    whole = size & ~3
    for at in range(0, whole, 4):
        part = int.from_bytes(key[at : at + 4], "little") * multiplier & _U32
        part = (part ^ part >> 24) * multiplier & _U32
        value = (value * multiplier & _U32) ^ part
    if whole < size:
        value = (value ^ int.from_bytes(key[whole:], "little")) * multiplier & _U32
    value = (value ^ value >> 13) * multiplier & _U32
    return value ^ value >> 15


def _crc32(key: bytes) -> int:
    return zlib.crc32(key) >> 16 & 0x7FFF


HASHES: dict[str, Callable[[bytes], int]] = {
    "md5": _md5,
    "fnv1a_64": _fnv1a_64,
    "fnv1a_32": _fnv1a_32,
    "murmur": _murmur,
    "crc32": _crc32,
    "one_at_a_time": _one_at_a_time,
}
"""Name to hash."""


def hash_64(name: str) -> Callable[[bytes], int]:
    """Return a hash of 64 bits by name.

    MD5 gives its first eight bytes, little-endian, and FNV-1a its form of 64 bits; the others have
    no more than 32.
    """
    if name == "md5":
        return lambda key: int.from_bytes(md5(key, usedforsecurity=False).digest()[:8], "little")
    if name == "fnv1a_64":
        return _full_fnv1a_64
    return HASHES[name]


def _full_fnv1a_64(key: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in key:
        value = (value ^ byte) * 0x100000001B3 & _U64
    return value


def murmur3_32(data: bytes) -> int:
    """Return MurmurHash3, 32 bits, with seed 0."""
    value = 0
    size = len(data)
    whole = size & ~3
    for at in range(0, whole, 4):
        value ^= _murmur3_mix(int.from_bytes(data[at : at + 4], "little"))
        value = (value << 13 | value >> 19) & _U32
        value = (value * 5 + 0xE6546B64) & _U32
    if whole < size:
        value ^= _murmur3_mix(int.from_bytes(data[whole:], "little"))
    value ^= size
    value = (value ^ value >> 16) * 0x85EBCA6B & _U32
    value = (value ^ value >> 13) * 0xC2B2AE35 & _U32
    return value ^ value >> 16


def _murmur3_mix(part: int) -> int:
    part = part * 0xCC9E2D51 & _U32
    return (part << 15 | part >> 17) * 0x1B873593 & _U32
