"""Two applications that talk TLS over an in-memory wire, for the tests of the protocol."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.testing.contexts import TLS12, TLS13, Creator, client_context, server_context
from kvproto.testing.transport import MemoryPair
from kvproto.tls import KVTLSFactory

VERSIONS = {"TLSv1.2": TLS12, "TLSv1.3": TLS13}

STOCK = TLSMemoryBIOFactory
"""What Twisted uses itself (its protocol is the buffering transport)."""


class PlainFactory(TLSMemoryBIOFactory):
    """Twisted's TLS without its write aggregation."""

    protocol = TLSMemoryBIOProtocol


@implementer(IHandshakeListener)
class App(Protocol):
    """An application that keeps what happens to it.

    Attributes:
        received: All data.
        pieces: Length of each piece.
        reasons: One entry for each ``connectionLost``; there must never be two.
        on_data: Called with each piece.
        on_handshake: Called when the handshake ends.
        on_lost: Called when the connection is lost.
    """

    def __init__(self) -> None:
        self.received = bytearray()
        self.pieces: list[int] = []
        self.reasons: list[Failure] = []
        self.handshakes = 0
        self.on_data: Callable[[bytes], object] = lambda data: None
        self.on_handshake: Callable[[], object] = lambda: None
        self.on_lost: Callable[[], object] = lambda: None

    @property
    def tls(self) -> Any:
        """The TLS protocol that is this application's transport."""
        return self.transport

    def handshakeCompleted(self) -> None:
        self.handshakes += 1
        self.on_handshake()

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.pieces.append(len(data))
        self.on_data(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.reasons.append(reason)
        self.on_lost()

    def echo(self) -> App:
        """Write back what comes."""
        self.on_data = lambda data: self.tls.write(data)  # noqa: PLW0108  # tls comes later
        return self


class Wired:
    """A server's and a client's application, TLS around each, a wire between them.

    Args:
        server: Factory class of the server's TLS.
        client: Factory class of the client's TLS.
        version: The TLS version of both default contexts.
        server_tls: The server's context or connection creator.
        client_tls: The client's.
        options: For `MemoryPair`.
    """

    def __init__(
        self,
        server: type[TLSMemoryBIOFactory] = KVTLSFactory,
        client: type[TLSMemoryBIOFactory] = KVTLSFactory,
        *,
        version: int | None = TLS13,
        server_tls: Any = None,
        client_tls: Any = None,
        limits: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.server_app, self.client_app = App(), App()
        self.server_factory = server(
            creator(server_tls or server_context(version)),
            False,
            given(self.server_app),
            self.clock,
        )
        self.client_factory = client(
            creator(client_tls or client_context(version)),
            True,
            given(self.client_app),
            self.clock,
        )
        for name, value in (limits or {}).items():
            setattr(self.server_factory, name, value)
        self.server: Any = self.server_factory.buildProtocol(None)
        self.client: Any = self.client_factory.buildProtocol(None)
        self.pair = MemoryPair(self.server, self.client, clock=self.clock, **options)

    def connect(self) -> Wired:
        """Connect both sides, without moving a byte."""
        self.pair.connect()
        return self

    def handshake(self) -> Wired:
        """Connect and pump until nothing moves."""
        self.connect().pair.flush()
        return self

    def flush(self) -> None:
        """Pump until nothing moves."""
        self.pair.flush()


def given(app: App) -> Factory:
    """Return a factory that builds `app`, and does not keep it."""
    apps = weakref.ref(app)
    return Factory.forProtocol(apps)  # type: ignore[arg-type]


def creator(tls: Any) -> Any:
    """Return a connection creator for a context; anything else as it is."""
    return Creator(tls) if isinstance(tls, SSL.Context) else tls
