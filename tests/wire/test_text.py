"""The text protocol, against the answers of memcached 1.6.45."""

from __future__ import annotations

import sys

from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import RemoteProtocolError
from kvproto.wire import text
from kvproto.wire.meta import MetaCommand
from kvproto.wire.text import TextCommand, TextDecoder, TextRefusal
from kvproto.wire.text_grammar import EXPIRED
from tests.wire.answering import Answering
from tests.wire.cutting import cuttings, decode
from tests.wire.golden_text import CLOSED, GOLDEN

END = TextCommand("end")
BAD_FORMAT = TextRefusal(b"CLIENT_ERROR bad command line format\r\n", "get")


class GoldenTests(SynchronousTestCase):
    """What memcached answered to odd lines is what we answer."""

    def test_answers(self):
        """Each recorded line gets the recorded answer, whole, byte by byte and cut anywhere."""
        for sent, answered in GOLDEN:
            for parts in cuttings(sent):
                self.assertEqual(Answering().answer(parts), answered, (sent, parts[:2]))

    def test_everything_at_once(self):
        """All lines that leave the stream at a line's beginning can follow each other."""
        sound = [sent for sent, answered in GOLDEN if b"version" in sent and CLOSED not in answered]
        once = Answering().answer([b"".join(sound)])
        self.assertEqual(Answering().answer([byte.to_bytes() for byte in b"".join(sound)]), once)


class EdgeTests(SynchronousTestCase):
    """The longest key, the least and the greatest number, and who wants no answer."""

    def read(self, line: bytes, **options: int) -> object:
        """Return the one thing that a line is."""
        (item,) = TextDecoder(**options).feed(line + b"\r\n")
        return item

    def test_no_answer_wanted(self):
        """``noreply`` is the last word, behind the zero that old clients send, too."""
        self.assertEqual(self.read(b"delete k"), TextCommand("delete", b"k"))
        self.assertEqual(self.read(b"delete k 0"), TextCommand("delete", b"k"))
        for line in (b"delete k noreply", b"delete k 0 noreply"):
            self.assertEqual(self.read(line), TextCommand("delete", b"k", noreply=True))
        self.assertEqual(self.read(b"flush_all noreply"), TextCommand("flush_all", noreply=True))

    def test_longest_key(self):
        """Each command takes a key of the longest length, and refuses one byte more."""
        for verb, rest in (
            (b"get", b""),
            (b"delete", b""),
            (b"incr", b" 1"),
            (b"touch", b" 1"),
        ):
            found = TextDecoder(max_key=3).feed(verb + b" kkk" + rest + b"\r\n")[0]
            assert isinstance(found, TextCommand), found
            self.assertEqual(found.key, b"kkk")
            self.assertEqual(
                TextDecoder(max_key=3).feed(verb + b" kkkk" + rest + b"\r\n"),
                [TextRefusal(b"CLIENT_ERROR bad command line format\r\n", verb.decode())],
            )
        for line in (b"set %b 0 0 1\r\nx", b"ms %b 1\r\nx"):
            stored = self.read(line % b"kkk", max_key=3)
            assert isinstance(stored, TextCommand | MetaCommand), stored
            self.assertEqual((stored.key, stored.value), (b"kkk", b"x"))
            self.assertIsInstance(self.read(line % b"kkkk", max_key=3), TextRefusal)

    def test_numbers(self):
        """A delta may be zero; a flush's delay has 31 bits, and what is negative is at once."""
        found = self.read(b"incr k 0")
        assert isinstance(found, TextCommand), found
        self.assertEqual(found.delta, 0)
        for delay, expiry in ((b"0", 0), (b"-2147483648", 0), (b"2147483647", 2147483647)):
            self.assertEqual(
                self.read(b"flush_all " + delay), TextCommand("flush_all", expiry=expiry)
            )
        self.assertEqual(self.read(b"flush_all"), TextCommand("flush_all", expiry=0))
        for delay in (b"2147483648", b"-2147483649", b"soon"):
            self.assertIsInstance(self.read(b"flush_all " + delay), TextRefusal)

    def test_numbers_written_long(self):
        """Sixty-four digits are read, whatever they begin with; more are no number."""
        found = self.read(b"incr k " + b"9".rjust(64, b"0"))
        assert isinstance(found, TextCommand), found
        self.assertEqual(found.delta, 9)
        self.assertIsInstance(self.read(b"incr k " + b"9".rjust(65, b"0")), TextRefusal)

    def test_administration(self):
        """Commands about the server keep their arguments, the last one may be ``noreply``."""
        self.assertEqual(
            self.read(b"cache_memlimit 64"), TextCommand("cache_memlimit", args=(b"64",))
        )
        self.assertEqual(
            self.read(b"cache_memlimit 64 noreply"),
            TextCommand("cache_memlimit", args=(b"64", b"noreply"), noreply=True),
        )

    def test_discard(self):
        """What was held of half a command is forgotten."""
        for begun in (b"get k", b"set k 0 0 9\r\nabc"):
            decoder = TextDecoder()
            self.assertEqual(decoder.feed(begun), [])
            self.assertTrue(decoder.partial)
            decoder.discard()
            self.assertFalse(decoder.partial)
            self.assertEqual(decoder.buffered, 0)

    def test_refusals_name_their_command(self):
        """A refusal says whose it is: statistics count by it."""
        for line, verb in (
            (b"get", "get"),
            (b"gat x k", "gat"),
            (b"get " + b"k" * 251, "get"),
            (b"set k", "set"),
            (b"delete", "delete"),
            (b"delete " + b"k" * 251, "delete"),
            (b"incr k", "incr"),
            (b"incr " + b"k" * 251 + b" 1", "incr"),
            (b"touch k", "touch"),
            (b"touch " + b"k" * 251 + b" 1", "touch"),
            (b"verbosity", "verbosity"),
            (b"set k 0 0 1\r\nxyz", "set"),
            (b"nonsense", ""),
        ):
            found = TextDecoder().feed(line + b"\r\n")[0]
            assert isinstance(found, TextRefusal), (line, found)
            self.assertEqual(found.verb, verb, line)


class DeviationTests(SynchronousTestCase):
    """Where memcached would change what it was given without a word, or lose a value, we refuse."""

    def test_flags_too_large(self):
        """Flags above 32 bits are refused, with their value; memcached cuts them off."""
        self.assertEqual(
            TextDecoder().feed(b"set k 4294967296 0 1\r\nx\r\nmn\r\n"),
            [
                TextRefusal(b"CLIENT_ERROR bad command line format\r\n", "set"),
                TextCommand("mn"),
            ],
        )

    def test_expiry_of_32_bits(self):
        """An expiry of 2**31 to 2**32 - 1 is a negative one that lost its sign: it is over.

        memcached up to 1.6.39 has it so everywhere, 1.6.45 in storage commands; libmemcached sends
        4294967295 for -1 with all of them.
        """
        for expiry in (b"2147483648", b"4294967295", b"-1", b"-2147483648"):
            for line in (
                b"set k 0 %b 1\r\nx\r\n",
                b"cas k 0 %b 1 7\r\nx\r\n",
                b"add k 0 %b 1\r\nx\r\n",
                b"touch k %b\r\n",
                b"gat %b k\r\n",
                b"gats %b k\r\n",
            ):
                command = TextDecoder().feed(line % expiry)[0]
                assert isinstance(command, TextCommand)
                self.assertEqual(command.expiry, EXPIRED, line % expiry)
        self.assertEqual(
            TextDecoder().feed(b"touch k 2147483647\r\n"),
            [TextCommand("touch", b"k", expiry=2147483647)],
        )

    def test_expiry_above_32_bits(self):
        """It is refused; memcached wraps it round."""
        for line, words in (
            (b"set k 0 4294967296 1\r\nx\r\n", b"bad command line format"),
            (b"touch k 4294967296\r\n", b"invalid exptime argument"),
            (b"gat 4294967296 k\r\n", b"invalid exptime argument"),
        ):
            [refusal] = TextDecoder().feed(line)
            assert isinstance(refusal, TextRefusal)
            self.assertEqual(refusal.line, b"CLIENT_ERROR " + words + b"\r\n")

    def test_delete_with_more(self):
        """Since 1.6.40 memcached deletes whatever stands behind the key; before, as here, not."""
        usage = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
        for line, words in (
            (b"delete k 1\r\n", usage),
            (b"delete k noreply 0\r\n", usage),
            (b"delete k 0 noreply x\r\n", b"ERROR\r\n"),
        ):
            self.assertEqual(TextDecoder().feed(line), [TextRefusal(words, "delete")])

    def test_nul_is_a_byte_like_others(self):
        """A NUL does not end the line."""
        self.assertEqual(TextDecoder().feed(b"get k\0x\r\n"), [TextCommand("get", b"k\0x"), END])


class TextDecoderTests(SynchronousTestCase):
    """What becomes of each command."""

    def test_commands(self):
        """Each verb's arguments end up in their fields."""
        cases = {
            b"gets a b\r\n": [TextCommand("gets", b"a"), TextCommand("gets", b"b"), END],
            b"gat 9 a\r\n": [TextCommand("gat", b"a", expiry=9), END],
            b"gats -1 a\r\n": [TextCommand("gats", b"a", expiry=2592001), END],
            b"cas k 1 2 3 4 noreply\r\nabc\r\n": [
                TextCommand("cas", b"k", b"abc", 1, 2, 4, noreply=True)
            ],
            b"prepend k 1 2 0\r\n\r\n": [TextCommand("prepend", b"k", b"", 1, 2)],
            b"add k 0 0 4\r\n\r\n\0\n\r\n": [TextCommand("add", b"k", b"\r\n\0\n")],
            b"decr k 18446744073709551615\r\n": [
                TextCommand("decr", b"k", delta=18446744073709551615)
            ],
            b"touch k 60 noreply\r\n": [TextCommand("touch", b"k", expiry=60, noreply=True)],
            b"flush_all 60\r\n": [TextCommand("flush_all", expiry=60)],
            b"flush_all -60 noreply\r\n": [TextCommand("flush_all", noreply=True)],
            b"stats cachedump 1 0\r\n": [TextCommand("stats", args=(b"cachedump", b"1", b"0"))],
            b"quit\r\nget k\r\n": [TextCommand("quit"), TextCommand("get", b"k"), END],
            b"mn\r\n": [TextCommand("mn")],
            b"mg k v\r\n": [MetaCommand("mg", b"k", (b"v",), b"v")],
            b"ms k 2 q I\r\nab\r\n": [
                MetaCommand("ms", b"k", (b"q", b"I"), b"qI", b"ab", quiet=True)
            ],
        }
        for wire, items in cases.items():
            for parts in cuttings(wire):
                self.assertEqual(decode(TextDecoder, parts), (items, None))

    def test_memoryview_and_bytearray(self):
        """Any bytes-like read is accepted, and not referred to afterwards."""
        for kind in (bytearray, memoryview):
            buffer = bytearray(b"set k 0 0 3\r\nabc\r\n")
            items = TextDecoder().feed(kind(buffer))
            buffer[:] = bytes(len(buffer))
            self.assertEqual(items, [TextCommand("set", b"k", b"abc")])

    def test_too_large(self):
        """A value beyond the limit is thrown away, told when it is through, and the key with it."""
        wire = b"set key 0 0 101\r\n" + bytes(101) + b"\r\nversion\r\n"
        refusal = TextRefusal(
            b"SERVER_ERROR object too large for cache\r\n", "set", b"key", too_large=True
        )
        for parts in cuttings(wire):
            self.assertEqual(
                decode(lambda: TextDecoder(max_value=100), parts, 2048),
                ([refusal, TextCommand("version")], None),
            )
        decoder = TextDecoder(max_value=100)
        self.assertEqual(decoder.feed(wire[:118]), [])
        self.assertEqual(decoder.buffered, 0)

    def test_too_large_without_reply(self):
        """The server hears of it, the client does not."""
        wire = b"add key 0 0 101 noreply\r\n" + bytes(103)
        self.assertEqual(
            TextDecoder(max_value=100).feed(wire), [TextRefusal(b"", "add", b"key", too_large=True)]
        )

    def test_value_of_exactly_the_limit(self):
        """The limit itself is allowed."""
        self.assertEqual(
            TextDecoder(max_value=3).feed(b"set k 0 0 3\r\nabc\r\n"),
            [TextCommand("set", b"k", b"abc")],
        )

    def test_long_value_is_linear(self):
        """A 10 MiB value in 16 KiB reads comes out whole; reads are kept as they are until then."""
        value = bytes(range(256)) * (10 * 4096)
        wire = b"set k 0 0 %d\r\n%b\r\n" % (len(value), value)
        decoder = TextDecoder()
        items = []
        for at in range(0, len(wire), 16384):
            read = wire[at : at + 16384]
            before = sys.getrefcount(read)
            items += decoder.feed(read)
            if at and not items:
                self.assertGreater(sys.getrefcount(read), before, "the read was copied")
        self.assertEqual(items, [TextCommand("set", b"k", value)])

    def test_commands_before_the_broken_one(self):
        """What was whole before the fault is delivered, and only then is the fault known."""
        for end, reason in (
            (b"GET / HTTP/1.1\r\nHost: example.com\r\n", "an HTTP request"),
            (b"x" * 2049, "a line of more than 2048 bytes"),
        ):
            decoder = TextDecoder()
            items = decoder.feed(b"version\r\n" + end)
            self.assertEqual(items, [TextCommand("version")])
            self.assertEqual(str(decoder.error), reason)
            self.assertRaises(RemoteProtocolError, decoder.feed, b"")

    def test_line_too_long(self):
        """Whoever sends a line without end hears nothing more, as from memcached."""
        decoder = TextDecoder(max_line=10)
        self.assertEqual(decoder.feed(b"12345678901"), [])
        self.assertEqual(str(decoder.error), "a line of more than 10 bytes")
        whole = TextDecoder(max_line=10)
        self.assertEqual(whole.feed(b"delete 8901\n"), [])
        self.assertIsNotNone(whole.error)

    def test_line_of_exactly_the_limit(self):
        """The limit counts all bytes before the line feed, and is itself allowed."""
        for parts in cuttings(b"delete 890\r\n"):
            self.assertEqual(
                decode(lambda: TextDecoder(max_line=11), parts)[0],
                [TextCommand("delete", b"890")],
            )

    def test_silent_refusals(self):
        """With noreply a wrong command is not carried out either, though nothing is said."""
        for wire in (
            b"delete k 1 noreply\r\n",
            b"incr k x noreply\r\n",
            b"touch k x noreply\r\n",
            b"flush_all x noreply\r\n",
            b"set k x 0 1 noreply\r\n",
        ):
            verb = wire.split()[0].decode()
            self.assertEqual(TextDecoder().feed(wire), [TextRefusal(b"", verb)])


class SwallowTests(SynchronousTestCase):
    """The value of a refused line is no command, however it arrives."""

    def test_swallowed(self):
        """The line is answered, and the next command is the one behind the value."""
        refusal = b"CLIENT_ERROR bad command line format\r\n"
        for line in (
            b"set " + b"k" * 251 + b" 0 0 13",
            b"set k x 0 13",
            b"set k 0 x 13",
            b"append k 4294967296 0 13",
            b"cas k 0 0 13",
            b"cas k 0 0 13 x",
            b"cas k 0 0 13 -1",
        ):
            verb = line.split()[0].decode()
            wire = line + b"\r\ndelete victim\r\nmn\r\n"
            for parts in cuttings(wire):
                self.assertEqual(
                    decode(TextDecoder, parts, 2048),
                    ([TextRefusal(refusal, verb), TextCommand("mn")], None),
                )
            self.assertEqual(
                TextDecoder().feed(line + b" noreply\r\ndelete victim\r\nmn\r\n"),
                [TextRefusal(b"", verb), TextCommand("mn")],
            )

    def test_answered_before_its_value(self):
        """A client that waits for the answer to its line gets it; the value may follow."""
        decoder = TextDecoder()
        self.assertEqual(len(decoder.feed(b"set k x 0 1000000\r\n")), 1)
        self.assertTrue(decoder.partial)
        self.assertEqual(decoder.feed(bytes(500_000)), [])
        self.assertEqual(decoder.buffered, 0)
        self.assertEqual(decoder.feed(bytes(500_002) + b"mn\r\n"), [TextCommand("mn")])

    def test_login(self):
        """While a set may be a login, a refused one has its value, and no more than the limit."""
        for size, value in ((12, b"alice secret"), (13, b"")):
            wire = b"set _ _ _ %d\r\n%b\r\nmn\r\n" % (size, b"alice secrets"[:size])
            for parts in ([wire], [byte.to_bytes() for byte in wire]):
                decoder = TextDecoder(max_value=12)
                decoder.login = True
                self.assertEqual(
                    [item for part in parts for item in decoder.feed(part)],
                    [
                        TextRefusal(
                            b"CLIENT_ERROR bad command line format\r\n", "set", value=value
                        ),
                        TextCommand("mn"),
                    ],
                )


class LongRetrievalTests(SynchronousTestCase):
    """get and gets may be longer than any other line."""

    def decode(self, parts: list[bytes]) -> tuple[list[object], str | None]:
        """Decode with small limits, and check that next to nothing is held."""
        return decode(lambda: TextDecoder(max_line=20, max_key=8), parts, 20)

    def test_keys_as_they_come(self):
        """The keys of a long line come out in order, and then its end."""
        for verb in ("get", "gets"):
            wire = verb.encode() + b" " + b"aaa  bb c " * 4 + b"dddddddd\r\nversion\r\n"
            expected = [TextCommand(verb, key) for key in (b"aaa", b"bb", b"c") * 4]
            expected += [TextCommand(verb, b"dddddddd"), END, TextCommand("version")]
            for parts in cuttings(wire):
                self.assertEqual(self.decode(parts), (expected, None))

    def test_behind_other_commands(self):
        """What came before the long line in the same read does not belong to it."""
        wire = b"mn\r\ndelete x\r\nget " + b"aaa bb c " * 4 + b"d\r\nversion\r\n"
        expected = [TextCommand("mn"), TextCommand("delete", b"x")]
        expected += [TextCommand("get", key) for key in (*(b"aaa", b"bb", b"c") * 4, b"d")]
        expected += [END, TextCommand("version")]
        for parts in cuttings(wire):
            self.assertEqual(self.decode(parts), (expected, None))

    def test_leading_spaces(self):
        """Memcached allows up to a hundred of them."""
        wire = b" " * 15 + b"get aaaa bbbb cccc\r\n"
        expected = [TextCommand("get", key) for key in (b"aaaa", b"bbbb", b"cccc")]
        for parts in cuttings(wire):
            self.assertEqual(self.decode(parts), ([*expected, END], None))

    def test_long_key(self):
        """A key too long ends the retrieval with a refusal; the rest of the line is lost."""
        wire = b"get aaaa bbbb cccc 123456789 dddd eeee\r\nversion\r\n"
        good = [TextCommand("get", key) for key in (b"aaaa", b"bbbb", b"cccc")]
        for parts in cuttings(wire):
            self.assertEqual(
                self.decode(parts), ([*good, BAD_FORMAT, TextCommand("version")], None)
            )

    def test_endless_key(self):
        """A key without end is refused without being held."""
        wire = b"get " + b"k" * 1000 + b"\nversion\r\n"
        for parts in ([wire], [byte.to_bytes() for byte in wire]):
            self.assertEqual(self.decode(parts), ([BAD_FORMAT, TextCommand("version")], None))

    def test_no_key(self):
        """Spaces alone ask for nothing."""
        wire = b"get " + b" " * 30 + b"\r\nversion\r\n"
        for parts in cuttings(wire):
            self.assertEqual(
                self.decode(parts),
                (
                    [
                        TextRefusal(b"CLIENT_ERROR bad command line format\r\n", "get"),
                        TextCommand("version"),
                    ],
                    None,
                ),
            )

    def test_other_commands(self):
        """No other command may be so long, and neither may gat."""
        for wire in (b"gat 0 " + b"kk " * 10, b"getx " + b"kk " * 10, b"delete " + b"k" * 30):
            for parts in cuttings(wire + b"\r\n"):
                self.assertEqual(
                    self.decode(parts),
                    (
                        [],
                        "a line of more than 20 bytes",
                    ),
                )

    def test_cost_is_linear(self):
        """A megabyte of keys in small reads: each read gives its own keys, once."""
        decoder = TextDecoder()
        wire = b"get " + b"key:123456 " * 95000 + b"\r\n"
        counts = [len(decoder.feed(wire[at : at + 1024])) for at in range(0, len(wire), 1024)]
        self.assertEqual(sum(counts), 95001)
        # Some reads are gathered first, never more than a few.
        self.assertLessEqual(max(counts), 8 * 1024 // len(b"key:123456 "))


class ReplyTests(SynchronousTestCase):
    """Lines that a server sends."""

    def test_values(self):
        """A hit with and without CAS; all 64 bits of it."""
        self.assertEqual(value_with(), b"VALUE k 5 3\r\nabc\r\n")
        self.assertEqual(value_with(cas=2**64 - 1), b"VALUE k 5 3 18446744073709551615\r\nabc\r\n")

    def test_lines(self):
        """Statistics and errors."""
        self.assertEqual(text.stat_line(b"pid", b"1"), b"STAT pid 1\r\n")
        self.assertEqual(text.client_error(b"unauthenticated"), b"CLIENT_ERROR unauthenticated\r\n")
        self.assertEqual(text.server_error(b"busy"), b"SERVER_ERROR busy\r\n")


def value_with(cas: int | None = None) -> bytes:
    """Return one hit, made both ways."""
    whole = text.value_reply(b"k", 5, b"abc", cas)
    if text.value_head(b"k", 5, 3, cas) + b"abc\r\n" != whole:
        raise AssertionError("head and reply differ")
    return whole


class PartialTests(SynchronousTestCase):
    """Whether a decoder stands between commands."""

    def test_partial(self) -> None:
        """A decoder is in the middle of a command from its first byte to its last but one."""
        decoder = TextDecoder()
        command = b"set k 0 0 3\r\nabc\r\n"
        self.assertFalse(decoder.partial)
        for byte in command[:-1]:
            decoder.feed(bytes([byte]))
            self.assertTrue(decoder.partial, byte)
        decoder.feed(command[-1:])
        self.assertFalse(decoder.partial)
