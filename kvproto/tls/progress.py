"""How much of what a transport was given the peer's side has taken.

The kernel may hold megabytes after a transport has given everything to it.  A close
deadline that does not know this cuts peers that read slowly; so it asks here.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import Any

__all__ = ["unsent_bytes"]


def unsent_bytes(transport: Any) -> int | None:
    """Return how many bytes given to a transport have not been taken by the peer's kernel.

    Args:
        transport: A Twisted transport over a socket; anything else is answered by None.

    Returns:
        Bytes in the transport's own buffers and in the kernel's send queue, or None
        where that cannot be known (in-memory transports, TLS in TLS, not Linux).
    """
    try:
        waiting = len(transport.dataBuffer) - transport.offset
        # Private in Twisted, and only sharpens the number: absent counts as nothing.
        waiting += getattr(transport, "_tempDataLen", 0)
        queued = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (AttributeError, TypeError, ValueError, OSError):
        return None
    return int(waiting + struct.unpack("=i", queued)[0])
