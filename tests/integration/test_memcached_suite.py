"""memcached's own tests, which find our sessions where they look for ``memcached-debug``.

``MEMCACHED_REPO`` names a checkout of memcached; without it these tests are skipped.  Nothing of it
is part of this project: its scripts are run where they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.peers import require
from tests.memcached_daemon import built_memcached

ROOT = Path(__file__).resolve().parents[2]

PASSING = (
    "ascii-auth ascii-auth2 binary binary-get binary-sasl bogus-commands cas chunked-items dash-M "
    "evictions expirations flags flush-all getandtouch getset idle-timeout incrdecr issue_3 "
    "issue_14 issue_29 issue_41 issue_42 issue_61 issue_68 issue_70 issue_104 issue_108 issue_140 "
    "issue_152 issue_163 issue_183 issue_192 issue_260 item_size_max line-lengths "
    "malicious-commands maxconns metaget misbehave multiversioning noreply quit refhang shutdown "
    "slabhang stats stats-conns stats-detail strtol-testing touch unixsocket watcher "
    "watcher_connid whitespace"
)
"""Scripts that pass."""

FAILING = {"stats-conns": {10, 11, 12}}
"""Numbers of checks that fail in a script whose others pass.

Those of ``stats-conns`` want a port of UDP, and one without TLS on all of the machine's addresses,
which `--plain` refuses.
"""

LEFT_OUT = {
    "00-startup daemonize issue_50 issue_67": "how the process of a memcached is started",
    "restart": "pages of slabs in a file that outlives the process; `file:` keeps values here",
    "udp": "UDP",
    "conn-limits": "what threads allocate for answers to keys that are not there: nothing here",
    "64bit dyn-maxbytes issue_22 slabs-cas slabs-mover slabs-reassign-chunked slabs-reassign2 "
    "slabs_reassign": "pages of slabs: how many there are, and when they are full",
    "lru lru-crawler lru-maintainer": "queues of a segmented LRU, and its threads",
    "*extstore*": "values on flash",
    "proxy*": "the proxy",
    "ssl_*": "certificates as memcached takes them; TLS is tested with its own peers",
}
"""All others, and what they are about."""

HELP = "-s, --unix-socket=<file>"
"""What scripts look for before they start a server: there are Unix sockets, and nothing else."""

SCRIPT_SECONDS = 600.0
"""How long one script may take: the longest asks 80,000 times, one after the other."""

FAILURE = re.compile("^not ok ([0-9]+)", re.MULTILINE)

FLEET_LEFT_OUT = {
    "issue_29 issue_42": "chunks and bytes that slabs have allocated, which are each server's own",
    "issue_163 issue_183": "how many items were reclaimed, which each server counts",
    "watcher watcher_connid": "that a set has found nothing before it, and what was evicted",
    "stats": "how many lines there are, the keys in a slab, and items that were flushed when asked",
    "dash-M": "a count of stores for which there was no memory: it has none for binary requests",
}
"""What else does not pass where values live in a memcached behind the service."""

FLEET_NEEDS_BUILD = {
    "metaget": "flags that Debian's memcached is too old for",
    "expirations": "a server whose clock is moved on, as only a build for debugging can",
}
"""What passes there only where the checkout was built (``make memcached-debug``)."""


def run_alone(command: list[str], directory: Path) -> tuple[int | None, str]:
    """Run a program and end whatever it leaves behind; return its status and what it printed.

    A script that dies leaves its daemons, which would hold a pipe open for ever.
    The status is None where the program had to be ended too.
    """
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            command, cwd=directory, stdout=printed, stderr=printed, start_new_session=True
        )
        try:
            status = process.wait(SCRIPT_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        printed.seek(0)
        return status, printed.read().decode(errors="replace")


class SuiteTests(SynchronousTestCase):
    """Each script that is about the protocol."""

    def test_every_script_is_known(self) -> None:
        """A script passes, or there is a reason why it does not: one or the other."""
        repository = os.environ.get("MEMCACHED_REPO")
        if not repository:
            raise SkipTest("MEMCACHED_REPO names no checkout of memcached")
        patterns = " ".join(LEFT_OUT).split()
        for script in sorted(path.stem for path in (Path(repository) / "t").glob("*.t")):
            left_out = any(fnmatch(script, pattern) for pattern in patterns)
            self.assertNotEqual(left_out, script in PASSING.split(), script)

    def test_scripts(self) -> None:
        """They pass."""
        self.run_scripts(PASSING.split())

    def test_scripts_through_a_fleet(self) -> None:
        """They pass with values in a memcached behind the service."""
        left_out = " ".join(FLEET_LEFT_OUT).split()
        if not built_memcached():
            left_out += FLEET_NEEDS_BUILD
        self.run_scripts([one for one in PASSING.split() if one not in left_out], "--fleet")

    def run_scripts(self, scripts: list[str], *options: str) -> None:
        """Run scripts, with a service that is started with options of `tests.memcached_daemon`."""
        repository = os.environ.get("MEMCACHED_REPO")
        if not repository:
            raise SkipTest("MEMCACHED_REPO names no checkout of memcached")
        perl = require("perl", "perl")
        here = Path(self.mktemp())
        here.mkdir()
        for name in ("t", "doc"):
            (here / name).symlink_to(Path(repository).resolve() / name)
        daemon = " ".join(("-m tests.memcached_daemon", *options))
        start = f'cd "{ROOT}" && exec "{sys.executable}" {daemon} "$@"'
        for name, text in (
            ("memcached-debug", f'[ "$*" = -h ] && exec echo "{HELP}"\n{start}'),
            ("timedrun", 'shift\nexec "$@"'),
        ):
            (here / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            (here / name).chmod(0o755)
        failed = []
        for script in scripts:
            status, output = run_alone([perl, "-It/lib", f"t/{script}.t"], here)
            failing = {int(number) for number in FAILURE.findall(output)}
            if failing != FAILING.get(script, set()) or status != len(failing):
                failed.append(f"{script} ended with {status}: {output[-1000:]}")
        self.assertEqual("\n".join(failed), "")
