"""The compiled scan of text does what the dialect does without it, byte for byte."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import classImplementsOnly

from kvproto.config import Mode
from kvproto.server import KVServer
from kvproto.server.replies import COPY_LIMIT
from kvproto.server.session import Scan
from kvproto.server.text import TextSession
from kvproto.store import IStore, MemoryStore, Refusal
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.text import TOO_LARGE
from tests.compiled import require_compiled
from tests.examples import examples
from tests.server.support import NOW, Link, link_with

KEYS = st.sampled_from(
    [b"a", b"b", b"k" * 250, b"k" * 251, b"", b"a b", b"\x7f", b"\xc3\xa9", b"a\r"]
)
NUMBERS = st.sampled_from(
    [b"0", b"0", b"1", b"00", b"-1", b"4294967295", b"4294967296", b"999999999", b"x", b"1x", b""]
)
VALUES = st.sampled_from(
    [b"", b"1", b"a\r\nb", b"get a\r\n", bytes(100), bytes(COPY_LIMIT), bytes(COPY_LIMIT + 1)]
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b" \r\n", b"\r\r\n"])
OTHERS = st.sampled_from(
    [
        *(b"gets a\r\n", b"get\r\n", b"GET a\r\n", b" get a\r\n", b"add a 0 0 1\r\n1\r\n"),
        *(b"incr a 1\r\n", b"delete a\r\n", b"nonsense\r\n", b"touch a 1\r\n", b"\r\n"),
        *(b"get a", b"set a 0 0 100\r\nhalf", b"quit\r\n", b"get " + b"k" * 3000 + b"\r\n"),
    ]
)


@st.composite
def gets(draw: st.DrawFn) -> bytes:
    """Draw a get, mostly plain."""
    return b"get " + draw(KEYS) + draw(ENDS)


@st.composite
def sets(draw: st.DrawFn) -> bytes:
    """Draw a set, mostly plain, whose size is mostly right."""
    value = draw(VALUES)
    size = draw(st.sampled_from([len(value)] * 4 + [len(value) + 1, max(0, len(value) - 1)]))
    words = [b"set", draw(KEYS), draw(NUMBERS), draw(NUMBERS), b"%d" % size]
    words += draw(st.sampled_from([[], [], [b"noreply"], [b"other"]]))
    return b" ".join(words) + draw(ENDS) + value + b"\r\n"


MG_FLAGS = (
    *(b"v", b"q", b"f", b"c", b"t", b"s", b"k", b"h", b"l", b"O", b"Oab", b"N9", b"R9", b"R100"),
    *(b"O" + b"x" * 31, b"O" + b"x" * 32, b"N", b"Nx", b"N-1", b"R", b"Rx", b"R4294967295"),
    *(b"b", b"u", b"v1", b"R999999999", b"T9", b"E7", b"C1", b"I", b"\x7f", b"", b"M", b"N0"),
)
MS_FLAGS = (
    *(b"q", b"c", b"s", b"k", b"O1", b"I", b"T0", b"T1", b"T100", b"F0", b"F9", b"MS", b"T", b"Fx"),
    *(
        b"C9",
        b"C12",
        b"ME",
        b"MA",
        b"Ms",
        b"MSx",
        b"M",
        b"E7",
        b"C1",
        b"b",
        b"t",
        b"f",
        b"T-1",
        b"T4294967295",
    ),
    *(b"F4294967295", b"F4294967296", b"T0000000001", b"O" + b"x" * 32),
)


@st.composite
def flags(draw: st.DrawFn, common: int, among: tuple[bytes, ...]) -> bytes:
    """Draw flags of a meta command, mostly of the first ones, in any order."""
    drawn = draw(st.lists(st.sampled_from(among[:common] * 9 + among[common:]), max_size=6))
    return b"".join(b" " + flag for flag in drawn)


@st.composite
def meta_reads(draw: st.DrawFn) -> bytes:
    """Draw an mg, mostly plain."""
    return b"mg " + draw(KEYS) + draw(flags(14, MG_FLAGS)) + draw(ENDS)


@st.composite
def meta_writes(draw: st.DrawFn) -> bytes:
    """Draw an ms, mostly plain, whose size is mostly right."""
    value = draw(VALUES)
    size = draw(st.sampled_from([len(value)] * 6 + [len(value) + 1, max(0, len(value) - 1)]))
    line = b"ms %b %d%b" % (draw(KEYS), size, draw(flags(12, MS_FLAGS)))
    return line + draw(ENDS) + value + b"\r\n"


OTHER_META = st.sampled_from(
    [
        *(b"mn\r\n", b"md a\r\n", b"md a I T30\r\n", b"ma a\r\n", b"me a\r\n", b"mg a", b"m"),
        *(b"mg\r\n", b"ms a\r\n", b"mga v\r\n", b"ms a 2\r\nabc\r\n", b"ms a x\r\n", b"mx a v\r\n"),
        *(b"ms a 1 I C1\r\nx\r\n", b"mg  a v\r\n", b"mg a  v\r\n", b"ms a  1\r\nx\r\n"),
    ]
)

STREAMS = st.lists(st.one_of(gets(), sets(), sets(), OTHERS), max_size=20).map(b"".join)
META_STREAMS = st.lists(
    st.one_of(meta_reads(), meta_reads(), meta_writes(), meta_writes(), sets(), OTHER_META),
    max_size=20,
).map(b"".join)


def compiled_scan() -> Scan:
    """Return the compiled scan, asked for or not."""
    found: Scan = require_compiled("kvproto.server._scan").scan_text
    return found


class Scanned(TextSession):
    """A dialect with the compiled scan, whatever the environment says."""

    @property
    def scan(self) -> Scan:  # type: ignore[override]
        return compiled_scan()


class Unscanned(TextSession):
    """A dialect without it."""

    scan = None


class Discarding:
    """A store that takes its time to discard.

    Args:
        store: Does everything else.
        done: When it has discarded.
    """

    def __init__(self, store: Any, done: Deferred[None]) -> None:
        self._store = store
        self._done = done

    def discard(self, key: bytes) -> Deferred[None]:
        return self._done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class ScanCase(SynchronousTestCase):
    """Tests that need the compiled scan; skipped where it was not built."""

    def setUp(self) -> None:
        require_compiled("kvproto.server._scan")


class SameTests(ScanCase):
    """With a scan and without, side by side."""

    @examples(400)
    @given(
        STREAMS,
        st.integers(1, 40_000),
        st.integers(1000, 200_000),
        st.booleans(),
        st.integers(1, 100_000),
    )
    def test_any_stream(
        self, data: bytes, size: int, limit: int, memcached: bool, take: int
    ) -> None:
        """Replies, documents and counters are the same, whatever comes, however it is cut."""
        ends = []
        for dialect in (Scanned, Unscanned):
            made = link_with(
                text=dialect,
                transport=ScriptedTransport(reads=False),
                unsent_limit=limit,
                max_value=COPY_LIMIT,
                mode=Mode.MEMCACHED if memcached else Mode.COUCHBASE,
            )
            made.transport.send(b"version\r\n" + data, read_size=size)
            ends.append(made.read_all(take))
        self.assertEqual(*ends)

    @examples(400)
    @given(
        META_STREAMS,
        META_STREAMS,
        st.integers(1, 40_000),
        st.integers(1000, 200_000),
        st.sampled_from((1 << 20, 40_000, 2000)),
        st.booleans(),
    )
    def test_any_stream_of_meta_commands(
        self, first: bytes, second: bytes, size: int, limit: int, memory: int, evict: bool
    ) -> None:
        """Meta commands as well, and what they know of documents; some expire in between."""
        ends = []
        for dialect in (Scanned, Unscanned):
            made = link_with(
                text=dialect,
                transport=ScriptedTransport(reads=False),
                unsent_limit=limit,
                max_value=COPY_LIMIT + 1,
                mode=Mode.MEMCACHED,
                memory_limit=memory,
                evict=evict,
            )
            made.time += 0.5  # a CAS tells the second, rounded down
            made.transport.send(b"mg a\r\n" + first, read_size=size)
            made.time += 1.25
            made.transport.send(second, read_size=size)
            ends.append(made.read_all(100_000))
        self.assertEqual(*ends)


class ScanTests(ScanCase):
    """What the scan takes, and what it leaves."""

    def link(self, **options: Any) -> Link:
        made = link_with(text=Scanned, **options)
        made.ask(b"version\r\n")
        return made

    def taken(self, data: bytes, made: Link | None = None) -> int:
        """Return how many bytes the scan deals with."""
        made = made or self.link()
        session = made.session
        return len(data) - compiled_scan()(session, session.dialect, data, [], 1 << 30)

    def test_plain_commands(self) -> None:
        """Hits, misses, what is stored and what is refused are served this way."""
        data = (
            b"get a\r\nset a 1 0 5\r\nhel\r\n\r\nget a\r\nset a 0 0 1 noreply\r\n1\r\n"
            b"set b 0 0 200\r\n" + bytes(200) + b"\r\n"
        )
        made = self.link(max_value=200, memory_limit=600)
        self.assertEqual(self.taken(data, made), len(data))

    def test_plain_meta_commands(self) -> None:
        """Once a connection has said one, these are served this way, with the usual flags."""
        value = bytes(COPY_LIMIT + 1)
        data = (
            b"mg a\r\nmg a v q\r\nms a 5\r\nhel\r\n\r\nms a 1 T9 F1 q k c s MS I O1\r\n1\r\n"
            b"mg a v\r\nmg a t f v k O1 c s q\r\nmg a\r\nmg a f h l t v N30 R5\r\n"
            b"ms a 1 C2 c\r\n1\r\nms b %d\r\n%b\r\nmg b v\r\nget a\r\n" % (len(value), value)
        )
        made = self.link(server=KVServer(MemoryStore(lambda: NOW, count_cas=True)))
        self.assertEqual(self.taken(data, made), 0)
        made.ask(b"mg a\r\n")
        self.assertEqual(self.taken(data, made), len(data))

    def test_the_rest_of_meta_commands(self) -> None:
        """Flags that need more, or are none, and what is stale are left."""
        made = self.link()
        made.ask(b"ms a 1\r\nx\r\nms e 1 T60\r\nx\r\nms s 1\r\nx\r\nmd s I\r\n")
        get = b"mg a\r\n"
        flags = (b"u", b"b", b"N", b"R-1", b"T1", b"E1", b"C1", b"v1", b"v v", b"vx")
        for odd in (
            *(b"mg a %b\r\n" % flag for flag in flags),
            *(b"ms a 1 %b\r\nx\r\n" % flag for flag in (b"C9", b"C0", b"E1", b"ME", b"M", b"t")),
            *(b"mg z N9\r\n", b"mg e v R99\r\n", b"mg s v\r\n", b"mg a v\n", b"mg  a\r\n"),
            *(b"md a\r\n", b"mn\r\n", b"ms a 2\r\nx\r\n"),
        ):
            self.assertEqual(self.taken(get + odd, made), len(get), odd)

    def test_the_rest(self) -> None:
        """The first command of another kind ends it, and so does half a command."""
        get = b"get a\r\n"
        for odd in (
            b"gets a\r\n",
            b"get a b\r\n",
            b"get a\n",
            b"get " + b"k" * 251 + b"\r\n",
            b"get a",
            b"g",
            b"set a 0 0 1\r\n1",
            b"set a 0 0 1\r\n12\r\n",
            b"set a 0 -1 1\r\n1\r\n",
            b"set a 4294967296 0 1\r\n1\r\n",
            b"set a 0 0 1 other\r\n1\r\n",
            b"set a 0 0 99999999\r\n",
            b"\xff",
        ):
            self.assertEqual(self.taken(get + odd), len(get), odd)

    def test_no_more_than_asked_for(self) -> None:
        """It stops where so many bytes of replies are reached."""
        out: list[bytes] = []
        session = self.link().session
        left = compiled_scan()(session, session.dialect, b"get a\r\n" * 10, out, 11)
        self.assertEqual((left, out), (7 * 7, [b"END\r\n" * 3]))

    def test_strangers(self) -> None:
        """Before a login nothing is served."""
        self.assertEqual(self.taken(b"get a\r\n", self.link(users={"alice": "secret"})), 0)

    def test_after_a_login(self) -> None:
        """Whoever has logged in is served this way."""
        made = self.link(users={"alice": "secret"})
        self.assertEqual(made.ask(b"set x 0 0 12\r\nalice secret\r\n"), b"STORED\r\n")
        self.assertEqual(self.taken(b"get a\r\n", made), 7)

    def test_other_stores(self) -> None:
        """A store that does not promise to answer at once is asked through the dialect."""

        class Other(MemoryStore):
            """Somebody's own: it says no more than that it is a store."""

        classImplementsOnly(Other, IStore)
        made = self.link(server=KVServer(Other(lambda: 0.0)))
        self.assertEqual(self.taken(b"get a\r\n", made), 0)
        self.assertEqual(made.ask(b"get a\r\n"), b"END\r\n")

    def test_a_set_without_room(self) -> None:
        """Its refusal may have to be waited for: what follows is in order."""
        made = self.link(max_value=100, memory_limit=300, evict=False, mode=Mode.MEMCACHED)
        dialect: Any = made.session.dialect
        removed: Deferred[None] = Deferred()
        dialect.store = Discarding(made.store, removed)
        data = b"set a 0 0 1\r\nx\r\nget a\r\n"
        dialect.plain_set = lambda *_: Refusal.TOO_BIG
        self.assertEqual(made.ask(data), b"")
        removed.callback(None)
        self.assertEqual(made.take(), TOO_LARGE + b"END\r\n")

    def test_a_defect_of_ours(self) -> None:
        """A store that raises is reported, its client told; what was served before is not lost."""
        made = self.link()
        made.ask(b"set a 0 0 1\r\n1\r\n")

        def broken(key: bytes) -> Any:
            if key == b"x":
                raise ZeroDivisionError
            return MemoryStore.get(made.store, key)

        dialect: Any = made.session.dialect
        made.store.get = dialect.plain_get = broken
        answers = made.ask(b"get a\r\nget x\r\nget a\r\n")
        hit = b"VALUE a 0 1\r\n1\r\nEND\r\n"
        self.assertEqual(answers, hit + b"SERVER_ERROR internal error\r\n" + hit)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
