"""Lines of the log: text, JSON, journald's, to a file that may move."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

from twisted.logger import LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from txaio import tx

from kvproto.config import LogFormat, RoomLevel
from kvproto.config import LogLevel as Level
from kvproto.ops import logs
from kvproto.ops.logs import LineObserver, LogFile, json_line, observer_for, reopen_logs


def event(**fields: Any) -> dict[str, Any]:
    """An event as a module of ours makes it."""
    return {
        "log_format": "connection {connection} from {peer} on {listener}: login failed",
        "log_level": LogLevel.warn,
        "log_namespace": "kvproto.listeners.verified",
        "log_time": 1_795_000_000.25,
        "connection": 7,
        "peer": "192.0.2.1:4711",
        "listener": "data",
        "user": "eve",
        **fields,
    }


class JSONTests(SynchronousTestCase):
    """One object a line."""

    def test_fields(self) -> None:
        """Time, level and message come first; a connection is a number."""
        self.assertEqual(
            list(json.loads(json_line(event())).items()),
            [
                ("time", "2026-11-18T11:06:40.250Z"),
                ("level", "warn"),
                ("logger", "kvproto.listeners.verified"),
                ("message", "connection 7 from 192.0.2.1:4711 on data: login failed"),
                ("connection", 7),
                ("listener", "data"),
                ("peer", "192.0.2.1:4711"),
                ("user", "eve"),
            ],
        )

    def test_one_line(self) -> None:
        """Whatever an event holds is one line, a traceback too."""
        failure = Failure(ValueError("a\nb\x1b"))
        line = json_line(event(log_failure=failure, reason="x\r\ny", path=Path("/a"), count=[1]))
        self.assertTrue(line.isascii())
        self.assertTrue(line.isprintable())
        row = json.loads(line)
        self.assertIn("ValueError: a\nb", row["traceback"])
        self.assertEqual((row["reason"], row["path"], row["count"]), ("x\r\ny", "/a", "[1]"))

    def test_foreign_events(self) -> None:
        """Events of Twisted's old kind have a level, a time and a message as well."""
        for old in (
            {"message": ("hello",), "time": 1.0, "log_text": "hello", "isError": 1},
            {"log_format": None},
            {"log_format": "{missing}", "log_level": "strange"},
        ):
            row = json.loads(json_line(dict(old)))
            self.assertLessEqual({"time", "level", "message"}, set(row))


class ObserverTests(SynchronousTestCase):
    """What is written, and in which form."""

    def test_level(self) -> None:
        """What is less important than asked for is not written; that can change."""
        out = io.StringIO()
        observer = LineObserver(out, lambda found: found["log_level"].name, Level.WARN)
        for level in (LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.critical):
            observer(event(log_level=level))
        self.assertEqual(out.getvalue(), "warn\ncritical\n")
        self.addCleanup(tx.set_global_log_level, tx.get_global_log_level())
        logs.set_log_level(Level.DEBUG)
        observer(event(log_level=LogLevel.debug))
        self.assertEqual(out.getvalue(), "warn\ncritical\ndebug\n")

    def test_rooms(self) -> None:
        """A room can have a level of its own, above or below that of the others."""
        self.addCleanup(tx.set_global_log_level, tx.get_global_log_level())
        out = io.StringIO()
        observer = LineObserver(out, lambda found: found["log_namespace"], Level.INFO)
        rooms = (RoomLevel("tls", Level.DEBUG), RoomLevel("dataplane", Level.ERROR))
        logs.set_log_level(Level.INFO, rooms)
        for name in (
            "kvproto.tls.shell",
            "kvproto.service",
            "kvproto.dataplane.peers",
            "other.tls",
        ):
            for level in (LogLevel.debug, LogLevel.warn, LogLevel.critical):
                observer(event(log_namespace=name, log_level=level))
        lines = out.getvalue().splitlines()
        self.assertEqual(
            lines,
            ["kvproto.tls.shell"] * 3
            + ["kvproto.service"] * 2
            + ["kvproto.dataplane.peers"]
            + ["other.tls"] * 2,
        )
        self.assertEqual(tx.get_global_log_level(), "debug")
        logs.set_log_level(Level.WARN)
        observer(event(log_namespace="kvproto.tls.shell", log_level=LogLevel.info))
        self.assertEqual(len(out.getvalue().splitlines()), len(lines))
        self.assertEqual(tx.get_global_log_level(), "warn")

    def test_text(self) -> None:
        """Text is Twisted's classic form, without what moves a cursor."""
        line = logs.text_line(event(reason="x", log_format="{reason}\x1b[2J\nsecond"))
        self.assertRegex(
            line,
            r"^2026-11-18T\d\d:\d\d:40[+-]\d{4} \[kvproto\.listeners\.verified#warn\] "
            r"x\\x1b\[2J\n\tsecond$",
        )

    def test_journal(self) -> None:
        """Under journald every line has its priority and no time."""
        line = logs.journal_line(event(log_format="one\ntwo"))
        self.assertEqual(line, "<4>[kvproto.listeners.verified#warn] one\n<4>\ttwo")
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        stream = os.fdopen(writing, "w")
        self.addCleanup(stream.close)
        found = os.fstat(writing)
        self.patch(os, "environ", {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        self.assertTrue(logs._is_journal(stream))
        self.assertFalse(logs._is_journal(io.StringIO()))

    def test_broken_event(self) -> None:
        """An event that cannot be written costs its line and nothing else."""
        out = io.StringIO()
        observer = LineObserver(out, lambda _: str(1 // 0), Level.INFO)
        observer(event())
        self.assertEqual(out.getvalue(), "an event could not be written: ZeroDivisionError\n")

    def test_places(self) -> None:
        """Where twistd was told, in the form that we were told."""
        self.addCleanup(tx.set_global_log_level, tx.get_global_log_level())
        path = Path(self.mktemp())
        observer_for(LogFormat.JSON, Level.INFO, str(path), daemon=True)(event())
        self.assertEqual(json.loads(path.read_text())["connection"], 7)
        with self.assertRaises(SystemExit):
            observer_for(LogFormat.TEXT, Level.INFO, "-", daemon=True)


class FileTests(SynchronousTestCase):
    """A file that logrotate, or somebody else, moves."""

    def setUp(self) -> None:
        self.now = 0.0
        self.path = Path(self.mktemp())
        self.file = LogFile(self.path, lambda: self.now)

    def test_moved(self) -> None:
        """After a rename lines go into a new file, soon or at once when asked."""
        self.file.write("one\n")
        self.path.rename(self.path.with_suffix(".1"))
        self.now += logs.LOOK_SECONDS
        self.file.write("two\n")
        self.assertEqual(self.path.read_text(), "two\n")
        self.assertEqual(self.path.with_suffix(".1").read_text(), "one\n")
        self.path.unlink()
        reopen_logs()
        self.file.write("three\n")
        self.assertEqual(self.path.read_text(), "three\n")

    def test_no_place(self) -> None:
        """Where the file cannot be opened anew the old one is written on."""
        directory = Path(self.mktemp())
        directory.mkdir()
        path = directory / "log"
        file = LogFile(path, lambda: self.now)
        moved = directory.with_suffix(".1")
        directory.rename(moved)
        self.now += logs.LOOK_SECONDS
        file.write("one\n")
        self.assertEqual((moved / "log").read_text(), "one\n")
