"""The site: from an HTTP request to a `Call`, and from an `Answer` back.

Owns who a client is, which path is whose, and what is said where nothing else is: no login, no
such path, a fault of ours.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, unquote

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from kvproto.base.addresses import describe_peer
from kvproto.base.http import BoundedSite
from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import make_logger
from kvproto.dataplane import Administration
from kvproto.errors import CommandError, StoreUnavailable, UpstreamError
from kvproto.interfaces import ISecuredTransport
from kvproto.listeners.ledger import Ledger
from kvproto.listeners.verified import LONGEST_USER
from kvproto.management.answers import Answer, Call, Refused, errors, ok, refused
from kvproto.management.buckets import Buckets
from kvproto.management.cluster import Cluster
from kvproto.management.collections import Collections
from kvproto.management.groups import Groups
from kvproto.management.query import Query
from kvproto.management.rights import Rights, given_roles, rights_of
from kvproto.management.users import Users
from kvproto.server import KVServer
from kvproto.server.server import Peer

__all__ = ["MAX_BODY", "ManagementSite"]

log = make_logger()
peer_log = LimitedLog(log)

MAX_BODY = 64 * 1024
"""Bytes of a request's body."""

MAX_FIELDS = 200
"""Of a form."""

MAX_CONNECTIONS = 128

Handler: TypeAlias = "Callable[[Call], Answer | Coroutine[Deferred[Any], Any, Answer]]"

_UNAUTHORIZED = Answer(
    401, headers={"WWW-Authenticate": 'Basic realm="Couchbase Server Admin / REST"'}
)


class ManagementSite(BoundedSite):
    """What is served.

    Args:
        server: What it is about.
        administration: What changes it.
        reactor: For deadlines.
        ledger: Counts attempts to log in.
    """

    def __init__(
        self, server: KVServer, administration: Administration, reactor: Any, ledger: Ledger
    ) -> None:
        root = _Root(server, administration, ledger)
        super().__init__(root, reactor, MAX_BODY, MAX_CONNECTIONS)


class _Sender:
    """The connection of one request: what `kvproto.server.server.Peer` tells about its login.

    Args:
        transport: The connection that it came by.
        ledger: Counts attempts to log in.
    """

    def __init__(self, transport: Any, ledger: Ledger) -> None:
        self._transport = transport
        self._ledger = ledger

    def authenticated(self, user: str) -> None:
        """Nothing to do: each request is a stranger's until it has logged in."""

    def login_ended(self, mechanism: str, user: str, fault: str) -> None:
        """Count an attempt to log in; say so where it failed."""
        self._ledger.login_ended(mechanism, fault)
        if fault:
            # The same whether or not there is such a user.
            peer_log.info(
                "management: {peer} failed to log in as {user}",
                peer=describe_peer(self._transport.getPeer()),
                user=user[:LONGEST_USER] or "not named",
            )


class _Root(Resource):
    """All paths."""

    isLeaf = True

    def __init__(self, server: KVServer, administration: Administration, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._server = server
        self._administration = administration
        parts = [
            part(server, administration)
            for part in (Cluster, Buckets, Collections, Users, Groups, Query)
        ]
        self._routes = [_route(*route) for part in parts for route in part.routes()]

    def render(self, request: Any) -> Any:
        """Answer one request, now or later."""
        answering = Deferred.fromCoroutine(self._answer(request))
        gone = request.notifyFinish()
        gone.addErrback(lambda _: answering.cancel())
        answering.addErrback(self._fault, request)
        answering.addCallback(_write, request)
        answering.addErrback(_not_written)
        return NOT_DONE_YET

    async def _answer(self, request: Any) -> Answer:
        user = await self._login(request)
        if user is None:
            return _UNAUTHORIZED
        method, path = request.method.decode("latin-1"), request.path.decode("latin-1")
        # As Couchbase has it, a slash at the end does not matter; some SDKs send one.
        path = path.rstrip("/") or "/"
        call = _call(request, method, user, self._rights(user))
        for wanted, pattern, handler in self._routes:
            match = pattern.fullmatch(path)
            if match is not None and wanted == ("GET" if method == "HEAD" else method):
                call.words = {name: unquote(word) for name, word in match.groupdict().items()}
                answer = handler(call)
                return answer if isinstance(answer, Answer) else await answer
        return ok(
            {
                "message": f"{method} {path} is not served here: of Couchbase's management REST "
                "kvproto has buckets, scopes, collections, users and the status of the cluster"
            },
            404,
        )

    async def _login(self, request: Any) -> str | None:
        """Return who the sender is; None without a login."""
        transport = request.channel.transport
        peer = Peer(self._server, _Sender(transport, self._ledger))
        secured = ISecuredTransport.providedBy(transport)
        peer.recognise(tuple(transport.peer_chain()) if secured else ())
        given = request.getHeader("authorization")
        if peer.refused:
            return None
        if given is not None:
            name, password = _credentials(given)
            peer.begin("PLAIN")
            right = peer.check(name, password)
            if not (await right if isinstance(right, Deferred) else right):
                return None
        if peer.user is None or (self._server.users and not peer.user):
            # Whoever may work without a login may not therefore administer.
            return None
        return peer.user

    def _rights(self, user: str) -> Rights:
        if not user:
            return Rights()
        users = self._administration.users
        created = users.get(user)
        if created is not None:
            sources = users.given(created)
            return rights_of(role for _, given in sources for role in given_roles(given.roles))
        buckets = self._server.users.buckets_of(user)
        if buckets is None:
            return Rights()
        return Rights(False, frozenset(buckets), frozenset())

    def _fault(self, failure: Failure, request: Any) -> Answer:
        """Say what came of a request that was refused, or failed."""
        error = failure.value
        if isinstance(error, CommandError):
            error = refused(error)
        if isinstance(error, Refused):
            return error.answer
        if isinstance(error, CancelledError):
            return Answer()  # nobody is there to read it
        if isinstance(error, StoreUnavailable):
            return errors({"_": str(error)}, 503).answer
        if isinstance(error, UpstreamError):
            return errors({"_": str(error)}, 500).answer
        if isinstance(error, OSError):
            log.error("management: what has changed could not be kept: {reason}", reason=error)
            return errors({"_": f"it could not be kept: {error.strerror}"}, 500).answer
        peer_log.failure(
            "management: {method} {path} could not be answered",
            failure=failure,
            method=request.method.decode("latin-1"),
            path=request.path.decode("latin-1"),
            peer=describe_peer(request.channel.transport.getPeer()),
        )
        return errors({"_": "internal error; the log of the service says more"}, 500).answer


def _route(method: str, path: str, handler: Handler) -> tuple[str, re.Pattern[str], Handler]:
    """Return a route, ``{name}`` in its path standing for one word."""
    return method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), handler


def _credentials(given: str) -> tuple[str, bytes]:
    """Return name and password of an ``Authorization`` header; of another kind, nobody's."""
    kind, _, encoded = given.partition(" ")
    if kind.lower() != "basic":
        return "", b""
    try:
        name, _, password = b64decode(encoded.strip(), validate=True).partition(b":")
        return name.decode(), password
    except ValueError:
        return "", b""


def _call(request: Any, method: str, user: str, rights: Rights) -> Call:
    host = request.getHeader("host") or ""
    host = host if re.fullmatch(r"[\w.:\[\]-]{1,255}", host, re.ASCII) else "127.0.0.1"
    if not host.endswith("]"):
        host = re.sub(r":\d*\Z", "", host)
    body = request.content.read()
    kind = (request.getHeader("content-type") or "").partition(";")[0].strip().lower()
    form = _fields(request.uri.partition(b"?")[2])
    # curl's --data has this type unless told otherwise; some clients send a form without any.
    if method != "GET" and kind in {"application/x-www-form-urlencoded", ""}:
        form |= _fields(body)
    return Call({}, form, body, kind, host, request.isSecure(), user, rights)


def _fields(text: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            text.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"
        )
    except ValueError as error:
        raise errors({"_": f"the form cannot be read: {error}"}) from None
    return dict(pairs)


def _write(answer: Answer, request: Any) -> None:
    """Send an answer, if anybody is still there."""
    if request._disconnected:
        return
    request.setResponseCode(answer.code)
    headers: Iterable[tuple[str, str]] = (
        ("Server", "kvtls"),
        ("Cache-Control", "no-cache,no-store,must-revalidate"),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Type", answer.kind),
        *answer.headers.items(),
    )
    for name, value in headers:
        request.setHeader(name, value)
    request.setHeader("Content-Length", str(len(answer.body)))
    if request.method != b"HEAD":
        request.write(answer.body)
    request.finish()


def _not_written(failure: Failure) -> None:
    log.failure("management: an answer could not be sent", failure=failure)
