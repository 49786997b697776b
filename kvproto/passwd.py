"""The command ``kvtls passwd``: users in a users file, and their passwords.

Owns where the password comes from: a prompt or stdin, never an argument, which every process of
the machine can read.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TextIO

from kvproto.errors import ConfigError, KVProtoError
from kvproto.server.passwords import DEFAULT_ITERATIONS, hash_password
from kvproto.server.users_file import UserRecord, change_users
from kvproto.wire.scram import MAX_ITERATIONS, MIN_ITERATIONS, prepare

__all__ = ["change_password"]


def change_password(options: argparse.Namespace) -> dict[str, str]:
    """Add a user to a users file, change one, or remove one.

    Args:
        options: ``users`` (the file), ``name``, ``bucket`` (names or None), ``delete`` and
            ``iterations`` (None for the default).

    Returns:
        What was done: ``action`` (``added``, ``changed`` or ``removed``), ``user`` and ``file``.

    Raises:
        ConfigError: The password, the name or the file cannot be used.
    """
    path, name = Path(options.users), options.name
    if options.delete:
        with change_users(path) as users:
            if users.pop(name, None) is None:
                raise ConfigError("NAME", f"there is no user {name!r} in {path}")
        return {"action": "removed", "user": name, "file": str(path)}
    iterations = options.iterations or DEFAULT_ITERATIONS
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise ConfigError("--iterations", f"must be {MIN_ITERATIONS} to {MAX_ITERATIONS}")
    if not name:
        raise ConfigError("NAME", "is empty")
    try:
        prepare(name)
        hashes = hash_password(_password(sys.stdin), iterations)
    except KVProtoError as error:
        raise ConfigError("NAME or password", str(error)) from None
    with change_users(path) as users:
        old = users.get(name)
        buckets = tuple(options.bucket) if options.bucket else (old.buckets if old else None)
        users[name] = UserRecord(hashes, buckets)
    action = "added" if old is None else "changed"
    return {"action": action, "user": name, "file": str(path)}


def _password(stdin: TextIO) -> str:
    """Return a new password: asked for twice at a terminal, else the first line of stdin."""
    if stdin.isatty():
        password = getpass.getpass("New password: ")
        if getpass.getpass("The same again: ") != password:
            raise ConfigError("password", "the two are not the same")
    else:
        password = stdin.readline().removesuffix("\n").removesuffix("\r")
    if not password:
        raise ConfigError("password", "is empty")
    return password
