"""Accepted sockets that send at once what nothing stands in front of.

Twisted's transport queues every write and waits for the reactor to say that the socket is
writable: two ``epoll_ctl`` and one turn of the loop for each reply.  Nearly always the
kernel has room, so here the socket is asked first, and only what it does not take is queued
the usual way.  Order, back-pressure, half-closing and how a connection ends are Twisted's.

Reads go into one buffer of the process and are copied out of it at their own size: an
allocation of the largest size for every read costs more than the read (measured with 64 KiB
values: 55 against 12 microseconds, most of it page faults).

Private names of Twisted's that are used: ``_tempDataLen``, ``_writeDisconnected``, ``_aborting``,
``_sendmsgQueue``, ``_isSendBufferFull``.  Where one of them is missing, `DIRECT` is False and
Twisted's own transports are used.  Compiled shortcuts ask for what `write` asks for.
"""

from __future__ import annotations

import errno
import socket as sockets
from collections.abc import Callable, Iterable
from contextlib import suppress
from socket import IPPROTO_TCP
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import tcp, unix
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.interfaces import IShortcutTransport

if TYPE_CHECKING:
    from socket import socket

    from twisted.internet.error import ConnectionDone, ConnectionLost

__all__ = [
    "DIRECT",
    "READ_SIZE",
    "DirectServer",
    "DirectUNIXServer",
    "server_transport",
    "unix_server_transport",
]

READ_SIZE: Final = 128 * 1024
"""Most bytes of one read: room for a 64 KiB value, TLS included."""

MAX_PARTS: Final = 512
"""Most parts given to one ``sendmsg``; the kernel refuses more than 1024 (IOV_MAX)."""

_LATER: Final = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.ENOBUFS, errno.EINTR})

_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET})
"""The peer has closed: whoever reads from such a socket is told so by its next read."""

_DONE: Final = Failure(CONNECTION_DONE)
"""The usual end, made once as Twisted does."""

QUICKACK: Final[int | None] = getattr(sockets, "TCP_QUICKACK", None)
"""Linux' option; None elsewhere."""

_buffer = bytearray(READ_SIZE)
_read_into = memoryview(_buffer)

DIRECT: Final = all(
    hasattr(tcp.Server, name)
    for name in ("_writeDisconnected", "_aborting", "_isSendBufferFull", "_maybePauseProducer")
)
"""Whether this Twisted has what the transports here rest on."""

if TYPE_CHECKING:
    _ServerBase = tcp.Server
else:
    _ServerBase = object


class _SendsAtOnce(_ServerBase):
    """The sending half, for Twisted's stream server transports."""

    socket: socket
    _shortcut: Callable[[bytes], bytes | None] | None  # TCP's only, as is the next one
    _read: Callable[[], bytes | int | None] | None
    _reads = False
    _writes = False
    _read_ends = False  # while the protocol is told so
    _send_failed = False
    _peer_gone = False
    _sendmsgQueue: Any = ()  # descriptors that wait; only Unix sockets have any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Twisted has these as class attributes; on the instance they are found at once.  What a
        # request needs is set first: CPython keeps attributes in the order of their first setting,
        # and the first of them share lines of the processor's cache.
        self.socket = self.protocol = None  # type: ignore[assignment]  # at the end of this
        self._shortcut = self._read = None
        self.dataBuffer = b""
        self._tempDataLen = 0
        self.connected = self.TLS = self._aborting = self._writeDisconnected = False
        self.producer = None
        self.streamingProducer = False
        self.offset = 0
        super().__init__(*args, **kwargs)

    def _getLogPrefix(self, applicationObject: object) -> str:
        # What Twisted puts together for every connection is for its own loop's log lines.
        return type(applicationObject).__name__

    def startReading(self) -> None:
        """Read what comes from now on."""
        self._reads = True
        self.reactor.addReader(self)

    def stopReading(self) -> None:
        """Leave what comes with the kernel."""
        self._reads = False
        self.reactor.removeReader(self)
        if self._peer_gone and self.connected:
            self.startWriting()  # or nobody would be told

    def startWriting(self) -> None:
        """Send what waits as soon as there is room, or learn why there will be none."""
        if self._peer_gone and self._reads:
            return  # the next read says it, and needs no change of what is watched
        self._writes = True
        if not self._read_ends:
            self.reactor.addWriter(self)

    def stopWriting(self) -> None:
        """Stop asking for room."""
        if self._writes:
            self._writes = False
            self.reactor.removeWriter(self)

    def _must_queue(self) -> bool:
        """Return whether a write has to be queued."""
        return bool(
            self.dataBuffer
            or self._tempDataLen
            or not self.connected
            or self.TLS
            or self._aborting
            or self._writeDisconnected
            # A pull producer is asked for more when the queue has become empty.
            or (self.producer is not None and not self.streamingProducer)
            or self._sendmsgQueue
        )

    def write(self, data: bytes) -> None:
        """Send bytes, now if nothing waits; what the socket does not take is queued."""
        # `_must_queue`, spelled out: every answer comes through here.
        if (
            data.__class__ is not bytes
            or self.dataBuffer
            or self._tempDataLen
            or not self.connected
            or self.TLS
            or self._aborting
            or self._writeDisconnected
            or (self.producer is not None and not self.streamingProducer)
            or self._sendmsgQueue
        ):
            super().write(data)
            return
        try:
            sent = self.socket.send(data)
        except OSError as error:
            sent = self._not_sent(error)
        if sent < len(data):
            self.dataBuffer = data
            self.offset = sent
            self._maybePauseProducer()
            self.startWriting()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send several pieces without joining them; what is not taken is queued."""
        parts = list(iovec)
        if (
            not parts
            or len(parts) > MAX_PARTS
            or any(part.__class__ is not bytes for part in parts)
            or self._must_queue()
        ):
            super().writeSequence(parts)
            return
        try:
            sent = self.socket.sendmsg(parts)
        except OSError as error:
            sent = self._not_sent(error)
        for number, part in enumerate(parts):
            sent -= len(part)
            if sent < 0:
                rest = [part[sent:], *parts[number + 1 :]]
                super().writeSequence(rest)
                break

    def _not_sent(self, error: OSError) -> int:
        """Note a failure; it ends the connection in the reactor's next turn, never in here.

        The error is the kernel's only word about what happened: a read after it would look
        like the peer's orderly goodbye.
        """
        if error.errno not in _LATER:
            self._send_failed = True
            self._peer_gone = error.errno in _GONE
        return 0

    def _isSendBufferFull(self) -> bool:
        # What is sent already does not count, as it would with Twisted's transport.
        sent = self.offset
        full: bool = super()._isSendBufferFull()
        return full and (
            not sent or len(self.dataBuffer) - sent + self._tempDataLen > self.bufferSize
        )


@implementer(IShortcutTransport)
class DirectServer(_SendsAtOnce, tcp.Server):
    """An accepted TCP connection."""

    _peer: Any = None

    def came_from(self, peer: Any) -> None:
        """Set the address of the peer, the object that the protocol has been given."""
        self._peer = peer

    def getPeer(self) -> Any:
        """Return where it comes from, one object for all who ask."""
        if self._peer is None:
            self._peer = super().getPeer()
        return self._peer

    def acknowledge(self) -> None:
        """Acknowledge what has arrived at once, not with the next answer."""
        if QUICKACK is not None and self.connected:
            with suppress(OSError):
                self.socket.setsockopt(IPPROTO_TCP, QUICKACK, 1)

    @property
    def shortcut(self) -> Callable[[bytes], bytes | None] | None:
        """Asked before the protocol is given a read; see `IShortcutTransport`."""
        return self._shortcut

    @shortcut.setter
    def shortcut(self, shortcut: Any) -> None:
        self._shortcut = shortcut
        # A compiled one reads and sends by itself.
        self._read = getattr(shortcut, "read", None)
        if self._read is not None:
            shortcut.take_socket(self)

    def doRead(self) -> ConnectionLost | ConnectionDone | None:  # type: ignore[override]
        """Read what is there, once, and give it to the protocol."""
        read = self._read
        if read is not None:
            data: Any = read()
            if data is None:
                return None
            if data.__class__ is int:
                return self._not_read(data)
        else:
            try:
                size = self.socket.recv_into(_buffer)
            except OSError as error:
                return self._not_read(error.errno)
            data = _read_into[:size].tobytes()
        if not data:
            if not self._send_failed:
                return CONNECTION_DONE
            self._shouldShutdown = False
            return CONNECTION_LOST
        if read is None and self._shortcut is not None:
            reply = self._shortcut(data)
            if reply is not None:
                if reply:
                    self.write(reply)
                return None
        self.protocol.dataReceived(data)
        return None

    def _not_read(self, number: int | None) -> ConnectionLost | None:
        """Return what an error of a read means."""
        if number in _LATER:
            return None
        self._shouldShutdown = False  # there is nothing left to shut down
        return CONNECTION_LOST

    def readConnectionLost(self, reason: Failure) -> None:
        """Tell the protocol that the peer has ended its side; close at once if it has done so.

        Twisted would wait until the reactor says that there is room to write what nothing is left
        of: two changes of what is watched and a turn for each connection.
        """
        self._read_ends = True
        try:
            super().readConnectionLost(reason)
        finally:
            self._read_ends = False
        if self._writes and self.connected:
            why = self.doWrite()
            if why is not None:
                self.connectionLost(_DONE if why is CONNECTION_DONE else Failure(why))
            elif self._writes:
                self.reactor.addWriter(self)


class DirectUNIXServer(_SendsAtOnce, unix.Server):
    """An accepted Unix connection; reading, with descriptors in it, stays Twisted's."""

    def doRead(self) -> Any:
        """Read as Twisted does."""
        why = super().doRead()
        return CONNECTION_LOST if why is CONNECTION_DONE and self._send_failed else why


def server_transport() -> type[tcp.Server]:
    """Return what to put accepted TCP sockets into."""
    return DirectServer if DIRECT else tcp.Server


def unix_server_transport() -> type[unix.Server]:
    """Return what to put accepted Unix sockets into."""
    return DirectUNIXServer if DIRECT else unix.Server
