"""When documents vanish: what a client's expiry means, and who is due next.

`deadline` is the one place that interprets the wire field.  `DueQueue` knows
which keys to look at when their second has come, so that expired documents give
their memory back before living ones are evicted; nobody sets a timer for it.

Source: memcached ``doc/protocol.txt``, "Expiration times".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from kvproto.store.document import Key

__all__ = ["AT_ONCE", "RELATIVE_LIMIT_S", "DueQueue", "deadline"]

RELATIVE_LIMIT_S = 60 * 60 * 24 * 30
"""Up to here (inclusive) an expiry counts from now; above, it is unix time."""

AT_ONCE = -1.0
"""A deadline before every clock, but not 0.0, which means never."""


def deadline(expiry: int, now: float) -> float:
    """Return when a document with this expiry vanishes.

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

    __slots__ = ("_at", "_keys", "_seconds", "_seen", "_unsifted", "entries", "first")

    def __init__(self) -> None:
        self.first: float = math.inf
        self.entries = 0
        self._keys: dict[int, list[Key]] = {}
        self._seconds: list[int] = []
        # While it is sifted: the seconds that are left, how far the last of them is, and its keys.
        self._unsifted: list[int] = []
        self._at = 0
        self._seen: set[Key] = set()

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

    def take(self) -> tuple[int, Key] | None:
        """Take a key out of the earliest second that has any.

        Returns:
            The second it was queued for, and the key; None when there is none.
        """
        taken = None
        while self._seconds and taken is None:
            second = self._seconds[0]
            keys = self._keys[second]
            if keys:
                taken = second, keys.pop()
                self.entries -= 1
            if not keys:
                del self._keys[second]
                heappop(self._seconds)
        self.first = self._seconds[0] if self._seconds else math.inf
        return taken

    @property
    def sifting(self) -> bool:
        """Whether `sift` is not through."""
        return bool(self._unsifted)

    def sift(self, matters: Callable[[int, Key], bool], count: int) -> None:
        """Look at some entries and leave out those that do not matter; a little at a time.

        Args:
            matters: Says whether a key is still to be looked at in a second.
            count: How many entries to look at.
        """
        if not self._unsifted:
            self._unsifted = list(self._keys)
        for _ in range(count):
            keys = self._keys.get(self._unsifted[-1], [])
            if self._at >= len(keys):
                self._unsifted.pop()
                self._at = 0
                self._seen.clear()
                if not self._unsifted:
                    self._drop_empty()
                    return
                continue
            key = keys[self._at]
            if key not in self._seen and matters(self._unsifted[-1], key):
                self._seen.add(key)
                self._at += 1
            else:
                keys[self._at] = keys[-1]
                keys.pop()
                self.entries -= 1

    def _drop_empty(self) -> None:
        self._keys = {second: keys for second, keys in self._keys.items() if keys}
        self._seconds = list(self._keys)
        heapify(self._seconds)
        self.first = self._seconds[0] if self._seconds else math.inf
