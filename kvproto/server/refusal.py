"""Telling a peer "busy" in its own protocol, and closing.

Such a connection costs no session: it waits for enough bytes to know what to answer, at most
`MAX_HEARD` of them, answers and closes.  How long it may wait is its owner's deadline.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol

from kvproto.wire.binary import RequestDecoder, error_reply
from kvproto.wire.constants import BINARY_MAGICS, Status

__all__ = ["MAX_HEARD", "RefusingProtocol"]

MAX_HEARD = 16 * 1024
"""Bytes; whoever has not finished one request by then is not told why."""


TOO_MANY = b"ERROR Too many open connections\r\n"
"""memcached's words, whichever of our limits it is: its clients know these."""


class RefusingProtocol(Protocol):
    """Answers what comes first with "busy" and closes."""

    transport: Any

    def __init__(self) -> None:
        self._decoder: RequestDecoder | None = None
        self._heard = 0
        self._done = False

    def dataReceived(self, data: bytes) -> None:
        """Answer as soon as there is a request."""
        if self._done:
            return
        binary = self._decoder is not None or (not self._heard and data[0] in BINARY_MAGICS)
        self._heard += len(data)
        answer = self._answer_binary(data) if binary else self._answer_text(data)
        if answer or self._done or self._heard > MAX_HEARD:
            self._done = True
            if answer:
                self.transport.write(answer)
            self.transport.loseConnection()

    def _answer_binary(self, data: bytes) -> bytes:
        """Answer every request of this read, in order."""
        if self._decoder is None:
            self._decoder = RequestDecoder(max_body=0)
        frames = self._decoder.feed(data)
        self._done = self._decoder.error is not None
        return b"".join(error_reply(frame.opcode, Status.BUSY, frame.opaque) for frame in frames)

    def _answer_text(self, data: bytes) -> bytes:
        """Answer the first line."""
        if b"\n" not in data:
            return b""
        return TOO_MANY
