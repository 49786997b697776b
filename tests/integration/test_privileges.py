"""The state directory: whose it is, and ``twistd --uid``; needs root to become somebody else."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import kvproto
from kvproto.errors import ConfigError
from kvproto.ops.client import call
from kvproto.ops.commands import CONTROL_SOCKET
from kvproto.ops.privileges import FutureUser
from tests.integration import service as service_module
from tests.integration.live import CredentialDirectory
from tests.integration.service import KvtlsProcess, run_kvtls


def nobody() -> pwd.struct_passwd:
    """Return a user without rights, where there is one and we may become it."""
    if os.geteuid() != 0:
        raise SkipTest("only root may become somebody else")
    user = pwd.getpwnam("nobody")
    try:
        FutureUser(user.pw_uid, user.pw_gid).check_installation()
    except ConfigError as error:
        raise SkipTest(str(error)) from error
    return user


class UidTests(SynchronousTestCase):
    """Ports are opened as root, all else is another user's."""

    def setUp(self) -> None:
        self.user = nobody()
        self.patch(
            service_module,
            "TWISTD",
            [*service_module.TWISTD, "--uid", str(self.user.pw_uid), "--gid", "nogroup"],
        )
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.directory.chmod(0o755)

    def test_state_directory(self) -> None:
        """It is made for the user that the process becomes; so is everything in it."""
        state = self.directory / "a" / "state"
        for _ in range(2):
            with KvtlsProcess("--state-dir", str(state)) as service:
                answer = call(state / CONTROL_SOCKET, "reload", {"wait": True})
                self.assertTrue(answer["ok"], answer)
                owners = {path.stat().st_uid for path in [state, *state.rglob("*")]}
                self.assertEqual(owners, {self.user.pw_uid})
                self.assertEqual(service.terminate(), 0)

    def test_unreadable_key(self) -> None:
        """What root can read and the user cannot is said before a reload is refused."""
        files = CredentialDirectory()
        self.addCleanup(files.remove)
        files.path.chmod(0o755)
        options = ["--certificate", str(files.chain), "--private-key", str(files.key)]
        state = self.directory / "state"
        with KvtlsProcess(*options, "--state-dir", str(state)) as service:
            answer = call(state / CONTROL_SOCKET, "reload", {"wait": True})
            self.assertFalse(answer["ok"])
            self.assertIn(f"key.pem cannot be read by uid {self.user.pw_uid}", service.output)

    def test_unreadable_installation(self) -> None:
        """Code that the user could not read is an error before anything begins, with a remedy."""
        private = self.directory / "private"
        private.mkdir(0o700)
        package = Path(kvproto.__file__).parent
        shutil.copytree(package, private / "kvproto")
        self.enterContext(patch.dict(os.environ, PYTHONPATH=str(private)))
        done = run_kvtls("--state-dir", str(self.directory / "state"))
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(f"cannot read {private / 'kvproto'}", done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_foreign_directory(self) -> None:
        """A directory of root's is no place for the keys of somebody else."""
        state = self.directory / "state"
        state.mkdir()
        done = run_kvtls("--state-dir", str(state))
        self.assertEqual(done.returncode, 2)
        self.assertIn("belongs to root (uid 0), who could replace what nobody", done.stderr)


class StateDirectoryTests(SynchronousTestCase):
    """Directories that others have a hand in."""

    def setUp(self) -> None:
        self.state = Path(self.enterContext(tempfile.TemporaryDirectory())) / "state"
        self.state.mkdir(0o700)

    def refused(self) -> str:
        """Return why the service does not start."""
        done = run_kvtls("--state-dir", str(self.state), "--listen", "tcp:0:interface=127.0.0.1")
        self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1), done.stderr)
        return done.stderr

    def test_writable(self) -> None:
        """A directory in which others may write is refused, with and without development keys."""
        self.state.chmod(0o777)
        self.assertIn(f"--state-dir: {self.state} others may write in it", self.refused())

    def test_linked_development(self) -> None:
        """Development keys are not written to where somebody else's link leads."""
        elsewhere = self.state.parent / "elsewhere"
        elsewhere.mkdir()
        (self.state / "development").symlink_to(elsewhere)
        self.assertIn("development is a symbolic link", self.refused())
        self.assertEqual(list(elsewhere.iterdir()), [])

    def test_somebody_elses(self) -> None:
        """A directory of another user is refused."""
        os.chown(self.state, nobody().pw_uid, -1)
        self.assertIn("belongs to nobody (uid ", self.refused())
