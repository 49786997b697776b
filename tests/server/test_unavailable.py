"""What clients are told when a store that depends on others cannot do what it was asked."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import DurabilityImpossible, ForeignData, OutcomeUnknown, StoreUnavailable
from kvproto.server import KVServer, ServerSettings
from kvproto.store import MemoryStore
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Feature, Opcode, Status
from kvproto.wire.framing import Durability, RequestFraming, encode_request_framing
from kvproto.wire.hello import decode_features, encode_features
from tests.server.support import NOW, FakeConnection, Link

MAJORITY = encode_request_framing(RequestFraming(durability=Durability(1)))


class _FailingStore:
    """Fails each operation, at once or later."""

    tokens = False

    def __init__(self, error: Exception, *, later: bool) -> None:
        self.uuid = 1
        self._error = error
        self._later = later
        self.asked_for: list[tuple[int, float | None]] = []

    def durable(self, level: int, timeout: float | None) -> _FailingStore:
        self.asked_for.append((level, timeout))
        return self

    def __getattr__(self, name: str) -> Any:
        def act(*args: Any, **options: Any) -> Deferred[Any]:
            if self._later:
                return fail(self._error)
            raise self._error

        return act


class UnavailableTests(SynchronousTestCase):
    """The table of contracts: not performed, unknown, impossible."""

    def link(self, error: Exception, *, later: bool = True) -> Link:
        self.connection = FakeConnection()
        self.store = _FailingStore(error, later=later)
        server = KVServer(self.store, ServerSettings(allow_flush=True))
        return Link(server, connection=self.connection)

    def test_not_performed(self) -> None:
        """What was not performed is a temporary failure, quiet or not, and nothing is logged."""
        for later in (True, False):
            for opcode, extras in (
                (Opcode.GET, b""),
                (Opcode.GETQ, b""),
                (Opcode.SET, bytes(8)),
                (Opcode.SETQ, bytes(8)),
                (Opcode.INCREMENT, bytes(20)),
                (Opcode.DELETE, b""),
                (Opcode.FLUSH, b""),
            ):
                link = self.link(StoreUnavailable("away"), later=later)
                key = b"" if opcode is Opcode.FLUSH else b"k"
                reply = link.call(opcode, key=key, extras=extras, opaque=7)
                self.assertEqual(
                    (reply.status, reply.opcode, reply.opaque),
                    (Status.TEMPORARY_FAILURE, opcode, 7),
                )
                self.assertFalse(link.transport.closed)

    def test_text_not_performed(self) -> None:
        """Text says so too, once for a retrieval, and nothing where no reply is wanted."""
        line = b"SERVER_ERROR temporary failure\r\n"
        for later in (True, False):
            link = self.link(StoreUnavailable("away"), later=later)
            self.assertEqual(link.ask(b"get a b c\r\n"), line)
            self.assertEqual(link.ask(b"set a 0 0 1\r\nx\r\n"), line)
            self.assertEqual(link.ask(b"set a 0 0 1 noreply\r\nx\r\nincr a 1\r\n"), line)
            self.assertEqual(link.ask(b"version\r\n")[:7], b"VERSION")

    def test_foreign(self) -> None:
        """What a server holds and we cannot read is an error, with a line that says so."""
        for later in (True, False):
            for request in (b"get k\r\n", b"incr k 1\r\n", b"set k 0 0 1\r\nx\r\n"):
                link = self.link(ForeignData("no document"), later=later)
                with capturedLogs() as logged:
                    self.assertEqual(link.ask(request), b"SERVER_ERROR internal error\r\n")
                (line,) = map(formatEvent, logged)
                self.assertIn("could not be served: no document", line)
            link = self.link(ForeignData("no document"), later=later)
            self.assertEqual(link.call(Opcode.GET, key=b"k").status, Status.INTERNAL)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_unknown(self) -> None:
        """A write of unknown fate closes the connection: no status would be true."""
        for request in (
            encode_request(Opcode.INCREMENT, key=b"k", extras=bytes(20)),
            encode_request(Opcode.SETQ, key=b"k", extras=bytes(8)),
            b"incr k 1\r\n",
            b"set k 0 0 1 noreply\r\nx\r\n",
        ):
            link = self.link(OutcomeUnknown("host:1 gave no answer"))
            self.assertEqual(link.ask(request), b"")
            self.assertTrue(link.transport.disconnecting or link.transport.closed)
            self.assertEqual(self.connection.errors, ["host:1 gave no answer"])

    def test_unknown_and_durable(self) -> None:
        """A durable write of unknown fate is said to be ambiguous; the connection stays."""
        link = self.link(OutcomeUnknown("no answer"))
        reply = link.call(Opcode.SET, key=b"k", extras=bytes(8), framing=MAJORITY)
        self.assertEqual(reply.status, Status.SYNC_WRITE_AMBIGUOUS)
        self.assertFalse(link.transport.disconnecting)

    def test_impossible(self) -> None:
        """Durability that cannot be had is said to be impossible."""
        link = self.link(DurabilityImpossible("a replica is missing"))
        reply = link.call(Opcode.SET, key=b"k", extras=bytes(8), framing=MAJORITY)
        self.assertEqual(reply.status, Status.DURABILITY_IMPOSSIBLE)

    def test_durability_is_asked_for(self) -> None:
        """Level and time reach the store, and only for the request that has them."""
        link = self.link(StoreUnavailable("away"))
        framing = encode_request_framing(RequestFraming(durability=Durability(3, 1500)))
        link.call(Opcode.SET, key=b"k", extras=bytes(8), framing=framing)
        link.call(Opcode.SET, key=b"k", extras=bytes(8), framing=MAJORITY)
        link.call(Opcode.SET, key=b"k", extras=bytes(8))
        self.assertEqual(self.store.asked_for, [(3, 1.5), (1, None)])

    def test_tokens(self) -> None:
        """Mutation tokens are not promised where a store cannot give them."""
        wanted = [Feature.MUTATION_SEQNO, Feature.XERROR]
        for store, granted in (
            (self.link(StoreUnavailable("")).store, [Feature.XERROR]),
            (MemoryStore(lambda: NOW), wanted),
        ):
            link = Link(KVServer(store))
            reply = link.call(Opcode.HELLO, value=encode_features(wanted))
            self.assertEqual(list(decode_features(reply.value)), granted)
