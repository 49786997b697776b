"""When a cluster is asked for its map: each state of the timer, and each event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.upstream.cluster import ClusterEngine
from kvproto.upstream.connection import Call
from kvproto.upstream.link import LinkState
from kvproto.upstream.options import EngineOptions
from kvproto.upstream.resp import EngineFailure, Fate, ReplyError

GONE = EngineFailure(Fate.UNANSWERED, "disconnected", "a test")
WHOLE, HALF = (0, 16383), (0, 99)


def shards(port: int, ranges: tuple[int, int]) -> list[Any]:
    """Return a map of one primary, as CLUSTER SHARDS tells it."""
    node = [b"port", port, b"ip", b"h", b"role", b"master", b"health", b"online"]
    return [[b"slots", list(ranges), b"nodes", [node]]]


class FakeLink:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.state = LinkState.STOPPED
        self.sent: list[Call] = []
        self.companions: set[object] = set()
        self.server: Any = None

    @property
    def pending(self) -> int:
        return len(self.sent)

    def send(self, call: Call) -> None:
        self.sent.append(call)


class FakeServer:
    """A server of a cluster."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.node = ("", 0)
        self.up = True
        self.text = ""
        self.links = [FakeLink()]
        self.links[0].server = self
        self.calls: list[str] = []

    def link(self, lane: int) -> FakeLink:
        return self.links[0]

    def start(self) -> None:
        self.calls.append("start")
        self.links[0].state = LinkState.READY

    def stop(self) -> None:
        self.links[0].state = LinkState.STOPPED

    def count(self, failure: EngineFailure) -> None:
        self.calls.append(failure.reason)

    def refused(self, failure: EngineFailure, now: float) -> None:
        self.calls.append(f"refused {failure.reason}")


class TimedEngine(ClusterEngine):
    """Has fake servers."""

    def _server(self, host: str, port: int) -> Any:
        return FakeServer(f"{host}:{port}")


class ClusterTimerTests(SynchronousTestCase):
    """Every pair of the table in `kvproto.upstream.cluster`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.engine = TimedEngine(EngineOptions(servers=(("h", 1),)), self.clock, 0)
        self.refused: list[EngineFailure] = []

    @property
    def only(self) -> Any:
        return self.engine._servers["h", 1]

    @property
    def asked(self) -> int:
        """How many questions are unanswered."""
        servers: list[Any] = self.engine.servers
        return sum(server.links[0].pending for server in servers)

    @property
    def timer(self) -> float | None:
        """Seconds until the map is asked for, None for never."""
        calls = self.clock.getDelayedCalls()
        self.assertLessEqual(len(calls), 1)
        return round(calls[0].getTime() - self.clock.seconds(), 6) if calls else None

    def answer(self, reply: Any) -> None:
        (call,) = self.only.links[0].sent
        self.only.links[0].sent.clear()
        call.answered(reply, call)

    # the states

    def stopped(self) -> None:
        """Not started."""

    def unknown(self) -> None:
        """Started, nothing known."""
        self.engine.start()

    def resting(self) -> None:
        """The whole map is known, and everybody well."""
        self.unknown()
        self.clock.advance(0.25)
        self.answer(shards(1, WHOLE))
        self.clock.advance(0.25)  # it had been in trouble until then
        self.answer(shards(1, WHOLE))
        self.assertEqual(self.engine.unready, "")

    def troubled(self) -> None:
        """Slots are missing."""
        self.resting()
        self.clock.advance(10)
        self.answer(shards(1, HALF))
        self.engine._schedule()

    # the events

    def start(self) -> None:
        self.engine.start()

    def stop(self) -> None:
        self.engine.stop()

    def time(self) -> None:
        """The timer's moment has come."""
        if self.timer is not None:
            self.clock.advance(self.timer)

    def trouble(self) -> None:
        """A server has come or gone, or has said that the map is wrong."""
        self.engine._server_changed(self.only)

    def moved(self) -> None:
        call = Call(b"", lambda reply, call: None, slot=7)
        self.engine.redirect(ReplyError("MOVED 7 h:1"), call)

    def command(self) -> None:
        """A command for a slot that nobody is known to have."""
        self.engine._slots[8] = None
        self.engine.send(Call(b"", lambda reply, call: self.refused.append(reply), slot=8))

    def check(
        self,
        table: dict[str, dict[str, tuple[float | None, int]]],
    ) -> None:
        for event, row in table.items():
            for state, expected in row.items():
                self.setUp()
                getattr(self, state)()
                if state == "stopped" and event not in {"start", "stop"}:
                    self.engine._server_of(("h", 1))
                before = self.asked
                getattr(self, event)()
                found = (self.timer, self.asked - before)
                self.assertEqual(found, expected, (state, event))
                refused = event == "command" and state != "unknown"
                self.assertEqual(len(self.refused), int(refused), (state, event))

    def test_every_pair(self) -> None:
        """Seconds until the next question, and how many were asked now."""
        self.check(
            {
                "start": {"stopped": (0.25, 0)},
                "stop": {
                    "stopped": (None, 0),
                    "unknown": (None, 0),
                    "resting": (None, 0),
                    "troubled": (None, 0),
                },
                "time": {
                    "stopped": (None, 0),
                    "unknown": (0.25, 1),
                    "resting": (10.0, 1),
                    "troubled": (0.25, 1),
                },
                "trouble": {
                    "stopped": (None, 0),
                    "unknown": (0.25, 1),  # nothing is known: at once
                    "resting": (0.05, 0),
                    "troubled": (0.05, 0),
                },
                "moved": {
                    "stopped": (None, 0),
                    "unknown": (0.25, 1),
                    "resting": (0.05, 0),
                    "troubled": (0.05, 0),
                },
                "command": {
                    "stopped": (None, 0),
                    "unknown": (0.25, 0),  # it is kept until the first map is there
                    "resting": (0.05, 0),
                    "troubled": (0.05, 0),
                },
            }
        )

    def test_while_it_is_asked(self) -> None:
        """Whatever happens while a question is unanswered, no second one is asked."""
        for state in ("unknown", "resting", "troubled"):
            self.setUp()
            getattr(self, state)()
            self.time()
            self.assertEqual(self.asked, 1)
            for event in (self.trouble, self.moved, self.command, self.time, self.trouble):
                event()
                self.assertEqual(self.asked, 1, state)
            self.stop()
            self.assertIsNone(self.timer)

    def test_every_answer(self) -> None:
        """What each answer leads to: when is asked again, and whether it is ready."""
        unreadable = [[b"slots"]]
        refused = ReplyError("ERR This instance has cluster support disabled")
        for state in ("unknown", "resting", "troubled"):
            for reply, well in (
                (shards(1, WHOLE), True),
                (shards(1, HALF), False),
                ([], False),
                (unreadable, state == "resting"),
                (refused, state == "resting"),
                (GONE, state == "resting"),
            ):
                self.setUp()
                getattr(self, state)()
                self.time()
                self.answer(reply)
                self.assertEqual(self.engine.unready == "", well, (state, reply))
                self.assertEqual(self.asked, 0)
                # What comes next is asked once, whatever was answered.
                self.time()
                self.assertEqual(self.asked, 1, (state, reply))
                self.assertEqual(self.timer, 10.0 if well else 0.25, (state, reply))
                self.flushLoggedErrors()

    def test_older_servers(self) -> None:
        """A server that does not know SHARDS is asked for SLOTS at once, and from then on."""
        self.unknown()
        self.time()
        self.answer(ReplyError("ERR Unknown subcommand or wrong number of arguments for 'SHARDS'"))
        for _ in range(2):
            (call,) = self.only.links[0].sent
            self.assertIn(b"SLOTS", call.data)
            self.answer([[0, 16383, [b"h", 1, b"id"]]])
            self.assertEqual(self.engine.unready, "")
            self.time()

    def test_answered_after_the_end(self) -> None:
        """An answer that comes when it was stopped starts nothing."""
        for reply in (shards(1, WHOLE), GONE, ReplyError("ERR unknown command")):
            self.setUp()
            self.unknown()
            self.time()
            self.stop()
            self.answer(reply)
            self.assertEqual((self.timer, self.asked), (None, 0))

    def test_what_is_kept(self) -> None:
        """Commands that came before the map are sent with it, or refused when there is none."""
        for act, sent, refused in (
            (lambda: self.answer(shards(1, WHOLE)), 1, 0),
            (lambda: self.answer(ReplyError("ERR no")), 0, 1),
            (self.stop, 0, 1),
        ):
            self.kept(act, sent, refused)

    def kept(self, act: Callable[[], object], sent: int, refused: int) -> None:
        self.setUp()
        self.unknown()
        self.command()
        self.assertEqual((self.asked, self.refused), (0, []))
        self.time()
        if act == self.stop:
            self.only.links[0].sent.clear()
        act()
        self.assertEqual((self.asked, len(self.refused)), (sent, refused))

    def test_nobody_is_up(self) -> None:
        """When none that it knows is there it asks nobody, and looks where it began."""
        self.resting()
        self.only.up = False
        self.only.text = "gone"
        self.only.links[0].state = LinkState.WAITING
        self.engine._servers["h", 2] = self.engine._servers.pop(("h", 1))
        self.engine._primaries[0].node = ("h", 2)
        self.time()
        self.assertEqual((self.asked, self.timer), (0, 0.25))
        self.assertIn("start", self.only.calls)

    def test_later(self) -> None:
        """Commands that wait to be sent again are not after the end."""
        self.resting()
        call = Call(b"", lambda reply, call: self.refused.append(reply), slot=7)
        call.tries = 1
        self.assertTrue(self.engine._send_on(ReplyError("TRYAGAIN later"), call))
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)
        self.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
