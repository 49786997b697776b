"""A kvtls session in front of three real memcached servers, in this process."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from kvproto.config import Config, Mode
from kvproto.dataplane import make_server, make_stores
from kvproto.dataplane.fleet import FleetStores
from kvproto.errors import ConfigError, StoreUnavailable
from kvproto.server import KVServerProtocol
from kvproto.upstream.discovery import parse_cluster
from kvproto.upstream.ring import FleetServer, make_ring
from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.frames import Response
from tests.integration.memcached import Memcached
from tests.integration.service import PATIENCE
from tests.ports import free_port
from tests.server.support import Link
from tests.upstream.logged import lines_of

reactor: Any = installed_reactor

KINDS = (
    *("get", "getk", "getq", "getkq", "set", "setq", "add", "addq", "replace", "append"),
    *("appendq", "delete", "deleteq", "incr", "touch", "gat", "noop", "odd", "version"),
)

TEMPORARY = b"SERVER_ERROR temporary failure\r\n"


class Client(Protocol):
    """A client that keeps what it reads until the test asks for it."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.lost = False
        self._waiting: list[tuple[Any, Deferred[bytes]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self._look()

    def _look(self) -> None:
        for one in list(self._waiting):
            complete, deferred = one
            if self.lost or complete(self.received):
                self._waiting.remove(one)
                data, self.received = self.received, b""
                deferred.callback(data)

    def until(self, complete: Any) -> Deferred[bytes]:
        """Return what has come in once it is complete, or the connection has ended."""
        deferred: Deferred[bytes] = Deferred()
        self._waiting.append((complete, deferred))
        self._look()
        return deferred.addTimeout(PATIENCE, reactor)

    def say(self, request: bytes, ending: bytes) -> Deferred[bytes]:
        """Send a text request; return what comes back up to the ending."""
        self.transport.write(request)
        return self.until(lambda data: data.endswith(ending))

    async def call(self, *requests: bytes, replies: int | None = None) -> list[Response]:
        """Send binary requests; return so many replies, by default one for each."""
        decoder, found = ResponseDecoder(), list[Any]()
        count = len(requests) if replies is None else replies
        self.transport.write(b"".join(requests))
        while len(found) < count and not self.lost:
            found += decoder.feed(await self.until(bool))
        return found


class FleetCase(TestCase):
    """Three servers, a service in front of them, and its clients."""

    timeout = 3 * PATIENCE
    # No server is slow but where a test makes it so: then nobody's patience ends on a busy machine.
    parameters = "timeout=30&connect-timeout=30"
    arguments: tuple[str, ...] = ()

    async def setUp(self) -> None:  # type: ignore[override]
        self.memcached = []
        for _ in range(3):
            self.memcached.append(self.add_server())
        self.clients: list[Client] = []
        await self.serve(self.url(self.memcached))

    def add_server(self, port: int = 0) -> Memcached:
        server = Memcached(*self.arguments, port=port)
        self.addCleanup(server.kill)
        return server

    def url(self, servers: list[Memcached], more: str = "") -> str:
        names = ",".join(server.name for server in servers)
        return f"memcached://{names}?{self.parameters}{more}"

    async def serve(self, url: str) -> None:
        """Begin to serve this fleet."""
        config = Config(mode=Mode.MEMCACHED, store=url)
        stores = make_stores(config, reactor)
        assert isinstance(stores, FleetStores)
        self.stores = stores
        stores.startService()
        self.addCleanup(stores.stopService)
        server = make_server(config, reactor, None, stores)
        self.addCleanup(server.budget.stop)
        factory = Factory.forProtocol(lambda: KVServerProtocol(server))
        factory.noisy = False
        self.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)
        self.addCleanup(self.leave)
        await self.wait(lambda: all(server.up for server in stores.fleet.servers))

    async def leave(self) -> None:
        for client in self.clients:
            client.transport.abortConnection()
        await self.wait(lambda: all(client.lost for client in self.clients))

    async def wait(self, condition: Any) -> None:
        """Wait for something to become true."""
        for _ in range(int(PATIENCE / 0.02)):
            if condition():
                return
            await deferLater(reactor, 0.02)
        raise AssertionError("it does not come")

    async def connect(self) -> Client:
        """Return a new client."""
        where = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        factory = Factory.forProtocol(Client)
        factory.noisy = False
        client: Any = await where.connect(factory)
        self.clients.append(client)
        return client  # type: ignore[no-any-return]

    def owner(self, key: bytes) -> Memcached:
        """Return the server that has a key."""
        addresses = [FleetServer("127.0.0.1", server.port) for server in self.memcached]
        return self.memcached[make_ring(addresses, "ketama")(key)]

    def keys_of(self, server: Memcached, count: int = 1) -> list[bytes]:
        """Return keys that a server has."""
        found: list[bytes] = []
        number = 0
        while len(found) < count:
            key = b"key-%d" % number
            if self.owner(key) is server:
                found.append(key)
            number += 1
        return found


def store(key: bytes, value: bytes, opcode: int = Opcode.SET, **fields: Any) -> bytes:
    """Return a binary request that stores."""
    return encode_request(opcode, key=key, value=value, extras=bytes(8), **fields)


class OperationTests(FleetCase):
    """What clients can do."""

    async def test_text(self) -> None:
        """Each text command, in memcached's words."""
        client = await self.connect()
        request = (
            b"set a 5 0 3\r\nabc\r\nset b 0 0 1\r\nx\r\nget a b c\r\nincr a 1\r\n"
            b"set n 0 0 1\r\n5\r\nincr n 7\r\ndecr n 100\r\ntouch n 0\r\ngat 0 n a\r\n"
            b"append a 0 0 1\r\nZ\r\nprepend a 0 0 1\r\nY\r\nget a\r\n"
            b"set t 0 -1 1\r\nq\r\nget t\r\nadd a 0 0 1\r\nx\r\nreplace zz 0 0 1\r\nx\r\n"
            b"add new 0 0 1 noreply\r\nx\r\nget new\r\ndelete b\r\ndelete b\r\n"
            b"incr none 1\r\ntouch none 0\r\nset last 0 0 0\r\n\r\nget last\r\nversion\r\n"
        )
        found = await client.say(request, b"1.6.45\r\n")
        self.assertEqual(
            found.replace(b"VERSION 1.6.45\r\n", b""),
            b"STORED\r\nSTORED\r\nVALUE a 5 3\r\nabc\r\nVALUE b 0 1\r\nx\r\nEND\r\n"
            b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
            b"STORED\r\n12\r\n0\r\nTOUCHED\r\n"
            b"VALUE n 0 2\r\n0 \r\nVALUE a 5 3\r\nabc\r\nEND\r\n"
            b"STORED\r\nSTORED\r\nVALUE a 5 5\r\nYabcZ\r\nEND\r\n"
            b"STORED\r\nEND\r\nNOT_STORED\r\nNOT_STORED\r\n"
            b"VALUE new 0 1\r\nx\r\nEND\r\nDELETED\r\nNOT_FOUND\r\n"
            b"NOT_FOUND\r\nNOT_FOUND\r\nSTORED\r\nVALUE last 0 0\r\n\r\nEND\r\n",
        )

    async def test_meta(self) -> None:
        """Meta commands are the server's own, leases and stale values included."""
        client = await self.connect()
        for asked, answered in (
            (b"mg a v", b"EN\r\n"),
            (b"ms a 3 F5 T60 k\r\nabc", b"HD ka\r\n"),
            (b"mg a v f s k O1", b"VA 3 f5 s3 ka O1\r\nabc\r\n"),
            (b"ms a 1 ME\r\nx", b"NS\r\n"),
            (b"ms b 1 MR\r\nx", b"NS\r\n"),
            (b"ms a 1 C99\r\nx", b"EX\r\n"),
            (b"ms a 1 MA\r\nd", b"HD\r\n"),
            (b"mg a v T30", b"VA 4\r\nabcd\r\n"),
            (b"ma n", b"NF\r\n"),
            (b"ma n N0 J13 v", b"VA 2\r\n13\r\n"),
            (b"ma n D3 MD v", b"VA 2\r\n10\r\n"),
            (b"ma a", b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
            (b"md a q", b""),
            (b"md a", b"NF\r\n"),
            (b"mg n t", b"HD t-1\r\n"),
            (b"md n I T30 q", b""),
            (b"mg n k O7 v", b"VA 2 kn O7 X W\r\n10\r\n"),
            (b"mg n q s", b"HD s2 X Z\r\n"),
            (b"mg lease N30 t", b"HD t30 W\r\n"),
            (b"mg lease N30 h u v", b"VA 0 h1 Z\r\n\r\n"),
            (b"ms bGVhc2U= 2 b T9\r\nhi", b"HD\r\n"),
            (b"mg lease v Ox R30", b"VA 2 Ox W\r\nhi\r\n"),
            (b"mg none q v", b""),
            (b"me none", b"EN\r\n"),
            (b"mg a R", b"CLIENT_ERROR bad token in command line format\r\n"),
        ):
            heard = await client.say(asked + b"\r\nmn\r\n", b"MN\r\n")
            words = [sorted(heard.split()), sorted((answered + b"MN\r\n").split())]
            self.assertEqual(words[0], words[1], asked)
        self.assertRegex(await client.say(b"me n\r\n", b"\r\n"), rb"^ME n exp=-?\d+ la=\d+ cas=")

    async def test_cas(self) -> None:
        """Compare and swap by text, with the server's own numbers."""
        client = await self.connect()
        found = await client.say(b"set a 0 0 1\r\nx\r\ngets a\r\n", b"END\r\n")
        cas = found.split()[5]
        found = await client.say(b"cas a 0 0 1 %b\r\ny\r\n" % cas, b"\r\n")
        self.assertEqual(found, b"STORED\r\n")
        found = await client.say(b"cas a 0 0 1 %b\r\nz\r\n" % cas, b"\r\n")
        self.assertEqual(found, b"EXISTS\r\n")
        found = await client.say(b"cas none 0 0 1 1\r\nz\r\n", b"\r\n")
        self.assertEqual(found, b"NOT_FOUND\r\n")
        self.assertIn(b"y", self.owner(b"a").ask(b"get a"))

    async def test_binary(self) -> None:
        """Opaques, CAS, flags, statuses and quiet requests, fenced by a NOOP."""
        client = await self.connect()
        value = bytes(range(256)) * 40
        stored = encode_request(
            Opcode.SET, key=b"k", value=value, extras=b"\1\2\3\4" + bytes(4), opaque=7
        )
        (reply,) = await client.call(stored)
        self.assertEqual((reply.status, reply.opaque, reply.opcode), (0, 7, Opcode.SET))
        (got,) = await client.call(encode_request(Opcode.GET, key=b"k", opaque=0xDEADBEEF))
        self.assertEqual((got.value, got.extras, got.cas), (value, b"\1\2\3\4", reply.cas))
        self.assertEqual(got.opaque, 0xDEADBEEF)
        (named,) = await client.call(encode_request(Opcode.GETK, key=b"k"))
        self.assertEqual((named.key, named.value), (b"k", value))
        (missing,) = await client.call(encode_request(Opcode.GET, key=b"none"))
        self.assertEqual(missing.status, Status.NOT_FOUND)
        (conflict,) = await client.call(store(b"k", b"x", cas=reply.cas + 1))
        self.assertEqual(conflict.status, Status.EXISTS)
        quiet = [
            *(store(b"q%d" % n, b"%d" % n, Opcode.SETQ) for n in range(50)),
            *(encode_request(Opcode.GETQ, key=b"q%d" % n, opaque=n) for n in range(0, 100, 2)),
            encode_request(Opcode.NOOP, opaque=1000),
        ]
        found = await client.call(*quiet, replies=26)
        self.assertEqual([one.opaque for one in found], [*range(0, 50, 2), 1000])
        self.assertEqual([one.value for one in found[:-1]], [b"%d" % n for n in range(0, 50, 2)])
        counter = b"".join(n.to_bytes(8) for n in (5, 40)) + bytes(4)
        replies = await client.call(
            *[encode_request(Opcode.INCREMENT, key=b"n", extras=counter) for _ in range(2)]
        )
        self.assertEqual([int.from_bytes(one.value) for one in replies], [40, 45])
        replies = await client.call(
            encode_request(Opcode.APPEND, key=b"none", value=b"x"),
            encode_request(Opcode.TOUCH, key=b"k", extras=bytes(4)),
            encode_request(Opcode.GAT, key=b"k", extras=bytes(4)),
            encode_request(Opcode.DELETE, key=b"k"),
            encode_request(Opcode.DELETE, key=b"k"),
            encode_request(0x94, key=b"k", extras=bytes(4)),
        )
        self.assertEqual(
            [one.status for one in replies],
            [Status.NOT_STORED, 0, 0, 0, Status.NOT_FOUND, Status.NOT_SUPPORTED],
        )
        self.assertEqual(replies[2].value, value)

    async def test_every_key_is_where_clients_look(self) -> None:
        """Four hundred keys are on the servers where the ring has them."""
        client = await self.connect()
        keys = [b"key:%d" % number for number in range(400)]
        request = b"".join(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(key), key) for key in keys)
        await client.say(request, b"STORED\r\n" * 400)
        for key in keys[::10]:
            self.assertTrue(self.owner(key).has(key))
        for at in range(0, 400, 100):
            found = await client.say(b"get " + b" ".join(keys[at : at + 100]) + b"\r\n", b"END\r\n")
            self.assertEqual(
                found,
                b"".join(
                    b"VALUE %b 0 %d\r\n%b\r\n" % (key, len(key), key) for key in keys[at : at + 100]
                )
                + b"END\r\n",
            )

    async def test_all_servers(self) -> None:
        """flush_all reaches all, statistics are sums and name each server."""
        client = await self.connect()
        keys = [self.keys_of(server)[0] for server in self.memcached]
        for key in keys:
            await client.say(b"set %b 0 0 1\r\nx\r\n" % key, b"STORED\r\n")
        found = await client.say(b"stats\r\n", b"END\r\n")
        self.assertIn(b"STAT curr_items 3\r\n", found)
        self.assertIn(b"STAT cmd_set 3\r\n", found)
        for server in self.memcached:
            self.assertIn(b"STAT server %b up\r\n" % server.name.encode(), found)
        self.assertEqual(await client.say(b"flush_all\r\n", b"\r\n"), b"OK\r\n")
        for server, key in zip(self.memcached, keys, strict=True):
            self.assertFalse(server.has(key))
        binary = await self.connect()
        replies = await binary.call(
            store(keys[0], b"x"),
            encode_request(Opcode.FLUSH),
            encode_request(Opcode.GET, key=keys[0]),
        )
        self.assertEqual([one.status for one in replies], [0, 0, Status.NOT_FOUND])

    async def test_discovered(self) -> None:
        """A client that asks for the cluster is told to come here."""
        client = await self.connect()
        found = await client.say(b"config get cluster\r\n", b"END\r\n")
        port = self.port.getHost().port
        head, _, rest = found.partition(b"\r\n")
        self.assertEqual(head.split()[:3], [b"CONFIG", b"cluster", b"0"])
        version, servers = parse_cluster(rest[: int(head.split()[3])])
        self.assertEqual((version, servers), (1, (FleetServer("127.0.0.1", port),)))
        self.assertEqual(await client.say(b"config set x\r\n", b"\r\n"), b"ERROR\r\n")

    async def test_large_values(self) -> None:
        """Values up to the servers' limit come through; a larger one harms nobody and is gone."""
        client, other = await self.connect(), await self.connect()
        value = os.urandom(900_000)
        (reply,) = await client.call(store(b"big", value))
        self.assertEqual(reply.status, 0)
        big, small = await gatherResults(
            [
                Deferred.fromCoroutine(client.call(encode_request(Opcode.GET, key=b"big"))),
                Deferred.fromCoroutine(other.call(store(b"small", b"x"))),
            ]
        )
        self.assertEqual((big[0].value, small[0].status), (value, 0))
        for size in (1_048_577, 1_100_000, 3_000_000):
            (reply,) = await client.call(store(b"big", bytes(size)))
            self.assertEqual(reply.status, Status.TOO_BIG)
            (reply,) = await client.call(encode_request(Opcode.GET, key=b"big"))
            self.assertEqual(reply.status, Status.NOT_FOUND)
            await client.call(store(b"big", b"x"))
        text = await self.connect()
        found = await text.say(b"set big 0 0 1100000\r\n" + bytes(1_100_000) + b"\r\n", b"\r\n")
        self.assertIn(b"too large", found)
        self.assertEqual(await text.say(b"get big\r\n", b"END\r\n"), b"END\r\n")

    async def test_few_connections(self) -> None:
        """300 clients make two connections to each server, and one more for large values."""
        clients = [await self.connect() for _ in range(300)]
        answers = [
            client.say(b"set k%d 0 0 1\r\nx\r\n" % number, b"\r\n")
            for number, client in enumerate(clients)
        ]
        self.assertEqual(await gatherResults(answers), [b"STORED\r\n"] * 300)
        for server in self.memcached:
            # The one that asks is a connection, too.
            self.assertLessEqual(server.stat("curr_connections") - 1, 2 + 1)
        (reply,) = await (await self.connect()).call(store(b"big", bytes(100_000)))
        self.assertEqual(reply.status, 0)
        for server in self.memcached:
            self.assertLessEqual(server.stat("curr_connections") - 1, 3 + 1)

    async def test_clients_see_their_own_replies(self) -> None:
        """Clients that pipeline at random, and leave at random, never see each other's replies."""
        chosen = random.Random(7)

        async def work(number: int, turns: int) -> None:
            client = await self.connect()
            for turn in range(turns):
                requests, expected = [], []
                for at in range(chosen.randrange(1, 30)):
                    key = b"c%d-%d" % (number, chosen.randrange(20))
                    value = b"%d/%d/%d/" % (number, turn, at) * chosen.randrange(1, 200)
                    requests.append(
                        b"set %b 0 0 %d\r\n%b\r\nget %b\r\n" % (key, len(value), value, key)
                    )
                    expected.append(
                        b"STORED\r\nVALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(value), value)
                    )
                wanted = b"".join(expected)
                if chosen.random() < 0.1:
                    client.transport.write(b"".join(requests))
                    client.transport.abortConnection()
                    client = await self.connect()
                    continue
                self.assertEqual(await client.say(b"".join(requests), wanted[-40:]), wanted)

        await gatherResults([Deferred.fromCoroutine(work(number, 8)) for number in range(32)])

    async def test_forwarded_frames(self) -> None:
        """Binary clients that pipeline everything at random, cut anywhere, get what memory gives.

        Each client's answers are compared with those of a store in memory: order, opaques, quiet
        requests, NOOPs, oddities, large values between small ones.
        """
        chosen = random.Random(11)

        def requests_of(number: int) -> list[bytes]:
            made = []
            for opaque in range(chosen.randrange(1, 60)):
                key = b"f%d-%d" % (number, chosen.randrange(12))
                value = b"%d:%d " % (number, opaque) * chosen.randrange(1, 300)
                if chosen.random() < 0.02:
                    value = bytes(chosen.randrange(60_000, 200_000))
                kind = chosen.choice(KINDS)
                counting = (1).to_bytes(8) + (7).to_bytes(8) + bytes(4)
                opcode, extras, value, key = {
                    "get": (Opcode.GET, b"", b"", key),
                    "getk": (Opcode.GETK, b"", b"", key),
                    "getq": (Opcode.GETQ, b"", b"", key),
                    "getkq": (Opcode.GETKQ, b"", b"", key),
                    "set": (Opcode.SET, bytes(8), value, key),
                    "setq": (Opcode.SETQ, bytes(8), value, key),
                    "add": (Opcode.ADD, bytes(8), value, key),
                    "addq": (Opcode.ADDQ, bytes(8), value, key),
                    "replace": (Opcode.REPLACE, bytes(8), value, key),
                    "append": (Opcode.APPEND, b"", b"tail", key),
                    "appendq": (Opcode.APPENDQ, b"", b"tail", key),
                    "delete": (Opcode.DELETE, b"", b"", key),
                    "deleteq": (Opcode.DELETEQ, b"", b"", key),
                    "incr": (Opcode.INCREMENT, counting, b"", key),
                    "touch": (Opcode.TOUCH, bytes(4), b"", key),
                    "gat": (Opcode.GAT, bytes(4), b"", key),
                    "noop": (Opcode.NOOP, b"", b"", b""),
                    "odd": (Opcode.GET, b"xx", b"", key),
                    "version": (Opcode.VERSION, b"", b"", b""),
                }[kind]
                made.append(
                    encode_request(opcode, key=key, value=value, extras=extras, opaque=opaque)
                )
            return [*made, encode_request(Opcode.NOOP, opaque=0xFFFF)]

        def expected(reference: Link, requests: list[bytes]) -> list[Response]:
            return [answer for request in requests for answer in reference.responses(request)]

        def essence(one: Response) -> tuple[Any, ...]:
            # CAS differs; a refusal's text and the extras of TOUCH are memcached's own.
            extras = b"" if one.status or one.opcode == Opcode.TOUCH else one.extras
            value = b"" if one.status or one.opcode == Opcode.VERSION else one.value
            key = b"" if one.status else one.key
            return one.opcode, one.opaque, one.status, extras, key, value

        async def work(number: int) -> None:
            client = await self.connect()
            reference = Link(mode=Mode.MEMCACHED)
            for _ in range(6):
                requests = requests_of(number)
                wanted = [essence(one) for one in expected(reference, requests)]
                data, decoder, found = b"".join(requests), ResponseDecoder(), list[Any]()
                while data:
                    cut = chosen.choice((1, 23, 24, 30, 100, 5000, len(data)))
                    client.transport.write(data[:cut])
                    data = data[cut:]
                    if chosen.random() < 0.2:
                        await deferLater(reactor, 0)
                while len(found) < len(wanted) and not client.lost:
                    found += decoder.feed(await client.until(bool))
                self.assertEqual([essence(one) for one in found], wanted)

        await gatherResults([Deferred.fromCoroutine(work(number)) for number in range(24)])

    async def test_slow_reader(self) -> None:
        """A client that does not read is cut, with the reason, and holds up nobody."""
        lines = lines_of(self)
        slow, other = await self.connect(), await self.connect()
        value = bytes(60_000)
        await other.call(store(b"v", value))
        await slow.call(encode_request(Opcode.NOOP))
        slow.transport.pauseProducing()
        read = b"".join(encode_request(Opcode.GET, key=b"v") for _ in range(1000))
        slow.transport.write(read)
        for number in range(50):
            (reply,) = await other.call(store(b"o%d" % number, b"x"))
            self.assertEqual(reply.status, 0)
        await deferLater(reactor, 0.5)
        (reply,) = await other.call(encode_request(Opcode.GET, key=b"v"))
        self.assertEqual(reply.value, value)
        slow.transport.resumeProducing()
        await slow.until(lambda data: False)
        self.assertTrue(slow.lost)
        self.assertTrue(any("does not read its replies" in line for line in lines()), lines())

    async def test_order(self) -> None:
        """What one client asks about one key happens in that order, noreply included."""
        client = await self.connect()
        request = b"set n 0 0 1 noreply\r\n0\r\n" + b"incr n 1 noreply\r\n" * 99 + b"incr n 1\r\n"
        self.assertEqual(await client.say(request, b"\r\n"), b"100\r\n")
        request = b"".join(b"set k 0 0 %d noreply\r\n%d\r\n" % (len(str(n)), n) for n in range(100))
        found = await client.say(request + b"get k\r\n", b"END\r\n")
        self.assertEqual(found, b"VALUE k 0 2\r\n99\r\nEND\r\n")


class TextServersTests(OperationTests):
    """The same on servers that refuse the binary protocol."""

    arguments = ("-B", "ascii")


class MixedServersTests(FleetCase):
    """A fleet of which one server refuses the binary protocol."""

    def add_server(self, port: int = 0) -> Memcached:
        self.arguments = ("-B", "auto" if self.memcached else "ascii")
        return super().add_server(port)

    async def test_both(self) -> None:
        """Clients do not see which server a key is on."""
        keys = [self.keys_of(server)[0] for server in self.memcached]
        text, binary = await self.connect(), await self.connect()
        for key in keys:
            (reply,) = await binary.call(store(key, key))
            self.assertEqual(reply.status, 0)
        found = await text.say(b"get %b\r\n" % b" ".join(keys), b"END\r\n")
        self.assertEqual(found.count(b"VALUE "), 3)
        servers: Any = self.stores.status()["servers"]
        self.assertEqual([one["protocol"] for one in servers], ["meta", "binary", "binary"])
        await deferToThread(self.memcached[0].kill)
        await self.wait(lambda: not self.stores.fleet.servers[0].up)
        servers = self.stores.status()["servers"]
        self.assertEqual(servers[0]["protocol"], "")
        await deferToThread(self.memcached[0].start)
        await self.wait(lambda: self.stores.fleet.servers[0].up)
        for key in keys:
            await binary.call(store(key, key))
        asked = [encode_request(Opcode.GETK, key=key) for key in (*keys, *keys)]
        replies = await binary.call(*asked)
        self.assertEqual(
            [(one.key, one.value) for one in replies], [(key, key) for key in keys] * 2
        )


class SmallServersTests(FleetCase):
    """Servers that take less than the service does."""

    arguments = ("-I", "512k")

    async def test_refused_by_the_server(self) -> None:
        """What the server refuses is refused, leaves no old value, and harms nobody."""
        client, other = await self.connect(), await self.connect()
        await client.call(store(b"big", b"old"))
        refused, small = await gatherResults(
            [
                Deferred.fromCoroutine(client.call(store(b"big", bytes(700_000)))),
                Deferred.fromCoroutine(other.call(store(b"small", b"x"))),
            ]
        )
        self.assertEqual((refused[0].status, small[0].status), (Status.TOO_BIG, 0))
        (reply,) = await client.call(encode_request(Opcode.GET, key=b"big"))
        self.assertEqual(reply.status, Status.NOT_FOUND)


class UnixTests(FleetCase):
    """Servers that listen on Unix sockets."""

    def add_server(self, port: int = 0) -> Memcached:
        folder = self.enterContext(tempfile.TemporaryDirectory(prefix="kvtls-fleet-"))
        server = Memcached(path=f"{folder}/memcached.sock")
        self.addCleanup(server.kill)
        return server

    def url(self, servers: list[Memcached], more: str = "") -> str:
        names = ",".join(server.name for server in servers)
        return f"memcached+unix:{names}?{self.parameters}{more}"

    async def test_served(self) -> None:
        """Keys are on all of them; one that is away costs its own keys, and comes back."""
        client = await self.connect()
        keys = [b"k%d" % number for number in range(60)]
        request = b"".join(b"set %b 0 0 1\r\nx\r\n" % key for key in keys)
        await client.say(request, b"STORED\r\n" * 60)
        on = [[key for key in keys if server.has(key)] for server in self.memcached]
        self.assertEqual(sorted(key for part in on for key in part), sorted(keys))
        self.assertNotIn([], on)
        found = await client.say(b"stats\r\n", b"END\r\n")
        for server in self.memcached:
            self.assertIn(b"STAT server %b up\r\n" % server.name.encode(), found)
        await deferToThread(self.memcached[0].kill)
        await self.wait(lambda: not self.stores.fleet.servers[0].up)
        self.assertEqual(await client.say(b"get %b\r\n" % on[0][0], b"\r\n"), TEMPORARY)
        self.assertIn(b"VALUE", await client.say(b"get %b\r\n" % on[1][0], b"END\r\n"))
        await deferToThread(self.memcached[0].start)
        await self.wait(lambda: self.stores.fleet.servers[0].up)
        self.assertEqual(await client.say(b"get %b\r\n" % on[0][0], b"\r\n"), b"END\r\n")


class FailureTests(FleetCase):
    """Servers that are dead, frozen, restarted, idle."""

    parameters = "timeout=1&connect-timeout=1"

    async def test_dead(self) -> None:
        """Keys of a dead server fail at once, others go on, no key moves, it comes back."""
        client = await self.connect()
        dead, alive = self.memcached[0], self.memcached[1]
        gone, there = self.keys_of(dead)[0], self.keys_of(alive)[0]
        await client.say(b"set %b 0 0 1\r\nx\r\n" % there, b"STORED\r\n")
        await deferToThread(dead.kill)
        await self.wait(lambda: not self.stores.fleet.servers[0].up)
        self.assertEqual(await client.say(b"get %b\r\n" % gone, b"\r\n"), TEMPORARY)
        self.assertEqual(await client.say(b"set %b 0 0 1\r\nx\r\n" % gone, b"\r\n"), TEMPORARY)
        found = await client.say(b"get %b %b none\r\n" % (gone, there), TEMPORARY)
        self.assertEqual(found, b"VALUE %b 0 1\r\nx\r\n" % there + TEMPORARY)
        binary = await self.connect()
        replies = await binary.call(
            encode_request(Opcode.GET, key=gone),
            store(gone, b"x"),
            encode_request(Opcode.GET, key=there),
            encode_request(Opcode.FLUSH),
        )
        failure = Status.TEMPORARY_FAILURE
        self.assertEqual([one.status for one in replies], [failure, failure, 0, failure])
        found = await client.say(b"stats\r\n", b"END\r\n")
        self.assertIn(b"STAT server %b down\r\n" % dead.name.encode(), found)
        servers: Any = self.stores.status()["servers"]
        (status,) = [one for one in servers if one["server"] == dead.name]
        self.assertFalse(status["up"])
        self.assertNotEqual(status["reason"], "")
        for server in self.memcached[1:]:
            self.assertFalse(server.has(gone))
        await deferToThread(dead.start)
        await self.wait(lambda: self.stores.fleet.servers[0].up)
        self.assertEqual(await client.say(b"set %b 0 0 1\r\nx\r\n" % gone, b"\r\n"), b"STORED\r\n")

    async def test_frozen(self) -> None:
        """A frozen server: reads end by the timeout, a write closes its client and nobody else."""
        reader, writer, other = [await self.connect() for _ in range(3)]
        frozen, alive = self.memcached[0], self.memcached[1]
        key = self.keys_of(frozen)[0]
        frozen.freeze()
        self.addCleanup(frozen.thaw)
        read = reader.say(b"get %b\r\n" % key, b"\r\n")
        wrote = writer.say(b"incr %b 1\r\n" % key, b"\r\n")
        request = b"set %b 0 0 1\r\nx\r\n" % self.keys_of(alive)[0]
        self.assertEqual(await other.say(request, b"\r\n"), b"STORED\r\n")
        self.assertEqual(await read, TEMPORARY)
        self.assertEqual(await wrote, b"")
        self.assertTrue(writer.lost)
        self.assertFalse(reader.lost or other.lost)
        frozen.thaw()
        await self.wait(lambda: self.stores.fleet.servers[0].up)
        self.assertEqual(await reader.say(b"get %b\r\n" % key, b"END\r\n"), b"END\r\n")

    async def test_frozen_noreply(self) -> None:
        """A write without an answer of which nothing is known closes the connection as well."""
        client = await self.connect()
        frozen = self.memcached[0]
        frozen.freeze()
        self.addCleanup(frozen.thaw)
        request = b"set %b 0 0 1 noreply\r\nx\r\nversion\r\n" % self.keys_of(frozen)[0]
        await client.say(request, b"nothing")
        self.assertTrue(client.lost)

    async def test_restarted(self) -> None:
        """After a restart the first request does not fail."""
        client = await self.connect()
        server = self.memcached[0]
        key = self.keys_of(server)[0]
        await client.say(b"set %b 0 0 1\r\nx\r\n" % key, b"STORED\r\n")
        await deferToThread(server.kill)
        await deferToThread(server.start)
        await self.wait(lambda: self.stores.fleet.servers[0].up)
        self.assertEqual(await client.say(b"get %b\r\n" % key, b"\r\n"), b"END\r\n")

    async def test_useless(self) -> None:
        """A server that speaks neither protocol is said to, at once, and asked for nothing."""

        class Old(LineReceiver):
            def lineReceived(self, line: bytes) -> None:
                self.sendLine(b"VERSION 1.2\r" if line == b"version\r" else b"ERROR\r")

            delimiter = b"\n"

        factory = Factory.forProtocol(Old)
        factory.noisy = False
        old = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(old.stopListening)
        store = f"memcached://127.0.0.1:{old.getHost().port}?connect-timeout=600"
        stores = make_stores(Config(mode=Mode.MEMCACHED, store=store), reactor)
        stores.startService()
        self.addCleanup(stores.stopService)
        await self.wait(lambda: "start it with -B auto" in (stores.ready() or ""))
        asked: Any = stores.store("default").get(b"k")
        failure = await self.assertFailure(asked, StoreUnavailable)
        self.assertIn("neither the binary protocol nor meta commands", str(failure))

    async def test_started_without_servers(self) -> None:
        """A service whose fleet is away says so, and serves when it is there."""
        port = free_port()
        config = Config(mode=Mode.MEMCACHED, store=f"memcached://127.0.0.1:{port}")
        stores = make_stores(config, reactor)
        stores.startService()
        self.addCleanup(stores.stopService)
        await self.wait(lambda: "refused" in (stores.ready() or ""))
        self.add_server(port)
        await self.wait(lambda: stores.ready() is None)


class TextFailureTests(FailureTests):
    """The same with servers that refuse the binary protocol."""

    arguments = ("-B", "ascii")


class IdleTests(FleetCase):
    """Servers that close idle connections."""

    arguments = ("-o", "idle_timeout=1")

    async def test_first_request(self) -> None:
        """The first request after a pause is served, on a new connection."""
        client = await self.connect()
        await client.say(b"set k 0 0 1\r\nx\r\n", b"STORED\r\n")
        for _ in range(2):
            await deferLater(reactor, 2.5)
            self.assertEqual(await client.say(b"incr none 1\r\n", b"\r\n"), b"NOT_FOUND\r\n")
            self.assertEqual(
                await client.say(b"get k\r\n", b"END\r\n"), b"VALUE k 0 1\r\nx\r\nEND\r\n"
            )


class GutterTests(FleetCase):
    """Servers that take over for a while."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.gutter = self.add_server()
        await self.serve(self.url(self.memcached, f"&gutter={self.gutter.name}&gutter-expiry=1"))

    async def test_takes_over(self) -> None:
        """While a server is away its keys live in the gutter, for a short time, and return."""
        client = await self.connect()
        server = self.memcached[0]
        key = self.keys_of(server)[0]
        await deferToThread(server.kill)
        await self.wait(lambda: not self.stores.fleet.servers[0].up)
        self.assertEqual(await client.say(b"set %b 0 0 1\r\nx\r\n" % key, b"\r\n"), b"STORED\r\n")
        self.assertIn(b"x", await client.say(b"get %b\r\n" % key, b"END\r\n"))
        self.assertTrue(self.gutter.has(key))
        await self.wait(lambda: not self.gutter.has(key))
        await deferToThread(server.start)
        await self.wait(lambda: self.stores.fleet.servers[0].up)
        await client.say(b"set %b 0 0 1\r\nx\r\n" % key, b"STORED\r\n")
        self.assertTrue(server.has(key))


class PoolTests(FleetCase):
    """Fleets that change while they are used."""

    async def test_pool_file(self) -> None:
        """A changed file is taken by a reload without a lost request; a bad one changes nothing."""
        path = Path(self.mktemp())

        def write(servers: list[Memcached]) -> None:
            path.write_text("\n".join(server.name for server in servers) + "\n")

        write(self.memcached[:2])
        await self.serve(f"memcached://?pool-file={path}&{self.parameters}")
        clients = [await self.connect() for _ in range(8)]
        stopping = False
        served = 0

        async def work(client: Client, number: int) -> None:
            nonlocal served
            while not stopping:
                key = b"w%d-%d" % (number, served % 50)
                found = await client.say(b"set %b 0 0 1\r\nx\r\nget none\r\n" % key, b"END\r\n")
                self.assertEqual(found, b"STORED\r\nEND\r\n")
                served += 1

        working = [Deferred.fromCoroutine(work(one, at)) for at, one in enumerate(clients)]
        for servers in (self.memcached, self.memcached[1:], self.memcached[:1], self.memcached):
            before = served
            write(servers)
            self.assertIn(str(len(servers)), self.stores.reload())
            self.assertEqual(self.stores.reload(), "")
            await self.wait(lambda before=before: served > before + 40)
        write([])
        self.assertRaises(ConfigError, self.stores.reload)
        self.assertEqual(len(self.stores.fleet.servers), 3)
        stopping = True
        await gatherResults(working)

    async def test_discovery(self) -> None:
        """A server that knows the fleet says who there is, and is asked again."""
        names: list[Memcached] = self.memcached[:1]
        version = 1

        class Knowing(Protocol):
            transport: Any

            def dataReceived(self, data: bytes) -> None:
                assert data == b"config get cluster\r\n"
                hosts = " ".join(f"localhost|127.0.0.1|{one.port}" for one in names)
                body = f"{version}\n{hosts}\n".encode()
                self.transport.write(b"CONFIG cluster 0 %d\r\n%b\r\nEND\r\n" % (len(body), body))

        factory = Factory.forProtocol(Knowing)
        factory.noisy = False
        knowing = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(knowing.stopListening)
        config = Config(
            mode=Mode.MEMCACHED,
            store=f"memcached://?discover=127.0.0.1:{knowing.getHost().port}&{self.parameters}",
        )
        stores = make_stores(config, reactor)
        assert isinstance(stores, FleetStores)
        stores.startService()
        self.addCleanup(stores.stopService)
        await self.wait(lambda: [one.name for one in stores.fleet.servers] == [names[0].name])
        names, version = self.memcached, 2
        stores.reload()
        await self.wait(lambda: len(stores.fleet.servers) == 3)
        # An older configuration, and one that is none, change nothing.
        names, version = self.memcached[:1], 1
        stores.reload()
        await deferLater(reactor, 0.3)
        names, version = [], 9
        stores.reload()
        await self.wait(lambda: "problem" in stores.status())
        self.assertEqual(len(stores.fleet.servers), 3)
