"""The code of the engine client that every GET and SET runs, compiled where there is a C compiler.

`Call`, `Queue` and `GetAndSet` are the parts of a command, a connection and a store that these two
need.  The Python classes here and the compiled ones in ``_fast_path.pyx`` do the same; the rest of
connection and store is Python that derives from either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from kvproto.base.compiled import compiled
from kvproto.base.log import make_logger
from kvproto.errors import UpstreamError
from kvproto.store import Document, Key, Refusal
from kvproto.store.expiry import deadline
from kvproto.store.operations import Operations
from kvproto.store.statistics import Statistics
from kvproto.upstream.codec import HEADER, decode

__all__ = ["Call", "GetAndSet", "PythonCall", "PythonGetAndSet", "PythonQueue", "Queue"]

log = make_logger()

_CAS_SIZE = 8
_HEAD_SIZE = HEADER.size
_new = object.__new__
_pack = HEADER.pack


class PythonCall:
    """A command, and who gets its reply.

    Args:
        data: The encoded command.
        answered: Called once with the reply, or with an `EngineFailure`, and this call.
        write: Whether it may change something.
        context: Whatever ``answered`` needs to know.
        slot: The cluster's slot of its key; -1 when it has none.

    Attributes:
        tries: How often it has been sent on to somewhere else.
        deferred: What the store has given to whoever asked; nobody here looks at it.
        epoch: Of which epoch its key is; the store's too.
        server: Where it was sent, None before that.
        rider: Has a method ``ride(link)``, called before this is sent unless it is among the
            link's companions already; None for nothing.
    """

    # Class attributes in place of slots: most calls need none of these, and who begins with
    # nothing to set is made in half of the time.
    tries = 0
    deferred: Any = None
    epoch: Any = None
    server: Any = None
    rider: Any = None

    def __init__(
        self,
        data: bytes,
        answered: Callable[[Any, Any], object],
        write: bool = False,
        context: Any = None,
        slot: int = -1,
    ) -> None:
        self.data = data
        self.answered = answered
        self.write = write
        self.context = context
        self.slot = slot


class PythonQueue:
    """The commands of one connection that are not answered, and those of them that are not sent."""

    _clock: IReactorTime
    _pending: deque[Any]
    _out: list[bytes]
    _turn_end: IDelayedCall | None
    _room: int
    _unsent: int
    _paused: bool
    _open: bool
    MAX_UNSENT: int
    _refuse: Callable[[Any], None]
    _end_turn: Callable[[], None]
    _end: Callable[[str, str], None]

    def send(self, call: Any) -> None:
        """Send a command at the end of this turn."""
        pending = self._pending
        if len(pending) >= self._room:
            self._refuse(call)
            return
        pending.append(call)
        self._out.append(call.data)
        if self._turn_end is None:
            self._turn_end = self._clock.callLater(0, self._end_turn)
        elif self._paused:
            self._unsent += len(call.data)
            if self._unsent >= self.MAX_UNSENT:
                self._room = 0

    def _take(self, gets: Callable[[], Any], more: object) -> None:
        """Give replies to their commands.

        Args:
            gets: Returns the next reply.
            more: What it returns when there is none.
        """
        pending, out = self._pending, self._out
        while (reply := gets()) is not more:
            if len(pending) == len(out):
                self._end("protocol", "a reply to no command")
                return
            call = pending.popleft()
            try:
                call.answered(reply, call)
            except Exception:
                log.failure("a reply could not be used")
            if not self._open:
                return


def python_send_single(engine: Any, call: Any) -> None:
    """Send a command: `kvproto.upstream.engine.SingleEngine.send`."""
    links = engine._links
    link = links[call.slot % len(links)]
    connection = link.ready
    if connection is None or (call.rider is not None and call.rider not in link.companions):
        engine._ride(call, engine.server.link(call.slot))
    else:
        call.server = engine.server
        connection.send(call)


class PythonGetAndSet(Operations):
    """GET and SET of an `kvproto.upstream.store.EngineStore`, which has the rest."""

    now: Callable[[], float]
    statistics: Statistics
    keeper: Any
    _prefix: bytes | None
    _prefixes: dict[int, bytes]
    _turns_over_at: float | None
    _engine: Any
    _slot: Callable[[bytes], int]
    _send: Callable[[Any], None]
    _set_head: bytes
    _expiring_head: bytes
    _max_value: int
    _max_item: int
    _ahead: float
    _digits: int
    _cas: int
    _locate: Callable[[Key], tuple[bytes, bytes] | None]
    when_loaded: Callable[..., Any]
    moment: Callable[[float], bytes]
    error_of: Callable[[Any, Any], UpstreamError]
    fail: Callable[[Deferred[Any], Any, Any], None]

    def get(self, key: Key) -> Deferred[Document | None]:
        """Read a document; see `IStore.get`."""
        waiting: Deferred[Document | None] = Deferred()
        prefix = self._prefix
        if key.__class__ is bytes and prefix is not None and self._turns_over_at is None:
            name = prefix + key
        else:
            located = self._locate(key)
            if located is None:
                self.when_loaded(waiting, self.get, key)
                return waiting
            prefix, name = located
        call = Call(
            b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name),
            self._got,
            False,
            key,
            self._slot(name),
        )
        call.deferred = waiting
        call.epoch = prefix
        call.rider = self.keeper
        self._send(call)
        return waiting

    def _got(self, reply: Any, call: Any) -> None:
        key = call.context
        if call.epoch is not (
            self._prefix if key.__class__ is bytes else self._prefixes.get(key[0])
        ):
            self.get(key).chainDeferred(call.deferred)
            return
        statistics = self.statistics
        if reply.__class__ is bytes:
            try:
                document = decode(reply)
            except UpstreamError:
                call.deferred.errback(Failure())
                return
            if document.expires_at or document.locked_until or document.deleted:
                now = self.now()
                if document.deleted or 0.0 < document.expires_at <= now:
                    statistics.get_misses += 1
                    call.deferred.callback(None)
                    return
                if document.locked_until <= now:
                    document.locked_until = 0.0
            statistics.get_hits += 1
            call.deferred.callback(document)
        elif reply is None:
            statistics.get_misses += 1
            call.deferred.callback(None)
        else:
            failure = self._engine.settle(reply, call)
            if failure is not None:
                call.deferred.errback(self.error_of(failure, call))

    def set(
        self,
        key: Key,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Any:
        """Store whatever was there before; see `IStore.set`."""
        expires_at = 0.0
        if expiry:
            now = self.now()
            expires_at = deadline(expiry, now)
        if cas or preserve_expiry or (expires_at and expires_at <= now):
            return Operations.set(
                self, key, value, flags, expiry, cas, datatype=datatype,
                preserve_expiry=preserve_expiry,
            )  # fmt: skip
        size = len(value)
        bare = key if key.__class__ is bytes else key[1]
        if size > self._max_value or size + len(bare) > self._max_item:  # type: ignore[arg-type]
            self.statistics.cmd_set += 1
            self.statistics.too_large += 1
            return Refusal.TOO_BIG
        waiting: Deferred[Document | Refusal] = Deferred()
        document = _new(Document)
        document.value = value
        document.flags = flags
        document.cas = document.seqno = 0
        document.expires_at = expires_at
        document.locked_until = 0.0
        document.datatype = datatype
        document.due = document.kind = document.marks = 0
        document.xattrs = None
        document.deleted = False
        self._set(key, document, waiting)
        return waiting

    def _set(self, key: Key, document: Document, waiting: Deferred[Document | Refusal]) -> None:
        prefix = self._prefix
        if key.__class__ is bytes and prefix is not None and self._turns_over_at is None:
            name = prefix + key
        else:
            located = self._locate(key)
            if located is None:
                self.when_loaded(waiting, self._set_again, key, document)
                return
            prefix, name = located
        # The script makes it larger than that of what is there, if it must.
        document.cas = document.seqno = cas = self.next_cas(0)
        value, expires_at = document.value, document.expires_at
        micros = round(expires_at * 1e6) if expires_at else 0
        head = _pack(1, cas, 0, 0, 0, document.flags, document.datatype & 0xFF, micros, 0, 0, cas)
        data = b"%b$%d\r\n%b\r\n$%d\r\n%b%b\r\n%b" % (
            self._expiring_head if micros else self._set_head,
            len(name), name, _HEAD_SIZE + len(value), head, value,
            self.moment(expires_at) if micros else b"",
        )  # fmt: skip
        call = Call(data, self._was_set, True, (key, document), self._slot(name))
        call.deferred = waiting
        call.epoch = prefix
        call.rider = self.keeper
        self._send(call)

    def _set_again(self, key: Key, document: Document) -> Deferred[Document | Refusal]:
        waiting: Deferred[Document | Refusal] = Deferred()
        self._set(key, document, waiting)
        return waiting

    def _was_set(self, reply: Any, call: Any) -> None:
        key, document = call.context
        if call.epoch is not (
            self._prefix if key.__class__ is bytes else self._prefixes.get(key[0])
        ):
            self._set(key, document, call.deferred)
            return
        if reply == 1 or reply == b"OK":  # noqa: PLR1714 - bytes and a number
            pass
        elif reply.__class__ is not bytes:
            failure = self._engine.settle(reply, call)
            if failure is not None:
                self.fail(call.deferred, failure, call)
            return
        elif len(reply) == _CAS_SIZE:
            document.cas = document.seqno = int.from_bytes(reply)
        else:
            # It is locked, or has attributes that must be kept: the usual way.
            expiry: Any = document.expires_at  # a moment is an expiry as well
            Operations.set(
                self, key, document.value, document.flags, expiry, datatype=document.datatype
            ).chainDeferred(call.deferred)
            return
        statistics = self.statistics
        statistics.cmd_set += 1
        statistics.total_items += 1
        call.deferred.callback(document)

    def next_cas(self, floor: int) -> int:
        """Return a CAS that is larger than ``floor``, and is no other's.

        It is the time in nanoseconds, the last three digits of which are the same for all that this
        process makes, so two processes hardly ever make the same one.
        """
        cas = int((self.now() + self._ahead) * 1e6) * 1000 + self._digits
        if cas <= self._cas:
            cas = self._cas + 1000
        self._cas = cas
        return cas if cas > floor else floor + 1


_compiled = compiled("kvproto.upstream._fast_path")

if TYPE_CHECKING or _compiled is None:
    Call = PythonCall
    Queue = PythonQueue
    GetAndSet = PythonGetAndSet
    send_single = python_send_single
else:
    Call = _compiled.Call
    Queue = _compiled.Queue
    send_single = _compiled.send_single

    class GetAndSet(_compiled.GetAndSet, Operations):
        """See `PythonGetAndSet`."""
