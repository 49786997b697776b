"""Where values live: the store contract and the store in memory."""

from __future__ import annotations

from kvproto.store.document import DO_NOT_CREATE, LOCKED_CAS, Document, Key, Refusal
from kvproto.store.interfaces import IStore, Outcome
from kvproto.store.jsontext import is_json
from kvproto.store.memory import MemoryStore
from kvproto.store.multi import MAX_SPECS, DocFlag, LookupResult, MutationResult
from kvproto.store.paths import PathStatus
from kvproto.store.subdoc import LookupSpec, MutationSpec, PathFlag, PathOp

__all__ = [
    "DO_NOT_CREATE",
    "LOCKED_CAS",
    "MAX_SPECS",
    "DocFlag",
    "Document",
    "IStore",
    "Key",
    "LookupResult",
    "LookupSpec",
    "MemoryStore",
    "MutationResult",
    "MutationSpec",
    "Outcome",
    "PathFlag",
    "PathOp",
    "PathStatus",
    "Refusal",
    "is_json",
]
