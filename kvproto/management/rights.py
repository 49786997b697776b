"""Who may do what over REST: Couchbase's roles, as far as they mean something here.

A role gives a user the use of buckets, all of it: reading and writing are not told apart.  So
``data_reader[b]`` may write in ``b``.  Of management there are three rights: to read, to manage
one bucket, and everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from kvproto.management.roles import ADMINISTRATORS, MANAGERS, OF_BUCKETS, OF_CLUSTER, parameters

__all__ = ["Rights", "Role", "RoleError", "given_roles", "parse_roles", "rights_of"]

_ROLE = re.compile(r"([a-z_]{1,60})(?:\[([^\[\],]{1,602})\])?\Z")
"""A bucket, a scope and a collection have at most 100, 251 and 251 characters."""

MAX_ROLES = 200
"""Of one user, or of one group."""


class RoleError(ValueError):
    """Roles that cannot be given to anybody; the argument is a list of them."""


@dataclass(frozen=True, slots=True)
class Role:
    """A role of a user.

    Attributes:
        name: Couchbase's.
        bucket: Its bucket, ``*`` for all, ``""`` for a role of the cluster.
        scope: Its scope, or ``""``.
        collection: Its collection, or ``""``.
    """

    name: str
    bucket: str = ""
    scope: str = ""
    collection: str = ""

    def __str__(self) -> str:
        """Return it as `parse_roles` reads it."""
        parts = [part for part in (self.bucket, self.scope, self.collection) if part]
        return f"{self.name}[{':'.join(parts)}]" if parts else self.name

    def to_json(self) -> dict[str, object]:
        """Return it as Couchbase shows it."""
        shown: dict[str, object] = {"role": self.name}
        if self.bucket:
            there = self.bucket, self.scope, self.collection
            names = parameters(self.name)
            shown |= {name: part or "*" for name, part in zip(names, there, strict=False)}
        return shown


def parse_roles(text: str, buckets: Iterable[str] | None = None) -> tuple[Role, ...]:
    """Read roles as the REST has them: ``admin,data_reader[b],data_writer[b:scope:collection]``.

    Args:
        text: The roles.
        buckets: Names of the buckets that there are; None where that does not matter, since the
            roles have been given already.

    Raises:
        RoleError: Some cannot be given.
    """
    there = None if buckets is None else {*buckets, "*"}
    roles, wrong = [], []
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words[:MAX_ROLES]:
        match = _ROLE.match(word)
        parts = ((match and match[2]) or "").split(":")
        sound = match is not None and len(parts) <= 3
        if match is not None and sound:
            sound = match[1] in (OF_BUCKETS if match[2] else OF_CLUSTER)
            sound = sound and (not match[2] or there is None or parts[0] in there)
        if match is None or not sound:
            wrong.append(word)
        else:
            roles.append(Role(match[1], *parts))
    wrong += words[MAX_ROLES:]
    if wrong:
        raise RoleError(wrong)
    return tuple(roles)


@lru_cache(maxsize=1000)
def given_roles(roles: tuple[str, ...]) -> tuple[Role, ...]:
    """Return roles that have been given already; their buckets need not be there any more."""
    return parse_roles(",".join(roles))


@dataclass(frozen=True, slots=True)
class Rights:
    """What a user may do over REST.

    Attributes:
        administrator: Everything.
        buckets: Buckets that it may use; None for all.
        managed: Buckets that it may flush and have collections in; None for all.
    """

    administrator: bool = True
    buckets: frozenset[str] | None = None
    managed: frozenset[str] | None = None

    def may_use(self, bucket: str) -> bool:
        """Return whether it may see a bucket."""
        return self.buckets is None or bucket in self.buckets

    def may_manage(self, bucket: str) -> bool:
        """Return whether it may change what is in a bucket as a whole."""
        return self.managed is None or bucket in self.managed


def rights_of(roles: Iterable[Role]) -> Rights:
    """Return what roles allow."""
    roles = list(roles)
    if any(role.name in ADMINISTRATORS for role in roles):
        return Rights()
    return Rights(
        administrator=False,
        buckets=_buckets(role.bucket for role in roles if role.bucket),
        managed=_buckets(role.bucket for role in roles if role.name in MANAGERS),
    )


def _buckets(names: Iterable[str]) -> frozenset[str] | None:
    found = frozenset(names)
    return None if "*" in found else found
