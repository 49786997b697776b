"""The contract of stores, on real engines in both modes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import Document, IStore
from kvproto.testing.store import StoreContract
from kvproto.testing.store_case import KEY, START
from kvproto.testing.store_meta import MetaContract
from kvproto.testing.store_subdoc import SubdocContract
from kvproto.upstream import Engine, EngineStore, make_engine, parse_options
from tests.integration.engines import shared_cluster, shared_server

reactor: Any = global_reactor
SECONDS = 20.0


class EngineContract(StoreContract, SubdocContract, MetaContract):
    """Runs the contract on an engine; each store has a bucket of its own."""

    locks = True
    made = 0
    engine: Engine | None = None

    def url(self) -> str:
        raise NotImplementedError

    def make_store(self, now: Callable[[], float]) -> IStore:
        EngineContract.made += 1
        return self.same_store(now, 0.0)

    def same_store(self, now: Callable[[], float], ahead: float) -> EngineStore:
        """Make a store for the bucket that was made last, by a service with a clock of its own."""
        if self.engine is None:
            self.engine = make_engine(parse_options(self.url()), reactor)
            self.engine.start()
            self.addCleanup(self.stop, self.engine)
        # The test's clock stands in the past; the engine must not forget what still lives there.
        ahead += time.time() - START
        bucket = f"{os.getpid()}.{self.made}"
        store = EngineStore(self.engine, bucket, now, locks=self.locks, ahead=ahead)
        self.addCleanup(store.stop)
        return store

    def test_clocks_that_differ(self) -> None:
        """What a service with a slow clock stores has a larger CAS than what it replaces."""
        if not self.locks:
            raise SkipTest("in memcached's mode a SET looks at nothing that is there")
        slow = self.same_store(self.clock.seconds, -100.0)
        was = self.ask(self.store.set(KEY, b"fast")).cas
        for expiry, attempt in ((0, b"1"), (1000, b"2"), (0, b"3")):
            stored = self.ask(slow.set(KEY, attempt, 7, expiry))
            found = self.ask(self.store.get(KEY))
            self.assertEqual(found, stored)
            self.assertEqual((found.value, found.flags, found.seqno), (attempt, 7, found.cas))
            self.assertEqual(bool(found.expires_at), bool(expiry))
            self.assertEqual(found.cas, was + 1)
            was = found.cas
        for cas in (0x7FFFFFFF_FFFFFFFF, 0x7FFFFFFF_FFFFFFFE):
            self.assertIsNone(self.ask(slow.put_back(KEY, Document(b"v", cas=cas))))
            self.assertEqual(self.ask(slow.set(KEY, b"3")).cas, cas + 1)
            was = cas + 1
        changed = self.ask(slow.append(KEY, b"x"))
        self.assertGreater(changed.cas, was)
        self.assertEqual(self.ask(self.store.get(KEY)).value, b"3x")

    def stop(self, engine: Engine) -> None:
        engine.stop()
        for _ in range(3):
            reactor.iterate(0)

    def ask(self, answer: Any) -> Any:
        """Let the reactor turn until the answer is there."""
        if not isinstance(answer, Deferred):
            return answer
        deadline = time.monotonic() + SECONDS
        while not answer.called or answer.paused:
            reactor.iterate(0.02)
            self.assertLess(time.monotonic(), deadline, "no answer")
        return self.successResultOf(answer)


class ContractWithoutLocks(EngineContract):
    """The contract of memcached's mode: a plain SET looks at nothing that is there."""

    locks = False

    def test_cas_grows_with_each_mutation(self) -> None:
        """Each mutation has a larger CAS, but for a touch, which keeps it."""
        numbers = [
            self.fill().cas,
            self.done(self.store.set(KEY, b"1")).cas,
            self.done(self.store.replace(KEY, b"1")).cas,
            self.done(self.store.append(KEY, b"1")).cas,
            self.done(self.store.prepend(KEY, b"1")).cas,
            self.done(self.store.increment(KEY, 1, 0, 0)).cas,
            self.done(self.store.decrement(KEY, 1, 0, 0)).cas,
        ]
        for touched in (self.store.touch(KEY, 5), self.store.get_and_touch(KEY, 6)):
            self.assertEqual(self.done(touched).cas, numbers[-1])
        numbers += [
            self.done(self.store.add(b"other", b"")).cas,
            self.done(self.store.delete(KEY)).cas,
            self.done(self.store.increment(KEY, 1, 0, 0)).cas,
        ]
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertTrue(numbers[0] > 0 and numbers[-1] < 1 << 63)

    def test_lock_times(self) -> None:
        raise SkipTest("documents cannot be locked in memcached's mode")

    def test_table_something_there(self) -> None:
        raise SkipTest("documents cannot be locked in memcached's mode")

    def test_attributes_survive_writes_and_die_on_delete(self) -> None:
        raise SkipTest("documents have no attributes in memcached's mode")


class RedisContractTests(EngineContract, SynchronousTestCase):
    """One server, by its Unix socket, documents that can be locked."""

    def url(self) -> str:
        return f"redis+unix:{shared_server().path}"


class RedisWithoutLocksContractTests(ContractWithoutLocks, SynchronousTestCase):
    """One server, a plain SET being one SET."""

    def url(self) -> str:
        return shared_server().url


class ClusterContractTests(EngineContract, SynchronousTestCase):
    """A cluster, documents that can be locked."""

    def url(self) -> str:
        return shared_cluster().url


class ClusterWithoutLocksContractTests(ContractWithoutLocks, SynchronousTestCase):
    """A cluster, a plain SET being one SET."""

    def url(self) -> str:
        return shared_cluster().url
