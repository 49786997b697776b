"""The stores of all buckets in a Valkey or Redis server, or a cluster."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from kvproto.config import Config, Mode, StoreURL
from kvproto.dataplane.interfaces import IStores, Run
from kvproto.store import IStore
from kvproto.upstream import EngineStore, make_engine, parse_options
from kvproto.upstream.server import Server

__all__ = ["EngineStores"]


@implementer(IStores)
class EngineStores(Service):
    """Buckets in an engine; the arguments are those of `kvproto.dataplane.interfaces.Factory`."""

    name = "stores"

    def __init__(self, url: StoreURL, config: Config, reactor: Any, run: Run | None) -> None:
        self.description = url.text
        self.engine = make_engine(parse_options(url.text), reactor, config.watch_interval)
        self.engine.on_change = self._load
        self._stores = {
            name: EngineStore(
                self.engine,
                name,
                reactor.seconds,
                locks=config.mode is not Mode.MEMCACHED,
                max_value=config.value_limit,
                max_item=config.item_limit,
            )
            for name in config.buckets
        }

    def startService(self) -> None:
        """Connect."""
        super().startService()
        self.engine.start()

    def stopService(self) -> Deferred[None]:
        """Close the connections: whatever was acknowledged is in the engine."""
        super().stopService()
        for store in self._stores.values():
            store.stop()
        self.engine.stop()
        return succeed(None)

    def _load(self) -> None:
        """Find out about epochs before anybody asks."""
        if not self.engine.unready:
            for store in self._stores.values():
                store.load()

    def store(self, bucket: str) -> IStore:
        """Return the store of a bucket; see `IStores.store`."""
        store: IStore = self._stores[bucket]
        return store

    def change(self, config: Config) -> None:
        """Take over the limits of values; see `IStores.change`."""
        for store in self._stores.values():
            store.limit_values(config.value_limit, config.item_limit)

    def prepare(self) -> None:
        """Do nothing: what files say was read when this was made."""

    def opened(self) -> Deferred[None]:
        """Return a Deferred that has fired: clients hear from each request how the engine is."""
        return succeed(None)

    def ready(self) -> str | None:
        """Return why clients cannot be served now; None when they can."""
        reasons = (store.ready() for store in self._stores.values())
        return next((reason for reason in reasons if reason), None)

    def servers(self) -> list[Server]:
        """Return the servers that are known, for metrics."""
        return self.engine.servers

    def status(self) -> dict[str, object]:
        """Return what ``kvtls status`` says of it."""
        reason = self.ready() or ""
        servers = [
            {
                "server": server.name,
                "up": server.up,
                "reason": server.text,
                "errors": dict(server.errors),
            }
            for server in self.engine.servers
        ]
        return {
            "url": self.description,
            "ready": not reason,
            "reason": reason,
            "servers": servers,
        }
