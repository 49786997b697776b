"""How a document lies in the engine: a header, its extended attributes, its value.

| bytes | |
|---|---|
| 1 | version of this layout, 1 |
| 8 | CAS |
| 8 | until when it is locked, in microseconds of unix time; 0 when it is not |
| 4 | length of the attributes |
| 1 | 1 for a tombstone |
| 4 | flags |
| 1 | datatype |
| 8 | when it expires, in microseconds of unix time; 0 for never |
| 1 | marks (`kvproto.store.document.Mark`) |
| 4 | when it was read last, in seconds of unix time; 0 when nobody has noted it |
| 8 | sequence number |

All numbers are big-endian.  The first 22 bytes tell the script whether a SET may go ahead; the
whole header is different after each change, so it stands for the document in a compare-and-swap.
Each attribute is the length of its name (2 bytes), its name, the length of its text (4) and that.
"""

from __future__ import annotations

from struct import Struct, error

from kvproto.errors import ForeignData
from kvproto.store import Document
from kvproto.store.document import ALL_MARKS, MARK_BITS

__all__ = ["HEADER", "decode", "encode", "header_of"]

HEADER = Struct(">BQQIBIBQBIQ")
"""The header: version, CAS, locked until, length of attributes, tombstone, flags, datatype, expiry,
marks, read at, sequence number."""

_VERSION = 1
_SIZE = HEADER.size
_MICRO = 1_000_000
_NAME = Struct(">H")
_TEXT = Struct(">I")

_unpack = HEADER.unpack_from
_new = object.__new__


def decode(data: bytes) -> Document:
    """Read a document.

    Raises:
        ForeignData: It is none of ours.
    """
    try:
        (
            version, cas, locked, length, deleted, flags, datatype, expires, marks, read_at, seqno,
        ) = _unpack(data)  # fmt: skip
    except error:
        raise ForeignData("what lies in the engine is no document: it is too short") from None
    if version != _VERSION:
        raise ForeignData(f"what lies in the engine is no document: its version is {version}")
    # What ``Document(...)`` does, in 0.6 of the time.
    document = _new(Document)
    document.value = data[_SIZE:] if not length else data[_SIZE + length :]
    document.flags = flags
    document.cas = cas
    document.expires_at = expires / _MICRO if expires else 0.0
    document.locked_until = locked / _MICRO if locked else 0.0
    document.seqno = seqno
    document.datatype = datatype
    document.due = document.kind = 0
    document.marks = read_at << MARK_BITS | marks if read_at or marks else 0
    document.xattrs = _attributes(data, _SIZE + length) if length else None
    document.deleted = deleted == 1
    return document


def encode(document: Document) -> bytes:
    """Write a document."""
    attributes = b""
    if document.xattrs:
        parts = []
        for name, text in document.xattrs.items():
            encoded = name.encode()
            parts += [_NAME.pack(len(encoded)), encoded, _TEXT.pack(len(text)), text]
        attributes = b"".join(parts)
    head = HEADER.pack(
        _VERSION,
        document.cas,
        round(document.locked_until * _MICRO),
        len(attributes),
        document.deleted,
        document.flags,
        document.datatype & 0xFF,
        max(0, round(document.expires_at * _MICRO)),
        document.marks & ALL_MARKS,
        document.marks >> MARK_BITS & 0xFFFFFFFF,
        document.seqno,
    )
    return head + attributes + document.value


def header_of(data: bytes) -> bytes:
    """Return the header of an encoded document."""
    return data[:_SIZE]


def _attributes(data: bytes, end: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    at = _SIZE
    try:
        while at < end:
            (length,) = _NAME.unpack_from(data, at)
            at += _NAME.size + length
            name = data[at - length : at].decode()
            (length,) = _TEXT.unpack_from(data, at)
            at += _TEXT.size + length
            found[name] = data[at - length : at]
    except (error, UnicodeDecodeError):
        at = -1
    if at != end:
        raise ForeignData("what lies in the engine is no document: its attributes are broken")
    return found
