"""Reading a file that somebody has named."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.regular_file import read_regular_file


class RegularFileTests(SynchronousTestCase):
    """What is read, and what is refused at once."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def refused(self, path: Path) -> str:
        before = set(os.listdir("/dev/fd"))
        with self.assertRaises(OSError) as raised:
            read_regular_file(path, 2048)
        self.assertEqual(set(os.listdir("/dev/fd")), before)
        return str(raised.exception.strerror)

    def test_whole(self) -> None:
        """It is read whole, through a link too, and its mode comes with it."""
        self.path.write_bytes(b"x" * 2048)
        self.path.chmod(0o640)
        link = self.path.with_name("link")
        link.symlink_to(self.path.resolve())
        for path in (self.path, link):
            content, mode = read_regular_file(path, 2048)
            self.assertEqual((content, stat.S_IMODE(mode)), (b"x" * 2048, 0o640))

    def test_too_large(self) -> None:
        """A byte more than the limit is too many."""
        self.path.write_bytes(b"x" * 2049)
        self.assertEqual(self.refused(self.path), "it is larger than 2 KiB")

    def test_no_regular_file(self) -> None:
        """What may have no end, or nobody who writes it, is not waited for."""
        self.assertEqual(self.refused(self.path), "No such file or directory")
        self.path.mkdir()
        self.assertEqual(self.refused(self.path), "it is a directory")
        pipe = self.path / "pipe"
        os.mkfifo(pipe)
        for path in (pipe, Path("/dev/zero")):
            self.assertEqual(self.refused(path), "it is not a regular file")
