"""Two protocols joined by a wire in memory, with everything that makes real wires difficult.

Models what Twisted's own in-memory tools do not: a full transport pauses its producer, a
paused reader gets nothing and the wire behind it fills, pieces have the size that a test
wants, an abort loses what was on its way, and some transports close inside the call.
Nothing happens by itself: bytes move in `MemoryPair.pump` and `MemoryPair.flush`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ITransport,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.interfaces import IShortcutTransport

__all__ = ["MemoryAddress", "MemoryPair", "MemoryTransport"]

HIGH_WATER = 64 * 1024
"""Bytes above which a transport pauses its producer, as in Twisted's ``FileDescriptor``."""


@implementer(IAddress)
class MemoryAddress:
    """The address of one end of a `MemoryPair`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"MemoryAddress({self.name!r})"


@implementer(ITransport, IConsumer, IPushProducer, IShortcutTransport)
class MemoryTransport:
    """One end of a wire in memory.

    Args:
        name: For addresses and messages.
        high_water: Bytes of unsent data above which a push producer is paused.
        window: Bytes that fit between this end and the protocol at the other.
        synchronous_close: Whether ``connectionLost`` is called inside ``loseConnection`` and
            ``abortConnection``, as transports on top of other protocols do.

    Attributes:
        protocol: What this end delivers to; gone with the connection.
        unsent: Bytes written that are not on the wire yet.
        wire: Bytes on the wire to the other end.
        sent: Everything ever put on the wire, for tests that look at it; None to keep none.
        paused: Whether the protocol has asked for no more data.
        connected: False once ``connectionLost`` has been called.
        aborted: Whether the protocol called ``abortConnection``.
        shortcut: Asked before the protocol is given a read; see `IShortcutTransport`.
    """

    peer: MemoryTransport
    protocol: IProtocol

    def __init__(
        self,
        name: str,
        high_water: int = HIGH_WATER,
        window: int = HIGH_WATER,
        synchronous_close: bool = False,
    ) -> None:
        self.name = name
        self.high_water = high_water
        self.window = window
        self.synchronous_close = synchronous_close
        self.unsent = bytearray()
        self.wire = bytearray()
        self.sent: bytearray | None = None
        self.paused = False
        self.connected = True
        self.disconnecting = False
        self.aborted = False
        self.shortcut: Callable[[bytes], bytes | None] | None = None
        self.producer: Any = None
        self.streamingProducer = False
        self.most_unsent = 0
        self._producer_paused = False
        self._no_more_writes = False
        self._half_closed = False
        self._end: Failure | None = None  # what the other end hears after the wire

    def __repr__(self) -> str:
        return f"<MemoryTransport {self.name} unsent={len(self.unsent)} wire={len(self.wire)}>"

    # --- ITransport -----------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Take bytes; pause the producer when there are too many."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"bytes expected, not {type(data).__name__}")
        if not self.connected or self._no_more_writes:
            return
        self.unsent += data
        self.most_unsent = max(self.most_unsent, len(self.unsent))
        if len(self.unsent) > self.high_water and self.producer is not None:
            self._producer_paused = self.streamingProducer
            if self.streamingProducer:
                self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Take several pieces."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close once everything has been put on the wire."""
        if self.disconnecting or not self.connected:
            return
        self.disconnecting = True
        if self.synchronous_close:
            self.wire += self.unsent
            self.unsent.clear()
            self._close()

    def loseWriteConnection(self) -> None:
        """Tell the other end that nothing more will come; go on reading."""
        self._no_more_writes = True

    def abortConnection(self) -> None:
        """Drop everything, now; the other end hears of a lost connection."""
        if not self.connected or self.aborted:
            return
        self.aborted = True
        self.disconnecting = True
        self.unsent.clear()
        self.wire.clear()
        self._end = Failure(ConnectionLost())
        if self.synchronous_close:
            self.lose(Failure(ConnectionAborted()))

    def getPeer(self) -> IAddress:
        """Return the address of the other end."""
        return MemoryAddress(self.peer.name)

    def getHost(self) -> IAddress:
        """Return the address of this end."""
        return MemoryAddress(self.name)

    # --- IConsumer, IPushProducer ---------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Take a producer.

        Raises:
            RuntimeError: There is one already.
        """
        if self.producer is not None:
            raise RuntimeError(f"{self!r} has a producer")
        if not self.connected:
            producer.stopProducing()
            return
        self.producer = producer
        self.streamingProducer = streaming
        self._producer_paused = False
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """Let the producer go."""
        self.producer = None

    def pauseProducing(self) -> None:
        """Deliver nothing until `resumeProducing`."""
        self.paused = True

    def resumeProducing(self) -> None:
        """Deliver again."""
        self.paused = False

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    # --- for `MemoryPair` and for tests ---------------------------------------------------

    def send(self) -> bool:
        """Put on the wire what fits; return whether anything moved."""
        if not self.connected:
            return False
        if self.aborted:
            self.lose(Failure(ConnectionAborted()))
            return True
        if not self.peer.connected and self.unsent:
            # Nobody is there who could take it: the other end's kernel answers with a reset.
            self.lose(Failure(ConnectionLost()))
            return True
        room = self.window - len(self.wire)
        moved = self.unsent[: max(room, 0)]
        if moved:
            del self.unsent[: len(moved)]
            self.wire += moved
            if self.sent is not None:
                self.sent += moved
        if self.unsent:
            return bool(moved)
        if self.producer is not None and (self._producer_paused or not self.streamingProducer):
            self._producer_paused = False
            self.producer.resumeProducing()
            return True
        if self.disconnecting:
            self._close()
            return True
        if self._no_more_writes and not self._half_closed:
            self._half_closed = True
            self._end = Failure(ConnectionDone())
            return True
        return bool(moved)

    def receive(self, chunk: int) -> bool:
        """Take at most `chunk` bytes off the wire and deliver them; return whether it did."""
        if not self.connected or self.paused:
            return False
        wire = self.peer.wire
        if wire:
            data = bytes(wire[:chunk])
            del wire[:chunk]
            try:
                reply = None if self.shortcut is None else self.shortcut(data)
                if reply is None:
                    self.protocol.dataReceived(data)
                elif reply:
                    self.write(reply)
            except Exception as error:
                # As a reactor does it: the connection is lost by the error.
                self.lose(Failure(error))
                raise
            return True
        if self.peer._end is None:
            return False
        end, self.peer._end = self.peer._end, None
        if end.check(ConnectionDone) and IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
        else:
            self.lose(end)
        return True

    def lose(self, reason: Failure) -> None:
        """End this end's connection, once, with a reason for its protocol."""
        if not self.connected:
            return
        self.connected = False
        if self._end is None:
            self._end = Failure(ConnectionLost())
        self.unsent.clear()
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        # As Twisted's sockets do: a finished transport keeps nobody alive.
        protocol = self.protocol
        del self.protocol
        protocol.connectionLost(reason)

    def _close(self) -> None:
        self._end = Failure(ConnectionDone())
        self.lose(Failure(ConnectionDone()))


class MemoryPair:
    """A server's protocol and a client's, joined in memory.

    Args:
        server: Gets one end as its transport.
        client: Gets the other.
        chunk: Bytes of the largest piece delivered.
        high_water: As in `MemoryTransport`.
        window: As in `MemoryTransport`, for both directions.
        synchronous_close: As in `MemoryTransport`, for the server's end.
        clock: Turned by zero seconds in each round, for what protocols put off.

    Attributes:
        server: The server's transport.
        client: The client's transport.
    """

    def __init__(
        self,
        server: IProtocol,
        client: IProtocol,
        *,
        chunk: int = 64 * 1024,
        high_water: int = HIGH_WATER,
        window: int = HIGH_WATER,
        synchronous_close: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.chunk = chunk
        self.clock = clock
        self.server = MemoryTransport("server", high_water, window, synchronous_close)
        self.client = MemoryTransport("client", high_water, window)
        self.server.peer, self.client.peer = self.client, self.server
        self.server.protocol, self.client.protocol = server, client

    def connect(self) -> None:
        """Give both protocols their transports, the server first."""
        self.server.protocol.makeConnection(self.server)
        self.client.protocol.makeConnection(self.client)

    def pump(self) -> bool:
        """Move at most one piece in each direction; return whether anything happened."""
        if self.clock is not None:
            self.clock.advance(0)
        moved = self.client.send()
        moved = self.server.receive(self.chunk) or moved
        moved = self.server.send() or moved
        return self.client.receive(self.chunk) or moved

    def flush(self, rounds: int = 100_000) -> None:
        """Pump until nothing moves.

        Raises:
            RuntimeError: It still does after so many rounds.
        """
        for _ in range(rounds):
            # Twice: what was put off in a quiet round may still move something.
            if not self.pump() and not self.pump():
                return
        raise RuntimeError(f"still moving after {rounds} rounds")
