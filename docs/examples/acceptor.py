"""A Twisted program with kvproto's acceptor, handoff and ledger, and a controller of its own.

Run it, talk to it with ``nc 127.0.0.1 4000``, restart its listener with SIGHUP while you
are connected, stop it with SIGTERM::

    python docs/examples/acceptor.py tcp:4000:interface=127.0.0.1
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.interfaces import IController, IDrainable, IVerifiedConnection
from kvproto.listeners import AcceptorService, Ledger, Limits, Timeouts, server_endpoint


@implementer(IDrainable)
class Shout(LineOnlyReceiver):
    """Answers each line in capitals."""

    delimiter = b"\n"
    transport: Any

    def __init__(self, connection: IVerifiedConnection) -> None:
        self.connection = connection
        self.gone: Deferred[None] = Deferred()

    def lineReceived(self, line: bytes) -> None:
        self.connection.authenticated("")  # a peer that asked something is a client
        self.transport.write(line.upper() + b"\n")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.gone.callback(None)

    def drain(self) -> Deferred[None]:
        """Close after the answers that have been written: each line is answered at once."""
        self.transport.loseConnection()
        return self.gone


class Busy(LineOnlyReceiver):
    """Says so, in the words of this protocol."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.write(b"BUSY, come back later\n")
        self.transport.loseConnection()


@implementer(IController)
class ShoutController:
    """Decides who serves a connection; here it takes a moment to think."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor

    def claim(self, connection: IVerifiedConnection) -> Deferred[Shout]:
        # A Deferred that can be cancelled: if the peer leaves, the listener stops or the
        # time is up before the answer, its canceller runs and nothing is left behind.
        return task.deferLater(self.reactor, 0.01, Shout, connection)

    def too_late(self, connection: IVerifiedConnection) -> None:
        print(f"connection {connection.id} is gone, nobody will use what was prepared")

    def refuse(self, connection: IVerifiedConnection, reason: str) -> Busy:
        return Busy()


def main(reactor: Any, description: str = "tcp:4000:interface=127.0.0.1") -> Deferred[None]:
    ledger = Ledger(reactor, Limits(connections=100, unauthenticated=32), Timeouts(drain=5.0))
    acceptor = AcceptorService(
        "shout",
        server_endpoint(reactor, description),
        ShoutController(reactor),
        ledger,
        reactor,
        required=True,
        # For TLS, with any object that Twisted's own TLS takes for its contexts:
        # wrap=lambda handoffs: KVTLSFactory(contexts, False, handoffs, reactor),
    )

    def on_hangup(*_: object) -> None:
        reactor.callFromThread(restart)

    def restart() -> None:
        acceptor.restart().addCallback(report("restarted"))

    def report(word: str) -> Callable[[object], None]:
        return lambda _: print(word, acceptor.address, flush=True)

    acceptor.privilegedStartService()  # raises if the port is taken
    acceptor.startService().addCallback(report("listening on"))
    signal.signal(signal.SIGHUP, on_hangup)
    reactor.addSystemEventTrigger("before", "shutdown", acceptor.stopService)
    return Deferred()  # until SIGTERM


if __name__ == "__main__":
    task.react(main, sys.argv[1:])
