"""One connection: replies, deadlines, cancellation, back-pressure, ends."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.client import (
    ConnectionFailedError,
    KVClientProtocol,
    NotNegotiatedError,
    OversizedReplyError,
    QueueFullError,
    RequestTimeoutError,
    StaleLoginError,
)
from kvproto.client.exchange import BatchGet, Exchange, Stats
from kvproto.client.waiting import TICK_S, WaitingRoom
from kvproto.errors import LocalProtocolError
from kvproto.interfaces import IDrainable
from kvproto.wire.binary import encode_request, encode_response
from kvproto.wire.constants import Feature, Magic, Opcode, Status
from tests.client.peer import Peer, connected, encode, settle


class ProtocolTestCase(SynchronousTestCase):
    """A connected protocol and its peer."""

    limits: dict[str, object] = {}

    def setUp(self) -> None:
        self.clock = Clock()
        self.protocol = KVClientProtocol(self.clock, **self.limits)  # type: ignore[arg-type]
        self.peer = connected(self.protocol, self.clock)

    def get(self, key: bytes = b"k", **options: object) -> Deferred[Any]:
        return self.protocol.request(Opcode.GET, key=key, **options)  # type: ignore[arg-type]

    def unanswered(self, deferred: Deferred[Any], kind: type, *, written: bool) -> str:
        error = self.failureResultOf(deferred, kind).value
        self.assertIs(error.written, written)
        return str(error)

    def assert_no_timers(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ReplyTests(ProtocolTestCase):
    """Requests find their replies."""

    def test_pipelined(self):
        """Requests are written at once, with opaques of their own."""
        for key in (b"a", b"b", b"c"):
            self.get(key)
        self.assertEqual([request.key for request in self.peer.asked], [b"a", b"b", b"c"])
        self.assertEqual(len({request.opaque for request in self.peer.asked}), 3)

    def test_any_order(self):
        """Replies in another order reach the right Deferreds."""
        asked = {key: self.get(key) for key in (b"a", b"b", b"c")}
        for request in reversed(self.peer.asked[:]):
            self.peer.reply(request, value=b"value of " + request.key)
        for key, deferred in asked.items():
            self.assertEqual(self.successResultOf(deferred).value, b"value of " + key)
        self.assertEqual(self.protocol.in_flight, 0)

    def test_byte_by_byte(self):
        """However a reply is cut, it arrives."""
        deferred = self.get()
        for byte in encode(self.peer.asked[0], value=b"hello"):
            self.assertNoResult(deferred)
            self.peer.send(bytes([byte]))
        self.assertEqual(self.successResultOf(deferred).value, b"hello")

    def test_status_is_no_error_here(self):
        """A raw request gets its reply whatever the status."""
        deferred = self.get()
        self.peer.reply(self.peer.asked[0], Status.NOT_FOUND)
        self.assertEqual(self.successResultOf(deferred).status, Status.NOT_FOUND)

    def test_unknown_opaque(self):
        """A reply to nothing ends the connection, and everything else fails with the reason."""
        deferred = self.get()
        self.peer.send(encode_response(Opcode.GET, opaque=12345))
        self.assertTrue(self.peer.aborted)
        settle(self.clock)
        reason = self.unanswered(deferred, ConnectionFailedError, written=True)
        self.assertIn("12345", reason)

    def test_second_reply(self):
        """A second reply to the same request is a reply to nothing."""
        self.get()
        request = self.peer.asked[0]
        self.peer.reply(request)
        self.peer.send(encode(request))
        self.assertTrue(self.peer.aborted)

    def test_wrong_opcode(self):
        """A reply with another opcode ends the connection."""
        deferred = self.get()
        self.peer.send(encode_response(Opcode.SET, opaque=self.peer.asked[0].opaque))
        settle(self.clock)
        self.unanswered(deferred, ConnectionFailedError, written=True)

    def test_broken_stream(self):
        """What is no reply at all ends the connection, after the replies before it."""
        first, second = self.get(b"a"), self.get(b"b")
        self.peer.send(encode(self.peer.asked[0], value=b"1") + b"HTTP/1.1 400 Bad Request\r\n")
        self.assertEqual(self.successResultOf(first).value, b"1")
        settle(self.clock)
        self.assertIn("magic", self.unanswered(second, ConnectionFailedError, written=True))

    def test_request_of_the_server(self):
        """A pushed configuration is passed over."""
        deferred = self.get()
        self.peer.send(encode_request(1, magic=Magic.SERVER_REQUEST, value=b"{}"))
        self.peer.reply(self.peer.asked[0], value=b"v")
        self.assertEqual(self.successResultOf(deferred).value, b"v")

    def test_replies_are_answered_in_one_write(self):
        """Requests that are asked while replies are read leave together."""
        for key in (b"a", b"b"):
            self.get(key).addCallback(lambda reply: self.get(b"next" + reply.value))
        written = len(self.peer.writes)
        self.peer.send(b"".join(encode(one, value=one.key) for one in self.peer.asked))
        self.assertEqual(len(self.peer.writes), written + 1)
        self.assertEqual([one.key for one in self.peer.asked[2:]], [b"nexta", b"nextb"])

    def test_large_requests_are_not_held(self):
        """Requests asked while replies are read are not gathered without bound."""
        self.get().addCallback(
            lambda _: [self.protocol.request(Opcode.SET, value=b"x" * 40_000) for _ in range(4)]
        )
        written = len(self.peer.writes)
        self.peer.send(encode(self.peer.asked[0]))
        self.assertEqual(len(self.peer.writes), written + 2)

    def test_opaques_wrap(self):
        """After the last opaque comes one that nobody uses."""
        waiting = self.get(b"old")
        self.assertEqual(self.peer.asked[0].opaque, 1)
        self.protocol._next_opaque = 2**32 - 1
        self.get(b"last")
        self.get(b"wrapped")
        self.assertEqual([request.opaque for request in self.peer.asked], [1, 2**32 - 1, 2])
        self.peer.reply(self.peer.asked[0], value=b"mine")
        self.assertEqual(self.successResultOf(waiting).value, b"mine")

    def test_stale_login(self):
        """A login that has to be repeated ends the connection, once the rest is answered."""
        stale = Exchange(Opcode.GET, lambda reply: reply, key=b"a")
        stale.deadline = 10
        deferred = stale.deferred
        self.protocol.submit(stale)
        other = self.get(b"b")
        first, second = self.peer.asked
        self.peer.reply(first, Status.AUTH_STALE)
        self.failureResultOf(deferred, StaleLoginError)
        self.assertFalse(self.peer.closing)
        self.assertFalse(self.protocol.is_open)
        self.peer.reply(second)
        self.successResultOf(other)
        self.assertTrue(self.peer.closing)


class OversizedTests(ProtocolTestCase):
    """Replies that are longer than allowed."""

    limits = {"max_body": 100}

    def test_only_its_request_fails(self):
        """The request whose reply is too long fails, the connection works on."""
        first, second = self.get(b"a"), self.get(b"b")
        one, two = self.peer.asked
        self.peer.reply(one, value=b"x" * 101)
        self.failureResultOf(first, OversizedReplyError)
        self.peer.reply(two, value=b"short")
        self.assertEqual(self.successResultOf(second).value, b"short")


class DeadlineTests(ProtocolTestCase):
    """Requests that are not answered in time."""

    def test_timeout(self):
        """A request fails at its deadline, and is known to have been written."""
        deferred = self.get(timeout_s=1)
        self.clock.advance(0.99)
        self.assertNoResult(deferred)
        self.clock.advance(0.01)
        self.unanswered(deferred, RequestTimeoutError, written=True)

    def test_late_reply(self):
        """A reply that comes too late is thrown away and shifts no other."""
        late, other = self.get(b"a", timeout_s=1), self.get(b"b", timeout_s=5)
        self.clock.advance(1)
        self.failureResultOf(late, RequestTimeoutError)
        first, second = self.peer.asked
        self.peer.reply(first, value=b"late")
        self.peer.reply(second, value=b"mine")
        self.assertEqual(self.successResultOf(other).value, b"mine")
        self.assertEqual(self.protocol.in_flight, 0)

    def test_one_timer(self):
        """A thousand requests cost one delayed call."""
        for number in range(1000):
            self.get(timeout_s=1 + number / 1000)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_shorter_deadline_later(self):
        """A deadline earlier than those before it is kept."""
        slow, quick = self.get(timeout_s=5), self.get(timeout_s=1)
        self.clock.advance(1)
        self.failureResultOf(quick, RequestTimeoutError)
        self.assertNoResult(slow)

    def test_hundreds_of_deadlines_are_few_sweeps(self):
        """When a server hangs, deadlines that are close together are dealt with together."""
        swept = []
        sweep = self.protocol._sweep
        inner = sweep._sweep

        def counting(now: float) -> float | None:
            swept.append(now)
            return inner(now)

        sweep._sweep = counting
        asked = [self.get(timeout_s=1 + number / 10_000) for number in range(1000)]
        self.clock.pump([0.001] * 1200)
        for deferred in asked:
            self.failureResultOf(deferred, RequestTimeoutError)
        self.assertLess(len(swept), 0.1 / TICK_S + 3)

    def test_timer_ends_with_the_connection(self):
        """No timer outlives the connection."""
        deferred = self.get()
        self.peer.lose()
        self.failureResultOf(deferred, ConnectionFailedError)
        self.assert_no_timers()

    def test_answered_leaves_no_timer_for_long(self):
        """With nothing outstanding, the one timer is not renewed."""
        self.get(timeout_s=1)
        self.peer.reply(self.peer.asked[0])
        self.clock.advance(1)
        self.assert_no_timers()


class SilenceTests(ProtocolTestCase):
    """Answers that do not come, and servers that say nothing at all."""

    limits = {"silence_s": 10.0}

    def test_gone(self):
        """A server that owes an answer and says nothing is left, so long after the deadline."""
        overdue = self.get(timeout_s=1)
        kept = self.get(b"b", timeout_s=60)
        self.clock.advance(1)
        self.failureResultOf(overdue, RequestTimeoutError)
        self.clock.advance(9.9)
        self.assertFalse(self.peer.aborted)
        self.clock.advance(0.1)
        self.assertTrue(self.peer.aborted)
        settle(self.clock)
        self.assertIn("silent", self.unanswered(kept, ConnectionFailedError, written=True))
        self.assert_no_timers()

    def test_slow_answer(self):
        """A request that took long without an answer does not cut those just asked."""
        slow = self.get(b"slow", timeout_s=30)
        self.clock.pump([1] * 29)
        healthy = [self.get(b"%d" % number, timeout_s=5) for number in range(100)]
        self.clock.advance(1)
        self.failureResultOf(slow, RequestTimeoutError)
        self.assertFalse(self.peer.closing)
        self.clock.advance(1)
        for request in self.peer.asked[1:]:
            self.peer.reply(request)
        for deferred in healthy:
            self.successResultOf(deferred)
        self.assertFalse(self.peer.closing)

    def test_other_answers(self):
        """When others are answered, the one that never is ends the connection for nobody."""
        lost = self.get(b"lost", timeout_s=1)
        for _ in range(10):
            self.get(b"other", timeout_s=5)
            self.clock.advance(1)
            self.peer.reply(self.peer.asked[-1])
        self.failureResultOf(lost, RequestTimeoutError)
        self.assertTrue(self.protocol.is_open)
        last = self.get(b"last", timeout_s=5)
        self.clock.advance(1)
        # Nothing new is taken, and what was asked is waited for.
        self.assertFalse(self.protocol.is_open)
        self.assertFalse(self.peer.closing)
        self.assertIn("overdue", self.unanswered(self.get(), ConnectionFailedError, written=False))
        self.peer.reply(self.peer.asked[-1])
        self.successResultOf(last)
        self.assertTrue(self.peer.closing)
        self.assertFalse(self.peer.aborted)
        settle(self.clock)
        self.assert_no_timers()

    def test_pushes_are_no_answers(self):
        """A peer that pushes other things and answers nothing does not keep the connection."""
        self.protocol._max_in_flight = 2
        asked = [self.get(timeout_s=1) for _ in range(4)]
        for _ in range(20):
            self.peer.send(encode_request(1, magic=Magic.SERVER_REQUEST, value=b"{}"))
            self.clock.advance(1)
        for deferred in asked:
            self.failureResultOf(deferred, RequestTimeoutError)
        self.assertTrue(self.peer.gone)
        self.assert_no_timers()

    def test_drain_with_an_answer_that_never_comes(self):
        """A drain waits for an answer until its deadline, not longer."""
        deferred = self.get(timeout_s=5)
        drained = self.protocol.drain()
        for _ in range(4):
            self.peer.send(encode_request(1, magic=Magic.SERVER_REQUEST, value=b"{}"))
            self.clock.advance(1)
        self.assertFalse(self.peer.closing)
        self.clock.advance(1)
        self.failureResultOf(deferred, RequestTimeoutError)
        settle(self.clock)
        self.successResultOf(drained)
        self.assert_no_timers()

    def test_drain_with_a_cancelled_request(self):
        """What was cancelled was sent all the same: its answer is waited for, for a while."""
        self.get(timeout_s=5).addErrback(lambda _: None).cancel()
        drained = self.protocol.drain()
        self.clock.advance(4)
        self.assertFalse(self.peer.closing)
        self.clock.advance(1)
        settle(self.clock)
        self.successResultOf(drained)

    def test_endless_statistics(self):
        """Statistics that never end fail, keep nothing, and wedge nothing."""
        stats = Stats(b"", 10_000)
        stats.deadline = self.clock.seconds() + 5
        deferred = stats.deferred
        self.protocol.submit(stats)
        (request,) = self.peer.asked
        for number in range(80):
            self.peer.send(encode(request, key=b"name%d" % number, value=b"x" * 100))
        assert deferred is not None
        self.failureResultOf(deferred, OversizedReplyError)
        self.assertEqual(stats.result, {})
        self.assertTrue(self.protocol.is_open)
        for _ in range(16):
            self.peer.send(encode(request, key=b"name", value=b"x"))
            self.clock.advance(1)
        self.assertTrue(self.peer.gone)

    def test_idle_before(self):
        """The time before the request does not count as silence."""
        self.clock.advance(3600)
        overdue = self.get(timeout_s=1)
        self.clock.advance(1)
        self.failureResultOf(overdue, RequestTimeoutError)
        self.clock.advance(9)
        self.assertFalse(self.peer.aborted)

    def test_within_its_deadline(self):
        """A request that may take long is waited for."""
        deferred = self.get(timeout_s=100)
        self.clock.pump([1] * 99)
        self.assertFalse(self.peer.aborted)
        self.assertNoResult(deferred)


class CancelTests(ProtocolTestCase):
    """Requests that nobody wants any more."""

    def test_written(self):
        """The reply to a cancelled request is thrown away and shifts no other."""
        gone, other = self.get(b"a"), self.get(b"b")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        first, second = self.peer.asked
        self.peer.reply(first, value=b"gone")
        self.peer.reply(second, value=b"mine")
        self.assertEqual(self.successResultOf(other).value, b"mine")

    def test_unwritten(self):
        """A request that is cancelled before it is written is never sent."""
        self.peer.fill()
        gone, other = self.get(b"a"), self.get(b"b")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertEqual(self.protocol.waiting, 1)
        self.peer.empty()
        self.assertEqual([request.key for request in self.peer.asked], [b"b"])
        self.assertNoResult(other)

    def test_by_a_callback(self):
        """A callback may cancel requests that the same read answers."""
        first, second = self.get(b"a"), self.get(b"b")
        first.addCallback(lambda _: second.cancel())
        self.peer.send(b"".join(encode(request) for request in self.peer.asked))
        self.failureResultOf(second, CancelledError)
        self.assertTrue(self.protocol.is_open)


class CancelInsideFailureTests(ProtocolTestCase):
    """Requests that are cancelled while another one fails."""

    def exchange(self, key: bytes, *needs: int) -> tuple[Exchange[Any], Deferred[Any]]:
        exchange = Exchange(Opcode.GET, lambda reply: reply, key=key, needs=needs)
        exchange.deadline = 10.0
        assert exchange.deferred is not None
        return exchange, exchange.deferred

    def test_before_and_after(self):
        """Neither one that was to be written with it nor one behind it is sent."""
        before, first = self.exchange(b"before")
        failing, failure = self.exchange(b"failing", Feature.ALT_REQUEST)
        after, last = self.exchange(b"after")
        kept, answer = self.exchange(b"kept")

        def cancel(_failure: Any) -> None:
            first.cancel()
            last.cancel()

        failure.addErrback(cancel)
        self.protocol.submit_all([before, failing, after, kept])
        for deferred in (first, last):
            self.failureResultOf(deferred, CancelledError)
        self.assertEqual([request.key for request in self.peer.asked], [b"kept"])
        self.assertEqual(self.protocol.in_flight, 1)
        self.peer.reply(self.peer.asked[0])
        self.successResultOf(answer)

    def test_batch(self):
        """A batch that is taken back leaves none of its places behind."""
        batch = BatchGet([b"a", b"b"], lambda reply: reply, None)
        batch.deadline = 10.0
        deferred = batch.deferred
        failing, failure = self.exchange(b"failing", Feature.ALT_REQUEST)
        assert deferred is not None
        failure.addErrback(lambda _: deferred.cancel())
        self.protocol.submit_all([batch, failing])
        self.failureResultOf(deferred, CancelledError)
        self.assertEqual((self.peer.writes, self.protocol.in_flight), ([], 0))

    def test_already_cancelled(self):
        """A request that was cancelled before it is submitted is passed over."""
        exchange, deferred = self.exchange(b"k")
        deferred.cancel()
        self.failureResultOf(deferred, CancelledError)
        self.protocol.submit(exchange)
        self.peer.fill()
        self.protocol.submit(exchange)
        self.assertEqual((self.peer.writes, self.protocol.waiting), ([], 0))
        WaitingRoom().add(exchange)
        self.assertIsNone(exchange.holder)


class PressureTests(ProtocolTestCase):
    """Bounds on what is under way."""

    limits = {"max_in_flight": 2}

    def setUp(self) -> None:
        self.clock = Clock()
        self.protocol = KVClientProtocol(self.clock, max_in_flight=2, unsent=WaitingRoom(3, 100))
        self.peer = connected(self.protocol, self.clock)

    def test_full_transport(self):
        """While the transport is full nothing is written; then all of it, in order, at once."""
        self.protocol._max_in_flight = 10
        self.peer.fill()
        for key in (b"a", b"b", b"c"):
            self.get(key)
        self.assertEqual(self.peer.writes, [])
        self.peer.empty()
        self.assertEqual([request.key for request in self.peer.asked], [b"a", b"b", b"c"])
        self.assertEqual(len(self.peer.writes), 1)

    def test_transport_asks_for_more_while_it_takes(self):
        """Nothing is lost when the transport is empty again within the very write."""
        self.protocol._max_in_flight = 10
        take = self.peer.write

        def write(data: bytes) -> None:
            take(data)
            if len(self.peer.writes) == 1:
                self.peer.fill()
                self.get(b"b")
                self.peer.empty()

        self.peer.write = write  # type: ignore[method-assign]
        self.peer.fill()
        self.get(b"a")
        self.peer.empty()
        self.assertEqual([request.key for request in self.peer.asked], [b"a", b"b"])

    def test_nobody_overtakes(self):
        """A request that a callback makes goes behind those that wait already."""
        self.get(b"a").addCallback(lambda _: self.get(b"late"))
        for key in (b"b", b"c"):
            self.get(key)
        self.peer.reply(self.peer.asked[0])
        self.assertEqual([request.key for request in self.peer.asked], [b"b", b"c"])

    def test_values_are_let_go(self):
        """What has been written is not kept for the time of the answer."""
        exchange = Exchange(Opcode.SET, lambda reply: reply, key=b"k", value=b"x" * 50)
        exchange.deadline = 10.0
        self.protocol.submit(exchange)
        self.assertEqual(exchange.value, b"")

    def test_transport_wants_no_more(self):
        """After the transport has asked for no more, nothing is written."""
        self.peer.producer.stopProducing()
        self.get()
        self.assertEqual(self.peer.writes, [])

    def test_in_flight(self):
        """No more than so many requests await replies; a reply makes room."""
        for key in (b"a", b"b", b"c"):
            self.get(key)
        self.assertEqual(len(self.peer.asked), 2)
        self.peer.reply(self.peer.asked[0])
        self.assertEqual([request.key for request in self.peer.asked], [b"b", b"c"])

    def test_abandoned_count(self):
        """Cancelled requests that have been written still count as in flight."""
        for deferred in (self.get(b"a"), self.get(b"b")):
            deferred.cancel()
            self.failureResultOf(deferred, CancelledError)
        self.get(b"c")
        self.assertEqual(len(self.peer.asked), 2)

    def test_queue_bound(self):
        """Beyond the bound a request fails at once."""
        for _ in range(5):
            self.get()
        self.unanswered(self.get(), QueueFullError, written=False)

    def test_byte_bound(self):
        """Large values count by their bytes, but one may always wait."""
        self.peer.fill()
        one = self.protocol.request(Opcode.SET, value=b"x" * 500)
        self.assertNoResult(one)
        two = self.protocol.request(Opcode.SET, value=b"x")
        self.unanswered(two, QueueFullError, written=False)
        one.cancel()
        self.failureResultOf(one, CancelledError)
        self.assertNoResult(self.protocol.request(Opcode.SET, value=b"x"))

    def test_deadline_while_waiting(self):
        """A request that times out unwritten says so, and is never sent."""
        self.peer.fill()
        deferred = self.get(timeout_s=1)
        self.clock.advance(1)
        self.unanswered(deferred, RequestTimeoutError, written=False)
        self.peer.empty()
        self.assertEqual(self.peer.asked, [])


class EndTests(ProtocolTestCase):
    """Connections that end."""

    def test_lost(self):
        """A loss fails everything and tells what had been written and what had not."""
        self.protocol._max_in_flight = 1
        written, unwritten = self.get(b"a"), self.get(b"b")
        self.peer.lose(ConnectionLost())
        self.assertIn("may have", self.unanswered(written, ConnectionFailedError, written=True))
        self.assertIn("not sent", self.unanswered(unwritten, ConnectionFailedError, written=False))
        self.assert_no_timers()

    def test_afterwards(self):
        """A lost connection takes no requests."""
        self.peer.lose()
        self.unanswered(self.get(), ConnectionFailedError, written=False)

    def test_unsent_are_handed_back(self):
        """Whoever listens gets the requests that were never written."""
        lost = []
        self.protocol.on_lost = lambda why, unsent: lost.append((why, unsent))
        self.peer.fill()
        deferred = self.get(b"a")
        self.peer.lose()
        ((why, (exchange,)),) = lost
        self.assertIn("lost", why)
        self.assertEqual(exchange.key, b"a")
        self.assertNoResult(deferred)

    def test_callback_asks_again(self):
        """A request made by the errback of a loss fails, too."""
        again: list[Deferred[Any]] = []
        self.get().addErrback(lambda _: again.append(self.get()))
        self.peer.lose()
        self.unanswered(again[0], ConnectionFailedError, written=False)

    def test_drain(self):
        """Draining answers what was asked, takes nothing more, and closes."""
        verifyObject(IDrainable, self.protocol)
        deferred = self.get()
        drained = self.protocol.drain()
        self.unanswered(self.get(), ConnectionFailedError, written=False)
        self.assertFalse(self.peer.closing)
        self.peer.reply(self.peer.asked[0])
        self.successResultOf(deferred)
        self.assertNoResult(drained)
        settle(self.clock)
        self.successResultOf(drained)
        self.successResultOf(self.protocol.when_closed())

    def test_drain_sends_nothing_more(self):
        """What waits to be written when draining begins is not sent any more."""
        self.protocol._max_in_flight = 2
        for key in (b"a", b"b"):
            self.get(key)
        unwritten = self.get(b"c")
        self.protocol.start_drain("enough")
        self.peer.reply(self.peer.asked[0])
        self.assertEqual([request.key for request in self.peer.asked], [b"b"])
        self.peer.reply(self.peer.asked[0])
        settle(self.clock)
        self.unanswered(unwritten, ConnectionFailedError, written=False)

    def test_drain_idle(self):
        """With nothing to wait for, draining closes at once."""
        drained = self.protocol.drain()
        settle(self.clock)
        self.successResultOf(drained)

    def test_drain_by_a_callback(self):
        """A callback may drain while its reply is being read."""
        self.get().addCallback(lambda _: self.protocol.start_drain("enough"))
        other = self.get(b"b")
        self.peer.send(b"".join(encode(request) for request in self.peer.asked))
        self.successResultOf(other)
        self.assertTrue(self.peer.closing)

    def test_abort(self):
        """Aborting fails what is in flight with the reason; later data is not read."""
        deferred = self.get()
        self.protocol.abort("enough")
        self.peer.send(encode(self.peer.asked[0]))
        self.assertNoResult(deferred)
        settle(self.clock)
        self.assertIn("enough", self.unanswered(deferred, ConnectionFailedError, written=True))
        self.protocol.abort("again")

    def test_abort_by_a_callback(self):
        """A callback may abort while its reply is being read; the rest is not read."""
        self.get().addCallback(lambda _: self.protocol.abort("enough"))
        other = self.get(b"b")
        self.peer.send(b"".join(encode(request) for request in self.peer.asked))
        settle(self.clock)
        self.unanswered(other, ConnectionFailedError, written=True)


class NegotiatedTests(ProtocolTestCase):
    """What depends on HELLO."""

    def submit(self, **fields: object) -> Deferred[Any]:
        exchange = Exchange(Opcode.GET, lambda reply: reply, key=b"key", **fields)  # type: ignore[arg-type]
        exchange.deadline = 10.0
        deferred = exchange.deferred
        assert deferred is not None
        self.protocol.submit(exchange)
        return deferred

    def test_prefix(self):
        """Keys of documents get their collection's id where it was agreed, and only there."""
        self.submit(collection=0)
        self.protocol.collections = True
        self.submit(collection=0)
        self.submit(collection=200)
        self.submit(collection=None)
        self.assertEqual(
            [request.key for request in self.peer.asked],
            [b"key", b"\0key", b"\xc8\x01key", b"key"],
        )

    def test_needs(self):
        """What was not agreed is not sent: old servers end connections for it."""
        needs = (Feature.ALT_REQUEST,)
        self.failureResultOf(self.submit(needs=needs), NotNegotiatedError)
        self.failureResultOf(self.submit(collection=8), NotNegotiatedError)
        self.assertEqual(self.peer.writes, [])
        self.protocol.features = frozenset(needs)
        self.assertNoResult(self.submit(needs=needs))

    def test_unsendable(self):
        """What does not fit the header fails alone."""
        self.failureResultOf(self.submit(cas=2**64), LocalProtocolError)
        self.assertEqual(self.protocol.in_flight, 0)


class TransportTests(SynchronousTestCase):
    """The connection's options."""

    def test_tcp(self):
        """Small requests do not wait for each other, and a vanished peer is noticed."""
        from twisted.internet.interfaces import ITCPTransport
        from zope.interface import directlyProvides

        options = []

        class TCPPeer(Peer):
            def setTcpNoDelay(self, on: bool) -> None:
                options.append(("nodelay", on))

            def setTcpKeepAlive(self, on: bool) -> None:
                options.append(("keepalive", on))

        peer = TCPPeer(Clock())
        directlyProvides(peer, ITCPTransport)
        peer.connect(KVClientProtocol(peer.clock))
        self.assertEqual(options, [("nodelay", True), ("keepalive", True)])
