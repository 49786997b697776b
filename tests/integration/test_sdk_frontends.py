"""The Couchbase SDK's asynchronous front ends, and the example of the documentation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Coroutine
from typing import Any

from tests.integration.sdk import ROOT, SDKTestCase
from tests.integration.service import PATIENCE

BATCH = 200


class FrontEndTests(SDKTestCase):
    """``acouchbase``, ``txcouchbase`` and docs/examples/sdk.py."""

    def complete(self, arguments: list[str]) -> str:
        """Run a Python program to its end; return what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_asyncio(self) -> None:
        """The asyncio front end works, many operations at once."""
        from acouchbase.cluster import AsyncCluster
        from couchbase.auth import PasswordAuthenticator
        from couchbase.exceptions import DocumentNotFoundException
        from couchbase.options import ClusterOptions

        authenticator = PasswordAuthenticator(
            "alice", "secret", cert_path=str(self.service.ca_path)
        )

        async def work() -> None:
            cluster = await AsyncCluster.connect(
                f"couchbases://127.0.0.1:{self.service.port}", ClusterOptions(authenticator)
            )
            bucket = cluster.bucket("default")
            await bucket.on_connect()
            documents = bucket.default_collection()
            await self.several(documents.upsert(self.key(str(n)), n) for n in range(BATCH))
            results = await self.several(documents.get(self.key(str(n))) for n in range(BATCH))
            self.assertEqual([one.content_as[int] for one in results], list(range(BATCH)))
            with self.assertRaises(DocumentNotFoundException):
                await documents.get(self.key())
            await cluster.close()

        asyncio.run(asyncio.wait_for(work(), 20))

    @staticmethod
    async def several(work: Any) -> list[Any]:
        """Wait for all of several operations."""
        coroutines: list[Coroutine[Any, Any, Any]] = list(work)
        return list(await asyncio.gather(*coroutines))

    def test_twisted(self) -> None:
        """The Twisted front end works, under the reactor that it needs."""
        port, ca = str(self.service.port), str(self.service.ca_path)
        printed = self.complete(["-m", "tests.integration.sdk_twisted", port, ca])
        self.assertEqual(printed, "done\n")

    def test_documented_example(self) -> None:
        """The example of the documentation runs, and prints what the documentation says."""
        port, ca = str(self.service.port), str(self.service.ca_path)
        printed = self.complete(["docs/examples/sdk.py", port, ca])
        page = (ROOT / "docs/howto/ci.md").read_text(encoding="utf-8")
        self.assertIn(f"```text\n{printed}```\n", page)
