"""`kvproto.client` against ``twistd kvtls``, over verified TLS."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import clientFromString
from twisted.trial.unittest import TestCase

from kvproto.client import (
    AccessError,
    BucketError,
    CasMismatchError,
    Credentials,
    Durability,
    DurabilityError,
    KVClient,
    Limits,
    LockedError,
    LoginError,
    NotLockedError,
    RequestTimeoutError,
    SessionSettings,
    TooBigError,
    UnansweredError,
    UnknownCollectionError,
)
from tests.integration.service import ENGINES, PATIENCE, KvtlsProcess, not_on

reactor: Any = installed


class KvtlsTestCase(TestCase):
    """A running service and clients of it."""

    timeout = 3 * PATIENCE
    options: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.service = self.enterContext(KvtlsProcess(*self.options))

    def make_client(
        self, session: SessionSettings | None = None, hostname: str = "", **limits: float
    ) -> KVClient:
        name = f":hostname={hostname}" if hostname else ""
        endpoint = clientFromString(
            reactor,
            f"kvtls:127.0.0.1:{self.service.port}:caCertificate={self.service.ca_path}{name}",
        )
        client = KVClient(endpoint, reactor, session, Limits(**limits))  # type: ignore[arg-type]
        client.startService()
        self.addCleanup(client.close)
        return client


class OperationTests(KvtlsTestCase):
    """Operations, without a login."""

    options = ("--collection", "shop.things", "--bucket", "default", "--bucket", "other")

    async def test_documents(self) -> None:
        """Documents and their CAS, with mutation tokens."""
        not_on(ENGINES, "an engine keeps no history that tokens could name")
        client = self.make_client()
        stored = await client.set(b"k", b"one", flags=7)
        assert stored.token is not None
        found = await client.get(b"k")
        assert found is not None
        self.assertEqual((found.value, found.flags, found.cas), (b"one", 7, stored.cas))
        await self.assertFailure(client.set(b"k", b"x", cas=stored.cas + 1), CasMismatchError)
        await client.append(b"k", b" two")
        self.assertEqual((await client.get_many([b"k", b"-"]))[b"k"].value, b"one two")
        changed = await client.replace(b"k", b"three", preserve_expiry=True)
        assert changed.token is not None
        self.assertGreater(changed.token.seqno, stored.token.seqno)
        await client.delete(b"k")
        self.assertIsNone(await client.get_and_touch(b"k", 100))
        self.assertEqual((await client.increment(b"n", initial=5)).value, 5)

    async def test_locks(self) -> None:
        """A locked document is changed by who has the key, and by nobody else."""
        client = self.make_client()
        await client.set(b"k", b"v")
        found = await client.get_and_lock(b"k", 20)
        assert found is not None
        await self.assertFailure(client.set(b"k", b"x"), LockedError)
        await client.unlock(b"k", found.cas)
        await self.assertFailure(client.unlock(b"k", found.cas), NotLockedError)
        self.assertIsNone(await client.get_and_lock(b"missing"))

    async def test_durability(self) -> None:
        """A durability that cannot be had is an error, and nothing is stored."""
        not_on(("file",), "it has every durability")
        client = self.make_client()
        await client.set(b"k", b"v", durability=Durability(1))
        failed = client.set(b"k", b"x", durability=Durability(3, 1000))
        await self.assertFailure(failed, DurabilityError)
        found = await client.get(b"k")
        assert found is not None
        self.assertEqual(found.value, b"v")

    async def test_collections(self) -> None:
        """Equal keys in two collections are two documents."""
        client = self.make_client()
        things = client.collection("shop", "things")
        await gatherResults([client.set(b"k", b"default"), things.set(b"k", b"things")])
        found = [await client.get(b"k"), await things.get(b"k")]
        self.assertEqual([one and one.value for one in found], [b"default", b"things"])
        missing = client.collection("shop", "nothing").get(b"k")
        await self.assertFailure(missing, UnknownCollectionError)

    async def test_buckets(self) -> None:
        """Buckets are apart, and one that does not exist is told by its name."""
        one = self.make_client(SessionSettings(bucket="default"))
        two = self.make_client(SessionSettings(bucket="other"))
        await one.set(b"k", b"v")
        self.assertIsNone(await two.get(b"k"))
        three = self.make_client(SessionSettings(bucket="nowhere"))
        await self.assertFailure(three.get(b"k"), BucketError)

    async def test_large(self) -> None:
        """Ten mebibytes go and come; one byte too many is refused and no harm is done."""
        client = self.make_client(timeout_s=20.0)
        value = bytes(range(256)) * 40960
        await client.set(b"k", value)
        found = await client.get(b"k")
        assert found is not None
        self.assertEqual(found.value, value)
        too_big = client.set(b"k", bytes(20 * 1024 * 1024 + 1))
        await self.assertFailure(too_big, TooBigError)
        await client.noop()

    async def test_busy(self) -> None:
        """Thousands of requests from several clients at once, each answered with its own."""
        clients = [self.make_client(timeout_s=20.0) for _ in range(3)]
        keys = [b"key %d" % number for number in range(1500)]
        await gatherResults([client.set(key, key) for client in clients for key in keys])
        found = await gatherResults([client.get(key) for client in clients for key in keys])
        self.assertEqual([one and one.value for one in found], keys * 3)

    async def test_wrong_name(self) -> None:
        """A certificate for another name is believed by nobody: nothing is sent."""
        client = self.make_client(hostname="elsewhere.example")
        error = await self.assertFailure(client.set(b"k", b"v", timeout_s=1), RequestTimeoutError)
        self.assertIn("elsewhere.example", str(error))
        self.assertIsNone(await self.make_client().get(b"k"))

    async def test_service_ends(self) -> None:
        """When the service ends, the client notices; closing it takes no time."""
        client = self.make_client()
        await client.noop()
        self.assertEqual(self.service.terminate(), 0)
        await self.assertFailure(client.get(b"k", timeout_s=1), UnansweredError)
        await client.close()


class LoginTests(KvtlsTestCase):
    """Users and passwords."""

    options = ("--user", "alice:secret")

    async def test_plain(self) -> None:
        """Under TLS a password is simply sent."""
        client = self.make_client(SessionSettings(Credentials("alice", "secret"), "default"))
        await client.set(b"k", b"v")

    async def test_scram(self) -> None:
        """Each SCRAM mechanism logs in, and refuses a wrong password."""
        for mechanism in (b"SCRAM-SHA512", b"SCRAM-SHA256", b"SCRAM-SHA1"):
            right = Credentials("alice", "secret", (mechanism,))
            await self.make_client(SessionSettings(right)).noop()
            client = self.make_client(SessionSettings(right))
            await client.set(b"k", mechanism)
            wrong = Credentials("alice", "guess", (mechanism,))
            await self.assertFailure(self.make_client(SessionSettings(wrong)).noop(), LoginError)

    async def test_refused(self) -> None:
        """A wrong password, and an unknown user, are told at once, without a retry in between."""
        for name, password in (("alice", "guess"), ("mallory", "secret")):
            client = self.make_client(SessionSettings(Credentials(name, password)))
            await self.assertFailure(client.noop(), LoginError)

    async def test_no_login(self) -> None:
        """Who does not log in may not work."""
        client = self.make_client()
        await self.assertFailure(client.get(b"k"), AccessError)
