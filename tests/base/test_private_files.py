"""What is one user's own, and what is not."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.private_files import create_aside, directory_fault, reader_fault, replace_file


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


class AsideTests(SynchronousTestCase):
    """Files that are written beside those that they shall replace."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "file"

    def there(self) -> set[str]:
        return set(os.listdir(self.directory))

    def test_name(self) -> None:
        """It is named after the other one and this process, and is its owner's only."""
        descriptor, aside = create_aside(self.path, 0o600)
        self.addCleanup(os.close, descriptor)
        self.assertEqual(self.there(), {f".file.{os.getpid()}"})
        self.assertEqual(aside.stat().st_mode & 0o777, 0o600)

    def test_left_by_the_dead(self) -> None:
        """What dead processes have left of the same file is removed, this one's number included."""
        for number in (1, 4_000_000, os.getpid()):
            (self.directory / f".file.{number}").write_bytes(b"half")
        descriptor, _ = create_aside(self.path, 0o600)
        self.addCleanup(os.close, descriptor)
        self.assertEqual(self.there(), {f".file.{os.getpid()}"})

    def test_written_by_the_living(self) -> None:
        """What somebody is writing stays, whatever its number; one process writes one."""
        other = self.directory / ".file.1"
        with other.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            descriptor, _ = create_aside(self.path, 0o600)
            self.addCleanup(os.close, descriptor)
            self.assertEqual(self.there(), {".file.1", f".file.{os.getpid()}"})
        self.assertRaises(FileExistsError, create_aside, self.path, 0o600)
        self.assertEqual(self.there(), {f".file.{os.getpid()}"})

    def test_others_files(self) -> None:
        """Nothing else is touched: other names, what is no file, other users' files."""
        names = {".file.", ".file.1x", ".file.12.tmp", ".other.1", "file.1", ".file"}
        for name in names:
            (self.directory / name).touch()
        (self.directory / ".file.2").mkdir()
        (self.directory / ".file.3").symlink_to(".other.1")
        os.mkfifo(self.directory / ".file.4")
        for _ in range(2):
            descriptor, aside = create_aside(self.path, 0o600)
            os.close(descriptor)
            aside.unlink()
            self.assertEqual(self.there(), names | {".file.2", ".file.3", ".file.4"})
        (self.directory / ".file.5").touch()
        owner = self.directory.stat().st_uid
        self.patch(os, "geteuid", lambda: owner + 4_000_000)
        descriptor, aside = create_aside(self.path, 0o600)
        os.close(descriptor)
        self.assertIn(".file.5", self.there())

    def test_without_locks(self) -> None:
        """Where there are no locks, files are written all the same, and none is removed."""

        def flock(file: object, operation: int) -> None:
            raise OSError(95, "Operation not supported")

        self.patch(fcntl, "flock", flock)
        (self.directory / ".file.1").touch()
        descriptor, _ = create_aside(self.path, 0o600)
        self.addCleanup(os.close, descriptor)
        self.assertEqual(self.there(), {".file.1", f".file.{os.getpid()}"})

    def test_taken_for_a_dead_ones(self) -> None:
        """One that another process removes before it is locked is made once more."""
        locked: list[int] = []
        flock = fcntl.flock

        def late(file: int, operation: int) -> None:
            locked.append(operation)
            if len(locked) == 1:
                (self.directory / f".file.{os.getpid()}").unlink()
            flock(file, operation)

        self.patch(fcntl, "flock", late)
        descriptor, _ = create_aside(self.path, 0o600)
        self.addCleanup(os.close, descriptor)
        self.assertEqual(len(locked), 2)
        self.assertEqual(self.there(), {f".file.{os.getpid()}"})
        self.assertEqual(os.fstat(descriptor).st_nlink, 1)

    def test_made_anew_meanwhile(self) -> None:
        """One that another process removes and makes anew before the lock is had stays."""
        other = self.directory / ".file.1"
        other.touch()
        flock = fcntl.flock

        def late(file: int, operation: int) -> None:
            if operation & fcntl.LOCK_NB:
                other.unlink()
                other.write_bytes(b"anew")
            flock(file, operation)

        self.patch(fcntl, "flock", late)
        descriptor, _ = create_aside(self.path, 0o600)
        self.addCleanup(os.close, descriptor)
        self.assertEqual(other.read_bytes(), b"anew")

    def test_replaced(self) -> None:
        """A file that is replaced leaves nothing of those that died at it."""
        (self.directory / ".file.1").touch()
        replace_file(self.path, b"new")
        self.assertEqual(self.there(), {"file"})
