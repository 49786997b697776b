"""Public fakes, and a real service: what users and our own tests need to try kvproto.

``process`` runs a real service for the tests of its clients, ``pytest_plugin`` has fixtures of it.
``certificates`` makes authorities and identities of any size in memory, ``contexts`` puts them
into OpenSSL contexts, ``transport`` joins two protocols by an in-memory wire with back-pressure,
``scripted`` has a transport whose peer is the test,
``endpoints`` lets servers listen and clients connect on such wires, ``store`` has the contract
tests that every store passes.  Nothing in the package itself imports this room.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvproto.testing.endpoints import (
        MemoryClientEndpoint,
        MemoryNetwork,
        MemoryPort,
        MemoryServerEndpoint,
    )
    from kvproto.testing.process import KVTLSProcess, ProcessError

__all__ = [
    "KVTLSProcess",
    "MemoryClientEndpoint",
    "MemoryNetwork",
    "MemoryPort",
    "MemoryServerEndpoint",
    "ProcessError",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, not before: the service's own process must load OpenSSL itself."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "endpoints" if name.startswith("Memory") else "process"
    return getattr(import_module(f"kvproto.testing.{module}"), name)
