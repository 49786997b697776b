"""Memory that handshakes used goes back to the system.

A TLS handshake allocates some tens of KiB and frees most of it, between blocks that live as
long as the connection does.  glibc keeps such freed pages; ``malloc_trim`` gives back those in
the middle of the heap as well.  Measured with 5,000 idle connections: 58 KiB each before, 35
after, in 31 ms at once, which is why it is done in small steps while connections come.

When thousands come together, all have been accepted long before the last handshake ends, and only
its end frees most.  So not the connections are counted but what they have gone through.

A few connections can leave as much behind: 15 that went away in the middle of 20 MiB values,
270 MiB.  So after any have left the size of the process is looked at as well.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from kvproto.base.log import make_logger

__all__ = ["MemoryTrim", "glibc_trim", "resident_bytes"]

log = make_logger()

INTERVAL = 1.0
"""Seconds between looks."""

WORTH = 128
"""A change by so many steps, of 64 connections that came and ended their handshakes, is worth a
call, about half a millisecond."""

WORTH_BYTES = 32 * 1024 * 1024
"""Bytes of growth since the start that are worth a call when connections have left."""

LONGEST_PAUSE = 300.0
"""Seconds between such calls at most, when they find nothing: the store may have what has grown."""


def resident_bytes() -> int:
    """Return how much memory the process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as sizes:
            return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def glibc_trim() -> Callable[[], object] | None:
    """Return what gives freed memory back; None where the C library is not glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes = [ctypes.c_size_t]
    return lambda: trim(0)


class MemoryTrim(Service):
    """Gives memory back when much has changed with the connections, or the process is large.

    Clients that come and go at a constant number reuse what is free: nothing is done then.

    Args:
        steps: Returns how many steps the connections have taken that there are: coming, ending
            their handshake.
        clock: For the looks.
        trim: Gives freed memory back; None: there is no way, and nothing is ever done.
        resident: Returns how many bytes of memory the process has.
    """

    name = "memory"

    def __init__(
        self,
        steps: Callable[[], int],
        clock: IReactorTime,
        trim: Callable[[], object] | None,
        resident: Callable[[], int] = resident_bytes,
    ) -> None:
        self._steps = steps
        self._trim = trim
        self._resident = resident
        self._clock = clock
        self._at_last_trim = 0
        self._most = 0  # steps since then
        self._at_start = 0
        self._pause = INTERVAL
        self._not_before = 0.0
        self._looks: LoopingCall = LoopingCall(self._look)
        self._looks.clock = clock

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._at_start = self._resident()
        if self._trim is not None:
            self._looks.start(INTERVAL, now=False).addErrback(self._failed)

    def stopService(self) -> Deferred[None] | None:
        """Stop looking."""
        super().stopService()
        if self._looks.running:
            self._looks.stop()
        return None

    def _look(self) -> None:
        steps = self._steps()
        self._most = max(self._most, steps)
        if abs(steps - self._at_last_trim) >= WORTH:
            self._give_back(steps)
        elif steps < self._most and self._clock.seconds() >= self._not_before:
            before = self._resident()
            if before - self._at_start >= WORTH_BYTES:
                self._give_back(steps)
                found = before - self._resident() >= WORTH_BYTES // 2
                self._pause = INTERVAL if found else min(2 * self._pause, LONGEST_PAUSE)
                self._not_before = self._clock.seconds() + self._pause

    def _give_back(self, steps: int) -> None:
        """Do it, and remember after how many steps."""
        self._at_last_trim = self._most = steps
        if self._trim is not None:
            self._trim()

    @staticmethod
    def _failed(failure: Failure) -> None:
        log.failure("memory is not given back any more", failure=failure)
