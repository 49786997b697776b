"""Count on while the server comes and goes: python ticker.py ENDPOINT [USER PASSWORD].

Ends with SIGINT or SIGTERM, which cancel what is under way and close the connection.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.endpoints import clientFromString
from twisted.internet.task import deferLater, react

from kvproto.client import Credentials, KVClient, Limits, SessionSettings, UnansweredError


async def tick(client: KVClient) -> int:
    """Count ten ticks in one go, and return the last number."""
    # All ten are on their way before the first answer is back.
    ticks = [client.increment(b"ticks", initial=1) for _ in range(10)]
    try:
        counted = await gatherResults(ticks, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
    return counted[-1].value


async def count(reactor: Any, client: KVClient) -> None:
    """Count for ever."""
    while True:
        try:
            print("ticks", await tick(client), flush=True)
        except UnansweredError as error:
            # Those that were not written have had no effect; of the others nobody knows.
            print("perhaps counted:" if error.written else "not counted:", error, flush=True)
        await deferLater(reactor, 0.05)


async def run(reactor: Any, endpoint: str, name: str = "", password: str = "") -> None:
    """Connect, work until cancelled, close."""
    # It connects when it is started, and again whenever the connection is lost; a request waits
    # for a connection until its own time is up.
    session = SessionSettings(Credentials(name, password) if name else None)
    limits = Limits(timeout_s=1.0)
    client = KVClient(clientFromString(reactor, endpoint), reactor, session, limits)
    client.startService()
    try:
        await count(reactor, client)
    except CancelledError:
        # Raised where the coroutine was waiting; a request that had not been sent is not sent.
        print("cancelled", flush=True)
    finally:
        await client.close()


def main(reactor: Any, endpoint: str, *login: str) -> Deferred[None]:
    running = Deferred.fromCoroutine(run(reactor, endpoint, *login))

    def stop() -> Deferred[None]:
        running.cancel()
        return running  # the reactor waits until the client is closed

    reactor.addSystemEventTrigger("before", "shutdown", stop)
    return running


if __name__ == "__main__":
    react(main, sys.argv[1:])
