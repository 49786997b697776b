"""The vocabulary of sub-document operations: what sessions, stores and codecs all speak.

Names and numbers only; the layout of requests is `kvproto.wire.subdoc`'s, what an operation does
to a document is a store's.

Source: Couchbase kv_engine ``docs/SubDocument.md`` and ``include/memcached/protocol_binary.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

from kvproto.wire.constants import Opcode, Status

__all__ = [
    "MAX_PATH_BYTES",
    "MAX_SPECS",
    "DocFlag",
    "LookupSpec",
    "MutationSpec",
    "PathFlag",
    "PathOp",
    "PathResult",
    "PathStatus",
]

MAX_SPECS = 16
"""Most specs of one request (kv_engine ``PROTOCOL_BINARY_SUBDOC_MULTI_MAX_PATHS``)."""

MAX_PATH_BYTES = 1024
"""Longest path, in bytes (kv_engine ``SUBDOC_PATH_MAX_LENGTH``)."""


class PathOp(IntEnum):
    """What to do with a path."""

    GET_DOC = Opcode.GET
    SET_DOC = Opcode.SET
    DELETE_DOC = Opcode.DELETE
    GET = Opcode.SUBDOC_GET
    EXISTS = Opcode.SUBDOC_EXISTS
    DICT_ADD = Opcode.SUBDOC_DICT_ADD
    DICT_UPSERT = Opcode.SUBDOC_DICT_UPSERT
    REMOVE = Opcode.SUBDOC_DELETE
    REPLACE = Opcode.SUBDOC_REPLACE
    ARRAY_PUSH_LAST = Opcode.SUBDOC_ARRAY_PUSH_LAST
    ARRAY_PUSH_FIRST = Opcode.SUBDOC_ARRAY_PUSH_FIRST
    ARRAY_INSERT = Opcode.SUBDOC_ARRAY_INSERT
    ARRAY_ADD_UNIQUE = Opcode.SUBDOC_ARRAY_ADD_UNIQUE
    COUNTER = Opcode.SUBDOC_COUNTER
    GET_COUNT = Opcode.SUBDOC_GET_COUNT


class PathFlag(IntFlag):
    """How to take one path."""

    CREATE_PARENTS = 0x01
    XATTR = 0x04
    EXPAND_MACROS = 0x10


class DocFlag(IntFlag):
    """How to take the document of a request."""

    MKDOC = 0x01
    ADD = 0x02
    ACCESS_DELETED = 0x04
    CREATE_AS_DELETED = 0x08
    REVIVE = 0x10
    REPLICA_READ = 0x20


class PathStatus(IntEnum):
    """What became of one path, or of the request for all of them."""

    SUCCESS = Status.SUCCESS
    INVALID = Status.INVALID
    NOT_A_REPLICA = Status.NOT_MY_VBUCKET
    TEMPORARY_FAILURE = Status.TEMPORARY_FAILURE
    XATTR_INVALID = Status.XATTR_INVALID
    NOT_FOUND = Status.SUBDOC_PATH_NOT_FOUND
    MISMATCH = Status.SUBDOC_PATH_MISMATCH
    BAD_PATH = Status.SUBDOC_PATH_INVALID
    PATH_TOO_BIG = Status.SUBDOC_PATH_TOO_BIG
    DOC_TOO_DEEP = Status.SUBDOC_DOC_TOO_DEEP
    CANNOT_INSERT = Status.SUBDOC_VALUE_CANNOT_INSERT
    NOT_JSON = Status.SUBDOC_DOC_NOT_JSON
    NUMBER_RANGE = Status.SUBDOC_NUMBER_RANGE
    BAD_DELTA = Status.SUBDOC_DELTA_INVALID
    EXISTS = Status.SUBDOC_PATH_EXISTS
    VALUE_TOO_DEEP = Status.SUBDOC_VALUE_TOO_DEEP
    BAD_COMBINATION = Status.SUBDOC_INVALID_COMBO
    SOME_FAILED = Status.SUBDOC_MULTI_PATH_FAILURE
    SUCCESS_DELETED = Status.SUBDOC_SUCCESS_DELETED
    XATTR_BAD_FLAGS = Status.SUBDOC_XATTR_INVALID_FLAGS
    UNKNOWN_MACRO = Status.SUBDOC_XATTR_UNKNOWN_MACRO
    UNKNOWN_VATTR = Status.SUBDOC_XATTR_UNKNOWN_VATTR
    VATTR_READ_ONLY = Status.SUBDOC_XATTR_CANNOT_MODIFY_VATTR
    SOME_FAILED_DELETED = Status.SUBDOC_MULTI_PATH_FAILURE_DELETED
    XATTRS_NOT_FIRST = Status.SUBDOC_XATTR_INVALID_ORDER
    UNKNOWN_VATTR_MACRO = Status.SUBDOC_XATTR_UNKNOWN_VATTR_MACRO
    NOT_DELETED = Status.SUBDOC_CAN_ONLY_REVIVE_DELETED
    DELETED_HAS_NO_VALUE = Status.SUBDOC_DELETED_CANNOT_HAVE_VALUE


@dataclass(slots=True)
class LookupSpec:
    """One thing to look up: a `PathOp`, `PathFlag` bits and a path, all as they came."""

    op: int
    flags: int
    path: bytes


@dataclass(slots=True)
class MutationSpec:
    """One thing to change: as `LookupSpec`, and JSON text."""

    op: int
    flags: int
    path: bytes
    value: bytes = b""


class PathResult(NamedTuple):
    """What one spec of a mutation came to.

    Attributes:
        spec: Which, from 0.
        status: SUCCESS, or why it failed.
        value: JSON text of a spec that has a result (a counter).
    """

    spec: int
    status: int
    value: bytes = b""
