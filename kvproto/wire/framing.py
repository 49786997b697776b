"""Flexible framing extras: small objects between header and extras (magics 0x08 and 0x18).

Each object is one byte ``id << 4 | length`` and `length` bytes; a nibble of 15 is escaped: one more
byte follows whose value is added to 15, the id's byte first.  Escaped lengths are understood but
never sent: the Couchbase SDK sums lengths by their nibble alone.

Source: Couchbase kv_engine ``docs/BinaryProtocol.md``, "Request/Response header with flexible
framing extras"; ``include/mcbp/codec/frameinfo.h``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import Status

__all__ = [
    "Durability",
    "RequestFraming",
    "ResponseFraming",
    "decode_request_framing",
    "decode_response_framing",
    "encode_objects",
    "encode_request_framing",
    "encode_server_duration",
    "objects",
]

_BARRIER = 0
_DURABILITY = 1
_STREAM_ID = 2
_IMPERSONATE = 4
_PRESERVE_TTL = 5

_DURATION = 0
_READ_UNITS = 1
_WRITE_UNITS = 2
_THROTTLED = 3

_ESCAPE = 15
_MAX_U16 = 0xFFFF


@dataclass(slots=True)
class Durability:
    """What a mutation asks to be true before it is answered.

    Attributes:
        level: 1 majority, 2 majority and persisted on the active, 3 persisted to a majority; other
            levels are passed on, to be answered with `Status.DURABILITY_INVALID_LEVEL`.
        timeout_ms: Milliseconds to wait, None for the server's default.
    """

    level: int
    timeout_ms: int | None = None


@dataclass(slots=True)
class RequestFraming:
    """What a request's framing extras say.

    Attributes:
        barrier: Wait for all earlier commands of this connection.
        durability: None when the mutation asks for none.
        stream_id: Of DCP; None when absent.
        impersonate: Act as this user; None when absent.
        preserve_ttl: Keep an existing document's expiry.
    """

    barrier: bool = False
    durability: Durability | None = None
    stream_id: int | None = None
    impersonate: bytes | None = None
    preserve_ttl: bool = False


@dataclass(slots=True)
class ResponseFraming:
    """What a response's framing extras say.

    Attributes:
        server_duration_us: Microseconds that the server worked on it, to within a few per cent.
        read_units: As metered; None when absent.
        write_units: As metered; None when absent.
        throttled_us: Microseconds, coded as the duration is; None when absent.
    """

    server_duration_us: int | None = None
    read_units: int | None = None
    write_units: int | None = None
    throttled_us: int | None = None


def objects(framing: bytes) -> list[tuple[int, bytes]]:
    """Split framing extras into (id, content).

    Raises:
        RemoteProtocolError: An object is cut short (status 0x04).  The frame's own bounds are
            sound: answer the status and go on reading.
    """
    found = []
    at, end = 0, len(framing)
    while at < end:
        number, size = framing[at] >> 4, framing[at] & 0x0F
        at += 1
        if number == _ESCAPE:
            if at == end:
                raise _cut_short()
            number += framing[at]
            at += 1
        if size == _ESCAPE:
            if at == end:
                raise _cut_short()
            size += framing[at]
            at += 1
        if at + size > end:
            raise _cut_short()
        found.append((number, framing[at : at + size]))
        at += size
    return found


def encode_objects(pairs: Iterable[tuple[int, bytes]]) -> bytes:
    """Join (id, content) pairs to framing extras.

    Raises:
        LocalProtocolError: An id is above 270, or a content longer than 14 bytes, which would need
            an escaped length.
    """
    parts = []
    for number, content in pairs:
        if len(content) >= _ESCAPE:
            raise LocalProtocolError("escaped lengths are not sent: at most 14 bytes an object")
        if not 0 <= number <= _ESCAPE + 0xFF:
            raise LocalProtocolError(f"no framing object can have the id {number}")
        if number < _ESCAPE:
            parts.append(bytes((number << 4 | len(content),)))
        else:
            parts.append(bytes((_ESCAPE << 4 | len(content), number - _ESCAPE)))
        parts.append(content)
    return b"".join(parts)


def decode_request_framing(framing: bytes) -> RequestFraming:
    """Read a request's framing extras.

    Raises:
        RemoteProtocolError: Answer its status and go on reading: 0x04 for what is malformed,
            0x80 for an id that is not known.
    """
    found = RequestFraming()
    seen = set()
    for number, content in objects(framing):
        if number in seen:
            raise RemoteProtocolError(f"framing object {number} appears twice", Status.INVALID)
        seen.add(number)
        size = len(content)
        if number == _BARRIER and size == 0:
            found.barrier = True
        elif number == _DURABILITY and size == 1:
            found.durability = Durability(content[0])
        elif number == _DURABILITY and size == 3:
            found.durability = _decode_durability(content)
        elif number == _STREAM_ID and size == 2:
            found.stream_id = int.from_bytes(content)
        elif number == _IMPERSONATE and size > 0:
            found.impersonate = content
        elif number == _PRESERVE_TTL and size == 0:
            found.preserve_ttl = True
        elif number in {_BARRIER, _DURABILITY, _STREAM_ID, _IMPERSONATE, _PRESERVE_TTL}:
            raise RemoteProtocolError(f"framing object {number} has {size} bytes", Status.INVALID)
        else:
            raise RemoteProtocolError(f"unknown framing object {number}", Status.UNKNOWN_FRAME_INFO)
    return found


def encode_request_framing(framing: RequestFraming) -> bytes:
    """Write a request's framing extras.

    Raises:
        LocalProtocolError: A level, timeout, stream id or user name does not fit.
    """
    pairs: list[tuple[int, bytes]] = []
    if framing.barrier:
        pairs.append((_BARRIER, b""))
    if framing.durability is not None:
        pairs.append((_DURABILITY, _encode_durability(framing.durability)))
    if framing.stream_id is not None:
        if not 0 <= framing.stream_id <= _MAX_U16:
            raise LocalProtocolError(f"stream id {framing.stream_id} is out of range")
        pairs.append((_STREAM_ID, framing.stream_id.to_bytes(2)))
    if framing.impersonate is not None:
        if not framing.impersonate:
            raise LocalProtocolError("nobody cannot be impersonated")
        pairs.append((_IMPERSONATE, framing.impersonate))
    if framing.preserve_ttl:
        pairs.append((_PRESERVE_TTL, b""))
    return encode_objects(pairs)


def encode_server_duration(duration_us: float) -> bytes:
    """Write the framing extras that tell how long the server worked: 3 bytes.

    Args:
        duration_us: Microseconds; capped at the format's 2 minutes and below at 0.
    """
    return b"\x02" + _encode_duration(duration_us)


def decode_response_framing(framing: bytes) -> ResponseFraming:
    """Read a response's framing extras; ids that are not known are skipped.

    Raises:
        RemoteProtocolError: An object is cut short.
    """
    found = ResponseFraming()
    for number, content in objects(framing):
        if len(content) != 2:
            continue
        coded = int.from_bytes(content)
        if number == _DURATION:
            found.server_duration_us = _decode_duration(coded)
        elif number == _READ_UNITS:
            found.read_units = coded
        elif number == _WRITE_UNITS:
            found.write_units = coded
        elif number == _THROTTLED:
            found.throttled_us = _decode_duration(coded)
    return found


def _cut_short() -> RemoteProtocolError:
    return RemoteProtocolError("a framing object is cut short", Status.INVALID)


def _decode_durability(content: bytes) -> Durability:
    """Read a level with its timeout."""
    timeout_ms = int.from_bytes(content[1:])
    if timeout_ms in {0, _MAX_U16}:
        # 0 would mean "at once", 65535 is reserved for "for ever"; kv_engine refuses both.
        raise RemoteProtocolError(f"durability timeout {timeout_ms} is reserved", Status.INVALID)
    return Durability(content[0], timeout_ms)


def _encode_durability(durability: Durability) -> bytes:
    level, timeout_ms = durability.level, durability.timeout_ms
    if not 0 <= level <= 0xFF:
        raise LocalProtocolError(f"durability level {level} is out of range")
    if timeout_ms is None:
        return bytes((level,))
    if not 0 < timeout_ms < _MAX_U16:
        raise LocalProtocolError(f"durability timeout {timeout_ms} ms is out of range")
    return bytes((level,)) + timeout_ms.to_bytes(2)


def _encode_duration(duration_us: float) -> bytes:
    coded = round(math.pow(2 * max(duration_us, 0), 1 / 1.74))
    return min(coded, _MAX_U16).to_bytes(2)


def _decode_duration(coded: int) -> int:
    return round(math.pow(coded, 1.74) / 2)
