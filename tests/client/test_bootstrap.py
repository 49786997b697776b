"""HELLO, login and bucket, as a new connection goes through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from kvproto.client import (
    DEFAULT_FEATURES,
    BucketError,
    Credentials,
    KVClientProtocol,
    LoginError,
    RequestTimeoutError,
    SessionSettings,
)
from kvproto.client.bootstrap import Derive, bootstrap, choose_mechanism, derive_here
from kvproto.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from kvproto.wire.binary import RequestDecoder
from kvproto.wire.constants import Feature, Opcode, Status
from kvproto.wire.frames import Request
from kvproto.wire.hello import decode_features, encode_features
from kvproto.wire.scram import DIGESTS, ServerExchange, derive_keys, salted_password
from tests.client.peer import Answers, agrees, connected, settle

ALICE = Credentials("alice", "secret")
SALT = b"sixteen bytes ok"
ITERATIONS = 4096


def mechanisms(names: bytes) -> Answers:
    """Return answers of a server that offers these mechanisms."""
    return {Opcode.SASL_LIST: lambda request: {"value": names}}


def scram_login(password: bytes, signature: bytes | None = None) -> Answers:
    """Return answers of a server that knows one password, in every SCRAM mechanism.

    A `signature` is what it says instead of its own last word.
    """
    exchanges: list[ServerExchange] = []

    def begin(request: Request) -> dict[str, Any]:
        digest = DIGESTS[request.key]
        exchange = ServerExchange(digest, b"server")
        exchanges.append(exchange)
        exchange.begin(request.value)
        salted = salted_password(digest, password, SALT, ITERATIONS)
        keys = derive_keys(digest, salted, SALT, ITERATIONS)
        return {"status": Status.AUTH_CONTINUE, "value": exchange.challenge(keys)}

    def step(request: Request) -> dict[str, Any]:
        last = exchanges.pop().finish(request.value)
        if last is None:
            return {"status": Status.AUTH_ERROR}
        return {"value": signature or last}

    return {Opcode.SASL_AUTH: begin, Opcode.SASL_STEP: step}


def refuses(status: int) -> Callable[[Request], dict[str, Any]]:
    """Return an answer that is always this status."""
    return lambda request: {"status": status}


class BootstrapTestCase(SynchronousTestCase):
    """A connection to make ready."""

    def begin(
        self,
        settings: SessionSettings,
        answers: Answers,
        *,
        secret: bool = False,
        derive: Derive = derive_here,
    ) -> Deferred[None]:
        self.clock = Clock()
        self.protocol = KVClientProtocol(self.clock)
        self.peer = connected(self.protocol, self.clock, answers)
        if secret:
            directlyProvides(self.peer, ISSLTransport)
        ready = Deferred.fromCoroutine(bootstrap(self.protocol, settings, derive, 5.0))
        settle(self.clock)
        return ready


class HelloTests(BootstrapTestCase):
    """What is negotiated."""

    def test_agreed(self):
        """Features that the server agrees to are noted."""
        ready = self.begin(SessionSettings(), agrees(Feature.JSON, Feature.COLLECTIONS))
        self.successResultOf(ready)
        self.assertEqual(self.protocol.features, {Feature.JSON, Feature.COLLECTIONS})
        self.assertTrue(self.protocol.collections)

    def test_asked(self):
        """Never asked for: answers out of order, and compressed values."""
        self.begin(SessionSettings(agent="me"), {})
        (request,) = self.peer.asked
        self.assertEqual(request.key, b"me")
        self.assertEqual(tuple(decode_features(request.value)), DEFAULT_FEATURES)
        self.assertFalse({Feature.UNORDERED, Feature.SNAPPY} & set(DEFAULT_FEATURES))

    def test_memcached(self):
        """A server that does not know HELLO is told apart, with what to do about it."""
        answers: Answers = {
            Opcode.HELLO: refuses(Status.UNKNOWN_COMMAND),
            Opcode.NOOP: lambda request: None,
        }
        ready = self.begin(SessionSettings(), answers)
        self.assertIn("features=()", str(self.failureResultOf(ready, LoginError).value))

    def test_pushed(self):
        """As many bytes as the agent has follow HELLO: memcached answers nothing before."""
        for size, follow in ((1, 1), (24, 1), (25, 2), (48, 2), (49, 3), (250, 11)):
            for login in (None, ALICE):
                self.setUp()
                self.begin(SessionSettings(credentials=login, agent="a" * size), {})
                sent = RequestDecoder().feed(b"".join(self.peer.writes))
                first = Opcode.NOOP if login is None else Opcode.SASL_LIST
                expected = [Opcode.HELLO, first, *[Opcode.NOOP] * (follow - 1)]
                self.assertEqual([one.opcode for one in sent], expected, size)

    def test_not_said(self):
        """Without features there is no HELLO."""
        self.successResultOf(self.begin(SessionSettings(features=()), {}))
        self.assertEqual(self.peer.writes, [])

    def test_more_than_asked(self):
        """A server that agrees to what was not asked for breaks the protocol."""
        unasked: Answers = {
            Opcode.HELLO: lambda request: {"value": encode_features([Feature.SNAPPY])}
        }
        self.failureResultOf(self.begin(SessionSettings(), unasked), RemoteProtocolError)

    def test_unordered(self):
        """Answers out of order would break get_many(), so they cannot be asked for."""
        self.assertRaises(ConfigError, SessionSettings, features=(Feature.UNORDERED,))

    def test_silent(self):
        """A server that does not answer is given up."""
        ready = self.begin(SessionSettings(credentials=ALICE), {})
        self.clock.advance(5)
        self.failureResultOf(ready, RequestTimeoutError)

    def test_cancelled(self):
        """Cancelling ends whichever step is under way."""
        ready = self.begin(SessionSettings(credentials=ALICE), {})
        ready.cancel()
        self.failureResultOf(ready, CancelledError)


class PlainTests(BootstrapTestCase):
    """Passwords as they are."""

    def test_under_tls(self):
        """Where TLS protects it, PLAIN is the choice; HELLO and the list leave together."""
        answers = {**agrees(), **mechanisms(b"SCRAM-SHA512 PLAIN")}
        ready = self.begin(SessionSettings(ALICE), answers, secret=True)
        self.assertEqual(len(self.peer.writes), 3)
        (request,) = self.peer.asked
        self.assertEqual(request.opcode, Opcode.SASL_AUTH)
        self.assertEqual((request.key, request.value), (b"PLAIN", b"\0alice\0secret"))
        self.peer.reply(request)
        self.successResultOf(ready)

    def test_never_in_the_clear(self):
        """Without TLS the password is not sent, even if nothing else is offered."""
        answers = {**agrees(), **mechanisms(b"PLAIN")}
        ready = self.begin(SessionSettings(ALICE), answers)
        self.assertIn("PLAIN", str(self.failureResultOf(ready, LoginError).value))
        self.assertNotIn(b"secret", b"".join(self.peer.writes))

    def test_in_the_clear_on_demand(self):
        """Who names PLAIN gets it."""
        answers = {**agrees(), **mechanisms(b"PLAIN"), Opcode.SASL_AUTH: lambda request: {}}
        credentials = Credentials("alice", "secret", mechanisms=(b"PLAIN",))
        self.successResultOf(self.begin(SessionSettings(credentials), answers))

    def test_wrong_password(self):
        """A refused login is told as such."""
        answers = {
            **agrees(),
            **mechanisms(b"PLAIN"),
            Opcode.SASL_AUTH: refuses(Status.AUTH_ERROR),
        }
        ready = self.begin(SessionSettings(ALICE), answers, secret=True)
        self.failureResultOf(ready, LoginError)

    def test_no_logins(self):
        """A server without logins does not get a password."""
        answers = {**agrees(), Opcode.SASL_LIST: refuses(Status.UNKNOWN_COMMAND)}
        ready = self.begin(SessionSettings(ALICE), answers, secret=True)
        self.failureResultOf(ready, LoginError)

    def test_not_shown(self):
        """A password is in no text that might reach a log."""
        self.assertNotIn("secret", repr(SessionSettings(ALICE)))


class ScramTests(BootstrapTestCase):
    """Passwords that are proved without being told."""

    def test_each_digest(self):
        """Every mechanism logs in, in both spellings."""
        for mechanism in DIGESTS:
            answers = {**agrees(), **mechanisms(mechanism), **scram_login(b"secret")}
            ready = self.begin(SessionSettings(ALICE), answers)
            self.successResultOf(ready)
            self.assertNotIn(b"secret", b"".join(self.peer.writes))

    def test_best(self):
        """Without TLS the strongest digest offered is the choice."""
        offered = [b"PLAIN", b"SCRAM-SHA1", b"SCRAM-SHA512", b"SCRAM-SHA256"]
        self.assertEqual(choose_mechanism(ALICE, offered, False), b"SCRAM-SHA512")
        self.assertEqual(choose_mechanism(ALICE, offered, True), b"PLAIN")
        self.assertEqual(choose_mechanism(ALICE, offered[1:2], True), b"SCRAM-SHA1")

    def test_named(self):
        """Mechanisms that are named are tried in their order, if they are known here."""
        credentials = Credentials("a", "b", (b"GSSAPI", b"SCRAM-SHA1", b"PLAIN"))
        offered = [b"GSSAPI", b"PLAIN", b"SCRAM-SHA1"]
        self.assertEqual(choose_mechanism(credentials, offered, True), b"SCRAM-SHA1")

    def test_wrong_password(self):
        """A wrong password is a refused login."""
        answers = {**agrees(), **mechanisms(b"SCRAM-SHA1"), **scram_login(b"other")}
        self.failureResultOf(self.begin(SessionSettings(ALICE), answers), LoginError)

    def test_wrong_server(self):
        """A server that does not know the password is found out."""
        answers = {
            **agrees(),
            **mechanisms(b"SCRAM-SHA1"),
            **scram_login(b"secret", signature=b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        }
        self.failureResultOf(self.begin(SessionSettings(ALICE), answers), RemoteProtocolError)

    def test_server_skips_the_proof(self):
        """A server that lets us in without a proof is none that knows us."""
        answers = {
            **agrees(),
            **mechanisms(b"SCRAM-SHA1"),
            Opcode.SASL_AUTH: lambda request: {},
        }
        self.failureResultOf(self.begin(SessionSettings(ALICE), answers), LoginError)

    def test_derived_elsewhere(self):
        """PBKDF2 runs where the caller says, and is waited for."""
        waiting: list[Deferred[bytes]] = []
        asked = []

        def derive(*arguments: Any) -> Deferred[bytes]:
            asked.append(arguments)
            waiting.append(Deferred())
            return waiting[0]

        answers = {**agrees(), **mechanisms(b"SCRAM-SHA256"), **scram_login(b"secret")}
        ready = self.begin(SessionSettings(ALICE), answers, derive=derive)
        self.assertEqual(asked, [("sha256", b"secret", SALT, ITERATIONS)])
        self.assertNoResult(ready)
        waiting[0].callback(salted_password(*asked[0]))
        settle(self.clock)
        self.successResultOf(ready)

    def test_unsendable_password(self):
        """A password that SASLprep forbids is the caller's fault."""
        answers = {**agrees(), **mechanisms(b"SCRAM-SHA1"), **scram_login(b"secret")}
        ready = self.begin(SessionSettings(Credentials("alice", "\x07")), answers)
        self.failureResultOf(ready, LocalProtocolError)


class BucketTests(BootstrapTestCase):
    """Selecting a bucket."""

    def test_selected(self):
        """The bucket is selected last."""
        ready = self.begin(SessionSettings(bucket="things"), agrees())
        (request,) = self.peer.asked
        self.assertEqual((request.opcode, request.key), (Opcode.SELECT_BUCKET, b"things"))
        self.peer.reply(request)
        self.successResultOf(ready)

    def test_refused(self):
        """A bucket that we may not use is told by its name."""
        answers = {**agrees(), Opcode.SELECT_BUCKET: refuses(Status.NO_ACCESS)}
        ready = self.begin(SessionSettings(bucket="things"), answers)
        self.assertIn("'things'", str(self.failureResultOf(ready, BucketError).value))
