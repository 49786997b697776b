"""Buckets over REST, in the forms of Couchbase's cluster manager."""

from __future__ import annotations

from typing import Any

from kvproto.dataplane.administration import MAX_BUCKETS
from kvproto.store import MemoryStore, Refusal
from tests.management.support import SiteCase

ALL = "/pools/default/buckets"
TTL = {"maxTTL": "60"}
REMEMBERED = ("evictionPolicy", "replicaIndex")


class BucketTests(SiteCase):
    """Created, shown, changed, flushed, dropped."""

    def test_life(self) -> None:
        """A bucket that was created is there for KV at once, until it is dropped."""
        self.assertEqual(self.create_bucket(), (202, ""))
        bucket = self.server.buckets["made"]
        bucket.store.set(b"k", b"v")
        _, shown = self.get(f"{ALL}/made")
        self.assertEqual(
            (shown["name"], shown["bucketType"], shown["quota"]["rawRAM"]),
            ("made", "membase", 100 << 20),
        )
        self.assertEqual(shown["controllers"]["flush"], f"{ALL}/made/controller/doFlush")
        self.assertEqual(shown["nodes"][0]["status"], "healthy")
        self.assertEqual([b["name"] for b in self.get(ALL)[1]], ["default", "made"])
        _, config = self.get("/pools/default/b/made")
        self.assertEqual(config["vBucketServerMap"]["serverList"], ["kv.example:11210"])
        self.assertEqual(config["name"], "made")
        self.assertEqual(self.post(f"{ALL}/made/controller/doFlush"), (200, ""))
        self.assertIsNone(bucket.store.get(b"k"))
        self.assertEqual(self.ask("DELETE", f"{ALL}/made"), (200, ""))
        self.assertEqual([*self.server.buckets], ["default"])
        for method, path in (
            ("GET", f"{ALL}/made"),
            ("GET", "/pools/default/b/made"),
            ("DELETE", f"{ALL}/made"),
            ("POST", f"{ALL}/made/controller/doFlush"),
            ("POST", f"{ALL}/made"),
        ):
            answer = self.ask(method, path, {} if method == "POST" else None)
            self.assertEqual(answer, (404, "Requested resource not found.\r\n"), path)

    def test_names(self) -> None:
        """A name in a path may be written with percent signs; names that cannot be are refused."""
        self.assertEqual(self.create_bucket("a.b-c%d_E")[0], 202)
        self.assertEqual(self.get(f"{ALL}/a.b-c%25d_E")[1]["name"], "a.b-c%d_E")
        for name in ("", "ä", "a b", "a/b", "x" * 101, "a\n"):
            code, body = self.create_bucket(name)
            self.assertEqual((code, [*body["errors"]]), (400, ["name"]), name)
        for name in ("default", "DEFAULT"):
            self.assertEqual(
                self.create_bucket(name),
                (400, {"errors": {"name": "Bucket with given name already exists"}}),
            )

    def test_settings(self) -> None:
        """What means nothing here is shown as it was set."""
        code, _ = self.create_bucket(
            bucketType="ephemeral",
            replicaNumber="1",
            evictionPolicy="nruEviction",
            compressionMode="off",
            conflictResolutionType="lww",
            maxTTL="0",
            durabilityMinLevel="none",
            unknownSetting="x",
        )
        self.assertEqual(code, 202)
        code, _ = self.post(f"{ALL}/made", ramQuotaMB="256", flushEnabled="0", maxTTL="0")
        self.assertEqual(code, 200)
        _, shown = self.get(f"{ALL}/made")
        self.assertEqual(
            [shown[name] for name in ("bucketType", "replicaNumber", "evictionPolicy")],
            ["ephemeral", 1, "nruEviction"],
        )
        self.assertEqual(shown["compressionMode"], "off")
        self.assertEqual(shown["conflictResolutionType"], "lww")
        self.assertEqual((shown["quota"]["ram"], shown["controllers"]), (256 << 20, {}))

    def test_mistakes(self) -> None:
        """Each wrong value has its sentence, and nothing is changed by a request that has one."""
        for field, value, named in (
            ("ramQuotaMB", "99", "ramQuota"),
            ("ramQuotaMB", "-1", "ramQuota"),
            ("ramQuotaMB", "1e9", "ramQuota"),
            ("ramQuotaMB", "", "ramQuota"),
            ("replicaNumber", "4", "replicaNumber"),
            ("flushEnabled", "yes", "flushEnabled"),
            ("replicaIndex", "2", "replicaIndex"),
            ("evictionPolicy", "none", "evictionPolicy"),
            ("maxTTL", "-1", "maxTTL"),
            ("maxTTL", "2147483648", "maxTTL"),
            ("maxTTL", "x", "maxTTL"),
            ("historyRetentionSeconds", "5", "historyRetentionSeconds"),
            ("durabilityMinLevel", "majority", "durabilityMinLevel"),
        ):
            code, body = self.create_bucket(**{field: value})
            self.assertEqual((code, [*body["errors"]]), (400, [named]), (field, value))
            code, body = self.post(f"{ALL}/default", {"flushEnabled": "1"} | {field: value})
            self.assertEqual((code, [*body["errors"]]), (400, [named]), (field, value))
        self.assertEqual(self.create_bucket(bucketType="memcached")[0], 400)
        code, body = self.post(ALL, {})
        self.assertEqual((code, {*body["errors"]}), (400, {"name", "ramQuota"}))
        self.assertEqual([*self.server.buckets], ["default"])
        self.assertFalse(self.administration.settings["default"].flush)

    def test_defaults(self) -> None:
        """What is not said when a bucket is created is as at Couchbase, for each kind."""
        for number, (form, shown) in enumerate(
            (
                ({}, {"evictionPolicy": "valueOnly", "replicaIndex": True}),
                ({"replicaNumber": "0"}, {"evictionPolicy": "valueOnly", "replicaIndex": False}),
                ({"replicaIndex": "0"}, {"evictionPolicy": "valueOnly", "replicaIndex": False}),
                ({"bucketType": "ephemeral"}, {"evictionPolicy": "noEviction"}),
                ({"storageBackend": "magma"}, {"evictionPolicy": "fullEviction"}),
            )
        ):
            self.create_bucket(f"b{number}", **form)
            _, found = self.get(f"{ALL}/b{number}")
            self.assertEqual(found["replicaNumber"], int(form.get("replicaNumber", "1")))
            self.assertEqual({k: found[k] for k in REMEMBERED if k in found}, shown)
        _, found = self.get(f"{ALL}/default")
        self.assertEqual((found["replicaNumber"], found["replicaIndex"]), (0, False))

    def test_max_ttl(self) -> None:
        """Documents of a bucket, and of its collections that have no other limit, expire."""
        self.assertEqual(self.create_bucket(maxTTL="60")[0], 202)
        self.assertEqual(self.get(f"{ALL}/made")[1]["maxTTL"], 60)
        scopes = f"{ALL}/made/scopes"
        for name, max_ttl in (("usual", "0"), ("own", "5"), ("none", "-1")):
            self.post(f"{scopes}/_default/collections", name=name, maxTTL=max_ttl)
        bucket = self.server.buckets["made"]
        found = {}
        for scope, name in bucket.manifest.collections:
            number = bucket.manifest.collection_id(scope, name)
            document: Any = bucket.store.set((number, b"k") if number else b"k", b"v")
            found[name] = document.expires_at and document.expires_at - self.clock.seconds()
        self.assertEqual(found, {"_default": 60, "usual": 60, "own": 5, "none": 0})
        self.assertEqual(self.post(f"{ALL}/made", maxTTL="0")[0], 200)
        document = bucket.store.set(b"k", b"v")
        self.assertEqual(document.expires_at, 0.0)
        self.assertEqual(self.get(f"{ALL}/made")[1]["maxTTL"], 0)

    def test_history(self) -> None:
        """With the backend magma there are settings, and a capability, that are only shown."""
        self.create_bucket(storageBackend="magma", historyRetentionSeconds="86400")
        self.create_bucket("other")
        shown, other = self.get(f"{ALL}/made")[1], self.get(f"{ALL}/other")[1]
        self.assertEqual(shown["historyRetentionSeconds"], 86400)
        self.assertEqual(shown["historyRetentionBytes"], 0)
        self.assertIs(shown["historyRetentionCollectionDefault"], True)
        self.assertIn("nonDedupedHistory", shown["bucketCapabilities"])
        self.assertNotIn("nonDedupedHistory", other["bucketCapabilities"])
        self.assertNotIn("historyRetentionSeconds", other)
        change = {"historyRetentionCollectionDefault": "false", "historyRetentionBytes": "9"}
        self.assertEqual(self.post(f"{ALL}/made", change)[0], 200)
        shown = self.get(f"{ALL}/made")[1]
        self.assertIs(shown["historyRetentionCollectionDefault"], False)
        for name, value in (
            ("historyRetentionCollectionDefault", "1"),
            ("historyRetentionBytes", "-1"),
            ("historyRetentionSeconds", ""),
        ):
            code, body = self.post(f"{ALL}/made", {name: value})
            self.assertEqual((code, [*body["errors"]]), (400, [name]))
        self.assertEqual(self.get(f"{ALL}/made")[1], shown)

    def test_just_validate(self) -> None:
        """Who only wants to know whether it could be created gets no bucket."""
        path = f"{ALL}?just_validate=1"
        self.assertEqual(self.post(path, name="x", ramQuotaMB="100")[0], 200)
        self.assertEqual(self.post(path, name="x", ramQuotaMB="1")[0], 400)
        self.assertEqual([*self.server.buckets], ["default"])

    def test_limit(self) -> None:
        """There is a number of buckets that nobody gets beyond."""
        for number in range(MAX_BUCKETS - 1):
            self.assertEqual(self.create_bucket(f"b{number}")[0], 202)
        code, body = self.create_bucket("more")
        self.assertEqual((code, body["errors"]), (400, {"_": "Cannot create more than 30 buckets"}))

    def test_memory(self) -> None:
        """All buckets share the memory limit, and give back what they take."""
        limit = self.config.memory_limit
        store = self.server.buckets["default"].store
        assert isinstance(store, MemoryStore)
        for number in range(2000):
            store.set(b"%d" % number, bytes(30_000))
        self.assertGreater(store.table.used, limit * 0.8)
        self.create_bucket()
        self.clock.pump([0.0] * 1000)
        made = self.server.buckets["made"].store
        assert isinstance(made, MemoryStore)
        self.assertEqual((store.table.limit, made.table.limit), (limit // 2, limit // 2))
        self.assertLessEqual(store.table.used, limit // 2)
        self.assertIsNotNone(store.get(b"1999"))
        self.ask("DELETE", f"{ALL}/made")
        self.assertEqual(store.table.limit, limit)

    def test_given_back(self) -> None:
        """Of a bucket that is dropped the memory is given back a little at a time."""
        self.create_bucket()
        store = self.server.buckets["made"].store
        assert isinstance(store, MemoryStore)
        for number in range(2500):
            store.set(b"%d" % number, b"")
        left = []
        later = self.clock.callLater

        def note(delay: float, *call: Any) -> Any:
            left.append(store.table.used)
            return later(delay, *call)

        self.patch(self.clock, "callLater", note)
        self.ask("DELETE", f"{ALL}/made")
        # All of it, and what was left after each of two pauses.
        sizes = {size for size in left if size}
        self.assertEqual((store.table.used, len(sizes)), (0, 3))

    def test_flush_refused(self) -> None:
        """A bucket without ``flushEnabled`` is not flushed."""
        self.assertEqual(
            self.post(f"{ALL}/default/controller/doFlush"),
            (400, {"_": "Flush is disabled for the bucket"}),
        )


class NoFlushTests(SiteCase):
    """What the operator forbids stays forbidden."""

    options = {"allow_flush": False}

    def test_no_flush(self) -> None:
        """``--no-flush`` is stronger than ``flushEnabled``."""
        self.create_bucket()
        self.assertEqual(self.get(f"{ALL}/made")[1]["controllers"], {})
        self.assertEqual(self.post(f"{ALL}/made/controller/doFlush")[0], 400)


class FullTests(SiteCase):
    """``--refuse-when-full``."""

    options = {"evict": False}

    def test_nothing_is_lost(self) -> None:
        """A bucket that has more than its new share keeps it, and takes no more."""
        limit = self.config.memory_limit
        store = self.server.buckets["default"].store
        assert isinstance(store, MemoryStore)
        for number in range(1500):
            store.set(b"%d" % number, bytes(30_000))
        self.assertGreater(store.table.used, limit // 2)
        self.create_bucket()
        self.clock.pump([0.0] * 1000)
        self.assertEqual(store.table.limit, limit // 2)
        self.assertEqual(len(store.table.items), 1500)
        self.assertEqual(store.set(b"more", b""), Refusal.NO_MEMORY)


class SmallTests(SiteCase):
    """A service with little memory."""

    options = {"memory_limit": 128 * 1024, "max_value": 1024}

    def test_no_room(self) -> None:
        """A bucket that could hold nothing is refused."""
        self.assertEqual(self.create_bucket("one")[0], 202)
        code, body = self.create_bucket("two")
        self.assertEqual(code, 400)
        self.assertIn("--memory-limit is too small for 3 buckets", body["errors"]["_"])


class EngineTests(SiteCase):
    """Where documents are elsewhere, buckets are those of the options."""

    options = {"store": "redis://127.0.0.1:1"}

    def test_refused(self) -> None:
        """Creating and dropping are refused with the reason."""
        for code, body in (
            self.create_bucket(),
            self.ask("DELETE", f"{ALL}/default"),
            self.post(f"{ALL}/default/scopes", name="s"),
            self.post(f"{ALL}/default", maxTTL="60"),
            self.ask("PATCH", f"{ALL}/default/scopes/_default/collections/_default", TTL),
        ):
            self.assertEqual(code, 400)
            self.assertIn("use --bucket and --collection", body["errors"]["_"])
        self.assertEqual(self.post(f"{ALL}/default", maxTTL="0", flushEnabled="1")[0], 200)
        self.assertEqual(self.get(f"{ALL}/default")[0], 200)
