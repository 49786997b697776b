"""A thread for what blocks again and again, and is waited for.

A pool's threads are for whatever comes; the way there and back costs more than twice as much as
here, where two pipes do it, which counts for what is done hundreds of times a second.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["OneThread"]

_Job = tuple[Callable[..., Any], tuple[Any, ...]]


class OneThread:
    """Runs functions in a thread of its own, one after the other.

    Args:
        reactor: In whose thread the answers come.
    """

    def __init__(self, reactor: IReactorFDSet) -> None:
        self._reactor = reactor
        self._worker: _Worker | None = None

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Return a Deferred of what a function returns; the first call starts the thread."""
        if self._worker is None:
            self._worker = _Worker(self._reactor)
        return self._worker.run(function, args)

    def stop(self) -> None:
        """End the thread when it has done what it was given."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()


@implementer(IReadDescriptor)
class _Worker:
    """A thread, and the reactor's end of what it says.

    A byte in a pipe stands for each job, and for each result, which are in order.
    """

    def __init__(self, reactor: IReactorFDSet) -> None:
        self._reactor = reactor
        self._jobs: deque[_Job] = deque()
        self._results: deque[Any] = deque()
        self._waiting: deque[Deferred[Any]] = deque()
        self._stopped = False
        asked, self._ask = os.pipe()
        self._told, tell = os.pipe()
        # Whoever ends the process without `stop` must not wait for it.
        ends = asked, tell, self._jobs, self._results
        Thread(target=_work, args=ends, daemon=True).start()
        reactor.addReader(self)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Deferred[Any]:
        """Let the thread call a function; return a Deferred of what it returns."""
        done: Deferred[Any] = Deferred()
        self._waiting.append(done)
        self._jobs.append((function, args))
        os.write(self._ask, b"x")
        return done

    def stop(self) -> None:
        """Let the thread end behind its last job."""
        self._stopped = True
        os.close(self._ask)
        self._let_go()

    def _let_go(self) -> None:
        if self._stopped and not self._waiting and self._told >= 0:
            self._reactor.removeReader(self)
            os.close(self._told)
            self._told = -1

    # what the reactor calls

    def fileno(self) -> int:
        """Return what becomes readable when there is a result."""
        return self._told

    def doRead(self) -> None:
        """Answer with the results that are there."""
        for _ in os.read(self._told, 4096):
            self._waiting.popleft().callback(self._results.popleft())
        self._let_go()

    def connectionLost(self, reason: Failure) -> None:
        """Nothing to do: the reactor is going away."""

    def logPrefix(self) -> str:
        """Return how the reactor's log names it."""
        return "thread"


def _work(asked: int, tell: int, jobs: deque[_Job], results: deque[Any]) -> None:
    while os.read(asked, 1):
        function, args = jobs.popleft()
        try:
            results.append(function(*args))
        except BaseException:
            results.append(Failure())
        os.write(tell, b"x")
    os.close(asked)
    os.close(tell)
