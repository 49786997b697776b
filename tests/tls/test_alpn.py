"""ALPN (RFC 7301): which protocol an application speaks, as Twisted's own TLS negotiates it."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kvproto.testing.certificates import root_authority, server_identity
from kvproto.testing.transport import MemoryPair
from kvproto.tls import ClientContext, KVTLSFactory, Rotation, ServerPolicy
from kvproto.tls.contexts import build_client_context
from kvproto.tls.endpoints import TLSClientEndpoint, TLSServerEndpoint
from tests.tls.material import NOW, folder, write_identity
from tests.tls.wired import VERSIONS, App


@implementer(IProtocolNegotiationFactory)
class Negotiating(Factory):
    """A factory whose protocols speak one of several protocols."""

    noisy = False

    def __init__(self, *protocols: bytes) -> None:
        self.protocols = protocols
        self.app = App()

    def acceptableProtocols(self) -> list[bytes]:
        return list(self.protocols)

    def buildProtocol(self, addr: object) -> App:
        return self.app


class Plain(Factory):
    """A factory that does not negotiate."""

    noisy = False

    def __init__(self) -> None:
        self.app = App()

    def buildProtocol(self, addr: object) -> App:
        return self.app


class Below:
    """An endpoint that keeps the factory that it is given."""

    factory: Any = None

    def listen(self, factory: Any) -> None:
        self.factory = factory

    connect = listen


class ALPNTests(SynchronousTestCase):
    """A server of ``Rotation.contexts`` and a client of ``ClientContext``."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        files = write_identity(folder(self), server_identity())
        self.rotation = Rotation(files, ServerPolicy(), self.clock, now=self.clock.seconds)
        self.version: int | None = None

    def meet(self, server: Any, client: Any) -> tuple[bytes | None, bytes | None]:
        """Shake hands; return what each side has negotiated."""
        context = build_client_context(None, (root_authority().certificate,), at=int(NOW))
        if self.version is not None:
            context.set_max_proto_version(self.version)
        ours, theirs = (
            KVTLSFactory(self.rotation.contexts, False, server, self.clock),
            KVTLSFactory(ClientContext(context, "localhost"), True, client, self.clock),
        )
        pair = MemoryPair(ours.buildProtocol(None), theirs.buildProtocol(None), clock=self.clock)  # type: ignore[arg-type]
        pair.connect()
        pair.flush()
        tls = (server.app.tls, client.app.tls)
        return tls[0].negotiatedProtocol, tls[1].negotiatedProtocol

    def test_preference(self) -> None:
        """The first of the server's protocols that the client speaks is chosen."""
        for self.version in VERSIONS.values():
            server = Negotiating(b"h2", b"http/1.1")
            met = self.meet(server, Negotiating(b"http/1.1", b"h2"))
            self.assertEqual(met, (b"h2", b"h2"))
            self.assertEqual(server.app.handshakes, 1)

    def test_no_negotiation(self) -> None:
        """An application that does not negotiate meets one that does."""
        for server, client in (
            (Plain(), Negotiating(b"h2")),
            (Negotiating(b"h2"), Plain()),
            (Plain(), Plain()),
            (Negotiating(), Negotiating(b"h2")),
        ):
            self.assertEqual(self.meet(server, client), (None, None))
            self.assertEqual((server.app.handshakes, client.app.handshakes), (1, 1))

    def test_nothing_in_common(self) -> None:
        """The handshake ends with the alert of RFC 7301 section 3.2."""
        for self.version in VERSIONS.values():
            server, client = Negotiating(b"h2"), Negotiating(b"spdy/1")
            self.meet(server, client)
            self.assertEqual((server.app.handshakes, client.app.handshakes), (0, 0))
            (ours,), (theirs,) = server.app.reasons, client.app.reasons
            self.assertIsInstance(ours.value, SSL.Error)
            self.assertIn("no application protocol", str(ours.value))
            self.assertIn("no application protocol", str(theirs.value))

    def test_each_connection_its_own(self) -> None:
        """One context serves applications that speak different protocols."""
        self.assertEqual(self.meet(Negotiating(b"a"), Negotiating(b"a", b"b")), (b"a", b"a"))
        self.assertEqual(self.meet(Negotiating(b"b"), Negotiating(b"a", b"b")), (b"b", b"b"))

    def test_endpoints(self) -> None:
        """The endpoints of ``kvtls:`` strings ask the program's factories."""
        context = build_client_context(None, (root_authority().certificate,), at=int(NOW))
        below: Any = Below()
        server, client = Negotiating(b"h2"), Negotiating(b"h2")
        TLSServerEndpoint(below, self.rotation.contexts, self.clock).listen(server)
        listening = below.factory
        below.connect = self.keep(below)
        TLSClientEndpoint(below, ClientContext(context, "localhost"), self.clock).connect(client)
        pair = MemoryPair(
            listening.buildProtocol(None), below.factory.buildProtocol(None), clock=self.clock
        )
        pair.connect()
        pair.flush()
        self.assertEqual(client.app.tls.negotiatedProtocol, b"h2")
        self.assertEqual(server.app.tls.negotiatedProtocol, b"h2")

    def keep(self, below: Any) -> Any:
        def connect(factory: Any) -> Any:
            below.factory = factory
            return Deferred()

        return connect
