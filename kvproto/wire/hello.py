"""HELLO: what a client calls itself and what it asks for.

Source: Couchbase kv_engine ``docs/BinaryProtocol.md``, "HELO".
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from struct import pack, unpack

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import Feature, Status

__all__ = ["decode_agent", "decode_features", "encode_features", "negotiate"]

_LONGEST_AGENT = 250
"""Characters of a client's name that are kept; kv_engine's limit for HELLO's key too."""

_NEEDS: dict[int, frozenset[int]] = {
    int(Feature.CLUSTERMAP_NOTIFICATION): frozenset({int(Feature.DUPLEX)}),
    int(Feature.CLUSTERMAP_NOTIFICATION_BRIEF): frozenset({int(Feature.DUPLEX)}),
}
"""Features that mean nothing without others."""


def decode_features(value: bytes) -> list[int]:
    """Read HELLO's value: feature numbers in the order of the wire, unknown ones included.

    Raises:
        RemoteProtocolError: It is not a list of 16-bit numbers.  Status 0x04.
    """
    if len(value) % 2:
        raise RemoteProtocolError(f"a feature list of {len(value)} bytes", Status.INVALID)
    return list(unpack(f">{len(value) // 2}H", value))


def encode_features(features: Iterable[int]) -> bytes:
    """Write HELLO's value, of a request or of an answer.

    Raises:
        LocalProtocolError: A feature number does not fit 16 bits.
    """
    numbers = [int(feature) for feature in features]
    if not all(0 <= number <= 0xFFFF for number in numbers):
        raise LocalProtocolError("a feature number is out of range")
    return pack(f">{len(numbers)}H", *numbers)


def negotiate(asked: Iterable[int], offered: Container[int]) -> list[int]:
    """Return what is granted: what was asked for and is offered, once each, in the asked order.

    A feature that needs another one is granted only together with it.
    """
    common = [feature for feature in dict.fromkeys(asked) if feature in offered]
    return [feature for feature in common if _NEEDS.get(feature, frozenset()) <= set(common)]


def decode_agent(key: bytes) -> tuple[str, str]:
    """Read HELLO's key: the client's name and its id for this connection, for people to read.

    Couchbase SDKs send ``{"a": name, "i": id}``, others just a name.  Both are cut to 250
    characters, and what is not printable is replaced: they end up in logs and lists.
    """
    name = key.decode("utf-8", "replace")
    connection = ""
    if name.startswith("{"):
        try:
            fields = json.loads(name)
        except (ValueError, RecursionError):
            fields = {}
        if isinstance(fields, dict) and isinstance(fields.get("a"), str):
            name = fields["a"]
            if isinstance(fields.get("i"), str):
                connection = fields["i"]
    return _printable(name), _printable(connection)


def _printable(text: str) -> str:
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for letter in text[:_LONGEST_AGENT]
    )
