"""What docs/howto/ci.md tells people to paste, pasted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.sdk import ROOT
from tests.integration.service import PATIENCE
from tests.pages import block
from tests.ports import free_port

NAME = "docs/howto/ci.md"
PAGE = (ROOT / NAME).read_text(encoding="utf-8")


class PageTests(SynchronousTestCase):
    """Each block in a directory of its own."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kvtls-ci-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def run_shell(self, script: str) -> str:
        """Run lines of shell; return what they printed."""
        # What is installed beside this Python is what the page means by kvtls and twistd.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=self.directory,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_script(self) -> None:
        """The service is ready when ``twistd`` returns, the example runs, and it ends."""
        start = block(NAME, "--collection inventory.hotels").text
        installing, start = start.split("\n", 1)
        self.assertIn("pip install", installing)
        port = free_port()
        start = start.replace("alice:secret", f"alice:secret -l tcp:{port}:interface=127.0.0.1")
        example = block(NAME, "examples/sdk.py").text.replace("11207", str(port))
        example = example.replace("docs/", f"{ROOT}/docs/")
        stop = f"trap '{re.findall('`(kvtls stop .*?)`', PAGE)[0]}' EXIT\n"
        self.assertIn("no session", self.run_shell(start + stop + example))
        self.assertFalse((self.directory / "kvtls.pid").exists())

    def test_process(self) -> None:
        """The SDK connects to a service of the program's own, and it is emptied."""
        program = block(NAME, "PasswordAuthenticator").text
        use = (
            "collection = cluster.bucket(kvtls.bucket).default_collection()\n"
            "    collection.upsert('k', 1)\n"
            "    print(collection.exists('k').exists)\n"
        )
        program = program.replace("...\n", use) + (
            "    print(collection.exists('k').exists)\n    cluster.close()\n"
        )
        imports = (
            "from couchbase.auth import PasswordAuthenticator\n"
            "from couchbase.cluster import Cluster\n"
            "from couchbase.options import ClusterOptions\n"
        )
        (self.directory / "process.py").write_text(imports + program, encoding="utf-8")
        self.assertEqual(self.run_shell("python process.py"), "True\nFalse\n")

    def test_suite(self) -> None:
        """A test suite learns port and CA of its service."""
        program = block(NAME, "service.stdout").text
        check = (
            "\nimport socket, ssl\n"
            "context = ssl.create_default_context(cafile=ca)\n"
            "plain = socket.create_connection(('127.0.0.1', port))\n"
            "print(context.wrap_socket(plain, server_hostname='127.0.0.1').version())\n"
            "service.terminate()\n"
            "service.communicate(timeout=20)\n"
        )
        (self.directory / "suite.py").write_text(program + check, encoding="utf-8")
        self.assertIn("TLS", self.run_shell("python suite.py"))

    def test_users(self) -> None:
        """Users of the file are made, and the service accepts the file."""
        script = block(NAME, "kvtls passwd").text.replace("-n kvtls", "-n kvtls --check")
        script = script.replace("json alice", "json alice <<< secret")
        (self.directory / "bobs-password.txt").write_text("bob's\n", encoding="utf-8")
        self.assertIn("the configuration is good", self.run_shell(script))
