"""Meta commands, against the answers of memcached 1.6.45."""

from __future__ import annotations

import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from kvproto.server import KVServer, ServerSettings
from kvproto.store import Mark, MemoryStore
from kvproto.wire.constants import Opcode
from tests.server.golden_meta import GOLDEN, STORED
from tests.server.support import NOW, Link, SlowStore

CAS = re.compile(rb" c(\d+)|cas=\d+")


def plain(answer: bytes) -> bytes:
    """Return an answer in which a CAS of the store's own making has no number."""
    return CAS.sub(
        lambda match: (
            b"cas=#" if match[1] is None else b" c#" if int(match[1]) > 10**12 else match[0]
        ),
        answer,
    ).replace(b" c18446744073709551615", b" c#")


def link(**settings: object) -> Link:
    """Make a link in memcached mode."""
    return Link(mode=Mode.MEMCACHED)


class GoldenTests(SynchronousTestCase):
    """What memcached answered is what is answered here."""

    def test_whole(self) -> None:
        """Each row, in one read."""
        for asked, answered in GOLDEN:
            one = link()
            one.ask(STORED)
            self.assertEqual(plain(one.ask(asked)), answered, asked)

    def test_byte_by_byte(self) -> None:
        """Each row, however it arrives."""
        for asked, answered in GOLDEN:
            one = link()
            one.ask(STORED)
            one.transport.send(asked, read_size=1)
            self.assertEqual(plain(one.take()), answered, asked)

    def test_slow_store(self) -> None:
        """Each row, however long the store takes."""
        for asked, answered in GOLDEN:
            store = MemoryStore(lambda: NOW)
            slow = SlowStore(store)
            server = KVServer(slow, ServerSettings(mode=Mode.MEMCACHED), now=lambda: NOW)
            one = Link(server)
            one.transport.send(STORED + asked)
            while slow.waiting:
                slow.release()
            self.assertEqual(plain(one.take()), b"HD\r\n" + answered, asked)


class DifferenceTests(SynchronousTestCase):
    """Where it is another answer, and why."""

    def test_key_as_it_was_asked_for(self) -> None:
        """A key is given back as it came; memcached gives back what the storing client used."""
        one = link()
        one.ask(b"ms YWJj 1 b\r\nx\r\n")
        self.assertEqual(one.ask(b"mg YWJj b k\r\n"), b"HD kYWJj b\r\n")
        self.assertEqual(one.ask(b"mg abc k\r\n"), b"HD kabc\r\n")

    def test_me_in_base64(self) -> None:
        """`me` takes base64 keys, as memcached's documentation has it and 1.6.45 not."""
        one = link()
        one.ask(b"ms YWJj 1 b\r\nx\r\n")
        self.assertEqual(
            plain(one.ask(b"me YWJj b\r\n")),
            b"ME YWJj exp=-1 la=0 cas=# fetch=no cls=1 size=63\r\n",
        )

    def test_expiry_without_its_sign(self) -> None:
        """2**31 to 2**32 - 1 are over in every flag that is an expiry; memcached refuses them."""
        one = link()
        one.ask(STORED)
        self.assertEqual(one.ask(b"mg a T4294967295\r\nmg a\r\n"), b"HD\r\nEN\r\n")
        self.assertEqual(one.ask(b"ms a 1 T2147483648\r\nx\r\nmg a\r\n"), b"HD\r\nEN\r\n")


class SizeTests(SynchronousTestCase):
    """Sizes that are no plain numbers, with the answers of memcached 1.6.45."""

    def test_no_number(self) -> None:
        """Nobody knows how much follows, so nothing is thrown away."""
        bad = b"CLIENT_ERROR bad command line format\r\n"
        for size in (b"+1", b"1\t", b"\t1", b"1x", b"-1", b"0" * 11 + b"1", b"2147483646"):
            for line in (b"set b 0 0 %b\r\n", b"set b 0 0 %b noreply\r\n", b"ms b %b\r\n"):
                self.assertEqual(link().ask(line % size + b"mn\r\n"), bad + b"MN\r\n", size)

    def test_numbers(self) -> None:
        """A sign of nothing, and zeros in front."""
        one = link()
        self.assertEqual(one.ask(b"set b 0 0 -0\r\n\r\nms b -0\r\n\r\n"), b"STORED\r\nHD\r\n")
        self.assertEqual(one.ask(b"ms b 00000000001\r\nx\r\n"), b"HD\r\n")


class SwallowTests(SynchronousTestCase):
    """The value of a refused ms is no command."""

    def test_swallowed(self) -> None:
        """Whatever is wrong with the line, and whoever sends it."""
        for flags in (b"T", b"Tx", b"z", b"s s", b"Cx", b"MX", b"O" + b"x" * 40, b"-", b"\x80"):
            one = link()
            one.ask(b"set victim 0 0 1\r\nx\r\n")
            heard = one.ask(b"ms k 13 " + flags + b"\r\ndelete victim\r\nmg victim\r\n")
            self.assertRegex(heard, rb"\ACLIENT_ERROR [^\r]*\r\nHD\r\n\Z", flags)

    def test_stranger(self) -> None:
        """Before a login one line is answered, once."""
        one = Link(users={"alice": "secret"})
        for line in (b"ms k 13", b"ms k 13 T0", b"ms k 13 zz", b"ms " + b"k" * 251 + b" 13"):
            self.assertEqual(
                one.ask(line + b"\r\ndelete victim\r\n"), b"CLIENT_ERROR unauthenticated\r\n"
            )

    def test_too_large(self) -> None:
        """A value that is too large is thrown away, and the old one with it."""
        for mode, left in ((Mode.MEMCACHED, b"EN\r\n"), (Mode.COUCHBASE, b"HD\r\n")):
            one = Link(mode=mode, max_value=100)
            one.ask(b"ms a 1\r\nx\r\n")
            self.assertEqual(
                one.ask(b"ms a 101 q\r\n" + bytes(101) + b"\r\nmg a\r\n"),
                b"SERVER_ERROR object too large for cache\r\n" + left,
            )


class QuickTests(SynchronousTestCase):
    """The short way for plain mg and ms says what the usual way says."""

    def test_same(self) -> None:
        """Whatever the flags, in one read and byte by byte; and all of it is counted."""
        words = [
            b"v",
            b"k",
            b"s",
            b"t",
            b"c",
            b"f",
            b"q",
            b"O1",
            b"O",
            b"v v",
            b"k v s",
            b"O2 v q k",
        ]
        for key in (b"a", b"none", b"stale", b"long"):
            for flags in words:
                answers = []
                for at_once in (True, False):
                    one = link()
                    one.ask(STORED + b"ms stale 1 E7\r\nx\r\nmd stale I E8\r\n")
                    one.ask(b"ms long 20000 E9 T50\r\n" + bytes(20000) + b"\r\n")
                    asked = b"mg %b %b\r\nmg %b v\r\n" % (key, flags, key)
                    one.transport.send(asked, read_size=65536 if at_once else 1)
                    answers.append((one.take(), one.server.counters.meta_cmds))
                self.assertEqual(answers[0], answers[1], (key, flags))

    def test_same_writes(self) -> None:
        """Storing too."""
        for flags in (b"", b" T60", b" F7 T0", b" q", b" I q", b" T1 T1", b" F4294967295", b" Tx"):
            answers = []
            for at_once in (True, False):
                one = link()
                one.ask(STORED)
                asked = b"ms b 3%b\r\nxyz\r\nmg b v t f\r\n" % flags
                one.transport.send(asked, read_size=65536 if at_once else 1)
                answers.append((one.take(), one.server.counters.meta_cmds))
            self.assertEqual(answers[0], answers[1], flags)


class LeaseTests(SynchronousTestCase):
    """Who fetches a value anew: one client at a time."""

    def test_recache(self) -> None:
        """Near the end of a value one client wins, the others hear that one did."""
        one = link()
        one.ask(b"ms a 1 T60\r\nx\r\n")
        self.assertEqual(one.ask(b"mg a R30\r\n"), b"HD\r\n")
        one.time += 40
        self.assertEqual(one.ask(b"mg a R30 t\r\nmg a R30\r\n"), b"HD t20 W\r\nHD Z\r\n")
        one.ask(b"ms a 1 T60\r\ny\r\n")
        self.assertEqual(one.ask(b"mg a R30 v\r\n"), b"VA 1\r\ny\r\n")

    def test_recache_in_seconds(self) -> None:
        """What is left is as much as t says, for R too."""
        one = link()
        one.ask(b"ms a 1 T60\r\nx\r\n")
        one.time += 0.4
        self.assertEqual(one.ask(b"mg a R60 t\r\n"), b"HD t60\r\n")
        one.time += 0.6
        self.assertEqual(one.ask(b"mg a R60 t\r\n"), b"HD t59 W\r\n")

    def test_recache_of_what_is_over(self) -> None:
        """Nobody wins what a flag before has ended, unless R asks for some time."""
        one = link()
        for flags, won in ((b"R0", b""), (b"R-1", b""), (b"R2592001", b""), (b"R30", b" W")):
            one.ask(b"ms a 1 T60\r\nx\r\n")
            self.assertEqual(one.ask(b"mg a T-1 %b\r\n" % flags), b"HD%b\r\n" % won)

    def test_stale(self) -> None:
        """A stale value is shown as such, until it is stored anew."""
        one = link()
        one.ask(b"ms a 1 T60 E100\r\nx\r\n")
        self.assertEqual(one.ask(b"md a I T20 E200\r\n"), b"HD\r\n")
        self.assertEqual(one.ask(b"mg a v t c\r\n"), b"VA 1 t20 c200 X W\r\nx\r\n")
        self.assertEqual(one.ask(b"mg a v\r\n"), b"VA 1 Z X\r\nx\r\n")
        # Who read before it became stale comes too late, and says that this is all right.
        self.assertEqual(one.ask(b"ms a 1 C100 I E300 T90\r\ny\r\n"), b"HD\r\n")
        self.assertEqual(one.ask(b"mg a v t c\r\n"), b"VA 1 t20 c300 Z X\r\ny\r\n")
        self.assertEqual(one.ask(b"ms a 1 C299 E400\r\nz\r\n"), b"EX\r\n")
        self.assertEqual(
            one.ask(b"ms a 1 C300 T90\r\nz\r\nmg a v t\r\n"), b"HD\r\nVA 1 t90\r\nz\r\n"
        )

    def test_stale_counts_once(self) -> None:
        """A hit is one hit, whatever else there is to tell about it."""
        one = link()
        one.ask(b"ms a 1\r\nx\r\nmd a I\r\n")
        before = one.store.stats()["get_hits"]
        for times, answer in enumerate((b"HD X W\r\n", b"HD Z X\r\n", b"HD Z X\r\n"), 1):
            self.assertEqual(one.ask(b"mg a\r\n"), answer)
            self.assertEqual(one.store.stats()["get_hits"], before + times)

    def test_vivify(self) -> None:
        """Where nothing is, the first client makes an empty value and wins."""
        one = link()
        self.assertEqual(one.ask(b"mg a N30 v t\r\n"), b"VA 0 t30 W\r\n\r\n")
        self.assertEqual(one.ask(b"mg a N30 v t\r\n"), b"VA 0 t30 Z\r\n\r\n")
        one.time += 31
        self.assertEqual(one.ask(b"mg a N30\r\n"), b"HD W\r\n")


class ReadTests(SynchronousTestCase):
    """What is known of reads."""

    def test_fetched(self) -> None:
        """Whether and when a value was read, by any command."""
        touches = (b"gat 0 a\r\n", b"gat 90 a\r\n", b"touch a 0\r\n", b"touch a 90\r\n")
        for reading in (b"mg a v\r\n", b"get a\r\n", b"gets a\r\n", *touches):
            one = link()
            one.ask(b"ms a 1\r\nx\r\n")
            one.time += 10
            self.assertEqual(one.ask(b"mg a h l u\r\n"), b"HD h0 l10\r\n")
            one.ask(reading)
            one.time += 5
            self.assertEqual(one.ask(b"mg a h l u\r\n"), b"HD h1 l5\r\n", reading)
            self.assertRegex(one.ask(b"me a\r\n"), rb" la=5 cas=\d+ fetch=yes ")

    def test_binary(self) -> None:
        """A read by the binary protocol counts as any other."""
        one = link()
        one.ask(b"ms a 1\r\nx\r\n")
        Link(one.server).call(Opcode.GET, key=b"a")
        self.assertEqual(one.ask(b"mg a h\r\n"), b"HD h1\r\n")

    def test_looking_leaves_no_trace(self) -> None:
        """`me` and ``u`` are no reads."""
        one = link()
        one.ask(b"ms a 1\r\nx\r\n")
        one.ask(b"me a\r\nmg a u v\r\n")
        self.assertEqual(one.ask(b"mg a h u\r\n"), b"HD h0\r\n")

    def test_stored_anew(self) -> None:
        """A value that is stored anew was not read yet."""
        one = link()
        one.ask(b"ms a 1\r\nx\r\nmg a\r\nset a 0 0 1\r\ny\r\n")
        self.assertEqual(one.ask(b"mg a h\r\n"), b"HD h0\r\n")


class LockTests(SynchronousTestCase):
    """Locks of the Couchbase protocol hold for meta commands too."""

    def test_locked(self) -> None:
        """A locked document can be read, and changed by nobody but the lock's owner."""
        one = link()
        one.ask(b"set a 0 0 1\r\n5\r\n")
        lock = Link(one.server).call(Opcode.GET_LOCKED, key=b"a").cas
        busy = b"SERVER_ERROR temporary failure\r\n"
        for asked in (
            b"ms a 1 q\r\nx\r\n",
            b"md a q\r\n",
            b"md a I\r\n",
            b"ma a q\r\n",
            b"mg a T5\r\n",
        ):
            self.assertEqual(one.ask(asked), busy, asked)
        self.assertEqual(one.ask(b"mg a v c\r\n"), b"VA 1 c18446744073709551615\r\n5\r\n")
        self.assertEqual(one.ask(b"ms a 1 C%d\r\nx\r\n" % lock), b"HD\r\n")


class BothProtocolsTests(SynchronousTestCase):
    """Meta commands, text and binary see the same documents."""

    def test_same(self) -> None:
        """What one stores, the others read."""
        one = link()
        other = Link(one.server)
        one.ask(b"ms a 2 F9 E77\r\nab\r\n")
        self.assertEqual(one.ask(b"gets a\r\n"), b"VALUE a 9 2 77\r\nab\r\nEND\r\n")
        found = other.call(Opcode.GET, key=b"a")
        self.assertEqual((found.value, found.cas, found.extras), (b"ab", 77, b"\0\0\0\x09"))
        other.call(Opcode.SET, key=b"a", value=b"c", extras=bytes(8))
        self.assertEqual(one.ask(b"mg a v f s\r\n"), b"VA 1 f0 s1\r\nc\r\n")

    def test_mutation_tokens_grow(self) -> None:
        """A CAS that the client gave does not disturb the sequence of mutations."""
        one = link()
        one.ask(b"ms a 1 E5\r\nx\r\nms a 1 E4\r\ny\r\nmg a T50\r\n")
        self.assertEqual(one.store.seqno, 3)
        self.assertEqual(one.store.get(b"a").seqno, 3)


class MarkTests(SynchronousTestCase):
    """What is noted of documents are plain numbers."""

    def test_plain_numbers(self) -> None:
        """A day of reads leaves nothing behind but the last number."""
        link = Link(mode=Mode.MEMCACHED)
        link.ask(b"set k 0 0 1\r\nx\r\nmg k v\r\n")
        store: Any = link.store
        for request in (
            b"get k\r\n",
            b"mg k h l v\r\n",
            b"md k I\r\n",
            b"mg k v\r\n",
            b"ma c N0\r\n",
        ):
            link.time += 1
            link.ask(request)
            for document in store.table.items.values():
                self.assertIs(type(document.marks), int, request)
        self.assertLessEqual(len(Mark._value2member_map_), 3)
