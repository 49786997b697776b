"""One connection to a memcached server, in its binary protocol.

`MemcachedConnection` is an `EngineConnection` that reads frames instead of RESP: batches, order,
deadlines and ends are the same, and the theory is there.  memcached answers in order as well, so
the queue decides whose reply it is; besides that each request carries an opaque of ours, and a
reply with another one ends the connection rather than reach somebody else.

Only opcodes that memcached knows may be sent: one that it does not know is answered late or never.

Source: memcached ``doc/protocol-binary.xml``, ``proto_bin.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvproto.base.log import make_logger
from kvproto.upstream.connection import Call, EngineConnection
from kvproto.wire.constants import HEADER_SIZE, Magic, Opcode
from kvproto.wire.encoding import HEADER

__all__ = ["FrameCall", "MemcachedConnection", "greeting"]

log = make_logger()

MAX_BODY = 1 << 30
"""Bytes of a reply; memcached's ``-I`` goes no further."""

_LARGE = 16 * 1024
"""Bytes from which a reply is handed over as a view of what was read, so that its value is copied
once."""

_RESPONSE = int(Magic.RESPONSE)
_STAT = int(Opcode.STAT)
_unpack = HEADER.unpack_from


class FrameCall(Call):
    """A request.

    Args:
        data: Its frame.
        answered: Called once with the reply's frame (``bytes``, or a ``memoryview`` when it is
            long), or with an `EngineFailure`, and this call.
        opaque: In the frame.
        write: Whether it may change something.
        context: Whatever ``answered`` needs to know.

    Attributes:
        items: For STAT: frames of items, which come before the reply.
    """

    __slots__ = ("items", "opaque")

    def __init__(
        self,
        data: bytes,
        answered: Callable[[Any, Call], object],
        opaque: int,
        write: bool = False,
        context: Any = None,
    ) -> None:
        super().__init__(data, answered, write, context)
        self.opaque = opaque
        self.items: list[bytes] | None = None


def greeting() -> list[FrameCall]:
    """Make the request that a connection begins with: a server that is stopped does not answer."""
    data = HEADER.pack(Magic.REQUEST, Opcode.NOOP, 0, 0, 0, 0, 0, 0, 0)
    return [FrameCall(data, _ignore, 0)]


def _ignore(reply: Any, call: Call) -> None:
    """Take the answer to a greeting; a link puts its own function in place of this."""


class MemcachedConnection(EngineConnection):
    """A pipelined connection to a memcached server; see `EngineConnection`."""

    _held: list[bytes]

    def connectionMade(self) -> None:
        """Take the transport."""
        self._held = []
        self._held_size = 0
        self._needed = HEADER_SIZE
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        """Give each reply to its request."""
        if not self._open:
            return
        held = self._held
        if held:
            held.append(data)
            self._held_size += len(data)
            if self._held_size < self._needed:
                return
            data = b"".join(held)
            held.clear()
        at, end = 0, len(data)
        pending, out = self._pending, self._out
        while end - at >= HEADER_SIZE:
            magic, opcode, key_size, _, _, _, body_size, opaque, _ = _unpack(data, at)
            if magic != _RESPONSE or body_size > MAX_BODY:
                self._end("protocol", "it does not speak memcached's binary protocol")
                return
            stop = at + HEADER_SIZE + body_size
            if stop > end:
                break
            if len(pending) == len(out):
                self._end("protocol", "a reply to no request")
                return
            call: Any = pending[0]
            if call.opaque != opaque:
                self._end("protocol", "a reply to another request")
                return
            frame: Any = data[at:stop] if stop - at < _LARGE else memoryview(data)[at:stop]
            at = stop
            if opcode == _STAT and key_size and call.items is not None:
                call.items.append(bytes(frame))
                continue
            pending.popleft()
            try:
                call.answered(frame, call)
            except Exception:
                log.failure("a reply could not be used")
            if self._ended:
                return
        if at < end:
            self._needed = HEADER_SIZE
            if end - at >= HEADER_SIZE:
                self._needed += _unpack(data, at)[6]
            held.append(data[at:])
            self._held_size = end - at
        self._note_answers()
        if self._closing and not pending:
            self._end("disconnected", "not needed any more")
