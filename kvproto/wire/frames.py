"""Binary frames as values: what a decoder gives and an encoder takes.

A frame is complete or absent.  Frames own their bytes: nothing in them refers to the buffer that
they were cut from.  Field order is the order of the wire, but `framing`, mostly empty, is last.

Source: memcached ``protocol_binary.h``, "Packet Structure".
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING

from kvproto.errors import RemoteProtocolError
from kvproto.wire.constants import Magic

__all__ = ["FrameError", "KeyRequest", "Oversized", "Request", "Response"]


@dataclass(slots=True)
class Request:  # noqa: PLW1641 - a dataclass that can change has no hash
    """Something asked: magic 0x80, 0x08, or 0x82 when the server asks.

    Attributes:
        framing: Undecoded flexible framing extras, ``b""`` unless the magic is 0x08
            (see `kvproto.wire.framing`).
        opaque: Echoed untouched; its byte order is the peer's business.
    """

    magic: int = 0x80
    opcode: int = 0
    vbucket: int = 0
    datatype: int = 0
    opaque: int = 0
    cas: int = 0
    extras: bytes = b""
    key: bytes = b""
    value: bytes = b""
    framing: bytes = b""

    def __eq__(self, other: object) -> bool:
        """Compare all fields, whether or not one of the two is a `KeyRequest`."""
        if not isinstance(other, Request):
            return NotImplemented
        return _all_fields(self) == _all_fields(other)


_all_fields = attrgetter(*(field.name for field in fields(Request)))


class KeyRequest(Request):
    """What a decoder makes of most requests: a header and a key of usual length, nothing else.

    It is made without arguments, and has only those fields to be set that may differ.  Whoever
    gets one need not look at the others: no extras, value, framing, datatype or CAS, and 1 to
    `MAX_KEY` bytes of key.
    """

    __slots__ = ()

    if not TYPE_CHECKING:
        __init__ = object.__init__  # called sooner than one in Python

    magic = int(Magic.REQUEST)
    datatype = 0
    cas = 0
    extras = b""
    value = b""
    framing = b""


@dataclass(slots=True)
class Response:
    """Something answered: magic 0x81, 0x18, or 0x83 when the client answers."""

    magic: int = 0x81
    opcode: int = 0
    status: int = 0
    datatype: int = 0
    opaque: int = 0
    cas: int = 0
    extras: bytes = b""
    key: bytes = b""
    value: bytes = b""
    framing: bytes = b""


@dataclass(slots=True)
class Oversized:
    """A frame whose body or key was beyond the limits; its body has been read and thrown away.

    The stream is intact: answer `answer`, with this opcode and opaque, and go on.

    Attributes:
        status_or_vbucket: The header's bytes at offsets 6 and 7.
        body_size: What the header announced, in bytes.
        key: The key, None when it was longer than allowed.
        answer: The status to answer: 0x03 for a large body, 0x04 for a long key.
    """

    magic: int
    opcode: int
    status_or_vbucket: int
    datatype: int
    opaque: int
    cas: int
    body_size: int
    key: bytes | None
    answer: int


class FrameError(RemoteProtocolError):
    """The peer's stream cannot be read any further.

    Args:
        reason: One lower-case phrase for the log.
        status: The status to answer before closing, None to only close.
        opcode: Of the frame at fault, 0 when its header was not read.
        opaque: Of the frame at fault, 0 when its header was not read.
    """

    def __init__(
        self, reason: str, status: int | None = None, opcode: int = 0, opaque: int = 0
    ) -> None:
        super().__init__(reason, status)
        self.opcode = opcode
        self.opaque = opaque
