"""A forked service is what a new process is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from tests.examples import THOROUGH
from tests.integration.forking import POSSIBLE, Forked
from tests.integration.service import PATIENCE, KvtlsProcess, run_kvtls

VARIES = re.compile(r"\d{4}-\d\d-\d\dT[\d:]+\+\d+|kvtls-test-\w+|127\.0\.0\.1:\d+|\b\d{4,5}\b")
"""Of what a service writes: the time, its directory and its port."""

NEW = {"KVPROTO_TESTS_NEW_PROCESS": "1"}
"""No process that could be forked has this in its environment."""


class ForkingTests(SynchronousTestCase):
    """Held against new processes."""

    if THOROUGH or not POSSIBLE:
        skip = "every service is a new process here"

    def of_a_life(self, kind: type) -> tuple[str, int, int, int]:
        """Return what a service writes, its open files, its parent and its exit status."""
        with KvtlsProcess() as service:
            self.assertIsInstance(service.process, kind)
            with open(f"/proc/{service.process.pid}/status", encoding="ascii") as status:
                parent = int(status.read().split("PPid:")[1].split()[0])
            files = service.open_files()
            ended = service.terminate()
        return VARIES.sub("", service.output), files, parent, ended

    def test_life(self) -> None:
        """It writes the same lines, holds as many files, is our child and ends alike."""
        forked = self.of_a_life(Forked)
        with patch.dict(os.environ, NEW):
            new = self.of_a_life(subprocess.Popen)
        self.assertEqual(forked, new)
        self.assertEqual(forked[2:], (os.getpid(), 0))

    def test_refused(self) -> None:
        """What cannot be used is said on the same stream, with the same status."""
        for options in ["--nonsense"], ["--listen", "tcp:x"], ["--check"]:
            forked = run_kvtls(*options)
            with patch.dict(os.environ, NEW):
                new = run_kvtls(*options)
            self.assertEqual(vars(forked), vars(new))

    def test_ended_by_a_signal(self) -> None:
        """Who waits sees which; who waits too shortly is told."""
        with KvtlsProcess() as service:
            with self.assertRaises(subprocess.TimeoutExpired):
                service.process.wait(0)
            self.assertIs(service.process.poll(), None)
            service.process.kill()
            self.assertEqual(service.process.wait(PATIENCE), -signal.SIGKILL)
            self.assertEqual(service.process.poll(), -signal.SIGKILL)
