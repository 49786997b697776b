"""What a document says of itself: the virtual attribute ``$document``, and macros.

Source: kv_engine ``docs/SubDocument.md`` and ``docs/ExtendedAttributes.md``, appendix E;
what clients need of it: the Couchbase SDK reads ``$document.exptime`` and ``$document.flags``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator

import google_crc32c

from kvproto.store.document import LOCKED_CAS, Document
from kvproto.store.jsoncheck import Kind
from kvproto.store.jsontext import Text, kind
from kvproto.store.paths import PathRefused, parse_path
from kvproto.store.pieces import PIECE, Work
from kvproto.store.subdoc import look_up
from kvproto.wire.subdoc_terms import PathOp, PathStatus

__all__ = ["VirtualAttributes", "crc32c", "expand_macro", "is_macro"]

MUTATION_CAS = b'"${Mutation.CAS}"'
MUTATION_SEQNO = b'"${Mutation.seqno}"'
MUTATION_CRC = b'"${Mutation.value_crc32c}"'


def crc32c(data: bytes) -> Work[int]:
    """Return the CRC-32C (Castagnoli) of some bytes."""
    crc = 0
    for at in range(0, len(data), PIECE):
        crc = google_crc32c.extend(crc, data[at : at + PIECE])
        yield
    return crc


def _shown_cas(document: Document) -> int:
    return LOCKED_CAS if document.locked_until else document.cas


def _datatypes(document: Document) -> Work[list[str]]:
    names = ["json"] if document.value and (yield from kind(document)) >= Kind.JSON else []
    return names + (["xattr"] if document.xattrs else []) or ["raw"]


_FIELDS: dict[str, Callable[[Document, int], object]] = {
    "CAS": lambda document, _: f"0x{_shown_cas(document):016x}",
    "vbucket_uuid": lambda _, uuid: f"0x{uuid:016x}",
    "seqno": lambda document, _: f"0x{document.seqno:016x}",
    "revid": lambda document, _: str(document.seqno),
    "exptime": lambda document, _: document.expiry,
    "flags": lambda document, _: document.flags,
    "value_bytes": lambda document, _: len(document.value),
    "datatype": lambda document, _: _datatypes(document),
    "deleted": lambda document, _: document.deleted,
    "last_modified": lambda document, _: str(document.cas // 1_000_000_000),
    "value_crc32c": lambda document, _: _checksum(document.value),
}
"""What makes each field; what takes long is `Work`."""


def _checksum(value: bytes) -> Work[str]:
    return f"0x{(yield from crc32c(value)):08x}"


class VirtualAttributes:
    """``$document`` and ``$XTOC`` (the names of the extended attributes) of one document.

    Only the fields that are asked for are worked out, each of them once.

    Args:
        document: The document.
        uuid: Name of its store's history.
    """

    __slots__ = ("_document", "_known", "_uuid")

    def __init__(self, document: Document, uuid: int) -> None:
        self._document = document
        self._uuid = uuid
        self._known: dict[str, object] = {}

    def look_up(self, op: int, path: bytes) -> Work[bytes]:
        """Answer a lookup.

        Args:
            op: GET, EXISTS or GET_COUNT.
            path: Begins with ``$``.

        Raises:
            PathRefused: UNKNOWN_VATTR, or as any lookup.
        """
        if op == PathOp.GET and path.startswith(_DOCUMENT):
            # As clients spell what they send with every read that wants an expiry.
            name = path[len(_DOCUMENT) :].decode("utf-8", "replace")
            if name in _FIELDS:
                return json.dumps((yield from self._field(name))).encode()
        steps = parse_path(path).steps
        if steps[0] == "$XTOC":
            fields: object = list(self._document.xattrs or {})
        elif steps[0] == "$document":
            chosen = [step for step in steps[1:2] if step in _FIELDS] if steps[1:] else _FIELDS
            values = {}
            for name in map(str, chosen):
                values[name] = yield from self._field(name)
            fields = values
        else:
            raise PathRefused(PathStatus.UNKNOWN_VATTR)
        text = json.dumps({steps[0]: fields}, separators=(",", ":"))
        return (yield from look_up(Text(text.encode()), op, path))

    def _field(self, name: str) -> Work[object]:
        if name not in self._known:
            value = _FIELDS[name](self._document, self._uuid)
            self._known[name] = (yield from value) if isinstance(value, Generator) else value
        return self._known[name]


_DOCUMENT = b"$document."


def is_macro(value: bytes) -> bool:
    """Return whether a value is a macro that `expand_macro` may know."""
    if value in {MUTATION_CAS, MUTATION_SEQNO, MUTATION_CRC}:
        return True
    return value.startswith(b'"${$document') and value.endswith(b'}"')


def expand_macro(value: bytes, new: VirtualAttributes, old: VirtualAttributes) -> Work[bytes]:
    """Return what a macro stands for.

    Args:
        value: The macro, its quotes included.
        new: Of the document that is being made.
        old: Of the document as it was; what ``$document`` means in a macro.

    Raises:
        PathRefused: UNKNOWN_VATTR_MACRO.
    """
    try:
        if value == MUTATION_CAS:
            # Byte-swapped, as kv_engine does on the machines that it runs on; clients undo it.
            cas = yield from new.look_up(PathOp.GET, b"$document.CAS")
            return b'"0x%b"' % bytes.fromhex(cas[3:-1].decode())[::-1].hex().encode()
        if value == MUTATION_SEQNO:
            return (yield from new.look_up(PathOp.GET, b"$document.seqno"))
        if value == MUTATION_CRC:
            return (yield from new.look_up(PathOp.GET, b"$document.value_crc32c"))
        return (yield from old.look_up(PathOp.GET, value[3:-2]))
    except PathRefused:
        raise PathRefused(PathStatus.UNKNOWN_VATTR_MACRO) from None
