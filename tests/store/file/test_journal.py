"""The log on a disk that is full, damaged or lost, and how it stays small."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import StoreUnavailable
from kvproto.store import Document
from kvproto.store.file import journal as journal_module
from kvproto.store.file import loading, segments
from kvproto.store.file.journal import RESERVE, SMALLEST_SEGMENT
from kvproto.store.file.loading import StoreDamaged
from kvproto.store.file.records import ALIGNMENT, Kind, body_of, decode, encode, size_of
from tests.examples import examples
from tests.store.file.support import FileCase

KIB = 1024


class RecordTests(SynchronousTestCase):
    """What is written is what is read."""

    @examples(100)
    @given(
        st.binary(max_size=300),
        st.integers(0, 0xFFFFFFFF),
        st.binary(max_size=2000),
        st.dictionaries(st.text(max_size=16), st.text(max_size=50).map(str.encode)) | st.none(),
        st.tuples(*[st.integers(0, (1 << 63) - 1)] * 2),
        st.integers(0, 0xFFFFFFFF),
        st.booleans(),
    )
    def test_both_ways(
        self,
        name: bytes,
        collection: int,
        value: bytes,
        xattrs: dict[str, bytes] | None,
        numbers: tuple[int, int],
        flags: int,
        newest: bool,
    ) -> None:
        """Any document comes back, takes no more than was said, and needs its own seed."""
        document = Document(value, flags, numbers[0], 1.5, 0.0, numbers[1], 1, 0, xattrs or None)
        document.marks = 5
        key = (collection, name) if collection else name
        data = encode(body_of(Kind.PUT, key, document, newest=newest), 7)
        self.assertEqual(len(data) % 8, 0)
        self.assertLessEqual(len(data), size_of(key, document))
        found = decode(data, 0, 7)
        assert found is not None
        record, end = found
        self.assertEqual((record.key, record.document, record.newest), (key, document, newest))
        self.assertEqual((record.document.marks, end), (5, len(data)))
        self.assertIsNone(decode(data, 0, 8))

    def test_any_damage_is_seen(self) -> None:
        """No record with one wrong byte, or cut short, is read."""
        data = encode(body_of(Kind.PUT, b"key", Document(b"value", 1, 2, 0.0, 0.0, 3)), 7)
        length = int.from_bytes(data[4:8], "little")
        for at in range(length):
            for bit in (1, 128):
                wrong = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
                self.assertIsNone(decode(wrong, 0, 7), at)
        for size in range(length):
            self.assertIsNone(decode(data[:size], 0, 7))

    def test_anything(self) -> None:
        """Arbitrary bytes are read or not, without an exception."""
        rng = random.Random(1)
        for _ in range(2000):
            decode(rng.randbytes(rng.randrange(200)), 0, 0)


class DamageTests(FileCase):
    """A damaged file is named and nothing of it is served; an unfinished one is told of."""

    def setUp(self) -> None:
        super().setUp()
        store = self.open()
        for number in range(20):
            store.set(b"key%d" % number, b"value%d" % number)
        self.kill(store)
        (self.path,) = self.segments()
        self.data = self.path.read_bytes()
        self.used = len(self.data.rstrip(b"\0"))

    def broken(self) -> str:
        """Return why the directory cannot be opened."""
        store = self.make()
        failure = self.failureResultOf(self.opening(store), StoreDamaged)
        self.stores.remove(store)
        return str(failure.value)

    def opening(self, store: Any) -> Deferred[None]:
        opened: Deferred[None] = store.open()
        for _ in range(1000):
            self.clock.advance(0)
        return opened

    def test_any_byte(self) -> None:
        """One wrong byte anywhere in what was saved: refused by name, or the end is left out."""
        last = self.data.rindex(b"key19") - 48
        for at in range(0, last, 7):
            wrong = bytearray(self.data)
            wrong[at] ^= 0x55
            self.path.write_bytes(wrong)
            self.assertIn(str(self.path), self.broken(), at)

    def test_unknown_kind(self) -> None:
        """A sound record that only a newer version knows is never passed over."""
        record = encode(body_of(77, b"key1", Document(b"", cas=1, seqno=1)), segments.seed_of(1))
        end = -(-self.used // ALIGNMENT) * ALIGNMENT
        self.path.write_bytes(self.data[:end] + record + self.data[end + len(record) :])
        self.assertIn(f"{self.path} has a record of kind 77", self.broken())

    def test_the_last_record(self) -> None:
        """A last record that is not whole is left out, everything before it is there."""
        end = self.data.rindex(b"value19") + 7
        for cut in (end - 1, end - 7, end - 40):
            self.path.write_bytes(self.data[:cut] + bytes(len(self.data) - cut))
            store = self.open()
            self.assertIsNone(store.get(b"key19"))
            self.assertIsNotNone(store.get(b"key18"))
            self.kill(store)
            for path in self.segments()[1:]:
                path.unlink()

    def test_other_files(self) -> None:
        """A file under another's name, an empty one, and one that is missing, are refused."""
        self.path.rename(self.directory / segments.segment_name(5))
        self.assertIn("0005.log", self.broken())
        (self.directory / segments.segment_name(5)).rename(self.path)
        self.path.write_bytes(b"not a log" * 100)
        self.assertIn(str(self.path), self.broken())
        self.path.write_bytes(self.data[:20])
        self.assertIn(str(self.path), self.broken())

    def test_missing_between(self) -> None:
        """A segment that is missing between others is named."""
        for _ in range(2):
            store = self.open()
            store.set(b"more", b"")
            self.kill(store)
        missing = self.segments()[1]
        missing.unlink()
        self.assertIn(f"{missing} is missing", self.broken())

    def test_cut_before_the_last(self) -> None:
        """A segment that was ended must be whole, even where nothing follows what it lacks."""
        for _ in range(2):
            store = self.open()
            store.set(b"more", b"")
            self.kill(store)
        path = self.segments()[1]
        data = path.read_bytes()
        at = data.rindex(b"more") - 44
        path.write_bytes(data[:at] + bytes(len(data) - at))
        self.assertIn(f"{path} is damaged at byte {at}: ", self.broken())

    def test_begun_and_not_used(self) -> None:
        """A segment that got its name and nothing else is no damage."""
        self.close(self.open())
        for number in (3, 4):
            path = self.directory / segments.segment_name(number)
            path.write_bytes(bytes(SMALLEST_SEGMENT))
        store = self.open()
        self.assertIsNotNone(store.get(b"key19"))
        # Its number is used again, so that none is missing at the next start.
        store.set(b"more", b"")
        store = self.again(store)
        self.assertIsNotNone(store.get(b"more"))
        self.assertEqual([path.name[14:16] for path in self.segments()], ["01", "02", "03", "04"])
        self.kill(store)
        # Before one that was begun there is no such thing.
        path = self.segments()[1]
        path.write_bytes(bytes(SMALLEST_SEGMENT))
        self.assertIn(f"{path} is damaged", self.broken())

    def test_beginning_of_the_last(self) -> None:
        """The last segment's first page may be lost with a machine, but not what was synced."""
        store = self.open()
        store.set(b"more", b"")
        self.kill(store)
        path = self.segments()[-1]
        lost = bytes(88) + path.read_bytes()[88:]
        path.write_bytes(lost)
        self.assertIn(f"{path} is damaged", self.broken())
        self.patch(loading, "boot_id", lambda: b"another boot")
        store = self.open()
        self.assertIsNotNone(store.get(b"key19"))
        self.assertIsNone(store.get(b"more"))
        store.set(b"more", b"")
        self.clock.advance(1)
        self.kill(store)
        path = self.segments()[-1]
        path.write_bytes(bytes(88) + path.read_bytes()[88:])
        self.assertIn(f"{path} is damaged", self.broken())

    def test_cut_short(self) -> None:
        """The last segment is refused when it is shorter than it was, wherever it ends."""
        used = self.used + -self.used % 8
        for size in (0, 20, 88, 120, used - 16, used, used + 4, 4096, len(self.data) - 4096):
            self.path.write_bytes(self.data[:size])
            self.assertIn(str(self.path), self.broken(), size)
        self.path.write_bytes(self.data)
        self.close(self.open())
        for path in self.segments():
            whole = path.read_bytes()
            for size in (len(whole) - 48, len(whole) - 5, 100, 0):
                path.write_bytes(whole[:size])
                self.assertIn(str(path), self.broken(), size)
            path.write_bytes(whole)
        self.assertIsNotNone(self.open().get(b"key19"))

    def test_first_is_missing(self) -> None:
        """The first segment must be there as long as it was not cleaned."""
        self.kill(self.open())
        self.path.unlink()
        self.assertIn(f"{self.path} is missing", self.broken())

    def test_what_a_killed_process_wrote_is_forced(self) -> None:
        """The segments that it ended may not be on the disk yet when a new one begins."""
        store = self.open()
        while len(self.segments()) < 4:
            store.set(b"more", bytes(20_000))
        self.kill(store)
        ended = self.segments()[:-1]
        store = self.open()
        self.assertEqual(self.disk.forced, ended)
        self.close(store)
        self.disk.forced.clear()
        # After a reboot there is nothing that only the kernel has.
        self.patch(loading, "boot_id", lambda: b"another boot")
        self.open()
        self.assertEqual(self.disk.forced, [])

    def test_power_cut(self) -> None:
        """After a reboot what was not synced may be lost, what was synced may not."""
        self.patch(loading, "boot_id", lambda: b"another boot")
        at = self.data.index(b"key10") - 44
        self.path.write_bytes(self.data[:at] + bytes(64) + self.data[at + 64 :])
        store = self.open()
        self.assertIsNone(store.get(b"key10"))
        self.assertIsNotNone(store.get(b"key9"))
        self.close(store)

    def test_power_cut_after_sync(self) -> None:
        """What a SYNCED record vouches for must be there after a reboot too."""
        store = self.open()
        store.set(b"a", b"1")
        self.clock.advance(1)
        store.set(b"b", b"2")
        self.kill(store)
        self.patch(loading, "boot_id", lambda: b"another boot")
        path = self.segments()[-1]
        data = bytearray(path.read_bytes())
        data[data.index(b"a1")] ^= 1
        path.write_bytes(data)
        self.assertIn(str(path), self.broken())

    def test_records_of_another_file(self) -> None:
        """Records that were written to another segment are none of this one's."""
        number = segments.number_of(self.path.name)
        header = segments.Header.decode(self.data)
        assert number is not None
        assert header is not None
        used = len(header.encode())
        self.path.write_bytes(self.data[:used] + segments.end_record(number))
        other = self.directory / segments.segment_name(number + 1)
        begin = dataclasses.replace(header, number=number + 1).encode()
        other.write_bytes(begin + self.data[len(begin) :])
        self.assertIsNone(self.open().get(b"key0"))


class FullDiskTests(FileCase):
    """Without room writes are refused and reads served; with room again all is well."""

    def fill(self, store: Any) -> int:
        """Write until there is no room; return how many documents were stored."""
        for number in range(100_000):
            try:
                answer = store.set(b"%d" % number, b"x" * 1000)
            except StoreUnavailable:
                return number
            self.assertIsInstance(answer, Document)
        raise AssertionError("the disk has no end")

    def test_full_and_room_again(self) -> None:
        """A full disk refuses writes, serves reads and removals, and recovers by itself."""
        self.disk.room = 6 * SMALLEST_SEGMENT
        store = self.open()
        stored = self.fill(store)
        self.assertGreater(stored, 500)
        self.assertIn("No space", store.status()["fault"])
        self.assertIsNone(store.get(b"%d" % stored))
        self.assertIsNotNone(store.get(b"0"))
        self.assertIsNone(store.ready())
        self.assertRaises(StoreUnavailable, store.append, b"0", b"x" * 70 * KIB)
        self.assertEqual(self.value_in(store, b"0"), b"x" * 1000)
        self.assertIsInstance(store.delete(b"0"), Document)
        self.disk.room += 4 * SMALLEST_SEGMENT
        self.clock.advance(1)
        self.assertEqual(store.status()["fault"], "")
        self.assertIsInstance(store.set(b"new", b"x"), Document)
        store = self.again(store)
        self.assertIsNone(store.get(b"0"))
        self.assertEqual(len(store._memory.table.items), stored)

    def test_cleaning_gives_room_back(self) -> None:
        """On a full disk what was overwritten or removed makes room, without help."""
        self.disk.room = 8 * SMALLEST_SEGMENT
        store = self.open()
        stored = self.fill(store)
        for number in range(0, stored, 2):
            self.assertIsInstance(store.delete(b"%d" % number), Document)
        for _ in range(5000):
            self.clock.advance(0.1)
            if not store.status()["fault"]:
                break
        for number in range(200):
            self.clock.advance(0)
            self.assertIsInstance(store.set(b"new%d" % number, b"y" * 1000), Document)
        store = self.again(store)
        self.assertEqual(len(store._memory.table.items), stored // 2 + 200)

    def test_small_disk_from_the_start(self) -> None:
        """A small disk gets small segments; one that is too small is said to be."""
        self.disk.room = 4 << 20
        store = self.make(segment_size=8 << 20)
        self.pump(store.open())
        self.assertIsInstance(store.set(b"a", b"1"), Document)
        self.close(store)
        self.disk.room = SMALLEST_SEGMENT
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        store = self.make()
        self.failureResultOf(store.open(), OSError)
        self.stores.remove(store)

    def test_name_of_the_directory(self) -> None:
        """It recovers whatever the directory is called."""
        self.directory = Path("sync")
        self.directory.mkdir()
        self.addCleanup(shutil.rmtree, self.directory)
        self.test_full_and_room_again()
        self.close_all()

    def test_no_names(self) -> None:
        """Where a file cannot get its name writes are refused, and nothing of them is served."""
        store = self.open()
        self.disk.room = 0
        kept = self.directory.with_name("kept")
        self.directory.rename(kept)
        stored = self.fill(store)
        self.assertGreater(stored, 100)
        self.assertIn("No such file", store.status()["fault"])
        self.assertIsNone(store.get(b"%d" % stored))
        self.assertIsInstance(store.delete(b"0"), Document)
        kept.rename(self.directory)
        self.disk.room = 1 << 30
        self.clock.advance(1)
        self.assertEqual(store.status()["fault"], "")
        self.assertIsInstance(store.set(b"new", b"x"), Document)
        store = self.again(store)
        self.assertEqual(self.value_in(store, b"new"), b"x")
        self.assertIsNone(store.get(b"0"))
        self.assertEqual(len(store._memory.table.items), stored)

    def test_gone_on_a_full_disk(self) -> None:
        """What had to go while nothing could be written stays gone: that is written first."""
        store = self.open()
        for number in range(50):
            store.set(b"%d" % number, b"v" * 1000)
        self.kill(store)
        self.disk.room = SMALLEST_SEGMENT
        store = self.open(memory_limit=20_000)
        left = set(store._memory.table.items)
        self.assertTrue(0 < len(left) < 50)
        self.assertRaises(StoreUnavailable, store.set, b"0", b"")
        self.disk.room = 10 * SMALLEST_SEGMENT
        self.clock.advance(1)
        self.assertIsInstance(store.set(next(iter(left)), b""), Document)
        for _ in range(2):
            store = self.again(store)
            self.assertEqual(set(store._memory.table.items), left)

    def test_start_on_a_full_disk(self) -> None:
        """What is there is served although nothing can be added; that begins when it can."""
        store = self.open()
        store.set(b"a", b"1")
        self.kill(store)
        self.disk.room = SMALLEST_SEGMENT
        store = self.open()
        self.assertEqual(self.value_in(store, b"a"), b"1")
        self.assertRaises(StoreUnavailable, store.set, b"b", b"")
        self.assertRaises(StoreUnavailable, store.delete, b"a")
        self.assertRaises(StoreUnavailable, store.flush)
        store.collections = {"s.c": 8}
        self.disk.room = 10 * SMALLEST_SEGMENT
        self.clock.advance(1)
        self.assertIsInstance(store.set(b"b", b"2"), Document)
        store = self.again(store)
        self.assertEqual(store.collections, {"s.c": 8})
        self.assertEqual(self.value_in(store, b"b"), b"2")

    def test_large_value(self) -> None:
        """A document larger than a segment gets one of its own."""
        store = self.open()
        value = bytes(range(256)) * 8 * KIB
        answer = store.set(b"large", value)
        self.assertIsInstance(self.pump(answer), Document)
        store = self.again(store)
        self.assertEqual(self.value_in(store, b"large"), value)

    def test_room_for_all_but_a_large_value(self) -> None:
        """A value that the disk is too small for is refused; it is taken once there is room."""
        store = self.open()
        store.set(b"small", b"1")
        room, self.disk.room = self.disk.room, 2 * SMALLEST_SEGMENT
        large = bytes(4 * SMALLEST_SEGMENT)
        with capturedLogs() as captured:
            for _ in range(2):
                answer = store.set(b"large", large)
                self.failureResultOf(answer, StoreUnavailable)
                self.clock.advance(1)
                self.assertIsInstance(store.set(b"small", b"2"), Document)
        (line,) = (formatEvent(event) for event in captured)
        self.assertRegex(line, "No space left on device: no room for a document of [0-9]{7} bytes")
        self.assertEqual(store.status()["fault"], "")
        self.disk.room = room
        self.assertIsInstance(self.pump(store.set(b"large", large)), Document)
        self.disk.room = 0
        with capturedLogs() as captured:
            self.failureResultOf(store.set(b"larger", 2 * large), StoreUnavailable)
        self.assertEqual(len(captured), 1)
        store = self.again(store)
        self.assertEqual(self.value_in(store, b"large"), large)

    def test_waiting_writes_of_a_store_that_closes(self) -> None:
        """A write that waits for room when the store closes is refused."""
        store = self.open()
        store._journal._spares.clear()
        store._journal._preparing = Deferred()
        answer = store.set(b"large", bytes(4 * SMALLEST_SEGMENT))
        self.assertIsInstance(answer, Deferred)
        store._journal._preparing = None
        self.close(store)
        self.failureResultOf(answer, StoreUnavailable)


class CleaningTests(FileCase):
    """The log does not grow for ever, and nothing is lost by that."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(journal_module, "FLOOR", 4 * SMALLEST_SEGMENT)

    def settle(self) -> None:
        for _ in range(300):
            self.clock.advance(0)

    def test_rewrites(self) -> None:
        """Rewriting a small data set for long leaves a small log and the last values."""
        store = self.open()
        for number in range(20_000):
            store.set(b"%d" % (number % 100), b"%d" % number * 100)
            if number % 1000 == 0:
                self.settle()
        self.settle()
        self.assertLess(store._journal.size, 6 * SMALLEST_SEGMENT)
        self.assertLess(len(self.segments()), 7)
        before = dict(store._memory.table.items)
        store = self.again(store)
        self.assertEqual(dict(store._memory.table.items), before)

    def test_large_documents(self) -> None:
        """Not much more than a quarter of a MiB is copied in one turn, in either way to clean."""
        for rewrite_below in (0, 1 << 60):
            self.patch(journal_module, "_REWRITE_BELOW", rewrite_below)
            store = self.open(segment_size=4 << 20)
            for number in range(100):
                store.set(b"%d" % number, b"x" * 50_000)
            copied = [0]
            put = store._journal.put

            def count(
                key: Any,
                document: Any,
                *,
                newest: bool = True,
                put: Any = put,
                copied: Any = copied,
            ) -> None:
                copied[-1] += not newest
                put(key, document, newest=newest)

            def pause(*args: Any, copied: Any = copied) -> Any:
                copied.append(0)
                return deferLater(*args)

            self.patch(store._journal, "put", count)
            self.patch(journal_module, "deferLater", pause)
            for _ in range(400):
                store.set(b"filler", b"y" * 50_000)
                self.clock.advance(0)
            self.close(store)
            self.assertGreater(sum(copied), 50)
            self.assertLess(max(copied), 9)

    def test_cleaning_against_a_model(self) -> None:
        """Whatever is written, removed and cleaned in whatever order, a restart finds it all."""

        @examples(15)
        @given(st.integers(0, 1 << 32))
        def check(seed: int) -> None:
            rng = random.Random(seed)
            self.setUp()
            store = self.open()
            for _ in range(1500):
                key = b"%d" % rng.randrange(300)
                choice = rng.random()
                if choice < 0.8:
                    store.set(key, bytes([rng.randrange(256)]) * rng.randrange(4000))
                elif choice < 0.9:
                    store.delete(key)
                elif choice < 0.95:
                    store.append(key, b"more")
                else:
                    self.clock.advance(0)
            before = dict(store._memory.table.items)
            again = self.again(store)
            self.assertEqual(dict(again._memory.table.items), before)
            self.kill(again)

        check()

    def test_removed_stays_removed(self) -> None:
        """A record of a removal is dropped only when nothing older is left."""
        store = self.open()
        store.set(b"gone", b"1")
        store.set(b"stays", b"2")
        store.delete(b"gone")
        for number in range(8000):
            store.set(b"filler", b"%d" % number * 100)
            if number % 500 == 0:
                self.settle()
        self.assertNotIn(segments.segment_name(1), [path.name for path in self.segments()])
        store = self.again(store)
        self.assertIsNone(store.get(b"gone"))
        self.assertEqual(self.value_in(store, b"stays"), b"2")

    def lose_while_cleaning(self, spoil: Callable[[Path], None]) -> None:
        """Clean a log whose first segment was spoiled; all that is alive must be written anew."""
        self.patch(journal_module, "_REWRITE_BELOW", 1 << 60)
        store = self.open()
        for number in range(1200):
            store.set(b"%d" % number, b"x" * 600)
        first = self.segments()[0]
        spoil(first)
        for number in range(3000):
            store.set(b"filler", b"y" * 600)
            if number % 500 == 0:
                self.settle()
        self.settle()
        self.assertFalse(first.exists())
        before = dict(store._memory.table.items)
        store = self.again(store)
        self.assertEqual(dict(store._memory.table.items), before)

    def test_damage_found_while_cleaning(self) -> None:
        """A segment that cannot be read any more costs nothing: all is written anew."""

        def flip(first: Path) -> None:
            data = bytearray(first.read_bytes())
            data[5000] ^= 1
            first.write_bytes(data)

        self.lose_while_cleaning(flip)

    def test_unreadable_while_cleaning(self) -> None:
        """So does one that the disk does not give back."""
        read = self.disk.read

        def spoil(first: Path) -> None:
            def refuse(path: Path) -> bytes:
                if path == first:
                    raise OSError(5, "Input/output error")
                return read(path)

            self.patch(self.disk, "read", refuse)

        self.lose_while_cleaning(spoil)

    def test_files_that_cannot_be_removed(self) -> None:
        """They stay until they can, writes go on, and one line says so each time."""
        store = self.open()
        remove = self.disk.remove
        failing = True

        def refuse(path: Path) -> None:
            if failing and path.suffix == ".log":
                raise OSError(5, "Input/output error", str(path))
            remove(path)

        self.patch(self.disk, "remove", refuse)
        with capturedLogs() as logged:
            for number in range(3000):
                self.assertIsInstance(store.set(b"%d" % (number % 7), b"x" * 600), Document)
                self.clock.advance(0)
        said = {formatEvent(event) for event in logged}
        self.assertEqual(len(said), 1, said)
        self.assertIn("cannot be cleaned and grows: [Errno 5]", said.pop())
        self.assertIn("0000000000000001.log", [path.name for path in self.segments()])
        failing = False
        for number in range(3000):
            store.set(b"%d" % (number % 7), b"x" * 600)
            self.clock.advance(0)
        self.settle()
        self.assertLess(len(self.segments()), 8)
        before = dict(store._memory.table.items)
        store = self.again(store)
        self.assertEqual(dict(store._memory.table.items), before)

    def test_many_restarts(self) -> None:
        """Many short lives do not leave many files for ever."""
        for number in range(70):
            store = self.open()
            store.set(b"%d" % number, b"x")
            self.settle()
            self.kill(store)
        store = self.open()
        for number in range(2000):
            store.set(b"filler", b"%d" % number * 100)
        self.settle()
        self.assertLess(len(self.segments()), 80)
        self.assertEqual(len(store._memory.table.items), 71)


class OneByOneTests(CleaningTests):
    """The same where segments are cleaned one by one, whatever is alive."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(journal_module, "_REWRITE_BELOW", 1 << 60)


class ReserveTests(FileCase):
    """Removals have room when documents have none."""

    def test_removals_use_the_reserve(self) -> None:
        """Deleting goes on until the reserve is used up; then it is refused, not forgotten."""
        self.disk.room = 4 * SMALLEST_SEGMENT
        store = self.open()
        number = 0
        while True:
            try:
                store.set(b"%d" % number, b"")
            except StoreUnavailable:
                break
            number += 1
        removed = 0
        try:
            for key in range(number):
                store.delete(b"%d" % key)
                removed += 1
        except StoreUnavailable as error:
            self.assertIn("No space left", str(error))
        self.assertLess(removed, number)
        for refused in (store.flush, lambda: store.put_back(b"0", Document(b""))):
            self.assertIn("No space left", str(self.assertRaises(StoreUnavailable, refused)))
        self.assertGreater(removed, RESERVE // 100)
        store = self.again(store)
        self.assertEqual(len(store._memory.table.items), number - removed)
