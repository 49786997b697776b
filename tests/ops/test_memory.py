"""Freed memory goes back to the system in small steps."""

from __future__ import annotations

import sys

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.memory import (
    INTERVAL,
    LONGEST_PAUSE,
    WORTH,
    WORTH_BYTES,
    MemoryTrim,
    glibc_trim,
    resident_bytes,
)


class MemoryTrimTests(SynchronousTestCase):
    """When it is done, and when not."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.steps = 0
        self.trims = 0
        self.resident = 50_000_000
        self.freed = 0
        self.service = MemoryTrim(lambda: self.steps, self.clock, self.trim, lambda: self.resident)
        self.service.startService()

    def trim(self) -> None:
        self.trims += 1
        self.resident, self.freed = self.resident - self.freed, 0

    def test_growth(self) -> None:
        """Enough new connections are worth one call, a few are not."""
        self.steps = WORTH - 1
        self.clock.advance(INTERVAL)
        self.assertEqual(self.trims, 0)
        self.steps = WORTH
        self.clock.advance(INTERVAL)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.trims, 1)

    def test_shrinking(self) -> None:
        """When many have left, their memory goes back as well."""
        self.steps = 10 * WORTH
        self.clock.advance(INTERVAL)
        self.steps = 0
        self.clock.advance(INTERVAL)
        self.assertEqual(self.trims, 2)

    def come_and_go(self) -> None:
        """A few connections, seen once and gone at the next look."""
        for self.steps in (3, 0):
            self.clock.advance(INTERVAL)

    def test_few_that_leave_much(self) -> None:
        """A few connections are worth a call when the process has grown much."""
        self.come_and_go()
        self.assertEqual(self.trims, 0)
        for count in (1, 2):
            self.resident, self.freed = self.resident + WORTH_BYTES, WORTH_BYTES
            self.come_and_go()
            self.assertEqual(self.trims, count)
        self.clock.pump([INTERVAL] * 10)
        self.assertEqual(self.trims, 2)

    def test_grown_for_good(self) -> None:
        """Where nothing is found, because the store has it, it is tried ever less often."""
        self.resident += 10 * WORTH_BYTES
        for _ in range(1000):
            self.come_and_go()
        self.assertLess(self.trims, 20)
        self.freed = WORTH_BYTES
        self.clock.advance(LONGEST_PAUSE)
        self.come_and_go()
        self.assertEqual(self.freed, 0)

    def test_stop(self) -> None:
        """A stopped service has no timer, and can be started again."""
        self.service.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.service.startService()
        self.steps = WORTH
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

    def test_resident(self) -> None:
        """The system says how large this process is; elsewhere it is 0."""
        self.assertEqual(resident_bytes() > 1_000_000, sys.platform == "linux")
