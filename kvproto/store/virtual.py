"""What a document says of itself: the virtual attribute ``$document``, and macros.

Source: kv_engine ``docs/SubDocument.md`` and ``docs/ExtendedAttributes.md``, appendix E;
what clients need of it: the Couchbase SDK reads ``$document.exptime`` and ``$document.flags``.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from kvproto.store.document import LOCKED_CAS, Document
from kvproto.store.jsontext import is_json
from kvproto.store.paths import PathRefused, parse_path
from kvproto.store.subdoc import look_up
from kvproto.wire.subdoc_terms import PathOp, PathStatus

__all__ = ["crc32c", "expand_macro", "is_macro", "virtual_attribute"]

_CASTAGNOLI = 0x82F63B78

MUTATION_CAS = b'"${Mutation.CAS}"'
MUTATION_SEQNO = b'"${Mutation.seqno}"'
MUTATION_CRC = b'"${Mutation.value_crc32c}"'


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_CASTAGNOLI if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes.

    In Python, so about 60 ms for each MiB: only who asks for ``value_crc32c`` pays for it.
    """
    crc = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _datatypes(document: Document) -> list[str]:
    names = ["json"] if document.value and is_json(document) else []
    return names + (["xattr"] if document.xattrs else []) or ["raw"]


def _shown_cas(document: Document) -> int:
    return LOCKED_CAS if document.locked_until else document.cas


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
    "value_crc32c": lambda document, _: f"0x{crc32c(document.value):08x}",
}


_FIELD_PATHS = {f"$document.{name}".encode(): field for name, field in _FIELDS.items()}
"""The paths that clients send with every read that wants an expiry, spelt as they do."""


def virtual_attribute(document: Document, uuid: int, op: int, path: bytes) -> bytes:
    """Answer a lookup in ``$document`` or ``$XTOC`` (the names of the extended attributes).

    Only the fields that the path may lead to are worked out.

    Args:
        document: Of which document.
        uuid: Name of its store's history.
        op: GET, EXISTS or GET_COUNT.
        path: Begins with ``$``.

    Raises:
        PathRefused: UNKNOWN_VATTR, or as any lookup.
    """
    if op == PathOp.GET and path in _FIELD_PATHS:
        return json.dumps(_FIELD_PATHS[path](document, uuid)).encode()
    steps = parse_path(path).steps
    if steps[0] == "$XTOC":
        return look_up(json.dumps({"$XTOC": list(document.xattrs or {})}), op, path)
    if steps[0] != "$document":
        raise PathRefused(PathStatus.UNKNOWN_VATTR)
    names = [str(step) for step in steps[1:2] if step in _FIELDS] if steps[1:] else list(_FIELDS)
    fields = {name: _FIELDS[name](document, uuid) for name in names}
    return look_up(json.dumps({"$document": fields}, separators=(",", ":")), op, path)


def is_macro(value: bytes) -> bool:
    """Say whether a value is a macro that `expand_macro` may know."""
    if value in {MUTATION_CAS, MUTATION_SEQNO, MUTATION_CRC}:
        return True
    return value.startswith(b'"${$document') and value.endswith(b'}"')


def expand_macro(value: bytes, new: Document, old: Document | None, uuid: int) -> bytes:
    """Return what a macro stands for.

    Args:
        value: The macro, its quotes included.
        new: CAS, seqno and value of the document that is being made.
        old: The document as it was; what ``$document`` means in a macro.
        uuid: Name of the store's history.

    Raises:
        PathRefused: UNKNOWN_VATTR_MACRO.
    """
    if value == MUTATION_CAS:
        # Byte-swapped, as kv_engine does on the machines that it runs on; clients undo it.
        return f'"0x{new.cas.to_bytes(8, "little").hex()}"'.encode()
    if value == MUTATION_SEQNO:
        return f'"0x{new.seqno:016x}"'.encode()
    if value == MUTATION_CRC:
        return f'"0x{crc32c(new.value):08x}"'.encode()
    try:
        return virtual_attribute(old or Document(b""), uuid, PathOp.GET, value[3:-2])
    except PathRefused:
        raise PathRefused(PathStatus.UNKNOWN_VATTR_MACRO) from None
