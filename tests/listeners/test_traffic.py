"""What the kernel has counted of a connection."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.listeners import traffic
from kvproto.listeners.traffic import traffic_of


class TrafficTests(SynchronousTestCase):
    """On sockets of this machine."""

    def layered(self, connected: Any) -> Any:
        """Return a transport that has a socket below two layers."""
        return SimpleNamespace(transport=SimpleNamespace(socket=None, transport=connected))

    def test_counts(self) -> None:
        """Bytes in each direction, once they were acknowledged, whatever is between."""
        if traffic._TCP_INFO is None:
            self.skipTest("this system has no TCP_INFO")
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as client,
            server.accept()[0] as accepted,
        ):
            below = SimpleNamespace(socket=accepted)
            self.assertEqual(traffic_of(self.layered(below)), (0, 0))
            client.sendall(bytes(1000))
            accepted.sendall(bytes(50))
            received = 0
            while received < 1000:
                received += len(accepted.recv(1000))
            self.assertEqual(len(client.recv(50, socket.MSG_WAITALL)), 50)
            client.sendall(b"1")  # acknowledges what was read
            self.assertEqual(accepted.recv(1), b"1")
            self.assertEqual(traffic_of(self.layered(below)), (1001, 50))
        self.assertIsNone(traffic_of(below), "it is closed")

    def test_nothing_to_count(self) -> None:
        """No socket, none of TCP, and a system that does not count."""
        self.assertIsNone(traffic_of(None))
        self.assertIsNone(traffic_of(self.layered(None)))
        here, there = socket.socketpair()
        self.addCleanup(here.close)
        self.addCleanup(there.close)
        self.assertIsNone(traffic_of(SimpleNamespace(socket=here)))
        self.patch(traffic, "_TCP_INFO", None)
        self.assertIsNone(traffic_of(SimpleNamespace(socket=here)))
