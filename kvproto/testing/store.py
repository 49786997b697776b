"""The contract of a store, as tests: `StoreContract`.

Mix it into a trial test case and say how to make the store::

    class MyStoreTests(StoreContract, SynchronousTestCase):
        def make_store(self, now):
            return MyStore(now)

The answers of the store may be Deferreds, as long as they have fired when the
method returns or fire when `StoreContract.settle` is called.
"""

from __future__ import annotations

from kvproto.store import DO_NOT_CREATE, Key, Refusal
from kvproto.testing.store_case import DAYS, KEY, NAMED, START, WRONG_CAS, StoreCase

__all__ = ["StoreContract"]


class StoreContract(StoreCase):
    """Tests that every `IStore` must pass."""

    # -- documents ------------------------------------------------------------

    def test_value_and_flags_come_back(self) -> None:
        """Any bytes and any 32 flag bits come back as they went in."""
        for value in (b"", b"\0\r\n\xff", b"x" * 100_000):
            self.done(self.store.set(KEY, value, 0xFFFFFFFF))
            document = self.done(self.store.get(KEY))
            self.assertEqual((document.value, document.flags), (value, 0xFFFFFFFF))

    def test_datatype_comes_back(self) -> None:
        """The datatype hint of the last write stays with the document."""
        self.done(self.store.set(KEY, b"{}", datatype=1))
        self.assertEqual(self.done(self.store.get(KEY)).datatype, 1)
        self.done(self.store.set(KEY, b"x"))
        self.assertEqual(self.done(self.store.get(KEY)).datatype, 0)

    def test_collections_are_apart(self) -> None:
        """The same key in two collections and in none names three documents."""
        keys: list[Key] = [KEY, (8, KEY), (9, KEY)]
        for number, key in enumerate(keys):
            self.done(self.store.set(key, b"%d" % number))
        self.assertEqual([self.value(key) for key in keys], [b"0", b"1", b"2"])

    def test_replaced_value_and_flags(self) -> None:
        """SET and REPLACE bring new flags, APPEND, PREPEND and the counters keep them."""
        self.fill()
        for change in (
            self.store.append(KEY, b"1"),
            self.store.prepend(KEY, b"2"),
            self.store.increment(KEY, 1, 0, 0),
            self.store.decrement(KEY, 1, 0, 0),
        ):
            self.assertEqual(self.done(change).flags, 0xCAFE)
        self.assertEqual(self.value(), b"251")
        self.assertEqual(self.done(self.store.replace(KEY, b"", 3)).flags, 3)
        self.assertEqual(self.done(self.store.set(KEY, b"")).flags, 0)

    def test_answers_do_not_change(self) -> None:
        """A document that was answered stays what it was when the key changes."""
        first = self.fill(value=b"1")
        cas = first.cas
        self.fill(value=b"2")
        self.done(self.store.get_and_lock(KEY, 5))
        self.assertEqual((first.value, first.cas, first.locked_until), (b"1", cas, 0.0))

    # -- CAS and sequence numbers ---------------------------------------------

    def test_cas_grows_with_each_mutation(self) -> None:
        """Each mutation, lock included, has a larger CAS, whatever the key; all below 2**63."""
        numbers = [
            self.fill().cas,
            self.done(self.store.replace(KEY, b"1")).cas,
            self.done(self.store.append(KEY, b"1")).cas,
            self.done(self.store.prepend(KEY, b"1")).cas,
            self.done(self.store.increment(KEY, 1, 0, 0)).cas,
            self.done(self.store.decrement(KEY, 1, 0, 0)).cas,
            self.done(self.store.touch(KEY, 5)).cas,
            self.done(self.store.get_and_touch(KEY, 6)).cas,
            self.done(self.store.add(b"other", b"")).cas,
            (lock := self.done(self.store.get_and_lock(KEY, 5)).cas),
            self.done(self.store.delete(KEY, lock)).cas,
            self.done(self.store.increment(KEY, 1, 0, 0)).cas,
        ]
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertTrue(numbers[0] > 0 and numbers[-1] < 1 << 63)

    def test_reads_and_refusals_keep_the_cas(self) -> None:
        """Reading, and being refused, change no CAS."""
        cas = self.fill().cas
        self.value()
        self.ask(self.store.add(KEY, b""))
        self.ask(self.store.set(KEY, b"", 0, 0, WRONG_CAS))
        self.assertEqual(self.done(self.store.get(KEY)).cas, cas)

    def test_cas_grows_when_the_clock_goes_back(self) -> None:
        """A clock that is set back does not bring back an old CAS."""
        before = self.fill().cas
        self.clock.rightNow = START - 3600
        self.assertGreater(self.fill().cas, before)

    def test_seqno_counts_mutations(self) -> None:
        """Sequence numbers grow with each mutation; a lock is none."""
        first = self.fill().seqno
        self.assertEqual(self.done(self.store.get_and_lock(KEY, 5)).seqno, first)
        cas = self.done(self.store.get(KEY)).cas
        second = self.done(self.store.set(KEY, b"", 0, 0, cas)).seqno
        third = self.done(self.store.delete(KEY)).seqno
        self.assertTrue(0 < first < second < third)

    def test_delete_answers_a_tombstone(self) -> None:
        """DELETE answers with a CAS and a seqno of its own, marked as deleted."""
        cas = self.fill().cas
        tombstone = self.done(self.store.delete(KEY))
        self.assertTrue(tombstone.deleted)
        self.assertGreater(tombstone.cas, cas)

    def test_uuid(self) -> None:
        """The history of sequence numbers has a name of 48 bits."""
        self.assertTrue(0 <= self.store.uuid < 1 << 48)

    # -- expiry ---------------------------------------------------------------

    def assert_lives(self, seconds: float, key: Key = KEY) -> None:
        """Check that a document is there until, and not at, a moment from now."""
        self.clock.advance(seconds - 0.001)
        self.assertIsNotNone(self.value(key))
        self.clock.advance(0.002)
        self.assertIsNone(self.value(key))

    def test_relative_expiry(self) -> None:
        """A document with a relative expiry lives exactly that long."""
        for seconds in (1, 60, 30 * DAYS):
            self.fill(expiry=seconds)
            self.assert_lives(seconds)

    def test_absolute_expiry(self) -> None:
        """Above 30 days an expiry is unix time, in the past too."""
        self.fill(expiry=int(START) + 100)
        self.assert_lives(100 - 0.25)
        self.fill()
        self.fill(expiry=30 * DAYS + 1)
        self.assertIsNone(self.value())
        self.done(self.store.set(KEY, b"", 0, 0xFFFFFFFE))
        self.clock.advance(20 * 365 * DAYS)
        self.assertEqual(self.value(), b"")

    def test_expiry_on_the_wire(self) -> None:
        """The expiry field is whole unix seconds, rounded up, 0 for never."""
        self.assertEqual(self.fill(expiry=10).expiry, int(START) + 11)
        self.assertEqual(self.fill(expiry=int(START) + 5).expiry, int(START) + 5)
        self.assertEqual(self.fill().expiry, 0)

    def test_expired_at_once(self) -> None:
        """A negative expiry, and one in the past, succeed and leave nothing."""
        for expiry in (-1, -(1 << 40), 30 * DAYS + 1):
            for act in (
                lambda e: self.store.set(KEY, b"1", 0, e),
                lambda e: self.store.replace(KEY, b"1", 0, e),
                lambda e: self.store.touch(KEY, e),
                lambda e: self.store.get_and_touch(KEY, e),
            ):
                self.fill()
                self.done(act(expiry))
                self.assertIsNone(self.value())
            self.done(self.store.add(KEY, b"1", 0, expiry))
            self.assertIsNone(self.value())
            self.done(self.store.increment(KEY, 1, 1, expiry))
            self.assertIsNone(self.value())

    def test_set_clears_the_expiry(self) -> None:
        """SET and REPLACE without an expiry make a document stay, unless told to preserve it."""
        self.fill(expiry=10)
        self.assertEqual(
            self.done(self.store.set(KEY, b"1", preserve_expiry=True)).expiry, 1700000011
        )
        kept = self.done(self.store.replace(KEY, b"1", 0, 99, preserve_expiry=True))
        self.assertEqual(kept.expiry, 1700000011)
        self.assertEqual(self.done(self.store.replace(KEY, b"1")).expiry, 0)
        self.fill(expiry=10)
        self.assertEqual(self.done(self.store.set(KEY, b"1")).expiry, 0)

    def test_preserve_without_a_document(self) -> None:
        """Where there is no expiry to preserve, the given one counts."""
        made = self.done(self.store.set(KEY, b"1", 0, 10, preserve_expiry=True))
        self.assertEqual(made.expiry, 1700000011)
        never = self.fill()
        kept = self.done(self.store.set(KEY, b"1", 0, 10, preserve_expiry=True))
        self.assertEqual((never.expiry, kept.expiry), (0, 0))

    def test_changes_keep_the_expiry(self) -> None:
        """APPEND, PREPEND and the counters keep a document's expiry."""
        self.fill(expiry=10)
        for change in (
            self.store.append(KEY, b"1"),
            self.store.prepend(KEY, b"1"),
            self.store.increment(KEY, 1, 0, 99),
            self.store.decrement(KEY, 1, 0, 0),
            self.store.increment(KEY, 1, 0, DO_NOT_CREATE),
        ):
            self.assertEqual(self.done(change).expiry, 1700000011)
        self.assert_lives(10)

    def test_touch(self) -> None:
        """TOUCH and GAT move the expiry, both ways and to never; value and flags stay."""
        for touch in (self.store.touch, self.store.get_and_touch):
            self.fill(expiry=10)
            self.done(touch(KEY, 20))
            self.assert_lives(20)
            self.fill(expiry=20)
            touched = self.done(touch(KEY, 10))
            self.assertEqual((touched.value, touched.flags), (b"5", 0xCAFE))
            self.assert_lives(10)
            self.fill(expiry=10)
            self.done(touch(KEY, 0))
            self.clock.advance(DAYS)
            self.assertEqual(self.value(), b"5")

    def test_touch_that_changes_nothing(self) -> None:
        """TOUCH with the expiry a document has already keeps its CAS."""
        cas = self.fill().cas
        self.assertEqual(self.done(self.store.touch(KEY, 0)).cas, cas)

    # -- counters -------------------------------------------------------------

    def test_counter_is_created_with_initial(self) -> None:
        """A missing counter starts at initial, without delta, with flags 0 and the expiry."""
        for count in (self.store.increment, self.store.decrement):
            made = self.done(count(KEY, 3, 10, 60))
            self.assertEqual((made.value, made.flags, made.expiry), (b"10", 0, 1700000061))
            self.done(self.store.delete(KEY))

    def test_counter_arithmetic(self) -> None:
        """INCR wraps modulo 2**64, DECR stops at 0; no padding, no leading zeros."""
        top = (1 << 64) - 1
        for before, delta, up, down in (
            (b"5", 3, b"8", b"2"),
            (b"10", 1, b"11", b"9"),
            (b"007", 0, b"7", b"7"),
            (b"%d" % top, 1, b"0", b"%d" % (top - 1)),
            (b"%d" % top, top, b"%d" % (top - 1), b"0"),
            (b"1", 2, b"3", b"0"),
            (b"0", top, b"%d" % top, b"0"),
        ):
            self.fill(value=before)
            self.assertEqual(self.done(self.store.increment(KEY, delta, 0, 0)).value, up)
            self.fill(value=before)
            self.assertEqual(self.done(self.store.decrement(KEY, delta, 0, 0)).value, down)
            self.assertEqual(self.value(), down)

    def test_not_a_number(self) -> None:
        """What is no decimal number below 2**64 is no counter, and stays as it is."""
        for text in (
            b"", b"x", b"-1", b"+", b" ", b"+ 1", b"\0" + b"1", b"1x", b"1.0", b"1_0", b"0x1",
            "\u0661".encode(), b"%d" % (1 << 64), b"0" * 2000 + b"1", b"\xb2",
        ):  # fmt: skip
            self.fill(value=text)
            for count in (self.store.increment, self.store.decrement):
                self.assertIs(self.ask(count(KEY, 1, 0, 0)), Refusal.NOT_A_NUMBER)
            self.assertEqual(self.value(), text)

    def test_number_as_strtoull_reads_it(self) -> None:
        """Blanks and a plus before a number, and anything behind a blank or NUL, do not matter."""
        for text in (
            b" 12", b"\t\r\n 12", b"+12", b" +12", b"012", b"0" * 30 + b"12", b"12 ", b"12\n",
            b"12 x", b"12\0", b"12\0x",
        ):  # fmt: skip
            self.fill(value=text)
            counted = self.ask(self.store.increment(KEY, 1, 0, 0))
            self.assertEqual(counted.value, b"13", text)

    # -- locks ----------------------------------------------------------------

    def test_lock_gives_a_new_cas_and_the_document(self) -> None:
        """GETL answers value and flags with the CAS that opens the lock."""
        before = self.fill(expiry=60)
        locked = self.done(self.store.get_and_lock(KEY, 5))
        self.assertEqual((locked.value, locked.flags), (b"5", 0xCAFE))
        self.assertEqual(locked.expiry, before.expiry)
        self.assertGreater(locked.cas, before.cas)
        self.assertEqual(locked.locked_until, START + 5)

    def test_a_locked_document_shows_it(self) -> None:
        """GET of a locked document says until when, so that a session can hide its CAS."""
        self.fill()
        self.done(self.store.get_and_lock(KEY, 5))
        self.assertGreater(self.done(self.store.get(KEY)).locked_until, self.clock.seconds())
        self.clock.advance(5)
        self.assertEqual(self.done(self.store.get(KEY)).locked_until, 0.0)

    def test_lock_times(self) -> None:
        """0 and more than 30 seconds mean 15; 1 to 30 are taken as given."""
        for asked, given in ((0, 15), (1, 1), (15, 15), (30, 30), (31, 15), (1 << 31, 15)):
            self.fill()
            self.done(self.store.get_and_lock(KEY, asked))
            self.clock.advance(given - 0.001)
            self.assertIs(self.ask(self.store.set(KEY, b"1")), Refusal.LOCKED)
            self.clock.advance(0.002)
            self.done(self.store.set(KEY, b"1"))

    def test_a_lapsed_lock_keeps_its_cas(self) -> None:
        """When a lock has lapsed its CAS is the document's, and UNLOCK finds no lock."""
        self.fill()
        cas = self.done(self.store.get_and_lock(KEY, 5)).cas
        self.clock.advance(5)
        self.assertIs(self.ask(self.store.unlock(KEY, cas)), Refusal.NOT_LOCKED)
        self.done(self.store.set(KEY, b"1", 0, 0, cas))

    def test_unlock(self) -> None:
        """UNLOCK opens a document to everybody and keeps its CAS."""
        self.fill()
        cas = self.done(self.store.get_and_lock(KEY, 5)).cas
        self.assertIsNone(self.ask(self.store.unlock(KEY, cas)))
        self.assertIs(self.ask(self.store.unlock(KEY, cas)), Refusal.NOT_LOCKED)
        self.assertEqual(self.done(self.store.get(KEY)).cas, cas)
        self.done(self.store.touch(KEY, 10))

    def test_a_mutation_with_the_cas_unlocks(self) -> None:
        """A mutation that brings the lock's CAS ends the lock."""
        for act in (
            lambda cas: self.store.set(KEY, b"1", 0, 0, cas),
            lambda cas: self.store.replace(KEY, b"1", 0, 0, cas),
            lambda cas: self.store.append(KEY, b"1", cas),
            lambda cas: self.store.prepend(KEY, b"1", cas),
            lambda cas: self.store.increment(KEY, 1, 0, 0, cas),
            lambda cas: self.store.decrement(KEY, 1, 0, 0, cas),
        ):
            self.fill()
            self.assertEqual(
                self.done(act(self.done(self.store.get_and_lock(KEY, 9)).cas)).locked_until, 0.0
            )
            self.assertEqual(self.done(self.store.get(KEY)).locked_until, 0.0)
            self.done(self.store.touch(KEY, 10))

    # -- everything at once ---------------------------------------------------

    def test_flush(self) -> None:
        """FLUSH empties all collections at once, locks notwithstanding; new documents stay."""
        self.fill()
        self.fill(NAMED)
        self.done(self.store.get_and_lock(KEY, 5))
        self.ask(self.store.flush())
        self.assertEqual([self.value(), self.value(NAMED)], [None, None])
        self.fill()
        self.assertEqual(self.value(), b"5")

    def test_flush_later(self) -> None:
        """With a delay, everything older than that moment vanishes then, younger stays."""
        self.fill()
        self.ask(self.store.flush(10))
        self.fill(b"younger")
        self.clock.advance(9.999)
        self.assertEqual([self.value(), self.value(b"younger")], [b"5", b"5"])
        self.clock.advance(0.002)
        self.fill(b"new")
        self.assertEqual(
            [self.value(), self.value(b"younger"), self.value(b"new")], [None, None, b"5"]
        )
        self.clock.advance(100)
        self.assertEqual(self.value(b"new"), b"5")

    def test_flush_at_a_time(self) -> None:
        """A delay above 30 days is unix time; one in the past, and a negative one, mean now."""
        for delay in (-1, 30 * DAYS + 1):
            self.fill()
            self.ask(self.store.flush(delay))
            self.assertIsNone(self.value())
        self.fill()
        self.ask(self.store.flush(int(START) + 10))
        self.assert_lives(9.75)

    def test_the_last_flush_counts(self) -> None:
        """A flush replaces one that still waits for its moment."""
        self.ask(self.store.flush(10))
        self.ask(self.store.flush(20))
        self.fill()
        self.assert_lives(20)
        self.ask(self.store.flush(10))
        self.ask(self.store.flush())
        self.fill()
        self.clock.advance(10)
        self.assertEqual(self.value(), b"5")

    def test_a_flush_that_is_due_counts(self) -> None:
        """A flush whose moment has come is not undone by one that is asked for afterwards."""
        self.fill()
        self.ask(self.store.flush(10))
        self.clock.advance(10)
        self.ask(self.store.flush(10))
        self.assertIsNone(self.value())

    def test_drop_collection(self) -> None:
        """A dropped collection is empty at once, the others are not; its id can be used again."""
        keys: list[Key] = [(8, b"%d" % number) for number in range(100)]
        for key in keys:
            self.fill(key)
        self.fill((9, b"1"))
        self.ask(self.store.drop_collection(8))
        self.ask(self.store.drop_collection(77))
        self.fill((8, b"new"))
        self.assertEqual([self.value(key) for key in keys], [None] * 100)
        self.assertEqual([self.value((9, b"1")), self.value((8, b"new"))], [b"5", b"5"])
        self.ask(self.store.drop_collection(8))
        self.assertIsNone(self.value((8, b"new")))

    def test_discard(self) -> None:
        """DISCARD removes what is there, locked or not, and minds nothing being there."""
        self.fill()
        self.done(self.store.get_and_lock(KEY, 5))
        self.ask(self.store.discard(KEY))
        self.ask(self.store.discard(KEY))
        self.assertIsNone(self.value())

    def test_stats(self) -> None:
        """Counters have memcached's names and count what they say."""
        self.fill()
        self.value()
        self.value(b"none")
        self.ask(self.store.touch(KEY, 0))
        self.ask(self.store.get_and_touch(b"none", 0))
        self.ask(self.store.increment(KEY, 1, 0, 0))
        self.ask(self.store.decrement(b"none", 1, 0, DO_NOT_CREATE))
        self.ask(self.store.set(KEY, b"", 0, 0, WRONG_CAS))
        self.ask(self.store.delete(b"none"))
        stats = self.ask(self.store.stats())
        expected = {
            "cmd_get": 3, "get_hits": 1, "get_misses": 2, "cmd_set": 2, "cmd_touch": 2,
            "touch_hits": 1, "touch_misses": 1, "incr_hits": 1, "incr_misses": 0,
            "decr_hits": 0, "decr_misses": 1, "cas_badval": 1, "delete_misses": 1,
            "delete_hits": 0, "curr_items": 1, "cmd_flush": 0,
        }  # fmt: skip
        self.assertEqual({name: stats[name] for name in expected}, expected)
        self.ask(self.store.flush())
        stats = self.ask(self.store.stats())
        self.assertEqual((stats["curr_items"], stats["cmd_flush"]), (0, 1))
