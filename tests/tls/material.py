"""Credential files on disk for tests of this room, and handshakes in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from kvproto.testing.certificates import Authority, Identity
from kvproto.tls.credentials import Credentials
from kvproto.tls.files import CredentialFiles

NOW = time.time()
"""One moment for a whole run: certificates of the fakes are valid around it."""

DAY = timedelta(days=1)


def moment(days: float) -> datetime:
    """Return a date some days from now, in whole seconds as certificates have them."""
    return (datetime.fromtimestamp(NOW, UTC) + days * DAY).replace(microsecond=0)


def folder(test: SynchronousTestCase) -> Path:
    """Return a new empty directory of a test."""
    path = Path(test.mktemp())
    path.mkdir(parents=True)
    return path.resolve()


def write_identity(
    directory: Path,
    identity: Identity,
    *,
    client_ca: Authority | None = None,
    crl: bytes = b"",
) -> CredentialFiles:
    """Write the files of an identity and return where they are."""
    (directory / "chain.pem").write_bytes(identity.chain_pem)
    (directory / "key.pem").touch(mode=0o600)
    (directory / "key.pem").write_bytes(identity.key_pem)
    ca_path = crl_path = None
    if client_ca is not None:
        ca_path = directory / "ca.pem"
        ca_path.write_bytes(client_ca.certificate_pem)
    if crl:
        crl_path = directory / "crl.pem"
        crl_path.write_bytes(crl)
    return CredentialFiles(
        directory / "chain.pem", directory / "key.pem", client_ca=ca_path, crl=crl_path
    )


def crl_of(
    authority: Authority,
    revoked: Iterable[Identity] = (),
    *,
    next_update: datetime | None = None,
) -> bytes:
    """Return the PEM of an authority's revocation list."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(moment(-2))
        .next_update(next_update or moment(7))
    )
    for identity in revoked:
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(identity.certificate.serial_number)
            .revocation_date(moment(-1))
            .build()
        )
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def credentials_of(
    identity: Identity, client_cas: Sequence[Authority] = (), crls: Sequence[bytes] = ()
) -> Credentials:
    """Return credentials that never were on a disk."""
    return Credentials(
        (identity.certificate, *identity.intermediates),
        identity.key,
        tuple(authority.certificate for authority in client_cas),
        tuple(x509.load_pem_x509_crl(crl) for crl in crls),
    )


def der_chain(identity: Identity) -> tuple[bytes, ...]:
    """Return what a peer with this identity sends."""
    return tuple(
        one.public_bytes(Encoding.DER) for one in (identity.certificate, *identity.intermediates)
    )


def shake_hands(
    server: SSL.Connection, client: SSL.Connection, rounds: int = 50, *, begun: bool = False
) -> tuple[Exception | None, Exception | None]:
    """Move bytes between two connections until both are done; return what each one raised."""
    if not begun:
        server.set_accept_state()
        client.set_connect_state()
    order = ((client, server), (server, client))
    ended: dict[SSL.Connection, Exception | None] = {}
    for _ in range(rounds):
        for here, there in order:
            if here not in ended:
                error = _step(here)
                if not isinstance(error, SSL.WantReadError):
                    ended[here] = error
            carry(here, there)
        if len(ended) == len(order):
            break
    waiting = SSL.WantReadError()
    return ended.get(server, waiting), ended.get(client, waiting)


def _step(connection: SSL.Connection) -> Exception | None:
    try:
        connection.do_handshake()
    except SSL.Error as error:
        return error
    return None


def carry(here: SSL.Connection, there: SSL.Connection) -> None:
    """Move all that one connection has to send into the other."""
    while True:
        try:
            there.bio_write(here.bio_read(65536))
        except SSL.Error:
            return


def read_error(connection: SSL.Connection) -> Exception | None:
    """Return what reading raises: how a TLS 1.3 client learns that it was refused."""
    try:
        connection.recv(1)
    except SSL.WantReadError:
        return None
    except SSL.Error as error:
        return error
    return None
