"""An HTTPS server that takes new certificates while it serves.

Write new files over the old ones, and the next client is shown the new certificate::

    python docs/examples/https_server.py \
        kvtls:8443:interface=127.0.0.1:certificate=chain.pem:key=key.pem:watch=2
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.web.resource import Resource
from twisted.web.server import Request, Site


class Hello(Resource):
    """Answers every path."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        return b"hello over TLS\n"


async def serve(reactor: Any, description: str) -> None:
    endpoint = serverFromString(reactor, description)
    # Site says itself which versions of HTTP it speaks; the endpoint negotiates them (ALPN).
    port: Any = await endpoint.listen(Site(Hello()))
    print("listening on", port.getHost().port, flush=True)
    await Deferred()  # until SIGINT or SIGTERM


def main(reactor: Any, description: str) -> Deferred[None]:
    # Reloads, and the reasons of those that are refused, are in the log.
    observers = [textFileLogObserver(sys.stderr)]
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)
    return Deferred.fromCoroutine(serve(reactor, description))


if __name__ == "__main__":
    react(main, sys.argv[1:])
