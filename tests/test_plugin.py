"""The plugin that makes ``twistd kvtls`` appear."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from twisted.trial.unittest import SynchronousTestCase

LIST_PLUGINS = """
import sys
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
print([plugin.tapname for plugin in getPlugins(IServiceMaker)].count("kvtls"))
print(sorted(name for name in sys.modules if name.startswith("kvproto")))
"""


class PluginTests(SynchronousTestCase):
    """Seen by a fresh interpreter outside the checkout."""

    def test_listed_once_and_light(self) -> None:
        """Exactly one ``kvtls`` is listed, and listing it imports nothing of kvproto."""
        done = subprocess.run(
            [sys.executable, "-c", LIST_PLUGINS],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        self.assertEqual(done.stdout.split("\n")[:2], ["1", "[]"])


class ModuleTests(SynchronousTestCase):
    """``python -m kvproto``."""

    def run_module(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kvproto", *options],
            cwd=self.mktemp_directory(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def mktemp_directory(self) -> str:
        directory = self.enterContext(tempfile.TemporaryDirectory())
        assert isinstance(directory, str)
        return directory

    def test_takes_the_options_of_the_service(self) -> None:
        """It is the service: its help is that of ``twistd kvtls``, with one line of usage."""
        done = self.run_module("--help")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("Usage:"), 1)
        self.assertIn("--listen", done.stdout)

    def test_check(self) -> None:
        """Options are checked as there."""
        self.assertEqual(self.run_module("--check").returncode, 0)
        done = self.run_module("--memory-limit", "nonsense")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--memory-limit", done.stderr)
