"""The command ``kvtls``, with everything but the socket."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto import cli
from kvproto.config import Config
from kvproto.ops.client import NoServiceError
from kvproto.ops.command_line import STATE_DIR
from kvproto.ops.commands import COMMANDS, CONTROL_SOCKET
from kvproto.ops.completion import SHELLS
from tests.ops.material import status, verdict

GOOD = {"protocol": 1, "ok": True}


class CommandTestCase(SynchronousTestCase):
    """Runs commands against an answer that the test prepares."""

    def setUp(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any], float | None]] = []
        self.answer: dict[str, Any] | BaseException = {**GOOD, **status()}
        self.out, self.err = io.StringIO(), io.StringIO()
        self.patch(cli, "call", self._call)
        self.patch(sys, "stdout", self.out)
        self.patch(sys, "stderr", self.err)

    def _call(
        self, path: Path, command: str, arguments: Mapping[str, Any], timeout: float | None
    ) -> dict[str, Any]:
        self.asked.append((str(path), command, dict(arguments), timeout))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def usage_error(self, *arguments: str) -> str:
        error = self.assertRaises(SystemExit, cli.main, arguments)
        assert isinstance(error, SystemExit)
        self.assertEqual(error.code, cli.USAGE)
        self.assertEqual(self.asked, [])
        return self.err.getvalue()


class OptionTests(CommandTestCase):
    """What is asked of whom."""

    def test_default(self) -> None:
        """The socket is in the default state directory of the service."""
        self.assertEqual(cli.main(["status"]), cli.OK)
        self.assertEqual(self.asked, [(f"kvtls-state/{CONTROL_SOCKET}", "status", {}, None)])
        self.assertEqual(Config().state_directory, STATE_DIR)

    def test_global_options_anywhere(self) -> None:
        """Global options work before and after the command, and between its own."""
        for arguments in (
            ["--state-dir", "st", "--json", "--timeout", "3", "reload", "--wait"],
            ["reload", "--wait", "--state-dir", "st", "--json", "--timeout", "3"],
            ["--json", "reload", "--timeout", "3", "--wait", "--state-dir=st"],
        ):
            self.answer = {**GOOD, **verdict()}
            self.assertEqual(cli.main(arguments), cli.OK)
            self.assertEqual(self.asked.pop(), ("st/control.sock", "reload", {"wait": True}, 3.0))
            json.loads(self.out.getvalue())
            self.out.truncate(0)
            self.out.seek(0)

    def test_control(self) -> None:
        """The socket itself can be named."""
        cli.main(["status", "--control", "/run/x.sock"])
        self.assertEqual(self.asked[0][0], "/run/x.sock")

    def test_arguments(self) -> None:
        """Arguments of commands arrive; what is not given is not sent."""
        self.answer = {**GOOD, "listeners": []}
        cli.main(["restart", "all"])
        self.answer = {**GOOD, **verdict()}
        cli.main(["reload", "--allow-fewer-names"])
        self.answer = {**GOOD, "total": 0, "shown": 0, "connections": []}
        cli.main(["connections", "--limit", "0", "--listener", "data-0"])
        self.assertEqual(
            [asked[2] for asked in self.asked],
            [
                {"listener": "all"},
                {"allow_fewer_names": True},
                {"limit": 0, "listener": "data-0"},
            ],
        )

    def test_usage_errors(self) -> None:
        """What makes no sense is refused with status 2 before anybody is asked."""
        for arguments, word in (
            ([], "COMMAND"),
            (["no-such"], "no-such"),
            (["restart"], "LISTENER"),
            (["status", "--wait"], "--wait"),
            (["status", "--jso"], "--jso"),
            (["status", "--timeout", "0"], "number of seconds"),
            (["status", "--timeout", "nan"], "number of seconds"),
            (["connections", "--limit", "-1"], "whole number"),
            (["--state-dir", "a", "--control", "b", "status"], "not allowed"),
        ):
            self.assertIn(word, self.usage_error(*arguments))

    def test_one_place_only(self) -> None:
        """Two different places are one too many, wherever the options stand."""
        for arguments in (
            ["--state-dir", "a", "status", "--control", "b"],
            ["--control", "b", "status", "--state-dir", "a"],
        ):
            self.assertIn("not allowed", self.usage_error(*arguments))

    def test_help(self) -> None:
        """Every command is in the help, which fits 80 columns."""
        self.patch(os, "environ", {**os.environ, "COLUMNS": "80"})
        self.assertEqual(self.assertRaises(SystemExit, cli.main, ["--help"]).code, 0)
        text = self.out.getvalue()
        for name in COMMANDS:
            self.assertIn(f"\n    {name} ", text)
        self.assertLess(max(map(len, text.split("\n"))), 80)

    def test_version(self) -> None:
        """``--version`` asks nobody."""
        self.assertEqual(self.assertRaises(SystemExit, cli.main, ["--version"]).code, 0)
        self.assertTrue(self.out.getvalue().startswith("kvproto "))


class AnswerTests(CommandTestCase):
    """What is printed, and the exit status."""

    def test_text(self) -> None:
        """By default the answer is for people, on stdout."""
        self.assertEqual(cli.main(["status"]), cli.OK)
        self.assertIn("is ready", self.out.getvalue())
        self.assertEqual(self.err.getvalue(), "")

    def test_json(self) -> None:
        """With ``--json`` it is the answer itself."""
        self.assertEqual(cli.main(["status", "--json"]), cli.OK)
        self.assertEqual(json.loads(self.out.getvalue()), self.answer)

    def test_failed(self) -> None:
        """A command that failed has status 1 and tells why on stderr."""
        self.answer = {
            **GOOD,
            **verdict(ok=False, stage="check", reason="the key does not fit"),
            "error": {"code": "failed", "message": "the key does not fit"},
        }
        self.assertEqual(cli.main(["reload", "--wait"]), cli.FAILED)
        self.assertIn("FAILED (check): the key does not fit", self.err.getvalue())
        self.assertEqual(self.out.getvalue(), "")
        self.assertEqual(cli.main(["reload", "--wait", "--json"]), cli.FAILED)
        self.assertFalse(json.loads(self.out.getvalue())["ok"])

    def test_refused(self) -> None:
        """A command that the service refuses has status 1 as well."""
        self.answer = {
            "protocol": 1,
            "ok": False,
            "error": {"code": "unknown-listener", "message": "there is no listener 'x'"},
        }
        self.assertEqual(cli.main(["restart", "x"]), cli.FAILED)
        self.assertEqual(self.err.getvalue(), "kvtls: restart: there is no listener 'x'\n")

    def test_ready(self) -> None:
        """``status --ready`` says by its exit status whether clients are served, and why not."""
        self.assertEqual(cli.main(["status", "--ready"]), cli.OK)
        self.assertEqual((self.out.getvalue(), self.err.getvalue()), ("", ""))
        self.answer = {**GOOD, **self.unready("no listener\x1b listens")}
        self.assertEqual(cli.main(["status", "--ready"]), cli.FAILED)
        self.assertEqual(self.err.getvalue(), "kvtls: not ready: no listener\\x1b listens\n")
        self.assertEqual(cli.main(["status", "--ready", "--json"]), cli.FAILED)
        self.assertEqual(json.loads(self.out.getvalue())["service"]["ready"], False)
        self.answer = NoServiceError(Path("st"), "no service runs here")
        self.assertEqual(cli.main(["status", "--ready"]), cli.NO_SERVICE)

    def unready(self, reason: str) -> dict[str, Any]:
        said = status()
        return {**said, "service": {**said["service"], "ready": False, "reason": reason}}

    def test_wait(self) -> None:
        """``wait`` asks until clients are served, through a service that is not there yet."""
        answers: list[dict[str, Any] | NoServiceError] = [
            NoServiceError(Path("st"), "no service runs here"),
            {**GOOD, **self.unready("starting")},
            {**GOOD, **status()},
        ]

        def call(*_arguments: Any) -> dict[str, Any]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.patch(cli, "call", call)
        self.patch(cli, "WAIT_PAUSE", 0.0)
        self.assertEqual(cli.main(["wait"]), cli.OK)
        self.assertEqual(answers, [])

    def test_wait_in_vain(self) -> None:
        """When the time is over ``wait`` says what is missing: readiness, or a service."""
        self.answer = {**GOOD, **self.unready("the engine cannot be reached")}
        self.assertEqual(cli.main(["wait", "--timeout", "0.01"]), cli.FAILED)
        self.assertEqual(self.err.getvalue(), "kvtls: not ready: the engine cannot be reached\n")
        self.answer = NoServiceError(Path("st"), "no service runs here")
        self.assertEqual(cli.main(["wait", "--timeout", "0.01"]), cli.NO_SERVICE)

    def test_completion(self) -> None:
        """Every shell gets a script, which has no JSON; what it does is seen in the shells."""
        for shell in SHELLS:
            self.out.truncate(0)
            self.assertEqual(cli.main(["completion", shell]), cli.OK)
            for name in COMMANDS:
                self.assertIn(name, self.out.getvalue())
        self.assertIn("no JSON", self.usage_error("--json", "completion", "bash"))

    def test_strange_answers(self) -> None:
        """What another version may answer becomes a sentence, whatever is missing or odd."""
        for command, answer in (
            (["status"], GOOD),
            (["status"], {**GOOD, **status(), "listeners": None}),
            (["connections"], {**GOOD, "total": 1, "shown": 1, "connections": [{}]}),
            (["address"], {**GOOD, "address": 7}),
        ):
            self.answer = answer
            self.err.truncate(0)
            self.err.seek(0)
            self.assertEqual(cli.main(command), cli.FAILED)
            self.assertIn("use the kvtls that came with", self.err.getvalue())
            self.assertEqual(self.err.getvalue().count("\n"), 1)

    def test_backup_and_restore(self) -> None:
        """The file's path is made absolute; what came of it is said, failures with a status."""
        for command, word in (
            ("backup", "are in /x"),
            ("restore", "are back from /x"),
            ("seed", "of /x are stored"),
        ):
            self.answer = {**GOOD, "file": "/x", "documents": 3}
            self.assertEqual(cli.main([command, "x"]), cli.OK)
            self.assertIn(f"3 documents {word}", self.out.getvalue())
        self.answer = {**GOOD, "ok": False, "file": "/x", "documents": 1, "reason": "no room for 2"}
        self.assertEqual(cli.main(["restore", "x"]), cli.FAILED)

    def test_address(self) -> None:
        """``address`` prints nothing else."""
        self.answer = {**GOOD, "address": "127.0.0.1:11207"}
        self.assertEqual(cli.main(["address"]), cli.OK)
        self.assertEqual(self.out.getvalue(), "127.0.0.1:11207\n")

    def test_flush(self) -> None:
        """``flush`` names the bucket."""
        self.answer = {**GOOD, "bucket": "b"}
        self.assertEqual(cli.main(["flush", "b"]), cli.OK)
        self.assertEqual(self.asked[-1][1:3], ("flush", {"bucket": "b"}))

    def test_no_service(self) -> None:
        """Where nobody answers the status is 3, in both forms."""
        self.answer = NoServiceError(Path("st"), "no service runs here")
        self.assertEqual(cli.main(["status"]), cli.NO_SERVICE)
        self.assertEqual(self.err.getvalue(), "kvtls: status: no service runs here\n")
        self.assertEqual(cli.main(["status", "--json"]), cli.NO_SERVICE)
        error = json.loads(self.out.getvalue())["error"]
        self.assertEqual(error, {"code": "no-service", "message": "no service runs here"})

    def test_interrupted(self) -> None:
        """Control-C ends the waiting without a traceback."""
        self.answer = KeyboardInterrupt()
        self.assertEqual(cli.main(["status"]), 130)

    def test_stop_waits(self) -> None:
        """``stop --wait`` ends when the process has, with status 1 when it does not."""
        for gone, expected, words in (
            (True, cli.OK, "has ended"),
            (False, cli.FAILED, "is still there"),
        ):
            self.answer = {**GOOD, "pid": 4242}
            waits: list[tuple[int, float]] = []

            def wait(pid: int, timeout: float, waits: list[Any] = waits, gone: bool = gone) -> bool:
                waits.append((pid, timeout))
                return gone

            self.patch(cli, "wait_until_gone", wait)
            self.assertEqual(cli.main(["stop", "--wait", "--timeout", "7"]), expected)
            self.assertEqual(waits, [(4242, 7.0)])
            self.assertIn(words, self.out.getvalue() + self.err.getvalue())


class StartTests(SynchronousTestCase):
    """As a process of its own."""

    def test_imports_little(self) -> None:
        """The command starts without Twisted, OpenSSL and the rest of the service."""
        script = (
            # Old packages of namespaces are there before anybody has imported anything.
            "import sys\nbefore = set(sys.modules)\nimport kvproto.cli\n"
            "heavy = ('twisted', 'OpenSSL', 'cryptography', 'zope', 'txaio', 'asyncio')\n"
            "print([name for name in heavy if name in set(sys.modules) - before])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
        )
        self.assertEqual(done.stdout, "[]\n")

    def run_with(self, code: str, *arguments: str, **options: Any) -> tuple[int, bytes]:
        """Run the command in a process of its own, with an answer of 1 MB.

        Returns:
            Its exit status, and what it complained of.
        """
        script = (
            "import sys, kvproto.cli as cli\n"
            "cli.call = lambda *_: {'ok': True, 'text': 'x' * 1_000_000}\n"
            f"{code}\n"
            "sys.exit(cli.main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            **options,
        )
        return done.returncode, done.stderr

    def test_reader_that_has_enough(self) -> None:
        """``kvtls ... | head`` ends quietly, with the status that it has anyway."""
        for arguments in (
            ("--json", "status"),
            ("completion", "bash"),
            ("--help",),
            ("status", "--help"),
            ("--version",),
        ):
            for before in ("", "sys.stdout.reconfigure(write_through=True)"):
                reader, writer = os.pipe()
                os.close(reader)
                self.addCleanup(os.close, writer)
                found = self.run_with(before, *arguments, stdout=writer)
                self.assertEqual(found, (0, b""), arguments)

    def test_no_stdout(self) -> None:
        """Where stdout was closed before, nobody wants the answer: the status is the same."""
        closed = {"preexec_fn": lambda: os.close(1)}
        self.assertEqual(self.run_with("", "--json", "status", **closed), (0, b""))

    def test_full_disk(self) -> None:
        """An answer that cannot be written is told of in a sentence, and is a failure."""
        with open("/dev/full", "wb") as full:
            status, said = self.run_with("", "--json", "status", stdout=full)
        self.assertEqual(status, cli.FAILED)
        self.assertEqual(said, b"kvtls: the answer cannot be written: No space left on device\n")

    def test_other_alphabets(self) -> None:
        """A name that the terminal's alphabet does not have is spelled out."""
        status, said = self.run_with(
            "cli.call = lambda *_: {'ok': True, 'bucket': 'b\\u00fccher\\u2603'}",
            "flush",
            "b",
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            stdout=subprocess.DEVNULL,
        )
        self.assertEqual((status, said), (0, b""))
