"""Credential files that change, clients that look, and the command ``kvtls``.

For tests of a running service from outside: nothing here knows its insides.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from kvproto.testing.certificates import Authority, Identity, root_authority
from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.wire_client import packet, read_answer

__all__ = [
    "Command",
    "CredentialDirectory",
    "HalfHello",
    "ask",
    "eventually",
    "fingerprint",
    "kvtls",
    "new_server_identity",
    "noop",
    "shown_by",
    "status",
    "trusting",
]

NOOP = 0x0A
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

Command = subprocess.CompletedProcess[str]


def new_server_identity(
    names: Iterable[str] = LOCAL_NAMES,
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> Identity:
    """Return another identity of the same authority, for the same names."""
    return root_authority().issue(
        "localhost", tuple(names), not_before=not_before, not_after=not_after
    )


class CredentialDirectory:
    """The files that a service reads, as an operator writes them.

    Args:
        identity: The first server identity; a new one when None.
    """

    def __init__(self, identity: Identity | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="kvtls-files-"))
        self.chain = self.path / "chain.pem"
        self.key = self.path / "key.pem"
        self.client_ca = self.path / "client-ca.pem"
        self.crl = self.path / "crl.pem"
        self.serve(identity or new_server_identity())

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def serve(self, identity: Identity) -> str:
        """Write certificate and key; return the certificate's fingerprint."""
        self.key.touch(mode=0o600)
        self.key.write_bytes(identity.key_pem)
        self.chain.write_bytes(identity.chain_pem)
        return fingerprint(identity.der)

    def trust(self, *authorities: Authority) -> None:
        """Write the CAs that client certificates may come from."""
        self.client_ca.write_bytes(b"".join(one.certificate_pem for one in authorities))

    def revoke(self, authority: Authority, *identities: Identity) -> None:
        """Write the authority's revocation list."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.certificate.subject)
            .last_update(now - timedelta(hours=1))
            .next_update(now + timedelta(days=1))
            .add_extension(x509.CRLNumber(int(time.time() * 1000)), critical=False)
        )
        for identity in identities:
            revoked = x509.RevokedCertificateBuilder(
                serial_number=identity.certificate.serial_number, revocation_date=now
            )
            builder = builder.add_revoked_certificate(revoked.build())
        made = builder.sign(authority.key, hashes.SHA256())
        self.crl.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    @property
    def options(self) -> list[str]:
        """The options of ``twistd kvtls`` for the files that are there."""
        named = (
            ("--certificate", self.chain),
            ("--private-key", self.key),
            ("--client-ca", self.client_ca),
            ("--crl", self.crl),
        )
        return [word for option, path in named if path.exists() for word in (option, str(path))]

    def client(
        self, identity: Identity | None = None, version: ssl.TLSVersion | None = None
    ) -> ssl.SSLContext:
        """Return a context that trusts the server, shows a certificate, insists on a version."""
        context = trusting(root_authority())
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if identity is not None:
            shown = self.path / "shown.pem"
            shown.write_bytes(identity.chain_pem + identity.key_pem)
            context.load_cert_chain(shown)
            shown.unlink()
        return context


def trusting(authority: Authority) -> ssl.SSLContext:
    """Return a verifying client context with one trust anchor."""
    return ssl.create_default_context(cadata=authority.certificate_pem.decode())


def fingerprint(der: bytes) -> str:
    """Return what the status calls ``fingerprint_sha256``."""
    return hashlib.sha256(der).hexdigest()


def shown_by(peer: ssl.SSLSocket) -> str:
    """Return the fingerprint of the certificate that the service showed."""
    der = peer.getpeercert(binary_form=True)
    assert der is not None
    return fingerprint(der)


def noop(peer: ssl.SSLSocket) -> None:
    """Have one request answered."""
    peer.sendall(packet(NOOP))
    answer = read_answer(peer)
    assert answer.status == 0, answer


def ask(service: KvtlsProcess, context: ssl.SSLContext) -> str:
    """Be served once on a new connection; return the fingerprint that was shown.

    Raises:
        OSError: The service does not want us, or is not there.
        EOFError: It hung up.
    """
    with service.connect(context) as peer:
        noop(peer)
        return shown_by(peer)


def kvtls(service: KvtlsProcess, *arguments: str) -> Command:
    """Run the command as an operator does, in a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, "-m", "kvproto.cli", "--state-dir", str(service.state_dir), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )


def status(service: KvtlsProcess) -> dict[str, Any]:
    """Return ``kvtls status --json``."""
    done = kvtls(service, "status", "--json")
    assert done.returncode == 0, done
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def eventually(true: Callable[[], object], what: str = "") -> None:
    """Wait until something is true.

    Args:
        true: Asked again and again.
        what: For the error.

    Raises:
        AssertionError: It has not happened within `PATIENCE`.
    """
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < PATIENCE, f"not within {PATIENCE} s: {what or true}"
        time.sleep(0.02)


class HalfHello:
    """A client that has sent half of its ClientHello.

    Args:
        service: Who waits for the other half.
        context: For the handshake.
    """

    def __init__(self, service: KvtlsProcess, context: ssl.SSLContext) -> None:
        self._socket = socket.create_connection(service.addresses[0], 10)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=service.addresses[0][0]
        )
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            hello = self._outgoing.read()
        half = len(hello) // 2
        self._socket.sendall(hello[:half])
        self._rest = hello[half:]

    def finish(self) -> str:
        """Send the rest, be served once, leave; return the fingerprint that was shown."""
        with self._socket:
            self._socket.sendall(self._rest)
            self._pump(self._tls.do_handshake)
            self._tls.write(packet(NOOP))
            self._socket.sendall(self._outgoing.read())
            answer = self._pump(lambda: self._tls.read(24))
            assert answer[:2] == b"\x81\x0a", answer
            der = self._tls.getpeercert(binary_form=True)
            assert der is not None
            return fingerprint(der)

    def _pump(self, step: Callable[[], Any]) -> Any:
        """Take a step of TLS, as often as the network lets it."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._socket.sendall(self._outgoing.read())
                received = self._socket.recv(65536)
                assert received, "the service hung up"
                self._incoming.write(received)
            else:
                self._socket.sendall(self._outgoing.read())
                return result
