"""Random conversations with memcached and with our sessions, over real sockets: the same answers.

Seeds are fixed, so a run says the same each time.  Where the two differ on purpose, answers are
made alike before they are compared, by functions whose docstrings say what and why; each of these
differences is also a row of a table in ``docs/reference/kv-protocol.md``.  What only the grammar of
newer memcacheds has is in `tests.integration.test_text_against_memcached`.
"""

from __future__ import annotations

import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from kvproto.wire.binary import ResponseDecoder, encode_request
from kvproto.wire.constants import Opcode, Status
from kvproto.wire.frames import Response
from tests.examples import THOROUGH
from tests.integration.engines import RedisServer
from tests.integration.memcached import Memcached
from tests.integration.service import KvtlsProcess
from tests.integration.test_text_against_memcached import OURS
from tests.ports import free_port

KEYS = (b"a", b"b", b"n", b"long-key-" + b"k" * 230)
COUNTER = b"n"
VALUES = (b"", b"x", b"hello", b"0", b"7", b"99", b" 12", b"+1", b"5\0", b"12 ", b"1x", b"-1",
          b"18446744073709551615", b"18446744073709551616", b"x\r\n", b"x" * 300)  # fmt: skip
EXPIRIES = (0, 0, 0, 100, 2592000, 2592001, 2_000_000_000, -1)
SEEDS = range(300 if THOROUGH else 60)
LENGTH = 40


class Side:
    """One server, and a connection to it.

    Args:
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.heard = b""

    def close(self) -> None:
        self.socket.close()

    def say(self, data: bytes, pieces: int = 1) -> None:
        """Send bytes, in so many pieces."""
        step = max(1, -(-len(data) // pieces))
        for at in range(0, len(data), step):
            self.socket.sendall(data[at : at + step])
            if pieces > 1:
                time.sleep(0.0002)

    def until(self, end: Callable[[bytes], bool]) -> bytes:
        """Return what comes back, up to where it ends."""
        while not end(self.heard):
            more = self.socket.recv(65536)
            if not more:
                raise AssertionError(f"hung up after {self.heard[-200:]!r}")
            self.heard += more
        heard, self.heard = self.heard, b""
        return heard

    def ask(self, data: bytes, pieces: int = 1) -> bytes:
        """Send text commands; return the answers to them."""
        self.say(data + b"mn\r\n", pieces)
        return self.until(lambda heard: heard.endswith(b"MN\r\n")).removesuffix(b"MN\r\n")


def serve_store(test: SynchronousTestCase, *options: str) -> int:
    """Start a service in memcached's mode, until a test has ended; return its plain port."""
    port = free_port()
    plain = f"tcp:{port}:interface=127.0.0.1"
    test.enterContext(KvtlsProcess("--mode", "memcached", "--plain", plain, *options))
    return port


class RandomCase(SynchronousTestCase):
    """Two servers for all conversations of a test."""

    def setUp(self) -> None:
        memcached = Memcached()
        self.addCleanup(memcached.kill)
        self.ports = (memcached.port, self.serve())

    def serve(self) -> int:
        """Start ours; return its port."""
        ours = subprocess.Popen([sys.executable, "-c", OURS], stdout=subprocess.PIPE)
        self.addCleanup(ours.communicate)
        self.addCleanup(ours.kill)
        assert ours.stdout is not None
        return int(ours.stdout.readline())

    def sides(self) -> tuple[Side, Side]:
        """Return fresh connections to both servers, which are empty."""
        both = Side(self.ports[0]), Side(self.ports[1])
        for side in both:
            self.addCleanup(side.close)
            self.assertEqual(side.ask(b"flush_all\r\n"), b"OK\r\n")
        return both


# Text


def number_of_blanks(answer: bytes) -> bytes:
    """Make numbers alike: memcached writes a shorter number in place, with blanks behind it."""
    return re.sub(
        rb"VALUE (\S+ \d+) \d+( \d+)?\r\n(\d+) *\r\n",
        lambda found: (
            b"VALUE %b %d%b\r\n%b\r\n" % (found[1], len(found[3]), found[2] or b"", found[3])
        ),
        answer,
    )


def without_cas(answer: bytes) -> bytes:
    """Leave out CAS numbers: each server has its own."""
    return re.sub(rb"(VALUE \S+ \d+ \d+) \d+\r\n", rb"\1 #\r\n", answer)


def text_command(pick: random.Random) -> bytes:
    """Make a command of the classic protocol, mostly a sound one."""
    key, noreply = pick.choice(KEYS), pick.choice((b"", b"", b"", b" noreply"))
    value, expiry = pick.choice(VALUES), pick.choice(EXPIRIES)
    flags = pick.choice((0, 0, 5, 2**32 - 1))
    kind = pick.randrange(12)
    if kind < 4:
        verbs = (b"set", b"set", b"add", b"replace", b"append", b"prepend")
        # Where nothing is counted, numbers have no blanks that an append would keep.
        verb = pick.choice(verbs[: 4 if key == COUNTER else 6])
        head = b"%b %b %d %d %d%b\r\n" % (verb, key, flags, expiry, len(value), noreply)
        return head + value + b"\r\n"
    if kind < 6:
        names = b" ".join(pick.choices(KEYS, k=pick.randint(1, 4)))
        return pick.choice((b"get", b"gets")) + b" " + names + b"\r\n"
    if kind == 6:
        names = b" ".join(pick.choices(KEYS, k=pick.randint(1, 3)))
        return b"%b %d %b\r\n" % (pick.choice((b"gat", b"gats")), expiry, names)
    if kind < 9:
        delta = pick.choice((0, 1, 3, 1000, 2**64 - 1))
        return b"%b %b %d%b\r\n" % (pick.choice((b"incr", b"decr")), COUNTER, delta, noreply)
    if kind == 9:
        return b"delete %b%b\r\n" % (key, noreply)
    if kind == 10:
        return b"touch %b %d%b\r\n" % (key, pick.choice((*EXPIRIES, 2**32 - 1)), noreply)
    cas = pick.choice((0, 1, 2**64 - 1))
    head = b"cas %b %d %d %d %d%b\r\n" % (key, flags, expiry, len(value), cas, noreply)
    return pick.choice((head + value + b"\r\n", b"verbosity 0\r\n", b"flush_all%b\r\n" % noreply))


class TextTests(RandomCase):
    """The classic text protocol."""

    def converse(self, pieces: int) -> None:
        for seed in SEEDS:
            pick = random.Random(seed)
            commands = [text_command(pick) for _ in range(LENGTH)]
            answers = [side.ask(b"".join(commands), pieces) for side in self.sides()]
            theirs, ours = (without_cas(number_of_blanks(answer)) for answer in answers)
            self.assertEqual(ours, theirs, (seed, commands))

    def test_whole(self) -> None:
        """A conversation in one write."""
        self.converse(1)

    def test_cut(self) -> None:
        """A conversation cut anywhere."""
        self.converse(23)


# Meta


def meta_command(pick: random.Random) -> bytes:
    """Make a meta command; ``{cas}`` stands for the key's present CAS, which each server has."""
    key = pick.choice(KEYS[:3])
    cas = pick.choice((b"", b"", b"", b" C{cas}", b" C1"))
    common = b"".join(
        b" " + flag for flag in pick.sample((b"q", b"k", b"O123"), pick.randint(0, 2))
    )
    expiry = pick.choice((0, 30, 100, 5000))
    kind = pick.randrange(9)
    if kind < 4:
        flags = pick.sample((b"v", b"s", b"t", b"f", b"h", b"k", b"q", b"u"), pick.randint(0, 5))
        flags += pick.sample((b"N30", b"R60", b"T%d" % expiry), pick.choice((0, 0, 1, 2)))
        pick.shuffle(flags)
        return b"mg %b%b\r\n" % (key, b"".join(b" " + flag for flag in flags))
    if kind < 6:
        value = pick.choice(VALUES)
        modes = (b"", b"", b" MS", b" ME", b" MR", b" MA", b" MP")
        mode = pick.choice(modes[: 5 if key == COUNTER else 7])
        more = pick.choice((b"", b" T%d" % expiry, b" F7"))
        head = b"ms %b %d%b%b%b%b\r\n" % (key, len(value), mode, more, cas, common)
        return head + value + b"\r\n"
    if kind == 6:
        more = pick.choice((b"", b"", b" I", b" I T%d" % expiry))
        return b"md %b%b%b%b\r\n" % (key, more, cas, common)
    if kind == 7:
        mode = pick.choice((b"", b" MD", b" MI D5", b" D1000", b" N0 J13", b" N90 J99 MD"))
        # No T: memcached gives it to the old item where a number became longer.
        more = pick.choice((b"", b" v", b" t"))
        if b" N" in mode:
            # Since 1.6.20 q hides that a counter was made.
            common = common.replace(b" q", b"")
        return b"ma %b%b%b%b%b\r\n" % (COUNTER, mode, more, cas, common)
    return pick.choice((b"me %b\r\n", b"get %b\r\n", b"delete %b\r\n", b"mg %b v v\r\n")) % key


def like(answer: bytes) -> bytes:
    """Make answers alike.

    A CAS is each server's own.  When an item was used last is exact here, and moved at most once
    a minute there.  Numbers have blanks there, see `number_of_blanks`, and so other sizes.  me's
    time to live was negative before 1.6.20.  Seconds are counted in ticks there: what is left of a
    time to live may be one less.
    """
    answer = re.sub(rb"exp=-(\d\d+)", rb"exp=\1", answer)
    answer = re.sub(
        rb"( t|exp=)(\d+)", lambda left: b"%b%d" % (left[1], -(-int(left[2]) // 10) * 10), answer
    )
    answer = re.sub(rb"cas=\d+", b"cas=#", answer)
    answer = re.sub(rb" la=\d+", b" la=#", answer)
    answer = re.sub(rb"size=\d+", b"size=#", answer)
    answer = re.sub(rb"VA (\d+)( [^\r]*)?\r\n(\d+) *\r\n", rb"VA #\2\r\n\3\r\n", answer)
    answer = re.sub(rb"\bs\d+", b"s#", answer)
    return number_of_blanks(answer)


def without_marks(answer: bytes) -> bytes:
    """Leave out whether an item was read or is stale.

    While one of its threads holds a counter, memcached makes it anew and forgets that.
    """
    return re.sub(rb" (h[01#]|W|X|Z|fetch=\w+)(?=[ \r])", b"", answer)


class MetaTests(RandomCase):
    """Meta commands."""

    def alike(self, answer: bytes) -> bytes:
        """Make answers alike, see `like`."""
        return like(answer)

    def converse(self, pieces: int) -> None:
        for seed in SEEDS:
            pick = random.Random(seed)
            commands = [meta_command(pick) for _ in range(LENGTH)]
            # While an answer still holds an item, memcached makes a new one of a counter, which
            # nobody has read.
            said = b"".join(
                command
                for command in commands
                if b"{cas}" not in command and not command.startswith(b"ma ")
            )
            theirs, ours = (self.alike(side.ask(said, pieces)) for side in self.sides())
            self.assertEqual(ours, theirs, (seed, commands))

    def test_whole(self) -> None:
        """A conversation in one write."""
        self.converse(1)

    def test_cut(self) -> None:
        """A conversation cut anywhere."""
        self.converse(23)

    def test_same(self) -> None:
        """One after the other, since both servers must be asked for the CAS between."""
        for seed in SEEDS:
            pick = random.Random(seed)
            both = self.sides()
            told: list[bytes] = []
            counted: set[bytes] = set()
            for _ in range(LENGTH):
                command = meta_command(pick)
                told.append(command)
                key = command.split()[1]
                if command.startswith(b"ma "):
                    counted.add(key)
                answers = []
                for side in both:
                    said = command
                    if b"{cas}" in command:
                        found = re.search(rb"cas=(\d+)", side.ask(b"me %b\r\n" % key))
                        said = command.replace(b"{cas}", found[1] if found else b"9")
                    answer = self.alike(side.ask(said))
                    answers.append(without_marks(answer) if key in counted else answer)
                self.assertEqual(answers[1], answers[0], (seed, told[-12:]))
            for side in both:
                side.close()


# Through the service


class ThroughEngine(RandomCase):
    """With values in an engine."""

    def serve(self) -> int:
        """Start the service in front of one."""
        return serve_store(self, "--store", self.enterContext(RedisServer()).url)


class ThroughFleet(RandomCase):
    """With values in a fleet of two."""

    def serve(self) -> int:
        """Start the service in front of one."""
        servers = [Memcached(), Memcached()]
        for server in servers:
            self.addCleanup(server.kill)
        url = "memcached://" + ",".join(server.name for server in servers)
        return serve_store(self, "--store", url)


class EngineTextTests(ThroughEngine, TextTests):
    """The classic text protocol in front of an engine."""


class EngineMetaTests(ThroughEngine, MetaTests):
    """Meta commands in front of an engine."""

    def alike(self, answer: bytes) -> bytes:
        """Make answers alike: an engine is not told of reads by other commands."""
        return re.sub(rb" h[01]|fetch=\w+", b" h#", super().alike(answer))


class FleetTextTests(ThroughFleet, TextTests):
    """The classic text protocol in front of a fleet."""


class FleetMetaTests(ThroughFleet, MetaTests):
    """Meta commands in front of a fleet."""


# Binary

READS = (Opcode.GET, Opcode.GETQ, Opcode.GETK, Opcode.GETKQ)
STORES = (Opcode.SET, Opcode.SETQ, Opcode.ADD, Opcode.ADDQ, Opcode.REPLACE, Opcode.REPLACEQ)
EXTENDING = (Opcode.APPEND, Opcode.APPENDQ, Opcode.PREPEND, Opcode.PREPENDQ)
COUNTERS = (Opcode.INCREMENT, Opcode.INCREMENTQ, Opcode.DECREMENT, Opcode.DECREMENTQ)
TOUCHES = (Opcode.TOUCH, Opcode.GAT, Opcode.GATQ, Opcode.GATK, Opcode.GATKQ)


def binary_request(pick: random.Random, opaque: int) -> bytes:
    """Make a sound request."""
    key, value = pick.choice(KEYS), pick.choice(VALUES)
    expiry = pick.choice((0, 0, 100, 2592001, 2_000_000_000)).to_bytes(4)
    cas = pick.choice((0, 0, 0, 77))
    kind = pick.randrange(8)
    if kind < 2:
        return encode_request(pick.choice(READS), key=key, opaque=opaque, cas=cas)
    if kind < 4:
        flags = pick.choice((0, 9)).to_bytes(4)
        opcode = pick.choice(STORES)
        return encode_request(
            opcode, key=key, value=value, extras=flags + expiry, opaque=opaque, cas=cas
        )
    if kind == 4:
        return encode_request(pick.choice(EXTENDING), key=key, value=value, opaque=opaque, cas=cas)
    if kind == 5:
        until = pick.choice((expiry, b"\xff" * 4))
        extras = pick.choice((0, 1, 1000)).to_bytes(8) + pick.choice((0, 5)).to_bytes(8) + until
        key = COUNTER
        # Without a CAS: where nothing is, memcached passes it over and makes the counter.
        return encode_request(pick.choice(COUNTERS), key=key, extras=extras, opaque=opaque)
    if kind == 6:
        return encode_request(pick.choice(TOUCHES), key=key, extras=expiry, opaque=opaque)
    opcode = pick.choice((Opcode.DELETE, Opcode.DELETEQ, Opcode.NOOP))
    if opcode == Opcode.NOOP:
        return encode_request(opcode, opaque=opaque)
    return encode_request(opcode, key=key, opaque=opaque, cas=cas)


def told(response: Response) -> tuple[object, ...]:
    """Return what is compared of a response.

    A CAS is each server's own: compared is whether there is one.  A number that became shorter has
    blanks there.  TOUCH has extras there, the item's flags, which its documentation does not know.
    """
    value = response.value
    if value.rstrip(b" ").isdigit():
        value = value.rstrip(b" ")
    extras = b"" if response.opcode == Opcode.TOUCH else response.extras
    found = response.status == Status.SUCCESS
    return (
        Opcode(response.opcode).name, response.status, response.opaque, extras, response.key, value,
        found and bool(response.cas),
    )  # fmt: skip


class BinaryTests(RandomCase):
    """The binary protocol."""

    def converse(self, side: Side, requests: list[bytes], pieces: int) -> list[Response]:
        end = encode_request(Opcode.NOOP, opaque=0xFFFF_FFFF)
        side.say(b"".join(requests) + end, pieces)
        decoder, responses = ResponseDecoder(), list[Response]()
        while not responses or responses[-1].opaque != 0xFFFF_FFFF:
            frames = decoder.feed(side.socket.recv(65536))
            responses += [frame for frame in frames if isinstance(frame, Response)]
        return responses

    def test_same(self) -> None:
        """The same responses to the same requests, whole and cut."""
        for seed in SEEDS:
            pick = random.Random(seed)
            requests = [binary_request(pick, number) for number in range(LENGTH)]
            for side in self.sides():
                side.close()
            answers = []
            for port in self.ports:
                side = Side(port)
                self.addCleanup(side.close)
                answers.append(self.converse(side, requests, 1 if seed % 2 else 17))
            theirs, ours = ([told(response) for response in one] for one in answers)
            for number, (mine, their) in enumerate(zip(ours, theirs, strict=True)):
                self.assertEqual(mine, their, (seed, number))
