"""The Couchbase SDK: scopes and collections, several buckets, and what is not there."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import bmemcached

from tests.integration.sdk import SDKTestCase, closing, connect
from tests.integration.service import KvtlsProcess

LETTERS = "ABCXYZabcxyz0189_-%"


class CollectionTests(SDKTestCase):
    """Collections that the service was started with."""

    options = (
        *["--user", "alice:secret", "--bucket", "default", "--bucket", "other"],
        *["--collection", "shop.items", "--collection", "_default.more"],
        *["--collection", "other:shop.only"],
    )

    def within(self, scope: str, name: str, bucket: str = "default") -> Any:
        return self.cluster.bucket(bucket).scope(scope).collection(name)

    def everywhere(self) -> list[Any]:
        paths = (("_default", "_default"), ("_default", "more"), ("shop", "items"))
        return [
            self.within(*path, bucket=bucket) for bucket in ("default", "other") for path in paths
        ]

    def test_apart(self) -> None:
        """One key is another document in each collection of each bucket."""
        places = self.everywhere()
        for number, place in enumerate(places):
            place.insert(self.key(), number)
        found = [place.get(self.key()).content_as[int] for place in places]
        self.assertEqual(found, list(range(len(places))))
        places[2].remove(self.key())
        self.assertEqual([place.exists(self.key()).exists for place in places].count(False), 1)

    def test_every_kind_of_operation(self) -> None:
        """Whatever works in the default collection works in a named one."""
        import couchbase.subdocument as SD
        from couchbase.options import GetOptions, IncrementOptions, SignedInt64

        items, key = self.within("shop", "items"), self.key()
        items.upsert(key, {"n": 1})
        items.mutate_in(key, [SD.increment("n", 1), SD.upsert("x", 1, xattr=True)])
        self.assertEqual(items.lookup_in(key, [SD.get("n")]).content_as[int](0), 2)
        items.touch(key, timedelta(seconds=100))
        found = items.get(key, GetOptions(with_expiry=True, project=["n"]))
        self.assertEqual(found.content_as[dict], {"n": 2})
        self.assertIsNotNone(found.expiry_time)
        locked = items.get_and_lock(key, timedelta(seconds=9))
        items.unlock(key, locked.cas)
        counter = items.binary().increment(self.key("n"), IncrementOptions(initial=SignedInt64(7)))
        self.assertEqual(counter.content, 7)
        many = {self.key(str(number)): number for number in range(100)}
        self.assertTrue(items.upsert_multi(many).all_ok)
        self.assertTrue(items.get_multi(list(many)).all_ok)
        longest = "k" * 246  # and the collection in front of it, in 250
        items.upsert(longest, 1)
        self.assertEqual(items.get(longest).content_as[int], 1)

    def test_unknown(self) -> None:
        """An unknown scope is not found at once, an unknown collection by the end of the wait."""
        from couchbase.exceptions import (
            AmbiguousTimeoutException,
            ScopeNotFoundException,
            UnAmbiguousTimeoutException,
        )
        from couchbase.options import GetOptions, UpsertOptions

        self.assertRaises(ScopeNotFoundException, self.within("no", "items").get, self.key())
        wait = timedelta(seconds=0.4)
        for place in (self.within("shop", "no"), self.within("shop", "only")):
            with self.assertRaises((AmbiguousTimeoutException, UnAmbiguousTimeoutException)):
                place.get(self.key(), GetOptions(timeout=wait))
            with self.assertRaises((AmbiguousTimeoutException, UnAmbiguousTimeoutException)):
                place.upsert(self.key(), 1, UpsertOptions(timeout=wait))
        self.within("shop", "only", "other").upsert(self.key(), 1)

    def test_other_clients(self) -> None:
        """Clients that know nothing of collections share the default one of the first bucket."""
        host, port = self.service.addresses[0]
        classic = bmemcached.Client(
            (f"{host}:{port}",), "alice", "secret", tls_context=self.service.client_context()
        )
        self.addCleanup(classic.disconnect_all)
        self.assertTrue(classic.set(self.key(), '{"from": "far"}'))
        self.assertEqual(self.collection.get(self.key()).content_as[dict], {"from": "far"})
        self.collection.binary().increment(self.key("n"))  # which makes it, as 0
        self.assertEqual(classic.incr(self.key("n"), 4), 4)
        self.assertEqual(self.collection.get(self.key("n")).content_as[int], 4)
        self.assertTrue(classic.delete(self.key()))
        self.assertFalse(self.collection.exists(self.key()).exists)

    def test_not_there(self) -> None:
        """What Couchbase serves over HTTP is not there, and the SDK says so instead of waiting."""
        from couchbase.exceptions import (
            FeatureUnavailableException,
            ServiceUnavailableException,
        )
        from couchbase.kv_range_scan import PrefixScan

        bucket = self.cluster.bucket("default")
        for call in (
            lambda: list(self.cluster.query("select 1")),
            lambda: bucket.collections().get_all_scopes(),
            lambda: self.cluster.buckets().get_all_buckets(),
        ):
            self.assertRaises(ServiceUnavailableException, call)
        with self.assertRaises(FeatureUnavailableException):
            list(self.collection.scan(PrefixScan("a")))

    def test_replicas(self) -> None:
        """Lookups that may ask replicas ask the active node, there being no others."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import DocumentUnretrievableException

        self.collection.upsert(self.key(), {"a": 1})
        specs = [SD.get("a")]
        found = self.collection.lookup_in_any_replica(self.key(), specs)
        self.assertEqual((found.content_as[int](0), found.is_replica), (1, False))
        all_ = list(self.collection.lookup_in_all_replicas(self.key(), specs))
        self.assertEqual([each.is_replica for each in all_], [False])
        with self.assertRaises(DocumentUnretrievableException):
            self.collection.lookup_in_any_replica(self.key("no"), specs)


class ConfigurationTests(SDKTestCase):
    """Whatever is configured, the SDK lives with it."""

    options = None

    def test_any_configuration(self) -> None:
        """1 to 64 collections with odd names in 1 to 5 buckets: each holds a document."""
        draw = random.Random(4)
        for count in (1, 64, *(draw.randint(2, 63) for _ in range(4))):
            buckets = sorted({self.name(draw, "_.%-") for _ in range(draw.randint(1, 5))})
            scopes = [self.name(draw) for _ in range(draw.randint(1, 8))]
            paths = {
                (draw.choice([*scopes, "_default"]), self.name(draw, longest=251))
                for _ in range(count)
            }
            self.loads(buckets, sorted(paths))

    @staticmethod
    def name(draw: random.Random, first: str = "-", longest: int = 100) -> str:
        """Return a name that looks as no sane person's would."""
        size = draw.choice([1, 2, 30, longest])
        begin = draw.choice("Aa09" + first)
        return begin + "".join(draw.choice(LETTERS) for _ in range(size - 1))

    def loads(self, buckets: list[str], paths: list[tuple[str, str]]) -> None:
        options = [option for bucket in buckets for option in ("--bucket", bucket)]
        options += [option for path in paths for option in ("--collection", ".".join(path))]
        with (
            KvtlsProcess("--user", "alice:secret", *options) as service,
            closing(connect(service)) as cluster,
        ):
            places = [
                cluster.bucket(bucket).scope(scope).collection(name)
                for bucket in buckets
                for scope, name in [("_default", "_default"), *paths]
            ]
            for number, place in enumerate(places):
                place.insert("key", number)
            found = [place.get("key").content_as[int] for place in places]
            self.assertEqual(found, list(range(len(places))))
