"""`kvproto.base.log`: loggers that decide nothing for the process."""

from __future__ import annotations

import subprocess
import sys
from typing import cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

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
