"""Where passwords are hashed: `HashQueue`, a few at a time and not on the event loop.

Hashing takes milliseconds on purpose, and anybody may ask for it.  So no more than `WORKERS` are
hashed at once, which leaves threads for everybody else's work; the others wait in the order in
which they came, and beyond `MOST_WAITING` a login is refused with "temporary failure", since it
would take longer than its client waits.  A connection has one login at a time: what comes behind
it waits (see `kvproto.server.window`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred

from kvproto.errors import StoreUnavailable

__all__ = ["MOST_WAITING", "WORKERS", "HashQueue"]

WORKERS = 2
"""Passwords that are hashed at the same time."""

MOST_WAITING = 256
"""Passwords that wait for it; at 6 ms each, for a second at most."""


class HashQueue:
    """Runs functions elsewhere, a few at a time.

    Args:
        run: Runs a function in a thread; returns a Deferred of its result.
        workers: How many may run at once.
        most_waiting: How many may wait.
    """

    def __init__(
        self, run: Callable[..., Any], workers: int = WORKERS, most_waiting: int = MOST_WAITING
    ) -> None:
        self._run = run
        self._idle = workers
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run a function when it is its turn.

        Returns:
            A Deferred of its result; it fails with `StoreUnavailable` when too many wait.
            Cancelling it takes it out of the queue; what runs already runs to its end.
        """
        answer: Deferred[Any] = Deferred(self._give_up)
        if self._idle:
            self._start(answer, function, args)
        elif len(self._waiting) < self._most_waiting:
            self._waiting.append((answer, function, args))
        else:
            return fail(StoreUnavailable("too many logins wait already"))
        return answer

    def _give_up(self, answer: Deferred[Any]) -> None:
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not answer)

    def _start(
        self, answer: Deferred[Any], function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        self._idle -= 1
        maybeDeferred(self._run, function, *args).addBoth(self._ended, answer)

    def _ended(self, result: Any, answer: Deferred[Any]) -> None:
        self._idle += 1
        if self._waiting:
            self._start(*self._waiting.popleft())
        if not answer.called:  # else whoever asked has gone
            answer.callback(result)
