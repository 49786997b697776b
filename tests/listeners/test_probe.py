"""Whether an address could be used, asked without listening."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from twisted.internet.endpoints import _SystemdParser
from twisted.internet.testing import MemoryReactorClock
from twisted.python.systemd import ListenFDs
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import ConfigError
from kvproto.listeners.probe import probe, validate


class ProbeTests(SynchronousTestCase):
    """On addresses of this machine only."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def refused(self, description: str) -> str:
        error = self.assertRaises(ConfigError, probe, self.reactor, description)
        self.assertEqual(error.option, "--listen")
        return str(error.reason)

    def test_free_addresses(self) -> None:
        """Addresses that can be used are let go of again."""
        with tempfile.TemporaryDirectory() as directory:
            for description in (
                "tcp:0:interface=127.0.0.1",
                f"unix:{directory}/kv.sock",
            ):
                probe(self.reactor, description)
                validate(self.reactor, description)
            self.assertEqual(list(Path(directory).iterdir()), [])

    def test_taken_port(self) -> None:
        """A taken port is said to be taken, unless nobody asked."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            description = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            self.assertIn("the address is in use", self.refused(description))
            validate(self.reactor, description)

    def test_taken_by_the_service_itself(self) -> None:
        """A configuration can be tried while it is served; an address of nobody is no good."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            description = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            probe(self.reactor, description, may_be_taken=True)
        for description in ("tcp:0:interface=192.0.2.1", "unix:/nonexistent/kv.sock"):
            self.assertRaises(ConfigError, probe, self.reactor, description, may_be_taken=True)

    def test_families(self) -> None:
        """An IPv6 address is asked for without the IPv4 ones of the same port."""
        if not socket.has_ipv6:
            self.skipTest("this machine has no IPv6")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            probe(self.reactor, f"tcp:{port}:interface=\\:\\:")
            self.assertIn("in use", self.refused(f"tcp:{port}"))
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
            port = taken.getsockname()[1]
            self.assertIn("in use", self.refused(f"tcp:{port}:interface=\\:\\:1"))
            probe(self.reactor, f"tcp:{port}:interface=127.0.0.1")

    def test_just_left(self) -> None:
        """A port whose last connections the kernel still remembers is free."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            with socket.create_connection(address) as client:
                accepted, _ = server.accept()
                accepted.close()  # who closes first is remembered
                self.assertEqual(client.recv(1), b"")
        probe(self.reactor, f"tcp:{address[1]}:interface=127.0.0.1")

    def test_full_unix_socket(self) -> None:
        """A socket that somebody serves and that has no room for one more is taken, too."""
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory, "kv.sock"))
            with socket.socket(socket.AF_UNIX) as served:
                served.bind(path)
                served.listen(0)
                for _ in range(10):
                    waiting = socket.socket(socket.AF_UNIX)
                    self.addCleanup(waiting.close)
                    waiting.setblocking(False)
                    if waiting.connect_ex(path):
                        break
                self.assertIn("in use", self.refused(f"unix:{path}"))

    def test_unix_sockets(self) -> None:
        """A socket that somebody serves is taken, one that was left behind is not."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "kv.sock")
            with socket.socket(socket.AF_UNIX) as served:
                served.bind(str(path))
                served.listen()
                self.assertIn("in use", self.refused(f"unix:{path}"))
            probe(self.reactor, f"unix:{path}")
            self.assertIn("No such file", self.refused(f"unix:{directory}/nowhere/kv.sock"))

    def test_what_cannot_be_a_socket(self) -> None:
        """A path that holds something else is said to, and one that is too long to be."""
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "file").write_text("precious")
            for path in (Path(directory, "file"), Path(directory)):
                self.assertIn("is no socket", self.refused(f"unix:{path}"))
            long = f"unix:{directory}/{'x' * 120}"
            self.assertIn("at most 107 bytes", self.refused(long))
            error = self.assertRaises(ConfigError, validate, self.reactor, long)
            self.assertIn("at most 107 bytes", str(error))

    def test_standard_input(self) -> None:
        """What Twisted calls a server but has no port is refused."""
        self.assertIn("does not listen", self.refused("stdio:"))

    def test_nonsense(self) -> None:
        """What makes no sense is refused with an example of what does."""
        for description in ("nonsense", "tcp:many", "tcp:1:2:3:4:5", ""):
            self.assertIn("write for example", self.refused(description))

    def test_secured_already(self) -> None:
        """TLS is not put on TLS."""
        self.assertIn("put on top", self.refused("ssl:443"))

    def passed(self, descriptor: int) -> None:
        """Be told by systemd of one socket."""
        told = ListenFDs([descriptor], ("kvtls.socket",))
        self.patch(_SystemdParser, "_sddaemon", told)

    def test_socket_that_was_passed(self) -> None:
        """A socket from systemd is looked at and stays open, however often that is done."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.passed(listening.fileno())
            for description in ("systemd:domain=INET:index=0", "systemd:INET:name=kvtls.socket"):
                validate(self.reactor, description)
                probe(self.reactor, description)
            socket.create_connection(listening.getsockname(), 5).close()

    def test_nothing_was_passed(self) -> None:
        """A service that systemd did not start says so, and what is wrong with a socket."""
        self.assertIn("systemd.socket(5)", self.refused("systemd:domain=INET:index=7"))
        with socket.socket() as silent:
            self.passed(silent.fileno())
            self.assertIn("does not listen", self.refused("systemd:domain=INET:index=0"))
        self.assertIn("Bad file descriptor", self.refused("systemd:domain=INET:index=0"))

    def test_no_such_port(self) -> None:
        """A number that is no port is refused before the kernel is asked."""
        for ask in (probe, validate):
            error = self.assertRaises(ConfigError, ask, self.reactor, "tcp:99999")
            self.assertIn("from 0 to 65535", str(error))
