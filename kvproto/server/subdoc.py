"""Binary operations on parts of documents: several paths in one request.

Translates between the wire's layout and the store's operations; what a path means is the store's.

Source: Couchbase kv_engine ``docs/SubDocument.md``.
"""

from __future__ import annotations

from typing import Any

from kvproto.errors import RemoteProtocolError
from kvproto.server.client import BinaryClient
from kvproto.server.replies import COPY_LIMIT, Reply, then
from kvproto.store import (
    LOCKED_CAS,
    LookupResult,
    MutationResult,
    PathStatus,
    Refusal,
)
from kvproto.wire import subdoc as wire
from kvproto.wire.binary import encode_response, response_head
from kvproto.wire.frames import Request

__all__ = ["lookup_in", "mutate_in"]


def lookup_in(session: BinaryClient, request: Request) -> Reply:
    """SUBDOC_MULTI_LOOKUP."""
    try:
        lookup = wire.decode_lookup(request.extras, request.value)
    except RemoteProtocolError as e:
        return session.protocol_error_to(request, e)
    outcome = session.store.lookup_in(request.key, lookup.specs, lookup.doc_flags)
    return then(outcome, _looked_up, session, request)


def _looked_up(outcome: Any, session: BinaryClient, request: Request) -> Reply:
    if not isinstance(outcome, LookupResult):
        return _refused(outcome, session, request)
    document = outcome.document
    parts = wire.lookup_result_parts(outcome.results)
    size = sum(map(len, parts))
    head = response_head(
        request.opcode,
        outcome.status,
        value_size=size,
        opaque=request.opaque,
        cas=LOCKED_CAS if document.locked_until else document.cas,
    )
    return [head, *parts] if size > COPY_LIMIT else b"".join((head, *parts))


def mutate_in(session: BinaryClient, request: Request) -> Reply:
    """SUBDOC_MULTI_MUTATION."""
    try:
        mutation = wire.decode_mutation(request.extras, request.value)
    except RemoteProtocolError as e:
        return session.protocol_error_to(request, e)
    outcome = session.store.mutate_in(
        request.key,
        mutation.specs,
        mutation.doc_flags,
        mutation.expiry or 0,
        request.cas,
        flags=mutation.user_flags,
        preserve_expiry=session.preserve_expiry,
    )
    return then(outcome, _mutated, session, request)


def _mutated(outcome: Any, session: BinaryClient, request: Request) -> Reply:
    if not isinstance(outcome, MutationResult):
        return _refused(outcome, session, request)
    document = outcome.document
    if document is None:
        [(index, status, _)] = outcome.results
        value = wire.encode_mutation_failure(index, status)
        return encode_response(request.opcode, outcome.status, value=value, opaque=request.opaque)
    return encode_response(
        request.opcode,
        outcome.status,
        extras=session.token(document),
        value=wire.encode_mutation_results(outcome.results),
        opaque=request.opaque,
        cas=document.cas,
    )


def _refused(outcome: PathStatus | Refusal, session: BinaryClient, request: Request) -> Reply:
    """Answer a request of which no path was looked at."""
    if isinstance(outcome, Refusal):
        return session.refusal_to(request, outcome)
    return session.error_to(request, outcome)
