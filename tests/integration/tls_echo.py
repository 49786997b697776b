"""An echo server on `KVTLSProtocol` and a real socket, for tests with other TLS stacks."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from kvproto.testing.contexts import Creator
from kvproto.tls import KVTLSFactory
from tests.integration.service import PATIENCE

reactor: Any = _reactor


@implementer(IHandshakeListener)
class Echo(Protocol):
    """Writes back what comes, and remembers what happened."""

    transport: Any

    def __init__(self) -> None:
        self.received = bytearray()
        self.handshakes = 0
        self.reason: Any = None
        self.lost: Deferred[None] = Deferred()

    def handshakeCompleted(self) -> None:
        self.handshakes += 1

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.transport.write(data)

    def connectionLost(self, reason: Any = connectionDone) -> None:
        self.reason = reason
        self.lost.callback(None)


@implementer(IHandshakeListener)
class Asker(Protocol):
    """Sends a question once the handshake has ended; `answered` fires with its echo."""

    transport: Any

    def __init__(self, question: bytes) -> None:
        self.question = question
        self.received = bytearray()
        self.answered: Deferred[bytes] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def handshakeCompleted(self) -> None:
        self.transport.write(self.question)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if len(self.received) == len(self.question):
            self.answered.callback(bytes(self.received))

    def connectionLost(self, reason: Any = connectionDone) -> None:
        self.lost.callback(None)


class EchoTestCase(TestCase):
    """Starts echo servers on free ports of the loopback address and stops them."""

    timeout = 3 * PATIENCE

    def listen(
        self,
        context: SSL.Context,
        factory: type[TLSMemoryBIOFactory] = KVTLSFactory,
        protocol: type[Echo] = Echo,
        **limits: Any,
    ) -> tuple[int, list[Echo]]:
        """Serve; return the port and the list that each connection's `Echo` is added to."""
        accepted: list[Echo] = []

        def build() -> Echo:
            accepted.append(protocol())
            return accepted[-1]

        tls = factory(Creator(context), False, Factory.forProtocol(build), reactor)
        for name, value in limits.items():
            setattr(tls, name, value)
        port = reactor.listenTCP(0, tls, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return port.getHost().port, accepted

    def ask(
        self,
        port: int,
        context: SSL.Context,
        factory: type[TLSMemoryBIOFactory] = KVTLSFactory,
        question: bytes = b"hello",
    ) -> Asker:
        """Connect to a server on loopback and send it a question."""
        asker = Asker(question)
        inner = ClientFactory.forProtocol(lambda: asker)
        tls = factory(Creator(context), True, inner, reactor)
        connector = reactor.connectTCP("127.0.0.1", port, tls)
        self.addCleanup(self._hang_up, connector, asker)
        return asker

    def _hang_up(self, connector: Any, asker: Asker) -> Deferred[None] | None:
        if asker.lost.called:
            return None
        if asker.transport is not None:
            asker.transport.abortConnection()
        else:
            connector.stopConnecting()
            return None
        return asker.lost
