"""``twistd kvtls`` as a node among real Erlang nodes: rotation, steering, its own calls."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.python import log
from twisted.trial.unittest import SynchronousTestCase

from kvproto.dist.flags import OURS
from kvproto.dist.framing import frame
from kvproto.testing.certificates import Authority, root_authority
from tests.dist.erlang import (
    COOKIE,
    Directory,
    Epmd,
    ErlangNode,
    write_credentials,
)
from tests.integration.live import (
    CredentialDirectory,
    ask,
    eventually,
    kvtls,
    new_server_identity,
    noop,
    status,
    trusting,
)
from tests.integration.service import PATIENCE, KvtlsProcess, run_kvtls
from tests.ports import free_port

KV = "'kv@localhost'"
KVTLS = "{kvtls,'kv@localhost'}"

WATCHER = """register(watcher, spawn(fun() ->
  net_kernel:monitor_nodes(true, [{node_type, all}]),
  Again = fun(_, _, 0) -> false;
             (Again, N, K) -> case net_kernel:connect_node(N) of
                 true -> true;
                 _ -> timer:sleep(20), Again(Again, N, K - 1) end end,
  Now = fun() -> erlang:system_time(millisecond) end,
  Watch = fun(Watch, Seen) -> receive
      {nodeup, _, _} -> Watch(Watch, [{up, Now()} | Seen]);
      {nodedown, N, _} ->
          spawn(fun() -> Again(Again, N, 200) end), Watch(Watch, [{down, Now()} | Seen]);
      {seen, P} -> P ! {seen, lists:reverse(Seen)}, Watch(Watch, Seen);
      clear -> Watch(Watch, [])
    end end,
  Watch(Watch, []) end))"""
"""Writes down when who comes and goes, and calls whoever went."""

SEEN = "(fun() -> watcher ! {seen, self()}, receive {seen, S} -> S after 50000 -> none end end)()"

IN_FLIGHT = f"""(fun() -> Me = self(), spawn(fun() ->
    Me ! {{ended, catch gen_server:call({KVTLS}, {{sleep, 30000}}, infinity)}} end), ok end)()"""
ENDED = """receive {ended, {'EXIT', {{nodedown, N}, _}}} -> {nodedown, N}; {ended, E} -> E
    after 50000 -> none end"""


class Clients:
    """Clients of the data listener that never stop coming, and one that never leaves.

    Args:
        service: Whose clients they are.
        context: What they trust.
    """

    def __init__(self, service: KvtlsProcess, context: ssl.SSLContext) -> None:
        self._service, self._context = service, context
        self._stopped = threading.Event()
        self.faults: list[str] = []
        self.connects = self.requests = 0
        self.longest = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=(work,)) for work in (self._come, self._stay)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, EOFError, AssertionError) as error:
            self.faults.append(repr(error))

    def _come(self) -> None:
        while not self._stopped.is_set():
            ask(self._service, self._context)
            self.connects += 1

    def _stay(self) -> None:
        with self._service.connect(self._context) as peer:
            while not self._stopped.is_set():
                began = time.monotonic()
                noop(peer)
                self.longest = max(self.longest, time.monotonic() - began)
                self.requests += 1
                # Not to starve what is measured beside it.
                self._stopped.wait(0.001)

    def stop(self) -> None:
        """Let them finish."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(PATIENCE)


class NodesCase(SynchronousTestCase):
    """A service with node links, and VMs that know where it is."""

    def setUp(self) -> None:
        self.files = CredentialDirectory()
        self.addCleanup(self.files.remove)
        self.files.trust(root_authority())
        self.directory = Directory()
        self.addCleanup(self.directory.remove)
        self.home = self.directory.path
        write_credentials(
            self.home, root_authority(), root_authority().issue("erl", ("localhost",))
        )
        self.cookie = self.home / "cookie"
        self.cookie.write_text(COOKIE + "\n")
        self.cookie.chmod(0o600)
        self.port = free_port()

    def node_options(self, *more: str) -> list[str]:
        return [
            *self.files.options,
            *("--node-listen", f"tcp:{self.port}:interface=127.0.0.1"),
            *("--node-name", "kv@localhost", "--node-cookie-file", str(self.cookie)),
            *(() if "--epmd" in more else ("--epmd", "none")),
            # What is rotated here is rotated by command.
            *(() if "--watch-interval" in more else ("--watch-interval", "0")),
            *more,
        ]

    def start(self, *more: str) -> KvtlsProcess:
        service = KvtlsProcess(*self.node_options(*more))
        self.addCleanup(service.__exit__, None, None, None)
        return service

    def vm(self, name: str, **options: Any) -> ErlangNode:
        """Start a VM that writes down who comes and goes."""
        vm = ErlangNode(f"{name}@localhost", self.home, self.port, **options)
        self.addCleanup(vm.kill)
        return vm

    def vms(self, *names: str) -> list[ErlangNode]:
        """Start VMs that are linked with the service."""
        started = [self.vm(name) for name in names]
        for vm in started:
            vm.wait_until_ready()
            vm.ask_now(WATCHER)
            self.check(vm, f"net_kernel:connect_node({KV})", "true")
        return started

    def check(self, vm: ErlangNode, expression: str, expected: str) -> None:
        self.assertEqual(vm.ask_now(expression), expected, expression)

    def seen(self, vm: ErlangNode) -> list[tuple[str, float]]:
        """Return what came and went, with Unix seconds."""
        found = re.findall(r"\{(up|down),(\d+)\}", vm.ask_now(SEEN))
        return [(word, int(moment) / 1000) for word, moment in found]

    def clear(self, *vms: ErlangNode) -> None:
        for vm in vms:
            self.assertEqual([word for word, _ in self.seen(vm)], ["up"])
            vm.ask_now("watcher ! clear")

    def wait_for_return(self, vm: ErlangNode) -> list[tuple[str, float]]:
        eventually(lambda: self.seen(vm)[-1:] and self.seen(vm)[-1][0] == "up")
        return self.seen(vm)

    def rotate(self) -> str:
        """Write a new certificate; return its serial number as Erlang prints it."""
        identity = new_server_identity()
        self.files.serve(identity)
        return str(identity.certificate.serial_number)

    def reload(self, service: KvtlsProcess) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(kvtls(service, "reload", "--wait", "--json").stdout)
        return answer


class RotationTests(NodesCase):
    """New credentials, with nodes that are linked."""

    def test_three_nodes(self) -> None:
        """Nodes go once, within a second, and are back with the new serial within two.

        A call in flight ends in nodedown; the data listener's clients notice nothing.
        """
        service = self.start()
        nodes = self.vms("e1", "e2", "e3")
        self.clear(*nodes)
        self.check(nodes[0], IN_FLIGHT, "ok")
        self.check(nodes[0], f"gen_server:call({KVTLS}, ping, infinity)", "pong")
        clients = Clients(service, trusting(root_authority()))
        try:
            eventually(lambda: clients.connects > 5)
            serial = self.rotate()
            began = time.time()
            answer = self.reload(service)
            told = time.time()
            came = clients.connects
            eventually(lambda: clients.connects > came + 5)
        finally:
            clients.stop()
        self.assertTrue(answer["ok"], answer)
        self.assertEqual((answer["generation"], answer["nodes"]["generation"]), (2, 2))
        self.assertEqual(answer["nodes"]["missing"], [])
        self.assertEqual(answer["nodes"]["fingerprint_sha256"], answer["fingerprint_sha256"])
        downs, ups = [], []
        for vm in nodes:
            (down, went), (up, back) = self.wait_for_return(vm)
            self.assertEqual((down, up), ("down", "up"))
            downs.append(went - began)
            ups.append(back - began)
            self.check(vm, "persistent_term:get(peer_serial)", serial)
            self.check(vm, f"gen_server:call({KVTLS}, ping, infinity)", "pong")
        self.check(nodes[0], ENDED, "{nodedown,kv@localhost}")
        self.assertEqual(clients.faults, [])
        log.msg(
            f"nodedown {max(downs):.3f} s, back {max(ups):.3f} s, told {told - began:.3f} s; "
            f"{clients.connects} connects, {clients.requests} requests, "
            f"longest {clients.longest:.3f} s"
        )

    def test_frozen_peer(self) -> None:
        """A peer that was stopped is cut after one second; the others are back meanwhile."""
        service = self.start()
        frozen, lively = self.vms("e1", "e2")
        self.clear(frozen, lively)
        frozen.freeze()
        serial = self.rotate()
        began = time.time()
        # Without waiting: the frozen one will be missing for thirty seconds.
        self.assertEqual(kvtls(service, "reload").returncode, 0)
        (_, went), (_, back) = self.wait_for_return(lively)
        rows = json.loads(kvtls(service, "connections", "--listener", "node", "--json").stdout)[
            "connections"
        ]
        self.assertEqual([row["user"] for row in rows], ["e2@localhost"])
        cut = time.time() - began
        self.check(lively, "persistent_term:get(peer_serial)", serial)
        log.msg(f"nodedown {went - began:.3f} s, back {back - began:.3f} s, cut {cut:.3f} s")
        frozen.thaw()
        self.wait_for_return(frozen)
        self.check(frozen, "persistent_term:get(peer_serial)", serial)

    def test_again_and_again(self) -> None:
        """Five rotations are five nodedowns and five returns, for each node."""
        service = self.start()
        nodes = self.vms("e1", "e2")
        self.clear(*nodes)
        for number in range(2, 7):
            self.rotate()
            answer = self.reload(service)
            self.assertTrue(answer["ok"], answer)
            self.assertEqual(answer["nodes"]["generation"], number)
        for vm in nodes:
            self.wait_for_return(vm)
            self.assertEqual([word for word, _ in self.seen(vm)], ["down", "up"] * 5)

    def test_every_stage(self) -> None:
        """A connection that began before a rotation does not come up after it."""
        service = self.start()
        hello = frame(struct.pack(">cQIH", b"N", OURS, 7, 13) + b"raw@localhost")
        caught: list[socket.socket] = [self.plain() for _ in range(2)]
        caught[1].sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        caught += [self.secured() for _ in range(2)]
        caught[3].sendall(hello)
        self.assertIn(b"ok", caught[3].recv(100))
        self.rotate()
        self.assertTrue(self.reload(service)["ok"])
        for connection in caught:
            connection.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while connection.recv(4096):
                    pass
        self.assertEqual(status(service)["nodes"]["links"], [])
        self.assertEqual(status(service)["listeners"][1]["connections"]["handshaking"], 0)

    def plain(self) -> socket.socket:
        """Return a TCP connection to the node listener."""
        made = socket.create_connection(("127.0.0.1", self.port), 10)
        self.addCleanup(made.close)
        return made

    def secured(self) -> ssl.SSLSocket:
        """Return a TLS connection to it, with a certificate that it accepts."""
        context = trusting(root_authority())
        context.load_cert_chain(self.home / "erl.pem", self.home / "erl.key")
        made = context.wrap_socket(self.plain(), server_hostname="localhost")
        self.addCleanup(made.close)
        return made

    def test_node_that_does_not_return(self) -> None:
        """The answer names it after thirty seconds; corrected credentials need not wait."""
        service = self.start()
        (lost,) = self.vms("e1")
        lost.freeze()
        self.rotate()
        answers: list[dict[str, Any]] = []
        asking = threading.Thread(target=lambda: answers.append(self.reload(service)))
        asking.start()
        began = time.monotonic()
        eventually(lambda: status(service)["nodes"]["generation"]["number"] == 2)
        # Meanwhile the next certificate is served at once.
        self.rotate()
        self.assertEqual(kvtls(service, "reload").returncode, 0)
        eventually(lambda: status(service)["nodes"]["generation"]["number"] == 3)
        asking.join(PATIENCE)
        self.assertGreater(time.monotonic() - began, 29)
        (answer,) = answers
        self.assertIs(answer["ok"], False)
        self.assertEqual(answer["nodes"]["missing"], ["e1@localhost"])
        self.assertIn("could not connect to nodes: e1@localhost", answer["reason"])

    def test_bad_files(self) -> None:
        """Files that cannot be served close no link, and both parts say why."""
        service = self.start()
        (vm,) = self.vms("e1")
        self.files.chain.write_text("no certificate")
        answer = self.reload(service)
        self.assertIs(answer["ok"], False)
        self.assertEqual((answer["generation"], answer["nodes"]["generation"]), (1, 1))
        self.assertIs(answer["nodes"]["ok"], False)
        self.check(vm, f"gen_server:call({KVTLS}, ping, infinity)", "pong")
        self.clear(vm)

    def test_watched_files(self) -> None:
        """Without a command, links are made again soon after the files have changed."""
        service = self.start("--watch-interval", "0.2")
        (vm,) = self.vms("e1")
        self.clear(vm)
        serial = self.rotate()
        eventually(lambda: len(self.seen(vm)) == 2)
        self.check(vm, "persistent_term:get(peer_serial)", serial)
        answer = status(service)
        self.assertEqual(answer["generation"]["number"], 2)
        self.assertEqual(answer["nodes"]["generation"]["number"], 2)

    def test_own_files(self) -> None:
        """Nodes with files of their own are left alone when the data listener's change."""
        own = CredentialDirectory()
        self.addCleanup(own.remove)
        own.trust(root_authority())
        service = self.start(
            *("--node-certificate", str(own.chain), "--node-key", str(own.key)),
            *("--node-ca", str(own.client_ca)),
        )
        (vm,) = self.vms("e1")
        # The data listener's clients come from somewhere else now: no business of nodes.
        self.files.trust(Authority.root("another CA"))
        self.rotate()
        answer = self.reload(service)
        self.assertTrue(answer["ok"], answer)
        self.assertEqual((answer["generation"], answer["nodes"]["generation"]), (2, 1))
        self.assertIs(answer["nodes"]["changed"], False)
        self.check(vm, f"gen_server:call({KVTLS}, ping, infinity)", "pong")
        self.clear(vm)
        identity = new_server_identity()
        own.serve(identity)
        answer = self.reload(service)
        self.assertEqual((answer["generation"], answer["nodes"]["generation"]), (2, 2))
        self.assertEqual([word for word, _ in self.wait_for_return(vm)], ["down", "up"])
        self.check(vm, "persistent_term:get(peer_serial)", str(identity.certificate.serial_number))


class SteeringTests(NodesCase):
    """What nodes and operators see and do."""

    def test_from_erlang(self) -> None:
        """A node reads the status, reloads and restarts; answers come before the link goes."""
        service = self.start()
        (vm,) = self.vms("e1")
        self.clear(vm)
        self.check(vm, f"net_adm:ping({KV})", "pong")
        name = f'maps:get(<<"name">>, maps:get(<<"nodes">>, gen_server:call({KVTLS}, status)))'
        self.check(vm, name, '<<"kv@localhost">>')
        self.check(
            vm,
            f'maps:get(<<"changed">>, gen_server:call({KVTLS}, reload, infinity))',
            "false",
        )
        serial = self.rotate()
        self.check(
            vm,
            f"""(fun(A) -> N = maps:get(<<"nodes">>, A),
                [maps:get(<<"ok">>, A), maps:get(<<"generation">>, A),
                 maps:get(<<"restarting">>, N), maps:get(<<"generation">>, N)] end)
                (gen_server:call({KVTLS}, reload, infinity))""",
            "[true,2,true,2]",
        )
        self.assertEqual([word for word, _ in self.wait_for_return(vm)], ["down", "up"])
        self.check(vm, "persistent_term:get(peer_serial)", serial)
        # With the same files: every link is made again all the same.
        self.check(
            vm,
            f'maps:get(<<"restarting">>, gen_server:call({KVTLS}, restart_tls, infinity))',
            "true",
        )
        eventually(lambda: len(self.seen(vm)) == 4)
        # Many at once, of both kinds: each is answered before its link is closed.
        self.check(
            vm,
            f"""(fun() ->
                Asked = [spawn_monitor(fun() ->
                    exit({{answer, maps:get(<<"restarting">>, gen_server:call({KVTLS}, C))}}) end)
                    || C <- [restart_tls, restart_tls, reload, restart_tls, reload]],
                lists:usort([receive {{'DOWN', M, process, _, {{answer, A}}}} -> is_boolean(A);
                                      {{'DOWN', M, process, _, R}} -> R
                             after 50000 -> none end || {{_, M}} <- Asked]) end)()""",
            "[true]",
        )
        # One at a time: an operator's request is answered when all that came before is over.
        self.reload(service)
        eventually(lambda: vm.ask_now(f"gen_server:call({KVTLS}, ping, infinity)") == "pong")
        eventually(lambda: self.seen(vm)[-1][0] == "up")
        before = len(self.seen(vm))
        self.files.chain.write_text("no certificate")
        self.check(
            vm,
            f'maps:get(<<"ok">>, gen_server:call({KVTLS}, restart_tls, infinity))',
            "false",
        )
        self.check(vm, f"gen_server:call({KVTLS}, ping, infinity)", "pong")
        self.assertEqual(len(self.seen(vm)), before)
        self.assertEqual(status(service)["nodes"]["generation"]["number"], 2)

    def test_seen_by_operators(self) -> None:
        """Listener, link and process are in status and connections; text fits a terminal."""
        service = self.start("--node-process", "steer")
        self.vms("e1")
        answer = status(service)
        self.assertEqual([row["name"] for row in answer["listeners"]], ["data", "node"])
        self.assertEqual(answer["listeners"][1]["on_rotate"], "disconnect")
        (link,) = answer["nodes"]["links"]
        self.assertEqual(
            (link["node"], link["direction"], link["state"], link["generation"]),
            ("e1@localhost", "in", "up", 1),
        )
        self.assertGreaterEqual(link["age_s"], 0)
        self.assertEqual(answer["nodes"]["processes"], ["net_kernel", "steer"])
        self.assertNotIn(COOKIE, json.dumps(answer))
        text = kvtls(service, "status").stdout
        self.assertIn("e1@localhost", text)
        self.assertLessEqual(max(map(len, text.splitlines())), 80)
        rows = kvtls(service, "connections", "--listener", "node").stdout
        self.assertIn("e1@localhost", rows)

    def test_drain_and_restart(self) -> None:
        """A drained service leaves the cluster and comes back to it; SIGTERM leaves for good."""
        service = self.start()
        (vm,) = self.vms("e1")
        self.clear(vm)
        self.assertEqual(kvtls(service, "drain", "--wait").returncode, 0)
        eventually(lambda: self.seen(vm))
        self.assertEqual(kvtls(service, "restart", "all").returncode, 0)
        self.wait_for_return(vm)
        vm.ask_now("watcher ! clear")
        self.assertEqual(service.terminate(), 0)
        self.assertEqual([word for word, _ in self.seen(vm)], ["down"])


class OutboundTests(NodesCase):
    """The service calls nodes, and is found by epmd."""

    def setUp(self) -> None:
        super().setUp()
        self.epmd_port = free_port()
        self.epmd = Epmd(self.epmd_port)
        self.addCleanup(self.epmd.kill)

    def test_epmd(self) -> None:
        """It is found by name, calls by name, and calls again after a rotation."""
        environment = {"ERL_EPMD_PORT": str(self.epmd_port)}
        service = self.start(
            *("--epmd", f"127.0.0.1:{self.epmd_port}", "--node-connect", "zz@localhost")
        )
        eventually(lambda: status(service)["nodes"]["epmd"]["registered"])
        caller = self.vm("e1", environment=environment)
        called = self.vm("zz", listen=True, environment=environment)
        for vm in (caller, called):
            vm.wait_until_ready()
            vm.ask_now(WATCHER)
        self.check(caller, f"net_adm:ping({KV})", "pong")
        eventually(lambda: self.is_linked(service), "linked with zz")
        ways = {link["node"]: link["direction"] for link in status(service)["nodes"]["links"]}
        self.assertEqual(ways, {"e1@localhost": "in", "zz@localhost": "out"})
        self.check(called, f"gen_server:call({KVTLS}, ping, infinity)", "pong")
        called.ask_now("watcher ! clear")
        self.rotate()
        answer = self.reload(service)
        self.assertTrue(answer["ok"], answer)
        self.assertEqual([word for word, _ in self.wait_for_return(called)], ["down", "up"])
        eventually(lambda: self.is_linked(service, generation=2))
        self.assertEqual(service.terminate(), 0)

    def is_linked(self, service: KvtlsProcess, generation: int = 1) -> bool:
        return any(
            (link["node"], link["state"], link["generation"]) == ("zz@localhost", "up", generation)
            for link in status(service)["nodes"]["links"]
        )

    def test_attempt_under_way(self) -> None:
        """A node that accepts and says nothing does not hold a rotation up."""
        with socket.create_server(("127.0.0.1", 0)) as mute:
            mute.settimeout(PATIENCE)
            port = mute.getsockname()[1]
            service = self.start("--node-connect", f"mute@localhost:{port}")
            held, _ = mute.accept()
            self.addCleanup(held.close)
            self.rotate()
            answer = self.reload(service)
            self.assertTrue(answer["ok"], answer)
            # The attempt that was under way is over, and one with the new certificate begun.
            again, _ = mute.accept()
            again.close()
            held.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                while held.recv(4096):
                    pass


class RefusalTests(NodesCase):
    """What cannot work is said before anything runs."""

    def refused(self, *more: str) -> str:
        done = run_kvtls(*self.node_options(*more), "--check")
        self.assertEqual(done.returncode, 2, done)
        return done.stderr

    def test_check(self) -> None:
        """A private cookie and good files pass; a public cookie does not."""
        self.assertEqual(run_kvtls(*self.node_options(), "--check").returncode, 0)
        self.cookie.chmod(0o640)
        said = self.refused()
        self.assertIn("--node-cookie-file", said)
        self.assertIn("chmod 600", said)

    def test_port_in_use(self) -> None:
        """A taken port is named by its option."""
        first = self.start()
        done = run_kvtls(*self.node_options("--listen", "tcp:0:interface=127.0.0.1"))
        self.assertEqual(done.returncode, 2, done)
        self.assertIn("--node-listen", done.stderr)
        self.assertEqual(first.terminate(), 0)

    def test_strangers(self) -> None:
        """Without a certificate, or with one of another CA, nobody comes as far as the cookie."""
        self.start()
        stranger = Authority.root("strangers")
        home = self.home / "stranger"
        home.mkdir()
        write_credentials(home, root_authority(), stranger.issue("erl", ("localhost",)))
        vm = ErlangNode("e9@localhost", home, self.port)
        self.addCleanup(vm.kill)
        vm.wait_until_ready()
        self.check(vm, f"net_kernel:connect_node({KV})", "false")

    def test_files_are_private(self) -> None:
        """The cookie is in no line of the log."""
        service = self.start()
        self.vms("e1")
        self.assertEqual(service.terminate(), 0)
        self.assertNotIn(COOKIE, service.output.replace(str(Path(self.home)), ""))
