"""Connections that end for their age."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.listeners.ages import LONGEST_PAUSE, SPREAD, AgeLimits
from kvproto.listeners.states import LIVE_STATES, State
from tests.listeners.support import AnsweringOwner, Bench


class AgeTests(SynchronousTestCase):
    """A ledger with some connections."""

    def setUp(self) -> None:
        self.bench = Bench()
        self.clock = self.bench.clock

    def watch(self, idle: float = 0.0, lifetime: float = 0.0, jitter: float = 0.0) -> AgeLimits:
        ages = AgeLimits(self.bench.ledger, ["data"], idle, lifetime, self.clock, lambda: jitter)
        ages.startService()
        self.addCleanup(ages.stopService)
        return ages

    def test_nothing_to_do(self) -> None:
        """Without a limit there is no timer, and none is left after a stop."""
        self.watch()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        ages = self.watch(idle=1.0)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        ages.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_idle(self) -> None:
        """Who asks stays; who does not ends with the reason, and is counted under it."""
        self.bench.factory.watch_idle = True
        asking, _ = self.bench.connect()
        silent, transport = self.bench.connect()
        for handoff in (asking, silent):
            handoff.handshakeCompleted()
        self.watch(idle=60.0)
        for _ in range(12):
            self.clock.advance(10)
            asking.dataReceived(b"x")
        self.assertIs(asking.state, State.OWNED)
        self.assertNotIn(silent.state, LIVE_STATES)
        self.assertEqual(silent.entry.reason, "idle for 60 s")
        self.assertEqual(transport.calls[0], "lose")
        self.assertEqual(self.bench.ledger.ended_by["data", "idle"], 1)

    def test_half_a_request(self) -> None:
        """A peer that drips half a request is idle."""
        self.bench.factory.watch_idle = True
        handoff, _ = self.bench.connect()
        handoff.handshakeCompleted()
        (owner,) = self.bench.controller.owners
        owner.partial = True
        self.watch(idle=60.0)
        for _ in range(7):
            self.clock.advance(10)
            handoff.dataReceived(b"x")
        self.assertNotIn(handoff.state, LIVE_STATES)

    def test_asked_in_place(self) -> None:
        """An owner that answers in place is watched there; half a request does not count."""
        self.bench.factory.watch_idle = True
        asking, dripping, pipelining = (self.bench.connect()[0] for _ in range(3))
        for handoff in (asking, dripping, pipelining):
            self.bench.controller.answer = AnsweringOwner()
            handoff.handshakeCompleted()
        _, dripped, piped = self.bench.controller.owners
        dripped.partial = piped.partial = True
        self.watch(idle=60.0)
        for _ in range(12):
            self.clock.advance(10)
            for handoff, data, sent in (
                (asking, b"request", [b"request"]),
                (dripping, b"", []),
                (pipelining, b"request and half", [b"request and half"]),
            ):
                replies: list[bytes] = []
                if handoff.answer is not None:
                    self.assertEqual(handoff.answer(data, replies), len(data))
                    self.assertEqual(replies, sent)
        self.assertIs(asking.state, State.OWNED)
        self.assertIs(pipelining.state, State.OWNED)
        self.assertNotIn(dripping.state, LIVE_STATES)

    def test_asked_and_nothing_to_say(self) -> None:
        """A whole request that wants no answer is a request, too."""
        self.bench.factory.watch_idle = True
        handoff, _ = self.bench.connect()
        self.bench.controller.answer = AnsweringOwner()
        handoff.handshakeCompleted()
        self.watch(idle=60.0)
        for _ in range(12):
            self.clock.advance(10)
            assert handoff.answer is not None
            handoff.answer(b"", [])
        self.assertIs(handoff.state, State.OWNED)

    def test_lifetime(self) -> None:
        """An old connection is drained; chance makes its life shorter, by a tenth at most."""
        for jitter in (0.0, 0.5, 1.0):
            handoff, _ = self.bench.connect()
            handoff.handshakeCompleted()
            ages = self.watch(lifetime=1000.0, jitter=jitter)
            self.clock.pump([LONGEST_PAUSE] * int(1000 * (1 - SPREAD * jitter) / LONGEST_PAUSE - 1))
            self.assertIs(handoff.state, State.OWNED)
            self.clock.pump([LONGEST_PAUSE] * 2)
            self.assertNotIn(handoff.state, LIVE_STATES)
            self.assertEqual(handoff.entry.reason, "older than 1000 s")
            ages.stopService()

    def test_often_enough(self) -> None:
        """It is looked ten times within the shortest limit, and never at once."""
        looks: list[float] = []

        def entries() -> list[Any]:
            looks.append(self.clock.seconds())
            return []

        self.patch(self.bench.ledger, "entries", entries)
        self.watch(idle=10.0, lifetime=1000.0)
        self.clock.pump([0.25] * 8)
        self.assertEqual(looks, [1.0, 2.0])

    def test_to_the_second(self) -> None:
        """A limit that is reached is over, for idle ones and for old ones."""
        for limits, reason in (
            ({"idle": 10.0}, "idle for 10 s"),
            ({"lifetime": 10.0}, "older than 10 s"),
        ):
            handoff, _ = self.bench.connect()
            handoff.handshakeCompleted()
            handoff.entry.active = self.clock.seconds()
            ages = self.watch(**limits)
            self.clock.pump([1.0] * 9)
            self.assertIs(handoff.state, State.OWNED)
            self.clock.advance(1.0)
            self.assertEqual(handoff.entry.reason, reason)
            ages.stopService()

    def test_life_is_drawn_once(self) -> None:
        """Chance decides once for each connection, not anew at every look."""
        drawn = iter([0.0, 0.5])
        ages = AgeLimits(self.bench.ledger, ["data"], 0.0, 1000.0, self.clock, lambda: next(drawn))
        ages.startService()
        self.addCleanup(ages.stopService)
        first, second = (self.bench.connect()[0] for _ in range(2))
        for handoff in (first, second):
            handoff.handshakeCompleted()
        self.clock.pump([5.0] * 190)
        self.assertEqual(second.entry.reason, "older than 1000 s")
        self.assertIs(first.state, State.OWNED)
        self.clock.pump([5.0] * 10)
        self.assertEqual(first.entry.reason, "older than 1000 s")

    def test_one_does_not_hide_the_next(self) -> None:
        """Connections of others, and idle ones that end, leave nobody behind them unseen."""
        self.bench.factory.watch_idle = True
        handoffs = [self.bench.connect()[0] for _ in range(5)]
        for handoff in handoffs[1:]:
            handoff.handshakeCompleted()
        handoffs[1].entry.listener = "node"
        self.watch(idle=5.0, lifetime=1000.0)
        self.clock.pump([0.5] * 10)
        states = [handoff.state for handoff in handoffs]
        self.assertEqual(states[:2], [State.HANDSHAKING, State.OWNED])
        self.assertTrue(all(state not in LIVE_STATES for state in states[2:]), states)

    def test_changed(self) -> None:
        """Other limits count at once, but not being idle where nobody has watched for that."""
        before, _ = self.bench.connect()
        before.handshakeCompleted()
        ages = self.watch()
        self.bench.factory.watch_idle = True
        ages.change(60.0, 0.0)
        after, _ = self.bench.connect()
        after.handshakeCompleted()
        self.clock.pump([5.0] * 11)
        self.assertIs(after.state, State.OWNED)
        ages.change(50.0, 0.0)
        self.clock.advance(5.0)
        self.assertNotIn(after.state, LIVE_STATES)
        self.clock.pump([5.0] * 20)
        self.assertIs(before.state, State.OWNED)
        ages.change(0.0, 100.0)
        self.clock.advance(5.0)
        self.assertEqual(before.entry.reason, "older than 100 s")
        self.clock.pump([1.0] * 5)
        ages.change(0.0, 0.0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        ages.stopService()
        ages.change(1.0, 1.0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_longer_life(self) -> None:
        """Whose end was drawn from a shorter life lives as long as the new one says."""
        connected, _ = self.bench.connect()
        connected.handshakeCompleted()
        ages = self.watch(lifetime=100.0)
        self.clock.pump([5.0] * 10)
        ages.change(0.0, 1000.0)
        self.clock.pump([5.0] * 100)
        self.assertIs(connected.state, State.OWNED)
        self.clock.pump([5.0] * 100)
        self.assertNotIn(connected.state, LIVE_STATES)
        ages.stopService()

    def test_others(self) -> None:
        """Handshakes have a deadline of their own, and other listeners are not meant."""
        other, _ = self.bench.connect()
        handshaking, _ = self.bench.connect()
        other.handshakeCompleted()
        other.entry.listener = "node"
        self.watch(idle=1.0, lifetime=2.0)
        self.clock.pump([1.0] * 5)
        self.assertIs(other.state, State.OWNED)
        self.assertIs(handshaking.state, State.HANDSHAKING)
        other.entry.listener = "data"
