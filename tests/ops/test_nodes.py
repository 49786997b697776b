"""Node links under the control vocabulary: what operators and nodes are answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist import RestartReport
from kvproto.errors import CommandError
from kvproto.ops.nodes import INodes, NodeControl, combined
from kvproto.ops.render import render
from kvproto.tls.verdict import Action, Verdict
from tests.ops import material

SERVED = Verdict(Action.RELOAD, ok=True, changed=True, generation=2, fingerprint="f", not_after=9.0)
SAME = Verdict(Action.RELOAD, ok=True, changed=False, generation=1, fingerprint="e", not_after=9.0)
REFUSED = Verdict(Action.RELOAD, False, False, 1, "e", 9.0, stage="check", reason="it has expired")


class FakeNodes:
    """A node part that a test ends when it likes."""

    rotation: Any = None
    acceptor: Any = None
    follows_data = True

    def __init__(self) -> None:
        self.outcome: Deferred[Any] = Deferred()
        self.began: Any = None
        self.asked: list[str] = []

    @contextmanager
    def before_restart(self, began: Any) -> Iterator[None]:
        self.began = began
        yield

    def rotate(self, *, allow_fewer_names: bool = False) -> Deferred[Any]:
        self.asked.append(f"rotate {allow_fewer_names}")
        return self.outcome

    def restart_tls(self) -> Deferred[Any]:
        self.asked.append("restart_tls")
        return self.outcome

    def rollback(self) -> Deferred[Any]:
        self.asked.append("rollback")
        return self.outcome

    def open(self) -> Deferred[bool]:
        return succeed(True)

    def close(self) -> Deferred[None]:
        return succeed(None)

    def status(self) -> dict[str, Any]:
        return {}


class NodeControlTests(SynchronousTestCase):
    """One part's outcome as an answer."""

    def setUp(self) -> None:
        self.nodes = FakeNodes()
        nodes: INodes = self.nodes
        self.data = material.verdict()
        self.node_control = NodeControl(
            nodes, lambda: 0.0, lambda: {"all": "good"}, lambda: succeed(self.data)
        )

    def test_status(self) -> None:
        """A node is told what an operator is told."""
        self.assertEqual(self.node_control.from_node("status"), {"all": "good"})

    def test_operators_wait(self) -> None:
        """An operator hears who is back; those who are not make it a failure."""
        asked = self.node_control.reload(True)
        self.assertNoResult(asked)
        self.nodes.outcome.callback((SERVED, RestartReport((), ("a@h",))))
        answer = self.successResultOf(asked)
        self.assertEqual((answer["ok"], answer["missing"]), (False, ["a@h"]))
        self.assertEqual(answer["stage"], "nodes")
        self.assertIn("a@h", answer["reason"])
        self.assertEqual(self.nodes.asked, ["rotate True"])

    def test_nodes_are_answered_in_time(self) -> None:
        """A node hears that its link is about to be closed, once, whatever follows."""
        for command in ("reload", "restart_tls"):
            self.nodes.outcome = Deferred()
            asked = self.node_control.from_node(command)
            self.assertNoResult(asked)
            self.nodes.began(material.served_generation(2))
            answer = self.successResultOf(asked)
            part = answer["nodes"] if command == "reload" else answer
            self.assertEqual((part["ok"], part["restarting"], part["generation"]), (True, True, 2))
            self.nodes.began(material.served_generation(3))
            self.nodes.outcome.callback((SERVED, RestartReport()))
            self.assertEqual(part["generation"], 2)

    def test_answered_before_its_turn(self) -> None:
        """A node that still waits for the data listener is answered as well."""
        reloading: Deferred[Any] = Deferred()
        self.node_control = NodeControl(
            self.nodes, lambda: 0.0, lambda: {"all": "good"}, lambda: reloading
        )
        asked = self.node_control.from_node("reload")
        self.assertEqual(self.nodes.asked, [])
        self.nodes.began(material.served_generation(2))
        self.assertEqual(self.successResultOf(asked)["restarting"], True)
        reloading.callback(self.data)
        self.nodes.outcome.callback((SERVED, RestartReport()))

    def test_nothing_to_close(self) -> None:
        """Without new files a node is told so; refused ones come with the reason."""
        for verdict, ok in ((SAME, True), (REFUSED, False)):
            self.nodes.outcome = succeed((verdict, RestartReport()))
            answer = self.successResultOf(self.node_control.from_node("reload"))
            self.assertEqual((answer["ok"], answer["nodes"]["restarting"]), (ok, False))
        self.assertEqual(answer["reason"], "nodes: it has expired")

    def test_stopping(self) -> None:
        """Who waits when the service stops is told; who was answered is not told again."""
        asked = self.node_control.from_node("restart_tls")
        self.nodes.outcome.errback(CommandError("cancelled", "stopping"))
        self.failureResultOf(asked, CommandError)
        self.nodes.outcome = Deferred()
        asked = self.node_control.from_node("restart_tls")
        self.nodes.began(material.served_generation())
        self.nodes.outcome.errback(CommandError("cancelled", "stopping"))
        self.assertTrue(self.successResultOf(asked)["ok"])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_rollback(self) -> None:
        """Links follow a rollback where they use the data listener's files, only there."""
        self.nodes.outcome = succeed((SERVED, RestartReport()))
        answer = self.successResultOf(self.node_control.rollback())
        assert answer is not None
        self.assertTrue(answer["ok"])
        self.nodes.follows_data = False
        self.assertIsNone(self.successResultOf(self.node_control.rollback()))
        self.assertEqual(self.nodes.asked, ["rollback"])


class CombinedTests(SynchronousTestCase):
    """One answer for both parts."""

    def test_table(self) -> None:
        """It is good if both are; the data listener's reason goes first."""
        good, bad = material.verdict(), material.verdict(ok=False, stage="read", reason="gone")
        self.assertEqual(combined(good, None), good)
        for data, nodes, ok, reason in (
            (good, good, True, ""),
            (good, bad, False, "nodes: gone"),
            (bad, good, False, "gone"),
            (bad, bad, False, "gone"),
        ):
            answer = combined(data, nodes)
            self.assertEqual((answer["ok"], answer["reason"]), (ok, reason))
            self.assertEqual(answer["nodes"], nodes)


class TextTests(SynchronousTestCase):
    """Node links in a terminal."""

    def nodes(self, **changes: Any) -> dict[str, Any]:
        return {
            "name": "kv@host.example",
            "generation": material.generation(),
            "processes": ["kvtls", "net_kernel"],
            "dialling": [],
            "links": [
                {
                    "node": "e1@" + "very-long-host." * 6 + "example",
                    "direction": "in",
                    "state": "up",
                    "handshake": "up",
                    "age_s": 75.0,
                    "generation": 3,
                    "bytes_in": 1,
                    "bytes_out": 1,
                }
            ],
            "connectors": [
                {
                    "node": "b@h",
                    "state": "waiting",
                    "attempts": 4,
                    "generation": None,
                    "problem": "refused\x1b[2J",
                }
            ],
            "epmd": {"name": "kv", "port": 17001, "registered": True, "problem": ""},
            "last_restart": {"ok": False, "listeners": [], "missing": ["a@h", "b@h"]},
            **changes,
        }

    def text(self, **changes: Any) -> str:
        return render("status", {**material.status(), "nodes": self.nodes(**changes)})

    def test_status(self) -> None:
        """Everything is shown, within 80 columns and without control characters."""
        text = self.text()
        for word in ("kv@host.example", "17001", "1m15s", "waiting", "a@h, b@h", "refused"):
            self.assertIn(word, text)
        self.assertNotIn("\x1b", text)
        self.assertLessEqual(max(map(len, text.splitlines())), 80)

    def test_trouble(self) -> None:
        """An epmd that does not know us and files that differ catch the eye."""
        text = self.text(
            epmd={"name": "kv", "port": 1, "registered": False, "problem": "refused"},
            generation=material.generation(disk_differs=True),
        )
        self.assertIn("NOT REGISTERED", text)
        self.assertIn("DIFFER", text)
        quiet = self.text(
            epmd=None, links=[], connectors=[], last_restart={"ok": True, "missing": []}
        )
        self.assertNotIn("missing", quiet)
        self.assertNotIn("epmd", quiet)

    def test_reload(self) -> None:
        """A verdict says what became of the nodes."""
        text = render("reload", {**material.verdict(), "nodes": material.verdict(generation=7)})
        self.assertIn("generation 7 serves", text)
