"""Sub-document paths, valid and not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store.paths import PathRefused, parse_path
from kvproto.wire.subdoc_terms import PathStatus
from tests.examples import examples

GOOD: dict[str, tuple[str | int, ...]] = {
    "": (),
    "a": ("a",),
    "foo.bar.baz": ("foo", "bar", "baz"),
    "array[1].item[9]": ("array", 1, "item", 9),
    "foo[0][0][0]": ("foo", 0, 0, 0),
    "[1][2][3]": (1, 2, 3),
    "[-1].[-1].a": (-1, -1, "a"),
    "`simple`.`escaped`.`path`": ("simple", "escaped", "path"),
    "escaped.`arr.idx`[9]": ("escaped", "arr.idx", 9),
    "`BACKTICK``HAPPY`.`CAMPER`": ("BACKTICK`HAPPY", "CAMPER"),
    "`[]`": ("[]",),
    "a`.`b": ("a.b",),
    "`a`b": ("ab",),
    "a``": ("a`",),
    "``a": ("`a",),
    '\\"quoted.path': ('"quoted', "path"),
    "a\\\\b": ("a\\b",),
    "tab\\there": ("tab\there",),
    "trailing.": ("trailing",),
    "gr\u00fc\u00dfe.\U0001f600": ("gr\u00fc\u00dfe", "\U0001f600"),
    "007": ("007",),
    "with space.$x-1": ("with space", "$x-1"),
    "[007]": (7,),
}

BAD = (
    ".", "....", "a..b", ".a", "[]", "[-2]", "[+1]", "[ 1]", "[1", "1]", "a]", "[not][a][number]",
    "hello[0]world", '"invalid.path', "a\\", "a\\x", "a\\u0041", "a\\.b", "a\\`b`", "`a", "``", "`",
    "a\x00b", "line\nbreak", "[1]]", "[\u0661]", "a.`b", '`"`',
)  # fmt: skip


class PathTests(SynchronousTestCase):
    """A path is taken apart as Couchbase does it, or refused."""

    def status(self, path: bytes) -> PathStatus:
        """Return why a path is refused."""
        with self.assertRaises(PathRefused) as caught:
            parse_path(path)
        status: PathStatus = caught.exception.status
        return status

    def test_good(self) -> None:
        """Names, indexes, quoting and escapes are understood."""
        for text, steps in GOOD.items():
            self.assertEqual(parse_path(text.encode()).steps, steps, text)

    def test_bad(self) -> None:
        """Whatever is no path is BAD_PATH."""
        for text in BAD:
            self.assertIs(self.status(text.encode()), PathStatus.BAD_PATH, text)
        self.assertIs(self.status(b"a\xff"), PathStatus.BAD_PATH)

    def test_names_as_json(self) -> None:
        """A name is kept as the JSON text that it came as, for insertion."""
        self.assertEqual(parse_path(b'a.\\"b[0]').texts, ("a", '\\"b', ""))

    def test_limits(self) -> None:
        """31 components and 1024 bytes are the most that a path may have."""
        self.assertEqual(len(parse_path(b".".join([b"a"] * 31)).steps), 31)
        self.assertIs(self.status(b".".join([b"a"] * 32)), PathStatus.PATH_TOO_BIG)
        self.assertIs(self.status(b"[0]" * 32), PathStatus.PATH_TOO_BIG)
        self.assertEqual(parse_path(b"a" * 1024).steps, ("a" * 1024,))
        self.assertIs(self.status(b"a" * 1025), PathStatus.PATH_TOO_BIG)

    def test_anything(self) -> None:
        """Any bytes are a path or refused, nothing else."""

        @examples(100)
        @given(st.binary(max_size=40) | st.text('a.[]`\\"-10u', max_size=20).map(str.encode))
        def check(path: bytes) -> None:
            try:
                parsed = parse_path(path)
            except PathRefused:
                return
            assert len(parsed.steps) == len(parsed.texts)

        check()
