"""Scopes and collections over REST."""

from __future__ import annotations

from kvproto.dataplane import administration
from kvproto.errors import RemoteProtocolError
from tests.management.support import SiteCase

SCOPES = "/pools/default/buckets/default/scopes"


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
        code, body = self.post(there, name="d", maxTTL="60")
        self.assertEqual((code, [*body["errors"]]), (400, ["maxTTL"]))
        for path in ("/pools/default/buckets/x/scopes", "/pools/default/buckets/x/scopes/s"):
            code, _ = (
                self.post(path, name="s") if path.endswith("scopes") else self.ask("DELETE", path)
            )
            self.assertEqual(code, 404)

    def test_one(self) -> None:
        """A scope, its collections, and one of these can be asked for; settings are refused."""
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
        for form in ({"maxTTL": "9"}, {"history": "true"}):
            code, body = self.ask("PATCH", one, form)
            self.assertEqual((code, [*body["errors"]]), (400, [*form]))

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
