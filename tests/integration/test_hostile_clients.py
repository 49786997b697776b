"""Clients that are silent, slow, or never read."""

from __future__ import annotations

import select
import socket
import ssl
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet, read_answer

GET, SET, NOOP = 0x00, 0x01, 0x0A
MIB = 1024 * 1024


def client_hello() -> bytes:
    """Return a complete ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    half = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        half.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake cannot end without a server")


class SilenceTests(SynchronousTestCase):
    """Silent sockets, half ClientHellos, one byte a second."""

    def test_crowd(self) -> None:
        """64 of each at a limit of 200: a real client is served, and all are gone in time."""
        hello = client_hello()
        options = ("--max-connections", "200", "--handshake-timeout", "10")
        with KvtlsProcess(*options) as service:
            with service.connect() as client:
                client.sendall(packet(NOOP))
                read_answer(client)
            idle_files = service.open_files()
            sockets = [socket.create_connection(service.addresses[0], 10) for _ in range(192)]
            try:
                started = time.monotonic()
                for half in sockets[64:128]:
                    half.sendall(hello[: len(hello) // 2])
                slow = sockets[128:]
                gone: set[socket.socket] = set()
                sent = 0
                while len(gone) < len(sockets) and time.monotonic() - started < 10 + PATIENCE:
                    for peer in slow:
                        if peer not in gone:
                            try:
                                peer.sendall(hello[sent : sent + 1])
                            except OSError:
                                gone.add(peer)
                    sent += 1
                    with service.connect() as client:
                        client.sendall(packet(NOOP))
                        self.assertEqual(read_answer(client).status, 0)
                    end = time.monotonic() + 1
                    while (left := end - time.monotonic()) > 0:
                        waiting = [peer for peer in sockets if peer not in gone]
                        if not waiting:
                            break
                        for peer in select.select(waiting, [], [], left)[0]:
                            try:
                                if not peer.recv(1000):
                                    gone.add(peer)
                            except OSError:
                                gone.add(peer)
                self.assertEqual(len(gone), len(sockets))
            finally:
                for peer in sockets:
                    peer.close()
            with service.connect() as client:
                client.sendall(packet(NOOP))
                read_answer(client)
            self.assertLessEqual(service.open_files(), idle_files + 1)


class NotReadingTests(SynchronousTestCase):
    """A client that sends and does not read."""

    def test_pipelined_requests(self) -> None:
        """100,000 requests: memory stays bounded, and every reply comes in order."""
        count, value = 100_000, bytes(1000)
        with KvtlsProcess() as service, service.connect() as client:
            client.sendall(packet(SET, b"k", value, bytes(8)))
            read_answer(client)
            before = service.resident_kib()
            requests = b"".join(packet(GET, b"k", opaque=i) for i in range(count))
            client.setblocking(False)
            view, sent, stuck_since = memoryview(requests), 0, time.monotonic()
            while sent < len(view) and time.monotonic() - stuck_since < 1:
                try:
                    sent += client.send(view[sent : sent + 16384])
                    stuck_since = time.monotonic()
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    select.select([], [client], [], 0.1)
            grown = service.resident_kib() - before
            self.assertLess(grown, 16 * 1024, "KiB held for one client that does not read")
            self.check_answers(client, view, sent, count, len(value))

    def check_answers(
        self, client: ssl.SSLSocket, view: memoryview, sent: int, count: int, size: int
    ) -> None:
        """Read all replies while the rest of the requests goes out."""
        length, received, checked = 24 + 4 + size, bytearray(), 0
        deadline = time.monotonic() + 4 * PATIENCE
        while checked < count:
            self.assertLess(time.monotonic(), deadline)
            progress = False
            if sent < len(view):
                try:
                    sent += client.send(view[sent : sent + 16384])
                    progress = True
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    pass
            try:
                received += client.recv(MIB)
                progress = True
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            if not progress:
                select.select([client], [client] if sent < len(view) else [], [], 1)
            complete = len(received) // length
            for i in range(complete):
                at = i * length
                self.assertEqual(int.from_bytes(received[at + 12 : at + 16]), checked)
                checked += 1
            del received[: complete * length]
