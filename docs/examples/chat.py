"""A chat over TLS whose listener restarts under it, and which ends politely.

``chain.pem`` and ``key.pem`` are read again at SIGHUP, and the listener restarts: those who chat
stay connected.  At SIGTERM everybody is told, and what was said before arrives::

    python docs/examples/chat.py chain.pem key.pem tcp:4000:interface=127.0.0.1
    openssl s_client -quiet -connect 127.0.0.1:4000
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import react
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from kvproto.interfaces import IController, IDrainable, IVerifiedConnection
from kvproto.listeners import AcceptorService, Ledger, Limits, Timeouts, server_endpoint
from kvproto.tls import CredentialFiles, KVTLSFactory, Rotation, ServerPolicy


@implementer(IDrainable)
class Guest(LineOnlyReceiver):
    """Somebody in the room: the first line is a name, each one after it is said to all."""

    delimiter = b"\n"
    transport: Any

    def __init__(self, room: Room, connection: IVerifiedConnection) -> None:
        self.room = room
        self.connection = connection
        self.name = ""
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.sendLine(b"* who are you?")

    def lineReceived(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()
        if self.name:
            self.room.tell(f"{self.name}: {text}")
        elif text:
            self.name = text
            self.connection.authenticated(text)  # from now on it is shown by this name
            self.room.guests.append(self)
            self.room.tell(f"* {text} is here")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self in self.room.guests:
            self.room.guests.remove(self)
            self.room.tell(f"* {self.name} has left")
        self.gone.callback(None)

    def drain(self) -> Deferred[None]:
        """Say goodbye, after what was said before; called when the listener stops."""
        self.sendLine(b"* the room closes")
        self.transport.loseConnection()
        return self.gone


class Full(LineOnlyReceiver):
    """Says so."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.write(b"* the room is full\n")
        self.transport.loseConnection()


@implementer(IController)
class Room:
    """Everybody who chats, and who decides about newcomers."""

    def __init__(self) -> None:
        self.guests: list[Guest] = []

    def tell(self, text: str) -> None:
        for guest in self.guests:
            guest.sendLine(text.encode())

    def claim(self, connection: IVerifiedConnection) -> Guest:
        return Guest(self, connection)

    def too_late(self, connection: IVerifiedConnection) -> None:
        """Nothing was prepared for it."""

    def refuse(self, connection: IVerifiedConnection, reason: str) -> Full:
        return Full()


def main(
    reactor: Any, chain: str, key: str, description: str = "tcp:4000:interface=127.0.0.1"
) -> Deferred[None]:
    rotation = Rotation(CredentialFiles(Path(chain), Path(key)), ServerPolicy(), reactor)
    acceptor = AcceptorService(
        "chat",
        server_endpoint(reactor, description),
        Room(),
        Ledger(reactor, Limits(connections=100), Timeouts(drain=5.0)),
        reactor,
        wrap=lambda handoffs: KVTLSFactory(rotation.contexts, False, handoffs, reactor),
        required=True,
    )

    async def restart() -> None:
        verdict = await rotation.reload()
        print(verdict.reason or f"generation {verdict.generation}", flush=True)
        await acceptor.restart()
        print("restarted on", acceptor.address, flush=True)

    def on_hangup(*_: object) -> None:
        reactor.callFromThread(lambda: Deferred.fromCoroutine(restart()))

    async def start() -> None:
        acceptor.privilegedStartService()  # raises if the port is taken
        await acceptor.startService()
        print("listening on", acceptor.address, flush=True)
        await Deferred()  # until SIGINT or SIGTERM

    signal.signal(signal.SIGHUP, on_hangup)
    # The reactor waits for the Deferred of stopService: until everybody is gone, or drain is over.
    reactor.addSystemEventTrigger("before", "shutdown", acceptor.stopService)
    return Deferred.fromCoroutine(start())


if __name__ == "__main__":
    react(main, sys.argv[1:])
