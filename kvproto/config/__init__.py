"""What an operator decides, as one value that checks itself.

Text becomes these values once, in ``parsing`` and ``settings``; nothing downstream checks
again.  The values know nothing of files' contents or sockets: whether a
certificate can be used is `kvproto.tls`'s to say, whether a port is free the
kernel's.
"""

from __future__ import annotations

from kvproto.config.nodes import NodeConfig
from kvproto.config.parsing import (
    parse_collection,
    parse_epmd,
    parse_node_address,
    parse_seconds,
    parse_size,
    parse_text,
    parse_user,
    parse_user_buckets,
)
from kvproto.config.service import Config, valid_bucket_name
from kvproto.config.stores import (
    DEFAULT_STORE,
    FileOptions,
    StoreURL,
    Sync,
    check_memory_url,
    parse_file_url,
    without_secrets,
)
from kvproto.config.values import (
    DEFAULT_BUCKET,
    DEFAULT_LISTEN,
    DEFAULT_STATE_DIR,
    ClientAuth,
    Collection,
    LogFormat,
    LogLevel,
    Mode,
    NodeAddress,
    OnRotate,
    RoomLevel,
    User,
    UserBuckets,
    endpoint_is_local,
    with_interface,
)

__all__ = [
    "DEFAULT_BUCKET",
    "DEFAULT_LISTEN",
    "DEFAULT_STATE_DIR",
    "DEFAULT_STORE",
    "ClientAuth",
    "Collection",
    "Config",
    "FileOptions",
    "LogFormat",
    "LogLevel",
    "Mode",
    "NodeAddress",
    "NodeConfig",
    "OnRotate",
    "RoomLevel",
    "StoreURL",
    "Sync",
    "User",
    "UserBuckets",
    "check_memory_url",
    "endpoint_is_local",
    "parse_collection",
    "parse_epmd",
    "parse_file_url",
    "parse_node_address",
    "parse_seconds",
    "parse_size",
    "parse_text",
    "parse_user",
    "parse_user_buckets",
    "valid_bucket_name",
    "with_interface",
    "without_secrets",
]
