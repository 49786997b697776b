"""When documents vanish: what a client's expiry means, and who is due next.

`deadline` is the one place that interprets the wire field.  `DueQueue` knows
which keys to look at when their second has come, so that expired documents give
their memory back before living ones are evicted; nobody sets a timer for it.

Source: memcached ``doc/protocol.txt``, "Expiration times".
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

from kvproto.store.document import Key

__all__ = ["AT_ONCE", "RELATIVE_LIMIT_S", "DueQueue", "deadline"]

RELATIVE_LIMIT_S = 60 * 60 * 24 * 30
"""Up to here (inclusive) an expiry counts from now; above, it is unix time."""

AT_ONCE = -1.0
"""A deadline before every clock, but not 0.0, which means never."""


def deadline(expiry: int, now: float) -> float:
    """Say when a document with this expiry vanishes.

    A relative expiry is kept to the fraction of a second, so a document lives exactly as long
    as asked.  memcached counts in whole ticks, there it may live up to a second less.

    Args:
        expiry: As the client sent it.
        now: Unix time in seconds.

    Returns:
        Unix time in seconds, 0.0 for never, `AT_ONCE` for a negative expiry.
    """
    if not expiry:
        return 0.0
    if expiry < 0:
        return AT_ONCE
    if expiry <= RELATIVE_LIMIT_S:
        return now + expiry
    return float(expiry)


class DueQueue:
    """Keys, ordered by the second in which somebody should look at them.

    One list of keys per second and a heap of the seconds: an entry costs one
    list slot.  Entries are never searched for or removed early; who takes a key
    out checks whether it still matters.

    Attributes:
        first: The earliest second that has keys, infinity when there is none.
        entries: How many keys are queued.
    """

    __slots__ = ("_keys", "_seconds", "entries", "first")

    def __init__(self) -> None:
        self.first: float = math.inf
        self.entries = 0
        self._keys: dict[int, list[Key]] = {}
        self._seconds: list[int] = []

    def add(self, second: int, key: Key) -> None:
        """Queue a key for a second of unix time."""
        keys = self._keys.get(second)
        if keys is None:
            self._keys[second] = [key]
            heappush(self._seconds, second)
            self.first = self._seconds[0]
        else:
            keys.append(key)
        self.entries += 1

    def take(self) -> tuple[int, Key]:
        """Take a key out of the earliest second; there must be one.

        Returns:
            The second it was queued for, and the key.
        """
        second = self._seconds[0]
        keys = self._keys[second]
        key = keys.pop()
        self.entries -= 1
        if not keys:
            del self._keys[second]
            heappop(self._seconds)
            self.first = self._seconds[0] if self._seconds else math.inf
        return second, key
