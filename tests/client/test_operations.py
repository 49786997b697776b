"""Each operation: what it sends, what it makes of the answer."""

from __future__ import annotations

from struct import pack
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.client import (
    CasMismatchError,
    ConnectionFailedError,
    CounterResult,
    Durability,
    ExistsError,
    GetResult,
    KVClientProtocol,
    LockedError,
    MutationResult,
    MutationToken,
    NotFoundError,
    NotNegotiatedError,
    OversizedReplyError,
    ReplyError,
    TemporaryError,
)
from kvproto.client.exchange import Exchange
from kvproto.client.operations import ServerOperations
from kvproto.errors import LocalProtocolError
from kvproto.wire.constants import Feature, Opcode, Status
from kvproto.wire.frames import Request
from tests.client.peer import ALL_FEATURES, connected, encode, settle


class OnOneConnection(ServerOperations):
    """The operations, asked on one connection."""

    def __init__(self, protocol: KVClientProtocol) -> None:
        self._protocol = protocol

    def _ask(self, exchange: Exchange[Any], timeout_s: float | None) -> Deferred[Any]:
        deferred = exchange.deferred
        assert deferred is not None
        exchange.deadline = 2.5 if timeout_s is None else timeout_s
        self._protocol.submit(exchange)
        return deferred


class OperationsTestCase(SynchronousTestCase):
    """Operations and the requests that they become."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.protocol = KVClientProtocol(self.clock, max_body=1000)
        self.protocol.features = ALL_FEATURES
        self.peer = connected(self.protocol, self.clock)
        self.ask = OnOneConnection(self.protocol)

    def result_of(self, deferred: Deferred[Any]) -> Any:
        """Return what a Deferred has fired with."""
        return self.successResultOf(deferred)

    def asked(self, opcode: int) -> Request:
        """Return the one request that was asked."""
        (request,) = self.peer.asked
        self.assertEqual(request.opcode, opcode)
        return request

    def answered(self, deferred: Deferred[Any], status: int = 0, **fields: Any) -> Any:
        """Answer the one request, and return what comes of it."""
        self.peer.reply(self.peer.asked[0], status, **fields)
        return self.successResultOf(deferred)


class ReadingTests(OperationsTestCase):
    """Operations that read."""

    def test_get(self):
        """GET: a value, flags, CAS and datatype."""
        found = self.ask.get(b"k")
        request = self.asked(Opcode.GET)
        self.assertEqual((request.key, request.extras, request.value), (b"k", b"", b""))
        result = self.answered(found, extras=pack(">I", 7), value=b"v", cas=9, datatype=1)
        self.assertEqual(result, GetResult(b"v", 7, 9, 1))

    def test_miss(self):
        """What is not there is None, for all that only read."""
        for ask in (
            lambda: self.ask.get(b"k"),
            lambda: self.ask.get_and_touch(b"k", 1),
            lambda: self.ask.get_and_lock(b"k"),
        ):
            self.assertIsNone(self.answered(ask(), Status.NOT_FOUND, value=b"Not found"))

    def test_get_and_touch(self):
        """GAT: the expiry in extras."""
        found = self.ask.get_and_touch(b"k", 60)
        self.assertEqual(self.asked(Opcode.GAT).extras, pack(">I", 60))
        self.assertEqual(self.answered(found, extras=bytes(4)), GetResult(b"", 0, 0))

    def test_get_and_lock(self):
        """GET_LOCKED: the seconds in extras, the CAS is the key."""
        found = self.ask.get_and_lock(b"k", 20)
        self.assertEqual(self.asked(Opcode.GET_LOCKED).extras, pack(">I", 20))
        self.assertEqual(self.answered(found, extras=bytes(4), cas=5).cas, 5)

    def test_locked(self):
        """A status that the operation does not expect is an exception, with the server's words."""
        found = self.ask.get_and_lock(b"k")
        self.peer.reply(
            self.asked(Opcode.GET_LOCKED),
            Status.LOCKED,
            value=b'{"error":{"context":"held by another"}}',
            datatype=1,
        )
        error = self.failureResultOf(found, LockedError).value
        self.assertEqual(str(error), "GET_LOCKED was answered LOCKED: held by another")

    def test_malformed(self):
        """A hit without flags is the server's fault and ends the connection."""
        found = self.ask.get(b"k")
        self.peer.reply(self.asked(Opcode.GET), value=b"v")
        settle(self.clock)
        self.failureResultOf(found, ConnectionFailedError)


class ManyTests(OperationsTestCase):
    """get_many()."""

    def hit(self, request: Request, value: bytes) -> bytes:
        return encode(request, extras=bytes(4), value=value, cas=1)

    def test_batch(self):
        """One write of quiet GETs and a NOOP; misses are simply absent."""
        found = self.ask.get_many([b"a", b"b", b"c", b"a"])
        self.assertEqual(len(self.peer.writes), 1)
        a, b, c, end = self.peer.asked
        self.assertEqual([one.opcode for one in (a, b, c, end)], [9, 9, 9, 10])
        self.peer.send(self.hit(a, b"1") + self.hit(c, b"3"))
        self.assertNoResult(found)
        self.peer.send(encode(end))
        self.assertEqual(
            self.successResultOf(found),
            {b"a": GetResult(b"1", 0, 1), b"c": GetResult(b"3", 0, 1)},
        )
        self.assertEqual(self.protocol.in_flight, 0)

    def test_nothing(self):
        """No keys, no request."""
        self.assertEqual(self.successResultOf(self.ask.get_many([])), {})
        self.assertEqual(self.peer.writes, [])

    def test_between_others(self):
        """Other requests before and after a batch get their own replies."""
        before, found, after = self.ask.get(b"x"), self.ask.get_many([b"a"]), self.ask.get(b"y")
        x, _, end, y = self.peer.asked
        self.peer.send(self.hit(x, b"x") + encode(end) + self.hit(y, b"y"))
        self.assertEqual(self.result_of(before).value, b"x")
        self.assertEqual(self.successResultOf(found), {})
        self.assertEqual(self.result_of(after).value, b"y")

    def test_long(self):
        """A long list becomes several batches, merged."""
        keys = [b"%d" % number for number in range(600)]
        found = self.ask.get_many(keys)
        self.assertEqual([one.opcode for one in self.peer.asked].count(Opcode.NOOP), 3)
        self.peer.send(
            b"".join(
                encode(one) if one.opcode == Opcode.NOOP else self.hit(one, one.key)
                for one in self.peer.asked
            )
        )
        result = self.successResultOf(found)
        self.assertEqual([result[key].value for key in keys], keys)

    def test_error(self):
        """An error for one key is an error for all, once the batch is through."""
        found = self.ask.get_many([b"a", b"b"])
        a, b, end = self.peer.asked
        self.peer.send(encode(a, Status.TEMPORARY_FAILURE) + self.hit(b, b"2"))
        self.assertNoResult(found)
        self.peer.send(encode(end))
        self.failureResultOf(found, TemporaryError)

    def test_first_error(self):
        """Of several errors the first one is told, also when a reply is too long."""
        for first, second in ((Status.BUSY, Status.NO_ACCESS), (Status.NO_ACCESS, Status.BUSY)):
            found = self.ask.get_many([b"a", b"b", b"c"])
            a, b, c, end = self.peer.asked[-4:]
            self.peer.send(encode(a, first) + encode(b, second) + self.hit(c, bytes(2000)))
            self.peer.send(encode(end))
            self.assertEqual(self.failureResultOf(found, ReplyError).value.status, first)

    def test_error_in_a_long_list(self):
        """The error of one batch is the error of the list, as it is."""
        found = self.ask.get_many([b"%d" % number for number in range(300)])
        first = self.peer.asked[0]
        ends = [one for one in self.peer.asked if one.opcode == Opcode.NOOP]
        self.peer.send(encode(first, Status.BUSY) + b"".join(map(encode, ends)))
        self.failureResultOf(found, TemporaryError)

    def test_oversized(self):
        """A value that is too long fails the batch, once it is through."""
        found = self.ask.get_many([b"a", b"b"])
        a, _, end = self.peer.asked
        self.peer.send(self.hit(a, bytes(2000)) + encode(end))
        self.failureResultOf(found, OversizedReplyError)

    def test_cancelled(self):
        """The replies to a cancelled batch are thrown away, all of them."""
        found, other = self.ask.get_many([b"a", b"b"]), self.ask.get(b"c")
        found.cancel()
        self.failureResultOf(found)
        a, _, end, c = self.peer.asked
        self.peer.send(self.hit(a, b"1") + encode(end) + self.hit(c, b"3"))
        self.assertEqual(self.result_of(other).value, b"3")
        self.assertEqual(self.protocol.in_flight, 0)

    def test_wrong_opcode(self):
        """A batch's end that is no NOOP ends the connection."""
        found = self.ask.get_many([b"a"])
        end = self.peer.asked[1]
        end.opcode = Opcode.GETQ
        self.peer.send(encode(end))
        self.assertTrue(self.peer.aborted)
        settle(self.clock)
        self.failureResultOf(found, ConnectionFailedError)


class WritingTests(OperationsTestCase):
    """Operations that change."""

    def test_store(self):
        """SET, ADD and REPLACE: flags and expiry in extras, a mutation token back."""
        for opcode, store in (
            (Opcode.SET, self.ask.set),
            (Opcode.ADD, self.ask.add),
            (Opcode.REPLACE, self.ask.replace),
        ):
            done = store(b"k", b"value", flags=1, expiry=2, datatype=1)
            request = self.asked(opcode)
            self.assertEqual((request.key, request.value), (b"k", b"value"))
            self.assertEqual((request.extras, request.datatype), (pack(">II", 1, 2), 1))
            self.assertEqual(
                self.answered(done, cas=3, extras=pack(">QQ", 4, 5)),
                MutationResult(3, MutationToken(4, 5)),
            )

    def test_without_extras(self):
        """APPEND, PREPEND and DELETE have none; a server without tokens answers none."""
        for opcode, ask in (
            (Opcode.APPEND, lambda: self.ask.append(b"k", b"v", cas=8)),
            (Opcode.PREPEND, lambda: self.ask.prepend(b"k", b"v", cas=8)),
            (Opcode.DELETE, lambda: self.ask.delete(b"k", cas=8)),
        ):
            done = ask()
            request = self.asked(opcode)
            self.assertEqual((request.extras, request.cas), (b"", 8))
            self.assertEqual(self.answered(done, cas=3), MutationResult(3))

    def test_exists(self):
        """To who gave a CAS, "exists" means "has changed"."""
        plain = self.ask.add(b"k", b"v")
        self.peer.reply(self.asked(Opcode.ADD), Status.EXISTS)
        self.assertIs(self.failureResultOf(plain).type, ExistsError)
        guarded = self.ask.set(b"k", b"v", cas=1)
        self.peer.reply(self.asked(Opcode.SET), Status.EXISTS)
        self.failureResultOf(guarded, CasMismatchError)

    def test_durability_and_expiry(self):
        """Framing extras say what shall be durable, and that an expiry shall be kept."""
        self.ask.set(b"k", b"v", preserve_expiry=True, durability=Durability(1, 900))
        self.assertEqual(self.asked(Opcode.SET).framing, b"\x13\x01\x03\x84\x50")

    def test_framing_must_be_negotiated(self):
        """Without the features nothing is sent that the server would misread."""
        for features in (set(), {Feature.PRESERVE_TTL}, {Feature.ALT_REQUEST}):
            self.protocol.features = frozenset(features)
            done = self.ask.set(b"k", b"v", preserve_expiry=True)
            self.failureResultOf(done, NotNegotiatedError)
        self.failureResultOf(self.ask.delete(b"k", durability=Durability(1)), NotNegotiatedError)
        self.assertEqual(self.peer.writes, [])

    def test_touch(self):
        """TOUCH: memcached's extras are no mutation token."""
        done = self.ask.touch(b"k", 60)
        self.assertEqual(self.asked(Opcode.TOUCH).extras, pack(">I", 60))
        self.assertEqual(self.answered(done, cas=1, extras=bytes(4)), MutationResult(1))

    def test_unlock(self):
        """UNLOCK: with the CAS of the lock."""
        done = self.ask.unlock(b"k", 77)
        self.assertEqual(self.asked(Opcode.UNLOCK).cas, 77)
        self.assertIsNone(self.answered(done))


class CountingTests(OperationsTestCase):
    """Counters."""

    def test_count(self):
        """Delta, initial value and expiry in extras; eight bytes back."""
        for opcode, count in (
            (Opcode.INCREMENT, self.ask.increment),
            (Opcode.DECREMENT, self.ask.decrement),
        ):
            done = count(b"n", 5, initial=10, expiry=60)
            self.assertEqual(self.asked(opcode).extras, pack(">QQI", 5, 10, 60))
            self.assertEqual(
                self.answered(done, value=pack(">Q", 2**64 - 1), cas=1, extras=pack(">QQ", 2, 3)),
                CounterResult(2**64 - 1, 1, MutationToken(2, 3)),
            )

    def test_without_initial(self):
        """Without an initial value a missing counter is not created."""
        done = self.ask.increment(b"n")
        request = self.asked(Opcode.INCREMENT)
        self.assertEqual(request.extras, pack(">QQI", 1, 0, 0xFFFFFFFF))
        self.peer.reply(request, Status.NOT_FOUND)
        self.failureResultOf(done, NotFoundError)

    def test_malformed(self):
        """A counter of another size is the server's fault."""
        done = self.ask.increment(b"n")
        self.peer.reply(self.asked(Opcode.INCREMENT), value=b"12")
        settle(self.clock)
        self.failureResultOf(done, ConnectionFailedError)


class ServerTests(OperationsTestCase):
    """What concerns no document."""

    def test_noop(self):
        """NOOP: nothing, but an answer."""
        self.protocol.collections = True
        done = self.ask.noop()
        self.assertEqual(self.asked(Opcode.NOOP).key, b"")
        self.assertIsNone(self.answered(done))

    def test_version(self):
        """VERSION: a text."""
        self.assertEqual(self.answered(self.ask.version(), value=b"1.6.18"), "1.6.18")

    def test_stats(self):
        """STAT: a packet for each item, then one without a key."""
        done = self.ask.stats(b"group")
        request = self.asked(Opcode.STAT)
        self.assertEqual(request.key, b"group")
        self.peer.send(encode(request, key=b"a", value=b"1") + encode(request, key=b"b"))
        self.assertNoResult(done)
        self.peer.send(encode(request))
        self.assertEqual(self.successResultOf(done), {"a": "1", "b": ""})
        self.assertEqual(self.protocol.in_flight, 0)

    def test_stats_unknown(self):
        """An unknown group is an error, and no more packets are waited for."""
        done = self.ask.stats(b"group")
        self.peer.reply(self.asked(Opcode.STAT), Status.NOT_FOUND)
        self.failureResultOf(done, NotFoundError)
        self.assertEqual(self.protocol.in_flight, 0)

    def test_stats_wrong_opcode(self):
        """Statistics that come as something else end the connection."""
        done = self.ask.stats()
        request = self.asked(Opcode.STAT)
        request.opcode = Opcode.GET
        self.peer.send(encode(request, key=b"a", value=b"1"))
        self.assertTrue(self.peer.aborted)
        settle(self.clock)
        self.failureResultOf(done, ConnectionFailedError)

    def test_stats_cancelled(self):
        """The packets of cancelled statistics are thrown away to the last."""
        done, other = self.ask.stats(), self.ask.version()
        done.cancel()
        self.failureResultOf(done)
        request, version = self.peer.asked
        self.peer.send(encode(request, key=b"a", value=b"1") + encode(request))
        self.peer.reply(version, value=b"1")
        self.assertEqual(self.successResultOf(other), "1")
        self.assertEqual(self.protocol.in_flight, 0)

    def test_stats_oversized(self):
        """An item that is too long fails the request, and the rest is still read."""
        done = self.ask.stats()
        request = self.asked(Opcode.STAT)
        self.peer.send(encode(request, key=b"a", value=bytes(2000)))
        self.assertNoResult(done)
        self.peer.send(encode(request))
        self.failureResultOf(done, OversizedReplyError)


class ArgumentTests(OperationsTestCase):
    """Arguments that cannot be sent."""

    def test_keys(self):
        """Keys are 1 to 250 bytes."""
        for ask in (self.ask.get, self.ask.delete, self.ask.increment):
            self.assertRaises(LocalProtocolError, ask, b"")
            self.assertRaises(LocalProtocolError, ask, b"k" * 251)
            self.assertRaises(TypeError, ask, "text")
        self.assertRaises(LocalProtocolError, self.ask.get_many, [b"a", b""])
        self.ask.get(b"k" * 250)

    def test_values(self):
        """Values are bytes, which nobody can change while they wait."""
        self.assertRaises(TypeError, self.ask.set, b"k", "text")
        self.assertRaises(TypeError, self.ask.set, b"k", bytearray(b"v"))

    def test_numbers(self):
        """Numbers that do not fit their field are refused at once."""
        self.assertRaises(LocalProtocolError, self.ask.set, b"k", b"v", flags=2**32)
        self.assertRaises(LocalProtocolError, self.ask.touch, b"k", -1)
        self.assertRaises(LocalProtocolError, self.ask.increment, b"k", 2**64)
        self.assertRaises(LocalProtocolError, self.ask.set, b"k", b"v", durability=Durability(1, 0))
