"""Sending at once over Twisted's own client connections.

Twisted's transport queues every write and waits for the reactor to say that the socket is
writable: two changes of what is watched, and one more turn of the loop, for each batch of commands.
Nearly always the kernel has room, so here the socket is asked first.  What it does not take, and
every error, goes the usual way, so order, back-pressure and how a connection ends are Twisted's.

Private names of Twisted's that are used: ``_tempDataBuffer``, ``_writeDisconnected``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import tcp, unix

__all__ = ["DirectSender", "sender_of"]

_NEEDED = ("socket", "dataBuffer", "_tempDataBuffer", "_writeDisconnected", "disconnecting")


class DirectSender:
    """The way out of a connection.

    Args:
        transport: A socket's own, and not one with TLS in it.
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        """Send, now if nothing waits; what the socket does not take is queued."""
        transport = self._transport
        sent = 0
        if not (
            transport.dataBuffer
            or transport._tempDataBuffer
            or transport._writeDisconnected
            or transport.disconnecting
            or not transport.connected
        ):
            try:  # noqa: SIM105 - a context manager for each batch costs more than it says
                sent = transport.socket.send(data)
            except OSError:
                pass  # it happens again where the transport writes, which knows what to do
        if sent < len(data):
            transport.write(data[sent:])


def sender_of(transport: Any) -> Callable[[bytes], object]:
    """Return what sends over a transport: at once where it is known how, or its ``write``."""
    plain = type(transport) in {tcp.Client, unix.Client}
    if plain and all(hasattr(transport, name) for name in _NEEDED):
        return DirectSender(transport).write
    write: Callable[[bytes], object] = transport.write
    return write
