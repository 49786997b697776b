"""The right to use a directory, held by one process at a time.

It is a lock of the kernel's on a file in the directory, so it is let go when its process dies,
however that dies.  The file stays: deleting it would let two processes lock two files of one name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from kvproto.base.private_files import directory_fault
from kvproto.errors import ConfigError

__all__ = ["DirectoryInUse", "DirectoryLock"]


class DirectoryInUse(ConfigError):
    """Another process has the lock.

    Args:
        option: The option that named the directory.
        directory: Which.
        holder: The number of the process, "" when it has not said it.
    """

    def __init__(self, option: str, directory: Path, holder: str) -> None:
        who = f"process {holder}" if holder else "another process"
        super().__init__(option, f"{directory} is in use by {who}")
        self.directory = directory
        self.holder = holder


class DirectoryLock:
    """A lock on a directory.

    Args:
        directory: Made, for its owner only, when it is not there.
        name: Of the file that is locked.
        option: The option that named the directory, for errors.
    """

    def __init__(self, directory: Path, name: str, option: str) -> None:
        self._directory = directory
        self._name = name
        self._option = option
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self._descriptor is not None

    def check(self) -> None:
        """See whether the directory could be used, as far as can be seen without making it.

        Raises:
            ConfigError: It cannot.
        """
        found = self._directory
        try:
            if found.exists():
                if fault := directory_fault(found):
                    raise ConfigError(self._option, f"{found} {fault}")
                return
            while not found.exists():
                found = found.parent
        except OSError as error:
            raise ConfigError(self._option, f"{found}: {error.strerror}") from error
        if not found.is_dir():
            raise ConfigError(self._option, f"{found} is no directory")
        if not os.access(found, os.W_OK | os.X_OK):
            raise ConfigError(self._option, f"{found}: {self._directory} cannot be made there")

    def acquire(self) -> None:
        """Take the lock; the file says by which process it was taken.

        Raises:
            DirectoryInUse: Another process has it.
            ConfigError: The directory cannot be used, is not this user's own, or is on a file
                system without locks.
        """
        path = self._directory / self._name
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if fault := directory_fault(self._directory):
                raise ConfigError(self._option, f"{self._directory} {fault}")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(self._option, f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise DirectoryInUse(self._option, self._directory, holder) from None
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(self._option, f"{path} cannot be locked: {error.strerror}") from error
        self._descriptor = descriptor
        self.name_process()

    def name_process(self) -> None:
        """Write who has the lock; a process that became a daemon does so again.

        On a full disk nobody is told: what is in the directory can be served all the same.
        """
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let go of the lock, if it is held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
