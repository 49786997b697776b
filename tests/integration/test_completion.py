"""What ``kvtls completion`` prints, in the shells themselves."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import subprocess
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kvproto import cli
from tests.integration.peers import require
from tests.integration.service import PATIENCE

CASES = (
    ("kvtls rel", ["reload"]),
    ("kvtls --js", ["--json"]),
    ("kvtls --json status --re", ["--json", "status", "--ready"]),
    ("kvtls status --state", ["status", "--state-dir"]),
    ("kvtls restart --tim", ["restart", "--timeout"]),
    ("kvtls flush --tim", ["flush", "--timeout"]),
    ("kvtls completion fi", ["completion", "fish"]),
    ("kvtls restore kep", ["restore", "kept.kv"]),
    ("kvtls --control pla", ["--control", "place"]),
)
"""What is typed before the tabulator, and the words that the command is then called with."""


class CompletionTests(SynchronousTestCase):
    """Commands, their options, the options that stand anywhere, choices and files."""

    def setUp(self) -> None:
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.directory / "kept.kv").touch()
        (self.directory / "place").mkdir()

    def script(self, shell: str) -> Path:
        """Return the file with the script for a shell."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.assertEqual(cli.main(["completion", shell]), cli.OK)
        path = self.directory / f".{shell}-script"
        path.write_text(out.getvalue(), encoding="utf-8")
        return path

    def typed(self, command: list[str], start: str) -> None:
        """Type each case at a shell, and see what the command gets."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        environment = {
            "HOME": str(self.directory),
            "PATH": os.environ.get("PATH", os.defpath),
            "TERM": "dumb",
            "PS1": "",
        }
        shell = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=self.directory,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        calls = self.directory / "calls"
        kvtls = f"kvtls() {{ printf '%s|' \"$@\" > {calls}.new; mv {calls}.new {calls}; }}"
        try:
            os.write(ours, f"{start}\n{kvtls}\n".encode())
            for line, words in CASES:
                os.write(ours, f"{line}\t\n".encode())
                said = self.until(calls, ours)
                self.assertEqual(said, words, line)
        finally:
            shell.kill()
            shell.wait(PATIENCE)

    def until(self, calls: Path, terminal: int) -> list[str]:
        """Return how it was called, slashes at the end aside.

        What the shell prints is read, so that it is never held up.
        """
        deadline = time.monotonic() + PATIENCE
        printed = b""
        while not calls.exists():
            self.assertLess(time.monotonic(), deadline, printed.decode(errors="replace"))
            if select.select([terminal], [], [], 0.02)[0]:
                printed += os.read(terminal, 65536)
        said = calls.read_text(encoding="utf-8")
        calls.unlink()
        return [word.rstrip("/") for word in said.split("|")[:-1]]

    def test_bash(self) -> None:
        """With readline, as an interactive shell."""
        bash = require("bash", "bash")
        self.typed([bash, "--norc", "--noprofile", "-i"], f"source {self.script('bash')}")

    def test_zsh(self) -> None:
        """Sourced where nobody has run compinit, and where it has been run."""
        zsh = require("zsh", "zsh")
        script = self.script("zsh")
        for before in ("", "autoload -Uz compinit; compinit; "):
            self.typed([zsh, "-f", "-i"], f"unsetopt beep; {before}source {script}")

    def test_zsh_directory(self) -> None:
        """As a function that zsh loads from a directory, by its first line."""
        zsh = require("zsh", "zsh")
        functions = self.directory / ".functions"
        functions.mkdir()
        self.script("zsh").rename(functions / "_kvtls")
        self.typed(
            [zsh, "-f", "-i"], f"fpath=({functions} $fpath); autoload -Uz compinit; compinit"
        )

    def test_fish(self) -> None:
        """Fish tells what it would complete without a terminal."""
        fish = require("fish", "fish")
        script = self.script("fish")
        for line, words in CASES:
            done = subprocess.run(
                [fish, "--no-config", "-c", f"source {script}; complete -C '{line}'"],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=True,
                cwd=self.directory,
                env={"HOME": str(self.directory), "PATH": os.environ.get("PATH", os.defpath)},
            )
            self.assertEqual(
                [found.split("\t")[0].rstrip("/") for found in done.stdout.splitlines()],
                words[-1:],
                line,
            )
