"""Work in pieces: what takes long is a generator that stops after each bounded piece.

A function whose work grows with a document is written as a generator that yields whenever it has
spent about `PIECE` and returns its result (`Work`).  `Pieces` runs it: whatever is over within one
piece is answered at once, as if it were a plain call; all else is answered by a Deferred, one piece
for each turn of the event loop, everybody who waits in turn.  So no request holds the loop longer
than a piece takes (about 2 ms), and two large ones do not hold up each other.  No more than
`AT_ONCE` are worked on at the same time, since each holds what it has found so far.

Rules for a change: what is done between two yields is bounded by `PIECE` bytes, each turn of a
Python loop counted as `STEP`; and what was read before a yield may have changed after it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import CooperativeTask, Cooperator

__all__ = ["AT_ONCE", "PIECE", "STEP", "TURN_S", "Pieces", "Work", "at_once"]

PIECE = 32 * 1024
"""Bytes looked at between two yields: 0.1 to 4 ms, depending on what they are."""

STEP = 64
"""Bytes that one turn of a Python loop counts as."""

AT_ONCE = 4
"""Large requests that are worked on at the same time; what they have found so far is held."""

TURN_S = 0.005
"""Seconds of small work in one turn of the event loop, about; the rest waits for the next."""

_Result = TypeVar("_Result")

Work = Generator[None, None, _Result]
"""A generator that yields None after each piece and returns the result."""


def at_once(work: Work[_Result]) -> _Result:
    """Do work to its end and return the result, however long it takes."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: _Result = stop.value
            return result


class Pieces:
    """Runs work, in turn with everything else.

    Args:
        later: Calls a function in a later turn of the event loop, e.g. ``partial(reactor.callLater,
            0)``; None does all work at once.
        timer: Returns seconds that only ever grow.
    """

    def __init__(
        self,
        later: Callable[[Callable[[], None]], IDelayedCall] | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._later = later
        self._timer = timer
        self._begun = 0.0
        self._spent = 0.0
        self._new: deque[_Job] = deque()
        self._expecting = False
        # One piece of one task, then the event loop has its turn.
        self._cooperator = Cooperator(lambda: lambda: True, later) if later is not None else None
        self._busy = 0
        self._large: deque[_Job] = deque()

    def run(self, work: Work[_Result]) -> _Result | Deferred[_Result]:
        """Return the result of work that is over within a piece, else a Deferred of it.

        Also a Deferred when as much as may be has been done at once already: a thousand small
        requests of one read hold up others as well as a large one.  Cancelling the Deferred ends
        the work where it stands.
        """
        if self._later is None:
            return at_once(work)
        now = self._timer()
        if now - self._begun > 2 * TURN_S:
            self._begun, self._spent = now, 0.0
        job: _Job | None = None
        if self._spent < TURN_S and not self._new:
            try:
                next(work)
            except StopIteration as stop:
                result: _Result = stop.value
                return result
            finally:
                self._spent += self._timer() - now
            job = _Job(work)
            self._continue(job)
        else:
            job = _Job(work)
            self._new.append(job)
            self._expect()
        return job.answer

    def _expect(self) -> None:
        if not self._expecting and self._later is not None:
            self._expecting = True
            self._later(self._begin_some)

    def _begin_some(self) -> None:
        """Begin what is new, for as long as a turn may take."""
        self._expecting = False
        end = self._timer() + TURN_S
        while self._new:
            job = self._new.popleft()
            if job.answer.called:  # whoever asked has gone
                continue
            try:
                next(job.work)
            except StopIteration as stop:
                job.answer.callback(stop.value)
            except Exception:
                job.answer.errback()
            else:
                self._continue(job)
            if self._timer() >= end:
                break
        if self._new:
            self._expect()

    def _continue(self, job: _Job) -> None:
        """Do the rest of what takes longer, when it is its turn."""
        if self._busy < AT_ONCE:
            self._start(job)
        else:
            self._large.append(job)

    def _start(self, job: _Job) -> None:
        assert self._cooperator is not None
        self._busy += 1
        job.answer.addBoth(self._ended)
        job.task = self._cooperator.cooperate(job.rest())

    def _ended(self, result: Any) -> Any:
        self._busy -= 1
        while self._large and self._busy < AT_ONCE:
            job = self._large.popleft()
            if not job.answer.called:
                self._start(job)
        return result


class _Job:
    """Work, and who waits for it."""

    __slots__ = ("answer", "task", "work")

    def __init__(self, work: Work[Any]) -> None:
        self.work = work
        self.task: CooperativeTask[Generator[None, None, None]] | None = None
        self.answer: Deferred[Any] = Deferred(self._cancel)

    def _cancel(self, _: Deferred[Any]) -> None:
        if self.task is not None:
            self.task.stop()

    def rest(self) -> Generator[None, None, None]:
        """Do what is left, and answer."""
        try:
            result = yield from self.work
        except GeneratorExit:
            raise
        except BaseException:
            self.answer.errback()
        else:
            self.answer.callback(result)
