"""``--store file:`` in a real process: killed, started again, full, damaged, taken twice."""

from __future__ import annotations

import random
import re
import signal
import ssl
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.service import KILL_ROUNDS, PATIENCE, KvtlsProcess, run_kvtls
from tests.integration.test_clients import everything_on

KEYS = 40


class Client(threading.Thread):
    """Writes to keys of its own until the connection ends, and remembers what was acknowledged.

    Attributes:
        sure: What each key must hold: the last acknowledged value, None for removed.
        possible: What it may hold beside that: a write that got no answer.
    """

    def __init__(self, number: int, connection: ssl.SSLSocket) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.sure: dict[bytes, bytes | None] = {}
        self.possible: dict[bytes, bytes | None] = {}
        self._connection = connection
        self._file = connection.makefile("rwb")

    def run(self) -> None:
        """Write."""
        rng = random.Random(self.number)
        try:
            for count in range(10_000_000):
                key = b"c%d:%d" % (self.number, rng.randrange(KEYS))
                value = b"%d" % count * rng.choice((1, 20, 300))
                if rng.random() < 0.2 and self.sure.get(key) is not None:
                    line, answer, new = b"delete %b\r\n" % key, b"DELETED\r\n", None
                else:
                    line = b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value)
                    answer, new = b"STORED\r\n", value
                self.possible = {key: new}
                self._file.write(line)
                self._file.flush()
                if self._file.readline() != answer:
                    return
                self.sure[key] = new
                self.possible = {}
        except OSError:
            return

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


def read_all(service: KvtlsProcess, keys: list[bytes]) -> dict[bytes, bytes | None]:
    """Return what is under each key."""
    found: dict[bytes, bytes | None] = {}
    with service.connect() as connection, connection.makefile("rwb") as file:
        for key in keys:
            file.write(b"get %b\r\n" % key)
            file.flush()
            head = file.readline()
            if head == b"END\r\n":
                found[key] = None
                continue
            found[key] = file.read(int(head.split()[3]))
            assert file.readline() + file.readline() == b"\r\nEND\r\n"
    return found


class KillTests(SynchronousTestCase):
    """``kill -9`` under load."""

    def test_everysec(self) -> None:
        """Nothing that was acknowledged is lost, nothing removed returns."""
        self.kill_again_and_again("everysec")

    def test_always(self) -> None:
        """The same where every write waits for the disk."""
        self.kill_again_and_again("always")

    def kill_again_and_again(self, sync: str) -> None:
        directory = Path(self.mktemp()).absolute()
        options = ["--mode", "memcached", "--store", f"file:{directory}?sync={sync}"]
        sure: dict[bytes, bytes | None] = {}
        rng = random.Random()
        for number in range(KILL_ROUNDS):
            with KvtlsProcess(*options) as service:
                clients = [Client(number * 10 + n, service.connect()) for n in range(4)]
                for client in clients:
                    client.start()
                # At random on purpose: how long it takes decides nothing but where it is cut.
                time.sleep(rng.uniform(0.05, 1.0))
                service.process.send_signal(signal.SIGKILL)
                service.process.wait(PATIENCE)
                for client in clients:
                    client.join(PATIENCE)
                    client.close()
            possible: dict[bytes, bytes | None] = {}
            for client in clients:
                sure |= client.sure
                possible |= client.possible
            with KvtlsProcess(*options) as service:
                found = read_all(service, [*{**sure, **possible}])
            for key, value in found.items():
                allowed = [sure.get(key)]
                if key in possible:
                    allowed.append(possible[key])
                self.assertIn(value, allowed, key)
                sure[key] = value
        self.assertGreater(len(sure), KEYS)


class StartTests(SynchronousTestCase):
    """What is said at the start."""

    def test_in_use(self) -> None:
        """A second process on a directory ends at once and names it and the first one."""
        directory = Path(self.mktemp()).absolute()
        with KvtlsProcess("--store", f"file:{directory}") as service:
            second = run_kvtls(
                "--listen", "tcp:0:interface=127.0.0.1", "--store", f"file:{directory}"
            )
            self.assertNotEqual(second.returncode, 0)
            self.assertIn(f"{directory} is in use by process {service.process.pid}", second.stderr)

    def test_damaged(self) -> None:
        """A damaged file ends the service, which names it."""
        directory = Path(self.mktemp()).absolute()
        options = ["--listen", "tcp:0:interface=127.0.0.1", "--store", f"file:{directory}"]
        with KvtlsProcess(*options) as service, service.connect() as connection:
            file = connection.makefile("rwb")
            for number in range(100):
                file.write(b"set k%d 0 0 5\r\nhello\r\n" % number)
                file.flush()
                self.assertEqual(file.readline(), b"STORED\r\n")
            service.process.send_signal(signal.SIGKILL)
        (path,) = (directory / "bucket-default").glob("*.log")
        data = bytearray(path.read_bytes())
        data[data.index(b"k50hello")] ^= 1
        path.write_bytes(data)
        ended = run_kvtls(*options)
        self.assertNotEqual(ended.returncode, 0)
        self.assertIn(str(path), ended.stdout + ended.stderr)

    def test_unreadable(self) -> None:
        """A file that cannot be read ends the service with one line that names it."""
        directory = Path(self.mktemp()).absolute()
        path = directory / "bucket-default" / "0000000000000001.log"
        path.mkdir(parents=True)
        directory.chmod(0o700)
        ended = run_kvtls("--listen", "tcp:0:interface=127.0.0.1", "--store", f"file:{directory}")
        self.assertEqual(ended.returncode, 1)
        output = ended.stdout + ended.stderr
        self.assertIn(f"the service cannot start: {path}: Is a directory", output)
        self.assertNotIn("Traceback", output)

    def test_stopped_and_started(self) -> None:
        """SIGTERM keeps everything; the log is ended."""
        directory = Path(self.mktemp()).absolute()
        options = ["--store", f"file:{directory}"]
        with KvtlsProcess(*options) as service, service.connect() as connection:
            file = connection.makefile("rwb")
            file.write(b"set k 0 0 5\r\nhello\r\n")
            file.flush()
            self.assertEqual(file.readline(), b"STORED\r\n")
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(PATIENCE)
        (path,) = (directory / "bucket-default").iterdir()
        self.assertLess(path.stat().st_size, 4096)
        with KvtlsProcess(*options) as service:
            self.assertEqual(read_all(service, [b"k"]), {b"k": b"hello"})
            self.assertRegex(service.output, re.compile(r"bucket default: 1 documents loaded"))


class ClientTests(SynchronousTestCase):
    """memcached's clients, the documents being in a directory."""

    def test_clients(self) -> None:
        """Each operation of each client does what it says, in both modes."""
        for sync in ("always", "everysec"):
            everything_on(f"file:{Path(self.mktemp()).absolute()}?sync={sync}")
