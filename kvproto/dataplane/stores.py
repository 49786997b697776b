"""The stores of all buckets, as ``--store`` says.

Each kind of store is a provider of `IStores`, made by the factory that `_FACTORIES` has for the
URL's scheme.  A new kind adds one line there; the rest of the service knows only `IStores`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from zope.interface import classImplements, implementer

from kvproto.config import Config, Mode, StoreURL, check_memory_url
from kvproto.dataplane.engines import EngineStores
from kvproto.dataplane.file_stores import FileStores
from kvproto.dataplane.fleet import FleetStores
from kvproto.dataplane.interfaces import Factory, IGrowingStores, IStores, Run
from kvproto.errors import ConfigError
from kvproto.store import IStore, MemoryStore
from kvproto.upstream import SCHEMES
from kvproto.upstream.fleet_options import is_fleet, parse_fleet

__all__ = ["IStores", "Run", "make_stores", "same_but_for_servers"]


@implementer(IGrowingStores)
class MemoryStores(Service):
    """Stores in this process's memory, gone when it ends."""

    name = "stores"

    def __init__(self, url: StoreURL, config: Config, reactor: Any, run: Run | None) -> None:
        check_memory_url(url)
        self.description = url.text
        self._reactor = reactor
        self._make = partial(memory_store, config, reactor)
        self._stores = {name: self._make() for name in config.buckets}

    def change(self, config: Config) -> None:
        """Take over limits of values, and what a full store does; see `IStores.change`."""
        self._make = partial(memory_store, config, self._reactor)
        for store in self._stores.values():
            store.limit_values(config.value_limit, config.item_limit, evict=config.evict)

    def add(self, bucket: str, memory_limit: int) -> Deferred[None]:
        """Make one more store; see `IGrowingStores`."""
        self._stores[bucket] = self._make(memory_limit)
        return succeed(None)

    def remove(self, bucket: str) -> Deferred[None]:
        """Forget a store; see `IGrowingStores`."""
        del self._stores[bucket]
        return succeed(None)

    def kept(self) -> dict[str, Any]:
        """Return nothing: memory begins anew."""
        return {}

    def keep(self, describe: Callable[[], dict[str, Any]]) -> Deferred[None]:
        """Keep nothing: it would be gone with the documents."""
        return succeed(None)

    def store(self, bucket: str) -> IStore:
        """Return the store of a bucket; see `IStores.store`."""
        store: IStore = self._stores[bucket]
        return store

    def prepare(self) -> None:
        """Do nothing: memory is there."""

    def opened(self) -> Deferred[None]:
        """Return a Deferred that has fired."""
        return succeed(None)

    def ready(self) -> str | None:
        """Return None: memory is always ready."""
        return None

    def status(self) -> dict[str, object]:
        """Return what ``kvtls status`` says of it."""
        return {"url": self.description, "ready": True, "reason": ""}


def memory_store(config: Config, reactor: Any, memory_limit: int | None = None) -> MemoryStore:
    """Make one bucket's store in memory, with the limits of the configuration, or another one."""
    return MemoryStore(
        reactor.seconds,
        memory_limit=config.bucket_memory_limit if memory_limit is None else memory_limit,
        evict=config.evict,
        max_item=config.item_limit,
        max_value=config.value_limit,
        count_cas=config.mode is Mode.MEMCACHED,
        later=partial(reactor.callLater, 0),
    )


def _file_stores(url: StoreURL, config: Config, reactor: Any, run: Run | None) -> FileStores:
    return FileStores(url, config, reactor, run, memory_store)


classImplements(FleetStores, IStores)

_FACTORIES: dict[str, Factory] = {
    "memory": MemoryStores,
    "file": _file_stores,
    "memcached": FleetStores,
    "memcached+unix": FleetStores,
    "memcacheds": FleetStores,
    **dict.fromkeys(sorted(SCHEMES), EngineStores),
}
"""By the scheme of the URL."""


def same_but_for_servers(old: StoreURL, new: StoreURL) -> bool:
    """Return whether two URLs are of one fleet that has other servers.

    Raises:
        ConfigError: One cannot be used.
    """
    if not is_fleet(old.text) or not is_fleet(new.text):
        return False
    before, after = parse_fleet(old.text), parse_fleet(new.text)
    return bool(after.servers) and before == replace(after, servers=before.servers)


def make_stores(config: Config, reactor: Any, run: Run | None = None) -> IStores:
    """Make the stores that the configuration asks for; nothing is opened yet.

    Args:
        config: What the operator decided.
        reactor: For timers and connections; its seconds are Unix time.
        run: Where functions that block are run; at once when None.

    Raises:
        ConfigError: The URL cannot be used.
    """
    url = config.store_url
    factory = _FACTORIES.get(url.scheme)
    if factory is None:
        near = difflib.get_close_matches(url.scheme, _FACTORIES, 1)
        meant = f"; did you mean {near[0]}:?" if near else ""
        known = ", ".join(f"{scheme}:" for scheme in _FACTORIES)
        raise ConfigError("--store", f"{url.scheme}: is no kind of store, there are {known}{meant}")
    return factory(url, config, reactor, run)
