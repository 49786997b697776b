"""Prometheus' own tool about what it would read of us: metrics, and rules on them."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.peers import require
from tests.integration.service import PATIENCE, KvtlsProcess

RULES = Path(__file__).resolve().parents[2] / "contrib" / "prometheus" / "alerts.yml"


class PromtoolTests(SynchronousTestCase):
    """``promtool check``."""

    def check(self, *arguments: str, given: bytes = b"") -> None:
        done = subprocess.run(
            [require("promtool", "prometheus"), "check", *arguments],
            input=given,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, b""), done.stdout.decode())

    def test_rules(self) -> None:
        """The alert rules are rules."""
        self.check("rules", str(RULES))

    def test_metrics(self) -> None:
        """Nothing about names, types and help of the metrics is to be complained about."""
        require("promtool", "prometheus")
        service = self.enterContext(KvtlsProcess("--http", "tcp:0"))
        where = service.wait_for_line(re.compile(r"http on \S+")).removeprefix("http on ")
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=PATIENCE) as answer:
            self.check("metrics", given=answer.read())
