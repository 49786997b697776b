"""Where values live: the store contract, and stores in memory, kept in a directory or not."""

from __future__ import annotations

from kvproto.store.document import (
    DO_NOT_CREATE,
    LOCKED_CAS,
    MARK_BITS,
    Document,
    Key,
    Mark,
    Refusal,
    accessed_at,
    last_access,
    marks_at,
)
from kvproto.store.file.store import FileStore
from kvproto.store.interfaces import (
    IConnectionStore,
    IGroupingStore,
    IImmediateStore,
    IListableStore,
    IStore,
    Outcome,
)
from kvproto.store.jsontext import is_json
from kvproto.store.memory import MemoryStore
from kvproto.store.meta import MetaAnswer, MetaRead, MetaWrite
from kvproto.store.multi import LookupResult, MutationResult
from kvproto.wire.subdoc_terms import (
    MAX_SPECS,
    DocFlag,
    LookupSpec,
    MutationSpec,
    PathFlag,
    PathOp,
    PathResult,
    PathStatus,
)

__all__ = [
    "DO_NOT_CREATE",
    "LOCKED_CAS",
    "MARK_BITS",
    "MAX_SPECS",
    "DocFlag",
    "Document",
    "FileStore",
    "IConnectionStore",
    "IGroupingStore",
    "IImmediateStore",
    "IListableStore",
    "IStore",
    "Key",
    "LookupResult",
    "LookupSpec",
    "Mark",
    "MemoryStore",
    "MetaAnswer",
    "MetaRead",
    "MetaWrite",
    "MutationResult",
    "MutationSpec",
    "Outcome",
    "PathFlag",
    "PathOp",
    "PathResult",
    "PathStatus",
    "Refusal",
    "accessed_at",
    "is_json",
    "last_access",
    "marks_at",
]
