"""Results of requests."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CounterResult", "GetResult", "MutationResult", "MutationToken"]


@dataclass(slots=True)
class MutationToken:
    """The place of a mutation in its vbucket's history (feature 0x04).

    Attributes:
        vbucket_uuid: Which history.
        seqno: Which mutation in it.
    """

    vbucket_uuid: int
    seqno: int


@dataclass(slots=True)
class GetResult:
    """A document as it was read.

    Attributes:
        value: The bytes as they were stored.
        flags: 32 bits that belong to the application.
        cas: Give it to a mutation that shall happen only if nothing else has happened since.
        datatype: Bits of `kvproto.wire.constants.Datatype`.
    """

    value: bytes
    flags: int
    cas: int
    datatype: int = 0


@dataclass(slots=True)
class MutationResult:
    """A mutation that has been carried out.

    Attributes:
        cas: Of the document as it is now.
        token: None when the server gives none.
    """

    cas: int
    token: MutationToken | None = None


@dataclass(slots=True)
class CounterResult:
    """A counter that has been changed.

    Attributes:
        value: The number as it is now.
        cas: Of the document as it is now.
        token: None when the server gives none.
    """

    value: int
    cas: int
    token: MutationToken | None = None
