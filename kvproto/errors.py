"""Every exception that kvproto raises on purpose.

::

    KVProtoError
    ├── LocalProtocolError    we (or the program that uses us) broke the protocol
    ├── RemoteProtocolError   the peer broke the protocol
    ├── ConfigError           an option cannot be used
    │   └── CredentialError   a certificate, key, trust anchor or CRL cannot be used
    ├── HandoffError          a connection could not be handed to its controller
    ├── CommandError          an operator's command could not be carried out
    └── UpstreamError         a server that we depend on failed
        ├── StoreUnavailable      where values live cannot be reached; nothing was changed
        ├── OutcomeUnknown        a write was sent there and got no answer
        ├── NotSupported          a store does not have what was asked; nothing was changed
        └── DurabilityImpossible  a write cannot become durable; nothing was changed

Exceptions are raised with values; ``__str__`` builds the sentence.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "CommandError",
    "ConfigError",
    "CredentialError",
    "DurabilityImpossible",
    "HandoffError",
    "KVProtoError",
    "LocalProtocolError",
    "NotSupported",
    "OutcomeUnknown",
    "RemoteProtocolError",
    "StoreUnavailable",
    "UpstreamError",
]


class KVProtoError(Exception):
    """Root of all errors that kvproto raises on purpose."""


class LocalProtocolError(KVProtoError):
    """This side asked for something that the protocol does not allow."""


class RemoteProtocolError(KVProtoError):
    """The peer sent something that the protocol does not allow.

    Args:
        reason: One lower-case phrase for the log, e.g. ``"unknown magic 0x47"``.
        status: The wire status to answer with before closing, None to only close.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status

    def __str__(self) -> str:
        return self.reason


class ConfigError(KVProtoError):
    """An option cannot be used as given.

    Args:
        option: The option as the operator spells it, e.g. ``"--certificate"``.
        reason: What is wrong and what to do about it.
    """

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(option, reason)
        self.option = option
        self.reason = reason

    def __str__(self) -> str:
        # A parameter of an endpoint string ends in "=" as it is.
        return f"{self.option}{' ' if self.option.endswith('=') else ': '}{self.reason}"


class CredentialError(ConfigError):
    """A certificate, key, trust anchor or revocation list cannot be used.

    Args:
        option: The option that named the file.
        path: The file; None when it has none (made in memory).
        reason: What is wrong and what to do about it.
    """

    def __init__(self, option: str, path: Path | None, reason: str) -> None:
        super().__init__(option, reason)
        self.args = (option, path, reason)
        self.path = path

    def __str__(self) -> str:
        where = "" if self.path is None else f" {self.path}"
        return f"{self.option}{where}: {self.reason}"


class HandoffError(KVProtoError):
    """A connection could not be handed to its controller."""


class CommandError(KVProtoError):
    """An operator's command could not be carried out.

    Args:
        code: What scripts compare, e.g. ``"unknown-listener"``; the list is in
            ``docs/reference/control.md``.
        reason: What is wrong and what to do about it, for the operator.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class UpstreamError(KVProtoError):
    """A server that this one depends on failed or could not be reached."""


class ForeignData(UpstreamError):
    """What lies in a server under one of our names was not written by us, or is damaged."""


class StoreUnavailable(UpstreamError):
    """A store cannot do now what it was asked, and has changed nothing: the client may retry."""


class OutcomeUnknown(UpstreamError):
    """A write got no answer: nobody can say whether it was performed, so it must not be retried."""


class NotSupported(UpstreamError):
    """A store does not have what it was asked for, and never will: nothing was changed."""


class DurabilityImpossible(UpstreamError):
    """A write cannot become as durable as asked, so nothing was changed."""
