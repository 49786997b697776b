"""One connection: bytes in, requests to a session, replies out in order, within bounded memory.

`KVServerProtocol` owns the order and the amount: which request is served next, what waits, when the
peer is read.  What a request means is its session's business (`kvproto.server.binary`,
`kvproto.server.text`); the first byte of the connection says which kind it is.

Theory.  There is one queue, `_items`: requests of one read that were decoded and not yet served.
While nothing is under way they are served one after the other, in a loop.  A reply that is a
Deferred enters the window (`kvproto.server.window`), and so does whatever follows it, until the
window is empty again.  Serving stops when

* the window does not admit the next request: something must be waited for;
* `unsent_limit` / 2 bytes of replies are written, and the transport, above its own high-water mark,
  said `pauseProducing`;
* the connection is closing.

While stopped, a read is kept undecoded and the transport is told to stop reading.  So a connection
holds at most one read of requests, the window's requests and replies (`unsent_limit`, and one of
them), and as unsent replies the transport's high-water mark (64 KiB in Twisted), half the limit,
and one reply.  Serving goes on from `resumeProducing`, or from the window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.addresses import describe_peer
from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import CONNECTION, make_logger
from kvproto.errors import RemoteProtocolError, UpstreamError
from kvproto.interfaces import IAnswers, IDrainable, ISecuredTransport
from kvproto.server.binary import BinarySession
from kvproto.server.replies import Hangup, Reply
from kvproto.server.server import KVServer, Peer
from kvproto.server.text import TextSession
from kvproto.server.window import Servant, State, Subject, Window
from kvproto.wire.constants import BINARY_MAGICS

__all__ = ["KVServerProtocol", "Session"]

log = make_logger()
peer_log = LimitedLog(log)

_MOST_UNREAD = 16
"""Times ``unsent_limit`` that a peer may leave unread of what it had asked for before it stopped
reading, where that comes from elsewhere and cannot be called off."""

_JOIN_LIMIT = 32 * 1024
"""Replies of one turn up to this size, in bytes, are joined: cheaper than many parts."""


class Session(Servant, Protocol):
    """What the requests of one connection mean; the seam between order and meaning."""

    def feed(self, data: bytes) -> list[Any]:
        """Decode requests; once the stream is broken, `error` says why."""

    def execute(self, request: Any) -> Reply:
        """Serve one request, all before it having been answered."""

    def subject(self, request: Any, *, started: bool = False) -> Subject:
        """Say what a request is about, so that it waits for the right others.

        Args:
            request: The request.
            started: Whether `execute` has been called with it, and has returned a Deferred.
        """

    @property
    def in_order(self) -> bool:
        """Whether replies come in the order of requests."""

    @property
    def error(self) -> RemoteProtocolError | None:
        """Why the stream cannot be read any further, None while it can."""

    @property
    def partial(self) -> bool:
        """Whether a request has been received in part."""

    @property
    def buffered(self) -> int:
        """Bytes that are held of a request that has been received in part."""

    def last_words(self, error: RemoteProtocolError) -> bytes:
        """Encode what is said to a peer whose stream is broken, before hanging up."""


class QuickSession(Session, Protocol):
    """A session that offers a short way beside its feed and execute."""

    def quick(self, data: bytes, out: list[bytes], limit: int) -> int:
        """Serve requests from the beginning of a read while they are of the usual kind.

        Args:
            data: What was read.
            out: Takes the replies.
            limit: Bytes of replies after which the rest is left.

        Returns:
            How many bytes of `data` they were.
        """


def _ignore(data: bytes) -> list[Any]:
    """Decode nothing: the connection is over."""
    return []


def _weight(request: Any) -> int:
    """Return how many bytes a request holds, about."""
    return len(getattr(request, "value", b""))


SessionFactory: TypeAlias = Any
"""Called with (server, peer); returns a `Session`."""


@implementer(IPushProducer, IAnswers, IDrainable, IHalfCloseableProtocol)
class KVServerProtocol(TwistedProtocol):
    """One connection of a key-value client, on any transport.

    Args:
        server: What all connections share.
        connection: The `kvproto.interfaces.IVerifiedConnection` that hears of logins and faults;
            None where there is none.
        binary: Makes the session of a peer that speaks the binary protocol.
        text: Makes the session of a peer that speaks the text protocol.
    """

    transport: Any

    def __init__(
        self,
        server: KVServer,
        connection: Any = None,
        *,
        binary: SessionFactory = BinarySession,
        text: SessionFactory = TextSession,
    ) -> None:
        # First what a plain request needs: CPython keeps attributes in this order, and so these
        # share a line of the processor's cache.
        self._quick: QuickSession | None = None
        self._serving = False
        # A read is kept, not served, while this is true: `_look_again` says when.
        self._stopped = False
        self._turn_limit = max(1, server.settings.unsent_limit // 2)
        self._counters = server.counters
        self._written = 0  # by the last write
        self._server = server
        self._connection = connection
        self._kinds = (text, binary)
        self._peer = Peer(server, connection)
        self._session: Session | None = None
        self._feed: Callable[[bytes], list[Any]] = self._first_feed
        self._items: list[Any] = []
        self._at = 0
        self._unread: list[bytes] = []
        self._paused = False
        self._blocked = False  # the window does not admit what comes next
        self._window: Window | None = None
        self._quick_session: QuickSession | None = None
        self._closing = False
        self._reading = True
        self._connected = False
        self._draining = False
        self._last_request = False
        self._drained: list[Deferred[None]] = []
        self._budget = server.budget
        self._held = 0  # as the budget knows it
        self._unsent = 0  # about
        self._forwarder: Any = None  # a session that forwards requests as they are
        self._unread_replies = 0  # bytes of forwarded replies since the peer stopped reading

    # what the transport says

    def connectionMade(self) -> None:
        """Take the connection; know the peer now if somebody has verified it already."""
        self._connected = True
        self._counters.curr_connections += 1
        self._counters.total_connections += 1
        self._server.transports[self.transport] = None
        self.transport.registerProducer(self, True)
        if self._connection is not None:
            self._peer.recognise(tuple(self._connection.peer_chain))

    def dataReceived(self, data: bytes) -> None:
        """Serve what was read, or keep it while something stops us."""
        if self._stopped or self._serving:
            self._keep(data)
            return
        self._counters.bytes_read += len(data)
        try:
            session = self._quick
            if session is not None:
                out: list[bytes] = []
                at = session.quick(data, out, self._turn_limit)
                if out:
                    self._write(out, sum(map(len, out)) if len(out) > 1 else len(out[0]))
                if at == len(data):
                    return
                if at and not (data := self._left_over(data[at:])):
                    return
                if self._forwarder is not None and self._forwarder.forwarding:
                    # What is left has to wait for what was forwarded.
                    self._stopped = True
                    self._left_over(data)
                    return
            self._items = self._feed(data)
            self._at = 0
            self._serve()
        except Exception:
            self._broken()

    def answer(self, data: bytes, replies: list[bytes]) -> int:
        """Answer what the session serves by its short way; see `kvproto.interfaces.IAnswers`."""
        session = self._quick
        if session is None or self._stopped or self._serving:
            return 0
        at = session.quick(data, replies, self._turn_limit)
        self._written = written = sum(map(len, replies))
        self._counters.bytes_read += at
        self._counters.bytes_written += written
        return at

    def _left_over(self, data: bytes) -> bytes:
        """Return what is left of a read to be served now: nothing when the transport has enough."""
        if not self._stopped:
            return data
        self._counters.bytes_read -= len(data)  # counted again when it is served
        self._keep(data)
        return b""

    def readConnectionLost(self) -> None:
        """Answer what the peer has asked, then close: it has ended its side, and asks no more."""
        if self._session is not None and self._session.partial:
            self._note("the peer ended its side in the middle of a request")
        self._last_request = True
        self._begin_draining()

    def writeConnectionLost(self) -> None:
        """Nothing to do: nobody here closes one side of a connection."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Let go of everything, whatever was under way."""
        if not self._connected:
            return
        self._connected = False
        self._counters.curr_connections -= 1
        self._server.transports.pop(self.transport, None)
        session = self._session
        if not self._closing and session is not None and session.partial:
            self._note("the peer went away in the middle of a request")
        self._closing = self._stopped = True
        self._release()
        if self._forwarder is not None:
            self._forwarder.detach()
        drained, self._drained = self._drained, []
        for waiter in drained:
            waiter.callback(None)

    def pauseProducing(self) -> None:
        """Stop answering: the transport has enough to send."""
        self._paused = self._stopped = True
        self._unsent = self._written
        self._account(moved=True)

    def resumeProducing(self) -> None:
        """Go on answering."""
        self._paused = False
        self._unsent = 0
        self._unread_replies = 0
        self._go_on()
        if self._held:
            self._account(moved=True)

    def stopProducing(self) -> None:
        """Answer nothing more: the transport is going away, and will say so."""
        self._paused = self._stopped = True

    # what was forwarded

    def forwarded(self, replies: list[bytes]) -> None:
        """Write replies to forwarded requests."""
        if self._closing or not self._connected:
            return
        size = sum(map(len, replies))
        self._write(replies, size)
        if self._paused:
            # They were asked for before it stopped reading, and nobody else may wait for it.
            self._unread_replies += size
            if self._unread_replies > _MOST_UNREAD * self._server.settings.unsent_limit:
                self._closing = self._stopped = True
                self._note("the peer does not read its replies")
                self._close()
                self.transport.abortConnection()

    def forwarding_failed(self, reason: str) -> None:
        """Close: a request of unknown fate must not be answered."""
        if self._connected and not self._closing:
            self._hang_up(b"", reason)

    def forwarding_ended(self) -> None:
        """Serve what has waited for forwarded requests."""
        if self._stopped or self._draining:
            self._go_on()

    @property
    def partial(self) -> bool:
        """Whether a request has been received in part."""
        return self._session is not None and self._session.partial

    # what its owner says

    def drain(self) -> Deferred[None]:
        """Answer what has been asked, the request that is coming in included, then close.

        Returns:
            A Deferred that fires with None once the connection is closed.  A peer that does not
            finish its request, or does not read, holds it up: the caller bounds the wait.
        """
        done: Deferred[None] = Deferred()
        if not self._connected:
            done.callback(None)
            return done
        self._drained.append(done)
        if not self._draining:
            self._begin_draining()
        return done

    def _begin_draining(self) -> None:
        """Close once everything is answered; now, if it is."""
        self._draining = True
        if not self._serving:
            self._look_again()
            if not self._stopped:
                self._rest()

    # the loop

    def _first_feed(self, data: bytes) -> list[Any]:
        """See which protocol the first byte belongs to."""
        if self._connection is None:
            # Nobody has verified the peer before: now, with the first data, any handshake is over.
            secured = ISecuredTransport.providedBy(self.transport)
            self._peer.recognise(tuple(self.transport.peer_chain()) if secured else ())
        # Where else the same server can be reached: at the port that the client has used.
        self._peer.port = getattr(self.transport.getHost(), "port", 0)
        kind = self._kinds[data[0] in BINARY_MAGICS]
        self._session = session = cast("Session", kind(self._server, self._peer))
        self._feed = session.feed
        limit = self._server.settings.unsent_limit
        self._window = Window(session, limit, self._go_on, self._report)
        if getattr(session, "quick", None) is not None:
            self._quick = self._quick_session = cast("QuickSession", session)
        if getattr(session, "attach", None) is not None:
            self._forwarder = session
            self._forwarder.attach(self)
        return self._feed(data)

    def _serve(self) -> None:
        """Serve what is queued until it is empty or something stops us."""
        session, window = cast("Session", self._session), cast("Window", self._window)
        self._serving = True
        moved = bool(self._items) or window.ready
        try:
            while self._serve_turn(session, window):
                if self._at < len(self._items) or window.ready:
                    continue
                self._items = []  # an idle connection keeps no request alive
                error = session.error
                if error is not None:
                    if window.state is State.EMPTY:
                        self._hang_up(session.last_words(error), str(error))
                    else:
                        self._blocked = True  # what came before the fault is answered first
                elif self._unread:
                    data = b"".join(self._unread)
                    self._unread = []
                    self._counters.bytes_read += len(data)
                    self._items = self._feed(data)
                    self._at = 0
                    moved = moved or bool(self._items)
                    continue
                break
        finally:
            self._serving = False
        self._look_again()
        if not self._stopped and (self._draining or not self._reading):
            self._rest()
        if self._held or self._stopped or session.partial:
            self._account(moved=moved)

    def _serve_turn(self, session: Session, window: Window) -> bool:
        """Serve requests until there are no more, the turn's limit or a stop; write once.

        Returns:
            Whether there may be more to do now.
        """
        out: list[bytes] = []
        size = 0
        self._blocked = False
        if window.state is not State.EMPTY:
            size = window.take(out, self._turn_limit)
        while self._at < len(self._items) and size < self._turn_limit and not self._closing:
            if window.state is State.EMPTY:
                size = self._serve_alone(session, window, out, size)
            elif not self._serve_together(session, window):
                self._blocked = True
                break
            if window.ready:
                size += window.take(out, self._turn_limit - size)
        if window.hangup is not None:
            self._begin_closing(window.hangup)
        if out:
            self._write(out, size)
        if self._closing:
            self._close()
        return not (self._paused or self._closing) and (window.ready or not self._blocked)

    def _serve_alone(self, session: Session, window: Window, out: list[bytes], size: int) -> int:
        """Serve requests as long as each is answered at once; nothing is under way.

        Args:
            session: Serves them.
            window: Takes the first that is not answered at once.
            out: Takes replies.
            size: Bytes of the replies that are there already.

        Returns:
            Bytes of the replies that are there now.
        """
        items, execute, limit = self._items, session.execute, self._turn_limit
        at = self._at - 1
        for at in range(self._at, len(items)):
            item = items[at]
            try:
                reply = execute(item)
            except Exception as error:
                if not isinstance(error, UpstreamError):
                    self._report(Failure())
                reply = session.conclude(item, session.failed(item, error))
            if reply.__class__ is bytes:
                if reply:
                    out.append(reply)
                    size += len(reply)
            elif isinstance(reply, Deferred):
                window.in_order = session.in_order
                subject = session.subject(item, started=True)
                window.adopt(item, subject, _weight(item), reply)
                break
            else:
                size += self._take(reply, out)
                if self._closing:
                    break
            if size >= limit:
                break
        self._at = at + 1
        return size

    def _serve_together(self, session: Session, window: Window) -> bool:
        """Let the next request into the window; return whether it could enter."""
        item = self._items[self._at]
        subject = session.subject(item)
        if not window.admits(subject):
            return False
        self._at += 1
        if not window.unfinished:
            window.in_order = session.in_order
        window.enter(item, subject, _weight(item))
        return True

    def _take(self, reply: Reply, out: list[bytes]) -> int:
        """Take a reply of an unusual form; return how many bytes it has put into `out`."""
        if isinstance(reply, Hangup):
            self._begin_closing(reply)
            reply = reply.reply
        if isinstance(reply, list):
            out.extend(reply)
            return sum(map(len, reply))
        assert isinstance(reply, bytes)
        if reply:
            out.append(reply)
        return len(reply)

    def _begin_closing(self, hangup: Hangup) -> None:
        """Serve nothing more; close once what is said before is written."""
        if not self._closing:
            self._closing = self._stopped = True
            if hangup.reason:
                self._note(hangup.reason)

    def _look_again(self) -> None:
        """See whether anything stops us, and whether the short way is open."""
        window = self._window
        busy = window is not None and window.state is not State.EMPTY
        if self._draining and self._forwarder is not None:
            self._forwarder.give_back()
            busy = busy or self._forwarder.forwarding
        drained_first = self._draining and busy
        self._stopped = self._paused or self._closing or self._blocked or drained_first
        self._quick = None if busy or self._draining else self._quick_session

    def _go_on(self) -> None:
        """Serve what is queued, unless something stops us still."""
        # The first read has not come yet, or this is called from within the loop, which goes on.
        if self._serving or self._session is None:
            return
        if self._paused or self._closing:
            self._stopped = True
            return
        if self._forwarder is not None and self._forwarder.forwarding:
            self._stopped = bool(self._unread)  # which waits for what was forwarded
            return
        try:
            self._serve()
        except Exception:
            self._broken()

    def _rest(self) -> None:
        """Everything that was read is answered: read again, or end a drain."""
        session = self._session
        if self._draining:
            partial = session is not None and session.partial
            if self._last_request or not partial:
                self._hang_up(b"", "")
                return
            self._feed = self._feed_last
        if not self._reading:
            self._reading = True
            self.transport.resumeProducing()

    def _feed_last(self, data: bytes) -> list[Any]:
        """While draining: wait for the request that is coming in, and for no other."""
        items = cast("Session", self._session).feed(data)
        self._last_request = bool(items)
        return items

    def _keep(self, data: bytes) -> None:
        """Keep a read undecoded, and ask for no more of them."""
        if self._closing:
            return
        self._unread.append(data)
        if self._reading:
            self._reading = False
            self.transport.pauseProducing()
        if not self._serving:
            self._account(moved=False)

    def _account(self, *, moved: bool) -> None:
        """Tell the budget of all connections what is held for this one.

        Args:
            moved: Whether a request has become complete, or a reply has left.
        """
        session, window = self._session, self._window
        if session is None or window is None or not self._connected:
            return
        size = session.buffered + window.size + self._unsent + sum(map(len, self._unread))
        if size or self._held:
            self._held = size
            self._budget.hold(self, size, asking=session.partial, moved=moved)

    def _release(self) -> None:
        """Forget everything that was held."""
        self._items, self._unread = [], []
        if self._window is not None:
            self._window.end()
        if self._held:
            self._held = 0
            self._budget.hold(self, 0, asking=False, moved=False)
        # What is left of a request goes now, not when a garbage collector finds it.
        self._session = self._window = self._quick = self._quick_session = None
        self._feed = _ignore

    def let_go(self, reason: str) -> None:
        """End at once: others need what is held here; see `kvproto.server.budget.Holder`."""
        self._held = 0
        self._closing = self._stopped = True
        self._note(reason)
        self._release()
        if self._connected:
            self.transport.abortConnection()

    def _write(self, out: list[bytes], size: int) -> None:
        """Send replies, in one write."""
        self._counters.bytes_written += size
        self._written = size
        if len(out) == 1:
            self.transport.write(out[0])
        elif size <= _JOIN_LIMIT:
            self.transport.write(b"".join(out))
        else:
            self.transport.writeSequence(out)

    # how it ends

    def _hang_up(self, last_words: bytes, reason: str) -> None:
        """Close after some last words; whatever is queued is not served."""
        self._closing = self._stopped = True
        if reason:
            self._note(reason)
        if last_words:
            self._write([last_words], len(last_words))
        self._close()

    def _close(self) -> None:
        """Close once everything that was written is sent."""
        self._items, self._unread = [], []
        if self._forwarder is not None:
            self._forwarder.detach()
        if self._window is not None:
            self._window.end()
        if self._connected:
            # A transport waits for its producer to finish before it closes.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def _note(self, reason: str) -> None:
        """Tell whoever logs the end of this connection why; log it where nobody does."""
        if self._connection is not None:
            self._connection.note_error(reason)
            return
        peer_log.info(
            "closing the connection from {peer} {stage}: {reason}",
            peer=describe_peer(self.transport.getPeer()),
            stage="before its login" if self._peer.user is None else "in its session",
            reason=reason,
        )

    def _broken(self) -> None:
        """Report a defect that left the stream in an unknown state, and drop the connection."""
        self._report(Failure())
        self._closing = self._stopped = True
        self._note("an internal error")
        self._close()

    def _report(self, failure: Failure) -> None:
        if self._connection is None:
            log.failure("a request could not be served", failure=failure)
            return
        log.failure(
            CONNECTION + ": a request could not be served",
            failure=failure,
            **self._connection.log_fields(),
        )
