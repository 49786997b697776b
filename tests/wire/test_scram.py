"""SCRAM against published exchanges, against itself, and against any bytes."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import Status
from kvproto.wire.scram import (
    DIGESTS,
    ClientExchange,
    ScramKeys,
    ServerExchange,
    decoy_keys,
    derive_keys,
    prepare,
    salted_password,
)
from tests.examples import examples


@dataclass
class Published:
    """One exchange as a RFC prints it; the user is ``user``, the password ``pencil``."""

    digest: str
    client_nonce: bytes
    server_nonce: bytes
    salt: bytes
    proof: bytes
    signature: bytes


RFC_5802 = Published(
    "sha1",
    b"fyko+d2lbbFgONRv9qkxdawL",
    b"3rfcNHYJY1ZVvWVs7j",
    b"QSXCR+Q6sek8bf92",
    b"v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
    b"rmF9pqV8S7suAoZWja4dJRkFsKQ=",
)
RFC_7677 = Published(
    "sha256",
    b"rOprNGfwEbeRWgbNEkqO",
    b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
    b"W22ZaJ0SNY7soEsUEjb6gQ==",
    b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
    b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
)
SDK_NONCE = b"0xffffffb9 0xffffff8a 0x22 0x17"
"""The form that Couchbase's SDK 4.6 sends."""

SALT = b"sixteen bytes ok"
FEW = 2
"""Iterations for tests that are not about their number."""


def keys_of(digest: str, password: bytes) -> ScramKeys:
    """Return a user's keys."""
    return derive_keys(digest, salted_password(digest, password, SALT, FEW), SALT, FEW)


def log_in(
    digest: str, keys: ScramKeys, name: bytes, password: bytes
) -> tuple[bytes, bytes | None, ClientExchange]:
    """Let both sides talk; return the name the server saw, its last word, and the client."""
    client = ClientExchange(digest, name, b"client")
    server = ServerExchange(digest, b"server")
    seen = server.begin(client.begin())
    salt, iterations = client.challenged(server.challenge(keys), min_iterations=1)
    final = client.prove(salted_password(digest, password, salt, iterations))
    return seen, server.finish(final), client


class PublishedTests(SynchronousTestCase):
    """The exchanges printed in RFCs."""

    def check(self, known: Published) -> None:
        client = ClientExchange(known.digest, b"user", known.client_nonce)
        server = ServerExchange(known.digest, known.server_nonce)
        first = client.begin()
        self.assertEqual(first, b"n,,n=user,r=" + known.client_nonce)
        self.assertEqual(server.begin(first), b"user")
        salt = b64decode(known.salt)
        salted = salted_password(known.digest, b"pencil", salt, 4096)
        challenge = server.challenge(derive_keys(known.digest, salted, salt, 4096))
        both = known.client_nonce + known.server_nonce
        self.assertEqual(challenge, b"r=" + both + b",s=" + known.salt + b",i=4096")
        self.assertEqual(client.challenged(challenge), (salt, 4096))
        final = client.prove(salted)
        self.assertEqual(final, b"c=biws,r=" + both + b",p=" + known.proof)
        last = server.finish(final)
        self.assertEqual(last, b"v=" + known.signature)
        client.verify(b"v=" + known.signature)

    def test_sha1(self):
        """The exchange of RFC 5802, section 5."""
        self.check(RFC_5802)

    def test_sha256(self):
        """The exchange of RFC 7677, section 3."""
        self.check(RFC_7677)


class ServerTests(SynchronousTestCase):
    """What a server accepts."""

    def refused(self, function, *arguments) -> str:
        with self.assertRaises(RemoteProtocolError) as caught:
            function(*arguments)
        self.assertEqual(caught.exception.status, Status.AUTH_ERROR)
        return str(caught.exception)

    def test_wrong_password(self):
        """A wrong password is no broken protocol, only no login."""
        _, last, _ = log_in("sha512", keys_of("sha512", b"right"), b"user", b"wrong")
        self.assertIsNone(last)

    def test_sdk_nonce(self):
        """A nonce with spaces, as Couchbase's SDK sends it, comes back byte for byte."""
        server = ServerExchange("sha1", b"server")
        server.begin(b"n,,n=user,r=" + SDK_NONCE)
        challenge = server.challenge(keys_of("sha1", b"pw"))
        self.assertTrue(challenge.startswith(b"r=" + SDK_NONCE + b"server,s="))

    def test_escapes(self):
        """Commas and equal signs in names survive the way."""
        name = b"a,b=c=2C,"
        seen, last, _ = log_in("sha256", keys_of("sha256", b"pw"), name, b"pw")
        self.assertEqual(seen, name)
        self.assertIsNotNone(last)

    def test_malformed_first(self):
        """Names with stray escapes, missing parts and mandatory extensions are refused."""
        for message in (
            b"",
            b"n,,",
            b"n=user,r=x",
            b"n,,n=user",
            b"n,,n=user,r=",
            b"n,,n=,r=x",
            b"n,,n=us=er,r=x",
            b"n,,n=us=2,r=x",
            b"n,,n=us=2c,r=x",
            b"n,,m=ext,n=user,r=x",
            b"n,,n=user,r=x,m=ext",
            b"p=tls-unique,,n=user,r=x",
            b"n,a=admin,n=user,r=x",
            b"n,,n=us\0er,r=x",
        ):
            self.refused(ServerExchange("sha1", b"s").begin, message)

    def test_acting_as_oneself(self):
        """To name the same user twice is allowed, and so is a client that could bind channels."""
        for message in (b"n,a=user,n=user,r=x", b"n,a=,n=user,r=x", b"y,,n=user,r=x,t=ext"):
            self.assertEqual(ServerExchange("sha1", b"s").begin(message), b"user")

    def test_malformed_final(self):
        """A final message of another login, or cut, or with a proof of another size is refused."""
        proof = b",p=" + b"A" * 27 + b"="
        for message in (
            b"",
            b"c=biws,r=xs",
            b"c=biws,r=xs,p=",
            b"c=biws,r=xs,p=!!!!",
            b"c=biws,r=xs,p=AAAA",
            b"c=eSws,r=xs" + proof,
            b"c=b@,r=xs" + proof,
            b"c=biws,r=xx" + proof,
            b"c=biws,r=xs,m=1" + proof,
        ):
            server = ServerExchange("sha1", b"s")
            server.begin(b"n,,n=user,r=x")
            server.challenge(keys_of("sha1", b"pw"))
            self.refused(server.finish, message)
            self.assertRaises(LocalProtocolError, server.finish, message)

    def test_wrong_proof(self):
        """A well-formed message with any other proof is simply not logged in."""
        server = ServerExchange("sha1", b"s")
        server.begin(b"n,,n=user,r=x")
        server.challenge(keys_of("sha1", b"pw"))
        self.assertIsNone(server.finish(b"c=biws,r=xs,p=" + b"A" * 27 + b"="))

    def test_order(self):
        """Each step can be taken once, in its order."""
        server = ServerExchange("sha1", b"s")
        self.assertRaises(LocalProtocolError, server.challenge, keys_of("sha1", b"pw"))
        self.assertRaises(LocalProtocolError, server.finish, b"c=biws,r=x,p=AAAA")
        server.begin(b"n,,n=user,r=x")
        self.assertRaises(LocalProtocolError, server.begin, b"n,,n=user,r=x")

    def test_own_nonce(self):
        """A nonce that would break the messages is the caller's fault."""
        for nonce in (b"", b"a,b", b"a b", b"\x7f", "ä".encode()):
            self.assertRaises(LocalProtocolError, ServerExchange, "sha1", nonce)
        ServerExchange("sha1", bytes(set(range(0x21, 0x7F)) - {0x2C}))


class DecoyTests(SynchronousTestCase):
    """Users that do not exist."""

    def test_same_question_same_answer(self):
        """Asking twice does not tell that nobody is there; other names and servers differ."""
        one = decoy_keys("sha512", b"secret", b"alice", 4096)
        self.assertEqual(one, decoy_keys("sha512", b"secret", b"alice", 4096))
        self.assertNotEqual(one.salt, decoy_keys("sha512", b"secret", b"bob", 4096).salt)
        self.assertNotEqual(one.salt, decoy_keys("sha512", b"other", b"alice", 4096).salt)

    def test_looks_real(self):
        """Decoys have the sizes of real keys."""
        real = keys_of("sha512", b"pw")
        decoy = decoy_keys("sha512", b"secret", b"alice", FEW, len(real.salt))
        for field in ("salt", "stored_key", "server_key"):
            self.assertEqual(len(getattr(decoy, field)), len(getattr(real, field)))
        self.assertEqual(decoy.iterations, real.iterations)

    def test_no_password_fits(self):
        """Nobody logs in as nobody, and the failure looks like any other."""
        decoy = decoy_keys("sha256", b"secret", b"alice", FEW)
        _, last, _ = log_in("sha256", decoy, b"alice", b"")
        self.assertIsNone(last)


class ClientTests(SynchronousTestCase):
    """What a client accepts."""

    def begun(self) -> ClientExchange:
        client = ClientExchange("sha1", b"user", b"abc")
        client.begin()
        return client

    def test_challenges(self):
        """A challenge must continue the nonce, be whole, and be neither cheap nor ruinous."""
        for message in (
            b"",
            b"r=abc,s=QUFB,i=4096",
            b"r=xyz123,s=QUFB,i=4096",
            b"r=abc1,s=,i=4096",
            b"r=abc1,s=Q,i=4096",
            b"r=abc1,s=QU!FB,i=4096",
            b"r=abc1,s=QUFB",
            b"r=abc1,s=QUFB,i=0",
            b"r=abc1,s=QUFB,i=x",
            b"r=abc1,s=QUFB,i=4095",
            b"r=abc1,s=QUFB,i=1000001",
            b"m=1,r=abc1,s=QUFB,i=4096",
            b"r=abc1,s=QUFB,i=4096,m=1",
        ):
            self.assertRaises(RemoteProtocolError, self.begun().challenged, message)
        self.assertEqual(self.begun().challenged(b"r=abc1,s=QUFB,i=4096,t=x"), (b"AAA", 4096))
        self.assertEqual(self.begun().challenged(b"r=abc1,s=QUFB,i=1000000"), (b"AAA", 1000000))

    def test_server_must_prove_itself(self):
        """A server that does not know the user is found out, whatever it answers."""
        for answer in (b"v=AAAA", b"v=", b"v=!", b"", b"e=other-error"):
            _, _, client = log_in("sha1", keys_of("sha1", b"pw"), b"user", b"pw")
            self.assertRaises(RemoteProtocolError, client.verify, answer)

    def test_order(self):
        """Each step can be taken once, in its order."""
        client = ClientExchange("sha1", b"user", b"abc")
        self.assertRaises(LocalProtocolError, client.prove, b"")
        self.assertRaises(LocalProtocolError, client.verify, b"v=AAAA")
        client.begin()
        self.assertRaises(LocalProtocolError, client.begin)


class PrepareTests(SynchronousTestCase):
    """SASLprep; the examples are those of RFC 4013, section 3."""

    def test_examples(self):
        """Soft hyphens go, compatibility forms are made plain, case stays."""
        for text, prepared in (
            ("I\N{SOFT HYPHEN}X", b"IX"),
            ("user", b"user"),
            ("USER", b"USER"),
            ("\N{FEMININE ORDINAL INDICATOR}", b"a"),
            ("\N{ROMAN NUMERAL NINE}", b"IX"),
            ("a\N{NO-BREAK SPACE}b", b"a b"),
            # A space that Unicode's own compatibility mapping leaves as it is.
            ("a\N{OGHAM SPACE MARK}b", b"a b"),
            ("\N{ARABIC LETTER ALEF}1\N{ARABIC LETTER ALEF}", "\u06271\u0627".encode()),
        ):
            self.assertEqual(prepare(text), prepared)

    def test_prohibited(self):
        """Control characters, mixed directions, surrogates and unassigned letters are refused."""
        for text in ("\x07", "\u06271", "\u0627a\u0627", "\ud800", "\ufffd", "\u0221"):
            self.assertRaises(LocalProtocolError, prepare, text)

    def test_longest(self):
        """1,024 characters are prepared, more are not."""
        self.assertEqual(prepare("a" * 1024), b"a" * 1024)
        self.assertRaises(LocalProtocolError, prepare, "a" * 1025)


class PropertyTests(SynchronousTestCase):
    """Any names, passwords and bytes."""

    @examples(60)
    @given(
        st.sampled_from(sorted(set(DIGESTS.values()))),
        st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name),
        st.binary(max_size=40),
        st.binary(max_size=40),
    )
    def test_right_password_and_no_other(self, digest, name, password, guess):
        """Exactly the right password logs in, and then the client believes the server."""
        keys = keys_of(digest, password)
        seen, last, client = log_in(digest, keys, name, password)
        self.assertEqual(seen, name)
        assert last is not None
        client.verify(last)
        # HMAC pads short keys with zeros: passwords that differ in trailing NULs are the same.
        if guess.rstrip(b"\0") != password.rstrip(b"\0"):
            self.assertIsNone(log_in(digest, keys, name, guess)[1])

    @examples(200)
    @given(st.binary(max_size=80), st.binary(max_size=80))
    def test_any_bytes(self, first, final):
        """Whatever a client sends, it is answered or refused, never anything else."""
        server = ServerExchange("sha1", b"s")
        try:
            server.begin(b"n,,n=" + first)
            server.challenge(keys_of("sha1", b"pw"))
            self.assertIsNone(server.finish(b"c=biws,r=" + final))
        except RemoteProtocolError as error:
            self.assertEqual(error.status, Status.AUTH_ERROR)
