"""A directory that one process has at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.directory_lock import DirectoryInUse, DirectoryLock
from kvproto.errors import ConfigError
from kvproto.ops.control_socket import StateLock


class DirectoryLockTests(SynchronousTestCase):
    """`DirectoryLock`."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.lock = DirectoryLock(self.path, "lock", "--store")
        self.addCleanup(self.lock.release)

    def test_in_use(self) -> None:
        """The second is told who has it."""
        self.lock.acquire()
        other = DirectoryLock(self.path, "lock", "--store")
        error = self.assertRaises(DirectoryInUse, other.acquire)
        self.assertEqual(error.holder, str(os.getpid()))

    def test_full_disk(self) -> None:
        """Where nothing can be written it is held all the same, by nobody knows whom."""

        def refuse(*arguments: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(os, "pwrite", refuse)
        self.lock.acquire()
        other = DirectoryLock(self.path, "lock", "--store")
        error = self.assertRaises(DirectoryInUse, other.acquire)
        self.assertIn("in use by another process", str(error))
        state = StateLock(self.path)
        self.addCleanup(state.release)
        state.acquire()
        self.assertIn(
            "another kvtls", str(self.assertRaises(ConfigError, StateLock(self.path).acquire))
        )

    def test_no_locks(self) -> None:
        """A file system without locks is told from a directory in use, and leaves nothing open."""
        opened = []

        def refuse(descriptor: int, operation: int) -> None:
            opened.append(descriptor)
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        self.patch(fcntl, "flock", refuse)
        error = self.assertRaises(ConfigError, self.lock.acquire)
        self.assertNotIsInstance(error, DirectoryInUse)
        self.assertIn(f"{self.path / 'lock'} cannot be locked: No locks available", str(error))
        (descriptor,) = opened
        self.assertRaises(OSError, os.fstat, descriptor)
        self.assertFalse(self.lock.held)

    def test_check(self) -> None:
        """A check makes nothing, and finds what is in the way."""
        self.lock.check()
        self.assertFalse(self.path.exists())
        self.path.mkdir(0o700)
        self.lock.check()
        self.path.chmod(0o777)
        self.assertIn("may write", str(self.assertRaises(ConfigError, self.lock.check)))
        self.path.rmdir()
        self.path.touch()
        self.assertIn("is no directory", str(self.assertRaises(ConfigError, self.lock.check)))
        below = DirectoryLock(self.path / "a" / "b", "lock", "--store")
        self.assertIn(f"{self.path} is no dir", str(self.assertRaises(ConfigError, below.check)))
