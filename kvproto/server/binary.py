"""The binary session: what each frame of one connection means.

Owns what HELLO and a login change; the operations themselves are functions in
`kvproto.server.documents` and `kvproto.server.commands`, found by opcode in the tables of
`kvproto.server.opcodes`.

Source: memcached ``protocol_binary.h``; Couchbase kv_engine ``docs/BinaryProtocol.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvproto.config import Mode
from kvproto.errors import (
    DurabilityImpossible,
    NotSupported,
    OutcomeUnknown,
    RemoteProtocolError,
    StoreUnavailable,
)
from kvproto.server.answering import forward
from kvproto.server.buckets import Bucket
from kvproto.server.documents import holds_json
from kvproto.server.opcodes import (
    BARRIERS,
    DURABLE,
    KEYED,
    PRESERVING,
    REFUSED,
    REORDERED,
    STORE_COUNTS,
    after_login,
    before_login,
    is_set,
)
from kvproto.server.plain_state import PlainState
from kvproto.server.replies import Hangup, Reply, then
from kvproto.server.sasl import Mechanism
from kvproto.server.scan import scan_binary
from kvproto.server.server import KVServer, Peer
from kvproto.server.session import Scan
from kvproto.server.watched import WatchedStore, observed
from kvproto.server.window import BARRIER, FREE, Subject
from kvproto.store import Document, Key, Refusal
from kvproto.wire.binary import RequestDecoder, encode_response, error_reply, simple_reply
from kvproto.wire.collections import unknown_collection_body
from kvproto.wire.constants import Datatype, Feature, Status
from kvproto.wire.extras import mutation_token
from kvproto.wire.frames import FrameError, KeyRequest, Oversized, Request
from kvproto.wire.framing import Durability, decode_request_framing

__all__ = ["MAX_BODY_BEFORE_LOGIN", "BinarySession"]

MAX_BODY_BEFORE_LOGIN = 16 * 1024
"""Bytes; far above any login, far below what fills a machine when thousands send it at once."""

_BESIDE_VALUE = 1024
"""Bytes of a body that are no value: framing, extras and the longest key."""

_STATUS_OF: dict[Refusal, int] = {
    Refusal.NOT_FOUND: Status.NOT_FOUND,
    Refusal.EXISTS: Status.EXISTS,
    Refusal.NOT_STORED: Status.NOT_STORED,
    Refusal.TOO_BIG: Status.TOO_BIG,
    Refusal.NOT_A_NUMBER: Status.NOT_A_NUMBER,
    Refusal.LOCKED: Status.LOCKED,
    Refusal.NOT_LOCKED: Status.NOT_LOCKED,
    Refusal.NO_MEMORY: Status.NO_MEMORY,
}

_PLAIN_STATUS_OF: dict[Refusal, int] = {
    **_STATUS_OF,
    # Clients that have not negotiated XERROR do not know "locked"; "try again later" they do.
    Refusal.LOCKED: Status.TEMPORARY_FAILURE,
    Refusal.NOT_LOCKED: Status.TEMPORARY_FAILURE,
}

_WITH_MANIFEST = frozenset({Status.UNKNOWN_COLLECTION, Status.UNKNOWN_SCOPE})
"""Answers that tell which manifest they were looked up in."""


def _is_durable(request: Request | Oversized) -> bool:
    """Return whether a request's framing asks for durability."""
    if not isinstance(request, Request) or not request.framing:
        return False
    return decode_request_framing(request.framing).durability is not None


def _is_fenced(request: Request) -> bool:
    """Return whether a request's framing asks for a barrier."""
    try:
        return decode_request_framing(request.framing).barrier
    except RemoteProtocolError:
        return False  # it will be refused


_LEVELS = frozenset({1, 2, 3})


class BinarySession:
    """The binary protocol's `kvproto.server.session.Dialect`.

    Args:
        server: What all sessions share.
        peer: Who the other side is.

    Attributes:
        scan: Serves, or forwards, requests from the beginning of a read.
        bucket: Where this session's documents are; None when its user may use none.
        selected: Whether the client has selected the bucket, or just found itself there.
        said_hello: Whether the client is a modern one: error bodies may be empty, DELETE has a CAS.
        in_order: Whether replies come in the order of requests; the client may renounce it.
        preserve_expiry: Whether the request that is being served says so.
        mechanism: The login under way.
        mechanism_name: Its name.
        plain_state: What its scan knows of it, as it is now.

    The attributes that a `PlainState` has too are the same here.
    """

    usual_scan: Scan | None = staticmethod(scan_binary) if scan_binary else None
    """What `scan` is unless requests are forwarded."""

    __slots__ = (
        "_decoder",
        "_key_table",
        "_outlet",
        "_pipe",
        "_piped",
        "_status_of",
        "_strict",
        "_table",
        "_tables",
        "_unobserved",
        "bucket",
        "collections",
        "counts",
        "feed",
        "get",
        "in_order",
        "json",
        "max_body",
        "mechanism",
        "mechanism_name",
        "peer",
        "plain_state",
        "preserve_expiry",
        "said_hello",
        "scan",
        "selected",
        "server",
        "set_plainly",
        "store",
        "timer",
        "tokens",
    )

    def __init__(self, server: KVServer, peer: Peer) -> None:
        self.server = server
        self.peer = peer
        self._strict = server.settings.mode is Mode.COUCHBASE
        self.max_body = MAX_BODY_BEFORE_LOGIN
        self._decoder = RequestDecoder(self.max_body)
        self._outlet: Any = None
        self._pipe: Any = None
        self._piped: Any = None
        self._unobserved = False
        self.feed = self._decoder.feed
        self.bucket: Bucket | None = None
        self.counts = server.requests
        self.selected = False
        self.said_hello = False
        self.preserve_expiry = False
        self.mechanism: Mechanism | None = None
        self.mechanism_name = b""
        self._set_features(frozenset())
        self.update_rights()

    @property
    def error(self) -> FrameError | None:
        """Why the stream cannot be read any further."""
        return self._decoder.error

    @property
    def held(self) -> bool:
        """Whether the next bytes continue something."""
        return self._decoder.held

    @property
    def partial(self) -> bool:
        """Whether a request has been received in part."""
        return self._decoder.partial or bool(self._pipe is not None and self._pipe.tail)

    # forwarding

    def attach(self, outlet: Any) -> None:
        """Take the connection that forwarded replies are written to.

        A store that can forward requests as they are (`open_pipe`) does so from now on.
        """
        self._outlet = outlet
        self._choose_scan()

    @property
    def forwarding(self) -> bool:
        """Whether forwarded requests are under way: whatever else there is must wait for them."""
        return self._pipe is not None and self._pipe.busy

    def give_back(self) -> None:
        """Let the decoder have what is there of a request that has not been forwarded yet."""
        if self._pipe is not None and self._pipe.tail:
            tail, self._pipe.tail = self._pipe.tail, b""
            self._decoder.feed(tail)

    def detach(self) -> None:
        """Let go of what is not complete, and of forwarded requests: the client is gone."""
        self._decoder.discard()
        if self._pipe is not None:
            self._pipe.close()

    @property
    def buffered(self) -> int:
        """Bytes that are held of a request that has been received in part."""
        return self._decoder.buffered

    # what changes a session

    def update_rights(self) -> None:
        """Let the peer do what its user may; called whenever that has changed."""
        user = self.peer.user
        if user is not None:
            # Whoever logs in anew stays in the bucket that was selected, if that is allowed.
            kept = self.bucket
            if kept is None or not self.selected or self.server.bucket(user, kept.name) is None:
                self._use(self.server.default_bucket(user), selected=False)
        self.limit_values()
        self._choose_table()

    def limit_values(self) -> None:
        """Take requests as long as settings and login allow; called when these have changed."""
        known = self.peer.user is not None
        self.max_body = (
            self.server.settings.value_limit + _BESIDE_VALUE if known else MAX_BODY_BEFORE_LOGIN
        )
        self._decoder.max_body = self.max_body

    def select(self, bucket: Bucket | None) -> None:
        """Work in this bucket from now on, or in none."""
        self._use(bucket, selected=True)
        self._choose_table()

    def enable(self, features: Iterable[int]) -> None:
        """Put into effect what HELLO has agreed on; an earlier HELLO is forgotten."""
        self.said_hello = True
        self._set_features(frozenset(features))
        self._choose_table()

    def _set_features(self, features: frozenset[int]) -> None:
        self.collections = Feature.COLLECTIONS in features
        self.json = Feature.JSON in features
        self.tokens = Feature.MUTATION_SEQNO in features
        self.in_order = Feature.UNORDERED not in features
        self.timer = self.server.timer if Feature.TRACING in features else None
        self._status_of = _STATUS_OF if Feature.XERROR in features else _PLAIN_STATUS_OF

    def _use(self, bucket: Bucket | None, *, selected: bool) -> None:
        self.bucket, self.selected = bucket, selected
        self.counts = self.server.requests if bucket is None else bucket.requests
        if bucket is not None:
            self.store = bucket.store_for_connection()
            self._choose_store()

    def observe(self) -> None:
        """Use the store as it is, or watched; while requests are forwarded, not yet."""
        self._unobserved = self.forwarding
        if self.bucket is not None and not self._unobserved:
            self._choose_store()
            self._choose_table()

    def _choose_store(self) -> None:
        bucket = self.bucket
        if bucket is not None:
            self.store = observed(self.store, self.server.watch, bucket, self.peer.number)
            usual = self.store is bucket.store
            self.get = bucket.get if usual else self.store.get
            self.set_plainly = bucket.plain_set if usual else None

    def _choose_table(self) -> None:
        state = PlainState(self.collections, self.max_body, self.json, self.tokens, self.timer)
        known = self.peer.user is not None and not self.peer.refused
        if known and self.bucket is not None and self.store is self.bucket.store:
            state = self.bucket.plain_state(state)
        self.plain_state = state
        if self.peer.refused:
            self._tables = REFUSED
        elif self.peer.user is None:
            self._tables = before_login(strict=self._strict)
        else:
            self._tables = after_login(
                has_bucket=self.bucket is not None,
                store_counts=state.get is not None,
                collections=self.collections,
                traced=self.timer is not None,
                strict=self._strict,
            )
        self._table = self._tables.counting
        self._key_table = self._tables.key_only
        self._choose_scan()

    def _choose_scan(self) -> None:
        """Forward plain requests where the store can, for clients that have not said HELLO."""
        logged_in = self.bucket is not None and self.peer.user is not None
        make = getattr(type(self.store), "open_pipe", None) if logged_in else None
        if make is None or self._outlet is None or self.said_hello or self.peer.refused:
            self._pipe = None
        elif self._pipe is None or self._piped is not self.store:
            self._piped = self.store
            self._pipe = make(self.store, self._outlet)
        self.scan = self.usual_scan if self._pipe is None else forward

    def execute(self, request: Request | Oversized) -> Reply:
        """Serve one frame."""
        if isinstance(request, KeyRequest):
            return self._key_table[request.opcode](self, request)
        if request.__class__ is Request and not request.framing:
            return self._table[request.opcode](self, request)
        serve: Any = BinarySession._framed
        if isinstance(request, Oversized):
            serve = BinarySession._oversized
        if self.plain_state.get is not None and request.opcode in STORE_COUNTS:
            reply: Reply = serve(self, request)
        else:
            reply = self.counts.binary(serve, self, request)
        return reply

    begin = execute

    def conclude(self, request: Any, reply: Reply) -> Reply:
        """Return what is sent now that it is the turn of this reply: the same."""
        return reply

    def subject(self, request: Request | Oversized, *, started: bool = False) -> Subject:
        """Return what a request is about, so that it waits for the right others.

        Args:
            request: The request.
            started: Whether it has been served up to a Deferred, so that its key is the store's.
        """
        opcode, bucket = request.opcode, self.bucket
        if opcode in BARRIERS or not (self.in_order or opcode in REORDERED):
            return BARRIER
        if request.__class__ is Request and request.framing and _is_fenced(request):
            return BARRIER
        key = request.key
        if not key or bucket is None or opcode not in KEYED:
            return FREE
        if started or not self.collections:
            return key
        try:
            return bucket.key(key)
        except RemoteProtocolError:
            return FREE  # it will be refused

    # frames out of the ordinary

    def _framed(self, request: Request) -> Reply:
        """Serve a request with flexible framing."""
        try:
            framing = decode_request_framing(request.framing)
        except RemoteProtocolError as e:
            return self.protocol_error_to(request, e)
        if framing.durability is not None:
            if request.opcode not in DURABLE:
                return self.error_to(request, Status.INVALID)
            if framing.durability.level not in _LEVELS:
                return self.error_to(request, Status.DURABILITY_INVALID_LEVEL)
        if framing.impersonate is not None:
            return self.error_to(request, Status.NO_ACCESS)
        if framing.stream_id is not None:
            return self.error_to(request, Status.INVALID)
        if framing.preserve_ttl and request.opcode not in PRESERVING:
            return self.error_to(request, Status.NOT_SUPPORTED)
        self.preserve_expiry = framing.preserve_ttl
        try:
            if framing.durability is not None and self.bucket is not None:
                return self._durably(request, framing.durability)
            return self._tables.bare[request.opcode](self, request)
        finally:
            self.preserve_expiry = False

    def _durably(self, request: Request, durability: Durability) -> Reply:
        """Serve a mutation that is to be durable before it is answered."""
        usual, plainly = self.store, self.set_plainly
        milliseconds = durability.timeout_ms
        timeout = None if milliseconds is None else milliseconds / 1000
        durable = usual.durable(durability.level, timeout)
        if durable is None:
            return self.error_to(request, Status.DURABILITY_IMPOSSIBLE)
        self.store, self.set_plainly = durable, None
        try:
            return self._tables.bare[request.opcode](self, request)
        finally:
            self.store, self.set_plainly = usual, plainly

    def _oversized(self, frame: Oversized) -> Reply:
        """Answer a frame that was thrown away."""
        request = Request(opcode=frame.opcode, opaque=frame.opaque, key=frame.key or b"")
        if self.peer.user is None or self.bucket is None:
            return self._tables.bare[frame.opcode](self, request)
        if frame.answer == Status.TOO_BIG:
            self.server.counters.too_large += 1
        if frame.key and frame.answer == Status.TOO_BIG and is_set(frame.opcode):
            try:
                key = self.bucket.key(frame.key) if self.collections else frame.key
            except RemoteProtocolError as e:
                return self.protocol_error_to(request, e)
            if isinstance(self.store, WatchedStore):
                self.store.too_large(key, b"set")
            return self.set_failed(request, key, Status.TOO_BIG)
        return self.error_to(request, frame.answer)

    # what handlers answer with

    def error_to(self, request: Request, status: int) -> bytes:
        """Encode an error: for classic clients with a text, which may not be empty."""
        if self.said_hello:
            return simple_reply(request.opcode, status, request.opaque)
        return error_reply(request.opcode, status, request.opaque)

    def refusal_to(self, request: Request, refusal: Refusal) -> bytes:
        """Encode what the store refused."""
        return self.error_to(request, self._status_of[refusal])

    def protocol_error_to(self, request: Request, error: RemoteProtocolError) -> bytes:
        """Encode the answer to a request that is malformed, or about what does not exist."""
        status = Status.INVALID if error.status is None else error.status
        if self.bucket is not None and self.json and status in _WITH_MANIFEST:
            return encode_response(
                request.opcode,
                status,
                value=unknown_collection_body(self.bucket.manifest.uid),
                opaque=request.opaque,
                datatype=Datatype.JSON,
            )
        return self.error_to(request, status)

    def datatype(self, document: Document) -> int:
        """Return the datatype bits that this client understands."""
        return int(self.json and holds_json(document))

    def token(self, document: Document) -> bytes:
        """Encode the extras of a successful mutation."""
        return mutation_token(self.store.uuid, document.seqno) if self.tokens else b""

    def set_failed(self, request: Request, key: Key, status: int) -> Reply:
        """Answer a SET that found no room; as memcached does, let nobody read the old value."""
        error = self.error_to(request, status)
        if not self.server.settings.oversized_set_deletes:
            return error
        return then(self.store.discard(key), lambda _: error)

    def failed(self, request: Any, error: BaseException | None = None) -> Reply:
        """Answer a request that could not be served."""
        status = Status.INTERNAL
        if isinstance(error, OutcomeUnknown):
            if not _is_durable(request):
                # Any status would be a lie, and a counter that is sent again counts twice.
                return Hangup(reason=str(error))
            status = Status.SYNC_WRITE_AMBIGUOUS
        elif isinstance(error, DurabilityImpossible):
            status = Status.DURABILITY_IMPOSSIBLE
        elif isinstance(error, NotSupported):
            status = Status.NOT_SUPPORTED
        elif isinstance(error, StoreUnavailable):
            status = Status.TEMPORARY_FAILURE
        return self.error_to(request, status)

    def last_words(self, error: RemoteProtocolError) -> bytes:
        """Encode the answer to a frame that broke the stream, if it was read far enough."""
        if error.status is None or not isinstance(error, FrameError):
            return b""
        return error_reply(error.opcode, error.status, error.opaque)
