"""Each sub-document operation on text, and each way it is refused."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from kvproto.store.jsoncheck import Kind, kind_of
from kvproto.store.jsontext import Text
from kvproto.store.paths import PathRefused
from kvproto.store.pieces import at_once
from kvproto.store.subdoc import Edit, look_up, mutate
from kvproto.wire.subdoc_terms import PathOp, PathStatus

ADD, UPSERT, REPLACE, REMOVE = (
    PathOp.DICT_ADD, PathOp.DICT_UPSERT, PathOp.REPLACE, PathOp.REMOVE,
)  # fmt: skip
LAST, FIRST, INSERT, UNIQUE, COUNTER = (
    PathOp.ARRAY_PUSH_LAST, PathOp.ARRAY_PUSH_FIRST, PathOp.ARRAY_INSERT,
    PathOp.ARRAY_ADD_UNIQUE, PathOp.COUNTER,
)  # fmt: skip
NOT_FOUND, MISMATCH, EXISTS = PathStatus.NOT_FOUND, PathStatus.MISMATCH, PathStatus.EXISTS
BAD_PATH, CANNOT = PathStatus.BAD_PATH, PathStatus.CANNOT_INSERT
TOO_DEEP = PathStatus.VALUE_TOO_DEEP

# operation, document, path, value, whether to create parents: what comes out
MUTATIONS: list[tuple[PathOp, str, str, str, bool, str | PathStatus]] = [
    (ADD, "{}", "a", "1", False, '{"a":1}'),
    (ADD, "{ }", "a", "1", False, '{"a":1 }'),
    (ADD, '{"a":1}', "b", "[1, 2]", False, '{"a":1,"b":[1, 2]}'),
    (ADD, '{"a":1 }', "b", " null ", False, '{"a":1,"b": null  }'),
    (ADD, '{"a":1}', "a", "2", False, EXISTS),
    (ADD, '{"a":1}', "b.c", "2", False, NOT_FOUND),
    (ADD, '{"a":1}', "b.c.d", "2", True, '{"a":1,"b":{"c":{"d":2}}}'),
    (ADD, '{"a":{}}', "a.c.d", "2", True, '{"a":{"c":{"d":2}}}'),
    (ADD, '{"a":{}}', "a.c[0]", "2", True, BAD_PATH),
    (ADD, '{"a":{}}', "a.c[0].d", "2", True, NOT_FOUND),
    (ADD, '{"a":[1]}', "a[0]", "2", False, BAD_PATH),
    (ADD, '{"a":[1]}', "a.b", "2", False, MISMATCH),
    (ADD, '{"a":1}', "a.b", "2", True, MISMATCH),
    (ADD, "[]", "a", "2", False, MISMATCH),
    (ADD, "5", "a", "2", True, MISMATCH),
    (ADD, "{}", "", "2", False, CANNOT),
    (ADD, "{}", "a", "INVALID", False, CANNOT),
    (ADD, "{}", "a", "1,2", False, CANNOT),
    (ADD, "{}", "a", '1,"b":2', False, CANNOT),
    (ADD, "{}", "a", '{"b"}', False, CANNOT),
    (ADD, "{}", "a", "01", False, CANNOT),
    (ADD, "{}", "a", "2.", False, CANNOT),
    (ADD, "{}", "a", "NaN", False, CANNOT),
    (ADD, "{}", "a", "'b'", False, CANNOT),
    (ADD, "{}", "a", "  ", False, CANNOT),
    (ADD, "{}", "a", '"\n"', False, CANNOT),
    (ADD, "{}", '\\"q', "1", False, '{"\\"q":1}'),
    (ADD, '{"\\u0061":1}', "a", "1", False, EXISTS),
    (UPSERT, '{"a":1}', "a", "2", False, '{"a":2}'),
    (UPSERT, '{"a":1}', "b", "2", False, '{"a":1,"b":2}'),
    (UPSERT, '{"a" : {"b":[1,2]} ,"c":3}', "a.b", "0", False, '{"a" : {"b":0} ,"c":3}'),
    (UPSERT, '{"a":[1]}', "a[0]", "2", False, BAD_PATH),
    (UPSERT, '{"a":[1]}', "a[-1]", "2", False, BAD_PATH),
    (REPLACE, '{"a":1}', "a", "2", False, '{"a":2}'),
    (REPLACE, '{"a":1}', "b", "2", False, NOT_FOUND),
    (REPLACE, '{"a":[1, 2 ,3]}', "a[1]", "[]", False, '{"a":[1, [] ,3]}'),
    (REPLACE, "[1,2]", "[-1]", "9", False, "[1,9]"),
    (REPLACE, "[1,2]", "[2]", "9", False, NOT_FOUND),
    (REPLACE, "[]", "[-1]", "9", False, NOT_FOUND),
    (REPLACE, "{}", "a.b", "9", True, NOT_FOUND),
    (REPLACE, "[]", "", "9", True, CANNOT),
    (REMOVE, '{"a":1}', "a", "", False, "{}"),
    (REMOVE, '{ "a" : 1 }', "a", "", False, "{  }"),
    (REMOVE, '{"a":1,"b":2,"c":3}', "a", "", False, '{"b":2,"c":3}'),
    (REMOVE, '{"a":1, "b":2, "c":3}', "b", "", False, '{"a":1, "c":3}'),
    (REMOVE, '{"a":1 , "b":2 }', "b", "", False, '{"a":1  }'),
    (REMOVE, "[1,2,3]", "[0]", "", False, "[2,3]"),
    (REMOVE, "[1,2,3]", "[-1]", "", False, "[1,2]"),
    (REMOVE, "[0,[1,[2]],{}]", "[1][1][0]", "", False, "[0,[1,[]],{}]"),
    (REMOVE, "[1]", "[1]", "", False, NOT_FOUND),
    (REMOVE, "[1]", "a", "", False, MISMATCH),
    (REMOVE, "[1]", "", "", False, CANNOT),
    (LAST, "[]", "", "1", False, "[1]"),
    (LAST, "[ ]", "", "1,2", False, "[1,2 ]"),
    (LAST, '{"a":[1 ]}', "a", "2, 3", False, '{"a":[1,2, 3 ]}'),
    (LAST, "{}", "", "1", False, MISMATCH),
    (LAST, '{"a":1}', "a", "1", True, MISMATCH),
    (LAST, "{}", "a", "1", False, NOT_FOUND),
    (LAST, "{}", "a", "1,2", True, '{"a":[1,2]}'),
    (LAST, "{}", "a.b", "1", True, '{"a":{"b":[1]}}'),
    (LAST, "[]", "[0]", "1", True, NOT_FOUND),
    (LAST, "[]", "", "1,", False, CANNOT),
    (LAST, "[]", "", ",1", False, CANNOT),
    (LAST, "[]", "", "1]", False, CANNOT),
    (LAST, "[]", "", "1 2", False, CANNOT),
    (FIRST, "[]", "", "1,2", False, "[1,2]"),
    (FIRST, "[ 3]", "", "1,2", False, "[1,2, 3]"),
    (FIRST, "[ ]", "", "1", False, "[1 ]"),
    (FIRST, "{}", "a", "1", False, NOT_FOUND),
    (FIRST, "{}", "a", "1", True, '{"a":[1]}'),
    (FIRST, '{"a":{}}', "a", "1", False, MISMATCH),
    (INSERT, "[1,2,4]", "[2]", "3", False, "[1,2,3,4]"),
    (INSERT, "[1,2]", "[0]", "-1,0", False, "[-1,0,1,2]"),
    (INSERT, "[1,2]", "[2]", "3", False, "[1,2,3]"),
    (INSERT, "[]", "[0]", "1", False, "[1]"),
    (INSERT, "[1,2]", "[3]", "3", False, NOT_FOUND),
    (INSERT, "[1,2]", "[-1]", "3", False, BAD_PATH),
    (INSERT, "[1,2]", "[0].a", "3", False, BAD_PATH),
    (INSERT, "{}", "[0]", "3", False, MISMATCH),
    (INSERT, "{}", "a[0]", "3", False, NOT_FOUND),
    (INSERT, "[]", "", "3", False, BAD_PATH),
    (INSERT, "[]", "[0]", "blah", False, CANNOT),
    (UNIQUE, '["a"]', "", '"b"', False, '["a","b"]'),
    (UNIQUE, '["a"]', "", '"a"', False, EXISTS),
    (UNIQUE, "[1,2,3]", "", "1", False, EXISTS),
    (UNIQUE, "[1,2,3]", "", "2", False, EXISTS),
    (UNIQUE, "[1,2,3]", "", "3\t", False, EXISTS),
    (UNIQUE, "[1, 2,3 ]", "", "4", False, "[1, 2,3,4 ]"),
    (UNIQUE, "[1,[],3]", "", "3", False, MISMATCH),
    (UNIQUE, '["1"]', "", "1", False, '["1",1]'),
    (UNIQUE, "[1.0]", "", "1", False, "[1.0,1]"),
    (UNIQUE, '["23"]', "", "1234", False, '["23",1234]'),
    (UNIQUE, "[true , null]", "", " null", False, EXISTS),
    (UNIQUE, "[[]]", "", "1", False, MISMATCH),
    (UNIQUE, "[1,[]]", "", "1", False, MISMATCH),
    (UNIQUE, "[]", "", "[1]", False, CANNOT),
    (UNIQUE, "[]", "", "1,2", False, CANNOT),
    (UNIQUE, "{}", "a", "1", False, NOT_FOUND),
    (UNIQUE, "{}", "a", "1", True, '{"a":[1]}'),
    (UNIQUE, "{}", "", "1", False, MISMATCH),
    (COUNTER, '{"n":5}', "n", "-7", False, '{"n":-2}'),
    (COUNTER, "{}", "n", "42", False, '{"n":42}'),
    (COUNTER, "{}", "a.n", "42", False, NOT_FOUND),
    (COUNTER, "{}", "a.n", "42", True, '{"a":{"n":42}}'),
    (COUNTER, "[]", "[0]", "42", True, NOT_FOUND),
    (COUNTER, "[-20]", "[0]", "1", False, "[-19]"),
    (COUNTER, '{"n":3.14}', "n", "1", False, MISMATCH),
    (COUNTER, '{"n":1e3}', "n", "1", False, MISMATCH),
    (COUNTER, '{"n":"1"}', "n", "1", False, MISMATCH),
    (COUNTER, '{"n":true}', "n", "1", False, MISMATCH),
    (COUNTER, '{"n":9223372036854775806}', "n", "1", False, '{"n":9223372036854775807}'),
    (COUNTER, '{"n":9223372036854775806}', "n", "2", False, CANNOT),
    (COUNTER, '{"n":-9223372036854775807}', "n", "-2", False, CANNOT),
    (COUNTER, '{"n":9223372036854775808}', "n", "1", False, PathStatus.NUMBER_RANGE),
    (COUNTER, '{"n":%s}' % ("9" * 5000), "n", "1", False, PathStatus.NUMBER_RANGE),
    (COUNTER, '{"n":0}', "n", "-9223372036854775808", False, '{"n":-9223372036854775808}'),
    (COUNTER, '{"n":0}', "n", "9223372036854775808", False, PathStatus.BAD_DELTA),
    *((COUNTER, "{}", "n", delta, True, PathStatus.BAD_DELTA)
      for delta in ("bad", "3.14", "-", "43f", "0", "-0", "01", "+1", " 1", "1 ", "")),
    (COUNTER, "{}", "", "1", True, CANNOT),
]  # fmt: skip

# operation, document, path: what comes out
LOOKUPS: list[tuple[PathOp, str, str, str | PathStatus]] = [
    (PathOp.GET, '{"a":{"b":[1, 2.50 ,3]}}', "a.b", "[1, 2.50 ,3]"),
    (PathOp.GET, '{"a":{"b":[1, 2.50 ,3]}}', "a.b[1]", "2.50"),
    (PathOp.GET, '{"a":{"b":[1, 2.50 ,3]}}', "a.b[-1]", "3"),
    (PathOp.GET, '{"a":1e400,"a":2}', "a", "1e400"),
    (PathOp.GET, '{"a":%s}' % ("9" * 5000), "a", "9" * 5000),
    (PathOp.GET, '{"b":"\\u00e9\u00e9"}', "b", '"\\u00e9\u00e9"'),
    (PathOp.GET, '{"x":[{"y":1}, {"y":2}]}', "x[1].y", "2"),
    (PathOp.GET, '{"dot.key":1,"`":2}', "`dot.key`", "1"),
    (PathOp.GET, '{"dot.key":1,"`":2}', "````", "2"),
    (PathOp.GET, " [1] ", "", "[1]"),
    (PathOp.GET, "{}", "a", NOT_FOUND),
    (PathOp.GET, "{}", "a.b.c", NOT_FOUND),
    (PathOp.GET, "[]", "[-1]", NOT_FOUND),
    (PathOp.GET, "[1]", "[1]", NOT_FOUND),
    (PathOp.GET, "[1]", "a", MISMATCH),
    (PathOp.GET, '{"a":1}', "a.b", MISMATCH),
    (PathOp.GET, '{"a":1}', "a[0]", MISMATCH),
    (PathOp.GET, '{"a":"b"}', "a.b", MISMATCH),
    (PathOp.GET, "5", "a", MISMATCH),
    (PathOp.EXISTS, ' "a"', "a", PathStatus.NOT_JSON),
    (PathOp.GET_COUNT, '"a"', "", PathStatus.NOT_JSON),
    (PathOp.GET, "{}", "a..b", BAD_PATH),
    (PathOp.EXISTS, '{"a":null}', "a", ""),
    (PathOp.EXISTS, '{"a":null}', "b", NOT_FOUND),
    (PathOp.GET_COUNT, '{"a":1,"b":[1,2,3]}', "", "2"),
    (PathOp.GET_COUNT, '{"a":1,"b":[1,2,3]}', "b", "3"),
    (PathOp.GET_COUNT, "[]", "", "0"),
    (PathOp.GET_COUNT, "{ }", "", "0"),
    (PathOp.GET_COUNT, '{"a":1}', "a", MISMATCH),
    (PathOp.GET_COUNT, '{"a":1}', "b", NOT_FOUND),
]


def mutated(text: str, op: PathOp, path: str, value: str, create: bool) -> Edit:
    """Do a mutation."""
    return at_once(mutate(text.encode(), op, path.encode(), value.encode(), create))


def kind(value: bytes) -> Kind:
    """Find out what bytes are."""
    return at_once(kind_of(value))


def outcome(op: PathOp, text: str, path: str, value: str, create: bool) -> str | PathStatus:
    """Do a mutation; return the new text, or why not."""
    try:
        return mutated(text, op, path, value, create).data.decode()
    except PathRefused as refused:
        return refused.status


class OperationTests(SynchronousTestCase):
    """An operation changes what it is asked to, and not a byte more."""

    def test_mutations(self) -> None:
        """Each mutation gives the text, or the refusal, of the table."""
        for op, text, path, value, create, expected in MUTATIONS:
            found = outcome(op, text, path, value, create)
            self.assertEqual(found, expected, f"{op.name} {text[:50]} {path} {value}")
            if isinstance(expected, str):
                json.loads(expected)

    def test_lookups(self) -> None:
        """Each lookup gives the text, or the refusal, of the table."""
        for op, text, path, expected in LOOKUPS:
            try:
                work = look_up(Text(text.encode()), op, path.encode())
                found: str | PathStatus = at_once(work).decode()
            except PathRefused as refused:
                found = refused.status
            self.assertEqual(found, expected, f"{op.name} {text[:50]} {path}")

    def test_counter_answers_the_number(self) -> None:
        """A counter answers with the new number, other operations with nothing."""
        self.assertEqual(mutated('{"n":5}', COUNTER, "n", "2", False).answer, b"7")
        self.assertEqual(mutated("{}", COUNTER, "n", "-2", False).answer, b"-2")
        self.assertIsNone(mutated("{}", ADD, "n", "2", False).answer)


class DepthTests(SynchronousTestCase):
    """Nothing gets deeper than 32 levels, a scalar counted as one."""

    def test_levels(self) -> None:
        """Levels are counted as Couchbase does; brackets in strings are none."""
        for text, levels in (
            ("1", 1), ("[]", 1), ("[1]", 2), ('{"a":1}', 2), ('{"a":{}}', 2), ("[[],[[1]],2]", 4),
            ('"[[[["', 1), ('["\\"[[", []]', 2), ("{}", 1),
        ):  # fmt: skip
            for allowed, expected in ((levels, Kind.JSON), (levels - 1, Kind.TOO_DEEP)):
                self.assertIs(at_once(kind_of(text.encode(), allowed)), expected, text)

    def test_documents(self) -> None:
        """A document of 32 levels can be worked on, one of 33 is known to be too deep."""
        self.assertIs(kind(b"[" * 32 + b"]" * 32), Kind.JSON)
        self.assertIs(kind(b"[" * 31 + b"1" + b"]" * 31), Kind.JSON)
        self.assertIs(kind(b"[" * 33 + b"]" * 33), Kind.TOO_DEEP)
        self.assertIs(kind(b"[" * 32 + b"1" + b"]" * 32), Kind.TOO_DEEP)
        self.assertIs(kind(b"[" * 100_000 + b"]" * 100_000), Kind.TOO_DEEP)
        self.assertIs(kind(b"[[]," * 40 + b"1" + b"]" * 40), Kind.TOO_DEEP)
        self.assertIs(kind(b"[" + b"[]," * 40 + b"1]"), Kind.JSON)

    def test_values(self) -> None:
        """A value fits under a path when both together have at most 32 levels."""
        deep = "[" * 31 + "1" + "]" * 31
        path = "[0]" * 30
        self.assertEqual(outcome(REPLACE, deep, path, "[3,4]", False).count("4"), 1)  # type: ignore[union-attr]
        self.assertIs(outcome(REPLACE, deep, path, "[[5]]", False), TOO_DEEP)
        self.assertIsInstance(outcome(LAST, deep, path, "[]", False), str)
        self.assertIs(outcome(LAST, deep, path, "[5]", False), TOO_DEEP)
        self.assertIsInstance(outcome(LAST, deep, path, "5,6", False), str)
        for at, where in ((FIRST, path), (INSERT, path + "[0]")):
            self.assertIsInstance(outcome(at, deep, where, "[]", False), str)
            self.assertIs(outcome(at, deep, where, "[5]", False), TOO_DEEP)
        self.assertIs(outcome(LAST, "[]", "", "[" * 100_000, False), TOO_DEEP)
        names = ".".join("a" * 31)
        self.assertIsInstance(outcome(ADD, "{}", names, "1", True), str)
        self.assertIs(outcome(ADD, "{}", names, "[1]", True), TOO_DEEP)
        self.assertIs(outcome(ADD, "{}", names + ".a", "1", True), PathStatus.PATH_TOO_BIG)


class KindTests(SynchronousTestCase):
    """What is JSON is found out by parsing it."""

    def test_json(self) -> None:
        """Any JSON value is JSON, white space around it included."""
        for value in (b"{}", b"[1]", b"5", b" null ", b'"\xc3\xa9"', b"-0.5e-7", b"9" * 5000):
            self.assertIs(kind(value), Kind.JSON, value)

    def test_opaque(self) -> None:
        """Anything else is not."""
        for value in (
            b"", b" ", b"{", b"{}{}", b"01", b"NaN", b"Infinity", b"-Infinity", b"nul", b"'a'",
            b'"\xff"', b'"\n"', b"\xef\xbb\xbf{}", b"{'a':1}", b"[1,]", b"-", b"\x00",
        ):  # fmt: skip
            self.assertIs(kind(value), Kind.OPAQUE, value)
