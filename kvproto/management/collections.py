"""Scopes and collections of a bucket."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred

from kvproto.dataplane import need_collection, need_scope
from kvproto.management.answers import Answer, Call, errors, ok
from kvproto.management.part import Part

__all__ = ["Collections"]

MAX_TTL = 2**31 - 1
"""Seconds."""

NO_TTL = -1
"""In place of a number of seconds: none, whatever the bucket has."""


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
        return ok(self.bucket(call).manifest.describe())

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

    async def _change_collection(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        scope, name = call.words["scope"], call.words["name"]
        change = self.administration.change_collection
        return await _changed(change(bucket.name, scope, name, *_settings(call)))

    async def _create_scope(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        made = self.administration.create_scope(bucket.name, call.form.get("name", ""))
        return await _changed(made)

    async def _drop_scope(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        return await _changed(self.administration.drop_scope(bucket.name, call.words["scope"]))

    async def _create_collection(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        scope, name = call.words["scope"], call.form.get("name", "")
        create = self.administration.create_collection
        return await _changed(create(bucket.name, scope, name, *_settings(call)))

    async def _drop_collection(self, call: Call) -> Answer:
        bucket = self.managed(call, "collections!write")
        scope, name = call.words["scope"], call.words["name"]
        return await _changed(self.administration.drop_collection(bucket.name, scope, name))


def _named(rows: Iterable[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the row of a name, which is there."""
    return next(row for row in rows if row["name"] == name)


def _settings(call: Call) -> tuple[int | None, bool | None]:
    """Read ``maxTTL`` and ``history``, None where they are not given."""
    max_ttl, history = call.form.get("maxTTL"), call.form.get("history")
    found = {}
    if max_ttl is not None and not is_ttl(max_ttl, NO_TTL):
        found["maxTTL"] = f"The value must be in range from {NO_TTL} to {MAX_TTL}"
    if history not in {None, "true", "false"}:
        found["history"] = "The value must be one of the following: [true,false]"
    if found:
        raise errors(found)
    return None if max_ttl is None else int(max_ttl), None if history is None else history == "true"


def is_ttl(text: str, smallest: int) -> bool:
    """Return whether a text is a number of seconds that documents may live at most."""
    return bool(_NUMBER.match(text)) and smallest <= int(text) <= MAX_TTL


_NUMBER = re.compile(r"-?[0-9]{1,10}\Z", re.ASCII)


async def _changed(change: Deferred[int]) -> Answer:
    """Answer with the version of the manifest that has the change."""
    return ok({"uid": f"{await change:x}"})
