"""A watch on something that changes without telling: looked at again and again.

Polling, because it is the one way that works for symbolic links that are swapped, for
files that are renamed into place and for network file systems alike.

What is watched is change, not difference: what was refused is tried once, and then left alone
until it changes again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from kvproto.base.log import make_logger

__all__ = ["SETTLE_S", "Watch"]

log = make_logger()

SETTLE_S = 0.5
"""Seconds that something new must stay the same before it is acted upon."""

Seen = TypeVar("Seen")


class Watch(Generic[Seen]):
    """Calls a function when what it looks at has changed and has come to rest.

    Args:
        clock: For the looks.
        interval: Seconds between two looks, 0 for never.
        look: Returns what is there now, to be compared with what was there before.
        changed: Called for something new.  The next look waits for a Deferred that it returns;
            a failure is logged.
        settle: Seconds that something new must stay the same; 0 acts at first sight.
        seen: What was there already; by default what is there now.

    Attributes:
        interval: As above; holds from the next look on.
        seen: What was acted upon last.
    """

    def __init__(
        self,
        clock: IReactorTime,
        interval: float,
        look: Callable[[], Seen],
        changed: Callable[[], object],
        *,
        settle: float = SETTLE_S,
        seen: Seen | None = None,
    ) -> None:
        self.interval = interval
        self.seen = look() if seen is None else seen
        self._clock = clock
        self._look = look
        self._changed = changed
        self._settle = settle
        self._candidate: Seen | None = None
        self._running = False
        self._next: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to look; nothing if it looks already."""
        self._running = True
        self._wait(self.interval)

    def stop(self) -> None:
        """Stop looking; a change that is being acted upon goes on."""
        self._running = False
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _wait(self, seconds: float) -> None:
        if self._running and self.interval and self._next is None:
            self._next = self._clock.callLater(seconds, self._compare)

    def _compare(self) -> None:
        self._next = None
        found = self._look()
        if found == self.seen:
            self._candidate = None
        elif self._settle and found != self._candidate:
            self._candidate = found
            self._wait(self._settle)
            return
        else:
            self.seen, self._candidate = found, None
            acting: Deferred[object] = maybeDeferred(self._changed)
            acting.addErrback(lambda failure: log.failure("a changed file was not taken", failure))
            acting.addCallback(lambda _: self._wait(self.interval))
            return
        self._wait(self.interval)
