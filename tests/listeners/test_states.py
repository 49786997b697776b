"""The table itself, and every pair of it on a real handoff."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.listeners.states import (
    DEADLINE_OF,
    LIVE_STATES,
    TABLE,
    Action,
    Event,
    State,
    Timeouts,
    render_table,
)
from tests.listeners.support import Bench, Owner

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "handoff.md"

ENDINGS = set(Event) - {
    Event.HANDSHAKE_DONE,
    Event.CLAIMED,
    Event.CLAIM_FAILED,
    Event.DRAIN,
    Event.OVER_LIMIT,
    Event.PEER_ENDED,
    Event.IDLE,
    Event.TOO_OLD,
}
"""Events after which no live connection stays as it was."""


class TableTests(SynchronousTestCase):
    """What must hold for the table whatever its rows say."""

    def test_every_pair_has_an_answer(self) -> None:
        """Each state answers each event."""
        self.assertEqual(
            {(state, event) for state in State for event in Event},
            {(state, event) for state, row in TABLE.items() for event in row},
        )

    def test_nothing_comes_back(self) -> None:
        """Nobody leaves Closed, and Cancelled leads nowhere but there."""
        self.assertEqual({move.state for move in TABLE[State.CLOSED].values()}, {State.CLOSED})
        self.assertEqual(
            {move.state for move in TABLE[State.CANCELLED].values()},
            {State.CANCELLED, State.CLOSED},
        )

    def test_endings_end(self) -> None:
        """An event that ends connections leaves none of them live."""
        for state in LIVE_STATES:
            for event in ENDINGS:
                self.assertNotIn(TABLE[state][event].state, LIVE_STATES, (state, event))

    def test_only_owned_has_no_deadline(self) -> None:
        """Each state but Owned and Closed starts a timeout that exists."""
        names = {state: name for state, name in DEADLINE_OF.items() if name is not None}
        self.assertEqual(set(State) - set(names), {State.OWNED, State.CLOSED})
        for name in names.values():
            self.assertGreater(getattr(Timeouts(), name), 0)
        for row in TABLE.values():
            for move in row.values():
                if move.deadline is not None:
                    self.assertIs(move.state, State.CLOSING)
                    self.assertGreater(getattr(Timeouts(), move.deadline), 0)

    def test_finish_exactly_on_the_way_to_closed(self) -> None:
        """Whoever becomes Closed leaves the ledger, and nobody else."""
        for state, row in TABLE.items():
            for event, move in row.items():
                leaving = move.state is State.CLOSED and state is not State.CLOSED
                self.assertEqual(Action.FINISH in move.actions, leaving, (state, event))

    def test_page_shows_the_table(self) -> None:
        """The documentation shows this table and no other."""
        self.assertIn(render_table(), PAGE.read_text(encoding="utf-8"))


class PairTests(SynchronousTestCase):
    """Every (state, event) pair, on a handoff that came there by ordinary events."""


def _pair_test(state: State, event: Event):
    move = TABLE[state][event]

    def test(self: PairTests) -> None:
        bench = Bench()
        handoff, transport = bench.bring_to(state)
        self.assertIs(handoff.state, state)
        pending = list(bench.controller.pending)
        transport.calls.clear()
        bench.controller.answer = "later"
        if event is Event.PEER_LOST:
            transport.lose()
        elif event is Event.CLAIMED and state is State.OFFERED:
            pending[0].callback(Owner())
        else:
            handoff.fire(event, "for a test")
        self.assertIs(handoff.state, move.state)
        self.assertEqual("abort" in transport.calls, Action.ABORT in move.actions)
        self.assertEqual(len(bench.ledger), 0 if move.state is State.CLOSED else 1)
        if Action.TOO_LATE in move.actions:
            self.assertEqual(bench.controller.late, [handoff])
        if Action.CANCEL_CLAIM in move.actions:
            self.assertEqual(bench.controller.cancelled, pending)
        # Whatever happened: left alone, what has a deadline is gone when it has come.
        for _ in range(4):
            bench.clock.advance(60)
        if handoff.state is not State.OWNED:
            self.assertEqual(len(bench.ledger), 0)
            self.assertEqual(bench.clock.getDelayedCalls(), [])
        self.flushLoggedErrors()

    test.__doc__ = f"In state {state.value!r}, event {event.value!r} leads to {move.state.value!r}."
    return test


for _state in State:
    for _event in Event:
        _name = f"test_{_state.name}_{_event.name}".lower()
        setattr(PairTests, _name, _pair_test(_state, _event))
