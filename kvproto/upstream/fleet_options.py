"""What the URL of a memcached fleet says.

::

    memcached://HOST[:11211[:WEIGHT]][,HOST…]    memcacheds://… with TLS
    memcached+unix:PATH[,PATH…]
    ?distribution= hash= hash-tag= gutter= gutter-expiry= pool-file= discover=

and the parameters of all engines (`kvproto.upstream.options`).  A pool file holds what stands
between ``://`` and ``?``, on as many lines as its writer likes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from kvproto.base.regular_file import read_regular_file
from kvproto.upstream.hashes import HASHES
from kvproto.upstream.options import parse_parameters, parse_seconds, wrong
from kvproto.upstream.ring import DEFAULT_PORT, DISTRIBUTIONS, FleetServer

__all__ = ["FLEET_SCHEMES", "FleetOptions", "is_fleet", "parse_fleet", "parse_servers", "read_pool"]

FLEET_SCHEMES = frozenset({"memcached", "memcacheds", "memcached+unix"})

_LARGEST_WEIGHT = 1_000_000
_MOST_SERVERS = 1024
_LONGEST_POOL_FILE = 256 * 1024
_LONGEST_GUTTER_EXPIRY = 30 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """A fleet, and how to reach it.

    Attributes:
        servers: Those of the URL; empty where ``pool_file`` or ``discover`` says which.
        tls: Whether connections are secured.
        distribution: Name of the layout.
        hash: Name of the hash of keys.
        hash_tag: Two characters between which a part of a key alone counts; ``""`` for none.
        gutter: Servers that take over for one that is away.
        gutter_expiry: Seconds that values live there at most.
        pool_file: Holds the servers; read again by a reload.
        discover: Host and port of a server that answers ``config get cluster``.
        ca: PEM trust anchors of the servers' certificates; None: those of the system.
        cert: PEM certificate that is shown to the servers, with its chain.
        key: Its PEM key; None: it is in the certificate's file.
        connections: To each server.
        connect_timeout: Seconds for making a connection.
        timeout: Seconds for one operation.
    """

    servers: tuple[FleetServer, ...] = ()
    tls: bool = False
    distribution: str = "ketama"
    hash: str = "md5"
    hash_tag: str = ""
    gutter: tuple[FleetServer, ...] = ()
    gutter_expiry: float = 10.0
    pool_file: Path | None = None
    discover: tuple[str, int] | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    connections: int = 2
    connect_timeout: float = 2.0
    timeout: float = 2.0


def parse_fleet(url: str) -> FleetOptions:
    """Read the URL of a fleet.

    Raises:
        ConfigError: It is none, or says something that cannot be.
    """
    scheme, _, rest = url.partition(":")
    if scheme not in FLEET_SCHEMES:
        raise wrong(url, f"{scheme!r} is none of {', '.join(sorted(FLEET_SCHEMES))}")
    where, _, query = rest.partition("?")
    fields = parse_parameters(url, query, _MORE)
    if "password_file" in fields:
        raise wrong(url, "password-file is of no use: the servers of a fleet have no logins here")
    fields["tls"] = scheme == "memcacheds"
    if not fields["tls"] and fields.keys() & {"ca", "cert", "key"}:
        raise wrong(url, "ca, cert and key are for TLS: write memcacheds://…")
    if "gutter_expiry" in fields and "gutter" not in fields:
        raise wrong(url, "gutter-expiry needs gutter as well")
    elsewhere = fields.keys() & {"pool_file", "discover"}
    if len(elsewhere) > 1:
        raise wrong(url, "pool-file and discover both say which servers there are: give one")
    if scheme == "memcached+unix":
        paths = [unquote(path) for path in where.removeprefix("//").split(",")]
        if not all(paths):
            raise wrong(url, "the path of a socket is missing")
        fields["servers"] = tuple(FleetServer(path, 0) for path in paths)
    elif not where.startswith("//"):
        raise wrong(url, f"write {scheme}://HOST")
    elif where != "//" or not elsewhere:
        fields["servers"] = parse_servers(url, where[2:].rstrip("/"))
    if elsewhere and "servers" in fields:
        raise wrong(
            url, f"servers are named, and {elsewhere.pop().replace('_', '-')} names them as well"
        )
    return FleetOptions(**fields)


_SERVER = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:@/\s]+))(?::(?P<port>[^:]*))?(?::(?P<weight>.*))?"
)


def parse_servers(url: str, text: str) -> tuple[FleetServer, ...]:
    """Read a list of servers.

    Args:
        url: For errors.
        text: ``HOST[:PORT[:WEIGHT]]``, separated by commas.

    Raises:
        ConfigError: There are none, or one is given twice, or is none.
    """
    if not text:
        raise wrong(url, "there is no server: write memcached://HOST[:PORT[:WEIGHT]],…")
    servers = tuple(_server(url, part) for part in text.split(","))
    if len(servers) > _MOST_SERVERS:
        raise wrong(url, f"there are more than {_MOST_SERVERS} servers")
    names = [server.name for server in servers]
    for name in names:
        if names.count(name) > 1:
            raise wrong(url, f"{name} is given twice")
    return servers


def _server(url: str, text: str) -> FleetServer:
    if "@" in text:
        raise wrong(url, "the servers of a fleet have no logins here")
    found = _SERVER.fullmatch(text)
    if found is None:
        raise wrong(url, f"{text!r} is no HOST[:PORT[:WEIGHT]]")
    port = str(DEFAULT_PORT) if found["port"] is None else found["port"]
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise wrong(url, f"{port!r} is no port")
    weight = "1" if found["weight"] is None else found["weight"]
    if not weight.isdecimal() or not 0 < int(weight) <= _LARGEST_WEIGHT:
        raise wrong(url, f"the weight of {text!r} is no whole number above 0")
    return FleetServer(found["v6"] or found["name"], int(port), int(weight))


def read_pool(path: Path) -> tuple[FleetServer, ...]:
    """Read a pool file: servers, separated by commas or line ends; ``#`` begins a remark.

    Raises:
        ConfigError: It cannot be read, or holds no servers.
    """
    where = f"pool-file={path}"
    try:
        content, _ = read_regular_file(path, _LONGEST_POOL_FILE)
    except OSError as error:
        raise wrong(where, f"cannot be read: {error.strerror}") from None
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise wrong(where, "is no text") from None
    parts = [line.partition("#")[0].replace(",", " ") for line in lines]
    return parse_servers(where, ",".join(" ".join(parts).split()))


def _choice(names: dict[str, Any]) -> Any:
    def read(url: str, name: str, value: str) -> str:
        if value not in names:
            raise wrong(url, f"{name} is one of {', '.join(names)}, not {value!r}")
        return value

    return read


def _hash_tag(url: str, name: str, value: str) -> str:
    if len(value) != 2 or not value.isascii():
        raise wrong(url, f"{name} is two characters, for example {{}}, not {value!r}")
    return value


def _file(url: str, name: str, value: str) -> Path:
    if not value:
        raise wrong(url, f"{name} needs the name of a file")
    return Path(value)


def _discover(url: str, name: str, value: str) -> tuple[str, int]:
    (server,) = _one(url, name, value)
    return server.host, server.port


def _one(url: str, name: str, value: str) -> tuple[FleetServer, ...]:
    servers = parse_servers(url, value)
    if len(servers) != 1:
        raise wrong(url, f"{name} is one HOST:PORT")
    return servers


def _gutter(url: str, name: str, value: str) -> tuple[FleetServer, ...]:
    return parse_servers(url, value)


def _gutter_expiry(url: str, name: str, value: str) -> float:
    seconds = parse_seconds(url, name, value)
    if not 1 <= seconds <= _LONGEST_GUTTER_EXPIRY or seconds != int(seconds):
        raise wrong(url, f"{name} is a whole number of seconds, not {value!r}")
    return seconds


_MORE = {
    "distribution": _choice(DISTRIBUTIONS),
    "hash": _choice(HASHES),
    "hash-tag": _hash_tag,
    "gutter": _gutter,
    "gutter-expiry": _gutter_expiry,
    "pool-file": _file,
    "discover": _discover,
}


def is_fleet(url: str) -> bool:
    """Return whether a URL is that of a fleet."""
    return url.partition(":")[0] in FLEET_SCHEMES
