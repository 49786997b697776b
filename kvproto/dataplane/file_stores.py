"""The stores behind ``file:DIRECTORY``: one for each bucket, each in a directory of its own.

Owns the directory and its lock, the order of opening and closing, and what operators are told.

The layout: ``DIRECTORY/lock``; ``DIRECTORY/bucket-NAME/`` with the segments of that bucket's log
(`kvproto.store.file`); and ``DIRECTORY/management.json``, what was created while it served.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from zope.interface import implementer

from kvproto.base.directory_lock import DirectoryLock
from kvproto.base.log import make_logger
from kvproto.base.one_thread import OneThread
from kvproto.base.private_files import replace_file
from kvproto.config import Config, StoreURL, Sync, parse_file_url
from kvproto.dataplane.interfaces import IGrowingStores, IKeepingStores
from kvproto.errors import ConfigError, StoreUnavailable
from kvproto.store import FileStore, IStore, MemoryStore

__all__ = ["FileStores"]

log = make_logger()

_BUCKET = "bucket-"

_DROPPED = ".dropped-"
"""Begins the name of what is being removed."""

_DESCRIPTION = "management.json"

Adopt = Callable[[dict[str, int]], dict[str, int]]
"""Takes the ids that a bucket's collections had; returns those that they have now."""


@implementer(IKeepingStores, IGrowingStores)
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
        memory: Callable[..., MemoryStore],
    ) -> None:
        options = parse_file_url(url)
        self.description = url.text
        self._directory = options.directory
        self._lock = DirectoryLock(options.directory, "lock", "--store")
        self._opened: Deferred[None] | None = None
        self._stores: dict[str, FileStore] = {}
        self._adopt: dict[str, Adopt] = {}
        self._run = maybeDeferred if run is None else run
        self._has_threads = run is not None
        self._threads: dict[FileStore, OneThread] = {}
        self._make_memory = memory
        self._memory = partial(memory, config, reactor)
        self._sync = options.sync
        self._reactor = reactor
        self._kept: dict[str, Any] = {}
        for name in config.buckets:
            self._stores[name] = self._make(name)

    def _make(self, bucket: str, *memory_limit: int) -> FileStore:
        memory = self._memory(*memory_limit)
        thread = None
        if self._sync is Sync.ALWAYS and self._has_threads:
            thread = OneThread(self._reactor)
        store = FileStore(
            self._path(bucket),
            self._sync,
            memory,
            self._reactor,
            self._run,
            run_sync=None if thread is None else thread.run,
        )
        if thread is not None:
            self._threads[store] = thread
        return store

    async def _end(self, store: FileStore) -> None:
        try:
            await store.close()
        finally:
            thread = self._threads.pop(store, None)
            if thread is not None:
                thread.stop()

    def change(self, config: Config) -> None:
        """Take over limits of values, and what a full store does; see `IStores.change`."""
        self._memory = partial(self._make_memory, config, self._reactor)
        for store in self._stores.values():
            store.limit_values(config.value_limit, config.item_limit, evict=config.evict)

    def add(self, bucket: str, memory_limit: int) -> Deferred[None]:
        """Make one more store, or find it again; see `IGrowingStores`."""
        return Deferred.fromCoroutine(self._add(bucket, memory_limit))

    async def _add(self, bucket: str, memory_limit: int) -> None:
        await self._run(_make_directory, self._path(bucket))
        store = self._make(bucket, memory_limit)
        await store.open()
        self._stores[bucket] = store

    def remove(self, bucket: str) -> Deferred[None]:
        """Remove a store and its files; see `IGrowingStores`."""
        return Deferred.fromCoroutine(self._remove(bucket))

    async def _remove(self, bucket: str) -> None:
        store = self._stores.pop(bucket)
        # Where the files cannot be moved, nothing of it must be found by the next of that name.
        with contextlib.suppress(StoreUnavailable):
            await maybeDeferred(store.flush)
        await self._end(store)
        # Out of the way first: half a bucket must never be found again.
        await self._run(_remove_aside, self._path(bucket))

    def kept(self) -> dict[str, Any]:
        """Return what was created while an earlier process served; see `IGrowingStores`."""
        return self._kept

    def keep(self, describe: Callable[[], dict[str, Any]]) -> Deferred[None]:
        """Keep what was created; see `IGrowingStores`."""
        path = self._directory / _DESCRIPTION
        writing: Deferred[None] = self._run(_keep, path, describe)
        return writing

    def _read_description(self) -> None:
        path = self._directory / _DESCRIPTION
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["version"] != 1:
                raise ConfigError("--store", f"{path} is of version {found['version']!r}, not 1")
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError("--store", f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError("--store", f"{path} is damaged ({error!r})") from error
        self._kept = found

    def _path(self, bucket: str) -> Path:
        return self._directory / f"{_BUCKET}{bucket}"

    def store(self, bucket: str) -> IStore:
        """Return the store of a bucket; see `IStores.store`."""
        store: IStore = self._stores[bucket]
        return store

    def check(self) -> None:
        """See whether the directory could be used; see `IKeepingStores.check`."""
        self._lock.check()

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
            for dropped in self._directory.glob(f"{_DROPPED}*"):
                _remove_all(dropped)
            self._read_description()
        except OSError as error:
            self._lock.release()
            raise ConfigError("--store", f"{error.filename}: {error.strerror}") from error
        except ConfigError:
            self._lock.release()
            raise

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
            try:
                await store.open()
            except OSError as error:
                where = error.filename or store.directory
                raise StoreUnavailable(f"{where}: {error.strerror}") from error
            if bucket in self._adopt:
                store.collections = self._adopt[bucket](store.collections)
            if store.seqno:
                log.info(
                    "bucket {bucket}: {items} documents loaded from {directory}",
                    bucket=bucket,
                    items=store.status()["items"],
                    directory=str(store.directory),
                )
        created = self._kept.get("buckets", {})
        served = {self._path(bucket) for bucket in (*self._stores, *created)}
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
            await self._end(store)
        self._lock.release()

    def ready(self) -> str | None:
        """Return why clients cannot be served now; None when they can."""
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


def _remove_aside(path: Path) -> None:
    """Remove a directory; nobody finds half of it."""
    aside = Path(tempfile.mkdtemp(prefix=f"{_DROPPED}{path.name}-", dir=path.parent))
    os.replace(path, aside)
    _remove_all(aside)


def _remove_all(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        log.warn(
            "{path} is of no use and could not be removed, the next start tries again: {reason}",
            path=str(path),
            reason=error.strerror,
        )


def _make_directory(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)


def _keep(path: Path, describe: Callable[[], dict[str, Any]]) -> None:
    replace_file(path, json.dumps({"version": 1, **describe()}).encode())
