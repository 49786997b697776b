"""Passwords as they are kept, SCRAM, and what strangers can learn of users."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError
from kvproto.server import (
    HashVerifier,
    KVServer,
    ServerSettings,
    hash_password,
)
from kvproto.server.passwords import DIGESTS
from kvproto.store import MemoryStore
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.scram import ClientExchange, prepare, salted_password
from tests.examples import examples
from tests.server.support import NOW, FakeConnection, Link

MECHANISMS = {
    b"SCRAM-SHA512": "sha512",
    b"SCRAM-SHA256": "sha256",
    b"SCRAM-SHA1": "sha1",
    b"SCRAM-SHA-256": "sha256",
}
ALICE = {"alice": "secret"}


class HashTests(SynchronousTestCase):
    """Hashes and their verifier."""

    def test_check(self) -> None:
        """Only the password itself is right; characters that look the same are the same."""
        verifier = HashVerifier(hash_password("sécret", 2))
        self.assertTrue(verifier.check("sécret".encode()))
        self.assertTrue(verifier.check("se\u0301cret".encode()))
        for wrong in (b"secret", b"", b"\xff", "sécret\0".encode(), b"x" * 100_000):
            self.assertFalse(verifier.check(wrong))

    def test_salted(self) -> None:
        """The same password is kept differently each time, and for each digest."""
        one, two = hash_password("secret", 1), hash_password("secret", 1)
        salts = {keys.salt for hashes in (one, two) for keys in hashes.values()}
        self.assertEqual(len(salts), 2 * len(DIGESTS))

    def test_elsewhere(self) -> None:
        """Hashing runs where the owner says."""
        jobs: list[object] = []

        def run(function: object, *args: object) -> Deferred[bool]:
            jobs.append((function, args))
            return Deferred()

        verifier = HashVerifier(hash_password("secret", 1), run)
        self.assertIsInstance(verifier.check(b"secret"), Deferred)
        self.assertIsInstance(verifier.decoy().check(b"secret"), Deferred)
        self.assertEqual(len(jobs), 2)

    def test_decoy(self) -> None:
        """A decoy costs as much, and nothing is right."""
        verifier = HashVerifier(hash_password("secret", 3))
        decoy = verifier.decoy()
        self.assertFalse(decoy.check(b"secret"))
        for digest, keys in verifier.hashes.items():
            fake = decoy.hashes[digest]
            self.assertEqual((fake.iterations, len(fake.salt)), (3, len(keys.salt)))
            self.assertEqual(len(fake.stored_key), len(keys.stored_key))

    def test_impossible_password(self) -> None:
        """A password that SASL does not allow cannot be set."""
        with self.assertRaises(LocalProtocolError):
            hash_password("bell\a", 1)


class ScramTests(SynchronousTestCase):
    """SCRAM, spoken by a client."""

    def link(self) -> Link:
        return Link(users=ALICE)

    def log_in(
        self, link: Link, mechanism: bytes, name: str, password: str, nonce: bytes = b"fyko"
    ) -> tuple[int, list[int]]:
        """Log in; return the last status, and all of them."""
        digest = MECHANISMS[mechanism]
        client = ClientExchange(digest, prepare(name), nonce)
        first = link.call(Opcode.SASL_AUTH, key=mechanism, value=client.begin(), opaque=1)
        if first.status != Status.AUTH_CONTINUE:
            return first.status, [first.status]
        salt, iterations = client.challenged(first.value, 1)
        salted = salted_password(digest, prepare(password), salt, iterations)
        last = link.call(Opcode.SASL_STEP, key=mechanism, value=client.prove(salted), opaque=2)
        if not last.status:
            client.verify(last.value)
        return last.status, [first.status, last.status]

    def test_login(self) -> None:
        """The right password opens the rest, with each digest and each spelling."""
        for mechanism in MECHANISMS:
            link = self.link()
            self.assertEqual(self.log_in(link, mechanism, "alice", "secret")[0], 0)
            self.assertEqual(link.call(Opcode.GET, key=b"k").status, Status.NOT_FOUND)

    def test_wrong(self) -> None:
        """A wrong password and an unknown user look the same: a challenge, then no."""
        for name, word in (("alice", "guess"), ("mallory", "secret")):
            link = self.link()
            found = self.log_in(link, b"SCRAM-SHA512", name, word)
            self.assertEqual(found[1], [Status.AUTH_CONTINUE, Status.AUTH_ERROR])
            self.assertEqual(link.call(Opcode.GET, key=b"k").status, Status.AUTH_ERROR)
            self.assertEqual(self.log_in(link, b"SCRAM-SHA512", "alice", "secret")[0], 0)

    def test_unknown_user_is_consistent(self) -> None:
        """Asked twice for the same unknown user, the server shows the same salt."""
        link = self.link()
        challenges = []
        for nonce in (b"a", b"b"):
            first = b"n,,n=mallory,r=" + nonce
            response = link.call(Opcode.SASL_AUTH, key=b"SCRAM-SHA256", value=first)
            challenges.append(response.value.split(b",")[1:])
        self.assertEqual(challenges[0], challenges[1])
        real = link.call(Opcode.SASL_AUTH, key=b"SCRAM-SHA256", value=b"n,,n=alice,r=a").value
        self.assertEqual(len(real.split(b",")[1]), len(challenges[0][0]))
        self.assertEqual(real.split(b",")[2], challenges[0][1])

    def test_malformed(self) -> None:
        """A message that is none ends the attempt, not the connection."""
        link = self.link()
        for value in (b"", b"n,,", b"p=tls-unique,,n=alice,r=x", b"n,a=bob,n=alice,r=x", b"\xff"):
            response = link.call(Opcode.SASL_AUTH, key=b"SCRAM-SHA1", value=value)
            self.assertEqual(response.status, Status.AUTH_ERROR)
        link.call(Opcode.SASL_AUTH, key=b"SCRAM-SHA1", value=b"n,,n=alice,r=x")
        response = link.call(Opcode.SASL_STEP, key=b"SCRAM-SHA1", value=b"c=biws,r=x,p=AAAA")
        self.assertEqual(response.status, Status.AUTH_ERROR)
        response = link.call(Opcode.SASL_STEP, key=b"SCRAM-SHA1", value=b"c=biws,r=x,p=AAAA")
        self.assertEqual(response.status, Status.AUTH_ERROR)

    def test_another_mechanism_in_between(self) -> None:
        """A step of another mechanism ends the attempt."""
        link = self.link()
        link.call(Opcode.SASL_AUTH, key=b"SCRAM-SHA1", value=b"n,,n=alice,r=x")
        response = link.call(Opcode.SASL_STEP, key=b"SCRAM-SHA256", value=b"c=biws,r=x,p=AAAA")
        self.assertEqual(response.status, Status.AUTH_ERROR)

    def test_counted(self) -> None:
        """An attempt counts once, a failure once."""
        link = self.link()
        self.log_in(link, b"SCRAM-SHA1", "alice", "guess")
        self.log_in(link, b"SCRAM-SHA1", "alice", "secret")
        counters = link.server.counters
        self.assertEqual((counters.auth_cmds, counters.auth_errors), (2, 1))

    def test_told(self) -> None:
        """Each attempt is told of once; nothing in it says whether there is such a user."""
        told = {}
        for name in ("alice", "mallory"):
            connection = FakeConnection()
            link = Link(connection=connection, users=ALICE)
            for mechanism in (b"SCRAM-SHA1", b"SCRAM-SHA512"):
                self.log_in(link, mechanism, name, "guess")
            link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=f"\0{name}\0guess".encode())
            link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=name.encode())
            link.call(Opcode.SASL_AUTH, key=b"GSSAPI\n", value=name.encode())
            link.call(Opcode.SASL_AUTH, key=b"SCRAM-SHA1", value=b"n,,n=x,r=y")
            link.call(Opcode.SASL_STEP, key=b"SCRAM-SHA512", value=b"c=biws,r=x,p=AAAA")
            told[name] = [
                (mechanism, user.replace(name, "NAME"), fault)
                for mechanism, user, fault in connection.logins
            ]
        wrong, malformed = "wrong user or password", "malformed message"
        self.assertEqual(told["alice"], told["mallory"])
        self.assertEqual(
            told["alice"],
            [
                ("SCRAM-SHA1", "NAME", wrong),
                ("SCRAM-SHA512", "NAME", wrong),
                ("PLAIN", "NAME", wrong),
                ("PLAIN", "", malformed),
                ("unknown", "", "no such mechanism"),
                ("SCRAM-SHA1", "", malformed),
            ],
        )

    def test_list(self) -> None:
        """Couchbase's names are listed; without users only what can succeed."""
        self.assertEqual(
            self.link().call(Opcode.SASL_LIST).value,
            b"SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN",
        )
        self.assertEqual(Link().call(Opcode.SASL_LIST).value, b"PLAIN")

    def test_without_users(self) -> None:
        """Where there are no users, no proof is right."""
        link = Link(KVServer(MemoryStore(lambda: NOW), ServerSettings()))
        response = link.call(Opcode.SASL_AUTH, key=b"SCRAM-SHA1", value=b"n,,n=alice,r=x")
        self.assertEqual(response.status, Status.AUTH_CONTINUE)

    @examples(100)
    @given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from(sorted(MECHANISMS)))
    def test_any_messages(self, messages: list[bytes], mechanism: bytes) -> None:
        """Whatever is sent as a login, each message is answered and nobody gets in."""
        link = self.link()
        opcode = Opcode.SASL_AUTH
        for message in messages:
            response = link.call(opcode, key=mechanism, value=message)
            self.assertIn(response.status, {Status.AUTH_ERROR, Status.AUTH_CONTINUE})
            opcode = Opcode.SASL_STEP
        self.assertEqual(link.call(Opcode.GET, key=b"k").status, Status.AUTH_ERROR)
