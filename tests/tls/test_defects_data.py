"""Defects of Twisted's own TLS around data, pressure and ends: shown on stock, absent here.

See ``test_defects_handshake`` for what ``fix`` and ``guard`` mean.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

from OpenSSL.SSL import Connection, Context, Error, WantReadError
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.contexts import server_context
from kvproto.testing.transport import MemoryPair
from kvproto.tls import BudgetExceeded, CloseTimeout, KVTLSFactory, KVTLSProtocol, records
from kvproto.tls.shell import HELD_SIZE
from tests.tls.libssl import LibConnection, LibPeer
from tests.tls.test_want_write import Given
from tests.tls.wired import STOCK, VERSIONS, App, PlainFactory, Wired

FactoryClass = type[TLSMemoryBIOFactory]


def reasons(app: App) -> list[Any]:
    """Return the classes of the reasons by which an application's connection was lost."""
    return [reason.type for reason in app.reasons]


class AggregationTests(SynchronousTestCase):
    """D5 to D7: writes that stock's aggregator loses."""

    def reply_to_closer(self, factory: FactoryClass, version: int) -> bytes:
        wired = Wired(factory, version=version)
        wired.server_app.echo()
        wired.handshake()
        wired.client_app.tls.write(b"question")
        wired.client_app.tls.loseConnection()
        wired.flush()
        return bytes(wired.client_app.received)

    def test_d05_fix_question_with_close_notify(self) -> None:
        """A question that comes in one segment with close_notify is answered."""
        for version in VERSIONS.values():
            self.assertEqual(self.reply_to_closer(STOCK, version), b"")
            self.assertEqual(self.reply_to_closer(PlainFactory, version), b"question")
            self.assertEqual(self.reply_to_closer(KVTLSFactory, version), b"question")

    def test_d05_large_reply_to_closer(self) -> None:
        """... also when the answer is larger than anything that the transport takes at once."""
        wired = Wired().handshake()
        wired.server_app.on_data = lambda data: wired.server_app.tls.write(b"x" * 3_000_000)
        wired.client_app.tls.write(b"question")
        wired.client_app.tls.loseConnection()
        wired.flush()
        self.assertEqual(len(wired.client_app.received), 3_000_000)
        self.assertEqual(reasons(wired.server_app), [ConnectionDone])
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def last_write(self, factory: FactoryClass) -> bytes:
        wired = Wired(factory).handshake()
        tls = wired.server_app.tls
        tls.registerProducer(Producer(), True)
        tls.loseConnection()
        tls.write(b"last")
        tls.unregisterProducer()
        wired.flush()
        return bytes(wired.client_app.received)

    def test_d06_fix_last_write_of_a_producer(self) -> None:
        """What a producer writes before it unregisters is sent before close_notify."""
        self.assertEqual(self.last_write(STOCK), b"")
        self.assertEqual(self.last_write(PlainFactory), b"last")
        self.assertEqual(self.last_write(KVTLSFactory), b"last")

    def writes_in_pause(self, factory: FactoryClass) -> int:
        wired = Wired(factory).handshake()
        tls = wired.server_app.tls
        producer = Producer()
        producer.on_pause = lambda: tls.write(b"more")
        tls.registerProducer(producer, True)
        tls.write(b"x" * 200_000)
        wired.flush()
        self.assertGreater(producer.pauses, 0)
        return wired.client_app.received.count(b"more") - producer.pauses

    def test_d07_fix_write_inside_a_flush(self) -> None:
        """A write made while another one is flushed is not deleted."""
        self.assertLess(self.writes_in_pause(STOCK), 0)
        self.assertEqual(self.writes_in_pause(PlainFactory), 0)
        self.assertEqual(self.writes_in_pause(KVTLSFactory), 0)


class Producer:
    """A push producer that counts."""

    def __init__(self) -> None:
        self.pauses = self.resumes = self.stops = 0
        self.on_pause: Any = lambda: None

    def pauseProducing(self) -> None:
        self.pauses += 1
        self.on_pause()

    def resumeProducing(self) -> None:
        self.resumes += 1

    def stopProducing(self) -> None:
        self.stops += 1


class RaisingTests(SynchronousTestCase):
    """D8 and D9: applications that raise."""

    def raise_on_data(self, factory: FactoryClass) -> Wired:
        wired = Wired(factory).handshake()
        wired.server_app.on_data = lambda data: 1 / 0
        wired.client_app.tls.write(b"x" * 20_000)  # two records
        # The reactor's part: the exception is logged and the connection lost.
        for _ in range(10):
            try:
                wired.flush()
            except ZeroDivisionError:
                continue
        return wired

    def test_d08_fix_no_data_after_an_exception(self) -> None:
        """After it has raised, an application hears of the loss, once, and of nothing else."""
        stock = self.raise_on_data(STOCK)
        self.assertEqual(len(stock.server_app.pieces), 2)
        self.assertEqual(reasons(stock.server_app), [])
        self.assertEqual(len(stock.server_factory.protocols), 1)

        ours = self.raise_on_data(KVTLSFactory)
        self.assertEqual(len(ours.server_app.pieces), 1)
        self.assertEqual(reasons(ours.server_app), [ZeroDivisionError])
        self.assertEqual(ours.server_factory.protocols, {})
        self.assertIsNone(ours.server.getHandle())

    def test_raising_handshake_listener(self) -> None:
        """An application that raises in handshakeCompleted gets no data, and its end."""
        wired = Wired()
        wired.server_app.on_handshake = lambda: 1 / 0
        wired.connect()
        wired.client_app.tls.write(b"early")
        for _ in range(10):
            try:
                wired.flush()
            except ZeroDivisionError:
                continue
        self.assertEqual(wired.server_app.pieces, [])
        self.assertEqual(reasons(wired.server_app), [ZeroDivisionError])

    def test_raising_connection_made(self) -> None:
        """An application that raises in connectionMade loses its connection."""
        wired = Wired()
        wired.server_app.connectionMade = lambda: 1 / 0  # type: ignore[method-assign]
        self.assertRaises(ZeroDivisionError, wired.connect)
        self.assertTrue(wired.pair.server.aborted)
        wired.pair.server.send()
        self.assertEqual(reasons(wired.server_app), [ConnectionAborted])
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def raise_on_loss(self, factory: FactoryClass) -> Wired:
        wired = Wired(factory).handshake()
        wired.server_app.on_lost = lambda: 1 / 0
        with self.assertRaises(ZeroDivisionError):
            wired.server.connectionLost(Failure(ConnectionDone()))
        return wired

    def test_d09_fix_raising_connection_lost(self) -> None:
        """The OpenSSL object is freed although the application raises in connectionLost."""
        self.assertIsNotNone(self.raise_on_loss(STOCK).server.getHandle())
        ours = self.raise_on_loss(KVTLSFactory)
        self.assertIsNone(ours.server.getHandle())
        self.assertEqual(ours.server_factory.protocols, {})

    def raise_on_last_data(self, factory: FactoryClass) -> Wired:
        wired = Wired(factory).handshake()
        wired.server_app.tls.pauseProducing()
        wired.server_app.on_data = lambda data: 1 / 0
        wired.client_app.tls.write(b"x" * 100)
        wired.clock.advance(0)
        wired.server.dataReceived(bytes(wired.pair.client.unsent))
        wired.server.connectionLost(Failure(ConnectionDone()))
        return wired

    def test_raising_on_data_delivered_at_the_end(self) -> None:
        """An application that raises on its very last data is told of its end as well."""
        wired = self.raise_on_last_data(KVTLSFactory)
        self.assertEqual(len(wired.server_app.pieces), 1)
        self.assertEqual(len(wired.server_app.reasons), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ClosingTests(SynchronousTestCase):
    """D11 and D12: closes that a peer can delay for ever."""

    def close_to_silence(self, factory: FactoryClass) -> Wired:
        wired = Wired(factory).handshake()
        wired.pair.client.pauseProducing()
        wired.server_app.tls.loseConnection()
        wired.flush()
        wired.clock.advance(3)
        wired.flush()
        return wired

    def test_d11_fix_close_deadline(self) -> None:
        """A peer that does not answer close_notify is cut after the close timeout."""
        self.assertEqual(reasons(self.close_to_silence(STOCK).server_app), [])
        ours = self.close_to_silence(KVTLSFactory)
        self.assertEqual(reasons(ours.server_app), [CloseTimeout])
        self.assertTrue(ours.pair.server.aborted)
        self.assertEqual(ours.clock.getDelayedCalls(), [])

    def test_close_deadline_is_cancelled(self) -> None:
        """A clean close leaves no timer behind, on either side."""
        wired = Wired().handshake()
        wired.server_app.tls.loseConnection()
        self.assertEqual(len(wired.clock.getDelayedCalls()), 1)
        wired.flush()
        self.assertEqual(wired.clock.getDelayedCalls(), [])
        self.assertEqual(reasons(wired.server_app), [ConnectionDone])
        self.assertEqual(reasons(wired.client_app), [ConnectionDone])

    def test_close_deadline_off(self) -> None:
        """With None a close may take for ever."""
        wired = Wired(limits={"close_timeout": None}).handshake()
        wired.pair.client.pauseProducing()
        wired.server_app.tls.loseConnection()
        wired.flush()
        wired.clock.advance(10_000)
        self.assertEqual(wired.server_app.reasons, [])

    def slow_reader(self, seconds_per_chunk: float, size: int = 1_000_000) -> Wired:
        """Close behind a large write to a peer that takes 64 KiB at a time."""
        wired = Wired().handshake()
        wired.server_app.tls.write(b"x" * size)
        wired.server_app.tls.loseConnection()
        pair = wired.pair
        waited = 0.0
        while not wired.server_app.reasons and waited < 1_000:
            pair.server.send()
            if waited >= seconds_per_chunk:
                waited = 0.0
                pair.client.receive(64 * 1024)
                pair.client.send()
                pair.server.receive(64 * 1024)
            wired.clock.advance(0.5)
            waited += 0.5
        wired.flush()
        return wired

    def test_slow_but_reading_peer(self) -> None:
        """A close deadline does not cut data that still flows, however long it takes."""
        wired = self.slow_reader(2)
        self.assertEqual(len(wired.client_app.received), 1_000_000)
        self.assertEqual(reasons(wired.server_app), [ConnectionDone])

    def test_peer_that_stops_reading(self) -> None:
        """A peer that stops taking data is cut although much is left for it."""
        wired = self.slow_reader(500)
        self.assertLess(len(wired.client_app.received), 1_000_000)
        self.assertEqual(reasons(wired.server_app), [CloseTimeout])
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_slow_application(self) -> None:
        """A producer that takes its time before it unregisters is not the peer's fault."""
        wired = Wired().handshake()
        tls = wired.server_app.tls
        tls.registerProducer(Producer(), True)
        tls.loseConnection()
        for _ in range(10):
            wired.clock.advance(3)
        tls.write(b"late")
        tls.unregisterProducer()
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"late")
        self.assertEqual(reasons(wired.server_app), [ConnectionDone])

    def test_paused_producer_finishes_after_close(self) -> None:
        """A producer that was paused when the application closed is resumed, and finishes."""
        wired = Wired().handshake()
        tls = wired.server_app.tls
        producer = Producer()
        tls.registerProducer(producer, True)
        tls.write(b"x" * 200_000)
        self.assertEqual((producer.pauses, producer.resumes), (1, 0))
        tls.loseConnection()
        for _ in range(20):
            wired.pair.pump()
        self.assertEqual(producer.resumes, 1)
        tls.write(b"the rest")
        tls.unregisterProducer()
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"x" * 200_000 + b"the rest")
        self.assertEqual(reasons(wired.server_app), [ConnectionDone])

    def pause_then_close(self, factory: FactoryClass) -> Wired:
        wired = Wired(factory).handshake()
        wired.server_app.tls.pauseProducing()
        wired.server_app.tls.loseConnection()
        wired.flush()
        return wired

    def test_d12_fix_pause_then_close(self) -> None:
        """Closing while paused reads on, so that the peer's close_notify is seen."""
        self.assertEqual(reasons(self.pause_then_close(STOCK).server_app), [])
        ours = self.pause_then_close(KVTLSFactory)
        self.assertEqual(reasons(ours.server_app), [ConnectionDone])

    def half_closed(self, factory: FactoryClass) -> list[Any]:
        wired = Wired(factory).handshake()
        wired.server_app.tls.write(b"last words")
        wired.clock.advance(0)
        wired.server_app.tls.loseWriteConnection()
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"last words")
        return reasons(wired.client_app)

    def test_d25_fix_half_close(self) -> None:
        """Half-closing says so in TLS: the peer sees a clean end, not a truncation."""
        self.assertEqual(self.half_closed(STOCK), [ConnectionLost])
        self.assertEqual(self.half_closed(KVTLSFactory), [ConnectionDone])

    def test_d25_guard_data_after_close(self) -> None:
        """What the peer had sent before it saw our close_notify is delivered, as on stock."""
        for factory in (STOCK, KVTLSFactory):
            wired = Wired(factory).handshake()
            wired.client_app.tls.write(b"crossing")
            wired.clock.advance(0)
            wired.server_app.tls.loseConnection()
            wired.flush()
            self.assertEqual(bytes(wired.server_app.received), b"crossing")

    def test_no_gap_after_close(self) -> None:
        """What follows data that was dropped, paused and closing, is not delivered either."""
        wired = Wired().handshake()
        wired.server_app.tls.loseConnection()
        wired.server_app.tls.pauseProducing()
        for data in (b"first", b"second"):
            wired.client_app.tls.write(data)
            wired.clock.advance(0)
            wired.pair.client.send()
            wired.pair.server.receive(1_000_000)
            wired.server_app.tls.resumeProducing()
        self.assertEqual(bytes(wired.server_app.received), b"")


class PauseTests(SynchronousTestCase):
    """D14: applications that pause."""

    def first_delivery(self, factory: FactoryClass) -> Wired:
        # What is decrypted before a pause is given: here one record, not the whole segment.
        self.patch(records, "BATCH_SIZE", 20_000)
        wired = Wired(factory, chunk=1_000_000, window=1_000_000).handshake()
        wired.server_app.on_data = lambda data: wired.server_app.tls.pauseProducing()
        wired.client_app.tls.write(b"x" * 60_000)
        wired.flush()
        return wired

    def test_d14_fix_pause_in_data_received(self) -> None:
        """A pause made in dataReceived holds for the rest of the segment."""
        self.assertEqual(len(self.first_delivery(STOCK).server_app.pieces), 4)
        ours = self.first_delivery(KVTLSFactory)
        self.assertEqual(len(ours.server_app.pieces), 1)
        ours.server_app.tls.resumeProducing()
        self.assertEqual(len(ours.server_app.pieces), 2)
        ours.server_app.on_data = lambda data: None
        ours.server_app.tls.resumeProducing()
        self.assertEqual(bytes(ours.server_app.received), b"x" * 60_000)

    def test_pause_stops_the_transport(self) -> None:
        """While the application has paused the transport is not read."""
        wired = Wired().handshake()
        wired.server_app.tls.pauseProducing()
        self.assertTrue(wired.pair.server.paused)
        wired.server_app.tls.resumeProducing()
        self.assertFalse(wired.pair.server.paused)

    def test_paused_to_the_end(self) -> None:
        """What arrived during a pause is delivered before the loss of the connection."""
        wired = self.first_delivery(KVTLSFactory)
        wired.server_app.on_data = lambda data: None
        wired.pair.client.abortConnection()
        wired.pair.client.send()
        wired.pair.server.paused = False
        wired.flush()
        self.assertEqual(bytes(wired.server_app.received), b"x" * 60_000)
        self.assertEqual(reasons(wired.server_app), [ConnectionLost])

    def test_pause_and_resume_inside_data_received(self) -> None:
        """Resuming inside dataReceived delivers nothing twice and nothing out of order."""
        wired = Wired(chunk=1_000_000, window=1_000_000).handshake()

        def blink(data: bytes) -> None:
            wired.server_app.tls.pauseProducing()
            wired.server_app.tls.resumeProducing()

        wired.server_app.on_data = blink
        data = bytes(range(256)) * 400
        wired.client_app.tls.write(data)
        wired.flush()
        self.assertEqual(bytes(wired.server_app.received), data)
        self.assertFalse(wired.pair.server.paused)


class Reluctant:
    """A connection that refuses to write until it has read something, as in a renegotiation.

    Attributes:
        refuses: Whether it does now.
    """

    def __init__(self, context: Context) -> None:
        self._connection = Connection(context, None)
        self.refuses = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def send(self, data: bytes) -> int:
        if self.refuses:
            raise WantReadError
        return self._connection.send(data)


class HeldTests(SynchronousTestCase):
    """What is read for TLS's own sake while the application has paused."""

    def begin(self) -> None:
        """Pause the server's application while its TLS has to read before it can write."""
        self.connection = Reluctant(server_context())
        self.wired = Wired(server_tls=Given(self.connection)).handshake()
        self.connection.refuses = True
        self.wired.server_app.tls.pauseProducing()
        self.wired.server_app.tls.write(b"answer")
        self.wired.clock.advance(0)

    def test_in_order(self) -> None:
        """It is delivered in order when the application resumes."""
        self.begin()
        for letter in (b"a", b"b", b"c", b"d"):
            self.wired.client_app.tls.write(letter)
            self.wired.flush()
        self.assertEqual(self.wired.server_app.pieces, [])
        self.connection.refuses = False
        self.wired.server_app.tls.resumeProducing()
        self.wired.flush()
        self.assertEqual(bytes(self.wired.server_app.received), b"abcd")
        self.assertEqual(bytes(self.wired.client_app.received), b"answer")

    def test_bounded(self) -> None:
        """There is no more of it than a limit says; the rest waits with the peer."""
        self.begin()
        data = bytes(range(256)) * 8_000  # 2 MB
        self.wired.client_app.tls.write(data)
        self.wired.flush()
        held = sum(map(len, self.wired.server._shell._held))
        self.assertGreater(held, HELD_SIZE)
        self.assertLess(held, HELD_SIZE + 2 * 16_384)
        self.assertTrue(self.wired.pair.server.paused)
        self.connection.refuses = False
        self.wired.server_app.tls.resumeProducing()
        self.wired.flush()
        self.assertEqual(bytes(self.wired.server_app.received), data)

    def test_in_order_at_the_end(self) -> None:
        """What was held when the connection is lost is delivered in order before that is told."""
        self.begin()
        for letter in (b"a", b"b", b"c", b"d"):
            self.wired.client_app.tls.write(letter)
            self.wired.flush()
        self.wired.pair.client.abortConnection()
        self.wired.pair.client.send()
        self.wired.flush()
        self.assertEqual(bytes(self.wired.server_app.received), b"abcd")
        self.assertEqual(reasons(self.wired.server_app), [ConnectionLost])


class FloodTests(SynchronousTestCase):
    """D18: traffic without application data."""

    def flood(self, factory: FactoryClass, updates: int, limits: dict[str, Any]) -> Wired:
        wired = Wired(factory, limits=limits)
        wired.server_app.echo()
        peer = LibPeer(LibConnection(False))
        wired.pair = MemoryPair(wired.server, peer, clock=wired.clock)
        wired.pair.connect()
        wired.pair.flush()
        # The peer does not read any more: what the server answers stays with it.
        wired.pair.server.window = 0
        for _ in range(updates):
            peer.connection.key_update()
            if len(wired.pair.client.unsent) < 60_000:
                peer.send_waiting()
            else:
                peer.send_waiting()
                wired.pair.client.send()
                wired.pair.server.receive(100_000)
        wired.pair.client.send()
        wired.pair.server.receive(100_000)
        return wired

    def test_d18_fix_key_update_flood(self) -> None:
        """Key updates without data are cut after the budget; stock answers them all."""
        stock = self.flood(STOCK, 20_000, {})
        self.assertFalse(stock.pair.server.disconnecting)
        self.assertGreater(len(stock.pair.server.unsent), 256 * 1024)
        ours = self.flood(KVTLSFactory, 20_000, {})
        self.assertTrue(ours.pair.server.aborted)
        ours.pair.server.send()
        self.assertEqual(reasons(ours.server_app), [BudgetExceeded])
        self.assertLess(ours.pair.server.most_unsent, 300_000)

    def test_budget_is_settable(self) -> None:
        """A smaller budget cuts earlier, a flood within it is served."""
        limits = {"junk_budget": 10_000}
        self.assertTrue(self.flood(KVTLSFactory, 500, limits).pair.server.aborted)
        self.assertFalse(self.flood(KVTLSFactory, 300, limits).pair.server.aborted)

    def test_d18_guard_key_updates_with_data(self) -> None:
        """Key updates between data are answered and never cut."""
        for factory in (STOCK, KVTLSFactory):
            wired = Wired(factory, limits={"junk_budget": 1_000})
            wired.server_app.echo()
            peer = LibPeer(LibConnection(False))
            pair = MemoryPair(wired.server, peer, clock=wired.clock)
            pair.connect()
            pair.flush()
            for _ in range(100):
                peer.connection.key_update()
                peer.say(b"0123456789")
                pair.flush()
            self.assertEqual(bytes(peer.received), b"0123456789" * 100)

    def test_unread_answers(self) -> None:
        """A peer that mixes data into its flood and reads nothing is cut by its answers."""
        wired = Wired(limits={"junk_budget": 20_000})
        peer = LibPeer(LibConnection(False))
        pair = MemoryPair(wired.server, peer, clock=wired.clock)
        pair.connect()
        pair.flush()
        wired.server_app.tls.write(b"x" * 200_000)
        pair.server.window = 0
        for _ in range(4_000):
            peer.connection.key_update()
            peer.connection.key_update()
            peer.say(b"0")
            pair.client.send()
            pair.server.receive(100_000)
            if pair.server.aborted:
                break
        self.assertTrue(pair.server.aborted)

    def test_read_answers(self) -> None:
        """What a peer has read at last does not count any more, however much it was in all."""
        wired = Wired(limits={"junk_budget": 20_000})
        peer = LibPeer(LibConnection(False))
        pair = MemoryPair(wired.server, peer, clock=wired.clock)
        pair.connect()
        pair.flush()
        answers = 0
        for _ in range(4):
            wired.server_app.tls.write(b"x" * 200_000)
            pair.server.window = 0
            before = len(pair.server.unsent)
            for _ in range(500):
                peer.connection.key_update()
                peer.say(b"0")
                pair.client.send()
                pair.server.receive(100_000)
            answers += len(pair.server.unsent) - before
            pair.server.window = 1_000_000
            pair.flush()
        self.assertGreater(answers, 40_000)
        self.assertFalse(pair.server.aborted)


class AfterwardsTests(SynchronousTestCase):
    """D19 to D22: calls that come late, early, or from inside."""

    LATE = (
        ("abortConnection", ()),
        ("getPeerCertificate", ()),
        ("failVerification", (Failure(ValueError()),)),
        ("dataReceived", (b"\x17\x03\x03\x00\x01x",)),
        ("connectionLost", (Failure(ConnectionDone()),)),
        ("loseConnection", ()),
        ("loseWriteConnection", ()),
        ("write", (b"x",)),
        ("writeSequence", ([b"x"],)),
        ("unregisterProducer", ()),
        ("pauseProducing", ()),
        ("resumeProducing", ()),
        ("stopProducing", ()),
        ("getHandle", ()),
        ("peer_chain", ()),
        ("tls_version", ()),
    )

    def failing(self, factory: FactoryClass) -> set[str]:
        wired = Wired(factory).handshake()
        wired.server.connectionLost(Failure(ConnectionDone()))
        failed = set()
        for name, arguments in self.LATE:
            try:
                getattr(wired.server, name)(*arguments)
            except (AttributeError, KeyError):
                failed.add(name)
        self.assertEqual(len(wired.server_app.reasons), 1)
        return failed

    def test_d19_fix_late_calls(self) -> None:
        """Everything may be called after the connection was lost; nothing happens."""
        broken = {
            "abortConnection",
            "getPeerCertificate",
            "failVerification",
            "dataReceived",
            "connectionLost",
        }
        self.assertLessEqual(broken, self.failing(STOCK))
        self.assertEqual(self.failing(KVTLSFactory), set())

    def test_late_producer(self) -> None:
        """A producer that comes late is stopped."""
        wired = Wired().handshake()
        wired.server.connectionLost(Failure(ConnectionDone()))
        producer = Producer()
        wired.server.registerProducer(producer, True)
        self.assertEqual(producer.stops, 1)

    def on_synchronous_transport(self, factory: FactoryClass, early: bool) -> list[Any]:
        wired = Wired(factory, synchronous_close=True)
        if early:
            wired.connect()
            wired.server_app.tls.loseConnection()
        else:
            wired.handshake()
            wired.client_app.tls.loseConnection()
        wired.flush()
        return reasons(wired.server_app)

    def test_d20_fix_synchronous_transports(self) -> None:
        """Transports that close inside the call do not make TLS stumble over itself."""
        for early in (False, True):
            with self.assertRaises((AttributeError, KeyError)):
                self.on_synchronous_transport(STOCK, early)
        self.assertEqual(self.on_synchronous_transport(KVTLSFactory, False), [ConnectionDone])
        self.assertEqual(self.on_synchronous_transport(KVTLSFactory, True), [ConnectionAborted])

    def test_answers_inside_writes(self) -> None:
        """A transport that brings the peer's answer from within a write loses and mixes nothing."""
        wired = Wired().handshake()
        server, client = wired.pair.server, wired.pair.client

        def at_once(data: bytes) -> None:
            wired.client.dataReceived(data)

        def back_at_once(data: bytes) -> None:
            wired.server.dataReceived(data)

        server.write = at_once  # type: ignore[method-assign]
        client.write = back_at_once  # type: ignore[method-assign]
        wired.server_app.on_data = lambda data: wired.server_app.tls.write(data * 1000)
        questions = [b"b", b"c", b"d"]

        def ask_again(data: bytes) -> None:
            if questions and len(wired.client_app.received) % 100_000 == 0:
                wired.client_app.tls.write(questions.pop(0) * 100)

        wired.client_app.on_data = ask_again
        wired.client_app.tls.write(b"a" * 100)
        wired.clock.advance(0)
        self.assertEqual(
            bytes(wired.client_app.received),
            b"".join(letter * 100_000 for letter in (b"a", b"b", b"c", b"d")),
        )

    def test_no_data_after_an_exception_without_a_reactor(self) -> None:
        """Also a transport that goes on after an exception delivers nothing more."""
        wired = Wired().handshake()
        wired.server_app.on_data = lambda data: 1 / 0
        wired.client_app.tls.write(b"one")
        wired.clock.advance(0)
        first = bytes(wired.pair.client.unsent)
        wired.pair.client.unsent.clear()
        wired.client_app.tls.write(b"two")
        wired.clock.advance(0)
        self.assertRaises(ZeroDivisionError, wired.server.dataReceived, first)
        wired.server.dataReceived(bytes(wired.pair.client.unsent))
        self.assertEqual(bytes(wired.server_app.received), b"one")

    def test_d22_fix_empty_data(self) -> None:
        """An empty segment is nothing."""
        self.assertRaises(WantReadError, Wired(STOCK).handshake().server.dataReceived, b"")
        wired = Wired().handshake()
        wired.server.dataReceived(b"")
        self.assertEqual(wired.server_app.reasons, [])

    def aborted(self, factory: FactoryClass, write: bool) -> Any:
        wired = Wired(factory).handshake()
        if write:
            wired.server_app.tls.write(b"aggregated")
        wired.server_app.tls.abortConnection()
        wired.flush()
        [reason] = wired.server_app.reasons
        return reason.type

    def test_d24_fix_reason_of_an_abort(self) -> None:
        """An application that aborts is told that it did."""
        for write in (False, True):
            self.assertIs(self.aborted(STOCK, write), ConnectionLost)
            self.assertIs(self.aborted(KVTLSFactory, write), ConnectionAborted)


class MemoryTests(SynchronousTestCase):
    """D21 and D23: what is left behind, and how much is held."""

    def survivors(self, factory: FactoryClass, end: str) -> int:
        """Return how many objects of a finished connection live on without a collection."""
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        wired = Wired(factory).handshake()
        alive = [weakref.ref(wired.server), weakref.ref(wired.server_app)]
        if end == "EOF":
            wired.pair.client.loseConnection()
        elif end == "abort":
            wired.server_app.tls.abortConnection()
        elif end == "clean":
            wired.server_app.tls.loseConnection()
        elif end == "garbage":
            wired.server.dataReceived(b"\x17\x03\x03\x00\x10" + b"x" * 16)
        elif end == "timeout":
            wired.pair.client.pauseProducing()
            wired.server_app.tls.loseConnection()
            wired.clock.advance(3)
        wired.flush()
        self.assertEqual(len(wired.server_app.reasons), 1, end)
        wired.server_app.reasons.clear()
        del wired
        return sum(one() is not None for one in alive)

    def test_d21_fix_cycles(self) -> None:
        """Every end frees its connection at once, without the garbage collector."""
        self.assertGreater(self.survivors(STOCK, "EOF"), 0)
        for end in ("EOF", "abort", "clean", "garbage", "timeout"):
            self.assertEqual(self.survivors(KVTLSFactory, end), 0, end)

    def largest_feed(self, factory: FactoryClass) -> int:
        wired = Wired(factory, chunk=1_000_000, window=1_000_000).handshake()
        sizes = []

        class Measured:
            def __init__(self, connection: Any) -> None:
                self._connection = connection

            def __getattr__(self, name: str) -> Any:
                return getattr(self._connection, name)

            def bio_write(self, data: bytes) -> int:
                sizes.append(len(data))
                taken: int = self._connection.bio_write(data)
                return taken

        wired.server._tlsConnection = Measured(wired.server._tlsConnection)
        wired.client_app.tls.write(b"x" * 200_000)
        wired.flush()
        self.assertEqual(len(wired.server_app.received), 200_000)
        return max(sizes)

    def test_d23_fix_input_slices(self) -> None:
        """OpenSSL is fed one record at a time: its memory BIO never shrinks again."""
        self.assertGreater(self.largest_feed(STOCK), 64 * 1024)
        self.assertLessEqual(self.largest_feed(KVTLSFactory), 16 * 1024 + 256)

    def test_many_connections_leave_nothing(self) -> None:
        """After many connections of each ending no protocol and no OpenSSL object is alive."""

        def alive() -> int:
            gc.collect()
            kinds = (KVTLSProtocol, Connection)
            return sum(isinstance(one, kinds) for one in gc.get_objects())

        before = alive()
        for end in ("EOF", "abort", "clean", "garbage", "timeout"):
            for _ in range(10):
                self.survivors(KVTLSFactory, end)
        self.assertEqual(alive(), before)


class GuardTests(SynchronousTestCase):
    """What stock does well, and must stay so."""

    def delivered(self, factory: FactoryClass, end: str) -> tuple[bytes, list[Any]]:
        wired = Wired(factory).handshake()
        wired.client_app.tls.write(b"before the end")
        wired.clock.advance(0)
        client = wired.pair.client
        if end == "close_notify":
            wired.client_app.tls.loseConnection()
        elif end == "FIN":
            client.loseConnection()
        elif end == "corrupt record":
            client.write(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        elif end == "truncated record":
            client.write(b"\x17\x03\x03\x00\x20" + b"x" * 10)
            client.loseConnection()
        elif end == "RST":
            wired.server.dataReceived(bytes(client.unsent))
            wired.pair.server.lose(Failure(ConnectionLost()))
        wired.flush()
        wired.clock.advance(KVTLSProtocol.answer_pause)  # the data might have been a question
        wired.flush()
        return bytes(wired.server_app.received), reasons(wired.server_app)

    def test_guard_data_before_the_end(self) -> None:
        """What was decrypted before the end is delivered, whatever the end."""
        ends: dict[str, type] = {
            "close_notify": ConnectionDone,
            "FIN": ConnectionLost,
            "corrupt record": Error,
            "truncated record": ConnectionLost,
            "RST": ConnectionLost,
        }
        for factory in (STOCK, KVTLSFactory):
            for end, reason in ends.items():
                expected = (b"before the end", [reason])
                self.assertEqual(self.delivered(factory, end), expected, (factory, end))

    def test_guard_small_segments(self) -> None:
        """Segments of any size carry the same data."""
        for chunk in (1, 2, 5, 1_000, 16_401, 70_000):
            wired = Wired(chunk=chunk)
            wired.server_app.echo()
            wired.handshake()
            data = bytes(range(256)) * (4 if chunk < 1_000 else 1_000)
            wired.client_app.tls.write(data)
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), data, chunk)

    def test_guard_plaintext_is_bounded(self) -> None:
        """A large write to a peer that does not read is not encrypted all at once."""
        wired = Wired().handshake()
        producer = Producer()
        wired.server_app.tls.registerProducer(producer, True)
        wired.pair.client.pauseProducing()
        for _ in range(20):
            wired.server_app.tls.write(b"x" * 1_000_000)
        wired.flush()
        self.assertLess(wired.pair.server.most_unsent, 256 * 1024)
        self.assertEqual((producer.pauses, producer.resumes), (1, 0))
        wired.pair.client.resumeProducing()
        wired.flush()
        self.assertEqual(len(wired.client_app.received), 20_000_000)
        self.assertEqual((producer.pauses, producer.resumes), (1, 1))

    def test_cut_off_after_our_goodbye(self) -> None:
        """A FIN in place of the answer to our close_notify may hide what the peer had to say."""
        wired = Wired().handshake()
        wired.server_app.tls.loseConnection()
        wired.clock.advance(0)
        wired.server.readConnectionLost()
        wired.pair.server.send()
        self.assertEqual(reasons(wired.server_app), [ConnectionLost])
