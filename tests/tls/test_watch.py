"""The watch on credential files."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.watch import SETTLE_S
from kvproto.testing.certificates import root_authority
from kvproto.tls.contexts import ServerPolicy
from kvproto.tls.rotation import RETRIES, RETRY_DELAY, Rotation
from kvproto.tls.verdict import Verdict
from kvproto.tls.watch import FileWatch
from tests.tls.material import NOW, folder, write_identity

NAMES = ("localhost",)
INTERVAL = 2.0


class CountingRotation(Rotation):
    """Counts reloads."""

    reloads = 0

    def reload(self, *, allow_fewer_names: bool = False) -> Deferred[Verdict]:
        self.reloads += 1
        return super().reload(allow_fewer_names=allow_fewer_names)


class WatchTests(SynchronousTestCase):
    """What makes the watch ask for a reload, and what does not."""

    def setUp(self) -> None:
        self.directory = folder(self)
        self.files = write_identity(self.directory, root_authority().issue("node", NAMES))
        self.start()

    def start(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.rotation = CountingRotation(
            self.files, ServerPolicy(), self.clock, now=self.clock.seconds
        )
        self.rotation.startService()
        self.watch = FileWatch(self.rotation, self.clock, INTERVAL)
        self.watch.startService()

    def write(self) -> None:
        write_identity(self.directory, root_authority().issue("node", NAMES))

    def wait(self, seconds: float = INTERVAL + SETTLE_S) -> None:
        """Let time pass in small steps."""
        self.clock.pump([0.25] * int(seconds / 0.25))

    def test_quiet(self) -> None:
        """Files that nobody writes are left alone; so are those that are only touched."""
        self.wait(60)
        for path in self.directory.iterdir():
            path.touch()
        self.wait(60)
        self.assertEqual(self.rotation.reloads, 0)

    def test_change(self) -> None:
        """A change is served after one look and a moment of rest, by one reload."""
        self.write()
        self.wait(INTERVAL)
        self.assertEqual(self.rotation.current.number, 1)
        self.wait(SETTLE_S)
        self.assertEqual(self.rotation.current.number, 2)
        self.wait(60)
        self.assertEqual(self.rotation.reloads, 1)

    def test_change_before_the_first_look(self) -> None:
        """A change between the first reading and the start of the watch is seen."""
        self.watch.stopService()
        self.write()
        self.watch.startService()
        self.wait()
        self.assertEqual(self.rotation.current.number, 2)

    def test_writer_at_work(self) -> None:
        """As long as the files keep changing, nothing is done."""
        for _ in range(20):
            self.write()
            self.wait(SETTLE_S)
        self.assertEqual(self.rotation.reloads, 0)
        self.wait()
        self.assertEqual((self.rotation.reloads, self.rotation.current.number), (1, 2))

    def test_change_undone(self) -> None:
        """A change that is taken back before it came to rest was none."""
        good = (self.directory / "chain.pem").read_bytes()
        (self.directory / "chain.pem").write_bytes(b"oops")
        self.wait(INTERVAL)
        (self.directory / "chain.pem").write_bytes(good)
        self.wait(60)
        self.assertEqual(self.rotation.reloads, 0)

    def test_bad_content(self) -> None:
        """Bad content is tried once; good content after it is served."""
        key = (self.directory / "key.pem").read_bytes()
        (self.directory / "key.pem").write_bytes(b"garbage")
        self.wait(60)
        self.assertEqual((self.rotation.reloads, self.rotation.current.number), (1, 1))
        (self.directory / "key.pem").write_bytes(key + b"\n")
        self.wait()
        self.assertEqual(self.rotation.current.number, 2)

    def test_back_to_what_is_served(self) -> None:
        """After bad content, the content that is served already needs no reload."""
        key = (self.directory / "key.pem").read_bytes()
        (self.directory / "key.pem").write_bytes(b"garbage")
        self.wait(60)
        (self.directory / "key.pem").write_bytes(key)
        self.wait(60)
        self.assertEqual(self.rotation.reloads, 1)

    def test_missing_file(self) -> None:
        """A file that vanishes is said once, and served when it is back with other content."""
        (self.directory / "key.pem").unlink()
        self.wait(60)
        assert self.rotation.last_verdict is not None
        self.assertIn("no such file", self.rotation.last_verdict.reason)
        self.write()
        self.wait()
        self.assertEqual((self.rotation.reloads, self.rotation.current.number), (2, 2))

    def test_certificate_before_key(self) -> None:
        """A key that is written seconds after its certificate is served in the end."""
        identity = root_authority().issue("node", NAMES)
        (self.directory / "chain.pem").write_bytes(identity.chain_pem)
        self.wait(INTERVAL + SETTLE_S + RETRIES * RETRY_DELAY + 5)
        (self.directory / "key.pem").write_bytes(identity.key_pem)
        self.wait(10)
        self.assertEqual(self.rotation.current.credentials.chain[0], identity.certificate)

    def test_kubernetes_swap(self) -> None:
        """A volume whose ..data link is swapped is served."""
        for version in ("..v1", "..v2"):
            (self.directory / version).mkdir()
            write_identity(self.directory / version, root_authority().issue("node", NAMES))
        data = self.directory / "..data"
        data.symlink_to("..v1")
        for name in ("chain.pem", "key.pem"):
            (self.directory / name).unlink()
            (self.directory / name).symlink_to(Path("..data") / name)
        self.watch.stopService()
        self.start()
        self.wait(10)
        self.assertEqual(self.rotation.reloads, 0)
        (self.directory / "..tmp").symlink_to("..v2")
        (self.directory / "..tmp").replace(data)
        self.wait()
        self.assertEqual(self.rotation.current.number, 2)

    def test_manual_reload(self) -> None:
        """What somebody else has reloaded is not reloaded again."""
        self.write()
        self.successResultOf(self.rotation.reload())
        self.wait(60)
        self.assertEqual(self.rotation.reloads, 1)

    def test_rollback(self) -> None:
        """A rollback is not undone by the watch, only by new files."""
        self.write()
        self.wait()
        self.successResultOf(self.rotation.rollback())
        self.wait(60)
        self.assertEqual(self.rotation.current.number, 3)
        self.write()
        self.wait()
        self.assertEqual(self.rotation.current.number, 4)

    def test_stop(self) -> None:
        """A stopped watch looks no more and leaves no timer."""
        self.watch.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.write()
        self.wait(60)
        self.assertEqual(self.rotation.reloads, 0)

    def test_stop_during_reload(self) -> None:
        """Stopped while a reload is under way, it does not begin again."""
        (self.directory / "key.pem").unlink()
        self.wait(INTERVAL + SETTLE_S)
        self.watch.stopService()
        self.successResultOf(self.rotation.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_and_start_during_reload(self) -> None:
        """Stopped and started while a reload is under way, it looks in one rhythm only."""
        (self.directory / "key.pem").unlink()
        self.wait(INTERVAL + SETTLE_S)
        self.watch.stopService()
        self.watch.startService()
        self.wait(RETRIES * RETRY_DELAY)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
