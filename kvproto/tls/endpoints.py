r"""Endpoint strings ``kvtls:``: TLS as `KVTLSProtocol` speaks it, for any Twisted program.

::

    server  kvtls:11207:certificate=chain.pem:privateKey=key.pem
            kvtls:port=11207:interface=\:\::certificate=chain.pem:clientCA=ca.pem
            kvtls:unix=/run/kv.sock:certificate=both.pem
            kvtls:endpoint=systemd\:domain=INET\:index=0:certificate=both.pem
            kvtls:tcp\:443:certificate=chain.pem:key=key.pem:watch=2
    client  kvtls:kv.example:11207:caCertificate=ca.pem
            kvtls:endpoint=unix\:/run/kv.sock:hostname=kv.example:caCertificate=ca.pem

``twisted/plugins/kvtls.py`` gives these to ``serverFromString`` and ``clientFromString``.
Credentials are read and proved when the string is parsed: what is wrong with them is
raised there, naming parameter and file.  With ``watch=`` they are read anew whenever the files
change, as long as the port is open.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXServerEndpoint,
    clientFromString,
    serverFromString,
)
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from kvproto.config import ClientAuth
from kvproto.errors import ConfigError, CredentialError
from kvproto.tls.contexts import ClientContext, CurrentContext, ServerPolicy, build_client_context
from kvproto.tls.credentials import load_credentials
from kvproto.tls.factory import KVTLSFactory
from kvproto.tls.files import CredentialFiles, Options, Purpose
from kvproto.tls.generation import GenerationError, build_generation
from kvproto.tls.rotating import RotatingServerEndpoint

__all__ = ["TLSClientEndpoint", "TLSServerEndpoint", "parse_client", "parse_server"]

BACKLOG = 1024
"""Connections that may wait to be accepted; Twisted's own default is 50."""

_SERVER_OPTIONS = Options("certificate=", "privateKey=", "passphraseFile=", "clientCA=", "crl=")
_CLIENT_OPTIONS = Options("certificate=", "privateKey=", "passphraseFile=", "caCertificate=")


@implementer(IStreamServerEndpoint)
@dataclass(frozen=True, slots=True)
class TLSServerEndpoint:
    """Listens where another endpoint does, and puts TLS on top.

    See `RotatingServerEndpoint` for one that looks after its credentials itself.

    Args:
        endpoint: Where to listen.
        contexts: What a handshake uses, e.g. ``Rotation.contexts``.
        clock: For deadlines.
    """

    endpoint: IStreamServerEndpoint
    contexts: IOpenSSLServerConnectionCreator
    clock: IReactorTime

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen; each connection gets a protocol of the factory, under TLS."""
        factory = KVTLSFactory(self.contexts, False, protocolFactory, self.clock)
        listening: Deferred[IListeningPort] = self.endpoint.listen(factory)
        return listening


@implementer(IStreamClientEndpoint)
@dataclass(frozen=True, slots=True)
class TLSClientEndpoint:
    """Connects where another endpoint does, and puts TLS on top.

    As with Twisted's own, the Deferred of `connect` fires when the transport is
    connected; a handshake that fails ends in ``connectionLost`` with its reason.

    Args:
        endpoint: Where to connect.
        context: What the handshake uses; verifies the server.
        clock: For deadlines.
    """

    endpoint: IStreamClientEndpoint
    context: IOpenSSLClientConnectionCreator
    clock: IReactorTime

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; the factory's protocol is the Deferred's result."""
        factory = KVTLSFactory(self.context, True, protocolFactory, self.clock)
        connecting: Deferred[Any] = self.endpoint.connect(factory)
        return connecting.addCallback(lambda tls: tls.wrappedProtocol)


def parse_server(
    reactor: Any,
    port: str = "",
    *extra: str,
    certificate: str = "",
    privateKey: str = "",
    key: str = "",
    passphraseFile: str = "",
    clientCA: str = "",
    clientAuth: str = "",
    crl: str = "",
    watch: str = "0",
    interface: str = "",
    backlog: str = str(BACKLOG),
    unix: str = "",
    endpoint: str = "",
    **unknown: str,
) -> TLSServerEndpoint | RotatingServerEndpoint:
    """Make an endpoint of the words of a server string.

    Args:
        reactor: The reactor.
        port: TCP port, or another endpoint's string if it has no parameters with a name.
        extra: Words without a name that mean nothing here.
        certificate: PEM chain, and the key unless ``privateKey`` names it.
        privateKey: PEM key.
        key: The same.
        passphraseFile: File whose first line opens the key.
        clientCA: PEM trust anchors of client certificates.
        clientAuth: ``none``, ``optional`` or ``required``; optional with ``clientCA``.
        crl: PEM revocation lists of these anchors.
        watch: Seconds between two looks at these files; 0 to read them once, here.
        interface: Address to listen on, IPv4 or IPv6.
        backlog: Connections that may wait to be accepted.
        unix: Path of a UNIX socket, instead of a port.
        endpoint: Another endpoint's string, instead of a port.
        unknown: Words that mean nothing here.

    Raises:
        ConfigError: A parameter cannot be used.
    """
    _refuse_unknown(extra, unknown)
    _need("certificate=", certificate, "the PEM file with the chain to show to clients")
    if ":" in port:
        _refuse_both(port, endpoint=endpoint)
        port, endpoint = "", port
    key_file, options = _key(privateKey, key, _SERVER_OPTIONS)
    files = CredentialFiles(
        Path(certificate), key_file, _path(passphraseFile), _path(clientCA), _path(crl), options
    )
    policy = ServerPolicy(_client_auth(clientAuth, clientCA))
    interval = _seconds("watch=", watch, or_none=True)
    below = _server_below(reactor, port, interface, backlog, unix, endpoint)
    if interval:
        name = f"kvtls:{endpoint or unix or port}"
        return RotatingServerEndpoint(below, files, reactor, policy, interval, name)
    try:
        generation = build_generation(1, files, policy, time.time())
    except GenerationError as error:
        if isinstance(error.__cause__, CredentialError):
            raise error.__cause__ from None
        raise CredentialError("certificate=", files.certificate, str(error)) from error
    assert generation is not None, "there is none before it that it could equal"
    return TLSServerEndpoint(below, CurrentContext(generation), reactor)


def parse_client(
    reactor: Any,
    host: str = "",
    port: str = "",
    *extra: str,
    hostname: str = "",
    caCertificate: str = "",
    certificate: str = "",
    privateKey: str = "",
    key: str = "",
    passphraseFile: str = "",
    timeout: str = "30",
    bindAddress: str = "",
    endpoint: str = "",
    **unknown: str,
) -> TLSClientEndpoint:
    """Make an endpoint of the words of a client string.

    Args:
        reactor: The reactor.
        host: Name or address to connect to.
        port: TCP port.
        extra: Words without a name that mean nothing here.
        hostname: Name or address that the server's certificate must be good for; by default
            ``host``.
        caCertificate: PEM trust anchors; by default those of the platform.
        certificate: PEM chain to show to the server, and the key unless ``privateKey`` names it.
        privateKey: PEM key.
        key: The same.
        passphraseFile: File whose first line opens the key.
        timeout: Seconds that connecting may take.
        bindAddress: Address to connect from.
        endpoint: Another endpoint's string, instead of host and port.
        unknown: Words that mean nothing here.

    Raises:
        ConfigError: A parameter cannot be used.
    """
    _refuse_unknown(extra, unknown)
    hostname = hostname or host
    _need("hostname=", hostname, "the name that the server's certificate must be good for")
    if endpoint:
        _refuse_both(endpoint, host=host, port=port, bindAddress=bindAddress)
        below: IStreamClientEndpoint = clientFromString(reactor, endpoint)
    else:
        below = HostnameEndpoint(
            reactor,
            host,
            _number("port=", port, 65535),
            timeout=_seconds("timeout=", timeout),
            bindAddress=bindAddress or None,
        )
    key_file, options = _key(privateKey, key, _CLIENT_OPTIONS)
    files = CredentialFiles(
        _path(certificate),
        key_file,
        _path(passphraseFile),
        _path(caCertificate),
        None,
        options,
        Purpose.CLIENT,
    )
    own = load_credentials(files, time.time())
    context = build_client_context(own, own.client_cas if caCertificate else None)
    try:
        creator = ClientContext(context, hostname)
    except ValueError as error:
        raise ConfigError("hostname=", str(error)) from None
    return TLSClientEndpoint(below, creator, reactor)


def _server_below(
    reactor: Any, port: str, interface: str, backlog: str, unix: str, endpoint: str
) -> IStreamServerEndpoint:
    """Return what listens below TLS; exactly one of port, unix and endpoint says where."""
    if endpoint:
        _refuse_both(endpoint, port=port, unix=unix, interface=interface)
        wrapped: IStreamServerEndpoint = serverFromString(reactor, endpoint)
        return wrapped
    waiting = _number("backlog=", backlog, 65535)
    if unix:
        _refuse_both(unix, port=port, interface=interface)
        return UNIXServerEndpoint(reactor, unix, backlog=waiting)
    number = _number("port=", port, 65535)
    kind = TCP6ServerEndpoint if ":" in interface else TCP4ServerEndpoint
    return kind(reactor, number, waiting, interface)


def _client_auth(text: str, client_ca: str) -> ClientAuth:
    if not text:
        return ClientAuth.OPTIONAL if client_ca else ClientAuth.NONE
    try:
        auth = ClientAuth(text)
    except ValueError:
        raise ConfigError("clientAuth=", f"{text!r} is none of none, optional, required") from None
    if auth is not ClientAuth.NONE:
        _need("clientCA=", client_ca, f"clientAuth={text} needs to know who issues certificates")
    return auth


def _key(private_key: str, key: str, options: Options) -> tuple[Path | None, Options]:
    """Return the file that either word names, and the options with the word that did."""
    if not key:
        return _path(private_key), options
    _refuse_both(key, privateKey=private_key)
    return Path(key), replace(options, private_key="key=")


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _need(option: str, value: str, why: str) -> None:
    if not value:
        raise ConfigError(option, f"is missing: {why}")


def _refuse_unknown(extra: tuple[str, ...], unknown: dict[str, str]) -> None:
    for word in extra:
        raise ConfigError(word, "is one word too many; a colon in a value is written \\:")
    for name in unknown:
        if ":" in name:
            raise ConfigError(name, "has parameters of its own: write it after endpoint=")
        raise ConfigError(f"{name}=", "is no parameter of a kvtls endpoint")


def _refuse_both(value: str, **others: str) -> None:
    for name, other in others.items():
        if other:
            raise ConfigError(f"{name}=", f"makes no sense together with {value!r}")


def _number(option: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= most):
        raise ConfigError(option, f"{text!r} is no number from 0 to {most}")
    return int(text)


def _seconds(option: str, text: str, *, or_none: bool = False) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    # "nan" compares false with everything, so this way round it is refused as well.
    if not (0 < seconds < float("inf") or (or_none and seconds == 0)):
        bound = "from 0 on" if or_none else "above 0"
        raise ConfigError(option, f"{text!r} is no number of seconds {bound}")
    return seconds
