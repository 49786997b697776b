"""What is logged while a test runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

__all__ = ["lines_of"]


def lines_of(case: SynchronousTestCase) -> Callable[[], list[str]]:
    """Return what gives the lines that were logged since now, until the test ends."""
    events: list[Any] = []
    observer: Any = events.append
    globalLogPublisher.addObserver(observer)
    case.addCleanup(globalLogPublisher.removeObserver, observer)
    return lambda: [formatEvent(event) for event in events]
