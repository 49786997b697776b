"""Scopes and collections of a bucket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred

from kvproto.dataplane import need_collection, need_scope
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
            ("GET", f"{scopes}/{{scope}}", self._get_scope),
            ("GET", collections, self._get_collections),
            ("GET", f"{collections}/{{name}}", self._get_collection),
            ("POST", scopes, self._create_scope),
            ("DELETE", f"{scopes}/{{scope}}", self._drop_scope),
            ("POST", collections, self._create_collection),
            ("PATCH", f"{collections}/{{name}}", self._change_collection),
            ("DELETE", f"{collections}/{{name}}", self._drop_collection),
        )

    def _list(self, call: Call) -> Answer:
        return Answer(body=self.bucket(call).manifest.to_json())

    def _scope(self, call: Call) -> dict[str, Any]:
        manifest = self.bucket(call).manifest
        need_scope(manifest, call.words["scope"])
        return _named(manifest.describe()["scopes"], call.words["scope"])

    def _get_scope(self, call: Call) -> Answer:
        return ok(self._scope(call))

    def _get_collections(self, call: Call) -> Answer:
        return ok(self._scope(call)["collections"])

    def _collection(self, call: Call) -> dict[str, Any]:
        scope, name = call.words["scope"], call.words["name"]
        need_collection(self.bucket(call).manifest, scope, name)
        return _named(self._scope(call)["collections"], name)

    def _get_collection(self, call: Call) -> Answer:
        return ok(self._collection(call))

    def _change_collection(self, call: Call) -> Answer:
        """Take what changes nothing; there is nothing that could be changed."""
        bucket = self.managed(call, "collections!write")
        self._collection(call)
        _refuse_settings(call)
        return ok({"uid": f"{bucket.manifest.uid:x}"})

    async def _create_scope(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        made = self.administration.create_scope(bucket.name, call.form.get("name", ""))
        return await _changed(made)

    async def _drop_scope(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        return await _changed(self.administration.drop_scope(bucket.name, call.words["scope"]))

    async def _create_collection(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        _refuse_settings(call)
        scope, name = call.words["scope"], call.form.get("name", "")
        return await _changed(self.administration.create_collection(bucket.name, scope, name))

    async def _drop_collection(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        scope, name = call.words["scope"], call.words["name"]
        return await _changed(self.administration.drop_collection(bucket.name, scope, name))


def _named(rows: Iterable[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the row of a name, which is there."""
    return next(row for row in rows if row["name"] == name)


def _refuse_settings(call: Call) -> None:
    """Refuse settings that would promise what does not happen."""
    found = {}
    if call.form.get("maxTTL", "") not in _NO_EXPIRY:
        found["maxTTL"] = "kvproto has no expiry of a whole collection: give documents their own"
    if call.form.get("history", "false") != "false":
        found["history"] = "kvproto keeps no history of documents"
    if found:
        raise errors(found)


async def _changed(change: Deferred[int]) -> Answer:
    """Answer with the version of the manifest that has the change."""
    return ok({"uid": f"{await change:x}"})
