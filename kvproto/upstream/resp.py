"""The engine's protocol, RESP: encoding commands, and what error replies mean.

Sans-IO.  `hiredis` parses replies; a reply is ``bytes``, ``int``, ``list``, ``None`` or a
`hiredis.ReplyError`.

Source: Redis documentation, "Redis serialization protocol specification" and "Redis Cluster
specification"; the words that error replies begin with are those of Redis 7.0's ``server.c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from hiredis import ReplyError

__all__ = [
    "REASONS",
    "EngineFailure",
    "Fate",
    "ReplyError",
    "command",
    "failure_of",
    "judge_plainly",
]


class Fate(Enum):
    """What is known of a command that got no usable answer."""

    NOT_PERFORMED = "certainly not performed"
    UNANSWERED = "a read that got no answer"
    UNKNOWN = "a write that was sent and got no answer: it may have been performed"
    NO_MEMORY = "refused, the engine's memory is full"
    TOO_BIG = "refused, larger than the engine takes"


REASONS = (
    "unreachable",
    "disconnected",
    "timeout",
    "overload",
    "loading",
    "read-only",
    "cluster-down",
    "redirected",
    "login",
    "no-memory",
    "no-disk",
    "no-replicas",
    "too-big",
    "contention",
    "protocol",
    "refused",
)
"""All reasons of failures: values of the metrics' label ``reason``."""


@dataclass(slots=True)
class EngineFailure:
    """Why a command has no answer.

    Attributes:
        fate: What is known of it.
        reason: One of `REASONS`.
        text: For the log.
    """

    fate: Fate
    reason: str
    text: str


_REASON_OF = {
    "LOADING": "loading",
    "MASTERDOWN": "loading",
    "READONLY": "read-only",
    "CLUSTERDOWN": "cluster-down",
    "TRYAGAIN": "redirected",
    "MOVED": "redirected",
    "ASK": "redirected",
    "NOAUTH": "login",
    "WRONGPASS": "login",
    "NOPERM": "login",
    "OOM": "no-memory",
    "MISCONF": "no-disk",
    "NOREPLICAS": "no-replicas",
    "BUSY": "overload",
    "UNKILLABLE": "overload",
}


def failure_of(error: ReplyError) -> EngineFailure:
    """Return what an error reply means.  All of them mean that nothing was changed."""
    text = str(error)
    word = text.partition(" ")[0]
    if word == "ERR":
        # A script's call that failed, as servers before 7.0 tell it: "... 3: -OOM command ...".
        word = next((w[1:] for w in text.split() if w[0] == "-" and w[1:] in _REASON_OF), word)
        if "can't run this command" in text:  # NOPERM in a script, before 7.0
            word = "NOPERM"
        if "exceeds maximum allowed size" in text:
            return EngineFailure(Fate.TOO_BIG, "too-big", text)
        if "max number of clients" in text:
            word = "BUSY"
    reason = _REASON_OF.get(word, "refused")
    fate = Fate.NO_MEMORY if reason == "no-memory" else Fate.NOT_PERFORMED
    return EngineFailure(fate, reason, text)


def judge_plainly(data: bytes, reply: Any) -> EngineFailure | None:
    """Return what a reply to a greeting's command means if it is an error."""
    return failure_of(reply) if isinstance(reply, ReplyError) else None


def command(*parts: bytes) -> bytes:
    """Encode a command."""
    encoded = [b"*%d\r\n" % len(parts)]
    encoded += [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"".join(encoded)
