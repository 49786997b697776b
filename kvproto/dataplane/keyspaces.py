"""Checks of scopes and collections: whether they are there, and what can be called so.

What fails is told in the words of Couchbase's cluster manager, which SDKs look into.
"""

from __future__ import annotations

from kvproto.errors import CommandError
from kvproto.server import Manifest
from kvproto.wire.collections import is_name

__all__ = ["need_collection", "need_name", "need_scope"]

LONGEST_NAME = 251
"""Characters of the name of a scope or a collection; Couchbase's."""


def need_name(name: str) -> None:
    """See that a scope or a collection can be called so.

    Raises:
        CommandError: It cannot (``bad-name``).
    """
    if not name or len(name) > LONGEST_NAME:
        raise CommandError("bad-name", f"Length must be in range from 1 to {LONGEST_NAME}")
    if name[0] in "_%":
        raise CommandError("bad-name", "First character must not be _ or %")
    if not is_name(name):
        raise CommandError(
            "bad-name",
            "Can only contain characters A-Z, a-z, 0-9 and the following symbols _ - %",
        )


def need_scope(manifest: Manifest, scope: str) -> None:
    """See that a scope is there.

    Raises:
        CommandError: It is not (``unknown-scope``).
    """
    if scope not in manifest.scopes:
        raise CommandError("unknown-scope", f'Scope with name "{scope}" is not found')


def need_collection(manifest: Manifest, scope: str, name: str) -> None:
    """See that a collection is there.

    Raises:
        CommandError: It is not (``unknown-scope``, ``unknown-collection``).
    """
    need_scope(manifest, scope)
    if (scope, name) not in manifest.collections:
        raise CommandError(
            "unknown-collection",
            f'Collection with name "{name}" in scope "{scope}" is not found',
        )
