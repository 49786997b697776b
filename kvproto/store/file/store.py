"""`FileStore`: a `MemoryStore` whose changes are kept in a `Journal`.

Each operation is decided by its rule, done in memory, and appended to the journal, in this order
and in one go; so what is in the log is what happened, in its order.  Before the second step the
journal is asked for room: a write that cannot be kept does not happen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.log import make_logger
from kvproto.config import Sync
from kvproto.errors import OutcomeUnknown, StoreUnavailable
from kvproto.store.document import Document, Key, Mark
from kvproto.store.file.disk import Disk
from kvproto.store.file.journal import SEGMENT_SIZE, Journal, Numbers, Run
from kvproto.store.file.loading import Loader
from kvproto.store.file.records import HEAD_SIZE, MARGIN, size_of
from kvproto.store.file.tail import PlainSets
from kvproto.store.interfaces import IGroupingStore, IImmediateStore, IListableStore, IStore
from kvproto.store.memory import MemoryStore
from kvproto.store.operations import Operations
from kvproto.store.rules import Decision, Effect, Rule
from kvproto.store.statistics import Statistics
from kvproto.store.table import ITEM_OVERHEAD
from kvproto.wire.meta import MetaCommand

__all__ = ["FileStore"]

log = make_logger()

_NOT_KEPT = frozenset({Effect.NOTHING, Effect.UNLOCK})
"""Effects that leave no record: locks do not outlive the process."""

_LASTING_MARKS = Mark.STALE | Mark.WON
"""That a document was read is not worth a record."""


class _NoRoom(Exception):
    """There is no room yet for records of some size, in bytes; nothing has happened."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


@implementer(IImmediateStore, IListableStore, IGroupingStore)
class FileStore(PlainSets, Operations):
    """A store in memory that is kept in a directory.

    Args:
        directory: Where; it is there, and nobody else uses it.
        sync: When changes are forced to the disk.
        memory: Where documents are; empty.
        clock: For waits and pauses.
        run: Runs a function in a thread and returns a Deferred; at once when None.
        disk: What is run.
        segment_size: Bytes of a file of the log; see `Journal`.
        run_sync: Runs what forces changes to the disk; `run` does when None.

    Attributes:
        get: As `IStore.get`, the memory's own; so are `read_plainly`, `peek`, `survey` and
            `watch_evictions`.
        now: The memory's.
        at_once: Whether `set` never answers by a Deferred.
        groups: Whether changes wait for the disk, so that a group of them is worth it.
    """

    at_once = False
    persists = True
    tokens = True
    _journal: Journal

    def __init__(
        self,
        directory: Path,
        sync: Sync,
        memory: MemoryStore,
        clock: IReactorTime,
        run: Run | None = None,
        disk: Disk | None = None,
        segment_size: int = SEGMENT_SIZE,
        run_sync: Run | None = None,
    ) -> None:
        self.directory = directory
        self._sync = sync
        self._memory = memory
        self.now = memory.now
        self._clock = clock
        self._run: Run = maybeDeferred if run is None else run
        self._disk = Disk() if disk is None else disk
        self._journal = Journal(directory, sync, clock, run, self._disk, segment_size, run_sync)
        self._loader: Loader | None = None
        self._open = False
        self._at_once = sync is not Sync.ALWAYS
        self.groups = sync is Sync.ALWAYS
        self._grouped_from = 0
        self.get, self.read_plainly = memory.get, memory.read_plainly
        # The interpreter finds what an instance keeps sooner than what another one does.
        self._set_in_memory = memory.set_plainly
        self.peek, self.survey = memory.peek, memory.survey
        self.watch_evictions = memory.watch_evictions
        memory.keeper = self

    # -- beginning and ending -------------------------------------------------

    def open(self) -> Deferred[None]:
        """Load what is in the directory; then the store can be used.

        The Deferred fails with `kvproto.store.file.loading.StoreDamaged`, or OSError.
        """
        return Deferred.fromCoroutine(self._open_now())

    async def _open_now(self) -> None:
        memory, journal = self._memory, self._journal
        self._loader = Loader(self.directory, memory, self.now, self._clock, self._run, self._disk)
        loaded = await self._loader.load()
        self._loader = None
        journal.numbers = self._numbers
        journal.find = self._find
        journal.live_size = self._live_size
        journal.documents = memory.pieces
        journal.state = loaded.state
        flush_at = loaded.state.get("flush_at")
        if flush_at is not None:
            memory.table.flush_later(flush_at)
        await journal.start(loaded.sealed, loaded.next_number)
        journal.persisted = memory.seqno
        memory.table.on_evicted = self._evicted
        memory.table.on_emptied = self._emptied
        evicted = [key for key in dict.fromkeys(loaded.evicted) if key not in memory.table.items]
        for key in evicted:
            self._evicted(key)
        self._say_what_fits(len(evicted))
        self._open = True

    def _say_what_fits(self, evicted: int) -> None:
        """Tell the operator that there is less memory than what was loaded needs."""
        table = self._memory.table
        if evicted:
            log.warn(
                "{directory}: {count} documents had no room in the {limit} bytes of memory that "
                "they may take, and were evicted",
                directory=str(self.directory),
                count=evicted,
                limit=table.limit,
            )
        if table.used > table.limit:
            log.warn(
                "{directory}: what is in it takes {used} bytes of memory and may take {limit}: "
                "writes are refused until it fits",
                directory=str(self.directory),
                used=table.used,
                limit=table.limit,
            )

    async def close(self) -> None:
        """Force everything to the disk and let go of the directory."""
        self._open = False
        await self._journal.stop()

    def ready(self) -> str | None:
        """Return why requests cannot be served now; see `IStore.ready`."""
        if self._loader is not None:
            return f"loading {self.directory}: {self._loader.percent()} %"
        return None if self._open else f"{self.directory} is not open"

    def status(self) -> dict[str, object]:
        """Return what ``kvtls status`` says of it."""
        loader = self._loader
        return {
            "items": len(self._memory.table.items),
            "log_bytes": self._journal.size,
            "loaded_percent": 100 if loader is None else loader.percent(),
            "fault": self._journal.fault,
            "persisted_seqno": self._journal.persisted,
            "seqno": self._memory.seqno,
        }

    @property
    def statistics(self) -> Statistics:
        """What it counts, as it counts: numbers only, for whoever measures."""
        return self._memory.statistics

    # -- what is kept beside documents ----------------------------------------

    @property
    def uuid(self) -> int:  # type: ignore[override]
        """Name of the history; the one of the directory."""
        return self._memory.uuid

    @property
    def seqno(self) -> int:
        """The sequence number of the last mutation; see `IStore.seqno`."""
        return self._memory.seqno

    @property
    def persisted_seqno(self) -> int:
        """What is on the disk; see `IStore.persisted_seqno`."""
        return self._journal.persisted

    @property
    def collections(self) -> dict[str, int]:
        """Which collections have ever had which id, by ``SCOPE.NAME``."""
        return dict(self._journal.state.get("collections", {}))

    @collections.setter
    def collections(self, ids: dict[str, int]) -> None:
        if ids != self.collections:
            self._journal.state["collections"] = ids
            self._journal.save_state()

    def limit_memory(self, memory_limit: int) -> bool:
        """Take another limit; see `MemoryStore.limit_memory`."""
        return self._memory.limit_memory(memory_limit)

    def limit_values(self, max_value: int, max_item: int | None, *, evict: bool) -> None:
        """Have other limits from now on; see `MemoryStore.limit_values`."""
        self._memory.limit_values(max_value, max_item, evict=evict)

    def limit_ttl(self, seconds: int, collections: Mapping[int, int]) -> None:
        """Have documents expire; see `MemoryStore.limit_ttl`."""
        self._memory.limit_ttl(seconds, collections)

    def release(self) -> bool:
        """Give back some memory after `close`; see `MemoryStore.release`."""
        return self._memory.release()

    def _numbers(self) -> Numbers:
        memory = self._memory
        return Numbers(memory.uuid, memory.cas, memory.seqno)

    def _find(self, key: Key) -> Document | None:
        table = self._memory.table
        found = table.look(key) or table.tombstones.get(key)
        if found is not None and found.expires_at and found.expires_at <= self.now():
            return None
        return found

    def _live_size(self) -> int:
        table = self._memory.table
        count = len(table.items) + len(table.tombstones)
        return max(0, table.used - count * (ITEM_OVERHEAD - HEAD_SIZE))

    # -- operations -----------------------------------------------------------

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
        if not preserve_expiry and key.__class__ is bytes:
            document = self.set_plainly(key, value, flags, expiry, datatype, cas)
            if document is not None:
                return document
        return super().set(
            key, value, flags, expiry, cas, datatype=datatype, preserve_expiry=preserve_expiry
        )

    def meta(self, key: Key, command: MetaCommand) -> Any:
        """Do one of memcached's meta commands; see `IStore.meta`."""
        self._memory.table.note_reads()
        return super().meta(key, command)

    def _apply(self, key: Key, rule: Rule[Any], *args: Any) -> Any:
        return self.attempt(partial(self._memory._apply, key, rule, *args), self._at_once, None)

    def _apply_to_any(self, key: Key, doc_flags: int, rule: Rule[Any], *args: Any) -> Any:
        return self.attempt(
            partial(self._memory._apply_to_any, key, doc_flags, rule, *args), self._at_once, None
        )

    def attempt(self, act: Callable[[], Any], at_once: bool, timeout: float | None) -> Any:
        """Do an operation in memory, when there is room for it.

        Args:
            act: Does it; raises, or fails with, `_NoRoom`.
            at_once: Whether the answer may leave before the disk has it.
            timeout: Seconds that the disk may take.
        """
        appended = self._journal.appended
        # What happens later happens outside of the group.
        later_at_once = at_once and not self.groups
        try:
            answer = act()
        except _NoRoom as no_room:
            waiting = self._journal.wait_for_room(no_room.size)
            return waiting.addCallback(lambda _: self.attempt(act, later_at_once, timeout))
        if isinstance(answer, Deferred):
            answer.addErrback(self._wait, act)
            return answer if later_at_once else self._persisted(answer, timeout)
        if at_once or appended == self._journal.appended:
            return answer
        return self._persisted(answer, timeout)

    def begin_group(self) -> None:
        """Answer at once until `end_group`; see `IGroupingStore`."""
        self._grouped_from = self._journal.appended
        self._at_once = True

    def end_group(self) -> Deferred[None] | None:
        """Return a Deferred of the disk's having it; see `IGroupingStore`."""
        self._at_once = not self.groups
        if self._journal.appended == self._grouped_from:
            return None
        return self._journal.synced()

    def _wait(self, failure: Failure, act: Callable[[], Any]) -> Any:
        """Do an operation again that has found no room after a while."""
        failure.trap(_NoRoom)
        assert isinstance(failure.value, _NoRoom)
        waiting = self._journal.wait_for_room(failure.value.size)
        return waiting.addCallback(lambda _: self.attempt(act, True, None))

    def _stamp(self, document: Document) -> None:
        self._memory._stamp(document)

    # -- keeping what happens in memory ---------------------------------------

    def check_room(self, key: Key, decision: Decision[Any]) -> None:
        """See whether a decision can be kept.

        Raises:
            _NoRoom: Not yet.
            StoreUnavailable: No, and nobody knows when.
        """
        effect, document, journal = decision.effect, decision.document, self._journal
        if effect in _NOT_KEPT:
            return
        if not self._open:
            raise StoreUnavailable(self.ready() or "the store is not open")
        stays = document is not None and effect is not Effect.REMOVE
        if document is not None and stays and (effect is not Effect.DELETE or document.xattrs):
            # Twice: what has to be evicted for it is recorded too.
            size = 2 * size_of(key, document) + MARGIN
            if not journal.has_room(size):
                raise _NoRoom(size)
        elif not journal.has_reserve(key):
            raise StoreUnavailable(journal.fault or f"{self.directory}: no room")

    def keep(self, key: Key, old: Document | None, decision: Decision[Any]) -> None:
        """Append a decision that has happened; see `Keeper.keep`."""
        effect, document, memory = decision.effect, decision.document, self._memory
        if effect in _NOT_KEPT:
            return
        if effect is Effect.MARK and old is not None and document is not None:
            only_read = old.marks & _LASTING_MARKS == document.marks & _LASTING_MARKS
            if only_read and old.cas == document.cas:
                return
        table = memory.table
        if document is not None and effect is not Effect.REMOVE:
            kept = (table.tombstones if document.deleted else table.items).get(key)
            if kept is document:
                self._journal.put(key, document, newest=document.cas == memory.cas)
                return
        self._journal.remove(key, memory.cas, memory.seqno)

    def _evicted(self, key: Key) -> None:
        self._journal.remove(key, self._memory.cas, self._memory.seqno)

    # -- backups --------------------------------------------------------------

    def pieces(self) -> Iterator[list[tuple[Key, Document]]]:
        """Yield all documents, some at a time; see `IListableStore.pieces`."""
        return self._memory.pieces()

    def put_back(self, key: Key, document: Document) -> Any:
        """Store a document with the CAS that it has; see `IListableStore.put_back`."""
        self._need_reserve()
        size = 2 * size_of(key, document) + MARGIN
        if not self._journal.has_room(size):
            waiting = self._journal.wait_for_room(size)
            return waiting.addCallback(lambda _: self.put_back(key, document))
        memory = self._memory
        refusal = memory.put_back(key, document)
        if refusal is None:
            table = memory.table
            if (table.tombstones if document.deleted else table.items).get(key) is document:
                self._journal.put(key, document, newest=False)
            else:
                self._journal.remove(key, memory.cas, memory.seqno)
        return refusal

    def saved(self) -> Deferred[None]:
        """Return a Deferred that fires when what was put back is on the disk."""
        return self._journal.synced()

    # -- durability -----------------------------------------------------------

    def durable(self, level: int, timeout: float | None) -> IStore | None:
        """Return the store for a level of durability; see `IStore.durable`."""
        if level == 1:
            return self
        store: IStore = _Persisting(self, timeout)
        return store

    def _persisted(self, answer: Any, timeout: float | None) -> Deferred[Any]:
        """Return a Deferred of an answer that fires when it is true after a power cut too."""
        if isinstance(answer, Deferred):
            waiting = answer.addCallback(self._wait_for_disk)
        else:
            waiting = self._wait_for_disk(answer)
        if timeout is not None:
            waiting.addTimeout(timeout, self._clock)
        return waiting.addErrback(_unknown)

    def _wait_for_disk(self, answer: Any) -> Deferred[Any]:
        return self._journal.synced().addCallbacks(lambda _: answer, _not_saved)

    # -- all at once ----------------------------------------------------------

    def flush(self, delay: int = 0) -> Deferred[None] | None:
        """Remove all documents, now or later; see `IStore.flush`."""
        self._need_reserve()
        self._memory.flush(delay)
        self._keep_flush_moment()
        return self._after_change()

    def _keep_flush_moment(self) -> None:
        state, moment = self._journal.state, self._memory.table.flush_at
        if state.get("flush_at", math.inf) == moment:
            return
        if moment == math.inf:
            del state["flush_at"]
        else:
            state["flush_at"] = moment
        self._journal.save_state()

    def _emptied(self) -> None:
        self._journal.flush()
        self._keep_flush_moment()

    def drop_collection(self, collection: int) -> Deferred[None] | None:
        """Remove all documents of a collection; see `IStore.drop_collection`."""
        self._need_reserve()
        self._memory.drop_collection(collection)
        self._journal.drop(collection, self._memory.seqno)
        return self._after_change()

    def _need_reserve(self) -> None:
        if not self._open:
            raise StoreUnavailable(self.ready() or "the store is not open")
        if not self._journal.has_reserve(b""):
            raise StoreUnavailable(self._journal.fault or f"{self.directory}: no room")

    def _after_change(self) -> Deferred[None] | None:
        return None if self._at_once else self._persisted(None, None)

    def stats(self) -> dict[str, int | str]:
        """Return counters, named as memcached's ``stats`` names them."""
        return self._memory.stats()


@implementer(IStore)
class _Persisting(Operations):
    """A `FileStore` for requests that wait for the disk.

    Args:
        store: The store.
        timeout: Seconds that a request may wait; None for as long as it takes.
    """

    persists = True
    tokens = True

    def __init__(self, store: FileStore, timeout: float | None = None) -> None:
        self._store = store
        self._timeout = timeout
        self.get = store.get
        self.flush = store.flush
        self.drop_collection = store.drop_collection
        self.stats = store.stats
        self.ready = store.ready
        self.durable = store.durable

    @property
    def uuid(self) -> int:  # type: ignore[override]
        """As the store's."""
        return self._store.uuid

    @property
    def seqno(self) -> int:
        """As the store's."""
        return self._store.seqno

    @property
    def persisted_seqno(self) -> int:
        """As the store's."""
        return self._store.persisted_seqno

    def _apply(self, key: Key, rule: Rule[Any], *args: Any) -> Any:
        act = partial(self._store._memory._apply, key, rule, *args)
        return self._store.attempt(act, False, self._timeout)

    def _apply_to_any(self, key: Key, doc_flags: int, rule: Rule[Any], *args: Any) -> Any:
        act = partial(self._store._memory._apply_to_any, key, doc_flags, rule, *args)
        return self._store.attempt(act, False, self._timeout)

    def _stamp(self, document: Document) -> None:
        self._store._stamp(document)


def _not_saved(failure: Failure) -> Any:
    if failure.check(CancelledError):  # its time is over; `_unknown` says so
        return failure
    raise OutcomeUnknown(failure.getErrorMessage())


def _unknown(failure: Failure) -> Any:
    if failure.check(TimeoutError):
        raise OutcomeUnknown("the disk has not answered in time")
    return failure
