"""The real disk's files."""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from kvproto.store.file.disk import Disk

SIZE = (1 << 20) + 12_345
"""More than what is written at once."""


class DiskTests(SynchronousTestCase):
    """What `Disk` does to files."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.descriptor = Disk().prepare(self.path, SIZE)
        self.addCleanup(os.close, self.descriptor)

    def test_prepared(self) -> None:
        """A prepared file is all zeros, has all its blocks, and is the owner's alone."""
        found = os.fstat(self.descriptor)
        self.assertEqual(self.path.read_bytes(), bytes(SIZE))
        self.assertGreaterEqual(found.st_blocks * 512, SIZE)
        self.assertEqual(stat.S_IMODE(found.st_mode), 0o600)
        self.assertFalse(os.get_inheritable(self.descriptor))
        self.assertEqual(os.pwrite(self.descriptor, b"record", 0), 6)

    def test_small_pieces(self) -> None:
        """A byte that is changed through a mapping makes the disk write some pages, not all."""
        counts = Path("/proc/self/io")
        if not counts.exists():
            raise SkipTest("needs Linux")

        def written() -> int:
            found = re.search(r"write_bytes: (\d+)", counts.read_text())
            assert found is not None
            return int(found[1])

        with mmap.mmap(self.descriptor, SIZE) as mapped:
            before = written()
            mapped[SIZE // 2] = 1
            os.fdatasync(self.descriptor)
            self.assertLessEqual(written() - before, 64 << 10)

    def test_what_was_there_is_gone(self) -> None:
        """A file that is prepared again has nothing of what was in it."""
        os.pwrite(self.descriptor, b"record", SIZE)
        os.close(Disk().prepare(self.path, 100))
        self.assertEqual(self.path.read_bytes(), bytes(100))

    def test_no_room(self) -> None:
        """Without room for all of it there is no file, and no descriptor is left open."""

        def refuse(descriptor: int, data: bytes, at: int) -> int:
            opened.append(descriptor)
            raise OSError(28, "No space left on device")

        opened: list[int] = []
        self.patch(os, "pwrite", refuse)
        other = self.path.with_name("other")
        self.assertRaises(OSError, Disk().prepare, other, SIZE)
        self.assertFalse(other.exists())
        self.assertRaises(OSError, os.fstat, opened[0])

    def test_ended_files_keep_what_was_written(self) -> None:
        """What is behind the end of one is given back; the one written to stays whole."""
        ended = os.open(self.path.with_name("ended"), os.O_RDWR | os.O_CREAT, 0o600)
        self.addCleanup(os.close, ended)
        os.pwrite(ended, b"0123456789", 0)
        directory = os.open(self.path.parent, os.O_RDONLY)
        self.addCleanup(os.close, directory)
        for named in (None, directory):
            Disk().sync([(ended, 4)], self.descriptor, named)
        self.assertEqual(os.pread(ended, 100, 0), b"0123")
        self.assertEqual(os.fstat(self.descriptor).st_size, SIZE)

    def test_forced(self) -> None:
        """Whatever is promised is forced to the disk after it was written, names last."""
        forced: list[tuple[str, int, int]] = []

        def spy(name: str) -> Callable[[int], None]:
            real = getattr(os, name)

            def force(descriptor: int) -> None:
                forced.append((name, descriptor, os.fstat(descriptor).st_size))
                real(descriptor)

            return force

        for name in ("fsync", "fdatasync"):
            self.patch(os, name, spy(name))
        ended = Disk().prepare(self.path.with_name("ended"), 7)
        self.addCleanup(os.close, ended)
        directory = os.open(self.path.parent, os.O_RDONLY)
        self.addCleanup(os.close, directory)
        self.assertEqual(forced, [("fsync", ended, 7)])
        forced.clear()
        Disk().sync([(ended, 4)], self.descriptor, directory)
        self.assertEqual(
            [(name, descriptor) for name, descriptor, _ in forced],
            [("fdatasync", ended), ("fdatasync", self.descriptor), ("fsync", directory)],
        )
        forced.clear()
        Disk().seal(self.path, 4, b"END")
        self.assertEqual(
            [(name, size) for name, _, size in forced], [("fsync", SIZE), ("fsync", 7)]
        )
        forced.clear()
        Disk().force(self.path)
        self.assertEqual([(name, size) for name, _, size in forced], [("fsync", 7)])
        self.assertRaises(OSError, os.fstat, forced[0][1])

    def test_sealed(self) -> None:
        """What is behind the place goes, and the end is written there."""
        os.pwrite(self.descriptor, b"0123456789", 0)
        Disk().seal(self.path, 4, b"END")
        self.assertEqual(Disk().read(self.path), b"0123END")

    def test_removed(self) -> None:
        """Removing one that is gone already is no error."""
        for _ in range(2):
            Disk().remove(self.path)
            self.assertFalse(self.path.exists())
