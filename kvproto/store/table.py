"""Documents in memory, never more than the limit allows.

`DocumentTable` owns the table of documents and everything that makes one vanish without
being asked for by key: expiry, eviction, flush, dropped collections.  It knows
nothing of the operations; `kvproto.store.memory.MemoryStore` is built on it.

Theory.  The table is an `OrderedDict` in order of use, so the first entry is the
least recently used one: moving an entry to the end costs about 45 ns, taking the
first one does not depend on how many there are.  Whatever is known to be dead but
still in memory (expired, flushed, of a dropped collection) is reclaimed a few
entries at a time by the writes that follow, and completely before anything alive is
evicted or a write is refused.  So there are no timers, and no call takes long
because many documents died at once.

Readers must not see the dead meanwhile.  Expiry is seen on the document itself.
A delayed flush and dropped collections are rare, so a read pays for them only while
there are any: `_find` is the table's own ``get`` except then.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

from kvproto.store.document import ALL_MARKS, Document, Key, Mark, Refusal, marks_at
from kvproto.store.expiry import DueQueue, deadline
from kvproto.store.statistics import Statistics
from kvproto.store.walk import Walk

__all__ = [
    "COLLECTION_OVERHEAD",
    "ITEM_OVERHEAD",
    "XATTRS_OVERHEAD",
    "XATTR_OVERHEAD",
    "DocumentTable",
    "xattrs_footprint",
]

ITEM_OVERHEAD = 464
"""Bytes that a document costs beside its key and value.

Measured with tracemalloc on CPython 3.11, 64 bits: 363 to 405 without an expiry, 428 to 470 with
one, depending on how far the table is from its next growth.  A test measures it again.
"""

COLLECTION_OVERHEAD = 112
"""Bytes that it costs more in a named collection (measured: 85 to 117)."""

XATTRS_OVERHEAD = 144
"""Bytes that a document with extended attributes costs more."""

XATTR_OVERHEAD = 96
"""Bytes that each of them costs beside its name and text (measured: both together 239 for one,
320 for two, 900 for eight)."""

_Find = Callable[[Key], Document | None]

_CHORES_PER_WRITE = 8
_FETCHED = int(Mark.FETCHED)
_STALE_ENTRIES_ALLOWED = 1024


def footprint(key: Key, document: Document) -> int:
    """Return how many bytes of the limit a document takes."""
    size = ITEM_OVERHEAD + len(document.value)
    size += len(key[1]) + COLLECTION_OVERHEAD if key.__class__ is tuple else len(key)
    return size + xattrs_footprint(document) if document.xattrs else size


def xattrs_footprint(document: Document) -> int:
    """Return how many bytes of the limit a document's extended attributes take."""
    xattrs = document.xattrs
    if not xattrs:
        return 0
    return XATTRS_OVERHEAD + sum(
        XATTR_OVERHEAD + len(name) + len(text) for name, text in xattrs.items()
    )


def _noting(look: _Find, now: Callable[[], float]) -> _Find:
    """Return what looks as `look` does, and marks what it finds as read now.

    Every read comes here once somebody wants to know of reads, so it is `marks_at` written out,
    and makes the marks of a document just read once a second.
    """
    begin = end = 0.0
    just_read = 0

    def find(key: Key) -> Document | None:
        nonlocal begin, end, just_read
        document = look(key)
        if document is not None:
            moment = now()
            if not begin <= moment < end:
                second = int(moment)
                begin, end, just_read = float(second), second + 1.0, marks_at(_FETCHED, moment)
            marks = document.marks
            if marks != just_read:
                document.marks = marks & ALL_MARKS | just_read
        return document

    return find


class DocumentTable:
    """A bounded table of documents.

    Args:
        now: Returns unix time in seconds.
        memory_limit: Bytes; see `ITEM_OVERHEAD` for what counts.
        evict: Whether a full table drops what was least recently used, or refuses.
        statistics: Where it counts what it drops.

    Attributes:
        items: The documents, the least recently used first.
        tombstones: What is kept of deleted documents, the oldest first.
        collections: The keys of each collection but the default one.
        find: Finds a document to be read, expired or not; changes with what there is to look out
            for, so look it up for each use.
        look: The same, without a mark on the document; also changes.
        use: Makes a document the most recently used one; also changes.
        limit: Bytes that all documents may take together.
        used: Bytes that they take now.
        due: Keys to look at when their second has come.
        garbage: Tables whose documents are gone, but for their memory.
        sweeping: Dropped collections whose documents are still in `items`.
        walks: Walks through `items` and `tombstones` that are under way.
        flush_at: When everything that is older vanishes, in unix seconds; infinity for never.
        on_evicted: Called with the key of a document, or tombstone, that has to go for lack of
            memory.
        on_emptied: Called when everything is removed.
        on_eviction: Called with a document that has to go for lack of memory, for who watches.
    """

    def __init__(
        self, now: Callable[[], float], memory_limit: int, evict: bool, statistics: Statistics
    ) -> None:
        self._now = now
        self.limit = memory_limit
        self.evict = evict
        self._statistics = statistics
        self.used = 0
        self.flush_at = math.inf
        self.on_evicted: Callable[[Key], None] | None = None
        self.on_emptied: Callable[[], None] | None = None
        self.on_eviction: Callable[[Key, Document], None] | None = None
        self.garbage: list[OrderedDict[Key, Document]] = []
        self.collections: dict[int, dict[Key, None]] = {}
        self._dropped: dict[int, int] = {}
        self.sweeping: list[tuple[int, dict[Key, None]]] = []
        self.walks: list[Walk] = []
        self._noting = False
        self._start_empty()

    def _start_empty(self) -> None:
        self.items: OrderedDict[Key, Document] = OrderedDict()
        self.tombstones: OrderedDict[Key, Document] = OrderedDict()
        self.use = self.items.move_to_end
        self.due = DueQueue()
        self._choose_find()

    def _choose_find(self) -> None:
        """Read the table directly unless something in it may be dead without showing it."""
        if self._dropped or self.garbage or self.flush_at != math.inf:
            self.look: _Find = self._look_with_care
        else:
            self.look = self.items.get
        self.find = _noting(self.look, self._now) if self._noting else self.look

    def note_reads(self) -> None:
        """Mark from now on each document that is found as read, for those who ask about it.

        Until somebody does, as memcached's meta commands do, a read costs nothing more.
        """
        if not self._noting:
            self._noting = True
            self._choose_find()

    def _look_with_care(self, key: Key) -> Document | None:
        if self.flush_at <= self._now():
            self.discard_all()
        document = self.items.get(key)
        if document is None:
            if self.garbage:
                self._look_for_flushed(key)
        elif self._is_dropped(key, document):
            self.remove(key, document)
            return None
        return document

    def _look_for_flushed(self, key: Key) -> None:
        """Count a document that is looked for and was flushed, once, while its memory is there."""
        for table in self.garbage:
            document = table.pop(key, None)
            if document is not None:
                self._statistics.get_flushed += not document.deleted
                self._give_back(key, document)
        self._forget_emptied()

    def _give_back(self, key: Key, document: Document) -> None:
        """Account for a flushed document, or a tombstone, whose memory is free now."""
        self.used -= footprint(key, document)
        if not document.deleted:
            self._statistics.expired(key, document, unfetched=self._unfetched(document))

    def _forget_emptied(self) -> None:
        self.garbage = [table for table in self.garbage if table]
        if not self.garbage:
            self._choose_find()

    def _is_dropped(self, key: Key, document: Document) -> bool:
        return key.__class__ is tuple and document.seqno <= self._dropped.get(key[0], 0)

    def live(self, key: Key, now: float) -> Document | None:
        """Find a document that has not expired, its lapsed lock wiped."""
        document = self.look(key)
        if document is None:
            return None
        if document.expires_at and document.expires_at <= now:
            self.expire(key, document)
            self._statistics.get_expired += 1
            return None
        if document.locked_until and document.locked_until <= now:
            document.locked_until = 0.0
        return document

    # -- putting and removing -------------------------------------------------

    def put(self, key: Key, document: Document, old: Document | None, now: float) -> Refusal | None:
        """Put a document in the place of the old one, or say why there is no room for it."""
        if old is None:
            growth = footprint(key, document)
        else:
            growth = len(document.value) - len(old.value)
            if document.xattrs is not old.xattrs:
                growth += xattrs_footprint(document) - xattrs_footprint(old)
            self.use(key)  # so that making room never takes what is being replaced
        if self.garbage or self.sweeping or self.due.first <= now:
            self._do_chores(now)
        if self.used + growth > self.limit:
            if footprint(key, document) > self.limit:
                return Refusal.TOO_BIG
            if not self.make_room(growth, now):
                return Refusal.NO_MEMORY
        self.items[key] = document
        if old is None and self.walks:
            self._tell_added()
        self.used += growth
        if self.tombstones:
            self.exhume(key)
        if document.expires_at:
            self.schedule(key, document, old)
        if old is None and key.__class__ is tuple:
            self.collections.setdefault(key[0], {})[key] = None
        return None

    def remove(self, key: Key, document: Document) -> None:
        """Take out a document that is in the table."""
        del self.items[key]
        self._let_go(key, document)

    def expire(self, key: Key, document: Document) -> None:
        """Take out a document that has expired."""
        self.remove(key, document)
        self._statistics.expired(key, document, unfetched=self._unfetched(document))

    def _unfetched(self, document: Document) -> bool:
        """Return whether it is known that nobody has read a document."""
        return self._noting and not document.marks & Mark.FETCHED

    def _let_go(self, key: Key, document: Document) -> None:
        """Account for a document that has just left the table."""
        self.used -= footprint(key, document)
        if self.walks:
            self._tell_removed()
        if key.__class__ is tuple:
            keys = self.collections.get(key[0])
            if keys is not None:
                keys.pop(key, None)
                if not keys:
                    del self.collections[key[0]]

    # -- walks ----------------------------------------------------------------

    def walk(self, most: int) -> Iterator[list[Key]]:
        """Yield all keys, those of tombstones too, some at a time; see `kvproto.store.walk`."""
        walks = [Walk(self.items), Walk(self.tombstones)]
        self.walks += walks
        try:
            for walk in walks:
                while keys := walk.take(most):
                    yield keys
        finally:
            self.walks = [walk for walk in self.walks if walk not in walks]

    def _tell_added(self) -> None:
        for walk in self.walks:
            walk.added()

    def _tell_removed(self) -> None:
        for walk in self.walks:
            walk.removed()

    # -- tombstones -----------------------------------------------------------

    def bury(self, key: Key, tombstone: Document, now: float) -> bool:
        """Keep a deleted document that still has attributes; False when there is no memory."""
        # Taken out first: making room could take it as well, and its bytes would be free twice.
        before = self.tombstones.get(key)
        self.exhume(key)
        growth = footprint(key, tombstone)
        if growth > self.limit or (
            self.used + growth > self.limit and not self.make_room(growth, now)
        ):
            if before is not None:
                self._keep_tombstone(key, before)
            return False
        self._keep_tombstone(key, tombstone)
        self._queue(math.ceil(tombstone.expires_at), key)
        return True

    def _keep_tombstone(self, key: Key, tombstone: Document) -> None:
        self.tombstones[key] = tombstone
        if self.walks:
            self._tell_added()
        self.used += footprint(key, tombstone)

    def exhume(self, key: Key) -> None:
        """Forget a tombstone, if there is one."""
        tombstone = self.tombstones.pop(key, None)
        if tombstone is not None:
            self.used -= footprint(key, tombstone)
            if self.walks:
                self._tell_removed()

    # -- expiry ---------------------------------------------------------------

    def schedule(self, key: Key, document: Document, old: Document | None) -> None:
        """Make sure that somebody looks at the document when it has expired.

        An entry that comes up earlier is good enough: it is queued again then.  So a
        key whose expiry is moved on with each use still has one entry only.
        """
        due = math.ceil(document.expires_at)
        if old is not None and 0 < old.due <= due:
            document.due = old.due
            return
        document.due = due
        self._queue(due, key)

    def _queue(self, second: int, key: Key) -> None:
        self.due.add(second, key)
        there = len(self.items) + len(self.tombstones)
        # Entries of removed documents stay behind, until they are the majority.
        if self.due.sifting or self.due.entries > 2 * there + _STALE_ENTRIES_ALLOWED:
            self.due.sift(self._is_due, _CHORES_PER_WRITE)

    def _is_due(self, second: int, key: Key) -> bool:
        """Return whether somebody has to look at a key in a second."""
        document = self.items.get(key)
        if document is not None and document.due == second:
            return True
        tombstone = self.tombstones.get(key)
        return tombstone is not None and math.ceil(tombstone.expires_at) == second

    def _reclaim_due(self, now: float) -> None:
        taken = self.due.take()
        if taken is None:
            return
        second, key = taken
        document = self.items.get(key)
        if document is None:
            tombstone = self.tombstones.get(key)
            if tombstone is not None and tombstone.expires_at <= now:
                self.exhume(key)
            return
        if document.due != second:
            return
        document.due = 0
        if not document.expires_at:
            return
        if document.expires_at <= now:
            self.expire(key, document)
        else:
            document.due = math.ceil(document.expires_at)
            self.due.add(document.due, key)

    # -- room -----------------------------------------------------------------

    def _do_chores(self, now: float) -> None:
        for _ in range(_CHORES_PER_WRITE):
            if not self._do_chore(now):
                return

    def _do_chore(self, now: float) -> bool:
        """Reclaim one dead document, or look at one that may be; False when there is none."""
        if self.garbage:
            table = self.garbage[-1]
            self._give_back(*table.popitem())
            if not table:
                self._forget_emptied()
        elif self.sweeping:
            self._sweep_one()
        elif self.due.first <= now:
            self._reclaim_due(now)
        else:
            return False
        return True

    def make_room(self, growth: int, now: float) -> bool:
        """Free memory, the dead first, until ``growth`` bytes fit."""
        while self.used + growth > self.limit:
            if self._do_chore(now):
                continue
            if self.tombstones:
                key = next(iter(self.tombstones))
                self.exhume(key)
            elif self.evict:
                key, document = self.items.popitem(last=False)
                self._let_go(key, document)
                unfetched = self._unfetched(document)
                self._statistics.evicted(key, document, now, unfetched=unfetched)
                if self.on_eviction is not None:
                    self.on_eviction(key, document)
            else:
                return False
            if self.on_evicted is not None:
                self.on_evicted(key)
        return True

    def release(self, most: int) -> bool:
        """Let go of up to so many documents, and of their memory; True when none are left."""
        self.on_evicted = self.on_emptied = None
        if self.items or self.tombstones:
            self.discard_all()
        for _ in range(most):
            if not self.garbage:
                return True
            self.used -= footprint(*self.garbage[-1].popitem())
            if not self.garbage[-1]:
                self.garbage.pop()
        return not self.garbage

    # -- flush and dropped collections ----------------------------------------

    def flush(self, delay: int) -> None:
        """Remove everything, now or at the moment that ``delay``, an expiry, means."""
        now = self._now()
        moment = deadline(delay, now)
        # An earlier flush whose moment has come counts, even if nobody has noticed it yet.
        if moment <= now or self.flush_at <= now:
            self.discard_all()
        if moment > now:
            self.flush_later(moment)

    def flush_later(self, moment: float) -> None:
        """Let everything older than a moment vanish then; it replaces one that still waits."""
        self.flush_at = moment
        self._choose_find()

    def discard_all(self) -> None:
        """Remove everything, at once for readers; memory follows piecemeal."""
        self.flush_at = math.inf
        self.garbage += [table for table in (self.items, self.tombstones) if table]
        self.collections.clear()
        self._dropped.clear()
        self.sweeping.clear()
        self._start_empty()
        if self.on_emptied is not None:
            self.on_emptied()

    def drop_collection(self, collection: int, seqno: int) -> None:
        """Remove all documents of a collection, at once for readers; memory follows piecemeal.

        The default collection has no entry here: `flush` empties it.

        Args:
            collection: Its id.
            seqno: The store's last sequence number; younger documents stay.
        """
        for key in [k for k in self.tombstones if k.__class__ is tuple and k[0] == collection]:
            self.exhume(key)
        keys = self.collections.pop(collection, None)
        if keys is not None:
            self._dropped[collection] = seqno
            self.sweeping.append((collection, keys))
            self._choose_find()

    def _sweep_one(self) -> None:
        collection, keys = self.sweeping[-1]
        key, _ = keys.popitem()
        document = self.items.get(key)
        if document is not None and self._is_dropped(key, document):
            self.remove(key, document)
        if not keys:
            self.sweeping.pop()
            if all(other != collection for other, _ in self.sweeping):
                del self._dropped[collection]
                self._choose_find()
