"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """Doubling waits with jitter.

    Args:
        first: Seconds before the first repetition.
        longest: Seconds at most.
        jitter: Returns numbers from 0 to 1; a wait is shortened by up to a quarter.
    """

    def __init__(
        self,
        first: float = 0.1,
        longest: float = 10.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self._next = first

    def next_wait(self) -> float:
        """Return the next wait in seconds."""
        wait = self._next
        self._next = min(self._longest, wait * 2)
        return wait * (1 - self._jitter() / 4)

    def reset(self) -> None:
        """Begin anew: the last attempt went well."""
        self._next = self._first
