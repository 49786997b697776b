"""A reactor's clock that nobody can set."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base import clock
from kvproto.base.clock import keep_monotonic


class Times:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.wall = 1_795_000_000.0
        self.since_boot = 5_000.0

    def monotonic(self) -> float:
        return self.since_boot

    def time(self) -> float:
        return self.wall

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.since_boot += seconds


class Loop(ReactorBase):
    """A reactor without events: its delayed calls are run by the test."""

    def installWaker(self) -> None:
        """Nobody wakes it."""

    def removeAll(self) -> list[Any]:
        """It has no descriptors."""
        return []


class MonotonicTests(SynchronousTestCase):
    """What happens to delayed calls when somebody sets the clock."""

    def setUp(self) -> None:
        self.times = Times()
        self.patch(clock, "time", self.times)
        self.patch(clock, "_WALL", self.times.time)
        self.patch(clock, "MonotonicClock", clock.PythonClock)
        self.loop: Any = Loop()
        self.loop.seconds = self.times.time
        self.called: list[str] = []

    def later(self, seconds: float, name: str) -> None:
        self.loop.callLater(seconds, self.called.append, name)

    def after(self, seconds: float) -> list[str]:
        """Let time pass; return who was called."""
        self.times.pass_by(seconds)
        self.loop.runUntilCurrent()
        return self.called

    def test_without(self) -> None:
        """Twisted's own: set back by an hour, a call of three seconds does not come."""
        self.later(3, "a")
        self.times.wall -= 3600
        self.assertEqual(self.after(12), [])

    def test_set_back(self) -> None:
        """The call comes after three seconds."""
        self.assertTrue(keep_monotonic(self.loop))
        self.later(3, "a")
        self.times.wall -= 3600
        self.assertEqual(self.after(2.9), [])
        self.assertEqual(self.after(0.2), ["a"])

    def test_set_forward(self) -> None:
        """It does not come before that either."""
        keep_monotonic(self.loop)
        self.later(3, "a")
        self.times.wall += 3600
        self.assertEqual(self.after(2.9), [])
        self.assertEqual(self.after(0.2), ["a"])

    def test_pending(self) -> None:
        """A call that was pending before comes when it should."""
        self.later(3, "before")
        self.after(1)
        keep_monotonic(self.loop)
        self.later(1, "after")
        self.times.wall -= 3600
        self.assertEqual(self.after(1.1), ["after"])
        self.assertEqual(self.after(1), ["after", "before"])

    def test_shows_unix_time(self) -> None:
        """As long as nobody sets the clock, the reactor's is the wall's."""
        keep_monotonic(self.loop)
        self.times.pass_by(1000)
        self.assertEqual(self.loop.seconds(), self.times.wall)

    def test_twice(self) -> None:
        """A second time changes nothing."""
        keep_monotonic(self.loop)
        seconds: Callable[[], float] = self.loop.seconds
        self.assertTrue(keep_monotonic(self.loop))
        self.assertEqual(self.loop.seconds, seconds)

    def test_others(self) -> None:
        """What has a clock of its own, or is no reactor of Twisted's, is left alone."""
        self.loop.seconds = lambda: 0.0
        for reactor in (self.loop, Clock(), object()):
            self.assertFalse(keep_monotonic(reactor))


class TwinTests(SynchronousTestCase):
    """The clock in Python, and the compiled one where there is one."""

    def test_ahead(self) -> None:
        """Each shows the system's monotonic clock and what it is ahead of it."""
        for kind in (clock.PythonClock, clock.MonotonicClock):
            for ahead in (0.0, 1_795_000_000.0, -5.5):
                seconds = kind(ahead).seconds
                before, shown, after = time.monotonic(), seconds(), time.monotonic()
                self.assertTrue(before + ahead <= shown <= after + ahead, kind)
                self.assertLessEqual(shown, seconds())

    def test_reactor(self) -> None:
        """A reactor takes whichever there is, once."""
        loop: Any = Loop()
        self.assertTrue(keep_monotonic(loop))
        self.assertIsInstance(loop.seconds.__self__, clock.MonotonicClock)
        kept = loop.seconds
        self.assertTrue(keep_monotonic(loop))
        self.assertEqual(loop.seconds, kept)
