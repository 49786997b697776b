"""Rules of meta commands beyond the contract: expiry, CAS, counters, what is counted.

Source: memcached 1.6.45, ``doc/protocol.txt`` and ``proto_text.c``.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import Mark, MemoryStore, MetaWrite, Refusal
from kvproto.testing.store_case import KEY, START
from kvproto.testing.store_meta import meta_command


class MetaTests(SynchronousTestCase):
    """A store that is asked by meta commands."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = START
        self.store = MemoryStore(self.clock.seconds)
        self.before = self.counts()

    def meta(self, line: str, value: bytes = b"") -> Any:
        """Do a meta command on the key, whatever key the line names."""
        return self.store.meta(KEY, meta_command(line, value))

    def expiry(self) -> int:
        """Return in how many seconds the document expires, 0 for never."""
        expires_at = self.meta("me k").document.expires_at
        return round(expires_at - START) if expires_at else 0

    def counts(self) -> dict[str, int]:
        """Return all counters."""
        return {name: int(value) for name, value in self.store.statistics.report().items()}

    def counted(self, **counts: int) -> None:
        """What was counted since the last time is this, and nothing else."""
        before, self.before = self.before, self.counts()
        now = self.before
        changed = {name: now[name] - before[name] for name in now if now[name] != before[name]}
        self.assertEqual(changed, counts)

    def test_recache_never(self) -> None:
        """A document that never expires is not near its end; a new expiry counts if it is first."""
        self.meta("ms k", b"value")
        self.assertFalse(self.meta("mg k v R30").won)
        self.meta("ms k T40", b"value")
        self.assertFalse(self.meta("mg k v R30 T10").won)
        self.meta("ms k T40", b"value")
        self.assertTrue(self.meta("mg k v T10 R30").won)
        self.meta("ms k T30", b"value")
        self.assertFalse(self.meta("mg k v R30").won)
        self.clock.advance(1)
        self.assertTrue(self.meta("mg k v R30").won)

    def test_recache_at_a_time(self) -> None:
        """R may be a time as well: what ends before it is near its end."""
        self.meta("ms k T30", b"value")
        self.assertFalse(self.meta(f"mg k v R{int(START) + 30}").won)
        self.assertTrue(self.meta(f"mg k v R{int(START) + 31}").won)

    def test_nothing_there(self) -> None:
        """What wants a document says that there is none."""
        for line in ("ma k", "md k", "ms k C7"):
            value = b"1" if line.startswith("ms") else b""
            self.assertIs(self.meta(line, value), MetaWrite.NOT_FOUND, line)

    def test_expiry(self) -> None:
        """T sets it, N only where something is made; the later flag wins."""
        for line, expected in (
            ("mg k v N30", 30),
            ("mg k v N30 T20", 20),
            ("mg k v T20 N30", 30),
            ("ma k N30", 30),
            ("ma k N0", 0),
            ("ms k MA N30", 30),
            ("ms k T30", 30),
            ("ms k ME T30", 30),
        ):
            self.meta("md k")
            self.meta(line, b"1" if line.startswith("ms") else b"")
            self.assertEqual(self.expiry(), expected, line)
        for line, expected in (
            ("ma k", 30),
            ("ma k N20", 30),
            ("ma k N20 T40", 40),
            ("mg k v N20", 30),
            ("mg k v T0", 0),
            ("mg k v T20", 20),
            ("mg k v T20 N40", 20),
            ("ms k MP N20", 30),
            ("md k I", 30),
            ("md k I T20", 20),
            ("md k x", 0),
            ("md k x T20", 20),
        ):
            self.meta("ms k T30", b"1")
            self.meta(line, b"2" if line.startswith("ms") else b"")
            self.assertEqual(self.expiry(), expected, line)

    def test_cas(self) -> None:
        """E gives a CAS of the client's own wherever something changes."""
        for line in ("mg k v N0 E77", "ma k N0 E77", "ms k E77"):
            self.meta("md k")
            self.meta(line, b"1" if line.startswith("ms") else b"")
            self.assertEqual(self.meta("me k").document.cas, 77, line)
        for line in ("ma k E77", "ms k MA E77", "ms k MR E77", "md k I E77", "md k x E77"):
            self.meta("ms k", b"1")
            self.meta(line, b"2" if line.startswith("ms") else b"")
            self.assertEqual(self.meta("me k").document.cas, 77, line)
        old = self.meta("ms k", b"1").cas
        self.meta("md k x")
        self.assertEqual(self.meta("me k").document.cas, old)
        self.assertGreater(self.meta("ma k").document.cas if self.meta("ms k", b"1") else 0, old)

    def test_own_cas(self) -> None:
        """What is made without E has a CAS of the store's, larger than those before."""
        for line in ("mg k v N0", "ma k N0", "ms k", "ms k ME", "ms k MA N0"):
            before = self.store.set(b"other", b"").cas
            self.meta(line, b"1" if line.startswith("ms") else b"")
            self.assertGreater(self.meta("me k").document.cas, before, line)
            self.meta("md k")

    def test_made(self) -> None:
        """Of what is made nothing was known before."""
        for line, won in (("mg k v N30", True), ("ma k N30", False)):
            found = self.meta(line)
            self.assertEqual(found.document.flags, 0)
            known = (found.before, found.marks, found.accessed, found.won, found.made)
            self.assertEqual(known, (0.0, 0, 0, won, True), line)
            found = self.meta(line)
            self.assertEqual((found.before, found.made), (START + 30, False), line)
            self.meta("md k")
        self.assertIsNone(self.meta("me k"))

    def test_unread(self) -> None:
        """With u a read leaves no mark; without, the first one does, for what it makes too."""
        self.meta("ms k", b"1")
        for line in ("mg k v u", "mg k v u", "mg k v"):
            self.assertFalse(self.meta(line).marks & Mark.FETCHED, line)
        self.assertTrue(self.meta("mg k v u").marks & Mark.FETCHED)
        for line, read in (("mg k v N0 u", False), ("mg k v N0", True)):
            self.meta("md k")
            self.meta(line)
            self.assertEqual(bool(self.meta("me k").document.marks & Mark.FETCHED), read, line)

    def test_extended(self) -> None:
        """A goes behind, P before; with nothing there N makes it, and else nothing happens."""
        for line in ("ms k MA", "ms k MP", "ms k MR"):
            self.assertIs(self.meta(line, b"1"), MetaWrite.NOT_STORED, line)
            self.counted(cmd_set=1)
        self.assertIsNone(self.meta("me k"))
        self.meta("ms k MA N0", b"b")
        self.meta("ms k MP", b"a")
        self.meta("ms k MA", b"c")
        self.assertEqual(self.meta("me k").document.value, b"abc")
        self.assertIs(self.meta("ms k ME", b"1"), MetaWrite.NOT_STORED)

    def test_removed(self) -> None:
        """A deleted document leaves its system attributes; an emptied one the rest of it."""
        self.store.set(KEY, b"1", 7, datatype=1)
        self.meta("md k x")
        document = self.meta("me k").document
        self.assertEqual((document.value, document.flags, document.datatype), (b"", 0, 0))
        document.xattrs = {"_s": b"1", "u": b"2"}
        gone = self.meta("md k")
        self.assertIs(gone, self.store.table.tombstones[KEY])
        self.assertEqual((gone.value, gone.xattrs, gone.deleted), (b"", {"_s": b"1"}, True))
        self.assertGreater(gone.cas, document.cas)
        self.assertGreater(gone.expires_at, START)

    def test_invalidated_again(self) -> None:
        """What somebody won and then was invalidated is another one's to win."""
        self.meta("ms k", b"1")
        for _ in range(2):
            self.meta("md k I")
            self.assertTrue(self.meta("mg k v").won)
            self.assertFalse(self.meta("mg k v").won)

    def test_counting(self) -> None:
        """Up, down, from where it begins; a wrong CAS or no number changes nothing."""
        for line, value in (
            ("ma k N0 J5", b"5"),
            ("ma k", b"6"),
            ("ma k MI D4", b"10"),
            ("ma k M+", b"11"),
            ("ma k MD D2", b"9"),
            ("ma k M-", b"8"),
            ("ma k MD D9", b"0"),
        ):
            self.assertEqual(self.meta(line).document.value, value, line)
        cas = self.meta("me k").document.cas
        self.assertEqual(self.meta(f"ma k C{cas + 1}"), MetaWrite.EXISTS)
        self.assertEqual(self.meta(f"ma k C{cas}").document.value, b"1")
        self.meta("ms k", b"")
        self.assertEqual(self.meta("ma k C5"), Refusal.NOT_A_NUMBER)

    def test_late(self) -> None:
        """Only a CAS of the past makes a write a late one, and only with I."""
        cas = self.meta("ms k T30", b"old").cas
        for line in (f"ms k C{cas + 1} I", f"ms k C{cas - 1}", "ms k C0 I"):
            self.assertEqual(self.meta(line, b"new"), MetaWrite.EXISTS, line)
        self.meta(f"ms k T90 C{cas - 1} I", b"late")
        self.assertEqual(self.meta("me k").document.value, b"late")
        self.assertEqual(self.expiry(), 30)
        self.assertTrue(self.meta("me k").document.marks & Mark.STALE)

    def test_attributes_stay(self) -> None:
        """What was stored beside a value stays when another value is stored."""
        self.store.set(KEY, b"1", 7)
        self.store.table.items[KEY].xattrs = {"a": b"1"}
        for line in ("ms k", "ms k MA", "ms k MR", "ma k"):
            self.meta(line, b"1" if line.startswith("ms") else b"")
            self.assertEqual(self.meta("me k").document.xattrs, {"a": b"1"}, line)

    def test_locked(self) -> None:
        """A locked document is changed only with the CAS of its lock."""
        self.store.set(KEY, b"1")
        cas = self.store.get_and_lock(KEY, 10).cas
        for line in ("ms k", "ms k MA", "ma k", "md k", "md k I", "mg k v T30", f"ma k C{cas + 1}"):
            self.assertIs(
                self.meta(line, b"2" if line.startswith("ms") else b""), Refusal.LOCKED, line
            )
        self.assertEqual(self.meta("mg k v").document.value, b"1")
        self.assertEqual(self.store.statistics.delete_misses, 0)
        self.assertEqual(self.meta(f"ma k C{cas}").document.value, b"2")

    def test_counts(self) -> None:
        """Each command is counted as memcached counts it."""
        self.counted()
        self.meta("mg k v")
        self.counted(cmd_get=1, get_misses=1)
        self.meta("mg k v N0")
        self.counted(cmd_get=1, get_hits=1, total_items=1)
        self.meta("mg k v")
        self.counted(cmd_get=1, get_hits=1)
        self.meta("mg k v T30")
        self.counted(cmd_touch=1, touch_hits=1)
        self.store.touch(KEY, 30)
        self.counted(cmd_touch=1, touch_hits=1)
        self.store.get_and_touch(KEY, 0)
        self.counted(cmd_get=1, get_hits=1, cmd_touch=1, touch_hits=1)
        cas = self.meta("ms k", b"1").cas
        self.counted(cmd_set=1, total_items=1)
        self.meta(f"ms k C{cas + 9}", b"1")
        self.counted(cmd_set=1, cas_badval=1)
        self.meta(f"ms k C{cas}", b"1")
        self.counted(cmd_set=1, cas_hits=1, total_items=1)
        self.meta("ma k")
        self.counted(incr_hits=1)
        self.meta("ma k D9")
        self.counted(incr_hits=1, total_items=1)
        self.meta("ma k MD D9")
        self.counted(decr_hits=1)
        self.store.increment(KEY, 1, 0, 0)
        self.counted(incr_hits=1)
        self.store.increment(KEY, 100, 0, 0)
        self.counted(incr_hits=1, total_items=1)
        self.store.decrement(KEY, 100, 0, 0)
        self.counted(decr_hits=1)
        self.meta("md k I T30")
        self.counted()
        self.meta("md k x")
        self.counted(delete_hits=1, total_items=1)
        self.meta("md k C1")
        self.counted(delete_misses=1)
        self.meta("md k")
        self.counted(delete_hits=1)
        self.meta("md k")
        self.counted(delete_misses=1)
        self.store.set(KEY, b"1", cas=7)
        self.counted(cmd_set=1, cas_misses=1)
        for act in (self.store.replace, self.store.append):
            act(KEY, b"1")
            self.counted(cmd_set=1)
        self.meta("ma k")
        self.counted(incr_misses=1)
        self.meta("ma k MD")
        self.counted(decr_misses=1)
        self.meta("ms k C7", b"1")
        self.counted(cmd_set=1, cas_misses=1)
