"""`kvproto.base.log`: loggers that decide nothing for the process."""

from __future__ import annotations

import subprocess
import sys
from typing import cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.escape import printable
from kvproto.base.log import make_logger

log = make_logger()

OURS = "import kvproto.client, kvproto.dist, kvproto.listeners, kvproto.server, kvproto.tls"
ASYNCIO = "import txaio; txaio.use_asyncio()"


def run(program: str) -> None:
    """Run a program in a process of its own; it must end well and say nothing."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done


class MakeLoggerTests(SynchronousTestCase):
    """What a module gets."""

    def logged(self, format: str, **fields: object) -> list[str]:
        """Return the lines that an event becomes."""
        events: list[LogEvent] = []
        observer = cast("ILogObserver", events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        log.warn(format, **fields)
        return [formatEvent(event) for event in events if event.get("log_namespace") == __name__]

    def test_forged(self) -> None:
        """Whatever is in a field, it is one line and moves no cursor."""
        evil = "eve\r\n2026-01-01T00:00:00+0000 [-] alice logged in\x1b[2J\u202e\udc80\0"
        (line,) = self.logged("login of {user} failed", user=evil)
        self.assertTrue(line.isprintable())
        self.assertIn("eve\\r\\n2026", line)
        self.assertIn("\\x1b[2J\\u202e\\udc80\\x00 failed", line)

    def test_unharmed(self) -> None:
        """What prints stays, a backslash and what is no text too."""
        self.assertEqual(self.logged("{a} {b} {c[0]}", a="\\n é", b=3, c=["\n"]), ["\\n é 3 \n"])
        self.assertEqual(printable("日本 \\ 'x'"), "日本 \\ 'x'")

    def test_namespace(self) -> None:
        """Events carry the name of the module that made the logger, their level and fields."""
        events: list[LogEvent] = []
        observer = cast("ILogObserver", events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        log.info("{answer} is the answer", answer=42)
        (event,) = (event for event in events if event.get("log_namespace") == __name__)
        self.assertIs(event["log_level"], LogLevel.info)
        self.assertEqual(event["answer"], 42)


class FrameworkTests(SynchronousTestCase):
    """txaio's framework is the program's choice; its other users are autobahn and crossbar."""

    def test_asyncio_may_come_first_or_second(self) -> None:
        """A program that uses txaio on asyncio can import kvproto before or after it chooses."""
        for first, second in ((OURS, ASYNCIO), (ASYNCIO, OURS)):
            run(f"{first}; {second}; assert txaio.using_asyncio and not txaio.using_twisted")

    def test_nothing_is_chosen(self) -> None:
        """Importing kvproto leaves txaio without a framework."""
        run(f"{OURS}; import txaio; assert txaio._explicit_framework is None")
