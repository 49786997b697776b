"""A real Erlang VM, and a kvproto node in this process for it to meet.

The VM evaluates expressions that it reads from its standard input, so that one
VM (0.3 s to start) serves many checks.
"""

from __future__ import annotations

import atexit
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from zope.interface import implementer

from kvproto.config import OnRotate
from kvproto.dist import (
    Backoff,
    BuiltinProcess,
    Connector,
    Node,
    NodeController,
    NodeEvent,
    NodeSettings,
)
from kvproto.dist.epmd import Locate
from kvproto.listeners import AcceptorService, Ledger, Limits, server_endpoint
from kvproto.testing.certificates import Authority, Identity
from kvproto.tls import KVTLSFactory
from tests.integration.peers import freeze, require
from tests.integration.service import PATIENCE
from tests.ports import free_port

__all__ = [
    "COOKIE",
    "Directory",
    "Epmd",
    "ErlangNode",
    "SecuredClientEndpoint",
    "Site",
    "Tls",
    "client_endpoint",
    "shared_vm",
    "write_credentials",
]

reactor: Any = installed_reactor

COOKIE = "secret"

EVALUATOR = """
F = fun(F) ->
  case io:get_line("") of
    eof -> halt();
    {error, _} -> halt();
    Line ->
      R = try
        {ok, T, _} = erl_scan:string(Line),
        {ok, E} = erl_parse:parse_exprs(T),
        {value, V, _} = erl_eval:exprs(E, []),
        V
      catch C:X -> {caught, C, X} end,
      io:format("~n@@~0tp~n", [R]),
      F(F)
  end
end,
spawn(fun() -> io:format("~n@@ready~n"), F(F) end).
"""

OPTIONS = """[
 {{server, [{{certfile, "{d}/erl.pem"}}, {{keyfile, "{d}/erl.key"}}, {{cacertfile, "{d}/ca.pem"}},
            {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}, {{versions, {versions}}}]}},
 {{client, [{client_certificate}{{cacertfile, "{d}/ca.pem"}},
            {{verify, verify_peer}}, {{versions, {versions}}},
            {{verify_fun,
              {{fun (C, valid_peer, S) ->
                     persistent_term:put(peer_serial, element(3, element(2, C))), {{valid, S}};
                    (_, valid, S) -> {{valid, S}};
                    (_, {{extension, _}}, S) -> {{unknown, S}};
                    (_, {{bad_cert, R}}, _) -> {{fail, R}} end, []}}}}]}}
].
"""
"""The verify function lets a test read the serial of the distribution's certificate."""


def write_credentials(
    directory: Path,
    authority: Authority,
    identity: Identity,
    *,
    versions: str = "['tlsv1.3','tlsv1.2']",
    client_certificate: bool = True,
    any_host: bool = False,
) -> None:
    """Write what a VM's ``-ssl_dist_optfile`` names."""
    (directory / "ca.pem").write_bytes(authority.certificate_pem)
    (directory / "erl.pem").write_bytes(identity.chain_pem)
    (directory / "erl.key").write_bytes(identity.key_pem)
    own = f'{{certfile, "{directory}/erl.pem"}}, {{keyfile, "{directory}/erl.key"}}, '
    if any_host:
        # Erlang looks for a literal address among the DNS names of a certificate.
        own += "{customize_hostname_check, [{match_fun, fun(_, _) -> true end}]}, "
    (directory / "ssl_dist.conf").write_text(
        OPTIONS.format(
            d=directory, versions=versions, client_certificate=own if client_certificate else ""
        )
    )


class ErlangNode:
    """A VM that runs until it is killed.

    Args:
        name: ``NAME@HOST``.
        directory: Holds ``ssl_dist.conf`` and becomes the VM's home.
        port: Where the VM looks for every peer (``-erl_epmd_port``).
        arguments: Further arguments of ``erl``.
        cookie: The cluster's secret.
        listen: Whether it accepts links itself; it needs an epmd for that.
        proto: What carries the distribution.
        environment: Further variables; with one, peers are looked up by epmd, not `port`.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        port: int,
        arguments: tuple[str, ...] = (),
        *,
        cookie: str = COOKIE,
        listen: bool = False,
        proto: str = "inet_tls",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [
                require("erl", "erlang-base"),
                *("-noshell", "-name" if ":" in name else "-sname", name, "-setcookie", cookie),
                *("-proto_dist", proto, "-ssl_dist_optfile", str(directory / "ssl_dist.conf")),
                *("-start_epmd", "false"),
                *(() if environment else ("-erl_epmd_port", str(port))),
                *(() if listen else ("-dist_listen", "false")),
                *arguments,
                *("-eval", EVALUATOR),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"HOME": str(directory), "PATH": "/usr/bin:/bin", **(environment or {})},
            cwd=directory,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self.output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._lock = threading.Lock()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            if line.startswith("@@"):
                self._answers.put(line[2:])
            elif line:
                self.output.append(line)
        self._answers.put("")

    def _next(self, seconds: float) -> str:
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError("erl did not answer:\n" + "\n".join(self.output[-20:])) from None

    def wait_until_ready(self, seconds: float = PATIENCE) -> None:
        """Wait for the VM to have started."""
        assert self._next(seconds) == "ready", "\n".join(self.output)

    def ask_now(self, expression: str, seconds: float = PATIENCE) -> str:
        """Evaluate an expression, blocking; the result as Erlang prints it."""
        with self._lock:
            assert self.process.stdin is not None
            line = " ".join(expression.split()) + ".\n"
            self.process.stdin.write(line.encode("utf-8"))
            self.process.stdin.flush()
            return self._next(seconds)

    def ask(self, expression: str, seconds: float = PATIENCE) -> Deferred[str]:
        """Evaluate an expression in the VM while this process' reactor runs."""
        return deferToThread(self.ask_now, expression, seconds)

    def freeze(self) -> None:
        """Stop it in the middle of everything."""
        freeze(self.process)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a goodbye."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@implementer(IOpenSSLServerConnectionCreator, IOpenSSLClientConnectionCreator)
class Tls:
    """Mutual TLS from one identity, replaceable while it is used.

    Attributes:
        identity: Used for every connection made from now on.
        versions: OpenSSL's minimum and maximum version, 0 for any.
    """

    def __init__(self, authority: Authority, identity: Identity) -> None:
        self.authority = authority
        self.identity = identity
        self.versions = (SSL.TLS1_2_VERSION, 0)
        self.seen: list[str] = []

    def _context(self) -> SSL.Context:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(self.versions[0])
        context.set_max_proto_version(self.versions[1])
        context.use_certificate(crypto.X509.from_cryptography(self.identity.certificate))
        context.use_privatekey(crypto.PKey.from_cryptography_key(self.identity.key))
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(self.authority.certificate))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_info_callback(self._information)
        return context

    def _information(self, connection: SSL.Connection, where: int, _result: int) -> None:
        if where & SSL.SSL_CB_HANDSHAKE_DONE:
            self.seen.append(connection.get_protocol_version_name())

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        return SSL.Connection(self._context(), None)

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        connection = SSL.Connection(self._context(), None)
        connection.set_tlsext_host_name(b"localhost")
        return connection


@implementer(IStreamClientEndpoint)
class SecuredClientEndpoint:
    """TLS on a TCP endpoint, with whatever credentials count at that moment."""

    def __init__(self, tls: Tls, port: int) -> None:
        self._tls = tls
        self._endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port, timeout=PATIENCE)

    def connect(self, factory: Any) -> Deferred[Any]:
        wrapped = KVTLSFactory(self._tls, True, factory, reactor)
        return self._endpoint.connect(wrapped)


class Site:
    """A node of ours with a TLS listener, in the reactor of the test.

    Args:
        port: Where it listens.
        authority: Who signs its certificate, and its peers'.
        address: On which of its addresses.
        settings: Changes to `NodeSettings`.
    """

    def __init__(
        self, port: int, authority: Authority, address: str = "127.0.0.1", **settings: Any
    ) -> None:
        self.authority = authority
        self.tls = Tls(authority, authority.issue("kv", ("localhost",)))
        chosen = {"name": "kv@localhost", "cookie": COOKIE.encode(), **settings}
        self.node = Node(NodeSettings(**chosen), reactor)
        self.commands: list[str] = []
        self.node.register("kvtls", BuiltinProcess(reactor, self._control))
        self.events: list[NodeEvent] = []
        self.node.watch(self.events.append)
        self.ledger = Ledger(reactor, Limits(unauthenticated=64))
        self.acceptor = AcceptorService(
            "node",
            server_endpoint(reactor, f"tcp:{port}:interface={address.replace(':', chr(92) + ':')}"),
            NodeController(self.node),
            self.ledger,
            reactor,
            wrap=lambda factory: KVTLSFactory(self.tls, False, factory, reactor),
            drain_timeout=0,
        )
        self.connectors: list[Connector] = []

    def _control(self, command: str) -> dict[str, Any]:
        self.commands.append(command)
        return {"command": command, "nodes": len(self.node.nodes())}

    async def start(self) -> None:
        """Listen."""
        await self.acceptor.startService()

    async def stop(self) -> None:
        """Leave nothing behind."""
        for connector in self.connectors:
            await connector.stopService()
        await self.acceptor.stopService()
        await self.node.stop()

    def connect_to(self, name: str, locate: Locate) -> Connector:
        """Keep the node linked with another one."""
        connector = Connector(
            self.node,
            name,
            locate,
            lambda _host, number: SecuredClientEndpoint(self.tls, number),
            reactor,
            backoff=Backoff(first=0.05, longest=0.5),
        )
        self.connectors.append(connector)
        connector.startService()
        return connector

    async def restart_listener(self) -> list[str]:
        """Restart as a rotation does: new certificate, all links closed."""
        self.tls.identity = self.authority.issue("kv", ("localhost",))
        result = await self.acceptor.restart(OnRotate.DISCONNECT)
        return [] if result["state"] == "listening" else ["node"]

    def until(self, name: str, *, up: bool) -> Deferred[NodeEvent]:
        """Wait for the next time that a node comes or goes, as this node sees it.

        A link is up at the node that was called one message before it is up at
        the caller, so each test waits at the end that it uses.
        """
        return until(self.node, name, up=up)


def until(node: Node, name: str, *, up: bool) -> Deferred[NodeEvent]:
    """Wait for the next time that another node comes or goes, as a node of ours sees it."""

    def heard(event: NodeEvent) -> None:
        if event.name == name and event.up is up:
            unwatch()
            waiting.callback(event)

    waiting: Deferred[NodeEvent] = Deferred()
    unwatch = node.watch(heard)
    return waiting.addTimeout(PATIENCE, reactor)


def client_endpoint(port: int) -> TCP4ClientEndpoint:
    """Return the endpoint of a port on 127.0.0.1, without TLS."""
    return TCP4ClientEndpoint(reactor, "127.0.0.1", port, timeout=PATIENCE)


class Epmd:
    """A real epmd on a port of its own."""

    def __init__(self, port: int) -> None:
        self.process = subprocess.Popen(
            [require("epmd", "erlang-base"), "-port", str(port)],
            env={"ERL_EPMD_ADDRESS": "127.0.0.1", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def wait(self, endpoint: TCP4ClientEndpoint) -> None:
        """Wait for it to listen."""
        for _ in range(250):
            try:
                protocol: Any = await endpoint.connect(Factory.forProtocol(Protocol))
            except ConnectError:
                await deferLater(reactor, 0.02)
            else:
                protocol.transport.abortConnection()
                return
        raise AssertionError("epmd does not listen")

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(PATIENCE)


class Directory:
    """A temporary directory that a class of tests shares."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="kvproto-dist-"))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class SharedVm:
    """A VM ``e1@localhost`` that many tests use, with its credentials and port.

    Args:
        arguments: Further arguments of ``erl``.
    """

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self.arguments = arguments
        self.authority = Authority.root()
        self.directory = Directory()
        write_credentials(
            self.directory.path, self.authority, self.authority.issue("erl", ("localhost",))
        )
        self.port = free_port()
        try:
            self.vm = ErlangNode("e1@localhost", self.directory.path, self.port, arguments)
            self.vm.wait_until_ready()
        except BaseException:
            self.directory.remove()
            raise

    def end(self) -> None:
        """Kill it."""
        self.vm.kill()
        self.directory.remove()


_shared: list[SharedVm] = []


def shared_vm(arguments: tuple[str, ...]) -> SharedVm:
    """Return the one VM with those arguments, the one of other arguments is killed.

    Trial calls no ``setUpClass``; the last VM ends with this process.
    """
    if _shared and _shared[0].arguments != arguments:
        _shared.pop().end()
    if not _shared:
        _shared.append(SharedVm(arguments))
    return _shared[0]


@atexit.register
def _end_shared_vm() -> None:
    while _shared:
        _shared.pop().end()
