"""A Python process in an Erlang or Elixir cluster, over TLS: it counts words.

Needs ``node.pem`` (chain and key), ``ca.pem`` (who signs the other nodes) and
``cookie`` in the current directory::

    python docs/examples/node_process.py kv@localhost 17001

From Elixir, ``GenServer.call({:words, :"kv@localhost"}, {:count, "to be or not to be"})``
answers ``%{"to" => 2, "be" => 2, "or" => 1, "not" => 1}``.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet import task, threads
from twisted.internet.defer import Deferred

from kvproto.config import ClientAuth
from kvproto.dist import (
    BuiltinProcess,
    Caller,
    CallRefused,
    GenServer,
    Node,
    NodeController,
    NodeEvent,
    NodeSettings,
    Term,
)
from kvproto.listeners import AcceptorService, Ledger, Limits, server_endpoint
from kvproto.tls import CredentialFiles, CurrentContext, KVTLSFactory, ServerPolicy
from kvproto.tls.generation import build_generation


class Words(GenServer):
    """Counts the words of a binary."""

    def handle_call(self, request: Term, caller: Caller) -> Any:
        match request:
            case ("count", bytes() as text):
                return dict(Counter(text.split()))
            case ("count_file", bytes() as path):
                # Slow work belongs in a thread; the caller gets the answer when it is there.
                return threads.deferToThread(count_file, Path(path.decode()))
        raise CallRefused("unknown request")


def count_file(path: Path) -> int:
    return len(path.read_bytes().split())


def contexts() -> CurrentContext:
    """Mutual TLS: without a certificate of our CA nobody gets as far as the cookie."""
    files = CredentialFiles(certificate=Path("node.pem"), client_ca=Path("ca.pem"))
    policy = ServerPolicy(client_auth=ClientAuth.REQUIRED)
    generation = build_generation(1, files, policy, time.time())
    assert generation is not None
    return CurrentContext(generation)


def announce(event: NodeEvent) -> None:
    print(event.name, "is up" if event.up else f"is down: {event.reason}", flush=True)


def main(reactor: Any, name: str = "kv@localhost", port: str = "17001") -> Deferred[None]:
    cookie = Path("cookie").read_bytes().strip()
    node = Node(NodeSettings(name=name, cookie=cookie), reactor)
    node.register("words", Words())
    node.register("kvtls", BuiltinProcess(reactor))
    node.watch(announce)
    tls = contexts()
    acceptor = AcceptorService(
        "node",
        server_endpoint(reactor, f"tcp:{port}:interface=127.0.0.1"),
        NodeController(node),
        Ledger(reactor, Limits(unauthenticated=32)),
        reactor,
        wrap=lambda handoffs: KVTLSFactory(tls, False, handoffs, reactor),
        required=True,
        drain_timeout=1.0,
    )
    acceptor.startService().addCallback(lambda _: print("listening", flush=True))
    reactor.addSystemEventTrigger("before", "shutdown", acceptor.stopService)
    return Deferred()  # until SIGTERM


if __name__ == "__main__":
    task.react(main, sys.argv[1:])
