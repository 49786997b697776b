"""Buckets, and the scopes and collections in each.

A bucket is a name for a store; a collection is a number in front of a key.  The default collection
(id 0) is what clients use that know nothing of collections, so its keys have no number.

Source: Couchbase kv_engine ``docs/Collections.md``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from kvproto.errors import ConfigError, RemoteProtocolError
from kvproto.server.plain_state import PlainState
from kvproto.server.requests import RequestCounts
from kvproto.store import IGroupingStore, IImmediateStore, IStore, Key
from kvproto.wire.collections import DEFAULT, split_key, split_path
from kvproto.wire.constants import Status

__all__ = ["Bucket", "CollectionSettings", "Manifest"]

_FIRST_ID = 8
"""Ids below are Couchbase's own: never in a manifest, and no client may name one in a key."""

_DEFAULT_ID = 0

MAX_NAMED_KEY = 246
"""Longest key in a named collection, in bytes, its id not counted (kv_engine
``MaxCollectionsLogicalKeyLen``)."""


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """What a collection has beside its documents.

    Attributes:
        max_ttl: Seconds after which its documents expire at the latest; 0: the bucket decides;
            -1: they need not.
        history: Whether a history of its documents was asked for; none is kept.
    """

    max_ttl: int = 0
    history: bool = False


_PLAIN = CollectionSettings()


class Manifest:
    """Which scopes and collections a bucket has.

    Ids follow from the order in which the collections are given, so a server that is started again
    with more of them at the end keeps the ids that clients know.

    Args:
        collections: ``(scope, collection)`` names, those of the defaults excluded.

    Attributes:
        uid: Its version.
        ids: The ids of all collections.

    Raises:
        ConfigError: A name cannot be one, or is there twice.
    """

    __slots__ = ("_collections", "_known", "_scopes", "_settings", "ids", "uid")

    def __init__(self, collections: Iterable[tuple[str, str]] = ()) -> None:
        self.uid = 1
        self._known: dict[str, int] = {}
        self._scopes: dict[str, int] = {DEFAULT: _DEFAULT_ID}
        self._collections: dict[tuple[str, str], int] = {(DEFAULT, DEFAULT): _DEFAULT_ID}
        self._settings: dict[tuple[str, str], CollectionSettings] = {}
        for scope, name in collections:
            self._add(scope, name)
        self.adopt({})

    def _add(self, scope: str, name: str) -> None:
        path = f"{scope}.{name}"
        try:
            found = split_path(path.encode())
        except RemoteProtocolError:
            found = ("", "")
        if found != (scope, name) or name == DEFAULT:
            raise ConfigError("--collection", f"{path!r} cannot be the name of a collection")
        if (scope, name) in self._collections:
            raise ConfigError("--collection", f"{path!r} is given twice")
        self._scopes.setdefault(scope, _DEFAULT_ID)
        self._collections[scope, name] = _DEFAULT_ID

    def adopt(self, ids: Mapping[str, int]) -> dict[str, int]:
        """Take the ids that scopes and collections had before.

        What is new gets an id that nothing has ever had, so that no document of another
        collection is found in it.

        Args:
            ids: Of collections by ``SCOPE.NAME`` and of scopes by ``SCOPE``.

        Returns:
            All ids, those included of what is not there now, for the next time.
        """
        known = dict(ids)
        free = count(_free_id(known, scopes=True))
        for scope in self._scopes:
            if scope != DEFAULT:
                self._scopes[scope] = known[scope] if scope in known else next(free)
                known[scope] = self._scopes[scope]
        free = count(_free_id(known, scopes=False))
        for scope, name in self._collections:
            if (scope, name) != (DEFAULT, DEFAULT):
                path = f"{scope}.{name}"
                number = known[path] if path in known else next(free)
                self._collections[scope, name] = known[path] = number
        self.ids = frozenset(self._collections.values())
        self._known = known
        return dict(known)

    @property
    def known_ids(self) -> dict[str, int]:
        """All ids that there have ever been, as `adopt` takes them."""
        return dict(self._known)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The names of all scopes."""
        return tuple(self._scopes)

    @property
    def collections(self) -> tuple[tuple[str, str], ...]:
        """Scope and name of each collection, `kvproto.wire.collections.DEFAULT` included."""
        return tuple(self._collections)

    def create_scope(self, scope: str, *, fresh: bool = True) -> None:
        """Add a scope that is not there.

        Args:
            scope: Its name, one that `is_name` allows.
            fresh: Whether it is another one than what had this name before.
        """
        if fresh or scope not in self._known:
            self._known[scope] = _free_id(self._known, scopes=True)
        self._scopes[scope] = self._known[scope]
        self.uid += 1

    def create_collection(
        self,
        scope: str,
        name: str,
        settings: CollectionSettings = _PLAIN,
        *,
        fresh: bool = True,
    ) -> None:
        """Add a collection that is not there to a scope that is.

        Args:
            scope: Name of the scope.
            name: Its own, one that `is_name` allows.
            settings: What it has beside its documents.
            fresh: Whether it is another one than what had this name before, and so empty.
        """
        self._settings[scope, name] = settings
        path = f"{scope}.{name}"
        if fresh or path not in self._known:
            self._known[path] = _free_id(self._known, scopes=False)
        self._collections[scope, name] = self._known[path]
        self._changed()

    def settings(self, scope: str, name: str) -> CollectionSettings:
        """Return the settings of a collection."""
        return self._settings.get((scope, name), _PLAIN)

    def change_collection(self, scope: str, name: str, settings: CollectionSettings) -> None:
        """Let a collection that is there have these settings."""
        self._settings[scope, name] = settings
        self._changed()

    def all_settings(self) -> dict[str, dict[str, Any]]:
        """Return the settings of collections that have any, by ``SCOPE.NAME``, as JSON says it."""
        return {
            f"{scope}.{name}": asdict(settings)
            for (scope, name), settings in self._settings.items()
            if settings != _PLAIN
        }

    def max_ttls(self) -> dict[int, int]:
        """Return the ``max_ttl`` of collections that have their own, by id; 0 for none at all."""
        return {
            self._collections[path]: max(0, settings.max_ttl)
            for path, settings in self._settings.items()
            if settings.max_ttl
        }

    def drop_collection(self, scope: str, name: str) -> int:
        """Take out a collection, and return the id that it had."""
        number = self._collections.pop((scope, name))
        self._settings.pop((scope, name), None)
        self._changed()
        return number

    def drop_scope(self, scope: str) -> list[int]:
        """Take out a scope with its collections, and return the ids that these had."""
        del self._scopes[scope]
        mine = [path for path in self._collections if path[0] == scope]
        numbers = [self._collections.pop(path) for path in mine]
        for path in mine:
            self._settings.pop(path, None)
        self._changed()
        return numbers

    def _changed(self) -> None:
        self.ids = frozenset(self._collections.values())
        self.uid += 1

    def collection_ids(self) -> dict[str, int]:
        """Return the ids of all collections but the default one, by ``SCOPE.NAME``."""
        return {
            f"{scope}.{name}": number
            for (scope, name), number in self._collections.items()
            if number != _DEFAULT_ID
        }

    def scope_id(self, scope: str) -> int:
        """Return the id of a scope.

        Raises:
            RemoteProtocolError: There is none of that name (status 0x8c).
        """
        if scope not in self._scopes:
            raise RemoteProtocolError("no such scope", Status.UNKNOWN_SCOPE)
        return self._scopes[scope]

    def collection_id(self, scope: str, name: str) -> int:
        """Return the id of a collection.

        Raises:
            RemoteProtocolError: There is no such scope (status 0x8c) or collection (0x88).
        """
        self.scope_id(scope)
        if (scope, name) not in self._collections:
            raise RemoteProtocolError("no such collection", Status.UNKNOWN_COLLECTION)
        return self._collections[scope, name]

    def to_json(self) -> bytes:
        """Return it as clients get it over KV: only settings that are set."""
        return json.dumps(self._describe(_set_only)).encode()

    def describe(self) -> dict[str, Any]:
        """Return it as the REST shows it, in values that JSON can say."""
        return self._describe(_all_settings)

    def _describe(self, shown: Callable[[CollectionSettings], dict[str, Any]]) -> dict[str, Any]:
        # One pass over each: there may be a thousand of both.
        found: dict[str, list[dict[str, Any]]] = {scope: [] for scope in self._scopes}
        for (scope, name), collection in self._collections.items():
            settings = self._settings.get((scope, name), _PLAIN)
            found[scope].append({"name": name, "uid": f"{collection:x}", **shown(settings)})
        scopes = [
            {"name": scope, "uid": f"{number:x}", "collections": found[scope]}
            for scope, number in self._scopes.items()
        ]
        return {"uid": f"{self.uid:x}", "scopes": scopes}


def _all_settings(settings: CollectionSettings) -> dict[str, Any]:
    return {"maxTTL": settings.max_ttl, "history": settings.history}


def _set_only(settings: CollectionSettings) -> dict[str, Any]:
    # To KV -1 is "none at all", which a limit of 0 seconds says there.
    shown: dict[str, Any] = {"maxTTL": max(0, settings.max_ttl)} if settings.max_ttl else {}
    return shown | ({"history": True} if settings.history else {})


def _free_id(ids: Mapping[str, int], *, scopes: bool) -> int:
    """Return the lowest id above all that scopes, or collections, have had."""
    taken = [number for name, number in ids.items() if ("." not in name) is scopes]
    return max([_FIRST_ID - 1, *taken]) + 1


class Bucket:
    """A name for a store, and what is in it.

    Args:
        name: As clients select it.
        store: Where its documents are.
        manifest: Its scopes and collections; only the defaults when None.

    Attributes:
        get: The store's ``get``, one object for all sessions.
        plain_get: The same of a store that answers at once, None where it does not promise that.
        plain_read: The ``read_plainly`` of such a store.
        plain_set: The ``set_plainly`` of such a store.
        requests: What was asked for.
        groups: Whether the store is better asked for several things as a group, see
            `kvproto.store.IGroupingStore`.
        history: Whether clients may ask for histories of collections.
    """

    __slots__ = (
        "_divide",
        "_plain_states",
        "get",
        "groups",
        "history",
        "manifest",
        "name",
        "plain_get",
        "plain_read",
        "plain_set",
        "requests",
        "store",
    )

    def __init__(self, name: str, store: Any, manifest: Manifest | None = None) -> None:
        self.name = name
        self.store: IStore = store
        self.get = self.store.get
        # Of its class: wrappers hand on whatever they are asked for.
        self._divide = getattr(type(store), "for_connection", None)
        self.requests = RequestCounts(store)
        self.groups: bool = IGroupingStore.implementedBy(type(store)) and store.groups
        self.history = False
        immediate = IImmediateStore.implementedBy(type(store))
        self.plain_get = self.get if immediate else None
        self.plain_read = store.read_plainly if immediate else None
        self.plain_set = store.set_plainly if immediate else None
        self.manifest = Manifest() if manifest is None else manifest
        self._plain_states: dict[PlainState, PlainState] = {}

    def plain_state(self, agreed: PlainState) -> PlainState:
        """Return what a scan needs to know here of connections that have agreed on the same.

        Args:
            agreed: What they have agreed on, without a store.
        """
        if self.plain_get is None:
            return agreed
        state = self._plain_states.get(agreed)
        if state is None:
            state = agreed._replace(get=self.plain_get, set=self.plain_set, store=self.store)
            self._plain_states[agreed] = state
        return state

    def store_for_connection(self) -> IStore:
        """Return the store as one client's connection uses it.

        It is the same for all, unless the store is an `kvproto.store.IConnectionStore`.
        """
        if self._divide is None:
            return self.store
        store: IStore = self._divide(self.store)
        return store

    def key(self, wire_key: bytes) -> Key:
        """Return the store's key for a key that begins with a collection's id.

        Raises:
            RemoteProtocolError: It is malformed, longer than `MAX_NAMED_KEY` in a named collection,
                or in a reserved one (status 0x04); or there is no such collection (0x88).
        """
        collection, key = split_key(wire_key)
        if not collection:
            return key
        if collection < _FIRST_ID or len(key) > MAX_NAMED_KEY:
            raise RemoteProtocolError("a reserved collection, or a key too long", Status.INVALID)
        if collection not in self.manifest.ids:
            raise RemoteProtocolError(
                f"no collection has the id {collection}", Status.UNKNOWN_COLLECTION
            )
        return collection, key
