"""The tests of clients and of the SDK on every kind of store.

They choose no store, so that `KVPROTO_STORE` can.  It takes minutes; what of it is cheap, and what
differs between stores, is in the other modules (`test_sdk_file`, `test_sdk_engines`,
`test_engines`, `test_file_store`, `test_engine_contract`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.examples import THOROUGH
from tests.integration.sdk import ROOT
from tests.integration.service import succeeds

MODULES = (
    "test_clients",
    "test_client_kvtls",
    "test_memcached_clients",
    "test_memcached_tools",
    "test_sdk_collections",
    "test_sdk_documents",
    "test_sdk_subdoc",
)

SECONDS = 1200.0


class MatrixTests(SynchronousTestCase):
    """All of them on all stores, but on `memory:`, where they run anyway."""

    def on(self, store: str) -> None:
        """Run them on a store."""
        if not THOROUGH:
            raise SkipTest("KVPROTO_EXAMPLES=thorough runs clients and the SDK on every store")
        names = [f"tests.integration.{name}" for name in MODULES]
        where = Path(self.mktemp()).absolute()
        succeeds(
            [sys.executable, "-m", "twisted.trial", f"--temp-directory={where}", *names],
            within=SECONDS,
            cwd=ROOT,
            env={**os.environ, "KVPROTO_STORE": store},
        )

    def test_file(self) -> None:
        """On a directory."""
        self.on("file")

    def test_server(self) -> None:
        """On one server."""
        self.on("redis")

    def test_cluster(self) -> None:
        """On a cluster."""
        self.on("redis+cluster")
