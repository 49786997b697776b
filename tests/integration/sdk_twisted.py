"""An application of the SDK's Twisted front end; its arguments are port and CA.

A program of its own, because that front end insists on the asyncio reactor.
"""

from __future__ import annotations

import sys

import txcouchbase  # noqa: F401 - installs the reactor, so before anything else of Twisted
from couchbase.auth import PasswordAuthenticator
from couchbase.exceptions import DocumentNotFoundException
from couchbase.options import ClusterOptions
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure
from txcouchbase.cluster import TxCluster

BATCH = 200


async def work(port: str, ca: str) -> None:
    """Do a bit of everything; an exception ends the program with status 1."""
    authenticator = PasswordAuthenticator("alice", "secret", cert_path=ca)
    cluster = TxCluster(f"couchbases://127.0.0.1:{port}", ClusterOptions(authenticator))
    await cluster.on_connect()
    bucket = cluster.bucket("default")
    await bucket.on_connect()
    documents = bucket.default_collection()
    await documents.upsert("k", {"a": 1})
    found = await documents.get("k")
    assert found.content_as[dict] == {"a": 1}
    await gatherResults([documents.upsert(f"k{number}", number) for number in range(BATCH)])
    results = await gatherResults([documents.get(f"k{number}") for number in range(BATCH)])
    assert [result.content_as[int] for result in results] == list(range(BATCH))
    counter = await documents.binary().increment("n")
    assert counter.content == 0, counter
    await documents.remove("k")
    try:
        await documents.get("k")
    except DocumentNotFoundException:
        pass
    else:
        raise AssertionError("the document is still there")
    await cluster.close()
    print("done")


def main() -> None:
    """Run `work` once the reactor does, which the front end needs."""
    failures: list[Failure] = []

    def begin() -> None:
        done = Deferred.fromCoroutine(work(sys.argv[1], sys.argv[2]))
        done.addErrback(failures.append)
        done.addBoth(lambda _: reactor.stop())

    reactor.callLater(0, begin)
    reactor.run()
    if failures:
        sys.exit(failures[0].getTraceback())


if __name__ == "__main__":
    main()
