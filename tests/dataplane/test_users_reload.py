"""Users come and go while the service runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Config
from kvproto.dataplane import UsersReload, make_server
from kvproto.server import hash_password
from kvproto.server.users_file import UserRecord, change_users

HASHES = hash_password("secret", 4096)


class UsersReloadTests(SynchronousTestCase):
    """`UsersReload` on a clock, with threads that are none."""

    def setUp(self) -> None:
        """Have a file with alice, and a server that knows it."""
        self.path = Path(self.mktemp())
        self.add("alice")
        self.clock = Clock()
        self.waiting: list[Callable[[], object]] | None = None
        self.make(Config(users_file=self.path))

    def make(self, config: Config) -> None:
        self.server = make_server(config, self.clock)
        self.users = UsersReload(config, self.server, self.clock, self.run_somewhere)
        self.users.startService()

    def run_somewhere(self, function: Any, *arguments: Any) -> Deferred[Any]:
        if self.waiting is None:
            return execute(function, *arguments)
        done: Deferred[Any] = Deferred()
        result = execute(function, *arguments)
        self.waiting.append(lambda: result.chainDeferred(done))
        return done

    def add(self, name: str) -> None:
        with change_users(self.path) as users:
            users[name] = UserRecord(HASHES)

    def known(self, *names: str) -> list[str]:
        return [name for name in names if name in self.server.users]

    def test_noticed(self) -> None:
        """A user that is added to the file is known within the interval of the watch."""
        self.add("bob")
        self.assertEqual(self.known("alice", "bob"), ["alice"])
        self.clock.advance(2)
        self.assertEqual(self.known("alice", "bob"), ["alice", "bob"])

    def test_unchanged(self) -> None:
        """A file that is the same is not read again."""
        before = self.server.users
        for _ in range(3):
            self.clock.advance(2)
        self.assertIs(self.server.users, before)
        self.users.reload()
        self.assertIsNot(self.server.users, before)

    def test_unusable(self) -> None:
        """A file that is damaged or gone changes nothing, until it is good again."""
        good = self.path.read_text(encoding="utf-8")
        self.path.write_text("{", encoding="utf-8")
        self.clock.advance(2)
        self.assertEqual(self.known("alice"), ["alice"])
        os.unlink(self.path)
        self.clock.advance(2)
        self.assertEqual(self.known("alice"), ["alice"])
        self.path.write_text(good, encoding="utf-8")
        self.add("bob")
        self.clock.advance(2)
        self.assertEqual(self.known("alice", "bob"), ["alice", "bob"])

    def test_one_after_the_other(self) -> None:
        """What is asked for while the file is being read is done afterwards: newest wins."""
        self.waiting = []
        self.users.reload()
        self.add("bob")
        self.users.reload()
        self.users.reload()
        self.assertEqual(len(self.waiting), 1)
        self.waiting.pop()()
        self.assertEqual(self.known("alice", "bob"), ["alice"])
        self.assertEqual(len(self.waiting), 1)
        self.waiting.pop()()
        self.assertEqual(self.known("alice", "bob"), ["alice", "bob"])
        self.assertEqual(self.waiting, [])

    def test_defect(self) -> None:
        """Whatever goes wrong is logged, and the next change is read."""
        self.patch(self.users, "_run", lambda *_: execute(lambda: 1 // 0))
        self.users.reload()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.patch(self.users, "_run", self.run_somewhere)
        self.add("bob")
        self.clock.advance(2)
        self.assertEqual(self.known("bob"), ["bob"])

    def test_readable(self) -> None:
        """Hashes that everybody can read are worth a warning."""
        self.assertEqual(self.warnings(), [])
        self.path.chmod(0o644)
        (warning,) = self.warnings()
        self.assertIn("may read it (mode 0644): chmod 600", warning)

    def warnings(self) -> list[str]:
        """Return what is said at a start."""
        self.users.stopService()
        with capturedLogs() as events:
            self.users.startService()
        return [str(formatEvent(event)) for event in events]

    def test_stops(self) -> None:
        """Nothing is looked at any more once the service has stopped."""
        self.users.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing_to_watch(self) -> None:
        """Without a file, or without a watch, nothing ticks; without a file nothing is read."""
        self.users.stopService()
        self.make(Config(users_file=self.path, watch_interval=0))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.make(Config())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        before = self.server.users
        self.users.reload()
        self.assertIs(self.server.users, before)
