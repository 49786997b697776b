"""The control socket and the command ``kvtls`` over a real Unix socket."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from kvproto.errors import CommandError, ConfigError
from kvproto.ops.client import NoServiceError, call, wait_until_gone
from kvproto.ops.commands import CONTROL_SOCKET, MAX_REQUEST
from kvproto.ops.control import ControlFactory
from kvproto.ops.control_socket import ControlSocket, StateLock
from tests.integration.service import PATIENCE
from tests.ops.material import FakeControl, verdict

T = TypeVar("T")


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as an operator does, in a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, "-m", "kvproto.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )


def temporary(test: SynchronousTestCase | TestCase) -> Path:
    """Return a directory with a short path: those of Unix sockets are limited."""
    path = Path(tempfile.mkdtemp(prefix="kvtls-"))
    test.addCleanup(shutil.rmtree, path)
    return path


class ServedTestCase(TestCase):
    """A control socket that serves a fake service, in the reactor of the test run."""

    timeout = 3 * PATIENCE

    def setUp(self) -> None:
        self.directory = temporary(self) / "state"
        self.path = self.directory / CONTROL_SOCKET
        self.control = FakeControl()
        self.service = ControlSocket(self.control, self.directory, reactor)
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def aside(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Call what blocks in a thread."""
        return deferToThread(function, *arguments)


class SocketTests(ServedTestCase):
    """The file."""

    def test_permissions(self) -> None:
        """Socket, lock and directory are for their owner only."""
        for path, mode in (
            (self.path, 0o600),
            (self.directory / "control.lock", 0o600),
            (self.directory, 0o700),
        ):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), mode)

    def test_second_service(self) -> None:
        """A second service is refused and told whose the directory is; the first goes on."""
        other = ControlSocket(FakeControl(), self.directory, reactor)
        error = self.assertRaises(ConfigError, other.startService)
        self.assertIn(f"process {os.getpid()}", str(error))
        self.assertIn("--state-dir", str(error))
        self.assertTrue(self.path.is_socket())

    async def test_lock_file_deleted(self) -> None:
        """Even without its lock file a service that lives is not replaced."""
        (self.directory / "control.lock").unlink()
        other = ControlSocket(FakeControl(), self.directory, reactor)
        self.assertRaises(ConfigError, other.startService)
        answer = await self.aside(call, self.path, "status", {})
        self.assertTrue(answer["ok"])

    async def test_restart(self) -> None:
        """Stopping removes the socket and lets the next one in; it can start again itself."""
        await self.service.stopService()
        self.assertFalse(self.path.exists())
        lock = StateLock(self.directory)
        lock.acquire()
        lock.release()
        self.service.startService()
        answer = await self.aside(call, self.path, "status", {})
        self.assertTrue(answer["ok"])

    async def test_socket_deleted(self) -> None:
        """A service whose socket somebody deleted still stops."""
        self.path.unlink()
        await self.service.stopService()
        self.assertFalse(self.path.exists())


class StaleTests(TestCase):
    """What an earlier process left."""

    def setUp(self) -> None:
        self.directory = temporary(self)
        self.path = self.directory / CONTROL_SOCKET
        self.service = ControlSocket(FakeControl(), self.directory, reactor)

    def left_behind(self) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self.path))

    async def test_replaced(self) -> None:
        """The socket of a dead process is replaced."""
        self.left_behind()
        self.service.startService()
        self.addCleanup(self.service.stopService)
        answer = await deferToThread(call, self.path, "status", {})
        self.assertTrue(answer["ok"])

    def test_no_socket(self) -> None:
        """A file of another kind is not touched."""
        self.path.write_text("precious")
        error = self.assertRaises(ConfigError, self.service.startService)
        self.assertIn("is no socket", str(error))
        self.assertEqual(self.path.read_text(), "precious")
        self.path.unlink()
        StateLock(self.directory).acquire()  # nothing was left locked

    def test_long_path(self) -> None:
        """A path that is too long for a Unix socket is refused as such."""
        service = ControlSocket(FakeControl(), self.directory / ("x" * 120), reactor)
        self.assertIn("too long", str(self.assertRaises(ConfigError, service.startService)))

    def test_no_directory(self) -> None:
        """A state directory that cannot be made is named."""
        self.path.write_text("")
        service = ControlSocket(FakeControl(), self.path, reactor)
        error = self.assertRaises(ConfigError, service.startService)
        self.assertIn(CONTROL_SOCKET, str(error))

    def test_nobody_there(self) -> None:
        """The client says what is wrong, and what to do."""
        error = self.assertRaises(NoServiceError, call, self.path, "status", {})
        self.assertIn("start one with 'twistd kvtls'", str(error))
        self.left_behind()
        error = self.assertRaises(NoServiceError, call, self.path, "status", {})
        self.assertIn("is gone", str(error))


class ConversationTests(ServedTestCase):
    """Over the socket."""

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.settimeout(PATIENCE)
        connection.connect(str(self.path))
        return connection

    async def test_several_requests(self) -> None:
        """One connection may carry several requests."""

        def talk() -> list[dict[str, Any]]:
            with self.connect() as connection, connection.makefile("rwb") as stream:
                answers = []
                for number in range(3):
                    stream.write(b'{"id":%d,"command":"status"}\n' % number)
                    stream.flush()
                    answers.append(json.loads(stream.readline()))
                return answers

        answers = await self.aside(talk)
        self.assertEqual([answer["id"] for answer in answers], [0, 1, 2])

    async def test_client_leaves(self) -> None:
        """A client that leaves in the middle of a slow command is noticed at once."""
        asked: Deferred[None] = Deferred()
        left: Deferred[None] = Deferred()

        def slow() -> Deferred[Any]:
            asked.callback(None)
            return Deferred()

        self.patch(self.control, "rollback", slow)
        self.patch(ControlFactory, "left", lambda _: left.callback(None))
        connection = self.connect()
        connection.sendall(b'{"command":"rollback"}\n')
        await asked
        connection.close()
        await left

    async def test_too_long(self) -> None:
        """A request without end is answered with an error, and the connection closed."""

        def flood() -> bytes:
            with self.connect() as connection:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(b"x" * (4 * MAX_REQUEST))
                answer = b""
                with contextlib.suppress(ConnectionResetError):
                    while piece := connection.recv(4096):
                        answer += piece
                return answer

        self.assertIn(b"bad-request", await self.aside(flood))

    async def test_last_answer(self) -> None:
        """The answer that was given before the end is sent before the end."""

        def stop() -> dict[str, Any]:
            reactor.callLater(0, self.service.stopService)
            return {"ok": True, "pid": os.getpid()}

        self.patch(self.control, "stop", stop)
        answer = await self.aside(call, self.path, "stop", {})
        self.assertEqual(answer["pid"], os.getpid())

    async def test_large_answer(self) -> None:
        """An answer of megabytes arrives whole."""
        self.control.reply = verdict(reason="x" * 3_000_000)
        answer = await self.aside(call, self.path, "reload", {"wait": True})
        self.assertEqual(len(answer["reason"]), 3_000_000)


class CommandTests(ServedTestCase):
    """The command, as a process."""

    async def test_status(self) -> None:
        """``status`` reads well at 80 columns, and is JSON on request."""
        done = await self.aside(run_cli, "--state-dir", str(self.directory), "status")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("is ready", done.stdout)
        self.assertLessEqual(max(map(len, done.stdout.splitlines())), 80)
        done = await self.aside(run_cli, "status", "--json", "--control", str(self.path))
        self.assertEqual(json.loads(done.stdout)["service"]["state"], "ready")

    async def test_reload(self) -> None:
        """A bad generation is status 1 for who waits."""
        where = ("--state-dir", str(self.directory))
        done = await self.aside(run_cli, *where, "reload", "--wait")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("generation 3 serves", done.stdout)
        self.control.reply = verdict(ok=False, stage="check", reason="the key does not fit")
        done = await self.aside(run_cli, *where, "reload", "--wait")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("the key does not fit", done.stderr)

    async def test_unknown_listener(self) -> None:
        """What the service refuses is status 1."""
        self.control.reply = CommandError("unknown-listener", "there is no listener 'x'")
        done = await self.aside(run_cli, "--state-dir", str(self.directory), "restart", "x")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr, "kvtls: restart: there is no listener 'x'\n")

    async def test_nobody(self) -> None:
        """Nobody there is status 3, with one line that says what to do."""
        done = await self.aside(run_cli, "--state-dir", "/nonexistent", "status")
        self.assertEqual((done.returncode, done.stdout), (3, ""))
        self.assertEqual(done.stderr.count("\n"), 1)
        self.assertIn("/nonexistent/control.sock", done.stderr)
        self.assertIn("twistd kvtls", done.stderr)


class SilentServiceTests(SynchronousTestCase):
    """Services that are not what they seem."""

    def setUp(self) -> None:
        self.path = temporary(self) / CONTROL_SOCKET
        self.listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.listening.close)
        self.listening.bind(str(self.path))
        self.listening.listen()

    def answer_with(self, answer: bytes) -> None:
        def serve() -> None:
            connection, _ = self.listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join, 10)

    def test_hangs(self) -> None:
        """A service that does not answer is given up."""
        self.patch(sys.modules["kvproto.ops.client"], "MARGIN", 0.1)
        error = self.assertRaises(NoServiceError, call, self.path, "status", {}, 0.1)
        self.assertIn("did not answer", str(error))

    def test_something_else(self) -> None:
        """What is no kvtls service is said to be none."""
        for answer, words in (
            (b"", "hung up"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no kvtls service"),
            (b"[]\n", "no kvtls service"),
            (b"[" * 100_000, "no kvtls service"),
            (b'{"protocol":1,"ok":true,"pid":1', "in the middle of its answer"),
            (b'{"protocol":2,"ok":true}\n', "another version"),
        ):
            self.answer_with(answer)
            error = self.assertRaises(NoServiceError, call, self.path, "status", {})
            self.assertIn(words, str(error))


class GoneTests(SynchronousTestCase):
    """Waiting for the end of a process."""

    def test_waits(self) -> None:
        """It ends with the process, or when time is over."""
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            self.assertFalse(wait_until_gone(process.pid, 0.05))
            process.communicate(b"\n", timeout=PATIENCE)
        self.assertTrue(wait_until_gone(process.pid, 10))


class BindingReactor(Clock):
    """Binds a socket as the reactor does, and looks at it before anything else happens to it."""

    mode_at_birth = 0

    def listenUNIX(
        self, path: str, factory: object, backlog: int, mode: int, wantPID: bool
    ) -> object:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
            self.mode_at_birth = stat.S_IMODE(Path(path).stat().st_mode)
        return object()


class BirthTests(SynchronousTestCase):
    """The first moment of the socket."""

    def test_never_open(self) -> None:
        """The socket is closed to others before Twisted sets its mode; the umask is put back."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        reactor = BindingReactor()
        ControlSocket(FakeControl(), temporary(self), reactor).startService()
        self.assertEqual(reactor.mode_at_birth, 0o600)
        self.assertEqual(os.umask(0), 0)
