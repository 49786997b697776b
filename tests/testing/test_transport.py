"""The in-memory wire does to protocols what real wires do."""

from __future__ import annotations

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kvproto.testing.transport import MemoryPair
from tests.producers import Producer


class Recorder(Protocol):
    """Keeps the pieces it gets and the reasons it ends by."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.reasons: list[type] = []

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def connectionLost(self, reason=connectionDone) -> None:
        self.reasons.append(reason.type)


@implementer(IHalfCloseableProtocol)
class HalfCloser(Recorder):
    """Survives the end of its input."""

    half = 0

    def readConnectionLost(self) -> None:
        self.half += 1

    def writeConnectionLost(self) -> None:
        raise NotImplementedError


class MemoryPairTests(SynchronousTestCase):
    """Bytes, pressure and ends."""

    def connect(self, client: Recorder | None = None, **options) -> MemoryPair:
        self.app, self.peer = Recorder(), client or Recorder()
        pair = MemoryPair(self.app, self.peer, **options)
        pair.connect()
        return pair

    def test_chunks(self) -> None:
        """Data arrives in pieces of the size asked for, in order."""
        pair = self.connect(chunk=3)
        pair.server.write(b"abcd")
        pair.server.write(b"efgh")
        pair.flush()
        self.assertEqual(self.peer.pieces, [b"abc", b"def", b"gh"])

    def test_nothing_moves_by_itself(self) -> None:
        """A write reaches nobody before the pair is pumped."""
        pair = self.connect()
        pair.server.write(b"abc")
        self.assertEqual(self.peer.pieces, [])

    def test_paused_reader(self) -> None:
        """A paused reader gets nothing, and the wire behind it fills up to its window."""
        pair = self.connect(window=10)
        pair.client.pauseProducing()
        pair.server.write(b"x" * 25)
        pair.flush()
        self.assertEqual(self.peer.pieces, [])
        self.assertEqual((len(pair.server.wire), len(pair.server.unsent)), (10, 15))
        pair.client.resumeProducing()
        pair.flush()
        self.assertEqual(b"".join(self.peer.pieces), b"x" * 25)

    def test_push_producer(self) -> None:
        """A producer is paused above the high-water mark and resumed when all is gone."""
        pair = self.connect(high_water=10)
        producer = Producer()
        pair.server.registerProducer(producer, True)
        pair.server.write(b"x" * 10)
        self.assertEqual(producer.calls, [])
        pair.server.write(b"x")
        self.assertEqual(producer.calls, ["pause"])
        pair.flush()
        self.assertEqual(producer.calls, ["pause", "resume"])

    def test_second_producer(self) -> None:
        """Only one producer can be registered."""
        pair = self.connect()
        pair.server.registerProducer(Producer(), True)
        self.assertRaises(RuntimeError, pair.server.registerProducer, Producer(), True)

    def test_close_flushes(self) -> None:
        """Closing delivers what was written, then ends both sides cleanly, once."""
        pair = self.connect(chunk=2)
        pair.server.write(b"bye")
        pair.server.loseConnection()
        pair.flush()
        self.assertEqual(b"".join(self.peer.pieces), b"bye")
        self.assertEqual((self.app.reasons, self.peer.reasons), ([ConnectionDone],) * 2)

    def test_abort_loses(self) -> None:
        """An abort loses what was on its way; both sides hear of it, differently."""
        pair = self.connect(window=5)
        pair.server.write(b"0123456789")
        pair.server.send()
        pair.server.abortConnection()
        pair.flush()
        self.assertEqual(self.peer.pieces, [])
        self.assertEqual(self.app.reasons, [ConnectionAborted])
        self.assertEqual(self.peer.reasons, [ConnectionLost])

    def test_synchronous_close(self) -> None:
        """On such a transport connectionLost happens inside loseConnection and abort."""
        pair = self.connect(synchronous_close=True)
        pair.server.write(b"bye")
        pair.server.loseConnection()
        self.assertEqual(self.app.reasons, [ConnectionDone])
        pair.flush()
        self.assertEqual(self.peer.pieces, [b"bye"])
        pair = self.connect(synchronous_close=True)
        pair.server.abortConnection()
        self.assertEqual(self.app.reasons, [ConnectionAborted])

    def test_half_close(self) -> None:
        """After loseWriteConnection the other direction still works."""
        closer = HalfCloser()
        pair = self.connect(closer)
        pair.server.write(b"last")
        pair.server.loseWriteConnection()
        pair.flush()
        self.assertEqual((closer.pieces, closer.half), ([b"last"], 1))
        pair.client.write(b"answer")
        pair.flush()
        self.assertEqual(self.app.pieces, [b"answer"])
        self.assertEqual((self.app.reasons, self.peer.reasons), ([], []))

    def test_producer_stopped_at_the_end(self) -> None:
        """A producer hears that nothing more will be taken."""
        pair = self.connect()
        producer = Producer()
        pair.server.registerProducer(producer, True)
        pair.client.abortConnection()
        pair.flush()
        self.assertEqual(producer.calls, ["stop"])

    def test_endless_talk(self) -> None:
        """Protocols that never stop talking do not hang a test."""

        class Echo(Recorder):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(data)

        pair = MemoryPair(Echo(), Echo())
        pair.connect()
        pair.server.write(b"x")
        self.assertRaises(RuntimeError, pair.flush, 100)
