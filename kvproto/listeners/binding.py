"""The port of one listener: bound, paused, resumed, closed, and bound again.

Knows nothing of connections.  What listens (`Binding`) and the factory that its port has
(`SwappableFactory`) are apart, so that either can be replaced while the other stays.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory, IReactorTime, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from kvproto.base.log import make_logger
from kvproto.listeners.ports import describe_address

__all__ = ["Binding", "Rebind", "SwappableFactory", "is_hopeless", "why_not_listening"]

log = make_logger()

PORT_CLOSE_TIMEOUT = 2.0
"""Seconds that a port of somebody else's making may take to close."""


@dataclass(frozen=True, slots=True)
class Rebind:
    """How a port that cannot be bound is tried again.

    Attributes:
        first: Seconds until the second attempt.
        longest: Seconds between attempts at most (ns_server: 10, before that 60).
    """

    first: float = 0.5
    longest: float = 10.0


class SwappableFactory(Factory):
    """A factory that stays the same for its port while the one that it stands for is replaced.

    Args:
        name: The listener's name, for the log.
        current: The factory that builds protocols now.
    """

    noisy = False

    def __init__(self, name: str, current: IProtocolFactory) -> None:
        self.name = name
        self.current = current

    def logPrefix(self) -> str:
        """Name the listener where Twisted logs about its port."""
        return self.name

    def buildProtocol(self, addr: Any) -> Any:
        """Build a protocol by the current factory."""
        return self.current.buildProtocol(addr)

    def doStart(self) -> None:
        """Start the current factory; a port whose factory cannot start does not listen."""
        self.current.doStart()
        super().doStart()

    def doStop(self) -> None:
        """Stop the current factory: no port uses it any more."""
        super().doStop()
        self.current.doStop()

    def replace(self, new: IProtocolFactory) -> None:
        """Build protocols by another factory from now on; existing connections stay.

        Raises:
            Exception: It could not be started; then nothing has changed.
        """
        if self.numPorts:
            new.doStart()
        before, self.current = self.current, new
        if self.numPorts:
            try:
                before.doStop()
            except Exception:
                log.failure(
                    "the factory that {listener} had before failed to stop", listener=self.name
                )


class Binding:
    """The listening socket of one listener, as long as there is one.

    Args:
        name: The listener's name, for the log.
        endpoint: Where to listen.
        factory: Builds the protocols of its connections.
        clock: For the time that closing may take.

    Attributes:
        attempts: How often it could not be bound since it last listened.
        error: Why not, the last time; ``""`` when it could.
    """

    def __init__(
        self,
        name: str,
        endpoint: IStreamServerEndpoint,
        factory: SwappableFactory,
        clock: IReactorTime,
    ) -> None:
        self._name = name
        self._endpoint = endpoint
        self._factory = factory
        self._clock = clock
        self._port: Any = None
        self._opening: Deferred[None] | None = None
        self.attempts = 0
        self.error = ""

    @property
    def is_open(self) -> bool:
        """Whether there is a listening socket."""
        return self._port is not None

    @property
    def can_pause(self) -> bool:
        """Whether the socket can stay open unaccepted."""
        return hasattr(self._port, "pause_accepting") or hasattr(self._port, "stopReading")

    @property
    def is_passed_on(self) -> bool:
        """Whether the socket was passed to us: it can be listened on only once."""
        return isinstance(self._endpoint, AdoptedStreamServerEndpoint)

    @property
    def host(self) -> Any:
        """The `IAddress` of the listening socket, None as long as there is none."""
        return None if self._port is None else self._port.getHost()

    @property
    def address(self) -> str:
        """Where it listens, ``""`` as long as it does not."""
        return "" if self._port is None else describe_address(self._port.getHost())

    def open_early(self) -> Failure | None:
        """Begin to bind, without accepting; `open` waits for the end of it.

        Returns:
            Why it failed, if that is known at once.
        """
        failures: list[Failure] = []

        def failed(failure: Failure) -> None:
            failures.append(failure)
            self.failed(failure)  # open() tries again, and tells

        self._opening = Deferred.fromCoroutine(self._open())
        self._opening.addErrback(failed)
        return failures[0] if failures else None

    async def open(self) -> None:
        """Bind without accepting; nothing to do if that has been done."""
        opening, self._opening = self._opening, None
        if opening is not None:
            await opening
        await self._open()

    async def _open(self) -> None:
        if self._port is None:
            self._port = await self._endpoint.listen(self._factory)
            self.pause()

    def failed(self, failure: Failure) -> None:
        """Count an attempt that failed."""
        self.attempts += 1
        self.error = why_not_listening(failure)

    def pause(self) -> None:
        """Let newcomers wait in the kernel's queue, if the port can do that."""
        self._call_port("pause_accepting", "stopReading")

    def resume(self) -> None:
        """Accept."""
        self._call_port("resume_accepting", "startReading")
        self.attempts = 0
        self.error = ""

    def _call_port(self, ours: str, twisted: str) -> None:
        """Call a method of our ports, or of Twisted's, where there is one."""
        method = getattr(self._port, ours, None) or getattr(self._port, twisted, None)
        if method is not None:
            method()

    async def close(self) -> None:
        """Close the listening socket, whatever its port says to that."""
        port, self._port = self._port, None
        if port is None:
            return
        closed = maybeDeferred(port.stopListening)
        closed.addTimeout(PORT_CLOSE_TIMEOUT, self._clock)
        try:
            await closed
        except Exception:
            log.failure("{listener} could not close its port", listener=self._name)


_BIND_ERRORS = {
    errno.EADDRINUSE: "the address is in use: another server listens there",
    errno.EACCES: "not permitted to listen there",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


_HOPELESS = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})
"""What no waiting will change: this machine does not speak the address family."""


def is_hopeless(failure: Failure) -> bool:
    """Return whether trying again is pointless."""
    cause = getattr(failure.value, "socketError", failure.value)
    return getattr(cause, "errno", None) in _HOPELESS


def why_not_listening(failure: Failure) -> str:
    """Return why a port could not be bound, in an operator's words."""
    error = failure.value
    if isinstance(error, CannotListenError):
        interface = f"[{error.interface}]" if ":" in str(error.interface) else error.interface
        where = ":".join(str(part) for part in (interface, error.port) if part)
        cause = error.socketError
        text = _BIND_ERRORS.get(getattr(cause, "errno", None) or 0, str(cause))
        return f"cannot listen on {where}: {text}"
    return f"cannot listen: {error}"
