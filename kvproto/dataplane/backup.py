"""Backups: all documents of all buckets in one file, written and read while the service serves.

The file: `MAGIC`; then for each bucket a STATE record with its name and its collections, and a
record for each document (`kvproto.store.file.records`); at last an END record with the number of
documents and the checksum of everything before it, without which the file is not whole.

A backup is not of one moment: it has each document as it was at some moment while it was made.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from kvproto.base.private_files import create_aside, put_in_place
from kvproto.errors import CommandError, UpstreamError
from kvproto.server import Bucket
from kvproto.store import Document, IListableStore, Key
from kvproto.store.file.records import HEAD_SIZE, Kind, Record, body_of, decode, encode

__all__ = ["Backups"]

MAGIC = b"kvproto backup1\n"

_SEED = 0
_CHUNK = 256 * 1024
_LARGEST = 2 << 30
_BATCH = 100

Run = Callable[..., Deferred[Any]]


class Backups:
    """Writes and reads backups of a service's buckets, one at a time.

    Args:
        buckets: By name.
        clock: For pauses.
        run: Runs a function in a thread.
    """

    def __init__(self, buckets: Mapping[str, Bucket], clock: IReactorTime, run: Run) -> None:
        self._buckets = buckets
        self._clock = clock
        self._run = run
        self._busy = False

    def backup(self, path: Path) -> Deferred[dict[str, Any]]:
        """Write all documents into a file, which is there only when it is whole.

        Returns:
            A Deferred of what ``kvtls backup`` answers with; it fails with `CommandError`.
        """
        return Deferred.fromCoroutine(self._alone(path, self._backup(path)))

    def restore(self, path: Path) -> Deferred[dict[str, Any]]:
        """Store all documents of a file; those that it does not have stay as they are.

        Returns:
            A Deferred of what ``kvtls restore`` answers with; it fails with `CommandError`, and
            has changed nothing then.
        """
        return Deferred.fromCoroutine(self._alone(path, self._restore(path)))

    async def _alone(self, path: Path, work: Any) -> dict[str, Any]:
        if self._busy:
            work.close()
            raise CommandError("busy", "another backup or restore is under way: wait for its end")
        self._busy = True
        try:
            answer: dict[str, Any] = await work
        except OSError as error:
            raise CommandError("file", f"{error.filename or path}: {error.strerror}") from error
        except UpstreamError as error:
            raise CommandError("store", str(error)) from error
        else:
            return answer
        finally:
            self._busy = False

    # -- writing --------------------------------------------------------------

    async def _backup(self, path: Path) -> dict[str, Any]:
        buckets = [(bucket, _listable(bucket)) for bucket in self._buckets.values()]
        _check_target(path)
        descriptor, partial = await self._run(create_aside, path, 0o600)
        writer = _Writer(os.fdopen(descriptor, "wb", buffering=0))
        try:
            for bucket, store in buckets:  # others may come and go meanwhile
                writer.add(Kind.STATE, b"", Document(_described(bucket)))
                for piece in store.pieces():
                    documents = await piece if isinstance(piece, Deferred) else piece
                    for key, document in documents:
                        kind = Kind.TOMBSTONE if document.deleted else Kind.PUT
                        writer.add(kind, key, document)
                        if writer.waiting > _CHUNK:
                            await self._run(writer.write)
                    await deferLater(self._clock, 0)
            await self._run(writer.end)
            await self._run(put_in_place, partial, path)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                partial.unlink()
        return {"file": str(path), "documents": writer.documents, "bytes": writer.size}

    # -- reading --------------------------------------------------------------

    async def _restore(self, path: Path) -> dict[str, Any]:
        found = await self._run(_verify, path)
        ids = {name: self._ids(path, name, collections) for name, collections in found.items()}
        restored = refused = 0
        reader: _Reader = await self._run(_Reader, path)
        try:
            bucket = store = None
            while records := await self._run(reader.batch):
                for record in records:
                    if record.kind == Kind.STATE:
                        bucket = json.loads(record.document.value)["bucket"]
                        store = self._still(bucket, path)
                        continue
                    if record.kind == Kind.END:
                        continue
                    assert store is not None
                    assert bucket is not None
                    answer = store.put_back(_with_id(record.key, ids[bucket]), record.document)
                    if isinstance(answer, Deferred):
                        answer = await answer
                    restored += answer is None
                    refused += answer is not None
                await deferLater(self._clock, 0)
                if bucket is not None:
                    store = self._still(bucket, path)
        finally:
            reader.close()
        for name in found:
            saved = self._still(name, path).saved()
            if saved is not None:
                await saved
        answer_: dict[str, Any] = {"file": str(path), "documents": restored}
        if refused:
            answer_ |= {"ok": False, "reason": f"there was no room for {refused} documents"}
        return answer_

    def _still(self, bucket: str, path: Path) -> IListableStore:
        """Return a bucket's store.

        Raises:
            CommandError: The bucket is not there any more.
        """
        if bucket not in self._buckets:
            raise CommandError(
                "unknown-bucket",
                f"bucket {bucket!r} was dropped while {path} was restored: what came before it is "
                "restored; make the bucket and restore again",
            )
        return _listable(self._buckets[bucket])

    def _ids(self, path: Path, bucket: str, collections: dict[str, int]) -> dict[int, int]:
        """Return which id each collection of a backup has here.

        Raises:
            CommandError: The bucket, or a collection, is not there.
        """
        if bucket not in self._buckets:
            raise CommandError(
                "unknown-bucket", f"{path} has a bucket {bucket!r}, this service has none"
            )
        here = self._buckets[bucket].manifest.collection_ids()
        for name in collections:
            if name not in here:
                raise CommandError(
                    "unknown-collection",
                    f"{path} has documents in {name!r} of bucket {bucket!r}: "
                    f"start the service with --collection {bucket}:{name}",
                )
        return {number: here[name] for name, number in collections.items()}


def _listable(bucket: Bucket) -> IListableStore:
    if not IListableStore.providedBy(bucket.store):
        raise CommandError(
            "not-possible",
            f"the store of bucket {bucket.name!r} cannot list its documents: use the tools of "
            "the servers that it is on",
        )
    store: Any = bucket.store
    return store  # type: ignore[no-any-return]


def _described(bucket: Bucket) -> bytes:
    ids = bucket.manifest.collection_ids()
    return json.dumps({"bucket": bucket.name, "collections": ids}).encode()


def _with_id(key: Key, ids: Mapping[int, int]) -> Key:
    return (ids[key[0]], key[1]) if isinstance(key, tuple) else key


def _check_target(path: Path) -> None:
    """Refuse to replace what is no file, e.g. a device."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise CommandError("file", f"{path} is there and is no regular file: name another one")


class _Writer:
    """A backup that is being written.

    Attributes:
        waiting: Bytes that are not yet in the file.
        documents: How many there are.
        size: Bytes so far.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._parts = [MAGIC]
        self._checksum = zlib.crc32(MAGIC)
        self.waiting = self.size = len(MAGIC)
        self.documents = 0

    def add(self, kind: Kind, key: Key, document: Document) -> None:
        """Add a record."""
        record = encode(body_of(kind, key, document), _SEED)
        self.documents += kind <= Kind.TOMBSTONE
        self._parts.append(record)
        self._checksum = zlib.crc32(record, self._checksum)
        self.waiting += len(record)
        self.size += len(record)

    def write(self) -> None:
        """Put what waits into the file."""
        parts, self._parts, self.waiting = self._parts, [], 0
        data = memoryview(b"".join(parts))
        while data:
            data = data[self._file.write(data) :]

    def end(self) -> None:
        """Complete the file and force it to the disk."""
        numbers = Document(b"", cas=self._checksum, seqno=self.documents)
        self.add(Kind.END, b"", numbers)
        self.write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class _Reader:
    """Reads a backup, some records at a time.

    Raises:
        CommandError: It is no backup, or not a whole one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._data = b""
        self._at = 0
        self._ended = False
        self.documents = 0
        self.checksum = zlib.crc32(MAGIC)
        if self._file.read(len(MAGIC)) != MAGIC:
            self.close()
            raise CommandError("not-a-backup", f"{path} is no backup of kvproto")

    def batch(self) -> list[Record]:
        """Return the next records; none at the end."""
        records: list[Record] = []
        while not self._ended and len(records) < _BATCH:
            record = self._next()
            records.append(record)
            self._ended = record.kind == Kind.END
        return records

    def _next(self) -> Record:
        while (found := decode(self._data, self._at, _SEED)) is None:
            have = len(self._data) - self._at
            size = int.from_bytes(self._data[self._at + 4 : self._at + 8], "little")
            if have >= HEAD_SIZE and (size <= have or size > _LARGEST):
                raise self._damaged("is damaged")
            more = self._file.read(max(_CHUNK, size - have if have >= HEAD_SIZE else 0))
            if not more:
                raise self._damaged("is not whole, its end is missing")
            self._data, self._at = self._data[self._at :] + more, 0
        record, end = found
        if end > len(self._data):
            self._data += self._file.read(end - len(self._data))
            if end > len(self._data):
                raise self._damaged("is not whole, its end is missing")
        if record.kind == Kind.END:
            numbers = record.document
            if (numbers.seqno, numbers.cas) != (self.documents, self.checksum):
                raise self._damaged("is damaged")
            if self._data[end:] or self._file.read(1):
                raise self._damaged("has something behind its end")
        else:
            self.checksum = zlib.crc32(memoryview(self._data)[self._at : end], self.checksum)
            self.documents += record.kind <= Kind.TOMBSTONE
        self._at = end
        return record

    def _damaged(self, what: str) -> CommandError:
        return CommandError("not-a-backup", f"{self._path} {what}: nothing was restored")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _verify(path: Path) -> dict[str, dict[str, int]]:
    """Read a whole backup and return the collections that are used, by bucket.

    Raises:
        CommandError: It is no backup, or not a whole one.
        OSError: It cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise CommandError("not-a-backup", f"{path} is no regular file")
    found: dict[str, dict[str, int]] = {}
    reader = _Reader(path)
    names: dict[int, str] = {}
    used: dict[str, int] = {}
    try:
        while records := reader.batch():
            for record in records:
                if record.kind == Kind.STATE:
                    value = json.loads(record.document.value)
                    names = {number: name for name, number in value["collections"].items()}
                    used = found[value["bucket"]] = {}
                elif isinstance(record.key, tuple) and record.key[0] in names:
                    used[names[record.key[0]]] = record.key[0]
                elif isinstance(record.key, tuple):
                    raise CommandError("not-a-backup", f"{path} has a collection without a name")
    finally:
        reader.close()
    return found
