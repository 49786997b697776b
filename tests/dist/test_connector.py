"""Keeping a node linked: dialling, failing, waiting, suspending."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from kvproto.dist import (
    Backoff,
    Connector,
    ConnectorState,
    FixedPorts,
    LinkRotation,
    NodeLink,
    RestartReport,
)
from kvproto.dist.framing import frame
from kvproto.errors import ConfigError
from kvproto.interfaces import ISecuredTransport
from tests.dist.endpoints import ManualEndpoint
from tests.dist.pairs import Connection, Pair, Wire, make_node


class ConnectorCase(SynchronousTestCase):
    """Our node calls erl@host; the test decides what becomes of it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.kv = make_node(self.clock)
        self.erl = make_node(self.clock, "erl@host")
        self.endpoint = ManualEndpoint()
        self.generation = 1
        self.connector = self.make()

    def make(self, locate: Any = None) -> Connector:
        return Connector(
            self.kv.node,
            "erl@host",
            locate or FixedPorts(17000).locate,
            self.endpoint,
            self.clock,
            lambda: self.generation,
            Backoff(0.1, 1.0, jitter=lambda: 0.0),
        )

    def tearDown(self) -> None:
        if self.connector.running:
            stopped = self.connector.stopService()
            self.clock.advance(1)
            self.successResultOf(stopped)
        self.assertEqual(self.connector.state, ConnectorState.STOPPED)
        for wire in self.wires():
            wire.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.kv.node.status()["dialling"], [])

    def wires(self) -> list[Wire]:
        far = [wire.other for wire in self.endpoint.wires if wire.other is not None]
        return [*self.endpoint.wires, *far]

    def answer(self) -> NodeLink:
        """Let the other node accept the connect that is under way."""
        near = self.endpoint.accept()
        far_link = NodeLink(self.erl.node, connection=Connection())
        far = Wire()
        near.other, far.other = far, near
        far.connect(far_link)
        self.flush()
        return far_link

    def flush(self) -> None:
        while any(wire.deliver() for wire in self.wires() if wire.other is not None):
            pass


class DiallingTests(ConnectorCase):
    """From start to link, and back."""

    def test_up_and_again(self) -> None:
        """It dials at once, and again shortly after the link was lost."""
        self.connector.startService()
        self.assertEqual(self.connector.state, ConnectorState.DIALLING)
        link = self.answer()
        self.assertEqual(self.endpoint.asked, [("host", 17000)])
        self.assertEqual(self.connector.state, ConnectorState.LINKED)
        self.assertEqual(self.kv.ups(), [("erl@host", True)])
        link.close("bye")
        self.flush()
        self.assertEqual(self.connector.state, ConnectorState.WAITING)
        self.clock.advance(0.1)
        self.answer()
        self.assertEqual(
            self.kv.ups(), [("erl@host", True), ("erl@host", False), ("erl@host", True)]
        )
        self.assertEqual(self.connector.status()["attempts"], 2)

    def test_refused(self) -> None:
        """Refused connects are repeated at growing intervals, with the reason in the status."""
        self.connector.startService()
        waits = []
        for _ in range(6):
            self.endpoint.refuse()
            self.assertIn("refused", self.connector.status()["problem"])
            (timer,) = self.clock.getDelayedCalls()
            waits.append(round(timer.getTime() - self.clock.seconds(), 3))
            self.clock.advance(waits[-1])
        self.assertEqual(waits, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
        self.answer()
        self.assertEqual(self.connector.problem, "")

    def test_steps(self) -> None:
        """The problem says at which step an attempt failed, and why."""
        self.connector.startService()
        self.endpoint.refuse()
        self.assertIn("connecting to host, port 17000: ", self.connector.problem)
        self.clock.advance(0.1)
        self.clock.advance(15)
        self.assertEqual(
            self.connector.problem, "connecting to host, port 17000: no answer within 15 s"
        )
        self.clock.advance(0.2)
        wire = self.endpoint.accept()
        wire.lose(ConnectionDone())
        self.assertIn("node handshake, waiting for the peer's decision", self.connector.problem)
        self.clock.advance(0.4)
        self.endpoint.accept().say(frame(b"snot_allowed"))
        self.endpoint.wires[-1].lose()
        self.assertEqual(self.connector.problem, "peer said not_allowed")
        self.clock.advance(1)
        # A certificate that is not accepted ends the connection before anything is said.
        self.endpoint.accept()
        wire = self.endpoint.wires[-1]
        wire.tls_version = lambda: ""  # type: ignore[attr-defined]
        alsoProvides(wire, ISecuredTransport)
        refusal = ConnectionLost()
        refusal.reason = "certificate has expired"  # type: ignore[attr-defined]
        wire.lose(refusal)
        self.assertEqual(self.connector.problem, "TLS handshake: certificate has expired")

    def test_wrong_cookie(self) -> None:
        """A node that leaves when it has heard our digest has another cookie."""
        self.erl = make_node(self.clock, "erl@host", cookie=b"other")
        self.connector.startService()
        self.answer()
        self.assertIn("another cookie", self.connector.problem)

    def test_one_line_for_a_problem(self) -> None:
        """A node that stays away is said once, not at each attempt."""
        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.connector.startService()
        for _ in range(5):
            self.endpoint.refuse()
            self.clock.advance(1)
        warnings = [event for event in events if event["log_level"].name == "warn"]
        self.assertEqual(len(warnings), 1)

    def test_unknown_node(self) -> None:
        """A node that nobody knows a port of, and a look-up that fails, are tried again."""
        for answer in (lambda *_: succeed(None), lambda *_: fail(ConnectError())):
            self.connector = self.make(answer)
            self.connector.startService()
            self.assertEqual(self.connector.state, ConnectorState.WAITING)
            self.assertIn("looking for its port: ", self.connector.problem)
            self.successResultOf(self.connector.stopService())

    def test_nothing_answers(self) -> None:
        """A connect, or a look-up, that leads nowhere ends after the total time of a set-up."""
        self.connector.startService()
        self.clock.advance(15)
        self.assertEqual(self.endpoint.cancelled, 1)
        self.assertEqual(self.connector.state, ConnectorState.WAITING)
        self.successResultOf(self.connector.stopService())
        cancelled: list[Any] = []
        self.connector = self.make(lambda *_: Deferred(cancelled.append))
        self.connector.startService()
        self.clock.advance(15)
        self.assertEqual(len(cancelled), 1)

    def test_silent_node(self) -> None:
        """A node that accepts and says nothing is left after the time of a step."""
        self.connector.startService()
        wire = self.endpoint.accept()
        self.clock.advance(7)
        self.assertTrue(wire.aborted)
        self.assertEqual(self.connector.state, ConnectorState.WAITING)
        self.assertIn("no answer", self.connector.problem)

    def test_peer_lost_during_handshake(self) -> None:
        """A connection that is lost half-way is another failed attempt."""
        self.connector.startService()
        self.endpoint.accept().lose()
        self.assertEqual(self.connector.state, ConnectorState.WAITING)
        self.assertEqual(self.kv.events, [])

    def test_linked_already(self) -> None:
        """A node that has come by itself is not called, until it goes."""
        pair = Pair(self.erl, self.kv)
        pair.flush()
        self.connector.startService()
        self.assertEqual(self.connector.state, ConnectorState.LINKED)
        self.assertEqual(self.endpoint.waiting, [])
        pair.far.close("bye")
        pair.flush()
        self.clock.advance(0.1)
        self.assertEqual(len(self.endpoint.waiting), 1)

    def test_called_already(self) -> None:
        """Two connectors for one node make one attempt at a time."""
        second = self.make()
        self.connector.startService()
        second.startService()
        self.assertEqual(second.state, ConnectorState.WAITING)
        self.assertEqual(len(self.endpoint.waiting), 1)
        self.answer()
        self.assertEqual(second.state, ConnectorState.LINKED)
        self.successResultOf(second.stopService())

    def test_bad_names(self) -> None:
        """A name that is none, or our own, is a mistake of the configuration."""
        for name in ("erl", "@host", "erl@", "a@b@c", "kv@host"):
            with self.assertRaises(ConfigError):
                Connector(self.kv.node, name, FixedPorts().locate, self.endpoint, self.clock)


class SimultaneousTests(ConnectorCase):
    """Both nodes call at once."""

    def test_in_each_stage(self) -> None:
        """Whatever our attempt was doing, the pair ends with one link, one nodeup each."""
        for stage in ("connecting", "connected"):
            with self.subTest(stage=stage):
                self.setUp()
                # aaa@host is the smaller name: its attempt yields.
                self.kv = make_node(self.clock, "aaa@host")
                self.connector = self.make()
                self.connector.startService()
                if stage == "connected":
                    self.endpoint.accept()
                pair = Pair(self.erl, self.kv)
                pair.flush()
                self.assertEqual(self.kv.ups(), [("erl@host", True)])
                self.assertEqual(self.erl.ups(), [("aaa@host", True)])
                self.assertEqual(self.connector.state, ConnectorState.LINKED)
                self.assertEqual(self.kv.node.status()["dialling"], [])
                self.clock.advance(2)
                self.assertEqual(self.endpoint.waiting, [])
                self.doCleanUp(pair)

    def doCleanUp(self, pair: Pair) -> None:
        self.successResultOf(self.connector.stopService())
        pair.far.close("done")
        pair.flush()
        self.tearDown()

    def test_ours_goes_first(self) -> None:
        """The greater name's attempt goes on, the other's is told nok."""
        self.connector.startService()
        pair = Pair(self.erl, self.kv)
        pair.flush()
        self.assertIn("nok", pair.near.reason)
        self.answer()
        self.assertEqual(self.kv.ups(), [("erl@host", True)])
        self.assertEqual(self.erl.ups(), [("kv@host", True)])


class SuspendTests(ConnectorCase):
    """A restart of TLS."""

    def test_each_state(self) -> None:
        """Suspended, nothing dials and nothing waits; resumed, it dials at once."""
        for state in ("waiting", "locating", "connecting", "handshake", "linked"):
            with self.subTest(state=state):
                self.setUp()
                if state == "locating":
                    self.connector = self.make(lambda *_: Deferred())
                self.connector.startService()
                if state == "waiting":
                    self.endpoint.refuse()
                elif state == "handshake":
                    self.endpoint.accept()
                elif state == "linked":
                    self.answer()
                suspended = self.connector.suspend()
                self.flush()
                self.assertIsNone(self.successResultOf(suspended))
                self.assertEqual(self.connector.state, ConnectorState.SUSPENDED)
                self.assertEqual(self.endpoint.waiting, [])
                self.assertEqual(self.clock.getDelayedCalls(), [])
                self.clock.advance(100)
                self.assertEqual(self.endpoint.waiting, [])
                self.connector.resume()
                self.assertEqual(self.connector.state, ConnectorState.DIALLING)
                self.tearDown()

    def test_frozen_peer(self) -> None:
        """A linked peer that does not answer is cut after a second."""
        self.connector.startService()
        self.answer()
        near = self.endpoint.wires[0]
        assert near.other is not None
        near.other.deaf = near.deaf = True
        suspended = self.connector.suspend()
        self.flush()
        self.clock.advance(0.9)
        self.assertNoResult(suspended)
        self.clock.advance(0.1)
        self.successResultOf(suspended)
        self.assertTrue(near.aborted)

    def test_inbound_meanwhile(self) -> None:
        """A node that comes by itself while we are suspended is not called afterwards."""
        self.connector.startService()
        self.connector.suspend()
        pair = Pair(self.erl, self.kv)
        pair.flush()
        self.connector.resume()
        self.assertEqual(self.connector.state, ConnectorState.LINKED)
        self.connector.resume()
        pair.far.close("done")
        pair.flush()

    def test_stopped(self) -> None:
        """A connector that is stopped is neither suspended nor resumed."""
        self.successResultOf(self.connector.suspend())
        self.connector.resume()
        self.assertEqual(self.connector.state, ConnectorState.STOPPED)

    def test_old_credentials(self) -> None:
        """A link that came up with credentials that were replaced meanwhile is made again."""
        self.connector.startService()
        self.kv.node.watch(lambda _: None)
        near = self.endpoint.accept()
        far = Wire()
        near.other, far.other = far, near
        self.stamp(near, 1)
        self.generation = 2
        far.connect(NodeLink(self.erl.node, connection=Connection()))
        self.flush()
        self.assertEqual(self.kv.ups(), [("erl@host", True), ("erl@host", False)])
        self.clock.advance(0.1)
        self.assertEqual(self.connector.status()["generation"], 2)

    def stamp(self, wire: Wire, generation: int) -> None:
        """Make a wire say which credentials it uses."""
        wire.generation = generation  # type: ignore[attr-defined]
        alsoProvides(wire, ISecuredTransport)


class RotationTests(ConnectorCase):
    """The whole of a restart."""

    def setUp(self) -> None:
        super().setUp()
        self.listeners: Deferred[list[str]] = Deferred()
        self.restarts = 0
        self.rotation = LinkRotation(self.kv.node, [self.connector], self.restart_listeners)

    def restart_listeners(self) -> Deferred[list[str]]:
        self.restarts += 1
        return self.listeners

    def test_all_is_well(self) -> None:
        """Links are closed while the listeners restart, and made again after that."""
        self.connector.startService()
        self.answer()
        report = self.rotation.restart()
        self.flush()
        self.assertEqual(self.kv.ups(), [("erl@host", True), ("erl@host", False)])
        self.clock.advance(5)
        self.assertEqual(self.endpoint.waiting, [])
        self.listeners.callback([])
        self.answer()
        self.assertEqual(self.successResultOf(report), RestartReport())
        self.assertTrue(RestartReport().ok)
        self.assertEqual(str(RestartReport()), "ok")

    def test_what_did_not_come_back(self) -> None:
        """Listeners that did not start and nodes that did not come back are named."""
        self.connector.startService()
        self.answer()
        report = self.rotation.restart()
        self.flush()
        self.listeners.callback(["node"])
        self.clock.advance(29)
        self.assertNoResult(report)
        self.clock.advance(1)
        result = self.successResultOf(report)
        self.assertFalse(result.ok)
        self.assertEqual(
            str(result),
            "could not start node listeners: node; could not connect to nodes: erl@host",
        )

    def test_one_at_a_time(self) -> None:
        """A second restart follows the first; a failed one lets the connectors go on."""
        self.connector.startService()
        first, second = self.rotation.restart(), self.rotation.restart()
        self.assertEqual(self.restarts, 1)
        self.listeners, failing = Deferred(), self.listeners
        failing.errback(ZeroDivisionError())
        self.failureResultOf(first, ZeroDivisionError)
        self.assertEqual(self.restarts, 2)
        self.listeners.callback([])
        self.assertTrue(self.successResultOf(second).ok)
        self.assertEqual(self.connector.state, ConnectorState.DIALLING)

    def test_restart_while_nodes_are_awaited(self) -> None:
        """A restart need not wait for nodes that the one before it lost; it awaits them too."""
        self.connector.startService()
        self.answer()
        first = self.rotation.restart()
        self.flush()
        self.listeners.callback([])
        self.clock.advance(10)
        self.listeners = succeed([])
        second = self.rotation.restart()
        self.assertEqual(self.restarts, 2)
        self.clock.advance(20)
        self.assertEqual(self.successResultOf(first).nodes, ("erl@host",))
        self.assertNoResult(second)
        self.clock.advance(10)
        self.assertEqual(self.successResultOf(second).nodes, ("erl@host",))
        third = self.rotation.restart()
        self.assertTrue(self.successResultOf(third).ok)
