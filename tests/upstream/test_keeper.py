"""The record of epochs: what is read beside commands, by what is known already."""

from __future__ import annotations

import gc
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.errors import ForeignData, StoreUnavailable
from kvproto.upstream.epochs import Epochs
from kvproto.upstream.keeper import EpochKeeper
from kvproto.upstream.resp import EngineFailure, Fate
from tests.upstream.fake_engine import FakeEngine
from tests.upstream.test_store import turn

NAME = b"name"
OLD, SAME, NEW = (Epochs(number, number) for number in (10, 20, 30))


class KeeperTests(SynchronousTestCase):
    """`EpochKeeper` over an engine in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.content: dict[bytes, bytes] = {}
        self.engine = FakeEngine(self.clock, self.content)
        self.adopted: list[Epochs] = []
        self.keeper = EpochKeeper(self.engine, b"b", self.adopted.append)

    def places(self) -> list[bytes]:
        return [self.keeper._name(tag) for _, tag in self.engine.tags]

    def ask(self, answer: Any) -> Any:
        return self.successResultOf(turn(self.clock, answer))

    def test_every_pair(self) -> None:
        """Of two records the newer is believed; where an older one or none is, it is written."""
        for known in (None, SAME):
            for found in (None, OLD, SAME, NEW):
                self.setUp()
                keeper = self.keeper
                if known is not None:
                    keeper._adopt(known, known.encode())
                    self.adopted.clear()
                if found is not None:
                    self.content[NAME] = found.encode()
                keeper._found(self.content.get(NAME), 0, NAME)
                turn(self.clock, None)
                self.clock.advance(0)
                newest = max(
                    (each for each in (known, found) if each is not None),
                    key=lambda each: each.version,
                    default=None,
                )
                self.assertEqual(keeper.record, newest, (known, found))
                self.assertEqual(self.adopted, [] if newest is known else [newest])
                expected = None if newest is None else newest.encode()
                self.assertEqual(self.content.get(NAME), expected, (known, found))

    def test_unreadable(self) -> None:
        """What is no record changes nothing."""
        self.keeper._adopt(SAME, SAME.encode())
        self.keeper._found(b"nonsense", 0, NAME)
        self.assertEqual((self.keeper.record, self.content), (SAME, {}))

    def test_one_repair(self) -> None:
        """While a place is being written it is not written again."""
        self.keeper._adopt(SAME, SAME.encode())
        for _ in range(5):
            self.keeper._found(None, 0, NAME)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(0)
        self.assertEqual(self.content[NAME], SAME.encode())
        del self.content[NAME]
        self.keeper._found(None, 0, NAME)
        self.clock.advance(0)
        self.assertEqual(self.content[NAME], SAME.encode())

    def test_load_and_change(self) -> None:
        """The first record is made by whoever comes first; a change is in all places."""
        self.ask(self.keeper.load())
        first = self.keeper.record
        other = EpochKeeper(self.engine, b"b", self.adopted.append)
        self.ask(other.load())
        self.assertEqual(other.record, first)
        self.ask(other.change(lambda record, micros: record.flushed(0.0, 0.0, micros)))
        assert first is not None
        assert other.record is not None
        self.assertGreater(other.record.version, first.version)
        for place in self.places():
            self.assertEqual(self.content[place], other.record.encode())

    def test_always_overtaken(self) -> None:
        """A change that always loses is given up."""

        def interfere(words: list[bytes]) -> None:
            if words[0] == b"EVALSHA" and len(words) > 5:
                place = self.places()[0]
                version = int(self.content[place][:16]) + 1
                self.content[place] = Epochs(version, version).encode()

        self.ask(self.keeper.load())
        self.engine.before = interfere
        changed = self.keeper.change(lambda record, micros: record.flushed(0.0, 0.0, micros))
        self.failureResultOf(turn(self.clock, changed), StoreUnavailable)

    def test_no_answer(self) -> None:
        """A load without an answer fails, and a later one does not."""
        self.engine.before = lambda words: EngineFailure(Fate.UNANSWERED, "timeout", "")
        self.failureResultOf(turn(self.clock, self.keeper.load()), StoreUnavailable)
        self.assertIsNone(self.keeper.record)
        self.engine.before = lambda words: None
        self.ask(self.keeper.load())
        self.assertIsNotNone(self.keeper.record)

    def test_no_answer_to_a_change(self) -> None:
        """A change that gets no answer fails, and nothing that it had asked is left over."""
        self.ask(self.keeper.load())
        self.engine.before = lambda words: EngineFailure(Fate.UNANSWERED, "timeout", "")
        changed = self.keeper.change(lambda record, micros: record.flushed(0.0, 0.0, micros))
        self.failureResultOf(turn(self.clock, changed), StoreUnavailable)
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_change_of_an_unreadable_record(self) -> None:
        """A flush writes what is known over a record that cannot be read; who knows none fails."""
        self.ask(self.keeper.load())
        for place in self.places():
            self.content[place] = b"nonsense"
        other = EpochKeeper(self.engine, b"b", self.adopted.append)
        self.failureResultOf(turn(self.clock, other.load()), ForeignData)
        self.ask(self.keeper.change(lambda record, micros: record.flushed(0.0, 0.0, micros)))
        assert self.keeper.record is not None
        self.assertEqual(self.content[self.places()[0]], self.keeper.record.encode())
