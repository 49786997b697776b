"""Flexible framing extras."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import Status
from kvproto.wire.framing import (
    Durability,
    RequestFraming,
    ResponseFraming,
    decode_request_framing,
    decode_response_framing,
    encode_objects,
    encode_request_framing,
    encode_server_duration,
    objects,
)
from tests.examples import examples

# kv_engine docs/BinaryProtocol.md, "Request header with flexible framing extras", and what the
# Python SDK 4.6.3 sends (majority, 2250 ms).
GOLDEN = [
    (b"", RequestFraming()),
    (b"\x00", RequestFraming(barrier=True)),
    (b"\x11\x01", RequestFraming(durability=Durability(1))),
    (b"\x13\x01\x08\xca", RequestFraming(durability=Durability(1, 2250))),
    (b"\x22\x00\x07", RequestFraming(stream_id=7)),
    (b"\x45alice", RequestFraming(impersonate=b"alice")),
    (b"\x50", RequestFraming(preserve_ttl=True)),
    (
        b"\x13\x03\x00\x01\x50",
        RequestFraming(durability=Durability(3, 1), preserve_ttl=True),
    ),
]


class RequestFramingTests(SynchronousTestCase):
    """What a client asks for beside its command."""

    def test_golden(self):
        """Known bytes decode to what they mean, and encode back."""
        for wire, framing in GOLDEN:
            self.assertEqual(decode_request_framing(wire), framing)
            self.assertEqual(encode_request_framing(framing), wire)

    def test_escapes(self):
        """A nibble of 15 adds the following byte, the id's before the length's."""
        self.assertEqual(objects(b"\xf1\x00x"), [(15, b"x")])
        self.assertEqual(objects(b"\xf1\x02x"), [(17, b"x")])
        self.assertEqual(objects(b"\x4f\x01" + b"u" * 16), [(4, b"u" * 16)])
        self.assertEqual(objects(b"\xff\x01\x00" + b"u" * 15), [(16, b"u" * 15)])
        self.assertEqual(
            decode_request_framing(b"\x4f\x01" + b"u" * 16), RequestFraming(impersonate=b"u" * 16)
        )

    def test_bounds_of_what_is_sent(self):
        """The least and the greatest that fits is sent, as is the first id that is escaped."""
        for framing, wire in (
            (RequestFraming(stream_id=0), b"\x22\x00\x00"),
            (RequestFraming(stream_id=0xFFFF), b"\x22\xff\xff"),
            (RequestFraming(durability=Durability(0)), b"\x11\x00"),
            (RequestFraming(durability=Durability(0xFF)), b"\x11\xff"),
        ):
            self.assertEqual(encode_request_framing(framing), wire)
        self.assertEqual(encode_objects([(14, b"x"), (15, b"x")]), b"\xe1x\xf1\x00x")

    def test_malformed(self):
        """What is cut short, of a wrong length, reserved or repeated is "invalid"."""
        for wire in (
            b"\xf0",
            b"\x0f",
            b"\xff\x01",
            b"\x13\x01\x00",
            b"\x01x",
            b"\x10",
            b"\x12\x01\x00",
            b"\x13\x01\x00\x00",
            b"\x13\x01\xff\xff",
            b"\x21\x00",
            b"\x40",
            b"\x51\x00",
            b"\x50\x50",
        ):
            with self.assertRaises(RemoteProtocolError) as caught:
                decode_request_framing(wire)
            self.assertEqual(caught.exception.status, Status.INVALID, wire)

    def test_unknown(self):
        """An id that nobody knows is told by its own status."""
        for wire in (b"\x30", b"\x71x", b"\xf0\x09"):
            with self.assertRaises(RemoteProtocolError) as caught:
                decode_request_framing(wire)
            self.assertEqual(caught.exception.status, Status.UNKNOWN_FRAME_INFO)

    def test_escaped_lengths_are_not_sent(self):
        """Contents of 15 bytes and more are refused: not every reader understands them."""
        encode_objects([(270, b"x" * 14)])
        self.assertRaises(LocalProtocolError, encode_objects, [(1, b"x" * 15)])
        self.assertRaises(LocalProtocolError, encode_objects, [(271, b"")])
        self.assertRaises(LocalProtocolError, encode_objects, [(-1, b"")])

    def test_own_mistakes(self):
        """Values that do not fit are the caller's fault."""
        for framing in (
            RequestFraming(durability=Durability(256)),
            RequestFraming(durability=Durability(1, 0)),
            RequestFraming(durability=Durability(1, 65535)),
            RequestFraming(stream_id=65536),
            RequestFraming(impersonate=b""),
        ):
            self.assertRaises(LocalProtocolError, encode_request_framing, framing)

    @examples(100)
    @given(
        st.builds(
            RequestFraming,
            st.booleans(),
            st.none()
            | st.builds(Durability, st.integers(0, 255), st.none() | st.integers(1, 65534)),
            st.none() | st.integers(0, 65535),
            st.none() | st.binary(min_size=1, max_size=14),
            st.booleans(),
        )
    )
    def test_round_trip(self, framing):
        """What is encoded is decoded."""
        self.assertEqual(decode_request_framing(encode_request_framing(framing)), framing)

    @examples(100)
    @given(st.lists(st.tuples(st.integers(0, 270), st.binary(max_size=14)), max_size=10))
    def test_objects_round_trip(self, pairs):
        """Any objects come back, escaped ids included."""
        self.assertEqual(objects(encode_objects(pairs)), pairs)

    @examples(200)
    @given(st.binary(max_size=60))
    def test_any_bytes(self, wire):
        """Nothing but the promised error comes out of any bytes."""
        for read in (decode_request_framing, decode_response_framing):
            try:
                read(wire)
            except RemoteProtocolError as e:
                self.assertIn(e.status, {Status.INVALID, Status.UNKNOWN_FRAME_INFO})


class ResponseFramingTests(SynchronousTestCase):
    """What a server tells beside its answer."""

    def test_server_duration(self):
        """The coded duration is within 1 per cent from 1 ms on, as kv_engine's is."""
        self.assertEqual(encode_server_duration(0), b"\x02\x00\x00")
        for micros in (1000, 12345, 1_000_000, 60_000_000, 120_000_000):
            decoded = decode_response_framing(encode_server_duration(micros)).server_duration_us
            assert decoded is not None
            self.assertLess(abs(decoded - micros), micros / 100)

    def test_longest_duration(self):
        """The format ends at 120,125,042 microseconds (kv_engine docs/BinaryProtocol.md)."""
        self.assertEqual(encode_server_duration(10**12), b"\x02\xff\xff")
        self.assertEqual(
            decode_response_framing(b"\x02\xff\xff"), ResponseFraming(server_duration_us=120125042)
        )

    def test_other_objects(self):
        """Units and throttle time are read, what is unknown is skipped."""
        self.assertEqual(
            decode_response_framing(b"\x12\x00\x03\x22\x00\x04\x32\x00\x00\x91x\xf0\x01"),
            ResponseFraming(read_units=3, write_units=4, throttled_us=0),
        )
        # An object of another length than these have does not hide what follows it.
        self.assertEqual(decode_response_framing(b"\x91x\x12\x00\x03").read_units, 3)
