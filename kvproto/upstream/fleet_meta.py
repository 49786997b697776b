"""memcached's meta commands on a fleet: passed on as they are.

The binary protocol cannot say most of what they are for: how long a document has left, whether and
when it was read, stale values and who fetches them anew, a CAS of the client's own.  So each goes
over a connection that speaks meta commands (`kvproto.upstream.memcached.MetaConnection`), and the
server's answer is the client's, but for the opaque, and for what the client wants to be quiet.

Source: memcached 1.6.45, ``doc/protocol.txt``.
"""

from __future__ import annotations

from base64 import b64encode
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from kvproto.store import MetaAnswer
from kvproto.upstream.fleet import FleetRequest
from kvproto.upstream.memcached import FrameCall
from kvproto.wire.constants import HEADER_SIZE
from kvproto.wire.meta import MetaCommand
from kvproto.wire.meta_frames import META, OPAQUE

__all__ = ["pass_on"]

_B, _N, _O, _Q, _T = b"bNOqT"
_CHANGING = frozenset(b"NRT")
"""Flags of mg by which it changes something."""


def pass_on(store: Any, key: bytes, command: MetaCommand) -> Deferred[Any]:
    """Send a meta command to the server that has its key, as it is.

    Args:
        store: The fleet's.
        key: Of the document.
        command: The command.

    Returns:
        A Deferred of a `MetaAnswer`.
    """
    # All answers are waited for; who hears of them is the session's to decide.
    flags = [flag for flag in command.flags if flag[0] != _Q]
    own = next((flag for flag in flags if flag[0] == _O), b"")
    reading = command.verb in {"mg", "me"} and _CHANGING.isdisjoint(command.letters)
    request = FleetRequest(
        META,
        key,
        partial(_answer, own),
        value=_tell(key, command, flags),
        write=not reading,
    )
    longest = int(store.fleet.options.gutter_expiry)
    request.gutter_value = _tell(key, command, _short_lived(command, flags, longest))
    answer: Deferred[Any] = store.ask(request)
    return answer


def _tell(key: bytes, command: MetaCommand, flags: list[bytes]) -> bytes:
    """Return what is sent, with a place for the opaque."""
    words = [command.verb.encode(), b64encode(key) if _B in command.letters else key]
    if command.verb == "ms":
        words.append(b"%d" % len(command.value))
    words += [OPAQUE[1:] if flag[0] == _O else flag for flag in flags]
    if command.verb != "me" and _O not in command.letters:
        words.append(OPAQUE[1:])
    line = b" ".join(words) + b"\r\n"
    return line if command.verb != "ms" else b"%b%b\r\n" % (line, command.value)


def _short_lived(command: MetaCommand, flags: list[bytes], longest: int) -> list[bytes]:
    """Return flags by which nothing lives longer than so many seconds."""
    bounded = list(flags)
    for at, flag in enumerate(flags):
        expiry = {_T: command.expiry, _N: command.vivify}.get(flag[0])
        # What is below 0 is over at once, in the gutter as well.
        if expiry is not None and flag[1:2] != b"-" and not 0 < expiry < longest:
            bounded[at] = b"%c%d" % (flag[0], longest)
    if command.verb == "ms" and _T not in command.letters:
        bounded.append(b"T%d" % longest)
    return bounded


def _answer(own: bytes, frame: Any, call: FrameCall) -> MetaAnswer:
    """Return the server's answer, with the client's opaque in the place of ours."""
    line, _, value = bytes(frame[HEADER_SIZE:]).partition(b"\r\n")
    words, ours = line.split(b" "), b"O%d" % call.opaque
    if ours in words:
        at = words.index(ours)
        words[at : at + 1] = [own] if own else []
    return MetaAnswer(b" ".join(words), value)
