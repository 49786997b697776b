"""What tests of a store share, and the table of answers: `StoreCase`.

The table says what each operation answers where nothing is, where a document is and
where a locked one is, with and without a CAS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from kvproto.store import DO_NOT_CREATE, Document, IStore, Key, Refusal

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as _Case
else:
    _Case = object

__all__ = ["DAYS", "KEY", "NAMED", "START", "WRONG_CAS", "StoreCase"]

START = 1_700_000_000.25
"""Unix time at which every contract test begins, in seconds; not a whole second on purpose."""

KEY = b"key"
NAMED: Key = (8, b"key")
WRONG_CAS = 12345
DAYS = 86400

Operation: TypeAlias = Callable[[IStore, Key, int], Any]

OPERATIONS: dict[str, Operation] = {
    "get": lambda store, key, _: store.get(key),
    "set": lambda store, key, cas: store.set(key, b"7", 1, 0, cas),
    "add": lambda store, key, cas: store.add(key, b"7", 1, 0, cas),
    "replace": lambda store, key, cas: store.replace(key, b"7", 1, 0, cas),
    "append": lambda store, key, cas: store.append(key, b"7", cas),
    "prepend": lambda store, key, cas: store.prepend(key, b"7", cas),
    "delete": lambda store, key, cas: store.delete(key, cas),
    "increment": lambda store, key, cas: store.increment(key, 2, 7, 0, cas),
    "decrement": lambda store, key, cas: store.decrement(key, 2, 7, 0, cas),
    "increment existing": lambda store, key, cas: store.increment(key, 2, 7, DO_NOT_CREATE, cas),
    "touch": lambda store, key, _: store.touch(key, 50),
    "get_and_touch": lambda store, key, _: store.get_and_touch(key, 50),
    "get_and_lock": lambda store, key, _: store.get_and_lock(key, 5),
    "unlock": lambda store, key, cas: store.unlock(key, cas),
}

DONE = "done"
MISS = None
MISSING, EXISTS, LOCKED = Refusal.NOT_FOUND, Refusal.EXISTS, Refusal.LOCKED
NOT_STORED, NOT_LOCKED = Refusal.NOT_STORED, Refusal.NOT_LOCKED
NO_CAS = "takes no CAS"

TABLE: dict[str, tuple[Any, ...]] = {
    # operation        nothing there          a document, CAS given         a locked one, CAS given
    #                  no CAS      CAS        none        right    wrong    none    right     wrong
    "get": (MISS, NO_CAS, DONE, NO_CAS, NO_CAS, DONE, NO_CAS, NO_CAS),
    "set": (DONE, MISSING, DONE, DONE, EXISTS, LOCKED, DONE, LOCKED),
    "add": (DONE, MISSING, EXISTS, EXISTS, EXISTS, EXISTS, EXISTS, EXISTS),
    "replace": (MISSING, MISSING, DONE, DONE, EXISTS, LOCKED, DONE, LOCKED),
    "append": (NOT_STORED, NOT_STORED, DONE, DONE, EXISTS, LOCKED, DONE, LOCKED),
    "prepend": (NOT_STORED, NOT_STORED, DONE, DONE, EXISTS, LOCKED, DONE, LOCKED),
    "delete": (MISSING, MISSING, DONE, DONE, EXISTS, LOCKED, DONE, LOCKED),
    "increment": (DONE, MISSING, DONE, DONE, EXISTS, LOCKED, DONE, LOCKED),
    "decrement": (DONE, MISSING, DONE, DONE, EXISTS, LOCKED, DONE, LOCKED),
    "increment existing": (MISSING, MISSING, DONE, DONE, EXISTS, LOCKED, DONE, LOCKED),
    "touch": (MISSING, NO_CAS, DONE, NO_CAS, NO_CAS, LOCKED, NO_CAS, NO_CAS),
    "get_and_touch": (MISSING, NO_CAS, DONE, NO_CAS, NO_CAS, LOCKED, NO_CAS, NO_CAS),
    "get_and_lock": (MISSING, NO_CAS, DONE, NO_CAS, NO_CAS, LOCKED, NO_CAS, NO_CAS),
    "unlock": (MISSING, MISSING, NOT_LOCKED, NOT_LOCKED, NOT_LOCKED, LOCKED, DONE, LOCKED),
}
"""What each operation answers in each state; the columns are those of `StoreCase.columns`."""


class StoreCase(_Case):
    """Makes a store on a clock, asks it, and holds it to the table."""

    def make_store(self, now: Callable[[], float]) -> IStore:
        """Make an empty store; override this.

        Args:
            now: Returns unix time in seconds.
        """
        raise NotImplementedError

    def settle(self) -> None:
        """Let the store finish what it was asked; override it where answers need a push."""

    def setUp(self) -> None:
        """Make a store at `START`."""
        self.clock = Clock()
        self.clock.rightNow = START
        self.store = self.make_store(self.clock.seconds)

    # -- helpers --------------------------------------------------------------

    def ask(self, answer: Any) -> Any:
        """Return what a store's method answered, now or by Deferred."""
        if isinstance(answer, Deferred):
            self.settle()
            return self.successResultOf(answer)
        return answer

    def done(self, answer: Any) -> Document:
        """Return the document that an operation answered, which must not have refused."""
        document = self.ask(answer)
        self.assertIsInstance(document, Document)
        assert isinstance(document, Document)
        return document

    def value(self, key: Key = KEY) -> bytes | None:
        """Return the value under a key, None when there is no document."""
        document = self.ask(self.store.get(key))
        return None if document is None else document.value

    def fill(self, key: Key = KEY, value: bytes = b"5", expiry: int = 0) -> Document:
        """Store a document without conditions."""
        return self.done(self.store.set(key, value, 0xCAFE, expiry))

    # -- the table ------------------------------------------------------------

    def ways_to_be_gone(self) -> dict[str, Callable[[Key], None]]:
        """Return ways to bring a key into the state "nothing there"."""

        def expired(key: Key) -> None:
            self.fill(key, expiry=10)
            self.clock.advance(10)

        def expired_while_locked(key: Key) -> None:
            self.fill(key, expiry=10)
            self.done(self.store.get_and_lock(key, 30))
            self.clock.advance(10)

        def born_expired(key: Key) -> None:
            self.fill(key)
            self.fill(key, expiry=-1)

        def deleted(key: Key) -> None:
            self.fill(key)
            self.done(self.store.delete(key))

        def discarded(key: Key) -> None:
            self.fill(key)
            self.done(self.store.get_and_lock(key, 30))
            self.ask(self.store.discard(key))

        def flushed(key: Key) -> None:
            self.fill(key)
            self.ask(self.store.flush())

        def flushed_later(key: Key) -> None:
            self.ask(self.store.flush(10))
            self.fill(key)
            self.clock.advance(10)

        return {
            "never there": lambda key: None,
            "expired": expired,
            "expired while locked": expired_while_locked,
            "born expired": born_expired,
            "deleted": deleted,
            "discarded": discarded,
            "flushed": flushed,
            "flushed later": flushed_later,
        }

    def columns(self, key: Key) -> list[Callable[[], int]]:
        """Return functions that bring ``key`` into each column's state and return a CAS."""

        def lock() -> int:
            self.fill(key)
            return self.done(self.store.get_and_lock(key, 20)).cas

        def locked_without_cas() -> int:
            lock()
            return 0

        def locked_with_wrong_cas() -> int:
            before = self.fill(key).cas
            self.done(self.store.get_and_lock(key, 20))
            return before

        def present() -> int:
            self.fill(key)
            return 0

        def present_with_wrong_cas() -> int:
            self.fill(key)
            return WRONG_CAS

        return [
            present,
            lambda: self.fill(key).cas,
            present_with_wrong_cas,
            locked_without_cas,
            lock,
            locked_with_wrong_cas,
        ]

    def check(self, name: str, key: Key, cas: int, expected: Any, state: str) -> None:
        """Run one operation and hold its answer, and what is there afterwards, to the table."""
        if expected is NO_CAS:
            return
        before = self.ask(self.store.get(key))
        answer = self.ask(OPERATIONS[name](self.store, key, cas))
        after = self.ask(self.store.get(key))
        case = f"{name} on {state}, cas {cas}"
        if expected is not DONE:
            self.assertIs(answer, expected, case)
            self.assertEqual(after, before, case)
        elif name == "unlock":
            self.assertIsNone(answer, case)
        else:
            self.assertIsInstance(answer, Document, case)

    def test_table_nothing_there(self) -> None:
        """Where nothing is, or is any more, each operation answers as the table says."""
        for name, row in TABLE.items():
            for key in (KEY, NAMED):
                for state, leave in self.ways_to_be_gone().items():
                    for cas, expected in ((0, row[0]), (WRONG_CAS, row[1])):
                        self.setUp()
                        leave(key)
                        self.check(name, key, cas, expected, state)

    def test_table_something_there(self) -> None:
        """Where a document is, locked or not, each operation answers as the table says."""
        for name, row in TABLE.items():
            for key in (KEY, NAMED):
                for number, expected in enumerate(row[2:]):
                    self.setUp()
                    cas = self.columns(key)[number]()
                    self.check(name, key, cas, expected, f"column {number}")

    def test_interface(self) -> None:
        """The store provides what IStore asks for."""
        self.assertTrue(verifyObject(IStore, self.store))
