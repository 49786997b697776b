"""Who may do what over REST: Couchbase's roles, as far as they mean something here.

A role gives a user the use of buckets, all of it: reading and writing are not told apart.  So
``data_reader[b]`` may write in ``b``.  Of management there are three rights: to read, to manage
one bucket, and everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Rights", "Role", "RoleError", "parse_roles", "rights_of"]

_ADMINISTRATORS = frozenset({"admin"})

_CLUSTER = _ADMINISTRATORS | {
    "ro_admin",
    "security_admin",
    "security_admin_local",
    "security_admin_external",
    "user_admin_local",
    "user_admin_external",
    "cluster_admin",
    "eventing_admin",
    "backup_admin",
    "views_admin",
    "replication_admin",
    "external_stats_reader",
    "query_system_catalog",
    "query_external_access",
    "query_manage_global_functions",
    "query_execute_global_functions",
    "query_manage_global_external_functions",
    "query_execute_global_external_functions",
    "query_manage_system_catalog",
    "analytics_admin",
    "analytics_reader",
}

_MANAGERS = frozenset({"bucket_admin", "scope_admin"})

_OF_BUCKETS = _MANAGERS | {
    "bucket_full_access",
    "data_reader",
    "data_writer",
    "data_dcp_reader",
    "data_backup",
    "data_monitoring",
    "views_admin",
    "views_reader",
    "replication_target",
    "fts_admin",
    "fts_searcher",
    "query_select",
    "query_update",
    "query_insert",
    "query_delete",
    "query_manage_index",
    "query_manage_functions",
    "query_execute_functions",
    "query_manage_external_functions",
    "query_execute_external_functions",
    "query_use_sequential_scans",
    "query_use_sequences",
    "query_manage_sequences",
    "analytics_manager",
    "analytics_select",
    "mobile_sync_gateway",
    "sync_gateway_configurator",
    "sync_gateway_app",
    "sync_gateway_app_ro",
    "sync_gateway_replicator",
    "sync_gateway_dev_ops",
    "eventing_manage_functions",
}

_ROLE = re.compile(r"([a-z_]{1,60})(?:\[([^\[\],]{1,602})\])?\Z")
"""A bucket, a scope and a collection have at most 100, 251 and 251 characters."""

MAX_ROLES = 200
"""Of one user."""


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
            shown["bucket_name"] = self.bucket
        if self.bucket and self.bucket != "*":
            shown["scope_name"] = self.scope or "*"
            shown["collection_name"] = self.collection or "*"
        shown["origins"] = [{"type": "user"}]
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
            sound = match[1] in (_OF_BUCKETS if match[2] else _CLUSTER)
            sound = sound and (not match[2] or there is None or parts[0] in there)
        if match is None or not sound:
            wrong.append(word)
        else:
            roles.append(Role(match[1], *parts))
    wrong += words[MAX_ROLES:]
    if wrong:
        raise RoleError(wrong)
    return tuple(roles)


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
    if any(role.name in _ADMINISTRATORS for role in roles):
        return Rights()
    return Rights(
        administrator=False,
        buckets=_buckets(role.bucket for role in roles if role.bucket),
        managed=_buckets(role.bucket for role in roles if role.name in _MANAGERS),
    )


def _buckets(names: Iterable[str]) -> frozenset[str] | None:
    found = frozenset(names)
    return None if "*" in found else found
