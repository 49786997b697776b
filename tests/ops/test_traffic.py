"""Who moves most: two looks at every connection, some time apart."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import CommandError
from kvproto.listeners import Ledger
from kvproto.ops.traffic import AT_ONCE, Traffic


class Moving:
    """A connection that has moved what the test says."""

    peer_chain: tuple[bytes, ...] = ()

    def __init__(self, moved: tuple[int, int] | None) -> None:
        self.moved = moved

    def fire(self, *_arguments: Any, **_named: Any) -> None:
        """Ignore it."""

    def progressed(self) -> bool:
        """Return whatever."""
        return True

    def traffic(self) -> tuple[int, int] | None:
        """Return what the test has set."""
        return self.moved


class TrafficTests(SynchronousTestCase):
    """The answer to ``top``."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.ledger = Ledger(self.clock)
        self.requests = 0
        self.traffic = Traffic(self.ledger, self.clock, lambda: self.requests)

    def connect(self, moved: tuple[int, int] | None, listener: str = "data-0") -> Moving:
        connection = Moving(moved)
        self.ledger.admit(listener, IPv4Address("TCP", "192.0.2.1", 40000), connection)
        return connection

    def measure(
        self, sort: str = "traffic", limit: int = 0, listener: str | None = None
    ) -> Deferred[dict[str, Any]]:
        return self.traffic.measure(2000, sort, limit, listener)

    def test_rates(self) -> None:
        """Bytes a second are those between the looks; who came meanwhile has moved since then."""
        old = self.connect((1000, 50))
        self.clock.advance(100)
        measured = self.measure()
        self.requests = 30
        old.moved = (3000, 60)
        self.clock.advance(1)
        self.connect((500, 200))
        self.clock.advance(1)
        answer = self.successResultOf(measured)
        self.assertEqual(
            {name: answer[name] for name in ("seconds", "requests_per_s", "total", "shown")},
            {"seconds": 2.0, "requests_per_s": 15.0, "total": 2, "shown": 2},
        )
        self.assertEqual((answer["bytes_in_per_s"], answer["bytes_out_per_s"]), (1500, 205))
        self.assertEqual(
            answer["connections"],
            [
                {
                    "id": 1,
                    "peer": "192.0.2.1:40000",
                    "listener": "data-0",
                    "state": "handshaking",
                    "user": None,
                    "age_s": 102.0,
                    "bytes_in": 3000,
                    "bytes_out": 60,
                    "bytes_in_per_s": 1000,
                    "bytes_out_per_s": 5,
                },
                {
                    "id": 2,
                    "peer": "192.0.2.1:40000",
                    "listener": "data-0",
                    "state": "handshaking",
                    "user": None,
                    "age_s": 1.0,
                    "bytes_in": 500,
                    "bytes_out": 200,
                    "bytes_in_per_s": 500,
                    "bytes_out_per_s": 200,
                },
            ],
        )

    def test_orders(self) -> None:
        """By each order the right one is first; the older one where they are alike."""
        for moved in ((0, 0), (100, 0), (0, 90), (60, 60), (0, 0)):
            self.connect(moved)
            self.clock.advance(1)
        for sort, first in (("age", 1), ("total", 4)):
            measured = self.measure(sort, limit=1)
            self.clock.advance(2)
            (row,) = self.successResultOf(measured)["connections"]
            self.assertEqual(row["id"], first, sort)
        for sort, first in (("in", 2), ("out", 3), ("traffic", 4)):
            measured = self.measure(sort, limit=1)
            for entry, add in zip(
                self.ledger.entries(), ((0, 0), (9, 0), (0, 8), (6, 6), (0, 0)), strict=True
            ):
                old = entry.accepted.traffic()
                assert old is not None
                entry.accepted.moved = (old[0] + add[0], old[1] + add[1])  # type: ignore[attr-defined]
            self.clock.advance(2)
            answer = self.successResultOf(measured)
            self.assertEqual([row["id"] for row in answer["connections"]], [first], sort)
            self.assertEqual((answer["total"], answer["shown"]), (5, 1))

    def test_alike(self) -> None:
        """Of those that are alike the oldest come first."""
        for _ in range(3):
            self.connect((0, 0))
        measured = self.measure(limit=2)
        self.clock.advance(2)
        rows = self.successResultOf(measured)["connections"]
        self.assertEqual([row["id"] for row in rows], [1, 2])

    def test_unknown(self) -> None:
        """What nobody counts is null, and last; who is gone is not listed."""
        self.connect(None)
        self.connect((0, 0))
        gone = self.ledger.entries()[1]
        self.connect((1, 1))
        measured = self.measure()
        self.ledger.remove(gone, "peer lost")
        self.clock.advance(2)
        rows = self.successResultOf(measured)["connections"]
        self.assertEqual([row["id"] for row in rows], [1, 3])
        self.assertEqual(
            [rows[0][name] for name in ("bytes_in", "bytes_out", "bytes_in_per_s")], [None] * 3
        )

    def test_listener(self) -> None:
        """Of one listener, where that is asked for."""
        self.connect((0, 0))
        self.connect((0, 0), "data-1")
        measured = self.measure(listener="data-1")
        self.clock.advance(2)
        answer = self.successResultOf(measured)
        self.assertEqual([row["listener"] for row in answer["connections"]], ["data-1"])

    def test_in_turns(self) -> None:
        """With many connections others have their turn between the looks."""
        for _ in range(2 * AT_ONCE + 1):
            self.connect((0, 0))
        measured = self.measure(limit=1)
        self.assertIn(self.clock.seconds(), self.times())
        self.clock.advance(0)
        self.assertNotIn(self.clock.seconds(), self.times())
        self.assertIn(self.clock.seconds() + 2, self.times())
        self.clock.advance(2)
        self.assertEqual(self.successResultOf(measured)["total"], 2 * AT_ONCE + 1)

    def times(self) -> list[float]:
        """Return when something is to be done; the ledger has a deadline of its own."""
        return [call.getTime() for call in self.clock.getDelayedCalls()]

    def test_refused(self) -> None:
        """An order or a time that makes no sense is refused at once."""
        for milliseconds, sort in ((0, "in"), (60_001, "in"), (1000, "size")):
            error = self.assertRaises(
                CommandError, self.traffic.measure, milliseconds, sort, 0, None
            )
            self.assertEqual(error.code, "bad-argument")

    def test_stop(self) -> None:
        """When the service stops, what is being measured is given up, its timer too."""
        self.traffic.startService()
        measured = self.measure()
        self.traffic.stopService()
        self.failureResultOf(measured, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
