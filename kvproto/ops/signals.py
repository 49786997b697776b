"""What signals mean: SIGHUP reads the credentials again, SIGTERM and SIGINT stop gracefully.

Twisted's own handlers stop the reactor at once, remember the signal and raise it again at
the end, so that a service that was asked to stop, and did, looks to its supervisor like one
that was killed.  Ours are put in their place, which has to wait until the reactor runs:
it installs its own when it starts.
"""

from __future__ import annotations

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


def _report(failure: Failure) -> None:
    log.failure("what a signal asked for failed", failure=failure)


Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class SignalService(Service):
    """Turns signals into calls.

    Args:
        reload: Called on SIGHUP, in the reactor's thread.  All three may return a Deferred;
            failures are logged.
        stop: Called on the first SIGTERM or SIGINT; it begins to drain.
        stop_now: Called on each further one; it ends the process without waiting.
        reactor: Anything with ``callWhenRunning`` and ``callFromThread``.
        install: ``signal.signal``, or a test's.
    """

    def __init__(
        self,
        reload: Callable[[], object],
        stop: Callable[[], object],
        stop_now: Callable[[], object],
        reactor: Any,
        install: Callable[[int, Any], Handler] = signal.signal,
    ) -> None:
        self._calls = {
            signal.SIGHUP: self._reload,
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
        }
        self._on_reload = reload
        self._on_stop = stop
        self._on_stop_now = stop_now
        self._reactor = reactor
        self._install = install
        self._previous: dict[signal.Signals, Handler] = {}
        self._stopping = False

    def startService(self) -> None:
        """Take the signals over, once the reactor has taken them."""
        super().startService()
        self._stopping = False
        self._reactor.callWhenRunning(self._take_over)

    def _take_over(self) -> None:
        """Install the handlers, unless the service was stopped meanwhile."""
        if not self.running or self._previous:
            return
        for number in self._calls:
            self._previous[number] = self._install(number, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """Be interrupted: do no more than to wake the reactor up.

        A handler runs between any two instructions, also of code that holds a lock of the
        log; ``callFromThread`` is made for being called there.
        """
        self._reactor.callFromThread(self._calls[signal.Signals(number)])

    def _reload(self) -> None:
        log.info("SIGHUP: reading the credentials again")
        maybeDeferred(self._on_reload).addErrback(_report)

    def _stop(self) -> None:
        """Stop gracefully at first; whoever asks again is in a hurry."""
        if self._stopping:
            log.warn("asked to stop a second time: stopping at once")
            maybeDeferred(self._on_stop_now).addErrback(_report)
            return
        self._stopping = True
        log.info("asked to stop: answering what was asked, a second signal stops at once")
        maybeDeferred(self._on_stop).addErrback(_report)

    def release(self) -> None:
        """Put the handlers back that were there before."""
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            # None: it was not installed from Python, and Python cannot put it back.
            self._install(number, signal.SIG_DFL if handler is None else handler)

    def stopService(self) -> None:
        """Give the signals back.

        Stop this service last: until then a second SIGTERM must find our handler.
        """
        self.release()
        super().stopService()
