"""The passing of one accepted connection to its one owner, which cannot wedge.

A `Handoff` is the protocol that sits on the TLS layer (or on a bare transport) from
accept() on.  It offers the connection to a controller, keeps what the peer sends
meanwhile, and steps aside: once the connection is owned, a read reaches the owner's bound
``dataReceived`` and nothing of this module runs.  Only the end of the connection passes
through here again, so that the ledger hears of it and the owner hears it once.

What happens when is not decided here but in `kvproto.listeners.states.TABLE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocol,
    ISystemHandle,
    ITCPTransport,
)
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import CONNECTION, make_logger
from kvproto.errors import HandoffError
from kvproto.interfaces import IController, IDrainable, ISecuredTransport
from kvproto.listeners.expiry import certificate_expiry
from kvproto.listeners.faults import handshake_fault
from kvproto.listeners.ledger import Ledger
from kvproto.listeners.states import LIVE_STATES, PEER_FAULTS, TABLE, Action, Event, State
from kvproto.listeners.traffic import traffic_of
from kvproto.listeners.verified import VerifiedConnection

__all__ = ["Handoff", "HandoffFactory"]

log = make_logger()

peer_log = LimitedLog(log)

_LEFT = (ConnectionDone, ConnectionLost, ConnectionAborted)
"""How peers go away without a fault of the handshake."""

_LOST_WORDS = " ".join(str(CONNECTION_LOST).split())
"""How most connections end; Twisted would put the words together anew each time."""

_BEFORE_CLIENT_HELLO = b"before SSL initialization"
"""OpenSSL's name for a server that has not seen a whole ClientHello yet."""


# CPython looks at length for each attribute of an enumeration; these every connection needs.
_HANDSHAKING, _OFFERED, _OWNED, _CLOSING, _CANCELLED, _CLOSED = State
_HANDSHAKE_DONE, _CLAIMED, _DRAIN = Event.HANDSHAKE_DONE, Event.CLAIMED, Event.DRAIN
_PEER_ENDED, _PEER_LOST = Event.PEER_ENDED, Event.PEER_LOST


@implementer(IHandshakeListener, IHalfCloseableProtocol)
class Handoff(VerifiedConnection, Protocol):
    """One accepted connection on its way to an owner.

    To its controller it is an `IVerifiedConnection`; to the ledger an
    `kvproto.listeners.entry.IAccepted`.

    Args:
        factory: What it needs to know of its listener.
        address: Where the connection comes from, as accept() said.
    """

    factory: HandoffFactory
    transport: Any

    answer: Callable[[bytes, list[bytes]], int] | None = None
    """The owner's, of `kvproto.interfaces.IAnswers`."""

    def __init__(self, factory: HandoffFactory, address: IAddress | None) -> None:
        self.factory = factory
        self._ledger = factory.ledger
        self._owner: Any = None
        self._claim: Deferred[IProtocol] | None = None
        self._kept: list[bytes] = []
        self._paused = False
        self._owner_reads = False
        self._drain_within: float | None = None
        self._drain_wanted = False
        self._peer_ended = False
        self._lost: Failure | None = None
        self._ended_by = _PEER_LOST
        self.entry = self._ledger.admit(factory.name, address, self)

    # what the transport says

    def connectionMade(self) -> None:
        """Take what the transport knows; without a handshake to wait for, go on at once."""
        transport = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        if ISecuredTransport.providedBy(transport):
            self.entry.generation = transport.generation
        if not self.factory.handshake:
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        """Take the connection on: the layer below has verified the peer."""
        entry = self.entry
        if entry.state is not _HANDSHAKING:
            self.fire(_HANDSHAKE_DONE)
            return
        transport = self.transport
        peer = transport.getPeer()
        if peer is not entry.peer and peer != entry.peer:
            self._ledger.moved_behind_proxy(entry, peer)
        if ISecuredTransport.providedBy(transport):
            entry.generation = transport.generation
            entry.tls = transport.tls_version()
            self._ledger.handshakes.observe(self._ledger.clock.seconds() - entry.born)
        objection = self.factory.objection(self)
        if objection:
            self.fire(Event.GENERATION_RETIRED, objection)
            return
        reason = self._ledger.over_limit(entry, self.factory.limit)
        self.fire(Event.OVER_LIMIT if reason else _HANDSHAKE_DONE, reason)

    def progressed(self) -> bool:
        """Return whether the peer has sent a whole ClientHello, or needed none."""
        if self.entry.state is not _HANDSHAKING:
            return True
        if not ISystemHandle.providedBy(self.transport):
            return False
        handle = self.transport.getHandle()
        ask = getattr(handle, "get_state_string", None)
        return ask is not None and ask() != _BEFORE_CLIENT_HELLO

    def traffic(self) -> tuple[int, int] | None:
        """Return bytes received and sent so far, TLS included; None where nobody counts them."""
        return traffic_of(self.transport)

    def dataReceived(self, data: bytes) -> None:
        """Keep what comes before there is an owner: one read, then no more reading.

        Shadowed by the owner's own method as soon as there is one; a layer below that
        has kept this bound method reaches the owner all the same.
        """
        state = self.entry.state
        if state is _CANCELLED or state is _CLOSED:
            return
        if self._owner_reads:
            self._owner.dataReceived(data)
            return
        self._kept.append(data)
        if not self._paused and state is _OFFERED:
            self._paused = True
            self.transport.pauseProducing()

    def readConnectionLost(self) -> None:
        """Fire the event: the peer will send nothing more, and may still read."""
        self.fire(_PEER_ENDED)

    def writeConnectionLost(self) -> None:
        """Nothing to do: nobody here closes one side of a connection."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fire the events of a transport that is gone, whoever has ended it."""
        self._lost = reason
        why = _explain(reason)
        if self.entry.state is _HANDSHAKING and not isinstance(reason.value, _LEFT):
            words = str(getattr(reason.value, "reason", "") or why)
            self._ledger.failed_handshakes[self.entry.listener, handshake_fault(words)] += 1
            self.fire(Event.HANDSHAKE_FAILED, why)
        self.fire(_PEER_LOST, why)

    # the machine

    def fire(self, event: Event, reason: str = "", *, within: float | None = None) -> None:
        """Answer an event by the table.

        Args:
            event: What happened.
            reason: For the log; the first one that is given is kept.
            within: Seconds for the deadline of the new state, in place of its own.
        """
        entry = self.entry
        before = entry.state
        move = TABLE[before][event]
        after = move.state
        if after is not before and before in LIVE_STATES and after not in LIVE_STATES:
            self._ended_by = event
            entry.reason = entry.reason or reason
        if event is _DRAIN:
            self._drain_within = within
        if after is not before or move.deadline is not None:
            self._ledger.enter(entry, after, move.deadline, within)
        if (before, event) in PEER_FAULTS:
            self._notable = event is not Event.HANDSHAKE_FAILED or not self._told_by_tls()
        for action in move.actions:
            _ACTIONS[action](self)

    def _told_by_tls(self) -> bool:
        """Return whether a TLS layer of ours has told about its handshake, better than we could.

        It is silent about what ended the connection below it: a bad PROXY header.
        """
        below = self._lost is not None and self._lost.check(HandoffError) is not None
        return ISecuredTransport.providedBy(self.transport) and not below

    def _offer(self) -> None:
        """Ask the controller for an owner."""
        try:
            answer = self.factory.controller.claim(self)
        except Exception:
            self._claim_failed(Failure())
            return
        # Not isinstance: Deferred is an abstract class as well, and asks at length.
        if Deferred in type(answer).__mro__:
            self._claim = answer
            answer.addCallbacks(self._claimed, self._claim_failed)
            answer.addErrback(self._report)
        else:
            self._claimed(answer)

    def _claimed(self, owner: IProtocol) -> None:
        """Take the controller's answer, which may come at any time."""
        self._claim = None
        if self.entry.state is _OFFERED:
            self._owner = owner
        self.fire(_CLAIMED)

    def _claim_failed(self, failure: Failure) -> None:
        """Fire the event of a claim that has failed: there will be no owner."""
        self._claim = None
        if self.entry.state is _OFFERED:
            peer_log.failure(
                CONNECTION + ": the controller failed to take it",
                failure=failure,
                **self.entry.log_fields(),
            )
        self.fire(Event.CLAIM_FAILED, f"the controller failed: {failure.getErrorMessage()}")

    def _cancel_claim(self) -> None:
        """Make the controller let go.

        A Deferred that has no canceller would swallow the late answer, and nobody could
        tell the controller that it came too late.  Such a one is left alone: its answer
        arrives as `Event.CLAIMED` in a state that says so.
        """
        claim = self._claim
        if claim is not None and getattr(claim, "_canceller", None) is not None:
            claim.cancel()

    def _adopt(self) -> None:
        """Give the connection, and what was kept of it, to its owner."""
        owner, transport, entry = self._owner, self.transport, self.entry
        try:
            if owner is None:
                transport.loseConnection()
                return
            entry.owner = type(owner).__name__
            self._resume()
            owner.makeConnection(transport)
            self._hand_over(owner)
        except Exception:
            self._report(Failure())
            self.fire(Event.OWNER_FAILED, "the owner failed while it took over")
            return
        if entry.state is _OWNED:
            self._watch_expiry()
            if self._drain_wanted:
                self.fire(_DRAIN, "drained", within=self._drain_within)
        if self._peer_ended:
            self.fire(_PEER_ENDED)

    def _resume(self) -> None:
        """Read again, before the owner can have a wish of its own about that."""
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def _hand_over(self, owner: IProtocol) -> None:
        """Let reads go to the owner directly, beginning with what was kept."""
        if self.entry.state not in (_OWNED, _CLOSING):
            return
        kept, self._kept = b"".join(self._kept), []
        self._owner_reads = True
        self.dataReceived = owner.dataReceived  # type: ignore[method-assign]
        self.answer = getattr(owner, "answer", None)
        if self.factory.watch_idle:
            self._watch_idle(owner)
        else:
            self.entry.active = math.inf
        if kept:
            self.dataReceived(kept)

    def _watch_idle(self, owner: Any) -> None:
        """Note when the owner has nothing unfinished after a read; only where somebody asks."""
        entry, now = self.entry, self._ledger.clock.seconds
        receive, answer = owner.dataReceived, self.answer

        def received(data: bytes) -> None:
            receive(data)
            if not getattr(owner, "partial", False):
                entry.active = now()

        def answered(data: bytes, replies: list[bytes]) -> int:
            assert answer is not None
            taken = answer(data, replies)
            if replies or not getattr(owner, "partial", False):
                entry.active = now()
            return taken

        self.dataReceived = received  # type: ignore[method-assign]
        if answer is not None:
            self.answer = answered

    def _watch_expiry(self) -> None:
        """Let the connection end when the peer's certificate does."""
        chain = self.peer_chain
        if chain:
            expires = self.factory.expires(chain)
            if expires is not None:
                self._ledger.ends_at(self.entry, expires)

    def _refuse(self) -> None:
        """Let the controller tell the peer in its own protocol that there is no room."""
        try:
            self._owner = self.factory.controller.refuse(self, self.entry.reason)
        except Exception:
            self._report(Failure())
            self.fire(Event.OWNER_FAILED)
        else:
            self._adopt()

    def _note_end(self) -> None:
        """Remember to tell the owner, when there is one, that the peer has ended its side."""
        self._peer_ended = True

    def _notify_end(self) -> None:
        """Let the owner answer what the peer has asked, and close."""
        transport, entry, owner = self.transport, self.entry, self._owner
        if getattr(transport, "disconnecting", False):
            return
        if not ISecuredTransport.providedBy(transport):
            entry.reason = entry.reason or "the peer ended its side"
            self._ledger.enter(entry, entry.state, within=self._ledger.timeouts.half_close)
        if IHalfCloseableProtocol.providedBy(owner):
            owner.readConnectionLost()
        else:
            # It cannot be told, and is known to TLS only: whether it has answered.
            lose = getattr(transport, "lose_when_answered", None) or transport.loseConnection
            lose()

    def _note_drain(self) -> None:
        """Remember to drain as soon as there is an owner."""
        self._drain_wanted = True

    def _drain(self) -> None:
        """Let the owner answer what it was asked and close."""
        owner = self._owner
        if not IDrainable.providedBy(owner):
            self._close_soon()
            return
        try:
            drained = owner.drain()
        except Exception:
            self._report(Failure())
            self._close_soon()
            return
        drained.addErrback(self._drain_failed)

    def _drain_failed(self, failure: Failure) -> None:
        """Close what could not finish what it was asked, unless it is gone anyway."""
        if self.entry.state is _CLOSING:
            self._report(failure)
            self._close_soon()

    def _close_soon(self) -> None:
        """Close, with the time of a close instead of that of a drain."""
        self._ledger.enter(self.entry, self.entry.state, "close")
        self._close()

    def _close(self) -> None:
        """Close now; the deadline ends the wait for the peer's goodbye.

        What the peer still asks is not heard: one whose trust was withdrawn may do nothing
        more.  What its owner has answered already is sent.
        """
        if self._lost is None and self.transport is not None:
            self.dataReceived = _ignore  # type: ignore[method-assign, assignment]
            self.answer = None
            # A transport waits with its goodbye for a producer, and the owner, who is one,
            # does not know yet.
            unregister = getattr(self.transport, "unregisterProducer", None)
            if unregister is not None:
                unregister()
            self.transport.loseConnection()

    def _abort(self) -> None:
        """Drop the transport at once."""
        if self._lost is None and self.transport is not None:
            self.transport.abortConnection()

    def _too_late(self) -> None:
        """Call the controller's `too_late`: its answer is not used."""
        try:
            self.factory.controller.too_late(self)
        except Exception:
            self._report(Failure())

    def _finish(self) -> None:
        """Notify the owner, remove the entry, log in one line how it ended."""
        entry = self.entry
        owner, self._owner = self._owner, None
        self._kept.clear()
        with suppress(AttributeError):
            del self.dataReceived  # the owner's; let go of it
        self.answer = None
        if owner is not None and entry.owner:
            reason = self._lost or Failure(HandoffError("the transport did not close"))
            try:
                owner.connectionLost(reason)
            except Exception:
                self._report(Failure())
        # After the owner: who waits for the ledger to be empty finds everybody told.
        self._ledger.remove(entry, self._ended_by.value)
        if self._notable:
            peer_log.info(
                CONNECTION + " ended while {stage}: {reason}",
                **entry.log_fields(),
                stage=entry.stage.value,
                reason=entry.reason or "closed",
            )
        else:
            # Nothing is put into words for a log that nobody keeps.
            log.debug(
                "connection {entry.id} from {peer()} on {entry.listener} ended while "
                "{entry.stage.value}: {entry.reason}",
                entry=entry,
                peer=entry.describe_peer,
            )

    def _report(self, failure: Failure) -> None:
        """Log a failure of somebody else's code."""
        peer_log.failure(
            CONNECTION + ": {reason}",
            failure=failure,
            reason=failure.getErrorMessage(),
            **self.entry.log_fields(),
        )


_ACTIONS: dict[Action, Callable[[Handoff], None]] = {
    Action.OFFER: Handoff._offer,
    Action.ADOPT: Handoff._adopt,
    Action.REFUSE: Handoff._refuse,
    Action.CANCEL_CLAIM: Handoff._cancel_claim,
    Action.NOTE_DRAIN: Handoff._note_drain,
    Action.NOTE_END: Handoff._note_end,
    Action.TELL_END: Handoff._notify_end,
    Action.DRAIN: Handoff._drain,
    Action.CLOSE: Handoff._close,
    Action.ABORT: Handoff._abort,
    Action.TOO_LATE: Handoff._too_late,
    Action.FINISH: Handoff._finish,
}


def _explain(reason: Failure) -> str:
    """Return why a transport went away, in one line; ``""`` for an ordinary close."""
    error = reason.value
    if error is CONNECTION_LOST:
        return _LOST_WORDS
    if isinstance(error, ConnectionDone):
        return ""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _ignore(_data: bytes) -> None:
    """Drop what is read after our goodbye."""


def _no_objection(_connection: Handoff) -> str:
    """Return ``""``: every verified connection may stay."""
    return ""


@dataclass(eq=False)
class HandoffFactory(Factory):
    """Makes the `Handoff` of each connection of one listener.

    Attributes:
        name: The listener's name.
        controller: Whom connections are offered to.
        ledger: Where they are written down.
        handshake: Whether a layer below says when the peer is verified
            (`IHandshakeListener`); without one a connection is verified as it is.
        limit: Verified connections this listener may have, 0 for no limit of its own.
        objection: Asked when a handshake has ended well: ``""`` or why the peer cannot
            stay after all (its trust was withdrawn meanwhile).
        expires: Maps a peer's chain to when it ends, in Unix seconds, or None.
        watch_idle: Whether `Entry.active` is kept; it costs a little with each read.
    """

    name: str
    controller: IController
    ledger: Ledger
    handshake: bool = True
    limit: int = 0
    objection: Callable[[Handoff], str] = _no_objection
    expires: Callable[[tuple[bytes, ...]], float | None] = certificate_expiry
    watch_idle: bool = False

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Handoff:  # type: ignore[override]
        """Write a new connection down; called at accept(), before any handshake."""
        return Handoff(self, addr)
