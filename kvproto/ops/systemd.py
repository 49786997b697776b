"""What systemd is told: ready, reloading, stopping, a status line, and that the loop still turns.

The protocol is one datagram for each message to the socket that ``NOTIFY_SOCKET`` names.  Without
it nothing is sent.  The watchdog is fed from the event loop, so that a process whose loop is stuck
is killed and started again.

Source: sd_notify(3), systemd.service(5) ``Type=notify-reload``, sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from kvproto.base.escape import printable
from kvproto.base.log import make_logger

__all__ = ["SystemdNotifier"]

log = make_logger()

STATUS_SECONDS = 10.0
"""Seconds between looks at the status line, which is sent when it has changed."""


class SystemdNotifier(Service):
    """Tells the service manager how the service is.

    Args:
        clock: For the watchdog and the status line.
        status: Returns one line for ``systemctl status``.
        environment: Where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are.
        monotonic: Returns monotonic seconds, as systemd compares them.
    """

    name = "systemd"

    def __init__(
        self,
        clock: IReactorTime,
        status: Callable[[], str],
        environment: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._status = status
        self._said = ""
        self._monotonic = monotonic
        self._reloads = 0
        self._calls: list[tuple[float, LoopingCall]] = []
        if self._address:
            self._every(clock, STATUS_SECONDS, self._tell_status)
            interval = _watchdog_seconds(environment)
            if interval:
                self._every(clock, interval / 2, lambda: self._send("WATCHDOG=1"))

    def _every(self, clock: IReactorTime, seconds: float, call: Callable[[], None]) -> None:
        looping: LoopingCall = LoopingCall(call)
        looping.clock = clock
        self._calls.append((seconds, looping))

    def startService(self) -> None:
        """Begin to feed the watchdog."""
        super().startService()
        for seconds, looping in self._calls:
            looping.start(seconds).addErrback(
                lambda failure: log.failure("systemd is not told any more", failure=failure)
            )

    def stopService(self) -> Deferred[None] | None:
        """Stop: the process is about to end."""
        super().stopService()
        for _, looping in self._calls:
            if looping.running:
                looping.stop()
        return None

    def ready(self) -> None:
        """Report that clients are served."""
        self._send("READY=1", self._status_line())

    def reloading(self) -> None:
        """Report that a reload begins; `reloaded` ends it."""
        self._reloads += 1
        now = int(self._monotonic() * 1_000_000)
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reading the files again")
        self._said = ""

    def reloaded(self) -> None:
        """Report that a reload has ended, well or not; of several at once, the last."""
        self._reloads -= 1
        if not self._reloads:
            self.ready()

    def stopping(self) -> None:
        """Report that the process drains and ends."""
        self._send("STOPPING=1", "STATUS=answering what was asked")

    def _tell_status(self) -> None:
        line = self._status_line()
        if line != self._said and not self._reloads:
            self._said = line
            self._send(line)

    def _status_line(self) -> str:
        return f"STATUS={printable(self._status())}"

    def _send(self, *lines: str) -> None:
        """Send a datagram; a manager that does not listen harms nobody."""
        if not self._address:
            return
        # A name that begins with @ is in the abstract namespace.
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto("\n".join(lines).encode(), name)
        except OSError as error:
            log.debug("systemd could not be told: {reason}", reason=str(error))


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """Return how often systemd wants to hear from this process; 0 where it does not."""
    pid = environment.get("WATCHDOG_PID", str(os.getpid()))
    usec = environment.get("WATCHDOG_USEC", "")
    if pid != str(os.getpid()) or not usec.isdigit():
        return 0.0
    return int(usec) / 1_000_000
