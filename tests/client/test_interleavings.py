"""Whatever happens in whatever order, every Deferred fires exactly once, with its own answer."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.client import KVClient, Limits, UnansweredError
from kvproto.wire.binary import encode_response
from kvproto.wire.constants import Opcode, Status
from tests.client.peer import Endpoint, Peer, agrees, encode, settle
from tests.examples import examples

LIMITS = Limits(
    timeout_s=2, dial_timeout_s=3, close_timeout_s=2, silence_s=4, max_in_flight=8, max_waiting=8
)
MISSING = b"missing"


class Watched:
    """One request, and how often its Deferred has fired."""

    def __init__(self, wanted: Any, deferred: Deferred[Any]) -> None:
        self.wanted = wanted
        self.fired: list[Any] = []
        self.deferred = deferred
        deferred.addBoth(self.fired.append)


class Interleavings(RuleBasedStateMachine):
    """A client, a server that answers when it likes, and a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.endpoint = Endpoint(self.clock)
        self.client = KVClient(
            self.endpoint, self.clock, limits=LIMITS, delays=lambda failures: 0.5
        )
        self.client.startService()
        self.endpoint.accept(agrees())
        settle(self.clock)
        self.watched: list[Watched] = []
        self.counter = 0

    def key(self) -> bytes:
        self.counter += 1
        return b"key %d." % self.counter

    def peer(self) -> Peer | None:
        peers = self.endpoint.peers
        return peers[-1] if peers and not peers[-1].gone else None

    @rule(timeout_s=st.sampled_from([0.5, 2.0, 6.0]))
    def get(self, timeout_s: float) -> None:
        key = self.key()
        self.watched.append(Watched(key, self.client.get(key, timeout_s=timeout_s)))

    @rule(count=st.integers(1, 3))
    def get_many(self, count: int) -> None:
        keys = [self.key() for _ in range(count)]
        self.watched.append(Watched(set(keys), self.client.get_many(keys)))

    @rule()
    def stats(self) -> None:
        self.watched.append(Watched("stats", self.client.stats()))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = [one for one in self.watched if not one.fired]
        if waiting:
            data.draw(st.sampled_from(waiting)).deferred.cancel()

    @rule(data=st.data(), count=st.integers(1, 6))
    def replies(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.reply(data, data.draw(st.booleans()), data.draw(st.integers(1, 60)))

    def reply(self, data: st.DataObject, hit: bool, cut: int) -> None:
        peer = self.peer()
        if peer is None or not peer.asked:
            return
        # Batches are answered in order, as `kvproto.client` has every right to expect.
        batch = next((i for i, one in enumerate(peer.asked) if one.opcode == Opcode.GETQ), None)
        candidates = [
            one
            for i, one in enumerate(peer.asked)
            if batch is None or i <= batch or one.opcode not in {Opcode.GETQ, Opcode.NOOP}
        ]
        request = data.draw(st.sampled_from(candidates))
        peer.asked.remove(request)
        said = self.answer(request, hit)
        peer.send(said[:cut])
        if not peer.gone:
            peer.send(said[cut:])

    def answer(self, request: Any, hit: bool) -> bytes:
        if request.opcode == Opcode.STAT:
            return encode(request, key=b"name", value=b"stats") + encode(request)
        if request.opcode == Opcode.GETQ:
            return encode(request, extras=bytes(4), value=request.key) if hit else b""
        if request.opcode == Opcode.GET:
            if hit:
                return encode(request, extras=bytes(4), value=request.key)
            return encode(request, Status.NOT_FOUND)
        return encode(request)

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.peer() is None)
    @rule()
    def recover(self) -> None:
        """Get a connection, from wherever things stand."""
        self.client.startService()
        self.clock.advance(0.5)
        if self.endpoint.attempts:
            self.endpoint.accept(agrees())
            settle(self.clock)

    @rule(what=st.sampled_from(["lose", "refuse", "junk", "reply to nothing", "stop", "start"]))
    def disturb(self, what: str) -> None:
        peer = self.peer()
        if what == "stop":
            self.client.close()
        elif what == "start":
            self.client.startService()
        elif what == "refuse" and self.endpoint.attempts:
            self.endpoint.refuse(ConnectionLost())
        elif what == "lose" and peer is not None:
            peer.lose(ConnectionLost())
        elif what == "junk" and peer is not None:
            peer.send(b"junk")
        elif what == "reply to nothing" and peer is not None:
            peer.send(encode_response(Opcode.GET, opaque=0xFFFF))

    @rule(full=st.booleans())
    def fill(self, full: bool) -> None:
        peer = self.peer()
        if peer is not None and peer.producer is not None:
            if full:
                peer.fill()
            else:
                peer.empty()

    @invariant()
    def fired_once_and_right(self) -> None:
        for one in self.watched:
            assert len(one.fired) <= 1, one.wanted
            for result in one.fired:
                self.judge(one, result)

    def judge(self, one: Watched, result: Any) -> None:
        if isinstance(result, Failure):
            assert result.check(CancelledError, UnansweredError), result
        elif isinstance(one.wanted, bytes):
            assert result is None or result.value == one.wanted
        elif isinstance(one.wanted, set):
            assert set(result) <= one.wanted
            assert all(found.value == key for key, found in result.items())
        else:
            assert result == {"name": one.wanted}

    @invariant()
    def bounded(self) -> None:
        assert len(self.clock.getDelayedCalls()) <= 8
        protocol = self.client.protocol
        if protocol is not None:
            assert protocol.waiting <= LIMITS.max_waiting
            assert protocol.in_flight <= LIMITS.max_in_flight + 4

    def teardown(self) -> None:
        closed: list[Any] = []
        self.client.close().addBoth(closed.append)
        self.clock.pump([0.5] * 20)
        assert closed == [None]
        assert self.clock.getDelayedCalls() == []
        for one in self.watched:
            assert len(one.fired) == 1, one.wanted
        self.fired_once_and_right()
        sent = b"".join(data for peer in self.endpoint.peers for data in peer.writes)
        for one in self.watched:
            if isinstance(one.wanted, bytes):
                # Nothing is repeated by itself, and what "was not sent" really was not.
                assert sent.count(one.wanted) <= 1
                failed = one.fired[0]
                if isinstance(failed, Failure) and not getattr(failed.value, "written", True):
                    assert one.wanted not in sent


class InterleavingTests(SynchronousTestCase):
    """Replies, cancellations, deadlines, losses, stops, in any order."""

    def test_any_order(self):
        """Every Deferred fires exactly once, never with another's answer; nothing is left."""
        run_state_machine_as_test(
            Interleavings,
            settings=examples(150, steps=40),
        )
