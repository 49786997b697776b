"""Terms survive the way out and back, and hostile bytes cost little."""

from __future__ import annotations

import contextlib
import enum
import math
import struct
import time
import tracemalloc
import zlib
from typing import Any

from hypothesis import HealthCheck, given, settings
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
    st.builds(Fun, st.binary()),
    st.tuples(st.binary(max_size=8), st.integers(0, 255), st.integers(1, 7)).map(
        lambda parts: BitString(
            parts[0] + bytes([parts[1] & (0xFF00 >> parts[2]) & 0xFF]), parts[2]
        )
    ),
)


def _as_map(pairs: list[tuple[Any, Any]]) -> Any:
    """Build what the decoder would: a dict where one can hold the keys."""
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
        return _same(list(left.items()), list(right.items()))
    if isinstance(left, MapPairs):
        return _same(left.pairs, right.pairs)
    if isinstance(left, ImproperList):
        return _same((left.elements, left.tail), (right.elements, right.tail))
    return bool(left == right)


class RoundTripTests(SynchronousTestCase):
    """Whatever is encoded is decoded again."""

    @settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(TERMS)
    def test_any_term(self, term: Any) -> None:
        """A term comes back equal, type by type."""
        self.assertTrue(_same(decode(encode(term)), term), term)

    @settings(max_examples=50, deadline=None)
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

        class Colour(enum.IntEnum):
            RED = 3

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


class UnwritableTests(SynchronousTestCase):
    """What Erlang could not hold is our own fault, and said so."""

    def test_each(self) -> None:
        """Each is refused with LocalProtocolError."""
        deep: list[Any] = []
        for _ in range(MAX_DEPTH + 1):
            deep = [deep]
        for term in (
            math.inf,
            math.nan,
            object(),
            {1, 2},
            deep,
            Atom("\ud800"),
            ImproperList((), 1),
            BitString(b"", 1),
            BitString(b"a", 8),
            Reference(Atom("n"), 1, ()),
            Pid(Atom("n"), 2**32, 0, 0),
            Pid(Atom("n"), -1, 0, 0),
        ):
            with self.subTest(term=repr(term)[:40]):
                self.assertRaises(LocalProtocolError, encode, term)


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
                (1,): (Export(Atom("m"), Atom("f"), 1), Fun(b"xyz"), ImproperList((1,), 2), [300]),
            }
        )
        for end in range(len(data)):
            self.assert_refused(data[:end])

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=200))
    def test_noise(self, noise: bytes) -> None:
        """Noise is a term or refused, never anything else."""
        with contextlib.suppress(RemoteProtocolError):
            decode(b"\x83" + noise)

    @settings(max_examples=200, deadline=None)
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
        """A map whose keys all have one hash is read in linear time."""
        prime = 2**61 - 1
        count = 20_000
        flat = b"".join(encode(prime * (number + 1))[1:] + b"a\x01" for number in range(count))
        data = b"\x83\x74" + struct.pack(">I", count) + flat
        began = time.process_time()
        found = decode(data)
        self.assertLess(time.process_time() - began, 2.0)
        self.assertIsInstance(found, MapPairs)
        self.assertEqual(len(found.pairs), count)

    def test_ordinary_large_maps_are_dicts(self) -> None:
        """A large map with ordinary keys is a dict."""
        for key in (lambda n: n, lambda n: b"%d" % n, float):
            term = {key(number): number for number in range(LARGEST_MIXED_DICT * 10)}
            self.assertIs(type(decode(encode(term))), dict)
