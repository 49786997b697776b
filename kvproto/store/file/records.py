"""What a change looks like in a file: records, in logs and in backups.

A record is a checksum, a fixed head, and then name, attributes and value, padded with zeros to a
multiple of 8 bytes::

    offset  size
         0     4  CRC-32 of everything behind it but the padding, begun with the file's seed
         4     4  size without the padding
         8     1  `Kind`
         9     1  datatype; 0x10: the CAS is not the newest of the store; 0xe0: `Mark` bits
        10     2  bytes of the name
        12     4  collection; 0 is the default one
        16     4  flags
        20     8  CAS
        28     8  sequence number
        36     8  expiry, in unix seconds; 0.0 for never
        44        name, then (in kinds with attributes) 4 bytes of length and the attributes as
                  JSON, then the value

Integers are little-endian.  A lock is not recorded: it does not outlive the process.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from kvproto.store.document import Document, Key

__all__ = [
    "ALIGNMENT",
    "HEAD_SIZE",
    "MARGIN",
    "Kind",
    "Record",
    "body_of",
    "decode",
    "encode",
    "size_of",
]

_HEAD = Struct("<IBBHIIQQd")
"""All of a record's head but the checksum."""

HEAD_SIZE = 4 + _HEAD.size

ALIGNMENT = 8

MARGIN = 1024
"""Bytes of room that are asked for beside a record's own: for a key, and alignment."""

_LENGTH = Struct("<I")

pack_head = _HEAD.pack

_DATATYPES = 0x0F
_NOT_NEWEST = 0x10
_MARKS_AT = 5
_MARKS = 7


class Kind(IntEnum):
    """What a record says."""

    PUT = 1
    """This is the document now."""
    PUT_WITH_XATTRS = 2
    """The same, with attributes."""
    TOMBSTONE = 3
    """The document is deleted, and these are the attributes that are kept of it."""
    REMOVE = 4
    """There is no such document."""
    FLUSH = 5
    """Everything before is gone."""
    DROP = 6
    """All documents of a collection up to a sequence number are gone."""
    STATE = 7
    """The value is a JSON object with what is to be known beside documents; ``cas`` is, in the
    first record of a file, the size that the file was made with."""
    SYNCED = 8
    """Everything before an offset (``cas``) of a segment (``seqno``) has been on the disk."""
    CLEANED = 9
    """Segments up to a number (``seqno``) are not needed."""
    END = 10
    """Nothing follows in this file."""


@dataclass(slots=True)
class Record:
    """One record as it was read.

    Attributes:
        kind: What it says.
        key: Of which document.
        document: The document, with all of the record's numbers, in records of any kind.
        newest: Whether its CAS was the store's newest.
    """

    kind: int
    key: Key
    document: Document
    newest: bool


def body_of(kind: int, key: Key, document: Document, *, newest: bool = True) -> bytes:
    """Return a record without its checksum and padding.

    Args:
        kind: What it says.
        key: Of which document.
        document: The document.
        newest: Whether the store had made no larger CAS then; clients may bring their own.
    """
    collection, name = key if isinstance(key, tuple) else (0, key)
    value = document.value
    tail = b""
    if document.xattrs is not None:
        tail = json.dumps(
            {name: text.decode() for name, text in document.xattrs.items()}, ensure_ascii=False
        ).encode()
        tail = _LENGTH.pack(len(tail)) + tail
        kind = Kind.PUT_WITH_XATTRS if kind == Kind.PUT else kind
    head = _HEAD.pack(
        HEAD_SIZE + len(name) + len(tail) + len(value),
        kind,
        document.datatype & _DATATYPES
        | (0 if newest else _NOT_NEWEST)
        | (document.marks & _MARKS) << _MARKS_AT,
        len(name),
        collection,
        document.flags,
        document.cas,
        document.seqno,
        document.expires_at,
    )
    return b"".join((head, name, tail, value))


def encode(body: bytes, seed: int) -> bytes:
    """Return a whole record: checksum, body and padding."""
    checksum = zlib.crc32(body, seed).to_bytes(4, "little")
    return checksum + body + bytes(-(4 + len(body)) % ALIGNMENT)


def size_of(key: Key, document: Document) -> int:
    """Return how many bytes the record of a document takes at most, padding included."""
    size = HEAD_SIZE + len(document.value) + ALIGNMENT
    size += len(key[1]) if key.__class__ is tuple else len(key)
    if document.xattrs is not None:
        # JSON may have to escape every byte of a text.
        size += 16 + sum(6 * (len(n) + len(text)) + 8 for n, text in document.xattrs.items())
    return size


def decode(data: bytes, at: int, seed: int) -> tuple[Record, int] | None:
    """Read one record.

    Args:
        data: The file.
        at: Where the record begins.
        seed: As for `encode`.

    Returns:
        The record, and where the next one begins; None when there is no whole, undamaged record.
    """
    start = at + 4
    if at + HEAD_SIZE > len(data):
        return None
    size, kind, datatype, name_size, collection, flags, cas, seqno, expires_at = _HEAD.unpack_from(
        data, start
    )
    end = at + size
    if not HEAD_SIZE + name_size <= size or end > len(data):
        return None
    if zlib.crc32(memoryview(data)[start:end], seed) != int.from_bytes(data[at:start], "little"):
        return None
    name_at = at + HEAD_SIZE
    value_at = name_at + name_size
    name = bytes(data[name_at:value_at])
    xattrs = None
    if kind == Kind.PUT_WITH_XATTRS or (kind == Kind.TOMBSTONE and value_at < end):
        (length,) = _LENGTH.unpack_from(data, value_at)
        texts = json.loads(data[value_at + 4 : value_at + 4 + length])
        xattrs = {key: text.encode() for key, text in texts.items()}
        value_at += 4 + length
    value = bytes(data[value_at:end])
    types = datatype & _DATATYPES
    document = Document(value, flags, cas, expires_at, 0.0, seqno, types, 0, xattrs)
    document.marks = datatype >> _MARKS_AT
    document.deleted = kind == Kind.TOMBSTONE
    key: Key = (collection, name) if collection else name
    return Record(kind, key, document, not datatype & _NOT_NEWEST), end + (-end % ALIGNMENT)
