"""Lines that peers provoke are bounded, and what is left out is counted."""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.limited_log import LINES, LINES_OF_ONE, WINDOW, LimitedLog, report_left_out

KIND = "handshake of {peer} failed: {reason}"


class Recorder:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, format: str, **fields: Any) -> None:
        self.lines.append(format.format(**fields))

    debug = warn = error = info

    def failure(self, format: str, failure: Failure | None = None, **fields: Any) -> None:
        raise AssertionError(format)


class LimitedLogTests(SynchronousTestCase):
    """One log of one room."""

    def setUp(self) -> None:
        self.now = 0.0
        self.log = Recorder()
        self.limited = LimitedLog(self.log, lambda: self.now)

    def test_few(self) -> None:
        """As many as a person reads are all there."""
        for port in range(LINES_OF_ONE):
            self.limited.warn(KIND, peer=f"192.0.2.1:{port}", reason="reset")
        self.assertEqual(len(self.log.lines), LINES_OF_ONE)
        self.assertEqual(self.log.lines[0], "handshake of 192.0.2.1:0 failed: reset")

    def test_flood_of_one(self) -> None:
        """An address that floods loses its own lines, not those of others, nor other kinds."""
        for port in range(1000):
            self.limited.warn(KIND, peer=f"192.0.2.1:{port}", reason="reset")
        self.assertEqual(len(self.log.lines), LINES_OF_ONE)
        self.limited.warn(KIND, peer="[2001:db8::1]:5", reason="expired")
        self.limited.info("login of {peer} failed", peer="192.0.2.1:9")
        self.assertEqual(
            self.log.lines[LINES_OF_ONE:],
            ["handshake of [2001:db8::1]:5 failed: expired", "login of 192.0.2.1:9 failed"],
        )

    def test_faults(self) -> None:
        """Tracebacks are limited as well, each fault by itself."""

        def one() -> None:
            raise ZeroDivisionError

        def other() -> None:
            raise ZeroDivisionError

        told: list[str] = []
        self.patch(self.log, "failure", lambda format, failure, **_: told.append(str(failure.type)))
        for fault in (one, other):
            for port in range(3 * LINES_OF_ONE):
                try:
                    fault()
                except ZeroDivisionError:
                    self.limited.failure("{peer} found it", peer=f"192.0.2.1:{port}")
        self.assertEqual(len(told), 2 * LINES_OF_ONE)
        self.now += WINDOW
        self.limited.report()
        self.assertEqual(
            self.log.lines,
            [
                f"{2 * LINES_OF_ONE} more lines were left out in 10 s, of the kind: "
                f"{{peer}} found it (ZeroDivisionError in {name})"
                for name in ("one", "other")
            ],
        )

    def test_flood_of_many(self) -> None:
        """Many addresses together are bounded as well."""
        for number in range(10 * LINES):
            self.limited.info(KIND, peer=f"10.0.{number >> 8}.{number & 255}:1", reason="x")
        self.assertEqual(len(self.log.lines), LINES)

    def test_next_window(self) -> None:
        """What was left out is said once when the window is over, and lines come again."""
        for port in range(LINES_OF_ONE + 5):
            self.limited.warn(KIND, peer=f"192.0.2.1:{port}", reason="reset")
        self.now += WINDOW
        self.limited.warn(KIND, peer="192.0.2.1:1", reason="again")
        self.assertEqual(
            self.log.lines[LINES_OF_ONE:],
            [
                f"5 more lines were left out in 10 s, of the kind: {KIND}",
                "handshake of 192.0.2.1:1 failed: again",
            ],
        )

    def test_end_of_a_flood(self) -> None:
        """What was left out is said even if no line of the kind comes any more."""
        for _ in range(LINES_OF_ONE + 1):
            self.limited.warn(KIND, peer="192.0.2.1:1", reason="reset")
        self.now += WINDOW - 1
        report_left_out()
        self.assertEqual(len(self.log.lines), LINES_OF_ONE)
        self.now += 1
        for _ in range(2):
            report_left_out()
        self.assertEqual(len(self.log.lines), LINES_OF_ONE + 1)
        self.assertIn("1 more lines", self.log.lines[-1])
