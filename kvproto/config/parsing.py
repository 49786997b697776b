"""From the text of one option to its value."""

from __future__ import annotations

import difflib
import os
import re
from enum import Enum
from typing import TypeVar

from kvproto.config.values import (
    MIB,
    NODE_NAME,
    ROOMS,
    Collection,
    LogLevel,
    NodeAddress,
    RoomLevel,
    User,
    UserBuckets,
)
from kvproto.errors import ConfigError

__all__ = [
    "parse_choice",
    "parse_collection",
    "parse_count",
    "parse_epmd",
    "parse_node_address",
    "parse_peer",
    "parse_room_level",
    "parse_seconds",
    "parse_size",
    "parse_text",
    "parse_user",
    "parse_user_buckets",
]

_SIZE = re.compile(r"([0-9]+)\s*(|[kmg])(?:i?b)?", re.IGNORECASE)
_SIZE_FACTOR = {"": 1, "k": 1024, "m": MIB, "g": 1024 * MIB}


Choice = TypeVar("Choice", bound=Enum)

MAX_SECONDS = 10 * 365 * 86400.0
"""Ten years: more is a mistake, and no timer could wait for it."""

MAX_NUMBER = 2**62
"""Above any number of bytes or connections that means something."""


def parse_text(option: str, text: str) -> str:
    """Return text that may be encoded.

    Where the locale has no UTF-8, Python keeps the bytes of a command line as surrogates.

    Raises:
        ConfigError: It was not UTF-8; its words are not repeated, which may be a password.
    """
    if not any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise ConfigError(option, "is not UTF-8") from None


def parse_choice(option: str, choices: type[Choice], text: str) -> Choice:
    """Turn the name of one of several choices into it.

    Raises:
        ConfigError: It is none of them.
    """
    try:
        return choices(text)
    except ValueError:
        allowed = ", ".join(choice.value for choice in choices)
        raise ConfigError(option, f"{text!r} is none of {allowed}") from None


def parse_count(option: str, text: str) -> int:
    """Turn ``"100"`` into a number of things.

    Raises:
        ConfigError: It is no whole number, or one below 0.
    """
    if not text.isascii() or not text.removeprefix("-").isdigit():
        raise ConfigError(option, f"{text!r} is no whole number")
    if text.startswith("-"):
        raise ConfigError(option, f"must be 0 or more, not {text}")
    return _bounded(option, text)


def _bounded(option: str, text: str, factor: int = 1) -> int:
    value = int(text[:40]) * factor
    if value > MAX_NUMBER:
        raise ConfigError(option, f"{text[:40]!r} is too large a number")
    return value


def parse_size(option: str, text: str) -> int:
    """Turn ``"64MiB"``, ``"1g"`` or ``"1048576"`` into bytes.

    Raises:
        ConfigError: It is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(option, f"{text!r} is no size: write bytes, or 512KiB, 64MiB, 2GiB")
    return _bounded(option, match[1], _SIZE_FACTOR[match[2].lower()])


def parse_seconds(option: str, text: str) -> float:
    """Turn ``"10"`` or ``"0.5"`` into seconds.

    Raises:
        ConfigError: It is no number, or not a finite one, or negative.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value < 0:
        raise ConfigError(option, f"must be 0 seconds or more, not {text}")
    if not value <= MAX_SECONDS:
        raise ConfigError(option, f"{text!r} is no number of seconds up to {MAX_SECONDS:.0f}")
    return value


def parse_user(text: str) -> User:
    """Turn ``"NAME:PASSWORD"`` into a user; the password may hold further colons.

    Raises:
        ConfigError: A part is missing.
    """
    name, colon, password = text.partition(":")
    if not name or not colon or not password:
        raise ConfigError("--user", "must be NAME:PASSWORD, neither of them empty")
    return User(name, password)


def parse_room_level(text: str) -> RoomLevel:
    """Turn ``"ROOM:LEVEL"`` into these two.

    Raises:
        ConfigError: There is no such room, or no such level.
    """
    option = "--log-levels"
    room, colon, level = text.partition(":")
    if not colon:
        raise ConfigError(option, f"{text!r} should be ROOM:LEVEL, for example tls:debug")
    if room not in ROOMS:
        near = difflib.get_close_matches(room, ROOMS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(option, f"{room!r} is no room, there are {', '.join(ROOMS)}{meant}")
    return RoomLevel(room, parse_choice(option, LogLevel, level))


def parse_user_buckets(text: str) -> UserBuckets:
    """Turn ``"NAME:BUCKET,BUCKET"`` into what a user may use.

    Raises:
        ConfigError: A part is missing.
    """
    name, colon, buckets = text.rpartition(":")
    found = tuple(dict.fromkeys(buckets.split(",")))
    if not name or not colon or "" in found:
        raise ConfigError("--user-buckets", f"{text!r} should be NAME:BUCKET or NAME:BUCKET,BUCKET")
    return UserBuckets(name, found)


def parse_collection(text: str) -> Collection:
    """Turn ``"SCOPE.NAME"`` or ``"BUCKET:SCOPE.NAME"`` into a collection.

    Raises:
        ConfigError: A part is missing, or there is one too many.
    """
    bucket, colon, path = text.rpartition(":")
    names = path.split(".")
    if len(names) != 2 or not all(names) or (colon and not bucket):
        raise ConfigError("--collection", f"{text!r} should be SCOPE.NAME or BUCKET:SCOPE.NAME")
    return Collection(names[0], names[1], bucket or None)


def parse_node_address(text: str) -> NodeAddress:
    """Turn ``"NAME@HOST"`` or ``"NAME@HOST:PORT"`` into a node to link with.

    A literal IPv6 host with a port behind it is written in brackets; alone it need not be.

    Raises:
        ConfigError: It is neither.
    """
    option = "--node-connect"
    name, at, host = text.partition("@")
    port = None
    if host.startswith("[") or host.count(":") == 1:
        host, port = _host_and_port(option, text, host)
    if not at or not NODE_NAME.fullmatch(f"{name}@{host}"):
        raise ConfigError(option, f"{text!r} is not NAME@HOST or NAME@HOST:PORT")
    return NodeAddress(f"{name}@{host}", port)


def parse_epmd(text: str) -> tuple[str, int] | None:
    """Turn ``"HOST:PORT"`` into these two, ``"none"`` into None.

    Raises:
        ConfigError: It is neither.
    """
    return None if text == "none" else _host_and_port("--epmd", text, text)


def parse_peer(text: str) -> tuple[str, int]:
    """Turn ``"HOST:PORT"`` into these two.

    Raises:
        ConfigError: It is something else.
    """
    return _host_and_port("--peer", text, text)


def _host_and_port(option: str, whole: str, text: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` or ``[HOST]:PORT``."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(option, f"{whole!r} should end with HOST:PORT")
    return host, int(port)
