"""HTTP servers in memory: a connection to a `kvproto.base.http.BoundedSite`, and its answers."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address

from kvproto.base.http import BoundedSite
from kvproto.testing.scripted import ScriptedTransport

__all__ = ["answer_of", "connect_to"]


def connect_to(site: BoundedSite) -> tuple[Any, ScriptedTransport]:
    """Return the server's end of a new connection, and what it writes to."""
    protocol = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    transport = ScriptedTransport()
    assert protocol is not None
    transport.connect(protocol)
    return protocol, transport


def answer_of(transport: ScriptedTransport) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers in lower case, and body of what was written."""
    head, _, body = bytes(transport.received).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body
