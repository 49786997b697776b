"""Slots of a cluster: which one a key is in, and who has which.

Source: Redis Cluster specification, "Hash tags"; CLUSTER SHARDS (7.0) and CLUSTER SLOTS.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass, field
from functools import cache
from typing import Any

__all__ = ["SLOTS", "Node", "Shard", "parse_shards", "parse_slots", "slot_of", "tags"]

SLOTS = 16384

Node = tuple[str, int]
"""Host and port."""


@dataclass(slots=True)
class Shard:
    """A primary, its slots and its replicas.

    Attributes:
        primary: Where it is.
        ranges: First and last slot of each range.
        replicas: All replicas that belong to it.
        online: How many of them are there.
    """

    primary: Node
    ranges: list[tuple[int, int]] = field(default_factory=list)
    replicas: list[Node] = field(default_factory=list)
    online: int = 0


def slot_of(key: bytes) -> int:
    """Return the slot of a key: of what is between the first braces, if anything is."""
    begin = key.find(b"{")
    if begin >= 0:
        end = key.find(b"}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    # CRC-16/XMODEM, which Python knows under another name.
    return crc_hqx(key, 0) & (SLOTS - 1)


@cache
def tags(count: int) -> tuple[tuple[int, bytes], ...]:
    """Return ``count`` slots, evenly spread, and for each a text whose slot it is."""
    step = SLOTS // count
    found: dict[int, tuple[int, bytes]] = {}
    number = 0
    while len(found) < count:
        text = b"%x" % number
        slot = slot_of(text)
        found.setdefault(slot // step, (slot, text))
        number += 1
    return tuple(found[place] for place in range(count))


def parse_shards(reply: Any, asked: str, tls: bool) -> list[Shard]:
    """Read the reply to CLUSTER SHARDS.

    Args:
        reply: As `hiredis` gives it.
        asked: The host that has answered: servers may leave their own name out.
        tls: Whether the ports for TLS are wanted.
    """
    shards = []
    for item in reply:
        fields = _pairs(item)
        bounds = fields[b"slots"]
        ranges = list(zip(bounds[::2], bounds[1::2], strict=True))
        nodes = [_pairs(node) for node in fields[b"nodes"]]
        primary = None
        replicas, online = [], 0
        for node in nodes:
            port = node.get(b"tls-port" if tls else b"port") or node.get(b"port") or 0
            where = _node(node.get(b"endpoint") or node.get(b"ip"), port, asked)
            well = node.get(b"health") == b"online"
            if node.get(b"role") == b"master":
                if primary is None or well:
                    primary = where
            else:
                replicas.append(where)
                # One that is "loading" may just not have been heard of for a moment.
                online += node.get(b"health") != b"fail"
        if primary is not None:
            shards.append(Shard(primary, ranges, replicas, online))
    return shards


def parse_slots(reply: Any, asked: str) -> list[Shard]:
    """Read the reply to CLUSTER SLOTS, which leaves out replicas that are not there."""
    shards: dict[Node, Shard] = {}
    for first, last, *nodes in reply:
        primary, *replicas = [_node(node[0], node[1], asked) for node in nodes]
        shard = shards.setdefault(primary, Shard(primary, [], replicas, len(replicas)))
        shard.ranges.append((first, last))
    return list(shards.values())


def _pairs(flat: Any) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _node(host: bytes | None, port: int, asked: str) -> Node:
    name = (host or b"").decode()
    return (asked if name in {"", "?"} else name), int(port)
