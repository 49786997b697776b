"""The Couchbase SDK: each operation on parts of documents, and each way in which it fails."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.integration.sdk import SDKTestCase
from tests.integration.service import ENGINES, not_on


class LookupTests(SDKTestCase):
    """``lookup_in``."""

    DOCUMENT = {
        "text": "grüße",
        "number": -1.5e3,
        "true": True,
        "null": None,
        "list": [10, 20, [30]],
        "map": {"a.b": {"c": 1}, "`": 2},
        "empty": {},
    }

    def look(self, *specs: Any) -> Any:
        self.collection.upsert(self.key(), self.DOCUMENT)
        return self.collection.lookup_in(self.key(), specs)

    def test_get(self) -> None:
        """A path leads to its value, into maps and lists, from the list's end too."""
        import couchbase.subdocument as SD

        wanted = {
            "text": "grüße",
            "number": -1500,
            "true": True,
            "null": None,
            "list": [10, 20, [30]],
            "list[0]": 10,
            "list[-1]": [30],
            "list[2][0]": 30,
            "map.`a.b`.c": 1,
            "map.````": 2,
            "empty": {},
        }
        found = self.look(*map(SD.get, wanted))
        for index, value in enumerate(wanted.values()):
            self.assertEqual(found.value[index]["value"], value)

    def test_exists_and_count(self) -> None:
        """Paths are counted and told from those that lead nowhere; the whole document too."""
        import couchbase.subdocument as SD

        found = self.look(
            SD.exists("list"),
            SD.exists("list[3]"),
            SD.exists("null"),
            SD.count("list"),
            SD.count("map"),
            SD.count("empty"),
            SD.count(""),
        )
        self.assertEqual([found.exists(index) for index in range(3)], [True, False, True])
        counts = [found.content_as[int](index) for index in range(3, 7)]
        self.assertEqual(counts, [3, 2, 0, len(self.DOCUMENT)])

    def test_whole_document(self) -> None:
        """The document is read beside its parts, by its own operation and not by an empty path."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import InvalidArgumentException

        self.assertEqual(self.look(SD.get_full()).content_as[dict](0), self.DOCUMENT)
        self.assertRaises(InvalidArgumentException, self.look, SD.get(""))

    def test_failures(self) -> None:
        """One path that fails does not spoil the others, and says why."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import (
            PathInvalidException,
            PathMismatchException,
            PathNotFoundException,
        )

        failures = {
            "no": PathNotFoundException,
            "list[9]": PathNotFoundException,
            "map.no": PathNotFoundException,
            "text.a": PathMismatchException,
            "list.a": PathMismatchException,
            "map[0]": PathMismatchException,
            "a..b": PathInvalidException,
            "list[x]": PathInvalidException,
            "list[-2]": PathInvalidException,
        }
        found = self.look(*map(SD.get, failures), SD.get("list[0]"), SD.count("text"))
        for index, (path, error) in enumerate(failures.items()):
            with self.assertRaises(error, msg=path):
                found.content_as[str](index)
        self.assertEqual(found.content_as[int](len(failures)), 10)
        with self.assertRaises(PathMismatchException):
            found.content_as[int](len(failures) + 1)

    def test_too_much(self) -> None:
        """Paths that are too long or too deep, and too many of them, are refused."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import InvalidArgumentException
        from couchbase.subdocument import PathTooBigException

        found = self.look(SD.get(".".join("a" * 40)), SD.get("list[0]"))
        with self.assertRaises(PathTooBigException):
            found.content_as[str](0)
        self.assertEqual(found.content_as[int](1), 10)
        # Above 1,024 bytes the whole request is malformed.
        self.assertRaises(InvalidArgumentException, self.look, SD.get("a" * 1100))
        self.assertRaises(InvalidArgumentException, self.look, *[SD.get("text")] * 17)

    def test_no_json(self) -> None:
        """There are no paths in what is no JSON."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import DocumentNotJsonException
        from couchbase.options import UpsertOptions
        from couchbase.transcoder import RawBinaryTranscoder

        raw = UpsertOptions(transcoder=RawBinaryTranscoder())
        self.collection.upsert(self.key(), b"\x00{}", raw)
        found = self.collection.lookup_in(self.key(), [SD.get("a"), SD.exists("a")])
        with self.assertRaises(DocumentNotJsonException):
            found.content_as[str](0)

    def test_no_document(self) -> None:
        """There are no paths in what is not there."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import DocumentNotFoundException

        self.assertRaises(
            DocumentNotFoundException, self.collection.lookup_in, self.key(), [SD.get("a")]
        )

    def test_virtual_attributes(self) -> None:
        """``$document`` tells what the service knows of a document."""
        import couchbase.subdocument as SD

        stored = self.collection.upsert(self.key(), {"a": 1})
        self.collection.touch(self.key(), timedelta(seconds=1000))
        macros = SD.LookupInMacro
        names = [macros.cas(), macros.expiry_time(), macros.seq_no(), macros.last_modified()]
        names += [macros.is_deleted(), macros.value_size_bytes(), macros.rev_id()]
        specs = [SD.get(name, xattr=True) for name in [*names, macros.document()]]
        found = self.collection.lookup_in(self.key(), specs)
        self.assertEqual(int(found.content_as[str](0), 16), found.cas)
        self.assertNotEqual(found.cas, stored.cas)
        self.assertGreater(found.content_as[int](1), 1_000_000_000)
        self.assertIs(found.content_as[bool](4), False)
        self.assertEqual(found.content_as[int](5), len('{"a": 1}'))
        everything = found.content_as[dict](7)
        for name in names:
            self.assertIn(name.removeprefix("$document."), everything)


class MutateTests(SDKTestCase):
    """``mutate_in``."""

    def change(self, document: Any, *specs: Any, **options: Any) -> Any:
        """Store a document, change it, return what it is then."""
        from couchbase.options import MutateInOptions

        self.collection.upsert(self.key(), document)
        self.collection.mutate_in(self.key(), specs, MutateInOptions(**options))
        return self.collection.get(self.key()).value

    def test_maps(self) -> None:
        """Members are inserted, upserted, replaced and removed."""
        import couchbase.subdocument as SD

        found = self.change(
            {"a": 1, "b": {"c": 2}, "gone": 0},
            SD.insert("new", "x"),
            SD.upsert("a", None),
            SD.upsert("b.d", [1, {}]),
            SD.replace("b.c", {"e": "ü"}),
            SD.remove("gone"),
            SD.insert("deep.er.still", 1, create_parents=True),
        )
        wanted = {"a": None, "b": {"c": {"e": "ü"}, "d": [1, {}]}, "new": "x"}
        self.assertEqual(found, {**wanted, "deep": {"er": {"still": 1}}})

    def test_lists(self) -> None:
        """Elements are put at either end and in the middle, several at once, and only once."""
        import couchbase.subdocument as SD

        found = self.change(
            {"l": [5], "u": ["x"]},
            SD.array_append("l", 6, 7),
            SD.array_prepend("l", 3, 4),
            SD.array_insert("l[1]", 30, 31),
            SD.array_addunique("u", "y"),
            SD.replace("l[0]", 0),
            SD.remove("l[-1]"),
            SD.array_append("made", 1, create_parents=True),
            SD.array_addunique("once", True, create_parents=True),
        )
        wanted = {"l": [0, 30, 31, 4, 5, 6], "u": ["x", "y"], "made": [1], "once": [True]}
        self.assertEqual(found, wanted)

    def test_root_list(self) -> None:
        """An empty path is the list that the document is."""
        import couchbase.subdocument as SD

        found = self.change([2], SD.array_append("", 3), SD.array_prepend("", 1))
        self.assertEqual(found, [1, 2, 3])

    def test_counters(self) -> None:
        """Numbers are counted up and down, also below zero, and the results told."""
        import couchbase.subdocument as SD

        self.collection.upsert(self.key(), {"n": 1})
        specs = (SD.increment("n", 41), SD.decrement("n", 50), SD.increment("new", 7))
        result = self.collection.mutate_in(self.key(), specs)
        self.assertEqual([result.content_as[int](index) for index in range(3)], [42, -8, 7])
        self.assertEqual(self.collection.get(self.key()).value, {"n": -8, "new": 7})

    def test_whole_document(self) -> None:
        """An empty path replaces, and removes, the document."""
        import couchbase.subdocument as SD

        self.assertEqual(self.change({"a": 1}, SD.replace("", {"b": 2})), {"b": 2})
        self.collection.mutate_in(self.key(), [SD.remove("")])
        self.assertFalse(self.collection.exists(self.key()).exists)

    def test_creating(self) -> None:
        """A document is made by its parts where that is asked for, and only where none is."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import DocumentExistsException, DocumentNotFoundException
        from couchbase.options import MutateInOptions

        key, change = self.key(), [SD.upsert("a", 1)]

        def mutate(semantics: Any) -> None:
            options = MutateInOptions(store_semantics=semantics)
            self.collection.mutate_in(key, change, options)

        self.assertRaises(DocumentNotFoundException, mutate, SD.StoreSemantics.REPLACE)
        mutate(SD.StoreSemantics.INSERT)
        self.assertEqual(self.collection.get(key).value, {"a": 1})
        self.assertRaises(DocumentExistsException, mutate, SD.StoreSemantics.INSERT)
        mutate(SD.StoreSemantics.UPSERT)
        self.collection.remove(key)
        mutate(SD.StoreSemantics.UPSERT)

    def test_cas_and_expiry(self) -> None:
        """Another version is not changed; an expiry can be given."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import CasMismatchException
        from couchbase.options import GetOptions, MutateInOptions

        old = self.collection.upsert(self.key(), {}).cas
        new = self.collection.upsert(self.key(), {}).cas
        change = [SD.upsert("a", 1)]
        self.assertRaises(
            CasMismatchException,
            self.collection.mutate_in,
            self.key(),
            change,
            MutateInOptions(cas=old),
        )
        options = MutateInOptions(cas=new, expiry=timedelta(seconds=100))
        self.collection.mutate_in(self.key(), change, options)
        found = self.collection.get(self.key(), GetOptions(with_expiry=True))
        self.assertIsNotNone(found.expiry_time)

    def test_failures(self) -> None:
        """Each way to fail has its error, and changes nothing of what the others did."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import (
            InvalidArgumentException,
            InvalidValueException,
            NumberTooBigException,
            PathExistsException,
            PathInvalidException,
            PathMismatchException,
            PathNotFoundException,
            ValueTooDeepException,
        )
        from couchbase.subdocument import PathTooBigException

        document = {"a": 1, "text": "x", "list": [1, {}], "big": 2**63 - 1, "map": {}}
        document["huge"] = 10**30
        deep: Any = 1
        for _ in range(40):
            deep = {"a": deep}
        self.collection.upsert(self.key(), document)
        for spec, error in (
            (SD.insert("a", 2), PathExistsException),
            (SD.insert("no.where", 2), PathNotFoundException),
            (SD.upsert("no.where", 2), PathNotFoundException),
            (SD.replace("no", 2), PathNotFoundException),
            (SD.remove("no"), PathNotFoundException),
            (SD.remove("list[7]"), PathNotFoundException),
            (SD.array_append("no", 2), PathNotFoundException),
            (SD.array_append("map", 2), PathMismatchException),
            (SD.array_prepend("text", 2), PathMismatchException),
            (SD.array_insert("list[7]", 2), PathNotFoundException),
            (SD.array_insert("map", 2), PathInvalidException),
            (SD.array_addunique("list", 1), PathMismatchException),
            (SD.upsert("text.b", 1), PathMismatchException),
            (SD.upsert("a..b", 1), PathInvalidException),
            (SD.increment("text", 1), PathMismatchException),
            (SD.increment("big", 1), InvalidValueException),
            (SD.increment("huge", 1), NumberTooBigException),
            (SD.upsert("b" * 1100, 1), InvalidArgumentException),
            (SD.upsert(".".join("b" * 40), 1, create_parents=True), PathTooBigException),
            (SD.upsert("deep", deep), ValueTooDeepException),
        ):
            with self.assertRaises(error, msg=repr(spec)):
                self.collection.mutate_in(self.key(), [SD.upsert("side", 1), spec])
        self.assertRaises(InvalidArgumentException, SD.increment, "a", 0)
        self.assertRaises(
            InvalidArgumentException,
            self.collection.mutate_in,
            self.key(),
            [SD.upsert(f"k{number}", 1) for number in range(17)],
        )
        self.assertEqual(self.collection.get(self.key()).value, document)

    def test_unique(self) -> None:
        """What is in a list already is not added to it."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import PathExistsException

        with self.assertRaises(PathExistsException):
            self.change({"u": [1, "x"]}, SD.array_addunique("u", "x"))

    def test_no_json(self) -> None:
        """Parts of what is no JSON are not changed."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import DocumentNotJsonException
        from couchbase.options import GetOptions, UpsertOptions
        from couchbase.transcoder import RawBinaryTranscoder

        raw = RawBinaryTranscoder()
        self.collection.upsert(self.key(), b"\x00{}", UpsertOptions(transcoder=raw))
        with self.assertRaises(DocumentNotJsonException):
            self.collection.mutate_in(self.key(), [SD.upsert("a", 1)])
        found = self.collection.get(self.key(), GetOptions(transcoder=raw))
        self.assertEqual(found.value, b"\x00{}")

    def test_attributes(self) -> None:
        """Extended attributes live beside the document, survive its change and die with it."""
        import couchbase.subdocument as SD
        from couchbase.exceptions import PathNotFoundException

        key, documents = self.key(), self.collection
        found = self.change(
            {"a": 1}, SD.upsert("mine.x", [1], xattr=True, create_parents=True), SD.upsert("b", 2)
        )
        self.assertEqual(found, {"a": 1, "b": 2})
        spec = [SD.get("mine.x", xattr=True)]
        self.assertEqual(documents.lookup_in(key, spec).content_as[list](0), [1])
        documents.upsert(key, {"c": 3})
        self.assertEqual(documents.lookup_in(key, spec).content_as[list](0), [1])
        documents.remove(key)
        documents.upsert(key, {})
        with self.assertRaises(PathNotFoundException):
            documents.lookup_in(key, spec).content_as[list](0)

    def test_macros(self) -> None:
        """Macros are replaced by what only the service knows."""
        not_on(ENGINES, "an engine keeps no history that tokens could name")
        import couchbase.subdocument as SD

        self.collection.upsert(self.key(), {})
        macros = {"cas": SD.MutationMacro.cas(), "seqno": SD.MutationMacro.seq_no()}
        macros["crc"] = SD.MutationMacro.value_crc32c()
        specs = [
            SD.upsert(f"m.{name}", macro, create_parents=True) for name, macro in macros.items()
        ]
        result = self.collection.mutate_in(self.key(), specs)
        found = self.collection.lookup_in(self.key(), [SD.get("m", xattr=True)])
        written = found.content_as[dict](0)
        self.assertEqual(SD.convert_macro_cas_to_cas(written["cas"]), result.cas)
        self.assertEqual(int(written["seqno"], 16), result.mutation_token().sequence_number)
        self.assertTrue(written["crc"].startswith("0x"))
