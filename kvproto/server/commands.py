"""Binary commands that are about the connection or the server, not about one document.

Source: memcached ``protocol_binary.h``, ``doc/protocol-binary.xml``; Couchbase kv_engine
``docs/BinaryProtocol.md`` and ``docs/sasl.md``.
"""

from __future__ import annotations

import json
from struct import Struct

from kvproto.errors import RemoteProtocolError
from kvproto.server.client import BinaryClient
from kvproto.server.replies import Hangup, Reply, then
from kvproto.server.sasl import MALFORMED, MECHANISMS, Verdict, mechanism_list
from kvproto.server.statistics import Report, report
from kvproto.server.topology import CONFIG_EPOCH
from kvproto.server.topology import error_map as make_error_map
from kvproto.wire.binary import encode_response, simple_reply
from kvproto.wire.collections import DEFAULT, collection_id_extras, split_path
from kvproto.wire.constants import Datatype, Status
from kvproto.wire.extras import config_version
from kvproto.wire.frames import Request
from kvproto.wire.hello import decode_features, encode_features, negotiate

__all__ = [
    "cluster_config",
    "collection_id",
    "error_map",
    "flush",
    "hello",
    "log_in_first",
    "manifest",
    "no_bucket",
    "noop",
    "observe_seqno",
    "quit_",
    "quit_quietly",
    "refuse",
    "sasl_auth",
    "sasl_list",
    "sasl_step",
    "scope_id",
    "select_bucket",
    "stat",
    "unknown",
    "verbosity",
    "version",
]


_VBUCKET_UUID = Struct(">Q")
_OBSERVED = Struct(">BHQQQ")
"""Format (0: no failover), vbucket, its UUID, last persisted and current sequence number."""

_LONGEST_ARGUMENT = 4096
"""Bytes of the JSON that STAT may come with; nothing here takes arguments in it."""

NO_BUCKET_NAME = b"@no bucket@"
"""What SELECT_BUCKET takes for none (kv_engine ``docs/BinaryProtocol.md``)."""


def unknown(session: BinaryClient, request: Request) -> Reply:
    """Answer an opcode that does not exist here; the connection stays."""
    return session.error_to(request, Status.UNKNOWN_COMMAND)


def log_in_first(session: BinaryClient, request: Request) -> Reply:
    """Answer whatever needs a login from somebody who has none."""
    return session.error_to(request, Status.AUTH_ERROR)


def refuse(session: BinaryClient, request: Request) -> Reply:
    """Answer somebody who may not even log in."""
    return Hangup(
        session.error_to(request, Status.AUTH_ERROR), "its certificate names no known user"
    )


def no_bucket(session: BinaryClient, request: Request) -> Reply:
    """Answer whatever needs a bucket from a user who may use none."""
    return session.error_to(request, Status.NO_BUCKET)


def noop(session: BinaryClient, request: Request) -> Reply:
    """NOOP."""
    return simple_reply(request.opcode, 0, request.opaque)


def version(session: BinaryClient, request: Request) -> Reply:
    """VERSION."""
    value = session.server.settings.version.encode()
    return encode_response(request.opcode, value=value, opaque=request.opaque)


def verbosity(session: BinaryClient, request: Request) -> Reply:
    """VERBOSITY: accepted; what is logged is the operator's business, not a client's."""
    return simple_reply(request.opcode, 0, request.opaque)


def quit_(session: BinaryClient, request: Request) -> Reply:
    """QUIT: say so, and close."""
    return Hangup(simple_reply(request.opcode, 0, request.opaque))


def quit_quietly(session: BinaryClient, request: Request) -> Reply:
    """QUITQ: close."""
    return Hangup()


def flush(session: BinaryClient, request: Request) -> Reply:
    """FLUSH, where the operator allows it."""
    if not session.server.settings.flush_allowed:
        return session.error_to(request, Status.NO_ACCESS)
    done = session.store.flush(int.from_bytes(request.extras))
    return then(done, lambda _: simple_reply(request.opcode, 0, request.opaque))


def stat(session: BinaryClient, request: Request) -> Reply:
    """STAT: one packet for each item, and an empty one that ends them."""
    if request.value and not (request.datatype & Datatype.JSON and _is_json(request.value)):
        return session.error_to(request, Status.INVALID)
    # The bucket's own, whoever watches, or shares it: what was reset is known by it.
    store = session.store if session.bucket is None else session.bucket.store
    found = report(session.server, store, tuple(request.key.split()))
    return then(found, _statistics, session, request)


def _is_json(value: bytes) -> bool:
    """Return whether a value is JSON that is short enough to be looked at."""
    try:
        return len(value) <= _LONGEST_ARGUMENT and json.loads(value) is not ...
    except (ValueError, RecursionError):
        return False


def _statistics(found: Report, session: BinaryClient, request: Request) -> Reply:
    if found.wrong:
        return session.error_to(request, Status.NOT_FOUND)
    opcode, opaque = request.opcode, request.opaque
    packets = [
        encode_response(opcode, key=name.encode(), value=str(value).encode(), opaque=opaque)
        for name, value in found.items.items()
    ]
    packets.append(simple_reply(opcode, 0, opaque))
    return b"".join(packets)


def observe_seqno(session: BinaryClient, request: Request) -> Reply:
    """OBSERVE_SEQNO: up to where this store's history is in memory, and up to where on disk."""
    if len(request.value) != _VBUCKET_UUID.size:
        return session.error_to(request, Status.INVALID)
    store = session.store
    if _VBUCKET_UUID.unpack(request.value)[0] != store.uuid:
        # A history that this store knows nothing of; kv_engine has it so for unknown UUIDs.
        return session.error_to(request, Status.NOT_FOUND)
    value = _OBSERVED.pack(0, request.vbucket, store.uuid, store.persisted_seqno, store.seqno)
    return encode_response(request.opcode, value=value, opaque=request.opaque)


def hello(session: BinaryClient, request: Request) -> Reply:
    """HELLO: agree on features."""
    try:
        wanted = decode_features(request.value)
    except RemoteProtocolError as e:
        return session.protocol_error_to(request, e)
    features = negotiate(wanted, session.server.features)
    session.enable(features)
    return encode_response(request.opcode, value=encode_features(features), opaque=request.opaque)


# Buckets and what clients are told of them


def select_bucket(session: BinaryClient, request: Request) -> Reply:
    """SELECT_BUCKET; whether a bucket does not exist or is somebody else's is not told apart."""
    user = session.peer.user
    if request.key == NO_BUCKET_NAME:
        session.select(None)
        return simple_reply(request.opcode, 0, request.opaque)
    name = request.key.decode("utf-8", "replace")
    bucket = None if user is None else session.server.bucket(user, name)
    if bucket is None:
        return session.error_to(request, Status.NO_ACCESS)
    session.select(bucket)
    return simple_reply(request.opcode, 0, request.opaque)


def cluster_config(session: BinaryClient, request: Request) -> Reply:
    """GET_CLUSTER_CONFIG: of the selected bucket, or of the cluster as long as none is."""
    try:
        known = config_version(request.extras)
    except RemoteProtocolError as e:
        return session.protocol_error_to(request, e)
    server = session.server
    if known is not None and known >= (CONFIG_EPOCH, server.revision):
        return simple_reply(request.opcode, 0, request.opaque)
    bucket = session.bucket if session.selected else None
    value = server.cluster_config(session.peer.port, bucket)
    return _json(request, value)


def error_map(session: BinaryClient, request: Request) -> Reply:
    """GET_ERROR_MAP."""
    version = int.from_bytes(request.value)
    if len(request.value) != 2 or not version:
        return session.error_to(request, Status.INVALID)
    return _json(request, make_error_map(version))


def manifest(session: BinaryClient, request: Request) -> Reply:
    """GET_MANIFEST: the collections of the bucket."""
    assert session.bucket is not None
    return _json(request, session.bucket.manifest.to_json())


def collection_id(session: BinaryClient, request: Request) -> Reply:
    """GET_COLLECTION_ID: of ``scope.collection``."""
    bucket = session.bucket
    assert bucket is not None
    if request.key and request.value:
        return session.error_to(request, Status.INVALID)
    try:
        # The path is the value; older clients have it in the key.
        scope, name = split_path(request.value or request.key)
        number = bucket.manifest.collection_id(scope, name)
    except RemoteProtocolError as e:
        return session.protocol_error_to(request, e)
    return encode_response(
        request.opcode,
        extras=collection_id_extras(bucket.manifest.uid, number),
        opaque=request.opaque,
    )


def scope_id(session: BinaryClient, request: Request) -> Reply:
    """GET_SCOPE_ID: of a scope's name, or of ``scope.collection``."""
    bucket = session.bucket
    assert bucket is not None
    if request.key and request.value:
        return session.error_to(request, Status.INVALID)
    scope = (request.value or request.key).partition(b".")[0].decode("utf-8", "replace")
    try:
        number = bucket.manifest.scope_id(scope or DEFAULT)
    except RemoteProtocolError as e:
        return session.protocol_error_to(request, e)
    return encode_response(
        request.opcode,
        extras=collection_id_extras(bucket.manifest.uid, number),
        opaque=request.opaque,
    )


def _json(request: Request, value: bytes) -> bytes:
    return encode_response(
        request.opcode, value=value, opaque=request.opaque, datatype=Datatype.JSON
    )


# Login


def sasl_list(session: BinaryClient, request: Request) -> Reply:
    """SASL_LIST: names of mechanisms."""
    names = mechanism_list(with_users=len(session.server.users) > 0)
    return encode_response(request.opcode, value=names, opaque=request.opaque)


def sasl_auth(session: BinaryClient, request: Request) -> Reply:
    """SASL_AUTH: begin a login; one that was under way is forgotten."""
    make = MECHANISMS.get(request.key)
    session.peer.begin("unknown" if make is None else request.key.decode())
    session.update_rights()
    if make is None:
        session.mechanism = None
        session.peer.conclude(False, "", "no such mechanism")
        return session.error_to(request, Status.AUTH_ERROR)
    session.mechanism = make(session.peer)
    session.mechanism_name = request.key
    return then(session.mechanism.step(request.value), _stepped, session, request)


def sasl_step(session: BinaryClient, request: Request) -> Reply:
    """SASL_STEP: go on with the login under way."""
    mechanism = session.mechanism
    if mechanism is None or request.key != session.mechanism_name:
        if mechanism is not None:
            session.peer.conclude(False, "", MALFORMED)
        session.mechanism = None
        return session.error_to(request, Status.AUTH_ERROR)
    return then(mechanism.step(request.value), _stepped, session, request)


def _stepped(verdict: Verdict, session: BinaryClient, request: Request) -> Reply:
    """Encode what a mechanism says."""
    session.update_rights()
    if verdict.done is None:
        status = Status.AUTH_CONTINUE
    else:
        session.mechanism = None
        if not verdict.done:
            return session.error_to(request, Status.AUTH_ERROR)
        status = Status.SUCCESS
    return encode_response(request.opcode, status, value=verdict.data, opaque=request.opaque)
