"""Gives back the memory of documents that nobody looks for any more: those of older epochs.

A process that flushes a bucket goes through the names of its documents afterwards, some at a time,
and removes those whose epoch has passed.  Documents of an epoch that this process does not know yet
are left alone.
"""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from kvproto.base.log import make_logger
from kvproto.errors import UpstreamError
from kvproto.upstream.engine import Engine
from kvproto.upstream.epochs import Epochs, bucket_prefix, name_parts
from kvproto.upstream.keeper import EpochKeeper
from kvproto.upstream.resp import command
from kvproto.upstream.server import Server

__all__ = ["Reclaimer", "serving"]

log = make_logger()

_AT_ONCE = b"500"
_PAUSE_S = 0.01
_FIRST_S = 60.0


def serving(engine: Engine) -> list[Server]:
    """Return the servers that have documents."""
    servers: list[Server] = getattr(engine, "primaries", engine.servers)
    return servers


class Reclaimer:
    """Removes documents of older epochs of one bucket.

    Args:
        engine: Where they are.
        bucket: The bucket's name.
        keeper: Knows which epoch it is.
    """

    def __init__(self, engine: Engine, bucket: bytes, keeper: EpochKeeper) -> None:
        self._engine = engine
        self._bucket = bucket
        self._keeper = keeper
        self._running = False
        self._again = False
        self._call: IDelayedCall | None = None

    def start_later(self) -> None:
        """Begin in a minute or two: whoever flushed may have ended before it was through."""
        if self._call is None and not self._running:
            wait = _FIRST_S * (1 + random.random())  # noqa: S311
            self._call = self._engine.clock.callLater(wait, self._begin)

    def start(self) -> None:
        """Begin, or begin again after what is under way."""
        if self._running:
            self._again = True
        elif self._call is None or self._call.getTime() > self._engine.clock.seconds() + 1:
            self.stop()
            self._call = self._engine.clock.callLater(0, self._begin)

    def stop(self) -> None:
        """Start nothing new."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def _begin(self) -> None:
        self._call = None
        self._running = True
        self._again = False
        done = Deferred.fromCoroutine(self._run())
        done.addErrback(lambda failure: log.failure("old documents stay", failure=failure))
        done.addCallback(self._ended)

    def _ended(self, _: Any) -> None:
        self._running = False
        if self._again:
            self.start()

    async def _run(self) -> None:
        try:
            for server in serving(self._engine):
                await self._go_through(server)
        except UpstreamError as error:
            log.warn(
                "old documents stay in the engine until the next flush: {reason}", reason=error
            )

    async def make_room(self) -> bool:
        """Remove some documents, of any epoch; return whether there were any."""
        for server in serving(self._engine):
            cursor = b"0"
            while True:
                cursor, names = await self._scan(server, cursor)
                if names:
                    await self._remove(names)
                    return True
                if cursor == b"0":
                    break
        return False

    async def _scan(self, server: Server, cursor: bytes) -> tuple[bytes, list[bytes]]:
        pattern = bucket_prefix(self._bucket) + b"*"
        return await self._engine.scan(server, pattern, cursor, _AT_ONCE)

    async def _remove(self, names: list[bytes]) -> None:
        unlinks = ((name, command(b"UNLINK", name)) for name in names)
        await self._engine.ask_all(unlinks, write=True)

    async def _go_through(self, server: Server) -> None:
        cursor = b"0"
        while True:
            cursor, names = await self._scan(server, cursor)
            record = self._keeper.record
            await self._remove(
                [name for name in names if record is not None and self._is_old(name, record)]
            )
            if cursor == b"0":
                return
            pause: Deferred[None] = Deferred()
            self._call = self._engine.clock.callLater(_PAUSE_S, pause.callback, None)
            await pause
            self._call = None

    def _is_old(self, name: bytes, record: Epochs) -> bool:
        parts = name_parts(self._bucket, name)
        if parts is None:
            return False
        epoch, collection, of_collection, _ = parts
        if epoch != record.epoch:
            return epoch < record.epoch
        return of_collection < record.collections.get(collection, 0)
