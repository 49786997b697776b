"""Who may log in, how a password is checked, and which buckets a user may use.

A user that does not exist costs as much as a wrong password, in PLAIN and in SCRAM: neither the
answers nor their time tell which names are users.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from twisted.internet.defer import Deferred

from kvproto.server.passwords import (
    DEFAULT_ITERATIONS,
    SALT_BYTES,
    Hashes,
    HashVerifier,
    Run,
    hash_password,
)
from kvproto.server.users_file import UserRecord
from kvproto.wire.scram import ScramKeys, decoy_keys

__all__ = ["UserTable", "Verifier"]


class Verifier(Protocol):
    """Knows whether a password is right."""

    def check(self, password: bytes) -> bool | Deferred[bool]:
        """Return whether it is, in a time that does not depend on how wrong it is."""

    def decoy(self) -> Verifier:
        """Return a verifier that costs as much as this one, and to which no password is right."""

    @property
    def hashes(self) -> Hashes:
        """Keys for SCRAM, by digest; empty where there are none."""


class UserTable:
    """All users of a server.

    Args:
        verifiers: What knows the password of each user.
        buckets: For users that may not use all buckets: which ones, the default one first.
        secret: What makes the salts of users that do not exist; random when None.  One that
            outlives the process hides what salts that do would tell.
    """

    def __init__(
        self,
        verifiers: Mapping[str, Verifier] | None = None,
        buckets: Mapping[str, Iterable[str]] | None = None,
        secret: bytes | None = None,
    ) -> None:
        self._verifiers = dict(verifiers or {})
        self._buckets = {name: tuple(names) for name, names in (buckets or {}).items()}
        self._secret = secrets.token_bytes(32) if secret is None else secret
        first = next(iter(self._verifiers.values()), None)
        self._nobody = None if first is None else first.decoy()

    @classmethod
    def of_passwords(
        cls,
        passwords: Mapping[str, str],
        buckets: Mapping[str, Iterable[str]] | None = None,
        *,
        iterations: int = DEFAULT_ITERATIONS,
        run: Run | None = None,
    ) -> UserTable:
        """Make a table of names and passwords in the clear; milliseconds for each.

        Args:
            passwords: By name.
            buckets: As for the class.
            iterations: Of PBKDF2.
            run: Where hashing runs at each login, e.g. a thread pool; here when None.

        Raises:
            LocalProtocolError: A password has characters that none may have.
        """
        hashed = {name: hash_password(word, iterations) for name, word in passwords.items()}
        return cls.of_hashes(hashed, buckets, run=run)

    @classmethod
    def of_hashes(
        cls,
        hashed: Mapping[str, Hashes],
        buckets: Mapping[str, Iterable[str]] | None = None,
        *,
        run: Run | None = None,
        secret: bytes | None = None,
    ) -> UserTable:
        """Make a table of what a users file has."""
        verifiers = {name: HashVerifier(hashes, run) for name, hashes in hashed.items()}
        return cls(verifiers, buckets, secret)

    def extended(self, records: Mapping[str, UserRecord], run: Run | None = None) -> UserTable:
        """Return a table that has further users.

        Args:
            records: By name, none of which is here.
            run: As for `of_hashes`.
        """
        added = {name: HashVerifier(record.hashes, run) for name, record in records.items()}
        limited = {
            name: record.buckets for name, record in records.items() if record.buckets is not None
        }
        table = UserTable(self._verifiers | added, self._buckets | limited, self._secret)
        table._nobody = self._nobody or table._nobody
        return table

    def buckets_of(self, name: str) -> tuple[str, ...] | None:
        """Return which buckets a user may use, None for all."""
        return self._buckets.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._verifiers)

    def __len__(self) -> int:
        return len(self._verifiers)

    def __contains__(self, name: object) -> bool:
        return name in self._verifiers

    def check(self, name: str, password: bytes) -> bool | Deferred[bool]:
        """Return whether a user of this name exists and has this password."""
        verifier = self._verifiers.get(name, self._nobody)
        return False if verifier is None else verifier.check(password)

    def scram_keys(self, name: bytes, digest: str) -> ScramKeys:
        """Return the keys of a user; of one that does not exist, keys that look like it."""
        # All of it is done for everybody, so that its time does not tell who is a user.
        verifier = self._verifiers.get(name.decode("utf-8", "replace"), self._nobody)
        keys = None if verifier is None else verifier.hashes.get(digest)
        iterations, size = (
            (DEFAULT_ITERATIONS, SALT_BYTES) if keys is None else (keys.iterations, len(keys.salt))
        )
        decoy = decoy_keys(digest, self._secret, name, iterations, size)
        return decoy if keys is None or verifier is self._nobody else keys

    def may_use(self, name: str, bucket: str) -> bool:
        """Return whether a user may use a bucket; ``""`` is the anonymous user."""
        allowed = self._allowed(name)
        return allowed is None or bucket in allowed

    def _allowed(self, name: str) -> tuple[str, ...] | None:
        """Return which buckets a user may use, None for all."""
        if name and name not in self._verifiers:
            return ()  # it was a user when it logged in
        return self._buckets.get(name)

    def default_bucket(self, name: str, buckets: Iterable[str]) -> str | None:
        """Return which of these buckets a user works in without having selected one."""
        allowed = self._allowed(name)
        there = list(buckets)
        chosen = there if allowed is None else [bucket for bucket in allowed if bucket in there]
        return chosen[0] if chosen else None
