"""Secrets and certificates for connections to engines, read from files and read again.

A new content is used for new connections once it has been read twice the same and makes a whole;
one that does not is reported, and what was there stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IReactorTime
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from kvproto.base.log import make_logger
from kvproto.base.regular_file import read_regular_file
from kvproto.base.watch import Watch
from kvproto.errors import ConfigError
from kvproto.upstream.options import OPTION, EngineOptions

__all__ = ["EngineSecrets"]

log = make_logger()

_END = b"-----END CERTIFICATE-----"

_LARGEST_FILE = 16 << 20


class EngineSecrets:
    """The files that an engine's URL names.

    Args:
        options: Which files.
        clock: For looking again.
        interval: Seconds between two looks, 0 for never.
        renewed: Called when something new is to be used.

    Raises:
        ConfigError: A file cannot be used.
    """

    def __init__(
        self,
        options: EngineOptions,
        clock: IReactorTime,
        interval: float,
        renewed: Callable[[], object],
    ) -> None:
        self._options = options
        self._renewed = renewed
        self._watch = Watch(clock, interval if self._paths else 0, self._digest, self._changed)
        self._use()

    def start(self) -> None:
        """Begin to look for changes."""
        self._watch.start()

    def stop(self) -> None:
        """Stop looking at the files."""
        self._watch.stop()

    @property
    def login(self) -> tuple[bytes, ...]:
        """The arguments of AUTH; empty for no login."""
        if self._password is None:
            return ()
        user = self._options.user.encode()
        return (user, self._password) if user else (self._password,)

    def connection_creator(self, host: str) -> Any:
        """Return what verifies a server of this name, an `IOpenSSLClientConnectionCreator`."""
        return optionsForClientTLS(
            host, trustRoot=self._trust, extraCertificateOptions=dict(self._identity)
        )

    @property
    def _paths(self) -> list[Any]:
        options = self._options
        files = (options.password_file, options.ca, options.cert, options.key)
        return [path for path in files if path is not None]

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for path in self._paths:
            try:
                content, _ = read_regular_file(path, _LARGEST_FILE)
            except OSError:
                content = b"\0unreadable"
            digest.update(hashlib.sha256(content).digest())
        return digest.digest()

    def _use(self) -> None:
        """Read everything; change nothing unless all of it is good."""
        options = self._options
        password: bytes | None = None
        if options.password_file is not None:
            password = _read(options.password_file, "password-file").split(b"\n")[0].rstrip(b"\r")
            if not password:
                raise ConfigError(OPTION, f"password-file {options.password_file} is empty")
        trust = None
        if options.ca is not None:
            anchors = _certificates(options.ca, "ca")
            trust = trustRootFromCertificates([Certificate(anchor) for anchor in anchors])
        identity: dict[str, Any] = {}
        if options.cert is not None:
            chain = _certificates(options.cert, "cert")
            key_path = options.key or options.cert
            try:
                key = crypto.load_privatekey(
                    crypto.FILETYPE_PEM, _read(key_path, "key"), passphrase=b""
                )
            except crypto.Error:
                raise ConfigError(
                    OPTION, f"key {key_path} holds no PEM key without a passphrase"
                ) from None
            identity = {"privateKey": key, "certificate": chain[0], "extraCertChain": chain[1:]}
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.use_certificate(chain[0])
            try:
                context.use_privatekey(key)
                context.check_privatekey()
            except SSL.Error:
                text = f"key {key_path} does not belong to cert {options.cert}"
                raise ConfigError(OPTION, text) from None
        self._password, self._trust, self._identity = password, trust, identity

    def _changed(self) -> None:
        try:
            self._use()
        except ConfigError as error:
            log.warn("the engine's files cannot be used, the old ones stay: {reason}", reason=error)
        except Exception:
            log.failure("the engine's files cannot be used, the old ones stay")
        else:
            log.info("the engine's files have changed: connections are made anew")
            self._renewed()


def _read(path: Any, name: str) -> bytes:
    try:
        content, _ = read_regular_file(path, _LARGEST_FILE)
    except OSError as error:
        raise ConfigError(OPTION, f"{name} {path}: {error.strerror}") from None
    return content


def _certificates(path: Any, name: str) -> list[crypto.X509]:
    found = []
    for block in _read(path, name).split(_END)[:-1]:
        begin = block.find(b"-----BEGIN CERTIFICATE-----")
        try:
            found.append(crypto.load_certificate(crypto.FILETYPE_PEM, block[begin:] + _END + b"\n"))
        except crypto.Error:
            raise ConfigError(
                OPTION, f"{name} {path}: a certificate in it cannot be read"
            ) from None
    if not found:
        raise ConfigError(OPTION, f"{name} {path} holds no PEM certificate")
    return found
