"""The node handshake, version 6, sans-IO: names, capabilities, proof of the cookie.

Owns: the order of messages in both directions, names, flags and digests.
Never does I/O, has no clock; frames come in whole, without their length, and
leave the same way.  What only the node can know is asked by stopping in a
state: ``DECIDING`` (which status does this name get) and ``ASKED_ALIVE`` (is
the connection that the peer still has really dead).

::

    accepting   AWAIT_NAME → DECIDING ┬→ AWAIT_REPLY ────────────┬→ UP
                                      ├→ AWAIT_ALIVE_ANSWER → ───┘
                                      └→ REFUSED
    dialling    NEW → AWAIT_STATUS ┬→ AWAIT_CHALLENGE → AWAIT_ACK → UP
                                   ├→ ASKED_ALIVE → AWAIT_CHALLENGE
                                   └→ REFUSED
    any         → FAILED (the peer broke the protocol or has another cookie)

Source: Erlang, "Distribution Protocol", section "Distribution Handshake".
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from struct import Struct
from typing import Any, Final

from kvproto.dist.flags import OURS, effective, missing_flags
from kvproto.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "MAX_HANDSHAKE_FRAME",
    "Handshake",
    "NodeIdentity",
    "Peer",
    "State",
    "Status",
    "check_node_name",
    "digest",
]

MAX_HANDSHAKE_FRAME: Final = 4096
"""Bytes of one frame before the peer has shown that it knows the cookie."""

MAX_NAME: Final = 255
"""Bytes of a node name: it is an atom on the other side."""

_NAME = Struct(">cQIH")
_CHALLENGE = Struct(">cQIIH")
_REPLY = Struct(">cI16s")
_ACK = Struct(">c16s")
_U32 = Struct(">I")


class State(Enum):
    """States of a handshake; the values complete the sentence "failed while ..."."""

    NEW = "new"
    AWAIT_NAME = "waiting for the peer's name"
    DECIDING = "deciding about the peer's name"
    AWAIT_ALIVE_ANSWER = "waiting whether the peer insists"
    AWAIT_REPLY = "waiting for the answer to the challenge"
    AWAIT_STATUS = "waiting for the peer's decision"
    ASKED_ALIVE = "deciding whether to insist"
    AWAIT_CHALLENGE = "waiting for the challenge"
    AWAIT_ACK = "waiting for the peer's digest"
    UP = "up"
    REFUSED = "refused"
    FAILED = "failed"


class Status(Enum):
    """Answers of an accepting node to a name."""

    OK = b"ok"
    OK_SIMULTANEOUS = b"ok_simultaneous"
    NOK = b"nok"
    NOT_ALLOWED = b"not_allowed"
    ALIVE = b"alive"


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Name, cookie and capabilities of this node.

    Args:
        name: ``NAME@HOST``.
        cookie: The shared secret.
        creation: Which incarnation of the name, 32 bits, not 0.
        flags: Capabilities.
    """

    name: str
    cookie: bytes = field(repr=False)
    creation: int
    flags: int = OURS

    def __post_init__(self) -> None:
        try:
            check_node_name(self.name.encode("utf-8"))
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Peer:
    """What the other node has announced about itself.

    Args:
        name: ``NAME@HOST``.
        creation: Which incarnation of the name, 32 bits.
        flags: Capabilities that both sides have.
    """

    name: str
    creation: int
    flags: int


def check_node_name(name: bytes) -> str:
    """Turn the bytes of a node name into text.

    Raises:
        RemoteProtocolError: It is not two halves around exactly one ``@``, or it could not
            stand in a log or a listing as it is.
    """
    host = name.partition(b"@")
    if not host[0] or not host[2] or name.count(b"@") != 1 or len(name) > MAX_NAME:
        raise RemoteProtocolError("node name is not NAME@HOST")
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("node name is not UTF-8") from None
    if not text.isprintable() or " " in text:
        raise RemoteProtocolError("node name has spaces or control characters")
    return text


def digest(cookie: bytes, challenge: int) -> bytes:
    """Return the 16 bytes that prove knowledge of the cookie.

    MD5 is the protocol's; TLS with client certificates is the real gate.
    """
    return hashlib.md5(cookie + str(challenge).encode("ascii"), usedforsecurity=False).digest()


def _random_challenge() -> int:
    value: int = _U32.unpack(os.urandom(_U32.size))[0]
    return value


class Handshake:
    """One handshake.

    Args:
        local: This node.
        dialled: The name that the peer must have; None on the accepting side.
        challenge: Makes a random number of 32 bits.

    Attributes:
        state: Where it stands.
        peer: Who is on the other side, as soon as it has said so.
        refusal: Why the state is REFUSED; "" before.
    """

    __slots__ = ("_challenge", "_dialled", "_local", "_out", "peer", "refusal", "state")

    def __init__(
        self,
        local: NodeIdentity,
        dialled: str | None = None,
        challenge: Callable[[], int] = _random_challenge,
    ) -> None:
        self._local = local
        self._dialled = dialled
        self._challenge = challenge()
        self._out: list[bytes] = []
        self.peer: Peer | None = None
        self.refusal = ""
        self.state = State.AWAIT_NAME if dialled is None else State.NEW

    def data_to_send(self) -> list[bytes]:
        """Return the frames to send now, and forget them."""
        frames, self._out = self._out, []
        return frames

    def begin(self) -> None:
        """Send our name, on the dialling side."""
        self._expect(State.NEW)
        name = self._local.name.encode("utf-8")
        self._out.append(
            _NAME.pack(b"N", self._local.flags, self._local.creation, len(name)) + name
        )
        self.state = State.AWAIT_STATUS

    def receive(self, frame: bytes) -> None:
        """Take one frame.

        Raises:
            RemoteProtocolError: It does not belong here; the state is FAILED.
        """
        try:
            self._answer_to(frame)(self, frame)
        except RemoteProtocolError:
            self.state = State.FAILED
            raise

    def decide(self, status: Status, refusal: str = "") -> None:
        """Answer the peer's name, in state DECIDING.

        Args:
            status: The answer.
            refusal: The reason for our own log when it is a refusal.
        """
        self._expect(State.DECIDING)
        self._out.append(b"s" + status.value)
        if status is Status.ALIVE:
            self.state = State.AWAIT_ALIVE_ANSWER
        elif status in {Status.OK, Status.OK_SIMULTANEOUS}:
            self._send_challenge()
        else:
            self._refuse(refusal or status.value.decode("ascii"))

    def answer_alive(self, insist: bool) -> None:
        """Answer whether the connection that the peer still has is dead, in state ASKED_ALIVE."""
        self._expect(State.ASKED_ALIVE)
        self._out.append(b"strue" if insist else b"sfalse")
        if insist:
            self.state = State.AWAIT_CHALLENGE
        else:
            self._refuse("already connected")

    def _answer_to(self, frame: bytes) -> Callable[[Handshake, bytes], None]:
        answer = TRANSITIONS.get((self.state, frame[:1]))
        if answer is None:
            raise RemoteProtocolError(f"handshake message {frame[:1]!r} while {self.state.value}")
        if len(frame) > MAX_HANDSHAKE_FRAME:
            raise RemoteProtocolError("handshake message is too long")
        return answer

    def _expect(self, state: State) -> None:
        if self.state is not state:
            raise LocalProtocolError(f"the handshake is {self.state.value}, not {state.value}")

    def _refuse(self, refusal: str) -> None:
        self.refusal = refusal
        self.state = State.REFUSED

    def _send_challenge(self) -> None:
        local = self._local
        name = local.name.encode("utf-8")
        self._out.append(
            _CHALLENGE.pack(b"N", local.flags, self._challenge, local.creation, len(name)) + name
        )
        self.state = State.AWAIT_REPLY

    def _on_name(self, frame: bytes) -> None:
        _, flags, creation, size = _unpack(_NAME, frame)
        name = _name_after(_NAME, frame, size)
        self.peer = Peer(name, creation, effective(self._local.flags, flags))
        self.state = State.DECIDING
        missing = missing_flags(flags)
        if missing:
            self.decide(Status.NOT_ALLOWED, f"peer lacks {missing!r}")

    def _on_alive_answer(self, frame: bytes) -> None:
        if frame == b"strue":
            self._send_challenge()
        elif frame == b"sfalse":
            self._refuse("peer keeps the connection it has")
        else:
            raise RemoteProtocolError("answer to 'alive' is neither true nor false")

    def _on_status(self, frame: bytes) -> None:
        status = frame[1:]
        if status in {b"ok", b"ok_simultaneous"}:
            self.state = State.AWAIT_CHALLENGE
        elif status == b"alive":
            self.state = State.ASKED_ALIVE
        elif status in {b"nok", b"not_allowed"}:
            self._refuse(f"peer said {status.decode('ascii')}")
        else:
            raise RemoteProtocolError("unknown handshake status")

    def _on_challenge(self, frame: bytes) -> None:
        _, flags, challenge, creation, size = _unpack(_CHALLENGE, frame)
        name = _name_after(_CHALLENGE, frame, size)
        if name != self._dialled:
            raise RemoteProtocolError(f"peer is {name!r}, not {self._dialled!r}")
        missing = missing_flags(flags)
        if missing:
            raise RemoteProtocolError(f"peer lacks {missing!r}")
        self.peer = Peer(name, creation, effective(self._local.flags, flags))
        self._out.append(_REPLY.pack(b"r", self._challenge, digest(self._local.cookie, challenge)))
        self.state = State.AWAIT_ACK

    def _on_reply(self, frame: bytes) -> None:
        _, challenge, proof = _unpack(_REPLY, frame, exact=True)
        self._check(proof)
        self._out.append(_ACK.pack(b"a", digest(self._local.cookie, challenge)))
        self.state = State.UP

    def _on_ack(self, frame: bytes) -> None:
        _, proof = _unpack(_ACK, frame, exact=True)
        self._check(proof)
        self.state = State.UP

    def _check(self, proof: bytes) -> None:
        if not hmac.compare_digest(proof, digest(self._local.cookie, self._challenge)):
            raise RemoteProtocolError("peer has another cookie")


def _unpack(form: Struct, frame: bytes, *, exact: bool = False) -> tuple[Any, ...]:
    if len(frame) < form.size or (exact and len(frame) != form.size):
        raise RemoteProtocolError("handshake message has the wrong length")
    return form.unpack_from(frame)


def _name_after(form: Struct, frame: bytes, size: int) -> str:
    """Read the name; what comes after it is for future versions."""
    end = form.size + size
    if end > len(frame):
        raise RemoteProtocolError("handshake message has the wrong length")
    return check_node_name(frame[form.size : end])


TRANSITIONS: Final[dict[tuple[State, bytes], Callable[[Handshake, bytes], None]]] = {
    (State.AWAIT_NAME, b"N"): Handshake._on_name,
    (State.AWAIT_ALIVE_ANSWER, b"s"): Handshake._on_alive_answer,
    (State.AWAIT_REPLY, b"r"): Handshake._on_reply,
    (State.AWAIT_STATUS, b"s"): Handshake._on_status,
    (State.AWAIT_CHALLENGE, b"N"): Handshake._on_challenge,
    (State.AWAIT_ACK, b"a"): Handshake._on_ack,
}
"""Which first byte is right in which state; every other pair fails the handshake.

The old name message ``n`` (version 5, OTP 22 and older) is one of those.
"""
