"""What is told of documents by class, size and key, as memcached tells it."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from kvproto.server import KVServer, ServerSettings
from kvproto.store import Document, MemoryStore
from kvproto.store.slab_classes import CHUNK_SIZES, item_size, slab_class
from tests.server.support import NOW, Link

# As memcached 1.6.45 has them with default options.
MEMCACHED_CHUNKS = [96, 120, 152, 192, 240, 304, 384, 480, 600, 752, 944, 1184, 1480, 1856, 2320]


def link() -> Link:
    """Make a link in memcached mode."""
    return Link(mode=Mode.MEMCACHED)


def stats(one: Link, group: bytes) -> dict[bytes, bytes]:
    """Return a group of statistics."""
    lines = one.ask(b"stats " + group + b"\r\n").splitlines()
    assert lines.pop() == b"END"
    pairs = (line.split(b" ", 2) for line in lines)
    return {name: value for _, name, value in pairs}


class ClassTests(SynchronousTestCase):
    """Sizes and classes."""

    def test_chunks(self) -> None:
        """Chunks grow as memcached's, to half of a page."""
        self.assertEqual(list(CHUNK_SIZES[: len(MEMCACHED_CHUNKS)]), MEMCACHED_CHUNKS)
        self.assertEqual((len(CHUNK_SIZES), CHUNK_SIZES[-1]), (39, 524288))

    def test_class_of_a_size(self) -> None:
        """The smallest chunk that is large enough; all that is larger is in the last."""
        for size, number in ((1, 1), (96, 1), (97, 2), (120, 2), (524288, 39), (1 << 20, 39)):
            self.assertEqual(slab_class(size), number, size)

    def test_size(self) -> None:
        """A size has the header, the key and, where there are any, the flags in it."""
        self.assertEqual(item_size(b"abc", Document(b"x")), 63)
        self.assertEqual(item_size(b"a", Document(b"abc", 7)), 67)


class StatisticsTests(SynchronousTestCase):
    """stats items, slabs and sizes."""

    def test_items(self) -> None:
        """Items are counted where memcached's tests look for them."""
        one = link()
        one.ask(b"set a 0 0 1\r\nx\r\nset b 0 0 1\r\ny\r\nset c 0 0 300\r\n" + bytes(300) + b"\r\n")
        one.time += 10
        found = stats(one, b"items")
        self.assertEqual(found[b"items:1:number"], b"2")
        self.assertEqual(found[b"items:1:mem_requested"], b"122")
        self.assertEqual(found[b"items:1:age"], b"10")
        self.assertEqual(found[b"items:7:number"], b"1")

    def test_slabs(self) -> None:
        """Pages and chunks fit together."""
        one = link()
        for number in range(20):
            one.ask(b"set key%d 0 0 1\r\nx\r\n" % number)
        found = {name: int(value) for name, value in stats(one, b"slabs").items()}
        self.assertEqual(found[b"1:chunk_size"], 96)
        self.assertEqual(found[b"1:used_chunks"], 20)
        self.assertEqual(found[b"1:used_chunks"] + found[b"1:free_chunks"], 10922)
        self.assertEqual(found[b"1:cmd_set"], 20)
        self.assertEqual((found[b"active_slabs"], found[b"total_malloced"]), (1, 1 << 20))

    def test_sizes(self) -> None:
        """Sizes are counted in steps of 32 bytes."""
        one = link()
        one.ask(b"set a 0 0 1\r\nx\r\nset b 0 0 40\r\n" + bytes(40) + b"\r\n")
        self.assertEqual(
            stats(one, b"sizes"), {b"sizes_status": b"enabled", b"64": b"1", b"128": b"1"}
        )

    def test_every_name(self) -> None:
        """All 93 names of memcached 1.6.45 are there, and no others."""
        general = stats(link(), b"")
        self.assertEqual(len(general), 93)
        names = (
            "pid uptime time version pointer_size curr_items total_items bytes evictions reclaimed "
            "cmd_meta get_expired get_flushed store_too_large store_no_memory conn_yields "
            "listen_disabled_num accepting_conns threads hash_bytes slabs_moved "
            "log_watchers expired_unfetched evicted_active crawler_reclaimed direct_reclaims"
        )
        for name in names.split(" "):
            self.assertIn(name.encode(), general)
        self.assertIn(b"reqs_per_event", stats(link(), b"settings"))

    def test_names_that_depend(self) -> None:
        """As in memcached, some names depend on how the server was started."""
        bare = Link(mode=Mode.MEMCACHED, lru_threads=False)
        general = stats(bare, b"")
        self.assertEqual(len(general), 84)
        self.assertNotIn(b"lru_crawler_starts", general)
        self.assertIn(b"idle_kicks", stats(Link(idle_timeout=5.0), b""))

    def test_too_large(self) -> None:
        """What was thrown away before the store heard of it is counted, text and binary."""
        one = Link(mode=Mode.MEMCACHED, max_value=100)
        one.ask(b"set a 0 0 2000\r\n" + bytes(2000) + b"\r\nms a 101\r\n" + bytes(101) + b"\r\n")
        self.assertEqual(stats(one, b"")[b"store_too_large"], b"2")
        one.ask(b"stats reset\r\n")
        self.assertEqual(stats(one, b"")[b"store_too_large"], b"0")

    def test_connections(self) -> None:
        """Each connection that is open is told of, and none that is gone."""
        one = link()
        other = Link(one.server)
        self.assertIn(b"2:state", stats(one, b"conns"))
        other.transport.lose()
        found = stats(one, b"conns")
        self.assertEqual(found[b"1:state"], b"conn_parse_cmd")
        self.assertNotIn(b"2:state", found)

    def test_listening(self) -> None:
        """Listening sockets come first, with numbers that no connection gets."""
        one = link()
        one.server.listening = lambda: [
            UNIXAddress(b"/run/kv.sock"),
            IPv4Address("TCP", "127.0.0.1", 11211),
            IPv6Address("TCP", "::1", 11211),
        ]
        lines = one.ask(b"stats conns\r\n").splitlines()
        self.assertEqual(
            lines[:4],
            [
                b"STAT 4294967295:addr unix:/run/kv.sock",
                b"STAT 4294967295:state conn_listening",
                b"STAT 4294967295:secs_since_last_cmd 0",
                b"STAT 4294967294:addr tcp:127.0.0.1:11211",
            ],
        )
        self.assertIn(b"STAT 4294967293:addr tcp6:[::1]:11211", lines)
        settings = stats(one, b"settings")
        self.assertEqual(settings[b"domain_socket"], b"/run/kv.sock")
        self.assertEqual(settings[b"inter"], b"127.0.0.1,::1")

    def test_last_command(self) -> None:
        """A connection says how long ago it was read from; the clock is looked at now and then."""
        one = link()
        other = Link(one.server)
        self.assertEqual(stats(one, b"conns")[b"2:secs_since_last_cmd"], b"0")
        one.server.tick()
        other.ask(b"set a 0 0 1\r\n")
        one.time += 7
        one.server.tick()
        found = stats(one, b"conns")
        self.assertEqual(found[b"2:state"], b"conn_nread")
        self.assertEqual(found[b"2:secs_since_last_cmd"], b"7")
        self.assertEqual(found[b"1:secs_since_last_cmd"], b"0")

    def test_expired_already(self) -> None:
        """What comes expired is counted when somebody looks for it, as memcached does."""
        one = link()
        one.ask(b"set a 0 -1 1\r\nx\r\nget a\r\nset b 0 2678400 1\r\nx\r\nget b\r\nget b\r\n")
        found = stats(one, b"")
        self.assertEqual((found[b"get_expired"], found[b"get_misses"]), (b"2", b"3"))
        self.assertEqual((found[b"curr_items"], found[b"bytes"]), (b"0", b"0"))

    def test_flushed_is_reclaimed(self) -> None:
        """Memory that flushed documents give back is counted as reclaimed."""
        one = link()
        one.ask(b"set a 0 0 1\r\nx\r\nset b 0 0 1\r\nx\r\nflush_all\r\nset a 0 0 1\r\nx\r\n")
        found = stats(one, b"")
        self.assertEqual((found[b"reclaimed"], found[b"curr_items"]), (b"2", b"1"))


class DetailTests(SynchronousTestCase):
    """stats detail."""

    def test_counts(self) -> None:
        """What is asked of keys is counted by prefix, while somebody wants it."""
        one = link()
        one.ask(b"set abc:a 0 0 1\r\nx\r\n")
        self.assertEqual(one.ask(b"stats detail on\r\n"), b"OK\r\n")
        one.ask(b"set abc:a 0 0 1\r\nx\r\nget abc:a abc:b plain\r\ngets abc:a\r\ndelete abc:a\r\n")
        one.ask(b"add abc:c 0 0 1\r\nx\r\nset plain 0 0 1\r\nx\r\nget d:e:f\r\n")
        self.assertEqual(
            one.ask(b"stats detail dump\r\n"),
            b"PREFIX abc get 3 hit 2 set 2 del 1\r\nPREFIX d get 1 hit 0 set 0 del 0\r\nEND\r\n",
        )
        self.assertEqual(one.ask(b"stats detail off\r\nget abc:a\r\n"), b"OK\r\nEND\r\n")
        self.assertIn(b"PREFIX abc get 3 ", one.ask(b"stats detail dump\r\n"))
        one.ask(b"stats reset\r\n")
        self.assertEqual(one.ask(b"stats detail dump\r\n"), b"END\r\n")


class ListingTests(SynchronousTestCase):
    """lru_crawler metadump and mgdump, stats cachedump."""

    def test_metadump(self) -> None:
        """A line a key, all that a tool needs, keys encoded."""
        one = link()
        one.ask(b"ms a 3 E5 F7 T60\r\nabc\r\nms IGs= 1 b E6\r\nx\r\nmg a\r\n")
        self.assertEqual(
            one.ask(b"lru_crawler metadump all\r\n"),
            b"key=%20k exp=-1 la=1700000000 cas=6 fetch=no cls=1 size=62 flags=0\n"
            b"key=a exp=1700000060 la=1700000000 cas=5 fetch=yes cls=1 size=67 flags=7\nEND\r\n",
        )
        self.assertEqual(one.ask(b"lru_crawler mgdump hash\r\n"), b"mg IGs= b\r\nmg a\r\nEN\r\n")
        self.assertEqual(one.ask(b"lru_crawler metadump 2,3\r\n"), b"END\r\n")
        self.assertEqual(one.ask(b"lru_crawler metadump 999\r\n"), b"BADCLASS invalid class id\r\n")

    def test_expired(self) -> None:
        """What has expired is not listed."""
        one = link()
        one.ask(b"set a 0 5 1\r\nx\r\n")
        one.time += 6
        self.assertEqual(one.ask(b"lru_crawler metadump all\r\n"), b"END\r\n")

    def test_other_words(self) -> None:
        """The crawler's other commands are answered as memcached answers them."""
        for asked, answered in (
            (b"lru_crawler", b"ERROR\r\n"),
            (b"lru_crawler foo", b"ERROR\r\n"),
            (b"lru_crawler crawl all", b"OK\r\n"),
            (b"lru_crawler crawl x", b"BADCLASS invalid class id\r\n"),
            (b"lru_crawler enable", b"OK\r\n"),
            (b"lru_crawler sleep 10", b"OK\r\n"),
            (b"lru_crawler sleep 9999999", b"CLIENT_ERROR sleep must be one second or less\r\n"),
            (b"lru_crawler tocrawl x", b"CLIENT_ERROR bad command line format\r\n"),
        ):
            self.assertEqual(link().ask(asked + b"\r\n"), answered, asked)

    def test_in_pieces(self) -> None:
        """A long listing lets others have their turn, and is whole in the end."""
        clock = Clock()
        store = MemoryStore(lambda: NOW, later=lambda call: clock.callLater(1, call))
        for number in range(2000):
            store.set(b"key%d" % number, b"x")
        server = KVServer(store, ServerSettings(mode=Mode.MEMCACHED), now=lambda: NOW)
        one = Link(server)
        heard = one.ask(b"lru_crawler metadump all\r\n")
        turns = 0
        while not heard.endswith(b"END\r\n"):
            other = Link(server)
            self.assertTrue(other.ask(b"get key1\r\n").endswith(b"END\r\n"))
            clock.advance(1)
            heard += one.take()
            turns += 1
        self.assertGreater(turns, 4)
        self.assertEqual(heard.count(b"\nkey=") + 1, 2000)


class LeavingTests(SynchronousTestCase):
    """What is counted of documents that leave: evicted, expired, flushed."""

    def make(self, **options: Any) -> tuple[Link, Any]:
        self.time = NOW
        store = MemoryStore(lambda: self.time, **options)
        server = KVServer(store, ServerSettings(mode=Mode.MEMCACHED), now=lambda: self.time)
        return Link(server), store

    def test_evicted(self) -> None:
        """Evictions are counted in the class of what was evicted, and begin anew with a reset."""
        one, _ = self.make(memory_limit=20_000)
        one.ask(b"set eternal 0 0 9000\r\n" + bytes(9000) + b"\r\n")
        one.ask(b"mg eternal\r\n")  # from now on reads are noted
        one.ask(b"set unread 0 100 9000\r\n" + bytes(9000) + b"\r\n")
        self.time += 7
        one.ask(b"set third 0 0 9000\r\n" + bytes(9000) + b"\r\n")
        one.ask(b"set fourth 0 0 9000\r\n" + bytes(9000) + b"\r\n")
        found = {
            name.rpartition(b":")[2]: int(value) for name, value in stats(one, b"items").items()
        }
        self.assertEqual(
            (found[b"evicted"], found[b"evicted_nonzero"], found[b"evicted_unfetched"]), (2, 1, 1)
        )
        self.assertEqual(found[b"evicted_time"], 7)
        general = stats(one, b"")
        self.assertEqual((general[b"evictions"], general[b"evicted_unfetched"]), (b"2", b"1"))
        one.ask(b"stats reset\r\n")
        self.assertEqual(stats(one, b"")[b"evicted_unfetched"], b"0")
        after = {name.rpartition(b":")[2]: v for name, v in stats(one, b"items").items()}
        self.assertEqual(after[b"evicted"], b"0")

    def test_expired(self) -> None:
        """What has expired is reclaimed in its class, by whoever meets it."""
        one, _ = self.make()
        one.ask(b"set a 0 1 1\r\nx\r\nset b 0 1 1\r\nx\r\nset c 0 1 1\r\nx\r\nset d 0 0 1\r\nx\r\n")
        self.time += 2
        one.ask(b"get a\r\nset b 0 0 1\r\nx\r\nset e 0 0 1\r\nx\r\n")
        self.assertEqual(stats(one, b"items")[b"items:1:reclaimed"], b"3")
        general = stats(one, b"")
        # Two of them were looked for; the third made room.
        self.assertEqual((general[b"reclaimed"], general[b"get_expired"]), (b"3", b"2"))

    def test_flushed(self) -> None:
        """Whoever looks for what was flushed is counted once, as long as it is in memory."""
        for flush in (b"flush_all\r\n", b"flush_all 1\r\n"):
            one, store = self.make()
            one.ask(b"".join(b"set k%d 0 0 1\r\nx\r\n" % number for number in range(20)))
            used = store.table.used
            one.ask(flush)
            self.time += 2
            self.assertEqual(one.ask(b"get k1\r\nget k1\r\nget none\r\n"), b"END\r\n" * 3)
            one.ask(b"set k2 0 0 1\r\ny\r\n")
            self.assertEqual(stats(one, b"")[b"get_flushed"], b"2")
            one.ask(b"set k3 0 0 1\r\ny\r\n" * 3)
            self.assertEqual(store.table.garbage, [])
            self.assertEqual(store.table.used, used // 20 * 2)
            # Then a read is again as short as it was.
            self.assertEqual(store.table.find, store.table.items.get)
