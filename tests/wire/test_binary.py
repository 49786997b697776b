"""Binary frames, against bytes that others have published."""

from __future__ import annotations

import struct
import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.binary import (
    HEAD_BOUND,
    RequestDecoder,
    ResponseDecoder,
    counter_reply,
    encode_frame,
    encode_request,
    encode_response,
    error_reply,
    get_head,
    get_reply,
    getk_head,
    mutation_reply,
    response_head,
    simple_reply,
)
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.frames import FrameError, KeyRequest, Oversized, Request, Response
from tests.wire.cutting import cuttings, decode

# memcached wiki, BinaryProtocolRevamped, "Example Session".
GET_REQUEST = bytes.fromhex("80000005 00000000 00000005 00000000 00000000 00000000 48656c6c6f")
GET_MISS = bytes.fromhex(
    "81000000 00000001 00000009 00000000 00000000 00000000 4e6f7420 666f756e 64"
)
GET_HIT = bytes.fromhex(
    "81000000 04000000 00000009 00000000 00000000 00000001 deadbeef 576f726c 64"
)
GETK_HIT = bytes.fromhex(
    "81000005 04000000 0000000e 00000000 00000000 00000001 deadbeef 48656c6c6f 576f726c64"
)
ADD_REQUEST = bytes.fromhex(
    "80020005 08000000 00000012 00000000 00000000 00000000 deadbeef 00000e1048656c6c6f 576f726c64"
)
ADD_DONE = bytes.fromhex("81020000 00000000 00000000 00000000 00000000 00000001")
INCREMENT_REQUEST = bytes.fromhex(
    "80050007 14000000 0000001b 00000000 00000000 00000000"
    "00000000 00000001 00000000 00000000 00000e10 636f756e746572"
)
INCREMENT_DONE = bytes.fromhex(
    "81050000 00000000 00000008 00000000 00000000 00000005 00000000 00000000"
)
NOOP_REQUEST = bytes.fromhex("800a0000 00000000 00000000 00000000 00000000 00000000")

# The layout seen from the Couchbase Python SDK 4.6.3: upsert("k1", ...) with preserve_expiry, the
# key prefixed with the default collection's id.
SDK_UPSERT = bytes.fromhex(
    "08010103 08010000 0000001c 01000000 00000000 00000000"
    "50 02000000 00000000 006b31 7b2261223a312c2262223a5b325d7d0a"
)
# Laid out as kv_engine docs/BinaryProtocol.md, "Response header with flexible framing extras", has
# it: framing length and key length share the key's field; the frame is a server duration.
TRACED = bytes.fromhex(
    "18000300 04000000 0000000c 00000000 00000000 00000001 02000b 00000000 76616c7565"
)

GOLDEN_REQUESTS: list[tuple[bytes, Request]] = [
    (GET_REQUEST, Request(opcode=0x00, key=b"Hello")),
    (
        ADD_REQUEST,
        Request(
            opcode=0x02, extras=bytes.fromhex("deadbeef00000e10"), key=b"Hello", value=b"World"
        ),
    ),
    (
        INCREMENT_REQUEST,
        Request(opcode=0x05, extras=struct.pack(">QQI", 1, 0, 3600), key=b"counter"),
    ),
    (NOOP_REQUEST, Request(opcode=0x0A)),
    (
        SDK_UPSERT,
        Request(
            magic=0x08,
            opcode=0x01,
            datatype=1,
            opaque=0x01000000,
            extras=bytes.fromhex("0200000000000000"),
            key=b"\x00k1",
            value=b'{"a":1,"b":[2]}\n',
            framing=b"\x50",
        ),
    ),
]

GOLDEN_RESPONSES: list[tuple[bytes, Response]] = [
    (GET_MISS, Response(opcode=0x00, status=1, value=b"Not found")),
    (GET_HIT, Response(opcode=0x00, cas=1, extras=b"\xde\xad\xbe\xef", value=b"World")),
    (
        GETK_HIT,
        Response(opcode=0x00, cas=1, extras=b"\xde\xad\xbe\xef", key=b"Hello", value=b"World"),
    ),
    (ADD_DONE, Response(opcode=0x02, cas=1)),
    (INCREMENT_DONE, Response(opcode=0x05, cas=5, value=bytes(8))),
    (
        TRACED,
        Response(
            magic=0x18, opcode=0, cas=1, extras=bytes(4), value=b"value", framing=b"\x02\x00\x0b"
        ),
    ),
]


class GoldenTests(SynchronousTestCase):
    """Published bytes and frames are the same thing in both directions."""

    def test_requests(self):
        """Each published request decodes to its frame, however it is cut, and encodes back."""
        for wire, frame in GOLDEN_REQUESTS:
            for parts in cuttings(wire):
                self.assertEqual(decode(RequestDecoder, parts), ([frame], None))
            self.assertEqual(encode_frame(frame), wire)

    def test_responses(self):
        """Each published response decodes to its frame, however it is cut, and encodes back."""
        for wire, frame in GOLDEN_RESPONSES:
            for parts in cuttings(wire):
                self.assertEqual(decode(ResponseDecoder, parts), ([frame], None))
            self.assertEqual(encode_frame(frame), wire)

    def test_streams(self):
        """Frames that follow each other decode in order, however the stream is cut."""
        requests = b"".join(wire for wire, _ in GOLDEN_REQUESTS)
        for parts in cuttings(requests):
            self.assertEqual(
                decode(RequestDecoder, parts), ([frame for _, frame in GOLDEN_REQUESTS], None)
            )
        responses = b"".join(wire for wire, _ in GOLDEN_RESPONSES)
        for parts in cuttings(responses):
            self.assertEqual(
                decode(ResponseDecoder, parts), ([frame for _, frame in GOLDEN_RESPONSES], None)
            )

    def test_a_pushed_request_reaches_a_client(self):
        """A client understands the requests that a server sends (magic 0x82)."""
        push = encode_request(0x01, magic=0x82, key=b"default", value=b"{}", extras=bytes(16))
        expected = Request(magic=0x82, opcode=0x01, key=b"default", value=b"{}", extras=bytes(16))
        for parts in cuttings(push):
            self.assertEqual(decode(ResponseDecoder, parts), ([expected], None))


class RequestDecoderTests(SynchronousTestCase):
    """What the decoder does beside decoding."""

    def test_memoryview_and_bytearray(self):
        """Any bytes-like read is accepted, and not referred to afterwards."""
        for kind in (bytearray, memoryview):
            buffer = bytearray(ADD_REQUEST + GET_REQUEST)
            frames = RequestDecoder().feed(kind(buffer))
            buffer[:] = bytes(len(buffer))
            self.assertEqual(frames, [GOLDEN_REQUESTS[1][1], GOLDEN_REQUESTS[0][1]])

    def test_frames_before_the_broken_one(self):
        """What was whole before the fault is delivered, and only then is the fault known."""
        decoder = RequestDecoder()
        frames = decoder.feed(GET_REQUEST + NOOP_REQUEST + b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual([frame.opcode for frame in frames], [0x00, 0x0A])
        self.assertIsInstance(decoder.error, RemoteProtocolError)
        self.assertEqual(str(decoder.error), "unknown magic 0x47")
        self.assertRaises(RemoteProtocolError, decoder.feed, GET_REQUEST)
        self.assertRaises(RemoteProtocolError, decoder.feed, b"")

    def test_unknown_magic_is_judged_at_once(self):
        """One byte of another protocol is enough: nobody waits for the rest of a header."""
        for first in set(range(256)) - {0x80, 0x08}:
            decoder = RequestDecoder()
            self.assertEqual(decoder.feed(bytes([first])), [])
            self.assertEqual(str(decoder.error), f"unknown magic 0x{first:02x}")

    def test_replies_are_not_requests(self):
        """A server refuses responses, and a client refuses requests of clients."""
        self.assertEqual(decode(RequestDecoder, [ADD_DONE]), ([], "unknown magic 0x81"))
        self.assertEqual(decode(ResponseDecoder, [GET_REQUEST]), ([], "unknown magic 0x80"))

    def test_head_longer_than_the_body(self):
        """Extras and key, or framing, beyond the body end the stream with "invalid"."""
        broken = [
            struct.pack(">BBHBBHIIQ", 0x80, 0x01, 5, 8, 0, 0, 12, 0xABCD, 0),
            struct.pack(">BBHBBHIIQ", 0x80, 0x01, 0xFFFF, 0, 0, 0, 0, 0xABCD, 0),
            struct.pack(">BBBBBBHIIQ", 0x08, 0x01, 3, 5, 8, 0, 0, 15, 0xABCD, 0),
        ]
        for wire in broken:
            for parts in cuttings(NOOP_REQUEST + wire + b"anything" * 4):
                frames, reason = decode(RequestDecoder, parts)
                self.assertEqual(frames, [Request(opcode=0x0A)])
                self.assertEqual(reason, "framing, extras and key are longer than the body")
            decoder = RequestDecoder()
            decoder.feed(wire)
            error = decoder.error
            assert isinstance(error, FrameError)
            self.assertEqual((error.status, error.opcode, error.opaque), (0x04, 0x01, 0xABCD))

    def test_body_of_exactly_the_limit(self):
        """The limit itself is allowed."""
        wire = encode_request(Opcode.SET, key=b"k", extras=bytes(8), value=bytes(91))
        frames, _ = decode(lambda: RequestDecoder(max_body=100), [wire])
        self.assertEqual([len(frame.value) for frame in frames], [91])

    def test_oversized_body(self):
        """A longer body is thrown away, told with its key, and the next frame is read."""
        wire = encode_request(
            Opcode.SET, key=b"key", extras=bytes(8), value=bytes(90), opaque=7, cas=8, vbucket=9
        )
        expected = Oversized(0x80, 0x01, 9, 0, 7, 8, 101, b"key", Status.TOO_BIG)
        for parts in cuttings(wire + NOOP_REQUEST):
            self.assertEqual(
                decode(lambda: RequestDecoder(max_body=100), parts, HEAD_BOUND),
                ([expected, Request(opcode=0x0A)], None),
            )

    def test_oversized_flexible_body(self):
        """Framing extras do not hide the key of a discarded frame."""
        wire = encode_request(Opcode.SET, key=b"key", value=bytes(90), framing=b"\x50")
        expected = Oversized(0x08, 0x01, 0, 0, 0, 0, 94, b"key", Status.TOO_BIG)
        # The header's key field holds two lengths here: neither may be mistaken for the other.
        for parts in cuttings(wire):
            frames, _ = decode(lambda: RequestDecoder(max_body=50), parts, HEAD_BOUND)
            self.assertEqual(frames, [expected])

    def test_oversized_is_told_when_it_is_through(self):
        """A discarded frame is delivered with its last byte, not before."""
        wire = encode_request(Opcode.SET, key=b"key", value=bytes(90))
        decoder = RequestDecoder(max_body=50)
        self.assertEqual(decoder.feed(wire[:-1]), [])
        self.assertEqual(len(decoder.feed(wire[-1:])), 1)

    def test_long_key(self):
        """A key beyond the limit is answered "invalid"; the stream stays usable."""
        fits = encode_request(Opcode.GET, key=b"k" * 255)
        long = encode_request(Opcode.SET, key=b"k" * 256, value=b"v")
        expected = Oversized(0x80, 0x01, 0, 0, 0, 0, 257, None, Status.INVALID)
        for parts in cuttings(long + NOOP_REQUEST):
            self.assertEqual(
                decode(RequestDecoder, parts, HEAD_BOUND), ([expected, Request(opcode=0x0A)], None)
            )
        self.assertEqual(decode(RequestDecoder, [fits])[0], [Request(key=b"k" * 255)])

    def test_very_long_key(self):
        """A key beyond the limit is not held while it comes in."""
        wire = encode_request(Opcode.GET, key=bytes(0xFFFF))
        parts = [wire[at : at + 100] for at in range(0, len(wire), 100)]
        frames, reason = decode(RequestDecoder, parts, HEAD_BOUND)
        self.assertEqual((len(frames), reason), (1, None))

    def test_long_value_is_linear(self):
        """A 10 MiB value in 16 KiB reads comes out whole; reads are kept as they are until then."""
        value = bytes(range(256)) * (10 * 4096)
        wire = encode_request(Opcode.SET, key=b"k", extras=bytes(8), value=value)
        decoder = RequestDecoder()
        for at in range(0, len(wire), 16384):
            read = wire[at : at + 16384]
            before = sys.getrefcount(read)
            frames = decoder.feed(read)
            if at and not frames:
                self.assertGreater(sys.getrefcount(read), before, "the read was copied")
        self.assertEqual(frames, [Request(opcode=0x01, key=b"k", extras=bytes(8), value=value)])
        self.assertEqual(decoder.buffered, 0)

    def test_announcing_costs_nothing(self):
        """A header that promises a large body makes the decoder hold no more than came."""
        decoder = RequestDecoder()
        wire = encode_request(Opcode.SET, key=b"k", value=bytes(1 << 20))[:1000]
        decoder.feed(wire)
        self.assertLessEqual(decoder.buffered, 1000)


class EncodeTests(SynchronousTestCase):
    """Encoders and prebuilt replies."""

    def test_prebuilt_replies(self):
        """Each prebuilt reply is byte for byte what the general encoder makes."""
        flags = b"\x02\0\0\0"
        cases = [
            (
                get_head(0x00, 1, 7, 8, 0x02000000, 5) + b"value",
                encode_response(0, extras=flags, value=b"value", datatype=1, opaque=7, cas=8),
            ),
            (
                get_reply(0x1D, 1, 7, 8, 0x02000000, b"value"),
                encode_response(0x1D, extras=flags, value=b"value", datatype=1, opaque=7, cas=8),
            ),
            (
                getk_head(0x0C, 0, 7, 8, 0x02000000, b"key", 5) + b"value",
                encode_response(0x0C, extras=flags, key=b"key", value=b"value", opaque=7, cas=8),
            ),
            (simple_reply(1, 2, 3, 4), encode_response(1, 2, opaque=3, cas=4)),
            (
                mutation_reply(1, 3, 4, 5, 6),
                encode_response(1, opaque=3, cas=4, extras=struct.pack(">QQ", 5, 6)),
            ),
            (
                counter_reply(5, 3, 4, 99),
                encode_response(5, opaque=3, cas=4, value=struct.pack(">Q", 99)),
            ),
            (
                counter_reply(5, 3, 4, 99, (5, 6)),
                encode_response(
                    5,
                    opaque=3,
                    cas=4,
                    extras=struct.pack(">QQ", 5, 6),
                    value=struct.pack(">Q", 99),
                ),
            ),
            (error_reply(0, 1, 3), encode_response(0, 1, opaque=3, value=b"Not found")),
        ]
        for fast, general in cases:
            self.assertEqual(fast, general)

    def test_head_and_value(self):
        """A head and the value sent after it are the whole response."""
        whole = encode_response(0, extras=b"1234", key=b"k", value=b"value", framing=b"\x02\0\x01")
        head = response_head(0, extras=b"1234", key=b"k", value_size=5, framing=b"\x02\0\x01")
        self.assertEqual(head + b"value", whole)

    def test_head_of_nothing(self):
        """What is not given is not there: a head alone is a response without a body."""
        self.assertEqual(response_head(0x0A), encode_response(0x0A))
        self.assertEqual(response_head(0x0A), bytes((0x81, 0x0A, *bytes(22))))
        self.assertEqual(simple_reply(0x0A, 0, 0), response_head(0x0A))

    def test_every_error_has_a_text(self):
        """No error reply to a classic client is empty: its test suite would take it for success."""
        for status in range(1, 0x100):
            self.assertGreater(len(error_reply(0, status, 0)), 24)

    def test_own_mistakes(self):
        """What does not fit a header is the caller's fault."""
        self.assertRaises(LocalProtocolError, encode_request, 0x100)
        self.assertRaises(LocalProtocolError, encode_request, 0, key=bytes(0x10000))
        self.assertRaises(LocalProtocolError, encode_request, 0, extras=bytes(0x100))
        self.assertRaises(LocalProtocolError, encode_request, 0, key=bytes(256), framing=b"\x50")
        self.assertRaises(LocalProtocolError, encode_response, 0, -1)
        self.assertRaises(LocalProtocolError, encode_response, 0, cas=1 << 64)


class KeyRequestTests(SynchronousTestCase):
    """Requests that are a header and a key, and have fewer fields to be set."""

    def test_which(self) -> None:
        """Anything more, or a key out of the ordinary, makes it another request."""
        fields: dict[str, Any] = {"vbucket": 0x102, "opaque": 0x3040506}
        cases: tuple[tuple[bytes, dict[str, Any], bool], ...] = (
            (b"k", {}, True),
            (b"k" * 250, {}, True),
            (b"", {}, False),
            (b"k" * 251, {}, False),
            (b"k", {"cas": 1}, False),
            (b"k", {"datatype": 1}, False),
            (b"k", {"extras": b"\0"}, False),
            (b"k", {"value": b"v"}, False),
            (b"k", {"framing": b"\x50"}, False),
        )
        for key, more, is_key_request in cases:
            (request,) = RequestDecoder().feed(encode_request(9, key=key, **fields, **more))
            self.assertIs(request.__class__, KeyRequest if is_key_request else Request)
            magic = 0x08 if "framing" in more else 0x80
            whole = Request(magic=magic, opcode=9, key=key, **fields, **more)
            self.assertEqual(request, whole)
            self.assertEqual(whole, request)
            self.assertEqual(repr(request).partition("(")[2], repr(whole).partition("(")[2])

    def test_equal(self) -> None:
        """Each field counts."""
        (request,) = RequestDecoder().feed(encode_request(9, key=b"k"))
        self.assertNotEqual(request, Request(opcode=9, key=b"l"))
        self.assertNotEqual(request, Request(opcode=9, key=b"k", value=b"v"))
        self.assertNotEqual(request, Response(opcode=9, key=b"k"))

    def test_limits(self) -> None:
        """It is below the limits of any other request, and comes whole."""
        wire = encode_request(0, key=b"k" * 8)
        for limits in ({"max_body": 7}, {"max_key": 2}):
            (request,) = RequestDecoder(**limits).feed(wire)
            self.assertIsInstance(request, Oversized)
        (request,) = RequestDecoder(max_body=8, max_key=8).feed(wire)
        self.assertIsInstance(request, KeyRequest)
        decoder = RequestDecoder()
        self.assertEqual(decoder.feed(wire[:-1]), [])
        self.assertEqual(decoder.feed(wire[-1:]), [Request(key=b"k" * 8)])
        self.assertEqual(ResponseDecoder().feed(wire), [])


class PartialTests(SynchronousTestCase):
    """Whether a decoder stands between frames, and limits that change there."""

    def test_partial(self) -> None:
        """A decoder is in the middle of a frame from its first byte to the one before its last."""
        decoder = RequestDecoder()
        frame = encode_request(1, key=b"k", value=b"v", extras=bytes(8))
        self.assertFalse(decoder.partial)
        for byte in frame[:-1]:
            decoder.feed(bytes([byte]))
            self.assertTrue(decoder.partial)
        decoder.feed(frame[-1:])
        self.assertFalse(decoder.partial)

    def test_not_partial_when_broken(self) -> None:
        """A broken stream has no frame under way."""
        decoder = RequestDecoder()
        decoder.feed(b"G")
        self.assertFalse(decoder.partial)

    def test_exactly_the_limits(self) -> None:
        """The longest key and the longest body are taken however they arrive; not a byte more."""
        # Three bytes and a collection's id of five; the key's limit is that of the key behind it.
        for key, value, sound in (
            (8, 12, True),
            (0, 20, True),
            (9, 3, False),
            (8, 13, False),
        ):
            wire = encode_request(1, key=b"k" * key, value=b"v" * value)
            for parts in cuttings(wire + encode_request(0x0A)):
                (frame, after), _ = decode(
                    lambda: RequestDecoder(max_body=20, max_key=3), parts, HEAD_BOUND
                )
                self.assertEqual(after.opcode, 0x0A)
                if sound:
                    self.assertEqual((frame.key, frame.value), (b"k" * key, b"v" * value))
                else:
                    self.assertIsInstance(frame, Oversized)

    def test_discard(self) -> None:
        """What was held of half a frame is forgotten."""
        frame = encode_request(1, key=b"k", value=b"value", extras=bytes(8))
        for size in (10, len(frame) - 2):
            decoder = RequestDecoder()
            self.assertEqual(decoder.feed(frame[:size]), [])
            self.assertTrue(decoder.partial)
            decoder.discard()
            self.assertFalse(decoder.partial)
            self.assertEqual(decoder.buffered, 0)

    def test_limit_raised(self) -> None:
        """A larger limit holds for the next frame."""
        decoder = RequestDecoder(max_body=100)
        frame = encode_request(1, key=b"k", value=bytes(200), extras=bytes(8))
        self.assertIsInstance(decoder.feed(frame)[0], Oversized)
        decoder.max_body = 1000
        (request,) = decoder.feed(frame)
        assert isinstance(request, Request)
        self.assertEqual(len(request.value), 200)
