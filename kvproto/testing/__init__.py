"""Public fakes, and a real service: what users and our own tests need to try kvproto.

``process`` runs a real service for the tests of its clients, ``pytest_plugin`` has fixtures of it.
``certificates`` makes authorities and identities of any size in memory, ``contexts`` puts them
into OpenSSL contexts, ``transport`` joins two protocols by an in-memory wire with back-pressure,
``store`` has the contract tests that every store passes.  Nothing in the package itself imports
this room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvproto.testing.process import KVTLSProcess, ProcessError

__all__ = ["KVTLSProcess", "ProcessError"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, not before: the service's own process must load OpenSSL itself."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvproto.testing import process

    return getattr(process, name)
