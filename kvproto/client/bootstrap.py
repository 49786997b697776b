"""From a connection to one that can be worked on: HELLO, login, bucket.

One asynchronous flow; whoever calls it bounds its time by cancelling, or by the deadline of its
requests.  memcached does not know HELLO, and ends a connection on which it was said: it needs
``SessionSettings(features=())``.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import ISSLTransport
from twisted.python.failure import Failure

from kvproto import __version__
from kvproto.base.log import make_logger
from kvproto.client.errors import BucketError, LoginError, reply_error
from kvproto.client.protocol import KVClientProtocol
from kvproto.errors import ConfigError, RemoteProtocolError
from kvproto.interfaces import ISecuredTransport
from kvproto.wire.constants import HEADER_SIZE, Feature, Opcode, Status
from kvproto.wire.frames import Response
from kvproto.wire.hello import decode_features, encode_features
from kvproto.wire.scram import DIGESTS, ClientExchange, prepare, salted_password

log = make_logger()

__all__ = [
    "DEFAULT_FEATURES",
    "Credentials",
    "Derive",
    "SessionSettings",
    "bootstrap",
    "choose_mechanism",
    "derive_here",
    "is_secret",
]

DEFAULT_FEATURES = (
    Feature.MUTATION_SEQNO,
    Feature.XERROR,
    Feature.SELECT_BUCKET,
    Feature.JSON,
    Feature.ALT_REQUEST,
    Feature.SYNC_REPLICATION,
    Feature.COLLECTIONS,
    Feature.PRESERVE_TTL,
)
"""Features that this client makes use of; not 0x0a: values would have to be decompressed."""

PLAIN = b"PLAIN"

Derive: TypeAlias = Callable[[str, bytes, bytes, int], Awaitable[bytes]]
"""Runs `kvproto.wire.scram.salted_password`, where it holds nobody up."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The user to log in as.

    Attributes:
        name: The user's name.
        password: The user's password.
        mechanisms: SASL mechanisms that may be used, the preferred one first; None for PLAIN where
            TLS protects it, and otherwise SCRAM with the best digest that the server has.
    """

    name: str
    password: str = field(repr=False)
    mechanisms: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Login, bucket and features of each new connection.

    Attributes:
        credentials: None for servers without logins, and for those that know us by certificate.
        bucket: To select, ``""`` for none.
        features: To ask for; with none at all HELLO is not said, as memcached needs it.
        agent: What the client calls itself, at most 250 bytes.
    """

    credentials: Credentials | None = None
    bucket: str = ""
    features: tuple[int, ...] = DEFAULT_FEATURES
    agent: str = f"kvproto/{__version__.partition('+')[0]}"

    def __post_init__(self) -> None:
        if Feature.UNORDERED in self.features:
            raise ConfigError("features", "UNORDERED cannot be used: get_many() relies on order")


async def bootstrap(
    protocol: KVClientProtocol, settings: SessionSettings, derive: Derive, timeout_s: float
) -> None:
    """Make a connection ready for work.

    Args:
        protocol: Connected.
        settings: What is wanted.
        derive: Runs PBKDF2.
        timeout_s: Seconds that each step may take.

    Raises:
        LoginError: The server does not let us in.
        RemoteProtocolError: The server broke the protocol.
        UnansweredError: It did not answer in time, or the connection ended.
    """
    credentials = settings.credentials
    listed = await _begin(protocol, settings, timeout_s)
    if credentials is not None:
        if listed.status:
            raise LoginError(f"the server offers no login: {reply_error(listed)}")
        mechanism = choose_mechanism(
            credentials, listed.value.split(), is_secret(protocol.transport)
        )
        await _log_in(protocol, credentials, mechanism, derive, timeout_s)
    if settings.bucket:
        reply = await protocol.request(
            Opcode.SELECT_BUCKET, key=settings.bucket.encode(), timeout_s=timeout_s
        )
        if reply.status:
            raise BucketError(f"bucket {settings.bucket!r} was refused: {reply_error(reply)}")


async def _begin(
    protocol: KVClientProtocol, settings: SessionSettings, timeout_s: float
) -> Response:
    """Send HELLO and ask for mechanisms, in one flight: neither needs the other's answer.

    Returns:
        The answer to SASL_LIST; without credentials any answer.
    """
    asked = settings.features
    hello: Deferred[Response] = succeed(Response())
    if asked:
        hello = protocol.request(
            Opcode.HELLO,
            key=settings.agent.encode(),
            value=encode_features(asked),
            timeout_s=timeout_s,
        )
    # memcached 1.6 skips the body of an unknown command after it has read its key, so that many
    # bytes too far, and answers when it has: at least as many as the key has must follow HELLO.
    # They are lost then, but HELLO's answer is judged first.
    listed: Deferred[Response] = succeed(Response())
    if settings.credentials is not None:
        listed = protocol.request(Opcode.SASL_LIST, timeout_s=timeout_s)
    elif asked:
        listed = protocol.request(Opcode.NOOP, timeout_s=timeout_s)
    if asked:
        for _ in range(HEADER_SIZE, len(settings.agent.encode()), HEADER_SIZE):
            more = protocol.request(Opcode.NOOP, timeout_s=timeout_s)
            more.addErrback(_log_unwanted)
    try:
        if asked:
            _negotiate(protocol, asked, await hello)
        return await listed
    finally:
        # Not awaited when HELLO failed; why it failed is told already.
        listed.addErrback(_log_unwanted)


def _log_unwanted(failure: Failure) -> None:
    log.debug("an answer was not waited for: {why}", why=failure.getErrorMessage())


def _negotiate(protocol: KVClientProtocol, asked: Sequence[int], reply: Response) -> None:
    """Note what the server agreed to."""
    if reply.status:
        raise LoginError(f"{reply_error(reply)}; memcached needs features=()")
    features = frozenset(decode_features(reply.value))
    if not features <= frozenset(asked):
        raise RemoteProtocolError("the server agreed to a feature that was not asked for")
    protocol.features = features
    protocol.collections = Feature.COLLECTIONS in features


def is_secret(transport: object) -> bool:
    """Return whether what is sent is encrypted."""
    return ISecuredTransport.providedBy(transport) or ISSLTransport.providedBy(transport)


def choose_mechanism(credentials: Credentials, listed: Collection[bytes], secret: bool) -> bytes:
    """Return the mechanism to log in with.

    Args:
        credentials: Who logs in.
        listed: What the server offers.
        secret: Whether the connection is encrypted: if not, PLAIN would tell everybody.

    Raises:
        LoginError: There is none.
    """
    wanted = credentials.mechanisms
    if wanted is None:
        wanted = (PLAIN, *DIGESTS) if secret else tuple(DIGESTS)
    for mechanism in wanted:
        if mechanism in listed and (mechanism == PLAIN or mechanism in DIGESTS):
            return mechanism
    offered = b" ".join(listed).decode("utf-8", "replace")[:200]
    raise LoginError(f"none of the mechanisms offered can be used here: {offered}")


async def _log_in(
    protocol: KVClientProtocol,
    credentials: Credentials,
    mechanism: bytes,
    derive: Derive,
    timeout_s: float,
) -> None:
    def say(opcode: int, message: bytes) -> Deferred[Response]:
        return protocol.request(opcode, key=mechanism, value=message, timeout_s=timeout_s)

    if mechanism == PLAIN:
        name, password = credentials.name.encode(), credentials.password.encode()
        _expect(Status.SUCCESS, await say(Opcode.SASL_AUTH, b"\0%b\0%b" % (name, password)))
        return
    digest = DIGESTS[mechanism]
    scram = ClientExchange(digest, prepare(credentials.name), secrets.token_hex(16).encode())
    challenge = await say(Opcode.SASL_AUTH, scram.begin())
    _expect(Status.AUTH_CONTINUE, challenge)
    salt, iterations = scram.challenged(challenge.value)
    salted = await derive(digest, prepare(credentials.password), salt, iterations)
    last = await say(Opcode.SASL_STEP, scram.prove(salted))
    _expect(Status.SUCCESS, last)
    scram.verify(last.value)


def _expect(status: int, reply: Response) -> None:
    if reply.status == status:
        return
    if not reply.status:
        # Not even asked for the password: this is no server that knows the user.
        raise LoginError("the server accepted a login that was not finished")
    raise LoginError(f"the login was refused: {reply_error(reply)}")


async def derive_here(digest: str, password: bytes, salt: bytes, iterations: int) -> bytes:
    """Run PBKDF2 at once: 6 ms for 15000 iterations during which nothing else happens."""
    return salted_password(digest, password, salt, iterations)
