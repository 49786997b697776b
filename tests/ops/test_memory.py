"""Freed memory goes back to the system in small steps."""

from __future__ import annotations

import sys

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.memory import INTERVAL, WORTH, MemoryTrim, glibc_trim


class MemoryTrimTests(SynchronousTestCase):
    """When it is done, and when not."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.living = 0
        self.trims = 0
        self.service = MemoryTrim(lambda: self.living, self.clock, self.trim)
        self.service.startService()

    def trim(self) -> None:
        self.trims += 1

    def test_growth(self) -> None:
        """Enough new connections are worth one call, a few are not."""
        self.living = WORTH - 1
        self.clock.advance(INTERVAL)
        self.assertEqual(self.trims, 0)
        self.living = WORTH
        self.clock.advance(INTERVAL)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.trims, 1)

    def test_shrinking(self) -> None:
        """When many have left, their memory goes back as well."""
        self.living = 10 * WORTH
        self.clock.advance(INTERVAL)
        self.living = 0
        self.clock.advance(INTERVAL)
        self.assertEqual(self.trims, 2)

    def test_stop(self) -> None:
        """A stopped service has no timer, and can be started again."""
        self.service.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.service.startService()
        self.living = WORTH
        self.clock.advance(INTERVAL)
        self.assertEqual(self.trims, 1)

    def test_no_way(self) -> None:
        """Where there is no way to do it there is no timer."""
        clock = Clock()
        MemoryTrim(lambda: 1000, clock, None).startService()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_failure(self) -> None:
        """A failure is logged once and ends the looks, not the service."""

        def broken() -> None:
            raise OSError("broken")

        clock = Clock()
        service = MemoryTrim(lambda: 1000, clock, broken)
        service.startService()
        clock.advance(INTERVAL)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(clock.getDelayedCalls(), [])
        service.stopService()


class GlibcTests(SynchronousTestCase):
    """The real call."""

    def test_linux(self) -> None:
        """With glibc it can be called; elsewhere there is none."""
        trim = glibc_trim()
        if sys.platform == "linux":
            assert trim is not None
            self.assertIn(trim(), (0, 1))
