"""Fixtures for pytest: a real service, ready and empty.

Installed with kvproto (entry point ``pytest11``), so that a test only names what it wants::

    def test_stores(kvtls):
        cluster = Cluster(kvtls.connection_string, …)

With pytest-xdist each worker has a service of its own.  Nothing is started, or imported beyond
this file, before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvproto.testing.process import KVTLSProcess

__all__ = ["kvtls", "kvtls_options", "kvtls_process"]


@pytest.fixture(scope="session")
def kvtls_options() -> tuple[str, ...]:
    """Further options of ``twistd kvtls``; override it in ``conftest.py``."""
    return ()


@pytest.fixture(scope="session")
def _kvtls_of_the_session(kvtls_options: tuple[str, ...]) -> Iterator[KVTLSProcess]:
    from kvproto.testing.process import KVTLSProcess

    with KVTLSProcess(*kvtls_options) as service:
        yield service


@pytest.fixture
def kvtls(_kvtls_of_the_session: KVTLSProcess) -> KVTLSProcess:
    """A `kvproto.testing.KVTLSProcess` of the whole session, empty at the start of each test."""
    _kvtls_of_the_session.reset()
    return _kvtls_of_the_session


@pytest.fixture
def kvtls_process(kvtls_options: tuple[str, ...]) -> Iterator[KVTLSProcess]:
    """A fresh `kvproto.testing.KVTLSProcess`, for one test alone."""
    from kvproto.testing.process import KVTLSProcess

    with KVTLSProcess(*kvtls_options) as service:
        yield service
