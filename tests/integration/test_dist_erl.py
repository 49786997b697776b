"""Node links against real Erlang nodes, with the listener that the service uses.

One VM serves all checks of a class where it can; each test has a listener and a
node of its own.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

from OpenSSL import SSL
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from kvproto.config import OnRotate
from kvproto.dist import (
    Atom,
    Backoff,
    CallRefused,
    CallTimeoutError,
    Connector,
    EpmdClient,
    EpmdRegistration,
    Export,
    FixedPorts,
    Fun,
    GenServer,
    LinkRotation,
    Node,
    NodeDownError,
    NodeSettings,
    OversizedAnswerError,
    Pid,
    Process,
    ProcessDownError,
    RemoteCallError,
)
from kvproto.dist.flags import OURS
from kvproto.dist.framing import frame
from kvproto.errors import LocalProtocolError
from kvproto.testing.certificates import Authority
from tests.dist.erlang import (
    COOKIE,
    Directory,
    Epmd,
    ErlangNode,
    SecuredClientEndpoint,
    Site,
    client_endpoint,
    shared_vm,
    until,
    write_credentials,
)
from tests.integration.service import PATIENCE
from tests.ports import free_port

reactor: Any = installed_reactor

KV = "'kv@localhost'"
KVTLS = "{kvtls,'kv@localhost'}"
PING = f"gen_server:call({KVTLS}, ping, infinity)"

TERMS = """[0, -1, 255, 256, -2147483648, 2147483647, 2147483648, 1 bsl 2400, -(1 bsl 64), 1.5,
  -0.1, 1.0e300, a, true, undefined, '', 'with space', [], "string", [300, 2], [a|b], [1, 2|3], {},
  {a}, {a, {b, [c]}}, <<>>, <<"binary">>, <<3:5>>, <<255, 1:1>>, #{}, #{a => 1},
  #{1 => a, 1.0 => b}, #{[1] => #{#{} => 2}, {3, [4]} => 5}, self(), make_ref(),
  hd(erlang:ports()), fun lists:map/2,
  fun(X) -> X end, list_to_tuple(lists:seq(1, 300)), lists:duplicate(70000, 7),
  lists:seq(1, 2000)]"""

WATCHER = """register(watcher, spawn(fun() ->
  net_kernel:monitor_nodes(true, [{node_type, all}]),
  Again = fun(_, _, 0) -> false;
             (Again, N, K) -> case net_kernel:connect_node(N) of
                 true -> true;
                 _ -> timer:sleep(20), Again(Again, N, K - 1) end end,
  Watch = fun(Watch, Seen) -> receive
      {nodeup, N, _} -> Watch(Watch, [{up, N} | Seen]);
      {nodedown, N, _} ->
          spawn(fun() -> Again(Again, N, 200) end), Watch(Watch, [{down, N} | Seen]);
      {seen, P} -> case Seen of
          [{up, _} | _] -> P ! {seen, lists:reverse(Seen)}, Watch(Watch, []);
          _ -> timer:sleep(10), self() ! {seen, P}, Watch(Watch, Seen) end
    end end,
  Watch(Watch, []) end))"""
"""Remembers who comes and goes, calls whoever went, and tells when somebody is back."""

SEEN = "(fun() -> watcher ! {seen, self()}, receive {seen, S} -> S after 50000 -> none end end)()"


class WhoAmI(GenServer):
    """Tells its own pid."""

    process: Process

    def handle_call(self, request: Any, caller: Any) -> Any:
        return self.process.pid


class ErlangCase(TestCase):
    """A class of tests that share a VM, ``e1@localhost``."""

    timeout = 3 * PATIENCE
    arguments: ClassVar[tuple[str, ...]] = ()
    site_settings: ClassVar[dict[str, Any]] = {}

    async def setUp(self) -> None:  # type: ignore[override]
        # The listener's port stays the same for a class: its VM knows no other.
        shared = await deferToThread(shared_vm, self.arguments)
        self.vm, self.directory = shared.vm, shared.directory
        self.authority, self.port = shared.authority, shared.port
        self.site = Site(self.port, self.authority, **self.site_settings)
        await self.site.start()
        self.addCleanup(self.site.stop)
        # What a test before this one left in the mailbox.
        await self.ask("(fun F() -> receive _ -> F() after 0 -> ok end end)()")

    async def connect(self) -> None:
        """Let the VM connect to this test's node, not only believe in the last one's."""
        up = self.site.until("e1@localhost", up=True)
        await self.ask(f"erlang:disconnect_node({KV})")
        await self.check(f"net_kernel:connect_node({KV})", "true")
        await up

    async def ask(self, expression: str) -> str:
        """Evaluate in the shared VM."""
        return await self.vm.ask(expression)

    async def check(self, expression: str, expected: str) -> None:
        """Evaluate in the shared VM and compare what Erlang prints."""
        self.assertEqual(await self.ask(expression), expected, expression)

    def start_vm(self, name: str, **options: Any) -> ErlangNode:
        """Start one more VM, for this test only."""
        directory = options.pop("directory", self.directory.path)
        vm = ErlangNode(f"{name}@localhost", directory, self.port, **options)
        self.addCleanup(vm.kill)
        return vm

    def client_context(self) -> ssl.SSLContext:
        """Return a context with a certificate that our listener accepts."""
        path = self.directory.path
        context = ssl.create_default_context(cafile=str(path / "ca.pem"))
        context.load_cert_chain(path / "erl.pem", path / "erl.key")
        return context

    def plain(self) -> socket.socket:
        """Return a TCP connection to our listener, blocking: use it in a thread."""
        made = socket.create_connection(("127.0.0.1", self.port), 10)
        self.addCleanup(made.close)
        return made

    def secured(self) -> ssl.SSLSocket:
        """Return a TLS connection to our listener, blocking: use it in a thread."""
        made = self.client_context().wrap_socket(self.plain(), server_hostname="localhost")
        self.addCleanup(made.close)
        return made

    def introduced(self, name: bytes = b"raw@localhost", flags: int = OURS) -> ssl.SSLSocket:
        """Return a TLS connection that has said its name."""
        made = self.secured()
        made.sendall(frame(struct.pack(">cQIH", b"N", flags, 7, len(name)) + name))
        return made


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the other side closes, however it does that."""
    found = b""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        while data := connection.recv(65536):
            found += data
    return found


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Read so many bytes."""
    found = b""
    while len(found) < size:
        data = connection.recv(size - len(found))
        assert data, found
        found += data
    return found


class Awkward(GenServer):
    """Refuses, fails and answers with what cannot be sent, at once or later."""

    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    unsendable: ClassVar[dict[str, Any]] = {
        "object": object(),
        "deep": deep,
        "export": Export(Atom("m"), Atom("f"), "x"),  # type: ignore[arg-type]
        "twice": {"a": 1, b"a": 2},
        "pid": Pid(Atom("n"), -1, 0, 0),
        "closure": Fun(b"noise"),
    }

    def handle_call(self, request: Any, caller: Any) -> Any:
        how, what, later = request
        value = self.unsendable[what]
        if later == "false":
            if how == "refuse":
                raise CallRefused(value)
            return value
        waiting: Deferred[Any] = Deferred()
        answer = waiting.errback if how == "refuse" else waiting.callback
        reactor.callLater(0, answer, CallRefused(value) if how == "refuse" else value)
        return waiting


AWKWARD = "{awkward,'kv@localhost'}"

DEEP = "lists:foldl(fun(_, T) -> {T} end, x, lists:seq(1, 300))"


class LinkedTests(ErlangCase):
    """What an Erlang node does with ours once it is linked."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        await self.connect()
        self.addCleanup(self.vm.ask, f"erlang:disconnect_node({KV})")

    async def test_connect(self) -> None:
        """Erlang takes us for a hidden node; both know each other."""
        await self.check("{nodes(), nodes(hidden)}", "{[],[kv@localhost]}")
        await self.check(f"net_adm:ping({KV})", "pong")
        self.assertEqual(self.site.node.nodes(), ["e1@localhost"])
        self.assertEqual(self.site.tls.seen, ["TLSv1.3"])
        (entry,) = self.site.ledger.entries()
        self.assertEqual((entry.user, entry.owner), ("e1@localhost", "NodeLink"))

    async def test_terms(self) -> None:
        """Forty kinds of term come back as they were sent."""
        await self.check(
            f"[T || T <- {TERMS}, gen_server:call({KVTLS}, {{echo, T}}) =/= T]",
            "[]",
        )

    async def test_large_terms(self) -> None:
        """Terms of 8 MB come back in one piece, and many ticks' worth of them do no harm."""
        await self.check(
            f"""[T =:= gen_server:call({KVTLS}, {{echo, T}}, 20000) || T <-
                [binary:copy(<<"x">>, 8388608), lists:duplicate(100, binary:copy(<<1>>, 83886)),
                 lists:seq(1, 200000)]]""",
            "[true,true,true]",
        )

    async def test_process(self) -> None:
        """The built-in process answers, and one that does not exist is noproc at once."""
        await self.check(PING, "pong")
        await self.check(f"gen_server:call({KVTLS}, nonsense, infinity)", "{error,unknown_request}")
        await self.check(
            f"catch gen_server:call({{nobody, {KV}}}, ping, 60000)",
            "{'EXIT',{noproc,{gen_server,call,[{nobody,kv@localhost},ping,60000]}}}",
        )
        await self.check(f"rpc:call({KV}, erlang, node, [])", "{badrpc,notsup}")
        await self.check(f"net_adm:ping({KV})", "pong")

    async def test_steering(self) -> None:
        """The control vocabulary works from Erlang, by call and by cast."""
        await self.check(
            f"gen_server:call({KVTLS}, status, infinity)",
            '#{<<"command">> => <<"status">>,<<"nodes">> => 1}',
        )
        await self.check(f"gen_server:cast({KVTLS}, reload)", "ok")
        await self.check(f"maps:size(gen_server:call({KVTLS}, restart_tls, infinity))", "2")
        self.assertEqual(self.site.commands, ["status", "reload", "restart_tls"])

    async def test_what_cannot_be_said(self) -> None:
        """A call that cannot be answered ends by itself; the link and other calls live on."""
        self.site.node.register("awkward", Awkward())
        await self.ask(
            f"put(w, spawn_monitor(fun() -> exit(gen_server:call({KVTLS}, {{sleep, 1500}})) end))"
        )
        whats = ",".join(Awkward.unsendable)
        await self.check(
            f"""lists:usort([element(1, element(2, catch gen_server:call({AWKWARD}, {{H, W, L}})))
                || H <- [refuse, answer], W <- [{whats}], L <- [true, false]])""",
            '[{failed,<<"LocalProtocolError">>}]',
        )
        await self.check("receive {'DOWN', _, process, _, R} -> R after 50000 -> none end", "ok")
        self.assertEqual([event.up for event in self.site.events], [True])
        self.assertEqual(
            len(self.flushLoggedErrors(LocalProtocolError)), 4 * len(Awkward.unsendable)
        )

    async def test_stray_messages(self) -> None:
        """What one process is sent by mistake concerns it and nobody else."""
        await self.ask(
            f"put(w, spawn_monitor(fun() -> exit(gen_server:call({KVTLS}, {{sleep, 1500}})) end))"
        )
        for stray in (
            "{'$gen_call',foo,bar}",
            "{'$gen_call',{foo,bar},baz}",
            "{'$gen_call',{self(),make_ref()},baz}",
            "{'$gen_cast',foo,bar}",
            "{'$gen_call'}",
            DEEP,
            f"{{'$gen_cast',{DEEP}}}",
            f"{{'$gen_call',{{self(),make_ref()}},{DEEP}}}",
            "lists:duplicate(4000001, [])",
        ):
            await self.ask(f"{KVTLS} ! {stray}, ok")
        # An answer to the third of them is on its way, and nobody waits for it.
        await self.check(
            f"element(1, element(2, catch gen_server:call({KVTLS}, {{echo, {DEEP}}})))",
            "system_limit",
        )
        node = self.site.node
        await self.assertFailure(
            node.rpc("e1@localhost", "lists", "duplicate", [4_000_001, []], timeout_s=20),
            OversizedAnswerError,
        )
        await self.ask(f"register(mortal, spawn(fun() -> receive die -> exit({DEEP}) end end))")
        end = node.monitor("e1@localhost", "mortal")
        node.send("e1@localhost", "mortal", Atom("die"))
        self.assertEqual(await end, "system_limit")
        await self.check("receive {'DOWN', _, process, _, R} -> R after 50000 -> none end", "ok")
        self.assertEqual([event.up for event in self.site.events], [True])

    async def test_late_reply(self) -> None:
        """A reply that comes after the caller gave up does not reach its mailbox."""
        await self.check(
            f"element(1, element(2, catch gen_server:call({KVTLS}, {{sleep, 100}}, 20)))", "timeout"
        )
        await self.check("receive M -> M after 200 -> nothing end", "nothing")

    async def test_many_calls(self) -> None:
        """Two hundred sleeping calls are answered together, others meanwhile."""
        await self.check(
            f"""(fun() ->
                Me = self(), Began = erlang:monotonic_time(millisecond),
                [spawn(fun() -> Me ! {{done, gen_server:call({KVTLS}, {{sleep, 300}})}} end)
                 || _ <- lists:seq(1, 200)],
                pong = gen_server:call({KVTLS}, ping, infinity),
                true = erlang:monotonic_time(millisecond) - Began < 300,
                [receive {{done, ok}} -> ok after 50000 -> error(late) end
                 || _ <- lists:seq(1, 200)],
                erlang:monotonic_time(millisecond) - Began < 3000 end)()""",
            "true",
        )

    async def test_links_and_monitors(self) -> None:
        """Erlang's processes can link to ours and monitor them, and hear of their end."""
        server = WhoAmI()
        server.process = self.site.node.register("mortal", server)
        await self.ask("process_flag(trap_exit, true)")
        await self.ask(f"put(pid, gen_server:call({{mortal, {KV}}}, who)), link(get(pid))")
        await self.ask(f"put(m, [monitor(process, {{mortal, {KV}}}), monitor(process, get(pid))])")
        await self.check(PING, "pong")
        self.site.node.unregister("mortal", Atom("retired"))
        await self.check(
            "receive {'EXIT', P, R} -> {P =:= get(pid), R} after 50000 -> none end",
            "{true,retired}",
        )
        await self.check(
            "[receive {'DOWN', M, process, _, R} -> R after 50000 -> none end || M <- get(m)]",
            "[retired,retired]",
        )
        await self.check(
            "link(get(pid)), "
            "receive {'EXIT', P2, R2} -> {P2 =:= get(pid), R2} after 50000 -> none end",
            "{true,noproc}",
        )
        await self.check("process_flag(trap_exit, false)", "true")

    async def test_unlink(self) -> None:
        """A link that is taken back is acknowledged and gone."""
        server = WhoAmI()
        server.process = self.site.node.register("mortal", server)
        await self.ask("process_flag(trap_exit, true)")
        await self.ask(f"put(pid, gen_server:call({{mortal, {KV}}}, who)), link(get(pid))")
        await self.ask("unlink(get(pid))")
        await self.check(PING, "pong")
        self.site.node.unregister("mortal")
        await self.check(f"{PING}, receive M3 -> M3 after 50 -> nothing end", "nothing")
        await self.check("process_flag(trap_exit, false)", "true")

    async def test_our_calls(self) -> None:
        """We call, cast, monitor, rpc and ping over the link that Erlang made."""
        node = self.site.node
        self.assertIs(await node.ping("e1@localhost"), True)
        self.assertEqual(await node.rpc("e1@localhost", "erlang", "node", []), "e1@localhost")
        self.assertEqual(await node.rpc("e1@localhost", "lists", "seq", [1, 3]), [1, 2, 3])
        error = await self.assertFailure(
            node.rpc("e1@localhost", "erlang", "error", [Atom("oops")]), RemoteCallError
        )
        self.assertIn("oops", str(error))
        down = await self.assertFailure(node.call("e1@localhost", "nobody", 1), ProcessDownError)
        self.assertEqual(down.reason, "noproc")
        self.assertEqual(await node.monitor("e1@localhost", "nobody"), "noproc")
        await self.ask("register(mute, spawn(fun() -> receive stop -> exit(told) end end))")
        end = node.monitor("e1@localhost", "mute")
        await self.assertFailure(
            node.call("e1@localhost", "mute", 1, timeout_s=0.05), CallTimeoutError
        )
        node.send("e1@localhost", "mute", Atom("stop"))
        self.assertEqual(await end, "told")
        await self.ask("register(me, self())")
        node.cast("e1@localhost", "me", (1, b"x"))
        await self.check(
            "receive C -> unregister(me), C after 50000 -> none end", "{'$gen_cast',{1,<<\"x\">>}}"
        )

    async def test_call_in_flight(self) -> None:
        """When we let go, a call in flight ends with nodedown and a monitor with noconnection."""
        await self.ask(
            f"""put(w, spawn_monitor(fun() -> exit(catch gen_server:call({KVTLS}, {{sleep, 30000}},
                                                   infinity)) end)),
                put(n, monitor(process, {KVTLS}))"""
        )
        await self.check(PING, "pong")
        self.site.node.disconnect("e1@localhost")
        await self.check(
            """(fun(W) -> receive {'DOWN', W, process, _, {'EXIT', {{nodedown, N}, _}}} -> N
                after 50000 -> none end end)(element(2, get(w)))""",
            "kv@localhost",
        )
        await self.check(
            """(fun(R) -> receive {'DOWN', R, process, _, Y} -> Y after 50000 -> none end
                end)(get(n))""",
            "noconnection",
        )


class ConnectingTests(ErlangCase):
    """How links come up, or do not."""

    async def test_ten_times(self) -> None:
        """Connect and disconnect ten times, with a call each time."""
        for _ in range(10):
            await self.connect()
            await self.check(PING, "pong")
            await self.check(f"erlang:disconnect_node({KV})", "true")
        await self.until_empty()
        turns = [event.up for event in self.site.events]
        self.assertEqual(turns, [True, False] * 10)

    async def until_empty(self) -> None:
        """Wait for the ledger to have no connection, and for the owners to have heard of it."""
        await self.site.ledger.when_gone(self.site.ledger.entries())
        await deferLater(reactor, 0)

    async def test_wrong_cookie_and_name(self) -> None:
        """Another cookie, or another name than ours, does not come up."""
        await self.check(
            f"""erlang:set_cookie({KV}, wrong), R = net_kernel:connect_node({KV}),
                erlang:set_cookie({KV}, {COOKIE}), R""",
            "false",
        )
        await self.check("net_kernel:connect_node('other@localhost')", "false")
        await self.until_empty()
        self.assertEqual(self.site.events, [])
        await self.connect()
        await self.check(f"erlang:disconnect_node({KV})", "true")

    async def test_missing_flags(self) -> None:
        """A peer without the mandatory flags is told not_allowed."""

        def client() -> bytes:
            return read_to_end(self.introduced(flags=0x4))

        self.assertEqual(await deferToThread(client), frame(b"snot_allowed"))

    async def test_garbage(self) -> None:
        """Garbage after the handshake, plaintext and half a ClientHello trouble nobody."""

        def clients() -> list[bytes]:
            found = []
            for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, frame(bytes(3000))):
                made = self.secured()
                made.sendall(data)
                found.append(read_to_end(made))
            plain = self.plain()
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            read_to_end(plain)
            half = self.plain()
            half.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            return found

        self.assertEqual(await deferToThread(clients), [b"", b"", b""])
        await self.connect()
        await self.check(f"erlang:disconnect_node({KV})", "true")

    async def test_silent_sockets(self) -> None:
        """Thirty silent sockets, half of them past TLS, do not keep a node out."""

        def clients() -> None:
            for _ in range(20):
                self.plain()
            for _ in range(10):
                self.secured()

        await deferToThread(clients)
        await self.connect()
        await self.check(PING, "pong")
        await self.check(f"erlang:disconnect_node({KV})", "true")

    async def test_tls_versions(self) -> None:
        """TLS 1.2 and TLS 1.3 alone are enough."""
        for version, name in ((SSL.TLS1_2_VERSION, "TLSv1.2"), (SSL.TLS1_3_VERSION, "TLSv1.3")):
            self.site.tls.versions = (version, version)
            await self.connect()
            self.assertEqual(self.site.tls.seen[-1], name)
            await self.check(f"erlang:disconnect_node({KV})", "true")

    async def test_certificates(self) -> None:
        """No certificate, or one of another authority, does not come in."""
        foreign, without = Directory(), Directory()
        self.addCleanup(foreign.remove)
        self.addCleanup(without.remove)
        other = Authority.root("somebody else's CA")
        write_credentials(foreign.path, self.authority, other.issue("erl", ("localhost",)))
        write_credentials(
            without.path,
            self.authority,
            other.issue("erl", ("localhost",)),
            client_certificate=False,
        )
        vms = [
            self.start_vm("e2", directory=foreign.path),
            self.start_vm("e3", directory=without.path),
        ]
        for vm in vms:
            await deferToThread(vm.wait_until_ready)
            self.assertEqual(await vm.ask(f"net_kernel:connect_node({KV})"), "false")
        self.assertEqual(self.site.events, [])

    async def test_alive(self) -> None:
        """A second node of the same name replaces the first: nodedown, then nodeup."""
        await self.connect()
        await self.ask(f"monitor_node({KV}, true)")
        node = Node(NodeSettings(name="e1@localhost", cookie=COOKIE.encode()), reactor)
        again = Connector(
            node,
            "kv@localhost",
            FixedPorts(self.port).locate,
            lambda _host, port: SecuredClientEndpoint(self.site.tls, port),
            reactor,
        )
        self.addCleanup(again.stopService)
        replaced = self.site.until("e1@localhost", up=True)
        linked = until(node, "kv@localhost", up=True)
        again.startService()
        await replaced
        await linked
        self.assertEqual([event.up for event in self.site.events], [True, False, True])
        await self.check("receive {nodedown, N} -> N after 50000 -> none end", "kv@localhost")
        self.assertIs(await node.ping("kv@localhost"), True)

    async def test_kill(self) -> None:
        """A killed VM is nodedown at once; it comes back as another incarnation."""
        first = self.start_vm("e2")
        await deferToThread(first.wait_until_ready)
        await first.ask(f"net_kernel:connect_node({KV})")
        waiting = self.site.node.call("e2@localhost", "init", 1, timeout_s=None)
        down = self.site.until("e2@localhost", up=False)
        await deferToThread(first.kill)
        await down
        await self.assertFailure(waiting, NodeDownError)
        second = self.start_vm("e2")
        await deferToThread(second.wait_until_ready)
        self.assertEqual(await second.ask(f"net_kernel:connect_node({KV})"), "true")
        self.assertEqual([event.up for event in self.site.events], [True, False, True])


class IdleTests(ErlangCase):
    """Ticks."""

    arguments = ("-kernel", "net_ticktime", "8")

    async def test_idle(self) -> None:
        """A link that is idle for more than three ticktimes of the peer stays up."""
        await self.connect()
        await self.check("net_kernel:get_net_ticktime()", "8")
        await deferLater(reactor, 25)
        self.assertEqual([event.up for event in self.site.events], [True])
        await self.check(PING, "pong")
        await self.check(f"erlang:disconnect_node({KV})", "true")


class FrozenTests(ErlangCase):
    """A peer that does nothing any more."""

    site_settings: ClassVar[dict[str, Any]] = {"ticktime": 2.0, "max_unsent": 4_000_000}

    async def test_ticks_find_out(self) -> None:
        """A frozen peer is given up after its ticktime."""
        await self.connect()
        down = self.site.until("e1@localhost", up=False)
        self.vm.freeze()
        self.addCleanup(self.vm.thaw)
        self.assertEqual((await down).reason, "net_tick_timeout")
        self.vm.thaw()
        # It may have noticed already.
        await self.ask(f"erlang:disconnect_node({KV})")

    async def test_it_does_not_read(self) -> None:
        """What waits for a frozen peer is bounded."""
        await self.connect()
        down = self.site.until("e1@localhost", up=False)
        self.vm.freeze()
        self.addCleanup(self.vm.thaw)
        for _ in range(40):
            if not self.site.node.is_connected("e1@localhost"):
                break
            self.site.node.send("e1@localhost", "x", bytes(1_000_000))
            await deferLater(reactor, 0)
        self.assertIn("does not read", (await down).reason)
        self.vm.thaw()


class RotationTests(ErlangCase):
    """New certificates: all links are closed and made again."""

    async def restart(self) -> None:
        """Restart the listener with a new certificate."""
        self.assertEqual(await self.site.restart_listener(), [])

    async def test_three_nodes(self) -> None:
        """Nodedown once each; all but the frozen one are back at once, with the new certificate."""
        vms = [self.vm, self.start_vm("e2"), self.start_vm("e3")]
        names = ["e1@localhost", "e2@localhost", "e3@localhost"]
        for vm in vms[1:]:
            await deferToThread(vm.wait_until_ready)
        for vm in vms:
            self.assertEqual(await vm.ask(f"net_kernel:connect_node({KV})"), "true")
            await vm.ask(WATCHER)
        self.addCleanup(self.vm.ask, "exit(whereis(watcher), kill)")
        # A call in flight and a monitor on the first one, and the third one frozen.
        await self.ask(
            f"""put(w, spawn_monitor(fun() -> exit(catch gen_server:call({KVTLS}, {{sleep, 30000}},
                                                  infinity)) end)),
                put(n, monitor(process, {KVTLS}))"""
        )
        await self.check(PING, "pong")
        old = await self.ask("persistent_term:get(peer_serial)")
        vms[2].freeze()
        self.addCleanup(vms[2].thaw)
        self.site.events.clear()
        back = [self.site.until(name, up=True) for name in names[:2]]
        await self.restart()
        for waiting in back:
            await waiting
        downs = sorted(event.name for event in self.site.events if not event.up)
        self.assertEqual(downs, names)
        serial = str(self.site.tls.identity.certificate.serial_number)
        for vm in vms[:2]:
            self.assertEqual(await vm.ask("persistent_term:get(peer_serial)"), serial)
            # Its own watch, printed in order: once down, once up.
            self.assertEqual(await vm.ask(SEEN), "[{down,kv@localhost},{up,kv@localhost}]")
        self.assertNotEqual(old, serial)
        await self.check(
            """(fun(W) -> receive {'DOWN', W, process, _, {'EXIT', {{nodedown, N}, _}}} -> N
                after 50000 -> none end end)(element(2, get(w)))""",
            "kv@localhost",
        )
        await self.check(
            """(fun(R) -> receive {'DOWN', R, process, _, Y} -> Y after 50000 -> none end
                end)(get(n))""",
            "noconnection",
        )
        vms[2].thaw()
        await self.site.until("e3@localhost", up=True)

    async def test_caught_at_each_stage(self) -> None:
        """Connections at the TCP, TLS and challenge stage are closed, none comes up."""

        def clients() -> list[socket.socket]:
            tcp = self.plain()
            half = self.plain()
            half.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            challenged = self.introduced()
            head = read_exactly(challenged, 7)
            assert head == frame(b"sok"), head
            return [tcp, half, self.secured(), challenged]

        made = await deferToThread(clients)
        await self.restart()
        for connection in made:
            await deferToThread(read_to_end, connection)
        self.assertEqual(self.site.events, [])
        self.assertEqual(len(self.site.ledger), 0)

        def fresh() -> int:
            chain = self.secured().getpeercert() or {}
            return int(str(chain["serialNumber"]), 16)

        expected = self.site.tls.identity.certificate.serial_number
        self.assertEqual(await deferToThread(fresh), expected)

    async def test_connect_storm(self) -> None:
        """Ten rotations while a node keeps connecting: nothing is left over or stuck."""
        await self.ask(
            f"""put(storm, spawn(fun() ->
                Go = fun(Go) -> net_kernel:connect_node({KV}),
                    catch gen_server:call({KVTLS}, ping, 100),
                    receive stop -> ok after 0 -> erlang:disconnect_node({KV}), Go(Go) end end,
                Go(Go) end))"""
        )
        for _ in range(10):
            await self.site.until("e1@localhost", up=True)
            await self.site.restart_listener()
        await self.ask("get(storm) ! stop")
        await self.ask(f"net_kernel:connect_node({KV})")
        await self.check(PING, "pong")
        serial = str(self.site.tls.identity.certificate.serial_number)
        await self.check("persistent_term:get(peer_serial)", serial)
        turns = [event.up for event in self.site.events]
        self.assertEqual(turns, [position % 2 == 0 for position in range(len(turns))])
        self.assertGreater(len(turns), 10)
        await self.check(f"erlang:disconnect_node({KV})", "true")
        await self.site.ledger.when_gone(self.site.ledger.entries())

    async def test_policy_keep(self) -> None:
        """A restart that keeps connections is noticed by no node."""
        await self.connect()
        await self.site.acceptor.restart(OnRotate.KEEP)
        await self.check(PING, "pong")
        self.assertEqual(len(self.site.events), 1)
        await self.check(f"erlang:disconnect_node({KV})", "true")


class OutboundTests(ErlangCase):
    """We call an Erlang node that listens, and finds us by a real epmd as we find it."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        number = free_port()
        epmd = Epmd(number)
        self.addCleanup(epmd.kill)
        endpoint = client_endpoint(number)
        await epmd.wait(endpoint)
        registration = EpmdRegistration(endpoint, reactor, "kv", self.port)
        registration.startService()
        self.addCleanup(registration.stopService)
        self.epmd = EpmdClient(lambda _host: endpoint, reactor)
        self.peer = self.start_vm("zz", listen=True, environment={"ERL_EPMD_PORT": str(number)})
        await deferToThread(self.peer.wait_until_ready)

    async def test_connect(self) -> None:
        """We are a hidden node to it; calls go both ways; a rotation makes the link again."""
        up = self.site.until("zz@localhost", up=True)
        self.site.connect_to("zz@localhost", self.epmd.locate)
        await up
        # Whoever pings waits for a handshake under way, whoever asks for nodes does not.
        self.assertEqual(await self.peer.ask(f"net_adm:ping({KV})"), "pong")
        self.assertEqual(await self.peer.ask("{nodes(), nodes(hidden)}"), "{[],[kv@localhost]}")
        node = self.site.node
        self.assertIs(await node.ping("zz@localhost"), True)
        self.assertEqual(await node.rpc("zz@localhost", "erlang", "node", []), "zz@localhost")
        rotation = LinkRotation(node, self.site.connectors, self.site.restart_listener)
        report = await rotation.restart()
        self.assertTrue(report.ok, report)
        self.assertEqual([event.up for event in self.site.events], [True, False, True])
        # It stops: nodedown, and attempts until it is stopped, too.
        down = self.site.until("zz@localhost", up=False)
        await deferToThread(self.peer.kill)
        await down

    async def test_why_not(self) -> None:
        """A link that fails says at which step, and why, in words for an operator."""
        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

        async def problem_of(name: str, locate: Any) -> str:
            connector = self.site.connect_to(name, locate)
            while not connector.problem:
                await deferLater(reactor, 0.02)
            problem = connector.problem
            await connector.stopService()
            self.assertTrue(any(event.get("problem") == problem for event in events), problem)
            return problem

        self.assertEqual(
            await problem_of("nobody@localhost", self.epmd.locate),
            "looking for its port: epmd on localhost knows no node nobody",
        )
        closed = FixedPorts(free_port()).locate
        self.assertIn("connecting to localhost, port ", await problem_of("zz@localhost", closed))
        await self.peer.ask(f"erlang:set_cookie({KV}, other)")
        problem = await problem_of("zz@localhost", self.epmd.locate)
        self.assertIn("node handshake, waiting for the peer's digest", problem)
        self.assertIn("another cookie", problem)
        good, now = self.site.tls.identity, datetime.now(UTC)
        expired = self.authority.issue(
            "kv",
            ("localhost",),
            not_before=now - timedelta(days=3),
            not_after=now - timedelta(days=1),
        )
        self.site.tls.identity = expired
        self.assertIn("certificate expired", await problem_of("zz@localhost", self.epmd.locate))
        self.site.tls.identity = good
        self.site.tls.authority = Authority.root()
        problem = await problem_of("zz@localhost", self.epmd.locate)
        self.assertIn("TLS handshake: ", problem)
        self.assertIn("certificate verify failed", problem)

    async def test_both_at_once(self) -> None:
        """Both nodes call at once, twenty times: one link each time, none lost."""
        connector = self.site.connect_to("zz@localhost", self.epmd.locate)
        await self.site.until("zz@localhost", up=True)
        for _ in range(20):
            await connector.stopService()
            await self.peer.ask(f"erlang:disconnect_node({KV})")
            asked = self.peer.ask(f"net_kernel:connect_node({KV})")
            connector.startService()
            self.assertEqual(await asked, "true")
            self.assertEqual(await self.peer.ask(PING), "pong")
            self.assertEqual(self.site.node.nodes(), ["zz@localhost"])


class EpmdTests(ErlangCase):
    """With a real epmd, on a port of its own."""

    async def test_epmd(self) -> None:
        """Known as hidden, found by name, taken names refused, back after epmd was killed."""
        number = free_port()
        epmd = Epmd(number)
        self.addCleanup(epmd.kill)
        endpoint = client_endpoint(number)
        await epmd.wait(endpoint)
        quick = Backoff(0.05, 0.2)
        registration = EpmdRegistration(endpoint, reactor, "kv", self.port, quick)
        registration.startService()
        self.addCleanup(registration.stopService)
        client = EpmdClient(lambda _host: endpoint, reactor)

        async def until_known() -> None:
            while await client.locate("kv", "localhost") != self.port:
                await deferLater(reactor, 0.02)

        await until_known()
        self.assertTrue(registration.registered)
        self.assertIsNone(await client.locate("nobody", "localhost"))
        # A real node finds us there by our name.
        peer = self.start_vm("e2", environment={"ERL_EPMD_PORT": str(number)})
        await deferToThread(peer.wait_until_ready)
        self.assertEqual(await peer.ask(f"net_adm:ping({KV})"), "pong")
        other = EpmdRegistration(endpoint, reactor, "kv", 1, Backoff(10, 10))
        other.startService()
        while not other.problem:
            await deferLater(reactor, 0.02)
        self.assertIn("taken", other.problem)
        await other.stopService()
        # The link needs no epmd; the registration comes back with the next one.
        await deferToThread(epmd.kill)
        while registration.registered:
            await deferLater(reactor, 0.02)
        self.assertEqual(await peer.ask(PING), "pong")
        again = Epmd(number)
        self.addCleanup(again.kill)
        await again.wait(endpoint)
        await until_known()
        await registration.stopService()
        while await client.locate("kv", "localhost") is not None:
            await deferLater(reactor, 0.02)


class AddressTests(TestCase):
    """Node names that are addresses of IPv6."""

    timeout = 3 * PATIENCE

    async def test_ipv6(self) -> None:
        """``-proto_dist inet6_tls`` works, with names like ``kv@::1``."""
        if not socket.has_ipv6:
            raise SkipTest("this Python has no IPv6")
        authority, directory, port = Authority.root(), Directory(), free_port()
        self.addCleanup(directory.remove)
        identity = authority.issue("erl", ("localhost",))
        write_credentials(directory.path, authority, identity, any_host=True)
        site = Site(port, authority, "::1", name="kv@::1")
        await site.start()
        self.addCleanup(site.stop)
        vm = ErlangNode("e1@::1", directory.path, port, proto="inet6_tls")
        self.addCleanup(vm.kill)
        await deferToThread(vm.wait_until_ready)
        self.assertEqual(await vm.ask("net_adm:ping('kv@::1')"), "pong", vm.output)
        self.assertIs(await site.node.ping("e1@::1"), True)


class ExampleTests(ErlangCase):
    """The program of the tutorial."""

    def start_example(self) -> subprocess.Popen[str]:
        """Start it as the tutorial does, with the VM's credentials."""
        home = self.directory.path
        (home / "node.pem").write_bytes(
            (home / "erl.pem").read_bytes() + (home / "erl.key").read_bytes()
        )
        (home / "cookie").write_text(COOKIE + "\n")
        program = Path(__file__).resolve().parents[2] / "docs" / "examples" / "node_process.py"
        return subprocess.Popen(
            [sys.executable, program, "kv@localhost", str(self.port)],
            cwd=home,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def test_example(self) -> None:
        """It counts words for an Erlang node, and ends when it is told to."""
        await self.site.stop()
        example = self.start_example()
        try:
            assert example.stdout is not None
            self.assertEqual(await deferToThread(example.stdout.readline), "listening\n")
            await self.check(
                "lists:sort(maps:to_list("
                f'gen_server:call({{words, {KV}}}, {{count, <<"be or not be">>}})))',
                '[{<<"be">>,2},{<<"not">>,1},{<<"or">>,1}]',
            )
            await self.check(f'gen_server:call({{words, {KV}}}, {{count_file, <<"cookie">>}})', "1")
            await self.check(
                f"element(1, element(2, catch gen_server:call({{words, {KV}}}, 7)))",
                '<<"unknown request">>',
            )
            await self.ask(f"monitor_node({KV}, true)")
            example.terminate()
            await self.check("receive {nodedown, N} -> N after 50000 -> none end", "kv@localhost")
            said = await deferToThread(example.stdout.read)
            self.assertEqual(said, "e1@localhost is up\ne1@localhost is down: drained\n")
            self.assertEqual(await deferToThread(example.wait, 10), 0)
        finally:
            example.kill()
            example.communicate()
