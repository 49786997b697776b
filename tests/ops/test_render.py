"""What people read."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.layout import WIDTH
from kvproto.ops.render import render, span
from kvproto.ops.status import connections_report
from tests.examples import examples
from tests.ops.material import NOW, generation, listener, row, status, verdict

WORDS = st.text(max_size=100)


class TextTestCase(SynchronousTestCase):
    """Text for a terminal."""

    def rendered(self, command: str, answer: dict[str, Any]) -> str:
        text = render(command, answer)
        for line in text.split("\n"):
            self.assertLessEqual(len(line), WIDTH, line)
            self.assertEqual(line, line.rstrip())
            self.assertTrue(line.isprintable(), line)
        self.assertTrue(text.endswith("\n"))
        return text


class ConfigTests(SynchronousTestCase):
    """What is in force."""

    def test_table(self) -> None:
        """One line for each option that has a value; lists and flags as they are written."""
        rows = [
            {"name": "listen", "value": ["tcp:1", "tcp6:1"], "source": "command line"},
            {"name": "anonymous", "value": True, "source": "default"},
            {"name": "crl", "value": None, "source": "default"},
            {"name": "plain", "value": [], "source": "default"},
            {"name": "state-dir", "value": "/a\n" + "b" * 100, "source": "/etc/kvtls.toml:7"},
        ]
        lines = render("config", {"ok": True, "options": rows}).splitlines()
        self.assertEqual(
            [line.split() for line in lines[:3]],
            [
                ["OPTION", "VALUE", "FROM"],
                ["listen", "tcp:1,", "tcp6:1", "command", "line"],
                ["anonymous", "true", "default"],
            ],
        )
        self.assertEqual(len(lines), 4)
        self.assertLessEqual(max(map(len, lines)), WIDTH)
        self.assertIn("/etc/kvtls.toml:7", lines[3])

    def test_pending(self) -> None:
        """What a restart would change is said below the table."""
        rows = [
            {"name": "http", "value": "tcp:1", "source": "default", "pending": "tcp:2"},
            {"name": "plain", "value": ["tcp:3"], "source": "default", "pending": []},
        ]
        lines = render("config", {"ok": True, "options": rows}).splitlines()
        self.assertEqual(
            [line.split() for line in lines[-2:]], [["http", "tcp:2"], ["plain", "not", "set"]]
        )
        self.assertIn("take a restart", lines[-3])


class SpanTests(SynchronousTestCase):
    """Durations."""

    def test_units(self) -> None:
        """Two units at most, the larger first, at each border."""
        for seconds, text in (
            (None, "-"),
            (0, "0.0s"),
            (9.94, "9.9s"),
            (9.96, "10s"),
            (59.4, "59s"),
            (59.6, "1m00s"),
            (3599, "59m59s"),
            (3600, "1h00m"),
            (86_399, "23h59m"),
            (86_400, "1d0h"),
            (1e7, "115d17h"),
            (-5, "-5.0s"),
        ):
            self.assertEqual(span(seconds), text)


class StatusTests(TextTestCase):
    """``kvtls status``."""

    def test_good(self) -> None:
        """A service that is well says so."""
        text = self.rendered("status", status())
        for part in (
            "kvtls 0.1.0 is ready: pid 4242, up 2h05m, mode couchbase",
            "generation 3, since 2026-11-18 10:00 UTC",
            "0123456789abcdef" * 4,
            "2 CAs, 1 CRL",
            "same as served",
            "127.0.0.1:11207",
            "2 of 10000",
            "2 owned",
            "14 peer lost",
        ):
            self.assertIn(part, text)

    def test_ailing(self) -> None:
        """What is wrong stands out: the disk, the certificate, the last reload, a listener."""
        served = generation(
            disk_differs=True,
            expires_in_s=-1.0,
            client_cas=0,
            names=[f"kv{number}.example.com" for number in range(20)],
            warnings=["it ends soon"],
            last_verdict={
                "at": "2026-11-18T10:00:00.000Z",
                **verdict(ok=False, stage="check", reason="the key does not fit " * 10),
            },
        )
        failing = listener(
            "data-1", state="starting", error="in use " * 20, retry_in_s=4.2, attempts=3
        )
        text = self.rendered("status", status(served=served, listeners=(listener(), failing)))
        for part in (
            "DIFFERS",
            "EXPIRED",
            "kv19.example.com",
            "it ends soon",
            "FAILED (check)",
            "retrying",
            "attempt 4",
            "no certificate asked for",
        ):
            self.assertIn(part, text)

    def test_no_generation(self) -> None:
        """Before anything is served, that is said."""
        self.assertIn(
            "no certificate is served", self.rendered("status", {**status(), "generation": None})
        )

    @examples(30)
    @given(WORDS, WORDS, WORDS)
    def test_any_words(self, name: str, address: str, error: str) -> None:
        """Nothing that is in a name or a reason breaks the form."""
        served = generation(warnings=[error], names=[name, address])
        ailing = listener(name, address=address, error=error)
        self.rendered("status", status(served=served, listeners=(ailing,)))


class ConnectionsTests(TextTestCase):
    """``kvtls connections``."""

    def table(self, *rows: dict[str, Any], total: int | None = None) -> str:
        report = connections_report(rows, NOW, total=total or len(rows))
        return self.rendered("connections", report)

    def test_columns(self) -> None:
        """One line for each."""
        head, line, end = self.table(row()).splitlines()
        self.assertEqual(
            head.split(),
            ["ID", "PEER", "LISTENER", "GEN", "STATE", "SINCE", "LEFT", "TLS", "USER"],
        )
        self.assertEqual(
            line.split(),
            ["7", "192.0.2.1:40000", "data-0", "3", "owned", "42s", "-", "1.3", "alice"],
        )
        self.assertEqual(end, "1 connection")

    def test_who(self) -> None:
        """Nobody yet, somebody anonymous, and a hostile name can be told apart."""
        text = self.table(row(user=None), row(user=""), row(user="\x1b[2J\n\u202eroot"))
        self.assertIn("anonymous", text)
        self.assertIn("\\x1b", text)

    def test_longest(self) -> None:
        """The longest values fit, and those that matter are whole."""
        text = self.table(
            row(
                1_234_567,
                peer="[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:40000",
                listener="data-public",
                generation=1234,
                state="handshaking",
                user="administrator",
                since_s=3e6,
                deadline_in_s=3600.0,
            ),
            row(peer="192.168.100.100:40000"),
        )
        for part in ("1234567", "1234 ", "handshaking", "1h00m", "192.168.100.100:40000"):
            self.assertIn(part, text)

    def test_part(self) -> None:
        """A list that is not whole says so."""
        self.assertIn("99 connections, the oldest 1 shown", self.table(row(), total=99))
        self.assertEqual(
            self.rendered("connections", connections_report([], NOW, total=0)), "0 connections\n"
        )


class OutcomeTests(TextTestCase):
    """What the other commands say."""

    def test_verdicts(self) -> None:
        """Served, nothing new, refused."""
        detail = {"policy": "recheck", "ended": 1, "connections": 3}
        results = [
            {"name": "data-0", "ok": True, "done": True, "detail": detail},
            {"name": "data-1", "ok": True, "done": False, "detail": "still at work"},
        ]
        text = self.rendered("reload", verdict(listeners=results))
        self.assertIn("reload: generation 3 serves", text)
        self.assertIn("recheck: 1 of 3 older connections ended", text)
        self.assertIn("still at work", text)
        found = {"ok": True, "changed": ["user"], "restart": ["http"], "reason": ""}
        text = self.rendered("reload", verdict(configuration=found))
        self.assertIn("config       changed: user\n", text)
        self.assertIn("restart for  http\n", text)
        bad = {"ok": False, "changed": [], "restart": [], "reason": "FILE:1: no"}
        failed = verdict(ok=False, stage="configuration", reason="FILE:1: no", configuration=bad)
        self.assertEqual(self.rendered("reload", failed).count("FILE:1: no"), 1)
        failed = verdict(ok=False, stage="check", reason="expired", configuration=bad)
        self.assertIn("config       stays as it is: FILE:1: no\n", self.rendered("reload", failed))
        self.assertIn("nothing new", self.rendered("reload", verdict(changed=False)))
        bad = verdict(ok=False, action="rollback", stage="history", reason="there is none")
        self.assertIn("rollback: FAILED (history): there is none", self.rendered("rollback", bad))
        self.assertIn("serving      generation 3", self.rendered("rollback", bad))

    def test_long_reason(self) -> None:
        """A long reason is wrapped."""
        self.rendered("reload", verdict(ok=False, stage="check", reason="it is bad " * 30))

    def test_begun(self) -> None:
        """Who does not wait hears where to look."""
        self.assertIn("--wait", self.rendered("reload", {"ok": True, "started": True}))

    def test_restart(self) -> None:
        """Each listener is told."""
        listeners = [
            {"name": "data-0", "ok": True, "reason": ""},
            {"name": "data-1", "ok": False, "reason": "in use"},
        ]
        text = self.rendered("restart", {"ok": False, "listeners": listeners})
        self.assertIn("restarted", text)
        self.assertIn("FAILED: in use", text)

    def test_drain_and_stop(self) -> None:
        """The numbers, and what comes next."""
        text = self.rendered("drain", {"ok": True, "drained": 12, "aborted": 1})
        self.assertIn("12", text)
        for answer, words in (
            ({"pid": 1}, "is stopping"),
            ({"pid": 1, "gone": True}, "has ended"),
            ({"pid": 1, "gone": False}, "still there"),
        ):
            self.assertIn(words, self.rendered("stop", answer))

    def test_bare_error(self) -> None:
        """An error that has nothing else to tell is one line, harmless to terminals."""
        text = render(
            "restart", {"ok": False, "error": {"code": "x", "message": "no \x1b[2J listener"}}
        )
        self.assertEqual(text, "kvtls: restart: no \\x1b[2J listener\n")
