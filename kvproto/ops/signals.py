"""What signals mean: SIGHUP reads again, SIGTERM and SIGINT stop gracefully, SIGUSR1 opens the log.

One owner for the whole life of the process, in three phases:

* *Starting*, before the reactor runs.  The system's own answer to SIGHUP is death, so the handlers
  are installed first of all (`SignalService.take`); what comes is kept and done once the reactor
  runs.  A second request to stop ends the process at once, as nothing is served yet.
* *Running*.  Twisted's handlers stop the reactor at once, remember the signal and raise it again
  at the end, so that a service that was asked to stop, and did, looks to its supervisor like one
  that was killed.  Ours are put in their place, which has to wait until the reactor runs: it
  installs its own when it starts.
* *Stopping*.  A further request to stop is in a hurry, SIGHUP has nothing to read for any more.
  The handlers stay, but Python itself puts the system's answers back when it ends: so SIGHUP is
  ignored from the end of the service on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import maybeDeferred
from twisted.python.failure import Failure

from kvproto.base.log import make_logger

__all__ = ["SignalService"]

log = make_logger()

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})


def _report(failure: Failure) -> None:
    log.failure("what a signal asked for failed", failure=failure)


def _nothing() -> None:
    """Have nothing to call yet: the service is still being built."""


class SignalService(Service):
    """Turns signals into calls, from the first moment to the last.

    Args:
        reactor: Anything with ``callWhenRunning`` and ``callFromThread``.
        install: ``signal.signal``, or a test's.
        kill: ``os.kill``, or a test's.
    """

    def __init__(
        self,
        reactor: Any,
        install: Callable[[int, Any], object] = signal.signal,
        kill: Callable[[int, int], object] = os.kill,
    ) -> None:
        self._calls: dict[int, Callable[[], None]] = {
            signal.SIGHUP: self._reload,
            signal.SIGUSR1: self._reopen,
            **dict.fromkeys(STOP_SIGNALS, self._stop),
        }
        self._on_reload: Callable[[], object] = _nothing
        self._on_stop: Callable[[], object] = _nothing
        self._on_stop_now: Callable[[], object] = _nothing
        self._on_reopen: Callable[[], object] = _nothing
        self._reactor = reactor
        self._install = install
        self._kill = kill
        self._reactor_runs = False
        self._asked_early = False
        self._stopping = False

    def take(self) -> None:
        """Take the signals over, before anything else is done; again when the reactor runs."""
        for number in self._calls:
            self._install(number, self._heard)

    def connect(
        self,
        reload: Callable[[], object],
        stop: Callable[[], object],
        stop_now: Callable[[], object],
        reopen: Callable[[], object] = _nothing,
    ) -> None:
        """Say what is called; failures, and those of Deferreds that are returned, are logged.

        Args:
            reload: On SIGHUP.
            stop: On the first SIGTERM or SIGINT; it begins to drain.
            stop_now: On each further one; it ends the process without waiting.
            reopen: On SIGUSR1; it opens log files anew.
        """
        self._on_reopen = reopen
        self._on_reload, self._on_stop, self._on_stop_now = reload, stop, stop_now

    def startService(self) -> None:
        """Take the signals back once the reactor has taken them."""
        super().startService()
        self._stopping = False
        self._reactor.callWhenRunning(self._running)

    def stopService(self) -> None:
        """Have nothing to read again any more; stop this service last."""
        super().stopService()
        for number in (signal.SIGHUP, signal.SIGUSR1):
            self._install(number, signal.SIG_IGN)

    def _running(self) -> None:
        self._reactor_runs = True
        self.take()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """Do no more than to wake the reactor up.

        A handler runs between any two instructions, also of code that holds a lock of the
        log; ``callFromThread`` is made for being called there.
        """
        if number in STOP_SIGNALS and not self._reactor_runs:
            if self._asked_early:
                self._install(number, signal.SIG_DFL)
                self._kill(os.getpid(), number)
                return
            self._asked_early = True
        self._reactor.callFromThread(self._calls[number])

    def _reload(self) -> None:
        if self._stopping:
            log.info("SIGHUP: the service is stopping, nothing is read again")
            return
        log.info("SIGHUP: reading credentials, users and configuration again")
        maybeDeferred(self._on_reload).addErrback(_report)

    def _reopen(self) -> None:
        maybeDeferred(self._on_reopen).addErrback(_report)
        log.info("SIGUSR1: the log is opened anew")

    def _stop(self) -> None:
        """Stop gracefully at first; whoever asks again is in a hurry."""
        if self._stopping:
            log.warn("asked to stop a second time: stopping at once")
            maybeDeferred(self._on_stop_now).addErrback(_report)
            return
        self._stopping = True
        log.info("asked to stop: answering what was asked, a second signal stops at once")
        maybeDeferred(self._on_stop).addErrback(_report)
