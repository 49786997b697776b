"""Node links as a part of the service: options, files, life, rotation."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Config, NodeAddress, NodeConfig, parse_epmd, parse_node_address
from kvproto.errors import ConfigError
from kvproto.tap import Options

NEEDED: dict[str, Any] = {
    "listen": "tcp:0:interface=127.0.0.1",
    "name": "kv@localhost",
    "cookie_file": Path("cookie"),
}
LISTEN = ("--node-listen", "tcp:1", "--node-name", "kv@h", "--node-cookie-file", "c")


class NodeConfigTests(SynchronousTestCase):
    """What can be said of node links, and what contradicts itself."""

    def refused(self, **changes: Any) -> str:
        return str(self.assertRaises(ConfigError, NodeConfig, **{**NEEDED, **changes}))

    def test_contradictions(self) -> None:
        """An error names the option that is wrong."""
        for changes, option in (
            ({"name": "kv"}, "--node-name"),
            ({"name": "kv@a@b"}, "--node-name"),
            ({"name": "@h"}, "--node-name"),
            ({"name": "k v@h"}, "--node-name"),
            ({"name": "x" * 254 + "@h"}, "--node-name"),
            ({"process": ""}, "--node-process"),
            ({"process": "net_kernel"}, "--node-process"),
            ({"private_key": Path("k")}, "--node-key"),
            ({"key_passphrase_file": Path("p")}, "--node-key-passphrase-file"),
            ({"crl": Path("crl")}, "--node-crl"),
            ({"connect": (NodeAddress("kv@localhost"),)}, "--node-connect"),
            ({"connect": (NodeAddress("a@h"), NodeAddress("a@h", 1))}, "--node-connect"),
            ({"connect": (NodeAddress("a@h"),), "epmd": None}, "a@h:PORT"),
        ):
            self.assertIn(option, self.refused(**changes))

    def test_trust_is_needed(self) -> None:
        """Nodes are verified always, so somebody must be said to issue their certificates."""
        error = self.assertRaises(ConfigError, Config, nodes=NodeConfig(**NEEDED))
        self.assertIn("--node-ca", str(error))
        Config(nodes=NodeConfig(**NEEDED, ca=Path("ca")))
        Config(nodes=NodeConfig(**NEEDED), client_ca=Path("ca"))

    def test_development_certificate_stays_here(self) -> None:
        """A development certificate is not shown to other machines."""
        wide = NodeConfig(**{**NEEDED, "listen": "tcp:17001"}, ca=Path("ca"))
        error = self.assertRaises(ConfigError, Config, nodes=wide)
        self.assertIn("--node-listen", str(error))

    def test_addresses(self) -> None:
        """A node to connect to may carry a port, and an IPv6 host."""
        for text, expected in (
            ("a@h", NodeAddress("a@h")),
            ("a@h.example:17001", NodeAddress("a@h.example", 17001)),
            ("a@::1", NodeAddress("a@::1")),
            ("a@[::1]:17001", NodeAddress("a@::1", 17001)),
        ):
            self.assertEqual(parse_node_address(text), expected)
        for text in ("a", "@h", "a@", "a@h:", "a@h:0", "a@h:65536", "a@[::1]", "a@b@c"):
            error = self.assertRaises(ConfigError, parse_node_address, text)
            self.assertIn("--node-connect", str(error))

    def test_epmd(self) -> None:
        """An epmd has host and port; there may be none."""
        self.assertEqual(parse_epmd("10.0.0.1:4369"), ("10.0.0.1", 4369))
        self.assertEqual(parse_epmd("[::1]:4369"), ("::1", 4369))
        self.assertIsNone(parse_epmd("none"))
        for text in ("", "4369", ":4369", "h:x", "::1:4369"):
            self.assertRaises(ConfigError, parse_epmd, text)


class NodeOptionsTests(SynchronousTestCase):
    """The command line of node links."""

    def test_all(self) -> None:
        """Every option reaches its field."""
        options = Options()
        options.parseOptions(
            [
                *LISTEN,
                *["--node-certificate", "cert", "--node-key", "key", "--node-ca", "ca"],
                *["--node-key-passphrase-file", "p", "--node-crl", "crl", "--certificate", "d"],
                *["--node-process", "steer", "--epmd", "none"],
                *["--node-connect", "a@h:1", "--node-connect", "b@h:2"],
            ]
        )
        assert options.kvtls_config is not None
        self.assertEqual(
            options.kvtls_config.nodes,
            NodeConfig(
                listen="tcp:1",
                name="kv@h",
                cookie_file=Path("c"),
                certificate=Path("cert"),
                private_key=Path("key"),
                key_passphrase_file=Path("p"),
                ca=Path("ca"),
                crl=Path("crl"),
                epmd=None,
                connect=(NodeAddress("a@h", 1), NodeAddress("b@h", 2)),
                process="steer",
            ),
        )

    def test_none(self) -> None:
        """Without these options there is no node."""
        options = Options()
        options.parseOptions([])
        assert options.kvtls_config is not None
        self.assertIsNone(options.kvtls_config.nodes)

    def test_incomplete(self) -> None:
        """What is missing is named; none of the options is ignored in silence."""
        for arguments, word in (
            (["--node-name", "kv@h"], "--node-listen"),
            (["--node-connect", "a@h"], "--node-listen"),
            (["--epmd", "none"], "--node-listen"),
            (["--node-listen", "tcp:1", "--node-cookie-file", "c"], "--node-name"),
            (["--node-listen", "tcp:1", "--node-name", "kv@h"], "--node-cookie-file"),
            ([*LISTEN, "--epmd", "somewhere"], "--epmd"),
            ([*LISTEN, "--node-connect", "a"], "NAME@HOST"),
        ):
            said = io.StringIO()
            with redirect_stderr(said):
                self.assertRaises(SystemExit, Options().parseOptions, arguments)
            self.assertIn(word, said.getvalue())
