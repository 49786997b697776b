"""Lines that peers can provoke: so many of a kind in a while, the rest is counted.

A flood of broken handshakes would otherwise fill the disk, and hide the line that matters.  One
address that floods does not use up the lines of the others.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.python.failure import Failure

from kvproto.base.log import Log

__all__ = ["WINDOW", "LimitedLog", "report_left_out"]

LINES = 100
"""Lines of one kind in a window."""

LINES_OF_ONE = 20
"""Lines of one kind that one address may provoke in a window."""

WINDOW = 10.0
"""Seconds."""

_all: weakref.WeakSet[LimitedLog] = weakref.WeakSet()


@dataclass(slots=True)
class _Window:
    """What has been logged of one kind since `begun`."""

    begun: float
    lines: int = 0
    left_out: int = 0
    by_host: Counter[str] = field(default_factory=Counter)
    """Only of lines that were logged, so that it is bounded as these are."""


class LimitedLog:
    """Logs lines about peers, kinds of which are told apart by their format.

    Args:
        log: Where to.
        now: Returns monotonic seconds.
    """

    def __init__(self, log: Log, now: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._now = now
        self._windows: dict[str, _Window] = {}
        _all.add(self)

    def info(self, format: str, *, peer: str, **fields: Any) -> None:
        """Log a line of level info, unless there were too many like it.

        Args:
            format: As for `kvproto.base.log.Log`.
            peer: ``ADDRESS:PORT``, a field like the others.
            fields: As for `kvproto.base.log.Log`.
        """
        if self._may(format, peer):
            self._log.info(format, peer=peer, **fields)

    def warn(self, format: str, *, peer: str, **fields: Any) -> None:
        """Log a line of level warn, unless there were too many like it; see `info`."""
        if self._may(format, peer):
            self._log.warn(format, peer=peer, **fields)

    def failure(
        self, format: str, failure: Failure | None = None, *, peer: str, **fields: Any
    ) -> None:
        """Log a fault of ours that a peer has come across, unless there were too many like it.

        Faults are told apart by where they were raised as well: one does not hide another.

        Args:
            format: As for `info`.
            failure: The current exception's when None.
            peer: As for `info`, ``""`` where it is not known.
            fields: As for `info`.
        """
        failure = Failure() if failure is None else failure
        if self._may(f"{format} ({_place_of(failure)})", peer):
            self._log.failure(format, failure, peer=peer, **fields)

    def _may(self, kind: str, peer: str) -> bool:
        now = self._now()
        window = self._windows.get(kind)
        if window is None or now - window.begun >= WINDOW:
            self._report(kind)
            window = self._windows[kind] = _Window(now)
        host = peer.rpartition(":")[0] or peer
        if window.lines >= LINES or window.by_host[host] >= LINES_OF_ONE:
            window.left_out += 1
            return False
        window.lines += 1
        window.by_host[host] += 1
        return True

    def report(self) -> None:
        """Say what was left out in windows that are over."""
        now = self._now()
        for kind, window in list(self._windows.items()):
            if now - window.begun >= WINDOW:
                self._report(kind)

    def _report(self, kind: str) -> None:
        window = self._windows.pop(kind, None)
        if window is not None and window.left_out:
            self._log.warn(
                "{count} more lines were left out in {seconds:g} s, of the kind: {kind}",
                count=window.left_out,
                seconds=WINDOW,
                kind=kind,
            )


def _place_of(failure: Failure) -> str:
    """Return the kind of an exception, and in which function it was raised."""
    name = getattr(failure.type, "__name__", "")
    return f"{name} in {failure.frames[-1][0]}" if failure.frames else name


def report_left_out() -> None:
    """Have every `LimitedLog` say what it left out; to be called now and then."""
    for limited in list(_all):
        limited.report()
