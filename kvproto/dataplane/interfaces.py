"""What the rest of the service sees of where values live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from zope.interface import Attribute

from kvproto.config import Config, StoreURL
from kvproto.store import IStore

__all__ = ["Factory", "IGrowingStores", "IStores", "Run"]

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

    def change(config: Config) -> None:
        """Take over what is another value in this configuration and needs no restart."""

    def ready() -> str | None:
        """Return why clients cannot be served now; None when they can."""

    def status() -> dict[str, object]:
        """Return what ``kvtls status`` says of it, in values that JSON can say."""


class IKeepingStores(IStores):
    """Stores whose documents outlive the process, so that ids of collections must as well."""

    def check() -> None:
        """See whether they could be used, changing nothing.

        Raises:
            ConfigError: They could not.
        """

    def keep_collections(bucket: str, adopt: Callable[[dict[str, int]], dict[str, int]]) -> None:
        """Let the collections of a bucket have the ids that they had before.

        Args:
            bucket: Which.
            adopt: Called before the store is open to clients with the ids that are known, by
                ``SCOPE.NAME`` and, for scopes, ``SCOPE``; returns all that are to be kept.
        """


class IGrowingStores(IStores):
    """Stores that can have more buckets, and fewer, while they serve.

    Their stores have methods ``limit_memory``, ``limit_ttl`` and ``release`` as
    `kvproto.store.MemoryStore` has them.
    """

    def add(bucket: str, memory_limit: int) -> Deferred[None]:
        """Make a store for one more bucket.

        Args:
            bucket: Its name.
            memory_limit: Bytes that it may hold.

        Returns:
            A Deferred that fires when it is there: loaded, if there was one of this name before.
        """

    def remove(bucket: str) -> Deferred[None]:
        """Remove a bucket's store and everything in it; the Deferred fires when it is gone.

        Its memory is the caller's to give back, by ``release``.
        """

    def kept() -> dict[str, Any]:
        """Return what `keep` was last told, before the process began; else ``{}``."""

    def keep(describe: Callable[[], dict[str, Any]]) -> Deferred[None]:
        """Keep, where documents are kept, which buckets there are beside those of the options.

        Args:
            describe: Returns what is to be kept, as JSON can say it; may be called in a thread.

        Returns:
            A Deferred that fires when it is as safe as documents are; it fails with OSError.
        """


Factory: TypeAlias = "Callable[[StoreURL, Config, Any, Run | None], IStores]"
"""Makes the stores for a URL.

Its arguments: the URL; what the operator decided; the reactor, whose seconds are Unix time; where
functions that block are run, None for at once.  It raises `ConfigError` when the URL cannot be
used, and opens nothing.
"""
