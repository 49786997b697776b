"""Requests that wait to be written, and deadlines without a timer for each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from kvproto.client.errors import QueueFullError, RequestTimeoutError
from kvproto.client.exchange import Exchange

__all__ = ["DEFAULT_MAX_WAITING", "DEFAULT_MAX_WAITING_BYTES", "TICK_S", "Sweep", "WaitingRoom"]

DEFAULT_MAX_WAITING = 4096
"""Requests that may wait to be written."""

DEFAULT_MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Bytes of values that may wait to be written: three of the largest."""

TICK_S = 0.02
"""Seconds between two sweeps at least: the most that a deadline is late.  When a server hangs,
thousands of deadlines come one by one; a look at all of them for each would be quadratic."""


class WaitingRoom:
    """A bounded queue that members can leave from anywhere.

    Args:
        limit: Requests at most.
        limit_bytes: Bytes of values at most; a single request may be larger.

    Attributes:
        why: Why members wait, for those whose deadline comes meanwhile.
    """

    __slots__ = ("_bytes", "_limit", "_limit_bytes", "_members", "why")

    def __init__(
        self, limit: int = DEFAULT_MAX_WAITING, limit_bytes: int = DEFAULT_MAX_WAITING_BYTES
    ) -> None:
        # Unlike a dict it takes its first member out in constant time.
        self._members: OrderedDict[Exchange[Any], None] = OrderedDict()
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self.why = "the connection is busy"

    def __len__(self) -> int:
        return len(self._members)

    def add(self, exchange: Exchange[Any]) -> None:
        """Let a request wait; when there is no room, it fails.

        One that was cancelled meanwhile is passed over: nobody would take it out again.
        """
        if exchange.deferred is None:
            return
        if len(self._members) >= self._limit or (
            self._members and self._bytes + exchange.size > self._limit_bytes
        ):
            exchange.fail(QueueFullError(f"{len(self._members)} requests are waiting", False))
            return
        exchange.holder = self
        self._members[exchange] = None
        self._bytes += exchange.size

    def drop(self, exchange: Exchange[Any]) -> None:
        """Forget a member."""
        exchange.holder = None
        if exchange in self._members:
            del self._members[exchange]
            self._bytes -= exchange.size

    def pop(self) -> Exchange[Any]:
        """Take the first member out; there must be one."""
        exchange, _ = self._members.popitem(last=False)
        exchange.holder = None
        self._bytes -= exchange.size
        return exchange

    def take_all(self) -> list[Exchange[Any]]:
        """Take all members out."""
        return [self.pop() for _ in range(len(self._members))]

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Let all members fail, each with an error of its own."""
        for exchange in self.take_all():
            exchange.fail(make_error())

    def expire(self, now: float) -> float | None:
        """Let members whose deadline has come fail; return the next deadline."""
        earliest: float | None = None
        due = []
        for exchange in self._members:
            if exchange.deadline <= now:
                due.append(exchange)
            elif earliest is None or exchange.deadline < earliest:
                earliest = exchange.deadline
        for exchange in due:
            self.drop(exchange)
            exchange.fail(RequestTimeoutError(f"no chance to send it in time: {self.why}", False))
        return earliest


class Sweep:
    """One delayed call for any number of deadlines that are nearly always left in time.

    It waits for the earliest deadline it was told of.  When that comes, the owner looks at what is
    still there and says which is the earliest now; so requests that are answered cost nothing.

    Args:
        clock: Whose seconds deadlines are in.
        sweep: Deals with what is due at its argument; returns the next deadline, None for none.
    """

    __slots__ = ("_at", "_call", "_clock", "_stopped", "_sweep")

    def __init__(self, clock: IReactorTime, sweep: Callable[[float], float | None]) -> None:
        self._clock = clock
        self._sweep = sweep
        self._call: IDelayedCall | None = None
        self._at = 0.0
        self._stopped = False

    def watch(self, deadline: float) -> None:
        """Make sure that there is a sweep when this deadline comes."""
        if self._call is None or deadline < self._at:
            self._cancel()
            self._at = deadline
            delay = max(0.0, deadline - self._clock.seconds())
            self._call = self._clock.callLater(delay, self._fire)

    def stop(self) -> None:
        """Wait for nothing any more, until there is something new to watch."""
        self._stopped = True
        self._cancel()

    def _cancel(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _fire(self) -> None:
        self._call = None
        self._stopped = False
        now = self._clock.seconds()
        upcoming = self._sweep(now)
        # Whoever hears that a deadline has come may stop us then and there.
        if upcoming is not None and not self._stopped:
            self.watch(max(upcoming, now + TICK_S))
