"""Couchbase's roles: what they are called, what they are given for, and what they mean here.

Three things are told apart here, and no more: to read and write in a bucket, to manage what is in
it, and to do everything.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ADMINISTRATORS", "MANAGERS", "OF_BUCKETS", "OF_CLUSTER", "describe_roles", "parameters"]

ADMINISTRATORS = frozenset({"admin"})

MANAGERS = frozenset({"bucket_admin", "scope_admin"})

OF_CLUSTER = {
    "admin": "Full Admin",
    "ro_admin": "Read-Only Admin",
    "security_admin": "Security Admin",
    "security_admin_local": "Local User Security Admin",
    "security_admin_external": "External User Security Admin",
    "user_admin_local": "Local User Admin",
    "user_admin_external": "External User Admin",
    "cluster_admin": "Cluster Admin",
    "eventing_admin": "Eventing Full Admin",
    "backup_admin": "Backup Full Admin",
    "views_admin": "Views Admin",
    "replication_admin": "XDCR Admin",
    "external_stats_reader": "External Stats Reader",
    "query_system_catalog": "Query System Catalog",
    "query_external_access": "Query CURL Access",
    "query_manage_global_functions": "Manage Global Functions",
    "query_execute_global_functions": "Execute Global Functions",
    "query_manage_global_external_functions": "Manage Global External Functions",
    "query_execute_global_external_functions": "Execute Global External Functions",
    "query_manage_system_catalog": "Query Manage System Catalog",
    "analytics_admin": "Analytics Admin",
    "analytics_reader": "Analytics Reader",
}
"""Roles that are given for the cluster, and their names for people."""

_WHOLE_BUCKET = {
    "bucket_admin": "Bucket Admin",
    "bucket_full_access": "Application Access",
    "data_backup": "Data Backup & Restore",
    "replication_target": "XDCR Inbound",
    "views_admin": "Views Admin",
    "views_reader": "Views Reader",
    "fts_admin": "Search Admin",
    "analytics_manager": "Analytics Manager",
    "mobile_sync_gateway": "Sync Gateway",
}

_SCOPED = {
    "scope_admin": "Manage Scopes",
    "query_manage_functions": "Manage Scope Functions",
    "query_execute_functions": "Execute Scope Functions",
    "query_manage_external_functions": "Manage Scope External Functions",
    "query_execute_external_functions": "Execute Scope External Functions",
    "query_use_sequences": "Query Use Sequences",
    "query_manage_sequences": "Query Manage Sequences",
    "eventing_manage_functions": "Manage Eventing Functions",
}

_OF_COLLECTIONS = {
    "data_reader": "Data Reader",
    "data_writer": "Data Writer",
    "data_dcp_reader": "Data DCP Reader",
    "data_monitoring": "Data Monitor",
    "fts_searcher": "Search Reader",
    "query_select": "Query Select",
    "query_update": "Query Update",
    "query_insert": "Query Insert",
    "query_delete": "Query Delete",
    "query_manage_index": "Query Manage Index",
    "query_use_sequential_scans": "Query Use Sequential Scans",
    "analytics_select": "Analytics Select",
    "sync_gateway_configurator": "Sync Gateway Architect",
    "sync_gateway_app": "Sync Gateway Application",
    "sync_gateway_app_ro": "Sync Gateway Application Read Only",
    "sync_gateway_replicator": "Sync Gateway Replicator",
    "sync_gateway_dev_ops": "Sync Gateway Dev Ops",
}

OF_BUCKETS = _WHOLE_BUCKET | _SCOPED | _OF_COLLECTIONS
"""Roles that are given for a bucket, or something in it."""

_EVERYTHING = (
    "May use all cluster features that there are, security included, over REST; there is no web "
    "console. May read and write all data."
)
_LOOKING = "May ask over REST what there is, as every user may."
_MANAGING = (
    "May flush a bucket, create and drop scopes and collections in it, and read and write its data."
)
_USING = "May read and write the data of a bucket, in all of its collections."


_PARAMETERS = ("bucket_name", "scope_name", "collection_name")


def parameters(role: str) -> tuple[str, ...]:
    """Return what a role is given for, by the names in REST: nothing, a bucket, or more of it."""
    if role in _OF_COLLECTIONS:
        return _PARAMETERS
    if role in _SCOPED:
        return _PARAMETERS[:2]
    return _PARAMETERS[:1] if role in _WHOLE_BUCKET else ()


def describe_roles() -> list[dict[str, Any]]:
    """Return all roles as Couchbase lists them, with what they mean here."""
    rows = []
    for name, title in OF_CLUSTER.items():
        meaning = _EVERYTHING if name in ADMINISTRATORS else _LOOKING
        rows.append({"role": name, "name": title, "desc": meaning})
    for name, title in OF_BUCKETS.items():
        row = {"role": name, **dict.fromkeys(parameters(name), "*")}
        rows.append(row | {"name": title, "desc": _MANAGING if name in MANAGERS else _USING})
    return rows
