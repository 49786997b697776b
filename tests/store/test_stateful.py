"""MemoryStore against a plain model, with time passing and locks; eviction off."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.store import DO_NOT_CREATE, Document, Key, MemoryStore, Refusal
from tests.examples import examples

START = 1_700_000_000.5
KEYS: list[Key] = [b"a", b"b", (8, b"a"), (9, b"a")]
CAS_CHOICES = ("none", "right", "wrong")

keys = st.sampled_from(KEYS)
values = st.sampled_from([b"", b"1", b"18446744073709551615", b"text", b"x" * 50])
expiries = st.sampled_from([0, 0, 1, 5, 30, 2592000, int(START) + 20, int(START) - 1, -1])
cas_choices = st.sampled_from(CAS_CHOICES)


@dataclass(frozen=True)
class Entry:
    """What the model knows of one document."""

    value: bytes
    flags: int
    gone_at: float
    cas: int
    locked_until: float = 0.0


class StoreMachine(RuleBasedStateMachine):
    """Asks the store and the model the same, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.rightNow = START
        self.store = MemoryStore(self.clock.seconds, 1 << 30, evict=False)
        self.model: dict[Key, Entry] = {}
        self.flush_at: float | None = None
        self.last_cas = 0

    # -- the model ------------------------------------------------------------

    def entry(self, key: Key) -> Entry | None:
        now = self.clock.seconds()
        if self.flush_at is not None and now >= self.flush_at:
            self.model.clear()
            self.flush_at = None
        entry = self.model.get(key)
        if entry is not None and now >= entry.gone_at:
            del self.model[key]
            return None
        return entry

    def gone_at(self, expiry: int) -> float:
        if expiry == 0:
            return float("inf")
        if 0 < expiry <= 2592000:
            return self.clock.seconds() + expiry
        return expiry

    def barred(self, entry: Entry, cas: int) -> Refusal | None:
        if entry.locked_until > self.clock.seconds():
            return None if cas == entry.cas else Refusal.LOCKED
        return Refusal.EXISTS if cas not in {0, entry.cas} else None

    def cas_of(self, key: Key, choice: str) -> int:
        entry = self.entry(key)
        return {"none": 0, "right": entry.cas if entry else 77, "wrong": 99}[choice]

    def put(self, key: Key, answer: object, entry: Entry) -> None:
        """Compare a successful mutation's answer, and take it into the model."""
        assert isinstance(answer, Document), answer
        assert answer.cas > self.last_cas
        self.last_cas = answer.cas
        assert (answer.value, answer.flags, answer.locked_until) == (entry.value, entry.flags, 0.0)
        self.model[key] = replace(entry, cas=answer.cas, locked_until=0.0)

    # -- the rules ------------------------------------------------------------

    @rule(key=keys)
    def get(self, key: Key) -> None:
        self.compare(key)

    @rule(
        key=keys, value=values, expiry=expiries, choice=cas_choices, keep=st.booleans(),
        verb=st.sampled_from(["set", "add", "replace"]),
    )  # fmt: skip
    def write(
        self, key: Key, value: bytes, expiry: int, choice: str, keep: bool, verb: str
    ) -> None:
        cas = self.cas_of(key, choice)
        old = self.entry(key)
        method = getattr(self.store, verb)
        answer = method(key, value, 7, expiry, cas, preserve_expiry=keep)
        if old is None:
            refusal = Refusal.NOT_FOUND if cas or verb == "replace" else None
        else:
            refusal = Refusal.EXISTS if verb == "add" else self.barred(old, cas)
        if refusal is not None:
            assert answer is refusal
            return
        gone_at = old.gone_at if keep and old is not None else self.gone_at(expiry)
        self.put(key, answer, Entry(value, 7, gone_at, 0))

    @rule(key=keys, value=values, choice=cas_choices, front=st.booleans())
    def extend(self, key: Key, value: bytes, choice: str, front: bool) -> None:
        cas = self.cas_of(key, choice)
        old = self.entry(key)
        answer = (self.store.prepend if front else self.store.append)(key, value, cas)
        if old is None:
            assert answer is Refusal.NOT_STORED
        elif self.barred(old, cas) is not None:
            assert answer is self.barred(old, cas)
        else:
            whole = value + old.value if front else old.value + value
            self.put(key, answer, replace(old, value=whole))

    @rule(
        key=keys, delta=st.sampled_from([0, 1, 2**64 - 1]), expiry=expiries, choice=cas_choices,
        create=st.booleans(), up=st.booleans(),
    )  # fmt: skip
    def count(self, key: Key, delta: int, expiry: int, choice: str, create: bool, up: bool) -> None:
        cas = self.cas_of(key, choice)
        old = self.entry(key)
        count = self.store.increment if up else self.store.decrement
        answer = count(key, delta, 9, expiry if create else DO_NOT_CREATE, cas)
        if old is None:
            if cas or not create:
                assert answer is Refusal.NOT_FOUND
            else:
                self.put(key, answer, Entry(b"9", 0, self.gone_at(expiry), 0))
        elif self.barred(old, cas) is not None:
            assert answer is self.barred(old, cas)
        elif (
            (old.value not in {b"1", b"9", b"0"} and not old.value.isdigit())
            or len(old.value) > 20
            or int(old.value) >= 2**64
        ):
            assert answer is Refusal.NOT_A_NUMBER
        else:
            number = (int(old.value) + delta) % 2**64 if up else max(0, int(old.value) - delta)
            self.put(key, answer, replace(old, value=str(number).encode()))

    @rule(key=keys, choice=cas_choices)
    def delete(self, key: Key, choice: str) -> None:
        cas = self.cas_of(key, choice)
        old = self.entry(key)
        answer = self.store.delete(key, cas)
        if old is None:
            assert answer is Refusal.NOT_FOUND
        elif self.barred(old, cas) is not None:
            assert answer is self.barred(old, cas)
        else:
            assert isinstance(answer, Document)
            assert answer.deleted
            del self.model[key]

    @rule(key=keys, expiry=expiries, read=st.booleans())
    def touch(self, key: Key, expiry: int, read: bool) -> None:
        old = self.entry(key)
        answer = (self.store.get_and_touch if read else self.store.touch)(key, expiry)
        if old is None:
            assert answer is Refusal.NOT_FOUND
        elif old.locked_until > self.clock.seconds():
            assert answer is Refusal.LOCKED
        elif self.gone_at(expiry) == old.gone_at:
            assert isinstance(answer, Document)
            assert answer.cas == old.cas
        else:
            self.put(key, answer, replace(old, gone_at=self.gone_at(expiry)))

    @rule(key=keys, seconds=st.sampled_from([0, 1, 10, 30, 31]))
    def lock(self, key: Key, seconds: int) -> None:
        old = self.entry(key)
        answer = self.store.get_and_lock(key, seconds)
        if old is None:
            assert answer is Refusal.NOT_FOUND
        elif old.locked_until > self.clock.seconds():
            assert answer is Refusal.LOCKED
        else:
            assert isinstance(answer, Document)
            assert answer.cas > self.last_cas
            self.last_cas = answer.cas
            until = self.clock.seconds() + (seconds if 0 < seconds <= 30 else 15)
            self.model[key] = replace(old, cas=answer.cas, locked_until=until)

    @rule(key=keys, choice=cas_choices)
    def unlock(self, key: Key, choice: str) -> None:
        cas = self.cas_of(key, choice)
        old = self.entry(key)
        answer = self.store.unlock(key, cas)
        if old is None:
            assert answer is Refusal.NOT_FOUND
        elif old.locked_until <= self.clock.seconds():
            assert answer is Refusal.NOT_LOCKED
        elif cas != old.cas:
            assert answer is Refusal.LOCKED
        else:
            assert answer is None
            self.model[key] = replace(old, locked_until=0.0)

    @rule(key=keys)
    def discard(self, key: Key) -> None:
        self.entry(key)
        self.store.discard(key)
        self.model.pop(key, None)

    @rule(delay=st.sampled_from([0, -1, 1, 10]))
    def flush(self, delay: int) -> None:
        self.entry(b"")
        self.store.flush(delay)
        if delay > 0:
            self.flush_at = self.clock.seconds() + delay
        else:
            self.flush_at = None
            self.model.clear()

    @rule(collection=st.sampled_from([8, 9]))
    def drop(self, collection: int) -> None:
        self.entry(b"")
        self.store.drop_collection(collection)
        for key in list(self.model):
            if isinstance(key, tuple) and key[0] == collection:
                del self.model[key]

    @rule(seconds=st.sampled_from([0.25, 1.0, 5.0, 12.5, 40.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def clock_goes_back(self) -> None:
        """A small step back, as NTP makes them: CAS must still grow."""
        if self.flush_at is None and not any(
            entry.gone_at < float("inf") or entry.locked_until for entry in self.model.values()
        ):
            self.clock.rightNow -= 0.5

    # -- what always holds ----------------------------------------------------

    def compare(self, key: Key) -> None:
        entry = self.entry(key)
        document = self.store.get(key)
        if entry is None:
            assert document is None, document
            return
        assert document is not None
        assert (document.value, document.flags, document.cas) == (
            entry.value, entry.flags, entry.cas,
        )  # fmt: skip
        now = self.clock.seconds()
        assert document.locked_until == (entry.locked_until if entry.locked_until > now else 0.0)
        assert (document.expires_at or float("inf")) == entry.gone_at

    @invariant()
    @precondition(lambda self: self.flush_at is None)
    def table_is_consistent(self) -> None:
        store = self.store
        check_books(store)
        for key in list(self.model):
            if self.entry(key) is not None:
                assert key in store.table.items

    def teardown(self) -> None:
        for key in KEYS:
            self.compare(key)


def check_books(store: MemoryStore) -> None:
    """Count the store's documents again and compare with its running totals."""
    from kvproto.store.table import footprint

    tables = [store.table.items, store.table.tombstones, *store.table.garbage]
    assert store.table.used == sum(footprint(*item) for table in tables for item in table.items())
    assert not store.table.items.keys() & store.table.tombstones.keys()
    named = {key for key in store.table.items if isinstance(key, tuple)}
    indexed = {key for index in store.table.collections.values() for key in index}
    swept = {key for _, index in store.table.sweeping for key in index}
    assert indexed <= named <= indexed | swept
    assert all(index for index in store.table.collections.values())
    queued = {key for keys in store.table.due._keys.values() for key in keys}
    assert {key for key, document in store.table.items.items() if document.expires_at} <= queued
    assert store.table.due.entries == sum(len(keys) for keys in store.table.due._keys.values())


class ModelTests(SynchronousTestCase):
    """Whatever is asked in whatever order, the store answers as the plain model does."""

    def test_store_is_like_the_model(self) -> None:
        """Any sequence of operations, with time passing, gives the model's answers."""
        StoreMachine.TestCase.settings = examples(150, steps=40)
        case = StoreMachine.TestCase()
        case.runTest()
