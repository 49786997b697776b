"""The outcome of restarts of the node links, for those who wait for it.

A restart has two halves: all links are closed and the listener is back, which takes a
second or two; and everybody who was linked is linked again, which takes as long as the
others like, thirty seconds at most.  Credentials wait for the first half only, operators
for both.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.dist import LinkRotation, RestartReport
from kvproto.errors import CommandError

__all__ = ["Restarts"]

log = make_logger()

Waiting = list[Deferred[RestartReport]]


class Restarts:
    """Restarts node links, and remembers how that ended.

    Args:
        links: Does it.

    Attributes:
        last: How the last restart ended.
    """

    def __init__(self, links: LinkRotation) -> None:
        self._links = links
        self._returning: set[Deferred[RestartReport]] = set()
        self._waiting: Waiting | None = None
        self._stopped = False
        self.last = RestartReport()

    def begin(self) -> Deferred[tuple[str, ...]]:
        """Close all links and begin to make them again.

        Returns:
            Fires when the first half is done, with the listeners that did not start.
        """
        waiting: Waiting = []
        self._waiting = waiting
        self._stopped = False
        log.info("node links are closed, to be made again")

        def closed(listeners: tuple[str, ...]) -> tuple[str, ...]:
            returning = self._links.wait_for_return(listeners)
            self._returning.add(returning)
            returning.addBoth(self._ended, waiting, returning)
            if self._stopped:
                returning.cancel()
            return listeners

        def broke(failure: Failure) -> Failure:
            self._answer(waiting, failure)
            return failure

        return self._links.relink().addCallbacks(closed, broke)

    def report(self) -> Deferred[RestartReport]:
        """Return a Deferred of how the restart that was begun last ends, or ended.

        It fails with `CommandError` if the service stops first.
        """
        if self._waiting is None:
            return succeed(self.last)
        waiter: Deferred[RestartReport] = Deferred()
        self._waiting.append(waiter)
        return waiter

    def stop(self) -> None:
        """Wait for nobody any more, until the next restart."""
        self._stopped = True
        for returning in list(self._returning):
            returning.cancel()

    def _ended(
        self,
        result: RestartReport | Failure,
        waiting: Waiting,
        returning: Deferred[RestartReport],
    ) -> None:
        self._returning.discard(returning)
        if isinstance(result, Failure):
            if not result.check(CancelledError):
                log.failure("waiting for nodes failed", failure=result)
            result = Failure(CommandError("cancelled", "the service is stopping"))
        elif result.ok:
            self.last = result
            log.info("all nodes that were linked are linked again")
        else:
            self.last = result
            log.error("after a restart of the node links: {report}", report=str(result))
        self._answer(waiting, result)

    def _answer(self, waiting: Waiting, result: RestartReport | Failure) -> None:
        if self._waiting is waiting:
            self._waiting = None
        for waiter in waiting:
            waiter.callback(result)
