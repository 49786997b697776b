"""``watch``: what a watcher is told, what it may hold, and that nobody else pays for it."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from kvproto.server import Bucket, KVServer, ServerSettings, UserTable
from kvproto.server.watch import BUFFER_BYTES, MOST_WATCHERS
from kvproto.server.watched import WatchedStore
from kvproto.store import MemoryStore
from kvproto.testing.scripted import ScriptedTransport
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Feature, Opcode
from tests.server.support import NOW, FakeConnection, Link, SlowStore

ANYBODY = frozenset({""})


def server_of(**settings: Any) -> KVServer:
    """Return a server at which everybody may watch."""
    options: dict[str, Any] = {"watchers": ANYBODY, "mode": Mode.MEMCACHED, **settings}
    return KVServer(MemoryStore(lambda: NOW, uuid=1), ServerSettings(**options), now=lambda: NOW)


def told(watcher: Link) -> list[str]:
    """Return what a watcher has been told since it was last asked, without times and numbers."""
    lines = watcher.take().decode().splitlines()
    return [re.sub(r"^ts=\d+\.\d{6} gid=\d+ ", "", line) for line in lines]


class TellTests(SynchronousTestCase):
    """What is told of which request."""

    def setUp(self) -> None:
        self.server = server_of()
        self.client = Link(self.server)
        self.client.ask(b"mn\r\n")

    def watch(self, streams: bytes) -> Link:
        watcher = Link(self.server)
        self.assertEqual(watcher.ask(b"watch " + streams + b"\r\n"), b"OK\r\n")
        return watcher

    def test_text(self) -> None:
        """Lookups and writes of the text protocol, in memcached's words."""
        watcher = self.watch(b"fetchers mutations deletions")
        size = len(b"set k 0 0 3\r\nabc\r\n")
        self.assertEqual(size, 18)
        for request, lines in (
            (b"get k\r\n", ["type=item_get key=k status=not_found clsid=0 cfd=1 size=0"]),
            (
                b"set k 0 60 3\r\nabc\r\n",
                [
                    "type=item_get key=k status=not_found clsid=0 cfd=1 size=0",
                    "type=item_store key=k status=stored cmd=set ttl=60 clsid=1 cfd=1 size=3",
                ],
            ),
            (b"get k\r\n", ["type=item_get key=k status=found clsid=1 cfd=1 size=3"]),
            (
                b"delete k\r\n",
                [
                    "type=item_get key=k status=found clsid=1 cfd=1 size=3",
                    "type=deleted key=k cmd=delete clsid=1 size=3",
                ],
            ),
        ):
            self.client.ask(request)
            self.assertEqual(told(watcher), lines, request)

    def test_streams(self) -> None:
        """A watcher is told of what it asked for."""
        fetchers, mutations = self.watch(b""), self.watch(b"mutations")
        self.client.ask(b"set k 0 0 1\r\nx\r\n")
        self.assertEqual([line.split()[0] for line in told(fetchers)], ["type=item_get"])
        self.assertEqual([line.split()[0] for line in told(mutations)], ["type=item_store"])

    def test_key(self) -> None:
        """No key can look like a line: its bytes are encoded as in a URI."""
        watcher = self.watch(b"fetchers")
        self.client.ask(b"get \xff%=\r\n")
        binary = Link(self.server)
        binary.call(Opcode.GET, key=b"a\nts=1 b")
        first, second = told(watcher)
        self.assertIn(" key=%FF%25%3D ", first)
        self.assertIn(" key=a%0Ats%3D1%20b ", second)

    def test_binary(self) -> None:
        """The binary protocol is watched from its next request on."""
        binary = Link(self.server)
        binary.call(Opcode.SET, key=b"k", value=b"abc", extras=bytes(8))
        watcher = self.watch(b"fetchers mutations")
        binary.call(Opcode.GET, key=b"k")
        binary.call(Opcode.SET, key=b"k", value=b"defg", extras=bytes(8))
        binary.call(Opcode.GETK, key=b"none")
        self.assertEqual(
            told(watcher),
            [
                "type=item_get key=k status=found clsid=1 cfd=2 size=3",
                "type=item_get key=k status=found clsid=1 cfd=2 size=3",
                "type=item_store key=k status=stored cmd=set ttl=0 clsid=1 cfd=2 size=4",
                "type=item_get key=none status=not_found clsid=0 cfd=2 size=0",
            ],
        )

    def test_late_client(self) -> None:
        """Who connects while somebody watches is seen as well, and HELLO changes nothing."""
        watcher = self.watch(b"fetchers")
        late = Link(self.server)
        late.call(Opcode.HELLO, value=Feature.XERROR.to_bytes(2))
        late.call(Opcode.GET, key=b"k")
        self.assertEqual(len(told(watcher)), 1)

    def test_durable(self) -> None:
        """A request for durability is watched too."""
        watcher = self.watch(b"mutations")
        binary = Link(self.server)
        framing = bytes([0x11, 1])
        binary.call(Opcode.SET, key=b"k", value=b"x", extras=bytes(8), framing=framing)
        self.assertEqual(len(told(watcher)), 1)

    def test_expired(self) -> None:
        """What has expired says so."""
        self.client.ask(b"set k 0 10 1\r\nx\r\n")
        watcher = self.watch(b"fetchers")
        self.server.watch.now = lambda: NOW + 11
        self.client.ask(b"get k\r\n")
        self.assertEqual(told(watcher), ["type=item_get key=k status=expired clsid=0 cfd=1 size=0"])

    def test_refused_writes(self) -> None:
        """A write that was refused says why."""
        self.client.ask(b"set k 0 0 1\r\nx\r\n")
        watcher = self.watch(b"mutations")
        for request, status in (
            (b"add k 0 0 1\r\nx\r\n", "not_stored cmd=add"),
            (b"replace n 0 0 1\r\nx\r\n", "not_stored cmd=replace"),
            (b"append n 0 0 1\r\nx\r\n", "not_stored cmd=append"),
            (b"cas k 0 0 1 9\r\nx\r\n", "exists cmd=cas"),
            (b"cas n 0 0 1 9\r\nx\r\n", "not_found cmd=cas"),
            (b"set k 0 0 2000000\r\n" + bytes(2_000_000) + b"\r\n", "too_large cmd=set"),
        ):
            self.client.ask(request)
            self.assertEqual([status], re.findall(r"status=(\S+ \S+)", "\n".join(told(watcher))))

    def test_evictions(self) -> None:
        """A document that makes room is told of, and whether anybody has read it."""
        server = KVServer(
            MemoryStore(lambda: NOW, memory_limit=65536),
            ServerSettings(watchers=ANYBODY, mode=Mode.MEMCACHED),
            now=lambda: NOW,
        )
        client, watcher = Link(server), Link(server)
        watcher.ask(b"watch evictions\r\n")
        client.ask(b"set read 0 100 30000\r\n" + bytes(30000) + b"\r\nget read\r\n")
        client.ask(b"set other 0 0 30000\r\n" + bytes(30000) + b"\r\n")
        client.ask(b"set third 0 0 40000\r\n" + bytes(40000) + b"\r\n")
        lines = told(watcher)
        self.assertEqual(len(lines), 2)
        self.assertRegex(
            lines[0], "^type=eviction key=read fetch=yes ttl=100 la=0 clsid=[0-9]+ size=30000$"
        )
        self.assertRegex(lines[1], "^type=eviction key=other fetch=no ttl=-1 la=0 ")
        watcher.transport.lose()
        client.ask(b"set other 0 0 30000\r\n" + bytes(30000) + b"\r\n")
        self.assertIsNone(client.store.table.on_eviction)

    def test_connections(self) -> None:
        """Who comes and goes, and how it ended."""
        watcher = self.watch(b"connevents")

        for begin, ended, reason in (
            (b"quit\r\n", None, "normal"),
            (b"GET / HTTP/1.1\r\n", None, "error"),
            (b"mn\r\n", ConnectionLost(), "error"),
        ):
            client = Link(
                self.server, ScriptedTransport(peer=IPv4Address("TCP", "192.0.2.1", 4711))
            )
            client.ask(begin)
            if ended is not None:
                client.transport.lose(ended)
            new, close = told(watcher)
            self.assertRegex(new, r"^type=conn_new rip=192.0.2.1 rport=4711 transport=tcp cfd=\d+$")
            self.assertIn(f"rport=4711 transport=tcp reason={reason} cfd=", close)
        for ended_by, reason in (("idle", "idle_timeout"), ("process stopping", "shutdown")):
            connection = FakeConnection()
            connection.id, connection.ended_by = 77, ended_by
            Link(self.server, connection=connection).transport.lose()
            self.assertTrue(told(watcher)[1].endswith(f"reason={reason} cfd=77"))
        self.assertEqual(self.server.counters.idle_kicks, 1)

    def test_slow_store(self) -> None:
        """Before a store that has to be asked, a read is told of when it is answered."""

        class FarStore(SlowStore):
            peek = watch_evictions = None

        slow = FarStore(MemoryStore(lambda: NOW))
        server = KVServer(slow, ServerSettings(watchers=ANYBODY, mode=Mode.MEMCACHED))
        client, watcher = Link(server), Link(server)
        watcher.ask(b"watch fetchers mutations\r\n")
        client.ask(b"set k 0 0 1\r\nx\r\nget k\r\nappend none 0 0 1\r\nx\r\n")
        self.assertEqual(told(watcher), [])
        for line in (
            "type=item_store key=k status=stored cmd=set ttl=0 clsid=1 cfd=1 size=1",
            "type=item_store key=none status=not_stored cmd=append ttl=0 clsid=1 cfd=1 size=1",
            "type=item_get key=k status=found clsid=1 cfd=1 size=1",
        ):
            slow.release()
            self.assertEqual(told(watcher), [line])


class LifeTests(SynchronousTestCase):
    """Who may watch, how much is kept for it, and what is left when it has gone."""

    def test_nobody_pays(self) -> None:
        """Before the first watcher and after the last one, stores are used as they are."""
        server = server_of()
        bucket = next(iter(server.buckets.values()))
        text, binary = Link(server), Link(server)
        text.ask(b"mn\r\n")
        binary.call(Opcode.NOOP)
        dialects: list[Any] = [text.session.dialect, binary.session.dialect]
        for watching in (False, True, False, True, False):
            if watching:
                watcher = Link(server)
                watcher.ask(b"watch\r\n")
            else:
                for connection in list(server.connections):
                    if connection not in {text.protocol, binary.protocol}:
                        connection.transport.lose()
            for dialect in dialects:
                self.assertEqual(isinstance(dialect.store, WatchedStore), watching)
                if not watching:
                    self.assertIs(dialect.store, bucket.store)
            plain = dialects[1].plain_state
            for get, put in (
                (dialects[0].plain_get, dialects[0].plain_set),
                (plain.get, plain.set),
            ):
                self.assertIs(get, None if watching else bucket.plain_get)
                self.assertIs(put, None if watching else bucket.plain_set)
            self.assertEqual(text.ask(b"get k\r\n"), b"END\r\n")

    def test_forwarded(self) -> None:
        """Requests that would be forwarded unseen are not, once none of them is under way."""

        class Pipe:
            busy = False
            tail = b""
            forwarded = 0

            def forward(self, data: bytes, out: list[bytes], max_body: int) -> int:
                self.forwarded += 1
                return len(data)

            def close(self) -> None:
                pass

        pipes = [Pipe()]

        class ForwardingStore(MemoryStore):
            def open_pipe(self, outlet: Any) -> Pipe:
                return pipes[-1]

        server = KVServer(ForwardingStore(lambda: NOW), ServerSettings(watchers=ANYBODY))
        client, watcher = Link(server), Link(server)
        get = encode_request(Opcode.GET, key=b"k")
        self.assertEqual(client.ask(get), b"")
        pipes[0].busy = True
        watcher.ask(b"watch\r\n")
        self.assertEqual((client.ask(get), pipes[0].forwarded), (b"", 2))
        self.assertEqual(told(watcher), [])
        pipes[0].busy = False
        self.assertNotEqual(client.ask(get), b"")
        self.assertEqual(pipes[0].forwarded, 2)
        self.assertEqual(len(told(watcher)), 1)
        watcher.transport.lose()
        self.assertEqual((client.ask(get), pipes[0].forwarded), (b"", 3))

    def test_connevents_alone(self) -> None:
        """Who watches connections costs requests nothing."""
        server = server_of()
        text, watcher = Link(server), Link(server)
        text.ask(b"mn\r\n")
        watcher.ask(b"watch connevents\r\n")
        dialect: Any = text.session.dialect
        self.assertIsNotNone(dialect.plain_get)

    def test_asks_no_more(self) -> None:
        """What a watcher sends, with the command or later, is ignored; its end is noticed."""
        server = server_of()
        watcher = Link(server)
        self.assertEqual(watcher.ask(b"mn\r\nwatch\r\nmn\r\n"), b"MN\r\nOK\r\n")
        self.assertEqual(watcher.ask(b"flush_all\r\n" * 1000), b"")
        self.assertFalse(watcher.transport.closed)
        watcher.protocol.readConnectionLost()
        self.assertTrue(watcher.transport.closed)
        self.assertEqual(server.watch.watchers, {})

    def test_in_place(self) -> None:
        """A transport that asks for answers in place gets them."""
        server = server_of()
        transport = ScriptedTransport()
        transport.in_place = True
        watcher, client = Link(server, transport), Link(server)
        transport.send(b"mn\r\n")
        transport.send(b"watch\r\n")
        transport.send(b"mn\r\n")
        self.assertEqual(watcher.take(), b"MN\r\nOK\r\n")
        client.ask(b"get k\r\n")
        self.assertEqual(len(told(watcher)), 1)

    def test_drained(self) -> None:
        """A service that ends does not wait for watchers."""
        watcher = Link(server_of())
        watcher.ask(b"watch\r\n")
        self.successResultOf(watcher.protocol.drain())
        self.assertTrue(watcher.transport.closed)

    def test_skipped(self) -> None:
        """A watcher that does not read is told later how much it has missed."""
        server = server_of()
        transport = ScriptedTransport(high_water=1000, reads=False)
        watcher, client = Link(server, transport), Link(server)
        transport.send(b"watch\r\n")
        line = len(b"ts=1700000000.000000 gid=1000 type=item_get key=k status=not_found ")
        for _ in range(2 * BUFFER_BYTES // line):
            client.ask(b"get k\r\n")
        self.assertLessEqual(transport.most_unsent, BUFFER_BYTES)
        skipped = server.watch.skipped
        self.assertGreater(skipped, 0)
        while transport.unsent:
            transport.read()
        client.ask(b"get last\r\n")
        transport.read()
        lines = watcher.take().decode().splitlines()
        self.assertEqual(lines[0], "OK")
        self.assertEqual(lines[-2], f"skipped={skipped}")
        self.assertIn("key=last", lines[-1])
        # OK, and the line about them.
        self.assertEqual(len(lines) - 2, server.watch.sent)
        self.assertEqual(server.watch.sent + skipped, server.watch.written)
        report = dict(
            line.split()[1:]
            for line in client.ask(b"stats\r\n").decode().splitlines()
            if line.startswith("STAT log_")
        )
        self.assertEqual(report["log_watcher_skipped"], str(skipped))
        self.assertEqual(report["log_watcher_sent"], str(server.watch.sent))
        self.assertEqual(report["log_watchers"], "1")

    def test_one_write_a_turn(self) -> None:
        """What happens within one turn of the reactor is sent at once."""
        clock = Clock()
        server = KVServer(
            MemoryStore(lambda: NOW), ServerSettings(watchers=ANYBODY), later=clock.callLater
        )
        watcher, client = Link(server), Link(server)
        watcher.ask(b"watch\r\n")
        writes = watcher.transport.writes
        client.ask(b"get k\r\n" * 100)
        clock.advance(0)
        self.assertEqual(watcher.transport.writes, writes + 1)
        self.assertEqual(len(told(watcher)), 100)
        client.ask(b"get k\r\n")
        watcher.transport.lose()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_most_watchers(self) -> None:
        """There are no more than memcached allows; one that goes makes room."""
        server = server_of()
        watchers = [Link(server) for _ in range(MOST_WATCHERS)]
        for watcher in watchers:
            self.assertEqual(watcher.ask(b"watch\r\n"), b"OK\r\n")
        last = Link(server)
        self.assertEqual(last.ask(b"watch\r\n"), b"WATCHER_TOO_MANY log watcher limit reached\r\n")
        watchers[3].transport.lose()
        self.assertEqual(last.ask(b"watch\r\n"), b"OK\r\n")

    def test_words(self) -> None:
        """What memcached knows is taken, whether it ever happens or not; else ERROR."""
        for words, answer in (
            (b"", b"OK\r\n"),
            (b" fetchers mutations evictions connevents deletions", b"OK\r\n"),
            (b" rawcmds sysevents proxyreqs proxyevents proxyuser", b"OK\r\n"),
            (b" f", b"ERROR\r\n"),
            (b" fetchers nothing", b"ERROR\r\n"),
            (b" noreply", b"ERROR\r\n"),
        ):
            self.assertEqual(Link(server_of()).ask(b"watch" + words + b"\r\n"), answer)

    def test_who_may(self) -> None:
        """Without users whoever comes from this machine; with them those that are named."""
        refused = b"CLIENT_ERROR watch commands not allowed\r\n"
        for peer, answer in (
            (IPv4Address("TCP", "127.0.0.1", 1), b"OK\r\n"),
            (IPv4Address("TCP", "::1", 1), b"OK\r\n"),
            (IPv4Address("TCP", "::ffff:127.0.0.1", 1), b"OK\r\n"),
            (UNIXAddress(None), b"OK\r\n"),
            (IPv4Address("TCP", "192.0.2.1", 1), refused),
        ):
            client = Link(server_of(watchers=None), ScriptedTransport(peer=peer))
            self.assertEqual(client.ask(b"watch\r\n"), answer, peer)
        users = UserTable.of_passwords({"alice": "secret", "bob": "secret"}, iterations=1)
        for watchers, name, answer in (
            (None, b"alice", refused),
            (frozenset({"bob"}), b"alice", refused),
            (frozenset({"bob"}), b"bob", b"OK\r\n"),
        ):
            server = KVServer(MemoryStore(lambda: NOW), ServerSettings(watchers=watchers), users)
            client = Link(server)
            client.ask(b"set a 0 0 %d\r\n%b secret\r\n" % (len(name) + 7, name))
            self.assertEqual(client.ask(b"watch\r\n"), answer, name)

    def test_own_bucket(self) -> None:
        """A watcher hears of the documents of its own bucket only."""
        stores = [MemoryStore(lambda: NOW), MemoryStore(lambda: NOW)]
        users = UserTable.of_passwords(
            {"alice": "secret", "bob": "secret"}, {"alice": ("a",), "bob": ("b",)}, iterations=1
        )
        server = KVServer(
            [Bucket("a", stores[0]), Bucket("b", stores[1])],
            ServerSettings(watchers=frozenset({"alice", "bob"})),
            users,
        )
        links = {name: Link(server) for name in ("alice", "bob", "watching")}
        for name, link in links.items():
            login = b"bob secret" if name == "bob" else b"alice secret"
            self.assertEqual(
                link.ask(b"set a 0 0 %d\r\n%b\r\n" % (len(login), login)), b"STORED\r\n"
            )
        links["watching"].ask(b"watch\r\n")
        links["bob"].ask(b"get theirs\r\n")
        links["alice"].ask(b"get ours\r\n")
        (line,) = told(links["watching"])
        self.assertIn("key=ours", line)

    def test_bucket_removed(self) -> None:
        """Who watches a bucket that is removed is let go; one that is added is watched."""
        server = server_of()
        watcher, other = Link(server), Link(server)
        watcher.ask(b"watch evictions\r\n")
        added: Any = MemoryStore(lambda: NOW)
        server.add_bucket(Bucket("added", added))
        self.assertIsNotNone(added.table.on_eviction)
        server.remove_bucket("default")
        self.assertTrue(watcher.transport.closed)
        self.assertFalse(other.transport.closed)

    def test_state(self) -> None:
        """``stats conns`` says who watches, and has the numbers that the lines have."""
        server = server_of()
        watcher, client = Link(server), Link(server)
        watcher.ask(b"watch\r\n")
        found = client.ask(b"stats conns\r\n").decode()
        self.assertIn("STAT 1:state conn_watch\r\n", found)
        self.assertIn("STAT 2:state conn_parse_cmd\r\n", found)
        client.ask(b"set k 0 0 5\r\nab")
        found = Link(server).ask(b"stats conns\r\n").decode()
        self.assertIn("STAT 2:state conn_nread\r\n", found)
        client.ask(b"cde\r\n")
        watcher.take()
        client.ask(b"get k\r\n")
        self.assertIn("cfd=2", told(watcher)[0])
