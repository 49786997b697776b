"""``stats detail``: what is asked of keys, by what stands before their first colon.

Source: memcached 1.6.45, ``stats_prefix.c``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PrefixCounts", "Prefixes"]

_MOST = 10_000
"""Prefixes that are counted; of keys with any other nothing is."""

DELIMITER = b":"


@dataclass(slots=True)
class PrefixCounts:
    """What was asked of keys with one prefix."""

    gets: int = 0
    hits: int = 0
    sets: int = 0
    deletes: int = 0


class Prefixes:
    """Counts by prefix, from the moment when somebody wants them."""

    def __init__(self) -> None:
        self._counts: dict[bytes, PrefixCounts] = {}

    def of(self, key: bytes) -> PrefixCounts:
        """Return the counts of a key's prefix; those of a key without one are kept nowhere."""
        prefix, colon, _ = key.partition(DELIMITER)
        counts = self._counts.get(prefix) if colon else None
        if counts is None:
            counts = PrefixCounts()
            if colon and len(self._counts) < _MOST:
                self._counts[prefix] = counts
        return counts

    def clear(self) -> None:
        """Begin anew."""
        self._counts.clear()

    def lines(self) -> list[bytes]:
        """Return a line for each prefix."""
        return [
            b"PREFIX %b get %d hit %d set %d del %d\r\n"
            % (prefix, counts.gets, counts.hits, counts.sets, counts.deletes)
            for prefix, counts in self._counts.items()
        ]
