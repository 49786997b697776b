"""All documents of a bucket in an engine, in pieces, and documents put back: for backups.

Theory.  SCAN promises every name that is there from its beginning to its end, perhaps repeatedly;
so listing each server is listing all, as long as no slot changes its server meanwhile.  Whether
one has is looked at in the end, and then the list is not to be trusted.

Names come first, with the sizes of what is under them; the documents are asked for in groups that
are small enough to be held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred

from kvproto.errors import StoreUnavailable
from kvproto.store import Document, Key, Refusal
from kvproto.store.rules import Limits, live
from kvproto.upstream.codec import decode, encode
from kvproto.upstream.engine import Engine, EngineFullError
from kvproto.upstream.epochs import bucket_prefix, name_parts
from kvproto.upstream.reclaim import serving
from kvproto.upstream.resp import command
from kvproto.upstream.server import Server
from kvproto.upstream.slots import SLOTS

__all__ = ["Listing", "put_back"]

_NAMES = b"200"
"""Names that a server is asked for at once, about."""

_SIZE = 1 << 20
"""Bytes of documents that are asked for at once; one that is larger comes alone."""

Piece = list[tuple[Key, Document]]


class Listing:
    """The documents of one bucket, as `IListableStore.pieces` gives them.

    Args:
        engine: Where they are.
        bucket: The bucket's name.
        store: The bucket's store; knows which names count, and the time.
    """

    def __init__(self, engine: Engine, bucket: bytes, store: Any) -> None:
        self._engine = engine
        self._bucket = bucket
        self._store = store
        self._cursor = b"0"
        self._groups: list[list[tuple[Key, bytes]]] = []

    def pieces(self) -> Iterator[Deferred[Piece]]:
        """Yield pieces; each must have been waited for before the next is asked for.

        A piece fails with `UpstreamError` when a server does not answer, the last one also when
        slots have changed their servers.
        """
        yield Deferred.fromCoroutine(self._begin())
        before = self._places()
        for server in serving(self._engine):
            self._cursor = b"0"
            while True:
                yield Deferred.fromCoroutine(self._names(server))
                while self._groups:
                    yield Deferred.fromCoroutine(self._documents(self._groups.pop()))
                if self._cursor == b"0":
                    break
        yield Deferred.fromCoroutine(self._end(before))

    def _places(self) -> list[Any]:
        return [self._engine.server_of(slot) for slot in range(SLOTS)]

    async def _begin(self) -> Piece:
        await self._store.loaded()
        if self._engine.unready:
            raise StoreUnavailable(self._engine.unready)
        return []

    async def _end(self, before: list[Any]) -> Piece:
        if self._places() != before:
            raise StoreUnavailable(
                "slots have moved to other servers meanwhile, so documents may be missing: "
                "try again"
            )
        return []

    async def _names(self, server: Server) -> Piece:
        pattern = bucket_prefix(self._bucket) + b"*"
        self._cursor, names = await self._engine.scan(server, pattern, self._cursor, _NAMES)
        mine = [(key, name) for name in names if (key := self._key_of(name)) is not None]
        sizes = await self._ask_all(b"STRLEN", [name for _, name in mine])
        group: list[tuple[Key, bytes]] = []
        total = 0
        for item, size in zip(mine, sizes, strict=True):
            if group and total + size > _SIZE:
                self._groups.append(group)
                group, total = [], 0
            group.append(item)
            total += size
        if group:
            self._groups.append(group)
        return []

    async def _documents(self, group: list[tuple[Key, bytes]]) -> Piece:
        now = self._store.now()
        values = await self._ask_all(b"GET", [name for _, name in group])
        found = []
        for (key, _), value in zip(group, values, strict=True):
            document = live(None if value is None else decode(value), now)
            if document is not None:
                found.append((key, document))
        return found

    async def _ask_all(self, verb: bytes, names: list[bytes]) -> list[Any]:
        return await self._engine.ask_all((name, command(verb, name)) for name in names)

    def _key_of(self, name: bytes) -> Key | None:
        """Return the key of a document; None when it is of a time that is over."""
        parts = name_parts(self._bucket, name)
        if parts is None:
            return None
        _, collection, _, bare = parts
        key: Key = (collection, bare) if collection else bare
        located = self._store.locate(key)
        return key if located is not None and located[1] == name else None


async def put_back(
    engine: Engine, store: Any, limits: Limits, key: Key, document: Document
) -> Refusal | None:
    """Store a document as it is; see `IListableStore.put_back`."""
    if limits.refuse(key, document):
        return Refusal.TOO_BIG
    await store.loaded()
    _, name = store.locate(key)
    document.locked_until = 0.0
    document.seqno = document.cas
    words = [b"SET", name, encode(document)]
    if document.expires_at:
        if document.expires_at <= store.now():
            words = [b"UNLINK", name]
        else:
            words += [b"PXAT", store.expiry(document.expires_at)]
    try:
        await engine.ask(command(*words), engine.slot(name), write=True)
    except EngineFullError:
        return Refusal.NO_MEMORY
    return None
