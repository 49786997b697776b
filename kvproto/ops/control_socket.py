"""The control socket as a service: its file, its lock, its beginning and its end.

Whether a control socket belongs to a living process is asked of a lock (``control.lock``
beside it), because the kernel lets go of a lock when its process dies, however that dies; a
file with a process id in it would outlive it.  The lock file itself stays: deleting it
would let two processes lock two files of the same name.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

from kvproto.base.directory_lock import DirectoryInUse, DirectoryLock
from kvproto.base.log import make_logger
from kvproto.errors import ConfigError
from kvproto.listeners.ports import ListeningReactor
from kvproto.ops.commands import CONTROL_SOCKET
from kvproto.ops.control import ControlFactory

__all__ = ["LOCK_FILE", "ControlSocket", "StateLock"]

log = make_logger()

LOCK_FILE = "control.lock"

OPTION = "--state-dir"

MAX_UNIX_PATH = 107
"""Bytes: ``sun_path`` of Linux without the zero at its end."""


class StateLock(DirectoryLock):
    """The right to serve from a state directory, held by one process at a time.

    Args:
        directory: The state directory; made, for its owner only, when it is not there.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, LOCK_FILE, OPTION)

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: Another process has it, or the directory cannot be used, or is not
                this user's own.
        """
        try:
            super().acquire()
        except DirectoryInUse as error:
            holder = f" (process {error.holder})" if error.holder else ""
            raise _in_use(error.directory, holder) from None


def _in_use(directory: Path, holder: str = "") -> ConfigError:
    """Return the error for a state directory that somebody else serves from."""
    return ConfigError(
        OPTION,
        f"another kvtls{holder} serves from {directory}: stop it with "
        f"'kvtls --state-dir {directory} stop', or give this one a directory of its own",
    )


class ControlSocket(Service):
    """Serves the control vocabulary on a Unix socket.

    It should be the last of its parent's services to be stopped, so that an operator can
    watch the others stop.

    Args:
        control: An `IControl`.
        directory: The state directory; the socket is ``control.sock`` in it.
        reactor: For the socket and for deadlines.
    """

    def __init__(self, control: Any, directory: Path, reactor: Any) -> None:
        self.path = directory / CONTROL_SOCKET
        self._factory = ControlFactory(control, reactor)
        self._directory = directory
        self._reactor = reactor
        self._lock = StateLock(directory)
        self._port: IListeningPort | None = None
        self._ending = False
        self._ended: list[Deferred[None]] = []

    def check_path(self) -> None:
        """See whether the kernel could take the socket's path.

        Raises:
            ConfigError: It is too long.
        """
        if len(os.fsencode(self.path)) > MAX_UNIX_PATH:
            raise ConfigError(
                OPTION,
                f"{self._directory} is too long a name: the path of the control socket in it may "
                f"have {MAX_UNIX_PATH} bytes, a shorter or a relative one will do",
            )

    def startService(self) -> None:
        """Make the socket.

        Raises:
            ConfigError: Another process serves from this directory, or there can be no
                socket here.
        """
        if self._port is not None:
            return
        self._lock.acquire()
        try:
            self._clear_path()
            self._port = self._listen()
        except BaseException:
            self._lock.release()
            raise
        super().startService()
        log.info("control socket {path}", path=str(self.path))

    def _clear_path(self) -> None:
        """Remove the socket of a process that is dead; that it is, the lock has proved."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigError(OPTION, f"{self.path} is in the way: it is no socket")
        if _answers(self.path):  # somebody has deleted the lock file, or never had one
            raise _in_use(self._directory)
        self.path.unlink()

    def _listen(self) -> IListeningPort:
        """Bind the socket, which nobody else can open from its first moment on."""
        try:
            with _umask(0o177):
                reactor = ListeningReactor(self._reactor, kept_free=0)
                port: IListeningPort = reactor.listenUNIX(
                    os.fspath(self.path), self._factory, mode=0o600
                )
        except CannotListenError as error:
            raise ConfigError(OPTION, f"no control socket: {error.socketError}") from error
        return port

    def stopService(self) -> Deferred[None]:
        """Close the socket once what was answered has been sent; bounded in time."""
        super().stopService()
        port, self._port = self._port, None
        if port is not None:
            self._end(port)
        if not self._ending:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._ended.append(ended)
        return ended

    def _end(self, port: IListeningPort) -> None:
        """Close the port and the connections."""
        self._ending = True
        ends: list[Deferred[Any]] = [
            maybeDeferred(port.stopListening),
            self._factory.close_all(),
        ]
        DeferredList(ends, consumeErrors=True).addCallback(self._stopped)

    def _stopped(self, results: list[tuple[bool, Any]]) -> None:
        """Let the next process have the directory."""
        self._lock.release()
        for good, failure in results:
            if not good:
                log.failure("closing the control socket {path}", failure=failure, path=self.path)
        self._ending = False
        ended, self._ended = self._ended, []
        for waiting in ended:
            waiting.callback(None)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """Have files made with fewer permissions for a moment.

    Threads share the mask, but a file that one of them makes in this moment only gets
    fewer permissions than it asked for.
    """
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _answers(path: Path) -> bool:
    """Return whether a process accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its queue is full: alive, if busy
        except OSError:
            return False
    return True
