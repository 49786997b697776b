"""Passwords as they are kept, SCRAM, and what strangers can learn of users."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError, StoreUnavailable
from kvproto.server import (
    HashVerifier,
    KVServer,
    ServerSettings,
    UserTable,
    hash_password,
)
from kvproto.server.hashing import HashQueue
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


def calls(work: Callable[[], object]) -> int:
    """Return how many calls something makes, of Python and of C."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


class HashQueueTests(SynchronousTestCase):
    """Passwords are hashed a few at a time, and only so many wait for it."""

    def setUp(self) -> None:
        self.running: list[tuple[str, Deferred[str]]] = []
        self.queue = HashQueue(self.run_somewhere, 2, 3)

    def run_somewhere(self, name: str) -> Deferred[str]:
        done: Deferred[str] = Deferred()
        self.running.append((name, done))
        return done

    def begin(self, names: str) -> list[Deferred[str]]:
        return [self.queue(name) for name in names]  # type: ignore[arg-type]

    def names(self) -> str:
        return "".join(name for name, _ in self.running)

    def end(self, at: int = 0) -> None:
        name, done = self.running.pop(at)
        done.callback(name)

    def test_in_order(self) -> None:
        """Two at once; the others as they came; each gets its own answer."""
        answers = self.begin("abcd")
        self.assertEqual(self.names(), "ab")
        self.end(1)
        self.assertEqual(self.names(), "ac")
        self.assertEqual(self.successResultOf(answers[1]), "b")
        self.assertNoResult(answers[2])
        while self.running:
            self.end()
        for name, answer in zip("acd", (answers[0], *answers[2:]), strict=True):
            self.assertEqual(self.successResultOf(answer), name)

    def test_full(self) -> None:
        """Beyond the limit a login is refused at once; later there is room again."""
        answers = self.begin("abcde")
        self.failureResultOf(self.queue("f"), StoreUnavailable)  # type: ignore[arg-type]
        self.end()
        answers += self.begin("g")
        self.assertNoResult(answers[-1])
        while self.running:
            self.end()
        self.assertEqual(self.successResultOf(answers[-1]), "g")

    def test_failure(self) -> None:
        """A failure is the answer of one, and the next one runs."""
        answers = self.begin("abc")
        self.running.pop(0)[1].errback(KeyError())
        self.failureResultOf(answers[0], KeyError)
        self.assertEqual(self.names(), "bc")

    def test_cancelled(self) -> None:
        """Who gives up leaves the queue; what runs keeps its place until it has ended."""
        answers = self.begin("abcd")
        answers[2].cancel()
        answers[0].cancel()
        for at in (0, 2):
            self.failureResultOf(answers[at], CancelledError)
        self.assertEqual(self.names(), "ab")
        self.end()
        self.assertEqual(self.names(), "bd")
        self.end()
        answers[3].cancel()
        self.end()
        self.failureResultOf(answers[3], CancelledError)
        [last] = self.begin("e")
        self.end()
        self.assertEqual(self.successResultOf(last), "e")

    def test_refused_login(self) -> None:
        """A login that could not even wait is answered "temporary failure", and told of."""
        connection = FakeConnection()
        link = Link(connection=connection, users=ALICE)
        link.server.users = UserTable.of_passwords(
            ALICE, iterations=1, run=HashQueue(self.run_somewhere, 0, 0)
        )
        answer = link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0alice\0secret")
        self.assertEqual(answer.status, Status.TEMPORARY_FAILURE)
        self.assertEqual(
            connection.logins, [("PLAIN", "alice", "the password could not be checked")]
        )
        self.flushLoggedErrors()


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
        """A password that SASL does not allow, or a very long one, cannot be set."""
        for password in ("bell\a", "x" * 1025):
            with self.assertRaises(LocalProtocolError):
                hash_password(password, 1)

    def test_expensive_passwords(self) -> None:
        """No password of any length takes many steps to prepare, whatever it is made of."""
        ligature = "\ufdfa"  # one character that stands for eighteen
        self.assertLess(calls(partial(prepare, ligature * 1024)), 10_000)
        verifier = HashVerifier(hash_password("secret", 1))
        for letters in (ligature * 5300, "".join(map(chr, range(0x4E00, 0x5E00))), "\xad" * 8000):
            self.assertLess(calls(partial(verifier.check, letters.encode())), 100)


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

    def test_equal_work(self) -> None:
        """A challenge takes the same steps whether or not there is such a user, for each digest."""
        users = UserTable.of_passwords(ALICE, iterations=1)
        for digest in DIGESTS:
            counts = [
                calls(partial(users.scram_keys, name, digest)) for name in (b"alice", b"mallo")
            ]
            self.assertEqual(counts[0], counts[1])
            self.assertNotEqual(
                users.scram_keys(b"alice", digest), users.scram_keys(b"mallo", digest)
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
