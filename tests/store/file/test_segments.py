"""What is said of a segment whose records end before their end."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import Document
from kvproto.store.file.records import Kind, body_of, encode
from kvproto.store.file.segments import (
    Fault,
    Header,
    boot_id,
    end_record,
    find_fault,
    first_record,
    number_of,
    seed_of,
    segment_name,
)

NUMBER = 7
HEADER = Header(NUMBER, 1, 2, 3, b"boot")
BEGIN = bytes(first_record())
AT = len(BEGIN)
BAD = b"\x01" * 64


def record(kind: int, *, seqno: int = 0, cas: int = 0, seed: int = NUMBER) -> bytes:
    """Return a record of segment 7."""
    return encode(body_of(kind, b"key", Document(b"v", cas=cas, seqno=seqno)), seed_of(seed))


class FaultTests(SynchronousTestCase):
    """What follows the last readable record: nothing, what was not saved, or damage."""

    def fault(self, rest: bytes, boot: bytes = b"later boot", header: Header = HEADER) -> Fault:
        return find_fault(BEGIN + rest + bytes(4096), AT, header, boot)

    def test_zeros(self) -> None:
        """Nothing but zeros is no fault."""
        self.assertEqual(self.fault(b""), Fault(AT, 0, False))

    def test_lost(self) -> None:
        """What nobody vouches for is counted to its last byte and left out."""
        put = record(Kind.PUT, seqno=NUMBER, cas=1 << 40)
        for rest in (BAD, BAD + put, BAD + bytes(80) + put):
            self.assertEqual(self.fault(rest), Fault(AT, len(rest.rstrip(b"\0")), False))
            self.assertEqual(self.fault(rest, b"", Header(NUMBER, 1, 2, 3)).damage, False)
        self.assertEqual(self.fault(BAD, b"boot"), Fault(AT, len(BAD), False))

    def test_same_boot(self) -> None:
        """What this boot's kernel had is whole: whatever can be read behind it says so."""
        for kind in (Kind.PUT, Kind.REMOVE, Kind.SYNCED, Kind.END):
            self.assertTrue(self.fault(BAD + record(kind), b"boot").damage)
        other = record(Kind.PUT, seed=NUMBER + 1)
        self.assertFalse(self.fault(BAD + other, b"boot").damage)

    def test_synced(self) -> None:
        """After a reboot only a record that this place of this segment was saved says so."""
        for seqno, cas, damage in (
            (NUMBER, AT + 1, True),
            (NUMBER, AT, False),
            (NUMBER - 1, 1 << 40, False),
        ):
            rest = BAD + record(Kind.SYNCED, seqno=seqno, cas=cas)
            self.assertEqual(self.fault(rest).damage, damage, (seqno, cas))


class NameTests(SynchronousTestCase):
    """Names, numbers and headers."""

    def test_names(self) -> None:
        """A name says its number, sorts as it does, and nothing else is one."""
        for number in (1, 9, 10, 10**15):
            self.assertEqual(number_of(segment_name(number)), number)
        self.assertLess(segment_name(9), segment_name(10))
        for name in ("spare-1", "1.log", segment_name(1) + "x", "x" + segment_name(1)):
            self.assertIsNone(number_of(name))

    def test_header(self) -> None:
        """A header says what it was given; one that is changed or short is none."""
        data = HEADER.encode()
        self.assertEqual(Header.decode(data + b"more"), HEADER)
        for at in range(len(data)):
            self.assertIsNone(Header.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]))
            self.assertIsNone(Header.decode(data[:at]))

    def test_boot(self) -> None:
        """A boot has a name of 36 bytes, or none."""
        self.assertIn(len(boot_id()), (0, 36))
        self.assertEqual(boot_id("/nowhere"), b"")

    def test_end(self) -> None:
        """The record that ends a segment is its own."""
        self.assertEqual(first_record() % 8, 0)
        self.assertNotEqual(end_record(1), end_record(2))
