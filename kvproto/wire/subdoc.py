"""Sub-document requests of several paths: their layout, not their meaning.

Judged here is what the layout alone decides: lengths and the number of specs.  Which operations and
flags go together, and what they mean for a document, is the store's business.

Source: Couchbase kv_engine ``docs/BinaryProtocol.md``, "Subdocument"; ``docs/SubDocument.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct
from struct import error as struct_error

from kvproto.errors import LocalProtocolError, RemoteProtocolError
from kvproto.wire.constants import Status
from kvproto.wire.subdoc_terms import MAX_SPECS, LookupSpec, MutationSpec, PathResult

__all__ = [
    "Lookup",
    "Mutation",
    "decode_lookup",
    "decode_lookup_results",
    "decode_mutation",
    "decode_mutation_results",
    "encode_lookup",
    "encode_lookup_results",
    "encode_mutation",
    "encode_mutation_failure",
    "encode_mutation_results",
    "lookup_result_parts",
    "lookup_status",
]


@dataclass(slots=True)
class Lookup:
    """A whole SUBDOC_MULTI_LOOKUP."""

    specs: list[LookupSpec] = field(default_factory=list)
    doc_flags: int = 0


@dataclass(slots=True)
class Mutation:
    """A whole SUBDOC_MULTI_MUTATION.

    Attributes:
        expiry: Raw u32 of the wire, None when the request does not say.
        user_flags: The document's new flags, None to keep them.
    """

    specs: list[MutationSpec] = field(default_factory=list)
    expiry: int | None = None
    user_flags: int | None = None
    doc_flags: int = 0


_LOOKUP_SPEC = Struct(">BBH")
_MUTATION_SPEC = Struct(">BBHI")
_LOOKUP_RESULT = Struct(">HI")
_MUTATION_RESULT = Struct(">BHI")
_MUTATION_FAILURE = Struct(">BH")
_U32 = Struct(">I")


def decode_lookup(extras: bytes, value: bytes) -> Lookup:
    """Read SUBDOC_MULTI_LOOKUP.

    Raises:
        RemoteProtocolError: Answer its status: 0x04 for a malformed request, 0xcb for too many
            specs, or none.
    """
    if len(extras) > 1:
        raise RemoteProtocolError(f"{len(extras)} bytes of extras on a lookup", Status.INVALID)
    doc_flags = extras[0] if extras else 0
    specs: list[LookupSpec] = []
    at, end = 0, len(value)
    while at < end:
        _check_room(specs, at + _LOOKUP_SPEC.size <= end)
        opcode, flags, path_size = _LOOKUP_SPEC.unpack_from(value, at)
        path_at = at + _LOOKUP_SPEC.size
        at = path_at + path_size
        _check_room(specs, at <= end)
        specs.append(LookupSpec(opcode, flags, value[path_at:at]))
    _check_number(specs)
    return Lookup(specs, doc_flags)


def decode_mutation(extras: bytes, value: bytes) -> Mutation:
    """Read SUBDOC_MULTI_MUTATION.

    Raises:
        RemoteProtocolError: Answer its status: 0x04 for a malformed request, 0xcb for too many
            specs, or none.
    """
    mutation = _decode_mutation_extras(extras)
    specs = mutation.specs
    at, end = 0, len(value)
    while at < end:
        _check_room(specs, at + _MUTATION_SPEC.size <= end)
        opcode, flags, path_size, value_size = _MUTATION_SPEC.unpack_from(value, at)
        path_at = at + _MUTATION_SPEC.size
        value_at = path_at + path_size
        at = value_at + value_size
        _check_room(specs, at <= end)
        specs.append(MutationSpec(opcode, flags, value[path_at:value_at], value[value_at:at]))
    _check_number(specs)
    return mutation


def _decode_mutation_extras(extras: bytes) -> Mutation:
    # [expiry u32 [user flags u32]] [doc flags u8], told apart by the length alone.
    if len(extras) not in {0, 1, 4, 5, 8, 9}:
        raise RemoteProtocolError(f"{len(extras)} bytes of extras on a mutation", Status.INVALID)
    mutation = Mutation()
    if len(extras) >= 4:
        [mutation.expiry] = _U32.unpack_from(extras)
    if len(extras) >= 8:
        [mutation.user_flags] = _U32.unpack_from(extras, 4)
    if len(extras) % 4:
        mutation.doc_flags = extras[-1]
    return mutation


def _check_room(specs: Sequence[LookupSpec | MutationSpec], fits: bool) -> None:
    if not fits:
        raise RemoteProtocolError(f"spec {len(specs)} is cut short", Status.INVALID)
    if len(specs) > MAX_SPECS:
        raise RemoteProtocolError(f"more than {MAX_SPECS} specs", Status.SUBDOC_INVALID_COMBO)


def _check_number(specs: Sequence[LookupSpec | MutationSpec]) -> None:
    if not 0 < len(specs) <= MAX_SPECS:
        raise RemoteProtocolError(f"{len(specs)} specs", Status.SUBDOC_INVALID_COMBO)


def encode_lookup(lookup: Lookup) -> tuple[bytes, bytes]:
    """Write SUBDOC_MULTI_LOOKUP: extras and value.

    Raises:
        LocalProtocolError: A field does not fit.
    """
    try:
        value = b"".join(
            _LOOKUP_SPEC.pack(spec.op, spec.flags, len(spec.path)) + spec.path
            for spec in lookup.specs
        )
        return bytes((lookup.doc_flags,)) if lookup.doc_flags else b"", value
    except (struct_error, ValueError) as e:
        raise LocalProtocolError(f"a field of a lookup is out of range: {e}") from e


def encode_mutation(mutation: Mutation) -> tuple[bytes, bytes]:
    """Write SUBDOC_MULTI_MUTATION: extras and value.

    Raises:
        LocalProtocolError: A field does not fit, or there are user flags without an expiry.
    """
    if mutation.user_flags is not None and mutation.expiry is None:
        raise LocalProtocolError("the layout has no user flags without an expiry")
    try:
        extras = b"".join(
            _U32.pack(number)
            for number in (mutation.expiry, mutation.user_flags)
            if number is not None
        )
        if mutation.doc_flags:
            extras += bytes((mutation.doc_flags,))
        parts = []
        for spec in mutation.specs:
            sizes = len(spec.path), len(spec.value)
            parts += [_MUTATION_SPEC.pack(spec.op, spec.flags, *sizes), spec.path, spec.value]
        return extras, b"".join(parts)
    except (struct_error, ValueError) as e:
        raise LocalProtocolError(f"a field of a mutation is out of range: {e}") from e


def lookup_status(results: Iterable[tuple[int, bytes]]) -> int:
    """Return the status of a lookup's answer: 0xcc as soon as one path failed."""
    failed = any(status for status, _ in results)
    return int(Status.SUBDOC_MULTI_PATH_FAILURE if failed else Status.SUCCESS)


def encode_lookup_results(results: Iterable[tuple[int, bytes]]) -> bytes:
    """Write the value of a lookup's answer; see `lookup_result_parts`."""
    return b"".join(lookup_result_parts(results))


def lookup_result_parts(results: Iterable[tuple[int, bytes]]) -> list[bytes]:
    """Write the value of a lookup's answer, in parts that spare long texts a copy.

    Args:
        results: For each spec in order: status, and the JSON text (``b""`` when there is none).
            The Couchbase SDK aborts its process on a status that it does not know: only 0 and
            those of `Status` whose names begin with ``SUBDOC_``.
    """
    parts = []
    for status, value in results:
        parts += [_LOOKUP_RESULT.pack(status, len(value)), value]
    return parts


def encode_mutation_results(results: Iterable[PathResult]) -> bytes:
    """Write the value of a successful mutation's answer: only specs that have a result."""
    return b"".join(
        _MUTATION_RESULT.pack(result.spec, result.status, len(result.value)) + result.value
        for result in results
    )


def encode_mutation_failure(index: int, status: int) -> bytes:
    """Write the value of a failed mutation's answer (its status is 0xcc): 3 bytes.

    Args:
        index: Of the first spec that failed, from 0.
        status: Why; see `encode_lookup_results` for what is safe.
    """
    return _MUTATION_FAILURE.pack(index, status)


def decode_lookup_results(value: bytes) -> list[tuple[int, bytes]]:
    """Read the value of a lookup's answer: status and JSON text for each spec.

    Raises:
        RemoteProtocolError: It is cut short.
    """
    results = []
    at, end = 0, len(value)
    while at < end:
        value_at = at + _LOOKUP_RESULT.size
        if value_at > end:
            raise _result_cut_short()
        status, size = _LOOKUP_RESULT.unpack_from(value, at)
        at = value_at + size
        if at > end:
            raise _result_cut_short()
        results.append((status, value[value_at:at]))
    return results


def decode_mutation_results(value: bytes) -> list[PathResult]:
    """Read the value of a mutation's answer, whether it succeeded or failed.

    Raises:
        RemoteProtocolError: It is cut short.
    """
    results = []
    at, end = 0, len(value)
    while at < end:
        value_at = at + _MUTATION_FAILURE.size
        if value_at > end:
            raise _result_cut_short()
        index, status = _MUTATION_FAILURE.unpack_from(value, at)
        size = 0
        if status == Status.SUCCESS:
            value_at = at + _MUTATION_RESULT.size
            if value_at > end:
                raise _result_cut_short()
            size = _MUTATION_RESULT.unpack_from(value, at)[2]
        at = value_at + size
        if at > end:
            raise _result_cut_short()
        results.append(PathResult(index, status, value[value_at:at]))
    return results


def _result_cut_short() -> RemoteProtocolError:
    return RemoteProtocolError("a sub-document result is cut short")
