"""`EngineStore`: documents in an engine, by the rules that all stores share.

A GET is one GET.  A SET without conditions is one script, or in memcached mode, where documents are
never locked, one SET.  Every other operation reads the document, asks its rule
(`kvproto.store.rules`), and replaces the document if it is still the same; when somebody has come
in between it has what is there now, and asks the rule again (`kvproto.upstream.change`).

Which name a document has depends on the bucket's epoch (`kvproto.upstream.epochs`).  The prefix
that a command's name was made with is compared, as an object, with the one that counts when its
reply arrives: another one means that the bucket was emptied, that the command has not done anything
that anybody will see, and that it must be sent again.

Several processes may use the same engine.  What they share is all in the engine; the clocks of
their machines must agree as far as clients care about expiry and locks.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.log import make_logger
from kvproto.errors import StoreUnavailable, UpstreamError
from kvproto.store import Document, IListableStore, IStore, Key, Refusal
from kvproto.store.expiry import deadline
from kvproto.store.operations import Operations
from kvproto.store.rules import DEFAULT_MAX_VALUE, Limits, Rule
from kvproto.store.statistics import Statistics
from kvproto.upstream.change import Change, Changer
from kvproto.upstream.engine import Engine, EngineFullError, error_of
from kvproto.upstream.epochs import Epochs, bucket_prefix, document_prefix
from kvproto.upstream.fast_path import Call, GetAndSet
from kvproto.upstream.keeper import EpochKeeper
from kvproto.upstream.listing import Listing, put_back
from kvproto.upstream.reclaim import Reclaimer, serving
from kvproto.upstream.resp import EngineFailure, Fate, command
from kvproto.upstream.scripts import SET_PLAIN
from kvproto.wire.subdoc_terms import DocFlag

__all__ = ["EngineStore"]

log = make_logger()

_MAX_WAITING = 10_000
_COUNTED_EXACTLY = 100_000

# How a SET begins, without and with a moment when it expires, and that moment.
_SCRIPT = b"*5" + SET_PLAIN.start, b"*6" + SET_PLAIN.start, b"$%d\r\n%b\r\n"
_PLAIN = b"*3\r\n$3\r\nSET\r\n", b"*5\r\n$3\r\nSET\r\n", b"$4\r\nPXAT\r\n$%d\r\n%b\r\n"


@implementer(IStore, IListableStore)
class EngineStore(GetAndSet):
    """A bucket in an engine.

    Args:
        engine: Where its documents are.
        bucket: Its name.
        now: Returns unix time in seconds.
        locks: Whether documents can be locked, as in Couchbase; if not, a plain SET is one SET, and
            a touch keeps the CAS, as in memcached.
        max_value: Bytes of one value, above which a write is TOO_BIG.
        max_item: Bytes of one key and value together, above which a write is TOO_BIG.
        ahead: Seconds that the engine's clock is ahead of ``now``; for tests.
    """

    tokens = False
    persists = True
    seqno = 0
    persisted_seqno = 0
    _engine: Engine
    keeper: EpochKeeper

    def __init__(
        self,
        engine: Engine,
        bucket: str,
        now: Callable[[], float],
        *,
        locks: bool = True,
        max_value: int = DEFAULT_MAX_VALUE,
        max_item: int | None = None,
        ahead: float = 0.0,
    ) -> None:
        self.uuid = int.from_bytes(sha256(b"kvtls:" + bucket.encode()).digest()[:6])
        self._engine = engine
        self._bucket = bucket.encode()
        self.now = now
        self._set_head, self._expiring_head, self._moment = _SCRIPT if locks else _PLAIN
        self.touch_keeps_cas = not locks
        self._ahead = ahead
        self.limit_values(max_value, max_item)
        self.statistics = Statistics()
        self.keeper = EpochKeeper(engine, self._bucket, self._adopt)
        self._reclaimer = Reclaimer(engine, self._bucket, self.keeper)
        self._slot = engine.slot
        self._send = engine.send
        # The names of documents: None until the record of epochs was read.
        self._prefix: bytes | None = None
        self._prefixes: dict[int, bytes] = {}
        self._epochs: Epochs | None = None
        self._turns_over_at: float | None = None
        self._loading: Deferred[None] | None = None
        self._unread = "the engine was not read yet"
        self._waiting: deque[Deferred[None]] = deque()
        # Several processes may make a CAS in the same microsecond; these digits tell them apart.
        self._digits = secrets.randbelow(1000)
        self._cas = 0
        self._changer = Changer(self, engine)

    def limit_values(self, max_value: int, max_item: int | None = None) -> None:
        """Have other limits from now on; the arguments are those of the class."""
        self._max_value = max_value
        self._max_item = max_value + 1024 if max_item is None else max_item
        self.limits = Limits(max_value, self._max_item)

    # -- all the others -------------------------------------------------------

    def durable(self, level: int, timeout: float | None) -> Any:
        """Return this store, waiting for a majority; disks are the engine's own business."""
        return DurableStore(self, timeout) if level == 1 else None

    def _apply(self, key: Key, rule: Rule[Any], *args: Any) -> Any:
        return self._changer.begin(Change(key, rule, args))

    def _apply_to_any(self, key: Key, doc_flags: int, rule: Rule[Any], *args: Any) -> Any:
        return self._changer.begin(Change(key, rule, args, doc_flags & DocFlag.ACCESS_DELETED))

    # -- backups --------------------------------------------------------------

    def pieces(self) -> Iterator[Deferred[list[tuple[Key, Document]]]]:
        """Yield all documents, some at a time; see `IListableStore.pieces`."""
        return Listing(self._engine, self._bucket, self).pieces()

    def put_back(self, key: Key, document: Document) -> Deferred[Refusal | None]:
        """Store a document with the CAS that it has; see `IListableStore.put_back`."""
        return Deferred.fromCoroutine(put_back(self._engine, self, self.limits, key, document))

    def saved(self) -> None:
        """Return None: what was answered is as safe as the engine makes it."""

    # -- all at once ----------------------------------------------------------

    def flush(self, delay: int = 0) -> Deferred[None]:
        """Remove all documents, now or later; see `IStore.flush`."""
        self.statistics.cmd_flush += 1

        def make(record: Epochs, micros: int) -> Epochs:
            now = self.now()
            return record.flushed(now, deadline(delay, now) or now, micros)

        return Deferred.fromCoroutine(self._flush(make))

    async def _flush(self, make: Callable[[Epochs, int], Epochs]) -> None:
        while True:
            try:
                await self.keeper.change(make)
                break
            except EngineFullError:
                # There is no room even for the record, so what is to go has to go before.
                if not await self._reclaimer.make_room():
                    raise
        self._reclaim(None)

    def drop_collection(self, collection: int) -> Deferred[None]:
        """Remove all documents of a collection; see `IStore.drop_collection`."""
        changed = self.keeper.change(
            lambda record, micros: record.dropped(self.now(), collection, micros)
        )
        return changed.addCallback(self._reclaim)

    def _reclaim(self, _: None) -> None:
        self._reclaimer.start()

    def stats(self) -> Deferred[dict[str, int | str]]:
        """Return counters, named as memcached's ``stats`` names them.

        What this process counts, and what the engine has: of its memory, of all that lies in it.
        """
        return Deferred.fromCoroutine(self._stats())

    async def _stats(self) -> dict[str, int | str]:
        items = used = limit = 0
        known: dict[str, int | str] = {}
        try:
            for server in serving(self._engine):
                memory = await self._engine.ask_server(command(b"INFO", b"memory"), server)
                used += _field(memory, b"used_memory:")
                limit += _field(memory, b"maxmemory:")
                items += await self._engine.ask_server(command(b"DBSIZE"), server)
            if items <= _COUNTED_EXACTLY:
                items = await self._count()
            known = {"limit_maxbytes": limit, "bytes": used, "curr_items": items}
        except UpstreamError:
            pass  # what is known here is told all the same, and nothing that may be wrong
        return {**self.statistics.report(), **known}

    async def _count(self) -> int:
        """Count the documents of this epoch, one by one."""
        await self.loaded()
        assert self._epochs is not None
        self._turn_over()
        pattern = b"%b%x:*" % (bucket_prefix(self._bucket), self._epochs.epoch)
        count = 0
        for server in serving(self._engine):
            cursor = b"0"
            while True:
                cursor, names = await self._engine.scan(server, pattern, cursor, b"1000")
                count += len(names)
                if cursor == b"0":
                    break
        return count

    # -- names and epochs -----------------------------------------------------

    def prefix_of(self, key: Key) -> bytes | None:
        """Return the prefix that counts for a key now; an object to compare with."""
        return self._prefix if isinstance(key, bytes) else self._prefixes.get(key[0])

    def _locate(self, key: Key) -> tuple[bytes, bytes] | None:
        """Return the prefix and the name of a document; None when epochs are not known."""
        if self._epochs is None:
            return None
        self._turn_over()
        if isinstance(key, bytes):
            assert self._prefix is not None
            return self._prefix, self._prefix + key
        collection, bare = key
        prefix = self._prefixes.get(collection)
        if prefix is None:
            prefix = document_prefix(self._bucket, self._epochs, collection)
            self._prefixes[collection] = prefix
        return prefix, prefix + bare

    locate = _locate

    def _turn_over(self) -> None:
        """Begin another epoch if a flush was to happen by now."""
        if self._turns_over_at is not None and self._turns_over_at <= self.now():
            assert self._epochs is not None
            self._use(self._epochs)

    def _adopt(self, record: Epochs) -> None:
        self._use(record)

    def _use(self, record: Epochs) -> None:
        """Make names as a record says; a prefix that stays equal stays the same object."""
        self._epochs = record = record.at(self.now())
        self._turns_over_at = record.flush_at
        prefix = document_prefix(self._bucket, record, 0)
        if prefix != self._prefix:
            self._prefix = prefix
        for collection, old in list(self._prefixes.items()):
            new = document_prefix(self._bucket, record, collection)
            if new != old:
                self._prefixes[collection] = new

    def load(self) -> None:
        """Read the record of epochs, if that is not known or under way."""
        if self._epochs is not None or self._loading is not None:
            return
        self._loading = self.keeper.load()
        self._loading.addErrback(self._not_loaded)
        self._loading.addCallback(self._loaded)

    def _not_loaded(self, failure: Failure) -> Failure | None:
        if failure.check(UpstreamError) is None:
            log.failure("the record of epochs could not be read", failure=failure)
        self._unread = failure.getErrorMessage()
        return None

    def _loaded(self, _: None) -> None:
        self._loading = None
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            waiter.callback(None)
        if self._epochs is not None:
            self._reclaimer.start_later()

    def when_loaded(self, waiting: Deferred[Any], act: Callable[..., Any], *args: Any) -> Any:
        """Do something when epochs are known; fail if they cannot be."""
        if len(self._waiting) >= _MAX_WAITING:
            waiting.errback(StoreUnavailable("too much waits for the engine"))
            return waiting
        ready: Deferred[None] = Deferred()
        self._waiting.append(ready)

        def go_on(_: None) -> Any:
            if self._epochs is None:
                raise StoreUnavailable(self._engine.unready or "the engine is not known yet")
            return act(*args)

        ready.addCallback(go_on)
        ready.chainDeferred(waiting)
        self.load()
        return waiting

    def loaded(self) -> Deferred[None]:
        """Return a Deferred that fires when epochs are known; it fails as `when_loaded` does."""
        waiting: Deferred[None] = Deferred()
        if self._epochs is None:
            self.when_loaded(waiting, lambda: None)
        else:
            waiting.callback(None)
        return waiting

    def stop(self) -> None:
        """Do nothing by itself any more."""
        self._reclaimer.stop()

    def ready(self) -> str | None:
        """Return why it cannot be used, for people; see `IStore.ready`."""
        if self._engine.unready:
            return self._engine.unready
        return None if self._epochs is not None else self._unread

    # -- numbers --------------------------------------------------------------

    def expiry(self, expires_at: float) -> bytes:
        """Return when the engine is to forget a document: unix time in milliseconds."""
        return b"%d" % math.ceil((expires_at + self._ahead) * 1000)

    def moment(self, expires_at: float) -> bytes:
        """Return what a SET says at its end about when it expires."""
        moment = self.expiry(expires_at)
        return self._moment % (len(moment), moment)

    error_of = staticmethod(error_of)

    def fail(self, waiting: Deferred[Any], failure: EngineFailure, call: Call) -> None:
        """Tell whoever waits that a write has failed."""
        if failure.fate is Fate.NO_MEMORY:
            self.statistics.no_memory += 1
            waiting.callback(Refusal.NO_MEMORY)
        elif failure.fate is Fate.TOO_BIG:
            self.statistics.too_large += 1
            waiting.callback(Refusal.TOO_BIG)
        else:
            waiting.errback(error_of(failure, call))


class DurableStore(Operations):
    """An `EngineStore` whose mutations wait for a majority of the engine's servers.

    Args:
        store: Where documents are.
        timeout: Seconds that a mutation may wait for it; None leaves it to the engine's timeout.
    """

    def __init__(self, store: EngineStore, timeout: float | None) -> None:
        self._store = store
        self._timeout = store._engine.options.timeout if timeout is None else timeout
        self.uuid = store.uuid
        self.touch_keeps_cas = store.touch_keeps_cas

    def _apply(self, key: Key, rule: Rule[Any], *args: Any) -> Any:
        return self._store._changer.begin(Change(key, rule, args, durable=self._timeout))

    def _apply_to_any(self, key: Key, doc_flags: int, rule: Rule[Any], *args: Any) -> Any:
        wanted = doc_flags & DocFlag.ACCESS_DELETED
        return self._store._changer.begin(Change(key, rule, args, wanted, durable=self._timeout))

    def get(self, key: Key) -> Deferred[Document | None]:
        """Read a document; see `IStore.get`."""
        return self._store.get(key)


def _field(info: bytes, name: bytes) -> int:
    found = info.partition(name)[2].partition(b"\r")[0]
    return int(found) if found.isdigit() else 0
