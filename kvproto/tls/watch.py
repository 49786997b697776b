"""A watch on the credential files: content, not dates, and only when it has come to rest.

Polling, because it is the one way that works for symbolic links that are swapped, for
files that are renamed into place and for network file systems alike.  The files are few
and small: a look costs a fraction of a millisecond.
"""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from kvproto.base.log import make_logger
from kvproto.tls.generation import digest_on_disk
from kvproto.tls.rotation import Rotation

__all__ = ["FileWatch"]

log = make_logger()

SETTLE = 0.5
"""Seconds that a new content must stay the same before it is acted upon."""


class FileWatch(Service):
    """Asks a rotation to reload when the content of its files has changed.

    What is watched is change, not difference: after a rollback the files differ from what
    is served, and stay alone until somebody writes them.  Each content is tried once.

    Args:
        rotation: Whose files are watched.
        clock: For the looks.
        interval: Seconds between two looks, more than 0.
    """

    name = "watch"

    def __init__(self, rotation: Rotation, clock: IReactorTime, interval: float = 2.0) -> None:
        self._rotation = rotation
        self._clock = clock
        self._interval = interval
        self._next: IDelayedCall | None = None
        # What was read at start: a change between that and the first look is seen.
        self._seen = rotation.current.credentials.digest
        self._candidate: str | None = None

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._look_in(self._interval)

    def stopService(self) -> None:
        """Look no more; a reload under way is the rotation's business."""
        super().stopService()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look_in(self, seconds: float) -> None:
        if self.running and self._next is None:
            self._next = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._next = None
        found = digest_on_disk(self._rotation.files)
        if found == self._seen:
            self._candidate = None
        elif found != self._candidate:
            self._candidate = found
            self._look_in(SETTLE)
            return
        else:
            self._seen, self._candidate = found, None
            if found != self._rotation.current.credentials.digest:
                log.info("the credential files have changed")
                self._rotation.reload().addBoth(self._reloaded)
                return
        self._look_in(self._interval)

    def _reloaded(self, _verdict: object) -> None:
        # Good or bad, the verdict is in the log; what comes next is the next content.
        self._look_in(self._interval)
