"""The short way through a session says what the usual way says, byte for byte.

There are two of it, one in Python and one compiled; whatever is tested here is tested of both.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto import server
from kvproto.config import Mode
from kvproto.server import binary, quick
from kvproto.server.binary import BinarySession
from kvproto.server.quick import serve_in_python
from kvproto.server.replies import COPY_LIMIT
from kvproto.store import MemoryStore, Refusal
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Datatype, Feature, Opcode, Status
from kvproto.wire.framing import decode_response_framing
from tests.compiled import require_compiled
from tests.examples import examples
from tests.server.support import FakeTransport, Link, link_with
from tests.server.test_properties import requests
from tests.store.test_plain import everything_in

Serve = Callable[[Any, bytes, list[bytes], int, int], int]

KEYS = st.sampled_from([b"a", b"a", b"b", b"k" * 250, b"k" * 251, b"", b"\x08a"])
VALUES = st.sampled_from([b"", b"1", b"{}", bytes(100), bytes(COPY_LIMIT), bytes(COPY_LIMIT + 1)])
EXTRAS = st.sampled_from([bytes(8), bytes(8), b"\0\0\0\1\0\0\0\5", b"\0\0\0\1\xff\0\0\0", bytes(4)])
CAS = st.sampled_from([0, 0, 0, 1])


@st.composite
def plain(draw: st.DrawFn, prefix: bytes) -> bytes:
    """Draw a GET or a SET, mostly plain, with something before its key."""
    opaque = draw(st.integers(0, 2**32 - 1))
    key, cas = prefix + draw(KEYS), draw(CAS)
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
LOCK = st.sampled_from([b"a", b"\0a"]).map(lambda key: encode_request(Opcode.GET_LOCKED, key=key))
SDK = [Feature.COLLECTIONS, Feature.JSON, Feature.MUTATION_SEQNO, Feature.TRACING, Feature.XERROR]
FEATURES: st.SearchStrategy[list[Feature]] = st.one_of(
    st.just([]), st.sampled_from(SDK).map(lambda one: [one]), st.just(SDK)
)


def streams(prefix: bytes) -> st.SearchStrategy[bytes]:
    """Draw requests of sessions that put something before their keys."""
    usual = plain(prefix)
    return st.lists(st.one_of(usual, usual, usual, ODD, LOCK), max_size=20).map(b"".join)


STREAMS = st.one_of(streams(b""), streams(b"\0"))


def compiled_twin() -> Serve:
    """Return the compiled one, asked for or not."""
    serve: Serve = require_compiled("kvproto.server._quick").serve_quickly
    return serve


class Twin:
    """Lets all sessions of a test take one of the short ways."""

    patch: Callable[[object, str, object], object]

    def setUp(self) -> None:
        self.serve = self.twin()
        self.patch(binary, "serve_quickly", self.serve)

    def twin(self) -> Serve:
        return serve_in_python


class Compiled(Twin):
    """Lets them take the compiled one."""

    def twin(self) -> Serve:
        return compiled_twin()


class Usual(BinarySession):
    """A session without the short way."""

    quick = None  # type: ignore[assignment]


def hello(features: list[Feature]) -> bytes:
    """Return the HELLO that asks for features."""
    return encode_request(Opcode.HELLO, value=b"".join(one.to_bytes(2) for one in features))


class PythonSameTests(Twin, SynchronousTestCase):
    """Both ways, side by side."""

    # Two cases inherit this test; they share nothing that a repetition could depend on.
    @examples(300)
    @given(
        STREAMS,
        st.integers(1, 40_000),
        st.integers(1000, 200_000),
        FEATURES,
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
        for session in (BinarySession, Usual):
            made = link_with(
                binary=session,
                transport=FakeTransport(reads=False),
                unsent_limit=limit,
                max_value=COPY_LIMIT,
                mode=Mode.MEMCACHED if memcached else Mode.COUCHBASE,
            )
            made.server.timer = lambda: 0.0
            if features:
                made.transport.send(hello(features))
            made.transport.send(data, read_size=size)
            ends.append(made.read_all(take))
        self.assertEqual(*ends)


class CompiledSameTests(Compiled, PythonSameTests):
    """The usual way and the compiled one."""


class PythonQuickTests(Twin, SynchronousTestCase):
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
            encode_request(Opcode.SET, key=b"a", extras=bytes(8), datatype=2),
            get[:-1],
            get[:20],
        ):
            self.assertEqual(self.taken(get + odd, Link()), len(get), odd)

    def test_sessions_of_an_sdk(self) -> None:
        """What HELLO has enabled shows in the replies; what is JSON is told in a SET, too."""
        made = Link()
        made.ask(hello(SDK))
        made.store.set(b"b", b"")
        put = encode_request(Opcode.SET, key=b"\0a", value=b"{}", extras=bytes(8), datatype=1)
        get = encode_request(Opcode.GET, key=b"\0a")
        session: Any = made.protocol._session
        ticks = itertools.count(0, 0.001)
        session.timer = lambda: next(ticks)
        out: list[bytes] = []
        self.assertEqual(session.quick(put + get, out, 1 << 30), len(put + get))
        replies: list[Any] = ResponseDecoder().feed(b"".join(out))
        stored, found = replies
        self.assertEqual(made.store.get(b"a").datatype, 1)
        self.assertEqual(stored.extras, made.store.uuid.to_bytes(8) + (2).to_bytes(8))
        self.assertEqual((found.datatype, found.value), (Datatype.JSON, b"{}"))
        for reply in stored, found:
            took = decode_response_framing(reply.framing).server_duration_us
            self.assertIn(took, range(970, 1031))

    def test_collections(self) -> None:
        """Keys of the default collection only are taken this way, where keys name collections."""
        get = encode_request(Opcode.GET, key=b"\0a")
        for odd in (b"\x08a", b"\0", b"a", b"\x80\0a", b"\0" + b"k" * 251):
            for request in (
                encode_request(Opcode.GET, key=odd),
                encode_request(Opcode.SET, key=odd, extras=bytes(8)),
            ):
                made = Link()
                made.ask(hello([Feature.COLLECTIONS]))
                self.assertEqual(self.taken(get + request, made), len(get), odd)
        made = Link()
        made.ask(hello([Feature.COLLECTIONS]))
        longest = encode_request(Opcode.SET, key=b"\0" + b"k" * 250, extras=bytes(8))
        self.assertEqual(self.taken(longest, made), len(longest))
        self.assertEqual(list(made.store.table.items), [b"k" * 250])

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


class CompiledQuickTests(Compiled, PythonQuickTests):
    """What the compiled one takes, and what it leaves."""


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """Draw a stream with some of its bytes changed, lengths before others, and its end cut off."""
    data = bytearray(draw(STREAMS))
    starts = [at for at, byte in enumerate(data) if byte == 0x80]
    for _ in range(draw(st.integers(0, 3))):
        if not data:
            break
        at = draw(st.sampled_from(starts or [0])) + draw(st.integers(0, 31))
        new = draw(st.sampled_from([b"\0", b"\1", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff"]))
        data[at : at + len(new)] = new
    return bytes(data[: len(data) - draw(st.integers(0, 40))])


class TwinsTests(SynchronousTestCase):
    """Python's and the compiled one, side by side."""

    def setUp(self) -> None:
        self.twins = serve_in_python, compiled_twin()

    @examples(500)
    @given(
        st.one_of(hostile(), hostile(), st.binary(max_size=200)),
        st.sampled_from([0, 1, 24, 1000, 1 << 30]),
        st.sampled_from([0, 9, 100, 1 << 20]),
        FEATURES,
        st.booleans(),
        st.booleans(),
    )
    def test_any_bytes(
        self,
        data: bytes,
        limit: int,
        max_body: int,
        features: list[Feature],
        memcached: bool,
        locked: bool,
    ) -> None:
        """The same bytes get the same replies, are left at the same place, and store the same."""
        ends = []
        for serve in self.twins:
            made = Link(
                mode=Mode.MEMCACHED if memcached else Mode.COUCHBASE, max_value=COPY_LIMIT + 1
            )
            made.server.timer = itertools.count(0, 0.001).__next__
            made.ask(hello(features))
            made.store.set(b"a", bytes(COPY_LIMIT + 1))
            made.store.set(b"b", b"{}", 0xFFFFFFFF)
            if locked:
                made.store.get_and_lock(b"a", 1)
            out: list[bytes] = []
            session: Any = made.protocol._session
            at = serve(session, data, out, limit, max_body)
            ends.append((at, b"".join(out), everything_in(made.store)))
        self.assertEqual(*ends)

    def test_one_part(self) -> None:
        """The compiled one joins ordinary replies, and keeps others in their places."""
        made = Link(max_value=COPY_LIMIT + 1)
        made.ask(encode_request(Opcode.NOOP))
        made.store.set(b"a", b"1")
        made.store.set(b"b", bytes(COPY_LIMIT + 1))
        a, b, c = (encode_request(Opcode.GET, key=key) for key in (b"a", b"b", b"c"))
        out: list[bytes] = []
        data = a * 3 + b + a + c + a
        self.assertEqual(self.twins[1](made.protocol._session, data, out, 1 << 30, 100), len(data))
        self.assertEqual(
            [len(part) for part in out], [3 * 29, 28, COPY_LIMIT + 1, 29, 24 + len("Not found"), 29]
        )

    def test_odd_documents(self) -> None:
        """Whatever a program of ours has put into a store comes out the same, or fails the same."""
        get = encode_request(Opcode.GET, key=b"a")
        for name, odd in (
            ("value", bytearray(b"abc")),
            ("value", memoryview(b"abc")),
            ("value", "text"),
            ("value", None),
            ("flags", -1),
            ("flags", 1 << 32),
            ("cas", -1),
            ("cas", 1 << 64),
            ("locked_until", 1e12),
        ):
            ends = []
            for serve in self.twins:
                made = Link()
                made.ask(encode_request(Opcode.NOOP))
                made.store.set(b"a", b"1")
                made.store.set(b"b", b"1")
                setattr(made.store.table.items[b"b"], name, odd)
                out: list[bytes] = []
                data = get + get.replace(b"a", b"b") + get
                session: Any = made.protocol._session
                at = serve(session, data, out, 1 << 30, 100)
                ends.append((at, b"".join(out)))
            self.assertEqual(ends[0], ends[1], (name, odd))

    def test_what_it_is_given(self) -> None:
        """Nothing but bytes is looked at, and nothing but a list filled."""
        session = Link().protocol._session
        for data, out in ((bytearray(24), []), (None, []), (b"", None), (b"", ())):
            self.assertRaises(TypeError, self.twins[1], session, data, out, 1, 1)


class LeakTests(SynchronousTestCase):
    """Ten thousand rounds leave no more behind than one."""

    def grown(self, round_: Callable[[], object]) -> int:
        """Return the bytes that 10,000 rounds have left behind."""
        for _ in range(100):
            round_()
        gc.collect()
        tracemalloc.start()
        try:
            round_()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(10_000):
                round_()
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()

    def test_no_leak(self) -> None:
        """Hits, misses, refusals, large values, half requests, and defects."""
        serve = compiled_twin()
        made = Link(max_value=COPY_LIMIT + 1)
        made.ask(hello([Feature.JSON, Feature.MUTATION_SEQNO, Feature.TRACING]))
        session: Any = made.protocol._session
        made.store.set(b"large", bytes(COPY_LIMIT + 1))
        made.store.set(b"locked", b"1")
        made.store.get_and_lock(b"locked", 30)
        get = [encode_request(Opcode.GET, key=key) for key in (b"a", b"none", b"large", b"locked")]
        put = [
            encode_request(Opcode.SET, key=key, value=bytes(300), extras=bytes(8), cas=cas)
            for key, cas in ((b"a", 0), (b"locked", 0), (b"a", 7))
        ]
        usual = b"".join(get + put)

        def once() -> None:
            serve(session, usual, [], 1 << 30, 1000)

        self.assertLess(self.grown(once), 20_000)
        for odd in (b"\x80", put[0][:-1], put[0].replace(b"\0\0\1", b"\xff\xff\xff")):
            usual = get[0] + put[0] + odd
            self.assertLess(self.grown(once), 20_000)

        def broken(key: bytes) -> Any:
            raise error

        usual, session.get = put[0] + get[0], broken
        error: type[BaseException] = ZeroDivisionError
        self.assertLess(self.grown(once), 20_000)
        error = KeyboardInterrupt

        def interrupted() -> None:
            with contextlib.suppress(KeyboardInterrupt):
                once()

        self.assertLess(self.grown(interrupted), 20_000)


class ChoiceTests(SynchronousTestCase):
    """Which of the two sessions use."""

    def loaded(self) -> Any:
        """Load the module anew; return what sessions would use."""
        self.patch(server, "quick", quick)  # importing changes it: let it be restored
        with mock.patch.dict(sys.modules):
            del sys.modules["kvproto.server.quick"]
            return import_module("kvproto.server.quick")

    def test_compiled(self) -> None:
        """Where there is a compiled one it is used."""
        self.patch(os, "environ", {})
        self.assertIs(self.loaded().serve_quickly, compiled_twin())

    def test_asked_for_python(self) -> None:
        """Python's is used when the environment says so."""
        self.patch(os, "environ", {"KVPROTO_PURE_PYTHON": "1"})
        made = self.loaded()
        self.assertIs(made.serve_quickly, made.serve_in_python)

    def test_none_built(self) -> None:
        """Python's is used where there is no other."""
        self.patch(os, "environ", {})
        with mock.patch.dict(sys.modules, {"kvproto.server._quick": None}):
            made = self.loaded()
        self.assertIs(made.serve_quickly, made.serve_in_python)

    def test_statistics(self) -> None:
        """Operators can see which it is."""
        answers = Link().responses(encode_request(Opcode.STAT))
        found = {answer.key: answer.value for answer in answers}
        self.assertEqual(found[b"kvproto_compiled"], b"yes" if quick.COMPILED else b"no")
