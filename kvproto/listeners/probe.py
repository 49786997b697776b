"""Whether a listener's address could be used, asked without listening.

Lets Twisted's own endpoint parsers run over a reactor that binds and lets go,
so that every kind of description is understood exactly as it will be later.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import Any, NoReturn

from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from kvproto.errors import ConfigError
from kvproto.listeners.binding import why_not_listening

__all__ = ["probe", "validate"]

MAX_PORT = 65535

MAX_UNIX_PATH = 107
"""Bytes: ``sun_path`` of Linux without the zero at its end."""

SECURED_ALREADY = frozenset({"ssl", "tls", "kvtls"})


NOT_LISTENING = frozenset({"stdio"})
"""Endpoints that Twisted calls servers and that have no port."""


class _BindAndLetGo:
    """A reactor whose listen methods only try to bind."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: object, backlog: int = 50, interface: str = "") -> None:
        """Bind a TCP port the way Twisted's port does."""
        _check_port(interface, port)
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                trial.bind((interface, port))
            except OSError as error:
                raise CannotListenError(interface, port, error) from error

    def listenUNIX(
        self,
        address: str,
        factory: object,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> None:
        """See whether a Unix socket could be made there."""
        _check_unix_path(address)
        directory = os.path.dirname(os.path.abspath(address))
        if not os.access(directory, os.W_OK | os.X_OK):
            missing = not os.path.isdir(directory)
            self._refuse(address, errno.ENOENT if missing else errno.EACCES)
        if not os.path.lexists(address):
            return
        if not stat.S_ISSOCK(os.lstat(address).st_mode):
            # Twisted removes what an earlier process left behind, but nothing else.
            raise CannotListenError(
                address, None, OSError(errno.EEXIST, "what is there is no socket")
            )
        if self._answers(address):
            self._refuse(address, errno.EADDRINUSE)

    @staticmethod
    def _answers(address: str) -> bool:
        with socket.socket(socket.AF_UNIX) as trial:
            trial.settimeout(1)
            # EAGAIN: so many wait to be accepted that there is no room for one more.
            return trial.connect_ex(address) in {0, errno.EAGAIN}

    @staticmethod
    def _refuse(address: str, number: int) -> NoReturn:
        raise CannotListenError(address, None, OSError(number, os.strerror(number)))


class _Nowhere(_BindAndLetGo):
    """A reactor whose listen methods only look at what they are given."""

    def listenTCP(self, port: int, factory: object, backlog: int = 50, interface: str = "") -> None:
        """Look at the port's number."""
        _check_port(interface, port)

    def listenUNIX(
        self,
        address: str,
        factory: object,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> None:
        """Look at the length of the path."""
        _check_unix_path(address)


def _check_unix_path(address: str | bytes) -> None:
    """See whether the kernel could take a path: it has a fixed number of bytes for one."""
    if not address:
        raise CannotListenError("unix:", None, OSError(errno.EINVAL, "it names no path"))
    if len(os.fsencode(address)) > MAX_UNIX_PATH:
        error = OSError(
            errno.ENAMETOOLONG, f"the path of a Unix socket has at most {MAX_UNIX_PATH} bytes"
        )
        raise CannotListenError(address, None, error)


def _check_port(interface: str, port: int) -> None:
    if not 0 <= port <= MAX_PORT:
        error = OSError(errno.EINVAL, f"a port is a number from 0 to {MAX_PORT}")
        raise CannotListenError(interface, port, error)


def validate(reactor: Any, description: str, option: str = "--listen") -> None:
    """Check that an endpoint description makes sense.

    Raises:
        ConfigError: It does not; says why.
    """
    _listen(_Nowhere(reactor), description, option)


def probe(
    reactor: Any, description: str, option: str = "--listen", *, may_be_taken: bool = False
) -> None:
    """Check that an endpoint description makes sense and that its address is free.

    Args:
        reactor: For what the endpoint's parser asks of one.
        description: As for `twisted.internet.endpoints.serverFromString`.
        option: What the operator calls it.
        may_be_taken: Whether an address on which somebody listens is good as well, e.g. the
            service whose next configuration is being tried.

    Raises:
        ConfigError: It does not, or is not; says why.
    """
    _listen(_BindAndLetGo(reactor), description, option, may_be_taken=may_be_taken)


_NOT_PASSED = (
    "systemd has passed no such socket: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES say which "
    "there are, see systemd.socket(5)"
)


def _check_passed(descriptor: int, description: str, option: str) -> None:
    """See whether a descriptor is what somebody should have passed: a listening socket."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as passed:
            if passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return
    except OSError as error:
        raise ConfigError(
            option, f"{description!r}: descriptor {descriptor}: {error.strerror}"
        ) from error
    raise ConfigError(option, f"{description!r}: the socket that was passed does not listen")


_PARSER_WORDS = (
    (r"unexpected keyword argument '(.*)'", "it has an argument {0!r} that is not known"),
    (r"missing .* argument: '(\w+)'", "its {0} is missing"),
    (
        r"takes .* positional arguments? but|multiple values for argument",
        r"it has too many arguments, or a colon that is not written \:, as in interface=\:\:1",
    ),
    (r"invalid literal for int\(\) with base \d+: '(.*)'", "{0!r} is no number"),
    (r"Unknown endpoint type: '(.*)'", "there is no kind of endpoint called {0!r}"),
)


def _parser_words(error: Exception) -> str:
    """Return what an endpoint parser met: it raises KeyError, ValueError or TypeError."""
    text = str(error) or error.__class__.__name__
    for pattern, words in _PARSER_WORDS:
        if found := re.search(pattern, text):
            return words.format(*found.groups())
    return text


def _is_taken(failure: Any) -> bool:
    cause = getattr(failure.value, "socketError", None)
    return getattr(cause, "errno", None) == errno.EADDRINUSE


def _listen(reactor: Any, description: str, option: str, *, may_be_taken: bool = False) -> None:
    kind = description.partition(":")[0]
    if kind in SECURED_ALREADY:
        raise ConfigError(
            option, f"{description!r}: TLS is put on top of every listener, use tcp: or unix:"
        )
    try:
        endpoint = serverFromString(reactor, description)
    except Exception as error:
        if kind == "systemd" and isinstance(error, LookupError):
            raise ConfigError(option, f"{description!r}: {_NOT_PASSED}") from error
        raise ConfigError(
            option,
            f"{description!r} is no endpoint: {_parser_words(error)}; "
            "write for example tcp:11207:interface=127.0.0.1",
        ) from error
    if isinstance(endpoint, AdoptedStreamServerEndpoint):
        # Such a socket listens already; an endpoint that is tried closes what it was passed.
        _check_passed(endpoint.fileno, description, option)
        return
    if kind in NOT_LISTENING:
        raise ConfigError(option, f"{description!r} does not listen: use tcp: or unix:")
    failures: list[Any] = []
    endpoint.listen(Factory()).addErrback(failures.append)
    if failures and not (may_be_taken and _is_taken(failures[0])):
        raise ConfigError(option, f"{description!r}: {why_not_listening(failures[0])}")
