"""What clients asked for and what became of it, counted for each bucket.

Plain GET and SET take a short way on which nothing is counted here: the store counts them
itself, as it does all that reaches it.  So each request that takes the usual way notes what it has
added to the store's numbers; what is left of these is what came by the short way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from time import perf_counter
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from kvproto.base.histogram import QUICK_SECONDS, Histogram
from kvproto.server.replies import Hangup
from kvproto.store import IImmediateStore
from kvproto.wire.constants import HEADER_SIZE, LOUD, Magic, Opcode, Status

__all__ = [
    "OPERATIONS",
    "RESULTS",
    "RequestCounts",
    "binary_operation",
    "text_operation",
]

_NAMES: Final = {
    Opcode.GETK: "get",
    Opcode.GAT: "get_and_touch",
    Opcode.GATK: "get_and_touch",
    Opcode.SUBDOC_MULTI_LOOKUP: "lookup_in",
    Opcode.SUBDOC_MULTI_MUTATION: "mutate_in",
}
"""Operations that are not called as their opcode is."""

_LOOKUPS = frozenset(
    {Opcode.SUBDOC_GET, Opcode.SUBDOC_EXISTS, Opcode.SUBDOC_GET_COUNT, Opcode.SUBDOC_MULTI_LOOKUP}
)

_READS = frozenset({"get", "get_and_touch", "get_locked", "get_replica"})
"""Operations whose success is a hit."""

OTHER = "other"


def _operation(opcode: int) -> str:
    """Return what a request with an opcode is called, ``"other"`` for what we do not know."""
    loud = LOUD.get(opcode, opcode)
    try:
        known = Opcode(loud)
    except ValueError:
        return OTHER
    if known in _NAMES:
        return _NAMES[known]
    if known.name.startswith("SUBDOC_"):
        return "lookup_in" if known in _LOOKUPS else "mutate_in"
    return known.name.lower()


_BINARY: Final = tuple(_operation(opcode) for opcode in range(256))

_STATUSES: Final = {
    int(Status.NOT_FOUND): "miss",
    int(Status.EXISTS): "exists",
    int(Status.NOT_STORED): "not_stored",
    int(Status.LOCKED): "locked",
    int(Status.TOO_BIG): "too_large",
    int(Status.NO_MEMORY): "no_memory",
    int(Status.TEMPORARY_FAILURE): "temporary_failure",
    int(Status.AUTH_ERROR): "auth_error",
    int(Status.AUTH_CONTINUE): "ok",
    int(Status.NO_ACCESS): "auth_error",
    int(Status.SUBDOC_MULTI_PATH_FAILURE): "path_failure",
}

_TEXT: Final = {
    "gets": "get",
    "gat": "get_and_touch",
    "gats": "get_and_touch",
    "incr": "increment",
    "decr": "decrement",
    "cas": "set",
    "flush_all": "flush",
    "stats": "stat",
}

_TEXT_VERBS: Final = frozenset(
    {"get", "set", "add", "replace", "append", "prepend", "delete", "touch"}
    | {"version", "verbosity", "quit"}
)

_LINES: Final = {
    b"NOT_FOUND": "miss",
    b"EXISTS": "exists",
    b"NOT_STORED": "not_stored",
    b"SERVER_ERROR": "error",
    b"CLIENT_ERROR": "error",
    b"ERROR": "error",
}

OPERATIONS: Final = frozenset({*_BINARY, *_TEXT.values(), *_TEXT_VERBS, OTHER})
RESULTS: Final = frozenset({*_STATUSES.values(), "hit", "ok", "error"})
"""All that a client can bring about: it chooses no label."""

MEASURED = 8
"""One request in so many is timed: looking at the clock twice costs as much as counting."""

_COUNTED: Final = (
    ("get_hits", "get", "hit"),
    ("get_misses", "get", "miss"),
    ("cas_badval", "set", "exists"),
    ("cas_misses", "set", "miss"),
    ("too_large", "set", "too_large"),
    ("no_memory", "set", "no_memory"),
    ("cmd_set", "set", "ok"),
)
"""The store's numbers, and what they mean of the short way; the last includes the four above."""

_numbers = attrgetter(*(name for name, _, _ in _COUNTED))

_UNCOUNTED: Final = frozenset(
    {"noop", "hello", "sasl_auth", "sasl_list", "sasl_step", "select_bucket", "stat"}
    | {"version", "flush", "get_cluster_config", "get_error_map", "lookup_in", "observe"}
    | {"observe_seqno", "get_manifest", "get_collection_id", "get_scope_id"}
)
"""Operations that change none of these numbers."""

_READING, _WRITING = 1, 2
_KINDS: Final = tuple(
    0 if operation in _UNCOUNTED else _READING if operation == "get" else _WRITING
    for operation in _BINARY
)
"""By opcode: which of these numbers may change, hits and misses only or all of them."""

_GOOD: Final = tuple((operation, "hit" if operation in _READS else "ok") for operation in _BINARY)
_QUIET: Final = tuple((operation, "miss" if operation in _READS else "ok") for operation in _BINARY)
"""By opcode: what is counted for a success, and for saying nothing."""

_SUCCESS: Final = bytes(2)


def binary_operation(opcode: int) -> str:
    """Return what a request of the binary protocol is called, one of `OPERATIONS`."""
    return _BINARY[opcode & 0xFF]


def text_operation(item: Any) -> str:
    """Return what a command of the text protocol is called, one of `OPERATIONS`."""
    verb = getattr(item, "verb", "")
    return _TEXT.get(verb, verb if verb in _TEXT_VERBS else OTHER)


class RequestCounts:
    """The requests of one bucket.

    Args:
        store: The bucket's; None for requests outside of any.

    Attributes:
        times: How long requests took, by operation; one in `MEASURED` is looked at.
    """

    __slots__ = ("_counts", "_elsewhere", "_statistics", "_turn", "times")

    def __init__(self, store: Any = None) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._statistics: Any = (
            store.statistics if IImmediateStore.implementedBy(type(store)) else None
        )
        self._elsewhere = [0] * len(_COUNTED)
        self._turn = 0
        self.times: dict[str, Histogram] = {}

    def binary(self, serve: Callable[[Any, Any], Any], session: Any, request: Any) -> Any:
        """Serve a request of the binary protocol, and count it; return the reply.

        Args:
            serve: Serves it, given session and request.
            session: Whose request it is.
            request: It has an ``opcode``.
        """
        opcode = request.opcode
        before = started = None
        statistics = self._statistics
        kind = _KINDS[opcode] if statistics is not None else 0
        if kind == _READING:
            hits, misses = statistics.get_hits, statistics.get_misses
        elif kind:
            before = _numbers(statistics)
        self._turn = turn = self._turn + 1
        if turn % MEASURED == 1:
            started = perf_counter()
        reply = serve(session, request)
        if kind == _READING:
            self._elsewhere[0] += statistics.get_hits - hits
            self._elsewhere[1] += statistics.get_misses - misses
        elif before is not None:
            self._note(before)
        if reply.__class__ is bytes:
            if reply[6:8] == _SUCCESS:
                self._counts[_GOOD[opcode]] += 1
            elif not reply:
                self._counts[_QUIET[opcode]] += 1
            else:
                self._counts[_BINARY[opcode], _binary_result(_BINARY[opcode], reply)] += 1
            if started is not None:
                self._took(_BINARY[opcode], perf_counter() - started)
        else:
            self._ended(_BINARY[opcode], _binary_result, reply, started)
        return reply

    def text(self, serve: Callable[[Any], Any], item: Any) -> Any:
        """Serve a command of the text protocol, and count it; see `binary`."""
        verb = getattr(item, "verb", "")
        if verb == "end":  # of a retrieval, whose keys are counted one by one
            return serve(item)
        before = None if self._statistics is None else _numbers(self._statistics)
        self._turn += 1
        started = perf_counter() if self._turn % MEASURED == 1 else None
        reply = serve(item)
        if before is not None:
            self._note(before)
        operation = text_operation(item)
        self._ended(operation, _text_result, reply, started)
        return reply

    def _ended(
        self,
        operation: str,
        result_of: Callable[[str, Any], str],
        reply: Any,
        started: float | None,
    ) -> None:
        if not isinstance(reply, Deferred):
            self._counts[operation, result_of(operation, reply)] += 1
            if started is not None:
                self._took(operation, perf_counter() - started)
            return

        def later(outcome: Any) -> Any:
            self._counts[operation, result_of(operation, outcome)] += 1
            if started is not None:
                self._took(operation, perf_counter() - started)
            return outcome

        reply.addBoth(later)

    def took_read(self, data: bytes, seconds: float) -> None:
        """Note how long a read took that may have come by the short way, if it is one request."""
        if data[0] == Magic.REQUEST:
            if len(data) == HEADER_SIZE + int.from_bytes(data[8:12]) and data[1] < 2:
                self._took(_BINARY[data[1]], seconds)
        elif data[:4] in {b"get ", b"set "} and data.count(b"\n") == 1 + (data[:1] == b"s"):
            self._took(data[:3].decode(), seconds)

    def _took(self, operation: str, seconds: float) -> None:
        times = self.times.get(operation)
        if times is None:
            times = self.times[operation] = Histogram(QUICK_SECONDS)
        times.observe(seconds)

    def _note(self, before: tuple[int, ...]) -> None:
        """Remember what a request that took the usual way has added to the store's numbers."""
        after = _numbers(self._statistics)
        if after != before:
            elsewhere = self._elsewhere
            for at, (now, then) in enumerate(zip(after, before, strict=True)):
                elsewhere[at] += now - then

    def report(self) -> dict[tuple[str, str], int]:
        """Return how many requests there were, by operation and result."""
        found = Counter(self._counts)
        if self._statistics is not None:
            after = _numbers(self._statistics)
            plain = [now - seen for now, seen in zip(after, self._elsewhere, strict=True)]
            plain[-1] -= sum(plain[2:-1])
            for (_, operation, result), number in zip(_COUNTED, plain, strict=True):
                if number > 0:
                    found[operation, result] += number
        return dict(found)


def _binary_result(operation: str, reply: Any) -> str:
    """Return what became of a request, from its answer."""
    if reply.__class__ is not bytes:
        if reply.__class__ is list and reply:
            reply = reply[0]
        if isinstance(reply, Hangup):
            reply = reply.reply
        if isinstance(reply, Failure) or not isinstance(reply, bytes | list):
            return "error"
    if not reply:  # quiet requests say nothing where nobody waits for it
        return "miss" if operation in _READS else "ok"
    status = int.from_bytes(reply[6:8])
    if status:
        return _STATUSES.get(status, "error")
    return "hit" if operation in _READS else "ok"


def _text_result(operation: str, reply: Any) -> str:
    if isinstance(reply, Hangup):
        reply = reply.reply
    if isinstance(reply, Failure):
        return "error"
    first = reply[0] if reply.__class__ is list and reply else reply
    if not first:
        return "miss" if operation in _READS else "ok"
    word = bytes(first[:12]).split(b" ", 1)[0].rstrip(b"\r\n")
    return _LINES.get(word, "hit" if operation in _READS else "ok")
