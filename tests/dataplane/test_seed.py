"""Seeds: what is stored, and how mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Collection, Config
from kvproto.dataplane import Administration, Seeds, UsersReload, make_server, make_stores
from kvproto.errors import CommandError
from kvproto.testing.store_case import START


class SeedTests(SynchronousTestCase):
    """A file becomes documents."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = START
        self.path = Path(self.mktemp()).absolute()
        config = Config(
            buckets=("first", "second"),
            collections=(Collection("s", "c", "first"),),
            max_value=1000,
        )
        stores = make_stores(config, self.clock)
        self.server = make_server(config, self.clock, stores=stores)
        users = UsersReload(config, self.server, self.clock, maybeDeferred)
        administration = Administration(
            config, self.server, stores, users, self.clock, maybeDeferred
        )
        self.seeds = Seeds(self.server, administration, self.clock, maybeDeferred)

    def seed(self, *lines: Any, create: bool = False) -> Deferred[Any]:
        """Seed lines: bytes as they are, anything else as JSON."""
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        self.path.write_bytes(b"\n".join(texts))
        answer = self.seeds.seed(self.path, create)
        self.clock.pump([0.0] * 100)
        return answer

    def mistake(self, *lines: Any, create: bool = False) -> tuple[str, str]:
        """Return code and reason of a failure; nothing is stored."""
        error = self.failureResultOf(self.seed(*lines, create=create), CommandError).value
        assert isinstance(error, CommandError)
        self.assertEqual(self.items(), 0)
        return error.code, error.reason

    def items(self) -> int:
        stores: list[Any] = [bucket.store for bucket in self.server.buckets.values()]
        return sum(len(piece) for store in stores for piece in store.pieces())

    def test_documents(self) -> None:
        """Of each kind, in each place, with what clients see."""
        answer = self.successResultOf(
            self.seed(
                {"key": "json", "value": {"ä": [1, 2.5, None]}},
                b"",
                {"key": "text", "text": "ä", "bucket": "second"},
                b"  ",
                {"key": "bytes", "base64": "AAH/", "flags": 7, "expiry": 10},
                {"key": "named", "value": 1, "scope": "s", "collection": "c"},
            )
        )
        self.assertEqual(answer, {"file": str(self.path), "documents": 4})
        first, second = self.server.buckets.values()
        number = first.manifest.collection_id("s", "c")
        found = [
            first.store.get(b"json"),
            second.store.get(b"text"),
            first.store.get(b"bytes"),
            first.store.get((number, b"named")),
        ]
        self.assertEqual(
            [(one.value, one.flags) for one in found],  # type: ignore[union-attr]
            [
                ('{"ä":[1,2.5,null]}'.encode(), 0x02000000),
                ("ä".encode(), 0x04000000),
                (b"\0\1\xff", 7),
                (b"1", 0x02000000),
            ],
        )
        self.clock.advance(11)
        self.assertIsNone(first.store.get(b"bytes"))
        self.assertIsNotNone(first.store.get(b"json"))

    def test_many(self) -> None:
        """Many are stored with pauses, and replace what was there."""
        self.server.buckets["first"].store.set(b"7", b"old")
        answer = self.seed(*({"key": str(number), "value": number} for number in range(1000)))
        self.assertEqual(self.successResultOf(answer)["documents"], 1000)
        document: Any = self.server.buckets["first"].store.get(b"7")
        self.assertEqual((self.items(), document.value), (1000, b"7"))
        self.assertEqual(self.successResultOf(self.seed())["documents"], 0)

    def test_mistakes(self) -> None:
        """Each is told with file and line; nothing is stored."""
        good = {"key": "k", "value": 1}
        for line, words in (
            (b"{", "is no JSON: Expecting property name"),
            (b"\xff", "is no UTF-8"),
            (b'{"key": "k", "value": NaN}', "is no JSON: NaN is no number"),
            (b"[" * 5000, "is no JSON"),
            ([], "is no JSON object"),
            ({"key": "k"}, 'needs one of "value", "text" and "base64"'),
            ({"key": "k", "value": 1, "text": ""}, 'needs one of "value"'),
            ({"value": 1}, 'needs a "key"'),
            ({"key": "", "value": 1}, 'needs a "key"'),
            ({"key": 1, "value": 1}, 'needs a "key"'),
            ({"key": "ä" * 126, "value": 1}, "has a key of 252 bytes, 250 are allowed"),
            (
                {"key": "x" * 247, "value": 1, "scope": "s", "collection": "c"},
                "has a key of 247 bytes, 246 are allowed",
            ),
            ({"key": "k", "value": "x" * 999}, "has a value of 1001 bytes, 1000 are allowed"),
            ({"key": "k", "valeu": 1}, "has an unknown field 'valeu'"),
            ({"key": "k", "text": 1}, 'has a "text" that is no text'),
            ({"key": "k", "base64": "x"}, 'has a "base64" that is none'),
            ({"key": "k", "value": 1, "expiry": -1}, 'has "expiry" that is no whole number'),
            ({"key": "k", "value": 1, "flags": True}, 'has "flags" that is no whole number'),
            ({"key": "k", "value": 1, "bucket": ""}, 'has a "bucket" that is no name'),
            (b'"' + b"x" * 70_000 + b'"', "is longer than"),
        ):
            code, reason = self.mistake(good, b"", line, good)
            self.assertEqual(code, "bad-seed", reason)
            self.assertTrue(reason.startswith(f"{self.path}:3: {words}"), reason)

    def test_not_there(self) -> None:
        """A bucket or collection that is not there is named, or created."""
        lines = (
            {"key": "k", "value": 1},
            {"key": "k", "value": 1, "bucket": "first", "scope": "new", "collection": "c"},
            {"key": "k", "value": 1, "bucket": "third", "collection": "c"},
        )
        for line, code, words in (
            (lines[1], "unknown-collection", "has no collection new.c: use --create"),
            (lines[2], "unknown-bucket", "there is no bucket 'third': use --create"),
        ):
            found, reason = self.mistake(lines[0], line)
            self.assertEqual(found, code)
            self.assertTrue(reason.startswith(f"{self.path}:2: "), reason)
            self.assertIn(words, reason)
        answer = self.successResultOf(self.seed(*lines, create=True))
        self.assertEqual((answer["documents"], self.items()), (3, 3))

    def test_bad_names(self) -> None:
        """What cannot be created is told with its line."""
        code, reason = self.mistake(
            {"key": "k", "value": 1, "bucket": "first", "scope": "_x"}, create=True
        )
        self.assertEqual(code, "bad-name")
        self.assertTrue(reason.startswith(f"{self.path}:1: First character"), reason)

    def test_no_file(self) -> None:
        """A file that cannot be read is named."""
        for path in (self.path.with_name("nowhere"), self.path.parent):
            answer = self.seeds.seed(path, False)
            error = self.failureResultOf(answer, CommandError).value
            self.assertIn(str(path), str(error))

    def test_refused(self) -> None:
        """A document that the store refuses is told with its line."""
        self.server.buckets["first"].store.set(b"k", b"1")
        self.server.buckets["first"].store.get_and_lock(b"k", 15)
        error = self.failureResultOf(self.seed({"key": "k", "value": 1}), CommandError).value
        assert isinstance(error, CommandError)
        self.assertEqual(error.code, "refused")
        self.assertEqual(error.reason, f"{self.path}:1: the store has refused it: locked")
