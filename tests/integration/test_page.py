"""The status page in headless Chromium: on a phone, a desk and a wall; and by axe-core."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.service import KvtlsProcess

AXE = "KVPROTO_AXE"
"""Environment variable that names axe.min.js (npm: axe-core)."""

LOOK = """
const main = document.querySelector("main").getBoundingClientRect();
document.title = JSON.stringify({
  wide: document.documentElement.scrollWidth > innerWidth,
  width: innerWidth,
  state: document.querySelector("#state strong").textContent,
  sections: [...document.querySelectorAll("h2")].map(one => one.textContent),
});
"""

CHECK = """
axe.run().then(found => { document.title = JSON.stringify(found.violations.map(one => one.id)); });
"""


class PageTests(SynchronousTestCase):
    """The page as it is served, in a browser without a network."""

    def setUp(self) -> None:
        chromium = shutil.which("chromium")
        if chromium is None:
            raise SkipTest("chromium (Debian: chromium) is not installed")
        self.chromium = chromium
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        with KvtlsProcess("--http", "tcp:0") as service:
            line = service.wait_for_line(re.compile(r"http on \S+"))
            url = f"http://{line.removeprefix('http on ')}/"
            with urllib.request.urlopen(url, timeout=30) as answer:
                self.page = answer.read().decode()

    def look(self, width: int, script: str, *more: str) -> Any:
        """Return what a script finds out on the page, in a window of a width."""
        path = self.directory / "page.html"
        page = self.page.replace("setTimeout(again, 5000);\n</script>", "</script>")
        path.write_text(
            page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8"
        )
        done = subprocess.run(
            [
                *[self.chromium, "--headless=new", "--no-sandbox", "--disable-gpu"],
                *["--disable-dev-shm-usage", f"--user-data-dir={self.directory}/profile"],
                *[f"--window-size={width},1000", "--virtual-time-budget=10000", "--dump-dom"],
                *more,
                path.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
        assert found is not None, done.stderr[-500:]
        return json.loads(html.unescape(found[1]))

    def test_widths(self) -> None:
        """Nothing is wider than the window, from a phone to a wall."""
        for width in (390, 1280, 2560):
            found = self.look(width, LOOK)
            self.assertFalse(found["wide"], width)
            self.assertEqual(found["state"], "All is well")
            self.assertIn("Listeners", found["sections"])

    def test_accessibility(self) -> None:
        """axe-core finds nothing, in light and in dark."""
        name = os.environ.get(AXE, "")
        if not name:
            raise SkipTest(f"{AXE} does not name axe.min.js (npm: axe-core)")
        axe = Path(name).read_text(encoding="utf-8")
        for more in ((), ("--force-dark-mode",)):
            self.assertEqual(self.look(1280, f"{axe};{CHECK}", *more), [])
