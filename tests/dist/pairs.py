"""Two nodes joined in memory, and transports that remember what was done to them."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from kvproto.dist import Node, NodeEvent, NodeLink, NodeSettings
from kvproto.dist.framing import FrameDecoder
from kvproto.testing.scripted import ScriptedTransport

__all__ = ["COOKIE", "Connection", "NodeUnderTest", "Pair", "Wire", "frames_in", "make_node"]

COOKIE = b"secret"


class Wire(ScriptedTransport):
    """One end of a connection: what is written waits until the test delivers it.

    Attributes:
        other: The other end, if it is not the test itself.
        deaf: Whether the far side never answers a goodbye, like a frozen peer.
    """

    def __init__(self) -> None:
        # Never full: a test of producers tells them so itself.
        super().__init__(sys.maxsize, reads=False, peer=IPv4Address("TCP", "127.0.0.1", 1))
        self.other: Wire | None = None
        self.deaf = False

    def loseConnection(self) -> None:
        """Say goodbye; `deliver` brings the answer."""
        self.disconnecting = True

    def say(self, data: bytes) -> None:
        """Let the peer's bytes arrive, after a goodbye too, as TLS does."""
        if not self.closed:
            self.protocol.dataReceived(data)

    def deliver(self) -> bool:
        """Carry what waits to the other end; whether anything moved."""
        other = self.other
        assert other is not None
        data = self.read()
        if data and not other.closed:
            other.say(data)
            return True
        if (self.disconnecting or self.closed) and not other.closed and not other.deaf:
            other.lose()
            return True
        # A goodbye that was heard is answered by the end of the connection.
        if self.disconnecting and not self.closed and other.closed:
            self.lose()
            return True
        return False

    def _close_if_sent(self) -> None:
        """Wait for the other end."""


class Connection:
    """An `IVerifiedConnection` that remembers what it was told."""

    def __init__(self, generation: int = 1) -> None:
        self.generation = generation
        self.users: list[str] = []
        self.errors: list[str] = []

    def authenticated(self, user: str) -> None:
        self.users.append(user)

    def note_error(self, reason: str) -> None:
        self.errors.append(reason)


class NodeUnderTest:
    """A node with its clock and what it said about others."""

    def __init__(self, clock: Clock, name: str, **settings: Any) -> None:
        admit = settings.pop("admit", None)
        chosen = {"name": name, "cookie": COOKIE, **settings}
        self.clock = clock
        self.node = Node(NodeSettings(**chosen), clock, admit=admit)
        self.events: list[NodeEvent] = []
        self.node.watch(self.events.append)

    def ups(self) -> list[tuple[str, bool]]:
        """Return who came and went, without reasons."""
        return [(event.name, event.up) for event in self.events]

    def accept(self, connection: Connection | None = None) -> tuple[NodeLink, Wire]:
        """Take a connection whose far end is the test itself."""
        link = NodeLink(self.node, connection=connection or Connection())
        wire = Wire()
        wire.connect(link)
        return link, wire

    def dial(self, name: str) -> tuple[NodeLink, Wire]:
        """Make a connection whose far end is the test itself."""
        link = NodeLink(self.node, dialled=name)
        wire = Wire()
        wire.connect(link)
        return link, wire


def make_node(clock: Clock, name: str = "kv@host", **settings: Any) -> NodeUnderTest:
    """Make a node on a clock."""
    return NodeUnderTest(clock, name, **settings)


class Pair:
    """Node `dialler` called node `acceptor`."""

    def __init__(self, dialler: NodeUnderTest, acceptor: NodeUnderTest) -> None:
        self.near = NodeLink(dialler.node, dialled=acceptor.node.name)
        self.connection = Connection()
        self.far = NodeLink(acceptor.node, connection=self.connection)
        self.near_wire, self.far_wire = Wire(), Wire()
        self.near_wire.other, self.far_wire.other = self.far_wire, self.near_wire
        self.far_wire.connect(self.far)
        self.near_wire.connect(self.near)

    def flush(self) -> None:
        """Deliver everything that waits, until nothing does."""
        while self.near_wire.deliver() or self.far_wire.deliver():
            pass


def frames_in(data: bytes) -> list[bytes]:
    """Cut bytes into frames."""
    decoder = FrameDecoder(1 << 30)
    decoder.feed(data)
    found = []
    while (payload := decoder.next_frame()) is not None:
        found.append(payload)
    return found
