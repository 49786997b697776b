"""Plaintext that waits to be encrypted, in order and without copies of large values."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["PIECE_SIZE", "RECORD_SIZE", "Outbox"]

RECORD_SIZE: Final = 16384
"""Plaintext bytes of the largest TLS record."""

PIECE_SIZE: Final = 4 * RECORD_SIZE
"""Most plaintext given to OpenSSL before its output is fetched; bounds the memory BIO."""


class Outbox:
    """A queue of writes.

    Small writes leave joined into one record; large ones leave as views of the
    original object, so that a 20 MiB value is never copied as a whole.

    Attributes:
        size: Bytes that wait.
        pieces: The writes themselves, oldest first; changed only by this class, and on the
            short way out (`kvproto.tls.shell`), where `size` has to follow.
    """

    __slots__ = ("pieces", "size")

    def __init__(self) -> None:
        self.pieces: deque[bytes | memoryview] = deque()
        self.size = 0

    def put(self, data: bytes) -> None:
        """Append a write that will never change."""
        self.pieces.append(data)
        self.size += len(data)

    def take(self) -> bytes | memoryview:
        """Remove and return what to encrypt next, at most `PIECE_SIZE` bytes.

        Raises:
            IndexError: Nothing waits.
        """
        pieces = self.pieces
        first = pieces.popleft()
        length = len(first)
        if length > PIECE_SIZE:
            view = memoryview(first)
            pieces.appendleft(view[PIECE_SIZE:])
            first, length = view[:PIECE_SIZE], PIECE_SIZE
        elif length < RECORD_SIZE and pieces:
            first = self._fill_record(first)
            length = len(first)
        self.size -= length
        return first

    def clear(self) -> None:
        """Forget everything."""
        self.pieces.clear()
        self.size = 0

    def _fill_record(self, first: bytes | memoryview) -> bytes:
        """Join `first` with what follows it, up to one record."""
        pieces = self.pieces
        if self.size <= RECORD_SIZE:
            joined = b"".join((first, *pieces))
            pieces.clear()
            return joined
        batch = [first]
        room = RECORD_SIZE - len(first)
        while room and pieces:
            piece = pieces.popleft()
            if len(piece) > room:
                view = memoryview(piece)
                pieces.appendleft(view[room:])
                piece = view[:room]
            batch.append(piece)
            room -= len(piece)
        return b"".join(batch)
