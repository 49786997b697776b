"""PROXY protocol v1 and v2 in, before TLS: who the client behind a load balancer is.

A listener expects the header on *every* connection or on none: whoever may connect to
such a listener may claim any address, so its port belongs behind the load balancer only.

`twisted.protocols.haproxy` is not used: its parsers are private, it wants the first 16
bytes in one read, keeps up to 64 KiB and closes without a reason.  A test compares our
answers with its parsers'.

Source: haproxy ``doc/proxy-protocol.txt``, sections 2.1 and 2.2.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.errors import HandoffError

__all__ = ["ProxyFactory", "ProxyProtocol", "parse_header"]

V1_PREFIX = b"PROXY "
V1_LONGEST = 107
"""Bytes of the longest version 1 header, line end included; the document counts them."""

V2_PREFIX = b"\r\n\r\n\x00\r\nQUIT\n"
V2_FIXED = 16
V2_LONGEST = 4096
"""Bytes of a version 2 header that we are willing to keep: addresses take 216 at most, TLVs
that carry a client certificate a few kilobytes."""

_V2_ADDRESSES = {0x1: "!4s4sHH", 0x2: "!16s16sHH"}
"""Family nibble: layout of the addresses; Unix sockets name no peer."""

Pair = tuple[IAddress, IAddress]


def parse_header(data: bytes) -> tuple[int, Pair | None] | None:
    """Read a PROXY header from the beginning of a stream.

    Args:
        data: Everything received so far.

    Returns:
        The length of the header and its (source, destination), None for "the proxy speaks
        for itself" or an address family without addresses; None as long as the header is
        incomplete.

    Raises:
        HandoffError: This is no PROXY header that we accept.
    """
    if data.startswith(V1_PREFIX[: len(data)]):
        return _parse_v1(data)
    if data.startswith(V2_PREFIX[: len(data)]):
        return _parse_v2(data)
    raise HandoffError("no PROXY header")


def _parse_v1(data: bytes) -> tuple[int, Pair | None] | None:
    """Read the line of version 1."""
    end = data.find(b"\r\n", 0, V1_LONGEST)
    if end < 0:
        if len(data) >= V1_LONGEST:
            raise HandoffError("PROXY header longer than 107 bytes")
        return None
    fields = data[:end].split(b" ")
    if fields[1] == b"UNKNOWN":
        return end + 2, None
    if len(fields) != 6 or fields[1] not in {b"TCP4", b"TCP6"}:
        raise HandoffError("malformed PROXY header")
    version = 4 if fields[1] == b"TCP4" else 6
    if b"%" in data[:end]:
        # Python takes a zone behind an IPv6 address, whatever it consists of; inet_pton, which
        # the specification means, takes none.
        raise HandoffError("malformed address in PROXY header: it has a zone")
    try:
        source, destination = (ipaddress.ip_address(text.decode("ascii")) for text in fields[2:4])
        ports = [int(text) for text in fields[4:6] if text.isdigit()]
    except ValueError:
        raise HandoffError("malformed address in PROXY header") from None
    if {source.version, destination.version} != {version} or len(ports) != 2 or max(ports) > 65535:
        raise HandoffError("malformed address in PROXY header")
    return end + 2, (_address(source, ports[0]), _address(destination, ports[1]))


def _parse_v2(data: bytes) -> tuple[int, Pair | None] | None:
    """Read the binary block of version 2."""
    if len(data) < V2_FIXED:
        return None
    version_command, family, length = struct.unpack_from("!BBH", data, len(V2_PREFIX))
    if version_command not in {0x20, 0x21}:
        raise HandoffError("unknown version or command in PROXY header")
    total = V2_FIXED + length
    if total > V2_LONGEST:
        raise HandoffError(f"PROXY header of {total} bytes")
    if len(data) < total:
        return None
    if version_command == 0x20 or family >> 4 not in _V2_ADDRESSES:
        return total, None
    layout = _V2_ADDRESSES[family >> 4]
    if length < struct.calcsize(layout):
        raise HandoffError("PROXY header too short for its addresses")
    source, destination, source_port, destination_port = struct.unpack_from(layout, data, V2_FIXED)
    return total, (
        _address(ipaddress.ip_address(source), source_port),
        _address(ipaddress.ip_address(destination), destination_port),
    )


def _address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> IAddress:
    """Make Twisted's address of the standard library's."""
    kind: Any = IPv4Address if ip.version == 4 else IPv6Address
    address: IAddress = kind("TCP", str(ip), port)
    return address


@implementer(IHalfCloseableProtocol)
class ProxyProtocol(ProtocolWrapper):
    """Reads the header, then steps aside: later reads are only handed on.

    The wrapped protocol is connected at once, so that its deadline runs from accept() on.
    If it is an `IHandshakeListener` (there is no TLS in between), the end of the header is
    its completed handshake.
    """

    def __init__(self, factory: Any, wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._received = b""
        self._pair: Pair | None = None
        self._pair_known = False
        self._error: HandoffError | None = None

    def dataReceived(self, data: bytes) -> None:
        """Collect the header."""
        if self._error is not None:
            return
        self._received += data
        try:
            parsed = parse_header(self._received)
        except HandoffError as error:
            self._error = error
            self._received = b""
            self.abortConnection()
            return
        if parsed is not None:
            length, self._pair = parsed
            self._begin(self._received[length:])

    def _begin(self, rest: bytes) -> None:
        """Let the wrapped protocol begin."""
        self._received = b""
        self._pair_known = True
        wrapped: Any = self.wrappedProtocol
        # Not wrapped.dataReceived itself: that may be replaced when an owner is found.
        self.dataReceived = super().dataReceived  # type: ignore[method-assign]
        if IHandshakeListener.providedBy(wrapped):
            wrapped.handshakeCompleted()
        if rest:
            wrapped.dataReceived(rest)

    def readConnectionLost(self) -> None:
        """Hand on that the peer has ended its side; without a header there is nothing to answer."""
        wrapped: Any = self.wrappedProtocol
        transport: Any = self.transport
        if self._pair_known and IHalfCloseableProtocol.providedBy(wrapped):
            wrapped.readConnectionLost()
        else:
            transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Nothing to do: nobody here closes one side of a connection."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hand on the end of the connection, and our own reason if we have one."""
        super().connectionLost(Failure(self._error) if self._error is not None else reason)

    def getPeer(self) -> IAddress:
        """Return the client's address, the proxy's own as long as nothing else is known."""
        peer: IAddress = self._pair[0] if self._pair else super().getPeer()
        return peer

    def getHost(self) -> IAddress:
        """Return the address that the client connected to."""
        host: IAddress = self._pair[1] if self._pair else super().getHost()
        return host


class ProxyFactory(WrappingFactory):
    """Expects a PROXY header on each connection of the wrapped factory."""

    protocol = ProxyProtocol
    noisy = False
