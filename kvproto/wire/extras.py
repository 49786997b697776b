"""Small fixed layouts: mutation tokens, document metadata, versions of a cluster configuration.

Sources: Couchbase kv_engine ``docs/BinaryProtocol.md``; ``docs/Document.md``; ep-engine
``docs/protocol/get_meta.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from kvproto.errors import RemoteProtocolError
from kvproto.wire.binary import encode_request
from kvproto.wire.constants import Datatype, Magic, ServerOpcode, Status

__all__ = [
    "META_WITH_DATATYPE",
    "Meta",
    "config_push",
    "config_version",
    "meta_extras",
    "mutation_token",
    "split_meta_extras",
    "split_mutation_token",
]

META_WITH_DATATYPE = b"\x02"
"""GET_META's request extras; the answer then ends with the datatype."""

_TOKEN = Struct(">QQ")
_META = Struct(">IIIQB")
_VERSION = Struct(">qq")


@dataclass(slots=True)
class Meta:
    """What GET_META answers.

    Attributes:
        deleted: It is a tombstone.
        flags: As stored.
        expiry: Absolute unix time in seconds, 0 for never.
        seqno: Sequence number of its last mutation.
        datatype: Bits of `Datatype`.
    """

    deleted: bool
    flags: int
    expiry: int
    seqno: int
    datatype: int


def mutation_token(vbucket_uuid: int, seqno: int) -> bytes:
    """Encode a mutation token: the 16 bytes of extras that feature 0x04 gives a mutation."""
    return _TOKEN.pack(vbucket_uuid, seqno)


def split_mutation_token(extras: bytes) -> tuple[int, int] | None:
    """Read a mutation's answer: vbucket UUID and sequence number; None without extras.

    Raises:
        RemoteProtocolError: There are extras, but not 16 bytes.
    """
    if not extras:
        return None
    if len(extras) != _TOKEN.size:
        raise RemoteProtocolError(f"a mutation token of {len(extras)} bytes")
    vbucket_uuid, seqno = _TOKEN.unpack(extras)
    return vbucket_uuid, seqno


def meta_extras(meta: Meta) -> bytes:
    """Encode GET_META's answer: exactly 21 bytes, or SDKs misread what is deleted."""
    return _META.pack(int(meta.deleted), meta.flags, meta.expiry, meta.seqno, meta.datatype)


def split_meta_extras(extras: bytes) -> Meta:
    """Read GET_META's answer, of 21 bytes or of 20 without the datatype.

    Raises:
        RemoteProtocolError: It has another length.
    """
    if len(extras) == _META.size - 1:
        extras += b"\0"
    if len(extras) != _META.size:
        raise RemoteProtocolError(f"document metadata of {len(extras)} bytes")
    deleted, flags, expiry, seqno, datatype = _META.unpack(extras)
    return Meta(bool(deleted), flags, expiry, seqno, datatype)


def config_version(extras: bytes) -> tuple[int, int] | None:
    """Read which configuration a client knows, from the extras of GET_CLUSTER_CONFIG.

    Returns:
        Epoch and revision, None when it does not say.

    Raises:
        RemoteProtocolError: There are extras, but not 16 bytes.  Status 0x04.
    """
    if not extras:
        return None
    if len(extras) != _VERSION.size:
        raise RemoteProtocolError(f"a version of {len(extras)} bytes", Status.INVALID)
    epoch, revision = _VERSION.unpack(extras)
    return epoch, revision


def config_push(bucket: bytes, config: bytes, epoch: int, revision: int, opaque: int = 0) -> bytes:
    """Encode a configuration that a server sends unasked (features 0x0c and 0x0d).

    Args:
        bucket: Its name, ``b""`` for the cluster's own configuration.
        config: The JSON; empty with feature 0x1f, where the client fetches it itself.
        epoch: Of the configuration, signed 64 bits.
        revision: Of the configuration, signed 64 bits.
        opaque: Free; no answer is expected.

    Raises:
        LocalProtocolError: The bucket's name does not fit.
    """
    return encode_request(
        ServerOpcode.CLUSTERMAP_CHANGED,
        magic=Magic.SERVER_REQUEST,
        extras=_VERSION.pack(epoch, revision),
        key=bucket,
        value=config,
        datatype=Datatype.JSON if config else Datatype.RAW,
        opaque=opaque,
    )
