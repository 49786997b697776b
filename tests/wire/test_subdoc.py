"""Sub-document requests of several paths."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import Status
from kvproto.wire.subdoc import (
    Lookup,
    Mutation,
    decode_lookup,
    decode_lookup_results,
    decode_mutation,
    decode_mutation_results,
    encode_lookup,
    encode_lookup_results,
    encode_mutation,
    encode_mutation_failure,
    encode_mutation_results,
    lookup_status,
)
from kvproto.wire.subdoc_terms import (
    MAX_SPECS,
    DocFlag,
    LookupSpec,
    MutationSpec,
    PathFlag,
    PathOp,
    PathResult,
)
from tests.examples import examples

XATTR = int(PathFlag.XATTR)

# get(with_expiry=True) of the Python SDK: $document.exptime as an xattr, then the document.
LOOKUP = bytes.fromhex("c5 04 0011") + b"$document.exptime" + bytes.fromhex("00 00 0000")
# upsert("a.b", 1, create_parents=True) and a counter.
MUTATION = (
    bytes.fromhex("c8 01 0003 00000001") + b"a.b1" + bytes.fromhex("cf 00 0001 00000002") + b"n-5"
)


def pairs(results: list[PathResult]) -> list[tuple[int, int]]:
    """Return the index and status of each result."""
    return [(result.spec, result.status) for result in results]


class LookupTests(SynchronousTestCase):
    """SUBDOC_MULTI_LOOKUP."""

    def test_golden(self):
        """Known bytes are read and written back."""
        lookup = Lookup([LookupSpec(0xC5, XATTR, b"$document.exptime"), LookupSpec(0x00, 0, b"")])
        self.assertEqual(decode_lookup(b"", LOOKUP), lookup)
        self.assertEqual(encode_lookup(lookup), (b"", LOOKUP))

    def test_doc_flags(self):
        """One byte of extras."""
        self.assertEqual(decode_lookup(b"\x04", LOOKUP).doc_flags, DocFlag.ACCESS_DELETED)
        self.assertEqual(encode_lookup(Lookup([], 4)), (b"\x04", b""))
        for extras in (b"\x00\x00", bytes(4)):
            self.refused(extras, LOOKUP, Status.INVALID)

    def test_malformed(self):
        """A spec that is cut short anywhere is "invalid"."""
        one = LOOKUP[:-4]
        for size in range(1, len(one)):
            self.refused(b"", one[:size], Status.INVALID)

    def test_number_of_specs(self):
        """One to sixteen; how many more there are makes no difference."""
        spec = b"\xc5\x00\x00\x01a"
        self.assertEqual(len(decode_lookup(b"", spec * MAX_SPECS).specs), MAX_SPECS)
        for count in (0, MAX_SPECS + 1, MAX_SPECS + 2, 1000):
            self.refused(b"", spec * count, Status.SUBDOC_INVALID_COMBO)

    def test_results(self):
        """Status, length and text for each spec; one failure makes the whole a partial one."""
        results = [(0, b'"x"'), (int(Status.SUBDOC_PATH_NOT_FOUND), b"")]
        wire = bytes.fromhex("0000 00000003") + b'"x"' + bytes.fromhex("00c0 00000000")
        self.assertEqual(encode_lookup_results(results), wire)
        self.assertEqual(decode_lookup_results(wire), results)
        self.assertEqual(lookup_status(results), Status.SUBDOC_MULTI_PATH_FAILURE)
        self.assertEqual(lookup_status(results[:1]), Status.SUCCESS)
        for size in (1, 5, 6, 8, len(wire) - 1):
            self.assertRaises(RemoteProtocolError, decode_lookup_results, wire[:size])

    def test_own_mistakes(self):
        """What does not fit is the caller's fault."""
        self.assertRaises(LocalProtocolError, encode_lookup, Lookup([LookupSpec(0x100, 0, b"")]))
        self.assertRaises(LocalProtocolError, encode_lookup, Lookup([], 0x100))

    def refused(self, extras: bytes, value: bytes, status: Status) -> None:
        """Assert that a lookup is answered with this status."""
        with self.assertRaises(RemoteProtocolError) as caught:
            decode_lookup(extras, value)
        self.assertEqual(caught.exception.status, status)


class MutationTests(SynchronousTestCase):
    """SUBDOC_MULTI_MUTATION."""

    def test_golden(self):
        """Known bytes are read and written back."""
        mutation = Mutation(
            [MutationSpec(0xC8, 1, b"a.b", b"1"), MutationSpec(0xCF, 0, b"n", b"-5")],
        )
        self.assertEqual(decode_mutation(b"", MUTATION), mutation)
        self.assertEqual(encode_mutation(mutation), (b"", MUTATION))

    def test_extras(self):
        """Expiry, user flags and doc flags are told apart by the length alone."""
        expiry, flags = struct.pack(">I", 60), struct.pack(">I", 7)
        cases = {
            b"": (None, None, 0),
            b"\x01": (None, None, 1),
            expiry: (60, None, 0),
            expiry + b"\x02": (60, None, 2),
            expiry + flags: (60, 7, 0),
            expiry + flags + b"\x10": (60, 7, 16),
        }
        for extras, expected in cases.items():
            mutation = decode_mutation(extras, MUTATION)
            self.assertEqual((mutation.expiry, mutation.user_flags, mutation.doc_flags), expected)
            self.assertEqual(encode_mutation(mutation), (extras, MUTATION))
        for size in (2, 3, 6, 7, 10, 16):
            self.refused(bytes(size), MUTATION, Status.INVALID)

    def test_malformed(self):
        """A spec that is cut short anywhere is "invalid"."""
        one = MUTATION[:12]
        for size in range(1, len(one)):
            self.refused(b"", one[:size], Status.INVALID)
        self.refused(b"", b"\xc8\x00\x00\x01\xff\xff\xff\xffa", Status.INVALID)

    def test_number_of_specs(self):
        """One to sixteen."""
        spec = b"\xc9\x00\x00\x01\x00\x00\x00\x00a"
        self.assertEqual(len(decode_mutation(b"", spec * MAX_SPECS).specs), MAX_SPECS)
        for count in (0, MAX_SPECS + 1, 1000):
            self.refused(b"", spec * count, Status.SUBDOC_INVALID_COMBO)

    def test_results(self):
        """Only specs with a result are told, each with its index."""
        results = [PathResult(1, 0, b"-5")]
        wire = bytes.fromhex("01 0000 00000002") + b"-5"
        self.assertEqual(encode_mutation_results(results), wire)
        self.assertEqual(decode_mutation_results(wire), results)
        self.assertEqual(decode_mutation_results(b""), [])

    def test_several_results(self):
        """Results follow each other with nothing between them; an empty one has its head alone."""
        results = [PathResult(0, 0, b"1"), PathResult(2, 0, b""), PathResult(3, 0, b"-5")]
        wire = bytes.fromhex("00 0000 00000001 31  02 0000 00000000  03 0000 00000002 2d35")
        self.assertEqual(encode_mutation_results(results), wire)
        self.assertEqual(decode_mutation_results(wire), results)
        wire += b"\x04\x00\xc9"
        self.assertEqual(
            pairs(decode_mutation_results(wire))[2:], [(3, 0), (4, Status.SUBDOC_PATH_EXISTS)]
        )

    def test_failure(self):
        """A failed mutation tells the first spec that failed, in three bytes."""
        wire = encode_mutation_failure(2, Status.SUBDOC_PATH_EXISTS)
        self.assertEqual(wire, b"\x02\x00\xc9")
        self.assertEqual(pairs(decode_mutation_results(wire)), [(2, Status.SUBDOC_PATH_EXISTS)])

    def test_results_cut_short(self):
        """A client notices an answer that ends too early."""
        wire = encode_mutation_results([PathResult(1, 0, b"-5")])
        for size in range(1, len(wire)):
            self.assertRaises(RemoteProtocolError, decode_mutation_results, wire[:size])

    def test_own_mistakes(self):
        """What has no layout or does not fit is the caller's fault."""
        self.assertRaises(LocalProtocolError, encode_mutation, Mutation([], user_flags=1))
        self.assertRaises(LocalProtocolError, encode_mutation, Mutation([], expiry=-1))
        self.assertRaises(
            LocalProtocolError, encode_mutation, Mutation([MutationSpec(0x100, 0, b"")])
        )

    def refused(self, extras: bytes, value: bytes, status: Status) -> None:
        """Assert that a mutation is answered with this status."""
        with self.assertRaises(RemoteProtocolError) as caught:
            decode_mutation(extras, value)
        self.assertEqual(caught.exception.status, status)


path_flags = st.sampled_from([0, 1, 0x10, 0x11])
some_ops = st.sampled_from(sorted(PathOp))
lookup_specs = st.builds(LookupSpec, some_ops, path_flags, st.binary(max_size=40))
mutation_specs = st.builds(
    MutationSpec, some_ops, path_flags, st.binary(max_size=40), st.binary(max_size=40)
)
u32 = st.integers(0, 0xFFFFFFFF)


class PropertyTests(SynchronousTestCase):
    """Both directions, and anything at all."""

    @examples(60)
    @given(st.lists(lookup_specs, min_size=1, max_size=16), st.sampled_from([0, 4, 0x20, 0x24]))
    def test_lookup_round_trip(self, specs, doc_flags):
        """Any lookup comes back."""
        lookup = Lookup(specs, doc_flags)
        self.assertEqual(decode_lookup(*encode_lookup(lookup)), lookup)

    @examples(60)
    @given(
        st.lists(mutation_specs, min_size=1, max_size=16),
        st.one_of(st.tuples(st.none(), st.none()), st.tuples(u32, st.none()), st.tuples(u32, u32)),
        st.sampled_from([0, 1, 2, 4, 0x0C, 0x11]),
    )
    def test_mutation_round_trip(self, specs, numbers, doc_flags):
        """Any mutation comes back."""
        expiry, user_flags = numbers
        mutation = Mutation(specs, expiry, user_flags, doc_flags)
        self.assertEqual(decode_mutation(*encode_mutation(mutation)), mutation)

    @examples(60)
    @given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=16))
    def test_lookup_results_round_trip(self, results):
        """Any results come back."""
        self.assertEqual(decode_lookup_results(encode_lookup_results(results)), results)

    @examples(300)
    @given(st.binary(max_size=10), st.binary(max_size=120))
    def test_any_bytes(self, extras, value):
        """Nothing but the promised error comes out of any bytes."""
        known = {
            Status.INVALID,
            Status.SUBDOC_INVALID_COMBO,
        }
        for decode in (decode_lookup, decode_mutation):
            try:
                decode(extras, value)
            except RemoteProtocolError as e:
                self.assertIn(e.status, known)
        for read in (decode_lookup_results, decode_mutation_results):
            try:
                read(value)
            except RemoteProtocolError as e:
                self.assertIsNone(e.status)
