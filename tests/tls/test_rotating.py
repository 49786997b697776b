"""Server endpoints that serve new certificates: what they start, and that it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto
from twisted.internet.defer import fail
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolNegotiationFactory, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kvproto.base.watch import SETTLE_S
from kvproto.config import ClientAuth
from kvproto.errors import CredentialError
from kvproto.testing.certificates import Identity, root_authority
from kvproto.testing.endpoints import MemoryNetwork
from kvproto.tls import (
    ClientContext,
    CredentialFiles,
    RotatingServerEndpoint,
    Rotation,
    ServerPolicy,
    TLSClientEndpoint,
    build_client_context,
)
from kvproto.tls.rotation import RETRIES, RETRY_DELAY
from tests.tls.material import NOW, folder, write_identity

WATCH = 2.0
ROOT = root_authority()


class Client(Protocol):
    """A client on top of TLS."""

    transport: Any


@implementer(IProtocolNegotiationFactory)
class Http(Factory):
    """Speaks two protocols, or one."""

    protocol = Client

    def __init__(self, *protocols: bytes) -> None:
        self.protocols = list(protocols)

    def acceptableProtocols(self) -> list[bytes]:
        return self.protocols


class RotatingCase(SynchronousTestCase):
    """An endpoint in memory over a directory of good files."""

    def setUp(self) -> None:
        self.directory = folder(self)
        self.clock = Clock()
        self.clock.advance(NOW)
        self.network = MemoryNetwork(self.clock)
        self.identity = self.write()
        self.files = CredentialFiles(self.directory / "chain.pem", self.directory / "key.pem")
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def write(self, *names: str) -> Identity:
        identity = ROOT.issue("node", names or ("localhost",))
        write_identity(self.directory, identity)
        return identity

    def make(self, watch: float = WATCH) -> RotatingServerEndpoint:
        endpoint = RotatingServerEndpoint(
            self.network.server_endpoint(), self.files, self.clock, watch=watch, name="web"
        )
        verifyObject(IStreamServerEndpoint, endpoint)
        return endpoint

    def listen(self, endpoint: RotatingServerEndpoint, factory: Any = None) -> Any:
        port: Any = self.successResultOf(endpoint.listen(factory or Factory.forProtocol(Protocol)))
        self.addCleanup(port.stopListening)
        return port

    def wait(self, seconds: float = WATCH + SETTLE_S) -> None:
        self.clock.pump([0.25] * int(seconds / 0.25))

    def connect(self, factory: Any = None) -> Client:
        """Connect and shake hands."""
        context = build_client_context(None, (ROOT.certificate,), at=int(NOW))
        endpoint = TLSClientEndpoint(
            self.network.client_endpoint(), ClientContext(context, "localhost"), self.clock
        )
        client: Any = self.successResultOf(endpoint.connect(factory or Factory.forProtocol(Client)))
        self.network.flush()
        self.addCleanup(self.network.flush)
        self.addCleanup(client.transport.abortConnection)
        assert isinstance(client, Client)
        return client

    def shown(self) -> bytes:
        """Return the certificate that a new client is shown."""
        certificate = self.connect().transport.getPeerCertificate()
        return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def der(identity: Identity) -> bytes:
    """Return a certificate as a client sees it."""
    return identity.certificate.public_bytes(Encoding.DER)


class RotationTests(RotatingCase):
    """What clients are shown."""

    def test_new_certificate(self) -> None:
        """New files are served to new clients; those who are there stay as they are."""
        self.listen(self.make())
        old = self.connect()
        identity = self.write()
        self.assertEqual(self.shown(), der(self.identity))
        self.wait()
        self.assertEqual(self.shown(), der(identity))
        self.assertTrue(old.transport.connected)

    def test_silent_client(self) -> None:
        """A client that says nothing is cut at the deadline, on the endpoint's clock."""
        self.listen(self.make())
        lost: list[object] = []
        silent = Protocol()
        silent.connectionLost = lost.append  # type: ignore[method-assign, assignment]
        self.network.client_endpoint().connect(Factory.forProtocol(lambda: silent))
        self.network.flush()
        self.clock.advance(11)
        self.network.flush()
        self.assertEqual(len(lost), 1)

    def test_bad_files(self) -> None:
        """What cannot be served is logged once, with its reason; the old is served on."""
        self.listen(self.make())
        (self.directory / "key.pem").write_bytes(root_authority().issue("other").key_pem)
        with capturedLogs() as events:
            self.wait(20)
        (line,) = [formatEvent(e) for e in events if e["log_level"] is LogLevel.error]
        self.assertIn("web: reload refused, generation 1 serves on: check: private_key", line)
        self.assertIn("key.pem", line)
        self.assertEqual(self.shown(), der(self.identity))

    def test_fewer_names(self) -> None:
        """A certificate that lacks a name is refused, unless the program means it."""
        endpoint = self.make()
        self.listen(endpoint)
        self.write("elsewhere.example")
        self.wait(20)
        self.assertEqual(endpoint.rotation.current.number, 1)
        verdict = self.successResultOf(endpoint.rotation.reload(allow_fewer_names=True))
        self.assertTrue(verdict.changed)

    def test_without_a_watch(self) -> None:
        """A program may ask for reloads itself."""
        endpoint = self.make(watch=0)
        self.listen(endpoint)
        identity = self.write()
        self.wait(20)
        self.assertEqual(self.shown(), der(self.identity))
        self.successResultOf(endpoint.rotation.reload())
        self.assertEqual(self.shown(), der(identity))

    def test_alpn(self) -> None:
        """What is spoken is negotiated with the application's factory, before and after."""
        self.listen(self.make(), Http(b"h2", b"http/1.1"))
        self.assertEqual(self.connect(Http(b"h2")).transport.negotiatedProtocol, b"h2")
        self.write()
        self.wait()
        client = self.connect(Http(b"http/1.1"))
        self.assertEqual(client.transport.negotiatedProtocol, b"http/1.1")


class EndTests(RotatingCase):
    """Nothing is left of a port that is closed."""

    def test_before_and_after(self) -> None:
        """Nothing runs before the first port and after the last; a new one sees what changed."""
        endpoint = self.make()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        port = self.listen(endpoint)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        port.stopListening()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        identity = self.write()
        self.listen(endpoint)
        self.wait()
        self.assertEqual(self.shown(), der(identity))

    def test_two_ports(self) -> None:
        """The files are watched as long as one of them is open."""
        network = self.network

        class EachItsOwn:
            """Listens on another name each time, as port 0 does."""

            def listen(self, factory: Any) -> Any:
                return network.server_endpoint(str(len(network.ports))).listen(factory)

        below: Any = EachItsOwn()
        endpoint = RotatingServerEndpoint(below, self.files, self.clock)
        first, second = self.listen(endpoint), self.listen(endpoint)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        first.stopListening()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        second.stopListening()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cannot_listen(self) -> None:
        """Where the port cannot be opened nothing is started."""

        class Below:
            def listen(self, _factory: object) -> Any:
                return fail(CannotListenError(None, 443, "taken"))

        below: Any = Below()
        endpoint = RotatingServerEndpoint(below, self.files, self.clock)
        self.failureResultOf(endpoint.listen(Factory()), CannotListenError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reload_under_way(self) -> None:
        """A reload that waits for half-written files ends with the port."""
        endpoint = self.make()
        port = self.listen(endpoint)
        (self.directory / "key.pem").write_bytes(b"")
        verdict = endpoint.rotation.reload()
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)
        port.stopListening()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIn("stopping", self.successResultOf(verdict).reason)


class ProgrammerTests(RotatingCase):
    """`Rotation` and its errors, for a program that has no command line."""

    def test_rotation_alone(self) -> None:
        """Every error names the argument of `CredentialFiles`, and no option of a command."""
        missing = self.directory / "nowhere.pem"
        wrong = self.directory / "wrong.pem"
        wrong.write_bytes(b"no certificate")
        good = self.files
        for argument, files in (
            ("certificate", CredentialFiles(missing)),
            ("certificate", CredentialFiles(self.directory)),
            ("certificate", CredentialFiles(wrong)),
            ("certificate", CredentialFiles(None)),
            ("private_key", CredentialFiles(good.certificate)),
            ("private_key", CredentialFiles(good.certificate, missing)),
            ("private_key", CredentialFiles(good.certificate, wrong)),
            ("passphrase", CredentialFiles(good.certificate, good.private_key, missing)),
            ("client_ca", CredentialFiles(good.certificate, good.private_key, client_ca=wrong)),
            ("crl", CredentialFiles(good.certificate, good.private_key, crl=missing)),
        ):
            for policy in (ServerPolicy(), ServerPolicy(ClientAuth.REQUIRED)):
                error = self.assertRaises(CredentialError, Rotation, files, policy, self.clock)
                self.assertEqual(error.option, argument, str(error))
                self.assertNotRegex(str(error), r"--[a-z]")

    def test_refused_at_once(self) -> None:
        """An endpoint for which there is nothing to serve is not made."""
        files = CredentialFiles(Path("nowhere.pem"))
        self.assertRaises(
            CredentialError, RotatingServerEndpoint, self.network.server_endpoint(), files, Clock()
        )

    def test_retries_are_bounded(self) -> None:
        """Files that stay half written are refused in the end."""
        endpoint = self.make(watch=0)
        self.listen(endpoint)
        (self.directory / "key.pem").write_bytes(b"")
        verdict = endpoint.rotation.reload()
        self.wait((RETRIES + 1) * RETRY_DELAY)
        self.assertIn("is empty", self.successResultOf(verdict).reason)
