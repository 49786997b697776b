"""What Twisted's plugin system needs to know; nothing here imports kvproto until it is used."""

from typing import Any

from twisted.application.service import ServiceMaker
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer

kvtls = ServiceMaker(
    "kvtls",
    "kvproto.tap",
    "A key-value service over TLS (Couchbase KV and memcached protocols).",
    "kvtls",
)


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _ServerParser:
    """``kvtls:`` for `twisted.internet.endpoints.serverFromString`."""

    prefix = "kvtls"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:
        """Make a server endpoint."""
        from kvproto.tls.endpoints import parse_server

        return parse_server(reactor, *args, **kwargs)


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class _ClientParser:
    """``kvtls:`` for `twisted.internet.endpoints.clientFromString`."""

    prefix = "kvtls"

    def parseStreamClient(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:
        """Make a client endpoint."""
        from kvproto.tls.endpoints import parse_client

        return parse_client(reactor, *args, **kwargs)


kvtls_server = _ServerParser()
kvtls_client = _ClientParser()
