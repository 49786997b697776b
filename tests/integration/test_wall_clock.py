"""The clock on the wall is set back by an hour while the service runs."""

from __future__ import annotations

import re
import socket
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.ops.client import call
from kvproto.testing.certificates import root_authority
from tests.integration.service import PATIENCE, KvtlsProcess

SETTABLE = """
import os, time

_time = time.time

def _settable():
    with open(os.environ["WALL_CLOCK_OFFSET"]) as file:
        return _time() + float(file.read())

time.time = _settable
"""
"""A ``sitecustomize`` that lets a test set a process's clock, before Twisted asks for it."""


class WallClockTests(SynchronousTestCase):
    """Deadlines, the watch on the credential files, and uptime."""

    def test_set_back(self) -> None:
        """A silent client is dropped, a new certificate is served, uptime only grows."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "sitecustomize.py").write_text(SETTABLE)
            offset = folder / "offset"
            offset.write_text("0")
            pair = folder / "pair.pem"
            self.write(pair)
            environment = [f"PYTHONPATH={folder}", f"WALL_CLOCK_OFFSET={offset}"]
            with KvtlsProcess(
                *("--certificate", str(pair), "--handshake-timeout", "1"),
                *("--watch-interval", "0.2"),
                before=["env", *environment],
            ) as service:
                before = self.uptime(service)
                temporary = folder / "new"
                temporary.write_text("-3600")
                temporary.rename(offset)
                with socket.create_connection(service.addresses[0], 30) as silent:
                    silent.settimeout(PATIENCE)
                    began = time.monotonic()
                    self.assertRaises(ConnectionResetError, silent.recv, 1)
                    self.assertGreater(time.monotonic() - began, 0.5)
                self.assertGreater(self.uptime(service), before + 0.5)
                self.write(pair)
                service.wait_for_line(re.compile("generation 2 serves"), 30)

    def write(self, pair: Path) -> None:
        """Put a new certificate in place."""
        identity = root_authority().issue("kv", ("localhost",))
        temporary = pair.with_suffix(".new")
        temporary.write_bytes(identity.chain_pem + identity.key_pem)
        temporary.rename(pair)

    def uptime(self, service: KvtlsProcess) -> float:
        """Ask for the seconds since the start."""
        answer = call(service.state_dir / "control.sock", "status", {})
        uptime: float = answer["service"]["uptime_s"]
        return uptime
