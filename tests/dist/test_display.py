"""Terms of peers as texts, and errors that hold them."""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist import (
    Atom,
    CallRefused,
    ImproperList,
    MapPairs,
    Pid,
    ProcessDownError,
    RemoteCallError,
    encode,
)
from kvproto.dist.control import decode_control
from kvproto.dist.display import display
from kvproto.errors import RemoteProtocolError

HUGE = 10**5000
"""More digits than Python prints."""

LARGE: tuple[Any, ...] = (
    HUGE,
    -HUGE,
    [HUGE] * 1000,
    {HUGE: (HUGE, [HUGE])},
    ImproperList((HUGE,), HUGE),
    MapPairs((([HUGE], HUGE),)),
    Pid(Atom("n"), HUGE, 0, 0),
    b"x" * 1_000_000,
    ImproperList((b"x" * 1_000_000,), MapPairs((([1] * 100_000, 2),))),
)


def _nested(depth: int) -> Any:
    term: Any = 1
    for _ in range(depth):
        term = ImproperList((term,), term)
    return term


class DisplayTests(SynchronousTestCase):
    """Short texts, whatever the term."""

    def test_ordinary(self) -> None:
        """An ordinary term is what its repr() says."""
        for term in (Atom("noproc"), (Atom("no"), 1, b"x"), [1.5, {}], ImproperList((1,), 2)):
            self.assertEqual(
                display(term).replace("elements=", "").replace("tail=", ""),
                repr(term).replace("elements=", "").replace("tail=", ""),
            )

    def test_large(self) -> None:
        """A large one is cut."""
        for term in (*LARGE, _nested(150)):
            self.assertLess(len(display(term)), 1000)

    def test_size_of_an_integer(self) -> None:
        """An integer that cannot be printed is described."""
        self.assertIn("16610 bits", display((HUGE,)))


class ErrorTests(SynchronousTestCase):
    """Errors that hold terms can be printed."""

    def test_every_way(self) -> None:
        """str(), repr() and a logged traceback work with each term."""
        for term in LARGE:
            for error in (ProcessDownError("p", term), RemoteCallError(term), CallRefused(term)):
                for text in (str(error), repr(error), Failure(error).getTraceback()):
                    self.assertLess(len(text), 5000)

    def test_control_number(self) -> None:
        """A control message with a number that cannot be printed is refused as any other."""
        frame = b"p" + encode((HUGE,))
        error = self.assertRaises(RemoteProtocolError, decode_control, frame)
        self.assertIn("unknown control message", str(error))
