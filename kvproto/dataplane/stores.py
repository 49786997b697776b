"""The stores of all buckets, as ``--store`` says.

Each kind of store is a provider of `IStores`, made by the factory that `_FACTORIES` has for the
URL's scheme.  A new kind adds one line there; the rest of the service knows only `IStores`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, succeed
from zope.interface import Attribute, classImplements, implementer

from kvproto.config import Config, Mode, StoreURL, check_memory_url
from kvproto.dataplane.fleet import FleetStores
from kvproto.errors import ConfigError
from kvproto.store import IStore, MemoryStore

__all__ = ["IStores", "Run", "make_stores"]

Run = Callable[..., Any]
"""Calls a function with arguments, e.g. in a thread; returns a Deferred of its result."""


class IStores(IService):
    """Where the values of all buckets live.

    A service: it takes what it needs (locks, connections) when it starts, and its ``stopService``
    returns a Deferred that fires when everything that was acknowledged is where it should be.
    """

    description = Attribute("str: what the operator asked for, without secrets, e.g. its URL.")

    def store(bucket: str) -> IStore:
        """Return the store of a bucket, the same one each time; before the start too."""

    def prepare() -> None:
        """Take what has to be had before the process becomes a daemon.

        Raises:
            ConfigError: It cannot be had, e.g. another process uses the directory.
        """

    def opened() -> Deferred[None]:
        """Return a Deferred that fires when requests may come.

        For a store that has to load its documents first that is when it has.  One that needs a
        server does not wait for it: until then its requests are refused and `ready` says why.
        It fails when no request will ever be served, with the reason.
        """

    def ready() -> str | None:
        """Say why clients cannot be served now; None when they can."""

    def status() -> dict[str, object]:
        """Return what ``kvtls status`` says of it, in values that JSON can say."""


Factory: TypeAlias = "Callable[[StoreURL, Config, Any, Run | None], IStores]"
"""Makes the stores for a URL.

Its arguments: the URL; what the operator decided; the reactor, whose seconds are Unix time; where
functions that block are run, None for at once.  It raises `ConfigError` when the URL cannot be
used, and opens nothing.
"""


@implementer(IStores)
class MemoryStores(Service):
    """Stores in this process's memory, gone when it ends."""

    name = "stores"

    def __init__(self, url: StoreURL, config: Config, reactor: Any, run: Run | None) -> None:
        check_memory_url(url)
        self.description = url.text
        self._stores = {name: memory_store(config, reactor) for name in config.buckets}

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


def memory_store(config: Config, reactor: Any) -> MemoryStore:
    """Make one bucket's store in memory, with the limits of the configuration."""
    return MemoryStore(
        reactor.seconds,
        memory_limit=config.bucket_memory_limit,
        evict=config.evict,
        # memcached's limit is on the item, key included; Couchbase's on the value.
        max_item=config.value_limit if config.mode is Mode.MEMCACHED else None,
        max_value=config.value_limit,
        later=partial(reactor.callLater, 0),
    )


classImplements(FleetStores, IStores)

_FACTORIES: dict[str, Factory] = {
    "memory": MemoryStores,
    "memcached": FleetStores,
    "memcached+unix": FleetStores,
    "memcacheds": FleetStores,
}
"""By the scheme of the URL."""


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
