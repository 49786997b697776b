"""``twistd kvtls`` in front of real memcached servers, as an operator runs it."""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.certificates import Authority, root_authority
from tests.integration.live import (
    CredentialDirectory,
    eventually,
    kvtls,
    new_server_identity,
    status,
    trusting,
)
from tests.integration.memcached import Memcached
from tests.integration.service import PATIENCE, KvtlsProcess, run_kvtls
from tests.ports import free_port

ROTATIONS = 5


class FleetLiveCase(SynchronousTestCase):
    """Three servers, a directory, and services in front of them."""

    arguments: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="kvtls-fleet-")
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name)
        self.files = CredentialDirectory()
        self.addCleanup(self.files.remove)
        self.prepare()
        self.memcached = [self.add_server() for _ in range(3)]

    def prepare(self) -> None:
        """Make what servers need."""

    def add_server(self) -> Memcached:
        server = Memcached(*self.arguments)
        self.addCleanup(server.kill)
        return server

    def serve(self, store: str, *options: str) -> KvtlsProcess:
        """Run the service with this store."""
        service = KvtlsProcess(
            *("--mode", "memcached", "--store", store),
            *("--certificate", str(self.files.chain), "--private-key", str(self.files.key)),
            *options,
        )
        self.enterContext(service)
        eventually(lambda: all(one["up"] for one in status(service)["store"]["servers"]))
        return service

    def names(self, count: int = 3) -> str:
        return ",".join(server.name for server in self.memcached[:count])

    def connect(self, service: KvtlsProcess) -> ssl.SSLSocket:
        connection = trusting(root_authority()).wrap_socket(
            socket.create_connection(service.addresses[0], 20), server_hostname="localhost"
        )
        self.addCleanup(connection.close)
        return connection


def talk(connection: socket.socket, request: bytes, ending: bytes) -> bytes:
    """Ask, and read up to the ending."""
    connection.sendall(request)
    answer = b""
    while not answer.endswith(ending):
        data = connection.recv(65536)
        assert data, answer
        answer += data
    return answer


class Crowd:
    """Threads that ask without a pause, and what they have met.

    Args:
        clients: Each is called with its own number and the number of its turn, again and again.

    Attributes:
        served: How many turns each has had.
        faults: Whatever was not as it must be; who has met one stops.
    """

    def __init__(self, clients: Sequence[Callable[[int, int], object]]) -> None:
        self._stop = threading.Event()
        self.served = [0] * len(clients)
        self.faults: list[str] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number, client))
            for number, client in enumerate(clients)
        ]

    def _work(self, number: int, client: Callable[[int, int], object]) -> None:
        try:
            while not self._stop.is_set():
                client(number, self.served[number])
                self.served[number] += 1
        except Exception as error:
            self.faults.append(repr(error))

    def wait(self) -> None:
        """Wait until each client has had some more turns."""
        before = list(self.served)
        eventually(
            lambda: (
                all(now > then + 5 for now, then in zip(self.served, before, strict=True))
                or bool(self.faults)
            )
        )

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


class OperatorTests(FleetLiveCase):
    """What an operator sees and changes."""

    def test_reload_under_load(self) -> None:
        """A changed pool, a new certificate and both at once lose no request."""
        pool = self.path / "pool"
        pool.write_text(f"{self.names(1)}\n")
        service = self.serve(f"memcached://?pool-file={pool}")
        connections = [self.connect(service) for _ in range(8)]

        def work(number: int, turn: int) -> None:
            key = b"k%d-%d" % (number, turn % 90)
            request = b"set %b 0 0 1\r\nx\r\nget %b none\r\n" % (key, key)
            answer = talk(connections[number], request, b"END\r\n")
            # A key that has moved with the pool may be a miss, and nothing else.
            assert answer in {
                b"STORED\r\nEND\r\n",
                b"STORED\r\nVALUE %b 0 1\r\nx\r\nEND\r\n" % key,
            }, answer

        with Crowd([work] * 8) as crowd:
            for count in (3, 2, 3):
                crowd.wait()
                pool.write_text(f"{self.names(count)}\n")
                self.files.serve(new_server_identity())
                answer = json.loads(kvtls(service, "reload", "--wait", "--json").stdout)
                self.assertTrue(answer["ok"], answer)
                self.assertIn(str(count), answer["store"]["reason"])
                self.assertEqual(len(status(service)["store"]["servers"]), count)
            pool.write_text("")
            answer = json.loads(kvtls(service, "reload", "--wait", "--json").stdout)
            self.assertEqual((answer["ok"], answer["stage"]), (False, "store"))
            self.assertIn(str(pool), answer["reason"])
            crowd.wait()
        self.assertEqual(crowd.faults, [])

    def test_rotations_and_restarts_under_load(self) -> None:
        """New certificates and restarts of the listeners: each request is served, and once.

        Half of the clients stay connected, the others come anew for each turn; each value is
        compared, and counters tell whether anything was done twice or not at all.
        """
        service = self.serve(f"memcached://{self.names()}")
        lasting = [self.connect(service) for _ in range(4)]

        def ask(connection: socket.socket, number: int, turn: int) -> None:
            request, expected = b"", b""
            for depth in range(10):
                key, value = b"v%d-%d" % (number, depth), b"%d " % turn * (depth * 300 + 1)
                request += b"set %b 0 0 %d\r\n%b\r\nget %b\r\n" % (key, len(value), value, key)
                expected += b"STORED\r\nVALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(value), value)
            counter = b"incr count%d 1\r\n" % number
            answer = talk(connection, request + counter, expected[-20:] + b"%d\r\n" % (turn + 1))
            assert answer == expected + b"%d\r\n" % (turn + 1), answer

        def stay(number: int, turn: int) -> None:
            ask(lasting[number], number, turn)

        def come(number: int, turn: int) -> None:
            with self.connect(service) as connection:
                ask(connection, number, turn)

        for number in range(8):
            made = talk(lasting[0], b"set count%d 0 0 1\r\n0\r\n" % number, b"\r\n")
            self.assertEqual(made, b"STORED\r\n")
        with Crowd([stay] * 4 + [come] * 4) as crowd:
            for number in range(ROTATIONS):
                crowd.wait()
                self.files.serve(new_server_identity())
                answer = json.loads(kvtls(service, "reload", "--wait", "--json").stdout)
                self.assertEqual((answer["ok"], answer["generation"]), (True, number + 2))
                done = kvtls(service, "restart", "all")
                self.assertEqual(done.returncode, 0, done.stderr)
            crowd.wait()
        self.assertEqual(crowd.faults, [])
        for number, turns in enumerate(crowd.served):
            answer = talk(lasting[0], b"get count%d\r\n" % number, b"END\r\n")
            self.assertEqual(answer.split()[4:5], [b"%d" % turns])
        self.assertEqual(status(service)["listeners"][0]["restarts"], ROTATIONS)

    def test_seen(self) -> None:
        """Status, readiness and metrics tell how each server is."""
        port = free_port()
        service = self.serve(
            f"memcached://{self.names()}", "--http", f"tcp:{port}:interface=127.0.0.1"
        )
        self.memcached[0].kill()
        down = self.memcached[0].name
        eventually(
            lambda: (
                [one["server"] for one in status(service)["store"]["servers"] if not one["up"]]
                == [down]
            )
        )
        self.assertEqual(kvtls(service, "status", "--ready").returncode, 0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        self.assertIn(f'kvtls_store_up{{server="{down}"}} 0', text)
        self.assertIn(f'kvtls_store_up{{server="{self.memcached[1].name}"}} 1', text)
        self.assertIn("kvtls_store_request_seconds_bucket", text)
        for server in self.memcached[1:]:
            server.kill()
        eventually(lambda: kvtls(service, "status", "--ready").returncode == 1)

    def test_wrong_options(self) -> None:
        """What cannot be is said before anything starts."""
        for store, options, word in (
            ("memcached://", (), "no server"),
            ("memcached://h?distribution=x", (), "distribution"),
            ("memcached://h:1:0", (), "weight"),
            ("memcached://h", ("--bucket", "a", "--bucket", "b"), "--bucket"),
            (f"memcached://?pool-file={self.path}/none", (), "cannot be read"),
            (f"memcacheds://h?ca={self.path}/none", (), "none"),
        ):
            done = run_kvtls("--mode", "memcached", "--check", "--store", store, *options)
            self.assertNotEqual(done.returncode, 0, store)
            self.assertIn(word, done.stdout + done.stderr)


class SecuredServersTests(FleetLiveCase):
    """Servers that are reached by TLS."""

    def prepare(self) -> None:
        self.authority = Authority.root()
        self.own = f"cert={self.path}/client.pem&key={self.path}/client.key"
        server = self.authority.issue("localhost", ("localhost", "127.0.0.1"))
        client = self.authority.issue("front", ("front",))
        for name, content in (
            ("ca.pem", self.authority.certificate_pem),
            ("server.pem", server.chain_pem),
            ("server.key", server.key_pem),
            ("client.pem", client.chain_pem),
            ("client.key", client.key_pem),
            ("other.pem", Authority.root().certificate_pem),
        ):
            (self.path / name).write_bytes(content)
        for path in self.path.iterdir():
            path.chmod(0o644)
        self.path.chmod(0o755)
        options = {
            "ssl_chain_cert": f"{self.path}/server.pem",
            "ssl_key": f"{self.path}/server.key",
            "ssl_ca_cert": f"{self.path}/ca.pem",
            "ssl_verify_mode": "3",
        }
        self.arguments = ("-Z", "-o", ",".join(f"{name}={it}" for name, it in options.items()))

    def wait_for_failure(self, service: KvtlsProcess) -> None:
        """Wait until an attempt to reach the server has failed."""

        def failed() -> bool:
            (server,) = status(service)["store"]["servers"]
            return server["reason"] not in {"", "not connected yet"}

        eventually(failed)

    def test_verified(self) -> None:
        """Both sides show certificates; a wrong authority or name is refused, and said."""
        service = self.serve(f"memcacheds://{self.names()}?ca={self.path}/ca.pem&{self.own}")
        connection = self.connect(service)
        answer = talk(connection, b"set k 0 0 1\r\nx\r\nget k\r\n", b"END\r\n")
        self.assertEqual(answer, b"STORED\r\nVALUE k 0 1\r\nx\r\nEND\r\n")
        for store, word in (
            (f"memcacheds://{self.names(1)}?ca={self.path}/other.pem&{self.own}", "certificate"),
            (f"memcacheds://{self.names(1)}?ca={self.path}/ca.pem", ""),
            (f"memcached://{self.names(1)}", ""),
        ):
            service = KvtlsProcess(
                *("--mode", "memcached", "--store", store),
                *("--certificate", str(self.files.chain), "--private-key", str(self.files.key)),
            )
            with service:
                self.wait_for_failure(service)
                (server,) = status(service)["store"]["servers"]
                self.assertFalse(server["up"])
                self.assertIn(word, server["reason"])
                answer = talk(self.connect(service), b"get k\r\n", b"\r\n")
                self.assertEqual(answer, b"SERVER_ERROR temporary failure\r\n")

    def connections_made(self, server: Memcached) -> int:
        """Return how many connections a server has had, this one included."""
        context = ssl.create_default_context(cafile=f"{self.path}/ca.pem")
        context.load_cert_chain(f"{self.path}/client.pem", f"{self.path}/client.key")
        with context.wrap_socket(server.connect(), server_hostname="localhost") as connection:
            words = talk(connection, b"stats\r\n", b"END\r\n").split()
        return int(words[words.index(b"total_connections") + 1])

    def test_rotation_under_load(self) -> None:
        """Certificates that are shown to the servers change, and no request is lost or repeated."""
        service = self.serve(f"memcacheds://{self.names()}?ca={self.path}/ca.pem&{self.own}")
        connections = [self.connect(service) for _ in range(4)]
        for number, connection in enumerate(connections):
            talk(connection, b"set count%d 0 0 1\r\n0\r\n" % number, b"\r\n")

        def work(number: int, turn: int) -> None:
            expected = b"STORED\r\n%d\r\n" % (turn + 1)
            request = b"set v%d 0 0 1\r\nx\r\nincr count%d 1\r\n" % (number, number)
            answer = talk(connections[number], request, b"%d\r\n" % (turn + 1))
            assert answer == expected, answer

        before = [self.connections_made(server) for server in self.memcached]
        with Crowd([work] * 4) as crowd:
            for _ in range(ROTATIONS):
                crowd.wait()
                client = self.authority.issue("front", ("front",))
                (self.path / "client.pem").write_bytes(client.chain_pem)
                (self.path / "client.key").write_bytes(client.key_pem)
                answer = json.loads(kvtls(service, "reload", "--wait", "--json").stdout)
                self.assertTrue(answer["ok"], answer)
            crowd.wait()
        self.assertEqual(crowd.faults, [])
        for server, count in zip(self.memcached, before, strict=True):
            self.assertGreaterEqual(self.connections_made(server), count + 2 * ROTATIONS)
