"""The compiled parts of an engine's client and their Python twins do the same."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import UpstreamError
from kvproto.store import Document, Refusal
from kvproto.store.document import ALL_MARKS, MARK_BITS
from kvproto.store.operations import Operations
from kvproto.store.statistics import Statistics
from kvproto.upstream import codec, fast_path
from tests.compiled import require_compiled
from tests.examples import examples

NUMBERS = st.integers(0, (1 << 63) - 1)
MOMENTS = st.sampled_from([0.0, 5.0, 1e9, 1_999_999_999.25])
DOCUMENTS = st.builds(
    Document,
    value=st.binary(max_size=80),
    flags=st.integers(0, (1 << 32) - 1),
    cas=NUMBERS,
    expires_at=MOMENTS,
    locked_until=MOMENTS,
    seqno=NUMBERS,
    datatype=st.integers(0, 255),
    xattrs=st.sampled_from([None, None, {"_sync": b"{}"}]),
    deleted=st.booleans(),
    marks=st.integers(0, (1 << 32 + MARK_BITS) - 1),
)


def described(result: Any) -> Any:
    """Return something to compare that says all of a result."""
    if isinstance(result, Failure):
        return result.type, str(result.value)
    if isinstance(result, Document):
        return [getattr(result, name) for name in Document.__slots__]
    return result


class FakeStore:
    """What an `EngineStore` has beside GET and SET."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.ended: list[Any] = []
        self.now = lambda: 1e9 + 0.123456
        self.statistics = Statistics()
        self.keeper = "rider"
        self._prefix: bytes | None = b"p:"
        self._prefixes: dict[int, bytes] = {8: b"eight:"}
        self._turns_over_at: float | None = None
        self._engine = self
        self._slot = len
        self._send = self.sent.append
        self._set_head, self._expiring_head = b"*3\r\n", b"*5\r\n"
        self._max_value, self._max_item = 60, 70
        self._ahead, self._digits, self._cas = 0.5, 7, 0

    def settle(self, reply: Any, call: Any) -> Any:
        return reply

    def error_of(self, failure: Any, call: Any) -> UpstreamError:
        return UpstreamError(f"{failure} for {call.data}")

    def fail(self, waiting: Deferred[Any], failure: Any, call: Any) -> None:
        waiting.callback((Refusal.NO_MEMORY, failure))

    def moment(self, expires_at: float) -> bytes:
        return b"at %d\r\n" % expires_at

    def _locate(self, key: Any) -> tuple[bytes, bytes]:
        bare = key if isinstance(key, bytes) else key[1]
        prefix = self._prefix if isinstance(key, bytes) else self._prefixes[key[0]]
        assert prefix is not None
        return prefix, prefix + bare

    def _apply(self, key: Any, *args: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred()
        deferred.callback((key, args[1:]))
        return deferred

    def ask(self, what: str, *args: Any, **kwargs: Any) -> None:
        result = getattr(self, what)(*args, **kwargs)
        if isinstance(result, Deferred):
            result.addBoth(self.ended.append)
        else:
            self.ended.append(result)


class PythonStore(FakeStore, fast_path.PythonGetAndSet):
    """With GET and SET in Python."""


KEYS = st.sampled_from([b"", b"key", b"k" * 250, (8, b"key")])
SETS = st.tuples(
    KEYS,
    st.binary(max_size=70),
    st.integers(0, (1 << 32) - 1),
    st.sampled_from([0, 0, 30, 1, (1 << 32) - 1]),
    st.sampled_from([0, 0, 9]),
    st.sampled_from([0, 1, 257]),
    st.booleans(),
)
REPLIES = st.one_of(
    st.none(),
    st.sampled_from([1, 2, b"OK", b"", "refused", b"\x00" * 7 + b"\x05", b"\x02" * 50]),
    DOCUMENTS.map(codec.encode),
)


class TwinTests(SynchronousTestCase):
    """For anything that is asked, and any answer."""

    def setUp(self) -> None:
        module: Any = require_compiled("kvproto.upstream._fast_path")
        self.module = module

        class CompiledStore(FakeStore, module.GetAndSet, Operations):
            """With both compiled."""

        self.kinds: tuple[Any, ...] = (PythonStore, CompiledStore)

    @examples(100)
    @given(DOCUMENTS.map(codec.encode), st.integers(0, 60))
    def test_decode(self, data: bytes, cut: int) -> None:
        """Documents, whole and cut."""
        for text in (data, data[:cut], b"\x02" + data[1:]):
            found: list[Any] = []
            for decode in (codec.decode, self.module.decode):
                try:
                    found.append(described(decode(text)))
                except UpstreamError as error:
                    found.append(str(error))
            self.assertEqual(found[0], found[1])

    def test_marks(self) -> None:
        """Marks of more bits than there are names for come back as they are."""
        data = codec.encode(Document(b"", marks=ALL_MARKS | 9 << MARK_BITS))
        self.assertEqual(self.module.decode(data).marks, ALL_MARKS | 9 << MARK_BITS)

    def same(self, act: Any) -> None:
        found = []
        for kind in self.kinds:
            store = kind()
            act(store)
            calls = [
                (call.data, call.write, call.slot, call.epoch, call.rider, call.tries, call.server)
                for call in store.sent
            ]
            found.append((calls, list(map(described, store.ended)), vars(store.statistics)))
        self.assertEqual(found[0], found[1])

    @examples(200)
    @given(KEYS, REPLIES, st.booleans(), st.booleans())
    def test_get(self, key: Any, reply: Any, flushed: bool, later: bool) -> None:
        """One GET, with a flush before its answer, or one to come."""

        def act(store: Any) -> None:
            store._turns_over_at = 5.0 if later else None
            store.ask("get", key)
            if flushed:
                store._prefix, store._prefixes = b"q:", {8: b"nine:"}
            for call in list(store.sent):
                call.answered(reply, call)

        self.same(act)

    @examples(300)
    @given(SETS, REPLIES, st.booleans())
    def test_set(self, arguments: Any, reply: Any, flushed: bool) -> None:
        """One SET."""
        *first, datatype, preserve = arguments

        def act(store: Any) -> None:
            store.ask("set", *first, datatype=datatype, preserve_expiry=preserve)
            if flushed:
                store._prefix, store._prefixes = b"q:", {8: b"nine:"}
            for call in list(store.sent):
                call.answered(reply, call)

        self.same(act)

    def test_cas(self) -> None:
        """It grows, however the clock goes, and is above a floor."""
        for kind in self.kinds:
            store = kind()
            first = store.next_cas(0)
            self.assertEqual(first, 1_000_000_000_623_456_007)
            self.assertEqual(store.next_cas(0), first + 1000)
            self.assertEqual(store.next_cas(1 << 63), (1 << 63) + 1)


class QueueTests(SynchronousTestCase):
    """A queue of commands, compiled and not."""

    def test_same(self) -> None:
        """What is sent, refused and answered."""
        found = []
        module = require_compiled("kvproto.upstream._fast_path")
        python = (fast_path.PythonCall, fast_path.PythonQueue)
        for call_kind, base in (python, (module.Call, module.Queue)):
            seen: list[Any] = []

            class Connection(base):  # type: ignore[misc, valid-type]
                MAX_UNSENT = 6

                def _refuse(self, call: Any, seen: Any = seen) -> None:
                    seen.append(("refused", call.data))

                def _end(self, reason: str, text: str, seen: Any = seen) -> None:
                    seen.append((reason, text))

                def _end_turn(self, seen: Any = seen) -> None:
                    seen.append("turn")

            def answered(reply: Any, call: Any, seen: Any = seen) -> None:
                seen.append((reply, call.data))

            clock = Clock()
            queue: Any = Connection()
            queue._clock, queue._pending, queue._out = clock, deque(), []
            queue._turn_end, queue._room, queue._unsent = None, 4, 0
            queue._paused, queue._open = True, True
            for number in range(5):
                queue.send(call_kind(b"%d" % number * 3, answered))
            clock.advance(0)
            seen.append((queue._room, queue._unsent, list(queue._out)))
            queue._out.clear()
            replies = [b"a", None, 3, b"d", b"e"]
            queue._take(lambda replies=replies: replies.pop(0) if replies else 0, 0)
            found.append(seen)
        self.assertEqual(found[0], found[1])
        self.assertIn(("refused", b"333"), found[0])
        self.assertIn(("protocol", "a reply to no command"), found[0])
