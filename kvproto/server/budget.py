"""What all connections together may hold of requests not complete and replies not sent: `Budget`.

Each connection says how many bytes it holds whenever that has changed.  When they are more than the
limit together, the one that has waited longest is let go of, with the reason, until they are not;
what is small is never in the way.  A connection waits from the moment at which it began to hold
something, or from its last progress: a request that became complete, a reply that left.  Bytes of a
request that trickle in are no progress.

A request that is not complete has a deadline as well (`DEADLINE_S` from its first byte), so that
what is held for it does not depend on others' needs.  One timer looks at all of them, while there
are any.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall

__all__ = ["DEADLINE_S", "DEFAULT_MAX_UNFINISHED", "LARGE", "Budget", "Holder"]

DEFAULT_MAX_UNFINISHED = 256 * 1024 * 1024
"""Bytes."""

DEADLINE_S = 300.0
"""Seconds from the first byte of a request to its last: 20 MiB at half a megabit a second."""

LARGE = 64 * 1024
"""Bytes that a connection has to hold to be in the way of others: more than one read."""

_LOOKS = 10
"""How often the timer looks within a deadline."""


class Holder(Protocol):
    """A connection that holds something."""

    def let_go(self, reason: str) -> None:
        """End at once, and free what is held.

        Args:
            reason: Why, for the log.
        """


class _Held:
    """What one holder holds: bytes, since when, and whether its request is not complete."""

    __slots__ = ("asking", "since", "size")

    def __init__(self, since: float) -> None:
        self.size = 0
        self.since = since
        self.asking = False


class Budget:
    """Bytes held by all connections of a server.

    Args:
        limit: Bytes.
        now: Returns seconds that only ever grow.
        later: Calls a function after some seconds, e.g. ``reactor.callLater``; without it there are
            no deadlines.
        deadline: Seconds that a request may take to become complete.

    Attributes:
        limit: Bytes.
        total: Bytes that are held.
    """

    def __init__(
        self,
        limit: int,
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], IDelayedCall] | None = None,
        deadline: float = DEADLINE_S,
    ) -> None:
        self.limit = limit
        self.total = 0
        self._now = now
        self._later = later
        self._deadline = deadline
        self._timer: IDelayedCall | None = None
        self._held: dict[Holder, _Held] = {}
        # Who has waited longest comes first.
        self._large: OrderedDict[Holder, _Held] = OrderedDict()

    def hold(self, holder: Holder, size: int, *, asking: bool, moved: bool) -> None:
        """Note what a connection holds now; it, or others, may be let go of meanwhile.

        Args:
            holder: The connection.
            size: Bytes, 0 for nothing.
            asking: Whether it has sent a part of a request.
            moved: Whether it has made progress since the last time.
        """
        held = self._held.get(holder)
        if held is None:
            if not size:
                return
            held = self._held[holder] = _Held(self._now())
            self._look_later()
        elif moved or (asking and not held.asking):
            held.since = self._now()
            if holder in self._large:
                self._large.move_to_end(holder)
        self.total += size - held.size
        held.size, held.asking = size, asking
        if not size:
            del self._held[holder]
        if size < LARGE:
            self._large.pop(holder, None)
            return
        self._large.setdefault(holder, held)
        while self.total > self.limit and self._large:
            self._let_go(
                next(iter(self._large)),
                f"all connections together hold more than --max-unfinished allows ({self.limit} "
                "bytes), and none has waited longer",
            )

    def stop(self) -> None:
        """Look at no deadlines any more."""
        self._later = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_go(self, holder: Holder, reason: str) -> None:
        held = self._held.pop(holder)
        self._large.pop(holder, None)
        self.total -= held.size
        waited = self._now() - held.since
        holder.let_go(f"{reason}: it held {held.size} bytes for {waited:.1f} s")

    def _look_later(self) -> None:
        if self._later is not None and self._timer is None:
            self._timer = self._later(self._deadline / _LOOKS, self._look)

    def _look(self) -> None:
        """Let go of those whose request should be complete."""
        self._timer = None
        begun = self._now() - self._deadline
        late = [holder for holder, held in self._held.items() if held.asking and held.since < begun]
        for holder in late:
            if holder in self._held:
                self._let_go(holder, f"its request was not complete after {self._deadline:g} s")
        if self._held:
            self._look_later()
