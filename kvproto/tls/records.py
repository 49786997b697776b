"""TLS record boundaries, read from the outside.

Counts the records that end in each piece of ciphertext, so that the protocol
knows how many reads can succeed and need not be told "nothing left" by an
exception after every request.  It also sees what OpenSSL does not report: the
ChangeCipherSpec that ends each TLS 1.2 (re)negotiation.

It never decides what is valid.  At the first header that it does not understand
it says `UNKNOWN` for good, and the protocol asks OpenSSL until OpenSSL says stop.

Source: RFC 8446 section 5.1, RFC 5246 section 6.2.1.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "APPLICATION_DATA",
    "BATCH_SIZE",
    "HEADER_SIZE",
    "UNKNOWN",
    "RecordCounter",
    "leading_records",
]

HEADER_SIZE: Final = 5
"""Bytes before a record's body: type, version (2), length (2)."""

CHANGE_CIPHER_SPEC: Final = 20
APPLICATION_DATA: Final = 23
_KNOWN_TYPES: Final = frozenset((CHANGE_CIPHER_SPEC, 21, 22, APPLICATION_DATA))

_MAX_BODY: Final = 16384 + 2048
"""Longest body that RFC 5246 allows; longer is for OpenSSL to refuse."""

BATCH_SIZE: Final = 128 * 1024
"""Most ciphertext that is decrypted before the application gets any of it."""

UNKNOWN: Final = 1 << 30
"""More records than any piece can hold: ask until there is no more."""


def leading_records(data: bytes) -> list[int]:
    """Return where the whole records of application data end that `data` begins with.

    No more than `BATCH_SIZE` bytes of them: what is taken at once is given at once.

    Args:
        data: Ciphertext that begins with a record; what follows them may be anything.
    """
    ends: list[int] = []
    size = len(data)
    last = min(size, BATCH_SIZE) - HEADER_SIZE
    at = 0
    while at <= last and data[at] == APPLICATION_DATA and data[at + 1] == 3:
        at += HEADER_SIZE + (data[at + 3] << 8 | data[at + 4])
        if at > size:
            break
        ends.append(at)
    return ends


class RecordCounter:
    """Follows record boundaries through a stream that arrives in any pieces.

    Attributes:
        aligned: Whether the stream ends at the end of a record.
        lost: Whether a header made no sense; stays true.
        cipher_changes: ChangeCipherSpec records begun since it was last set to 0.
    """

    __slots__ = ("_head", "_missing", "aligned", "cipher_changes", "lost")

    def __init__(self) -> None:
        self.aligned = True
        self.lost = False
        self.cipher_changes = 0
        self._head = b""
        self._missing = 0

    def count(self, data: bytes | memoryview) -> int:
        """Return how many records end within `data`, or `UNKNOWN`.

        Args:
            data: The next ciphertext in order; only headers are looked at.
        """
        if self.lost:
            return UNKNOWN
        size = len(data)
        position = complete = 0
        if self._missing:
            if self._missing > size:
                self._missing -= size
                return 0
            position, self._missing, complete = self._missing, 0, 1
        elif self._head:
            data = b"".join((self._head, data))
            size = len(data)
        while size - position >= HEADER_SIZE:
            kind = data[position]
            length = data[position + 3] << 8 | data[position + 4]
            if kind not in _KNOWN_TYPES or data[position + 1] != 3 or length > _MAX_BODY:
                self.lost = True
                self.aligned = False
                return UNKNOWN
            if kind == CHANGE_CIPHER_SPEC:
                self.cipher_changes += 1
            position += HEADER_SIZE + length
            if position > size:
                self._head = b""
                self._missing = position - size
                self.aligned = False
                return complete
            complete += 1
        self._head = bytes(data[position:])
        self.aligned = position == size
        return complete
