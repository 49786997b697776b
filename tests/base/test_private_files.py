"""What is one user's own, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.private_files import directory_fault, reader_fault, replace_file


class DirectoryTests(SynchronousTestCase):
    """Directories that keys are kept in."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.mkdir(0o700)

    def test_own(self) -> None:
        """What nobody else may write in is good, whoever may look at it."""
        for mode in (0o700, 0o750, 0o755, 0o711):
            self.path.chmod(mode)
            self.assertEqual(directory_fault(self.path, linked=False), "")

    def test_writable(self) -> None:
        """Where others may write they may replace a key; the sticky bit changes nothing."""
        for mode in (0o770, 0o720, 0o702, 0o1777):
            self.path.chmod(mode)
            self.assertIn("chmod go-w", directory_fault(self.path), oct(mode))

    def test_link(self) -> None:
        """A link is followed where the operator named it, and nowhere else."""
        link = Path(self.mktemp())
        link.symlink_to(self.path.resolve())
        self.assertEqual(directory_fault(link), "")
        self.assertIn("symbolic link", directory_fault(link, linked=False))
        self.path.chmod(0o777)
        self.assertIn("may write", directory_fault(link))

    def test_no_directory(self) -> None:
        """A file is none."""
        file = self.path / "file"
        file.touch()
        self.assertEqual(directory_fault(file), "is no directory")

    def test_somebody_elses(self) -> None:
        """A directory of another user is named with that user's name and number."""
        owner = self.path.stat().st_uid
        self.patch(os, "geteuid", lambda: owner + 4_000_000)
        fault = directory_fault(self.path)
        self.assertIn(f"uid {owner}), who could replace what uid {owner + 4_000_000} keeps", fault)


class ReaderTests(SynchronousTestCase):
    """Files that hold secrets."""

    def test_modes(self) -> None:
        """Its owner, and a group that it is shared with, may read it."""
        path = Path(self.mktemp())
        path.touch()
        for mode in (0o400, 0o600, 0o640, 0o440):
            path.chmod(mode)
            self.assertEqual(reader_fault(path), "", oct(mode))
        for mode, what in ((0o644, "read"), (0o604, "read"), (0o660, "write"), (0o602, "write")):
            path.chmod(mode)
            self.assertIn(f"may {what} it (mode {mode:04o}): chmod 600", reader_fault(path))

    def test_absent(self) -> None:
        """A file that is not there is no secret."""
        self.assertEqual(reader_fault(Path("/nonexistent/file")), "")


class ReplaceTests(SynchronousTestCase):
    """A file in the place of another."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "file"

    def test_new_and_again(self) -> None:
        """It is there with its mode, whatever the old one's was, and nothing is left beside it."""
        (self.directory / f".file.{os.getpid()}").write_bytes(b"left by one that was killed")
        for content, mode in ((b"one", 0o600), (b"two", 0o644), (b"", 0o600)):
            replace_file(self.path, content, mode)
            self.assertEqual(self.path.read_bytes(), content)
            self.assertEqual(self.path.stat().st_mode & 0o777, mode)
            self.assertEqual(os.listdir(self.directory), ["file"])

    def test_cannot_be(self) -> None:
        """Where it cannot take the place, what is there stays, and nothing is left beside it."""
        self.path.mkdir()
        self.assertRaises(IsADirectoryError, replace_file, self.path, b"one")
        self.assertEqual(os.listdir(self.directory), ["file"])
