"""The text decoder against anything at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.wire.text import TextCommand, TextDecoder, TextRefusal
from tests.examples import examples
from tests.wire.cutting import cut_at, decode

MAX_VALUE = 40
MAX_LINE = 60
MAX_KEY = 12

numbers = st.one_of(
    st.integers(-3, 60).map(b"%d".__mod__),
    st.sampled_from([b"99999999999999999999", b"4294967296", b"+1", b"0x1", b"\t1", b"-", b""]),
)
keys = st.one_of(st.sampled_from([b"k", b"key", b"a" * 12, b"a" * 13]), st.binary(max_size=14))
words = st.one_of(
    st.sampled_from(
        (
            b"get gets gat gats set cas add append delete incr touch flush_all verbosity version "
            b"stats quit mn noreply"
        ).split()
    ),
    keys,
    numbers,
)
lines = st.builds(
    lambda tokens, end: b" ".join(tokens) + end,
    st.lists(words, max_size=8),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r", b" \r\n"]),
)
storage = st.builds(
    lambda verb, key, size, value, end: b"%b %b 0 0 %d\r\n%b%b" % (verb, key, size, value, end),
    st.sampled_from([b"set", b"add", b"prepend"]),
    keys,
    st.integers(0, 60),
    st.binary(max_size=60),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b""]),
)
long_lines = st.builds(
    lambda verb, names: verb + b" ".join(names) + b"\r\n",
    st.sampled_from([b"get ", b"gets ", b"gat 0 ", b"  get "]),
    st.lists(keys, min_size=8, max_size=30),
)
streams = st.lists(st.one_of(lines, storage, long_lines, st.binary(max_size=80)), max_size=8).map(
    b"".join
)
cuts = st.lists(st.integers(0, 600), max_size=12)


def make() -> TextDecoder:
    """Return a decoder with limits that random streams reach."""
    return TextDecoder(MAX_VALUE, MAX_KEY, MAX_LINE)


class AnyBytesTests(SynchronousTestCase):
    """Whatever arrives is decoded, discarded or refused; it is the same however it is cut."""

    BOUND = max(MAX_VALUE + 1, MAX_LINE)

    def check(self, stream: bytes, places: list[int]) -> None:
        """Compare one cutting with the whole, and what is delivered with the limits."""
        items, reason = decode(make, [stream], self.BOUND)
        self.assertEqual(decode(make, cut_at(stream, places), self.BOUND), (items, reason))
        for item in items:
            if isinstance(item, TextRefusal):
                self.assertTrue(item.line == b"" or item.line.endswith(b"\r\n"))
            else:
                self.assertLessEqual(len(item.value), MAX_VALUE)
                self.assertLessEqual(len(item.key), MAX_KEY)
                self.assertLessEqual(item.expiry, 0xFFFFFFFF)
                self.assertGreaterEqual(item.expiry, 0)

    @examples(300)
    @given(streams, cuts)
    def test_cut_anywhere(self, stream, places):
        """A few cuts."""
        self.check(stream, places)

    @examples(100)
    @given(streams)
    def test_byte_by_byte(self, stream):
        """Single bytes, the most cuts there are."""
        self.check(stream, list(range(len(stream))))


class RoundTripTests(SynchronousTestCase):
    """What a client writes is what the server reads."""

    plain_keys = st.binary(min_size=1, max_size=12).filter(
        lambda key: not set(key) & set(b" \r\n") and key != b"noreply"
    )

    @examples(100)
    @given(
        plain_keys,
        st.binary(max_size=MAX_VALUE),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**31 - 1),
        st.integers(0, 2**64 - 1),
        cuts,
    )
    def test_storage(self, key, value, flags, expiry, cas, places):
        """Keys, values and numbers of a cas come through as they are."""
        wire = b"cas %b %d %d %d %d\r\n%b\r\n" % (key, flags, expiry, len(value), cas, value)
        expected = TextCommand("cas", key, value, flags, expiry, cas)
        items, _ = decode(lambda: TextDecoder(MAX_VALUE), cut_at(wire, places))
        self.assertEqual(items, [expected])

    @examples(100)
    @given(st.lists(plain_keys, min_size=1, max_size=30), cuts)
    def test_retrieval(self, names, places):
        """Every key asked for is delivered, long line or short, and then the end."""
        wire = b"get " + b" ".join(names) + b"\r\n"
        items, _ = decode(make, cut_at(wire, places))
        self.assertEqual([item.key for item in items], [*names, b""])
        self.assertEqual(items[-1], TextCommand("end"))
