"""`KVTLSProtocol` and `KVTLSFactory` as programs use them."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, ITransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.base.limited_log import LimitedLog
from kvproto.interfaces import ISecuredTransport
from kvproto.testing.contexts import TLS12, TLS13, Creator, server_context
from kvproto.tls import KVTLSFactory, KVTLSProtocol, shell
from tests.examples import examples
from tests.producers import Producer
from tests.tls.wired import App, Wired
from tests.turns import one_turn


class ContractTests(SynchronousTestCase):
    """What others may rely on."""

    def test_drop_in(self) -> None:
        """Protocol and factory are subclasses of Twisted's; limits have the promised values."""
        self.assertTrue(issubclass(KVTLSProtocol, TLSMemoryBIOProtocol))
        self.assertTrue(issubclass(KVTLSFactory, TLSMemoryBIOFactory))
        self.assertEqual(KVTLSProtocol.handshake_timeout, 10)
        self.assertEqual(KVTLSProtocol.close_timeout, 3)
        self.assertIs(KVTLSProtocol.allow_renegotiation, False)
        self.assertEqual(KVTLSProtocol.renegotiation_limit, 3)
        self.assertEqual(KVTLSProtocol.junk_budget, 256 * 1024)

    def test_interfaces(self) -> None:
        """A connected protocol is a secured transport, and what its own transport is."""
        server = Wired().handshake().server
        self.assertTrue(verifyObject(ISecuredTransport, server))
        self.assertTrue(ITransport.providedBy(server))

    def test_end_of_a_handshake_is_acknowledged(self) -> None:
        """A transport that can is told to, where no message of ours does it.

        Otherwise a peer that has Nagle's algorithm on keeps its first request back until our
        kernel's delayed acknowledgement, after 40 ms.  A TLS 1.2 client says nothing after the
        server's last message, a TLS 1.3 client does.
        """
        for version, expected in ((TLS12, 1), (TLS13, 0)):
            wired = Wired(version=version).connect()
            calls: list[int] = []
            wired.client.transport.acknowledge = partial(calls.append, version)
            wired.flush()
            self.assertEqual(len(calls), expected, version)

    def test_generation(self) -> None:
        """Who makes the OpenSSL connection may number it; 0 otherwise."""

        class Numbered(Creator):
            def serverConnectionForTLS(self, tlsProtocol: Any) -> Any:
                tlsProtocol.generation = 7
                return super().serverConnectionForTLS(tlsProtocol)

        self.assertEqual(Wired().handshake().server.generation, 0)
        numbered = Wired(server_tls=Numbered(server_context()))
        self.assertEqual(numbered.handshake().server.generation, 7)

    def test_limits_per_factory(self) -> None:
        """A factory's attribute replaces the protocol's, None included."""
        limits = {"handshake_timeout": 5, "close_timeout": None, "junk_budget": 1}
        server = Wired(limits=limits).server
        self.assertEqual(
            (server.handshake_timeout, server.close_timeout, server.junk_budget), (5, None, 1)
        )
        self.assertEqual(server.renegotiation_limit, 3)
        self.assertEqual(Wired().server.handshake_timeout, 10)

    def test_limits_per_protocol_class(self) -> None:
        """A subclass's limits hold for its connections."""

        class Patient(KVTLSProtocol):
            handshake_timeout = 60

        class PatientFactory(KVTLSFactory):
            protocol = Patient

        wired = Wired(PatientFactory).connect()
        wired.pair.client.unsent.clear()
        wired.clock.advance(59)
        self.assertFalse(wired.pair.server.aborted)
        wired.clock.advance(1)
        self.assertTrue(wired.pair.server.aborted)

    def test_on_stock_factory(self) -> None:
        """The protocol works under Twisted's own factory."""

        class Stock(TLSMemoryBIOFactory):
            protocol = KVTLSProtocol

        wired = Wired(Stock)
        wired.server_app.echo()
        wired.handshake()
        wired.client_app.tls.write(b"hello")
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"hello")


class WritingTests(SynchronousTestCase):
    """When writes leave."""

    def count_writes(self, wired: Wired) -> list[int]:
        """Return a list that gets the size of each write to the server's transport."""
        sizes: list[int] = []
        write = wired.pair.server.write

        def counting(data: bytes) -> None:
            sizes.append(len(data))
            write(data)

        wired.pair.server.write = counting  # type: ignore[method-assign]
        return sizes

    def test_replies_of_one_read_leave_together(self) -> None:
        """All writes made while dataReceived runs leave in one, when it ends, without a timer."""
        wired = Wired().handshake()

        def reply(data: bytes) -> None:
            for _ in range(10):
                wired.server_app.tls.write(b"reply")
            self.assertEqual(sizes, [])

        wired.server_app.on_data = reply
        sizes = self.count_writes(wired)
        wired.client_app.tls.write(b"x")
        wired.clock.advance(0)
        wired.pair.client.send()
        wired.pair.server.receive(65536)
        self.assertEqual(len(sizes), 1)
        self.assertEqual(wired.clock.getDelayedCalls(), [])
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"reply" * 10)

    def test_other_writes_leave_in_the_next_turn(self) -> None:
        """Small writes outside dataReceived are gathered until the next turn, and lost never."""
        wired = Wired().handshake()
        sizes = self.count_writes(wired)
        for _ in range(10):
            wired.server_app.tls.write(b"x")
        self.assertEqual(sizes, [])
        wired.clock.advance(0)
        self.assertEqual(len(sizes), 1)

    def test_timer_is_cancelled(self) -> None:
        """Writes that wait for the next turn leave no timer when the connection is lost."""
        wired = Wired().handshake()
        wired.server_app.tls.write(b"x")
        self.assertEqual(len(wired.clock.getDelayedCalls()), 1)
        wired.pair.server.abortConnection()
        wired.pair.server.send()
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_write_sequence(self) -> None:
        """A sequence is written in order; one piece that is no buffer refuses all of it."""
        wired = Wired().handshake()
        tls = wired.server_app.tls
        tls.writeSequence([b"a", bytearray(b"b"), memoryview(b"c"), b""])
        self.assertRaises(TypeError, tls.writeSequence, [b"d", "e"])
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"abc")

    def test_not_bytes(self) -> None:
        """Text and numbers are refused at the call."""
        tls = Wired().handshake().server_app.tls
        self.assertRaises(TypeError, tls.write, "text")
        self.assertRaises(TypeError, tls.write, 5)

    def test_changed_buffer(self) -> None:
        """A buffer may be changed after it was written."""
        wired = Wired().handshake()
        buffer = bytearray(b"before")
        wired.server_app.tls.write(buffer)
        buffer[:] = b"after!"
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"before")

    def test_write_before_handshake(self) -> None:
        """What is written before the handshake ends is sent after it, in order."""
        wired = Wired().connect()
        wired.client_app.tls.write(b"early ")
        wired.client_app.tls.write(b"x" * 100_000)
        wired.flush()
        self.assertEqual(bytes(wired.server_app.received), b"early " + b"x" * 100_000)

    def test_close_after_early_write(self) -> None:
        """Closing before the handshake waits for it when something was written."""
        wired = Wired().connect()
        wired.client_app.tls.write(b"early")
        wired.client_app.tls.loseConnection()
        wired.flush()
        self.assertEqual(bytes(wired.server_app.received), b"early")
        wired.clock.advance(wired.server.answer_pause)
        wired.flush()
        self.assertEqual([r.type for r in wired.server_app.reasons], [ConnectionDone])
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_held_ciphertext(self) -> None:
        """Writes of any number and size hold little ciphertext for a peer that does not read."""
        for size in (100, 10_000, 5_000_000):
            wired = Wired().handshake()
            wired.pair.client.pauseProducing()
            for _ in range(10_000_000 // size):
                wired.server_app.tls.write(b"x" * size)
                wired.clock.advance(0)
                wired.pair.server.send()
            self.assertLess(wired.pair.server.most_unsent, 256 * 1024, size)

    def takes_all(self, count: int) -> list[Wired]:
        """Return connections whose transports take whatever they are given."""
        return [Wired(high_water=1 << 40).handshake() for _ in range(count)]

    def test_much_is_sent_in_turns(self) -> None:
        """No turn of the reactor sends more than some megabytes, however much there is."""
        most = (shell.SHARES_PER_TURN * shell.SHARE_SIZE + shell.AT_ONCE) * 1.01
        (wired,) = self.takes_all(1)
        sizes = self.count_writes(wired)
        wired.server_app.tls.write(bytes(20_000_000))
        turns = 0
        while sizes:
            turns += 1
            self.assertLess(sum(sizes), most)
            sizes.clear()
            one_turn(wired.clock)
        self.assertEqual(turns, 5)
        self.assertEqual(wired.clock.getDelayedCalls(), [])
        wired.flush()
        self.assertEqual(len(wired.client_app.received), 20_000_000)

    def test_others_have_their_turns(self) -> None:
        """Many with much to send go on together; little leaves at once, and nothing is lost."""
        first, *others = self.takes_all(4)
        first.server_app.tls.write(bytes(10_000_000))
        for wired in others:
            # One factory has connections of one application each here.
            wired.server_factory._clock = first.clock
            wired.server_factory.pieces = first.server_factory.pieces  # type: ignore[attr-defined]
        sizes = [self.count_writes(wired) for wired in (first, *others)]
        for wired in others[:2]:
            wired.server_app.tls.write(bytes(10_000_000))
        others[2].server_app.tls.write(bytes(100_000))
        self.assertEqual([sum(of) for of in sizes[:3]], [0, 0, 0])
        self.assertGreater(sum(sizes[3]), 100_000)
        one_turn(first.clock)
        sent = [sum(of) for of in sizes[:3]]
        self.assertLess(sum(sent), (shell.SHARES_PER_TURN + 1) * shell.SHARE_SIZE * 1.01)
        self.assertLess(max(sent) - min(sent), 1.01 * shell.SHARE_SIZE)
        while first.clock.getDelayedCalls():
            one_turn(first.clock)
        for wired in (first, *others):
            wired.flush()
        received = [len(wired.client_app.received) for wired in (first, *others)]
        self.assertEqual(received, [10_000_000] * 3 + [100_000])

    def test_lost_before_its_turn(self) -> None:
        """Who waits for others leaves no timer when the connection is lost."""
        (wired,) = self.takes_all(1)
        wired.server_app.tls.write(bytes(10_000_000))
        self.assertEqual(len(wired.clock.getDelayedCalls()), 1)
        wired.pair.server.abortConnection()
        wired.pair.server.send()
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_closed_before_its_turn(self) -> None:
        """What waits for others' turns is sent before the end."""
        (wired,) = self.takes_all(1)
        wired.server_app.tls.write(bytes(10_000_000))
        wired.server_app.tls.loseConnection()
        wired.flush()
        self.assertEqual(len(wired.client_app.received), 10_000_000)
        self.assertEqual([r.type for r in wired.client_app.reasons], [ConnectionDone])
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_producer_waits_for_others(self) -> None:
        """An application writes nothing more while it is others' turn, and goes on after that."""
        (wired,) = self.takes_all(1)
        producer = Producer()
        wired.server_app.tls.registerProducer(producer, True)
        wired.server_app.tls.write(bytes(10_000_000))
        self.assertEqual(producer.calls, ["pause"])
        wired.server_app.tls.write(b"behind")
        while wired.clock.getDelayedCalls():
            wired.clock.advance(0)
        self.assertEqual(producer.calls, ["pause", "resume"])
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received[10_000_000:]), b"behind")

    def test_replies_to_a_client_that_does_not_read(self) -> None:
        """A producer is paused in the middle of one read, not only at its end."""
        wired = Wired().handshake()
        wired.pair.client.pauseProducing()
        paused: list[int] = []

        class Reader:
            def pauseProducing(self) -> None:
                paused.append(len(paused))

            def resumeProducing(self) -> None:
                raise AssertionError("nobody reads")

            def stopProducing(self) -> None:
                return

        wired.server_app.tls.registerProducer(Reader(), True)
        seen: list[int] = []

        def reply(data: bytes) -> None:
            for _ in range(100):
                wired.server_app.tls.write(b"x" * 50_000)
                seen.append(len(paused))

        wired.server_app.on_data = reply
        wired.client_app.tls.write(b"go")
        wired.clock.advance(0)
        wired.pair.client.send()
        wired.pair.server.receive(65536)
        self.assertEqual(seen[-1], 1)
        self.assertLess(seen.index(1), 10)


class LogTests(SynchronousTestCase):
    """One line says how a connection ended."""

    def setUp(self) -> None:
        self.patch(shell, "peer_log", LimitedLog(shell.log))

    def lines(self, wired: Wired) -> list[tuple[LogLevel, str]]:
        observer = EventLoggingObserver()
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        wired.flush()
        return [
            (event["log_level"], formatEvent(event))
            for event in observer
            if "TLS connection" in (event["log_format"] or "")
        ]

    def test_peer_at_fault(self) -> None:
        """A peer that speaks no TLS is logged as a warning with peer, stage and reason."""
        wired = Wired().connect()
        wired.pair.client.unsent.clear()
        wired.pair.client.write(b"GET / HTTP/1.0\r\n\r\n")
        [(level, line)] = self.lines(wired)
        self.assertEqual(level, LogLevel.warn)
        self.assertEqual(
            line,
            "TLS connection with MemoryAddress('client') ended (handshake): "
            "HTTP request on a TLS port",
        )

    def test_quiet_ends(self) -> None:
        """A clean end, and a probe that says nothing, are no news."""
        wired = Wired().handshake()
        wired.client_app.tls.loseConnection()
        self.assertEqual(self.lines(wired), [])
        probe = Wired().connect()
        probe.pair.client.unsent.clear()
        probe.pair.client.abortConnection()
        self.assertEqual(self.lines(probe), [])


class StartTLSTests(SynchronousTestCase):
    """TLS that begins on a connection that has been used in the clear."""

    def test_connected_application(self) -> None:
        """With `_connectWrapped` false the application is not connected again, but told the end."""
        app = App()
        app.connectionMade = self.fail  # type: ignore[method-assign]
        factory = KVTLSFactory(Creator(server_context()), False, Factory(), Clock())
        tls = KVTLSProtocol(factory, app, False)
        wired = Wired()
        wired.pair.server.protocol = tls
        app.transport = tls
        app.echo()
        wired.handshake()
        wired.client_app.tls.write(b"secret")
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"secret")
        wired.client_app.tls.loseConnection()
        wired.flush()
        self.assertEqual(len(app.reasons), 1)


class AnyBytesTests(SynchronousTestCase):
    """Whatever arrives, nothing raises and nothing hangs."""

    def check(self, wired: Wired, pieces: list[bytes]) -> None:
        wired.pair.client.unsent.clear()
        for piece in pieces:
            wired.server.dataReceived(piece)
        wired.pair.server.send()
        wired.clock.advance(10)
        wired.pair.client.lose(Failure(ConnectionDone()))
        wired.pair.flush()
        self.assertEqual(len(wired.server_app.reasons), 1)
        self.assertNotEqual(wired.server.close_reason, "")
        self.assertEqual(wired.server_factory.protocols, {})
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    pieces = st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.builds(
                lambda kind, body: bytes((kind, 3, 3)) + len(body).to_bytes(2, "big") + body,
                st.integers(20, 24),
                st.binary(max_size=100),
            ),
        ),
        max_size=6,
    )

    @examples(150)
    @given(pieces)
    def test_before_the_handshake(self, pieces: list[bytes]) -> None:
        """Any bytes in place of a handshake end the connection, once, with a reason."""
        self.check(Wired().connect(), pieces)

    @examples(60)
    @given(pieces, st.sampled_from([TLS12, TLS13]))
    def test_after_the_handshake(self, pieces: list[bytes], version: int) -> None:
        """... and so do any bytes after it."""
        self.check(Wired(version=version).handshake(), pieces)


class PlainProtocolTests(SynchronousTestCase):
    """Applications that know nothing of TLS."""

    def test_without_handshake_listener(self) -> None:
        """A protocol that does not listen for handshakes is served all the same."""

        class Plain(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(data)

        self.assertFalse(IHandshakeListener.providedBy(Plain()))
        wired = Wired()
        wired.server.wrappedProtocol = Plain()
        wired.handshake()
        wired.client_app.tls.write(b"hello")
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"hello")
