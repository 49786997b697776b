"""The key-value side of the service, as `kvproto.nodes` is its node-to-node side.

Builds what all sessions share out of the configuration, renews its users while it runs, and lets
buckets, collections and users be created.
"""

from __future__ import annotations

from kvproto.dataplane.administration import Administration, BucketSettings
from kvproto.dataplane.backup import Backups
from kvproto.dataplane.compose import identifier, make_server, make_users, server_settings
from kvproto.dataplane.created_users import CreatedGroup, CreatedUser, Given
from kvproto.dataplane.interfaces import IKeepingStores
from kvproto.dataplane.keyspaces import need_collection, need_scope
from kvproto.dataplane.peers import PeerWatch
from kvproto.dataplane.seed import Seeds
from kvproto.dataplane.stores import IStores, make_stores, same_but_for_servers
from kvproto.dataplane.users_reload import UsersReload

__all__ = [
    "Administration",
    "Backups",
    "BucketSettings",
    "CreatedGroup",
    "CreatedUser",
    "Given",
    "IKeepingStores",
    "IStores",
    "PeerWatch",
    "Seeds",
    "UsersReload",
    "identifier",
    "make_server",
    "make_stores",
    "make_users",
    "need_collection",
    "need_scope",
    "same_but_for_servers",
    "server_settings",
]
