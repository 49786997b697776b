"""Frames of a node link: a length of four bytes, then so many bytes.

On TLS the length has four bytes from the first handshake message on; only the
plain protocol begins with two.

Source: OTP's ``inet_tls_dist`` (``{packet, 4}``).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from kvproto.errors import RemoteProtocolError

__all__ = ["TICK", "FrameDecoder", "frame"]

_LENGTH = Struct(">I")

TICK: Final = _LENGTH.pack(0)
"""An empty frame: still here."""


def frame(payload: bytes) -> bytes:
    """Put the length in front."""
    return _LENGTH.pack(len(payload)) + payload


class FrameDecoder:
    """Bytes in, whole frames out.

    Args:
        limit: Largest frame in bytes; may be changed between frames.
    """

    __slots__ = ("_buffer", "_position", "limit")

    def __init__(self, limit: int) -> None:
        # A bytearray grows by doubling: a frame of any size costs linear time.
        self._buffer = bytearray()
        self._position = 0
        self.limit = limit

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """Return the next frame without its length, None when it is not all there.

        Raises:
            RemoteProtocolError: It will be longer than the limit.
        """
        start = self._position + _LENGTH.size
        buffer = self._buffer
        if len(buffer) < start:
            return None
        (size,) = _LENGTH.unpack_from(buffer, self._position)
        if size > self.limit:
            raise RemoteProtocolError(f"frame of {size} bytes, at most {self.limit} are taken")
        end = start + size
        if len(buffer) < end:
            return None
        self._position = end
        with memoryview(buffer) as view:
            return bytes(view[start:end])

    def clear(self) -> None:
        """Forget everything: the connection is closing."""
        self._buffer.clear()
        self._position = 0
