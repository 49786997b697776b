"""Binary commands that are about the connection or the server, not about one document.

Source: memcached ``protocol_binary.h``, ``doc/protocol-binary.xml``; Couchbase kv_engine
``docs/BinaryProtocol.md`` and ``docs/sasl.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvproto.server.features import agree
from kvproto.server.replies import Hangup, Reply, when
from kvproto.server.sasl import MECHANISMS, Verdict, mechanism_list
from kvproto.server.statistics import Report, report
from kvproto.wire.binary import encode_response, simple_reply
from kvproto.wire.constants import Status
from kvproto.wire.frames import Request

if TYPE_CHECKING:
    from kvproto.server.binary import BinarySession

__all__ = [
    "flush",
    "hello",
    "log_in_first",
    "noop",
    "quit_",
    "quit_quietly",
    "refuse",
    "sasl_auth",
    "sasl_list",
    "sasl_step",
    "stat",
    "unknown",
    "verbosity",
    "version",
]


def unknown(session: BinarySession, request: Request) -> Reply:
    """Answer an opcode that does not exist here; the connection stays."""
    return session.error_to(request, Status.UNKNOWN_COMMAND)


def log_in_first(session: BinarySession, request: Request) -> Reply:
    """Answer whatever needs a login from somebody who has none."""
    return session.error_to(request, Status.AUTH_ERROR)


def refuse(session: BinarySession, request: Request) -> Reply:
    """Answer somebody who may not even log in."""
    return Hangup(
        session.error_to(request, Status.AUTH_ERROR), "its certificate names no known user"
    )


def noop(session: BinarySession, request: Request) -> Reply:
    """NOOP."""
    if request.key or request.extras or request.value:
        return session.error_to(request, Status.INVALID)
    return simple_reply(request.opcode, 0, request.opaque)


def version(session: BinarySession, request: Request) -> Reply:
    """VERSION."""
    if request.key or request.extras or request.value:
        return session.error_to(request, Status.INVALID)
    value = session.server.settings.version.encode()
    return encode_response(request.opcode, value=value, opaque=request.opaque)


def verbosity(session: BinarySession, request: Request) -> Reply:
    """VERBOSITY: accepted; what is logged is the operator's business, not a client's."""
    if len(request.extras) != 4 or request.key or request.value:
        return session.error_to(request, Status.INVALID)
    return simple_reply(request.opcode, 0, request.opaque)


def quit_(session: BinarySession, request: Request) -> Reply:
    """QUIT: say so, and close."""
    return Hangup(simple_reply(request.opcode, 0, request.opaque))


def quit_quietly(session: BinarySession, request: Request) -> Reply:
    """QUITQ: close."""
    return Hangup()


def flush(session: BinarySession, request: Request) -> Reply:
    """FLUSH, where the operator allows it."""
    if len(request.extras) not in {0, 4} or request.key or request.value:
        return session.error_to(request, Status.INVALID)
    if not session.server.settings.flush_allowed:
        return session.error_to(request, Status.NO_ACCESS)
    done = session.store.flush(int.from_bytes(request.extras))
    return when(done, lambda _: simple_reply(request.opcode, 0, request.opaque))


def stat(session: BinarySession, request: Request) -> Reply:
    """STAT: one packet for each item, and an empty one that ends them."""
    if request.extras or request.value:
        return session.error_to(request, Status.INVALID)
    return when(report(session.server, tuple(request.key.split())), _statistics, session, request)


def _statistics(found: Report, session: BinarySession, request: Request) -> Reply:
    if found.wrong:
        return session.error_to(request, Status.NOT_FOUND)
    opcode, opaque = request.opcode, request.opaque
    packets = [
        encode_response(opcode, key=name.encode(), value=str(value).encode(), opaque=opaque)
        for name, value in found.items.items()
    ]
    packets.append(simple_reply(opcode, 0, opaque))
    return b"".join(packets)


def hello(session: BinarySession, request: Request) -> Reply:
    """HELLO: agree on features."""
    if request.extras or len(request.value) % 2:
        return session.error_to(request, Status.INVALID)
    features = agree(request.value)
    session.enable(features)
    value = b"".join(number.to_bytes(2) for number in features)
    return encode_response(request.opcode, value=value, opaque=request.opaque)


# Login


def sasl_list(session: BinarySession, request: Request) -> Reply:
    """SASL_LIST: names of mechanisms."""
    if request.extras or request.key or request.value:
        return session.error_to(request, Status.INVALID)
    return encode_response(request.opcode, value=mechanism_list(), opaque=request.opaque)


def sasl_auth(session: BinarySession, request: Request) -> Reply:
    """SASL_AUTH: begin a login; one that was under way is forgotten."""
    make = MECHANISMS.get(request.key)
    if make is None or request.extras:
        session.mechanism = None
        return session.error_to(request, Status.AUTH_ERROR)
    session.mechanism = make(session.peer)
    session.mechanism_name = request.key
    return when(session.mechanism.step(request.value), _stepped, session, request)


def sasl_step(session: BinarySession, request: Request) -> Reply:
    """SASL_STEP: go on with the login under way."""
    mechanism = session.mechanism
    if mechanism is None or request.key != session.mechanism_name or request.extras:
        session.mechanism = None
        return session.error_to(request, Status.AUTH_ERROR)
    return when(mechanism.step(request.value), _stepped, session, request)


def _stepped(verdict: Verdict, session: BinarySession, request: Request) -> Reply:
    """Encode what a mechanism says."""
    session.update_rights()
    if verdict.done is None:
        status = Status.AUTH_CONTINUE
    else:
        session.mechanism = None
        if not verdict.done:
            return session.error_to(request, Status.AUTH_ERROR)
        status = Status.SUCCESS
    return encode_response(request.opcode, status, value=verdict.data, opaque=request.opaque)
