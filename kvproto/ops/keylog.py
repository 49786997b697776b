"""TLS secrets in a file, so that a capture can be read (Wireshark: "(Pre)-Master-Secret log").

Whoever has this file can read the traffic: it is made for its owner only, and only when an
operator asks for it.  Format: NSS key log, one line per secret, as OpenSSL hands it over.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from kvproto.base.log import make_logger
from kvproto.errors import ConfigError

__all__ = ["KeyLog"]

log = make_logger()

OPTION = "--keylog"


class KeyLog:
    """Appends TLS secrets to a file.

    Each line is one ``write`` to a file opened for appending, so several processes may
    share the file.  Where writing fails, connections go on and the log says so once.

    Args:
        path: The file.

    Raises:
        ConfigError: It cannot be opened, is no regular file, or others may read or write it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failing = False
        # O_NONBLOCK: a pipe without a reader must be refused, not waited for.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor: int | None = os.open(path, flags | os.O_NONBLOCK, 0o600)
        except OSError as error:
            reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise ConfigError(OPTION, f"{path}: {reason}") from error
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            self._refuse("is no regular file")
        if found.st_uid != os.geteuid():
            self._refuse("belongs to another user, who can read it, and with it all traffic")
        if found.st_mode & 0o077:
            self._refuse(
                "others may read this file, and with it all traffic: chmod 600 it, or delete it"
            )

    def _refuse(self, reason: str) -> None:
        self.close()
        raise ConfigError(OPTION, f"{self.path}: {reason}")

    def write(self, line: bytes) -> None:
        """Append one line; for `kvproto.tls.contexts.ServerPolicy.keylog`.

        Args:
            line: As OpenSSL has it, without a newline.
        """
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, line + b"\n")
        except OSError as error:
            if not self._failing:
                log.warn(
                    "cannot write TLS secrets to {path}: {reason}; connections go on without",
                    path=str(self.path),
                    reason=error.strerror,
                )
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """Close the file; later secrets are dropped."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
