"""What handlers know of the client whose request they serve: the seam to the dialects.

`kvproto.server.binary.BinarySession` and `kvproto.server.text.TextSession` provide it; handlers
import nothing from there, so that no file of this room needs one that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from kvproto.errors import RemoteProtocolError
from kvproto.server.buckets import Bucket
from kvproto.server.replies import Reply
from kvproto.server.requests import RequestCounts
from kvproto.server.sasl import Mechanism
from kvproto.server.server import KVServer, Peer
from kvproto.store import Document, IStore, Key, Refusal
from kvproto.wire.frames import Request

__all__ = ["BinaryClient", "TextClient"]


class BinaryClient(Protocol):
    """A client of the binary protocol; see `kvproto.server.binary.BinarySession`."""

    server: KVServer
    peer: Peer
    bucket: Bucket | None
    counts: RequestCounts
    store: IStore
    get: Callable[[Key], Any]
    set_plainly: Callable[[Key, bytes, int, int, int], Any] | None
    collections: bool
    json: bool
    tokens: bool
    selected: bool
    said_hello: bool
    preserve_expiry: bool
    mechanism: Mechanism | None
    mechanism_name: bytes

    def update_rights(self) -> None:
        """Let the peer do what its user may."""

    def select(self, bucket: Bucket | None) -> None:
        """Work in this bucket from now on, or in none."""

    def enable(self, features: Iterable[int]) -> None:
        """Put into effect what HELLO has agreed on."""

    def error_to(self, request: Request, status: int) -> bytes:
        """Encode an error."""

    def refusal_to(self, request: Request, refusal: Refusal) -> bytes:
        """Encode what the store refused."""

    def protocol_error_to(self, request: Request, error: RemoteProtocolError) -> bytes:
        """Encode the answer to a request that is malformed, or about what does not exist."""

    def datatype(self, document: Document) -> int:
        """Return the datatype bits that this client understands."""

    def token(self, document: Document) -> bytes:
        """Encode the extras of a successful mutation."""

    def set_failed(self, request: Request, key: Key, status: int) -> Reply:
        """Answer a SET that found no room."""


class TextClient(Protocol):
    """A client of the text protocol; see `kvproto.server.text.TextSession`."""

    server: KVServer
    store: IStore
    meta_seen: bool
    plain_read: Callable[[bytes, float, int, int, bool], Any] | None

    def refuse_meta(self, refusal: Refusal, key: bytes = b"") -> Reply:
        """Answer a meta command that the store refused."""
