"""Work that is put off to the end of a turn."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.turn import Turn


class TurnTests(SynchronousTestCase):
    """Members act once, in order, on one delayed call."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.acted: list[str] = []
        self.turn: Turn[str] = Turn(self.clock, self.act)

    def act(self, member: str) -> None:
        self.acted.append(member)
        if member == "again":
            self.turn.add("later")
        elif member == "fails":
            raise ZeroDivisionError

    def test_once_in_order(self) -> None:
        """Nobody acts at once, and nobody twice."""
        for member in ("b", "a", "b"):
            self.turn.add(member)
        self.assertEqual((self.acted, len(self.clock.getDelayedCalls())), ([], 1))
        self.clock.advance(0)
        self.assertEqual(self.acted, ["b", "a"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_added_meanwhile(self) -> None:
        """Who is added while others act comes with the next turn."""
        self.turn.add("again")
        self.turn.add("a")
        self.clock.advance(0)
        self.assertEqual(self.acted, ["again", "a", "later"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_discarded(self) -> None:
        """Who is discarded does not act; when nobody is left nothing is pending."""
        self.turn.add("a")
        self.turn.add("b")
        self.turn.discard("a")
        self.turn.discard("never added")
        self.clock.advance(0)
        self.assertEqual(self.acted, ["b"])
        self.turn.add("a")
        self.turn.discard("a")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failure(self) -> None:
        """One that fails is logged and holds up nobody."""
        self.turn.add("fails")
        self.turn.add("a")
        self.clock.advance(0)
        self.assertEqual(self.acted, ["fails", "a"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
