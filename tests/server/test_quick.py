"""The short way through a session says what the usual way says, byte for byte."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from kvproto.server.binary import BinarySession
from kvproto.server.replies import COPY_LIMIT
from kvproto.store import MemoryStore, Refusal
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Feature, Opcode, Status
from tests.server.support import FakeTransport, Link
from tests.server.test_properties import requests

KEYS = st.sampled_from([b"a", b"b", b"k" * 250, b"k" * 251, b""])
VALUES = st.sampled_from([b"", b"1", b"{}", bytes(100), bytes(COPY_LIMIT), bytes(COPY_LIMIT + 1)])
EXTRAS = st.sampled_from([bytes(8), bytes(8), b"\0\0\0\1\0\0\0\5", b"\0\0\0\1\xff\0\0\0", bytes(4)])
CAS = st.sampled_from([0, 0, 0, 1])


@st.composite
def plain(draw: st.DrawFn) -> bytes:
    """Draw a GET or a SET, mostly plain."""
    opaque = draw(st.integers(0, 2**32 - 1))
    key, cas = draw(KEYS), draw(CAS)
    if draw(st.booleans()):
        return encode_request(Opcode.GET, key=key, opaque=opaque, vbucket=draw(st.integers(0, 9)))
    return encode_request(
        Opcode.SET,
        key=key,
        value=draw(VALUES),
        extras=draw(EXTRAS),
        opaque=opaque,
        cas=cas,
        datatype=draw(st.sampled_from([0, 0, 0, 1, 2])),
    )


ODD = requests().map(lambda made: made[1])
LOCK = st.just(encode_request(Opcode.GET_LOCKED, key=b"a"))
STREAMS = st.lists(st.one_of(plain(), plain(), plain(), ODD, LOCK), max_size=20).map(b"".join)


class Usual(BinarySession):
    """A session without the short way."""

    quick = None  # type: ignore[assignment]


def link(session: Any, **options: Any) -> Link:
    """Return a link whose sessions are of a kind."""
    made = Link(**options)
    made.protocol._kinds = (made.protocol._kinds[0], session)
    return made


class SameTests(SynchronousTestCase):
    """Both ways, side by side."""

    @settings(max_examples=300, deadline=None)
    @given(
        STREAMS,
        st.integers(1, 40_000),
        st.integers(1000, 200_000),
        st.sampled_from([[], [Feature.JSON], [Feature.MUTATION_SEQNO], [Feature.XERROR]]),
        st.booleans(),
        st.integers(1, 100_000),
    )
    def test_any_stream(
        self,
        data: bytes,
        size: int,
        limit: int,
        features: list[Feature],
        memcached: bool,
        take: int,
    ) -> None:
        """Replies, documents and counters are the same, whatever comes, however it is cut."""
        ends = []
        hello = encode_request(Opcode.HELLO, value=b"".join(f.to_bytes(2) for f in features))
        for session in (BinarySession, Usual):
            made = link(
                session,
                transport=FakeTransport(reads=False),
                unsent_limit=limit,
                max_value=COPY_LIMIT,
                mode=Mode.MEMCACHED if memcached else Mode.COUCHBASE,
            )
            if features:
                made.transport.send(hello)
            made.transport.send(data, read_size=size)
            while made.transport.unsent:
                made.transport.read(take)
            documents = {key: asdict(found) for key, found in made.store._items.items()}
            ends.append(
                (
                    made.take(),
                    list(documents.items()),
                    made.store.stats(),
                    asdict(made.server.counters),
                    made.transport.closed,
                    made.transport.reading,
                )
            )
        self.assertEqual(*ends)


class QuickTests(SynchronousTestCase):
    """What the short way takes, and what it leaves."""

    def taken(self, data: bytes, made: Link) -> int:
        """Return how many bytes the short way deals with, in a session that has begun."""
        made.ask(encode_request(Opcode.NOOP))
        session: Any = made.protocol._session
        return int(session.quick(data, [], 1 << 30))

    def test_plain_requests(self) -> None:
        """GET and SET, hits, misses and refusals, are served this way."""
        made = Link()
        data = b"".join(
            (
                encode_request(Opcode.SET, key=b"a", value=b"1", extras=bytes(8)),
                encode_request(Opcode.SET, key=b"a", value=b"2", extras=bytes(8), cas=1),
                encode_request(Opcode.GET, key=b"a"),
                encode_request(Opcode.GET, key=b"b"),
            )
        )
        self.assertEqual(self.taken(data, made), len(data))
        self.assertEqual(made.store.get(b"a").value, b"1")

    def test_the_rest(self) -> None:
        """The first request of another kind ends it, and so does half a request."""
        get = encode_request(Opcode.GET, key=b"a")
        for odd in (
            encode_request(Opcode.NOOP),
            encode_request(Opcode.GETK, key=b"a"),
            encode_request(Opcode.GET, key=b"a", extras=bytes(4)),
            encode_request(Opcode.GET, key=b"a", value=b"x"),
            encode_request(Opcode.GET, key=b""),
            encode_request(Opcode.GET, key=b"k" * 251),
            encode_request(Opcode.GET, key=b"a", framing=b"\x50", magic=0x08),
            encode_request(Opcode.SET, key=b"a", extras=bytes(4)),
            encode_request(Opcode.SET, key=b"a", extras=bytes(8), datatype=1),
            get[:-1],
            get[:20],
        ):
            self.assertEqual(self.taken(get + odd, Link()), len(get), odd)

    def test_sessions_with_options(self) -> None:
        """Whoever asked for more in replies gets it, the usual way."""
        get = encode_request(Opcode.GET, key=b"a")
        for feature in (
            Feature.JSON,
            Feature.MUTATION_SEQNO,
            Feature.COLLECTIONS,
            Feature.TRACING,
        ):
            made = Link()
            made.call(Opcode.HELLO, value=feature.to_bytes(2))
            self.assertEqual(self.taken(get, made), 0, feature)
        made = Link()
        made.call(Opcode.HELLO, value=Feature.XERROR.to_bytes(2))
        self.assertEqual(self.taken(get, made), len(get))

    def test_strangers(self) -> None:
        """Before a login nothing is served."""
        get = encode_request(Opcode.GET, key=b"a")
        made = Link(users={"alice": "secret"})
        self.assertEqual(self.taken(get, made), 0)
        self.assertEqual(made.call(Opcode.GET, key=b"a").status, Status.AUTH_ERROR)

    def test_other_stores(self) -> None:
        """A store that may answer later is asked the usual way only."""

        class Other(MemoryStore):
            """Somebody's own."""

        made = Link()
        bucket = next(iter(made.server.buckets.values()))
        object.__setattr__(bucket, "store", Other(lambda: made.time))
        self.assertEqual(self.taken(encode_request(Opcode.GET, key=b"a"), made), 0)

    def test_a_defect_of_ours(self) -> None:
        """A store that raises is reported, its client told; what was served before is not lost."""
        made = Link()
        made.call(Opcode.SET, key=b"a", value=b"1", extras=bytes(8))

        def broken(key: bytes) -> Any:
            if key == b"x":
                raise ZeroDivisionError
            return MemoryStore.get(made.store, key)

        session: Any = made.protocol._session
        session.get = broken
        get, bad = (encode_request(Opcode.GET, key=key) for key in (b"a", b"x"))
        answers = made.responses(get + bad + get)
        self.assertEqual([a.status for a in answers], [0, Status.INTERNAL, 0])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_full_transport(self) -> None:
        """What is left when the transport has enough waits, undecoded, and is counted once."""
        transport = FakeTransport(high_water=1000, reads=False)
        made = Link(transport=transport, unsent_limit=2000)
        transport.send(encode_request(Opcode.SET, key=b"a", value=bytes(500), extras=bytes(8)))
        data = encode_request(Opcode.GET, key=b"a") * 50
        before = made.server.counters.bytes_read
        transport.send(data)
        self.assertFalse(transport.reading)
        self.assertLessEqual(transport.most_unsent, 2000 + 528)
        while transport.unsent:
            transport.read()
        self.assertEqual(len(made.responses()), 51)
        self.assertTrue(transport.reading)
        self.assertEqual(made.server.counters.bytes_read - before, len(data))

    def test_locked_documents(self) -> None:
        """Their CAS is not shown."""
        made = Link()
        made.call(Opcode.SET, key=b"a", value=b"1", extras=bytes(8))
        made.call(Opcode.GET_LOCKED, key=b"a")
        self.assertEqual(made.call(Opcode.GET, key=b"a").cas, 0xFFFFFFFF_FFFFFFFF)
        self.assertIs(made.store.set(b"a", b"2"), Refusal.LOCKED)
        refused = made.call(Opcode.SET, key=b"a", value=b"2", extras=bytes(8))
        self.assertEqual(refused.status, Status.TEMPORARY_FAILURE)
