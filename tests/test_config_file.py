"""The file of ``--config``: every option as a key, and every mistake in one line."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Config, Mode, NodeAddress, NodeConfig, OnRotate, User
from kvproto.config.options import OPTIONS
from kvproto.config.settings import describe
from kvproto.config.toml_file import MAX_FILE
from kvproto.dataplane import make_stores
from kvproto.errors import ConfigError
from kvproto.tap import USAGE_STATUS, Options

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "config-file.md"
OPTIONS_PAGE = PAGE.with_name("options.md")
ROW = re.compile(r"^\| `(.*)` \| `(.*)` \|$", re.MULTILINE)


class FileCase(SynchronousTestCase):
    """A file, and the command line that names it."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.mkdir()
        self.path /= "kvtls.toml"

    def options(self, text: str | bytes, *arguments: str) -> Options:
        content = text if isinstance(text, bytes) else text.encode()
        self.path.write_bytes(content)
        options = Options()
        options.parseOptions(["--config", str(self.path), *arguments])
        return options

    def config(self, text: str, *arguments: str) -> Config:
        found = self.options(text, *arguments).kvtls_config
        assert found is not None
        return found

    def refused(self, text: str | bytes, *arguments: str) -> str:
        """Return the one line that a bad file is answered with, without what all have alike."""
        written = io.StringIO()
        with contextlib.redirect_stderr(written):
            end = self.assertRaises(SystemExit, self.options, text, *arguments)
        self.assertEqual(end.code, USAGE_STATUS)
        (line,) = written.getvalue().splitlines()
        start = "twistd kvtls: error: "
        self.assertTrue(line.startswith(start), line)
        return line.removeprefix(start)


class GoodTests(FileCase):
    """What a file can say."""

    def test_every_option(self) -> None:
        """Each option is a key; numbers and flags are native, repeated options are lists."""
        config = self.config(
            """
            listen = ["tcp:1", "tcp6:1"]
            proxy-protocol = ["tcp6:1"]
            certificate = "c.pem"
            client-ca = "/etc/ca.pem"
            user = ["alice:a:b"]
            "bucket" = ["a", "b"]
            anonymous = true
            mode = "memcached"
            no-flush = true
            memory-limit = 1073741824
            max-value = "2MiB"
            refuse-when-full = true
            max-connections = 7
            handshake-timeout = 1.5
            close-timeout = 2
            on-rotate = "drain"
            watch-interval = 0
            plain = ["unix:/run/kv.sock"]
            node-listen = "tcp:2"
            node-name = "kv@localhost"
            node-cookie-file = "cookie"
            node-connect = ["a@b:3"]
            node-ticktime = 30
            epmd = "none"
            """
        )
        here = self.path.parent
        self.assertEqual(
            config,
            Config(
                listen=("tcp:1", "tcp6:1"),
                proxy_protocol=frozenset({1}),
                certificate=here / "c.pem",
                client_ca=Path("/etc/ca.pem"),
                users=(User("alice", "a:b"),),
                buckets=("a", "b"),
                anonymous=True,
                mode=Mode.MEMCACHED,
                allow_flush=False,
                memory_limit=1024**3,
                max_value=2 * 1024**2,
                evict=False,
                max_connections=7,
                handshake_timeout=1.5,
                close_timeout=2.0,
                on_rotate=OnRotate.DRAIN,
                watch_interval=0.0,
                plain=("unix:/run/kv.sock",),
                nodes=NodeConfig(
                    listen="tcp:2",
                    name="kv@localhost",
                    cookie_file=here / "cookie",
                    connect=(NodeAddress("a@b", 3),),
                    ticktime=30.0,
                    epmd=None,
                ),
            ),
        )

    def test_false(self) -> None:
        """A flag that is false is as if it were not there, but where that has a meaning."""
        config = self.config("allow-flush = false\nrefuse-when-full = false\nanonymous = false\n")
        self.assertEqual(config, Config(anonymous=False))
        self.assertEqual(
            self.config("proxy-protocol = true"), Config(proxy_protocol=frozenset({0}))
        )

    def test_command_line_wins(self) -> None:
        """An option of the command line replaces the file's, a list as a whole."""
        text = """
            listen = ["tcp:1:interface=::1"]
            proxy-protocol = true
            max-connections = 7
            allow-flush = true
            bucket = ["a", "b"]
        """
        config = self.config(
            text, "--listen", "unix:/x", "--max-connections", "8", "--no-flush", "-b", "c"
        )
        self.assertEqual(
            config,
            Config(listen=("unix:/x",), max_connections=8, allow_flush=False, buckets=("c",)),
        )

    def test_sources(self) -> None:
        """For each value there is where it comes from; a password is not shown."""
        options = self.options(
            '\ufeff# ours\nmax-connections = 7\nuser = [\n"alice:hunter2"]\n\nmax-value = "1MiB"\n',
            "--max-value",
            "2MiB",
        )
        assert options.kvtls_config is not None
        rows = {row["name"]: row for row in describe(options.kvtls_config, options.settings)}
        self.assertEqual(list(rows), list(OPTIONS))
        for name, value, source in (
            ("max-connections", 7, f"{self.path}:2"),
            ("user", ["alice:***"], f"{self.path}:3"),
            ("max-value", 2 * 1024**2, "command line"),
            ("memory-limit", 64 * 1024**2, "default"),
            ("anonymous", False, "default"),
            ("mode", "couchbase", "default"),
            ("node-name", None, "default"),
        ):
            self.assertEqual(rows[name], {"name": name, "value": value, "source": source})
        self.assertNotIn("hunter2", repr(rows))

    def test_program(self) -> None:
        """A program that makes its configuration itself is a source, too."""
        rows = {row["name"]: row for row in describe(Config(max_connections=5), None)}
        self.assertEqual(rows["max-connections"]["source"], "program")
        self.assertEqual(rows["max-value"]["source"], "default")


class MistakeTests(FileCase):
    """What a file cannot say."""

    def test_table_of_the_page(self) -> None:
        """Each mistake of the documentation has the message that stands there, and its line."""
        rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
        self.assertGreaterEqual(len(rows), 25)
        for line, message in rows:
            where = f"--config {self.path}:3: "
            said = self.refused(f"# a file\nwatch-interval = 1\n{line}\n")
            if message.startswith("node-listen"):  # what is missing stands on no line
                where = "--"
                said = said.partition(" (see")[0]
            self.assertEqual(said.partition(" (see")[0], where + message)

    def test_the_page_s_file(self) -> None:
        """The example of the documentation is good."""
        text = PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
        self.assertEqual(self.config(text).max_connections, 20000)

    def test_no_file(self) -> None:
        """What is no file, or none of ours, is named."""
        for content, word in (
            (b"\xff = 1", "kvtls.toml:1: is not UTF-8"),
            (b"mode = 'a'\nx = '\xff'\n", "kvtls.toml:2: is not UTF-8"),
            (b"#" * (MAX_FILE + 1), "is larger than"),
            (b"mode = 'memcached'\nmode = 'memcached'\n", "a key is given twice"),
        ):
            self.assertIn(word, self.refused(content))
        written = io.StringIO()
        with contextlib.redirect_stderr(written):
            self.assertRaises(SystemExit, Options().parseOptions, ["--config", "/no/such"])
        self.assertIn("--config /no/such: cannot be read: No such file", written.getvalue())

    def test_secrets(self) -> None:
        """Whatever is wrong with a line that has a password, the password is not repeated."""
        for line in (
            'user = ["alice:hunter2", "alice:hunter2"]',
            'user = "alice:hunter2"',
            'user = [["alice:hunter2"]]',
            'user = [":hunter2"]',
            "user = [4711]",
            'user = {alice = "hunter2"}',
            '[user]\nalice = "hunter2"',
            'users = ["alice:hunter2"]',
            'store = "redis://alice:hunter2@localhost"',
            'store = "redis://:hunter2@localhost/x"',
            'store = "redis://hunt/er:hunter2@localhost"',
            'store = "redis://localhost?password=hunter2"',
            'store = "redis://localhost?a=1&Auth-Token=hunter2&a=2"',
            'store = "redis://alice:hunter2@localhost?a=1&a=2"',
            'store = "rediss+cluster://alice:hunter2@a,b"',
            'store = "memcached://alice:hunter2@localhost"\nmode = "memcached"',
            'store = "memory:?secret=hunter2"',
            'store = "memory://alice:hunter2@localhost"',
            'store = "file:x?password=hunter2"',
            'store = "mongodb://alice:hunter2@localhost"',
            'store = ["redis://alice:hunter2@localhost"]',
        ):
            text = f"listen = ['tcp:0:interface=127.0.0.1']\nstate-dir = 'state'\n{line}\n"
            written = io.StringIO()
            try:
                with contextlib.redirect_stderr(written):
                    self.options(text)
            except SystemExit:
                said = written.getvalue()
            else:
                said = self.not_served(text)
            self.assertIn("kvtls.toml:3: ", said, line)
            self.assertNotRegex(said, "hunter2|4711", line)

    def not_served(self, text: str) -> str:
        """Return why no service can be made of a file that is good by itself."""
        options = self.options(text)
        assert options.kvtls_config is not None
        error = self.assertRaises(ConfigError, make_stores, options.kvtls_config, Clock())
        assert options.settings is not None
        return str(options.settings.relabelled(error))

    def test_twice(self) -> None:
        """One file, and one value of each option that is no list."""
        for arguments in (("--config", "x"), ("--certificate", "a", "--certificate", "b")):
            self.assertIn("given twice", self.refused("", *arguments))

    def test_every_option_is_documented(self) -> None:
        """The page of options has a row for each, and for nothing else."""
        text = OPTIONS_PAGE.read_text(encoding="utf-8")
        named = set(re.findall(r"^\| `--([a-z-]+)`", text, re.MULTILINE))
        self.assertEqual(named - {"check", "config"}, set(OPTIONS))
