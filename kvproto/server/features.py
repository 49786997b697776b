"""What HELLO can enable: the features whose effect is there, and nothing else.

Acknowledging a feature is a promise; a client that was promised what does not exist fails in ways
that nobody can explain.

Source: Couchbase kv_engine ``docs/BinaryProtocol.md``, "HELO"; ``include/mcbp/protocol/feature.h``.
"""

from __future__ import annotations

from kvproto.wire.constants import Feature

__all__ = ["FEATURES"]

FEATURES: dict[int, str] = {
    Feature.TCP_NODELAY: "every connection has it set already",
    Feature.MUTATION_SEQNO: "mutations answer with a mutation token",
    Feature.XATTR: "sub-document operations know extended attributes",
    Feature.XERROR: "statuses that the error map explains may be answered",
    Feature.SELECT_BUCKET: "SELECT_BUCKET is understood",
    Feature.JSON: "responses say which values are JSON",
    Feature.UNORDERED: "replies may overtake each other; `kvproto.server.window` has the rules",
    Feature.TRACING: "responses say how long the server worked",
    Feature.ALT_REQUEST: "requests with flexible framing are understood, asked for or not",
    Feature.SYNC_REPLICATION: "durability is answered honestly",
    Feature.COLLECTIONS: "keys begin with the id of their collection",
    Feature.PRESERVE_TTL: "a framing object keeps a document's expiry",
    Feature.VATTR: "sub-document lookups know $document",
    Feature.CREATE_AS_DELETED: "sub-document mutations can make tombstones",
    Feature.DOCUMENT_MACROS: "macros can be $document's",
    Feature.SUBDOC_REPLICA_READ: "lookups know that flag, and answer as what is no replica does",
}
"""Each feature that may be enabled, and why that is true."""
