"""The rules of a store's operations, written once for all stores.

A rule is a pure function: it is given what is kept under a key, the time and the arguments of
the operation, and returns a `Decision`: what the client is told, and what becomes of the key.
It never knows where documents live, keeps nothing, and can be repeated: a store in memory
applies a decision at once, a store on an engine reads, decides, and compares and swaps until
nobody came in between.

What a store does with a rule:

1. Find what is kept under the key and pass it through `live`; rules are never shown an expired
   document or a lapsed lock.  Tombstones count as nothing, except for the operations on parts
   of documents when the client asks for deleted ones (`kvproto.store.partial`).
2. Call the rule with it, with the time and with the operation's arguments.
3. If the decision's effect is not NOTHING: refuse what is larger than the store's `Limits`; give
   the decision's document a CAS and a sequence number, as `Effect` says; put it in its place.
4. Count what the decision names.  Answer with its ``answer``, which is, or contains, the very
   document that got its CAS in step 3.

A rule leaves CAS and sequence number of a new document at 0.  Only one that has to know them
in advance (macros) asks for them, by calling the function that it was given for that.

Source: memcached ``doc/protocol.txt``; Couchbase kv_engine ``docs/BinaryProtocol.md``.
Where the two differ, the reference page "Stores" says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeAlias, TypeVar

from kvproto.store.document import DO_NOT_CREATE, Document, Key, Mark, Refusal, marks_at
from kvproto.store.expiry import deadline

__all__ = [
    "DEFAULT_MAX_VALUE",
    "TOMBSTONE_LIFETIME_S",
    "Decision",
    "Effect",
    "Limits",
    "Rule",
    "Stamp",
    "add",
    "append",
    "count",
    "counted_marks",
    "decrement",
    "delete",
    "discard",
    "get",
    "get_and_lock",
    "get_and_touch",
    "increment",
    "live",
    "prepend",
    "replace",
    "set_",
    "storing",
    "tombstone",
    "touch",
    "unlock",
]

DEFAULT_MAX_VALUE = 20 << 20
"""Bytes of one value; Couchbase's ``max_item_size``."""

TOMBSTONE_LIFETIME_S = 3 * 86400
"""How long a deleted document's system attributes are kept; Couchbase's purge interval."""

_DEFAULT_LOCK_S = 15
_MAX_LOCK_S = 30
_COUNTER_MASK = 0xFFFFFFFF_FFFFFFFF
_COUNTER = re.compile(rb"[ \t-\r]*\+?0*([0-9]{1,20})(?![^ \t-\r\0])")
_COUNTER_BYTES = 1024
"""How far a number is looked for; one that ends there, or behind it, is none."""
_JSON = 1

Counts: TypeAlias = tuple[str, ...]
"""Names of `kvproto.store.statistics.Statistics` that grow by one."""


class Effect(Enum):
    """What becomes of a key, and which numbers the decision's document gets."""

    NOTHING = "all stays as it is"
    STORE = "the document takes the place of what is there; it gets a CAS and a sequence number"
    DELETE = (
        "the document is a tombstone: what is there goes, and the tombstone is kept if it has"
        " attributes; it gets a CAS and a sequence number"
    )
    REMOVE = (
        "what is there goes; the document, if there is one, has expired already, so that nothing"
        " has to be kept of it; a sequence number is used, and a CAS if there is a document"
    )
    LOCK = "the document takes the place of the one that is there; it gets a CAS, nothing else"
    MARK = "the document takes the place of the one that is there; only its marks are other ones"
    UNLOCK = "the document takes the place of the one that is there; it keeps all its numbers"


Answer = TypeVar("Answer")


@dataclass(slots=True)
class Decision(Generic[Answer]):
    """What a rule says.

    Attributes:
        answer: What the operation returns.
        effect: What becomes of the key.
        document: The document that the effect is about.
        counts: Which statistics grow by one, whether or not the store has room for the document.
        keeps_expiry: Whether the document has the expiry of the one before because the client
            wants it so; then no limit of the store holds for it.
        in_place: Whether to memcached this is a change of the item that is there, which is not
            counted as a new one.
    """

    answer: Answer
    effect: Effect = Effect.NOTHING
    document: Document | None = None
    counts: Counts = ()
    keeps_expiry: bool = False
    in_place: bool = False


Rule: TypeAlias = Callable[..., Decision[Answer]]
"""A rule's first arguments are ``old: Document | None`` and ``now: float``, unix seconds."""

Changed: TypeAlias = Decision[Document | Refusal]

Stamp: TypeAlias = Callable[[Document], None]
"""Gives a document the CAS and the sequence number that it will have if it is stored."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large one document may be.

    Attributes:
        max_value: Bytes of its value and its attributes' texts.
        max_item: Bytes of these and its key.
    """

    max_value: int
    max_item: int

    def refuse(self, key: Key, document: Document) -> bool:
        """Return whether a document is larger than allowed."""
        length = len(document.value)
        if document.xattrs is not None:
            length += sum(map(len, document.xattrs.values()))
        key_length = len(key[1]) if key.__class__ is tuple else len(key)
        return length > self.max_value or length + key_length > self.max_item


# -- what rules share -------------------------------------------------------------------------


def live(found: Document | None, now: float) -> Document | None:
    """Return what is to be seen of a document: None when it has expired, no lapsed lock."""
    if found is None or (found.expires_at and found.expires_at <= now):
        return None
    if found.locked_until and found.locked_until <= now:
        return copied(found, 0.0)
    return found


def check(old: Document | None, cas: int, counts: Counts) -> tuple[Refusal | None, Counts]:
    """Return why a mutation may not go ahead, None when it may; and what is counted."""
    if old is None:
        return Refusal.NOT_FOUND, (*counts, "cas_misses") if cas else counts
    if old.locked_until and cas != old.cas:
        return Refusal.LOCKED, counts
    if not cas:
        return None, counts
    if cas != old.cas:
        return Refusal.EXISTS, (*counts, "cas_badval")
    return None, (*counts, "cas_hits")


def storing(document: Document, now: float, counts: Counts, *, in_place: bool = False) -> Changed:
    """Store a document, unless it has expired already; then nothing remains to be seen."""
    expired = document.expires_at and document.expires_at <= now
    effect = Effect.REMOVE if expired else Effect.STORE
    return Decision(document, effect, document, counts, in_place=in_place)


def _successor(
    old: Document | None, value: bytes, flags: int, expires_at: float, datatype: int
) -> Document:
    """Make the next state of a document; its attributes outlive its values."""
    document = Document(value, flags, 0, expires_at, 0.0, 0, datatype)
    if old is not None:
        document.xattrs = old.xattrs
        if value is old.value:
            document.kind = old.kind
    return document


def _changed(old: Document, value: bytes, datatype: int, now: float, counts: Counts) -> Changed:
    """Store another value; flags and expiry stay as they were."""
    document = _successor(old, value, old.flags, old.expires_at, datatype)
    return storing(document, now, counts)


def tombstone(old: Document | None, made: Document, now: float) -> Document:
    """Turn a new document into the tombstone of an old one.

    Attributes whose names begin with ``_`` (the system's) outlive their document, those of
    users do not, unless the tombstone was made with them.
    """
    made.value, made.deleted = b"", True
    if old is not None:
        xattrs = made.xattrs or old.xattrs or {}
        made.xattrs = {name: text for name, text in xattrs.items() if name[0] == "_"} or None
    made.expires_at = now + TOMBSTONE_LIFETIME_S if made.xattrs else 0.0
    return made


# -- storing ----------------------------------------------------------------------------------

_SET: Counts = ("cmd_set",)


def set_(
    old: Document | None,
    now: float,
    value: bytes,
    flags: int,
    expiry: int,
    cas: int,
    datatype: int,
    preserve_expiry: bool,
) -> Changed:
    """Store whatever was there before; see `IStore.set`."""
    counts = _SET
    if cas or (old is not None and old.locked_until):
        refusal, counts = check(old, cas, _SET)
        if refusal is not None:
            return Decision(refusal, counts=counts)
    keeps = preserve_expiry and old is not None
    expires_at = old.expires_at if keeps and old else deadline(expiry, now)
    decision = storing(_successor(old, value, flags, expires_at, datatype), now, counts)
    decision.keeps_expiry = keeps
    return decision


def add(
    old: Document | None,
    now: float,
    value: bytes,
    flags: int,
    expiry: int,
    cas: int,
    datatype: int,
    preserve_expiry: bool,
) -> Changed:
    """Store only where nothing is; see `IStore.add`."""
    if old is not None:
        return Decision(Refusal.EXISTS, counts=_SET)
    if cas:
        return Decision(Refusal.NOT_FOUND, counts=_SET)
    return storing(_successor(None, value, flags, deadline(expiry, now), datatype), now, _SET)


def replace(
    old: Document | None,
    now: float,
    value: bytes,
    flags: int,
    expiry: int,
    cas: int,
    datatype: int,
    preserve_expiry: bool,
) -> Changed:
    """Store only where something is; see `IStore.replace`."""
    if old is None:
        return Decision(Refusal.NOT_FOUND, counts=("cmd_set", "cas_misses") if cas else _SET)
    return set_(old, now, value, flags, expiry, cas, datatype, preserve_expiry)


def append(old: Document | None, now: float, value: bytes, cas: int) -> Changed:
    """Put bytes behind a value; see `IStore.append`."""
    return _extend(old, now, b"", value, cas)


def prepend(old: Document | None, now: float, value: bytes, cas: int) -> Changed:
    """Put bytes before a value; see `IStore.prepend`."""
    return _extend(old, now, value, b"", cas)


def _extend(old: Document | None, now: float, before: bytes, after: bytes, cas: int) -> Changed:
    if old is None:
        return Decision(Refusal.NOT_STORED, counts=_SET)
    refusal, counts = check(old, cas, _SET)
    if refusal is not None:
        return Decision(refusal, counts=counts)
    return _changed(old, before + old.value + after, 0, now, counts)


def delete(old: Document | None, now: float, cas: int) -> Changed:
    """Remove a document; see `IStore.delete`."""
    if old is None:
        return Decision(Refusal.NOT_FOUND, counts=("delete_misses",))
    refusal, counts = check(old, cas, ())
    if refusal is not None:
        return Decision(refusal, counts=counts)
    grave = tombstone(old, Document(b""), now)
    return Decision(grave, Effect.DELETE, grave, (*counts, "delete_hits"))


def discard(old: Document | None, now: float) -> Decision[None]:
    """Remove a document, locked or not; see `IStore.discard`."""
    return Decision(None, Effect.NOTHING if old is None else Effect.REMOVE)


# -- counters ---------------------------------------------------------------------------------


def increment(
    old: Document | None, now: float, delta: int, initial: int, expiry: int, cas: int
) -> Changed:
    """Add to a counter; see `IStore.increment`."""
    counts = ("incr_misses",) if old is None else ("incr_hits",)
    return _count(old, now, delta, initial, expiry, cas, counts)


def decrement(
    old: Document | None, now: float, delta: int, initial: int, expiry: int, cas: int
) -> Changed:
    """Subtract from a counter; see `IStore.decrement`."""
    counts = ("decr_misses",) if old is None else ("decr_hits",)
    return _count(old, now, -delta, initial, expiry, cas, counts)


def _count(
    old: Document | None,
    now: float,
    delta: int,
    initial: int,
    expiry: int,
    cas: int,
    counts: Counts,
) -> Changed:
    """Change a counter by a signed delta."""
    if old is None:
        if cas or expiry == DO_NOT_CREATE:
            return Decision(Refusal.NOT_FOUND, counts=counts)
        made = _successor(None, b"%d" % initial, 0, deadline(expiry, now), _JSON)
        return storing(made, now, counts)
    refusal, counts = check(old, cas, counts)
    if refusal is not None:
        return Decision(refusal, counts=counts)
    value = count(old.value, delta)
    if value is None:
        return Decision(Refusal.NOT_A_NUMBER, counts=counts)
    decision = _changed(old, value, _JSON, now, counts)
    if decision.document is not None:
        decision.document.marks = counted_marks(old, value)
        decision.in_place = fits(old, value)
    return decision


def fits(old: Document, value: bytes) -> bool:
    """Return whether memcached writes a counter's next value over the one that is there."""
    return len(value) <= len(old.value)


def counted_marks(old: Document, value: bytes) -> int:
    """Return the marks of a counter with its next value: memcached keeps them where it fits."""
    return old.marks if fits(old, value) else 0


def count(value: bytes, delta: int) -> bytes | None:
    """Return a counter's next value, None when it is no decimal number below 2**64.

    Blanks before the number and anything behind a blank or NUL are passed over, as strtoull(3)
    and so memcached and Couchbase have it.
    """
    match = _COUNTER.match(value[:_COUNTER_BYTES])
    if match is None or int(match[1]) > _COUNTER_MASK or match.end() == _COUNTER_BYTES:
        return None
    return b"%d" % (max(0, int(match[1]) + delta) & _COUNTER_MASK)


# -- reading, expiry and locks ----------------------------------------------------------------


def get(old: Document | None, now: float) -> Decision[Document | None]:
    """Read a document, locked or not; see `IStore.get`."""
    return Decision(old, counts=("get_misses",) if old is None else ("get_hits",))


def touch(old: Document | None, now: float, expiry: int, keeps_cas: bool = False) -> Changed:
    """Give a document another expiry; see `IStore.touch`.

    Args:
        old: What is there.
        now: Unix time in seconds.
        expiry: The other expiry.
        keeps_cas: Whether the CAS stays, as memcached has it; with Couchbase it is a new one.
    """
    if old is None:
        return Decision(Refusal.NOT_FOUND, counts=("cmd_touch", "touch_misses"))
    if old.locked_until:
        return Decision(Refusal.LOCKED, counts=("cmd_touch",))
    counts = ("cmd_touch", "touch_hits")
    expires_at = deadline(expiry, now)
    # Where somebody wants to know which documents are read, this is a read.
    marks = marks_at(old.marks | Mark.FETCHED, now) if old.marks else 0
    if expires_at == old.expires_at:
        if not marks:
            return Decision(old, counts=counts)
        marked = copied(old, old.locked_until)
        marked.marks = marks
        return Decision(marked, Effect.MARK, marked, counts)
    made = _successor(old, old.value, old.flags, expires_at, old.datatype)
    made.marks = marks
    if keeps_cas:
        made.cas = old.cas
    return storing(made, now, counts, in_place=True)


def get_and_touch(
    old: Document | None, now: float, expiry: int, keeps_cas: bool = False
) -> Changed:
    """Do as `touch`, counted as a read too; see `IStore.get_and_touch`."""
    decision = touch(old, now, expiry, keeps_cas)
    if old is None:
        decision.counts += ("get_misses",)
    elif decision.answer is not Refusal.LOCKED:
        decision.counts += ("get_hits",)
    return decision


def get_and_lock(old: Document | None, now: float, seconds: int) -> Changed:
    """Lock a document; see `IStore.get_and_lock`."""
    if old is None:
        return Decision(Refusal.NOT_FOUND, counts=("get_misses",))
    if old.locked_until:
        return Decision(Refusal.LOCKED)
    if not 0 < seconds <= _MAX_LOCK_S:
        seconds = _DEFAULT_LOCK_S
    locked = copied(old, now + seconds)
    return Decision(locked, Effect.LOCK, locked, ("get_hits",))


def unlock(old: Document | None, now: float, cas: int) -> Decision[Refusal | None]:
    """Release a lock; see `IStore.unlock`."""
    if old is None:
        return Decision(Refusal.NOT_FOUND)
    if not old.locked_until:
        return Decision(Refusal.NOT_LOCKED)
    if cas != old.cas:
        return Decision(Refusal.LOCKED)
    return Decision(None, Effect.UNLOCK, copied(old, 0.0))


def copied(old: Document, locked_until: float) -> Document:
    """Return the same document with another lock."""
    return Document(
        old.value,
        old.flags,
        old.cas,
        old.expires_at,
        locked_until,
        old.seqno,
        old.datatype,
        old.due,
        old.xattrs,
        kind=old.kind,
        marks=old.marks,
    )
