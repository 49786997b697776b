"""What the shell keeps from going wrong where several things happen at once."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.contexts import TLS12, server_context
from kvproto.tls.contexts import OP_ALLOW_CLIENT_RENEGOTIATION
from tests.producers import Producer
from tests.tls.test_defects_data import Reluctant
from tests.tls.test_want_write import BoundedConnection, Given
from tests.tls.wired import VERSIONS, App, Wired

MUCH = 300_000
"""Bytes that fill the transport and the wire, with some left."""


def ends(app: App) -> list[type[BaseException] | None]:
    """Return with which reasons an application has ended."""
    return [reason.type for reason in app.reasons]


class LateWritesTests(SynchronousTestCase):
    """Writes of an application that has closed its side."""

    def test_after_the_goodbye(self) -> None:
        """They are dropped, and the connection ends as if there were none."""
        for version in VERSIONS.values():
            wired = Wired(version=version).handshake()
            server = wired.server_app.tls
            server.loseConnection()
            said = bytes(wired.pair.server.unsent)
            server.write(b"late")
            server.writeSequence([b"la", b"ter"])
            wired.clock.advance(0)
            self.assertEqual(bytes(wired.pair.server.unsent), said)
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), b"")
            self.assertEqual(ends(wired.server_app), [ConnectionDone])
            self.assertEqual(ends(wired.client_app), [ConnectionDone])

    def test_before_the_goodbye(self) -> None:
        """They are dropped while what was written before still waits for the peer."""
        for close in ("loseConnection", "loseWriteConnection"):
            wired = Wired().handshake()
            wired.pair.client.paused = True
            server = wired.server_app.tls
            server.write(b"x" * MUCH)
            wired.flush()
            getattr(server, close)()
            server.write(b"late")
            server.writeSequence([b"la", b"ter"])
            wired.pair.client.paused = False
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), b"x" * MUCH, close)
            self.assertEqual(ends(wired.client_app), [ConnectionDone], close)

    def test_after_an_abort(self) -> None:
        """They are dropped."""
        wired = Wired().handshake()
        server = wired.server_app.tls
        server.abortConnection()
        server.write(b"late")
        wired.clock.advance(0)
        self.assertEqual(bytes(wired.pair.server.unsent), b"")
        wired.flush()
        self.assertEqual(ends(wired.server_app), [ConnectionAborted])


class ProducerTests(SynchronousTestCase):
    """Producers that come or go at an odd moment."""

    def test_comes_while_the_transport_is_full(self) -> None:
        """It is paused at once, and resumed when there is room."""
        wired = Wired().handshake()
        wired.pair.client.paused = True
        wired.server_app.tls.write(b"x" * MUCH)
        wired.flush()
        producer = Producer()
        wired.server_app.tls.registerProducer(producer, True)
        self.assertEqual(producer.calls, ["pause"])
        wired.pair.client.paused = False
        wired.flush()
        self.assertEqual(producer.calls, ["pause", "resume"])
        self.assertEqual(len(wired.client_app.received), MUCH)

    def test_stopped_after_a_failure(self) -> None:
        """It is stopped when TLS has failed and the transport is gone."""
        wired = Wired().handshake()
        producer = Producer()
        wired.server_app.tls.registerProducer(producer, True)
        wired.server.dataReceived(b"\x17\x03\x03\x00\x10" + b"x" * 16)
        wired.flush()
        self.assertEqual(len(wired.server_app.reasons), 1)
        self.assertEqual(producer.calls.count("stop"), 1)


class InsideTests(SynchronousTestCase):
    """Transports that call back from within a call."""

    def test_written_inside_a_write(self) -> None:
        """What an application writes while the transport takes something follows that."""
        for first in (b"a", b"a" * MUCH):
            wired = Wired().handshake()
            transport, tls = wired.pair.server, wired.server_app.tls
            take, more = transport.write, [b"b" * MUCH]

            def write(data: bytes, tls: Any = tls, take: Any = take, more: Any = more) -> None:
                while more:
                    tls.write(more.pop())
                take(data)

            transport.write = write  # type: ignore[method-assign]
            tls.write(first)
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), first + b"b" * MUCH)

    def test_resumed_inside_a_delivery(self) -> None:
        """An application that pauses and resumes is given nothing before it has returned."""
        for cut in (0, 3):
            wired = Wired(high_water=2 * MUCH).handshake()
            app, depth = wired.server_app, 0
            depths: set[int] = set()

            def blink(data: bytes, tls: Any = app.tls, depths: set[int] = depths) -> None:
                nonlocal depth
                depth += 1
                depths.add(depth)
                tls.pauseProducing()
                tls.resumeProducing()
                depth -= 1

            app.on_data = blink
            wired.client_app.tls.write(b"x" * MUCH)
            wired.clock.advance(0)
            data = bytes(wired.pair.client.unsent)
            # All at once, and out of step with the records.
            wired.server.dataReceived(data[:cut])
            wired.server.dataReceived(data[cut:])
            self.assertGreater(len(app.pieces), 1)
            self.assertEqual(depths, {1})
            self.assertEqual(bytes(app.received), b"x" * MUCH)


class RenegotiationTests(SynchronousTestCase):
    """Writes that have to wait until something was read."""

    def test_all_is_sent_after_it(self) -> None:
        """All that waits is sent when the first of it may be, and the deadline is no more."""
        connection = Reluctant(server_context())
        wired = Wired(server_tls=Given(connection)).handshake()
        connection.refuses = True
        wired.server_app.tls.write(b"x" * MUCH)
        wired.flush()
        self.assertEqual(len(wired.clock.getDelayedCalls()), 1)
        connection.refuses = False
        wired.client_app.tls.write(b"go on")
        wired.flush()
        self.assertEqual(len(wired.client_app.received), MUCH)
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_peer_ends_meanwhile(self) -> None:
        """Where the peer says goodbye instead nothing waits any longer, and all ends."""
        connection = Reluctant(server_context())
        wired = Wired(server_tls=Given(connection)).handshake()
        connection.refuses = True
        wired.server_app.tls.write(b"never sent")
        wired.flush()
        wired.client_app.tls.loseConnection()
        wired.flush()
        self.assertEqual(ends(wired.server_app), [ConnectionDone])
        self.assertEqual(ends(wired.client_app), [ConnectionDone])
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_in_order(self) -> None:
        """What is answered to a read in the middle of it overtakes nothing."""
        context = server_context(TLS12, options=OP_ALLOW_CLIENT_RENEGOTIATION)
        limits = {"allow_renegotiation": True}
        wired = Wired(version=TLS12, server_tls=context, limits=limits)
        wired.client_factory.allow_renegotiation = True  # type: ignore[attr-defined]
        wired.client = wired.client_factory.buildProtocol(None)
        wired.pair.client.protocol = wired.client
        wired.handshake()
        client = wired.client_app
        client.on_data = lambda data: client.tls.write(b"second")
        wired.client.getHandle().renegotiate()
        client.tls.write(b"first ")
        wired.clock.advance(0)
        wired.server_app.tls.write(b"on its way before the server hears of it")
        wired.clock.advance(0)
        wired.pair.server.send()
        wired.pair.client.receive(100_000)
        wired.flush()
        self.assertEqual(bytes(wired.server_app.received), b"first second")


class EndTests(SynchronousTestCase):
    """How connections end, and when."""

    def test_fin_that_is_a_goodbye(self) -> None:
        """A FIN without close_notify is an orderly end where the context's options say so."""
        for options, end in ((0, ConnectionLost), (SSL.OP_IGNORE_UNEXPECTED_EOF, ConnectionDone)):
            for version in VERSIONS.values():
                context = server_context(version, options=options)
                wired = Wired(version=version, server_tls=context).handshake()
                wired.pair.client.loseWriteConnection()
                wired.flush()
                self.assertEqual(ends(wired.server_app), [end])

    def test_answers_with_pauses(self) -> None:
        """After the peer's end an application that goes on answering is waited for."""
        wired = Wired().handshake()
        wired.client_app.tls.write(b"question")
        wired.client_app.tls.loseWriteConnection()
        wired.flush()
        pause = wired.server.answer_pause
        for answer in (b"a", b"b", b"c", b"d"):
            wired.clock.advance(0.6 * pause)
            wired.server_app.tls.write(answer)
            wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"abcd")
        wired.clock.pump([pause] * 2)
        wired.flush()
        self.assertEqual(ends(wired.server_app), [ConnectionDone])
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_broken_record_that_was_held(self) -> None:
        """What TLS finds in input that waited for the application is the reason of the end."""
        wired = Wired().handshake()
        wired.server_app.tls.pauseProducing()
        wired.server.dataReceived(b"\x17\x03\x03\x00\x10" + b"x" * 16)
        self.assertEqual(wired.server_app.reasons, [])
        wired.server.connectionLost(Failure(ConnectionLost()))
        [reason] = wired.server_app.reasons
        self.assertIsInstance(reason.value, SSL.Error)

    def test_nothing_moves(self) -> None:
        """A connection that takes nothing more costs a few calls for each write."""
        connection = BoundedConnection(server_context())
        wired = Wired(server_tls=Given(connection)).handshake()
        connection.LIMIT = -1
        connection.bio_read = self.nothing  # type: ignore[method-assign]
        before = connection.want_writes
        wired.server_app.tls.write(b"x" * 100)
        wired.flush()
        self.assertLess(connection.want_writes - before, 10)

    def nothing(self, size: int) -> bytes:
        raise SSL.WantReadError
