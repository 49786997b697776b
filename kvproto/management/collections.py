"""Scopes and collections of a bucket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred

from kvproto.management.answers import Answer, Call, errors, ok
from kvproto.management.part import Part

__all__ = ["Collections"]

_NO_EXPIRY = frozenset({"", "0", "-1"})


class Collections(Part):
    """Paths about scopes and collections."""

    def routes(self) -> Iterable[tuple[str, str, Any]]:
        """Return method, path and handler of each route."""
        scopes = "/pools/default/buckets/{bucket}/scopes"
        collections = f"{scopes}/{{scope}}/collections"
        return (
            ("GET", scopes, self._list),
            ("GET", f"{scopes}/", self._list),
            ("POST", scopes, self._create_scope),
            ("DELETE", f"{scopes}/{{scope}}", self._drop_scope),
            ("POST", collections, self._create_collection),
            ("DELETE", f"{collections}/{{name}}", self._drop_collection),
        )

    def _list(self, call: Call) -> Answer:
        return Answer(body=self.bucket(call).manifest.to_json())

    async def _create_scope(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        made = self.administration.create_scope(bucket.name, call.form.get("name", ""))
        return await _changed(made)

    async def _drop_scope(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        return await _changed(self.administration.drop_scope(bucket.name, call.words["scope"]))

    async def _create_collection(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        if call.form.get("maxTTL", "") not in _NO_EXPIRY:
            raise errors(
                {"maxTTL": "kvproto has no expiry of a whole collection: give documents their own"}
            )
        scope, name = call.words["scope"], call.form.get("name", "")
        return await _changed(self.administration.create_collection(bucket.name, scope, name))

    async def _drop_collection(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        scope, name = call.words["scope"], call.words["name"]
        return await _changed(self.administration.drop_collection(bucket.name, scope, name))


async def _changed(change: Deferred[int]) -> Answer:
    """Answer with the version of the manifest that has the change."""
    return ok({"uid": f"{await change:x}"})
