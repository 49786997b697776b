"""Binary operations on documents: one function each, from a request to its reply.

Each asks the store, and encodes what the store says; the shape of its request has been checked
(`kvproto.server.shapes`).  Quiet opcodes, collections and durations are `kvproto.server.decorators`
around the same functions.

Source: memcached ``protocol_binary.h``; Couchbase kv_engine ``docs/BinaryProtocol.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred

from kvproto.server.client import BinaryClient
from kvproto.server.replies import COPY_LIMIT, Reply, then
from kvproto.store import LOCKED_CAS, Document, Key, Refusal, is_json
from kvproto.wire.binary import (
    counter_reply,
    encode_response,
    get_head,
    getk_head,
    mutation_reply,
    pack_hit,
    simple_reply,
)
from kvproto.wire.collections import join_key
from kvproto.wire.constants import Datatype, Status
from kvproto.wire.frames import Request

__all__ = [
    "Handler",
    "add",
    "append",
    "counter",
    "delete",
    "encode_hit",
    "encode_outcome",
    "get",
    "get_and_touch",
    "get_locked",
    "get_meta",
    "getk",
    "getk_and_touch",
    "holds_json",
    "prepend",
    "replace",
    "set_",
    "set_refused",
    "touch",
    "unlock",
]

Handler: TypeAlias = "Callable[[BinaryClient, Request], Reply]"
Encode: TypeAlias = "Callable[[BinaryClient, Request, Document], Reply]"

_unpack_store_extras = Struct(">II").unpack
_COUNTER_EXTRAS = Struct(">QQI")
_META = Struct(">IIIQ")
_META_WITH_DATATYPE = Struct(">IIIQB")

_LONGEST_PARSED = 32 * 1024
"""Bytes of a value that is parsed to see whether it is JSON: a millisecond, or 22 for nothing but
brackets, that all other connections wait.  Of a longer one it is believed what the client said."""


def holds_json(document: Document) -> bool:
    """Return whether a document is JSON, as far as a response's datatype is concerned."""
    if len(document.value) > _LONGEST_PARSED and not document.kind:
        return bool(document.datatype & Datatype.JSON)
    return is_json(document)


def encode_outcome(outcome: Any, session: BinaryClient, request: Request, encode: Encode) -> Reply:
    """Encode what a store answered, at once or when it has."""
    if outcome.__class__ is Document:
        return encode(session, request, outcome)
    if isinstance(outcome, Deferred):
        return outcome.addCallback(encode_outcome, session, request, encode)
    return session.refusal_to(request, Refusal.NOT_FOUND if outcome is None else outcome)


# Reading


def get(session: BinaryClient, request: Request) -> Reply:
    """GET; the shortest way through, most requests are this one."""
    find = session.get  # CPython is slower to call what is an attribute
    document = find(request.key)
    if document.__class__ is not Document:
        return encode_outcome(document, session, request, encode_hit)
    value = document.value
    if len(value) > COPY_LIMIT or document.locked_until:
        return encode_hit(session, request, document)
    head = pack_hit(
        0x81,
        request.opcode,
        4,
        session.json and holds_json(document),
        4 + len(value),
        request.opaque,
        document.cas,
        document.flags,
    )
    return head + value


def encode_hit(session: BinaryClient, request: Request, document: Document) -> Reply:
    """Encode a hit without the key."""
    cas = LOCKED_CAS if document.locked_until else document.cas
    value = document.value
    datatype = session.datatype(document)
    head = get_head(request.opcode, datatype, request.opaque, cas, document.flags, len(value))
    return [head, value] if len(value) > COPY_LIMIT else head + value


def _found_with_key(session: BinaryClient, request: Request, document: Document) -> Reply:
    """Encode a hit with the key."""
    cas = LOCKED_CAS if document.locked_until else document.cas
    value = document.value
    datatype = session.datatype(document)
    key = _as_sent(request.key) if session.collections else request.key
    head = getk_head(request.opcode, datatype, request.opaque, cas, document.flags, key, len(value))
    return [head, value] if len(value) > COPY_LIMIT else head + value


def _as_sent(key: Key) -> bytes:
    """Return a key of the store as a client that knows collections sent it."""
    return join_key(*key) if isinstance(key, tuple) else b"\0" + key


def _found_locked(session: BinaryClient, request: Request, document: Document) -> Reply:
    """Encode the document that was just locked: its real CAS, which opens the lock."""
    value = document.value
    datatype = session.datatype(document)
    head = get_head(
        request.opcode, datatype, request.opaque, document.cas, document.flags, len(value)
    )
    return [head, value] if len(value) > COPY_LIMIT else head + value


def getk(session: BinaryClient, request: Request) -> Reply:
    """GETK: GET whose answer names the key."""
    return _with_key(session.get(request.key), session, request)


def _with_key(outcome: Any, session: BinaryClient, request: Request) -> Reply:
    """Encode what GETK or GATK found; a miss names the key too, in place of a text."""
    if isinstance(outcome, Deferred):
        return outcome.addCallback(_with_key, session, request)
    if outcome is None or outcome is Refusal.NOT_FOUND:
        key = _as_sent(request.key) if session.collections else request.key
        return encode_response(request.opcode, Status.NOT_FOUND, key=key, opaque=request.opaque)
    return encode_outcome(outcome, session, request, _found_with_key)


def get_and_touch(session: BinaryClient, request: Request) -> Reply:
    """GAT."""
    outcome = session.store.get_and_touch(request.key, int.from_bytes(request.extras))
    return encode_outcome(outcome, session, request, encode_hit)


def getk_and_touch(session: BinaryClient, request: Request) -> Reply:
    """GATK."""
    outcome = session.store.get_and_touch(request.key, int.from_bytes(request.extras))
    return _with_key(outcome, session, request)


def get_meta(session: BinaryClient, request: Request) -> Reply:
    """GET_META: what the SDK's ``exists`` asks for."""
    if request.extras > b"\2":
        return session.error_to(request, Status.INVALID)
    return encode_outcome(session.get(request.key), session, request, _meta)


def _meta(session: BinaryClient, request: Request, document: Document) -> Reply:
    # Version 2 of the request is answered with the datatype; its length tells clients so.
    fields = (int(document.deleted), document.flags, document.expiry, document.seqno)
    if request.extras == b"\2":
        datatype = holds_json(document) | (Datatype.XATTR if document.xattrs else 0)
        extras = _META_WITH_DATATYPE.pack(*fields, datatype)
    else:
        extras = _META.pack(*fields)
    cas = LOCKED_CAS if document.locked_until else document.cas
    return encode_response(request.opcode, extras=extras, opaque=request.opaque, cas=cas)


# Writing


def _mutated(session: BinaryClient, request: Request, document: Document) -> Reply:
    if session.tokens:
        return mutation_reply(
            request.opcode, request.opaque, document.cas, session.store.uuid, document.seqno
        )
    return simple_reply(request.opcode, 0, request.opaque, document.cas)


def _touched(session: BinaryClient, request: Request, document: Document) -> Reply:
    return simple_reply(request.opcode, 0, request.opaque, document.cas)


def set_(session: BinaryClient, request: Request) -> Reply:
    """SET; in memcached mode it deletes what it could not replace."""
    flags, expiry = _unpack_store_extras(request.extras)
    outcome: Any = None
    plainly = session.set_plainly
    if plainly is not None and not (request.cas or session.preserve_expiry):
        # The store's `set` would come there first, too.
        outcome = plainly(request.key, request.value, flags, expiry, request.datatype)
    if outcome is None:
        outcome = session.store.set(
            request.key,
            request.value,
            flags,
            expiry,
            request.cas,
            datatype=request.datatype,
            preserve_expiry=session.preserve_expiry,
        )
    if outcome.__class__ is Document:
        return _mutated(session, request, outcome)
    return then(outcome, set_refused, session, request)


def _storing(method: str) -> Handler:
    def handler(session: BinaryClient, request: Request) -> Reply:
        flags, expiry = _unpack_store_extras(request.extras)
        outcome = getattr(session.store, method)(
            request.key,
            request.value,
            flags,
            expiry,
            request.cas,
            datatype=request.datatype,
            preserve_expiry=session.preserve_expiry,
        )
        return encode_outcome(outcome, session, request, _mutated)

    return handler


add = _storing("add")
replace = _storing("replace")


def set_refused(outcome: Any, session: BinaryClient, request: Request) -> Reply:
    """Answer a SET that was not stored at once."""
    if outcome is Refusal.TOO_BIG:
        return session.set_failed(request, request.key, Status.TOO_BIG)
    if outcome is Refusal.NO_MEMORY:
        return session.set_failed(request, request.key, Status.NO_MEMORY)
    return encode_outcome(outcome, session, request, _mutated)


def _extending(method: str) -> Handler:
    def handler(session: BinaryClient, request: Request) -> Reply:
        outcome = getattr(session.store, method)(request.key, request.value, request.cas)
        return encode_outcome(outcome, session, request, _mutated)

    return handler


append = _extending("append")
prepend = _extending("prepend")


def delete(session: BinaryClient, request: Request) -> Reply:
    """DELETE."""
    outcome = session.store.delete(request.key, request.cas)
    return encode_outcome(outcome, session, request, _deleted)


def _deleted(session: BinaryClient, request: Request, document: Document) -> Reply:
    # Classic clients insist on CAS 0; the SDK takes 0 for "nothing was done".
    if session.said_hello:
        return _mutated(session, request, document)
    return simple_reply(request.opcode, 0, request.opaque)


def counter(method: str) -> Handler:
    """Make the handler of INCREMENT or DECREMENT."""

    def handler(session: BinaryClient, request: Request) -> Reply:
        delta, initial, expiry = _COUNTER_EXTRAS.unpack(request.extras)
        outcome = getattr(session.store, method)(request.key, delta, initial, expiry, request.cas)
        return encode_outcome(outcome, session, request, _counted)

    return handler


def _counted(session: BinaryClient, request: Request, document: Document) -> Reply:
    token = (session.store.uuid, document.seqno) if session.tokens else None
    return counter_reply(request.opcode, request.opaque, document.cas, int(document.value), token)


# Expiry and locks


def touch(session: BinaryClient, request: Request) -> Reply:
    """TOUCH."""
    expiry = int.from_bytes(request.extras)
    return encode_outcome(session.store.touch(request.key, expiry), session, request, _touched)


def get_locked(session: BinaryClient, request: Request) -> Reply:
    """GET_LOCKED."""
    seconds = int.from_bytes(request.extras)
    outcome = session.store.get_and_lock(request.key, seconds)
    return encode_outcome(outcome, session, request, _found_locked)


def unlock(session: BinaryClient, request: Request) -> Reply:
    """UNLOCK; only the lock's CAS opens it."""
    return then(session.store.unlock(request.key, request.cas), _unlocked, session, request)


def _unlocked(outcome: Refusal | None, session: BinaryClient, request: Request) -> Reply:
    if outcome is None:
        return simple_reply(request.opcode, 0, request.opaque)
    return session.refusal_to(request, outcome)
