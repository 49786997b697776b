"""Defects of Twisted's own TLS around handshakes: shown on stock, absent here.

Numbers are those of the catalogue in ``docs/explanation/stock-twisted-tls.md``.  Tests
named ``fix`` run the same scenario on stock and assert that the defect is still there: when
one of them fails on its stock part, Twisted has mended it and the page can say so.  Tests
named ``guard`` hold behaviour that stock has as well.
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error, WantReadError
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory
from twisted.logger import LogLevel, capturedLogs
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kvproto.base.limited_log import LimitedLog
from kvproto.config import ClientAuth
from kvproto.testing.certificates import (
    Authority,
    ca_names,
    client_identity,
    deep_server_identity,
    root_authority,
    server_identity,
)
from kvproto.testing.contexts import TLS12, TLS13, Creator, client_context, server_context
from kvproto.testing.transport import MemoryPair
from kvproto.tls import HandshakeTimeout, KVTLSFactory, explanation, shell
from kvproto.tls.contexts import (
    OP_ALLOW_CLIENT_RENEGOTIATION,
    ServerPolicy,
    build_client_context,
    build_server_context,
)
from tests.tls.libssl import TLS12 as LIB_TLS12
from tests.tls.libssl import LibConnection, LibPeer
from tests.tls.material import credentials_of
from tests.tls.wired import STOCK, VERSIONS, PlainFactory, Wired

FactoryClass = type[TLSMemoryBIOFactory]


def exchanged(wired: Wired) -> bool:
    """Connect, send a question, return whether its echo arrived."""
    wired.server_app.echo()
    wired.handshake()
    wired.client_app.tls.write(b"hello")
    wired.flush()
    return bytes(wired.client_app.received) == b"hello"


class LargeFlightTests(SynchronousTestCase):
    """D1 and D2: a flight above 32 KiB, whoever sends it, whatever it is made of."""

    def test_d01_fix_server_chains(self) -> None:
        """Server certificates of 33 to 102 KB and 31 certificates of 2 KB stall stock only."""
        identities = [server_identity(size) for size in (33_000, 60_000, 90_000, 102_000)]
        identities.append(deep_server_identity())
        for version in VERSIONS.values():
            for identity in identities:
                context = server_context(version, identity)
                stock = Wired(STOCK, version=version, server_tls=context)
                self.assertFalse(exchanged(stock), (version, identity.der_size))
                ours = Wired(version=version, server_tls=context)
                self.assertTrue(exchanged(ours), (version, identity.der_size))

    def test_d01_fix_many_ca_names(self) -> None:
        """A 50 KB list of acceptable CAs stalls stock only."""
        for version in VERSIONS.values():
            context = server_context(version, clients=True, names=ca_names(50_000))
            show = client_context(version, client_identity())
            stock = Wired(STOCK, server_tls=context, client_tls=show)
            self.assertFalse(exchanged(stock), version)
            self.assertTrue(exchanged(Wired(server_tls=context, client_tls=show)), version)

    def test_d01_fix_client_certificates(self) -> None:
        """Client certificates of 33, 60 and 102 KB stall a stock client, not ours."""
        for version in VERSIONS.values():
            context = server_context(version, clients=True)
            for size in (33_000, 60_000, 102_000):
                show = client_context(version, client_identity(size=size))
                stock = Wired(client=STOCK, server_tls=context, client_tls=show)
                # On TLS 1.3 such a client believes that it is connected; its server does not.
                self.assertEqual(stock.handshake().server_app.handshakes, 0, (version, size))
                ours = Wired(server_tls=context, client_tls=show)
                self.assertTrue(exchanged(ours), (version, size))

    def test_d01_guard_small_flights(self) -> None:
        """Below 32 KiB stock works as well: the size is the cause, not the test."""
        for version in VERSIONS.values():
            for size in (0, 9_000):
                context = server_context(version, server_identity(size))
                self.assertTrue(exchanged(Wired(STOCK, version=version, server_tls=context)))
                self.assertTrue(exchanged(Wired(version=version, server_tls=context)))

    def renegotiated(self, factory: FactoryClass, size: int) -> bool:
        context = server_context(
            TLS12, server_identity(size), options=OP_ALLOW_CLIENT_RENEGOTIATION
        )
        wired = Wired(
            factory, version=TLS12, server_tls=context, limits={"allow_renegotiation": True}
        )
        peer = LibPeer(LibConnection(False, version=LIB_TLS12))
        wired.server_app.echo()
        pair = MemoryPair(wired.server, peer, clock=wired.clock)
        pair.connect()
        pair.flush()
        if not peer.established:
            # The first handshake is large as well: on stock it needs a nudge to end.
            self.nudge(wired, pair, peer)
        peer.connection.renegotiate()
        peer.drive()
        pair.flush()
        try:
            peer.say(b"after")
        except WantReadError:
            return False
        pair.flush()
        return bytes(peer.received).endswith(b"after")

    def nudge(self, wired: Wired, pair: MemoryPair, peer: LibPeer) -> None:
        while not peer.established:
            wired.server._flushSendBIO()
            pair.flush()

    def test_d01_fix_renegotiation_with_a_large_certificate(self) -> None:
        """A TLS 1.2 renegotiation that sends 60 KB again ends with us, not with stock."""
        self.assertFalse(self.renegotiated(STOCK, 60_000))
        self.assertTrue(self.renegotiated(KVTLSFactory, 60_000))

    def test_d02_fix_tickets_with_large_client_certificates(self) -> None:
        """A 33 KB client certificate inside the server's session ticket stalls stock only."""
        for version in VERSIONS.values():
            context = server_context(version, clients=True, options=0)
            show = client_context(version, client_identity(size=33_000))
            stock = Wired(STOCK, server_tls=context, client_tls=show)
            try:
                worked = exchanged(stock)
            except RuntimeError:
                worked = False
            self.assertFalse(worked, version)
            self.assertTrue(exchanged(Wired(server_tls=context, client_tls=show)), version)


class RenegotiationTests(SynchronousTestCase):
    """D4 and D17: handshakes within a connection, TLS 1.2."""

    def wired(self, client: FactoryClass, limits: dict[str, Any]) -> Wired:
        context = server_context(TLS12, options=OP_ALLOW_CLIENT_RENEGOTIATION)
        wired = Wired(client=client, version=TLS12, server_tls=context, limits=limits)
        wired.client_factory.allow_renegotiation = True  # type: ignore[attr-defined]
        wired.client = wired.client_factory.buildProtocol(None)
        wired.pair.client.protocol = wired.client
        wired.server_app.echo()
        return wired.handshake()

    def writes_into_renegotiation(self, client: FactoryClass) -> bytes:
        wired = self.wired(client, {"allow_renegotiation": True})
        wired.client.getHandle().renegotiate()
        wired.client_app.tls.write(b"first")
        wired.flush()
        return bytes(wired.client_app.received)

    def test_d04_fix_write_begins_renegotiation(self) -> None:
        """A client's write that begins a renegotiation sends the ClientHello as well."""
        self.assertEqual(self.writes_into_renegotiation(STOCK), b"")
        self.assertEqual(self.writes_into_renegotiation(KVTLSFactory), b"first")

    def accepted(
        self, factory: FactoryClass, limits: dict[str, Any], attempts: int = 20
    ) -> tuple[int, int]:
        """Return how many renegotiations a server took part in, and whether it closed."""
        context = server_context(TLS12, options=OP_ALLOW_CLIENT_RENEGOTIATION)
        wired = Wired(factory, version=TLS12, server_tls=context, limits=limits)
        peer = LibPeer(LibConnection(False, version=LIB_TLS12))
        pair = MemoryPair(wired.server, peer, clock=wired.clock)
        pair.connect()
        pair.flush()
        done = 0
        for _ in range(attempts):
            if peer.lost:
                break
            peer.connection.renegotiate()
            peer.established = False
            peer.drive()
            pair.flush()
            done += peer.established
        return done, len(wired.server_app.reasons)

    def test_d17_fix_renegotiation_limit(self) -> None:
        """Granted renegotiations end the connection after the limit; stock has none."""
        self.assertEqual(self.accepted(STOCK, {}), (20, 0))
        self.assertEqual(self.accepted(KVTLSFactory, {"allow_renegotiation": True}), (3, 1))
        limits = {"allow_renegotiation": True, "renegotiation_limit": 5}
        self.assertEqual(self.accepted(KVTLSFactory, limits), (5, 1))

    def test_d17_guard_refusal_keeps_serving(self) -> None:
        """A refused renegotiation is answered by an alert on an idle connection; it lives on."""
        wired = Wired(version=TLS12, server_tls=server_context(TLS12))
        wired.server_app.echo()
        peer = LibPeer(LibConnection(False, version=LIB_TLS12))
        pair = MemoryPair(wired.server, peer, clock=wired.clock)
        pair.connect()
        pair.flush()
        pair.server.sent = bytearray()
        # OpenSSL's client gives up when it sees the alert; its ClientHello alone is sent.
        peer.connection.renegotiate()
        with self.assertRaises(WantReadError):
            peer.connection.do_handshake()
        peer.send_waiting()
        pair.client.send()
        pair.server.receive(65536)
        pair.server.send()
        self.assertEqual(pair.server.sent[:1], b"\x15", "an alert record was expected")
        self.assertEqual(wired.server_app.reasons, [])
        self.assertFalse(pair.server.disconnecting)


class SilentTests(SynchronousTestCase):
    """D10: peers that never finish a handshake."""

    def after(self, factory: FactoryClass, first: bytes) -> list[Any]:
        wired = Wired(factory).connect()
        wired.pair.client.unsent.clear()
        for byte in first:
            wired.server.dataReceived(bytes([byte]))
            wired.clock.advance(0.5)
        wired.clock.advance(10)
        wired.pair.server.send()
        return [reason.type for reason in wired.server_app.reasons]

    def test_d10_fix_handshake_deadline(self) -> None:
        """Silence, half a ClientHello, a byte now and then: gone at the deadline with us."""
        hello = LibPeer(LibConnection(False))
        with self.assertRaises(WantReadError):
            hello.connection.do_handshake()
        first = hello.connection.drain()
        for start in (b"", first[: len(first) // 2][:15]):
            self.assertEqual(self.after(STOCK, start), [])
            self.assertEqual(self.after(KVTLSFactory, start), [HandshakeTimeout])

    def test_deadline_is_absolute(self) -> None:
        """Bytes that arrive do not move the handshake deadline."""
        wired = Wired().connect()
        wired.pair.client.unsent.clear()
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03":
            wired.server.dataReceived(bytes([byte]))
            wired.clock.advance(0.95)
        self.assertTrue(wired.pair.server.aborted)
        wired.pair.server.send()
        (reason,) = wired.server_app.reasons
        self.assertEqual(str(reason.value), "TLS handshake not finished in 10 s")

    def test_deadline_is_cancelled(self) -> None:
        """After the handshake no timer is left."""
        self.assertEqual(Wired().handshake().clock.getDelayedCalls(), [])

    def test_deadline_is_cancelled_by_loss(self) -> None:
        """After the loss of the connection no timer is left."""
        wired = Wired().connect()
        self.assertEqual(len(wired.clock.getDelayedCalls()), 2)
        wired.pair.server.lose(Failure(ConnectionLost()))
        wired.pair.flush()
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_deadline_off(self) -> None:
        """With None there is no deadline."""
        wired = Wired(limits={"handshake_timeout": None}).connect()
        wired.pair.client.unsent.clear()
        wired.clock.advance(10_000)
        self.assertFalse(wired.pair.server.aborted)


class PausedHandshakeTests(SynchronousTestCase):
    """D13: an application that pauses before the handshake has ended."""

    def outcome(self, factory: FactoryClass) -> bytes:
        wired = Wired(factory)
        app = wired.server_app
        app.connectionMade = lambda: (  # type: ignore[method-assign]
            app.tls.pauseProducing(),
            app.tls.write(b"greeting"),
        )
        wired.handshake()
        return bytes(wired.client_app.received)

    def test_d13_fix_pause_during_handshake(self) -> None:
        """The handshake goes on and what was written leaves, although the reader has paused."""
        self.assertEqual(self.outcome(STOCK), b"")
        self.assertEqual(self.outcome(KVTLSFactory), b"greeting")


@implementer(IOpenSSLServerConnectionCreator)
class Broken:
    """A context factory whose certificate could not be loaded."""

    def serverConnectionForTLS(self, tlsProtocol: object) -> Any:
        raise ValueError("no certificate")


class RefusalTests(SynchronousTestCase):
    """D15 and D16: connections that cannot or shall not be served."""

    def build(self, factory: FactoryClass) -> object:
        class Full(Factory):
            def buildProtocol(self, addr):
                return None

        return factory(Creator(server_context()), False, Full()).buildProtocol(None)

    def test_d15_fix_no_protocol(self) -> None:
        """A factory that refuses a connection refuses it: the reactor then closes the socket."""
        self.assertIsNotNone(self.build(STOCK))
        self.assertIsNone(self.build(KVTLSFactory))

    def test_d16_fix_no_context(self) -> None:
        """When no OpenSSL connection can be made the socket is closed and the program told."""
        stock = Wired(STOCK, server_tls=Broken())
        self.assertRaises(ValueError, stock.connect)
        self.assertFalse(stock.pair.server.disconnecting)
        self.assertRaises(AttributeError, stock.server.dataReceived, b"x")

        ours = Wired(server_tls=Broken())
        made: Any = lambda: ours.server_app.tls.write(b"welcome")  # noqa: E731
        self.patch(ours.server_app, "connectionMade", made)
        ours.handshake()
        self.assertEqual(ours.pair.server.most_unsent, 0)
        self.assertTrue(ours.pair.server.aborted)
        self.assertEqual([reason.type for reason in ours.server_app.reasons], [ValueError])
        self.assertEqual(ours.server_factory.protocols, {})
        self.assertEqual(ours.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class NotTLSTests(SynchronousTestCase):
    """What is no TLS ends its own connection, with words."""

    CASES = {
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n": "HTTP request on a TLS port",
        b"POST /pools HTTP/1.1\r\n\r\n": "HTTP request on a TLS port",
        b"version\r\n": "text protocol on a TLS port",
        b"get some_key\r\n": "text protocol on a TLS port",
        b"\x80\x00\x00\x03" + bytes(20): "no TLS on a TLS port (first byte 0x80)",
        b"\x7fELF\r\n" * 4: "no TLS on a TLS port (first byte 0x7f)",
        b"\x00" * 64: "no TLS on a TLS port (first byte 0x00)",
    }

    def test_reason(self) -> None:
        """The application's reason is OpenSSL's error and says in words what was wrong."""
        for sent, words in self.CASES.items():
            wired = Wired().connect()
            wired.pair.client.unsent.clear()
            wired.server.dataReceived(sent)
            wired.flush()
            [reason] = wired.server_app.reasons
            self.assertIs(reason.type, Error, sent)
            self.assertEqual(explanation(reason.value), words)
            self.assertEqual(getattr(reason.value, "stage", ""), "handshake")
            self.assertEqual(wired.server.close_reason, words)

    def test_which_ends_are_warnings(self) -> None:
        """A peer that goes without a word is a probe; one that goes halfway is worth a line."""
        self.patch(shell, "peer_log", LimitedLog(shell.log))
        for sent, warnings in ((b"", 0), (b"\x16\x03\x01\x02", 1)):
            wired = Wired().connect()
            wired.pair.client.unsent.clear()
            with capturedLogs() as events:
                wired.server.dataReceived(sent)
                wired.pair.server.lose(Failure(ConnectionLost()))
            self.assertEqual(
                len([e for e in events if e["log_level"] is LogLevel.warn]), warnings, sent
            )

    def test_guard_stock_closes_too(self) -> None:
        """Stock ends such connections as well; it says nothing."""
        for sent in self.CASES:
            wired = Wired(PlainFactory).connect()
            wired.pair.client.unsent.clear()
            wired.server.dataReceived(sent)
            wired.flush()
            self.assertEqual(len(wired.server_app.reasons), 1, sent)

    def test_refused_by_the_program(self) -> None:
        """A program's own reason against a peer is what the application is told, the first one."""
        wired = Wired().handshake()
        for number in range(2):
            wired.server.failVerification(Failure(ValueError(number)))
        wired.flush()
        wired.server.failVerification(Failure(ValueError("late")))
        self.assertTrue(wired.pair.server.aborted)
        self.assertEqual([str(r.value) for r in wired.server_app.reasons], ["0"])

    def test_unverified_client(self) -> None:
        """What is wrong with a peer's certificate is in the reason that the application gets."""
        tls = build_server_context(
            credentials_of(server_identity(), (root_authority(),)),
            ServerPolicy(ClientAuth.REQUIRED),
        )
        stranger = Authority.root("other").issue("eve")
        client = build_client_context(credentials_of(stranger), (root_authority().certificate,))
        wired = Wired(server_tls=tls, client_tls=client).handshake()
        [reason] = wired.server_app.reasons
        self.assertIs(reason.type, Error)
        self.assertIn("certificate", explanation(reason.value))
        self.assertIn("CN=eve", explanation(reason.value))

    def test_abort_before_handshake(self) -> None:
        """Closing before the handshake has ended aborts: nobody waits for close_notify."""
        wired = Wired().connect()
        wired.server_app.tls.loseConnection()
        wired.flush()
        self.assertEqual([r.type for r in wired.server_app.reasons], [ConnectionAborted])
        self.assertEqual(wired.clock.getDelayedCalls(), [])


class VersionTests(SynchronousTestCase):
    """What a connection can say about itself."""

    def test_secured_transport(self) -> None:
        """Version and peer's chain are known from the handshake's end to the connection's."""
        for name, version in VERSIONS.items():
            identity = client_identity(size=9_000)
            wired = Wired(
                server_tls=server_context(version, deep_server_identity(3, 0), clients=True),
                client_tls=client_context(version, identity),
            ).connect()
            self.assertEqual(wired.server.tls_version(), "")
            self.assertEqual(wired.server.peer_chain(), ())
            wired.flush()
            self.assertEqual(wired.server.tls_version(), name)
            self.assertEqual(wired.server.peer_chain(), (identity.der,))
            self.assertEqual(len(wired.client.peer_chain()), 4)
            wired.client_app.tls.loseConnection()
            wired.flush()
            self.assertEqual((wired.server.peer_chain(), wired.server.tls_version()), ((), ""))

    def test_no_client_certificate(self) -> None:
        """A client without a certificate has an empty chain."""
        self.assertEqual(Wired(version=TLS13).handshake().server.peer_chain(), ())
