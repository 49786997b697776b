"""The window: which requests are under way together, and in which order their replies leave."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NoReturn

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.server.replies import Hangup, Reply
from kvproto.server.window import BARRIER, FREE, State, Subject, Window
from tests.examples import examples

LIMIT = 3
SIZE_LIMIT = 100


class Servant:
    """Starts requests that end when the test says so.

    A request is a name.  One that begins with ``!`` is answered at once, one that begins with
    ``?`` raises, any other waits.
    """

    def __init__(self) -> None:
        self.started: list[str] = []
        self.waiting: dict[str, Deferred[Any]] = {}
        self.cancelled: list[str] = []

    def begin(self, request: str) -> Reply:
        self.started.append(request)
        if request[0] == "?":
            raise RuntimeError("a defect")
        if request[0] == "!":
            return request.encode()
        deferred: Deferred[Any] = Deferred(lambda _: self.cancelled.append(request))
        self.waiting[request] = deferred
        return deferred

    def conclude(self, request: str, reply: Reply) -> Reply:
        return reply

    def failed(self, request: str, error: BaseException | None = None) -> bytes:
        return b"failed " + request.encode()

    def answer(self, request: str, reply: Any = None) -> None:
        """Let a request end."""
        waiting = self.waiting.pop(request)
        waiting.callback(request.encode() if reply is None else reply)


class Bench:
    """A window, what it starts, and what it gives back."""

    def __init__(self, *, in_order: bool = True) -> None:
        self.servant = Servant()
        self.changes = 0
        self.failures: list[Failure] = []
        self.window = Window(
            self.servant, SIZE_LIMIT, self.changed, self.failures.append, limit=LIMIT
        )
        self.window.in_order = in_order

    def changed(self) -> None:
        self.changes += 1

    def enter(self, *requests: str, subject: Subject = FREE, size: int = 0) -> None:
        for request in requests:
            self.window.enter(request, subject, size)

    def take(self, limit: int = 1000) -> list[bytes]:
        out: list[bytes] = []
        total = self.window.take(out, limit)
        assert total == sum(map(len, out))
        return out


class OrderTests(SynchronousTestCase):
    """When requests start, and in which order their replies leave."""

    def test_together(self) -> None:
        """Requests that have nothing to do with each other are under way together."""
        bench = Bench()
        bench.enter("a", subject=b"a")
        bench.enter("b", subject=b"b")
        self.assertEqual(bench.servant.started, ["a", "b"])

    def test_replies_in_order(self) -> None:
        """A reply waits for those before it."""
        bench = Bench()
        bench.enter("a", "b", "!c")
        bench.servant.answer("b")
        self.assertEqual(bench.take(), [])
        bench.servant.answer("a")
        self.assertEqual(bench.take(), [b"a", b"b", b"!c"])
        self.assertEqual(bench.changes, 2)

    def test_replies_as_they_come(self) -> None:
        """Where the client has agreed to it, no reply waits."""
        bench = Bench(in_order=False)
        bench.enter("a", "b", "!c")
        self.assertEqual(bench.take(), [b"!c"])
        bench.servant.answer("b")
        self.assertEqual(bench.take(), [b"b"])
        bench.servant.answer("a")
        self.assertEqual(bench.take(), [b"a"])

    def test_defect_behind_an_answer(self) -> None:
        """What goes wrong in answering, or in naming a failure, is reported, not lost."""

        def broken(*_: object) -> NoReturn:
            raise ValueError("a defect")

        failures: list[Failure] = []
        servant: Any = Servant()
        servant.failed = broken
        window = Window(servant, SIZE_LIMIT, broken, failures.append, limit=LIMIT)
        window.enter("a", FREE)
        servant.answer("a")
        self.assertEqual([str(failure.value) for failure in failures], ["a defect"])
        window.enter("b", FREE)
        servant.waiting.pop("b").errback(RuntimeError("why"))
        self.assertEqual(
            [str(failure.value) for failure in failures], ["a defect", "why", "a defect"]
        )

    def test_one_subject(self) -> None:
        """Requests about one thing follow each other, whatever the order of replies."""
        for in_order in (True, False):
            bench = Bench(in_order=in_order)
            bench.enter("a", "b", subject=b"k")
            bench.enter("c", subject=b"other")
            self.assertEqual(bench.servant.started, ["a", "c"])
            bench.servant.answer("a")
            self.assertEqual(bench.servant.started, ["a", "c", "b"])
            self.assertEqual(bench.take(), [b"a"])

    def test_subject_is_forgotten(self) -> None:
        """Once all about a thing has ended, nothing of it is kept."""
        bench = Bench()
        bench.enter("a", "b", subject=b"k")
        bench.servant.answer("a")
        bench.servant.answer("b")
        bench.take()
        self.assertEqual(bench.window._last, {})
        bench.enter("c", subject=b"k")
        self.assertEqual(bench.servant.started, ["a", "b", "c"])

    def test_long_chain(self) -> None:
        """However many wait for one, each starts: the stack does not grow with them."""
        servant = Servant()
        window = Window(servant, SIZE_LIMIT, lambda: None, lambda _: None, limit=5000)
        window.enter("first", b"k")
        for _ in range(4000):
            window.enter("!", b"k")
        servant.answer("first")
        out: list[bytes] = []
        window.take(out, 1 << 20)
        self.assertEqual(len(out), 4001)
        self.assertIs(window.state, State.EMPTY)

    def test_barrier(self) -> None:
        """A barrier enters when all before it has ended, and nothing enters before it has ended."""
        bench = Bench()
        bench.enter("a")
        self.assertFalse(bench.window.admits(BARRIER))
        self.assertTrue(bench.window.admits(FREE))
        bench.servant.answer("a")
        self.assertTrue(bench.window.admits(BARRIER))  # the reply may leave later
        bench.enter("b", subject=BARRIER)
        self.assertFalse(bench.window.admits(FREE))
        self.assertFalse(bench.window.admits(BARRIER))
        bench.servant.answer("b")
        self.assertTrue(bench.window.admits(FREE))
        self.assertEqual(bench.take(), [b"a", b"b"])

    def test_limit_of_a_turn(self) -> None:
        """Replies beyond the limit stay."""
        bench = Bench()
        bench.enter("!a", "!b", "!c")
        self.assertEqual(bench.take(3), [b"!a", b"!b"])
        self.assertTrue(bench.window.ready)
        self.assertEqual(bench.take(3), [b"!c"])

    def test_parts(self) -> None:
        """A reply may have several parts, or be empty."""
        bench = Bench()
        bench.enter("a", "b")
        bench.servant.answer("a", [b"x", b"yz"])
        bench.servant.answer("b", b"")
        self.assertEqual(bench.take(), [b"x", b"yz"])
        self.assertIs(bench.window.state, State.EMPTY)

    def test_answered_before(self) -> None:
        """A Deferred that has fired already passes through."""
        bench = Bench()
        bench.window.adopt("a", b"k", 0, succeed(b"a"))
        self.assertEqual(bench.take(), [b"a"])
        self.assertIs(bench.window.state, State.EMPTY)
        self.assertEqual(bench.changes, 0)


class FailureTests(SynchronousTestCase):
    """Requests that do not end well."""

    def test_failure(self) -> None:
        """It answers its request, and no other; what waited for it starts."""
        bench = Bench()
        bench.enter("a", "b", subject=b"k")
        bench.servant.waiting.pop("a").errback(OSError("gone"))
        bench.servant.answer("b")
        self.assertEqual(bench.take(), [b"failed a", b"b"])
        self.assertEqual([f.type for f in bench.failures], [OSError])

    def test_raised(self) -> None:
        """So does an exception, a defect of ours."""
        bench = Bench()
        bench.enter("?a", "!b")
        self.assertEqual(bench.take(), [b"failed ?a", b"!b"])
        self.assertEqual([f.type for f in bench.failures], [RuntimeError])

    def test_end(self) -> None:
        """What is under way is cancelled, once each; what waited never starts."""
        bench = Bench()
        bench.enter("a", "b", subject=b"k")
        bench.enter("c")
        bench.window.end()
        bench.window.end()
        self.assertEqual(sorted(bench.servant.cancelled), ["a", "c"])
        self.assertEqual(bench.servant.started, ["a", "c"])
        self.assertEqual((bench.failures, bench.changes, bench.take()), ([], 0, []))
        self.assertEqual((bench.window.size, bench.window.unfinished), (0, 0))

    def test_too_late(self) -> None:
        """A store that answers although it was told not to is not heard; its failure is logged."""
        bench = Bench()
        deaf: Deferred[Any] = Deferred()
        bench.window.adopt("a", FREE, 0, deaf)
        bench.window.end()
        deaf.callback(b"late")
        self.assertEqual((bench.failures, bench.changes, bench.take()), ([], 0, []))
        bench = Bench()
        failing: Deferred[Any] = Deferred(lambda waiting: waiting.errback(OSError("meanwhile")))
        bench.window.adopt("a", FREE, 0, failing)
        bench.window.end()
        self.assertEqual([f.type for f in bench.failures], [OSError])

    def test_hangup(self) -> None:
        """It leaves after what came before it; what came behind it is cancelled."""
        bench = Bench()
        bench.enter("a", "b", "c")
        bench.servant.answer("b", Hangup(b"bye", "enough"))
        self.assertFalse(bench.window.admits(FREE))
        self.assertEqual(bench.take(), [])
        self.assertIsNone(bench.window.hangup)
        bench.servant.answer("a")
        self.assertEqual(bench.take(), [b"a", b"bye"])
        self.assertEqual(bench.window.hangup, Hangup(b"bye", "enough"))
        self.assertEqual(bench.servant.cancelled, ["c"])
        self.assertIs(bench.window.state, State.ENDED)


class LimitTests(SynchronousTestCase):
    """How much may be inside."""

    def test_requests(self) -> None:
        """No more than the limit, replies that have not left included."""
        bench = Bench()
        bench.enter("a", "!b", "!c")
        self.assertIs(bench.window.state, State.FULL)
        bench.servant.answer("a")
        self.assertIs(bench.window.state, State.FULL)
        bench.take(1)
        self.assertIs(bench.window.state, State.OPEN)

    def test_bytes_of_requests(self) -> None:
        """Requests count with what they hold, until they have ended."""
        bench = Bench()
        bench.enter("a", size=SIZE_LIMIT)
        self.assertFalse(bench.window.admits(FREE))
        bench.servant.answer("a")
        self.assertTrue(bench.window.admits(FREE))
        self.assertEqual(bench.window.size, 1)

    def test_bytes_of_replies(self) -> None:
        """Replies count until they leave."""
        bench = Bench()
        bench.enter("a", "b")
        bench.servant.answer("b", [bytes(SIZE_LIMIT - 1), b"x"])
        self.assertFalse(bench.window.admits(FREE))
        bench.servant.answer("a")
        self.assertEqual(len(bench.take()), 3)
        self.assertEqual(bench.window.size, 0)
        self.assertTrue(bench.window.admits(FREE))


def _empty(bench: Bench) -> None:
    pass


def _open(bench: Bench) -> None:
    bench.enter("a", subject=b"k")


def _full(bench: Bench) -> None:
    bench.enter("a", "b", "c", subject=b"k")


def _fenced(bench: Bench) -> None:
    bench.enter("a", subject=BARRIER)


def _ending(bench: Bench) -> None:
    bench.enter("a", "z")
    bench.servant.answer("z", Hangup())


def _ended(bench: Bench) -> None:
    bench.enter("a")
    bench.window.end()


def _request(bench: Bench) -> str:
    if not bench.window.admits(b"new"):
        return "no"
    bench.enter("new", subject=b"new")
    return bench.window.state.name


def _barrier(bench: Bench) -> str:
    if not bench.window.admits(BARRIER):
        return "no"
    bench.enter("new", subject=BARRIER)
    return bench.window.state.name


def _reply(bench: Bench) -> str:
    if "a" not in bench.servant.waiting:
        return "-"
    if bench.servant.waiting["a"].called:
        bench.servant.waiting.pop("a")
    else:
        bench.servant.answer("a")
    bench.take()
    return bench.window.state.name


def _hangup(bench: Bench) -> str:
    if "a" not in bench.servant.waiting:
        return "-"
    if not bench.servant.waiting["a"].called:
        bench.servant.answer("a", Hangup())
    return bench.window.state.name


def _end(bench: Bench) -> str:
    bench.window.end()
    return bench.window.state.name


STATES: dict[State, Callable[[Bench], None]] = {
    State.EMPTY: _empty,
    State.OPEN: _open,
    State.FULL: _full,
    State.FENCED: _fenced,
    State.ENDING: _ending,
    State.ENDED: _ended,
}
EVENTS = (_request, _barrier, _reply, _hangup, _end)
TABLE = {
    State.EMPTY: ("OPEN", "FENCED", "-", "-", "ENDED"),
    State.OPEN: ("OPEN", "no", "EMPTY", "ENDING", "ENDED"),
    State.FULL: ("no", "no", "OPEN", "ENDING", "ENDED"),
    State.FENCED: ("no", "no", "EMPTY", "ENDING", "ENDED"),
    State.ENDING: ("no", "no", "ENDED", "ENDING", "ENDED"),
    State.ENDED: ("no", "no", "ENDED", "ENDED", "ENDED"),
}
"""What the module's table says, for windows that hold what the functions above put into them."""


class TableTests(SynchronousTestCase):
    """Every event in every state."""

    def test_every_pair(self) -> None:
        """Each has one outcome, in both orders of replies."""
        self.assertEqual(set(TABLE), set(State))
        for in_order, state, number in itertools.product((True, False), State, range(5)):
            bench = Bench(in_order=in_order)
            STATES[state](bench)
            if in_order or state is not State.ENDING:
                self.assertIs(bench.window.state, state)
                outcome = EVENTS[number](bench)
                self.assertEqual(outcome, TABLE[state][number], (state, EVENTS[number]))

    def test_unordered_hangup(self) -> None:
        """Where no reply waits, neither does a hangup."""
        bench = Bench(in_order=False)
        _ending(bench)
        self.assertIs(bench.window.state, State.ENDING)
        bench.take()
        self.assertIs(bench.window.state, State.ENDED)
        self.assertEqual(bench.servant.cancelled, ["a"])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.sampled_from(["a", "b", "!", "?", "free", "barrier"])),
        st.tuples(st.just("answer"), st.integers(0, 5)),
        st.tuples(st.just("fail"), st.integers(0, 5)),
        st.tuples(st.just("take"), st.integers(1, 30)),
    ),
    max_size=60,
)
SUBJECTS: dict[str, Subject] = {"a": b"a", "b": b"b", "barrier": BARRIER}


class AnyHistoryTests(SynchronousTestCase):
    """Whatever comes in whatever order."""

    @examples()
    @given(STEPS, st.booleans())
    def test_promises(self, steps: list[tuple[str, Any]], in_order: bool) -> None:
        """Each request is answered once, in the order promised; each key's order holds."""
        bench = Bench(in_order=in_order)
        window, servant = bench.window, bench.servant
        entered: list[str] = []
        left: list[str] = []
        number = itertools.count()

        def check() -> None:
            self.assertLessEqual(window._count, LIMIT)
            self.assertGreaterEqual(window.unfinished, len(servant.waiting))
            self.assertEqual(window._count, len(entered) - len(left))
            running = list(servant.waiting)
            about = [name.split(".")[0] for name in running]
            for subject in ("a", "b", "barrier"):
                self.assertLessEqual(about.count(subject), 1)
            if "barrier" in about:
                self.assertEqual(len(running), 1)

        def take(limit: int) -> None:
            left.extend(
                reply.decode().removeprefix("failed ").lstrip("!?") for reply in bench.take(limit)
            )

        def end_one(which: int, *, failing: bool) -> None:
            if servant.waiting:
                name = sorted(servant.waiting)[which % len(servant.waiting)]
                if failing:
                    servant.waiting.pop(name).errback(OSError())
                else:
                    servant.answer(name)

        for verb, argument in steps:
            if verb == "enter":
                name = f"{argument.lstrip('!?')}.{next(number)}"
                subject = SUBJECTS.get(argument, FREE)
                if window.admits(subject):
                    entered.append(name)
                    bench.enter(
                        argument.rstrip("abcdefghijklmnopqrstuvwxyz") + name, subject=subject
                    )
            elif verb == "take":
                take(argument)
            else:
                end_one(argument, failing=verb == "fail")
            check()
        while servant.waiting:
            end_one(0, failing=False)
        while window.ready:
            take(1)
        self.assertEqual(sorted(left), sorted(entered))
        if in_order:
            self.assertEqual(left, entered)
        for key in ("a", "b"):
            of_key = [name for name in servant.started if name.startswith(f"{key}.")]
            self.assertEqual(of_key, [name for name in entered if name.startswith(f"{key}.")])
        self.assertIs(window.state, State.EMPTY)
        self.assertEqual((window.size, window._last), (0, {}))
