"""KVClient: connecting, reconnecting, waiting requests, stopping."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.client import (
    BucketError,
    ConnectionFailedError,
    ConnectorState,
    KVClient,
    Limits,
    NotNegotiatedError,
    QueueFullError,
    RequestTimeoutError,
    SessionSettings,
    StoppedError,
    UnknownCollectionError,
    growing_delays,
)
from kvproto.client.bootstrap import derive_here
from kvproto.client.client import _default_derive
from kvproto.client.connector import STABLE_S
from kvproto.errors import ConfigError
from kvproto.wire.binary import encode_request
from kvproto.wire.collections import collection_id_extras
from kvproto.wire.constants import Feature, Magic, Opcode, Status
from tests.client.peer import Answers, Endpoint, Peer, agrees, settle

GET_HIT: dict[str, Any] = {"extras": bytes(4), "value": b"v", "cas": 1}


class ClientTestCase(SynchronousTestCase):
    """A client whose endpoint the test decides."""

    limits = Limits()
    session = SessionSettings()

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = Endpoint(self.clock)
        self.client = KVClient(
            self.endpoint, self.clock, self.session, self.limits, delays=lambda failures: failures
        )

    def up(self, answers: Answers | None = None) -> Peer:
        """Let the attempt under way succeed."""
        peer = self.endpoint.accept(agrees() if answers is None else answers)
        settle(self.clock)
        self.assertIs(self.client.state, ConnectorState.UP)
        return peer

    def unanswered(self, deferred: Deferred[Any], kind: type, *, written: bool) -> None:
        self.assertIs(self.failureResultOf(deferred, kind).value.written, written)

    def assert_stopped(self) -> None:
        self.assertIs(self.client.state, ConnectorState.STOPPED)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ConnectingTests(ClientTestCase):
    """From nothing to a connection."""

    def test_service(self):
        """It is a service."""
        verifyObject(IService, self.client)

    def test_requests_wait(self):
        """Requests wait until the login is through, then leave in one write, in order."""
        self.client.startService()
        first, second = self.client.get(b"a"), self.client.get(b"b")
        peer = self.endpoint.accept(agrees(Feature.COLLECTIONS))
        self.assertEqual(len(peer.writes), 2)
        settle(self.clock)
        self.assertEqual([request.key for request in peer.asked], [b"\0a", b"\0b"])
        self.assertEqual(len(peer.writes), 3)
        for request in peer.asked[:]:
            peer.reply(request, **GET_HIT)
        for deferred in (first, second):
            self.assertIsNotNone(self.successResultOf(deferred))

    def test_not_started(self):
        """A client that was not started refuses at once."""
        self.unanswered(self.client.get(b"k"), StoppedError, written=False)

    def test_waiting_is_bounded_in_time(self):
        """A request that waits for a connection still has its deadline."""
        self.client.startService()
        deferred = self.client.get(b"k", timeout_s=2)
        self.clock.advance(2)
        self.unanswered(deferred, RequestTimeoutError, written=False)
        peer = self.up()
        self.assertEqual(peer.asked, [])

    def test_stopped_by_a_deadline(self):
        """Whoever hears that time is up may stop the client: no timer is left."""
        self.client.startService()
        stopped = self.client.get(b"a", timeout_s=1).addErrback(lambda _: self.client.close())
        later = self.client.get(b"b", timeout_s=2)
        self.clock.advance(1)
        self.successResultOf(stopped)
        self.unanswered(later, StoppedError, written=False)
        self.assert_stopped()

    def test_cancelled_while_waiting(self):
        """A request that is cancelled before there is a connection is never sent."""
        self.client.startService()
        deferred = self.client.get(b"k")
        deferred.cancel()
        self.failureResultOf(deferred, CancelledError)
        self.assertEqual(self.up().asked, [])

    def test_retries(self):
        """A server that is not there is dialled again; requests wait on."""
        self.client.startService()
        deferred = self.client.get(b"k", timeout_s=60)
        impatient = self.client.get(b"k", timeout_s=1)
        for failures in (1, 2, 3):
            self.endpoint.refuse(ConnectionRefusedError())
            self.assertIs(self.client.state, ConnectorState.WAITING)
            self.clock.advance(failures - 0.1)
            self.assertEqual(self.endpoint.attempts, [])
            self.clock.advance(0.1)
        peer = self.up()
        peer.reply(peer.asked[0], **GET_HIT)
        self.assertIsNotNone(self.successResultOf(deferred))
        # Who could not wait so long hears what the matter was.
        self.assertIn("refused", str(self.failureResultOf(impatient, RequestTimeoutError).value))

    def test_dialling_is_bounded(self):
        """An attempt that takes too long is given up, and another one follows."""
        self.client.startService()
        self.clock.advance(10)
        self.assertEqual(self.endpoint.cancelled, 1)
        self.clock.advance(1)
        self.assertEqual(len(self.endpoint.attempts), 1)

    def test_login_is_bounded(self):
        """A server that accepts connections and says nothing is left."""
        self.client.startService()
        peer = self.endpoint.accept({})
        self.clock.advance(10)
        settle(self.clock)
        self.assertTrue(peer.aborted)
        self.assertIs(self.client.state, ConnectorState.WAITING)

    def test_lost_during_login(self):
        """A connection that is lost while HELLO is under way is an attempt that failed."""
        self.client.startService()
        peer = self.endpoint.accept({})
        peer.lose(ConnectionLost())
        settle(self.clock)
        self.assertIs(self.client.state, ConnectorState.WAITING)
        self.clock.advance(1)
        self.up()

    def test_timer_ends_with_success(self):
        """The attempt's timer does not outlive it."""
        self.client.startService()
        self.up()
        self.clock.advance(100)
        self.assertIs(self.client.state, ConnectorState.UP)


class NoHelloTests(ClientTestCase):
    """Connections that nothing is arranged on."""

    session = SessionSettings(features=())

    def test_lost_at_once(self):
        """A connection that is lost before it was ours is an attempt that failed."""
        self.client.startService()
        factory, attempt = self.endpoint.attempts.pop()
        peer = Peer(self.clock)
        protocol = peer.connect(factory.buildProtocol(None))
        peer.lose()
        attempt.callback(protocol)
        self.assertIs(self.client.state, ConnectorState.WAITING)


class RefusedTests(ClientTestCase):
    """Servers that do not let us in."""

    session = SessionSettings(bucket="things")

    def test_waiting_requests_fail(self):
        """What waits is told why, instead of waiting on; the client tries again all the same."""
        self.client.startService()
        one, two = self.client.get(b"a"), self.client.get(b"b")
        refusing: Answers = {
            **agrees(),
            Opcode.SELECT_BUCKET: lambda request: {"status": Status.NO_ACCESS},
        }
        peer = self.endpoint.accept(refusing)
        settle(self.clock)
        errors = [self.failureResultOf(deferred, BucketError).value for deferred in (one, two)]
        self.assertIsNot(errors[0], errors[1])
        self.assertTrue(peer.gone)
        self.clock.advance(1)
        self.up({**agrees(), Opcode.SELECT_BUCKET: lambda request: {}})


class TextTests(ClientTestCase):
    """What errors say does not contradict itself."""

    def test_waiting_for_a_login(self):
        """That the login was sent says nothing of the request that waited for it."""
        self.client.startService()
        waiting = self.client.get(b"k", timeout_s=60)
        self.clock.advance(0)
        self.endpoint.accept({}).lose(ConnectionLost())
        late = self.client.get(b"j", timeout_s=0.01)
        self.clock.advance(0.1)
        text = str(self.failureResultOf(late, RequestTimeoutError).value)
        self.assertIn("the connection was lost", text)
        self.assertEqual((text.count("not sent"), text.count("carried out")), (1, 0))
        waiting.addErrback(lambda _: None).cancel()

    def test_dialling_timeout(self):
        """Nor is it said twice that a request was not sent."""
        self.client.startService()
        self.clock.advance(self.limits.dial_timeout_s)
        waiting = self.client.get(b"k", timeout_s=0.5)
        self.clock.advance(0.5)
        text = str(self.failureResultOf(waiting, RequestTimeoutError).value)
        self.assertIn("no connection ready for work", text)
        self.assertEqual(text.count("not sent"), 1)


class LosingTests(ClientTestCase):
    """Connections that are lost."""

    limits = Limits(max_in_flight=1, max_waiting=2)

    def setUp(self) -> None:
        super().setUp()
        self.client.startService()
        self.peer = self.up()

    def test_written_and_unwritten(self):
        """What was written fails; what was not is sent on the next connection."""
        written, unwritten = self.client.get(b"a"), self.client.get(b"b")
        self.peer.lose(ConnectionLost())
        self.unanswered(written, ConnectionFailedError, written=True)
        self.assertNoResult(unwritten)
        self.clock.advance(1)
        peer = self.up()
        self.assertEqual([request.key for request in peer.asked], [b"b"])
        peer.reply(peer.asked[0], **GET_HIT)
        self.assertIsNotNone(self.successResultOf(unwritten))

    def test_cancelled_by_a_loss(self):
        """What an errback of the loss cancels is not sent on the next connection."""
        self.client.get(b"written").addErrback(lambda _: None)
        self.client._collections[b"s.c"] = 8
        doomed: list[Deferred[Any]] = []
        other = self.client.collection("s", "c").get(b"k").addErrback(lambda _: doomed[0].cancel())
        last = self.client.get(b"last")
        doomed.append(last)
        self.peer.lose()
        self.successResultOf(other)
        self.failureResultOf(last, CancelledError)
        self.clock.advance(1)
        peer = self.up()
        self.assertEqual((peer.asked, len(self.client._waiting)), ([], 0))

    def test_cancelled_by_a_failure_on_the_next(self):
        """So it is when something fails on the next connection."""
        self.peer.lose()
        failing = self.client.set(b"a", b"", preserve_expiry=True)
        last = self.client.get(b"b")
        failing.addCallbacks(lambda _: None, lambda _: last.cancel())
        self.clock.advance(1)
        peer = self.up()
        self.failureResultOf(last, CancelledError)
        self.assertEqual(peer.asked, [])

    def test_answer_that_never_comes(self):
        """A server that answers others gets a new connection for what comes later."""
        self.client.get(b"lost", timeout_s=1).addErrback(lambda _: None)
        self.peer.send(b"")
        for _ in range(12):
            self.peer.send(encode_request(1, magic=Magic.SERVER_REQUEST, value=b"{}"))
            self.clock.advance(1)
        settle(self.clock)
        self.assertTrue(self.peer.gone)
        found = self.client.get(b"later")
        self.clock.advance(1)
        peer = self.up()
        peer.reply(peer.asked[0], **GET_HIT)
        self.assertIsNotNone(self.successResultOf(found))

    def test_kept_deadline(self):
        """A request that changes connections keeps its deadline."""
        self.client.get(b"a").addErrback(lambda _: None)
        deferred = self.client.get(b"b", timeout_s=2)
        self.clock.advance(1)
        self.peer.lose()
        self.clock.advance(1)
        self.unanswered(deferred, RequestTimeoutError, written=False)

    def test_bound_without_connection(self):
        """What waits for a connection is bounded in number."""
        self.peer.lose()
        waiting = [self.client.get(b"k") for _ in range(2)]
        self.unanswered(self.client.get(b"k"), QueueFullError, written=False)
        for deferred in waiting:
            self.assertNoResult(deferred)

    def test_short_lived(self):
        """Connections that end soon are dialled with growing delays."""
        for failures in (1, 2, 3):
            self.endpoint.peers[-1].lose()
            self.clock.advance(failures - 0.1)
            self.assertEqual(self.endpoint.attempts, [])
            self.clock.advance(0.1)
            self.up()

    def test_long_lived(self):
        """After a connection that held, delays begin anew."""
        self.peer.lose()
        self.clock.advance(1)
        second = self.up()
        self.clock.advance(STABLE_S)
        second.lose()
        self.clock.advance(1)
        self.assertEqual(len(self.endpoint.attempts), 1)

    def test_errback_asks_again(self):
        """A request repeated by the errback of a loss waits for the next connection."""
        again = self.client.get(b"a").addErrback(lambda _: self.client.get(b"a"))
        self.peer.lose()
        self.assertNoResult(again)
        self.clock.advance(1)
        peer = self.up()
        peer.reply(peer.asked[0], **GET_HIT)
        self.assertIsNotNone(self.successResultOf(again))

    def test_stale_login(self):
        """A login that has to be repeated is repeated, on a new connection."""
        deferred = self.client.get(b"a")
        self.peer.reply(self.peer.asked[0], Status.AUTH_STALE)
        self.failureResultOf(deferred)
        settle(self.clock)
        self.clock.advance(1)
        self.up()


class StoppingTests(ClientTestCase):
    """Ends that are bounded and leave nothing behind."""

    def test_never_started(self):
        """Closing what was never started is done at once."""
        self.successResultOf(self.client.close())

    def test_idle(self):
        """An idle connection is closed in an orderly way."""
        self.client.startService()
        peer = self.up()
        closed = self.client.close()
        settle(self.clock)
        self.successResultOf(closed)
        self.assertFalse(peer.aborted)
        self.assertIsNone(self.client.protocol)
        self.assert_stopped()

    def test_outstanding(self):
        """Outstanding replies are waited for; new requests are refused."""
        self.client.startService()
        peer = self.up()
        deferred = self.client.get(b"k")
        closed = self.client.close()
        self.unanswered(self.client.get(b"k"), StoppedError, written=False)
        self.assertNoResult(closed)
        peer.reply(peer.asked[0], **GET_HIT)
        self.assertIsNotNone(self.successResultOf(deferred))
        settle(self.clock)
        self.successResultOf(closed)
        self.assert_stopped()

    def test_replies_that_do_not_come(self):
        """Replies that do not come are not waited for longer than promised."""
        self.client.startService()
        peer = self.up()
        deferred = self.client.get(b"k", timeout_s=60)
        closed = self.client.close()
        self.clock.advance(3)
        settle(self.clock)
        self.unanswered(deferred, ConnectionFailedError, written=True)
        self.successResultOf(closed)
        self.assertTrue(peer.aborted)
        self.assert_stopped()

    def test_peer_that_does_not_close(self):
        """A peer that never notices the end is left behind."""
        self.client.startService()
        peer = self.up()
        peer.deaf = True
        closed = self.client.close()
        self.clock.advance(3)
        settle(self.clock)
        self.successResultOf(closed)
        self.assert_stopped()

    def test_unsent(self):
        """What was not written fails when the client stops."""
        self.client.startService()
        peer = self.up()
        peer.fill()
        deferred = self.client.get(b"k")
        closed = self.client.close()
        settle(self.clock)
        self.unanswered(deferred, StoppedError, written=False)
        self.successResultOf(closed)

    def test_while_dialling(self):
        """An attempt under way is cancelled, and what waits for it fails."""
        self.client.startService()
        deferred = self.client.get(b"k")
        closed = self.client.close()
        self.unanswered(deferred, StoppedError, written=False)
        self.successResultOf(closed)
        self.assertEqual(self.endpoint.cancelled, 1)
        self.assert_stopped()

    def test_by_the_first_step_of_an_attempt(self):
        """A client that is closed by the very call that connects it ends up closed."""
        closed: list[Deferred[None]] = []

        class Closing(Endpoint):
            def connect(self, protocolFactory: Any) -> Deferred[Any]:
                attempt = super().connect(protocolFactory)
                closed.append(client.close())
                self.accept(agrees())
                return attempt

        client = KVClient(Closing(self.clock), self.clock, SessionSettings(features=()))
        client.startService()
        settle(self.clock)
        self.successResultOf(closed[0])
        self.assertIs(client.state, ConnectorState.STOPPED)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_while_logging_in(self):
        """A login under way is ended, and its connection is gone before we say so."""
        self.client.startService()
        peer = self.endpoint.accept({})
        closed = self.client.close()
        self.assertNoResult(closed)
        settle(self.clock)
        self.successResultOf(closed)
        self.assertTrue(peer.gone)
        self.assert_stopped()

    def test_while_waiting(self):
        """The wait for the next attempt is cancelled."""
        self.client.startService()
        self.endpoint.refuse(ConnectionRefusedError())
        self.successResultOf(self.client.close())
        self.assert_stopped()

    def test_twice(self):
        """Whoever asks to stop hears when it is done."""
        self.client.startService()
        self.up()
        first, second = self.client.close(), self.client.close()
        settle(self.clock)
        self.successResultOf(first)
        self.successResultOf(second)

    def test_started_again(self):
        """A client that has stopped can be started again."""
        self.client.startService()
        self.up()
        self.client.close()
        settle(self.clock)
        self.client.startService()
        self.up()

    def test_started_while_stopping(self):
        """A start while stopping comes true afterwards."""
        self.client.startService()
        self.up()
        closed = self.client.close()
        self.client.startService()
        settle(self.clock)
        self.successResultOf(closed)
        self.up()


class CollectionTests(ClientTestCase):
    """Named collections."""

    def connect(self, number: int = 9) -> Peer:
        def answer(request: Any) -> dict[str, Any]:
            self.asked_for.append(request.value)
            return {"extras": collection_id_extras(1, number)}

        self.asked_for: list[bytes] = []
        return self.up({**agrees(Feature.COLLECTIONS), Opcode.GET_COLLECTION_ID: answer})

    def test_id_is_asked_once(self):
        """The id is asked for once a connection, and goes in front of the key."""
        self.client.startService()
        peer = self.connect()
        things = self.client.collection("shop", "things")
        for _ in range(2):
            deferred = things.get(b"k")
            settle(self.clock)
            self.assertEqual(peer.asked[0].key, b"\x09k")
            peer.reply(peer.asked[0], **GET_HIT)
            self.assertIsNotNone(self.successResultOf(deferred))
        self.assertEqual(self.asked_for, [b"shop.things"])

    def test_new_connection_new_id(self):
        """Another connection is asked again: the id may be another."""
        self.client.startService()
        first = self.connect(9)
        things = self.client.collection("shop", "things")
        things.get(b"k").addErrback(lambda _: None)
        settle(self.clock)
        first.lose()
        again = things.get(b"k")
        self.clock.advance(1)
        second = self.connect(10)
        self.assertEqual([request.key for request in second.asked], [b"\x0ak"])
        self.assertNoResult(again)

    def test_unsent_is_not_moved(self):
        """A request with an id is not sent on a connection that did not give it."""
        self.client.startService()
        peer = self.connect()
        things = self.client.collection("shop", "things")
        things.get(b"k").addErrback(lambda _: None)
        settle(self.clock)
        peer.fill()
        deferred = things.set(b"k", b"v")
        settle(self.clock)
        peer.lose()
        self.unanswered(deferred, ConnectionFailedError, written=False)

    def test_many(self):
        """A batch has the prefix, too, and results without it."""
        self.client.startService()
        peer = self.connect()
        found = self.client.collection("shop", "things").get_many([b"a"])
        settle(self.clock)
        hit, end = peer.asked
        self.assertEqual(hit.key, b"\x09a")
        peer.reply(hit, **GET_HIT)
        peer.reply(end)
        results: dict[bytes, Any] = self.successResultOf(found)
        self.assertEqual(list(results), [b"a"])

    def test_made_anew(self):
        """An id that the server does not know any more is asked for again."""
        self.client.startService()
        peer = self.connect()
        things = self.client.collection("shop", "things")
        for _ in range(2):
            deferred = things.delete(b"k")
            settle(self.clock)
            peer.reply(peer.asked[0], Status.UNKNOWN_COLLECTION, value=b'{"manifest_uid":"2"}')
            self.failureResultOf(deferred, UnknownCollectionError)
        self.assertEqual(len(self.asked_for), 2)

    def test_not_negotiated(self):
        """A server without collections is told apart from one without this collection."""
        self.client.startService()
        self.up()
        deferred = self.client.collection("shop", "things").get(b"k")
        self.failureResultOf(deferred, NotNegotiatedError)

    def test_timeout(self):
        """Asking for the id counts towards the request's time."""
        self.client.startService()
        self.up(agrees(Feature.COLLECTIONS))
        deferred = self.client.collection("shop", "things").get(b"k", timeout_s=1)
        self.clock.advance(1)
        self.failureResultOf(deferred, RequestTimeoutError)

    def test_no_time_left(self):
        """A request whose time was up when the id came is not sent."""
        self.client.startService()
        peer = self.up(agrees(Feature.COLLECTIONS))
        deferred = self.client.collection("shop", "things").get(b"k", timeout_s=1)
        # The id comes in the same turn of the reactor as the deadline, before it.
        self.clock.rightNow += 1
        peer.reply(peer.asked[0], extras=collection_id_extras(1, 9))
        self.unanswered(deferred, RequestTimeoutError, written=False)
        self.assertEqual(peer.asked, [])

    def test_cancelled(self):
        """A request can be cancelled while its collection's id is being asked for."""
        self.client.startService()
        peer = self.up(agrees(Feature.COLLECTIONS))
        deferred = self.client.collection("shop", "things").get(b"k")
        deferred.cancel()
        self.failureResultOf(deferred, CancelledError)
        peer.reply(peer.asked[0], extras=collection_id_extras(1, 9))
        self.assertEqual(peer.asked, [])


class SettingsTests(SynchronousTestCase):
    """Values that check themselves."""

    def test_limits(self):
        """Nothing is unbounded: limits are numbers above 0."""
        for number in (0, -1, float("inf"), float("nan")):
            self.assertRaises(ConfigError, Limits, timeout_s=number)

    def test_delays(self):
        """Delays double up to a bound; jitter takes up to a half off."""
        delay = growing_delays(0.1, 10, jitter=lambda: 0.0)
        self.assertEqual([delay(n) for n in (1, 2, 3)], [0.1, 0.2, 0.4])
        self.assertEqual(delay(10_000), 10)
        self.assertEqual(growing_delays(0.1, 10, jitter=lambda: 1.0)(1), 0.05)

    def test_derive(self):
        """PBKDF2 runs in a thread where there are threads."""
        from twisted.internet import reactor

        self.assertIs(_default_derive(Clock()), derive_here)
        self.assertIsNot(_default_derive(reactor), derive_here)
