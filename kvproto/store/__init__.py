"""Where values live: the store contract and the store in memory."""

from __future__ import annotations

from kvproto.store.document import DO_NOT_CREATE, LOCKED_CAS, Document, Key, Refusal
from kvproto.store.interfaces import IStore, Outcome
from kvproto.store.memory import MemoryStore

__all__ = [
    "DO_NOT_CREATE",
    "LOCKED_CAS",
    "Document",
    "IStore",
    "Key",
    "MemoryStore",
    "Outcome",
    "Refusal",
]
