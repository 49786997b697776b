"""What HELLO can enable: the features whose effect is there, and nothing else.

Acknowledging a feature is a promise; a client that was promised what does not exist fails in ways
that nobody can explain.

Source: Couchbase kv_engine ``docs/BinaryProtocol.md``, "HELO"; ``include/mcbp/protocol/feature.h``.
"""

from __future__ import annotations

from kvproto.wire.constants import Feature

__all__ = ["FEATURES", "agree"]

FEATURES: dict[int, str] = {
    Feature.TCP_NODELAY: "every connection has it set already",
    Feature.JSON: "responses say which values are JSON",
    Feature.ALT_REQUEST: "requests with flexible framing are understood, asked for or not",
    Feature.SYNC_REPLICATION: "durability is answered honestly",
    Feature.PRESERVE_TTL: "a framing object keeps a document's expiry",
}
"""Each feature that may be enabled, and why that is true."""


def agree(wanted: bytes) -> list[int]:
    """Return what is enabled of a client's list, in its order and each once.

    Args:
        wanted: Feature numbers of 16 bits; a byte too many is the caller's to refuse.
    """
    numbers = [int.from_bytes(wanted[at : at + 2]) for at in range(0, len(wanted), 2)]
    return [number for number in dict.fromkeys(numbers) if number in FEATURES]
