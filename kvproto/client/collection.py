"""The documents of one named collection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kvproto.client.errors import RequestTimeoutError, UnknownCollectionError
from kvproto.client.exchange import Exchange
from kvproto.client.operations import Operations
from kvproto.wire.collections import split_collection_id_extras
from kvproto.wire.constants import Feature, Opcode
from kvproto.wire.frames import Response

__all__ = ["Collection"]

T = TypeVar("T")


class Collection(Operations):
    """The operations of `Operations`, on one collection's documents.

    Made by `kvproto.client.KVClient.collection`.

    Args:
        ask: Asks, on the connection of now.
        ids: The ids that are known on it.
        clock: For deadlines.
        timeout_s: Seconds that a request may take, asking for the id included.
        scope: The scope's name.
        name: The collection's name.
    """

    def __init__(
        self,
        ask: Callable[[Exchange[Any], float | None], Deferred[Any]],
        ids: dict[bytes, int],
        clock: IReactorTime,
        timeout_s: float,
        scope: str,
        name: str,
    ) -> None:
        self._path = f"{scope}.{name}".encode()
        self._ask_client = ask
        self._ids = ids
        self._clock = clock
        self._timeout_s = timeout_s

    def _ask(self, exchange: Exchange[T], timeout_s: float | None) -> Deferred[T]:
        limit = self._timeout_s if timeout_s is None else timeout_s
        return Deferred.fromCoroutine(self._find_and_ask(exchange, limit))

    async def _find_and_ask(self, exchange: Exchange[T], timeout_s: float) -> T:
        deadline = self._clock.seconds() + timeout_s
        number = self._ids.get(self._path)
        if number is None:
            lookup = Exchange(
                Opcode.GET_COLLECTION_ID,
                _collection_id,
                value=self._path,
                needs=(Feature.COLLECTIONS,),
            )
            number = self._ids[self._path] = await self._ask_client(lookup, timeout_s)
        left = deadline - self._clock.seconds()
        if left <= 0:
            raise RequestTimeoutError("asking for the collection's id took all the time", False)
        exchange.collection = number
        try:
            result: T = await self._ask_client(exchange, left)
        except UnknownCollectionError:
            # It may have been made anew, under another id.
            self._ids.pop(self._path, None)
            raise
        return result


def _collection_id(reply: Response) -> int:
    return split_collection_id_extras(reply.extras)[1]
