"""A store in front of another that tells those who watch what is asked of it.

Sessions use it instead of the usual one while somebody watches documents, and what they ask then
takes the general way.  It adds nothing to what is asked, and takes nothing away.

As memcached does, it tells of each request that looks for a document (fetchers), whatever it is
for, and of each that stores one as a whole (mutations): a counter that grows, or another expiry,
are no mutations there.  What was there before a write is known where the store has it at hand
(`peek`); before a store that would have to be asked, only reads are told of.

Source: memcached 1.6.45, ``items.c`` (``do_item_get``), ``memcached.c`` (``do_store_item``).
"""

from __future__ import annotations

import math
from typing import Any

from kvproto.server.replies import then
from kvproto.server.watch import OF_DOCUMENTS, Stream, WatchLog, deletion, item_get, item_store
from kvproto.store import DO_NOT_CREATE, Document, Key, MetaRead, MetaWrite, Refusal
from kvproto.store.expiry import deadline
from kvproto.store.multi import MutationResult
from kvproto.wire.meta import MetaCommand

__all__ = ["WatchedStore", "observed"]

_MODES = {
    ord("S"): b"set",
    ord("E"): b"add",
    ord("A"): b"append",
    ord("P"): b"prepend",
    ord("R"): b"replace",
}

_KEEPING = frozenset(b"Ix")
"""Flags with which md does not delete."""

_OTHER = b"na"
"""What memcached calls a command that it has no name for."""

_STATUSES = {
    Refusal.NOT_FOUND: b"not_found",
    Refusal.EXISTS: b"exists",
    Refusal.TOO_BIG: b"too_large",
    Refusal.NO_MEMORY: b"no_memory",
    MetaWrite.NOT_FOUND: b"not_found",
    MetaWrite.EXISTS: b"exists",
    MetaWrite.NOT_STORED: b"not_stored",
}


def observed(store: Any, log: WatchLog, bucket: Any, connection: int) -> Any:
    """Return a store as it is to be used now: watched, or as it is.

    Args:
        store: It, watched already or not.
        log: Who watches.
        bucket: Whose documents it has.
        connection: Who uses it.
    """
    bare = store.bare if isinstance(store, WatchedStore) else store
    if log.watchers and log.wanted & OF_DOCUMENTS:
        return WatchedStore(bare, log, bucket, connection)
    return bare


class WatchedStore:
    """One store, as one connection uses it while somebody watches.

    Args:
        bare: The store.
        log: Who watches.
        bucket: Whose documents it has.
        connection: The number of the connection.
    """

    def __init__(self, bare: Any, log: WatchLog, bucket: Any, connection: int) -> None:
        self.bare = bare
        self._log = log
        self._bucket = bucket
        self._connection = connection
        self._peek = getattr(bare, "peek", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)

    def durable(self, level: int, timeout: float | None) -> Any:
        """Return the store for durable requests, watched as well; see `IStore.durable`."""
        store = self.bare.durable(level, timeout)
        if store is None:
            return None
        return WatchedStore(store, self._log, self._bucket, self._connection)

    # what is told

    def _tell(self, stream: Stream, text: bytes) -> None:
        self._log.tell(stream, text, self._bucket)

    def _before(self, key: Key) -> Document | None:
        """Tell that a document is looked for, and return it, where the store has it at hand."""
        if self._peek is None:
            return None
        there: Document | None = self._peek(key)
        status = b"not_found" if there is None else b"found"
        if there is not None and 0 < there.expires_at <= self._log.now():
            there, status = None, b"expired"
        self._tell(Stream.FETCHERS, item_get(key, status, there, self._connection))
        return there

    def _read(self, key: Key, outcome: Any) -> Any:
        """Tell what a read has found, where that was not known before."""
        return outcome if self._peek is not None else then(outcome, self._tell_read, key)

    def _tell_read(self, outcome: Any, key: Key) -> Any:
        document = outcome.document if isinstance(outcome, MetaRead) else outcome
        if document is None or isinstance(document, Document | Refusal):
            there = document if isinstance(document, Document) else None
            status = b"not_found" if there is None else b"found"
            self._tell(Stream.FETCHERS, item_get(key, status, there, self._connection))
        return outcome

    def _stored(self, outcome: Any, key: Key, verb: bytes, offered: Document) -> Any:
        """Tell what became of a write."""
        made = outcome.document if isinstance(outcome, MetaRead) else outcome
        if isinstance(made, Document):
            # A store that is elsewhere does not say what it has stored.
            status, stored = b"stored", made if made.value else offered
        else:
            status, stored = _STATUSES.get(outcome, b"not_stored"), offered
            if status in {b"exists", b"not_found"} and verb not in {b"cas", b"set"}:
                status = b"not_stored"
        left = stored.expires_at - self._log.now() if stored.expires_at else 0.0
        text = item_store(key, status, verb, max(0, math.ceil(left)), stored, self._connection)
        self._tell(Stream.MUTATIONS, text)
        return outcome

    def _offered(self, value: bytes, flags: int, expiry: int) -> Document:
        return Document(value, flags, expires_at=deadline(expiry, self._log.now()))

    # reading

    def get(self, key: Key) -> Any:
        """Read; see `IStore.get`."""
        self._before(key)
        return self._read(key, self.bare.get(key))

    def get_and_touch(self, key: Key, expiry: int) -> Any:
        """Read and touch; see `IStore.get_and_touch`."""
        self._before(key)
        return self._read(key, self.bare.get_and_touch(key, expiry))

    def get_and_lock(self, key: Key, seconds: int) -> Any:
        """Read and lock; see `IStore.get_and_lock`."""
        self._before(key)
        return self._read(key, self.bare.get_and_lock(key, seconds))

    def touch(self, key: Key, expiry: int) -> Any:
        """Touch; see `IStore.touch`."""
        self._before(key)
        return self._read(key, self.bare.touch(key, expiry))

    def lookup_in(self, key: Key, *args: Any, **options: Any) -> Any:
        """Look up paths; see `IStore.lookup_in`."""
        self._before(key)
        return self.bare.lookup_in(key, *args, **options)

    # writing

    def _write(self, method: str, key: Key, value: bytes, flags: int, expiry: int, *args: Any,
               **options: Any) -> Any:  # fmt: skip
        self._before(key)
        verb = b"cas" if method == "set" and args and args[0] else method.encode()
        outcome = getattr(self.bare, method)(key, value, flags, expiry, *args, **options)
        return then(outcome, self._stored, key, verb, self._offered(value, flags, expiry))

    def set(self, key: Key, value: bytes, flags: int = 0, expiry: int = 0, cas: int = 0,
            **options: Any) -> Any:  # fmt: skip
        """Store; see `IStore.set`."""
        return self._write("set", key, value, flags, expiry, cas, **options)

    def add(self, key: Key, value: bytes, flags: int = 0, expiry: int = 0, cas: int = 0,
            **options: Any) -> Any:  # fmt: skip
        """Store where nothing is; see `IStore.add`."""
        return self._write("add", key, value, flags, expiry, cas, **options)

    def replace(self, key: Key, value: bytes, flags: int = 0, expiry: int = 0, cas: int = 0,
                **options: Any) -> Any:  # fmt: skip
        """Store where something is; see `IStore.replace`."""
        return self._write("replace", key, value, flags, expiry, cas, **options)

    def too_large(self, key: Key, verb: bytes) -> None:
        """Tell of a write that its session has refused, and thrown away."""
        self._stored(Refusal.TOO_BIG, key, b"set" if verb == b"ms" else verb, Document(b""))

    def append(self, key: Key, value: bytes, cas: int = 0) -> Any:
        """Put bytes behind a value; see `IStore.append`."""
        self._before(key)
        outcome = self.bare.append(key, value, cas)
        return then(outcome, self._stored, key, b"append", Document(value))

    def prepend(self, key: Key, value: bytes, cas: int = 0) -> Any:
        """Put bytes before a value; see `IStore.prepend`."""
        self._before(key)
        outcome = self.bare.prepend(key, value, cas)
        return then(outcome, self._stored, key, b"prepend", Document(value))

    def increment(self, key: Key, delta: int, initial: int, expiry: int, cas: int = 0) -> Any:
        """Add to a counter; see `IStore.increment`."""
        return self._count("increment", key, delta, initial, expiry, cas)

    def decrement(self, key: Key, delta: int, initial: int, expiry: int, cas: int = 0) -> Any:
        """Subtract from a counter; see `IStore.decrement`."""
        return self._count("decrement", key, delta, initial, expiry, cas)

    def _count(self, method: str, key: Key, delta: int, initial: int, expiry: int, cas: int) -> Any:
        there = self._before(key)
        outcome = getattr(self.bare, method)(key, delta, initial, expiry, cas)
        if there is not None or self._peek is None or expiry == DO_NOT_CREATE:
            return outcome
        return then(outcome, self._stored, key, b"add", self._offered(b"%d" % initial, 0, expiry))

    def delete(self, key: Key, cas: int = 0) -> Any:
        """Remove; see `IStore.delete`."""
        there = self._before(key)
        return then(self.bare.delete(key, cas), self._deleted, key, b"delete", there)

    def _deleted(self, outcome: Any, key: Key, verb: bytes, there: Document | None) -> Any:
        if isinstance(outcome, Document):
            self._tell(Stream.DELETIONS, deletion(key, verb, there))
        return outcome

    def mutate_in(self, key: Key, *args: Any, **options: Any) -> Any:
        """Change paths; see `IStore.mutate_in`."""
        self._before(key)
        return then(self.bare.mutate_in(key, *args, **options), self._mutated, key)

    def _mutated(self, outcome: Any, key: Key) -> Any:
        if isinstance(outcome, MutationResult) and outcome.document is not None:
            self._stored(outcome.document, key, _OTHER, outcome.document)
        return outcome

    # meta commands

    def meta(self, key: Key, command: MetaCommand) -> Any:
        """Do a meta command; see `IStore.meta`."""
        there = self._before(key)
        outcome = self.bare.meta(key, command)
        if command.verb == "ms":
            verb = _MODES.get(command.mode, b"set")
            if verb == b"set" and command.cas is not None:
                verb = b"cas"
            offered = self._offered(command.value, command.client_flags, command.expiry or 0)
            return then(outcome, self._stored, key, verb, offered)
        if command.verb == "md" and not _KEEPING.intersection(command.letters):
            return then(outcome, self._deleted, key, b"md", there)
        if command.verb == "ma":
            return then(outcome, self._counted, key)
        return outcome if command.verb == "md" else self._read(key, outcome)

    def _counted(self, outcome: Any, key: Key) -> Any:
        if isinstance(outcome, MetaRead) and outcome.made:
            self._stored(outcome.document, key, b"add", outcome.document)
        return outcome
