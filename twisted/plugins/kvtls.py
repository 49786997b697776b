"""What Twisted's plugin system needs to know; nothing here imports kvproto until it is used."""

from twisted.application.service import ServiceMaker

kvtls = ServiceMaker(
    "kvtls",
    "kvproto.tap",
    "A key-value service over TLS (Couchbase KV and memcached protocols).",
    "kvtls",
)
