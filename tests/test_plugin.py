"""The plugin that makes ``twistd kvtls`` appear."""

from __future__ import annotations

import subprocess
import sys

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
