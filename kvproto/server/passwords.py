"""Passwords as they are kept: salted and hashed, good for PLAIN and for SCRAM.

Of each password three sets of keys are kept, one for each digest of SCRAM.  PLAIN is checked
against the strongest: hash what the client sent, compare the results.  Hashing takes milliseconds
on purpose, so `HashVerifier` lets its owner say where it runs (a thread); all else is quick.

How they are kept in a file is `kvproto.server.users_file`'s.

Source: RFC 5802.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred

from kvproto.errors import LocalProtocolError
from kvproto.wire.scram import ScramKeys, derive_keys, prepare, salted_password

__all__ = [
    "DEFAULT_ITERATIONS",
    "DIGESTS",
    "HashVerifier",
    "Hashes",
    "Run",
    "hash_password",
]

DIGESTS = ("sha512", "sha256", "sha1")
"""Of each password, the strongest first: that one PLAIN is checked against."""

DEFAULT_ITERATIONS = 15_000
"""kv_engine's default: about 6 ms a login; clients wait 2.5 s for theirs."""

SALT_BYTES = 16

Hashes = Mapping[str, ScramKeys]
"""Keys by digest; all of `DIGESTS`."""

Run = Callable[..., Any]
"""Calls a function with arguments, here or elsewhere; returns its result or a Deferred of it."""


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def hash_password(
    password: str,
    iterations: int = DEFAULT_ITERATIONS,
    salts: Mapping[str, bytes] | None = None,
) -> Hashes:
    """Make what is kept of a password; milliseconds for each digest.

    Args:
        password: As the user types it.
        iterations: Of PBKDF2.
        salts: By digest; random when None, as they should be where hashes are kept.

    Raises:
        LocalProtocolError: It has characters that no password may have (SASLprep).
    """
    prepared = prepare(password)
    made = {}
    for digest in DIGESTS:
        salt = secrets.token_bytes(SALT_BYTES) if salts is None else salts[digest]
        salted = salted_password(digest, prepared, salt, iterations)
        made[digest] = derive_keys(digest, salted, salt, iterations)
    return made


class HashVerifier:
    """Verifies against hashes.

    Args:
        hashes: As `hash_password` makes them.
        run: Where the slow part runs; in the caller when None.
    """

    __slots__ = ("_run", "hashes")

    def __init__(self, hashes: Hashes, run: Run | None = None) -> None:
        self.hashes = hashes
        self._run: Run = run or _call

    def check(self, password: bytes) -> bool | Deferred[bool]:
        """Return whether a password is right."""
        keys = self.hashes[DIGESTS[0]]
        result: bool | Deferred[bool] = self._run(_is_right, keys, password)
        return result

    def decoy(self) -> HashVerifier:
        """Return a verifier that costs as much, and to which no password is right."""
        made = {}
        for digest, keys in self.hashes.items():
            size = len(keys.stored_key)
            random = secrets.token_bytes
            made[digest] = ScramKeys(
                random(len(keys.salt)), keys.iterations, random(size), random(size)
            )
        return HashVerifier(made, self._run)


def _is_right(keys: ScramKeys, password: bytes) -> bool:
    """Hash a password and compare, whatever it is made of.

    What cannot be a password is hashed all the same, for the time it takes, but is never right: to
    HMAC, bytes with zeros behind them are the same key as without.
    """
    try:
        password, possible = prepare(password.decode()), True
    except (UnicodeDecodeError, LocalProtocolError):
        possible = False
    salted = salted_password(DIGESTS[0], password, keys.salt, keys.iterations)
    found = derive_keys(DIGESTS[0], salted, keys.salt, keys.iterations)
    return hmac.compare_digest(found.stored_key, keys.stored_key) and possible
