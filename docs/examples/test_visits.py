"""A program's client and the real key-value server, in one test and without a network.

Run it with ``python -m twisted.trial docs/examples/test_visits.py``, or with pytest.
"""

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.client import KVClient, UnansweredError
from kvproto.server import KVServer, KVServerFactory
from kvproto.store import MemoryStore
from kvproto.testing import MemoryNetwork


async def visit(client: KVClient, who: bytes) -> int:
    """What is tested: count the visits of somebody, for an hour."""
    counted = await client.increment(b"visits:" + who, initial=1, expiry=3600)
    return counted.value


class VisitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_750_000_000)
        self.network = MemoryNetwork(self.clock)
        now = self.clock.seconds
        server = KVServerFactory(KVServer(MemoryStore(now), now=now))
        self.port = self.successResultOf(self.network.server_endpoint("kv").listen(server))
        self.client = KVClient(self.network.client_endpoint("kv"), self.clock)
        self.client.startService()
        self.addCleanup(self.client.close)

    def visit(self) -> "Deferred[int]":
        visiting = Deferred.fromCoroutine(visit(self.client, b"ann"))
        self.network.flush()  # requests and replies move now, and only now
        return visiting

    def test_counts(self) -> None:
        self.assertEqual(self.successResultOf(self.visit()), 1)
        self.assertEqual(self.successResultOf(self.visit()), 2)

    def test_forgets(self) -> None:
        self.successResultOf(self.visit())
        self.clock.advance(3601)  # an hour later, at once
        self.assertEqual(self.successResultOf(self.visit()), 1)

    def test_server_gone(self) -> None:
        self.successResultOf(self.visit())
        self.port.stopListening()
        for pair in self.network.pairs:
            pair.server.abortConnection()
        self.network.flush()
        visiting = self.visit()
        self.assertNoResult(visiting)  # it waits for a connection ...
        self.clock.pump([0.1] * 30)
        self.failureResultOf(visiting, UnansweredError)  # ... but not for ever
