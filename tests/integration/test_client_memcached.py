"""`kvproto.client` against memcached itself, over plain TCP: no HELLO, no login, no buckets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from kvproto.client import (
    CasMismatchError,
    ConnectionFailedError,
    Credentials,
    ExistsError,
    KVClient,
    Limits,
    LoginError,
    NotANumberError,
    NotFoundError,
    NotNegotiatedError,
    NotStoredError,
    SessionSettings,
    TooBigError,
    UnansweredError,
    UnsupportedError,
)
from tests.integration.memcached import Memcached
from tests.integration.service import PATIENCE

reactor: Any = installed


class MemcachedTests(TestCase):
    """All operations that memcached has."""

    timeout = 3 * PATIENCE

    def setUp(self) -> None:
        self.server = Memcached()
        self.addCleanup(self.server.kill)
        self.client = self.make_client()

    def make_client(self, credentials: Credentials | None = None, **limits: float) -> KVClient:
        session = SessionSettings(credentials, features=())
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.server.port)
        client = KVClient(endpoint, reactor, session, Limits(**limits))  # type: ignore[arg-type]
        client.startService()
        self.addCleanup(client.close)
        return client

    async def test_documents(self) -> None:
        """Documents are stored, read, changed and removed, with flags and CAS."""
        client = self.client
        stored = await client.set(b"k", b"one", flags=7)
        found = await client.get(b"k")
        assert found is not None
        self.assertEqual((found.value, found.flags, found.cas), (b"one", 7, stored.cas))
        await self.assertFailure(client.add(b"k", b"two"), ExistsError)
        await self.assertFailure(client.set(b"k", b"x", cas=stored.cas + 1), CasMismatchError)
        await client.replace(b"k", b"two", cas=stored.cas)
        await client.append(b"k", b" three")
        await client.prepend(b"k", b"one ")
        found = await client.get(b"k")
        assert found is not None
        self.assertEqual(found.value, b"one two three")
        await client.delete(b"k")
        self.assertIsNone(await client.get(b"k"))
        await self.assertFailure(client.delete(b"k"), NotFoundError)
        await self.assertFailure(client.replace(b"k", b"v"), NotFoundError)
        await self.assertFailure(client.append(b"k", b"v"), NotStoredError)

    async def test_counters(self) -> None:
        """Counters are created, go up and down, and refuse what is no number."""
        client = self.client
        await self.assertFailure(client.increment(b"n"), NotFoundError)
        self.assertEqual((await client.increment(b"n", initial=5)).value, 5)
        self.assertEqual((await client.increment(b"n", 10)).value, 15)
        self.assertEqual((await client.decrement(b"n", 100)).value, 0)
        await client.set(b"text", b"text")
        await self.assertFailure(client.increment(b"text"), NotANumberError)

    async def test_expiry(self) -> None:
        """A touched document lives as long as it was told."""
        client = self.client
        await client.set(b"k", b"v")
        await client.touch(b"k", 100)
        found = await client.get_and_touch(b"k", 100)
        assert found is not None
        self.assertEqual(found.value, b"v")
        # Absolute, and long ago.
        await client.touch(b"k", 2592001)
        self.assertIsNone(await client.get(b"k"))

    async def test_many(self) -> None:
        """A thousand keys, half of them missing, in a few packets."""
        keys = [b"key %d" % number for number in range(1000)]
        await gatherResults([self.client.set(key, key) for key in keys[::2]])
        found = await self.client.get_many(keys)
        self.assertEqual({key: one.value for key, one in found.items()}, {k: k for k in keys[::2]})

    async def test_pipelined(self) -> None:
        """Thousands of requests at once, more than may be in flight."""
        await self.client.set(b"n", b"0")
        counted = await gatherResults([self.client.increment(b"n") for _ in range(4000)])
        self.assertEqual([one.value for one in counted], list(range(1, 4001)))

    async def test_server(self) -> None:
        """What concerns no document."""
        await self.client.noop()
        version = await self.client.version()
        self.assertRegex(version, r"^\d+\.\d+")
        stats = await self.client.stats()
        self.assertEqual(stats["version"], version)
        self.assertIn("maxconns", await self.client.stats(b"settings"))

    async def test_too_big(self) -> None:
        """A value that is too long is refused, and the connection works on."""
        await self.assertFailure(self.client.set(b"k", bytes(2 * 1024 * 1024)), TooBigError)
        await self.client.noop()

    async def test_not_there(self) -> None:
        """What memcached does not have is refused, by it or on its behalf."""
        locked = self.client.get_and_lock(b"k")
        # memcached answers an unknown command that has a body with the next request only, which
        # itself is lost, and later ends the connection.
        lost = self.client.noop(timeout_s=0.2)
        await self.assertFailure(locked, UnsupportedError)
        await self.assertFailure(lost, UnansweredError)
        kept = self.client.set(b"k", b"v", preserve_expiry=True)
        await self.assertFailure(kept, NotNegotiatedError)
        named = self.client.collection("shop", "things").get(b"k")
        await self.assertFailure(named, NotNegotiatedError)

    async def test_hello(self) -> None:
        """Without the setting that memcached needs, requests fail at once and say which it is."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.server.port)
        usual = SessionSettings()
        for settings in (usual, replace(usual, agent="a" * 25), replace(usual, agent="a" * 250)):
            client = KVClient(endpoint, reactor, settings)
            client.startService()
            self.addCleanup(client.close)
            error = await self.assertFailure(client.get(b"k"), LoginError)
            self.assertIn("features=()", str(error))

    async def test_no_logins(self) -> None:
        """A server without logins does not hear a password."""
        client = self.make_client(Credentials("alice", "secret"))
        await self.assertFailure(client.get(b"k"), LoginError)

    async def test_restart(self) -> None:
        """A request made while the server restarts is answered by the new one."""
        await self.client.set(b"k", b"v")
        self.server.kill()
        lost = self.client.get(b"k")
        await deferLater(reactor, 0.05)
        waiting = self.client.get(b"k", timeout_s=20)
        self.server.start()
        self.assertIsNone(await waiting)
        await lost.addErrback(lambda failure: failure.trap(ConnectionFailedError))

    async def test_frozen(self) -> None:
        """A server that says nothing any more fails requests in time, and the client can close."""
        client = self.make_client(timeout_s=0.3, silence_s=0.2, close_timeout_s=0.2)
        await client.noop()
        self.server.freeze()
        asked: list[Deferred[Any]] = [client.get(b"k") for _ in range(100)]
        for deferred in asked:
            await self.assertFailure(deferred, UnansweredError)
        await client.close()
