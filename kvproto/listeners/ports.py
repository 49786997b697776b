"""Listening sockets that can be paused, survive a full machine and share a port by family.

Endpoint descriptions (``tcp:``, ``tcp6:``, ``unix:``, ``systemd:``, and what plugins add)
say where to listen; this module says how.  `server_endpoint` hands Twisted's own parsers
a reactor whose ``listenTCP``, ``listenUNIX`` and ``adoptStreamPort`` make *our* ports:

* accepting can be paused while the socket stays open, so that clients wait in the
  kernel's queue instead of being refused;
* IPv6 sockets are IPv6 only, so that ``0.0.0.0`` and ``::`` share a port (Twisted never
  sets ``IPV6_V6ONLY``; the second listener would fail with EADDRINUSE);
* when there are no file descriptors or buffers left, accepting rests for a growing while
  and says so once (Twisted's port spins on ENFILE, ENOBUFS and ENOMEM, logging each
  time, and on EMFILE throws away everybody in the queue with a line for each); the last
  descriptors are left for what is no connection;
* a connection whose protocol cannot be set up is aborted (Twisted's port leaves its
  socket open and readable).
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IDelayedCall,
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.posixbase import PosixReactorBase
from twisted.python.failure import Failure

from kvproto.base.addresses import describe_peer
from kvproto.base.limited_log import LimitedLog
from kvproto.base.log import make_logger
from kvproto.listeners.hub import hub_for
from kvproto.listeners.transport import DirectServer, server_transport, unix_server_transport

__all__ = [
    "BACKLOG",
    "AcceptorPort",
    "AcceptorUNIXPort",
    "ListeningReactor",
    "describe_address",
    "server_endpoint",
]

log = make_logger()
peer_log = LimitedLog(log)

BACKLOG = 1024
"""Connections that may wait to be accepted: room for the time a restart takes.

Linux cuts it to ``net.core.somaxconn`` (4096 since 5.4, 128 before).
"""

ACCEPTS_PER_WAKEUP = 32
"""So many connections are accepted before others' reads have their turn."""

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
"""Seconds to rest when the machine is full (ghostunnel: 5 ms to 1 s)."""

QUIET = 10.0
"""Seconds in which a machine that is full again and again is complained about once."""

KEPT_FREE = 8
"""File descriptors that connections leave for what else must go on: the control socket,
credentials that change, a store's next file."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Transport = Callable[..., tcp.Server]
"""Makes a transport; called as ``twisted.internet.tcp.Server`` is by its port."""

if TYPE_CHECKING:
    _PortBase = tcp.Port
else:
    _PortBase = object


class _Accepting(_PortBase):
    """An accept loop for Twisted's stream ports."""

    factory: Any
    reactor: Any
    _paused = False
    _pause_seconds = 0.0
    _failures = 0
    _complained = False
    _silent_until = 0.0
    _resume_call: IDelayedCall | None = None
    _hub: Any = None
    _kind: tuple[int, int, int] | None = None  # family, type and protocol of the socket
    _highest = 0  # descriptor of what was accepted
    _kept_free = 0
    _first_kept = sys.maxsize  # the lowest descriptor that is to be left

    @property
    def hub(self) -> Any:
        """What tells accepted connections that they are ready; it outlives the port."""
        if self._hub is None:
            self._hub = hub_for(self.reactor)
        return self._hub

    def keep_free(self, count: int) -> None:
        """Leave so many of the file descriptors that this process may have."""
        self._kept_free = count
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if count and limit != resource.RLIM_INFINITY:
            self._first_kept = limit - count

    def pause_accepting(self) -> None:
        """Let newcomers wait in the kernel's queue; the socket stays open."""
        self._paused = True
        self.stopReading()

    def resume_accepting(self) -> None:
        """Accept again."""
        self._paused = False
        if self._resume_call is None:
            self.startReading()

    def doRead(self) -> None:
        """Accept what waits, a bounded number at a time."""
        for number in range(ACCEPTS_PER_WAKEUP):
            if self._paused or self.disconnecting or not self.connected:
                return  # what was just accepted made somebody stop us
            try:
                if self._highest >= self._first_kept:
                    self._look_for_room()
                accepted, address = self._accept()
            except BlockingIOError:
                self._recovered()
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause_exhausted(error, progress=number > 0)
                    return
                # ECONNABORTED, EPERM and the network errors that Linux hands through
                # accept() belong to one connection: the next one may be well.
                continue
            self._accepted(accepted, address)

    def _accept(self) -> tuple[socket.socket, Any]:
        """Accept as `socket.socket.accept` does, without what that asks for each time anew.

        Family and type as enumerations, and two timeouts: together as long as the system call.
        ``_accept`` is CPython's own name for the call.
        """
        listening = self.socket
        if not hasattr(listening, "_accept"):
            return listening.accept()
        descriptor, address = listening._accept()
        self._highest = max(self._highest, descriptor)
        if self._kind is None:
            self._kind = int(listening.family), int(listening.type), listening.proto
        return socket.socket(*self._kind, descriptor), address

    def _look_for_room(self) -> None:
        """See whether the next connection would take a descriptor that is to be left.

        Asked only by a port that once has taken one.

        Raises:
            OSError: EMFILE, as if there were none.
        """
        # The kernel gives the lowest number that is free.
        lowest = os.dup(self.fileno())
        os.close(lowest)
        if lowest >= self._first_kept:
            # A reload with more connections raises the limit.
            self.keep_free(self._kept_free)
        if lowest >= self._first_kept:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _accepted(self, accepted: socket.socket, address: Any) -> None:
        """Put protocol and transport on one new socket."""
        if isinstance(address, tuple) and len(address) == 4 and address[3]:
            numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
            address = (socket.getnameinfo(address, numeric)[0], *address[1:])
        transport = None
        try:
            peer = self._buildAddr(address)
            protocol = self.factory.buildProtocol(peer)
            if protocol is None:
                accepted.close()
                return
            number, self.sessionno = self.sessionno, self.sessionno + 1
            transport = self.transport(accepted, protocol, address, self, number, self.hub)
            if isinstance(transport, DirectServer):
                transport.came_from(peer)
            protocol.makeConnection(transport)
        except Exception:
            peer_log.failure("a connection from {peer} could not be set up", peer=str(address))
            if transport is None:
                accepted.close()
            else:
                transport.abortConnection()

    def _pause_exhausted(self, error: OSError, *, progress: bool) -> None:
        """Stop accepting for a while, longer each time; say so, but not each time."""
        self._pause_seconds = (
            FIRST_PAUSE if progress else min(LONGEST_PAUSE, self._pause_seconds * 2 or FIRST_PAUSE)
        )
        self._failures += 1
        now = self.reactor.seconds()
        if self._failures == 1 and now >= self._silent_until:
            self._silent_until = now + QUIET
            self._complained = True
            log.warn(
                "cannot accept connections on {address}: {error}; they wait in the queue",
                address=describe_address(self.getHost()),
                error=os.strerror(error.errno or 0),
            )
        self.stopReading()
        self._resume_call = self.reactor.callLater(self._pause_seconds, self._resume_exhausted)

    def _resume_exhausted(self) -> None:
        """Try again."""
        self._resume_call = None
        if not self._paused and self.connected and not self.disconnecting:
            self.startReading()

    def _recovered(self) -> None:
        """Note that everybody in the queue has been accepted."""
        if self._complained:
            self._complained = False
            log.info(
                "accepted everybody who waited on {address}, after {failures} failures",
                address=describe_address(self.getHost()),
                failures=self._failures,
            )
        self._failures = 0
        self._pause_seconds = 0.0

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket, and the timer that would wake it."""
        if self._resume_call is not None:
            self._resume_call.cancel()
            self._resume_call = None
        super().connectionLost(reason)


_KEEPALIVE = (("TCP_KEEPIDLE", 360), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""A peer that vanished without a word is noticed after six minutes (kv_engine's numbers);
the kernel's own two hours are no answer to "nothing waits for ever"."""


class AcceptorPort(_Accepting, tcp.Port):
    """A TCP port of ours; accepted sockets inherit its options."""

    transport = server_transport()

    def startListening(self) -> None:
        """Open the socket and set what each accepted one shall have."""
        super().startListening()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def createInternetSocket(self) -> socket.socket:
        """Make an IPv6 socket IPv6 only, so that IPv4 can have the same port."""
        made: socket.socket = super().createInternetSocket()
        if self.addressFamily == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return made


class AcceptorUNIXPort(_Accepting, unix.Port):
    """A Unix socket of ours."""

    transport = unix_server_transport()

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket, whether or not somebody has removed its file meanwhile."""
        try:
            super().connectionLost(reason)
        except FileNotFoundError:
            # Twisted removes the file first, and stops at this: nothing would be closed, and who
            # waits for the end would wait for ever.
            if self.lockFile is not None:
                self.lockFile.unlock()
            tcp.Port.connectionLost(self, reason)


class ListeningReactor:
    """A reactor as endpoints see it, whose ports are ours.

    Args:
        reactor: The real one; where it has no sockets like ours (a test's, Windows'), its
            own ports are used.
        transport: What to put accepted TCP sockets into; None for what is best here.
        kept_free: File descriptors that connections leave.
    """

    def __init__(
        self, reactor: Any, transport: Transport | None = None, kept_free: int = KEPT_FREE
    ) -> None:
        self._reactor = reactor
        self._transport = transport
        self._kept_free = kept_free
        self._real = isinstance(reactor, PosixReactorBase)

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the real reactor."""
        return getattr(self._reactor, name)

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """Listen on a TCP port, IPv4 or IPv6 by the form of ``interface``."""
        backlog = max(backlog, BACKLOG)
        if not self._real:
            listening: IListeningPort = self._reactor.listenTCP(
                port, factory, backlog=backlog, interface=interface
            )
            return listening
        return self._start(AcceptorPort(port, factory, backlog, interface, self._reactor))

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> IListeningPort:
        """Listen on a Unix socket."""
        backlog = max(backlog, BACKLOG)
        if not self._real:
            listening: IListeningPort = self._reactor.listenUNIX(
                address, factory, backlog=backlog, mode=mode, wantPID=wantPID
            )
            return listening
        name = os.fsencode(address)
        return self._start(
            AcceptorUNIXPort(name, factory, backlog, mode, self._reactor, int(wantPID))
        )

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> IListeningPort:
        """Accept from a socket that somebody else opened, as systemd does."""
        if not self._real:
            listening: IListeningPort = self._reactor.adoptStreamPort(
                fileDescriptor, addressFamily, factory
            )
            return listening
        if addressFamily == socket.AF_UNIX:
            return self._start(
                AcceptorUNIXPort._fromListeningDescriptor(self._reactor, fileDescriptor, factory)
            )
        return self._start(
            AcceptorPort._fromListeningDescriptor(
                self._reactor, fileDescriptor, addressFamily, factory
            )
        )

    def _start(self, port: Any) -> IListeningPort:
        """Open a port of ours."""
        if isinstance(port, AcceptorPort) and self._transport is not None:
            port.transport = self._transport  # type: ignore[assignment]
        port.startListening()
        port.keep_free(self._kept_free)
        listening: IListeningPort = port
        return listening


def describe_address(address: Any) -> str:
    """Return where a port listens: ``192.0.2.1:11207``, ``[::]:11207``, a Unix socket's path."""
    name = getattr(address, "name", None)
    return os.fsdecode(name) if name else describe_peer(address)


def server_endpoint(
    reactor: Any, description: str, transport: Transport | None = None
) -> IStreamServerEndpoint:
    """Turn an endpoint description into an endpoint whose ports are ours.

    Args:
        reactor: The reactor.
        description: As for `twisted.internet.endpoints.serverFromString`.
        transport: What to put accepted TCP sockets into; None for what is best here.

    Raises:
        ValueError: The description makes no sense; the text says why.
    """
    endpoint: IStreamServerEndpoint = serverFromString(
        ListeningReactor(reactor, transport), description
    )
    return endpoint
