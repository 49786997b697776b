"""What can happen to an accepted connection: the one table of states and events.

The handoff obeys `TABLE`, the ledger counts by its states, the tests walk every pair of
it, and ``docs/explanation/handoff.md`` shows it (a test compares the two).  Nothing else
decides what comes next::

    Handshaking ─handshake done─> Offered ─claimed─> Owned ─drain, stop, retire─> Closing
         │                           │                 │                            │
         └── deadline, displaced, stopping, failed ────┴────────> Cancelled <───────┘
    any but Closed ─peer lost─> Closed

*Closing* still lets its owner speak: it drains, says "busy", or waits for the peer's
goodbye.  *Cancelled* has been aborted and only waits for the transport to say so.

Rules: entering a state sets its deadline (`DEADLINE_OF`), a move may name another one;
staying in a state can only bring the deadline nearer; the first reason that is given
for an end is the one that is told.

Source: design.md, "listeners.Handoff"; the races that each row answers are those of
ns_server's ``cb_dist`` (MB-36749 and its successors).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = [
    "DEADLINE_OF",
    "LIVE_STATES",
    "PEER_FAULTS",
    "TABLE",
    "Action",
    "Event",
    "Move",
    "State",
    "Timeouts",
    "render_table",
]


class State(enum.StrEnum):
    """Where an accepted connection is."""

    HANDSHAKING = "handshaking"
    OFFERED = "offered"
    OWNED = "owned"
    CLOSING = "closing"
    CANCELLED = "cancelled"
    CLOSED = "closed"


class Event(enum.StrEnum):
    """What can happen to it."""

    HANDSHAKE_DONE = "handshake done"
    HANDSHAKE_FAILED = "handshake failed"
    OVER_LIMIT = "over limit"
    CLAIMED = "claimed"
    CLAIM_FAILED = "claim failed"
    OWNER_FAILED = "owner failed"
    DRAIN = "drain"
    DISPLACED = "displaced"
    DEADLINE = "deadline"
    ACCEPTOR_STOPPING = "acceptor stopping"
    GENERATION_RETIRED = "generation retired"
    PROCESS_STOPPING = "process stopping"
    IDLE = "idle"
    TOO_OLD = "too old"
    PEER_ENDED = "peer ended its side"
    PEER_LOST = "peer lost"


class Action(enum.StrEnum):
    """What the handoff does on the way; each is one method of `Handoff`."""

    OFFER = "offer to the controller"
    ADOPT = "give it to its owner"
    REFUSE = "let the controller say busy"
    CANCEL_CLAIM = "cancel the claim"
    NOTE_DRAIN = "drain once owned"
    DRAIN = "let the owner finish"
    NOTE_END = "tell the owner once there is one"
    TELL_END = "let the owner answer and close"
    CLOSE = "say goodbye"
    ABORT = "abort"
    TOO_LATE = "tell the controller: too late"
    FINISH = "tell the owner, leave the ledger"


@dataclass(frozen=True, slots=True)
class Move:
    """The answer to one event in one state.

    Attributes:
        state: Where it goes; the same state means it stays.
        actions: What is done, in order, after the state has been entered.
        deadline: Name of the timeout (a field of `Timeouts`) to use in place of the
            state's own; only `State.CLOSING` has more than one.
    """

    state: State
    actions: tuple[Action, ...] = ()
    deadline: str | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a connection may stay in a state, in seconds.

    Attributes:
        handshake: From accept() to the end of the TLS handshake, PROXY header included.
        claim: For the controller to answer (7 s, as Erlang's ``net_setuptime``).
        refuse: For hearing what protocol a refused peer speaks and telling it "busy".
        drain: For an owner to answer what it was asked.
        half_close: For the answers to a peer that has ended its side of a connection without TLS
            (with TLS, `kvproto.tls.KVTLSProtocol` has the deadline and renews it by progress).
        close: For the peer to answer our goodbye (1 s: ns_server began with 5 and made
            its callers time out).
        vanish: For the transport to report the end of an aborted connection.
    """

    handshake: float = 10.0
    claim: float = 7.0
    refuse: float = 3.0
    drain: float = 10.0
    half_close: float = 30.0
    close: float = 1.0
    vanish: float = 1.0


DEADLINE_OF: dict[State, str | None] = {
    State.HANDSHAKING: "handshake",
    State.OFFERED: "claim",
    State.OWNED: None,  # the owner's own deadlines, and the expiry of the peer's certificate
    State.CLOSING: "close",
    State.CANCELLED: "vanish",
    State.CLOSED: None,
}
"""The timeout that entering a state starts."""

LIVE_STATES = frozenset({State.HANDSHAKING, State.OFFERED, State.OWNED})
"""States that nobody has begun to end."""

PEER_FAULTS = frozenset(
    {
        (State.HANDSHAKING, Event.HANDSHAKE_FAILED),
        (State.HANDSHAKING, Event.DEADLINE),
        (State.CLOSING, Event.DEADLINE),
        *(
            (state, event)
            for state in (State.HANDSHAKING, State.OFFERED, State.OWNED)
            for event in (Event.OVER_LIMIT, Event.DISPLACED)
        ),
        (State.OWNED, Event.IDLE),
        (State.OWNED, Event.TOO_OLD),
    }
)
"""Ends that are worth a line in the log of a production service."""


def _build() -> dict[State, dict[Event, Move]]:
    """Write the table down, state by state."""
    s, e, a = State, Event, Action
    abort = Move(s.CANCELLED, (a.ABORT,))
    withdraw = Move(s.CANCELLED, (a.CANCEL_CLAIM, a.ABORT))
    close = Move(s.CLOSING, (a.CLOSE,), "close")
    lost = Move(s.CLOSED, (a.FINISH,))

    def late(state: State) -> Move:
        return Move(state, (a.TOO_LATE,))

    return {
        s.HANDSHAKING: {
            e.HANDSHAKE_DONE: Move(s.OFFERED, (a.OFFER,)),
            e.HANDSHAKE_FAILED: abort,
            e.OVER_LIMIT: Move(s.CLOSING, (a.REFUSE,), "refuse"),
            e.CLAIMED: late(s.HANDSHAKING),
            e.CLAIM_FAILED: Move(s.HANDSHAKING),
            e.OWNER_FAILED: abort,
            e.DRAIN: Move(s.HANDSHAKING, (a.NOTE_DRAIN,)),
            e.DISPLACED: abort,
            e.DEADLINE: abort,
            e.ACCEPTOR_STOPPING: abort,
            e.GENERATION_RETIRED: abort,
            e.PROCESS_STOPPING: abort,
            e.IDLE: Move(s.HANDSHAKING),
            e.TOO_OLD: Move(s.HANDSHAKING),
            e.PEER_ENDED: Move(s.HANDSHAKING, (a.NOTE_END,)),
            e.PEER_LOST: lost,
        },
        s.OFFERED: {
            e.HANDSHAKE_DONE: Move(s.OFFERED),
            e.HANDSHAKE_FAILED: withdraw,
            e.OVER_LIMIT: Move(s.CLOSING, (a.CANCEL_CLAIM, a.REFUSE), "refuse"),
            e.CLAIMED: Move(s.OWNED, (a.ADOPT,)),
            e.CLAIM_FAILED: abort,
            e.OWNER_FAILED: withdraw,
            e.DRAIN: Move(s.OFFERED, (a.NOTE_DRAIN,)),
            e.DISPLACED: withdraw,
            e.DEADLINE: withdraw,
            e.ACCEPTOR_STOPPING: withdraw,
            e.GENERATION_RETIRED: withdraw,
            e.PROCESS_STOPPING: withdraw,
            e.IDLE: Move(s.OFFERED),
            e.TOO_OLD: Move(s.OFFERED),
            e.PEER_ENDED: Move(s.OFFERED, (a.NOTE_END,)),
            e.PEER_LOST: Move(s.CLOSED, (a.CANCEL_CLAIM, a.FINISH)),
        },
        s.OWNED: {
            e.HANDSHAKE_DONE: Move(s.OWNED),
            e.HANDSHAKE_FAILED: abort,
            e.OVER_LIMIT: close,
            e.CLAIMED: late(s.OWNED),
            e.CLAIM_FAILED: Move(s.OWNED),
            e.OWNER_FAILED: abort,
            e.DRAIN: Move(s.CLOSING, (a.DRAIN,), "drain"),
            e.DISPLACED: abort,
            e.DEADLINE: close,  # the peer's certificate expired
            e.ACCEPTOR_STOPPING: close,
            e.GENERATION_RETIRED: close,
            e.PROCESS_STOPPING: abort,
            e.IDLE: Move(s.CLOSING, (a.DRAIN,), "close"),
            e.TOO_OLD: Move(s.CLOSING, (a.DRAIN,), "drain"),
            e.PEER_ENDED: Move(s.OWNED, (a.TELL_END,)),
            e.PEER_LOST: lost,
        },
        s.CLOSING: {
            e.HANDSHAKE_DONE: Move(s.CLOSING),
            e.HANDSHAKE_FAILED: abort,
            e.OVER_LIMIT: Move(s.CLOSING),
            e.CLAIMED: late(s.CLOSING),
            e.CLAIM_FAILED: Move(s.CLOSING),  # the echo of a claim that was cancelled
            e.OWNER_FAILED: abort,
            e.DRAIN: Move(s.CLOSING, (), "drain"),
            e.DISPLACED: abort,
            e.DEADLINE: abort,
            e.ACCEPTOR_STOPPING: close,
            e.GENERATION_RETIRED: close,
            e.PROCESS_STOPPING: abort,
            e.IDLE: Move(s.CLOSING),
            e.TOO_OLD: Move(s.CLOSING),
            e.PEER_ENDED: Move(s.CLOSING, (a.TELL_END,)),
            e.PEER_LOST: lost,
        },
        s.CANCELLED: {
            **{event: Move(s.CANCELLED) for event in e},
            e.CLAIMED: late(s.CANCELLED),
            e.DEADLINE: lost,  # the transport never said so: let go of it
            e.PEER_LOST: lost,
        },
        s.CLOSED: {
            **{event: Move(s.CLOSED) for event in e},
            e.CLAIMED: late(s.CLOSED),
        },
    }


TABLE = _build()
"""``TABLE[state][event]`` is the answer; every pair has one."""


def render_table() -> str:
    """Return `TABLE` as the Markdown table of the documentation.

    One row for each event, one column for each state; ``-`` where nothing happens.
    """
    lines = [
        "| event | " + " | ".join(f"**{state.value}**" for state in State) + " |",
        "|---" * (len(State) + 1) + "|",
    ]
    for event in Event:
        cells = [_render_move(state, TABLE[state][event]) for state in State]
        lines.append(f"| {event.value} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _render_move(state: State, move: Move) -> str:
    """Return one cell: where it goes, what is done, within what."""
    parts = [action.value for action in move.actions]
    if move.state is not state:
        parts.insert(0, f"→ **{move.state.value}**")
    if move.deadline is not None:
        parts.append(f"within `{move.deadline}`")
    return "; ".join(parts) or "-"
