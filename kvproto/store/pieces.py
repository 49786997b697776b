"""Work in pieces: what takes long is a generator that stops after each bounded piece.

A function whose work grows with a document is written as a generator that yields whenever it has
spent about `PIECE` and returns its result (`Work`).  `Pieces` runs it: whatever is over within one
piece is answered at once, as if it were a plain call; all else is answered by a Deferred, one piece
for each turn of the event loop, everybody who waits in turn.  So no request holds the loop longer
than a piece takes (about 2 ms), and two large ones do not hold up each other.

Rules for a change: what is done between two yields is bounded by `PIECE` bytes, each turn of a
Python loop counted as `STEP`; and what was read before a yield may have changed after it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Cooperator

__all__ = ["PIECE", "STEP", "Pieces", "Work", "at_once"]

PIECE = 32 * 1024
"""Bytes looked at between two yields: 0.1 to 4 ms, depending on what they are."""

STEP = 64
"""Bytes that one turn of a Python loop counts as."""

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
    """

    def __init__(self, later: Callable[[Callable[[], None]], IDelayedCall] | None = None) -> None:
        self._cooperator = None
        if later is not None:
            # One piece of one task, then the event loop has its turn.
            self._cooperator = Cooperator(lambda: lambda: True, later)

    def run(self, work: Work[_Result]) -> _Result | Deferred[_Result]:
        """Return the result of work that is over within a piece, else a Deferred of it.

        Cancelling the Deferred ends the work where it stands.
        """
        if self._cooperator is None:
            return at_once(work)
        try:
            next(work)
        except StopIteration as stop:
            result: _Result = stop.value
            return result
        return self._go_on(self._cooperator, work)

    def _go_on(self, cooperator: Cooperator, work: Work[_Result]) -> Deferred[_Result]:
        answer: Deferred[_Result] = Deferred(lambda _: task.stop())

        def rest() -> Generator[None, None, None]:
            try:
                result = yield from work
            except GeneratorExit:
                raise
            except BaseException:
                answer.errback()
            else:
                answer.callback(result)

        task = cooperator.cooperate(rest())
        return answer
