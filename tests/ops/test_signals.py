"""What signals mean."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import fail
from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.signals import SignalService

TWISTEDS = "the handler of Twisted"


class FakeReactor:
    """A reactor that runs when the test says so, and a table of signal handlers."""

    def __init__(self) -> None:
        self.when_running: list[Callable[[], None]] = []
        self.from_thread: list[Callable[[], None]] = []
        self.handlers: dict[int, Any] = {
            signal.SIGHUP: signal.SIG_DFL,
            signal.SIGTERM: TWISTEDS,
            signal.SIGINT: None,
            signal.SIGUSR1: signal.SIG_DFL,
        }

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.when_running.append(call)

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.from_thread.append(call)

    def install(self, number: int, handler: Any) -> Any:
        before, self.handlers[number] = self.handlers[number], handler
        return before

    def run(self) -> None:
        """Start, and do what was asked from signal handlers."""
        for calls in (self.when_running, self.from_thread):
            while calls:
                calls.pop(0)()

    def receive(self, number: int) -> None:
        """Get a signal."""
        self.handlers[number](number, None)


class SignalTests(SynchronousTestCase):
    """The service that listens to signals."""

    def setUp(self) -> None:
        self.heard: list[str] = []
        self.killed: list[int] = []
        self.reactor = FakeReactor()
        self.service = SignalService(
            self.reactor, self.reactor.install, lambda _pid, number: self.killed.append(number)
        )
        self.service.connect(
            lambda: self.heard.append("reload"),
            lambda: self.heard.append("stop"),
            lambda: self.heard.append("stop now"),
        )

    def test_before_anything(self) -> None:
        """What comes while the service is being built is kept, and done once it runs."""
        service = SignalService(self.reactor, self.reactor.install)
        service.take()
        for number in (signal.SIGHUP, signal.SIGTERM):
            self.reactor.receive(number)
        service.connect(
            lambda: self.heard.append("reload"),
            lambda: self.heard.append("stop"),
            lambda: self.heard.append("stop now"),
        )
        service.startService()
        self.assertEqual(self.heard, [])
        self.reactor.run()
        self.assertEqual(self.heard, ["reload", "stop"])

    def test_hurry_before_anything(self) -> None:
        """Asked to stop twice while it is being built, the process dies as it would have."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.service.take()
            self.reactor.receive(number)
        self.assertEqual(self.killed, [signal.SIGINT])
        self.assertEqual(self.reactor.handlers[signal.SIGINT], signal.SIG_DFL)

    def test_takes_them_back(self) -> None:
        """The reactor installs handlers of its own when it starts; ours take their place."""
        self.service.take()
        self.service.startService()
        self.reactor.handlers[signal.SIGTERM] = TWISTEDS
        self.reactor.run()
        self.assertNotEqual(self.reactor.handlers[signal.SIGTERM], TWISTEDS)

    def test_calls_from_the_reactor(self) -> None:
        """A handler does nothing itself but wake the reactor up."""
        self.service.startService()
        self.reactor.run()
        self.reactor.receive(signal.SIGHUP)
        self.assertEqual(self.heard, [])
        self.reactor.run()
        self.assertEqual(self.heard, ["reload"])

    def test_stop(self) -> None:
        """The first request to stop is graceful, each further one is not, whatever the signal."""
        self.service.startService()
        self.reactor.run()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            self.reactor.receive(number)
        self.reactor.run()
        self.assertEqual(self.heard, ["stop", "stop now", "stop now"])

    def test_hangup_at_the_end(self) -> None:
        """SIGHUP while the service stops, and after that, neither reads nor kills."""
        self.service.startService()
        self.reactor.run()
        self.reactor.receive(signal.SIGTERM)
        self.reactor.receive(signal.SIGHUP)
        self.reactor.run()
        self.assertEqual(self.heard, ["stop"])
        self.service.stopService()
        self.assertEqual(self.reactor.handlers[signal.SIGHUP], signal.SIG_IGN)

    def test_failures(self) -> None:
        """What goes wrong is logged, whether at once or later; the next signal is heard."""
        failing = [fail(ValueError()), fail(ValueError())]
        self.service.connect(failing.pop, failing.pop, lambda: 1 / 0)
        self.service.startService()
        self.reactor.run()
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
            self.reactor.receive(number)
        self.reactor.run()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_again(self) -> None:
        """A service that is started again is graceful again."""
        for _ in range(2):
            self.service.startService()
            self.reactor.run()
            self.reactor.receive(signal.SIGTERM)
            self.reactor.run()
            self.service.stopService()
        self.assertEqual(self.heard, ["stop", "stop"])
