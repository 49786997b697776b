"""Node links as a part of the service: options, files, life, rotation."""

from __future__ import annotations

import io
import os
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import (
    ClientAuth,
    Config,
    NodeAddress,
    NodeConfig,
    parse_epmd,
    parse_node_address,
)
from kvproto.dist import LinkRotation, NodeController, RestartReport
from kvproto.errors import CommandError, ConfigError
from kvproto.listeners import AcceptorService, Ledger, Limits
from kvproto.nodes import LISTENER, NodeService, Restarts, node_files, read_cookie
from kvproto.tap import Options
from kvproto.testing.certificates import root_authority
from kvproto.testing.scripted import ScriptedTransport
from kvproto.tls import CredentialFiles, ServerPolicy
from kvproto.tls.files import Options as CredentialOptions
from kvproto.tls.files import Purpose
from tests.dist.pairs import Pair, make_node
from tests.listeners.support import FakeEndpoint, LivelyTransport
from tests.reactors import ResolvingReactor

OK = RestartReport()
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
            ({"ticktime": 0.5}, "--node-ticktime"),
            ({"ticktime": float("nan")}, "--node-ticktime"),
            ({"ticktime": float("inf")}, "--node-ticktime"),
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


class CookieTests(SynchronousTestCase):
    """The secret of the cluster."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def write(self, content: bytes, mode: int = 0o600) -> Path:
        self.path.write_bytes(content)
        self.path.chmod(mode)
        return self.path

    def refused(self, path: Path) -> str:
        error = str(self.assertRaises(ConfigError, read_cookie, path))
        self.assertIn("--node-cookie-file", error)
        return error

    def test_read(self) -> None:
        """White space around it is no part of it."""
        for content in (b"secret", b"secret\n", b"  secret \r\n"):
            self.assertEqual(read_cookie(self.write(content)), b"secret")
        self.assertEqual(read_cookie(self.write(b"s", 0o400)), b"s")

    def test_private(self) -> None:
        """A file that others may read, write or run is refused, with the way out."""
        for mode in (0o640, 0o604, 0o620, 0o601, 0o644):
            said = self.refused(self.write(b"secret", mode))
            self.assertIn(f"{mode:04o}", said)
            self.assertIn("chmod 600", said)

    def test_no_cookie(self) -> None:
        """Nothing, something longer than an atom, or with spaces inside is none."""
        for content in (b"", b" \n", b"x" * 256, b"two words", b"a\nb", b"\xff"):
            said = self.refused(self.write(content))
            self.assertNotIn("words", said)
        self.assertEqual(len(read_cookie(self.write(b"x" * 255))), 255)

    def test_no_file(self) -> None:
        """What is missing, a directory or a pipe is refused at once."""
        self.assertIn("No such file", self.refused(self.path))
        self.path.mkdir()
        self.assertIn("directory", self.refused(self.path))
        pipe = self.path / "pipe"
        os.mkfifo(pipe, 0o600)
        self.assertIn("regular", self.refused(pipe))


class FilesTests(SynchronousTestCase):
    """Which credential files node links use."""

    spelt = CredentialOptions(
        "--certificate", "--private-key", "--key-passphrase-file", "--client-ca", "--crl"
    )
    data = CredentialFiles(Path("c"), Path("k"), Path("p"), Path("ca"), Path("crl"), spelt)

    def test_data(self) -> None:
        """Without own files all are the data listener's."""
        self.assertEqual(node_files(NodeConfig(**NEEDED), self.data), self.data)

    def test_own_chain(self) -> None:
        """An own certificate comes with its own key; trust stays the data listener's."""
        files = node_files(NodeConfig(**NEEDED, certificate=Path("n")), self.data)
        self.assertEqual(
            files.named(),
            [
                ("--node-certificate", Path("n")),
                ("--client-ca", Path("ca")),
                ("--crl", Path("crl")),
            ],
        )

    def test_own_trust(self) -> None:
        """Own anchors do not come with somebody else's revocation lists."""
        own = NodeConfig(**NEEDED, ca=Path("n"))
        self.assertTrue(own.has_own_credentials)
        self.assertEqual(
            node_files(own, self.data).named(),
            [
                ("--certificate", Path("c")),
                ("--private-key", Path("k")),
                ("--key-passphrase-file", Path("p")),
                ("--node-ca", Path("n")),
            ],
        )

    def test_calling(self) -> None:
        """A node that calls others shows its certificate as a client, too."""
        calling = NodeConfig(**NEEDED, connect=(NodeAddress("a@h", 1),))
        self.assertIs(node_files(calling, self.data).purpose, Purpose.BOTH)


class ServiceCase(SynchronousTestCase):
    """A node service on a reactor in memory, with real credentials."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        cookie = self.folder / "cookie"
        cookie.write_bytes(b"secret")
        cookie.chmod(0o600)
        self.write()
        (self.folder / "ca.pem").write_bytes(root_authority().certificate_pem)
        self.data = CredentialFiles(self.folder / "pair.pem", client_ca=self.folder / "ca.pem")
        self.reactor = ResolvingReactor()
        self.reactor.advance(time.time())
        self.cookie = cookie
        self.commands: list[str] = []

    def write(self) -> None:
        identity = root_authority().issue("kv", ("localhost",))
        (self.folder / "pair.pem").write_bytes(identity.chain_pem + identity.key_pem)

    def make(self, **changes: Any) -> NodeService:
        settings = {**NEEDED, "cookie_file": self.cookie, "epmd": None, **changes}
        service = NodeService(
            NodeConfig(**settings),
            self.data,
            ServerPolicy(),
            Ledger(self.reactor, Limits()),
            self.reactor,
            in_thread=execute,
            control=self.commands.append,
        )
        service.acceptor = AcceptorService(
            LISTENER,
            FakeEndpoint(),
            NodeController(service.node),
            Ledger(self.reactor, Limits()),
            self.reactor,
        )
        return service

    def start(self, **changes: Any) -> NodeService:
        service = self.make(**changes)
        self.assertIs(self.successResultOf(service.startService()), True)
        return service

    def stop(self, service: NodeService) -> None:
        stopped = service.stopService()
        self.reactor.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class NodeServiceTests(ServiceCase):
    """Start, stop, and what a new generation means."""

    def test_clients_are_verified(self) -> None:
        """Whatever the data listener asks of its clients, nodes must show a certificate."""
        service = self.start()
        policy = service.rotation.current.policy
        self.assertIs(policy.client_auth, ClientAuth.REQUIRED)
        self.stop(service)

    def test_processes(self) -> None:
        """The built-in process has the name that was asked for."""
        service = self.start(process="steer")
        self.assertEqual(service.status()["processes"], ["net_kernel", "steer"])
        self.assertNotIn("secret", repr(service.status()))
        self.stop(service)

    def test_ticktime(self) -> None:
        """The tick time of the cluster is the operator's to say."""
        for changes, expected in (({}, 60.0), ({"ticktime": 8}, 8)):
            service = self.make(**changes)
            self.assertEqual(service.node.settings.ticktime, expected)

    def test_epmd_needs_a_port(self) -> None:
        """A UNIX socket cannot be registered."""
        for epmd, refused in ((("127.0.0.1", 4369), True), (None, False)):
            changes = {"listen": f"unix:{self.folder / 'sock'}", "epmd": epmd}
            if refused:
                error = self.assertRaises(ConfigError, self.make, **changes)
                self.assertIn("--epmd", str(error))
            else:
                self.make(**changes)

    def test_unchanged(self) -> None:
        """Files that hold what is served restart nothing, unless that is asked for."""
        service = self.start()
        began: list[int] = []

        def told(generation: Any) -> None:
            began.append(generation.number)

        with service.before_restart(told):
            verdict, report = self.successResultOf(service.rotate())
        self.assertEqual((verdict.ok, verdict.changed, report, began), (True, False, OK, []))
        self.assertEqual(service.acceptor.status()["restarts"], 0)
        with service.before_restart(told), service.before_restart(told):
            verdict, report = self.successResultOf(service.restart_tls())
        self.assertEqual((verdict.changed, report, began), (False, OK, [1, 1]))
        self.assertEqual(service.acceptor.status()["restarts"], 1)
        self.stop(service)

    def test_changed(self) -> None:
        """New files restart the listener, once, and whoever waits hears of it before."""
        service = self.start()
        self.write()
        began: list[int] = []
        with service.before_restart(lambda generation: began.append(generation.number)):
            both = [service.restart_tls(), service.rotate()]
        for verdict, report in map(self.successResultOf, both):
            self.assertEqual((verdict.ok, verdict.generation, report), (True, 2, OK))
        self.assertEqual(began, [2])
        self.assertEqual(service.acceptor.status()["restarts"], 1)
        verdict, report = self.successResultOf(service.rollback())
        self.assertEqual((verdict.ok, verdict.generation, report), (True, 3, OK))
        self.assertEqual(service.acceptor.status()["restarts"], 2)
        self.stop(service)

    def test_bad_files(self) -> None:
        """Files that cannot be served restart nothing, even if a restart was asked for."""
        service = self.start()
        (self.folder / "ca.pem").write_bytes(root_authority().issue("leaf").chain_pem[:1000])
        with service.before_restart(lambda _: self.fail("no link is to be closed")):
            asked = service.restart_tls()
        self.reactor.pump([0.5] * 10)
        verdict, _ = self.successResultOf(asked)
        self.assertIs(verdict.ok, False)
        self.assertEqual(service.acceptor.status()["restarts"], 0)
        self.stop(service)

    def test_drained(self) -> None:
        """While it has left the cluster, new credentials do not bring it back."""
        service = self.start()
        self.successResultOf(service.close())
        self.write()
        verdict, report = self.successResultOf(service.rotate())
        self.assertEqual((verdict.generation, report), (2, OK))
        self.assertEqual(service.acceptor.status()["state"], "stopped")
        self.assertIs(self.successResultOf(service.open()), True)
        self.stop(service)

    def test_rotated_while_it_leaves(self) -> None:
        """New credentials wait for the links that a stop is still ending."""
        service = self.start()
        transport = LivelyTransport(self.reactor)
        service.acceptor._binding._port.connect(transport)
        closed = service.close()
        self.write()
        rotated = service.rotate()
        self.assertNoResult(rotated)
        self.reactor.advance(0)
        self.assertTrue(transport.closed)
        self.successResultOf(closed)
        self.assertEqual(self.successResultOf(rotated)[1], OK)
        self.stop(service)

    def test_calls_with_the_serving_generation(self) -> None:
        """Each attempt uses, and tells, the credentials of its moment; older ones are cut."""
        service = self.start(connect=(NodeAddress("e1@127.0.0.1", 17001),))
        first = self.connect()
        self.assertEqual(first._wrappedProtocol.generation, 1)
        self.write()
        rotating = service.rotate()
        first.connectionLost(Failure(ConnectionAborted()))
        verdict, _ = self.successResultOf(rotating)
        self.assertEqual(verdict.generation, 2)
        second = self.connect()
        self.assertEqual(second._wrappedProtocol.generation, 2)
        stopped = service.stopService()
        second.connectionLost(Failure(ConnectionAborted()))
        self.successResultOf(stopped)

    def connect(self) -> Any:
        """Let the last connect succeed; return the protocol."""
        self.reactor.advance(0)
        protocol: Any = self.reactor.tcpClients[-1][2].buildProtocol(None)
        ScriptedTransport().connect(protocol)
        return protocol

    def test_registration(self) -> None:
        """Epmd hears the port when it is known, and is left when the service stops."""
        service = self.start(epmd=("127.0.0.1", 4369))
        self.reactor.advance(0)
        host, port, *_ = self.reactor.tcpClients[-1]
        self.assertEqual((host, port), ("127.0.0.1", 4369))
        transport = ScriptedTransport()
        protocol: Any = self.reactor.tcpClients[-1][2].buildProtocol(None)
        transport.connect(protocol)
        own = int(service.acceptor.address.rpartition(":")[2])
        self.assertEqual(transport.received[2:5], b"\x78" + own.to_bytes(2, "big"))
        epmd = service.status()["epmd"]
        self.assertEqual((epmd["name"], epmd["port"]), ("kv", own))
        stopped = service.stopService()
        protocol.connectionLost(Failure(ConnectionAborted()))
        self.successResultOf(stopped)
        self.assertIsNone(service.status()["epmd"])


class RestartsTests(SynchronousTestCase):
    """Who hears how a restart ended."""

    def setUp(self) -> None:
        self.clock = Clock()
        ours = make_node(self.clock, "kv@host")
        self.pair = Pair(make_node(self.clock, "erl@host"), ours)
        self.pair.flush()
        self.node = ours.node
        self.listeners: Deferred[list[str]] = Deferred()
        self.restarts = Restarts(LinkRotation(self.node, [], lambda: self.listeners))

    def test_missing(self) -> None:
        """The first half ends with the listener, the report names who did not return."""
        self.assertEqual(self.node.nodes(), ["erl@host"])
        first = self.restarts.begin()
        report = self.restarts.report()
        self.node.disconnect("erl@host")
        self.pair.flush()
        self.listeners.callback([])
        self.assertEqual(self.successResultOf(first), ())
        self.assertNoResult(report)
        self.clock.advance(30)
        self.assertEqual(self.successResultOf(report).nodes, ("erl@host",))
        self.assertEqual(self.restarts.last.nodes, ("erl@host",))
        self.assertEqual(self.successResultOf(self.restarts.report()), self.restarts.last)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """Who waits when the service stops is told so, and no timer stays."""
        self.restarts.begin()
        report = self.restarts.report()
        self.node.disconnect("erl@host")
        self.pair.flush()
        self.listeners.callback([])
        self.restarts.stop()
        self.assertEqual(self.failureResultOf(report, CommandError).value.code, "cancelled")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_in_the_first_half(self) -> None:
        """A restart that is at its first half when the service stops waits for nobody."""
        self.restarts.begin()
        report = self.restarts.report()
        self.node.disconnect("erl@host")
        self.pair.flush()
        self.restarts.stop()
        self.listeners.callback([])
        self.failureResultOf(report, CommandError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_broken(self) -> None:
        """A restart that fails is an answer, too."""
        first = self.restarts.begin()
        report = self.restarts.report()
        self.listeners.errback(ZeroDivisionError())
        self.failureResultOf(first, ZeroDivisionError)
        self.failureResultOf(report, ZeroDivisionError)
