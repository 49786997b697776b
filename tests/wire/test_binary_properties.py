"""Binary decoders against anything at all."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.wire.binary import HEAD_BOUND, RequestDecoder, ResponseDecoder, encode_frame
from kvproto.wire.frames import Request, Response
from tests.examples import examples
from tests.wire.cutting import cut_at, decode

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)
cuts = st.lists(st.integers(0, 3000), max_size=12)


def frames(kind: Any, plain: int, flexible: int) -> st.SearchStrategy[Any]:
    """Return frames of one direction, with framing extras when the magic has room for them."""
    common = (u8, u16, u8, u32, u64, st.binary(max_size=20), st.binary(max_size=250))
    return st.one_of(
        st.builds(kind, st.just(plain), *common, st.binary(max_size=300)),
        st.builds(
            kind,
            st.just(flexible),
            *common,
            st.binary(max_size=300),
            st.binary(min_size=1, max_size=40),
        ),
    )


# Headers that say almost anything, mostly with a magic that is known, and with bodies that may fit.
headers = st.builds(
    lambda *fields: struct.pack(">BBBBBBHIIQ", *fields),
    st.sampled_from([0x80, 0x80, 0x80, 0x08, 0x81, 0x18, 0x82, 0x47]),
    u8,
    st.sampled_from([0, 0, 0, 1, 5]),
    st.integers(0, 40),
    st.integers(0, 24),
    u8,
    u16,
    st.one_of(st.integers(0, 200), st.integers(200, 3000)),
    u32,
    u64,
)
streams = st.lists(st.one_of(headers, st.binary(max_size=300)), max_size=8).map(b"".join)


class RoundTripTests(SynchronousTestCase):
    """What is encoded is decoded."""

    @examples(100)
    @given(st.lists(frames(Request, 0x80, 0x08), max_size=5), cuts)
    def test_requests(self, requests, places):
        """Requests come back as they were, wherever the stream is cut."""
        stream = b"".join(map(encode_frame, requests))
        self.assertEqual(decode(RequestDecoder, cut_at(stream, places)), (requests, None))

    @examples(100)
    @given(st.lists(frames(Response, 0x81, 0x18), max_size=5), cuts)
    def test_responses(self, responses, places):
        """Responses come back as they were, wherever the stream is cut."""
        stream = b"".join(map(encode_frame, responses))
        self.assertEqual(decode(ResponseDecoder, cut_at(stream, places)), (responses, None))


class AnyBytesTests(SynchronousTestCase):
    """Whatever arrives is decoded, discarded or refused; it is the same however it is cut."""

    MAX_BODY = 600

    def check(self, make: Any, stream: bytes, places: list[int]) -> None:
        """Compare one cutting with the whole, and what is held with the limits."""
        bound = HEAD_BOUND + self.MAX_BODY
        whole = decode(lambda: make(max_body=self.MAX_BODY, max_key=30), [stream], bound)
        parts = decode(
            lambda: make(max_body=self.MAX_BODY, max_key=30), cut_at(stream, places), bound
        )
        self.assertEqual(parts, whole)

    @examples(200)
    @given(streams, cuts)
    def test_request_decoder(self, stream, places):
        """A server's decoder."""
        self.check(RequestDecoder, stream, places)

    @examples(100)
    @given(streams, cuts)
    def test_response_decoder(self, stream, places):
        """A client's decoder."""
        self.check(ResponseDecoder, stream, places)

    @examples(60)
    @given(streams)
    def test_byte_by_byte(self, stream):
        """Single bytes, the most cuts there are."""
        self.check(RequestDecoder, stream, list(range(len(stream))))
