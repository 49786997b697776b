"""`MemoryStore`: every operation of the store contract, on documents in this process's memory.

What an operation means is a rule (`kvproto.store.rules`, `kvproto.store.partial`); how documents
are kept within the memory limit is `kvproto.store.table`'s; here the two are put together: the
store finds the document, asks the rule, and does at once what the rule decided.

GET and a plain SET are most of what is ever asked, so `get`, `read_plainly` and `set_plainly` are
written out by hand.  They must do exactly what the rules do: `tests/store/test_plain.py` and
`tests/server/test_meta.py` compare them.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall
from zope.interface import implementer

from kvproto.store import meta, rules
from kvproto.store.document import MARK_BITS, Document, Key, Refusal, marks_at
from kvproto.store.expiry import deadline
from kvproto.store.interfaces import IImmediateStore, IListableStore
from kvproto.store.operations import Operations
from kvproto.store.partial import IN_PIECES, RuleInPieces
from kvproto.store.pieces import PIECE, Pieces, Work
from kvproto.store.rules import (
    DEFAULT_MAX_VALUE,
    Answer,
    Decision,
    Effect,
    Limits,
    Rule,
    live,
)
from kvproto.store.statistics import Statistics
from kvproto.store.table import COLLECTION_OVERHEAD, ITEM_OVERHEAD, DocumentTable
from kvproto.wire.meta import MetaCommand
from kvproto.wire.subdoc_terms import DocFlag, PathStatus

__all__ = ["DEFAULT_MAX_VALUE", "DEFAULT_MEMORY_LIMIT", "Keeper", "MemoryStore"]

DEFAULT_MEMORY_LIMIT = 64 << 20
"""Bytes; memcached's ``-m 64``."""

_SURVEYED = 256
"""Documents that are looked at between two turns of the event loop."""

_SHRINK_STEP = 256 * 1024
"""Bytes that are evicted without a pause when the limit is lowered; some 500 small documents."""

_RELEASED = 1000
"""Documents that are let go of without a pause."""

_MAX_ATTEMPTS = 10

_COPYING = frozenset({rules.append, rules.prepend, meta.write})
"""Rules that may make a value of an old one."""

_PIECE = 100
"""Documents that are listed without a pause."""

_FUTURE_NS = 86400e9

_UNUSUAL = meta.UNUSUAL

_new = object.__new__


class Keeper(Protocol):
    """Whoever keeps what is in memory elsewhere as well."""

    def check_room(self, key: Key, decision: Decision[Any]) -> None:
        """Raise when the decision could not be kept; then it does not happen."""

    def keep(self, key: Key, old: Document | None, decision: Decision[Any]) -> None:
        """Keep a decision that has just happened."""


@implementer(IImmediateStore, IListableStore)
class MemoryStore(Operations):
    """A store in this process's memory.

    Args:
        now: Returns unix time in seconds, e.g. ``reactor.seconds`` or ``time.time``.
        memory_limit: Bytes for all documents, overhead included.
        evict: Whether a full store drops the least recently used, or refuses writes (NO_MEMORY).
        max_item: Bytes of one key and value together, above which a write is TOO_BIG; None
            leaves only ``max_value``.
        max_value: Bytes of one value, above which a write is TOO_BIG.
        uuid: Name of the history of sequence numbers; random when None.
        count_cas: Whether a CAS is a count from 1, as memcached's, in place of the time: there are
            clients of memcached that have 32 bits for it.  A touch keeps it then.
        later: Calls a function in a later turn of the event loop, e.g. ``partial(
            reactor.callLater, 0)``: what takes long is then done in pieces and answered by a
            Deferred; when None, everything is answered at once, however long it takes.

    Attributes:
        now: The argument.
        statistics: What it counts, as it counts: numbers only, for whoever measures.
        at_once: Whether `set` never answers by a Deferred.
        keeper: Is asked before, and told after, everything that happens to a document, but not
            by `set_plainly`, whose caller tells it.
    """

    def __init__(
        self,
        now: Callable[[], float],
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        evict: bool = True,
        max_item: int | None = None,
        *,
        max_value: int = DEFAULT_MAX_VALUE,
        uuid: int | None = None,
        count_cas: bool = False,
        later: Callable[[Callable[[], None]], IDelayedCall] | None = None,
    ) -> None:
        self._pieces = Pieces(later)
        self.uuid = secrets.randbits(48) if uuid is None else uuid
        self.now = now
        self.statistics = Statistics()
        self.table = DocumentTable(now, memory_limit, evict, self.statistics)
        self._max_value = max_value
        self._max_item = max_item
        self._max_ttl: tuple[int, dict[int, int]] | None = None
        self._set_limit(memory_limit)
        self._seqno = 0
        self._cas = 0
        self._count_cas = self.touch_keeps_cas = count_cas
        self._cas_until = self._clock_behind()
        self.keeper: Keeper | None = None

    def _set_limit(self, memory_limit: int) -> None:
        self.table.limit = memory_limit
        max_item = memory_limit if self._max_item is None else self._max_item
        self._limits = Limits(self._max_value, max_item)
        self._plain_size = min(self._max_value, max_item, memory_limit - ITEM_OVERHEAD)
        if self._max_ttl is not None:
            self._plain_size = -1  # nothing is plain where every document expires

    def limit_values(self, max_value: int, max_item: int | None, *, evict: bool) -> None:
        """Have other limits from now on; the arguments are those of the class."""
        self._max_value, self._max_item = max_value, max_item
        self.table.evict = evict
        self._set_limit(self.table.limit)

    def limit_ttl(self, seconds: int, collections: Mapping[int, int]) -> None:
        """Have documents expire at the latest so long after they were stored or touched.

        Those that are there keep what they have until then, and whenever a client preserves it.

        Args:
            seconds: How long, in collections that are not named; 0 for no limit.
            collections: The same by id, where it is another one.

        Source: kv_engine ``Collections::VB::Manifest::processExpiryTime``.
        """
        limited = seconds or any(collections.values())
        self._max_ttl = (seconds, dict(collections)) if limited else None
        self._set_limit(self.table.limit)

    def limit_memory(self, memory_limit: int) -> bool:
        """Take another limit; of what is beyond it, evict a little.

        Args:
            memory_limit: Bytes, as for the class.

        Returns:
            Whether that is done; if not, call it again in a later turn of the event loop.
        """
        table = self.table
        self._set_limit(max(memory_limit, min(table.limit, table.used - _SHRINK_STEP)))
        if not table.make_room(0, self.now()):
            # Nothing may be evicted: writes are refused until it fits.
            self._set_limit(memory_limit)
        return table.limit == memory_limit

    def release(self) -> bool:
        """Give back some memory of a store that nobody uses any more.

        All at once would hold up everybody else for as long as it has documents.

        Returns:
            Whether that is done; if not, call it again in a later turn of the event loop.
        """
        return self.table.release(_RELEASED)

    at_once = True
    persists = False
    tokens = True
    persisted_seqno = 0

    @property
    def seqno(self) -> int:
        """The sequence number of the last mutation; see `IStore.seqno`."""
        return self._seqno

    def ready(self) -> str | None:
        """Return None: memory is always ready."""
        return None

    def durable(self, level: int, timeout: float | None) -> MemoryStore | None:
        """Return itself for "majority": it is all there is, and nothing of it is on a disk."""
        return self if level == 1 else None

    # -- those that are written out ---------------------------------------------

    def get(self, key: Key) -> Document | None:
        """Read a document; see `IStore.get`."""
        table = self.table
        # The interpreter calls locals sooner than what an instance keeps.
        find = table.find
        document = find(key)
        if document is None:
            self.statistics.get_misses += 1
            return None
        if document.expires_at or document.locked_until:
            now = self.now()
            if document.expires_at and document.expires_at <= now:
                table.expire(key, document)
                statistics = self.statistics
                statistics.get_expired += 1
                statistics.get_misses += 1
                return None
            if document.locked_until and document.locked_until <= now:
                document.locked_until = 0.0
        self.statistics.get_hits += 1
        use = table.use
        use(key)
        return document

    def read_plainly(
        self, key: Key, now: float, seen: int, recache: int, makes: bool
    ) -> tuple[Document | None, int] | None:
        """Read as ``mg`` does where it is usual; see `IImmediateStore.read_plainly`."""
        table = self.table
        look = table.look
        document = look(key)
        if document is not None and document.expires_at:
            if document.expires_at <= now:
                table.expire(key, document)
                self.statistics.get_expired += 1
                document = None
            elif recache and meta.nears_end(document.expires_at, now, recache):
                return None
        if document is None:
            if makes:
                return None
            self.statistics.get_misses += 1
            return None, 0
        marks = document.marks
        if marks & _UNUSUAL:
            return None
        if document.locked_until and document.locked_until <= now:
            document.locked_until = 0.0
        document.marks = seen
        self.statistics.get_hits += 1
        use = table.use
        use(key)
        return document, marks

    def set_plainly(  # noqa: PLR0915 - written out, as fast as Python can
        self, key: Key, value: bytes, flags: int, expiry: int, datatype: int, cas: int = 0
    ) -> Document | None:
        """Do as `set` where nothing unusual is in the way, in half of its time.

        It is `DocumentTable.live`, the rule, `_next_cas` and `DocumentTable.put` in one, less what
        they do in other cases; `set` comes here first, and so may who calls `set` often.

        Returns:
            None when there is more to consider, so that only `set` will do; nothing has happened
            then that would not happen there.
        """
        table, clock = self.table, self.now
        look = table.look
        now = clock()
        old = look(key)
        expires_at = deadline(expiry, now) if expiry else 0.0
        size = len(value)
        if isinstance(key, bytes):
            item_size, overhead = size + len(key), ITEM_OVERHEAD
        else:
            item_size, overhead = size + len(key[1]), ITEM_OVERHEAD + COLLECTION_OVERHEAD
        if old is None:
            # A tombstone of this very key, perhaps; beside a document there is none.
            if table.tombstones or table.walks or cas:
                return None
            growth = item_size + overhead
            if growth > table.limit:
                return None
        elif (
            old.locked_until
            or old.xattrs is not None
            or (old.expires_at and old.expires_at <= now)
            or (cas and cas != old.cas)
        ):
            return None
        else:
            growth = size - len(old.value)
        if (
            item_size > self._plain_size
            or table.due.first <= now
            or table.garbage
            or table.sweeping
            or (expires_at and expires_at <= now)
        ):
            return None
        if old is not None:
            use = table.use
            use(key)
        used = table.used + growth
        if used > table.limit:
            if not table.make_room(growth, now):
                return None
            used = table.used + growth
        table.used = used
        statistics = self.statistics
        statistics.cmd_set += 1
        statistics.total_items += 1
        if cas:
            statistics.cas_hits += 1
        self._seqno = seqno = self._seqno + 1
        nanoseconds = now * 1e9
        if nanoseconds < self._cas_until:
            self._cas = new_cas = self._cas + 1
        else:
            new_cas = self._next_cas(now)
        # What ``Document(...)`` does, in 0.6 of the time.
        document = _new(Document)
        document.value = value
        document.flags = flags
        document.cas = new_cas
        document.expires_at = expires_at
        document.locked_until = 0.0
        document.seqno = seqno
        document.datatype = datatype
        document.due = document.kind = 0
        # Where the CAS does not tell when, as `_stamp` has it.
        document.marks = int(now) << MARK_BITS if self._count_cas else 0
        document.xattrs = None
        document.deleted = False
        if old is not None and value is old.value:
            document.kind = old.kind
        table.items[key] = document
        if expires_at:
            table.schedule(key, document, old)
        if old is None and isinstance(key, tuple):
            table.collections.setdefault(key[0], {})[key] = None
        return document

    # -- doing what a rule decided --------------------------------------------

    def _apply(self, key: Key, rule: Rule[Any], *args: Any) -> Any:
        """Do an operation on one document; the answer is the rule's, or there is no room."""
        now = self.now()
        old = self.table.live(key, now)
        if old is not None and len(old.value) > PIECE and rule in _COPYING:
            return self._pieces.run(self._apply_as_piece(key, rule, args))
        return self.carry_out(key, old, rule(old, now, *args), now)

    def _apply_as_piece(self, key: Key, rule: Rule[Any], args: tuple[Any, ...]) -> Work[Any]:
        """Do what copies a large value, a piece by itself: many of them must not come in a row."""
        yield from ()
        now = self.now()
        old = self.table.live(key, now)
        return self.carry_out(key, old, rule(old, now, *args), now)

    def carry_out(
        self, key: Key, old: Document | None, decision: Decision[Answer], now: float
    ) -> Answer | Refusal:
        """Let a decision happen, if there is room for it."""
        if self._max_ttl is not None and not decision.keeps_expiry:
            self._shorten(key, old, decision, now)
        keeper = self.keeper
        if keeper is not None:
            keeper.check_room(key, decision)
        answer = self._do(key, old, decision, now)
        if keeper is not None and answer is decision.answer:
            keeper.keep(key, old, decision)
        return answer

    def _shorten(self, key: Key, old: Document | None, decision: Decision[Any], now: float) -> None:
        """Have a document that is stored, or touched, expire no later than it may."""
        assert self._max_ttl is not None
        seconds, collections = self._max_ttl
        seconds = collections.get(key[0] if isinstance(key, tuple) else 0, seconds)
        end = now + seconds
        document = decision.document
        if decision.effect is Effect.NOTHING and decision.answer is old:
            document = old  # touched with the expiry that it had before there was a limit
        elif decision.effect is not Effect.STORE:
            return
        if not seconds or document is None or 0 < document.expires_at <= end:
            return
        if document is old:
            document = replace(old, cas=0, seqno=0, due=0)
            decision.answer, decision.effect, decision.document = document, Effect.STORE, document
        document.expires_at = end

    def _do(
        self, key: Key, old: Document | None, decision: Decision[Answer], now: float
    ) -> Answer | Refusal:
        statistics = self.statistics
        statistics.count(decision.counts)
        effect, document = decision.effect, decision.document
        if effect is Effect.NOTHING:
            if old is not None and decision.answer.__class__ is not Refusal:
                self.table.use(key)
            return decision.answer
        refusal: Refusal | None = None
        if effect is Effect.STORE or effect is Effect.REMOVE:
            if document is not None:
                if self._limits.refuse(key, document):
                    statistics.too_large += 1
                    return Refusal.TOO_BIG
                self._stamp(document)
            if document is not None:
                # What has expired already is there until somebody looks for it: it counts then.
                refusal = self.table.put(key, document, old, now)
                if refusal is None and not decision.in_place:
                    statistics.total_items += 1
            elif old is not None:
                self.table.remove(key, old)
        elif effect is Effect.DELETE:
            assert document is not None
            self._stamp(document)
            refusal = self._entomb(key, old, document, now)
        else:
            assert document is not None
            if effect is Effect.LOCK:
                document.cas = self._next_cas(now)
            self.table.items[key] = document
            self.table.use(key)
            return decision.answer
        if refusal is None:
            if document is None:
                self._seqno += 1
            return decision.answer
        if document is not None and document.seqno == self._seqno:
            self._seqno -= 1
        if refusal is Refusal.TOO_BIG:
            statistics.too_large += 1
        else:
            statistics.no_memory += 1
        return refusal

    def _entomb(
        self, key: Key, old: Document | None, tombstone: Document, now: float
    ) -> Refusal | None:
        """Put a tombstone in the place of a document; one without attributes is not kept."""
        table = self.table
        if old is not None:
            table.remove(key, old)
        if tombstone.xattrs is None:
            table.exhume(key)
        elif not table.bury(key, tombstone, now) and old is None:
            # Where something was deleted, it stays deleted; only its attributes are lost.
            return Refusal.NO_MEMORY
        return None

    def _stamp(self, document: Document) -> None:
        """Give a document the numbers that it will have if it is stored, unless it has them.

        They are taken from then on: others may be changed before it is stored.
        """
        if not document.cas:
            document.cas = self._next_cas(self.now())
        if self._count_cas and not document.marks >> MARK_BITS:
            document.marks = marks_at(document.marks, self.now())
        if not document.seqno:
            self._seqno = document.seqno = self._seqno + 1

    def _next_cas(self, now: float) -> int:
        """Return the clock in nanoseconds with the low 16 bits free, or the last CAS and one.

        So a CAS grows even when the clock does not, tells when a document changed, and is not
        repeated by the next process.  Source: kv_engine's hybrid logical clock.
        """
        cas = 0 if self._count_cas else int(now * 1e9) & 0x7FFFFFFF_FFFF0000
        if cas <= self._cas:
            cas = self._cas + 1
        self._cas = cas
        # Until then the clock cannot be ahead: who is in a hurry may count up without asking here.
        if not self._count_cas:
            self._cas_until = float((cas | 0xFFFF) + 1)
        return cas

    def _clock_behind(self) -> float:
        """Return until when a CAS is counted up without a look at the clock, at first."""
        return math.inf if self._count_cas else 0.0

    # -- what was kept elsewhere ----------------------------------------------

    def pieces(self) -> Iterator[list[tuple[Key, Document]]]:
        """Yield all documents, some at a time; see `IListableStore.pieces`."""
        table = self.table
        for keys in table.walk(_PIECE):
            now = self.now()
            found = [(key, table.look(key) or table.tombstones.get(key)) for key in keys]
            yield [
                (key, document)
                for key, document in found
                if document is not None and not 0 < document.expires_at <= now
            ]

    def put_back(self, key: Key, document: Document) -> Refusal | None:
        """Store a document with the CAS that it has; see `IListableStore.put_back`."""
        now = self.now()
        if self._limits.refuse(key, document):
            return Refusal.TOO_BIG
        document.seqno = self._seqno = self._seqno + 1
        if document.cas <= now * 1e9 + _FUTURE_NS:
            # One that a client has brought may be any number.
            self.continue_from(self.uuid, document.cas, 0)
        return self.load(key, document, now)

    def saved(self) -> None:
        """Return None: nothing is saved."""

    def load(self, key: Key, document: Document | None, now: float) -> Refusal | None:
        """Put a document, or tombstone, there with the numbers that it has.

        Args:
            key: Which.
            document: None, or one that has expired, leaves nothing there.
            now: Unix time in seconds.

        Returns:
            Why there is no room for it; None when it is there.
        """
        table = self.table
        # One of a dropped collection has to go first: it is not counted among those there are.
        old = table.look(key)
        if document is None or (document.expires_at and document.expires_at <= now):
            if old is not None:
                table.remove(key, old)
            table.exhume(key)
        elif document.deleted:
            return self._entomb(key, old, document, now)
        else:
            return table.put(key, document, old, now)
        return None

    def continue_from(self, uuid: int, cas: int, seqno: int) -> None:
        """Go on with a history: the next numbers are larger than these and the own ones."""
        self.uuid = uuid
        self._cas, self._seqno = max(cas, self._cas), max(seqno, self._seqno)
        self._cas_until = self._clock_behind()

    @property
    def cas(self) -> int:
        """The last CAS."""
        return self._cas

    # -- the operations -------------------------------------------------------

    def set(
        self,
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Any:
        """Store whatever was there before; see `IStore.set`."""
        if not preserve_expiry:
            document = self.set_plainly(key, value, flags, expiry, datatype, cas)
            if document is not None:
                return document
        return super().set(
            key, value, flags, expiry, cas, datatype=datatype, preserve_expiry=preserve_expiry
        )

    def meta(self, key: Key, command: MetaCommand) -> Any:
        """Do one of memcached's meta commands; see `IStore.meta`."""
        self.table.note_reads()
        return super().meta(key, command)

    def _apply_to_any(self, key: Key, doc_flags: int, rule: Rule[Any], *args: Any) -> Any:
        """Do as `_apply`, in pieces; the rule may see a deleted document if the client wants to."""
        return self._pieces.run(self._do_in_pieces(key, doc_flags, IN_PIECES[rule], args))

    def _do_in_pieces(
        self, key: Key, doc_flags: int, rule: RuleInPieces, args: tuple[Any, ...]
    ) -> Work[Any]:
        """Work out a decision, and let it happen if the document is still what it was then.

        Whoever was overtaken begins again with what is there now.  After some attempts it is
        refused, so that two clients cannot keep each other, and us, at work for ever.
        """
        table = self.table
        for _ in range(_MAX_ATTEMPTS):
            now = self.now()
            old, grave = table.live(key, now), table.tombstones.get(key)
            wants_grave = old is None and doc_flags & DocFlag.ACCESS_DELETED
            decision = yield from rule(grave if wants_grave else old, now, *args)
            now = self.now()
            there = table.live(key, now)
            is_same = there is old and table.tombstones.get(key) is grave
            if is_same or decision.effect is Effect.NOTHING:
                return self.carry_out(key, there, decision, now)
        return PathStatus.TEMPORARY_FAILURE

    def peek(self, key: Key) -> Document | None:
        """Return what there is, expired perhaps, without counting it as read."""
        return self.table.items.get(key)

    def watch_evictions(self, told: Callable[[Key, Document], None] | None) -> None:
        """Tell of each document that makes room for others, and whether it was ever read.

        Args:
            told: Called with its key and it; None: nobody any more.
        """
        if told is not None:
            self.table.note_reads()
        self.table.on_eviction = told

    def survey(self, look: Callable[[Key, Document], None]) -> Any:
        """Let somebody look at each document, in pieces; one stored meanwhile may be missed.

        Args:
            look: Called with a key and its document.

        Returns:
            None when that is done, or a Deferred of it.
        """
        return self._pieces.run(self._survey(look))

    def _survey(self, look: Callable[[Key, Document], None]) -> Work[None]:
        keys = list(self.table.items)
        for at in range(0, len(keys), _SURVEYED):
            now = self.now()
            for key in keys[at : at + _SURVEYED]:
                document = live(self.table.items.get(key), now)
                if document is not None:
                    look(key, document)
            yield

    # -- all at once ----------------------------------------------------------

    def flush(self, delay: int = 0) -> None:
        """Remove all documents, now or later; see `IStore.flush`."""
        self.statistics.cmd_flush += 1
        self.table.flush(delay)

    def drop_collection(self, collection: int) -> None:
        """Remove all documents of a collection; see `IStore.drop_collection`."""
        self.table.drop_collection(collection, self._seqno)

    def stats(self) -> dict[str, int | str]:
        """Return counters, named as memcached's ``stats`` names them."""
        table = self.table
        if table.flush_at <= self.now():
            table.discard_all()
        return {
            **self.statistics.report(),
            "limit_maxbytes": table.limit,
            "bytes": table.used,
            "curr_items": len(table.items),
        }
