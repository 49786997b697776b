"""The control socket: a Unix socket in the state directory that operators command.

Owns the socket file, who may have it, and the conversation; what the commands do is
`IControl`'s business.  Access is the file's permission: mode 0600 from the moment it exists,
so the service's own user and root may command it, and nobody else.

A command is bounded in time.  A client that leaves while its command runs, or whose time is
over, leaves no timer and no connection behind.  The command itself is not cancelled: others
may wait for the same reload or restart, and half a restart would help nobody.  How it ended
is then told to the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.log import make_logger
from kvproto.errors import CommandError, KVProtoError
from kvproto.ops.commands import (
    MAX_REQUEST,
    Request,
    encode,
    encode_error,
    encode_pieces,
    parse_request,
)
from kvproto.ops.interfaces import IControl

__all__ = ["ControlFactory", "ControlProtocol"]

log = make_logger()

IDLE_SECONDS = 300.0
"""A connection without a request is closed after this; a person may think between two."""

UNREAD_SECONDS = 30.0
"""A client that does not read its answer is dropped after this."""

CLOSE_SECONDS = 2.0
"""How long the last answer may take to be read when the connection ends."""

MAX_SESSIONS = 32
"""Connections at once; each may hold a long answer."""

ROUTINE = frozenset({"status", "connections", "config", "address", "top"})
"""Commands that only look: monitoring asks every few seconds, nobody wants that in a log."""


@implementer(IPushProducer)
class ControlProtocol(Protocol):
    """One connection of an operator: requests are carried out one after the other.

    It is the producer of its own transport, so that answers wait here, and no further
    request is looked at, while the client does not read.

    Args:
        factory: What all connections share.
    """

    factory: ControlFactory

    def __init__(self, factory: ControlFactory) -> None:
        self.factory = factory
        self._buffer = bytearray()
        self._running: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._pieces: Iterator[bytes] | None = None
        self._next_piece: IDelayedCall | None = None
        self._working = False
        self._unread = False
        self._closing = False

    # what the transport says

    def connectionMade(self) -> None:
        """Take a place, or say that there is none."""
        sessions = self.factory.sessions
        sessions.add(self)
        self.transport.registerProducer(self, True)  # type: ignore[union-attr]
        if len(sessions) > MAX_SESSIONS:
            self._refuse("busy", f"{MAX_SESSIONS} control connections are open already")
            return
        self._wait(IDLE_SECONDS, self.close)

    def dataReceived(self, data: bytes) -> None:
        """Take what the client sends.

        Reading goes on while a command runs: else nobody would notice that the client has
        left.  What it may send ahead is bounded.
        """
        if self._closing:
            return
        self._buffer += data
        self._work()
        if len(self._buffer) > MAX_REQUEST and not self._closing:
            self._refuse("bad-request", f"more than {MAX_REQUEST} bytes of requests are waiting")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave nothing behind."""
        self.factory.sessions.discard(self)
        self._closing = True
        self._running = None
        self._drop_pieces()
        self._buffer.clear()
        self._cancel_timer()
        self.factory.left()

    # the transport's view of us: IPushProducer

    def pauseProducing(self) -> None:
        """Note that the client does not read its answer."""
        self._unread = True
        if self._running is None:
            self._wait(UNREAD_SECONDS, self.abort)

    def resumeProducing(self) -> None:
        """Note that the client has read its answer."""
        self._unread = False
        if self._pieces is not None:
            self._send_later()
        elif self._running is None and not self._closing:
            self._wait(IDLE_SECONDS, self.close)
            self._work()

    def stopProducing(self) -> None:
        """Note that the client is gone; `connectionLost` says the same."""

    # requests

    def _work(self) -> None:
        """Carry out requests until one takes its time, or there is no whole one left."""
        if self._working:
            return  # an answer that came at once: the loop below goes on
        self._working = True
        try:
            while not (self._closing or self._unread or self._busy):
                end = self._buffer.find(b"\n")
                if end < 0:
                    return
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                if line.strip():
                    self._begin(line)
        finally:
            self._working = False

    @property
    def _busy(self) -> bool:
        """Whether a command runs, or is being answered."""
        return self._running is not None or self._pieces is not None

    def _begin(self, line: bytes) -> None:
        """Carry out one request, or say why not."""
        self._wait(IDLE_SECONDS, self.close)
        try:
            request = parse_request(line)
        except CommandError as error:
            self._write(encode_error(error))
            return
        if request.command not in ROUTINE:
            words = (request.command, *(f"{k}={v}" for k, v in request.arguments.items()))
            log.info("control: {asked}", asked=" ".join(words))
        done = maybeDeferred(getattr(self.factory.control, request.command), **request.arguments)
        if not request.wait:
            self._detach(request, done)
            return
        self._running = done
        self._wait(request.seconds, partial(self._timed_out, request))
        done.addBoth(self._ended, request, done)
        done.addErrback(_report_bug, request)

    def _detach(self, request: Request, done: Deferred[Any]) -> None:
        """Answer at once, unless it has failed already; the log tells how it ended."""
        if isinstance(done.result if done.called else None, Failure):
            done.addErrback(lambda failure: self._write(_refusal(failure, request)))
            return
        done.addBoth(_report_end, request)
        self._write(encode(request.id, {"started": True}))

    def _ended(self, outcome: Any, request: Request, done: Deferred[Any]) -> None:
        """Answer with what the command returned, or with why it failed."""
        if self._running is not done:
            _report_end(outcome, request)
            return
        self._running = None
        self._wait(IDLE_SECONDS, self.close)
        if isinstance(outcome, Failure):
            self._write(_refusal(outcome, request))
        else:
            self._send(_answer(request, outcome))
        self._work()

    def _send(self, pieces: Iterator[bytes]) -> None:
        """Send an answer; a long one in pieces, one in each turn, as fast as it is read."""
        first = next(pieces)
        second = next(pieces, None)
        self._write(first)
        if second is not None:
            self._pieces = chain([second], pieces)
            self._send_later()

    def _send_later(self) -> None:
        self._wait(UNREAD_SECONDS, self.abort)
        if not self._unread and self._next_piece is None:
            self._next_piece = self.factory.clock.callLater(0, self._send_on)

    def _send_on(self) -> None:
        self._next_piece = None
        assert self._pieces is not None, "no call without pieces"
        try:
            piece = next(self._pieces, None)
        except (TypeError, ValueError):
            log.failure("control: a long answer is no JSON")
            self.abort()
            return
        if piece is None:
            self._pieces = None
            self._wait(IDLE_SECONDS, self.close)
            self._work()
            return
        self._write(piece)
        self._send_later()

    def _drop_pieces(self) -> None:
        """Send nothing more of an answer."""
        self._pieces = None
        if self._next_piece is not None:
            self._next_piece.cancel()
            self._next_piece = None

    def _timed_out(self, request: Request) -> None:
        """Answer that the time is over; what the command began may still come to an end."""
        self._running = None
        self._wait(IDLE_SECONDS, self.close)
        reason = f"{request.command} did not end within {request.seconds:g} s; it may still do so"
        log.warn("control: {reason}", reason=reason)
        self._write(encode_error(CommandError("timed-out", reason), request.id))
        self._work()

    # the connection

    def _write(self, answer: bytes) -> None:
        """Send an answer."""
        self.transport.write(answer)  # type: ignore[union-attr]

    def _refuse(self, code: str, reason: str) -> None:
        """Say what is wrong with the connection itself, and end it."""
        self._write(encode_error(CommandError(code, reason)))
        self.close()

    def close(self) -> None:
        """End the connection once what was answered is sent, or has no hope of that."""
        if self._closing:
            return
        if self._pieces is not None:
            self.abort()
            return
        self._closing = True
        self._running = None
        self._wait(CLOSE_SECONDS, self.abort)
        self.transport.unregisterProducer()  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]

    def abort(self) -> None:
        """End the connection now."""
        self._closing = True
        self._running = None
        self._drop_pieces()
        self._cancel_timer()
        self.transport.abortConnection()  # type: ignore[union-attr]

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        """Set the one deadline that this connection has."""
        self._cancel_timer()
        self._timer = self.factory.clock.callLater(seconds, self._due, then)

    def _due(self, then: Callable[[], None]) -> None:
        """The deadline has come."""
        self._timer = None
        then()

    def _cancel_timer(self) -> None:
        """Have no deadline."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def _answer(request: Request, result: Any) -> Iterator[bytes]:
    """Encode what a command returned, in pieces."""
    try:
        answer = dict(result)
        if answer.get("ok") is False and "error" not in answer:
            # One place for scripts to look at, whatever went wrong.
            reason = answer.get("reason") or f"{request.command} did not succeed"
            answer["error"] = {"code": "failed", "message": reason}
        pieces = encode_pieces(request.id, answer)
        return chain([next(pieces)], pieces)
    except (TypeError, ValueError):
        log.failure("control: the answer to {command} is no JSON", command=request.command)
        return iter([encode_error(_internal(request), request.id)])


def _refusal(failure: Failure, request: Request) -> bytes:
    """Encode why a command failed."""
    return encode_error(_explain(failure, request), request.id)


def _explain(failure: Failure, request: Request) -> CommandError:
    """Turn the failure of a command into an answer; what is no operator's business is logged."""
    error = failure.value
    if isinstance(error, CommandError):
        return error
    if isinstance(error, KVProtoError):
        return CommandError("failed", str(error))
    if isinstance(error, CancelledError):
        return CommandError("cancelled", f"{request.command} was given up: the service is stopping")
    _report_bug(failure, request)
    return _internal(request)


def _internal(request: Request) -> CommandError:
    return CommandError("internal", f"{request.command} failed; the log of the service says why")


def _report_end(outcome: Any, request: Request) -> None:
    """Log how a command ended that nobody waits for."""
    if isinstance(outcome, Failure):
        reason = _explain(outcome, request).reason
    elif isinstance(outcome, dict) and outcome.get("ok") is False:
        reason = str(outcome.get("reason") or "it did not succeed")
    else:
        reason = ""
    if request.command in ROUTINE:
        return
    if not reason:
        log.info("control: {command} done", command=request.command)
        return
    log.warn("control: {command} failed: {reason}", command=request.command, reason=reason)


def _report_bug(failure: Failure, request: Request) -> None:
    """Log a failure that should not have been possible."""
    log.failure("control: {command} failed", failure=failure, command=request.command)


class ControlFactory(Factory):
    """What the connections of one control socket share.

    Args:
        control: Who carries the commands out.
        clock: For deadlines.

    Attributes:
        sessions: The connections there are.
    """

    noisy = False

    def __init__(self, control: Any, clock: IReactorTime) -> None:
        self.control = IControl(control)
        self.clock = clock
        self.sessions: set[ControlProtocol] = set()
        self._empty: Deferred[None] | None = None

    def buildProtocol(self, addr: object) -> ControlProtocol:  # type: ignore[override]
        """Make the protocol of one connection."""
        return ControlProtocol(self)

    def left(self) -> None:
        """Note that a connection is gone."""
        if not self.sessions and self._empty is not None:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def close_all(self) -> Deferred[None]:
        """Let every connection send what was answered, and end it.

        Returns:
            A Deferred that fires when all are gone, which `CLOSE_SECONDS` bounds.
        """
        if not self.sessions:
            return succeed(None)
        empty = self._empty = Deferred()
        for session in tuple(self.sessions):
            session.close()
        return empty
