"""Fixtures for pytest: a real service, ready and empty.

Installed with kvproto (entry point ``pytest11``), so that a test only names what it wants::

    def test_stores(kvtls):
        cluster = Cluster(kvtls.connection_string, …)

With pytest-xdist each worker has a service of its own.  Nothing is started, or imported beyond
this file, before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvproto.testing.process import KVTLSProcess

__all__ = ["kvtls", "kvtls_options", "kvtls_process", "kvtls_restore", "kvtls_seed"]


@pytest.fixture(scope="session")
def kvtls_options() -> tuple[str, ...]:
    """Further options of ``twistd kvtls``; override it in ``conftest.py``."""
    return ()


@pytest.fixture(scope="session")
def kvtls_seed() -> str | PathLike[str] | None:
    """JSON lines file that each test begins with; override it in ``conftest.py``."""
    return None


@pytest.fixture(scope="session")
def kvtls_restore() -> str | PathLike[str] | None:
    """Backup that each test begins with; override it in ``conftest.py``."""
    return None


@pytest.fixture(scope="session")
def _kvtls_of_the_session(
    kvtls_options: tuple[str, ...],
    kvtls_seed: str | PathLike[str] | None,
    kvtls_restore: str | PathLike[str] | None,
) -> Iterator[KVTLSProcess]:
    from kvproto.testing.process import KVTLSProcess

    with KVTLSProcess(*kvtls_options, seed=kvtls_seed, restore=kvtls_restore) as service:
        yield service


@pytest.fixture
def kvtls(_kvtls_of_the_session: KVTLSProcess) -> KVTLSProcess:
    """A `kvproto.testing.KVTLSProcess` of the whole session, as new at the start of each test."""
    _kvtls_of_the_session.reset()
    return _kvtls_of_the_session


@pytest.fixture
def kvtls_process(
    kvtls_options: tuple[str, ...],
    kvtls_seed: str | PathLike[str] | None,
    kvtls_restore: str | PathLike[str] | None,
) -> Iterator[KVTLSProcess]:
    """A fresh `kvproto.testing.KVTLSProcess`, for one test alone."""
    from kvproto.testing.process import KVTLSProcess

    with KVTLSProcess(*kvtls_options, seed=kvtls_seed, restore=kvtls_restore) as service:
        yield service
