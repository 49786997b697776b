"""A long value that arrives in parts, whatever size the parts have."""

from __future__ import annotations

__all__ = ["Pieces"]

_SMALL = 4096
"""Parts below this size are gathered: an object of its own for each would cost a peer that sends
byte by byte nothing, and us fifty times the bytes it sent."""

_GATHERED = 16384
"""Gathered parts are put away at this size, about one TLS record, in bytes."""


class Pieces:
    """Collects parts and joins them once; adding is linear in the bytes added.

    Attributes:
        size: Bytes added so far.
    """

    __slots__ = ("_gathering", "_parts", "size")

    def __init__(self, first: bytes = b"") -> None:
        self._parts: list[bytes] = []
        self._gathering = bytearray()
        self.size = 0
        self.add(first)

    def add(self, part: bytes) -> None:
        """Append a part; a long one is kept as it is, without a copy."""
        self.size += len(part)
        if len(part) < _SMALL:
            self._gathering += part
            if len(self._gathering) >= _GATHERED:
                self._put_away()
        else:
            self._put_away()
            self._parts.append(part)

    def join(self) -> bytes:
        """Return all of it as one ``bytes``."""
        if not self._parts:
            return bytes(self._gathering)
        self._put_away()
        return b"".join(self._parts)

    def _put_away(self) -> None:
        if self._gathering:
            self._parts.append(bytes(self._gathering))
            self._gathering.clear()
