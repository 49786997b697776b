"""Which connections move most: the command ``top``, the service's half.

Every connection is looked at twice, some time apart.  Nothing is counted meanwhile, so that only
who asks pays; nothing of what is moved is looked at, so that no key is ever shown.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from kvproto.errors import CommandError
from kvproto.listeners import Entry, Ledger, State
from kvproto.ops.commands import TOP_LONGEST_MS, TOP_ORDERS

__all__ = ["Traffic"]

AT_ONCE = 500
"""Connections that are looked at before others have their turn: about 2 ms."""

_Seen = tuple[float, int, int]
"""When, in seconds, and the bytes received and sent by then."""


class _Rates(NamedTuple):
    """Bytes so far, and in a second; None where nobody counts them."""

    in_total: int | None = None
    out_total: int | None = None
    in_per_s: int | None = None
    out_per_s: int | None = None


_UNKNOWN = _Rates()

_KEYS: Mapping[str, Callable[[_Rates, float], float]] = {
    "traffic": lambda rates, age: (rates.in_per_s or 0) + (rates.out_per_s or 0),
    "in": lambda rates, age: rates.in_per_s or 0,
    "out": lambda rates, age: rates.out_per_s or 0,
    "total": lambda rates, age: (rates.in_total or 0) + (rates.out_total or 0),
    "age": lambda rates, age: age,
}
"""What each of `TOP_ORDERS` goes by."""


class Traffic(Service):
    """Measures what connections move.

    Args:
        ledger: The connections.
        clock: For the time between two looks.
        requests: Returns how many requests were served since the start.
    """

    name = "traffic"

    def __init__(self, ledger: Ledger, clock: IReactorTime, requests: Callable[[], int]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._requests = requests
        self._pauses: set[Deferred[None]] = set()

    def stopService(self) -> Deferred[None] | None:
        """Give up what is being measured."""
        super().stopService()
        for pause in list(self._pauses):
            pause.cancel()
        return None

    def measure(
        self, milliseconds: int, sort: str, limit: int, listener: str | None
    ) -> Deferred[dict[str, Any]]:
        """Return the documented answer to ``top``.

        Args:
            milliseconds: How long to measure.
            sort: One of `TOP_ORDERS`.
            limit: How many connections to list at most, 0 for all.
            listener: Name of a listener; None for all.

        Raises:
            CommandError: ``bad-argument``.
        """
        if sort not in TOP_ORDERS:
            raise CommandError("bad-argument", f"sort must be one of {', '.join(TOP_ORDERS)}")
        if not 0 < milliseconds <= TOP_LONGEST_MS:
            raise CommandError("bad-argument", f"milliseconds must be 1 to {TOP_LONGEST_MS}")
        return Deferred.fromCoroutine(
            self._measure(milliseconds / 1000, sort, limit or None, listener)
        )

    async def _measure(
        self, seconds: float, sort: str, limit: int | None, listener: str | None
    ) -> dict[str, Any]:
        now, key = self._clock.seconds, _KEYS[sort]
        began, requests = now(), self._requests()
        before: dict[int, _Seen] = {}
        async for entry in self._in_turns(listener):
            moved = entry.accepted.traffic()
            if moved is not None:
                before[entry.id] = (now(), *moved)
        await self._pause(seconds)
        found = []
        moved_in = moved_out = 0
        async for entry in self._in_turns(listener):
            moved = entry.accepted.traffic()
            rates = _UNKNOWN
            if moved is not None:
                rates = _rates(before.get(entry.id, (entry.born, 0, 0)), (now(), *moved))
                moved_in += rates.in_per_s or 0
                moved_out += rates.out_per_s or 0
            found.append((key(rates, now() - entry.born), -entry.id, entry, rates))
        shown = heapq.nlargest(limit or len(found), found)
        took = now() - began
        return {
            "seconds": round(took, 3),
            "sort": sort,
            "requests_per_s": round((self._requests() - requests) / took, 1),
            "bytes_in_per_s": moved_in,
            "bytes_out_per_s": moved_out,
            "total": len(found),
            "shown": len(shown),
            "connections": [_row(entry, rates, now()) for _, _, entry, rates in shown],
        }

    async def _in_turns(self, listener: str | None) -> AsyncIterator[Entry]:
        """Yield the connections, and let others have their turn now and then."""
        for number, entry in enumerate(self._ledger.entries(listener)):
            if number and number % AT_ONCE == 0:
                await self._pause(0)
            if entry.state is not State.CLOSED:
                yield entry

    async def _pause(self, seconds: float) -> None:
        pause: Deferred[None] = deferLater(self._clock, seconds)
        self._pauses.add(pause)
        try:
            await pause
        finally:
            self._pauses.discard(pause)


def _rates(before: _Seen, after: _Seen) -> _Rates:
    """Return what was moved in all and a second."""
    took = max(after[0] - before[0], 0.001)
    return _Rates(
        after[1],
        after[2],
        round((after[1] - before[1]) / took),
        round((after[2] - before[2]) / took),
    )


def _row(entry: Entry, rates: _Rates, now: float) -> dict[str, Any]:
    """Return the documented line of one connection."""
    return {
        "id": entry.id,
        "peer": entry.describe_peer(),
        "listener": entry.listener,
        "state": entry.state.value,
        "user": entry.user,
        "age_s": round(now - entry.born, 3),
        "bytes_in": rates.in_total,
        "bytes_out": rates.out_total,
        "bytes_in_per_s": rates.in_per_s,
        "bytes_out_per_s": rates.out_per_s,
    }
