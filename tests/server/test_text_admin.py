"""Commands that steer what is not here: answered as by a memcached with nothing to do."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from tests.server.support import Link

# What memcached 1.6.45 answers.
ANSWERS = {
    b"slabs reassign 1 2": b"NOSPARE source class has no spare pages",
    b"slabs reassign 0 5": b"NOSPARE source class has no spare pages",
    b"slabs reassign 5 5": b"SAME src and dst class are identical",
    b"slabs reassign 99 5": b"BADCLASS invalid src or dst class id",
    b"slabs reassign x 2": b"CLIENT_ERROR bad command line format",
    b"slabs reassign 1": b"ERROR",
    b"slabs automove": b"ERROR",
    b"slabs automove 0": b"OK",
    b"slabs automove 1": b"OK",
    b"slabs automove 2": b"OK",
    b"slabs automove 3": b"ERROR",
    b"slabs automove x": b"CLIENT_ERROR bad command line format",
    b"slabs automove ratio 0.8": b"OK",
    b"slabs automove freeratio 0.01": b"OK",
    b"slabs automove window 10": b"OK",
    b"slabs automove ratio x": b"ERROR",
    b"slabs": b"ERROR",
    b"slabs foo": b"ERROR",
    b"slabs foo bar baz": b"ERROR",
    b"lru": b"ERROR",
    b"lru tune": b"ERROR",
    b"lru tune 10": b"ERROR",
    b"lru tune a b c d": b"ERROR",
    b"lru tune 10 25 0.1 2.0": b"OK",
    b"lru tune 60 60 0.1 2": b"ERROR hot and warm pcts must not exceed 80",
    b"lru tune 10 25 -1 2.0": b"ERROR hot/warm age factors must be greater than 0",
    b"lru tune 10 25 0 2.0": b"ERROR hot/warm age factors must be greater than 0",
    b"lru mode flat": b"OK",
    b"lru mode segmented": b"OK",
    b"lru mode foo": b"ERROR",
    b"lru mode": b"ERROR",
    b"lru temp_ttl 60": b"OK",
    b"lru temp_ttl -1": b"OK",
    b"lru temp_ttl x": b"ERROR",
    b"lru foo 1": b"ERROR",
    b"lru_crawler enable": b"OK",
    b"lru_crawler disable": b"OK",
    b"lru_crawler sleep 100": b"OK",
    b"lru_crawler sleep 2000000": b"CLIENT_ERROR sleep must be one second or less",
    b"lru_crawler sleep x": b"CLIENT_ERROR bad command line format",
    b"lru_crawler tocrawl 100": b"OK",
    b"lru_crawler tocrawl x": b"CLIENT_ERROR bad command line format",
    b"lru_crawler crawl all": b"OK",
    b"lru_crawler crawl 1,2": b"OK",
    b"lru_crawler crawl 99": b"BADCLASS invalid class id",
    b"lru_crawler crawl x": b"BADCLASS invalid class id",
    b"lru_crawler": b"ERROR",
    b"lru_crawler foo": b"ERROR",
    b"lru_crawler metadump": b"ERROR",
    b"lru_crawler metadump x": b"BADCLASS invalid class id",
    b"shutdown": b"SERVER_ERROR: shutdown not enabled",
    b"shutdown foo": b"SERVER_ERROR: shutdown not enabled",
    b"debugtime": b"ERROR",
    b"debugtime 3": b"ERROR",
    b"cache_memlimit 1": b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m",
    b"cache_memlimit x": b"ERROR",
    b"cache_memlimit": b"ERROR",
}


class AnswerTests(SynchronousTestCase):
    """Each line is answered, and nothing changes."""

    def test_answers(self) -> None:
        """As memcached answers it; with noreply not at all."""
        link = Link(mode=Mode.MEMCACHED)
        link.ask(b"set k 0 0 1\r\nx\r\n")
        for line, answer in ANSWERS.items():
            self.assertEqual(link.ask(line + b"\r\nmn\r\n"), answer + b"\r\nMN\r\n", line)
            if b" " in line:
                self.assertEqual(link.ask(line + b" noreply\r\nmn\r\n"), b"MN\r\n", line)
        self.assertEqual(link.ask(b"get k\r\n"), b"VALUE k 0 1\r\nx\r\nEND\r\n")


class ShutdownTests(SynchronousTestCase):
    """``shutdown``, where the operator lets clients end the service."""

    def setUp(self) -> None:
        self.link = Link(mode=Mode.MEMCACHED)
        self.ended = 0
        self.link.server.shutdown = self.end

    def end(self) -> None:
        self.ended += 1

    def test_ends(self) -> None:
        """With and without ``graceful`` it ends, once what came before is answered."""
        self.assertIn(b"STAT shutdown_command yes\r\n", self.link.ask(b"stats settings\r\n"))
        self.assertEqual(self.link.ask(b"get k\r\nshutdown\r\nget k\r\n"), b"END\r\n")
        self.assertTrue(self.link.transport.closed)
        other = Link(self.link.server)
        self.assertEqual(other.ask(b"shutdown graceful\r\n"), b"")
        self.assertTrue(other.transport.closed)
        self.assertEqual(self.ended, 2)

    def test_other_words(self) -> None:
        """Anything else is wrong, and ends nothing."""
        for line in (b"shutdown foo\r\n", b"shutdown graceful now\r\n"):
            self.assertEqual(self.link.ask(line), b"CLIENT_ERROR invalid shutdown mode\r\n")
        self.assertEqual(self.ended, 0)

    def test_strangers(self) -> None:
        """Who has not logged in may not."""
        stranger = Link(users={"alice": "secret"})
        stranger.server.shutdown = self.end
        self.assertEqual(stranger.ask(b"shutdown\r\n"), b"CLIENT_ERROR unauthenticated\r\n")
        self.assertEqual(self.ended, 0)


class DebugTimeTests(SynchronousTestCase):
    """``debugtime``, where the clock may be moved."""

    def test_moves(self) -> None:
        """By whole seconds, and never back."""
        link = Link(mode=Mode.MEMCACHED)
        moved: list[float] = []
        link.server.advance = moved.append
        self.assertEqual(link.ask(b"debugtime 3\r\ndebugtime 0\r\n"), b"OK\r\nOK\r\n")
        for line in (b"debugtime\r\n", b"debugtime -1\r\n", b"debugtime p\r\n"):
            self.assertEqual(link.ask(line), b"ERROR\r\n")
        self.assertEqual(moved, [3, 0])
