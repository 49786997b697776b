"""The life of a listener: start, restart, stop, rotation, on a port of the test's."""

from __future__ import annotations

import errno
import json
import math
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.config import OnRotate
from kvproto.errors import ConfigError
from kvproto.listeners.acceptor import AcceptorService, AcceptorState
from kvproto.listeners.ledger import Ledger
from kvproto.listeners.states import Event, State
from tests.listeners.support import (
    DrainableOwner,
    FakeController,
    FakeEndpoint,
    LivelyTransport,
    Owner,
)


def cannot_listen(number: int = errno.EADDRINUSE) -> CannotListenError:
    """Return what Twisted raises when a port cannot be bound."""
    return CannotListenError("127.0.0.1", 11207, OSError(number, "the kernel's words"))


class AcceptorCase(SynchronousTestCase):
    """An acceptor with everything around it."""

    def build(self, *failures: Exception, pausable: bool = True, **options: Any) -> None:
        self.clock = Clock()
        self.ledger = Ledger(self.clock)
        self.controller = FakeController()
        self.endpoint = FakeEndpoint(*failures, pausable=pausable)
        self.acceptor = AcceptorService(
            "data",
            self.endpoint,
            self.controller,
            self.ledger,
            self.clock,
            jitter=lambda: 0.5,
            **options,
        )

    def start(self, *failures: Exception, **options: Any) -> None:
        self.build(*failures, **options)
        self.acceptor.privilegedStartService()
        self.successResultOf(self.acceptor.startService())

    def connect(self, *, polite: bool = True) -> LivelyTransport:
        transport = LivelyTransport(self.clock, polite=polite)
        self.endpoint.port.connect(transport)
        return transport

    def later(self, seconds: float) -> None:
        """Let time pass as a reactor does: in small steps."""
        for _ in range(20):
            self.clock.advance(seconds / 20)

    def assert_nothing_left(self) -> None:
        self.assertEqual(len(self.ledger), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StartTests(AcceptorCase):
    """From stopped to listening."""

    def test_is_a_service(self) -> None:
        """It is an IService."""
        self.build()
        verifyObject(IService, self.acceptor)

    def test_bound_before_it_accepts(self) -> None:
        """The port is bound with privileges, and accepts when the service starts."""
        self.build()
        self.acceptor.privilegedStartService()
        self.assertFalse(self.endpoint.port.accepting)
        self.assertTrue(self.successResultOf(self.acceptor.startService()))
        self.assertTrue(self.endpoint.port.accepting)
        self.assertEqual(len(self.endpoint.ports), 1)
        self.assertIs(self.acceptor.state, AcceptorState.LISTENING)

    def test_starts_without_privileges(self) -> None:
        """Whoever only starts it gets the same."""
        self.build()
        self.successResultOf(self.acceptor.startService())
        self.assertTrue(self.endpoint.port.accepting)

    def test_slow_endpoint(self) -> None:
        """An endpoint that takes its time is asked once."""
        self.build()
        listening: Deferred[Any] = Deferred()
        asked: list[Any] = []

        def listen(protocolFactory: IProtocolFactory) -> Deferred[Any]:
            asked.append(protocolFactory)
            return listening

        listen_now = self.endpoint.listen
        self.endpoint.listen = listen  # type: ignore[method-assign]
        self.acceptor.privilegedStartService()
        started = self.acceptor.startService()
        self.assertNoResult(started)
        listen_now(asked[0])
        listening.callback(self.endpoint.port)
        self.assertTrue(self.successResultOf(started))
        self.assertEqual(len(asked), 1)

    def test_under_a_running_parent(self) -> None:
        """A parent that runs starts it when it comes and stops it when it goes."""
        self.build()
        parent = MultiService()
        parent.startService()
        self.acceptor.setServiceParent(parent)
        self.assertIs(self.acceptor.state, AcceptorState.LISTENING)
        parent.removeService(self.acceptor)
        self.assertIs(self.acceptor.state, AcceptorState.STOPPED)

    def test_required_port_taken(self) -> None:
        """A required listener whose port is taken says so before anything runs."""
        self.build(cannot_listen(), required=True, option="--listen tcp:11207")
        error = self.assertRaises(ConfigError, self.acceptor.privilegedStartService)
        self.assertEqual(
            str(error),
            "--listen tcp:11207: cannot listen on 127.0.0.1:11207: "
            "the address is in use: another server listens there",
        )

    def test_required_port_taken_at_start(self) -> None:
        """Started without privileges, the same error comes by the Deferred."""
        self.build(cannot_listen(), required=True)
        self.failureResultOf(self.acceptor.startService(), ConfigError)
        self.assertIs(self.acceptor.state, AcceptorState.STOPPED)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_taken_port_is_tried_again(self) -> None:
        """Another listener waits longer each time, says so, and comes up by itself."""
        self.build(*[cannot_listen() for _ in range(6)])
        self.acceptor.privilegedStartService()
        started = self.acceptor.startService()
        waits = []
        while not self.endpoint.ports:
            status = self.acceptor.status()
            self.assertEqual(status["state"], "starting")
            self.assertIn("the address is in use", status["error"])
            waits.append(status["retry_in_s"])
            # The first was made with privileges, before the service started.
            self.assertEqual(status["attempts"], 1 + len(waits))
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
            self.clock.advance(waits[-1])
        self.assertEqual(waits, [0.5, 1.0, 2.0, 4.0, 8.0])
        self.assertTrue(self.successResultOf(started))
        status = self.acceptor.status()
        self.assertEqual((status["error"], status["attempts"]), ("", 0))

    def test_waits_are_bounded(self) -> None:
        """No wait is longer than the longest."""
        self.start()
        self.build(*[cannot_listen() for _ in range(30)])
        self.acceptor.startService()
        for _ in range(20):
            self.clock.advance(10)
        self.assertLessEqual(self.acceptor.status()["retry_in_s"], 10)

    def test_restart_tries_at_once(self) -> None:
        """A restart while waiting for the port makes the attempt now."""
        self.build(cannot_listen())
        started = self.acceptor.startService()
        self.assertNoResult(started)
        answer = self.successResultOf(self.acceptor.restart())
        self.assertEqual(answer["state"], "listening")
        self.assertTrue(self.successResultOf(started))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_waiting(self) -> None:
        """A stop while waiting for the port cancels the wait and answers who started."""
        self.build(cannot_listen())
        started = self.acceptor.startService()
        self.successResultOf(self.acceptor.stopService())
        self.assertFalse(self.successResultOf(started))
        self.assert_nothing_left()

    def test_giving_up_the_answer(self) -> None:
        """Who cancels the Deferred of a start gives up the answer, not the listener."""
        self.build(cannot_listen(), cannot_listen())
        given_up, waiting = self.acceptor.startService(), self.acceptor.startService()
        given_up.addErrback(lambda failure: failure.trap(CancelledError))
        given_up.cancel()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(1)
        self.assertTrue(self.successResultOf(waiting))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_port_that_breaks(self) -> None:
        """A port that cannot even be resumed is an error that everybody hears of."""
        self.build()
        self.acceptor.privilegedStartService()

        def broken() -> None:
            raise ZeroDivisionError

        self.endpoint.port.resume_accepting = broken
        self.failureResultOf(self.acceptor.startService(), ZeroDivisionError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_endpoint_with_words_of_its_own(self) -> None:
        """An endpoint that fails in its own way is tried again, its words in the status."""
        self.build(ValueError("no such descriptor"))
        started = self.acceptor.startService()
        self.assertEqual(self.acceptor.status()["error"], "cannot listen: no such descriptor")
        self.clock.advance(1)
        self.assertTrue(self.successResultOf(started))

    def test_hopeless(self) -> None:
        """What no waiting will change is not tried again."""
        self.build(cannot_listen(errno.EAFNOSUPPORT))
        self.failureResultOf(self.acceptor.startService(), ConfigError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_status_is_plain(self) -> None:
        """The status can be written as JSON and names what is documented."""
        self.start(limit=5)
        self.connect()
        status = json.loads(json.dumps(self.acceptor.status()))
        self.assertEqual(status["address"], "192.0.2.9:11207")
        self.assertEqual(status["connections"]["owned"], 1)
        self.assertEqual(
            sorted(status),
            [
                "address",
                "attempts",
                "connections",
                "error",
                "generation",
                "limit",
                "listener",
                "restarts",
                "retry_in_s",
                "state",
            ],
        )

    def test_limit_is_the_listeners(self) -> None:
        """Above it a newcomer is refused, in words."""
        self.start(limit=1)
        self.connect()
        self.ledger.authenticated(self.ledger.entries()[0], "alice")
        self.connect()
        self.assertEqual(
            [reason for _, reason in self.controller.refused],
            ["too many connections on this listener"],
        )

    def test_nobody_is_offered_before_its_handshake(self) -> None:
        """Neither behind TLS, nor behind a PROXY header, nor behind both."""
        for options in (
            {"wrap": WrappingFactory},
            {"proxy": True},
            {"wrap": WrappingFactory, "proxy": True},
        ):
            self.start(**options)
            self.connect()
            self.assertEqual(self.controller.claimed, [], options)
            self.assertEqual(self.ledger.counts()["handshaking"], 1)

    def test_proxy_header(self) -> None:
        """With it the peer is whom the header names, and what follows is the owner's."""
        self.start(proxy=True)
        transport = self.connect()
        transport.protocol.dataReceived(b"PROXY TCP4 192.0.2.66 192.0.2.9 4711 11207\r\nquestion")
        (entry,) = self.ledger.entries()
        self.assertEqual(entry.describe_peer(), "192.0.2.66:4711")
        self.assertEqual(self.controller.owners[0].received, b"question")

    def test_idleness_is_watched_where_asked(self) -> None:
        """It costs something with each read, so it is off unless wanted."""
        for options, active in (({}, math.inf), ({"watch_idle": True}, 3.0)):
            self.start(**options)
            transport = self.connect()
            self.clock.advance(3)
            transport.protocol.dataReceived(b"request")
            self.assertEqual(self.ledger.entries()[0].active, active)

    def test_changed_settings(self) -> None:
        """They hold for those who come, and for the next stop."""
        self.start(drain_timeout=0.0)
        self.acceptor.change(5.0, watch_idle=True)
        self.controller.answer = owner = DrainableOwner()
        transport = self.connect()
        self.clock.advance(3)
        transport.protocol.dataReceived(b"request")
        self.assertEqual(self.ledger.entries()[0].active, 3.0)
        self.acceptor.stopService()
        self.assertEqual(len(owner.draining), 1)


class StopTests(AcceptorCase):
    """From listening to stopped."""

    def test_stop_with_nobody(self) -> None:
        """With no connections a stop is done at once, and start works again."""
        self.start()
        self.successResultOf(self.acceptor.stopService())
        self.assertTrue(self.endpoint.port.closed)
        self.assertIs(self.acceptor.state, AcceptorState.STOPPED)
        self.successResultOf(self.acceptor.startService())
        self.assertEqual(len(self.endpoint.ports), 2)

    def test_stop_twice(self) -> None:
        """Stopping what is stopped is done at once."""
        self.start()
        self.successResultOf(self.acceptor.stopService())
        self.successResultOf(self.acceptor.stopService())

    def test_stop_answers_what_was_asked(self) -> None:
        """Owners drain, handshakes are dropped, and the stop ends with the last of them."""
        self.start()
        self.controller.answer = DrainableOwner()
        owned = self.connect()
        self.acceptor._handoffs.handshake = True
        handshaking = self.connect()
        stopped = self.acceptor.stopService()
        self.clock.advance(0)
        self.assertTrue(handshaking.aborted)
        self.assertEqual(owned.calls, [])
        self.assertEqual(len(self.controller.owners[0].draining), 1)
        self.assertNoResult(stopped)
        owned.lose()
        self.successResultOf(stopped)
        self.assert_nothing_left()

    def test_stop_is_bounded(self) -> None:
        """Peers that never answer and owners that never finish are gone at the deadline."""
        self.start(drain_timeout=10.0)
        self.controller.answer = DrainableOwner()
        stuck = self.connect(polite=False)
        stopped = self.acceptor.stopService()
        self.later(10)
        self.clock.advance(0.1)
        self.successResultOf(stopped)
        self.assertTrue(stuck.aborted)
        self.assert_nothing_left()

    def test_stop_without_drain(self) -> None:
        """With no time to drain, connections have the time of a close."""
        self.start(drain_timeout=0)
        self.connect(polite=False)
        stopped = self.acceptor.stopService()
        self.later(1)
        self.clock.advance(0.1)
        self.successResultOf(stopped)

    def test_port_that_does_not_close(self) -> None:
        """A port that never says it is closed does not hold up the stop."""
        self.start()
        self.endpoint.port.stopListening = Deferred  # type: ignore[method-assign]
        stopped = self.acceptor.stopService()
        self.later(2)
        self.clock.advance(0.1)
        self.successResultOf(stopped)
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        self.assert_nothing_left()

    def test_offer_pending(self) -> None:
        """The review's race on a whole acceptor: closed, told, nothing waits."""
        self.start()
        self.controller.answer = "later"
        offered = self.connect()
        stopped = self.acceptor.stopService()
        self.clock.advance(0)
        self.assertTrue(offered.aborted)
        self.assertEqual(self.controller.cancelled, self.controller.pending)
        self.successResultOf(stopped)
        self.assert_nothing_left()

    def test_restart_asked_for_by_who_is_stopped(self) -> None:
        """Whoever asks for a restart on hearing of the stop waits until all are gone."""
        self.start()
        asked: list[Deferred[Any]] = []

        class Asking(DrainableOwner):
            def drain(owner) -> Deferred[None]:
                asked.append(self.acceptor.restart(OnRotate.DISCONNECT))
                return super().drain()

        self.controller.answer = Asking()
        first = self.connect()
        self.controller.answer = DrainableOwner()
        second = self.connect()
        stopped = self.acceptor.stopService()
        first.lose()
        self.assertNoResult(asked[0])
        second.lose()
        self.successResultOf(stopped)
        self.assertEqual(self.successResultOf(asked[0])["state"], "stopped")
        self.assert_nothing_left()

    def test_stop_cuts_a_drain_short(self) -> None:
        """A stop during a long drain takes the time of a stop, not of the drain."""
        self.start(drain_timeout=3.0)
        self.controller.answer = DrainableOwner()
        self.connect(polite=False)
        retired = self.acceptor.retire(OnRotate.DRAIN, 2, window=600)
        stopped = self.acceptor.stopService()
        self.later(3)
        self.clock.advance(0.1)
        self.successResultOf(stopped)
        self.assertEqual(self.successResultOf(retired)["ended"], 1)
        self.assert_nothing_left()

    def test_short_drain(self) -> None:
        """However short the drain timeout, what was asked is drained for that long."""
        self.start(drain_timeout=0.5)
        self.controller.answer = owner = DrainableOwner()
        transport = self.connect()
        stopped = self.acceptor.stopService()
        self.assertEqual((len(owner.draining), transport.calls), (1, []))
        owner.draining[0].callback(None)
        transport.loseConnection()
        self.later(0.1)
        self.successResultOf(stopped)

    def test_stopping_is_told(self) -> None:
        """The status says so until the last connection is gone."""
        self.start()
        self.controller.answer = owner = DrainableOwner()
        self.connect()
        stopped = self.acceptor.stopService()
        self.assertEqual(self.acceptor.status()["state"], "stopping")
        owner.draining[0].callback(None)
        self.later(30)
        self.successResultOf(stopped)
        self.assertEqual(self.acceptor.status()["state"], "stopped")

    def test_required_port_taken_at_the_next_start(self) -> None:
        """A listener that was stopped starts like a new one: its port must be had."""
        self.start(required=True)
        self.successResultOf(self.acceptor.stopService())
        self.endpoint.failures.append(cannot_listen())
        started = self.acceptor.startService()
        self.failureResultOf(started, ConfigError)
        self.assertIs(self.acceptor.state, AcceptorState.STOPPED)


class RestartTests(AcceptorCase):
    """Listening again without having stopped."""

    def test_socket_stays_open(self) -> None:
        """Clients that connect during a restart wait, and are served after it."""
        self.start()
        old = self.connect(polite=False)
        restarted = self.acceptor.restart(OnRotate.DISCONNECT)
        self.assertIs(self.acceptor.state, AcceptorState.STOPPING)
        waiting = self.connect()
        self.assertIsNone(waiting.protocol)
        self.later(1)
        self.clock.advance(0.1)
        self.assertEqual(
            self.successResultOf(restarted),
            {"listener": "data", "state": "listening", "policy": "disconnect", "ended": 1},
        )
        self.assertTrue(old.closed)
        self.assertIs(waiting.protocol.state, State.OWNED)
        self.assertFalse(self.endpoint.port.closed)

    def test_keep(self) -> None:
        """By default a restart touches nobody, not even handshakes under way."""
        self.start()
        owned = self.connect()
        self.acceptor._handoffs.handshake = True
        handshaking = self.connect()
        self.successResultOf(self.acceptor.restart())
        self.assertEqual((owned.calls, handshaking.calls), ([], []))
        handshaking.protocol.handshakeCompleted()
        self.assertIs(handshaking.protocol.state, State.OWNED)

    def test_port_that_cannot_pause(self) -> None:
        """It is closed and opened again."""
        self.start(pausable=False)
        self.successResultOf(self.acceptor.restart())
        self.assertEqual([port.closed for port in self.endpoint.ports], [True, False])

    def test_required_port_lost_in_a_restart(self) -> None:
        """What has listened once is tried again, required or not."""
        self.start(required=True, pausable=False)
        self.endpoint.failures.append(cannot_listen())
        answer = self.successResultOf(self.acceptor.restart())
        self.assertEqual(answer["state"], "starting")
        self.clock.advance(0.5)
        self.assertIs(self.acceptor.state, AcceptorState.LISTENING)

    def test_wrap_is_built_anew(self) -> None:
        """What speaks to sockets is made again; what cannot be made changes nothing."""
        made: list[IProtocolFactory] = []

        def wrap(factory: IProtocolFactory) -> IProtocolFactory:
            if len(made) == 2:
                raise ZeroDivisionError
            made.append(WrappingFactory(factory))
            return made[-1]

        self.start(wrap=wrap)
        self.successResultOf(self.acceptor.restart())
        self.assertEqual(len(made), 2)
        self.failureResultOf(self.acceptor.restart(), ZeroDivisionError)
        self.assertIs(self.acceptor.state, AcceptorState.LISTENING)
        self.assertTrue(self.endpoint.port.accepting)

    def start_failing(self, *, pausable: bool = True) -> None:
        """Start with a factory that will fail, once, when it is started at the next restart."""

        class FailsOnce(WrappingFactory):
            def doStart(self) -> None:
                starts.append(self)
                if len(starts) == 2:
                    raise ZeroDivisionError
                super().doStart()

        starts: list[FailsOnce] = []
        self.start(wrap=FailsOnce, pausable=pausable)
        self.acceptor._handoffs.handshake = False

    def test_failing_factory(self) -> None:
        """When the new factory cannot be started, the old one serves on; the next try is free."""
        self.start_failing()
        self.failureResultOf(self.acceptor.restart(OnRotate.DISCONNECT), ZeroDivisionError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIs(self.acceptor.state, AcceptorState.LISTENING)
        self.assertTrue(self.endpoint.port.accepting)
        self.assertIs(self.connect().protocol.wrappedProtocol.state, State.OWNED)
        self.assertEqual(self.acceptor.status()["restarts"], 0)
        self.assertEqual(self.successResultOf(self.acceptor.restart())["state"], "listening")
        self.assertEqual(self.acceptor.status()["restarts"], 1)

    def test_failing_factory_and_a_port_that_cannot_pause(self) -> None:
        """Its port is closed by then: it is opened again, at a time that the status tells."""
        self.start_failing(pausable=False)
        self.assertEqual(self.successResultOf(self.acceptor.restart())["state"], "starting")
        status = self.acceptor.status()
        self.assertEqual((status["state"], status["retry_in_s"]), ("starting", 0.5))
        self.clock.advance(0.5)
        self.assertIs(self.acceptor.state, AcceptorState.LISTENING)
        self.assertTrue(self.endpoint.port.accepting)
        self.assertIs(self.connect().protocol.wrappedProtocol.state, State.OWNED)

    def test_failing_policy(self) -> None:
        """Whatever fails while newcomers wait: they are served."""
        self.start()
        owned = self.connect()

        def fire(*_arguments: object, **_options: object) -> None:
            raise ZeroDivisionError

        self.patch(owned.protocol, "fire", fire)
        self.failureResultOf(self.acceptor.restart(OnRotate.DISCONNECT), ZeroDivisionError)
        self.flushLoggedErrors(ZeroDivisionError)
        self.assertIs(self.acceptor.state, AcceptorState.LISTENING)
        self.assertIs(self.connect().protocol.state, State.OWNED)

    def test_failing_resume(self) -> None:
        """A port that fails to accept again is told to once more, after a while."""
        self.start()
        port, failures = self.endpoint.port, [ZeroDivisionError()]
        resume = port.resume_accepting

        def resume_accepting() -> None:
            if failures:
                raise failures.pop()
            resume()

        port.resume_accepting = resume_accepting
        self.assertEqual(self.successResultOf(self.acceptor.restart())["state"], "starting")
        self.clock.advance(0.5)
        self.assertIs(self.acceptor.state, AcceptorState.LISTENING)
        self.assertTrue(port.accepting)

    def test_failing_stop_of_what_served_before(self) -> None:
        """It is logged and holds nothing up."""

        class FailsToStop(WrappingFactory):
            def doStop(self) -> None:
                super().doStop()
                raise ZeroDivisionError

        self.start(wrap=FailsToStop)
        self.assertEqual(self.successResultOf(self.acceptor.restart())["state"], "listening")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stop_after_a_failed_restart(self) -> None:
        """Nothing is left of either."""
        self.start_failing(pausable=False)
        self.assertEqual(self.successResultOf(self.acceptor.restart())["state"], "starting")
        self.successResultOf(self.acceptor.stopService())
        self.assertIs(self.acceptor.state, AcceptorState.STOPPED)
        self.assert_nothing_left()

    def test_factories_are_started_and_stopped(self) -> None:
        """Each factory behind the port hears once that it is used, and once that it is not."""

        class Counting(WrappingFactory):
            def doStart(self) -> None:
                heard.append((len(made), "start"))
                super().doStart()

            def doStop(self) -> None:
                heard.append((made.index(self) + 1, "stop"))
                super().doStop()

        def wrap(factory: IProtocolFactory) -> IProtocolFactory:
            made.append(Counting(factory))
            return made[-1]

        heard: list[tuple[int, str]] = []
        made: list[Counting] = []
        self.start(wrap=wrap)
        self.successResultOf(self.acceptor.restart())
        self.successResultOf(self.acceptor.stopService())
        self.assertEqual(heard, [(1, "start"), (2, "start"), (1, "stop"), (2, "stop")])

    def test_twenty_at_once(self) -> None:
        """Twenty requests are two restarts, and each caller gets an answer."""
        self.start()
        self.connect()
        answers = [self.acceptor.restart(OnRotate.DISCONNECT) for _ in range(20)]
        self.later(3)
        for answer in answers:
            self.assertEqual(self.successResultOf(answer)["state"], "listening")
        self.assertEqual(self.acceptor.status()["restarts"], 2)

    def test_stop_during_restart(self) -> None:
        """A stop during a restart wins, and the port does not accept in between."""
        self.start()
        self.connect(polite=False)
        restarted = self.acceptor.restart(OnRotate.DISCONNECT)
        stopped = self.acceptor.stopService()
        waiting = self.connect()
        self.later(12)
        self.assertEqual(self.successResultOf(restarted)["state"], "stopping")
        self.successResultOf(stopped)
        self.assertIsNone(waiting.protocol)
        self.assert_nothing_left()

    def test_drain_accepts_meanwhile(self) -> None:
        """A restart that drains serves newcomers at once."""
        self.start()
        self.controller.answer = DrainableOwner()
        old = self.connect()
        restarted = self.acceptor.restart(OnRotate.DRAIN, window=4)
        new = self.connect()
        self.assertIs(new.protocol.state, State.OWNED)
        self.later(2)
        self.assertEqual(len(self.controller.owners[0].draining), 1)
        self.assertNoResult(restarted)
        old.lose()
        self.assertEqual(self.successResultOf(restarted)["ended"], 1)

    def test_restart_of_what_is_stopped(self) -> None:
        """Restarting a stopped listener does nothing and says so."""
        self.build()
        answer = self.successResultOf(self.acceptor.restart())
        self.assertEqual(answer["state"], "stopped")
        self.assertEqual(self.endpoint.ports, [])


class RetireTests(AcceptorCase):
    """What becomes of live connections when credentials rotate."""

    def connect_with(self, *chain: bytes, done: bool = True) -> LivelyTransport:
        self.acceptor._handoffs.handshake = True
        self.acceptor._handoffs.expires = lambda chain: None
        transport = LivelyTransport(self.clock)
        transport.chain = chain
        self.endpoint.port.connect(transport)
        if done:
            transport.protocol.handshakeCompleted()
        return transport

    @staticmethod
    def verify(chain: tuple[bytes, ...]) -> str | None:
        return "revoked" if b"bad" in chain or not chain else None

    def test_keep(self) -> None:
        """Nobody is touched, and nobody verified."""
        self.start()
        bad = self.connect_with(b"bad")
        late = self.connect_with(b"bad", done=False)
        answer = self.successResultOf(self.acceptor.retire(OnRotate.KEEP, 2, verify=self.verify))
        late.protocol.handshakeCompleted()
        self.assertEqual(
            answer,
            {"listener": "data", "policy": "keep", "generation": 2, "connections": 2, "ended": 0},
        )
        self.assertEqual((bad.calls, late.calls), ([], []))

    def test_recheck(self) -> None:
        """Those whose chain fails are closed with the reason, others notice nothing."""
        self.start()
        good, bad, nobody = self.connect_with(b"ok"), self.connect_with(b"bad"), self.connect()
        entry = bad.protocol.entry
        retired = self.acceptor.retire(OnRotate.RECHECK, 2, verify=self.verify)
        self.assertNoResult(retired)
        self.later(1)
        self.assertEqual(self.successResultOf(retired)["ended"], 1)
        self.assertEqual((good.calls, bad.calls, nobody.calls), ([], ["lose"], []))
        self.assertEqual(entry.reason, "revoked")

    def test_recheck_of_handshakes_under_way(self) -> None:
        """A handshake that began before and ends after is judged by the new trust."""
        self.start()
        good, bad = self.connect_with(b"ok", done=False), self.connect_with(b"bad", done=False)
        self.successResultOf(self.acceptor.retire(OnRotate.RECHECK, 2, verify=self.verify))
        good.protocol.handshakeCompleted()
        bad.protocol.handshakeCompleted()
        self.assertIs(good.protocol.state, State.OWNED)
        self.assertTrue(bad.aborted)
        self.assertEqual(len(self.controller.claimed), 1)

    def test_recheck_reaches_who_drains(self) -> None:
        """Who is draining when its trust is withdrawn has the time of a close left."""
        self.start()
        self.controller.answer = DrainableOwner()
        bad = self.connect_with(b"bad")
        self.acceptor.retire(OnRotate.DRAIN, 2, window=0)
        retired = self.acceptor.retire(OnRotate.RECHECK, 3, verify=self.verify)
        self.assertEqual(bad.calls, ["lose"])
        self.later(1)
        self.assertEqual(self.successResultOf(retired)["ended"], 1)

    def test_new_generation_is_not_judged_again(self) -> None:
        """A handshake with the new credentials was verified by them."""
        self.start()
        self.successResultOf(self.acceptor.retire(OnRotate.RECHECK, 2, verify=self.verify))
        new = self.connect_with(b"bad", done=False)
        new.generation = 2
        new.protocol.handshakeCompleted()
        self.assertIs(new.protocol.state, State.OWNED)

    def test_recheck_of_many_lets_others_work(self) -> None:
        """Many chains are verified in turns, not in one go."""
        self.start()
        for _ in range(100):
            self.connect_with(b"bad")
        retired = self.acceptor.retire(OnRotate.RECHECK, 2, verify=self.verify)
        self.assertLess(self.ledger.counts()["closing"], 50)
        self.later(1)
        self.assertEqual(self.successResultOf(retired)["ended"], 100)

    def test_verification_that_fails(self) -> None:
        """A peer that cannot be verified is not trusted."""

        def broken(chain: tuple[bytes, ...]) -> str | None:
            raise ZeroDivisionError

        self.start()
        self.connect_with(b"ok")
        retired = self.acceptor.retire(OnRotate.RECHECK, 2, verify=broken)
        self.later(1)
        self.assertEqual(self.successResultOf(retired)["ended"], 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_disconnect(self) -> None:
        """Everybody of the old generation goes, in parallel, within the time of one close."""
        self.start()
        transports = [self.connect(polite=False) for _ in range(50)]
        transports.append(self.connect_with(done=False))
        retired = self.acceptor.retire(OnRotate.DISCONNECT, 2)
        self.later(1)
        self.clock.advance(0.01)
        self.assertEqual(self.successResultOf(retired)["ended"], 51)
        self.assertTrue(all(transport.closed for transport in transports))
        self.successResultOf(self.acceptor.stopService())
        self.assert_nothing_left()

    def test_drain_is_spread(self) -> None:
        """Drains begin over the window, where the jitter says."""
        draws = iter([0.1, 0.9, 0.5])
        self.start()
        self.acceptor._jitter = lambda: next(draws)
        owners = []
        for _ in range(3):
            owners.append(DrainableOwner())
            self.controller.answer = owners[-1]
            self.connect()
        retired = self.acceptor.retire(OnRotate.DRAIN, 2, window=10)
        begun = []
        for _ in range(10):
            begun.append([len(owner.draining) for owner in owners])
            self.clock.advance(1)
        self.assertEqual(begun[2], [1, 0, 0])
        self.assertEqual(begun[6], [1, 0, 1])
        self.assertEqual(begun[-1], [1, 1, 1])
        self.later(10)
        self.assertEqual(self.successResultOf(retired)["ended"], 3)

    def test_drain_that_takes_too_long(self) -> None:
        """Each drain has as long as the listener's, from its own beginning; then it is ended."""
        draws = iter([0.0, 0.5])
        self.start(drain_timeout=3)
        self.acceptor._jitter = lambda: next(draws)
        transports = []
        for _ in range(2):
            self.controller.answer = DrainableOwner()
            transports.append(self.connect())
        entries = self.ledger.entries()
        retired = self.acceptor.retire(OnRotate.DRAIN, 2, window=10)
        ended = []
        for _ in range(10):
            self.later(1)
            ended.append([transport.closed for transport in transports])
        self.assertEqual(ended[1], [False, False])
        self.assertEqual(ended[4], [True, False])
        self.assertEqual(ended[6], [True, False])
        self.assertEqual(ended[-1], [True, True])
        self.assertEqual(self.successResultOf(retired)["ended"], 2)
        for entry in entries:
            self.assertEqual(entry.reason, "generation retired")

    def test_drain_at_once(self) -> None:
        """Where all drains begin at the same moment each of them does."""
        self.start()
        owners = []
        for _ in range(3):
            owners.append(DrainableOwner())
            self.controller.answer = owners[-1]
            self.connect()
        retired = self.acceptor.retire(OnRotate.DRAIN, 2, window=0)
        self.assertEqual([len(owner.draining) for owner in owners], [1, 1, 1])
        self.later(20)
        self.assertEqual(self.successResultOf(retired)["ended"], 3)

    def test_drain_that_is_over_early(self) -> None:
        """When all are gone before the window is, nothing goes on waiting."""
        self.start()
        self.controller.answer = DrainableOwner()
        transport = self.connect()
        retired = self.acceptor.retire(OnRotate.DRAIN, 2, window=600)
        transport.lose()
        self.successResultOf(retired)
        self.assert_nothing_left()

    def test_owner_told_once(self) -> None:
        """Policies that overlap end each connection once."""
        self.start()
        transport = self.connect(polite=False)
        owner: Owner = self.controller.owners[0]
        answers = [
            self.acceptor.retire(policy, 2, verify=self.verify, window=0)
            for policy in (OnRotate.DRAIN, OnRotate.DISCONNECT, OnRotate.DISCONNECT)
        ]
        transport.protocol.fire(Event.ACCEPTOR_STOPPING)
        self.later(12)
        for answer in answers:
            self.successResultOf(answer)
        self.assertEqual(len(owner.lost), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class WaitingTests(AcceptorCase):
    """Wishes that wait behind a restart."""

    def test_equal_wishes_are_one(self) -> None:
        """Who waits with the same wish shares the job, who wishes something else has his own."""
        self.start()
        self.connect().protocol.handshakeCompleted()
        first = self.acceptor.restart(OnRotate.DISCONNECT)
        waiting = [
            self.acceptor.restart(policy)
            for policy in (OnRotate.KEEP, OnRotate.KEEP, OnRotate.DRAIN)
        ]
        self.assertNoResult(first)
        self.later(5)
        self.assertEqual(self.successResultOf(first)["policy"], "disconnect")
        self.assertEqual(
            [self.successResultOf(each)["policy"] for each in waiting], ["keep", "keep", "drain"]
        )
        self.assertEqual(self.acceptor.status()["restarts"], 3)

    def test_restarted_while_stopped(self) -> None:
        """A listener that does not run has nothing to restart, and ends nothing."""
        self.build()
        report = self.successResultOf(self.acceptor.restart(OnRotate.DISCONNECT))
        self.assertEqual((report["state"], report["ended"]), ("stopped", 0))
        self.assertEqual(self.endpoint.ports, [])


class NeighbourTests(AcceptorCase):
    """Two listeners share one table of connections, and nothing else."""

    def setUp(self) -> None:
        self.start()
        self.other_endpoint = FakeEndpoint()
        self.other = AcceptorService(
            "admin", self.other_endpoint, FakeController(), self.ledger, self.clock
        )
        self.successResultOf(self.other.startService())
        self.mine = self.secured(self.endpoint)
        self.others = self.secured(self.other_endpoint)

    def secured(self, endpoint: FakeEndpoint) -> LivelyTransport:
        """Let a client connect and finish its handshake."""
        transport = LivelyTransport(self.clock)
        transport.chain = (b"certificate",)
        endpoint.port.connect(transport).handshakeCompleted()
        return transport

    def assert_mine_only(self, ended: Deferred[Any]) -> Any:
        """Assert that one connection ends, that nobody waits for the other, and no more."""
        self.later(5)
        self.assertTrue(self.mine.closed)
        self.assertEqual(self.others.calls, [])
        (entry,) = self.ledger.entries("admin")
        self.assertIs(entry.state, State.OWNED)
        return self.successResultOf(ended)

    def test_stop(self) -> None:
        """Who stops one listener ends its connections, and does not wait for others."""
        self.assert_mine_only(self.acceptor.stopService())
        self.assertIs(self.acceptor.state, AcceptorState.STOPPED)
        self.assertIs(self.other.state, AcceptorState.LISTENING)

    def test_restart(self) -> None:
        """A restart concerns one listener, with each policy that ends connections."""
        for policy in (OnRotate.DISCONNECT, OnRotate.DRAIN, OnRotate.RECHECK):
            report = self.assert_mine_only(
                self.acceptor.restart(policy, verify=lambda chain: "revoked", window=1.0)
            )
            self.assertEqual(report["ended"], 1)
            self.mine = self.secured(self.endpoint)

    def test_retire(self) -> None:
        """Of one listener, what is older than the generation goes, and what is as old stays."""
        (entry,) = self.ledger.entries("data")
        same = entry.generation
        report = self.successResultOf(self.acceptor.retire(OnRotate.DISCONNECT, same))
        self.assertEqual((report["connections"], report["ended"]), (0, 0))
        self.assertIs(entry.state, State.OWNED)
        report = self.assert_mine_only(self.acceptor.retire(OnRotate.DISCONNECT, same + 1))
        self.assertEqual((report["connections"], report["ended"]), (1, 1))

    def test_status(self) -> None:
        """Each tells of its own connections."""
        self.secured(self.endpoint)
        self.assertEqual(self.acceptor.status()["connections"]["owned"], 2)
        self.assertEqual(self.other.status()["connections"]["owned"], 1)

    def test_what_the_peers_hear(self) -> None:
        """The reason of a stop is written down with each connection that it ends."""
        (mine,) = self.ledger.entries("data")
        stopped = self.acceptor.stopService()
        self.assertEqual(mine.reason, "the listener stopped")
        self.assert_mine_only(stopped)
