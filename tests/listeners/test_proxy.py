"""PROXY headers, read whole, byte by byte and cut anywhere."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import HandoffError
from kvproto.listeners.proxy import V2_LONGEST, V2_PREFIX, ProxyFactory, parse_header
from kvproto.listeners.states import State
from kvproto.testing.scripted import PEER
from tests.examples import examples
from tests.listeners.support import Bench, FakeTransport, Owner, ToldOwner

V1 = b"PROXY TCP4 203.0.113.5 192.0.2.9 4711 11207\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::5 2001:db8::9 4711 11207\r\n"
CLIENT = IPv4Address("TCP", "203.0.113.5", 4711)


def v2(source: str, destination: str, ports: tuple[int, int], tail: bytes = b"") -> bytes:
    """Return a version 2 header for TCP, ``tail`` holding its TLVs."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    body = addresses + b"".join(port.to_bytes(2, "big") for port in ports) + tail
    family = 0x11 if ip_address(source).version == 4 else 0x21
    return V2_PREFIX + bytes((0x21, family)) + len(body).to_bytes(2, "big") + body


class ParseTests(SynchronousTestCase):
    """The header alone."""

    def test_whole_and_at_each_cut(self) -> None:
        """A header is complete or wanted more of; what follows it is not touched."""
        for header in (V1, V1_IPV6, v2("203.0.113.5", "192.0.2.9", (4711, 1), b"\x04\x00\x01x")):
            for cut in range(1, len(header)):
                self.assertIsNone(parse_header(header[:cut]))
            found = parse_header(header + b"\x16\x03\x01")
            assert found is not None
            self.assertEqual(found[0], len(header))
            assert found[1] is not None
            self.assertEqual(getattr(found[1][0], "port", None), 4711)

    def test_ports(self) -> None:
        """The first and the last port of all are ports."""
        found = parse_header(b"PROXY TCP4 1.2.3.4 5.6.7.8 0 65535\r\n")
        assert found is not None
        assert found[1] is not None
        self.assertEqual([getattr(end, "port", None) for end in found[1]], [0, 65535])

    def test_addresses(self) -> None:
        """Source and destination are what the proxy says."""
        self.assertEqual(
            parse_header(v2("2001:db8::5", "2001:db8::9", (1, 2))),
            (52, (IPv6Address("TCP", "2001:db8::5", 1), IPv6Address("TCP", "2001:db8::9", 2))),
        )
        found = parse_header(V1)
        assert found is not None
        self.assertEqual(found[1], (CLIENT, IPv4Address("TCP", "192.0.2.9", 11207)))

    def test_proxy_for_itself(self) -> None:
        """A health check of the proxy, and families without addresses, name nobody."""
        local = V2_PREFIX + b"\x20\x00\x00\x00"
        unix = V2_PREFIX + b"\x21\x31\x00\xd8" + bytes(216)
        self.assertEqual(parse_header(local), (16, None))
        self.assertEqual(parse_header(unix), (232, None))
        self.assertEqual(parse_header(b"PROXY UNKNOWN ffff::1 x\r\n"), (25, None))

    def test_where_it_ends(self) -> None:
        """The first line end closes version 1, whatever lines follow in the same read."""
        header = parse_header(V1)
        self.assertEqual(parse_header(V1 + b"\r\nGET / HTTP/1.1\r\n\r\n"), header)

    def test_longest(self) -> None:
        """107 bytes of version 1, line end included, and 4,096 of version 2; not one more."""
        longest = b"PROXY UNKNOWN " + b"x" * (107 - 16) + b"\r\n"
        self.assertEqual(parse_header(longest), (107, None))
        self.assertRaises(HandoffError, parse_header, b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n")
        local = V2_PREFIX + b"\x20\x00"
        rest = V2_LONGEST - 16
        self.assertEqual(parse_header(local + rest.to_bytes(2) + bytes(rest)), (V2_LONGEST, None))
        for size in (rest + 1, 0x8000, 0xFFFF):
            self.assertRaises(HandoffError, parse_header, local + size.to_bytes(2))

    def test_refused(self) -> None:
        """Everything else is refused with a reason, and no unbounded header is kept."""
        for bad in (
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01\x02",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            b"PROXY TCP4 1.2.3.4 ::1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 x\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
            b"PROXY TCP4 ::1 5.6.7.8 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
            b"PROXY TCP4 1.2.3.4 \xff 1 2\r\n",
            b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
            b"PROXY TCP6 ::1 fe80::2%9 1 2\r\n",
            b"PROXY TCP6 fe80::1%a\nforged\x1b[31m ::2 1 2\r\n",
            b"PROXY TCP6 ::1\n ::2 1 2\r\n",
            b"PROXY TCP6 ::ffff:1.2.3.4\x00 ::2 1 2\r\n",
            b"PROXY \r\n",
            b"PROXY " + b"x" * 101,
            V2_PREFIX + b"\x11\x11\x00\x0c",
            V2_PREFIX + b"\x22\x11\x00\x0c",
            V2_PREFIX + b"\x21\x11\x00\x04" + bytes(4),
            V2_PREFIX + b"\x21\x11" + V2_LONGEST.to_bytes(2, "big"),
        ):
            self.assertRaises(HandoffError, parse_header, bad)

    @examples(100)
    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        """No bytes make it do anything but answer or refuse."""
        for start in (b"", b"PROXY ", V2_PREFIX, V2_PREFIX + b"\x21\x11\x00\x0c"):
            try:
                found = parse_header(start + data)
            except HandoffError:
                continue
            if found is not None:
                self.assertLessEqual(found[0], len(start + data))

    @examples(100)
    @given(st.ip_addresses(), st.data(), st.tuples(*[st.integers(0, 65535)] * 2))
    def test_as_twisted(self, source: Any, data: Any, ports: tuple[int, int]) -> None:
        """Twisted's parsers read the same addresses out of the same headers."""
        destination = data.draw(st.ip_addresses(v=source.version))
        line = f"PROXY TCP{source.version} {source} {destination} {ports[0]} {ports[1]}\r\n"
        for header, parser in (
            (line.encode(), V1Parser()),
            (v2(str(source), str(destination), ports), V2Parser()),
        ):
            ours = parse_header(header)
            theirs: Any = parser.feed(header)[0]
            assert ours is not None
            assert ours[1] is not None
            for mine, other in zip(ours[1], (theirs.source, theirs.destination), strict=True):
                assert isinstance(mine, IPv4Address | IPv6Address)
                assert isinstance(other, IPv4Address | IPv6Address)
                self.assertEqual(
                    (ip_address(mine.host), mine.port), (ip_address(other.host), other.port)
                )


class ProxyProtocolTests(SynchronousTestCase):
    """The header in front of a handoff."""

    def connect(self) -> tuple[Bench, Any, FakeTransport]:
        bench = Bench()
        protocol = ProxyFactory(bench.factory).buildProtocol(PEER)
        transport = FakeTransport()
        transport.connect(protocol)
        return bench, protocol, transport

    def test_peer_is_the_client(self) -> None:
        """Without TLS the end of the header ends the handshake, and the client is the peer."""
        for step in (1, 7, 1000):
            bench, protocol, _ = self.connect()
            data = V1 + b"request"
            for start in range(0, len(data), step):
                protocol.dataReceived(data[start : start + step])
            (connection,) = bench.controller.claimed
            self.assertEqual(connection.peer, CLIENT)
            self.assertEqual(bench.controller.owners[0].received, b"request")

    def test_owner_found_later(self) -> None:
        """After the header reads go on to whoever reads by then."""
        bench, protocol, _ = self.connect()
        bench.controller.answer = "later"
        protocol.dataReceived(V1 + b"one ")
        owner = Owner()
        bench.controller.pending[0].callback(owner)
        protocol.dataReceived(b"two")
        self.assertEqual(owner.received, b"one two")

    def test_no_header(self) -> None:
        """A peer that sends no header is cut, and the ledger knows why."""
        bench, protocol, transport = self.connect()
        (entry,) = bench.ledger.entries()
        protocol.dataReceived(b"\x16\x03\x01")
        protocol.dataReceived(b"more of it")
        self.assertTrue(transport.aborted)
        transport.lose()
        self.assertEqual(entry.reason, "no PROXY header")
        self.assertEqual(bench.ledger.status()["ended_total"], {"handshake failed": 1})

    def test_silent_peer(self) -> None:
        """A peer that never sends its header is gone at the handshake's deadline."""
        bench, protocol, transport = self.connect()
        protocol.dataReceived(V1[:20])
        bench.clock.advance(bench.timeouts.handshake)
        self.assertTrue(transport.aborted)

    def test_peer_ends_its_side(self) -> None:
        """Behind the header the end is handed on; before it there is nothing to answer."""
        bench, protocol, transport = self.connect()
        protocol.readConnectionLost()
        self.assertEqual(transport.calls, ["lose"])
        self.assertEqual(bench.controller.claimed, [])

        bench, protocol, transport = self.connect()
        owner = ToldOwner()
        bench.controller.answer = owner
        protocol.dataReceived(V1 + b"request")
        protocol.readConnectionLost()
        self.assertEqual(owner.told, 1)
        self.assertEqual(transport.calls, [])

    def test_wrapped_cannot_be_told_of_the_end(self) -> None:
        """A protocol that knows no half-closed connections is closed."""
        protocol = ProxyFactory(Factory.forProtocol(Protocol)).buildProtocol(PEER)
        transport = FakeTransport()
        transport.connect(protocol)
        protocol.dataReceived(V1)
        protocol.readConnectionLost()
        self.assertEqual(transport.calls, ["lose"])

    def test_reason_of_the_end(self) -> None:
        """Why a connection with a sound header ended is handed on as it is."""
        bench, protocol, transport = self.connect()
        protocol.dataReceived(V1)
        reason = ConnectionDone()
        transport.lose(reason)
        (lost,) = bench.controller.owners[0].lost
        self.assertIs(lost.value, reason)

    def test_addresses_of_the_transport(self) -> None:
        """The protocol says the client's addresses once it knows them."""
        bench, protocol, transport = self.connect()
        self.assertEqual(protocol.getPeer(), PEER)
        self.assertEqual(protocol.getHost(), transport.getHost())
        protocol.dataReceived(V1.replace(b"192.0.2.9", b"192.0.2.8"))
        self.assertEqual(protocol.getPeer(), CLIENT)
        self.assertEqual(protocol.getHost(), IPv4Address("TCP", "192.0.2.8", 11207))
        self.assertIs(bench.ledger.entries()[0].state, State.OWNED)
