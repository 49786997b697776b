"""Our listening ports, on sockets that answer accept() as the test likes."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort, IReactorFDSet
from twisted.internet.protocol import Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kvproto.listeners.ports import (
    ACCEPTS_PER_WAKEUP,
    BACKLOG,
    KEPT_FREE,
    LONGEST_PAUSE,
    QUIET,
    AcceptorPort,
    AcceptorUNIXPort,
    ListeningReactor,
    describe_address,
    server_endpoint,
)


@implementer(IReactorFDSet)
class FDClock(Clock):
    """A clock that remembers who wants to read."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def addWriter(self, writer: Any) -> None:
        raise AssertionError("ports do not write")

    def removeWriter(self, writer: Any) -> None:
        """Nobody wanted to."""

    def removeAll(self) -> list[Any]:
        return []

    def getReaders(self) -> list[Any]:
        return list(self.readers)

    def getWriters(self) -> list[Any]:
        return []


class FakeSocket:
    """A listening socket: ``answers`` are what accept() does next, then it would block."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.accepts = 0

    def accept(self) -> tuple[Any, Any]:
        self.accepts += 1
        answer = self.answers.pop(0) if self.answers else errno.EAGAIN
        if isinstance(answer, int):
            raise OSError(answer, "the kernel's words")
        return answer, ("192.0.2.1", 4711)

    def getsockname(self) -> Any:
        return ("192.0.2.9", 11207)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Be closed."""

    def shutdown(self, how: int) -> None:
        """Be shut down."""


class Accepted:
    """A socket that was accepted."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeServer:
    """A transport, as the port makes it."""

    def __init__(self, accepted: Any, protocol: Any, *rest: Any) -> None:
        self.aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Factory:
    """Makes protocols as the test likes."""

    def __init__(self) -> None:
        self.built: list[Any] = []
        self.addresses: list[Any] = []
        self.make: Any = Protocol

    def buildProtocol(self, addr: Any) -> Any:
        self.addresses.append(addr)
        self.built.append(self.make())
        return self.built[-1]

    def doStart(self) -> None:
        """Be started."""

    def doStop(self) -> None:
        """Be stopped."""


class AcceptTests(SynchronousTestCase):
    """The accept loop."""

    def setUp(self) -> None:
        self.clock = FDClock()
        self.factory = Factory()
        self.port = self.make_port()
        self.port.socket = self.socket = FakeSocket()
        self.port.fileno = self.socket.fileno
        self.port.connected = True
        self.servers: list[FakeServer] = []

        def transport(*arguments: Any) -> FakeServer:
            self.arguments = arguments
            self.servers.append(FakeServer(*arguments))
            return self.servers[-1]

        self.port.transport = transport
        self.port.startReading()
        self.lines: list[str] = []
        observer = cast(ILogObserver, self.observe)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def make_port(self) -> Any:
        return AcceptorPort(0, self.factory, 10, "", self.clock)  # type: ignore[arg-type]

    def observe(self, event: Any) -> None:
        if event.get("log_namespace") == "kvproto.listeners.ports":
            self.lines.append(f"{event['log_level'].name} {event['log_format']}")

    def wake(self) -> bool:
        """Let the kernel say that somebody waits; return whether the port listened."""
        if self.port not in self.clock.readers:
            return False
        self.port.doRead()
        return True

    def test_bounded_per_wakeup(self) -> None:
        """A storm of connections leaves others their turn."""
        self.socket.answers = [Accepted() for _ in range(3 * ACCEPTS_PER_WAKEUP)]
        self.wake()
        self.assertEqual(len(self.factory.built), ACCEPTS_PER_WAKEUP)
        self.wake()
        self.wake()
        self.wake()
        self.assertEqual(len(self.factory.built), 3 * ACCEPTS_PER_WAKEUP)

    def test_transports(self) -> None:
        """Each protocol gets a transport of its own, which knows the port, its number and hub."""
        for number in range(3):
            self.socket.answers = [accepted := Accepted()]
            self.wake()
            (protocol, *_) = self.factory.built[number:]
            self.assertIs(protocol.transport, self.servers[number])
            self.assertEqual(self.factory.addresses[number], IPv4Address("TCP", "192.0.2.1", 4711))
            self.assertEqual(
                self.arguments,
                (accepted, protocol, ("192.0.2.1", 4711), self.port, number, self.port.hub),
            )

    def test_closed_by_what_it_accepted(self) -> None:
        """If accepting somebody closes the listener, nobody else is accepted."""

        def close() -> Protocol:
            self.port.disconnecting = True
            return Protocol()

        self.factory.make = close
        self.socket.answers = [Accepted(), Accepted()]
        self.wake()
        self.assertEqual(len(self.factory.built), 1)

    def test_errors_of_one_connection(self) -> None:
        """A connection that broke in the queue does not keep the next one waiting."""
        self.socket.answers = [errno.ECONNABORTED, errno.EPERM, errno.ENETDOWN, Accepted()]
        self.wake()
        self.assertEqual(len(self.factory.built), 1)
        self.assertEqual(self.lines, [])

    def test_full_machine(self) -> None:
        """Without descriptors or buffers accepting rests, longer each time, up to a second."""
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self.socket.answers = [number] * 100
            rests = []
            complained = len(self.lines)
            while self.wake():
                self.assertEqual(len(self.lines), complained + 1, "at once, and once")
                (call,) = self.clock.getDelayedCalls()
                rests.append(round(call.getTime() - self.clock.seconds(), 3))
                self.assertFalse(self.wake(), "a port that rests is not woken")
                if len(rests) == 8:
                    break
                self.clock.advance(rests[-1])
            self.assertEqual(rests[:5], [0.05, 0.1, 0.2, 0.4, 0.8])
            self.assertEqual(rests[5:], [LONGEST_PAUSE] * 3)
            self.socket.answers = []
            self.clock.advance(LONGEST_PAUSE)
            self.wake()
            self.clock.advance(QUIET)
        self.assertEqual(len([line for line in self.lines if line.startswith("warn")]), 4)
        self.assertEqual(len([line for line in self.lines if line.startswith("info")]), 4)

    def test_some_progress(self) -> None:
        """Who could accept somebody in between begins to rest anew, for a short while."""
        self.socket.answers = [errno.EMFILE] * 4
        for rest in (0.05, 0.1, 0.2, 0.4):
            self.wake()
            self.clock.advance(rest)
        self.socket.answers = [Accepted(), errno.EMFILE, errno.EMFILE]
        self.wake()
        for rest in (0.05, 0.1):
            (call,) = self.clock.getDelayedCalls()
            self.assertAlmostEqual(call.getTime() - self.clock.seconds(), rest)
            self.clock.advance(rest)
            self.wake()

    def test_full_again_and_again(self) -> None:
        """A machine that is full ten times a second is complained about once in a while."""
        for _ in range(100):
            self.socket.answers = [Accepted(), errno.EMFILE]
            self.wake()
            self.clock.advance(0.05)
            self.wake()
            self.clock.advance(0.05)
        self.assertEqual(len(self.factory.built), 100)
        self.assertLessEqual(len(self.lines), 4)

    def test_pause_while_resting(self) -> None:
        """A port that is paused while it rests stays paused."""
        self.socket.answers = [errno.EMFILE]
        self.wake()
        self.port.pause_accepting()
        self.clock.advance(LONGEST_PAUSE)
        self.assertFalse(self.wake())
        self.port.resume_accepting()
        self.assertTrue(self.wake())
        self.port.pause_accepting()
        self.assertFalse(self.wake(), "nor is one that is paused")

    def test_resume_while_resting(self) -> None:
        """A port that is resumed while it rests goes on when it has rested."""
        self.socket.answers = [errno.EMFILE]
        self.port.pause_accepting()
        self.port.resume_accepting()
        self.wake()
        self.port.pause_accepting()
        self.port.resume_accepting()
        self.assertFalse(self.wake())
        self.clock.advance(LONGEST_PAUSE)
        self.assertTrue(self.wake())

    def test_closed_while_resting(self) -> None:
        """A port that closes while it rests leaves no delayed call."""
        self.socket.answers = [errno.EMFILE]
        self.wake()
        self.port.connectionLost(Failure(ZeroDivisionError()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_paused_by_what_it_accepted(self) -> None:
        """If accepting somebody stops the listener, nobody else is accepted."""

        def pause() -> Protocol:
            self.port.pause_accepting()
            return Protocol()

        self.factory.make = pause
        self.socket.answers = [Accepted(), Accepted()]
        self.wake()
        self.assertEqual(len(self.factory.built), 1)

    def test_scoped_address(self) -> None:
        """A link-local peer keeps its interface in the address."""
        seen: list[Any] = []
        self.port._buildAddr = seen.append
        self.port._accepted(Accepted(), ("fe80::1", 4711, 0, 1))
        self.assertTrue(seen[0][0].startswith("fe80::1%"), seen)
        self.assertEqual(seen[0][1:], (4711, 0, 1))
        self.port._accepted(Accepted(), ("2001:db8::1", 4711, 0, 0))
        self.assertEqual(seen[1], ("2001:db8::1", 4711, 0, 0))

    def test_nobody_wants_it(self) -> None:
        """A factory that answers None refuses the connection."""
        self.factory.make = lambda: None
        self.socket.answers = [accepted := Accepted()]
        self.wake()
        self.assertTrue(accepted.closed)

    def test_factory_that_fails(self) -> None:
        """A factory that fails costs its connection, nothing else."""

        def broken() -> None:
            raise ZeroDivisionError

        self.factory.make = broken
        self.socket.answers = [first := Accepted(), second := Accepted()]
        self.wake()
        self.assertEqual((first.closed, second.closed), (True, True))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_protocol_that_fails(self) -> None:
        """A protocol that fails when it is connected does not leave its socket open."""

        class Broken(Protocol):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

        self.factory.make = Broken
        self.socket.answers = [Accepted()]
        self.wake()
        self.assertTrue(self.servers[0].aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_is_a_port(self) -> None:
        """It is an IListeningPort."""
        verifyObject(IListeningPort, self.port)


class SocketTests(SynchronousTestCase):
    """Ports on sockets of the kernel's, woken by hand."""

    def setUp(self) -> None:
        self.clock = FDClock()

    def open(self, kind: Any, *args: Any) -> Any:
        """Begin to listen; what is accepted is kept in `accepted`."""
        self.factory = Factory()
        self.accepted: list[tuple[socket.socket, Any]] = []

        def transport(accepted: socket.socket, protocol: Any, address: Any, *rest: Any) -> Any:
            self.addCleanup(accepted.close)
            self.accepted.append((accepted, address))
            return FakeServer(accepted, protocol)

        where, *more = args
        port = kind(where, self.factory, 10, *more)
        port.transport = transport
        port.startListening()
        return port

    def close(self, port: Any) -> None:
        """Close a port; its socket must be closed, and nothing be left to happen."""
        listening = port.socket
        port.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(listening.fileno(), -1)
        self.assertEqual((self.clock.readers, self.clock.getDelayedCalls()), (set(), []))

    def meet(self, port: Any, client: socket.socket, address: Any) -> socket.socket:
        """Let a client in; return the accepted socket."""
        self.addCleanup(client.close)
        client.connect(address)
        self.assertIn(port, self.clock.readers)
        port.doRead()
        ((accepted, _),) = self.accepted
        self.assertEqual((accepted.family, accepted.type), (client.family, client.type))
        self.assertFalse(accepted.get_inheritable())
        client.sendall(b"hello")
        self.assertEqual(accepted.recv(5), b"hello")
        return accepted

    def test_tcp(self) -> None:
        """A peer that vanishes without a word is noticed after six minutes and a half."""
        port = self.open(AcceptorPort, 0, "127.0.0.1", self.clock)
        host = port.getHost()
        client = socket.socket()
        accepted = self.meet(port, client, (host.host, host.port))
        self.assertEqual(self.accepted[0][1], client.getsockname())
        self.assertEqual(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        for name, seconds in (("TCP_KEEPIDLE", 360), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                found = accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                self.assertEqual(found, seconds, name)
        self.close(port)

    def test_unix(self) -> None:
        """A Unix socket has the mode that was asked for, and goes when the port does."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "kv.sock")
            for removed in (False, True):
                for lock in (False, True):
                    port = self.open(AcceptorUNIXPort, os.fsencode(path), 0o640, self.clock, lock)
                    self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
                    self.assertEqual(describe_address(port.getHost()), str(path))
                    self.meet(port, socket.socket(socket.AF_UNIX), str(path))
                    if removed:
                        path.unlink()
                    self.close(port)
                    self.assertEqual(os.listdir(directory), [])


class RoomTests(SynchronousTestCase):
    """File descriptors that are left for what is no connection."""

    def setUp(self) -> None:
        self.real = SelectReactor()
        self.addCleanup(self.real.waker.connectionLost, Failure(ConnectionDone()))
        self.clients: list[socket.socket] = []
        self.accepted: list[socket.socket] = []

    def listen(self, **options: Any) -> Any:
        """Listen where 20 descriptors more than there are now may be open."""
        # What tests before have left goes now, and not while numbers are counted here; where it
        # has left gaps these are filled.
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        most = max(int(name) for name in os.listdir("/proc/self/fd"))
        while (lowest := os.dup(0)) <= most:
            self.addCleanup(os.close, lowest)
        os.close(lowest)
        self.most = lowest + 20
        self.patch(resource, "getrlimit", lambda which: (self.most, self.most))
        reactor = ListeningReactor(self.real, self.transport, **options)
        factory: Any = Factory()
        port: Any = reactor.listenTCP(0, factory, 7, "127.0.0.1")
        self.addCleanup(port.connectionLost, Failure(ConnectionDone()))
        self.addCleanup(self.end_all)
        return port

    def transport(self, accepted: socket.socket, *rest: Any) -> Any:
        self.accepted.append(accepted)
        return FakeServer(accepted, None)

    def end_all(self) -> None:
        for each in (*self.clients, *self.accepted):
            each.close()

    def come(self, port: Any, count: int) -> int:
        """Let clients come; return how many were accepted, and give back where these are."""
        before = len(self.accepted)
        for _ in range(count):
            client = socket.socket()
            # Out of the way: the kernel gives the lowest number that is free.
            high = fcntl.fcntl(client.fileno(), fcntl.F_DUPFD, self.most + 100)
            client.close()
            self.clients.append(socket.socket(fileno=high))
            self.clients[-1].connect(port.socket.getsockname())
        for rest in self.real.getDelayedCalls():
            rest.reset(0)
        self.real.runUntilCurrent()
        self.assertIn(port, self.real.getReaders())
        port.doRead()
        return len(self.accepted) - before

    def test_some_are_left(self) -> None:
        """The last are not taken; who waits in the queue comes in when others have gone."""
        port = self.listen()
        self.come(port, 30)
        highest = max(each.fileno() for each in self.accepted)
        self.assertEqual(highest, self.most - KEPT_FREE)
        self.assertLess(len(self.accepted), 20)
        self.assertEqual(self.come(port, 0), 0)
        for _ in range(3):  # each time others go as many come in, and none of the last is taken
            for each in [one for one in self.accepted if one.fileno() >= 0][:2]:
                each.close()
            self.assertEqual(self.come(port, 0), 2)
            self.assertLessEqual(max(each.fileno() for each in self.accepted), highest)
        (call,) = self.real.getDelayedCalls()
        self.assertLessEqual(call.getTime() - self.real.seconds(), LONGEST_PAUSE)

    def test_limit_is_raised(self) -> None:
        """A reload with more connections raises the limit: a port that listens takes them."""
        port = self.listen()
        self.come(port, 30)
        accepted = len(self.accepted)
        self.most += 10
        self.assertEqual(self.come(port, 0), 10)
        self.most += 20
        self.assertEqual(self.come(port, 0), 30 - accepted - 10)
        self.assertEqual(self.come(port, 0), 0)
        self.assertLessEqual(max(each.fileno() for each in self.accepted), self.most - KEPT_FREE)

    def test_none_is_left_by_what_needs_them(self) -> None:
        """Whoever they are left for takes them."""
        port = self.listen(kept_free=0)
        self.come(port, 20)
        self.assertEqual(len(self.accepted), 20)
        self.assertGreater(max(each.fileno() for each in self.accepted), self.most - KEPT_FREE)


class EndpointTests(SynchronousTestCase):
    """From descriptions to ports."""

    def test_in_memory(self) -> None:
        """On a reactor without file descriptors its own ports are used, with our backlog."""
        reactor = MemoryReactorClock()
        endpoint = server_endpoint(reactor, "tcp:11207:interface=127.0.0.1")
        self.successResultOf(endpoint.listen(Factory()))  # type: ignore[arg-type]
        port, _, backlog, interface = reactor.tcpServers[0]
        self.assertEqual((port, backlog, interface), (11207, BACKLOG, "127.0.0.1"))

    def test_unix_in_memory(self) -> None:
        """The same for Unix sockets."""
        reactor = MemoryReactorClock()
        endpoint = server_endpoint(reactor, "unix:/run/kv.sock")
        self.successResultOf(endpoint.listen(Factory()))  # type: ignore[arg-type]
        self.assertEqual(reactor.unixServers[0][0], "/run/kv.sock")

    def test_passed_in_memory(self) -> None:
        """The same for sockets from outside."""
        reactor = MemoryReactorClock()
        port = ListeningReactor(reactor).adoptStreamPort(7, socket.AF_INET, Factory())  # type: ignore[arg-type]
        self.assertEqual(port.getHost(), reactor.adoptStreamPort(7, 2, Factory()).getHost())

    def test_real(self) -> None:
        """On a reactor with file descriptors all ports are ours, with our backlog."""
        real = SelectReactor()
        self.addCleanup(real.waker.connectionLost, Failure(ConnectionDone()))
        made = object()
        reactor = ListeningReactor(real, cast(Any, made))
        factory: Any = Factory()
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory, "kv.sock"))
            tcp = reactor.listenTCP(0, factory, 7, "127.0.0.1")
            unix = reactor.listenUNIX(path, factory, 7, 0o600, True)
            passed = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
            passed[1].bind(str(Path(directory, "passed.sock")))
            passed[1].listen()
            adopted = [reactor.adoptStreamPort(one.fileno(), one.family, factory) for one in passed]
            ports: list[Any] = [tcp, unix, *adopted]
            self.assertEqual([type(port) for port in ports], [AcceptorPort, AcceptorUNIXPort] * 2)
            for port in ports:
                self.assertIs(port.factory, factory)
                self.assertIs(port.reactor, real)
                self.assertIs(port.transport is made, isinstance(port, AcceptorPort))
            self.assertEqual([port.backlog for port in ports[:2]], [BACKLOG] * 2)
            self.assertEqual((ports[0].interface, ports[1].mode), ("127.0.0.1", 0o600))
            self.assertEqual(ports[2].getHost().port, passed[0].getsockname()[1])
            self.assertTrue(os.path.islink(path + ".lock"))
            for port in ports:
                port.connectionLost(Failure(ConnectionDone()))
            for one in passed:
                one.close()
            self.assertIs(reactor.callLater.__self__, real)

    def test_nonsense(self) -> None:
        """A description that makes no sense is refused when it is read."""
        self.assertRaises(ValueError, server_endpoint, MemoryReactorClock(), "nonsense:1")

    def test_ipv6_only(self) -> None:
        """An IPv6 socket leaves IPv4 its port."""
        if not socket.has_ipv6:
            self.skipTest("this machine has no IPv6")
        port = AcceptorPort(0, Factory(), 10, "::1", FDClock())  # type: ignore[arg-type]
        made = port.createInternetSocket()
        self.addCleanup(made.close)
        self.assertEqual(made.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), 1)
