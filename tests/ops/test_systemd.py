"""What systemd hears."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.systemd import STATUS_SECONDS, SystemdNotifier


class NotifierTests(SynchronousTestCase):
    """A service manager that listens on a socket."""

    def setUp(self) -> None:
        self.path = str(Path(self.mktemp()).absolute())
        directory = os.getcwd()
        self.addCleanup(os.chdir, directory)
        os.chdir(Path(self.path).parent)
        self.path = Path(self.path).name  # the name of a Unix socket is short
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.heard.close)
        self.heard.bind(self.path)
        self.heard.setblocking(False)
        self.clock = Clock()
        self.status = "serving 1 connection"

    def notifier(self, **environment: str) -> SystemdNotifier:
        made = SystemdNotifier(
            self.clock,
            lambda: self.status,
            {"NOTIFY_SOCKET": self.path, **environment},
            lambda: 12.5,
        )
        made.startService()
        self.addCleanup(made.stopService)
        self.all()
        return made

    def all(self) -> list[str]:
        """Return what has been said since the last call."""
        found = []
        while True:
            try:
                found.append(self.heard.recv(4096).decode())
            except BlockingIOError:
                return found

    def test_life(self) -> None:
        """Ready, reloading with its moment, ready again, stopping."""
        notifier = self.notifier()
        notifier.ready()
        notifier.reloading()
        notifier.reloading()
        notifier.reloaded()
        self.assertEqual(
            self.all(),
            ["READY=1\nSTATUS=serving 1 connection"]
            + 2 * ["RELOADING=1\nMONOTONIC_USEC=12500000\nSTATUS=reading the files again"],
        )
        notifier.reloaded()
        notifier.stopping()
        self.assertEqual(
            self.all(),
            [
                "READY=1\nSTATUS=serving 1 connection",
                "STOPPING=1\nSTATUS=answering what was asked",
            ],
        )

    def test_watchdog(self) -> None:
        """It is fed twice in its time from the event loop, and only where it is ours."""
        self.notifier(WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid()))
        self.clock.advance(2)
        self.clock.advance(2)
        self.assertEqual(self.all(), ["WATCHDOG=1"] * 2)
        for environment in ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, {}):
            self.clock = Clock()
            self.notifier(**environment)
            self.clock.advance(2)
            self.assertEqual(self.all(), [])

    def test_status(self) -> None:
        """A status that has changed is said, on one line."""
        self.notifier()
        self.clock.advance(STATUS_SECONDS)
        self.assertEqual(self.all(), [])
        self.status = "no listener\nREADY=1"
        self.clock.advance(STATUS_SECONDS)
        self.assertEqual(self.all(), ["STATUS=no listener\\nREADY=1"])

    def test_nobody(self) -> None:
        """Without a manager there is no timer; one that went away harms nobody."""
        quiet = SystemdNotifier(self.clock, lambda: "", {})
        quiet.startService()
        quiet.ready()
        quiet.stopping()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        notifier = self.notifier()
        self.heard.close()
        notifier.ready()
        notifier.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
