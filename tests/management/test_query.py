"""The query service: what is answered, and that nothing else is."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.management.statements import (
    CreatePrimaryIndex,
    DeleteAll,
    IsIndexOnline,
    IsKeyspacePresent,
    Keyspace,
    SelectRawOne,
    kind_of,
    parse,
)
from tests.examples import examples
from tests.management.support import LIMITED, SiteCase

QUERY = "/query/service"

ONLINE = (
    'SELECT count(*) > 0 AS online FROM system:indexes where keyspace_id = "b" '
    'and is_primary = true and state = "online"'
)
"""As testcontainers asks."""

UNANSWERED = (
    "",
    ";",
    "SELECT 1",
    "SELECT RAW 2",
    "SELECT RAW 1 FROM b",
    "SELECT RAW `1`",
    'SELECT RAW "1"',
    "SELECT * FROM `b`",
    "DELETE FROM b WHERE x = 1",
    "DELETE FROM b LIMIT 1",
    "DELETE FROM b USE KEYS 'k'",
    "DELETE FROM b RETURNING *",
    "DELETE FROM b AS x",
    "DELETE FROM a.b",
    "DELETE FROM a.b.c.d",
    "DELETE FROM ``",
    "DELETE FROM b; DELETE FROM c",
    "DELETE FROM b -- c",
    "DELETE FROM b /* c */",
    "CREATE PRIMARY INDEX",
    "CREATE PRIMARY INDEX ON",
    "CREATE PRIMARY INDEX ON b USING FTS",
    'CREATE PRIMARY INDEX ON b WITH {"defer_build": true}',
    "CREATE INDEX i ON b(x)",
    "DROP PRIMARY INDEX ON b",
    "PREPARE SELECT RAW 1",
    "EXPLAIN SELECT RAW 1",
    "SELECT COUNT(*) FROM system:keyspaces",
    'SELECT COUNT(*) > 0 AS present FROM system:keyspaces WHERE name = "b" OR 1=1',
    "UPSERT INTO b VALUES ('k', 1)",
    "DELETE FROM `b",
    "SELECT RAW 1 ()" + "(" * 100,
)


class StatementTests(SynchronousTestCase):
    """Statements without a service."""

    def test_answered(self) -> None:
        """Case, white space, backticks and semicolons do not matter."""
        b = Keyspace(("b",))
        for text, wanted in (
            ("SELECT RAW 1", SelectRawOne()),
            ("  select\n raw\t1 ;; ", SelectRawOne()),
            ("DELETE FROM b", DeleteAll(b)),
            ("delete from `b`;", DeleteAll(b)),
            ("DELETE FROM`b`", DeleteAll(b)),
            ("DELETE FROM `a``b-c`", DeleteAll(Keyspace(("a`b-c",)))),
            ("DELETE FROM default:b", DeleteAll(b)),
            ("DELETE FROM default", DeleteAll(Keyspace(("default",)))),
            ("DELETE FROM `default`:`b`.`s` . c", DeleteAll(Keyspace(("b", "s", "c")))),
            ("DELETE FROM b.s.c", DeleteAll(Keyspace(("b", "s", "c")))),
            ("CREATE PRIMARY INDEX ON b", CreatePrimaryIndex(b)),
            ("CREATE PRIMARY INDEX on `b`", CreatePrimaryIndex(b)),
            ("create primary index `#primary` on b using gsi", CreatePrimaryIndex(b)),
            ("CREATE PRIMARY INDEX idx ON b", CreatePrimaryIndex(b, "idx")),
            ("CREATE PRIMARY INDEX IF NOT EXISTS ON b", CreatePrimaryIndex(b, "#primary", True)),
            ("CREATE PRIMARY INDEX IF NOT EXISTS i ON b", CreatePrimaryIndex(b, "i", True)),
            ("CREATE PRIMARY INDEX i IF NOT EXISTS ON b", CreatePrimaryIndex(b, "i", True)),
            (
                'SELECT COUNT(*) > 0 as present FROM system:keyspaces WHERE name = "b"',
                IsKeyspacePresent("b"),
            ),
            (ONLINE, IsIndexOnline("b")),
        ):
            self.assertEqual(parse(text), wanted, text)

    def test_not_answered(self) -> None:
        """Whatever else there is is not taken for one of them."""
        for text in UNANSWERED:
            self.assertIsNone(parse(text), text)

    def test_kinds(self) -> None:
        """An error names the statement."""
        for text, kind in (
            ("select * from b", "SELECT"),
            (" create  index i on b(x)", "CREATE INDEX"),
            ("create primary  index x", "CREATE PRIMARY INDEX"),
            ("DELETE FROM b WHERE 1", "DELETE"),
            ("hello", ""),
            ("", ""),
        ):
            self.assertEqual(kind_of(text), kind, text)

    @examples(300)
    @given(st.text(st.sampled_from("`.:;*()>= \n\"'abDELETEFROM1#-\\")), st.booleans())
    def test_any(self, text: str, delete: bool) -> None:
        """Nothing that is sent makes more of it than what is written here."""
        found = parse(f"DELETE FROM {text}" if delete else text)
        if delete and found is not None:
            self.assertIsInstance(found, DeleteAll)


class QueryTests(SiteCase):
    """Statements over HTTP."""

    def run_query(self, statement: str, **more: Any) -> tuple[int, dict[str, Any]]:
        """Send a statement as SDKs do."""
        body = json.dumps({"statement": statement, **more}).encode()
        code, answer = self.ask("POST", QUERY, body, kind="application/json")
        assert isinstance(answer, dict)
        return code, answer

    def error(self, statement: str, **more: Any) -> tuple[int, int]:
        """Return HTTP status and code of a statement's error."""
        code, answer = self.run_query(statement, **more)
        self.assertEqual((answer["status"], answer["results"]), ("fatal", []))
        return code, answer["errors"][0]["code"]

    def test_ping(self) -> None:
        """There is a query service."""
        self.assertEqual(self.get("/admin/ping")[0], 200)

    def test_select(self) -> None:
        """One row, in JSON and by form; the client's context comes back."""
        code, answer = self.run_query("SELECT RAW 1", client_context_id="x-1")
        self.assertEqual((code, answer["results"], answer["status"]), (200, [1], "success"))
        self.assertEqual(answer["clientContextID"], "x-1")
        self.assertEqual(answer["metrics"]["resultCount"], 1)
        self.assertNotIn("metrics", self.run_query("SELECT RAW 1", metrics=False)[1])
        self.assertEqual(self.post(QUERY, statement="SELECT RAW 1")[1]["results"], [1])
        self.assertEqual(self.get(f"{QUERY}?statement=SELECT%20RAW%201")[1]["results"], [1])

    def test_unsupported(self) -> None:
        """Every other statement is an error by name, at once."""
        for statement in UNANSWERED:
            self.assertEqual(self.error(statement), (400, 1020), statement)
        _, answer = self.run_query("SELECT * FROM b")
        self.assertIn("statement SELECT not yet implemented", answer["errors"][0]["msg"])

    def test_index(self) -> None:
        """A primary index is remembered until its keyspace is gone."""
        self.create_bucket("b")
        self.assertEqual(self.run_query(ONLINE)[1]["results"], [{"online": False}])
        self.assertEqual(self.run_query("CREATE PRIMARY INDEX ON `b`")[0], 200)
        self.assertEqual(self.run_query(ONLINE)[1]["results"], [{"online": True}])
        self.assertEqual(self.error("CREATE PRIMARY INDEX ON `b`"), (409, 4300))
        self.assertEqual(self.run_query("CREATE PRIMARY INDEX IF NOT EXISTS ON `b`")[0], 200)
        scopes = "/pools/default/buckets/b/scopes"
        self.post(scopes, name="s")
        self.post(f"{scopes}/s/collections", name="c")
        self.assertEqual(self.run_query("CREATE PRIMARY INDEX ON b.s.c")[0], 200)
        self.ask("DELETE", f"{scopes}/s/collections/c")
        self.post(f"{scopes}/s/collections", name="c")
        self.assertEqual(self.run_query("CREATE PRIMARY INDEX ON b.s.c")[0], 200)

    def test_present(self) -> None:
        """Whether there is a bucket."""
        for bucket, present in (("default", True), ("nope", False)):
            statement = (
                f'SELECT COUNT(*) > 0 as present FROM system:keyspaces WHERE name = "{bucket}"'
            )
            self.assertEqual(self.run_query(statement)[1]["results"], [{"present": present}])

    def test_delete(self) -> None:
        """Every document of the collection goes, locked ones too, and no other."""
        self.create_bucket("b")
        scopes = "/pools/default/buckets/b/scopes"
        self.post(scopes, name="s")
        for name in ("c", "d"):
            self.post(f"{scopes}/s/collections", name=name)
        bucket = self.server.buckets["b"]
        store = bucket.store
        c, d = (bucket.manifest.collection_id("s", name) for name in "cd")
        keys: list[Any] = [b"1", b"2", (c, b"1"), (c, b"2"), (d, b"1")]

        def left() -> list[Any]:
            return [key for key in keys if store.get(key) is not None]

        for key in keys:
            store.set(key, b"{}")
        store.get_and_lock(b"1", 10)
        code, answer = self.run_query("DELETE FROM b.s.c")
        self.assertEqual((code, answer["metrics"]["mutationCount"]), (200, 2))
        self.assertEqual(left(), [b"1", b"2", (d, b"1")])
        self.assertEqual(self.run_query("DELETE FROM `b`")[1]["metrics"]["mutationCount"], 2)
        self.assertEqual(left(), [(d, b"1")])
        self.run_query("DELETE FROM d", query_context="default:`b`.`s`")
        self.assertEqual(left(), [])
        self.assertEqual(self.run_query("DELETE FROM `b`")[0], 200)

    def test_errors(self) -> None:
        """Couchbase's own codes for what is wrong otherwise."""
        for statement, more, wanted in (
            ("DELETE FROM nope", {}, (404, 12003)),
            ("DELETE FROM default.s.c", {}, (404, 12021)),
            ("DELETE FROM default._default.c", {}, (404, 12003)),
            ("DELETE FROM default", {"readonly": True}, (403, 1000)),
            ("DELETE FROM c", {"query_context": "b"}, (400, 1040)),
            (f"CREATE PRIMARY INDEX {'x' * 221} ON default", {}, (500, 5000)),
            ("SELECT RAW 1", {"prepared": "x"}, (400, 4040)),
        ):
            self.assertEqual(self.error(statement, **more), wanted, statement)
        for body, code in (
            (b"{", 1100),
            (b"[]", 1100),
            (b"[" * 60_000, 1100),
            (b"{}", 1050),
            (b'{"statement": 1}', 1070),
        ):
            status, answer = self.ask("POST", QUERY, body, kind="application/json")
            self.assertEqual((status, answer["errors"][0]["code"]), (400, code), body[:10])

    def test_rights(self) -> None:
        """A user deletes nothing in a bucket that it may not use."""
        self.create_bucket("b")
        self.who = LIMITED
        self.assertEqual(self.error("DELETE FROM b"), (401, 13014))
        self.assertEqual(self.run_query("DELETE FROM `default`")[0], 200)
