"""Whatever arrives: nothing is raised, nothing hangs, everything is answered or ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from kvproto.server.features import FEATURES
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import LOUD, Opcode
from tests.examples import examples
from tests.server.support import FakeConnection, Link

KEYS = st.sampled_from([b"a", b"\0a", b"\x09a", b"b", b"n", b"", b"k" * 250, b"k" * 251])
OPCODES = st.one_of(st.sampled_from(sorted(Opcode)), st.integers(0, 255))
EXTRAS = st.sampled_from([b"", bytes(4), bytes(8), bytes(20), b"\2", b"\xff" * 8, b"\xff" * 20])
SPECS = b"\xc5\0\0\1a\xc8\1\0\1b\0\0\0\1" + b"1"
VALUES = st.one_of(
    st.binary(max_size=50), st.just(SPECS), st.just(SPECS[:5]), st.just(b"10"), st.just(bytes(5000))
)
WORDS = st.sampled_from(
    b"get gets gat set add cas incr decr touch delete flush_all stats version quit noreply 0 1 -1 "
    b"a b n 99999999999999999999 reset settings detail on mn verbosity append x".split()
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, bytes]:
    """Draw one request, mostly of a sensible shape."""
    opcode = draw(OPCODES)
    framing = draw(st.sampled_from([b"", b"", b"", b"\x11\x01", b"\x50", b"\x60", b"\x1f"]))
    return opcode, encode_request(
        opcode,
        key=draw(KEYS),
        value=draw(VALUES),
        extras=draw(EXTRAS),
        opaque=draw(st.integers(0, 2**32 - 1)),
        cas=draw(st.sampled_from([0, 0, 0, 1, 2**64 - 1])),
        datatype=draw(st.sampled_from([0, 1, 2, 255])),
        framing=framing,
        magic=0x08 if framing else 0x80,
    )


def lines() -> st.SearchStrategy[bytes]:
    """Draw text that looks like commands."""
    line = st.lists(WORDS, max_size=7).map(b" ".join)
    return st.lists(line, max_size=20).map(lambda made: b"\r\n".join(made) + b"\r\n")


ANYTHING = st.one_of(
    st.binary(max_size=500),
    st.binary(max_size=500).map(lambda data: b"\x80" + data),
    st.lists(requests(), max_size=8).map(lambda made: b"".join(data for _, data in made)),
    lines(),
    st.tuples(st.lists(requests(), max_size=3), st.binary(max_size=100)).map(
        lambda made: b"".join(data for _, data in made[0]) + made[1]
    ),
)


class AnythingTests(SynchronousTestCase):
    """Properties of a session."""

    @examples(300)
    @given(ANYTHING, st.integers(1, 600), st.booleans(), st.booleans(), st.booleans())
    def test_any_bytes(
        self, data: bytes, size: int, login: bool, memcached: bool, modern: bool
    ) -> None:
        """Nothing is raised; what is not answered is incomplete, quiet or the end."""
        connection = FakeConnection()
        link = Link(
            connection=connection,
            users={"alice": "secret"} if login else {},
            mode=Mode.MEMCACHED if memcached else Mode.COUCHBASE,
            max_value=1000,
        )
        if modern:
            value = b"".join(feature.to_bytes(2) for feature in FEATURES)
            link.transport.send(encode_request(Opcode.HELLO, value=value))
        link.transport.send(data, read_size=size)
        self.assertEqual(self.flushLoggedErrors(), [])
        session = link.protocol.session
        self.assertFalse(session is not None and session._requests)
        if not link.transport.closed:
            self.assertTrue(link.transport.reading)
            self.assertEqual(link.transport.arrived, [])
        link.transport.lose()
        self.assertEqual(link.server.counters.curr_connections, 0)

    @examples(200)
    @given(st.lists(requests(), max_size=20), st.integers(1, 600))
    def test_order(self, made: list[tuple[int, bytes]], size: int) -> None:
        """Replies come in the order of the requests; only quiet requests have none."""
        quits = {Opcode.QUIT, Opcode.QUITQ}
        made = [
            (opcode, data[:12] + number.to_bytes(4) + data[16:])
            for number, (opcode, data) in enumerate(made)
            if opcode not in quits
        ]
        link = Link(max_value=1000)
        decoder = ResponseDecoder()
        link.transport.send(b"".join(data for _, data in made), read_size=size)
        answered = [(frame.opcode, frame.opaque) for frame in decoder.feed(link.take())]
        self.assertIsNone(decoder.error)
        position = 0
        for opcode, data in made:
            mine = (opcode, int.from_bytes(data[12:16]))
            count = 0
            while position < len(answered) and answered[position] == mine:
                position += 1
                count += 1
                if opcode != Opcode.STAT:
                    break
            if opcode not in LOUD:
                self.assertGreaterEqual(count, 1, hex(opcode))
        self.assertEqual(position, len(answered))

    @examples(50)
    @given(
        st.integers(1000, 300_000),
        st.integers(0, 40_000),
        st.integers(1, 500),
        st.integers(1, 65536),
        st.integers(1, 200_000),
    )
    def test_memory(self, limit: int, size: int, count: int, read: int, take: int) -> None:
        """Unsent replies stay within the limit or one reply, whatever is asked and read."""
        transport = ScriptedTransport(min(65536, limit // 2), reads=False)
        link = Link(transport=transport, unsent_limit=limit)
        link.store.set(b"a", bytes(size))
        data = b"".join(encode_request(Opcode.GET, key=b"a", opaque=i) for i in range(count))
        transport.send(data, read_size=read)
        while transport.unsent:
            transport.read(take)
        self.assertLessEqual(transport.most_unsent, limit + size + 28)
        replies = ResponseDecoder().feed(link.take())
        self.assertEqual([reply.opaque for reply in replies], list(range(count)))
