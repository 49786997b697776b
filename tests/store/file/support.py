"""A directory, a clock and a disk for tests of `kvproto.store.file`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Sync
from kvproto.store import MemoryStore
from kvproto.store.file.disk import Disk
from kvproto.store.file.journal import SMALLEST_SEGMENT
from kvproto.store.file.store import FileStore
from kvproto.testing.store_case import START


class SmallDisk(Disk):
    """A disk whose room and health the test decides; it forces nothing to the real one.

    Attributes:
        room: Bytes that may still be prepared.
        broken: Raised by `sync` when not None.
        synced: How often it has synced.
        forced: Whose files it has forced.
    """

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room
        self.broken: OSError | None = None
        self.synced = 0
        self.forced: list[Path] = []

    def prepare(self, path: Path, size: int) -> int:
        if size > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= size
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(descriptor, size)
        return descriptor

    def remove(self, path: Path) -> None:
        self.room += path.stat().st_size
        super().remove(path)

    def force(self, path: Path) -> None:
        self.forced.append(path)

    def sync(
        self, ended: Iterable[tuple[int, int]], descriptor: int, directory: int | None
    ) -> None:
        if self.broken is not None:
            raise self.broken
        self.synced += 1
        for file, size in ended:
            self.room += os.fstat(file).st_size - size
            os.ftruncate(file, size)


class Threads:
    """Runs what is run in threads when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def run(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Do as ``deferToThreadPool``."""
        done: Deferred[Any] = Deferred()
        self.waiting.append((done, function, args))
        return done

    def step(self) -> bool:
        """Let one of them end; False when there is none."""
        if not self.waiting:
            return False
        done, function, args = self.waiting.pop(0)
        try:
            result = function(*args)
        except Exception:
            done.errback()
        else:
            done.callback(result)
        return True


class FileCase(SynchronousTestCase):
    """Opens, closes and kills stores in one directory."""

    sync = Sync.EVERY_SECOND

    def setUp(self) -> None:
        # Some tests begin anew many times: each store has descriptors.
        for store in list(getattr(self, "stores", ())):
            if store.ready() is None:
                self.kill(store)
        self.clock = Clock()
        self.clock.rightNow = START
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.disk = SmallDisk()
        self.stores: list[FileStore] = []
        self.addCleanup(self.close_all)

    def make(self, run: Any = None, sync: Sync | None = None, **options: Any) -> FileStore:
        """Make a store that is not open yet."""
        size = options.pop("segment_size", SMALLEST_SEGMENT)
        memory = MemoryStore(self.clock.seconds, **options)
        store = FileStore(
            self.directory,
            sync or self.sync,
            memory,
            self.clock,
            run,
            self.disk,
            size,
        )
        self.stores.append(store)
        return store

    def pump(self, answer: Deferred[Any]) -> Any:
        """Let time pass until a Deferred has fired; return its result."""
        for _ in range(10_000):
            if answer.called:
                break
            self.clock.advance(0)
        return self.successResultOf(answer)

    def open(self, **options: Any) -> FileStore:
        """Make a store and load what is in the directory."""
        store = self.make(**options)
        self.pump(store.open())
        return store

    def kill(self, store: FileStore) -> None:
        """Forget a store as the death of its process does: nothing is written any more."""
        journal = store._journal
        journal.running = False
        for segment in [journal._active, *journal._spares, *journal._unsynced]:
            if segment is not None:
                segment.map.close()  # it has a descriptor, too
                os.close(segment.descriptor)
        os.close(journal._directory_descriptor)
        for call in self.clock.getDelayedCalls():
            call.cancel()
        self.stores.remove(store)

    def close(self, store: FileStore) -> None:
        """End a store as a service does."""
        self.pump(Deferred.fromCoroutine(store.close()))
        self.stores.remove(store)

    def close_all(self) -> None:
        for store in list(self.stores):
            self.close(store)

    def again(self, store: FileStore, *, kill: bool = True, **options: Any) -> FileStore:
        """End a store, either way, and open the directory again."""
        (self.kill if kill else self.close)(store)
        return self.open(**options)

    def value_in(self, store: FileStore, key: bytes) -> bytes | None:
        """Return what is under a key."""
        document = store.get(key)
        return None if document is None else document.value

    def segments(self) -> list[Path]:
        """Return the segments' files, the oldest first."""
        return sorted(self.directory.glob("*.log"))
