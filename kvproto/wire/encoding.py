"""Encoding the binary protocol: whole frames, heads of long ones, and a server's frequent replies.

Judged here is only the caller (`LocalProtocolError`).  Import from `kvproto.wire.binary`, where
both directions are together.

Sources: memcached ``protocol_binary.h``; Couchbase kv_engine ``docs/BinaryProtocol.md``.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error

from kvproto.errors import LocalProtocolError
from kvproto.wire.constants import error_text
from kvproto.wire.frames import Request, Response

__all__ = [
    "HEADER",
    "counter_reply",
    "encode_frame",
    "encode_request",
    "encode_response",
    "error_reply",
    "get_head",
    "get_reply",
    "getk_head",
    "mutation_reply",
    "pack_hit",
    "response_head",
    "simple_reply",
]

HEADER = Struct(">BBHBBHIIQ")
"""The header: magic, opcode, key length, extras length, datatype, vbucket or status, body length,
opaque, CAS."""

_pack_header = HEADER.pack


def _head(
    magic: int,
    flex_magic: int,
    opcode: int,
    status: int,
    key: bytes,
    value_size: int,
    extras: bytes,
    opaque: int,
    cas: int,
    datatype: int,
    framing: bytes,
) -> bytes:
    key_size = len(key)
    body_size = len(framing) + len(extras) + key_size + value_size
    if framing:
        if key_size > 0xFF or len(framing) > 0xFF:
            raise LocalProtocolError("key and framing must fit one length byte each")
        magic, key_size = flex_magic, len(framing) << 8 | key_size
    try:
        header = _pack_header(
            magic, opcode, key_size, len(extras), datatype, status, body_size, opaque, cas
        )
    except struct_error as e:
        raise LocalProtocolError(f"a header field is out of range: {e}") from e
    return header + framing + extras + key


def response_head(
    opcode: int,
    status: int = 0,
    *,
    value_size: int = 0,
    extras: bytes = b"",
    key: bytes = b"",
    opaque: int = 0,
    cas: int = 0,
    datatype: int = 0,
    framing: bytes = b"",
    magic: int = 0x81,
) -> bytes:
    """Encode a response up to its value, which the caller sends after it.

    For long values: it saves copying them.  `value_size` bytes must follow.  With `framing`
    (encoded framing extras) the magic becomes 0x18.

    Raises:
        LocalProtocolError: A field does not fit the header.
    """
    return _head(
        magic, 0x18, opcode, status, key, value_size, extras, opaque, cas, datatype, framing
    )


def encode_response(
    opcode: int,
    status: int = 0,
    *,
    value: bytes = b"",
    extras: bytes = b"",
    key: bytes = b"",
    opaque: int = 0,
    cas: int = 0,
    datatype: int = 0,
    framing: bytes = b"",
    magic: int = 0x81,
) -> bytes:
    """Encode one whole response; with `framing` (encoded extras) the magic becomes 0x18.

    Raises:
        LocalProtocolError: A field does not fit the header.
    """
    return (
        _head(magic, 0x18, opcode, status, key, len(value), extras, opaque, cas, datatype, framing)
        + value
    )


def encode_request(
    opcode: int,
    *,
    key: bytes = b"",
    value: bytes = b"",
    extras: bytes = b"",
    vbucket: int = 0,
    opaque: int = 0,
    cas: int = 0,
    datatype: int = 0,
    framing: bytes = b"",
    magic: int = 0x80,
) -> bytes:
    """Encode one whole request; with `framing` (encoded extras) the magic becomes 0x08.

    Raises:
        LocalProtocolError: A field does not fit the header.
    """
    return (
        _head(magic, 0x08, opcode, vbucket, key, len(value), extras, opaque, cas, datatype, framing)
        + value
    )


def encode_frame(frame: Request | Response) -> bytes:
    """Encode a frame as a decoder gave it.

    Raises:
        LocalProtocolError: A field does not fit the header.
    """
    is_request = isinstance(frame, Request)
    return (
        _head(
            frame.magic,
            0x08 if is_request else 0x18,
            frame.opcode,
            frame.vbucket if isinstance(frame, Request) else frame.status,
            frame.key,
            len(frame.value),
            frame.extras,
            frame.opaque,
            frame.cas,
            frame.datatype,
            frame.framing,
        )
        + frame.value
    )


# A server's frequent replies: one prebuilt Struct each, arguments not checked again.  They trust
# their caller; a number out of range raises struct.error.  What is 0 is padding, no argument.

_pack_get = Struct(">BBHBB2xIIQI").pack
_pack_simple = Struct(">BB4xH4xIQ").pack
_pack_mutation = Struct(">BB2xB3xIIQQQ").pack
_pack_counter = Struct(">BB6xIIQQ").pack
_pack_counter_token = Struct(">BB2xB3xIIQQQQ").pack

pack_hit = Struct(">BB2xBB2xIIQI").pack
"""What `get_head` calls, with the same arguments in the order of the wire, for those who are called
so often that one call less counts: 0x81, opcode, 4 (bytes of extras), datatype, 4 + value size,
opaque, CAS, flags."""


def get_head(
    opcode: int, datatype: int, opaque: int, cas: int, flags: int, value_size: int
) -> bytes:
    """Encode a hit of GET or GAT up to its value: 28 bytes; `value_size` bytes must follow."""
    return pack_hit(0x81, opcode, 4, datatype, 4 + value_size, opaque, cas, flags)


def get_reply(opcode: int, datatype: int, opaque: int, cas: int, flags: int, value: bytes) -> bytes:
    """Encode a whole hit of GET or GAT; for values short enough to be copied."""
    return pack_hit(0x81, opcode, 4, datatype, 4 + len(value), opaque, cas, flags) + value


def getk_head(
    opcode: int, datatype: int, opaque: int, cas: int, flags: int, key: bytes, value_size: int
) -> bytes:
    """Encode a hit of GETK or GATK up to its value: 28 bytes and the key."""
    size = len(key)
    return (
        _pack_get(0x81, opcode, size, 4, datatype, 4 + size + value_size, opaque, cas, flags) + key
    )


def simple_reply(opcode: int, status: int, opaque: int, cas: int = 0) -> bytes:
    """Encode a reply without a body."""
    return _pack_simple(0x81, opcode, status, opaque, cas)


def mutation_reply(opcode: int, opaque: int, cas: int, vbucket_uuid: int, seqno: int) -> bytes:
    """Encode a successful mutation with its mutation token (feature 0x04)."""
    return _pack_mutation(0x81, opcode, 16, 16, opaque, cas, vbucket_uuid, seqno)


def counter_reply(
    opcode: int, opaque: int, cas: int, value: int, token: tuple[int, int] | None = None
) -> bytes:
    """Encode the success of INCREMENT or DECREMENT; the value is always 8 bytes.

    `token`, where feature 0x04 was negotiated: vbucket UUID and sequence number.
    """
    if token is None:
        return _pack_counter(0x81, opcode, 8, opaque, cas, value)
    return _pack_counter_token(0x81, opcode, 16, 24, opaque, cas, *token, value)


def error_reply(opcode: int, status: int, opaque: int, cas: int = 0) -> bytes:
    """Encode an error for a client that did not say HELLO: its body is a text, never empty."""
    text = error_text(status)
    return _pack_header(0x81, opcode, 0, 0, 0, status, len(text), opaque, cas) + text
