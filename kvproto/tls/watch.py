"""A watch on the credential files: content, not dates, and only when it has come to rest.

The files are few and small: a look costs a fraction of a millisecond.
"""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kvproto.base.log import make_logger
from kvproto.base.watch import Watch
from kvproto.tls.generation import digest_on_disk
from kvproto.tls.rotation import Rotation
from kvproto.tls.verdict import Verdict

__all__ = ["FileWatch"]

log = make_logger()


class FileWatch(Service):
    """Asks a rotation to reload when the content of its files has changed.

    After a rollback the files differ from what is served, and stay alone until somebody writes
    them.  Each content is tried once.

    Args:
        rotation: Whose files are watched.
        clock: For the looks.
        interval: Seconds between two looks, more than 0.
    """

    name = "watch"

    def __init__(self, rotation: Rotation, clock: IReactorTime, interval: float = 2.0) -> None:
        self._rotation = rotation
        # What was read at start: a change between that and the first look is seen.
        self._watch = Watch(
            clock,
            interval,
            lambda: digest_on_disk(rotation.files),
            self._changed,
            seen=rotation.current.credentials.digest,
        )

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._watch.start()

    def stopService(self) -> None:
        """Stop looking; a reload under way is the rotation's business."""
        super().stopService()
        self._watch.stop()

    def _changed(self) -> Deferred[Verdict] | None:
        if self._watch.seen == self._rotation.current.credentials.digest:
            return None
        log.info("the credential files have changed")
        # Good or bad, the verdict is in the log; what comes next is the next content.
        return self._rotation.reload()
