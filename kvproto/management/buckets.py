"""Buckets: listed, described, created, changed, flushed, dropped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from kvproto.config import valid_bucket_name
from kvproto.dataplane import BucketSettings
from kvproto.errors import CommandError
from kvproto.management.answers import Answer, Call, errors, ok
from kvproto.management.collections import MAX_TTL, is_ttl
from kvproto.management.part import Part
from kvproto.server import Bucket

__all__ = ["Buckets"]

SMALLEST_QUOTA = 100
"""MiB; Couchbase's."""

_BAD_NAME = (
    "Bucket name can only contain characters in range A-Z, a-z, 0-9 as well as underscore, "
    "period, dash & percent. Consult the documentation."
)

_KINDS = {"couchbase": "membase", "membase": "membase", "ephemeral": "ephemeral"}

_CHOICES = {
    "evictionPolicy": ("valueOnly", "fullEviction", "noEviction", "nruEviction"),
    "compressionMode": ("passive", "off", "active"),
    "conflictResolutionType": ("seqno", "lww", "custom"),
    "storageBackend": ("couchstore", "magma"),
}
"""Settings that change nothing here, and are shown as they were set; the first is the default."""

_REFUSED = {
    "durabilityMinLevel": ("none", "kvproto has no minimum durability: ask for it with each write"),
}
"""Settings that would mean something: their one value, and why no other."""

_HISTORY_DEFAULT = "historyRetentionCollectionDefault"

_NO_HISTORY: dict[str, int | bool] = {
    _HISTORY_DEFAULT: True,
    "historyRetentionBytes": 0,
    "historyRetentionSeconds": 0,
}
"""What only buckets with the backend magma have, and what it is unless it was set."""

_LONGEST_NUMBER = 20
"""Digits of one that may still have 64 bits."""

USUAL_REPLICAS = 1
"""What a bucket says that it has if it was not said when it was created, as at Couchbase."""

_MOST_REPLICAS = 3


class Buckets(Part):
    """Paths about buckets."""

    def routes(self) -> Iterable[tuple[str, str, Any]]:
        """Return method, path and handler of each route."""
        one = "/pools/default/buckets/{bucket}"
        return (
            ("GET", "/pools/default/buckets", self._list),
            ("POST", "/pools/default/buckets", self._create),
            ("GET", one, self._get),
            ("POST", one, self._change),
            ("DELETE", one, self._drop),
            ("GET", "/pools/default/b/{bucket}", self._config),
            ("POST", f"{one}/controller/doFlush", self._flush),
        )

    def _list(self, call: Call) -> Answer:
        rights = call.rights
        seen = [each for each in self.server.buckets.values() if rights.may_use(each.name)]
        return ok([self._describe(call, bucket) for bucket in seen])

    def _get(self, call: Call) -> Answer:
        return ok(self._describe(call, self.bucket(call)))

    def _config(self, call: Call) -> Answer:
        """Return what clients get over KV, the address filled in."""
        return Answer(body=self._config_of(call, self.bucket(call)))

    def _config_of(self, call: Call, bucket: Bucket) -> bytes:
        config = self.server.cluster_config(self.port(call), bucket)
        return config.replace(b"$HOST", call.host.encode())

    def _describe(self, call: Call, bucket: Bucket) -> dict[str, Any]:
        settings = self.administration.settings[bucket.name]
        config = json.loads(self._config_of(call, bucket))
        uri = f"/pools/default/buckets/{quote(bucket.name, safe='')}"
        controllers = {"flush": f"{uri}/controller/doFlush"}
        return {
            "name": bucket.name,
            "uuid": config["uuid"],
            "bucketType": settings.kind,
            "authType": "sasl",
            "uri": uri,
            "nodeLocator": "vbucket",
            "nodes": [self.node(call)],
            "replicaNumber": settings.replicas,
            "quota": {"ram": settings.ram_quota << 20, "rawRAM": settings.ram_quota << 20},
            "maxTTL": settings.max_ttl,
            "durabilityMinLevel": "none",
            **{name: choices[0] for name, choices in _CHOICES.items()},
            **_defaults(settings),
            **settings.shown,
            "controllers": controllers if self.administration.may_flush(bucket.name) else {},
            "bucketCapabilities": config["bucketCapabilities"],
            "collectionsManifestUid": config["collectionsManifestUid"],
            "vBucketServerMap": config["vBucketServerMap"],
        }

    async def _create(self, call: Call) -> Answer:
        self.administrator(call, "buckets!create")
        name = call.form.get("name", "")
        found, values = _settings(call.form, BucketSettings(), new=True)
        if not name:
            found["name"] = "Bucket name needs to be specified"
        elif not valid_bucket_name(name):
            found["name"] = _BAD_NAME
        if found:
            raise errors(found)
        if call.form.get("just_validate") == "1":
            return ok({"errors": {}})
        try:
            settings = BucketSettings(**{"replicas": USUAL_REPLICAS, **values})
            await self.administration.create_bucket(name, settings)
        except CommandError as error:
            if error.code == "exists":
                raise errors({"name": "Bucket with given name already exists"}) from None
            raise
        return Answer(202)

    async def _change(self, call: Call) -> Answer:
        bucket = self.bucket(call)
        self.administrator(call, f"bucket[{bucket.name}].settings!write")
        settings = self.administration.settings[bucket.name]
        found, values = _settings(call.form, settings, new=False)
        if found:
            raise errors(found)
        await self.administration.change_bucket(bucket.name, values)
        return Answer()

    async def _drop(self, call: Call) -> Answer:
        bucket = self.bucket(call)
        self.administrator(call, f"bucket[{bucket.name}]!delete")
        await self.administration.drop_bucket(bucket.name)
        return Answer()

    async def _flush(self, call: Call) -> Answer:
        bucket = self.managed(call, "data!flush")
        try:
            await self.administration.flush_bucket(bucket.name)
        except CommandError as error:
            if error.code == "not-allowed":
                return ok({"_": error.reason}, 400)
            raise
        return Answer()


def _defaults(settings: BucketSettings) -> dict[str, Any]:
    """Return what a bucket of this kind shows unless it was set."""
    if settings.keeps_history:
        return {"evictionPolicy": "fullEviction", **_NO_HISTORY}
    if settings.kind == "ephemeral":
        return {"evictionPolicy": "noEviction"}
    return {"replicaIndex": settings.replicas > 0}


def _settings(
    form: Mapping[str, str], before: BucketSettings, *, new: bool
) -> tuple[dict[str, str], dict[str, Any]]:
    """Read settings of a bucket.

    Args:
        form: What was sent.
        before: What it has.
        new: Whether the bucket is to be created.

    Returns:
        What is wrong, by field; and what is right, by the attributes of `BucketSettings`.
    """
    found: dict[str, str] = {}
    values: dict[str, Any] = {}
    quota = form.get("ramQuotaMB", form.get("ramQuota", "" if new else None))
    if quota is not None:
        if not _is_number(quota):
            found["ramQuota"] = "The RAM Quota must be specified and must be a positive integer."
        elif int(quota) < SMALLEST_QUOTA:
            found["ramQuota"] = f"RAM quota cannot be less than {SMALLEST_QUOTA} MiB"
        else:
            values["ram_quota"] = int(quota)
    replicas = form.get("replicaNumber")
    if replicas is not None:
        if not _is_number(replicas) or int(replicas) > _MOST_REPLICAS:
            found["replicaNumber"] = (
                f"The replica number must be specified and must be an integer between 0 and "
                f"{_MOST_REPLICAS}."
            )
        else:
            values["replicas"] = int(replicas)
    shown: dict[str, Any] = {}
    index = form.get("replicaIndex")
    if index is not None:
        if index not in {"0", "1"}:
            found["replicaIndex"] = "replicaIndex can only be 1 or 0"
        else:
            shown["replicaIndex"] = index == "1"
    flush = form.get("flushEnabled")
    if flush is not None:
        if flush not in {"0", "1", "true", "false"}:
            found["flushEnabled"] = "flushEnabled can only be 1 or 0"
        else:
            values["flush"] = flush in {"1", "true"}
    kind = form.get("bucketType") if new else None
    if kind is not None:
        if kind not in _KINDS:
            found["bucketType"] = "invalid bucket type: kvproto has couchbase and ephemeral"
        else:
            values["kind"] = _KINDS[kind]
    max_ttl = form.get("maxTTL")
    if max_ttl is not None:
        if not is_ttl(max_ttl, 0):
            found["maxTTL"] = f"Max TTL must be an integer between 0 and {MAX_TTL}"
        else:
            values["max_ttl"] = int(max_ttl)
    for name, (only, why) in _REFUSED.items():
        if form.get(name, only) != only:
            found[name] = why
    for name, choices in _CHOICES.items():
        if name in form:
            if form[name] not in choices:
                found[name] = f"{name} must be one of {', '.join(choices)}"
            else:
                shown[name] = form[name]
    _read_history(form, replace(before, shown=before.shown | shown).keeps_history, found, shown)
    return found, values | {"shown": shown}


def _read_history(
    form: Mapping[str, str], possible: bool, found: dict[str, str], shown: dict[str, Any]
) -> None:
    """Read what a bucket whose backend is magma has of history: remembered, and none is kept."""
    for name in _NO_HISTORY:
        text = form.get(name)
        if text is None:
            continue
        if not possible:
            found[name] = "History Retention can only be used with magma"
        elif name == _HISTORY_DEFAULT:
            shown[name] = text == "true"
            if text not in {"true", "false"}:
                found[name] = f"{name} must be true or false"
        elif not (text.isascii() and text.isdecimal() and len(text) < _LONGEST_NUMBER):
            found[name] = f"{name} must be a non-negative integer"
        else:
            shown[name] = int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
