"""What a store keeps and how it says no: `Key`, `Document`, `Refusal`.

Owns the vocabulary that every store and every session share.  Never looks at
the clock and never changes a document.

Source: memcached ``doc/protocol.txt`` and ``protocol_binary.h``; Couchbase
kv_engine ``docs/BinaryProtocol.md``, ``docs/Locks`` and ``docs/SubDocument.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TypeAlias

__all__ = [
    "ALL_MARKS",
    "DO_NOT_CREATE",
    "LOCKED_CAS",
    "MARK_BITS",
    "Document",
    "Key",
    "Mark",
    "Refusal",
    "accessed_at",
    "last_access",
    "marks_at",
]

Key: TypeAlias = bytes | tuple[int, bytes]
"""``bytes`` in the default collection, ``(collection id, key)`` in any other."""

LOCKED_CAS = 0xFFFFFFFF_FFFFFFFF
"""What a session shows instead of the CAS of a locked document (as kv_engine does)."""

DO_NOT_CREATE = 0xFFFFFFFF
"""Expiry of an INCR or DECR that must not create a missing counter."""


class Refusal(Enum):
    """Why a store did not do what it was asked; the document is as it was before."""

    NOT_FOUND = "no such document, or it has expired"
    EXISTS = "the document exists, or its CAS differs from the given one"
    NOT_STORED = "there is nothing to append or prepend to"
    TOO_BIG = "the document would be larger than the store allows"
    NOT_A_NUMBER = "the value is no decimal number below 2**64"
    LOCKED = "the document is locked and the lock's CAS was not given"
    NOT_LOCKED = "there is no lock to release"
    NO_MEMORY = "the memory limit is reached and nothing may be evicted"


class Mark(IntEnum):
    """What memcached's meta commands know of a document; one stored anew has none of it.

    Bits of plain numbers: a flag of `enum` would remember each number that was ever made of it.
    """

    STALE = 1
    """It is to be fetched anew, and may be shown meanwhile."""
    WON = 2
    """One client has been told to fetch it anew."""
    FETCHED = 4
    """It was read."""


MARK_BITS = 3
ALL_MARKS = (1 << MARK_BITS) - 1
"""How many bits there are of `Mark`, and all of them."""


def marks_at(marks: int, now: float) -> int:
    """Return marks that say that their document was read at this time, in unix seconds."""
    return marks & ALL_MARKS | int(now) << MARK_BITS


def accessed_at(document: Document) -> int:
    """Return when a document was last read, or else stored, in unix seconds.

    Stores make the CAS from the clock, so it tells when; one that a client gave does not.
    """
    return last_access(document.marks, document.cas)


def last_access(marks: int, cas: int) -> int:
    """Return what `accessed_at` would for a document with these marks and this CAS."""
    return marks >> MARK_BITS or cas // 1_000_000_000


@dataclass(slots=True)
class Document:
    """One document at one moment: a mutation makes a new one.

    A store changes of one that it keeps only what nobody else looks at (`due`, `kind`), and wipes
    a lock that has lapsed.

    Attributes:
        value: The stored bytes, exactly as they came.
        flags: The client's 32 bits, opaque to us.
        cas: Never 0, unique in its store, growing, below 2**63.
        expires_at: Unix time in seconds when it vanishes, 0.0 for never.
        locked_until: Unix time in seconds when its lock lapses, 0.0 when it is not locked.  A
            store never hands out a document whose lock has lapsed with anything but 0.0 here.
        seqno: Number of the mutation that made it, counted from 1 per store.
        datatype: The datatype bits the client gave (1 = JSON), a hint only.
        due: The second at which the store looks whether it has expired; the store's own.
        xattrs: Extended attributes: name to raw JSON text; None when it has none.
        kind: What is known of its value, a `kvproto.store.jsontext.Kind`; found out when needed.
        deleted: Whether it is a tombstone, as DELETE answers with.
        marks: `Mark` bits, and above them the unix second in which it was last read, as far as
            anybody wants to know (`marks_at`); only memcached's meta commands look at them.
    """

    value: bytes
    flags: int = 0
    cas: int = 0
    expires_at: float = 0.0
    locked_until: float = 0.0
    seqno: int = 0
    datatype: int = 0
    due: int = 0
    xattrs: dict[str, bytes] | None = None
    deleted: bool = False
    kind: int = field(default=0, compare=False)
    marks: int = field(default=0, compare=False)

    @property
    def expiry(self) -> int:
        """The expiry as a wire field: whole unix seconds, rounded up, 0 for never."""
        return max(0, math.ceil(self.expires_at))
