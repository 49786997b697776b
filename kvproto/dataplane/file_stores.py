"""The stores behind ``file:DIRECTORY``: one for each bucket, each in a directory of its own.

Owns the directory and its lock, the order of opening and closing, and what operators are told.

The layout: ``DIRECTORY/lock``, and ``DIRECTORY/bucket-NAME/`` with the segments of that bucket's
log (`kvproto.store.file`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from zope.interface import implementer

from kvproto.base.directory_lock import DirectoryLock
from kvproto.base.log import make_logger
from kvproto.config import Config, StoreURL, parse_file_url
from kvproto.dataplane.interfaces import IKeepingStores
from kvproto.errors import ConfigError
from kvproto.store import FileStore, IStore, MemoryStore

__all__ = ["FileStores"]

log = make_logger()

_BUCKET = "bucket-"

Adopt = Callable[[dict[str, int]], dict[str, int]]
"""Takes the ids that a bucket's collections had; returns those that they have now."""


@implementer(IKeepingStores)
class FileStores(Service):
    """Stores in memory, kept in a directory.

    Args:
        url: ``file:DIRECTORY?sync=…``.
        config: What the operator decided.
        reactor: For pauses and waits.
        run: Runs a function in a thread.
        memory: Makes the store in memory of one bucket.
    """

    name = "stores"

    def __init__(
        self,
        url: StoreURL,
        config: Config,
        reactor: Any,
        run: Any,
        memory: Callable[[Config, Any], MemoryStore],
    ) -> None:
        options = parse_file_url(url)
        self.description = url.text
        self._directory = options.directory
        self._lock = DirectoryLock(options.directory, "lock", "--store")
        self._opened: Deferred[None] | None = None
        self._stores: dict[str, FileStore] = {}
        self._adopt: dict[str, Adopt] = {}
        for name in config.buckets:
            in_memory = memory(config, reactor)
            self._stores[name] = FileStore(self._path(name), options.sync, in_memory, reactor, run)

    def _path(self, bucket: str) -> Path:
        return self._directory / f"{_BUCKET}{bucket}"

    def store(self, bucket: str) -> IStore:
        """Return the store of a bucket; see `IStores.store`."""
        store: IStore = self._stores[bucket]
        return store

    def prepare(self) -> None:
        """Take the directory; see `IStores.prepare`.

        Raises:
            ConfigError: Another process has it, or it cannot be used.
        """
        if self._lock.held:
            return
        self._lock.acquire()
        try:
            for bucket in self._stores:
                self._path(bucket).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            self._lock.release()
            raise ConfigError("--store", f"{error.filename}: {error.strerror}") from error

    def startService(self) -> None:
        """Begin to load."""
        super().startService()
        self.prepare()
        self._lock.name_process()
        self._opened = Deferred.fromCoroutine(self._open())

    def keep_collections(self, bucket: str, adopt: Adopt) -> None:
        """Let a bucket's collections keep their ids; see `IKeepingStores`."""
        self._adopt[bucket] = adopt

    async def _open(self) -> None:
        for bucket, store in self._stores.items():
            await store.open()
            if bucket in self._adopt:
                store.collections = self._adopt[bucket](store.collections)
            if store.seqno:
                log.info(
                    "bucket {bucket}: {items} documents loaded from {directory}",
                    bucket=bucket,
                    items=store.status()["items"],
                    directory=str(store.directory),
                )
        served = {self._path(bucket) for bucket in self._stores}
        for path in sorted(self._directory.glob(f"{_BUCKET}*")):
            if path not in served:
                log.warn(
                    "{path} belongs to a bucket that is not served; it is left as it is",
                    path=str(path),
                )

    def opened(self) -> Deferred[None]:
        """Return a Deferred that fires when everything is loaded; see `IStores.opened`."""
        assert self._opened is not None, "ask after the start"
        waiting: Deferred[None] = Deferred()

        self._opened.addCallbacks(waiting.callback, waiting.errback)
        return waiting

    def stopService(self) -> Deferred[None]:
        """Force everything to the disk and let go of the directory."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        for store in self._stores.values():
            await store.close()
        self._lock.release()

    def ready(self) -> str | None:
        """Say why clients cannot be served now; None when they can."""
        reasons = (store.ready() for store in self._stores.values())
        return next((reason for reason in reasons if reason is not None), None)

    def status(self) -> dict[str, object]:
        """Return what ``kvtls status`` says of it."""
        reason = self.ready()
        return {
            "url": self.description,
            "ready": reason is None,
            "reason": reason or "",
            "buckets": {name: store.status() for name, store in self._stores.items()},
        }
