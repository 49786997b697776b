"""One node link: the Twisted protocol that owns a secured connection to a node.

Owns: driving the handshake, its deadlines, ticks, the end.  What is said on the
link is `kvproto.dist.session`'s business, who may be who is the node's.

::

    HANDSHAKING ─up─> UP ─close─> CLOSING ─lost─> CLOSED
         └──────── fail, deadline, close: abort ────^

A tick of the peer is answered unless we wrote within the last half second: then
any ticktime of the peer works, and two such nodes do not answer each other for
ever.

Source: Erlang, "Distribution Protocol"; OTP's ``dist_util`` for ticks.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final
from typing import Protocol as Shape

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import make_logger
from kvproto.dist.backlog import Backlog
from kvproto.dist.framing import TICK, FrameDecoder, frame
from kvproto.dist.handshake import (
    MAX_HANDSHAKE_FRAME,
    Handshake,
    NodeIdentity,
    State,
    Status,
)
from kvproto.dist.session import Session, SessionHost
from kvproto.dist.settings import Admit, NodeSettings
from kvproto.errors import RemoteProtocolError
from kvproto.interfaces import IDrainable, ISecuredTransport

log = make_logger()
peer_log = LimitedLog(log)

__all__ = ["LinkState", "NodeLink"]

TICK_ANSWER_PAUSE: Final = 0.5
"""Seconds after a write in which a tick needs no answer."""

SILENT_PERIODS: Final = 4
"""Quarters of the ticktime without a byte from the peer after which it is given up."""


_HINTS: Final = {
    State.AWAIT_STATUS: " (a node that refuses our certificate may leave like this)",
    State.AWAIT_ACK: " (a node that has another cookie leaves like this)",
}
"""What an end at a step usually means, where the peer says nothing."""


class LinkState(Enum):
    """States of a link; see the diagram of this module."""

    HANDSHAKING = "handshaking"
    UP = "up"
    CLOSING = "closing"
    CLOSED = "closed"


class LinkHost(SessionHost, Shape):
    """What a link needs from its node."""

    settings: NodeSettings
    identity: NodeIdentity
    admit: Admit | None

    def is_connected(self, name: str) -> bool:
        """Return whether there is a link with a node."""

    def decide(self, name: str) -> tuple[Status, str]:
        """Answer a node that calls us; and for the log why it is refused."""

    def link_made(self, link: NodeLink) -> None:
        """Note that a connection has begun its handshake."""

    def link_up(self, link: NodeLink) -> None:
        """Note that a link is up."""

    def link_down(self, link: NodeLink) -> None:
        """Note that a link that was up has ended."""

    def link_gone(self, link: NodeLink) -> None:
        """Note that a connection is gone."""


@implementer(IDrainable, IHalfCloseableProtocol)
class NodeLink(Protocol):
    """A link with one other node.

    Args:
        node: Ours.
        dialled: Name of the node that we called; None when it called us.
        connection: The `IVerifiedConnection` of an accepted connection, None for
            one of our own.
        finished: Called once, when the connection is lost, with the link.

    Attributes:
        state: Where it stands.
        name: The other node's name, "" as long as it is unknown.
        reason: Why it ended, "" before.
    """

    transport: Any

    def __init__(
        self,
        node: LinkHost,
        dialled: str | None = None,
        connection: Any = None,
        finished: Callable[[NodeLink], None] | None = None,
    ) -> None:
        self._node = node
        self._dialled = dialled
        self._connection = connection
        self._finished = finished
        self._handshake = Handshake(node.identity, dialled)
        self._decoder = FrameDecoder(MAX_HANDSHAKE_FRAME)
        self._timer: IDelayedCall | None = None
        self._admission: Deferred[bool] | None = None
        self._drained: list[Deferred[None]] = []
        self._spoke_at = 0.0
        self._spoke = self._heard = False
        self._silent_periods = 0
        self._bytes_in = self._bytes_out = 0
        self.state = LinkState.HANDSHAKING
        self.session: Session | None = None
        self.reason = ""

    @property
    def name(self) -> str:
        """The other node's name, "" as long as it is unknown."""
        peer = self._handshake.peer
        return self._dialled or (peer.name if peer is not None else "")

    @property
    def outbound(self) -> bool:
        """Whether this side opened the connection."""
        return self._dialled is not None

    @property
    def generation(self) -> int:
        """Credential generation of its TLS handshake, 0 when unknown."""
        source = self._connection
        if source is None and ISecuredTransport.providedBy(self.transport):
            source = self.transport
        generation: int = getattr(source, "generation", 0)
        return generation

    # What Twisted says.

    def connectionMade(self) -> None:
        """Begin the handshake and its deadline."""
        node = self._node
        self._began = node.clock.seconds()
        self._backlog = Backlog(
            self.transport, node.clock, node.settings.max_unsent, self._overflowed
        )
        self._set_setup_deadline()
        node.link_made(self)
        if self.outbound:
            self._handshake.begin()
            self._flush_handshake()

    def dataReceived(self, data: bytes) -> None:
        """Take what was read; after the end, nothing (Twisted still delivers some)."""
        if self.state not in _LISTENING:
            return
        # The listener may have begun to close under us; nobody comes up after that.
        if self.state is LinkState.HANDSHAKING and getattr(self.transport, "disconnecting", False):
            return
        self._heard = True
        self._bytes_in += len(data)
        decoder = self._decoder
        decoder.feed(data)
        try:
            while self.state in _LISTENING:
                payload = decoder.next_frame()
                if payload is None:
                    return
                if self.state is LinkState.UP:
                    self._receive(payload)
                else:
                    self._advance_handshake(payload)
        except RemoteProtocolError as error:
            self.abort(str(error))

    def readConnectionLost(self) -> None:
        """Close: a node that says nothing more is gone, whatever it could still hear."""
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Nothing to do: nobody closes one side of a link."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fire what waits for the end, once."""
        if self.state is LinkState.CLOSED:
            return
        if not self.reason:
            self.reason = self._why_lost(reason)
        self._end(LinkState.CLOSED)
        self._node.link_gone(self)
        drained, self._drained = self._drained, []
        for waiting in drained:
            waiting.callback(None)
        if self._finished is not None:
            self._finished(self)

    def _why_lost(self, reason: Failure) -> str:
        """Return the step at which the connection was lost, and the reason."""
        why = str(getattr(reason.value, "reason", "")) or reason.getErrorMessage()
        if self.state is not LinkState.HANDSHAKING:
            return f"connection lost: {why}"
        if ISecuredTransport.providedBy(self.transport) and not self.transport.tls_version():
            return f"TLS handshake: {why}"
        step = self._handshake.state
        hint = _HINTS.get(step, "")
        return f"node handshake, {step.value}: {why}{hint}"

    # The handshake.

    def _advance_handshake(self, payload: bytes) -> None:
        handshake = self._handshake
        handshake.receive(payload)
        if handshake.state is State.DECIDING:
            self._admit()
        elif handshake.state is State.ASKED_ALIVE:
            handshake.answer_alive(not self._node.is_connected(self.name))
        self._after_step()

    def _admit(self) -> None:
        """Let the program say whether this peer may come in, perhaps later."""
        admit = self._node.admit
        answer: Any = True
        if admit is not None:
            try:
                answer = admit(self.name, self._connection)
            except Exception:
                peer_log.failure("admission of node {peer} failed", peer=self.name)
                answer = False
        if isinstance(answer, Deferred):
            self._admission = answer
            answer.addCallbacks(self._admitted, self._admission_failed)
            answer.addErrback(self._report)
        else:
            self._decide(bool(answer))

    def _admitted(self, answer: bool) -> None:
        self._admission = None
        # An answer that comes after the end has no effect.
        if self.state is LinkState.HANDSHAKING:
            self._decide(answer)
            self._after_step()

    def _admission_failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            peer_log.failure("admission of node {peer} failed", failure, peer=self.name)
        self._admitted(False)

    def _report(self, failure: Failure) -> None:
        peer_log.failure("link with {peer} failed", failure, peer=self.name)
        self.abort("internal error")

    def _decide(self, admitted: bool) -> None:
        if admitted:
            self._handshake.decide(*self._node.decide(self.name))
        else:
            self._handshake.decide(Status.NOT_ALLOWED, "not admitted")

    def _after_step(self) -> None:
        # An admission that was answered on the spot has been here already.
        if self.state is not LinkState.HANDSHAKING:
            return
        self._flush_handshake()
        state = self._handshake.state
        if state is State.UP:
            self._come_up()
        elif state is State.REFUSED:
            self._close_refused(self._handshake.refusal)
        elif state is not State.DECIDING:
            self._set_setup_deadline()

    def _flush_handshake(self) -> None:
        for payload in self._handshake.data_to_send():
            self._write(payload)

    def _set_setup_deadline(self) -> None:
        """Give each step its time, and all of them together theirs."""
        settings = self._node.settings
        elapsed = self._node.clock.seconds() - self._began
        remaining = max(0.0, min(settings.setup_timeout, settings.setup_total - elapsed))
        self._set_timer(remaining, self._setup_timed_out)

    def _setup_timed_out(self) -> None:
        self._timer = None
        self.abort(f"node handshake, {self._handshake.state.value}: no answer in time")

    def _come_up(self) -> None:
        node = self._node
        peer = self._handshake.peer
        assert peer is not None
        self.state = LinkState.UP
        self._decoder.limit = node.settings.max_frame
        self.session = Session(node, peer, self._write, node.settings.session)
        self._set_timer(node.settings.ticktime / SILENT_PERIODS, self._check_liveness)
        if self._connection is not None:
            self._connection.authenticated(peer.name)
        node.link_up(self)

    # While it is up.

    def _receive(self, payload: bytes) -> None:
        if payload:
            assert self.session is not None
            self.session.receive(payload)
        elif self._node.clock.seconds() - self._spoke_at >= TICK_ANSWER_PAUSE:
            self._tick()

    def _check_liveness(self) -> None:
        """Each quarter of the ticktime: say that we are here, see whether the peer is."""
        self._timer = None
        settings = self._node.settings
        self._silent_periods = 0 if self._heard else self._silent_periods + 1
        if self._silent_periods >= SILENT_PERIODS:
            self.abort("net_tick_timeout")
            return
        full_since = self._backlog.full_since
        if full_since is not None and self._node.clock.seconds() - full_since > settings.ticktime:
            self.abort("peer does not read")
            return
        if not self._spoke:
            self._tick()
        self._heard = self._spoke = False
        self._set_timer(settings.ticktime / SILENT_PERIODS, self._check_liveness)

    def _tick(self) -> None:
        self._send(TICK)

    def _write(self, payload: bytes) -> None:
        self._send(frame(payload))

    def _send(self, data: bytes) -> None:
        if self.state not in _LISTENING:
            return
        self._spoke = True
        self._spoke_at = self._node.clock.seconds()
        self._bytes_out += len(data)
        self._backlog.about_to_write(len(data))
        self.transport.write(data)

    def _overflowed(self) -> None:
        self.abort(f"peer does not read: more than {self._node.settings.max_unsent} bytes wait")

    # The end.

    def close(self, reason: str) -> None:
        """Close the connection; a peer that keeps its side open is cut after ``close_timeout``."""
        if self.state is LinkState.HANDSHAKING:
            self.abort(reason)
        elif self.state is LinkState.UP:
            self._begin_closing(reason)

    def abort(self, reason: str) -> None:
        """End it now."""
        if self.state not in _LISTENING:
            return
        if self._connection is not None:
            self._connection.note_error(reason)
        self.reason = reason
        self._end(LinkState.CLOSING)
        self.transport.abortConnection()

    def drain(self) -> Deferred[None]:
        """Close; fires when the connection is gone."""
        gone: Deferred[None] = Deferred()
        if self.state is LinkState.CLOSED:
            gone.callback(None)
        else:
            self._drained.append(gone)
            self.close("drained")
        return gone

    def _close_refused(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.note_error(reason)
        self._begin_closing(reason)

    def _begin_closing(self, reason: str) -> None:
        self.reason = reason
        self._end(LinkState.CLOSING)
        self._set_timer(self._node.settings.close_timeout, self._abort_closing)
        self.transport.loseConnection()

    def _abort_closing(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def _end(self, state: LinkState) -> None:
        """Stop everything that this link keeps going."""
        was_up = self.state is LinkState.UP
        self.state = state
        self._stop_timer()
        self._backlog.stop()
        self._decoder.clear()
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.cancel()
        if was_up:
            # The node forgets the link first: what fails now must not be sent on it again.
            self._node.link_down(self)
            assert self.session is not None
            self.session.closed()

    def _set_timer(self, seconds: float, function: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._node.clock.callLater(seconds, function)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def status(self) -> dict[str, Any]:
        """Describe the link: no secrets, JSON can hold it."""
        return {
            "node": self.name,
            "direction": "out" if self.outbound else "in",
            "state": self.state.value,
            "handshake": self._handshake.state.value,
            "age_s": round(self._node.clock.seconds() - self._began, 3),
            "generation": self.generation,
            "bytes_in": self._bytes_in,
            "bytes_out": self._bytes_out,
        }


_LISTENING: Final = frozenset({LinkState.HANDSHAKING, LinkState.UP})
"""States in which what the peer says still counts."""
