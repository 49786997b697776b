"""Listeners of a running service: peers that stay, ports that are taken, doors of all kinds."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.certificates import Authority
from tests.integration.live import (
    CredentialDirectory,
    ask,
    eventually,
    kvtls,
    new_server_identity,
    noop,
    status,
)
from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet, read_answer

GET, SET, NOOP = 0x00, 0x01, 0x0A
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
UNWATCHED = ("--watch-interval", "0")
DRAIN, CLOSE, WINDOW = 2.0, 1.0, 1.0

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


ACTIVATE = """
import os, sys
os.dup2({descriptor}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="kvtls.socket")
os.execv(sys.argv[1], sys.argv[1:])
"""
"""What systemd does: the socket becomes number 3, LISTEN_PID is that of the service.

Not in shell: Debian's knows descriptors of one digit only."""


class LifeCase(SynchronousTestCase):
    """A directory of credentials for each test."""

    def setUp(self) -> None:
        self.files = CredentialDirectory()
        self.addCleanup(self.files.remove)

    def start(self, *options: str, **how: Any) -> KvtlsProcess:
        """Start a service; it ends with the test."""
        service = KvtlsProcess(*self.files.options, *UNWATCHED, *options, **how)
        self.addCleanup(service.__exit__, None, None, None)
        return service


class StubbornPeerTests(LifeCase):
    """Peers that stop reading, and peers that never say goodbye."""

    def setUp(self) -> None:
        super().setUp()
        self.old, self.new = Authority.root("old CA"), Authority.root("new CA")
        self.files.trust(self.old)

    def stubborn(self, policy: str) -> tuple[KvtlsProcess, list[ssl.SSLSocket]]:
        """Return a service and two peers: full of unread answers, and merely deaf."""
        service = self.start(
            *("--on-rotate", policy, "--drain-window", str(WINDOW)),
            *("--drain-timeout", str(DRAIN), "--close-timeout", str(CLOSE)),
        )
        context = self.files.client(self.old.issue("alice", usages=CLIENT))
        unread, deaf = service.connect(context), service.connect(context)
        for peer in (unread, deaf):
            self.addCleanup(peer.close)
            noop(peer)
        unread.sendall(packet(SET, b"k", bytes(1_000_000), bytes(8)))
        self.assertEqual(read_answer(unread).status, 0)
        unread.sendall(packet(GET, b"k") * 30)
        eventually(lambda: unread.recv(1))  # answers are on their way
        return service, [unread, deaf]

    def gone(self, service: KvtlsProcess) -> None:
        """The service ends up without a connection: without its deadlines it would keep them."""
        eventually(lambda: status(service)["connections"]["total"] == 0)

    def check_rotation(self, policy: str) -> None:
        """A new trust ends both peers, though they help with nothing."""
        service, _ = self.stubborn(policy)
        self.files.trust(self.new)
        self.files.serve(new_server_identity())
        self.assertEqual(kvtls(service, "reload", "--wait").returncode, 0)
        self.gone(service)
        ask(service, self.files.client())

    def test_recheck(self) -> None:
        """Who is not trusted any more has the time of a close."""
        self.check_rotation("recheck")

    def test_drain(self) -> None:
        """Who is to drain has the window, the drain and the close."""
        self.check_rotation("drain")

    def test_disconnect(self) -> None:
        """Who is to go has the time of a close."""
        self.check_rotation("disconnect")

    def test_keep(self) -> None:
        """With ``keep`` a rotation ends nobody; a drain of the service does, in its time."""
        service, peers = self.stubborn("keep")
        self.files.trust(self.new)
        self.assertEqual(kvtls(service, "reload", "--wait").returncode, 0)
        noop(peers[1])
        self.assertEqual(status(service)["connections"]["total"], 2)
        done = kvtls(service, "drain", "--wait", "--json")
        answer = json.loads(done.stdout)
        self.assertEqual(answer["drained"] + answer["aborted"], 2)
        self.gone(service)

    def test_stop(self) -> None:
        """The end of the process does not wait for them for ever."""
        service, _ = self.stubborn("recheck")
        self.assertEqual(service.terminate(), 0)


class TakenPortTests(LifeCase):
    """A port that somebody else has at start."""

    def test_comes_up_by_itself(self) -> None:
        """The listener that waits is visible and comes up; the other serves all the while."""
        squatter = socket.socket()
        self.addCleanup(squatter.close)
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        service = self.start(
            *("--listen", "tcp:0:interface=127.0.0.1"),
            *("--listen", f"tcp:{port}:interface=127.0.0.1"),
        )
        context = self.files.client()
        leaving = threading.Event()
        with ThreadPoolExecutor(1) as aside:
            visits = aside.submit(self.visit, service, context, leaving)
            try:
                self.watch(service, port)
                squatter.close()
                eventually(lambda: self.second(service)["state"] == "listening")
            finally:
                leaving.set()
            self.assertGreater(visits.result(PATIENCE), 0)
        self.assertEqual(self.second(service)["error"], "")
        service.addresses = [("127.0.0.1", port)]
        ask(service, context)

    def second(self, service: KvtlsProcess) -> dict[str, Any]:
        """Return the status of the second listener, having looked at the first."""
        first, second = status(service)["listeners"]
        self.assertEqual((first["state"], first["error"]), ("listening", ""))
        row: dict[str, Any] = second
        return row

    def watch(self, service: KvtlsProcess, port: int) -> None:
        """For three attempts the status says what is the matter, and when it is tried again."""
        attempts = [0]
        while attempts[-1] < 3:
            row = self.second(service)
            self.assertEqual((row["state"], row["address"]), ("starting", ""))
            self.assertIn(f"127.0.0.1:{port}: the address is in use", row["error"])
            self.assertGreater(row["retry_in_s"], -1)
            attempts.append(row["attempts"])
            time.sleep(0.1)
        self.assertEqual(attempts, sorted(attempts))
        text = kvtls(service, "status").stdout
        self.assertIn("in use", " ".join(text.split()))

    @staticmethod
    def visit(service: KvtlsProcess, context: ssl.SSLContext, leaving: threading.Event) -> int:
        """Be served again and again; return how often."""
        visits = 0
        while not leaving.is_set():
            ask(service, context)
            visits += 1
        return visits


def proxy_v2(source: str, port: int, *, local: bool = False) -> bytes:
    """Return a PROXY header of version 2 for TCP over IPv6."""
    addresses = (
        socket.inet_pton(socket.AF_INET6, source)
        + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
        + struct.pack("!HH", port, 11207)
    )
    return V2_SIGNATURE + struct.pack("!BBH", 0x20 | (not local), 0x21, len(addresses)) + addresses


class DoorTests(LifeCase):
    """Listeners that are not plain ports."""

    def test_proxy_protocol(self) -> None:
        """Clients behind a load balancer are shown as themselves, with either version."""
        service = self.start("--listen", "tcp:0:interface=127.0.0.1", "--proxy-protocol")
        context = self.files.client()
        mine: list[str] = []
        for header in (
            b"PROXY TCP4 192.0.2.7 192.0.2.1 40007 11207\r\n",
            proxy_v2("2001:db8::7", 40008),
            proxy_v2("2001:db8::9", 40009, local=True),
        ):
            plain = socket.create_connection(service.addresses[0], 10)
            host, port = plain.getsockname()
            mine.append(f"{host}:{port}")
            plain.sendall(header)
            peer = context.wrap_socket(plain, server_hostname="127.0.0.1")
            self.addCleanup(peer.close)
            noop(peer)
        rows = json.loads(kvtls(service, "connections", "--json").stdout)["connections"]
        self.assertEqual(
            [row["peer"] for row in rows], ["192.0.2.7:40007", "[2001:db8::7]:40008", mine[2]]
        )
        self.assertIn("192.0.2.7:40007", kvtls(service, "connections").stdout)
        with self.assertRaises((OSError, EOFError)):
            ask(service, context)

    def test_socket_activation(self) -> None:
        """A socket from systemd is served from, over restarts too; nobody is refused meanwhile."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            program = ACTIVATE.format(descriptor=listening.fileno())
            service = self.start(
                *("--listen", "systemd:domain=INET:index=0"),
                before=(sys.executable, "-c", program),
                pass_fds=(listening.fileno(),),
            )
            address = listening.getsockname()
        self.assertEqual(service.addresses, [address])
        context = self.files.client()
        ask(service, context)
        leaving = threading.Event()
        with ThreadPoolExecutor(1) as aside:
            visits = aside.submit(TakenPortTests.visit, service, context, leaving)
            for _ in range(3):
                self.assertEqual(kvtls(service, "restart", "all").returncode, 0)
            leaving.set()
            visits.result(30)
        self.assertEqual(kvtls(service, "drain", "--wait").returncode, 0)
        self.assertEqual(kvtls(service, "restart", "all").returncode, 0)
        ask(service, context)
