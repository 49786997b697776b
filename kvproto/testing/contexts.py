"""OpenSSL contexts for tests, and the connection creators that Twisted's TLS takes.

Only what a test wants to vary: version, identities, options.  Programs use
``kvproto.tls``'s contexts, which have opinions; these have none.
"""

from __future__ import annotations

from collections.abc import Sequence

from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from zope.interface import implementer

from kvproto.testing.certificates import Authority, Identity, root_authority, server_identity

__all__ = ["TLS12", "TLS13", "Creator", "client_context", "server_context"]

TLS12 = SSL.TLS1_2_VERSION
TLS13 = SSL.TLS1_3_VERSION


@implementer(IOpenSSLServerConnectionCreator, IOpenSSLClientConnectionCreator)
class Creator:
    """Makes OpenSSL connections of one context, for either side.

    Args:
        context: Used as it is.
    """

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """Return a new connection."""
        return SSL.Connection(self.context, None)

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """Return a new connection."""
        return SSL.Connection(self.context, None)


def _context(version: int | None, identity: Identity | None, options: int) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(version or TLS12)
    if version is not None:
        context.set_max_proto_version(version)
    context.set_options(options)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if identity is not None:
        context.use_certificate(identity.certificate)
        for intermediate in identity.intermediates:
            context.add_extra_chain_cert(intermediate)
        context.use_privatekey(identity.key)
    return context


def _trust(context: SSL.Context, authority: Authority) -> None:
    store = context.get_cert_store()
    if store is None:
        raise ValueError("the context has no certificate store")
    store.add_cert(X509.from_cryptography(authority.certificate))


def server_context(
    version: int | None = None,
    identity: Identity | None = None,
    *,
    clients: bool = False,
    names: Sequence[Authority] = (),
    options: int = SSL.OP_NO_TICKET,
) -> SSL.Context:
    """Build a context for a server.

    Args:
        version: The only TLS version, None for 1.2 and 1.3.
        identity: What it shows; `server_identity()` when None.
        clients: Whether clients must show a certificate of `root_authority()`.
        names: Authorities whose names it sends to clients.
        options: OpenSSL's ``OP_`` bits.
    """
    context = _context(version, identity or server_identity(), options)
    if clients:
        context.set_verify(
            SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *args: bool(args[-1])
        )
        _trust(context, root_authority())
        context.set_session_id(b"kvproto tests")
    for authority in names:
        context.add_client_ca(authority.certificate)
    return context


def client_context(
    version: int | None = None,
    identity: Identity | None = None,
    *,
    verify: bool = False,
    options: int = 0,
) -> SSL.Context:
    """Build a context for a client.

    Args:
        version: The only TLS version, None for 1.2 and 1.3.
        identity: What it shows, None for nothing.
        verify: Whether the server's chain must end at `root_authority()`.
        options: OpenSSL's ``OP_`` bits.
    """
    context = _context(version, identity, options)
    if verify:
        context.set_verify(SSL.VERIFY_PEER, lambda *args: bool(args[-1]))
        _trust(context, root_authority())
    return context
