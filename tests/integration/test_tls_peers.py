"""Other TLS stacks as peers: ``openssl s_client`` and Python's ``ssl``."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable
from tempfile import NamedTemporaryFile
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThread

from kvproto.testing.certificates import client_identity, root_authority, server_identity
from kvproto.testing.contexts import TLS12, TLS13, server_context
from kvproto.tls import HandshakeInterrupted, explanation
from kvproto.tls.contexts import OP_ALLOW_CLIENT_RENEGOTIATION
from tests.integration.peers import require
from tests.integration.service import PATIENCE
from tests.integration.tls_echo import Echo, EchoTestCase, reactor
from tests.tls.wired import STOCK


class Terminal(ProcessProtocol):
    """Someone typing into ``openssl s_client`` and reading what it prints."""

    transport: Any

    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[None] = Deferred()
        self._waiting: list[tuple[bytes, Deferred[None]]] = []

    def outReceived(self, data: bytes) -> None:
        self._add(data)

    def errReceived(self, data: bytes) -> None:
        self._add(data)

    def _add(self, data: bytes) -> None:
        self.output += data
        for text, waiter in list(self._waiting):
            if text in self.output:
                self._waiting.remove((text, waiter))
                self.output = self.output.partition(text)[2]
                waiter.callback(None)

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(None)

    def sees(self, text: bytes) -> Deferred[None]:
        """Return a Deferred that fires once `text` is printed, after what was seen before."""
        waiter: Deferred[None] = Deferred()
        self._waiting.append((text, waiter))
        self._add(b"")
        return waiter

    def types(self, line: bytes) -> None:
        """Type a line."""
        self.transport.write(line + b"\n")


class OpenSSLClientTests(EchoTestCase):
    """``openssl s_client`` and its one-letter commands."""

    def start(self, port: int, *options: str) -> Terminal:
        program = require("openssl", "openssl")
        terminal = Terminal()
        arguments = [program, "s_client", "-connect", f"127.0.0.1:{port}", *options]
        process = reactor.spawnProcess(terminal, program, arguments, env={})

        def stop() -> Deferred[None]:
            if not terminal.ended.called:
                process.signalProcess("KILL")
            return terminal.ended

        self.addCleanup(stop)
        return terminal

    async def _echoes(self, terminal: Terminal, line: bytes) -> None:
        terminal.types(line)
        await terminal.sees(line)

    async def _key_updates(self, letter: bytes) -> None:
        port, [*_] = self.listen(server_context(TLS13))
        terminal = self.start(port, "-tls1_3")
        await terminal.sees(b"---\n")
        await self._echoes(terminal, b"before")
        for _ in range(3):
            terminal.types(letter)
            await terminal.sees(b"KEYUPDATE")
            await self._echoes(terminal, b"after")
        terminal.types(b"Q")
        await terminal.ended

    def test_key_update_with_request(self) -> Deferred[None]:
        """``K`` changes the keys of both directions; the echo goes on."""
        return Deferred.fromCoroutine(self._key_updates(b"K"))

    def test_key_update(self) -> Deferred[None]:
        """``k`` changes the client's keys only; the echo goes on."""
        return Deferred.fromCoroutine(self._key_updates(b"k"))

    async def _refused(self) -> None:
        port, accepted = self.listen(server_context(TLS12))
        terminal = self.start(port, "-tls1_2")
        await terminal.sees(b"---\n")
        await self._echoes(terminal, b"before")
        terminal.types(b"R")
        # OpenSSL's client takes the warning alert for an error and closes.
        await terminal.sees(b"no renegotiation")
        await terminal.ended
        await accepted[0].lost
        self.assertEqual(bytes(accepted[0].received), b"before\n")

    def test_guard_renegotiation_refused(self) -> Deferred[None]:
        """``R`` is answered by the no_renegotiation alert at once, on an idle connection."""
        return Deferred.fromCoroutine(self._refused())

    async def _granted(self) -> None:
        context = server_context(TLS12, options=OP_ALLOW_CLIENT_RENEGOTIATION)
        port, accepted = self.listen(context, allow_renegotiation=True)
        terminal = self.start(port, "-tls1_2")
        await terminal.sees(b"---\n")
        for _ in range(3):
            terminal.types(b"R")
            await terminal.sees(b"RENEGOTIATING")
            await self._echoes(terminal, b"after")
        terminal.types(b"R")
        await accepted[0].lost
        self.assertIn("renegotiates", explanation(accepted[0].reason.value))

    def test_renegotiation_granted(self) -> Deferred[None]:
        """Where allowed ``R`` works three times, with data after each; the fourth is the end."""
        return Deferred.fromCoroutine(self._granted())

    async def _quits(self, version: int) -> None:
        port, accepted = self.listen(server_context(version))
        terminal = self.start(port)
        await terminal.sees(b"---\n")
        await self._echoes(terminal, b"hello")
        terminal.types(b"Q")
        await terminal.ended
        await accepted[0].lost
        self.assertIsNotNone(accepted[0].reason.check(ConnectionDone, ConnectionLost))

    def test_quit(self) -> Deferred[None]:
        """``Q`` ends the connection; the application hears of it."""
        return Deferred.fromCoroutine(self._quits(TLS13))

    def test_quit_tls12(self) -> Deferred[None]:
        """... on TLS 1.2 as well."""
        return Deferred.fromCoroutine(self._quits(TLS12))


class PythonClientTests(EchoTestCase):
    """Python's ``ssl``, blocking, in a thread."""

    def context(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.create_default_context(
            cadata=root_authority().certificate_pem.decode("ascii")
        )
        context.minimum_version = context.maximum_version = version
        return context

    def talk(
        self,
        client: Callable[[ssl.SSLSocket], Any],
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        size: int = 0,
        **options: Any,
    ) -> tuple[Deferred[Any], list[Echo]]:
        """Run `client` in a thread with a connected socket; host name verified."""
        context = server_context(identity=server_identity(size))
        port, accepted = self.listen(context, **options)

        def run() -> Any:
            plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            with self.context(version).wrap_socket(plain, server_hostname="localhost") as secure:
                return client(secure)

        return deferToThread(run), accepted

    async def _echo(self, version: ssl.TLSVersion, size: int) -> None:
        data = bytes(range(256)) * 4096

        def client(secure: ssl.SSLSocket) -> bytes:
            got = b""
            for start in range(0, len(data), 65536):
                secure.sendall(data[start : start + 65536])
                while len(got) < start + 65536:
                    got += secure.recv(65536)
            secure.unwrap()
            return got

        talk, accepted = self.talk(client, version, size)
        self.assertEqual(await talk, data)
        await accepted[0].lost
        self.assertIsNotNone(accepted[0].reason.check(ConnectionDone))

    def test_echo(self) -> Deferred[None]:
        """A megabyte there and back, clean close, TLS 1.3."""
        return Deferred.fromCoroutine(self._echo(ssl.TLSVersion.TLSv1_3, 0))

    def test_echo_tls12_large_certificate(self) -> Deferred[None]:
        """The same on TLS 1.2 with a server certificate of 90 KB."""
        return Deferred.fromCoroutine(self._echo(ssl.TLSVersion.TLSv1_2, 90_000))

    async def _reset(self) -> None:
        def client(secure: ssl.SSLSocket) -> None:
            secure.sendall(b"last words")
            secure.recv(100)
            # Closing with zero linger sends RST.
            secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        talk, accepted = self.talk(client)
        await talk
        await accepted[0].lost
        self.assertEqual(bytes(accepted[0].received), b"last words")

    def test_guard_reset(self) -> Deferred[None]:
        """A reset ends the connection; what came before it was delivered."""
        return Deferred.fromCoroutine(self._reset())

    async def _slow(self) -> None:
        size = 16_000_000

        class Bulk(Echo):
            def dataReceived(self, data: bytes) -> None:
                self.transport.write(bytes(size))
                self.transport.loseConnection()

        def client(secure: ssl.SSLSocket) -> int:
            secure.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            secure.sendall(b"go")
            got = 0
            # Slower than the close timeout as a whole, never silent for as long as it.
            while data := secure.recv(16384):
                got += len(data)
                if got % (size // 80) < len(data):
                    time.sleep(0.05)
            return got

        talk, accepted = self.talk(client, protocol=Bulk, close_timeout=1.5)
        self.assertEqual(await talk, size)
        await accepted[0].lost

    def test_slow_reader_gets_everything(self) -> Deferred[None]:
        """A peer that takes longer than the close timeout, but takes, gets all of a reply."""
        return Deferred.fromCoroutine(self._slow())

    async def _silent(self) -> None:
        port, accepted = self.listen(server_context(), handshake_timeout=0.3)
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.setblocking(False)
            while not accepted:
                await _turn()
            await accepted[0].lost
        self.assertIn("not finished", explanation(accepted[0].reason.value))

    def test_silent_client(self) -> Deferred[None]:
        """A client that says nothing is gone after the handshake timeout."""
        return Deferred.fromCoroutine(self._silent())

    async def _gone(self) -> None:
        port, accepted = self.listen(server_context())
        with socket.create_connection(("127.0.0.1", port)):
            while not accepted:
                await _turn()
        await accepted[0].lost
        self.assertIs(accepted[0].reason.type, HandshakeInterrupted)

    def test_client_that_only_connects(self) -> Deferred[None]:
        """A client that connects and goes is no error, and leaves nothing."""
        return Deferred.fromCoroutine(self._gone())

    async def _client_certificate(self) -> None:
        context = server_context(clients=True)
        port, accepted = self.listen(context)
        identity = client_identity("bob", 33_000)

        def run() -> bytes:
            client = self.context(ssl.TLSVersion.TLSv1_2)
            with NamedTemporaryFile() as file:
                file.write(identity.chain_pem + identity.key_pem)
                file.flush()
                client.load_cert_chain(file.name)
            plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            with client.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(b"who am I")
                return secure.recv(100)

        self.assertEqual(await deferToThread(run), b"who am I")
        await accepted[0].lost

    def test_large_client_certificate(self) -> Deferred[None]:
        """A client certificate of 33 KB is taken."""
        return Deferred.fromCoroutine(self._client_certificate())

    async def _stock_stalls(self) -> None:
        port, _accepted = self.listen(server_context(identity=server_identity(60_000)), STOCK)

        def run() -> str:
            plain = socket.create_connection(("127.0.0.1", port), timeout=1)
            try:
                self.context(ssl.TLSVersion.TLSv1_3).wrap_socket(plain, server_hostname="localhost")
            except TimeoutError:
                return "stalled"
            finally:
                plain.close()
            return "connected"

        self.assertEqual(await deferToThread(run), "stalled")

    def test_stock_stalls(self) -> Deferred[None]:
        """Expected failure of stock: Python's client waits for the rest of 60 KB for ever."""
        return Deferred.fromCoroutine(self._stock_stalls())


def _turn() -> Deferred[None]:
    """Return a Deferred that fires in the reactor's next turns."""
    turned: Deferred[None] = Deferred()
    reactor.callLater(0.005, turned.callback, None)
    return turned
