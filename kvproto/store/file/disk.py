"""What blocks: making, reading, syncing and removing files.

Every method may take as long as the disk does, so a journal calls them in threads.  Tests put
another object in the place of a `Disk`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Disk"]

_ZEROS = bytes(32 << 10)
"""What is written at once, and so the most that one record makes the disk write: the kernel keeps
in one piece what came in one, and writes a piece anew of which a mapping has changed a byte."""


class Disk:
    """The real disk."""

    def prepare(self, path: Path, size: int) -> int:
        """Make a file of zeros whose blocks are all there, on the disk.

        Zeros are written, not only asked for: so there is nothing left to allocate, and
        forcing a record to the disk later writes that record and nothing else.

        Returns:
            Its descriptor.

        Raises:
            OSError: There is no room; the file is gone again.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            at = 0
            while at < size:
                at += os.pwrite(descriptor, _ZEROS[: size - at], at)
            os.fsync(descriptor)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return descriptor

    def read(self, path: Path) -> bytes:
        """Return what is in a file."""
        return path.read_bytes()

    def force(self, path: Path) -> None:
        """Force a file to the disk that somebody else has written."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync(
        self, ended: Iterable[tuple[int, int]], descriptor: int, directory: int | None
    ) -> None:
        """Force files, and the names in a directory, to the disk.

        Args:
            ended: Descriptors of files that nothing is added to, and how long they are; what is
                behind is given back.
            descriptor: Of the file that is written to.
            directory: Descriptor of the directory, None when no name has changed.
        """
        for file, size in ended:
            os.fdatasync(file)
            os.ftruncate(file, size)
        os.fdatasync(descriptor)
        if directory is not None:
            os.fsync(directory)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        path.unlink(missing_ok=True)

    def seal(self, path: Path, at: int, end: bytes) -> None:
        """End a file at a place: ``end`` is written there, and what is behind goes.

        In this order, on the disk too: a file that is shorter than it was has its end.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, end, at)
            os.fsync(descriptor)
            os.ftruncate(descriptor, at + len(end))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
