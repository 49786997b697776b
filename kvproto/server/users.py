"""Who may log in, and how a password is checked.

A password is never compared but by its verifier, in constant time, and a user that does not exist
costs as much as a wrong password: neither the answer nor its time tells which names are users.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Protocol

from twisted.internet.defer import Deferred

__all__ = ["PasswordVerifier", "UserTable", "Verifier"]


class Verifier(Protocol):
    """Knows whether a password is right; what it keeps may be a hash."""

    def check(self, password: bytes) -> bool | Deferred[bool]:
        """Say whether it is, in a time that does not depend on how wrong it is."""

    def decoy(self) -> Verifier:
        """Return a verifier that costs as much as this one, and to which no password is right."""


class PasswordVerifier:
    """Verifies against a password that is known in the clear, e.g. from the command line.

    Args:
        password: The right one.
    """

    __slots__ = ("_digest", "_salt")

    def __init__(self, password: bytes) -> None:
        # Digests have one length, so that the time of comparing them does not tell the password's.
        self._salt = secrets.token_bytes(16)
        self._digest = self._hash(password)

    def _hash(self, password: bytes) -> bytes:
        return hashlib.blake2b(password, key=self._salt).digest()

    def check(self, password: bytes) -> bool:
        """Say whether the password is right."""
        return hmac.compare_digest(self._hash(password), self._digest)

    def decoy(self) -> PasswordVerifier:
        """Return a verifier to which no password is right."""
        return PasswordVerifier(secrets.token_bytes(32))


class UserTable:
    """All users of a server.

    Args:
        verifiers: What knows the password of each user.
    """

    def __init__(self, verifiers: Mapping[str, Verifier] | None = None) -> None:
        self._verifiers = dict(verifiers or {})
        first = next(iter(self._verifiers.values()), PasswordVerifier(b""))
        self._nobody = first.decoy()

    @classmethod
    def of_passwords(cls, passwords: Mapping[str, str]) -> UserTable:
        """Make a table of names and passwords in the clear."""
        return cls({name: PasswordVerifier(word.encode()) for name, word in passwords.items()})

    def __len__(self) -> int:
        return len(self._verifiers)

    def __contains__(self, name: object) -> bool:
        return name in self._verifiers

    def check(self, name: str, password: bytes) -> bool | Deferred[bool]:
        """Say whether a user of this name exists and has this password."""
        return self._verifiers.get(name, self._nobody).check(password)
