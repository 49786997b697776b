"""Control messages of an established node link, sans-IO.

Owns: which control tuples exist, what their fields are, which of them carry a
message.  A frame is the byte 112 ("pass through"), a control term and, for
sends, the message term.  The ``_TT`` forms carry a trace token, which is
dropped; everything that our flags rule out is refused.

A message or a reason that is larger than we read is the matter of the processes that it is
about, not of the link: of such a term only the outermost tuple is read, without its last element.

Source: Erlang, "Distribution Protocol", section "Protocol between Connected
Nodes".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from kvproto.dist.display import display
from kvproto.dist.encoding import encode
from kvproto.dist.etf import OversizedTermError, decode_at, decode_tuple_at
from kvproto.dist.terms import Atom, Pid, Port, Reference, Term
from kvproto.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "LAYOUTS",
    "Control",
    "Op",
    "alias_send",
    "decode_control",
    "demonitor",
    "exit_signal",
    "monitor",
    "monitor_exit",
    "reg_send",
    "send",
    "unlink_ack",
]

PASS_THROUGH: Final = b"p"

MAX_FRAME: Final = 0xFFFF_FFFF
"""Bytes of a frame; its length has four bytes."""

OVERSIZED: Final = Atom("system_limit")
"""Stands for an element that is larger than we read."""

_NOBODY = Atom("")
"""Stands where a cookie once was."""


class Op(Enum):
    """Kinds of control messages, with or without a trace token."""

    LINK = "link"
    SEND = "send"
    EXIT = "exit"
    UNLINK = "unlink"
    REG_SEND = "send to a name"
    GROUP_LEADER = "group leader"
    MONITOR = "monitor"
    DEMONITOR = "demonitor"
    MONITOR_EXIT = "down"
    ALIAS_SEND = "send to an alias"
    UNLINK_ID = "unlink with id"
    UNLINK_ID_ACK = "unlink acknowledged"


@dataclass(slots=True)
class Control:
    """One control message; which fields it has, and their types, its `Layout` says.

    Attributes:
        op: What it wants.
        sender: Who wants it: a process (or its name, in a ``MONITOR_EXIT``).
        to: A process, a registered name or an alias.
        reference: Of a monitor.
        reason: Of an exit.
        id: Of an unlink.
        message: What is sent.
        oversized: Whether `OVERSIZED` stands for the message's last element, or, where the
            message is no small tuple, None for all of it.
    """

    op: Op
    sender: Any = None
    to: Any = None
    reference: Any = None
    reason: Term = None
    id: int = 0
    message: Term = None
    oversized: bool = False


def _is_pid(term: Term) -> bool:
    return type(term) is Pid


def _is_name(term: Term) -> bool:
    return type(term) is Atom


def _is_process(term: Term) -> bool:
    return type(term) in {Pid, Atom}


def _is_linkable(term: Term) -> bool:
    return type(term) in {Pid, Port}


def _is_reference(term: Term) -> bool:
    return type(term) is Reference


def _is_int(term: Term) -> bool:
    return type(term) is int


def _is_anything(_term: Term) -> bool:
    return True


_Field = tuple[str, Callable[[Term], bool]]

_UNUSED: Final[_Field] = ("", _is_anything)
_TOKEN: Final[_Field] = ("", _is_anything)
_FROM: Final[_Field] = ("sender", _is_pid)
_FROM_LINK: Final[_Field] = ("sender", _is_linkable)
_FROM_PROCESS: Final[_Field] = ("sender", _is_process)
_TO: Final[_Field] = ("to", _is_pid)
_TO_PROCESS: Final[_Field] = ("to", _is_process)
_TO_NAME: Final[_Field] = ("to", _is_name)
_TO_ALIAS: Final[_Field] = ("to", _is_reference)
_REFERENCE: Final[_Field] = ("reference", _is_reference)
_REASON: Final[_Field] = ("reason", _is_anything)
_ID: Final[_Field] = ("id", _is_int)


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of one control tuple.

    Args:
        op: What it means.
        fields: Where each element after the number goes and what it must be.
        message: Whether a message term follows.
    """

    op: Op
    fields: tuple[_Field, ...]
    message: bool = False


LAYOUTS: Final[dict[int, Layout]] = {
    1: Layout(Op.LINK, (_FROM_LINK, _TO)),
    2: Layout(Op.SEND, (_UNUSED, _TO), message=True),
    3: Layout(Op.EXIT, (_FROM_LINK, _TO, _REASON)),
    4: Layout(Op.UNLINK, (_FROM_LINK, _TO)),
    6: Layout(Op.REG_SEND, (_FROM_LINK, _UNUSED, _TO_NAME), message=True),
    7: Layout(Op.GROUP_LEADER, (_FROM, _TO)),
    8: Layout(Op.EXIT, (_FROM_LINK, _TO, _REASON)),
    12: Layout(Op.SEND, (_UNUSED, _TO, _TOKEN), message=True),
    13: Layout(Op.EXIT, (_FROM_LINK, _TO, _TOKEN, _REASON)),
    16: Layout(Op.REG_SEND, (_FROM_LINK, _UNUSED, _TO_NAME, _TOKEN), message=True),
    18: Layout(Op.EXIT, (_FROM_LINK, _TO, _TOKEN, _REASON)),
    19: Layout(Op.MONITOR, (_FROM, _TO_PROCESS, _REFERENCE)),
    20: Layout(Op.DEMONITOR, (_FROM, _TO_PROCESS, _REFERENCE)),
    21: Layout(Op.MONITOR_EXIT, (_FROM_PROCESS, _TO, _REFERENCE, _REASON)),
    22: Layout(Op.SEND, (_FROM_LINK, _TO), message=True),
    23: Layout(Op.SEND, (_FROM_LINK, _TO, _TOKEN), message=True),
    33: Layout(Op.ALIAS_SEND, (_FROM_LINK, _TO_ALIAS), message=True),
    34: Layout(Op.ALIAS_SEND, (_FROM_LINK, _TO_ALIAS, _TOKEN), message=True),
    35: Layout(Op.UNLINK_ID, (_ID, _FROM_LINK, _TO)),
    36: Layout(Op.UNLINK_ID_ACK, (_ID, _FROM_LINK, _TO)),
}
"""Number of a control message to its layout."""


def decode_control(frame: bytes) -> Control:
    """Read one frame of an established link.

    Args:
        frame: Without its length, not empty.

    Raises:
        RemoteProtocolError: It is none that our flags allow.
    """
    if frame[:1] != PASS_THROUGH:
        raise RemoteProtocolError(f"frame of unknown kind {frame[0]}")
    try:
        term, end = decode_at(frame, 1)
    except OversizedTermError:
        # Of what has no message the reason is the last element, and nothing follows it.
        term, end = decode_tuple_at(frame, 1, OVERSIZED), len(frame)
    if type(term) is not tuple or not term or type(term[0]) is not int:
        raise RemoteProtocolError("control message is not a tuple with a number")
    layout = LAYOUTS.get(term[0])
    if layout is None:
        raise RemoteProtocolError(f"unknown control message {display(term[0])}")
    if len(term) != len(layout.fields) + 1:
        raise RemoteProtocolError(f"control message {term[0]} has the wrong length")
    control = Control(layout.op)
    for (name, check), value in zip(layout.fields, term[1:], strict=True):
        if not check(value):
            raise RemoteProtocolError(f"control message {term[0]} has a wrong {name}")
        if name:
            setattr(control, name, value)
    if layout.message:
        try:
            control.message, end = decode_at(frame, end)
        except OversizedTermError:
            control.message, end = _head_of(frame, end), len(frame)
            control.oversized = True
    if end != len(frame):
        raise RemoteProtocolError(f"bytes after control message {term[0]}")
    return control


def _head_of(frame: bytes, position: int) -> Term:
    """Read what can be read of a message that is too large."""
    try:
        return decode_tuple_at(frame, position, OVERSIZED)
    except OversizedTermError:
        return None


def _frame(control: tuple[Term, ...], *message: Term) -> bytes:
    frame = b"".join((PASS_THROUGH, encode(control), *map(encode, message)))
    if len(frame) > MAX_FRAME:
        raise LocalProtocolError(f"a message of {len(frame)} bytes does not fit a frame")
    return frame


def send(to: Pid, message: Term) -> bytes:
    """Send a message to a process."""
    return _frame((2, _NOBODY, to), message)


def reg_send(sender: Pid, name: str, message: Term) -> bytes:
    """Send a message to a registered name."""
    return _frame((6, sender, _NOBODY, Atom(name)), message)


def alias_send(sender: Pid, alias: Reference, message: Term) -> bytes:
    """Send a message to a process alias, which may have ended meanwhile."""
    return _frame((33, sender, alias), message)


def monitor(sender: Pid, to: Pid | Atom, reference: Reference) -> bytes:
    """Ask to be told when a process ends."""
    return _frame((19, sender, to, reference))


def demonitor(sender: Pid, to: Pid | Atom, reference: Reference) -> bytes:
    """Take back a monitor."""
    return _frame((20, sender, to, reference))


def monitor_exit(process: Pid | Atom, to: Pid, reference: Reference, reason: Term) -> bytes:
    """Notify a monitoring process that ours has ended or does not exist."""
    return _frame((21, process, to, reference, reason))


def exit_signal(process: Pid, to: Pid | Port, reason: Term) -> bytes:
    """Notify a linked process that ours has ended or does not exist."""
    return _frame((3, process, to, reason))


def unlink_ack(id_: int, process: Pid, to: Pid | Port) -> bytes:
    """Acknowledge that a link is gone."""
    return _frame((36, id_, process, to))
