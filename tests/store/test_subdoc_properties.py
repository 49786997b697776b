"""Sub-document operations on any document, against a model on plain Python values."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import (
    LookupResult,
    LookupSpec,
    MemoryStore,
    MutationResult,
    MutationSpec,
    PathFlag,
    jsoncheck,
    jsontext,
)
from kvproto.store.jsoncheck import Kind, kind_of
from kvproto.store.jsontext import Text
from kvproto.store.paths import PathRefused
from kvproto.store.pieces import PIECE, at_once
from kvproto.store.subdoc import look_up, mutate
from kvproto.wire.subdoc_terms import PathOp, PathStatus
from tests.examples import examples
from tests.store.test_stateful import check_books

NAMES = ("a", "b", "c.d", "e`f", 'g"h', "")
scalars = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.sampled_from([1.5, -2.0])
    | st.text(max_size=3)
)  # fmt: skip
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=15,
)
roots = documents.filter(lambda value: isinstance(value, dict | list))
_steps: list[str | int] = [*NAMES[:5], 0, 1, 2, -1]
steps = st.sampled_from(_steps)
paths: st.SearchStrategy[list[str | int]] = st.lists(steps, max_size=4)
operations = st.sampled_from([
    PathOp.DICT_ADD, PathOp.DICT_UPSERT, PathOp.REPLACE, PathOp.REMOVE, PathOp.ARRAY_PUSH_LAST,
    PathOp.ARRAY_PUSH_FIRST, PathOp.ARRAY_INSERT, PathOp.ARRAY_ADD_UNIQUE, PathOp.COUNTER,
])  # fmt: skip
layouts = st.sampled_from([(None, (",", ":")), (None, (" , ", " : ")), (1, (",", ": "))])


def spell(path: list[str | int]) -> bytes:
    """Write a path as a client would."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            quoted = json.dumps(step, ensure_ascii=False)[1:-1].replace("`", "``")
            text += ("." if text else "") + f"`{quoted}`"
    return text.encode()


class Refused(Exception):
    """The model refuses."""


def refuse(status: PathStatus) -> None:
    """Refuse, from within an expression or a branch."""
    raise Refused(status)


def walk(root: Any, path: list[str | int]) -> tuple[Any, bool]:
    """Follow a path in a value: what it leads to, or the last thing before it breaks off."""
    here = root
    for step in path:
        if not isinstance(here, list if isinstance(step, int) else dict):
            refuse(PathStatus.MISMATCH)
        if isinstance(step, int):
            if not -len(here) <= step < len(here):
                return here, False
        elif step not in here:
            return here, False
        here = here[step]
    return here, True


def make(root: Any, path: list[str | int], value: Any, create: bool, whole: bool) -> None:
    """Store a value under a path that breaks off."""
    here = root
    for at, step in enumerate(path):
        if walk(here, [step])[1]:
            here = here[step]
            continue
        rest = path[at:]
        if (not create and (whole or len(rest) > 1)) or any(isinstance(s, int) for s in rest):
            refuse(PathStatus.NOT_FOUND)
        for name in rest[:-1]:
            here[name] = {}
            here = here[name]
        here[rest[-1]] = value
        return


def is_number(value: Any) -> bool:
    """Tell integers from booleans."""
    return isinstance(value, int) and not isinstance(value, bool)


def same(left: Any, right: Any) -> bool:
    """Compare as JSON does: 1 is not 1.0, nor true."""
    return json.dumps(left) == json.dumps(right)


def model(root: Any, op: PathOp, path: list[str | int], value: Any, create: bool) -> Any:
    """Do a mutation on plain values; return the new root."""
    root = copy.deepcopy(root)
    pushes = op in {PathOp.ARRAY_PUSH_LAST, PathOp.ARRAY_PUSH_FIRST, PathOp.ARRAY_ADD_UNIQUE}
    if op is PathOp.ARRAY_ADD_UNIQUE and isinstance(value, dict | list):
        refuse(PathStatus.CANNOT_INSERT)
    if op is PathOp.ARRAY_INSERT and not (path and is_number(path[-1]) and int(path[-1]) >= 0):
        refuse(PathStatus.BAD_PATH)
    if op is PathOp.COUNTER and not (is_number(value) and value and -(2**63) <= value < 2**63):
        refuse(PathStatus.BAD_DELTA)
    if not path and not pushes:
        refuse(PathStatus.CANNOT_INSERT)
    here, found = walk(root, path)
    if op in {PathOp.DICT_ADD, PathOp.DICT_UPSERT} and isinstance(path[-1], int):
        refuse(PathStatus.BAD_PATH)
    if op in {PathOp.REPLACE, PathOp.REMOVE} and not found:
        refuse(PathStatus.NOT_FOUND)
    if op is PathOp.DICT_ADD and found:
        refuse(PathStatus.EXISTS)
    if op is PathOp.ARRAY_INSERT:
        parent, parent_found = walk(root, path[:-1])
        if not parent_found or not isinstance(path[-1], int) or path[-1] > len(parent):
            refuse(PathStatus.NOT_FOUND)
        parent.insert(path[-1], value)
        return root
    if not found:
        make(root, path, [value] if pushes else value, create, pushes)
        return root
    if pushes:
        if not isinstance(here, list):
            refuse(PathStatus.MISMATCH)
        if op is PathOp.ARRAY_ADD_UNIQUE:
            if any(isinstance(item, dict | list) for item in here):
                refuse(PathStatus.MISMATCH)
            if any(same(item, value) for item in here):
                refuse(PathStatus.EXISTS)
        here.insert(0 if op is PathOp.ARRAY_PUSH_FIRST else len(here), value)
        return root
    parent, last = walk(root, path[:-1])[0], path[-1]
    if op is PathOp.REMOVE:
        del parent[last]
    elif op is PathOp.COUNTER:
        if not is_number(here):
            refuse(PathStatus.MISMATCH)
        if not -(2**63) <= here < 2**63:
            refuse(PathStatus.NUMBER_RANGE)
        if not -(2**63) <= here + value < 2**63:
            refuse(PathStatus.CANNOT_INSERT)
        parent[last] = here + value
    else:
        parent[last] = value
    return root


def levels(value: Any) -> int:
    """Count the levels of a plain value."""
    children = value.values() if isinstance(value, dict) else value
    return 1 + max(map(levels, children), default=0) if isinstance(value, dict | list) else 1


piece_sizes = st.sampled_from([8, 13, 32, PIECE])


def work_in(size: int) -> None:
    """Make pieces this small, so that everything is cut somewhere."""
    for module in (jsontext, jsoncheck):
        vars(module)["PIECE"] = size


class ModelTests(SynchronousTestCase):
    """Text in, text out, and in between what plain Python does, in pieces of any size."""

    def setUp(self) -> None:
        self.addCleanup(work_in, PIECE)

    def test_mutations(self) -> None:
        """Any mutation of any document gives what the model gives, text or refusal."""

        @examples(1500)
        @given(
            roots, operations, paths, documents, st.booleans(), layouts, st.booleans(), piece_sizes
        )
        def check(
            root: Any, op: PathOp, path: list[str | int], value: Any, create: bool,
            layout: tuple[int | None, tuple[str, str]], ascii_only: bool, size: int,
        ) -> None:  # fmt: skip
            work_in(size)
            indent, separators = layout
            text = json.dumps(root, indent=indent, separators=separators, ensure_ascii=ascii_only)
            new = (
                b"" if op is PathOp.REMOVE else json.dumps(value, ensure_ascii=ascii_only).encode()
            )
            try:
                expected: Any = json.dumps(model(root, op, path, value, create))
            except Refused as refused:
                expected = refused.args[0]
            try:
                after = at_once(mutate(text.encode(), op, spell(path), new, create)).data
                found: Any = json.dumps(json.loads(after))
            except PathRefused as refused_path:
                found = refused_path.status
            assert found == expected, (text, op, spell(path), new, found, expected)

        check()

    def test_lookups(self) -> None:
        """Any lookup gives the value that is there, as it is spelt there."""

        @examples(500)
        @given(roots, paths, layouts, piece_sizes)
        def check(
            root: Any, path: list[str | int], layout: tuple[int | None, tuple[str, str]], size: int
        ) -> None:
            work_in(size)
            indent, separators = layout
            text = json.dumps(root, indent=indent, separators=separators)
            try:
                here, found = walk(root, path)
                expected: Any = here if found else PathStatus.NOT_FOUND
            except Refused as refused:
                expected = refused.args[0]
            try:
                work = look_up(Text(text.encode()), PathOp.GET, spell(path))
                raw = at_once(work).decode()
            except PathRefused as refused_path:
                found_: Any = refused_path.status
            else:
                assert raw in text
                found_ = json.loads(raw)
            assert same(found_, expected)

        check()

    def test_kinds(self) -> None:
        """What is JSON and what is not is told apart as by the standard library."""

        @examples(3000)
        @given(
            st.lists(json_pieces, max_size=14).map("".join).map(str.encode)
            | documents.map(json.dumps).map(str.encode)
            | st.binary(max_size=6),
            piece_sizes,
        )
        def check(value: bytes, size: int) -> None:
            work_in(size)
            assert (at_once(kind_of(value)) is Kind.JSON) is is_json(value), value

        check()

    def test_lookups_together(self) -> None:
        """What is asked of one document together is answered as one by one, whatever the order."""

        @examples(500)
        @given(roots, st.lists(paths, min_size=2, max_size=8), layouts, piece_sizes, st.booleans())
        def check(
            root: Any, asked: list[list[str | int]], layout: tuple[int | None, tuple[str, str]],
            size: int, told: bool,
        ) -> None:  # fmt: skip
            work_in(size)
            indent, separators = layout
            data = json.dumps(root, indent=indent, separators=separators).encode()
            together = Text(data, [tuple(path) for path in asked] if told else ())
            for path in asked:
                found = []
                for text in (together, Text(data)):
                    try:
                        found.append(at_once(look_up(text, PathOp.GET, spell(path))))
                    except PathRefused as refused:
                        found.append(refused.status)  # type: ignore[arg-type]
                assert found[0] == found[1], (data, asked, path, found)

        check()

    def test_levels(self) -> None:
        """The nesting of any document is counted as the model counts it."""

        @examples(500)
        @given(
            documents | st.text('[]{}"\\\\', max_size=9).map(lambda text: [[text], {text: 1}]),
            layouts,
            piece_sizes,
        )
        def check(root: Any, layout: tuple[int | None, tuple[str, str]], size: int) -> None:
            work_in(size)
            indent, separators = layout
            text = json.dumps(root, indent=indent, separators=separators)
            for allowed in range(1, 7):
                kind = Kind.JSON if levels(root) <= allowed else Kind.TOO_DEEP
                assert at_once(kind_of(text.encode(), allowed)) is kind, (text, allowed)

        check()


def is_json(value: bytes) -> bool:
    """Say whether the standard library takes bytes for JSON (RFC 8259), nothing more lenient."""
    try:
        json.loads(value.decode(), parse_constant=int)  # which "NaN" is none of
    except (ValueError, RecursionError):
        return False
    return True


json_pieces = st.sampled_from([
    "[", "]", "{", "}", ",", ":", '"', '"a"', '"a":', "1", "-", "0", ".5", "e1", "true", "null",
    "\\", "\\n", "\\u00e9", '"\\"', " ", "\n", "\t", "\x0b", "\u00e9", "NaN", "[]", "{}", "[1]",
    '{"a":1}', "[[2]]", '{"b":{}}', "1,", '"c":3,',
])  # fmt: skip

hostile_letters = (
    st.sampled_from([chr(code) for code in (*range(0x20), 0x22, 0x5C, 0x7F, 0x85, 0x2028, 0xFEFF)])
    | st.sampled_from(list("a.[]`{},:0-1")) | st.characters(exclude_categories=["Cs"])
)  # fmt: skip
hostile_text = st.lists(hostile_letters, max_size=5).map("".join).map(str.encode)
hostile_bytes = hostile_text | st.binary(max_size=5) | st.sampled_from([
    b"\xed\xa0\x80", b"a\xed\xb0\x80b", b"\xc0\x80", b"\\ud800", b"\\u0041", b"\\`", b"`\\`n",
    b'\\"', b"\\\\", b"a\\", b"x`\\``", b"\xf4\x90\x80\x80", b"`\x1f`", b"a.`\x1f`.b", b"NaN",
])  # fmt: skip
hostile_values = (
    hostile_bytes | hostile_text.map(lambda text: b'"%b"' % text)
    | hostile_text.map(lambda text: b'{"%b":1}' % text)
    | st.sampled_from([
        b"NaN", b"-Infinity", b"01", b"1.", b"+1", b"1,2", b"[1,]", b'{"a":1,}', b"1],[2", b",",
        b'"\\ud800"', b'"\\x41"', b'"\x1f"', b"\xef\xbb\xbf1", b" ", b"1 ", b"\xa01", b"1\x00",
    ])
)  # fmt: skip


class AnythingTests(SynchronousTestCase):
    """Whatever a client sends is answered, and changes everything it names or nothing."""

    def test_accepted_is_json(self) -> None:
        """Whatever a document is made of, an accepted change leaves valid JSON, names included."""
        ops = st.sampled_from([op for op in PathOp if op not in {
            PathOp.GET, PathOp.EXISTS, PathOp.GET_COUNT, PathOp.GET_DOC,
            PathOp.SET_DOC, PathOp.DELETE_DOC,
        }])  # fmt: skip
        flags = st.sampled_from([0, 1, 4, 5])
        body_paths = hostile_bytes | st.tuples(hostile_bytes, hostile_bytes).map(b".".join)
        some_paths = body_paths | body_paths.map(lambda path: b"x." + path)
        mutations = st.lists(
            st.builds(MutationSpec, ops, flags, some_paths, hostile_values), max_size=3
        ).map(lambda specs: sorted(specs, key=lambda spec: not spec.flags & 4))
        bodies = st.sampled_from([b"{}", b"[]", b'{"a":[1],"x":{"a":1}}']) | hostile_values

        @examples(2000)
        @given(bodies, mutations)
        def check(body: bytes, specs: list[MutationSpec]) -> None:
            store = MemoryStore(Clock().seconds)
            store.set(b"k", body)
            answer = store.mutate_in(b"k", specs)
            document = store.get(b"k")
            assert document is not None
            if isinstance(answer, MutationResult) and answer.document is not None:
                if any(not spec.flags & 4 for spec in specs):
                    assert is_json(document.value), (specs, document.value)
                for name, text in (document.xattrs or {}).items():
                    assert is_json(b'{"%b":%b}' % (name.encode(), text)), (specs, name, text)
            if is_json(body) and not body.lstrip().startswith(b'"'):
                again = store.mutate_in(b"k", specs)
                looked = store.lookup_in(b"k", [LookupSpec(PathOp.GET_COUNT, 0, b"")])
                if isinstance(again, MutationResult):
                    assert all(status != PathStatus.NOT_JSON for _, status, _ in again.results)
                if isinstance(looked, LookupResult):
                    assert all(status != PathStatus.NOT_JSON for status, _ in looked.results)

        check()

    def test_control_characters(self) -> None:
        """No control character can be in a name, quoted or not; JSON has them escaped only."""
        for code in range(0x20):
            for form in ("%s", "a%sb", "`%s`", "a.`%s`", "x[0].%s"):
                path = (form % chr(code)).encode()
                store = MemoryStore(Clock().seconds)
                store.set(b"k", b"{}")
                for flag in (0, PathFlag.XATTR):
                    prefix = b"x." if flag else b""
                    spec = MutationSpec(PathOp.DICT_UPSERT, flag | 1, prefix + path, b"1")
                    answer = store.mutate_in(b"k", [spec])
                    assert isinstance(answer, MutationResult)
                    self.assertEqual(answer.results, [(0, PathStatus.BAD_PATH, b"")], path)

    def test_any_specs(self) -> None:
        """Any specs on any bytes are answered without an exception; a failure changes nothing."""
        bodies = st.binary(max_size=8) | documents.map(json.dumps).map(str.encode)
        some_paths = st.binary(max_size=6) | paths.map(spell) | st.sampled_from([
            b"x", b"x.y", b"$document", b"$XTOC", b"_s[0]", b"$document.flags",
        ])  # fmt: skip
        ops = st.sampled_from(list(PathOp)) | st.integers(0, 255)
        flags = st.sampled_from([0, 1, 4, 5, 0x10, 0x14, 0x40])
        values = bodies | st.sampled_from([b"", b"1", b"1,2", b'"${Mutation.CAS}"'])
        mutations = st.lists(st.builds(MutationSpec, ops, flags, some_paths, values), max_size=4)
        lookups = st.lists(st.builds(LookupSpec, ops, flags, some_paths), max_size=4)

        @examples(1000)
        @given(bodies, mutations, lookups, st.integers(0, 63))
        def check(
            body: bytes, specs: list[MutationSpec], looks: list[LookupSpec], doc_flags: int
        ) -> None:
            store = MemoryStore(Clock().seconds)
            store.set(b"k", body)
            before = store.get(b"k")
            answer = store.mutate_in(b"k", specs, doc_flags)
            if not isinstance(answer, MutationResult) or answer.document is None:
                assert store.get(b"k") is before
                assert before is not None
                assert before.value == body
            store.mutate_in(b"new", specs, doc_flags)
            for key in (b"k", b"new"):
                store.lookup_in(key, looks, doc_flags & 4)
            check_books(store)

        check()
