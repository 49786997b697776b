"""Where values live: the store contract and the store in memory."""

from __future__ import annotations

from kvproto.store.document import (
    DO_NOT_CREATE,
    LOCKED_CAS,
    Document,
    Key,
    Mark,
    Refusal,
    accessed_at,
)
from kvproto.store.file.store import FileStore
from kvproto.store.interfaces import IConnectionStore, IStore, Outcome
from kvproto.store.jsontext import is_json
from kvproto.store.memory import MemoryStore
from kvproto.store.meta import MetaRead, MetaWrite
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
    "MAX_SPECS",
    "DocFlag",
    "Document",
    "FileStore",
    "IConnectionStore",
    "IStore",
    "Key",
    "LookupResult",
    "LookupSpec",
    "Mark",
    "MemoryStore",
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
    "has_short_way",
    "is_json",
]


def has_short_way(store: object) -> bool:
    """Say whether a store's plain GET and SET can be called without looking at what else it is.

    Its ``get`` answers at once, and it has a ``set_plainly`` like `MemoryStore`'s.  The class is
    compared exactly: a derived one may answer later.
    """
    return store.__class__ in _WITH_SHORT_WAY


_WITH_SHORT_WAY = frozenset({MemoryStore, FileStore})
