"""Reading a log back into memory, in pieces, and saying what is wrong with it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from kvproto.base.log import make_logger
from kvproto.errors import KVProtoError
from kvproto.store.document import Document, Key
from kvproto.store.file.disk import Disk
from kvproto.store.file.journal import Sealed
from kvproto.store.file.records import Kind, Record, decode
from kvproto.store.file.segments import (
    HEADER_SIZE,
    Fault,
    Header,
    boot_id,
    end_record,
    find_fault,
    first_record,
    number_of,
    seed_of,
    segment_name,
)
from kvproto.store.memory import MemoryStore

__all__ = ["Loaded", "Loader", "StoreDamaged"]

log = make_logger()

_AT_ONCE = 250
"""Records that are read without a pause, about a millisecond."""

_BYTES_AT_ONCE = 1 << 20

_LOG_EVERY_S = 5.0

_PAGE = 4096
"""Files that may be mapped into memory have whole pages; none has smaller ones."""


class StoreDamaged(KVProtoError):
    """A file of a store cannot be used.

    Args:
        path: The file.
        reason: What is wrong with it and what to do about it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


@dataclass(slots=True)
class Loaded:
    """What was found beside documents.

    Attributes:
        sealed: The segments, all of them ended now.
        next_number: The number of the next segment.
        state: The last STATE record.
        header: Of the last segment; None when there was none.
        evicted: Keys that there was no room for.
    """

    sealed: list[Sealed] = field(default_factory=list)
    next_number: int = 1
    state: dict[str, Any] = field(default_factory=dict)
    header: Header | None = None
    evicted: list[Key] = field(default_factory=list)


class Loader:
    """Reads the log of one directory into a store in memory.

    Args:
        directory: Where the segments are.
        memory: Takes the documents; empty.
        now: Returns unix time in seconds.
        clock: For pauses.
        run: Runs a function in a thread.
        disk: What is run.

    Attributes:
        done: Bytes that have been read.
        total: Bytes that there are.
    """

    def __init__(
        self,
        directory: Path,
        memory: MemoryStore,
        now: Callable[[], float],
        clock: IReactorTime,
        run: Callable[..., Deferred[Any]],
        disk: Disk,
    ) -> None:
        self._directory = directory
        self._memory = memory
        self._now = now
        self._clock = clock
        self._run = run
        self._disk = disk
        self._boot = boot_id()
        self._cas = 0
        self._seqno = 0
        self._cleaned = 0
        self._loaded = Loaded()
        self._unused: list[Path] = []
        self._logged = 0.0
        self._at = 0
        self.done = 0
        self.total = 0

    async def load(self) -> Loaded:
        """Read everything.

        Raises:
            StoreDamaged: A file is damaged or missing.
            OSError: A file cannot be read.
        """
        paths = self._segments()
        self.total = sum(path.stat().st_size for _, path in paths)
        self._logged = self._clock.seconds()
        self._memory.table.on_evicted = self._loaded.evicted.append
        for place, (number, path) in enumerate(paths):
            try:
                await self._load_segment(number, path, last=place == len(paths) - 1)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        self._memory.table.on_evicted = None
        self._check_all_are_there(segment.number for segment in self._loaded.sealed)
        for path in self._unused:
            await self._run(self._disk.remove, path)
        if self._loaded.header is not None:
            # Not behind a segment that was never begun, and is gone now.
            self._loaded.next_number = self._loaded.header.number + 1
            uuid = self._loaded.header.uuid
            self._memory.continue_from(uuid, self._cas, self._seqno)
        return self._loaded

    def _segments(self) -> list[tuple[int, Path]]:
        """Find the segments, and remove what was prepared and never used."""
        found = []
        for path in self._directory.iterdir():
            number = number_of(path.name)
            if number is not None:
                found.append((number, path))
            elif path.name.startswith("spare-"):
                with contextlib.suppress(OSError):  # or it is made anew
                    path.unlink()
        return sorted(found)

    def _check_all_are_there(self, numbers: Iterable[int]) -> None:
        there = [number for number in numbers if number > self._cleaned]
        if not there:
            return
        for number in range(self._cleaned + 1, there[-1]):
            if number not in there:
                raise StoreDamaged(
                    self._directory / segment_name(number),
                    "is missing: bring it back, or restore a backup into an empty directory",
                )

    async def _load_segment(self, number: int, path: Path, *, last: bool) -> None:
        data = await self._run(self._disk.read, path)
        header = Header.decode(data)
        if header is None or header.number != number:
            if header is None and data and not data[:HEADER_SIZE].strip(b"\0"):
                # The process ended between naming the segment and beginning it, or the machine
                # before it was on the disk.
                before = self._loaded.header
                unknown = Header(number, 0, 0, 0, b"" if before is None else before.boot)
                self._judge(path, find_fault(data, 0, unknown, self._boot))
                self._unused.append(path)
                return
            raise StoreDamaged(path, _WRONG_BEGINNING)
        if self._unused:
            raise StoreDamaged(self._unused[0], _WRONG_BEGINNING)
        self._loaded.header = header
        self._cas, self._seqno = max(self._cas, header.cas), max(self._seqno, header.seqno)
        at, seed = first_record(), seed_of(number)
        count, pause_at = 0, _BYTES_AT_ONCE
        size = 0
        ended = False
        while (found := decode(data, at, seed)) is not None:
            record, at = found
            if record.kind == Kind.END:
                ended = True
                break
            if record.kind == Kind.STATE:
                size = size or record.document.cas
            self._apply(record, path)
            count += 1
            if count == _AT_ONCE or at > pause_at:
                count, pause_at = 0, at + _BYTES_AT_ONCE
                await self._breathe(at)
        this_boot = bool(self._boot) and self._boot == header.boot
        if not ended:
            fault = find_fault(data, at, header, self._boot)
            must_be_whole = this_boot and not last
            # Only what has its end is ever made shorter.
            cut = len(data) != size if size else len(data) % _PAGE
            if must_be_whole or cut:
                fault = Fault(fault.at, fault.lost, True)
            self._judge(path, fault)
            await self._run(self._disk.seal, path, at, end_record(number))
        elif this_boot or not self._boot:
            # The process that wrote it may have died before it forced it to the disk.
            await self._run(self._disk.force, path)
        self.done += len(data)
        self._loaded.sealed.append(Sealed(number, len(data) if ended else at))
        await self._breathe(0)

    def _judge(self, path: Path, fault: Fault) -> None:
        if fault.damage:
            raise StoreDamaged(
                path,
                f"is damaged at byte {fault.at}: what was written there cannot be read, although "
                "it had been saved; " + _ADVICE,
            )
        if fault.lost:
            log.warn(
                "{path}: the last {lost} bytes, from {at} on, were not saved completely when the "
                "process or the machine ended, and are left out",
                path=str(path),
                lost=fault.lost,
                at=fault.at,
            )

    def _apply(self, record: Record, path: Path) -> None:
        memory, document = self._memory, record.document
        kind = record.kind
        if kind <= Kind.TOMBSTONE:
            self._note(record)
            if memory.load(record.key, document, self._now()) is not None:
                self._load_above_limit(record.key, document)
        elif kind == Kind.REMOVE:
            self._note(record)
            memory.load(record.key, None, 0.0)
        elif kind == Kind.FLUSH:
            memory.table.discard_all()
        elif kind == Kind.DROP:
            assert isinstance(record.key, tuple)
            memory.table.drop_collection(record.key[0], document.seqno)
        elif kind == Kind.STATE:
            self._loaded.state = _state_of(document)
        elif kind == Kind.CLEANED:
            self._cleaned = max(self._cleaned, document.seqno)
        elif kind != Kind.SYNCED:
            raise StoreDamaged(
                path,
                f"has a record of kind {kind}, which this version does not know: start a version "
                "that is at least as new as the one that wrote it",
            )

    def _load_above_limit(self, key: Key, document: Document) -> None:
        """Take over what there is no room for: the limit is smaller than it was.

        Where nothing may be evicted everything stays, as when the limit becomes smaller while the
        service runs; what is larger than all of it goes where something may be.
        """
        memory, table = self._memory, self._memory.table
        if table.evict:
            memory.load(key, None, 0.0)
            self._loaded.evicted.append(key)
        else:
            limit, table.limit = table.limit, sys.maxsize
            memory.load(key, document, self._now())
            table.limit = limit

    def _note(self, record: Record) -> None:
        document = record.document
        self._seqno = max(self._seqno, document.seqno)
        if record.newest:
            self._cas = max(self._cas, document.cas)

    async def _breathe(self, at: int) -> None:
        """Let others have the event loop, and say how far it is now and then."""
        self._at = at
        now = self._clock.seconds()
        if now >= self._logged + _LOG_EVERY_S:
            self._logged = now
            log.info(
                "loading {directory}: {percent} %",
                directory=str(self._directory),
                percent=self.percent(),
            )
        await deferLater(self._clock, 0)

    def percent(self) -> int:
        """Return how much has been read."""
        return 100 * (self.done + self._at) // max(1, self.total)


_ADVICE = "nothing is served from it: restore a backup into an empty directory"
_WRONG_BEGINNING = "is damaged: it does not begin as the file of this name should; " + _ADVICE


def _state_of(document: Document) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(document.value)
    return state
