"""memcached's own tests, which find our sessions where they look for ``memcached-debug``.

``MEMCACHED_REPO`` names a checkout of memcached; without it these tests are skipped.  Nothing of it
is part of this project: its scripts are run where they are.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.peers import require

ROOT = Path(__file__).resolve().parents[2]

PASSING = (
    "ascii-auth ascii-auth2 binary-get bogus-commands cas evictions flags flush-all getandtouch "
    "getset incrdecr issue_3 issue_14 issue_29 issue_41 issue_42 issue_70 issue_104 issue_108 "
    "issue_140 issue_152 issue_192 issue_260 line-lengths metaget multiversioning noreply quit "
    "refhang whitespace"
)
"""Scripts that pass as they are.

Left out are those about slabs and LRUs, flash, the proxy, UDP, TLS, worker threads and their
buffers, how the process is started, the debug build's clock, and the log streams of ``watch``.
"""


class SuiteTests(SynchronousTestCase):
    """Each script that is about the protocol."""

    def test_scripts(self) -> None:
        """They pass."""
        repository = os.environ.get("MEMCACHED_REPO")
        if not repository:
            raise SkipTest("MEMCACHED_REPO names no checkout of memcached")
        perl = require("perl", "perl")
        here = Path(self.mktemp())
        here.mkdir()
        (here / "t").symlink_to(Path(repository).resolve() / "t")
        for name, text in (
            (
                "memcached-debug",
                f'cd "{ROOT}" && exec "{sys.executable}" -m tests.memcached_daemon "$@"',
            ),
            ("timedrun", 'shift\nexec "$@"'),
        ):
            (here / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            (here / name).chmod(0o755)
        failed = []
        for script in PASSING.split():
            done = subprocess.run(
                [perl, "-It/lib", f"t/{script}.t"],
                cwd=here, capture_output=True, text=True, timeout=300, check=False,
                errors="replace",
            )  # fmt: skip
            if done.returncode or re.search("^not ok", done.stdout, re.MULTILINE):
                failed.append(f"{script}: {done.stdout[-500:]}{done.stderr[-500:]}")
        self.assertEqual("\n".join(failed), "")
