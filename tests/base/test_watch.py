"""A watch on something that changes without telling."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.watch import SETTLE_S, Watch

EVERY = 2.0


class WatchTests(SynchronousTestCase):
    """`Watch` on a clock: what it acts upon, when, and which timers it has."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.there = "first"
        self.acted: list[str] = []
        self.answer: Deferred[None] | None = None

    def make(self, interval: float = EVERY, settle: float = SETTLE_S) -> Watch[str]:
        watch = Watch(self.clock, interval, lambda: self.there, self.changed, settle=settle)
        self.addCleanup(watch.stop)
        return watch

    def changed(self) -> Deferred[None] | None:
        self.acted.append(self.there)
        return self.answer

    def timers(self) -> int:
        return len(self.clock.getDelayedCalls())

    def test_settled(self) -> None:
        """Something new is acted upon once, when it was seen twice the same."""
        self.make().start()
        self.clock.advance(EVERY)
        self.there = "second"
        self.clock.advance(EVERY)
        self.assertEqual(self.acted, [])
        self.clock.advance(SETTLE_S)
        self.assertEqual(self.acted, ["second"])
        self.clock.pump([EVERY, EVERY])
        self.assertEqual(self.acted, ["second"])

    def test_unsettled(self) -> None:
        """What changes on waits on; what goes back was nothing."""
        self.make().start()
        self.there = "sec"
        self.clock.advance(EVERY)
        self.there = "second"
        self.clock.advance(SETTLE_S)
        self.there = "first"
        self.clock.advance(SETTLE_S)
        self.there = "second"
        self.clock.advance(EVERY)
        self.assertEqual(self.acted, [])
        self.clock.advance(SETTLE_S)
        self.assertEqual(self.acted, ["second"])

    def test_at_first_sight(self) -> None:
        """A watch that need not wait for rest acts within its interval."""
        self.make(settle=0).start()
        self.there = "second"
        self.clock.advance(EVERY)
        self.assertEqual(self.acted, ["second"])

    def test_before_the_start(self) -> None:
        """What changes between the making and the first look is seen, or what is told instead."""
        watch = self.make(settle=0)
        self.there = "second"
        watch.start()
        self.clock.advance(EVERY)
        self.assertEqual(self.acted, ["second"])
        watch.seen = "third"
        self.clock.advance(EVERY)
        self.assertEqual(self.acted, ["second", "second"])
        told = Watch(self.clock, EVERY, lambda: self.there, self.changed, settle=0, seen="first")
        self.addCleanup(told.stop)
        told.start()
        self.clock.advance(EVERY)
        self.assertEqual(len(self.acted), 3)

    def test_waits_for_the_action(self) -> None:
        """While something is being done about a change nothing is looked at."""
        self.answer = Deferred()
        self.make(settle=0).start()
        self.there = "second"
        self.clock.advance(EVERY)
        self.there = "third"
        self.assertEqual(self.timers(), 0)
        answer, self.answer = self.answer, None
        answer.callback(None)
        self.assertEqual(self.acted, ["second"])
        self.clock.advance(EVERY)
        self.assertEqual(self.acted, ["second", "third"])

    def test_failed_action(self) -> None:
        """A failure is logged, and the next change is seen."""
        self.answer = Deferred()
        self.make(settle=0).start()
        self.there = "second"
        self.clock.advance(EVERY)
        answer, self.answer = self.answer, None
        answer.errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.there = "third"
        self.clock.advance(EVERY)
        self.assertEqual(self.acted, ["second", "third"])

    def test_timers(self) -> None:
        """One timer while it looks, none after its end, also if that comes in the middle."""
        watch = self.make()
        self.assertEqual(self.timers(), 0)
        watch.start()
        watch.start()
        self.assertEqual(self.timers(), 1)
        self.there = "second"
        self.clock.advance(EVERY)
        self.assertEqual(self.timers(), 1)
        watch.stop()
        watch.stop()
        self.assertEqual(self.timers(), 0)
        self.answer = Deferred()
        watch.start()
        self.clock.advance(EVERY)
        self.assertEqual(self.acted, ["second"])
        watch.stop()
        self.answer.callback(None)
        self.assertEqual(self.timers(), 0)

    def test_never(self) -> None:
        """With no interval it never looks, and an interval that is taken away ends it."""
        watch = self.make(interval=0)
        watch.start()
        self.assertEqual(self.timers(), 0)
        watch.interval = EVERY
        watch.start()
        self.assertEqual(self.timers(), 1)
        watch.interval = 0
        self.clock.advance(EVERY)
        self.assertEqual(self.timers(), 0)
