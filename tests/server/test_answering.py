"""What every read and every forwarded reply passes, in Python and compiled alike."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.server import answering
from kvproto.server.counters import MEASURED_READS, Counters
from kvproto.server.replies import JOIN_LIMIT
from kvproto.server.server import KVServer
from kvproto.store import MemoryStore
from tests.compiled import require_compiled


class FakeSession:
    """A session that answers as it is told, and writes down what it is asked."""

    plain = True
    waits = False

    def __init__(self, settled: bool = True, replies: list[bytes] | None = None) -> None:
        self.settled = settled
        self.replies = replies or []
        self.read: list[bytes] = []

    def receive(self, data: bytes, out: list[bytes]) -> bool:
        self.read.append(data)
        out += self.replies
        return self.settled


class Broken(FakeSession):
    """One with a defect."""

    def receive(self, data: bytes, out: list[bytes]) -> bool:
        raise ValueError


class FakeOwner:
    """The rest of a connection."""

    def __init__(self) -> None:
        owner: Any = self
        owner._server = KVServer(MemoryStore(lambda: 0.0))
        owner._counters = Counters(recently=17.0, unmeasured=MEASURED_READS)
        owner.session = None
        owner.last_read = 0.0
        owner._held = owner._written = owner._unread_replies = 0
        owner._answered = owner._closed = owner._paused = False
        owner._write_alone = lambda data: self.said.append(("alone", data))
        self.said: list[Any] = []

    def _write(self, out: list[bytes]) -> None:
        self.said.append(("write", list(out)))

    def proceed(self) -> None:
        self.said.append("proceed")

    def _unread(self) -> None:
        self.said.append("unread")

    def _not_served(self, session: Any) -> None:
        self.said.append("not served")


class PythonTests(SynchronousTestCase):
    """In Python."""

    base: Any = answering.PythonAnswering
    forward: Any = staticmethod(answering.python_forward)

    def owner(self, session: FakeSession | None, **attributes: Any) -> Any:
        """Return a connection with a session."""
        kind: Any = type("Owner", (self.base, FakeOwner), {})
        owner = kind()
        owner.session = session
        for name, value in attributes.items():
            setattr(owner, name, value)
        return owner

    def test_before_the_first_byte(self) -> None:
        """Without a session a read is not taken."""
        self.assertEqual(self.owner(None).answer(b"abc", []), 0)

    def test_settled(self) -> None:
        """A read with which all is done that there is to do is counted, and taken whole."""
        session = FakeSession(replies=[b"one", b"three"])
        owner = self.owner(session)
        replies: list[bytes] = []
        self.assertEqual(owner.answer(b"abc", replies), 3)
        self.assertEqual(replies, [b"one", b"three"])
        self.assertEqual(session.read, [b"abc"])
        counters = owner._counters
        self.assertEqual((counters.bytes_read, counters.bytes_written), (3, 8))
        self.assertEqual((owner.last_read, owner._answered, owner._written), (17.0, False, 0))
        self.assertEqual(counters.unmeasured, MEASURED_READS - 1)

    def test_not_settled(self) -> None:
        """A read that leaves something to do is counted, and not taken."""
        owner = self.owner(FakeSession(settled=False, replies=[b"one"]))
        replies: list[bytes] = []
        self.assertEqual(owner.answer(b"abc", replies), 0)
        self.assertEqual(replies, [b"one"])
        self.assertTrue(owner._answered)
        self.assertEqual((owner._counters.bytes_read, owner._counters.bytes_written), (3, 3))

    def test_held(self) -> None:
        """While something is held for a connection, it is accounted for after each read."""
        owner = self.owner(FakeSession(), _held=1)
        self.assertEqual(owner.answer(b"abc", []), 0)
        self.assertTrue(owner._answered)

    def test_much(self) -> None:
        """How much was written is noted where it is much."""
        owner = self.owner(FakeSession(replies=[bytes(JOIN_LIMIT)]))
        owner.answer(b"a", [])
        self.assertEqual(owner._written, 0)
        owner = self.owner(FakeSession(replies=[bytes(JOIN_LIMIT), b"x"]))
        owner.answer(b"a", [])
        self.assertEqual(owner._written, JOIN_LIMIT + 1)

    def test_a_defect(self) -> None:
        """It is reported, and does not reach who called."""
        owner = self.owner(Broken())
        self.assertEqual(owner.answer(b"abc", []), 0)
        self.assertEqual((owner.said, owner._answered), (["not served"], True))
        self.assertEqual(owner._counters.bytes_read, 3)

    def test_timed(self) -> None:
        """One read in so many is timed."""
        owner = self.owner(FakeSession())
        took: list[bytes] = []
        self.patch(
            type(owner._server.requests), "took_read", lambda self, data, took_s: took.append(data)
        )
        for number in range(2 * MEASURED_READS):
            owner.answer(b"%d" % number, [])
        self.assertEqual(took, [b"%d" % (MEASURED_READS - 1), b"%d" % (2 * MEASURED_READS - 1)])

    def test_forwarded(self) -> None:
        """Replies are written alone where nothing follows, together with others else."""
        much = bytes(JOIN_LIMIT)
        for replies, last, said in (
            ([b"a"], True, [("alone", b"a")]),
            ([b"a", b"b"], True, [("alone", b"ab")]),
            ([much], True, [("alone", much)]),
            ([much, b"x"], True, [("write", [much, b"x"])]),
            ([b"a"], False, [("write", [b"a"])]),
            ([], False, []),
        ):
            owner = self.owner(FakeSession())
            owner.forwarded(replies, last)
            self.assertEqual(owner.said, said)
            alone = bool(said) and said[0][0] == "alone"
            size = sum(map(len, replies)) if alone else 0
            self.assertEqual((owner._written, owner._counters.bytes_written), (size, size))

    def test_forwarded_to_who_does_not_read(self) -> None:
        """It is counted what a peer that has paused gets, and one that is gone gets nothing."""
        owner = self.owner(FakeSession(), _paused=True)
        owner.forwarded([b"a"], True)
        self.assertEqual(owner.said, [("alone", b"a"), "unread"])
        owner = self.owner(FakeSession(), _closed=True)
        owner.forwarded([b"a"], True)
        self.assertEqual(owner.said, [])

    def test_what_has_waited(self) -> None:
        """It is served when nothing is under way any more."""
        for plain, waits, last, said in (
            (False, True, True, ["proceed"]),
            (False, True, False, []),
            (False, False, True, []),
            (True, True, True, []),
        ):
            session = FakeSession()
            session.plain, session.waits = plain, waits
            owner = self.owner(session)
            owner.forwarded([], last)
            self.assertEqual(owner.said, said)

    def test_forward(self) -> None:
        """A pipe takes what it can; what it has turned out not to be for goes back whole."""

        class Dialect:
            max_body = 5
            forwarding = False

            def __init__(self, at: int) -> None:
                self.said: list[Any] = []
                self.at = at
                self._unobserved = False
                self._pipe: Any = self

            def forward(self, data: bytes, out: list[bytes], max_body: int) -> int:
                self.said.append((data, max_body))
                return self.at

            def observe(self) -> None:
                self.said.append("observe")
                self._pipe = None

            def give_back(self) -> None:
                self.said.append("give back")

        for at, left, more in ((3, 0, []), (1, 2, []), (0, 3, []), (-1, 3, ["give back"])):
            dialect = Dialect(at)
            self.assertEqual(self.forward(None, dialect, b"abc", [], 0), left)
            self.assertEqual(dialect.said, [(b"abc", 5), *more])
        for forwarding, said in ((False, ["observe"]), (True, [(b"abc", 5)])):
            dialect = Dialect(3)
            dialect._unobserved, dialect.forwarding = True, forwarding
            self.assertEqual(self.forward(None, dialect, b"abc", [], 0), 3 - 3 * forwarding)
            self.assertEqual(dialect.said, said)


class CompiledTests(PythonTests):
    """Compiled."""

    def setUp(self) -> None:
        module = require_compiled("kvproto.server._answering")
        self.base = module.Answering
        self.forward = module.forward
