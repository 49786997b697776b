"""Read, decide, replace if it is still the same: operations by their rules, in an engine.

`Changer` takes a `Change`, an operation with its rule and arguments, through these steps until
nobody has come in between:

1. The document is read.
2. The rule decides (`kvproto.store.rules`).  If nothing is to be changed its answer is the answer.
3. A script replaces the document if its header is still the one that was read.  If it is not,
   the reply is what is there now, and the rule decides again.

Changes of one key by this process are done one after the other: so processes compete for a key,
and not clients, and the next change can begin with what the last one has left there.  That is only
an assumption, so an answer is never made of it alone; a replacement checks it.

Durable changes send their replacement over a connection of their own, together with WAIT, which
says how many replicas have it.  The two must travel on one connection: on another one WAIT would
know of no write, and be content.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.errors import DurabilityImpossible, OutcomeUnknown, StoreUnavailable, UpstreamError
from kvproto.store import Document, Key, Refusal, rules
from kvproto.store import partial as subdoc_rules
from kvproto.store.pieces import Pieces
from kvproto.store.rules import Decision, Effect, Limits, Rule
from kvproto.store.statistics import Statistics
from kvproto.upstream.cluster import ASKING
from kvproto.upstream.codec import decode, encode, header_of
from kvproto.upstream.connection import Call
from kvproto.upstream.engine import MOST_TRIES, Engine, error_of
from kvproto.upstream.keeper import EpochKeeper
from kvproto.upstream.resp import EngineFailure, Fate, ReplyError, command
from kvproto.upstream.scripts import REPLACE_IF, with_text
from kvproto.upstream.server import Server

__all__ = ["Change", "Changer"]

log = make_logger()

MOST_LOSSES = 100
"""How often somebody may come in between before a change is given up as not performed."""

_MOST_WAIT_S = 10.0


class Change:
    """One operation on its way.

    Args:
        key: Of which document.
        rule: What to do.
        args: What the rule is given behind the document and the time.
        tombstones: Whether the rule may see a deleted document.
        durable: Seconds that it may wait for replicas; None when it need not.

    Attributes:
        waiting: Who wants the answer.
        prefix: The prefix of the name.
        name: The document's name in the engine.
        slot: Of the name.
        raw: What is there, as far as is known; None for nothing.
        sure: Whether that was read for this change.
        floor: The CAS of what is there.
        decision: What the rule said last.
        made: What is to be there; empty for nothing.
        losses: How often somebody came in between.
        replicas: How many replicas must have it.
        tries: How often a durable one was sent on to somewhere else.
    """

    __slots__ = (
        "args", "decision", "durable", "floor", "key", "losses", "made", "name", "prefix", "raw",
        "replicas", "rule", "slot", "sure", "tombstones", "tries", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        key: Key,
        rule: Rule[Any],
        args: tuple[Any, ...],
        tombstones: int = 0,
        durable: float | None = None,
    ) -> None:
        self.key = key
        self.rule = rule
        self.args = args
        self.tombstones = tombstones
        self.durable = durable
        self.waiting: Deferred[Any] = Deferred()
        self.prefix = self.name = b""
        self.slot = 0
        self.raw: bytes | None = None
        self.sure = False
        self.floor = 0
        self.decision: Decision[Any] | None = None
        self.made = b""
        self.losses = 0
        self.replicas = 0
        self.tries = 0


class ChangedStore(Protocol):
    """What a `Changer` uses of the store whose documents it changes."""

    limits: Limits
    statistics: Statistics
    keeper: EpochKeeper
    now: Callable[[], float]

    def locate(self, key: Key) -> tuple[bytes, bytes] | None:
        """Return the prefix and the name of a document; None when epochs are not known."""

    def prefix_of(self, key: Key) -> bytes | None:
        """Return the prefix that counts for a key now; an object to compare with."""

    def when_loaded(self, waiting: Deferred[Any], act: Callable[..., Any], *args: Any) -> Any:
        """Do something when epochs are known; fail if they cannot be."""

    def next_cas(self, floor: int) -> int:
        """Return a CAS larger than all before it."""

    def expiry(self, expires_at: float) -> bytes:
        """Return when the engine is to forget a document."""


class Changer:
    """Carries out changes.

    Args:
        store: Whose documents they change.
        engine: Where it keeps them.
    """

    def __init__(self, store: ChangedStore, engine: Engine) -> None:
        self._store = store
        self._engine = engine
        self._busy: dict[Key, deque[Change]] = {}
        self._pieces = Pieces(partial(self._engine.clock.callLater, 0))

    def begin(self, change: Change) -> Deferred[Any]:
        """Carry out a change; return a Deferred of its answer."""
        if change.rule is subdoc_rules.lookup_in:
            self._read(change)
            return change.waiting
        queue = self._busy.get(change.key)
        if queue is None:
            self._busy[change.key] = deque()
            self._start(change)
        else:
            queue.append(change)
        return change.waiting

    def _stamp(self, change: Change, document: Document) -> None:
        """Give a document the numbers that it will have if it is stored, unless it has them."""
        if not document.cas:
            document.cas = self._store.next_cas(change.floor)
        if not document.seqno:
            document.seqno = self._store.next_cas(change.floor)

    # the steps

    def _start(self, change: Change) -> None:
        if change.durable is None:
            self._read(change)
            return
        if not self._locate(change, self._start):
            return
        self._engine.replicas(change.slot).addCallbacks(
            self._know_replicas, self._failed, (change,), {}, (change,), {}
        ).addErrback(self._failed, change)

    def _know_replicas(self, found: tuple[int, int], change: Change) -> None:
        wanted, online = found
        # A majority of the primary and its replicas, without the primary itself.
        change.replicas = (1 + wanted) // 2
        if online < change.replicas:
            text = f"{online} replicas are there, {change.replicas} must be"
            self._end(change, Failure(DurabilityImpossible(text)))
        else:
            self._read(change)

    def _locate(self, change: Change, again: Any) -> bool:
        located = self._store.locate(change.key)
        if located is None:
            waiting: Deferred[None] = Deferred()
            self._store.when_loaded(waiting, again, change)
            waiting.addErrback(self._failed, change)
            return False
        change.prefix, change.name = located
        change.slot = self._engine.slot(change.name)
        return True

    def _read(self, change: Change) -> None:
        if not self._locate(change, self._read):
            return
        self._send(change, command(b"GET", change.name), self._was_read)

    def _send(self, change: Change, data: bytes, answered: Any, *, write: bool = False) -> None:
        call = Call(data, answered, write, change, change.slot)
        call.epoch = change.prefix
        call.rider = self._store.keeper
        self._engine.send(call)

    def _was_read(self, reply: Any, call: Call) -> None:
        change: Change = call.context
        if call.epoch is not self._store.prefix_of(change.key):
            self._read(change)
        elif reply is None or reply.__class__ is bytes:
            change.raw, change.sure = reply, True
            self._decide(change)
        else:
            self._settle(reply, call)

    def _decide(self, change: Change) -> None:
        """Ask the rule, and do what it says."""
        store = self._store
        decision: Decision[Any] | Deferred[Decision[Any]]
        try:
            old = None if change.raw is None else decode(change.raw)
            now = store.now()
            change.floor = 0 if old is None else old.cas
            found = rules.live(old, now)
            if found is not None and found.deleted and not change.tombstones:
                found = None
            in_pieces = subdoc_rules.IN_PIECES.get(change.rule)
            args = change.args
            if in_pieces is None:
                decision = change.rule(found, now, *args)
            else:
                if change.rule is subdoc_rules.mutate_in:
                    args = (*args[:-1], partial(self._stamp, change))
                decision = self._pieces.run(in_pieces(found, now, *args))
        except Exception:
            self._end(change, Failure())
            return
        if isinstance(decision, Deferred):
            decision.addCallbacks(
                self._decided, self._failed, (change,), errbackArgs=(change,)
            ).addErrback(lambda failure: log.failure("an operation was lost", failure=failure))
        else:
            self._decided(decision, change)

    def _decided(self, decision: Decision[Any], change: Change) -> None:
        """Do what the rule has said."""
        change.decision = decision
        try:
            made = self._make(change, decision)
            data = b"" if made is None else self._replacement(change, decision, made)
        except Exception:
            self._end(change, Failure())
            return
        if made is not None:
            change.made = made
            if change.durable is None:
                self._send(change, data, self._was_replaced, write=True)
            else:
                self._send_durably(change, data)
        elif change.sure:
            self._end(change, decision.answer)
        else:
            self._read(change)

    def _replacement(self, change: Change, decision: Decision[Any], made: bytes) -> bytes:
        arguments = [b"" if change.raw is None else header_of(change.raw), made]
        document = decision.document
        if made and document is not None and document.expires_at:
            arguments.append(self._store.expiry(document.expires_at))
        return REPLACE_IF.call(change.name, *arguments)

    def _make(self, change: Change, decision: Decision[Any]) -> bytes | None:
        """Return what is to be there, empty for nothing; None when all is to stay as it is."""
        effect, document = decision.effect, decision.document
        if effect is Effect.NOTHING:
            return None
        whole = document is not None and effect in {Effect.STORE, Effect.REMOVE}
        if whole and document is not None and self._store.limits.refuse(change.key, document):
            self._store.statistics.too_large += 1
            decision.answer = Refusal.TOO_BIG
            return None
        if document is not None:
            if effect is Effect.LOCK:
                document.cas = self._store.next_cas(change.floor)
            elif effect is not Effect.UNLOCK and effect is not Effect.MARK:
                self._stamp(change, document)
        remains = effect is not Effect.REMOVE and (
            effect is not Effect.DELETE or (document is not None and document.xattrs is not None)
        )
        if remains and document is not None:
            return encode(document)
        return None if change.raw is None else b""

    def _was_replaced(self, reply: Any, call: Call) -> None:
        change: Change = call.context
        if call.epoch is not self._store.prefix_of(change.key):
            self._read(change)
        elif reply == 1:
            self._done(change)
        elif reply is None or reply.__class__ is bytes:
            self._lost(change, reply)
        else:
            self._settle(reply, call)

    def _lost(self, change: Change, raw: bytes | None) -> None:
        change.losses += 1
        if change.losses > MOST_LOSSES:
            error = StoreUnavailable("too many others change this document at the same time")
            self._end(change, Failure(error))
            return
        change.raw, change.sure = raw, True
        self._decide(change)

    def _done(self, change: Change) -> None:
        decision = change.decision
        assert decision is not None
        change.raw = change.made or None
        if decision.effect is Effect.STORE and not decision.in_place:
            self._store.statistics.total_items += 1
        self._end(change, decision.answer)

    def _settle(self, reply: Any, call: Call) -> None:
        change: Change = call.context
        failure = self._engine.settle(reply, call)
        if failure is not None:
            self._fail(change, failure, call)

    def _fail(self, change: Change, failure: EngineFailure, call: Call) -> None:
        if failure.fate is Fate.NO_MEMORY:
            self._store.statistics.no_memory += 1
            self._end(change, Refusal.NO_MEMORY)
        elif failure.fate is Fate.TOO_BIG:
            self._store.statistics.too_large += 1
            self._end(change, Refusal.TOO_BIG)
        else:
            self._end(change, Failure(error_of(failure, call)))

    def _failed(self, failure: Failure, change: Change) -> None:
        self._end(change, failure)

    def _end(self, change: Change, answer: Any) -> None:
        """Give the answer, and begin with the next change of this key."""
        if not isinstance(answer, Failure):
            if change.decision is not None:
                self._store.statistics.count(change.decision.counts)
        elif answer.check(UpstreamError) is None:
            log.failure("an operation failed", failure=answer)
        if change.rule is not subdoc_rules.lookup_in:
            self._next(change, known=not isinstance(answer, Failure))
        change.waiting.callback(answer)

    def _next(self, change: Change, *, known: bool) -> None:
        queue = self._busy[change.key]
        if not queue:
            del self._busy[change.key]
            return
        following = queue.popleft()
        same = change.prefix is self._store.prefix_of(change.key) and following.durable is None
        if not (known and same):
            self._start(following)
            return
        following.prefix, following.name, following.slot = change.prefix, change.name, change.slot
        following.raw = change.raw
        self._decide(following)

    # durability

    def _send_durably(
        self, change: Change, data: bytes, server: Server | None = None, *, asking: bool = False
    ) -> None:
        """Send a replacement and a WAIT together."""
        server = server or self._engine.server_of(change.slot)
        if server is None:
            error = StoreUnavailable("the server of this key is not known")
            self._end(change, Failure(error))
            return
        link = server.durable_link
        if self._store.keeper not in link.companions:
            link.companions.add(self._store.keeper)
            self._store.keeper.ride(link)
        if asking:
            link.send(Call(ASKING, lambda reply, call: None))
        # As a whole: what is sent again because a script was lost would leave its WAIT behind.
        call = Call(with_text(data), self._was_replaced_durably, True, change, change.slot)
        call.epoch, call.server = change.prefix, server
        link.send(call)
        if not change.replicas:
            return
        milliseconds = max(1, int(1000 * min(change.durable or _MOST_WAIT_S, _MOST_WAIT_S)))
        wait = command(b"WAIT", b"%d" % change.replicas, b"%d" % milliseconds)
        waiting = Call(wait, self._waited, True, change, change.slot)
        waiting.server = server
        # What is known when the first answers decides whether anybody waits for this one.
        call.deferred = waiting
        waiting.deferred = None
        link.send(waiting)

    def _was_replaced_durably(self, reply: Any, call: Call) -> None:
        change: Change = call.context
        waiting: Call | None = call.deferred
        if reply == 1 and call.epoch is self._store.prefix_of(change.key):
            if waiting is None:
                self._done(change)
            else:
                waiting.deferred = change
        elif isinstance(reply, ReplyError) and change.tries < MOST_TRIES:
            change.tries += 1
            target = self._engine.redirect(reply, call)
            if target is None:
                self._settle_durable(reply, call)
            else:
                self._send_durably(change, call.data, target[0], asking=target[1])
        else:
            self._was_replaced(reply, call)

    def _settle_durable(self, reply: Any, call: Call) -> None:
        call.tries = MOST_TRIES  # it is not to be sent again without its WAIT
        self._settle(reply, call)

    def _waited(self, reply: Any, call: Call) -> None:
        change: Change | None = call.deferred
        if change is None:
            return
        if isinstance(reply, int) and reply >= change.replicas:
            self._done(change)
            return
        where = f"engine {call.server.name}"
        if isinstance(reply, int):
            text = f"{where}: {reply} replicas have the write, {change.replicas} must have it"
        elif isinstance(reply, EngineFailure):
            text = f"{where}: {reply.reason}: {reply.text}"
        else:
            text = f"{where}: WAIT: {reply}"
        self._end(change, Failure(OutcomeUnknown(text)))
