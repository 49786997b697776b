"""The cluster: one node, always there; and what set-up scripts tell a node that is new.

This node is set up already: it takes the set-up calls and changes nothing by them, except that
``/settings/web`` makes the administrator that it names, or changes its password.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from kvproto import __version__
from kvproto.dataplane import CreatedUser, Given
from kvproto.management.answers import Answer, Call, errors, ok
from kvproto.management.part import VERSION, Part
from kvproto.management.users import SHORTEST_PASSWORD, TOO_SHORT

__all__ = ["Cluster"]

_SERVICES = frozenset({"kv", "n1ql", "index"})
"""What a set-up may ask for: KV; queries, of which some are answered; indexes, which are only
promised.  Others are not there."""

_ADMIN = Given(("admin",), None)

_KNOWN = _SERVICES | {"fts", "cbas", "eventing", "backup"}


class Cluster(Part):
    """Paths about the cluster as a whole."""

    def routes(self) -> Iterable[tuple[str, str, Any]]:
        """Return method, path and handler of each route."""
        return (
            ("GET", "/", self._root),
            ("GET", "/pools", self._pools),
            ("GET", "/pools/default", self._default),
            ("GET", "/pools/nodes", self._default),
            ("GET", "/pools/default/nodeServices", self._node_services),
            ("POST", "/pools/default", self._set_up),
            ("POST", "/node/controller/rename", self._set_up),
            ("POST", "/node/controller/setupServices", self._set_up_services),
            ("PUT", "/node/controller/setupAlternateAddresses/external", self._set_up),
            ("POST", "/nodes/self/controller/settings", self._set_up),
            ("POST", "/settings/indexes", self._set_up),
            ("POST", "/settings/stats", self._set_up),
            ("POST", "/settings/web", self._set_up_web),
        )

    def _root(self, call: Call) -> Answer:
        """Answer the SDK's ping."""
        return ok({"service": "kvproto", "version": __version__})

    def _pools(self, call: Call) -> Answer:
        return ok(
            {
                "pools": [{"name": "default", "uri": "/pools/default"}],
                "isAdminCreds": call.rights.administrator,
                "isEnterprise": False,
                "implementationVersion": VERSION,
                "componentsVersion": {"kvproto": __version__},
                "uuid": self.server.uuid,
                "settings": {},
            }
        )

    def _default(self, call: Call) -> Answer:
        buckets = [
            {"bucketName": bucket.name, "uuid": f"{bucket.store.uuid:032x}"}
            for bucket in self.server.buckets.values()
            if call.rights.may_use(bucket.name)
        ]
        limit = self.server.settings.memory_limit
        return ok(
            {
                "name": "default",
                "clusterName": "kvproto",
                "nodes": [self.node(call)],
                "buckets": {"uri": "/pools/default/buckets"},
                "bucketNames": buckets,
                "balanced": True,
                "rebalanceStatus": "none",
                "memoryQuota": limit >> 20,
                "storageTotals": {"ram": {"total": limit, "quotaTotal": limit}},
            }
        )

    def _node_services(self, call: Call) -> Answer:
        config = json.loads(self.server.cluster_config(self.port(call), None))
        return ok({"rev": config["rev"], "nodesExt": config["nodesExt"]})

    # -- set-up -----------------------------------------------------------------------

    def _set_up(self, call: Call) -> Answer:
        self.administrator(call, "pools!write")
        return Answer()

    def _set_up_services(self, call: Call) -> Answer:
        self.administrator(call, "pools!write")
        wanted = [word for word in re.split(r"\s*,\s*", call.form.get("services", "")) if word]
        unknown = [word for word in wanted if word not in _KNOWN]
        if unknown:
            raise errors({"_": f"Unknown services: {unknown}"})
        missing = [word for word in wanted if word not in _SERVICES]
        if missing:
            # Couchbase takes them; then the client would wait for what never comes.
            raise errors({"_": f"kvproto has no {', '.join(missing)}: only {sorted(_SERVICES)}"})
        return Answer()

    async def _set_up_web(self, call: Call) -> Answer:
        self.administrator(call, "admin.security!write")
        name, password = call.form.get("username", ""), call.form.get("password", "")
        found = {}
        if not name:
            found["username"] = "Username must not be empty"
        if len(password) < SHORTEST_PASSWORD:
            found["password"] = TOO_SHORT
        if found:
            raise errors(found)
        if name not in self.administration.users.listed:
            await self.administration.put_user(name, password, CreatedUser(_ADMIN))
        return ok({"newBaseUri": f"http://{call.host}:{self.server.ports.plain_management}/"})
