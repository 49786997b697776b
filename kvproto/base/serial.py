"""One thing at a time, and the same wish only once.

Starting, restarting and stopping a listener must never interleave, nor must twenty
callers who all want a reload cause twenty.  `Serial` runs jobs one after another; a
request that equals one which is still waiting joins it, and gets the same answer.  A
request that equals the *running* job is a new one: what it wants to see may have changed
after that job looked.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["Serial"]

Job = Callable[[], Coroutine[Deferred[Any], Any, Any]]


@dataclass(slots=True, eq=False)
class _Request:
    """A job that waits or runs, and all who want its answer."""

    job: Job
    callers: list[Deferred[Any]] = field(default_factory=list)

    def forget(self, caller: Deferred[Any]) -> None:
        """Stop owing an answer to somebody who has given up."""
        if caller in self.callers:
            self.callers.remove(caller)


class Serial:
    """A queue of jobs, each bounded by itself."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Hashable, _Request]] = []
        self._busy = False

    @property
    def busy(self) -> bool:
        """Whether a job runs now."""
        return self._busy

    def run(self, key: Hashable, job: Job) -> Deferred[Any]:
        """Run a job when its turn comes.

        Only the request that waits last is joined: in *stop, start, stop* the second stop
        is not the first one.

        Args:
            key: Equal keys mean equal wishes.
            job: Makes the coroutine; called when its turn has come.

        Returns:
            A Deferred of the job's answer, one for each caller: cancelling it gives up
            the answer, not the job.
        """
        if self._waiting and self._waiting[-1][0] == key:
            request = self._waiting[-1][1]
        else:
            request = _Request(job)
            self._waiting.append((key, request))
        caller: Deferred[Any] = Deferred(request.forget)
        request.callers.append(caller)
        if not self._busy:
            self._next()
        return caller

    def _next(self) -> None:
        """Begin the job that has waited longest."""
        if not self._waiting:
            return
        _, request = self._waiting.pop(0)
        self._busy = True
        running: Deferred[Any] = Deferred.fromCoroutine(request.job())
        running.addBoth(self._ended, request)

    def _ended(self, answer: Any, request: _Request) -> None:
        """Let the next job begin, then give everybody the answer."""
        self._busy = False
        self._next()
        # One by one from the list itself: a caller that is answered may cancel another.
        while request.callers:
            caller = request.callers.pop(0)
            if isinstance(answer, Failure):
                caller.errback(answer)
            else:
                caller.callback(answer)
