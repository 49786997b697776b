"""The contract of a store's meta commands, as tests: `MetaContract`.

Mix it into a trial test case beside `kvproto.testing.store.StoreContract`.  What meta commands know
of a document (stale, won, read, and when) is the document's, so it is kept wherever that is kept.
"""

from __future__ import annotations

from typing import Any

from kvproto.store import Mark, MetaRead, MetaWrite, Refusal, accessed_at
from kvproto.testing.store_case import KEY, START, StoreCase
from kvproto.wire.meta import MetaCommand, parse_meta, parse_meta_set

__all__ = ["MetaContract", "meta_command"]


def meta_command(line: str, value: bytes = b"") -> MetaCommand:
    """Return a meta command from its line; ``ms`` without the size of its value."""
    tokens = line.encode().split()
    if tokens[0] == b"ms":
        tokens.insert(2, b"%d" % len(value))
        command, _ = parse_meta_set(tokens)
    else:
        command = parse_meta(tokens[0].decode(), tokens)
    assert isinstance(command, MetaCommand), command
    command.value = value
    return command


class MetaContract(StoreCase):
    """Tests that every `IStore` must pass for meta commands."""

    def meta(self, line: str, value: bytes = b"") -> Any:
        """Do a meta command on the key, whatever key the line names."""
        return self.ask(self.store.meta(KEY, meta_command(line, value)))

    def read(self, line: str = "mg k v") -> MetaRead:
        """Read, which must find the document."""
        found = self.meta(line)
        self.assertIsInstance(found, MetaRead)
        assert isinstance(found, MetaRead)
        return found

    def test_meta_stale(self) -> None:
        """One client wins a stale document, others hear that; storing it anew ends both."""
        self.meta("ms k", b"old")
        self.meta("md k I T30")
        first = self.read()
        self.assertTrue(first.won)
        self.assertTrue(first.document.marks & Mark.STALE)
        self.assertEqual(first.document.value, b"old")
        second = self.read()
        self.assertFalse(second.won)
        self.assertTrue(second.marks & Mark.WON)
        self.assertTrue(second.document.marks & Mark.STALE)
        self.meta("ms k", b"new")
        third = self.read()
        self.assertFalse(third.won)
        self.assertFalse(third.document.marks & (Mark.STALE | Mark.WON))
        self.assertEqual(third.document.value, b"new")

    def test_meta_late_write(self) -> None:
        """A write with the CAS of before an invalidation is kept as stale."""
        before = self.meta("ms k", b"old").cas
        self.meta("md k I")
        self.meta(f"ms k C{before} I", b"late")
        found = self.read()
        self.assertEqual(found.document.value, b"late")
        self.assertTrue(found.document.marks & Mark.STALE)
        self.assertTrue(found.won)

    def test_meta_vivify(self) -> None:
        """Where nothing is one client wins an empty document."""
        self.assertIsNone(self.meta("mg k v"))
        first, second = self.read("mg k v N30"), self.read("mg k v N30")
        self.assertEqual((first.won, second.won), (True, False))
        self.assertTrue(second.marks & Mark.WON)
        self.assertEqual(first.document.value, b"")
        self.assertEqual(round(first.document.expires_at - START), 30)

    def test_meta_recache(self) -> None:
        """Near its end one client wins the document."""
        self.meta("ms k T100", b"value")
        self.assertFalse(self.read("mg k v R30").won)
        self.clock.advance(80)
        self.assertTrue(self.read("mg k v R30").won)
        self.assertFalse(self.read("mg k v R30").won)

    def test_meta_read(self) -> None:
        """Whether a document was read, and when, is known to the next one who asks."""
        self.meta("ms k", b"value")
        self.assertFalse(self.read("me k").document.marks & Mark.FETCHED)
        self.clock.advance(5)
        self.assertFalse(self.read("mg k h l t").marks & Mark.FETCHED)
        self.clock.advance(7)
        found = self.read("mg k h l t")
        self.assertTrue(found.marks & Mark.FETCHED)
        self.assertEqual(found.accessed, int(START + 5))
        self.assertEqual(accessed_at(self.read("me k").document), int(START + 12))

    def test_meta_write(self) -> None:
        """Modes, and a CAS of the client's own."""
        self.assertEqual(self.meta("ms k MR", b"x"), MetaWrite.NOT_STORED)
        self.assertEqual(self.meta("ms k ME E77", b"x").cas, 77)
        self.assertEqual(self.meta("ms k ME", b"y"), MetaWrite.NOT_STORED)
        self.assertEqual(self.meta("ms k C5", b"y"), MetaWrite.EXISTS)
        self.meta("ms k MA C77", b"y")
        self.assertEqual(self.read().document.value, b"xy")
        self.assertIs(self.meta("ma k"), Refusal.NOT_A_NUMBER)
        self.meta("md k")
        self.assertEqual(self.meta("md k"), MetaWrite.NOT_FOUND)
        counted = self.meta("ma k N0 J5")
        self.assertEqual((counted.made, counted.document.value), (True, b"5"))
        self.assertEqual(self.meta("ma k D3").document.value, b"8")
