"""Lines of meta commands, and what memcached 1.6.45 says of those that it refuses."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.wire.meta import MetaCommand, meta_key, parse_meta, parse_meta_set
from kvproto.wire.text_grammar import EXPIRED, TextRefusal

BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_TOKEN = b"CLIENT_ERROR bad token in command line format\r\n"
BAD_KEY = b"CLIENT_ERROR error decoding key\r\n"
BAD_ARITHMETIC = b"CLIENT_ERROR invalid or duplicate flag\r\n"
BAD_FLAG = b"CLIENT_ERROR invalid flag\r\n"
DUPLICATE = b"CLIENT_ERROR duplicate flag\r\n"
TOO_MANY = b"CLIENT_ERROR options flags are too long\r\n"
LONG_OPAQUE = b"CLIENT_ERROR opaque token too long\r\n"

U32 = 2**32 - 1
U64 = 2**64 - 1


def parsed(line: bytes, max_key: int = 250) -> MetaCommand | TextRefusal:
    """Return what a line of mg, md, ma, me or ms is."""
    tokens = line.split()
    if tokens[0] == b"ms":
        return parse_meta_set(tokens, max_key)[0]
    return parse_meta(tokens[0].decode(), tokens, max_key)


class ParsingCase(SynchronousTestCase):
    """Assertions about one line."""

    def understood(self, line: bytes, **fields: object) -> None:
        """Assert that a line is taken, and what some of its fields are."""
        command = parsed(line)
        assert isinstance(command, MetaCommand), (line, command)
        self.assertEqual({name: getattr(command, name) for name in fields}, fields, line)

    def refused(self, line: bytes, answer: bytes, max_key: int = 250) -> None:
        """Assert how a line is refused."""
        self.assertEqual(parsed(line, max_key), TextRefusal(answer, line.split()[0].decode()), line)


class LineTests(ParsingCase):
    """Verb, key and size."""

    def test_all_of_it(self):
        """Flags are kept as they came, in their order, beside what they mean."""
        self.assertEqual(
            parsed(b"mg key v O77 T30 q"),
            MetaCommand(
                "mg",
                b"key",
                flags=(b"v", b"O77", b"T30", b"q"),
                letters=b"vOTq",
                quiet=True,
                expiry=30,
            ),
        )

    def test_key_alone(self):
        """A verb and a key are enough, a verb is not."""
        for verb in (b"mg", b"md", b"ma", b"me"):
            self.understood(verb + b" key", verb=verb.decode(), key=b"key", flags=(), quiet=False)
            self.refused(verb, BAD_FORMAT)

    def test_debugging_looks_at_base64_only(self):
        """``me`` takes its first flag when that is ``b``, and passes over everything else."""
        self.understood(b"me a2V5 b", key=b"key", flags=(b"b",))
        self.understood(b"me a2V5 b b !", key=b"key", flags=(b"b",))
        self.understood(b"me a2V5 v b", key=b"a2V5", flags=())
        self.understood(b"me a2V5 !", key=b"a2V5", flags=())

    def test_size(self):
        """``ms`` tells the size of what follows, even when something else is wrong."""
        for line, size in (
            (b"ms key 2", 2),
            (b"ms key 2 T0", 2),
            (b"ms key 2 !", 2),
            (b"ms key 2 T", 2),
            (b"ms key +2", None),
            (b"ms key", None),
            (b"ms", None),
            (b"ms key two", None),
        ):
            self.assertEqual(parse_meta_set(line.split())[1], size, line)
        self.understood(b"ms key 2 T7", verb="ms", key=b"key", flags=(b"T7",), expiry=7)
        for line in (b"ms", b"ms key", b"ms key two", b"ms key +2", b"ms key 2 !"):
            self.refused(line, BAD_FORMAT)

    def test_longest_key(self):
        """The longest key is as long as the caller says; what counts is the key as it came."""
        self.understood(b"mg " + b"k" * 250, key=b"k" * 250)
        self.refused(b"mg " + b"k" * 251, BAD_FORMAT)
        self.refused(b"mg a2V5 b", BAD_FORMAT, max_key=3)
        self.refused(b"ms " + b"k" * 251 + b" 2", BAD_FORMAT)
        self.refused(b"ma " + b"k" * 251, BAD_ARITHMETIC)

    def test_key_of_an_answer(self):
        """A binary key is answered in base64, and marked so."""
        self.assertEqual(meta_key(b"key", binary=False), b"kkey")
        self.assertEqual(meta_key(b"key", binary=True), b"ka2V5 b")


class FlagTests(ParsingCase):
    """Single letters and their arguments."""

    def test_no_flag(self):
        """What begins with no character of a flag is none."""
        for flag in (b"!", b"+", b"-", b"{"):
            self.refused(b"mg key " + flag, BAD_FORMAT)
        self.refused(b"ma key !", BAD_FORMAT)

    def test_unknown(self):
        """A letter that means nothing is refused, by ``ma`` in words of its own."""
        self.refused(b"mg key Z", BAD_FLAG)
        self.refused(b"md key v Z", BAD_FLAG)
        self.refused(b"ma key Z", BAD_ARITHMETIC)

    def test_twice(self):
        """No letter comes twice, whatever its argument."""
        self.refused(b"mg key v v", DUPLICATE)
        self.refused(b"mg key T1 t T2", DUPLICATE)
        self.refused(b"ma key D1 D2", BAD_ARITHMETIC)
        self.understood(b"mg key T1 t", expiry=1, letters=b"Tt")

    def test_too_many(self):
        """Twenty tokens are a line, twenty-one are too many."""
        flags = [bytes((letter,)) for letter in b"bklOPLstcfvhuxI"] + [b"T1", b"N1", b"R1"]
        self.assertEqual(len(flags), 18)
        self.understood(b"mg a2V5 " + b" ".join(flags), key=b"key", expiry=1, vivify=1, recache=1)
        self.refused(b"mg a2V5 q " + b" ".join(flags), TOO_MANY)

    def test_base64(self):
        """``b`` decodes the key; what comes after it still counts."""
        self.understood(b"mg a2V5 b q", key=b"key", quiet=True)
        self.understood(b"mg a2-V5 b", key=b"key")
        for key in (b"a2V", b"a2V5=", b"a===", b"====", b"-"):
            self.refused(b"mg " + key + b" b", BAD_KEY)
            self.refused(b"mg " + key + b" b v", BAD_KEY)

    def test_numbers(self):
        """Each number has its field, its range and its own complaint."""
        delta = b"CLIENT_ERROR invalid numeric delta value\r\n"
        initial = b"CLIENT_ERROR invalid numeric initial value\r\n"
        for verb, flag, field, most, fault in (
            (b"ms key 1", b"C", "cas", U64, BAD_TOKEN),
            (b"ms key 1", b"E", "new_cas", U64, BAD_TOKEN),
            (b"ms key 1", b"F", "client_flags", U32, BAD_FORMAT),
            (b"mg key", b"D", "delta", U64, delta),
            (b"mg key", b"J", "initial", U64, initial),
        ):
            for found in (0, 1, most):
                self.understood(b"%b %b%d" % (verb, flag, found), **{field: found})
            for argument in (b"", b"-1", b"x", b"1x", b"%d" % (most + 1)):
                self.refused(verb + b" " + flag + argument, fault)
        self.understood(b"ma key D9 J8", delta=9, initial=8)
        self.refused(b"ma key Dx", BAD_ARITHMETIC)

    def test_defaults(self):
        """What no flag says is as memcached has it."""
        self.understood(
            b"ma key", delta=1, initial=0, mode=0, cas=None, new_cas=None, client_flags=0
        )
        self.understood(b"mg key", expiry=None, vivify=None, recache=None)

    def test_first_fault_is_not_undone(self):
        """A flag that is wrong is not mended by a right one behind it."""
        self.refused(b"mg key Tx N1 v", BAD_TOKEN)
        self.refused(b"ms key 1 Cx T1", BAD_TOKEN)

    def test_expiry(self):
        """Below zero and beyond 31 bits it is over; beyond 32 bits it is no expiry."""
        for flag, field in ((b"T", "expiry"), (b"N", "vivify"), (b"R", "recache")):
            for argument, found in (
                (b"0", 0),
                (b"1", 1),
                (b"2147483647", 2**31 - 1),
                (b"2147483648", EXPIRED),
                (b"4294967295", EXPIRED),
                (b"-1", EXPIRED),
                (b"-2147483648", EXPIRED),
            ):
                self.understood(b"mg key " + flag + argument, **{field: found})
            for argument in (b"", b"x", b"4294967296", b"-2147483649"):
                self.refused(b"mg key " + flag + argument, BAD_TOKEN)

    def test_modes(self):
        """``ms`` and ``ma`` have modes of their own; other commands pass over any."""
        for mode in b"SEARP":
            self.understood(b"ms key 1 M%c" % mode, mode=mode)
        for mode in b"I+D-":
            self.understood(b"ma key M%c" % mode, mode=mode)
        for line in (b"ms key 1 ", b"ma key "):
            for flag in (b"Mx", b"M"):
                self.refused(
                    line + flag, b"CLIENT_ERROR invalid mode for %b M token\r\n" % line[:2]
                )
        for line in (b"mg key ", b"md key "):
            for flag in (b"MS", b"MI", b"MX", b"M"):
                self.understood(line + flag, mode=0)

    def test_opaque(self):
        """An opaque token has 32 bytes at most, its letter included; other flags are free."""
        self.understood(b"mg key O" + b"7" * 31, letters=b"O")
        self.refused(b"mg key O" + b"7" * 32, LONG_OPAQUE)
        self.refused(b"ms key 1 v O" + b"7" * 32, LONG_OPAQUE)
        self.understood(b"mg key v" + b"7" * 40, letters=b"v")
