"""One descriptor for Twisted's reactor, behind it all accepted connections.

Twisted's loop does much for each event: a logging context (two dictionaries copied), four
calls, several tests.  A `Hub` is an epoll instance of its own that the reactor watches like
one socket; when it becomes readable, the ready connections are served in a tight loop.
Level-triggered like Twisted's; what each connection hears, and when, is the same.

* An exception of one connection is logged and ends that connection only.
* One turn serves at most `VISITS` times `TURN` events; then timers, listening ports and everything
  else of the reactor have theirs.  The kernel rotates what is ready, so nobody starves.
* Where more are ready than one look tells of, they are served in cohorts, and whoever of a cohort
  has asked again by its end is served again before the next cohort's turn: what a request needs
  of its connection (some hundred lines of the processor's cache) is still there.  A request waits
  no longer than for `VISITS` requests of each other connection.  The idea is cohort scheduling
  (Larus and Parkes, USENIX 2002).
* When the reactor disconnects everybody at its end, so does the hub.

Only for `EPollReactor`; `hub_for` gives any other reactor back as it is.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from twisted.internet.interfaces import IHalfCloseableDescriptor, IReactorFDSet, IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import make_logger

try:
    from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, POLLIN, epoll, poll

    from twisted.internet.epollreactor import EPollReactor
except ImportError:  # not Linux
    EPollReactor = None  # type: ignore[assignment, misc]

__all__ = ["COHORT", "TURN", "VISITS", "Hub", "HubReactor", "hub_for"]

log = make_logger()
peer_log = LimitedLog(log)

TURN: Final = 96
"""Events of one look at who is ready.  As many mean that there are more."""

VISITS: Final = 3
"""Times that a connection is served in a row, at most, while others wait."""

COHORT: Final = 16
"""Connections that are served together; what they need fits into a core's cache (100 KiB)."""


_REASONS: Final[dict[type[BaseException], Failure]] = {
    type(why): Failure(why) for why in (CONNECTION_DONE, CONNECTION_LOST)
}
"""The usual two, made once as Twisted does: they carry nothing of a connection."""


@implementer(IReactorFDSet, IReadDescriptor)
class Hub:
    """Watches transports for a reactor, to which it is one reader.

    Args:
        reactor: An epoll reactor.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._poller = epoll()
        # By descriptor: a list has less to look at than a dictionary with as many keys.
        self._members: list[Any] = []
        self._masks: list[int] = []
        self._count = 0

    # for transports

    def addReader(self, reader: Any) -> None:
        """Call a transport's ``doRead`` when there is something to read."""
        self._add(reader, EPOLLIN)

    def addWriter(self, writer: Any) -> None:
        """Call a transport's ``doWrite`` when there is room to write."""
        self._add(writer, EPOLLOUT)

    def removeReader(self, reader: Any) -> None:
        """Stop calling a transport's ``doRead``."""
        self._remove(reader, EPOLLIN)

    def removeWriter(self, writer: Any) -> None:
        """Stop calling a transport's ``doWrite``."""
        self._remove(writer, EPOLLOUT)

    def removeAll(self) -> list[Any]:
        """Let go of all transports, and return them."""
        members = [member for member in self._members if member is not None]
        for member in members:
            self._remove(member, EPOLLIN | EPOLLOUT)
        return members

    def getReaders(self) -> list[Any]:
        """Return the transports that read."""
        return self._interested(EPOLLIN)

    def getWriters(self) -> list[Any]:
        """Return the transports that write."""
        return self._interested(EPOLLOUT)

    def _interested(self, event: int) -> list[Any]:
        return [
            member for member, mask in zip(self._members, self._masks, strict=True) if mask & event
        ]

    def _add(self, member: Any, event: int) -> None:
        fd = member.fileno()
        if fd >= len(self._masks):
            more = fd + 1 - len(self._masks)
            self._members += [None] * more
            self._masks += [0] * more
        mask = self._masks[fd]
        if mask & event:
            return
        if mask:
            self._poller.modify(fd, mask | event)
        else:
            self._poller.register(fd, event)
            if not self._count:
                self._reactor.addReader(self)
            self._count += 1
            self._members[fd] = member
        self._masks[fd] = mask | event

    def _remove(self, member: Any, event: int) -> None:
        fd = member.fileno()
        if fd < 0 and member in self._members:
            # Its socket was closed behind our back, and the kernel has forgotten it.
            fd = self._members.index(member)
            event = EPOLLIN | EPOLLOUT
        if not 0 <= fd < len(self._masks) or not self._masks[fd] & event:
            return
        mask = self._masks[fd]
        rest = mask & ~event
        if rest:
            self._poller.modify(fd, rest)
            self._masks[fd] = rest
            return
        try:  # noqa: SIM105 - a context manager for each connection costs more than it says
            self._poller.unregister(fd)
        except OSError:
            pass  # the kernel has forgotten it already
        self._members[fd], self._masks[fd] = None, 0
        self._count -= 1
        if not self._count:
            self._reactor.removeReader(self)

    # for the reactor

    def fileno(self) -> int:
        """Return the descriptor that is readable while a transport is ready."""
        return self._poller.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log lines."""
        return "connections"

    def doRead(self) -> None:
        """Serve the transports that are ready."""
        events = self._poller.poll(0, TURN)
        if len(events) < TURN:
            self._serve(events)
            return
        for at in range(0, TURN, COHORT):
            cohort = events[at : at + COHORT]
            self._serve(cohort)
            for _ in range(VISITS - 1):
                again = self._ready_again(cohort)
                if not again:
                    break
                self._serve(again)

    def _ready_again(self, cohort: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the events of those who have asked again since they were served."""
        masks = self._masks
        # Not the hub's own epoll: that would tell of others first, and costs a call for each.
        poller = poll()
        for fd, _ in cohort:
            if masks[fd] & EPOLLIN:
                poller.register(fd, POLLIN)
        return poller.poll(0)

    def _serve(self, events: list[tuple[int, int]]) -> None:
        """Let members read and write, and end those whose connections are over."""
        members = self._members
        for fd, event in events:
            member = members[fd]
            if member is None:
                continue  # ended by one that was served before it in this turn
            reads = event & EPOLLIN
            why: Any = None
            try:
                if reads:
                    why = member.doRead()
                elif event & (EPOLLHUP | EPOLLERR):
                    reads = self._masks[fd] & EPOLLIN
                    why = CONNECTION_DONE if reads else CONNECTION_LOST
                if why is None and event & EPOLLOUT and self._masks[fd] & EPOLLOUT:
                    reads = 0
                    why = member.doWrite()
            except BaseException:
                why = sys.exc_info()[1]
                peer_log.failure("a connection's protocol failed", peer="")
            if why is not None:
                self._end(member, why, bool(reads))

    def _end(self, member: Any, why: BaseException, reading: bool) -> None:
        """End a transport's connection, or one half of it."""
        try:
            reason = _REASONS.get(why.__class__) or Failure(why)
            orderly = reading and why is CONNECTION_DONE
            if orderly and IHalfCloseableDescriptor.providedBy(member):
                self.removeReader(member)
                member.readConnectionLost(reason)
                return
            self._remove(member, EPOLLIN | EPOLLOUT)
            member.connectionLost(reason)
        except BaseException:
            peer_log.failure("a connection's protocol failed at its end", peer="")

    def connectionLost(self, reason: Failure) -> None:
        """End all connections: the reactor ends."""
        for member in self.removeAll():
            try:
                member.connectionLost(reason)
            except BaseException:
                peer_log.failure("a connection's protocol failed at its end", peer="")


class HubReactor:
    """A hub to the transports in it: a reactor.

    The hub itself hands nothing on, since CPython looks at length for each attribute of who does.

    Args:
        hub: Watches the transports.
        reactor: Asked for everything else.
    """

    def __init__(self, hub: Hub, reactor: Any) -> None:
        self._reactor = reactor
        self.addReader, self.removeReader = hub.addReader, hub.removeReader
        self.addWriter, self.removeWriter = hub.addWriter, hub.removeWriter

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the real reactor."""
        return getattr(self._reactor, name)


def hub_for(reactor: Any) -> Any:
    """Return a hub for new connections, or the reactor itself where there can be none."""
    if EPollReactor is not None and isinstance(reactor, EPollReactor):
        return HubReactor(Hub(reactor), reactor)
    return reactor
