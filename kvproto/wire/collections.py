"""Collection ids in front of keys, and the answers that name collections.

On a connection that negotiated feature 0x12 the key of every document operation begins with the
collection's id in unsigned leb128: seven bits a byte, lowest first, the top bit set on all but the
last.  Only the shortest form is accepted, so that one document has one name.

Source: Couchbase kv_engine ``docs/Collections.md``, ``include/mcbp/protocol/unsigned_leb128.h``.
"""

from __future__ import annotations

import re
from struct import Struct

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import MAX_COLLECTION_PREFIX, MAX_KEY, Status

__all__ = [
    "DEFAULT",
    "collection_id_extras",
    "encode_collection_id",
    "is_name",
    "join_key",
    "split_collection_id_extras",
    "split_key",
    "split_path",
    "unknown_collection_body",
]

DEFAULT = "_default"
"""Name of the scope, and of the collection, that always exist; their id is 0."""

_MAX_ID = 0xFFFF_FFFF
_ANSWER = Struct(">QI")

_NAME = re.compile(rb"(?:_default|[A-Za-z0-9-][A-Za-z0-9_%-]{0,250})\Z")
"""What a scope or collection may be called; names that begin with ``_`` or ``%`` are reserved."""


def is_name(name: str) -> bool:
    """Return whether a scope or a collection may be called so; `DEFAULT` is one of them."""
    return _NAME.match(name.encode()) is not None


def encode_collection_id(collection: int) -> bytes:
    """Return the shortest leb128 form of an id: 1 to 5 bytes.

    Raises:
        LocalProtocolError: The id does not fit 32 bits.
    """
    if not 0 <= collection <= _MAX_ID:
        raise LocalProtocolError(f"no collection can have the id {collection}")
    form = bytearray()
    while collection > 0x7F:
        form.append(collection & 0x7F | 0x80)
        collection >>= 7
    form.append(collection)
    return bytes(form)


def join_key(collection: int, key: bytes) -> bytes:
    """Return the key as it is on the wire.

    Raises:
        LocalProtocolError: The id does not fit 32 bits.
    """
    return encode_collection_id(collection) + key


def split_key(wire_key: bytes, max_key: int = MAX_KEY) -> tuple[int, bytes]:
    """Take the collection's id off a key.

    Args:
        wire_key: The key as it was on the wire.
        max_key: Longest key behind the id, in bytes.

    Returns:
        The id and the key.

    Raises:
        RemoteProtocolError: The id is cut short, not in its shortest form or beyond 32 bits; or
            the key behind it is empty or too long.  Status 0x04.
    """
    # Nearly all ids are below 128, one byte; an empty key falls through to the long way.
    if wire_key and (collection := wire_key[0]) < 0x80:
        key = wire_key[1:]
    else:
        collection, size = _long_id(wire_key)
        key = wire_key[size:]
    if not 0 < len(key) <= max_key:
        raise RemoteProtocolError(f"a key of {len(key)} bytes", Status.INVALID)
    return collection, key


def _long_id(wire_key: bytes) -> tuple[int, int]:
    collection = 0
    for index, byte in enumerate(wire_key[:MAX_COLLECTION_PREFIX]):
        collection |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            # A last byte of zero adds nothing: a shorter form exists.
            if byte == 0 or collection > _MAX_ID:
                break
            return collection, index + 1
    raise RemoteProtocolError("a malformed collection id", Status.INVALID)


def split_path(path: bytes) -> tuple[str, str]:
    """Read ``scope.collection``, as GET_COLLECTION_ID has it.

    Returns:
        Both names; an empty one stands for `DEFAULT`.

    Raises:
        RemoteProtocolError: There is not exactly one dot, or a name cannot be one.  Status 0x04.
    """
    names = path.split(b".")
    if len(names) == 2 and all(not name or _NAME.match(name) for name in names):
        return names[0].decode() or DEFAULT, names[1].decode() or DEFAULT
    raise RemoteProtocolError("a malformed collection path", Status.INVALID)


def collection_id_extras(manifest_uid: int, collection: int) -> bytes:
    """Encode the extras of GET_COLLECTION_ID's answer: 12 bytes."""
    return _ANSWER.pack(manifest_uid, collection)


def split_collection_id_extras(extras: bytes) -> tuple[int, int]:
    """Read the extras of GET_COLLECTION_ID's answer: manifest uid and collection id.

    Raises:
        RemoteProtocolError: They are not 12 bytes long.
    """
    if len(extras) != _ANSWER.size:
        raise RemoteProtocolError(f"a collection id in {len(extras)} bytes of extras")
    manifest_uid, collection = _ANSWER.unpack(extras)
    return manifest_uid, collection


def unknown_collection_body(manifest_uid: int) -> bytes:
    """Encode the body of "unknown collection" and "unknown scope"; its datatype is JSON."""
    return b'{"manifest_uid":"%x"}' % manifest_uid
