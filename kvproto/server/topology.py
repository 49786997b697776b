"""What clients are told about the cluster: its configuration and its error map.

Both are made in one place, and checked before anybody gets them, because the Couchbase SDK does not
survive mistakes in them: a configuration without TLS ports, a node without services, a body that is
no JSON, an error map without one of its fields end the *client's process*.

Source: Couchbase SDK RFC 24 (fast failover), 13 (KV error map), and what the C++ core of the 4.6
SDKs does with what it gets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvproto.errors import LocalProtocolError
from kvproto.wire.constants import Status

__all__ = [
    "CONFIG_EPOCH",
    "DEFAULT_PORT",
    "ERROR_MAP_VERSION",
    "VBUCKETS",
    "ServicePorts",
    "check_cluster_config",
    "check_error_map",
    "cluster_config",
    "error_map",
]

VBUCKETS = 64
"""Partitions of a bucket; all are here, and at each peer.  A client ignores a configuration that
changes this, so it never changes.  64 is what Couchbase itself has on macOS, so clients know it."""

CONFIG_EPOCH = 1
"""First part of a configuration's version; it would grow if revisions had to begin again."""

DEFAULT_PORT = 11207
"""What is advertised to a client that came in by something that has no port."""

ERROR_MAP_VERSION = 2

_CAPABILITIES = (
    "collections",
    "durableWrite",
    "touch",
    "cbhello",
    "cccp",
    "nodesExt",
    "xattr",
    "preserve_expiry",
    "tombstonedUserXAttrs",
    "subdoc.DocumentMacroSupport",
    "subdoc.ReplicaRead",
)
"""What clients look for before they ask for it; ``subdoc.ReplicaRead`` says that lookups may be
asked of replicas too, wherever there are any.  No ``subdoc.ReviveDocument``: transactions take it
for the command 0xd3 (replace the body with an attribute)."""

_SERVICES = frozenset({"kv", "kvSSL", "mgmt", "mgmtSSL", "n1ql", "n1qlSSL"})


@dataclass(frozen=True, slots=True)
class ServicePorts:
    """What is served beside the listener that a client has come in by.

    Attributes:
        secured: TCP ports of KV over TLS.
        plain: TCP ports of KV without TLS.
        management: Port of the management REST and of queries over TLS, 0 where there is none.
        plain_management: The same without TLS.
    """

    secured: tuple[int, ...] = ()
    plain: tuple[int, ...] = ()
    management: int = 0
    plain_management: int = 0

    def services(self, port: int) -> dict[str, int]:
        """Return the ports of all services by name, for a client that has come in by a port."""
        by_plain = port in self.plain
        secured = (self.secured or (port,))[0] if by_plain else port
        plain = port if by_plain else (*self.plain, 0)[0]
        found = {
            "kvSSL": secured,
            "kv": plain,
            "mgmtSSL": self.management,
            "n1qlSSL": self.management,
            "mgmt": self.plain_management,
            "n1ql": self.plain_management,
        }
        return {name: number for name, number in found.items() if number}


def cluster_config(
    services: Mapping[str, int],
    cluster_uuid: str,
    revision: int,
    bucket: tuple[str, str, int] | None = None,
    peers: Sequence[tuple[str, int]] = (),
    capabilities: Sequence[str] = (),
) -> bytes:
    """Make the answer to GET_CLUSTER_CONFIG.

    There is no host name of ours in it: a client goes on using the address that it has dialled,
    so that forwarded ports and address translation work.  Only what is served is advertised: a
    client waits for every service that it reads of.

    Args:
        services: Ports by Couchbase's names of services, as the client sees them; ``kvSSL`` is
            always there.
        cluster_uuid: Name of the cluster, 32 hexadecimal digits.
        revision: Clients ignore a configuration that is not newer than the one they have.
        bucket: Name, UUID (32 hexadecimal digits) and manifest version; None for the global form.
        peers: Host and port of other servers of the same documents; any of them answers for any
            key, so partitions are dealt out in turn.
        capabilities: What this bucket can beside what all can.

    Raises:
        LocalProtocolError: What came out would harm a client.
    """
    config: dict[str, Any] = {
        "rev": revision,
        "revEpoch": CONFIG_EPOCH,
        "clusterCapabilitiesVer": [1, 0],
        "clusterCapabilities": {},
        "clusterName": "kvproto",
        "clusterUUID": cluster_uuid,
        "nodesExt": [
            {"thisNode": True, "services": dict(services)},
            *({"hostname": host, "services": {"kvSSL": other}} for host, other in peers),
        ],
    }
    if bucket is not None:
        # Couchbase has the port without TLS here; clients of today do not look at it.
        config |= _bucket_part(services.get("kv", services["kvSSL"]), *bucket, peers)
        config["bucketCapabilities"] += capabilities
    encoded = json.dumps(config, separators=(",", ":")).encode()
    check_cluster_config(encoded, with_bucket=bucket is not None)
    return encoded


def _bucket_part(
    port: int, name: str, uuid: str, manifest_uid: int, peers: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    hosts = [f"[{host}]" if ":" in host else host for host, _ in peers]
    servers = [f"$HOST:{port}", *(f"{host}:{peers[at][1]}" for at, host in enumerate(hosts))]
    return {
        "name": name,
        "uuid": uuid,
        "nodeLocator": "vbucket",
        "uri": f"/pools/default/buckets/{name}",
        "streamingUri": f"/pools/default/bucketsStreaming/{name}",
        "bucketCapabilitiesVer": "",
        "bucketCapabilities": list(_CAPABILITIES),
        "collectionsManifestUid": f"{manifest_uid:x}",
        "nodes": [
            {"thisNode": True, "hostname": "$HOST:8091", "ports": {}},
            *({"hostname": f"{host}:8091", "ports": {}} for host in hosts),
        ],
        "vBucketServerMap": {
            "hashAlgorithm": "CRC",
            "numReplicas": 0,
            "serverList": servers,
            "vBucketMap": [[number % len(servers)] for number in range(VBUCKETS)],
        },
    }


def check_cluster_config(encoded: bytes, *, with_bucket: bool) -> None:
    """Raise `LocalProtocolError` if a client that got this would crash, hang or never work."""
    try:
        config = json.loads(encoded)
        nodes = config["nodesExt"]
        faults = [
            (isinstance(config["rev"], int) and config["rev"] > 0, "its revision is no number"),
            (bool(nodes), "it has no nodes"),
            (all("kvSSL" in node["services"] for node in nodes), "KV over TLS is missing"),
            (all(not {*node["services"]} - _SERVICES for node in nodes), "an unknown service"),
            (
                all(0 < port < 65536 for node in nodes for port in node["services"].values()),
                "a port is none",
            ),
            (("vBucketServerMap" in config) == with_bucket, "a bucket where none belongs"),
            (("name" in config) == with_bucket, "a name where none belongs"),
        ]
        if with_bucket:
            partitions = config["vBucketServerMap"]["vBucketMap"]
            faults += [
                (bool(config["name"]), "its bucket has no name"),
                (len(partitions) == VBUCKETS, "the number of partitions has changed"),
                (
                    all(len(chain) == 1 and 0 <= chain[0] < len(nodes) for chain in partitions),
                    "a partition is elsewhere",
                ),
                (
                    len(config["vBucketServerMap"]["serverList"]) == len(nodes),
                    "servers and nodes differ",
                ),
            ]
    except (ValueError, TypeError, KeyError) as e:
        raise LocalProtocolError(f"a cluster configuration is malformed: {e!r}") from e
    for sound, fault in faults:
        if not sound:
            raise LocalProtocolError(f"a cluster configuration is unsound: {fault}")


_ERRORS: dict[int, tuple[str, str, tuple[str, ...]]] = {
    Status.NOT_FOUND: ("KEY_ENOENT", "Not found", ("item-only",)),
    Status.EXISTS: ("KEY_EEXISTS", "Exists, or has another CAS", ("item-only",)),
    Status.TOO_BIG: ("E2BIG", "Too large", ("item-only", "invalid-input")),
    Status.INVALID: ("EINVAL", "Invalid arguments", ("internal", "invalid-input")),
    Status.NOT_STORED: ("NOT_STORED", "Nothing to append to", ("item-only",)),
    Status.NOT_A_NUMBER: ("DELTA_BADVAL", "Not a number", ("item-only", "invalid-input")),
    Status.NO_BUCKET: ("NO_BUCKET", "No bucket selected", ("conn-state-invalidated",)),
    Status.LOCKED: ("LOCKED", "Locked", ("item-locked", "item-only", "retry-now")),
    Status.NOT_LOCKED: ("NOT_LOCKED", "Not locked", ("item-only",)),
    Status.AUTH_ERROR: ("AUTH_ERROR", "Login failed", ("conn-state-invalidated", "auth")),
    Status.NO_ACCESS: ("EACCESS", "No access", ("support", "auth")),
    Status.UNKNOWN_FRAME_INFO: ("UNKNOWN_FRAME_INFO", "Unknown frame info", ("support",)),
    Status.UNKNOWN_COMMAND: ("UNKNOWN_COMMAND", "Unknown command", ("support",)),
    Status.NO_MEMORY: ("ENOMEM", "Out of memory", ("temp", "retry-later")),
    Status.NOT_SUPPORTED: ("NOT_SUPPORTED", "Not supported", ("support",)),
    Status.INTERNAL: ("EINTERNAL", "Internal error", ("internal",)),
    Status.BUSY: ("EBUSY", "Too busy", ("temp", "retry-later")),
    Status.TEMPORARY_FAILURE: ("ETMPFAIL", "Temporary failure", ("temp", "retry-later")),
    Status.UNKNOWN_COLLECTION: ("UNKNOWN_COLLECTION", "Unknown collection", ("support",)),
    Status.UNKNOWN_SCOPE: ("UNKNOWN_SCOPE", "Unknown scope", ("support",)),
    Status.DURABILITY_INVALID_LEVEL: ("DURABILITY_INVALID_LEVEL", "No such level", ("support",)),
    Status.DURABILITY_IMPOSSIBLE: ("DURABILITY_IMPOSSIBLE", "Cannot be met", ("support",)),
}
"""What is sent here: its name, what it means, and attributes that the error map knows."""

_ATTRIBUTES = frozenset({
    "item-only", "item-locked", "item-deleted", "invalid-input", "fetch-config",
    "conn-state-invalidated", "auth", "special-handling", "support", "temp", "internal",
    "retry-now", "retry-later", "no-retry", "subdoc", "dcp", "rate-limit", "system-constraint",
    "success",
})  # fmt: skip


def error_map(version: int) -> bytes:
    """Make the answer to GET_ERROR_MAP.

    Args:
        version: The highest that the client understands, from 1.

    Raises:
        LocalProtocolError: What came out would harm a client.
    """
    encoded = json.dumps(
        {
            "version": min(version, ERROR_MAP_VERSION),
            "revision": 1,
            "errors": {
                f"{code:x}": {"name": name, "desc": meaning, "attrs": list(attributes)}
                for code, (name, meaning, attributes) in _ERRORS.items()
            },
        },
        separators=(",", ":"),
    ).encode()
    check_error_map(encoded)
    return encoded


def check_error_map(encoded: bytes) -> None:
    """Raise `LocalProtocolError` if a client that got this would crash."""
    try:
        found = json.loads(encoded)
        sound = isinstance(found["version"], int) and isinstance(found["revision"], int)
        for code, error in found["errors"].items():
            int(code, 16)
            sound = sound and isinstance(error["name"], str) and isinstance(error["desc"], str)
            sound = sound and set(error["attrs"]) <= _ATTRIBUTES
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise LocalProtocolError(f"an error map is malformed: {e!r}") from e
    if not sound:
        raise LocalProtocolError("an error map is malformed")
