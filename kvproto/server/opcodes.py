"""Which function serves which opcode: three tables of 256, and what framing each may come with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from kvproto.server import commands, documents, subdoc
from kvproto.server.decorators import counted, in_collections, quiet, quiet_on_miss, with_duration
from kvproto.server.documents import Handler
from kvproto.server.shapes import SHAPES, misshapen, shaped
from kvproto.wire.constants import LOUD, MAX_KEY, QUIET_ON_MISS, Opcode

__all__ = [
    "BARRIERS",
    "DURABLE",
    "KEYED",
    "PRESERVING",
    "REFUSED",
    "REORDERED",
    "STORE_COUNTS",
    "Tables",
    "after_login",
    "before_login",
    "is_set",
]

Handlers = dict[int, Handler]


class Tables(NamedTuple):
    """The handlers of all opcodes.

    Attributes:
        bare: They.
        counting: The same, counting what they serve where the store does not.
        key_only: As `counting`, for each `KeyRequest`, at whose shape nobody need look again.
    """

    bare: tuple[Handler, ...]
    counting: tuple[Handler, ...]
    key_only: tuple[Handler, ...]


_DOCUMENTS: dict[int, Handler] = {
    Opcode.GET: documents.get,
    Opcode.GETK: documents.getk,
    Opcode.GAT: documents.get_and_touch,
    Opcode.GATK: documents.getk_and_touch,
    Opcode.GET_META: documents.get_meta,
    Opcode.SET: documents.set_,
    Opcode.ADD: documents.add,
    Opcode.REPLACE: documents.replace,
    Opcode.DELETE: documents.delete,
    Opcode.INCREMENT: documents.counter("increment"),
    Opcode.DECREMENT: documents.counter("decrement"),
    Opcode.APPEND: documents.append,
    Opcode.PREPEND: documents.prepend,
    Opcode.TOUCH: documents.touch,
    Opcode.GET_LOCKED: documents.get_locked,
    Opcode.UNLOCK: documents.unlock,
    Opcode.SUBDOC_MULTI_LOOKUP: subdoc.lookup_in,
    Opcode.SUBDOC_MULTI_MUTATION: subdoc.mutate_in,
}
"""What is about one document, and so has a key."""

_IN_BUCKET: dict[int, Handler] = {
    Opcode.FLUSH: commands.flush,
    Opcode.STAT: commands.stat,
    Opcode.OBSERVE_SEQNO: commands.observe_seqno,
    Opcode.GET_MANIFEST: commands.manifest,
    Opcode.GET_COLLECTION_ID: commands.collection_id,
    Opcode.GET_SCOPE_ID: commands.scope_id,
}
"""What is about a bucket."""

_LOGGED_IN: dict[int, Handler] = {
    Opcode.SELECT_BUCKET: commands.select_bucket,
    Opcode.GET_CLUSTER_CONFIG: commands.cluster_config,
    Opcode.VERBOSITY: commands.verbosity,
}
"""What is about the server."""

_ANYBODY: dict[int, Handler] = {
    Opcode.HELLO: commands.hello,
    Opcode.SASL_LIST: commands.sasl_list,
    Opcode.SASL_AUTH: commands.sasl_auth,
    Opcode.SASL_STEP: commands.sasl_step,
    Opcode.GET_ERROR_MAP: commands.error_map,
    Opcode.NOOP: commands.noop,
    Opcode.VERSION: commands.version,
    Opcode.QUIT: commands.quit_,
    Opcode.QUITQ: commands.quit_quietly,
}
"""What may be asked for before a login."""


STORE_COUNTS = frozenset(
    {Opcode.GET, Opcode.GETQ, Opcode.GETK, Opcode.GETKQ, Opcode.SET, Opcode.SETQ}
)
"""Plain requests, which a store that answers at once counts itself: nobody else needs to."""


def _table(
    handlers: Handlers,
    default: Handler,
    uncounted: frozenset[int] = frozenset(),
    key_only: Handlers | None = None,
) -> Tables:
    def counting(handlers: Handlers) -> tuple[Handler, ...]:
        every = ((opcode, handlers.get(opcode, default)) for opcode in range(256))
        return tuple(
            handler if opcode in uncounted else counted(handler) for opcode, handler in every
        )

    return Tables(
        tuple(handlers.get(opcode, default) for opcode in range(256)),
        counting(handlers),
        counting(handlers if key_only is None else key_only),
    )


def _quiet_forms(handlers: dict[int, Handler]) -> dict[int, Handler]:
    return {
        opcode: (quiet_on_miss if opcode in QUIET_ON_MISS else quiet)(handlers[loud])
        for opcode, loud in LOUD.items()
        if loud in handlers
    }


def _shaped(
    handlers: Handlers,
    *,
    strict: bool,
    max_key: int = MAX_KEY,
    uncounted: frozenset[int] = frozenset(),
    key_only: bool = False,
) -> Handlers:
    """Let each handler see requests of its opcode's shape only; count what the store never sees."""
    return {
        code: handler
        if key_only and SHAPES[LOUD.get(code, code)].fits_key_only
        else shaped(
            handler,
            SHAPES[LOUD.get(code, code)],
            strict=strict,
            max_key=max_key,
            refuse=counted(misshapen) if code in uncounted else misshapen,
        )
        for code, handler in handlers.items()
    }


@lru_cache
def before_login(*, strict: bool) -> Tables:
    """Return the table before a login; see `after_login`."""
    return _table(_shaped(_ANYBODY, strict=strict), commands.log_in_first)


@lru_cache
def after_login(
    *, has_bucket: bool, store_counts: bool, collections: bool, traced: bool, strict: bool
) -> Tables:
    """Return the table of somebody who may work.

    Args:
        has_bucket: Whether there is a bucket to work in.
        store_counts: Whether its store counts plain requests itself.
        collections: Whether keys begin with the id of their collection.
        traced: Whether replies say how long they took.
        strict: Whether requests are checked as Couchbase does, or as memcached.
    """
    about_documents, max_key = _DOCUMENTS, MAX_KEY
    if collections:
        about_documents = {code: in_collections(handler) for code, handler in _DOCUMENTS.items()}
        max_key += 1
    uncounted = STORE_COUNTS if store_counts else frozenset()

    def handlers(*, key_only: bool) -> Handlers:
        in_bucket = _shaped(
            about_documents,
            strict=strict,
            max_key=max_key,
            uncounted=uncounted,
            key_only=key_only,
        )
        in_bucket |= _shaped(_IN_BUCKET, strict=strict)
        in_bucket |= _quiet_forms(in_bucket)
        if not has_bucket:
            in_bucket = dict.fromkeys(in_bucket, commands.no_bucket)
        elif traced:
            in_bucket = {code: with_duration(handler) for code, handler in in_bucket.items()}
        return in_bucket | _shaped(_LOGGED_IN | _ANYBODY, strict=strict)

    return _table(handlers(key_only=False), commands.unknown, uncounted, handlers(key_only=True))


REFUSED = _table({}, commands.refuse)

PRESERVING = frozenset({
    Opcode.SET, Opcode.REPLACE, Opcode.INCREMENT, Opcode.DECREMENT, Opcode.APPEND, Opcode.PREPEND,
    Opcode.SETQ, Opcode.REPLACEQ, Opcode.INCREMENTQ, Opcode.DECREMENTQ, Opcode.APPENDQ,
    Opcode.PREPENDQ, Opcode.SUBDOC_MULTI_MUTATION,
})  # fmt: skip
"""What may come with "preserve expiry".  Source, as for `DURABLE`: kv_engine's
``protocol/mcbp/opcode.cc``."""

DURABLE = frozenset({
    Opcode.SET, Opcode.ADD, Opcode.REPLACE, Opcode.DELETE, Opcode.INCREMENT, Opcode.DECREMENT,
    Opcode.APPEND, Opcode.PREPEND, Opcode.TOUCH, Opcode.GAT, Opcode.SUBDOC_MULTI_MUTATION,
})  # fmt: skip
"""What may come with a durability level; a quiet opcode cannot."""


def is_set(opcode: int) -> bool:
    """Return whether an opcode is SET or its quiet form."""
    return LOUD.get(opcode, opcode) == Opcode.SET


_POSITIONED = frozenset(_IN_BUCKET) - {Opcode.FLUSH, Opcode.STAT} | {
    Opcode.GET_CLUSTER_CONFIG,
    Opcode.VERBOSITY,
    Opcode.SASL_LIST,
    Opcode.GET_ERROR_MAP,
    Opcode.NOOP,
    Opcode.VERSION,
    Opcode.QUIT,
}
"""What is answered at once, and waits for nothing: only its reply has a place."""


def _and_quiet(loud: Iterable[int]) -> frozenset[int]:
    """Return opcodes, and the quiet forms of them."""
    known = frozenset(loud)
    return known | {opcode for opcode, form in LOUD.items() if form in known}


KEYED = _and_quiet(_DOCUMENTS)
"""Opcodes of requests about one document."""

BARRIERS = frozenset(range(256)) - KEYED - _and_quiet(_POSITIONED)
"""Opcodes of requests that wait for all before them, and that all behind them wait for.

Those are about the connection or the whole store, or are not known."""

REORDERED = frozenset(_DOCUMENTS) - {Opcode.GATK, Opcode.GET_META}
"""Opcodes of requests whose reply may overtake others where the client has agreed to it.

Those are kv_engine's: loud operations on documents.  Whoever sends quiet ones relies on order.

Source: Couchbase kv_engine ``docs/UnorderedExecution.md``."""
