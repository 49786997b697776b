"""Which files hold credentials, and reading them: each once, and all from one moment.

Knows nothing of what is in them.  A rotation tool may be at work while we read:
`read_together` resolves symbolic links first (a Kubernetes volume swaps the link
``..data``), reads, and reads again; it answers only when both readings agree.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kvproto.base.regular_file import read_regular_file
from kvproto.errors import CredentialError

__all__ = [
    "MAX_FILE",
    "CredentialFiles",
    "Options",
    "Purpose",
    "UnfinishedError",
    "digest_of",
    "read_files",
    "read_together",
]

MAX_FILE = 16 * 1024 * 1024
"""Bytes of one credential file: far above any CA bundle or CRL, far below all memory."""

MAX_READINGS = 5
"""Attempts at reading all files unchanged; a swap of links takes one, a busy writer all."""


class UnfinishedError(CredentialError):
    """A file looks as if somebody were still writing it: the same may be good in a moment."""


class Purpose(enum.Enum):
    """What the certificate is shown for."""

    SERVER = "server"
    CLIENT = "client"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Options:
    """What each file is called where it was named, for the text of errors.

    By default as a program names it, in `CredentialFiles`.
    """

    certificate: str = "certificate"
    private_key: str = "private_key"
    passphrase: str = "passphrase"  # noqa: S105 - a name
    client_ca: str = "client_ca"
    crl: str = "crl"


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """Where credentials are kept.

    Args:
        certificate: PEM chain: the node's certificate first, then each issuer; None for a
            client that shows no certificate.
        private_key: PEM key; None when it is in the certificate file.
        passphrase: File whose first line opens an encrypted key.
        client_ca: PEM certificates of those who may issue peers' certificates.
        crl: PEM revocation lists of these.
        options: How the operator spelt them.
        purpose: What the certificate is for.
    """

    certificate: Path | None
    private_key: Path | None = None
    passphrase: Path | None = None
    client_ca: Path | None = None
    crl: Path | None = None
    options: Options = field(default_factory=Options)
    purpose: Purpose = Purpose.SERVER

    def named(self) -> list[tuple[str, Path]]:
        """Return (option, file) for every file that is configured."""
        return [
            (getattr(self.options, name), path)
            for name in ("certificate", "private_key", "passphrase", "client_ca", "crl")
            if (path := getattr(self, name)) is not None
        ]


def read_files(files: CredentialFiles) -> dict[Path, bytes]:
    """Read each configured file once.

    Raises:
        CredentialError: One is missing, unreadable, no regular file, empty or huge.
    """
    contents: dict[Path, bytes] = {}
    for option, path in files.named():
        if path not in contents:
            contents[path] = _read(option, path)
    return contents


def read_together(files: CredentialFiles) -> dict[Path, bytes]:
    """Read all files as they were at one moment.

    Raises:
        CredentialError: One cannot be read, or they kept changing while being read.
    """
    for _ in range(MAX_READINGS):
        resolved = _resolve(files)
        try:
            contents = {path: _read(option, path, resolved[path]) for option, path in files.named()}
            if _resolve(files) == resolved and contents == read_files(files):
                return contents
        except CredentialError:
            # What a link pointed at a moment ago may be gone already; only a link that
            # still points there makes this the operator's fault.
            if _resolve(files) == resolved:
                raise
    option, path = files.named()[0]
    raise UnfinishedError(
        option, path, "and the files beside it keep changing while they are read; try again"
    )


def _resolve(files: CredentialFiles) -> dict[Path, Path]:
    """Follow every symbolic link, that of a shared directory once for all files in it."""
    directories = {path.parent: path.parent.resolve() for _, path in files.named()}
    return {path: (directories[path.parent] / path.name).resolve() for _, path in files.named()}


def digest_of(contents: Iterable[bytes]) -> str:
    """Return one SHA-256 over several contents; moving a byte between two changes it."""
    whole = hashlib.sha256()
    for content in contents:
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()


def _read(option: str, path: Path, real: Path | None = None) -> bytes:
    """Read a regular file, whole.

    Args:
        option: For the error.
        path: For the error.
        real: Where its links led; None to follow them now.
    """
    try:
        content, _ = read_regular_file(real or path, MAX_FILE)
    except FileNotFoundError:
        raise UnfinishedError(option, path, "there is no such file") from None
    except PermissionError:
        raise CredentialError(
            option, path, "may not be read by this user; change its owner or mode"
        ) from None
    except IsADirectoryError:
        raise CredentialError(option, path, "is a directory; name the PEM file in it") from None
    except OSError as error:
        raise CredentialError(option, path, f"cannot be read: {error.strerror}") from None
    if not content:
        raise UnfinishedError(option, path, "is empty")
    return content
