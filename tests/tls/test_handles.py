"""The two ways into OpenSSL mean the same: pyOpenSSL's public methods, and its handles."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import weakref
from itertools import accumulate
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.main import CONNECTION_LOST
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from kvproto.base.compiled import PURE_PYTHON
from kvproto.testing.contexts import TLS12, TLS13, client_context, server_context
from kvproto.tls import _handles
from kvproto.tls._handles import CffiEngine, NativeEngine, engine_for
from kvproto.tls._openssl import Engine
from tests.compiled import require_compiled
from tests.tls import test_defects_data, test_defects_handshake, test_protocol
from tests.tls.wired import Wired

RECORD = 16384


def require_native(case: SynchronousTestCase) -> Any:
    """Let a test use the compiled code, wanted at run time or not, and return it."""
    native = require_compiled("kvproto.tls._native")
    case.patch(_handles, "_native", native)
    case.assertTrue(_handles._use(native))
    return native


class _Engines(SynchronousTestCase):
    """A server's engine of one kind, and pyOpenSSL's connection of its client."""

    make: type[Engine] = Engine
    version = TLS13

    def setUp(self) -> None:
        connection = SSL.Connection(server_context(self.version), None)
        connection.set_accept_state()
        self.client = SSL.Connection(client_context(self.version), None)
        self.client.set_connect_state()
        self.engine = self.make(connection)
        for _ in range(3):
            self._step(self.client.do_handshake)
            said = self._sent()
            if said:
                self.engine.feed(said)
            self._step(self.engine.handshake)
            self._tell(self.engine.drain())

    def _step(self, call: Any) -> None:
        try:
            call()
        except SSL.WantReadError:
            return

    def _sent(self) -> bytes:
        """Return the client's ciphertext."""
        try:
            return self.client.bio_read(1 << 20)
        except SSL.WantReadError:
            return b""

    def _tell(self, ciphertext: bytes) -> None:
        if ciphertext:
            self.client.bio_write(ciphertext)
            self._step(lambda: self.client.recv(1))

    def _said(self, data: bytes) -> bytes:
        self.client.send(data)
        return self._sent()


class PublicEngineTests(_Engines):
    """One engine; below, the same for the other."""

    def test_a_record(self) -> None:
        """One record is fed and opened; what is given does not change afterwards."""
        first = self.engine.open(self._said(b"first"))
        second = self.engine.open(self._said(b"other"))
        self.assertEqual((first, second), (b"first", b"other"))
        self.assertIs(first.__class__, bytes)

    def test_a_record_in_another_buffer(self) -> None:
        """Ciphertext may come in anything that has bytes."""
        self.assertEqual(self.engine.open(bytearray(self._said(b"x"))), b"x")  # type: ignore[arg-type]
        said = self._said(b"y")
        self.assertEqual(self.engine.feed(memoryview(said)), len(said))
        self.assertEqual(self.engine.read(), b"y")

    def test_records_in_pieces(self) -> None:
        """Parts of records say "more"; each whole one is read by itself."""
        data = self._said(b"a" * RECORD) + self._said(b"b")
        self.assertEqual(self.engine.feed(data[:100]), 100)
        self.assertRaises(SSL.WantReadError, self.engine.read)
        self.assertEqual(self.engine.feed(data[100:]), len(data) - 100)
        self.assertEqual(self.engine.read(), b"a" * RECORD)
        self.assertEqual(self.engine.read(), b"b")
        self.assertRaises(SSL.WantReadError, self.engine.read)

    def opened(self, said: list[bytes]) -> tuple[bytes, int, SSL.Error | None]:
        """Open records of the client at once."""
        ends = list(accumulate(map(len, said)))
        return self.engine.open_all(b"".join(said) + b"tail", ends)

    def test_several_records(self) -> None:
        """Their plaintext is joined; what is behind them is not touched."""
        said = [self._said(bytes([number]) * RECORD) for number in range(5)]
        plaintext, fed, error = self.opened(said)
        self.assertEqual(plaintext, b"".join(bytes([number]) * RECORD for number in range(5)))
        self.assertEqual((fed, error), (sum(map(len, said)), None))

    def test_records_up_to_one_that_is_odd(self) -> None:
        """What precedes it is given; the error has no frames that keep anything alive."""
        said = [self._said(b"a"), self._said(b"b"), self._said(b"c")]
        broken = bytearray(said[1])
        broken[-1] ^= 1
        plaintext, fed, error = self.opened([said[0], bytes(broken), said[2]])
        self.assertEqual((plaintext, fed), (b"a", len(said[0]) + len(said[1])))
        self.assertIn("bad record mac", str(error))
        assert error is not None
        self.assertIsNone(error.__traceback__)

    def test_records_and_the_end(self) -> None:
        """A close_notify among them is told after what precedes it."""
        said = [self._said(b"a")]
        self.client.shutdown()
        plaintext, _, error = self.opened([*said, self._sent()])
        self.assertEqual(plaintext, b"a")
        self.assertIsInstance(error, SSL.ZeroReturnError)

    def test_a_write_is_fetched(self) -> None:
        """What is encrypted can be decrypted; afterwards nothing is left."""
        self.assertEqual(self.engine.write(b"hello"), 5)
        self.client.bio_write(self.engine.fetch(5))
        self.assertEqual(self.client.recv(10), b"hello")
        self.assertEqual(self.engine.fetch(5), b"")
        self.assertEqual(self.engine.drain(), b"")

    def test_large_writes(self) -> None:
        """Much is encrypted and fetched whole, in whatever steps the engine takes."""
        data = bytes(range(256)) * 1024
        rest = memoryview(data)
        while rest:
            rest = rest[self.engine.write(rest) :]
        self.client.bio_write(self.engine.fetch(len(data)))
        got = b"".join(self.client.recv(RECORD) for _ in range(len(data) // RECORD))
        self.assertEqual(got, data)
        self.assertEqual(self.engine.drain(), b"")

    def test_the_end(self) -> None:
        """The peer's close_notify is told as such, whichever way it is met."""
        self.client.shutdown()
        alert = self._sent()
        self.assertRaises(SSL.ZeroReturnError, self.engine.open, alert)
        self.assertRaises(SSL.ZeroReturnError, self.engine.read)

    def test_a_broken_record(self) -> None:
        """Ciphertext that was changed is an error with OpenSSL's own words."""
        record = bytearray(self._said(b"x"))
        record[-1] ^= 1
        broken = self.assertRaises(SSL.Error, self.engine.open, bytes(record))
        self.assertIs(broken.__class__, SSL.Error)
        self.assertIn("bad record mac", str(broken))
        self.assertRaises(SSL.Error, self.engine.write, b"x")
        self.assertNotEqual(self.engine.drain(), b"", "the alert waits")

    def test_input_that_has_ended(self) -> None:
        """The end of the input without a close_notify is an unexpected end."""
        self.engine.end_of_input()
        ended = self.assertRaises(SSL.SysCallError, self.engine.read)
        self.assertEqual(ended.args, (-1, "Unexpected EOF"))

    def test_a_handshake_in_pieces(self) -> None:
        """It waits for the peer until the last byte is there, and is over once."""
        connection = SSL.Connection(server_context(self.version), None)
        connection.set_accept_state()
        engine = self.make(connection)
        client = SSL.Connection(client_context(self.version), None)
        client.set_connect_state()
        ended = False
        while not ended:
            self._step(client.do_handshake)
            for byte in client.bio_read(1 << 16):
                self.assertFalse(ended, "nothing is left after the end")
                engine.feed(bytes([byte]))
                ended = engine.handshake()
                if said := engine.drain():
                    client.bio_write(said)

    def test_a_handshake_that_cannot_be(self) -> None:
        """What OpenSSL refuses is an error, and the alert waits."""
        connection = SSL.Connection(server_context(self.version), None)
        connection.set_accept_state()
        engine = self.make(connection)
        engine.feed(b"GET / HTTP/1.1\r\n\r\n")
        self.assertIn("http request", str(self.assertRaises(SSL.Error, engine.handshake)))

    def test_input_that_waits(self) -> None:
        """A whole record that was fed is seen; whoever cannot look says that there may be one."""
        self.engine.feed(self._said(b"early"))
        self.assertTrue(self.engine.may_hold_input())
        self.assertEqual(self.engine.read(), b"early")
        if self.make is not Engine:
            self.assertFalse(self.engine.may_hold_input())

    def test_a_write_after_our_goodbye(self) -> None:
        """Writing after close_notify is an error, not a loss."""
        self.assertFalse(self.engine.shutdown())
        self.assertRaises(SSL.Error, self.engine.write, b"x")


class PublicEngine12Tests(PublicEngineTests):
    """The same with TLS 1.2."""

    version = TLS12


class CffiEngineTests(PublicEngineTests):
    """The same with pyOpenSSL's handles."""

    make = CffiEngine


class _Native(_Engines):
    """A server's engine whose usual steps are compiled."""

    make = NativeEngine

    def setUp(self) -> None:
        require_native(self)
        super().setUp()


class NativeEngineTests(_Native, PublicEngineTests):
    """The same compiled."""


class NativeEngine12Tests(_Native, PublicEngineTests):
    """The same compiled, with TLS 1.2."""

    version = TLS12


class SealTests(_Engines):
    """Encrypting and fetching in one step, which only handles can."""

    make = CffiEngine

    def test_all_or_nothing(self) -> None:
        """Whatever its size, a piece is encrypted whole, and all ciphertext is returned."""
        for size in (1, RECORD, 5 * RECORD, 10 * RECORD):
            data = bytes(range(256)) * (size // 256) or b"x"
            self.client.bio_write(self.engine.seal(memoryview(data)))
            got = b""
            while len(got) < len(data):
                got += self.client.recv(RECORD)
            self.assertEqual(got, data)
        self.assertEqual(self.engine.drain(), b"")

    def test_errors(self) -> None:
        """What OpenSSL refuses is raised as by pyOpenSSL."""
        self.engine.shutdown()
        self.assertRaises(SSL.Error, self.engine.seal, b"x")

    def test_what_is_no_buffer(self) -> None:
        """It is refused, and the connection goes on."""
        self.assertRaises(TypeError, self.engine.seal, "text")
        self.client.bio_write(self.engine.seal(b"x"))
        self.assertEqual(self.client.recv(1), b"x")

    def test_only_handles(self) -> None:
        """The public way can be refused in the middle, so it has no such step."""
        self.assertFalse(Engine.seals)
        self.assertRaises(NotImplementedError, Engine(self.client).seal, b"x")


class CffiEngine12Tests(PublicEngineTests):
    """The same with pyOpenSSL's handles and TLS 1.2."""

    make = CffiEngine
    version = TLS12


class ChoiceTests(SynchronousTestCase):
    """Which engine a connection gets."""

    def test_handles_where_they_are(self) -> None:
        """Those of pyOpenSSL itself: its own connections with memory BIOs."""
        best = NativeEngine if _handles.NATIVE else CffiEngine
        connection = SSL.Connection(server_context(), None)
        self.assertIs(engine_for(connection).__class__, best)

    def test_compiled_where_it_was_built(self) -> None:
        """Nothing but its absence, or the operator's word, keeps it from being used."""
        require_native(self)
        wanted = os.environ.get(PURE_PYTHON) != "1"
        self.assertEqual(_handles.NATIVE, wanted)

    def test_other_functions_are_not_called(self) -> None:
        """Where OpenSSL's functions are not what they are taken for, Python calls them."""
        native = require_native(self)
        self.patch(_handles, "_TRANSFER_TYPES", set())
        self.assertFalse(_handles._use(native))

    def test_public_methods_elsewhere(self) -> None:
        """Subclasses, stand-ins, and connections on sockets keep their own methods."""

        class Other(SSL.Connection):
            """Somebody's own."""

        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        for connection in (
            Other(server_context(), None),
            object(),
            SSL.Connection(server_context(), ours),
        ):
            self.assertIs(engine_for(connection).__class__, Engine)

    def test_public_methods_without_handles(self) -> None:
        """Another pyOpenSSL has its public methods."""
        self.patch(_handles, "AVAILABLE", False)
        connection = SSL.Connection(server_context(), None)
        self.assertIs(engine_for(connection).__class__, Engine)


class PipeTests(SynchronousTestCase):
    """What the compiled code refuses to be made of."""

    def test_an_address_is_missing(self) -> None:
        """Nowhere is nowhere: an error in Python, not a crash."""
        native = require_native(self)
        for addresses in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
            self.assertRaises(ValueError, native.Pipe, *addresses, None, None)

    def test_it_is_freed_with_its_connection(self) -> None:
        """No circle: what nobody holds any more is gone at once."""
        require_native(self)
        connection = SSL.Connection(server_context(), None)
        connection.set_accept_state()
        engine = NativeEngine(connection)
        engine.feed(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(SSL.Error):
            engine.read()
        gone = weakref.ref(connection)
        gc.disable()
        self.addCleanup(gc.enable)
        del connection, engine
        self.assertIsNone(gone())


def _on(name: str, case: type[Any], **patches: Any) -> type[Any]:
    """Return a test case that runs with other values in `kvproto.tls._handles`."""

    class Other(case):
        def setUp(self) -> None:
            for attribute, value in patches.items():
                self.patch(_handles, attribute, value)
            super().setUp()

    Other.__name__ = Other.__qualname__ = f"{name}{case.__name__}"
    return Other


def _without_handles(case: type[Any]) -> type[Any]:
    """Return a test case that runs on public methods only."""
    return _on("Public", case, AVAILABLE=False)


def _in_python(case: type[Any]) -> type[Any]:
    """Return a test case that runs without compiled code."""
    return _on("Python", case, _best_engine=CffiEngine)


class ManyRecordsTests(SynchronousTestCase):
    """Several records in one read, through the protocol."""

    def setUp(self) -> None:
        self.wired = Wired(chunk=1 << 20, window=1 << 20).handshake()
        self.server = self.wired.server
        self.pieces: list[bytes] = []
        self.wired.server_app.on_data = self.pieces.append

    def _said(self, *pieces: bytes) -> list[bytes]:
        """Return the client's ciphertext, a record for each piece."""
        engine = self.wired.client._shell.machine.engine
        return [(engine.write(piece), engine.drain())[1] for piece in pieces]

    def test_whole_records_in_one_piece(self) -> None:
        """They are given at once, and answered with one write."""
        said = self._said(b"a" * RECORD, b"b" * RECORD, b"c")
        self.wired.server_app.on_data = lambda data: self.wired.server_app.tls.write(b"yes")
        before = self.wired.client_app.received[:]
        self.server.dataReceived(b"".join(said))
        self.assertEqual(self.wired.server_app.pieces, [2 * RECORD + 1])
        self.wired.flush()
        self.assertEqual(self.wired.client_app.received[len(before) :], b"yes")

    def test_cut_anywhere(self) -> None:
        """However the records are cut, every byte arrives once and in order."""
        expected = b"".join((b"a" * RECORD, b"b" * 100, b"c" * RECORD, b"d"))
        for cut in range(1, 500, 37):
            data = b"".join(self._said(b"a" * RECORD, b"b" * 100, b"c" * RECORD, b"d"))
            self.pieces.clear()
            self.server.dataReceived(data[:-cut])
            self.server.dataReceived(data[-cut:])
            self.assertEqual(b"".join(self.pieces), expected, cut)

    def test_a_pause_holds(self) -> None:
        """Half a record behind whole ones is not given to an application that paused on them."""
        first, second = self._said(b"a")[0], b"".join(self._said(b"c", b"d"))
        self.wired.server_app.on_data = lambda data: self.wired.server_app.tls.pauseProducing()
        middle = len(second) - 10
        self.server.dataReceived(first + second[:middle])
        self.server.dataReceived(second[middle:])
        given = bytes(self.wired.server_app.received)
        self.assertFalse(given.endswith(b"d"))
        self.wired.server_app.on_data = lambda data: None
        self.wired.server_app.tls.resumeProducing()
        self.assertTrue(bytes(self.wired.server_app.received).endswith(b"d"))

    def test_a_failing_application(self) -> None:
        """It is given nothing more, not even what came in the same read."""
        data = b"".join(self._said(b"a", b"b"))
        self.wired.server_app.on_data = lambda piece: 1 / 0
        self.assertRaises(ZeroDivisionError, self.server.dataReceived, data + data[:10])
        self.assertEqual(len(self.wired.server_app.pieces), 1)
        self.server.dataReceived(data[10:])
        self.assertEqual(len(self.wired.server_app.pieces), 1)

    def test_a_goodbye_behind_them(self) -> None:
        """Data in front of a close_notify in the same read is delivered, then the end."""
        said = self._said(b"a", b"b")
        engine = self.wired.client._shell.machine.engine
        engine.shutdown()
        self.server.dataReceived(b"".join(said) + engine.drain())
        self.assertEqual(b"".join(self.pieces), b"ab")
        self.wired.clock.advance(self.server.answer_pause)
        self.wired.flush()
        self.assertEqual(len(self.wired.server_app.reasons), 1)

    def test_a_record_that_was_changed(self) -> None:
        """What precedes it is delivered, what follows is not, and the peer is told."""
        said = self._said(b"a", b"b", b"c")
        broken = bytearray(said[1])
        broken[-1] ^= 1
        self.server.dataReceived(said[0] + bytes(broken) + said[2])
        self.assertEqual(self.pieces, [b"a"])
        self.wired.flush()
        self.assertIn("bad record mac", str(self.wired.server_app.reasons[0].value))


class CountingContext:
    """Makes server connections that count how often they are asked to shake hands."""

    def __init__(self) -> None:
        self.asked = 0

    def serverConnectionForTLS(self, protocol: object) -> Any:
        counting = self

        class Counted(SSL.Connection):
            def do_handshake(self) -> None:
                counting.asked += 1
                super().do_handshake()

        connection = Counted(server_context(), None)
        connection.set_accept_state()
        return connection


class ServesTests(SynchronousTestCase):
    """Factories that know that they serve."""

    def test_openssl_is_asked_when_there_is_something(self) -> None:
        """Not at the connection, but with the first bytes; the handshake ends all the same."""
        for serves, asked in ((False, 1), (True, 0)):
            context = CountingContext()
            directlyProvides(context, IOpenSSLServerConnectionCreator)
            wired = Wired(server_tls=context)
            wired.server_factory.serves = serves  # type: ignore[attr-defined]
            wired.connect()
            self.assertEqual(context.asked, asked)
            wired.flush()
            self.assertEqual(wired.server_app.handshakes, 1)
            wired.server_app.echo()
            wired.client_app.tls.write(b"x")
            wired.flush()
            self.assertEqual(wired.client_app.received, b"x")

    def test_its_deadline_runs(self) -> None:
        """A peer that says nothing is dropped all the same."""
        wired = Wired()
        wired.server_factory.serves = True  # type: ignore[attr-defined]
        wired.connect()
        wired.pair.client.unsent.clear()
        wired.clock.advance(10)
        self.assertTrue(wired.pair.server.aborted)

    def test_a_reset_after_the_last_record(self) -> None:
        """With nothing left to decrypt it is a lost connection, told once."""
        wired = Wired().handshake()
        wired.server.connectionLost(Failure(CONNECTION_LOST))
        self.assertIsInstance(wired.server_app.reasons[0].value, ConnectionLost)
        self.assertEqual(len(wired.server_app.reasons), 1)


class AnswerTests(SynchronousTestCase):
    """Answers to one read, by the short way where it is open."""

    def wired(self, **options: Any) -> Wired:
        wired = Wired(**options).handshake()
        wired.server_app.echo()
        return wired

    def test_in_one_write(self) -> None:
        """Several writes leave as one record."""
        wired = self.wired()
        tls = wired.server_app.tls
        wired.server_app.on_data = lambda data: [tls.write(b"a"), tls.writeSequence([b"b", b"c"])]
        wired.client_app.tls.write(b"x")
        wired.flush()
        self.assertEqual(wired.client_app.pieces, [3])

    def test_for_a_full_transport(self) -> None:
        """Nothing is encrypted for a transport that has enough; it waits, in order."""
        wired = self.wired()
        wired.server._shell.transport_full()
        wired.client_app.tls.write(b"one")
        wired.flush()
        wired.client_app.tls.write(b"two")
        wired.flush()
        self.assertEqual(wired.client_app.received, b"")
        wired.server._shell.transport_ready()
        wired.flush()
        self.assertEqual(wired.client_app.received, b"onetwo")

    def test_and_a_goodbye(self) -> None:
        """An answer before a close, of both halves or one, arrives before it."""
        for close in ("loseConnection", "loseWriteConnection"):
            wired = Wired().handshake()

            def answer(data: bytes, wired: Wired = wired, close: str = close) -> None:
                wired.server_app.tls.write(b"bye")
                getattr(wired.server_app.tls, close)()

            wired.server_app.on_data = answer
            wired.client_app.tls.write(b"x")
            wired.flush()
            self.assertEqual(wired.client_app.received, b"bye")
            self.assertEqual(len(wired.client_app.reasons), 1, close)

    def test_on_a_transport_that_answers_at_once(self) -> None:
        """What is written from within the transport's write follows, once and in order."""
        wired = self.wired()
        server, transport = wired.server, wired.server.transport
        write = transport.write
        more = [b"2", b"3"]

        def answered(data: bytes) -> None:
            write(data)
            if more:
                server.write(more.pop(0))

        transport.write = answered
        wired.client_app.tls.write(b"1")
        wired.flush()
        wired.clock.advance(1)
        wired.flush()
        self.assertEqual(wired.client_app.received, b"123")

    def test_large(self) -> None:
        """More than a record is no matter for the short way, and arrives."""
        wired = Wired().handshake()
        large = bytes(range(256)) * 1000
        wired.server_app.on_data = lambda data: wired.server_app.tls.write(large)
        wired.client_app.tls.write(b"x")
        wired.flush()
        self.assertEqual(bytes(wired.client_app.received), large)

    def test_that_cannot_be_encrypted(self) -> None:
        """OpenSSL's error ends the connection, and the application hears of it."""
        wired = self.wired()
        wired.server._shell.machine.engine.connection.shutdown()
        wired.client_app.tls.write(b"x")
        wired.flush()
        self.assertEqual(len(wired.server_app.reasons), 1)

    def test_while_openssl_wants_to_read(self) -> None:
        """A refusal for the moment is answered by the identical call, later."""
        wired = self.wired(version=TLS12)
        engine = wired.server._shell.machine.engine
        asked = []

        class Reluctant(CffiEngine):
            def seal(self, data: bytes | memoryview) -> bytes:
                asked.append(bytes(data))
                raise SSL.WantReadError

            def write(self, data: bytes | memoryview) -> int:
                asked.append(bytes(data))
                return super().write(data)

        reluctant = Reluctant(engine.connection)
        wired.server._shell.machine.engine = reluctant
        wired.client_app.tls.write(b"x")
        wired.flush()
        self.assertEqual(asked, [b"x", b"x"])
        self.assertEqual(wired.client_app.received, b"x")


PythonAnswerTests = _in_python(AnswerTests)
PythonManyRecordsTests = _in_python(ManyRecordsTests)
PythonWritingTests = _in_python(test_protocol.WritingTests)
PythonClosingTests = _in_python(test_defects_data.ClosingTests)
PythonLargeFlightTests = _in_python(test_defects_handshake.LargeFlightTests)
PublicAnswerTests = _without_handles(AnswerTests)
PublicManyRecordsTests = _without_handles(ManyRecordsTests)
PublicWritingTests = _without_handles(test_protocol.WritingTests)
PublicAggregationTests = _without_handles(test_defects_data.AggregationTests)
PublicClosingTests = _without_handles(test_defects_data.ClosingTests)
PublicFloodTests = _without_handles(test_defects_data.FloodTests)
PublicLargeFlightTests = _without_handles(test_defects_handshake.LargeFlightTests)
PublicRenegotiationTests = _without_handles(test_defects_handshake.RenegotiationTests)
PublicNotTLSTests = _without_handles(test_defects_handshake.NotTLSTests)
