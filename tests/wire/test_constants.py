"""Tables of numbers."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.wire.constants import (
    BINARY_MAGICS,
    ERROR_TEXT,
    LOUD,
    QUIET,
    QUIET_ON_MISS,
    Magic,
    Opcode,
    Status,
    error_text,
)


class TableTests(SynchronousTestCase):
    """Tables that several rooms build on."""

    def test_quiet_opcodes(self):
        """Every opcode whose name ends in Q does the work of the one without it."""
        by_name = Opcode.__members__
        expected = {
            by_name[name]: by_name[loud]
            for name in by_name
            if "Q" in name
            for loud in [name.replace("GETQ_META", "GET_META").removesuffix("Q")]
            if loud != name
        }
        self.assertEqual(LOUD, expected)
        self.assertEqual(set(expected), set(QUIET))
        self.assertTrue(QUIET_ON_MISS < QUIET)

    def test_classic_texts(self):
        """Memcached's words, which its test suite compares (proto_bin.c, write_bin_error)."""
        self.assertEqual(error_text(Status.NOT_FOUND), b"Not found")
        self.assertEqual(error_text(Status.EXISTS), b"Data exists for key.")
        self.assertEqual(error_text(Status.TOO_BIG), b"Too large.")
        self.assertEqual(error_text(Status.INVALID), b"Invalid arguments")
        self.assertEqual(error_text(Status.NOT_STORED), b"Not stored.")
        self.assertEqual(
            error_text(Status.NOT_A_NUMBER), b"Non-numeric server-side value for incr or decr"
        )
        self.assertEqual(error_text(Status.AUTH_ERROR), b"Auth failure.")
        self.assertEqual(error_text(Status.UNKNOWN_COMMAND), b"Unknown command")
        self.assertEqual(error_text(0x7F), b"Error 0x7f")
        self.assertTrue(all(ERROR_TEXT.values()))

    def test_magics_that_begin_a_binary_connection(self):
        """The first byte picks the protocol."""
        self.assertEqual(BINARY_MAGICS, {Magic.REQUEST, Magic.FLEX_REQUEST})
