"""One descriptor for Twisted's reactor, behind it all accepted connections.

Twisted's loop does much for each event: a logging context (two dictionaries copied), four
calls, several tests.  A `Hub` is an epoll instance of its own that the reactor watches like
one socket; when it becomes readable, the ready connections are served in a tight loop.
Level-triggered like Twisted's; what each connection hears, and when, is the same.

* An exception of one connection is logged and ends that connection only.
* One turn serves at most `TURN` events; then timers, listening ports and everything else of
  the reactor have theirs.  The kernel rotates what is ready, so nobody starves.
* When the reactor disconnects everybody at its end, so does the hub.

Only for `EPollReactor`; `hub_for` gives any other reactor back as it is.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import txaio
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReactorFDSet, IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

try:
    from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll

    from twisted.internet.epollreactor import EPollReactor
except ImportError:  # not Linux
    EPollReactor = None  # type: ignore[assignment, misc]

__all__ = ["TURN", "Hub", "hub_for"]

txaio.use_twisted()
log = txaio.make_logger()  # type: ignore[attr-defined]

TURN: Final = 256
"""Most events served before the reactor looks elsewhere."""


_REASONS: Final[dict[type[BaseException], Failure]] = {
    type(why): Failure(why) for why in (CONNECTION_DONE, CONNECTION_LOST)
}
"""The usual two, made once as Twisted does: they carry nothing of a connection."""


@implementer(IReactorFDSet, IReadDescriptor)
class Hub:
    """A reactor to the transports in it, one of its readers to the reactor.

    Args:
        reactor: An epoll reactor; asked for everything else.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._poller = epoll()
        self._members: dict[int, Any] = {}
        self._masks: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        """Be the real reactor in everything else."""
        return getattr(self._reactor, name)

    # for transports

    def addReader(self, reader: Any) -> None:
        """Tell a transport when there is something to read."""
        self._add(reader, EPOLLIN)

    def addWriter(self, writer: Any) -> None:
        """Tell a transport when there is room to write."""
        self._add(writer, EPOLLOUT)

    def removeReader(self, reader: Any) -> None:
        """Tell it no more."""
        self._remove(reader, EPOLLIN)

    def removeWriter(self, writer: Any) -> None:
        """Tell it no more."""
        self._remove(writer, EPOLLOUT)

    def removeAll(self) -> list[Any]:
        """Let go of all transports, and return them."""
        members = list(self._members.values())
        for member in members:
            self._remove(member, EPOLLIN | EPOLLOUT)
        return members

    def getReaders(self) -> list[Any]:
        """Return the transports that read."""
        return [member for fd, member in self._members.items() if self._masks[fd] & EPOLLIN]

    def getWriters(self) -> list[Any]:
        """Return the transports that write."""
        return [member for fd, member in self._members.items() if self._masks[fd] & EPOLLOUT]

    def _add(self, member: Any, event: int) -> None:
        fd = member.fileno()
        mask = self._masks.get(fd, 0)
        if mask & event:
            return
        if mask:
            self._poller.modify(fd, mask | event)
        else:
            self._poller.register(fd, event)
            if not self._members:
                self._reactor.addReader(self)
            self._members[fd] = member
        self._masks[fd] = mask | event

    def _remove(self, member: Any, event: int) -> None:
        fd = member.fileno()
        if fd < 0:
            # Its socket was closed behind our back, and the kernel has forgotten it.
            fd = next((fd for fd, other in self._members.items() if other is member), -1)
            event = EPOLLIN | EPOLLOUT
        mask = self._masks.get(fd, 0)
        if not mask & event:
            return
        rest = mask & ~event
        if rest:
            self._poller.modify(fd, rest)
            self._masks[fd] = rest
            return
        try:  # noqa: SIM105 - a context manager for each connection costs more than it says
            self._poller.unregister(fd)
        except OSError:
            pass  # the kernel has forgotten it already
        del self._members[fd], self._masks[fd]
        if not self._members:
            self._reactor.removeReader(self)

    # for the reactor

    def fileno(self) -> int:
        """Return the descriptor that is readable while a transport is ready."""
        return self._poller.fileno()

    def logPrefix(self) -> str:
        """Say who is at work."""
        return "connections"

    def doRead(self) -> None:
        """Serve the transports that are ready."""
        members = self._members
        for fd, event in self._poller.poll(0, TURN):
            member = members.get(fd)
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
                if why is None and event & EPOLLOUT and self._masks.get(fd, 0) & EPOLLOUT:
                    reads = 0
                    why = member.doWrite()
            except BaseException:
                why = sys.exc_info()[1]
                log.failure("a connection's protocol failed")
            if why is not None:
                self._end(member, why, bool(reads))

    def _end(self, member: Any, why: BaseException, reading: bool) -> None:
        """Tell a transport that its connection, or one half of it, is over."""
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
            log.failure("a connection's protocol failed at its end")

    def connectionLost(self, reason: Failure) -> None:
        """Hear that the reactor ends: so do all connections."""
        for member in self.removeAll():
            try:
                member.connectionLost(reason)
            except BaseException:
                log.failure("a connection's protocol failed at its end")


def hub_for(reactor: Any) -> Any:
    """Return a hub for new connections, or the reactor itself where there can be none."""
    if EPollReactor is not None and isinstance(reactor, EPollReactor):
        return Hub(reactor)
    return reactor
