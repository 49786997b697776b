"""Chain, key, trust and CRLs as one numbered value, proved before anybody is served with it.

Build = read once, from one moment → check every certificate → names cover what the
old ones covered → contexts → a handshake in memory against itself, on TLS 1.2 and 1.3.
A failure at any of these leaves nothing behind.  Knows no reactor: building may
take place in a thread.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from OpenSSL import SSL, crypto

from kvproto.config import ClientAuth
from kvproto.errors import CredentialError, KVProtoError
from kvproto.tls.checks import date_fault, subject_of
from kvproto.tls.contexts import (
    OUR_OWN,
    ServerPolicy,
    build_client_context,
    build_server_context,
    describe_verify_error,
    trust_store,
)
from kvproto.tls.credentials import Credentials, parse_credentials
from kvproto.tls.files import CredentialFiles, UnfinishedError, digest_of, read_together

__all__ = [
    "Generation",
    "GenerationError",
    "Stage",
    "build_generation",
    "digest_on_disk",
    "rebuild_generation",
]

MAX_ROUNDS = 64
"""Turns that a handshake in memory may take; the largest chain needs fewer than ten."""


class Stage(enum.Enum):
    """Where the building of a generation ended."""

    READ = "read"
    CHECK = "check"
    NAMES = "names"
    HANDSHAKE = "handshake"
    STOPPED = "stopped"
    HISTORY = "history"
    INTERNAL = "internal"


class GenerationError(KVProtoError):
    """A generation could not be built; nothing has changed.

    Args:
        stage: How far it got.
        reason: What is wrong, for the operator.
        unfinished: Whether trying again in a moment may help, since a file may be half written.
    """

    def __init__(self, stage: Stage, reason: str, *, unfinished: bool = False) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason
        self.unfinished = unfinished

    def __str__(self) -> str:
        return f"{self.stage.value}: {self.reason}"


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """What new connections are served with.

    Attributes:
        number: Counted from 1; a later generation has a higher number.
        credentials: Chain, key, trust anchors and CRLs.
        policy: How the context treats peers.
        context: The server's context; nobody changes it any more.
        fingerprint: SHA-256 of the certificate that the proving handshake was shown.
    """

    number: int
    credentials: Credentials
    policy: ServerPolicy
    context: SSL.Context
    fingerprint: str
    _trust: _Trust = field(repr=False)

    @property
    def not_after(self) -> float:
        """When the first certificate of the chain expires, in Unix seconds."""
        return self.credentials.not_after

    @property
    def names(self) -> tuple[str, ...]:
        """DNS names and addresses that it is good for."""
        return self.credentials.names

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should know about it."""
        return tuple(str(warning) for warning in self.credentials.warnings)

    def verify_peer(self, chain: Sequence[bytes], now: float) -> str | None:
        """Judge a peer that an earlier generation has let in.

        Args:
            chain: The peer's DER certificates, leaf first; empty when it showed none.
            now: Unix seconds.

        Returns:
            None when it would be let in now, else why not.
        """
        if self.policy.client_auth is ClientAuth.NONE:
            return None
        if not chain:
            required = self.policy.client_auth is ClientAuth.REQUIRED
            return "a client certificate is required now" if required else None
        return self._trust.judge(chain, now)


class _Trust:
    """Trust anchors and CRLs, ready to judge many chains at one time of day."""

    __slots__ = ("_cas", "_crls", "_second", "_store")

    def __init__(self, credentials: Credentials) -> None:
        self._cas = credentials.client_cas
        self._crls = credentials.crls
        self._second = -1
        self._store: crypto.X509Store | None = None

    def judge(self, chain: Sequence[bytes], now: float) -> str | None:
        try:
            leaf, *others = (
                crypto.X509.from_cryptography(x509.load_der_x509_certificate(der)) for der in chain
            )
        except ValueError:
            return "its certificate does not parse"
        try:
            crypto.X509StoreContext(self._store_at(int(now)), leaf, others).verify_certificate()
        except crypto.X509StoreContextError as error:
            return describe_verify_error(error.certificate, error.errors[0], error.errors[1])
        return None

    def _store_at(self, second: int) -> crypto.X509Store:
        """Return a store for a second; the time of a store can be set only once [OpenSSL]."""
        if self._store is None or second != self._second:
            self._store = trust_store(self._cas, self._crls, second)
            self._second = second
        return self._store


def build_generation(
    number: int,
    files: CredentialFiles,
    policy: ServerPolicy,
    now: float,
    *,
    previous: Generation | None = None,
    allow_fewer_names: bool = False,
) -> Generation | None:
    """Read, check and prove a new generation.

    Args:
        number: Its number.
        files: Where its credentials are.
        policy: How its context treats peers.
        now: Unix seconds.
        previous: What serves now; its names must be covered.
        allow_fewer_names: Whether they need not.

    Returns:
        The new generation, or None when the files hold what `previous` serves already
        (which has been checked again).

    Raises:
        GenerationError: It cannot be served.
    """
    credentials = _load(files, now)
    if previous is not None and credentials.digest == previous.credentials.digest:
        return None
    if previous is not None and not allow_fewer_names:
        _check_names(previous, credentials)
    return _proved(number, credentials, policy, now)


def rebuild_generation(number: int, old: Generation, now: float) -> Generation:
    """Prove the credentials of an earlier generation again and give them new contexts.

    New contexts, because no session or ticket may survive; a new number, because
    connections of the earlier one have met other trust since.

    Raises:
        GenerationError: They cannot be served any more.
    """
    for certificate in old.credentials.path:
        if fault := date_fault(certificate, now):
            raise GenerationError(Stage.CHECK, f"{subject_of(certificate)} {fault}")
    return _proved(number, old.credentials, old.policy, now)


def digest_on_disk(files: CredentialFiles) -> str:
    """Return the digest of what the files hold; ``""`` when they cannot be read."""
    try:
        return digest_of(read_together(files).values())
    except CredentialError:
        return ""


def _load(files: CredentialFiles, now: float) -> Credentials:
    if files.certificate is None:
        fault = CredentialError(
            files.options.certificate, None, "is missing: a server shows a certificate"
        )
        raise _refused(Stage.READ, fault) from fault
    try:
        contents = read_together(files)
    except CredentialError as error:
        raise _refused(Stage.READ, error) from error
    try:
        return parse_credentials(files, contents, now)
    except CredentialError as error:
        raise _refused(Stage.CHECK, error) from error


def _refused(stage: Stage, error: CredentialError) -> GenerationError:
    return GenerationError(stage, str(error), unfinished=isinstance(error, UnfinishedError))


def _check_names(previous: Generation, credentials: Credentials) -> None:
    lost = [name for name in previous.names if not _covered(name, credentials.names)]
    if lost:
        raise GenerationError(
            Stage.NAMES,
            f"the new certificate is not good for {', '.join(lost)}, which generation "
            f"{previous.number} serves: clients that verify names would be lost",
        )


def _covered(name: str, names: Sequence[str]) -> bool:
    """Return whether a name, or a wildcard in the place of its first label, is among others."""
    _, dot, parent = name.partition(".")
    return name in names or (bool(dot) and f"*.{parent}" in names)


# --- proof ----------------------------------------------------------------------------------


def _proved(number: int, credentials: Credentials, policy: ServerPolicy, now: float) -> Generation:
    try:
        context = build_server_context(credentials, policy)
        fingerprint = _prove(context, credentials, now)
    except SSL.Error as error:
        raise GenerationError(Stage.HANDSHAKE, _openssl_reason(error)) from error
    return Generation(number, credentials, policy, context, fingerprint, _Trust(credentials))


def _prove(context: SSL.Context, credentials: Credentials, now: float) -> str:
    """Shake hands with ourselves, as a client that trusts the end of our chain.

    Returns:
        SHA-256 of the certificate that the client was shown.
    """
    shown = set()
    versions = {"TLS 1.2": SSL.TLS1_2_VERSION, "TLS 1.3": SSL.TLS1_3_VERSION}
    if credentials.tls13_only:
        del versions["TLS 1.2"]
    for name, version in versions.items():
        client_context = build_client_context(None, credentials.path[-1:], at=int(now))
        client_context.set_min_proto_version(version)
        client_context.set_max_proto_version(version)
        server, client = SSL.Connection(context, None), SSL.Connection(client_context, None)
        if context.get_verify_mode() & SSL.VERIFY_PEER:
            # Ask as we would ask anybody, CA names and all; but we have no client certificate.
            server.set_verify(SSL.VERIFY_PEER, lambda *_arguments: True)
        server.set_app_data(OUR_OWN)
        server.set_accept_state()
        client.set_connect_state()
        if fault := _handshake_in_memory(server, client):
            raise GenerationError(Stage.HANDSHAKE, f"with itself, on {name}: {fault}")
        certificate = client.get_peer_certificate(as_cryptography=True)
        assert certificate is not None, "a client that has verified us has seen us"
        shown.add(certificate)
    if shown != {credentials.chain[0]}:
        raise GenerationError(Stage.HANDSHAKE, "another certificate is served than was read")
    return credentials.fingerprint


def _handshake_in_memory(server: SSL.Connection, client: SSL.Connection) -> str:
    """Do a handshake between two connections; return what went wrong, ``""`` for nothing."""
    waiting: dict[SSL.Connection, SSL.Connection] = {client: server, server: client}
    for _ in range(MAX_ROUNDS):
        for here, there in tuple(waiting.items()):
            try:
                here.do_handshake()
                del waiting[here]
            except SSL.WantReadError:
                pass
            except SSL.Error as error:
                side = "server" if here is server else "client"
                return f"the {side} says {_openssl_reason(error)}"
            _move_output(here, there)
        if not waiting:
            return ""
    return "it does not come to an end"


def _move_output(here: SSL.Connection, there: SSL.Connection) -> None:
    """Move all output of one connection into the other."""
    for _ in range(MAX_ROUNDS):
        try:
            there.bio_write(here.bio_read(65536))
        except SSL.WantReadError:
            return


def _openssl_reason(error: SSL.Error) -> str:
    """Return OpenSSL's own words for an error."""
    queue = error.args[0] if error.args else []
    return "; ".join(entry[2] for entry in queue if entry[2]) or type(error).__name__
