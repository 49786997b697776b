"""Listeners on real sockets: restarts, families, full machines, floods."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey
from OpenSSL.SSL import Connection
from twisted.internet import reactor
from twisted.internet.defer import DeferredList
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.internet.tcp import Server
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase
from zope.interface import implementer

from kvproto.config import OnRotate
from kvproto.errors import ConfigError
from kvproto.interfaces import IController
from kvproto.listeners import (
    AcceptorService,
    AcceptorState,
    Ledger,
    Limits,
    Rebind,
    server_endpoint,
)
from kvproto.listeners.ports import ListeningReactor
from kvproto.testing.certificates import server_identity
from kvproto.tls import KVTLSFactory
from tests.integration.service import PATIENCE

LOCAL = "tcp:0:interface=127.0.0.1"


class Echo(Protocol):
    """Says what it hears."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


@implementer(IController)
class EchoController:
    """Gives each connection an `Echo`."""

    def claim(self, connection: Any) -> Protocol:
        return Echo()

    def too_late(self, connection: Any) -> None:
        raise AssertionError("nothing here is slow")

    def refuse(self, connection: Any, reason: str) -> Protocol:
        return Echo()


def ask(address: Any, family: socket.AddressFamily = socket.AF_INET) -> bytes:
    """Connect, say something, return the echo; blocking, bounded."""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(b"hello")
        return client.recv(100)


class Crowd:
    """Threads that connect, ask and leave, until told to stop."""

    def __init__(self, address: Any, threads: int = 4, ask: Callable[[Any], bytes] = ask) -> None:
        self._ask = ask
        self.served = 0
        self.errors: list[str] = []
        self._address = address
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self.done = DeferredList([deferToThread(self._loop) for _ in range(threads)])

    def _loop(self) -> None:
        while not self._enough.is_set():
            try:
                answer = self._ask(self._address)
            except OSError as error:
                answer = repr(error).encode()
            with self._lock:
                if answer == b"hello":
                    self.served += 1
                else:
                    self.errors.append(answer.decode())

    async def leave(self) -> None:
        """Let everybody finish."""
        self._enough.set()
        await self.done


class ListenerCase(TestCase):
    """Acceptors on the real reactor, all stopped at the end."""

    timeout = 3 * PATIENCE

    def setUp(self) -> None:
        self.ledger = Ledger(reactor)

    def build(self, endpoint: Any, **options: Any) -> AcceptorService:
        if isinstance(endpoint, str):
            endpoint = server_endpoint(reactor, endpoint)
        acceptor = AcceptorService(
            "data",
            endpoint,
            EchoController(),
            self.ledger,
            reactor,
            drain_timeout=0,
            **options,
        )
        self.addCleanup(acceptor.stopService)
        return acceptor

    async def start(self, endpoint: Any = LOCAL, **options: Any) -> AcceptorService:
        acceptor = self.build(endpoint, **options)
        acceptor.privilegedStartService()
        self.assertTrue(await acceptor.startService())
        return acceptor

    def address(self, acceptor: AcceptorService) -> tuple[str, int]:
        host, _, port = acceptor.address.rpartition(":")
        return host.strip("[]"), int(port)

    async def until(self, true: Callable[[], Any]) -> None:
        """Wait for something to become true; bounded by this class' timeout."""
        while not true():
            await deferLater(reactor, 0.01)

    async def until_empty(self) -> None:
        await self.ledger.when_gone(self.ledger.entries())


class RestartTests(ListenerCase):
    """Nobody is refused."""

    async def test_restarts_under_a_connect_loop(self) -> None:
        """Four threads connect all the time, twenty restarts: nobody refused, reset or lost."""
        acceptor = await self.start()
        crowd = Crowd(self.address(acceptor))
        for number in range(1, 21):
            await self.until(lambda: crowd.served + len(crowd.errors) >= 3 * number)  # noqa: B023
            answer = await acceptor.restart()
            self.assertEqual(answer["state"], "listening")
        await crowd.leave()
        self.assertEqual(crowd.errors, [])
        await self.until_empty()
        self.assertEqual(self.ledger.status()["accepted_total"], crowd.served)

    async def test_clients_wait_while_others_are_disconnected(self) -> None:
        """A client that connects while the old ones are taken down waits and is served."""
        acceptor = await self.start()
        address = self.address(acceptor)
        with socket.create_connection(address) as frozen:
            await deferToThread(ask, address)
            await self.ledger.when_gone(self.ledger.entries()[1:])
            restarted = acceptor.restart(OnRotate.DISCONNECT)
            self.assertIs(acceptor.state, AcceptorState.STOPPING)
            waiting = deferToThread(ask, address)
            answer = await restarted
            self.assertEqual(answer["ended"], 1)
            self.assertEqual(await waiting, b"hello")
            frozen.settimeout(PATIENCE)
            self.assertEqual(frozen.recv(1), b"")

    async def test_nothing_is_left(self) -> None:
        """A thousand clients come and go with restarts in between: no fd, no delayed call more."""
        acceptor = await self.start()
        address = self.address(acceptor)
        await deferToThread(ask, address)
        await self.until_empty()
        gc.collect()  # what tests before have left behind
        before = len(os.listdir("/proc/self/fd"))
        calls = len(reactor.getDelayedCalls())
        for _ in range(10):
            await deferToThread(lambda: [ask(address) for _ in range(100)])
            await acceptor.restart()
        await self.until_empty()
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertLessEqual(len(reactor.getDelayedCalls()), calls)
        self.assertEqual(len(self.ledger), 0)


class BindTests(ListenerCase):
    """Addresses of every kind."""

    async def test_both_families_on_one_port(self) -> None:
        """0.0.0.0 and :: share a port, in either order."""
        if not socket.has_ipv6:
            raise SkipTest("this machine has no IPv6")
        for first, second in (("tcp:{}", "tcp6:{}"), ("tcp6:{}", "tcp:{}")):
            one = await self.start(first.format(0))
            port = self.address(one)[1]
            other = await self.start(second.format(port))
            four = await deferToThread(ask, ("127.0.0.1", port))
            six = await deferToThread(ask, ("::1", port), socket.AF_INET6)
            self.assertEqual((four, six), (b"hello", b"hello"))
            await one.stopService()
            await other.stopService()

    async def test_taken_then_freed(self) -> None:
        """A listener whose port is taken comes up by itself; the other never notices."""
        well = await self.start()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            late = self.build(f"tcp:{port}:interface=127.0.0.1", rebind=Rebind(0.05, 0.1))
            late.privilegedStartService()
            started = late.startService()
            await self.until(lambda: late.status()["attempts"] > 1)
            status = late.status()
            self.assertEqual(status["state"], "starting")
            self.assertIn("the address is in use", status["error"])
            self.assertEqual(await deferToThread(ask, self.address(well)), b"hello")
        self.assertTrue(await started)
        self.assertEqual(await deferToThread(ask, ("127.0.0.1", port)), b"hello")

    async def test_required_and_taken(self) -> None:
        """A required listener says at once that its port is taken."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            acceptor = self.build(f"tcp:{port}:interface=127.0.0.1", required=True)
            error = self.assertRaises(ConfigError, acceptor.privilegedStartService)
        self.assertEqual(
            error.reason,
            f"cannot listen on 127.0.0.1:{port}: the address is in use: "
            "another server listens there",
        )

    async def test_unix_socket(self) -> None:
        """A Unix socket works, restarts, and is gone from the disk after the stop."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "kv.sock")
            acceptor = await self.start(f"unix:{path}")
            self.assertEqual(acceptor.address, str(path))
            await acceptor.restart()
            answer = await deferToThread(ask, str(path), socket.AF_UNIX)
            self.assertEqual(answer, b"hello")
            await acceptor.stopService()
            self.assertEqual(os.listdir(directory), [])

    async def test_unix_socket_removed(self) -> None:
        """A Unix socket whose file somebody has removed is closed all the same."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "kv.sock")
            acceptor = await self.start(f"unix:{path}:lockfile=1")
            os.unlink(path)
            await acceptor.stopService()
            self.assertEqual(os.listdir(directory), [])
            self.assertEqual(acceptor.status()["state"], "stopped")

    async def test_socket_from_outside(self) -> None:
        """A socket that was passed to us is accepted from, again after a stop, and stays open."""
        with socket.create_server(("127.0.0.1", 0)) as passed:
            endpoint = AdoptedStreamServerEndpoint(
                ListeningReactor(reactor), os.dup(passed.fileno()), socket.AF_INET
            )
            acceptor = await self.start(endpoint)
            address = passed.getsockname()
            self.assertEqual(await deferToThread(ask, address), b"hello")
            await acceptor.stopService()
            waiting = deferToThread(ask, address)
            await acceptor.startService()
            self.assertEqual(await waiting, b"hello")
            await acceptor.stopService()
            await acceptor._binding.close()

    async def test_transport_of_choice(self) -> None:
        """Whoever makes the endpoint chooses what accepted sockets are put into."""

        class Own(Server):
            """A transport of somebody's own."""

        acceptor = await self.start(server_endpoint(reactor, LOCAL, Own))
        with socket.create_connection(self.address(acceptor)):
            await self.until(self.ledger.entries)
            (entry,) = self.ledger.entries()
            self.assertIsInstance(
                entry.accepted.transport,  # type: ignore[attr-defined]
                Own,
            )

    async def test_socket_options(self) -> None:
        """Accepted sockets send at once and notice peers that vanished."""
        acceptor = await self.start()
        with socket.create_connection(self.address(acceptor)) as client:
            client.settimeout(PATIENCE)
            client.sendall(b"hello")
            await deferToThread(client.recv, 5)
            (entry,) = self.ledger.entries()
            accepted = entry.accepted.transport.socket  # type: ignore[attr-defined]
            options = {
                (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 360,
            }
            self.assertEqual({key: accepted.getsockopt(*key) for key in options}, options)


class FloodTests(ListenerCase):
    """Who wants to keep others out."""

    async def test_silent_sockets(self) -> None:
        """128 sockets that say nothing, at 16 slots before login: a client is served at once."""
        self.ledger = Ledger(reactor, Limits(unauthenticated=16))
        acceptor = await self.start()
        address = self.address(acceptor)
        silent = [socket.create_connection(address) for _ in range(128)]
        for client in silent:
            self.addCleanup(client.close)
        self.assertEqual(await deferToThread(ask, address), b"hello")
        self.assertLessEqual(self.ledger.status()["unauthenticated"], 16)


@implementer(IOpenSSLContextFactory)
class OneContext:
    """A context factory, as Twisted knows them."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def getContext(self) -> SSL.Context:
        return self._context


class TLSTests(ListenerCase):
    """The handoff on kvproto's own TLS."""

    def setUp(self) -> None:
        super().setUp()
        identity = server_identity()
        self.context = SSL.Context(SSL.TLS_METHOD)
        self.context.use_certificate(X509.from_cryptography(identity.certificate))
        self.context.use_privatekey(PKey.from_cryptography_key(identity.key))

    def secured(self, factory: Any) -> Any:
        return KVTLSFactory(OneContext(self.context), False, factory, reactor)

    @staticmethod
    def ask(address: Any, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
        """Connect with another TLS implementation's client, say something, return the echo."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(address, timeout=PATIENCE) as plain,
            context.wrap_socket(plain) as client,
        ):
            client.sendall(b"hello")
            return client.recv(100)

    async def test_echo(self) -> None:
        """A connection is handed over on both versions of TLS."""
        acceptor = await self.start(wrap=self.secured)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            answer = await deferToThread(self.ask, self.address(acceptor), version)
            self.assertEqual(answer, b"hello")

    async def test_slow_controller(self) -> None:
        """What the client sends while the controller thinks is delivered first."""
        acceptor = await self.start(wrap=self.secured)

        class Slow(EchoController):
            def claim(self, connection: Any) -> Any:
                return deferLater(reactor, 0.2, Echo)

        acceptor._handoffs.controller = Slow()
        self.assertEqual(await deferToThread(self.ask, self.address(acceptor)), b"hello")

    async def test_flood_before_the_handshake_ends(self) -> None:
        """Silent sockets and half ClientHellos make room; a handshake under way does not."""
        self.ledger = Ledger(reactor, Limits(unauthenticated=16))
        acceptor = await self.start(wrap=self.secured)
        address = self.address(acceptor)
        slow = Connection(SSL.Context(SSL.TLS_METHOD), None)
        slow.set_connect_state()
        with contextlib.suppress(SSL.WantReadError):
            slow.do_handshake()
        hello = slow.bio_read(65536)
        with socket.create_connection(address, timeout=PATIENCE) as under_way:
            under_way.sendall(hello)
            await deferToThread(under_way.recv, 1)
            for number in range(128):
                idle = socket.create_connection(address, timeout=PATIENCE)
                self.addCleanup(idle.close)
                if number % 2:
                    idle.sendall(hello[: len(hello) // 2])
                if number % 16 == 0:
                    await deferLater(reactor, 0)
            self.assertEqual(await deferToThread(self.ask, address), b"hello")
            states = [row["id"] for row in self.ledger.snapshot()]
            self.assertIn(1, states, "the handshake under way was not displaced")
        self.assertLessEqual(len(states), 16)

    async def test_restarts_under_a_connect_loop(self) -> None:
        """Restarts build TLS anew and lose nobody."""
        acceptor = await self.start(wrap=self.secured)
        crowd = Crowd(self.address(acceptor), ask=self.ask)
        for number in range(1, 11):
            await self.until(lambda: crowd.served + len(crowd.errors) >= 3 * number)  # noqa: B023
            await acceptor.restart()
        await crowd.leave()
        self.assertEqual(crowd.errors, [])

    async def test_frozen_peer(self) -> None:
        """A peer that never answers our close_notify does not hold up a restart."""
        acceptor = await self.start(wrap=self.secured)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        plain = socket.create_connection(self.address(acceptor), timeout=PATIENCE)
        frozen = await deferToThread(context.wrap_socket, plain)
        self.addCleanup(frozen.close)
        answer = await acceptor.restart(OnRotate.DISCONNECT)
        self.assertEqual(answer["ended"], 1)
        self.assertEqual(len(self.ledger), 0)

    async def test_stop_during_handshake(self) -> None:
        """A stop does not wait for a peer that is silent in its handshake."""
        acceptor = await self.start(wrap=self.secured)
        with socket.create_connection(self.address(acceptor), timeout=PATIENCE) as silent:
            await self.until(lambda: self.ledger.counts()["handshaking"] == 1)
            await acceptor.stopService()
            self.assertEqual(len(self.ledger), 0)
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(silent.recv(100), b"")


CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver
globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
from tests.integration.test_listeners import EchoController
from kvproto.listeners import AcceptorService, Ledger, server_endpoint
ledger = Ledger(reactor)
acceptor = AcceptorService("data", server_endpoint(reactor, "tcp:0:interface=127.0.0.1"),
                           EchoController(), ledger, reactor)
def ready(_):
    print(acceptor.address.rpartition(":")[2], flush=True)
reactor.callWhenRunning(lambda: acceptor.startService().addCallback(ready))
reactor.callLater(120, reactor.stop)
reactor.run()
"""


class FullMachineTests(TestCase):
    """No file descriptors left."""

    timeout = 3 * PATIENCE

    async def test_emfile(self) -> None:
        """A process without file descriptors neither spins nor floods its log, and recovers."""
        lines, seconds = await deferToThread(self.exhaust)
        starved = [line for line in lines if "cannot accept" in line]
        self.assertEqual(len(starved), 1, lines)
        self.assertEqual(len([line for line in lines if "accepted everybody" in line]), 1, lines)
        self.assertLess(len(lines), 12, lines)
        self.assertLess(seconds, 0.5)

    def exhaust(self) -> tuple[list[str], float]:
        """Open more connections than the child has file descriptors, then let it recover.

        Returns:
            The child's log lines, and the processor seconds it used while starved.
        """
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            address = ("127.0.0.1", int(child.stdout.readline()))
            clients = [socket.create_connection(address, timeout=PATIENCE) for _ in range(100)]
            for client in clients:
                client.sendall(b"hello")
            assert clients[0].recv(5) == b"hello"
            before = self.processor_seconds(child.pid)
            threading.Event().wait(1.0)
            used = self.processor_seconds(child.pid) - before
            for client in clients[:80]:
                client.close()
            assert clients[99].recv(5) == b"hello", "who waited in the queue is served"
            for client in clients[80:]:
                client.close()
            assert ask(address) == b"hello"
        finally:
            child.terminate()
            _, log = child.communicate(timeout=PATIENCE)
        return log.splitlines(), used

    @staticmethod
    def processor_seconds(pid: int) -> float:
        """Return what a process has used so far."""
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ExampleTests(TestCase):
    """The program of ``docs/howto/compose-acceptor.md``."""

    timeout = 3 * PATIENCE

    async def test_example(self) -> None:
        """It serves, restarts under a connected client, refuses the 101st, and ends with 0."""
        self.assertEqual(await deferToThread(self.use), 0)

    @staticmethod
    def use() -> int | None:
        """Use the example as its page says; return its exit status."""
        root = Path(__file__).resolve().parents[2]
        example = subprocess.Popen(
            [sys.executable, root / "docs" / "examples" / "acceptor.py", LOCAL],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        try:
            assert example.stdout is not None
            address = ("127.0.0.1", int(example.stdout.readline().rpartition(":")[2]))
            with contextlib.ExitStack() as stack:

                def say(client: socket.socket) -> bytes:
                    client.sendall(b"hello\n")
                    return client.recv(100)

                def connect() -> socket.socket:
                    return stack.enter_context(socket.create_connection(address, timeout=PATIENCE))

                clients = []
                for _ in range(100):
                    clients.append(connect())
                    assert say(clients[-1]) == b"HELLO\n"
                assert connect().recv(100) == b"BUSY, come back later\n"
                example.send_signal(signal.SIGHUP)
                assert example.stdout.readline().startswith("restarted")
                assert say(clients[0]) == b"HELLO\n"
                clients.pop().close()
                example.terminate()
                assert clients[0].recv(100) == b"", "closed, not reset"
            return example.wait(timeout=PATIENCE)
        finally:
            example.kill()
            example.communicate()
