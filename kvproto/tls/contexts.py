"""OpenSSL contexts, built once per generation and never changed after.

Owns every option that is set on a context and its reason.  Everything that costs
(parsing, chains, trust stores) happens here, so that a handshake does no more than
``Connection(context, None)``.

Tickets and the session cache are off together: a resumed handshake skips the check of
the peer's certificate and CRL, so a session would survive a change of trust; and the cache
alone keeps up to 177 KiB for each handshake with a large client certificate.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import idna
from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, ServiceID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocolNegotiationFactory,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.base.log import make_logger
from kvproto.config import ClientAuth
from kvproto.tls.checks import subject_of
from kvproto.tls.credentials import Credentials

__all__ = [
    "OUR_OWN",
    "ClientContext",
    "CurrentContext",
    "ServerPolicy",
    "ascii_name",
    "build_client_context",
    "build_server_context",
    "describe_verify_error",
    "trust_store",
    "verify_failure",
]

log = make_logger()

OP_ALLOW_CLIENT_RENEGOTIATION = 0x100
"""OpenSSL 3 refuses renegotiation begun by a client unless told; pyOpenSSL has no name for it."""

MODE_NO_AUTO_CHAIN = 0x8
"""Send the chain as configured; without it OpenSSL builds and verifies one at every handshake."""

MAX_CA_NAMES = 60_000
"""Bytes of CA names sent to clients.  Above 64 KiB they cannot be encoded, and long before that
some clients give up; without names a client offers the certificate that it has."""

TLS13_CIPHERS = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
TLS12_CIPHERS = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE+AESGCM:ECDHE+CHACHA20"
)
"""Forward secrecy and authenticated encryption only; AES-128 first because it is the cheapest."""

OUR_OWN: Final = object()
"""App data of a connection that a generation makes to itself: its secrets are nobody's concern."""

_VERIFY = {
    ClientAuth.NONE: SSL.VERIFY_NONE,
    # A certificate that is shown must verify in both modes: OpenSSL ends the handshake.
    ClientAuth.OPTIONAL: SSL.VERIFY_PEER,
    ClientAuth.REQUIRED: SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT,
}


@dataclass(frozen=True, slots=True)
class ServerPolicy:
    """How a server's contexts behave, apart from the credentials.

    Args:
        client_auth: Whether clients are asked for a certificate.
        allow_renegotiation: Whether a TLS 1.2 client may renegotiate.
        keylog: Called with each line of key material (NSS format, no newline); None for never.
        max_ca_names: Bytes of CA names to send at most; more than that and none are sent.
    """

    client_auth: ClientAuth = ClientAuth.NONE
    allow_renegotiation: bool = False
    keylog: Callable[[bytes], None] | None = None
    max_ca_names: int = MAX_CA_NAMES


def build_server_context(credentials: Credentials, policy: ServerPolicy) -> SSL.Context:
    """Build the context of one generation of server credentials.

    Raises:
        OpenSSL.SSL.Error: OpenSSL refuses a certificate or key that our checks let pass.
    """
    context = _base_context(policy.keylog)
    if policy.allow_renegotiation:
        context.set_options(OP_ALLOW_CLIENT_RENEGOTIATION)
    else:
        context.set_options(SSL.OP_NO_RENEGOTIATION)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    # Without it OpenSSL ends the handshake of a client that tries to resume under client auth.
    context.set_session_id(b"kvproto")
    # Contexts are not changed after they were built: which protocols an application speaks is
    # known by each connection.
    context.set_alpn_select_callback(_select_protocol)
    _use_own_chain(context, credentials)
    if policy.client_auth is not ClientAuth.NONE:
        _add_trust(_store_of(context), credentials.client_cas, credentials.crls)
        context.set_verify(_VERIFY[policy.client_auth], _note_failure)
        if _names_size(credentials.client_cas) <= policy.max_ca_names:
            for ca in credentials.client_cas:
                context.add_client_ca(ca)
    return context


def build_client_context(
    credentials: Credentials | None = None,
    trust: Sequence[x509.Certificate] | None = None,
    *,
    allow_renegotiation: bool = False,
    keylog: Callable[[bytes], None] | None = None,
    at: int | None = None,
) -> SSL.Context:
    """Build a context for outgoing connections; verification is on.

    Args:
        credentials: Chain and key to show to servers, None for none.
        trust: Who may issue servers' certificates; None for those the platform trusts.
        allow_renegotiation: Whether a TLS 1.2 server may ask for a new handshake.
        keylog: As in `ServerPolicy`.
        at: Unix seconds at which certificates are judged; None for the time of each handshake.
    """
    context = _base_context(keylog)
    if not allow_renegotiation:
        context.set_options(SSL.OP_NO_RENEGOTIATION)
    if credentials is not None and credentials.chain:
        _use_own_chain(context, credentials)
    if trust is None:
        context.set_default_verify_paths()
    else:
        _add_trust(_store_of(context), trust, () if credentials is None else credentials.crls)
    if at is not None:
        _set_time(_store_of(context), at)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _note_failure)
    return context


def trust_store(
    cas: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    at: int,
) -> crypto.X509Store:
    """Return a store that judges certificates as a context with the same trust does.

    Args:
        cas: Trust anchors.
        crls: Their revocation lists.
        at: Unix seconds of the judgement; OpenSSL lets the time of a store be set only once.
    """
    store = crypto.X509Store()
    _add_trust(store, cas, crls)
    _set_time(store, at)
    return store


def _base_context(keylog: Callable[[bytes], None] | None) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(TLS12_CIPHERS)
    context.set_tls13_ciphersuites(TLS13_CIPHERS)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS | MODE_NO_AUTO_CHAIN)
    if keylog is not None:
        context.set_keylog_callback(_keylog_callback(keylog))
    return context


def _use_own_chain(context: SSL.Context, credentials: Credentials) -> None:
    assert credentials.key is not None, "a chain comes with its key"
    context.use_certificate(credentials.chain[0])
    for issuer in credentials.chain[1:]:
        context.add_extra_chain_cert(issuer)
    if credentials.openssl_key is None:
        context.use_privatekey(credentials.key)  # type: ignore[arg-type]  # checked when parsed
    else:
        with warnings.catch_warnings():
            # pyOpenSSL would rather have cryptography's key, which has lost what kind it is.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.use_privatekey(credentials.openssl_key)
    context.check_privatekey()


def _store_of(context: SSL.Context) -> crypto.X509Store:
    store = context.get_cert_store()
    assert store is not None, "SSL_CTX_new makes one"
    return store


def _add_trust(
    store: crypto.X509Store,
    cas: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
) -> None:
    for ca in cas:
        store.add_cert(crypto.X509.from_cryptography(ca))
    for crl in crls:
        store.add_crl(crl)
    flags = crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
    if not crls:
        # An anchor is what the operator says it is: an intermediate without its root is one
        # too.  With CRLs the path must go up to a root, where the last CRL is signed.
        flags = crypto.X509StoreFlags.PARTIAL_CHAIN
    store.set_flags(flags)


def _set_time(store: crypto.X509Store, at: int) -> None:
    store.set_time(datetime.datetime.fromtimestamp(at, datetime.UTC))


def _names_size(cas: Sequence[x509.Certificate]) -> int:
    """Return the bytes that the names of CAs take in a CertificateRequest."""
    return sum(2 + len(ca.subject.public_bytes()) for ca in cas)


def _keylog_callback(sink: Callable[[bytes], None]) -> Callable[[SSL.Connection, bytes], None]:
    def callback(connection: SSL.Connection, line: bytes) -> None:
        if connection.get_app_data() is OUR_OWN:
            return
        try:
            sink(line)
        except Exception:
            # A full disk under a debugging aid must not end anybody's connection.
            log.failure("a line of TLS key material could not be logged")

    return callback


# --- which protocol is spoken: ALPN, RFC 7301 ------------------------------------------------

_PROTOCOLS: Final = "acceptable_protocols"
"""Attribute of a server's connection: what the application speaks, what it prefers first."""


def _protocols_of(tls_protocol: Any) -> list[bytes]:
    """Return what the application on top of a TLS protocol speaks, as Twisted's own TLS asks."""
    factory = getattr(getattr(tls_protocol, "factory", None), "wrappedFactory", None)
    if factory is None or not IProtocolNegotiationFactory.providedBy(factory):
        return []
    return list(factory.acceptableProtocols())


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    """Choose what the server prefers of what the client speaks.

    Raises:
        OpenSSL.SSL.Error: There is none in common; the client gets the alert that RFC 7301
            section 3.2 asks for.
    """
    acceptable = getattr(connection, _PROTOCOLS, None)
    if not acceptable:
        return SSL.NO_OVERLAPPING_PROTOCOLS  # an application that does not negotiate
    for protocol in acceptable:
        if protocol in offered:
            return protocol
    raise SSL.Error([("SSL routines", "", "no application protocol")])


# --- why a peer's certificate was refused ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class _VerifyFailure:
    """Left on a connection by the verify callback, for whoever logs its end."""

    reason: str


def _note_failure(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    """Remember what OpenSSL only says in numbers; judge nothing: `ok` is the answer."""
    if not ok:
        connection.set_app_data(_VerifyFailure(describe_verify_error(certificate, error, depth)))
    return bool(ok)


def describe_verify_error(certificate: crypto.X509, error: int, depth: int) -> str:
    """Return in words why OpenSSL refuses a certificate.

    Args:
        certificate: The one that it stopped at.
        error: X509_V_ERR_*.
        depth: How far it is from the leaf.
    """
    reason = _ERRORS.get(error, f"verification error {error}")
    return f"certificate {subject_of(certificate.to_cryptography())} (depth {depth}): {reason}"


_ERRORS = {
    2: "its issuer is not trusted",
    3: "there is no CRL for its issuer",
    7: "its signature does not verify",
    9: "it is not yet valid",
    10: "it has expired",
    11: "the CRL is not yet valid",
    12: "the CRL has expired",
    18: "it is self-signed and not trusted",
    19: "its root is not trusted",
    20: "its issuer is not trusted",
    21: "its issuer is not trusted",
    22: "the chain is too long",
    23: "it is revoked",
    24: "its issuer is no CA",
    25: "the path is longer than a CA in it allows",
    26: "it is not meant for this purpose",
    66: "its key is too short",
    67: "a CA's key is too short",
    68: "its signature algorithm is too weak",
}
"""X509_V_ERR_* of OpenSSL's ``x509_vfy.h`` that occur in practice, in words."""


def verify_failure(connection: SSL.Connection) -> str:
    """Return why the peer's certificate was refused on a connection; ``""`` if it was not."""
    noted = connection.get_app_data()
    return noted.reason if isinstance(noted, _VerifyFailure) else ""


# --- what KVTLSFactory is given -------------------------------------------------------------


class _HasContext(Protocol):
    """What `CurrentContext` needs of a generation."""

    @property
    def number(self) -> int: ...

    @property
    def context(self) -> SSL.Context: ...


@implementer(IOpenSSLServerConnectionCreator)
class CurrentContext:
    """Gives each new connection the context of the generation that serves now.

    A handshake that has begun keeps the context it began with.

    Attributes:
        current: The serving generation; replaced as a whole, by one assignment.
    """

    __slots__ = ("current",)

    def __init__(self, generation: _HasContext) -> None:
        self.current = generation

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return a new connection and tell the protocol its generation's number."""
        generation = self.current
        tlsProtocol.generation = generation.number  # type: ignore[attr-defined]
        connection = SSL.Connection(generation.context, None)
        if protocols := _protocols_of(tlsProtocol):
            setattr(connection, _PROTOCOLS, protocols)
        return connection


def ascii_name(hostname: str) -> str:
    """Return a host name as certificates and SNI have it.

    Raises:
        ValueError: It is no host name.
    """
    name = hostname.removesuffix(".")
    if not name.isascii():
        try:
            # UTS 46 without its transitional mapping: upper case is one with lower case, and
            # what IDNA 2008 tells apart ("faß", "fass") stays apart.
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError(f"{hostname!r} is no host name: {error}") from None
    if not name or "" in name.split("."):
        raise ValueError(f"{hostname!r} is no host name: a part of it is empty")
    return name


@implementer(IOpenSSLClientConnectionCreator)
class ClientContext:
    """Makes outgoing connections that verify the name or address of the server.

    Args:
        context: From `build_client_context`.
        hostname: Host name or IP address that the server's certificate must be good for.  Names
            beyond ASCII are encoded as IDNA 2008 has it; the dot at the end of an absolute name
            is no part of it (RFC 6066 section 3).

    Raises:
        ValueError: It is no host name.
    """

    def __init__(self, context: SSL.Context, hostname: str) -> None:
        self._context = context
        self._server_name: bytes | None = None
        self._service: ServiceID
        try:
            self._service = IPAddress_ID(hostname)
        except ValueError:
            name = ascii_name(hostname)
            self._server_name = name.encode("ascii")
            self._service = DNS_ID(name)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return a new connection whose handshake fails unless the server is who it should be."""
        connection = SSL.Connection(self._context, None)
        if self._server_name is not None:
            # RFC 6066: addresses are not allowed in SNI.
            connection.set_tlsext_host_name(self._server_name)
        if protocols := _protocols_of(tlsProtocol):
            connection.set_alpn_protos(protocols)
        connection.set_verify(
            SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT,
            self._verifier(tlsProtocol),
        )
        return connection

    def _verifier(
        self, protocol: TLSMemoryBIOProtocol
    ) -> Callable[[SSL.Connection, crypto.X509, int, int, int], bool]:
        service = self._service
        waiting: list[TLSMemoryBIOProtocol] = [protocol]

        def verify(
            connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
        ) -> bool:
            if not _note_failure(connection, certificate, error, depth, ok):
                return False
            if depth:
                return True
            try:
                verify_service_identity(extract_patterns(certificate), [service], [])
            except VerificationError as fault:
                connection.set_app_data(_VerifyFailure(f"the certificate is for another: {fault}"))
                waiting.pop().failVerification(Failure())
                return False
            except Exception:
                # service-identity raises CertificateError and pyasn1 its own for odd
                # certificates; an exception that leaves a callback is only printed.
                connection.set_app_data(_VerifyFailure("the certificate names nobody"))
                waiting.pop().failVerification(Failure())
                return False
            # Drop the reference: a connection must not keep its protocol alive.
            waiting.clear()
            return True

        return verify
