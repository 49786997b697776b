"""The Couchbase Python SDK's own tests, against a service that they take for Couchbase.

``COUCHBASE_PYTHON_REPO`` names a checkout of couchbase-python-client, of about the version that is
installed; without it these tests are skipped.  Nothing of it is part of this project: its tests are
run where they are, with the package that is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from kvproto.testing import KVTLSProcess

PASSING = {
    "couchbase": (
        "binary_collection_multi binary_collection binary_durability bucket "
        "bucketmgmt_bucket_settings bucketmgmt cluster collection_multi collection collectionmgmt "
        "connection credentials datastructures durability_multi durability exceptions "
        "logging_meter logging_smoke metrics mutation_tokens subdoc threshold_logging transcoder "
        "usermgmt"
    ),
    "acouchbase": (
        "async_utilities binary_collection binary_durability bucket bucketmgmt chain cluster "
        "collection collectionmgmt credentials datastructures durability mutation_tokens subdoc "
        "threshold_logging transcoder usermgmt"
    ),
    "txcouchbase": (
        "binary_collection bucketmgmt chain collection collectionmgmt mutation_tokens subdoc"
    ),
}
"""Files whose tests pass, by package; what needs replicas or several nodes skips itself."""

LEFT_OUT = {
    "analytics* eventingmgmt search* view*": "services that are not there",
    "kv_range_scan": "range scans",
    "query* streaming_helpers": "queries beyond those of a set-up",
    "rate_limit": "limits of a cluster that is shared by many",
    "transactions": "its set-up counts documents with a query",
    "txcouchbase/transcoder": "it marks fixtures, which pytest 9 refuses",
}
"""All others, and what they are about.

The directories ``metrics_tests`` and ``tracing_tests`` are left out as well: they want spans of
replicas, and of the services above.
"""

ALONE = "not test_get_all_replicas_results"
"""Of the tests for Twisted all but one: it wants more copies than there are, and does not ask."""

NEEDED = {
    "couchbase": "couchbase",
    "faker_vehicle": "faker-vehicle",
    "pytest": "pytest",
    "requests": "requests",
}
"""Modules, and their packages."""

CONFIGURATION = """
[realserver]
enabled = True
host = {host}
port = {port}
admin_username = {username}
admin_password = {password}
bucket_name = default
bucket_password = {password}
[gocaves]
enabled = False
"""

PLUGIN = """
from tests.couchbase_config import CouchbaseConfig

CouchbaseConfig.get_connection_string = lambda self: "{address}"
"""
"""The tests know no port of key-value but Couchbase's own."""

SECONDS = 600
"""For the tests of one file."""

PASSED = re.compile(r"\b[1-9][0-9]* (passed|skipped)\b")


class SuiteTests(SynchronousTestCase):
    """Each file about key-value or what is managed over REST."""

    def setUp(self) -> None:
        named = os.environ.get("COUCHBASE_PYTHON_REPO")
        if not named:
            raise SkipTest("COUCHBASE_PYTHON_REPO names no checkout of couchbase-python-client")
        for module, package in NEEDED.items():
            if importlib.util.find_spec(module) is None:
                raise SkipTest(f"{package} is not installed: pip install {package}")
        self.repository = Path(named).resolve()

    def test_every_file_is_known(self) -> None:
        """A file passes, or there is a reason why it does not: one or the other."""
        patterns = " ".join(LEFT_OUT).split()
        for package, passing in PASSING.items():
            for path in sorted((self.repository / package / "tests").glob("*_t.py")):
                name = path.stem.removesuffix("_t")
                names = (name, f"{package}/{name}")
                left_out = any(fnmatch(one, pattern) for one in names for pattern in patterns)
                self.assertNotEqual(left_out, name in passing.split(), f"{package}: {name}")

    def test_couchbase(self) -> None:
        """The blocking API."""
        self.run_files("couchbase")

    def test_acouchbase(self) -> None:
        """The API of asyncio."""
        if importlib.util.find_spec("pytest_asyncio") is None:
            raise SkipTest("pytest-asyncio is not installed: pip install pytest-asyncio")
        self.run_files("acouchbase", "-p", "pytest_asyncio")

    def test_txcouchbase(self) -> None:
        """The API of Twisted."""
        self.run_files("txcouchbase", "--txcouchbase", "-k", ALONE)

    def run_files(self, package: str, *options: str) -> None:
        """Run the files of a package that pass, one after the other."""
        with KVTLSProcess(
            *("--bucket", "default"),
            *("--plain", "tcp:0:interface=127.0.0.1", "--management", "tcp:0:interface=127.0.0.1"),
            username="Administrator",
        ) as service:
            here = self.lay_out(service)
            failed = []
            for name in PASSING[package].split():
                done = subprocess.run(
                    [
                        *(sys.executable, "-m", "pytest", "-q", "--tb=short", "-W", "ignore"),
                        *("-p", "no:cacheprovider", "-p", "here", *options),
                        f"{package}/tests/{name}_t.py",
                    ],
                    cwd=here, capture_output=True, text=True, timeout=SECONDS, check=False,
                    # Of the plugins that are installed, only those that are named.
                    env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                )  # fmt: skip
                if done.returncode or not PASSED.search(done.stdout):
                    failed.append(f"{name}: {done.stdout[-3000:]}{done.stderr[-500:]}")
            self.assertEqual("\n".join(failed), "")

    def lay_out(self, service: KVTLSProcess) -> Path:
        """Return a directory in which the tests find the installed package and the service."""
        here = Path(self.mktemp()).absolute()
        shutil.copytree(self.repository / "tests", here / "tests")
        for name in ("conftest.py", "pyproject.toml"):
            (here / name).symlink_to(self.repository / name)
        for package in PASSING:
            (here / package).mkdir()
            (here / package / "tests").symlink_to(self.repository / package / "tests")
            found = importlib.util.find_spec(package)
            assert found is not None
            assert found.origin is not None
            for path in Path(found.origin).parent.iterdir():
                if path.name not in {"tests", "__pycache__"}:
                    (here / package / path.name).symlink_to(path)
        (here / "tests" / "test_config.ini").write_text(
            CONFIGURATION.format(
                host=service.host,
                port=service.management_port,
                username=service.username,
                password=service.password,
            ),
            encoding="utf-8",
        )
        address = service.plain_connection_string
        (here / "here.py").write_text(PLUGIN.format(address=address), encoding="utf-8")
        return here
