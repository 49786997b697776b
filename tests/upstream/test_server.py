"""A server and its connections: every state of a connection, in a server up or down."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.upstream.link import LinkState
from kvproto.upstream.resp import EngineFailure, Fate
from kvproto.upstream.server import Server
from tests.upstream.logged import lines_of

S = LinkState


class FakeLink:
    """A connection whose state the test decides."""

    def __init__(self, changed: Any) -> None:
        self._changed = changed
        self.server: Any = None
        self.state = S.STOPPED
        self.reason, self.text = "unreachable", "not connected yet"
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")

    def renew(self) -> None:
        self.calls.append("renew")

    def become(self, state: LinkState, reason: str = "", text: str = "") -> None:
        self.state, self.reason, self.text = state, reason, text
        self._changed(self)


class ServerTests(SynchronousTestCase):
    """`Server` with two connections."""

    def setUp(self) -> None:
        self.changes: list[bool] = []
        self.server = self.make()
        self.lines = lines_of(self)

    def make(self) -> Any:
        return Server(
            "h:1",
            lambda changed, observe: FakeLink(changed),  # type: ignore[arg-type,return-value]
            2,
            lambda server: self.changes.append(server.up),
        )

    def test_every_pair(self) -> None:
        """What a connection's new state means to a server, by what the other one is."""
        for up in (False, True):
            for other in S:
                for new in (S.READY, S.WAITING, S.CONNECTING):
                    self.setUp()
                    server = self.server
                    one, two = server.links
                    server.start()
                    if up:
                        one.become(S.READY)
                    two.state = other
                    self.changes.clear()
                    one.become(new, *(() if new is S.READY else ("timeout", "too slow")))
                    any_ready = S.READY in {new, other}
                    # A connection that is being made again says nothing of its server yet.
                    expected = any_ready or (up and new is not S.WAITING)
                    self.assertIs(server.up, expected, (up, other, new))
                    self.assertEqual(self.changes, [] if expected is up else [expected])
                    if any_ready:
                        self.assertEqual((server.reason, server.text), ("", ""))
                    elif new is S.WAITING:
                        self.assertEqual((server.reason, server.text), ("timeout", "too slow"))
                    self.assertEqual(server.errors["timeout"], int(new is S.WAITING))

    def test_lines(self) -> None:
        """One line when it goes, one for each new reason, one when it is back."""
        server = self.server
        one, two = server.links
        server.start()
        one.become(S.READY)
        two.become(S.READY)
        one.state = S.CONNECTING
        two.become(S.WAITING, "timeout", "too slow")
        one.become(S.WAITING, "timeout", "too slow")
        two.become(S.WAITING, "unreachable", "refused")
        two.become(S.WAITING, "unreachable", "refused")
        one.become(S.READY)
        self.assertEqual(
            self.lines(),
            [
                "engine h:1 answers",
                "engine h:1 does not answer: timeout: too slow",
                "engine h:1 does not answer: unreachable: refused",
                "engine h:1 is back",
            ],
        )

    def test_lines_of_a_death(self) -> None:
        """A server that cuts its connections and then refuses others gets one line."""
        server = self.server
        link = server.links[0]
        server.start()
        for _ in range(2):
            link.become(S.READY)
            link.become(S.WAITING, "disconnected", "lost")
            link.become(S.WAITING, "unreachable", "refused")
            link.become(S.WAITING, "unreachable", "refused")
        self.assertEqual(
            self.lines()[1:],
            [
                "engine h:1 does not answer: disconnected: lost",
                "engine h:1 is back",
                "engine h:1 does not answer: disconnected: lost",
            ],
        )

    def test_not_running(self) -> None:
        """Before its start and after its end a server takes no notice."""
        server = self.server
        link = server.links[0]
        link.become(S.READY)
        self.assertEqual((server.up, self.changes), (False, []))
        server.start()
        link.become(S.READY)
        server.stop()
        self.assertEqual(
            (server.up, server.text, link.calls), (False, "stopped", ["start", "stop"])
        )
        link.become(S.READY)
        self.assertEqual((server.up, self.changes), (False, [True]))

    def test_choice(self) -> None:
        """A lane keeps its connection, unless that waits while another is ready."""
        server = self.server
        one, two = server.links
        for first in S:
            for second in S:
                one.state, two.state = first, second
                other = first is S.WAITING and second is S.READY
                self.assertIs(server.link(0), two if other else one)
                self.assertIs(server.link(2), server.link(0))

    def test_durable(self) -> None:
        """The connection for WAIT is made when it is wanted, and ends with the server."""
        server = self.server
        server.start()
        link: Any = server.durable_link
        self.assertIs(server.durable_link, link)
        self.assertIs(link.server, server)
        self.assertNotIn(link, server.links)
        server.renew()
        server.stop()
        self.assertEqual(link.calls, ["start", "renew", "stop"])
        self.assertEqual(server.links[1].calls, ["start", "renew", "stop"])

    def test_count(self) -> None:
        """Failures are counted by reason."""
        self.server.count(EngineFailure(Fate.UNANSWERED, "timeout", ""))
        self.assertEqual(self.server.errors, {"timeout": 1})

    def test_refusals(self) -> None:
        """Why commands are refused is told once for each reason, and again after a quiet minute."""

        def refuse(reason: str, now: float) -> int:
            self.server.refused(EngineFailure(Fate.NOT_PERFORMED, reason, "READONLY no"), now)
            return len(self.lines())

        told = [refuse("read-only", now) for now in (0.0, 1.0, 60.0, 119.0, 180.0)]
        self.assertEqual(told, [1, 1, 1, 1, 2])
        self.assertEqual(refuse("no-disk", 180.0), 3)
        self.assertEqual(self.lines()[0], "engine h:1 refuses commands: read-only: READONLY no")
