"""epmd, the daemon that knows on which port a node listens.

Owns: looking a node up (`EpmdClient`), being looked up (`EpmdRegistration`), and
doing without epmd (`FixedPorts`).  An epmd answers on the loopback or any other
interface of each host, in plain text: nothing it says is trusted further than
"try this port", TLS decides who is there.

Source: Erlang, "Distribution Protocol", section "EPMD Protocol".
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from kvproto.base.backoff import Backoff
from kvproto.base.log import make_logger
from kvproto.dist.quiet import QuietFactory
from kvproto.errors import RemoteProtocolError

log = make_logger()

__all__ = ["DEFAULT_PORT", "EpmdClient", "EpmdRegistration", "FixedPorts", "Locate"]

DEFAULT_PORT: Final = 4369

Locate = Callable[[str, str], Deferred[int | None]]
"""Called with a node's name and host; the port of its listener, None when there is none."""

ANSWER_TIMEOUT: Final = 5.0
"""Seconds for one exchange, connecting included."""

MAX_ANSWER: Final = 4096

_HIDDEN: Final = 72
_PROTOCOL_TCP: Final = 0
_VERSION: Final = 6
_LOWEST_VERSION: Final = 5

_LENGTH = Struct(">H")
_REGISTER = Struct(">BHBBHHH")
_PORT_HEAD = Struct(">BBH")


def registration(name: str, port: int) -> bytes:
    """Return the request that registers a hidden node, without ``@HOST``."""
    raw = name.encode("utf-8")
    head = _REGISTER.pack(120, port, _HIDDEN, _PROTOCOL_TCP, _VERSION, _LOWEST_VERSION, len(raw))
    return _framed(head + raw + _LENGTH.pack(0))


def look_up(name: str) -> bytes:
    """Return the request for the port of a node, without ``@HOST``."""
    return _framed(b"\x7a" + name.encode("utf-8"))


def _framed(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def read_registration(data: bytes) -> bool | None:
    """Read the answer to `registration`: whether it took, None when more is needed.

    Raises:
        RemoteProtocolError: This is no epmd.
    """
    # 118: creation of 32 bits; 121: of 16.  We have our own and only look at the result.
    size = {118: 6, 121: 4}.get(data[0] if data else 118)
    if size is None:
        raise RemoteProtocolError("that is no answer of an epmd")
    return None if len(data) < size else data[1] == 0


def read_port(data: bytes) -> int | None:
    """Read the whole answer to `look_up`: the port, None when the name is unknown.

    Raises:
        RemoteProtocolError: This is no epmd.
    """
    if data[:1] != b"\x77" or len(data) < 2:
        raise RemoteProtocolError("that is no answer of an epmd")
    if data[1] != 0:
        return None
    if len(data) < _PORT_HEAD.size:
        raise RemoteProtocolError("an epmd's answer was cut short")
    port: int = _PORT_HEAD.unpack_from(data)[2]
    return port


class _Question(Protocol):
    """Asks one thing, collects the answer until epmd closes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._answer = b""
        self._aborted = False
        self.done: Deferred[bytes] = Deferred(self._abort)

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        self._answer += data
        if len(self._answer) > MAX_ANSWER:
            self._abort(self.done)
            self.done.errback(RemoteProtocolError("an epmd's answer has no end"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._aborted:
            self.done.callback(self._answer)

    def _abort(self, _done: Deferred[bytes]) -> None:
        self._aborted = True
        transport: Any = self.transport
        transport.abortConnection()


class EpmdClient:
    """Looks nodes up.

    Args:
        endpoint: Makes the endpoint of the epmd on a host.
        clock: For the deadline.
    """

    def __init__(
        self, endpoint: Callable[[str], IStreamClientEndpoint], clock: IReactorTime
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock

    def locate(self, name: str, host: str) -> Deferred[int | None]:
        """Ask for the port of a node.

        Args:
            name: The part before ``@``.
            host: The part after it.

        Returns:
            The port, None when that epmd does not know the name.  Fails when
            there is no epmd, or none that answers within 5 s; can be cancelled.
        """
        asking = Deferred.fromCoroutine(self._locate(name, host))
        return asking.addTimeout(ANSWER_TIMEOUT, self._clock)

    async def _locate(self, name: str, host: str) -> int | None:
        question = _Question(look_up(name))
        await self._endpoint(host).connect(QuietFactory.forProtocol(lambda: question))
        return read_port(await question.done)


class FixedPorts:
    """Knows ports without asking: what ``--epmd none`` means.

    Args:
        default: Where every node listens (``-erl_epmd_port``), None for nowhere.
        ports: Node names, ``NAME@HOST``, that listen elsewhere.
    """

    def __init__(self, default: int | None = None, ports: dict[str, int] | None = None) -> None:
        self._default = default
        self._ports = ports or {}

    def locate(self, name: str, host: str) -> Deferred[int | None]:
        """Return the port of a node, None when nobody said."""
        return succeed(self._ports.get(f"{name}@{host}", self._default))


class _Registrant(Protocol):
    """A registration: it lasts as long as this connection."""

    def __init__(self, owner: EpmdRegistration) -> None:
        self._owner = owner
        self._answer = b""
        self._answered = False

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(registration(self._owner.short_name, self._owner.port))

    def dataReceived(self, data: bytes) -> None:
        if self._answered:
            return
        self._answer += data
        try:
            accepted = read_registration(self._answer)
        except RemoteProtocolError as error:
            self._refused(str(error))
            return
        if accepted is None:
            return
        self._answered = True
        if accepted:
            self._owner._registered()
        else:
            self._refused(f"the name {self._owner.short_name} is taken")

    def _refused(self, reason: str) -> None:
        self._answered = True
        self._owner.problem = reason
        self.abort()

    def abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._owner._lost(self)


class EpmdRegistration(Service):
    """Keeps this node registered, as a hidden one.

    A lost or unwilling epmd is asked again, at longer and longer intervals; nothing
    else waits for it, since nodes that are linked need no epmd.

    Args:
        endpoint: The epmd of this host.
        clock: The reactor, or a test's clock.
        name: The part of the node's name before ``@``.
        port: Where the node listens.
        backoff: How long to wait before asking again.

    Attributes:
        registered: Whether epmd knows us now.
        problem: Why not, "" when it does or has not been asked yet.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        name: str,
        port: int,
        backoff: Backoff | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self.short_name = name
        self.port = port
        self._backoff = backoff or Backoff(first=0.5, longest=10.0)
        self._connecting: Deferred[Any] | None = None
        self._registrant: _Registrant | None = None
        self._timer: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None
        self.registered = False
        self.problem = ""

    def startService(self) -> None:
        """Register."""
        super().startService()
        self._register()

    def stopService(self) -> Deferred[None]:
        """Unregister: epmd forgets us when the connection is closed."""
        super().stopService()
        self._stop_timer()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._registrant is None:
            return succeed(None)
        stopped = self._stopped = Deferred()
        self._registrant.abort()
        return stopped

    def _register(self) -> None:
        self._timer = None
        registrant = _Registrant(self)
        connecting = self._endpoint.connect(QuietFactory.forProtocol(lambda: registrant))
        connecting.addTimeout(ANSWER_TIMEOUT, self._clock)
        self._connecting = connecting
        connecting.addCallbacks(self._connected, self._failed)
        connecting.addErrback(lambda failure: log.failure("epmd client failed", failure))

    def _connected(self, registrant: _Registrant) -> None:
        self._connecting = None
        self._registrant = registrant
        self._stop_timer()
        self._timer = self._clock.callLater(ANSWER_TIMEOUT, self._no_answer)

    def _no_answer(self) -> None:
        self._timer = None
        self.problem = "epmd does not answer"
        if self._registrant is not None:
            self._registrant.abort()

    def _failed(self, failure: Failure) -> None:
        self._connecting = None
        self.problem = failure.getErrorMessage() or type(failure.value).__name__
        self._again()

    def _registered(self) -> None:
        self.registered = True
        self.problem = ""
        self._backoff.reset()
        self._stop_timer()
        log.info(
            "epmd knows this node as {name} on port {port}", name=self.short_name, port=self.port
        )

    def _lost(self, registrant: _Registrant) -> None:
        if self.registered:
            self.problem = "epmd closed the connection"
        self.registered = False
        self._registrant = None
        self._stop_timer()
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            stopped.callback(None)
        self._again()

    def _again(self) -> None:
        if self.running:
            wait = self._backoff.next_wait()
            log.warn(
                "not registered with epmd: {problem}; next attempt in {wait:.1f} s",
                problem=self.problem,
                wait=wait,
            )
            self._timer = self._clock.callLater(wait, self._register)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def status(self) -> dict[str, Any]:
        """Describe it; JSON can hold it."""
        return {
            "name": self.short_name,
            "port": self.port,
            "registered": self.registered,
            "problem": self.problem,
        }
