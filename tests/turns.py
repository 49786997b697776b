"""One turn of the event loop at a time: `Clock.advance` also does what is asked for meanwhile."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

__all__ = ["one_turn"]


def one_turn(clock: Clock) -> None:
    """Make the calls that are due, and none that are asked for by these."""
    calls: list[Any] = [*clock.getDelayedCalls()]
    for call in calls:
        if call.active() and call.getTime() <= clock.seconds():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)
