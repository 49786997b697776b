"""`Journal`: the log of changes, its segments, and when they are forced to the disk.

See `kvproto.store.file` for the theory.  Rules that a change must keep:

* What has been appended is in the kernel when the method returns.
* Appending never fails and never waits: who wants to append asks `has_room` first.  Records that
  the journal itself needs have a reserve.
* A segment is begun only when two spare ones are ready, so that cleaning, which gives room
  back, always has one left, on a full disk too.
* A segment is removed only when what was copied out of it is on the disk.
* Only one job of each kind (prepare, sync, clean) is under way.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.config import Sync
from kvproto.errors import StoreUnavailable
from kvproto.store.document import Document, Key
from kvproto.store.file.disk import Disk
from kvproto.store.file.records import (
    ALIGNMENT,
    Kind,
    body_of,
    decode,
    encode,
    size_of,
)
from kvproto.store.file.segments import (
    END_SIZE,
    Header,
    boot_id,
    end_record,
    first_record,
    seed_of,
    segment_name,
)
from kvproto.store.file.tail import Tail

__all__ = ["SEGMENT_SIZE", "Journal", "Numbers"]

log = make_logger()

Run = Callable[..., Any]

SEGMENT_SIZE = 8 << 20
SMALLEST_SEGMENT = 256 << 10

SPARES = 2

RESERVE = 64 << 10
"""Bytes at the end of a segment that are kept for removals and for records of the journal's own."""

_FOR_CLEANING = 1 << 9
"""Bytes of the reserve for records that something was cleaned: only that gives room back."""

SYNC_EVERY_S = 1.0

RETRY_S = 1.0
"""Seconds after which a disk that had no room is asked again."""

TOGETHER_S = 0.001
"""Seconds that a few who wait for the disk wait for others who are likely to join them."""

_COMPANY = 4
"""How many are few.  More share the cost of a sync well enough as they come."""

_LONGEST_DOUBT = 256
"""Syncs after which it is tried again whether such a wait is worth it."""

FLOOR = 48 << 20
"""Bytes that the log may always have."""

GROWTH = 2.5
"""How many times as large as what is alive the log may be."""

_REWRITE_BELOW = 4
"""When less than this part of the log is alive, what is alive is written anew: that costs less
than looking for it."""

_CLEANED_AT_ONCE = 100
"""Records that are looked at without a pause, a fraction of a millisecond."""

_BYTES_AT_ONCE = 256 << 10
"""Bytes of them; whichever comes first."""

_NOTHING = Document(b"")


@dataclass(slots=True)
class Numbers:
    """What the journal has to know of its store.

    Attributes:
        uuid: Name of its history.
        cas: The last CAS.
        seqno: The last sequence number.
    """

    uuid: int
    cas: int
    seqno: int


@dataclass(slots=True)
class _Segment:
    """A file that is mapped, or was."""

    path: Path
    size: int
    descriptor: int
    map: mmap.mmap
    number: int = 0


@dataclass(slots=True)
class Sealed:
    """A segment that nothing is added to."""

    number: int
    size: int


class Journal(Tail):
    """The log in one directory.

    Args:
        directory: Where its segments are; it is there.
        sync: When they are forced to the disk.
        clock: For pauses and waits.
        run: Runs a function in a thread, as `kvproto.dataplane.stores.Run`; None for at once.
        disk: What is run.
        segment_size: Bytes of a segment, unless the disk has no room for that, or one record is
            larger.
        run_sync: Runs what forces records to the disk; `run` does when None.

    Attributes:
        numbers: Returns what the store has now.
        find: Returns what the store has under a key, a tombstone included, for cleaning.
        documents: Returns all that the store has, in pieces.
        live_size: Returns about how many bytes of records everything that is alive would take.
        state: What goes into each segment's STATE record.
        sealed: The segments before the one that is written to, the oldest first.
        fault: Why nothing can be appended, for people; "" when it can.
        persisted: Sequence number up to which everything is on the disk.
    """

    def __init__(
        self,
        directory: Path,
        sync: Sync,
        clock: IReactorTime,
        run: Run | None = None,
        disk: Disk | None = None,
        segment_size: int = SEGMENT_SIZE,
        run_sync: Run | None = None,
    ) -> None:
        self._directory = directory
        self._policy = sync
        self._clock = clock
        self._run = run
        self._run_sync = self._in_thread if run_sync is None else run_sync
        self._disk = Disk() if disk is None else disk
        self._boot = boot_id()
        self.numbers: Callable[[], Numbers] = lambda: Numbers(0, 0, 0)
        self.find: Callable[[Key], Document | None] = lambda key: None
        self.documents: Callable[[], Iterable[list[tuple[Key, Document]]]] = tuple
        self.live_size: Callable[[], int] = lambda: 0
        self.state: dict[str, Any] = {}
        self.sealed: deque[Sealed] = deque()
        self.fault = ""
        self._fault_lasts = False
        self.persisted = 0
        self.running = False
        self._segment_size = segment_size
        self._spares: deque[_Segment] = deque()
        self._spare_names = 0
        self._preparing: Deferred[None] | None = None
        self._retry: IDelayedCall | None = None
        self._wanted = 0
        self._refused = 0  # that large a document has found no room, and the log was told
        self._waiting: deque[Deferred[None]] = deque()
        self._active: _Segment | None = None
        self._map: mmap.mmap | None = None
        self.at = 0
        self.limit = 0
        self._seed = 0
        self._log_size = 0
        self._most: int | None = None
        self._owed: list[tuple[Kind, Key, Document]] = []
        self._directory_descriptor = -1
        self.appended = 0
        self._synced = 0
        self._syncing: Deferred[None] | None = None
        self._unsynced: list[_Segment] = []
        self._renamed = False
        self._sync_waiters: list[tuple[int, Deferred[None]]] = []
        self._next_sync: IDelayedCall | None = None
        self._commit: IDelayedCall | None = None
        self._joining = False  # whether the commit waits for others
        self._expected = 0  # that many may wait again, 0 where nobody came late
        self._doubt = self._hurried = 0
        self._cleaning: Deferred[None] | None = None
        self._pause: Deferred[None] | None = None

    # -- beginning and ending -------------------------------------------------

    def start(self, sealed: list[Sealed], next_number: int) -> Deferred[None]:
        """Begin a new segment behind those that are there.

        Returns:
            A Deferred that fires when something can be appended; it fails with OSError when the
            disk has no room for the smallest segments.
        """
        self.running = True
        self.sealed.extend(sealed)
        self._log_size = sum(segment.size for segment in sealed)
        self._next_number = next_number
        self._directory_descriptor = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        try:
            await self._prepare_first()
            self._roll()
        except OSError:
            if not self.sealed:
                raise
            # What is there can be read.
            self._not_prepared(Failure())
        if self._policy is Sync.EVERY_SECOND:
            self._sync_later()

    async def _prepare_first(self) -> None:
        """Prepare as many segments as are needed, smaller ones where the disk is small."""
        while len(self._spares) <= SPARES:
            try:
                await self._prepare_one(self._segment_size)
            except OSError:
                if self._segment_size <= SMALLEST_SEGMENT:
                    raise
                self._segment_size //= 2
                for spare in self._spares:
                    self._close(spare)
                    await self._in_thread(self._disk.remove, spare.path)
                self._spares.clear()

    async def stop(self) -> None:
        """Force everything to the disk and let go of all files."""
        if not self.running:
            return
        self.running = False
        self.limit = 0
        for call in (self._next_sync, self._retry, self._commit):
            if call is not None and call.active():
                call.cancel()
        self._commit = None
        if self._pause is not None:
            self._pause.cancel()
        waiters, self._waiting = self._waiting, deque()
        for waiter in waiters:
            waiter.errback(StoreUnavailable("the store is closed"))
        for job in (self._cleaning, self._preparing, self._syncing):
            if job is not None:
                await _end_of(job)
        try:
            if not self._fault_lasts:
                await self.synced()
        except StoreUnavailable as error:
            log.warn("not everything could be saved at the end: {reason}", reason=str(error))
        if self._active is not None:
            path, at = self._active.path, self.at
            end = end_record(self._active.number)
            self._close(self._active)
            self._active = self._map = None
            try:
                await self._in_thread(self._disk.seal, path, at, end)
            except OSError as error:
                log.warn(
                    "{path} could not be closed: {reason}", path=str(path), reason=error.strerror
                )
        for spare in self._spares:
            self._close(spare)
            with contextlib.suppress(OSError):  # the next start tries again
                await self._in_thread(self._disk.remove, spare.path)
        self._spares.clear()
        for segment in self._unsynced:
            os.close(segment.descriptor)
        self._unsynced.clear()
        os.close(self._directory_descriptor)

    @staticmethod
    def _close(segment: _Segment) -> None:
        segment.map.close()
        os.close(segment.descriptor)

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        if self._run is None:
            return maybeDeferred(function, *args)
        running: Deferred[Any] = self._run(function, *args)
        return running

    # -- room -----------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Return whether records of so many bytes can be appended now.

        The next segment is begun here when they need it, since what has happened in memory must
        not fail to be appended.
        """
        if self._active is None or self._fault_lasts:
            return False
        # More than once where cleaning, which beginning a segment may start, fills that one.
        while self.at + size > self.limit:
            fits = any(self._fits(spare, size) for spare in self._spares)
            if len(self._spares) < SPARES or not fits:
                return False
            try:
                self._roll(size)
            except OSError:
                self._not_prepared(Failure())
                return False
        return True

    def _fits(self, spare: _Segment, size: int) -> bool:
        return size <= spare.size - RESERVE - 4096

    def wait_for_room(self, size: int) -> Deferred[None]:
        """Return a Deferred that fires when it is worth asking `has_room` again.

        Raises:
            StoreUnavailable: There is none, and it cannot be said when.
        """
        if self.fault or not self.running:
            raise StoreUnavailable(self.fault or "the store is closed")
        self._wanted = max(self._wanted, size)
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        self._prepare()
        return waiting

    def _prepare(self) -> None:
        """See to it that there are spare segments."""
        if self._preparing is not None or self._retry is not None or not self.running:
            return
        if self._active is None and len(self._spares) > SPARES:
            try:
                self._roll()
            except OSError:
                self._not_prepared(Failure())
            return
        fits = not self._wanted or any(self._fits(spare, self._wanted) for spare in self._spares)
        if len(self._spares) >= SPARES and fits and self._active is not None:
            if self._wanted >= self._refused:
                self._refused = 0
            self._wanted = 0
            self._let_in()
            return
        size = self._segment_size
        if not fits:
            size = max(size, self._wanted + RESERVE + 4096)
        self._preparing = self._prepare_one(size)
        self._preparing.addCallbacks(self._prepared, self._not_prepared)

    def _prepare_one(self, size: int) -> Deferred[None]:
        size += -size % mmap.PAGESIZE
        self._spare_names += 1
        path = self._directory / f"spare-{self._spare_names}"

        def ready(descriptor: int) -> None:
            mapped = mmap.mmap(descriptor, size)
            self._spares.append(_Segment(path, size, descriptor, mapped))

        return self._in_thread(self._disk.prepare, path, size).addCallback(ready)

    def _prepared(self, _: None) -> None:
        self._preparing = None
        if self.fault and not self._fault_lasts:
            log.info("{directory}: there is room again", directory=str(self._directory))
            self.fault = ""
        self._prepare()

    def _not_prepared(self, failure: Failure) -> None:
        self._preparing = None
        if not failure.check(OSError):
            log.failure(
                "{directory}: no file could be prepared",
                failure=failure,
                directory=str(self._directory),
            )
        reason = getattr(failure.value, "strerror", None) or failure.getErrorMessage()
        fault = f"{self._directory}: {reason}"
        wanted, self._wanted = self._wanted, 0
        # All but a document that is larger than a segment have what they need.
        only_large = self._active is not None and len(self._spares) >= SPARES
        if only_large:
            if not self._refused:
                self._refused, self._most = wanted, self.size
                log.warn(
                    "{fault}: no room for a document of {size} bytes", fault=fault, size=wanted
                )
        elif not self.fault:
            self.fault, self._most = fault, self.size
            log.warn("{fault}: writes are refused until there is room", fault=fault)
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            waiter.errback(StoreUnavailable(fault))
        if self.running:
            if not only_large:
                self._retry = self._clock.callLater(RETRY_S, self._prepare_again)
            self._clean()

    def _prepare_again(self) -> None:
        self._retry = None
        self._prepare()

    def _let_in(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            waiter.callback(None)

    # -- appending ------------------------------------------------------------

    def remove(self, key: Key, cas: int, seqno: int) -> None:
        """Append that there is nothing under a key."""
        self._append_own(Kind.REMOVE, key, Document(b"", cas=cas, seqno=seqno))

    def flush(self) -> None:
        """Append that everything before is gone."""
        self._append_own(Kind.FLUSH, b"", _NOTHING)

    def drop(self, collection: int, seqno: int) -> None:
        """Append that a collection's documents up to a sequence number are gone."""
        self._append_own(Kind.DROP, (collection, b""), Document(b"", seqno=seqno))

    def save_state(self) -> None:
        """Append `state`, which has changed."""
        value = json.dumps(self.state, sort_keys=True).encode()
        self._append_own(Kind.STATE, b"", Document(value))

    def has_reserve(self, key: Key) -> bool:
        """Return whether a removal can be appended, into the reserve if need be."""
        if self._active is None or self._fault_lasts:
            return False
        return self.at + size_of(key, _NOTHING) + 1024 <= self.limit + RESERVE or self.has_room(
            1024
        )

    def _append_own(self, kind: Kind, key: Key, document: Document) -> None:
        """Append a record that may use the reserve.

        When even that is used up, it comes first in the next segment.
        """
        body = body_of(kind, key, document)
        if self._active is None:
            self._owed.append((kind, key, document))
            return
        if self.at + 4 + len(body) + ALIGNMENT + END_SIZE + _FOR_CLEANING > self._active.size:
            try:
                if self._spares:
                    self._roll()
            except OSError:
                self._not_prepared(Failure())
            kept = 0 if kind == Kind.CLEANED else _FOR_CLEANING
            if self.at + 4 + len(body) + ALIGNMENT + END_SIZE + kept > self._active.size:
                self._owed.append((kind, key, document))
                return
        self._write(encode(body, self._seed))
        self.appended += 1

    def _write(self, record: bytes) -> None:
        assert self._active is not None
        self._active.map[self.at : self.at + len(record)] = record
        self.at += len(record)

    def _roll(self, size: int = 0) -> None:
        """End the segment that is written to and begin the next one.

        Raises:
            OSError: The next one could not be given its name; nothing has changed but that there
                is a spare one less.
        """
        for spare in self._spares:
            if self._fits(spare, size):
                break
        else:
            raise AssertionError("who appends asks for room before")
        self._spares.remove(spare)
        path = self._directory / segment_name(self._next_number)
        try:
            spare.path.rename(path)
        except OSError:
            self._close(spare)
            self._in_thread(self._disk.remove, spare.path).addErrback(lambda _: None)
            raise
        spare.path = path
        self._renamed = True
        old = self._active
        if old is not None:
            self._write(end_record(old.number))
            old.map.close()
            old.size = self.at
            self.sealed.append(Sealed(old.number, old.size))
            self._log_size += old.size
            self._unsynced.append(old)
            if self._most is not None and self.size > self._most + 2 * SPARES * old.size:
                self._most = None  # the disk has become larger
        spare.number = self._next_number
        self._next_number += 1
        self._active = spare
        self._map = spare.map
        self._seed = seed_of(spare.number)
        self.limit = spare.size - RESERVE
        numbers = self.numbers()
        header = Header(spare.number, numbers.uuid, numbers.cas, numbers.seqno, self._boot)
        encoded = header.encode()
        spare.map[: len(encoded)] = encoded
        self.at = first_record()
        state = Document(json.dumps(self.state, sort_keys=True).encode(), cas=spare.size)
        self._write(encode(body_of(Kind.STATE, b"", state), self._seed))
        owed, self._owed = self._owed, []
        for kind, key, document in owed:
            self._append_own(kind, key, document)
        if self.running:
            self._prepare()
            self._clean()
        if self._unsynced and self._syncing is None and not self._fault_lasts:
            self._sync()

    # -- the disk -------------------------------------------------------------

    def synced(self) -> Deferred[None]:
        """Return a Deferred that fires when everything appended so far is on the disk.

        All that is asked for in one turn of the reactor is forced to the disk together, at its end,
        or when what is being forced there now has arrived; see `_plan_sync`.

        It fails with `StoreUnavailable` when the disk has refused that: then nothing is known of
        what was appended last, and nothing more is.
        """
        if self._fault_lasts:
            return _failed(self.fault)
        if self.appended == self._synced:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._sync_waiters.append((self.appended, waiting))
        if self._syncing is None:
            if self.running:
                self._plan_sync()
            else:
                self._sync()
        return waiting

    def _plan_sync(self) -> None:
        """Sync at the end of this turn, or, where others are expected, when they have come.

        Who was answered just now is likely to write again at once.  Two clients whose writes
        come while those of the other are on their way to the disk would go on like that, with
        a sync for each; one that waits for the other makes it one sync for both, and that
        takes less time than two.  The wait is short; one in vain is not tried again soon.
        """
        complete = len(self._sync_waiters) >= self._expected
        if self._commit is None:
            self._joining = not complete and self._waits_for_others()
            self._commit = self._clock.callLater(self._joining * TOGETHER_S, self._end_turn)
        elif complete and self._joining:
            self._joining = False
            self._doubt //= 2
            self._commit.cancel()
            self._commit = None
            self._sync()

    def _waits_for_others(self) -> bool:
        """Return whether those who were answered just now are waited for."""
        if self._expected > _COMPANY:
            return False
        if self._hurried:
            self._hurried -= 1
            return False
        return True

    def _end_turn(self) -> None:
        self._commit = None
        in_vain, self._joining = self._joining, False
        if self._syncing is not None or not self._sync_waiters:
            return
        if in_vain:
            self._doubt = min(2 * self._doubt + 2, _LONGEST_DOUBT)
            self._hurried = self._doubt
        self._sync()

    def _sync(self) -> None:
        assert self._active is not None
        appended, offset, number = self.appended, self.at, self._active.number
        seqno = self.numbers().seqno
        before, self._unsynced = self._unsynced, []
        ended = [(segment.descriptor, segment.size) for segment in before]
        directory = self._directory_descriptor if self._renamed else None
        self._renamed = False

        def done(_: None) -> None:
            self._syncing = None
            for segment in before:
                os.close(segment.descriptor)
            self._synced = appended
            self.persisted = max(self.persisted, seqno)
            self._mark_synced(number, offset)
            self._after_sync()

        def failed(failure: Failure) -> None:
            self._syncing = None
            for segment in before:
                os.close(segment.descriptor)
            self._fault_lasts = True
            self.fault = f"sync of {self._directory}: {failure.getErrorMessage()}"
            log.error(
                "{fault}: nothing is known of what was written last, so nothing more is written "
                "until the service is started again",
                fault=self.fault,
            )
            self.limit = 0  # for those who look at nothing else
            waiters, self._sync_waiters = self._sync_waiters, []
            for _, waiter in waiters:
                waiter.errback(StoreUnavailable(self.fault))

        self._syncing = syncing = self._run_sync(
            self._disk.sync, ended, self._active.descriptor, directory
        )
        syncing.addCallbacks(done, failed)

    def _mark_synced(self, number: int, offset: int) -> None:
        """Append what was on the disk; it tells damage from what was never saved."""
        if self._active is None:
            return
        body = body_of(Kind.SYNCED, b"", Document(b"", cas=offset, seqno=number))
        if self.at + 4 + len(body) + ALIGNMENT + END_SIZE <= self.limit:
            self._write(encode(body, self._seed))

    def _after_sync(self) -> None:
        ready = [waiter for target, waiter in self._sync_waiters if target <= self._synced]
        self._sync_waiters = [item for item in self._sync_waiters if item[0] > self._synced]
        if self._sync_waiters:
            self._expected = len(ready) + len(self._sync_waiters)
        elif len(ready) < self._expected:
            self._expected = 0
        if self._sync_waiters and self._commit is None:
            if ready and self.running and self._waits_for_others():
                self._joining = True
                self._commit = self._clock.callLater(TOGETHER_S, self._end_turn)
            else:
                self._sync()
        for waiter in ready:
            waiter.callback(None)

    def _sync_later(self) -> None:
        self._next_sync = self._clock.callLater(SYNC_EVERY_S, self._sync_now)

    def _sync_now(self) -> None:
        if self.appended != self._synced and self._syncing is None and not self._fault_lasts:
            self._sync()
        self._sync_later()

    # -- cleaning -------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of all segments, the spare ones left out."""
        return self._log_size + (self._active.size if self._active else 0)

    def _too_large(self) -> bool:
        if not self.sealed or not self.running or self._fault_lasts:
            return False
        live = self.live_size()
        allowed = max(FLOOR, int(live * GROWTH))
        if self._most is not None:
            # With so much the disk was full.
            allowed = min(allowed, self._most - SPARES * self._segment_size)
            allowed = max(allowed, int(live * 1.1) + SPARES * self._segment_size)
        return self.size > allowed or len(self.sealed) > 64 + 2 * allowed // SEGMENT_SIZE

    def _clean(self) -> None:
        """Begin to clean if there is too much."""
        if self._cleaning is None and self._too_large():
            # Set before anything runs: cleaning appends, and appending may lead here.
            self._cleaning = Deferred()
            job = Deferred.fromCoroutine(self._clean_all())
            job.addErrback(self._cannot_clean).addCallback(self._cleaned)

    def _cannot_clean(self, failure: Failure) -> None:
        if failure.check(OSError):
            log.warn(
                "{directory} cannot be cleaned and grows: {reason}",
                directory=str(self._directory),
                reason=failure.getErrorMessage(),
            )
        elif not failure.check(StoreUnavailable):
            log.failure(
                "{directory} cannot be cleaned and grows",
                failure=failure,
                directory=str(self._directory),
            )

    def _cleaned(self, _: None) -> None:
        ended, self._cleaning = self._cleaning, None
        assert ended is not None
        ended.callback(None)

    async def _clean_all(self) -> None:
        """Clean until there is not too much, but no segment that was begun meanwhile."""
        last = self.sealed[-1].number
        while self._too_large() and self.sealed[0].number <= last:
            if self.live_size() * _REWRITE_BELOW < self._log_size:
                await self._rewrite(len(self.sealed))
            else:
                await self._clean_oldest()

    async def _rewrite(self, count: int) -> None:
        """Append everything that is alive, and remove all segments that there were before.

        What is removed meanwhile is recorded behind; what is stored, too.
        """
        for piece in self.documents():
            copied = 0
            for key, document in piece:
                copied += await self._copy(key, document)
                if copied > _BYTES_AT_ONCE:
                    copied = 0
                    await self._breathe()
                    if not self.running:
                        return
            await self._breathe()
            if not self.running:
                return
        await self._remove(count)

    async def _remove(self, count: int) -> None:
        """Remove the oldest segments, once what was copied out of them is on the disk."""
        self._append_own(Kind.CLEANED, b"", Document(b"", seqno=self.sealed[count - 1].number))
        if self._owed:
            # Without it these would be found missing.
            raise StoreUnavailable("there is no room to note what is removed")
        await self.synced()
        for _ in range(count):
            oldest = self.sealed[0]
            await self._in_thread(self._disk.remove, self._directory / segment_name(oldest.number))
            self.sealed.popleft()
            self._log_size -= oldest.size
        if self.fault and self._retry is not None:
            self._retry.cancel()
            self._prepare_again()
        await self._breathe()

    async def _clean_oldest(self) -> None:
        """Append again what is alive in the oldest segment, and remove it."""
        oldest = self.sealed[0]
        path = self._directory / segment_name(oldest.number)
        try:
            data = await self._in_thread(self._disk.read, path)
        except OSError as error:
            # Then nothing of it can be; see below.
            log.warn(
                "{path} cannot be read: everything is written anew: {reason}",
                path=str(path),
                reason=error.strerror,
            )
            await self._rewrite(len(self.sealed))
            return
        at, seed = first_record(), seed_of(oldest.number)
        looked_at, breathed_at = 0, at
        while (found := decode(data, at, seed)) is not None:
            record, at = found
            if record.kind == Kind.END:
                break
            if record.kind <= Kind.TOMBSTONE:
                document = self.find(record.key)
                if document is not None and document.cas == record.document.cas:
                    await self._copy(record.key, document)
            looked_at += 1
            if looked_at == _CLEANED_AT_ONCE or at - breathed_at > _BYTES_AT_ONCE:
                looked_at, breathed_at = 0, at
                await self._breathe()
                if not self.running:
                    return
        else:
            # What is behind cannot be read, but all that is alive is in memory.
            log.error(
                "{path} is damaged at byte {at}: everything is written anew",
                path=str(path),
                at=at,
            )
            await self._rewrite(len(self.sealed))
            return
        await self._remove(1)

    async def _copy(self, key: Key, document: Document) -> int:
        """Append a document again, into the last spare segment if need be; return its size."""
        size = size_of(key, document)
        while self.at + size > self.limit and not any(
            self._fits(spare, size) for spare in self._spares
        ):
            await self.wait_for_room(size)
        if self.find(key) is document:
            self.put(key, document, newest=False)
        return size

    async def _breathe(self) -> None:
        """Let others have the event loop."""
        self._pause = deferLater(self._clock, 0)
        self._pause.addErrback(lambda _: None)  # cancelled by `stop`
        await self._pause
        self._pause = None


def _end_of(job: Deferred[None]) -> Deferred[None]:
    """Return a Deferred that fires when another one has, whatever with."""
    ended: Deferred[None] = Deferred()

    def fire(result: Any) -> Any:
        ended.callback(None)
        return result

    job.addBoth(fire)
    return ended


def _failed(reason: str) -> Deferred[None]:
    failed: Deferred[None] = Deferred()
    failed.errback(StoreUnavailable(reason))
    return failed
