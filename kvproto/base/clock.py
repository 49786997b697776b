"""A reactor's clock that nobody can set.

Deadlines, waits and ages must go by a clock that only moves forward, at the speed of time.
Twisted's reactors go by the wall clock: when that is set back by an hour, a delayed call of three
seconds comes an hour and three seconds later.  `keep_monotonic` mends this for a whole reactor.

The wall clock (``time.time``) is for what clients and certificates call time: when a document
expires, until when a certificate is valid, what a log line says.  Where something must end at such
a time, the wall clock is asked again at least every `WALL_CLOCK_CHECK` seconds.
"""

from __future__ import annotations

import time
from typing import Any, Final

from twisted.internet.base import ReactorBase

from kvproto.base.compiled import compiled

__all__ = ["WALL_CLOCK_CHECK", "keep_monotonic"]

WALL_CLOCK_CHECK: Final = 30.0
"""Seconds after which a wait for a time of day looks at the clock on the wall again."""

_WALL: Final = ReactorBase.seconds


class PythonClock:
    """The system's monotonic clock, with another beginning.

    Args:
        ahead: Seconds that it is ahead.
    """

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead

    def seconds(self) -> float:
        """Return what it shows."""
        return time.monotonic() + self._ahead


_compiled = compiled("kvproto.base._clock")
MonotonicClock = _compiled.MonotonicClock if _compiled else PythonClock


def keep_monotonic(reactor: Any) -> bool:
    """Let a reactor's clock go on monotonically from the time that it shows now.

    ``reactor.seconds()`` is Unix time at this moment, and still is as long as nobody sets the
    system's clock; calls that are pending keep their time.  For programs that own their process:
    the whole reactor is changed.

    Args:
        reactor: The reactor.

    Returns:
        Whether its clock is monotonic now; False for one with a clock of its own that is not
        known to be, which is left alone.
    """
    if not isinstance(reactor, ReactorBase):
        return False
    if isinstance(getattr(reactor.seconds, "__self__", None), MonotonicClock):
        return True
    if reactor.seconds != _WALL:
        return False
    reactor.seconds = MonotonicClock(reactor.seconds() - time.monotonic()).seconds
    return True
