"""The same lines to memcached and to our session, over real sockets: the same answers.

Where the answers differ on purpose, `DIFFERENT` says both, and so that difference is tested too.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.memcached import Memcached
from tests.integration.service import PATIENCE

REFERENCE = "1.6.18"
FENCE = b"mn\r\n"
FENCED = b"MN\r\n"

OURS = """
import sys, time
from twisted.internet import reactor
from kvproto.config import Mode
from kvproto.server import KVServer, KVServerFactory, ServerSettings
from kvproto.store import MemoryStore
store = MemoryStore(time.time, max_item=(1 << 20) - 512, count_cas=True)
server = KVServer(store, ServerSettings(mode=Mode.MEMCACHED, version="1.6.18"))
port = reactor.listenTCP(0, KVServerFactory(server), interface="127.0.0.1")
print(port.getHost().port, flush=True)
reactor.callLater(120, reactor.stop)
reactor.run()
"""

LONG = b"k" * 251
BAD = b"CLIENT_ERROR bad command line format\r\n"
# The listings come first, while nothing has been stored: memcached goes on listing an item that
# was flushed a second or more after it was stored, until somebody looks for it.
TABLE = rb"""
stats cachedump|stats cachedump 1|stats cachedump 1 0|stats cachedump 300 0|stats cachedump x y
get|get a b|gets|gets |get |get  a|get a  b |get a |GET a|Get a|foo|
 |set|set a|set a 0|set a 0 0|set a 0 0 x|set a 0 0 -1|set a 0 0 2;ab|set a 0 0 2;abc
set a 0 0 2 noreply;ab|set a 0 0 2 foo;ab;get a|set a 0 0 2 noreply foo;ab|set a x 0 2;ab
set a 0 x 2;ab|set a -1 0 2;ab|set a 4294967295 0 2;ab;get a|set a 0 -1 2;ab;get a
set a 0 0 2 ;ab;get a|set a 65536 0 1;x;get a|set a +1 +0 +1;x;get a|set a 0x10 0 1;x;get a
set a 0 -5 1;x;get a;touch a -1|set a 0 2147483647 1;x;get a
set a 0 0 2147483647;abc|set a 0 0 99999999999999999999;abc|set a 0 0 2;abcd;get a
set a 0 0 5;abc;get q;get q|set  a  0  0  1;x|set a 0 0 1 a b c d e f g;x|set a b 0 1;x;get a
set a b 0 1 noreply;x;get a|set a 0 0 -1 noreply
set q 0 0 1;x;set q 0 0 2;abcd;get q
add a 0 0 1;x|add a 0 0 1;y;add a 0 0 1;z;get a|add a 0 0 1 noreply;x;get a|replace a 0 0 1;x
set a 3 0 1;x;replace a 4 0 1;y;get a|append a 0 0 1;x|prepend a 0 0 1;x
set a 5 0 1;x;append a 6 0 2;yz;prepend a 7 0 1;w;get a|set a 5 0 1;x;append a 6 0 1 noreply;y;get a
cas a 0 0 1 999;x|set a 0 0 1;x;cas a 0 0 1 999999;y;get a|cas a 0 0 1;x|cas a 0 0 1 x;x
cas a 0 0 1 1 noreply;x|cas a 0 0 1 18446744073709551616;x|cas a 0 0 1 -1;x|cas a 0 0 1 1 2 3;x
delete|delete a|set a 0 0 1;x;delete a;get a|delete a b|delete a 0|delete a 0 noreply
delete a noreply|delete a 1|delete a b c d e|set a 0 0 1;x;delete a noreply;get a|delete noreply
incr|incr a|incr a x|incr a 1|set n 0 0 2;10;incr n 5;get n|set n 0 0 2;10;decr n 10
set n 0 0 2;10;incr n 5 noreply;get n|set n 0 0 2;10;incr n -1|set n 0 0 2;10;incr n 1 foo
set n 0 0 2;10;incr n 18446744073709551615|set n 0 0 2;10;incr n 18446744073709551616
set n 0 0 1;5;incr n 1 2 3|set n 0 0 2;10;decr n 1 2 3|decr|decr a x|incr a 99999999999999999999
set n 0 0 21;184467440737095516151;incr n 1|set n 0 0 20;18446744073709551615;incr n 1
set n 0 0 1;x;incr n 1|set n 0 0 1;x;decr n 1|set n 0 0 2;-1;incr n 1|set n 0 0 0;;incr n 1
set n 7 0 1;9;incr n 1;get n|set n 7 0 1;9;incr n 1;incr n 1 noreply;get n
touch|touch a|touch a 0|set a 0 0 1;x;touch a 0|set a 0 0 1;x;touch a 0 noreply|touch a x
set a 0 0 1;x;touch a -1;get a|touch a 0 1 2|set a 0 0 1;x;touch a 100 foo
gat|gat 0|gat 0 a|gats 0|gat x a|gat a|set a 0 0 1;x;gat 0 a|set a 0 0 1;x;gat 0 a b a
set a 0 0 1;x;gat -1 a;get a|gats x a
version|version foo|version noreply|VERSION|verbosity|verbosity 0|verbosity 1 2|verbosity foo
verbosity foo bar my|verbosity 0 noreply|verbosity noreply|verbosity 1 2 3 4|verbosity -1
flush_all|flush_all noreply|flush_all 0|flush_all 0 noreply|flush_all x|flush_all -1
flush_all 0 0|flush_all 0 0 0|set a 0 0 1;x;flush_all;get a|set a 0 0 1;x;flush_all 5;get a
set a 0 0 1;x;flush_all noreply;get a
stats foo|stats noreply|stats reset|stats detail|stats detail on|stats detail dump
stats detail off|stats detail foo
misbehave|lru|slabs|extstore|debugtime|pid|cache_memlimit|a b c d e f g h i j k l m n o p q
quit|quit foo|get a;quit;get a
"""

PECULIAR: list[bytes] = [
    b"get " + b"k" * 250 + b"\r\n",
    b"get " + LONG + b"\r\n",
    b"get a " + LONG + b" a\r\n",
    b"set " + LONG + b" 0 0 1\r\nx\r\nget a\r\n",
    b"set " + LONG + b" 0 0 1 noreply\r\nx\r\nversion\r\n",
    b"append " + LONG + b" 0 0 1\r\nx\r\n",
    b"delete " + LONG + b"\r\n",
    b"incr " + LONG + b" 1\r\n",
    b"touch " + LONG + b" 1\r\n",
    b"gat 0 " + LONG + b"\r\n",
    b"get a\nget b\n",
    b"get a\rget b\r\n",
    b"get\ta\r\n",
    b"\0\0\0\r\n",
    b"  get a\r\n",
    b"set a 0 0 2\nab\r\nget a\n",
    b"set a 0 0 2\r\nab\nget a\r\n",
    b"set a\x01\x7f 0 0 1\r\nx\r\nget a\x01\x7f\r\n",
    b"set a 0 0 4\r\n\r\n\r\n\r\nget a\r\n",
    b"set a 0 0 3\r\n\0\r\n\r\nget a\r\n",
    b"set a 0 0 1048577\r\n" + b"x" * 1048577 + b"\r\nget a\r\n",
    b"set a 0 0 1\r\no\r\nset a 0 0 1048577\r\n" + b"x" * 1048577 + b"\r\nget a\r\n",
    b"set a 0 0 1\r\no\r\nset a 0 0 1048577 noreply\r\n" + b"x" * 1048577 + b"\r\nget a\r\n",
    b"set a 0 0 1\r\no\r\nset a 0 0 1048576\r\n" + b"x" * 1048576 + b"\r\nget a\r\n",
    b"set a 0 0 1\r\no\r\nadd a 0 0 1048577\r\n" + b"x" * 1048577 + b"\r\nget a\r\n",
    b"get " + b"a " * 1000 + b"\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"set k 0 0 3\r\nabc\r\n" * 100 + b"get k\r\n" * 100,
]


def script() -> list[bytes]:
    """Return what is sent, each on a connection of its own, to empty servers."""
    rows = [cell for row in TABLE.strip(b"\n").split(b"\n") for cell in row.split(b"|")]
    return [row.replace(b";", b"\r\n") + b"\r\n" for row in rows] + PECULIAR


DIFFERENT: dict[bytes, tuple[bytes, bytes]] = {
    # A wrong key behind one that exists makes it forget the answer before that.
    b"set a 0 0 1\r\nx\r\nget a " + LONG + b" a\r\n": (
        BAD,
        b"STORED\r\n" + BAD,
    ),
    # memcached writes a shorter number over the longer one in place and leaves blanks behind it.
    b"set n 0 0 2\r\n10\r\ndecr n 9\r\nget n\r\n": (
        b"STORED\r\n1\r\nVALUE n 0 2\r\n1 \r\nEND\r\n",
        b"STORED\r\n1\r\nVALUE n 0 1\r\n1\r\nEND\r\n",
    ),
    # It cuts flags off at 32 bits without a word.
    b"set a 4294967296 0 2\r\nab\r\n": (
        b"STORED\r\n",
        BAD,
    ),
    # It ends a key at its first NUL.
    b"set a 0 0 1\r\nx\r\nget a\0b\r\n": (
        b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n",
        b"STORED\r\nEND\r\n",
    ),
}
"""What is said: memcached's answer, and ours."""

NEWER: dict[bytes, bytes] = {
    b"get\r\n": BAD,
    b"gets\r\n": BAD,
    b"gets \r\n": BAD,
    b"get \r\n": BAD,
    b"\r\n": BAD,
    b" \r\n": BAD,
    b"set\r\n": BAD,
    b"set a\r\n": BAD,
    b"set a 0\r\n": BAD,
    b"set a 0 0\r\n": BAD,
    b"set a 0 0 2\r\nabc\r\n": b"CLIENT_ERROR bad data chunk\r\n" + BAD,
    b"set a 0 0 2 noreply foo\r\nab\r\n": b"STORED\r\n",
    b"set a x 0 2\r\nab\r\n": BAD,
    b"set a 0 x 2\r\nab\r\n": BAD,
    b"set a -1 0 2\r\nab\r\n": BAD,
    b"set a 0x10 0 1\r\nx\r\nget a\r\n": BAD + b"END\r\n",
    b"set a +1 +0 +1\r\nx\r\nget a\r\n": BAD + BAD + b"END\r\n",
    b"set a 0 0 2\r\nabcd\r\nget a\r\n": b"CLIENT_ERROR bad data chunk\r\n" + BAD + b"END\r\n",
    b"set a 0 0 1 a b c d e f g\r\nx\r\n": b"STORED\r\n",
    b"set a b 0 1\r\nx\r\nget a\r\n": BAD + b"END\r\n",
    b"set a b 0 1 noreply\r\nx\r\nget a\r\n": b"END\r\n",
    b"set a 0 0 -1 noreply\r\n": BAD,
    b"set q 0 0 1\r\nx\r\nset q 0 0 2\r\nabcd\r\nget q\r\n": (
        b"STORED\r\nCLIENT_ERROR bad data chunk\r\n" + BAD + b"VALUE q 0 1\r\nx\r\nEND\r\n"
    ),
    b"cas a 0 0 1\r\nx\r\n": BAD,
    b"cas a 0 0 1 x\r\nx\r\n": BAD,
    b"cas a 0 0 1 18446744073709551616\r\nx\r\n": BAD,
    b"cas a 0 0 1 -1\r\nx\r\n": BAD,
    b"cas a 0 0 1 1 2 3\r\nx\r\n": b"NOT_FOUND\r\n",
    b"delete\r\n": BAD,
    b"delete noreply\r\n": b"",
    b"incr\r\n": BAD,
    b"incr a\r\n": BAD,
    b"set n 0 0 1\r\n5\r\nincr n 1 2 3\r\n": b"STORED\r\n6\r\n",
    b"set n 0 0 2\r\n10\r\ndecr n 1 2 3\r\n": b"STORED\r\n9\r\n",
    b"decr\r\n": BAD,
    b"touch\r\n": BAD,
    b"touch a\r\n": BAD,
    b"touch a 0 1 2\r\n": b"NOT_FOUND\r\n",
    b"gat\r\n": BAD,
    b"gat 0\r\n": BAD,
    b"gats 0\r\n": BAD,
    b"gat a\r\n": BAD,
    b"verbosity\r\n": BAD,
    b"verbosity foo bar my\r\n": BAD,
    b"verbosity 1 2 3 4\r\n": b"OK\r\n",
    b"flush_all 0 0 0\r\n": b"OK\r\n",
    b"  get a\r\n": b"ERROR\r\n",
    b"set " + LONG + b" 0 0 1\r\nx\r\nget a\r\n": (BAD + b"END\r\n"),
    b"set " + LONG + b" 0 0 1 noreply\r\nx\r\nversion\r\n": b"VERSION 1.6.18\r\n",
    b"append " + LONG + b" 0 0 1\r\nx\r\n": BAD,
}
"""Lines that memcached answers in another way since 1.6.40, which is the way of this server; the
answers were recorded from 1.6.45."""


def ask(port: int, said: bytes) -> tuple[bytes, bool]:
    """Send something to an emptied server; return the answer, and whether it then hung up."""
    with socket.create_connection(("127.0.0.1", port), 10) as flusher:
        flusher.sendall(b"flush_all\r\n")
        assert flusher.recv(100) == b"OK\r\n"
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.settimeout(PATIENCE)
        client.sendall(said)
        with contextlib.suppress(OSError):
            client.sendall(FENCE)
        heard = b""
        while not heard.endswith(FENCED):
            try:
                more = client.recv(65536)
            except ConnectionError:
                more = b""
            if not more:
                return heard, True
            heard += more
        return heard.removesuffix(FENCED), False


class DifferentialTests(SynchronousTestCase):
    """memcached's answers and ours."""

    def setUp(self) -> None:
        memcached = Memcached()
        self.addCleanup(memcached.kill)
        if REFERENCE not in memcached.version():
            raise SkipTest(f"the reference is memcached {REFERENCE}")
        self.theirs, self.ours = memcached.port, self.start_ours()

    def start_ours(self) -> int:
        process = subprocess.Popen([sys.executable, "-c", OURS], stdout=subprocess.PIPE)

        def stop() -> None:
            process.kill()
            process.communicate()

        self.addCleanup(stop)
        assert process.stdout is not None
        return int(process.stdout.readline())

    def test_same(self) -> None:
        """Every line of the script gets the same answer, CAS numbers apart."""
        wrong = []
        for said in script():
            if said in DIFFERENT:
                continue
            if said in NEWER:
                heard, _ = ask(self.ours, said)
                if heard != NEWER[said]:
                    wrong.append(f"{said[:100]!r}: {heard!r} instead of {NEWER[said]!r}")
                continue
            ours, theirs = ask(self.ours, said), ask(self.theirs, said)
            if ours != theirs:
                wrong.append(f"{said[:100]!r}: {ours} instead of {theirs}")
        self.assertEqual("\n".join(wrong), "")

    def test_different(self) -> None:
        """Where we differ, we do so in exactly this way."""
        for said, (theirs, ours) in DIFFERENT.items():
            with self.subTest(said=said):
                self.assertEqual(ask(self.theirs, said), (theirs, False))
                self.assertEqual(ask(self.ours, said), (ours, False))

    def test_gets(self) -> None:
        """The number that gets gives is there on both."""
        for port in (self.theirs, self.ours):
            heard, _ = ask(port, b"set a 0 0 1\r\nx\r\ngets a\r\n")
            match = re.fullmatch(rb"STORED\r\nVALUE a 0 1 (\d+)\r\nx\r\nEND\r\n", heard)
            assert match is not None
            self.assertGreater(int(match[1]), 0)
