"""One connection's requests: bytes in, replies out, in order, within bounded memory.

A `Session` has no transport: whoever owns it gives it what was read (`Session.receive`) and sends
what it puts into the list of replies.  It decides which request is served next, what waits, and
when to read on; what a request means is its dialect's business (`kvproto.server.binary`,
`kvproto.server.text`).

The way of a read.  Bytes are looked at once.  As long as nothing is in the way, the dialect's scan
(`kvproto.server.scan`, compiled) decodes and executes request after request.  What it leaves, and
everything where there is none, is decoded by the dialect into a queue and served from there: one
after the other while nothing is under way; through the window (`kvproto.server.window`) from the
first reply that is a Deferred until the window is empty again.

Serving stops when

* the window does not admit the next request: something must be waited for;
* `unsent_limit` / 2 bytes of replies are there: the owner sends them and, unless that was too much
  for the transport, lets the session `proceed`;
* the owner has said `pause`;
* there is a `hangup`.

Rules that a change must keep:

* While stopped, a read is kept undecoded and `reads` is False.  So a session holds at most one
  read of requests, one request that is still coming in, what is in its window, and half of
  `unsent_limit` and one reply for its owner.
* `receive` and `proceed` return True when their owner has nothing else to do than to send the
  replies; False makes it look at `hangup`, `reads`, `more` and `size`.  `receive` returns True also
  where little waits for a store's group and nothing else: then `take_group` gives it.
* Once `hangup` is set, nothing is served any more.  The owner closes after the replies.

States.  They follow from a few facts, which `_look_again` puts together after each step::

    plain    nothing is queued, kept, under way or half received: a read may be scanned
    serving  requests are being decoded or executed (a store that calls back is told to wait)
    stopped  paused, or blocked by the window, or more to send first, or hung up, or draining and
             waiting for what is under way
    hung up  `hangup` is set: the end
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from kvproto.errors import RemoteProtocolError
from kvproto.server.buckets import Bucket
from kvproto.server.replies import Hangup, Reply, size_of
from kvproto.server.window import (
    BARRIER,
    EMPTY,
    ENDING,
    FENCED,
    Servant,
    Subject,
    Window,
    is_reported,
)
from kvproto.store import IGroupingStore

__all__ = ["Dialect", "Scan", "Session"]

Scan: TypeAlias = "Callable[[Session, Dialect, bytes, list[bytes], int], int]"
"""Serves requests from the beginning of a read.

It is called with the session, of which nothing is under way or half received, its dialect, what was
read, a list that takes the replies, and the bytes of replies after which the rest is left.  It
returns how many bytes of the read it has left; -1 for none, where something else is left to do:
the session is not plain any more.
"""


_LITTLE = 4 << 10
"""Bytes of replies that may wait for a store without anybody's being told."""


class Dialect(Servant, Protocol):
    """What the requests of one connection mean."""

    bucket: Bucket | None
    """Where the client works, None before it may."""

    scan: Scan | None
    """Decodes and executes requests faster than `decode_and_execute`, None where nothing does."""

    def feed(self, data: bytes) -> list[Any]:
        """Decode requests; once the stream is broken, `error` says why."""

    def execute(self, request: Any) -> Reply:
        """Serve one request, all before it having been answered."""

    def subject(self, request: Any, *, started: bool = False) -> Subject:
        """Return what a request is about, so that it waits for the right others.

        Args:
            request: The request.
            started: Whether `execute` has been called with it, and has returned a Deferred.
        """

    @property
    def in_order(self) -> bool:
        """Whether replies come in the order of requests."""

    @property
    def held(self) -> bool:
        """Whether the next bytes continue something, or their meaning depends on what was.

        Always where the stream is broken.
        """

    @property
    def partial(self) -> bool:
        """Whether a request has been received in part."""

    @property
    def buffered(self) -> int:
        """Bytes that are held of a request that has been received in part."""

    @property
    def forwarding(self) -> bool:
        """Whether forwarded requests are under way: whatever else there is must wait for them."""

    def give_back(self) -> None:
        """Forward nothing more; decode what is there of a request that was to be forwarded."""

    def detach(self) -> None:
        """Let go of what is not complete, and of forwarded requests: the client is gone."""

    def limit_values(self) -> None:
        """Take values as long as the server's settings allow; called when they have changed."""

    def observe(self) -> None:
        """See anew whether anybody watches what is asked of the store."""

    @property
    def error(self) -> RemoteProtocolError | None:
        """Why the stream cannot be read any further, None while it can."""

    def last_words(self, error: RemoteProtocolError) -> bytes:
        """Encode what is said to a peer whose stream is broken, before hanging up."""


def decode_and_execute(
    session: Session, dialect: Dialect, data: bytes, out: list[bytes], limit: int
) -> int:
    """Serve a read as a scan does, by what the dialect has for it: a `Scan` for all dialects."""
    requests, execute = iter(dialect.feed(data)), dialect.execute
    size = 0
    for request in requests:
        try:
            reply = execute(request)
        except Exception as error:
            reply = session.answer_failure(request, error)
        if reply.__class__ is bytes:
            if reply:
                out.append(reply)
                size += len(reply)
        else:
            size += session.take_unusual(request, reply, out)
            if not session.plain:
                break
        if size >= limit:
            break
    else:
        if not dialect.held:
            return 0
    if session.hangup is None:
        session.queue(list(requests))
    return -1


def scan_in_group(
    session: Session, dialect: Dialect, data: bytes, out: list[bytes], limit: int
) -> int:
    """Serve a read as the dialect's scan does, as one group of a store: see `IGroupingStore`.

    What is answered waits in the window until the group is safe, and leaves with one write.
    """
    scan = dialect.scan or decode_and_execute
    assert dialect.bucket is not None
    store: Any = dialect.bucket.store
    session.begin_group(store, out)
    try:
        left = scan(session, dialect, data, out, limit)
    finally:
        alone = session.end_group(out)
    return left if left or session.plain or alone else -1


def scan_of(dialect: Dialect) -> Scan:
    """Return what serves the reads of a dialect."""
    bucket = dialect.bucket
    if bucket is not None and bucket.groups:
        return scan_in_group
    return dialect.scan or decode_and_execute


def _unsaved(failure: Failure) -> Hangup:
    """Close: a client may not be told what nobody knows."""
    return Hangup(b"", failure.getErrorMessage())


def _weight(request: Any) -> int:
    """Return how many bytes a request holds, about."""
    return len(getattr(request, "value", b""))


class Session:
    """The requests of one connection.

    Args:
        dialect: What they mean.
        unsent_limit: Bytes of replies that may wait for the peer.
        changed: Called when there is something new for `proceed`: replies that were waited for.
        report: Called with a `Failure` of ours, for the log.
        most: Requests that are served before others' connections have their turn; 0: as many as
            there are.

    Attributes:
        plain: Whether a read may be scanned.
        dialect: As given.
        window: What is under way.
        idle: Whether nothing at all is held: no request in part, no reply, nothing under way.
        moved: Whether a request has become complete, or a reply has left; the owner resets it.
        reads: Whether the owner should go on reading.
        hangup: Why to close, and with which reason for the log; None while the session goes on.
            Its reply is among the replies already.
    """

    __slots__ = (
        "_blocked",
        "_changed",
        "_draining",
        "_group",
        "_group_at",
        "_kept",
        "_last_came",
        "_left",
        "_limit",
        "_more",
        "_most",
        "_next",
        "_paused",
        "_report",
        "_requests",
        "_scan",
        "_scannable",
        "_serving",
        "_stopped",
        "_waits_for_last",
        "dialect",
        "hangup",
        "idle",
        "moved",
        "plain",
        "reads",
        "window",
    )

    def __init__(
        self,
        dialect: Dialect,
        unsent_limit: int,
        changed: Callable[[], object],
        report: Callable[[Failure], object],
        most: int = 0,
    ) -> None:
        # A scan does not count what it serves.
        self.plain = self._scannable = not most
        self._most = self._left = most or sys.maxsize
        self._scan = scan_of(dialect)
        # The store whose group is open, and where in the replies it began.
        self._group: Any = None
        self._group_at = 0
        self._limit = max(1, unsent_limit // 2)
        self.dialect = dialect
        self.window = Window(dialect, unsent_limit, self._window_changed, report)
        self._changed = changed
        self._report = report
        # Requests that were decoded and not yet served, and reads that were not yet decoded.
        self._requests: list[Any] = []
        self._next = 0
        self._kept: list[bytes] = []
        self._serving = self._stopped = False
        self._paused = self._blocked = self._more = False
        self._draining = self._waits_for_last = self._last_came = False
        self.idle = True
        self.moved = False
        self.reads = True
        self.hangup: Hangup | None = None

    # what the owner calls

    def receive(self, data: bytes, out: list[bytes]) -> bool:
        """Take what was read.

        Args:
            data: It, never empty.
            out: Takes replies, in order.

        Returns:
            Whether there is nothing else to do than to send the replies, and nothing is held but
            perhaps a few replies that wait for a group.
        """
        if self.plain:
            scan = self._scan  # CPython is slower to call what is an attribute
            left = scan(self, self.dialect, data, out, self._limit)
            if not left:
                return True
            data = data[-left:] if left > 0 else b""
        if self.hangup is not None:
            return False
        waits = bool(data) and self._waits_for_group
        if self._stopped or self._serving or self.dialect.forwarding or waits:
            if data:
                self._kept.append(data)
                self._stopped = True
                self.idle = self.plain = self.reads = False
            return False
        if data:
            self._requests = self._decode(data)
            self._next = 0
        return self._serve(out, sum(map(len, out)))

    def proceed(self, out: list[bytes]) -> bool:
        """Go on: after `resume`, after `more`, or when something has changed.

        Args:
            out: As for `receive`.

        Returns:
            As `receive` does.
        """
        if self._serving or self._paused or self.hangup is not None:
            return False
        return self._serve(out, 0)

    @property
    def more(self) -> bool:
        """Whether `proceed` would give more replies now: a turn has its limit."""
        return self._more and not self._paused and self.hangup is None

    @property
    def yields(self) -> bool:
        """Whether others shall have their turn before there is `more`."""
        return self.more and self._left <= 0

    @property
    def waits(self) -> bool:
        """Whether something waits for forwarded requests to end."""
        return bool(self._kept) or self._draining

    @property
    def size(self) -> int:
        """Bytes that are held here: requests in part or under way, and replies."""
        return self.dialect.buffered + self.window.size + sum(map(len, self._kept))

    def pause(self) -> None:
        """Give no replies until `resume`: the transport has enough to send."""
        self._paused = self._stopped = True
        self.plain = False

    def resume(self) -> None:
        """Go on with the next `proceed`, which must follow."""
        self._paused = False

    def drain(self) -> None:
        """Hang up as soon as all is answered that was asked, the request coming in included."""
        self._draining = True
        self.dialect.give_back()
        if not self._serving:
            self._look_again()
            self._end_drain()

    def observe(self) -> None:
        """Let the dialect see anew whether its store is watched: another scan may follow."""
        self.dialect.observe()
        self._scan = scan_of(self.dialect)

    def end_of_input(self) -> None:
        """Hang up as soon as all is answered that was asked: the peer will ask nothing else."""
        self._last_came = True
        self.drain()

    def end(self, hangup: Hangup | None = None) -> None:
        """Let go of everything, whatever is under way.

        Args:
            hangup: Why, where the owner is still to close.
        """
        if self.hangup is None:
            self._hang_up(hangup or Hangup())
        self.window.end()
        self.dialect.detach()

    # what a scan calls

    def take_unusual(self, request: Any, reply: Reply, out: list[bytes]) -> int:
        """Take a reply that is not just ``bytes``; `plain` says whether the scan may go on.

        Args:
            request: What it answers.
            reply: It, a Deferred perhaps.
            out: Takes what can be sent.

        Returns:
            How many bytes were put into `out`.
        """
        if self._group is not None and isinstance(reply, Deferred | Hangup):
            self.end_group(out)
            if isinstance(reply, Hangup) and self.window.state is not EMPTY:
                reply = succeed(reply)  # behind what waits
        if isinstance(reply, Deferred):
            self._adopt(request, reply)
            return 0
        if isinstance(reply, Hangup):
            self._hang_up(reply)
            reply = reply.reply
        if isinstance(reply, list):
            out.extend(reply)
        elif reply:
            out.append(reply)
        return size_of(reply)

    def take_next(self, request: Any, out: list[bytes]) -> int:
        """Serve the request behind one that `take_unusual` has taken.

        Args:
            request: One that waits for nothing.
            out: Takes its reply.

        Returns:
            How many bytes were put into `out`.
        """
        if self.window.state is not EMPTY:
            self.window.enter(request, self.dialect.subject(request))
            return 0
        return self.take_unusual(request, self.dialect.execute(request), out)

    def begin_group(self, store: IGroupingStore, out: list[bytes]) -> None:
        """Open a group: what is answered from now on is kept back until it is safe.

        Args:
            store: Whose.
            out: As for `receive`.
        """
        store.begin_group()
        self._group, self._group_at = store, len(out)

    def end_group(self, out: list[bytes]) -> bool:
        """End the group that is open, if one is; let its replies wait if they have to.

        Returns:
            Whether they do, are little, and nothing else waits.
        """
        store, self._group = self._group, None
        saved = None if store is None else store.end_group()
        if saved is None:
            return False
        held = out[self._group_at :]
        del out[self._group_at :]
        saved.addCallbacks(lambda _: held, _unsaved)
        window, size = self.window, sum(map(len, held))
        alone = window.state is EMPTY and size <= _LITTLE
        window.adopt(None, BARRIER, size, saved)
        self.idle = self.plain = False
        return alone and window.state is FENCED

    def take_group(self, out: list[bytes]) -> bool:
        """Take the replies of a group that is safe now, if nothing else is to be done.

        Args:
            out: Takes them.

        Returns:
            Whether it was so; otherwise `proceed` does what there is to do.
        """
        window = self.window
        if (
            self._stopped
            or self._serving
            or window.unfinished
            or len(window.ready) != 1
            or window.state is ENDING
        ):
            return False
        window.take(out, self._limit)
        self._look_again()
        return True

    @property
    def _waits_for_group(self) -> bool:
        """Whether what is read is better kept, to be served as the next group."""
        return self._scan is scan_in_group and self.window.state is FENCED

    def answer_failure(self, request: Any, error: Exception) -> Reply:
        """Report an exception that is being handled; return what the peer hears of it."""
        if is_reported(error):
            self._report(Failure())
        return self.dialect.conclude(request, self.dialect.failed(request, error))

    def queue(self, requests: list[Any]) -> None:
        """Keep requests that were decoded, to be served when that is possible."""
        self._requests, self._next = requests, 0

    # the loop

    def _decode(self, data: bytes) -> list[Any]:
        """Decode what was read; while draining, note that the last request has come."""
        requests = self.dialect.feed(data)
        if self._waits_for_last and requests:
            self._last_came = True
        return requests

    def _serve(self, out: list[bytes], size: int) -> bool:
        """Serve what is queued until nothing is left or something stops it.

        Args:
            out: Takes replies.
            size: Bytes of those that are there already.

        Returns:
            As `receive` does.
        """
        dialect, window, limit = self.dialect, self.window, self._limit
        self._serving = True
        self._more = False
        self._left = self._most
        if self._requests or window.ready:
            self.moved = True
        try:
            while True:
                if window.state is not EMPTY:
                    size += window.take(out, limit - size)
                self._blocked = False
                size = self._serve_queue(out, size)
                if window.hangup is not None and self.hangup is None:
                    self._hang_up(window.hangup)
                if self.hangup is not None or (self._blocked and not window.ready):
                    break
                if size >= limit or self._left <= 0:
                    # An idle session does not have to be asked again.
                    self._more = bool(
                        self._next < len(self._requests)
                        or window.ready
                        or self._kept
                        or dialect.error
                    )
                    break
                if self._next < len(self._requests) or window.ready:
                    continue
                error = dialect.error
                if error is not None:
                    if window.state is not EMPTY:
                        self._blocked = True  # what came before the fault is answered first
                        break
                    last_words = dialect.last_words(error)
                    if last_words:
                        out.append(last_words)
                    self._hang_up(Hangup(last_words, str(error)))
                    break
                if not self._kept or dialect.forwarding or self._waits_for_group:
                    break
                size = self._serve_kept(out, size)
        finally:
            self._serving = False
            if self._next >= len(self._requests):
                self._requests, self._next = [], 0  # an idle connection keeps no request alive
        self._look_again()
        if self._draining:
            self._end_drain()
        return self.idle and self.hangup is None and self.reads

    def _serve_kept(self, out: list[bytes], size: int) -> int:
        """Decode what was kept, or serve it as a group; arguments and result as `_serve_queue`."""
        data = b"".join(self._kept)
        self._kept = []
        if self._scan is scan_in_group and self._may_scan:
            self.plain = self.moved = True
            left = scan_in_group(self, self.dialect, data, out, self._limit - size)
            size = sum(map(len, out))
            data = data[-left:] if left > 0 else b""
        if data and self.hangup is None:
            if self._waits_for_group:
                self._kept.append(data)
                return size
            self._requests = self._decode(data)
            self._next = 0
        if self._requests:
            self.moved = True
        return size

    @property
    def _may_scan(self) -> bool:
        """Whether what was kept may be scanned, as a read is."""
        return (
            self.window.state is EMPTY
            and not self.dialect.held
            and not self._draining
            and self._scannable
        )

    def _serve_queue(self, out: list[bytes], size: int) -> int:
        """Serve requests that were decoded.

        Args:
            out: Takes replies.
            size: Bytes of those that are there already.

        Returns:
            Bytes of those that are there now.
        """
        window, limit = self.window, self._limit
        while self._next < len(self._requests) and size < limit and self.hangup is None:
            if self._left <= 0:
                break
            if window.state is EMPTY:
                size = self._serve_alone(out, size)
            elif not self._enter_next():
                self._blocked = True
                break
            if window.ready:
                size += window.take(out, limit - size)
        return size

    def _serve_alone(self, out: list[bytes], size: int) -> int:
        """Serve requests as long as each is answered at once; nothing is under way."""
        requests, execute, limit = self._requests, self.dialect.execute, self._limit
        first = self._next
        at = first - 1
        for at in range(first, min(len(requests), first + self._left)):
            try:
                reply = execute(requests[at])
            except Exception as error:
                reply = self.answer_failure(requests[at], error)
            if reply.__class__ is bytes:
                if reply:
                    out.append(reply)
                    size += len(reply)
            else:
                size += self.take_unusual(requests[at], reply, out)
                if self.hangup is not None or self.window.state is not EMPTY:
                    break
            if size >= limit:
                break
        self._next = at + 1
        self._left -= self._next - first
        return size

    def _enter_next(self) -> bool:
        """Let the next request into the window; return whether it could enter."""
        dialect, window = self.dialect, self.window
        request = self._requests[self._next]
        subject = dialect.subject(request)
        if not window.admits(subject):
            return False
        self._next += 1
        self._left -= 1
        if not window.unfinished:
            window.in_order = dialect.in_order
        window.enter(request, subject, _weight(request))
        return True

    def _adopt(self, request: Any, reply: Deferred[Any]) -> None:
        """Let a request into the window that was started while it was empty."""
        dialect, window = self.dialect, self.window
        window.in_order = dialect.in_order
        window.adopt(request, dialect.subject(request, started=True), _weight(request), reply)
        self.plain = False

    def _hang_up(self, hangup: Hangup) -> None:
        """Serve nothing more."""
        self.hangup = hangup
        self._requests, self._kept, self._next = [], [], 0
        self.plain = False
        self._stopped = True

    def _window_changed(self) -> None:
        """Tell the owner that a request has ended, unless it is in a method of ours."""
        if not self._serving:
            self._changed()

    def _look_again(self) -> None:
        """See whether anything stops us, whether to read, and whether a read may be scanned."""
        dialect = self.dialect
        busy = self.window.state is not EMPTY
        queued = bool(self._requests or self._kept)
        held = dialect.held
        self.idle = not (busy or queued or held)
        self._stopped = (
            self._paused
            or self._blocked
            or queued
            or self.hangup is not None
            or (self._draining and (busy or dialect.forwarding))
        )
        if not self._stopped:
            self.reads = True
        self._scan = scan_of(dialect)
        self.plain = (
            self._scannable and self.idle and not (self._stopped or self._draining or self._paused)
        )

    def _end_drain(self) -> None:
        """Hang up if all is answered; otherwise wait for the request that is coming in, only."""
        if self._stopped or self.window.state is not EMPTY or self.dialect.forwarding:
            return
        if self._last_came or not self.dialect.partial:
            self._hang_up(Hangup())
        else:
            self._waits_for_last = True
