"""The values that options have: choices, names and addresses."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "DEFAULT_BUCKET",
    "DEFAULT_EPMD",
    "DEFAULT_LISTEN",
    "DEFAULT_STATE_DIR",
    "MIB",
    "NODE_NAME",
    "ROOMS",
    "ClientAuth",
    "Collection",
    "LogFormat",
    "LogLevel",
    "Mode",
    "NodeAddress",
    "OnRotate",
    "RoomLevel",
    "User",
    "UserBuckets",
    "endpoint_is_local",
    "with_interface",
]

DEFAULT_STATE_DIR = Path("kvtls-state")

DEFAULT_LISTEN = "tcp:11207:interface=127.0.0.1"
"""11207 is the port on which Couchbase serves KV over TLS; loopback because of development."""

DEFAULT_BUCKET = "default"
"""What the examples of every Couchbase client open."""

DEFAULT_EPMD = ("127.0.0.1", 4369)
"""Where every Erlang node of a machine looks for its epmd."""

MIB = 1024 * 1024

NODE_NAME = re.compile(r"[^@\s]+@[^@\s]+")

_LOOPBACK = re.compile(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}|::1|localhost")


class Mode(enum.Enum):
    """Which product's habits the service follows where the two differ."""

    COUCHBASE = "couchbase"
    MEMCACHED = "memcached"

    @property
    def max_value(self) -> int:
        """The largest value by default, in bytes."""
        return 20 * MIB if self is Mode.COUCHBASE else MIB

    @property
    def max_connections(self) -> int:
        """How many connections at once by default; memcached's own is 1024."""
        return 10_000 if self is Mode.COUCHBASE else 1024


class ClientAuth(enum.Enum):
    """Whether clients are asked for a certificate."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class OnRotate(enum.Enum):
    """What happens to established connections when credentials rotate."""

    KEEP = "keep"
    RECHECK = "recheck"
    DRAIN = "drain"
    DISCONNECT = "disconnect"


class LogFormat(enum.Enum):
    """What lines of the log look like."""

    TEXT = "text"
    JSON = "json"


class LogLevel(enum.Enum):
    """The least important lines that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


ROOMS = (
    *("base", "dataplane", "dist", "listeners", "management", "nodes", "ops", "server"),
    *("service", "store", "tls", "upstream"),
)
"""Parts of the service that log; `kvproto.tls.shell` is of the room ``tls``."""


@dataclass(frozen=True, slots=True)
class RoomLevel:
    """The least important lines of one room that are logged.

    Attributes:
        room: One of `ROOMS`.
        level: The level.
    """

    room: str
    level: LogLevel

    def __str__(self) -> str:
        return f"{self.room}:{self.level.value}"


@dataclass(frozen=True, slots=True)
class User:
    """One user and the password that logs in as that user."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class UserBuckets:
    """Which buckets a user may use.

    Attributes:
        name: The user, with or without a password of its own among `Config.users`.
        buckets: The first is the one for clients that select none.
    """

    name: str
    buckets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection that exists.

    Attributes:
        scope: Name of its scope.
        name: Its own.
        bucket: Where it exists; None for every bucket.
    """

    scope: str
    name: str
    bucket: str | None = None


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Another node, to be linked with.

    Attributes:
        name: ``NAME@HOST``.
        port: Where it listens; None: its epmd knows.
    """

    name: str
    port: int | None = None


def with_interface(description: str) -> str:
    """Return an endpoint description that names an interface: loopback unless it does already."""
    if re.match(r"tcp[46]?:", description) and ":interface=" not in description:
        loopback = r"\:\:1" if description.startswith("tcp6:") else "127.0.0.1"
        return f"{description}:interface={loopback}"
    return description


def endpoint_is_local(description: str) -> bool:
    """Return whether an endpoint description can be reached from this machine only.

    Args:
        description: A Twisted server endpoint string.
    """
    kind, *arguments = re.split(r"(?<!\\):", description)
    if kind == "unix":
        return True
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "interface":
            return _LOOPBACK.fullmatch(value.replace("\\:", ":").lower()) is not None
    return False
