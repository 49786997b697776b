"""WANT_WRITE, from connections that really say it.

A memory BIO takes everything and never asks for a retry, so on production connections the
branch for WANT_WRITE is never taken.  It exists for connections whose output is bounded;
these tests use two kinds: OpenSSL writing to a socket pair with the smallest send buffer, and
OpenSSL on a BIO pair of 64, 512 or 8192 bytes (64 is what kv_engine's own test uses).  Each
test asserts that `WantWriteError` occurred: without it, nothing would have been tested.

A bounded stand-in that enforces OpenSSL's rule (repeat the identical call) makes sure that
a flush is followed by a retry, and that the retry is not with other bytes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from kvproto.testing.certificates import server_identity
from kvproto.testing.contexts import server_context
from kvproto.tls import KVTLSFactory
from tests.tls import libssl
from tests.tls.wired import STOCK, VERSIONS, Wired


class SocketPairConnection:
    """pyOpenSSL on one end of a socket pair; "BIO" calls read and write the other end.

    Attributes:
        want_writes: How often OpenSSL said WANT_WRITE.
    """

    def __init__(self, context: SSL.Context) -> None:
        self._inner, self._outer = socket.socketpair()
        for end in (self._inner, self._outer):
            end.setblocking(False)
            # The kernel makes this about 4600 bytes: its smallest.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self._connection = SSL.Connection(context, self._inner)
        self.want_writes = 0
        self.short_feeds = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def _counted(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except SSL.WantWriteError:
            self.want_writes += 1
            raise

    def do_handshake(self) -> None:
        self._counted(self._connection.do_handshake)

    def send(self, data: bytes) -> int:
        sent: int = self._counted(self._connection.send, data)
        return sent

    def recv(self, size: int) -> bytes:
        data: bytes = self._counted(self._connection.recv, size)
        return data

    def shutdown(self) -> bool:
        both: bool = self._counted(self._connection.shutdown)
        return both

    def bio_read(self, size: int) -> bytes:
        try:
            return self._outer.recv(size)
        except BlockingIOError:
            raise SSL.WantReadError from None

    def bio_write(self, data: bytes) -> int:
        try:
            taken = self._outer.send(data)
        except BlockingIOError:
            taken = 0
        if taken < len(data):
            self.short_feeds += 1
        return taken

    def bio_shutdown(self) -> None:
        self._outer.shutdown(socket.SHUT_WR)

    def free(self) -> None:
        """Close both sockets."""
        self._inner.close()
        self._outer.close()


class BoundedConnection:
    """A memory-BIO connection whose output holds 64 bytes, in pure Python.

    OpenSSL's output is taken into a buffer of its own; while more than 64 bytes of it wait
    every call is refused, a large `send` is refused once in any case, and after a refused
    `send` the next one must have the same bytes.
    """

    LIMIT = 64

    def __init__(self, context: SSL.Context) -> None:
        self._connection = SSL.Connection(context, None)
        self._output = bytearray()
        self._refused: tuple[str, bytes] | None = None
        self.want_writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def _call(self, name: str, *arguments: Any) -> Any:
        key = (name, bytes(arguments[0]) if name == "send" else b"")
        if self._refused is not None and name == "send" and self._refused != key:
            raise SSL.Error([("SSL routines", "", "bad write retry")])
        self._take()
        too_large = name == "send" and len(arguments[0]) > self.LIMIT and self._refused is None
        if too_large or len(self._output) > self.LIMIT:
            self._refused = key
            self.want_writes += 1
            raise SSL.WantWriteError
        self._refused = None
        try:
            return getattr(self._connection, name)(*arguments)
        except SSL.WantReadError:
            self._take()
            if len(self._output) <= self.LIMIT:
                raise
            self.want_writes += 1
            raise SSL.WantWriteError from None

    def _take(self) -> None:
        try:
            while True:
                self._output += self._connection.bio_read(65536)
        except SSL.WantReadError:
            return

    def do_handshake(self) -> None:
        self._call("do_handshake")

    def send(self, data: bytes) -> int:
        sent: int = self._call("send", data)
        return sent

    def recv(self, size: int) -> bytes:
        data: bytes = self._call("recv", size)
        return data

    def shutdown(self) -> bool:
        both: bool = self._call("shutdown")
        return both

    def bio_read(self, size: int) -> bytes:
        self._take()
        if not self._output:
            raise SSL.WantReadError
        size = min(size, self.LIMIT)
        data = bytes(self._output[:size])
        del self._output[:size]
        return data

    def free(self) -> None:
        """There is nothing to free."""


class Refusing(libssl.LibConnection):
    """A bounded connection that says "retry" in pyOpenSSL's way, by an exception.

    Attributes:
        refusal: The exception's class; None to answer 0.
    """

    refusal: type[SSL.Error] | None = None

    def bio_write(self, data: bytes | memoryview) -> int:
        taken = super().bio_write(data)
        if not taken and self.refusal is not None:
            raise self.refusal
        return taken


@implementer(IOpenSSLServerConnectionCreator, IOpenSSLClientConnectionCreator)
class Given:
    """Gives a server or a client one prepared connection."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def serverConnectionForTLS(self, tlsProtocol: object) -> Any:
        return self.connection

    clientConnectionForTLS = serverConnectionForTLS


LIB_VERSIONS = {VERSIONS["TLSv1.2"]: libssl.TLS12, VERSIONS["TLSv1.3"]: libssl.TLS13}

CERTIFICATE_SIZE = 9_000
"""Larger than the 8 KiB BIO, so that every bound is met during the handshake."""


class WantWriteTests(SynchronousTestCase):
    """Handshake, echo and close on connections with bounded output."""

    def serve(self, connection: Any, version: int, factory: type = KVTLSFactory) -> Wired:
        self.addCleanup(connection.free)
        wired = Wired(factory, version=version, server_tls=Given(connection))
        wired.server_app.echo()
        return wired

    def check(self, connection: Any, version: int) -> None:
        """Shake hands, echo 200 KB in both shapes, close from the client's side."""
        wired = self.serve(connection, version).handshake()
        self.assertEqual((wired.server_app.handshakes, wired.client_app.handshakes), (1, 1))
        in_handshake = connection.want_writes
        self.assertGreater(in_handshake, 0)
        data = bytes(range(256)) * 800
        wired.client_app.tls.write(b"small")
        wired.flush()
        wired.client_app.tls.write(data)
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), b"small" + data)
        self.assertGreater(connection.want_writes, in_handshake)
        wired.client_app.tls.loseConnection()
        wired.flush()
        self.assertEqual([reason.type for reason in wired.client_app.reasons], [ConnectionDone])
        self.assertEqual([reason.type for reason in wired.server_app.reasons], [ConnectionDone])
        self.assertEqual(wired.clock.getDelayedCalls(), [])

    def test_socket_pair(self) -> None:
        """A socket pair with the smallest send buffer, TLS 1.2 and 1.3."""
        for version in VERSIONS.values():
            context = server_context(version, server_identity(CERTIFICATE_SIZE))
            self.check(SocketPairConnection(context), version)

    def test_bio_pair(self) -> None:
        """BIO pairs of 64, 512 and 8192 bytes, which bound the input as well."""
        for size in (64, 512, 8192):
            for version, lib_version in LIB_VERSIONS.items():
                connection = libssl.LibConnection(
                    True, server_identity(CERTIFICATE_SIZE), lib_version, bio_size=size
                )
                self.check(connection, version)
                self.assertGreater(connection.short_feeds, 0)

    def test_bounded_both_ways(self) -> None:
        """BIO pairs that refuse input in either way that pyOpenSSL has for it, on either side."""
        data = bytes(range(256)) * 1172  # 300 kB
        for size in (64, 512, 8192):
            for version, lib_version in LIB_VERSIONS.items():
                for refusal in (None, SSL.WantReadError, SSL.WantWriteError):
                    for side in ("server", "client", "both"):
                        with self.subTest(size=size, version=version, side=side, refusal=refusal):
                            self.echo_bounded(size, version, lib_version, side, refusal, data)

    def echo_bounded(
        self, size: int, version: int, lib_version: int, side: str, refusal: Any, data: bytes
    ) -> None:
        """Echo a little and a lot, then say goodbye, where one side or both are bounded."""
        server = Refusing(True, server_identity(CERTIFICATE_SIZE), lib_version, bio_size=size)
        client = Refusing(False, None, lib_version, bio_size=size)
        bounded = [server] * (side != "client") + [client] * (side != "server")
        for connection in (server, client):
            connection.refusal = refusal
            self.addCleanup(connection.free)
        wired = Wired(
            version=version,
            server_tls=Given(server) if server in bounded else None,
            client_tls=Given(client) if client in bounded else None,
        )
        wired.server_app.echo()
        wired.handshake()
        for question in (b"small", data, b"x" * 16_384, b"small again"):
            wired.client_app.received.clear()
            wired.client_app.tls.write(question)
            wired.flush()
            self.assertEqual(bytes(wired.client_app.received), question)
        wired.client_app.tls.loseConnection()
        wired.flush()
        for connection in bounded:
            self.assertGreater(connection.want_writes, 0)
            self.assertGreater(connection.short_feeds, 0)
        for app in (wired.client_app, wired.server_app):
            self.assertEqual([reason.type for reason in app.reasons], [ConnectionDone])

    def test_records_in_records(self) -> None:
        """What looks like a record inside a record that was fed in part is not taken for one."""
        for version, lib_version in LIB_VERSIONS.items():
            connection = libssl.LibConnection(True, None, lib_version, bio_size=64)
            wired = self.serve(connection, version).handshake()
            wired.client_app.tls.write(b"before")
            wired.flush()
            records = wired.server._shell.machine._records
            self.assertTrue(records.aligned)
            for size in (100, 5000, 40_000):
                wired.client_app.tls.write(b"x" * size)
                wired.flush()
                self.assertEqual((records.aligned, records.lost), (True, False))

    def test_same_call_again(self) -> None:
        """A refused call is repeated as it was, before any other write."""
        for version in VERSIONS.values():
            context = server_context(version, server_identity(CERTIFICATE_SIZE))
            self.check(BoundedConnection(context), version)

    def test_close_from_the_bounded_side(self) -> None:
        """Closing behind a large write sends it all, then close_notify."""
        connection = BoundedConnection(server_context(identity=server_identity(CERTIFICATE_SIZE)))
        wired = self.serve(connection, VERSIONS["TLSv1.3"]).handshake()
        wired.server_app.tls.write(b"x" * 100_000)
        wired.server_app.tls.loseConnection()
        wired.flush()
        self.assertEqual(len(wired.client_app.received), 100_000)
        self.assertEqual([reason.type for reason in wired.client_app.reasons], [ConnectionDone])

    def test_no_spinning(self) -> None:
        """A connection that refuses for ever costs a few calls per event, and is cut in time."""
        connection = BoundedConnection(server_context())
        connection.LIMIT = -1
        connection.bio_read = self.nothing  # type: ignore[method-assign]
        wired = self.serve(connection, VERSIONS["TLSv1.3"]).connect()
        wired.flush()
        self.assertLess(connection.want_writes, 10)
        wired.clock.advance(10)
        wired.flush()
        self.assertEqual(len(wired.server_app.reasons), 1)

    def nothing(self, size: int) -> bytes:
        raise SSL.WantReadError

    def test_d03_fix_stock_breaks(self) -> None:
        """D3: stock raises IndexError on each WANT_WRITE, and never tells the application."""
        context = server_context(identity=server_identity(CERTIFICATE_SIZE))
        connection = SocketPairConnection(context)
        wired = self.serve(connection, VERSIONS["TLSv1.3"], STOCK).connect()
        # Out of dataReceived, and again out of connectionLost.
        self.assertRaises(IndexError, wired.flush)
        self.assertGreater(connection.want_writes, 0)
        self.assertEqual(wired.server_app.reasons, [])
        self.assertEqual(len(wired.server_factory.protocols), 1)
