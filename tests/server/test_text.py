"""The text session, in memcached's words."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from kvproto.server import KVServer, ServerSettings
from kvproto.store import MemoryStore
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Opcode
from tests.server.support import NOW, Link, SlowStore

ALICE = {"alice": "secret"}

# Each row on a store that holds: a = "abc" (flags 5), n = 10, locked = "x" (locked).
CONVERSATIONS: list[tuple[bytes, bytes]] = [
    (b"get a\r\n", b"VALUE a 5 3\r\nabc\r\nEND\r\n"),
    (b"get - a - n\r\n", b"VALUE a 5 3\r\nabc\r\nVALUE n 0 2\r\n10\r\nEND\r\n"),
    (b"get -\r\n", b"END\r\n"),
    (b"get\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"gets -\r\n", b"END\r\n"),
    (b"gets locked\r\n", b"VALUE locked 0 1 18446744073709551615\r\nx\r\nEND\r\n"),
    (b"gat 0 a -\r\n", b"VALUE a 5 3\r\nabc\r\nEND\r\n"),
    (b"gat 0 locked a\r\nmn\r\n", b"SERVER_ERROR temporary failure\r\nMN\r\n"),
    (b"set a 1 0 2\r\nxy\r\nget a\r\n", b"STORED\r\nVALUE a 1 2\r\nxy\r\nEND\r\n"),
    (b"set a 1 0 2 noreply\r\nxy\r\nget a\r\n", b"VALUE a 1 2\r\nxy\r\nEND\r\n"),
    (b"set b 0 0 0\r\n\r\nget b\r\n", b"STORED\r\nVALUE b 0 0\r\n\r\nEND\r\n"),
    (b"set b 0 -1 1\r\nx\r\nget b\r\n", b"STORED\r\nEND\r\n"),
    (b"set locked 0 0 1\r\nx\r\n", b"SERVER_ERROR temporary failure\r\n"),
    (b"add a 0 0 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"add b 0 0 1\r\nx\r\n", b"STORED\r\n"),
    (b"add a 0 0 1 noreply\r\nx\r\nmn\r\n", b"MN\r\n"),
    (b"replace a 0 0 1\r\nx\r\n", b"STORED\r\n"),
    (b"replace b 0 0 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"append a 0 0 1\r\nx\r\nget a\r\n", b"STORED\r\nVALUE a 5 4\r\nabcx\r\nEND\r\n"),
    (b"prepend a 0 0 1\r\nx\r\nget a\r\n", b"STORED\r\nVALUE a 5 4\r\nxabc\r\nEND\r\n"),
    (b"append b 0 0 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"cas a 0 0 1 5\r\nx\r\n", b"EXISTS\r\n"),
    (b"cas a 0 0 1 0\r\nx\r\n", b"EXISTS\r\n"),
    (b"cas b 0 0 1 5\r\nx\r\n", b"NOT_FOUND\r\n"),
    (b"cas b 0 0 1 0\r\nx\r\n", b"NOT_FOUND\r\n"),
    (b"delete a\r\nget a\r\n", b"DELETED\r\nEND\r\n"),
    (b"delete b\r\n", b"NOT_FOUND\r\n"),
    (b"delete a noreply\r\nget a\r\n", b"END\r\n"),
    (b"delete locked\r\n", b"SERVER_ERROR temporary failure\r\n"),
    (b"incr n 5\r\n", b"15\r\n"),
    (b"incr n 5 noreply\r\nincr n 1\r\n", b"16\r\n"),
    (b"decr n 11\r\n", b"0\r\n"),
    (b"incr a 1\r\n", b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
    (b"incr b 1\r\nget b\r\n", b"NOT_FOUND\r\nEND\r\n"),
    (b"touch a 10\r\n", b"TOUCHED\r\n"),
    (b"touch b 10\r\n", b"NOT_FOUND\r\n"),
    (b"touch a 10 noreply\r\nmn\r\n", b"MN\r\n"),
    (b"flush_all\r\nget a\r\n", b"OK\r\nEND\r\n"),
    (b"flush_all noreply\r\nget a\r\n", b"END\r\n"),
    (b"flush_all 10\r\nget n\r\n", b"OK\r\nVALUE n 0 2\r\n10\r\nEND\r\n"),
    (b"verbosity 1\r\n", b"OK\r\n"),
    (b"verbosity 1 noreply\r\nmn\r\n", b"MN\r\n"),
    (b"stats reset\r\n", b"RESET\r\n"),
    (b"stats detail on\r\n", b"OK\r\n"),
    (b"stats detail dump\r\n", b"END\r\n"),
    (b"stats detail\r\n", b"CLIENT_ERROR usage: stats detail on|off|dump\r\n"),
    (b"stats cachedump 9 0\r\n", b"END\r\n"),
    (b"stats cachedump 1\r\n", b"CLIENT_ERROR bad command line\r\n"),
    (b"stats cachedump 300 0\r\n", b"CLIENT_ERROR Illegal slab id\r\n"),
    (b"stats cachedump x y\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"stats cachedump 1 1\r\n", b"ITEM a [3 b; 1700000000 s]\r\nEND\r\n"),
    (b"stats noreply\r\n", b"ERROR\r\n"),
    (b"nonsense\r\nmn\r\n", b"ERROR\r\nMN\r\n"),
    (
        b"set a 0 0 1\r\nxy\r\n",
        b"CLIENT_ERROR bad data chunk\r\nCLIENT_ERROR bad command line format\r\n",
    ),
    (b"set a 0 4294967295 1\r\nx\r\nget a\r\n", b"STORED\r\nEND\r\n"),
    (b"touch a 2147483648\r\nget a\r\n", b"TOUCHED\r\nEND\r\n"),
    (
        b"set a x 0 8\r\ndelete n\r\nget n\r\n",
        b"CLIENT_ERROR bad command line format\r\nVALUE n 0 2\r\n10\r\nEND\r\n",
    ),
    (b"shutdown\r\n", b"SERVER_ERROR: shutdown not enabled\r\n"),
    (b"shutdown noreply\r\nmn\r\n", b"MN\r\n"),
    (b"cache_memlimit\r\n", b"ERROR\r\n"),
    (b"cache_memlimit 1x\r\n", b"ERROR\r\n"),
    (b"cache_memlimit 4\r\n", b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"),
    (b"cache_memlimit 64\r\n", b"MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\r\n"),
    (
        b"cache_memlimit 1000000001\r\n",
        b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n",
    ),
    (b"cache_memlimit 64 noreply\r\nmn\r\n", b"MN\r\n"),
    (b"quit\r\nmn\r\n", b""),
]


def link(**settings: object) -> Link:
    """Make a link whose store holds what `CONVERSATIONS` says."""
    made = Link(mode=Mode.MEMCACHED)
    fill(made.store)
    return made


def fill(store: MemoryStore) -> None:
    """Store what `CONVERSATIONS` says."""
    store.set(b"a", b"abc", 5)
    store.set(b"n", b"10")
    store.set(b"locked", b"x")
    store.get_and_lock(b"locked", 15)


class ConversationTests(SynchronousTestCase):
    """What is said to what."""

    def test_whole(self) -> None:
        """Each conversation goes as the table says."""
        for said, heard in CONVERSATIONS:
            with self.subTest(said=said):
                self.assertEqual(link().ask(said), heard)

    def test_byte_by_byte(self) -> None:
        """However it arrives."""
        for said, heard in CONVERSATIONS:
            with self.subTest(said=said):
                one = link()
                one.transport.send(said, read_size=1)
                self.assertEqual(one.take(), heard)

    def test_slow_store(self) -> None:
        """However long the store takes."""
        for said, heard in CONVERSATIONS:
            with self.subTest(said=said):
                store = MemoryStore(lambda: NOW)
                fill(store)
                slow = SlowStore(store)
                server = KVServer(slow, ServerSettings(mode=Mode.MEMCACHED), now=lambda: NOW)
                one = Link(server)
                one.transport.send(said)
                while slow.waiting:
                    slow.release()
                self.assertEqual(one.take(), heard)

    def test_cas(self) -> None:
        """The number that gets gives is what cas takes."""
        one = link()
        cas = one.ask(b"gets a\r\n").split()[4]
        self.assertEqual(one.ask(b"cas a 0 0 1 %b\r\nx\r\n" % cas), b"STORED\r\n")
        self.assertEqual(one.ask(b"cas a 0 0 1 %b\r\nx\r\n" % cas), b"EXISTS\r\n")

    def test_version(self) -> None:
        """Version answers whatever is behind it."""
        for line in (b"version\r\n", b"version noreply\r\n", b"version foo\r\n"):
            self.assertRegex(link().ask(line), rb"\AVERSION \d+\.\d+\.\d+\r\n\Z")

    def test_stats(self) -> None:
        """Statistics are lines, and END."""
        answer = link().ask(b"stats\r\n")
        self.assertTrue(answer.endswith(b"\r\nEND\r\n"))
        self.assertIn(b"\r\nSTAT curr_items 3\r\n", answer)
        self.assertIn(b"STAT maxconns 1024\r\n", link().ask(b"stats settings\r\n"))

    def test_both_protocols_see_the_same(self) -> None:
        """What text stores, binary reads, and the other way round."""
        text = link()
        binary = Link(text.server)
        text.ask(b"set k 3 0 1\r\nx\r\n")
        found = binary.call(Opcode.GET, key=b"k")
        self.assertEqual((found.extras, found.value), (b"\0\0\0\3", b"x"))
        cas = text.ask(b"gets k\r\n").split()[4]
        self.assertEqual(int(cas), found.cas)
        binary.responses(encode_request(Opcode.SETQ, key=b"k", value=b"y", extras=bytes(8)))
        self.assertEqual(text.ask(b"get k\r\n"), b"VALUE k 0 1\r\ny\r\nEND\r\n")

    def test_large_values(self) -> None:
        """Values of any size come back."""
        for size in (16384, 16385, 1_000_000):
            value = bytes(range(256)) * (size // 256) + b"\r\n" * (size % 256)
            one = link()
            one.ask(b"set k 0 0 %d\r\n%b\r\n" % (len(value), value))
            heard = one.ask(b"get k\r\nmn\r\n")
            self.assertEqual(heard, b"VALUE k 0 %d\r\n%b\r\nEND\r\nMN\r\n" % (len(value), value))


class TooLargeTests(SynchronousTestCase):
    """Values beyond the limit."""

    def test_refused(self) -> None:
        """The answer is memcached's; the connection goes on; in Couchbase mode nothing is lost."""
        one = Link(max_value=100)
        one.store.set(b"k", b"old")
        self.assertEqual(
            one.ask(b"set k 0 0 101\r\n" + bytes(101) + b"\r\nget k\r\n"),
            b"SERVER_ERROR object too large for cache\r\nVALUE k 0 3\r\nold\r\nEND\r\n",
        )

    def test_memcached_mode_deletes(self) -> None:
        """There a failed set removes the old value, also when the store finds it too large."""
        for reply in (b"", b" noreply"):
            for size in (2 << 20, (1 << 20)):
                store = MemoryStore(lambda: NOW, max_item=1 << 20)
                server = KVServer(store, ServerSettings(mode=Mode.MEMCACHED))
                one = Link(server)
                store.set(b"k", b"old")
                heard = one.ask(
                    b"set k 0 0 %d%b\r\n" % (size, reply) + bytes(size) + b"\r\nget k\r\n"
                )
                line = b"" if reply else b"SERVER_ERROR object too large for cache\r\n"
                self.assertEqual(heard, line + b"END\r\n")

    def test_full_store(self) -> None:
        """A store that may not evict says so."""
        store = MemoryStore(lambda: NOW, 70_000, False, max_item=1 << 20)
        one = Link(KVServer(store, ServerSettings(mode=Mode.MEMCACHED)))
        self.assertEqual(one.ask(b"set a 0 0 50000\r\n" + bytes(50000) + b"\r\n"), b"STORED\r\n")
        self.assertEqual(
            one.ask(b"set b 0 0 50000\r\n" + bytes(50000) + b"\r\n"),
            b"SERVER_ERROR out of memory storing object\r\n",
        )


class FlushTests(SynchronousTestCase):
    """flush_all where it is not allowed."""

    def test_refused(self) -> None:
        """It says so, and removes nothing."""
        one = Link()
        one.store.set(b"k", b"v")
        self.assertEqual(one.ask(b"flush_all\r\n"), b"CLIENT_ERROR flush_all not allowed\r\n")
        self.assertEqual(one.ask(b"flush_all noreply\r\nmn\r\n"), b"MN\r\n")
        self.assertIsNotNone(one.store.get(b"k"))


class LoginTests(SynchronousTestCase):
    """A login in the form of a set."""

    def test_login(self) -> None:
        """The right words open the rest; they are not stored."""
        one = Link(users=ALICE)
        self.assertEqual(one.ask(b"set x 0 0 12\r\nalice secret\r\n"), b"STORED\r\n")
        self.assertEqual(one.ask(b"get x\r\n"), b"END\r\n")
        self.assertEqual(one.ask(b"set x 0 0 1\r\ny\r\n"), b"STORED\r\n")

    def test_anything_else_first(self) -> None:
        """A stranger hears one answer to everything but the login and quit."""
        for line in (
            b"get a\r\n",
            b"version\r\n",
            b"stats\r\n",
            b"flush_all noreply\r\n",
            b"nonsense\r\n",
            b"set\r\n",
            b"add x 0 0 12\r\nalice secret\r\n",
        ):
            self.assertEqual(Link(users=ALICE).ask(line), b"CLIENT_ERROR unauthenticated\r\n", line)
        one = Link(users=ALICE)
        self.assertEqual(one.ask(b"quit\r\n"), b"")
        self.assertTrue(one.transport.closed)

    def test_any_fields(self) -> None:
        """Nothing but the value counts, as with memcached's ``-Y``; emcache sends underscores."""
        for line in (
            b"set _ _ _ 12",
            b"set " + b"k" * 300 + b" x y 12 noreply z",
            b"set a -1 -1 12",
        ):
            one = Link(users=ALICE)
            self.assertEqual(one.ask(line + b"\r\nalice secret\r\n"), b"STORED\r\n", line)
            self.assertEqual(
                one.ask(line.replace(b"noreply", b"") + b"\r\nalice secret\r\nget a _\r\n"),
                b"CLIENT_ERROR bad command line format\r\nEND\r\n",
            )

    def test_what_follows_in_the_same_read(self) -> None:
        """A line behind the login is judged as one of the user's."""
        one = Link(users=ALICE)
        self.assertEqual(
            one.ask(b"set _ _ _ 12\r\nalice secret\r\nset a _ 0 1\r\nx\r\nget a\r\n"),
            b"STORED\r\nCLIENT_ERROR bad command line format\r\nEND\r\n",
        )

    def test_values_of_strangers(self) -> None:
        """What a stranger sends as a value is no command, and so costs one answer."""
        for line in (
            b"set k 0 0 16",
            b"set " + b"k" * 251 + b" 0 0 16",
            b"add k x 0 16",
            b"cas k 0 0 16",
            b"append k 0 0 16 noreply",
        ):
            one = Link(users=ALICE)
            heard = one.ask(line + b"\r\ndelete victimize\r\n")
            self.assertIn(
                heard,
                (b"CLIENT_ERROR unauthenticated\r\n", b"CLIENT_ERROR authentication failure\r\n"),
                line,
            )

    def test_wrong(self) -> None:
        """A wrong login says so; the next one may be right."""
        one = Link(users=ALICE)
        for word in (b"alice secrex", b"malice secret", b"alice  secret"):
            self.assertEqual(
                one.ask(b"set x 0 0 %d\r\n%b\r\n" % (len(word), word)),
                b"CLIENT_ERROR authentication failure\r\n",
            )
        for word in (b"alicesecret", b"alice ", b" secret", b""):
            self.assertEqual(
                one.ask(b"set x 0 0 %d\r\n%b\r\n" % (len(word), word)),
                b"CLIENT_ERROR bad authentication token format\r\n",
            )
        self.assertEqual(one.ask(b"get x\r\n"), b"CLIENT_ERROR unauthenticated\r\n")
        self.assertEqual(one.ask(b"set x 0 0 12\r\nalice secret\r\n"), b"STORED\r\n")

    def test_large_login(self) -> None:
        """A stranger's value is not held."""
        one = Link(users=ALICE)
        one.ask(b"set x 0 0 1000000\r\n" + bytes(500_000))
        self.assertEqual(one.session.dialect._decoder.buffered, 0)  # type: ignore[attr-defined]
        self.assertEqual(one.ask(bytes(500_000) + b"\r\n"), b"CLIENT_ERROR unauthenticated\r\n")
