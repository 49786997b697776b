"""Files and directories that are one user's own: nobody else has a say where keys are kept.

Answers of the checks are phrases for an operator: what is wrong, and what to do about it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import stat
from pathlib import Path

__all__ = ["create_aside", "directory_fault", "put_in_place", "reader_fault", "replace_file"]

_WRITERS = stat.S_IWGRP | stat.S_IWOTH

_STRANGERS = stat.S_IRWXO | stat.S_IWGRP
"""Reading by the group is how a key is shared on purpose, with ``ssl-cert`` or by Kubernetes."""


def directory_fault(path: Path, *, linked: bool = True) -> str:
    """Return why a directory is not the own one of the user who runs this; ``""`` when it is.

    Args:
        path: It must be there.
        linked: Whether it may be reached by a symbolic link: yes for what the operator names
            (systemd names its state directories so), no for what is made inside of it.

    Raises:
        OSError: It cannot be looked at.
    """
    found = path.stat() if linked else path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link: whoever made it chooses where keys are kept; remove it"
    if not stat.S_ISDIR(found.st_mode):
        return "is no directory"
    me = os.geteuid()
    if found.st_uid != me:
        return (
            f"belongs to {_user(found.st_uid)}, who could replace what {_user(me)} keeps there: "
            "change its owner, or name another directory"
        )
    if found.st_mode & _WRITERS:
        return (
            f"others may write in it (mode {stat.S_IMODE(found.st_mode):04o}) and replace keys: "
            "chmod go-w it, or name another directory"
        )
    return ""


def reader_fault(path: Path) -> str:
    """Return what is wrong with who may use a file that holds secrets; ``""`` for nothing.

    A file that cannot be looked at is somebody else's to report.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    if not mode & _STRANGERS:
        return ""
    what = "write" if mode & _WRITERS else "read"
    return (
        f"users who have no business with it may {what} it (mode {stat.S_IMODE(mode):04o}): "
        "chmod 600 it, or 640 to share it with a group"
    )


def _user(number: int) -> str:
    """Return a user's name, where it has one, and number."""
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"


def create_aside(path: Path, mode: int) -> tuple[int, Path]:
    """Make a file that shall replace another one; remove what dead processes left of theirs.

    It is locked as long as it is open, which tells it from theirs.

    Args:
        path: The other file, which need not be there.
        mode: Who may use it.

    Returns:
        Its descriptor, to write, and its path.

    Raises:
        FileExistsError: This process is writing one already.
        OSError: It cannot be made.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    while True:
        _remove_left(path)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with contextlib.suppress(OSError):  # where there are no locks, none of these is removed
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Another process may have taken it for a dead one's before it was locked.
        if os.fstat(descriptor).st_nlink:
            return descriptor, aside
        os.close(descriptor)


def _remove_left(path: Path) -> None:
    """Remove this user's files that were to replace another one and that nobody writes."""
    prefix = f".{path.name}."
    left: list[str] = []
    # What cannot be looked at or removed is in nobody's way.
    with contextlib.suppress(OSError), os.scandir(path.parent) as found:
        left += (
            entry.path
            for entry in found
            if entry.name.startswith(prefix)
            and entry.name[len(prefix) :].isdecimal()
            and entry.is_file(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        )
    for each in left:
        with contextlib.suppress(OSError):
            descriptor = os.open(each, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another process may have removed it, and a third one made it anew.
                if os.path.samestat(os.fstat(descriptor), os.lstat(each)):
                    os.unlink(each)
            finally:
                os.close(descriptor)


def put_in_place(aside: Path, path: Path) -> None:
    """Give a file that is on the disk another one's name, so that a power cut does not undo it.

    Raises:
        OSError: That cannot be, or cannot be forced to the disk.
    """
    aside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def replace_file(
    path: Path, content: bytes, mode: int = 0o600, *, keep_owner: bool = False
) -> None:
    """Put a file in the place of an old one, and force it to the disk.

    It appears whole or not at all, and never with a wider mode.

    Args:
        path: The file, which need not be there.
        content: What is in it then.
        mode: Who may use it; what the process's umask forbids is taken away.
        keep_owner: Whether it belongs to whom the old one did, and the old one's group may read
            it if it might read that.

    Raises:
        OSError: That cannot be; the old file is as it was.
    """
    descriptor, aside = create_aside(path, mode)
    try:
        with open(descriptor, "wb") as file:
            if keep_owner and path.exists():
                old, new = path.stat(), os.fstat(descriptor)
                if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(new.st_mode) | old.st_mode & stat.S_IRGRP)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            put_in_place(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
