"""What the parts of the REST share: where they look, and who may what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvproto.dataplane import Administration
from kvproto.errors import CommandError
from kvproto.management.answers import Call, Refused, ok, refused
from kvproto.server import Bucket, KVServer

__all__ = ["VERSION", "Part"]

VERSION = "7.6.0-0000-community"
"""The Couchbase Server whose REST this resembles; clients choose their ways by the first two
numbers.  Of this edition, because neither analytics nor eventing can be there."""


class Part:
    """Some paths.

    Args:
        server: What it is about.
        administration: What changes it.
    """

    def __init__(self, server: KVServer, administration: Administration) -> None:
        self.server = server
        self.administration = administration

    def routes(self) -> Iterable[tuple[str, str, Any]]:
        """Return method, path and handler of each route."""
        raise NotImplementedError

    def bucket(self, call: Call) -> Bucket:
        """Return the bucket that a path names, if the user may see it."""
        name = call.words["bucket"]
        bucket = self.server.buckets.get(name)
        if bucket is None or not call.rights.may_use(name):
            raise refused(CommandError("unknown-bucket", name))
        return bucket

    def managed(self, call: Call, permission: str) -> Bucket:
        """Return the bucket that a path names, if the user may change what is in it."""
        bucket = self.bucket(call)
        if not call.rights.may_manage(bucket.name):
            raise forbidden(f"cluster.bucket[{bucket.name}].{permission}")
        return bucket

    @staticmethod
    def administrator(call: Call, permission: str) -> None:
        """Refuse users who are no administrators."""
        if not call.rights.administrator:
            raise forbidden(f"cluster.{permission}")

    def port(self, call: Call) -> int:
        """Return where KV is served, for clients that came in as this one did."""
        ports = self.server.ports
        known = (*ports.secured, *ports.plain) if call.secured else (*ports.plain, *ports.secured)
        return (*known, 0)[0]

    def node(self, call: Call) -> dict[str, Any]:
        """Describe the one node."""
        ports = self.server.ports
        management = ports.management if call.secured else ports.plain_management
        services = ["kv", *(["n1ql"] if management else [])]
        hostname = f"{call.host}:{management}"
        return {
            "hostname": hostname,
            "configuredHostname": hostname,
            "status": "healthy",
            "clusterMembership": "active",
            "recoveryType": "none",
            "thisNode": True,
            "version": VERSION,
            "os": "kvproto",
            "otpNode": "ns_1@cb.local",
            "nodeUUID": self.server.uuid,
            "clusterCompatibility": 7 * 0x10000 + 6,
            "services": services,
            "ports": {"direct": self.port(call), "httpsMgmt": ports.management},
        }


def forbidden(permission: str) -> Refused:
    """Return what Couchbase says to a user who may not do this."""
    return Refused(
        ok(
            {
                "message": "Forbidden. User needs one of the following permissions",
                "permissions": [permission],
            },
            403,
        )
    )
