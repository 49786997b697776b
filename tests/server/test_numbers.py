"""Numbers that clients send: however many digits, they are answered."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.wire.constants import Opcode, Status
from tests.server.support import Link

LINES = (
    b"set k # 0 1\r\nx\r\n", b"set k 0 # 1\r\nx\r\n", b"set k 0 0 #\r\nx\r\n",
    b"cas k 0 0 1 #\r\nx\r\n", b"incr k #\r\n", b"decr k #\r\n", b"touch k #\r\n", b"gat # k\r\n",
    b"gats # k\r\n", b"flush_all #\r\n", b"verbosity #\r\n", b"stats cachedump # 1\r\n",
    b"stats cachedump 1 #\r\n", b"mg k T#\r\n", b"mg k N#\r\n", b"mg k R#\r\n", b"ms k #\r\nx\r\n",
    b"ms k 1 F#\r\nx\r\n", b"ms k 1 C#\r\nx\r\n", b"ms k 1 T#\r\nx\r\n", b"ma k D#\r\n",
    b"ma k J#\r\n", b"ma k N#\r\n", b"md k C#\r\n", b"me #\r\n", b"mg # b\r\n",
)  # fmt: skip


class DigitTests(SynchronousTestCase):
    """Python reads and prints no integer of more than 4,300 digits; nobody may notice."""

    def test_text(self) -> None:
        """Any number in a line is answered, or ends the connection with a reason."""
        for line in LINES:
            for digits in (25, 1_000, 1_900, 5_000, 100_000):
                link = Link()
                link.store.set(b"k", b"5")
                answer = link.ask(line.replace(b"#", b"9" * digits))
                self.assertTrue(answer or link.transport.closed, line)
                self.assertNotIn(b"internal error", answer)
                self.assertEqual(self.flushLoggedErrors(), [])

    def test_stored(self) -> None:
        """A counter of any length is none."""
        for digits in (25, 5_000, 100_000):
            link = Link()
            link.store.set(b"k", b"9" * digits)
            for line in (b"incr k 1\r\n", b"decr k 1\r\n", b"ma k\r\n"):
                self.assertIn(b"non-numeric", link.ask(line))

    def test_stored_binary(self) -> None:
        """The same in the binary protocol."""
        for digits in (25, 5_000, 100_000):
            link = Link()
            link.store.set(b"k", b"9" * digits)
            for opcode in (Opcode.INCREMENT, Opcode.DECREMENT):
                answer = link.call(opcode, key=b"k", extras=bytes(20))
                self.assertEqual(answer.status, Status.NOT_A_NUMBER)
