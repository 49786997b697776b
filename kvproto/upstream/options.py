"""What an engine's URL says.

Source: the URLs are kvproto's own; they look like those of Redis clients.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from kvproto.config import without_secrets
from kvproto.errors import ConfigError

__all__ = [
    "DEFAULT_PORT",
    "OPTION",
    "SCHEMES",
    "EngineOptions",
    "parse_options",
    "parse_parameters",
    "parse_seconds",
    "wrong",
]

OPTION = "--store"
DEFAULT_PORT = 6379
_LAST_DATABASE = 1 << 20
_LONGEST_TIMEOUT_S = 3600.0
_MOST_CONNECTIONS = 256

SCHEMES = frozenset(
    engine + rest
    for engine in ("redis", "valkey")
    for rest in ("", "s", "+unix", "+cluster", "s+cluster")
)
"""What the URL of an engine begins with, up to the colon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """An engine, and how to reach it.

    Attributes:
        servers: Host and port; of a cluster, where to begin.  Empty with ``path``.
        path: The Unix socket; None for TCP.
        cluster: Whether it is a cluster.
        tls: Whether connections are secured.
        user: Who logs in, ``""`` for the default user.
        password_file: Its first line is the password; None: no login.
        database: Number of the database.
        ca: PEM trust anchors for the servers' certificates; None: those of the system.
        cert: PEM certificate that is shown to the servers, with its chain.
        key: Its PEM key; None: it is in the certificate's file.
        connections: To each server.
        connect_timeout: Seconds for making a connection, login included.
        timeout: Seconds for one operation.
    """

    servers: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    cluster: bool = False
    tls: bool = False
    user: str = ""
    password_file: Path | None = None
    database: int = 0
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    connections: int = 2
    connect_timeout: float = 2.0
    timeout: float = 2.0


def parse_options(url: str) -> EngineOptions:
    """Read the URL of an engine.

    Raises:
        ConfigError: It is none, or says something that cannot be.
    """
    scheme, _, rest = url.partition(":")
    if scheme not in SCHEMES:
        raise wrong(url, f"{scheme!r} is none of {', '.join(sorted(SCHEMES))}")
    where, _, query = rest.partition("?")
    where = where.partition("#")[0]
    fields = parse_parameters(url, query)
    kind = scheme.removeprefix("redis").removeprefix("valkey")
    if kind == "+unix":
        path = unquote(where.removeprefix("//"))
        if not path:
            raise wrong(url, "the path of the socket is missing")
        if "ca" in fields or "cert" in fields or "key" in fields:
            raise wrong(url, "ca, cert and key are for TLS, which a Unix socket does not need")
        return EngineOptions(path=path, **fields)
    if not where.startswith("//"):
        raise wrong(url, f"write {scheme}://HOST")
    authority, _, database = where[2:].partition("/")
    fields["tls"] = kind.startswith("s")
    fields["cluster"] = kind.endswith("+cluster")
    if not fields["tls"] and ("ca" in fields or "cert" in fields or "key" in fields):
        name, plus, rest_of_it = scheme.partition("+")
        raise wrong(url, f"ca, cert and key are for TLS: write {name}s{plus}{rest_of_it}://…")
    user, at, hosts = authority.rpartition("@")
    if ":" in user or "@" in database:
        raise wrong(
            url, "a password on the command line is seen by everybody: use password-file=FILE"
        )
    if at:
        fields["user"] = unquote(user)
        if "password_file" not in fields:
            raise wrong(url, "a user needs password-file=FILE")
    if database:
        if fields["cluster"]:
            raise wrong(url, "a cluster has one database only")
        if not database.isdecimal() or int(database) > _LAST_DATABASE:
            raise wrong(url, f"{database!r} is no number of a database")
        fields["database"] = int(database)
    servers = tuple(_server(url, host) for host in hosts.split(","))
    if len(servers) > 1 and not fields["cluster"]:
        raise wrong(url, "several servers are a cluster: write redis+cluster://…")
    return EngineOptions(servers=servers, **fields)


def parse_parameters(
    url: str, query: str, more: dict[str, Callable[[str, str, str], Any]] | None = None
) -> dict[str, Any]:
    """Read what follows the question mark of a URL.

    Args:
        url: All of it, for errors.
        query: What follows.
        more: Parameters besides those of all engines: functions of URL, name and value.

    Returns:
        Values by name, with underscores for hyphens.

    Raises:
        ConfigError: A parameter is unknown, given twice, or has a value that cannot be.
    """
    more = {} if more is None else more
    fields: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise wrong(url, "parameters are written ?NAME=VALUE&NAME=VALUE") from None
    for name, value in pairs:
        field = name.replace("-", "_")
        if field in fields:
            raise wrong(url, f"{name} is given twice")
        if name in {"password-file", "ca", "cert", "key"}:
            if not value:
                raise wrong(url, f"{name} needs the name of a file")
            fields[field] = Path(value)
        elif name == "connections":
            if not value.isdecimal() or not 0 < int(value) <= _MOST_CONNECTIONS:
                raise wrong(url, f"connections must be 1 to {_MOST_CONNECTIONS}, not {value!r}")
            fields[field] = int(value)
        elif name in {"connect-timeout", "timeout"}:
            fields[field] = parse_seconds(url, name, value)
        elif name in more:
            fields[field] = more[name](url, name, value)
        else:
            known = ", ".join((*_PARAMETERS, *more))
            raise wrong(url, f"there is no parameter {name!r}; there are {known}")
    if "key" in fields and "cert" not in fields:
        raise wrong(url, "key needs cert as well")
    return fields


_PARAMETERS = (
    "password-file", "ca", "cert", "key", "connections", "connect-timeout", "timeout",
)  # fmt: skip


def parse_seconds(url: str, name: str, value: str) -> float:
    """Read a number of seconds above 0."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= _LONGEST_TIMEOUT_S:
        raise wrong(url, f"{name} must be seconds, more than 0, not {value!r}")
    return seconds


_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:\s/?#@]+))(?::(?P<port>[0-9]+))?"
)


def _server(url: str, text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise wrong(url, f"{text!r} is no HOST:PORT")
    port = int(found["port"] or DEFAULT_PORT)
    if not 0 < port < 1 << 16:
        raise wrong(url, f"{port} is no port")
    return found["v6"] or found["name"], port


def wrong(url: str, reason: str) -> ConfigError:
    """Make the error about a URL."""
    return ConfigError(OPTION, f"{without_secrets(url)}: {reason}")
