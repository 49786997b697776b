"""Every command and program of the documentation is understood by what it is for.

What is not run here from beginning to end is named with the test that does so, or with the reason
why nobody does; a block that is new and in neither list is an error.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import time
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from kvproto.client import Credentials, KVClient, SessionSettings
from kvproto.ops.command_line import make_parser
from kvproto.tap import Options
from kvproto.testing.certificates import root_authority, server_identity
from tests.pages import ROOT, Block, block, blocks
from tests.reactors import ResolvingReactor
from tests.tls.material import folder, write_identity

OTHER_PROGRAMS = {
    "cat cd chmod done for install mkdir printf rm set sleep until": "the shell and its tools",
    "pip python3": "installed anew by .ci/run",
    "openssl memcached redis-cli redis-server": "tests.integration.test_tutorials",
    "systemctl": "tests.integration.test_systemd, as far as that goes without systemd as process 1",
    "erl iex": "tests.integration.test_dist_erl starts nodes; Elixir is in no test",
    "curl": "the tests of the management interface ask for what the page asks for",
    "jq": "a condition of the operator's; the names are in tests.integration.test_control_live",
    "chgrp groupadd": "nobody: a test adds no groups to the machine that it runs on",
    "kill": "tests.integration.test_examples",
    "--store": "an option alone; tests.upstream.test_fleet_options parses its kind",
}
"""Programs that are not ours, and who runs them."""

FRAGMENTS = {
    ("docs/howto/ci.md", "PasswordAuthenticator"): "tests.integration.test_ci_page",
    ("docs/howto/ci.md", "service = subprocess"): "tests.integration.test_ci_page",
    ("docs/howto/ci.md", "kvtls_seed"): "tests.integration.test_process",
    ("docs/howto/compose-acceptor.md", "AcceptorService(..."): "docs/examples/chat.py does it",
    ("docs/howto/compose-acceptor.md", "keep_monotonic"): "tests.base.test_clock",
    ("docs/reference/kv-protocol.md", "reactor.run()"): "tests.integration.test_tutorials",
    ("docs/tutorial/first-service.md", "pymemcache"): "tests.integration.test_tutorials",
}
"""Python that is run elsewhere."""


class ShellTests(TestCase):
    """Commands of all pages."""

    def setUp(self) -> None:
        self.others = {name for names in OTHER_PROGRAMS for name in names.split()}
        self.parser = make_parser()
        self.tests = "".join(
            path.read_text(encoding="utf-8") for path in (ROOT / "tests/integration").glob("*.py")
        )

    def test_commands(self) -> None:
        """``twistd kvtls`` and ``kvtls`` take their options, and each example is run by a test."""
        seen = 0
        for each in blocks("sh", "console"):
            for program, *words in each.commands():
                with self.subTest(f"{each}: {program} {shlex.join(words)}"):
                    self.check(each, Path(program).name, words)
                    seen += 1
        self.assertGreater(seen, 50)

    def check(self, each: Block, name: str, words: list[str]) -> None:
        if name == "twistd":
            self.parse_service(each, words[words.index("kvtls") + 1 :])
        elif name == "kvtls":
            self.parse_command(words[: words.index("<")] if "<" in words else words)
        elif name == "python" and words[0] == "-m":
            self.assertIn("twisted.trial", words)
        elif name == "python":
            example = Path(words[0]).name
            self.assertTrue((ROOT / "docs/examples" / example).is_file(), words)
            self.assertIn(example, self.tests)
        else:
            self.assertIn(name, self.others, "say in OTHER_PROGRAMS who runs it, or why nobody")

    def parse_service(self, each: Block, words: list[str]) -> None:
        if "--config" in words:
            # The file that the page shows.
            path = folder(self) / "kvtls.toml"
            path.write_text(block(each.page, "memory-limit").text, encoding="utf-8")
            words[words.index("--config") + 1] = str(path)
        options, errors = Options(), io.StringIO()
        words = [word for word in words if word != "--check"]
        try:
            with contextlib.redirect_stderr(errors):
                options.parseOptions(words)
        except SystemExit:
            self.fail(errors.getvalue())
        self.assertIsNotNone(options.kvtls_config)

    def parse_command(self, words: list[str]) -> None:
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                self.parser.parse_args(words)
        except SystemExit:
            self.fail(errors.getvalue())

    def test_units(self) -> None:
        """The lines of systemd's files as well."""
        lines = re.findall(
            r"^Exec\w+=(.*)", "".join(each.text for each in blocks("ini")), re.MULTILINE
        )
        self.assertEqual(len(lines), 2)
        for line in lines:
            program, *words = shlex.split(line)
            self.check(block("docs/howto/deploy.md", "ExecStart"), Path(program).name, words)


class PythonTests(TestCase):
    """Python of all pages."""

    def test_each_is_run(self) -> None:
        """Each block is run by this file, or by whoever is named here."""
        mine = {
            "docs/howto/https.md",
            "docs/howto/rotate-certificates.md",
            "docs/howto/twisted-client.md",
            "docs/reference/wire.md",
            "docs/reference/store.md",
        }
        for each in blocks("python"):
            compile(each.text, str(each), "exec")
            elsewhere = [t for (page, t) in FRAGMENTS if page == each.page and t in each.text]
            self.assertTrue(
                elsewhere or each.page in mine, f"{each} is run by no test: see FRAGMENTS"
            )
        for page, text in FRAGMENTS:
            self.assertEqual(block(page, text).language, "python")

    def run_block(self, page: str, containing: str, **names: Any) -> dict[str, Any]:
        """Run a block in a directory that has certificates; return what it has defined."""
        directory = folder(self)
        write_identity(directory, server_identity(), client_ca=root_authority())
        code = compile(block(page, containing).text, page, "exec")
        with contextlib.chdir(directory):
            exec(code, names)
        return names

    def test_https(self) -> None:
        """The endpoint can be made."""
        made = self.run_block("docs/howto/https.md", "RotatingServerEndpoint")
        self.assertEqual(made["endpoint"].rotation.current.number, 1)

    def test_rotate(self) -> None:
        """Rotation and watch start, and end."""
        made = self.run_block(
            "docs/howto/rotate-certificates.md", "FileWatch(", your_factory=Factory()
        )
        self.assertEqual(made["rotation"].current.number, 1)
        made["watch"].stopService()
        return made["rotation"].stopService()  # type: ignore[no-any-return]

    def test_client(self) -> None:
        """The client begins to connect, and ends."""
        from twisted.internet.endpoints import clientFromString

        reactor: Any = ResolvingReactor()
        reactor.advance(time.time())
        names = {"clientFromString": clientFromString, "KVClient": KVClient}
        names |= {"SessionSettings": SessionSettings, "Credentials": Credentials}
        made = self.run_block("docs/howto/twisted-client.md", "session =", reactor=reactor, **names)
        client = made["client"]
        self.assertTrue(client.running)
        client.close()
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_wire(self) -> None:
        """The loop decodes and answers."""
        made = self.run_block("docs/reference/wire.md", "RequestDecoder")
        self.assertEqual(made["reply"][:2], b"\x81\x00")
