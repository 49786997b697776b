"""Terms survive the way out and back, and hostile bytes cost little."""

from __future__ import annotations

import contextlib
import enum
import math
import struct
import sys
import tracemalloc
import zlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist import (
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    MapPairs,
    Pid,
    Port,
    Reference,
    decode,
    encode,
)
from kvproto.dist.etf import LARGEST_MIXED_DICT, MAX_DEPTH, decode_at
from kvproto.errors import LocalProtocolError, RemoteProtocolError
from tests.examples import examples

CLOSURE = Fun(
    bytes.fromhex(
        "01407934 4470d913 d0428d38 28e49bf1 63000000 02000000 01770570 726f6265"
        "61026203 c9a25858 770d6e6f 6e6f6465 406e6f68 6f737400 00000900 00000000 0000006107"
    )
)
"""``X = 7, fun(Y) -> X + Y end`` in a module ``probe``, as OTP 25 writes it."""

U32 = st.integers(0, 2**32 - 1)
ATOMS = st.text(st.characters(exclude_categories=["Cs"]), max_size=255).map(Atom)
SCALARS = st.one_of(
    st.integers(),
    st.integers(-(2**2100), 2**2100),
    st.floats(allow_nan=False, allow_infinity=False),
    ATOMS,
    st.binary(),
    st.builds(Pid, ATOMS, U32, U32, U32),
    st.builds(Port, ATOMS, st.integers(0, 2**64 - 1), U32),
    st.builds(Reference, ATOMS, U32, st.lists(U32, min_size=1, max_size=5).map(tuple)),
    st.builds(Export, ATOMS, ATOMS, st.integers(0, 255)),
    st.just(CLOSURE),
    st.tuples(st.binary(max_size=8), st.integers(0, 255), st.integers(1, 7)).map(
        lambda parts: BitString(
            parts[0] + bytes([parts[1] & (0xFF00 >> parts[2]) & 0xFF]), parts[2]
        )
    ),
)


def _key_bytes(key: Any) -> bytes:
    """Return what is the same for keys that Erlang takes for the same."""
    return encode(MapPairs(((key, 0),)))


def _as_map(pairs: list[tuple[Any, Any]]) -> Any:
    """Build what the decoder would: a dict where one can hold the keys, each key once."""
    pairs = list({_key_bytes(key): (key, value) for key, value in pairs}.values())
    try:
        encode(MapPairs(tuple(pairs)))
    except LocalProtocolError:  # 0.0 and -0.0
        pairs = pairs[:1]
    try:
        found = dict(pairs)
    except TypeError:
        return MapPairs(tuple(pairs))
    return found if len(found) == len(pairs) else MapPairs(tuple(pairs))


TERMS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(inner, max_size=6).map(tuple),
        st.lists(st.tuples(inner, inner), max_size=5).map(_as_map),
        st.tuples(st.lists(inner, min_size=1, max_size=3).map(tuple), SCALARS).map(
            lambda parts: ImproperList(*parts)
        ),
    ),
    max_leaves=30,
)


def _same(left: Any, right: Any) -> bool:
    """Compare as Erlang does: 1, 1.0 and true are three things."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict):
        return _same(MapPairs(tuple(left.items())), MapPairs(tuple(right.items())))
    if isinstance(left, MapPairs):
        return [_key_bytes(key) for key, _ in left.pairs] == [
            _key_bytes(key) for key, _ in right.pairs
        ] and _same([value for _, value in left.pairs], [value for _, value in right.pairs])
    if isinstance(left, ImproperList):
        return _same((left.elements, left.tail), (right.elements, right.tail))
    return bool(left == right)


class RoundTripTests(SynchronousTestCase):
    """Whatever is encoded is decoded again."""

    @examples(200)
    @given(TERMS)
    def test_any_term(self, term: Any) -> None:
        """A term comes back equal, type by type."""
        self.assertTrue(_same(decode(encode(term)), term), term)

    @examples(50)
    @given(TERMS, TERMS)
    def test_two_in_a_row(self, first: Any, second: Any) -> None:
        """Two terms, as in a send, are told apart without a length between them."""
        data = encode(first) + encode(second)
        found, end = decode_at(data)
        self.assertTrue(_same(found, first))
        found, end = decode_at(data, end)
        self.assertTrue(_same(found, second))
        self.assertEqual(end, len(data))

    def test_kinds_that_python_confuses(self) -> None:
        """1, 1.0 and true stay three keys of a map, in their order."""
        data = encode(MapPairs(((1, Atom("a")), (1.0, Atom("b")), (Atom("true"), Atom("c")))))
        found = decode(data)
        self.assertEqual([repr(key) for key, _ in found.pairs], ["1", "1.0", "Atom('true')"])

    def test_keys_that_python_cannot_hash(self) -> None:
        """A map with a list or a map in a key is kept as pairs."""
        pairs = MapPairs((([1], 2), ({3: 4}, 5), ((6, [7]), 8)))
        self.assertEqual(decode(encode(pairs)), pairs)

    def test_map_pairs_are_no_key_themselves(self) -> None:
        """Pairs cannot be hashed, like the dict they stand for."""
        self.assertRaises(TypeError, hash, MapPairs(()))

    def test_true_is_an_atom(self) -> None:
        """Python's own constants become atoms, in a list of integers too."""
        self.assertEqual(decode(encode([1, True, False, None])), [1, "true", "false", "undefined"])
        self.assertIs(type(decode(encode(True))), Atom)

    def test_text_is_a_binary(self) -> None:
        """A plain str is sent as UTF-8; only an Atom is an atom."""
        self.assertEqual(decode(encode("né")), "né".encode())
        self.assertEqual(decode(encode(Atom("né"))), Atom("né"))

    def test_strings_are_lists(self) -> None:
        """A list of bytes takes the short form and comes back as a list."""
        self.assertEqual(encode([104, 105]), b"\x83\x6b\x00\x02hi")
        self.assertEqual(decode(encode([104, 105])), [104, 105])
        self.assertEqual(decode(encode([255] * 70000)), [255] * 70000)

    def test_subclasses_are_what_they_extend(self) -> None:
        """An IntEnum member is an integer there."""
        self.assertEqual(decode(encode([Colour.RED, 4])), [3, 4])

    def test_atoms_of_255_characters(self) -> None:
        """The longest atom has 255 characters, however many bytes that is."""
        atom = Atom("\U0001f600" * 255)
        self.assertEqual(decode(encode(atom)), atom)
        self.assertRaises(LocalProtocolError, encode, Atom("x" * 256))

    def test_ports_are_as_wide_as_needed(self) -> None:
        """A port id of 32 bits takes the form that every peer knows."""
        self.assertEqual(encode(Port(Atom("n"), 2**32 - 1, 1))[1], 89)
        self.assertEqual(encode(Port(Atom("n"), 2**32, 1))[1], 120)

    def test_golden_bytes(self) -> None:
        """Erlang's term_to_binary({ok, [1|2], <<1:1>>, -1, 1.5}) and ours are the same."""
        term = (Atom("ok"), ImproperList((1,), 2), BitString(b"\x80", 1), -1, 1.5)
        data = bytes.fromhex(
            "8368057702 6f6b 6c00000001610161024d000000010180 62ffffffff 463ff8000000000000"
        )
        self.assertEqual(encode(term), data)
        self.assertEqual(decode(data), term)

    def test_latin1_atoms(self) -> None:
        """An atom in the old encoding is the same atom."""
        self.assertEqual(decode(b"\x83\x64\x00\x02n\xe9"), Atom("né"))
        self.assertEqual(decode(b"\x83\x73\x02n\xe9"), Atom("né"))

    def test_whole_bitstring_is_bytes(self) -> None:
        """A bitstring that ends on a byte is a binary, and unused bits are cleared."""
        self.assertEqual(decode(b"\x83\x4d\x00\x00\x00\x01\x08a"), b"a")
        self.assertEqual(decode(b"\x83\x4d\x00\x00\x00\x01\x01\xff"), BitString(b"\x80", 1))

    def test_list_in_list_tail(self) -> None:
        """A list whose tail is a list is one list."""
        self.assertEqual(decode(b"\x83\x6c\x00\x00\x00\x01a\x01\x6b\x00\x01\x02"), [1, 2])
        nested = b"\x83" + b"\x6c\x00\x00\x00\x01a\x01" * 2 + b"a\x02"
        self.assertEqual(decode(nested), ImproperList((1, 1), 2))

    def test_list_of_nothing_but_a_tail(self) -> None:
        """Erlang reads a list of no elements and a tail as the tail, and so do we."""
        self.assertEqual(decode(b"\x83\x6c\x00\x00\x00\x00a\x01"), 1)


class Colour(enum.IntEnum):
    """An integer with a name."""

    RED = 3


SURROGATE = chr(0xD800)

UNWRITABLE: dict[str, Any] = {
    "infinity": math.inf,
    "not a number": math.nan,
    "an object": object(),
    "a set": {1, 2},
    "a bytearray": bytearray(b"x"),
    "a complex number": 1j,
    "a type": int,
    "integer": 1 << 4_194_240,
    "atom of 256": Atom("x" * 256),
    "atom with a surrogate": Atom(SURROGATE),
    "text with a surrogate": SURROGATE,
    "improper list of nothing": ImproperList((), 1),
    "improper list of a number": ImproperList(1, 2),  # type: ignore[arg-type]
    "improper list of a text": ImproperList("ab", 2),  # type: ignore[arg-type]
    "bitstring of nothing": BitString(b"", 1),
    "bitstring of 8 bits": BitString(b"a", 8),
    "bitstring of 0 bits": BitString(b"a", 0),
    "bitstring of text": BitString("a", 1),  # type: ignore[arg-type]
    "bitstring of text bits": BitString(b"a", "1"),  # type: ignore[arg-type]
    "reference of no words": Reference(Atom("n"), 1, ()),
    "reference of six words": Reference(Atom("n"), 1, (1,) * 6),
    "reference of a wide word": Reference(Atom("n"), 1, (2**32,)),
    "reference of a text": Reference(Atom("n"), 1, "12"),  # type: ignore[arg-type]
    "reference of None": Reference(Atom("n"), 1, None),  # type: ignore[arg-type]
    "reference of an incarnation": Reference(Atom("n"), -1, (1,)),
    "pid id": Pid(Atom("n"), 2**32, 0, 0),
    "pid negative id": Pid(Atom("n"), -1, 0, 0),
    "pid text id": Pid(Atom("n"), "1", 0, 0),  # type: ignore[arg-type]
    "pid float id": Pid(Atom("n"), 1.0, 0, 0),  # type: ignore[arg-type]
    "pid serial": Pid(Atom("n"), 1, 2**32, 0),
    "pid creation": Pid(Atom("n"), 1, 0, 2**32),
    "pid node": Pid(b"n", 1, 0, 0),  # type: ignore[arg-type]
    "pid node length": Pid(Atom("n" * 256), 1, 0, 0),
    "port id": Port(Atom("n"), 2**64, 1),
    "port negative id": Port(Atom("n"), -1, 1),
    "port creation": Port(Atom("n"), 1, None),  # type: ignore[arg-type]
    "export text arity": Export(Atom("m"), Atom("f"), "x"),  # type: ignore[arg-type]
    "export arity": Export(Atom("m"), Atom("f"), 256),
    "export negative arity": Export(Atom("m"), Atom("f"), -1),
    "export of types": Export(Atom, Atom, "x"),  # type: ignore[arg-type]
    "export module": Export(None, Atom("f"), 1),  # type: ignore[arg-type]
    "fun of nothing": Fun(b""),
    "fun of noise": Fun(b"xyz" * 40),
    "fun of text": Fun("x"),  # type: ignore[arg-type]
    "map of a number": MapPairs(1),  # type: ignore[arg-type]
    "map of no pairs": MapPairs(((1,),)),  # type: ignore[arg-type]
    "map of triples": MapPairs(((1, 2, 3),)),  # type: ignore[arg-type]
    "map of lists": MapPairs(([1, 2],)),  # type: ignore[arg-type]
}
"""Values that no Erlang node could hold, or that are no values of the table in `terms`."""

N_H = Atom("n@h")

TWICE: dict[str, Any] = {
    "text and binary": {"a": 1, b"a": 2},
    "true": {True: 1, Atom("true"): 2},
    "undefined": {None: 1, Atom("undefined"): 2},
    "pairs": MapPairs(((1, 1), (1, 2))),
    "enum": MapPairs(((Colour.RED, 1), (3, 2))),
    "inside a tuple": {("a", 1): 1, (b"a", 1): 2},
    "inside a list": MapPairs(((["a"], 1), ([b"a"], 2))),
    "list with a tail": MapPairs((([1, 300], 1), (ImproperList((1,), [300]), 2))),
    "string with a tail": MapPairs((([1, 2], 1), (ImproperList((1,), [2]), 2))),
    "list with a tail with a tail": MapPairs(
        ((ImproperList((1, 2), 3), 1), (ImproperList((1,), ImproperList((2,), 3)), 2))
    ),
    "enum in a list": MapPairs((([Colour.RED], 1), ([3], 2))),
    "bits that do not count": MapPairs(((BitString(b"\xe0", 3), 1), (BitString(b"\xff", 3), 2))),
    "maps in another order": MapPairs((({1: 2, 3: 4}, 1), ({3: 4, 1: 2}, 2))),
    "dict and pairs": MapPairs((({1: 2}, 1), (MapPairs(((1, 2),)), 2))),
    "zeros": MapPairs(((0.0, 1), (-0.0, 2))),
    "zeros in tuples": MapPairs((((0.0,), 1), ((-0.0,), 2))),
    "references": MapPairs(((Reference(N_H, 1, (7,)), 1), (Reference(N_H, 1, (7, 0)), 2))),
    "in a value": [{1: {"a": 1, b"a": 2}}],
    "in a key": MapPairs((({"a": 1, b"a": 2}, 1),)),
}
"""Maps that Erlang calls corrupted: a key is there twice, for Erlang."""

ONCE: dict[str, Any] = {
    "one and 1.0": MapPairs(((1, 1), (1.0, 2), (Atom("true"), 3))),
    "atom and binary": {Atom("a"): 1, b"a": 2},
    "true and its name": {True: 1, b"true": 2, "other": 3},
    "list and tuple": MapPairs((([1], 1), ((1,), 2))),
    "maps that differ": MapPairs((({1: 2}, 1), ({1: 3}, 2))),
    "a zero": MapPairs(((-0.0, 1), (0, 2))),
    "lists of other tails": MapPairs(((ImproperList((1,), 2), 1), ([1, 2], 2))),
}


class UnwritableTests(SynchronousTestCase):
    """What Erlang could not hold is our own fault, and said so."""

    def test_each(self) -> None:
        """Each is refused with LocalProtocolError, alone and inside others."""
        for name, term in UNWRITABLE.items():
            with self.subTest(term=name):
                self.assertRaises(LocalProtocolError, encode, term)
                self.assertRaises(LocalProtocolError, encode, (1, [{1: term}]))

    def test_too_deep(self) -> None:
        """More levels than are read are not written."""
        deep: Any = []
        for _ in range(MAX_DEPTH + 1):
            deep = [deep]
        self.assertRaises(LocalProtocolError, encode, deep)

    def test_too_many_elements(self) -> None:
        """A tuple has at most 16,777,215 elements."""
        self.assertRaises(LocalProtocolError, encode, (None,) * (1 << 24))

    def test_key_twice(self) -> None:
        """A map with a key twice, as Erlang compares keys, is refused."""
        for name, term in TWICE.items():
            with self.subTest(term=name):
                self.assertRaises(LocalProtocolError, encode, term)

    def test_keys_that_only_look_alike(self) -> None:
        """Keys that Erlang tells apart are written."""
        for name, term in ONCE.items():
            with self.subTest(term=name):
                found = decode(encode(term))
                self.assertEqual(
                    len(found.pairs if type(found) is MapPairs else found),
                    len(term.pairs if type(term) is MapPairs else term),
                )

    def test_closure(self) -> None:
        """A closure of a peer is sent back as it came, with one byte less it is none."""
        self.assertEqual(decode(encode(CLOSURE)), CLOSURE)
        for end in range(len(CLOSURE.data)):
            self.assertRaises(LocalProtocolError, encode, Fun(CLOSURE.data[:end]))

    def test_closure_over_a_corrupted_map(self) -> None:
        """What a closure holds must be readable, too."""
        twice = b"\x74\x00\x00\x00\x02" + b"a\x01" * 4
        self.assertRaises(LocalProtocolError, encode, Fun(CLOSURE.data[:-2] + twice))

    def test_keys_inside_keys_cost_linear_time(self) -> None:
        """Maps inside keys of maps are compared once, not once for each level."""
        term: Any = [0] * 1000
        for _ in range(MAX_DEPTH - 2):
            term = MapPairs(((term, 1),))
        calls = 0

        def count(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            encode(term)
        finally:
            sys.setprofile(None)
        self.assertLess(calls, 20_000)


# Hypothesis prints what it draws from, and Python prints no integer of 4,194,241 bits.
SHORT_UNWRITABLE = [term for name, term in UNWRITABLE.items() if name != "integer"]

WILD = st.recursive(
    st.one_of(
        SCALARS,
        st.booleans(),
        st.none(),
        st.text(max_size=3),
        st.sampled_from([*SHORT_UNWRITABLE, Colour.RED, 0.0, -0.0, b"a", "a"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(st.tuples(inner, inner), max_size=3).map(lambda pairs: MapPairs(tuple(pairs))),
        st.builds(ImproperList, st.lists(inner, max_size=2).map(tuple), inner),
        st.builds(Export, inner, inner, inner),
        st.builds(Pid, inner, inner, inner, inner),
        st.builds(Reference, inner, inner, inner),
        st.builds(BitString, inner, inner),
        st.builds(Fun, inner),
    ),
    max_leaves=12,
)
"""Anything that a program may hand over."""


class AnythingTests(SynchronousTestCase):
    """Whatever a program hands over is written so that it can be read, or refused."""

    @examples(400)
    @given(WILD)
    def test_written_or_refused(self, term: Any) -> None:
        """No other exception than LocalProtocolError, no bytes that we would not read."""
        try:
            data = encode(term)
        except LocalProtocolError:
            return
        again = decode(data)
        self.assertEqual(_key_bytes(again), _key_bytes(term))


class HostileTests(SynchronousTestCase):
    """Bytes from a peer that means harm."""

    def assert_refused(self, data: bytes) -> None:
        self.assertRaises(RemoteProtocolError, decode, data)

    def test_malformed(self) -> None:
        """Each malformed term is refused with RemoteProtocolError."""
        for data in (
            b"",
            b"\x83",
            b"\x82a\x01",
            b"\x83a\x01\x00",  # a byte too many
            b"\x83\xff",
            b"\x83\x52\x00",  # atom cache
            b"\x83\x67\x64\x00\x01n" + bytes(9),  # old pid
            b"\x83\x50\x00\x00\x00\x01" + zlib.compress(b"a\x01"),
            b"\x83\x46\x7f\xf0" + bytes(6),  # infinity
            b"\x83\x6e\x01\x02\x01",  # sign 2
            b"\x83\x77\x01\xff",  # not UTF-8
            b"\x83\x76\x01\x00" + b"x" * 256,
            b"\x83\x64\x01\x00" + b"x" * 256,
            b"\x83\x4d\x00\x00\x00\x00\x01",
            b"\x83\x4d\x00\x00\x00\x01\x09a",
            b"\x83\x5a\x00\x06\x77\x01n" + bytes(28),
            b"\x83\x5a\x00\x00\x77\x01n" + bytes(4),
            b"\x83\x58a\x01" + bytes(12),  # a pid on node 1
            b"\x83\x70\x00\x00\x00\x03",
            b"\x83\x71\x77\x01m\x77\x01f\x77\x01x",
        ):
            with self.subTest(data=data[:20]):
                self.assert_refused(data)

    def test_cut_short_anywhere(self) -> None:
        """Every prefix of a term is refused, none is read past its end."""
        pid = Pid(Atom("n@h"), 1, 2, 3)
        data = encode(
            {
                b"bin": [1, 2.5, 2**70, -(2**3000), pid, Reference(Atom("n@h"), 1, (2, 3))],
                Atom("rest"): (
                    Port(Atom("n"), 2**40, 1),
                    Port(Atom("n"), 4, 1),
                    BitString(b"\x80", 1),
                ),
                (1,): (Export(Atom("m"), Atom("f"), 1), CLOSURE, ImproperList((1,), 2), [300]),
            }
        )
        for end in range(len(data)):
            self.assert_refused(data[:end])

    @examples(300)
    @given(st.binary(max_size=200))
    def test_noise(self, noise: bytes) -> None:
        """Noise is a term or refused, never anything else."""
        with contextlib.suppress(RemoteProtocolError):
            decode(b"\x83" + noise)

    @examples(200)
    @given(TERMS, st.data())
    def test_one_wrong_byte(self, term: Any, data: st.DataObject) -> None:
        """A term with one byte changed is a term or refused."""
        encoded = bytearray(encode(term))
        place = data.draw(st.integers(0, len(encoded) - 1))
        encoded[place] = data.draw(st.integers(0, 255))
        with contextlib.suppress(RemoteProtocolError):
            decode(bytes(encoded))

    def test_counts_are_believed_late(self) -> None:
        """A count of four billion costs nothing when the elements are not there."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for tag in (105, 108, 109, 111, 112, 116, 77):
            self.assert_refused(b"\x83" + bytes([tag]) + b"\xff\xff\xff\xff" + bytes(100))
        self.assertLess(tracemalloc.get_traced_memory()[1], 1_000_000)

    def test_depth(self) -> None:
        """Depth is bounded for every container, also where a name should be."""
        for level in (
            b"\x68\x01",
            b"\x69\x00\x00\x00\x01",
            b"\x6c\x00\x00\x00\x01",
            b"\x6c\x00\x00\x00\x00",
            b"\x74\x00\x00\x00\x01",
            b"\x58",
            b"\x71",
            b"\x5a\x00\x01",
        ):
            with self.subTest(level=level):
                self.assert_refused(b"\x83" + level * 100_000 + b"\x6a" * 100_000)

    def test_depth_that_is_allowed(self) -> None:
        """Two hundred levels are no error."""
        term: Any = 1
        for _ in range(MAX_DEPTH):
            term = (term,)
        self.assertEqual(decode(encode(term)), term)

    def test_many_small_elements(self) -> None:
        """Elements that cost one byte there and dozens here are counted."""
        count = 5_000_000
        self.assert_refused(b"\x83\x6c" + struct.pack(">I", count) + b"\x6a" * (count + 1))

    def test_budget_is_for_all_containers_together(self) -> None:
        """Many small containers are counted as one large one is."""
        inner = b"\x6c\x00\x00\x00\x05" + b"\x6a" * 6
        data = b"\x83\x6c\x00\x00\x00\x0a" + inner * 10 + b"\x6a"
        decode_at(data, max_terms=60)
        self.assertRaises(RemoteProtocolError, decode_at, data, max_terms=59)

    def test_keys_that_collide(self) -> None:
        """A map whose keys all have one hash is no dict, which would take quadratic time."""
        prime = 2**61 - 1
        count = 20_000
        flat = b"".join(encode(prime * (number + 1))[1:] + b"a\x01" for number in range(count))
        data = b"\x83\x74" + struct.pack(">I", count) + flat
        found = decode(data)
        self.assertIsInstance(found, MapPairs)
        self.assertEqual(len(found.pairs), count)

    def test_ordinary_large_maps_are_dicts(self) -> None:
        """A large map with ordinary keys is a dict."""
        for key in (lambda n: n, lambda n: b"%d" % n, float):
            term = {key(number): number for number in range(LARGEST_MIXED_DICT * 10)}
            self.assertIs(type(decode(encode(term))), dict)
