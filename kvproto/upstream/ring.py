"""Which server of a fleet has a key.

============  =======================================================================
ketama        libmemcached's weighted one and twemproxy's: 40 times 4 points of MD5
              for each server of average weight, on a circle of 32 bits
modula        hash of the key modulo the number of servers, in the order given
rendezvous    pymemcache's HashClient: highest MurmurHash3 of ``HOST:PORT-KEY``
jump          jump consistent hash of the key's 64 bits, in the order given
============  =======================================================================

The distribution belongs to the fleet: another one finds nothing of what its clients have stored.
Ketama and rendezvous take weights or an order of servers differently: weights count for ketama
only, the order for modula and jump only.

Source: libmemcached ``libmemcached/hosts.cc``; twemproxy ``src/hashkit/nc_ketama.c``; pymemcache
``client/rendezvous.py``; Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor
from struct import pack, unpack
from typing import TypeAlias

from kvproto.upstream.hashes import HASHES, hash_64, md5_points, murmur3_32

__all__ = [
    "DEFAULT_PORT",
    "DISTRIBUTIONS",
    "FleetServer",
    "Ring",
    "jump_hash",
    "make_ring",
    "tagged",
]

DEFAULT_PORT = 11211

_POINTS = 160
"""Points on the circle of a server of average weight."""

_POINTS_PER_DIGEST = 4

_REMEMBERED = 16_384
"""Keys whose server is remembered where finding it is slow."""

Ring: TypeAlias = Callable[[bytes], int]
"""Returns the number of a key's server, in the order given."""


@dataclass(frozen=True, slots=True)
class FleetServer:
    """A server of a fleet.

    Attributes:
        host: Its name or address; the path of its socket.
        port: Its TCP port; 0 for a Unix socket.
        weight: Its share, above 0.
    """

    host: str
    port: int = DEFAULT_PORT
    weight: int = 1

    @property
    def name(self) -> str:
        """``HOST:PORT``, or the path of its socket."""
        return f"{self.host}:{self.port}" if self.port else self.host

    @property
    def ketama_name(self) -> str:
        """What its points are made of: the usual port is left out."""
        return self.host if self.port == DEFAULT_PORT else self.name


def make_ring(
    servers: Sequence[FleetServer], distribution: str, hash_name: str = "md5", tag: str = ""
) -> Ring:
    """Lay out a fleet.

    Args:
        servers: At least one.
        distribution: One of `DISTRIBUTIONS`.
        hash_name: One of `kvproto.upstream.hashes.HASHES`.
        tag: Two characters: where a key has something between them, only that counts.
    """
    ring = DISTRIBUTIONS[distribution](servers, hash_name)
    if len(tag) == 2:
        return tagged(ring, tag.encode("latin-1"))
    return ring


def tagged(ring: Ring, tag: bytes) -> Ring:
    """Let only what is between two marks of a key count, where there is something."""
    opening, closing = tag[:1], tag[1:]

    def tagged_ring(key: bytes) -> int:
        begin = key.find(opening)
        if begin >= 0:
            end = key.find(closing, begin + 1)
            if end > begin + 1:
                key = key[begin + 1 : end]
        return ring(key)

    return tagged_ring


def _single(number: float) -> float:
    """Round to the 32-bit float that the C programs compute with."""
    rounded: float = unpack("f", pack("f", number))[0]
    return rounded


def _ketama(servers: Sequence[FleetServer], hash_name: str) -> Ring:
    hash_key = HASHES[hash_name]
    total = _single(sum(server.weight for server in servers))
    points: list[tuple[int, int]] = []
    for number, server in enumerate(servers):
        share = _single(_single(server.weight) / total)
        # As it is written there: each product is rounded to 32 bits.
        product = _single(_single(_single(share * _POINTS) / 4) * len(servers))
        digests = floor(_single(product + 0.0000000001))
        name = server.ketama_name.encode()
        for digest in range(digests):
            points += [(point, number) for point in md5_points(b"%b-%d" % (name, digest))]
    if not points:
        # Weights so far apart that nobody has a point: as if there was the first one only.
        return lambda key: 0
    points.sort()
    circle = [point for point, _ in points]
    owners = [number for _, number in points]
    owners.append(owners[0])

    def ring(key: bytes) -> int:
        return owners[bisect_left(circle, hash_key(key))]

    return ring


def _modula(servers: Sequence[FleetServer], hash_name: str) -> Ring:
    hash_key, count = HASHES[hash_name], len(servers)
    return lambda key: hash_key(key) % count


def _rendezvous(servers: Sequence[FleetServer], hash_name: str) -> Ring:
    names = [f"{server.name}-".encode() for server in servers]

    @lru_cache(_REMEMBERED)
    def ring(key: bytes) -> int:
        text = _low_bytes(key)
        # The greater name wins between equal scores.
        scores = [(murmur3_32(name + text), name) for name in names]
        return scores.index(max(scores))

    return ring


def _low_bytes(key: bytes) -> bytes:
    """Return what pymemcache hashes: the low byte of each character."""
    if key.isascii():
        return key
    try:
        return bytes(ord(letter) & 0xFF for letter in key.decode())
    except UnicodeDecodeError:
        return key


def _jump(servers: Sequence[FleetServer], hash_name: str) -> Ring:
    hash_key, count = hash_64(hash_name), len(servers)

    return lambda key: jump_hash(hash_key(key), count)


def jump_hash(state: int, count: int) -> int:
    """Return which of so many buckets a number of 64 bits is in."""
    bucket, jump = -1, 0
    while jump < count:
        bucket = jump
        state = (state * 2862933555777941757 + 1) & 0xFFFF_FFFF_FFFF_FFFF
        jump = int((bucket + 1) * (float(1 << 31) / float((state >> 33) + 1)))
    return bucket


DISTRIBUTIONS: dict[str, Callable[[Sequence[FleetServer], str], Ring]] = {
    "ketama": _ketama,
    "modula": _modula,
    "rendezvous": _rendezvous,
    "jump": _jump,
}
"""Name to layout."""
