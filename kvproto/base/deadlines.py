"""Thousands of deadlines on one delayed call.

A connection changes its deadline with every state it enters, and nearly every deadline is
left long before it comes.  A delayed call for each would cost more than the handshake's
bookkeeping; so deadlines lie in a heap, one delayed call waits for the earliest, and what
has been left is skipped when its time comes.

``txaio.make_batched_timer`` is not used here: it cuts deadlines to whole seconds, which
turns the one second of a closing connection into none.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Deadlines"]

COMPACT_ABOVE = 256
"""Below so many heap items it does not matter how many of them were left."""


class HasDeadline(Protocol):
    """What can be watched."""

    deadline: float | None


T = TypeVar("T", bound=HasDeadline)


class Deadlines(Generic[T]):
    """Watch the ``deadline`` of many items.

    Args:
        clock: Whose ``seconds()`` the deadlines are in.
        expired: Called with each item whose deadline has come, after its ``deadline``
            was set to None.  It must not raise.
    """

    def __init__(self, clock: IReactorTime, expired: Callable[[T], None]) -> None:
        self._clock = clock
        self._expired = expired
        self._heap: list[tuple[float, int, T]] = []
        self._pushed = itertools.count()  # items themselves have no order
        self._watched = 0
        self._call: IDelayedCall | None = None
        self._call_at = 0.0

    def set(self, item: T, when: float | None) -> None:
        """Give an item a new deadline, None for no deadline."""
        if when is None and item.deadline is None:
            return
        self._watched += (when is not None) - (item.deadline is not None)
        item.deadline = when
        if when is not None:
            heapq.heappush(self._heap, (when, next(self._pushed), item))
            if self._call is None or when < self._call_at:
                self._schedule()
        elif not self._watched:
            self._heap.clear()
            self._schedule()
        if len(self._heap) > COMPACT_ABOVE + 4 * self._watched:
            self._compact()

    def _compact(self) -> None:
        """Drop the items whose deadline is another by now."""
        self._heap = [entry for entry in self._heap if entry[2].deadline == entry[0]]
        heapq.heapify(self._heap)

    def _schedule(self) -> None:
        """Let the one delayed call wait for the top of the heap."""
        while self._heap and self._heap[0][2].deadline != self._heap[0][0]:
            heapq.heappop(self._heap)  # left; waking up for it would be for nothing
        if self._heap:
            self._call_at = self._heap[0][0]
            delay = max(0.0, self._call_at - self._clock.seconds())
            if self._call is None:
                self._call = self._clock.callLater(delay, self._fire)
            else:
                self._call.reset(delay)
        elif self._call is not None:
            self._call.cancel()
            self._call = None

    def _fire(self) -> None:
        """Report what is due, then wait for the next."""
        self._call = None
        now = self._clock.seconds()
        while self._heap and self._heap[0][0] <= now:
            when, _, item = heapq.heappop(self._heap)
            if item.deadline == when:
                self.set(item, None)
                self._expired(item)
        if self._call is None:
            self._schedule()
