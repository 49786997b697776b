"""Who gets a connection: acceptors, the handoff, and the ledger of all accepted connections.

Knows nothing of KV: any Twisted protocol can be what a connection is handed to.
``docs/howto/compose-acceptor.md`` shows a whole program; the state machine is explained in
``docs/explanation/handoff.md``.
"""

from __future__ import annotations

from kvproto.listeners.acceptor import AcceptorService, AcceptorState
from kvproto.listeners.binding import Rebind, why_not_listening
from kvproto.listeners.entry import Entry
from kvproto.listeners.handoff import Handoff, HandoffFactory
from kvproto.listeners.ledger import Ledger, Limits
from kvproto.listeners.ports import server_endpoint
from kvproto.listeners.states import TABLE, Event, State, Timeouts

__all__ = [
    "TABLE",
    "AcceptorService",
    "AcceptorState",
    "Entry",
    "Event",
    "Handoff",
    "HandoffFactory",
    "Ledger",
    "Limits",
    "Rebind",
    "State",
    "Timeouts",
    "server_endpoint",
    "why_not_listening",
]
