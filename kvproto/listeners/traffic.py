"""How much has gone over a connection, as the kernel has counted it: no request pays for that."""

from __future__ import annotations

import socket
import struct
from typing import Any

__all__ = ["traffic_of"]

_TCP_INFO = getattr(socket, "TCP_INFO", None)
_SIZE = 136
_COUNTS = struct.Struct("=QQ")
_AT = 120
"""Where ``struct tcp_info`` has ``tcpi_bytes_acked`` and ``tcpi_bytes_received``.

Source: Linux 4.1, include/uapi/linux/tcp.h.
"""


def traffic_of(transport: Any) -> tuple[int, int] | None:
    """Return bytes that were received, and bytes that were sent and acknowledged, TLS included.

    Args:
        transport: Of a connection, with whatever layers between it and the socket.

    Returns:
        None where nobody counts: a Unix socket, another system, no socket at all.
    """
    if _TCP_INFO is None:
        return None
    while transport is not None:
        connected = getattr(transport, "socket", None)
        if isinstance(connected, socket.socket):
            break
        transport = getattr(transport, "transport", None)
    else:
        return None
    try:
        found = connected.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
    except OSError:  # no TCP, or gone
        return None
    if len(found) < _SIZE:
        return None
    sent, received = _COUNTS.unpack_from(found, _AT)
    return received, sent
