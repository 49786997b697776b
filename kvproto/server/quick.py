"""The short way through a session: plain GET and SET, many of them in one read.

Most requests are these two, without options.  Here they are served straight from what was read:
no frame object, no table, one loop.  The first request that is anything else ends the loop; it and
what follows it take the usual way, so that nothing is decided here that is not decided there too.

What a session's HELLO can change is the same here as there: the id of the default collection in
front of keys (a key of any other collection is unusual), and replies with datatypes, mutation
tokens and durations.  Only for stores of which `kvproto.store.has_short_way` says so.

There are two of it that do the same: `serve_in_python`, which is the reference, and a compiled one,
``kvproto.server._quick``, where the installation had a C compiler.  Measured for 32 GETs in one
read, microseconds each: the usual way 0.85, Python's 0.6, the compiled one 0.2.

Source: memcached ``protocol_binary.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kvproto.compiled import compiled
from kvproto.server.decorators import stamped
from kvproto.server.documents import encode_hit, encode_outcome, set_refused
from kvproto.server.replies import COPY_LIMIT
from kvproto.store import Document, IStore, Key
from kvproto.wire.constants import HEADER_SIZE, MAX_KEY, Datatype, Magic, Opcode
from kvproto.wire.encoding import get_reply, mutation_reply, simple_reply
from kvproto.wire.frames import Request

if TYPE_CHECKING:
    from kvproto.server.binary import BinarySession

__all__ = ["COMPILED", "QuickState", "serve_in_python", "serve_quickly"]


class QuickState:
    """What a session's short way needs to know, side by side in memory.

    A thousand busy sessions do not fit into a core's cache, so every line of it counts.

    Attributes:
        plain: Whether the short way is open: there is a store with one that the user may work in,
            and no part of a request has been received.
        max_body: Longest body that is accepted now, in bytes.
        store: The bucket's store.
        get: The store's ``get``, looked up once for all sessions.
        collections: Whether keys begin with the id of their collection.
        json: Whether responses say what is JSON.
        tokens: Whether mutations answer with a mutation token.
        timer: The server's timer where replies say how long they took, otherwise None.
    """

    __slots__ = ("collections", "get", "json", "max_body", "plain", "store", "timer", "tokens")

    plain: bool
    max_body: int
    store: IStore
    get: Callable[[Key], Any]
    collections: bool
    json: bool
    tokens: bool
    timer: Callable[[], float] | None


Serve: TypeAlias = "Callable[[BinarySession, bytes, list[bytes], int, int], int]"

_unpack_header = Struct(">HHHHIIQ").unpack_from
"""Magic and opcode, key length, lengths of extras and datatype, vbucket, body, opaque, CAS."""

_unpack_extras = Struct(">II").unpack_from

_GET: Final = Magic.REQUEST << 8 | Opcode.GET
_SET: Final = Magic.REQUEST << 8 | Opcode.SET
_NO_EXTRAS: Final = 0
_EXTRAS_SIZE: Final = 8
_SET_EXTRAS: Final = _EXTRAS_SIZE << 8
_JSON: Final = int(Datatype.JSON)


def serve_in_python(  # noqa: PLR0915 - one loop, as fast as Python can
    session: BinarySession, data: bytes, out: list[bytes], limit: int, max_body: int
) -> int:
    """Serve plain requests from the beginning of a read.

    Args:
        session: Whose requests they are.
        data: What was read, beginning with a header.
        out: Takes the replies.
        limit: Bytes of replies after which the rest is left.
        max_body: Longest body that is served, in bytes.

    Returns:
        How many bytes of `data` have been dealt with.
    """
    store: Any = session.store
    get, set_plainly = session.get, store.set_plainly
    prefix, timer = int(session.collections), session.timer
    started = timer() if timer is not None else 0.0
    at = size = 0
    reply: Any
    end = len(data)
    try:
        while size < limit and end - at >= HEADER_SIZE:
            kind, key_size, layout, _, body_size, opaque, cas = _unpack_header(data, at)
            body_at = at + HEADER_SIZE
            stop = body_at + body_size
            if stop > end or not prefix < key_size <= prefix + MAX_KEY:
                break
            if kind == _GET and key_size == body_size and layout == _NO_EXTRAS and not cas:
                if prefix and data[body_at]:
                    break
                document = get(data[body_at + prefix : stop])
                if (
                    document.__class__ is Document
                    and len(value := document.value) <= COPY_LIMIT
                    and not document.locked_until
                ):
                    datatype = session.json and session.datatype(document)
                    reply = get_reply(0, datatype, opaque, document.cas, document.flags, value)
                else:
                    reply = encode_outcome(document, session, Request(opaque=opaque), encode_hit)
            elif (
                kind == _SET
                and layout | _JSON == _SET_EXTRAS | _JSON
                and body_size >= key_size + _EXTRAS_SIZE
            ):
                key_at = body_at + _EXTRAS_SIZE
                if body_size > max_body or (prefix and data[key_at]):
                    break
                value_at = key_at + key_size
                key, value = data[key_at + prefix : value_at], data[value_at:stop]
                flags, expiry = _unpack_extras(data, body_at)
                datatype = layout & _JSON
                document = None if cas else set_plainly(key, value, flags, expiry, datatype)
                if document is None:
                    if not store.at_once:
                        break
                    document = store.set(key, value, flags, expiry, cas, datatype=datatype)
                reply = _stored(document, session, key, opaque)
            else:
                break
            if timer is not None:
                ended = timer()
                reply = stamped(reply, ended - started)
                started = ended
            at = stop
            if reply.__class__ is bytes:
                out.append(reply)
                size += len(reply)
            else:
                out.extend(reply)
                size += sum(map(len, reply))
    except Exception:
        # A defect of ours.  The usual way meets it again, tells about it, and the client.
        return at
    return at


def _stored(outcome: Any, session: BinarySession, key: bytes, opaque: int) -> Any:
    """Encode the outcome of a SET."""
    if outcome.__class__ is not Document:
        return set_refused(outcome, session, Request(opcode=1, key=key, opaque=opaque))
    if session.tokens:
        return mutation_reply(1, opaque, outcome.cas, session.store.uuid, outcome.seqno)
    return simple_reply(1, 0, opaque, outcome.cas)


_quick = compiled("kvproto.server._quick")

COMPILED = _quick is not None
"""Whether sessions use compiled code."""

serve_quickly: Serve = _quick.serve_quickly if COMPILED else serve_in_python
