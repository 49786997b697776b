"""The users file: names, hashes of passwords, and the buckets that each user may use.

A JSON object, so that other tools can make one: ``{"version": 1, "users": {NAME: USER}}``, where
USER has for each of ``sha512``, ``sha256`` and ``sha1`` an object with ``iterations`` and, in
base64, ``salt``, ``stored_key`` and ``server_key`` (RFC 5802); and perhaps ``buckets``, a list of
names, the first of which is for clients that select none.  Without ``buckets`` a user may use all.
Beside ``users`` there may be ``secret``, random bytes in base64: of it the salts of users that do
not exist are made, which have to be as constant as the others.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvproto.base.private_files import replace_file
from kvproto.errors import ConfigError
from kvproto.server.passwords import DIGESTS, Hashes
from kvproto.wire.scram import MAX_ITERATIONS, ScramKeys

__all__ = [
    "OPTION",
    "UserRecord",
    "UsersFile",
    "change_users",
    "dump_user",
    "dump_users",
    "load_user",
    "load_users",
    "read_users",
]

OPTION = "--users"

VERSION = 1

MAX_FILE = 16 * 1024 * 1024
"""Bytes; some 20,000 users."""


@dataclass(frozen=True, slots=True)
class UserRecord:
    """What is kept of one user.

    Attributes:
        hashes: Of its password.
        buckets: Which it may use, the default one first; None for all.
    """

    hashes: Hashes
    buckets: tuple[str, ...] | None = None


def _new_secret() -> bytes:
    return secrets.token_bytes(32)


@dataclass(slots=True)
class UsersFile:
    """What a users file holds.

    Attributes:
        users: By name.
        secret: Makes the salts of users that do not exist.
    """

    users: dict[str, UserRecord] = field(default_factory=dict)
    secret: bytes = field(default_factory=_new_secret, repr=False)


def read_users(path: Path) -> UsersFile:
    """Read a users file.

    Raises:
        ConfigError: There is none, or it is not one.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_FILE)
    except OSError as error:
        raise ConfigError(OPTION, f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        text = ""
    try:
        return load_users(text)
    except ConfigError as error:
        raise ConfigError(OPTION, f"{path}: {error.reason}") from None


@contextmanager
def change_users(path: Path) -> Iterator[dict[str, UserRecord]]:
    """Change a users file, or begin one: what is in the dictionary afterwards is written.

    Nobody ever reads half a file, two changes at once happen one after the other, and only the
    file's owner may read it.

    Raises:
        ConfigError: It cannot be read or written, or is no users file.
    """
    path = path.resolve()  # the file behind a symbolic link is what changes, not the link
    try:
        lock = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(OPTION, f"{path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = read_users(path) if path.exists() else UsersFile()
        yield content.users
        replace_file(path, dump_users(content).encode(), keep_owner=True)
    except OSError as error:
        raise ConfigError(OPTION, f"{path}: {error.strerror}") from error
    finally:
        os.close(lock)


def dump_users(content: UsersFile) -> str:
    """Return the text of a users file."""
    users = {name: dump_user(user) for name, user in sorted(content.users.items())}
    secret = b64encode(content.secret).decode()
    return json.dumps({"version": VERSION, "secret": secret, "users": users}, indent=1) + "\n"


def dump_user(user: UserRecord) -> dict[str, Any]:
    """Return what is kept of a user, as JSON can say it."""
    dumped: dict[str, Any] = {
        digest: {
            "iterations": keys.iterations,
            "salt": b64encode(keys.salt).decode(),
            "stored_key": b64encode(keys.stored_key).decode(),
            "server_key": b64encode(keys.server_key).decode(),
        }
        for digest, keys in user.hashes.items()
    }
    if user.buckets is not None:
        dumped["buckets"] = list(user.buckets)
    return dumped


def load_users(text: str) -> UsersFile:
    """Read the text of a users file.

    Raises:
        ConfigError: It is none; the reason says nothing of what is in it.
    """
    try:
        content = json.loads(text)
        if content["version"] != VERSION:
            raise ConfigError(OPTION, f"is of version {content['version']!r}, not {VERSION}")
        users = {name: load_user(user) for name, user in content["users"].items()}
        secret = b64decode(content.get("secret", ""), validate=True) or _new_secret()
        return UsersFile(users, secret)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # "from None": what is quoted in such errors may be a hash.
        line = getattr(error, "lineno", 0)  # of JSON that is none
        where = f", wrong from line {line} on" if line else ""
        raise ConfigError(
            OPTION, f"is no users file as kvtls passwd writes it{where} ({type(error).__name__})"
        ) from None


def load_user(user: Mapping[str, Any]) -> UserRecord:
    """Read what `dump_user` returned; raises whatever comes of what is not that."""
    hashes = {digest: _load_keys(user[digest]) for digest in DIGESTS}
    buckets = user.get("buckets")
    if buckets is None:
        return UserRecord(hashes)
    if not isinstance(buckets, list) or not all(isinstance(name, str) for name in buckets):
        raise TypeError(buckets)
    return UserRecord(hashes, tuple(buckets))


def _load_keys(fields: Mapping[str, Any]) -> ScramKeys:
    salt, stored, server = (
        b64decode(fields[name], validate=True) for name in ("salt", "stored_key", "server_key")
    )
    iterations = fields["iterations"]
    possible = isinstance(iterations, int) and 1 <= iterations <= MAX_ITERATIONS
    if not possible or not (salt and stored and server):
        raise ValueError(iterations)
    return ScramKeys(salt, iterations, stored, server)
