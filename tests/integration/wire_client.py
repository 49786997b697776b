"""A few binary-protocol packets, spelled out so that the tests do not lean on our own codec."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import NamedTuple

__all__ = ["Answer", "packet", "read_answer", "read_answers", "read_exactly", "sasl_plain"]

HEADER = struct.Struct(">BBHBBHIIQ")


class Answer(NamedTuple):
    """One response packet."""

    opcode: int
    status: int
    opaque: int
    cas: int
    extras: bytes
    key: bytes
    value: bytes


def packet(
    opcode: int,
    key: bytes = b"",
    value: bytes = b"",
    extras: bytes = b"",
    *,
    opaque: int = 0,
    cas: int = 0,
) -> bytes:
    """Return one classic request (magic 0x80)."""
    body = extras + key + value
    return HEADER.pack(0x80, opcode, len(key), len(extras), 0, 0, len(body), opaque, cas) + body


def sasl_plain(user: str, password: str) -> bytes:
    """Return a SASL PLAIN request."""
    return packet(0x21, b"PLAIN", f"\0{user}\0{password}".encode())


def read_exactly(peer: socket.socket | ssl.SSLSocket, count: int) -> bytes:
    """Return ``count`` bytes.

    Raises:
        EOFError: The peer ended before.
    """
    pieces = bytearray()
    while len(pieces) < count:
        piece = peer.recv(count - len(pieces))
        if not piece:
            raise EOFError(f"{len(pieces)} of {count} bytes, then the end")
        pieces += piece
    return bytes(pieces)


def read_answer(peer: socket.socket | ssl.SSLSocket) -> Answer:
    """Return the next response packet."""
    magic, opcode, key, extras, _, status, body, opaque, cas = HEADER.unpack(
        read_exactly(peer, HEADER.size)
    )
    assert magic == 0x81, magic
    rest = read_exactly(peer, body)
    return Answer(
        opcode,
        status,
        opaque,
        cas,
        rest[:extras],
        rest[extras : extras + key],
        rest[extras + key :],
    )


def read_answers(peer: socket.socket | ssl.SSLSocket, count: int) -> list[Answer]:
    """Return the next ``count`` response packets."""
    return [read_answer(peer) for _ in range(count)]
