"""A client's connection on a Twisted transport: the shell around a session.

`KVServerProtocol` owns the transport: it gives its session what was read, writes the replies, and
does what the session says about reading on and closing.  Order, amounts and meaning are the
session's (`kvproto.server.session`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.addresses import describe_peer, is_local
from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import CONNECTION, make_logger
from kvproto.errors import UpstreamError
from kvproto.interfaces import IAnswers, IDrainable, ISecuredTransport
from kvproto.server.answering import Answering
from kvproto.server.binary import BinarySession
from kvproto.server.buckets import Bucket
from kvproto.server.replies import JOIN_LIMIT, Hangup
from kvproto.server.server import KVServer, Peer
from kvproto.server.session import Session
from kvproto.server.text import TextSession
from kvproto.wire.constants import BINARY_MAGICS

__all__ = ["KVServerProtocol"]

log = make_logger()
peer_log = LimitedLog(log)

_MOST_UNREAD = 16
"""Times ``unsent_limit`` that a peer may leave unread of what it had asked for before it stopped
reading, where that comes from elsewhere and cannot be called off."""

_IN_KERNEL = 4 << 20
"""Bytes that a socket takes at most (Linux' ``tcp_wmem``): a reply that is not longer would not be
held here, were it not others' turn to send."""

_FATES = {"idle": "idle_timeout", "process stopping": "shutdown", "acceptor stopping": "shutdown"}
"""What ended a connection, and memcached's words for it."""

MakeDialect: TypeAlias = Any
"""Called with (server, peer); returns a `kvproto.server.session.Dialect`."""


@implementer(IPushProducer, IAnswers, IDrainable, IHalfCloseableProtocol)
class KVServerProtocol(Answering, TwistedProtocol):
    """One connection of a key-value client, on any transport.

    Args:
        server: What all connections share.
        connection: The `kvproto.interfaces.IVerifiedConnection` that hears of logins and faults;
            None where there is none.
        binary: Makes the dialect of a peer that speaks the binary protocol.
        text: Makes the dialect of a peer that speaks the text protocol.

    Attributes:
        session: What was asked and is to be answered; None until the first byte has come, which
            says which protocol it is.
        last_read: When it was last read from, in unix seconds, to the second; 0 where nobody looks
            at the clock.
    """

    transport: Any

    def __init__(
        self,
        server: KVServer,
        connection: Any = None,
        *,
        binary: MakeDialect = BinarySession,
        text: MakeDialect = TextSession,
    ) -> None:
        # First what a plain request needs: CPython keeps attributes in this order, and so these
        # share a line of the processor's cache.
        self._receive: Callable[[bytes, list[bytes]], bool] = self._receive_first
        self._answered = False
        self._held = 0  # bytes, as the budget knows it
        self._counters = server.counters
        self.last_read = 0.0
        self.session: Session | None = None
        self._server = server
        self._connection = connection
        self._kinds = (text, binary)
        self._peer = Peer(server, connection)
        self._attending = False
        self._due = False  # the session has to be asked for more
        self._paused = False
        self._reading = True
        self._connected = False
        self._closed = False
        self._faulty = False
        self._drained: list[Deferred[None]] = []
        self._budget = server.budget
        self._written = 0  # by the last write
        self._unsent = 0  # about
        self._unread_replies = 0  # bytes of forwarded replies since the peer stopped reading

    @property
    def bucket(self) -> Bucket | None:
        """The bucket that the client works in; None before it has said anything."""
        session = self.session
        return None if session is None else session.dialect.bucket

    # what the transport says

    def connectionMade(self) -> None:
        """Take the connection; know the peer now if somebody has verified it already."""
        self._connected = True
        self.last_read = self._counters.recently
        self._counters.curr_connections += 1
        self._counters.total_connections += 1
        self._peer.number = self._server.connected(self, getattr(self._connection, "id", 0))
        self.transport.registerProducer(self, True)
        self._write_alone = getattr(self.transport, "write_alone", self.transport.write)
        if self._connection is not None:
            self._peer.recognise(tuple(self._connection.peer_chain))

    def dataReceived(self, data: bytes) -> None:
        """Give the session what was read; send what it answers at once, in one write."""
        if self._answered:
            # `answer` has taken this read already, and the replies are written.
            self._answered = False
            self._attend()
            return
        counters = self._counters
        counters.bytes_read += len(data)
        self.last_read = counters.recently
        out: list[bytes] = []
        try:
            settled = self._receive(data, out)
        except Exception:
            self._break_off()
            return
        if out:
            self._write(out)
        if not settled or self._held:
            self._attend()

    def readConnectionLost(self) -> None:
        """Answer what was asked, then close: the peer has ended its side."""
        session = self.session
        if session is None:
            self._close()
            return
        if session.dialect.partial:
            self._note("the peer ended its side in the middle of a request")
        session.end_of_input()
        self._attend()

    def writeConnectionLost(self) -> None:
        """Nothing to do: nobody here closes one side of a connection."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Let go of everything, whatever was under way."""
        if not self._connected:
            return
        self._connected = False
        self._counters.curr_connections -= 1
        self._server.disconnected(self, self._fate(reason))
        session = self.session
        if session is not None and session.hangup is None and session.dialect.partial:
            self._note("the peer went away in the middle of a request")
        self._release()
        drained, self._drained = self._drained, []
        for waiter in drained:
            waiter.callback(None)

    def pauseProducing(self) -> None:
        """Stop answering: the transport has enough to send."""
        self._pause(self._written)

    def wait_for_others(self) -> None:
        """Stop answering: it is others' turn to send; see `kvproto.tls.gate.ProducerGate`."""
        self._pause(max(0, self._written - _IN_KERNEL))

    def _pause(self, unsent: int) -> None:
        self._paused = True
        self._unsent = unsent
        if self.session is not None:
            self.session.pause()
            self._account(moved=True)

    def resumeProducing(self) -> None:
        """Go on answering."""
        self._paused = False
        self._unsent = self._unread_replies = 0
        if self.session is not None:
            self.session.resume()
            self.session.moved = True
            self.proceed()

    def stopProducing(self) -> None:
        """Answer nothing more: the transport is going away, and will say so."""
        self._paused = True
        if self.session is not None:
            self.session.pause()

    # what was forwarded, past the session

    def _unread(self) -> None:
        """Bound what is kept for a peer that does not read.

        It was asked for before the peer stopped reading, and nobody else may wait for it.
        """
        self._unread_replies += self._written
        if self._unread_replies > _MOST_UNREAD * self._server.settings.unsent_limit:
            self.let_go("the peer does not read its replies")

    def forwarding_failed(self, reason: str) -> None:
        """Close: a request of unknown fate must not be answered."""
        if not self._closed:
            self._note(reason)
            self._close()

    @property
    def partial(self) -> bool:
        """Whether a request has been received in part."""
        return self.session is not None and self.session.dialect.partial

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
        if self.session is None:
            self._close()
        else:
            self.session.drain()
            self._attend()
        return done

    # what the session says

    def _receive_first(self, data: bytes, out: list[bytes]) -> bool:
        """Make the session: the first byte of a connection says which protocol it is."""
        if self._closed:
            return True
        if self._connection is None:
            # Nobody has verified the peer before: now, with the first data, any handshake is over.
            secured = ISecuredTransport.providedBy(self.transport)
            self._peer.recognise(tuple(self.transport.peer_chain()) if secured else ())
        # Where else the same server can be reached: at the port that the client has used.
        own = self.transport.getHost()
        self._peer.host, self._peer.port = getattr(own, "host", ""), getattr(own, "port", 0)
        self._peer.local = is_local(self.transport.getPeer())
        dialect = self._kinds[data[0] in BINARY_MAGICS](self._server, self._peer)
        if hasattr(dialect, "attach"):
            dialect.attach(self)
        settings = self._server.settings
        # Without a turn to wait for there is nobody to yield to.
        most = 0 if self._server.turn is None else settings.requests_per_event
        session = self.session = Session(
            dialect, settings.unsent_limit, self._changed, self._report, most
        )
        self._receive = session.receive
        if self._paused:
            session.pause()
        return session.receive(data, out)

    def _changed(self) -> None:
        """Send a reply that was waited for: with others of this turn, if more are under way."""
        session, turn = self.session, self._server.turn
        out: list[bytes] = []
        if turn is not None and session is not None and session.window.unfinished:
            turn.add(self)
        elif session is None or self._held or self._attending or not session.take_group(out):
            self.proceed()
        else:
            self.forwarded(out, last=True)

    def proceed(self) -> None:
        """Send what the session has got to say, and do what follows from it."""
        self._due = True
        self._attend()

    def _attend(self) -> None:
        """Do to the transport what the session says: send more, close, read on or not."""
        if self._attending:
            return  # called back by the transport: the loop below goes on
        session = self.session
        self._attending = True
        try:
            while session is not None and not self._closed:
                if self._due or (session.more and not session.yields):
                    self._due = False
                    out: list[bytes] = []
                    session.proceed(out)
                    if out:
                        self._write(out)
                elif session.hangup is not None:
                    hangup = session.hangup
                    if hangup.successor is not None:
                        session = self._go_on_with(hangup.successor)
                        continue
                    if hangup.reason:
                        self._note(hangup.reason)
                    self._close()
                elif session.reads is not self._reading:
                    self._reading = session.reads
                    if self._reading:
                        self.transport.resumeProducing()
                    else:
                        self.transport.pauseProducing()
                else:
                    break
        except Exception:
            self._break_off()
        finally:
            self._attending = False
        if session is not None and session.yields and self._server.turn is not None:
            self._counters.conn_yields += 1
            self._server.turn.add(self)
        if session is not None and (self._held or not session.idle):
            self._account(moved=session.moved)
            session.moved = False

    def _go_on_with(self, make: Callable[[Any], Any]) -> Any:
        """Put another session in the place of this one, which has served its last request."""
        last, self.session = self.session, make(self)
        session: Any = self.session
        self._receive = session.receive
        if self._paused:
            session.pause()
        if last is not None:
            last.end()
        return session

    def observe(self) -> None:
        """Let the session see anew whether anybody watches what is asked of its store."""
        if self.session is not None:
            self.session.observe()

    def settings_changed(self) -> None:
        """Let the session see the server's settings anew."""
        if self.session is not None:
            self.session.dialect.limit_values()

    def _write(self, out: list[bytes]) -> None:
        """Send replies, in one write."""
        self._written = size = sum(map(len, out))
        self._counters.bytes_written += size
        if len(out) == 1:
            self.transport.write(out[0])
        elif size <= JOIN_LIMIT:
            self.transport.write(b"".join(out))
        else:
            self.transport.writeSequence(out)

    def _account(self, *, moved: bool) -> None:
        """Tell the budget of all connections what is held for this one.

        Args:
            moved: Whether a request has become complete, or a reply has left.
        """
        session = self.session
        if session is None or self._closed:
            return
        size = session.size + self._unsent
        if size or self._held:
            self._held = size
            self._budget.hold(self, size, asking=session.dialect.partial, moved=moved)

    # how it ends

    def let_go(self, reason: str) -> None:
        """End at once: others need what is held here; see `kvproto.server.budget.Holder`."""
        self._held = 0
        self._note(reason)
        self._release()
        if self._connected:
            self.transport.abortConnection()

    def _release(self) -> None:
        """Forget everything that was held."""
        self._closed = True
        if self._held:
            self._held = 0
            self._budget.hold(self, 0, asking=False, moved=False)
        session, self.session = self.session, None
        self._receive = self._ignore
        if self._server.turn is not None:
            self._server.turn.discard(self)
        if session is not None:
            session.end()

    def _ignore(self, data: bytes, out: list[bytes]) -> bool:
        """Stop taking requests: the connection is over."""
        return True

    def _close(self) -> None:
        """Close once everything that was written is sent."""
        self._release()
        if self._connected:
            # A transport waits for its producer to finish before it closes.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def _fate(self, reason: Failure) -> str:
        """Return how a connection ends that was lost: closed, or for one side's fault."""
        if self._connection is not None and self._connection.ended_by in _FATES:
            return _FATES[self._connection.ended_by]
        closed = isinstance(reason.value, ConnectionDone) and not self._faulty
        return "normal" if closed else "error"

    def _note(self, reason: str) -> None:
        """Tell whoever logs the end of this connection why; log it where nobody does."""
        self._faulty = True
        if self._connection is not None:
            self._connection.note_error(reason)
            return
        peer_log.info(
            "closing the connection from {peer} {stage}: {reason}",
            peer=describe_peer(self.transport.getPeer()),
            stage="before its login" if self._peer.user is None else "in its session",
            reason=reason,
        )

    def _not_served(self, session: Session) -> None:
        """Report a defect in the middle of a read, after which nothing is served any more."""
        self._report(Failure())
        session.end(Hangup(reason="an internal error"))

    def _break_off(self) -> None:
        """Report a defect that left the stream in an unknown state, and drop the connection."""
        self._report(Failure())
        if not self._closed:
            self._note("an internal error")
            self._close()

    def _report(self, failure: Failure) -> None:
        if failure.check(UpstreamError):
            # Nothing of ours is wrong, so how it came about does not help.
            peer_log.warn(
                "a request of {peer} could not be served: {reason}",
                peer=describe_peer(self.transport.getPeer()),
                reason=failure.getErrorMessage(),
            )
            return
        if self._connection is None:
            peer = describe_peer(self.transport.getPeer())
            peer_log.failure("a request of {peer} could not be served", failure, peer=peer)
            return
        peer_log.failure(
            CONNECTION + ": a request could not be served",
            failure=failure,
            **self._connection.log_fields(),
        )
