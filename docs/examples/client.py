"""Count visitors with kvproto's client: python client.py ENDPOINT [USER PASSWORD]."""

import sys
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import clientFromString
from twisted.internet.task import react

from kvproto.client import (
    CasMismatchError,
    Credentials,
    KVClient,
    NotFoundError,
    SessionSettings,
)


async def rename(client: KVClient, key: bytes, name: bytes) -> None:
    """Change a document only if nobody else does so at the same time."""
    while True:
        found = await client.get(key)
        if found is None:
            raise SystemExit("the document is gone")
        try:
            await client.replace(key, name, cas=found.cas)
        except CasMismatchError:
            continue
        return


async def visit(client: KVClient) -> None:
    """Use the client; it connects by itself, and again when it has to."""
    await client.set(b"visitor:1", b"Ann", expiry=3600)
    await rename(client, b"visitor:1", b"Anna")

    # Deferreds that are not awaited one by one travel together.
    counted = await gatherResults([client.increment(b"visits", initial=1) for _ in range(100)])
    print(f"{counted[-1].value - counted[0].value + 1} visits")

    found = await client.get_many([b"visitor:1", b"visitor:2"])
    for key, visitor in found.items():
        print(f"{key.decode()} is {visitor.value.decode()}")

    await client.delete(b"visitor:1")
    try:
        await client.delete(b"visitor:1")
    except NotFoundError as error:
        print(error)


async def run(reactor: Any, endpoint: str, name: str = "", password: str = "") -> None:
    """Connect, work, close."""
    session = SessionSettings(Credentials(name, password) if name else None)
    client = KVClient(clientFromString(reactor, endpoint), reactor, session)
    client.startService()
    try:
        await visit(client)
    finally:
        await client.close()


def main(reactor: Any, endpoint: str, *login: str) -> "Deferred[None]":
    """Let `react` wait for it."""
    return Deferred.fromCoroutine(run(reactor, endpoint, *login))


if __name__ == "__main__":
    react(main, sys.argv[1:])
