"""The user that the process is going to be: ``twistd --uid`` and ``--gid``.

twistd builds the service as the user who called it, mostly root, opens ports, and becomes
somebody else then.  What is made in the state directory before that must belong to the user who
uses it afterwards; so it is made as that user.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import twisted
from kvproto.errors import ConfigError

__all__ = ["FutureUser", "future_user"]


@dataclass(frozen=True, slots=True)
class FutureUser:
    """Whom the process becomes once its ports are open.

    Attributes:
        uid: User id.
        gid: Group id.
    """

    uid: int
    gid: int

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Act as that user for a moment, as far as the file system is concerned."""
        uid, gid = os.geteuid(), os.getegid()
        if (uid, gid) == (self.uid, self.gid):
            yield
            return
        try:
            os.setegid(self.gid)
            os.seteuid(self.uid)
        except PermissionError:
            os.setegid(gid)
            raise ConfigError(
                "--uid", f"user {uid} may not become user {self.uid}: only root may"
            ) from None
        try:
            yield
        finally:
            os.seteuid(uid)
            os.setegid(gid)

    def make_directory(self, path: Path) -> None:
        """Make a directory that belongs to that user; one that is there is left alone.

        Its parents may be root's alone to write in, so it is made before `acting`.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            os.chown(path, self.uid, self.gid)
        except FileExistsError:
            return
        except OSError as error:
            raise ConfigError("--state-dir", f"{path}: {error.strerror}") from error

    def check_installation(self) -> None:
        """See that the process can go on importing once it is that user.

        Libraries import parts of theirs when they are first needed, which may be any time.

        Raises:
            ConfigError: It could not: for instance everything is installed below ``/root``.
        """
        for path in self.unreadable([Path(twisted.__file__), Path(__file__).parents[1] / "tap.py"]):
            raise ConfigError(
                "--uid",
                f"user {self.uid} cannot read {path.parent}, which the service runs from: install "
                "it where that user may read, or open the directories on the way "
                "(chmod o+x)",
            )

    def unreadable(self, paths: list[Path]) -> list[Path]:
        """Return the files that could be read now, but not once the process is that user."""
        with self.acting():
            return [path for path in paths if not os.access(path, os.R_OK, effective_ids=True)]


def future_user(uid: int | None, gid: int | None) -> FutureUser | None:
    """Return the user that ``twistd --uid UID --gid GID`` becomes; None when it stays who it is."""
    if uid is None and gid is None:
        return None
    if uid is None:
        uid = os.geteuid()
    if gid is None:
        gid = pwd.getpwuid(uid).pw_gid
    return FutureUser(uid, gid)
