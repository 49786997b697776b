"""Who gets a session: certificates as logins, "busy", factories."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import ServerFactory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from kvproto.interfaces import IController, ISecuredTransport
from kvproto.server import KVController, KVServer, KVServerFactory, ServerSettings, UserTable
from kvproto.server.refusal import MAX_HEARD, RefusingProtocol
from kvproto.store import MemoryStore
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.frames import Response
from tests.server.support import NOW, FakeConnection, Link, make_server

GET = encode_request(Opcode.GET, key=b"k", opaque=1)
CHAIN = (b"alice's certificate",)


def server(*, users: bool = True, anonymous: bool | None = None) -> KVServer:
    """Make a server that knows alice and her certificate."""
    return KVServer(
        MemoryStore(lambda: NOW),
        ServerSettings(anonymous=anonymous),
        UserTable.of_passwords({"alice": "secret"} if users else {}, iterations=1),
        lambda chain: "alice" if chain == CHAIN and users else None,
    )


class CertificateTests(SynchronousTestCase):
    """What a client certificate is worth."""

    def status(self, link: Link) -> int:
        return link.responses(GET)[0].status

    def test_known(self) -> None:
        """A certificate of a user is a login; the listener hears of it before any data."""
        connection = FakeConnection(CHAIN)
        link = Link(server(), connection=connection)
        self.assertEqual(connection.users, ["alice"])
        self.assertEqual(self.status(link), Status.NOT_FOUND)

    def test_unknown_where_anonymous(self) -> None:
        """A certificate of nobody is anonymous where that is allowed."""
        for kind in (server(anonymous=True), server(users=False)):
            connection = FakeConnection((b"mallory's",))
            self.assertEqual(self.status(Link(kind, connection=connection)), Status.NOT_FOUND)
            self.assertEqual(connection.users, [""])

    def test_unknown(self) -> None:
        """Elsewhere it is refused, whatever it asks for, and hung up on."""
        for data, answer in (
            (GET, Status.AUTH_ERROR),
            (encode_request(Opcode.HELLO), Status.AUTH_ERROR),
            (
                encode_request(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0alice\0secret"),
                Status.AUTH_ERROR,
            ),
            (
                encode_request(Opcode.SET, key=b"k", value=bytes(1 << 20), extras=bytes(8)),
                Status.AUTH_ERROR,
            ),
        ):
            connection = FakeConnection((b"mallory's",))
            link = Link(server(), connection=connection)
            responses = link.responses(data + GET)
            self.assertEqual([r.status for r in responses], [answer])
            self.assertTrue(link.transport.closed)
            self.assertEqual(connection.errors, ["its certificate names no known user"])
            self.assertEqual(connection.users, [])

    def test_unknown_text(self) -> None:
        """In the text protocol too."""
        connection = FakeConnection((b"mallory's",))
        link = Link(server(), connection=connection)
        heard = link.ask(b"set x 0 0 12\r\nalice secret\r\n")
        self.assertEqual(heard, b"CLIENT_ERROR unauthenticated\r\n")
        self.assertTrue(link.transport.closed)

    def test_none(self) -> None:
        """Without a certificate a password is needed, and does."""
        connection = FakeConnection()
        link = Link(server(), connection=connection)
        self.assertEqual(self.status(link), Status.AUTH_ERROR)
        link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0alice\0secret")
        self.assertEqual(connection.users, ["alice"])
        self.assertEqual(self.status(link), Status.NOT_FOUND)

    def test_failed_login_beside_a_certificate(self) -> None:
        """A wrong password takes nothing from the bearer of a certificate."""
        link = Link(server(), connection=FakeConnection(CHAIN))
        link.call(Opcode.SASL_AUTH, key=b"PLAIN", value=b"\0alice\0guess")
        self.assertEqual(self.status(link), Status.NOT_FOUND)

    def test_text_with_certificate(self) -> None:
        """Clients of the text protocol need no other login."""
        link = Link(server(), connection=FakeConnection(CHAIN))
        self.assertEqual(link.ask(b"get k\r\n"), b"END\r\n")


class SecuredTransport(ScriptedTransport):
    """A transport that has verified its peer by the time of the first data."""

    generation = 1

    def peer_chain(self) -> tuple[bytes, ...]:
        return CHAIN

    def tls_version(self) -> str:
        return "TLSv1.3"


class FactoryTests(SynchronousTestCase):
    """Sessions without listeners."""

    def connect(self, transport: ScriptedTransport) -> Any:
        protocol = KVServerFactory(server()).buildProtocol(None)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return protocol

    def test_plain(self) -> None:
        """The factory is an ordinary one, and its protocols work on any transport."""
        self.assertIsInstance(KVServerFactory(server()), ServerFactory)
        transport = ScriptedTransport()
        self.connect(transport).dataReceived(GET)
        [response] = ResponseDecoder().feed(bytes(transport.received))
        self.assertEqual(response.opaque, 1)

    def test_certificate(self) -> None:
        """Over a secured transport the certificate is a login here too."""
        transport = SecuredTransport()
        directlyProvides(transport, ISecuredTransport)
        self.connect(transport).dataReceived(b"get k\r\n")
        self.assertEqual(bytes(transport.received), b"END\r\n")


class ControllerTests(SynchronousTestCase):
    """What a listener asks for."""

    def setUp(self) -> None:
        self.controller = KVController(make_server())

    def test_interface(self) -> None:
        """It is a controller."""
        verifyObject(IController, self.controller)

    def test_claim(self) -> None:
        """A claim is answered at once, and the listener hears of an anonymous peer."""
        connection = FakeConnection()
        protocol = self.controller.claim(connection)
        transport = ScriptedTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.assertEqual(connection.users, [""])
        protocol.dataReceived(GET)
        self.assertEqual(len(ResponseDecoder().feed(bytes(transport.received))), 1)
        self.controller.too_late(connection)

    def refuse(self) -> tuple[Any, ScriptedTransport]:
        protocol = self.controller.refuse(FakeConnection(), "too many connections")
        self.assertIsInstance(protocol, RefusingProtocol)
        transport = ScriptedTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return protocol, transport

    def test_refuse_binary(self) -> None:
        """Every request of the first read gets "busy", in order, then the connection ends."""
        protocol, transport = self.refuse()
        data = GET + encode_request(Opcode.SET, key=b"k", value=b"v", extras=bytes(8), opaque=2)
        protocol.dataReceived(data[:10])
        self.assertEqual(bytes(transport.received), b"")
        protocol.dataReceived(data[10:])
        answers = [(1, Status.BUSY), (2, Status.BUSY)]
        responses = ResponseDecoder().feed(bytes(transport.received))
        found = [(r.opaque, r.status) for r in responses if isinstance(r, Response)]
        self.assertEqual(found, answers)
        self.assertTrue(transport.closed)
        protocol.dataReceived(GET)
        self.assertEqual(self.controller.server.counters.rejected_connections, 1)

    def test_refuse_text(self) -> None:
        """A text client gets one line."""
        protocol, transport = self.refuse()
        protocol.dataReceived(b"ge")
        protocol.dataReceived(b"t k\r\n")
        self.assertEqual(bytes(transport.received), b"ERROR Too many open connections\r\n")
        self.assertTrue(transport.closed)

    def test_refuse_garbage(self) -> None:
        """Whoever breaks the protocol gets no answer."""
        protocol, transport = self.refuse()
        protocol.dataReceived(b"\x80\0\0\7" + bytes(20))
        self.assertTrue(transport.closed)

    def test_refuse_is_bounded(self) -> None:
        """Whoever talks without end is hung up on."""
        for first in (b"\x80\x01" + bytes(6) + b"\x7f" + bytes(15), b"x"):
            protocol, transport = self.refuse()
            protocol.dataReceived(first)
            for _ in range(MAX_HEARD // 1000 + 1):
                protocol.dataReceived(bytes(1000))
            self.assertTrue(transport.closed)
