"""Work that is put off to the end of a turn."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.turn import Pieces, Turn
from tests.turns import one_turn


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


class PiecesTests(SynchronousTestCase):
    """Who has much to do does it in turns with others, some pieces of all in one."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.left: dict[str, int] = {}
        self.done: list[str] = []
        self.pieces: Pieces[str] = Pieces(self.clock, self.act, 4)

    def act(self, member: str) -> None:
        """Do a piece, which waits for nobody, and more as long as that is allowed."""
        while True:
            self.done.append(member)
            self.left[member] -= 1
            if member == "fails":
                raise ZeroDivisionError
            if not self.left[member] or not self.pieces.goes_on(member):
                return

    def work(self, **left: int) -> str:
        """Give members something to do in this turn; return what was done at once."""
        self.left.update(left)
        for member in left:
            if self.pieces.goes_on(member):
                self.act(member)
        return self.take()

    def take(self) -> str:
        """Return what was done since the last time."""
        done, self.done[:] = "".join(self.done), []
        return done

    def turn(self) -> str:
        """Let a turn of the reactor pass; return what was done in it."""
        one_turn(self.clock)
        return self.take()

    def test_alone(self) -> None:
        """One goes on at once, for as much as a turn has; then each turn has as much."""
        self.assertEqual(self.work(a=10), "aaaa")
        self.assertEqual([self.turn() for _ in range(3)], ["aaaa", "aa", ""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_waits(self) -> None:
        """As long as nobody has to wait there is no delayed call."""
        self.assertEqual(self.work(a=2), "aa")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_in_turns(self) -> None:
        """Several do a piece each, one after the other; who comes later comes behind them."""
        self.assertEqual(self.work(a=8, b=3, c=2), "aaaa")
        self.assertEqual(self.turn(), "abca")
        self.assertEqual(self.work(d=1), "")
        self.assertEqual([self.turn() for _ in range(3)], ["bcad", "ba", ""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_waits_once(self) -> None:
        """Who asks again while it waits has one place, the first."""
        self.work(a=4, b=1, c=1)
        self.assertFalse(self.pieces.goes_on("b"))
        self.assertEqual(self.turn(), "bc")

    def test_discarded(self) -> None:
        """Who is discarded does not act; when nobody is left nothing is pending."""
        self.work(a=4, b=1, c=1)
        self.pieces.discard("b")
        self.pieces.discard("never there")
        self.assertEqual(self.turn(), "c")
        self.work(a=9)
        self.pieces.discard("a")
        self.assertEqual((self.clock.getDelayedCalls(), self.turn()), ([], ""))
        self.assertEqual(self.work(b=1), "")
        self.assertEqual(self.turn(), "b")

    def test_failure(self) -> None:
        """One that fails is logged and holds up nobody."""
        self.work(a=4, fails=1, b=1)
        self.assertEqual(self.turn(), "failsb")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
