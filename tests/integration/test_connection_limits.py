"""How many connections a running service takes, and that none of them leaves anything behind.

``KVPROTO_CYCLES`` sets how many connections come and go in `ChurnTests` (10000 for the
full acceptance of the listeners).
"""

from __future__ import annotations

import os
import re
import resource
import socket
import ssl
import threading
from collections.abc import Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from kvproto.config import Config
from kvproto.service import KVTLSService
from tests.examples import THOROUGH
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
from tests.integration.wire_client import packet, read_answer, sasl_plain

NOOP, BUSY = 0x0A, 0x85
SLOTS, STRANGERS = 60, 64
POOL = 1024
"""Strangers that a service lets in, whatever its other limits (`kvproto.service`)."""

CYCLES = int(os.environ.get("KVPROTO_CYCLES", "2000" if THOROUGH else "1000"))
CHUNK = 500
THREADS = 4


class LimitCase(SynchronousTestCase):
    """A directory of credentials for each test."""

    def setUp(self) -> None:
        self.files = CredentialDirectory()
        self.addCleanup(self.files.remove)
        self.context = self.files.client()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

    def start(self, *options: str, before: Sequence[str] = ()) -> KvtlsProcess:
        """Start a service; it ends with the test."""
        service = KvtlsProcess(
            *self.files.options, "--watch-interval", "0", *options, before=before
        )
        self.addCleanup(service.__exit__, None, None, None)
        return service

    def silent(self, service: KvtlsProcess, count: int) -> list[socket.socket]:
        """Return connections that say nothing."""
        strangers = []
        for _ in range(count):
            one = socket.create_connection(service.addresses[0], 10)
            self.addCleanup(one.close)
            strangers.append(one)
        return strangers

    def served(self, service: KvtlsProcess, *first: bytes) -> ssl.SSLSocket:
        """Return a connection that has been served once."""
        peer = service.connect(self.context)
        self.addCleanup(peer.close)
        for request in first:
            peer.sendall(request)
            self.assertEqual(read_answer(peer).status, 0)
        noop(peer)
        return peer


class StrangerTests(LimitCase):
    """Connections that never say who they are."""

    def drip(self, strangers: list[socket.socket]) -> None:
        """Let each send the beginning of a ClientHello, byte by byte, until the test ends."""
        leaving = threading.Event()

        def run() -> None:
            for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200):
                for one in strangers:
                    try:
                        one.send(bytes([byte]))
                    except OSError:
                        continue
                if leaving.wait(0.2):
                    return

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join, 10)
        self.addCleanup(leaving.set)

    def visit(self, service: KvtlsProcess, visits: int = 20) -> None:
        """Be served as a real client, again and again."""
        for _ in range(visits):
            ask(service, self.context)

    def test_sixty_slots(self) -> None:
        """64 silent sockets and 64 slow ones at 60 slots: real clients are served at once."""
        service = self.start("--max-connections", str(SLOTS))
        self.silent(service, STRANGERS)
        self.drip(self.silent(service, STRANGERS))
        self.visit(service)
        verified = [self.served(service) for _ in range(SLOTS)]
        self.assertEqual(len(verified), SLOTS)
        limits = status(service)["limits"]
        self.assertEqual(limits["connections"], {"used": SLOTS, "limit": SLOTS})

    def test_more_strangers_than_there_is_room_for(self) -> None:
        """When even the pool is full strangers make room for one another, not clients for them."""
        service = self.start("--max-connections", str(SLOTS))
        known = self.served(service)
        self.silent(service, SLOTS + POOL + 200)
        self.visit(service)
        self.silent(service, 200)
        noop(known)
        answer = status(service)
        self.assertLessEqual(answer["connections"]["total"], SLOTS + POOL)
        self.assertGreaterEqual(answer["counters"]["ended"]["displaced"], 200)

    def test_storm(self) -> None:
        """Clients that all come at once, more than the pool has places, all get in."""
        # They shake hands one after the other, which takes a busy machine its time.
        service = self.start("--handshake-timeout", str(10 * PATIENCE))
        storm = self.silent(service, POOL + 500)
        for plain in storm:
            with self.context.wrap_socket(plain, server_hostname="127.0.0.1") as peer:
                noop(peer)
        self.assertNotIn("displaced", status(service)["counters"]["ended"])

    def test_few_open_files(self) -> None:
        """Where files are few fewer connections are promised, and strangers do not use them up."""
        limited = ("sh", "-c", 'ulimit -n 300; exec "$@"', "limited")
        service = self.start(before=limited)
        service.wait_for_line(re.compile("10000 connections need .* 300 are allowed"))
        promised = status(service)["limits"]["connections"]["limit"]
        self.assertTrue(100 < promised < 300, promised)
        self.silent(service, 300)
        self.visit(service)
        for _ in range(promised):
            self.served(service)
        self.assertNotIn("cannot accept", service.output)


class BusyTests(LimitCase):
    """Verified connections over a limit are told so in their own protocol."""

    def check_refused(self, service: KvtlsProcess) -> None:
        """A further client is refused after TLS, in both protocols."""
        with service.connect(self.context) as binary:
            binary.sendall(packet(NOOP, opaque=77))
            answer = read_answer(binary)
            self.assertEqual((answer.status, answer.opaque), (BUSY, 77))
            self.assertEqual(binary.recv(1), b"")
        with service.connect(self.context) as text:
            text.sendall(b"version\r\n")
            self.assertEqual(text.recv(100), b"ERROR Too many open connections\r\n")
            self.assertEqual(text.recv(1), b"")

    def test_in_all(self) -> None:
        """Over ``--max-connections``, until somebody leaves."""
        service = self.start("--max-connections", "5")
        known = [self.served(service) for _ in range(5)]
        self.check_refused(service)
        for peer in known:
            noop(peer)
        known.pop().close()
        eventually(lambda: status(service)["limits"]["connections"]["used"] == 4)
        ask(service, self.context)

    def test_from_one_address(self) -> None:
        """Over ``--max-connections-per-peer`` for that address only."""
        service = self.start(
            *("--listen", "tcp:0:interface=127.0.0.1", "--proxy-protocol"),
            *("--listen", "tcp:0:interface=127.0.0.1"),
            *("--max-connections-per-peer", "2"),
        )
        known = [self.served_from(service, "192.0.2.7") for _ in range(2)]
        refused = self.connected_from(service, "192.0.2.7")
        refused.sendall(packet(NOOP))
        self.assertEqual(read_answer(refused).status, BUSY)
        noop(self.served_from(service, "192.0.2.8"))
        for peer in known:
            noop(peer)

    def connected_from(self, service: KvtlsProcess, address: str) -> ssl.SSLSocket:
        """Return a connection that a load balancer says is from somewhere."""
        plain = socket.create_connection(service.addresses[0], 10)
        plain.sendall(b"PROXY TCP4 %s 192.0.2.1 40007 11207\r\n" % address.encode())
        peer = self.context.wrap_socket(plain, server_hostname="127.0.0.1")
        self.addCleanup(peer.close)
        return peer

    def served_from(self, service: KvtlsProcess, address: str) -> ssl.SSLSocket:
        """Return one that has been served once."""
        peer = self.connected_from(service, address)
        noop(peer)
        return peer

    def test_who_never_logged_in_makes_room(self) -> None:
        """Where logins are wanted, a client without one goes before a newcomer is refused."""
        service = self.start("--max-connections", "3", "--user", "alice:secret")
        login = sasl_plain("alice", "secret")
        known = [self.served(service, login) for _ in range(2)]
        idler = service.connect(self.context)
        self.addCleanup(idler.close)
        eventually(lambda: status(service)["limits"]["connections"]["used"] == 3)
        self.served(service, login)
        self.assertEqual(self.end_of(idler), b"")
        for peer in known:
            noop(peer)

    def end_of(self, peer: ssl.SSLSocket) -> bytes:
        """Return what comes before the end of a connection, however that comes."""
        try:
            return peer.recv(1)
        except ConnectionResetError:
            return b""


def come_and_go(visit: Any, count: int) -> None:
    """Call something many times, from several threads.

    Raises:
        AssertionError: One of the calls failed.
    """
    faults: list[str] = []

    def run(share: int) -> None:
        for _ in range(share):
            try:
                visit()
            except (OSError, EOFError) as error:
                faults.append(repr(error))

    threads = [threading.Thread(target=run, args=(count // THREADS,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[:3]


class ChurnTests(LimitCase):
    """Connections that come and go."""

    def test_memory_and_files_return(self) -> None:
        """However many came and went, with rotations in between, it is as it was."""
        service = self.start()
        self.churn(service, CHUNK)  # what is allocated once
        files, memory = service.open_files(), service.resident_kib()
        for _ in range(CYCLES // CHUNK):
            self.churn(service, CHUNK)
        self.assertLess(service.resident_kib() - memory, 4096, "KiB that stay")
        self.assertEqual(service.open_files(), files)
        answer = status(service)
        self.assertEqual(answer["connections"]["total"], 0)
        self.assertEqual(answer["generation"]["number"], 2 + CYCLES // CHUNK)
        self.assertEqual(answer["counters"]["deadline_expired"], {})
        self.assertIsNone(re.search("Traceback|Unhandled", service.output))

    def churn(self, service: KvtlsProcess, cycles: int) -> None:
        """Let clients come and go, and rotate in the midst of them."""
        rotation = threading.Timer(0.1, self.rotate, [service])
        rotation.start()
        come_and_go(lambda: ask(service, self.context), cycles)
        rotation.join()
        eventually(lambda: status(service)["connections"]["total"] == 0)

    def rotate(self, service: KvtlsProcess) -> None:
        self.files.serve(new_server_identity())
        assert kvtls(service, "reload", "--wait").returncode == 0


class DelayedCallTests(TestCase):
    """The same in this process, where timers can be counted."""

    timeout = 3 * PATIENCE

    async def test_no_timer_stays(self) -> None:
        """When all have left there are as many delayed calls as before, after a stop none."""
        clock: Any = reactor
        files = CredentialDirectory()
        self.addCleanup(files.remove)
        context = files.client()
        config = Config(
            listen=("tcp:0:interface=127.0.0.1",),
            certificate=files.chain,
            private_key=files.key,
            state_dir=files.path / "state",
        )
        await deferLater(clock, 0)  # trial sets its own timeout first
        others = set(clock.getDelayedCalls())

        def pending() -> list[str]:
            return sorted(str(call.func) for call in set(clock.getDelayedCalls()) - others)

        service = KVTLSService(config, reactor)
        service.privilegedStartService()
        service.startService()
        idle = pending()
        host, _, port = service.acceptors[0].address.rpartition(":")

        def visit() -> None:
            with (
                socket.create_connection((host, int(port)), 10) as plain,
                context.wrap_socket(plain, server_hostname=host) as peer,
            ):
                noop(peer)

        try:
            for _ in range(3):
                visits = deferToThread(come_and_go, visit, 100)
                files.serve(new_server_identity())
                verdict = await service.rotation.reload()
                self.assertTrue(verdict.ok, verdict)
                await visits
            await service.ledger.when_gone(service.ledger.entries())
            self.assertEqual(pending(), idle)
        finally:
            await service.stopService()
        self.assertEqual(pending(), [])
