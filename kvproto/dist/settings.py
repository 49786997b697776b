"""What a program decides about a node, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from kvproto.dist.session import SessionLimits

__all__ = ["Admit", "NodeSettings"]

MIB: Final = 1024 * 1024

Admit = Callable[[str, Any], Any]
"""Called with a node name and its `IVerifiedConnection`; True, False or a Deferred of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Settings of a node.

    Args:
        name: ``NAME@HOST``.
        cookie: The cluster's shared secret.
        ticktime: Seconds; must not be less than the peers' ``net_ticktime``.
        setup_timeout: Seconds for each step of a handshake (``net_setuptime``).
        setup_total: Seconds for all of them.
        close_timeout: Seconds until a closing link is cut.
        max_frame: Bytes of one message.
        max_unsent: Bytes that may wait for a peer that does not read.
        session: What a peer may make us remember.
    """

    name: str
    cookie: bytes = field(repr=False)
    ticktime: float = 60.0
    setup_timeout: float = 7.0
    setup_total: float = 15.0
    close_timeout: float = 1.0
    max_frame: int = 128 * MIB
    max_unsent: int = 192 * MIB
    session: SessionLimits = field(default_factory=SessionLimits)
