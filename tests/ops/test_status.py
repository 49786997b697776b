"""The documented values of ``status``, ``connections`` and ``reload``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.listeners.ledger import Ledger
from kvproto.ops.status import (
    connections_report,
    generation_report,
    status_report,
    timestamp,
    verdict_report,
)
from kvproto.tls.verdict import Action, ListenerResult, Verdict
from tests.ops import material
from tests.ops.material import NOW, ledger, listener, row, status

SERVED = Verdict(Action.RELOAD, True, True, 3, "ab" * 32, NOW + 100)


class TimestampTests(SynchronousTestCase):
    """Unix seconds for people and programs."""

    def test_form(self) -> None:
        """RFC 3339 in UTC with milliseconds, whatever the fraction."""
        self.assertEqual(timestamp(0), "1970-01-01T00:00:00.000Z")
        self.assertEqual(timestamp(NOW), "2026-11-18T11:06:40.250Z")
        self.assertEqual(timestamp(1.9996), "1970-01-01T00:00:02.000Z")


class StatusTests(SynchronousTestCase):
    """The answer to ``status``."""

    def test_names(self) -> None:
        """The names are the documented ones."""
        report = status()
        self.assertEqual(
            {name: set(report[name]) for name in ("service", "limits", "connections")},
            {
                "service": {"version", "pid", "state", "mode", "since", "uptime_s"}
                | {"ready", "reason"},
                "limits": {"connections", "unauthenticated", "per_peer"},
                "connections": {"total", "by_state", "oldest_s"},
            },
        )
        self.assertEqual(
            set(report),
            {"service", "generation", "listeners", "limits", "connections", "counters"}
            | {"buckets", "store"},
        )
        self.assertEqual(report["service"]["state"], "ready")
        self.assertEqual(report["service"]["uptime_s"], 7500)
        self.assertEqual(report["limits"]["unauthenticated"], {"used": 1, "limit": 256})
        self.assertEqual(report["counters"]["requests"], 99)

    def test_is_json(self) -> None:
        """It can be said in JSON, with or without a generation."""
        json.dumps(status(), allow_nan=False)
        facts = material.facts()
        report = status_report(facts, None, [listener()], ledger(), NOW)
        self.assertIs(json.loads(json.dumps(report))["generation"], None)

    def test_retry(self) -> None:
        """A listener that cannot bind says why, and when it tries again."""
        failing = listener(state="starting", error="in use", retry_in_s=4.0, attempts=2)
        (report,) = status(listeners=(failing,))["listeners"]
        self.assertEqual(
            (report["name"], report["error"], report["attempts"], report["retry_in_s"]),
            ("data-0", "in use", 2, 4.0),
        )
        self.assertEqual(report["retry_at"], timestamp(NOW + 4))

    def test_real_ledger(self) -> None:
        """What the ledger really says of itself is understood."""
        real = Ledger(Clock())
        report = status_report(material.facts(), None, [], real.status(), NOW)
        self.assertEqual(report["connections"]["total"], 0)
        self.assertEqual(report["limits"]["connections"], {"used": 0, "limit": 10_000})
        rows = connections_report(real.snapshot(), NOW, total=len(real))
        self.assertEqual(rows, {"total": 0, "shown": 0, "connections": []})


class GenerationTests(SynchronousTestCase):
    """What is served."""

    def report(self, **changes: Any) -> dict[str, Any]:
        served = material.served_generation()
        return generation_report(served, NOW, **{"since": NOW, "disk_differs": False, **changes})

    def test_names(self) -> None:
        """The report has the documented names, those of the shown example."""
        self.assertEqual(set(self.report()), set(material.generation()))

    def test_certificate(self) -> None:
        """The dates, names and trust are those of what is served."""
        report = self.report(disk_differs=True, previous=material.served_generation(2))
        self.assertEqual(report["names"], ["kv.example.com", "127.0.0.1"])
        self.assertEqual((report["client_cas"], report["crls"]), (1, 0))
        self.assertLess(report["not_before"], report["not_after"])
        self.assertEqual((report["disk_differs"], report["rollback_to"]), (True, 2))
        self.assertIs(report["last_verdict"], None)
        json.dumps(report, allow_nan=False)

    def test_last_verdict(self) -> None:
        """The last verdict is told, with its time."""
        report = self.report(verdict=SERVED, verdict_at=NOW)["last_verdict"]
        self.assertEqual((report["at"], report["ok"]), (timestamp(NOW), True))


class VerdictTests(SynchronousTestCase):
    """The answer to ``reload`` and ``rollback``."""

    def test_good(self) -> None:
        """A good verdict names what is served now."""
        report = verdict_report(SERVED)
        self.assertEqual(set(report), set(material.verdict()))
        self.assertEqual((report["action"], report["generation"]), ("reload", 3))

    def test_bad(self) -> None:
        """A bad one says at which stage it failed and why."""
        report = verdict_report(replace(SERVED, ok=False, stage="check", reason="expired"))
        self.assertEqual(
            (report["ok"], report["stage"], report["reason"]), (False, "check", "expired")
        )

    def test_details(self) -> None:
        """What listeners did is told, as text where JSON has no word for it."""
        results = (
            ListenerResult("data-0", True, True, {"policy": "keep"}),
            ListenerResult("data-1", False, True, ValueError("odd")),
        )
        report = verdict_report(replace(SERVED, listeners=results))
        details = [result["detail"] for result in report["listeners"]]
        self.assertEqual(details, [{"policy": "keep"}, "odd"])


class ConnectionsTests(SynchronousTestCase):
    """The answer to ``connections``."""

    def test_times(self) -> None:
        """Ages and deadlines are told as moments too."""
        report = connections_report([row(deadline_in_s=10.0)], NOW, total=1)
        (connection,) = report["connections"]
        self.assertEqual(connection["since"], timestamp(NOW - 42.5))
        self.assertEqual(connection["accepted"], timestamp(NOW - 43))
        self.assertEqual(connection["deadline"], timestamp(NOW + 10))

    def test_limit(self) -> None:
        """No more is read than is shown; 0 shows all."""
        rows = iter([row(number) for number in range(10)])
        report = connections_report(rows, NOW, total=10, limit=3)
        self.assertEqual((report["total"], report["shown"]), (10, 3))
        self.assertEqual(next(rows)["id"], 3)
        self.assertEqual(connections_report([row()] * 5, NOW, total=5)["shown"], 5)
