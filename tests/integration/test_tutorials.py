"""The tutorials, followed as they are written; only the ports are others."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.live import eventually
from tests.integration.peers import require
from tests.integration.service import PATIENCE, KvtlsProcess
from tests.integration.test_examples import line_with, program
from tests.pages import block
from tests.ports import free_port

FIRST = "docs/tutorial/first-service.md"
ELIXIR = "docs/tutorial/elixir-cluster.md"
ENGINES = "docs/tutorial/engine-cluster.md"


class TutorialCase(SynchronousTestCase):
    """An empty directory to follow a tutorial in."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kvtls-tutorial-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def run_shell(self, script: str, **changes: str) -> str:
        """Run lines of shell; return what they printed."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=self.directory,
            env={**os.environ, "PATH": path, **changes},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout


class FirstServiceTests(TutorialCase):
    """The first tutorial, behind the command that .ci/run runs."""

    def test_python(self) -> None:
        """Pymemcache stores and reads."""
        code = block(FIRST, "pymemcache").text
        with KvtlsProcess() as service:
            code = code.replace("kvtls-state/", f"{service.state_dir}/")
            code = code.replace("11207", str(service.port))
            self.assertEqual(self.run_shell('python -c "$CODE"', CODE=code), "b'hello'\n")

    def test_embedded(self) -> None:
        """The server of the protocol's page answers without TLS."""
        port = free_port()
        code = block("docs/reference/kv-protocol.md", "reactor.run()").text
        code = code.replace("11211", str(port))
        server = subprocess.Popen([sys.executable, "-c", code], cwd=self.directory)
        try:
            eventually(lambda: self.version(port))
            server.terminate()
            self.assertEqual(server.wait(PATIENCE), 0)
        finally:
            server.kill()
            server.wait()

    def version(self, port: int) -> bool:
        with (
            contextlib.suppress(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client,
        ):
            client.sendall(b"version\r\n")
            return client.recv(100).startswith(b"VERSION")
        return False


class CertificateTests(TutorialCase):
    """Certificates made by the commands of the pages are good for their programs."""

    def setUp(self) -> None:
        super().setUp()
        require("openssl", "openssl")

    def test_chat(self) -> None:
        """The chat's."""
        self.run_shell(block("docs/tutorial/chat.md", "mkdir chat").text)
        chain, key = (str(self.directory / "chat" / name) for name in ("chain.pem", "key.pem"))
        with program("chat.py", chain, key, "tcp:0:interface=127.0.0.1") as chat:
            address = line_with(chat.stdout, "listening on").split()[-1]
            talk = (
                f"(echo Ann; sleep {PATIENCE}) | {block('docs/tutorial/chat.md', 's_client').text}"
            )
            talk = talk.replace("127.0.0.1:4000", address).strip() + " -verify_return_error"
            guest = subprocess.Popen(
                ["bash", "-c", talk],
                cwd=self.directory,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            try:
                line_with(guest.stdout, "* Ann is here")
                chat.send_signal(signal.SIGHUP)
                line_with(chat.stdout, "generation 1")
                line_with(chat.stdout, "restarted on")
            finally:
                os.killpg(guest.pid, signal.SIGKILL)
                guest.communicate()

    def test_node(self) -> None:
        """The node's, for the example and for the service."""
        self.run_shell(block(ELIXIR, "ca.key").text)
        demo = self.directory / "demo"
        self.assertTrue((demo / "node.pem").read_text().count("BEGIN"), 2)
        ((_, *words),) = block(ELIXIR, "twistd").commands()
        words = words[words.index("kvtls") + 1 :]
        words = [str(demo / word) if (demo / word).is_file() else word for word in words]
        words = [word.replace("17001", "0") for word in words]
        with KvtlsProcess(*words) as service:
            self.assertEqual(service.terminate(), 0)


class EngineTests(TutorialCase):
    """One server, a cluster, two services, and something goes wrong."""

    def setUp(self) -> None:
        super().setUp()
        require("redis-server", "redis-server")
        require("redis-cli", "redis-tools")
        while True:
            # Ports and those of the cluster's bus, below the ones that the system gives away.
            self.prefix = str(random.randrange(1200, 2200))
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                for offset in (0, 10_000):
                    for last in range(7):
                        port = int(f"{self.prefix}{last}") + offset
                        stack.enter_context(socket.create_server(("127.0.0.1", port)))
                return

    def commands(self, containing: str) -> list[list[str]]:
        """Return what follows ``kvtls`` or another program, command by command."""
        found = list(block(ENGINES, containing).commands())
        return [[re.sub(r"\b790", self.prefix, word) for word in words] for words in found]

    @staticmethod
    def options(words: list[str]) -> list[str]:
        return words[words.index("kvtls") + 1 :]

    def shell(self, containing: str) -> str:
        return self.run_shell(re.sub(r"\b790", self.prefix, block(ENGINES, containing).text))

    @staticmethod
    def say(service: KvtlsProcess, line: bytes) -> bytes:
        with service.connect() as client:
            client.sendall(line)
            return client.recv(1000)

    def test_tutorial(self) -> None:
        """A value outlives the service, is read through the other one, and after a takeover."""
        self.addCleanup(self.clean_up)
        engine, service = self.commands("--save")
        subprocess.run(engine, cwd=self.directory, check=True, stdout=subprocess.DEVNULL)
        for line, answer in ((b"set k 0 0 1\r\nv\r\n", b"STORED"), (b"get k\r\n", b"VALUE")):
            with KvtlsProcess(*self.options(service)) as running:
                eventually(lambda: "answers" in running.output)
                self.assertTrue(self.say(running, line).startswith(answer))
        self.shell("--cluster create")
        ports = [str(free_port()), str(free_port())]
        commands = [self.options(words) for words in self.commands("--peer")]
        for words in commands:
            words[:] = [
                word.replace("11207", ports[0]).replace("11208", ports[1]) for word in words
            ]
        with KvtlsProcess(*commands[0]) as one, KvtlsProcess(*commands[1]) as two:
            one.state_dir, two.state_dir = (
                one.state_dir.with_name("one"),
                two.state_dir.with_name("two"),
            )
            eventually(lambda: self.say(one, b"set k 0 0 1\r\nv\r\n").startswith(b"STORED"))
            self.assertTrue(self.say(two, b"get k\r\n").startswith(b"VALUE k"))
            eventually(self.replicas_are_up)
            self.shell("kill -9")
            eventually(lambda: self.say(one, b"set k 0 0 1\r\nw\r\n").startswith(b"STORED"))
            eventually(lambda: b"\r\nw\r\n" in self.say(two, b"get k\r\n"))

    def replicas_are_up(self) -> bool:
        """Return whether each replica has its primary's data: a reader is not as quick."""
        told = [
            self.run_shell(f"redis-cli -p {self.prefix}{last} info replication")
            for last in range(1, 7)
        ]
        return sum("master_link_status:up" in each for each in told) == 3

    def clean_up(self) -> None:
        # One of the servers was killed; nothing else of the command may fail.
        script = re.sub(r"\b790", self.prefix, block(ENGINES, "shutdown nosave").text)
        self.run_shell("set +e\n" + script + "true")
