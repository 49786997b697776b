"""The controller of a listener whose peers are nodes."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol
from zope.interface import implementer

from kvproto.dist.framing import frame
from kvproto.dist.link import NodeLink
from kvproto.dist.node import Node
from kvproto.interfaces import IController

__all__ = ["NodeController"]


class _Refusal(Protocol):
    """Answers ``not_allowed`` to the name that the peer is about to send, and closes."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(frame(b"snot_allowed"))
        transport.loseConnection()


@implementer(IController)
class NodeController:
    """Makes a `NodeLink` of each verified connection.

    Args:
        node: Whose links they are.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    def claim(self, connection: Any) -> NodeLink:
        """Take a verified connection; name and cookie are asked for on the link itself."""
        return NodeLink(self._node, connection=connection)

    def too_late(self, connection: Any) -> None:
        """Nothing to let go of: a claim here is answered at once and holds nothing."""

    def refuse(self, connection: Any, reason: str) -> Protocol:
        """Return a protocol that refuses the peer."""
        return _Refusal()
