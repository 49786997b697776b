"""`KVClientProtocol`: one connection to a server, any number of requests at once.

::

    OPEN ──drain──> DRAINING ──all answered──> CLOSING ──connectionLost──> LOST
      └──abort, or the peer broke the protocol──^           (from every state)

Each request has an opaque by which its reply is found, so replies may come in any order and one
that nobody waits for any more does no harm.  Bounds hold whatever the server does: requests in
flight, requests that wait to be written (while the transport is full, or too many are in flight),
and the seconds after the deadline of a request for which the server is believed in.  If nothing
at all was read in them, the server is gone and the connection is cut; if it answers others, that
one answer will never come, and the connection is drained, so that its place is not lost for ever
and nobody else is harmed.

Owns no login (`kvproto.client.bootstrap`) and no reconnecting (`kvproto.client.connector`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.log import make_logger
from kvproto.client.errors import (
    ConnectionFailedError,
    NotNegotiatedError,
    RequestTimeoutError,
    StaleLoginError,
)
from kvproto.client.exchange import ANY_STATUS, Exchange
from kvproto.client.waiting import Sweep, WaitingRoom
from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.interfaces import IDrainable
from kvproto.wire.binary import DEFAULT_MAX_BODY, ResponseDecoder
from kvproto.wire.constants import Feature
from kvproto.wire.frames import Oversized, Request, Response

log = make_logger()

__all__ = ["DEFAULT_MAX_IN_FLIGHT", "DEFAULT_SILENCE_S", "KVClientProtocol"]

DEFAULT_MAX_IN_FLIGHT = 1024
"""Opaques that may await replies; beyond it requests wait unsent."""

DEFAULT_SILENCE_S = 10.0
"""Seconds without a byte, while overdue replies are awaited, that a server is believed in."""

_CORKED = 64 * 1024
"""Bytes of requests, asked for while replies are being read, that are joined into one write."""

_OPAQUES = 2**32


class _State(Enum):
    """States of a connection; see the module's diagram."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSING = "closing"
    LOST = "lost"


@implementer(IPushProducer, IDrainable)
class KVClientProtocol(Protocol):
    """A pipelining connection.

    Args:
        clock: For deadlines.
        timeout_s: Seconds that a request may take, unless it says otherwise.
        max_in_flight: Requests that may await replies.
        max_body: Longest reply that is read, in bytes; a longer one fails its request only.
        silence_s: Seconds, counted from the deadline of a request that was not answered, after
            which a server that sends nothing counts as gone, and one that answers others is left
            as soon as these have been answered.
        unsent: Where requests wait to be written.

    Attributes:
        features: What HELLO negotiated.
        collections: Whether keys begin with their collection's id, which is one of them.
        on_lost: Called once with the reason when the connection has ended, and with the requests
            that were never written; by default those fail.
    """

    transport: Any

    def __init__(
        self,
        clock: IReactorTime,
        *,
        timeout_s: float = 2.5,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        max_body: int = DEFAULT_MAX_BODY,
        silence_s: float = DEFAULT_SILENCE_S,
        unsent: WaitingRoom | None = None,
    ) -> None:
        self.features: frozenset[int] = frozenset()
        self.collections = False
        self.on_lost: Callable[[str, list[Exchange[Any]]], None] = _fail_unsent
        self._clock = clock
        self._timeout_s = timeout_s
        self._max_in_flight = max_in_flight
        self._silence_s = silence_s
        self._decoder = ResponseDecoder(max_body)
        self._pending: dict[int, Exchange[Any]] = {}
        self._unsent = WaitingRoom() if unsent is None else unsent
        self._sweep = Sweep(clock, self._expire)
        self._state = _State.OPEN
        self._why: str | None = None
        self._next_opaque = 1
        self._full = False
        self._corked: dict[Exchange[Any], bytes] | None = None
        self._corked_bytes = 0
        self._heard = False
        self._heard_at = 0.0
        self._closed: list[Deferred[None]] = []

    # --- asking ---------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._state is _State.OPEN

    @property
    def in_flight(self) -> int:
        """Number of replies that are awaited, those of abandoned requests included."""
        return len(self._pending)

    @property
    def waiting(self) -> int:
        """Number of requests that wait to be written."""
        return len(self._unsent)

    def request(
        self,
        opcode: int,
        *,
        key: bytes = b"",
        value: bytes = b"",
        extras: bytes = b"",
        cas: int = 0,
        timeout_s: float | None = None,
        tolerates: Container[int] = ANY_STATUS,
    ) -> Deferred[Response]:
        """Ask anything; the Deferred fires with the reply, whatever its status.

        Cancelling it throws the reply away; if the request has been written, the server carries it
        out all the same.  It fails with the errors of `kvproto.client.errors`.
        """
        exchange = Exchange(
            opcode, _as_it_is, key=key, value=value, extras=extras, cas=cas, tolerates=tolerates
        )
        exchange.deadline = self._clock.seconds() + (
            self._timeout_s if timeout_s is None else timeout_s
        )
        deferred = exchange.deferred
        assert deferred is not None
        self.submit(exchange)
        return deferred

    def submit(self, exchange: Exchange[Any]) -> None:
        """Write a request, or let it wait to be written; its deadline must be set.

        One that was cancelled meanwhile, perhaps because another one failed, is passed over.
        """
        if exchange.deferred is None:
            return
        if self._state is not _State.OPEN:
            exchange.fail(ConnectionFailedError(self._why or "the connection is closing", False))
            return
        if self._full or self._unsent or len(self._pending) >= self._max_in_flight:
            self._unsent.add(exchange)
        else:
            self._send(exchange)
        if exchange.deferred is not None:
            self._sweep.watch(exchange.deadline)

    def submit_all(self, exchanges: Iterable[Exchange[Any]]) -> None:
        """Submit several requests, in one write if there is room."""

        def submit() -> None:
            for exchange in exchanges:
                self.submit(exchange)

        self._joined(submit)

    def _send(self, exchange: Exchange[Any]) -> None:
        pending = self._pending
        missing = [feature for feature in exchange.needs if feature not in self.features]
        if missing or (exchange.collection and not self.collections):
            name = Feature(missing[0]).name if missing else "COLLECTIONS"
            exchange.fail(NotNegotiatedError(f"the server did not agree to {name}"))
            return
        opaque = self._free_opaques(exchange.span)
        try:
            data = exchange.encode(opaque, self.collections)
        except LocalProtocolError as error:
            exchange.fail(error)
            return
        if exchange.span == 1:
            pending[opaque] = exchange
        else:
            pending.update(dict.fromkeys(range(opaque, opaque + exchange.span), exchange))
        if self._corked is None:
            self.transport.write(data)
        else:
            self._corked[exchange] = data
            exchange.holder = self
            self._corked_bytes += len(data)
            if self._corked_bytes > _CORKED:
                self._flush()

    def drop(self, exchange: Exchange[Any]) -> None:
        """Forget a request that was cancelled before its bytes were given to the transport."""
        exchange.holder = None
        if self._corked is not None and self._corked.pop(exchange, None) is not None:
            self._forget(exchange)

    def _forget(self, exchange: Exchange[Any]) -> None:
        if exchange.span == 1:
            del self._pending[exchange.opaque]
        else:
            for opaque in range(exchange.opaque, exchange.opaque + exchange.span):
                del self._pending[opaque]

    def _free_opaques(self, span: int) -> int:
        """Return the first of as many opaques in a row that no reply can come for."""
        opaque = self._next_opaque
        pending = self._pending
        while opaque + span > _OPAQUES or not pending.keys().isdisjoint(
            range(opaque, opaque + span)
        ):
            opaque = 1 if opaque + span > _OPAQUES else opaque + 1
        self._next_opaque = opaque + span
        return opaque

    def _pump(self) -> None:
        """Write what waits, as far as there is room."""
        unsent, pending = self._unsent, self._pending
        while (
            unsent
            and not self._full
            and len(pending) < self._max_in_flight
            and self._state is _State.OPEN
        ):
            self._send(unsent.pop())

    def _joined(self, work: Callable[[], None]) -> None:
        """Call a function that sends requests, and write them together."""
        if self._corked is not None:
            work()
            return
        self._corked = {}
        try:
            work()
        finally:
            self._uncork()
        self._end_if_drained()

    def _flush(self) -> None:
        # A transport may ask for more while it takes what it is given.
        while self._corked:
            parts, self._corked, self._corked_bytes = self._corked, {}, 0
            for exchange in parts:
                exchange.holder = None
            if self._state is not _State.LOST:
                self.transport.write(b"".join(parts.values()))

    def _uncork(self) -> None:
        self._flush()
        self._corked = None

    # --- being answered -------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Give each reply to the request that waits for it."""
        if self._ending():
            return
        self._heard = True
        self._corked = {}
        frames = self._decoder.feed(data)
        try:
            for frame in frames:
                if type(frame) is Response or type(frame) is Oversized:
                    self._answered(frame)
                else:
                    self._ignore_push(frame)
                if self._ending():
                    return
        except RemoteProtocolError as error:
            self._abort_broken(error)
        else:
            if self._decoder.error is not None:
                self._abort_broken(self._decoder.error)
                return
            self._pump()
            self._end_if_drained()
        finally:
            self._uncork()

    def _abort_broken(self, error: RemoteProtocolError) -> None:
        log.warn("the server broke the protocol: {error}", error=error)
        self.abort(f"the server broke the protocol: {error}")

    def _ending(self) -> bool:
        return self._state is _State.CLOSING or self._state is _State.LOST

    def _answered(self, frame: Response | Oversized) -> None:
        opaque = frame.opaque
        exchange = self._pending.get(opaque)
        if exchange is None:
            raise RemoteProtocolError(f"a reply to nothing that was asked, opaque {opaque}")
        take = exchange.take if type(frame) is Response else exchange.take_oversized
        if not take(frame):  # type: ignore[arg-type]
            return
        self._forget(exchange)
        stale = type(exchange.error) is StaleLoginError
        exchange.finish()
        if stale:
            self.start_drain("the login has to be repeated")

    def _ignore_push(self, frame: Any) -> None:
        """Ignore a push: we negotiated nothing that would oblige us to answer."""
        assert isinstance(frame, Request)
        log.debug("ignored a request of the server, opcode {opcode}", opcode=frame.opcode)

    # --- deadlines ------------------------------------------------------------------------

    def _expire(self, now: float) -> float | None:
        """Let overdue requests fail; return when to look again."""
        if self._heard:
            self._heard = False
            self._heard_at = now
        earliest = self._unsent.expire(now)
        first_overdue: float | None = None
        due = []
        for exchange in self._pending.values():
            deadline = exchange.deadline
            if deadline > now:
                if earliest is None or deadline < earliest:
                    earliest = deadline
                continue
            if first_overdue is None or deadline < first_overdue:
                first_overdue = deadline
            if exchange.deferred is not None:
                due.append(exchange)
        for exchange in due:
            exchange.fail(RequestTimeoutError("no answer came in time", True))
        self._end_if_drained()
        if first_overdue is None or self._ending():
            return earliest
        left_at = max(self._heard_at, first_overdue) + self._silence_s
        if left_at <= now:
            self.abort(f"the server has been silent for {self._silence_s:g} s")
            return None
        if self._state is _State.OPEN:
            drained_at = first_overdue + self._silence_s
            if drained_at <= now:
                self.start_drain(f"an answer is overdue by {self._silence_s:g} s")
            else:
                left_at = min(left_at, drained_at)
        return left_at if earliest is None else min(earliest, left_at)

    # --- back-pressure: the transport tells when it is full ---------------------------------

    def connectionMade(self) -> None:
        """Watch the transport's buffer; keep small requests from waiting for each other."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self.transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """Stop writing: the transport is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """Write again."""
        self._full = False
        self._joined(self._pump)

    def stopProducing(self) -> None:
        """Stop writing: the connection is ending, `connectionLost` follows."""
        self._full = True

    # --- ending ---------------------------------------------------------------------------

    def drain(self) -> Deferred[None]:
        """Stop taking requests, wait for the replies to those that were written, then close.

        What waits to be written is handed to `on_lost` at the end.  A reply is waited for until
        the deadline of its request.

        Returns:
            A Deferred that fires once the connection has ended.
        """
        self.start_drain("the connection is closing")
        return self.when_closed()

    def start_drain(self, why: str) -> None:
        """Begin what `drain` does.

        Args:
            why: The reason that requests which come too late are given.
        """
        if self._state is _State.OPEN:
            self._state = _State.DRAINING
            self._why = why
            self._end_if_drained()

    def when_closed(self) -> Deferred[None]:
        """Return a Deferred that fires once the connection has ended."""
        if self._state is _State.LOST:
            return succeed(None)
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        return closed

    def abort(self, why: str) -> None:
        """End the connection now; requests in flight fail with the reason."""
        if self._state is _State.LOST:
            return
        if self._why is None:
            self._why = why
        self._state = _State.CLOSING
        self.transport.abortConnection()

    def _end_if_drained(self) -> None:
        if self._state is _State.DRAINING and self._owes_nothing():
            self._state = _State.CLOSING
            # A transport with a producer would wait for more from it before it closes.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def _owes_nothing(self) -> bool:
        """Return whether no reply is awaited any more; those that are overdue are not."""
        if not self._pending:
            return True
        now = self._clock.seconds()
        return all(exchange.deadline <= now for exchange in self._pending.values())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Let everything that waits fail, and say whether it had been written."""
        self._state = _State.LOST
        self._sweep.stop()
        why = self._why = self._why or f"the connection was lost: {reason.getErrorMessage()}"
        asked = dict.fromkeys(self._pending.values())
        self._pending.clear()
        for exchange in asked:
            exchange.fail(ConnectionFailedError(why, True))
        self.on_lost(why, self._unsent.take_all())
        closed, self._closed = self._closed, []
        for deferred in closed:
            deferred.callback(None)


def _fail_unsent(why: str, unsent: list[Exchange[Any]]) -> None:
    for exchange in unsent:
        exchange.fail(ConnectionFailedError(why, False))


def _as_it_is(reply: Response) -> Response:
    return reply
