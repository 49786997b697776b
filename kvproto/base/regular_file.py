"""Reading a file that somebody has named, whole."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["read_regular_file"]


def read_regular_file(path: Path, limit: int) -> tuple[bytes, int]:
    """Read a regular file; a pipe or a device would hold up the process and is refused.

    Args:
        path: The file, or a link to it.
        limit: Bytes that it may have.

    Returns:
        What is in it, and its mode as `os.stat` has it.

    Raises:
        OSError: It cannot be read, it is no regular file, or it is larger; `strerror` says which.
            IsADirectoryError is among them.
    """
    # O_NONBLOCK: opening a named pipe that nobody writes must not wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
        raise OSError(errno.EFBIG, f"it is larger than {size}", str(path))
    return content, mode
