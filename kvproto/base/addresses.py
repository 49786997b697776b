"""Where a peer comes from, for limits and for people."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress

__all__ = ["describe_peer", "host_of", "is_local"]

_MAPPED = "::ffff:"
"""Beginning of an IPv4 address as an IPv6 socket, or a proxy, shows it."""


def host_of(peer: IAddress | None) -> str:
    """Return the peer's address without its port, ``""`` when it has none.

    One address has one form here, however it came in: limits count by it.
    """
    host: str = getattr(peer, "host", None) or ""
    if host.startswith(_MAPPED):
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
        return host if mapped is None else str(mapped)
    return host


def describe_peer(peer: IAddress | None) -> str:
    """Return the peer for logs and status: ``192.0.2.1:4711``, ``[2001:db8::1]:4711``, ``unix``."""
    host = getattr(peer, "host", None) or ""
    if not host:
        return "unknown" if peer is None else "unix" if isinstance(peer, UNIXAddress) else str(peer)
    port = getattr(peer, "port", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(peer: IAddress | None) -> bool:
    """Return whether a peer comes from this machine: by a loopback address or a Unix socket."""
    return isinstance(peer, UNIXAddress) or _is_loopback(host_of(peer))


@lru_cache(maxsize=1024)  # most peers come again
def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
