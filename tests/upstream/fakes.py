"""An engine in memory that answers what a test tells it to, and endpoints that lead to it."""

from __future__ import annotations

from typing import Any

import hiredis
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.testing.transport import MemoryPair

__all__ = ["FakeEndpoint", "FakeServer"]


class FakeServer(Protocol):
    """The server's end of one connection.

    Attributes:
        commands: What it was sent, in order.
    """

    transport: Any

    def __init__(self) -> None:
        self.commands: list[list[bytes]] = []
        self._reader = hiredis.Reader()
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        """Parse commands: they are arrays of bulk strings, which a reader of replies knows."""
        self._reader.feed(data)
        while (found := self._reader.gets()) is not False:
            self.commands.append(found)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason

    def say(self, data: bytes) -> None:
        """Send this."""
        self.transport.write(data)


@implementer(IStreamClientEndpoint)
class FakeEndpoint:
    """Makes connections when a test says so.

    Attributes:
        attempts: Those under way, the oldest first.
        server: The other end of the last connection that was made.
        pair: Its wire.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.attempts: list[tuple[Deferred[Any], Any]] = []
        self.made = 0
        self.server = FakeServer()
        self.pair: MemoryPair

    def connect(self, factory: Any) -> Deferred[Any]:
        """Begin an attempt."""
        attempt: Deferred[Any] = Deferred(self._cancelled)
        self.attempts.append((attempt, factory))
        self.made += 1
        return attempt

    def _cancelled(self, attempt: Deferred[Any]) -> None:
        self.attempts = [found for found in self.attempts if found[0] is not attempt]
        attempt.errback(CancelledError())

    def succeed(self, **options: Any) -> FakeServer:
        """Let the oldest attempt succeed; return the server's end."""
        attempt, factory = self.attempts.pop(0)
        self.server = FakeServer()
        protocol = factory.buildProtocol(None)
        self.pair = MemoryPair(self.server, protocol, clock=self._clock, **options)
        self.pair.connect()
        attempt.callback(protocol)
        self.pair.flush()
        return self.server

    def fail(self) -> None:
        """Let the oldest attempt fail."""
        attempt, _ = self.attempts.pop(0)
        attempt.errback(ConnectionRefusedError())

    def say(self, data: bytes) -> None:
        """Let the server say this, and let it arrive."""
        self.server.say(data)
        self.pair.flush()
