"""The window: requests of one connection that are under way together.

A store that answers later must not hold up requests that have nothing to do with it.  The window
starts them as they come, and gives the replies back in the order in which they may be sent.  It
knows which requests must wait for which others; it knows nothing of transports and of what a
request means.  Its owner asks `Window.admits` before each request, gives it with `Window.enter`
and fetches replies with `Window.take`; the callable `changed` says when there is something new.

Rules that a change must keep:

* A request starts at once, unless one with the same subject (its key) has not ended: then it starts
  when that one has.  So operations on one key happen in the order of their requests.
* A barrier (`BARRIER`) starts when everything before it has ended, and nothing starts before it has
  ended: it is about the connection, or the whole store.
* Replies leave in the order of the requests.  Only where the client has agreed to it
  (`Window.in_order` is False) do they leave as they come.
* The failure of a request answers that request.
* What is inside is limited: `limit` requests, or `size_limit` bytes of requests that have not ended
  and of replies that have not left.  At the limit nothing starts, so that it is exceeded only by
  the replies to requests under way; when nothing is under way and no reply can leave, one starts
  whatever its size.
* A `Hangup` lets nothing behind it start; it leaves after what came before it, and ends the window.
* Ending cancels what is under way.

The states, and how one follows from another::

                 request         barrier
        EMPTY ------------> OPEN          EMPTY ---------> FENCED
          ^                |    ^                             |
          |   the last     |    | reply leaves                | reply leaves
          +---reply leaves-+    |                             v
                           v    |                           EMPTY
                            FULL
                                    hangup            hangup leaves, or end()
        EMPTY, OPEN, FULL, FENCED ----------> ENDING -------------------------> ENDED

The table; "no" is what `admits` says, so that whoever asks waits::

    state    request      barrier                reply             hangup    end()
    EMPTY    OPEN, FULL   FENCED                 -                 -         ENDED
    OPEN     OPEN, FULL   FENCED if all have     OPEN, FULL, EMPTY ENDING    ENDED
                          ended, otherwise no
    FULL     no           no                     OPEN, FULL, EMPTY ENDING    ENDED
    FENCED   no           no                     OPEN, FULL, EMPTY ENDING    ENDED
    ENDING   no           no                     ENDING, ENDED     ENDING    ENDED
    ENDED    no           no                     ENDED             ENDED     ENDED

A request that is answered as soon as it starts passes through: the state is what it was once its
reply has left.  FENCED ends when the barrier has ended; its reply may still be there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from kvproto.errors import ForeignData, UpstreamError
from kvproto.server.replies import Hangup, Reply, size_of

__all__ = [
    "BARRIER",
    "EMPTY",
    "ENDING",
    "FENCED",
    "FREE",
    "MAX_REQUESTS",
    "Servant",
    "State",
    "Subject",
    "Window",
    "is_reported",
]

MAX_REQUESTS = 256
"""Requests of one connection under way together.  More would gain nothing: this many hide 250
round trips to a store, and clients seldom have more in flight."""

Subject = Hashable
"""What a request is about: a key, `FREE` or `BARRIER`."""

FREE: Final = None
"""The subject of a request that waits for no other one: only its reply has a place."""


class _Barrier(Enum):
    BARRIER = "barrier"


BARRIER: Final = _Barrier.BARRIER
"""The subject of a request that nothing may overtake in either direction."""


class State(Enum):
    """What a window may do with the next request."""

    EMPTY = "nothing is under way"
    OPEN = "requests are under way, and more may start"
    FULL = "as many or as much as there may be is inside"
    FENCED = "a barrier is under way"
    ENDING = "a hangup is inside: nothing starts any more"
    ENDED = "everything has been let go of"


# By name: to look a member up in its class costs more than what is done with it.
EMPTY, _OPEN, _FULL, FENCED, ENDING, _ENDED = State


def is_reported(error: BaseException | None) -> bool:
    """Return whether the log is told of a request that failed so.

    A store that is away has lines of its own, one when it goes and one when it is back.
    """
    return not isinstance(error, UpstreamError) or isinstance(error, ForeignData)


class Servant(Protocol):
    """What a window needs of a session."""

    def begin(self, request: Any) -> Reply:
        """Start a request, perhaps before it is its turn to be answered."""

    def conclude(self, request: Any, reply: Reply) -> Reply:
        """Return what is sent now that it is the turn of this reply."""

    def failed(self, request: Any, error: BaseException | None = None) -> Reply:
        """Answer a request that could not be served.

        Args:
            request: The request.
            error: Why; without a meaning for clients, it is "internal error".
        """


class _Entry:
    """One request in the window."""

    __slots__ = ("deferred", "follower", "reply", "request", "size", "subject")

    def __init__(self, request: Any, subject: Subject, size: int) -> None:
        self.request = request
        self.subject = subject
        self.size = size  # what it counts for: the request's bytes, then the reply's
        self.reply: Reply | None = None  # None until it has ended
        self.deferred: Deferred[Any] | None = None
        self.follower: _Entry | None = None  # the next one with the same subject


class Window:
    """The requests of one connection that are under way.

    Args:
        servant: Starts requests.
        size_limit: Bytes of unfinished requests and unsent replies above which nothing starts.
        changed: Called, not from within a method of the window, when something has ended.
        report: Called with a `Failure` that a request has ended with, for the log.
        limit: Requests that may be inside.

    Attributes:
        state: What it may do.
        in_order: Whether replies leave in the order of requests.  May be changed while no request
            is unfinished.
        unfinished: Requests that have not ended.
        size: Bytes of unfinished requests and of replies that have not left.
        hangup: The hangup that has left, None before that.
        ready: Requests whose replies may leave; for others, whether there are any.
    """

    __slots__ = (
        "_changed",
        "_count",
        "_fence",
        "_last",
        "_order",
        "_report",
        "_running",
        "_servant",
        "_startable",
        "_starting",
        "hangup",
        "in_order",
        "limit",
        "ready",
        "size",
        "size_limit",
        "state",
        "unfinished",
    )

    def __init__(
        self,
        servant: Servant,
        size_limit: int,
        changed: Callable[[], object],
        report: Callable[[Failure], object],
        limit: int = MAX_REQUESTS,
    ) -> None:
        self._servant = servant
        self._changed = changed
        self._report = report
        self.limit = limit
        self.size_limit = size_limit
        self.state = EMPTY
        self.in_order = True
        self.unfinished = 0
        self.size = 0
        self._count = 0
        self.hangup: Hangup | None = None
        # Requests whose replies wait for those before them; then replies that may leave.
        self._order: deque[_Entry] = deque()
        self.ready: deque[_Entry] = deque()
        self._running: set[_Entry] = set()
        # The last request of each subject that has not ended.
        self._last: dict[Subject, _Entry] = {}
        self._fence: _Entry | None = None
        # Requests whose turn has come, started by a loop: chains of them may be long.
        self._startable: deque[_Entry] = deque()
        self._starting = False

    def admits(self, subject: Subject) -> bool:
        """Return whether a request may enter now.

        Args:
            subject: What it is about.
        """
        if self.state is EMPTY:
            return True
        if self.state is not _OPEN:
            return False
        return subject is not BARRIER or not self.unfinished

    def enter(self, request: Any, subject: Subject, size: int = 0) -> None:
        """Take a request, and start it as soon as nothing that it must wait for is unfinished.

        Args:
            request: One that `admits` allows.
            subject: What it is about.
            size: Bytes that it holds.
        """
        entry = self._add(request, subject, size)
        before = None
        if subject is BARRIER:
            self._fence = entry
        elif subject is not FREE:
            before = self._last.get(subject)
            self._last[subject] = entry
        if before is None:
            self._startable.append(entry)
            self._start()
        else:
            before.follower = entry
        self._settle()

    def adopt(self, request: Any, subject: Subject, size: int, reply: Deferred[Any]) -> None:
        """Take a request that was started outside, while the window was empty.

        Args:
            request: The request; None for replies to several that wait for something together.
            subject: What it is about.
            size: Bytes that it holds.
            reply: Its reply to come.
        """
        entry = self._add(request, subject, size)
        if subject is BARRIER:
            self._fence = entry
        elif subject is not FREE:
            self._last[subject] = entry
        self._starting = True
        try:
            self._wait_for(entry, reply)
        finally:
            self._starting = False
        self._start()
        self._settle()

    def take(self, out: list[bytes], limit: int) -> int:
        """Let replies leave.

        A `hangup` among them ends the window: nothing leaves behind it.

        Args:
            out: Takes them.
            limit: Bytes after which the others stay.

        Returns:
            How many bytes were put into `out`.
        """
        ready = self.ready
        total = 0
        while ready and total < limit:
            entry = ready.popleft()
            assert entry.reply is not None
            reply = entry.reply
            if entry.request is not None:
                reply = self._servant.conclude(entry.request, reply)
            self.size -= entry.size
            self._count -= 1
            if isinstance(reply, Hangup):
                self.hangup = reply
                reply = reply.reply
                self.end()
            if isinstance(reply, bytes):
                if reply:
                    out.append(reply)
                    total += len(reply)
            elif isinstance(reply, list):
                out += reply
                total += sum(map(len, reply))
            if not ready:
                self._start()  # there is room now
        self._settle()
        return total

    def end(self) -> None:
        """Let go of everything: cancel what is under way, forget what has not left."""
        self.state = _ENDED
        self._order.clear()
        self.ready.clear()
        self._startable.clear()
        self._last.clear()
        self._fence = None
        self.unfinished = self.size = self._count = 0
        running, self._running = self._running, set()
        for entry in running:
            if entry.deferred is not None:
                entry.deferred.cancel()

    # how a request goes through

    def _add(self, request: Any, subject: Subject, size: int) -> _Entry:
        entry = _Entry(request, subject, size)
        self._count += 1
        self.unfinished += 1
        self.size += size
        if self.in_order:
            self._order.append(entry)
        return entry

    def _start(self) -> None:
        """Start what may start, one after the other, until nothing is left."""
        if self._starting or not self._startable:
            return
        self._starting = True
        try:
            while self._startable:
                entry = self._startable[0]
                full = self.size - entry.size >= self.size_limit
                if full and (self._running or self.ready):
                    break
                self._startable.popleft()
                try:
                    reply = self._servant.begin(entry.request)
                except Exception as error:
                    if is_reported(error):
                        self._report(Failure())
                    reply = self._servant.failed(entry.request, error)
                if isinstance(reply, Deferred):
                    self._wait_for(entry, reply)
                else:
                    self._ended(entry, reply)
        finally:
            self._starting = False

    def _wait_for(self, entry: _Entry, reply: Deferred[Any]) -> None:
        entry.deferred = reply
        self._running.add(entry)
        reply.addCallbacks(self._answered, self._failed, (entry,), {}, (entry,), {})

    # Nothing follows these two on a Deferred, so they report their own failure.

    def _answered(self, reply: Reply, entry: _Entry) -> None:
        try:
            self._running.discard(entry)
            entry.deferred = None
            if self.state is _ENDED:
                return
            self._ended(entry, reply)
            if not self._starting:
                # Nobody above is in a method of ours: this comes from the store.
                if self._startable:
                    self._start()
                self._settle()
                self._changed()
        except Exception:
            self._report(Failure())

    def _failed(self, failure: Failure, entry: _Entry) -> None:
        try:
            if self.state is _ENDED:
                self._running.discard(entry)
                if not failure.check(CancelledError):
                    self._report(failure)
                return
            if is_reported(failure.value):
                self._report(failure)
            reply = self._servant.failed(entry.request, failure.value)
        except Exception:
            self._report(Failure())
            return
        self._answered(reply, entry)

    def _ended(self, entry: _Entry, reply: Reply) -> None:
        """Note how a request has ended; what waited for that may start, or leave."""
        entry.reply = reply
        self.unfinished -= 1
        size = len(reply) if reply.__class__ is bytes else size_of(reply)
        self.size += size - entry.size
        entry.size = size
        if entry is self._fence:
            self._fence = None
        elif entry.subject is not FREE:
            follower = entry.follower
            if follower is not None:
                entry.follower = None
                self._startable.append(follower)
            elif self._last.get(entry.subject) is entry:
                del self._last[entry.subject]
        if reply.__class__ is Hangup:
            self.state = ENDING
        order, ready = self._order, self.ready
        if not order:  # it was not put there: it may leave as it comes
            ready.append(entry)
        while order and order[0].reply is not None:
            ready.append(order.popleft())

    def _settle(self) -> None:
        """Say in `state` what follows from what is inside."""
        state = self.state
        if state is ENDING or state is _ENDED:
            return
        if self._fence is not None:
            self.state = FENCED
        elif not self._count:
            self.state = EMPTY
        elif self._count >= self.limit or self.size >= self.size_limit:
            self.state = _FULL
        else:
            self.state = _OPEN
