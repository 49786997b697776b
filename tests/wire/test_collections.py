"""Collection ids in front of keys."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.collections import (
    collection_id_extras,
    encode_collection_id,
    join_key,
    split_collection_id_extras,
    split_key,
    split_path,
    unknown_collection_body,
)
from kvproto.wire.constants import Status
from tests.examples import examples

# kv_engine docs/Collections.md and DWARF's leb128 examples.
GOLDEN = [
    (0, b"\x00"),
    (8, b"\x08"),
    (0x7F, b"\x7f"),
    (0x80, b"\x80\x01"),
    (555, b"\xab\x04"),
    (0x7FFF, b"\xff\xff\x01"),
    (624485, b"\xe5\x8e\x26"),
    (0xBFFF, b"\xff\xff\x02"),
    (0xFFFFFFFF, b"\xff\xff\xff\xff\x0f"),
]


class KeyTests(SynchronousTestCase):
    """One document has one name on the wire."""

    def test_golden(self):
        """Published ids encode and decode."""
        for collection, form in GOLDEN:
            self.assertEqual(encode_collection_id(collection), form)
            self.assertEqual(split_key(form + b"key"), (collection, b"key"))

    def test_only_the_shortest_form(self):
        """Padded, endless, cut short and too large ids are "invalid", and so is no id."""
        for wire in (
            b"",
            b"\x80",
            b"\xff\xff",
            b"\x80\x00key",
            b"\x88\x00key",
            b"\xff\xff\xff\xff\x1fkey",
            b"\xff\xff\xff\xff\x8f\x00key",
            b"\x80\x80\x80\x80\x80\x01key",
            b"\xff" * 20,
        ):
            with self.assertRaises(RemoteProtocolError) as caught:
                split_key(wire)
            self.assertEqual(caught.exception.status, Status.INVALID)

    def test_length_behind_the_id(self):
        """The key itself has 1 to 250 bytes, however long its prefix is."""
        for prefix in (b"\x00", b"\xff\xff\xff\xff\x0f"):
            self.assertEqual(split_key(prefix + b"k" * 250)[1], b"k" * 250)
            for wire in (prefix + b"k" * 251, prefix):
                with self.assertRaises(RemoteProtocolError) as caught:
                    split_key(wire)
                self.assertEqual(caught.exception.status, Status.INVALID)

    def test_own_mistakes(self):
        """Ids beyond 32 bits are the caller's fault."""
        self.assertRaises(LocalProtocolError, encode_collection_id, 1 << 32)
        self.assertRaises(LocalProtocolError, join_key, -1, b"k")

    @examples(100)
    @given(st.integers(0, 0xFFFFFFFF), st.binary(min_size=1, max_size=250))
    def test_round_trip(self, collection, key):
        """Any id and key come back."""
        self.assertEqual(split_key(join_key(collection, key)), (collection, key))

    @examples(300)
    @given(st.binary(max_size=12))
    def test_canonical(self, wire):
        """What is accepted is exactly what would have been sent."""
        try:
            collection, key = split_key(wire)
        except RemoteProtocolError:
            return
        self.assertEqual(join_key(collection, key), wire)


class PathTests(SynchronousTestCase):
    """Names and the answers about them."""

    def test_paths(self):
        """Empty names stand for the default ones."""
        self.assertEqual(split_path(b"inventory.hotels-2_%"), ("inventory", "hotels-2_%"))
        self.assertEqual(split_path(b"_default._default"), ("_default", "_default"))
        self.assertEqual(split_path(b"."), ("_default", "_default"))
        self.assertEqual(split_path(b".c"), ("_default", "c"))

    def test_malformed_paths(self):
        """What cannot name a collection is "invalid"."""
        for path in (b"", b"a", b"a.b.c", b"a b.c", b"_a.c", b"%a.c", b"a.\xff", b"a.b\n"):
            with self.assertRaises(RemoteProtocolError) as caught:
                split_path(path)
            self.assertEqual(caught.exception.status, Status.INVALID)
        self.assertEqual(split_path(b"a." + b"b" * 251)[1], "b" * 251)
        self.assertRaises(RemoteProtocolError, split_path, b"a." + b"b" * 252)

    def test_answer(self):
        """Twelve bytes: manifest uid and id."""
        self.assertEqual(collection_id_extras(1, 8), bytes(7) + b"\x01\0\0\0\x08")
        self.assertEqual(split_collection_id_extras(collection_id_extras(5, 9)), (5, 9))
        self.assertRaises(RemoteProtocolError, split_collection_id_extras, bytes(11))

    def test_unknown_collection(self):
        """The manifest's uid is told in hexadecimal, as the SDKs read it."""
        self.assertEqual(json.loads(unknown_collection_body(31)), {"manifest_uid": "1f"})
