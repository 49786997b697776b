"""The end of a store's log, to which every SET appends; compiled where there is a C compiler.

`Tail` appends records, `PlainSets` is a store's usual SET.  The Python classes here and the
compiled ones in ``_tail.pyx`` do the same and write the same bytes; from either derive
`kvproto.store.file.journal.Journal` and `kvproto.store.file.store.FileStore`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING
from zlib import crc32

from kvproto.base.compiled import compiled
from kvproto.store.document import ALL_MARKS, Document, Key
from kvproto.store.file.records import ALIGNMENT, HEAD_SIZE, MARGIN, Kind, body_of, pack_head

__all__ = ["PlainSets", "PythonPlainSets", "PythonTail", "Tail"]


class PythonTail:
    """The end of a log.

    Attributes:
        at: Where the next record goes.
        limit: Where the room for documents ends; 0 when nothing can be appended.
        appended: How many records have been appended.
    """

    at: int
    limit: int
    appended: int
    _seed: int
    _map: mmap.mmap | None

    if TYPE_CHECKING:

        def _roll(self, size: int) -> None:
            """Its owner's: begin another file, in which a record of some size fits."""

    def put(self, key: Key, document: Document, *, newest: bool = True) -> None:
        """Append that this is the document, or tombstone, under a key now.

        Args:
            key: Which.
            document: What is there.
            newest: Whether the store has made no larger CAS.
        """
        if (
            newest
            and key.__class__ is bytes
            and document.xattrs is None
            and not document.deleted
            and not document.marks & ALL_MARKS
        ):
            value = document.value
            key_size = len(key)
            head = pack_head(
                HEAD_SIZE + key_size + len(value),
                1,
                document.datatype & 0x0F,
                key_size,
                0,
                document.flags,
                document.cas,
                document.seqno,
                document.expires_at,
            )
            body = head + key + value
        else:
            kind = Kind.TOMBSTONE if document.deleted else Kind.PUT
            body = body_of(kind, key, document, newest=newest)
        at = self.at
        end = at + 4 + len(body)
        if end > self.limit:
            self._roll(len(body))
            at = self.at
            end = at + 4 + len(body)
        assert self._map is not None
        checksum = crc32(body, self._seed).to_bytes(4, "little")
        self._map[at:end] = checksum + body
        self.at = (end + 7) & -ALIGNMENT
        self.appended += 1


class PythonPlainSets:
    """The usual SET of a store in memory that is kept in a log."""

    _journal: PythonTail
    _at_once: bool
    _set_in_memory: Callable[[bytes, bytes, int, int, int, int], Document | None]

    def set_plainly(
        self, key: bytes, value: bytes, flags: int, expiry: int, datatype: int, cas: int = 0
    ) -> Document | None:
        """Do as `MemoryStore.set_plainly`; None also when the answer has to wait."""
        journal = self._journal
        if journal.at + 2 * len(value) + MARGIN > journal.limit or not self._at_once:
            return None
        document = self._set_in_memory(key, value, flags, expiry, datatype, cas)
        if document is not None:
            journal.put(key, document)
        return document


_compiled = compiled("kvproto.store.file._tail")

if TYPE_CHECKING or _compiled is None:
    Tail = PythonTail
    PlainSets = PythonPlainSets
else:
    Tail = _compiled.Tail
    PlainSets = _compiled.PlainSets
