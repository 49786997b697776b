"""The binary session: what each frame of one connection means.

Owns what HELLO and a login change; the operations themselves are functions in
`kvproto.server.documents` and `kvproto.server.commands`, found by opcode in the tables of
`kvproto.server.opcodes`.

Source: memcached ``protocol_binary.h``; Couchbase kv_engine ``docs/BinaryProtocol.md``.
"""

from __future__ import annotations

from typing import Any

from kvproto.errors import RemoteProtocolError
from kvproto.server.opcodes import AFTER_LOGIN, BEFORE_LOGIN, REFUSED, accepts_framing, is_set
from kvproto.server.replies import Reply, when
from kvproto.server.sasl import Mechanism
from kvproto.server.shared import KVServer, Peer
from kvproto.store import Refusal
from kvproto.wire.binary import RequestDecoder, error_reply, simple_reply
from kvproto.wire.constants import Feature, Status
from kvproto.wire.frames import FrameError, Oversized, Request
from kvproto.wire.framing import decode_request_framing

__all__ = ["MAX_BODY_BEFORE_LOGIN", "BinarySession"]

MAX_BODY_BEFORE_LOGIN = 16 * 1024
"""Bytes; far above any login, far below what thousands of strangers could fill a machine with."""

_BESIDE_VALUE = 1024
"""Bytes of a body that are no value: framing, extras and the longest key."""

_STATUS_OF: dict[Refusal, int] = {
    Refusal.NOT_FOUND: Status.NOT_FOUND,
    Refusal.EXISTS: Status.EXISTS,
    Refusal.NOT_STORED: Status.NOT_STORED,
    Refusal.TOO_BIG: Status.TOO_BIG,
    Refusal.NOT_A_NUMBER: Status.NOT_A_NUMBER,
    # Clients that have not negotiated XERROR do not know "locked"; "try again later" they do.
    Refusal.LOCKED: Status.TEMPORARY_FAILURE,
    Refusal.NOT_LOCKED: Status.TEMPORARY_FAILURE,
    Refusal.NO_MEMORY: Status.NO_MEMORY,
}

_MAJORITY = 1
_PERSIST_LEVELS = frozenset({2, 3})


class BinarySession:
    """The binary protocol's `kvproto.server.protocol.Session`.

    Args:
        server: What all sessions share.
        peer: Who the other side is.

    Attributes:
        store: Where this session's documents are.
        get: The store's ``get``, looked up once.
        said_hello: Whether the client is a modern one: error bodies may be empty, DELETE has a CAS.
        features: What HELLO enabled.
        datatypes: Mask of the datatype bits that this client understands in responses.
        preserve_expiry: Whether the request that is being served says so.
        mechanism: The login under way.
        mechanism_name: Its name.
    """

    __slots__ = (
        "_decoder",
        "_table",
        "datatypes",
        "features",
        "feed",
        "get",
        "mechanism",
        "mechanism_name",
        "peer",
        "preserve_expiry",
        "said_hello",
        "server",
        "store",
    )

    def __init__(self, server: KVServer, peer: Peer) -> None:
        self.server = server
        self.peer = peer
        self._decoder = RequestDecoder(MAX_BODY_BEFORE_LOGIN)
        self.feed = self._decoder.feed
        self.store = server.store
        self.get = server.store.get
        self.said_hello = False
        self.features: frozenset[int] = frozenset()
        self.datatypes = 0
        self.preserve_expiry = False
        self.mechanism: Mechanism | None = None
        self.mechanism_name = b""
        self.update_rights()

    @property
    def error(self) -> FrameError | None:
        """Why the stream cannot be read any further."""
        return self._decoder.error

    @property
    def partial(self) -> bool:
        """Whether a request has been received in part."""
        return self._decoder.partial

    def update_rights(self) -> None:
        """Let the peer do what its user may; called whenever that has changed."""
        if self.peer.refused:
            self._table = REFUSED
        elif self.peer.user is None:
            self._table = BEFORE_LOGIN
        else:
            self._table = AFTER_LOGIN
            self._decoder.max_body = self.server.settings.value_limit + _BESIDE_VALUE

    def enable(self, features: list[int]) -> None:
        """Put into effect what HELLO has agreed on; an earlier HELLO is forgotten."""
        self.said_hello = True
        self.features = frozenset(features)
        self.datatypes = int(Feature.JSON in self.features)

    def execute(self, request: Request | Oversized) -> Reply:
        """Serve one frame."""
        if request.__class__ is Request and not request.framing:
            return self._table[request.opcode](self, request)
        if isinstance(request, Oversized):
            return self._oversized(request)
        return self._framed(request)

    # frames out of the ordinary

    def _framed(self, request: Request) -> Reply:
        """Serve a request with flexible framing."""
        try:
            framing = decode_request_framing(request.framing)
        except RemoteProtocolError as e:
            return self.error_to(request, Status.INVALID if e.status is None else e.status)
        preserve, durable = accepts_framing(request.opcode)
        if framing.durability is not None:
            if not durable:
                return self.error_to(request, Status.INVALID)
            level = framing.durability.level
            if level in _PERSIST_LEVELS:
                # Nothing here survives the process: to say anything else would be a lie.
                return self.error_to(request, Status.DURABILITY_IMPOSSIBLE)
            if level != _MAJORITY:
                return self.error_to(request, Status.DURABILITY_INVALID_LEVEL)
        if framing.impersonate is not None:
            return self.error_to(request, Status.NO_ACCESS)
        if framing.stream_id is not None or (framing.preserve_ttl and not preserve):
            return self.error_to(request, Status.INVALID)
        self.preserve_expiry = framing.preserve_ttl
        try:
            return self._table[request.opcode](self, request)
        finally:
            self.preserve_expiry = False

    def _oversized(self, frame: Oversized) -> Reply:
        """Answer a frame that was thrown away."""
        refused = Request(opcode=frame.opcode, opaque=frame.opaque)
        if self._table is not AFTER_LOGIN:
            return self._table[frame.opcode](self, refused)
        if frame.key and frame.answer == Status.TOO_BIG and is_set(frame.opcode):
            return self.set_failed(refused, frame.key, Status.TOO_BIG)
        return self.error_to(refused, frame.answer)

    # what handlers answer with

    def error_to(self, request: Request, status: int) -> bytes:
        """Encode an error: for classic clients with a text, which may not be empty."""
        if self.said_hello:
            return simple_reply(request.opcode, status, request.opaque)
        return error_reply(request.opcode, status, request.opaque)

    def refusal_to(self, request: Request, refusal: Refusal) -> bytes:
        """Encode what the store refused."""
        return self.error_to(request, _STATUS_OF[refusal])

    def set_failed(self, request: Request, key: bytes, status: int) -> Reply:
        """Answer a SET that found no room; as memcached does, let nobody read the old value."""
        error = self.error_to(request, status)
        if not self.server.settings.oversized_set_deletes:
            return error
        return when(self.store.discard(key), lambda _: error)

    def failed(self, request: Any) -> bytes:
        """Encode "internal error"."""
        if self.said_hello:
            return simple_reply(request.opcode, Status.INTERNAL, request.opaque)
        return error_reply(request.opcode, Status.INTERNAL, request.opaque)

    def last_words(self, error: RemoteProtocolError) -> bytes:
        """Encode the answer to a frame that broke the stream, if it was read far enough."""
        if error.status is None or not isinstance(error, FrameError):
            return b""
        return error_reply(error.opcode, error.status, error.opaque)
