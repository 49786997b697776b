"""A transport whose peer is the test, for protocols that need no second one to talk to.

Models what Twisted's own ``StringTransport`` does not: a peer that reads late fills it and pauses
the producer, what arrives while reading is paused waits, a polite close waits for the peer, and
the end is reported to the protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["HOST", "PEER", "ScriptedTransport"]

PEER = IPv4Address("TCP", "192.0.2.1", 4711)
HOST = IPv4Address("TCP", "192.0.2.9", 11207)


@implementer(ITransport, IConsumer, IPushProducer)
class ScriptedTransport:
    """A transport whose peer is the test: it sends, and reads what was written, when it likes.

    Args:
        high_water: Bytes above which the producer is paused, as Twisted's own transports do.
        reads: Whether the peer reads whatever is written at once.
        peer: What `getPeer` returns.

    Attributes:
        protocol: What it delivers to.
        received: What the peer has read.
        unsent: What it has not, in pieces; ``most_unsent`` is the most bytes there ever were.
        writes: How often something was written.
        reading: Whether the protocol wants to read.
        closed: Whether ``connectionLost`` has been called.
        aborted: Whether `abortConnection` was.
        in_place: Whether it asks for answers in place first, as TLS does.
    """

    in_place = False

    def __init__(self, high_water: int = 65536, *, reads: bool = True, peer: Any = PEER) -> None:
        self.high_water = high_water
        self.peer_reads = reads
        self.received = bytearray()
        self.unsent: list[bytes] = []
        self.writes = 0
        self.most_unsent = 0
        self.producer: Any = None
        self.producer_paused = False
        self.reading = True
        self.arrived: list[bytes] = []
        self.protocol: Any = None
        self.disconnecting = False
        self.closed = False
        self.aborted = False
        self.peer = peer
        self.host: Any = HOST

    # what the protocol calls

    def write(self, data: bytes) -> None:
        """Take bytes."""
        self.writeSequence([data])

    def writeSequence(self, parts: Iterable[bytes]) -> None:
        """Take several pieces; pause the producer when there are too many bytes."""
        self.writes += 1
        if self.disconnecting or self.closed:
            return
        self.unsent.extend(parts)
        size = self.unsent_size()
        self.most_unsent = max(self.most_unsent, size)
        if self.peer_reads:
            self.received += b"".join(self.unsent)
            self.unsent.clear()
        elif size > self.high_water and self.producer is not None and not self.producer_paused:
            self.producer_paused = True
            self.producer.pauseProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Take a streaming producer."""
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        """Let the producer go."""
        self.producer = None

    def pauseProducing(self) -> None:
        """Deliver nothing until `resumeProducing`."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Deliver again."""
        self.reading = True
        self._deliver()

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    def loseConnection(self) -> None:
        """Close once the peer has read everything."""
        self.disconnecting = True
        self._close_if_sent()

    def abortConnection(self) -> None:
        """Close now; what was not read is lost."""
        self.aborted = self.disconnecting = True
        self.lose(ConnectionAborted())

    def getPeer(self) -> Any:
        """Return the address of the peer."""
        return self.peer

    def getHost(self) -> Any:
        """Return the address of this end."""
        return self.host

    # what the test calls

    def unsent_size(self) -> int:
        """Return how many bytes wait for the peer."""
        return sum(map(len, self.unsent))

    def connect(self, protocol: Any) -> None:
        """Give a protocol its transport, which is this one."""
        self.protocol = protocol
        protocol.makeConnection(self)

    def send(self, data: bytes, *, read_size: int = 65536) -> None:
        """Let bytes arrive; they are read when the protocol wants them."""
        self.arrived += [data[at : at + read_size] for at in range(0, len(data), read_size)]
        self._deliver()

    def read(self, size: int | None = None) -> bytes:
        """Let the peer read some of what waits for it; return it."""
        waiting = b"".join(self.unsent)
        taken, rest = (waiting, b"") if size is None else (waiting[:size], waiting[size:])
        self.unsent[:] = [rest] if rest else []
        self.received += taken
        if not rest:
            if self.producer is not None and self.producer_paused:
                self.producer_paused = False
                self.producer.resumeProducing()
            self._close_if_sent()
        return taken

    def lose(self, reason: Exception | None = None) -> None:
        """Let the connection end, once."""
        if not self.closed:
            self.closed = True
            if self.producer is not None:
                self.producer.stopProducing()
            self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    def _deliver(self) -> None:
        while self.reading and self.arrived and not self.closed and not self.disconnecting:
            data = self.arrived.pop(0)
            if self.in_place:
                replies: list[bytes] = []
                data = data[self.protocol.answer(data, replies) :]
                if replies:
                    self.writeSequence(replies)
            if data:
                self.protocol.dataReceived(data)

    def _close_if_sent(self) -> None:
        if self.disconnecting and not self.unsent and self.producer is None:
            self.lose()
