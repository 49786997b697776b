"""The last quarter of an hour in numbers, for the curves of the status page."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from kvproto.base.limited_log import report_left_out
from kvproto.base.log import make_logger

__all__ = ["History"]

log = make_logger()

INTERVAL = 5.0
"""Seconds between samples."""

SAMPLES = 180


class History(Service):
    """Looks at numbers now and then, and remembers.

    Args:
        sample: Returns what there is now: ``requests`` so far, ``connections`` now, and
            ``p50`` and ``p99`` in seconds or None.
        clock: For the looks.
        now: The time of day, in Unix seconds.
    """

    name = "history"

    def __init__(
        self,
        sample: Callable[[], dict[str, Any]],
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        self._sample = sample
        self._now = now
        self._rows: deque[dict[str, Any]] = deque(maxlen=SAMPLES)
        self._before: int | None = None
        self._looks: LoopingCall = LoopingCall(self._look)
        self._looks.clock = clock

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._looks.start(INTERVAL).addErrback(
            lambda failure: log.failure("no history is kept any more", failure=failure)
        )

    def stopService(self) -> Deferred[None] | None:
        """Stop looking."""
        super().stopService()
        if self._looks.running:
            self._looks.stop()
        return None

    def _look(self) -> None:
        report_left_out()
        found = self._sample()
        requests = found.pop("requests")
        rate = 0.0 if self._before is None else max(0, requests - self._before) / INTERVAL
        self._before = requests
        self._rows.append({"at": round(self._now(), 3), "requests_per_s": rate, **found})

    def report(self) -> dict[str, Any]:
        """Return the samples, oldest first."""
        return {"interval_s": INTERVAL, "samples": list(self._rows)}
