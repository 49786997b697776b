"""The compiled scan does what the dialect does without it, byte for byte."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import classImplementsOnly

from kvproto import server
from kvproto.config import Mode
from kvproto.errors import StoreUnavailable
from kvproto.server import scan
from kvproto.server.binary import BinarySession
from kvproto.server.replies import COPY_LIMIT
from kvproto.server.session import Scan
from kvproto.store import IStore, MemoryStore, Refusal
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Datatype, Feature, Opcode, Status
from kvproto.wire.framing import decode_response_framing
from tests.compiled import require_compiled
from tests.examples import examples
from tests.server.support import Link, SlowStore, link_with
from tests.server.test_properties import requests
from tests.store.test_plain import everything_in

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


def compiled_scan() -> Scan:
    """Return the compiled scan, asked for or not."""
    found: Scan = require_compiled("kvproto.server._scan").scan_binary
    return found


class Scanned(BinarySession):
    """A dialect with the compiled scan, whatever the environment says."""

    @property
    def usual_scan(self) -> Scan:  # type: ignore[override]
        return compiled_scan()


class Unscanned(BinarySession):
    """A dialect without it."""

    usual_scan = None


def hello(features: list[Feature]) -> bytes:
    """Return the HELLO that asks for features."""
    return encode_request(Opcode.HELLO, value=b"".join(one.to_bytes(2) for one in features))


class ScanCase(SynchronousTestCase):
    """Tests that need the compiled scan; skipped where it was not built."""

    def setUp(self) -> None:
        require_compiled("kvproto.server._scan")


class SameTests(ScanCase):
    """With a scan and without, side by side."""

    @examples(300)
    @given(
        st.one_of(STREAMS, hostile()),
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
        for dialect in (Scanned, Unscanned):
            made = link_with(
                binary=dialect,
                transport=ScriptedTransport(reads=False),
                unsent_limit=limit,
                max_value=COPY_LIMIT,
                mode=Mode.MEMCACHED if memcached else Mode.COUCHBASE,
            )
            made.server.timer = lambda: 0.0
            made.transport.send(hello(features))
            made.transport.send(data, read_size=size)
            ends.append(made.read_all(take))
        self.assertEqual(*ends)

    @examples(300)
    @given(
        st.one_of(hostile(), hostile(), st.binary(max_size=200)),
        FEATURES,
        st.booleans(),
        st.booleans(),
    )
    def test_any_bytes(
        self, data: bytes, features: list[Feature], memcached: bool, locked: bool
    ) -> None:
        """So they are for documents of all kinds, clocks that go on, and reads that are cut off."""
        ends = []
        for dialect in (Scanned, Unscanned):
            made = link_with(
                binary=dialect,
                mode=Mode.MEMCACHED if memcached else Mode.COUCHBASE,
                max_value=COPY_LIMIT + 1,
            )
            made.server.timer = lambda: 0.0
            made.ask(hello(features))
            made.store.set(b"a", bytes(COPY_LIMIT + 1))
            made.store.set(b"b", b"{}", 0xFFFFFFFF)
            if locked:
                made.store.get_and_lock(b"a", 1)
            reply = made.ask(data)
            ends.append((reply, everything_in(made.store), made.transport.closed))
        self.assertEqual(*ends)

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
            for dialect in (Scanned, Unscanned):
                made = link_with(binary=dialect)
                made.ask(encode_request(Opcode.NOOP))
                made.store.set(b"a", b"1")
                made.store.set(b"b", b"1")
                setattr(made.store.table.items[b"b"], name, odd)
                reply = made.ask(get + get.replace(b"a", b"b") + get)
                ends.append((reply, len(self.flushLoggedErrors())))
            self.assertEqual(ends[0], ends[1], (name, odd))


class ScanTests(ScanCase):
    """What the scan takes, and what it leaves."""

    def link(self, **options: Any) -> Link:
        made = link_with(binary=Scanned, **options)
        made.ask(encode_request(Opcode.NOOP))
        return made

    def taken(self, data: bytes, made: Link, out: list[bytes] | None = None) -> int:
        """Return how many bytes the scan deals with."""
        session, out = made.session, [] if out is None else out
        left = compiled_scan()(session, session.dialect, data, out, 1 << 30)
        return len(data) - max(left, 0)

    def test_whole_requests(self) -> None:
        """Whatever has come whole, and is answered at once, is served without being decoded."""
        get = encode_request(Opcode.GET, key=b"a")
        for request in (
            get,
            encode_request(Opcode.SET, key=b"a", value=b"1", extras=bytes(8)),
            encode_request(Opcode.SET, key=b"a", value=b"2", extras=bytes(8), cas=1),
            encode_request(Opcode.NOOP),
            encode_request(Opcode.GETK, key=b"a"),
            encode_request(Opcode.GETQ, key=b"none"),
            encode_request(Opcode.GET, key=b"a", extras=bytes(4)),
            encode_request(Opcode.GET, key=b"a", value=b"x"),
            encode_request(Opcode.GET, key=b""),
            encode_request(Opcode.GET, key=b"k" * 251),
            encode_request(Opcode.GET, key=b"a", cas=1),
            encode_request(Opcode.GET, key=b"a", framing=b"\x50", magic=0x08),
            encode_request(Opcode.SET, key=b"a", extras=bytes(4)),
            encode_request(Opcode.SET, key=b"a", extras=bytes(8), datatype=2),
            encode_request(Opcode.STAT),
            hello(SDK),
            encode_request(0xEE),
        ):
            made = self.link()
            feed = made.session.dialect.feed
            self.assertEqual(self.taken(get + request + get, made), len(get + request + get))
            self.assertIs(made.session.dialect.feed, feed)
            self.assertTrue(made.session.plain)

    def test_the_rest(self) -> None:
        """What has not come whole, is beyond a limit or broken is left to the dialect."""
        get = encode_request(Opcode.GET, key=b"a")
        broken = bytearray(get)
        broken[11] = 0
        for odd in (
            get[:-1],
            get[:20],
            encode_request(Opcode.SET, key=b"a", extras=bytes(8), value=bytes(2000)),
            encode_request(Opcode.GET, key=b"k" * 256),
            b"\x81" + get[1:],
            bytes(broken),
        ):
            self.assertEqual(self.taken(get + odd, self.link(max_value=100)), len(get), odd)

    def test_what_must_be_waited_for(self) -> None:
        """It stops behind a request that ends later; so it does behind one that hangs up."""
        get, quit_ = encode_request(Opcode.GET, key=b"a"), encode_request(Opcode.QUIT)
        made = self.link(server=server.KVServer(SlowStore(MemoryStore(lambda: 0.0))))
        self.assertEqual(self.taken(get + get, made), len(get))
        self.assertFalse(made.session.plain)
        made = self.link()
        self.assertEqual(self.taken(get + quit_ + get, made), len(get + quit_))
        self.assertIsNotNone(made.session.hangup)

    def test_as_much_as_asked_for(self) -> None:
        """It stops where so many bytes of replies are reached."""
        get = encode_request(Opcode.GETQ, key=b"none") + encode_request(Opcode.NOOP)
        out: list[bytes] = []
        session = self.link().session
        left = compiled_scan()(session, session.dialect, get * 10, out, 25)
        self.assertEqual(left, 8 * len(get))
        self.assertEqual(len(b"".join(out)), 48)

    def test_sessions_of_an_sdk(self) -> None:
        """What HELLO has enabled shows in the replies; what is JSON is told in a SET, too."""
        made = self.link()
        made.ask(hello(SDK))
        made.store.set(b"b", b"")
        put = encode_request(Opcode.SET, key=b"\0a", value=b"{}", extras=bytes(8), datatype=1)
        get = encode_request(Opcode.GET, key=b"\0a")
        dialect: Any = made.session.dialect
        ticks = itertools.count(0, 0.001)
        dialect.plain_state = dialect.plain_state._replace(timer=lambda: next(ticks))
        out: list[bytes] = []
        self.assertEqual(self.taken(put + get, made, out), len(put + get))
        replies: list[Any] = ResponseDecoder().feed(b"".join(out))
        stored, found = replies
        self.assertEqual(made.store.get(b"a").datatype, 1)
        self.assertEqual(stored.extras, made.store.uuid.to_bytes(8) + (2).to_bytes(8))
        self.assertEqual((found.datatype, found.value), (Datatype.JSON, b"{}"))
        for reply in stored, found:
            took = decode_response_framing(reply.framing).server_duration_us
            self.assertIn(took, range(970, 1031))

    def test_features_in_the_same_read(self) -> None:
        """What a HELLO changes holds for the next request."""
        made = self.link()
        put = encode_request(Opcode.SET, key=b"\0a", extras=bytes(8))
        _, _, _, stored, found = made.responses(
            encode_request(Opcode.GET, key=b"a")
            + encode_request(Opcode.SET, key=b"a", extras=bytes(8))
            + hello(SDK)
            + put
            + encode_request(Opcode.GET, key=b"\0a")
        )
        self.assertEqual((len(stored.extras), found.status), (16, 0))
        self.assertTrue(stored.framing)

    def test_other_stores(self) -> None:
        """A store that does not promise to answer at once is asked through the dialect."""

        class Other(MemoryStore):
            """Somebody's own: it says no more than that it is a store."""

        classImplementsOnly(Other, IStore)
        made = self.link(server=server.KVServer(Other(lambda: 0.0)))
        dialect: Any = made.session.dialect
        self.assertIsNone(dialect.plain_state.get)
        get = encode_request(Opcode.GET, key=b"a")
        self.assertEqual(self.taken(get, made), len(get))

    def test_a_defect_of_ours(self) -> None:
        """A store that raises is reported, its client told, and that once."""
        made = self.link()
        made.call(Opcode.SET, key=b"a", value=b"1", extras=bytes(8))

        def broken(key: bytes, *rest: Any) -> Any:
            if key == b"x":
                raise ZeroDivisionError
            return MemoryStore.get(made.store, key)

        dialect: Any = made.session.dialect
        dialect.plain_state = dialect.plain_state._replace(get=broken, set=broken)
        get, bad = (encode_request(Opcode.GET, key=key) for key in (b"a", b"x"))
        put = encode_request(Opcode.SET, key=b"x", extras=bytes(8))
        answers = made.responses(get + bad + put + get)
        self.assertEqual([a.status for a in answers], [0, Status.INTERNAL, Status.INTERNAL, 0])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_a_full_transport(self) -> None:
        """What is left when the transport has enough waits, and is counted once."""
        transport = ScriptedTransport(high_water=1000, reads=False)
        made = link_with(binary=Scanned, transport=transport, unsent_limit=2000)
        transport.send(encode_request(Opcode.SET, key=b"a", value=bytes(500), extras=bytes(8)))
        data = encode_request(Opcode.GET, key=b"a") * 50
        before = made.server.counters.bytes_read
        transport.send(data)
        transport.send(data)
        self.assertFalse(transport.reading)
        self.assertLessEqual(transport.most_unsent, 2000 + 528)
        while transport.unsent:
            transport.read()
        self.assertEqual(len(made.responses()), 101)
        self.assertTrue(transport.reading)
        self.assertEqual(made.server.counters.bytes_read - before, 2 * len(data))

    def test_locked_documents(self) -> None:
        """Their CAS is not shown."""
        made = self.link()
        made.call(Opcode.SET, key=b"a", value=b"1", extras=bytes(8))
        made.call(Opcode.GET_LOCKED, key=b"a")
        self.assertEqual(made.call(Opcode.GET, key=b"a").cas, 0xFFFFFFFF_FFFFFFFF)
        self.assertIs(made.store.set(b"a", b"2"), Refusal.LOCKED)
        refused = made.call(Opcode.SET, key=b"a", value=b"2", extras=bytes(8))
        self.assertEqual(refused.status, Status.TEMPORARY_FAILURE)

    def test_one_part(self) -> None:
        """Ordinary replies are joined, others keep their places."""
        made = self.link(max_value=COPY_LIMIT + 1)
        made.store.set(b"a", b"1")
        made.store.set(b"b", bytes(COPY_LIMIT + 1))
        a, b, c = (encode_request(Opcode.GET, key=key) for key in (b"a", b"b", b"c"))
        out: list[bytes] = []
        data = a * 3 + b + a + c + a
        self.assertEqual(self.taken(data, made, out), len(data))
        sizes = [3 * 29, 28, COPY_LIMIT + 1, 2 * 29 + 24 + len("Not found")]
        self.assertEqual([len(part) for part in out], sizes)

    def test_what_it_is_given(self) -> None:
        """Nothing but bytes is looked at, and nothing but a list filled."""
        session = self.link().session
        for data, out in ((bytearray(24), []), (None, []), (b"", None), (b"", ())):
            self.assertRaises(TypeError, compiled_scan(), session, session.dialect, data, out, 1)


class LeakTests(ScanCase):
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
        scan = compiled_scan()
        made = link_with(binary=Scanned, max_value=COPY_LIMIT + 1)
        made.ask(hello([Feature.JSON, Feature.MUTATION_SEQNO, Feature.TRACING]))
        session, dialect = made.session, cast("Any", made.session.dialect)
        made.store.set(b"large", bytes(COPY_LIMIT + 1))
        made.store.set(b"locked", b"1")
        made.store.get_and_lock(b"locked", 30)
        get = [encode_request(Opcode.GET, key=key) for key in (b"a", b"none", b"large", b"locked")]
        put = [
            encode_request(Opcode.SET, key=key, value=bytes(300), extras=bytes(8), cas=cas)
            for key, cas in ((b"a", 0), (b"locked", 0), (b"a", 7))
        ]
        others = [encode_request(Opcode.GETK, key=b"a"), encode_request(0xEE)]
        usual = b"".join(get + put + others)

        def once() -> None:
            scan(session, dialect, usual, [], 1 << 30)

        self.assertLess(self.grown(once), 20_000)
        for odd in (b"\x80", put[0][:-1], put[0].replace(b"\0\0\1", b"\xff\xff\xff")):
            usual = get[0] + put[0] + odd
            self.assertLess(self.grown(once), 20_000)

        def broken(key: bytes) -> Any:
            raise error

        usual = put[0] + get[0]
        dialect.plain_state = dialect.plain_state._replace(get=broken)
        error: type[BaseException] = StoreUnavailable  # nobody logs it
        self.assertLess(self.grown(once), 20_000)
        error = KeyboardInterrupt

        def interrupted() -> None:
            with contextlib.suppress(KeyboardInterrupt):
                once()

        self.assertLess(self.grown(interrupted), 20_000)


class ChoiceTests(SynchronousTestCase):
    """Whether dialects have a scan."""

    def loaded(self) -> Any:
        """Load the module anew; return what dialects would use."""
        self.patch(server, "scan", scan)  # importing changes it: let it be restored
        with mock.patch.dict(sys.modules):
            del sys.modules["kvproto.server.scan"]
            return import_module("kvproto.server.scan")

    def test_compiled(self) -> None:
        """Where there is one it is used."""
        self.patch(os, "environ", {})
        self.assertIs(self.loaded().scan_binary, compiled_scan())

    def test_asked_for_python(self) -> None:
        """It is not where the environment says so."""
        self.patch(os, "environ", {"KVPROTO_PURE_PYTHON": "1"})
        self.assertIsNone(self.loaded().scan_binary)

    def test_none_built(self) -> None:
        """Nor where it was not built."""
        self.patch(os, "environ", {})
        with mock.patch.dict(sys.modules, {"kvproto.server._scan": None}):
            self.assertIsNone(self.loaded().scan_text)

    def test_statistics(self) -> None:
        """Operators can see which it is."""
        answers = Link().responses(encode_request(Opcode.STAT, key=b"settings"))
        found = {answer.key: answer.value for answer in answers}
        self.assertEqual(found[b"kvproto_compiled"], b"yes" if scan.COMPILED else b"no")
