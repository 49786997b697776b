"""`FleetStore`: a memcached fleet as a store that sessions serve from.

Each operation is one request to the server that has the key; the server's own rules of CAS,
expiry and counters hold.  What memcached does not have (locks, sub-documents, preserved expiry) is
refused.

Source: memcached ``doc/protocol-binary.xml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

from twisted.internet.defer import Deferred, fail, gatherResults, maybeDeferred
from zope.interface import implementer

from kvproto.errors import NotSupported, StoreUnavailable, UpstreamError
from kvproto.store import Document, IConnectionStore, Refusal
from kvproto.upstream.fleet import Fleet, FleetRequest, statistics
from kvproto.upstream.fleet_meta import pass_on
from kvproto.upstream.memcached import FrameCall
from kvproto.upstream.pipe import Outlet, Pipe
from kvproto.wire.constants import HEADER_SIZE, Opcode, Status
from kvproto.wire.meta import MetaCommand

__all__ = ["FleetStore"]

_U32 = Struct(">I")
_STORE_EXTRAS = Struct(">II")
_COUNTER_EXTRAS = Struct(">QQI")
_HEAD = Struct(">BBHBBHIIQ")
_unpack_head = _HEAD.unpack_from
_unpack_u32 = _U32.unpack_from

_LATEST = 0xFFFF_FFFF

_EXPIRED = 2_592_001
"""An expiry in January 1970, for what is expired at once."""

_REFUSALS: dict[int, Refusal] = {
    Status.NOT_FOUND: Refusal.NOT_FOUND,
    Status.EXISTS: Refusal.EXISTS,
    Status.TOO_BIG: Refusal.TOO_BIG,
    Status.NOT_STORED: Refusal.NOT_STORED,
    Status.NOT_A_NUMBER: Refusal.NOT_A_NUMBER,
    Status.NO_MEMORY: Refusal.NO_MEMORY,
}

_GET, _GAT, _TOUCH = int(Opcode.GET), int(Opcode.GAT), int(Opcode.TOUCH)
_SET, _ADD, _REPLACE = int(Opcode.SET), int(Opcode.ADD), int(Opcode.REPLACE)
_APPEND, _PREPEND = int(Opcode.APPEND), int(Opcode.PREPEND)
_INCREMENT, _DECREMENT = int(Opcode.INCREMENT), int(Opcode.DECREMENT)
_DELETE, _FLUSH, _STAT = int(Opcode.DELETE), int(Opcode.FLUSH), int(Opcode.STAT)

_NOT_SUMMED = frozenset(
    {
        "pid", "uptime", "time", "pointer_size", "threads", "version", "libevent",
        "max_connections", "curr_connections", "total_connections", "rejected_connections",
        "connection_structures", "response_obj_count", "response_obj_oom", "response_obj_bytes",
        "read_buf_count", "read_buf_bytes", "read_buf_bytes_free", "read_buf_oom",
        "reserved_fds", "auth_cmds", "auth_errors", "bytes_read", "bytes_written",
        "accepting_conns", "listen_disabled_num", "time_in_listen_disabled_us",
        "hash_power_level", "hash_is_expanding", "conn_yields",
    }
)  # fmt: skip
"""What is about a server's process and connections, which are not the clients'."""


@implementer(IConnectionStore)
class FleetStore:
    """The documents of a fleet.

    Args:
        fleet: The servers.
        lane: Which connection to each server.
    """

    persists = False
    tokens = False
    seqno = persisted_seqno = 0
    uuid = 0

    def __init__(self, fleet: Fleet, lane: int = 0) -> None:
        self.fleet = fleet
        self._lane = lane
        self._next_lane = 0

    def for_connection(self) -> FleetStore:
        """Return this store as one client's connection uses it.

        What it asks of one server goes over one connection, in order.
        """
        self._next_lane += 1
        return FleetStore(self.fleet, self._next_lane)

    def open_pipe(self, outlet: Outlet) -> Pipe:
        """Return the short way for plain binary requests of one client's connection."""
        return Pipe(self.fleet, self._lane, outlet)

    def ready(self) -> str | None:
        """Return why requests cannot be served: no server of the fleet answers."""
        servers = self.fleet.servers
        if any(server.up for server in servers):
            return None
        if not servers:
            return "the servers of the fleet are not known yet"
        return f"no server of the fleet answers: {servers[0].name}: {servers[0].text}"

    def durable(self, level: int, timeout: float | None) -> None:
        """Return None: nothing here outlives its server."""

    # reading

    def get(self, key: Any) -> Deferred[Any]:
        """Read a document."""
        return self.ask(FleetRequest(_GET, key, _hit, write=False))

    def get_and_touch(self, key: Any, expiry: int) -> Deferred[Any]:
        """Read a document and give it another expiry."""
        extras = _U32.pack(_wire_expiry(expiry))
        return self.ask(FleetRequest(_GAT, key, _hit, extras, expiry_at=0))

    def touch(self, key: Any, expiry: int) -> Deferred[Any]:
        """Give a document another expiry."""
        extras = _U32.pack(_wire_expiry(expiry))
        return self.ask(FleetRequest(_TOUCH, key, _done, extras, expiry_at=0))

    # writing

    def set(
        self,
        key: Any,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Deferred[Any]:
        """Store whatever was there before."""
        return self._store(_SET, key, value, flags, expiry, cas, preserve_expiry)

    def add(
        self,
        key: Any,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Deferred[Any]:
        """Store only where nothing is."""
        return self._store(_ADD, key, value, flags, expiry, cas, preserve_expiry)

    def replace(
        self,
        key: Any,
        value: bytes,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        datatype: int = 0,
        preserve_expiry: bool = False,
    ) -> Deferred[Any]:
        """Store only where something is."""
        return self._store(_REPLACE, key, value, flags, expiry, cas, preserve_expiry)

    def _store(
        self,
        opcode: int,
        key: Any,
        value: bytes,
        flags: int,
        expiry: int,
        cas: int,
        preserve_expiry: bool,
    ) -> Deferred[Any]:
        if preserve_expiry:
            return _unsupported("keeping an expiry")
        extras = _STORE_EXTRAS.pack(flags & _LATEST, _wire_expiry(expiry))
        return self.ask(FleetRequest(opcode, key, _done, extras, value, cas, expiry_at=4))

    def append(self, key: Any, value: bytes, cas: int = 0) -> Deferred[Any]:
        """Put bytes behind a value."""
        return self.ask(FleetRequest(_APPEND, key, _done, b"", value, cas))

    def prepend(self, key: Any, value: bytes, cas: int = 0) -> Deferred[Any]:
        """Put bytes before a value."""
        return self.ask(FleetRequest(_PREPEND, key, _done, b"", value, cas))

    def delete(self, key: Any, cas: int = 0) -> Deferred[Any]:
        """Remove a document."""
        return self.ask(FleetRequest(_DELETE, key, _done, cas=cas))

    def discard(self, key: Any) -> Deferred[None]:
        """Remove a document that may be there."""
        return self.delete(key).addCallback(_nothing)

    # counting

    def increment(
        self, key: Any, delta: int, initial: int, expiry: int, cas: int = 0
    ) -> Deferred[Any]:
        """Add to a counter."""
        return self._count(_INCREMENT, key, delta, initial, expiry, cas)

    def decrement(
        self, key: Any, delta: int, initial: int, expiry: int, cas: int = 0
    ) -> Deferred[Any]:
        """Subtract from a counter."""
        return self._count(_DECREMENT, key, delta, initial, expiry, cas)

    def _count(
        self, opcode: int, key: Any, delta: int, initial: int, expiry: int, cas: int
    ) -> Deferred[Any]:
        extras = _COUNTER_EXTRAS.pack(delta, initial, _wire_expiry(expiry))
        return self.ask(FleetRequest(opcode, key, _number, extras, cas=cas, expiry_at=16))

    def meta(self, key: Any, command: MetaCommand) -> Deferred[Any]:
        """Pass a meta command on; the Deferred fires with a `MetaAnswer`."""
        return maybeDeferred(pass_on, self, key, command)

    # what memcached does not have

    def get_and_lock(self, key: Any, seconds: int) -> Deferred[Any]:
        """Refuse."""
        return _unsupported("a lock")

    def unlock(self, key: Any, cas: int) -> Deferred[Any]:
        """Refuse."""
        return _unsupported("a lock")

    def lookup_in(self, key: Any, specs: Sequence[Any], doc_flags: int = 0) -> Deferred[Any]:
        """Refuse."""
        return _unsupported("a sub-document operation")

    def mutate_in(
        self,
        key: Any,
        specs: Sequence[Any],
        doc_flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        *,
        flags: int | None = None,
        preserve_expiry: bool = False,
    ) -> Deferred[Any]:
        """Refuse."""
        return _unsupported("a sub-document operation")

    # all servers

    def flush(self, delay: int = 0) -> Deferred[None]:
        """Remove all documents, from all servers."""
        extras = _U32.pack(_wire_expiry(delay)) if delay else b""
        asked = self.fleet.ask_all(lambda: FleetRequest(_FLUSH, b"", _done, extras), self._lane)
        return gatherResults(asked, consumeErrors=True).addCallbacks(_nothing, _first_failure)

    def drop_collection(self, collection: int) -> Deferred[None]:
        """Refuse."""
        return _unsupported("a collection")

    def stats(self) -> Deferred[dict[str, int | str]]:
        """Return sums over all servers that answer, and each server's state."""
        asked = self.fleet.ask_all(
            lambda: FleetRequest(_STAT, b"", statistics, write=False), self._lane
        )
        for one in asked:
            one.addErrback(_no_statistics)
        return gatherResults(asked).addCallback(self._sum)

    def _sum(self, answers: list[list[bytes]]) -> dict[str, int | str]:
        sums: dict[str, int | str] = {}
        for frames in answers:
            for frame in frames:
                key_size, extras_size = _unpack_head(frame)[2:4]
                at = HEADER_SIZE + extras_size
                name = frame[at : at + key_size].decode("ascii", "replace")
                value = frame[at + key_size :]
                if len(value) <= 20 and value.isdigit() and name not in _NOT_SUMMED:
                    sums[name] = int(value) + int(sums.get(name, 0))
        for server in self.fleet.servers:
            sums[f"server {server.name}"] = "up" if server.up else "down"
        return sums

    def ask(self, request: FleetRequest) -> Deferred[Any]:
        """Send a request to the server that has its key."""
        return self.fleet.ask(request, self._lane)


def _wire_expiry(expiry: int) -> int:
    """Return an expiry that memcached's binary protocol understands as its text protocol does."""
    if expiry < 0:
        return _EXPIRED
    return min(expiry, _LATEST)


def _unsupported(what: str) -> Deferred[Any]:
    return fail(NotSupported(f"memcached servers do not know {what}"))


def _refused(status: int) -> Refusal:
    refusal = _REFUSALS.get(status)
    if refusal is None:
        raise StoreUnavailable(f"a memcached server answered with status 0x{status:02x}")
    return refusal


def _hit(frame: Any, call: FrameCall) -> Document | Refusal | None:
    _, _, key_size, extras_size, _, status, _, _, cas = _unpack_head(frame)
    if status:
        return None if status == Status.NOT_FOUND else _refused(status)
    flags = _unpack_u32(frame, HEADER_SIZE)[0] if extras_size == 4 else 0
    return Document(bytes(frame[HEADER_SIZE + extras_size + key_size :]), flags, cas)


def _done(frame: Any, call: FrameCall) -> Document | Refusal:
    head = _unpack_head(frame)
    return _refused(head[5]) if head[5] else Document(b"", 0, head[8])


def _number(frame: Any, call: FrameCall) -> Document | Refusal:
    _, _, key_size, extras_size, _, status, _, _, cas = _unpack_head(frame)
    if status:
        return _refused(status)
    value = int.from_bytes(frame[HEADER_SIZE + extras_size + key_size :])
    return Document(b"%d" % value, 0, cas)


def _nothing(_result: Any) -> None:
    return None


def _first_failure(failure: Any) -> Any:
    return failure.value.subFailure


def _no_statistics(failure: Any) -> list[bytes]:
    failure.trap(UpstreamError)
    return []
