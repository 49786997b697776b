"""`Tail`: where a log is appended to, compiled where the installation found a C compiler.

`PythonTail`, here, and the compiled one, in ``_tail.pyx``, write the same bytes.
`kvproto.store.file.journal.Journal` derives from either.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING
from zlib import crc32

from kvproto.base.compiled import compiled
from kvproto.store.document import ALL_MARKS, Document, Key
from kvproto.store.file.records import ALIGNMENT, HEAD_SIZE, Kind, body_of, pack_head

__all__ = ["PythonTail", "Tail"]


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

    def _roll(self, size: int) -> None:
        """Begin another file, in which a record of some size fits."""
        raise NotImplementedError

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


_compiled = compiled("kvproto.store.file._tail")

if TYPE_CHECKING or _compiled is None:  # noqa: SIM108 - a base class
    Tail = PythonTail
else:
    Tail = _compiled.Tail
