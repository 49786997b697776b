"""Operations as methods: encoding of arguments, decoding of results.

Arguments that cannot be sent raise at once (`LocalProtocolError`, ``TypeError``); all else comes
through the Deferred: a result (`kvproto.client.results`) or an error (`kvproto.client.errors`).
Cancelling a Deferred throws the reply away; a request that waits to be written is not sent then.

Source: Couchbase kv_engine ``docs/BinaryProtocol.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from struct import error as struct_error
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, FirstError, gatherResults, succeed
from twisted.python.failure import Failure

from kvproto.client.exchange import BatchGet, Exchange, Stats, check_key, check_value
from kvproto.client.results import CounterResult, GetResult, MutationResult, MutationToken
from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import Feature, Opcode, Status
from kvproto.wire.extras import split_mutation_token
from kvproto.wire.frames import Response
from kvproto.wire.framing import Durability, RequestFraming, encode_request_framing

__all__ = ["Operations", "ServerOperations"]

T = TypeVar("T")

_BATCH = 256
"""Keys of one batch of `Operations.get_many`; longer lists become several."""

_DO_NOT_CREATE = 0xFFFF_FFFF
"""Expiry that tells INCREMENT and DECREMENT not to create a counter."""

_GET, _GAT, _GET_LOCKED = int(Opcode.GET), int(Opcode.GAT), int(Opcode.GET_LOCKED)
_MISSING = frozenset({int(Status.NOT_FOUND)})

_U32 = Struct(">I")
_STORE = Struct(">II")
_COUNT = Struct(">QQI")
_unpack_flags = _U32.unpack


class Operations:
    """The operations on the documents of one collection; subclasses say how to ask."""

    _collection_id: int | None = 0

    def _ask(self, exchange: Exchange[T], timeout_s: float | None) -> Deferred[T]:
        raise NotImplementedError

    # --- reading --------------------------------------------------------------------------

    def get(self, key: bytes, *, timeout_s: float | None = None) -> Deferred[GetResult | None]:
        """Read a document; None when there is none."""
        return self._ask(
            Exchange(
                _GET,
                _read,
                key=check_key(key),
                collection=self._collection_id,
                tolerates=_MISSING,
            ),
            timeout_s,
        )

    def get_many(
        self, keys: Iterable[bytes], *, timeout_s: float | None = None
    ) -> Deferred[dict[bytes, GetResult]]:
        """Read many documents in few packets.

        Returns:
            The documents that exist.  An error for one key is an error for all.
        """
        wanted = list(dict.fromkeys(check_key(key) for key in keys))
        if not wanted:
            return succeed({})
        batches = [
            self._ask(
                BatchGet(wanted[at : at + _BATCH], _parse_hit, self._collection_id), timeout_s
            )
            for at in range(0, len(wanted), _BATCH)
        ]
        if len(batches) == 1:
            return batches[0]
        return gatherResults(batches, consumeErrors=True).addCallbacks(_merged, _first_error)

    def get_and_touch(
        self, key: bytes, expiry: int, *, timeout_s: float | None = None
    ) -> Deferred[GetResult | None]:
        """Read a document and give it a new expiry; None when there is none."""
        return self._ask(
            Exchange(
                _GAT,
                _read,
                key=check_key(key),
                extras=_pack(_U32, expiry),
                collection=self._collection_id,
                tolerates=_MISSING,
            ),
            timeout_s,
        )

    def get_and_lock(
        self, key: bytes, seconds: int = 15, *, timeout_s: float | None = None
    ) -> Deferred[GetResult | None]:
        """Read a document and lock it; None when there is none.

        The result's CAS is the key: `unlock`, and every mutation meanwhile, needs it.

        Args:
            key: The document's key.
            seconds: After which the lock ends by itself; servers allow up to 30.
            timeout_s: Seconds that the request may take.
        """
        return self._ask(
            Exchange(
                _GET_LOCKED,
                _read,
                key=check_key(key),
                extras=_pack(_U32, seconds),
                collection=self._collection_id,
                tolerates=_MISSING,
            ),
            timeout_s,
        )

    # --- writing --------------------------------------------------------------------------

    def set(
        self,
        key: bytes,
        value: bytes,
        *,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        datatype: int = 0,
        preserve_expiry: bool = False,
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> Deferred[MutationResult]:
        """Store a document, whether there is one or not.

        Args:
            key: 1 to 250 bytes.
            value: Any bytes.
            flags: 32 bits that belong to the application.
            expiry: Seconds from now, up to 30 days; above that unix time; 0 for never.
            cas: Store only if the document still has this CAS; 0 for any.
            datatype: Bits of `kvproto.wire.constants.Datatype`.
            preserve_expiry: Let an existing document keep its expiry.
            durability: What shall be true before it is answered.
            timeout_s: Seconds that the request may take.
        """
        return self._store(
            Opcode.SET,
            key,
            value,
            (flags, expiry),
            cas,
            datatype,
            preserve_expiry,
            durability,
            timeout_s,
        )

    def add(
        self,
        key: bytes,
        value: bytes,
        *,
        flags: int = 0,
        expiry: int = 0,
        datatype: int = 0,
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> Deferred[MutationResult]:
        """Store a document where there is none; otherwise `ExistsError`."""
        return self._store(
            Opcode.ADD, key, value, (flags, expiry), 0, datatype, False, durability, timeout_s
        )

    def replace(
        self,
        key: bytes,
        value: bytes,
        *,
        flags: int = 0,
        expiry: int = 0,
        cas: int = 0,
        datatype: int = 0,
        preserve_expiry: bool = False,
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> Deferred[MutationResult]:
        """Store a document where there is one; otherwise `NotFoundError`."""
        return self._store(
            Opcode.REPLACE,
            key,
            value,
            (flags, expiry),
            cas,
            datatype,
            preserve_expiry,
            durability,
            timeout_s,
        )

    def append(
        self,
        key: bytes,
        value: bytes,
        *,
        cas: int = 0,
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> Deferred[MutationResult]:
        """Add bytes at the end of a document; `NotStoredError` when there is none."""
        return self._store(Opcode.APPEND, key, value, None, cas, 0, False, durability, timeout_s)

    def prepend(
        self,
        key: bytes,
        value: bytes,
        *,
        cas: int = 0,
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> Deferred[MutationResult]:
        """Add bytes in front of a document; `NotStoredError` when there is none."""
        return self._store(Opcode.PREPEND, key, value, None, cas, 0, False, durability, timeout_s)

    def delete(
        self,
        key: bytes,
        *,
        cas: int = 0,
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> Deferred[MutationResult]:
        """Remove a document; `NotFoundError` when there is none."""
        return self._store(Opcode.DELETE, key, b"", None, cas, 0, False, durability, timeout_s)

    def _store(
        self,
        opcode: int,
        key: bytes,
        value: bytes,
        flags_and_expiry: tuple[int, int] | None,
        cas: int,
        datatype: int,
        preserve_expiry: bool,
        durability: Durability | None,
        timeout_s: float | None,
    ) -> Deferred[MutationResult]:
        framing, needs = _framing(preserve_expiry, durability)
        return self._ask(
            Exchange(
                opcode,
                _mutation,
                key=check_key(key),
                value=check_value(value),
                extras=b"" if flags_and_expiry is None else _pack(_STORE, *flags_and_expiry),
                cas=cas,
                datatype=datatype,
                framing=framing,
                collection=self._collection_id,
                needs=needs,
            ),
            timeout_s,
        )

    def touch(
        self, key: bytes, expiry: int, *, timeout_s: float | None = None
    ) -> Deferred[MutationResult]:
        """Give a document a new expiry; `NotFoundError` when there is none."""
        return self._ask(
            Exchange(
                Opcode.TOUCH,
                _touched,
                key=check_key(key),
                extras=_pack(_U32, expiry),
                collection=self._collection_id,
            ),
            timeout_s,
        )

    def unlock(self, key: bytes, cas: int, *, timeout_s: float | None = None) -> Deferred[None]:
        """Release a lock.

        Args:
            key: The document's key.
            cas: As `get_and_lock` gave it; with another one the answer is `LockedError`.
            timeout_s: Seconds that the request may take.
        """
        return self._ask(
            Exchange(
                Opcode.UNLOCK,
                _none,
                key=check_key(key),
                cas=cas,
                collection=self._collection_id,
            ),
            timeout_s,
        )

    # --- counting -------------------------------------------------------------------------

    def increment(
        self,
        key: bytes,
        delta: int = 1,
        *,
        initial: int | None = None,
        expiry: int = 0,
        cas: int = 0,
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> Deferred[CounterResult]:
        """Add to a counter, modulo 2**64.

        Args:
            key: The counter's key.
            delta: 0 to 2**64-1.
            initial: What a counter that does not exist is created with (`delta` is not added);
                None for `NotFoundError`.
            expiry: Of a counter that is created; an existing one keeps its own.
            cas: Count only if the counter still has this CAS; 0 for any.
            durability: What shall be true before it is answered.
            timeout_s: Seconds that the request may take.
        """
        return self._count(
            Opcode.INCREMENT, key, delta, initial, expiry, cas, durability, timeout_s
        )

    def decrement(
        self,
        key: bytes,
        delta: int = 1,
        *,
        initial: int | None = None,
        expiry: int = 0,
        cas: int = 0,
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> Deferred[CounterResult]:
        """Subtract from a counter, which stops at 0; the arguments are those of `increment`."""
        return self._count(
            Opcode.DECREMENT, key, delta, initial, expiry, cas, durability, timeout_s
        )

    def _count(
        self,
        opcode: int,
        key: bytes,
        delta: int,
        initial: int | None,
        expiry: int,
        cas: int,
        durability: Durability | None,
        timeout_s: float | None,
    ) -> Deferred[CounterResult]:
        framing, needs = _framing(False, durability)
        lifetime = _DO_NOT_CREATE if initial is None else expiry
        return self._ask(
            Exchange(
                opcode,
                _counter,
                key=check_key(key),
                extras=_pack(_COUNT, delta, initial or 0, lifetime),
                cas=cas,
                framing=framing,
                collection=self._collection_id,
                needs=needs,
            ),
            timeout_s,
        )


class ServerOperations(Operations):
    """And what concerns no document."""

    def noop(self, *, timeout_s: float | None = None) -> Deferred[None]:
        """Ask for nothing: the answer tells that the server lives."""
        return self._ask(Exchange(Opcode.NOOP, _none), timeout_s)

    def version(self, *, timeout_s: float | None = None) -> Deferred[str]:
        """Ask for the server's version."""
        return self._ask(Exchange(Opcode.VERSION, _text), timeout_s)

    def stats(
        self, group: bytes = b"", *, timeout_s: float | None = None
    ) -> Deferred[dict[str, str]]:
        """Ask for statistics.

        Args:
            group: Which ones, ``b""`` for the general ones.
            timeout_s: Seconds that the request may take.
        """
        return self._ask(Stats(group), timeout_s)


def _pack(layout: Struct, *numbers: int) -> bytes:
    try:
        return layout.pack(*numbers)
    except struct_error as error:
        raise LocalProtocolError(f"a number does not fit: {error}") from None


def _framing(preserve_expiry: bool, durability: Durability | None) -> tuple[bytes, tuple[int, ...]]:
    """Return the framing extras, and the features without which they must not be sent."""
    if not preserve_expiry and durability is None:
        return b"", ()
    needs = [Feature.ALT_REQUEST]
    if preserve_expiry:
        needs.append(Feature.PRESERVE_TTL)
    if durability is not None:
        needs.append(Feature.SYNC_REPLICATION)
    framing = RequestFraming(preserve_ttl=preserve_expiry, durability=durability)
    return encode_request_framing(framing), tuple(needs)


def _parse_hit(reply: Response) -> GetResult:
    if len(reply.extras) != _U32.size:
        raise RemoteProtocolError(f"flags of {len(reply.extras)} bytes")
    return GetResult(reply.value, _unpack_flags(reply.extras)[0], reply.cas, reply.datatype)


def _read(reply: Response) -> GetResult | None:
    return None if reply.status else _parse_hit(reply)


def _token(reply: Response) -> MutationToken | None:
    token = split_mutation_token(reply.extras)
    return None if token is None else MutationToken(*token)


def _mutation(reply: Response) -> MutationResult:
    return MutationResult(reply.cas, _token(reply))


def _touched(reply: Response) -> MutationResult:
    # memcached adds the flags here, which are no mutation token.
    return MutationResult(reply.cas)


def _counter(reply: Response) -> CounterResult:
    if len(reply.value) != 8:
        raise RemoteProtocolError(f"a counter of {len(reply.value)} bytes")
    return CounterResult(int.from_bytes(reply.value), reply.cas, _token(reply))


def _none(reply: Response) -> None:
    return None


def _text(reply: Response) -> str:
    return reply.value.decode("utf-8", "replace")


def _merged(results: list[dict[bytes, GetResult]]) -> dict[bytes, GetResult]:
    return {key: found for result in results for key, found in result.items()}


def _first_error(failure: Failure) -> Any:
    return failure.value.subFailure if isinstance(failure.value, FirstError) else failure
