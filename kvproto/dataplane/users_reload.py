"""The users of a running service: the users file is read again when it changes.

Owns when it is read; what is in it is `kvproto.server.users_file`'s, what becomes of it
`kvproto.dataplane`'s.  Who is logged in stays so until the connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.base.private_files import reader_fault
from kvproto.config import Config
from kvproto.dataplane.compose import make_users
from kvproto.errors import ConfigError
from kvproto.server import KVServer, UserTable
from kvproto.server.users_file import OPTION

__all__ = ["UsersReload"]

log = make_logger()

Stamp = tuple[int, ...]

GONE: Stamp = ()


class UsersReload(Service):
    """Gives a server its users again whenever the users file has changed, or somebody asks.

    A file that cannot be used is reported and changes nothing.

    Args:
        config: Where the file is, and what else makes users.
        server: Whose users they are.
        clock: For the looks.
        run: Runs a function in a thread, as for `kvproto.dataplane.make_server`.

    Attributes:
        amend: Called with the table that was read; returns the one that is used.
    """

    name = "users"

    def __init__(
        self,
        config: Config,
        server: KVServer,
        clock: IReactorTime,
        run: Callable[..., Deferred[Any]],
    ) -> None:
        self.amend: Callable[[UserTable], UserTable] = lambda users: users
        self._config = config
        self._server = server
        self._clock = clock
        self._run = run
        self._next: IDelayedCall | None = None
        self._reading = False
        self._again = False
        self._seen = self._stamp()

    def startService(self) -> None:
        """Begin to look for changes, unless the operator wants no watching."""
        super().startService()
        self._warn_of_readers()
        self._look_later()

    def stopService(self) -> None:
        """Stop looking."""
        super().stopService()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def reload(self) -> None:
        """Read the file now, without waiting for what comes of it."""
        if self._config.users_file is None:
            return
        if self._reading:
            self._again = True
            return
        self._reading = True
        self._seen = self._stamp()
        reading = self._run(make_users, self._config, self._server.hashing)
        reading.addCallbacks(self._replace, self._keep)
        reading.addCallback(self._done)

    def _warn_of_readers(self) -> None:
        """Warn if others can read the hashes: weak passwords can be found out from them."""
        path = self._config.users_file
        if path is not None and (fault := reader_fault(path)):
            log.warn("{option} {path}: {fault}", option=OPTION, path=str(path), fault=fault)

    def _stamp(self) -> Stamp:
        path: Path | None = self._config.users_file
        if path is None:
            return GONE
        try:
            found = path.stat()
        except OSError:
            return GONE
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _look_later(self) -> None:
        if self.running and self._config.users_file is not None and self._config.watch_interval:
            self._next = self._clock.callLater(self._config.watch_interval, self._look)

    def _look(self) -> None:
        self._next = None
        if self._stamp() != self._seen:
            self.reload()
        self._look_later()

    def _replace(self, users: UserTable) -> None:
        self._server.users = self.amend(users)
        log.info("the users file is read again: {count} users", count=len(users))

    def _keep(self, failure: Failure) -> None:
        if failure.check(ConfigError):
            log.warn("users stay as they are: {reason}", reason=failure.getErrorMessage())
        else:
            log.failure("users stay as they are", failure=failure)

    def _done(self, _: None) -> None:
        self._reading = False
        if self._again:
            self._again = False
            self.reload()
