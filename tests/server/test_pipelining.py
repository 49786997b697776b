"""Requests under way together: sessions over a store that answers later."""

from __future__ import annotations

import itertools
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from kvproto.server import Bucket, KVServer, Manifest, ServerSettings
from kvproto.server.window import MAX_REQUESTS
from kvproto.store import MemoryStore
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Feature, Opcode, Status
from kvproto.wire.frames import Response
from kvproto.wire.framing import RequestFraming, encode_request_framing
from kvproto.wire.hello import encode_features
from tests.examples import examples
from tests.server.support import NOW, FakeConnection, Link, SlowStore

BARRIER = encode_request_framing(RequestFraming(barrier=True))


def get(key: bytes, opaque: int = 0) -> bytes:
    """Encode a GET."""
    return encode_request(Opcode.GET, key=key, opaque=opaque)


def put(key: bytes, value: bytes = b"", opaque: int = 0) -> bytes:
    """Encode a SET."""
    return encode_request(Opcode.SET, key=key, value=value, extras=bytes(8), opaque=opaque)


class _SlowTestCase(SynchronousTestCase):
    """A link to a store that answers when told to."""

    def setUp(self) -> None:
        self.slow = SlowStore(MemoryStore(lambda: NOW))
        for key in (b"a", b"b", b"c", b"d"):
            self.slow.store.set(key, key.upper())
        self.connection = FakeConnection()
        self.link = self.make_link()

    def make_link(self, **options: Any) -> Link:
        return Link(KVServer(self.slow, ServerSettings(**options)), connection=self.connection)

    def waiting(self) -> int:
        """Return how many requests the store has."""
        return len(self.slow.waiting)

    def opaques(self, data: bytes = b"") -> list[int]:
        return [response.opaque for response in self.link.responses(data)]


class OrderedTests(_SlowTestCase):
    """Clients to whom replies come in the order of their requests."""

    def test_other_keys_do_not_wait(self) -> None:
        """The store has them all at once; replies are in order whatever it answers first."""
        self.assertEqual(self.opaques(get(b"a", 1) + get(b"b", 2) + get(b"c", 3)), [])
        self.assertEqual(self.waiting(), 3)
        self.slow.release(2)
        self.slow.release(1)
        self.assertEqual(self.opaques(), [])
        self.slow.release()
        self.assertEqual(self.opaques(), [1, 2, 3])
        self.assertEqual(self.link.transport.writes, 1)

    def test_one_key_waits(self) -> None:
        """What is asked of one key happens in order."""
        self.link.ask(put(b"a", b"1", 1) + get(b"b", 2) + put(b"a", b"2", 3) + get(b"a", 4))
        self.assertEqual(self.waiting(), 2)
        for _ in range(4):
            self.slow.release()
        replies = self.link.responses()
        self.assertEqual([r.opaque for r in replies], [1, 2, 3, 4])
        self.assertEqual(replies[3].value, b"2")

    def test_key_in_a_collection(self) -> None:
        """With collections, 0 in front of a key is no part of it; other ids are."""
        bucket = Bucket("default", self.slow, Manifest([("scope", "collection")]))
        self.link = Link(KVServer([bucket], ServerSettings()))
        self.link.call(Opcode.HELLO, value=encode_features([Feature.COLLECTIONS]))
        self.link.ask(get(b"\0a", 1) + get(b"\x08a", 2) + get(b"\0a", 3) + get(b"\x08a", 4))
        self.assertEqual(self.waiting(), 2)
        for _ in range(4):
            self.slow.release()
        self.assertEqual(self.opaques(), [1, 2, 3, 4])
        self.link.ask(get(b"\0a", 1) + get(b"\x20a", 2))  # there is no such collection
        self.slow.release()
        self.assertEqual([r.status for r in self.link.responses()], [0, Status.UNKNOWN_COLLECTION])

    def test_place_of_a_noop(self) -> None:
        """NOOP is answered when all before it is, and holds up nothing behind it."""
        noop = encode_request(Opcode.NOOP, opaque=2)
        self.assertEqual(self.opaques(get(b"a", 1) + noop + get(b"b", 3)), [])
        self.assertEqual(self.waiting(), 2)
        self.slow.release()
        self.assertEqual(self.opaques(), [1, 2])

    def test_barriers(self) -> None:
        """What is about the connection or the whole store waits for all, and all wait for it."""
        for barrier in (
            encode_request(Opcode.STAT, opaque=2),
            encode_request(Opcode.HELLO, value=b"", opaque=2),
            encode_request(Opcode.SELECT_BUCKET, key=b"default", opaque=2),
            encode_request(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0a\0b", opaque=2),
            encode_request(Opcode.FLUSH, opaque=2),
            encode_request(0xEE, opaque=2),
            encode_request(Opcode.GET, key=b"d", framing=BARRIER, magic=0x08, opaque=2),
        ):
            self.setUp()
            self.link = self.make_link(allow_flush=True)
            self.link.ask(get(b"a", 1) + barrier + get(b"b", 3))
            self.assertEqual(self.waiting(), 1)
            self.slow.release()
            replies = self.link.responses()
            while self.waiting() and replies[-1].opaque != 3:
                self.assertEqual(self.waiting(), 1)
                self.slow.release()
                replies += self.link.responses()
            self.assertEqual(sorted({r.opaque for r in replies}), [1, 2, 3])

    def test_features_hold_from_their_reply_on(self) -> None:
        """A HELLO changes nothing for requests that were under way before it."""
        hello = encode_request(
            Opcode.HELLO, value=encode_features([Feature.MUTATION_SEQNO]), opaque=2
        )
        self.link.ask(put(b"a", opaque=1) + hello + put(b"b", opaque=3))
        self.slow.release()
        self.slow.release()
        before, _, after = self.link.responses()
        self.assertEqual((before.extras, len(after.extras)), (b"", 16))

    def test_quit(self) -> None:
        """What was asked before QUIT is answered; what comes behind it is not started."""
        self.link.ask(get(b"a", 1) + encode_request(Opcode.QUIT, opaque=2) + get(b"b", 3))
        self.assertEqual(self.waiting(), 1)
        self.assertFalse(self.link.transport.closed)
        self.slow.release()
        self.assertEqual(self.opaques(), [1, 2])
        self.assertTrue(self.link.transport.closed)

    def test_broken_stream(self) -> None:
        """What was asked before the fault is answered first."""
        self.link.ask(get(b"a", 1) + b"GARBAGE")
        self.assertFalse(self.link.transport.closed)
        self.link.ask(get(b"b", 2))
        self.slow.release()
        self.assertEqual(self.opaques(), [1])
        self.assertTrue(self.link.transport.closed)
        self.assertEqual(self.connection.errors, ["unknown magic 0x47"])

    def test_failure(self) -> None:
        """The failure of one answers that one."""
        self.link.ask(get(b"a", 1) + get(b"b", 2) + get(b"a", 3))
        self.slow.waiting.pop(0)[0].errback(OSError("disk"))
        self.slow.release()
        self.slow.release()
        found = [(r.opaque, r.status) for r in self.link.responses()]
        self.assertEqual(found, [(1, Status.INTERNAL), (2, 0), (3, 0)])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_peer_leaves(self) -> None:
        """Everything under way is cancelled, and nothing else starts."""
        self.link.ask(get(b"a") + get(b"b") + get(b"a"))
        self.link.transport.lose()
        self.assertEqual((self.slow.cancelled, self.waiting()), (2, 2))

    def test_drain(self) -> None:
        """All that was asked is answered; what comes in meanwhile is, too, and then no more."""
        self.link.ask(get(b"a", 1) + get(b"b", 2))
        drained = self.link.protocol.drain()
        self.link.ask(get(b"c", 3))
        self.assertEqual(self.waiting(), 2)
        self.slow.release(1)
        self.assertNoResult(drained)
        self.slow.release()
        self.slow.release()
        self.assertEqual(self.opaques(), [1, 2, 3])
        self.successResultOf(drained)

    def test_as_many_as_may(self) -> None:
        """Beyond the limit of requests reading stops."""
        requests = [get(b"%d" % number, number) for number in range(2 * MAX_REQUESTS)]
        self.link.ask(b"".join(requests))
        self.assertEqual(self.waiting(), MAX_REQUESTS)
        while self.waiting():
            self.slow.release(-1)
            self.assertLessEqual(self.waiting(), MAX_REQUESTS)
        self.assertEqual(self.opaques(), list(range(2 * MAX_REQUESTS)))

    def test_large_requests(self) -> None:
        """No more than `unsent_limit` bytes of requests are under way, but always one."""
        self.link = self.make_link(unsent_limit=1000)
        self.link.ask(b"".join(put(b"%d" % n, bytes(400), n) for n in range(10)))
        self.assertEqual(self.waiting(), 3)
        for _ in range(10):
            self.slow.release()
        self.assertEqual(self.opaques(put(b"k", bytes(5000), 10)), list(range(10)))
        self.assertEqual(self.waiting(), 1)

    def test_replies_that_wait(self) -> None:
        """Replies that may not leave yet count too: nothing new starts behind many of them."""
        self.link = self.make_link(unsent_limit=1000)
        self.slow.store.set(b"b", bytes(600))
        self.slow.store.set(b"c", bytes(600))
        self.link.ask(get(b"a", 1) + get(b"b", 2) + get(b"c", 3))
        self.slow.release(2)
        self.slow.release(1)
        self.link.ask(get(b"d", 4))
        self.assertEqual(self.waiting(), 1)
        self.slow.release()
        self.assertEqual(self.waiting(), 1)
        self.slow.release()
        self.assertEqual(self.opaques(), [1, 2, 3, 4])

    def test_slow_reader(self) -> None:
        """Replies that come while the transport is full wait, and count."""
        transport = ScriptedTransport(reads=False)
        self.link = Link(KVServer(self.slow, ServerSettings(unsent_limit=200_000)), transport)
        self.slow.store.set(b"a", bytes(10_000))
        self.link.ask(b"".join(get(b"a", n) for n in range(500)))
        while self.waiting():
            self.slow.release()
        # Half the limit in a turn, the transport's high-water mark, and what the window holds.
        self.assertLessEqual(transport.most_unsent, 65536 + 100_000 + 20_100)
        window = self.link.session.window
        self.assertLess(window.size, 220_000)
        while transport.unsent:
            transport.read()
            while self.waiting():
                self.slow.release()
        self.assertEqual(self.opaques(), list(range(500)))


class DistantStore:
    """A store that answers after a millisecond.

    Args:
        store: The store that knows the answers.
        clock: Tells when they come.
    """

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def get(self, key: bytes) -> Any:
        return deferLater(self._clock, 0.001, self._store.get, key)


class ThroughputTests(SynchronousTestCase):
    """What pipelining is worth in front of a store that needs a millisecond."""

    def answered(self, in_flight: int) -> int:
        """Return how many requests of one connection are answered in 100 ms."""
        clock = Clock()
        store = DistantStore(MemoryStore(clock.seconds), clock)
        link = Link(KVServer(store, later=clock.callLater))
        numbers = itertools.count()

        def ask(count: int) -> None:
            link.transport.send(b"".join(get(b"%d" % next(numbers)) for _ in range(count)))

        ask(in_flight)
        answered = 0
        for _ in range(1000):
            clock.advance(0.0001)
            replies = len(link.responses())
            answered += replies
            ask(replies)
        return answered

    def test_gain(self) -> None:
        """32 requests in flight are answered in the time of one."""
        alone = self.answered(1)
        self.assertGreater(alone, 80)
        self.assertGreaterEqual(self.answered(32), 25 * alone)


class TurnTests(_SlowTestCase):
    """Where there is a reactor, replies of one of its turns are sent together."""

    def setUp(self) -> None:
        self.clock = Clock()
        super().setUp()

    def make_link(self, **options: Any) -> Link:
        return Link(KVServer(self.slow, ServerSettings(**options), later=self.clock.callLater))

    def test_one_write(self) -> None:
        """While more are under way a reply waits for the end of the turn, the last one does not."""
        self.link.ask(get(b"a", 1) + get(b"b", 2) + get(b"c", 3) + get(b"d", 4))
        self.slow.release()
        self.slow.release()
        self.assertEqual(self.link.transport.writes, 0)
        self.clock.advance(0)
        self.assertEqual((self.opaques(), self.link.transport.writes), ([1, 2], 1))
        self.slow.release()
        self.slow.release()
        self.assertEqual((self.opaques(), self.link.transport.writes), ([3, 4], 2))
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_read_meanwhile(self) -> None:
        """What comes before the end of the turn takes the replies with it, in order."""
        self.link.ask(get(b"a", 1) + get(b"b", 2))
        self.slow.release()
        noop = encode_request(Opcode.NOOP, opaque=3)
        self.assertEqual(self.opaques(noop), [1])
        self.slow.release()
        self.assertEqual(self.opaques(), [2, 3])

    def test_gone(self) -> None:
        """No call is left of a connection that has ended."""
        self.link.ask(get(b"a", 1) + get(b"b", 2))
        self.slow.release()
        self.link.transport.lose()
        calls = [call for call in self.clock.getDelayedCalls() if not call.getTime()]
        self.assertEqual(calls, [])


class UnorderedTests(_SlowTestCase):
    """Clients that have renounced the order."""

    def setUp(self) -> None:
        super().setUp()
        self.enable()

    def enable(self) -> None:
        response = self.link.call(Opcode.HELLO, value=encode_features([Feature.UNORDERED]))
        self.assertEqual(response.value, encode_features([Feature.UNORDERED]))

    def test_overtaking(self) -> None:
        """A reply leaves as soon as it is there."""
        self.link.ask(get(b"a", 1) + get(b"b", 2) + get(b"c", 3))
        for number, opaque in ((2, 3), (0, 1), (0, 2)):
            self.slow.release(number)
            self.assertEqual(self.opaques(), [opaque])

    def test_one_key(self) -> None:
        """What is asked of one key happens, and is answered, in order."""
        self.link.ask(put(b"a", b"1", 1) + get(b"a", 2) + get(b"b", 3))
        self.slow.release(1)
        self.assertEqual(self.opaques(), [3])
        self.slow.release()
        self.slow.release()
        first, second = self.link.responses()
        self.assertEqual((first.opaque, second.opaque, second.value), (1, 2, b"1"))

    def test_what_may_not_be_reordered(self) -> None:
        """Quiet requests rely on order, and so does NOOP: they wait for all, and all for them."""
        quiet = encode_request(Opcode.GETQ, key=b"b", opaque=2)
        noop = encode_request(Opcode.NOOP, opaque=3)
        self.link.ask(get(b"a", 1) + quiet + noop + get(b"c", 4))
        for opaques in ([1], [2, 3], [4]):
            self.assertEqual(self.waiting(), 1)
            self.slow.release()
            self.assertEqual(self.opaques(), opaques)

    def test_barrier(self) -> None:
        """A request may ask to be waited for."""
        fenced = encode_request(Opcode.GET, key=b"b", framing=BARRIER, magic=0x08, opaque=2)
        self.link.ask(get(b"a", 1) + fenced + get(b"c", 3))
        for opaque in (1, 2, 3):
            self.assertEqual(self.waiting(), 1)
            self.slow.release()
            self.assertEqual(self.opaques(), [opaque])

    def test_renounced_no_more(self) -> None:
        """Another HELLO brings the order back."""
        self.link.ask(get(b"a", 1) + encode_request(Opcode.HELLO, opaque=2) + get(b"b", 3))
        self.link.ask(get(b"c", 4))
        self.slow.release()
        self.assertEqual(self.opaques(), [1, 2])
        self.slow.release(1)
        self.assertEqual(self.opaques(), [])
        self.slow.release()
        self.assertEqual(self.opaques(), [3, 4])


class TextTests(_SlowTestCase):
    """The text protocol."""

    def test_multiple_get(self) -> None:
        """The keys of one line are fetched together and answered in order."""
        self.assertEqual(self.link.ask(b"get a b missing c\r\nmn\r\n"), b"")
        self.assertEqual(self.waiting(), 4)
        while self.waiting():
            self.slow.release(-1)
        self.assertEqual(
            self.link.take(),
            b"VALUE a 0 1\r\nA\r\nVALUE b 0 1\r\nB\r\nVALUE c 0 1\r\nC\r\nEND\r\nMN\r\n",
        )

    def test_failed_get(self) -> None:
        """An error ends a retrieval, however the answers arrive; the next one is whole."""
        for order in itertools.permutations(range(3)):
            self.setUp()
            self.link.ask(b"get a b c\r\nget d\r\n")
            waiting, self.slow.waiting = self.slow.waiting, []
            for number in order:
                if number == 1:
                    waiting[1][0].errback(OSError("disk"))
                else:
                    waiting[number][0].callback(waiting[number][1])
            waiting[3][0].callback(waiting[3][1])
            self.assertEqual(
                self.link.take(),
                b"VALUE a 0 1\r\nA\r\nSERVER_ERROR internal error\r\nVALUE d 0 1\r\nD\r\nEND\r\n",
            )
            self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_order(self) -> None:
        """Other commands wait for nothing but their key, too."""
        self.link.ask(b"set a 0 0 1\r\nx\r\ndelete b\r\nget a\r\nversion\r\n")
        self.assertEqual(self.waiting(), 2)
        self.slow.release(1)
        self.slow.release()
        self.slow.release()
        answer = self.link.take()
        self.assertTrue(answer.startswith(b"STORED\r\nDELETED\r\nVALUE a 0 1\r\nx\r\nEND\r\nVERS"))

    def test_barriers(self) -> None:
        """What is about the whole store waits for all, and all wait for it."""
        self.link = self.make_link(allow_flush=True)
        for command in (b"flush_all", b"stats"):
            self.link.ask(b"get a\r\n" + command + b"\r\nget b\r\n")
            for _ in range(3):
                self.assertEqual(self.waiting(), 1)
                self.slow.release()

    def test_quit(self) -> None:
        """What was asked before is answered."""
        self.link.ask(b"get a\r\nquit\r\nget b\r\n")
        self.slow.release()
        self.assertEqual(self.link.take(), b"VALUE a 0 1\r\nA\r\nEND\r\n")
        self.assertTrue(self.link.transport.closed)


KEYS = st.sampled_from([b"a", b"b", b"c"])
REQUESTS = st.one_of(
    st.tuples(st.just(Opcode.GET), KEYS),
    st.tuples(st.just(Opcode.GETQ), KEYS),
    st.tuples(st.just(Opcode.APPEND), KEYS),
    st.tuples(st.just(Opcode.DELETE), KEYS),
    st.tuples(st.just(Opcode.SET), KEYS),
    st.tuples(st.sampled_from([Opcode.NOOP, Opcode.FLUSH]), st.just(b"")),
)


class AnyOrderTests(SynchronousTestCase):
    """A store that answers, and fails, in any order says what one that answers at once says."""

    def ask(self, link: Link, requests: list[tuple[Opcode, bytes]], read_size: int) -> None:
        data = b""
        for opaque, (opcode, key) in enumerate(requests):
            extras = bytes(8) if opcode == Opcode.SET else b""
            value = b"%d" % opaque if opcode in {Opcode.SET, Opcode.APPEND} else b""
            data += encode_request(opcode, key=key, value=value, extras=extras, opaque=opaque)
        link.transport.send(data, read_size=read_size)

    def outcome(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Return whose replies there are, and what they say; CAS differ with the order of keys."""
        frames = [frame for frame in ResponseDecoder().feed(data) if isinstance(frame, Response)]
        return [(frame.opaque, frame.status, frame.value) for frame in frames]

    @examples()
    @given(
        st.lists(REQUESTS, max_size=30),
        st.booleans(),
        st.integers(1, 200),
        st.sampled_from([30, 100, 1 << 20]),
        st.booleans(),
        st.randoms(use_true_random=False),
    )
    def test_same(
        self,
        requests: list[tuple[Opcode, bytes]],
        in_order: bool,
        read_size: int,
        limit: int,
        drains: bool,
        chance: random.Random,
    ) -> None:
        plain = Link(allow_flush=True)
        plain.server.settings = ServerSettings(allow_flush=True)
        self.ask(plain, requests, 1 << 20)
        expected = self.outcome(plain.take())

        slow = SlowStore(MemoryStore(lambda: NOW))
        options = ServerSettings(allow_flush=True, unsent_limit=limit)
        transport = ScriptedTransport(high_water=50, reads=False)
        link = Link(KVServer(slow, options), transport)
        if not in_order:
            hello = encode_request(Opcode.HELLO, value=encode_features([Feature.UNORDERED]))
            transport.send(hello)
            transport.read()
            link.take()
        self.ask(link, requests, read_size)
        drained = None
        while slow.waiting or transport.unsent:
            if drains and chance.random() < 0.1 and drained is None and not transport.arrived:
                drained = link.protocol.drain()
            if transport.unsent and (not slow.waiting or chance.random() < 0.3):
                transport.read(chance.randrange(1, 100))
            if slow.waiting:
                slow.release(chance.randrange(len(slow.waiting)))
        found = self.outcome(link.take())
        if not in_order:
            # A modern client hears no texts, and of errors only the status.
            expected = sorted((o, s, b"" if s else v) for o, s, v in expected)
            found.sort()
        self.assertEqual(found, expected)
        if drained is not None:
            self.successResultOf(drained)

    @examples()
    @given(st.lists(REQUESTS, min_size=1, max_size=30), st.randoms(use_true_random=False))
    def test_the_peer_leaves(
        self, requests: list[tuple[Opcode, bytes]], chance: random.Random
    ) -> None:
        """At any moment: what is under way is cancelled, nothing is started, nothing is kept."""
        slow = SlowStore(MemoryStore(lambda: NOW))
        link = Link(KVServer(slow, ServerSettings(allow_flush=True)))
        self.ask(link, requests, 100)
        for _ in range(chance.randrange(len(requests))):
            if slow.waiting:
                slow.release(chance.randrange(len(slow.waiting)))
        under_way = len(slow.waiting)
        window = link.session.window
        link.transport.lose()
        self.assertEqual((slow.cancelled, len(slow.waiting)), (under_way, under_way))
        self.assertEqual((window.size, window.unfinished, window._running), (0, 0, set()))
