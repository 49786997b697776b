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
from twisted.internet.interfaces import IReactorTime

from kvproto.base.log import make_logger
from kvproto.base.private_files import reader_fault
from kvproto.base.serial import Serial
from kvproto.base.watch import Watch
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
        jobs: In which users are read, one after the other.
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
        self._run = run
        self.jobs = Serial()
        self._watch = Watch(
            clock,
            _interval(config),
            lambda: _stamp(self._config.users_file),
            self.reload,
            settle=0,
        )

    def startService(self) -> None:
        """Begin to look for changes, unless the operator wants no watching."""
        super().startService()
        self._warn_of_readers()
        self._watch.start()

    def stopService(self) -> None:
        """Stop looking."""
        super().stopService()
        self._watch.stop()

    def reload(self) -> Deferred[None]:
        """Read the file again; the outcome is in the log."""
        return self.jobs.run(self, self._reload)

    async def _reload(self) -> None:
        config = self._config
        if config.users_file is None:
            return
        try:
            users = await self.read(config)
        except ConfigError as error:
            log.warn("users stay as they are: {reason}", reason=str(error))
        except Exception:
            log.failure("users stay as they are")
        else:
            self.replace(config, users)

    def read(self, config: Config) -> Deferred[UserTable]:
        """Read the users of a configuration, in a thread; nothing is changed by that.

        The Deferred fails with `ConfigError`.
        """
        self._watch.seen = _stamp(config.users_file)
        reading: Deferred[UserTable] = self._run(make_users, config, self._server.hashing)
        return reading

    def replace(self, config: Config, users: UserTable) -> None:
        """Have these users from now on, and watch the file of this configuration."""
        self._config = config
        self._watch.interval = _interval(config)
        self._server.users = self.amend(users)
        log.info("users are read again: there are {count}", count=len(users))
        if self.running:
            self._watch.start()

    def _warn_of_readers(self) -> None:
        """Warn if others can read the hashes: weak passwords can be found out from them."""
        path = self._config.users_file
        if path is not None and (fault := reader_fault(path)):
            log.warn("{option} {path}: {fault}", option=OPTION, path=str(path), fault=fault)


def _interval(config: Config) -> float:
    """Return the seconds between two looks at the users file; 0 if there is none to look at."""
    return config.watch_interval if config.users_file is not None else 0


def _stamp(path: Path | None) -> Stamp:
    """Return what changes when a file does."""
    if path is None:
        return GONE
    try:
        found = path.stat()
    except OSError:
        return GONE
    return found.st_mtime_ns, found.st_size, found.st_ino
