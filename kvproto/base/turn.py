"""Work that many put off to the end of a reactor's turn, done with one delayed call for all.

A delayed call costs some microseconds, as much as the work that is put off; so there is one for
everybody who has something to do.  Who adds to a turn that is just being ended comes with the
next one.

Who has much to do does it in pieces: of all pieces, a turn has as many as hold up nobody else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from kvproto.base.log import make_logger

__all__ = ["Pieces", "Turn"]

log = make_logger()

T = TypeVar("T")


class Turn(Generic[T]):
    """The members that have something to do before the reactor waits for events again.

    Args:
        clock: The reactor, or a test's clock.
        act: Called with each member, in the order in which they were added; one that raises is
            logged and keeps nobody else from its turn.
    """

    __slots__ = ("_act", "_call", "_members", "clock")

    def __init__(self, clock: IReactorTime, act: Callable[[T], object]) -> None:
        self.clock = clock
        self._act = act
        self._members: dict[T, None] = {}
        self._call: IDelayedCall | None = None

    def add(self, member: T) -> None:
        """Let a member act at the end of this turn, once."""
        self._members[member] = None
        if self._call is None:
            self._call = self.clock.callLater(0, self._end)

    def discard(self, member: T) -> None:
        """Let a member not act after all."""
        self._members.pop(member, None)
        if not self._members and self._call is not None:
            self._call.cancel()
            self._call = None

    def _end(self) -> None:
        self._call = None
        members, self._members = self._members, {}
        self._let_act(members)

    def _let_act(self, members: Iterable[T]) -> None:
        for member in members:
            try:
                self._act(member)
            except Exception:
                log.failure("what was put off to the end of a turn failed")


class Pieces(Turn[T]):
    """Members that have much to do, and do it piece by piece, each in its turn.

    There is no delayed call as long as nobody has to wait.

    Args:
        clock: The reactor, or a test's clock.
        act: Called with each member whose turn it is; does one piece, and more as long as `goes_on`
            says so.  One that raises is logged and keeps nobody else from its turn.
        most: Pieces of all members in one turn of the reactor.
    """

    __slots__ = ("_left", "_most")

    _members: OrderedDict[T, None]

    def __init__(self, clock: IReactorTime, act: Callable[[T], object], most: int) -> None:
        super().__init__(clock, act)
        self._members = OrderedDict()
        self._most = self._left = most

    def goes_on(self, member: T) -> bool:
        """Return whether a member may do another piece at once; otherwise it waits for its turn."""
        if self._left > 0 and not self._members:
            self._left -= 1
            return True
        self.add(member)
        return False

    def _end(self) -> None:
        self._call = None
        self._left = self._most
        self._let_act(self._next())
        if self._members and self._call is None:
            self._call = self.clock.callLater(0, self._end)

    def _next(self) -> Iterator[T]:
        """Yield whose turn it is, as long as there are pieces left."""
        while self._members and self._left > 0:
            self._left -= 1
            member, _ = self._members.popitem(last=False)
            yield member
