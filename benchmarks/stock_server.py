"""A minimal KV server on Twisted's own TLS: GET and SET of the binary protocol, nothing else.

``python -m benchmarks.stock_server PORT CHAIN KEY``; the yardstick for what
our own TLS layer, limits and semantics cost.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from twisted.internet import reactor, ssl
from twisted.internet.protocol import Factory, Protocol

HEADER = struct.Struct(">BBHBBHIIQ")
FLAGS = bytes(4)


class MinimalKV(Protocol):
    """One connection."""

    values: dict[bytes, bytes] = {}

    def connectionMade(self) -> None:
        """Start with nothing read."""
        self.rest = b""

    def dataReceived(self, data: bytes) -> None:
        """Answer every complete request."""
        data = self.rest + data
        at, out = 0, []
        while len(data) - at >= HEADER.size:
            _, opcode, key, extras, _, _, body, opaque, _ = HEADER.unpack_from(data, at)
            end = at + HEADER.size + body
            if end > len(data):
                break
            name = data[at + HEADER.size + extras :][:key]
            if opcode == 1:
                self.values[name] = data[end - (body - extras - key) : end]
                out.append(HEADER.pack(0x81, opcode, 0, 0, 0, 0, 0, opaque, 1))
            else:
                value = self.values.get(name)
                if value is None:
                    out.append(HEADER.pack(0x81, opcode, 0, 0, 0, 1, 9, opaque, 0) + b"Not found")
                else:
                    size = 4 + len(value)
                    out.append(
                        HEADER.pack(0x81, opcode, 0, 4, 0, 0, size, opaque, 1) + FLAGS + value
                    )
            at = end
        self.rest = data[at:]
        if out:
            assert self.transport is not None
            self.transport.write(b"".join(out))


def main(port: str, chain: str, key: str) -> None:
    """Serve until ended."""
    pem = Path(key).read_bytes() + Path(chain).read_bytes()
    options = ssl.PrivateCertificate.loadPEM(pem).options()
    reactor.listenSSL(  # type: ignore[attr-defined]
        int(port), Factory.forProtocol(MinimalKV), options, backlog=1024, interface="127.0.0.1"
    )
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
