"""The short way through a fleet, and its compiled twin."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.scripted import ScriptedTransport
from kvproto.upstream import pipe as pipes
from kvproto.upstream.memcached import FrameCall, MemcachedConnection
from kvproto.upstream.pipe import (
    MOST_SLOTS,
    PLANS,
    Pipe,
    PythonPipe,
    Run,
)
from kvproto.upstream.places import Places, PythonPlaces
from kvproto.upstream.resp import EngineFailure, Fate
from kvproto.wire.binary import ResponseDecoder, encode_request, encode_response
from kvproto.wire.constants import Opcode, Status
from tests.compiled import require_compiled
from tests.examples import examples

AWAY = EngineFailure(Fate.NOT_PERFORMED, "unreachable", "nobody there")
GONE = EngineFailure(Fate.NOT_PERFORMED, "disconnected", "lost before it was written")
LOST = EngineFailure(Fate.UNKNOWN, "timeout", "no answer")
UNREAD = EngineFailure(Fate.UNANSWERED, "timeout", "no answer")


class FakeServer:
    """A server as pipes see it."""

    name = "h:1"

    def __init__(self) -> None:
        self.failures: list[EngineFailure] = []

    def count(self, failure: EngineFailure) -> None:
        self.failures.append(failure)


class FakeLink:
    """A connection that keeps what it is sent."""

    ready: Any = None

    def __init__(self) -> None:
        self.server = FakeServer()
        self.sent: list[Run] = []

    def send(self, run: Run) -> None:
        self.sent.append(run)


class FakeFleet:
    """Servers of which each first letter of a key has one; ``x`` has none."""

    def __init__(self, places: Any) -> None:
        self.clock = Clock()
        self.places = places
        self.links = {index: FakeLink() for index in range(256)}
        self.next_opaque = 0xFFFF_FFF0
        self.large: list[bytes] = []

    def index_of(self, key: bytes) -> int:
        return -1 if key[:1] == b"x" else key[0] % 3

    def plain_link(self, index: int, lane: int) -> Any:
        return None if index < 0 else self.links[index]

    own_link = plain_link

    def note_large(self, key: bytes) -> None:
        self.large.append(key)

    def again_after(self, tries: int, failure: EngineFailure) -> float | None:
        return 0.0 if failure.reason == "disconnected" and tries < 3 else None

    def call_later(self, seconds: float, function: Any, *args: Any) -> Any:
        return self.clock.callLater(seconds, function, *args)


class FakeOutlet:
    """A client's connection that keeps what it is given."""

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self.failures: list[str] = []
        self.ended = 0
        self.last: list[bool] = []

    def forwarded(self, replies: list[bytes], last: bool) -> None:
        self.replies += replies
        self.last.append(last)
        self.ended += last

    def forwarding_failed(self, reason: str) -> None:
        self.failures.append(reason)


def make_pipe(kind: Any = Pipe, places: Any = Places) -> tuple[Any, Any, FakeOutlet]:
    """Make a pipe with its surroundings."""
    fleet: Any = FakeFleet(places())
    outlet = FakeOutlet()
    return kind(fleet, 0, outlet), fleet, outlet


def get(key: bytes, opaque: int = 0) -> bytes:
    """Return a GET."""
    return encode_request(Opcode.GET, key=key, opaque=opaque)


def store(key: bytes, value: bytes = b"v", opaque: int = 0, opcode: int = Opcode.SET) -> bytes:
    """Return a request that stores."""
    return encode_request(opcode, key=key, value=value, extras=bytes(8), opaque=opaque)


def replies_to(run: Run, status: int = 0, value: bytes = b"") -> bytes:
    """Return what a server answers to a run."""
    found = b""
    for number, (_, _, opcode) in enumerate(run.entries):
        plan = PLANS[opcode]
        assert plan is not None
        opaque = run.opaque + number & 0xFFFF_FFFF
        found += encode_response(plan[0], status, value=value, opaque=opaque)
    return found


class PipeTests(SynchronousTestCase):
    """Requests out, replies back in order."""

    kind: Any = Pipe

    def setUp(self) -> None:
        self.pipe, self.fleet, self.outlet = make_pipe(self.kind)
        self.touched: dict[Any, None] = {}

    def forward(self, data: bytes) -> int:
        out: list[bytes] = []
        at: int = self.pipe.forward(data, out, 1 << 20)
        self.outlet.replies += out
        return at

    def answer(self, run: Run, data: bytes) -> None:
        self.assertEqual(run.take(self.touched, data, 0, len(data)), len(data))
        self.pipe.flush()

    def frames(self) -> list[Any]:
        found = ResponseDecoder().feed(b"".join(self.outlet.replies))
        self.outlet.replies.clear()
        return found

    def sent(self, index: int) -> Run:
        return self.fleet.links[index].sent.pop(0)  # type: ignore[no-any-return]

    def test_order(self) -> None:
        """Replies leave in the order of the requests, with the client's opaques."""
        data = get(b"a", 5) + store(b"b", opaque=6) + get(b"d", 7)
        self.assertEqual(self.forward(data), len(data))
        first, second = self.sent(b"a"[0] % 3), self.sent(b"b"[0] % 3)
        self.assertEqual((len(first.entries), first.write), (2, False))
        self.assertTrue(second.write)
        self.answer(first, replies_to(first, value=b"x"))
        self.assertEqual([one.opaque for one in self.frames()], [5])
        self.assertTrue(self.pipe.busy)
        self.answer(second, replies_to(second))
        self.assertEqual([one.opaque for one in self.frames()], [6, 7])
        self.assertEqual((self.pipe.busy, self.outlet.ended), (False, 1))

    def test_quiet(self) -> None:
        """Quiet requests go as loud ones; what they should not say is not said."""
        key = b"a"
        data = (
            encode_request(Opcode.GETQ, key=key, opaque=1)
            + store(key, opaque=2, opcode=Opcode.SETQ)
            + encode_request(Opcode.NOOP, opaque=3)
        )
        self.forward(data)
        run = self.sent(key[0] % 3)
        self.assertEqual([run.data[1], run.data[25 + 1]], [Opcode.GET, Opcode.SET])
        self.answer(run, replies_to(run, Status.NOT_FOUND))
        # A miss is silent for a GETQ, a refusal of a SETQ is not.
        self.assertEqual(
            [(one.opcode, one.opaque) for one in self.frames()],
            [(Opcode.SETQ, 2), (Opcode.NOOP, 3)],
        )
        self.forward(data)
        run = self.sent(key[0] % 3)
        self.answer(run, replies_to(run))
        self.assertEqual(
            [(one.opcode, one.opaque) for one in self.frames()],
            [(Opcode.GETQ, 1), (Opcode.NOOP, 3)],
        )

    def test_noop_alone(self) -> None:
        """A NOOP that waits for nothing is answered at once."""
        self.assertEqual(self.forward(encode_request(Opcode.NOOP, opaque=9)), 24)
        self.assertEqual([one.opaque for one in self.frames()], [9])

    def test_what_is_not_ordinary(self) -> None:
        """It stays where it is, with all that follows."""
        ordinary = get(b"a")
        for odd in (
            get(b"x"),
            encode_request(Opcode.GET, key=b"a", extras=b"e"),
            encode_request(Opcode.GET, key=b"a", value=b"v"),
            encode_request(Opcode.GET),
            encode_request(Opcode.GET, key=b"k" * 251),
            encode_request(Opcode.GET, key=b"a", datatype=1),
            encode_request(Opcode.GET, key=b"a", vbucket=1),
            encode_request(Opcode.SET, key=b"a", value=b"v"),
            encode_request(Opcode.INCREMENT, key=b"a", extras=bytes(8)),
            store(b"a", bytes(70_000)),
            encode_request(Opcode.NOOP, key=b"a"),
            encode_request(Opcode.STAT),
            encode_request(Opcode.QUIT),
            b"\x81" + ordinary[1:],
            b"get a\r\n" * 10,
        ):
            self.pipe, self.fleet, self.outlet = make_pipe(self.kind)
            self.assertEqual(self.forward(ordinary + odd + ordinary), len(ordinary))
            self.assertEqual(self.pipe.tail, b"")

    def test_cut(self) -> None:
        """An ordinary request may come in any number of pieces."""
        data = store(b"a", b"value", 1) + get(b"a", 2)
        for byte in data:
            self.assertEqual(self.forward(bytes((byte,))), 1)
        runs = self.fleet.links[b"a"[0] % 3].sent
        self.assertEqual([len(run.entries) for run in runs], [1, 1])
        self.assertEqual(self.pipe.tail, b"")

    def test_cut_and_not_ordinary(self) -> None:
        """What turns out not to be ordinary is given back."""
        odd = encode_request(Opcode.GET, key=b"a", extras=b"e")
        self.assertEqual(self.forward(odd[:10]), 10)
        self.assertEqual(self.forward(odd[10:]), -1)
        self.assertEqual(self.pipe.tail, odd[:10])

    def test_limit(self) -> None:
        """No more than so many requests are under way."""
        data = get(b"a") * (MOST_SLOTS + 5)
        self.assertEqual(self.forward(data), len(get(b"a")) * MOST_SLOTS)
        self.assertEqual(self.forward(get(b"a")), 0)

    def test_not_performed(self) -> None:
        """What was not performed is a temporary failure, in its place."""
        self.forward(get(b"a", 1) + store(b"d", opaque=2) + get(b"b", 3))
        first, second = self.sent(b"a"[0] % 3), self.sent(b"b"[0] % 3)
        self.answer(second, replies_to(second))
        first.answered(AWAY, first)
        self.assertEqual(
            [(one.opaque, one.status) for one in self.frames()],
            [(1, Status.TEMPORARY_FAILURE), (2, Status.TEMPORARY_FAILURE), (3, 0)],
        )

    def test_sent_again(self) -> None:
        """What was certainly not written goes once more, on the next connection."""
        self.forward(get(b"a", 1))
        run = self.sent(b"a"[0] % 3)
        run.answered(GONE, run)
        self.fleet.clock.advance(0)
        self.assertIs(self.sent(b"a"[0] % 3), run)
        self.answer(run, replies_to(run))
        self.assertEqual([one.opaque for one in self.frames()], [1])

    def test_unknown(self) -> None:
        """A write of which nothing is known ends the connection, after what came before it."""
        self.forward(get(b"a", 1) + store(b"d", opaque=2) + get(b"a", 3))
        run = self.sent(b"a"[0] % 3)
        data = replies_to(run)
        run.take(self.touched, data[:24], 0, 24)
        run.answered(LOST, run)
        self.assertEqual([one.opaque for one in self.frames()], [1])
        (reason,) = self.outlet.failures
        self.assertIn("h:1", reason)
        self.assertTrue(self.pipe.closed)

    def test_reads_without_an_answer(self) -> None:
        """Reads are told to come again."""
        self.forward(get(b"a", 1) + get(b"d", 2))
        run = self.sent(b"a"[0] % 3)
        run.answered(UNREAD, run)
        self.assertEqual([one.status for one in self.frames()], [Status.TEMPORARY_FAILURE] * 2)
        self.assertEqual(self.fleet.links[b"a"[0] % 3].server.failures, [UNREAD])

    def test_client_gone(self) -> None:
        """Replies to a client that has left are thrown away, timers end."""
        self.forward(get(b"a") + get(b"b"))
        first, second = self.sent(b"a"[0] % 3), self.sent(b"b"[0] % 3)
        second.answered(GONE, second)
        self.pipe.close()
        self.assertEqual(self.fleet.clock.getDelayedCalls(), [])
        self.answer(first, replies_to(first))
        self.assertEqual((self.outlet.replies, self.outlet.ended), ([], 0))

    def test_wrong_reply(self) -> None:
        """A reply with another opaque is nobody's."""
        self.forward(get(b"a"))
        run = self.sent(b"a"[0] % 3)
        wrong = encode_response(Opcode.GET, opaque=run.opaque + 1)
        self.assertEqual(run.take(self.touched, wrong, 0, len(wrong)), -1)

    def test_large_reply(self) -> None:
        """A key with a large value is remembered."""
        self.forward(get(b"a") + get(b"dd"))
        run = self.sent(b"a"[0] % 3)
        data = replies_to(run, value=bytes(70_000))
        self.answer(run, data)
        self.assertEqual(self.fleet.large, [b"a", b"dd"])


KEYS = st.sampled_from([b"a", b"b", b"c", b"dd", b"x", b"k" * 250])
REQUESTS = st.one_of(
    st.builds(
        lambda opcode, key, opaque, value: encode_request(
            opcode,
            key=key,
            opaque=opaque,
            value=value if PLANS[opcode][2] else b"",  # type: ignore[index]
            extras=bytes(PLANS[opcode][1]),  # type: ignore[index]
        ),
        st.sampled_from([number for number, plan in enumerate(PLANS) if plan is not None]),
        KEYS,
        st.integers(0, 0xFFFF_FFFF),
        st.binary(max_size=60),
    ),
    st.builds(
        lambda opcode, key, extras, value, datatype, vbucket: encode_request(
            opcode, key=key, extras=extras, value=value, datatype=datatype, vbucket=vbucket
        ),
        st.integers(0, 255),
        st.binary(max_size=3),
        st.sampled_from([b"", bytes(4), bytes(8), bytes(20)]),
        st.binary(max_size=3),
        st.sampled_from([0, 0, 0, 1]),
        st.sampled_from([0, 0, 0, 1]),
    ),
    st.just(encode_request(Opcode.NOOP, opaque=77)),
    st.binary(max_size=30),
)


class PythonPipeTests(PipeTests):
    """The same where nothing is compiled."""

    kind = PythonPipe


class TwinTests(SynchronousTestCase):
    """The compiled code and Python do the same."""

    def setUp(self) -> None:
        module = require_compiled("kvproto.upstream._pipe")
        self.kinds = ((PythonPipe, PythonPlaces), (pipes.compiled_pipe(module), module.Places))

    @examples(300)
    @given(st.lists(REQUESTS, max_size=12).map(b"".join), st.data())
    def test_same(self, data: bytes, draw: st.DataObject) -> None:
        """For any read, and any answers cut anywhere."""
        outcomes = []
        for kind, places in self.kinds:
            pipe, fleet, outlet = make_pipe(kind, places)
            runs: list[Any] = []
            at = pipe.scan(data, runs, 100)
            seen = [(run.opaque, run.entries, run.data, run.write, run.several) for run in runs]
            outcomes.append(((at, list(pipe.slots), fleet.next_opaque, seen), pipe, runs, outlet))
        self.assertEqual(outcomes[0][0], outcomes[1][0])
        statuses = draw.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=12, max_size=12))
        cut = draw.draw(st.integers(0, 400))
        order = draw.draw(st.permutations(range(len(outcomes[0][2]))))
        results = []
        for _, pipe, runs, outlet in outcomes:
            found: list[Any] = []
            for run in (runs[number] for number in order):
                reply = b""
                for number, _entry in enumerate(run.entries):
                    opaque = run.opaque + number & 0xFFFF_FFFF
                    reply += encode_response(0, statuses[number], value=b"v", opaque=opaque)
                touched: dict[Any, None] = {}
                at = run.take(touched, reply, 0, min(cut, len(reply)))
                found.append((at, run.got, run.complete, list(touched) == [pipe]))
                pipe.flush()
                found.append((b"".join(outlet.replies), list(outlet.last), pipe.base))
                found.append((run.take(touched, reply, at, len(reply)), run.complete))
                found.append(run.take(touched, encode_response(0, opaque=1), 0, 24))
                pipe.flush()
            found.append((b"".join(outlet.replies), outlet.last, pipe.base, list(pipe.slots)))
            results.append(found)
        self.assertEqual(results[0], results[1])

    @examples(100)
    @given(st.integers(1, 40), st.integers(0, 3000), st.integers(0, 39))
    def test_wrong_among_right(self, count: int, cut: int, wrong: int) -> None:
        """What came before a wrong reply is handed on."""
        results = []
        for kind, places in self.kinds:
            pipe, fleet, outlet = make_pipe(kind, places)
            pipe.forward(b"".join(get(b"a", number) for number in range(count)), [], 100)
            (run,) = fleet.links[b"a"[0] % 3].sent
            data = bytearray(replies_to(run, value=b"value"))
            if wrong < count:
                data[wrong * 29 + 15] ^= 1
            whole = bytes(data)
            first = run.take({}, whole, 0, min(cut, len(whole)))
            second = run.take({}, whole, first, len(whole)) if first >= 0 else None
            pipe.flush()
            results.append((first, second, run.got, b"".join(outlet.replies), pipe.base))
        self.assertEqual(results[0], results[1])


class PlacesTests(SynchronousTestCase):
    """Where keys are, as far as that is remembered."""

    make: Any = PythonPlaces

    def test_remembered(self) -> None:
        """A key has the number that it was given last, until it is forgotten."""
        places = self.make()
        for key in (b"", b"k", b"eight by", b"nine byte", bytes(250)):
            self.assertIsNone(places.get(key))
            places.put(key, 3)
            self.assertEqual(places.get(key), 3)
            places.put(key, -1)
            self.assertEqual(places.get(key), -1)
            places.forget(key)
            self.assertIsNone(places.get(key))
            places.forget(key)

    def test_bounded(self) -> None:
        """Most of what fits is there, and nothing has another's number, however much is put."""
        places = self.make()
        for number in range(20_000):
            places.put(b"%d" % number, number)
        found = [places.get(b"%d" % number) for number in range(20_000)]
        self.assertGreater(sum(place is not None for place in found), 15_000)
        for number in range(200_000):
            places.put(b"%d" % number, number)
        found = [places.get(b"%d" % number) for number in range(200_000)]
        self.assertEqual(found[-1], 199_999)
        self.assertLessEqual(sum(place is not None for place in found), 65_536)
        for number, place in enumerate(found):
            self.assertIn(place, (None, number))


class CompiledPlacesTests(PlacesTests):
    """The same compiled."""

    def setUp(self) -> None:
        self.make = require_compiled("kvproto.upstream._pipe").Places


class ConnectionTests(SynchronousTestCase):
    """Runs between other requests on one connection."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.ends: list[tuple[str, str]] = []
        self.connection = MemcachedConnection(
            self.clock, 1.0, lambda _, reason, text: self.ends.append((reason, text))
        )
        self.transport: Any = ScriptedTransport()
        self.transport.connect(self.connection)
        self.answered: list[tuple[int, Any]] = []

    def send(self, opcode: int, opaque: int) -> FrameCall:
        def answered(reply: Any, call: Any) -> None:
            self.answered.append((call.opaque, reply))

        call = FrameCall(encode_request(opcode, opaque=opaque), answered, opaque)
        self.connection.send(call)
        return call

    def test_mixed(self) -> None:
        """Replies cut anywhere reach single requests, runs and statistics."""
        pipe, fleet, outlet = make_pipe()
        self.send(Opcode.VERSION, 1)
        pipe.forward(get(b"a", 5) + get(b"a", 6), [], 1000)
        run = fleet.links[b"a"[0] % 3].sent.pop()
        self.connection.send(run)
        stat = self.send(Opcode.STAT, 2)
        stat.items = []
        self.clock.advance(0)
        self.assertIn(run.data, self.transport.received)
        data = (
            encode_response(Opcode.VERSION, value=b"1", opaque=1)
            + replies_to(run, value=bytes(20_000))
            + encode_response(Opcode.STAT, key=b"k", value=b"v", opaque=2)
            + encode_response(Opcode.STAT, opaque=2)
        )
        for cut in range(0, len(data), 777):
            self.connection.dataReceived(data[cut : cut + 777])
        self.assertEqual([opaque for opaque, _ in self.answered], [1, 2])
        self.assertEqual(len(stat.items), 1)
        found: Any = ResponseDecoder().feed(b"".join(outlet.replies))
        self.assertEqual(
            [(one.opaque, len(one.value)) for one in found], [(5, 20_000), (6, 20_000)]
        )
        self.assertEqual((self.connection.pending, self.ends), (0, []))
        self.connection.abort("disconnected", "done")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_wrong(self) -> None:
        """What is no reply, or somebody else's, ends the connection."""
        for data in (
            b"HTTP/1.1 400 Bad Request\r\n",
            encode_response(0, opaque=7),
            b"\x81" + b"\xff" * 23,
            encode_response(0, opaque=1) * 2,
        ):
            self.setUp()
            self.send(Opcode.GET, 1)
            self.clock.advance(0)
            self.connection.dataReceived(data)
            self.assertEqual([reason for reason, _ in self.ends], ["protocol"])
            self.assertEqual(len(self.answered), 1)

    def test_timeout(self) -> None:
        """A run that is not answered in time fails."""
        pipe, fleet, outlet = make_pipe()
        pipe.forward(get(b"a", 5), [], 1000)
        self.connection.send(fleet.links[b"a"[0] % 3].sent.pop())
        self.clock.advance(0)
        self.clock.advance(1)
        self.assertEqual([reason for reason, _ in self.ends], ["timeout"])
        (found,) = ResponseDecoder().feed(b"".join(outlet.replies))
        self.assertEqual(found.status, Status.TEMPORARY_FAILURE)  # type: ignore[union-attr]
