"""A thread for what blocks again and again, and is waited for.

A pool's threads are for whatever comes; the way there and back costs twice as much as here, which
counts for what is done hundreds of times a second.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["OneThread"]

_Job = tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]


class OneThread:
    """Runs functions in a thread of its own, one after the other.

    Args:
        call: Calls a function in the reactor's thread, as ``reactor.callFromThread`` does.
    """

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: Thread | None = None

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Return a Deferred of what a function returns; the first call starts the thread."""
        if self._thread is None:
            # Whoever ends the process without `stop` must not wait for it.
            self._thread = Thread(target=_work, args=(self._jobs, self._call), daemon=True)
            self._thread.start()
        done: Deferred[Any] = Deferred()
        self._jobs.put((done, function, args))
        return done

    def stop(self) -> None:
        """End the thread when it has done what it was given."""
        if self._thread is not None:
            self._thread = None
            self._jobs.put(None)


def _work(jobs: SimpleQueue[_Job | None], call: Callable[..., object]) -> None:
    while (job := jobs.get()) is not None:
        done, function, args = job
        try:
            result = function(*args)
        except BaseException:
            call(done.errback, Failure())
        else:
            call(done.callback, result)
