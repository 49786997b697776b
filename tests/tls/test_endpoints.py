"""Endpoint strings, from the plugin to a handshake over an in-memory reactor."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    clientFromString,
    serverFromString,
)
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from kvproto.errors import ConfigError, CredentialError
from kvproto.testing.certificates import client_identity, root_authority, server_identity
from kvproto.tls.contexts import build_client_context
from kvproto.tls.endpoints import BACKLOG, parse_client, parse_server
from kvproto.tls.protocol import KVTLSProtocol
from tests.reactors import ResolvingReactor
from tests.tls.material import NOW, credentials_of, crl_of, folder, shake_hands, write_identity


@dataclass
class Material:
    """Paths of files as they are written in strings."""

    chain: Path
    key: Path
    ca: Path
    both: Path
    secret: Path


class Told:
    """A protocol that a handshake tells of its verification."""

    generation = 0

    def failVerification(self, _reason: object) -> None:
        """Hear about it."""


class EndpointsCase(SynchronousTestCase):
    """Files, and a reactor that opens nothing."""

    def setUp(self) -> None:
        directory = folder(self)
        write_identity(directory, server_identity(), client_ca=root_authority())
        self.files = Material(
            *(directory / name for name in ("chain.pem", "key.pem", "ca.pem", "both.pem", "secret"))
        )
        self.files.both.write_bytes(self.files.chain.read_bytes() + self.files.key.read_bytes())
        self.files.secret.write_bytes(b"sesame\n")
        self.reactor: Any = ResolvingReactor()
        self.reactor.advance(NOW)

    def server(self, text: str, **paths: Path) -> Any:
        return serverFromString(self.reactor, text.format(f=self.files))

    def client(self, text: str) -> Any:
        return clientFromString(self.reactor, text.format(f=self.files))


class ServerStringTests(EndpointsCase):
    """``kvtls:`` for servers."""

    def listen(self, text: str) -> Any:
        endpoint = self.server(text)
        verifyObject(IStreamServerEndpoint, endpoint)
        self.successResultOf(endpoint.listen(Factory.forProtocol(Protocol)))
        return endpoint

    def test_ports(self) -> None:
        """Port and address, IPv4 and IPv6, by position or by name."""
        for text, port, interface in (
            ("kvtls:11207:certificate={f.both}", 11207, ""),
            ("kvtls:port=11207:certificate={f.both}", 11207, ""),
            (
                "kvtls:0:interface=127.0.0.1:certificate={f.chain}:privateKey={f.key}",
                0,
                "127.0.0.1",
            ),
            ("kvtls:11207:interface=\\:\\:1:certificate={f.both}", 11207, "::1"),
        ):
            self.listen(text)
            listened = self.reactor.tcpServers.pop()
            self.assertEqual((listened[0], listened[2], listened[3]), (port, BACKLOG, interface))

    def test_kind(self) -> None:
        """The address decides of which kind the socket is; the port may be the last one."""
        for interface, kind in (("", TCP4ServerEndpoint), ("\\:\\:1", TCP6ServerEndpoint)):
            text = f"kvtls:65535:interface={interface}:certificate={{f.both}}"
            self.assertIs(type(self.server(text).endpoint), kind)

    def test_backlog(self) -> None:
        """The backlog can be given."""
        self.listen("kvtls:11207:certificate={f.both}:backlog=7")
        self.assertEqual(self.reactor.tcpServers[0][2], 7)

    def test_revoked(self) -> None:
        """A client whose certificate is in the list of ``crl=`` is refused, others are not."""
        list_ = folder(self) / "crl.pem"
        list_.write_bytes(crl_of(root_authority(), [client_identity("eve")]))
        server = self.server(f"kvtls:0:certificate={{f.both}}:clientCA={{f.ca}}:crl={list_}")
        for name, welcome in (("alice", True), ("eve", False)):
            here = server.contexts.serverConnectionForTLS(Told())
            context = build_client_context(
                credentials_of(client_identity(name)), [root_authority().certificate]
            )
            met = shake_hands(here, SSL.Connection(context, None))
            self.assertEqual(met == (None, None), welcome, name)

    def test_unix(self) -> None:
        """A UNIX socket instead of a port."""
        self.listen("kvtls:unix=/run/kv.sock:certificate={f.both}")
        path, _, backlog, *_ = self.reactor.unixServers[0]
        self.assertEqual((path, backlog), ("/run/kv.sock", BACKLOG))

    def test_wrapped(self) -> None:
        """Any other endpoint instead of a port."""
        self.listen("kvtls:endpoint=tcp\\:7\\:interface=127.0.0.1:certificate={f.both}")
        self.assertEqual(self.reactor.tcpServers[0][0], 7)
        self.listen("kvtls:endpoint=unix\\:/run/kv.sock:certificate={f.both}")
        self.assertEqual(self.reactor.unixServers[0][0], "/run/kv.sock")

    def test_protocol(self) -> None:
        """Connections speak through our TLS protocol, on the reactor's clock."""
        self.listen("kvtls:11207:certificate={f.both}")
        factory = self.reactor.tcpServers[0][1]
        protocol = factory.buildProtocol(None)
        self.assertIsInstance(protocol, KVTLSProtocol)
        protocol.handshake_timeout = 10
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.reactor.advance(11)
        self.assertFalse(transport.connected)

    def test_positional_endpoint(self) -> None:
        """Another endpoint may stand in the place of the port."""
        self.listen("kvtls:tcp\\:7:certificate={f.chain}:key={f.key}")
        self.assertEqual(self.reactor.tcpServers[0][0], 7)
        self.listen("kvtls:unix\\:/run/kv.sock:certificate={f.both}")
        self.assertEqual(self.reactor.unixServers[0][0], "/run/kv.sock")

    def verify_mode(self, text: str) -> int:
        context = self.server(text).contexts.current.context
        assert isinstance(context, SSL.Context)
        return context.get_verify_mode()

    def test_client_auth(self) -> None:
        """Client certificates are asked for as the string says."""
        required = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        for words, mode in (
            ("", SSL.VERIFY_NONE),
            (":clientAuth=none", SSL.VERIFY_NONE),
            (":clientCA={f.ca}", SSL.VERIFY_PEER),
            (":clientCA={f.ca}:clientAuth=none", SSL.VERIFY_NONE),
            (":clientCA={f.ca}:clientAuth=optional", SSL.VERIFY_PEER),
            (":clientCA={f.ca}:clientAuth=required", required),
        ):
            self.assertEqual(self.verify_mode("kvtls:0:certificate={f.both}" + words), mode, words)

    def test_encrypted_key(self) -> None:
        """An encrypted key is opened by the passphrase file."""
        self.files.key.write_bytes(server_identity().encrypted_key_pem(b"sesame"))
        endpoint = self.server(
            "kvtls:0:certificate={f.chain}:privateKey={f.key}:passphraseFile={f.secret}"
        )
        self.assertEqual(endpoint.contexts.current.number, 1)

    def test_watched(self) -> None:
        """With ``watch=`` new files are served while the port is open; the log names it."""
        endpoint = self.listen(
            "kvtls:11207:certificate={f.both}:clientCA={f.ca}:clientAuth=required:watch=2"
        )
        required = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        self.assertEqual(endpoint.contexts.current.context.get_verify_mode(), required)
        factory = self.reactor.tcpServers[0][1]
        factory.doStart()
        new = root_authority().issue("node", ("localhost", "127.0.0.1", "::1"))
        self.files.both.write_bytes(new.chain_pem + new.key_pem)
        with capturedLogs() as events:
            self.reactor.pump([0.5] * 40)
        self.assertEqual(endpoint.contexts.current.number, 2)
        self.assertTrue(any("kvtls:11207: " in formatEvent(event) for event in events), events)
        factory.doStop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_refused(self) -> None:
        """Each mistake names its parameter."""
        for text, option, phrase in (
            ("kvtls:0", "certificate=", "is missing"),
            ("kvtls:certificate={f.both}", "port=", "'' is no number"),
            ("kvtls:x:certificate={f.both}", "port=", "'x' is no number from 0 to 65535"),
            ("kvtls:65536:certificate={f.both}", "port=", "is no number"),
            ("kvtls:0:certificate={f.both}:backlog=-1", "backlog=", "is no number"),
            ("kvtls:0:certificate={f.both}:backlog=65536", "backlog=", "is no number"),
            (
                "kvtls:certificate={f.both}:endpoint=tcp\\:1:interface=x",
                "interface=",
                "with 'tcp:1'",
            ),
            ("kvtls:0:certificate={f.both}:watch=inf", "watch=", "no number of seconds from 0 on"),
            ("kvtls:0:certificate={f.both}:cert=x", "cert=", "is no parameter of a kvtls endpoint"),
            ("kvtls:0:127.0.0.1:certificate={f.both}", "127.0.0.1", "one word too many"),
            ("kvtls:0:certificate={f.both}:clientAuth=yes", "clientAuth=", "none of none, opt"),
            ("kvtls:0:certificate={f.both}:clientAuth=required", "clientCA=", "is missing"),
            ("kvtls:0:certificate={f.both}:unix=/x", "port=", "together with '/x'"),
            ("kvtls:0:certificate={f.both}:endpoint=tcp\\:1", "port=", "together with 'tcp:1'"),
            ("kvtls:unix=/x:interface=\\:\\::certificate={f.both}", "interface=", "with '/x'"),
            ("kvtls:unix=/x:endpoint=tcp\\:1:certificate={f.both}", "unix=", "with 'tcp:1'"),
            ("kvtls:tcp\\:1:endpoint=tcp\\:2:certificate={f.both}", "endpoint=", "with 'tcp:1'"),
            ("kvtls:0:certificate={f.chain}:key={f.key}:privateKey=x", "privateKey=", "together"),
            ("kvtls:tcp\\:1\\:backlog=2:certificate={f.both}", "tcp:1:backlog", "after endpoint="),
            ("kvtls:0:certificate={f.both}:watch=soon", "watch=", "no number of seconds from 0 on"),
            ("kvtls:0:certificate={f.both}:watch=-1", "watch=", "no number of seconds from 0 on"),
            ("kvtls:0:certificate={f.both}:watch=nan", "watch=", "no number of seconds from 0 on"),
        ):
            error = self.assertRaises(ConfigError, self.server, text)
            self.assertEqual(error.option, option)
            self.assertIn(phrase, str(error), text)

    def test_bad_credentials(self) -> None:
        """Credentials that cannot be served are refused when the string is read."""
        self.files.key.write_bytes(client_identity().key_pem)
        error = self.assertRaises(
            CredentialError, self.server, "kvtls:0:certificate={f.chain}:privateKey={f.key}"
        )
        self.assertEqual((error.option, error.path), ("privateKey=", self.files.key))
        error = self.assertRaises(
            CredentialError, self.server, "kvtls:0:certificate={f.chain}:key={f.key}:watch=2"
        )
        self.assertEqual((error.option, error.path), ("key=", self.files.key))


class ClientStringTests(EndpointsCase):
    """``kvtls:`` for clients."""

    def test_connect(self) -> None:
        """Host and port are dialled, and the result is the application's protocol."""
        endpoint = self.client(
            "kvtls:127.0.0.1:11207:caCertificate={f.ca}:timeout=7:bindAddress=127.0.0.2"
        )
        verifyObject(IStreamClientEndpoint, endpoint)
        connecting = endpoint.connect(Factory.forProtocol(Protocol))
        self.reactor.advance(1)
        host, port, factory, timeout, source = self.reactor.tcpClients[0]
        self.assertEqual((host, port, timeout), ("127.0.0.1", 11207, 7))
        self.assertEqual(source, ("127.0.0.2", 0))
        self.assertNoResult(connecting)
        tls = factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = tls
        tls.makeConnection(transport)
        self.assertTrue(self.successResultOf(connecting).connected)
        self.reactor.advance(11)
        self.assertFalse(transport.connected)

    def test_wrapped(self) -> None:
        """Any other endpoint can be below."""
        endpoint = self.client(
            "kvtls:endpoint=unix\\:/run/kv.sock:hostname=localhost:caCertificate={f.ca}"
        )
        endpoint.connect(Factory.forProtocol(Protocol)).addErrback(lambda _failure: None)
        self.assertEqual(self.reactor.unixClients[0][0], "/run/kv.sock")

    def handshake(self, text: str, client_auth: str = "none") -> bool:
        """Let the client of a string meet a server; return whether it accepts."""
        server = self.server(
            f"kvtls:0:certificate={{f.both}}:clientCA={{f.ca}}:clientAuth={client_auth}"
        )
        here = server.contexts.serverConnectionForTLS(Told())
        there = self.client(text).context.clientConnectionForTLS(Told())
        return shake_hands(here, there) == (None, None)

    def test_who_is_verified(self) -> None:
        """The host, or the name given instead, must be the certificate's; addresses too."""
        ca = ":caCertificate={f.ca}"
        for text, good in (
            ("kvtls:localhost:1" + ca, True),
            ("kvtls:127.0.0.1:1" + ca, True),
            ("kvtls:\\:\\:1:1" + ca, True),
            ("kvtls:10.0.0.1:1" + ca, False),
            ("kvtls:kv.example:1" + ca, False),
            ("kvtls:kv.example:1:hostname=localhost" + ca, True),
            ("kvtls:localhost:1:hostname=kv.example" + ca, False),
            ("kvtls:localhost:1", False),
        ):
            self.assertEqual(self.handshake(text), good, text)

    def test_platform(self) -> None:
        """Without caCertificate those are trusted that the platform trusts."""
        before = os.environ.pop("SSL_CERT_FILE", None)
        if before is not None:
            self.addCleanup(os.environ.__setitem__, "SSL_CERT_FILE", before)
        self.addCleanup(os.environ.pop, "SSL_CERT_FILE", None)
        for name, good in ((self.files.ca, True), (self.files.both, False)):
            os.environ["SSL_CERT_FILE"] = str(name)
            self.assertEqual(self.handshake("kvtls:localhost:1"), good, name)

    def test_client_certificate(self) -> None:
        """A client shows its certificate, which need not be good for servers."""
        identity = root_authority().issue("alice", usages=[ExtendedKeyUsageOID.CLIENT_AUTH])
        mine = folder(self) / "alice.pem"
        mine.write_bytes(identity.chain_pem + identity.key_pem)
        text = "kvtls:localhost:1:caCertificate={f.ca}"
        self.assertTrue(self.handshake(f"{text}:certificate={mine}", "required"))
        self.assertFalse(self.handshake(text, "required"))
        (chain := mine.with_name("chain.pem")).write_bytes(identity.chain_pem)
        (own := mine.with_name("key.pem")).write_bytes(identity.encrypted_key_pem(b"sesame"))
        for word in ("key", "privateKey"):
            words = f":certificate={chain}:{word}={own}:passphraseFile={{f.secret}}"
            self.assertTrue(self.handshake(text + words, "required"), word)

    def test_server_only_certificate(self) -> None:
        """A certificate that is for servers only is refused on the client's side."""
        identity = root_authority().issue("node", usages=[ExtendedKeyUsageOID.SERVER_AUTH])
        mine = folder(self) / "node.pem"
        mine.write_bytes(identity.chain_pem + identity.key_pem)
        error = self.assertRaises(CredentialError, self.client, f"kvtls:a:1:certificate={mine}")
        self.assertIn("forbids clientAuth", str(error))

    def test_refused(self) -> None:
        """Each mistake names its parameter."""
        for text, option, phrase in (
            ("kvtls:", "hostname=", "is missing"),
            ("kvtls:localhost", "port=", "'' is no number"),
            ("kvtls:localhost:http", "port=", "'http' is no number"),
            ("kvtls:localhost:65536", "port=", "'65536' is no number"),
            ("kvtls:localhost:1:timeout=-1", "timeout=", "no number of seconds above 0"),
            ("kvtls:localhost:1:2", "2", "one word too many"),
            ("kvtls:localhost:1:timeout=soon", "timeout=", "'soon' is no number of seconds"),
            ("kvtls:localhost:1:timeout=nan", "timeout=", "is no number of seconds"),
            ("kvtls:localhost:1:timeout=0", "timeout=", "is no number of seconds"),
            ("kvtls:localhost:1:verify=no", "verify=", "is no parameter"),
            ("kvtls:a:1:endpoint=tcp\\:b\\:1", "host=", "together with 'tcp:b:1'"),
            ("kvtls:hostname=a:port=1:endpoint=tcp\\:b\\:1", "port=", "together with 'tcp:b:1'"),
            ("kvtls:hostname=a:bindAddress=c:endpoint=tcp\\:b\\:1", "bindAddress=", "together"),
            ("kvtls:endpoint=tcp\\:b\\:1", "hostname=", "is missing"),
            ("kvtls:a..b:1", "hostname=", ""),
            ("kvtls:localhost:1:caCertificate={f.key}", "caCertificate=", "holds no certificate"),
            ("kvtls:localhost:1:caCertificate=/nowhere", "caCertificate=", "no such file"),
        ):
            error = self.assertRaises(ConfigError, self.client, text)
            self.assertEqual(error.option, option, text)
            self.assertIn(phrase, str(error), text)


class PluginTests(SynchronousTestCase):
    """What the plugin file costs those who only list plugins."""

    def test_listing_imports_nothing(self) -> None:
        """Listing service makers and endpoint parsers does not import kvproto."""
        code = (
            "import sys\n"
            "from twisted.plugin import getPlugins\n"
            "from twisted.internet.interfaces import IStreamServerEndpointStringParser as S\n"
            "from twisted.internet.interfaces import "
            "IStreamClientEndpointStringParserWithReactor as C\n"
            "print([p.prefix for i in (S, C) for p in getPlugins(i) if p.prefix == 'kvtls'])\n"
            "print(sorted(m for m in sys.modules if m.startswith('kvproto')))\n"
        )
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
        )
        self.assertEqual(told.stdout.splitlines(), ["['kvtls', 'kvtls']", "[]"])

    def test_parsers_lead_here(self) -> None:
        """The plugin's parsers call this room's functions."""
        reactor: Any = MemoryReactorClock()
        for parse, words in ((parse_server, ("x",)), (parse_client, ("localhost", "x"))):
            self.assertRaises(ConfigError, parse, reactor, *words)
