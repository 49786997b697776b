"""Scopes and collections over REST."""

from __future__ import annotations

import json
from typing import Any

from kvproto.dataplane import administration
from kvproto.errors import RemoteProtocolError
from tests.management.support import SiteCase

SCOPES = "/pools/default/buckets/default/scopes"
ALL_ON = {"maxTTL": 0, "history": True}


class CollectionTests(SiteCase):
    """Created, listed, dropped."""

    def test_life(self) -> None:
        """A collection is there for KV at once, and empty whenever it is created."""
        manifest = self.server.buckets["default"].manifest
        store = self.server.buckets["default"].store
        self.assertEqual(self.post(SCOPES, name="s"), (200, {"uid": "2"}))
        self.assertEqual(self.post(f"{SCOPES}/s/collections", name="c"), (200, {"uid": "3"}))
        first = manifest.collection_id("s", "c")
        store.set((first, b"k"), b"v")
        listed = self.get(SCOPES)[1]["scopes"]
        self.assertEqual(
            [(s["name"], [c["name"] for c in s["collections"]]) for s in listed],
            [("_default", ["_default"]), ("s", ["c"])],
        )
        self.assertEqual(self.ask("DELETE", f"{SCOPES}/s/collections/c"), (200, {"uid": "4"}))
        self.assertIsNone(store.get((first, b"k")))
        with self.assertRaises(RemoteProtocolError):
            manifest.collection_id("s", "c")
        self.post(f"{SCOPES}/s/collections", name="c")
        second = manifest.collection_id("s", "c")
        self.assertGreater(second, first)
        store.set((second, b"k"), b"v")
        self.assertEqual(self.ask("DELETE", f"{SCOPES}/s"), (200, {"uid": "6"}))
        self.assertIsNone(store.get((second, b"k")))
        self.assertEqual(manifest.scopes, ("_default",))
        self.assertEqual(manifest.ids, frozenset({0}))

    def test_mistakes(self) -> None:
        """Each has the status and the words by which SDKs know it."""
        self.post(SCOPES, name="s")
        self.post(f"{SCOPES}/s/collections", name="c")
        there = f"{SCOPES}/s/collections"
        for method, path, name, code, words in (
            ("POST", SCOPES, "s", 400, 'Scope with name "s" already exists'),
            ("POST", there, "c", 400, 'Collection with name "c" in scope "s" already exists'),
            ("POST", f"{SCOPES}/x/collections", "c", 404, 'Scope with name "x" is not found'),
            ("DELETE", f"{SCOPES}/x", None, 404, 'Scope with name "x" is not found'),
            ("DELETE", f"{SCOPES}/x/collections/c", None, 404, 'Scope with name "x" is not found'),
            ("DELETE", f"{there}/x", None, 404, 'Collection with name "x" in scope "s" is not'),
            ("DELETE", f"{SCOPES}/_default", None, 400, "Deleting _default scope is not allowed"),
            (
                *("DELETE", f"{SCOPES}/_default/collections/_default", None, 400),
                "Deleting _default collection is not allowed",
            ),
        ):
            answer = self.ask(method, path, None if name is None else {"name": name})
            self.assertEqual(answer[0], code, path)
            self.assertIn(words, answer[1]["errors"]["_"])
        for name, words in (
            ("", "Length must be in range"),
            ("x" * 252, "Length must be in range"),
            ("_x", "First character must not be _ or %"),
            ("%x", "First character must not be _ or %"),
            ("a.b", "Can only contain characters"),
            ("ä", "Can only contain characters"),
            ("_default", "First character must not be _ or %"),
        ):
            for path in (SCOPES, there):
                code, body = self.post(path, name=name)
                self.assertEqual(code, 400, name)
                self.assertIn(words, body["errors"]["name"])
        for max_ttl in ("-2", "2147483648", "x", "", "1.5", "٣"):
            code, body = self.post(there, name="d", maxTTL=max_ttl)
            self.assertEqual((code, [*body["errors"]]), (400, ["maxTTL"]), max_ttl)
        code, body = self.post(there, name="d", history="1")
        self.assertEqual((code, [*body["errors"]]), (400, ["history"]))
        for path in ("/pools/default/buckets/x/scopes", "/pools/default/buckets/x/scopes/s"):
            code, _ = (
                self.post(path, name="s") if path.endswith("scopes") else self.ask("DELETE", path)
            )
            self.assertEqual(code, 404)

    def test_one(self) -> None:
        """A scope, its collections, and one of these can be asked for."""
        self.post(SCOPES, name="s")
        self.post(f"{SCOPES}/s/collections", name="c")
        one = f"{SCOPES}/s/collections/c"
        code, scope = self.get(f"{SCOPES}/s")
        self.assertEqual((code, scope["name"]), (200, "s"))
        self.assertEqual(self.get(f"{SCOPES}/s/collections"), (200, scope["collections"]))
        self.assertEqual(self.get(one), (200, scope["collections"][0]))
        for path in (f"{SCOPES}/x", f"{SCOPES}/x/collections", f"{SCOPES}/s/collections/x"):
            code, body = self.get(path)
            self.assertEqual(code, 404)
            self.assertIn("is not found", body["errors"]["_"])
        self.assertEqual(self.ask("PATCH", one, {"maxTTL": "0"}), (200, {"uid": "3"}))
        for path in (f"{SCOPES}/x/collections/c", f"{SCOPES}/s/collections/x"):
            self.assertEqual(self.ask("PATCH", path, {"maxTTL": "9"})[0], 404)

    def test_max_ttl(self) -> None:
        """Given when a collection is created or changed; shown by the REST and over KV."""
        bucket = self.server.buckets["default"]
        there = f"{SCOPES}/_default/collections"
        self.post(there, name="c", maxTTL="5")
        self.assertEqual(self.get(f"{there}/c")[1]["maxTTL"], 5)
        key = bucket.manifest.collection_id("_default", "c"), b"k"

        def stored() -> tuple[float, object]:
            document: Any = bucket.store.set(key, b"v")
            rows = json.loads(bucket.manifest.to_json())["scopes"][0]["collections"]
            return document.expires_at and document.expires_at - self.clock.seconds(), rows[1]

        named = {"name": "c", "uid": "8"}
        self.assertEqual(stored(), (5, named | {"maxTTL": 5}))
        uid = bucket.manifest.uid
        for given, kept, told in (
            ("60", 60, {"maxTTL": 60}), ("-1", 0, {"maxTTL": 0}), ("0", 0, {}),
        ):  # fmt: skip
            uid += 1
            answer = self.ask("PATCH", f"{there}/c", {"maxTTL": given})
            self.assertEqual(answer, (200, {"uid": f"{uid:x}"}))
            self.assertEqual(self.get(f"{there}/c")[1]["maxTTL"], int(given))
            self.assertEqual(stored(), (kept, named | told))
        self.ask("PATCH", f"{there}/c", {"maxTTL": "7"})
        self.ask("DELETE", f"{there}/c")
        self.post(there, name="c")
        self.assertEqual(self.get(f"{there}/c")[1]["maxTTL"], 0)
        self.assertEqual(bucket.manifest.max_ttls(), {})

    def test_history(self) -> None:
        """Remembered where the backend is magma, refused elsewhere."""
        there = f"{SCOPES}/_default/collections"
        self.post(there, name="c")
        for answer in (
            self.post(there, name="d", history="true"),
            self.post(there, name="d", history="false"),
            self.ask("PATCH", f"{there}/c", {"history": "true"}),
        ):
            words = {"history": "History Retention can only be used with magma"}
            self.assertEqual(answer, (400, {"errors": words}))
        self.assertIs(self.get(f"{there}/c")[1]["history"], False)
        self.create_bucket(storageBackend="magma")
        there = "/pools/default/buckets/made/scopes/_default/collections"
        manifest = self.server.buckets["made"].manifest
        self.post(there, name="usual")
        self.post(there, name="c", history="false")
        self.assertIs(self.get(f"{there}/usual")[1]["history"], True)
        self.assertIs(self.get(f"{there}/c")[1]["history"], False)
        rows = json.loads(manifest.to_json())["scopes"][0]["collections"]
        self.assertEqual([row.get("history") for row in rows], [None, True, None])
        self.assertEqual(self.ask("PATCH", f"{there}/c", {"history": "true"})[0], 200)
        self.assertEqual(self.get(f"{there}/c")[1], {"name": "c", "uid": "9"} | ALL_ON)

    def test_limits(self) -> None:
        """There are numbers that nobody gets beyond."""
        self.patch(administration, "MAX_SCOPES", 3)
        self.patch(administration, "MAX_COLLECTIONS", 3)
        codes = [self.post(SCOPES, name=f"s{number}")[0] for number in range(3)]
        self.assertEqual(codes, [200, 200, 400])
        path = f"{SCOPES}/s0/collections"
        codes = [self.post(path, name=f"c{number}")[0] for number in range(3)]
        self.assertEqual(codes, [200, 200, 400])

    def test_told(self) -> None:
        """Clients that ask again get a newer configuration."""
        bucket = self.server.buckets["default"]
        before = self.server.cluster_config(11207, bucket)
        self.clock.advance(1)
        self.post(SCOPES, name="s")
        self.assertNotEqual(self.server.cluster_config(11207, bucket), before)
