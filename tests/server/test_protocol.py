"""The connection: order, back-pressure, how it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.interfaces import IAnswers, IDrainable
from kvproto.server import KVServer, ServerSettings
from kvproto.store import MemoryStore
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Opcode, Status
from tests.server.support import NOW, FakeConnection, Link, SlowStore

K = b"key"
MIB = 1 << 20


def gets(count: int, first: int = 0) -> bytes:
    """Encode requests that are numbered by their opaque."""
    return b"".join(
        encode_request(Opcode.GET, key=K, opaque=first + number) for number in range(count)
    )


def opaques(data: bytes) -> list[int]:
    """Return the numbers of the replies in some bytes."""
    return [frame.opaque for frame in ResponseDecoder().feed(data)]


class OneWriteTests(SynchronousTestCase):
    """Replies of one read go out together."""

    def test_one_read_one_write(self) -> None:
        """All requests of one read are answered by one write, in order."""
        link = Link()
        link.store.set(K, b"v")
        responses = link.responses(gets(100))
        self.assertEqual([r.opaque for r in responses], list(range(100)))
        self.assertEqual(link.transport.writes, 1)

    def test_nothing_is_kept(self) -> None:
        """Once served, a request is let go of: thousands of idle connections hold no values."""
        link = Link()
        link.ask(encode_request(Opcode.SET, key=K, value=bytes(100_000), extras=bytes(8)))
        self.assertEqual(link.session._requests, [])

    def test_nothing_to_say(self) -> None:
        """Quiet requests cause no write at all."""
        link = Link()
        link.ask(encode_request(Opcode.GETQ, key=K) * 10)
        self.assertEqual(link.transport.writes, 0)

    def test_any_cutting(self) -> None:
        """However a stream is cut into reads, the replies are the same."""
        data = gets(3) + encode_request(Opcode.SET, key=K, value=b"v" * 50, extras=bytes(8))
        data += gets(3, 10)
        whole = opaques(Link().ask(data))
        for size in (1, 7, 24, 25, 60):
            link = Link()
            link.transport.send(data, read_size=size)
            self.assertEqual(opaques(link.take()), whole)


class BackPressureTests(SynchronousTestCase):
    """A client that sends and does not read."""

    def link(self, value: bytes = b"", **settings: Any) -> Link:
        link = Link(transport=ScriptedTransport(reads=False), **settings)
        link.store.set(K, value)
        return link

    def test_hundred_thousand_requests(self) -> None:
        """Memory stays within the limit; once it reads, it gets every reply in order."""
        link = self.link(bytes(1000))
        link.transport.send(gets(100_000))
        self.assertLessEqual(link.transport.most_unsent, MIB)
        self.assertFalse(link.transport.reading)
        session = link.session
        held = len(session._requests) - session._next
        kept = sum(map(len, session._kept))
        self.assertLessEqual(kept + held * 27, 2 * 65536)
        link.transport.most_unsent = 0
        while link.transport.unsent:
            link.transport.read()
        self.assertLessEqual(link.transport.most_unsent, MIB)
        self.assertEqual(opaques(link.take()), list(range(100_000)))
        self.assertTrue(link.transport.reading)

    def test_smaller_limit(self) -> None:
        """The limit is a parameter."""
        link = self.link(bytes(1000), unsent_limit=200_000)
        link.transport.send(gets(10_000))
        self.assertLessEqual(link.transport.most_unsent, 200_000)
        while link.transport.unsent:
            link.transport.read()
        self.assertEqual(opaques(link.take()), list(range(10_000)))

    def test_values_larger_than_the_limit(self) -> None:
        """A reply above the limit is sent alone: one of them waits, not all of them."""
        link = self.link(bytes(3 * MIB))
        link.transport.send(gets(20))
        self.assertLess(link.transport.most_unsent, 3 * MIB + 1000)
        while link.transport.unsent:
            link.transport.read()
        self.assertEqual(opaques(link.take()), list(range(20)))

    def test_slow_reader(self) -> None:
        """Reading a little at a time changes nothing of the order."""
        link = self.link(bytes(1000))
        link.transport.send(gets(5000))
        while link.transport.unsent:
            link.transport.read(300_000)
        self.assertEqual(opaques(link.take()), list(range(5000)))

    def test_text_keys(self) -> None:
        """One line with many keys is served key by key: it cannot ask for more than the limit."""
        link = Link(transport=ScriptedTransport(reads=False))
        link.store.set(b"k", bytes(1000))
        link.transport.send(b"get" + b" k" * 100_000 + b"\r\nversion\r\n")
        self.assertLessEqual(link.transport.most_unsent, MIB)
        while link.transport.unsent:
            link.transport.read()
        answer = link.take()
        self.assertEqual(answer.count(b"VALUE k 0 1000\r\n"), 100_000)
        self.assertIn(b"\r\nEND\r\nVERSION ", answer[-100:])

    def test_closed_while_stopped(self) -> None:
        """Nothing is served any more when the peer is gone."""
        link = self.link(bytes(1000))
        link.transport.send(gets(10_000))
        session = link.session
        link.transport.lose()
        self.assertEqual((session._requests, session._kept), ([], []))
        self.assertIsNone(link.protocol.session)
        link.protocol.resumeProducing()

    def test_paused_during_a_write(self) -> None:
        """A transport may pause and resume its producer within one write."""
        link = self.link(bytes(100))
        transport = link.transport

        class Hasty(ScriptedTransport):
            def writeSequence(self, parts: Iterable[bytes]) -> None:
                super().writeSequence(parts)
                self.producer.pauseProducing()
                self.producer.resumeProducing()

        transport.__class__ = Hasty
        transport.peer_reads = True
        self.assertEqual(opaques(link.ask(gets(20_000))), list(range(20_000)))


class SettingsTests(SynchronousTestCase):
    """Settings that change under connections."""

    def test_values(self) -> None:
        """Connections that there are take longer values, or shorter ones only."""
        for text in (False, True):
            link = Link(KVServer(MemoryStore(lambda: NOW), ServerSettings(max_value=100)))
            self.assertTrue(self.stored(link, text, 100))
            self.change(link, 3 * MIB)
            self.assertTrue(self.stored(link, text, 3 * MIB))
            self.change(link, 10)
            self.assertFalse(self.stored(link, text, 11))
            self.assertTrue(self.stored(link, text, 10))

    def change(self, link: Link, max_value: int) -> None:
        link.store.limit_values(max_value, None, evict=True)
        link.server.change_settings(ServerSettings(max_value=max_value))

    def stored(self, link: Link, text: bool, size: int) -> bool:
        if text:
            return link.ask(b"set k 0 0 %d\r\n%b\r\n" % (size, bytes(size))) == b"STORED\r\n"
        request = encode_request(Opcode.SET, key=K, extras=bytes(8), value=bytes(size))
        return link.ask(request)[6:8] == bytes(2)


class SlowStoreTests(SynchronousTestCase):
    """A store that answers later."""

    def setUp(self) -> None:
        self.slow = SlowStore(MemoryStore(lambda: NOW))
        self.slow.store.set(K, b"v")
        self.link = Link(KVServer(self.slow, ServerSettings()))

    def test_order(self) -> None:
        """Replies come in the order of the requests, one after the other."""
        self.assertEqual(self.link.responses(gets(3)), [])
        for number in range(3):
            self.slow.release()
            self.assertEqual([r.opaque for r in self.link.responses()], [number])

    def test_known_replies_do_not_wait(self) -> None:
        """What is known before a slow request is sent before it."""
        noop = encode_request(Opcode.NOOP, opaque=77)
        self.assertEqual([r.opaque for r in self.link.responses(noop + gets(1))], [77])

    def test_answers_at_once(self) -> None:
        """A Deferred that has fired already keeps the order too."""
        noop = encode_request(Opcode.NOOP, opaque=77)
        real = self.slow.store

        class Ready:
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return lambda *args, **options: succeed(getattr(real, name)(*args, **options))

        link = Link(KVServer(Ready(), ServerSettings()))
        replies = link.responses(noop + gets(2000) + noop)
        self.assertEqual([r.opaque for r in replies], [77, *range(2000), 77])

    def test_reading_stops_and_goes_on(self) -> None:
        """While as many requests wait as may, one more read is taken and no further one."""
        self.link.ask(gets(200))
        self.assertTrue(self.link.transport.reading)
        self.link.ask(gets(200, 200))
        self.assertTrue(self.link.transport.reading)
        self.link.ask(gets(1, 400))
        self.link.ask(gets(1, 401))
        self.assertFalse(self.link.transport.reading)
        self.assertEqual(len(self.link.transport.arrived), 1)
        for _ in range(402):
            self.slow.release()
        self.assertEqual([r.opaque for r in self.link.responses()], list(range(402)))
        self.assertTrue(self.link.transport.reading)

    def test_peer_leaves(self) -> None:
        """The store hears that nobody waits any more."""
        self.link.ask(gets(2))
        self.link.transport.lose()
        self.assertEqual(self.slow.cancelled, 1)

    def test_store_fails(self) -> None:
        """A failure is an internal error for that request; the next one is served."""
        self.link.ask(gets(2))
        self.slow.waiting.pop(0)[0].errback(OSError("disk"))
        self.slow.release()
        self.assertEqual([r.status for r in self.link.responses()], [Status.INTERNAL, 0])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_store_raises(self) -> None:
        """So is an exception that should not have been."""

        class Broken:
            def get(self, key: bytes) -> None:
                raise RuntimeError("a defect")

        link = Link(KVServer(Broken(), ServerSettings()))
        noop = encode_request(Opcode.NOOP)
        replies = link.responses(gets(1) + noop)
        self.assertEqual([r.status for r in replies], [Status.INTERNAL, 0])
        link = Link(KVServer(Broken(), ServerSettings()))
        self.assertEqual(link.ask(b"get k\r\nmn\r\n"), b"SERVER_ERROR internal error\r\nMN\r\n")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)


class BrokenStreamTests(SynchronousTestCase):
    """Peers that do not speak the protocol."""

    def test_bad_header(self) -> None:
        """A frame that contradicts itself is answered with 0x04, then the connection ends."""
        connection = FakeConnection()
        link = Link(connection=connection)
        bad = bytearray(encode_request(Opcode.GET, key=K, opaque=6))
        bad[11] = 1  # the body is shorter than the key
        [first, last] = link.responses(encode_request(Opcode.NOOP, opaque=5) + bytes(bad))
        self.assertEqual((first.opaque, first.status), (5, 0))
        self.assertEqual((last.opaque, last.status), (6, Status.INVALID))
        self.assertTrue(link.transport.closed)
        self.assertEqual(len(connection.errors), 1)

    def test_garbage_behind_a_frame(self) -> None:
        """Requests before garbage are answered; the garbage ends the connection, with a reason."""
        connection = FakeConnection()
        link = Link(connection=connection)
        self.assertEqual(opaques(link.ask(gets(2) + b"GARBAGE")), [0, 1])
        self.assertTrue(link.transport.closed)
        self.assertEqual(connection.errors, ["unknown magic 0x47"])

    def test_http(self) -> None:
        """A web browser is hung up on."""
        connection = FakeConnection()
        link = Link(connection=connection)
        link.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(link.transport.closed)
        self.assertEqual(len(connection.errors), 1)

    def test_truncated(self) -> None:
        """A peer that leaves within a request is worth a reason; one between them is not."""
        for data, errors in ((gets(1), 0), (gets(1)[:-1], 1), (b"", 0), (b"get k", 1)):
            connection = FakeConnection()
            link = Link(connection=connection)
            if data:
                link.ask(data)
            link.transport.lose()
            self.assertEqual(len(connection.errors), errors, data)

    def test_without_anybody_who_logs(self) -> None:
        """Without a listener the session itself writes the reason down."""
        link = Link()
        link.ask(b"\x80" + gets(1) + b"?")
        self.assertTrue(link.transport.closed)

    def test_data_after_the_end(self) -> None:
        """What arrives after that is ignored."""
        link = Link()
        link.ask(b"quit\r\n")
        link.protocol.dataReceived(b"version\r\n")
        self.assertEqual(link.take(), b"")


class HalfCloseTests(SynchronousTestCase):
    """A peer that has ended its side gets its answers, then the end."""

    def test_idle(self) -> None:
        """A connection without requests closes at once, one that never spoke too."""
        for data in (b"", gets(1)):
            link = Link()
            if data:
                link.ask(data)
            link.protocol.readConnectionLost()
            self.assertTrue(link.transport.closed)

    def test_waits_for_a_slow_answer(self) -> None:
        """What has been asked is answered first, all of it, also what was kept."""
        slow = SlowStore(MemoryStore(lambda: NOW))
        link = Link(KVServer(slow, ServerSettings()))
        link.ask(gets(2))
        link.ask(gets(1, 2))
        link.protocol.readConnectionLost()
        self.assertFalse(link.transport.closed)
        for _ in range(3):
            slow.release()
        self.assertEqual([r.opaque for r in link.responses()], [0, 1, 2])
        self.assertTrue(link.transport.closed)

    def test_waits_for_a_slow_reader(self) -> None:
        """Unsent answers are sent."""
        link = Link(transport=ScriptedTransport(reads=False))
        link.store.set(K, bytes(1000))
        link.transport.send(gets(2000))
        link.protocol.readConnectionLost()
        while link.transport.unsent:
            self.assertFalse(link.transport.closed)
            link.transport.read()
        self.assertTrue(link.transport.closed)
        self.assertEqual(opaques(link.take()), list(range(2000)))

    def test_half_a_request(self) -> None:
        """What was asked before is answered; the half cannot be completed any more."""
        link = Link()
        answered = link.ask(gets(2)[:-3])
        link.protocol.readConnectionLost()
        self.assertEqual(opaques(answered), [0])
        self.assertTrue(link.transport.closed)


class DrainTests(SynchronousTestCase):
    """Ending at a request boundary."""

    def test_idle(self) -> None:
        """A connection without requests closes at once, one that never spoke too."""
        for data in (b"", gets(1)):
            link = Link()
            if data:
                link.ask(data)
            drained = link.protocol.drain()
            self.assertTrue(link.transport.closed)
            self.assertIsNone(self.successResultOf(drained))

    def test_waits_for_a_slow_answer(self) -> None:
        """What has been asked is answered first, all of it, also what was kept."""
        slow = SlowStore(MemoryStore(lambda: NOW))
        link = Link(KVServer(slow, ServerSettings()))
        link.ask(gets(2))
        link.ask(gets(1, 2))
        drained = link.protocol.drain()
        self.assertNoResult(drained)
        for _ in range(3):
            slow.release()
        self.assertEqual([r.opaque for r in link.responses()], [0, 1, 2])
        self.successResultOf(drained)

    def test_waits_for_a_slow_reader(self) -> None:
        """Unsent answers are sent."""
        link = Link(transport=ScriptedTransport(reads=False))
        link.store.set(K, bytes(1000))
        link.transport.send(gets(2000))
        drained = link.protocol.drain()
        while link.transport.unsent:
            self.assertNoResult(drained)
            link.transport.read()
        self.successResultOf(drained)
        self.assertEqual(opaques(link.take()), list(range(2000)))

    def test_request_coming_in(self) -> None:
        """The request that is coming in is finished; nothing behind it is waited for."""
        link = Link()
        link.ask(gets(1)[:10])
        drained = link.protocol.drain()
        self.assertNoResult(drained)
        self.assertEqual(opaques(link.ask(gets(1)[10:] + gets(1, 1)[:5])), [0])
        self.successResultOf(drained)

    def test_twice(self) -> None:
        """Draining again gives another Deferred that fires with the first."""
        link = Link()
        link.ask(gets(1)[:10])
        first, second = link.protocol.drain(), link.protocol.drain()
        link.transport.lose()
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(link.protocol.drain())

    def test_interface(self) -> None:
        """The protocol is what a listener drains."""
        verifyObject(IDrainable, Link().protocol)


class AnswerTests(SynchronousTestCase):
    """Answers that are given back in place of being written."""

    def setUp(self) -> None:
        self.link = Link()
        self.link.store.set(K, b"v")
        self.link.ask(gets(1))
        self.link.take()

    def answer(self, data: bytes) -> tuple[int, list[int]]:
        """Ask; return how many bytes were dealt with, and whose replies there are."""
        replies: list[bytes] = []
        at = self.link.protocol.answer(data, replies)
        return at, opaques(b"".join(replies))

    def test_interface(self) -> None:
        """It can be asked."""
        self.assertTrue(verifyObject(IAnswers, self.link.protocol))

    def test_usual_requests(self) -> None:
        """They are answered; nothing is written."""
        writes = self.link.transport.writes
        self.assertEqual(self.answer(gets(3)), (len(gets(3)), [0, 1, 2]))
        self.assertEqual(self.link.transport.writes, writes)

    def test_counted(self) -> None:
        """Both directions are counted as they are when they are written."""
        counters = self.link.server.counters
        before = counters.bytes_read, counters.bytes_written
        self.answer(gets(2))
        in_place = counters.bytes_read - before[0], counters.bytes_written - before[1]
        before = counters.bytes_read, counters.bytes_written
        self.link.ask(gets(2))
        written = counters.bytes_read - before[0], counters.bytes_written - before[1]
        self.assertEqual(in_place, written)

    def test_whatever_it_is(self) -> None:
        """Everything that is answered at once is answered here."""
        noop = encode_request(Opcode.NOOP, opaque=9)
        data = gets(2) + noop + gets(1)
        self.assertEqual(self.answer(data), (len(data), [0, 1, 9, 0]))

    def test_half_a_request(self) -> None:
        """It is kept, and what is kept accounted for when the read comes again."""
        self.assertEqual(self.answer(gets(1)[:-1]), (0, []))
        self.link.protocol.dataReceived(gets(1)[:-1])
        self.assertEqual(self.link.server.budget.total, len(gets(1)) - 1)
        self.assertEqual(self.answer(gets(1)[-1:]), (0, [0]))
        self.link.protocol.dataReceived(gets(1)[-1:])
        self.assertEqual((self.link.server.budget.total, self.link.take()), (0, b""))
        self.assertEqual(self.answer(gets(1)), (len(gets(1)), [0]))

    def test_what_is_left_to_do(self) -> None:
        """What must be done to the transport is done when the read comes again."""
        quit_ = encode_request(Opcode.QUIT, opaque=9)
        self.assertEqual(self.answer(gets(1) + quit_), (0, [0, 9]))
        self.assertFalse(self.link.transport.closed)
        self.link.protocol.dataReceived(gets(1) + quit_)
        self.assertEqual(self.link.take(), b"")
        self.assertTrue(self.link.transport.closed)

    def test_too_much(self) -> None:
        """Beyond the limit of a turn the rest follows when the read comes again."""
        self.link = Link(unsent_limit=60)
        self.link.store.set(K, b"v")
        self.link.ask(gets(1))
        at, replies = self.answer(gets(5))
        self.assertEqual((at, replies), (0, [0, 1]))
        self.assertEqual(opaques(self.link.ask(gets(5))), [2, 3, 4])

    def test_a_defect(self) -> None:
        """A defect of ours is reported, and ends the connection."""

        def broken(data: bytes) -> list[Any]:
            raise ZeroDivisionError

        dialect: Any = self.link.session.dialect
        dialect.feed = broken
        self.assertEqual(self.answer(b"\x80"), (0, []))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.link.protocol.dataReceived(b"\x80")
        self.assertTrue(self.link.transport.closed)

    def test_first_read(self) -> None:
        """Which protocol it is, is seen by the usual way."""
        self.link = Link()
        self.assertEqual(self.answer(gets(1)), (0, []))

    def test_paused(self) -> None:
        """Nothing is answered while the transport has enough."""
        self.link.protocol.pauseProducing()
        self.assertEqual(self.answer(gets(1)), (0, []))
        self.link.protocol.dataReceived(gets(1))
        self.link.protocol.resumeProducing()
        self.assertEqual(opaques(self.link.take()), [0])
        self.assertEqual(self.answer(gets(1)), (len(gets(1)), [0]))

    def test_closed(self) -> None:
        """Nor after the end."""
        self.link.transport.lose()
        self.assertEqual(self.answer(gets(1)), (0, []))


class _InPlace(SynchronousTestCase):
    """The transport asks for answers in place first."""

    def setUp(self) -> None:
        self.patch(ScriptedTransport, "in_place", True)
        super().setUp()


class InPlaceBackPressureTests(_InPlace, BackPressureTests):
    """The same in place."""


class InPlaceSlowStoreTests(_InPlace, SlowStoreTests):
    """The same in place."""


class InPlaceBrokenStreamTests(_InPlace, BrokenStreamTests):
    """The same in place."""


class InPlaceDrainTests(_InPlace, DrainTests):
    """The same in place."""
