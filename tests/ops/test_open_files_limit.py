"""Open files and connections."""

from __future__ import annotations

import resource

from twisted.trial.unittest import SynchronousTestCase

from kvproto.listeners import Limits
from kvproto.ops import open_files_limit

INFINITE = resource.RLIM_INFINITY
ASKED = Limits(connections=1000, unauthenticated=250, per_peer=7, total=1250)
NEEDED = 1250 + open_files_limit.RESERVED


class FitTests(SynchronousTestCase):
    """What is asked for, and what the machine allows."""

    def fit(self, soft: int, hard: int) -> tuple[Limits, list[tuple[int, int]]]:
        """Return the limits that are used, and what the process' limit was set to."""
        changes: list[tuple[int, int]] = []
        self.patch(resource, "getrlimit", lambda _which: (soft, hard))
        self.patch(resource, "setrlimit", lambda _which, limits: changes.append(limits))
        return open_files_limit.fit_open_files(ASKED), changes

    def test_enough(self) -> None:
        """Where there is enough nothing is changed."""
        self.assertEqual(self.fit(NEEDED, NEEDED), (ASKED, []))
        self.assertEqual(self.fit(INFINITE, INFINITE), (ASKED, []))

    def test_raised(self) -> None:
        """The soft limit is raised to what is needed, not more; the hard one stays."""
        self.assertEqual(self.fit(1024, 4096), (ASKED, [(NEEDED, 4096)]))
        self.assertEqual(self.fit(1024, INFINITE), (ASKED, [(NEEDED, INFINITE)]))

    def test_not_enough(self) -> None:
        """Where it cannot be raised enough, all kinds of connections are cut alike."""
        limits, changes = self.fit(256, 625 + open_files_limit.RESERVED)
        self.assertEqual(
            limits, Limits(connections=500, unauthenticated=125, per_peer=7, total=625)
        )
        self.assertEqual(
            changes, [(625 + open_files_limit.RESERVED, 625 + open_files_limit.RESERVED)]
        )

    def test_hopeless(self) -> None:
        """A limit below anything useful still leaves some connections of each kind."""
        limits, _ = self.fit(32, 32)
        self.assertEqual((limits.connections, limits.unauthenticated, limits.total), (16, 16, 32))
