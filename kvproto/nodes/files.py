"""Which files a node reads: its credentials, and the secret of its cluster."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Final

from kvproto.base.regular_file import read_regular_file
from kvproto.config import NodeConfig
from kvproto.errors import ConfigError
from kvproto.tls import CredentialFiles, Options
from kvproto.tls.files import Purpose

__all__ = ["node_files", "read_cookie"]

LONGEST_COOKIE: Final = 255
"""A cookie is an atom on the other side."""

_LONGEST_FILE: Final = 4096


def node_files(settings: NodeConfig, data: CredentialFiles) -> CredentialFiles:
    """Return where the credentials of node links are.

    Certificate, key and passphrase come from one source, CAs and CRLs from one source:
    the node's options, or else the data listener's.
    """
    own_chain, own_trust = settings.certificate is not None, settings.ca is not None
    chain: Any = settings if own_chain else data
    spelt = data.options
    return CredentialFiles(
        chain.certificate,
        chain.private_key,
        settings.key_passphrase_file if own_chain else data.passphrase,
        settings.ca if own_trust else data.client_ca,
        settings.crl if own_trust else data.crl,
        Options(
            "--node-certificate" if own_chain else spelt.certificate,
            "--node-key" if own_chain else spelt.private_key,
            "--node-key-passphrase-file" if own_chain else spelt.passphrase,
            "--node-ca" if own_trust else spelt.client_ca,
            "--node-crl" if own_trust else spelt.crl,
        ),
        Purpose.BOTH if settings.connect else Purpose.SERVER,
    )


def read_cookie(path: Path) -> bytes:
    """Read the cluster's secret; white space around it is dropped, as Erlang does.

    Raises:
        ConfigError: It cannot be read, others may read it, or it cannot be a cookie.
    """
    option = "--node-cookie-file"
    try:
        content, mode = read_regular_file(path, _LONGEST_FILE)
    except OSError as error:
        raise ConfigError(option, f"{path} cannot be read: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            option,
            f"{path} has mode {stat.S_IMODE(mode):04o}: whoever reads it may run code on every "
            f"node of the cluster; chmod 600 {path}",
        )
    cookie = content.strip()
    if not cookie:
        raise ConfigError(option, f"{path} is empty")
    if len(cookie) > LONGEST_COOKIE or not all(0x20 < byte < 0x7F for byte in cookie):
        raise ConfigError(
            option, f"{path}: a cookie is at most 255 printable ASCII characters without spaces"
        )
    return cookie
