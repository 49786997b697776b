"""The numbers of the key-value protocol, and what each is called.

Owns no behaviour: enumerations for people, plain ``int`` tables for hot paths (an ``IntEnum``
member compares and hashes as its number, so ``table[frame.opcode]`` needs no conversion;
calling ``Opcode(number)`` costs ten times a dict look-up and raises for what is unknown).

Sources: memcached ``protocol_binary.h``; Couchbase kv_engine ``docs/BinaryProtocol.md``,
``include/mcbp/protocol/{opcode,status,feature,datatype}.h``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = [
    "BINARY_MAGICS",
    "ERROR_TEXT",
    "HEADER_SIZE",
    "LOUD",
    "MAX_COLLECTION_PREFIX",
    "MAX_KEY",
    "QUIET",
    "QUIET_ON_MISS",
    "Datatype",
    "Feature",
    "Magic",
    "Opcode",
    "ServerOpcode",
    "Status",
    "error_text",
]

HEADER_SIZE = 24
"""Bytes of the header that every binary frame begins with."""

MAX_KEY = 250
"""Longest key in bytes, without a collection prefix (memcached ``KEY_MAX_LENGTH``)."""

MAX_COLLECTION_PREFIX = 5
"""Longest leb128 form of a 32-bit collection id, in bytes."""


class Magic(IntEnum):
    """First byte of a binary frame."""

    REQUEST = 0x80
    RESPONSE = 0x81
    FLEX_REQUEST = 0x08
    FLEX_RESPONSE = 0x18
    SERVER_REQUEST = 0x82
    """A request that the server sends (a pushed configuration); laid out as 0x80."""
    CLIENT_RESPONSE = 0x83
    """The client's answer to it; laid out as 0x81."""


BINARY_MAGICS = frozenset({0x80, 0x08})
"""A connection whose first byte is one of these speaks binary; any other speaks text."""


class Opcode(IntEnum):
    """What a client asks for."""

    GET = 0x00
    SET = 0x01
    ADD = 0x02
    REPLACE = 0x03
    DELETE = 0x04
    INCREMENT = 0x05
    DECREMENT = 0x06
    QUIT = 0x07
    FLUSH = 0x08
    GETQ = 0x09
    NOOP = 0x0A
    VERSION = 0x0B
    GETK = 0x0C
    GETKQ = 0x0D
    APPEND = 0x0E
    PREPEND = 0x0F
    STAT = 0x10
    SETQ = 0x11
    ADDQ = 0x12
    REPLACEQ = 0x13
    DELETEQ = 0x14
    INCREMENTQ = 0x15
    DECREMENTQ = 0x16
    QUITQ = 0x17
    FLUSHQ = 0x18
    APPENDQ = 0x19
    PREPENDQ = 0x1A
    VERBOSITY = 0x1B
    TOUCH = 0x1C
    GAT = 0x1D
    GATQ = 0x1E
    HELLO = 0x1F
    SASL_LIST = 0x20
    SASL_AUTH = 0x21
    SASL_STEP = 0x22
    GATK = 0x23
    GATKQ = 0x24
    GET_REPLICA = 0x83
    SELECT_BUCKET = 0x89
    OBSERVE_SEQNO = 0x91
    OBSERVE = 0x92
    GET_LOCKED = 0x94
    UNLOCK = 0x95
    GET_META = 0xA0
    GETQ_META = 0xA1
    GET_CLUSTER_CONFIG = 0xB5
    GET_RANDOM_KEY = 0xB6
    GET_MANIFEST = 0xBA
    GET_COLLECTION_ID = 0xBB
    GET_SCOPE_ID = 0xBC
    SUBDOC_GET = 0xC5
    SUBDOC_EXISTS = 0xC6
    SUBDOC_DICT_ADD = 0xC7
    SUBDOC_DICT_UPSERT = 0xC8
    SUBDOC_DELETE = 0xC9
    SUBDOC_REPLACE = 0xCA
    SUBDOC_ARRAY_PUSH_LAST = 0xCB
    SUBDOC_ARRAY_PUSH_FIRST = 0xCC
    SUBDOC_ARRAY_INSERT = 0xCD
    SUBDOC_ARRAY_ADD_UNIQUE = 0xCE
    SUBDOC_COUNTER = 0xCF
    SUBDOC_MULTI_LOOKUP = 0xD0
    SUBDOC_MULTI_MUTATION = 0xD1
    SUBDOC_GET_COUNT = 0xD2
    SUBDOC_REPLACE_BODY_WITH_XATTR = 0xD3
    RANGE_SCAN_CREATE = 0xDA
    RANGE_SCAN_CONTINUE = 0xDB
    RANGE_SCAN_CANCEL = 0xDC
    GET_ERROR_MAP = 0xFE


class ServerOpcode(IntEnum):
    """What a server asks of, or tells, a client (magic 0x82)."""

    CLUSTERMAP_CHANGED = 0x01


LOUD: dict[int, int] = {
    int(quiet): int(loud)
    for quiet, loud in (
        (Opcode.GETQ, Opcode.GET),
        (Opcode.GETKQ, Opcode.GETK),
        (Opcode.SETQ, Opcode.SET),
        (Opcode.ADDQ, Opcode.ADD),
        (Opcode.REPLACEQ, Opcode.REPLACE),
        (Opcode.DELETEQ, Opcode.DELETE),
        (Opcode.INCREMENTQ, Opcode.INCREMENT),
        (Opcode.DECREMENTQ, Opcode.DECREMENT),
        (Opcode.QUITQ, Opcode.QUIT),
        (Opcode.FLUSHQ, Opcode.FLUSH),
        (Opcode.APPENDQ, Opcode.APPEND),
        (Opcode.PREPENDQ, Opcode.PREPEND),
        (Opcode.GATQ, Opcode.GAT),
        (Opcode.GATKQ, Opcode.GATK),
        (Opcode.GETQ_META, Opcode.GET_META),
    )
}
"""Each quiet opcode, and the loud one that does the same work."""

QUIET: frozenset[int] = frozenset(LOUD)
"""Opcodes that do not answer in the usual case."""

QUIET_ON_MISS: frozenset[int] = frozenset(
    int(opcode)
    for opcode in (Opcode.GETQ, Opcode.GETKQ, Opcode.GATQ, Opcode.GATKQ, Opcode.GETQ_META)
)
"""Quiet reads: they answer a hit and say nothing on a miss; all other quiet opcodes are silent on
success and answer errors."""


class Status(IntEnum):
    """How a request ended; on the wire where a request has its vbucket."""

    SUCCESS = 0x00
    NOT_FOUND = 0x01
    EXISTS = 0x02
    TOO_BIG = 0x03
    INVALID = 0x04
    NOT_STORED = 0x05
    NOT_A_NUMBER = 0x06
    NOT_MY_VBUCKET = 0x07
    NO_BUCKET = 0x08
    LOCKED = 0x09
    STREAM_NOT_FOUND = 0x0A
    OPAQUE_NO_MATCH = 0x0B
    WOULD_THROTTLE = 0x0C
    CONFIG_ONLY = 0x0D
    NOT_LOCKED = 0x0E
    CAS_INVALIDATED = 0x0F
    AUTH_STALE = 0x1F
    AUTH_ERROR = 0x20
    AUTH_CONTINUE = 0x21
    RANGE = 0x22
    ROLLBACK = 0x23
    NO_ACCESS = 0x24
    NOT_INITIALIZED = 0x25
    RATE_LIMITED_INGRESS = 0x30
    RATE_LIMITED_EGRESS = 0x31
    RATE_LIMITED_CONNECTIONS = 0x32
    RATE_LIMITED_COMMANDS = 0x33
    SCOPE_SIZE_LIMIT = 0x34
    BUCKET_SIZE_LIMIT = 0x35
    UNKNOWN_FRAME_INFO = 0x80
    UNKNOWN_COMMAND = 0x81
    NO_MEMORY = 0x82
    NOT_SUPPORTED = 0x83
    INTERNAL = 0x84
    BUSY = 0x85
    TEMPORARY_FAILURE = 0x86
    XATTR_INVALID = 0x87
    UNKNOWN_COLLECTION = 0x88
    NO_MANIFEST = 0x89
    CANNOT_APPLY_MANIFEST = 0x8A
    MANIFEST_IS_AHEAD = 0x8B
    UNKNOWN_SCOPE = 0x8C
    DURABILITY_INVALID_LEVEL = 0xA0
    DURABILITY_IMPOSSIBLE = 0xA1
    SYNC_WRITE_IN_PROGRESS = 0xA2
    SYNC_WRITE_AMBIGUOUS = 0xA3
    SYNC_WRITE_RECOMMIT_IN_PROGRESS = 0xA4
    RANGE_SCAN_CANCELLED = 0xA5
    RANGE_SCAN_MORE = 0xA6
    RANGE_SCAN_COMPLETE = 0xA7
    VBUUID_NOT_EQUAL = 0xA8
    SUBDOC_PATH_NOT_FOUND = 0xC0
    SUBDOC_PATH_MISMATCH = 0xC1
    SUBDOC_PATH_INVALID = 0xC2
    SUBDOC_PATH_TOO_BIG = 0xC3
    SUBDOC_DOC_TOO_DEEP = 0xC4
    SUBDOC_VALUE_CANNOT_INSERT = 0xC5
    SUBDOC_DOC_NOT_JSON = 0xC6
    SUBDOC_NUMBER_RANGE = 0xC7
    SUBDOC_DELTA_INVALID = 0xC8
    SUBDOC_PATH_EXISTS = 0xC9
    SUBDOC_VALUE_TOO_DEEP = 0xCA
    SUBDOC_INVALID_COMBO = 0xCB
    SUBDOC_MULTI_PATH_FAILURE = 0xCC
    SUBDOC_SUCCESS_DELETED = 0xCD
    SUBDOC_XATTR_INVALID_FLAGS = 0xCE
    SUBDOC_XATTR_INVALID_KEYS = 0xCF
    SUBDOC_XATTR_UNKNOWN_MACRO = 0xD0
    SUBDOC_XATTR_UNKNOWN_VATTR = 0xD1
    SUBDOC_XATTR_CANNOT_MODIFY_VATTR = 0xD2
    SUBDOC_MULTI_PATH_FAILURE_DELETED = 0xD3
    SUBDOC_XATTR_INVALID_ORDER = 0xD4
    SUBDOC_XATTR_UNKNOWN_VATTR_MACRO = 0xD5
    SUBDOC_CAN_ONLY_REVIVE_DELETED = 0xD6
    SUBDOC_DELETED_CANNOT_HAVE_VALUE = 0xD7


class Feature(IntEnum):
    """What HELLO negotiates."""

    TLS = 0x02
    TCP_NODELAY = 0x03
    MUTATION_SEQNO = 0x04
    TCP_DELAY = 0x05
    XATTR = 0x06
    XERROR = 0x07
    SELECT_BUCKET = 0x08
    SNAPPY = 0x0A
    JSON = 0x0B
    DUPLEX = 0x0C
    CLUSTERMAP_NOTIFICATION = 0x0D
    UNORDERED = 0x0E
    TRACING = 0x0F
    ALT_REQUEST = 0x10
    SYNC_REPLICATION = 0x11
    COLLECTIONS = 0x12
    SNAPPY_EVERYWHERE = 0x13
    PRESERVE_TTL = 0x14
    VATTR = 0x15
    POINT_IN_TIME_RECOVERY = 0x16
    CREATE_AS_DELETED = 0x17
    DOCUMENT_MACROS = 0x18
    REPLACE_BODY_WITH_XATTR = 0x19
    REPORT_UNIT_USAGE = 0x1A
    NON_BLOCKING_THROTTLING = 0x1B
    SUBDOC_REPLICA_READ = 0x1C
    CLUSTERMAP_NOTIFICATION_BRIEF = 0x1F
    CLUSTERMAP_KNOWN_VERSION = 0x1D
    DEDUP_NOT_MY_VBUCKET = 0x1E
    SUBDOC_ALLOWS_ACCESS_TO_MULTIPLE_XATTR_KEYS = 0x20
    SUBDOC_BINARY_XATTR = 0x21


class Datatype(IntFlag):
    """What a value is, as far as the protocol cares."""

    RAW = 0x00
    JSON = 0x01
    SNAPPY = 0x02
    XATTR = 0x04


ERROR_TEXT: dict[int, bytes] = {
    Status.NOT_FOUND: b"Not found",
    Status.EXISTS: b"Data exists for key.",
    Status.TOO_BIG: b"Too large.",
    Status.INVALID: b"Invalid arguments",
    Status.NOT_STORED: b"Not stored.",
    Status.NOT_A_NUMBER: b"Non-numeric server-side value for incr or decr",
    Status.NO_BUCKET: b"No bucket selected",
    Status.LOCKED: b"Locked",
    Status.NOT_LOCKED: b"Not locked",
    Status.AUTH_ERROR: b"Auth failure.",
    Status.AUTH_CONTINUE: b"Continue",
    Status.NO_ACCESS: b"No access",
    Status.UNKNOWN_FRAME_INFO: b"Unknown frame info",
    Status.UNKNOWN_COMMAND: b"Unknown command",
    Status.NO_MEMORY: b"Out of memory",
    Status.NOT_SUPPORTED: b"Not supported",
    Status.INTERNAL: b"Internal error",
    Status.BUSY: b"Too busy",
    Status.TEMPORARY_FAILURE: b"Temporary failure",
    Status.UNKNOWN_COLLECTION: b"Unknown collection",
    Status.UNKNOWN_SCOPE: b"Unknown scope",
    Status.DURABILITY_INVALID_LEVEL: b"Invalid durability level",
    Status.DURABILITY_IMPOSSIBLE: b"Durability impossible",
}
"""Body of an error reply to a client that has not said HELLO.

memcached's words where it has any.  Never empty: memcached's own test suite takes an error with an
empty body for success.
"""


def error_text(status: int) -> bytes:
    """Return the body for an error reply to a classic client; never empty."""
    text = ERROR_TEXT.get(status)
    return b"Error 0x%02x" % status if text is None else text
