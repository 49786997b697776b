"""What becomes of live connections when their listener or their credentials change.

Each function takes entries of the ledger, lets the right event happen to each, and
returns a Deferred that fires when those it ended are gone.  All are bounded: what is told
to close has a deadline in the ledger, and the ledger keeps its deadlines.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import CONNECTION, make_logger
from kvproto.config import OnRotate
from kvproto.listeners.entry import Entry
from kvproto.listeners.ledger import Ledger
from kvproto.listeners.states import LIVE_STATES, Event, State

__all__ = ["Terms", "Verify", "apply", "disconnect", "drain", "objection", "recheck"]

log = make_logger()
peer_log = LimitedLog(log)

Verify = Callable[[tuple[bytes, ...]], str | None]
"""Maps a peer's chain to why it is not trusted (any more), None when it is."""

_VERIFIED = frozenset({State.OFFERED, State.OWNED, State.CLOSING})
"""Whose chain can be verified again; a handshake under way is judged when it has ended."""

RECHECKS_PER_TURN = 32
"""Chains verified before others' reads have their turn: some milliseconds."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms connections end.

    Attributes:
        event: What happens to those that are disconnected; its name is the reason.
        verify: For `OnRotate.RECHECK`; without it nobody is ended.
        window: Seconds over which drains begin.
        within: Seconds that each drain may take.
        jitter: Returns numbers from 0 to 1: where in the window one begins.
    """

    event: Event
    verify: Verify | None = None
    window: float = 10.0
    within: float = 10.0
    jitter: Callable[[], float] = random.random


async def apply(policy: OnRotate, ledger: Ledger, entries: Iterable[Entry], terms: Terms) -> int:
    """Do to connections what a policy says.

    Returns:
        How many it ended; they are gone.
    """
    if policy is OnRotate.DISCONNECT:
        return await disconnect(ledger, entries, terms.event, terms.event.value)
    if policy is OnRotate.RECHECK and terms.verify is not None:
        return await recheck(ledger, entries, terms.verify)
    if policy is OnRotate.DRAIN:
        return await drain(ledger, entries, terms, terms.event.value)
    return 0


async def disconnect(ledger: Ledger, entries: Iterable[Entry], event: Event, reason: str) -> int:
    """End all of them at once, in parallel, within the time of a close.

    Args:
        ledger: Where they are written down.
        entries: Which ones.
        event: Why: `Event.ACCEPTOR_STOPPING`, `Event.GENERATION_RETIRED` or
            `Event.PROCESS_STOPPING` (which aborts).
        reason: For the log.

    Returns:
        How many there were.
    """
    ending = list(entries)
    gone = ledger.when_gone(ending)
    for entry in ending:
        entry.accepted.fire(event, reason)
    await gone
    return len(ending)


async def recheck(ledger: Ledger, entries: Iterable[Entry], verify: Verify) -> int:
    """Verify every connected peer again, end those that fail.

    Peers that showed no certificate were not let in by one and stay.  A verification that
    cannot be done counts as failed.

    Args:
        ledger: Where they are written down.
        entries: Which ones.
        verify: The new generation's opinion of a chain.

    Returns:
        How many were ended.
    """
    ended: list[Entry] = []
    for position, entry in enumerate(list(entries), 1):
        if position % RECHECKS_PER_TURN == 0:
            await deferLater(ledger.clock, 0)
        reason = objection(verify, entry) if entry.state in _VERIFIED else ""
        if reason:
            ended.append(entry)
            peer_log.info(
                CONNECTION + " is ended: {reason}",
                **entry.log_fields(),
                reason=reason,
            )
            entry.accepted.fire(Event.GENERATION_RETIRED, reason)
    await ledger.when_gone(ended)
    return len(ended)


def objection(verify: Verify, entry: Entry) -> str:
    """Return why a connection's peer may not stay, ``""`` when it may."""
    try:
        chain = entry.accepted.peer_chain
        return (verify(chain) or "") if chain else ""
    except Exception:
        peer_log.failure(
            CONNECTION + ": its peer could not be verified again",
            **entry.log_fields(),
        )
        return "the peer's certificate could not be verified again"


async def drain(ledger: Ledger, entries: Iterable[Entry], terms: Terms, reason: str) -> int:
    """Let each finish what it was asked, spread over a while, so that not all come back at once.

    Args:
        ledger: Where they are written down.
        entries: Which ones.
        terms: When each begins, and how long it has before it is aborted.
        reason: For the log.

    Returns:
        How many there were.
    """
    draining = list(entries)
    plan = sorted(
        ((terms.jitter() * terms.window, entry) for entry in draining), key=lambda item: item[0]
    )
    gone = ledger.when_gone(draining)
    spreading = Deferred.fromCoroutine(_spread(ledger.clock, plan, terms.within, reason))
    spreading.addErrback(_only_cancelled)
    try:
        await gone
    finally:
        spreading.cancel()
    return len(draining)


async def _spread(
    clock: IReactorTime, plan: list[tuple[float, Entry]], within: float, reason: str
) -> None:
    """Begin each drain at its time."""
    start = clock.seconds()
    for offset, entry in plan:
        wait = start + offset - clock.seconds()
        if wait > 0 and entry.state in LIVE_STATES:
            await deferLater(clock, wait)
        entry.accepted.fire(Event.DRAIN, reason, within=within)


def _only_cancelled(failure: Failure) -> None:
    """Expect the end of a spread whose connections are gone; report anything else."""
    if not failure.check(CancelledError):
        log.failure("a drain failed", failure=failure)
