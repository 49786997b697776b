"""HTTP servers for untrusted clients: Twisted's own, with bounds on all that a client can hold.

So many connections, each for so long: one that is idle, or dribbles its request, is closed; so is
one whose body is longer than the site reads.  Where there is no room for one more, the one that has
waited longest for its next request goes, so that silent ones keep nobody out.  Requests that were
sent at once are served one in each turn of the event loop.  What is served is the business of who
makes the `BoundedSite`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IStreamServerEndpoint
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from kvproto.base.addresses import describe_peer
from kvproto.base.log import make_logger

__all__ = ["IDLE_SECONDS", "MAX_CONNECTIONS", "REQUEST_SECONDS", "BoundedSite", "HTTPService"]

log = make_logger()

MAX_CONNECTIONS = 64
"""Connections of one site at once: scrapers, probes, a test suite and a few people."""

IDLE_SECONDS = 30.0
"""After which a connection that sends nothing is closed."""

REQUEST_SECONDS = 60.0
"""After which a connection is closed whose next request is not complete, however it comes."""


class BoundedRequest(Request):
    """A request whose body is short enough to be kept in memory."""

    channel: Any

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that is too long, or does not say how long; Twisted would write it down."""
        site = self.channel.factory
        if length is not None and length <= site.max_body:
            super().gotLength(length)
        elif not site.max_body:
            self.channel.refuse(b"400 Bad Request")
        elif length is None:  # a body in chunks
            self.channel.refuse(b"411 Length Required")
        else:
            self.channel.refuse(b"413 Content Too Large")


class BoundedChannel(HTTPChannel):
    """A connection that counts, and has a deadline for each request."""

    requestFactory = BoundedRequest
    transport: Any
    _deadline: IDelayedCall | None = None
    _next_turn: IDelayedCall | None = None
    _first_of_turn = True

    def connectionMade(self) -> None:
        """Take a place; somebody else may have to go, or who comes where all are served."""
        site = self.factory
        super().connectionMade()
        if len(site.channels) >= site.max_connections:
            gone = next(iter(site.waiting), self)
            site.forget(gone)
            gone.forceAbortClient()
            if gone is self:
                return
        site.channels.add(self)
        self._expect_request()

    def dataReceived(self, data: bytes) -> None:
        """Take what the peer sends."""
        self._first_of_turn = True
        super().dataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a header that is too long."""
        self.refuse(b"431 Request Header Fields Too Large")

    def timeoutConnection(self) -> None:
        """Close a connection that is idle; Twisted would log a line each time."""
        self._abortingCall = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def forceAbortClient(self) -> None:
        """Cut the connection."""
        self._abortingCall = None
        self.transport.abortConnection()

    def refuse(self, status: bytes) -> None:
        """Answer with nothing but a status, and close.

        Args:
            status: Code and phrase, e.g. ``b"413 Content Too Large"``.
        """
        self.transport.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)
        self.loseConnection()

    def _expect_request(self) -> None:
        self.factory.waiting[self] = None
        self._deadline = self.callLater(REQUEST_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        self._deadline = None
        self.forceAbortClient()

    def _stop_deadline(self) -> None:
        self.factory.waiting.pop(self, None)
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def allContentReceived(self) -> None:
        """Take a whole request: what follows is our time, not the peer's."""
        self._stop_deadline()
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        """Begin to wait for the next request; one that is there already waits for its turn."""
        if self._first_of_turn:
            self._first_of_turn = False
            self._go_on(request)
        else:
            self._next_turn = self.callLater(0, partial(self._go_on, request))

    def _go_on(self, request: Any) -> None:
        self._next_turn = None
        self._expect_request()
        super().requestDone(request)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Give the place back."""
        self._stop_deadline()
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self.factory.forget(self)
        super().connectionLost(reason)


class BoundedSite(Site):
    """A site with bounds.

    Args:
        root: What answers.
        reactor: For deadlines.
        max_body: Bytes of a request's body.
        max_connections: At once.

    Attributes:
        channels: The connections that are open.
        waiting: Those of them that wait for a request, the one that has waited longest first.
    """

    def __init__(
        self,
        root: IResource,
        reactor: Any,
        max_body: int = 0,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        super().__init__(root, BoundedRequest, timeout=IDLE_SECONDS)
        self.protocol = BoundedChannel  # type: ignore[method-assign, assignment]
        self.reactor = reactor
        self.max_body = max_body
        self.max_connections = max_connections
        self.channels: set[BoundedChannel] = set()
        self.waiting: dict[BoundedChannel, None] = {}
        self.displayTracebacks = False
        self.noisy = False

    def log(self, request: Any) -> None:
        """Leave no line: somebody asks every few seconds."""

    def forget(self, channel: BoundedChannel) -> None:
        """Give a connection's place back."""
        self.channels.discard(channel)
        self.waiting.pop(channel, None)

    def close(self) -> None:
        """End every connection."""
        for channel in tuple(self.channels):
            channel.loseConnection()


class HTTPService(Service):
    """Serves a `BoundedSite` on an endpoint.

    Args:
        endpoint: Where.
        factory: What connections come to: a `BoundedSite`, or what has a ``close`` like it.
        name: What it is called in the log.

    Attributes:
        address: Where it listens, ``""`` while it does not.
        port: The TCP port of that, 0 if there is none.
    """

    def __init__(self, endpoint: IStreamServerEndpoint, factory: Any, name: str = "http") -> None:
        self.name = name
        self._endpoint = endpoint
        self._factory = factory
        self._port: Any = None
        self.address = ""
        self.port = 0

    def startService(self) -> Deferred[None]:
        """Begin to listen; the Deferred fails if that cannot be."""
        super().startService()
        listening = self._endpoint.listen(self._factory)
        return listening.addCallback(self._listens)

    def _listens(self, port: Any) -> None:
        self._port = port
        host = port.getHost()
        self.address = describe_peer(host)
        self.port = getattr(host, "port", 0)
        log.info("{name} on {address}", name=self.name, address=self.address)
        if not self.running:
            port.stopListening()

    def stopService(self) -> Deferred[None]:
        """Stop listening and end connections."""
        super().stopService()
        port, self._port = self._port, None
        self._factory.close()
        return succeed(None) if port is None else maybeDeferred(port.stopListening)
