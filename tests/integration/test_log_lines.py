"""The log of a running service: JSON, a file that moves, a configuration that changes."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto.base.limited_log import LINES_OF_ONE
from kvproto.ops.client import call
from kvproto.ops.commands import CONTROL_SOCKET
from tests.integration import service as service_module
from tests.integration.service import KvtlsProcess
from tests.integration.wire_client import read_answer, sasl_plain

BOUND = 30.0


class LogTests(SynchronousTestCase):
    """What an operator's tools read."""

    def test_json(self) -> None:
        """Every line is an object; a failed login reads the same for a user that exists not."""
        options = ["--log-format", "json", "--user", "alice:secret"]
        with KvtlsProcess(*options) as service:
            ports = {}
            for name in ("alice", "mallory\n{"):
                with service.connect() as client:
                    ports[name] = client.getsockname()[1]
                    client.sendall(sasl_plain(name, "guess"))
                    self.assertEqual(read_answer(client).status, 0x20)
            self.assertEqual(service.terminate(), 0)
        rows = [json.loads(line) for line in service.output.splitlines()]
        for row in rows:
            self.assertEqual(list(row)[:4], ["time", "level", "logger", "message"])
        failed = [row for row in rows if row.get("mechanism") == "PLAIN"]
        self.assertEqual([row["user"] for row in failed], ["alice", "mallory\\n{"])
        for row in failed:
            port = ports[row.pop("user").replace("\\n", "\n")]
            self.assertEqual(row.pop("peer"), f"127.0.0.1:{port}")
            self.assertIsInstance(row.pop("connection"), int)
            for name in ("time", "message"):
                row.pop(name)
        self.assertEqual(failed[0], failed[1])
        self.assertEqual(failed[0]["listener"], "data")

    def test_flood(self) -> None:
        """Resets after half a handshake leave so many lines, and what is left out is counted."""
        hello = bytes.fromhex("16030100050100000100")
        with KvtlsProcess() as service:
            for _ in range(3 * LINES_OF_ONE):
                with socket.create_connection(("127.0.0.1", service.port), 10) as peer:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    peer.sendall(hello)
            control = service.state_dir / CONTROL_SOCKET
            deadline = time.monotonic() + BOUND
            while call(control, "status", {})["connections"]["total"]:
                assert time.monotonic() < deadline
            lines = re.findall(r"connection \d+ from 127\.0\.0\.1:\d+ on data", service.output)
            self.assertLessEqual(len(lines), 2 * LINES_OF_ONE)

    def test_file(self) -> None:
        """A log file that was renamed is begun anew on SIGUSR1, which kills nobody."""
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        path = directory / "kvtls.log"
        twistd = [*service_module.TWISTD, "--logfile", str(path)]
        self.patch(service_module, "TWISTD", twistd)
        self.patch(service_module.KvtlsProcess, "wait_for_line", lambda *_: "")
        with KvtlsProcess() as service:
            self.until(path, "kvtls ready")
            path.rename(directory / "old")
            service.process.send_signal(signal.SIGUSR1)
            self.until(path, "the log is opened anew")
            self.assertEqual(service.terminate(), 0)
        self.assertIn("Server Shut Down", path.read_text(encoding="utf-8"))

    def until(self, path: Path, words: str) -> None:
        deadline = time.monotonic() + BOUND
        while not (path.exists() and words in path.read_text(encoding="utf-8")):
            assert time.monotonic() < deadline, words
            time.sleep(0.01)

    def test_config_changes(self) -> None:
        """SIGHUP takes over what can change, and names what takes a restart."""
        file = Path(self.enterContext(tempfile.TemporaryDirectory())) / "kvtls.toml"
        file.write_text("max-connections = 17\n", encoding="utf-8")
        with KvtlsProcess("--config", str(file)) as service:
            control = service.state_dir / CONTROL_SOCKET
            for text, words in (
                ("max-connections = 18\nhttp = 'tcp:0'\n", "max-connections is 18 now"),
                ("max-connections = 0\n", "stays as it is: --config .*:1: max-connections"),
                ("max-connections = 19\nlog-level = 'debug'\n", "log-level is debug now"),
            ):
                file.write_text(text, encoding="utf-8")
                service.process.send_signal(signal.SIGHUP)
                service.wait_for_line(re.compile(words))
            limits = call(control, "status", {})["limits"]
            self.assertEqual(limits["connections"]["limit"], 19)
            self.assertIn("http has changed in", service.output)
            self.assertNotIn("max-connections has changed", service.output)
            service.connect().close()
            service.wait_for_line(re.compile("#debug"))
