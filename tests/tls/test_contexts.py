"""What the contexts that we build do in real handshakes, in memory."""

from __future__ import annotations

import contextlib
import gc
import weakref
from dataclasses import dataclass, field

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.config import ClientAuth
from kvproto.testing.certificates import (
    Authority,
    Identity,
    ca_names,
    client_identity,
    root_authority,
    server_identity,
)
from kvproto.tls.contexts import (
    ClientContext,
    CurrentContext,
    ServerPolicy,
    build_client_context,
    build_server_context,
    verify_failure,
)
from tests.tls.material import carry, credentials_of, crl_of, moment, read_error, shake_hands

VERSIONS = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}
ROOT = root_authority()
TRUST = (ROOT.certificate,)


@dataclass
class Pair:
    """Two connections that have shaken hands, or failed to."""

    server: SSL.Connection
    client: SSL.Connection
    server_error: Exception | None
    client_error: Exception | None

    @property
    def ok(self) -> bool:
        return (self.server_error, self.client_error) == (None, None)


def pair(
    policy: ServerPolicy,
    version: int = SSL.TLS1_3_VERSION,
    *,
    client: Identity | None = None,
    server_context: SSL.Context | None = None,
    client_cas: tuple[Authority, ...] = (ROOT,),
    crls: tuple[bytes, ...] = (),
) -> Pair:
    """Let a client meet a server that follows a policy."""
    context = server_context or build_server_context(
        credentials_of(server_identity(), client_cas, crls), policy
    )
    client_context = build_client_context(credentials_of(client) if client else None, TRUST)
    client_context.set_max_proto_version(version)
    here, there = SSL.Connection(context, None), SSL.Connection(client_context, None)
    return Pair(here, there, *shake_hands(here, there))


class ServerContextTests(SynchronousTestCase):
    """Options of the server's context."""

    def test_versions(self) -> None:
        """TLS 1.2 and 1.3 are served, with forward secrecy and AES-GCM first."""
        for name, version in VERSIONS.items():
            met = pair(ServerPolicy(), version)
            self.assertTrue(met.ok)
            self.assertEqual(met.server.get_protocol_version_name(), name)
            self.assertIn("AES", met.server.get_cipher_name() or "")
            self.assertIn("128", met.server.get_cipher_name() or "")

    def test_old_versions(self) -> None:
        """TLS 1.1 is refused."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_max_proto_version(SSL.TLS1_1_VERSION)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        server = SSL.Connection(
            build_server_context(credentials_of(server_identity()), ServerPolicy()), None
        )
        errors = shake_hands(server, SSL.Connection(context, None))
        self.assertIn("unsupported protocol", str(errors[0]))

    def test_server_orders_ciphers(self) -> None:
        """The server's order of ciphers counts, not the client's."""
        client = build_client_context(None, TRUST)
        client.set_tls13_ciphersuites(b"TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256")
        server = build_server_context(credentials_of(server_identity()), ServerPolicy())
        here, there = SSL.Connection(server, None), SSL.Connection(client, None)
        self.assertEqual(shake_hands(here, there), (None, None))
        self.assertEqual(here.get_cipher_name(), "TLS_AES_128_GCM_SHA256")

    def resumes(self, server: SSL.Context, client: SSL.Context) -> bool:
        """Connect twice, offer the first session the second time; return whether it was taken."""
        first = SSL.Connection(client, None)
        before = SSL.Connection(server, None)
        self.assertEqual(shake_hands(before, first), (None, None))
        carry(before, first)
        read_error(first)
        second = SSL.Connection(client, None)
        session = first.get_session()
        assert session is not None
        second.set_session(session)
        here = SSL.Connection(server, None)
        states: list[bytes] = []
        here.set_info_callback(
            lambda connection, _where, _ret: states.append(connection.get_state_string())
        )
        self.assertEqual(shake_hands(here, second), (None, None))
        return not any(b"write certificate" in state for state in states)

    def test_no_session_survives(self) -> None:
        """A client that offers an earlier session gets a full handshake, with client auth too."""
        credentials = credentials_of(server_identity(), (ROOT,))
        for auth in (ClientAuth.NONE, ClientAuth.REQUIRED):
            for version in VERSIONS.values():
                client = build_client_context(credentials_of(client_identity()), TRUST)
                client.set_max_proto_version(version)
                server = build_server_context(credentials, ServerPolicy(auth))
                self.assertFalse(self.resumes(server, client))

    def test_stock_context_resumes(self) -> None:
        """Guard: a context without our options does resume, so the test above can see it."""
        for version in VERSIONS.values():
            stock = SSL.Context(SSL.TLS_METHOD)
            stock.use_certificate(server_identity().certificate)
            stock.use_privatekey(server_identity().key)
            client = SSL.Context(SSL.TLS_METHOD)
            client.set_max_proto_version(version)
            self.assertTrue(self.resumes(stock, client))

    def renegotiates(self, policy: ServerPolicy) -> bool:
        """Let a TLS 1.2 client ask for a new handshake; return whether it got one."""
        client = build_client_context(None, TRUST, allow_renegotiation=True)
        client.set_max_proto_version(SSL.TLS1_2_VERSION)
        server = build_server_context(credentials_of(server_identity()), policy)
        here, there = SSL.Connection(server, None), SSL.Connection(client, None)
        self.assertEqual(shake_hands(here, there), (None, None))
        finished = there.get_finished()
        there.renegotiate()
        for _ in range(4):
            # The server learns of a ClientHello by reading, as it would in service.
            for one, other, drive in ((there, here, there.do_handshake), (here, there, None)):
                with contextlib.suppress(SSL.Error):
                    drive() if drive else one.recv(1)
                carry(one, other)
        return there.get_finished() != finished

    def test_renegotiation_refused(self) -> None:
        """A TLS 1.2 client gets no new handshake."""
        self.assertFalse(self.renegotiates(ServerPolicy()))

    def test_renegotiation_allowed(self) -> None:
        """With leave, a TLS 1.2 client gets a new handshake."""
        self.assertTrue(self.renegotiates(ServerPolicy(allow_renegotiation=True)))

    def test_whole_chain_is_sent(self) -> None:
        """The client receives the chain as configured and nothing from the trust store."""
        identity = ROOT.intermediate("upper").intermediate("lower").issue("node", ["localhost"])
        for chain, length in ((identity, 3), (server_identity(), 1)):
            context = build_server_context(
                credentials_of(chain, (ROOT,)), ServerPolicy(ClientAuth.OPTIONAL)
            )
            met = pair(ServerPolicy(), server_context=context)
            self.assertTrue(met.ok)
            self.assertEqual(len(met.client.get_peer_cert_chain() or ()), length)

    def test_keylog(self) -> None:
        """Each secret is given to the key log, one line a call."""
        lines: list[bytes] = []
        pair(ServerPolicy(keylog=lines.append))
        self.assertEqual(
            {line.split()[0] for line in lines},
            {
                b"SERVER_HANDSHAKE_TRAFFIC_SECRET",
                b"CLIENT_HANDSHAKE_TRAFFIC_SECRET",
                b"EXPORTER_SECRET",
                b"SERVER_TRAFFIC_SECRET_0",
                b"CLIENT_TRAFFIC_SECRET_0",
            },
        )

    def test_keylog_of_a_client(self) -> None:
        """A client's context gives its secrets away in the same form."""
        lines: list[bytes] = []
        server = SSL.Connection(
            build_server_context(credentials_of(server_identity()), ServerPolicy()), None
        )
        client = SSL.Connection(build_client_context(None, TRUST, keylog=lines.append), None)
        self.assertEqual(shake_hands(server, client), (None, None))
        self.assertIn(b"CLIENT_TRAFFIC_SECRET_0", {line.split()[0] for line in lines})

    def test_keylog_that_fails(self) -> None:
        """A key log that cannot be written ends no connection."""

        def full(_line: bytes) -> None:
            raise OSError(28, "No space left on device")

        self.assertTrue(pair(ServerPolicy(keylog=full)).ok)
        self.assertTrue(self.flushLoggedErrors(OSError))


class ClientAuthTests(SynchronousTestCase):
    """Which clients get in, by mode and TLS version."""

    def meet(self, auth: ClientAuth, client: Identity | None, **options: object) -> list[bool]:
        """Return for each TLS version whether the client got in."""
        return [
            (met := pair(ServerPolicy(auth), version, client=client, **options)).ok  # type: ignore[arg-type]
            and read_error(met.client) is None
            for version in VERSIONS.values()
        ]

    def test_table(self) -> None:
        """Mode and certificate decide; a certificate that does not verify never gets in."""
        stranger = Authority.root("stranger").issue("mallory")
        expired = ROOT.issue("late", not_before=moment(-9), not_after=moment(-1))
        server_only = server_identity()
        for auth, client, welcome in (
            (ClientAuth.NONE, None, True),
            (ClientAuth.NONE, stranger, True),
            (ClientAuth.OPTIONAL, None, True),
            (ClientAuth.OPTIONAL, client_identity(), True),
            (ClientAuth.OPTIONAL, stranger, False),
            (ClientAuth.OPTIONAL, expired, False),
            (ClientAuth.REQUIRED, None, False),
            (ClientAuth.REQUIRED, client_identity(), True),
            (ClientAuth.REQUIRED, server_only, True),
            (ClientAuth.REQUIRED, stranger, False),
            (ClientAuth.REQUIRED, expired, False),
        ):
            self.assertEqual(self.meet(auth, client), [welcome] * 2, (auth, client))

    def test_crl(self) -> None:
        """A revoked certificate is refused, another of the same CA is welcome."""
        crl = crl_of(ROOT, [client_identity("eve")])
        self.assertEqual(
            self.meet(ClientAuth.OPTIONAL, client_identity("eve"), crls=(crl,)), [False] * 2
        )
        self.assertEqual(
            self.meet(ClientAuth.OPTIONAL, client_identity("alice"), crls=(crl,)), [True] * 2
        )

    def test_crl_of_a_client(self) -> None:
        """A client that has a revocation list refuses servers in it, and says why."""
        for revoked, phrase in (("eve", None), ("node", "it is revoked")):
            node = ROOT.issue("node", ("localhost",))
            listed = node if revoked == "node" else client_identity(revoked)
            own = credentials_of(client_identity(), (), [crl_of(ROOT, [listed])])
            server = SSL.Connection(
                build_server_context(credentials_of(node), ServerPolicy()), None
            )
            client = SSL.Connection(build_client_context(own, [ROOT.certificate]), None)
            met = shake_hands(server, client)
            self.assertEqual(met == (None, None), phrase is None)
            if phrase is not None:
                self.assertIn(phrase, verify_failure(client))

    def test_reason(self) -> None:
        """Why a certificate was refused can be read from the connection."""
        revoked = crl_of(ROOT, [client_identity("eve")])
        expired = ROOT.issue("late", not_before=moment(-9), not_after=moment(-1))
        stranger = Authority.root("stranger").issue("mallory")
        for client, crls, phrase in (
            (client_identity("eve"), (revoked,), "certificate CN=eve (depth 0): it is revoked"),
            (expired, (), "certificate CN=late (depth 0): it has expired"),
            (stranger, (), "certificate CN=mallory (depth 0): its issuer is not trusted"),
        ):
            for version in VERSIONS.values():
                met = pair(ServerPolicy(ClientAuth.OPTIONAL), version, client=client, crls=crls)
                self.assertEqual(verify_failure(met.server), phrase)

    def test_hostile_names(self) -> None:
        """A stranger's name can neither forge a line of the log nor break the handshake's end."""
        for name, shown in (
            ("x\n2026 root logged in", "CN=x\\n2026 root logged in"),
            ("\x1b[2Jx", "CN=\\x1b[2Jx"),
        ):
            stranger = Authority.root("stranger").issue(name)
            met = pair(ServerPolicy(ClientAuth.OPTIONAL), client=stranger)
            self.assertIn(f"certificate {shown} (depth 0)", verify_failure(met.server))

    def test_no_reason(self) -> None:
        """A connection whose peer was not refused has no reason."""
        self.assertEqual(verify_failure(pair(ServerPolicy()).server), "")

    def test_names_of_cas(self) -> None:
        """Clients are told whose certificates are wanted, unless the list is too long."""
        for cas, sent in ((ca_names(50_000), True), (ca_names(70_000), False)):
            met = pair(ServerPolicy(ClientAuth.OPTIONAL), client_cas=cas)
            self.assertTrue(met.ok)
            self.assertEqual(len(met.client.get_client_ca_list()), len(cas) if sent else 0)


@dataclass
class Generation:
    """The least that a generation is."""

    number: int
    context: SSL.Context


@dataclass
class FakeProtocol:
    """Receives what a connection creator tells its protocol."""

    generation: int = 0
    failures: list[Failure] = field(default_factory=list)

    def failVerification(self, reason: Failure) -> None:
        self.failures.append(reason)


class CurrentContextTests(SynchronousTestCase):
    """New connections use the generation that serves now."""

    def generation(self, number: int) -> Generation:
        context = build_server_context(credentials_of(server_identity()), ServerPolicy())
        return Generation(number, context)

    def test_interface(self) -> None:
        """It is what Twisted's TLS factory wants."""
        verifyObject(IOpenSSLServerConnectionCreator, CurrentContext(self.generation(1)))

    def test_swap(self) -> None:
        """One assignment changes what the next connection gets; earlier ones keep theirs."""
        first, second = self.generation(1), self.generation(2)
        holder = CurrentContext(first)
        protocols = [FakeProtocol(), FakeProtocol()]
        before = holder.serverConnectionForTLS(protocols[0])  # type: ignore[arg-type]
        holder.current = second
        after = holder.serverConnectionForTLS(protocols[1])  # type: ignore[arg-type]
        self.assertIs(before.get_context(), first.context)
        self.assertIs(after.get_context(), second.context)
        self.assertEqual([one.generation for one in protocols], [1, 2])


class ClientContextTests(SynchronousTestCase):
    """A client knows whom it is talking to."""

    def meet(self, hostname: str, identity: Identity) -> tuple[SSL.Connection, FakeProtocol, bool]:
        protocol = FakeProtocol()
        creator = ClientContext(build_client_context(None, TRUST), hostname)
        client = creator.clientConnectionForTLS(protocol)  # type: ignore[arg-type]
        server = SSL.Connection(
            build_server_context(credentials_of(identity), ServerPolicy()), None
        )
        self.server = server
        return client, protocol, shake_hands(server, client) == (None, None)

    def test_interface(self) -> None:
        """It is what Twisted's TLS factory wants."""
        creator = ClientContext(build_client_context(None, TRUST), "localhost")
        verifyObject(IOpenSSLClientConnectionCreator, creator)

    def test_names_and_addresses(self) -> None:
        """DNS names, IPv4 and IPv6 addresses are verified; only names are sent as SNI."""
        for hostname, sni in (("localhost", b"localhost"), ("127.0.0.1", None), ("::1", None)):
            _, protocol, ok = self.meet(hostname, server_identity())
            self.assertTrue(ok, hostname)
            self.assertEqual(protocol.failures, [])
            self.assertEqual(self.server.get_servername(), sni)

    def test_international_name(self) -> None:
        """A name beyond ASCII is verified and sent in its ASCII form."""
        identity = ROOT.issue("node", ["xn--bcher-kva.example"])
        _, _, ok = self.meet("bücher.example", identity)
        self.assertTrue(ok)
        self.assertEqual(self.server.get_servername(), b"xn--bcher-kva.example")

    def test_idna_2008(self) -> None:
        """What IDNA 2003 takes for one name are two: nobody else's certificate will do."""
        for hostname in ("faß.de", "Faß.DE", "fa\N{LATIN SMALL LETTER SHARP S}.de."):
            _, _, ok = self.meet(hostname, ROOT.issue("node", ["xn--fa-hia.de"]))
            self.assertTrue(ok, hostname)
            self.assertEqual(self.server.get_servername(), b"xn--fa-hia.de")
            _, _, ok = self.meet(hostname, ROOT.issue("node", ["fass.de"]))
            self.assertFalse(ok, hostname)

    def test_absolute_name(self) -> None:
        """The dot at its end is no part of the name, in SNI nor in the certificate."""
        _, protocol, ok = self.meet("localhost.", server_identity())
        self.assertTrue(ok, protocol.failures)
        self.assertEqual(self.server.get_servername(), b"localhost")

    def test_no_names(self) -> None:
        """What cannot be a host name is refused before anything is sent."""
        context = build_client_context(None, TRUST)
        for hostname in ("", ".", "a..b", "ä..b", "☃.net", "ä" * 64):
            self.assertRaises(ValueError, ClientContext, context, hostname)

    def test_underscore(self) -> None:
        """Names that are no host names of the strict kind are looked up all the same."""
        _, _, ok = self.meet("kv_1.example", ROOT.issue("node", ["kv_1.example"]))
        self.assertTrue(ok)

    def test_others(self) -> None:
        """Another's certificate ends the handshake, and the protocol is told why."""
        for hostname in ("elsewhere.example", "127.0.0.2", "::2"):
            client, protocol, ok = self.meet(hostname, server_identity())
            self.assertFalse(ok)
            (failure,) = protocol.failures
            self.assertTrue(failure.check(VerificationError))
            self.assertIn("the certificate is for another", verify_failure(client))

    def test_nobody(self) -> None:
        """A certificate that names nobody is nobody's."""
        client, protocol, ok = self.meet("localhost", ROOT.issue("localhost"))
        self.assertFalse(ok)
        self.assertEqual([type(failure) for failure in protocol.failures], [Failure])
        self.assertIn("names nobody", verify_failure(client))

    def test_untrusted(self) -> None:
        """A certificate of an unknown authority is refused before its name is looked at."""
        stranger = Authority.root("stranger").issue("localhost", ["localhost"])
        client, _, ok = self.meet("localhost", stranger)
        self.assertFalse(ok)
        self.assertIn("its issuer is not trusted", verify_failure(client))

    def test_platform_trust(self) -> None:
        """Without trust anchors of its own a client uses the platform's, and refuses ours."""
        client = SSL.Connection(build_client_context(), None)
        server = SSL.Connection(
            build_server_context(credentials_of(server_identity()), ServerPolicy()), None
        )
        self.assertNotEqual(shake_hands(server, client)[1], None)

    def test_protocol_is_let_go(self) -> None:
        """A finished handshake keeps no reference to the protocol."""
        client, protocol, ok = self.meet("localhost", server_identity())
        self.assertTrue(ok)
        gone = weakref.ref(protocol)
        gc.disable()
        self.addCleanup(gc.enable)
        del protocol
        self.assertIsNone(gone())
        self.assertIsNotNone(client)
